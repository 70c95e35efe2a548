"""
Compressive sensing: a regulariser trained through the reconstruction
=====================================================================

Bilevel learning chooses a regulariser and its weight so that the *reconstruction* is good. The bound ``beta``
on its smoothness trades convexity for accuracy; a search tries several.
"""

# %%
# The images are photographs of 32 x 32 pixels. A structurally random matrix with a quarter of the rows
# measures them.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skinverse import BilevelRegularizer, TotalVariationRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr

photographs = load_photographs(32, n_patches=32, random_state=0)
images, data, A = make_problem("compressive_sensing", noise=0.02, random_state=0, images=photographs)
X_train, X_test, Y_train, Y_test = images[:28], images[28:], data[:28], data[28:]

# %%
# ``fit`` takes images first and measurements second. ``lam="fit"``, the default, learns the weight
# together with the regulariser. For the training a coarse tolerance is good enough.
trainer = Trainer(max_epochs=3, lr=1e-2, final_lr=1e-3, score_every=1)
pretrainer = Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, validation_fraction=0.0)
method = BilevelRegularizer(
    A,
    hypergradient="jacobian_free",
    trainer=trainer,
    pretrainer=pretrainer,
    bounds=(0, 1),
    tol=1e-3,
    verbose=1,
).fit(X_train, Y_train)
method.set_params(tol=1e-4)
print(f"lam {method.lam_:.3g}, weakly convex with modulus {method.weak_convexity_:.3g}")

# %%
# The next search over ``beta`` and ``lam`` runs in two processes. Each point is a training of its own, a
# short one on few of the pieces. With ``beta=1`` the regulariser is proven to be convex.
short = Trainer(max_epochs=1, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
search = GridSearchCV(
    BilevelRegularizer(A, hypergradient="jacobian_free", trainer=short, pretrainer=short, bounds=(0, 1)),
    {"lam": [0.3, 1.0], "beta": [1.0, 2.0]},
    cv=2,
    n_jobs=2,
    error_score="raise",
).fit(X_train[:8], Y_train[:8])
results = search.cv_results_
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for beta in (1.0, 2.0):
    chosen = results["param_beta"] == beta
    axes.semilogx(
        results["param_lam"][chosen].astype(float),
        results["mean_test_score"][chosen],
        marker="o",
        label=f"beta {beta:g}",
    )
axes.set(xlabel="lam", ylabel="mean PSNR of the folds (dB)")
axes.legend()

# %%
# Total variation gets the weight that is best on the test images themselves.
tv = max(
    (
        TotalVariationRecon(A, lam=lam, bounds=(0, 1), max_steps=3000).fit()
        for lam in np.logspace(-2.5, -1, 5)
    ),
    key=lambda tv: tv.score(X_test, Y_test),
)
reconstructions = {
    "TV": tv.predict(Y_test),
    "bilevel": method.predict(Y_test),
}
for name, x in reconstructions.items():
    print(f"{name:8s}{psnr(X_test, x, data_range=1.0).mean():6.2f} dB")
ReconstructionDisplay.from_predictions(
    X_test[:2], {k: v[:2] for k, v in reconstructions.items()}, data_range=1.0
)

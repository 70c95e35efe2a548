"""
Denoising: a grid over lam that trains once per fold
====================================================

The training of an adversarial regulariser does not depend on the weight ``lam``. With ``memory=`` a
search over ``lam`` therefore trains once for each fold, whatever the number of weights.
"""

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skinverse import AdversarialRegularizer, TotalVariationRecon, Trainer
from skinverse.datasets import make_problem
from skinverse.displays import ReconstructionDisplay

images, data, A = make_problem("denoising", n_samples=36, size=48, noise=0.2, random_state=0)
X_train, X_test, Y_train, Y_test = images[:32], images[32:], data[:32], data[32:]

# %%
# Two folds and the final fit make three trainings, for eight weights.
trainer = Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=20)
method = AdversarialRegularizer(A, trainer=trainer, memory=tempfile.mkdtemp(), verbose=1)
search = GridSearchCV(method, {"lam": np.geomspace(0.02, 0.3, 8)}, cv=2, error_score="raise")
search.fit(X_train, Y_train)
tv = GridSearchCV(TotalVariationRecon(A), {"lam": np.geomspace(0.02, 0.3, 8)}, cv=2).fit(X_train, Y_train)

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for name, found in {"learned energy": search, "total variation": tv}.items():
    results = found.cv_results_
    axes.semilogx(results["param_lam"].astype(float), results["mean_test_score"], marker="o", label=name)
axes.set(xlabel="lam", ylabel="mean PSNR of the folds (dB)")
axes.legend()

# %%
reconstructions = {"TV": tv.predict(Y_test), "learned energy": search.predict(Y_test)}
ReconstructionDisplay.from_predictions(
    X_test[:2], {k: x[:2] for k, x in reconstructions.items()}, Y_meas=Y_test[:2]
)

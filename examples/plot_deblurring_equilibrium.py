"""
Deblurring: a network iterated to its fixed point
=================================================

A deep equilibrium model learns one iteration and returns its fixed point. After the training one may
iterate as long as one likes: the image comes closer to the fixed point and stays there. An unrolled
network is trained with a few steps, and its result changes with every further one.
"""

# %%
# The images are pieces of photographs, and the data are blurred, with a little noise.
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, TotalVariationRecon, Trainer
from skinverse.datasets import load_photographs, make_problem
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr

photographs = load_photographs(48, n_patches=68, random_state=0)
images, data, A = make_problem("deblurring", noise=0.01, random_state=0, images=photographs)
X_train, X_test, Y_train, Y_test = images[:64], images[64:], data[:64], data[64:]

# %%
# ``fit`` takes images first and measurements second. The network learns to denoise, then everything is
# trained through the fixed point; its derivative comes from the equation that it solves.
pretrainer = Trainer(max_epochs=60, lr=3e-3, final_lr=3e-4, validation_fraction=0.0)
trainer = Trainer(max_epochs=4, lr=1e-3, final_lr=1e-4, max_grad_norm=1.0, score_every=1)
settings = {
    "backward": "jacobian_free",
    "pretrainer": pretrainer,
    "trainer": trainer,
    "tol": 1e-4,
    "verbose": 1,
}
method = DeepEquilibriumRecon(A, **settings).fit(X_train, Y_train)
_, info = method.predict(Y_test, return_info=True)
print(f"{info.n_steps.mean():.0f} steps to the fixed point")

# %%
# The unrolled twin takes five steps of the same iteration, which are differentiated one by one.
twin = DeepEquilibriumRecon(A, **settings | {"backward": "unroll"}, max_steps=5).fit(X_train, Y_train)

# %%
# Now both take far more steps than in their training.
steps = [1, 2, 5, 10, 20, 50, 100]
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # most of these numbers of steps are too few
    for name, fitted in (("equilibrium", method), ("unrolled, trained with 5 steps", twin)):
        fitted.set_params(tol=1e-7)
        quality = [psnr(X_test, fitted.set_params(max_steps=k).predict(Y_test)).mean() for k in steps]
        axes.semilogx(steps, quality, marker=".", label=name)
axes.set(xlabel="steps", ylabel="PSNR (dB)")
axes.legend()

# %%
# Total variation gets the weight that is best on the test images themselves.
tv = max(
    (TotalVariationRecon(A, lam=lam).fit() for lam in np.logspace(-4.5, -2.5, 7)),
    key=lambda candidate: candidate.score(X_test, Y_test),
)
method.set_params(tol=1e-4)
reconstructions = {
    "total variation": tv.predict(Y_test),
    "equilibrium": method.predict(Y_test),
}
for name, x in reconstructions.items():
    print(f"{name:16s} {psnr(X_test, x).mean():.2f} dB")
ReconstructionDisplay.from_predictions(
    X_test[:2], {k: x[:2] for k, x in reconstructions.items()}, Y_meas=Y_test[:2]
)
plt.show()

"""
Deblurring after the microscope has changed: adapting a trained model
=====================================================================

A model was trained on pairs for one blur. Then the focus drifts: the data are blurred more, nobody knows
by how much, and there are no sharp images for another training. Model adaptation finds the width of the
blur from the measurements alone, and then adapts the weights.
"""

# %%
# The images are pieces of photographs. There are two blurs, that of the training and that of today.
import matplotlib.pyplot as plt
import numpy as np

from skinverse import LearnedGradientDescent, ModelAdaptation, Trainer
from skinverse.datasets import load_photographs
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr
from skinverse.operators import GaussianBlur, gaussian_blur

NOISE, SIZE = 0.01, 48
photographs = load_photographs(SIZE, n_patches=176, random_state=0)
X_train, X_new = photographs[:160], photographs[160:]
before, today = (gaussian_blur((SIZE, SIZE), sigma) for sigma in (1.6, 2.4))


def measured(A, images, seed):
    """Blurred and noisy images."""
    noise = NOISE * np.random.default_rng(seed).normal(size=images.shape)
    return (np.stack([A @ x for x in images]) + noise).astype(np.float32)


Y_before, Y_today = measured(before, X_train, 0), measured(today, X_train, 0)
Y_new = measured(today, X_new, 1)

# %%
# ``fit`` takes images first and measurements second. The second model is the ideal: it is trained on pairs of
# today, which nobody has.
settings = {"n_iterations": 5, "n_features": 16, "verbose": 1}
trainer = Trainer(max_epochs=12, lr=2e-3, final_lr=2e-4, max_grad_norm=1.0, validation_fraction=0.0)
trained = LearnedGradientDescent(before, trainer=trainer, **settings).fit(X_train, Y_before)
ideal = LearnedGradientDescent(today, trainer=trainer, **settings).fit(X_train, Y_today)

# %%
# ``GaussianBlur`` is a family of operators, and the search begins with the width of the training. It
# takes the width with the least risk. Stein's estimate of the risk needs the noise level, but no true
# image.
family = GaussianBlur((SIZE, SIZE), 1.6)
adapted = ModelAdaptation(family, estimator=trained, noise=NOISE).fit(Y_meas=Y_new)
width = float(adapted.operator_.parameters["sigma"])
print(f"width found: {width:.2f}, truth: 2.4")

# %%
# The model as it was trained assumes a wrong blur, which costs quality. The adapted model does not know
# the true width either, and finds one that is close.
reconstructions = {
    "as trained": trained.predict(Y_new),
    "adapted": adapted.predict(Y_new),
    "trained today": ideal.predict(Y_new),
}
for name, x in reconstructions.items():
    print(f"{name:14s} {psnr(X_new, x).mean():.2f} dB")
ReconstructionDisplay.from_predictions(
    X_new[:2], {k: x[:2] for k, x in reconstructions.items()}, Y_meas=Y_new[:2]
)

# %%
# The fit of the data alone does not show the right width: a weaker blur fits as well. The risk does show it.
widths = np.linspace(1.4, 3.0, 9)
fits, errors = [], []
for sigma in widths:
    A = gaussian_blur((SIZE, SIZE), sigma)
    X_hat = trained.set_params(operator=A).predict(Y_new)
    residuals = np.stack([A @ x for x in X_hat]) - Y_new
    fits.append(np.mean(residuals**2) / NOISE**2)
    errors.append(psnr(X_new, X_hat).mean())
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(widths, fits, marker=".", label="fit / noise")
axes.axvline(width, color="C2", label="found")
axes.axvline(2.4, color="k", linestyle=":", label="truth")
axes.set(xlabel="width of the blur", ylabel="misfit in units of the noise", ylim=(0.95, 1.5))
twin = axes.twinx()
twin.plot(widths, errors, color="C1", marker=".")
twin.set(ylabel="PSNR (dB)")
axes.legend()
plt.show()

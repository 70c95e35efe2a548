"""
MRI: a generative model with an uncertainty for each pixel
==========================================================

A generative model learns from images alone what heads look like. For every value of its latent variables
it gives a mean and a covariance, which says where the mean can be trusted. The model is then a
regulariser for every mask and noise, without another training, and gives a standard deviation for each
pixel.
"""

# %%
# The images are heads: phantoms turned, stretched and shifted at random, with varying grey values and a
# soft texture.
import matplotlib.pyplot as plt
import numpy as np
import pylops
from scipy.ndimage import gaussian_filter
from skimage.transform import AffineTransform, warp

from skinverse import GenerativeCovariancePrior, TotalVariationRecon, Trainer, ZeroFilled
from skinverse.datasets import shepp_logan
from skinverse.displays import CovarianceDisplay
from skinverse.metrics import psnr
from skinverse.operators import fourier_sampling

SIZE, NOISE = 32, 0.02
rng = np.random.default_rng(0)
phantom = shepp_logan(4 * SIZE)


def head() -> np.ndarray:
    """One head, shifted a little."""
    centre = np.full(2, 2 * SIZE - 0.5)
    turn = AffineTransform(scale=rng.uniform(0.95, 1.25, 2), rotation=rng.uniform(-0.3, 0.3))
    shift = AffineTransform(translation=centre + rng.uniform(-4, 4, 2))
    whole = AffineTransform(translation=-centre) + turn + shift
    drawn = warp(phantom ** rng.uniform(0.7, 1.4), whole).reshape(SIZE, 4, SIZE, 4).mean((1, 3))
    return drawn * (1 + gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.0))


heads = np.stack([head() for _ in range(1504)]).astype(np.float32)
X_train, X_test = heads[:-4], heads[-4:]

# %%
# The model learns from images alone, without measurements and without an operator.
trainer = Trainer(
    max_epochs=10, batch_size=32, lr=2e-3, final_lr=2e-4, max_grad_norm=10.0, validation_fraction=0.0
)
prior = GenerativeCovariancePrior(n_latent=12, noise=NOISE, trainer=trainer, verbose=1).fit(X_train)

# %%
# The first picture shows images that the model draws. The second one shows the covariance of one pixel of
# a head with the others: red is positive, blue negative.
figure, axes = plt.subplots(1, 6, figsize=(10, 1.9), layout="constrained")
for axis, image in zip(axes, prior.sample(6, random_state=0), strict=True):
    axis.imshow(image, cmap="gray", vmin=0, vmax=0.8)
    axis.axis("off")
CovarianceDisplay.from_estimator(prior, X_test, (16, 10))

# %%
# A fifth of the Fourier coefficients is measured.
mask = rng.random((SIZE, SIZE)) < 0.2
mask[SIZE // 2 - 2 : SIZE // 2 + 2, SIZE // 2 - 2 : SIZE // 2 + 2] = True
A = fourier_sampling(mask)
exact = np.stack([(A @ x.ravel()).reshape(A.dimsd) for x in X_test.astype(np.complex64)])
noise = rng.normal(size=exact.shape) + 1j * rng.normal(size=exact.shape)
Y_test = exact + NOISE / np.sqrt(2) * noise * mask

# Total variation uses that heads are real as well: its data are real and imaginary parts, its images real.
parts = pylops.VStack([A.toreal(), (-1j * A).toreal()])
parts.dims, parts.dimsd = A.dims, (2, *A.dimsd)
Y_parts = np.stack([Y_test.real, Y_test.imag], 1)
total_variation = TotalVariationRecon(parts).fit()
weights = [3e-3, 6e-3, 1.2e-2, 2.5e-2]
best = max(weights, key=lambda lam: total_variation.set_params(lam=lam).score(X_test, Y_parts))
prior.set_params(operator=A)
found = {
    "zero-filled": ZeroFilled(A).fit().predict(Y_test),
    "total variation": total_variation.set_params(lam=best).predict(Y_parts),
    "range": prior.set_params(constraint="range").predict(Y_test),
}
found["covariance"], std = prior.set_params(constraint="soft").predict(Y_test, return_std=True)
quality = {name: psnr(X_test, np.real(x)).mean() for name, x in found.items()}
for name, value in quality.items():
    print(f"{name:16s} {value:.2f} dB")
error = np.abs(X_test - found["covariance"])
print(f"within two standard deviations: {(error <= 2 * std).mean():.0%} of the pixels")

# %%
# The uncertainty shows in advance where the errors may be.
columns = {"truth": X_test, **found, "error": error, "two standard deviations": 2 * std}
figure, axes = plt.subplots(2, len(columns), figsize=(13, 4), layout="constrained")
for column, (name, images) in zip(axes.T, columns.items(), strict=True):
    column[0].set(title=f"{name}\n{quality[name]:.1f} dB" if name in quality else name)
    grey = name in quality or name == "truth"
    for axis, image in zip(column, np.real(images), strict=False):
        axis.imshow(image, cmap="gray" if grey else "magma", vmin=0, vmax=0.8 if grey else 0.25)
        axis.axis("off")
plt.show()

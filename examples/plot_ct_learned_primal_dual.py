"""
CT: learned primal-dual, iteration by iteration
===============================================

Ten views are too few for filtered back-projection, and the texture of these heads is not piecewise
constant, as total variation assumes. Two methods learn from pairs here: a network that cleans up the
filtered back-projection, and networks between projections, which use the data again in every iteration.
"""

# %%
# The images are heads, turned and stretched at random, with a soft texture. The data are ten noisy views
# of each.
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import AffineTransform, warp

from skinverse import (
    FilteredBackProjection,
    LearnedPrimalDual,
    PostProcessor,
    TotalVariationRecon,
    Trainer,
)
from skinverse.datasets import shepp_logan
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr
from skinverse.operators import as_torch, parallel_beam

SIZE = 32
rng = np.random.default_rng(0)
phantom = shepp_logan(2 * SIZE)


def head() -> np.ndarray:
    """One head, whose centre stays where it was."""
    centre = np.full(2, SIZE - 0.5)
    turn = AffineTransform(scale=rng.uniform(0.95, 1.25, 2), rotation=rng.uniform(-3, 3))
    whole = AffineTransform(translation=-centre) + turn + AffineTransform(translation=centre)
    drawn = warp(phantom, whole).reshape(SIZE, 2, SIZE, 2).mean((1, 3))
    return drawn * (1 + 2 * gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.0))


A = parallel_beam((SIZE, SIZE), np.arange(10) * np.pi / 10, 47)
images = np.stack([head() for _ in range(408)]).astype(np.float32)
exact = as_torch(A)(torch.from_numpy(images)).numpy()
data = (exact + 0.02 * exact.mean() * rng.normal(size=exact.shape)).astype(np.float32)
X_train, X_test, Y_train, Y_test = images[:400], images[400:], data[:400], data[400:]

# %%
# Both are trained for a few hundred steps. Total variation has the weight that is best on the test images.
trainer = Trainer(max_epochs=10, lr=3e-3, final_lr=1.5e-4, max_grad_norm=1.0, validation_fraction=0.0)
primal_dual = LearnedPrimalDual(A, n_iterations=5, n_features=16, trainer=trainer, verbose=1)
primal_dual.fit(X_train, Y_train)
post = PostProcessor(A, network="dncnn", trainer=trainer, verbose=1).fit(X_train, Y_train)
total_variation = TotalVariationRecon(A).fit()
best = max(
    [0.003, 0.01, 0.03, 0.1], key=lambda lam: total_variation.set_params(lam=lam).score(X_test, Y_test)
)
methods = {
    "filtered back-projection": FilteredBackProjection(A, filter="hann").fit(),
    "total variation": total_variation.set_params(lam=best),
    "post-processing": post,
    "learned primal-dual": primal_dual,
}
found = {name: method.predict(Y_test) for name, method in methods.items()}
for name, x in found.items():
    print(f"{name:26s} {psnr(X_test, x).mean():.2f} dB")

# %%
# The image of one head changes from iteration to iteration.
stages = list(primal_dual.staged_predict(Y_test))
figure, axes = plt.subplots(1, len(stages) + 1, figsize=(11, 2.2), layout="constrained")
for k, (axis, x) in enumerate(zip(axes, [*stages, X_test], strict=True), start=1):
    title = f"iteration {k}\n{psnr(X_test, x).mean():.1f} dB" if k <= len(stages) else "truth\n"
    axis.imshow(x[0], cmap="gray", vmin=0, vmax=0.8)
    axis.set(title=title)
    axis.axis("off")

# %%
ReconstructionDisplay.from_predictions(X_test[:2], {name: x[:2] for name, x in found.items()})
plt.show()

"""The parts of a critic's training: losses, patches, and what tells good weights from better ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from skinverse._batch import norm
from skinverse.estimators._calibration import climb
from skinverse.functionals import Functional, LeastSquares, WeightedCritic
from skinverse.metrics import psnr
from skinverse.operators import LinearMap
from skinverse.solvers import accelerated_gradient, pseudo_inverse
from skinverse.training import Trainer

Loss = Callable[[Any, Tensor, Tensor], Tensor]
# Relative weight and scale by the PSNR that they reach.
Found = dict[float, tuple[float, ...]]

# The excess of a gradient's norm over one.
PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "one-sided": lambda size: (size - 1).clamp_min(0).square(),
    "two-sided": lambda size: (size - 1).square(),
}
# Noise to learn to denoise, relative to the spread of the images' values.
_NOISE = 0.2
# The losses see images whose values spread like those of a photograph in [0, 1].
_SPREAD = 0.25
_BATCH, _SEARCH_STEPS, _SCORED_SIDE = 8, 100, 80
# Regularization of the pseudo-inverse, relative to the operator's squared norm.
_DELTA = 1e-2
# Steps and learning rate of the critics' recipes.
_RECIPES = {"ridge": (3000, 1e-2), "convex_ridge": (3000, 1e-2), "lipschitz": (1500, 3e-3)}
_RECIPE = (1500, 1e-3)


def recipe(critic: Any, n_samples: int) -> Trainer:
    """How a critic is trained if nobody says: a fixed number of steps, a few looks at held-out images."""
    n_steps, lr = _RECIPES.get(critic, _RECIPE) if isinstance(critic, str) else _RECIPE
    n_epochs = max(10, math.ceil(n_steps * _BATCH / n_samples))
    return Trainer(
        max_epochs=n_epochs, batch_size=_BATCH, lr=lr, lr_decay=0.1, score_every=math.ceil(n_epochs / 4)
    )


def denoising_loss(patch_size: int | None) -> Loss:
    """``||z - grad R(z) - x||^2`` for noisy ``z``, in units of the noise: one gradient step is to denoise."""

    def loss(module: WeightedCritic, images: Tensor, _: Tensor) -> Tensor:
        x = patches(images, patch_size)
        noise_std = _NOISE / module.log_scale.exp()
        z = x + noise_std * torch.randn_like(x)
        return ((z - module.value_and_grad(z)[1] - x) / noise_std).square().flatten(1).mean(1)

    return loss


def adversarial_loss(
    bad: Tensor, unit: float, patch_size: int | None, weight: float, penalty: str, *, paired: bool
) -> Loss:
    """``R(x) - R(x_bad) + mu (||grad R(x_mix)|| - 1)_+^2`` for each true image and a bad one.

    ``bad`` holds versions of the bad images, (n_versions, n, channels, h, w), the third argument of the loss
    says which ones to take. Where they are pairs, both patches are cut at one place: the expectation is the
    same, its estimate less noisy by far. The penalty counts as much for images of any ``unit``. A critic of
    proven Lipschitz constant has none.
    """
    excess = PENALTIES[penalty]

    def cut(x: Tensor, x_bad: Tensor) -> tuple[Tensor, Tensor]:
        if paired:
            first, second = patches(torch.cat([x, x_bad], 1), patch_size).chunk(2, 1)
            return first.contiguous(), second.contiguous()
        return patches(x, patch_size), patches(x_bad, patch_size)

    def loss(module: WeightedCritic, images: Tensor, index: Tensor) -> Tensor:
        version = torch.randint(len(bad), index.shape, device=bad.device)
        x, x_bad = cut(images, bad[version, index])
        gap = _SPREAD / unit * (module(x) - module(x_bad))
        if module.lipschitz(1) is not None:
            return gap
        t = torch.rand(len(x), 1, 1, 1, device=x.device)
        x_mix = t * x + (1 - t) * x_bad
        return gap + weight * excess(norm(module.value_and_grad(x_mix)[1]))

    return loss


def patches(x: Tensor, size: int | None) -> Tensor:
    """A random patch of each image, flipped and turned at random, (n, channels, size, size) at most.

    None is the whole images, as they are.
    """
    if size is None:
        return x
    height, width = x.shape[-2:]
    rows, columns = (_window(len(x), n, min(n, size), x.device) for n in (height, width))
    images = torch.arange(len(x), device=x.device)[:, None, None]
    cut = x[images, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    may_turn = cut.shape[-1] == cut.shape[-2]
    return cut.mT if may_turn and float(torch.rand(())) < 0.5 else cut


def _window(n: int, length: int, size: int, device: torch.device) -> Tensor:
    """For each of ``n`` images ``size`` indices in a row, half of the time backwards."""
    first = torch.randint(length - size + 1, (n, 1), device=device)
    steps = torch.arange(size, device=device).expand(n, size)
    backwards = torch.rand(n, 1, device=device) < 0.5
    return first + torch.where(backwards, size - 1 - steps, steps)


def separation(module: WeightedCritic, truth: Tensor, bad: Tensor) -> float:
    """``(E R(x_bad) - E R(x)) / max ||grad R||``: what the critic shows of the Wasserstein-1 distance."""
    with torch.no_grad():
        (low, slope_true), (high, slope_bad) = (module.value_and_grad(x) for x in (truth, bad))
        steepest = torch.cat([norm(slope_true), norm(slope_bad)]).max()
        return float((high.mean() - low.mean()) / steepest.clamp_min(torch.finfo(steepest.dtype).tiny))


def normalise(module: WeightedCritic, bad: Tensor, *, patch_size: int | None = 1) -> None:
    """Weigh ``R`` so that its gradient at bad images has norm 1 on a patch (by default a pixel)."""
    with torch.no_grad():
        some = patches(bad[:_BATCH], patch_size) if patch_size != 1 else bad[:_BATCH]
        slope = rms(module.value_and_grad(some)[1])
        n_values = 1 if patch_size == 1 else some[0].numel()
        if 0 < slope < math.inf:
            module.log_weight.sub_(math.log(slope * math.sqrt(n_values)))


def search(
    misfit: Functional, regularizer: Callable[[float], Functional], x0: Tensor, images: Tensor, found: Found
) -> float:
    """PSNR of reconstructions at the best weight and scale near the best that were ``found`` so far.

    ``found`` is told the weight, relative to the rule ``E ||A^* noise|| / E ||grad R||``, and the scale.
    """
    noise = rms(misfit.grad(images))

    def psnr_with(relative: float, scale: float) -> float:
        R = regularizer(scale)
        slope = rms(R.grad(x0))
        if not 0 < slope < math.inf:
            return -math.inf
        objective = misfit + relative * noise / slope * R
        x = accelerated_gradient(objective, x0, max_steps=_SEARCH_STEPS, tol=1e-3).x
        return float(np.mean(psnr(images, x)))

    start, factor = (found[max(found)], 1.25) if found else ((1.0, 1.0), 1.5)
    at, best = climb(psnr_with, start, factor)
    found[best] = at
    return best


def spread(x: Tensor) -> float:
    """Standard deviation of the values, 1 for constant images."""
    found = float(x.std()) if x.numel() > 1 else 0.0
    return found if found > 0 else 1.0


def rms(x: Tensor) -> float:
    """Root mean square of the values."""
    return math.sqrt(float(x.detach().abs().square().mean()))


def fidelity(A: LinearMap, data: Tensor) -> Functional:
    """``1/2 ||A x - y||^2``."""
    return LeastSquares(None if A.identity else A, data)


def noise_level(
    A: LinearMap, images: Tensor, data: Tensor, noise_std: float | None, *, paired: bool
) -> float:
    """Root mean square of ``A^* noise`` per pixel."""
    if noise_std is None and paired:
        return rms(fidelity(A, data).grad(images))
    noise = torch.randn(data.shape, dtype=data.dtype, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros_like(images[:1]).expand(len(data), *images.shape[1:])
    unit, seen = (fidelity(A, y).grad(zero) for y in (noise.to(data.device), data))  # -A^* y
    if noise_std is not None:
        return noise_std * rms(unit)
    level = white_noise(seen, fidelity(A, A(images)).grad(torch.zeros_like(images)), unit)
    if level == 0:
        message = 'lam="auto" sees no noise in Y_meas: lam is 0; pass noise_std or lam'
        warnings.warn(message, stacklevel=6)
    return level * rms(unit)


def white_noise(noisy: Tensor, exact: Tensor, unit: Tensor) -> float:
    """Standard deviation of the noise by which two unpaired sets of images differ, in high frequencies.

    Unit noise makes the images ``unit``; the Laplacian, which pictures have little of, tells them apart.
    """
    energies = [rms(_laplacian(x)) ** 2 for x in (noisy, exact, unit)]
    return math.sqrt(max(0.0, energies[0] - energies[1]) / energies[2]) if energies[2] > 0 else 0.0


def _laplacian(x: Tensor) -> Tensor:
    axes = range(max(1, x.ndim - 2), x.ndim)
    return sum((2 * x - x.roll(1, axis) - x.roll(-1, axis) for axis in axes), torch.zeros_like(x))


def are_pairs(A: Any, images: Tensor, data: Tensor) -> bool:
    """Whether most measurements fit their own image better than the next eight ones."""
    if len(images) != len(data):
        return False
    expected = torch.cat([A(part) for part in images.split(max(1, 2**20 // images[0].numel()))])
    shifts = range(min(len(images), 9))
    misfits = torch.stack([norm(data - expected.roll(shift, 0)) for shift in shifts])
    return float((misfits.argmin(0) == 0).double().mean()) > 0.5


def is_number(lam: Any) -> TypeGuard[float]:
    """Whether a weight is given as such, not by a rule."""
    return lam is not None and not isinstance(lam, str)


def analytic_inverse(A: LinearMap, data: Tensor) -> Tensor:
    """Filtered back-projection where there is one, else a regularized pseudo-inverse."""
    try:
        return A.filtered_adjoint(data, filter="ramp")
    except TypeError:  # there is none
        delta = _DELTA * A.norm() ** 2 or 1.0
        return pseudo_inverse(A, data, delta, tol=1e-4).x


def excerpt(images: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """A corner of images and data of one shape: to denoise, it shows as much as the whole."""
    corner: Any = (..., *[slice(0, _SCORED_SIDE)] * min(2, images.ndim - 1))
    return images[corner], data[corner]


def in_memory(A: LinearMap) -> int:
    """How many images to work on at once."""
    return max(1, 2**20 // max(math.prod(A.dims), math.prod(A.dimsd)))

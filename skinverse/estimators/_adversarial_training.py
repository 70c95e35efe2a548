"""The parts of a critic's training: losses, what tells good weights from better ones, the noise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._batch import norm
from skinverse.estimators._learning import Loss, fidelity, patches, rms
from skinverse.functionals import WeightedCritic
from skinverse.operators import LinearMap
from skinverse.training import Trainer

# The excess of a gradient's norm over one.
PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "one-sided": lambda size: (size - 1).clamp_min(0).square(),
    "two-sided": lambda size: (size - 1).square(),
}
# The losses see images whose values spread like those of a photograph in [0, 1].
_SPREAD = 0.25
_BATCH = 8
# Steps and learning rate of the critics' recipes.
_RECIPES = {"ridge": (3000, 1e-2), "convex_ridge": (3000, 1e-2), "lipschitz": (1500, 3e-3)}
_RECIPE = (1500, 1e-3)


def recipe(critic: Any, n_samples: int) -> Trainer:
    """How a critic is trained if nobody says: a fixed number of steps, a few looks at held-out images."""
    n_steps, lr = _RECIPES.get(critic, _RECIPE) if isinstance(critic, str) else _RECIPE
    n_epochs = max(10, math.ceil(n_steps / math.ceil(n_samples / _BATCH)))
    return Trainer(
        max_epochs=n_epochs, batch_size=_BATCH, lr=lr, lr_decay=0.1, score_every=math.ceil(n_epochs / 4)
    )


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


def separation(module: WeightedCritic, truth: Tensor, bad: Tensor) -> float:
    """``(E R(x_bad) - E R(x)) / max ||grad R||``: what the critic shows of the Wasserstein-1 distance."""
    with torch.no_grad():
        (low, slope_true), (high, slope_bad) = (module.value_and_grad(x) for x in (truth, bad))
        steepest = torch.cat([norm(slope_true), norm(slope_bad)]).max()
        return float((high.mean() - low.mean()) / steepest.clamp_min(torch.finfo(steepest.dtype).tiny))


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

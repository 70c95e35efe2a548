"""What an energy is trained for without reconstructions: to denoise, and to tell true images from bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import as_channels, expand, norm
from skinverse.training import Loss, random_patches

# Noise to be removed from normalised images.
_NOISE = 0.2
# Standard deviation of the values of photographs in [0, 1], in whose units the penalty is chosen.
_PHOTOGRAPHS = 0.25

# What a gradient of some norm costs.
PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "one_sided": lambda length: (length - 1).clamp_min(0).square(),
    "two_sided": lambda length: (length - 1).square(),
}


def denoising_loss(patch_size: int | None, channel_axis: int | None) -> Loss:
    """``||z - grad R(z) - x||^2 / sigma^2`` for noisy ``z``: one gradient step is to denoise."""

    def loss(module: Any, images: Tensor, *_: Tensor) -> Tensor:
        x = random_patches(as_channels(images, channel_axis), patch_size)
        z = x + _NOISE * torch.randn_like(x)
        return ((z - module.value_and_grad(z)[1] - x) / _NOISE).square().flatten(1).mean(1)

    return loss


def adversarial_loss(
    gradient_penalty: float, penalty: str, patch_size: int | None, channel_axis: int | None, *, paired: bool
) -> Loss:
    """``R(x) - R(x_bad) + mu (||grad R(x_mix)|| - 1)_+^2`` for each true image and a bad one.

    The loss takes images and several versions of bad ones, (n, n_versions, channels, *space), of which
    one is chosen at random. Where they are pairs, both patches are cut at the same place: the expectation
    does not change, and its estimate is far less noisy. An energy of proven Lipschitz constant needs no
    penalty.
    """
    excess = PENALTIES[penalty]

    def cut(x: Tensor, x_bad: Tensor) -> tuple[Tensor, Tensor]:
        if paired:
            first, second = random_patches(torch.cat([x, x_bad], 1), patch_size).chunk(2, 1)
            return first.contiguous(), second.contiguous()
        return random_patches(x, patch_size), random_patches(x_bad, patch_size)

    def loss(module: Any, images: Tensor, versions: Tensor, *_: Tensor) -> Tensor:
        chosen = torch.randint(versions.shape[1], (len(versions),), device=versions.device)
        x, x_bad = cut(as_channels(images, channel_axis), versions[torch.arange(len(versions)), chosen])
        gap = _PHOTOGRAPHS * (module(x) - module(x_bad))
        if module.lipschitz(1) is not None:
            return gap
        t = expand(torch.rand(len(x), device=x.device), x)
        x_mix = t * x + (1 - t) * x_bad
        return gap + gradient_penalty * excess(norm(module.value_and_grad(x_mix)[1]))

    return loss


def separation(module: Any, true: Tensor, bad: Tensor) -> float:
    """``(E R(x_bad) - E R(x)) / max ||grad R||``, a lower estimate of the Wasserstein-1 distance."""
    with torch.no_grad():
        (low, slope_true), (high, slope_bad) = (module.value_and_grad(x) for x in (true, bad))
        steepest = torch.cat([norm(slope_true), norm(slope_bad)]).max()
        return float((high.mean() - low.mean()) / steepest.clamp_min(torch.finfo(steepest.dtype).tiny))

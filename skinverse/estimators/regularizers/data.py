"""What images and data say of each other: whether they are pairs, and how noisy the data are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from skinverse._tensors import norm, real_like, rms
from skinverse.estimators._learned import batch_size_for, in_batches
from skinverse.estimators._units import NormalisedFidelity, without_gain
from skinverse.operators import LinearMap

# Images with which the data of one are compared, its own among them.
_N_COMPARED = 9


def are_pairs(A: LinearMap, images: Tensor, data: Tensor) -> bool:
    """Whether most measurements fit their own image better than the next eight ones."""
    if len(images) != len(data):
        return False
    n, expected = len(images), in_batches(A, A, images)
    parts = torch.arange(n, device=data.device).split(batch_size_for(A))
    best = [
        torch.stack(
            [norm(data[i] - expected[(i - shift) % n]) for shift in range(min(n, _N_COMPARED))]
        ).argmin(0)
        for i in parts
    ]
    return float((torch.cat(best) == 0).double().mean()) > 0.5


def noise_in_images(
    fidelity: NormalisedFidelity,
    images: Tensor,
    data: Tensor,
    axes: tuple[int, ...],
    *,
    known: bool,
    paired: bool,
) -> float:
    """Root mean square, per pixel, of the gradient of the fidelity at true images: ``A^* noise / ||A||^2``.

    Where the noise is unknown, pairs show it as ``A^* (A x - y)``; of other sets it is taken for white.
    ``axes`` are the spatial ones.
    """
    size = batch_size_for(fidelity.A)
    if known:
        noisy = ((fidelity.drawn(x, seed), x) for seed, x in enumerate(images.split(size)))
        return _rms(fidelity(y).grad(x) for y, x in noisy)
    if paired:
        pairs = zip(images.split(size), data.split(size), strict=True)
        return _rms(fidelity(y).grad(x) for x, y in pairs)
    A, weighted = fidelity.A, fidelity.weighted_data
    noise_std = _white_noise(
        (back_projection(A, weighted(y), images) for y in data.split(size)),
        (back_projection(A, A(x), images) for x in images.split(size)),
        _unit_noise(A, images, data),
        axes,
    )
    if noise_std == 0:
        message = 'lam="auto" sees no noise in Y_meas: lam is 0; pass noise or lam'
        warnings.warn(message, stacklevel=8)
    return noise_std * _rms(_unit_noise(A, images, data))


def back_projection(A: LinearMap, data: Tensor, images: Tensor) -> Tensor:
    """``A^* y / ||A||^2``, of which only the real part counts where images are real."""
    normed, y, _ = without_gain(A, data)
    return real_like(normed.adjoint(y), images)


def _unit_noise(A: LinearMap, images: Tensor, data: Tensor) -> Iterator[Tensor]:
    """What noise of standard deviation 1 in the data is in the images, a few of them at a time."""
    draws = torch.Generator().manual_seed(0)
    for y in data.split(batch_size_for(A)):
        white = torch.randn(y.shape, dtype=y.dtype, generator=draws).to(y.device)
        yield back_projection(A, white, images)


def _white_noise(
    noisy: Iterable[Tensor], exact: Iterable[Tensor], unit: Iterable[Tensor], axes: tuple[int, ...]
) -> float:
    """Standard deviation of the white noise by which two sets differ; ``unit`` is noise of deviation 1.

    Compared are their Laplacians: pictures have little in high frequencies, and white noise has as much there
    as elsewhere.
    """
    with_noise, without, of_unit = (
        _rms(_laplacian(x, axes) for x in parts) ** 2 for parts in (noisy, exact, unit)
    )
    return math.sqrt(max(0.0, with_noise - without) / of_unit) if of_unit > 0 else 0.0


def _rms(parts: Iterable[Tensor]) -> float:
    """Root mean square of the values of all parts."""
    squares, sizes = zip(*((rms(x) ** 2 * x.numel(), x.numel()) for x in parts), strict=True)
    return math.sqrt(sum(squares) / sum(sizes))


def _laplacian(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    return sum((2 * x - x.roll(1, axis) - x.roll(-1, axis) for axis in axes), torch.zeros_like(x))

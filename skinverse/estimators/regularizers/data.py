"""What images and data say of each other: whether they are pairs, and how noisy the data are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from skinverse._tensors import norm, real_like, rms
from skinverse.estimators._learned import batch_size_for, in_batches
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import NormalisedFidelity, without_gain
from skinverse.operators import LinearMap

# Images with which the data of one are compared, its own among them.
_N_COMPARED = 9
# Data that are compared with them, where each has its own operator.
_N_ASKED = 64


def are_pairs(problems: Problems, images: Tensor, data: Tensor, which: Tensor) -> bool:
    """Whether most measurements fit their own image better than the next eight ones."""
    if problems.several:
        return _are_pairs_under_several(problems, images, data, which)
    A = problems.A
    n, expected = len(images), in_batches(A, A, images)
    parts = torch.arange(n, device=data.device).split(batch_size_for(A))
    best = [
        torch.stack(
            [norm(data[i] - expected[(i - shift) % n]) for shift in range(min(n, _N_COMPARED))]
        ).argmin(0)
        for i in parts
    ]
    return float((torch.cat(best) == 0).double().mean()) > 0.5


def _are_pairs_under_several(problems: Problems, images: Tensor, data: Tensor, which: Tensor) -> bool:
    """The same by a few of them: each other image has to be measured as the one was."""
    n = len(data)
    few = torch.arange(min(n, _N_ASKED), device=data.device)

    def misfit(A: LinearMap, y: Tensor, x: Tensor) -> Tensor:
        return norm(y - A(x))

    misfits = [
        problems.each(misfit, problems.maps, which[few], data[few], images[(few - shift) % n])
        for shift in range(min(n, _N_COMPARED))
    ]
    return float((torch.stack(misfits).argmin(0) == 0).double().mean()) > 0.5


def noise_in_images(
    problems: Sequence[tuple[NormalisedFidelity, float, Tensor, Tensor]],
    axes: tuple[int, ...],
    *,
    known: bool,
    paired: bool,
) -> float:
    """Root mean square, per pixel, of the gradient of the fidelity at true images: ``A^* noise / ||A||^2``.

    Where the noise is unknown, pairs show it as ``A^* (A x - y)``; of other sets it is taken for white.
    ``axes`` are the spatial ones. Of each problem there are the fidelity, what its gradient is multiplied
    by, images and data.
    """
    if known:
        drawn = ((f, unit, x) for f, unit, images, _ in problems for x in images.split(batch_size_for(f.A)))
        return _rms(unit * f(f.drawn(x, seed)).grad(x) for seed, (f, unit, x) in enumerate(drawn))
    if paired:
        return _rms(unit * f(y).grad(x) for f, unit, *rows in problems for x, y in _few_at_a_time(f.A, *rows))
    noise_std = _white_noise(
        (
            back_projection(f.A, f.weighted_data(y), images)
            for f, _, images, data in problems
            for y in data.split(batch_size_for(f.A))
        ),
        (
            back_projection(f.A, f.A(x), images)
            for f, _, images, _ in problems
            for x in images.split(batch_size_for(f.A))
        ),
        (noise for noise, _ in _unit_noise(problems)),
        axes,
    )
    if noise_std == 0:
        message = 'lam="auto" sees no noise in Y_meas: lam is 0; pass noise or lam'
        warnings.warn(message, stacklevel=8)
    return noise_std * _rms(unit * noise for noise, unit in _unit_noise(problems))


def _few_at_a_time(A: LinearMap, images: Tensor, data: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = batch_size_for(A)
    return zip(images.split(size), data.split(size), strict=True)


def back_projection(A: LinearMap, data: Tensor, images: Tensor) -> Tensor:
    """``A^* y / ||A||^2``, of which only the real part counts where images are real."""
    normed, y, _ = without_gain(A, data)
    return real_like(normed.adjoint(y), images)


def _unit_noise(
    problems: Sequence[tuple[NormalisedFidelity, float, Tensor, Tensor]],
) -> Iterator[tuple[Tensor, float]]:
    """What noise of standard deviation 1 in the data is in the images, a few of them at a time; units."""
    draws = torch.Generator().manual_seed(0)
    for f, unit, images, data in problems:
        for y in data.split(batch_size_for(f.A)):
            white = torch.randn(y.shape, dtype=y.dtype, generator=draws).to(y.device)
            yield back_projection(f.A, white, images), unit


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

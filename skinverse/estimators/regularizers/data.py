"""What images and data say of each other: whether they are pairs, and how noisy the data are."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from skinverse._tensors import norm, real_like, rms
from skinverse.estimators._learned import fidelity, in_batches
from skinverse.operators import LinearMap

# Images with which the data of one are compared, its own among them.
_N_COMPARED = 9


def are_pairs(A: LinearMap, images: Tensor, data: Tensor) -> bool:
    """Whether most measurements fit their own image better than the next eight ones."""
    if len(images) != len(data):
        return False
    expected = in_batches(A, A, images)
    shifts = range(min(len(images), _N_COMPARED))
    misfits = torch.stack([norm(data - expected.roll(shift, 0)) for shift in shifts])
    return float((misfits.argmin(0) == 0).double().mean()) > 0.5


def noise_in_images(
    A: LinearMap, images: Tensor, data: Tensor, noise_std: float | None, *, paired: bool
) -> float:
    """Root mean square of ``A^* noise`` per pixel.

    Where the noise is unknown, pairs show it as ``A^* (A x - y)``; of other sets it is taken for white.
    """
    if noise_std is None and paired:
        return rms(fidelity(A, data).grad(images))
    draws = torch.Generator().manual_seed(0)
    white = torch.randn(data.shape, dtype=data.dtype, generator=draws).to(data.device)
    unit = back_projection(A, white, images)
    if noise_std is None:
        noisy, exact = (back_projection(A, y, images) for y in (data, A(images)))
        noise_std = _white_noise(noisy, exact, unit)
    if noise_std == 0:
        message = 'lam="auto" sees no noise in Y_meas: lam is 0; pass noise_std or lam'
        warnings.warn(message, stacklevel=7)
    return noise_std * rms(unit)


def back_projection(A: LinearMap, data: Tensor, images: Tensor) -> Tensor:
    """``A^* y``, of which only the real part counts where images are real."""
    return real_like(A.adjoint(data), images)


def _white_noise(noisy: Tensor, exact: Tensor, unit: Tensor) -> float:
    """Standard deviation of the white noise by which two sets differ; ``unit`` is noise of deviation 1.

    Compared are their Laplacians: pictures have little in high frequencies, and white noise has as much there
    as elsewhere.
    """
    with_noise, without, of_unit = (rms(_laplacian(x)) ** 2 for x in (noisy, exact, unit))
    return math.sqrt(max(0.0, with_noise - without) / of_unit) if of_unit > 0 else 0.0


def _laplacian(x: Tensor) -> Tensor:
    axes = range(max(1, x.ndim - 2), x.ndim)
    return sum((2 * x - x.roll(1, axis) - x.roll(-1, axis) for axis in axes), torch.zeros_like(x))

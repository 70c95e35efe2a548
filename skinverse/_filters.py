"""A bank of filters on mirrored images and its adjoint: fast on few channels, differentiable to any order."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight, conv3d_weight

from skinverse._tensors import fold, full_precision, mirror

# Channels up to which the derivative in the filters is faster as a product of matrices than as a convolution.
_FEW_CHANNELS = 2
# Numbers of a filter up to which one product of matrices is faster than a transposed convolution: 2 to 3
# times for 7 x 7 pixels; it is half as fast for 7 x 7 of three channels, and as fast for 11 x 11.
_FEW_PLACES = 100
# Where eigenvalues are made positive, this rounds off the corner at 0, relative to the mean of those of the
# Gram matrix. It is 1000 times the error of single precision, and adds 3e-4 to the square of a bound.
_ROUNDING = 1e-4


# Frequencies at which the norm of filters is computed, for each degree in each direction. The bound is then
# up to 2 % above it for images, and 13 % for volumes, of which 16 would take eight times as long.
_FREQUENCIES = {2: 16, 3: 8}
# Layers of convolutions, by the number of spatial axes.
CONVOLUTIONS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlation of images, or of volumes, with a kernel (n_out, n_in, k, ..., k), where it is inside."""
    return F.conv2d(x, kernel, bias) if kernel.ndim == 4 else F.conv3d(x, kernel, bias)


@full_precision
def analyse(x: Tensor, filters: Tensor) -> Tensor:
    """Responses ``W x`` of every filter, by correlation with the image continued by its mirror images.

    Parameters
    ----------
    x : Tensor of shape (n, channels, *space)
        Images or volumes of any size.
    filters : Tensor of shape (n_filters, channels, k, ..., k)
        The filters; ``k`` is odd.

    Returns
    -------
    Tensor of shape (n, n_filters, *space)
        The responses.
    """
    return _Analyse.apply(x, filters)


@full_precision
def synthesise(u: Tensor, filters: Tensor) -> Tensor:
    """Adjoint of :func:`analyse`, ``W^T u``, from responses to images.

    Parameters
    ----------
    u : Tensor of shape (n, n_filters, *space)
        Responses.
    filters : Tensor of shape (n_filters, channels, k, ..., k)
        The filters; ``k`` is odd.

    Returns
    -------
    Tensor of shape (n, channels, *space)
        Images.
    """
    return _Synthesise.apply(u, filters)


class _Analyse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return convolve(mirror(x, filters.shape[-1] // 2), filters)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, filters = ctx.saved_tensors
        return (
            synthesise(g, filters) if ctx.needs_input_grad[0] else None,
            _by_filter(x, g, filters) if ctx.needs_input_grad[1] else None,
        )


class _Synthesise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(u, filters)
        margin = filters.shape[-1] // 2
        if filters.ndim == 5 or filters[0].numel() > _FEW_PLACES:
            transposed: Any = F.conv_transpose3d if filters.ndim == 5 else F.conv_transpose2d
            return fold(transposed(u, filters), margin)
        # Convolutions onto one channel leave the vector units of a CPU idle: what each filter adds to the
        # places around a pixel is one product of matrices. One for each image: in a single product of all of
        # them sums might depend on companions.
        around = torch.bmm(filters.flatten(1).T.expand(len(u), -1, -1), u.flatten(2))
        height, width = (n + 2 * margin for n in u.shape[2:])
        return fold(F.fold(around, (height, width), filters.shape[-1]), margin)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, filters = ctx.saved_tensors
        return (
            analyse(g, filters) if ctx.needs_input_grad[0] else None,
            _by_filter(g, u, filters) if ctx.needs_input_grad[1] else None,
        )


@full_precision
def _by_filter(x: Tensor, u: Tensor, filters: Tensor) -> Tensor:
    """Derivative of ``<W x, u>`` in the filters."""
    x = mirror(x, filters.shape[-1] // 2)
    if filters.ndim == 4 and filters.shape[1] <= _FEW_CHANNELS:
        patches = F.unfold(x, filters.shape[2:])
        return torch.bmm(u.flatten(2), patches.mT).sum(0).reshape(filters.shape)
    weight: Any = conv2d_weight if filters.ndim == 4 else conv3d_weight
    by_filter: Tensor = weight(x, filters.shape, u)
    return by_filter


def mirrored_norm(filters: Tensor) -> Tensor:
    """Bound on ``||W||`` for images of every size, continued by mirror images.

    ``||W x||^2`` is the sum of ``p^T C p`` over all patches ``p`` of the mirrored image, with the Gram matrix
    ``C`` of the filters. On the plane this has the norm of the Fourier symbol of ``C``. With mirrored borders
    it has the same norm if ``C`` does not change under flips: an image and its three mirror images are one
    period of a periodic image, whose squared norm is four times as large, and all four have equal responses.
    Any other ``C`` is bounded by one that does not change (:func:`unchanged_by_flips`).

    So the bound is that of the plane for filters that come with their mirror images, and for those that are
    even or odd in both directions. For many random ones it is about 1.5 times as large; for a shift by one
    pixel in both directions twice as large, and so is the norm.

    The symbol is a trigonometric polynomial of degree ``k - 1``; its maximum is at most
    ``1 / cos(pi (k - 1) / N)`` times, in each direction, that over ``N`` equidistant frequencies (Ehlich and
    Zeller, Math. Z. 86, 1964).

    Parameters
    ----------
    filters : Tensor of shape (n_filters, channels, k, ..., k)
        The filters; of several channels, the largest singular value at each frequency counts.

    Returns
    -------
    Tensor of shape ()
        The bound, differentiable in the filters.
    """
    degree, n_axes = filters.shape[-1] - 1, filters.ndim - 2
    n = 2 ** math.ceil(math.log2(max(_FREQUENCIES[n_axes] * degree, 1)))
    symbol = _symbol(mirrored_gram(filters), n)
    largest = symbol[..., 0, 0] if symbol.shape[-1] == 1 else torch.linalg.eigvalsh(symbol)[..., -1]
    return largest.max().clamp_min(torch.finfo(filters.dtype).tiny).sqrt() / math.cos(
        math.pi * degree / n
    ) ** (n_axes / 2)


def mirrored_gram(filters: Tensor) -> Tensor:
    """Kernel of a convolution that bounds ``W^T W``, as that of images continued by mirror images.

    Parameters
    ----------
    filters : Tensor of shape (n_filters, channels, k, ..., k)
        The filters.

    Returns
    -------
    Tensor of shape (channels, channels, 2 k - 1, ..., 2 k - 1)
        The kernel, even in all directions.
    """
    (_, c, *size), w = filters.shape, filters.flatten(1)
    k, n = size[0], math.prod(size)
    gram = unchanged_by_flips((w.T @ w).reshape(c, *size, c, *size)).reshape(c, n, c, n)
    kernel = gram.new_zeros(c, c, (2 * k - 1) ** len(size))
    place = torch.from_numpy(_differences(k, len(size))).to(w.device)
    kernel = kernel.index_add(2, place, gram.transpose(1, 2).flatten(2))
    return kernel.unflatten(2, (2 * k - 1,) * len(size))


@lru_cache(maxsize=16)
def _differences(k: int, n_axes: int) -> NDArray[np.int64]:
    """The difference of every two places in filters of side ``k``, as one number: flat, (k^(2 n_axes),)."""
    t = np.arange(k)
    apart = t - t[:, None] + k - 1
    place = np.zeros((1, 1), np.int64)
    for _ in range(n_axes):
        n = k * len(place)
        place = ((2 * k - 1) * place[:, None, :, None] + apart[:, None]).reshape(n, n)
    return place.ravel()


def unchanged_by_flips(gram: Tensor) -> Tensor:
    """A matrix ``C' >= C`` that is the same after flipping an axis of all patches.

    It is the mean over all flips and the absolute values of the parts that change their sign under some:
    those are the same after every flip, for ``|-D| = |D|``.

    Parameters
    ----------
    gram : Tensor of shape (channels, k, ..., k, channels, k, ..., k)
        A symmetric matrix ``C`` of patches.

    Returns
    -------
    Tensor
        The matrix ``C'``, of the same shape.
    """
    parts, n_axes = [gram], gram.ndim // 2 - 1
    for axis in range(1, 1 + n_axes):
        flipped = [part.flip(axis, axis + n_axes + 1) for part in parts]
        parts = [
            (part + sign * other) / 2 for part, other in zip(parts, flipped, strict=True) for sign in (1, -1)
        ]
    n = math.prod(gram.shape[: 1 + n_axes])
    rounding = _ROUNDING * gram.reshape(n, n).diagonal().mean()
    odd = _absolute(torch.stack(parts[1:]).reshape(-1, n, n), rounding)
    return parts[0] + odd.sum(0).reshape(gram.shape)


def _absolute(D: Tensor, e: Tensor) -> Tensor:
    """``H = sqrt(D^2 + e^2) >= |D|`` of symmetric matrices, (..., n, n), differentiable twice.

    Derivatives of an eigendecomposition are infinite where eigenvalues are equal. Two steps of Newton's
    method for ``H^2 = D^2 + e^2``, from the solution, change no value and have the derivatives of ``H``.
    """
    squared = D @ D + torch.eye(D.shape[-1], dtype=D.dtype, device=D.device) * e.square()
    with torch.no_grad():
        finite = D.isfinite().all()  # LAPACK takes nothing else; NaN comes back as NaN
        values, V = torch.linalg.eigh(torch.where(finite, D, 0))
        sizes = torch.hypot(values, e)
        solution = torch.where(finite, (V * sizes[..., None, :]) @ V.mT, torch.nan)
        sums = sizes[..., :, None] + sizes[..., None, :]
        weights = torch.where(sums > 0, 1 / sums, 0)

    def step(residual: Tensor) -> Tensor:
        """``X`` with ``H X + X H = residual``, which is 0 in value."""
        return V @ (weights * (V.mT @ (residual - residual.detach()) @ V)) @ V.mT

    H = solution + step(squared)
    return H + step(squared - H @ H)


def _symbol(kernel: Tensor, n: int) -> Tensor:
    """Fourier transform of an even kernel on n frequencies in each direction, (n, ..., n // 2 + 1, c, c)."""
    k, axes = kernel.shape[-1] // 2 + 1, tuple(range(2 - kernel.ndim, 0))
    padded = F.pad(kernel, (0, n - 2 * k + 1) * len(axes)).roll((1 - k,) * len(axes), axes)
    return torch.fft.rfftn(padded, dim=axes).real.movedim((0, 1), (-2, -1))

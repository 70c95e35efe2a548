"""A bank of filters on mirrored images and its adjoint: fast on few channels, differentiable to any order."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from skinverse._tensors import fold, mirror

# Convolutions onto one channel leave the vector units of a CPU idle: 4 x 4 pixels become 16 channels.
_BLOCK = 4
# Where eigenvalues are made positive, this rounds off the corner at 0, relative to the mean of those of the
# Gram matrix. It is 1000 times the error of single precision, and adds 3e-4 to the square of a bound.
_ROUNDING = 1e-4


def analyse(x: Tensor, filters: Tensor) -> Tensor:
    """Responses ``W x`` of every filter, by correlation with the image continued by its mirror images.

    Parameters
    ----------
    x : Tensor of shape (n, channels, height, width)
        Images of any size.
    filters : Tensor of shape (n_filters, channels, k, k)
        The filters; ``k`` is odd.

    Returns
    -------
    Tensor of shape (n, n_filters, height, width)
        The responses.
    """
    return _Analyse.apply(x, filters)


def synthesise(u: Tensor, filters: Tensor) -> Tensor:
    """Adjoint of :func:`analyse`, ``W^T u``, from responses to images.

    Parameters
    ----------
    u : Tensor of shape (n, n_filters, height, width)
        Responses.
    filters : Tensor of shape (n_filters, channels, k, k)
        The filters; ``k`` is odd.

    Returns
    -------
    Tensor of shape (n, channels, height, width)
        Images.
    """
    return _Synthesise.apply(u, filters)


class _Analyse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, filters)
        return F.conv2d(mirror(x, filters.shape[-1] // 2), filters)

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
        height, width = (n + 2 * margin for n in u.shape[-2:])
        blocks = _in_blocks(filters.flip(-1, -2).transpose(0, 1))
        around = (2 * margin, 2 * margin + -width % _BLOCK, 2 * margin, 2 * margin + -height % _BLOCK)
        v = F.pixel_shuffle(F.conv2d(F.pad(u, around), blocks, stride=_BLOCK), _BLOCK)
        return fold(v[..., :height, :width], margin)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, filters = ctx.saved_tensors
        return (
            analyse(g, filters) if ctx.needs_input_grad[0] else None,
            _by_filter(g, u, filters) if ctx.needs_input_grad[1] else None,
        )


def _by_filter(x: Tensor, u: Tensor, filters: Tensor) -> Tensor:
    """Derivative of ``<W x, u>`` in the filters."""
    return conv2d_weight(mirror(x, filters.shape[-1] // 2), filters.shape, u)


def _in_blocks(filters: Tensor) -> Tensor:
    """Every filter at every place in a block: (c, f, k, k) -> (16 c, f, k + 3, k + 3)."""
    c, f, k, _ = filters.shape
    blocks = filters.new_zeros(c, _BLOCK, _BLOCK, f, k + _BLOCK - 1, k + _BLOCK - 1)
    for i in range(_BLOCK):
        for j in range(_BLOCK):
            blocks[:, i, j, :, i : i + k, j : j + k] = filters
    return blocks.flatten(0, 2)


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
    filters : Tensor of shape (n_filters, channels, k, k)
        The filters; of several channels, the largest singular value at each frequency counts.

    Returns
    -------
    Tensor of shape ()
        The bound, differentiable in the filters.
    """
    degree = filters.shape[-1] - 1
    n = 2 ** math.ceil(math.log2(max(16 * degree, 1)))
    symbol = _symbol(mirrored_gram(filters), n)
    largest = symbol[..., 0, 0] if symbol.shape[-1] == 1 else torch.linalg.eigvalsh(symbol)[..., -1]
    return largest.max().clamp_min(torch.finfo(filters.dtype).tiny).sqrt() / math.cos(math.pi * degree / n)


def mirrored_gram(filters: Tensor) -> Tensor:
    """Kernel of a convolution that bounds ``W^T W``, as that of images continued by mirror images.

    Parameters
    ----------
    filters : Tensor of shape (n_filters, channels, k, k)
        The filters.

    Returns
    -------
    Tensor of shape (channels, channels, 2 k - 1, 2 k - 1)
        The kernel, even in both directions.
    """
    _, c, k, _ = filters.shape
    w = filters.flatten(1)
    gram = unchanged_by_flips((w.T @ w).reshape(c, k, k, c, k, k)).reshape(c, k * k, c, k * k)
    t = torch.arange(k, device=w.device)
    apart = t - t[:, None] + k - 1
    place = ((2 * k - 1) * apart[:, None, :, None] + apart[:, None]).flatten()
    kernel = gram.new_zeros(c, c, (2 * k - 1) ** 2)
    return kernel.index_add(2, place, gram.transpose(1, 2).flatten(2)).unflatten(2, (2 * k - 1, 2 * k - 1))


def unchanged_by_flips(gram: Tensor) -> Tensor:
    """A matrix ``C' >= C`` that is the same after flipping an axis of all patches.

    It is the mean over all flips and the absolute values of the parts that change their sign under some:
    those are the same after every flip, for ``|-D| = |D|``.

    Parameters
    ----------
    gram : Tensor of shape (channels, k, k, channels, k, k)
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
    """Fourier transform of an even kernel on an n x n grid of frequencies, (n, n // 2 + 1, c, c)."""
    k = kernel.shape[-1] // 2 + 1
    padded = F.pad(kernel, (0, n - 2 * k + 1) * 2).roll((1 - k, 1 - k), (-2, -1))
    return torch.fft.rfft2(padded).real.permute(2, 3, 0, 1)

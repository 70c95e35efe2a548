"""A bank of circular convolutions and its adjoint, fast on few channels, differentiable to any order."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from skinverse._tensors import wrap

# Convolutions onto one channel leave the vector units of a CPU idle: 4 x 4 pixels become 16 channels.
_BLOCK = 4


def analyse(x: Tensor, filters: Tensor) -> Tensor:
    """Responses ``W x`` of every filter, by circular correlation.

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
        return F.conv2d(wrap(x, filters.shape[-1] // 2), filters)

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
        height, width = u.shape[-2:]
        blocks = _in_blocks(filters.flip(-1, -2).transpose(0, 1))
        to_whole_blocks = (0, -width % _BLOCK, 0, -height % _BLOCK)
        v = F.conv2d(F.pad(wrap(u, filters.shape[-1] // 2), to_whole_blocks), blocks, stride=_BLOCK)
        return F.pixel_shuffle(v, _BLOCK)[..., :height, :width]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        u, filters = ctx.saved_tensors
        return (
            analyse(g, filters) if ctx.needs_input_grad[0] else None,
            _by_filter(g, u, filters) if ctx.needs_input_grad[1] else None,
        )


def _by_filter(x: Tensor, u: Tensor, filters: Tensor) -> Tensor:
    """Derivative of ``<W x, u>`` in the filters."""
    return conv2d_weight(wrap(x, filters.shape[-1] // 2), filters.shape, u)


def _in_blocks(filters: Tensor) -> Tensor:
    """Every filter at every place in a block: (c, f, k, k) -> (16 c, f, k + 3, k + 3)."""
    c, f, k, _ = filters.shape
    blocks = filters.new_zeros(c, _BLOCK, _BLOCK, f, k + _BLOCK - 1, k + _BLOCK - 1)
    for i in range(_BLOCK):
        for j in range(_BLOCK):
            blocks[:, i, j, :, i : i + k, j : j + k] = filters
    return blocks.flatten(0, 2)


def spectral_bound(filters: Tensor) -> Tensor:
    """Bound on ``||W||`` for images of every size, at most 2 % above the norm on the plane.

    ``||W||^2`` is the maximum of a trigonometric polynomial, ``sum_f |w_f(omega)|^2`` for one channel, whose
    degree is ``k - 1``; its maximum is at most ``1 / cos(pi (k - 1) / N)`` times, in each direction, that
    over ``N`` equidistant frequencies (Ehlich and Zeller, Math. Z. 86, 1964).

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
    gram = _gram(filters, n)
    largest = gram[..., 0, 0] if gram.shape[-1] == 1 else torch.linalg.eigvalsh(gram)[..., -1]
    return largest.real.max().clamp_min(torch.finfo(filters.dtype).tiny).sqrt() / math.cos(
        math.pi * degree / n
    )


def _gram(filters: Tensor, n: int) -> Tensor:
    """``sum_f conj(w_fc(omega)) w_fd(omega)`` on an n x n grid of frequencies, (n, n // 2 + 1, c, c)."""
    k = filters.shape[-1]
    small = torch.fft.rfft2(filters, s=(2 * k - 1, 2 * k - 1))
    correlation = torch.fft.irfft2(torch.einsum("fchw,fdhw->cdhw", small.conj(), small), s=(2 * k - 1,) * 2)
    centred = correlation.roll((k - 1, k - 1), (-2, -1))
    return torch.fft.rfft2(F.pad(centred, (0, n - 2 * k + 1) * 2).roll((1 - k, 1 - k), (-2, -1))).permute(
        2, 3, 0, 1
    )

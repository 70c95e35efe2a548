"""Finite differences of images as linear maps with their exact adjoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Gradient:
    """Forward differences along the image axes, (n, *dims) -> (n, d, *dims); the last difference is zero.

    The image axes are the last two of (n, H, W) or (n, C, H, W), the last of (n, L). The adjoint is minus
    the discrete divergence.
    """

    def __call__(self, x: Tensor) -> Tensor:
        axes = image_axes(x.ndim)
        g = x.new_zeros((len(x), len(axes), *x.shape[1:]))
        for k, axis in enumerate(axes):
            forward_difference(x, axis, g[:, k])
        return g

    def adjoint(self, g: Tensor) -> Tensor:
        x = torch.zeros_like(g[:, 0])
        for k, axis in enumerate(image_axes(x.ndim)):
            scatter_difference(g[:, k], axis, x)
        return x

    def norm(self) -> float:
        """Bound on the spectral norm: each of at most two axes contributes at most 4 to its square."""
        return math.sqrt(8)


class SymmetrizedDerivative:
    """``E v = (grad v + grad v^T) / 2`` of a field on forward differences, (n, d, *dims) -> (n, e, *dims).

    In two dimensions the entries are ``e_11, e_22, sqrt(2) e_12``, so that their Euclidean norm is the
    Frobenius norm; in one, ``v'``. Component k of the field lives where its forward difference exists: not
    at the end of axis k. Differences that would leave this domain are zero, hence ``E`` of a constant field
    is zero.
    """

    def __call__(self, v: Tensor) -> Tensor:
        axes = image_axes(v.ndim - 1)
        e = v.new_zeros((len(v), 2 * len(axes) - 1, *v.shape[2:]))
        for k, axis in enumerate(axes):
            inner = _without_end(v[:, k], axis)
            forward_difference(inner, axis, _without_end(e[:, k], axis))
        if len(axes) == 2:
            row, column = axes
            for k, axis in ((0, column), (1, row)):
                corner = _without_end(_without_end(e[:, 2], row), column)
                corner += _without_end(_difference(v[:, k], axis), axes[k]) / math.sqrt(2)
        return e

    def adjoint(self, e: Tensor) -> Tensor:
        axes = image_axes(e.ndim - 1)
        v = e.new_zeros((len(e), len(axes), *e.shape[2:]))
        for k, axis in enumerate(axes):
            scatter_difference(_without_end(e[:, k], axis), axis, _without_end(v[:, k], axis))
        if len(axes) == 2:
            row, column = axes
            corner = _without_end(_without_end(e[:, 2], row), column) / math.sqrt(2)
            for k, axis in ((0, column), (1, row)):
                inner = _without_end(v[:, k], axes[k])
                _without_end(inner, axis).sub_(corner)
                _without_start(inner, axis).add_(corner)
        return v

    def norm(self) -> float:
        """Bound on the spectral norm, as for the gradient."""
        return math.sqrt(8)


def image_axes(ndim: int) -> tuple[int, ...]:
    """Axes of a batch of images that are spatial: the last two, or the only one."""
    return (-2, -1) if ndim > 2 else (-1,)


def on_differences(v: Tensor) -> Tensor:
    """The field where it lives: component k is zero at the end of axis k."""
    v = v.clone()
    for k, axis in enumerate(image_axes(v.ndim - 1)):
        v[:, k].narrow(axis, v.shape[axis] - 1, 1).zero_()
    return v


def forward_difference(x: Tensor, axis: int, out: Tensor) -> None:
    """Write ``x[i+1] - x[i]`` along the axis into ``out``, whose last entry stays."""
    if x.shape[axis] > 1:
        _without_end(out, axis).copy_(_difference(x, axis))


def scatter_difference(g: Tensor, axis: int, out: Tensor) -> None:
    """Add the adjoint of :func:`forward_difference` to ``out``."""
    if g.shape[axis] > 1:
        inner = _without_end(g, axis)
        _without_end(out, axis).sub_(inner)
        _without_start(out, axis).add_(inner)


def _difference(x: Tensor, axis: int) -> Tensor:
    return _without_start(x, axis) - _without_end(x, axis)


def _without_end(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, 0, max(x.shape[axis] - 1, 0))


def _without_start(x: Tensor, axis: int) -> Tensor:
    return x.narrow(axis, min(1, x.shape[axis]), max(x.shape[axis] - 1, 0))

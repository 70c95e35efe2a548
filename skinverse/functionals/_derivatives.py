"""Gradient and symmetrised derivative of images as linear maps with their exact adjoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from skinverse._differences import IMAGE_AXES, Axes, add_adjoint_difference, axes_of, without_end


class Gradient:
    """Forward differences along spatial axes, (n, *dims) -> (n, d, *dims); the last difference is zero.

    The adjoint is minus the discrete divergence.
    """

    def __init__(self, axes: Axes = IMAGE_AXES) -> None:
        self.axes = axes

    def __call__(self, x: Tensor) -> Tensor:
        axes = axes_of(x, self.axes)
        g = x.new_zeros((len(x), len(axes), *x.shape[1:]))
        for k, axis in enumerate(axes):
            without_end(g[:, k], axis).copy_(x.diff(dim=axis))
        return g

    def adjoint(self, g: Tensor) -> Tensor:
        x = torch.zeros_like(g[:, 0])
        for k, axis in enumerate(axes_of(x, self.axes)):
            add_adjoint_difference(without_end(g[:, k], axis), axis, x)
        return x

    def norm(self) -> float:
        """Bound on the spectral norm: each axis contributes at most 4 to its square."""
        return math.sqrt(4 * len(self.axes))


class SymmetrizedDerivative:
    """``E v = (grad v + grad v^T) / 2`` of a field on forward differences, (n, d, *dims) -> (n, e, *dims).

    First come the diagonal entries, ``e_11, e_22, ...``, then ``sqrt(2) e_12, ...`` of each pair of axes, so
    that their Euclidean norm is the Frobenius norm; in one dimension there is ``v'`` only. Component k of the
    field lives on the forward differences along axis k, of which there is none at the end of the axis.
    Differences that would need a value from there are zero; hence ``E`` of a constant field is zero.
    """

    def __init__(self, axes: Axes = IMAGE_AXES) -> None:
        self.axes = axes

    def __call__(self, v: Tensor) -> Tensor:
        axes = axes_of(v[:, 0], self.axes)
        e = v.new_zeros((len(v), n_entries(len(axes)), *v.shape[2:]))
        for k, axis in enumerate(axes):
            inner = without_end(v[:, k], axis)
            without_end(without_end(e[:, k], axis), axis).copy_(inner.diff(dim=axis))
        for mixed, k, own, other in _mixed(e, axes):
            mixed.add_(without_end(v[:, k].diff(dim=other), own) / math.sqrt(2))
        return e

    def adjoint(self, e: Tensor) -> Tensor:
        axes = axes_of(e[:, 0], self.axes)
        v = e.new_zeros((len(e), len(axes), *e.shape[2:]))
        for k, axis in enumerate(axes):
            diagonal = without_end(without_end(e[:, k], axis), axis)
            add_adjoint_difference(diagonal, axis, without_end(v[:, k], axis))
        for mixed, k, own, other in _mixed(e, axes):
            add_adjoint_difference(mixed / math.sqrt(2), other, without_end(v[:, k], own))
        return v

    def norm(self) -> float:
        """Bound on the spectral norm: it is at most that of the gradient of each component."""
        return math.sqrt(4 * len(self.axes))


def n_entries(d: int) -> int:
    """How many entries a symmetric matrix has in ``d`` dimensions."""
    return d * (d + 1) // 2


def _mixed(e: Tensor, axes: Axes) -> Iterator[tuple[Tensor, int, int, int]]:
    """Each mixed entry where its differences are; the component that it sees, its axis and the other one."""
    for i, (j, k) in enumerate(combinations(range(len(axes)), 2), start=len(axes)):
        inner = without_end(without_end(e[:, i], axes[j]), axes[k])
        yield inner, j, axes[j], axes[k]
        yield inner, k, axes[k], axes[j]


def on_differences(v: Tensor, axes: Axes = IMAGE_AXES) -> Tensor:
    """The field where it lives: component k is zero at the end of axis k."""
    v = v.clone()
    for k, axis in enumerate(axes_of(v[:, 0], axes)):
        v[:, k].narrow(axis, v.shape[axis] - 1, 1).zero_()
    return v

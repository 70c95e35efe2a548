"""Gradient and symmetrised derivative of images as linear maps with their exact adjoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from skinverse._differences import (
    IMAGE_AXES,
    Axes,
    Spacing,
    add_adjoint_difference,
    axes_of,
    distances,
    without_end,
)

# Axes of a batch, each with what its differences are multiplied by: one over the distance of its pixels.
_Scales = list[tuple[int, float]]


class Gradient:
    """Forward differences along spatial axes, (n, *dims) -> (n, d, *dims); the last difference is zero.

    Differences are divided by the distances of the pixels. The adjoint is minus the discrete divergence.
    """

    def __init__(self, axes: Axes = IMAGE_AXES, spacing: Spacing = None) -> None:
        self.axes, self.spacing = axes, spacing

    def __call__(self, x: Tensor) -> Tensor:
        scales = _scales(x, self.axes, self.spacing)
        g = x.new_zeros((len(x), len(scales), *x.shape[1:]))
        for k, (axis, scale) in enumerate(scales):
            without_end(g[:, k], axis).add_(x.diff(dim=axis), alpha=scale)
        return g

    def adjoint(self, g: Tensor) -> Tensor:
        x = torch.zeros_like(g[:, 0])
        for k, (axis, scale) in enumerate(_scales(x, self.axes, self.spacing)):
            add_adjoint_difference(without_end(g[:, k], axis), axis, x, scale)
        return x

    def norm(self) -> float:
        """Bound on the spectral norm: each axis contributes at most ``4 / h^2`` to its square."""
        return math.hypot(*(2 / h for h in distances(self.axes, self.spacing)))


class SymmetrizedDerivative:
    """``E v = (grad v + grad v^T) / 2`` of a field on forward differences, (n, d, *dims) -> (n, e, *dims).

    First come the diagonal entries, ``e_11, e_22, ...``, then ``sqrt(2) e_12, ...`` of each pair of axes, so
    that their Euclidean norm is the Frobenius norm; in one dimension there is ``v'`` only. Component k of the
    field lives on the forward differences along axis k, of which there is none at the end of the axis.
    Differences that would need a value from there are zero; hence ``E`` of a constant field is zero.
    """

    def __init__(self, axes: Axes = IMAGE_AXES, spacing: Spacing = None) -> None:
        self.axes, self.spacing = axes, spacing

    def __call__(self, v: Tensor) -> Tensor:
        scales = _scales(v[:, 0], self.axes, self.spacing)
        e = v.new_zeros((len(v), n_entries(len(scales)), *v.shape[2:]))
        for k, (axis, scale) in enumerate(scales):
            inner = without_end(v[:, k], axis)
            without_end(without_end(e[:, k], axis), axis).add_(inner.diff(dim=axis), alpha=scale)
        for mixed, k, own, other, scale in _mixed(e, scales):
            mixed.add_(without_end(v[:, k].diff(dim=other), own), alpha=scale / math.sqrt(2))
        return e

    def adjoint(self, e: Tensor) -> Tensor:
        scales = _scales(e[:, 0], self.axes, self.spacing)
        v = e.new_zeros((len(e), len(scales), *e.shape[2:]))
        for k, (axis, scale) in enumerate(scales):
            diagonal = without_end(without_end(e[:, k], axis), axis)
            add_adjoint_difference(diagonal, axis, without_end(v[:, k], axis), scale)
        for mixed, k, own, other, scale in _mixed(e, scales):
            add_adjoint_difference(mixed, other, without_end(v[:, k], own), scale / math.sqrt(2))
        return v

    def norm(self) -> float:
        """Bound on the spectral norm: it is at most that of the gradient of each component."""
        return Gradient(self.axes, self.spacing).norm()


def check_spacing(spacing: Spacing, axes: Axes) -> None:
    """Refuse what is not one positive number for each axis.

    Raises
    ------
    ValueError
        If it is not.
    """
    sizes = distances(axes, spacing)
    if len(sizes) != len(axes) or not all(0 < h < math.inf for h in sizes):
        raise ValueError(
            f"spacing: expected {len(axes)} numbers > 0, one for each of the axes {axes}, got {spacing!r}"
        )


def n_entries(d: int) -> int:
    """How many entries a symmetric matrix has in ``d`` dimensions."""
    return d * (d + 1) // 2


def _scales(x: Tensor, axes: Axes, spacing: Spacing) -> _Scales:
    """The spatial axes that a batch has, and what differences along them are multiplied by."""
    sizes = dict(zip(axes, distances(axes, spacing), strict=True))
    return [(axis, 1 / sizes[axis]) for axis in axes_of(x, axes)]


def _mixed(e: Tensor, scales: _Scales) -> Iterator[tuple[Tensor, int, int, int, float]]:
    """Each mixed entry where its differences are; the component that it sees, its axis, and the other one."""
    for i, (j, k) in enumerate(combinations(range(len(scales)), 2), start=len(scales)):
        (first, of_first), (second, of_second) = scales[j], scales[k]
        inner = without_end(without_end(e[:, i], first), second)
        yield inner, j, first, second, of_second
        yield inner, k, second, first, of_first


def on_differences(v: Tensor, axes: Axes = IMAGE_AXES) -> Tensor:
    """The field where it lives: component k is zero at the end of axis k."""
    v = v.clone()
    for k, axis in enumerate(axes_of(v[:, 0], axes)):
        v[:, k].narrow(axis, v.shape[axis] - 1, 1).zero_()
    return v

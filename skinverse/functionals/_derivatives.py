"""Gradient and symmetrised derivative of images as linear maps with their exact adjoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skinverse._differences import add_adjoint_difference, image_axes, without_end


class Gradient:
    """Forward differences along the image axes, (n, *dims) -> (n, d, *dims); the last difference is zero.

    The adjoint is minus the discrete divergence.
    """

    def __call__(self, x: Tensor) -> Tensor:
        axes = image_axes(x.ndim)
        g = x.new_zeros((len(x), len(axes), *x.shape[1:]))
        for k, axis in enumerate(axes):
            without_end(g[:, k], axis).copy_(x.diff(dim=axis))
        return g

    def adjoint(self, g: Tensor) -> Tensor:
        x = torch.zeros_like(g[:, 0])
        for k, axis in enumerate(image_axes(x.ndim)):
            add_adjoint_difference(without_end(g[:, k], axis), axis, x)
        return x

    def norm(self) -> float:
        """Bound on the spectral norm: each of at most two axes contributes at most 4 to its square."""
        return math.sqrt(8)


class SymmetrizedDerivative:
    """``E v = (grad v + grad v^T) / 2`` of a field on forward differences, (n, d, *dims) -> (n, e, *dims).

    In two dimensions the entries are ``e_11, e_22, sqrt(2) e_12``, so that their Euclidean norm is the
    Frobenius norm; in one dimension there is ``v'`` only. Component k of the field lives on the forward
    differences along axis k, of which there is none at the end of the axis. Differences that would need a
    value from there are zero; hence ``E`` of a constant field is zero.
    """

    def __call__(self, v: Tensor) -> Tensor:
        axes = image_axes(v.ndim - 1)
        e = v.new_zeros((len(v), 2 * len(axes) - 1, *v.shape[2:]))
        for k, axis in enumerate(axes):
            inner = without_end(v[:, k], axis)
            without_end(without_end(e[:, k], axis), axis).copy_(inner.diff(dim=axis))
        if len(axes) == 2:
            for k, (own, other) in enumerate((axes, axes[::-1])):
                slope = without_end(v[:, k].diff(dim=other), own)
                without_end(without_end(e[:, 2], own), other).add_(slope / math.sqrt(2))
        return e

    def adjoint(self, e: Tensor) -> Tensor:
        axes = image_axes(e.ndim - 1)
        v = e.new_zeros((len(e), len(axes), *e.shape[2:]))
        for k, axis in enumerate(axes):
            diagonal = without_end(without_end(e[:, k], axis), axis)
            add_adjoint_difference(diagonal, axis, without_end(v[:, k], axis))
        if len(axes) == 2:
            for k, (own, other) in enumerate((axes, axes[::-1])):
                mixed = without_end(without_end(e[:, 2], own), other) / math.sqrt(2)
                add_adjoint_difference(mixed, other, without_end(v[:, k], own))
        return v

    def norm(self) -> float:
        """Bound on the spectral norm, as for the gradient."""
        return math.sqrt(8)


def on_differences(v: Tensor) -> Tensor:
    """The field where it lives: component k is zero at the end of axis k."""
    v = v.clone()
    for k, axis in enumerate(image_axes(v.ndim - 1)):
        v[:, k].narrow(axis, v.shape[axis] - 1, 1).zero_()
    return v

"""Total nuclear variation: edges that channels share."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple, Self

import torch
from torch import Tensor

from skinverse._differences import IMAGE_AXES, Axes, Spacing
from skinverse._tensors import LinearMap
from skinverse.functionals._base import Functional
from skinverse.functionals._derivatives import Gradient, check_spacing
from skinverse.functionals._simple import unit_ball
from skinverse.functionals._variation import GroupNorm, _root, _squares

# Times that each pair of more than two columns is turned: four leave rounding errors of three columns.
_SWEEPS = 5


class TotalNuclearVariation(Functional):
    """Total nuclear variation, ``TNV(x) = sum_pixels ||J x||_*``, which couples channels.

    The Jacobian ``J x`` of a pixel has a row for each channel and a column for each spatial axis, and holds
    the forward differences of :class:`TotalVariation`. Its nuclear norm is the sum of its singular values,
    and favours channels with parallel gradients: edges cost least where all channels have them in the same
    place. Orthogonal mixtures of the channels leave the value as it is. Of one channel it is the isotropic
    total variation.

    Parameters
    ----------
    axes : tuple of int, default=(-2, -1)
        The spatial axes of a batch, as in :class:`TotalVariation`. All others are channels.
    spacing : sequence of float > 0 or None, default=None
        Distances of neighbouring pixels along each of the axes; None is 1.

    Raises
    ------
    ValueError
        If ``spacing`` is not one positive number for each axis.

    See Also
    --------
    TotalVariation : Each channel by itself.

    References
    ----------
    K. M. Holt, Total nuclear variation and Jacobian extensions of total variation for vector fields, IEEE
    Transactions on Image Processing 23, 2014.
    D. S. Rigie and P. J. La Riviere, Joint reconstruction of multi-channel, spectral CT data via constrained
    total nuclear variation minimization, Physics in Medicine and Biology 60, 2015.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import TotalNuclearVariation
    >>> x = torch.zeros(2, 2, 8, 8)  # two images of two channels
    >>> x[:, 0, :, 4:] = 1
    >>> x[0, 1, :, 4:] = 1  # the same edge
    >>> x[1, 1, 4:, :] = 1  # an edge that crosses it
    >>> TotalNuclearVariation()(x)
    tensor([11.3137, 16.0000])
    """

    def __init__(self, *, axes: Axes = IMAGE_AXES, spacing: Spacing = None) -> None:
        check_spacing(spacing, axes)
        self.axes, self.spacing = axes, spacing

    def __call__(self, x: Tensor) -> Tensor:
        outer, gradient = self.split()
        return outer(gradient(x))

    def split(self) -> tuple[Functional, LinearMap]:
        return NuclearNorm(self.axes), Gradient(self.axes, self.spacing)

    def __repr__(self) -> str:
        return f"TotalNuclearVariation(axes={self.axes}, spacing={self.spacing})"


class NuclearNorm(Functional):
    """``sum_pixels ||J||_*``, the sum of the singular values of each pixel's matrix, (n, d, *dims).

    The matrix has a column for each of the ``d`` directions and a row for each channel, along the axes of
    ``dims`` that are not spatial. Its columns, or its rows where there are fewer, are turned into orthogonal
    ones, whose lengths are the singular values (Jacobi's method, one-sided): the norm is then the group norm
    of each of them. One turn does it for two columns.

    References
    ----------
    M. R. Hestenes, Inversion of matrices by biorthogonalization and related results, Journal of the Society
    for Industrial and Applied Mathematics 6, 1958.
    """

    proximable = True

    def __init__(self, axes: Axes = IMAGE_AXES) -> None:
        self.axes = axes

    def __call__(self, p: Tensor) -> Tensor:
        _, turns = _orthogonal(_Matrices.of(p.detach(), self.axes).columns)
        columns = _Matrices.of(p, self.axes).columns
        for turn in turns:  # constants: orthogonal columns have the least sum of lengths
            turn.apply(columns)
        return torch.stack([GroupNorm()(column) for column in columns]).sum(0)

    def prox(self, p: Tensor, step: Tensor | float) -> Tensor:
        return self._changed(p, lambda column: GroupNorm().prox(column, step))

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        return self._changed(u, lambda column: GroupNorm().prox_conjugate(column, step))

    def conjugate(self, u: Tensor) -> Tensor | None:
        columns, _ = _orthogonal(_Matrices.of(u, self.axes).columns)
        return unit_ball(torch.stack([_squares(c).flatten(1).amax(1) for c in columns]).amax(0).sqrt())

    def _changed(self, p: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The matrices with their orthogonal columns changed."""
        matrices = _Matrices.of(p, self.axes)
        columns, turns = _orthogonal(matrices.columns)
        columns = [change(column) for column in columns]
        for turn in reversed(turns):
            turn.undo(columns)
        return matrices.restored(columns)


class _Turn(NamedTuple):
    """A rotation of two columns by an angle of at most 45 degrees, after which they are orthogonal.

    ``(p, q) -> cos (p + tan q, q - tan^* p)``; where they are complex, the tangent has a phase.
    """

    i: int
    j: int
    cos: Tensor
    tan: Tensor

    @classmethod
    def of(cls, columns: list[Tensor], i: int, j: int) -> Self:
        p, q = columns[i], columns[j]
        of_p, of_q = _squares(p), _squares(q)
        # Relative numbers: squares of squares would leave the range of single precision.
        total = (of_p + of_q).clamp_min(torch.finfo(of_p.dtype).tiny)
        difference, product = (of_p - of_q) / total, 2 * (p * q.conj()).sum(1, keepdim=True) / total
        squares = difference.square() + _squares(product)
        tan = torch.where(difference < 0, -1, 1) * product / (difference.abs() + _root(squares))
        tan = torch.where(squares > 0, tan, 0)  # which has no derivative there, but the result has one
        return cls(i, j, (1 + _squares(tan)).rsqrt(), tan)

    def apply(self, columns: list[Tensor]) -> None:
        p, q = columns[self.i], columns[self.j]
        columns[self.i], columns[self.j] = self.cos * (p + self.tan * q), self.cos * (q - self.tan.conj() * p)

    def undo(self, columns: list[Tensor]) -> None:
        p, q = columns[self.i], columns[self.j]
        columns[self.i], columns[self.j] = self.cos * (p - self.tan * q), self.cos * (q + self.tan.conj() * p)


def _orthogonal(columns: list[Tensor]) -> tuple[list[Tensor], list[_Turn]]:
    """The columns turned until they are orthogonal, and the turns."""
    columns, turns = list(columns), []
    pairs = list(combinations(range(len(columns)), 2))
    for i, j in pairs * (1 if len(columns) == 2 else _SWEEPS):
        turns.append(_Turn.of(columns, i, j))
        turns[-1].apply(columns)
    return columns, turns


class _Matrices(NamedTuple):
    """The matrix of each pixel as a list of columns, or of rows where there are fewer."""

    columns: list[Tensor]  # (n, length of a column, *space)
    axis: int
    channels: list[int]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, p: Tensor, axes: Axes) -> Self:
        channels = [axis for axis in range(2, p.ndim) if axis - p.ndim not in axes]
        first = p.movedim(channels, _leading(channels))
        size = math.prod(first.shape[2 : 2 + len(channels)])
        matrices = first.reshape(*p.shape[:2], size, *first.shape[2 + len(channels) :])
        axis = 1 if p.shape[1] <= size else 2
        return cls(list(matrices.unbind(axis)), axis, channels, first.shape)

    def restored(self, columns: list[Tensor]) -> Tensor:
        """The tensor that has these columns."""
        first = torch.stack(columns, self.axis).reshape(self.shape)
        return first.movedim(_leading(self.channels), self.channels)


def _leading(channels: list[int]) -> list[int]:
    """Where the axes of channels come first among those of an image."""
    return list(range(2, 2 + len(channels)))

"""A problem without units: an operator of norm one, data of mean square one, and the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from skinverse._tensors import expand, norm
from skinverse.functionals import Box
from skinverse.operators import LinearMap
from skinverse.solvers import Solution

# Lowest and highest value of a pixel, None without bound.
Interval = tuple[float | None, float | None] | None

# Share of the largest gain below which the operator does not know constants: their estimate would be noise.
_UNSEEN = 1e-3


@dataclass(frozen=True)
class Units:
    """The problem ``y = A x`` as ``y' = A' x'``: ``A = s A'``, ``y = c y' + A b`` and ``x = (c/s) x' + b``.

    The gain ``s`` is the norm of the operator, and the size ``c`` of each image is such that ``y'`` has the
    mean square one. What is solved is then the same in any units, and no square can over- or underflow. A
    method whose objective does not see constants takes out the level ``b`` as well, so that accuracies are
    relative to what varies. No number of an image depends on its companions.
    """

    A: LinearMap
    data: Tensor
    gain: float
    size: Tensor  # (n,)
    base: Tensor  # (n,), in the units of the images

    @classmethod
    def of(cls, A: LinearMap, data: Tensor) -> Self:
        """The problem in its own units."""
        gain, size = A.norm() or 1.0, size_of(data)
        # The identity remains one: there are formulas for it.
        normed = A if A.identity else _Divided(A, gain)
        return cls(normed, data / expand(size, data), gain, size, base=torch.zeros_like(size))

    @classmethod
    def without_level(cls, A: LinearMap, data: Tensor) -> Self:
        """The same without the constant image that explains most of the data."""
        whole = cls.of(A, data)
        ones = torch.ones_like(whole.A.adjoint(whole.data[:1]))
        of_ones = whole.A(ones)
        level = _coefficient(of_ones, whole.data, real=not ones.is_complex())
        known = norm(of_ones) > _UNSEEN * math.sqrt(ones.numel())
        level = torch.where(known, level, 0)
        rest = whole.data - expand(level, whole.data) * of_ones
        size = size_of(rest)
        base = level * whole.size / whole.gain
        return cls(whole.A, rest / expand(size, rest), whole.gain, whole.size * size, base)

    @property
    def unit(self) -> Tensor:
        """One unit of ``x'`` in those of the images, ``c/s``."""
        return self.size / self.gain

    def weight(self, lam: float) -> Tensor:
        """The weight of a functional of degree one, ``lam / (c s)``, one per image."""
        return (lam / (self.size.double() * self.gain)).to(self.size.dtype)

    def of_data(self, value: float | Tensor) -> Tensor:
        """A length in the space of data, such as a noise level."""
        return value / self.size

    def box(self, bounds: tuple[float | None, float | None]) -> Box:
        """The bounds of the values."""
        low, high = (None if end is None else (end - self.base) / self.unit for end in bounds)
        return Box(low, high)

    def restored(self, solution: Solution, bounds: Interval = None) -> Solution:
        """What was found, in the units of images and data; the bounds hold exactly, in spite of rounding."""
        x = expand(self.unit, solution.x) * solution.x + expand(self.base, solution.x)
        # Squares of single precision reach from 1e-38 to 1e38 only.
        objective = solution.objective.double() * self.size.double().square()
        return replace(solution, x=x if bounds is None else x.clamp(*bounds), objective=objective)


class _Divided(LinearMap):
    """``A / s``."""

    def __init__(self, A: LinearMap, gain: float) -> None:
        super().__init__(A.dims, A.dimsd)
        self._parts, self._gain = (A,), gain

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._forward(x) / self._gain

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._parts[0]._adjoint(y) / self._gain

    def block(self, start: int, stop: int) -> LinearMap:
        return _Divided(self._parts[0].block(start, stop), self._gain)

    def norm(self) -> float:
        return self._parts[0].norm() / self._gain


def size_of(y: Tensor) -> Tensor:
    """Root mean square of each image, 1 where it is zero; no square over- or underflows."""
    peak = y.abs().flatten(1).amax(1)
    peak = torch.where(peak > 0, peak, 1)
    size = peak * norm(y / expand(peak, y)) / math.sqrt(y[0].numel())
    return torch.where(size > 0, size, 1)


def _coefficient(a: Tensor, y: Tensor, *, real: bool) -> Tensor:
    """The number ``b`` of least ``||y - b a||``, one per image."""
    product = (a.conj() * y).flatten(1).sum(1)
    product = product.real if real and product.is_complex() else product
    return product / norm(a).square().clamp_min(torch.finfo(a.dtype).tiny)

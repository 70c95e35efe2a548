"""Problems without units, by what is seen of the data or was learned from images, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from skinverse._tensors import expand, norm, real_like
from skinverse.estimators._validation import double
from skinverse.functionals import Box
from skinverse.operators import LinearMap
from skinverse.solvers import Solution

# Lowest and highest value of a pixel, None without bound.
Interval = tuple[float | None, float | None] | None

# Share of the largest gain below which the operator does not know constants: their estimate would be noise.
_UNSEEN = 1e-3
# Values of images that are looked at once for their mean.
_AT_ONCE = 2**20


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
        size = size_of(data, A)
        normed, _, gain = without_gain(A, data[:0])
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
        size = size_of(rest, A)
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
        return replace(solution, x=within(x, bounds), objective=objective)


@dataclass(frozen=True)
class Normalisation:
    """Images of mean zero and standard deviation one, and the problem that these are the solution of.

    Where ``y = A x``, the images ``x' = (x - level) / spread`` solve ``y' = A x'`` with
    ``y' = (y - A level) / spread``. What is learned of this problem knows neither the units of the images nor
    their level, which may be many times as large as what varies. The level of complex images is zero: their
    phase is arbitrary, and a constant taken out of them would make the result depend on it.
    """

    level: complex
    spread: float

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Mean and standard deviation of all values, in double precision, a few images at a time."""
        parts = images.split(max(1, _AT_ONCE // images[0].numel()))
        level: complex = 0j if images.is_complex() else sum(float(double(x).sum()) for x in parts)
        level /= images.numel()
        return cls(level, _spread(parts, level, images))

    def seen(self, A: LinearMap, like: Tensor) -> Tensor:
        """What the data of the level are, (1, *A.dimsd)."""
        kind = like.dtype.to_complex() if isinstance(self.level, complex) else like.dtype.to_real()
        return real_like(A(torch.full((1, *A.dims), self.level, dtype=kind, device=like.device)), like)

    def of_images(self, x: Tensor) -> Tensor:
        """``x'``."""
        return (x - self.level) / self.spread

    def of_data(self, y: Tensor, seen: Tensor) -> Tensor:
        """``y'``, given what is seen of the level."""
        return (y - seen) / self.spread

    def of_bounds(self, bounds: Interval) -> Interval:
        """The bounds of ``x'``; complex images have none."""
        if bounds is None:
            return None
        low, high = (None if end is None else (end - self.level.real) / self.spread for end in bounds)
        return low, high

    def restored(self, x: Tensor) -> Tensor:
        """The images ``x``."""
        return self.spread * x + self.level

    def restored_data(self, y: Tensor, seen: Tensor) -> Tensor:
        """The data ``y``."""
        return self.spread * y + seen


def within(x: Tensor, bounds: Interval) -> Tensor:
    """The images with their values moved to the nearest ones within the bounds."""
    return x if bounds is None or bounds == (None, None) else x.clamp(*bounds)


def _spread(parts: Sequence[Tensor], level: complex, images: Tensor) -> float:
    """The standard deviation; of images that do not vary the size of their values, and 1 of zeros."""
    square = sum(float((double(x) - level).abs().square().sum()) for x in parts) / images.numel()
    rounding = torch.finfo(images.dtype).eps * abs(level)
    return math.sqrt(square) if math.sqrt(square) > rounding else abs(level) or 1.0


def without_gain(A: LinearMap, data: Tensor) -> tuple[LinearMap, Tensor, float]:
    """``A / s``, ``y / s`` and the gain ``s``; the identity, for which there are formulas, remains one."""
    gain = gain_of(A)
    return (A, data, gain) if A.identity else (_Divided(A, gain), data / gain, gain)


def gain_of(A: LinearMap) -> float:
    """The norm of an operator, and 1 of one that maps everything to zero."""
    return float(A.norm()) or 1.0


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

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return self._parts[0].reached(pixels)

    def norm(self) -> float:
        return self._parts[0].norm() / self._gain


def size_of(y: Tensor, A: LinearMap) -> Tensor:
    """Root mean square of what is measured of each image, 1 of zeros; no square over- or underflows."""
    peak = y.abs().flatten(1).amax(1)
    peak = torch.where(peak > 0, peak, 1)
    size = peak * norm(y / expand(peak, y)) / math.sqrt(A.n_measured)
    return torch.where(size > 0, size, 1)


def _coefficient(a: Tensor, y: Tensor, *, real: bool) -> Tensor:
    """The number ``b`` of least ``||y - b a||``, one per image."""
    product = (a.conj() * y).flatten(1).sum(1)
    product = product.real if real and product.is_complex() else product
    return product / norm(a).square().clamp_min(torch.finfo(a.dtype).tiny)

"""Problems without units, by what is seen of the data or was learned from images, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pylops
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse._differences import Spacing
from skinverse._tensors import expand, norm, real_like
from skinverse.estimators._validation import double, single
from skinverse.functionals import Box, Functional, KullbackLeibler, LeastSquares
from skinverse.noise import NoiseModel, expected_divergence
from skinverse.operators import LinearMap, as_torch
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

    Rows are weighted such that the fidelity is ``factor`` times least squares, or times the divergence of
    counts where there is a ``background``.
    """

    A: LinearMap
    data: Tensor
    gain: float
    size: Tensor  # (n,)
    base: Tensor  # (n,), in the units of the images
    factor: float = 1.0
    noise_std: Tensor | None = None  # of white noise, (n,)
    background: Tensor | None = None  # of counts, (n, *dimsd) or (n, 1, ...)
    length: float = 1.0  # by which a functional of first differences measures the distances of pixels

    @classmethod
    def of(cls, A: LinearMap, data: Tensor, noise: NoiseModel, spacing: Spacing = None) -> Self:
        """The problem in its own units."""
        known = noise.reduced(data)
        size = size_of(known.data, A)
        normed, _, gain = without_gain(weighted(noise.rows, A), known.data[:0])
        std = None if known.std is None else deviation(known.std, data) / size
        background = None if known.background is None else known.background / expand(size, data)
        base = torch.zeros_like(size)
        length = 1.0 if spacing is None else float(min(spacing))
        scaled = known.data / expand(size, data)
        return cls(normed, scaled, gain, size, base, noise.factor, std, background, length)

    @classmethod
    def without_level(cls, A: LinearMap, data: Tensor, noise: NoiseModel, spacing: Spacing = None) -> Self:
        """The same without the constant image that explains most of the data, where that changes nothing."""
        whole = cls.of(A, data, noise, spacing)
        if whole.background is not None:  # the noise of counts grows with the level
            return whole
        ones = torch.ones_like(whole.A.adjoint(whole.data[:1]))
        of_ones = whole.A(ones)
        level = _coefficient(of_ones, whole.data, real=not ones.is_complex())
        known = norm(of_ones) > _UNSEEN * math.sqrt(ones.numel())
        level = torch.where(known, level, 0)
        rest = whole.data - expand(level, whole.data) * of_ones
        size = size_of(rest, A)
        std = None if whole.noise_std is None else whole.noise_std / size
        return replace(
            whole,
            data=rest / expand(size, rest),
            size=whole.size * size,
            base=level * whole.size / whole.gain,
            noise_std=std,
        )

    @property
    def unit(self) -> Tensor:
        """One unit of ``x'`` in those of the images, ``c/s``."""
        return self.size / self.gain

    @property
    def linear(self) -> LinearMap | None:
        """``A'``; None for the identity, for which there are formulas."""
        return None if self.A.identity else self.A

    def fidelity(self) -> Functional:
        """``1/2 ||A' x' - y'||^2``, or the divergence of counts."""
        if self.background is None:
            return LeastSquares(self.linear, self.data)
        return KullbackLeibler(self.linear, self.data, background=self.background)

    def explained_by(self, x: Tensor) -> Tensor:
        """Whether the divergence of counts is at most what it is on average for the true image."""
        assert self.background is not None
        divergence = KullbackLeibler(None, self.data, background=self.background)
        clean, one = self.A(x), self.factor * self.size  # a count in these units is 1 / one
        means = expand(one, clean) * (clean + self.background).clamp_min(0)
        return divergence(clean) <= expected_divergence(means).flatten(1).sum(1) / one

    def select(self, index: Tensor) -> Self:
        """The problems of some images."""
        return replace(
            self,
            data=self.data[index],
            size=self.size[index],
            base=self.base[index],
            noise_std=None if self.noise_std is None else self.noise_std[index],
            background=None if self.background is None else self.background[index],
        )

    @property
    def discrepancy(self) -> Tensor:
        """Expected norm of white noise, ``sqrt(n_measurements)`` times its standard deviation."""
        assert self.noise_std is not None  # check_noise_known
        return math.sqrt(self.A.n_measured) * self.noise_std

    def weight(self, lam: float) -> Tensor:
        """The weight of a functional of degree one beside that fidelity, one per image.

        ``lam / (c s)`` over the factor; ``lam / s`` over it for counts, of which the fidelity has degree one.
        Where the functional takes differences, also over the length by which it measures.
        """
        return (lam / self._unit_of_weight).to(self.size.dtype)

    def restored_weight(self, weight: Tensor) -> Tensor:
        """The ``lam`` that such a weight stands for."""
        return weight * self._unit_of_weight

    def box(self, bounds: tuple[float | None, float | None]) -> Box:
        """The bounds of the values."""
        low, high = (None if end is None else (end - self.base) / self.unit for end in bounds)
        return Box(low, high)

    def restored(self, solution: Solution, bounds: Interval = None) -> Solution:
        """What was found, in the units of images and data; the bounds hold exactly, in spite of rounding."""
        x = expand(self.unit, solution.x) * solution.x + expand(self.base, solution.x)
        # Squares of single precision reach from 1e-38 to 1e38 only.
        objective = solution.objective.double() * self.factor * self._scale * self.size.double()
        return replace(solution, x=within(x, bounds), objective=objective)

    def restored_std(self, noise_std: Tensor, data: Tensor) -> Tensor:
        """A standard deviation of white noise as a parameter ``noise`` tells it."""
        return noise_std.double() * self.size.double() / deviation(1.0, data)

    @property
    def _scale(self) -> Tensor | float:
        """The fidelity is this times ``factor c`` in units of the data."""
        return self.size.double() if self.background is None else 1.0

    @property
    def _unit_of_weight(self) -> Tensor:
        ones = torch.ones_like(self.size, dtype=torch.float64)
        return self.length * self.gain * self.factor * self._scale * ones


@dataclass(frozen=True)
class Normalisation:
    """Images of mean zero and standard deviation one, and the problem that these are the solution of.

    Where ``y = A x``, the images ``x' = (x - level) / spread`` solve ``y' = A x'`` with
    ``y' = (y - A level) / spread``; what there would be without an image is taken out of ``y`` as well. What
    is learned of this problem knows neither the units of the images nor their level, which may be many times
    as large as what varies. The level of complex images is zero: their phase is arbitrary, and a constant
    taken out of them would make the result depend on it.
    """

    level: complex
    spread: float
    dark: Any = 0.0  # mean of the data without an image, a number or an array of their shape

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Mean and standard deviation of all values, in double precision, a few images at a time."""
        parts = images.split(max(1, _AT_ONCE // images[0].numel()))
        level: complex = 0j if images.is_complex() else sum(float(double(x).sum()) for x in parts)
        level /= images.numel()
        return cls(level, _spread(parts, level, images))

    def seen(self, A: LinearMap, like: Tensor) -> Tensor:
        """What the data of the level are, and without an image: (1, *A.dimsd), of denoising a number."""
        dark = torch.as_tensor(self.dark, dtype=like.dtype.to_real(), device=like.device)
        return self.of_level(A, like) + (dark.reshape(A.dimsd) if dark.ndim else dark)

    def of_level(self, A: LinearMap, like: Tensor) -> Tensor:
        """``A level``; of denoising, also of parts of images, the level."""
        kind = like.dtype.to_complex() if isinstance(self.level, complex) else like.dtype.to_real()
        sizes = () if A.identity else (1, *A.dims)
        level = torch.full(sizes, self.level, dtype=kind, device=like.device)
        return real_like(level if A.identity else A(level), like)

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


class NormalisedFidelity:
    """The fidelity of normalised images, ``D(A x, y) = unit F(x')``, whose gradient is of the size of images.

    ``F`` is ``1/2 ||A x' - y'||^2 / ||A||^2``, with weights in ``A`` and ``y'`` where the noise has some. Of
    counts it is their divergence over ``||A||``, and ``1/2 sum_i w_i |A x' - y'|_i^2 / ||A||^2`` is its
    expansion at the data to second order, with ``weights``.

    Parameters
    ----------
    A : LinearMap
        The operator.
    noise : NoiseModel
        The noise of the data.
    normal : Normalisation
        How images are normalised.
    """

    def __init__(self, A: LinearMap, noise: NoiseModel, normal: Normalisation) -> None:
        self.A, self._plain, self._noise, self._normal = weighted(noise.rows, A), A, noise, normal
        self.counted = noise.counted
        self._levels: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def unit(self) -> float:
        """The fidelity of data is this times ``F``."""
        gain = self._normal.spread * gain_of(self.A)
        return self._noise.factor * gain * (1.0 if self.counted else gain)

    @property
    def unit_of_weight(self) -> float:
        """The ``lam`` that weighs the energy of normalised images by one beside ``F``."""
        return self.unit / self._normal.spread

    def weighted_data(self, data: Tensor) -> Tensor:
        """Normalised data with the weights of the operator ``A`` of this fidelity."""
        rows = self._noise.rows
        return data if rows is None else torch.from_numpy(rows.reshape(data.shape[1:])).to(data) * data

    def weights(self, data: Tensor) -> Tensor | None:
        """Weights ``w`` of squares that are close to ``F`` of counts; None where ``F`` is one of squares.

        One over the variance that each datum tells (K. Sauer and C. Bouman, A local update strategy for
        iterative reconstruction from projections, IEEE Transactions on Signal Processing 41, 1993, and
        J. A. Fessler, IEEE Transactions on Medical Imaging 13, 1994).
        """
        if not self.counted:
            return None
        weights = self._normal.spread * gain_of(self.A) / self._estimated_means(data)
        return self.A.measured_part(weights)

    def relative_weights(self, data: Tensor) -> Tensor | None:
        """The same up to a number, but 1 where no more is counted than on average in data of the level.

        Of data with this mean at most one in ``k`` has a weight below ``1 / k``, whatever they are, and each
        weight depends on its own datum alone: those of a part of an image are a part of its weights.
        """
        # Of dark data the weights are too noisy to be of use. With this bound, errors of quadratic
        # reconstructions from projections and blurred images of 1 to 1000 counts were at most 2 % larger than
        # with the true variances in the weights; with a bound ten times as large, or none, up to 21 %.
        if not self.counted:
            return None
        return (self._mean_of_level(data) / self._estimated_means(data)).clamp_max(1)

    def n_expected(self, data: Tensor) -> Tensor:
        """Mean of the squares at true images, (n,), in units of the variances: one for each measured datum.

        Of counts it is one for each that is not zero, since dark data vary by less than a count.
        """
        if not self.counted:
            return torch.full((len(data),), float(self.A.n_measured)).to(data.real)
        counts, _ = self._counts(data)
        return self.A.measured_part(counts / self._estimated_means(data)).flatten(1).sum(1)

    def drawn(self, images: Tensor, seed: int) -> Tensor:
        """Data of normalised images with noise, the strength of which must be known."""
        normal = self._normal
        clean = self._plain(normal.restored(double(images)))
        noisy = self._noise.sample(clean.clamp_min(0) if self.counted else clean, seed)
        y = normal.of_data(noisy, normal.seen(self._plain, noisy))
        return single(y) if images.dtype.to_real() == torch.float32 else y

    def __call__(self, data: Tensor) -> Functional:
        """``F``, given the data of normalised images."""
        if not self.counted:
            normed, y, _ = without_gain(self.A, self.weighted_data(data))
            return LeastSquares(None if self.A.identity else normed, y)
        spread, A, (_, of_level, _) = self._normal.spread, self.A, self._level(data)
        counts, dark = self._counts(data)
        background = (of_level + dark) / spread  # of normalised images that are zero
        divergence = KullbackLeibler(None if A.identity else A, counts / spread, background=background)
        return (1 / gain_of(A)) * divergence

    def _counts(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Multiples of counts, and their means without an image."""
        seen, *_ = self._level(data)
        known = self._noise.reduced(self._normal.restored_data(data, seen))
        assert known.background is not None  # of counts
        return known.data, known.background

    def _estimated_means(self, data: Tensor) -> Tensor:
        """Means of these multiples, estimated from each one by itself.

        They are at least what is expected without an image, and one count.
        """
        counts, background = self._counts(data)
        return torch.maximum(counts, background).clamp_min(1 / self._noise.factor).detach()

    def _mean_of_level(self, data: Tensor) -> Tensor:
        """Mean of all of them for images of the level, or of the spread where it is 0; at least one count."""
        (*_, bright), (_, dark) = self._level(data), self._counts(data[:0])
        mean = (bright + dark).mean()
        return (mean * math.prod(self.A.dimsd) / self.A.n_measured).clamp_min(1 / self._noise.factor).detach()

    def _level(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What data, and weighted ones, are of the level, and these of the spread where the level is zero.

        A training asks at every step.
        """
        kind = like.dtype, like.device
        if kind not in self._levels:
            normal = self._normal
            seen, of_level = normal.seen(self._plain, like), normal.of_level(self.A, like)
            not_zero = replace(normal, level=normal.level or normal.spread)
            bright = of_level if normal.level else not_zero.of_level(self.A, like)
            self._levels[kind] = seen, of_level, bright
        return self._levels[kind]


def in_pixels(spacing: Spacing) -> Spacing:
    """Distances of pixels by the smallest of them, which is the ``length`` of :class:`Units`."""
    return None if spacing is None else tuple(float(h) / float(min(spacing)) for h in spacing)


def interval(bounds: Interval, noise: NoiseModel) -> Interval:
    """The bounds; images that are counted are non-negative where nobody says."""
    return (0.0, None) if bounds is None and noise.counted else bounds


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


def weighted(rows: NDArray[Any] | None, A: LinearMap) -> LinearMap:
    """The operator with its data multiplied by ``rows``; None is one."""
    return A if rows is None else as_torch(pylops.Diagonal(rows.reshape(A.dimsd))) @ A


def deviation(std: float, data: Tensor) -> float:
    """Standard deviation of the absolute value of noise; of complex noise ``std`` is that of each part."""
    return math.sqrt(2) * std if data.is_complex() else std


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

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        return _Divided(self._parts[0].block(start, stop, step), self._gain)

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

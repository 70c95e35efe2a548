"""Analytic inverses of composed maps: what every datum is a multiple of, and the formula that inverts that.

A datum of ``Diagonal(d) @ Restriction(...) @ F @ G`` is a number times one number of the transform ``F``, and
what ``F`` takes is a number times one pixel. So the outer factors are undone datum by datum, by least squares
(a product is divided, what is repeated is averaged, what is missing has weight zero), the transform by its
formula, and the inner factors like the outer ones (coils by the sum of squares of their maps). However a map
is written, it is brought to one form here, a sparse matrix with one entry in a row for every transform, and
therefore has one inverse.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

# Entries that are equal up to rounding, also of products in single precision.
_ROUNDING = 1e-6
# Squared entries that count as zero beside the largest one.
_NOTHING = 1e-20


class AnalyticInverse(enum.Flag):
    """Kinds of inverse that a map has in closed form; one that selects and weights pixels has both."""

    NONE = 0
    FILTERED_BACK_PROJECTION = enum.auto()
    ZERO_FILLING = enum.auto()


class Formula(ABC):
    """A map with an inverse in closed form, by itself.

    Attributes
    ----------
    kind : AnalyticInverse
        Kind of the inverse; none for a map of which only what is around it can be inverted.
    family : hashable
        Maps of one family can be :meth:`joined`: they see the same images in the same way.
    key : hashable
        Equal for equal maps.
    dimsd : tuple of int
        Shape of the data.
    real : bool
        Whether it is linear for real factors only.
    """

    kind: AnalyticInverse
    family: Hashable
    key: Hashable
    dimsd: tuple[int, ...]
    real = False

    def joined(self, others: list[Any]) -> tuple[Formula, list[sp.csr_array]]:
        """One map to all data of several ones of a family, and each of their data as rows of its data."""
        return self, [sp.eye_array(math.prod(other.dimsd), format="csr") for other in others]

    @abstractmethod
    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """Images, flat, of flat data, which are zero where they were not measured and have no weight."""

    @abstractmethod
    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """1 for pixels of which something was measured, else 0; flat, as the data are."""


@dataclass(frozen=True, eq=False)
class Part:
    """Data that are multiples of one formula's data, ``y = rows F G x``, or of pixels, ``y = rows x``.

    ``G`` is stored with a largest entry of 1, so that equal ones are equal, and ``rows`` with what it was.
    That is the gain, the only factor that counts where images of several parts are combined: weights of the
    data are undone, whatever they are, and tell nothing of a coil.
    """

    rows: sp.csr_array
    formula: Formula | None = None
    inner: Form | None = None
    gain: float = 1.0

    @property
    def left_inverse(self) -> sp.csr_array:
        """The matrix that undoes the rows by least squares, of the data that were measured, up to a number.

        The number keeps what all rows together weigh beside those of other parts.
        """
        power = _clear(np.asarray(abs(self.rows).power(2).sum(0)).ravel())
        seen = np.flatnonzero(power)
        weights = sp.diags_array(_reciprocal(power)[seen] * np.sqrt(power[seen].mean()))
        return sp.csr_array(weights @ self.rows[:, seen].conj().T) if seen.size else self.rows[:0]

    def goes_with(self, other: Part) -> bool:
        """Whether the data of both can be inverted together."""
        if self.formula is None or other.formula is None:
            return self.formula is other.formula
        assert self.inner is not None and other.inner is not None
        return self.formula.family == other.formula.family and self.inner.equals(other.inner)


@dataclass(frozen=True, eq=False)
class Form:
    """A map as sparse matrices over the data of formulas; in all of them a row has at most one entry."""

    parts: tuple[Part, ...]

    @classmethod
    def of_image(cls, n_pixels: int) -> Form:
        """The identity."""
        return cls((Part(sp.eye_array(n_pixels, format="csr")),))

    # ------------------------------------------------------------------ how maps change it
    def times(self, matrix: sp.csr_array) -> Form:
        """After it a matrix with at most one entry in a row."""
        return Form(tuple(replace(part, rows=_pruned(matrix @ part.rows)) for part in self.parts))

    def scaled(self, factor: complex) -> Form:
        """A multiple."""
        return Form(tuple(replace(part, rows=_pruned(factor * part.rows)) for part in self.parts))

    def through(self, formula: Formula, rows: sp.csr_array) -> Form | None:
        """After it a map ``rows F`` with a formula."""
        factor = self._factor()
        if formula.real and any(np.iscomplexobj(part.rows.data) for part in self.parts):
            return None
        return Form((Part(factor * rows, formula, self.scaled(1 / factor), abs(factor)),))

    def selected(self, kept: slice | NDArray[np.intp]) -> Form:
        """Some of the rows, by their indices."""
        return Form(tuple(replace(part, rows=part.rows[kept]) for part in self.parts))

    def placed(self, start: int, n_rows: int) -> Form:
        """The rows among others, which are zero."""
        below = n_rows - start - self.n_rows
        return Form(
            tuple(
                replace(part, rows=sp.vstack([_zeros(start, part.rows), part.rows, _zeros(below, part.rows)]))
                for part in self.parts
            )
        )

    @staticmethod
    def added(forms: Iterable[Form]) -> Form | None:
        """The sum; None where a row would have two entries."""
        groups: list[list[Part]] = []
        for part in chain.from_iterable(form.parts for form in forms):
            known = next((group for group in groups if group[0].goes_with(part)), None)
            if known is None:
                groups.append([part])
            else:
                known.append(part)
        total = Form(tuple(_joined(group) for group in groups))
        counts = np.sum([np.diff(part.rows.indptr) for part in total.parts], axis=0)
        return total if counts.max(initial=0) <= 1 else None

    # ------------------------------------------------------------------ what it is
    @property
    def n_rows(self) -> int:
        return int(self.parts[0].rows.shape[0])

    @property
    def matrix(self) -> sp.csr_array | None:
        """The whole map, if it has no formula in it."""
        (part, *others) = self.parts
        return part.rows if part.formula is None and not others else None

    @property
    def scale(self) -> float:
        """The largest entry."""
        return max((np.abs(part.rows.data).max(initial=0.0) for part in self.parts), default=0.0) or 1.0

    @property
    def kind(self) -> AnalyticInverse:
        """Kind of the inverse; none if a pixel is seen through different formulas, beyond comparison."""
        seen: dict[tuple[Hashable, ...], Any] = {}
        kinds = []
        for formulas, pixels in self._seen():
            key = tuple(formula.key for formula in formulas)
            seen[key] = seen.get(key, False) | pixels
            kinds += [formula.kind for formula in formulas]
        n_ways = np.sum([pixels.astype(int) for pixels in seen.values()], axis=0)
        if AnalyticInverse.NONE in kinds or n_ways.max(initial=0) > 1:
            return AnalyticInverse.NONE
        both = AnalyticInverse.FILTERED_BACK_PROJECTION | AnalyticInverse.ZERO_FILLING
        # Where projections meet transforms, the inverse is a filtered back-projection, for its filter counts.
        return next((kind for kind in AnalyticInverse if kind in kinds), both)

    def equals(self, other: Form) -> bool:
        """Whether it is the same map up to rounding."""
        if len(self.parts) != len(other.parts):
            return False
        partners = (
            next((there for there in other.parts if _of_one_formula(here, there)), None)
            for here in self.parts
        )
        return all(
            there is not None and _close(here.rows, there.rows)
            for here, there in zip(self.parts, partners, strict=True)
        )

    @property
    def left_inverse(self) -> sp.csr_array | None:
        """The matrix that undoes the rows of all parts; None where there is nothing to undo."""
        matrix = sp.csr_array(sp.vstack([part.left_inverse for part in self.parts]))
        identity = sp.eye_array(self.n_rows)
        return None if matrix.shape == identity.shape and _close(matrix, identity) else matrix

    # ------------------------------------------------------------------ its inverse
    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """Flat images of flat data: weighted means of what the data tell of a pixel, zero if they do not."""
        scale = self.scale  # that squares of entries neither overflow nor vanish in single precision
        x, pixel_weights = self.scaled(1 / scale)._summed(y / scale, weights, filter)
        return x * _like(_reciprocal(_clear(pixel_weights)), x)

    def _summed(self, y: Tensor, weights: NDArray, filter: str) -> tuple[Tensor, NDArray]:
        """Weighted sums of what the data tell of the pixels, and the sums of the weights."""
        sums, pixel_weights = [], []
        largest = max(part.gain for part in self.parts)
        for part in self.parts:
            power = _clear(abs(part.rows).power(2).T @ weights)
            z = adjoint_times(part.rows, y * _like(weights, y))
            if part.formula is not None:
                assert part.inner is not None
                z = part.formula.invert(z * _like(_reciprocal(power), z), power, filter)
                image_weights = (part.gain / largest) ** 2 * part.formula.image_weights(power > 0)
                z, power = part.inner._summed(z, image_weights, filter)
            sums.append(z)
            pixel_weights.append(power)
        return _total(sums), np.sum(pixel_weights, axis=0)

    # ------------------------------------------------------------------ private
    def _factor(self) -> complex:
        """A number by which equal forms become equal: the largest magnitude, with the sign of an entry."""
        first = next((part.rows.data[0] for part in self.parts if part.rows.nnz), 1.0)
        return self.scale * first / abs(first)

    def _seen(self) -> Iterator[tuple[tuple[Formula, ...], NDArray]]:
        """Which pixels are seen through which formulas one after the other."""
        for part in self.parts:
            if part.inner is None or part.formula is None:
                yield (), np.bincount(part.rows.indices, minlength=part.rows.shape[1]) > 0
            else:
                yield from (((part.formula, *others), pixels) for others, pixels in part.inner._seen())


def single_entries(forward: Callable[[Tensor], Tensor], dims: tuple[int, ...]) -> sp.csr_array:
    """The matrix of a map that has at most one entry in a row, by two products with it.

    The image of ones gives the entries; that of the numbers of the pixels, divided by them, their places.
    """
    n = math.prod(dims)
    ones = torch.ones(1, *dims, dtype=torch.float64, device="cpu")
    numbers = torch.arange(1, n + 1, dtype=torch.float64, device="cpu").reshape(1, *dims)
    values, products = (forward(image).numpy().ravel() for image in (ones, numbers))
    rows = np.flatnonzero(values)
    columns = np.rint((products[rows] / values[rows]).real).astype(np.int64) - 1
    return sp.csr_array((values[rows], (rows, columns)), shape=(values.size, n))


def _joined(parts: list[Part]) -> Part:
    first = parts[0]
    if len(parts) == 1:
        return first
    rows = [part.rows for part in parts]
    formula = first.formula
    if formula is not None:
        formula, selections = formula.joined([part.formula for part in parts])
        rows = [own @ selected for own, selected in zip(rows, selections, strict=True)]
    entries = [matrix.tocoo() for matrix in rows]
    values = np.concatenate([e.data for e in entries])
    places = tuple(np.concatenate([e.coords[axis] for e in entries]) for axis in (0, 1))
    gain = max(part.gain for part in parts)
    return Part(_pruned(sp.csr_array((values, places), shape=rows[0].shape)), formula, first.inner, gain)


def _of_one_formula(here: Part, there: Part) -> bool:
    keys = [None if part.formula is None else part.formula.key for part in (here, there)]
    return keys[0] == keys[1] and here.goes_with(there)


def _close(one: sp.csr_array, other: sp.csr_array) -> bool:
    if one.shape != other.shape:
        return False
    return float(abs(one - other).max() if one.nnz or other.nnz else 0) <= _ROUNDING * float(abs(one).max())


def _pruned(matrix: Any) -> sp.csr_array:
    rows = sp.csr_array(matrix)
    rows.eliminate_zeros()
    return rows


def _zeros(n_rows: int, like: sp.csr_array) -> sp.csr_array:
    return sp.csr_array((n_rows, like.shape[1]), dtype=like.dtype)


def _clear(power: NDArray) -> NDArray:
    """Squares of which those are zero that are nothing but rounding beside the largest."""
    return np.where(power > _NOTHING * power.max(initial=0), power, 0.0)


def _reciprocal(weights: NDArray) -> NDArray:
    """One over the weights; zero where there is none."""
    return np.where(weights > 0, 1 / np.where(weights > 0, weights, 1), 0)


def adjoint_times(rows: sp.csr_array, y: Tensor) -> Tensor:
    """``rows^H y`` of flat data."""
    entries = rows.tocoo()
    row, column = (torch.from_numpy(index.astype(np.int64)).to(y.device) for index in entries.coords)
    products = _like(entries.data.conj(), y) * y[:, row]
    return products.new_zeros(len(y), rows.shape[1]).scatter_add(1, column.expand_as(products), products)


def _like(values: NDArray, batch: Tensor) -> Tensor:
    real = batch.dtype.to_real()
    return torch.from_numpy(values).to(batch.device, real.to_complex() if np.iscomplexobj(values) else real)


def _total(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])

"""Maps made of other maps: scalings, sums, adjoints, powers and stacks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from itertools import accumulate

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from skinverse.operators._inverse import Form
from skinverse.operators._map import Layout, LinearMap, neighbours_in


class View(LinearMap):
    """The same map between differently shaped arrays."""

    def __init__(self, linear: LinearMap, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._parts = (linear,)
        self.isometry, self.coisometry = linear.isometry, linear.coisometry

    def layout_after(self, images: Layout) -> Layout:
        return self._parts[0].layout_after(images)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        inner = self._parts[0]
        reached = inner.reached(None if pixels is None else pixels.reshape(inner.dims))
        return None if reached is None else reached.reshape(self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._forward(x.reshape(len(x), *self._parts[0].dims)).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._parts[0]._adjoint(y.reshape(len(y), *self._parts[0].dimsd)).reshape(len(y), *self.dims)

    def form_after(self, inner: Form) -> Form | None:
        return self._parts[0].form_after(inner)

    def norm(self) -> float:
        """That of the map."""
        return self._parts[0].norm()

    def doubt(self, y: Tensor) -> str | None:
        return self._parts[0].doubt(y.reshape(len(y), *self._parts[0].dimsd))

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        if self._parts[0].dimsd != self.dimsd:
            return super().block(start, stop, step)
        part = self._parts[0].block(start, stop, step)
        return View(part, self.dims, part.dimsd)


class Scaling(LinearMap):
    """``alpha A``, ``alpha`` real or complex."""

    def __init__(self, alpha: complex, linear: LinearMap) -> None:
        super().__init__(linear.dims, linear.dimsd)
        self._alpha = alpha if isinstance(alpha, complex) and alpha.imag else float(alpha.real)
        self._parts = (linear,)
        self.isometry, self.coisometry = linear.isometry, linear.coisometry

    def layout_after(self, images: Layout) -> Layout:
        return self._parts[0].layout_after(images)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return self._parts[0].reached(pixels)

    def _forward(self, x: Tensor) -> Tensor:
        return self._alpha * self._parts[0]._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._parts[0]._adjoint(self._alpha.conjugate() * y)

    def form_after(self, inner: Form) -> Form | None:
        form = self._parts[0].form_after(inner)
        return form and form.scaled(self._alpha)

    def norm(self) -> float:
        """``|alpha| ||A||``."""
        return abs(self._alpha) * self._parts[0].norm()

    def doubt(self, y: Tensor) -> str | None:
        return self._parts[0].doubt(y)

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        return Scaling(self._alpha, self._parts[0].block(start, stop, step))


class Addition(LinearMap):
    """``A_1 x + ... + A_k x``."""

    def __init__(self, parts: tuple[LinearMap, ...]) -> None:
        super().__init__(parts[0].dims, parts[0].dimsd)
        self._parts = parts

    def layout_after(self, images: Layout) -> Layout:
        return _common([part.layout_after(images) for part in self._parts], self.dimsd)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return _by_some((part.reached(pixels) for part in self._parts), self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        return reduce(torch.add, (part._forward(x) for part in self._parts))

    def _adjoint(self, y: Tensor) -> Tensor:
        return reduce(torch.add, (part._adjoint(y) for part in self._parts))

    def form_after(self, inner: Form) -> Form | None:
        return _sum_of_forms(part.form_after(inner) for part in self._parts)


class Adjoint(LinearMap):
    """``A^H``."""

    def __init__(self, linear: LinearMap) -> None:
        super().__init__(linear.dimsd, linear.dims)
        self._parts = (linear,)
        self.isometry, self.coisometry = linear.coisometry, linear.isometry

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._adjoint(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._parts[0]._forward(y)

    def norm(self) -> float:
        """That of the map."""
        return self._parts[0].norm()

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        matrix = _matrix(self._parts[0])
        if matrix is None:
            return None
        some = np.ones(self.dims) if pixels is None else pixels.numpy()
        return torch.from_numpy(abs(matrix).T @ some.ravel() > 0).reshape(self.dimsd)

    def form_after(self, inner: Form) -> Form | None:
        matrix = _matrix(self._parts[0])
        if matrix is None or np.bincount(matrix.indices).max(initial=0) > 1:
            return super().form_after(inner)
        return inner.times(matrix.conj().T.tocsr())


class Conjugate(LinearMap):
    """The map with conjugate entries, ``conj(A conj(x))``."""

    def __init__(self, linear: LinearMap) -> None:
        super().__init__(linear.dims, linear.dimsd)
        self._parts = (linear,)

    def layout_after(self, images: Layout) -> Layout:
        return self._parts[0].layout_after(images)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return self._parts[0].reached(pixels)

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._forward(x.conj().resolve_conj()).conj().resolve_conj()

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._parts[0]._adjoint(y.conj().resolve_conj()).conj().resolve_conj()

    def norm(self) -> float:
        """That of the map."""
        return self._parts[0].norm()

    def form_after(self, inner: Form) -> Form | None:
        matrix = _matrix(self._parts[0])
        return super().form_after(inner) if matrix is None else inner.times(matrix.conj())


class PartOf(LinearMap):
    """Real or imaginary part of the result of a map, of its adjoint, or of both (``op.toreal()``)."""

    def __init__(self, linear: LinearMap, *, real: bool, forwards: bool, backwards: bool) -> None:
        super().__init__(linear.dims, linear.dimsd)
        self._parts = (linear,)
        self._real, self._forwards, self._backwards = real, forwards, backwards

    def layout_after(self, images: Layout) -> Layout:
        return self._parts[0].layout_after(images)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return self._parts[0].reached(pixels)

    def _forward(self, x: Tensor) -> Tensor:
        y = self._parts[0]._forward(x)
        return y if not self._forwards else y.real if self._real else _imaginary(y)

    def _adjoint(self, y: Tensor) -> Tensor:
        x = self._parts[0]._adjoint(y)
        return x if not self._backwards else x.real if self._real else -_imaginary(x)


class Stack(LinearMap):
    """Blocks above each other: ``x -> (A_1 x, ..., A_k x)``."""

    def __init__(self, parts: tuple[LinearMap, ...], dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._parts = parts
        self._sizes = [math.prod(part.dimsd) for part in parts]

    def layout_after(self, images: Layout) -> Layout:
        return _stacked([part.layout_after(images) for part in self._parts], self._parts)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        pieces = (None if pixels is None else pixels.reshape(part.dims) for part in self._parts)
        return _in_a_row(self._parts, pieces).reshape(self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        rows = [part._forward(x.reshape(len(x), *part.dims)).flatten(1) for part in self._parts]
        return _joined(rows).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        rows = y.reshape(len(y), -1).split(self._sizes, dim=1)
        pieces = zip(self._parts, rows, strict=True)
        columns = (
            part._adjoint(row.reshape(len(y), *part.dimsd)).reshape(len(y), -1) for part, row in pieces
        )
        return reduce(torch.add, columns).reshape(len(y), *self.dims)

    def form_after(self, inner: Form) -> Form | None:
        n_rows = sum(self._sizes)
        starts = accumulate(self._sizes, initial=0)
        return _sum_of_forms(
            (form := part.form_after(inner)) and form.placed(start, n_rows)
            for part, start in zip(self._parts, starts, strict=False)
        )


class BlockDiagonal(LinearMap):
    """Blocks along the diagonal: ``(x_1, ..., x_k) -> (A_1 x_1, ..., A_k x_k)``."""

    def __init__(self, parts: tuple[LinearMap, ...], dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._parts = parts
        self._widths = [math.prod(part.dims) for part in parts]
        self._heights = [math.prod(part.dimsd) for part in parts]

    def layout_after(self, images: Layout) -> Layout:
        (count, _), *piece = images
        alike = count == len(self._parts) and len(set(self._widths)) == 1
        pieces = [tuple(piece) if alike else ((width, False),) for width in self._widths]
        each = [part.layout_after(own) for part, own in zip(self._parts, pieces, strict=True)]
        return _stacked(each, self._parts)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return _in_a_row(self._parts, _cut(pixels, self._parts, self._widths)).reshape(self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        pieces = zip(self._parts, x.reshape(len(x), -1).split(self._widths, dim=1), strict=True)
        rows = [part._forward(piece.reshape(len(x), *part.dims)).flatten(1) for part, piece in pieces]
        return _joined(rows).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        pieces = zip(self._parts, y.reshape(len(y), -1).split(self._heights, dim=1), strict=True)
        rows = [part._adjoint(piece.reshape(len(y), *part.dimsd)).flatten(1) for part, piece in pieces]
        return _joined(rows).reshape(len(y), *self.dims)

    def norm(self) -> float:
        """The largest of the blocks."""
        return max(part.norm() for part in self._parts)

    def form_after(self, inner: Form) -> Form | None:
        n_rows = sum(self._heights)
        lefts, tops = accumulate(self._widths, initial=0), accumulate(self._heights, initial=0)
        pieces = zip(self._parts, lefts, self._widths, tops, strict=False)
        return _sum_of_forms(
            (form := part.form_after(inner.selected(slice(left, left + width)))) and form.placed(top, n_rows)
            for part, left, width, top in pieces
        )


class SideBySide(LinearMap):
    """Blocks beside each other: ``(x_1, ..., x_k) -> A_1 x_1 + ... + A_k x_k``."""

    def __init__(self, parts: tuple[LinearMap, ...], dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._parts = parts
        self._widths = [math.prod(part.dims) for part in parts]

    def layout_after(self, images: Layout) -> Layout:
        each = [part.layout_after(tuple((size, True) for size in part.dims)) for part in self._parts]
        return _common(each, self._parts[0].dimsd)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        pieces = zip(self._parts, _cut(pixels, self._parts, self._widths), strict=True)
        return _by_some((part.reached(piece) for part, piece in pieces), self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        pieces = zip(self._parts, x.reshape(len(x), -1).split(self._widths, dim=1), strict=True)
        terms = (part._forward(piece.reshape(len(x), *part.dims)).flatten(1) for part, piece in pieces)
        return reduce(torch.add, terms).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        columns = [part._adjoint(y.reshape(len(y), *part.dimsd)).flatten(1) for part in self._parts]
        return _joined(columns).reshape(len(y), *self.dims)

    def form_after(self, inner: Form) -> Form | None:
        lefts = accumulate(self._widths, initial=0)
        return _sum_of_forms(
            part.form_after(inner.selected(slice(left, left + width)))
            for part, left, width in zip(self._parts, lefts, self._widths, strict=False)
        )


def _by_some(reached: Iterable[Tensor | None], shape: tuple[int, ...]) -> Tensor | None:
    """Data that differ from zero where one of several maps to them does."""
    known = []
    for data in reached:
        if data is None:
            return None
        known.append(data.reshape(shape))
    return reduce(torch.logical_or, known)


def _in_a_row(parts: tuple[LinearMap, ...], pieces: Iterable[Tensor | None]) -> Tensor:
    """Data of several maps that differ from zero, flat and one after the other."""
    each = ((part, part.reached(piece)) for part, piece in zip(parts, pieces, strict=True))
    rows = (
        torch.ones(part.dimsd, dtype=torch.bool, device="cpu") if data is None else data
        for part, data in each
    )
    return torch.cat([row.flatten() for row in rows])


def _cut(pixels: Tensor | None, parts: tuple[LinearMap, ...], widths: list[int]) -> Iterable[Tensor | None]:
    """What each of several maps takes of the pixels."""
    if pixels is None:
        return [None] * len(parts)
    pieces = zip(parts, pixels.flatten().split(widths), strict=True)
    return [piece.reshape(part.dims) for part, piece in pieces]


def _common(layouts: list[Layout], shape: tuple[int, ...]) -> Layout:
    """The axes of an array that have neighbours in all layouts."""
    if len(set(layouts)) == 1:
        return layouts[0]
    known = zip(*(neighbours_in(layout, shape) for layout in layouts), strict=True)
    return tuple((size, all(beside)) for size, beside in zip(shape, known, strict=True))


def _stacked(layouts: list[Layout], parts: tuple[LinearMap, ...]) -> Layout:
    """The data of several maps above each other: along the axis that counts them there are no neighbours."""
    if len({part.dimsd for part in parts}) > 1:  # a list
        return ((sum(math.prod(part.dimsd) for part in parts), False),)
    return ((len(parts), False), *_common(layouts, parts[0].dimsd))


def _sum_of_forms(forms: Iterable[Form | None]) -> Form | None:
    """Their sum; None without one, or where a part has none."""
    known = []
    for form in forms:
        if form is None:
            return None
        known.append(form)
    return Form.added(known)


def _matrix(linear: LinearMap) -> sp.csr_array | None:
    """The matrix of a map that selects and weights pixels."""
    form = linear.form_after(Form.of_image(math.prod(linear.dims)))
    return form and form.matrix


def _joined(rows: list[Tensor]) -> Tensor:
    """Rows side by side; real ones beside complex ones become complex."""
    dtype = reduce(torch.promote_types, (row.dtype for row in rows))
    return torch.cat([row.to(dtype) for row in rows], dim=1)


def _imaginary(x: Tensor) -> Tensor:
    return x.imag if x.is_complex() else torch.zeros_like(x)

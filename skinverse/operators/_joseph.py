"""The matrix of a scan with linear interpolation (Joseph's projector), for problems that can store it.

Each row of the image that a ray crosses contributes the image, linearly interpolated between the two
neighbouring pixels, times the length of the ray from row to row. The image is zero outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

from skinverse.operators._geometry import Scan
from skinverse.operators._rays import Rays, rays_of

MAX_STORED_BYTES = 2**28
"""Limit of a matrix that is stored; products with a larger one compute its weights as they go."""
_MAX_ENTRIES = 2**31 - 2**25  # that 32-bit indices can count, less the error of the estimate
_SAMPLED = 64  # views whose entries are counted for the estimate


class JosephMatrix:
    """The matrix of a scan, rays by pixels, which is built when it is first needed and is not pickled.

    Parameters
    ----------
    scan : Scan
        The scan.
    dtype : dtype
        Of the weights.
    stored : bool, default=None
        Whether the matrix is kept once it is built; None where it is small enough.
    """

    def __init__(self, scan: Scan, dtype: DTypeLike, stored: bool | None = None) -> None:
        self.scan = scan
        self.dtype = np.dtype(dtype)
        self._stored = stored
        self._whole: sp.csr_array | None = None

    @cached_property
    def is_stored(self) -> bool:
        """Whether the matrix is kept once it is built."""
        if self._stored is not None:
            return self._stored
        return n_weights(self.scan) * (self.dtype.itemsize + 4) <= MAX_STORED_BYTES

    def whole(self) -> sp.csr_array:
        """The matrix."""
        if self._whole is not None:
            return self._whole
        matrix = _build(self.scan, self.dtype)
        if self.is_stored:
            self._whole = matrix
        return matrix

    def block(self, views: slice) -> JosephMatrix:
        """The rows of some views; of neighbouring ones they share the memory of the whole matrix."""
        # Many blocks hold as much as the whole.
        block = JosephMatrix(self.scan[views], self.dtype, stored=self.is_stored)
        if self.is_stored and views.step in (None, 1):
            matrix, first = self.whole(), views.indices(len(self.scan.angles))[0]
            start = first * self.scan.n_detectors
            indptr = matrix.indptr[start : start + block.scan.n_rays + 1]
            entries = slice(indptr[0], indptr[-1])
            parts = (matrix.data[entries], matrix.indices[entries], indptr - indptr[0])
            block._whole = sp.csr_array(parts, shape=(block.scan.n_rays, matrix.shape[1]))
        return block

    def __getstate__(self) -> dict[str, Any]:
        # What an operator has worked out is no part of its content.
        return {name: self.__dict__[name] for name in ("scan", "dtype", "_stored")} | {"_whole": None}


def n_weights(scan: Scan) -> int:
    """Number of entries of the matrix, up to a few for each ray; of many views some are counted."""
    n_views = len(scan.angles)
    some = scan[:: max(1, n_views // _SAMPLED)]
    first, last = rays_of(some).rows(scan.dims)
    crossed = np.maximum(last - first, 0).sum(dtype=np.int64)
    return int(2 * crossed * n_views / len(some.angles))


def _build(scan: Scan, dtype: np.dtype) -> sp.csr_array:
    """Count the entries, then fill them in: memory holds the matrix and the work arrays of one view."""
    if n_weights(scan) > _MAX_ENTRIES:
        raise ValueError(f"the matrix has {n_weights(scan)} entries, more than 32-bit indices can count")
    counts = [_inside(*_pair(run, scan.dims)[:2]).sum(axis=(1, 2)) for run in _runs(scan)]
    indptr = np.concatenate([[0], *counts]).cumsum(dtype=np.int32)
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], dtype)
    ray = 0
    for run in _runs(scan):
        start, ray = indptr[ray], ray + len(run.a)
        low, width, step, starts, fraction = _pair(run, scan.dims)
        inside = _inside(low, width)
        pixels, weights = np.empty(inside.shape, np.int32), np.empty(inside.shape, dtype)
        np.add(low * step, starts, out=pixels[..., 0])
        np.add(pixels[..., 0], step, out=pixels[..., 1])
        np.multiply(fraction, run.length[:, None], out=weights[..., 1], casting="same_kind")
        np.subtract(run.length[:, None], weights[..., 1], out=weights[..., 0], casting="same_kind")
        indices[start : indptr[ray]], data[start : indptr[ray]] = pixels[inside], weights[inside]
    return sp.csr_array((data, indices, indptr), shape=(scan.n_rays, int(np.prod(scan.dims))))


def _runs(scan: Scan) -> Iterator[Rays]:
    """Neighbouring rays of a view that cross the image, or all its transpose."""
    for view in range(len(scan.angles)):
        rays = rays_of(scan[view : view + 1])
        changes = np.flatnonzero(np.diff(rays.upright)) + 1
        for start, stop in pairwise([0, *changes, len(rays.a)]):
            yield rays.kept(slice(start, stop))


def _pair(
    run: Rays, dims: tuple[int, int]
) -> tuple[NDArray[np.int32], int, np.int32, NDArray[np.int32], NDArray[np.float64]]:
    """Where rays cross rows: lower pixels, pixels of a row, their step, starts of rows, and fractions."""
    height, width = dims if run.upright[0] else dims[::-1]
    position = run.a[:, None] + run.b[:, None] * np.arange(height)
    low = np.floor(np.clip(position, -2, width)).astype(np.int32)
    step, stride = (1, dims[1]) if run.upright[0] else (dims[1], 1)
    starts = np.arange(height, dtype=np.int32) * np.int32(stride)
    position -= low
    return low, width, np.int32(step), starts, position


def _inside(low: NDArray[np.int32], width: int) -> NDArray[np.bool_]:
    """Whether both pixels of each pair exist, (rays, rows, 2)."""
    inside = np.empty((*low.shape, 2), dtype=bool)
    np.less(low.view(np.uint32), width, out=inside[..., 0])  # negative is large when unsigned
    np.less((low + np.int32(1)).view(np.uint32), width, out=inside[..., 1])
    return inside

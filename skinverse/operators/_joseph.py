"""The matrix of the parallel-beam transform with linear interpolation (Joseph's projector).

A ray nearer to the vertical crosses every row of pixels once. Each row contributes the image, linearly
interpolated between the two neighbouring pixels, times the length ``pixel_size / |cos|`` of the ray from row
to row. For a ray nearer to the horizontal, columns and ``|sin|`` take the place of rows and ``|cos|``. The
image is zero outside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike, NDArray

MAX_STORED_BYTES = 2**31
"""Limit of a matrix that is stored; a larger one is built anew, a few angles at a time, for every product."""
CHUNK_BYTES = 2**27
"""Approximate size of the matrix of those few angles."""
_MAX_ENTRIES = 2**31 - 2**25  # that 32-bit indices can count, less the error of the estimate


@dataclass(frozen=True, eq=False)
class Geometry:
    """A parallel-beam scan: all that determines the matrix."""

    dims: tuple[int, int]
    angles: NDArray[np.float64]
    n_detectors: int
    pixel_size: float
    detector_spacing: float

    def __post_init__(self) -> None:
        self.angles.flags.writeable = False  # the matrix, once built, is that of these angles

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __getitem__(self, angles: slice) -> Geometry:
        """The same scan at some of its angles."""
        return replace(self, angles=self.angles[angles])

    @property
    def n_rays(self) -> int:
        """Number of rows of the matrix."""
        return len(self.angles) * self.n_detectors

    @property
    def detectors(self) -> NDArray[np.float64]:
        """Positions of the detector elements, in pixels from the centre of rotation."""
        centred = np.arange(self.n_detectors, dtype=np.float64) - (self.n_detectors - 1) / 2
        return centred * (self.detector_spacing / self.pixel_size)

    @property
    def n_weights(self) -> int:
        """Number of entries of the matrix, exact up to about one row or column of pixels per angle."""
        reach = np.maximum(np.abs(np.cos(self.angles)), np.abs(np.sin(self.angles))).sum()
        wide_detector = 2 * np.prod(self.dims) * self.pixel_size / self.detector_spacing * reach
        return int(min(wide_detector, 2 * self.n_rays * max(self.dims)))


class JosephMatrix:
    """The matrix of a scan, rays by pixels, which is built when it is first needed and is not pickled.

    Parameters
    ----------
    geometry : Geometry
        The scan.
    dtype : dtype
        Of the weights.
    """

    def __init__(self, geometry: Geometry, dtype: DTypeLike) -> None:
        self.geometry = geometry
        self.dtype = np.dtype(dtype)
        self._whole: sp.csr_array | None = None

    @property
    def n_bytes(self) -> int:
        """Approximate memory of the whole matrix: a weight and a 32-bit index for each entry."""
        return self.geometry.n_weights * (self.dtype.itemsize + 4)

    @property
    def is_stored(self) -> bool:
        """Whether the matrix is kept once it is built."""
        return self.n_bytes <= MAX_STORED_BYTES

    def whole(self) -> sp.csr_array:
        """The matrix."""
        if self._whole is not None:
            return self._whole
        matrix = _build(self.geometry, self.dtype)
        if self.is_stored:
            self._whole = matrix
        return matrix

    def pieces(self) -> Iterator[tuple[slice, sp.csr_array]]:
        """The whole matrix where it is stored, otherwise the rows of a few angles at a time."""
        n_angles = len(self.geometry.angles)
        n_chunk = n_angles if self.is_stored else max(1, n_angles * CHUNK_BYTES // self.n_bytes)
        for start in range(0, n_angles, n_chunk):
            angles = slice(start, start + n_chunk)
            yield angles, self.whole() if self.is_stored else _build(self.geometry[angles], self.dtype)

    def block(self, angles: slice) -> JosephMatrix:
        """The rows of some angles; of neighbouring ones they share the memory of the whole matrix."""
        block = JosephMatrix(self.geometry[angles], self.dtype)
        if self.is_stored and angles.step in (None, 1):
            matrix, first = self.whole(), angles.indices(len(self.geometry.angles))[0]
            start = first * self.geometry.n_detectors
            indptr = matrix.indptr[start : start + block.geometry.n_rays + 1]
            entries = slice(indptr[0], indptr[-1])
            parts = (matrix.data[entries], matrix.indices[entries], indptr - indptr[0])
            block._whole = sp.csr_array(parts, shape=(block.geometry.n_rays, matrix.shape[1]))
        return block

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None}


@dataclass(frozen=True, eq=False)
class _Crossings:
    """Points ``position[ray, line]`` along each line of pixels where the rays of one angle cross it."""

    position: NDArray[np.float64]
    length: float  # of a ray from line to line
    size: int  # pixels of a line
    step: int  # from a pixel to the next one of its line, in the flat image
    starts: NDArray[np.int32]  # first pixel of every line, in the flat image

    def inside(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Index of the lower pixel of each pair; whether both pixels exist, (rays, lines, 2)."""
        low = np.floor(np.clip(self.position, -2, self.size)).astype(np.int32)
        inside = np.empty((*low.shape, 2), dtype=bool)
        np.less(low.view(np.uint32), self.size, out=inside[..., 0])  # negative is large when unsigned
        np.less((low + np.int32(1)).view(np.uint32), self.size, out=inside[..., 1])
        return low, inside

    def weights(self, low: NDArray[np.int32], dtype: DTypeLike) -> NDArray[np.floating]:
        """Weights of the two pixels, (rays, lines, 2)."""
        weights = np.empty((*low.shape, 2), dtype)
        np.multiply(self.position - low, self.length, out=weights[..., 1], casting="same_kind")
        np.subtract(self.length, weights[..., 1], out=weights[..., 0], casting="same_kind")
        return weights

    def pixels(self, low: NDArray[np.int32]) -> NDArray[np.int32]:
        """Indices of the two pixels in the flat image, (rays, lines, 2)."""
        pixels = np.empty((*low.shape, 2), np.int32)
        np.add(low * np.int32(self.step), self.starts, out=pixels[..., 0])
        np.add(pixels[..., 0], np.int32(self.step), out=pixels[..., 1])
        return pixels


def _crossings(geometry: Geometry, angle: float) -> _Crossings:
    height, width = geometry.dims
    x = np.arange(width) - (width - 1) / 2
    y = (height - 1) / 2 - np.arange(height)
    s, cos, sin = geometry.detectors[:, None], np.cos(angle), np.sin(angle)
    if abs(sin) < abs(cos):
        column = (s - y * sin) / cos + (width - 1) / 2
        rows = np.arange(0, height * width, width, dtype=np.int32)
        return _Crossings(column, geometry.pixel_size / abs(cos), width, 1, rows)
    row = (height - 1) / 2 - (s - x * cos) / sin
    columns = np.arange(width, dtype=np.int32)
    return _Crossings(row, geometry.pixel_size / abs(sin), height, width, columns)


def _row_lengths(geometry: Geometry, angle: float) -> NDArray[np.int64]:
    return _crossings(geometry, angle).inside()[1].sum(axis=(1, 2))


def _build(geometry: Geometry, dtype: DTypeLike) -> sp.csr_array:
    """Count the entries, then fill them in: memory holds the matrix and the work arrays of one angle."""
    if geometry.n_weights > _MAX_ENTRIES:
        raise ValueError(f"the matrix has {geometry.n_weights} entries, more than 32-bit indices can count")
    lengths = [_row_lengths(geometry, angle) for angle in geometry.angles]
    indptr = np.concatenate([[0], *lengths]).cumsum(dtype=np.int32)
    indices, data = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], dtype)
    bounds = indptr[:: geometry.n_detectors]
    for angle, start, stop in zip(geometry.angles, bounds[:-1], bounds[1:], strict=True):
        crossings = _crossings(geometry, angle)
        low, inside = crossings.inside()
        indices[start:stop] = crossings.pixels(low)[inside]
        data[start:stop] = crossings.weights(low, dtype)[inside]
    return sp.csr_array((data, indices, indptr), shape=(geometry.n_rays, int(np.prod(geometry.dims))))

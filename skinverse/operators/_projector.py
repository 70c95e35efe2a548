"""Projections whose weights are computed as they are needed, for batches, in as many threads as torch has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from skinverse.operators import _kernel
from skinverse.operators._geometry import Scan
from skinverse.operators._kernel import LANES
from skinverse.operators._rays import rays_of

_FEW = 4  # so many images are faster one by one than as a group that is not full
_MARGIN = 2  # zeros at both ends of a row, so that the kernel tests nothing
_VIEWS = 64  # whose rays are known at a time
_TASK = 2**13  # rays of a task
# What a core's cache holds of an image. Back-projections add to their own rows, at most so many.
_TILE_BYTES, _OWNED_ROWS = 2**18, 32

_Run = Callable[[Callable[[int], None], Iterable[int]], None]


def project(scan: Scan, images: NDArray) -> NDArray:
    """Data (n, n_views, n_detectors) of images (n, height, width), in their precision."""
    data = np.empty((scan.n_rays, len(images)), images.dtype)
    groups = [(columns, _Sides.of(images[columns])) for columns in _groups(len(images))]
    with _threads() as run:
        for crossings in _crossings(scan):
            length = crossings.length.astype(images.dtype)[:, None]
            for columns, sides in groups:
                sums = _sums(run, crossings, *sides.image(crossings.upright))
                data[crossings.rays, columns] = (length * sums)[:, : columns.stop - columns.start]
    return np.ascontiguousarray(data.T).reshape(-1, *scan.dimsd)


def back_project(scan: Scan, data: NDArray) -> NDArray:
    """The adjoint: images (n, height, width) of data (n, n_views, n_detectors), in their precision."""
    values = np.ascontiguousarray(data.reshape(len(data), -1).T)
    images = np.zeros((len(data), *scan.dims), data.dtype)
    groups = [(columns, _Sides.of(images[columns])) for columns in _groups(len(data))]
    with _threads() as run:
        for crossings in _crossings(scan):
            length = crossings.length.astype(data.dtype)[:, None]
            for columns, sides in groups:
                products = length * values[crossings.rays, columns]
                _add(run, crossings, products, *sides.image(crossings.upright))
    for columns, sides in groups:
        images[columns] = sides.total(columns.stop - columns.start)
    return images


def slopes(scan: Scan, images: NDArray, data: NDArray) -> NDArray[np.float64]:
    """Derivatives of ``sum(data * project(images))`` in ``a``, ``b`` and the length of all rays, (3, n_rays).

    They are those of linear interpolation; at a pixel's centre, where that has none, those on its right.
    """
    derivatives = np.zeros((3, scan.n_rays))
    values = data.reshape(len(data), -1)
    alone = [_Sides.of(image[None]) for image in images]
    with _threads() as run:
        for crossings in _crossings(scan):
            for sides, value in zip(alone, values, strict=True):
                sums = _slopes(run, crossings, *sides.image(crossings.upright))
                total, slope, moment = sums.T * value[crossings.rays]
                along = crossings.length
                derivatives[:, crossings.rays] += along * slope, along * moment, total
    return derivatives


def smear(scan: Scan, views: NDArray) -> NDArray:
    """Images (n, height, width) of filtered views (n, n_views, n_detectors) with a zero at both ends."""
    height, width = scan.dims
    images = np.zeros((len(views), height, width), views.dtype)
    constant, u, v = scan.frames[..., 0], *(scan.frames[..., k] * scan.pixel_size for k in (1, 2))
    corner = constant - u * (width - 1) / 2 + v * (height - 1) / 2
    frames = np.stack([corner, u, -v], axis=2)  # of points (1, column, row)
    middle = scan.offset + (scan.n_detectors + 1) / 2
    with _threads() as run:
        for image, filtered in zip(images, views, strict=True):

            def share(top: int, image: NDArray = image, filtered: NDArray = filtered) -> None:
                rows = image[top : top + _OWNED_ROWS]
                _kernel.smear(filtered, frames, scan.elements, scan.curved, middle, rows, top)

            run(share, range(0, height, _OWNED_ROWS))
    return images


def _sums(run: _Run, crossings: _Crossings, image: NDArray, width: int) -> NDArray:
    """Sums of the images side by side along each ray, (rays, lanes)."""
    sums = np.zeros((len(crossings.a), image.shape[1]), image.dtype)
    tile = _rows(image, width)

    def share(start: int) -> None:
        task = slice(start, start + _TASK)
        _kernel.project(image, width, tile, *crossings.lines(task), sums[task])

    run(share, range(0, len(sums), _TASK))
    return sums


def _slopes(run: _Run, crossings: _Crossings, image: NDArray, width: int) -> NDArray[np.float64]:
    """Sums of one image and of its slopes along each ray, (rays, 3)."""
    sums = np.zeros((len(crossings.a), 3))

    def share(start: int) -> None:
        task = slice(start, start + _TASK)
        _kernel.slopes(image, width, *crossings.lines(task), sums[task])

    run(share, range(0, len(sums), _TASK))
    return sums


def _add(run: _Run, crossings: _Crossings, data: NDArray, image: NDArray, width: int) -> None:
    """Add data (rays, n) to the first n of the images side by side; every task has rows of its own."""
    lanes = np.zeros((len(data), image.shape[1]), image.dtype)
    lanes[:, : data.shape[1]] = data
    rows = min(_OWNED_ROWS, _rows(image, width))

    def share(top: int) -> None:
        _kernel.back_project(image, width, top, top + rows, *crossings.lines(), lanes)

    run(share, range(0, len(image) // width, rows))


class _Crossings(NamedTuple):
    """Rays of some views that cross the image row by row, or that all cross its transpose."""

    upright: bool
    rays: NDArray[np.intp]  # their numbers
    a: NDArray[np.float64]  # from the end of the margin
    b: NDArray[np.float64]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    length: NDArray[np.float64]

    def lines(self, rays: slice = slice(None)) -> tuple[NDArray, ...]:
        return self.a[rays], self.b[rays], self.first[rays], self.last[rays]


def _crossings(scan: Scan) -> Iterator[_Crossings]:
    for view in range(0, len(scan.angles), _VIEWS):
        some = rays_of(scan[view : view + _VIEWS])
        for upright in (True, False):
            rays = np.flatnonzero(some.upright == upright)
            kept = some.kept(rays)
            first, last = kept.rows(scan.dims)
            number = rays + view * scan.n_detectors
            yield _Crossings(upright, number, kept.a + _MARGIN, kept.b, first, last, kept.length)


class _Sides(NamedTuple):
    """Images side by side, (rows, columns, lanes), and their transposes, with zeros at the ends of rows."""

    upright: NDArray
    turned: NDArray

    @classmethod
    def of(cls, images: NDArray) -> _Sides:
        return cls(_laid_out(images), _laid_out(images.transpose(0, 2, 1)))

    def image(self, upright: bool) -> tuple[NDArray, int]:
        """One of the two, as (rows * columns, lanes), and its columns."""
        side = self.upright if upright else self.turned
        return side.reshape(-1, side.shape[2]), side.shape[1]

    def total(self, n: int) -> NDArray:
        """Sum of the first images of both."""
        upright, turned = (side[:, _MARGIN:-_MARGIN, :n] for side in self)
        return upright.transpose(2, 0, 1) + turned.transpose(2, 1, 0)


def _laid_out(images: NDArray) -> NDArray:
    n, height, width = images.shape
    side = np.zeros((height, width + 2 * _MARGIN, 1 if n == 1 else LANES), images.dtype)
    side[:, _MARGIN:-_MARGIN, :n] = images.transpose(1, 2, 0)
    return side


def _groups(n: int) -> list[slice]:
    """Groups of images; a group that is not full has zeros beside them."""
    full, rest = n - n % LANES, n % LANES
    starts = [*range(0, full, LANES), *([full] if rest > _FEW else range(full, n))]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]


def _rows(image: NDArray, width: int) -> int:
    """Rows of a tile."""
    return max(8, _TILE_BYTES // (width * image[0].nbytes))


@contextmanager
def _threads() -> Iterator[_Run]:
    """A function that calls another with each of some numbers, in as many threads as torch uses."""
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield lambda share, tasks: _exhaust(map(share, tasks))
        return
    with ThreadPoolExecutor(n_threads) as pool:
        yield lambda share, tasks: _exhaust(pool.map(share, tasks))


def _exhaust(results: Iterator[Any]) -> None:
    for _ in results:
        pass

"""One form for all rays of a plane: a line that crosses every row of the image, or of its transpose, once.

A ray nearer to the vertical crosses row ``i`` at the column ``a + b * i``, and its length from row to row is
``pixel_size / |cos|``. For a ray nearer to the horizontal columns take the place of rows and ``|sin|`` that
of ``|cos|``. Parallel beams, fans, and detectors of any offset differ in ``a``, ``b`` and the length only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skinverse.operators._geometry import Scan


class Rays(NamedTuple):
    """Rays with the image, or its transpose, that they cross row by row."""

    upright: NDArray[np.bool_]  # whether it is the image
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    length: NDArray[np.float64]  # from row to row

    def kept(self, rays: slice | NDArray) -> Rays:
        """Some of the rays."""
        return Rays(self.upright[rays], self.a[rays], self.b[rays], self.length[rays])

    def rows(self, dims: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The first row of each ray with weights in the image, and the one after the last."""
        height, width = (np.where(self.upright, *sizes).astype(float) for sizes in (dims, dims[::-1]))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            one, other = (-1 - self.a) / self.b, (width - self.a) / self.b
        along = self.b == 0  # such a ray stays in its column
        inside = (self.a > -1) & (self.a < width)
        first = np.where(along, np.where(inside, 0, height), np.minimum(one, other))
        last = np.where(along, height, np.maximum(one, other))
        start, stop = (np.ceil(np.clip(end, 0, height)).astype(np.int32) for end in (first, last))
        return start, stop


def rays_of(scan: Scan) -> Rays:
    """All rays of a scan, view by view."""
    height, width = scan.dims
    angle, distance = scan.lines()
    xp = scan.xp
    cos, sin, s = xp.cos(angle), xp.sin(angle), distance / scan.pixel_size
    upright = xp.abs(sin) < xp.abs(cos)
    down, right = (height - 1) / 2, (width - 1) / 2
    main = xp.where(upright, cos, -sin)
    b = xp.where(upright, sin, -cos) / main
    # u cos + v sin = s with u = j - right and v = down - i, solved for j, or for i.
    a = s / main + xp.where(upright, right - down * b, down - right * b)
    length = scan.pixel_size / xp.abs(main)
    return Rays(*(xp.broadcast_to(v, scan.dimsd).ravel() for v in (upright, a, b, length)))

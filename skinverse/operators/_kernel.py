"""Sums along rays and their adjoint, compiled: the weights of Joseph's matrix, computed as they are needed.

Images stand side by side as (rows * width, lanes), where one is alone and eight are a group, whose loops the
compiler unrolls. Forward, the rows of a ray are added one after the other; back, the rays come in their order
for every pixel. So sums are the same bit by bit in whatever tiles of rows, groups and threads they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numba import njit

LANES = 8
"""Images that are projected side by side."""
_Index = np.uintp  # a signed index would be tested for its sign


def _compiled(function: Callable[..., None]) -> Any:
    """Compile on the first call, or read from the disk what an earlier process compiled."""
    compiled = njit(function, nogil=True, error_model="numpy")
    with suppress(RuntimeError):  # that no folder can be written
        compiled.enable_caching()
    return compiled


@_compiled
def project(image, width, tile, a, b, first, last, sums):  # type: ignore[no-untyped-def]
    """Add the image at the crossings of each ray to its sums, one tile of rows after the other."""
    alone = image.shape[1] == 1
    pixels, totals = image.reshape(-1), np.zeros(LANES, image.dtype)
    for top in range(0, len(image) // width, tile):
        for ray in range(len(a)):
            start, stop = max(first[ray], top), min(last[ray], top + tile)
            if start >= stop:
                continue
            if alone:
                total = sums[ray, 0]
                for row in range(start, stop):
                    position = a[ray] + b[ray] * row
                    low = np.intp(position)
                    fraction = image.dtype.type(position - low)
                    k = _Index(row * width + low)
                    left = pixels[k]
                    total += left + fraction * (pixels[k + _Index(1)] - left)
                sums[ray, 0] = total
            else:
                totals[:] = sums[ray]
                for row in range(start, stop):
                    position = a[ray] + b[ray] * row
                    low = np.intp(position)
                    fraction = image.dtype.type(position - low)
                    k = _Index((row * width + low) * LANES)
                    for lane in range(_Index(LANES)):
                        left = pixels[k + lane]
                        totals[lane] += left + fraction * (pixels[k + lane + _Index(LANES)] - left)
                sums[ray] = totals


@_compiled
def back_project(image, width, top, bottom, a, b, first, last, data):  # type: ignore[no-untyped-def]
    """Add the data of each ray to the image at its crossings with the rows from top to bottom."""
    alone = image.shape[1] == 1
    pixels, values = image.reshape(-1), np.zeros(LANES, image.dtype)
    for ray in range(len(a)):
        start, stop = max(first[ray], top), min(last[ray], bottom)
        if start >= stop:
            continue
        if alone:
            value = data[ray, 0]
            for row in range(start, stop):
                position = a[ray] + b[ray] * row
                low = np.intp(position)
                right = image.dtype.type(position - low) * value
                k = _Index(row * width + low)
                pixels[k] += value - right
                pixels[k + _Index(1)] += right
        else:
            values[:] = data[ray]
            for row in range(start, stop):
                position = a[ray] + b[ray] * row
                low = np.intp(position)
                fraction = image.dtype.type(position - low)
                k = _Index((row * width + low) * LANES)
                for lane in range(_Index(LANES)):
                    pixels[k + lane] += values[lane] - fraction * values[lane]
                for lane in range(_Index(LANES)):
                    pixels[k + lane + _Index(LANES)] += fraction * values[lane]


@_compiled
def slopes(image, width, a, b, first, last, sums):  # type: ignore[no-untyped-def]
    """Add to the sums of each ray the image at its crossings, its slope there, and that times the row."""
    pixels = image.reshape(-1)
    for ray in range(len(a)):
        for row in range(first[ray], last[ray]):
            position = a[ray] + b[ray] * row
            low = np.intp(position)
            k = _Index(row * width + low)
            slope = pixels[k + _Index(1)] - pixels[k]
            sums[ray, 0] += pixels[k] + (position - low) * slope
            sums[ray, 1] += slope
            sums[ray, 2] += row * slope


@_compiled
def smear(views, frames, elements, curved, middle, image, top):  # type: ignore[no-untyped-def]
    """Add to the pixels of the rows from the top one on what each view holds where they fall on the detector.

    The middle of a view is where the axis falls on it. Places first, then values: the compiler computes
    several places at a time.
    """
    n_columns, n = image.shape[1], views.shape[1]
    places, weights = np.empty(n_columns), np.ones(n_columns, image.dtype)
    for view in range(len(views)):
        values, frame = views[view], frames[view]
        for i in range(len(image)):
            pixels = image[i]
            a, b = frame[0, 0] + frame[0, 2] * (top + i), frame[0, 1]
            c, d = frame[1, 0] + frame[1, 2] * (top + i), frame[1, 1]
            for j in range(n_columns):
                along = 1 / (c + d * j)
                across = (a + b * j) * along
                weight = along * along
                if curved:
                    weight /= 1 + across * across
                    across = np.arctan(across)
                places[j] = min(max(middle[view] + elements * across, 0.0), n - 1.0)
                weights[j] = weight
            for j in range(n_columns):
                low = min(np.intp(places[j]), n - 2)
                fraction = image.dtype.type(places[j] - low)
                left = values[_Index(low)]
                pixels[j] += weights[j] * (left + fraction * (values[_Index(low + 1)] - left))

"""Microscopy: TIFF stacks."""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from numpy.typing import NDArray

from skinverse._optional import needed_from

Array = NDArray[Any]

# Names of units in files of ImageJ and OME, in micrometres. ImageJ writes the sign of micro as an escape.
_MICROMETRES = {
    "\u00c5": 1e-4,
    "nm": 1e-3,
    "um": 1.0,
    "\u00b5m": 1.0,
    "\u03bcm": 1.0,
    "\\u00B5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25.4e3,
}


class Tiff(NamedTuple):
    """Image or stack with its axes and voxel sizes, as :func:`read_tiff` gives it.

    Parameters
    ----------
    image : ndarray
        Values as they stand in the file, in its data type. Differences of unsigned integers are wrong where
        they are negative: subtract from ``image.astype(float)``.
    axes : str
        One letter for each axis: Z, Y, X are space, T is time, C channels and S the samples of a colour; Q
        and I are axes of which the file does not say what they are.
    spacing : tuple of float or None
        Distances of voxels in micrometres along those of Z, Y, X that ``axes`` has, in its order; None where
        the file does not say the distance.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.io import Tiff
    >>> stack = Tiff(np.zeros((8, 64, 64), np.uint16), "ZYX", (0.3, 0.1, 0.1))
    >>> dict(zip(stack.axes, stack.spacing))
    {'Z': 0.3, 'Y': 0.1, 'X': 0.1}
    """

    image: Array
    axes: str
    spacing: tuple[float | None, ...]


def read_tiff(path: str | os.PathLike[str]) -> Tiff:
    """Read a TIFF image or stack, with the voxel sizes that ImageJ or OME have written into it.

    Parameters
    ----------
    path : path-like
        The file. It holds one image, volume or series of images.

    Returns
    -------
    Tiff
        Named tuple ``image, axes, spacing``.

    Raises
    ------
    ModuleNotFoundError
        If tifffile is missing.
    OSError
        If the file cannot be opened.
    ValueError
        If it is not a TIFF file, or holds several images that are not one stack.

    Notes
    -----
    The resolution of a TIFF file of other programs is that of print and no voxel size. ImageJ does not write
    a distance of slices of exactly 1, which then is None here.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skinverse.datasets import make_microscopy_file
    >>> from skinverse.io import read_tiff
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cells.tif"
    >>> _ = make_microscopy_file(path, shape=(4, 32, 32), random_state=0)
    >>> stack = read_tiff(path)
    >>> stack.image.shape, stack.image.dtype.name, stack.axes
    ((4, 32, 32), 'uint16', 'ZYX')
    >>> [round(distance, 6) for distance in stack.spacing]
    [0.3, 0.1, 0.1]
    """
    with needed_from("io"):
        import tifffile
    try:
        with tifffile.TiffFile(path) as file:
            n_series = len(file.series)
            found = _read(file) if n_series == 1 else None
    except (tifffile.TiffFileError, struct.error, ValueError) as error:  # of files that end too early, too
        raise ValueError(f"{path!s}: expected a TIFF file, but: {error}") from error
    if found is None:
        raise ValueError(f"{path!s}: expected one image or stack, got {n_series} of different kinds")
    return found


def _read(file: Any) -> Tiff:
    axes, sizes = file.series[0].axes, _sizes(file)
    spacing = tuple(sizes.get(axis) for axis in axes if axis in "ZYX")
    return Tiff(file.series[0].asarray(), axes, spacing)


def _sizes(file: Any) -> dict[str, float | None]:
    """Micrometres along X, Y and Z."""
    if file.is_ome:
        return _sizes_of_ome(file.ome_metadata)
    return _sizes_of_imagej(file.imagej_metadata, file.pages.first) if file.is_imagej else {}


def _sizes_of_ome(metadata: str) -> dict[str, float | None]:
    with needed_from("io"):
        import tifffile
    image = tifffile.xml2dict(metadata)["OME"].get("Image", {})
    # Of several images the sizes are not known to be those of this one; other files hold them, too.
    pixels = image.get("Pixels", {}) if isinstance(image, dict) else {}
    return {
        axis: _micrometres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in "XYZ"
    }


def _sizes_of_imagej(metadata: dict[str, Any], page: Any) -> dict[str, float | None]:
    unit = metadata.get("unit")
    x, y = (1 / n if n else None for n in page.resolution)
    return {
        "X": _micrometres(x, unit),
        "Y": _micrometres(y, metadata.get("yunit", unit)),
        "Z": _micrometres(metadata.get("spacing"), metadata.get("zunit", unit)),
    }


def _micrometres(length: float | None, unit: str | None) -> float | None:
    """A distance; ImageJ writes a negative one for slices from the other end, and 0 is none."""
    factor = _MICROMETRES.get(unit or "")
    return None if not length or factor is None else factor * abs(float(length))

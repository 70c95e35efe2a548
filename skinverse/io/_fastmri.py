"""Magnetic resonance imaging: the HDF5 files of fastMRI."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from skinverse.io._hdf5 import dataset, opened, part

Array = NDArray[Any]

_ISMRMRD = {"": "http://www.ismrm.org/ISMRMRD"}


class FastMRI(NamedTuple):
    """Fourier samples of slices, as :func:`read_fastmri` gives them.

    Parameters
    ----------
    kspace : ndarray of shape (slices, coils, rows, columns) or (slices, rows, columns), complex
        Fourier samples on the full grid, in arbitrary units; the zero frequency is in the middle.
    mask : ndarray of shape (columns,), bool
        Columns that were measured, for ``fourier_sampling``.
    reconstruction : ndarray of shape (slices, height, width) or None
        Magnitude images of the full data in the same units: those of several coils are root sums of squares.
        They are often smaller than ``(rows, columns)``: the middle of the field of view.
    spacing : tuple of float or None
        Thickness of a slice, and distances of rows and of columns of an image of the size of ``kspace``, in
        mm; None where the file has no header.
    centred : bool
        Convention of the Fourier transform, for ``fourier_sampling``: always True.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.io import FastMRI
    >>> FastMRI(np.ones((1, 4, 4), complex), np.ones(4, bool), None, None, True).centred
    True
    """

    kspace: Array
    mask: NDArray[np.bool_]
    reconstruction: Array | None
    spacing: tuple[float, float, float] | None
    centred: bool


def read_fastmri(path: str | os.PathLike[str], *, slices: slice | None = None) -> FastMRI:
    """Read Fourier samples of magnetic resonance imaging in the HDF5 layout of fastMRI.

    Parameters
    ----------
    path : path-like
        The file. It holds ``kspace`` and may hold ``mask``, ``reconstruction_rss`` (several coils),
        ``reconstruction_esc`` (one coil) and ``ismrmrd_header``.
    slices : slice or None, default=None
        Slices to read, such as ``slice(10, 12)``; the others stay on the disk. None reads all.

    Returns
    -------
    FastMRI
        Named tuple ``kspace, mask, reconstruction, spacing, centred``. A file without ``mask`` has measured
        the columns that hold anything in the slices that were read.

    Raises
    ------
    ModuleNotFoundError
        If h5py is missing.
    OSError
        If the file cannot be opened.
    ValueError
        If it is not an HDF5 file, ``kspace`` is not there, an array has another shape or kind than expected,
        or ``slices`` holds no slice.

    References
    ----------
    .. [1] Zbontar et al., "fastMRI: an open dataset and benchmarks for accelerated MRI", arXiv:1811.08839,
       2018.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skinverse.datasets import make_fastmri_file
    >>> from skinverse.io import read_fastmri
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "head.h5"
    >>> _ = make_fastmri_file(path, random_state=0)
    >>> scan = read_fastmri(path, slices=slice(1, 2))
    >>> scan.kspace.shape, scan.mask.shape, int(scan.mask.sum())
    ((1, 4, 128, 128), (128,), 32)
    """
    with opened(path) as file:
        kspace = dataset(file, "kspace", "slices, coils, rows, columns", "slices, rows, columns", kinds="c")
        chosen = part(slices, len(kspace), "slices")
        samples = kspace[chosen]
        return FastMRI(
            kspace=samples,
            mask=_mask(file, samples),
            reconstruction=_reconstruction(file, kspace, chosen),
            spacing=_spacing(file, samples.shape[-2:]),
            centred=True,
        )


def _mask(file: Any, samples: Array) -> NDArray[np.bool_]:
    if "mask" not in file:
        return np.asarray(samples.any(axis=tuple(range(samples.ndim - 1))))
    mask = dataset(file, "mask", "columns")[:].astype(bool)
    if len(mask) != samples.shape[-1]:
        raise ValueError(
            f"{file.filename}: mask: expected one number for each of the {samples.shape[-1]} columns of"
            f" kspace, got {len(mask)}"
        )
    return mask


def _reconstruction(file: Any, kspace: Any, chosen: slice) -> Array | None:
    name = "reconstruction_rss" if kspace.ndim == 4 else "reconstruction_esc"
    if name not in file:
        return None
    images = dataset(file, name, "slices, height, width")
    if len(images) != len(kspace):
        raise ValueError(
            f"{file.filename}: {name}: expected an image for each of {len(kspace)} slices, got {len(images)}"
        )
    return images[chosen]


def _spacing(file: Any, shape: tuple[int, ...]) -> tuple[float, float, float] | None:
    """The encoded field of view over the size of the grid. The header calls the direction of the rows y."""
    if "ismrmrd_header" not in file:
        return None
    try:
        header = ElementTree.fromstring(file["ismrmrd_header"][()])
        view = header.find("encoding/encodedSpace/fieldOfView_mm", _ISMRMRD)
        x, y, z = (_length(view.findtext(axis, namespaces=_ISMRMRD)) for axis in "xyz")  # type: ignore
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file.filename}: ismrmrd_header: expected an ISMRMRD header with the encoded field of view"
        ) from error
    return z, x / shape[0], y / shape[1]


def _length(text: str) -> float:
    """A number of millimetres.

    Raises
    ------
    ValueError
        If it is none.
    """
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)

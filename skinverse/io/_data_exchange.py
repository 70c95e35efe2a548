"""Synchrotron tomography: HDF5 files of the Data Exchange format."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skinverse.io._hdf5 import dataset, opened, part

Array = NDArray[Any]


class DataExchange(NamedTuple):
    """Projections of parallel X-rays, as :func:`read_data_exchange` gives them.

    Parameters
    ----------
    counts : ndarray of shape (angles, rows, columns)
        Values of the detector with the sample in the beam, as they stand in the file.
    flat : ndarray of shape (rows, columns)
        Mean values without the sample.
    dark : ndarray of shape (rows, columns)
        Mean values without the beam.
    angles : ndarray of shape (angles,)
        Angles of the projections in radians, for ``parallel_beam``.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.io import DataExchange
    >>> scan = DataExchange(np.full((1, 1, 2), 110), np.full((1, 2), 210), np.full((1, 2), 10), np.zeros(1))
    >>> (scan.counts - scan.dark) / (scan.flat - scan.dark)
    array([[[0.5, 0.5]]])
    """

    counts: Array
    flat: Array
    dark: Array
    angles: Array


def read_data_exchange(path: str | os.PathLike[str], *, rows: slice | None = None) -> DataExchange:
    """Read projections, flat fields, dark fields and angles of a Data Exchange file.

    Each row of the detector sees one slice of the sample. The format is that of tomography at the Advanced
    Photon Source.

    Parameters
    ----------
    path : path-like
        The HDF5 file. It holds ``exchange/data``, ``exchange/data_white``, ``exchange/data_dark`` and, in
        degrees, ``exchange/theta``.
    rows : slice or None, default=None
        Rows of the detector to read, such as ``slice(500, 516)``; the others stay on the disk. None reads
        all.

    Returns
    -------
    DataExchange
        Named tuple ``counts, flat, dark, angles``. The means are in single precision. The size of a pixel is
        not among them, because the format has no one place for it.

    Raises
    ------
    ModuleNotFoundError
        If h5py is missing.
    OSError
        If the file cannot be opened.
    ValueError
        If it is not an HDF5 file, an array is not there or of another shape than expected, the angles are not
        in degrees, or ``rows`` holds no row.

    References
    ----------
    .. [1] De Carlo et al., "Scientific data exchange: a schema for HDF5-based storage of raw and analyzed
       data", Journal of Synchrotron Radiation 21(6), 2014.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from skinverse.datasets import make_data_exchange_file
    >>> from skinverse.io import read_data_exchange
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.h5"
    >>> _ = make_data_exchange_file(path, n_angles=6, random_state=0)
    >>> scan = read_data_exchange(path, rows=slice(0, 2))
    >>> scan.counts.shape, scan.flat.shape
    ((6, 2, 183), (2, 183))
    >>> integrals = -np.log((scan.counts - scan.dark) / (scan.flat - scan.dark))
    >>> integrals.swapaxes(0, 1).shape  # a sample for each row
    (2, 6, 183)
    """
    with opened(path) as file:
        data = dataset(file, "exchange/data", "angles, rows, columns")
        chosen = part(rows, data.shape[1], "rows")
        return DataExchange(
            counts=data[:, chosen],
            flat=_mean(file, "exchange/data_white", data, chosen),
            dark=_mean(file, "exchange/data_dark", data, chosen),
            angles=_angles(file, len(data)),
        )


def _mean(file: Any, name: str, data: Any, chosen: slice) -> Array:
    frames = dataset(file, name, "frames, rows, columns")
    if frames.shape[1:] != data.shape[1:] or not len(frames):
        raise ValueError(
            f"{file.filename}: {name}: expected one or more frames of the shape {data.shape[1:]} of"
            f" exchange/data, got the shape {frames.shape}"
        )
    return np.asarray(frames[:, chosen].mean(axis=0, dtype=np.float64), np.float32)


def _angles(file: Any, n_angles: int) -> Array:
    theta = dataset(file, "exchange/theta", "angles")
    if len(theta) != n_angles:
        raise ValueError(
            f"{file.filename}: exchange/theta: expected {n_angles} angles, as in exchange/data,"
            f" got {len(theta)}"
        )
    units = np.ravel(theta.attrs.get("units", "deg")).astype(str)
    if not all(unit.strip().lower().startswith("deg") for unit in units):
        raise ValueError(
            f"{file.filename}: exchange/theta: expected degrees, got the unit {', '.join(units)!r}"
        )
    if not np.isfinite(theta[:]).all():
        raise ValueError(f"{file.filename}: exchange/theta: expected finite angles, got NaN or inf")
    return np.deg2rad(theta[:], dtype=np.float64)

"""Medical images: the slices of one DICOM series."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skinverse._optional import needed_from

Array = NDArray[Any]

# What all slices of a series have in common.
_COMMON = ("SeriesInstanceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
# Positions are rounded in files; a slice that is missing or a tilt of the gantry moves more than this part of
# the distance.
_TOLERANCE = 0.05
# How many numbers describe where pixels lie.
_N_NUMBERS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}


class DicomSeries(NamedTuple):
    """Slices of one series, as :func:`read_dicom_series` gives them.

    Parameters
    ----------
    volume : ndarray of shape (slices, rows, columns), float32
        Values in ``unit``, the slices in the order of their positions along ``rows x columns``.
    spacing : tuple of float
        Distances of slices, rows and columns in mm. For one slice the first is its thickness, or NaN where
        the file does not say it.
    unit : str or None
        Unit of the values as the files name it: ``"HU"`` for computed tomography, where air is -1000 and
        water 0, ``"BQML"`` (Bq/ml) for most emission tomography; None where they do not, as in magnetic
        resonance imaging.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.io import DicomSeries
    >>> series = DicomSeries(np.full((1, 2, 2), -1000.0), (5.0, 0.66, 0.66), "HU")
    >>> attenuation = 0.0192 * (1 + series.volume / 1000)  # per mm, with that of water at 70 keV
    >>> float(attenuation.max())
    0.0
    """

    volume: Array
    spacing: tuple[float, float, float]
    unit: str | None


def read_dicom_series(folder: str | os.PathLike[str]) -> DicomSeries:
    """Read the slices of one DICOM series, in the order of their positions and in their units.

    Parameters
    ----------
    folder : path-like
        A folder with the files of one series and no others but hidden ones, or one file. The names do not
        matter.

    Returns
    -------
    DicomSeries
        Named tuple ``volume, spacing, unit``. Values are those stored, with the rescaling that the file asks
        for. Pixels outside of the scanner's field of view keep the value by which the scanner marks them.

    Raises
    ------
    ModuleNotFoundError
        If pydicom is missing.
    OSError
        If a file cannot be opened.
    RuntimeError
        If pixels are compressed in a way for which pydicom needs another package.
    ValueError
        If a file is not a grey DICOM image of one frame, the files are of several series, or their slices do
        not lie one behind the other at equal distances.

    Examples
    --------
    >>> from pydicom.data import get_testdata_file
    >>> from skinverse.io import read_dicom_series
    >>> series = read_dicom_series(get_testdata_file("CT_small.dcm"))  # a slice of a chest
    >>> series.volume.shape, series.spacing, series.unit
    ((1, 128, 128), (5.0, 0.661468, 0.661468), 'HU')
    >>> float(series.volume.min()), float(series.volume.max())
    (-896.0, 1167.0)
    """
    images = [_read(file) for file in _files(Path(folder))]
    for keyword in _COMMON:
        if any(image[keyword].value != images[0][keyword].value for image in images):
            raise ValueError(f"{folder}: expected one series, got files with different {keyword}")
    normal, positions = _geometry(images)
    order = np.argsort(positions @ normal)
    images, positions = [images[i] for i in order], positions[order]
    rows, columns = map(float, images[0].PixelSpacing)
    return DicomSeries(
        volume=np.stack([_values(image) for image in images]),
        spacing=(_distance(images[0], positions, normal), rows, columns),
        unit=_unit(images[0]),
    )


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return [folder]
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: expected the files of a DICOM series, got a folder without files")
    return files


def _read(file: Path) -> Any:
    with needed_from("io"):
        import pydicom
    try:
        image = pydicom.dcmread(file)
    except pydicom.errors.InvalidDicomError as error:
        raise ValueError(f"{file}: expected a DICOM file, which this is not") from error
    needed = (*_COMMON, "ImagePositionPatient", "SamplesPerPixel", "PixelData")
    missing = [keyword for keyword in needed if image.get(keyword) is None]
    if missing:
        raise ValueError(f"{file}: expected a slice of a series, got a DICOM file without {missing[0]}")
    if image.SamplesPerPixel != 1 or int(image.get("NumberOfFrames") or 1) != 1:
        raise ValueError(
            f"{file}: expected one grey frame, got {image.get('NumberOfFrames') or 1} of"
            f" {image.SamplesPerPixel} values per pixel"
        )
    for keyword, n in _N_NUMBERS.items():
        numbers = np.ravel(image[keyword].value).astype(float)
        if len(numbers) != n or not np.isfinite(numbers).all():
            raise ValueError(f"{file}: expected {n} numbers {keyword}, got {numbers.tolist()}")
    if min(image.PixelSpacing) <= 0:
        raise ValueError(f"{file}: expected distances > 0, got PixelSpacing {list(image.PixelSpacing)}")
    return image


def _geometry(images: list[Any]) -> tuple[Array, Array]:
    """The normal of the slices, and the position of each."""
    orientation = np.array(images[0].ImageOrientationPatient, dtype=float)
    positions = np.array([image.ImagePositionPatient for image in images], dtype=float)
    return np.cross(orientation[:3], orientation[3:]), positions


def _distance(first: Any, positions: Array, normal: Array) -> float:
    """The distance of neighbouring slices, if it is the same everywhere."""
    if len(positions) == 1:
        thickness = float(first.get("SliceThickness") or np.nan)
        return thickness if thickness > 0 else np.nan
    steps = np.diff(positions, axis=0)
    distance = float((steps @ normal).mean())
    if not np.abs(steps - distance * normal).max() < _TOLERANCE * distance:
        lengths = np.linalg.norm(steps, axis=1)
        raise ValueError(
            f"series {first.SeriesInstanceUID}: expected slices one behind the other at equal"
            f" distances, got steps of {lengths.min():.4g} to {lengths.max():.4g} mm between"
            f" {len(positions)} slices"
        )
    return distance


def _values(image: Any) -> Array:
    with needed_from("io"):
        from pydicom.pixels import apply_modality_lut
    return np.asarray(apply_modality_lut(image.pixel_array, image), dtype=np.float32)


def _unit(image: Any) -> str | None:
    rescaled = image.get("RescaleType")
    named = image.get("Units") or (rescaled if rescaled != "US" else None)  # "US" is unspecified
    return named or ("HU" if image.get("Modality") == "CT" else None)

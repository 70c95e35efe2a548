"""Files that the tests write themselves by h5py, pydicom and tifffile, and those that datasets simulate."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pydicom
import pytest
import tifffile
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.signal import convolve

from skinverse.datasets import make_data_exchange_file, make_fastmri_file, make_microscopy_file, shepp_logan
from skinverse.io import read_data_exchange, read_dicom_series, read_fastmri, read_tiff
from skinverse.operators import parallel_beam
from skinverse.preprocessing import find_rotation_axis, minus_log

MANY = 10**12  # slices or rows that fit in no memory: chunks that nobody wrote take no place on the disk


def written(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def without(arrays: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: values for key, values in arrays.items() if key != name}


# ---------------------------------------------------------------------- fastMRI
HEADER = b"""<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>4</x><y>6</y><z>1</z></matrixSize>
<fieldOfView_mm><x>320</x><y>240</y><z>4.5</z></fieldOfView_mm></encodedSpace>
<reconSpace><fieldOfView_mm><x>160</x><y>160</y><z>4.5</z></fieldOfView_mm></reconSpace>
</encoding></ismrmrdHeader>"""


def scan(n_coils: int | None = 2) -> dict[str, Any]:
    """Three slices of 4 x 6 samples."""
    rng = np.random.default_rng(0)
    shape = (3, 4, 6) if n_coils is None else (3, n_coils, 4, 6)
    kspace = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    images = {f"reconstruction_{kind}": rng.random((3, 2, 2), dtype=np.float32) for kind in ("rss", "esc")}
    return {"kspace": kspace, "mask": np.array([1, 0, 1, 1, 0, 1], np.float32), **images}


def test_fastmri_is_read_as_it_stands(tmp_path: Path) -> None:
    arrays = scan() | {"ismrmrd_header": HEADER}
    found = read_fastmri(written(tmp_path / "a.h5", arrays))
    assert found.kspace.dtype == np.complex64
    assert_array_equal(found.kspace, arrays["kspace"])
    assert_array_equal(found.mask, [True, False, True, True, False, True])
    assert_array_equal(found.reconstruction, arrays["reconstruction_rss"])
    assert found.spacing == (4.5, 320 / 4, 240 / 6)
    assert found.centred is True


def test_one_coil_has_three_axes_and_its_own_reconstruction(tmp_path: Path) -> None:
    arrays = scan(n_coils=None)
    found = read_fastmri(written(tmp_path / "a.h5", arrays))
    assert_array_equal(found.kspace, arrays["kspace"])
    assert_array_equal(found.reconstruction, arrays["reconstruction_esc"])


@pytest.mark.parametrize("n_coils", [None, 2])
def test_without_a_mask_the_columns_that_hold_anything_were_measured(
    n_coils: int | None, tmp_path: Path
) -> None:
    kspace = scan(n_coils)["kspace"]
    kspace[..., [0, 5]] = 0
    kspace[..., 1:, 3] = 0  # the first row still holds something
    found = read_fastmri(written(tmp_path / "a.h5", {"kspace": kspace}))
    assert_array_equal(found.mask, [False, True, True, True, True, False])
    assert found.reconstruction is None
    assert found.spacing is None


@pytest.mark.parametrize("slices", [slice(1, 2), slice(None, None, 2), slice(-2, None)])
def test_slices_are_those_asked_for(slices: slice, tmp_path: Path) -> None:
    arrays = scan()
    found = read_fastmri(written(tmp_path / "a.h5", arrays), slices=slices)
    assert_array_equal(found.kspace, arrays["kspace"][slices])
    assert_array_equal(found.reconstruction, arrays["reconstruction_rss"][slices])


def test_other_slices_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kspace = file.create_dataset("kspace", (MANY, 2, 4, 6), "complex64", chunks=(1, 2, 4, 6))
        kspace[-1] = 1
        file.create_dataset("reconstruction_rss", (MANY, 4, 6), "float32", chunks=(1, 4, 6))
    found = read_fastmri(tmp_path / "a.h5", slices=slice(-1, None))
    assert found.kspace.shape == (1, 2, 4, 6)
    assert found.mask.all()
    assert found.reconstruction is not None
    assert found.reconstruction.shape == (1, 4, 6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without(scan(), "kspace"), "expected a data set 'kspace', which is not there"),
        ({"kspace/data": np.ones(3)}, "expected a data set 'kspace', which is not there"),
        (
            {"kspace": np.ones((4, 6), complex)},
            r"\(slices, coils, rows, columns\) or \(slices, rows, columns\), got the shape \(4, 6\)",
        ),
        ({"kspace": np.ones((3, 4, 6))}, "kspace: expected complex numbers, got float64"),
        (scan() | {"mask": np.ones((4, 6))}, r"mask: expected the axes \(columns\), got the shape \(4, 6\)"),
        (scan() | {"mask": np.ones(5)}, "mask: expected one number for each of the 6 columns .* got 5"),
        (scan() | {"reconstruction_rss": np.ones((2, 4, 4))}, "an image for each of 3 slices, got 2"),
        (scan() | {"ismrmrd_header": b"<a>"}, "ismrmrd_header: expected an ISMRMRD header"),
        (scan() | {"ismrmrd_header": b"<a/>"}, "ismrmrd_header: expected an ISMRMRD header"),
        (
            scan() | {"ismrmrd_header": HEADER.replace(b"<x>320", b"<x>0")},
            "ismrmrd_header: expected an ISMRMRD header",
        ),
        (scan() | {"mask": np.array([b"a"] * 6)}, "mask: expected real numbers, got"),
    ],
)
def test_what_is_wrong_with_a_fastmri_file_is_said(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_fastmri(written(tmp_path / "a.h5", arrays))
    assert "a.h5" in str(error.value)


@pytest.mark.parametrize("slices", [slice(3, 5), slice(2, 0, -1), slice(1, 1)])
def test_a_selection_of_nothing_is_said(slices: slice, tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", scan())
    with pytest.raises(ValueError, match="slices: expected a slice that holds some of 0 to 2 upwards, got"):
        read_fastmri(path, slices=slices)
    with pytest.raises(TypeError, match=r"slices: expected a slice such as slice\(10, 12\), got 1"):
        read_fastmri(path, slices=1)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- Data Exchange
def tomography() -> dict[str, Any]:
    """Five angles, three rows, four columns."""
    rng = np.random.default_rng(0)
    sizes = {"data": 5, "data_white": 2, "data_dark": 6}
    frames = {f"exchange/{k}": rng.integers(0, 9000, (n, 3, 4)).astype(np.uint16) for k, n in sizes.items()}
    return frames | {"exchange/theta": np.array([0, 45.0, 90, 135, 180])}


@pytest.mark.parametrize("rows", [None, slice(1, 3), slice(0, None, 2)])
def test_data_exchange_is_read_by_rows(rows: slice | None, tmp_path: Path) -> None:
    arrays = tomography()
    chosen = slice(None) if rows is None else rows
    found = read_data_exchange(written(tmp_path / "a.h5", arrays), rows=rows)
    assert found.counts.dtype == np.uint16
    assert_array_equal(found.counts, arrays["exchange/data"][:, chosen])
    assert_allclose(found.flat, arrays["exchange/data_white"].mean(0)[chosen], rtol=1e-6)
    assert_allclose(found.dark, arrays["exchange/data_dark"].mean(0)[chosen], rtol=1e-6)
    assert_allclose(found.angles, np.arange(5) * np.pi / 4)


def test_other_rows_are_not_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in ("data", "data_white", "data_dark"):
            file.create_dataset(f"exchange/{name}", (2, MANY, 4), "uint16", chunks=(1, 8, 4))
        file["exchange/theta"] = [0.0, 90.0]
    assert read_data_exchange(tmp_path / "a.h5", rows=slice(-2, None)).counts.shape == (2, 2, 4)


@pytest.mark.parametrize("kind", ["uint8", "int16", "float16"])
def test_angles_are_as_precise_as_the_file_tells_them(kind: str, tmp_path: Path) -> None:
    theta = {"exchange/theta": np.array([0, 45, 90, 135, 180]).astype(kind)}
    found = read_data_exchange(written(tmp_path / "a.h5", tomography() | theta))
    assert_allclose(found.angles, np.arange(5) * np.pi / 4, rtol=1e-14)


@pytest.mark.parametrize("unit", ["deg", "degrees", b"Degree"])
def test_units_of_degrees_are_taken(unit: str | bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", tomography())
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = unit
    assert read_data_exchange(path).angles[-1] == pytest.approx(np.pi)


def test_other_units_of_angles_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", tomography())
    with h5py.File(path, "a") as file:
        file["exchange/theta"].attrs["units"] = "rad"
    with pytest.raises(ValueError, match="exchange/theta: expected degrees, got the unit 'rad'"):
        read_data_exchange(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        *[
            (without(tomography(), name), f"expected a data set '{name}', which is not there")
            for name in tomography()
        ],
        (
            tomography() | {"exchange/data": np.ones((5, 3))},
            r"exchange/data: expected the axes \(angles, rows, columns\), got the shape \(5, 3\)",
        ),
        (
            tomography() | {"exchange/data_dark": np.ones((2, 3, 5))},
            r"exchange/data_dark: expected .* shape \(3, 4\) of exchange/data, got the shape \(2, 3, 5\)",
        ),
        (
            tomography() | {"exchange/data_white": np.ones((0, 3, 4))},
            r"exchange/data_white: expected one or more frames .* got the shape \(0, 3, 4\)",
        ),
        (tomography() | {"exchange/theta": np.ones(4)}, "expected 5 angles, as in exchange/data, got 4"),
        (tomography() | {"exchange/theta": np.array([b"a"] * 5)}, "exchange/theta: expected real numbers"),
        (tomography() | {"exchange/theta": np.full(5, np.nan)}, "exchange/theta: expected finite angles"),
        (
            tomography() | {"exchange/data": np.ones((5, 3, 4), complex)},
            "exchange/data: expected real numbers",
        ),
    ],
)
def test_what_is_wrong_with_a_data_exchange_file_is_said(
    arrays: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_data_exchange(written(tmp_path / "a.h5", arrays))


# ---------------------------------------------------------------------- DICOM
SERIES = generate_uid(entropy_srcs=["skinverse"])


def write_slice(path: Path, stored: np.ndarray, position: tuple[float, ...], **others: Any) -> None:
    """A CT slice; ``others`` replace its elements, None removes them."""
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    image.SeriesInstanceUID, image.Modality = SERIES, "CT"
    image.Rows, image.Columns = stored.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelSpacing, image.SliceThickness = [0.8, 0.7], 3
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], list(position)
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = stored.astype("<u2").tobytes()
    for keyword, value in others.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    image.save_as(path, enforce_file_format=True)


def write_series(folder: Path, heights: list[float], **others: Any) -> np.ndarray:
    """Slices of 2 x 3 pixels, the first file at the first height."""
    stored = np.arange(6 * len(heights)).reshape(-1, 2, 3)
    for i, height in enumerate(heights):
        write_slice(folder / f"{i}.dcm", stored[i], (-10.0, 5.0, height), **others)
    return stored - 1024


def test_slices_are_sorted_by_position_and_in_hounsfield_units(tmp_path: Path) -> None:
    values = write_series(tmp_path, [2.5, -5.0, 0.0, -2.5])
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    found = read_dicom_series(tmp_path)
    assert_array_equal(found.volume, values[[1, 3, 2, 0]])
    assert found.volume.dtype == np.float32
    assert found.spacing == pytest.approx((2.5, 0.8, 0.7))
    assert found.unit == "HU"


def test_the_order_is_along_the_normal_of_the_slices(tmp_path: Path) -> None:
    rows, columns = np.array([0, 0.6, -0.8]), np.array([1.0, 0, 0])
    normal = np.cross(rows, columns)
    stored = np.arange(18).reshape(3, 2, 3)
    for name, (image, step) in enumerate(zip(stored, [1, 2, 0], strict=True)):
        place = tuple(np.round(np.array([3.0, 1, 2]) + 1.7 * step * normal, 3))
        write_slice(tmp_path / f"{name}", image, place, ImageOrientationPatient=[*rows, *columns])
    found = read_dicom_series(tmp_path)
    assert_array_equal(found.volume + 1024, stored[[2, 0, 1]])
    assert found.spacing[0] == pytest.approx(1.7, abs=1e-3)


def test_each_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    stored = np.array([[1, 2], [3, 40000]])
    for i, slope in enumerate([0.5, 2]):
        others = {"RescaleSlope": slope, "RescaleIntercept": 0, "Modality": "PT", "Units": "BQML"}
        write_slice(tmp_path / f"{i}", stored, (0, 0, i), **others)
    found = read_dicom_series(tmp_path)
    assert_array_equal(found.volume, np.stack([0.5 * stored, 2 * stored]))
    assert found.unit == "BQML"


def test_an_unspecified_rescaling_names_no_unit(tmp_path: Path) -> None:
    for modality, unit in {"CT": "HU", "MR": None}.items():
        write_slice(tmp_path / modality, np.ones((2, 3)), (0, 0, 0), Modality=modality, RescaleType="US")
        assert read_dicom_series(tmp_path / modality).unit == unit


def test_images_without_a_unit_and_without_a_thickness(tmp_path: Path) -> None:
    stored = np.arange(6).reshape(2, 3)
    absent = dict.fromkeys(["RescaleSlope", "RescaleIntercept", "SliceThickness"])
    write_slice(tmp_path / "a", stored, (0, 0, 0), Modality="MR", **absent)
    found = read_dicom_series(tmp_path / "a")
    assert_array_equal(found.volume, stored[None])
    assert found.unit is None
    assert np.isnan(found.spacing[0])


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0, 1, 2, 4, 5], "equal distances, got steps of 1 to 2 mm between 5 slices"),
        ([0, 1, 1, 2], "equal distances, got steps of 0 to 1 mm between 4 slices"),
        ([3, 3], "equal distances, got steps of 0 to 0 mm between 2 slices"),
    ],
)
def test_missing_and_double_slices_are_said(heights: list[float], message: str, tmp_path: Path) -> None:
    write_series(tmp_path, heights)
    with pytest.raises(ValueError, match=message):
        read_dicom_series(tmp_path)


def test_a_tilted_stack_is_refused(tmp_path: Path) -> None:
    for i in range(3):
        write_slice(tmp_path / f"{i}", np.ones((2, 2)), (0, 0.2 * i, 1.0 * i))
    with pytest.raises(
        ValueError, match="one behind the other at equal distances, got steps of 1.02 to 1.02"
    ):
        read_dicom_series(tmp_path)


def one(**others: Any) -> Callable[[Path], None]:
    """A series of which one slice differs."""

    def write(folder: Path) -> None:
        write_series(folder, [0, 1])
        write_slice(folder / "2.dcm", np.ones((2, 3)), (-10, 5, 2), **others)

    return write


COLOUR = {
    "SamplesPerPixel": 3,
    "PlanarConfiguration": 0,
    "PhotometricInterpretation": "RGB",
    "PixelData": bytes(36),
}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (one(SeriesInstanceUID="1.2.3"), "expected one series, got files with different SeriesInstanceUID"),
        (one(PixelSpacing=[1, 1]), "expected one series, got files with different PixelSpacing"),
        (one(Rows=3, PixelData=bytes(18)), "expected one series, got files with different Rows"),
        (one(ImagePositionPatient=None), "2.dcm: .* got a DICOM file without ImagePositionPatient"),
        (one(PixelData=None), "2.dcm: expected a slice of a series, got a DICOM file without PixelData"),
        (one(SamplesPerPixel=None), "2.dcm: .* got a DICOM file without SamplesPerPixel"),
        (one(PixelSpacing=""), "2.dcm: .* got a DICOM file without PixelSpacing"),
        (
            lambda folder: write_series(folder, [0], PixelSpacing=[0, 1]),
            "expected distances > 0, got PixelSpacing",
        ),
        (one(ImagePositionPatient=[0, 0]), "2.dcm: expected 3 numbers ImagePositionPatient, got"),
        (
            lambda folder: write_series(folder, [0], ImageOrientationPatient=[1, 0, 0]),
            "expected 6 numbers ImageOrientationPatient",
        ),
        (one(NumberOfFrames=2, PixelData=bytes(24)), "expected one grey frame, got 2 of 1 values per pixel"),
        (one(**COLOUR), "2.dcm: expected one grey frame, got 1 of 3 values per pixel"),
        (
            lambda folder: (folder / "notes.txt").write_text("a" * 200),
            "notes.txt: expected a DICOM file, which",
        ),
        (lambda folder: None, "got a folder without files"),
    ],
)
def test_what_is_wrong_with_a_series_is_said(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_dicom_series(tmp_path)


# ---------------------------------------------------------------------- TIFF
STACK = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)


def imagej(unit: str, spacing: float | None = 0.25) -> dict[str, Any]:
    """Arguments of tifffile for pixels of 0.5 (y) and 0.2 (x) units."""
    depth = {} if spacing is None else {"spacing": spacing}
    return {"imagej": True, "resolution": (5, 2), "metadata": {"axes": "ZYX", "unit": unit, **depth}}


OME = {
    "axes": "ZYX",
    "PhysicalSizeX": 65.0,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 0.07,
    "PhysicalSizeZ": 0.3,
    "PhysicalSizeZUnit": "\u00b5m",
}


@pytest.mark.parametrize(
    ("options", "axes", "spacing"),
    [
        (imagej("um"), "ZYX", (0.25, 0.5, 0.2)),
        (imagej("micron"), "ZYX", (0.25, 0.5, 0.2)),
        (imagej("\\u00B5m"), "ZYX", (0.25, 0.5, 0.2)),
        (imagej("nm"), "ZYX", (0.25e-3, 0.5e-3, 0.2e-3)),
        (imagej("mm", spacing=None), "ZYX", (None, 500, 200)),
        (imagej("um", spacing=-0.25), "ZYX", (0.25, 0.5, 0.2)),  # slices from the other end
        (imagej("um", spacing=0.0), "ZYX", (None, 0.5, 0.2)),
        (imagej("pixel"), "ZYX", (None, None, None)),
        ({"imagej": True, "metadata": {"axes": "TYX"}}, "TYX", (None, None)),
        ({"ome": True, "metadata": OME}, "ZYX", (0.3, 0.07, 0.065)),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, "ZYX", (None, None, None)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, "QYX", (None, None)),
    ],
)
def test_voxel_sizes_are_in_micrometres(
    options: dict[str, Any], axes: str, spacing: tuple[float | None, ...], tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", **options)
    found = read_tiff(tmp_path / "a.tif")
    assert_array_equal(found.image, STACK)
    assert found.image.dtype == np.uint16
    assert found.axes == axes
    assert [type(d) for d in found.spacing] == [type(d) for d in map(to_float, spacing)]
    assert [d for d in found.spacing if d] == pytest.approx([d for d in spacing if d])


def to_float(distance: float | None) -> float | None:
    return None if distance is None else float(distance)


@pytest.mark.parametrize("inside", ["<Instrument/>", '<BinaryOnly MetadataFile="b.ome.tif"/>'])
def test_descriptions_without_one_image_tell_no_sizes(inside: str, tmp_path: Path) -> None:
    xml = (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{inside}</OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[0], description=xml, metadata=None)
    assert read_tiff(tmp_path / "a.ome.tif").spacing == (None, None)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", "float32", "float64"])
def test_the_data_type_is_kept(dtype: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0].astype(dtype))
    found = read_tiff(tmp_path / "a.tif")
    assert found.image.dtype.newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
    assert found.axes == "YX"
    assert_array_equal(found.image, STACK[0])


def test_several_images_that_are_no_stack_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(STACK[0], photometric="minisblack")
        file.write(STACK[0, :2], photometric="minisblack")
    with pytest.raises(ValueError, match=r"a.tif: expected one image or stack, got 2 of different kinds"):
        read_tiff(tmp_path / "a.tif")


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "whole.tif", STACK, photometric="minisblack", **imagej("um"))
    whole = (tmp_path / "whole.tif").read_bytes()
    for length in (12, len(whole) // 2):
        (tmp_path / "part.tif").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="part.tif: expected a TIFF file, but"):
            read_tiff(tmp_path / "part.tif")


# ---------------------------------------------------------------------- all readers
@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (read_fastmri, "an HDF5"),
        (read_data_exchange, "an HDF5"),
        (read_dicom_series, "a DICOM"),
        (read_tiff, "a TIFF"),
    ],
)
def test_files_of_other_kinds_and_files_that_are_not_there(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"no such kind of file" * 20)
    with pytest.raises(ValueError, match=f"{tmp_path / 'a'}: expected {kind} file"):
        read(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="missing"):
        read(tmp_path / "missing")


@pytest.mark.parametrize(
    ("call", "library"),
    [
        (read_fastmri, "h5py"),
        (read_data_exchange, "h5py"),
        (read_dicom_series, "pydicom"),
        (read_tiff, "tifffile"),
        (make_fastmri_file, "h5py"),
        (make_data_exchange_file, "h5py"),
        (make_microscopy_file, "tifffile"),
    ],
)
def test_a_missing_library_is_named(
    call: Callable[[Path], object], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {library}: pip install 'skinverse\[io\]'"):
        call(tmp_path / "a")


# ---------------------------------------------------------------------- simulated files
def centred_fourier(n: int) -> np.ndarray:
    """The matrix of the orthonormal transform with both origins in the middle."""
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


@pytest.mark.parametrize("size", [24, 15])
def test_simulated_kspace_is_that_of_the_images(size: int, tmp_path: Path) -> None:
    given = np.random.default_rng(0).random((2, size, size), dtype=np.float32)
    images, maps = make_fastmri_file(tmp_path / "a.h5", given, std=0.0)
    found = read_fastmri(tmp_path / "a.h5")
    assert_array_equal(images, given)
    assert_allclose((np.abs(maps) ** 2).sum(0), 1, rtol=1e-5)
    F = centred_fourier(size)
    expected = F @ (maps * images[:, None]) @ F.T
    assert found.kspace.dtype == np.complex64
    assert_allclose(found.kspace, np.where(found.mask, expected, 0), atol=1e-5)
    assert found.mask.sum() == size // 4
    assert found.mask[size // 2]
    assert_allclose(found.reconstruction, images.real, atol=1e-5)


def test_simulated_kspace_has_the_noise_asked_for(tmp_path: Path) -> None:
    images = np.zeros((4, 64, 64))
    make_fastmri_file(tmp_path / "a.h5", images, std=0.3, random_state=0)
    found = read_fastmri(tmp_path / "a.h5")
    samples = found.kspace[..., found.mask]
    assert samples.real.std() == pytest.approx(0.3, rel=0.02)
    assert samples.imag.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(samples.real.ravel(), samples.imag.ravel())[0, 1]) < 0.02


def test_simulated_scan_is_that_of_the_images(tmp_path: Path) -> None:
    heads = 0.05 * np.stack([shepp_logan(32), shepp_logan(32).T])
    images = make_data_exchange_file(tmp_path / "a.h5", heads, n_angles=12, random_state=0)
    found = read_data_exchange(tmp_path / "a.h5")
    assert_array_equal(images, heads)
    assert_allclose(found.angles, np.arange(12) * np.pi / 12)
    assert found.counts.dtype == np.uint16
    assert_allclose(found.dark, 100, atol=4)  # ten frames of deviation 2
    beam = found.flat - found.dark
    assert 0.9e4 < beam.max() < 1.1e4
    A = parallel_beam((32, 32), found.angles, found.counts.shape[2])
    integrals = np.stack([(A @ x.ravel()).reshape(A.dimsd) for x in images]).swapaxes(0, 1)
    mean = beam * np.exp(-integrals) + found.dark
    # The flat and the dark field are means of ten frames each, whose noise is seen as well.
    variance = mean - found.dark + 4 + np.exp(-2 * integrals) * beam / 10 + 0.4
    residual = (found.counts - mean) / np.sqrt(variance)
    assert abs(residual.mean()) < 0.1
    assert residual.std() == pytest.approx(1, abs=0.05)


def test_a_simulated_axis_is_found_where_it_was_put(tmp_path: Path) -> None:
    make_data_exchange_file(tmp_path / "a.h5", 0.05 * shepp_logan(64)[None], offset=-4.6, random_state=0)
    found = read_data_exchange(tmp_path / "a.h5")
    data = minus_log(found.counts[:, 0], found.flat[0], found.dark[0]).data
    assert find_rotation_axis(data, found.angles) == pytest.approx(-4.6, abs=0.1)


def test_pixels_that_drift_are_wrong_in_all_views(tmp_path: Path) -> None:
    air = {"n_angles": 50, "photons": 3e4, "random_state": 0}
    make_data_exchange_file(tmp_path / "a.h5", np.zeros((2, 32, 32)), n_drifted=5, **air)
    found = read_data_exchange(tmp_path / "a.h5")
    wrong = abs(minus_log(found.counts, found.flat, found.dark).data.mean(1)) > 0.01
    assert_array_equal(wrong.sum(1), 5)
    assert (wrong[0] != wrong[1]).any()


def test_simulated_stack_is_the_blurred_specimen_with_the_noise_of_the_camera(tmp_path: Path) -> None:
    camera = {"photons": 40.0, "gain": 5.0, "std": 3.0, "offset": 200.0}
    specimen, psf = make_microscopy_file(tmp_path / "a.tif", (5, 40, 48), **camera, random_state=0)
    found = read_tiff(tmp_path / "a.tif")
    assert found.image.shape == (5, 40, 48)
    assert found.image.dtype == np.uint16
    assert found.axes == "ZYX"
    assert found.spacing == pytest.approx((0.3, 0.1, 0.1))
    assert psf.sum() == pytest.approx(1)
    assert specimen.min() >= 0
    blurred = convolve(specimen.astype(float), psf, mode="valid", method="direct")
    assert blurred.max() == pytest.approx(5 * 40, rel=1e-5)
    variance = 5 * blurred + 9 + 1 / 12  # the last is that of rounding
    residual = (found.image.astype(float) - 200 - blurred) / np.sqrt(variance)
    assert abs(residual.mean()) < 4 / np.sqrt(residual.size)
    assert residual.std() == pytest.approx(1, abs=0.03)
    bright = blurred > 50
    assert residual[bright].std() == pytest.approx(1, abs=0.1)


MAKERS = [
    (
        lambda path, seed: make_fastmri_file(path, np.ones((1, 8, 8)), random_state=seed),
        read_fastmri,
    ),
    (
        lambda path, seed: make_data_exchange_file(path, np.eye(8)[None] / 8, n_angles=3, random_state=seed),
        read_data_exchange,
    ),
    (lambda path, seed: make_microscopy_file(path, (2, 16, 16), random_state=seed), read_tiff),
]


@pytest.mark.parametrize(("make", "read"), MAKERS)
def test_same_seed_same_file(make: Callable, read: Callable, tmp_path: Path) -> None:
    data = []
    for seed in (0, 0, 1):
        make(tmp_path / "a", seed)  # replaces the file of the turn before
        data.append(read(tmp_path / "a")[0])
    assert_array_equal(data[0], data[1])
    assert not np.array_equal(data[0], data[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: make_fastmri_file(path, np.ones((8, 8))), r"images: expected shape .* got \(8, 8\)"),
        (
            lambda path: make_fastmri_file(path, np.ones((1, 8, 8)), std=-1.0),
            "std: expected a number that is not negative, got -1",
        ),
        (lambda path: make_data_exchange_file(path, np.ones((1, 8, 9))), r"images: .* got \(1, 8, 9\)"),
        (lambda path: make_data_exchange_file(path, n_angles=0), "n_angles: expected a positive integer"),
        (
            lambda path: make_data_exchange_file(path, n_drifted=-1),
            "n_drifted: expected a number that is not negative, got -1",
        ),
        (lambda path: make_data_exchange_file(path, photons=0), "photons: expected a positive number, got 0"),
        (lambda path: make_microscopy_file(path, (8, 8)), r"shape: expected \(slices, rows, columns\)"),
        (lambda path: make_microscopy_file(path, (0, 8, 8)), "shape: expected a positive integer, got 0"),
        (lambda path: make_microscopy_file(path, (1, 8, 8), gain=-1), "gain: expected a positive number"),
    ],
)
def test_bad_input_of_simulations_is_named(
    call: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "a")
    assert not (tmp_path / "a").exists()

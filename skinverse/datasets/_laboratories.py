"""Files as laboratories have them, with simulated data: the true images come back."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skinverse import noise, operators
from skinverse._defaults import RandomState, numpy_generator
from skinverse._optional import needed_from
from skinverse.datasets._mri import coil_maps, measured_columns, phase_factors
from skinverse.datasets._phantoms import shepp_logan
from skinverse.datasets._sizes import positive

Array = NDArray[Any]
Path = str | os.PathLike[str]

_SIZE, _N_SLICES = 128, 3  # of the files whose images are not given
_VOXEL = (0.3, 0.1, 0.1)  # micrometres
_PSF_WIDTHS = (0.35, 0.12, 0.12)  # standard deviations, about those of green light in an objective of NA 1.2
_N_NUCLEI = 24
_N_FRAMES = 10  # without the sample and without the beam


def make_fastmri_file(
    path: Path, images: Array | None = None, *, std: float = 0.01, random_state: RandomState = None
) -> tuple[Array, Array]:
    """Write simulated Fourier samples of magnetic resonance imaging in the HDF5 layout of fastMRI.

    Four coils at the corners see the images; a quarter of the columns of the centred, orthonormal Fourier
    transform is measured, a twelfth around the zero frequency.

    Parameters
    ----------
    path : path-like
        The file; an older one is replaced.
    images : ndarray of shape (slices, size, size), real or complex, optional
        Images to measure. None takes three slices of 128 x 128 pixels: the head of Shepp and Logan, each with
        another smooth phase.
    std : float, default=0.01
        Standard deviation of the Gaussian noise in the real part and in the imaginary part of each sample, in
        the units of the images.
    random_state : int, Generator, RandomState or None, default=None
        Seed of the phases and of the noise.

    Returns
    -------
    images : ndarray of shape (slices, size, size), complex64
        The true images.
    coil_maps : ndarray of shape (4, size, size), complex64
        Sensitivities of the coils, with a sum of squares of one. They are not in the file.

    Raises
    ------
    ModuleNotFoundError
        If h5py is missing.
    ValueError
        If ``images`` are not square or ``std`` is negative.

    See Also
    --------
    skinverse.io.read_fastmri : Reads the file.

    Notes
    -----
    The file holds ``kspace`` (slices, coils, rows, columns) with zeros where nothing was measured, ``mask``
    (columns,), and ``reconstruction_rss``, the root sum of squares of the noisy images of all columns.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skinverse.datasets import make_fastmri_file
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "head.h5"
    >>> images, coil_maps = make_fastmri_file(path, random_state=0)
    >>> images.shape, coil_maps.shape
    ((3, 128, 128), (4, 128, 128))
    """
    with needed_from("io"):
        import h5py
    rng = numpy_generator(random_state)
    if images is None:
        images = shepp_logan(_SIZE) * phase_factors(_N_SLICES, _SIZE, rng)
    images = _checked(images).astype(np.complex64)
    maps, mask = coil_maps(images.shape[1]), measured_columns(images.shape[1])
    kspace = _fourier(maps * images[:, None])
    if _at_least_zero(std, "std") > 0:
        kspace = noise.Gaussian(std).sample(kspace, rng)
    with h5py.File(path, "w") as file:
        file["kspace"] = np.where(mask, kspace, 0)
        file["mask"] = mask
        file["reconstruction_rss"] = np.linalg.norm(_inverse_fourier(kspace), axis=1)
    return images, maps


def make_data_exchange_file(
    path: Path,
    images: Array | None = None,
    *,
    n_angles: int = 90,
    photons: float = 1e4,
    offset: float = 0.0,
    n_drifted: int = 0,
    random_state: RandomState = None,
) -> Array:
    """Write a simulated scan of parallel X-rays as a Data Exchange file.

    A camera counts the photons that pass the sample, whose slices are seen by one row of the detector each.
    The beam is brightest in the middle, and the sensitivity of the pixels varies by 5 %.

    Parameters
    ----------
    path : path-like
        The file; an older one is replaced.
    images : ndarray of shape (rows, size, size), optional
        Attenuation in each slice, per side of a pixel, which is as long as that of the detector. None takes
        three times the head of Shepp and Logan, 128 x 128 pixels, which lets about a tenth of the rays
        through where it is densest.
    n_angles : int, default=90
        Number of projections, over 180 degrees.
    photons : float, default=1e4
        Mean number of photons in a pixel in the middle of the beam without the sample. One photon is one unit
        of the data.
    offset : float, default=0.0
        Where the rotation axis meets the detector, from its centre, in pixels of the detector.
    n_drifted : int, default=0
        Number of pixels in each row of the detector whose sensitivity changes, by up to a fifth, between the
        frames without sample and the projections. Each makes a ring in the image.
    random_state : int, Generator, RandomState or None, default=None
        Seed of the sensitivities and of the noise.

    Returns
    -------
    ndarray of shape (rows, size, size), float32
        The true images.

    Raises
    ------
    ModuleNotFoundError
        If h5py is missing.
    ValueError
        If ``images`` are not square or a number is out of range.

    See Also
    --------
    skinverse.io.read_data_exchange : Reads the file.

    Notes
    -----
    The file holds ``exchange/data`` (angles, rows, columns), ten frames without sample and ten without beam
    in ``exchange/data_white`` and ``exchange/data_dark``, all uint16, and ``exchange/theta`` in degrees. On
    average the data are ``beam * exp(-A x) + 100``. The noise is that of counting and a Gaussian one of
    deviation 2; what is above 65535 is cut off, as in a camera.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skinverse.datasets import make_data_exchange_file
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.h5"
    >>> make_data_exchange_file(path, n_angles=6, random_state=0).shape
    (3, 128, 128)
    """
    with needed_from("io"):
        import h5py
    rng = numpy_generator(random_state)
    theta = 180 / positive(n_angles, "n_angles") * np.arange(n_angles)
    images = _checked(_dense_heads() if images is None else images).astype(np.float32)
    integrals = _projections(images, np.deg2rad(theta), offset)
    beam = _positive(photons, "photons") * _beam(integrals.shape[::2], rng)
    drifted = _drifts(beam.shape, int(_at_least_zero(n_drifted, "n_drifted")), rng) * beam
    frames = {
        "data": drifted * np.exp(-integrals.swapaxes(0, 1)),
        "data_white": np.tile(beam, (_N_FRAMES, 1, 1)),
        "data_dark": np.zeros((_N_FRAMES, *beam.shape)),
    }
    camera = noise.PoissonGaussian(gain=1.0, std=2.0, offset=100.0)
    with h5py.File(path, "w") as file:
        file["implements"] = "exchange"
        for name, clean in frames.items():
            file[f"exchange/{name}"] = _digitized(camera.sample(clean, rng))
        file["exchange/theta"] = theta
        file["exchange/theta"].attrs["units"] = "deg"
    return images


def make_microscopy_file(
    path: Path,
    shape: tuple[int, int, int] = (16, 128, 128),
    *,
    photons: float = 100.0,
    gain: float = 2.0,
    std: float = 3.0,
    offset: float = 100.0,
    random_state: RandomState = None,
) -> tuple[Array, Array]:
    """Write a simulated stack of fluorescent nuclei under a microscope as a 16-bit TIFF file.

    The nuclei are ellipsoids with a texture. They go on beyond the borders of the stack, as specimens do: the
    specimen is larger by the size of the point spread function minus one.

    Parameters
    ----------
    path : path-like
        The file; an older one is replaced.
    shape : tuple of int, default=(16, 128, 128)
        Number of slices, rows and columns. They are 0.3, 0.1 and 0.1 micrometres apart.
    photons : float, default=100.0
        Mean number of photons in the brightest voxel.
    gain : float, default=2.0
        Data units per photon.
    std : float, default=3.0
        Standard deviation of the Gaussian noise of the camera, in data units.
    offset : float, default=100.0
        Constant that the camera adds, in data units.
    random_state : int, Generator, RandomState or None, default=None
        Seed of the specimen and of the noise.

    Returns
    -------
    specimen : ndarray of shape (slices + 8, rows + 14, columns + 14), float32
        The true image ``x``, with what lies beyond the borders, in data units: the blurred one has the range
        0 to ``gain * photons`` within the stack.
    psf : ndarray of shape (9, 15, 15), float32
        Point spread function: a Gaussian with standard deviations of 0.35, 0.12 and 0.12 micrometres whose
        sum is one. It is not in the file.

    Raises
    ------
    ModuleNotFoundError
        If tifffile is missing.
    ValueError
        If ``shape`` does not have three positive numbers, or another number is out of range.

    See Also
    --------
    skinverse.io.read_tiff : Reads the file.
    skinverse.noise.PoissonGaussian : The noise, with ``gain``, ``std`` and ``offset``.

    Notes
    -----
    With the convolution ``A`` that keeps only what does not depend on voxels beyond the specimen
    (``mode="valid"`` of :func:`scipy.signal.convolve`), the data are ``gain * Poisson(A x / gain) + std *
    normal + offset``, rounded and cut off at 0 and 65535.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from skinverse.datasets import make_microscopy_file
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cells.tif"
    >>> specimen, psf = make_microscopy_file(path, shape=(4, 32, 32), random_state=0)
    >>> specimen.shape, psf.shape
    ((12, 46, 46), (9, 15, 15))
    """
    from scipy.signal import fftconvolve

    with needed_from("io"):
        import tifffile
    rng, psf = numpy_generator(random_state), _gaussian_psf()
    if len(shape) != 3:
        raise ValueError(f"shape: expected (slices, rows, columns), got {shape}")
    sizes = [positive(n, "shape") + m - 1 for n, m in zip(shape, psf.shape, strict=True)]
    specimen = _nuclei(sizes, rng)
    blurred = np.maximum(fftconvolve(specimen, psf, mode="valid"), 0)
    brightness = _positive(gain, "gain") * _positive(photons, "photons") / blurred.max()
    camera = noise.PoissonGaussian(gain=gain, std=_at_least_zero(std, "std"), offset=offset)
    stack = _digitized(camera.sample(brightness * blurred[None], rng)[0])
    z, y, x = _VOXEL
    metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
    tifffile.imwrite(path, stack, imagej=True, resolution=(1 / x, 1 / y), metadata=metadata)
    return (brightness * specimen).astype(np.float32), psf


# ---------------------------------------------------------------------- what is common
def _checked(images: Array) -> Array:
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images: expected shape (slices, size, size), got {images.shape}")
    return images


def _positive(value: float, name: str) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return value


def _at_least_zero(value: float, name: str) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number that is not negative, got {value!r}")
    return value


def _digitized(values: Array) -> NDArray[np.uint16]:
    return np.clip(np.rint(values), 0, 2**16 - 1).astype(np.uint16)


# ---------------------------------------------------------------------- magnetic resonance
def _fourier(images: Array) -> Array:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images, axes), norm="ortho"), axes)


def _inverse_fourier(kspace: Array) -> Array:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)


# ---------------------------------------------------------------------- X-rays
def _dense_heads() -> Array:
    """Heads whose densest rays have an attenuation of log(10)."""
    head = shepp_logan(_SIZE)
    return np.tile(math.log(10) / head.sum(axis=0).max() * head, (_N_SLICES, 1, 1))


def _projections(images: Array, angles: Array, offset: float) -> Array:
    """Line integrals (rows, angles, columns) on a detector that covers the diagonal."""
    n_columns = 2 * math.ceil(images.shape[1] / math.sqrt(2) + abs(offset)) + 1
    operator = operators.parallel_beam(images.shape[1:], angles, n_columns, offset=offset)
    return operators.as_torch(operator)(torch.from_numpy(images)).numpy()


def _beam(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Brightness at each pixel, one in the middle: a wide Gaussian times the pixel's sensitivity."""
    rows, columns = (np.linspace(-1, 1, n + 2)[1:-1] for n in shape)
    return np.exp(-(rows[:, None] ** 2 + columns**2) / 2) * rng.uniform(0.95, 1.05, shape)


def _drifts(shape: tuple[int, ...], n: int, rng: np.random.Generator) -> Array:
    """Factors by which the sensitivity changes, of n pixels in each row."""
    factors = np.ones(shape)
    for row in factors:
        row[rng.choice(len(row), n, replace=False)] = rng.uniform(0.8, 1.2, n)
    return factors


# ---------------------------------------------------------------------- fluorescence
def _gaussian_psf() -> Array:
    """A Gaussian up to four vertical and five and a half lateral standard deviations."""
    z, y, x = (
        np.exp(-((np.arange(-n, n + 1) * voxel / width) ** 2) / 2)
        for n, voxel, width in zip((4, 7, 7), _VOXEL, _PSF_WIDTHS, strict=True)
    )
    psf = z[:, None, None] * y[:, None] * x
    return (psf / psf.sum()).astype(np.float32)


def _nuclei(shape: list[int], rng: np.random.Generator) -> Array:
    """Ellipsoids with a texture that varies over a quarter of a micrometre, about as chromatin does."""
    from scipy.ndimage import gaussian_filter

    extent = np.array(shape) * _VOXEL
    points = np.stack(
        np.meshgrid(*(v * np.arange(n) for v, n in zip(_VOXEL, shape, strict=True)), indexing="ij")
    )
    bodies = np.zeros(shape)
    for _ in range(_N_NUCLEI):
        centre, half_axes = rng.uniform(0, extent), rng.uniform(0.06, 0.14, 3) * extent[1:].max()
        inside = ((points - centre[:, None, None, None]) ** 2 / half_axes[:, None, None, None] ** 2).sum(
            0
        ) < 1
        bodies[inside] = rng.uniform(0.3, 1)
    texture = gaussian_filter(rng.standard_normal(shape), [0.25 / voxel for voxel in _VOXEL])
    return bodies * np.exp(0.6 * texture / texture.std())

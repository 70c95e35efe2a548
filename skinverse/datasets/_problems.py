"""Complete inverse problems: images, operator and noisy data in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pylops
import torch
from numpy.typing import NDArray

from skinverse import operators
from skinverse._defaults import RandomState, numpy_generator
from skinverse.datasets._mri import coil_maps, measured_columns, phase_factors
from skinverse.datasets._phantoms import make_ellipses
from skinverse.datasets._photographs import load_photographs
from skinverse.datasets._sizes import positive

Array = NDArray[Any]


class Problem(NamedTuple):
    """Images, their noisy data and the operator between them.

    Parameters
    ----------
    images : ndarray of shape (n_samples, *operator.dims)
        True images.
    data : ndarray of shape (n_samples, *operator.dimsd)
        Noisy measurements.
    operator : pylops.LinearOperator
        The map from one to the other.

    Examples
    --------
    >>> from skinverse.datasets import make_problem
    >>> problem = make_problem("ct", n_samples=2, size=16, random_state=0)
    >>> problem.images.shape
    (2, 16, 16)
    """

    images: Array
    data: Array
    operator: pylops.LinearOperator


def make_problem(
    name: str,
    n_samples: int = 16,
    size: int = 64,
    noise: float = 0.05,
    random_state: RandomState = None,
    *,
    images: Array | None = None,
) -> Problem:
    """Images, noisy data and operator of a typical inverse problem.

    The operator depends on ``name`` and ``size`` alone: two calls with different seeds give training and
    test sets of one problem.

    Parameters
    ----------
    name : {"ct", "mri", "deblurring", "denoising", "compressive_sensing"}
        - ``"ct"``: 30 parallel-beam views of ellipses; at size 128 the geometry of Adler and Öktem.
        - ``"mri"``: complex ellipses of smooth phase seen by four coils, a quarter of k-space, else zeros.
        - ``"deblurring"``: photographs under a Gaussian blur of standard deviation ``size / 64`` pixels.
        - ``"denoising"``: photographs, the identity.
        - ``"compressive_sensing"``: photographs, a structurally random matrix with a quarter of the rows.
    n_samples : int, default=16
        Number of images; not used if ``images`` are given.
    size : int, default=64
        Pixels along each side; not used if ``images`` are given.
    noise : float, default=0.05
        Standard deviation of the Gaussian noise, relative to the mean absolute value of each sample's
        noise-free measurements. For complex data it counts the real and imaginary part together.
    random_state : int, Generator, RandomState or None, default=None
        Seed of the images and of the noise. Photographs are random patches of all photographs in the package.
    images : ndarray of shape (n_samples, size, size), optional
        Images to simulate data of, instead of drawn ones, such as ``load_photographs(64, subset="test")``.

    Returns
    -------
    Problem
        Named tuple ``images, data, operator``, arrays in single precision or that of ``images``.

    Raises
    ------
    ValueError
        If ``name`` is unknown, a number out of range or ``images`` not square.

    Examples
    --------
    >>> from skinverse.datasets import make_problem
    >>> images, data, operator = make_problem("ct", n_samples=2, size=32, random_state=0)
    >>> images.shape, data.shape
    ((2, 32, 32), (2, 30, 47))
    """
    if name not in _PROBLEMS:
        raise ValueError(f"name: expected one of {sorted(_PROBLEMS)}, got {name!r}")
    if not noise >= 0:
        raise ValueError(f"noise: expected a number that is not negative, got {noise!r}")
    draw, make_operator = _PROBLEMS[name]
    rng = numpy_generator(random_state)
    if images is None:
        images = draw(positive(n_samples, "n_samples"), positive(size, "size"), rng)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images: expected shape (n_samples, size, size), got {images.shape}")
    operator = make_operator(images.shape[1])
    A = operators.as_torch(operator)
    exact = A(torch.from_numpy(images)).numpy()
    measured = np.ones(exact.shape[1:], bool) if A.measured is None else A.measured.numpy()
    return Problem(images, _add_noise(exact, measured, noise, rng), operator)


def _complex_ellipses(n_samples: int, size: int, rng: np.random.Generator) -> Array:
    phases = phase_factors(n_samples, size, rng)
    return (make_ellipses(n_samples, size, random_state=rng) * phases).astype(np.complex64)


def _patches(n_samples: int, size: int, rng: np.random.Generator) -> Array:
    return load_photographs(size, n_patches=n_samples, random_state=rng)


def _ct(size: int) -> pylops.LinearOperator:
    """30 views; detector cells of about one pixel across the diagonal, 183 of them at size 128."""
    angles = (np.arange(30) + 0.5) * np.pi / 30
    n_detectors = 2 * math.ceil(size / math.sqrt(2)) + 1
    return operators.parallel_beam(
        (size, size), angles, n_detectors, spacing=math.sqrt(2) * size / n_detectors
    )


def _mri(size: int) -> pylops.LinearOperator:
    """Four coils at the corners, a quarter of the columns."""
    return operators.fourier_sampling(measured_columns(size), coil_maps=coil_maps(size))


def _deblurring(size: int) -> pylops.LinearOperator:
    return operators.gaussian_blur((size, size), size / 64)


def _denoising(size: int) -> pylops.LinearOperator:
    return pylops.Identity((size, size), dtype="float32")


def _compressive_sensing(size: int) -> pylops.LinearOperator:
    return operators.structurally_random((size, size), max(1, size**2 // 4), random_state=0)


_PROBLEMS: dict[str, tuple[Callable[..., Array], Callable[[int], pylops.LinearOperator]]] = {
    "ct": (lambda n, size, rng: make_ellipses(n, size, random_state=rng), _ct),
    "mri": (_complex_ellipses, _mri),
    "deblurring": (_patches, _deblurring),
    "denoising": (_patches, _denoising),
    "compressive_sensing": (_patches, _compressive_sensing),
}


def _add_noise(exact: Array, measured: Array, noise: float, rng: np.random.Generator) -> Array:
    """Noise on what is measured, relative to the mean absolute value there."""
    axes = tuple(range(1, exact.ndim))
    level = noise * np.abs(exact).sum(axes, keepdims=True) / measured.sum()
    draw = rng.standard_normal(exact.shape)
    if np.iscomplexobj(exact):
        draw = (draw + 1j * rng.standard_normal(exact.shape)) / math.sqrt(2)
    return (exact + np.where(measured, level * draw, 0)).astype(exact.dtype)

"""Phantoms of ellipses: the head of Shepp and Logan, and random ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from skinverse._defaults import RandomState, numpy_generator
from skinverse.datasets._sizes import positive

Array = NDArray[Any]

# Value (in hundredths, so that sums are exact: original, modified), half-axes, centre, angle in degrees.
_SHEPP_LOGAN = (
    (200, 100, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-98, -80, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-2, -20, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-2, -20, 0.16, 0.41, -0.22, 0.0, 18.0),
    (1, 10, 0.21, 0.25, 0.0, 0.35, 0.0),
    (1, 10, 0.046, 0.046, 0.0, 0.1, 0.0),
    (1, 10, 0.046, 0.046, 0.0, -0.1, 0.0),
    (1, 10, 0.046, 0.023, -0.08, -0.605, 0.0),
    (1, 10, 0.023, 0.023, 0.0, -0.606, 0.0),
    (1, 10, 0.023, 0.046, 0.06, -0.605, 0.0),
)


def shepp_logan(size: int, *, modified: bool = True, dtype: DTypeLike = np.float32) -> Array:
    """Head phantom of Shepp and Logan.

    Ten ellipses on [-1, 1]^2, sampled at the pixel centres without anti-aliasing: [-1, 1] are the outer
    edges of the outermost pixels. Rows run from the top of the head (``y = 1``) downwards, columns from
    left to right, as images are shown.

    Parameters
    ----------
    size : int
        Pixels along each side.
    modified : bool, default=True
        The values of higher contrast in use today, within [0, 1]; otherwise the original ones, within
        [0, 2], where the details differ by one percent.
    dtype : dtype, default=float32
        Data type of the image.

    Returns
    -------
    ndarray of shape (size, size)
        The phantom.

    References
    ----------
    .. [1] Shepp, Logan, "The Fourier reconstruction of a head section", IEEE Transactions on Nuclear
       Science 21(3), 1974.
    .. [2] Toft, "The Radon transform: theory and implementation", PhD thesis, 1996 (modified values).

    Examples
    --------
    >>> from skinverse.datasets import shepp_logan
    >>> phantom = shepp_logan(128)
    >>> phantom.shape, float(phantom.min()), float(phantom.max())
    ((128, 128), 0.0, 1.0)
    """
    table = np.array(_SHEPP_LOGAN)
    values, shapes = table[:, 1 if modified else 0], table[:, 2:]
    shapes[:, 4] = np.deg2rad(shapes[:, 4])
    return (_draw(positive(size, "size"), values, shapes) / 100).astype(dtype)


def make_ellipses(
    n_samples: int,
    size: int,
    *,
    dtype: DTypeLike = np.float32,
    random_state: RandomState = None,
) -> Array:
    """Random phantoms of overlapping ellipses, in the distribution of Adler and Öktem.

    Parameters
    ----------
    n_samples : int
        Number of phantoms.
    size : int
        Pixels along each side of [-1, 1]^2.
    dtype : dtype, default=float32
        Data type of the images.
    random_state : int, Generator, RandomState or None, default=None
        Seed or source of randomness.

    Returns
    -------
    ndarray of shape (n_samples, size, size)
        The phantoms; values mostly within [-2, 2], mean about 0, standard deviation about 0.19.

    Notes
    -----
    A phantom is the sum of Poisson(50) ellipses with value ``(U - 1/2) Exp(0.4)``, half-axes ``0.2 Exp(1)``,
    centre uniform in [-1, 1]^2 and angle uniform in [0, 2 pi). Nothing is clipped.

    References
    ----------
    .. [1] Adler, Öktem, "Learned primal-dual reconstruction", IEEE Transactions on Medical Imaging 37(6),
       2018, section IV.

    Examples
    --------
    >>> from skinverse.datasets import make_ellipses
    >>> make_ellipses(3, 64, random_state=0).shape
    (3, 64, 64)
    """
    rng, size = numpy_generator(random_state), positive(size, "size")
    return np.stack([_ellipses(size, rng) for _ in range(positive(n_samples, "n_samples"))]).astype(dtype)


def _ellipses(size: int, rng: np.random.Generator) -> Array:
    n = rng.poisson(50)
    values = rng.uniform(-0.5, 0.5, n) * rng.exponential(0.4, n)
    half_axes, centres = 0.2 * rng.exponential(1.0, (n, 2)), rng.uniform(-1, 1, (n, 2))
    angles = rng.uniform(0, 2 * np.pi, (n, 1))
    return _draw(size, values, np.hstack([half_axes, centres, angles]))


def _draw(size: int, values: Array, shapes: Array) -> Array:
    """Add ellipses ``(a, b, x0, y0, angle)`` to an empty image, each within its bounding box."""
    image = np.zeros((size, size))
    y, x = grid(size)
    for value, (a, b, x0, y0, angle) in zip(values, shapes, strict=True):
        c, s = np.cos(angle), np.sin(angle)
        rows = np.abs(y[:, 0] - y0) <= np.hypot(a * s, b * c)
        columns = np.abs(x[0] - x0) <= np.hypot(a * c, b * s)
        dy, dx = y[rows] - y0, x[:, columns] - x0
        inside = ((c * dx + s * dy) / a) ** 2 + ((c * dy - s * dx) / b) ** 2 <= 1
        image[np.ix_(rows, columns)] += value * inside
    return image


def grid(size: int) -> tuple[Array, Array]:
    """Pixel centres of [-1, 1]^2: ``y`` downwards from the top, ``x`` from left to right."""
    centres = (2 * np.arange(size) + 1) / size - 1
    return -centres[:, None], centres[None, :]

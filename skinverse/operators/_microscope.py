"""Point spread functions of microscopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0, j1, roots_legendre

from skinverse.operators._validation import sizes

Values = NDArray

# Values of the integrand that are held at a time: 64 MB.
_HELD = 2**23


def microscope_psf(
    shape: Sequence[int],
    *,
    wavelength_um: float,
    numerical_aperture: float,
    pixel_size_um: float | Sequence[float],
    refractive_index: float = 1.0,
    model: str = "born-wolf",
) -> Values:
    r"""Point spread function of a widefield fluorescence microscope without aberrations.

    Parameters
    ----------
    shape : tuple of int
        Size in pixels, (height, width) in focus or (depth, height, width). The point is in the pixel
        ``n // 2`` along each axis, where :func:`convolution` expects it.
    wavelength_um : float in micrometres
        Wavelength of the emitted light in vacuum.
    numerical_aperture : float
        Numerical aperture of the objective, at most ``refractive_index``.
    pixel_size_um : float or sequence of float, in micrometres
        Side of a pixel in the specimen, that of the camera's divided by the magnification, or one for each
        axis, as ``(0.3, 0.1, 0.1)`` for planes that are 0.3 micrometres apart.
    refractive_index : float, default=1.0
        Refractive index between objective and specimen: 1 for air, 1.33 for water, 1.515 for oil.
    model : {"born-wolf", "gaussian"}, default="born-wolf"
        Diffraction at a circular aperture, or the Gaussian that has the same curvature at its peak.

    Returns
    -------
    ndarray of shape (height, width) or (depth, height, width)
        Values at the centres of the pixels, of sum 1.

    Raises
    ------
    ValueError
        If ``shape`` has not two or three positive sizes, a length is not positive, the numerical aperture is
        not between 0 and ``refractive_index``, or the model is unknown.

    See Also
    --------
    convolution : The operator with this point spread function.

    Notes
    -----
    With the wavenumber :math:`k = 2 \pi / \lambda`, and in the optical units :math:`v = k \, \text{NA} \, r`
    of the distance from the axis and :math:`u = k \, \text{NA}^2 z / n` of that from the focus,

    .. math:: h(u, v) = \Bigl| 2 \int_0^1 J_0(v \rho) \, e^{-i u \rho^2 / 2} \, \rho \, d\rho \Bigr|^2,
       \qquad h(0, v) = \Bigl( \frac{2 J_1(v)}{v} \Bigr)^2,

    [1]_, the second being the Airy disc, whose first zero is at :math:`r = 0.61 \, \lambda / \text{NA}`. On
    the axis the first zero is at :math:`z = 2 n \lambda / \text{NA}^2`. The Gaussian has the standard
    deviations :math:`\sqrt 2 / (k \, \text{NA})`, 0.225 wavelengths over NA, across the axis, and
    :math:`2 \sqrt 6 \, n / (k \, \text{NA}^2)` along it [2]_.

    The formula is paraxial, and knows no light that is bent by the specimen: for large apertures or deep
    specimens, take a measured point spread function. Each plane has the same light in an infinite field of
    view, also far from focus, where it is spread wide: what ``shape`` cuts off is missing.

    References
    ----------
    .. [1] Born, Wolf, "Principles of optics", 7th edition, Cambridge University Press, 1999, section 8.8.
    .. [2] Zhang, Zerubia, Olivo-Marin, "Gaussian approximations of fluorescence microscope point-spread
       function models", Applied Optics 46(10), 2007.

    Examples
    --------
    >>> from skinverse.operators import convolution, microscope_psf
    >>> psf = microscope_psf((15, 15), wavelength_um=0.52, numerical_aperture=0.8, pixel_size_um=0.1)
    >>> float(psf.sum().round(6)), [int(i) for i in divmod(psf.argmax(), 15)]
    (1.0, [7, 7])
    >>> convolution(psf, (64, 64), boundary="valid").dimsd
    (50, 50)
    """
    pixels = sizes(shape, "shape")
    if len(pixels) not in (2, 3):
        raise ValueError(f"shape must be (height, width) or (depth, height, width), got {shape!r}")
    if not 0 < numerical_aperture <= refractive_index < math.inf:
        raise ValueError(
            "numerical_aperture must be positive and at most refractive_index, "
            f"got {numerical_aperture!r} and {refractive_index!r}"
        )
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    if not 0 < wavelength_um < math.inf:
        raise ValueError(f"wavelength_um must be positive, got {wavelength_um!r}")
    spacing = np.asarray(pixel_size_um, dtype=float)
    if spacing.shape not in ((), (len(pixels),)) or not np.all((spacing > 0) & (spacing < np.inf)):
        raise ValueError(f"pixel_size_um must be positive, one or {len(pixels)}, got {pixel_size_um!r}")
    # Distances of the pixels' centres from the point; an image is the plane in focus.
    steps = np.broadcast_to(spacing, len(pixels))
    places = [(np.arange(n) - n // 2) * step for n, step in zip(pixels, steps, strict=True)]
    z, y, x = (np.zeros(1), *places)[-3:]
    to_v = 2 * np.pi / wavelength_um * numerical_aperture
    v = to_v * np.hypot(y[:, None], x)
    u = to_v * numerical_aperture / refractive_index * z
    psf = MODELS[model](u, v).reshape(pixels)
    return psf / psf.sum()


def _born_wolf(u: Values, v: Values) -> Values:
    """Intensities (len(u), *v.shape) by quadrature; in focus the Airy disc, in closed form."""
    if not u.any():
        return np.broadcast_to(_airy(v), (len(u), *v.shape))
    # A plane, and a ring of pixels, are computed once however often they occur.
    planes, plane = np.unique(abs(u), return_inverse=True)
    rings, ring = np.unique(v, return_inverse=True)
    # The quadrature converges faster than any power once there is a node for two radians of phase.
    nodes, weights = roots_legendre(32 + math.ceil((planes.max() + rings.max()) / 2))
    rho, weights = (nodes + 1) / 2, weights / 2
    defocus = 2 * weights[:, None] * rho[:, None] * np.exp(-0.5j * np.outer(rho**2, planes))
    n_blocks = math.ceil(rings.size * rho.size / _HELD)
    blocks = [j0(np.outer(some, rho)) @ defocus for some in np.array_split(rings, n_blocks)]
    intensities = abs(np.concatenate(blocks)) ** 2
    return intensities.T[plane][:, ring.reshape(v.shape)]


def _airy(v: Values) -> Values:
    amplitude = np.where(v == 0, 1.0, 2 * j1(v) / np.where(v == 0, 1.0, v))
    return amplitude**2


def _gaussian(u: Values, v: Values) -> Values:
    """The Gaussian that the intensities are to second order: ``1 - v^2 / 4 - u^2 / 48``."""
    return np.exp(-(v**2) / 4) * np.exp(-(u**2) / 48)[:, None, None]


MODELS: dict[str, Callable[[Values, Values], Values]] = {"born-wolf": _born_wolf, "gaussian": _gaussian}

"""Where the rotation axis meets the detector: by the centre of mass of the views, or by opposite views."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.optimize import minimize_scalar

from skinverse.preprocessing._checks import finite

Array = NDArray[Any]

# Standard deviation, in detector elements, of the Gaussian that smooths views before they are compared.
# Interpolation averages noise, most of all half-way between two elements, where it would draw the axis.
_WIDTH = 1.5
# Smoothed values so close to the ends depend on what lies beyond them.
_MARGIN = 4
# Detector elements that the rest makes sense for.
_FEWEST = 32
# What passes for air after smoothing, by the largest value, and how much the sums of the views may differ: a
# disc that is cut off by one element of a hundred has 20 % at its end.
_AIR, _SPREAD = 0.05, 0.05
# Misfit of opposite views that have nothing to do with each other is 1, and of those of an object near 0.
_MISFIT = 0.5


def find_rotation_axis(sinogram: ArrayLike, angles: ArrayLike) -> float:
    r"""Find where the rotation axis meets the detector of a scan with parallel rays.

    The two views of an angle and of the opposite one are mirror images of each other about the axis. Where
    most views have an opposite one, as in a full turn, the axis is where they match best, also of objects
    that are wider than the detector. Otherwise, as in half a turn, it is the constant part of the centre of
    mass of the views, which is known if the whole object is seen. If neither is possible, the few opposite
    views that there are, such as those at 0 and 180 degrees, have to do.

    Parameters
    ----------
    sinogram : array-like of shape (n_angles, n_detectors) or (n_rows, n_angles, n_detectors)
        Line integrals, zero where there is nothing but air. Rows of one detector have one axis together; for
        an inclined axis call the function for each row.
    angles : array-like of shape (n_angles,)
        Angles of the views in radians, in any order.

    Returns
    -------
    float
        Offset of the axis from the centre of the detector, in detector elements, positive towards higher
        indices: the axis is at the index ``(n_detectors - 1) / 2 + offset``. It is the ``offset`` of
        :func:`skinverse.operators.parallel_beam`.

    Raises
    ------
    ValueError
        If the shapes do not match, values are not finite, or the axis cannot be found: no view has an
        opposite one and the object is cut off or its mass changes from view to view, the views see too
        little of the turn, or opposite views are not alike.

    Warns
    -----
    UserWarning
        If the angles look like degrees.

    See Also
    --------
    remove_rings : Before, if there are strong stripes: they do not turn with the object.

    Notes
    -----
    With :math:`p` the line integrals and :math:`s` the distance from the centre of the detector,

    .. math::
        p(\theta + \pi, 2 o - s) = p(\theta, s), \qquad
        \int s\, p(\theta, s)\, ds \Big/ \int p(\theta, s)\, ds = o + a \cos\theta + b \sin\theta,

    where :math:`o` is the offset and :math:`(a, b)` the centre of mass of the object [1]_. Opposite views
    are smoothed, compared at all multiples of half an element by the Fourier transform, and then at all
    distances in between by splines. Between two angles, views are interpolated.

    References
    ----------
    .. [1] S. G. Azevedo, D. J. Schneberk, J. P. Fitch, H. E. Martz, "Calculation of the rotational centers in
       computed tomography sinograms", IEEE Transactions on Nuclear Science 37(4), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.preprocessing import find_rotation_axis
    >>> angles = np.linspace(0, np.pi, 90, endpoint=False)
    >>> s = np.arange(100) - 99 / 2 - 3.2  # distances from the axis
    >>> disc = 2 * np.sqrt(np.maximum(20**2 - (s - 9 * np.cos(angles)[:, None]) ** 2, 0))
    >>> round(find_rotation_axis(disc, angles), 1)
    3.2
    """
    views, angles = _checked(sinogram, angles)
    first, opposite = _opposite(views, angles)
    n_pairs = first.shape[1]
    whole = _whole_object(views.sum(0))
    if 4 * n_pairs >= len(angles) or (n_pairs and not whole):
        return _matched(first, opposite)
    if not whole:
        raise ValueError(
            "sinogram: expected opposite views, or the whole object in every view, got none of the former,"
            " and views that are cut off at the ends of the detector or whose sums differ by more than 5 %"
        )
    return _centre_of_mass(views.sum(0), angles)


def _checked(sinogram: ArrayLike, angles: ArrayLike) -> tuple[Array, Array]:
    """Views of shape (rows, angles, detectors) in the order of their angles, from 0 to 2 pi, and these."""
    views, angles = finite(sinogram, "sinogram"), finite(angles, "angles")
    if views.ndim not in (2, 3) or not views.size:
        raise ValueError(
            "sinogram: expected the shape (n_angles, n_detectors) or (n_rows, n_angles, n_detectors),"
            f" got {views.shape}"
        )
    if angles.shape != views.shape[-2:-1]:
        raise ValueError(
            f"angles: expected one for each of {views.shape[-2]} views, got shape {angles.shape}"
        )
    if views.shape[-1] < _FEWEST:
        raise ValueError(f"sinogram: expected at least {_FEWEST} detector elements, got {views.shape[-1]}")
    if not views.any():
        raise ValueError("sinogram: expected an object in the views, got zeros")
    if np.ptp(angles) > 4 * np.pi and np.median(np.diff(np.sort(angles))) > 0.5:
        warnings.warn(
            f"angles: expected radians, got angles from {angles.min():g} to {angles.max():g} that look like"
            " degrees",
            UserWarning,
            stacklevel=3,
        )
    turn = angles % (2 * np.pi)
    order = np.argsort(turn, kind="stable")
    return views.reshape(-1, *views.shape[-2:])[:, order], turn[order]


# ---------------------------------------------------------------------- the centre of mass
def _whole_object(views: Array) -> bool:
    """Whether all views fall to zero at both ends of the detector and have the same mass."""
    smooth, mass = gaussian_filter(views, _WIDTH), views.sum(1)
    at_ends = np.abs(smooth[:, [0, -1]]).max()
    return bool(at_ends <= _AIR * smooth.max() and mass.std() <= _SPREAD * mass.mean())


def _centre_of_mass(views: Array, angles: Array) -> float:
    """Constant part of the sinusoid that the centre of mass follows, by least squares.

    As soon as it is known where the object is, the air beyond it is left out: its noise moves the centre of
    mass, and what is left of the beam there draws it to the centre of the detector.
    """
    s = np.arange(views.shape[1]) - (views.shape[1] - 1) / 2
    sinusoid = np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], axis=1)
    smooth = gaussian_filter(views, _WIDTH)
    near = np.ones_like(views)
    for _ in range(3):
        centres = (near * views) @ s / (near * views).sum(1)
        coefficients, _, rank, _ = np.linalg.lstsq(sinusoid, centres, rcond=1e-8)
        distance = np.abs(s - (sinusoid @ coefficients)[:, None])
        near = distance <= distance[smooth > _AIR * smooth.max()].max() + _MARGIN
    n_more = len(angles) - 3
    if rank < 3 or n_more < 1:
        raise ValueError("angles: expected at least four different ones, got fewer")
    variance = np.sum((centres - sinusoid @ coefficients) ** 2) / n_more
    error = np.sqrt(variance * np.linalg.inv(sinusoid.T @ sinusoid)[0, 0])
    if error > 0.2:
        raise ValueError(
            "angles: expected views over about half a turn, got so few that the axis is known to"
            f" {error:.2g} elements only"
        )
    return float(coefficients[0])


# ---------------------------------------------------------------------- opposite views
def _opposite(views: Array, angles: Array) -> tuple[Array, Array]:
    """Views that have an opposite one, and those; both of shape (rows, pairs, detectors)."""
    gaps = np.diff(angles, append=angles[0] + 2 * np.pi)
    step = np.median(gaps[gaps > 1e-6]) if len(angles) > 1 else 0.0
    wanted = angles[angles < np.pi] + np.pi
    before = np.searchsorted(angles, wanted, side="right") - 1
    after = (before + 1) % len(angles)
    distance = wanted - angles[before]
    # An opposite view is there, or lies between two neighbours.
    there = np.minimum(distance, gaps[before] - distance) <= 1e-2 * step
    found = there | (gaps[before] <= 2 * step)
    share = (distance / np.maximum(gaps[before], 1e-12))[found, None]
    opposite = (1 - share) * views[:, before[found]] + share * views[:, after[found]]
    return views[:, np.flatnonzero(angles < np.pi)[found]], opposite


def _matched(first: Array, opposite: Array) -> float:
    """Offset about which mirrored opposite views match best."""
    first, opposite = (gaussian_filter1d(views, _WIDTH)[..., _MARGIN:-_MARGIN] for views in (first, opposite))
    n = first.shape[-1]
    misfits = _misfits(first, opposite)
    coarse = int(np.argmin(misfits))
    if not misfits[coarse] < _MISFIT:
        raise ValueError("sinogram: expected opposite views that mirror each other, got views that do not")
    if not np.isfinite(misfits[[coarse - 1, (coarse + 1) % len(misfits)]]).all():
        raise ValueError(
            f"sinogram: expected an axis within {7 / 16 * n:.0f} elements of the centre of the detector, got"
            " one so close to its end that opposite views have too little in common"
        )
    # Compared are always the same values: the noise in them is the same for all mirrors.
    reach = min(8, (n - abs(coarse - (n - 1))) // 4)
    k = np.arange(max(0, coarse - n + reach + 2), min(n, coarse - reach))
    spline = make_interp_spline(np.arange(n), opposite, axis=-1)

    def misfit(twice: float) -> float:
        return float(np.mean((first[..., k] - spline(twice - k)) ** 2))

    best = min(range(coarse - reach + 1, coarse + reach), key=misfit)
    twice = minimize_scalar(misfit, bounds=(best - 1, best + 1), method="bounded", options={"xatol": 1e-3}).x
    return float(twice - (n - 1)) / 2


def _misfits(first: Array, opposite: Array) -> Array:
    """Misfit for a mirror at half of each index, by the variance of what is compared there.

    Values at ``k`` and ``i - k`` are compared, over all ``k`` for which there are both: sums of products are
    convolutions. Of fewer than an eighth of the values nothing is said.
    """
    n = first.shape[-1]
    size = next_fast_len(2 * n - 1, real=True)

    def convolved(a: Array, b: Array) -> Array:
        product = (rfft(a, size) * rfft(b, size)).reshape(-1, size // 2 + 1).sum(0)
        return np.asarray(irfft(product, size)[: 2 * n - 1])

    here = np.ones(n)
    number = np.round(convolved(here, here)) * first[..., 0].size
    total = convolved(first.sum((0, 1)), here) + convolved(here, opposite.sum((0, 1)))
    squares = convolved((first**2).sum((0, 1)), here) + convolved(here, (opposite**2).sum((0, 1)))
    difference = squares - 2 * convolved(first, opposite)
    variance = squares - total**2 / (2 * number)
    enough = (number >= number.max() / 8) & (variance > 1e-6 * variance.max())
    return np.where(enough, difference / np.where(enough, variance, 1), np.inf)

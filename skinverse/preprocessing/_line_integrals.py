"""Counts to line integrals with their weights, and the polynomial that corrects them for beam hardening."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skinverse._arrays import nearest_known
from skinverse._measurements import Measurements
from skinverse._parameters import Null, Real
from skinverse.preprocessing._checks import allowed, finite, real

Array = NDArray[Any]

# Counts that are worked on together: what is written beside the result stays small.
_AT_ONCE = 2**20


class _Pair(NamedTuple):
    """Line integrals, and one by the variance of each."""

    data: Array
    weights: Array


def minus_log(
    projections: ArrayLike,
    flats: ArrayLike,
    darks: ArrayLike,
    *,
    gain: float = 1.0,
    saturation: float | None = None,
) -> Measurements:
    r"""Line integrals of the attenuation from counts, and the weights of their noise.

    Counts that are not above the dark level have no logarithm, and saturated ones, or those of detector
    elements that show no beam, are no measurement. Their weights are zero, and their line integrals are
    interpolated linearly between the nearest detector elements that have one [2]_, for methods that know no
    weights. One warning tells how many there are.

    Parameters
    ----------
    projections : array-like of shape (n_angles, n_detectors) or (n_angles, n_rows, n_detectors)
        Values of the detector with the object in the beam. They are read a few angles at a time, so that an
        HDF5 dataset or a memory map is never in memory as a whole.
    flats : float or array-like of shape (n_detectors,) or (n_rows, n_detectors)
        Values with the beam alone. There may be an axis of frames in front, which are averaged.
    darks : float or array-like of the same shape
        Values without the beam, also with an axis of frames or not.
    gain : float > 0, default=1.0
        Detector units per photon. It scales the weights.
    saturation : float or None, default=None
        Value from which on the detector is saturated, such as 65535 of 16 bits. None knows of no such value.

    Returns
    -------
    Measurements
        ``data`` and the parameter ``weights``, both of shape (n_rows, n_angles, n_detectors): each row of the
        detector sees a slice, and projections without rows are those of one. In double precision if one of
        the arrays holds numbers that single precision cannot, else in single precision.

    Raises
    ------
    ValueError
        If the shapes do not match, flats or darks are not finite, or ``gain`` is not positive.

    Warns
    -----
    UserWarning
        If there are counts from which no line integral can be computed.

    See Also
    --------
    skinverse.noise.Gaussian : The noise. With ``Gaussian(1.0)`` in a method the weights are one by variances.
    skinverse.noise.Poisson : The noise of the counts themselves, where they are few.

    Notes
    -----
    With counts :math:`c`, the mean flat field :math:`f` and the mean dark field :math:`d`, data and weights
    are

    .. math::
        y = -\log\frac{c - d}{f - d}, \qquad
        w = \frac{1}{\operatorname{var} y} \approx \frac{c - d}{\text{gain}},

    the number of photons [1]_: a count of :math:`N` photons has the variance :math:`N`, and its logarithm
    to first order :math:`1/N`. Below about ten photons the logarithm is biased. Noise of the electronics and
    of the flat field is not in the weights.

    References
    ----------
    .. [1] K. Sauer and C. Bouman, "A local update strategy for iterative reconstruction from projections",
       IEEE Transactions on Signal Processing 41(2), 1993.
    .. [2] W. A. Kalender, R. Hebel and J. Ebersberger, "Reduction of CT artifacts caused by metallic
       implants", Radiology 164(2), 1987.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.preprocessing import minus_log
    >>> counts = np.array([[110.0, 60.0, 210.0]])
    >>> Y_meas = minus_log(counts, flats=np.full(3, 210.0), darks=10.0)
    >>> Y_meas.data.round(2)
    array([[[0.69, 1.39, 0.  ]]])
    >>> Y_meas.parameters["weights"]
    array([[[100.,  50., 200.]]])
    """
    allowed(gain, "gain", Real(gt=0))
    allowed(saturation, "saturation", Real() | Null())
    # What is read from a file when it is asked for has a dtype, too.
    on_demand = isinstance(getattr(projections, "dtype", None), np.dtype)
    counts: Any = projections if on_demand else np.asarray(projections)
    if len(counts.shape) not in (2, 3) or 0 in counts.shape:
        raise ValueError(
            "projections: expected the shape (n_angles, n_detectors) or (n_angles, n_rows, n_detectors), got "
            f"{tuple(counts.shape)}"
        )
    flat, dark = (_mean(frames, counts.shape, name) for frames, name in ((flats, "flats"), (darks, "darks")))
    dtype = np.result_type(counts.dtype, flat, dark, np.float32)
    result = _Pair(np.empty(counts.shape, dtype), np.empty(counts.shape, dtype))
    size = max(1, _AT_ONCE // int(np.prod(counts.shape[1:])))
    n_bad = np.zeros(3, int)
    for start in range(0, len(counts), size):
        part = slice(start, start + size)
        part_of_result = _Pair(result.data[part], result.weights[part])
        n_bad += _convert(real(counts[part], "projections"), flat, dark, saturation, part_of_result)
    np.divide(result.weights, gain, out=result.weights)
    if n_bad.any():
        warnings.warn(
            f"projections: {n_bad.sum()} of {result.data.size} counts have no line integral and get weight 0:"
            f" {n_bad[0]} not above the dark level, {n_bad[1]} saturated, {n_bad[2]} of elements that see no"
            " beam",
            UserWarning,
            stacklevel=2,
        )
    data, weights = (_rows_first(values) for values in result)
    return Measurements(data, weights=weights)


def _rows_first(values: Array) -> Array:
    """What each row of the detector sees."""
    return values[None] if values.ndim == 2 else values.swapaxes(0, 1)


def _mean(frames: ArrayLike, shape: tuple[int, ...], name: str) -> Array | float:
    """Mean of the frames of one projection's shape, or one number."""
    values = finite(frames, name, ndim=0)
    if values.ndim == 0:
        return float(values)
    if values.ndim == len(shape) and values.shape[1:] == shape[1:]:
        return values.mean(0, dtype=np.float64).astype(values.dtype)
    if values.shape != shape[1:]:
        raise ValueError(
            f"{name}: expected the shape {shape[1:]} of one projection, with an axis of frames in front or"
            f" not, got {values.shape}"
        )
    return values


def _convert(
    counts: Array,
    flat: Array | float,
    dark: Array | float,
    saturation: float | None,
    result: _Pair,
) -> Array:
    """Write data and weights of a few angles; how many counts are too low, saturated, or of dead elements."""
    top = np.inf if saturation is None else saturation
    dead = np.broadcast_to(~(np.greater(flat, dark) & np.less(flat, top)), counts.shape)
    saturated = ~dead & (counts >= top)
    low = ~dead & ~(counts > dark)  # NaN, too
    bad = dead | saturated | low
    passed, beam = np.where(bad, 1, counts - dark), np.where(bad, 1, np.subtract(flat, dark))
    result.weights[:] = np.where(bad, 0, passed)
    result.data[:] = np.log(beam / passed)
    _interpolate(result.data.reshape(-1, counts.shape[-1]), bad.reshape(-1, counts.shape[-1]))
    return np.array([low.sum(), saturated.sum(), dead.sum()])


def _interpolate(rows: Array, bad: Array) -> None:
    """Replace bad values by the line between the nearest good ones of the row; zeros stay where none is."""
    some = np.flatnonzero(bad.any(1) & ~bad.all(1))
    row, bad = rows[some], bad[some]
    left, right, share = nearest_known(~bad)
    low, high = (np.take_along_axis(row, index, axis=1) for index in (left, right))
    rows[some] = np.where(bad, (1 - share) * low + share * high, row)


def correct_beam_hardening(data: ArrayLike, coefficients: ArrayLike) -> Array:
    r"""Correct line integrals for the hardening of the beam by a polynomial without constant.

    Soft X-rays are absorbed first, so that measured line integrals of an X-ray tube grow more slowly than the
    length of the path through the material. A polynomial makes them proportional to it again.

    Parameters
    ----------
    data : array-like
        Line integrals of any shape, as :func:`minus_log` gives them.
    coefficients : array-like of shape (degree,)
        Factors of the first power, of the second, and so on.

    Returns
    -------
    ndarray of the shape of ``data``
        The corrected line integrals.

    Raises
    ------
    ValueError
        If an array has values that are not finite, or there are no coefficients.

    Notes
    -----
    With coefficients :math:`c_1, \dots, c_n`, which are those of one material, the result is [1]_

    .. math::
        \sum_{i=1}^n c_i\, y^i.

    They come from a scan of known lengths :math:`t`, as in the example, by least squares. Of :math:`c_1 = 1`
    the line integrals are those of the unhardened beam.

    References
    ----------
    .. [1] G. T. Herman, "Correction for beam hardening in computed tomography", Physics in Medicine and
       Biology 24(1), 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.preprocessing import correct_beam_hardening
    >>> lengths = np.linspace(0, 5, 20)
    >>> measured = -np.log(0.5 * np.exp(-0.2 * lengths) + 0.5 * np.exp(-0.6 * lengths))  # two energies
    >>> powers = measured[:, None] ** [1, 2, 3, 4]
    >>> coefficients, *_ = np.linalg.lstsq(powers, lengths)
    >>> corrected = correct_beam_hardening(measured, coefficients)
    >>> bool(np.abs(corrected - lengths).max() < 2e-3)
    True
    """
    y, factors = finite(data, "data", ndim=0), finite(coefficients, "coefficients")
    if factors.ndim != 1:
        raise ValueError(f"coefficients: expected one for each power, got the shape {factors.shape}")
    corrected = np.zeros_like(y)
    for c in factors[::-1]:  # Horner's rule
        corrected = (corrected + y.dtype.type(c)) * y
    return corrected

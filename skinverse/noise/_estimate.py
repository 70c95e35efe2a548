"""How strong the noise of measurements is, from the measurements themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, theilslopes
from skimage.restoration import estimate_sigma

from skinverse._arrays import as_rows
from skinverse.noise._base import NoiseModel, as_numpy
from skinverse.noise._counts import PoissonGaussian
from skinverse.noise._gaussian import Gaussian

# Side of the blocks of pixels of which one image shows the variance, brightnesses that are told apart, and
# the share of the blocks of each one that are smoother than the one that is taken for flat.
_BLOCK, _N_LEVELS, _QUANTILE = 16, 12, 0.2


def estimate(
    data: ArrayLike,
    *,
    model: str = "gaussian",
    dark: ArrayLike | None = None,
    channel_axis: int | None = None,
) -> NoiseModel:
    """Estimate the noise from the data themselves.

    Parameters
    ----------
    data : array-like of shape (n_samples, ...)
        - With ``model="gaussian"``: images, or measurements that are as smooth as images, such as sinograms.
        - With ``model="camera"``: images of any scenes; or, for an estimate that is right to a few percent,
          flat pairs of shape (n_pairs, 2, height, width), which are two exposures of the same evenly lit
          field for each of at least two brightnesses.
    model : {"gaussian", "camera"}, default="gaussian"
        What to estimate: the standard deviation of white noise, or gain, offset and read noise of a camera.
    dark : array-like of shape (n_frames, height, width) or None, default=None
        Exposures without light, which show offset and read noise of a camera. Without them only the line
        ``variance = gain * mean + constant`` is known: a negative constant is reported as an offset without
        read noise, a positive one as read noise without an offset.
    channel_axis : int or None, default=None
        Axis of one image that holds channels; used by ``model="gaussian"``.

    Returns
    -------
    Gaussian or PoissonGaussian
        The noise model, a value of the parameter ``noise`` of estimators.

    Raises
    ------
    ValueError
        If ``model`` is unknown, or the variance of a camera's data does not grow with their brightness, so
        that no gain is seen.

    Notes
    -----
    White noise is measured by the median of the finest wavelet coefficients (Donoho and Johnstone, 1994) as
    scikit-image does it; for complex data the result is that of the real part and of the imaginary part,
    each. The line of a camera is fitted to means and variances. The variance of a pair is half that of its
    difference; that of single images is the variance of mixed differences in the smoothest blocks of 16 x 16
    pixels of each brightness. Texture counts as noise there: from a few photographs that are full of it the
    gain may be wrong by an order of magnitude.

    References
    ----------
    D. L. Donoho and I. M. Johnstone, Ideal spatial adaptation by wavelet shrinkage, Biometrika 81, 1994.
    J. R. Janesick, Photon transfer, SPIE Press, 2007.
    A. Foi, M. Trimeche, V. Katkovnik and K. Egiazarian, Practical Poissonian-Gaussian noise modeling and
    fitting for single-image raw-data, IEEE Transactions on Image Processing 17, 2008.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.noise import PoissonGaussian, estimate
    >>> camera = PoissonGaussian(gain=0.5, std=2.0, offset=100.0)
    >>> flats = np.broadcast_to(np.array([50.0, 200.0, 800.0])[:, None, None, None], (3, 2, 64, 64))
    >>> found = estimate(
    ...     camera.sample(flats, 0), model="camera", dark=camera.sample(np.zeros((4, 64, 64)), 1)
    ... )
    >>> round(found.gain, 2), round(found.std, 1), round(found.offset)
    (0.5, 2.0, 100)
    """
    rows = as_numpy(as_rows(data, "data"))
    if model == "gaussian":
        return Gaussian(_white_noise(rows, channel_axis))
    if model != "camera":
        raise ValueError(f"model: expected one of ['gaussian', 'camera'], got {model!r}")
    means, variances = _of_pairs(rows) if rows.ndim == 4 and rows.shape[1] == 2 else _of_images(rows)
    if dark is None:
        gain, constant = _line(means, variances)
        return PoissonGaussian(
            gain=gain, std=math.sqrt(max(constant, 0.0)), offset=max(-constant, 0.0) / gain
        )
    offset, variance = _of_dark(np.asarray(dark, float))
    gain, _ = _line(np.append(means, offset), np.append(variances, variance))
    return PoissonGaussian(gain=gain, std=math.sqrt(variance), offset=offset)


def _white_noise(rows: NDArray[Any], channel_axis: int | None) -> float:
    """Median over images of the standard deviation of white noise."""
    parts = [rows.real, rows.imag] if np.iscomplexobj(rows) else [rows]
    found = [
        estimate_sigma(image, average_sigmas=True, channel_axis=channel_axis)
        for part in parts
        for image in part
    ]
    return float(np.median(found))


def _of_pairs(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and variance of each pair: what both exposures have in common cancels in their difference."""
    return rows.mean((1, 2, 3)), (rows[:, 0] - rows[:, 1]).var((1, 2)) / 2


def _of_images(rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means and variances of blocks of pixels, the smoothest ones of several brightnesses.

    A block's variance is that of the mixed differences of its 2 x 2 pixels, which do not see slopes. Noise
    alone would make the variances of flat blocks differ as chi squared does, whose quantile is divided out.
    """
    n = _BLOCK // 2
    height, width = (side // _BLOCK for side in rows.shape[-2:])
    cut = rows[..., : height * _BLOCK, : width * _BLOCK].reshape(-1, height, n, 2, width, n, 2)
    means = cut.mean((2, 3, 5, 6)).ravel()
    differences = cut[:, :, :, 0, :, :, 0] + cut[:, :, :, 1, :, :, 1]
    differences = (differences - cut[:, :, :, 0, :, :, 1] - cut[:, :, :, 1, :, :, 0]) / 2
    variances = np.square(differences).mean((2, 4)).ravel() / (chi2.ppf(_QUANTILE, n**2) / n**2)
    levels = np.array_split(np.argsort(means, kind="stable"), min(_N_LEVELS, len(means)))
    flat = [level[np.argsort(variances[level])[int(_QUANTILE * len(level))]] for level in levels]
    return means[flat], variances[flat]


def _of_dark(dark: NDArray[Any]) -> tuple[float, float]:
    """Offset, and the variance from frame to frame, or where there is one frame, from pixel to pixel."""
    return float(dark.mean()), float(dark.var(0, ddof=1).mean() if len(dark) > 1 else dark.var())


def _line(means: NDArray[Any], variances: NDArray[Any]) -> tuple[float, float]:
    """Slope and constant of the line through variances over means, robust to a few that lie off it."""
    slope, constant, *_ = theilslopes(variances, means) if np.ptp(means) > 0 else (0.0, 0.0)
    if not slope > 0:
        raise ValueError(
            "data: expected images of different brightness, whose noise grows with it, got others"
        )
    return float(slope), float(constant)

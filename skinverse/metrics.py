"""How close a reconstruction is to the truth: one number per image, and scorers for searches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skinverse._arrays import Rows, as_rows, check_complete, check_finite, to_batch

__all__ = [
    "ReconstructionScorer",
    "neg_nmse_scorer",
    "nmse",
    "psnr",
    "psnr_scorer",
    "ssim",
    "ssim_scorer",
]

Values = NDArray[np.float64]

# Score in dB of an image without error.
_PERFECT = 100.0


def psnr(X_true: Any, X_pred: Any, *, data_range: ArrayLike | None = None) -> Values:
    """Peak signal-to-noise ratio of each image, in dB.

    Parameters
    ----------
    X_true, X_pred : array-like or Tensor of shape (n_samples, ...)
        True and reconstructed images of the same shape, real or complex, flat or not; all values of an image
        count the same, those of channels too.
    data_range : float or array-like of shape (n_samples,), optional
        The range ``R`` of values. By default each true image's own: largest minus smallest value, of the
        modulus if the images are complex. A constant true image has no range of its own; its modulus takes
        that place, and 1 if that is zero too.

    Returns
    -------
    ndarray of shape (n_samples,)
        The ratios; larger is better, ``inf`` for a perfect reconstruction.

    Raises
    ------
    ValueError
        If the shapes differ, only one of the sets is complex, there is no image, a value is NaN, inf or
        masked, or ``data_range`` is not positive.

    Notes
    -----
    ``10 log10(R^2 / mean |x - x_hat|^2)``, the mean taken over all values of an image.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.metrics import psnr
    >>> X_true = np.array([[[0.0, 1.0], [1.0, 0.0]]])
    >>> psnr(X_true, X_true + 0.1).round(2)
    array([20.])
    """
    images = _checked(X_true, X_pred)
    error = np.array([np.mean(np.abs(x - x_hat) ** 2) for x, x_hat in _pairs(*images)])
    with np.errstate(divide="ignore"):
        return 20 * np.log10(_ranges(images[0], data_range)) - 10 * np.log10(error)


def ssim(
    X_true: Any, X_pred: Any, *, data_range: ArrayLike | None = None, channel_axis: int | None = None
) -> Values:
    """Structural similarity of each image.

    Parameters
    ----------
    X_true, X_pred : array-like or Tensor of shape (n_samples, ...)
        True and reconstructed images of the same shape; of complex images the moduli are compared. Flat
        images, (n_samples, n_pixels), are signals.
    data_range : float or array-like of shape (n_samples,), optional
        The range of values, by default as in :func:`psnr`. Published tables differ in it: for floating-point
        images scikit-image used to take 2.
    channel_axis : int or None, default=None
        Which axis of one image holds channels, over which the similarity is averaged. None: every axis is
        space, and windows of volumes are cubes.

    Returns
    -------
    ndarray of shape (n_samples,)
        The similarities, at most 1; larger is better.

    Raises
    ------
    ValueError
        If the shapes differ, only one of the sets is complex, there is no image, a value is NaN, inf or
        masked, ``data_range`` is not positive, or there is no such axis.

    Notes
    -----
    :func:`skimage.metrics.structural_similarity` with its uniform window of 7 pixels. Where an image is
    smaller, the window is the largest odd one that fits; axes of length 1 do not count.

    References
    ----------
    .. [1] Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural
       similarity", IEEE Transactions on Image Processing 13(4), 2004, equation (13).

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.metrics import ssim
    >>> X_true = np.eye(8)[None]
    >>> ssim(X_true, X_true)
    array([1.])
    """
    images = _checked(X_true, X_pred)
    ranges = _ranges(images[0], data_range)
    pairs = zip(_pairs(*images), ranges, strict=True)
    axis = _axis(channel_axis, tuple(images[0].shape[1:]))
    return np.array([_ssim(_shown(x, axis), _shown(x_hat, axis), own) for (x, x_hat), own in pairs])


def nmse(X_true: Any, X_pred: Any) -> Values:
    """Squared error of each image, relative to the squared norm of the truth.

    Parameters
    ----------
    X_true, X_pred : array-like or Tensor of shape (n_samples, ...)
        True and reconstructed images of the same shape, real or complex.

    Returns
    -------
    ndarray of shape (n_samples,)
        ``|x - x_hat|^2 / |x|^2``; smaller is better, 0 for a perfect reconstruction (also of a zero image),
        ``inf`` for any other reconstruction of a zero image.

    Raises
    ------
    ValueError
        If the shapes differ, only one of the sets is complex, there is no image, or a value is NaN, inf or
        masked.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.metrics import nmse
    >>> nmse(np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]]))
    array([0.04])
    """
    pairs = _pairs(*_checked(X_true, X_pred))
    squares = [[np.sum(np.abs(a) ** 2) for a in (x - x_hat, x)] for x, x_hat in pairs]
    error, signal = np.array(squares).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, error / signal)


@dataclass(frozen=True, repr=False)
class ReconstructionScorer:
    """A metric as ``scoring=`` of scikit-learn's searches, images first.

    Calling it with ``(estimator, X_true, Y_meas)`` gives the mean of the metric over the images, where
    larger is better.

    Parameters
    ----------
    metric : callable
        ``metric(X_true, X_pred)``, one number per image.
    sign : {1, -1}, default=1
        -1 for a metric of which smaller is better.
    data_range : float, optional
        Handed to the metric; left out if None. A metric that has a ``channel_axis`` gets that of the
        estimator.

    Examples
    --------
    >>> from skinverse.metrics import ReconstructionScorer, ssim
    >>> ReconstructionScorer(ssim, data_range=1.0)
    ReconstructionScorer(ssim, data_range=1.0)
    """

    metric: Callable[..., Values]
    sign: int = 1
    data_range: float | None = None

    def __call__(self, estimator: Any, X_true: Any, Y_meas: Any) -> float:
        """Score the estimator's reconstructions.

        Parameters
        ----------
        estimator : object
            A fitted reconstructor.
        X_true : array-like or Tensor of shape (n_samples, ...)
            True images.
        Y_meas : array-like or Tensor of shape (n_samples, ...)
            Their measurements.

        Returns
        -------
        float
            Mean of the metric over the images, times ``sign``. An infinite PSNR, that of a perfect image,
            counts as 100 dB.
        """
        images, X_pred = as_rows(X_true, "X_true"), estimator.predict(Y_meas)
        values = self.metric(_unflatten(images, tuple(X_pred.shape)), X_pred, **self._options(estimator))
        return mean_score(values) if self.sign == 1 else -float(np.mean(values))

    def _options(self, estimator: Any = None) -> dict[str, Any]:
        options: dict[str, Any] = {} if self.data_range is None else {"data_range": self.data_range}
        axis = getattr(estimator, "channel_axis", None)
        known = axis is not None and "channel_axis" in inspect.signature(self.metric).parameters
        return options | ({"channel_axis": axis} if known else {})

    def __repr__(self) -> str:
        """Show the call that makes it, defaults left out."""
        parts = [getattr(self.metric, "__name__", repr(self.metric))]
        parts += [] if self.sign == 1 else [f"sign={self.sign}"]
        parts += [f"{name}={value}" for name, value in self._options().items()]
        return f"{type(self).__name__}({', '.join(parts)})"


def mean_score(values: Values) -> float:
    """Mean of numbers of images, of which +inf counts as 100, the PSNR of float32 rounding and less.

    A blank slice is reconstructed exactly by every method; it must not make all of them equally good.
    """
    return float(np.mean(np.where(np.isposinf(values), _PERFECT, values)))


psnr_scorer = ReconstructionScorer(psnr)
ssim_scorer = ReconstructionScorer(ssim)
neg_nmse_scorer = ReconstructionScorer(nmse, sign=-1)


def _checked(X_true: Any, X_pred: Any) -> tuple[Rows, Rows]:
    """Both sets, complete, finite and of one shape."""
    x, x_hat = as_rows(X_true, "X_true"), as_rows(X_pred, "X_pred")
    for rows, name in ((x, "X_true"), (x_hat, "X_pred")):
        check_complete(rows, name)
        check_finite(rows, name)
    if tuple(x.shape) != tuple(x_hat.shape):
        shapes = f"X_true of {tuple(x.shape)} and X_pred of {tuple(x_hat.shape)}"
        raise ValueError(f"expected images of one shape, got {shapes}")
    kinds = tuple("complex" if np.iscomplexobj(next(_doubles(rows))) else "real" for rows in (x, x_hat))
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"expected images that are both real or both complex, got X_true {kinds[0]} and X_pred "
            f"{kinds[1]}: magnitudes are compared as np.abs(X_true) and np.abs(X_pred)"
        )
    return x, x_hat


def _pairs(x: Rows, x_hat: Rows) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """True and reconstructed images one by one: a set may be large."""
    return zip(_doubles(x), _doubles(x_hat), strict=True)


def _doubles(rows: Rows) -> Iterator[NDArray[Any]]:
    """Images in double precision."""
    for i in range(len(rows)):
        image = to_batch(rows[i : i + 1])[0].cpu().numpy()
        yield image.astype(np.complex128 if np.iscomplexobj(image) else np.float64)


def _ranges(x: Rows, data_range: ArrayLike | None) -> Values:
    """Each true image's range: the one given, or its own."""
    if data_range is None:
        return np.array([_own_range(image) for image in _doubles(x)])
    try:
        given = np.asarray(data_range, dtype=float)
    except Exception:  # whatever the array of another package says
        given = np.array(np.nan)
    if given.shape not in ((), (len(x),)) or not (np.isfinite(given) & (given > 0)).all():
        got = repr(data_range) if np.isscalar(data_range) else f"a {type(data_range).__name__}"
        raise ValueError(f"data_range: expected a positive number, or one per image, got {got}")
    return np.broadcast_to(given, (len(x),))


def _own_range(x: NDArray[Any]) -> float:
    values = _modulus(x)
    return float(np.ptp(values) or np.abs(values).max() or 1.0)


def _modulus(x: NDArray[Any]) -> NDArray[Any]:
    """The modulus of a complex image, a real one as it is."""
    return np.abs(x) if np.iscomplexobj(x) else x


def _axis(channel_axis: int | None, dims: tuple[int, ...]) -> int | None:
    """The axis of channels, if images of ``dims`` have it and another one."""
    if channel_axis is None or (len(dims) > 1 and -len(dims) <= channel_axis < len(dims)):
        return channel_axis
    raise ValueError(
        f"channel_axis: expected an axis of one image beside one of space, got {channel_axis} for images of "
        f"shape {dims}"
    )


def _shown(x: NDArray[Any], channel_axis: int | None) -> Values:
    """The modulus of an image as channels, (C, ...), without axes of length 1 behind them."""
    channels = _modulus(x[None] if channel_axis is None else np.moveaxis(x, channel_axis, 0))
    kept = [size for size in channels.shape[1:] if size > 1]
    return channels.reshape(len(channels), *(kept or [1]))


def _ssim(x: Values, x_hat: Values, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    window = min(7, *x.shape[1:])
    window -= (window + 1) % 2
    # One pixel has no sample covariance.
    similarities = [
        structural_similarity(a, b, win_size=window, data_range=data_range, use_sample_covariance=window > 1)
        for a, b in zip(x, x_hat, strict=True)
    ]
    return float(np.mean(similarities))


def _unflatten(images: Rows, shape: tuple[int, ...]) -> Rows:
    """Flat true images in the shape of the reconstructions; others as they are."""
    flat = tuple(images.shape) == (shape[0], int(np.prod(shape[1:])))
    return images.reshape(shape) if flat else images

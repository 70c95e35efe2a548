"""The learned covariance of a pixel with all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skinverse.displays._pyplot import pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CovarianceDisplay:
    """Images, and the covariance of one of their pixels with all others: red is positive, blue negative.

    It is recommended to use :meth:`from_estimator`.

    Parameters
    ----------
    images : array-like of shape (n_samples, H, W)
        Images.
    covariances : array-like of shape (n_samples, H, W)
        Covariance of the pixel with all pixels, near each image.
    pixel : tuple of int
        (row, column).

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure, once plotted.
    axes_ : ndarray of shape (2, n_samples) of matplotlib Axes
        Its axes, once plotted: images above, covariances below.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.displays import CovarianceDisplay
    >>> images, covariances = np.zeros((2, 3, 8, 8))
    >>> CovarianceDisplay(images, covariances, (4, 4)).plot().axes_.shape
    (2, 3)
    """

    def __init__(self, images: Any, covariances: Any, pixel: tuple[int, int]) -> None:
        self.images = images
        self.covariances = covariances
        self.pixel = pixel

    @classmethod
    def from_estimator(cls, estimator: Any, X_true: Any, pixel: tuple[int, int], *, axes: Any = None) -> Self:
        """Compute the covariances with a fitted estimator and plot them.

        Parameters
        ----------
        estimator : object
            A fitted :class:`skinverse.GenerativeCovariancePrior`, or an object with its ``covariance_row``.
        X_true : array-like of shape (n_samples, H, W)
            Images.
        pixel : tuple of int
            (row, column).
        axes : array-like of matplotlib Axes, optional
            Where to plot, (2, n_samples); a new figure by default.

        Returns
        -------
        CovarianceDisplay
            The plotted display.
        """
        return cls(X_true, estimator.covariance_row(X_true, pixel), pixel).plot(axes=axes)

    def plot(self, *, axes: Any = None) -> Self:
        """Draw images and covariances.

        Parameters
        ----------
        axes : array-like of matplotlib Axes, optional
            Where to plot, (2, n_samples); a new figure by default.

        Returns
        -------
        CovarianceDisplay
            Itself.

        Raises
        ------
        ValueError
            If images and covariances do not have the same shape (n_samples, H, W), or the axes do not fit.
        """
        images, covariances = (np.asarray(batch) for batch in (self.images, self.covariances))
        if images.ndim != 3 or images.shape != covariances.shape:
            raise ValueError(
                "expected images and covariances of one shape (n_samples, H, W), got "
                f"{images.shape} and {covariances.shape}"
            )
        n = len(images)
        if axes is None:
            size = (2.2 * n + 0.8, 4.4)
            _, axes = pyplot().subplots(2, n, figsize=size, squeeze=False, layout="constrained")
        self.axes_ = np.asarray(axes)
        if self.axes_.shape != (2, n):
            raise ValueError(f"axes: expected shape (2, {n}), got {self.axes_.shape}")
        self.figure_: Figure = self.axes_[0, 0].figure
        most = _largest(covariances, self.pixel)
        for above, below, image, covariance in zip(*self.axes_, np.abs(images), covariances, strict=True):
            above.imshow(image, cmap="gray")
            above.plot(self.pixel[1], self.pixel[0], "+", color="tab:orange")
            drawn = below.imshow(covariance, cmap="RdBu_r", vmin=-most, vmax=most)
        for axis in self.axes_.ravel():
            axis.set(xticks=[], yticks=[])
        self.figure_.colorbar(drawn, ax=list(self.axes_[1]), label="covariance")
        return self


def _largest(covariances: NDArray[Any], pixel: tuple[int, int]) -> float:
    """The largest covariance with another pixel, as colour scale: the variance itself is far larger."""
    others = np.abs(covariances)
    others[:, pixel[0], pixel[1]] = 0
    return float(others.max()) or 1.0

"""Truth, data, reconstructions and errors side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skinverse._arrays import as_rows, missing, to_batch
from skinverse.displays._pyplot import pyplot
from skinverse.metrics import psnr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


class ReconstructionDisplay:
    """Truth, data, reconstructions and errors side by side, one row per image.

    The columns are the data (where they are images or sinograms), the truth, each reconstruction with its
    PSNR, and each reconstruction's error ``|x - x_hat|``. A row has one grey scale, the range of its true
    image; all errors share one colour scale.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    X_true : array-like of shape (n_samples, *dims)
        True images; of complex ones the modulus is shown, of volumes the slice in the middle.
    predictions : dict of str to array-like
        Reconstructions by name, each shaped like ``X_true``.
    Y_meas : array-like of shape (n_samples, ...), optional
        Measurements. Shown if each is shaped like an image, complex ones as ``log(1 + |y|)``, or is real
        and two-dimensional, such as a sinogram.
    data_range : float, optional
        For the PSNR, see :func:`skinverse.metrics.psnr`.
    channel_axis : int or None, default=None
        Which axis of one image holds channels: three are colours, others are averaged. None: every axis is
        space.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure, once plotted.
    axes_ : ndarray of shape (n_samples, n_columns) of matplotlib Axes
        Its axes, once plotted.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.displays import ReconstructionDisplay
    >>> X_true = np.random.default_rng(0).random((2, 16, 16))
    >>> display = ReconstructionDisplay.from_predictions(X_true, {"half": X_true / 2})
    >>> display.axes_.shape
    (2, 3)
    """

    def __init__(
        self,
        X_true: Any,
        predictions: Mapping[str, Any],
        *,
        Y_meas: Any = None,
        data_range: float | None = None,
        channel_axis: int | None = None,
    ) -> None:
        self.X_true = X_true
        self.predictions = predictions
        self.Y_meas = Y_meas
        self.data_range = data_range
        self.channel_axis = channel_axis

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_true: Any,
        Y_meas: Any,
        *,
        name: str | None = None,
        data_range: float | None = None,
        errors: bool = True,
        cmap: str = "gray",
        axes: Any = None,
    ) -> Self:
        """Reconstruct with a fitted estimator and plot.

        Parameters
        ----------
        estimator : object
            A fitted reconstructor; its ``channel_axis`` says where the images have channels.
        X_true : array-like of shape (n_samples, *dims)
            True images.
        Y_meas : array-like of shape (n_samples, ...)
            Measurements.
        name : str, optional
            Title of the reconstructions, by default the class of the estimator.
        data_range : float, optional
            For the PSNR.
        errors : bool, default=True
            Whether to show the errors, too.
        cmap : str, default="gray"
            Colour map of the images.
        axes : array-like of matplotlib Axes, optional
            Where to plot, (n_samples, n_columns); a new figure by default.

        Returns
        -------
        ReconstructionDisplay
            The plotted display.
        """
        predictions = {name or type(estimator).__name__: estimator.predict(Y_meas)}
        axis = getattr(estimator, "channel_axis", None)
        display = cls(X_true, predictions, Y_meas=Y_meas, data_range=data_range, channel_axis=axis)
        return display.plot(errors=errors, cmap=cmap, axes=axes)

    @classmethod
    def from_predictions(
        cls,
        X_true: Any,
        predictions: Mapping[str, Any],
        *,
        Y_meas: Any = None,
        data_range: float | None = None,
        channel_axis: int | None = None,
        errors: bool = True,
        cmap: str = "gray",
        axes: Any = None,
    ) -> Self:
        """Plot reconstructions that have been computed before.

        Parameters
        ----------
        X_true : array-like of shape (n_samples, *dims)
            True images.
        predictions : dict of str to array-like
            Reconstructions by name.
        Y_meas : array-like of shape (n_samples, ...), optional
            Measurements.
        data_range : float, optional
            For the PSNR.
        channel_axis : int or None, default=None
            Which axis of one image holds channels.
        errors : bool, default=True
            Whether to show the errors, too.
        cmap : str, default="gray"
            Colour map of the images.
        axes : array-like of matplotlib Axes, optional
            Where to plot, (n_samples, n_columns); a new figure by default.

        Returns
        -------
        ReconstructionDisplay
            The plotted display.
        """
        display = cls(X_true, predictions, Y_meas=Y_meas, data_range=data_range, channel_axis=channel_axis)
        return display.plot(errors=errors, cmap=cmap, axes=axes)

    def plot(self, *, errors: bool = True, cmap: str = "gray", axes: Any = None) -> Self:
        """Draw the grid.

        Parameters
        ----------
        errors : bool, default=True
            Whether to show the errors, too.
        cmap : str, default="gray"
            Colour map of the images.
        axes : array-like of matplotlib Axes, optional
            Where to plot, (n_samples, n_columns); a new figure by default.

        Returns
        -------
        ReconstructionDisplay
            Itself, with ``figure_`` and ``axes_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is nothing to show, or shapes do not fit.
        """
        truth = self._pictures(_numpy(self.X_true, "X_true"), "X_true")
        columns = self._data_column(len(truth)) | {"Truth": truth} | self._reconstructions()
        names = list(self.predictions)
        n_columns = len(columns) + (len(names) if errors else 0)
        self.figure_, self.axes_ = _grid(len(truth), n_columns, truth.shape[2] / truth.shape[1], axes)
        for axis, (title, pictures) in zip(self.axes_.T, columns.items(), strict=False):
            _draw_column(axis, title, pictures, None if title == "Data" else truth, cmap)
            if pictures.shape[1:3] != truth.shape[1:3]:
                _fill(axis)
        for axis, name in zip(self.axes_.T[len(columns) - len(names) :], names, strict=False):
            self._label_psnr(axis, name)
        if errors:
            self._draw_errors(self.axes_[:, len(columns) :], names)
        return self

    def _reconstructions(self) -> dict[str, Array]:
        if not self.predictions:
            raise ValueError("predictions: expected at least one reconstruction, got an empty dict")
        images = {name: _numpy(x, name) for name, x in self.predictions.items()}
        expected = _numpy(self.X_true, "X_true").shape
        for name, x in images.items():
            if x.shape != expected:
                got = f"{expected} and {x.shape}"
                raise ValueError(f"{name}: expected reconstructions of the shape of X_true, got {got}")
        return {name: self._pictures(x, name) for name, x in images.items()}

    def _data_column(self, n_samples: int) -> dict[str, Array]:
        """Return the data where they can be shown as images."""
        if self.Y_meas is None:
            return {}
        data, images = _numpy(self.Y_meas, "Y_meas"), _numpy(self.X_true, "X_true")
        if len(data) != n_samples:
            raise ValueError(
                f"Y_meas: expected as many measurements as images, got {len(data)} and {n_samples}"
            )
        if data.shape != images.shape and (data.ndim != 3 or np.iscomplexobj(data)):
            return {}
        data = np.log1p(np.abs(data)) if np.iscomplexobj(data) else data
        return {"Data": self._pictures(data, "Y_meas") if data.shape == images.shape else data}

    def _pictures(self, images: Array, name: str) -> Array:
        """Turn images into what is drawn, (H, W) or, in colour, (H, W, 3)."""
        shape, images = images.shape, np.abs(images) if np.iscomplexobj(images) else images
        if self.channel_axis is not None:
            images = np.moveaxis(images, self.channel_axis % (images.ndim - 1) + 1, -1)
            images = images if images.shape[-1] == 3 else images.mean(axis=-1, keepdims=True)
        else:
            images = images[..., None]
        if images.ndim == 5:
            images = images[:, images.shape[1] // 2]
        if images.ndim != 4:
            more = (
                "" if self.channel_axis is None else f" and channels along channel_axis={self.channel_axis}"
            )
            raise ValueError(
                f"{name}: expected images (n_samples, H, W) or volumes (n_samples, D, H, W){more}, got shape "
                f"{shape}"
            )
        return images if images.shape[-1] == 3 else images[..., 0]

    def _label_psnr(self, axes: Array, name: str) -> None:
        values = psnr(self.X_true, self.predictions[name], data_range=self.data_range)
        for row, (axis, value) in enumerate(zip(axes, values, strict=True)):
            axis.set_title(f"{name}\n{value:.2f} dB" if row == 0 else f"{value:.2f} dB", fontsize=10)

    def _draw_errors(self, axes: Array, names: Sequence[str]) -> None:
        x = _numpy(self.X_true, "X_true")
        errors = {name: np.abs(x - _numpy(self.predictions[name], name)) for name in names}
        errors = {f"|error|, {n}": _averaged(self._pictures(error, n)) for n, error in errors.items()}
        peak = max(error.max() for error in errors.values()) or 1.0
        for axis, (title, error) in zip(axes.T, errors.items(), strict=True):
            image = _draw_column(axis, title, error, np.array([[0.0, peak]] * len(error)), "magma")
        self.figure_.colorbar(image, ax=list(axes.ravel()), shrink=0.9, aspect=12 * len(axes) + 8, pad=0.02)


def _grid(n_rows: int, n_columns: int, aspect: float, axes: Any) -> tuple[Figure, Array]:
    if axes is None:
        size = (1.9 * n_columns * min(max(aspect, 0.5), 2.0) + 0.6, 1.9 * n_rows + 0.4)
        return pyplot().subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    axes = np.asarray(axes, dtype=object)
    if axes.size != n_rows * n_columns:
        raise ValueError(f"axes: expected {n_rows} x {n_columns} of them, got shape {axes.shape}")
    axes = axes.reshape(n_rows, n_columns)
    return axes[0, 0].figure, axes


def _draw_column(axes: Array, title: str, pictures: Array, scale: Array | None, cmap: str) -> Any:
    """One column; the grey scale of each row is the range of ``scale`` there."""
    for axis, picture, like in zip(axes, pictures, pictures if scale is None else scale, strict=True):
        shown = np.clip(picture, 0, 1) if picture.ndim == 3 else picture
        image = axis.imshow(shown, cmap=cmap, vmin=like.min(), vmax=like.max(), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].set_title(title, fontsize=10)
    return image


def _fill(axes: Array) -> None:
    """Let a sinogram, whose axes have different units, fill its axes."""
    for axis in axes:
        axis.set_aspect("auto")


def _numpy(images: Any, name: str) -> Array:
    """Images as an array of floats; what is masked stays so, and blank."""
    rows = as_rows(images, name)
    values, mask = to_batch(rows).cpu().numpy(), missing(rows)
    return values if mask is None else np.ma.array(values, mask=mask)


def _averaged(pictures: Array) -> Array:
    """Without colours."""
    return pictures.mean(axis=-1) if pictures.ndim == 4 else pictures

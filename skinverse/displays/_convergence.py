"""Quality of reconstructions against the number of steps, or the time, spent on them."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from skinverse.displays._pyplot import pyplot
from skinverse.metrics import psnr

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]


class ConvergenceDisplay:
    """How the quality of reconstructions grows with the steps, or the seconds, spent on them.

    It is recommended to use :meth:`from_estimator` or :meth:`from_histories`.

    Parameters
    ----------
    histories : dict of str to (x, y)
        For each curve its name, the abscissae, shape (k,), and the values, shape (k,) or (k, n_samples). Of
        several images the mean is drawn, with a band from the smallest to the largest value.
    xlabel : str, default="steps"
        Label of the abscissa.
    ylabel : str, default="PSNR (dB)"
        Label of the ordinate.

    Attributes
    ----------
    figure_ : matplotlib Figure
        The figure, once plotted.
    ax_ : matplotlib Axes
        Its axes, once plotted.
    lines_ : list of matplotlib Line2D
        The curves, once plotted.

    Examples
    --------
    >>> from skinverse.displays import ConvergenceDisplay
    >>> display = ConvergenceDisplay.from_histories({"TV": ([1, 10, 100], [18.0, 24.0, 27.0])})
    >>> len(display.lines_)
    1
    """

    def __init__(
        self,
        histories: Mapping[str, tuple[Any, Any]],
        *,
        xlabel: str = "steps",
        ylabel: str = "PSNR (dB)",
    ) -> None:
        self.histories = histories
        self.xlabel = xlabel
        self.ylabel = ylabel

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X_true: Any,
        Y_meas: Any,
        *,
        against: str = "steps",
        metric: Callable[[Any, Any], Array] = psnr,
        n_points: int = 8,
        name: str | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Reconstruct under growing step limits and plot.

        Each point is a reconstruction of its own from the start, with ``max_steps`` on a geometric grid up to
        the estimator's own; the grid ends where all images stop by themselves. It therefore costs
        ``n_points`` reconstructions, together about twice the longest of them.

        Parameters
        ----------
        estimator : object
            A fitted iterative reconstructor, one with a parameter ``max_steps``. It is not changed.
        X_true, Y_meas : array-like of shape (n_samples, ...)
            True images and their measurements.
        against : {"steps", "seconds"}, default="steps"
            The abscissa: steps of the slowest image, or seconds per image.
        metric : callable, default=psnr
            ``metric(X_true, X_pred)``, one number per image.
        n_points : int, default=8
            Number of step limits.
        name : str, optional
            Name of the curve, by default the class of the estimator.
        ax : matplotlib Axes, optional
            Where to plot; a new figure by default.

        Returns
        -------
        ConvergenceDisplay
            The plotted display.

        Raises
        ------
        ValueError
            If the estimator has no ``max_steps``, or ``against`` is unknown.
        """
        history = _convergence(estimator, X_true, Y_meas, metric, n_points, _abscissa(against))
        label = "PSNR (dB)" if metric is psnr else getattr(metric, "__name__", "metric")
        xlabel = "seconds per image" if against == "seconds" else against
        return cls({name or type(estimator).__name__: history}, xlabel=xlabel, ylabel=label).plot(ax=ax)

    @classmethod
    def from_histories(
        cls,
        histories: Mapping[str, tuple[Any, Any]],
        *,
        xlabel: str = "steps",
        ylabel: str = "PSNR (dB)",
        ax: Axes | None = None,
    ) -> Self:
        """Plot curves that have been computed before.

        Parameters
        ----------
        histories : dict of str to (x, y)
            The curves by name.
        xlabel : str, default="steps"
            Label of the abscissa.
        ylabel : str, default="PSNR (dB)"
            Label of the ordinate.
        ax : matplotlib Axes, optional
            Where to plot; a new figure by default.

        Returns
        -------
        ConvergenceDisplay
            The plotted display.
        """
        return cls(histories, xlabel=xlabel, ylabel=ylabel).plot(ax=ax)

    def plot(self, *, ax: Axes | None = None) -> Self:
        """Draw the curves on a logarithmic abscissa.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to plot; a new figure by default.

        Returns
        -------
        ConvergenceDisplay
            Itself, with ``figure_``, ``ax_`` and ``lines_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        self.ax_: Any = pyplot().subplots(layout="constrained")[1] if ax is None else ax
        self.figure_ = self.ax_.figure
        self.lines_ = [self._curve(name, *history) for name, history in self.histories.items()]
        self.ax_.set(xlabel=self.xlabel, ylabel=self.ylabel, xscale="log")
        self.ax_.grid(alpha=0.3)
        self.ax_.legend(frameon=False)
        return self

    def _curve(self, name: str, x: Any, y: Any) -> Any:
        values = np.asarray(y, dtype=float).reshape(len(x), -1)
        (line,) = self.ax_.plot(x, values.mean(axis=1), marker="o", markersize=3, label=name)
        if values.shape[1] > 1:
            low, high = values.min(axis=1), values.max(axis=1)
            self.ax_.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
        return line


def _abscissa(against: str) -> Callable[[float, float], float]:
    """Which of (steps, seconds) is drawn."""
    choices: dict[str, Callable[[float, float], float]] = {"steps": lambda s, _: s, "seconds": lambda _, t: t}
    if against not in choices:
        raise ValueError(f"against: expected 'steps' or 'seconds', got {against!r}")
    return choices[against]


def _convergence(
    estimator: Any, X_true: Any, Y_meas: Any, metric: Any, n_points: int, abscissa: Any
) -> tuple[list[float], list[Array]]:
    limit = estimator.get_params(deep=False).get("max_steps")
    if limit is None:
        raise ValueError(f"expected an estimator with a step limit max_steps, got {type(estimator).__name__}")
    x, y = [], []
    for steps in np.unique(np.geomspace(1, limit, n_points).round().astype(int)):
        # A copy keeps what was fitted, which `clone` would drop.
        limited = copy.copy(estimator).set_params(max_steps=int(steps))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            start = time.perf_counter()
            X_hat, info = limited.predict(Y_meas, return_info=True)
            seconds = time.perf_counter() - start
        x.append(abscissa(float(np.max(info["n_steps"])), seconds / len(X_hat)))
        y.append(metric(X_true, X_hat))
        if np.all(info["n_steps"] < steps):
            break
    return x, y

"""scikit-learn's own order: measurements first."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import pylops
from numpy.typing import ArrayLike
from sklearn.base import MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils import Tags, get_tags
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from skinverse import persistence
from skinverse._arrays import check_complete
from skinverse._measurements import Measurements
from skinverse._parameters import Integer, Parametrized, fitted, parameter


class ReconstructionRegressor(MetaEstimatorMixin, RegressorMixin, Parametrized):
    """A reconstruction method as an ordinary scikit-learn regressor.

    The methods of this package take images first, ``fit(X_true, Y_meas)``, while scikit-learn's tools
    hand the *first* argument of ``fit`` to ``predict``. This adapter has scikit-learn's order, so
    ``Pipeline``, ``cross_val_predict``, string scorers, ``TransformedTargetRegressor`` and the rest work.
    It passes ``check_estimator`` around every method of the package. Arrays are flat or shaped like images
    and data; complex ones are taken where the method has an operator.

    See Also
    --------
    skinverse.estimators.BaseReconstructor.as_regressor : The usual way to get one.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_predict
    >>> from skinverse import Tikhonov
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=4, size=16, noise=0.01, random_state=0)
    >>> regressor = Tikhonov(A, lam=0.01).as_regressor()
    >>> cross_val_predict(regressor, data, images, cv=2).shape
    (4, 16, 16)
    """

    estimator: Any = parameter(
        kw_only=False,
        kind="BaseReconstructor",
        doc="The method; its parameters are searched as ``estimator__lam``.",
    )
    estimator_: Any = fitted(kind="BaseReconstructor", doc="The fitted clone.")
    n_features_in_: int = fitted(
        kind="int", allowed=Integer(ge=1), doc="Number of measurements of each sample, complex ones once."
    )
    image_shape_: tuple[int, ...] = fitted(
        kind="tuple of int", doc="Shape of one image in ``fit``; ``predict`` gives images of that shape."
    )

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit a clone of the method.

        Parameters
        ----------
        X : array-like or Measurements of shape (n_samples, n_measurements) or (n_samples, *dimsd)
            Measurements.
        y : array-like of shape (n_samples, n_pixels), (n_samples,) or (n_samples, *dims)
            True images.

        Returns
        -------
        object
            The fitted regressor.
        """
        estimator = clone(self.estimator)
        if isinstance(y, np.ma.MaskedArray):
            check_complete(y, "y")
        measured = Measurements.of(X)
        data, images = self._validated(estimator, measured.data, reset=True), np.asarray(y)
        if images.dtype.kind != "c":
            flat = images.reshape(len(images), -1) if images.ndim > 2 else y
            _, flat = validate_data(self, data.real, flat, multi_output=True, y_numeric=True)
            images = flat.reshape(images.shape).astype(data.real.dtype, copy=False)
        self.image_shape_ = images.shape[1:]
        images = images.reshape(len(images), -1)
        if estimator.operator is None and images.shape[1] != data.shape[1]:
            # Sizes that differ without an operator: the identity that pads or cuts.
            estimator.set_params(operator=pylops.Identity(data.shape[1], images.shape[1], dtype=data.dtype))
        self.estimator_ = estimator.fit(images, measured.of_data(data))
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Reconstruct images from measurements.

        Parameters
        ----------
        X : array-like or Measurements of shape (n_samples, n_measurements) or (n_samples, *dimsd)
            Measurements.

        Returns
        -------
        ndarray of shape (n_samples, n_pixels), (n_samples,) or (n_samples, *dims)
            Images, in the shape of ``fit``'s ``y``.
        """
        check_is_fitted(self)
        measured = Measurements.of(X)
        data = self._validated(self.estimator_, measured.data, reset=False)
        images = self.estimator_.predict(measured.of_data(data))
        return np.asarray(images).reshape(len(data), *self.image_shape_)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the regressor to one file, to be read by :func:`skinverse.load`.

        Parameters
        ----------
        path : path-like
            The file, by convention ``*.skinverse``; overwritten if it exists.
        """
        persistence.save(self, path)

    @classmethod
    def of(cls, estimator: Any) -> Self:
        """Put a method that may be fitted already into the adapter.

        Parameters
        ----------
        estimator : BaseReconstructor
            The method.

        Returns
        -------
        ReconstructionRegressor
            The adapter, fitted where the method is fitted and knows its operator.
        """
        regressor = cls(clone(estimator))
        operator = getattr(estimator, "operator_", None)
        if operator is not None:
            regressor.estimator_ = estimator
            regressor.n_features_in_ = int(np.prod(operator.dimsd))
            regressor.image_shape_ = tuple(int(size) for size in operator.dims)
        return regressor

    def _validated(self, estimator: Any, X: ArrayLike, *, reset: bool) -> np.ndarray:
        """Measurements as flat rows, checked as scikit-learn does, which knows no masks."""
        if isinstance(X, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in X):
            X = np.ma.stack(X)
        if isinstance(X, np.ma.MaskedArray):
            values = self._validated(estimator, X.filled(0), reset=reset)
            return np.ma.array(values, mask=np.ma.getmaskarray(X).reshape(values.shape))
        floats = [np.float64, np.float32]
        rows = np.asarray(X)
        if rows.size and rows.dtype.kind in "if" and get_tags(estimator).input_tags.positive_only:
            check_non_negative(rows, type(estimator).__name__)
        array = X if rows.ndim < 3 else rows.reshape(len(rows), -1)
        if rows.dtype.kind == "c" and estimator.operator is not None:
            rows = rows.reshape(len(rows), -1)
            for part in (rows.real, rows.imag):
                validate_data(self, part, reset=reset, dtype=floats)
            return rows
        return validate_data(self, array, reset=reset, dtype=floats)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.positive_only = get_tags(self.estimator).input_tags.positive_only
        # A regression onto one column is no inverse problem; the checks must not ask for a good score.
        tags.regressor_tags.poor_score = True
        return tags

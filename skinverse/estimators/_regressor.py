"""scikit-learn's own order: measurements first, flat arrays in and out."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
import pylops
from sklearn.base import BaseEstimator, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from skinverse.estimators._analytic import Tikhonov
from skinverse.estimators._base import BaseReconstructor


class ReconstructionRegressor(MetaEstimatorMixin, RegressorMixin, BaseEstimator):
    """A reconstruction method as an ordinary scikit-learn regressor.

    The methods of this package take images first, ``fit(X_true, Y_meas)``, while scikit-learn's tools
    hand the *first* argument of ``fit`` to ``predict``. This adapter has scikit-learn's order and flat
    arrays, so ``Pipeline``, ``cross_val_predict``, string scorers, ``TransformedTargetRegressor`` and
    the rest work. It passes ``check_estimator`` around every method of the package.

    Parameters
    ----------
    estimator : BaseReconstructor or None, default=None
        The method; its parameters are searched as ``estimator__lam``. None is :class:`Tikhonov`.

    Attributes
    ----------
    estimator_ : BaseReconstructor
        The fitted clone.
    n_features_in_ : int
        Number of measurements per sample.

    See Also
    --------
    BaseReconstructor.as_regressor : The usual way to get one.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_predict
    >>> from skinverse import Tikhonov
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=4, size=16, noise=0.01, random_state=0)
    >>> regressor = Tikhonov(A, lam=0.01).as_regressor()
    >>> cross_val_predict(regressor, data.reshape(4, -1), images.reshape(4, -1), cv=2).shape
    (4, 256)
    """

    _saved: ClassVar[tuple[str, ...]] = ("_one_column",)

    def __init__(self, estimator: BaseReconstructor | None = None) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any) -> Self:
        """Fit a clone of the method.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_measurements)
            Measurements, flat.
        y : array-like of shape (n_samples, n_pixels) or (n_samples,)
            True images, flat.

        Returns
        -------
        object
            The fitted regressor.
        """
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32])
        self._one_column = y.ndim == 1
        images = y.reshape(len(y), -1).astype(X.dtype, copy=False)
        self.estimator_ = clone(Tikhonov() if self.estimator is None else self.estimator)
        if self.estimator_.operator is None and images.shape[1] != X.shape[1]:
            # Sizes that differ without an operator: the identity that pads or cuts.
            self.estimator_.set_params(operator=pylops.Identity(X.shape[1], images.shape[1], dtype=X.dtype))
        self.estimator_.fit(images, X)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Reconstruct flat images from flat measurements.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_measurements)
            Measurements, flat.

        Returns
        -------
        ndarray of shape (n_samples, n_pixels) or (n_samples,)
            Images, flat, in the shape of ``fit``'s ``y``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        images = self.estimator_.predict(X).reshape(len(X), -1)
        return images[:, 0] if self._one_column else images

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        # A regression onto one column is no inverse problem; the checks must not ask for a good score.
        tags.regressor_tags.poor_score = True
        return tags

"""The adapter to scikit-learn's order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_predict

import skinverse
from skinverse import ReconstructionRegressor, Tikhonov
from skinverse.datasets import make_problem
from skinverse.operators import fourier_sampling


@pytest.fixture(scope="module")
def problem():
    return make_problem("deblurring", n_samples=4, size=12, noise=0.01, random_state=0)


def test_arrays_keep_the_shape_of_the_images(problem) -> None:
    X, Y, A = problem
    method = Tikhonov(A, lam=0.01)
    expected = method.fit(X, Y).predict(Y)
    shaped = clone(method).as_regressor().fit(Y, X).predict(Y)
    flat = clone(method).as_regressor().fit(Y.reshape(4, -1), X.reshape(4, -1)).predict(Y.reshape(4, -1))
    assert shaped.shape == X.shape and flat.shape == (4, 144)
    assert_allclose(shaped, expected)
    assert_allclose(flat, expected.reshape(4, -1))
    assert cross_val_predict(Tikhonov(A).as_regressor(), Y, X, cv=2).shape == X.shape


def test_complex_data_are_taken_with_an_operator() -> None:
    A = fourier_sampling(np.random.default_rng(0).random((8, 8)) < 0.6)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3, 8, 8)) + 1j * rng.normal(size=(3, 8, 8))
    Y = np.stack([A @ x.ravel() for x in X])
    regressor = Tikhonov(A, lam=1e-3).as_regressor().fit(Y, X)
    assert_allclose(regressor.predict(Y), Tikhonov(A, lam=1e-3).fit(X, Y).predict(Y))
    with pytest.raises(ValueError, match="Complex data not supported"):
        Tikhonov().as_regressor().fit(Y, Y)


def test_a_fitted_method_stays_fitted(problem) -> None:
    X, Y, A = problem
    method = Tikhonov(A, lam=0.01).fit(X, Y)
    assert_array_equal(method.as_regressor().predict(Y), method.predict(Y))
    with pytest.raises(NotFittedError):
        Tikhonov(A).as_regressor().predict(Y)


def test_a_regressor_is_saved_and_loaded(problem, tmp_path) -> None:
    X, Y, A = problem
    regressor = Tikhonov(A, lam=0.01).as_regressor().fit(Y, X)
    regressor.save(tmp_path / "regressor.skinverse")
    loaded = skinverse.load(tmp_path / "regressor.skinverse")
    assert isinstance(loaded, ReconstructionRegressor)
    assert_array_equal(loaded.predict(Y), regressor.predict(Y))


def test_the_method_is_required() -> None:
    with pytest.raises(TypeError):
        ReconstructionRegressor()

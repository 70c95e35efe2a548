"""What the base class does for every method: operators, their families, order of arguments."""

from __future__ import annotations

import pickle

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import BaggingRegressor
from sklearn.model_selection import GridSearchCV, cross_validate

from skinverse import Kaczmarz, LearnedGradientDescent, SpectralCutoff, Tikhonov, Trainer
from skinverse.datasets import make_problem
from skinverse.operators import GaussianBlur


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, pylops.LinearOperator]:
    rng = np.random.default_rng(0)
    A = pylops.MatrixMult(rng.normal(size=(20, 30)))
    X = rng.normal(size=(8, 30))
    return X, X @ A.A.T, A


# ---------------------------------------------------------------------- one operator in a process
def test_estimators_that_come_back_from_workers_share_the_operator(problem) -> None:
    X, Y, A = problem
    scores = cross_validate(Tikhonov(A), X, Y, cv=4, n_jobs=2, return_estimator=True)
    assert all(e.operator is A and e.operator_ is A for e in scores["estimator"])
    bag = BaggingRegressor(Tikhonov(A).as_regressor(), n_estimators=3, n_jobs=2, random_state=0).fit(Y, X)
    assert all(regressor.estimator_.operator is A for regressor in bag.estimators_)


def test_an_operator_that_was_changed_is_not_taken_for_the_one_that_was_sent(problem) -> None:
    _, _, A = problem
    before = A.A.copy()
    pickled = pickle.dumps(Tikhonov(A))
    A.A[0, 0] += 1
    assert_array_equal(pickle.loads(pickled).operator.A, before)


@pytest.mark.parametrize("method", [Tikhonov, SpectralCutoff, Kaczmarz])
def test_a_matrix_changed_in_place_counts_at_once(problem, method) -> None:
    _, Y, A = problem
    fitted = method(A).fit()
    before = fitted.predict(Y)
    A.A[:] *= np.linspace(1, 2, 20)[:, None]
    after = fitted.predict(Y)
    assert not np.allclose(before, after)
    assert_allclose(after, method(pylops.MatrixMult(A.A.copy())).fit().predict(Y))


def test_nothing_is_written_to_the_users_operator(problem) -> None:
    X, Y, A = problem
    before = set(vars(A))
    Tikhonov(A).fit(X, Y).predict(Y)
    assert set(vars(A)) == before


# ---------------------------------------------------------------------- families of operators
def test_parameters_of_an_operator_family_are_searched() -> None:
    X, _, _ = make_problem("deblurring", n_samples=4, size=16, random_state=0)
    A = GaussianBlur((16, 16), 1.5)
    Y = np.stack([(A @ x.ravel()).reshape(x.shape) for x in X])
    guess = GaussianBlur((16, 16), 0.7)
    search = GridSearchCV(Tikhonov(guess, lam=1e-3), {"operator__sigma": [0.7, 1.5, 3.0]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"operator__sigma": 1.5}
    assert guess.parameters["sigma"] == 0.7  # the operator that clones share stays as it is


def test_a_parameter_that_the_operator_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="operator: .* no parameter 'width'"):
        Tikhonov(GaussianBlur((8, 8), 1.0)).set_params(operator__width=2.0)
    with pytest.raises(ValueError, match="operator: .* no parameter 'sigma'"):
        Tikhonov(pylops.Identity(3)).set_params(operator__sigma=2.0)


# ---------------------------------------------------------------------- the order of arguments
def test_images_and_measurements_in_the_wrong_order_are_noticed() -> None:
    X, Y, A = make_problem("deblurring", n_samples=6, size=32, noise=0.02, random_state=0)
    method = LearnedGradientDescent(A, n_iterations=1, trainer=Trainer(max_epochs=1))
    for images, data in ((Y, X), (Y.reshape(6, -1), X.reshape(6, -1))):
        with pytest.raises(ValueError, match=r"images first .* as_regressor\(\)"):
            clone(method).fit(images, data)
    method.fit(X, Y)


def test_data_that_have_nothing_to_do_with_the_operator_are_nobodys_mistake() -> None:
    _, _, A = make_problem("deblurring", n_samples=6, size=32, random_state=0)
    rng = np.random.default_rng(0)
    Tikhonov(A).fit(rng.normal(size=(6, 32, 32)), rng.normal(size=(6, 32, 32)))
    Tikhonov(A).fit(np.zeros((6, 32, 32)), np.zeros((6, 32, 32)))

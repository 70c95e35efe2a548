"""Searches and predictions in the workers of joblib's back ends and of dask: as in one process."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV

from skinverse import PostProcessor, Tikhonov, Trainer
from skinverse.datasets import make_problem

N_WORKERS = 2
GRID = {"lam": [0.001, 0.01, 0.1, 1.0]}

Problem = tuple[np.ndarray, np.ndarray, pylops.LinearOperator]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem("ct", n_samples=12, size=16, noise=0.02, random_state=0)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that the workers would like to have
        cluster = distributed.LocalCluster(N_WORKERS, threads_per_worker=1, dashboard_address=":0")
        with cluster, distributed.Client(cluster) as client:
            yield client


@pytest.fixture(params=["loky", "dask"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "dask":
        request.getfixturevalue("client")
    return str(request.param)


def searched(problem: Problem, **how: Any) -> GridSearchCV:
    X, Y, A = problem
    return GridSearchCV(Tikhonov(A), GRID, cv=3, error_score="raise", **how).fit(X, Y)


@pytest.fixture(scope="module")
def in_sequence(problem: Problem) -> GridSearchCV:
    return searched(problem)


# ---------------------------------------------------------------------- searches
def test_a_grid_is_searched_as_in_sequence(problem, in_sequence, backend) -> None:
    with joblib.parallel_config(backend, n_jobs=N_WORKERS):
        search = searched(problem)
    assert search.best_params_ == in_sequence.best_params_
    for key, values in in_sequence.cv_results_.items():
        if key.endswith("_test_score"):
            assert_array_equal(search.cv_results_[key], values)
    assert search.best_estimator_.operator is problem[2]


def test_a_halving_search_is_as_in_sequence(problem, backend) -> None:
    X, Y, A = problem
    halving = HalvingGridSearchCV(Tikhonov(A), GRID, cv=2, random_state=0)
    expected = halving.fit(X, Y).cv_results_
    with joblib.parallel_config(backend, n_jobs=N_WORKERS):
        found = halving.fit(X, Y).cv_results_
    for key in ("iter", "n_resources", "mean_test_score", "rank_test_score"):
        assert_array_equal(found[key], expected[key])


def test_a_learned_method_is_searched_as_in_sequence(problem, client) -> None:
    X, Y, A = problem
    method = PostProcessor(A, network="dncnn", trainer=Trainer(max_epochs=1))
    search = GridSearchCV(method, {"trainer__lr": [1e-4, 1e-3]}, cv=2, error_score="raise", refit=False)
    expected = search.fit(X, Y).cv_results_["mean_test_score"]
    with joblib.parallel_config("dask"):
        found = search.fit(X, Y).cv_results_["mean_test_score"]
    assert_allclose(found, expected, rtol=1e-6)


def test_a_worker_lowers_the_operator_once(problem, backend) -> None:
    def n_uses(method: Any, images: np.ndarray, data: np.ndarray) -> int:
        """How many tasks of this worker have had the same map of the operator."""
        from skinverse.operators import as_torch

        A: Any = as_torch(method.operator_)
        A.n_uses = getattr(A, "n_uses", 0) + 1
        return int(A.n_uses)

    with joblib.parallel_config(backend, n_jobs=N_WORKERS):
        results = searched(problem, scoring=n_uses, refit=False).cv_results_
    uses = np.array([results[f"split{fold}_test_score"] for fold in range(3)])
    assert uses.size == 12 and (uses == 1).sum() <= N_WORKERS


def test_a_task_carries_how_the_operator_is_made_and_not_its_matrix(problem) -> None:
    _, Y, A = problem
    method = Tikhonov(A, lam=0.01).fit()
    method.predict(Y)
    assert len(pickle.dumps(method)) < 5000


# ---------------------------------------------------------------------- predictions
def test_blocks_of_a_dask_array_are_reconstructed_by_one_method_in_each_worker(problem, client) -> None:
    array = pytest.importorskip("dask.array")
    delayed = pytest.importorskip("dask").delayed
    _, Y, A = problem
    method = Tikhonov(A, lam=0.01).fit()

    def reconstructed(data: np.ndarray, method: Any) -> np.ndarray:
        return method.predict(data)

    def n_uses(data: np.ndarray, method: Any) -> np.ndarray:
        method.n_uses = getattr(method, "n_uses", 0) + 1
        return np.full((len(data), *A.dims), method.n_uses)

    rows = array.from_array(Y, chunks=(2, -1, -1))
    how = {"method": delayed(method), "chunks": (rows.chunks[0], *A.dims), "dtype": Y.dtype, "meta": Y[:0]}
    # Block by block: some processors round other numbers of images otherwise.
    expected = np.concatenate([method.predict(Y[k : k + 2]) for k in range(0, len(Y), 2)])
    assert_allclose(rows.map_blocks(reconstructed, **how).compute(), expected, rtol=1e-6)
    uses = rows.map_blocks(n_uses, **how).compute()[::2, 0, 0]
    assert len(uses) == 6 and (uses == 1).sum() <= N_WORKERS


def test_partitions_of_a_dask_bag_are_reconstructed(problem, client) -> None:
    bag = pytest.importorskip("dask.bag")
    _, Y, A = problem
    method = Tikhonov(A, lam=0.01).fit()
    rows = bag.from_sequence(list(Y), npartitions=3)
    images = rows.map_partitions(lambda data, method: list(method.predict(np.stack(list(data)))), method)
    expected = np.concatenate([method.predict(Y[k : k + 4]) for k in range(0, len(Y), 4)])
    assert_allclose(np.stack(images.compute()), expected, rtol=1e-6)

"""The public contract, checked for every estimator of the package."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pylops
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.utils.estimator_checks import parametrize_with_checks

import skinverse
from skinverse import ReconstructionRegressor, Tikhonov, Trainer
from skinverse.estimators import BaseReconstructor
from skinverse.estimators._base import _CHUNK

DIMS = (12, 10)


def reconstructors() -> list[BaseReconstructor]:
    """Every public reconstruction method, default-constructed; what learns, learns for a moment only."""
    classes = [getattr(skinverse, name) for name in skinverse.__all__]
    found = [c for c in classes if isinstance(c, type) and issubclass(c, BaseReconstructor)]
    methods = [c() for c in found if c is not skinverse.ModelAdaptation]  # that needs a fitted one
    # What has hardly been trained need not contract, unless it does by construction.
    short = {"trainer": Trainer(max_epochs=1), "lam": 0.1, "iteration": "contractive"}
    return [
        m.set_params(**{k: v for k, v in short.items() if k in m.get_params()})
        if "trainer" in m.get_params()
        else m
        for m in methods
    ]


GRIDS = {
    "lam": [1e-3, 10.0],
    "max_steps": [1, 30],
    "filter": ["ramp", "hann"],
    "n_iterations": [1, 3],
    "patch_size": [4, 8],
    "network": ["dncnn", "unet"],
}
# What knows images of one size, or one operator.
TIED = {"DirectInversion", "GenerativeCovariancePrior"}
every = pytest.mark.parametrize("estimator", reconstructors(), ids=lambda e: type(e).__name__)
any_size = pytest.mark.parametrize(
    "estimator",
    [e for e in reconstructors() if type(e).__name__ not in TIED],
    ids=lambda e: type(e).__name__,
)


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray, pylops.LinearOperator]:
    """Ill-posed: the coarse half of a cosine transform of a few smooth images."""
    rng = np.random.default_rng(0)
    operator = skinverse.operators.structurally_random(DIMS, 70, random_state=0)
    images = np.cumsum(rng.normal(size=(5, *DIMS)), axis=1) / 4
    data = np.stack([operator @ x.ravel() for x in images])
    return images, data + 0.01 * rng.normal(size=data.shape), operator


def fitted(estimator: BaseReconstructor, problem) -> BaseReconstructor:
    images, data, operator = problem
    return clone(estimator).set_params(operator=operator).fit(images, data)


@pytest.mark.filterwarnings("ignore:lam=.* sees no noise")  # the checks send numbers that are no measurements
@pytest.mark.draws_globally  # one of scikit-learn's checks does
@parametrize_with_checks([e.as_regressor() for e in reconstructors()] + [ReconstructionRegressor()])
def test_sklearn_checks(estimator, check) -> None:
    check(estimator)


@every
def test_reconstructs_images_of_the_operators_shape(estimator, problem) -> None:
    images, data, operator = problem
    assert fitted(estimator, problem).predict(data).shape == images.shape


@every
def test_is_better_than_nothing(estimator, problem) -> None:
    images, data, operator = problem
    X_hat = fitted(estimator, problem).predict(data)
    assert np.linalg.norm(X_hat - images) < 0.95 * np.linalg.norm(images)


@every
def test_flat_arrays_are_accepted(estimator, problem) -> None:
    images, data, operator = problem
    flat = clone(estimator).set_params(operator=operator).fit(images.reshape(5, -1), data.reshape(5, -1))
    assert_allclose(flat.predict(data.reshape(5, -1)), fitted(estimator, problem).predict(data))


@every
def test_an_image_does_not_depend_on_its_companions(estimator, problem) -> None:
    _, data, _ = problem
    loose = {k: v for k, v in {"tol": 1e-2, "max_steps": 40}.items() if k in estimator.get_params()}
    model = fitted(clone(estimator).set_params(**loose), problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        together, info = model.predict(data, return_info=True)
        alone = [model.predict(data[i : i + 1], return_info=True) for i in range(len(data))]
    assert_allclose(together, np.concatenate([x for x, _ in alone]), rtol=1e-6, atol=1e-9)
    assert_array_equal(info.n_steps, np.concatenate([i.n_steps for _, i in alone]))


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_kept(estimator, problem, dtype) -> None:
    _, data, _ = problem
    assert fitted(estimator, problem).predict(data.astype(dtype)).dtype == dtype


@every
def test_single_precision_agrees_with_double(estimator, problem) -> None:
    _, data, _ = problem
    model = fitted(estimator, problem)
    (single, of_single), (double, of_double) = (
        model.predict(y, return_info=True) for y in (data.astype("float32"), data)
    )
    if getattr(model, "weak_convexity_", 0.0) == 0.0:  # else the minimum need not be the only one
        assert_allclose(single, double, atol=5e-3 * np.abs(data).max())
    assert_allclose(of_single.objective, of_double.objective, rtol=2e-2, atol=1e-6)


@every
def test_torch_in_torch_out(estimator, problem) -> None:
    images, data, operator = problem
    model = clone(estimator).set_params(operator=operator)
    model.fit(torch.from_numpy(images), torch.from_numpy(data))
    X_hat = model.predict(torch.from_numpy(data))
    assert isinstance(X_hat, torch.Tensor)
    assert_allclose(X_hat.numpy(), fitted(estimator, problem).predict(data))


@every
def test_integers_become_floats(estimator, problem) -> None:
    _, data, _ = problem
    whole = (10 * data).astype(int)
    model = fitted(estimator, problem)
    assert_allclose(model.predict(whole), model.predict(whole.astype(float)))


@every
def test_info_is_one_number_per_image(estimator, problem) -> None:
    _, data, _ = problem
    _, info = fitted(estimator, problem).predict(data, return_info=True)
    assert {"n_steps", "converged", "residual", "objective"} <= set(info)
    assert all(v.shape == (len(data),) for v in info.values())


@every
def test_predict_changes_neither_the_estimator_nor_the_data(estimator, problem) -> None:
    _, data, _ = problem
    model, before = fitted(estimator, problem), data.copy()
    state = pickle.dumps(model)
    first = model.predict(data)
    assert pickle.dumps(model) == state
    assert_array_equal(data, before)
    assert_array_equal(model.predict(data), first)


@every
def test_pickled_and_cloned_predict_alike(estimator, problem) -> None:
    images, data, _ = problem
    model = fitted(estimator, problem)
    expected = model.predict(data)
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(data), expected)
    assert_array_equal(clone(model).fit(images, data).predict(data), expected)


@every
def test_clone_shares_the_operator(estimator, problem) -> None:
    *_, operator = problem
    assert clone(clone(estimator).set_params(operator=operator)).operator is operator


@every
def test_saved_and_loaded_predict_alike(estimator, problem, tmp_path) -> None:
    _, data, _ = problem
    model = fitted(estimator, problem)
    model.save(tmp_path / "model.skinverse")
    assert_array_equal(skinverse.load(tmp_path / "model.skinverse").predict(data), model.predict(data))


@every
def test_what_is_tied_to_one_size_says_so(estimator, problem) -> None:
    model = fitted(estimator, problem).set_params(operator=pylops.Identity((6, 9)))
    if type(model).__name__ in TIED:
        with pytest.raises(ValueError, match=r"\(12, 10\).*\(6, 9\)"):
            model.predict(np.zeros((2, 6, 9)))
    else:
        assert model.predict(np.zeros((2, 6, 9))).shape == (2, 6, 9)


@any_size
def test_denoising_takes_any_size(estimator) -> None:
    rng = np.random.default_rng(0)
    model = clone(estimator).fit(rng.normal(size=(2, 8, 8)), rng.normal(size=(2, 8, 8)))
    for dims in [(8, 8), (5, 7), (1, 1), (1, 6), (2, 4, 4), (9,)]:
        assert model.predict(rng.normal(size=(3, *dims))).shape == (3, *dims)


@any_size
def test_operator_can_be_exchanged(estimator, problem) -> None:
    _, data, operator = problem
    model = fitted(estimator, problem)
    other = skinverse.operators.inpainting(np.random.default_rng(0).random((6, 9)) < 0.7)
    Y = np.random.default_rng(1).normal(size=(2, *other.dimsd))
    assert model.set_params(operator=other).predict(Y).shape == (2, 6, 9)


@every
def test_channels_and_complex_images(estimator) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2, 3, 6, 6)) + 1j * rng.normal(size=(2, 3, 6, 6))
    X_hat = clone(estimator).fit(X, X).predict(X)
    assert X_hat.shape == X.shape and X_hat.dtype == X.dtype


@every
def test_grid_search_uses_the_score(estimator, problem) -> None:
    images, data, operator = problem
    name, values = next((n, v) for n, v in GRIDS.items() if n in estimator.get_params())
    search = GridSearchCV(
        clone(estimator).set_params(operator=operator), {name: values}, cv=2, error_score="raise"
    )
    search.fit(images, data)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert search.predict(data).shape == images.shape


@every
def test_regressor_follows_sklearns_order(estimator, problem) -> None:
    images, data, operator = problem
    regressor = clone(estimator).set_params(operator=operator).as_regressor()
    flat = cross_val_predict(regressor, data.reshape(5, -1), images.reshape(5, -1), cv=2)
    assert flat.shape == (5, 120)


@every
@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda y: np.full_like(y, np.nan), ValueError, "finite"),
        (lambda y: y.T.copy(), ValueError, "expected shape"),
        (lambda y: y[:, :-1], ValueError, "expected shape"),
        (lambda y: y[:0], ValueError, "at least one"),
        (lambda y: y[0], ValueError, "batch"),
        (lambda y: y.astype(str), TypeError, "numbers"),
        (lambda y: [[1.0], [1.0, 2.0]], (TypeError, ValueError), "."),
    ],
    ids=["nan", "transposed", "short", "empty", "one image", "text", "ragged"],
)
def test_bad_measurements_are_refused(estimator, problem, wrong, error, says) -> None:
    _, data, _ = problem
    model = fitted(estimator, problem)
    with pytest.raises(error, match=says):
        model.predict(wrong(data))


def test_right_count_in_the_wrong_shape_is_refused_not_reshaped() -> None:
    model = Tikhonov(pylops.Identity((4, 6))).fit()
    with pytest.raises(ValueError, match=r"expected shape \(n_samples, 4, 6\).*got \(2, 6, 4\)"):
        model.predict(np.ones((2, 6, 4)))


def test_wrong_adjoint_is_found() -> None:
    class Broken(pylops.LinearOperator):
        def _matvec(self, x):
            return 2 * x

        def _rmatvec(self, y):
            return 3 * y

    with pytest.raises(ValueError, match="adjoint"):
        Tikhonov(Broken(dtype="float64", shape=(4, 4))).fit()


def test_no_operator_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="LinearOperator.*ndarray"):
        Tikhonov(np.eye(3)).fit()


def test_unpaired_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images and Y_meas 2"):
        Tikhonov().fit(np.ones((3, 4)), np.ones((2, 4)))


def test_forgotten_operator_is_named() -> None:
    with pytest.raises(ValueError, match="operator=None is denoising"):
        Tikhonov().fit(np.ones((3, 4)), np.ones((3, 5)))


def test_predict_before_fit() -> None:
    with pytest.raises(NotFittedError):
        Tikhonov().predict(np.ones((1, 3)))


def test_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="lamda"):
        Tikhonov(lamda=1.0)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device: expected.*'gpu'"):
        Tikhonov(device="gpu").fit()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_refused() -> None:
    with pytest.raises(ValueError, match="without CUDA"):
        Tikhonov(device="cuda").fit(np.ones((2, 3)))


def test_sparse_data_are_refused() -> None:
    with pytest.raises(TypeError, match="sparse"):
        Tikhonov().fit().predict(scipy.sparse.eye_array(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_same_on_cuda(estimator, problem) -> None:
    _, data, _ = problem
    on_cpu = fitted(clone(estimator).set_params(device="cpu"), problem).predict(data)
    on_cuda = fitted(clone(estimator).set_params(device="cuda"), problem).predict(
        torch.from_numpy(data).cuda()
    )
    assert on_cuda.is_cuda
    assert_allclose(on_cuda.cpu().numpy(), on_cpu, rtol=1e-5, atol=1e-7)


def test_large_batches_are_cut_without_a_trace(monkeypatch) -> None:
    Y = np.random.default_rng(0).normal(size=(7, 5, 5))
    whole = Tikhonov().fit().predict(Y)
    monkeypatch.setitem(_CHUNK, "cpu", 50)
    assert_allclose(Tikhonov().fit().predict(Y), whole)


def test_global_generators_are_left_alone(problem) -> None:
    images, data, operator = problem
    for estimator in reconstructors():  # the fixture for all tests compares the generators' states
        fitted(estimator, problem).predict(data)

"""Images that were measured each in their own way: the same as one estimator for each."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate, learning_curve, train_test_split

import skinverse as sv
from skinverse import Measurements
from skinverse.noise import Gaussian, Poisson, PoissonGaussian
from skinverse.operators import (
    GaussianBlur,
    convolution,
    fourier_sampling,
    gaussian_blur,
    nonuniform_fourier,
    parallel_beam,
)

RNG = np.random.default_rng(0)
SIZE, N = 12, 4
IMAGES = np.kron(RNG.random((N, 4, 4)), np.ones((3, 3))) + 0.1
WIDTHS = [0.6, 1.0, 1.6, 0.6]
BLURS = [gaussian_blur((SIZE, SIZE), s) for s in WIDTHS]
BLURRED = np.stack([A @ x.ravel() for A, x in zip(BLURS, IMAGES, strict=True)]).reshape(IMAGES.shape)
BLURRED += 0.01 * RNG.standard_normal(IMAGES.shape)

CLASSICAL = [
    sv.Tikhonov(lam=1e-2),
    sv.Tikhonov(),
    sv.TotalVariationRecon(lam=1e-2, max_steps=30),
    sv.TotalGeneralizedVariationRecon(lam=1e-2, max_steps=20),
    sv.WaveletRecon(lam=1e-2, max_steps=30),
    sv.Landweber(max_steps=20),
    sv.Kaczmarz(max_steps=3),
    sv.SpectralCutoff(n_components=30),
    sv.MLEM(max_steps=5),
    sv.RichardsonLucy(max_steps=5),
    sv.FilteredBackProjection(),
]


def one_by_one(method: Any, operators: list[Any], data: Any, noises: list[Any] | None = None) -> Any:
    """The reference: an estimator for each image."""
    results = []
    for i, operator in enumerate(operators):
        alone = clone(method).set_params(operator=operator)
        if noises is not None:
            alone.set_params(noise=noises[i])
        results.append(alone.fit().predict(data[i][None])[0])
    return np.stack(results)


@pytest.fixture(autouse=True)
def _brief() -> Any:
    """A few steps are enough where results are compared step by step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------------- operators of images
@pytest.mark.parametrize("method", CLASSICAL[:-1], ids=lambda m: type(m).__name__)
def test_widths_of_a_blur_are_those_of_a_loop(method: Any) -> None:
    expected = one_by_one(method, BLURS, BLURRED)
    together = clone(method).set_params(operator=gaussian_blur((SIZE, SIZE), 1.0)).fit()
    got = together.predict(Measurements(BLURRED, sigma=WIDTHS))
    # Processors sum in other orders for other numbers of images: solvers amplify rounding to 1e-10.
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-9)


def fourier() -> tuple[Any, dict[str, Any], list[Any]]:
    masks = RNG.random((N, SIZE, SIZE)) < 0.6
    maps = RNG.standard_normal((N, 2, SIZE, SIZE)) + 1j * RNG.standard_normal((N, 2, SIZE, SIZE))
    operators = [fourier_sampling(mask, coils) for mask, coils in zip(masks, maps, strict=True)]
    return operators[0], {"mask": masks, "coil_maps": maps}, operators


def columns() -> tuple[Any, dict[str, Any], list[Any]]:
    masks = RNG.random((N, SIZE)) < 0.6
    maps = RNG.standard_normal((2, SIZE, SIZE)) + 0j
    operators = [fourier_sampling(mask, maps) for mask in masks]
    return operators[-1], {"mask": masks}, operators


def scans() -> tuple[Any, dict[str, Any], list[Any]]:
    angles, offsets = np.sort(RNG.random((N, 9)) * np.pi), [0.0, 0.5, -1.0, 2.0]
    operators = [
        parallel_beam((SIZE, SIZE), theta, 17, offset=o) for theta, o in zip(angles, offsets, strict=True)
    ]
    first = parallel_beam((SIZE, SIZE), np.linspace(0, 3, 9), 17)
    return first, {"angles": angles, "offset": offsets}, operators


def spreads() -> tuple[Any, dict[str, Any], list[Any]]:
    kernels = RNG.random((N, 3, 3))
    operators = [convolution(k, (SIZE, SIZE), boundary="valid") for k in kernels]
    return operators[1], {"psf": kernels}, operators


def members() -> tuple[Any, dict[str, Any], list[Any]]:
    operators = [GaussianBlur((SIZE, SIZE), s, radius=6) for s in WIDTHS]
    return GaussianBlur((SIZE, SIZE), 1.0, radius=6), {"sigma": WIDTHS}, operators


def attenuated() -> tuple[Any, dict[str, Any], list[Any]]:
    A, factors = parallel_beam((SIZE, SIZE), np.linspace(0, 3, 9), 17), RNG.random((N, 9 * 17)) + 0.5
    return pylops.Diagonal(factors[0]) @ A, {"diag": factors}, [pylops.Diagonal(f) @ A for f in factors]


def trajectories() -> tuple[Any, dict[str, Any], list[Any]]:
    points = RNG.uniform(-np.pi, np.pi, (N, 150, 2))
    operators = [nonuniform_fourier(p, (SIZE, SIZE)) for p in points]
    return operators[0], {"trajectory": points}, operators


PROBLEMS = [fourier, columns, scans, spreads, members, attenuated, trajectories]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.__name__)
def test_parameters_of_every_operator(problem: Any) -> None:
    operator, parameters, operators = problem()
    shape = (N, *operators[0].dimsd)
    data = RNG.standard_normal(shape)
    data = data + 1j * RNG.standard_normal(shape) if np.dtype(operator.dtype).kind == "c" else data
    data = np.stack(
        [(A.H.H @ (A.H @ y.ravel())).reshape(A.dimsd) for A, y in zip(operators, data, strict=True)]
    )
    method = sv.Tikhonov(lam=1e-2)
    expected = one_by_one(method, operators, data)
    got = method.set_params(operator=operator).fit().predict(Measurements(data, **parameters))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_analytic_inverses_know_the_geometry_of_each_image() -> None:
    operator, parameters, operators = scans()
    data = np.stack([(A @ x.ravel()).reshape(A.dimsd) for A, x in zip(operators, IMAGES, strict=True)])
    expected = one_by_one(sv.FilteredBackProjection(), operators, data)
    got = sv.FilteredBackProjection(operator).fit().predict(Measurements(data, **parameters))
    np.testing.assert_array_equal(got, expected)


def test_images_with_the_same_values_are_reconstructed_together() -> None:
    calls = []

    class Counted(sv.Tikhonov):
        def _reconstruct(self, A: Any, data: Any) -> Any:
            calls.append(len(data))
            return super()._reconstruct(A, data)

    Counted(gaussian_blur((SIZE, SIZE), 1.0), lam=0.1).fit().predict(Measurements(BLURRED, sigma=WIDTHS))
    assert sorted(calls) == [1, 1, 2]


def test_kernels_of_other_shapes_and_sizes_have_their_own_middle() -> None:
    kernels = [np.full((1, 3), 1 / 3), np.full((3, 1), 1 / 3), RNG.random((5, 5)), np.full((3, 3), 1 / 9)]
    operators = [convolution(kernel, (SIZE, SIZE)) for kernel in kernels]
    method = sv.Tikhonov(operators[3], lam=1e-2).fit()
    expected = one_by_one(method, operators, BLURRED)
    np.testing.assert_allclose(method.predict(Measurements(BLURRED, psf=kernels)), expected, rtol=1e-9)


# ---------------------------------------------------------------------- noise of images
NOISES = [
    ("weights", RNG.integers(0, 3, (N, SIZE, SIZE)).astype(float), lambda w: Gaussian(weights=w)),
    ("std", [0.01, 0.1, 0.2, 0.01], lambda s: Gaussian(s)),
]


@pytest.mark.parametrize(("name", "values", "noise"), NOISES, ids=["weights", "std"])
@pytest.mark.parametrize("method", [sv.Tikhonov(lam=1.0, tol=1e-10), sv.TotalVariationRecon(max_steps=30)])
def test_noise_of_each_image(method: Any, name: str, values: Any, noise: Any) -> None:
    A, data = gaussian_blur((SIZE, SIZE), 1.0), BLURRED.copy()
    if name == "weights":
        data[values == 0] = np.nan  # what was not measured is never read
    expected = one_by_one(method, [A] * N, data, [noise(v) for v in values])
    got = clone(method).set_params(operator=A).fit().predict(Measurements(data, **{name: values}))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_exposures_of_counts() -> None:
    gains, A = [0.01, 0.02, 0.05, 0.01], gaussian_blur((SIZE, SIZE), 1.0)
    method = sv.TotalVariationRecon(lam=1.0, max_steps=50)
    expected = one_by_one(method, [A] * N, BLURRED.clip(0), [Poisson(gain=g) for g in gains])
    method.set_params(operator=A, noise="poisson")
    got = method.fit().predict(Measurements(BLURRED.clip(0), gain=gains))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


def test_operator_and_noise_that_share_a_name_are_told_apart() -> None:
    A, offsets, dark = (
        parallel_beam((SIZE, SIZE), np.linspace(0, 3, 9), 17),
        [0.0, 1.0, 2.0, 0.0],
        [0.0, 1, 2, 3],
    )
    data = np.ones((N, 9, 17))
    method = sv.TotalVariationRecon(A, lam=1.0, noise=PoissonGaussian(std=0.1), max_steps=5).fit()
    with pytest.raises(ValueError, match=r"offset: expected .* such as noise__offset"):
        method.predict(Measurements(data, offset=offsets))
    got = method.predict(Measurements(data, operator__offset=offsets, noise__offset=dark))
    operators = [parallel_beam((SIZE, SIZE), np.linspace(0, 3, 9), 17, offset=o) for o in offsets]
    noises = [PoissonGaussian(std=0.1, offset=d) for d in dark]
    expected = one_by_one(sv.TotalVariationRecon(lam=1.0, max_steps=5), operators, data, noises)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------------- scikit-learn
def test_tools_of_scikit_learn_take_them() -> None:
    method, Y = sv.Tikhonov(gaussian_blur((SIZE, SIZE), 1.0), lam=1e-2), Measurements(BLURRED, sigma=WIDTHS)
    loop = one_by_one(method, BLURS, BLURRED)
    expected = sv.metrics.psnr(IMAGES, loop)
    search = GridSearchCV(method, {"lam": [1e-2, 1e5]}, cv=2).fit(IMAGES, Y)
    assert search.best_params_ == {"lam": 1e-2}
    scores = cross_validate(method, IMAGES, Y, cv=2)["test_score"]
    np.testing.assert_allclose(scores, expected.reshape(2, 2).mean(1), rtol=1e-6)
    learning_curve(method, IMAGES, Y, cv=2, train_sizes=[0.5, 1.0], shuffle=True, random_state=0)
    X_train, X_test, Y_train, Y_test = train_test_split(IMAGES, Y, test_size=2, random_state=0)
    assert len(X_train) == len(Y_train) == 2
    chosen = [int(np.flatnonzero((x == IMAGES).all((1, 2)))[0]) for x in X_test]
    assert method.fit(X_train, Y_train).score(X_test, Y_test) == pytest.approx(
        expected[chosen].mean(), rel=1e-6
    )


def test_regressors_take_them() -> None:
    method = sv.Tikhonov(gaussian_blur((SIZE, SIZE), 1.0), lam=1e-2)
    Y = Measurements(BLURRED, sigma=WIDTHS)
    got = method.as_regressor().fit(Y, IMAGES).predict(Y)
    np.testing.assert_allclose(got, method.fit().predict(Y), rtol=1e-12)


class Table:
    """What tables have in common: rows by position alone, and names when they are iterated over."""

    iloc = None

    def __len__(self) -> int:
        return len(WIDTHS)

    def __iter__(self) -> Any:
        return iter("abcd")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(WIDTHS)


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, np.float32, lambda _: Table()])
def test_values_may_be_of_any_kind(kind: Any) -> None:
    method = sv.Tikhonov(gaussian_blur((SIZE, SIZE), 1.0), lam=1e-2).fit()
    expected = method.predict(Measurements(BLURRED, sigma=WIDTHS))
    got = method.predict(Measurements(BLURRED, sigma=kind(WIDTHS)))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_several_sizes_are_split_by_scikit_learn() -> None:
    Y = [BLURRED[0], BLURRED[1][:6], BLURRED[2], BLURRED[3][:, :5]]
    X = [IMAGES[0], IMAGES[1][:6], IMAGES[2], IMAGES[3][:, :5]]
    method = sv.Tikhonov(lambda shape: gaussian_blur(shape, 1.0), lam=0.1)
    found = cross_validate(method, X, Measurements(Y, sigma=WIDTHS), cv=2, error_score="raise")
    assert np.isfinite(found["test_score"]).all()


def test_masks_in_lists_reach_regressors() -> None:
    hidden = [np.ma.masked_less(y, 0.4) for y in BLURRED]
    method = sv.Tikhonov(gaussian_blur((SIZE, SIZE), 1.0), lam=0.1).fit()
    np.testing.assert_allclose(method.as_regressor().predict(hidden), method.predict(hidden), rtol=1e-10)


def test_a_method_refuses_of_images_what_it_refuses_at_all() -> None:
    method = sv.SpectralCutoff(gaussian_blur((SIZE, SIZE), 1.0), n_components=30).fit()
    with pytest.raises(ValueError, match="white noise only"):
        method.predict(Measurements(BLURRED, weights=1 + RNG.random(BLURRED.shape)))


def test_some_of_them() -> None:
    Y = Measurements(BLURRED, sigma=WIDTHS, weights=np.ones_like(BLURRED))
    for index in (1, slice(1, 3), [2, 0], np.array([3]), np.array([True, False, True, False]), -1):
        part, rows = Y[index], np.atleast_1d(np.arange(N)[index])
        assert len(part) == len(rows)
        np.testing.assert_array_equal(part.data, BLURRED[rows])
        assert list(part.parameters["sigma"]) == [WIDTHS[i] for i in rows]
    assert [len(one) for one in Y] == [1] * N
    assert Y.shape == BLURRED.shape
    with pytest.raises(IndexError, match=r"a mask of 4 measurements"):
        Y[np.array([True, False])]
    with pytest.raises(TypeError, match="no array"):
        np.asarray(Y)


def test_tensors_and_masked_arrays() -> None:
    A = gaussian_blur((SIZE, SIZE), 1.0)
    method = sv.Tikhonov(A, lam=1e-2).fit()
    expected = method.predict(Measurements(BLURRED, sigma=WIDTHS))
    got = method.predict(
        Measurements(torch.from_numpy(BLURRED), sigma=torch.tensor(WIDTHS, dtype=torch.float64))
    )
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), expected)
    hidden = np.ma.masked_where(RNG.random(BLURRED.shape) < 0.2, BLURRED)
    loop = one_by_one(method, BLURS, hidden)
    np.testing.assert_allclose(
        method.predict(Measurements(hidden, sigma=WIDTHS)), loop, rtol=1e-9, atol=1e-11
    )


# ---------------------------------------------------------------------- what is refused
BAD = [
    (lambda: Measurements(BLURRED, sigma=WIDTHS[:3]), ValueError, "sigma: expected one value for each of 4"),
    (
        lambda: Measurements(BLURRED, sigma=1.0),
        TypeError,
        "sigma: expected one row for each image",
    ),
    (lambda: Measurements(BLURRED, sigma=dict(enumerate(WIDTHS))), TypeError, "sigma: .*, got dict"),
    (lambda: Measurements(BLURRED, weights=np.ma.masked_less(BLURRED, 0)), TypeError, "without a mask"),
    (lambda: Measurements(BLURRED, weights=[*map(np.ma.array, BLURRED)]), TypeError, "without a mask"),
    (lambda: Measurements(3), ValueError, "Y_meas: expected a batch"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), BAD)
def test_bad_measurements_are_refused(make: Any, kind: Any, sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        make()


WRONG = [
    (
        {"width": WIDTHS},
        r"width: expected a parameter of operator or noise \(operator: sigma; noise: std, weights",
    ),
    ({"sigma": [1.0, -1.0, 1.0, 1.0]}, r"Y_meas, row 1: .* sigma .* positive"),
    ({"std": [0.1, 0.0, 0.1, 0.1]}, r"Y_meas, row 1: std: expected .* > 0"),
    ({"weights": np.ones((N, 5, 5))}, r"weights: expected .*\(12, 12\), got shape \(5, 5\)"),
]


@pytest.mark.parametrize(("parameters", "sentence"), WRONG)
def test_values_that_cannot_be_are_refused(parameters: Any, sentence: str) -> None:
    method = sv.Tikhonov(gaussian_blur((SIZE, SIZE), 1.0), lam=0.1).fit()
    with pytest.raises(ValueError, match=sentence):
        method.predict(Measurements(BLURRED, **parameters))


def test_what_belongs_to_one_operator_takes_no_other() -> None:
    brief = sv.Trainer(max_epochs=1)
    method = sv.DirectInversion(gaussian_blur((SIZE, SIZE), 1.0), trainer=brief).fit(IMAGES, BLURRED)
    with pytest.raises(ValueError, match=r"DirectInversion: .* one operator, got sigma for each image"):
        method.predict(Measurements(BLURRED, sigma=WIDTHS))

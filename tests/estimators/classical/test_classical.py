"""Classical estimators against closed forms, dense linear algebra and the principles they claim."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skinverse import (
    FilteredBackProjection,
    Kaczmarz,
    Landweber,
    SpectralCutoff,
    Tikhonov,
    TotalGeneralizedVariationRecon,
    TotalVariationRecon,
    WaveletRecon,
    ZeroFilled,
)
from skinverse.datasets import make_problem, shepp_logan
from skinverse.metrics import psnr
from skinverse.operators import fourier_sampling, parallel_beam

VARIATIONAL = [TotalVariationRecon, TotalGeneralizedVariationRecon, WaveletRecon]


@pytest.fixture
def dense() -> tuple[np.ndarray, np.ndarray, pylops.LinearOperator]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(15, 10)) * np.logspace(0, -2, 10)
    return matrix, rng.normal(size=(4, 15)), pylops.MatrixMult(matrix)


# ---------------------------------------------------------------- Tikhonov
@pytest.mark.parametrize("lam", [1e-3, 0.1, 10.0])
def test_tikhonov_is_the_normal_equation(dense, lam) -> None:
    matrix, Y, A = dense
    expected = np.linalg.solve(matrix.T @ matrix + lam * np.eye(10), matrix.T @ Y.T).T
    assert_allclose(Tikhonov(A, lam=lam, tol=1e-12).fit().predict(Y), expected, rtol=1e-6, atol=1e-9)


def test_tikhonov_reports_its_objective(dense) -> None:
    matrix, Y, A = dense
    x, info = Tikhonov(A, lam=0.5).fit().predict(Y, return_info=True)
    expected = 0.5 * ((x @ matrix.T - Y) ** 2).sum(1) + 0.25 * (x**2).sum(1)
    assert_allclose(info.objective, expected)


def test_tikhonov_meets_the_discrepancy(dense) -> None:
    matrix, _, A = dense
    rng = np.random.default_rng(1)
    Y = rng.normal(size=(5, 10)) @ matrix.T + 0.1 * rng.normal(size=(5, 15))
    x, info = Tikhonov(A, lam="discrepancy", noise=0.1).fit().predict(Y, return_info=True)
    assert_allclose(np.linalg.norm(x @ matrix.T - Y, axis=1), 0.1 * np.sqrt(15), rtol=0.01)
    assert np.all(info.lam > 0)


def test_a_discrepancy_out_of_reach_is_reported() -> None:
    A = pylops.MatrixMult(np.array([[1.0], [1.0]]))
    with pytest.warns(ConvergenceWarning, match="1 of 1 images"):
        Tikhonov(A, lam="discrepancy", noise=1e-3).fit().predict(np.array([[1.0, -1.0]]))


# ---------------------------------------------------------------- spectral cut-off
@pytest.mark.parametrize("lam", [1e-6, 1e-2, 1.0])
def test_spectral_cutoff_is_the_truncated_svd(dense, lam) -> None:
    matrix, Y, A = dense
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    k = int((s**2 >= lam).sum())
    expected = (Y @ u[:, :k] / s[:k]) @ vt[:k]
    assert_allclose(SpectralCutoff(A, lam=lam).fit().predict(Y), expected)


def test_spectral_cutoff_without_cut_is_the_pseudo_inverse(dense) -> None:
    matrix, Y, A = dense
    assert_allclose(SpectralCutoff(A, lam=0.0).fit().predict(Y), Y @ np.linalg.pinv(matrix).T)


def test_spectral_cutoff_stops_at_the_noise(dense) -> None:
    matrix, Y, A = dense
    noise = 0.6 * np.linalg.norm(Y[0]) / np.sqrt(15)
    x, info = SpectralCutoff(A, lam="discrepancy", noise=noise).fit().predict(Y[:1], return_info=True)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    residuals = [np.linalg.norm(Y[0] - u[:, :k] @ (u[:, :k].T @ Y[0])) for k in range(11)]
    smallest = next((k for k in range(11) if residuals[k] <= noise * np.sqrt(15)), 10)
    assert info.n_components[0] == smallest


def test_randomized_decomposition_finds_the_leading_values(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    matrix = np.linalg.qr(rng.normal(size=(60, 40)))[0] * np.logspace(0, -4, 40)
    A = pylops.MatrixMult(matrix)
    monkeypatch.setattr("skinverse.estimators.classical.spectral_cutoff._DENSE", 10)
    model = SpectralCutoff(A, lam=0.0, n_components=8).fit()
    assert_allclose(model.singular_values_, np.logspace(0, -4, 40)[:8], rtol=1e-6)
    u, v = model.data_components_, model.components_
    assert_allclose(v @ matrix.T, model.singular_values_[:, None] * u, atol=1e-7)


@pytest.mark.parametrize("randomized", [False, True])
def test_complex_data_of_real_and_complex_images(monkeypatch, randomized) -> None:
    if randomized:
        monkeypatch.setattr("skinverse.estimators.classical.spectral_cutoff._DENSE", 1)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 4)) + 1j * rng.normal(size=(6, 4))
    Y = rng.normal(size=(3, 6)) + 1j * rng.normal(size=(3, 6))
    A = pylops.MatrixMult(matrix, dtype="complex128")
    assert_allclose(SpectralCutoff(A, lam=0.0).fit().predict(Y), Y @ np.linalg.pinv(matrix).T)
    of_real = A @ pylops.Real(4, dtype="complex128")
    stacked = np.vstack([matrix.real, matrix.imag])
    expected = np.hstack([Y.real, Y.imag]) @ np.linalg.pinv(stacked).T
    assert_allclose(SpectralCutoff(of_real, lam=0.0).fit().predict(Y).real, expected)


# ---------------------------------------------------------------- iterative
def test_landweber_is_the_spectral_filter_of_its_steps(dense) -> None:
    matrix, Y, A = dense
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    filtered = (1 - (1 - (s / s[0]) ** 2) ** 25) / s
    x = Landweber(A, max_steps=25).fit().predict(Y)
    assert_allclose(x, (Y @ u * filtered) @ vt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [Landweber, Kaczmarz])
def test_iterative_methods_stop_at_the_noise_image_by_image(method) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(15, 10))
    A = pylops.MatrixMult(matrix)
    Y = np.array([[1.0], [5.0], [25.0]]) * (rng.normal(size=(3, 10)) @ matrix.T) + 0.1 * rng.normal(
        size=(3, 15)
    )
    x, info = method(A, max_steps=5000, noise=0.1, relaxation=0.3).fit().predict(Y, return_info=True)
    assert np.all(np.linalg.norm(x @ matrix.T - Y, axis=1) <= 0.1 * np.sqrt(15))
    assert len(set(info.n_steps)) == 3


@pytest.mark.parametrize("order", ["random", "cyclic"])
def test_kaczmarz_by_rows_solves_a_consistent_system(order) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 6))
    X = rng.normal(size=(3, 6))
    model = Kaczmarz(pylops.MatrixMult(matrix), order=order, max_steps=200).fit()
    assert_allclose(model.predict(X @ matrix.T), X, atol=1e-6)


def test_blocks_may_change_after_fit() -> None:
    _, data, A = make_problem("ct", n_samples=1, size=16, noise=0.01, random_state=0)
    changed = Kaczmarz(A, n_blocks=2).fit().set_params(n_blocks=4).predict(data)
    assert_array_equal(changed, Kaczmarz(A, n_blocks=4).fit().predict(data))


def test_one_kaczmarz_step_projects_onto_the_hyperplane() -> None:
    row = np.array([[3.0, 4.0]])
    x = Kaczmarz(pylops.MatrixMult(row), max_steps=1).fit().predict(np.array([[10.0]]))
    assert_allclose(x, 10 * row / 25, rtol=1e-4)


def test_kaczmarz_is_faster_than_landweber_on_ct() -> None:
    images, data, A = make_problem("ct", n_samples=2, size=32, noise=0.01, random_state=0)
    fast, slow = Kaczmarz(A, max_steps=3, relaxation=0.5).fit(), Landweber(A, max_steps=6).fit()
    assert fast.score(images, data) > slow.score(images, data) + 1


@pytest.mark.parametrize("method", [Landweber, Kaczmarz])
def test_bounds_hold(dense, method) -> None:
    *_, Y, A = dense
    x = method(A, bounds=(0, 0.3)).fit().predict(Y)
    assert x.min() >= 0 and x.max() <= 0.3


@pytest.mark.parametrize("relaxation", [0.0, 2.0, -1.0])
def test_relaxation_outside_its_interval_is_refused(relaxation) -> None:
    with pytest.raises(ValueError, match="relaxation"):
        Landweber(relaxation=relaxation).fit()


# ---------------------------------------------------------------- filtered back-projection
def test_fbp_of_a_scaled_operator_is_the_same_image() -> None:
    A = parallel_beam((32, 32), np.arange(60) * np.pi / 60, 47)
    phantom = shepp_logan(32)
    y = (A @ phantom.ravel()).reshape(1, 60, 47)
    plain = FilteredBackProjection(A).fit().predict(y)
    scaled = FilteredBackProjection(0.01 * A).fit().predict(0.01 * y)
    assert_allclose(scaled, plain, rtol=1e-4, atol=1e-4)
    assert psnr(phantom[None], plain)[0] > 18


def test_zero_filling_of_fourier_samples_is_the_adjoint() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((8, 6)) < 0.5
    A = fourier_sampling(mask)
    x = rng.normal(size=(8, 6)) + 1j * rng.normal(size=(8, 6))
    spectrum = np.fft.fftshift(np.fft.fft2(x, norm="ortho")) * mask
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho")
    y = (A @ x.ravel()).reshape(1, *A.dimsd)
    assert_allclose(ZeroFilled(A).fit().predict(y)[0], expected)


def test_fbp_needs_an_operator_with_an_analytic_inverse() -> None:
    A = pylops.MatrixMult(np.ones((3, 2)))
    with pytest.raises(TypeError, match="Tikhonov"):
        FilteredBackProjection(A).fit().predict(np.ones((1, 3)))


def test_unknown_filter_is_refused() -> None:
    A = parallel_beam((8, 8), [0.0, 1.0], 12)
    with pytest.raises(ValueError, match="filter.*ramp"):
        FilteredBackProjection(A, filter="rampe").fit().predict(np.ones((1, 2, 12)))


# ---------------------------------------------------------------- variational
@pytest.mark.parametrize("method", VARIATIONAL)
def test_without_regularization_the_data_are_explained(method) -> None:
    Y = np.random.default_rng(0).normal(size=(2, 6, 6))
    assert_allclose(method(lam=0.0, tol=1e-6).fit().predict(Y), Y, atol=1e-3)


def test_a_huge_weight_leaves_the_mean() -> None:
    Y = np.random.default_rng(0).normal(size=(2, 6, 6))
    flat = TotalVariationRecon(lam=1e3, tol=1e-7, max_steps=20000).fit().predict(Y)
    assert_allclose(flat, np.broadcast_to(Y.mean((1, 2), keepdims=True), Y.shape), atol=1e-4)


def test_tv_denoising_of_a_step_shrinks_it_by_the_known_amount() -> None:
    """On n pixels of height h next to n of height 0, each side moves by lam / n."""
    step = np.repeat([0.0, 1.0], 10)[None]
    x = TotalVariationRecon(lam=0.5, tol=1e-7, max_steps=20000).fit(step, step).predict(step)
    assert_allclose(x, np.repeat([0.05, 0.95], 10)[None], atol=1e-5)


def test_tgv_keeps_a_slope_that_tv_flattens() -> None:
    slope = np.broadcast_to(np.linspace(0, 1, 24), (1, 24, 24))
    noisy = slope + 0.05 * np.random.default_rng(0).normal(size=slope.shape)
    tv = TotalVariationRecon(lam=0.2).fit().predict(noisy)
    tgv = TotalGeneralizedVariationRecon(lam=0.2).fit().predict(noisy)
    assert np.linalg.norm(tgv - slope) < 0.7 * np.linalg.norm(tv - slope)


def test_wavelet_denoising_is_soft_thresholding() -> None:
    from skinverse.functionals import WaveletSparsity

    Y = np.random.default_rng(0).normal(size=(2, 16, 16))
    import torch

    expected = WaveletSparsity().prox(torch.from_numpy(Y), 0.3).numpy()
    assert_allclose(WaveletRecon(lam=0.3, tol=1e-8).fit().predict(Y), expected, atol=1e-6)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_discrepancy_is_met_image_by_image(method) -> None:
    images, data, A = make_problem("deblurring", n_samples=3, size=24, noise=0.05, random_state=0)
    noise_std = 0.05 * float(np.abs(data).mean())
    x = method(A, lam="discrepancy", noise=noise_std, max_steps=5000).fit().predict(data)
    residual = np.array([np.linalg.norm(A @ xi.ravel() - yi.ravel()) for xi, yi in zip(x, data, strict=True)])
    assert_allclose(residual, noise_std * np.sqrt(data[0].size), rtol=0.02)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_bounds_hold_to_the_last_bit(method) -> None:
    images, data, A = make_problem("ct", n_samples=2, size=24, noise=0.05, random_state=0)
    x = method(A, lam=0.1, bounds=(0, None)).fit().predict(data)
    assert x.min() >= 0


@pytest.mark.parametrize("method", VARIATIONAL)
def test_too_few_steps_are_reported_with_the_number_of_images(method) -> None:
    images, data, A = make_problem("ct", n_samples=3, size=24, noise=0.05, random_state=0)
    with pytest.warns(ConvergenceWarning, match="3 of 3 images"):
        _, info = method(A, lam=0.1, max_steps=2).fit().predict(data, return_info=True)
    assert_array_equal(info.n_steps, 2)
    assert not info.converged.any()


@pytest.mark.parametrize("method", [Tikhonov, SpectralCutoff, *VARIATIONAL])
@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"lam": -1.0}, "lam: expected a number >= 0"),
        ({"lam": "Auto"}, "lam: expected a number >= 0"),
        ({"lam": None}, "lam: expected a number >= 0"),
        ({"lam": float("inf")}, "lam: expected a number >= 0"),
        ({"lam": "discrepancy"}, "expected its standard deviation"),
        ({"lam": "discrepancy", "noise": 0.0}, "noise: expected"),
    ],
)
def test_bad_weights_are_refused(method, params, says) -> None:
    with pytest.raises(ValueError, match=says):
        method(**params).fit()


@pytest.mark.parametrize("method", [Tikhonov, Landweber, Kaczmarz, *VARIATIONAL])
@pytest.mark.parametrize("steps", [0, -1, 2.5, None])
def test_impossible_numbers_of_steps_are_refused(method, steps) -> None:
    with pytest.raises(ValueError, match="max_steps: expected a whole number >= 1"):
        method(max_steps=steps).fit()


@pytest.mark.parametrize("method", VARIATIONAL)
def test_crossed_bounds_are_refused(method) -> None:
    with pytest.raises(ValueError, match="bounds"):
        method(bounds=(1.0, 0.0)).fit()


def test_mri_images_are_complex() -> None:
    images, data, A = make_problem("mri", n_samples=2, size=24, noise=0.01, random_state=0)
    x = TotalVariationRecon(A, lam=1e-3).fit().predict(data)
    assert np.iscomplexobj(x)
    assert psnr(images, x).mean() > psnr(images, ZeroFilled(A).fit().predict(data)).mean() + 1


# ------------------------------------------------------------------ units and level
def scaled_by(
    factor: float, method: type, data: np.ndarray, A: pylops.LinearOperator, **params: object
) -> np.ndarray:
    """The reconstruction of data times a factor, divided by it, with a noise level that goes with them."""
    how = {"noise": 0.02 * factor, "lam": "discrepancy"} | params
    known = {name: value for name, value in how.items() if name in method().get_params()}
    return method(A, **known).fit().predict(data * data.dtype.type(factor)).astype(complex) / factor


@pytest.mark.parametrize("method", [*VARIATIONAL, Tikhonov, Landweber, Kaczmarz, SpectralCutoff])
def test_the_unit_of_single_precision_data_is_free(method: type) -> None:
    _, data, A = make_problem("deblurring", n_samples=2, size=16, noise=0.02, random_state=0)
    data = data.astype(np.float32)
    expected = scaled_by(1.0, method, data, A)
    for factor in (1e-20, 1e12, 1e18):
        found = scaled_by(factor, method, data, A)
        assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", VARIATIONAL)
def test_a_unit_that_is_a_power_of_two_changes_no_bit(method: type) -> None:
    _, data, A = make_problem("ct", n_samples=2, size=16, noise=0.02, random_state=0)
    assert_array_equal(scaled_by(2.0**30, method, data, A), scaled_by(1.0, method, data, A))


@pytest.mark.parametrize("method", VARIATIONAL)
def test_images_of_one_batch_may_have_any_units(method: type) -> None:
    _, data, A = make_problem("deblurring", n_samples=2, size=16, noise=0.02, random_state=0)
    factors = np.array([1e-6, 1e6])[:, None, None]
    model = method(A, lam=1e-9).fit()
    together = model.predict(factors * data) / factors
    alone = np.concatenate([model.predict(part[None]) for part in factors * data]) / factors
    assert_allclose(together, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bounds", [None, (-0.1, 0.8)])
@pytest.mark.parametrize("method", VARIATIONAL)
def test_a_level_of_the_image_goes_through_projections(method: type, bounds: Any) -> None:
    _, data, A = make_problem("ct", n_samples=1, size=16, noise=0.02, random_state=0)
    data = data.astype(np.float64)
    of_ones = (A @ np.ones(A.shape[1])).reshape(A.dimsd).astype(np.float64)
    expected, told = method(A, lam=0.02, bounds=bounds).fit().predict(data, return_info=True)
    for offset in (1.0, 1000.0):
        moved = None if bounds is None else tuple(end + offset for end in bounds)
        model = method(A, lam=0.02, bounds=moved).fit()
        found, info = model.predict(data + offset * of_ones, return_info=True)
        assert_allclose(found - offset, expected, rtol=0, atol=1e-3)
        assert_array_equal(info.converged, told.converged)


@pytest.mark.parametrize("kind", ["denoising", "deblurring", "ct"])
def test_converged_images_explain_the_data_to_the_noise(kind: str) -> None:
    images, _, A = make_problem(kind, n_samples=2, size=16, noise=0.0, random_state=0)
    clean = np.stack([A @ x.ravel() for x in images]).reshape(2, *A.dimsd).astype(float)
    noise_std = 1e-6 * np.sqrt(np.mean(clean**2))
    data = clean + noise_std * np.random.default_rng(0).standard_normal(clean.shape)
    model = TotalVariationRecon(A, lam="discrepancy", noise=noise_std, max_steps=300).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found, info = model.predict(data, return_info=True)
    residuals = np.array(
        [np.linalg.norm(A @ x.ravel() - y.ravel()) for x, y in zip(found, data, strict=True)]
    )
    assert (residuals[info.converged] <= 1.01 * noise_std * np.sqrt(clean[0].size)).all()

"""Reconstruction from counts: variational methods with a Poisson fidelity, and expectation maximisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import LinearConstraint, minimize
from scipy.special import xlogy

from skinverse import (
    MLEM,
    RichardsonLucy,
    Tikhonov,
    TotalGeneralizedVariationRecon,
    TotalVariationRecon,
    WaveletRecon,
)
from skinverse.datasets import load_photographs, make_ellipses
from skinverse.metrics import psnr
from skinverse.noise import Poisson, PoissonGaussian
from skinverse.operators import convolution, gaussian_blur, parallel_beam

GAIN, BACKGROUND = 0.05, 0.3
NOISE = Poisson(gain=GAIN, background=BACKGROUND)
VARIATIONAL = [TotalVariationRecon, TotalGeneralizedVariationRecon, WaveletRecon]


def tomography(size: int = 16) -> tuple[np.ndarray, np.ndarray, pylops.LinearOperator]:
    """Ellipses, counts of their projections and the operator."""
    A = parallel_beam((size, size), np.arange(12) * np.pi / 12, size + 9)
    images = np.abs(make_ellipses(2, size, random_state=0)).astype(float)
    clean = np.stack([A @ x for x in images]).reshape(2, *A.dimsd)
    return images, NOISE.sample(clean, 1), A


def divergence(y: np.ndarray, v: np.ndarray) -> float:
    return float((v - y + xlogy(y, y) - xlogy(y, v)).sum())


# ---------------------------------------------------------------------- variational methods
def test_the_minimum_is_that_of_a_general_solver() -> None:
    rng = np.random.default_rng(0)
    matrix, lam, n = rng.uniform(size=(12, 8)), 0.7, 8
    truth = np.repeat([2.0, 6.0], 4)
    y = NOISE.sample((matrix @ truth)[None], 2)[0]
    differences = np.diff(np.eye(n), axis=0)
    # TV as the sum of bounds t >= |D x|: a smooth problem with linear constraints.
    constraint = np.block([[differences, np.eye(n - 1)], [-differences, np.eye(n - 1)]])
    reference = minimize(
        lambda z: divergence(y, matrix @ z[:n] + BACKGROUND) / GAIN + lam * z[n:].sum(),
        np.concatenate([np.full(n, 4.0), np.ones(n - 1)]),
        method="SLSQP",
        bounds=[(1e-9, None)] * (2 * n - 1),
        constraints=LinearConstraint(constraint, 0, np.inf),
        options={"maxiter": 500, "ftol": 1e-12},
    )
    method = TotalVariationRecon(pylops.MatrixMult(matrix), noise=NOISE, lam=lam, tol=1e-8, max_steps=20000)
    x, info = method.fit().predict(y[None], return_info=True)
    assert_allclose(info.objective, reference.fun, rtol=1e-5)
    assert_allclose(x[0], reference.x[:n], atol=2e-3)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_counts_are_reconstructed_without_negative_values_unless_asked_for(method: Any) -> None:
    images, data, A = tomography()
    how = {"noise": NOISE, "lam": 2.0, "tol": 1e-3}
    found = method(A, **how).fit().predict(data)
    assert found.min() >= 0 and psnr(images, found).min() > 15
    capped = method(A, **how, bounds=(None, 0.5)).fit().predict(data)
    assert capped.max() <= 0.5


@pytest.mark.parametrize("background", [BACKGROUND, 20 * BACKGROUND])
def test_the_rule_finds_a_weight_that_is_nearly_the_best(background: float) -> None:
    images, _, A = tomography(24)
    noise = Poisson(gain=GAIN, background=background)
    data = noise.sample(np.stack([A @ x for x in images]).reshape(2, *A.dimsd), 1)
    by_weight = [
        psnr(images, TotalVariationRecon(A, noise=noise, lam=lam, tol=1e-2).fit().predict(data))
        for lam in (0.5, 1, 2, 4, 8, 16)
    ]
    x = TotalVariationRecon(A, noise=noise, tol=1e-2).fit().predict(data)
    assert np.all(np.max(by_weight, axis=0) - psnr(images, x) < 1.0)


def test_the_rule_knows_no_units() -> None:
    _, data, A = tomography()
    of_counts = Poisson(gain=1.0, background=BACKGROUND / GAIN)
    x, info = TotalVariationRecon(A, noise=NOISE).fit().predict(data, return_info=True)
    counted, told = TotalVariationRecon(A, noise=of_counts).fit().predict(data / GAIN, return_info=True)
    assert_allclose(GAIN * counted, x, atol=1e-3 * x.max())
    assert_allclose(told.lam / GAIN, info.lam, rtol=0.02)


def test_the_discrepancy_principle_meets_the_expected_divergence() -> None:
    _, data, A = tomography()
    method = TotalVariationRecon(A, noise=NOISE, lam="discrepancy", max_steps=5000)
    found, info = method.fit().predict(data, return_info=True)
    assert info.converged.all()
    for x, y in zip(found, data, strict=True):
        means = (A @ x).reshape(A.dimsd) + BACKGROUND
        counts = means.ravel() / GAIN
        # An average over draws is an independent reference for what is expected.
        drawn = np.random.default_rng(0).poisson(counts, (400, counts.size))
        expected = np.mean([divergence(k, counts) for k in drawn])
        assert_allclose(divergence(y, means) / GAIN, expected, rtol=0.06)


def test_a_camera_is_treated_like_counts_shifted_by_its_read_noise() -> None:
    image = 40 * load_photographs(16, n_patches=1, random_state=0).astype(float)
    A, camera = gaussian_blur((16, 16), 1.0), PoissonGaussian(gain=0.5, std=2.0, offset=100.0)
    data = camera.sample(np.stack([A @ x for x in image]), 0)
    found = TotalVariationRecon(A, noise=camera).fit().predict(data)
    shifted = Poisson(gain=0.5, background=8.0)  # std^2 / gain
    expected = TotalVariationRecon(A, noise=shifted).fit().predict((data - 100 + 8).clip(0))
    assert_allclose(found, expected, atol=1e-6 * found.max())
    assert psnr(image, found) > psnr(image, data - 100)


def test_methods_of_squares_refuse_counts() -> None:
    with pytest.raises(
        ValueError, match="noise: expected a standard deviation > 0, a Gaussian or None, got 'poi"
    ):
        Tikhonov(noise="poisson").fit()


# ---------------------------------------------------------------------- expectation maximisation
def maximised(A: Any, y: np.ndarray, n_steps: int, n_subsets: int = 1, measured: Any = True) -> np.ndarray:
    """The iteration in NumPy."""
    of_ones = (A @ np.ones(A.dims)).reshape(A.dimsd)
    x = np.full(A.dims, (measured * (y - BACKGROUND)).sum() / (measured * of_ones).sum())
    for _ in range(n_steps):
        for k in range(n_subsets):
            used = np.zeros(A.dimsd)
            used[k::n_subsets] = 1
            used *= measured
            sensitivity = (A.H @ used).reshape(A.dims)
            ratio = used * y / ((A @ x).reshape(A.dimsd) + BACKGROUND)
            update = (A.H @ ratio).reshape(A.dims) / np.where(sensitivity > 0, sensitivity, 1)
            x = np.where(sensitivity > 0, x * update, x)
    return x


@pytest.mark.parametrize("n_subsets", [1, 4])
def test_images_are_those_of_the_iteration(n_subsets: int) -> None:
    _, data, A = tomography()
    found = MLEM(A, noise=NOISE, max_steps=6, n_subsets=n_subsets).fit().predict(data)
    expected = np.stack([maximised(A, y, 6, n_subsets) for y in data])
    assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_a_subset_leaves_alone_what_it_does_not_see() -> None:
    counts = np.array([[3.0, 5.0, 0.0, 7.0]])
    assert_allclose(MLEM(pylops.Identity(4), max_steps=2, n_subsets=2).fit().predict(counts), counts)
    # The second pixel is seen by the first subset alone, the last one by nothing.
    matrix = np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 0.0, 0.0]])
    found = MLEM(pylops.MatrixMult(matrix), max_steps=1, n_subsets=2).fit().predict(counts)[0]
    x = np.array([15 / 10, 15 / 10, 0.0])
    for rows in ([0, 2], [1, 3]):
        part, seen = matrix[rows], matrix[rows].sum(0)
        update = part.T @ (counts[0, rows] / (part @ x)) / np.where(seen > 0, seen, 1)
        x = np.where(seen > 0, x * update, x)
    assert_allclose(found, x, rtol=1e-12)


def test_missing_counts_leave_the_others_in_their_subsets() -> None:
    _, data, A = tomography()
    mask = np.zeros(data.shape, dtype=bool)
    mask[0, 1, 3], mask[1, 2], mask[1, 5, :4] = True, True, True
    masked = np.ma.array(np.where(mask, -1.0, data), mask=mask)
    found = MLEM(A, noise=NOISE, max_steps=3, n_subsets=4).fit().predict(masked)
    for x, y, m in zip(found, data, mask, strict=True):
        assert_allclose(x, maximised(A, y, 3, 4, measured=~m), rtol=1e-6, atol=1e-8)


def test_counts_are_kept_and_become_more_probable() -> None:
    images, _, A = tomography()
    y = Poisson().sample(np.stack([50 * (A @ x) for x in images]).reshape(2, *A.dimsd), 0)
    kept = [MLEM(A, max_steps=n).fit().predict(y, return_info=True) for n in (1, 2, 5, 20)]
    for x, _ in kept:
        assert_allclose([(A @ image).sum() for image in x], y.sum((1, 2)), rtol=1e-6)
    assert np.all(np.diff([info.objective for _, info in kept], axis=0) < 0)


def test_an_image_stops_where_its_divergence_is_what_is_expected() -> None:
    images, data, A = tomography()
    stopped = MLEM(A, noise=NOISE, max_steps=300, early_stopping=True).fit()
    x, info = stopped.predict(data, return_info=True)
    assert info.converged.all() and np.all((info.n_steps > 3) & (info.n_steps < 100))
    late = MLEM(A, noise=NOISE, max_steps=300).fit().predict(data)
    assert np.all(psnr(images, x) > psnr(images, late) + 1)
    alone = np.concatenate([stopped.predict(y[None]) for y in data])
    assert_allclose(x, alone, atol=1e-9)
    with pytest.warns(UserWarning, match="2 of 2 images did not converge"):
        MLEM(A, noise=NOISE, max_steps=2, early_stopping=True).fit().predict(data)


def test_ordered_subsets_make_as_much_progress_each_as_all_data() -> None:
    _, data, A = tomography()
    slow, fast = (
        MLEM(A, noise=NOISE, max_steps=n, n_subsets=k).fit().predict(data, return_info=True)[1].objective
        for n, k in ((12, 1), (3, 4))
    )
    assert_allclose(fast, slow, rtol=0.1)


def test_fixed_points_with_total_variation_are_minimisers() -> None:
    _, data, A = tomography()
    (blurred, info), (_, least) = (
        method(A, noise=NOISE, lam=0.5, max_steps=n).fit().predict(data, return_info=True)
        for method, n in ((RichardsonLucy, 1000), (TotalVariationRecon, 5000))
    )
    variation = [
        np.hypot(np.diff(x, axis=0, append=x[-1:]), np.diff(x, axis=1, append=x[:, -1:])).sum()
        for x in blurred
    ]
    divergences = [
        divergence(y, (A @ x).reshape(A.dimsd) + BACKGROUND) for x, y in zip(blurred, data, strict=True)
    ]
    assert_allclose(info.objective, np.array(divergences) / GAIN + 0.5 * np.array(variation), rtol=1e-4)
    assert_allclose(info.objective, least.objective, rtol=0.02)


def test_pixels_that_nothing_sees_are_zero_and_counts_of_zero_too() -> None:
    A = pylops.MatrixMult(np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    found = MLEM(A, max_steps=200).fit().predict(np.array([[3.0, 1.0], [0.0, 0.0]]))
    assert_allclose(found, [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-3)


def test_pixels_that_a_blur_hardly_sees_do_not_grow() -> None:
    profile = np.exp(-(np.arange(-8, 9) ** 2) / 2)
    psf = np.multiply.outer(profile, profile) / profile.sum() ** 2
    A = convolution(psf.astype(np.float32), (48, 48), boundary="valid")  # 1e-28 of the light of a corner
    image = 1 + 100 * np.abs(make_ellipses(1, 48, random_state=0))
    data = Poisson().sample((A @ image[0])[None], 0)
    found = RichardsonLucy(A, max_steps=30).fit().predict(data)
    assert_allclose((A @ found[0]).sum(), data.sum(), rtol=1e-3)
    assert psnr(A.crop_to_data(image), A.crop_to_data(found)) > 20


def test_an_operator_with_negative_values_is_refused() -> None:
    A = pylops.MatrixMult(np.array([[1.0, -3.0], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="operator: expected one without negative values"):
        MLEM(A).fit().predict(np.ones((1, 2)))

"""Counts in the generative prior: the likelihood expanded at the data, with weights of each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skinverse import Trainer
from skinverse.estimators.generative import inference, objectives
from skinverse.noise import Gaussian, Poisson, PoissonGaussian
from skinverse.operators import gaussian_blur

SIZE, N_DATA = (8, 8), 64
BACKGROUND = np.linspace(0, 4, N_DATA).reshape(SIZE)


@pytest.fixture(scope="module")
def operator() -> Any:
    factors = np.random.default_rng(3).permutation(np.geomspace(0.02, 3, N_DATA)).reshape(SIZE)
    return pylops.Diagonal(factors) @ gaussian_blur(SIZE, 0.7)


@pytest.fixture
def bright(blobs: Any, fit_prior: Any, operator: Any) -> Any:
    """A prior of images of up to some tens of counts."""
    trainer = Trainer(max_epochs=8, batch_size=16, lr=3e-3, final_lr=3e-3)
    return fit_prior(30 * np.abs(blobs(64)), operator, noise=None, n_restarts=1, trainer=trainer)


@pytest.fixture
def counts(blobs: Any, operator: Any) -> np.ndarray:
    clean = np.stack([operator @ x for x in 30 * np.abs(blobs(3, seed=9))])
    return Poisson(background=BACKGROUND).sample(clean, 1).astype(float)


def variances(counts: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(counts, BACKGROUND), 1)


@pytest.mark.parametrize("constraint", ["soft", "encoded", "range", "sparse"])
def test_of_one_image_it_is_gaussian_noise_with_weights(
    monkeypatch: pytest.MonkeyPatch, bright: Any, counts: np.ndarray, constraint: str
) -> None:
    monkeypatch.setattr(objectives, "_LINEAR_TOL", 1e-10)
    monkeypatch.setattr(objectives, "_SPARSE_TOL", 1e-5)
    bright.set_params(constraint=constraint, lam=0.8, tol=1e-6)
    bright.set_params(noise=Poisson(background=BACKGROUND))
    x, told = bright.predict(counts[:1], return_info=True)
    bright.set_params(noise=Gaussian(weights=1 / variances(counts[0])))
    expected, info = bright.predict(counts[:1] - BACKGROUND, return_info=True)
    assert_allclose(x, expected, atol=1e-3 * np.abs(expected).max())
    assert_allclose(told.lam, 0.8, rtol=1e-10)
    assert_allclose(told.objective, info.objective, rtol=1e-3)


def test_standard_deviations_are_those_of_gaussian_noise_with_weights(
    bright: Any, counts: np.ndarray
) -> None:
    bright.set_params(noise=Poisson(background=BACKGROUND))
    _, std = bright.predict(counts[:1], return_std=True)
    bright.set_params(noise=Gaussian(1.0, weights=1 / variances(counts[0])))
    _, expected = bright.predict(counts[:1] - BACKGROUND, return_std=True)
    assert_allclose(std, expected, rtol=0.02)


def test_auto_is_one(bright: Any, counts: np.ndarray) -> None:
    for noise in (Poisson(), Poisson(gain=0.1), PoissonGaussian(gain=np.full(SIZE, 2.0), std=3.0)):
        _, info = bright.set_params(noise=noise, constraint="range").predict(counts, return_info=True)
        assert_allclose(info.lam, 1, rtol=1e-6)


def test_discrepancy_meets_the_expected_squares(
    monkeypatch: pytest.MonkeyPatch, bright: Any, counts: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 10)
    bright.set_params(noise=Poisson(background=BACKGROUND), lam="discrepancy")
    x, info = bright.predict(counts, return_info=True)
    rest = np.stack([bright.operator @ image for image in x]) + BACKGROUND - counts
    squares = (rest**2 / variances(counts)).sum((1, 2))
    assert info.converged.any()
    assert_allclose(
        squares[info.converged], (counts / variances(counts)).sum((1, 2))[info.converged], rtol=0.11
    )


def test_the_expected_squares_are_those_of_draws() -> None:
    """The number of counts that are not zero is close to what squares of true images are on average."""
    rng = np.random.default_rng(0)
    for mean in (0.1, 0.5, 2.0, 20.0):
        y = rng.poisson(mean, 100_000)
        assert abs(((y - mean) ** 2 / np.maximum(y, 1)).mean() - (y > 0).mean()) < 0.25 * (y > 0).mean()


def test_all_counts_equal_are_gaussian_noise(bright: Any) -> None:
    y = np.full((1, *SIZE), 25.0)
    x = bright.set_params(noise="poisson", constraint="range").predict(y)
    assert_allclose(bright.set_params(noise=5.0).predict(y), x, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_the_unit_of_counts_plays_no_part(
    blobs: Any, fit_prior: Any, operator: Any, counts: np.ndarray, unit: float
) -> None:
    images, how = 30 * np.abs(blobs(16)), {"constraint": "range"}
    expected = fit_prior(images, operator, noise=Poisson(), **how).predict(counts)
    scaled = fit_prior(unit * images, operator, noise=Poisson(gain=unit), **how)
    found = scaled.predict((unit * counts).astype(np.float32))
    assert_allclose(found / unit, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("constraint", ["soft", "range"])
def test_masked_counts_are_never_read_and_companions_not_felt(
    bright: Any, counts: np.ndarray, constraint: str
) -> None:
    bright.set_params(noise=Poisson(background=BACKGROUND), constraint=constraint)
    mask = np.random.default_rng(2).random(counts.shape) < 0.2
    found = bright.predict(np.ma.masked_array(counts, mask))
    spoilt = np.where(mask, np.nan, counts)
    assert_array_equal(bright.predict(np.ma.masked_array(spoilt, mask)), found)
    together, alone = bright.predict(counts), bright.predict(counts[1:2])
    assert np.linalg.norm(alone[0] - together[1]) <= 1e-5 * np.linalg.norm(alone)


def test_rows_without_an_image_do_not_count(bright: Any, counts: np.ndarray, operator: Any) -> None:
    """A factor of zero leaves the background of a datum, which says nothing of the image."""
    kept = (np.arange(N_DATA) % 3 > 0).reshape(SIZE)
    factors = pylops.Diagonal(kept.astype(float)) @ operator
    bright.set_params(operator=factors, noise=Poisson(background=BACKGROUND), constraint="range")
    x, info = bright.predict(counts, return_info=True)
    rows = pylops.Restriction(N_DATA, np.flatnonzero(kept)) @ operator
    bright.set_params(operator=rows, noise=Poisson(background=BACKGROUND[kept]))
    expected, told = bright.predict(counts[:, kept], return_info=True)
    assert_allclose(x, expected, atol=1e-3)
    assert_allclose(info.objective, told.objective, rtol=1e-4)

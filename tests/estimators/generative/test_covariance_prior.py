"""The estimator as a user meets it: operators, kinds and sizes of images, files, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from torch import nn

import skinverse
from skinverse import GenerativeCovariancePrior, Trainer
from skinverse.operators import gaussian_blur, inpainting, structurally_random

SIZE = (8, 8)
every_constraint = pytest.mark.parametrize("constraint", ["soft", "encoded", "range", "sparse", "adapted"])


# ------------------------------------------------------------------------------------------ operators
def test_another_operator_needs_no_training(prior: Any, truth: np.ndarray, measure: Any) -> None:
    weights = {name: value.clone() for name, value in prior.module_.state_dict().items()}
    for other in (gaussian_blur(SIZE, 0.7), inpainting(np.arange(64).reshape(SIZE) % 3 > 0)):
        x = prior.set_params(operator=other).predict(measure(other, truth))
        assert x.shape == truth.shape
        assert np.linalg.norm(x - truth) < 0.5 * np.linalg.norm(truth)
    assert all(torch.equal(value, weights[name]) for name, value in prior.module_.state_dict().items())


@every_constraint
def test_operators_of_flat_images_are_served(
    prior: Any, operator: Any, data: np.ndarray, constraint: str
) -> None:
    expected = prior.set_params(constraint=constraint).predict(data)
    flat = pylops.MatrixMult(operator.todense())
    assert flat.dims == (64,)
    x = prior.set_params(operator=flat).predict(data)
    assert x.shape == (3, 64)
    atol = 1e-2 if constraint == "adapted" else 2e-3  # Adam's first steps have the size of a sign
    assert_allclose(x.reshape(3, *SIZE), expected, atol=atol)


def test_a_matrix_told_the_shape_of_its_images_sees_their_neighbours(blobs: Any) -> None:
    matrix = pylops.MatrixMult(np.random.default_rng(0).normal(size=(20, 64)))
    matrix.dims = SIZE
    method = GenerativeCovariancePrior(matrix, n_latent=2, trainer=Trainer(max_epochs=1)).fit(blobs(16))
    assert method.shape_ == (1, *SIZE)
    assert method.predict(np.zeros((2, 20))).shape == (2, *SIZE)


def test_flat_data_are_accepted(prior: Any, truth: np.ndarray, measure: Any) -> None:
    prior.set_params(operator=gaussian_blur(SIZE, 0.7), constraint="range")
    noisy = measure(prior.operator, truth)
    assert_allclose(prior.predict(noisy.reshape(3, 64)), prior.predict(noisy))


# ------------------------------------------------------------------------------------------ kinds of images
@every_constraint
def test_complex_images_stay_complex(
    complex_prior: Any, complex_truth: np.ndarray, measure: Any, constraint: str
) -> None:
    complex_prior.set_params(constraint=constraint, noise=0.3, n_restarts=1, max_steps=2000)
    data = measure(complex_prior.operator, complex_truth[:1], noise=0.3)
    x = complex_prior.predict(data.astype(np.complex64))
    assert x.dtype == np.complex64 and x.shape == (1, *SIZE)
    assert np.abs(x.imag).max() > 0.01
    assert complex_prior.sample(3, random_state=0).dtype == np.complex64


@every_constraint
def test_real_images_are_reconstructed_from_complex_data(
    prior: Any, fourier: Any, truth: np.ndarray, measure: Any, constraint: str
) -> None:
    x = prior.set_params(operator=fourier, constraint=constraint, max_steps=500).predict(
        measure(fourier, truth)
    )
    assert x.dtype == np.float64
    assert np.linalg.norm(x - truth) < 0.5 * np.linalg.norm(truth)


@every_constraint
def test_coloured_images_are_reconstructed(coloured_prior: Any, blobs: Any, constraint: str) -> None:
    noisy = np.stack([blobs(2, seed=9), blobs(2, seed=9), 0.5 * blobs(2, seed=9)], 1)
    x = coloured_prior.set_params(constraint=constraint, noise=0.3).predict(noisy)
    assert x.shape == (2, 3, *SIZE) and x.dtype == np.float32
    assert coloured_prior.sample(4, random_state=0).shape == (4, 3, *SIZE)


def test_real_data_of_complex_images_are_served_or_refused(complex_prior: Any, blobs: Any) -> None:
    complex_prior.set_params(operator=gaussian_blur(SIZE, 0.7), constraint="range")
    try:
        assert complex_prior.predict(blobs(2)).shape == (2, *SIZE)
    except ValueError as refusal:
        assert "complex" in str(refusal)


@pytest.mark.parametrize("size", [(9, 13), (16, 10), (1, 12), (2, 2)], ids=str)
def test_images_of_any_size_are_learned(size: tuple[int, int], fit_prior: Any) -> None:
    images = np.random.default_rng(0).normal(size=(16, *size)).astype(np.float32)
    method = fit_prior(images, noise=0.5)
    assert method.predict(images[:2]).shape == (2, *size)
    assert method.sample(2, random_state=0).shape == (2, *size)


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (128, 128)], ids=str)
def test_images_of_real_sizes_are_learned(size: tuple[int, int], blobs: Any, fit_prior: Any) -> None:
    images = blobs(4, size=size)
    trainer = Trainer(max_epochs=1, batch_size=2)
    prior = fit_prior(images, pylops.Identity(size), trainer=trainer, constraint="encoded")
    x, std = prior.predict(images[:1], return_std=True)
    assert x.shape == std.shape == (1, *size)
    assert np.isfinite(x).all() and (std > 0).all()
    assert prior.sample(2, random_state=0).shape == (2, *size)
    assert prior.covariance_row(images[:1], (size[0] // 2, 3)).shape == (1, *size)


# ------------------------------------------------------------------------------------------ files
@pytest.mark.parametrize("constraint", ["soft", "adapted"])
def test_saved_and_loaded_predicts_the_same(
    prior: Any, data: np.ndarray, images: np.ndarray, tmp_path: Path, constraint: str
) -> None:
    prior.set_params(constraint=constraint).save(tmp_path / "prior.skinverse")
    loaded = skinverse.load(tmp_path / "prior.skinverse")
    assert_array_equal(loaded.predict(data), prior.predict(data))
    assert_array_equal(loaded.sample(2, random_state=0), prior.sample(2, random_state=0))
    assert_array_equal(loaded.score_samples(images[:2]), prior.score_samples(images[:2]))


def test_complex_prior_is_saved_too(complex_prior: Any, complex_data: np.ndarray, tmp_path: Path) -> None:
    complex_prior.set_params(constraint="range").save(tmp_path / "prior.skinverse")
    loaded = skinverse.load(tmp_path / "prior.skinverse")
    assert_array_equal(loaded.predict(complex_data), complex_prior.predict(complex_data))


# ------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n_latent": 0}, "n_latent: expected a whole number >= 1, got 0"),
        ({"n_latent": 2.5}, "n_latent: expected a whole number"),
        ({"n_restarts": 0}, "n_restarts: expected a whole number >= 1, got 0"),
        ({"max_steps": 0}, "max_steps: expected a whole number >= 1, got 0"),
        ({"tol": -1.0}, "tol: expected a number >= 0, got -1.0"),
        ({"covariance": "sparse"}, "covariance: expected one of .*'sparse'"),
        ({"constraint": "hard"}, "constraint: expected one of .*'hard'"),
        ({"lam": -1.0}, "lam: expected a number >= 0"),
        ({"lam": "fit"}, "lam: expected a number >= 0"),
        ({"lam": "discrepancy", "noise": None}, "expected its standard deviation"),
        ({"noise": 0.0}, "noise: expected a standard deviation > 0"),
        ({"min_std": 0.0}, "min_std: expected a number > 0"),
        ({"min_std": math.inf}, "min_std: expected a number > 0"),
        ({"neighbourhood": 4}, "neighbourhood: expected an odd number .* got 4"),
        ({"neighbourhood": 0}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": 9}, "neighbourhood: expected an odd number .* at most the image's 8, got 9"),
        ({"neighbourhood": 2.5}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": math.inf}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": True}, "neighbourhood: expected an odd number"),
        ({"generator": nn.Identity()}, "generator: .* needs covariance=\"identity\", got 'full'"),
    ],
    ids=str,
)
def test_parameters_that_make_no_sense_are_refused(
    images: np.ndarray, fit_prior: Any, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        fit_prior(images[:4], **params)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"lam": "discrepancy", "noise": None}, "expected its standard deviation"),
        ({"constraint": "hard"}, "constraint: expected one of"),
        ({"lam": math.nan}, "lam: expected"),
        ({"n_restarts": 0}, "n_restarts: expected"),
    ],
    ids=str,
)
def test_parameters_changed_after_the_training_are_checked(
    prior: Any, data: np.ndarray, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        prior.set_params(**params).predict(data)


def test_fit_without_images_is_refused(data: np.ndarray) -> None:
    for given in ((), (None, data)):
        with pytest.raises(ValueError, match="learns from X_true, but X_true is missing"):
            GenerativeCovariancePrior().fit(*given)


def test_images_that_are_not_finite_are_refused(images: np.ndarray, fit_prior: Any) -> None:
    spoiled = images[:4].copy()
    spoiled[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="X_true: expected finite values"):
        fit_prior(spoiled)


def test_operators_of_another_image_size_are_refused(prior: Any) -> None:
    prior.set_params(operator=structurally_random((9, 9), 20, random_state=0))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\) and the operator takes \(9, 9\)"):
        prior.predict(np.ones((2, 20)))
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        prior.set_params(operator=None).predict(np.ones((2, 7, 7)))
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(4, 16\)"):
        prior.set_params(operator=pylops.Identity((4, 16))).predict(np.zeros((1, 4, 16)))


def test_bad_measurements_and_counts_are_refused(prior: Any, data: np.ndarray, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Y_meas: expected shape"):
        prior.predict(data[:, :-1])
    with pytest.raises(ValueError, match="Y_meas: expected finite values"):
        prior.predict(np.full_like(data, np.nan))
    for n_samples in (0, 2.5, True):
        with pytest.raises(ValueError, match="n_samples: expected a whole number"):
            prior.sample(n_samples)
    with pytest.raises(ValueError, match="X_true: expected shape"):
        prior.score_samples(images[:, :7])
    with pytest.raises(IndexError):
        prior.covariance_row(images[:1], (8, 0))


@pytest.mark.parametrize("use", ["predict", "score_samples", "sample", "covariance_row"])
def test_nothing_works_before_the_training(images: np.ndarray, use: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"sample": (1,), "covariance_row": (images, (0, 0))}
    with pytest.raises(NotFittedError):
        getattr(GenerativeCovariancePrior(), use)(*arguments.get(use, (images,)))

"""What the trained model says of images: covariances, evidence, samples."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from skinverse import Trainer

SIZE = (8, 8)


# ------------------------------------------------------------------------------------------ covariance
def test_standard_deviations_stay_above_the_floor(images: np.ndarray, fit_prior: Any) -> None:
    constant = images.copy()
    constant[:, :4] = 0
    for floor in (0.02, 0.2):
        method = fit_prior(constant, min_std=floor, n_latent=1)
        z = torch.linspace(-2, 2, 5)[:, None]
        std = (-method.module_.gaussian(z).log_diag).exp()
        assert (std >= floor * (1 - 1e-5)).all()
        assert std[:, 0, :4].mean() < std[:, 0, 4:].mean() + 1e-6


def test_covariance_is_symmetric_and_positive(prior: Any, images: np.ndarray) -> None:
    pixels = [(0, 0), (3, 4), (3, 5), (4, 4), (7, 7)]
    some = images[:2].astype(np.float64)
    rows = {p: prior.covariance_row(some, p) for p in pixels}
    for p in pixels:
        assert rows[p].shape == (2, *SIZE)
        assert (rows[p][:, *p] > 0).all()
        for q in pixels:
            assert_allclose(rows[p][:, *q], rows[q][:, *p], rtol=1e-9, atol=1e-15)
            assert (rows[p][:, *q] ** 2 <= rows[p][:, *p] * rows[q][:, *q] * (1 + 1e-9)).all()


def test_covariance_knows_which_pixels_go_together(fit_prior: Any) -> None:
    """Nothing but texture, the same in pairs in a row: correlated by one half beside, not below."""
    texture = np.random.default_rng(0).normal(size=(64, *SIZE)).astype(np.float32)
    texture += np.roll(texture, 1, 2)
    trainer = Trainer(max_epochs=20, batch_size=16, lr=3e-3, final_lr=3e-3)
    method, relative = fit_prior(texture, n_latent=1, trainer=trainer), []
    for row in range(1, 7):
        for column in range(1, 7):
            covariance = method.covariance_row(texture[:4], (row, column)).mean(0)
            own, beside, below = (covariance[row + i, column + j] for i, j in ((0, 0), (0, 1), (1, 0)))
            relative.append((own, beside / own, below / own))
    own, beside, below = np.mean(relative, 0)
    assert own == pytest.approx(2, rel=0.2)
    assert beside == pytest.approx(0.5, abs=0.08)
    assert abs(below) < 0.08


def test_covariance_of_colours_stays_in_its_channel(
    coloured_prior: Any, complex_prior: Any, blobs: Any
) -> None:
    images = np.stack([blobs(2, seed=3)] * 3, 1)
    row = coloured_prior.covariance_row(images, (2, 3, 4))
    assert row.shape == (2, 3, *SIZE)
    assert (row[:, :2] == 0).all() and (row[:, 2, 3, 4] > 0).all()
    row = complex_prior.covariance_row(blobs(2).astype(np.complex64), (3, 4))
    assert row.shape == (2, *SIZE) and row.dtype == np.float32


def test_pixels_of_complex_coloured_images_are_counted_as_they_are(
    images: np.ndarray, fit_prior: Any
) -> None:
    X = np.stack([images, 2 * images, 0.5 * images], 1)[:12] * np.exp(0.3j)
    prior = fit_prior(X, channel_axis=0)
    rows = [prior.covariance_row(X[:1], (c, 3, 4)) for c in range(3)]
    for channel, row in enumerate(rows):
        assert row.shape == (1, 3, *SIZE)
        assert row[0, channel, 3, 4] > 0  # its variance
    assert_array_equal(prior.covariance_row(X[:1], (3, 4)), rows[0])
    for pixel in ((3, 3, 4), (0, 8, 0), (4,) * 4):
        with pytest.raises(IndexError, match=r"pixel: expected .* within \(3, 8, 8\)"):
            prior.covariance_row(X[:1], pixel)


# ------------------------------------------------------------------------------------------ evidence
@pytest.mark.parametrize("covariance", ["full", "identity"])
def test_evidence_bound_is_below_the_density(images: np.ndarray, fit_prior: Any, covariance: str) -> None:
    """One latent variable: both by quadrature over it."""
    trainer = Trainer(max_epochs=8, batch_size=16, lr=3e-3, final_lr=3e-3)
    method = fit_prior(images, n_latent=1, covariance=covariance, trainer=trainer)
    some = images[:2].astype(float)
    model, x = copy.deepcopy(method.module_).double(), torch.from_numpy(some)[:, None]
    x = (x - method.level_) / method.spread_
    z = torch.linspace(-6, 6, 801, dtype=torch.float64)
    step = float(z[1] - z[0])
    with torch.no_grad():
        likelihood = model.gaussian(z[:, None]).log_prob(x[:, None].expand(-1, len(z), *x.shape[1:]))
        mu, log_variance = model.encode(x)
    density = torch.logsumexp(likelihood + Normal(0.0, 1.0).log_prob(z), 1) + math.log(step)
    q = Normal(mu, (log_variance / 2).exp())
    weights = q.log_prob(z).exp() * step
    assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)
    divergence = kl_divergence(q, Normal(torch.zeros(1).double(), 1.0))
    bound = (weights * likelihood).sum(1) - divergence[:, 0]
    spread = ((weights * likelihood.square()).sum(1) - (weights * likelihood).sum(1).square()).clamp_min(0)
    scores = torch.from_numpy(method.score_samples(some)) + x[0].numel() * math.log(method.spread_)
    assert (bound <= density + 1e-6).all()
    assert ((scores - bound).abs() <= 4 * (spread / 16).sqrt() + 1e-6).all()


def test_images_like_those_of_the_training_have_more_evidence(
    prior: Any, images: np.ndarray, blobs: Any
) -> None:
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(images[:16].reshape(16, -1), axis=1).reshape(16, *SIZE)
    noise = (images.mean() + images.std() * rng.normal(size=(16, *SIZE))).astype(np.float32)
    likely = prior.score_samples(blobs(16, seed=9))
    assert likely.shape == (16,)
    assert likely.min() > prior.score_samples(noise).max()
    assert likely.min() > prior.score_samples(shuffled).max()


def test_evidence_is_repeatable_and_takes_flat_images(prior: Any, images: np.ndarray) -> None:
    scores = prior.score_samples(images[:4])
    assert_allclose(prior.score_samples(images[:4].reshape(4, -1)), scores)
    assert_allclose(prior.score_samples(images[1:2])[0], scores[1], rtol=1e-4)


def test_full_covariance_has_more_evidence_than_an_identity(
    prior: Any, images: np.ndarray, blobs: Any, fit_prior: Any
) -> None:
    identity = fit_prior(images, covariance="identity", trainer=prior.trainer)
    held_out = blobs(32, seed=9)
    assert prior.score_samples(held_out).mean() > identity.score_samples(held_out).mean() + 3


# ------------------------------------------------------------------------------------------ samples
def test_samples_are_repeatable_images_like_those_seen(prior: Any, images: np.ndarray) -> None:
    drawn = prior.sample(400, random_state=0)
    assert drawn.shape == (400, *SIZE) and drawn.dtype == np.float32
    assert np.array_equal(drawn, prior.sample(400, random_state=0))
    assert not np.array_equal(drawn, prior.sample(400, random_state=1))
    assert prior.sample().shape == (1, *SIZE)
    assert_allclose(drawn.mean(0), images.mean(0), atol=0.2)
    assert drawn.std() == pytest.approx(images.std(), rel=0.4)


@pytest.mark.draws_globally
def test_without_a_seed_samples_do_not_come_from_the_global_generators(prior: Any) -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        drawn.append(prior.sample(2))
    assert not np.array_equal(*drawn)


# ------------------------------------------------------------------------------------------ kinds of arrays
def test_tensors_in_are_tensors_out(prior: Any, truth: np.ndarray) -> None:
    images = torch.from_numpy(truth)
    assert isinstance(prior.score_samples(images), Tensor)
    rows = prior.covariance_row(images, (3, 3))
    assert isinstance(rows, Tensor) and not rows.requires_grad
    assert_allclose(rows.numpy(), prior.covariance_row(truth, (3, 3)), rtol=1e-5)


def test_complex_images_of_a_real_prior_are_refused(prior: Any, truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected real images"):
        prior.score_samples(truth + 1j)


def test_defaults_of_the_user_change_nothing(prior: Any, images: np.ndarray) -> None:
    def told() -> list[np.ndarray]:
        some = images[:2]
        return [
            prior.sample(2, random_state=0),
            prior.score_samples(some),
            prior.covariance_row(some, (3, 3)),
        ]

    expected = told()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(map(np.array_equal, told(), expected))
    finally:
        torch.set_default_dtype(torch.float32)

"""Standard deviations of pixels: against the dense formula, and through the estimator."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.testing import assert_close

from skinverse._tensors import as_channels
from skinverse.estimators.generative import uncertainty
from skinverse.estimators.generative.inference import minimise_from_starts
from skinverse.estimators.generative.objectives import LatentObjective, SoftObjective
from skinverse.estimators.generative.uncertainty import jacobian, posterior_std
from skinverse.operators import inpainting
from skinverse.solvers import lbfgs

SIZE = (8, 8)
NOISE = 0.03


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uncertainty, "_N_DRAWS", 4)


def dense_std(objective: LatentObjective, A: Tensor, z: Tensor, dense_covariance: Any, lam: float) -> Tensor:
    """Root of the diagonal of ``(A^T A / lam + (Sigma + J J^T)^-1)^-1``, (n, channels * pixels)."""
    stds = []
    for one, covariance in zip(z, dense_covariance(objective.model.gaussian(z)), strict=True):
        J = torch.autograd.functional.jacobian(lambda u: objective.model.mean(u[None]).flatten(), one)
        posterior = torch.linalg.inv(A.T @ A / lam + torch.linalg.inv(covariance + J @ J.T))
        stds.append(posterior.diagonal().sqrt())
    return torch.stack(stds)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_standard_deviations_are_those_of_the_dense_formula(
    monkeypatch: pytest.MonkeyPatch,
    prior: Any,
    complex_prior: Any,
    data: np.ndarray,
    complex_data: np.ndarray,
    objective_of: Any,
    real_matrix: Any,
    dense_covariance: Any,
    kind: str,
) -> None:
    monkeypatch.setattr(uncertainty, "_N_DRAWS", 120)
    method, some = (prior, data[:1]) if kind == "real" else (complex_prior, complex_data[:1])
    z = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    objective = objective_of(SoftObjective, method, some, 0.02)
    std, converged = posterior_std(objective, z)
    assert converged.all()
    ratio = std.flatten(1) / dense_std(objective, real_matrix(method), z, dense_covariance, 0.02)
    assert (ratio - 1).abs().max() < 0.3  # each to 6.5 %
    assert (ratio - 1).abs().mean() < 0.08
    assert ratio.mean().item() == pytest.approx(1, abs=0.04)


def test_jacobian_is_that_of_the_mean(prior: Any) -> None:
    model = copy.deepcopy(prior.module_).double()
    z = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = jacobian(model, z)
    for i in range(2):
        expected = torch.autograd.functional.jacobian(lambda u: model.mean(u[None])[0], z[i])
        assert_close(J[:, i], expected.movedim(-1, 0))


def test_standard_deviations_of_the_estimator_are_those_of_its_posterior(
    prior: Any,
    data: np.ndarray,
    objective_of: Any,
    normalised: Any,
    real_matrix: Any,
    dense_covariance: Any,
) -> None:
    """With ``lam="auto"`` the weight is the variance of the noise, one in units of the likelihood."""
    x, std, info = prior.predict(data, return_std=True, return_info=True)
    assert_allclose(info.lam, 1, rtol=1e-6)
    lam = (NOISE / prior.spread_) ** 2
    objective = objective_of(SoftObjective, prior, normalised(prior, data), lam)
    starts = objective.model.starts(
        as_channels(torch.from_numpy((x - prior.level_) / prior.spread_), None), 1
    )
    latent = minimise_from_starts([(objective, lbfgs)], starts, max_steps=200, tol=1e-6)
    dense = prior.spread_ * dense_std(objective, real_matrix(prior), latent.x, dense_covariance, lam)
    ratio = torch.from_numpy(std).flatten(1) / dense
    assert (ratio - 1).abs().max() < 0.45  # 64 draws: each to 9 %
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)
    assert_allclose(prior.predict(data), x, rtol=1e-12)


def test_seen_pixels_are_surer_than_hidden_ones(prior: Any, truth: np.ndarray, measure: Any) -> None:
    mask = np.arange(64).reshape(SIZE) % 2 == 0
    prior.set_params(operator=inpainting(mask))
    _, std = prior.predict(measure(prior.operator, truth), return_std=True)
    assert std[:, mask].mean() < 0.8 * std[:, ~mask].mean()
    assert (std > 0).all()


def test_shape_and_kind_are_those_of_the_images(
    few_draws: None, prior: Any, complex_prior: Any, coloured_prior: Any, data: np.ndarray, measure: Any
) -> None:
    x, std = prior.predict(data.astype(np.float32), return_std=True)
    assert x.shape == std.shape == (3, *SIZE)
    assert x.dtype == std.dtype == np.float32
    x, std, info = prior.predict(torch.from_numpy(data), return_std=True, return_info=True)
    assert isinstance(std, Tensor) and std.dtype == torch.float64
    assert set(info) == {"n_steps", "converged", "residual", "objective", "lam"}
    images = np.abs(x.numpy()[:2])
    noisy = measure(complex_prior.operator, images).astype(np.complex64)
    x, std = complex_prior.predict(noisy, return_std=True)
    assert x.dtype == np.complex64 and std.dtype == np.float32
    assert x.shape == std.shape == (2, *SIZE)
    x, std = coloured_prior.predict(np.stack([images] * 3, 1), return_std=True)
    assert x.shape == std.shape == (2, 3, *SIZE)


def test_companions_do_not_matter(few_draws: None, prior: Any, data: np.ndarray) -> None:
    _, together = prior.predict(data, return_std=True)
    for i in range(3):
        assert_allclose(prior.predict(data[i : i + 1], return_std=True)[1][0], together[i], atol=1e-6)


def test_operators_of_flat_images_are_served(
    few_draws: None, prior: Any, operator: Any, data: np.ndarray
) -> None:
    _, expected = prior.predict(data, return_std=True)
    _, std = prior.set_params(operator=pylops.MatrixMult(operator.todense())).predict(data, return_std=True)
    assert_allclose(std.reshape(3, *SIZE), expected, atol=1e-4)


@pytest.mark.parametrize("constraint", ["range", "sparse", "adapted"])
def test_constraints_without_a_covariance_are_refused(prior: Any, data: np.ndarray, constraint: str) -> None:
    with pytest.raises(ValueError, match=f"return_std: .*covariance.*{constraint}"):
        prior.set_params(constraint=constraint).predict(data, return_std=True)

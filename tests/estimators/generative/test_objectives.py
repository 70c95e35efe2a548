"""Objectives of the latent variables: derivatives, and the best image, against dense formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from skinverse.estimators.generative.objectives import (
    LatentObjective,
    RangeObjective,
    SoftObjective,
    SparseObjective,
)
from skinverse.operators import fourier_sampling

SIZE = (8, 8)
every_kind = pytest.mark.parametrize("kind", [RangeObjective, SoftObjective, SparseObjective])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ derivatives
def assert_gradient_is_that_of_finite_differences(objective: LatentObjective, step: float = 1e-5) -> None:
    z = draw(len(objective.lam), 2, seed=3)
    value, gradient = objective.value_and_grad(z)
    assert_close(value, objective(z), rtol=1e-10, atol=1e-12)
    units = step * torch.eye(2, dtype=torch.float64)
    expected = torch.stack([(objective(z + unit) - objective(z - unit)) / (2 * step) for unit in units], 1)
    assert_close(gradient, expected, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
    assert gradient.abs().min() > 0


@every_kind
def test_gradient_is_that_of_finite_differences(
    accurate: None,
    prior: Any,
    data: np.ndarray,
    objective_of: Any,
    normalised: Any,
    kind: type[LatentObjective],
) -> None:
    y, lam = normalised(prior, data), 0.01 / prior.spread_**2
    assert_gradient_is_that_of_finite_differences(objective_of(kind, prior, y, lam))


@every_kind
def test_gradient_holds_for_complex_images(
    accurate: None,
    complex_prior: Any,
    complex_data: np.ndarray,
    objective_of: Any,
    normalised: Any,
    kind: type[LatentObjective],
) -> None:
    y, lam = normalised(complex_prior, complex_data), 0.01 / complex_prior.spread_**2
    assert_gradient_is_that_of_finite_differences(objective_of(kind, complex_prior, y, lam))


@every_kind
def test_gradient_holds_for_real_images_with_complex_data(
    accurate: None,
    prior: Any,
    truth: np.ndarray,
    measure: Any,
    objective_of: Any,
    normalised: Any,
    kind: type[LatentObjective],
) -> None:
    prior.set_params(operator=fourier_sampling(np.random.default_rng(0).random(SIZE) < 0.4))
    data = normalised(prior, measure(prior.operator, truth))
    lam = 0.01 / prior.spread_**2
    assert_gradient_is_that_of_finite_differences(objective_of(kind, prior, data, lam))


# ------------------------------------------------------------------------------------------ the best image
class Dense:
    """The soft objective by dense matrices: ``x = G + Sigma A^T (lam I + A Sigma A^T)^-1 (y - A G)``."""

    def __init__(self, A: Tensor, y: Tensor, G: Tensor, covariance: Tensor, z: Tensor, lam: float) -> None:
        precision = torch.linalg.inv(covariance)
        right = y @ A + lam * torch.einsum("npq,nq->np", precision, G)
        self.x = torch.linalg.solve(A.T @ A + lam * precision, right)
        rest = y - G @ A.T
        outer = lam * torch.eye(len(A), dtype=torch.float64) + A @ covariance @ A.T
        misfit = lam / 2 * (rest * torch.linalg.solve(outer, rest)).sum(1)
        log_det = torch.linalg.slogdet(covariance).logabsdet
        self.value = misfit + lam / 2 * (log_det + z.square().sum(1))


def as_real(data: np.ndarray) -> Tensor:
    flat = torch.from_numpy(data).flatten(1)
    return torch.cat([flat.real, flat.imag], 1) if flat.is_complex() else flat


@pytest.mark.parametrize("covariance", ["full", "diagonal", "identity", "full, complex"])
def test_soft_image_and_value_are_those_of_dense_formulas(
    request: pytest.FixtureRequest,
    accurate: None,
    fit_prior: Any,
    objective_of: Any,
    real_matrix: Any,
    dense_covariance: Any,
    covariance: str,
) -> None:
    if covariance == "full, complex":
        method, data = (request.getfixturevalue(name) for name in ("complex_prior", "complex_data"))
    else:
        images, operator, data = (request.getfixturevalue(name) for name in ("images", "operator", "data"))
        method = fit_prior(images, operator, covariance=covariance)
    objective, z = objective_of(SoftObjective, method, data, 0.02), draw(len(data), 2, seed=3)
    gaussian = objective.model.gaussian(z)
    dense = Dense(
        real_matrix(method),
        as_real(data),
        gaussian.mean.flatten(1),
        dense_covariance(gaussian),
        z,
        lam=0.02,
    )
    x, value, converged = objective.best_image(z)
    assert converged.all()
    assert_close(x.flatten(1), dense.x, rtol=1e-6, atol=1e-8)
    assert_close(value, dense.value, rtol=1e-8, atol=1e-10)


def test_soft_objective_does_not_depend_on_earlier_calls(
    accurate: None, prior: Any, data: np.ndarray, objective_of: Any
) -> None:
    objective = objective_of(SoftObjective, prior, data)
    value = objective(draw(3, 2))
    objective(draw(3, 2, seed=1))
    assert_close(objective(draw(3, 2)), value, rtol=1e-9, atol=1e-12)
    some = torch.tensor([2, 0])
    assert_close(objective.select(some)(draw(3, 2)[some]), value[some], rtol=1e-9, atol=1e-12)


def test_sparse_image_is_optimal(prior: Any, data: np.ndarray, objective_of: Any, real_matrix: Any) -> None:
    """``A^T (y - A x) = lam / b sign(v)`` where ``v`` is not zero, and no larger where it is."""
    objective, z, A = objective_of(SparseObjective, prior, data), draw(3, 2, seed=3), real_matrix(prior)
    x = objective.best_image(z).x.flatten(1)
    deviation = x - objective.model.mean(z).flatten(1)
    slope, weight = (as_real(data) - x @ A.T) @ A, 0.01 / float(objective.model.deviation)
    moved = deviation.abs() > 1e-9
    assert 0.02 < moved.double().mean() < 0.6
    assert_close(slope[moved], weight * deviation[moved].sign(), rtol=1e-4, atol=1e-6)
    assert (slope[~moved].abs() <= weight * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", ["real", "real, complex data", "complex"])
def test_adjoint_on_channels_is_the_adjoint(
    prior: Any,
    complex_prior: Any,
    fourier: Any,
    truth: np.ndarray,
    measure: Any,
    objective_of: Any,
    kind: str,
) -> None:
    method = complex_prior if kind == "complex" else prior
    if kind == "real, complex data":
        method.set_params(operator=fourier)
    fidelity = objective_of(RangeObjective, method, measure(method.operator, truth)).fidelity
    x, y = draw(3, *method.shape_, seed=4), torch.from_numpy(measure(method.operator, truth, seed=7))
    left = (fidelity.apply(x).conj() * y).real.flatten(1).sum(1)
    assert_close(left, (x * fidelity.adjoint(y)).flatten(1).sum(1))

"""Counts behind an absorbing object: statistics, fidelity, what it is good for, and who refuses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from torch import Tensor

from skinverse import TotalVariationRecon
from skinverse.functionals import LeastSquares, SquaredNorm, TransmissionDivergence
from skinverse.noise import Transmission
from skinverse.operators import as_torch, parallel_beam
from skinverse.solvers import accelerated_gradient, primal_dual

DIMSD = (3, 4)
FLAT = np.linspace(20, 60, 12).reshape(DIMSD)
MODELS: dict[str, Any] = {
    "without dark counts": Transmission(50.0),
    "with dark counts": Transmission(50.0, 3.0),
    "with arrays": Transmission(FLAT, 0.1 * FLAT),
}
every = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def clean(n: int = 1) -> np.ndarray:
    return np.tile(np.linspace(-0.1, 3, 12).reshape(DIMSD), (n, 1, 1))


def counts(model: Transmission, n: int = 2) -> Tensor:
    return torch.from_numpy(model.sample(clean(n), 0))


def random(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape))


@every
def test_counts_have_the_mean_and_the_variance_of_the_model(model: Transmission) -> None:
    n = 4000
    drawn, mean = model.sample(clean(n), 0), model.flat * np.exp(-clean()[0]) + model.dark
    assert_array_equal(drawn, drawn.round())
    assert_allclose(model.variance(clean())[0], mean)
    assert np.all(np.abs(drawn.mean(0) - mean) < 5 * np.sqrt(mean / n))
    assert_allclose(drawn.var(0), mean, rtol=0.15)


@every
def test_the_fidelity_is_the_negative_log_likelihood(model: Transmission) -> None:
    y, u = counts(model).numpy(), clean(2) + 0.3
    likelihood = -stats.poisson.logpmf(y, model.flat * np.exp(-u) + model.dark)
    best = -stats.poisson.logpmf(y, y)
    found = model.fidelity(None, torch.from_numpy(y))(torch.from_numpy(u))
    assert_allclose(found, (likelihood - best).sum((1, 2)))


@every
def test_its_mean_at_the_truth_is_what_is_expected(model: Transmission) -> None:
    n = 3000
    values = model.fidelity(None, counts(model, n))(torch.from_numpy(clean(n)))
    expected = float(model.expected_fidelity(torch.from_numpy(clean())))
    assert float(values.mean()) == pytest.approx(expected, abs=5 * float(values.std()) / n**0.5 + 1e-3)


@every
def test_gradients_are_those_of_differences(model: Transmission) -> None:
    A = as_torch(parallel_beam((5, 4), [0.1, 0.8, 2.0], 4, dtype="float64"))
    f, (x, direction) = model.fidelity(A, counts(model)), random(2, 2, 5, 4)
    value, gradient = f.value_and_grad(x)
    assert_allclose(value, f(x))
    h = 1e-6
    difference = (f(x + h * direction) - f(x - h * direction)) / (2 * h)
    assert_allclose((gradient * direction).flatten(1).sum(1), difference, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [1e-4, 0.3, 1e3])
def test_the_prox_solves_its_equation(step: float, dtype: torch.dtype) -> None:
    y, u = torch.tensor([[0.0, 1.0, 40.0, 1e4]], dtype=dtype), torch.tensor([[9.0, -3.0, 0.5, 20.0]])
    f = TransmissionDivergence(None, y, 50.0)
    z = f.prox(u.to(dtype), torch.full((1,), step, dtype=dtype))
    residual = (z - u + step * f.grad(z)).abs() / (1 + step * (y + 1))
    assert z.dtype == dtype
    assert float(residual.max()) < 50 * torch.finfo(dtype).eps


def test_extreme_values_stay_finite() -> None:
    f = TransmissionDivergence(None, torch.tensor([[0.0, 5.0]]), 1e5)
    value, gradient = f.value_and_grad(torch.full((1, 2), 200.0))
    assert torch.isfinite(value).all()
    assert_allclose(gradient, [[0.0, 5.0]])


@every
def test_a_part_of_a_batch_is_that_of_its_images(model: Transmission) -> None:
    f, u = model.fidelity(None, counts(model)), torch.from_numpy(clean(2))
    assert_array_equal(f.select(torch.tensor([1]))(u[1:]), f(u)[1:])


def test_few_counts_have_no_bias() -> None:
    """One number behind which there are 2 counts in the mean, seen by many rays."""
    y = torch.from_numpy(Transmission(20.0).sample(np.full((1, 4000), np.log(10)), 0))
    x = torch.zeros(1, 1, dtype=torch.float64)

    class Rays(torch.nn.Module):
        dims, dimsd, requires_grad = (1,), (4000,), False

        def forward(self, x: Tensor) -> Tensor:
            return x.expand(-1, 4000)

        def adjoint(self, y: Tensor) -> Tensor:
            return y.sum(1, keepdim=True)

        def norm(self) -> float:
            return 4000**0.5

    rays: Any = Rays()
    weighted = LeastSquares(rays, (20 / y.clamp_min(1)).log(), weights=y)
    direct = Transmission(20.0).fidelity(rays, y)
    nothing = 1e-9 * SquaredNorm()
    logarithm, likely = (float(accelerated_gradient(f + nothing, x, tol=1e-8).x) for f in (weighted, direct))
    assert float(primal_dual(direct, x, tol=1e-6).x) == pytest.approx(likely, abs=1e-3)
    assert likely == pytest.approx(float((20 / y.mean()).log()), abs=1e-4)  # the closed form
    assert likely == pytest.approx(np.log(10), abs=0.05)
    assert abs(logarithm - np.log(10)) > 0.2


def test_dark_counts_leave_no_prox() -> None:
    y = torch.ones(1, 2)
    f = TransmissionDivergence(None, y, 2.0, 1.0)
    assert f.weak_convexity is None
    with pytest.raises(TypeError, match="has no prox"):
        f.prox(y, 1.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected real counts >= 0"):
        TransmissionDivergence(None, -torch.ones(1, 2), 2.0)
    with pytest.raises(ValueError, match="expected flat > 0 and dark >= 0"):
        TransmissionDivergence(None, torch.ones(1, 2), 0.0)
    with pytest.raises(ValueError, match="flat: expected a number > 0"):
        Transmission(0.0).sample(clean())
    with pytest.raises(ValueError, match="expected less than 9e"):
        Transmission(1.0).sample(np.full((1, 2), -100.0))
    with pytest.raises(ValueError, match="expected real noise-free line integrals"):
        Transmission(1.0).sample(np.full((1, 2), 1j))


def test_estimators_compare_data_with_projections() -> None:
    A = parallel_beam((5, 4), [0.1], 4)
    with pytest.raises(ValueError, match=r"noise: expected .* got Transmission"):
        TotalVariationRecon(A, noise=Transmission(50.0)).fit()  # type: ignore[arg-type]

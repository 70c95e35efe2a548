"""L-BFGS and preconditioned conjugate gradients against closed forms and scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg as ssl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from skinverse.functionals import LeastSquares
from skinverse.solvers import conjugate_gradient, lbfgs


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Smooth:
    """A smooth function of each image and of its own parameters."""

    def __init__(self, function: Callable[..., Tensor], *parameters: Tensor) -> None:
        self.function, self.parameters = function, parameters

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = self(x)
            return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    def select(self, index: Tensor) -> Smooth:
        return Smooth(self.function, *(p[index] for p in self.parameters))


def quadratic(x: Tensor, B: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ni,nij,nj->n", x, B, x) / 2 - (b * x).sum(1)


def rosenbrock(x: Tensor, steepness: Tensor) -> Tensor:
    valley = steepness[:, None] * (x[:, 1:] - x[:, :-1].square()).square()
    return (valley + (1 - x[:, :-1]).square()).sum(1)


def logistic(x: Tensor, features: Tensor, signs: Tensor) -> Tensor:
    margins = signs * torch.einsum("nij,nj->ni", features, x)
    return torch.nn.functional.softplus(-margins).sum(1) + 0.1 * x.square().sum(1)


def barrier(x: Tensor, c: Tensor) -> Tensor:
    """Not a number where a pixel is negative; least at ``1 / c``."""
    return (c * x - x.log()).sum(1)


def definite(condition: float, size: int, *, n: int, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(draw(n, size, size, seed=seed))
    return q * torch.logspace(0, float(np.log10(condition)), size, dtype=torch.float64) @ q.mT


VALLEYS = Smooth(rosenbrock, torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))


# ------------------------------------------------------------------------------------------ minima
@given(
    seed=st.integers(0, 50), size=st.integers(1, 8), condition=st.floats(1, 1e3), scale=st.floats(1e-3, 1e3)
)
def test_quadratics_are_minimised(seed: int, size: int, condition: float, scale: float) -> None:
    B, b = scale * definite(condition, size, n=3, seed=seed), draw(3, size, seed=seed + 1)
    found = lbfgs(Smooth(quadratic, B, b), draw(3, size, seed=seed + 2), tol=1e-10, max_steps=500)
    exact = torch.linalg.solve(B, b)
    assert found.converged.all()
    assert ((found.x - exact).norm(dim=1) <= 1e-5 * exact.norm(dim=1)).all()
    assert_close(found.objective, -(b * exact).sum(1) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_curved_valleys_are_followed_to_their_end(size: int) -> None:
    x0 = 0.5 * draw(3, size, seed=1)
    found = lbfgs(VALLEYS, x0, tol=1e-10, max_steps=500)
    assert found.converged.all()
    assert_close(found.x, torch.ones(3, size).double(), rtol=1e-6, atol=1e-6)


def test_other_minima_are_stationary_too() -> None:
    """From there the valley of five pixels leads to a minimum of positive value, near (-1, 1, 1, 1, 1)."""
    x0 = torch.tensor([[-1.2, 1, 1, 1, 1]]).double()
    hundred = VALLEYS.select(torch.tensor([2]))
    found = lbfgs(hundred, x0, tol=1e-10, max_steps=500)
    theirs = scipy.optimize.minimize(
        lambda v: rosenbrock(torch.from_numpy(v)[None], hundred.parameters[0]).item(),
        x0[0].numpy(),
        method="BFGS",
    )
    assert_close(found.objective.item(), theirs.fun, rtol=1e-6, atol=1e-6)
    assert hundred.value_and_grad(found.x)[1].abs().max() < 1e-5


def test_the_first_step_is_downhill_and_the_rest_are_few() -> None:
    """Curvature that was learned makes it far quicker than the steepest descent."""
    B, b = definite(1e3, 20, n=3), draw(3, 20, seed=1)
    found = lbfgs(Smooth(quadratic, B, b), torch.zeros(3, 20).double(), tol=1e-8, max_steps=1000)
    assert found.converged.all()
    assert (found.n_steps < 200).all()  # steepest descent: about the condition number times log(1 / tol)
    single = lbfgs(Smooth(quadratic, B, b), torch.zeros(3, 20).double(), tol=1e-8, max_steps=1000, n_pairs=1)
    assert (single.n_steps.double().mean() > found.n_steps.double().mean()).all()
    assert_close(single.x, torch.linalg.solve(B, b), rtol=1e-3, atol=1e-3)


def test_logistic_regressions_are_those_of_scipy() -> None:
    features, signs = draw(3, 30, 5), draw(3, 30, seed=1).sign()
    found = lbfgs(Smooth(logistic, features, signs), torch.zeros(3, 5).double(), tol=1e-9)
    assert found.converged.all()
    for i in range(3):
        one = Smooth(logistic, features[i : i + 1], signs[i : i + 1])
        theirs = scipy.optimize.minimize(
            lambda v, one=one: one(torch.from_numpy(v)[None]).item(), np.zeros(5), method="BFGS", tol=1e-8
        )
        assert_close(found.x[i], torch.from_numpy(theirs.x), rtol=1e-4, atol=1e-5)
        assert found.objective[i].item() <= theirs.fun + 1e-10


def test_images_keep_their_shape_and_number_type() -> None:
    target = draw(3, 2, 4, 5, dtype=torch.float32)
    distance = Smooth(lambda x, y: (x - y).square().flatten(1).sum(1), target)
    x0 = torch.zeros_like(target)
    found = lbfgs(distance, x0)
    assert found.x.shape == (3, 2, 4, 5)
    assert found.x.dtype == found.objective.dtype == found.residual.dtype == torch.float32
    assert_close(found.x, target, rtol=1e-4, atol=1e-4)
    assert (x0 == 0).all()


# ------------------------------------------------------------------------------------------ the descent
@pytest.mark.parametrize("n_pairs", [1, 3, 10])
def test_no_step_raises_the_objective(n_pairs: int) -> None:
    x0, values, steps = 2 * draw(3, 4), [], []
    values.append(VALLEYS(x0))

    def note(step: int, x: Tensor) -> None:
        steps.append(step)
        values.append(VALLEYS(x))

    found = lbfgs(VALLEYS, x0, max_steps=300, tol=1e-9, n_pairs=n_pairs, callback=note)
    assert (torch.stack(values).diff(dim=0) <= 0).all()
    assert steps == list(range(1, int(found.n_steps.max()) + 1))
    assert torch.equal(values[-1], found.objective)
    assert (values[-1] < values[0]).all()


@given(seed=st.integers(0, 200), steepness=st.floats(0, 1e4), max_steps=st.integers(0, 30))
def test_it_never_ends_above_its_start(seed: int, steepness: float, max_steps: int) -> None:
    valley = Smooth(rosenbrock, torch.full((2,), steepness, dtype=torch.float64))
    x0 = 5 * draw(2, 3, seed=seed)
    found = lbfgs(valley, x0, max_steps=max_steps, tol=0.0)
    assert (found.objective <= valley(x0)).all()
    assert_close(found.objective, valley(found.x))


def test_every_image_stops_by_itself() -> None:
    B = torch.stack([torch.eye(6).double(), definite(30, 6, n=1)[0], definite(3e3, 6, n=1)[0]])
    found = lbfgs(Smooth(quadratic, B, draw(3, 6)), torch.zeros(3, 6).double(), tol=1e-8, max_steps=400)
    assert found.converged.all()
    assert found.n_steps[0] < found.n_steps[1] < found.n_steps[2]
    assert (found.residual < 1e-8).all()


def test_image_does_not_feel_its_companions() -> None:
    x0 = torch.stack([torch.ones(4), draw(4, dtype=torch.float32), 3 * draw(4, dtype=torch.float32)]).double()
    together = lbfgs(VALLEYS, x0, tol=1e-9)
    assert len(set(together.n_steps.tolist())) == 3
    for i in range(3):
        alone = lbfgs(VALLEYS.select(torch.tensor([i])), x0[i : i + 1], tol=1e-9)
        assert alone.n_steps[0] == together.n_steps[i]
        assert_close(alone.x[0], together.x[i], rtol=1e-12, atol=1e-12)
        assert_close(alone.objective[0], together.objective[i], rtol=1e-9, atol=1e-15)


def test_start_at_the_minimum_is_left_alone() -> None:
    B, b = definite(10, 4, n=2), torch.zeros(2, 4).double()
    found = lbfgs(Smooth(quadratic, B, b), torch.zeros(2, 4).double())
    assert found.converged.all()
    assert (found.x == 0).all() and (found.objective == 0).all()
    assert found.n_steps.tolist() == [1, 1]


def test_start_near_the_minimum_is_not_spoiled() -> None:
    x0 = torch.ones(3, 4).double()
    found = lbfgs(VALLEYS, x0)
    assert found.converged.all()
    assert torch.equal(found.x, x0)


def test_too_few_steps_are_told() -> None:
    x0 = draw(3, 4)
    for max_steps in (0, 1, 3):
        found = lbfgs(VALLEYS, x0, max_steps=max_steps, tol=1e-9)
        assert found.n_steps.tolist() == [max_steps] * 3
        assert not found.converged.any()
    assert torch.equal(lbfgs(VALLEYS, x0, max_steps=0).x, x0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_the_objective_plays_no_part(scale: float) -> None:
    scaled = Smooth(lambda x, c: scale * rosenbrock(x, c), *VALLEYS.parameters)
    found = lbfgs(scaled, torch.zeros(3, 3).double(), tol=1e-9, max_steps=400)
    assert found.converged.all()
    assert_close(found.x, torch.ones(3, 3).double(), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ what is no number
def test_steps_into_the_undefined_are_shortened() -> None:
    c = torch.tensor([[0.1, 1.0], [50.0, 2.0], [1e3, 1e-2]]).double()
    found = lbfgs(Smooth(barrier, c), torch.full((3, 2), 1e-2).double(), tol=1e-9)
    assert found.converged.all()
    assert_close(found.x, 1 / c, rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_start_without_numbers_leaves_its_neighbours(bad: float) -> None:
    x0 = draw(3, 4)
    clean = lbfgs(VALLEYS, x0, tol=1e-9)
    x0[1, 0] = bad
    found = lbfgs(VALLEYS, x0, tol=1e-9)
    assert found.converged.tolist() == [True, False, True]
    assert_close(found.x[[0, 2]], clean.x[[0, 2]], rtol=1e-12, atol=1e-12)


def test_objective_without_a_value_has_not_converged() -> None:
    x0 = torch.tensor([[1.0, 1.0], [-1.0, 1.0]]).double()  # the second lies outside of the barrier
    found = lbfgs(Smooth(barrier, torch.ones(2, 2).double()), x0)
    assert torch.isfinite(found.x).all()
    assert found.converged.tolist() == [True, False]


# ------------------------------------------------------------------------------------------ preconditioning
def badly_scaled(size: int = 60, *, n: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Diagonals over five orders of magnitude plus something of rank three: ``(B, its diagonal)``."""
    low = draw(n, size, 3, dtype=dtype)
    scales = 10 ** torch.linspace(-2, 3, size, dtype=torch.float64)
    B = torch.diag(scales).to(dtype) + low @ low.mH
    return B, B.diagonal(dim1=1, dim2=2).real


def times(B: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (B * x[:, None]).sum(2)  # rounds alike whatever the companions


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_preconditioning_saves_steps_and_finds_the_same(dtype: torch.dtype) -> None:
    B, diagonal = badly_scaled(dtype=dtype)
    b, kwargs = draw(3, 60, seed=1, dtype=dtype), {"tol": 1e-10, "max_steps": 5000}
    plain = conjugate_gradient(times(B), b, **kwargs)
    found = conjugate_gradient(times(B), b, precondition=lambda r: r / diagonal, **kwargs)
    assert found.converged.all() and plain.converged.all()
    assert (found.n_steps < plain.n_steps / 2).all()
    exact = torch.linalg.solve(B, b)
    assert_close(found.x, exact, rtol=1e-6, atol=1e-8)
    assert_close(plain.x, exact, rtol=1e-6, atol=1e-6)


def test_residual_is_that_of_the_system_not_of_the_preconditioned_one() -> None:
    B, diagonal = badly_scaled()
    b = draw(3, 60, seed=1)
    for tol in (1e-2, 1e-5, 1e-8):
        found = conjugate_gradient(times(B), b, precondition=lambda r: r / diagonal, tol=tol)
        residual = (b - times(B)(found.x)).norm(dim=1) / b.norm(dim=1)
        assert found.converged.all()
        assert_close(found.residual, residual, rtol=1e-4, atol=1e-12)
        assert (residual <= 1.001 * tol).all()


@pytest.mark.parametrize("max_steps", [1, 2, 4, 7])
def test_preconditioned_iterates_are_those_of_scipy(max_steps: int) -> None:
    B, diagonal = badly_scaled(20)
    b = draw(3, 20, seed=1)
    found = conjugate_gradient(times(B), b, precondition=lambda r: r / diagonal, max_steps=max_steps, tol=0.0)
    for x, matrix, d, y in zip(found.x, B.numpy(), diagonal.numpy(), b.numpy(), strict=True):
        theirs, _ = ssl.cg(matrix, y, rtol=1e-14, maxiter=max_steps, M=np.diag(1 / d))
        np.testing.assert_allclose(x, theirs, rtol=1e-7, atol=1e-9)


def test_the_exact_inverse_takes_one_step() -> None:
    B, _ = badly_scaled()
    inverse, b = torch.linalg.inv(B), draw(3, 60, seed=1)
    found = conjugate_gradient(times(B), b, precondition=times(inverse), tol=1e-8)
    assert found.n_steps.tolist() == [1, 1, 1]
    assert found.converged.all()


def test_preconditioning_by_a_number_changes_nothing() -> None:
    B, _ = badly_scaled(20)
    b = draw(3, 20, seed=1)
    for k in (1, 3, 6):
        plain = conjugate_gradient(times(B), b, max_steps=k, tol=0.0)
        scaled = conjugate_gradient(times(B), b, precondition=lambda r: 7 * r, max_steps=k, tol=0.0)
        assert_close(plain.x, scaled.x, rtol=1e-9, atol=1e-12)


def test_zero_right_hand_side_stays_exactly_zero() -> None:
    B, diagonal = badly_scaled()
    b = draw(3, 60, seed=1)
    b[1] = 0
    for x0 in (None, torch.ones_like(b)):
        found = conjugate_gradient(times(B), b, x0, precondition=lambda r: r / diagonal, tol=1e-9)
        assert (found.x[1] == 0).all()
        assert found.n_steps[1] == 0 and found.objective[1] == 0 and found.residual[1] == 0
        assert found.converged.all()
        assert_close(found.x, torch.linalg.solve(B, b), rtol=1e-5, atol=1e-7)


def test_good_start_saves_preconditioned_steps() -> None:
    B, diagonal = badly_scaled()
    b = draw(3, 60, seed=1)
    exact = torch.linalg.solve(B, b)
    cold, warm = (
        conjugate_gradient(times(B), b, x0, precondition=lambda r: r / diagonal, tol=1e-6)
        for x0 in (None, exact + 1e-8 * draw(3, 60, seed=2))
    )
    assert (warm.n_steps < cold.n_steps).all()
    assert_close(warm.x, exact, rtol=1e-3, atol=1e-5)


def test_preconditioned_image_does_not_feel_its_companions() -> None:
    B, diagonal = badly_scaled()
    b = draw(3, 60, seed=1) * torch.tensor([1.0, 1e6, 1e-6]).double()[:, None]
    b[2, 1:] = 0
    together = conjugate_gradient(times(B), b, precondition=lambda r: r / diagonal, tol=1e-6)
    for i in range(3):
        some = slice(i, i + 1)
        alone = conjugate_gradient(
            times(B[some]), b[some], precondition=lambda r, some=some: r / diagonal[some], tol=1e-6
        )
        assert alone.n_steps[0] == together.n_steps[i]
        assert_close(alone.x[0], together.x[i], rtol=1e-8, atol=1e-12)


def test_preconditioned_image_without_numbers_leaves_its_neighbours() -> None:
    B, diagonal = badly_scaled()
    b = draw(3, 60, seed=1)
    b[1, 3] = torch.nan
    found = conjugate_gradient(times(B), b, precondition=lambda r: r / diagonal, tol=1e-9)
    assert found.converged.tolist() == [True, False, True]
    assert torch.isfinite(found.x).all()
    assert_close(found.x[[0, 2]], torch.linalg.solve(B, b)[[0, 2]], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1e4])
def test_small_and_large_images_are_found(unit: float) -> None:
    y = unit * torch.ones(1, 5, dtype=torch.float64)
    solution = lbfgs(LeastSquares(None, y), torch.zeros_like(y))
    assert_close(solution.x, y)
    assert solution.converged.all()

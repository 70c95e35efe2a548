"""Derivatives of minimisers: against differences of solutions found anew, and against long unrolls."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pylops
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from skinverse.energies import ConvexEnergy, Energy, RidgeEnergy
from skinverse.functionals import Box, EnergyFunctional, Functional, LeastSquares
from skinverse.operators import as_torch, fourier_sampling, inpainting
from skinverse.solvers import (
    Hessian,
    Solution,
    accelerated_gradient,
    conjugate_gradient,
    implicit,
    jacobian_free,
    lbfgs,
    minres,
    proximal_gradient,
)

N, DIMS = 3, (4, 5)
Objective = Callable[[Energy, Tensor], Functional]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operator() -> pylops.LinearOperator:
    """Columns are mixed by a matrix: six measurements of four pixels each."""
    mix = torch.linalg.qr(draw(6, 4, seed=1))[0] * torch.tensor([1.2, 1.0, 0.8, 0.6])
    return pylops.MatrixMult(mix.numpy(), otherdims=DIMS[1:])


OPERATOR = operator()
TRUTH = 0.4 * draw(N, *DIMS, seed=2) + 0.2


def objective(energy: Energy, y: Tensor) -> Functional:
    return LeastSquares(as_torch(OPERATOR), y) + 0.2 * EnergyFunctional(energy)


@pytest.fixture(scope="module", params=["ridge", "convex ridge", "convex"])
def energy(request: pytest.FixtureRequest) -> Energy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Energy = {
            "ridge": lambda: RidgeEnergy(n_filters=2, kernel_size=3),
            "convex ridge": lambda: RidgeEnergy(convex=True, n_filters=2, kernel_size=3),
            "convex": lambda: ConvexEnergy(n_features=2, kernel_size=3),
        }[request.param]()
    made = made.double()
    for i, p in enumerate(made.parameters()):
        p.data += 0.1 * draw(*p.shape, seed=i)
    return made


@pytest.fixture(scope="module")
def y() -> Tensor:
    """Different data for each image, that ask for gradients."""
    clean = as_torch(OPERATOR)(TRUTH)
    return (clean + 0.1 * draw(*clean.shape, seed=3)).requires_grad_()


@pytest.fixture(scope="module")
def x(energy: Energy, y: Tensor) -> Tensor:
    """The minimiser."""
    return solved(energy, y)


def solved(energy: Energy, y: Tensor, start: Tensor | None = None, *, n: int = 600) -> Tensor:
    x0 = torch.zeros(N, *DIMS, dtype=y.dtype) if start is None else start
    return accelerated_gradient(objective(energy.prepared(), y.detach()), x0, max_steps=n, tol=1e-15).x


def solved_anew(energy: Energy, y: Tensor, start: Tensor, box: Box | None, n: int = 300) -> Tensor:
    """By another solver, with or without bounds."""
    f = objective(energy.prepared(), y.detach())
    return proximal_gradient(f if box is None else f + box, start, max_steps=n, tol=1e-15).x


def loss(x: Tensor) -> Tensor:
    return (x - TRUTH).square().sum()


def assert_near(found: Tensor, expected: Tensor, tol: float) -> None:
    assert expected.norm() > 1e-8, "nothing to compare"
    assert torch.dist(found, expected) <= tol * expected.norm()


def assert_as_by_differences(
    found: tuple[Tensor, ...], energy: Energy, y: Tensor, x: Tensor, box: Box | None = None, h: float = 2e-5
) -> None:
    """Compare derivatives of the loss with solving anew.

    Along a random direction for every parameter; for every number of the data, in one batch.
    """
    changed = copy.deepcopy(energy).requires_grad_(False)
    for i, p in enumerate(changed.parameters()):
        start, direction, losses = p.clone(), draw(*p.shape, seed=20 + i), []
        for step in (h, -h):
            p.copy_(start + step * direction)
            losses.append(loss(solved_anew(changed, y, x, box)))
        p.copy_(start)
        assert_near((found[i] * direction).sum(), (losses[0] - losses[1]) / (2 * h), 1e-6)
    steps = h * torch.eye(y[0].numel(), dtype=y.dtype).reshape(-1, 1, *y.shape[1:])
    moved = y.detach() + torch.stack([steps, -steps])
    many = solved_anew(changed, moved.flatten(0, 2), x.repeat(2 * len(steps), 1, 1), box)
    losses = (many.view(2, -1, *x.shape) - TRUTH).square().sum((-2, -1))
    assert_near(found[-1].flatten(1), ((losses[0] - losses[1]) / (2 * h)).mT, 1e-6)


def test_derivatives_equal_differences_of_solutions(energy: Energy, y: Tensor, x: Tensor) -> None:
    attached = implicit(objective(energy, y), x, tol=1e-12)
    assert_close(attached.detach(), x, rtol=0, atol=0)
    found = grad(loss(attached), [*energy.parameters(), y])
    assert_as_by_differences(found, energy, y, x)


def test_derivatives_equal_those_of_a_long_unroll(energy: Energy, y: Tensor, x: Tensor) -> None:
    f, z = objective(energy, y), torch.zeros_like(x)
    for _ in range(700):
        z = z - 0.2 * f.grad(z)
    assert_close(z.detach(), x, rtol=0, atol=1e-9)
    unrolled = grad(loss(z), [*energy.parameters(), y])
    found = grad(loss(implicit(f, x, tol=1e-12)), [*energy.parameters(), y])
    for a, b in zip(found, unrolled, strict=True):
        assert_near(a, b, 1e-5)


def test_pixels_on_a_bound_do_not_move(energy: Energy, y: Tensor) -> None:
    box = Box(0.0, 0.5)
    x = solved_anew(energy, y, torch.zeros_like(TRUTH), box, n=500)
    free = (x > 0) & (x < 0.5)
    assert 0.2 < free.double().mean() < 0.8, "the bounds should hold some pixels and not others"
    f = objective(energy, y)
    assert (f.grad(x).detach().abs() > 1e-4)[~free].all(), "a bound that only just holds"
    attached = implicit(f, x, free=free, tol=1e-12)
    found = grad(loss(attached), [*energy.parameters(), y], retain_graph=True)
    assert_as_by_differences(found, energy, y, x, box)
    (of_bound,) = grad(attached[~free].sum(), y)
    assert not of_bound.any()


def test_images_of_a_batch_are_differentiated_one_by_one(energy: Energy, y: Tensor, x: Tensor) -> None:
    parameters = list(energy.parameters())
    weights = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    attached = implicit(objective(energy, y), x, tol=1e-13)
    together = grad(((attached - TRUTH).square().sum((1, 2)) * weights).sum(), [*parameters, y])
    alone = [torch.zeros_like(p) for p in [*parameters, y]]
    for i, weight in enumerate(weights):
        one = implicit(objective(energy, y[i : i + 1]), x[i : i + 1], tol=1e-13)
        parts = grad(weight * (one - TRUTH[i]).square().sum(), [*parameters, y])
        alone = [a + part for a, part in zip(alone, parts, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert_near(a, b, 1e-9)
    assert not together[-1][2].any()


def test_nothing_depends_on_the_path_to_the_minimiser(energy: Energy, y: Tensor, x: Tensor) -> None:
    """Neither the derivatives nor the size of the graph."""
    f = objective(energy, y)
    long = solved(energy, y, 3 * draw(N, *DIMS, seed=9), n=900)
    by_descent = proximal_gradient(f, torch.ones_like(x), max_steps=900, tol=1e-15).x
    sizes, found = [], []
    for end in (x, long, by_descent):
        assert not end.requires_grad
        attached = implicit(f, end, tol=1e-12)
        sizes.append(graph_size(attached))
        found.append(torch.cat([g.flatten() for g in grad(loss(attached), [*energy.parameters(), y])]))
    assert sizes[0] == sizes[1] == sizes[2]
    assert_near(found[1], found[0], 1e-7)
    assert_near(found[2], found[0], 1e-7)


def graph_size(x: Tensor) -> int:
    seen, waiting = set(), [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


def test_the_linear_solver_does_not_matter(energy: Energy, y: Tensor, x: Tensor) -> None:
    parameters = list(energy.parameters())
    found = [
        grad(loss(implicit(objective(energy, y), x, solve=solve, tol=1e-13)), [*parameters, y])
        for solve in (minres, conjugate_gradient)
    ]
    for a, b in zip(*found, strict=True):
        assert_near(a, b, 1e-9)


def test_looser_and_shorter_linear_solves_are_passed_on(energy: Energy, y: Tensor, x: Tensor) -> None:
    f = objective(energy, y)
    unsolved: list[Solution] = []
    exact, one_step, loose = (
        grad(loss(implicit(f, x, **options)), y)[0]
        for options in ({"tol": 1e-13}, {"max_steps": 1, "note": unsolved.append}, {"tol": 1e-3})
    )
    assert torch.dist(one_step, exact) > 1e-2 * exact.norm()
    assert 1e-8 * exact.norm() < torch.dist(loose, exact) < 1e-1 * exact.norm()


@pytest.mark.parametrize("step", [0.3, torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)])
def test_jacobian_free_is_one_gradient_step(
    energy: Energy, y: Tensor, x: Tensor, step: float | Tensor
) -> None:
    f = objective(energy, y)
    attached = jacobian_free(f, x, step)
    assert_close(attached.detach(), x, rtol=0, atol=0)
    size = step if isinstance(step, float) else step[:, None, None]
    stepped = x - size * f.grad(x)
    weights = 2 * (x - TRUTH)
    found = grad(loss(attached), [*energy.parameters(), y])
    expected = grad((weights * stepped).sum(), [*energy.parameters(), y])
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 1e-12)


def test_the_hessian_is_that_of_the_objective(energy: Energy, y: Tensor, x: Tensor) -> None:
    f = objective(energy, y.detach())
    hessian, n = Hessian(f, x), x[0].numel()
    columns = torch.eye(n, dtype=x.dtype).reshape(n, *DIMS)
    dense = torch.stack([hessian(e.expand_as(x)).flatten(1) for e in columns], 1)
    for i in range(N):
        alone = objective(energy, y[i : i + 1].detach())
        expected = torch.autograd.functional.hessian(lambda z, f=alone: f(z[None]).sum(), x[i])
        assert_close(dense[i], expected.reshape(n, n), rtol=1e-9, atol=1e-9)
    assert_close(dense, dense.mT, rtol=1e-10, atol=1e-10)


def test_the_hessian_is_the_identity_on_held_pixels(energy: Energy, y: Tensor, x: Tensor) -> None:
    f, v = objective(energy, y.detach()), draw(N, *DIMS, seed=4)
    free = draw(N, *DIMS, seed=5) > 0
    held = Hessian(f, x, free=free)
    product, inside = held(v), torch.where(free, v, 0)
    assert_close(held.project(v), inside, rtol=0, atol=0)
    assert_close(product[~free], v[~free], rtol=0, atol=0)
    assert_close(product[free], Hessian(f, x)(inside)[free], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attach", [implicit, lambda f, x: jacobian_free(f, x, 0.1)])
def test_without_parameters_nothing_is_attached(
    energy: Energy, y: Tensor, x: Tensor, attach: Callable[[Functional, Tensor], Tensor]
) -> None:
    frozen = copy.deepcopy(energy).requires_grad_(False)
    attached = attach(objective(frozen, y.detach()), x)
    assert not attached.requires_grad
    assert attached.grad_fn is None
    assert_close(attached, x, rtol=0, atol=0)


@pytest.mark.parametrize("attach", [implicit, lambda f, x: jacobian_free(f, x, 0.1)])
def test_one_parameter_is_enough(
    energy: Energy, y: Tensor, x: Tensor, attach: Callable[[Functional, Tensor], Tensor]
) -> None:
    """Also where gradients are disabled around, as in an evaluation."""
    energy = copy.deepcopy(energy).requires_grad_(False)
    parameter = next(energy.parameters()).requires_grad_()
    with torch.no_grad():
        attached = attach(objective(energy, y.detach()), x)
    loss(attached).backward()
    assert parameter.grad is not None
    assert parameter.grad.any()
    assert sum(p.grad is not None for p in energy.parameters()) == 1


# ---------------------------------------------------------------------- what neither operator nor energy sees
def no_zero_frequency() -> pylops.LinearOperator:
    mask = torch.rand(DIMS, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[0, 0] = False
    return fourier_sampling(mask.numpy())


BLIND = {
    "differences": lambda: pylops.FirstDerivative(DIMS, axis=0, kind="forward"),
    "no zero frequency": no_zero_frequency,
    "inpainting": lambda: inpainting(draw(*DIMS, seed=6).numpy() > -0.5),
}


class Variation(Energy):
    """``sum_a exp(w_a) psi(D_a x)`` over differences along both axes: no constant is seen."""

    n_channels = 1

    def __init__(self, convex: bool) -> None:
        super().__init__()
        self.convex = convex
        self.log_weights = torch.nn.Parameter(torch.tensor([0.0, 0.3], dtype=torch.float64))
        self.log_sharpness = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=x.dtype)
        for axis, weight in zip((-2, -1), self.log_weights, strict=True):
            d = (self.log_sharpness.exp() * x.diff(dim=axis)).square()
            values = (1 + d).sqrt() if self.convex else (1 + d).log()
            total = total + weight.exp() * values.flatten(1).sum(1)
        return total


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("name", BLIND)
def test_derivatives_where_constants_are_not_seen(name: str, convex: bool) -> None:
    """The solutions keep the level of their start, and so does the derivative: it is no descent otherwise."""
    energy, A = Variation(convex), as_torch(BLIND[name]())
    y = A(TRUTH)
    y = y + 0.05 * draw(*y.shape, seed=3)

    def functional(energy: Energy) -> Functional:
        return LeastSquares(A, y) + 0.05 * EnergyFunctional(energy)

    def solve(energy: Energy, start: Tensor) -> Tensor:
        x = lbfgs(functional(energy), start, max_steps=500, tol=1e-13).x
        assert functional(energy).grad(x).norm() < 1e-7
        return x

    x = solve(energy, TRUTH + 0.7 + 0.1 * draw(N, *DIMS, seed=4))
    found = grad(loss(implicit(functional(energy), x, tol=1e-11)), [*energy.parameters()])
    changed, h = copy.deepcopy(energy).requires_grad_(False), 1e-3
    for i, p in enumerate(changed.parameters()):
        before, direction = p.clone(), draw(*p.shape, seed=30 + i)
        losses = []
        for step in (h, -h):
            p.copy_(before + step * direction)
            losses.append(loss(solve(changed, x)))
        p.copy_(before)
        assert_near((found[i] * direction).sum(), (losses[0] - losses[1]) / (2 * h), 1e-4)


def test_unsolved_derivatives_are_told() -> None:
    y = torch.ones(3, 4, 5, dtype=torch.float64, requires_grad=True)
    f = LeastSquares(as_torch(OPERATOR), as_torch(OPERATOR)(y))
    notes: list[Solution] = []
    loss(implicit(f, y.detach(), max_steps=1, tol=1e-9, note=notes.append)).backward()
    (told,) = notes
    assert not told.converged.any()
    with pytest.warns(ConvergenceWarning, match="3 of 3 linear systems of a derivative were not solved"):
        loss(implicit(f, y.detach(), max_steps=1, tol=1e-9)).backward()

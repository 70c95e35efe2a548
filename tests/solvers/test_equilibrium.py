"""Derivatives of fixed points, against long unrolls and differences; several variables as one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad
from torch.testing import assert_close

from skinverse._tensors import split_variables, stack_variables
from skinverse.solvers import Solution, anderson, broyden, fixed_point, gmres, neumann, picard

every = pytest.mark.parametrize("solver", [picard, anderson, broyden])
Map = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


Parameters = dict[str, Tensor]
TIGHT = {"max_steps": 600, "tol": 1e-13, "backward_steps": 600, "backward_tol": 1e-12}
BACKWARDS = {
    "gmres": gmres,
    "neumann": neumann,
    "anderson": partial(neumann, forward=anderson),
    "broyden": partial(neumann, forward=broyden),
}


def parameters() -> Parameters:
    shapes = {"first": (2, 1, 3, 3), "bias": (2,), "second": (1, 2, 3, 3), "scale": (3, 4)}
    sizes = {"first": 0.22, "bias": 0.5, "second": 0.22, "scale": 1.0}
    drawn = {name: sizes[name] * draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return {name: p.requires_grad_() for name, p in drawn.items()}


def network(p: Parameters) -> Map:
    """Two convolutions with a bend between them: not linear, not symmetric, a contraction."""

    def f(z: Tensor, y: Tensor) -> Tensor:
        u = torch.tanh(F.conv2d(F.pad(z, (1,) * 4, mode="circular"), p["first"], p["bias"]))
        return F.conv2d(F.pad(u, (1,) * 4, mode="circular"), p["second"]) + p["scale"] * y

    return f


def measured(n: int) -> Tensor:
    """Images of very different sizes, which stop at different times."""
    sizes = torch.tensor([1.0, 0.0, 10.0, 0.1, 3.0], dtype=torch.float64)[:n]
    return (sizes[:, None, None, None] * draw(n, 1, 3, 4, seed=9)).requires_grad_()


def loss(x: Tensor) -> Tensor:
    weights = torch.arange(1.0, len(x) + 1, dtype=x.dtype)
    return (weights[:, None, None, None] * (x - draw(*x.shape, seed=7)).square()).sum()


def solved(p: Parameters, y: Tensor, **options) -> Solution:
    return fixed_point(network(p), torch.zeros_like(y), given=(y,), **(TIGHT | options))


def derivatives(x: Tensor, p: Parameters, y: Tensor) -> list[Tensor]:
    return list(grad(loss(x), [*p.values(), y]))


@cache
def unrolled(n: int) -> tuple[Tensor, list[Tensor]]:
    p, y = parameters(), measured(n)
    z, f = torch.zeros_like(y), network(p)
    for _ in range(300):
        z = f(z, y)
    assert ((f(z, y) - z).flatten(1).norm(dim=1) <= 1e-13 * z.flatten(1).norm(dim=1)).all()
    return z.detach(), derivatives(z, p, y)


def assert_near(found: Tensor, expected: Tensor, tol: float) -> None:
    assert expected.norm() > 1e-6, "nothing to compare"
    assert torch.dist(found, expected) <= tol * expected.norm(), (found, expected)


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
@pytest.mark.parametrize("n", [1, 3, 5])
def test_derivatives_equal_those_of_a_long_unroll(backward: Map, n: int) -> None:
    p, y = parameters(), measured(n)
    solution = solved(p, y, backward=backward)
    assert solution.converged.all()
    x, expected = unrolled(n)
    assert_close(solution.x.detach(), x, rtol=0, atol=1e-11)
    for found, right in zip(derivatives(solution.x, p, y), expected, strict=True):
        assert_near(found, right, 1e-6)


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
@pytest.mark.parametrize("n", [1, 3, 5])
def test_derivatives_equal_differences_of_solutions(backward: Map, n: int, h: float = 1e-5) -> None:
    p, y = parameters(), measured(n)
    found = derivatives(solved(p, y, backward=backward).x, p, y)
    for i, (name, slope) in enumerate(zip([*p, "y"], found, strict=True)):
        direction, losses = draw(*slope.shape, seed=20 + i), []
        for step in (h, -h):
            moved = {k: v.detach() + (step * direction if k == name else 0) for k, v in p.items()}
            losses.append(loss(solved(moved, y.detach() + (step * direction if name == "y" else 0)).x))
        assert_near((slope * direction).sum(), (losses[0] - losses[1]) / (2 * h), 1e-6)


@every
def test_derivatives_do_not_depend_on_the_forward_solver(solver) -> None:
    p, y = parameters(), measured(3)
    for found, right in zip(derivatives(solved(p, y, forward=solver).x, p, y), unrolled(3)[1], strict=True):
        assert_near(found, right, 1e-9)


@pytest.mark.parametrize("backward", BACKWARDS.values(), ids=BACKWARDS)
def test_images_are_differentiated_one_by_one(backward: Map) -> None:
    """A cotangent of one image reaches no other; several images sum up in what they share."""
    p, y = parameters(), measured(5)
    x = solved(p, y, backward=backward).x
    v = draw(*x.shape, seed=3) * torch.tensor([1.0, 0, 1e-3, 0, 1e3])[:, None, None, None]
    together, alone = grad(x, [*p.values(), y], v), []
    for i in (0, 2, 4):
        z = solved(p, y[i : i + 1], backward=backward).x
        alone.append(grad(z, [*p.values(), y], v[i : i + 1]))
    assert not together[-1][[1, 3]].any()
    for found, *parts in zip(together, *alone, strict=True):
        assert_near(found, sum(parts), 1e-9)


def test_no_backward_steps_differentiate_one_application() -> None:
    p, y = parameters(), measured(3)
    x = solved(p, y, backward=neumann, backward_steps=0).x
    v = draw(*x.shape, seed=3)
    found = grad(x, [*p.values(), y], v)
    once = grad(network(p)(x.detach(), y), [*p.values(), y], v)
    exact = grad(solved(p, y).x, [*p.values(), y], v)
    for free, one, right in zip(found, once, exact, strict=True):
        assert_near(free, one, 1e-12)
        assert torch.dist(free, right) > 1e-3 * right.norm()
        assert (free * right).sum() > 0.1 * free.norm() * right.norm()


@every
@pytest.mark.parametrize("tol", [1e-2, 1e-12])
def test_one_application_alone_is_recorded(solver, tol: float) -> None:
    p, y = parameters(), measured(3)
    recorded, f = [], network(p)

    def watched(z: Tensor, y: Tensor) -> Tensor:
        fz = f(z, y)
        recorded.append(fz.requires_grad)
        return fz

    start = torch.zeros_like(y).requires_grad_()
    x = fixed_point(watched, start, given=(y,), forward=solver, tol=tol).x
    n_forward = len(recorded)
    loss(x).backward()
    assert len(recorded) == n_forward, "the map is evaluated backwards"
    assert sum(recorded) == 1
    assert start.grad is None


def test_without_gradients_there_is_no_graph() -> None:
    p, y = parameters(), measured(3)
    with torch.no_grad():
        assert not solved(p, y).x.requires_grad
    fixed = solved({name: v.detach() for name, v in p.items()}, y.detach()).x
    assert not fixed.requires_grad
    assert fixed.grad_fn is None
    assert solved(p, y.detach()).x.requires_grad


def test_maps_that_ignore_their_image_are_differentiated() -> None:
    b = draw(2, 3).requires_grad_()
    x = fixed_point(lambda z: 2 * b, torch.zeros(2, 3, dtype=b.dtype)).x
    assert_close(grad(x.sum(), b)[0], torch.full_like(b, 2))


@every
def test_neumann_solves_linear_systems_image_by_image(solver) -> None:
    """Also when some images have stopped, and with right-hand sides of zero."""
    M = 0.6 * torch.linalg.qr(draw(6, 6, seed=1))[0]
    b = draw(5, 2, 3, seed=2) * torch.tensor([1.0, 0, 1e3, 1e-3, 1])[:, None, None]
    b[4] = torch.linalg.eigh(M + M.mT)[1][:, 0].reshape(2, 3)

    def linear(x: Tensor) -> Tensor:
        assert x.shape == b.shape, "each image has its place in the batch"
        return torch.where(torch.arange(5)[:, None, None] == 3, x / 2, (x.flatten(1) @ M.mT).view_as(x) + x)

    found = neumann(linear, b, forward=solver, max_steps=200, tol=1e-12)
    assert found.converged.all()
    assert len(set(found.n_steps.tolist())) >= 3
    assert_close(linear(found.x), b, rtol=1e-9, atol=1e-13)
    series, term = torch.zeros_like(b), b
    for _ in range(5):
        series, term = series + term, term - linear(term)
    assert_close(neumann(linear, b, max_steps=4, tol=0.0).x, series, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------- several variables
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    n=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.complex128]),
)
def test_stacked_variables_come_apart(shapes: list[tuple[int, ...]], n: int, dtype: torch.dtype) -> None:
    variables = [draw(n, *shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    stacked = stack_variables(*variables)
    assert stacked.shape == (n, sum(math.prod(shape) for shape in shapes))
    for found, v in zip(split_variables(stacked, *shapes), variables, strict=True):
        assert torch.equal(found, v)


@every
@pytest.mark.parametrize("n", [1, 3])
def test_two_variables_of_splitting_are_one_fixed_point(solver, n: int, lam: float = 0.4) -> None:
    """Alternating directions for ``1/2 ||A x - y||^2 + lam ||x||_1``: image and multiplier."""
    A, y = draw(2, 7, 5, seed=1), draw(n, 2, 7, seed=2)
    inverse = torch.linalg.inv(A.mT @ A + torch.eye(5, dtype=A.dtype))

    def f(stacked: Tensor, y: Tensor) -> Tensor:
        z, u = split_variables(stacked, (2, 5), (2, 5))
        x = torch.einsum("cij,ncj->nci", inverse, torch.einsum("cji,ncj->nci", A, y) + z - u)
        return stack_variables(F.softshrink(x + u, lam), u + x - F.softshrink(x + u, lam))

    start = stack_variables(torch.zeros(n, 2, 5, dtype=y.dtype), torch.zeros(n, 2, 5, dtype=y.dtype))
    found = solver(f, start, given=(y,), max_steps=3000, tol=1e-12)
    assert found.converged.all()
    z, u = split_variables(found.x, (2, 5), (2, 5))
    slope = torch.einsum("cji,ncj->nci", A, torch.einsum("cij,ncj->nci", A, z) - y)
    assert_close(slope, -u, rtol=0, atol=1e-9)
    assert (slope.abs() <= lam + 1e-9).all()
    assert_close(slope[z != 0], -lam * z[z != 0].sign(), rtol=0, atol=1e-9)
    assert (z == 0).any()
    assert (z != 0).any()

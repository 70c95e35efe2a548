"""Krylov methods against dense and scipy's solvers."""

from __future__ import annotations

import numpy as np
import pylops
import pytest
import scipy.sparse.linalg as ssl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from skinverse.operators import as_torch
from skinverse.solvers import conjugate_gradient, minres, pseudo_inverse

SOLVERS = (conjugate_gradient, minres)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
every = pytest.mark.parametrize("solver", SOLVERS)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_spectrum(eigenvalues: list[float] | Tensor, seed: int = 0, dtype=torch.float64) -> Tensor:
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q, _ = torch.linalg.qr(random(len(values), len(values), seed=seed, dtype=wide))
    return (q * values @ q.mH).to(dtype)


def on_batches(B: Tensor):
    return lambda x: (x.flatten(1) @ B.mT).reshape(x.shape)


DEFINITE = with_spectrum(torch.linspace(1, 30, 12))
INDEFINITE = with_spectrum([-7.0, -3, -1, -0.5, 0.5, 1, 2, 4, 6, 9])


@every
@pytest.mark.parametrize("dtype", DTYPES)
def test_solution_is_the_dense_one_and_keeps_the_number_type(solver, dtype) -> None:
    B, b = with_spectrum(torch.linspace(1, 30, 12), dtype=dtype), random(3, 12, dtype=dtype)
    found = solver(on_batches(B), b, tol=1e-5)
    assert found.converged.all()
    assert found.x.dtype == dtype
    assert found.residual.dtype == found.objective.dtype == dtype.to_real()
    assert_close(found.x, torch.linalg.solve(B, b.mT).mT, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "theirs", "B"),
    [
        (conjugate_gradient, ssl.cg, DEFINITE),
        (minres, ssl.minres, DEFINITE),
        (minres, ssl.minres, INDEFINITE),
    ],
)
@pytest.mark.parametrize("max_steps", [1, 2, 4, 7])
def test_iterates_are_those_of_scipy(solver, theirs, B, max_steps) -> None:
    b = random(3, len(B))
    found = solver(on_batches(B), b, max_steps=max_steps, tol=0.0)
    for x, y in zip(found.x, b, strict=True):
        expected, _ = theirs(B.numpy(), y.numpy(), rtol=1e-14, maxiter=max_steps)
        np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)


@every
@given(
    seed=st.integers(0, 50),
    size=st.integers(1, 8),
    condition=st.floats(1, 1e3),
    scale=st.floats(1e-3, 1e3),
)
def test_definite_systems_are_solved(solver, seed, size, condition, scale) -> None:
    B = scale * with_spectrum(torch.logspace(0, float(np.log10(condition)), size), seed)
    b = random(2, size, seed=seed + 1)
    found = solver(on_batches(B), b, tol=1e-9)
    assert found.converged.all()
    assert (found.n_steps <= 2 * size).all()
    residual = (b - found.x @ B.mT).norm(dim=1) / b.norm(dim=1)
    assert (residual < 1e-8).all()
    energy = ((found.x @ B.mT) * found.x).sum(1) / 2 - (found.x * b).sum(1)
    assert_close(found.objective, energy)


@given(
    seed=st.integers(0, 50),
    eigenvalues=st.lists(
        st.floats(0.1, 10).flatmap(lambda v: st.sampled_from([v, -v])), min_size=1, max_size=8
    ),
)
def test_minres_solves_indefinite_systems(seed, eigenvalues) -> None:
    B, b = with_spectrum(eigenvalues, seed), random(2, len(eigenvalues), seed=seed + 1)
    found = minres(on_batches(B), b, tol=1e-8, max_steps=200)
    assert found.converged.all()
    assert ((b - found.x @ B.mT).norm(dim=1) <= 1e-6 * b.norm(dim=1)).all()


def test_minres_residual_never_rises() -> None:
    b = random(2, len(INDEFINITE))
    residuals = []
    for k in range(len(INDEFINITE) + 1):
        found = minres(on_batches(INDEFINITE), b, max_steps=k, tol=0.0)
        residuals.append((b - found.x @ INDEFINITE).norm(dim=1) / b.norm(dim=1))
        assert_close(found.residual, residuals[-1], atol=1e-8, rtol=1e-6)
    assert (torch.stack(residuals).diff(dim=0) <= 1e-9).all()
    assert (residuals[-1] < 1e-8).all()


@every
def test_zero_right_hand_side_gives_zero_at_once(solver) -> None:
    b = random(3, 12)
    b[1] = 0
    for x0 in (None, torch.ones_like(b)):
        found = solver(on_batches(DEFINITE), b, x0)
        assert (found.x[1] == 0).all()
        assert found.n_steps[1] == 0
        assert found.converged.all()
        assert found.residual[1] == found.objective[1] == 0
        assert_close(found.x, torch.linalg.solve(DEFINITE, b.mT).mT, atol=1e-5, rtol=0)


@every
def test_start_at_the_solution_takes_no_step(solver) -> None:
    b = random(3, 12)
    x0 = torch.linalg.solve(DEFINITE, b.mT).mT
    found = solver(on_batches(DEFINITE), b, x0)
    assert found.n_steps.tolist() == [0, 0, 0]
    assert found.converged.all()
    assert torch.equal(found.x, x0)


@every
def test_good_start_saves_steps_and_is_left_alone(solver) -> None:
    b = random(3, 12)
    x0 = torch.linalg.solve(DEFINITE, b.mT).mT + 1e-5 * random(3, 12, seed=2)
    kept = x0.clone()
    warm, cold = (solver(on_batches(DEFINITE), b, start, tol=3e-5) for start in (x0, None))
    assert (warm.n_steps < cold.n_steps).all()
    assert torch.equal(x0, kept)
    assert_close(warm.x, cold.x, atol=1e-3, rtol=0)


@every
def test_singular_consistent_systems(solver) -> None:
    B = with_spectrum([0.0, 0, 0, 1, 2, 3, 5, 8])
    b = random(3, 8) @ B.mT
    found = solver(on_batches(B), b, tol=1e-9)
    assert found.converged.all()
    assert_close(found.x, b @ torch.linalg.pinv(B, rtol=1e-8).mT, atol=1e-6, rtol=0)  # of least norm


def test_conjugate_gradient_ends_where_the_curvature_does() -> None:
    B, b = torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = conjugate_gradient(on_batches(B), b)
    assert found.converged.tolist() == [False, True]
    assert torch.isfinite(found.x).all()
    assert_close(found.x[1], torch.tensor([1.0, 0.0]))


@every
def test_image_does_not_feel_its_companions(solver) -> None:
    directions = torch.linalg.eigh(DEFINITE)[1]
    b = torch.stack([directions[:, 0], directions[:, :3].sum(1), random(12), 1e6 * random(12, seed=3)])
    together = solver(on_batches(DEFINITE), b, tol=1e-4)
    assert len(set(together.n_steps.tolist())) > 2
    for i in range(4):
        alone = solver(on_batches(DEFINITE), b[i : i + 1], tol=1e-4)
        assert alone.n_steps[0] == together.n_steps[i]
        assert_close(alone.x[0], together.x[i], rtol=1e-9, atol=1e-11)


@every
def test_tolerance_zero_and_few_steps(solver) -> None:
    b = random(3, 12)
    for max_steps in (0, 1, 5):
        found = solver(on_batches(DEFINITE), b, max_steps=max_steps, tol=0.0)
        assert found.n_steps.tolist() == [max_steps] * 3
        assert not found.converged.any()
        residual = (b - found.x @ DEFINITE.mT).norm(dim=1) / b.norm(dim=1)
        assert_close(found.residual, residual, rtol=1e-6, atol=1e-9)


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_image_without_numbers_leaves_its_neighbours(solver, bad) -> None:
    b = random(3, 12)
    clean = solver(on_batches(DEFINITE), b)
    b[1, 0] = bad
    found = solver(on_batches(DEFINITE), b)
    assert found.converged.tolist() == [True, False, True]
    assert found.n_steps[1] <= 1
    assert torch.isfinite(found.x).all()
    assert_close(found.x[[0, 2]], clean.x[[0, 2]])


@every
def test_images_keep_their_shape(solver) -> None:
    b = random(2, 3, 4)
    found = solver(on_batches(DEFINITE), b)
    assert_close(found.x.flatten(1), torch.linalg.solve(DEFINITE, b.flatten(1).mT).mT, atol=1e-4, rtol=0)


@every
def test_rounding_keeps_single_precision_near_its_limit(solver) -> None:
    """Stiff systems in float32 still come to the accuracy that the number type allows."""
    B, b = with_spectrum(torch.logspace(0, 3, 40), dtype=torch.float32), random(2, 40, dtype=torch.float32)
    found = solver(on_batches(B), b, tol=1e-4, max_steps=500)
    assert found.converged.all()
    assert ((b - found.x @ B.mT).norm(dim=1) < 1e-3 * b.norm(dim=1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_pseudo_inverse_is_the_dense_formula(dtype, shape) -> None:
    A = random(*shape, dtype=dtype)
    operator = as_torch(pylops.MatrixMult(A.numpy(), dtype=A.numpy().dtype))
    y, delta = random(3, shape[0], dtype=dtype, seed=1), torch.tensor([0.01, 0.3, 5.0], dtype=torch.float64)
    found = pseudo_inverse(operator, y, delta, tol=1e-10)
    assert found.converged.all()
    assert found.x.dtype == dtype
    for x, b, d, value in zip(found.x, y, delta, found.objective, strict=True):
        assert_close(x, A.mH @ torch.linalg.solve(A @ A.mH + d * torch.eye(shape[0]), b))
        energy = (A @ x - b).norm() ** 2 / 2 + d * x.norm() ** 2 / 2
        assert_close(value, energy)


def test_pseudo_inverse_minimises_its_objective() -> None:
    A = random(4, 7)
    y = random(2, 4, seed=1)
    found = pseudo_inverse(as_torch(pylops.MatrixMult(A.numpy())), y, 0.2, tol=1e-12)
    assert_close(found.x, torch.linalg.solve(A.T @ A + 0.2 * torch.eye(7), A.T @ y.mT).mT)


@pytest.mark.parametrize("delta", [0.0, -1.0, torch.tensor([1.0, 0.0]), float("nan")])
def test_pseudo_inverse_refuses_no_regularization(delta) -> None:
    with pytest.raises(ValueError, match="delta: expected a number > 0"):
        pseudo_inverse(as_torch(pylops.Identity(2)), torch.ones(2, 2), delta)


# ---------------------------------------------------------------------- what is reported is true
SPECTRA = {
    "few eigenvalues": [0.0, 0, 0, 1, 2, 3, 5, 8],
    "indefinite": [0.0, 0, 0, -3, -1, 1, 2, 5],
    "ill-conditioned": [0.0, *torch.logspace(-2, 0, 30).tolist()],
    "many eigenvalues": [0.0] * 5 + torch.linspace(-1, 1, 100).tolist(),
}


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_minres_finds_the_least_squares_solution_of_least_norm(spectrum, dtype, scale) -> None:
    """With right-hand sides outside of the range, in the null space, and in the range."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    B = scale * with_spectrum(SPECTRA[spectrum], dtype=wide)
    inverse = torch.linalg.pinv(B, hermitian=True, rtol=1e-6)
    b = random(3, len(B), dtype=wide)
    inside = b @ (B @ inverse).mT
    b = torch.stack([b[0], b[1] - inside[1], inside[2]])
    found = minres(on_batches(B.to(dtype)), b.to(dtype), tol=1e-4)
    assert found.converged.all()
    expected = b @ inverse.mT
    error = (found.x - expected).norm(dim=1)
    assert (error[[0, 2]] <= 2e-2 * expected[[0, 2]].norm(dim=1)).all()  # the condition times the tolerance
    assert error[1] <= 1e-3 * b[1].norm() / scale


def test_minres_says_when_it_comes_to_nothing() -> None:
    """A spectrum that goes to zero so gently that single precision cannot tell where it ends."""
    B = with_spectrum([0.0, *torch.logspace(-6, 0, 60).tolist()], dtype=torch.float32)
    b = random(4, len(B), dtype=torch.float32)
    found = minres(on_batches(B), b, tol=1e-6)
    residual = (b - found.x @ B.mT).norm(dim=1) / b.norm(dim=1)
    assert not found.converged.any()
    assert_close(found.residual, residual, rtol=1e-2, atol=0)
    assert (residual <= 1).all()


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_a_loose_tolerance_does_not_end_an_ill_conditioned_system(tol) -> None:
    """Of condition 1e5, where the least squares condition holds to 1e-3 long before the solution."""
    B = with_spectrum(torch.logspace(-5, 0, 30))
    b = random(3, len(B)) @ B.mT
    b = b / b.norm(dim=1, keepdim=True) + 0.3 * torch.linalg.eigh(B)[1][:, 3]
    found = minres(on_batches(B), b, tol=tol, max_steps=5000)
    residual = (b - found.x @ B.mT).norm(dim=1) / b.norm(dim=1)
    assert found.converged.all()
    assert (residual <= 1.001 * tol).all()


@every
def test_residual_is_that_of_the_solution(solver) -> None:
    """Where rounding has carried the recurrence away from it."""
    B = with_spectrum(torch.logspace(-7, 0, 40), dtype=torch.float32)
    b = random(4, 40, dtype=torch.float32)
    for tol in (1e-2, 1e-5):
        found = solver(on_batches(B), b, tol=tol, max_steps=400)
        residual = (b - found.x @ B.mT).norm(dim=1) / b.norm(dim=1)
        assert_close(found.residual, residual, rtol=1e-3, atol=1e-6)
        assert torch.equal(found.converged, residual <= tol)


def test_conjugate_gradient_does_not_solve_what_has_no_solution() -> None:
    B = with_spectrum([0.0, 0, 0, 1, 2, 3, 5, 8])
    found = conjugate_gradient(on_batches(B), random(3, 8), max_steps=200)
    assert not found.converged.any()


def test_minres_leaves_a_solved_image_alone_while_its_companions_are_inconsistent() -> None:
    B = with_spectrum(SPECTRA["ill-conditioned"])
    b = random(3, len(B))
    b[1] = b[1] @ B.mT

    def one_by_one(x: Tensor) -> Tensor:
        return torch.stack([B @ image for image in x])

    together = minres(one_by_one, b)
    for i in range(3):
        alone = minres(one_by_one, b[i : i + 1])
        assert alone.n_steps[0] == together.n_steps[i]
        assert_close(alone.x[0], together.x[i], rtol=1e-6, atol=1e-7)

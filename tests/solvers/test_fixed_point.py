"""Fixed points and GMRES against dense solutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from skinverse.solvers import Solution, anderson, broyden, gmres, picard

SOLVERS = (picard, anderson, broyden)
every = pytest.mark.parametrize("solver", SOLVERS)
accelerated = pytest.mark.parametrize("solver", [anderson, broyden])
Map = Callable[..., Tensor]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linalg.qr(draw(size, size, seed=seed, dtype=dtype))[0]


def symmetric(lowest: float, highest: float, size: int) -> Tensor:
    q = orthogonal(size)
    return (q * torch.linspace(lowest, highest, size, dtype=torch.float64)) @ q.mT


MATRICES: dict[str, Callable[[float, int], Tensor]] = {
    "positive": lambda rho, size: symmetric(0, rho, size),
    "symmetric": lambda rho, size: symmetric(-rho, rho, size),
    "skew": lambda rho, size: rho * orthogonal(size),
    "non-symmetric": lambda rho, size: orthogonal(size, 2) @ symmetric(-rho, rho, size),
    "chain": lambda rho, size: rho / 2 * (torch.eye(size) + torch.eye(size).roll(1, 1).triu()).double(),
    "complex": lambda rho, size: rho * orthogonal(size, dtype=torch.complex128),
}
REAL = [kind for kind in MATRICES if kind != "complex"]


def affine(M: Tensor) -> Map:
    return lambda z, b: z @ M.mT + b


# ------------------------------------------------------------------------------------------- the solvers
@every
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("rho", [0.3, 0.9, 0.97])
def test_fixed_points_of_affine_maps_are_the_dense_ones(solver, kind: str, rho: float) -> None:
    M, tol = MATRICES[kind](rho, 6), 1e-10
    b = draw(3, 6, seed=4, dtype=M.dtype)
    found = solver(affine(M), torch.zeros_like(b), given=(b,), max_steps=1500, tol=tol)
    expected = torch.linalg.solve(torch.eye(6) - M, b.mT).mT
    assert found.converged.all()
    assert found.x.dtype == b.dtype
    assert found.residual.dtype == torch.float64
    # A map that contracts by rho is so near to its fixed point.
    assert ((found.x - expected).norm(dim=1) <= 1.01 * rho / (1 - rho) * tol * found.x.norm(dim=1)).all()


def steps_to_1e_5(f: Map, z0: Tensor, b: Tensor, *solvers: Map, max_steps: int = 2000) -> list[Tensor]:
    found = [solver(f, z0, given=(b,), max_steps=max_steps) for solver in solvers]
    assert all(solution.converged.all() for solution in found)
    return [solution.n_steps for solution in found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("bend", [0, 0.3, 1])
def test_anderson_never_needs_more_steps_than_picard(dtype: torch.dtype, kind: str, bend: float) -> None:
    """Also for maps that are not affine, ``(1 - bend) u + bend tanh(u)`` of ``u = M z + b``."""
    for rho in (0.5, 0.9, 0.99):
        for size in (2, 40):
            M, b = MATRICES[kind](rho, size).to(dtype), draw(3, size, seed=4).to(dtype)

            def f(z: Tensor, b: Tensor, M: Tensor = M) -> Tensor:
                u = z @ M.mT + b
                return (1 - bend) * u + bend * torch.tanh(u)

            plain, fast = steps_to_1e_5(f, torch.zeros_like(b), b, picard, anderson)
            assert (fast <= plain).all(), (rho, size, fast.tolist(), plain.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [5, 30, 100])
@pytest.mark.parametrize("lowest", [0, -0.97])
def test_anderson_halves_the_steps_of_slow_maps(dtype: torch.dtype, size: int, lowest: float) -> None:
    """Eigenvalues all over the interval, and a start that is equally wrong along each of them."""
    M, b = symmetric(lowest, 0.97, size).to(dtype), draw(2, size, seed=4).to(dtype)
    exact = torch.linalg.solve(torch.eye(size, dtype=dtype) - M, b.mT).mT
    start = exact + 3 * orthogonal(size).to(dtype).sum(1)
    plain, fast = steps_to_1e_5(affine(M), start, b, picard, anderson)
    assert (2 * fast <= plain).all(), (fast.tolist(), plain.tolist())


@pytest.mark.parametrize("kind", REAL)
def test_acceleration_ends_on_affine_maps_of_few_pixels(kind: str) -> None:
    """With enough memory Anderson needs n + 2 evaluations as GMRES does, and Broyden 2 n + 1 (Gay, 1979)."""
    M, b = MATRICES[kind](0.97, 5), draw(3, 5, seed=4)
    fast, secant = steps_to_1e_5(affine(M), torch.zeros_like(b), b, anderson, broyden)
    assert (fast <= 5 + 2).all(), fast
    assert (secant <= 2 * 5 + 1).all(), secant


@accelerated
@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("size", [30, 100])
def test_acceleration_loses_no_contraction(solver, kind: str, size: int) -> None:
    """Memory is shorter than the image is long; picard needs 400 steps at most."""
    b = draw(2, size, seed=4)
    found = solver(affine(MATRICES[kind](0.97, size)), torch.zeros_like(b), given=(b,), max_steps=800)
    assert found.converged.all(), found


@every
@pytest.mark.parametrize("pick", [[0], [3], [4, 1, 2], [0, 1, 2, 3, 4]])
def test_images_do_not_feel_their_companions(solver, pick: list[int]) -> None:
    """Each has a map of its own, from constant to slow, so that they stop one after the other."""
    rho = torch.tensor([0.97, 0.0, 0.9, 0.3, 0.7], dtype=torch.float64)[:, None, None]
    b = 10.0 ** torch.arange(-2, 3)[:, None, None] * draw(5, 2, 4, seed=4)
    bend = draw(5, seed=5).abs().clamp_max(1)
    M = MATRICES["symmetric"](1.0, 4)

    def f(z: Tensor, rho: Tensor, b: Tensor, bend: Tensor) -> Tensor:
        assert len(z) == len(rho) == len(b) == len(bend)
        u = rho * z @ M
        return u + bend[:, None, None] * (torch.tanh(u) - u) / 2 + b

    def solve(i: list[int]) -> Solution:
        return solver(f, torch.zeros_like(b[i]), given=(rho[i], b[i], bend[i]), max_steps=900, tol=1e-8)

    together, chosen = solve([*range(5)]), solve(pick)
    assert len(set(together.n_steps.tolist())) >= 4
    assert together.converged.all()
    assert chosen.n_steps.tolist() == together.n_steps[pick].tolist()
    for one, other in zip(chosen.x, together.x[pick], strict=True):
        assert torch.dist(one, other) <= 1e-11 * other.norm()


def assert_best_of_what_was_met(solver: Map, f: Map, z0: Tensor, max_steps: int) -> Solution:
    """One image: the result is the ``f(z)`` of the least ``||f(z) - z||`` among all evaluations."""
    met: list[tuple[float, float, Tensor]] = []

    def watched(z: Tensor) -> Tensor:
        fz = f(z)
        length, size = (fz - z).double().norm(), fz.double().norm()
        if torch.isfinite(length) and torch.isfinite(size):
            met.append((length.item(), (length / size).item(), fz))
        return fz

    found = solver(watched, z0, max_steps=max_steps)
    assert torch.isfinite(found.x).all()
    _, least, _ = min(met, key=lambda one: one[0])
    assert found.residual.item() == pytest.approx(least, rel=1e-6), "not the least residual"
    assert any(torch.equal(fz, found.x) for _, residual, fz in met if residual == pytest.approx(least))
    return found


@every
@pytest.mark.parametrize("start", [0.0, 1.0, -40.0])
def test_maps_that_expand_do_not_converge(solver, start: float) -> None:
    """``z = 1.5 |z| + 1`` has no solution."""
    z0 = torch.full((1, 3), start, dtype=torch.float64)
    found = assert_best_of_what_was_met(solver, lambda z: 1.5 * z.abs() + 1, z0, 100)
    assert not found.converged.any()
    assert found.residual >= 0.333


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_iterates_that_overflow_have_not_converged(solver, dtype: torch.dtype, factor: float) -> None:
    """The squares in a norm do so long before the numbers themselves."""
    start = torch.ones(1, 64, 64, dtype=dtype)
    found = solver(lambda z: factor * z.abs() + 1, start, max_steps=100 if dtype == torch.float32 else 1000)
    assert torch.isfinite(found.x).all()
    assert not found.converged.any(), found.residual
    assert found.residual >= 0.99 * (1 - 1 / factor)


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_maps_without_numbers_far_away_return_the_best_met(solver, bad: float) -> None:
    def f(z: Tensor) -> Tensor:
        return torch.where(z.abs() < 5, 1.5 * z.abs() + 1, bad)

    found = assert_best_of_what_was_met(solver, f, torch.zeros(1, 2, dtype=torch.float64), 60)
    assert not found.converged.any()
    nothing = solver(lambda z: bad * z, torch.ones(1, 2), max_steps=5)
    assert_close(nothing.x, torch.ones(1, 2))
    assert not nothing.converged.any()
    assert torch.isposinf(nothing.residual).all()


@every
def test_one_image_without_numbers_leaves_its_neighbours(solver) -> None:
    def f(z: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(z) / 2 + b

    b = draw(3, 4)
    alone = solver(f, torch.zeros_like(b), given=(b,))
    b[1, 2] = torch.nan
    found = solver(f, torch.zeros_like(b), given=(b,))
    assert found.converged.tolist() == [True, False, True]
    assert torch.isfinite(found.x).all()
    assert_close(found.x[[0, 2]], alone.x[[0, 2]], rtol=0, atol=1e-12)


@every
def test_zero_images_empty_batches_and_no_steps(solver) -> None:
    zero = solver(lambda z: z / 2, torch.zeros(2, 3, 4))
    assert not zero.x.any()
    assert zero.converged.all()
    assert zero.n_steps.tolist() == [1, 1]
    empty = solver(lambda z, b: z / 2 + b, torch.zeros(0, 3, 4), given=(torch.zeros(0, 1, 1),))
    assert empty.x.shape == (0, 3, 4)
    assert empty.n_steps.shape == empty.residual.shape == (0,)
    z0 = draw(2, 3)
    none = solver(lambda z: z / 2, z0, max_steps=0)
    assert torch.equal(none.x, z0)
    assert not none.converged.any()
    assert not none.n_steps.any()


# ------------------------------------------------------------------------------------------------ GMRES
def invertible(size: int, seed: int, kind: str) -> Tensor:
    """Singular values between 1/2 and 5, in a matrix of the kind."""
    dtype = torch.complex128 if kind == "complex" else torch.float64
    left, right = orthogonal(size, seed, dtype), orthogonal(size, seed + 1, dtype)
    values = torch.linspace(0.5, 5, size, dtype=torch.float64)
    if kind == "indefinite":
        return (left * values * (-1.0) ** torch.arange(size)) @ left.mT
    return (left * values) @ right.mH


def on_batches(B: Tensor) -> Map:
    return lambda x: (x.flatten(1) @ B.mT).reshape(x.shape)


def relative_residual(linear: Map, x: Tensor, b: Tensor) -> Tensor:
    return (b - linear(x)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


KINDS = ("non-symmetric", "indefinite", "complex")
B, RIGHT = invertible(12, 1, "non-symmetric"), draw(3, 12, seed=3)
EXACT = torch.linalg.solve(B, RIGHT.mT).mT


@given(seed=st.integers(0, 99), size=st.integers(1, 8), kind=st.sampled_from(KINDS), n=st.integers(1, 3))
def test_gmres_finds_the_dense_solution(seed: int, size: int, kind: str, n: int) -> None:
    B = invertible(size, seed, kind)
    b = draw(n, size, seed=seed + 7, dtype=B.dtype)
    found = gmres(on_batches(B), b, tol=1e-11)
    assert found.converged.all()
    assert (found.n_steps <= (2 * size if B.is_complex() else size)).all()
    assert_close(found.x, torch.linalg.solve(B, b.mT).mT, rtol=1e-8, atol=1e-9)
    objective = (found.x.conj() * (on_batches(B)(found.x) / 2 - b)).real.sum(1)
    assert_close(found.objective, objective)


@pytest.mark.parametrize("size", [1, 4])
def test_gmres_solves_maps_that_are_real_linear_only(size: int) -> None:
    """A conjugate inside, as in the derivative of a modulus."""
    M, C = invertible(size, 1, "complex"), 0.1 * draw(size, size, seed=5, dtype=torch.complex128)
    b = draw(3, size, seed=3, dtype=torch.complex128)
    for linear in (lambda x: x + 0.3 * x.conj(), lambda x: x @ M.mT + x.conj() @ C.mT):
        found = gmres(linear, b, tol=1e-12)
        assert found.converged.all()
        assert (relative_residual(linear, found.x, b) < 1e-11).all()
    simple = gmres(lambda x: x + 0.3 * x.conj(), b, tol=1e-12).x
    assert_close(simple, torch.complex(b.real / 1.3, b.imag / 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_gmres_keeps_the_number_type_and_the_shape(dtype: torch.dtype) -> None:
    matrix, b = B.to(dtype), draw(2, 3, 4, dtype=dtype)
    found = gmres(on_batches(matrix), b, tol=1e-5)
    assert found.converged.all()
    assert found.x.dtype == dtype
    assert found.residual.dtype == found.objective.dtype == torch.float32
    assert (relative_residual(on_batches(matrix), found.x, b) < 3e-5).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("started", [False, True])
def test_gmres_has_the_least_residual_of_its_krylov_space(kind: str, started: bool) -> None:
    B, size = invertible(7, 2, kind), 7
    b = draw(3, size, seed=3, dtype=B.dtype)
    x0 = draw(3, size, seed=4, dtype=B.dtype) if started else torch.zeros_like(b)
    for k in range(size + 1):
        found = gmres(on_batches(B), b, x0 if started else None, max_steps=k, tol=0.0)
        for i in range(3):
            rest, powers = b[i] - B @ x0[i], [b[i] - B @ x0[i]]
            for _ in range(k):
                powers.append(B @ powers[-1])
            columns = torch.stack(powers, 1)[:, 1:]
            if B.is_complex():  # combinations with real coefficients
                columns, rest = torch.cat([columns.real, columns.imag]), torch.cat([rest.real, rest.imag])
            q = torch.linalg.qr(columns)[0]
            least = torch.linalg.vector_norm(rest - q @ (q.mT @ rest)) / b[i].norm()
            assert_close(found.residual[i], least, rtol=1e-6, atol=1e-8)
        assert_close(found.residual, relative_residual(on_batches(B), found.x, b), rtol=1e-6, atol=1e-12)


def test_gmres_gives_zero_for_zero() -> None:
    b = RIGHT.clone()
    b[1] = 0
    for x0 in (None, torch.ones_like(b)):
        found = gmres(on_batches(B), b, x0, tol=1e-10)
        assert found.converged.all()
        assert not found.x[1].any()
        assert found.n_steps[1] == found.residual[1] == found.objective[1] == 0
        assert_close(found.x[[0, 2]], EXACT[[0, 2]], rtol=0, atol=1e-8)
    assert not gmres(on_batches(B), torch.zeros(2, 12, dtype=b.dtype)).x.any()
    assert gmres(on_batches(B), b[:0]).x.shape == (0, 12)


def test_gmres_stops_image_by_image() -> None:
    """Eigenvectors take one step, sums of three take three."""
    values, vectors = torch.linalg.eigh(invertible(12, 1, "indefinite"))
    matrix = (vectors * values) @ vectors.mT
    b = torch.stack([vectors[:, 0], vectors[:, 2:5].sum(1), 1e6 * RIGHT[0], 0 * RIGHT[0], 1e-6 * RIGHT[1]])
    together = gmres(on_batches(matrix), b, tol=1e-8)
    assert together.n_steps[[0, 1, 3]].tolist() == [1, 3, 0]
    assert together.n_steps[2] > 3
    for pick in ([0], [1], [2], [3], [4], [4, 1, 2]):
        chosen = gmres(on_batches(matrix), b[pick], tol=1e-8)
        assert chosen.n_steps.tolist() == together.n_steps[pick].tolist()
        for one, other in zip(chosen.x, together.x[pick], strict=True):
            assert torch.dist(one, other) <= 1e-12 * other.norm()


def test_gmres_starts_where_it_is_told_to() -> None:
    at_once = gmres(on_batches(B), RIGHT, EXACT)
    assert torch.equal(at_once.x, EXACT)
    assert at_once.converged.all()
    assert not at_once.n_steps.any()
    near = EXACT + 1e-5 * draw(3, 12, seed=6)
    kept = near.clone()
    warm, cold = gmres(on_batches(B), RIGHT, near, tol=1e-5), gmres(on_batches(B), RIGHT, tol=1e-5)
    assert (warm.n_steps < cold.n_steps).all()
    assert torch.equal(near, kept)
    assert (relative_residual(on_batches(B), warm.x, RIGHT) <= 1.01e-5).all()


@pytest.mark.parametrize("diagonal", [[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
def test_gmres_does_not_claim_to_solve_what_has_no_solution(diagonal: list[float]) -> None:
    """The matrix nil (B e_1 = 0 leaves no direction), and one without the second pixel."""
    singular, b = torch.diag(torch.tensor(diagonal, dtype=torch.float64)), torch.ones(2, 3).double()
    found = gmres(on_batches(singular), b)
    assert not found.converged.any()
    assert torch.isfinite(found.x).all()
    assert_close(found.residual, relative_residual(on_batches(singular), found.x, b), rtol=1e-3, atol=0)


def test_gmres_solves_singular_systems_that_have_a_solution() -> None:
    singular = symmetric(0, 3, 6)
    b = draw(2, 6, seed=8) @ singular
    found = gmres(on_batches(singular), b, tol=1e-10)
    assert found.converged.all()
    assert (relative_residual(on_batches(singular), found.x, b) < 1e-9).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_gmres_keeps_finite_and_apart_what_has_no_numbers(bad: float) -> None:
    b = RIGHT.clone()
    b[1, 0] = bad
    found = gmres(on_batches(B), b, tol=1e-10)
    assert found.converged.tolist() == [True, False, True]
    assert_close(found.x[[0, 2]], EXACT[[0, 2]], rtol=0, atol=1e-8)
    assert torch.isfinite(found.x).all()


@pytest.mark.parametrize("solver", [anderson, broyden])
def test_what_converged_solves_the_equation_where_the_map_expands(solver) -> None:
    """``f`` expands by a factor of 9, so ``f(z)`` is worse than ``z`` by as much."""
    slopes = torch.tensor([-9.0, 0.5, 3.0, -2.0], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return slopes * (z - 1) + 1

    found = solver(f, torch.zeros(1, 4, dtype=torch.float64), tol=1e-3, max_steps=50)
    residual = (f(found.x) - found.x).norm() / f(found.x).norm()
    assert found.converged.all()
    assert residual < 1e-3
    torch.testing.assert_close(found.residual[0], residual)


@pytest.mark.parametrize("solver", [picard, anderson, broyden])
def test_a_lone_image_takes_the_same_steps_to_the_bit(solver) -> None:
    """Where nothing contracts, an iteration makes much of the last bit."""
    expanding = 1.5 * draw(40, 40, seed=1) / 40**0.5
    start = draw(5, 40, seed=2)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.sin((z[:, None, :] * expanding).sum(2))

    together = solver(f, start, max_steps=60, tol=1e-12).x
    for k in range(5):
        assert torch.equal(solver(f, start[k : k + 1], max_steps=60, tol=1e-12).x[0], together[k])

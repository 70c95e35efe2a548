"""Analytic inverses: dense pseudo-inverses, closed forms, and one inverse however a map is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from pylops.signalprocessing import DCT, FFT2D

from skinverse.operators import AngleOffset, DetectorOffset, as_torch, fourier_sampling, parallel_beam
from skinverse.operators._view_weights import angular_weights

Operator = pylops.LinearOperator
Way = Callable[[Operator, NDArray, np.random.Generator], tuple[Operator, NDArray]]

DIMS = (6, 5)
ANGLES = np.array([0.1, 0.5, 1.2, 1.9, 2.6])
COILS = np.random.default_rng(0).normal(size=(3, *DIMS)) + 0.5j
SCAN = parallel_beam(DIMS, ANGLES, 9, dtype="float64")


def inverse(op: Operator, y: NDArray) -> NDArray:
    return as_torch(op).filtered_adjoint(torch.from_numpy(y).reshape(1, *op.dimsd))[0].numpy().ravel()


def relative(x: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(x - expected) / np.linalg.norm(expected))


# ---------------------------------------------------------------- one map, written in two ways
STARTS: dict[str, Callable[[], Operator]] = {
    "projections": lambda: SCAN,
    "one turn, twice": lambda: parallel_beam(DIMS, np.r_[ANGLES, ANGLES + np.pi, ANGLES], 8, dtype="float64"),
    "Fourier": lambda: FFT2D(DIMS, norm="ortho", dtype="complex128"),
    "Fourier of real images": lambda: FFT2D(DIMS, real=True),
    "some Fourier samples": lambda: fourier_sampling(np.eye(*DIMS, dtype=bool)),
    "cosine": lambda: DCT(DIMS),
    "projections of cosines": lambda: SCAN @ DCT(DIMS),
    "coils": lambda: fourier_sampling(np.eye(*DIMS, dtype=bool), COILS),
    "pixels": lambda: pylops.Restriction(DIMS, [3, 0, 1], axis=0),
}


def weights(n: int, rng: np.random.Generator) -> NDArray:
    """Positive, negative and small ones."""
    return rng.choice([-1.0, 1.0], n) * np.exp(rng.uniform(-5, 1, n))


def pieces(n: int, rng: np.random.Generator) -> list[NDArray]:
    return np.array_split(rng.permutation(n), 3)


def weighted_there_and_back(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    d = weights(len(y), rng)
    return pylops.Diagonal(1 / d) @ (pylops.Diagonal(d) @ op), y


def images_weighted_there_and_back(
    op: Operator, y: NDArray, rng: np.random.Generator
) -> tuple[Operator, NDArray]:
    d = weights(op.shape[1], rng).reshape(op.dims)
    return op @ pylops.Diagonal(d) @ pylops.Diagonal(1 / d), y


def halves_beside_each_other(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    n = op.shape[1]
    halves = [pylops.Restriction(n, part) for part in np.array_split(np.arange(n), 2)]
    return op @ pylops.HStack([half.H for half in halves]), y


def weighted_by_blocks(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    n = len(y) // 2
    blocks = pylops.BlockDiag([-2.0 * pylops.Identity(n), pylops.MatrixMult(0.5 * np.eye(len(y) - n))])
    return blocks @ _flat(op), np.r_[-2.0 * y[:n], 0.5 * y[n:]]


def stacked(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    parts = pieces(len(y), rng)
    factors = rng.normal(size=len(parts)) + 2j
    rows = [
        f * (pylops.Restriction(len(y), part) @ _flat(op)) for f, part in zip(factors, parts, strict=True)
    ]
    return pylops.VStack(rows), np.concatenate([f * y[part] for f, part in zip(factors, parts, strict=True)])


def in_another_order(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    order = rng.permutation(len(y))
    return pylops.Restriction(len(y), order) @ _flat(op), y[order]


def repeated(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    index = np.r_[np.arange(len(y)), rng.integers(len(y), size=4)]
    return pylops.Restriction(len(y), index) @ _flat(op), y[index]


def weighted(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    d = weights(len(y), rng)
    return pylops.Diagonal(d) @ _flat(op), d * y


def padded(op: Operator, y: NDArray, rng: np.random.Generator) -> tuple[Operator, NDArray]:
    return pylops.Pad(len(y), (2, 1)) @ _flat(op), np.r_[7.0, -7.0, y, 7.0]


def _flat(op: Operator) -> Operator:
    """The same operator with data of one dimension, given since."""
    flat = 1.0 * op
    flat.dimsd = (op.shape[0],)
    return flat


WAYS: dict[str, Way] = {
    "the sum of two parts": lambda op, y, rng: (0.25 * op + op * 0.75, y),
    "scaled": lambda op, y, rng: (-3.0 * op, -3.0 * y),
    "scaled by a complex number": lambda op, y, rng: ((1 - 2j) * op, (1 - 2j) * y),
    "scaled twice": lambda op, y, rng: (pylops.Diagonal(np.full(len(y), 2.0)) @ (0.5 * op), y),
    "flipped twice": lambda op, y, rng: (pylops.Flip(len(y)) @ pylops.Flip(len(y)).H @ _flat(op), y),
    "weighted": weighted,
    "weighted there and back": weighted_there_and_back,
    "images weighted there and back": images_weighted_there_and_back,
    "by blocks": weighted_by_blocks,
    "beside each other": halves_beside_each_other,
    "stacked": stacked,
    "in another order": in_another_order,
    "repeated": repeated,
    "padded": padded,
}


def measured(op: Operator, start: str, rng: np.random.Generator) -> NDArray:
    """Data, noisy unless some of them are repeated: how those are averaged depends on their weights."""
    noise = 0.0 if "twice" in start else 0.1
    return op @ rng.normal(size=op.shape[1]) + noise * rng.normal(size=op.shape[0])


@settings(max_examples=60, deadline=None)
@given(
    start=st.sampled_from(list(STARTS)),
    ways=st.lists(st.sampled_from(list(WAYS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_a_map_has_one_inverse_however_it_is_written(start: str, ways: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    op = STARTS[start]()
    y = measured(op, start, rng)
    expected = inverse(op, y)
    other, values = op, y
    for way in ways:
        other, values = WAYS[way](other, values, rng)
    assert other.shape[1] == op.shape[1]
    assert relative(inverse(other, values), expected) < 1e-9


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("start", STARTS)
def test_every_way_of_writing_every_map(start: str, way: str) -> None:
    rng = np.random.default_rng(0)
    op = STARTS[start]()
    y = measured(op, start, rng)
    other, values = WAYS[way](op, y, rng)
    assert relative(inverse(other, values), inverse(op, y)) < 1e-9


def test_factors_may_stand_before_and_behind_a_transform() -> None:
    rng = np.random.default_rng(0)
    d = weights(30, rng).reshape(DIMS)
    for transform in (SCAN, DCT(DIMS)):
        n, op = transform.shape[0], -2.0 * (transform @ pylops.Diagonal(d))
        first, second = (pylops.Restriction(n, part) for part in np.array_split(np.arange(n), 2))
        inside = first @ transform @ pylops.Diagonal(-2 * d)
        outside = -2.0 * (second @ transform @ pylops.Diagonal(d))
        y = rng.normal(size=n)
        assert relative(inverse(pylops.VStack([inside, outside]), y), inverse(op, y)) < 1e-9


# ---------------------------------------------------------------- pseudo-inverses
@pytest.mark.parametrize("transform", [DCT(DIMS), FFT2D(DIMS, norm="ortho", dtype="complex128")])
def test_orthonormal_transforms_have_their_pseudo_inverse(transform: Operator) -> None:
    rng = np.random.default_rng(0)
    n = transform.shape[1]
    signs = pylops.Diagonal(rng.choice([-1.0, 1.0], DIMS)) @ pylops.Flip(DIMS, axis=1)
    kept, repeats = rng.permutation(n)[:20], rng.integers(20, size=30)
    rows = pylops.Diagonal(weights(30, rng)) @ pylops.Restriction(20, repeats) @ pylops.Restriction(n, kept)
    op = rows @ transform @ signs
    y = rng.normal(size=30) + 1j * rng.normal(size=30)
    assert_allclose(inverse(op, y), np.linalg.pinv(op.todense()) @ y, atol=1e-10)


@pytest.mark.parametrize("transform", [DCT(DIMS), FFT2D(DIMS, norm="ortho", dtype="complex128")])
def test_weighted_images_of_a_whole_transform_come_back(transform: Operator) -> None:
    rng = np.random.default_rng(0)
    d = weights(transform.shape[1], rng).reshape(DIMS)
    op = pylops.Diagonal(weights(transform.shape[0], rng)) @ transform @ pylops.Diagonal(d)
    x = rng.normal(size=transform.shape[1])
    assert_allclose(inverse(op, op @ x), x, rtol=1e-9)


def test_what_no_datum_depends_on_is_zero() -> None:
    d = np.array([2.0, 0.0, -4.0])
    rows = pylops.Restriction(3, [2, 1]) @ pylops.Diagonal(d)
    assert_allclose(inverse(rows, np.array([8.0, 5.0])), [0.0, 0.0, -2.0])


def test_repeated_data_are_averaged_by_least_squares() -> None:
    column = pylops.MatrixMult(np.array([[1.0], [2.0], [0.0]]))
    assert_allclose(inverse(column, np.array([3.0, 1.0, 9.0])), (3 + 2 * 1) / (1 + 4))


@pytest.mark.parametrize("factor", [1e-20, 1e-12, 1e12, 1e20])
def test_factors_do_no_harm_in_single_precision(factor: float) -> None:
    rng = np.random.default_rng(0)
    d = rng.uniform(1e-3, 1, SCAN.shape[0])
    y = rng.normal(size=d.size).astype(np.float32)
    for op in (factor * (pylops.Diagonal(d) @ SCAN), pylops.Diagonal(factor * d) @ SCAN):
        found = inverse(op, (factor * d * y).astype(np.float32))
        assert relative(found, inverse(SCAN, y.astype(np.float64))) < 1e-5


def test_entries_that_are_rounding_are_no_measurements() -> None:
    A = parallel_beam((N, N), EVERY, 47)
    d = np.ones(A.dimsd)
    d[::2] = 1e-17
    y, some = A @ DISC.ravel(), pylops.Restriction(A.dimsd, np.arange(1, 60, 2), axis=0)
    assert relative(inverse(pylops.Diagonal(d) @ A, d.ravel() * y), inverse(some @ A, some @ y)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_images_do_not_depend_on_their_companions(dtype: torch.dtype) -> None:
    index = np.random.default_rng(0).integers(SCAN.shape[0], size=100)
    A = as_torch(pylops.Restriction(SCAN.shape[0], index) @ SCAN)
    y = torch.randn(5, 100, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(A.filtered_adjoint(y)[3:4], A.filtered_adjoint(y[3:4]))


# ---------------------------------------------------------------- coils
def test_coils_are_combined_by_the_sum_of_squares_of_their_maps() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, *DIMS)) + 1j * rng.normal(size=(3, *DIMS))
    maps[:, 0, 0] = 0
    A = fourier_sampling(np.ones(DIMS, dtype=bool), maps)
    x = rng.normal(size=DIMS)
    x[0, 0] = 0
    assert_allclose(inverse(A, A @ x.ravel()), x.ravel(), atol=1e-12)


def test_coils_are_combined_alike_in_one_operator_and_in_a_stack() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, *DIMS)) * np.array([1.0, 0.2, 30.0])[:, None, None]
    maps = maps * np.exp(1j * rng.uniform(0, 6, maps.shape))
    mask = rng.random(DIMS) < 0.5
    A = fourier_sampling(mask, maps)
    y = rng.normal(size=A.shape[0]) + 1j * rng.normal(size=A.shape[0])
    kspace = y.reshape(A.dimsd) * mask
    coils = np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho")
    expected = (maps.conj() * coils).sum(0) / (abs(maps) ** 2).sum(0)
    stack = pylops.VStack([fourier_sampling(mask) @ pylops.Diagonal(m) for m in maps])
    for op in (A, stack):
        assert_allclose(inverse(op, y), expected.ravel())


def test_weights_of_data_tell_nothing_of_the_coils() -> None:
    """Whitened by the noise of each coil, and by weights of every datum."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, *DIMS)) + 1j * rng.normal(size=(3, *DIMS))
    A = fourier_sampling(rng.random(DIMS) < 0.5, maps)
    y = rng.normal(size=A.shape[0]) + 1j * rng.normal(size=A.shape[0])
    for d in (np.repeat([1.0, 0.2, 30.0], len(y) // 3), weights(len(y), rng)):
        assert relative(inverse(pylops.Diagonal(d) @ A, d * y), inverse(A, y)) < 1e-9


# ---------------------------------------------------------------- projections
N, ROUND = 32, np.hypot(*np.mgrid[-15.5:16, -15.5:16])
DISC = (ROUND <= 11).astype(float)
EVERY = np.arange(0, np.pi, np.pi / 60)


def inside(op: Operator, y: NDArray | None = None) -> float:
    x = inverse(op, op @ DISC.ravel() if y is None else y).reshape(N, N)
    return float(x[ROUND < 7].mean())


SCANS = {
    "every three degrees": EVERY,
    "in any order": np.random.default_rng(0).permutation(EVERY),
    "one turn": np.arange(0, 2 * np.pi, np.pi / 60),
    "three half turns, backwards": -np.arange(0, 3 * np.pi, np.pi / 60),
    "some twice and thrice": np.r_[EVERY, EVERY[:20], EVERY[5:9]],
    "dense in a few degrees": np.r_[np.arange(0, 0.2, 2e-3), np.arange(0.2, np.pi, 0.05)],
    "dense in the middle": np.r_[np.arange(0, 1, 0.05), np.arange(1, 1.2, 1e-3), np.arange(1.2, np.pi, 0.05)],
    "120 degrees only": EVERY[:40],
}


@pytest.mark.parametrize("angles", SCANS.values(), ids=SCANS)
@pytest.mark.filterwarnings("ignore:angles are in radians")
def test_a_disc_of_one_comes_back_as_one(angles: NDArray) -> None:
    assert_allclose(inside(parallel_beam((N, N), angles, 47)), 1, atol=0.01)


@given(st.lists(st.floats(-7, 7), min_size=1, max_size=12))
def test_angular_weights_make_up_the_half_circle(angles: list[float]) -> None:
    w = angular_weights(np.array(angles))
    assert (w >= 0).all()
    assert_allclose(w.sum(), np.pi)


def test_the_views_that_are_there_are_a_scan_of_their_angles() -> None:
    A, some = parallel_beam((N, N), EVERY, 47), np.r_[0:3, 10:60]
    views = pylops.Restriction(A.dimsd, some, axis=0) @ A
    alone = parallel_beam((N, N), EVERY[some], 47)
    y = alone @ DISC.ravel()
    assert relative(inverse(views, y), inverse(alone, y)) < 1e-6
    d = np.zeros(A.dimsd)
    d[some] = np.random.default_rng(0).uniform(0.5, 2, (len(some), 47))
    y_all = np.full(A.dimsd, 1e6)
    y_all[some] = d[some] * y.reshape(-1, 47)
    y_all[d == 0] = 0  # what A with zero weight measures
    assert relative(inverse(pylops.Diagonal(d) @ A, y_all.ravel()), inverse(alone, y)) < 1e-6


def test_views_from_behind_are_mirrored() -> None:
    x = DISC.ravel() * np.random.default_rng(0).random(N * N)
    before, behind = (parallel_beam((N, N), angles, 47) for angles in (EVERY, EVERY - np.pi))
    assert relative(inverse(behind, behind @ x), inverse(before, before @ x)) < 1e-5


def test_two_scans_are_one_of_all_views() -> None:
    A = parallel_beam((N, N), EVERY, 47)
    parts = [parallel_beam((N, N), EVERY[k::2] + k * np.pi, 47) for k in (0, 1)]
    both = pylops.VStack([2.0 * parts[0], parts[1]])
    assert relative(inverse(both, both @ DISC.ravel()), inverse(A, A @ DISC.ravel())) < 1e-5


def test_missing_elements_are_interpolated_along_the_detector() -> None:
    A = parallel_beam((N, N), EVERY, 47)
    there = np.random.default_rng(0).random(A.dimsd) > 0.1
    there[:, 20] = False
    rows = pylops.Restriction(A.shape[0], np.flatnonzero(there)) @ A
    expected = inverse(A, A @ DISC.ravel())
    assert relative(inverse(rows, rows @ DISC.ravel()), expected) < 0.1


def test_statistical_weights_do_not_spoil_a_back_projection() -> None:
    A = parallel_beam((N, N), EVERY, 47)
    y = 0.3 * (A @ DISC.ravel()).astype(float)
    d = np.exp(-y)
    assert d.min() < 2e-3
    assert relative(inverse(pylops.Diagonal(d) @ A, d * y), inverse(A, y)) < 1e-5


def test_scans_by_different_detectors_have_no_common_formula() -> None:
    both = pylops.VStack([SCAN, parallel_beam(DIMS, ANGLES + 0.2, 7)])
    with pytest.raises(TypeError, match="Tikhonov"):
        inverse(both, np.ones(both.shape[0]))


def test_a_transform_between_weights_is_not_undone_by_division() -> None:
    """Deconvolution by division in the Fourier domain would be noise."""
    F = FFT2D(DIMS, norm="ortho", dtype="complex128")
    assert not as_torch(F.H @ pylops.Diagonal(np.full(DIMS, 0.1)) @ F).has_analytic_inverse


@pytest.mark.parametrize("family", [AngleOffset, DetectorOffset])
def test_weights_around_and_inside_of_a_family_are_undone(family: Any) -> None:
    A = parallel_beam((N, N), EVERY, 47)
    d = np.random.default_rng(0).uniform(0.5, 2, A.dimsd)
    y = A @ DISC.ravel()
    expected = inverse(family(A, 0.0), y)
    weighted = pylops.Diagonal(d) @ family(A, 0.0)
    halves = [pylops.Restriction(y.size, half) for half in np.array_split(np.arange(y.size), 2)]
    stacked = pylops.VStack([half @ weighted for half in halves])
    for op in (weighted, stacked, family(pylops.Diagonal(d) @ A, 0.0)):
        assert relative(inverse(op, d.ravel() * y), expected) < 1e-5

"""Fourier samples along a trajectory: against sums, the grid, and themselves."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.typing import NDArray

import skinverse
from skinverse import Tikhonov, ZeroFilled
from skinverse.datasets import shepp_logan
from skinverse.metrics import psnr
from skinverse.operators import as_torch, dot_test, fourier_sampling, nonuniform_fourier

SHAPES = [(6, 7), (9, 8), (4, 5, 6)]


def values(*shape: int, seed: int = 0) -> NDArray[np.complex128]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def points(n: int, ndim: int = 2) -> NDArray[np.float64]:
    return np.random.default_rng(1).uniform(-np.pi, np.pi, (n, ndim))


def radial(n_spokes: int, n_samples: int) -> tuple[NDArray, NDArray]:
    """Trajectory and density of lines through the zero frequency."""
    angles, radii = np.meshgrid(
        np.arange(n_spokes) * np.pi / n_spokes, np.linspace(-np.pi, np.pi, n_samples, endpoint=False)
    )
    return np.stack([radii * np.sin(angles), radii * np.cos(angles)], -1).reshape(-1, 2), abs(radii).ravel()


def pixels(shape: tuple[int, ...]) -> NDArray:
    """Places of all pixels, counted from the centre, (n_pixels, ndim)."""
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return np.stack(axes, -1).reshape(-1, len(shape))


# ---------------------------------------------------------------- values
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_sums_over_pixels(shape: tuple[int, ...]) -> None:
    omega, maps, x = points(40, len(shape)), values(3, *shape), values(*shape, seed=1)
    waves = np.exp(-1j * omega @ pixels(shape).T) / np.sqrt(x.size)
    A = nonuniform_fourier(omega, shape, coil_maps=maps)
    assert (A.dims, A.dimsd) == (shape, (3, 40))
    np.testing.assert_allclose(A @ x, (maps * x).reshape(3, -1) @ waves.T, atol=1e-10)
    np.testing.assert_allclose(nonuniform_fourier(omega, shape) @ x, waves @ x.ravel(), atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 7), (9, 8)])
def test_on_a_grid_it_is_the_centred_fourier_transform(shape: tuple[int, int]) -> None:
    mask, maps, x = np.random.default_rng(0).random(shape) < 0.6, values(2, *shape), values(*shape, seed=1)
    frequencies = 2 * np.pi * pixels(shape)[mask.ravel()] / shape
    expected = fourier_sampling(mask, maps, centred=True) @ x
    found = nonuniform_fourier(frequencies, shape, coil_maps=maps) @ x
    np.testing.assert_allclose(found, expected[:, mask], atol=1e-10)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_adjoint_batches_and_precision(dtype: str) -> None:
    A = nonuniform_fourier(points(50), (8, 6), coil_maps=values(3, 8, 6).astype(dtype))
    assert A.dtype == dtype
    assert dot_test(A) < 1e-6
    linear = as_torch(A)
    x, y = (torch.from_numpy(values(4, *s).astype(dtype)) for s in (A.dims, A.dimsd))
    ahead, back = linear(x), linear.adjoint(y)
    assert str(ahead.dtype) == str(back.dtype) == f"torch.{dtype}"
    left, right = (ahead.conj() * y).sum(), (x.conj() * back).sum()
    assert abs(left - right) < 1e-6 * ahead.norm() * y.norm()
    tol = 1e-5 if dtype == "complex64" else 1e-12
    for i in range(4):  # an image does not depend on its companions
        torch.testing.assert_close(linear(x[i : i + 1])[0], ahead[i], rtol=tol, atol=tol)
        torch.testing.assert_close(linear.adjoint(y[i : i + 1])[0], back[i], rtol=tol, atol=tol)
        np.testing.assert_allclose(A @ x[i].numpy(), ahead[i], rtol=tol, atol=tol)


@pytest.mark.draws_globally
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_of_any_order(shape: tuple[int, ...]) -> None:
    linear = as_torch(nonuniform_fourier(points(5, len(shape)), shape))
    x = torch.from_numpy(values(1, *shape)).requires_grad_()
    real = x.detach().real.clone().requires_grad_()
    assert torch.autograd.gradcheck(linear, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: linear(x).abs().square(), (x,), fast_mode=True)
    assert torch.autograd.gradcheck(linear, (real,), fast_mode=True)


def test_many_sizes_of_batches_and_threads_at_once() -> None:
    linear = as_torch(nonuniform_fourier(points(30), (6, 7)))
    x = torch.from_numpy(values(24, 6, 7))
    expected = linear(x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: linear(x[:n]), range(1, 25)))
    for n, y in enumerate(found, 1):
        torch.testing.assert_close(y, expected[:n], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3])
def test_several_threads_add_in_a_fixed_order(n: int) -> None:
    trajectory = np.random.default_rng(0).uniform(-np.pi, np.pi, (60000, 2))
    linear, y = as_torch(nonuniform_fourier(trajectory, (192, 192))), values(n, 60000).astype(np.complex64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [linear.adjoint(torch.from_numpy(y)) for _ in range(4)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found)


# ---------------------------------------------------------------- what is known of it
def test_what_the_map_says_of_itself() -> None:
    linear = as_torch(2.0 * nonuniform_fourier(points(50), (8, 6), coil_maps=values(3, 8, 6)))
    assert linear.neighbours == (False, False)
    assert linear.measured is None
    matrix = linear(torch.eye(48, dtype=torch.complex128).reshape(48, 8, 6)).flatten(1)
    assert linear.norm() == pytest.approx(np.linalg.norm(matrix, 2), rel=0.01)


def test_copies_and_files(tmp_path: Any) -> None:
    A = nonuniform_fourier(points(50), (8, 6), coil_maps=values(3, 8, 6), density=np.arange(50.0))
    y = values(2, *A.dimsd)
    expected = ZeroFilled(A).fit().predict(y)
    ZeroFilled(A).fit().save(tmp_path / "m.skinverse")
    for method in (
        skinverse.load(tmp_path / "m.skinverse"),
        pickle.loads(pickle.dumps(ZeroFilled(A).fit())),
        ZeroFilled(copy.deepcopy(A)).fit(),
    ):
        np.testing.assert_allclose(method.predict(y), expected, rtol=1e-12)
    linear = as_torch(A)
    assert torch.equal(
        pickle.loads(pickle.dumps(linear)).adjoint(torch.from_numpy(y)), linear.adjoint(torch.from_numpy(y))
    )


# ---------------------------------------------------------------- reconstruction
N = 64
PHANTOM = np.asarray(shepp_logan(N))
SPOKES, RAMP = radial(100, 2 * N)


@pytest.mark.parametrize("density", [None, RAMP, 1e6 * RAMP])
def test_gridding_of_radial_lines_shows_the_image_in_its_units(density: NDArray | None) -> None:
    maps = np.exp(1j * np.arange(3))[:, None, None] * np.linspace(1, 2, 3 * N * N).reshape(3, N, N)
    A = nonuniform_fourier(SPOKES, (N, N), coil_maps=maps, density=density)
    for operator in (A, 3.0 * A, pylops.Diagonal(np.repeat([1.0, 2.0, 5.0], len(SPOKES))) @ A):
        y = (operator @ PHANTOM.astype(complex)).reshape(1, *operator.dimsd)
        found = ZeroFilled(operator).fit().predict(y)
        assert psnr(PHANTOM[None], np.abs(found))[0] > 24
        assert psnr(PHANTOM[None], np.abs(found) * 1.2)[0] < psnr(PHANTOM[None], np.abs(found))[0] + 1


def test_full_grids_are_inverted() -> None:
    x = values(2, 8, 9)
    A = nonuniform_fourier(2 * np.pi * pixels((8, 9)) / (8, 9), (8, 9))
    found = ZeroFilled(A).fit().predict(as_torch(A)(torch.from_numpy(x)).numpy())
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_iterations_are_better_than_gridding() -> None:
    spokes, _ = radial(24, 2 * N)
    A = nonuniform_fourier(spokes, (N, N))
    y = (A @ PHANTOM.astype(complex))[None]
    quality = [
        psnr(PHANTOM[None], m.fit().predict(y).real)[0] for m in (ZeroFilled(A), Tikhonov(A, lam=1e-3))
    ]
    assert quality[1] > quality[0] + 0.5


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nonuniform_fourier(points(9), (6,)), r"two or three axes, got \(6,\)"),
        (lambda: nonuniform_fourier(points(9, 3), (6, 7)), r"\(n_samples, 2\).*\(9, 3\)"),
        (lambda: nonuniform_fourier(points(9)[:, 0], (6, 7)), r"\(n_samples, 2\).*\(9,\)"),
        (lambda: nonuniform_fourier(points(9) + 0j, (6, 7)), "real.*complex128"),
        (lambda: nonuniform_fourier(20 * points(9), (6, 7)), r"-pi to pi.*up to \d.*2 \* pi \* k / shape"),
        (lambda: nonuniform_fourier(np.full((9, 2), np.nan), (6, 7)), "-pi to pi.*nan"),
        (lambda: nonuniform_fourier(points(9), (6, 7), coil_maps=values(6, 7)), r"n_coils, 6, 7.*\(6, 7\)"),
        (lambda: nonuniform_fourier(points(9), (6, 7), coil_maps=values(3, 7, 6)), r"n_coils, 6, 7.*3, 7, 6"),
        (lambda: nonuniform_fourier(points(9), (6.5, 7)), "shape must be positive sizes"),
        (
            lambda: nonuniform_fourier(points(9), (6, 7), coil_maps=np.full((2, 6, 7), np.nan)),
            "must be finite",
        ),
        (lambda: nonuniform_fourier(points(9), (6, 7), density=np.ones(8)), r"\(9,\).*\(8,\)"),
        (lambda: nonuniform_fourier(points(9), (6, 7), density=-np.ones(9)), "not negative.*-1"),
        (lambda: nonuniform_fourier(points(9), (6, 7), density=np.zeros(9)), "positive somewhere"),
    ],
)
def test_bad_input_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_without_finufft_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'skinverse\[mri\]'"):
        nonuniform_fourier(points(9), (6, 7))

"""Projections without a stored matrix: the same numbers as with it, bit by bit in whatever company."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numba.core import caching
from numpy.testing import assert_allclose, assert_array_equal
from pylops import LinearOperator

from skinverse.operators import _fbp, _joseph, _kernel, as_torch, fan_beam, parallel_beam

ANGLES = np.linspace(0, 7, 70)  # more than the views whose rays are known at a time
SCANS: dict[str, Callable[..., LinearOperator]] = {
    "parallel": lambda **more: parallel_beam((13, 10), ANGLES, 17, pixel_size=0.7, **more),
    "along the axes": lambda **more: parallel_beam((6, 5), np.arange(5) * np.pi / 2, 9, **more),
    "offset of every view": lambda **more: parallel_beam((9, 12), ANGLES, 11, offset=np.sin(ANGLES), **more),
    "single pixel": lambda **more: parallel_beam((1, 1), ANGLES, 3, spacing=0.4, **more),
    "flat fan": lambda **more: fan_beam(
        (40, 10), ANGLES[::3], 17, source_distance=22, detector_distance=5, spacing=2.5, offset=3, **more
    ),
    "curved fan": lambda **more: fan_beam(
        (10, 13), ANGLES, 17, source_distance=11, detector_distance=0, curved=True, **more
    ),
}


@pytest.fixture(autouse=True)
def nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_joseph, "MAX_STORED_BYTES", 0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def images(operator: LinearOperator, n: int, seed: int = 0) -> torch.Tensor:
    x = np.random.default_rng(seed).standard_normal((n, *operator.dims))
    return torch.from_numpy(x.astype(operator.dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SCANS)
def test_it_is_the_matrix(name: str, dtype: str) -> None:
    operator = SCANS[name](dtype=dtype)
    A, M = as_torch(operator), torch.from_numpy(operator.matrix().toarray())
    x = images(operator, 3)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == "float32" else 1e-12}
    y = x.flatten(1) @ M.T
    assert A(x).dtype == x.dtype
    assert_allclose(A(x).flatten(1), y, **tolerance)
    assert_allclose(A.adjoint(A(x)).flatten(1) / len(M), y @ M / len(M), **tolerance)
    assert_allclose(operator.matmat(x.flatten(1).numpy().T).T, y, **tolerance)
    assert_allclose(operator.H @ y[0].numpy() / len(M), (y @ M)[0] / len(M), **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("n", [1, 6])
def test_the_adjoint_is_exact(n: int, dtype: str, tolerance: float) -> None:
    operator = SCANS["flat fan"](dtype=dtype)
    A, x = as_torch(operator), images(operator, n)
    y = torch.from_numpy(np.random.default_rng(1).standard_normal((n, *A.dimsd)).astype(dtype))
    gap = (A(x) * y).double().sum() - (x * A.adjoint(y)).double().sum()
    assert abs(gap) < tolerance * A(x).norm() * y.norm()


def test_companions_and_threads_do_not_change_a_bit(threads: Callable[[int], None]) -> None:
    operator = parallel_beam((70, 75), ANGLES, 150)
    A, x = as_torch(operator), images(operator, 13)
    threads(1)
    y, back = A(x), A.adjoint(A(x))
    threads(3)
    assert_array_equal(A(x), y)
    assert_array_equal(A.adjoint(y), back)
    for kept in (slice(0, 1), slice(5, 8), slice(4, 12)):
        assert_array_equal(A(x[kept]), y[kept])
        assert_array_equal(A.adjoint(y[kept]), back[kept])


def test_calls_from_several_threads() -> None:
    operator = SCANS["parallel"]()
    A, x = as_torch(operator), images(operator, 2)
    expected, found = A(x), []
    callers = [threading.Thread(target=lambda: found.append(A(x))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4
    assert all(torch.equal(y, expected) for y in found)


def test_complex_images_and_derivatives() -> None:
    operator = SCANS["parallel"](dtype="float64")
    A, x, y = as_torch(operator), images(operator, 2), images(operator, 2, seed=1)
    assert_allclose(A(torch.complex(x, y)), torch.complex(A(x), A(y)))
    assert_allclose(A(torch.complex(x, y).conj().imag), -A(y))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((A(x) ** 2).sum() / 2, x)
    assert_allclose(gradient.detach(), A.adjoint(A(x)).detach())


def test_a_block_of_views() -> None:
    operator = SCANS["offset of every view"](dtype="float64")
    A, x = as_torch(operator), images(operator, 2)
    for block in (slice(3, 9, 1), slice(1, 70, 7)):
        part = A.block(block.start, block.stop, block.step)
        assert_allclose(part(x), A(x)[:, block], atol=1e-12)
        zeros = torch.zeros(2, *A.dimsd, dtype=torch.float64)
        zeros[:, block] = part(x)
        assert_allclose(part.adjoint(part(x)), A.adjoint(zeros), atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SCANS)
def test_filtered_back_projection(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    operator = SCANS[name](dtype=dtype)
    A = as_torch(operator)
    y = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *A.dimsd)).astype(dtype))
    expected = A.filtered_adjoint(y)
    monkeypatch.setattr(_fbp, "_LARGE", 0)
    threads(3)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert_allclose(A.filtered_adjoint(y), expected, rtol=0, atol=tolerance * expected.abs().max())


def test_nothing_is_kept() -> None:
    operator = SCANS["parallel"]()
    as_torch(operator)(images(operator, 1))
    operator @ images(operator, 1)[0].numpy()
    rows = operator._rows
    assert rows._whole is None
    gone = weakref.ref(rows)
    del operator, rows
    gc.collect()
    assert gone() is None


def test_it_works_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    double = _kernel._compiled(lambda x: 2 * x)
    assert double(3) == 6

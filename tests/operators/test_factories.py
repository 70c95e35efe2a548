"""The composed operators, against dense matrices and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pylops import LinearOperator
from scipy.ndimage import gaussian_filter

from skinverse.operators import (
    as_torch,
    dot_test,
    fourier_sampling,
    gaussian_blur,
    inpainting,
    structurally_random,
)

SHAPES = [(6, 8), (5, 7), (6, 5), (1, 4)]


def complex_array(*shape: int) -> NDArray:
    rng = np.random.default_rng(len(shape))
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def random_mask(shape: tuple[int, ...]) -> NDArray:
    mask = np.random.default_rng(3).random(shape) < 0.5
    mask.flat[0] = True
    return mask


OPERATORS: list[Callable[[], LinearOperator]] = [
    lambda: fourier_sampling(random_mask((6, 5))),
    lambda: fourier_sampling(random_mask((5, 6)), complex_array(3, 5, 6)),
    lambda: structurally_random((5, 6), 11, random_state=0),
    lambda: structurally_random((2, 5, 6), 11, random_state=0),
    lambda: gaussian_blur((9, 8), 1.3),
    lambda: gaussian_blur((2, 9, 8), 0.8),
    lambda: inpainting(random_mask((6, 5))),
    lambda: inpainting(random_mask((2, 6, 5))),
]


@pytest.mark.parametrize("make", OPERATORS)
def test_pylops_and_torch_agree_and_adjoints_are_exact(make: Callable[[], LinearOperator]) -> None:
    op = make()
    A = as_torch(op)
    assert (A.dims, A.dimsd) == (tuple(op.dims), tuple(op.dimsd))
    dot_test(op)
    x = (
        complex_array(3, *op.dims).astype(op.dtype)
        if op.dtype.kind == "c"
        else complex_array(3, *op.dims).real
    )
    y = A(torch.from_numpy(x))
    assert_allclose(y[1].numpy(), op @ x[1], atol=1e-12)
    assert_allclose(A.adjoint(y)[2].numpy(), (op.H @ y[2].numpy().ravel()).reshape(op.dims), atol=1e-12)


@pytest.mark.parametrize("make", OPERATORS)
def test_sizes_are_plain_integers(make: Callable[[], LinearOperator]) -> None:
    op = make()
    assert all(type(size) is int for size in (*op.dims, *op.dimsd, *op.shape))
    assert (op.H @ op).shape == (op.shape[1], op.shape[1])


# ---------------------------------------------------------------- Fourier
@pytest.mark.parametrize("shape", SHAPES)
def test_fourier_samples_of_the_centred_spectrum(shape: tuple[int, int]) -> None:
    mask, x = random_mask(shape), complex_array(*shape)
    spectrum = np.fft.fftshift(np.fft.fft2(x, norm="ortho"))
    assert_allclose(fourier_sampling(mask) @ x, np.where(mask, spectrum, 0), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_the_mask_is_the_mean(shape: tuple[int, int]) -> None:
    mask, x = np.zeros(shape, dtype=bool), complex_array(*shape)
    mask[shape[0] // 2, shape[1] // 2] = True
    assert_allclose((fourier_sampling(mask) @ x)[mask], [x.sum() / np.sqrt(x.size)])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_coil_sees_its_own_image(shape: tuple[int, int]) -> None:
    mask, x, coils = random_mask(shape), complex_array(*shape), complex_array(3, *shape)
    A = fourier_sampling(mask, coils)
    expected = [np.fft.fftshift(np.fft.fft2(x * coil, norm="ortho")) * mask for coil in coils]
    assert A.dimsd == (3, *shape)
    assert_allclose(A @ x, expected, atol=1e-12)


def test_a_row_of_columns_is_the_mask_of_every_row() -> None:
    columns, coils, x = (
        np.array([True, False, True, True, False]),
        complex_array(3, 6, 5),
        complex_array(6, 5),
    )
    for centred in (False, True):
        A, B = (fourier_sampling(m, coils, centred=centred) for m in (columns, np.tile(columns, (6, 1))))
        assert_array_equal(A @ x, B @ x)
        assert_array_equal(as_torch(A).measured, as_torch(B).measured)


@pytest.mark.parametrize(
    ("maps", "data"),
    [
        ("complex64", "complex64"),
        ("complex128", "complex128"),
        ("float32", "complex64"),
        ("float64", "complex128"),
    ],
)
def test_the_precision_is_that_of_the_coil_maps(maps: str, data: str) -> None:
    mask, coils = random_mask((6, 5)), complex_array(3, 6, 5)
    coils = coils.astype(maps) if maps[0] == "c" else coils.real.astype(maps)
    A, B = fourier_sampling(mask, coils), fourier_sampling(mask, coils.astype("complex128"))
    assert A.dtype == data
    x = complex_array(6, 5).astype(data)
    y = A @ x
    assert y.dtype == data
    assert_allclose(y, B @ x, rtol=1e-5 if data == "complex64" else 1e-14)
    assert (A.H @ y.ravel()).dtype == data
    dot_test(A)


def test_measured_rows_are_orthonormal_and_the_others_zero() -> None:
    mask = random_mask((6, 5))
    A = fourier_sampling(mask).todense()
    assert_allclose(A @ A.conj().T, np.diag(mask.ravel()), atol=1e-12)


def test_zero_filled_inverse() -> None:
    mask, x = random_mask((6, 5)), complex_array(6, 5)
    y = fourier_sampling(mask) @ x
    expected = np.fft.ifft2(np.fft.ifftshift(y), norm="ortho")
    for rest in (0, 1e9, np.nan):
        data = torch.from_numpy(np.where(mask, y, rest))[None]
        assert_allclose(as_torch(fourier_sampling(mask)).filtered_adjoint(data)[0], expected, atol=1e-12)


def test_zero_filled_inverse_of_full_data_and_normalised_coils_is_the_image() -> None:
    x, coils = complex_array(6, 5), complex_array(3, 6, 5)
    coils /= np.linalg.norm(coils, axis=0)
    A = as_torch(fourier_sampling(np.ones((6, 5), dtype=bool), coils))
    assert_allclose(A.filtered_adjoint(A(torch.from_numpy(x)[None]))[0], x, atol=1e-12)


# ---------------------------------------------------------------- structurally random
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 9))
def test_structurally_random_rows_are_orthonormal(n: int, m: int, seed: int) -> None:
    A = structurally_random((n,), min(m, n), random_state=seed).todense()
    assert_allclose(A @ A.T, np.eye(len(A)), atol=1e-12)


def test_structurally_random_entries_are_flat_and_have_no_structure() -> None:
    A = structurally_random((16, 16), 64, random_state=0).todense()
    assert abs(A).max() <= np.sqrt(2 / 256) + 1e-12
    assert abs((A > 0).mean() - 0.5) < 0.02
    neighbours = np.corrcoef(A[:, :-1].ravel(), A[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.05


def test_structurally_random_is_repeatable() -> None:
    x = np.random.default_rng(0).random((5, 6))

    def data(state: Any) -> NDArray:
        return structurally_random((5, 6), 10, random_state=state) @ x

    assert_array_equal(data(1), data(1))
    assert_array_equal(data(1), data(np.random.default_rng(1)))
    assert not np.allclose(data(1), data(2))


# ---------------------------------------------------------------- blur, inpainting
@pytest.mark.parametrize(
    ("sigma", "truncate"), [("a", 4.0), (None, 4.0), ([], 4.0), (1.0, None), (-1.0, 4.0)]
)
def test_widths_that_are_no_positive_numbers_are_refused(sigma: Any, truncate: Any) -> None:
    with pytest.raises(ValueError, match="sigma and truncate must be positive, got"):
        gaussian_blur((5, 5), sigma, truncate=truncate)


@pytest.mark.parametrize(
    ("sigma", "truncate"), [(0.1, 4.0), (0.6, 4.0), (1.2, 4.0), (1.0, 2.5), (1.5, 2.0), (4.0, 4.0)]
)
@pytest.mark.parametrize("dims", [(24, 17), (5, 6), (3, 12, 9)])
def test_blur_is_that_of_scipy_with_zeros_outside(
    dims: tuple[int, ...], sigma: float, truncate: float
) -> None:
    x = np.random.default_rng(0).random(dims)
    expected = gaussian_filter(x, sigma, mode="constant", truncate=truncate, axes=(-2, -1))
    assert_allclose(gaussian_blur(dims, sigma, truncate=truncate) @ x, expected, atol=1e-12)


def test_blur_is_symmetric_and_no_expansion() -> None:
    A = gaussian_blur((7, 6), 1.2).todense()
    assert_allclose(A, A.T, atol=1e-14)
    assert np.linalg.norm(A, 2) <= 1


@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 5, 6)])
def test_inpainting_keeps_the_known_pixels(shape: tuple[int, ...]) -> None:
    mask, x = random_mask(shape), np.random.default_rng(0).random(shape)
    A = inpainting(mask)
    assert A.dims == shape
    assert_array_equal(A @ x, x[mask])
    assert_array_equal(A.H @ x[mask], np.where(mask, x, 0))


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fourier_sampling(np.ones((3, 3))), "boolean.*float64"),
        (lambda: fourier_sampling(np.ones(3, dtype=bool)), r"height, width.*\(3,\): use np.tile"),
        (lambda: fourier_sampling(np.ones((1, 3, 3), dtype=bool)), r"height, width.*\(1, 3, 3\)"),
        (lambda: fourier_sampling(np.ones(3, dtype=bool), np.ones((2, 3, 4))), r"n_coils, height, 3\).*3, 4"),
        (lambda: fourier_sampling(np.zeros((3, 3), dtype=bool)), "True somewhere"),
        (lambda: fourier_sampling(np.ones((3, 3), dtype=bool), np.ones((3, 3))), r"n_coils, 3, 3.*\(3, 3\)"),
        (lambda: fourier_sampling(np.ones((3, 3), dtype=bool), np.ones((2, 3, 4))), r"n_coils, 3, 3"),
        (lambda: structurally_random((3, 3), 10), "between 1 and the 9 pixels, got 10"),
        (lambda: structurally_random((3, 3), 0), "between 1 and the 9 pixels, got 0"),
        (lambda: structurally_random((3, 0), 1), "positive sizes"),
        (lambda: gaussian_blur((3, 3), 0.0), "positive, got 0.0"),
        (lambda: gaussian_blur((3, 3), 1.0, truncate=-1.0), "positive, got 1.0 and -1.0"),
        (lambda: gaussian_blur((3,), 1.0), r"height, width.*\(3,\)"),
        (lambda: inpainting([1, 0, 1]), "boolean.*int"),
        (lambda: inpainting([False]), "True somewhere"),
    ],
)
def test_bad_input_is_named(make: Callable[[], LinearOperator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

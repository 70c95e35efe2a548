"""The bank of circular convolutions: against SciPy, its adjoint, its derivatives and its norm."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from skinverse._filters import analyse, spectral_bound, synthesise
from skinverse._tensors import wrap

KERNELS = (1, 3, 5, 7)
SIZES = ((1, 1), (1, 6), (2, 3), (5, 4), (8, 9))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(x: Tensor, filters: Tensor) -> Tensor:
    """The definition, by SciPy, image by image and filter by filter."""
    responses = [
        [
            sum(
                scipy.ndimage.correlate(plane, w, mode="wrap")
                for plane, w in zip(image.numpy(), bank.numpy(), strict=True)
            )
            for bank in filters
        ]
        for image in x
    ]
    return torch.from_numpy(np.array(responses))


def matrix(filters: Tensor, size: tuple[int, int]) -> Tensor:
    """Dense matrix of the analysis, one row per pixel of the image."""
    n = filters.shape[1] * size[0] * size[1]
    basis = torch.eye(n, dtype=filters.dtype).reshape(n, -1, *size)
    return analyse(basis, filters).flatten(1)


def largest_on_torus(filters: Tensor, n: int = 512) -> float:
    """Norm of the analysis of n x n images: the largest singular value over all frequencies."""
    w = torch.fft.rfft2(filters, s=(n, n)).permute(2, 3, 0, 1)
    gram = w.mH @ w
    return torch.linalg.eigvalsh(gram).max().sqrt().item()


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_analysis_is_circular_correlation(k: int, size: tuple[int, int], n_channels: int) -> None:
    x, filters = draw(2, n_channels, *size), draw(4, n_channels, k, k, seed=1)
    assert_close(analyse(x, filters), correlated(x, filters), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_synthesis_is_the_adjoint_of_analysis(k: int, size: tuple[int, int], n_channels: int) -> None:
    filters = draw(4, n_channels, k, k, seed=1)
    u = draw(2, 4, *size, seed=2)
    by_matrix = u.flatten(1) @ matrix(filters, size).mT
    assert_close(synthesise(u, filters).flatten(1), by_matrix, rtol=1e-12, atol=1e-12)


@given(
    k=st.sampled_from(KERNELS),
    shape=st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_dot_test(k: int, shape: tuple[int, int, int, int, int], seed: int) -> None:
    n, n_channels, n_filters, *size = shape
    x, u = draw(n, n_channels, *size, seed=seed), draw(n, n_filters, *size, seed=seed + 1)
    filters = draw(n_filters, n_channels, k, k, seed=seed + 2)
    left, right = (analyse(x, filters) * u).sum(), (x * synthesise(u, filters)).sum()
    scale = float(x.norm() * u.norm() * filters.norm()) * k
    assert_close(left, right, rtol=0, atol=1e-14 * scale)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("size", [(2, 3), (5, 4)])
def test_derivatives_of_first_and_second_order(k: int, size: tuple[int, int]) -> None:
    filters = draw(2, 2, k, k, seed=1).requires_grad_()
    x, cotangent = (draw(1, 2, *size, seed=seed).requires_grad_() for seed in (0, 2))
    for f in (analyse, synthesise):
        assert gradcheck(f, (x, filters))
        assert gradgradcheck(f, (x, filters), (cotangent,))


@pytest.mark.parametrize("f", [analyse, synthesise])
def test_only_what_is_asked_for_is_differentiated(f: type) -> None:
    x, filters = draw(1, 2, 5, 4), draw(2, 2, 3, 3, seed=1)
    assert gradcheck(lambda x: f(x, filters), x.clone().requires_grad_())
    assert gradcheck(lambda w: f(x, w), filters.clone().requires_grad_())
    assert not f(x, filters).requires_grad


@pytest.mark.parametrize("width", [0, 1, 3, 4, 5, 11])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 1), (5, 5)])
def test_wrapping_continues_periodically_beyond_the_size(width: int, size: tuple[int, int]) -> None:
    x = draw(2, 3, *size)
    rows, columns = (np.arange(-width, n + width) % n for n in size)
    assert_close(wrap(x, width).numpy(), x.numpy()[..., rows, :][..., columns], rtol=0, atol=0)
    assert gradcheck(lambda x: wrap(x, width), x[:1, :1].clone().requires_grad_())


@given(
    k=st.sampled_from(KERNELS),
    n_channels=st.integers(1, 3),
    n_filters=st.integers(1, 4),
    seed=st.integers(0, 9999),
    log_scale=st.integers(-6, 6),
)
def test_the_bound_holds_for_images_of_every_size(
    k: int, n_channels: int, n_filters: int, seed: int, log_scale: int
) -> None:
    filters = 10.0**log_scale * draw(n_filters, n_channels, k, k, seed=seed)
    bound = spectral_bound(filters).item() * (1 + 1e-12)
    for size in SIZES:
        assert torch.linalg.matrix_norm(matrix(filters, size), 2).item() <= bound


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_the_bound_is_tight(k: int, n_channels: int) -> None:
    for seed in range(2):
        filters = draw(3, n_channels, k, k, seed=seed)
        largest = largest_on_torus(filters)
        assert largest * (1 - 1e-12) <= spectral_bound(filters).item() <= 1.021 * largest


@pytest.mark.parametrize("k", KERNELS)
def test_the_bound_holds_between_the_frequencies_it_looks_at(k: int) -> None:
    """A filter that is one wave in a window peaks at any frequency one likes."""
    t = torch.arange(k, dtype=torch.float64)
    for frequency in torch.linspace(0, 0.5, 23, dtype=torch.float64):
        wave = torch.cos(2 * torch.pi * frequency * (t - k // 2))
        filters = (wave[:, None] * wave)[None, None]
        bound, largest = spectral_bound(filters).item(), largest_on_torus(filters)
        assert largest * (1 - 1e-12) <= bound <= 1.021 * largest


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_bound_is_differentiable(n_channels: int) -> None:
    assert gradcheck(spectral_bound, draw(2, n_channels, 3, 3).requires_grad_())


def test_filters_of_zeros_have_a_finite_bound() -> None:
    filters = torch.zeros(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bound = spectral_bound(filters)
    bound.backward()
    assert 0 < bound.item() < 1e-100
    assert filters.grad is not None
    assert torch.isfinite(filters.grad).all()

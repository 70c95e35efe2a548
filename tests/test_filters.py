"""The bank of filters on mirrored images: against SciPy, its adjoint, its derivatives and its norm."""

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

from skinverse._filters import analyse, mirrored_norm, synthesise, unchanged_by_flips
from skinverse._tensors import fold, mirror

KERNELS = (1, 3, 5, 7)
SIZES = ((1, 1), (1, 6), (2, 3), (5, 4), (8, 9))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(x: Tensor, filters: Tensor) -> Tensor:
    """The definition, by SciPy, image by image and filter by filter."""
    responses = [
        [
            sum(
                scipy.ndimage.correlate(plane, w, mode="reflect")
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
    """Norm on periodic n x n images: the largest singular value over all frequencies."""
    w = torch.fft.rfft2(filters, s=(n, n)).permute(2, 3, 0, 1)
    gram = w.mH @ w
    return torch.linalg.eigvalsh(gram).max().sqrt().item()


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_channels", [1, 3])
def test_analysis_is_correlation_with_the_mirrored_image(
    k: int, size: tuple[int, int], n_channels: int
) -> None:
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
@pytest.mark.parametrize("size", [(3,), (1, 1), (3, 4), (4, 1), (5, 5), (2, 1, 3)])
def test_mirroring_is_that_of_numpy_also_beyond_the_size(width: int, size: tuple[int, ...]) -> None:
    x, y = draw(2, 3, *size), draw(2, 3, *(n + 2 * width for n in size), seed=1)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *[(width, width)] * len(size)], mode="symmetric")
    assert_close(mirror(x, width).numpy(), expected, rtol=0, atol=0)
    assert_close((mirror(x, width) * y).sum(), (x * fold(y, width)).sum(), rtol=1e-12, atol=1e-12)
    x.requires_grad_()
    (back,) = torch.autograd.grad(mirror(x, width), x, y)
    assert_close(back, fold(y, width), rtol=1e-14, atol=1e-14)
    (back,) = torch.autograd.grad(fold(y.requires_grad_(), width), y, x)
    assert_close(back, mirror(x, width), rtol=0, atol=0)


def with_flips(filters: Tensor) -> Tensor:
    return torch.cat([filters, filters.flip(2), filters.flip(3), filters.flip(2, 3)])


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
    bound = mirrored_norm(filters).item() * (1 + 1e-12)
    for size in (*SIZES, (k // 2 + 1, k)):
        assert torch.linalg.matrix_norm(matrix(filters, size), 2).item() <= bound


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (6, 5), (9, 9)])
@pytest.mark.parametrize("n_filters", [1, 2])
def test_no_filters_exceed_the_bound(size: tuple[int, int], n_filters: int) -> None:
    """Gradient ascent in the filters looks for an exception, on images hardly larger than a filter, too."""
    filters = draw(n_filters, 1, 5, 5, seed=3).requires_grad_()
    for _ in range(40):
        ratio = torch.linalg.matrix_norm(matrix(filters, size), 2) / mirrored_norm(filters)
        assert ratio.item() <= 1 + 1e-12
        (uphill,) = torch.autograd.grad(ratio, filters)
        step = 0.1 * filters.detach().norm() * uphill / uphill.norm().clamp_min(1e-12)
        filters = (filters.detach() + step).requires_grad_()
    assert ratio.item() > 0.8, "the search found nothing near the bound"


def test_a_shift_doubles_the_norm_of_a_corner() -> None:
    """The pixel there is seen four times, so that no smaller factor than 2 holds for all filters."""
    shift = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    shift[..., 0, 0] = 1
    assert largest_on_torus(shift) == pytest.approx(1)
    assert torch.linalg.matrix_norm(matrix(shift, (5, 4)), 2).item() == pytest.approx(2)
    assert 2 <= mirrored_norm(shift).item() <= 2.05


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_the_bound_is_tight_for_filters_with_their_mirror_images(k: int, n_channels: int) -> None:
    for seed in range(2):
        filters = with_flips(draw(2, n_channels, k, k, seed=seed))
        largest = largest_on_torus(filters)
        assert largest * (1 - 1e-12) <= mirrored_norm(filters).item() <= 1.021 * largest


@pytest.mark.parametrize(("n_filters", "k", "n_channels"), [(48, 7, 1), (32, 5, 1), (32, 5, 3)])
def test_the_bound_is_not_far_for_many_filters(n_filters: int, k: int, n_channels: int) -> None:
    filters = draw(n_filters, n_channels, k, k)
    largest = largest_on_torus(filters, 64)
    assert largest <= mirrored_norm(filters).item() <= 1.6 * largest


@pytest.mark.parametrize("k", KERNELS)
def test_the_bound_holds_between_the_frequencies_it_looks_at(k: int) -> None:
    """A filter that is one wave in a window peaks at any frequency one likes."""
    t = torch.arange(k, dtype=torch.float64)
    for frequency in torch.linspace(0, 0.5, 23, dtype=torch.float64):
        wave = torch.cos(2 * torch.pi * frequency * (t - k // 2))
        filters = (wave[:, None] * wave)[None, None]
        bound, largest = mirrored_norm(filters).item(), largest_on_torus(filters)
        assert largest * (1 - 1e-12) <= bound <= 1.021 * largest


@pytest.mark.parametrize("n_channels", [1, 2])
def test_majorants_do_not_change_under_flips(n_channels: int) -> None:
    w = draw(3, n_channels * 25)
    gram = (w.mT @ w).reshape(n_channels, 5, 5, n_channels, 5, 5)
    larger = unchanged_by_flips(gram)
    for axis in (1, 2):
        assert_close(larger.flip(axis, axis + 3), larger, rtol=0, atol=1e-12)
    gap = (larger - gram).reshape(25 * n_channels, -1)
    assert torch.linalg.eigvalsh(gap).min() >= -1e-12


@pytest.mark.parametrize("n_channels", [1, 2])
def test_the_bound_is_differentiable(n_channels: int) -> None:
    assert gradcheck(mirrored_norm, draw(2, n_channels, 3, 3).requires_grad_())
    cotangent = torch.ones((), dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(mirrored_norm, draw(2, n_channels, 3, 3).requires_grad_(), cotangent)
    assert gradcheck(lambda w: mirrored_norm(with_flips(w)), draw(2, n_channels, 3, 3).requires_grad_())


def test_filters_of_zeros_have_a_finite_bound() -> None:
    filters = torch.zeros(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    bound = mirrored_norm(filters)
    bound.backward()
    assert 0 < bound.item() < 1e-100
    assert filters.grad is not None
    assert torch.isfinite(filters.grad).all()


def test_the_bound_of_what_is_not_finite_is_not_finite() -> None:
    filters = draw(2, 1, 3, 3)
    filters[0, 0, 1, 1] = torch.nan
    assert mirrored_norm(filters).isnan()


def test_autocasting_leaves_filters_and_their_derivatives_alone() -> None:
    filters = draw(3, 1, 5, 5, seed=1).float().requires_grad_()
    x, weights = draw(2, 1, 8, 9).float(), draw(2, 3, 8, 9, seed=2).float()

    def computed() -> tuple[Tensor, Tensor]:
        response = analyse(synthesise(analyse(x, filters), filters), filters)
        return response, torch.autograd.grad((weights * response).sum(), filters)[0]

    plain = computed()
    with torch.autocast("cpu", torch.bfloat16):
        assert analyse(x.bfloat16(), filters).dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(computed(), plain, strict=True))

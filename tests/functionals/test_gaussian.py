"""Gaussians of images with a sparse Cholesky factor, against dense matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.functional import vjp
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from skinverse.functionals import SparseCholeskyGaussian

SIZES = ((1, 1), (1, 6), (5, 1), (2, 2), (4, 6), (7, 3))
WINDOWS = (1, 3, 5, 7)
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
every_window = pytest.mark.parametrize("window", WINDOWS)
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def parameters(size: tuple[int, int], window: int, *, n: int = 2, channels: int = 2, seed: int = 0) -> Any:
    """Mean, logarithm of the diagonal, off-diagonals; the first two are not near those of white noise."""
    n_off = (window**2 - 1) // 2
    mean, log_diag = draw(n, channels, *size, seed=seed), 0.4 * draw(n, channels, *size, seed=seed + 1)
    off = draw(n, channels, n_off, *size, seed=seed + 2) / (1 + n_off)
    return mean, log_diag, off


def made(size: tuple[int, int], window: int, **options: int) -> SparseCholeskyGaussian:
    return SparseCholeskyGaussian(*parameters(size, window, **options))


def dense_factor(log_diag: Tensor, off: Tensor) -> Tensor:
    """``L`` of one channel, entry by entry from its definition."""
    height, width = log_diag.shape
    half = math.isqrt(2 * len(off) + 1) // 2
    offsets = [(i, j) for i in range(half + 1) for j in range(-half, half + 1) if (i, j) > (0, 0)]
    assert len(offsets) == len(off)
    L = torch.diag(log_diag.exp().flatten())
    for row in range(height):
        for column in range(width):
            for weight, (i, j) in zip(off, offsets, strict=True):
                if row + i < height and 0 <= column + j < width:
                    L[(row + i) * width + column + j, row * width + column] = weight[row, column]
    return L


def dense_precision(gaussian: SparseCholeskyGaussian) -> Tensor:
    """(n, pixels of all channels, pixels of all channels)."""
    factors = [
        torch.block_diag(*(dense_factor(d, w) for d, w in zip(*planes, strict=True)))
        for planes in zip(gaussian.log_diag, gaussian.off, strict=True)
    ]
    return torch.stack([L @ L.T for L in factors])


def reference(gaussian: SparseCholeskyGaussian) -> MultivariateNormal:
    return MultivariateNormal(gaussian.mean.flatten(1), precision_matrix=dense_precision(gaussian))


def times(matrices: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("npq,...nq->...np", matrices, x.flatten(-3)).reshape(x.shape)


# ------------------------------------------------------------------------------------------ dense
@every_window
@every_size
def test_density_is_that_of_the_dense_gaussian(size: tuple[int, int], window: int) -> None:
    gaussian = made(size, window)
    x = 2 * draw(3, 2, 2, *size, seed=9)
    assert_close(gaussian.log_prob(x), reference(gaussian).log_prob(x.flatten(2)), **EXACT)
    assert_close(gaussian.log_prob(x[0]), reference(gaussian).log_prob(x[0].flatten(1)), **EXACT)


@every_window
@every_size
def test_products_are_those_of_the_dense_matrices(size: tuple[int, int], window: int) -> None:
    gaussian, x = made(size, window), draw(3, 2, 2, *size, seed=9)
    precision = dense_precision(gaussian)
    covariance = torch.linalg.inv(precision)
    assert_close(gaussian.precision_mul(x), times(precision, x), **EXACT)
    assert_close(gaussian.covariance_mul(x), times(covariance, x), **EXACT)
    assert_close(gaussian.precision_diagonal().flatten(1), precision.diagonal(dim1=1, dim2=2), **EXACT)
    assert_close(gaussian.log_det(), torch.linalg.slogdet(covariance).logabsdet, **EXACT)


@every_window
@every_size
def test_covariance_row_is_a_row_of_the_dense_covariance(size: tuple[int, int], window: int) -> None:
    gaussian = made(size, window)
    covariance = reference(gaussian).covariance_matrix.view(2, 2, *size, 2, *size)
    row, column = size[0] // 2, size[1] - 1
    assert_close(gaussian.covariance_row((row, column)), covariance[:, 0, row, column], **EXACT)
    assert_close(gaussian.covariance_row((1, row, column)), covariance[:, 1, row, column], **EXACT)
    assert (gaussian.covariance_row((1, row, column))[:, 0] == 0).all()


@every_window
@every_size
def test_whitening_and_coloring_undo_each_other(size: tuple[int, int], window: int) -> None:
    gaussian, x = made(size, window), draw(3, 2, 2, *size, seed=9)
    assert_close(gaussian.color(gaussian.whiten(x)), x, **EXACT)
    assert_close(gaussian.whiten(gaussian.color(x)), x, **EXACT)
    assert_close(gaussian.precision_mul(gaussian.covariance_mul(x)), x, **EXACT)


@every_window
def test_whitened_is_the_transposed_factor_times_the_deviation(window: int) -> None:
    gaussian, x = made((4, 5), window, channels=1), draw(2, 1, 4, 5, seed=9)
    for one, mean, d, w, white in zip(
        x, gaussian.mean, gaussian.log_diag, gaussian.off, gaussian.whiten(x), strict=True
    ):
        expected = dense_factor(d[0], w[0]).T @ (one - mean).flatten()
        assert_close(white.flatten(), expected, **EXACT)


def test_window_of_one_is_a_diagonal_covariance() -> None:
    gaussian, x = made((4, 5), 1), draw(2, 2, 4, 5, seed=9)
    independent = torch.distributions.Normal(gaussian.mean, (-gaussian.log_diag).exp())
    assert_close(gaussian.log_prob(x), independent.log_prob(x).flatten(1).sum(1), **EXACT)


def test_leading_axes_share_the_factor() -> None:
    gaussian, x = made((3, 4), 5), draw(2, 3, 2, 2, 3, 4, seed=9)
    for method in ("whiten", "color", "precision_mul", "covariance_mul", "log_prob"):
        whole = getattr(gaussian, method)(x)
        assert whole.shape[:3] == (2, 3, 2)
        assert_close(whole[1, 2], getattr(gaussian, method)(x[1, 2]), rtol=1e-12, atol=1e-12)


def test_selected_images_keep_their_gaussians() -> None:
    gaussian, x = made((3, 4), 3, n=4), draw(3, 2, 3, 4, seed=9)
    index = torch.tensor([2, 0, 2])
    assert_close(
        gaussian.select(index).log_prob(x),
        torch.stack([gaussian.log_prob(x[i].expand(4, 2, 3, 4))[k] for i, k in enumerate(index)]),
        **EXACT,
    )


# ------------------------------------------------------------------------------------------ samples
@pytest.mark.parametrize("window", [1, 3, 5])
def test_samples_have_the_mean_and_the_covariance(window: int) -> None:
    gaussian, n_samples = made((3, 4), window), 20_000
    x = gaussian.sample(n_samples, torch.Generator().manual_seed(1))
    assert x.shape == (n_samples, 2, 2, 3, 4)
    deviations = x.flatten(2) - gaussian.mean.flatten(1)
    covariance = reference(gaussian).covariance_matrix
    variance = covariance.diagonal(dim1=1, dim2=2)
    assert (deviations.mean(0).abs() < 5 * (variance / n_samples).sqrt()).all()
    found = torch.einsum("snp,snq->npq", deviations, deviations) / n_samples
    spread = ((variance[:, :, None] * variance[:, None] + covariance.square()) / n_samples).sqrt()
    assert ((found - covariance).abs() < 5 * spread).all()


def test_samples_are_repeatable_and_leave_the_global_generator_alone() -> None:
    gaussian = made((3, 4), 3)
    first, again, other = (gaussian.sample(2, torch.Generator().manual_seed(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    assert not torch.equal(gaussian.sample(2), gaussian.sample(2))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ derivatives
OF_IMAGES: dict[str, Callable[..., Tensor]] = {
    name: lambda mean, log_diag, off, x, name=name: getattr(
        SparseCholeskyGaussian(mean, log_diag, off), name
    )(x)
    for name in ("log_prob", "whiten", "color", "precision_mul", "covariance_mul")
}
OF_PARAMETERS: dict[str, Callable[..., Tensor]] = {
    "precision_diagonal": lambda *p: SparseCholeskyGaussian(*p).precision_diagonal(),
    "covariance_row": lambda *p: SparseCholeskyGaussian(*p).covariance_row((0, 1)),
    "log_det": lambda *p: SparseCholeskyGaussian(*p).log_det(),
}


def assert_twice_differentiable(function: Callable[..., Any], at: list[Tensor]) -> None:
    assert gradcheck(function, at)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # where the second derivatives are looked at
        assert gradgradcheck(function, at)


def inputs(size: tuple[int, int], window: int, *leading: int) -> list[Tensor]:
    found = [*parameters(size, window, n=1, channels=1), draw(*leading, 1, 1, *size, seed=9)]
    return [x.requires_grad_() for x in found]


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize(("size", "window"), [((3, 2), 3), ((2, 3), 5), ((1, 3), 7), ((3, 1), 3)], ids=str)
def test_first_and_second_derivatives_are_those_of_finite_differences(
    name: str, size: tuple[int, int], window: int
) -> None:
    assert_twice_differentiable(OF_IMAGES[name], inputs(size, window))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_derivatives_sum_over_the_samples_that_share_a_factor(name: str) -> None:
    assert_twice_differentiable(OF_IMAGES[name], inputs((2, 2), 3, 2))


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_what_has_no_image_is_differentiable_too(name: str) -> None:
    *found, _ = inputs((2, 3), 3)
    assert_twice_differentiable(OF_PARAMETERS[name], found)


def test_third_derivatives_exist() -> None:
    def slope(*parts: Tensor) -> tuple[Tensor, ...]:
        return grad(OF_IMAGES["log_prob"](*parts).sum(), parts, create_graph=True)

    assert_twice_differentiable(slope, inputs((2, 2), 3))


def test_gradient_is_that_of_the_dense_density() -> None:
    mean, log_diag, off = (p.requires_grad_() for p in parameters((3, 4), 5))
    x = draw(2, 2, 3, 4, seed=9).requires_grad_()
    gaussian = SparseCholeskyGaussian(mean, log_diag, off)
    sparse = grad(gaussian.log_prob(x).sum(), (mean, log_diag, off, x))
    dense = grad(reference(gaussian).log_prob(x.flatten(1)).sum(), (mean, log_diag, off, x))
    for found, expected in zip(sparse, dense, strict=True):
        assert_close(found, expected, **EXACT)


# ------------------------------------------------------------------------------------------ properties
@given(
    st.integers(0, 1000),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(WINDOWS),
    st.integers(1, 2),
)
def test_maps_and_their_adjoints_agree(seed: int, size: tuple[int, int], window: int, channels: int) -> None:
    gaussian = made(size, window, n=2, channels=channels, seed=seed)
    x, y = (draw(2, channels, *size, seed=seed + k) for k in (10, 11))
    for product in (gaussian.precision_mul, gaussian.covariance_mul):
        assert_close((product(x) * y).sum(), (x * product(y)).sum(), rtol=1e-9, atol=1e-9)
    for affine in (gaussian.whiten, gaussian.color):
        linear = affine(x) - affine(torch.zeros_like(x))
        pulled = vjp(affine, x, y)[1]
        assert_close((linear * y).sum(), (x * pulled).sum(), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.sampled_from(WINDOWS))
def test_the_precision_is_positive_and_squares_the_whitened(
    seed: int, size: tuple[int, int], window: int
) -> None:
    gaussian, x = made(size, window, seed=seed), draw(2, 2, *size, seed=seed + 10)
    energy = (x * gaussian.precision_mul(x)).flatten(1).sum(1)
    assert (energy > 0).all()
    assert_close(energy, gaussian.whiten(x + gaussian.mean).square().flatten(1).sum(1))


# ------------------------------------------------------------------------------------------ kinds, bad input
@pytest.mark.parametrize("window", WINDOWS)
def test_single_precision_stays_and_is_near_the_double_one(window: int) -> None:
    wide, x = made((6, 5), window), draw(3, 2, 2, 6, 5, seed=9)
    narrow = SparseCholeskyGaussian(wide.mean.float(), wide.log_diag.float(), wide.off.float())
    for method in ("whiten", "color", "precision_mul", "covariance_mul", "log_prob"):
        found = getattr(narrow, method)(x.float())
        assert found.dtype == torch.float32
        assert_close(found.double(), getattr(wide, method)(x), rtol=1e-4, atol=1e-3)
    assert narrow.sample(1, torch.Generator().manual_seed(0)).dtype == torch.float32
    assert narrow.covariance_row((2, 2)).dtype == narrow.log_det().dtype == torch.float32


def test_an_image_does_not_feel_its_companions() -> None:
    gaussian, x = made((4, 5), 5, n=3), draw(3, 2, 4, 5, seed=9)
    for method in ("whiten", "color", "precision_mul", "covariance_mul", "log_prob"):
        together = getattr(gaussian, method)(x)
        for i in range(3):
            alone = getattr(gaussian.select(torch.tensor([i])), method)(x[i : i + 1])
            assert_close(alone[0], together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mean", "log_diag", "off", "words"),
    [
        ((1, 4, 4), (1, 4, 4), (1, 1, 0, 4, 4), "expected mean and log_diag of shape"),
        ((1, 1, 4, 4), (1, 1, 4, 5), (1, 1, 0, 4, 4), "expected mean and log_diag of shape"),
        ((1, 1, 4, 4), (1, 1, 4, 4), (1, 4, 4, 4), "expected mean and log_diag of shape"),
        ((1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 4, 4, 5), "off: expected the sizes of mean"),
        ((2, 1, 4, 4), (2, 1, 4, 4), (1, 1, 4, 4, 4), "off: expected the sizes of mean"),
        ((1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 3, 4, 4), r"off: expected \(k\^2 - 1\) / 2 offsets"),
        ((1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 7, 4, 4), r"off: expected \(k\^2 - 1\) / 2 offsets"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(mean, log_diag, off, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SparseCholeskyGaussian(torch.zeros(mean), torch.zeros(log_diag), torch.zeros(off))


@pytest.mark.parametrize("pixel", [(3, 0), (0, 4), (2, 0, 0)])
def test_a_pixel_that_is_not_there_is_refused(pixel: tuple[int, ...]) -> None:
    with pytest.raises(IndexError):
        made((3, 4), 3).covariance_row(pixel)

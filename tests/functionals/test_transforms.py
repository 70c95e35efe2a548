"""Total variations and sparsities, and the linear maps they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pywt
import scipy.fft
import scipy.optimize
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skinverse._cosines import cosine_transform, inverse_cosine_transform
from skinverse._differences import negative_laplacian
from skinverse.functionals import (
    CosineSparsity,
    Functional,
    LeastSquares,
    TotalGeneralizedVariation,
    TotalNuclearVariation,
    TotalVariation,
    WaveletSparsity,
)
from skinverse.functionals._variation import _minimum_over_fields

REAL, COMPLEX = torch.float64, torch.complex128
TGV = TotalGeneralizedVariation()
VOLUME, FOUR = (-3, -2, -1), (-4, -3, -2, -1)


def draw(shape: tuple[int, ...], dtype: torch.dtype = REAL, *, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(linear: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of a linear map of images, whose columns are the images of the unit vectors."""
    size = int(np.prod(shape))
    return linear(torch.eye(size, dtype=REAL).reshape(-1, *shape)).flatten(1).numpy().T


# Splits

SPLITS: dict[str, tuple[Functional, tuple[int, ...]]] = {
    **{
        f"TotalVariation {shape}": (TotalVariation(), shape)
        for shape in [(7,), (5, 6), (2, 4, 3), (1, 5), (1, 1)]
    },
    "TotalVariation anisotropic": (TotalVariation(isotropic=False), (5, 6)),
    **{
        f"lifted {shape}": (TGV.lifted(), shape)
        for shape in [(2, 7), (3, 5, 6), (3, 2, 4, 3), (3, 1, 5), (3, 1, 1)]
    },
    **{
        f"TotalVariation {shape} along {axes}": (TotalVariation(axes=axes), shape)
        for axes, shape in [
            ((-3, -2, -1), (4, 2, 3)),
            ((-3, -2), (4, 3, 2)),
            ((-2,), (4, 3)),
            (FOUR, (2, 3, 2, 3)),
        ]
    },
    **{
        f"lifted {shape} along {axes}": (TotalGeneralizedVariation(axes=axes).lifted(), shape)
        for axes, shape in [((-3, -2, -1), (4, 4, 2, 3)), ((-3, -2), (3, 4, 3, 2)), (FOUR, (5, 2, 3, 2, 3))]
    },
    **{
        f"TotalVariation {shape} of distances {spacing}": (TotalVariation(axes=axes, spacing=spacing), shape)
        for axes, spacing, shape in [
            (VOLUME, (5.0, 1.0, 0.5), (4, 2, 3)),
            ((-3, -2), (0.1, 3), (4, 3, 2)),
            ((-2, -1), (9.0, 0.5), (7,)),
        ]
    },
    **{
        f"lifted {shape} of distances {spacing}": (
            TotalGeneralizedVariation(axes=axes, spacing=spacing).lifted(),
            shape,
        )
        for axes, spacing, shape in [(VOLUME, (5, 1, 1), (4, 4, 2, 3)), ((-2, -1), (0.2, 3), (3, 4, 5))]
    },
    "TotalNuclearVariation": (TotalNuclearVariation(), (3, 4, 5)),
    "TotalNuclearVariation of volumes": (
        TotalNuclearVariation(axes=(-4, -3, -2), spacing=(5, 1, 1)),
        (2, 3, 3, 2),
    ),
    "lifted with another weight": (TotalGeneralizedVariation(alpha=0.3).lifted(), (3, 5, 4)),
    "OfImage of TotalVariation": (TGV.lift(TotalVariation(), 2), (3, 5, 6)),
    "OfImage of scaled signals": (TGV.lift(0.5 * TotalVariation(), 1), (2, 6)),
    "OfImage of LeastSquares": (TGV.lift(LeastSquares(None, draw((2, 4, 5))), 2), (3, 4, 5)),
}
every_split = pytest.mark.parametrize(("f", "shape"), SPLITS.values(), ids=SPLITS.keys())


@every_split
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_split_is_a_simple_functional_of_an_exact_linear_map(f: Functional, shape, dtype) -> None:
    x, (outer, K) = draw((2, *shape), dtype, seed=1), f.split()
    Kx = x if K is None else K(x)
    assert outer.proximable
    assert_allclose(outer(Kx), f(x), rtol=1e-12)
    if K is not None:
        p = draw(tuple(Kx.shape), dtype, seed=2)
        left = (Kx.conj() * p).flatten(1).sum(1)
        right = (x.conj() * K.adjoint(p)).flatten(1).sum(1)
        assert_allclose(left, right, rtol=1e-12, atol=1e-12)


@every_split
def test_norm_bounds_the_largest_singular_value(f: Functional, shape) -> None:
    K = f.split()[1]
    if K is not None:
        assert K.norm() >= np.linalg.norm(dense(K, shape), 2)


@pytest.mark.parametrize(
    ("K", "shape"),
    [
        (TotalVariation().split()[1], (16, 16)),
        (TotalVariation(axes=VOLUME).split()[1], (12, 8, 8)),
        (TotalVariation(axes=VOLUME, spacing=(5, 1, 0.5)).split()[1], (6, 8, 12)),
        (TGV.lift(TotalVariation(), 2).split()[1], (3, 16, 16)),
        (WaveletSparsity(2).transform, (16, 16)),
        (CosineSparsity().transform, (16, 16)),
    ],
)
def test_norm_is_sharp(K: Any, shape) -> None:
    largest = np.linalg.norm(dense(K, shape), 2)
    assert largest * (1 - 1e-12) <= K.norm() <= 1.1 * largest


def second_order(v: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """The symmetrised derivative of a field, from the lifted variation of an image that is zero."""
    K = TotalGeneralizedVariation(alpha=1.0, axes=axes).lifted().split()[1]
    return K(torch.cat([torch.zeros_like(v[:, :1]), v], 1))[:, v.shape[1] :]


@pytest.mark.parametrize("shape", [(1, 6), (2, 5, 6), (2, 1, 4), (2, 4, 1)])
def test_second_order_variation_of_constant_fields_is_zero(shape) -> None:
    assert_allclose(second_order(torch.ones(2, *shape, dtype=REAL)), 0)


def test_symmetrised_derivative_of_a_gradient_is_the_hessian() -> None:
    i, j = np.meshgrid(np.arange(6.0), np.arange(7.0), indexing="ij")
    x = torch.tensor(1.5 * i**2 + 2 * i * j - j**2)[None]
    e = second_order(TotalVariation().split()[1](x))[0]
    assert_allclose(e[0, :4], 3.0)
    assert_allclose(e[1, :, :5], -2.0)
    assert_allclose(e[2, :5, :6], 2.0 * np.sqrt(2))


def test_symmetrised_derivative_in_three_dimensions() -> None:
    i, j, k = np.meshgrid(*map(np.arange, (4.0, 5.0, 6.0)), indexing="ij")
    x = torch.tensor(i**2 - 2 * j**2 + 3 * k**2 + 2 * i * j - 3 * i * k + 5 * j * k)[None]
    e = second_order(TotalVariation(axes=VOLUME).split()[1](x), VOLUME)[0, :, :2, :3, :4]
    root = np.sqrt(2)
    expected = np.array([2, -4, 6, 2 * root, -3 * root, 5 * root])
    assert_allclose(e, np.broadcast_to(expected[:, None, None, None], e.shape))


@pytest.mark.parametrize("shape", [(7,), (5, 6), (2, 4, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_negative_laplacian_is_the_slope_of_the_squared_gradient(shape, dtype) -> None:
    x, grad = draw((2, *shape), dtype), TotalVariation().split()[1]
    assert_allclose(negative_laplacian(x), grad.adjoint(grad(x)), rtol=1e-12, atol=1e-14)


# Total variation


def plain_variation(x: np.ndarray, *, isotropic: bool) -> float:
    """Of one image (H, W), pixel by pixel."""
    total, (height, width) = 0.0, x.shape
    for i in range(height):
        for j in range(width):
            down = abs(x[i + 1, j] - x[i, j]) if i + 1 < height else 0.0
            right = abs(x[i, j + 1] - x[i, j]) if j + 1 < width else 0.0
            total += np.hypot(down, right) if isotropic else down + right
    return total


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_total_variation_is_the_plain_formula(isotropic: bool, dtype) -> None:
    x, f = draw((2, 3, 5, 4), dtype), TotalVariation(isotropic=isotropic)
    channels = [[plain_variation(c, isotropic=isotropic) for c in image] for image in x.numpy()]
    assert_allclose(f(x), np.sum(channels, axis=1))
    assert_allclose(f(x[:, 0]), [c[0] for c in channels])
    assert_allclose(f(x[:, 0, 0]), np.abs(np.diff(x[:, 0, 0].numpy())).sum(1))


@pytest.mark.parametrize("isotropic", [True, False])
def test_total_variation_of_volumes_and_channels_last(isotropic: bool) -> None:
    x = draw((2, 5, 4, 3))
    steps = [np.diff(x.numpy(), axis=k, append=x.numpy().take([-1], k)) for k in (1, 2, 3)]
    pixels = np.sqrt(sum(s**2 for s in steps)) if isotropic else sum(np.abs(s) for s in steps)
    assert_allclose(TotalVariation(isotropic=isotropic, axes=VOLUME)(x), pixels.sum((1, 2, 3)))
    last, first = TotalVariation(isotropic=isotropic, axes=(-3, -2)), TotalVariation(isotropic=isotropic)
    assert_allclose(last(x), first(x.movedim(-1, 1)))


@pytest.mark.parametrize("side", [1, 3, 6])
def test_anisotropic_variation_of_a_square_is_its_perimeter(side: int) -> None:
    x = torch.zeros(1, 9, 9)
    x[:, 1 : 1 + side, 2 : 2 + side] = 1
    assert_allclose(TotalVariation(isotropic=False)(x), 4 * side)


def turned(x: Tensor) -> list[Tensor]:
    """The eight rotations and flips of images."""
    return [torch.rot90(y, k, (-2, -1)) for k in range(4) for y in (x, x.flip(-1))]


def test_only_anisotropic_variation_is_invariant_under_rotations_and_flips() -> None:
    x = draw((2, 6, 7))
    anisotropic = TotalVariation(isotropic=False)
    for y in turned(x):
        assert_allclose(anisotropic(y), anisotropic(x), rtol=1e-12)
    isotropic = TotalVariation()
    assert max(float((isotropic(y) / isotropic(x) - 1).abs().max()) for y in turned(x)) > 1e-3


@pytest.mark.parametrize(
    "f",
    [
        TotalVariation(),
        TotalVariation(isotropic=False),
        TotalNuclearVariation(),
        TGV,
        WaveletSparsity(),
        CosineSparsity(),
    ],
)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1, 1), (9,), (8, 12), (1, 9), (9, 1)])
def test_constant_images_cost_nothing(f: Functional, shape) -> None:
    assert_allclose(f(torch.full((2, *shape), 3.0, dtype=REAL)), 0, atol=1e-9)


def test_one_pixel_costs_nothing_and_has_no_gradient() -> None:
    for shape in [(2, 1), (2, 1, 1)]:
        x = draw(shape)
        assert_allclose(TotalVariation()(x), 0)
        K = TotalVariation().split()[1]
        assert_allclose(K(x), 0)
        assert_allclose(K.adjoint(torch.ones_like(K(x))), 0)


# Total generalized variation


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_generalized_variation_of_signals_is_a_linear_program(alpha: float, seed: int) -> None:
    x = draw((2, 12), seed=seed).cumsum(1)
    expected = [linear_program(np.diff(signal), alpha) for signal in x.numpy()]
    assert_allclose(TotalGeneralizedVariation(alpha=alpha)(x), expected, rtol=1e-3)


def linear_program(g: np.ndarray, alpha: float) -> float:
    """``min_v |g - v|_1 + alpha |v'|_1`` in v and the two absolute values' bounds s, t."""
    n = len(g)
    D = np.diff(np.eye(n), axis=0)
    identity, none = np.eye(n), np.zeros
    rows = [
        [-identity, -identity, none((n, n - 1))],  # g - v <= s
        [identity, -identity, none((n, n - 1))],
        [D, none((n - 1, n)), -np.eye(n - 1)],  # v' <= t
        [-D, none((n - 1, n)), -np.eye(n - 1)],
    ]
    bounds = np.concatenate([-g, g, none(2 * (n - 1))])
    cost = np.concatenate([none(n), np.ones(n), np.full(n - 1, alpha)])
    return scipy.optimize.linprog(cost, A_ub=np.block(rows), b_ub=bounds, bounds=(None, None)).fun


def test_generalized_variation_of_images_against_a_smoothed_minimum() -> None:
    """Quasi-Newton on ``sqrt(|.|^2 + eps^2)`` exceeds the minimum by at most eps per length."""
    x, eps = draw((1, 5, 5)).cumsum(1), 1e-4
    lifted = TGV.lifted()
    K = dense(lifted.split()[1], (3, 5, 5))
    first, second = K[:, :25] @ x.numpy().ravel(), K[:, 25:]

    def smoothed(v: np.ndarray) -> tuple[float, np.ndarray]:
        p = (first + second @ v).reshape(5, 25)
        lengths = [np.sqrt((q**2).sum(0) + eps**2) for q in (p[:2], p[2:])]
        slope = np.concatenate([p[:2] / lengths[0], p[2:] / lengths[1]])
        return sum(length.sum() for length in lengths), second.T @ slope.ravel()

    best = scipy.optimize.minimize(
        smoothed, np.zeros(50), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "maxfun": 20000}
    )
    found = float(TGV(x))
    assert best.fun - 50 * eps - 1e-3 * found <= found <= best.fun + 1e-3 * found


def test_generalized_variation_vanishes_exactly_on_affine_images() -> None:
    i, j = np.meshgrid(np.arange(8.0), np.arange(9.0), indexing="ij")
    affine = torch.tensor(2 * i - 3 * j + 1)[None]
    assert float(TGV(affine)) < 1e-6 * float(TotalVariation()(affine))
    assert float(TGV(torch.arange(9.0, dtype=REAL)[None])) < 1e-6
    assert float(TGV(affine + draw((1, 8, 9)))) > 1


def test_generalized_variation_of_volumes_vanishes_on_affine_ones_only() -> None:
    i, j, k = np.meshgrid(*map(np.arange, (4.0, 5.0, 6.0)), indexing="ij")
    f, affine = TotalGeneralizedVariation(axes=VOLUME), torch.tensor(2 * i - 3 * j + k)[None]
    assert float(f(affine)) < 1e-6 * float(TotalVariation(axes=VOLUME)(affine))
    slices = affine + 3 * torch.tensor((-1.0) ** i)[None]  # each slice is affine
    assert float(f(slices)) > 1 > 1e6 * float(TGV(slices))


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_generalized_variation_is_a_minimum_over_fields(dtype) -> None:
    x = draw((3, 6, 7), dtype)
    value, slack = TGV(x), 1 + 1e-4
    assert (value <= slack * TotalVariation()(x)).all()
    assert_allclose(TGV.lifted()(TGV.pack(x)), TotalVariation()(x))
    K = TotalVariation().split()[1]
    for seed, scale in [(1, 0.1), (2, 1.0)]:
        for field in (scale * draw((3, 2, 6, 7), dtype, seed=seed), scale * K(x)):
            assert (value <= slack * TGV.lifted()(torch.cat([x[:, None], field], dim=1))).all()


@pytest.mark.parametrize("factor", [3.0, -0.01, 1e4])
def test_generalized_variation_is_homogeneous(factor: float) -> None:
    x = draw((2, 6, 7))
    assert_allclose(TGV(factor * x), abs(factor) * TGV(x), rtol=2e-4)


def test_generalized_variation_ignores_affine_parts() -> None:
    x, slope = draw((2, 6, 7)), torch.arange(6.0, dtype=REAL)[:, None]
    assert_allclose(TGV(x + slope), TGV(x), rtol=2e-4)


def test_generalized_variation_does_not_look_at_other_images() -> None:
    easy, hard = torch.eye(8, dtype=REAL)[None], draw((1, 8, 8)).cumsum(1)
    together = TGV(torch.cat([easy, hard]))
    assert_allclose(together, torch.cat([TGV(easy), TGV(hard)]), rtol=1e-12)


def test_generalized_variation_says_when_it_is_only_a_bound() -> None:
    g = TotalVariation().split()[1](torch.cat([torch.zeros(1, 16, 16), draw((2, 16, 16)).cumsum(1)]))
    with pytest.warns(ConvergenceWarning, match="2 of 3 values are upper bounds only"):
        bound = _minimum_over_fields(g, 2.0, max_steps=10)
    assert (bound >= _minimum_over_fields(g, 2.0)).all()


def test_generalized_variation_of_nan_is_nan() -> None:
    x = draw((2, 4, 4))
    x[0, 1, 1] = torch.nan
    assert TGV(x).isnan().tolist() == [True, False]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_second_order_weight_is_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha: expected a number > 0"):
        TotalGeneralizedVariation(alpha=alpha)


# Transforms

GRIDS = [(1,), (2,), (3,), (16,), (17,), (37,), (1, 1), (1, 9), (9, 1), (8, 8), (5, 7), (12, 6)]


@pytest.mark.parametrize("shape", GRIDS)
@pytest.mark.parametrize("order", [1, 2, 4, 10])
@pytest.mark.parametrize("n_levels", [None, 1, 3])
def test_wavelets_are_orthonormal(shape, order: int, n_levels: int | None) -> None:
    W = WaveletSparsity(order, n_levels).transform
    matrix = dense(W, shape)
    assert_allclose(matrix.T @ matrix, np.eye(len(matrix)), atol=1e-12)
    assert_allclose(dense(W.adjoint, shape), matrix.T, atol=1e-14)
    if n_levels is not None and max(shape) > 1:
        assert np.abs(matrix - np.eye(len(matrix))).max() > 0.1


@pytest.mark.parametrize("order", range(1, 11))
@pytest.mark.parametrize("dtype", [torch.float32, REAL, COMPLEX])
def test_wavelets_reconstruct(order: int, dtype) -> None:
    x, W = draw((2, 3, 33, 40), dtype), WaveletSparsity(order).transform
    before = x.clone()
    tol = 1e-5 if dtype is torch.float32 else 1e-12
    assert_allclose(W.adjoint(W(x)), x, atol=tol)
    assert_allclose(W(W.adjoint(x)), x, atol=tol)
    assert torch.equal(x, before)


@pytest.mark.parametrize("order", range(1, 11))
@pytest.mark.parametrize("length", [40, 41])
def test_wavelets_have_vanishing_moments(order: int, length: int) -> None:
    t = torch.linspace(-1, 1, length, dtype=REAL)
    powers = torch.stack([t**k for k in range(order + 1)])
    half = length // 2
    inner = WaveletSparsity(order, 1).transform(powers)[
        :, length - half : length - order + 1
    ]  # windows that do not wrap
    assert_allclose(inner[:order], 0, atol=1e-8)
    assert inner[order].abs().min() > 1e3 * inner[:order].abs().max()


@pytest.mark.parametrize("order", range(1, 11))
def test_one_level_is_that_of_pywavelets(order: int) -> None:
    """Both continue the signal periodically; theirs begins ``order - 1`` samples earlier."""
    x = draw((1, 40))
    begun = np.roll(x[0].numpy(), 1 - order)
    theirs = np.concatenate(pywt.dwt(begun, f"db{order}", mode="periodization"))
    assert_allclose(WaveletSparsity(order, 1).transform(x)[0], theirs, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_one_level_of_a_volume_is_that_of_pywavelets(order: int) -> None:
    x = draw((1, 10, 12, 8))
    begun = np.roll(x[0].numpy(), (1 - order,) * 3, (0, 1, 2))
    theirs = pywt.dwtn(begun, f"db{order}", mode="periodization")
    ours = WaveletSparsity(order, 1, axes=VOLUME).transform(x)[0]
    for key, expected in theirs.items():
        corner = tuple(
            slice(n // 2) if k == "a" else slice(n // 2, n) for k, n in zip(key, ours.shape, strict=True)
        )
        assert_allclose(ours[corner], expected, atol=1e-12)


@pytest.mark.parametrize("f", [WaveletSparsity(2), CosineSparsity()])
def test_sparsity_of_channels_last(f: Any) -> None:
    last = type(f)(*([2] if isinstance(f, WaveletSparsity) else []), axes=(-3, -2))
    x = draw((2, 6, 9, 3))
    assert_allclose(last(x), f(x.movedim(-1, 1)))
    assert_allclose(last.prox(x, 0.3), f.prox(x.movedim(-1, 1), 0.3).movedim(1, -1))


def test_daubechies_filter_has_its_closed_form() -> None:
    r = np.sqrt(3)
    closed = np.array([1 + r, 3 + r, 3 - r, 1 - r]) / (4 * np.sqrt(2))
    row = dense(WaveletSparsity(2, 1).transform, (8,))[0, :4]
    assert min(np.abs(row - closed).max(), np.abs(row - closed[::-1]).max()) < 1e-12


def test_haar_pyramid_by_hand() -> None:
    c = WaveletSparsity(1, 2).transform(torch.tensor([[1.0, 3.0, 5.0, 9.0, 2.0]], dtype=REAL))
    a, b, r = 4 / np.sqrt(2), 14 / np.sqrt(2), np.sqrt(2)
    assert_allclose(c.abs(), [[(a + b) / r, 2.0, (b - a) / r, r, 2 * r]])


@pytest.mark.parametrize("order", [0, 11, 2.5])
def test_wavelet_orders_go_from_one_to_ten(order: Any) -> None:
    with pytest.raises(ValueError, match="order: expected an integer from 1 to 10"):
        WaveletSparsity(order)


@pytest.mark.parametrize("shape", [*GRIDS, (3, 5, 6)])
def test_cosine_transform_is_scipys(shape) -> None:
    C, axes = CosineSparsity().transform, tuple(range(-min(len(shape), 2), 0))
    for dtype in (REAL, COMPLEX):
        x = draw((2, *shape), dtype)
        expected = scipy.fft.dctn(x.numpy(), norm="ortho", axes=axes)
        assert_allclose(C(x), expected, atol=1e-12)
        assert_allclose(C.adjoint(C(x)), x, atol=1e-12)


@pytest.mark.parametrize("axes", [(-3,), (-1, -3), (-2, -1)])
def test_cosine_transform_takes_any_axes(axes: tuple[int, ...]) -> None:
    x = draw((3, 4, 5))
    c = cosine_transform(x, axes)
    assert_allclose(c, scipy.fft.dctn(x.numpy(), norm="ortho", axes=axes), atol=1e-12)
    assert_allclose(inverse_cosine_transform(c, axes), x, atol=1e-12)


def test_cosine_transform_of_a_long_signal_needs_no_matrix() -> None:
    x = draw((1, 100_003))
    assert_allclose(CosineSparsity().transform(x), scipy.fft.dct(x.numpy(), norm="ortho"), atol=1e-10)


def test_cosine_sparsity_leaves_the_mean_alone() -> None:
    x = draw((2, 3, 5, 6))
    c = scipy.fft.dctn(x.numpy(), norm="ortho", axes=(-2, -1))
    c[..., 0, 0] = 0
    assert_allclose(CosineSparsity()(x), np.abs(c).sum((1, 2, 3)))
    shrunk = CosineSparsity().prox(x, 100.0)
    assert_allclose(shrunk, x.mean((-2, -1), keepdim=True).expand_as(x), atol=1e-12)


def test_wavelet_sparsity_leaves_the_approximation_alone() -> None:
    x, f = draw((2, 3, 8, 8)), WaveletSparsity(order=1, n_levels=2)
    blocks = x.reshape(2, 3, 2, 4, 2, 4).mean((3, 5))
    assert_allclose(f.prox(x, 100.0), blocks.repeat_interleave(4, -2).repeat_interleave(4, -1), atol=1e-12)
    c = WaveletSparsity(1, 2).transform(x)
    assert_allclose(f(x), c.abs().sum((1, 2, 3)) - 4 * blocks.abs().sum((1, 2, 3)))


@pytest.mark.parametrize("f", [WaveletSparsity(order=2), CosineSparsity()])
def test_sparsity_leaves_its_argument_alone_and_survives_inference_mode(f: Functional) -> None:
    x = draw((2, 11, 13))
    before = x.clone()
    with torch.inference_mode():
        value = f(x).clone()
        f.prox(x, 0.3)
    assert torch.equal(x, before)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(y).sum(), y)
    assert_allclose((gradient * x).sum((1, 2)), value, rtol=1e-10)  # Euler: f is homogeneous

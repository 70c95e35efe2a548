"""Derivatives where a formula meets 0/0: flat images, empty counts, real images of complex operators."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.autograd import grad, gradcheck

from skinverse.functionals import (
    CosineSparsity,
    Functional,
    GroupNorm,
    KullbackLeibler,
    L1Norm,
    LeastSquares,
    NuclearNorm,
    SquaredNorm,
    TotalVariation,
    WaveletSparsity,
)

REAL, COMPLEX = torch.float64, torch.complex128


class Fourier:
    """The discrete Fourier transform: complex data of real images."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft(y, norm="forward")


def draw(shape: tuple[int, ...], dtype: torch.dtype = REAL, *, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def derivative(f: Functional, x: Tensor) -> Tensor:
    """Of the value, by automatic differentiation."""
    x = x.clone().requires_grad_()
    return grad(f(x).sum(), x)[0]


def square(dtype: torch.dtype = REAL) -> Tensor:
    """An image that is flat almost everywhere."""
    x = torch.zeros(1, 8, 8, dtype=dtype)
    x[:, 2:5, 3:6] = 1
    return x


@pytest.mark.parametrize(
    "f",
    [TotalVariation(), TotalVariation(isotropic=False), WaveletSparsity(order=1), CosineSparsity()],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_derivatives_at_kinks_are_subgradients(f: Functional, dtype: torch.dtype) -> None:
    """``f(z) >= f(x) + <g, z - x>`` for every ``z``."""
    x = square(dtype)
    g = derivative(f, x)
    for seed, scale in [(1, 1e-3), (2, 1.0), (3, 1e3)]:
        step = scale * draw((20, 8, 8), dtype, seed=seed)
        slope = (g.conj() * step).real.sum((1, 2))
        assert (f(x + step) >= f(x) + slope - 1e-9 * scale).all()


@pytest.mark.parametrize("f", [L1Norm(), GroupNorm(), GroupNorm((1, 2)), NuclearNorm(())])
@pytest.mark.parametrize("dtype", [torch.float32, REAL, COMPLEX])
@pytest.mark.parametrize("step", [0.5, 1e4])
def test_shrinkage_is_differentiable_where_the_image_is_zero(
    f: Functional, dtype: torch.dtype, step: float
) -> None:
    p = torch.zeros(1, 3, 4, dtype=dtype, requires_grad=True)
    (of_prox,) = grad(f.prox(p, step).abs().sum(), p)
    assert_allclose(of_prox, 0)
    (of_conjugate,) = grad(f.prox_conjugate(p, step).real.sum(), p)
    assert_allclose(of_conjugate, 1)


@pytest.mark.draws_globally
@pytest.mark.parametrize(
    "f", [L1Norm(), GroupNorm(), NuclearNorm(()), WaveletSparsity(order=2), CosineSparsity()]
)
def test_proxes_are_differentiable_in_image_and_step(f: Functional) -> None:
    x, step = draw((2, 3, 8)), torch.tensor([0.3, 0.7], dtype=REAL)
    x[:, :, 5:] = 0
    x.requires_grad_()
    step.requires_grad_()
    assert gradcheck(f.prox, (x, step), fast_mode=True)


def test_a_weight_can_be_learned() -> None:
    weight = torch.tensor(0.3, dtype=REAL, requires_grad=True)
    x, p = draw((2, 5, 5)), draw((2, 2, 5, 5), seed=1)
    f = weight * TotalVariation()
    (slope,) = grad(f(x).sum(), weight)
    assert_allclose(slope, TotalVariation()(x).sum())
    h = 1e-6
    for outer in (weight * GroupNorm(), weight * L1Norm()):
        (slope,) = grad(outer.prox(p, 1.0).sum(), weight)
        up, down = ((outer.functional.prox(p, 0.3 + s)).sum() for s in (h, -h))
        assert_allclose(slope, (up - down) / (2 * h), rtol=1e-6)


def test_squared_norm_has_its_second_derivative_at_zero() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = grad(SquaredNorm()(x).sum(), x, create_graph=True)
    assert_allclose(grad(gradient.sum(), x)[0], 1)


def test_kullback_leibler_where_nothing_is_expected_and_nothing_counted() -> None:
    """Outside the body, with no background."""
    y = torch.tensor([[0.0, 2.0, 0.0]], dtype=REAL)
    x = torch.tensor([[0.0, 4.0, 1.0]], dtype=REAL, requires_grad=True)
    f = KullbackLeibler(None, y)
    assert_allclose(f.grad(x).detach(), [[1.0, 0.5, 1.0]])
    assert_allclose(derivative(f, x.detach()), [[1.0, 0.5, 1.0]])
    assert_allclose(grad(f.grad(x).sum(), x)[0], [[0.0, 0.125, 0.0]])


@pytest.mark.parametrize("weights", [None, draw((2, 6), seed=3).abs()])
def test_gradient_at_a_real_image_is_real_under_a_complex_operator(weights: Tensor | None) -> None:
    x, y = draw((2, 6)), draw((2, 6), COMPLEX, seed=1)
    f = LeastSquares(Fourier(), y, weights=weights)
    gradient = f.grad(x)
    assert gradient.dtype == x.dtype
    for seed in range(5):
        h = draw((2, 6), seed=10 + seed)
        slope = (f(x + 1e-5 * h) - f(x - 1e-5 * h)) / 2e-5
        assert_allclose((gradient * h).sum(1), slope, rtol=1e-6, atol=1e-8)
    assert_allclose(gradient, derivative(f, x), rtol=1e-12)
    assert f.grad(x.to(COMPLEX)).is_complex()

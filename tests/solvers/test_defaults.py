"""Solvers and functionals compute with what they are given, whatever torch's default dtype and device are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from skinverse.functionals import (
    Box,
    CosineSparsity,
    DataBall,
    Functional,
    KullbackLeibler,
    L1Norm,
    LeastSquares,
    SparseCholeskyGaussian,
    SquaredNorm,
    TotalGeneralizedVariation,
    TotalNuclearVariation,
    TotalVariation,
    WaveletSparsity,
)
from skinverse.solvers import (
    Hessian,
    Solution,
    accelerated_gradient,
    anderson,
    broyden,
    conjugate_gradient,
    fixed_point,
    gmres,
    gradient_descent,
    implicit,
    jacobian_free,
    lbfgs,
    minres,
    neumann,
    picard,
    primal_dual,
    proximal_gradient,
    pseudo_inverse,
)

N, DIMS = 3, (9, 10)
TGV = TotalGeneralizedVariation()


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


def images(dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(N, *DIMS, dtype=dtype, device="cpu", generator=generator)


class Blur:
    """Each pixel with its right neighbour, as a linear map."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.roll(1, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        return y + 0.5 * y.roll(-1, -1)

    def norm(self) -> float:
        return 1.5


BLUR = Blur()


def normal(x: Tensor) -> Tensor:
    return BLUR.adjoint(BLUR(x))


FUNCTIONALS: dict[str, Callable[[Tensor], Functional]] = {
    "Box": lambda y: Box(-0.5, 0.5),
    "CosineSparsity": lambda y: CosineSparsity(),
    "DataBall": lambda y: DataBall(None, y, 2.0),
    "DataBall of a map": lambda y: DataBall(BLUR, y, 2.0),
    "KullbackLeibler": lambda y: KullbackLeibler(None, y.abs(), background=0.5),
    "L1Norm": lambda y: L1Norm(),
    "LeastSquares": lambda y: LeastSquares(None, y),
    "LeastSquares of a map": lambda y: LeastSquares(BLUR, y, weights=y.abs()),
    "SquaredNorm": lambda y: SquaredNorm(),
    "TotalGeneralizedVariation": lambda y: TGV,
    "TotalNuclearVariation": lambda y: TotalNuclearVariation(axes=(-1,), spacing=(2.0,)),
    "TotalVariation": lambda y: TotalVariation(),
    "WaveletSparsity": lambda y: WaveletSparsity(order=2),
    "a multiple": lambda y: 0.3 * L1Norm(),
    "a multiple by zero": lambda y: 0.0 * L1Norm(),
    "a sum": lambda y: 0.3 * SquaredNorm() + LeastSquares(BLUR, y),
}


def used(f: Functional, x: Tensor) -> list[Tensor]:
    """Everything that a functional can do."""
    outer, K = f.split()
    found = [f(x), outer(x if K is None else K(x))]
    if f.smooth:
        found += f.value_and_grad(x)
    if f.proximable:
        found += [f.prox(x, 0.7), f.prox_conjugate(x, 0.7)]
    return found + [value for value in [f.conjugate(x / 10)] if value is not None]


def told(solution: Solution) -> list[Tensor]:
    own = [getattr(solution, field.name) for field in fields(solution) if field.name != "extra"]
    return own + list(solution.extra.values())


def objective(y: Tensor) -> Functional:
    return LeastSquares(BLUR, y) + 0.1 * SquaredNorm()


def differentiated(solve: Callable[[Tensor], Tensor], y: Tensor) -> list[Tensor]:
    y = y.clone().requires_grad_()
    x = solve(y)
    return [x.detach(), *torch.autograd.grad(x.square().sum(), y)]


def contraction(z: Tensor, y: Tensor) -> Tensor:
    return 0.9 * torch.tanh(z) + y


def sampled(y: Tensor) -> list[Tensor]:
    planes = y[:, None]
    gaussian = SparseCholeskyGaussian(planes, planes / 10, 0.1 * planes[:, :, None].expand(-1, -1, 4, -1, -1))
    noise = gaussian.sample(2, torch.Generator("cpu").manual_seed(0))
    return [noise, gaussian.log_prob(noise), gaussian.precision_diagonal(), gaussian.covariance_row((1, 2))]


SOLVERS: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "Hessian": lambda y: [Hessian(objective(y), y)(y)],
    "accelerated_gradient": lambda y: told(accelerated_gradient(objective(y) + 0.1 * L1Norm(), y)),
    "anderson": lambda y: told(anderson(contraction, y, given=(y,))),
    "broyden": lambda y: told(broyden(contraction, y, given=(y,))),
    "conjugate_gradient": lambda y: told(conjugate_gradient(normal, y)),
    "fixed_point": lambda y: differentiated(lambda b: fixed_point(contraction, b, given=(b,)).x, y),
    "gmres": lambda y: told(gmres(BLUR, y)),
    "gradient_descent": lambda y: told(gradient_descent(objective(y), y)),
    "implicit": lambda y: differentiated(lambda b: implicit(objective(b), b.detach()), y),
    "jacobian_free": lambda y: differentiated(lambda b: jacobian_free(objective(b), b.detach(), 0.5), y),
    "lbfgs": lambda y: told(lbfgs(objective(y), y)),
    "minres": lambda y: told(minres(normal, y)),
    "neumann": lambda y: told(neumann(BLUR, y)),
    "picard": lambda y: told(picard(contraction, y, given=(y,))),
    "primal_dual": lambda y: told(primal_dual(LeastSquares(BLUR, y) + 0.1 * TotalVariation() + Box(0, 1), y)),
    "primal_dual without maps": lambda y: told(primal_dual(LeastSquares(None, y), y)),
    "primal_dual of generalized variation": lambda y: told(
        primal_dual(TGV.lift(LeastSquares(None, y)) + 0.1 * TGV.lifted(), TGV.pack(y))
    ),
    "proximal_gradient": lambda y: told(proximal_gradient(objective(y) + 0.1 * L1Norm(), y)),
    "pseudo_inverse": lambda y: told(pseudo_inverse(BLUR, y, 0.1)),
    "samples of a Gaussian": sampled,
    **{name: lambda y, make=make: used(make(y), y.flip(0)) for name, make in FUNCTIONALS.items()},
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defaults_change_nothing(name: str, dtype: torch.dtype) -> None:
    y = images(dtype, seed=1)
    expected = SOLVERS[name](y)
    for default in (torch.float64, torch.float16):
        with defaults(default, "meta"):
            found = SOLVERS[name](y)
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))

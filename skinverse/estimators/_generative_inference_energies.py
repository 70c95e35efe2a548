"""Energies of latent variables: what is left to minimise once the best image is known for each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from skinverse._batch import expand, norm
from skinverse.functionals import L1Norm, LeastSquares, SparseCholeskyGaussian, as_channels, from_channels
from skinverse.operators import LinearMap
from skinverse.solvers import accelerated_gradient, conjugate_gradient

# Tolerances of what is solved for each latent variable, and the most steps for it.
_INNER_TOL, _INNER_STEPS, _SPARSE_TOL, _SPARSE_STEPS = 1e-4, 500, 1e-6, 2000


class Model(Protocol):
    """``x ~ N(G(z), Sigma(z))``: encoder, mean ``G``, its decoder, the mean absolute deviation from it."""

    decoder: nn.Module
    deviation: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def mean(self, z: Tensor) -> Tensor: ...

    def scaled(self, x: Tensor) -> Tensor: ...

    def gaussian(self, z: Tensor) -> SparseCholeskyGaussian: ...


class Measured:
    """Data ``y = A x``, the images ``x`` being real channels."""

    def __init__(
        self, A: LinearMap, y: Tensor, shape: tuple[int, ...], *, real: bool, scale: float | None = None
    ) -> None:
        self.A, self.y, self.shape, self.real = A, y, shape, real
        dtype = y.dtype.to_real() if real else y.dtype.to_complex()
        self._like = torch.empty(0, *A.dims, dtype=dtype, device=y.device)
        self.scale = self._scale() if scale is None else scale

    def select(self, index: Tensor) -> Measured:
        """The data of some images, which may repeat."""
        return Measured(self.A, self.y[index], self.shape, real=self.real, scale=self.scale)

    def image(self, x: Tensor) -> Tensor:
        """Channels as images, (n, *dims)."""
        return from_channels(x, self._like.new_empty(len(x), *self.A.dims))

    def apply(self, x: Tensor) -> Tensor:
        """``A x``."""
        return self.A(self.image(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^* y`` as channels."""
        return self.channels(self.A.adjoint(y))

    def channels(self, x: Tensor) -> Tensor:
        """Images as channels, (n, channels, height, width)."""
        x = x.real if self.real else x.to(x.dtype.to_complex())
        return as_channels(x).reshape(len(x), *self.shape)

    def misfit(self, x: Tensor) -> Tensor:
        """``1/2 ||A x - y||^2``, (n,)."""
        return 0.5 * norm(self.apply(x) - self.y).square()

    def _scale(self) -> float:
        """Mean of the diagonal of ``A^* A``, from one random image."""
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.y.real)
        return float(self.apply(noise).abs().square().sum()) / noise.numel()


class Energy(ABC):
    """What is left to minimise over ``z`` once the best image is known for each ``z``.

    At the best image the derivative by the image is zero: that by ``z`` is the one at a fixed image.
    """

    def __init__(self, model: Model, data: Measured, lam: Tensor) -> None:
        self.model, self.data, self.lam = model, data, lam

    def select(self, index: Tensor) -> Self:
        """The energies of some images, which may repeat."""
        return type(self)(self.model, self.data.select(index), self.lam[index])

    def weighted(self, lam: Tensor) -> Self:
        """The same with another weight."""
        return type(self)(self.model, self.data, lam)

    @abstractmethod
    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best images as channels, (n, channels, height, width), the energy, and whether it was found."""

    def image(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The best images, and whether they were found."""
        with torch.no_grad():
            x, _, found = self.at(z)
            return x, found

    def __call__(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self.at(z)[1]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and its derivative by ``z``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.at(z)[1]
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def _prior(self, z: Tensor) -> Tensor:
        return 0.5 * z.square().sum(1)


class Range(Energy):
    """``1/2 ||A G(z) - y||^2 + lam 1/2 ||z||^2``."""

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.model.mean(z)
        value = self.data.misfit(x) + self.lam * self._prior(z)
        return x, value, torch.isfinite(value)


class Soft(Energy):
    """``min_x 1/2 ||A x - y||^2 + lam (1/2 log det Sigma + 1/2 ||x - G(z)||^2_{Sigma^-1} + 1/2 ||z||^2)``."""

    _last: Tensor | None = None  # images of the latest call: a start for those of the next

    def select(self, index: Tensor) -> Self:
        chosen = super().select(index)
        chosen._last = None if self._last is None else self._last[index]
        return chosen

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gaussian = self.model.gaussian(z)
        x, found = self._nearest(gaussian)
        R = 0.5 * gaussian.log_det() + 0.5 * gaussian.whiten(x).square().flatten(1).sum(1) + self._prior(z)
        return x, self.data.misfit(x) + self.lam * R, found

    def _nearest(self, gaussian: SparseCholeskyGaussian) -> tuple[Tensor, Tensor]:
        """``(A^* A + lam Sigma^-1) (x - G) = A^* (y - A G)``."""
        with torch.no_grad():
            G, data = gaussian.mean, self.data
            rest = data.adjoint(data.y - data.apply(G))
            start = None if self._last is None else self._last - G
            solution = conjugate_gradient(
                lambda v: data.adjoint(data.apply(v)) + expand(self.lam, v) * gaussian.precision_mul(v),
                rest,
                start,
                precondition=preconditioner(data.scale, self.lam, gaussian),
                max_steps=_INNER_STEPS,
                tol=_INNER_TOL,
            )
            self._last = G + solution.x
            return self._last, solution.converged


class Sparse(Energy):
    """``min_v 1/2 ||A (G(z) + v) - y||^2 + lam (||v||_1 / b + 1/2 ||z||^2)``, ``b`` the mean deviation."""

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        G = self.model.mean(z)
        v, found = self._deviation(G.detach())
        size = self.data.image(v).abs().flatten(1).sum(1) / self.model.deviation
        return G + v, self.data.misfit(G + v) + self.lam * (size + self._prior(z)), found

    def _deviation(self, G: Tensor) -> tuple[Tensor, Tensor]:
        data = self.data
        with torch.no_grad():
            misfit = LeastSquares(None if data.A.identity else data.A, data.y - data.apply(G))
            objective = misfit + (self.lam / self.model.deviation) * L1Norm()
            solution = accelerated_gradient(
                objective, torch.zeros_like(data.image(G)), max_steps=_SPARSE_STEPS, tol=_SPARSE_TOL
            )
            return as_channels(solution.x).reshape(G.shape), solution.converged


def preconditioner(scale: float, lam: Tensor, gaussian: SparseCholeskyGaussian) -> Any:
    """Division by the diagonal of ``A^* A + lam Sigma^-1``, that of ``A^* A`` taken as constant."""
    diagonal = scale + expand(lam, gaussian.mean) * gaussian.precision_diagonal()
    inverse = 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)
    return lambda r: r * inverse

"""Objectives of the latent variables: what is left to minimise once the best image for each is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from skinverse._tensors import as_channels, expand, from_channels, norm
from skinverse.estimators.generative.model import GenerativeModel
from skinverse.functionals import L1Norm, LeastSquares, SparseCholeskyGaussian
from skinverse.operators import LinearMap
from skinverse.solvers import accelerated_gradient, conjugate_gradient

# Accuracy of the best image for given latent variables: residual of the linear system relative to its
# right-hand side, and relative change of the sparse deviation in a step.
_LINEAR_TOL, _LINEAR_STEPS = 1e-4, 500
_SPARSE_TOL, _SPARSE_STEPS = 1e-6, 2000


class ChannelFidelity:
    """``1/2 ||A x - y||^2`` of images that are given as real channels, (n, channels, height, width).

    With ``root`` each image has weights ``w``, of which these are the roots: ``A`` is then ``W^1/2 A``
    everywhere, and ``y``, which is handed over so, the data times ``w^1/2``.
    """

    def __init__(
        self,
        A: LinearMap,
        y: Tensor,
        shape: tuple[int, int, int],
        channel_axis: int | None = None,
        *,
        real: bool,
        root: Tensor | None = None,
        mean_diagonal: Tensor | None = None,
    ) -> None:
        self.A, self.y, self.shape, self.real = A, y, shape, real
        self.channel_axis, self.root = channel_axis, root
        dtype = y.dtype.to_real() if real else y.dtype.to_complex()
        self._template = torch.empty(0, *A.dims, dtype=dtype, device=y.device)
        self.mean_diagonal = self._estimate_mean_diagonal() if mean_diagonal is None else mean_diagonal

    def __call__(self, x: Tensor) -> Tensor:
        """The fidelity of each image, (n,)."""
        return 0.5 * norm(self.apply(x) - self.y).square()

    def select(self, index: Tensor) -> ChannelFidelity:
        """The fidelity of some images, which may repeat."""
        return ChannelFidelity(
            self.A,
            self.y[index],
            self.shape,
            self.channel_axis,
            real=self.real,
            root=None if self.root is None else self.root[index],
            mean_diagonal=self.mean_diagonal[index],
        )

    def apply(self, x: Tensor) -> Tensor:
        """``A x``."""
        return self._weighted(self.A(self.image(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^* y`` as channels."""
        return self.channels(self.A.adjoint(self._weighted(y)))

    def misfit(self, G: Tensor) -> LeastSquares:
        """``1/2 ||A (G + v) - y||^2`` as a function of the image ``v``."""
        A, y = None if self.A.identity else self.A, self.y - self.apply(G)
        if self.root is None:
            return LeastSquares(A, y)
        return LeastSquares(A, torch.where(self.root > 0, y / self.root, 0), weights=self.root.square())

    def image(self, x: Tensor) -> Tensor:
        """Channels as images, (n, *A.dims)."""
        return from_channels(x, self._template.new_empty(len(x), *self.A.dims), self.channel_axis)

    def channels(self, images: Tensor) -> Tensor:
        """Images as channels; of complex ones only the real part counts where the model's are real."""
        images = images.real if self.real else images.to(images.dtype.to_complex())
        return as_channels(images, self.channel_axis).reshape(len(images), *self.shape)

    def _weighted(self, y: Tensor) -> Tensor:
        return y if self.root is None else self.root * y

    def _estimate_mean_diagonal(self) -> Tensor:
        """Mean of the diagonal of ``A^* A``: ``E ||A x||^2 / n_values`` of white noise ``x``, by one draw."""
        noise = torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(0)).to(self.y.real)
        return (norm(self.apply(noise)).square() / noise.numel()).expand(len(self.y))


class Minimum(NamedTuple):
    """The best images for latent variables as channels, their objective, and whether they were found."""

    x: Tensor
    value: Tensor
    converged: Tensor


class LatentObjective(ABC):
    """``J(z) = min_x 1/2 ||A x - y||^2 + lam R(x, z)``, for each image with a ``lam`` of its own.

    What is minimised over is optimal, so its change with ``z`` plays no part in the derivative of ``J``.
    """

    def __init__(self, model: GenerativeModel, fidelity: ChannelFidelity, lam: Tensor) -> None:
        self.model, self.fidelity, self.lam = model, fidelity, lam

    @abstractmethod
    def minimise_image(self, z: Tensor) -> Minimum:
        """The best images for latent variables; the value is differentiable by ``z``."""

    def select(self, index: Tensor) -> Self:
        """The objectives of some images, which may repeat."""
        return type(self)(self.model, self.fidelity.select(index), self.lam[index])

    def with_weight(self, lam: Tensor) -> Self:
        """The same objectives with other weights."""
        return type(self)(self.model, self.fidelity, lam)

    def best_image(self, z: Tensor) -> Minimum:
        """The best images for latent variables, without derivatives."""
        with torch.no_grad():
            return self.minimise_image(z)

    def __call__(self, z: Tensor) -> Tensor:
        """``J(z)``, (n,)."""
        return self.best_image(z).value

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``J(z)`` and its derivative."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.minimise_image(z).value
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient


class RangeObjective(LatentObjective):
    """``1/2 ||A G(z) - y||^2 + lam 1/2 ||z||^2`` (Bora et al.)."""

    def minimise_image(self, z: Tensor) -> Minimum:
        """The images of the generator."""
        x = self.model.mean(z)
        value = self.fidelity(x) + self.lam * half_square(z)
        return Minimum(x, value, torch.isfinite(value))


class SoftObjective(LatentObjective):
    """``min_x 1/2 ||A x - y||^2 + lam (1/2 log det Sigma + 1/2 ||x - G||^2_{Sigma^-1} + 1/2 ||z||^2)``.

    ``G`` and ``Sigma`` are those of ``z`` (Duff et al.).
    """

    # Images of the latest call. They start the conjugate gradients of the next one, which changes the result
    # within their tolerance only. A descent asks for one ``z`` near another: blurred, undersampled and masked
    # images of 16 x 16 pixels took 15 to 50 % fewer steps.
    _latest: Tensor | None = None

    def select(self, index: Tensor) -> Self:
        """The objectives of some images, with what is known of these."""
        selected = super().select(index)
        selected._latest = None if self._latest is None else self._latest[index]
        return selected

    def minimise_image(self, z: Tensor) -> Minimum:
        """The best images by conjugate gradients."""
        gaussian = self.model.gaussian(z)
        x, converged = self._solve(gaussian)
        R = 0.5 * gaussian.log_det() + 0.5 * gaussian.whiten(x).square().flatten(1).sum(1) + half_square(z)
        return Minimum(x, self.fidelity(x) + self.lam * R, converged)

    @torch.no_grad()
    def _solve(self, gaussian: SparseCholeskyGaussian) -> tuple[Tensor, Tensor]:
        """``(A^* A + lam Sigma^-1) (x - G) = A^* (y - A G)``."""
        G, fidelity = gaussian.mean, self.fidelity
        solution = conjugate_gradient(
            lambda v: fidelity.adjoint(fidelity.apply(v)) + expand(self.lam, v) * gaussian.precision_mul(v),
            fidelity.adjoint(fidelity.y - fidelity.apply(G)),
            None if self._latest is None else self._latest - G,
            precondition=jacobi(fidelity, self.lam, gaussian),
            max_steps=_LINEAR_STEPS,
            tol=_LINEAR_TOL,
        )
        self._latest = G + solution.x
        return self._latest, solution.converged


class SparseObjective(LatentObjective):
    """``min_v 1/2 ||A (G(z) + v) - y||^2 + lam (||v||_1 / b + 1/2 ||z||^2)``.

    ``b`` is the mean absolute deviation of the training images from the range of ``G``.
    """

    def minimise_image(self, z: Tensor) -> Minimum:
        """The best images by proximal gradient steps."""
        G = self.model.mean(z)
        v, converged = self._solve(G)
        R = self.fidelity.image(v).abs().flatten(1).sum(1) / self.model.deviation + half_square(z)
        return Minimum(G + v, self.fidelity(G + v) + self.lam * R, converged)

    @torch.no_grad()
    def _solve(self, G: Tensor) -> tuple[Tensor, Tensor]:
        solution = accelerated_gradient(
            self.fidelity.misfit(G) + (self.lam / self.model.deviation) * L1Norm(),
            torch.zeros_like(self.fidelity.image(G)),
            max_steps=_SPARSE_STEPS,
            tol=_SPARSE_TOL,
        )
        return self.fidelity.channels(solution.x), solution.converged


def half_square(z: Tensor) -> Tensor:
    """``1/2 ||z||^2``, but for a constant ``-log N(z; 0, I)``, (n,)."""
    return 0.5 * z.square().sum(1)


def jacobi(
    fidelity: ChannelFidelity, lam: Tensor, gaussian: SparseCholeskyGaussian
) -> Callable[[Tensor], Tensor]:
    """Division by the diagonal of ``A^* A + lam Sigma^-1``, that of ``A^* A`` taken as constant."""
    mean, lam = (expand(value, gaussian.mean) for value in (fidelity.mean_diagonal, lam))
    diagonal = mean + lam * gaussian.precision_diagonal()
    inverse = 1 / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)
    return lambda r: r * inverse

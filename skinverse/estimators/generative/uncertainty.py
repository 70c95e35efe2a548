"""Standard deviations of the pixels of a reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse._defaults import copy_module
from skinverse._tensors import expand
from skinverse.estimators._validation import double
from skinverse.estimators.generative.model import GenerativeModel
from skinverse.estimators.generative.objectives import ChannelFidelity, LatentObjective, jacobi
from skinverse.solvers import conjugate_gradient

# Draws from the posterior: a standard deviation of 64 draws has a relative error of 9 %.
_N_DRAWS = 64
# Accuracy of each draw, well below that.
_TOL, _MAX_STEPS = 1e-3, 500


@torch.no_grad()
def posterior_std(objective: LatentObjective, z: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation of every pixel, (n, channels, height, width), and whether all draws converged.

    The density ``exp(-J / lam)`` of image and latent variables is taken as a Gaussian around its maximum,
    with ``G`` linear and ``Sigma`` constant. Let an image be drawn from the prior and noise be drawn for its
    data: the error of the reconstruction has the covariance of the posterior (Papandreou and Yuille, Gaussian
    sampling by local perturbations, 2010).
    """
    model: Any = copy_module(objective.model).double()
    prior, lam = LinearisedPrior(model, z.double()), objective.lam.double()
    fidelity = _in_double_precision(objective.fidelity)
    noise_std = (2 * lam if fidelity.y.is_complex() else lam).sqrt()
    precondition, rng = jacobi(fidelity, lam, prior.gaussian), torch.Generator().manual_seed(0)
    squares, converged = torch.zeros_like(prior.gaussian.mean), torch.isfinite(lam)
    for _ in range(_N_DRAWS):
        deviation = prior.draw(rng)
        noise = _draw(fidelity.y, rng) * expand(noise_std, fidelity.y)
        estimate = conjugate_gradient(
            lambda v: fidelity.adjoint(fidelity.apply(v)) + expand(lam, v) * prior.precision_mul(v),
            fidelity.adjoint(fidelity.apply(deviation) + noise),
            precondition=precondition,
            max_steps=_MAX_STEPS,
            tol=_TOL,
        )
        converged = converged & estimate.converged
        squares += (deviation - estimate.x).square()
    return (squares / _N_DRAWS).sqrt().to(objective.lam.dtype), converged


class LinearisedPrior:
    """Deviations from ``G(z)`` with covariance ``Sigma + J J^T``, ``J`` being the Jacobian of ``G`` at ``z``.

    In double precision: Woodbury's formula subtracts numbers that are nearly equal.
    """

    def __init__(self, model: GenerativeModel, z: Tensor) -> None:
        self.z, self.gaussian, self.J = z, model.gaussian(z), jacobian(model, z)
        self._weighted = torch.stack([self.gaussian.precision_mul(column) for column in self.J])  # Sigma^-1 J
        identity = torch.eye(len(self.J)).to(self.J)
        self._gram = torch.einsum("anchw,bnchw->nab", self.J, self._weighted) + identity

    def precision_mul(self, v: Tensor) -> Tensor:
        """``(Sigma + J J^T)^-1 v = Sigma^-1 v - Sigma^-1 J (I + J^T Sigma^-1 J)^-1 J^T Sigma^-1 v``."""
        along = torch.linalg.solve(self._gram, torch.einsum("anchw,nchw->na", self._weighted, v))
        return self.gaussian.precision_mul(v) - torch.einsum("anchw,na->nchw", self._weighted, along)

    def draw(self, rng: torch.Generator) -> Tensor:
        """A deviation, from the same random numbers for all images."""
        mean = self.gaussian.mean
        around = self.gaussian.color(_draw(mean, rng)) - mean
        return around + torch.einsum("anchw,na->nchw", self.J, _draw(self.z, rng))


def jacobian(model: GenerativeModel, z: Tensor) -> Tensor:
    """``dG/dz``, (d, n, channels, height, width): derivatives of ``u -> (dG/dz)^T u``, which is linear."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x = model.mean(z)
        u = torch.zeros_like(x, requires_grad=True)
        (transposed,) = torch.autograd.grad(x, z, u, create_graph=True)
        columns = [torch.autograd.grad(p.sum(), u, retain_graph=True)[0] for p in transposed.unbind(1)]
    return torch.stack(columns).detach()


def _in_double_precision(fidelity: ChannelFidelity) -> ChannelFidelity:
    y, root = double(fidelity.y), None if fidelity.root is None else double(fidelity.root)
    return ChannelFidelity(
        fidelity.A, y, fidelity.shape, fidelity.channel_axis, real=fidelity.real, root=root
    )


def _draw(like: Tensor, rng: torch.Generator) -> Tensor:
    """White noise, the same for all images."""
    noise = torch.randn(1, *like.shape[1:], generator=rng, dtype=like.dtype)
    return noise.to(like.device).expand(like.shape)

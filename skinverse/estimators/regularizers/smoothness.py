"""How smooth a regulariser is: a penalty on rough ones, and what is known or measured of a trained one."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from skinverse._defaults import seeded
from skinverse._tensors import expand, norm
from skinverse.energies import SmoothEnergy, WeightedEnergy
from skinverse.functionals import EnergyFunctional, Functional
from skinverse.solvers import Hessian
from skinverse.training import random_patches

# Growth and shrinkage of the steps that look for the steepest change, and the first length of a direction.
_GROW, _SHRINK, _LENGTH = 1.3, 1 / 1.3, 0.1
# Products with a Hessian that measure its spectrum.
_N_LANCZOS = 100
# Measured over wanted Lipschitz constant that is worth a warning.
_VIOLATED = 1.2


class Smoothness:
    """``xi (max_d ||grad s(x + d) - grad s(x)|| / ||d|| - beta)_+`` at the training images.

    Every image keeps its direction ``d``, relative to its own norm, and a step length. Each call takes one
    step of steepest ascent, which is accepted where the quotient grows.

    Parameters
    ----------
    n_images : int
        Number of training images.
    weight : float
        The price ``xi``.
    beta : float
        The bound ``beta``.
    patch_size : int or None
        Side of the patches at which it is taken; None is whole images.

    References
    ----------
    L. Bungert, R. Raab, T. Roith, L. Schwinn and D. Tenbrinck, CLIP: cheap Lipschitz training of neural
    networks, SSVM, 2021.
    """

    def __init__(self, n_images: int, weight: float, beta: float, patch_size: int | None) -> None:
        self.weight, self.beta, self.patch_size = weight, beta, patch_size
        self.steps = torch.ones(n_images)
        self.directions: Tensor | None = None  # made at the first call, which tells their shape

    def __call__(self, module: Any, x: Tensor, index: Tensor) -> Tensor:
        """The penalty of some images, by their numbers among the training images."""
        smooth: SmoothEnergy = module.energy
        if self.patch_size is not None and max(x.shape[2:]) > self.patch_size:
            x = random_patches(x, self.patch_size)
        x = module.log_scale.exp() * x
        steepest = self._ascend(smooth, x, index.cpu())
        return self.weight * (_quotient(smooth, x, steepest) - self.beta).clamp_min(0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"steps": self.steps, "directions": self.directions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.steps, self.directions = state["steps"], state["directions"]

    def _ascend(self, smooth: SmoothEnergy, x: Tensor, index: Tensor) -> Tensor:
        """The directions of some images, each one step steeper where that succeeds."""
        if self.directions is None:
            self.directions = _random_directions(len(self.steps), x)
        size = expand(norm(x) + (norm(x) == 0), x)
        d = (size * self.directions[index].to(x)).requires_grad_()
        quotient = _quotient(smooth, x.detach(), d)
        (slope,) = torch.autograd.grad(quotient.sum(), d)
        step = self.steps[index].to(x)
        length = step * norm(d) / norm(slope).clamp_min(torch.finfo(x.dtype).tiny)
        trial = (d + expand(length, d) * slope).detach()
        with torch.no_grad():
            grew = _quotient(smooth, x, trial) > quotient
        best = torch.where(expand(grew, d), trial, d.detach())
        relative = best / size
        self.steps[index] = torch.where(grew, _GROW * step, _SHRINK * step).to(self.steps)
        self.directions[index] = (relative / expand(norm(relative).clamp_min(1), relative)).to(
            self.directions
        )
        return best


def _random_directions(n: int, x: Tensor) -> Tensor:
    """A direction for each of ``n`` images, relative to their norms."""
    d = torch.randn(n, *x.shape[1:])
    return _LENGTH * d / expand(norm(d), d)


def _quotient(smooth: SmoothEnergy, x: Tensor, d: Tensor) -> Tensor:
    """``||grad s(x + d) - grad s(x)|| / ||d||``."""
    change = smooth.smooth_gradient(x + d) - smooth.smooth_gradient(x)
    return norm(change) / norm(d).clamp_min(torch.finfo(x.dtype).tiny)


# ---------------------------------------------------------------------- what is known afterwards
def moduli(module: Any, x: Tensor, patch_size: int | None) -> tuple[float, float, bool]:
    """Weak convexity of ``r``, Lipschitz constant of ``grad s``, and whether both are proven.

    What is not proven is measured at the images, by the extreme eigenvalues of the Hessian.
    """
    smooth: SmoothEnergy = module.energy
    known = smooth.weak_convexity()
    if smooth.certified:
        assert known is not None and smooth.beta is not None  # of what a certificate is made
        return float(known), float(smooth.beta), True
    r = WeightedEnergy(smooth).to(module.log_scale)
    r.log_scale.copy_(module.log_scale)
    with seeded(0):
        patches = random_patches(x.to(module.log_scale), patch_size)
    low, high = extreme_curvatures(EnergyFunctional(r, 0), patches)
    centre = 1 + smooth.alpha
    lipschitz = max(abs(centre - low), abs(centre - high))
    if smooth.beta is not None and lipschitz > _VIOLATED * smooth.beta:
        warnings.warn(
            f"beta={smooth.beta} is violated: measured {lipschitz:.3g}; raise smoothness_weight or train "
            "longer",
            stacklevel=2,
        )
    return max(0.0, -low) if known is None else known, lipschitz, False


def extreme_curvatures(functional: Functional, x: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the Hessian at the images, from inside, by Lanczos' method."""
    hessian, tiny = Hessian(functional, x), torch.finfo(x.dtype).tiny
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    v, before, beta = v / v.norm(), torch.zeros_like(v), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(_N_LANCZOS, x.numel())):
        p = hessian(v) - beta * before
        diagonal.append(float((v * p).sum()))
        p = p - diagonal[-1] * v
        beta = float(p.norm())
        beside.append(beta)
        if beta <= 1e-6 * max(map(abs, diagonal)) + tiny:  # an invariant subspace
            break
        v, before = p / beta, v
    eigenvalues = eigvalsh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return float(eigenvalues[0]), float(eigenvalues[-1])

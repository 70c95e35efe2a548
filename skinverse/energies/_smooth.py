"""An energy whose gradient is smooth by construction."""

from __future__ import annotations

import torch
from torch import Tensor

from skinverse._tensors import dot
from skinverse.energies._base import Energy


class SmoothEnergy(Energy):
    """``r(x) = (1 + alpha)/2 ||x||^2 - s(x)``, where the gradient of ``s`` is to be ``beta``-Lipschitz.

    With ``s(x) = 1/2 ||x||^2 - e(x)`` this is ``r(x) = e(x) + alpha/2 ||x||^2`` for an energy ``e``, which is
    made of an energy ``R``. Where the curvature of ``R`` is proven to lie in ``[-rho, c]``, the bound holds
    by construction: ``e(x) = (1 - beta)_+ / 2 ||x||^2 + k R(x)`` with the largest ``k`` that keeps the
    curvature of ``e`` in ``[1 - beta, 1 + beta]``. For ``beta <= 1`` this takes a convex ``R``; then ``r`` is
    convex, and strongly so with modulus ``alpha``. Elsewhere ``e = R`` and nothing is proven.

    Parameters
    ----------
    energy : Energy
        The energy ``R``.
    alpha : float >= 0, default=0.0
        Modulus of strong convexity that is added.
    beta : float >= 0 or None, default=None
        Lipschitz constant of ``grad s``; None is no bound.

    References
    ----------
    S. Nair and P. Schniter, Deep regularization via bi-level optimization, Asilomar Conference on Signals,
    Systems, and Computers, 2022.

    Examples
    --------
    >>> from skinverse.energies import RidgeEnergy, SmoothEnergy
    >>> SmoothEnergy(RidgeEnergy(convex=True), alpha=0.1, beta=1.0).weak_convexity()
    0.0
    >>> SmoothEnergy(RidgeEnergy(), beta=1.5).certified
    True
    """

    def __init__(self, energy: Energy, *, alpha: float = 0.0, beta: float | None = None) -> None:
        super().__init__()
        self.energy, self.n_channels, self.alpha, self.beta = energy, energy.n_channels, alpha, beta
        possible = energy.weak_convexity() == 0 or (beta is not None and beta > 1)
        self.certified = beta is not None and energy.largest_curvature() is not None and possible
        # The curvature of the quadratic part of r.
        self.curvature = alpha + (max(0.0, 1 - beta) if self.certified and beta is not None else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight() * self.energy(x) + self.curvature / 2 * dot(x, x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.energy.value_and_grad(x)
        k = self.weight()
        return k * value + self.curvature / 2 * dot(x, x), k * gradient + self.curvature * x

    def prepared(self) -> Energy:
        return self._with("energy", self.energy.prepared())

    def weight(self) -> Tensor | float:
        """The factor ``k`` of ``R``, differentiable in the parameters."""
        largest, rho = self.energy.largest_curvature(), self.energy.weak_convexity()
        if not self.certified or self.beta is None or largest is None:
            return 1.0
        k = (1 + self.beta - max(0.0, 1 - self.beta)) / largest
        return k.clamp_max((self.beta - 1) / rho) if rho else k

    def smooth_gradient(self, x: Tensor) -> Tensor:
        """``grad s(x) = (1 + alpha) x - grad r(x)``."""
        return (1 + self.alpha) * x - self.value_and_grad(x)[1]

    def weak_convexity(self) -> float | None:
        if self.certified and self.beta is not None and self.beta <= 1 + self.alpha:
            return 0.0
        known = self.energy.weak_convexity()
        if known is None:
            return None
        return max(0.0, float(torch.as_tensor(self.weight()).detach()) * known - self.curvature)

    def largest_curvature(self) -> Tensor | None:
        known = self.energy.largest_curvature()
        return None if known is None else self.weight() * known + self.curvature

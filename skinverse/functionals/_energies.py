"""Energies made of a denoising network, and energies whose gradient is smooth by construction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse._batch import dot
from skinverse.functionals._critics import Critic


class REDCritic(Critic):
    """Regularization by denoising, ``R(x) = 1/2 <x, x - h(x)>`` with a network ``h``.

    Its gradient is taken exactly; it is ``x - h(x)`` only for networks with a symmetric Jacobian that are
    homogeneous, which most are not.

    Parameters
    ----------
    network : nn.Module
        The ``h``, (n, channels, h, w) -> (n, channels, h, w), smooth, with ``n_channels``.

    References
    ----------
    Y. Romano, M. Elad and P. Milanfar, The little engine that could: regularization by denoising (RED), SIAM
    Journal on Imaging Sciences 10, 2017.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import REDCritic
    >>> from skinverse.networks import DnCNN
    >>> REDCritic(DnCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.n_channels = network, network.n_channels

    def forward(self, x: Tensor) -> Tensor:
        return dot(x, x - self.network(x)) / 2


class GradientStepCritic(Critic):
    """Gradient-step energy, ``R(x) = 1/2 ||x - h(x)||^2`` with a network ``h``: never negative.

    Parameters
    ----------
    network : nn.Module
        The ``h``, (n, channels, h, w) -> (n, channels, h, w), smooth, with ``n_channels``.

    References
    ----------
    S. Hurault, A. Leclaire and N. Papadakis, Gradient step denoiser for convergent plug-and-play, ICLR, 2022.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import GradientStepCritic
    >>> from skinverse.networks import DnCNN
    >>> GradientStepCritic(DnCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.n_channels = network, network.n_channels

    def forward(self, x: Tensor) -> Tensor:
        rest = x - self.network(x)
        return dot(rest, rest) / 2


class SmoothCritic(Critic):
    """``r(x) = (1 + alpha)/2 ||x||^2 - s(x)``, where the gradient of ``s`` is to be ``beta``-Lipschitz.

    ``s(x) = 1/2 ||x||^2 - e(x)`` with an energy ``e``, so ``r = e + alpha/2 ||x||^2``. Where the curvature of
    a critic ``R`` is proven to lie in ``[-rho, c]``, the bound holds by construction:
    ``e = (1 - beta)_+ / 2 ||x||^2 + k R`` with the largest ``k`` that keeps the curvature of ``e`` in
    ``[1 - beta, 1 + beta]``. For ``beta <= 1`` that takes a convex ``R``; then ``r`` is convex, and strongly
    so with modulus ``alpha``. Otherwise ``e = R`` and nothing is proven.

    Parameters
    ----------
    critic : Critic
        The ``R``.
    alpha : float >= 0, default=0.0
        Strong convexity that is added.
    beta : float > 0 or None, default=None
        Lipschitz constant of ``grad s``; None is no bound.

    References
    ----------
    S. Nair and P. Schniter, Deep regularization via bi-level optimization, Asilomar Conference on Signals,
    Systems, and Computers, 2022.

    Examples
    --------
    >>> from skinverse.functionals import RidgeCritic, SmoothCritic
    >>> SmoothCritic(RidgeCritic(convex=True), alpha=0.1, beta=1.0).weak_convexity()
    0.0
    >>> SmoothCritic(RidgeCritic(), beta=1.5).certified
    True
    """

    def __init__(self, critic: Critic, *, alpha: float = 0.0, beta: float | None = None) -> None:
        super().__init__()
        self.critic, self.n_channels, self.alpha, self.beta = critic, critic.n_channels, alpha, beta
        possible = critic.weak_convexity() == 0 or (beta is not None and beta > 1)
        self.certified = beta is not None and critic.largest_curvature() is not None and possible
        self.pull = alpha + (max(0.0, 1 - beta) if self.certified and beta is not None else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight() * self.critic(x) + self.pull / 2 * dot(x, x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.critic.value_and_grad(x)
        k = self.weight()
        return k * value + self.pull / 2 * dot(x, x), k * gradient + self.pull * x

    def weight(self) -> Tensor | float:
        """The ``k``."""
        largest, rho = self.critic.largest_curvature(), self.critic.weak_convexity()
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
        known = self.critic.weak_convexity()
        return (
            None
            if known is None
            else max(0.0, float(torch.as_tensor(self.weight()).detach()) * known - self.pull)
        )

    def largest_curvature(self) -> Tensor | None:
        known = self.critic.largest_curvature()
        return None if known is None else self.weight() * known + self.pull

"""Learned energies, image -> number, as torch modules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._batch import wrap
from skinverse._filters import analyse, spectral_bound, synthesise

# Numbers in the responses of one group of filters.
_GROUP = 2**22


class Critic(nn.Module, ABC):
    """A learned energy ``R``: a sum over pixels, one number per image, (n, channels, h, w) -> (n,).

    Images are continued periodically, so that an energy is exactly a sum: of an image and its copy side by
    side it is twice that of the image.
    """

    n_channels: int

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Energies, shape (n,)."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and gradients; the gradients carry a graph exactly when gradients are enabled."""
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=keep_graph)
        return (value if keep_graph else value.detach()), gradient

    def weak_convexity(self) -> float | None:
        """Smallest ``rho`` known with ``R + rho/2 ||x||^2`` convex; None where none is."""
        return None

    def lipschitz(self, n_pixels: int) -> float | None:
        """Proven bound on ``|R(x) - R(z)| / ||x - z||`` for images of ``n_pixels`` pixels; None without."""
        return None

    def largest_curvature(self) -> Tensor | None:
        """Proven bound on the Hessian's eigenvalues, differentiable in the parameters; None without."""
        return None


class RidgeCritic(Critic):
    """Fields of experts, ``R(x) = sum_f sum_i psi_f((W x)_fi)``: learned filters, one learned potential.

    ``W`` is a bank of zero-mean filters divided by a bound on its spectral norm, so ``||W|| <= 1``. With the
    Huber function ``h`` and ``beta > 1`` the potentials are
    ``psi_f(t) = (h(beta s_f t) / beta - rho h(s_f t)) / s_f^2 >= 0``: convex for ``rho = 0``; for ``rho = 1``
    their curvature is at least -1 and they level off, which spares edges. So ``R`` is ``rho``-weakly convex.
    The gradient is a formula, ``W^T psi'(W x)``.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    convex : bool, default=False
        Whether ``rho`` is 0 instead of 1.
    n_filters : int, default=48
        Number of filters.
    kernel_size : int, default=7
        Their side in pixels, odd.

    References
    ----------
    A. Goujon, S. Neumayer and M. Unser, Learning weakly convex regularizers for convergent image
    reconstruction algorithms, SIAM Journal on Imaging Sciences 17, 2024.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import RidgeCritic
    >>> RidgeCritic()(torch.ones(2, 1, 8, 8)).abs().max() < 1e-6
    tensor(True)
    """

    def __init__(
        self, n_channels: int = 1, *, convex: bool = False, n_filters: int = 48, kernel_size: int = 7
    ) -> None:
        super().__init__()
        self.n_channels, self.rho = n_channels, 0.0 if convex else 1.0
        self.filters = nn.Parameter(_cosines(n_filters, n_channels, kernel_size))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(19.0)))
        self.log_steepness = nn.Parameter(torch.full((n_filters, 1, 1, 1), math.log(5.0)))

    def forward(self, x: Tensor) -> Tensor:
        beta = 1 + self.log_sharpness.exp()
        return torch.stack(
            [_ridges(analyse(x, beta * s * w), beta, s, self.rho)[0] for w, s in self._groups(x)]
        ).sum(0)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
        beta = 1 + self.log_sharpness.exp()
        for w, s in self._groups(x):
            energy, slope = _ridges(analyse(x, beta * s * w), beta, s, self.rho)
            value, gradient = value + energy, gradient + synthesise(slope, w / s)
        return value, gradient

    def normalised(self) -> Tensor:
        """The filters of ``W``: zero mean, ``||W|| <= 1``."""
        centred = self.filters - self.filters.mean((-2, -1), keepdim=True)
        return centred / spectral_bound(centred)

    def weak_convexity(self) -> float:
        return self.rho

    def largest_curvature(self) -> Tensor:
        return 1 + self.log_sharpness.exp() - self.rho

    def _groups(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Filters and their ``s``, in groups whose responses fit a processor's caches."""
        size = max(1, _GROUP // x[:, 0].numel())
        return zip(self.normalised().split(size), self.log_steepness.exp().split(size), strict=True)


def _cosines(n_filters: int, n_channels: int, k: int) -> Tensor:
    """A tight frame to start from: products of cosines, slow ones first, turned at random over channels."""
    t = torch.arange(k)
    waves = torch.cos(math.pi * (t + 0.5) * t[:, None] / k) * torch.where(t == 0, 1, 2**0.5)[:, None] / k
    order = (t[:, None] + t).flatten().argsort(stable=True)[1:]
    atoms = (waves[:, None, :, None] * waves[None, :, None, :]).flatten(0, 1)[order]
    colours = torch.linalg.qr(torch.randn(n_channels, n_channels))[0]
    bank = (atoms[:, None, None] * colours[None, :, :, None, None]).flatten(0, 1)
    return (
        bank[torch.arange(n_filters) % max(len(bank), 1)]
        if len(bank)
        else torch.zeros(n_filters, n_channels, k, k)
    )


def _ridges(v: Tensor, beta: Tensor, s: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """``sum psi`` of each image and ``s psi'``, at the scaled responses ``v = beta s W x``."""
    energies, slope = _Potential.apply(v, beta, rho)
    return energies @ s.flatten() ** -2, slope


class _Potential(torch.autograd.Function):
    """``sum_i h(v_i) / beta - rho h(v_i / beta)`` and ``h'(v) - rho h'(v / beta)`` in few passes over ``v``.

    The Huber function is ``h(t) = c (t - c/2)`` with ``c = h'(t)``, ``t`` clipped to [-1, 1].
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: Tensor, rho: float) -> tuple[Tensor, Tensor]:
        outer = v.clamp(-1, 1)
        energy = (_sum(outer, v) - _sum(outer, outer) / 2) / beta
        if rho:
            inner = (v / beta).clamp_(-1, 1)
            energy = energy - rho * (_sum(inner, v) / beta - _sum(inner, inner) / 2)
            outer = outer.sub_(inner, alpha=rho)
        ctx.save_for_backward(v, beta, outer)
        ctx.rho = rho
        ctx.set_materialize_grads(False)
        return energy, outer

    @staticmethod
    def backward(ctx: Any, g_energy: Tensor | None, g_slope: Tensor | None) -> tuple[Tensor | None, ...]:
        v, beta, slope = ctx.saved_tensors
        rho, by_v, by_beta = ctx.rho, None, None
        if g_energy is not None:
            by_v = slope * (g_energy / beta)[..., None, None]
            if ctx.needs_input_grad[1]:
                by_beta = _energy_by_beta(v, beta, rho, g_energy)
        if g_slope is not None:
            size = v.abs()
            curved = (size < 1) * g_slope
            if rho:
                inner = (size < beta) * g_slope * (rho / beta)
                curved = curved - inner
                if ctx.needs_input_grad[1]:
                    turned = (inner * v).sum() / beta
                    by_beta = turned if by_beta is None else by_beta + turned
            by_v = curved if by_v is None else by_v + curved
        return by_v, by_beta, None


def _energy_by_beta(v: Tensor, beta: Tensor, rho: float, g: Tensor) -> Tensor:
    outer = v.clamp(-1, 1)
    change = rho * _sum((v / beta).clamp(-1, 1), v) - _sum(outer, v) + _sum(outer, outer) / 2
    return (g * change).sum() / beta.square()


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Sums over pixels of products, (n, f)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


class ConvexCritic(Critic):
    """Input-convex network, ``R(x) = sum_i a^T phi(V z_i + W' x_i)`` with ``z = phi(W x)`` and ``V, a >= 0``.

    ``phi`` is convex and does not decrease, a smooth ReLU; so ``R`` is convex for all weights.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=32
        Width of the network.
    kernel_size : int, default=5
        Side of its filters in pixels, odd.

    References
    ----------
    S. Mukherjee, S. Dittmer, Z. Shumaylov, S. Lunz, O. Oktem and C.-B. Schonlieb, Data-driven convex
    regularizers for inverse problems, ICASSP, 2024.
    B. Amos, L. Xu and J. Z. Kolter, Input convex neural networks, ICML, 2017.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import ConvexCritic
    >>> ConvexCritic()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, n_channels: int = 1, *, n_features: int = 32, kernel_size: int = 5) -> None:
        super().__init__()
        self.n_channels, k = n_channels, kernel_size
        self.first = nn.Parameter(torch.randn(n_features, n_channels, k, k) / k)
        self.skip = nn.Parameter(torch.randn(n_features, n_channels, k, k) / k)
        self.log_inner = nn.Parameter(
            torch.randn(n_features, n_features, k, k) / 10 - math.log(n_features * k * k)
        )
        self.log_outer = nn.Parameter(torch.zeros(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.log_width = nn.Parameter(torch.tensor(math.log(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        centred = [w - w.mean((-2, -1), keepdim=True) for w in (self.first, self.skip)]
        z = self._rise(analyse(x, centred[0]))
        z = F.conv2d(wrap(z, self.first.shape[-1] // 2), self.log_inner.exp(), self.bias)
        z = self._rise(z + analyse(x, centred[1]))
        return z.sum((-2, -1)) @ self.log_outer.exp()

    def weak_convexity(self) -> float:
        return 0.0

    def _rise(self, t: Tensor) -> Tensor:
        """Smooth ReLU: 0 below 0, ``t^2 / 2w`` up to the width ``w``, ``t - w/2`` above."""
        width = self.log_width.exp()
        c = (t / width).clamp(0, 1)
        return c * (t - c * width / 2)


class NetworkCritic(Critic):
    """``R(x) = sum_i sqrt(1 + N(x)_i^2) - 1`` for a network ``N`` onto one channel: smooth, zero with ``N``.

    Parameters
    ----------
    network : nn.Module
        Image -> one channel, with ``n_channels`` and its Lipschitz constant ``lipschitz``, None if unknown.

    References
    ----------
    S. Lunz, O. Oktem and C.-B. Schonlieb, Adversarial regularizers in inverse problems, NeurIPS, 2018.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import NetworkCritic
    >>> from skinverse.networks import LocalCNN
    >>> NetworkCritic(LocalCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.n_channels = network, network.n_channels

    def forward(self, x: Tensor) -> Tensor:
        return ((1 + self.network(x).square()).sqrt() - 1).flatten(1).sum(1)

    def lipschitz(self, n_pixels: int) -> float | None:
        """``Lip(N) sqrt(n_pixels)``, since the sum over pixels has that norm."""
        known: float | None = self.network.lipschitz
        return None if known is None else known * math.sqrt(n_pixels)


class ModuleCritic(Critic):
    """Any module that gives one number per image, (n, channels, h, w) -> (n,) or (n, 1).

    Parameters
    ----------
    module : nn.Module
        The energy; twice differentiable almost everywhere.
    n_channels : int
        Channels of the images it takes.

    Raises
    ------
    ValueError
        On use, if it returns anything but one number per image.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import ModuleCritic
    >>> energy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    >>> ModuleCritic(energy, 1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, module: nn.Module, n_channels: int) -> None:
        super().__init__()
        self.module, self.n_channels = module, n_channels

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.module(x)
        if value.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                "critic: expected one number per image, never one for the batch: "
                f"for {len(x)} images shape ({len(x)},), got {tuple(value.shape)}"
            )
        return value.reshape(len(x))


class WeightedCritic(Critic):
    """``exp(a - 2 s) R(exp(s) x)``: the weight and the scale of an energy, the two numbers to calibrate.

    Scaling this way keeps the modulus of weak convexity, which is ``exp(a)`` times that of ``R``.

    Parameters
    ----------
    critic : Critic
        The ``R``.
    scale : float > 0, default=1.0
        Start of ``exp(s)``: one over the usual size of the images' values.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import RidgeCritic, WeightedCritic
    >>> WeightedCritic(RidgeCritic(), scale=4.0).weak_convexity()
    1.0
    """

    log_scale: Tensor

    def __init__(self, critic: Critic, *, scale: float = 1.0) -> None:
        super().__init__()
        self.critic, self.n_channels = critic, critic.n_channels
        self.log_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_weight - 2 * self.log_scale).exp() * self.critic(self.log_scale.exp() * x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.critic.value_and_grad(self.log_scale.exp() * x)
        return (
            (self.log_weight - 2 * self.log_scale).exp() * value,
            (self.log_weight - self.log_scale).exp() * gradient,
        )

    def weak_convexity(self) -> float | None:
        known = self.critic.weak_convexity()
        return None if known is None else math.exp(self.log_weight.item()) * known

    def lipschitz(self, n_pixels: int) -> float | None:
        known = self.critic.lipschitz(n_pixels)
        return None if known is None else math.exp((self.log_weight - self.log_scale).item()) * known

"""Fields of experts: learned filters and a learned potential, with the gradient in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from skinverse._filters import analyse, mirrored_norm, synthesise
from skinverse.energies._base import Energy

# Numbers in the responses of one group of filters: 16 MB in single precision.
_GROUP = 2**22
# Pixels of all images that are usually worked on at once.
_PIXELS = 2**16


class RidgeEnergy(Energy):
    """Fields of experts, ``R(x) = sum_f sum_i psi_f((W x)_fi)``: learned filters, one learned potential.

    The filters ``W`` have zero mean and are divided by a bound on their spectral norm: ``||W|| <= 1``. With
    the Huber function ``h`` and ``beta > 1`` the potentials are
    ``psi_f(t) = (h(beta s_f t) / beta - rho h(s_f t)) / s_f^2 >= 0``. For ``rho = 0`` they are convex; for
    ``rho = 1`` their curvature is at least -1, and they level off, which spares edges. So ``R`` is
    ``rho``-weakly convex. The gradient is ``W^T psi'(W x)``.

    Parameters
    ----------
    n_channels : int, default=1
        Number of channels of the images.
    convex : bool, default=False
        Whether the potentials are convex, ``rho = 0`` instead of 1.
    n_filters : int, default=48
        Number of filters.
    kernel_size : int, default=7
        Side of the filters in pixels, odd.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    References
    ----------
    A. Goujon, S. Neumayer and M. Unser, Learning weakly convex regularizers for convergent image
    reconstruction algorithms, SIAM Journal on Imaging Sciences 17, 2024.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import RidgeEnergy
    >>> RidgeEnergy()(torch.ones(2, 1, 8, 8)).abs().max() < 1e-6
    tensor(True)
    """

    def __init__(
        self,
        n_channels: int = 1,
        *,
        convex: bool = False,
        n_filters: int = 48,
        kernel_size: int = 7,
        ndim: int = 2,
    ) -> None:
        super().__init__()
        self.n_channels, self.rho = n_channels, 0.0 if convex else 1.0
        self.filters = nn.Parameter(_cosines(n_filters, n_channels, kernel_size, ndim))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(19.0)))
        self.log_steepness = nn.Parameter(torch.full((n_filters, 1, *[1] * ndim), math.log(5.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.prepared()(x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.prepared().value_and_grad(x)

    def prepared(self) -> Energy:
        beta = 1 + self.log_sharpness.exp()
        return _Ridges(self.normalised(), self.log_steepness.exp(), beta, self.rho)

    def normalised(self) -> Tensor:
        """The filters ``W``, with zero mean and ``||W|| <= 1``."""
        centred = self.filters - self.filters.mean(tuple(range(2, self.filters.ndim)), keepdim=True)
        return centred / mirrored_norm(centred)

    def weak_convexity(self) -> float:
        return self.rho

    def largest_curvature(self) -> Tensor:
        return 1 + self.log_sharpness.exp() - self.rho


class _Ridges(Energy):
    """The energy for filters ``W`` whose norm is known."""

    def __init__(self, filters: Tensor, steepness: Tensor, beta: Tensor, rho: float) -> None:
        super().__init__()
        self.n_channels, self.rho = filters.shape[1], rho
        self.filters, self.steepness, self.beta = filters, steepness, beta

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta
        return torch.stack(
            [_ridges(analyse(x, beta * s * w), beta, s, self.rho)[0] for w, s in self._groups(x)]
        ).sum(0)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = torch.zeros(len(x), dtype=x.dtype, device=x.device), torch.zeros_like(x)
        beta = self.beta
        for w, s in self._groups(x):
            energy, slope = _ridges(analyse(x, beta * s * w), beta, s, self.rho)
            value, gradient = value + energy, gradient + synthesise(slope, w / s)
        return value, gradient

    def weak_convexity(self) -> float:
        return self.rho

    def largest_curvature(self) -> Tensor:
        return self.beta - self.rho

    def _groups(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Filters and their ``s``, in groups whose responses fit a processor's caches.

        They do not depend on how many images there are: with other groups sums are added in another order.
        """
        size = max(1, _GROUP // max(_PIXELS, x[0, 0].numel()))
        return zip(self.filters.split(size), self.steepness.split(size), strict=True)


def _cosines(n_filters: int, n_channels: int, k: int, ndim: int) -> Tensor:
    """A tight frame to start from: products of cosines, low frequencies first, mixed over the channels."""
    t = torch.arange(k)
    waves = torch.cos(math.pi * (t + 0.5) * t[:, None] / k) * torch.where(t == 0, 1, 2**0.5)[:, None] / k
    frequencies = torch.cartesian_prod(*[t] * ndim)
    factors = waves[frequencies[frequencies.sum(1).argsort(stable=True)[1:]]]
    atoms = factors[:, 0]
    for axis in range(1, ndim):
        atoms = atoms[..., None] * factors[:, axis].reshape(-1, *[1] * axis, k)
    colours = torch.linalg.qr(torch.randn(n_channels, n_channels))[0]
    bank = (atoms[:, None, None] * colours.reshape(1, n_channels, n_channels, *[1] * ndim)).flatten(0, 1)
    if not len(bank):  # one pixel has no filter of zero mean
        return torch.zeros(n_filters, n_channels, *[k] * ndim)
    return bank[torch.arange(n_filters) % len(bank)]


def _ridges(v: Tensor, beta: Tensor, s: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """``sum psi`` of each image and ``s psi'``, at the scaled responses ``v = beta s W x``."""
    energies, slope = _Potential.apply(v, beta, rho)
    # No matrix product: of one image it adds in another order than of several.
    return (energies * s.flatten() ** -2).sum(1), slope


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
        rho, beta_needed = ctx.rho, ctx.needs_input_grad[1]
        by_v, by_beta = [], []
        if g_energy is not None:
            by_v.append(slope * (g_energy / beta).reshape(*g_energy.shape, *[1] * (v.ndim - 2)))
            if beta_needed:
                by_beta.append(_energy_by_beta(v, beta, rho, g_energy))
        if g_slope is not None:
            size = v.abs()
            curved = (size < 1) * g_slope
            if rho:
                inner = (size < beta) * g_slope * (rho / beta)
                curved = curved - inner
                if beta_needed:
                    by_beta.append((inner * v).sum() / beta)
            by_v.append(curved)
        return _total(by_v), _total(by_beta), None


def _energy_by_beta(v: Tensor, beta: Tensor, rho: float, g: Tensor) -> Tensor:
    """Derivative in ``beta`` of the energies, weighted by their cotangents ``g``."""
    outer = v.clamp(-1, 1)
    change = rho * _sum((v / beta).clamp(-1, 1), v) - _sum(outer, v) + _sum(outer, outer) / 2
    return (g * change).sum() / beta.square()


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Sums over pixels of products, (n, f)."""
    return torch.linalg.vecdot(a.flatten(2), b.flatten(2))


def _total(terms: list[Tensor]) -> Tensor | None:
    return sum(terms[1:], terms[0]) if terms else None

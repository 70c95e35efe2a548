"""What a learned energy is, and two wrappers that make one of something else."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn


class Energy(nn.Module, ABC):
    """A learned energy ``R``: a sum of local costs over pixels, (n, channels, height, width) -> (n,).

    Images are continued by their mirror images, which makes an energy exactly a sum: that of an image beside
    its mirror image is the sum of both energies.

    Attributes
    ----------
    n_channels : int
        Number of channels of the images.
    """

    n_channels: int

    def __init__(self) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Energy of each image, shape (n,)."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of each image and its gradient, which has a graph exactly when gradients are enabled."""
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=keep_graph)
        return (value if keep_graph else value.detach()), gradient

    def prepared(self) -> Energy:
        """The same energy with all filters made, to be called many times; gradients reach the weights."""
        return self

    def _with(self, name: str, part: Any) -> Self:
        """A copy with another part; it shares the rest."""
        twin = copy.copy(self)
        vars(twin)[name] = part
        return twin

    def weak_convexity(self) -> float | None:
        """Smallest ``rho`` known with ``R + rho/2 ||x||^2`` convex; None where none is known."""
        return None

    def lipschitz(self, n_pixels: int) -> float | None:
        """Proven bound on ``|R(x) - R(z)| / ||x - z||`` for images of ``n_pixels`` pixels, or None."""
        return None

    def largest_curvature(self) -> Tensor | None:
        """Proven bound on the Hessian's eigenvalues, differentiable in the parameters, or None."""
        return None


class ModuleEnergy(Energy):
    """A module of the user's as an energy.

    Parameters
    ----------
    module : nn.Module
        Module, (n, channels, height, width) -> (n,) or (n, 1), twice differentiable almost everywhere.
    n_channels : int
        Number of channels of the images.

    Raises
    ------
    ValueError
        On use, if it returns anything but one number per image.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import ModuleEnergy
    >>> energy = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    >>> ModuleEnergy(energy, 1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(self, module: nn.Module, n_channels: int) -> None:
        super().__init__()
        self.module, self.n_channels = module, n_channels

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.module(x)
        if value.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                "energy: expected one number per image, never one for the batch: "
                f"for {len(x)} images shape ({len(x)},), got {tuple(value.shape)}"
            )
        return value.reshape(len(x))


class WeightedEnergy(Energy):
    """An energy with a weight and a scale, ``exp(a - 2 s) R(exp(s) x)``.

    The weight ``a`` is a parameter to be trained, the scale ``s`` a buffer. The modulus of weak convexity is
    ``exp(a)`` times that of ``R`` at every scale.

    Parameters
    ----------
    energy : Energy
        The energy ``R``.
    scale : float > 0, default=1.0
        Initial value of ``exp(s)``: one over the usual size of the images' values.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import RidgeEnergy, WeightedEnergy
    >>> WeightedEnergy(RidgeEnergy(), scale=4.0).weak_convexity()
    1.0
    """

    log_scale: Tensor

    def __init__(self, energy: Energy, *, scale: float = 1.0) -> None:
        super().__init__()
        self.energy, self.n_channels = energy, energy.n_channels
        self.log_weight = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_weight - 2 * self.log_scale).exp() * self.energy(self.log_scale.exp() * x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.energy.value_and_grad(self.log_scale.exp() * x)
        return (
            (self.log_weight - 2 * self.log_scale).exp() * value,
            (self.log_weight - self.log_scale).exp() * gradient,
        )

    def prepared(self) -> Energy:
        return self._with("energy", self.energy.prepared())

    def weak_convexity(self) -> float | None:
        known = self.energy.weak_convexity()
        return None if known is None else math.exp(self.log_weight.item()) * known

    def lipschitz(self, n_pixels: int) -> float | None:
        known = self.energy.lipschitz(n_pixels)
        return None if known is None else math.exp((self.log_weight - self.log_scale).item()) * known

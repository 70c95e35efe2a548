"""A learned energy as a functional of images of any kind: flat or not, grey or coloured, real or complex."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skinverse._tensors import from_channels, planes_for
from skinverse.functionals._base import Functional


class EnergyFunctional(Functional):
    """A learned energy of real channels as a functional of images ``(n, *dims)``.

    Complex images are two real channels. An energy of one channel is applied to the channels one by one, and
    the values add up.

    Parameters
    ----------
    energy : skinverse.energies.Energy
        The energy, in the precision and on the device of the images.
    channel_axis : int or None, default=None
        The axis of one image that holds channels; None where all are space.

    Raises
    ------
    ValueError
        On use, if the images have other channels than the energy was trained on.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import RidgeEnergy
    >>> from skinverse.functionals import EnergyFunctional
    >>> EnergyFunctional(RidgeEnergy())(torch.ones(3, 8)).shape
    torch.Size([3])
    """

    smooth = True

    def __init__(self, energy: Any, channel_axis: int | None = None) -> None:
        self.energy, self.channel_axis = energy, channel_axis
        self.weak_convexity = energy.weak_convexity()

    def __call__(self, x: Tensor) -> Tensor:
        return self.energy(self._planes(x)).view(len(x), -1).sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.energy.value_and_grad(self._planes(x))
        return value.view(len(x), -1).sum(1), from_channels(gradient, x, self.channel_axis)

    def _planes(self, x: Tensor) -> Tensor:
        return planes_for(x, self.energy.n_channels, "the energy", self.channel_axis)

    def __repr__(self) -> str:
        return f"EnergyFunctional({type(self.energy).__name__})"

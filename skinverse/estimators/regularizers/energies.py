"""The energies that can be learned, by name."""

from __future__ import annotations

from torch import nn

from skinverse._defaults import copy_module
from skinverse.energies import Energy, ModuleEnergy, make_energy
from skinverse.networks import make_network

# Energies that are a formula of a network: the formula and the network.
_OF_NETWORKS = {
    "conv": ("network", "local"),
    "lipschitz": ("network", "lipschitz"),
    "red": ("red", "dncnn"),
    "gradient_step": ("gradient_step", "dncnn"),
}


def untrained(energy: str | nn.Module, n_channels: int, n_axes: int) -> Energy:
    """Make the energy of a name for images of so many spatial axes, or one of a copy of the user's module."""
    if isinstance(energy, nn.Module):
        return ModuleEnergy(copy_module(energy), n_channels)
    if energy not in _OF_NETWORKS:
        return make_energy(energy, n_channels, ndim=n_axes)
    formula, network = _OF_NETWORKS[energy]
    return make_energy(formula, n_channels, make_network(network, n_channels, n_axes))

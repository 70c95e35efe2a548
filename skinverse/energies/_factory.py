"""Energies by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from skinverse.energies._base import Energy
from skinverse.energies._convex import ConvexEnergy
from skinverse.energies._network import GradientStepEnergy, NetworkEnergy, REDEnergy
from skinverse.energies._ridge import RidgeEnergy

_OF_CHANNELS: dict[str, Callable[..., Energy]] = {
    "ridge": RidgeEnergy,
    "convex_ridge": partial(RidgeEnergy, convex=True),
    "convex": ConvexEnergy,
}
_OF_NETWORK: dict[str, Callable[[nn.Module], Energy]] = {
    "network": NetworkEnergy,
    "red": REDEnergy,
    "gradient_step": GradientStepEnergy,
}


# Side of the filters of volumes in pixels: they have as many weights as filters of 11 x 11 pixels.
_SIDE_IN_VOLUMES = 5


def make_energy(name: str, n_channels: int = 1, network: nn.Module | None = None, *, ndim: int = 2) -> Energy:
    """Make an untrained energy by its name.

    Parameters
    ----------
    name : {"ridge", "convex_ridge", "convex", "network", "red", "gradient_step"}
        Name of the energy: :class:`RidgeEnergy`, convex or not, :class:`ConvexEnergy`,
        :class:`NetworkEnergy`, :class:`REDEnergy` or :class:`GradientStepEnergy`.
    n_channels : int, default=1
        Number of channels of the images, for the first three.
    network : nn.Module or None, default=None
        Network of the last three, which knows its own ``n_channels`` and spatial axes.
    ndim : int, default=2
        Number of spatial axes of the images, for the first three: 3 for volumes.

    Returns
    -------
    Energy
        The untrained energy.

    Raises
    ------
    ValueError
        If the name is unknown, or a network is missing or not needed.

    Examples
    --------
    >>> from skinverse.energies import make_energy
    >>> make_energy("convex_ridge").weak_convexity()
    0.0
    """
    known = [*_OF_CHANNELS, *_OF_NETWORK]
    if name not in known:
        raise ValueError(f"name: expected one of {known}, got {name!r}")
    if (network is None) == (name in _OF_NETWORK):
        needed = "a network, got None" if network is None else f"None, got a {type(network).__name__}"
        raise ValueError(f"network: for the energy {name!r} expected {needed}")
    if network is not None:
        return _OF_NETWORK[name](network)
    size = {} if ndim == 2 else {"ndim": ndim, "kernel_size": _SIDE_IN_VOLUMES}
    return _OF_CHANNELS[name](n_channels, **size)

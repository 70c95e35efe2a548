"""Networks by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from skinverse.networks._denoisers import DnCNN, GradientStepCNN, UNet
from skinverse.networks._local import LocalCNN
from skinverse.networks._orthogonal import LipschitzCNN

_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dncnn": (DnCNN, {}),
    "dncnn_c4": (DnCNN, {"group": "C4"}),
    "dncnn_d4": (DnCNN, {"group": "D4"}),
    "unet": (UNet, {}),
    "gradient_step": (GradientStepCNN, {}),
    "gradient_step_c4": (GradientStepCNN, {"group": "C4"}),
    "gradient_step_d4": (GradientStepCNN, {"group": "D4"}),
    "local": (LocalCNN, {}),
    "lipschitz": (LipschitzCNN, {}),
}

# Filters of 3 x 3 x 3 voxels have as many weights as those of 5 x 5 pixels.
_IN_VOLUMES: dict[Any, dict[str, Any]] = {GradientStepCNN: {"kernel_size": 3}}
# The networks that volumes can have; orthogonal convolutions are made for planes.
_OF_VOLUMES = tuple(name for name in _KINDS if name != "lipschitz")


def make_network(name: str, n_channels: int = 1, ndim: int = 2) -> nn.Module:
    """Make an untrained network by its name.

    Parameters
    ----------
    name : str
        ``"dncnn"``, ``"unet"`` or ``"gradient_step"``, from images to images; the first and the last also as
        ``"..._c4"`` and ``"..._d4"``, which commute with quarter turns, and with flips; ``"local"`` and
        ``"lipschitz"``, from images to one channel.
    n_channels : int, default=1
        Channels of the images.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Returns
    -------
    nn.Module
        The untrained network.

    Raises
    ------
    ValueError
        If the name is unknown, or the network is one of images of two axes only.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import make_network
    >>> make_network("dncnn_d4")(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """
    if name not in _KINDS:
        raise ValueError(f"name: expected one of {list(_KINDS)}, got {name!r}")
    kind, settings = _KINDS[name]
    if ndim not in (2, 3) or (ndim == 3 and name not in _OF_VOLUMES):
        raise ValueError(
            f"name: {name!r} is a network of images of 2 spatial axes, got {ndim}: channel_axis says which "
            f"axis of an image holds channels, and volumes have {list(_OF_VOLUMES)}"
        )
    in_volumes = {} if ndim == 2 else {"ndim": ndim, **_IN_VOLUMES.get(kind, {})}
    network: nn.Module = kind(n_channels, **settings, **in_volumes)
    return network


def lipschitz_constant(network: str | nn.Module) -> float | None:
    """Lipschitz constant that is proven for all weights; None where there is none.

    Parameters
    ----------
    network : str or nn.Module
        A network, or the name of one.

    Returns
    -------
    float or None
        Its attribute ``lipschitz``.
    """
    owner: Any = network if isinstance(network, nn.Module) else _KINDS[network][0]
    known: float | None = getattr(owner, "lipschitz", None)
    return known

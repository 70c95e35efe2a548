"""A residual network by name or as given, in the unit of the images that it learned."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from skinverse.functionals import as_channels, from_channels
from skinverse.networks import DnCNN, UNet

NETWORKS: dict[str, Any] = {
    "unet": UNet,
    "dncnn": DnCNN,
    "dncnn_c4": lambda n_channels: DnCNN(n_channels, group="C4"),
    "dncnn_d4": lambda n_channels: DnCNN(n_channels, group="D4"),
}


# Sides that a network may ask for: multiples of these.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


def check_network(network: Any) -> None:
    """Refuse what is neither a module nor a name."""
    if not isinstance(network, nn.Module) and network not in NETWORKS:
        raise ValueError(f"network: expected a module or one of {list(NETWORKS)}, got {network!r}")


class Residual(nn.Module):
    """A network in the unit of the images, which is 0 until it is trained."""

    unit: Tensor

    def __init__(self, network: str | nn.Module, n_channels: int) -> None:
        super().__init__()
        given = isinstance(network, nn.Module)
        self.network: Any = copy.deepcopy(network) if given else NETWORKS[str(network)](n_channels)
        self.n_channels = n_channels
        self.register_buffer("unit", torch.zeros(()))
        self._taken: dict[tuple[int, int], tuple[int, int]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Channels to channels; a network of a single channel takes many one by one."""
        if self.n_channels not in (1, x.shape[1]):
            raise ValueError(
                f"the network was trained on images of {self.n_channels} channels (a complex one counts "
                f"twice), got {x.shape[1]}"
            )
        unit, planes = self.unit.clamp_min(1e-30), x.reshape(-1, self.n_channels, *x.shape[-2:])
        return (unit * self._whole(planes / unit)).reshape(x.shape)

    def _whole(self, x: Tensor) -> Tensor:
        """What the network makes of images, continued periodically to a size that it takes, and cut again."""
        height, width = x.shape[-2:]
        if (height, width) not in self._taken:
            self._taken[height, width] = self._smallest(x[:1])
        rows, columns = (
            torch.arange(longer, device=x.device) % n
            for longer, n in zip(self._taken[height, width], (height, width), strict=True)
        )
        continued = x if self._taken[height, width] == (height, width) else x[..., rows, :][..., columns]
        found: Tensor = self.network(continued)
        return found[..., :height, :width]

    def _smallest(self, x: Tensor) -> tuple[int, int]:
        """The least size from that of the image that the network takes to the same size.

        Raises
        ------
        ValueError
            If there is none.
        """
        reason, network = "", copy.deepcopy(self.network).eval()  # a look leaves no trace
        for multiple in _MULTIPLES:
            rows, columns = (math.ceil(n / multiple) * multiple for n in x.shape[-2:])
            probe = x.new_zeros(*x.shape[:2], rows, columns)
            try:
                with torch.no_grad():
                    shape = tuple(network(probe).shape)
            except (RuntimeError, ValueError) as error:
                reason = str(error)
                continue
            if shape == tuple(probe.shape):
                return rows, columns
            reason = f"it makes {shape} of {tuple(probe.shape)}"
        raise ValueError(
            "network: expected a module from (images, channels, height, width) to the same shape, at least "
            f"where the sides are multiples of {_MULTIPLES[-1]}: {reason}"
        )

    def improved(self, x: Tensor) -> Tensor:
        """Images of any kind, without derivatives."""
        with torch.no_grad():
            return from_channels(self(as_channels(x)), x)

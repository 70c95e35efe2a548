"""A residual network by name or as given, for images of every size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skinverse._defaults import copy_module
from skinverse._parameters import OneOf
from skinverse._tensors import planes_for
from skinverse.networks import make_network

# All of these take images of every size.
NETWORKS = OneOf("unet", "dncnn", "dncnn_c4", "dncnn_d4")

# Sides that a user's network may ask for: multiples of one of these.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


class Residual(nn.Module):
    """A network for images of every size."""

    def __init__(self, network: str | nn.Module, n_channels: int, n_axes: int = 2) -> None:
        super().__init__()
        self.takes_every_size = isinstance(network, str)
        self.network: nn.Module = (
            make_network(network, n_channels, n_axes) if isinstance(network, str) else copy_module(network)
        )
        self.n_channels = n_channels
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Channels to channels; a network of a single channel takes many one by one."""
        return self._continued(planes_for(x, self.n_channels, "the network", 0)).reshape(x.shape)

    def _continued(self, x: Tensor) -> Tensor:
        """What the network makes of images, mirrored to a size that it takes, and cut again."""
        size = tuple(x.shape[2:])
        if size not in self._sizes:
            self._sizes[size] = size if self.takes_every_size else self._accepted(x[:1])
        for axis, n in enumerate(self._sizes[size], 2):
            x = _mirrored_to(x, n, axis) if n != x.shape[axis] else x
        output: Tensor = self.network(x)
        for axis, n in enumerate(size, 2):
            output = output.narrow(axis, 0, n)
        return output

    def _accepted(self, x: Tensor) -> tuple[int, ...]:
        """The least size, from that of the image, that the network takes to the same size.

        A copy is asked: the network itself must not notice.

        Raises
        ------
        ValueError
            If there is none.
        """
        network, reason = copy_module(self.network).eval(), ""
        cause: Exception | None = None
        for multiple in _MULTIPLES:
            size = tuple(math.ceil(n / multiple) * multiple for n in x.shape[2:])
            probe = x.new_zeros(*x.shape[:2], *size)
            try:
                with torch.no_grad():
                    shape = tuple(network(probe).shape)
            except (RuntimeError, ValueError) as error:
                reason, cause = str(error), error
                continue
            if shape == tuple(probe.shape):
                return size
            reason, cause = f"it makes {shape} of {tuple(probe.shape)}", None
        raise ValueError(
            "network: expected a module from (images, channels, *space) to the same shape, at least "
            f"where the sides are multiples of {_MULTIPLES[-1]}: {reason}"
        ) from cause


def _mirrored_to(x: Tensor, n: int, axis: int) -> Tensor:
    """The first ``n`` pixels along an axis of the image continued by its mirror images."""
    size = x.shape[axis]
    i = torch.arange(n, device=x.device) % (2 * size)
    return x.index_select(axis, torch.minimum(i, 2 * size - 1 - i))

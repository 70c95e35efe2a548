"""What networks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

Images = Callable[[Tensor], Tensor]


class Network(nn.Module, ABC):
    """A network, (n, channels, height, width) -> the same, whose kernels are made of its weights first.

    Attributes
    ----------
    lipschitz : float or None
        A constant proven for all weights, None where there is none.
    """

    lipschitz: float | None = None

    @abstractmethod
    def prepared(self) -> Images:
        """The same map with all kernels made, to be called many times; gradients reach the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self.prepared()(x)


def prepared(network: nn.Module) -> Images:
    """Prepare a network for many calls between two steps of its training.

    Parameters
    ----------
    network : nn.Module
        One of ours makes its kernels now instead of at every call; another one is taken as it is.

    Returns
    -------
    callable
        The same map.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import DnCNN, prepared
    >>> prepared(DnCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """
    make: Callable[[], Images] | None = getattr(network, "prepared", None)
    return network if make is None else make()

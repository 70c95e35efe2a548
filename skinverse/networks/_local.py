"""A smooth network of ordinary convolutions."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._filters import CONVOLUTIONS, convolve
from skinverse._tensors import mirror


class LocalCNN(nn.Module):
    """Smooth network of the neighbourhood of each pixel, (n, channels, h, w) -> (n, 1, h, w).

    It consists of 3 x 3 convolutions with SiLU between them; the image is continued by its mirror images. The
    filters of the first layer have zero mean, so that a constant added to the image changes nothing.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=32
        Number of features.
    n_layers : int, default=5
        Number of convolutions; each pixel sees ``2 n_layers + 1`` pixels in each direction.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import LocalCNN
    >>> LocalCNN()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    lipschitz: float | None = None

    def __init__(
        self, n_channels: int = 1, *, n_features: int = 32, n_layers: int = 5, ndim: int = 2
    ) -> None:
        super().__init__()
        self.n_channels = n_channels
        widths = [n_channels, *[n_features] * (n_layers - 1), 1]
        layer = CONVOLUTIONS[ndim]
        self.first = layer(n_channels, widths[1], 3)
        self.rest = nn.ModuleList(layer(a, b, 3) for a, b in pairwise(widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight
        centred = weight - weight.mean(tuple(range(2, weight.ndim)), keepdim=True)
        z = convolve(mirror(x, 1 + len(self.rest)), centred, self.first.bias)
        for layer in self.rest:
            z = layer(F.silu(z))
        return z

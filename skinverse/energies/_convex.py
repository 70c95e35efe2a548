"""An energy that is a convex network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skinverse._filters import analyse, convolve
from skinverse._tensors import mirror
from skinverse.energies._base import Energy


class ConvexEnergy(Energy):
    """Input-convex network, ``R(x) = sum_i a^T phi(V z_i + W' x_i)`` with ``z = phi(W x)`` and ``V, a >= 0``.

    The activation ``phi`` is a smooth ReLU, convex and not decreasing; so ``R`` is convex for all weights.

    Parameters
    ----------
    n_channels : int, default=1
        Number of channels of the images.
    n_features : int, default=32
        Number of features in each layer.
    kernel_size : int, default=5
        Side of the filters in pixels, odd.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    References
    ----------
    S. Mukherjee, S. Dittmer, Z. Shumaylov, S. Lunz, O. Oktem and C.-B. Schonlieb, Data-driven convex
    regularizers for inverse problems, ICASSP, 2024.
    B. Amos, L. Xu and J. Z. Kolter, Input convex neural networks, ICML, 2017.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import ConvexEnergy
    >>> ConvexEnergy()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(
        self, n_channels: int = 1, *, n_features: int = 32, kernel_size: int = 5, ndim: int = 2
    ) -> None:
        super().__init__()
        self.n_channels, size = n_channels, [kernel_size] * ndim
        n = math.prod(size)
        self.first = nn.Parameter(torch.randn(n_features, n_channels, *size) / n**0.5)
        self.skip = nn.Parameter(torch.randn(n_features, n_channels, *size) / n**0.5)
        self.log_inner = nn.Parameter(
            torch.randn(n_features, n_features, *size) / 10 - math.log(n_features * n)
        )
        self.log_outer = nn.Parameter(torch.zeros(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.log_width = nn.Parameter(torch.tensor(math.log(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        centred = [w - w.mean(axes, keepdim=True) for w in (self.first, self.skip)]
        around = self.first.shape[-1] // 2
        z = self._activation(convolve(mirror(x, 2 * around), centred[0]))
        z = convolve(z, self.log_inner.exp(), self.bias)
        z = self._activation(z + analyse(x, centred[1]))
        return z.sum(axes) @ self.log_outer.exp()

    def weak_convexity(self) -> float:
        return 0.0

    def _activation(self, t: Tensor) -> Tensor:
        """Smooth ReLU ``phi``: 0 below 0, ``t^2 / 2w`` up to the width ``w``, ``t - w/2`` above."""
        width = self.log_width.exp()
        c = (t / width).clamp(0, 1)
        return c * (t - c * width / 2)

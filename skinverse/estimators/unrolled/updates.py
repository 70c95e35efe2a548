"""The small convolutional network that computes one update."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._filters import CONVOLUTIONS


class Update(nn.Module):
    """Three convolutions with PReLU, (n, n_in, *space) to (n, n_out, *space).

    They see one pixel on each side, or none along an axis where the kernel has a size of 1. The last one
    starts at zero: untrained iterations change nothing.
    """

    def __init__(self, n_in: int, n_out: int, n_features: int, kernel: tuple[int, ...] = (3, 3)) -> None:
        super().__init__()
        sizes, padding = [n_in, n_features, n_features, n_out], [k // 2 for k in kernel]
        self.layers = nn.ModuleList(
            # With one pixel of the mirror image beyond the border.
            CONVOLUTIONS[len(kernel)](a, b, kernel, padding=padding, padding_mode="replicate")
            for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.slopes = nn.ParameterList(torch.zeros(n_features) for _ in range(2))
        for layer in self.layers.children():
            nn.init.xavier_uniform_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.zeros_(self.layers[-1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """The update."""
        first, second, last = self.layers
        # The faster order for few channels.
        x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        x = F.prelu(first(x), self.slopes[0])
        return last(F.prelu(second(x), self.slopes[1]))

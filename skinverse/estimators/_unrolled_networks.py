"""The networks of learned gradient descent and learned primal-dual."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse.estimators._iterations import Scaled, Unrolled


class Update(nn.Module):
    """Three 3 x 3 convolutions with PReLU, (n, n_in, height, width) to (n, n_out, height, width)."""

    def __init__(self, n_in: int, n_out: int, n_features: int) -> None:
        super().__init__()
        sizes = [n_in, n_features, n_features, n_out]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.slopes = nn.ParameterList(torch.zeros(n_features) for _ in range(2))
        for layer in self.layers.children():
            nn.init.xavier_uniform_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.zeros_(self.layers[-1].get_parameter("weight"))  # untrained iterations change nothing

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        x = x.contiguous(memory_format=torch.channels_last)  # the faster order for few channels
        x = F.prelu(first(x), self.slopes[0])
        return last(F.prelu(second(x), self.slopes[1]))


class GradientUnrolled(Unrolled):
    """``x, s <- x + U(x, A^*(A x - y), -Laplacian x, s)`` with memory ``s >= 0``."""

    def __init__(
        self, n_channels: tuple[int, int], n_iterations: int, n_features: int, n_memory: int, *, shared: bool
    ) -> None:
        super().__init__(n_channels, n_iterations)
        c = n_channels[0]
        n_updates = 1 if shared else n_iterations
        self.n_memory = n_memory
        self.updates = nn.ModuleList(
            Update(3 * c + n_memory, c + n_memory, n_features) for _ in range(n_updates)
        )

    def iterates(self, problem: Scaled) -> Iterator[Tensor]:
        x = problem.start
        s = x.new_zeros(len(x), self.n_memory, *x.shape[-2:])
        c = x.shape[1]
        for k in range(self.n_iterations):
            gradient = problem.adjoint(problem.forward(x) - problem.data)
            change = self.updates[k % len(self.updates)](torch.cat([x, gradient, rough(x), s], 1))
            x, s = x + change[:, :c], F.relu(change[:, c:])
            yield x


class PrimalDualUnrolled(Unrolled):
    """``h <- h + D(h, A f_1, y)`` and ``f <- f + P(f, A^* h_0)`` for several images ``f`` and data ``h``."""

    def __init__(
        self, n_channels: tuple[int, int], n_iterations: int, n_features: int, n_memory: int, *, shared: bool
    ) -> None:
        super().__init__(n_channels, n_iterations)
        c, d = n_channels
        n_updates = 1 if shared else n_iterations
        self.n_memory = n_memory
        self.dual = nn.ModuleList(
            Update((n_memory + 2) * d, n_memory * d, n_features) for _ in range(n_updates)
        )
        self.primal = nn.ModuleList(
            Update((n_memory + 1) * c, n_memory * c, n_features) for _ in range(n_updates)
        )

    def iterates(self, problem: Scaled) -> Iterator[Tensor]:
        y, c, d = problem.data, *self.n_channels
        f = problem.start.repeat(1, self.n_memory, 1, 1)
        h = torch.zeros_like(y).repeat(1, self.n_memory, 1, 1)
        second = slice(c, 2 * c) if self.n_memory > 1 else slice(0, c)
        for k in range(self.n_iterations):
            D, P = self.dual[k % len(self.dual)], self.primal[k % len(self.primal)]
            h = h + D(torch.cat([h, problem.forward(f[:, second]), y], 1))
            f = f + P(torch.cat([f, problem.adjoint(h[:, :d])], 1))
            yield f[:, :c]


def rough(x: Tensor) -> Tensor:
    """Minus the Laplacian, zero across the borders: the gradient of ``1/2 ||grad x||^2``."""
    found = torch.zeros_like(x)
    for axis in (-2, -1):
        step = x.diff(dim=axis)
        n = x.shape[axis]
        found.narrow(axis, 0, n - 1).sub_(step)
        found.narrow(axis, 1, n - 1).add_(step)
    return found

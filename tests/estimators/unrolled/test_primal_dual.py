"""Learned primal-dual: its network is the published one."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

from skinverse import LearnedPrimalDual, Trainer
from skinverse.operators import as_torch, parallel_beam

# Learns next to nothing, but finds unit and level.
IDLE = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.0)


def test_it_has_as_many_weights_as_published() -> None:
    X = np.random.default_rng(0).normal(size=(2, 4, 4))
    network = LearnedPrimalDual(trainer=IDLE).fit(X, X).module_
    assert sum(p.numel() for p in network.parameters()) == 253_220


class Chosen(nn.Module):
    """One channel of the input, times a number for each channel of the output."""

    def __init__(self, channel: int, *factors: float) -> None:
        super().__init__()
        self.channel, self.factors = channel, factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([factor * x[:, self.channel] for factor in self.factors], 1)


def test_data_and_images_are_updated_in_turn() -> None:
    """With networks that choose one input, two iterations can be written down."""
    operator = parallel_beam((5, 4), np.arange(3), 7, dtype="float64")
    A, norm = as_torch(operator), as_torch(operator).norm()
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(2, 5, 4))), torch.from_numpy(rng.normal(size=(2, 3, 7)))
    model = LearnedPrimalDual(operator, n_iterations=2, n_states=2, n_features=1, trainer=IDLE)
    network = model.fit(x.numpy(), y.numpy()).module_.double()
    # The inputs are h_0, h_1, A f_1 and y, then f_0, f_1 and A^* h_0.
    network.dual = nn.ModuleList([Chosen(2, 0.5, 5.0), Chosen(3, -2.0, 7.0)])
    network.primal = nn.ModuleList([Chosen(2, 0.3, -0.9), Chosen(1, 0.7, 11.0)])
    h_0 = 0.5 * A(x) / norm
    f_0, f_1 = (x + factor * A.adjoint(h_0) / norm for factor in (0.3, -0.9))
    first, second = network.stages(A, y, x)
    assert_close(first, f_0)
    assert_close(second, f_0 + 0.7 * f_1)
    # In the second iteration again, with A f_1 and A^* h_0 as inputs.
    network.dual[1], network.primal[1] = Chosen(2, -2.0, 7.0), Chosen(2, 0.7, 11.0)
    h_0 = h_0 - 2.0 * A(f_1) / norm
    assert_close(network(A, y, x), f_0 + 0.7 * A.adjoint(h_0) / norm)
    network.dual[1] = Chosen(3, -2.0, 7.0)
    assert_close(network(A, y, x), f_0 + 0.7 * A.adjoint(0.5 * A(x) / norm - 2.0 * y / norm) / norm)

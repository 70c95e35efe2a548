"""Learned gradient descent: what its network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor, nn
from torch.testing import assert_close

from skinverse import LearnedGradientDescent, Trainer
from skinverse.estimators.unrolled.updates import Update
from skinverse.operators import as_torch, parallel_beam

# Learns next to nothing, but finds unit and level.
IDLE = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Weighted(nn.Module):
    """A sum of the channels of the input as the image's update, and the first one as that of the states."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.einsum("c,ncij->nij", self.weights, x)[:, None], x[:, :1]], 1)


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (1, 1)])
def test_the_network_sees_image_gradient_roughness_and_states(size: tuple[int, int]) -> None:
    operator = parallel_beam(size, np.arange(3), 9, dtype="float64")
    A, norm = as_torch(operator), as_torch(operator).norm()
    x, y = random(2, *size), random(2, 3, 9, seed=1)
    model = LearnedGradientDescent(operator, n_iterations=2, n_states=1, n_features=1, trainer=IDLE)
    network = model.fit(x.numpy(), y.numpy()).module_.double()
    network.updates = nn.ModuleList([Weighted(0.1, 0.2, 0.3, 0.4)])

    def energy(x: Tensor) -> Tensor:
        """What image, gradient and minus Laplacian are the gradient of."""
        rough = sum(x.diff(dim=axis).square().sum() for axis in (-2, -1))
        return 0.05 * x.square().sum() + 0.1 * (A(x) - y).square().sum() / norm**2 + 0.15 * rough

    first, second = network.stages(A, y, x)
    assert_close(first, x + torch.func.grad(energy)(x))
    assert_close(second, first + torch.func.grad(energy)(first) + 0.4 * x.clamp_min(0))


def test_an_update_of_zeros_is_zero() -> None:
    assert_array_equal(Update(3, 2, 4)(torch.zeros(1, 3, 5, 5)).detach().numpy(), np.zeros((1, 2, 5, 5)))


def test_an_update_sees_mirror_images_beyond_the_border() -> None:
    """So that of a constant is constant: beyond the border are no zeros, which would make an edge."""
    update = Update(3, 2, 4).double()
    for p in update.parameters():
        p.data = random(*p.shape)
    assert update(random(1, 3, 5, 6)).std() > 0.1
    constant = update(random(1, 3, 1, 1).expand(-1, -1, 5, 6))
    assert_close(constant, constant[..., :1, :1].expand_as(constant))

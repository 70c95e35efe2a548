"""Learned primal-dual: its network is the published one, and sees neighbours where data have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pylops.signalprocessing import FFT2D
from torch import nn
from torch.testing import assert_close

import skinverse
from skinverse import LearnedPrimalDual, Trainer
from skinverse.operators import as_torch, fourier_sampling, inpainting, parallel_beam

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


MASK = np.random.default_rng(0).random((6, 8)) < 0.5
COILS = np.random.default_rng(1).normal(size=(3, 6, 8)) + 1j
OPERATORS = {
    "sinogram": (parallel_beam((6, 8), np.arange(5), 11), (3, 3)),
    "image": (pylops.Identity((6, 8)), (3, 3)),
    "weighted image": (pylops.Diagonal(np.ones((6, 8))), (3, 3)),
    "spectrum": (FFT2D((6, 8)), (3, 3)),
    "signal": (pylops.Identity(9), (1, 3)),
    "pixels that are left": (inpainting(MASK), (1, 1)),
    "samples": (fourier_sampling(MASK), (3, 3)),
    "samples of coils": (fourier_sampling(MASK, coil_maps=COILS), (3, 3)),
    "samples in a list": (
        pylops.Restriction(48, np.flatnonzero(MASK), dtype=complex) @ fourier_sampling(MASK),
        (1, 1),
    ),
    "some views": (
        pylops.Restriction((5, 11), [0, 3, 4], axis=0) @ parallel_beam((6, 8), np.arange(5), 11),
        (1, 3),
    ),
}


def small(
    operator: pylops.LinearOperator, trainer: Trainer = IDLE
) -> tuple[LearnedPrimalDual, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *operator.dims))
    x = x + 1j * rng.normal(size=x.shape) if np.iscomplexobj(np.ones(1, operator.dtype)) else x
    y = np.stack([operator @ one for one in x])
    model = LearnedPrimalDual(operator, n_iterations=2, n_states=2, n_features=3, trainer=trainer)
    return model.fit(x, y), x, y


@pytest.mark.parametrize("name", OPERATORS)
def test_networks_see_neighbours_where_data_have_them(name: str, tmp_path: Path) -> None:
    operator, expected = OPERATORS[name]
    model, _, y = small(operator, Trainer(max_epochs=1))
    assert {layer.kernel_size for D in model.module_.dual for layer in D.layers} == {expected}
    assert {layer.kernel_size for P in model.module_.primal for layer in P.layers} == {(3, 3)}
    model.save(tmp_path / "model")
    assert_array_equal(skinverse.load(tmp_path / "model").predict(y), model.predict(y))


@pytest.mark.parametrize("name", ["pixels that are left", "samples in a list"])
def test_a_list_has_no_order(name: str) -> None:
    operator, _ = OPERATORS[name]
    model, _, y = small(operator, Trainer(max_epochs=5, lr=1e-2))
    order = np.random.default_rng(2).permutation(y.shape[-1])
    other = pylops.Restriction(operator.dimsd, order, axis=-1, dtype=operator.dtype) @ operator
    expected = model.predict(y)
    assert_allclose(model.set_params(operator=other).predict(y[..., order]), expected, rtol=1e-3, atol=1e-4)


def test_data_without_neighbours_are_refused_by_networks_that_see_them() -> None:
    model, x, _ = small(OPERATORS["image"][0])
    inpaint = inpainting(np.ones((6, 8), bool))
    with pytest.raises(ValueError, match=r"expected data that have them, got \(False, False\)"):
        model.set_params(operator=inpaint).predict(np.stack([inpaint @ one for one in x]))

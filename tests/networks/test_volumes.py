"""Networks, energies and filters of volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from skinverse._filters import analyse, mirrored_norm, synthesise
from skinverse.energies import SmoothEnergy, make_energy
from skinverse.networks import make_network
from skinverse.training import random_patches

NETWORKS = ["dncnn", "dncnn_c4", "dncnn_d4", "unet", "gradient_step", "gradient_step_d4", "local"]
ENERGIES = ["ridge", "convex_ridge", "convex"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(make: Any, name: str, n_channels: int = 1, ndim: int = 3) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(name, n_channels, ndim=ndim).double()


def embedded(flat: nn.Module, deep: nn.Module) -> nn.Module:
    """The network of volumes whose kernels have the weights of another one in their middle slice."""
    weights = flat.state_dict()
    for name, own in deep.state_dict().items():
        if own.ndim == weights[name].ndim:
            own.copy_(weights[name])
        else:
            own.zero_()[..., own.shape[-3] // 2, :, :] = weights[name]
    return deep


@pytest.mark.parametrize("name", ["dncnn", "dncnn_d4"])
def test_kernels_of_one_slice_make_a_network_of_slices(name: str) -> None:
    flat = made(make_network, name, 2, ndim=2)
    deep = embedded(flat, made(make_network, name, 2))
    x = draw(2, 2, 3, 7, 6)
    slices = torch.stack([flat(x[:, :, i]) for i in range(3)], 2)
    assert_close(deep(x), slices)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(5, 6, 7), (1, 4, 1)])
def test_networks_take_volumes_of_all_sizes_and_see_all_three_axes(name: str, size: tuple[int, ...]) -> None:
    network, x = made(make_network, name, 2), draw(2, 2, *size).requires_grad_()
    y = network(x)
    assert y.shape == (2, 1 if name == "local" else 2, *size)
    (seen,) = torch.autograd.grad(y[0, 0, 0, 0, 0], x)
    for axis in range(2, 5):
        if x.shape[axis] > 1:
            assert seen[0].select(axis - 1, 1).abs().max() > 0
    assert not seen[1].any()


@pytest.mark.parametrize("name", ["dncnn_d4", "gradient_step_d4"])
def test_groups_turn_and_flip_the_plane_of_the_last_two_axes(name: str) -> None:
    network, x = made(make_network, name), draw(1, 1, 3, 6, 5)
    for turned in (lambda z: z.rot90(1, (-2, -1)), lambda z: z.flip(-1)):
        assert_close(network(turned(x)), turned(network(x)))


def test_the_local_network_does_not_see_constants() -> None:
    network, x = made(make_network, "local"), draw(1, 1, 3, 6, 5)
    assert_close(network(x + 7), network(x))


def test_networks_of_planes_are_refused() -> None:
    with pytest.raises(
        ValueError, match="'lipschitz' is a network of images of 2 spatial axes, got 3: channel_axis"
    ):
        make_network("lipschitz", 1, 3)
    with pytest.raises(ValueError, match="got 4: channel_axis"):
        make_network("dncnn", 1, 4)


def test_the_gradient_step_network_of_volumes_is_nonexpansive() -> None:
    network, x = made(make_network, "gradient_step", 2), 3 * draw(1, 2, 4, 5, 3)
    jacobian = torch.autograd.functional.jacobian(network, x).reshape(x.numel(), -1)
    assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-9


# ---------------------------------------------------------------------- filters
def test_analysis_is_correlation_with_mirrored_borders() -> None:
    x, filters = draw(2, 2, 4, 6, 3), draw(3, 2, 5, 5, 5, seed=1)
    expected = [
        [
            sum(scipy.ndimage.correlate(c, f, mode="reflect") for c, f in zip(image, bank, strict=True))
            for bank in filters.numpy()
        ]
        for image in x.numpy()
    ]
    assert_close(analyse(x, filters), torch.tensor(np.array(expected)))


def test_synthesis_is_the_adjoint_and_both_are_differentiable_twice() -> None:
    x, filters, u = draw(1, 2, 3, 4, 2), draw(2, 2, 3, 3, 3, seed=1), draw(1, 2, 3, 4, 2, seed=2)
    assert_close((analyse(x, filters) * u).sum(), (x * synthesise(u, filters)).sum())
    for function, z in ((analyse, x), (synthesise, u)):
        inputs = z.requires_grad_(), filters.requires_grad_()
        with torch.random.fork_rng():
            assert gradcheck(function, inputs)
            assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("n_filters", [1, 6])
def test_the_norm_is_bounded(n_channels: int, n_filters: int) -> None:
    filters = draw(n_filters, n_channels, 3, 3, 3)
    basis = torch.eye(n_channels * 60, dtype=torch.float64).reshape(-1, n_channels, 4, 3, 5)
    assert torch.linalg.matrix_norm(analyse(basis, filters).flatten(1), 2) <= mirrored_norm(filters)


def test_the_bound_is_tight_for_even_filters() -> None:
    box = torch.ones(1, 1, 3, 3, 3, dtype=torch.float64) / 27
    assert 1 <= float(mirrored_norm(box)) < 1.13


# ---------------------------------------------------------------------- energies
@pytest.mark.parametrize("name", ENERGIES)
def test_gradients_of_energies_are_those_of_their_values(name: str) -> None:
    energy, x = made(make_energy, name, 2), draw(2, 2, 3, 5, 4).requires_grad_()
    value, gradient = energy.value_and_grad(x)
    assert_close(value, energy(x))
    assert_close(gradient, torch.autograd.grad(energy(x).sum(), x)[0])
    assert_close(energy(torch.full_like(x, 3)), energy(torch.zeros_like(x)))


@pytest.mark.parametrize("name", ["convex_ridge", "convex"])
def test_convex_energies_of_volumes_are_convex(name: str) -> None:
    energy, x, y = made(make_energy, name), draw(3, 1, 4, 3, 5), draw(3, 1, 4, 3, 5, seed=1)
    assert (energy((x + y) / 2) <= (energy(x) + energy(y)) / 2 + 1e-9).all()


def test_curvature_of_the_ridge_energy_is_bounded() -> None:
    energy, x = SmoothEnergy(made(make_energy, "ridge"), beta=1.5), 0.3 * draw(1, 1, 3, 4, 2)
    hessian = torch.autograd.functional.hessian(lambda z: energy(z).sum(), x).reshape(24, 24)
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert eigenvalues.min() >= -0.5 - 1e-6
    assert eigenvalues.max() <= 2.5 + 1e-6


# ---------------------------------------------------------------------- patches
def test_patches_of_volumes_are_pieces_of_them_in_all_orientations() -> None:
    x = torch.arange(4 * 5 * 6.0).reshape(1, 1, 4, 5, 6).expand(200, 2, 4, 5, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        patches = random_patches(x, 3)
    assert patches.shape == (200, 2, 3, 3, 3)
    assert_close(patches[:, 0], patches[:, 1])
    steps = {int(patches[i, 0].diff(dim=axis).unique().item()) for i in range(200) for axis in range(3)}
    assert steps <= {-30, -6, -1, 1, 6, 30} and {-30, 30} <= steps
    assert patches[:, 0].flatten(1).amin(1).unique().numel() > 10

"""Networks: what holds by construction holds for every weight, and is measured on dense matrices."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import jacobian, jvp, vjp
from torch.testing import assert_close

from skinverse.networks import AOLConv2d, LipschitzCNN, LocalCNN, OrthogonalConv2d, SmoothMaxMin

SIZES = ((1, 1), (2, 3), (5, 4), (7, 8))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module in float64, every parameter drawn, biases included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().double()
        for p in module.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return module


def wild(module: nn.Module, seed: int, scales: list[float]) -> nn.Module:
    """Parameters drawn anew, each with a scale of its own."""
    for i, p in enumerate(module.parameters()):
        p.data = scales[i % len(scales)] * draw(*p.shape, seed=seed + i)
    return module


def matrix(f: Callable[[Tensor], Tensor], n_channels: int, size: tuple[int, int]) -> Tensor:
    n = n_channels * size[0] * size[1]
    return f(torch.eye(n, dtype=torch.float64).reshape(n, n_channels, *size)).detach().flatten(1).mT


def jacobian_norm(f: Callable[[Tensor], Tensor], x: Tensor, *, n_steps: int = 20) -> float:
    """Largest singular value of the Jacobian at ``x`` by power iteration, from below."""
    v = draw(*x.shape, seed=99)
    largest = 0.0
    for _ in range(n_steps):
        push = jvp(f, x, v / v.norm())[1]
        largest = max(largest, push.norm().item())
        v = vjp(f, x, push)[1]
        if not v.any():
            break
    return largest


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("n_features", [3, 4])
@pytest.mark.parametrize("size", SIZES)
def test_orthogonal_convolutions_are_orthogonal(
    kernel_size: int, n_features: int, size: tuple[int, int]
) -> None:
    layer = made(lambda: OrthogonalConv2d(n_features, kernel_size=kernel_size))
    eye = torch.eye(n_features * size[0] * size[1], dtype=torch.float64)
    for seed, scale in enumerate([0.0, 1e-3, 1.0, 1e3]):
        q = matrix(wild(layer, seed, [scale]), n_features, size)
        assert_close(q @ q.mT, eye, rtol=0, atol=1e-12)
        assert_close(q.mT @ q, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n_out", [1, 5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_almost_orthogonal_convolutions_enlarge_no_norm(
    scale: float, n_out: int, size: tuple[int, int]
) -> None:
    layer = wild(made(lambda: AOLConv2d(2, n_out)), 0, [scale])
    at_zero = layer(torch.zeros(1, 2, *size, dtype=torch.float64))
    norm = torch.linalg.matrix_norm(matrix(lambda x: layer(x) - at_zero, 2, size), 2)
    assert 0.05 < norm <= 1 + 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_no_weights_make_almost_orthogonal_convolutions_enlarge_a_norm(size: tuple[int, int]) -> None:
    """Gradient ascent in the weights finds nothing; with the kernel of the plane it would."""
    layer = made(lambda: AOLConv2d(1, 2))
    norm = torch.zeros(())
    for _ in range(60):
        n = size[0] * size[1]
        basis = torch.eye(n, dtype=torch.float64).reshape(n, 1, *size)
        norm = torch.linalg.matrix_norm((layer(basis) - layer(0 * basis)).flatten(1), 2)
        assert norm <= 1 + 1e-12
        (uphill,) = torch.autograd.grad(norm, layer.weight)
        layer.weight.data += 0.1 * layer.weight.norm() * uphill / uphill.norm().clamp_min(1e-12)
    assert norm > 0.8


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_orthogonal_convolutions_use_their_kernel(kernel_size: int) -> None:
    layer = made(lambda: OrthogonalConv2d(4, kernel_size=kernel_size))
    kernel = layer.kernel()
    assert kernel.shape == (4, 4, kernel_size, kernel_size)
    assert (kernel.abs().amax((0, 1)) > 1e-6).all(), "part of the kernel is not used"


@given(
    u=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4),
    step=st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4),
    log_step=st.integers(-6, 0),
    width=st.sampled_from([1e-3, 0.1, 10.0]),
)
def test_sorting_is_1_lipschitz(u: list[float], step: list[float], log_step: int, width: float) -> None:
    sort = SmoothMaxMin(width)
    a = torch.tensor(u, dtype=torch.float64)[None, :, None, None]
    d = 10.0**log_step * torch.tensor(step, dtype=torch.float64)[None, :, None, None]
    assert (sort(a + d) - sort(a)).norm() <= d.norm() * (1 + 1e-12) + 1e-11
    slopes = jacobian(sort, a).reshape(4, 4)
    assert torch.linalg.matrix_norm(slopes, 2) <= 1 + 1e-12


def test_sorting_sorts() -> None:
    x = draw(2, 6, 3, 4)
    a, b = x.chunk(2, 1)
    assert_close(SmoothMaxMin(1e-9)(x), torch.cat([a.maximum(b), a.minimum(b)], 1))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 9999),
    scales=st.lists(st.sampled_from([1e-3, 1e-1, 1.0, 10.0, 1e3]), min_size=3, max_size=5),
    log_image=st.integers(-3, 3),
    n_channels=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([(1, 1), (3, 4), (6, 7)]),
)
def test_lipschitz_networks_are_1_lipschitz(
    seed: int, scales: list[float], log_image: int, n_channels: int, size: tuple[int, int]
) -> None:
    net = wild(made(lambda: LipschitzCNN(n_channels, n_features=4, n_layers=3)), seed, scales)
    assert net.lipschitz == 1
    x = 10.0**log_image * draw(1, n_channels, *size, seed=seed)
    assert jacobian_norm(net, x) <= 1 + 1e-9


@settings(max_examples=10)
@given(seed=st.integers(0, 9999), scales=st.lists(st.sampled_from([1e-3, 1.0, 1e3]), min_size=3, max_size=5))
def test_dense_jacobians_of_lipschitz_networks(seed: int, scales: list[float]) -> None:
    """No singular value can hide here."""
    net = wild(made(lambda: LipschitzCNN(2, n_features=4, n_layers=2)), seed, scales)
    x = draw(1, 2, 4, 3, seed=seed)
    slopes = jacobian(net, x).reshape(12, 24)
    assert torch.linalg.matrix_norm(slopes, 2) <= 1 + 1e-9


def test_power_iteration_finds_the_norm_of_a_matrix() -> None:
    a = draw(6, 5)
    norm = jacobian_norm(lambda x: x @ a.mT, draw(1, 5), n_steps=200)
    assert norm == pytest.approx(torch.linalg.matrix_norm(a, 2).item(), rel=1e-6)


def test_lipschitz_networks_are_not_much_below_1() -> None:
    """From one channel through 16 to one: most is lost to the other channels, and to the mean over flips."""
    net = made(LipschitzCNN)
    assert jacobian_norm(net, 3 * draw(1, 1, 12, 12)) > 0.2


NETWORKS = {
    "local": lambda c: LocalCNN(c, n_features=4, n_layers=4),
    "local, two layers": lambda c: LocalCNN(c, n_features=4, n_layers=2),
    "lipschitz": lambda c: LipschitzCNN(c, n_features=4, n_layers=3),
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 8)])
def test_networks_continue_images_by_their_mirror_images(
    make: Callable[[int], nn.Module], n_channels: int, size: tuple[int, int]
) -> None:
    net, x = made(lambda: make(n_channels)), draw(2, n_channels, *size)
    assert net(x).shape == (2, 1, *size)
    for axis in (2, 3):
        y = x.flip(axis)
        assert_close(net(torch.cat([x, y], axis)), torch.cat([net(x), net(y)], axis), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_opposite_edges_are_no_neighbours(make: Callable[[int], nn.Module]) -> None:
    net, x = made(lambda: make(1)), draw(1, 1, 16, 17)
    changed = x.clone()
    changed[..., -1] += 1
    moved = (net(changed) - net(x)).abs().amax((0, 1, 2))
    assert moved[:8].max() < 1e-12 < moved[-1]


def test_lipschitz_networks_commute_with_flips() -> None:
    net, x = made(lambda: LipschitzCNN(2, n_features=4, n_layers=3)), draw(2, 2, 4, 5)
    for axes in ((2,), (3,), (2, 3)):
        assert_close(net(x.flip(axes)), net(x).flip(axes), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("size", [(2, 3), (6, 7)])
def test_local_networks_see_nothing_in_constants(n_channels: int, size: tuple[int, int]) -> None:
    net = made(lambda: LocalCNN(n_channels, n_features=4, n_layers=3))
    levels = draw(5, n_channels, 1, 1) * torch.tensor([0, 1, -1, 10, 100.0])[:, None, None, None]
    out = net(levels.expand(-1, -1, *size))
    assert_close(out, out[0, 0, 0, 0].expand_as(out), rtol=0, atol=1e-11)
    x = draw(2, n_channels, *size, seed=1)
    assert_close(net(x + 7), net(x), rtol=0, atol=1e-11)
    assert (net(x) - out[0]).abs().max() > 1e-3


@pytest.mark.parametrize("n_layers", [2, 3, 5])
def test_each_pixel_sees_as_far_as_documented(n_layers: int) -> None:
    net = made(lambda: LocalCNN(n_features=4, n_layers=n_layers))
    x = draw(1, 1, 15, 15).requires_grad_()
    (slope,) = torch.autograd.grad(net(x)[0, 0, 7, 7], x)
    rows = slope[0, 0].abs().amax(1).nonzero()[:, 0]
    assert (rows.min().item(), rows.max().item()) == (7 - n_layers, 7 + n_layers)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_travel(make: Callable[[int], nn.Module]) -> None:
    net, other, x = made(lambda: make(2)), made(lambda: make(2), seed=1), draw(2, 2, 6, 5)
    assert (net(x) - other(x)).abs().max() > 1e-6
    other.load_state_dict(net.state_dict())
    assert_close(other(x), net(x), rtol=0, atol=0)
    assert_close(pickle.loads(pickle.dumps(net))(x), net(x), rtol=0, atol=0)


def test_the_constant_of_a_local_network_is_unknown() -> None:
    assert made(LocalCNN).lipschitz is None


def test_more_channels_than_features_are_all_seen() -> None:
    net, x = made(lambda: LipschitzCNN(5, n_features=4, n_layers=2)), draw(1, 5, 4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(net(x).square().sum(), x)
    assert (slope.abs().amax((0, 2, 3)) > 1e-6).all()

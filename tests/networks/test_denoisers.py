"""Denoisers: symmetry, Lipschitz bounds and smoothness hold for every weight and every size of image."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import functional, gradgradcheck
from torch.testing import assert_close

from skinverse.functionals import LeastSquares, TotalVariation
from skinverse.networks import (
    DnCNN,
    GradientStepCNN,
    GroupConv,
    LiftConv,
    ProjectConv,
    UNet,
    prepared,
)
from skinverse.solvers import primal_dual

# Quarter turns, after a flip of the columns or none, the identity first.
GROUPS = {
    "C1": ((0, False),),
    "D1": ((0, False), (0, True)),
    "C2": ((0, False), (2, False)),
    "C4": tuple((turns, False) for turns in range(4)),
    "D4": tuple((turns, flip) for flip in (False, True) for turns in range(4)),
}
ORDER = {group: len(known) for group, known in GROUPS.items()}
groups = st.sampled_from(sorted(GROUPS))
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 9999)
Images = Callable[[Tensor], Tensor]


def transform(x: Tensor, element: tuple[int, bool]) -> Tensor:
    turns, flip = element
    return (x.flip(-1) if flip else x).rot90(turns, (-2, -1))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def weights_are_drawn_apart() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module in float64, every parameter drawn, biases included."""
    torch.manual_seed(seed)
    module = make().double()
    for p in module.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return module


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "dncnn": lambda c: DnCNN(c, n_features=4, n_layers=3),
    "dncnn of D4": lambda c: DnCNN(c, n_features=8, n_layers=3, group="D4"),
    "gradient step": lambda c: GradientStepCNN(c, n_features=4, n_layers=2, kernel_size=3),
    "gradient step of D4": lambda c: GradientStepCNN(c, n_features=8, n_layers=2, group="D4"),
    "unet": lambda c: UNet(c, n_features=2),
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


# --------------------------------------------------------------------------------------------- symmetry
def asymmetry(f: Images, x: Tensor, group: str) -> float:
    """Largest ``||f(g x) - g f(x)||`` over the group, relative to ``||f(x)||``."""
    fx = f(x)
    far = [torch.dist(f(transform(x, g)), transform(fx, g)) for g in GROUPS[group]]
    return float(torch.stack(far).detach().max() / fx.detach().norm())


@pytest.mark.parametrize("kind", [DnCNN, *(partial(GradientStepCNN, kernel_size=k) for k in (1, 3, 5))])
@given(
    group=groups,
    size=sizes,
    n_layers=st.integers(2, 4),
    n_channels=st.integers(1, 3),
    n_fields=st.integers(1, 3),
    seed=seeds,
)
def test_networks_commute_with_their_group(
    kind: Callable[..., nn.Module],
    group: str,
    size: tuple[int, int],
    n_layers: int,
    n_channels: int,
    n_fields: int,
    seed: int,
) -> None:
    """Of one pixel or many, odd, even or not square; what the networks take away does so, too."""
    options = {"n_features": n_fields * ORDER[group], "n_layers": n_layers, "group": group}
    h, x = made(lambda: kind(n_channels, **options), seed), draw(2, n_channels, *size, seed=seed)
    assert (x - h(x)).norm() > 1e-6 * x.norm(), "nothing is taken away"
    for f in (h, lambda x: x - h(x)):
        assert asymmetry(f, x, group) <= 1e-12
    assert asymmetry(h.float(), x.float(), group) <= 1e-5


@pytest.mark.parametrize("kind", [DnCNN, GradientStepCNN])
@pytest.mark.parametrize(("group", "larger"), [("C1", "D1"), ("C1", "C4"), ("C2", "C4"), ("C4", "D4")])
def test_networks_do_not_commute_with_more(kind: type[nn.Module], group: str, larger: str) -> None:
    h, x = made(lambda: kind(n_features=8, n_layers=3, group=group)), draw(1, 1, 7, 8)
    assert asymmetry(lambda x: x - h(x), x, group) <= 1e-12
    assert asymmetry(lambda x: x - h(x), x, larger) > 1e-2


def quotients(group: str) -> Tensor:
    return GroupConv(1, 1, group=group).quotients


def on_fields(z: Tensor, group: str, i: int) -> Tensor:
    """Transform every map and permute the channels of every field."""
    fields = z.unflatten(1, (-1, ORDER[group]))[:, :, quotients(group)[i]]
    return transform(fields, GROUPS[group][i]).flatten(1, 2)


@pytest.mark.parametrize("group", GROUPS)
def test_transformations_are_a_group_and_fields_follow_it(group: str) -> None:
    table, n = quotients(group), ORDER[group]
    x, z = draw(2, 3, 4, 5), draw(2, 2 * n, 4, 5)
    assert torch.equal(table[0], torch.arange(n)), "the identity comes first"
    assert torch.equal(table.sort(0)[0], torch.arange(n)[:, None].expand(n, n))
    assert torch.equal(table.sort(1)[0], torch.arange(n).expand(n, n))
    assert not table.diag().any(), "g^-1 g is the identity"
    for g in range(n):
        for h in range(n):
            product = int((table[g] == h).nonzero())  # g^-1 (g h) = h
            twice = transform(transform(x, GROUPS[group][h]), GROUPS[group][g])
            assert torch.equal(twice, transform(x, GROUPS[group][product]))
            moved = on_fields(on_fields(z, group, h), group, g)
            assert torch.equal(moved, on_fields(z, group, product))
    images = torch.stack([transform(draw(4, 4), g) for g in GROUPS[group]])
    assert len(images.unique(dim=0)) == n, "no transformation appears twice"


@given(
    group=groups,
    kernel_size=st.integers(1, 5),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    n_in=st.integers(1, 3),
    n_out=st.integers(1, 3),
    seed=seeds,
)
def test_layers_commute_with_their_group(
    group: str, kernel_size: int, height: int, width: int, n_in: int, n_out: int, seed: int
) -> None:
    """Images are transformed, fields are transformed and permuted; also with kernels of even size."""

    def on_images(x: Tensor, group: str, i: int) -> Tensor:
        return transform(x, GROUPS[group][i])

    for kind, before, after in (
        (LiftConv, on_images, on_fields),
        (GroupConv, on_fields, on_fields),
        (ProjectConv, on_fields, on_images),
    ):
        layer = made(lambda kind=kind: kind(n_in, n_out, kernel_size=kernel_size, group=group), seed)
        kernel, bias = layer.kernel(), layer.bias()
        z = draw(2, kernel.shape[1], height, width, seed=seed)
        assert kernel.shape[1] == n_in * (ORDER[group] if before is on_fields else 1)
        assert len(kernel) == len(bias) == n_out * (ORDER[group] if after is on_fields else 1)
        out = F.conv2d(z, kernel, bias)
        for i in range(ORDER[group]):
            found = F.conv2d(before(z, group, i), kernel, bias)
            assert torch.dist(found, after(out, group, i)) <= 1e-12 * out.norm()


def test_the_table_of_channels_is_needed() -> None:
    """Turning the maps alone does not commute with a convolution of fields."""
    layer, z = made(lambda: GroupConv(2, 2, group="D4")), draw(1, 16, 6, 6)
    assert asymmetry(lambda z: F.conv2d(z, layer.kernel()), z, "D4") > 0.1


@pytest.mark.parametrize("kind", [GroupConv, LiftConv, ProjectConv])
@pytest.mark.parametrize("kernel_size", [1, 3, 4])
def test_without_a_group_layers_are_ordinary(kind: type[nn.Module], kernel_size: int) -> None:
    layer = made(lambda: kind(3, 2, kernel_size=kernel_size, group="C1"))
    theirs, x = nn.Conv2d(3, 2, kernel_size, dtype=torch.float64), draw(2, 3, 6, 5)
    theirs.weight.data, theirs.bias.data = layer.weight.data.view_as(theirs.weight), layer.offset.data
    assert_close(F.conv2d(x, layer.kernel(), layer.bias()), theirs(x), rtol=0, atol=1e-14)


def test_without_a_group_dncnn_is_a_chain_of_convolutions() -> None:
    h, x = made(lambda: DnCNN(2, n_features=4, n_layers=4)), draw(2, 2, 5, 6)
    z = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="symmetric"))
    for i, layer in enumerate(h.layers):
        conv = nn.Conv2d(z.shape[1], len(layer.kernel()), 3).double()
        conv.weight.data, conv.bias.data = layer.kernel().detach(), layer.bias().detach()
        z = conv(F.silu(z) if i else z)
    assert_close(h(x), x - z, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", [DnCNN, GradientStepCNN])
def test_larger_groups_have_fewer_weights(kind: type[nn.Module]) -> None:
    def count(group: str) -> int:
        return sum(p.numel() for p in kind(n_features=16, n_layers=4, group=group).parameters())

    assert count("D1") == count("C2")
    assert count("C1") > count("C2") > count("C4") > count("D4") > count("C1") / 10
    middle = {group: GroupConv(16 // n, 16 // n, group=group) for group, n in ORDER.items()}
    assert {layer.kernel().shape for layer in middle.values()} == {(16, 16, 3, 3)}
    assert {middle[group].weight.numel() * n for group, n in ORDER.items()} == {16 * 16 * 9}


# ----------------------------------------------------------------------------------------------- bounds
def jacobian_norm(f: Images, x: Tensor, *, n_steps: int = 20) -> float:
    """Largest singular value of the Jacobian at ``x`` by power iteration, from below."""
    v, largest = draw(*x.shape, seed=99), 0.0
    for _ in range(n_steps):
        push = functional.jvp(f, x, v / v.norm())[1]
        largest = max(largest, push.norm().item())
        v = functional.vjp(f, x, push)[1] + 1e-300
    return largest


def matrix(f: Images, x: Tensor) -> Tensor:
    return functional.jacobian(f, x).reshape(x.numel(), x.numel())


def wild(n_layers: int, group: str, n_channels: int, seed: int, scales: list[float]) -> GradientStepCNN:
    """Filters, levels and steps drawn anew, each with a scale of its own."""
    options = {"n_features": 8, "n_layers": n_layers, "kernel_size": 3, "group": group}
    net = made(lambda: GradientStepCNN(n_channels, **options))
    for i, (p, scale) in enumerate(zip((net.filters, net.log_level, net.step), scales, strict=True)):
        p.data = scale * draw(*p.shape, seed=seed + i)
    net.log_level.data.clamp_(-300, 300)  # its exponential is a number
    return net


scales = st.lists(st.sampled_from([1e-3, 1e-1, 1.0, 10.0, 1e3]), min_size=3, max_size=3)


@settings(max_examples=15)
@given(
    seed=seeds,
    scales=scales,
    group=st.sampled_from(["C1", "D4"]),
    log_image=st.integers(-3, 3),
    n_channels=st.integers(1, 3),
    size=st.sampled_from([(1, 1), (3, 4), (8, 7)]),
)
def test_gradient_steps_are_nonexpansive(
    seed: int, scales: list[float], group: str, log_image: int, n_channels: int, size: tuple[int, int]
) -> None:
    net = wild(3, group, n_channels, seed, scales)
    assert net.lipschitz == 1
    x = 10.0**log_image * draw(1, n_channels, *size, seed=seed)
    assert jacobian_norm(net, x) <= 1 + 1e-9


@given(seed=seeds, scales=scales, group=st.sampled_from(["C1", "D4"]), n_channels=st.integers(1, 2))
def test_one_gradient_step_descends_on_a_convex_function(
    seed: int, scales: list[float], group: str, n_channels: int
) -> None:
    """Its Jacobian is ``I - s H`` with ``0 <= s H <= 2``; that of several has no singular value above 1."""
    x = draw(1, n_channels, 4, 3, seed=seed)
    one, many = (matrix(wild(n, group, n_channels, seed, scales), x) for n in (1, 3))
    assert_close(one, one.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(one).abs().max() <= 1 + 1e-12
    assert torch.linalg.matrix_norm(many, 2) <= 1 + 1e-12


@pytest.mark.parametrize("group", ["C1", "D4"])
def test_the_bound_of_gradient_steps_is_almost_reached(group: str) -> None:
    """Steps a little longer would expand: any filters of D4, and without a group shifts, seen in a corner."""
    net, x = wild(1, group, 1, 0, [1.0, 0.0, 0.0]), draw(1, 1, 16, 16)
    if group == "C1":
        net.filters.data.zero_()[..., 0, 0] = 1
    net.log_level.data += 20
    net.step.data += 50
    assert torch.linalg.eigvalsh(matrix(net, x)).min() < -0.9


@pytest.mark.parametrize("level", [-1e3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_steps_take_levels_that_no_number_can_hold(level: float, dtype: torch.dtype) -> None:
    """Nothing is taken away below a level of zero; below an infinite one the step is linear."""
    net, x = wild(1, "C1", 1, 0, [1.0, 0.0, 0.0]).to(dtype), draw(2, 1, 6, 5).to(dtype)
    net.log_level.data += level
    x[1] = 0
    assert torch.isfinite(net(x)).all()
    assert net(x).norm() <= (1 + 1e-6) * x.norm()


# ------------------------------------------------------------------------------------- any of the networks
@every_network
@settings(max_examples=15)
@given(size=sizes, n_channels=st.integers(1, 3), seed=seeds)
def test_images_of_any_size_do_not_feel_their_companions(
    make: Callable[[int], nn.Module], size: tuple[int, int], n_channels: int, seed: int
) -> None:
    h, x = made(lambda: make(n_channels), seed), draw(3, n_channels, *size, seed=seed)
    together = h(x)
    assert together.shape == x.shape
    for i in range(3):
        assert torch.dist(h(x[i : i + 1])[0], together[i]) <= 1e-12 * together[i].norm()
    x[1] = torch.nan
    assert_close(h(x)[[0, 2]], together[[0, 2]], rtol=1e-12, atol=1e-12)
    assert h(x[:0]).shape == (0, n_channels, *size)


@every_network
@pytest.mark.parametrize("size", [(24, 24), (25, 23)])
def test_opposite_edges_are_no_neighbours(make: Callable[[int], nn.Module], size: tuple[int, int]) -> None:
    h, x = made(lambda: make(1)), draw(1, 1, *size)
    changed = x.clone()
    changed[..., -1] += 1
    moved = (h(changed) - h(x)).abs().amax((0, 1, 2))
    assert moved[:2].max() < 1e-12 < moved[-1]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "gradient step"])
def test_images_are_continued_by_their_mirror_images(name: str) -> None:
    """A network that sees the image beside its mirror image makes the same of it; sides are halved twice."""
    h, x = made(lambda: NETWORKS[name](2)), draw(2, 2, 4, 8)
    if name == "unet":  # features are continued at each resolution: they have to be symmetric
        for layer in h.modules():
            if isinstance(layer, nn.Conv2d):
                w = layer.weight.data
                w += w.flip(2)
                w += w.flip(3)
    for axis in (2, 3):
        y = x.flip(axis)
        assert_close(h(torch.cat([x, y], axis)), torch.cat([h(x), h(y)], axis), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_levels", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 2), (8, 8), (17, 3)])
def test_unets_take_any_number_of_levels(n_levels: int, size: tuple[int, int]) -> None:
    h, x = made(lambda: UNet(2, n_features=2, n_levels=n_levels)), draw(1, 2, *size)
    assert h(x).shape == x.shape
    h(x).square().sum().backward()
    assert all(p.grad.any() for p in h.parameters() if p.ndim > 1), "weights that do nothing"


@every_network
def test_networks_are_differentiated_twice(make: Callable[[int], nn.Module]) -> None:
    h, x = made(lambda: make(2)), draw(1, 2, 3, 2).requires_grad_()
    names = [name for name, _ in h.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(h, dict(zip(names, weights, strict=True)), x)

    assert gradgradcheck(call, (x, *h.parameters()), fast_mode=True)


@every_network
def test_networks_travel(make: Callable[[int], nn.Module]) -> None:
    h, other, x = made(lambda: make(2)), made(lambda: make(2), seed=1), draw(2, 2, 6, 5)
    assert torch.dist(h(x), other(x)) > 1e-3
    other.load_state_dict(h.state_dict())
    for again in (other, pickle.loads(pickle.dumps(h)), copy.deepcopy(h)):
        assert torch.equal(again(x), h(x))


@every_network
def test_prepared_networks_are_the_same_map(make: Callable[[int], nn.Module]) -> None:
    h, x = made(lambda: make(2)), draw(2, 2, 5, 4).requires_grad_()
    ready = prepared(h)
    assert torch.equal(ready(x), h(x))
    wanted = [x, *h.parameters()]
    found, expected = (torch.autograd.grad(f(f(x)).square().sum(), wanted) for f in (ready, h))
    for a, b in zip(found, expected, strict=True):
        assert b.any()
        assert torch.dist(a, b) <= 1e-12 * b.norm()


def test_other_modules_are_prepared_already() -> None:
    for module in (nn.Conv2d(1, 1, 3), nn.Identity(), nn.Sequential()):
        assert prepared(module) is module


@pytest.mark.parametrize("kind", [DnCNN, GradientStepCNN])
def test_unknown_groups_are_refused(kind: type[nn.Module]) -> None:
    for make in (kind, *(partial(layer, 1, 1) for layer in (GroupConv, LiftConv, ProjectConv))):
        with pytest.raises(ValueError, match="group: expected one of .*'D4'.*, got 'D3'"):
            make(group="D3")


@pytest.mark.parametrize("kind", [DnCNN, GradientStepCNN])
@pytest.mark.parametrize("width", [0, 4, 12, -8])
def test_widths_that_fit_no_group_are_refused(kind: type[nn.Module], width: int) -> None:
    with pytest.raises(ValueError, match=f"n_features: expected a multiple of 8 .* D4, got {width}"):
        kind(n_features=width, group="D4")


# ------------------------------------------------------------------------------ what it means for a prox
def variation_prox(x: Tensor, isotropic: bool, n: int = 1000) -> Tensor:
    """From a start that is not turned with the image, so that the minimiser alone can commute."""
    f = LeastSquares(None, x) + 0.4 * TotalVariation(isotropic=isotropic)
    return primal_dual(f, 3 * draw(*x.shape, seed=5), max_steps=n, tol=0.0).x


@pytest.mark.parametrize("size", [(4, 5), (6, 6)])
def test_the_prox_of_an_invariant_functional_commutes(size: tuple[int, int]) -> None:
    x, variation = draw(2, *size), TotalVariation(isotropic=False)
    for g in GROUPS["D4"]:
        assert_close(variation(transform(x, g)), variation(x), rtol=1e-13, atol=0)
    assert variation_prox(x, False, 5).dist(variation_prox(x, False)) > 1e-3
    assert asymmetry(lambda x: variation_prox(x, False), x, "D4") <= 1e-10


def test_isotropic_variation_is_not_invariant() -> None:
    """A pixel pairs its differences to the right and downwards: turned, it pairs others.

    So the value itself changes, by a percent for noise and by 41 percent at a diagonal edge, and the prox
    cannot commute with turns and flips.
    """

    def largest_change(x: Tensor) -> Tensor:
        values = torch.cat([TotalVariation()(transform(x, g)) for g in GROUPS["D4"]])
        return values.max() / values.min() - 1

    x = draw(1, 16, 16)
    assert 0.003 < largest_change(x) < 0.05
    assert largest_change(torch.ones(1, 9, 9).tril().double()) > 0.3
    assert asymmetry(lambda x: variation_prox(x, True, 200), x[:, :6, :6], "D4") > 1e-2

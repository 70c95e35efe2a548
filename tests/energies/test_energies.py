"""Learned energies: sums over pixels, with derivatives of every order a training needs and proven moduli."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import grad, gradcheck
from torch.autograd.functional import hessian
from torch.testing import assert_close

from skinverse._filters import analyse
from skinverse.energies import (
    ConvexEnergy,
    Energy,
    GradientStepEnergy,
    ModuleEnergy,
    NetworkEnergy,
    REDEnergy,
    RidgeEnergy,
    SmoothEnergy,
    WeightedEnergy,
    make_energy,
)
from skinverse.functionals import EnergyFunctional
from skinverse.networks import DnCNN, LipschitzCNN, LocalCNN, make_network

SIZE = (5, 6)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class OfAUser(nn.Module):
    """Smooth, and continued by mirror images."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, 3, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh().square().sum((1, 2, 3))[:, None]


MAKERS: dict[str, Callable[[int], Energy]] = {
    "ridge": lambda c: RidgeEnergy(c, n_filters=4, kernel_size=3),
    "convex ridge": lambda c: RidgeEnergy(c, convex=True, n_filters=4, kernel_size=3),
    "convex": lambda c: ConvexEnergy(c, n_features=3, kernel_size=3),
    "local": lambda c: NetworkEnergy(LocalCNN(c, n_features=3, n_layers=3)),
    "lipschitz": lambda c: NetworkEnergy(LipschitzCNN(c, n_features=4, n_layers=2)),
    "module": lambda c: ModuleEnergy(OfAUser(c), c),
    "red": lambda c: REDEnergy(DnCNN(c, n_features=3, n_layers=2)),
    "smooth ridge": lambda c: SmoothEnergy(MAKERS["ridge"](c), alpha=0.2, beta=1.5),
    "weighted ridge": lambda c: WeightedEnergy(MAKERS["ridge"](c), scale=2.0),
    "weighted lipschitz": lambda c: WeightedEnergy(MAKERS["lipschitz"](c), scale=0.5),
}


def made(name: str, n_channels: int = 2, seed: int = 0) -> Energy:
    """The energy in float64, off the symmetries of its start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        energy = MAKERS[name](n_channels).double()
    for i, p in enumerate(energy.parameters()):
        p.data += 0.2 * draw(*p.shape, seed=seed + i)
    return energy


def wild(name: str, seed: int, scale: float, n_channels: int = 1) -> Energy:
    """Weights of any size; those that are logarithms are drawn around that of the size."""
    energy = made(name, n_channels, seed)
    for i, (of, p) in enumerate(energy.named_parameters()):
        size = abs(math.log(scale)) if "log" in of else scale
        p.data = size * draw(*p.shape, seed=seed + i)
    return energy


@pytest.fixture(params=MAKERS)
def energy(request: pytest.FixtureRequest) -> Energy:
    return made(request.param)


@pytest.fixture
def x() -> Tensor:
    """Images whose responses lie on every piece of the potentials."""
    return 0.5 * draw(3, 2, *SIZE, seed=7)


def test_one_number_per_image_whatever_the_companions(energy: Energy, x: Tensor) -> None:
    values, gradients = energy.value_and_grad(x)
    assert values.shape == (3,)
    for i in range(3):
        one = x[i : i + 1].clone()
        assert_close(energy(one), values[i : i + 1], rtol=1e-12, atol=0)
        assert_close(energy.value_and_grad(one)[1], gradients[i : i + 1], rtol=1e-11, atol=1e-13)


def test_value_and_gradient_are_those_of_the_energy(energy: Energy, x: Tensor) -> None:
    value, gradient = energy.value_and_grad(x)
    assert_close(value, energy(x), rtol=1e-13, atol=0)
    x = x.requires_grad_()
    assert_close(gradient, grad(energy(x).sum(), x)[0], rtol=1e-11, atol=1e-13)
    assert gradient.abs().max() > 1e-3


def test_energy_and_gradient_pass_gradcheck(energy: Energy, x: Tensor) -> None:
    x = x[:1].clone().requires_grad_()
    assert gradcheck(energy, x)
    assert gradcheck(lambda x: energy.value_and_grad(x)[1], x, atol=1e-4)


def test_losses_of_the_gradient_are_differentiable_in_every_parameter(energy: Energy, x: Tensor) -> None:
    """What a gradient penalty needs: mixed second derivatives."""
    x = x[:2]

    def loss() -> Tensor:
        value, gradient = energy.value_and_grad(x)
        lengths = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return (lengths - 1).square().sum() + (value * torch.tensor([1.0, -0.5])).sum()

    parameters = list(energy.parameters())
    for p, found in zip(parameters, grad(loss(), parameters), strict=True):
        with torch.no_grad():
            expected = differences(loss, p)
        assert found.norm() > 1e-6
        assert torch.dist(found, expected) <= 1e-6 * expected.norm()


def differences(loss: Callable[[], Tensor], p: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences in every element of a parameter."""
    flat, slopes = p.data.view(-1), []
    for i in range(p.numel()):
        start = flat[i].item()
        flat[i] = start + h
        above = loss()
        flat[i] = start - h
        slopes.append((above - loss()) / (2 * h))
        flat[i] = start
    return torch.stack(slopes).reshape(p.shape)


def test_prepared_energies_are_the_same_and_reach_the_weights(energy: Energy, x: Tensor) -> None:
    ready = energy.prepared()
    for ours, theirs in zip(ready.value_and_grad(x), energy.value_and_grad(x), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)
    assert_close(ready(x), energy(x), rtol=0, atol=0)
    for known in (lambda e: e.n_channels, lambda e: e.weak_convexity(), lambda e: e.lipschitz(9)):
        assert known(ready) == known(energy)
    weights = list(energy.parameters())
    found, expected = (grad(e(x).sum(), weights, materialize_grads=True) for e in (ready, energy))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_filters_of_prepared_ridges_are_made_once(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = made("smooth ridge").prepared()

    def refuse(_: RidgeEnergy) -> Tensor:
        raise AssertionError("the filters were made again")

    monkeypatch.setattr(RidgeEnergy, "normalised", refuse)
    ready(x)
    ready.value_and_grad(x)


def test_gradients_carry_a_graph_exactly_when_enabled(energy: Energy, x: Tensor) -> None:
    value, gradient = energy.value_and_grad(x)
    assert value.requires_grad
    assert gradient.requires_grad
    with torch.no_grad():
        quiet_value, quiet_gradient = energy.value_and_grad(x)
        assert not energy(x).requires_grad
    assert not quiet_value.requires_grad
    assert not quiet_gradient.requires_grad
    assert not x.requires_grad
    assert_close(quiet_value, value.detach(), rtol=1e-13, atol=0)
    assert_close(quiet_gradient, gradient.detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("axis", [-1, -2])
def test_an_image_beside_its_mirror_image_has_the_sum_of_their_energies(
    energy: Energy, x: Tensor, axis: int
) -> None:
    y = x.flip(axis)
    assert_close(energy(torch.cat([x, y], axis)), energy(x) + energy(y), rtol=1e-12, atol=0)


def test_opposite_edges_are_no_neighbours(energy: Energy) -> None:
    """The gradient at an edge does not feel the opposite one."""
    x = 0.5 * draw(1, 2, 6, 14)
    changed = x.clone()
    changed[..., -1] += 1
    moved = (energy.value_and_grad(changed)[1] - energy.value_and_grad(x)[1]).abs().amax((0, 1, 2))
    assert moved[:2].max() <= 1e-12 < moved[-1]


def test_images_smaller_than_the_filters_are_fine(energy: Energy) -> None:
    x = 0.5 * draw(2, 2, 1, 2)
    once = torch.cat([x, x.flip(-1)], -1)
    assert_close(energy(once), energy(x) + energy(x.flip(-1)), rtol=1e-12, atol=0)
    assert_close(energy(once.tile(3, 2)), 6 * energy(once), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["ridge", "convex ridge", "convex", "local", "lipschitz"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_energies_are_not_negative(name: str, scale: float) -> None:
    energy = made(name)
    assert (energy(scale * draw(20, 2, *SIZE)) >= 0).all()


@pytest.mark.parametrize("name", ["ridge", "convex ridge", "convex"])
def test_constants_have_the_least_energy(name: str) -> None:
    """Filters have zero mean."""
    energy, x = made(name), 0.5 * draw(4, 2, *SIZE)
    levels = draw(4, 2, 1, 1, seed=1).expand(4, 2, *SIZE)
    lowest = energy(levels)
    assert_close(lowest, energy(torch.zeros_like(x)), rtol=1e-12, atol=1e-12)
    assert_close(energy(x + levels), energy(x), rtol=1e-12, atol=0)
    assert name == "convex" or (lowest < energy(x)).all()


def test_energies_travel(energy: Energy, x: Tensor) -> None:
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert_close(other(x), energy(x), rtol=0, atol=0)
    other = copy.deepcopy(energy)
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(energy.state_dict())
    assert_close(other(x), energy(x), rtol=0, atol=0)


def test_single_precision_is_close_to_double(energy: Energy, x: Tensor) -> None:
    value, gradient = energy.value_and_grad(x)
    single, slope = copy.deepcopy(energy).float().value_and_grad(x.float())
    assert single.dtype == slope.dtype == torch.float32
    assert_close(single.double(), value, rtol=1e-4, atol=1e-5)
    assert torch.dist(slope.double(), gradient) <= 1e-3 * gradient.norm()


def excess(f: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Of the value at midpoints over the mean of the values, relative; positive only without convexity."""
    mean = (f(a) + f(b)) / 2
    return (f((a + b) / 2) - mean) / mean.abs().clamp_min(1e-300)


WEIGHTS = {"seed": st.integers(0, 9999), "log_weights": st.floats(-2, 2), "log_image": st.floats(-2, 2)}


@pytest.mark.parametrize("name", ["convex ridge", "convex"])
@given(**WEIGHTS)
def test_convex_energies_are_convex(name: str, seed: int, log_weights: float, log_image: float) -> None:
    energy = wild(name, seed, 10**log_weights)
    assert energy.weak_convexity() == 0
    a, b = 10**log_image * draw(2, 20, 1, 4, 5, seed=seed)
    assert excess(energy, a, b).max() <= 1e-10


@given(**WEIGHTS)
def test_ridge_energies_are_1_weakly_convex(seed: int, log_weights: float, log_image: float) -> None:
    energy = wild("ridge", seed, 10**log_weights)
    assert energy.weak_convexity() == 1

    def lifted(x: Tensor) -> Tensor:
        return energy(x) + x.square().sum((1, 2, 3)) / 2

    a, b = 10**log_image * draw(2, 20, 1, 4, 5, seed=seed)
    near = a + 10**log_image * (b - a)
    assert excess(lifted, a, b).max() <= 1e-10
    assert excess(lifted, a, near).max() <= 1e-10


@settings(max_examples=15)
@given(**WEIGHTS, n_channels=st.sampled_from([1, 2]))
def test_curvature_of_ridge_energies(
    seed: int, log_weights: float, log_image: float, n_channels: int
) -> None:
    energy = wild("ridge", seed, 10**log_weights, n_channels)
    lowest = curvatures(energy, 10**log_image * draw(1, n_channels, 4, 4, seed=seed))[0].item()
    assert lowest >= -1 - 1e-9


def curvatures(energy: Energy, x: Tensor) -> Tensor:
    """Eigenvalues of the dense Hessian, in ascending order."""
    dense = hessian(lambda x: energy(x).sum(), x).reshape(x.numel(), x.numel())
    assert_close(dense, dense.mT, rtol=1e-9, atol=1e-9)
    return torch.linalg.eigvalsh(dense)


def make_even(filters: Tensor) -> None:
    """Make filters their own mirror images, whose norm is known; that of others is bounded."""
    filters += filters.flip(2)
    filters += filters.flip(3)


def test_ridge_energies_nearly_reach_their_modulus() -> None:
    """A bound that nothing comes near would hide a wrong normalisation."""
    energy = made("ridge", 1)
    make_even(energy.filters.data)
    energy.log_sharpness.data.fill_(20.0)
    lowest = curvatures(energy, 0.02 * draw(1, 1, 8, 8))[0].item()
    assert -1 - 1e-9 <= lowest <= -0.7


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_no_filters_bend_ridges_beyond_their_modulus(size: tuple[int, int]) -> None:
    """Even those that gradient ascent finds: shifts, whose responses see the pixel in a corner four times."""
    energy = made("ridge", 1)
    energy.log_sharpness.data.fill_(20.0)
    for _ in range(60):
        n = size[0] * size[1]
        responses = analyse(torch.eye(n, dtype=torch.float64).reshape(n, 1, *size), energy.normalised())
        norm = torch.linalg.matrix_norm(responses.flatten(1), 2)
        assert norm <= 1 + 1e-9
        (uphill,) = grad(norm, energy.filters)
        energy.filters.data += 0.1 * energy.filters.norm() * uphill / uphill.norm().clamp_min(1e-12)
        lowest = curvatures(energy, 0.02 * draw(1, 1, *size))[0].item()
        assert lowest >= -1 - 1e-9


@settings(max_examples=12)
@given(
    seed=st.integers(0, 9999),
    scales=st.lists(st.sampled_from([1e-3, 1.0, 1e3]), min_size=2, max_size=4),
    size=st.sampled_from([(1, 1), (3, 4), (6, 5)]),
)
def test_lipschitz_energies_keep_their_bound(seed: int, scales: list[float], size: tuple[int, int]) -> None:
    """Even where gradient ascent makes the gradient as long as it can."""
    energy = made("weighted lipschitz", seed=seed)
    for i, p in enumerate(energy.energy.parameters()):
        p.data = scales[i % len(scales)] * draw(*p.shape, seed=seed + i)
    bound = energy.lipschitz(size[0] * size[1])
    assert bound is not None
    x = draw(4, 2, *size, seed=seed)
    for _ in range(15):
        x = x.detach().requires_grad_()
        lengths = torch.linalg.vector_norm(energy.value_and_grad(x)[1].flatten(1), dim=1)
        assert (lengths <= bound * (1 + 1e-9)).all()
        (uphill,) = grad(lengths.sum(), x)
        x = x + uphill / torch.linalg.vector_norm(uphill, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def test_the_lipschitz_bound_is_that_of_a_sum_over_pixels() -> None:
    """Where the softplus is the identity and constants go straight through, it is nearly reached."""
    energy = made("lipschitz", 1)
    assert energy.lipschitz(12) == math.sqrt(12)
    energy.network.direction.data = energy.network.direction.data.abs()
    lengths = energy.value_and_grad(torch.full((1, 1, 3, 4), 1e3, dtype=torch.float64))[1].norm()
    other = energy.value_and_grad(torch.full((1, 1, 3, 4), -1e3, dtype=torch.float64))[1].norm()
    assert 0.3 * math.sqrt(12) < max(lengths, other) <= math.sqrt(12)


def test_what_is_not_known_is_none() -> None:
    for name in ("local", "module"):
        energy = WeightedEnergy(made(name))
        assert energy.weak_convexity() is None
        assert energy.lipschitz(9) is None
    assert made("lipschitz").weak_convexity() is None
    assert made("ridge").lipschitz(9) is None
    assert EnergyFunctional(made("local")).weak_convexity is None


@pytest.mark.parametrize("collapse", [lambda x: x.sum(), lambda x: x.sum()[None], lambda x: x.sum((2, 3))])
def test_modules_must_return_one_number_per_image(collapse: Callable[[Tensor], Tensor], x: Tensor) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return collapse(x)

    energy = ModuleEnergy(Wrong(), 2)
    for use in (energy, energy.value_and_grad):
        with pytest.raises(ValueError, match="one number per image"):
            use(x)


@pytest.mark.parametrize("name", ["ridge", "convex", "lipschitz"])
def test_weighting_scales_as_documented(name: str, x: Tensor) -> None:
    plain = made(name)
    energy = WeightedEnergy(plain, scale=3.0).double()
    energy.log_scale.fill_(math.log(3.0))
    energy.log_weight.data.fill_(0.7)
    assert_close(energy(x), math.exp(0.7) / 9 * plain(3 * x), rtol=1e-12, atol=0)
    _, gradient = energy.value_and_grad(x)
    assert_close(gradient, math.exp(0.7) / 3 * plain.value_and_grad(3 * x)[1], rtol=1e-12, atol=1e-15)
    modulus, bound = plain.weak_convexity(), plain.lipschitz(30)
    assert energy.weak_convexity() == (None if modulus is None else pytest.approx(math.exp(0.7) * modulus))
    assert energy.lipschitz(30) == (None if bound is None else pytest.approx(math.exp(0.7) / 3 * bound))


def test_the_modulus_of_a_weighted_energy_holds_for_its_curvature() -> None:
    energy = WeightedEnergy(made("ridge", 1), scale=4.0).double()
    make_even(energy.energy.filters.data)
    energy.energy.log_sharpness.data.fill_(20.0)
    energy.log_weight.data.fill_(0.7)
    lowest = curvatures(energy, 0.005 * draw(1, 1, 8, 8))[0].item()
    assert -math.exp(0.7) - 1e-9 <= lowest <= -0.7 * math.exp(0.7)


def channels_by_hand(energy: Energy, planes: list[Tensor]) -> Tensor:
    """Energies of images given as planes (n, height, width): one by one, or together."""
    if energy.n_channels == 1:
        return sum((energy(plane[:, None]) for plane in planes), torch.zeros(len(planes[0])))
    return energy(torch.stack(planes, 1))


@pytest.mark.parametrize("name", ["ridge", "lipschitz"])
@pytest.mark.parametrize(
    ("dims", "dtype", "together"),
    [((7,), torch.float64, 1), (SIZE, torch.float64, 1), ((3, *SIZE), torch.float64, 3)]
    + [((7,), torch.complex128, 2), (SIZE, torch.complex128, 2), ((3, *SIZE), torch.complex128, 6)],
)
def test_learned_energies_of_images_of_any_kind(
    name: str, dims: tuple[int, ...], dtype: torch.dtype, together: int
) -> None:
    x = (0.5 * draw(2, *dims, dtype=dtype)).requires_grad_()
    planes = list(x.reshape(2, -1, *(1, *dims)[-2:]).unbind(1))
    parts = [part for z in planes for part in ((z.real, z.imag) if x.is_complex() else (z,))]
    for n_channels in {1, together}:
        energy = made(name, n_channels)
        functional = EnergyFunctional(energy, 0 if len(dims) == 3 else None)
        expected = channels_by_hand(energy, parts)
        value, gradient = functional.value_and_grad(x)
        assert value.shape == (2,)
        assert gradient.dtype == dtype
        assert functional.weak_convexity == energy.weak_convexity()
        assert_close(functional(x), expected, rtol=1e-12, atol=0)
        assert_close(value, expected, rtol=1e-12, atol=0)
        assert_close(gradient, grad(expected.sum(), x, retain_graph=True)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "dtype"),
    [((2, 4, 5), None, torch.float64), ((2, 2, 4, 5), 0, torch.complex64), ((2, 3, 4, 5), -1, torch.float64)],
)
def test_images_of_other_channels_are_refused(
    shape: tuple[int, ...], channel_axis: int | None, dtype: torch.dtype
) -> None:
    x, functional = torch.zeros(shape, dtype=dtype), EnergyFunctional(made("ridge", 3), channel_axis)
    for use in (functional, functional.value_and_grad):
        with pytest.raises(ValueError, match=f"images of 3 channels.*channel_axis={channel_axis}"):
            use(x)


# ------------------------------------------------------------------------------------- made of networks
def test_red_with_a_symmetric_linear_network_has_the_gradient_of_the_literature() -> None:
    class Blur(nn.Module):
        n_channels = 1

        def forward(self, x: Tensor) -> Tensor:
            return (2 * x + x.roll(1, -1) + x.roll(-1, -1)) / 4

    x = draw(2, 1, 4, 6)
    _, gradient = REDEnergy(Blur()).value_and_grad(x)
    assert_close(gradient, x - Blur()(x))
    value, gradient = GradientStepEnergy(Blur()).value_and_grad(x)
    rest = x - Blur()(x)
    assert_close(value, rest.square().flatten(1).sum(1) / 2)
    assert_close(gradient, rest - Blur()(rest))


def test_energies_are_made_by_name() -> None:
    with torch.random.fork_rng():
        for name, kind in (("ridge", RidgeEnergy), ("convex_ridge", RidgeEnergy), ("convex", ConvexEnergy)):
            energy = make_energy(name, 2)
            assert type(energy) is kind and energy.n_channels == 2
        for name, kind in (("red", REDEnergy), ("gradient_step", GradientStepEnergy)):
            energy = make_energy(name, network=make_network("dncnn", 2))
            assert type(energy) is kind and energy.n_channels == 2
        assert make_energy("network", network=make_network("lipschitz")).lipschitz(4) == 2
        with pytest.raises(ValueError, match="network: for the energy 'red' expected a network, got None"):
            make_energy("red")
        with pytest.raises(ValueError, match="network: for the energy 'convex' expected None, got a DnCNN"):
            make_energy("convex", network=DnCNN())
    with pytest.raises(ValueError, match="name: expected one of .*'ridge'.* got 'tv'"):
        make_energy("tv")


# ------------------------------------------------------------------------------- smooth by construction
@settings(max_examples=20)
@given(
    beta=st.sampled_from([0.3, 1.0, 1.2, 2.0, 5.0]),
    alpha=st.sampled_from([0.0, 0.5]),
    log_filters=st.floats(-3, 3),
    seed=st.integers(0, 9999),
)
def test_certified_gradients_are_smooth_for_wild_weights(
    beta: float, alpha: float, log_filters: float, seed: int
) -> None:
    ridge = made("convex ridge" if beta <= 1 else "ridge", 1, seed)
    for i, p in enumerate(ridge.parameters()):
        p.data += draw(*p.shape, seed=seed + i)
    ridge.filters.data *= 10**log_filters
    smooth = SmoothEnergy(ridge, alpha=alpha, beta=beta)
    x, z = draw(2, 3, 1, 5, 6, seed=seed)
    assert smooth.certified
    values = curvatures(smooth, x[:1])
    assert values[0] >= 1 + alpha - beta - 1e-9
    assert values[-1] <= 1 + alpha + beta + 1e-9
    assert -values[0] <= smooth.weak_convexity() + 1e-9
    change = smooth.smooth_gradient(x) - smooth.smooth_gradient(z)
    assert (change.flatten(1).norm(dim=1) <= (1 + 1e-9) * beta * (x - z).flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_bound_on_the_curvature_is_used_up(beta: float) -> None:
    """The weight is the largest allowed one: with a quadratic ``grad s`` would have the constant beta."""
    largest = SmoothEnergy(made("convex ridge"), beta=beta).largest_curvature()
    assert largest is not None
    assert largest.item() == pytest.approx(1 + beta, rel=1e-6)


def test_nothing_is_certified_without_a_proof() -> None:
    assert not SmoothEnergy(made("convex"), beta=1.0).certified
    assert not SmoothEnergy(made("module"), beta=1.0).certified
    assert not SmoothEnergy(made("ridge")).certified
    assert not SmoothEnergy(made("ridge"), beta=1.0).certified  # no convex function is a multiple of it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [12, 200])
def test_ridges_of_an_image_do_not_depend_on_its_companions_to_the_bit(size: int, dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        energy = make_energy("ridge", 2).to(dtype)
    x = torch.randn(4, 2, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        value, gradient = energy.value_and_grad(x)
        for n in (1, 2, 3):
            one_value, one_gradient = energy.value_and_grad(x[:n])
            assert torch.equal(one_value, value[:n]) and torch.equal(one_gradient, gradient[:n])

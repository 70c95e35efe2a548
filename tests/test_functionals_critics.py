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

from skinverse.functionals import (
    ConvexCritic,
    Critic,
    Learned,
    ModuleCritic,
    NetworkCritic,
    RidgeCritic,
    WeightedCritic,
)
from skinverse.networks import LipschitzCNN, LocalCNN

SIZE = (5, 6)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Energy(nn.Module):
    """What a user might write: smooth and periodic."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, 3, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).tanh().square().sum((1, 2, 3))[:, None]


MAKERS: dict[str, Callable[[int], Critic]] = {
    "ridge": lambda c: RidgeCritic(c, n_filters=4, kernel_size=3),
    "convex ridge": lambda c: RidgeCritic(c, convex=True, n_filters=4, kernel_size=3),
    "convex": lambda c: ConvexCritic(c, n_features=3, kernel_size=3),
    "local": lambda c: NetworkCritic(LocalCNN(c, n_features=3, n_layers=3)),
    "lipschitz": lambda c: NetworkCritic(LipschitzCNN(c, n_features=4, n_layers=2)),
    "module": lambda c: ModuleCritic(Energy(c), c),
    "weighted ridge": lambda c: WeightedCritic(MAKERS["ridge"](c), scale=2.0),
    "weighted lipschitz": lambda c: WeightedCritic(MAKERS["lipschitz"](c), scale=0.5),
}


def made(name: str, n_channels: int = 2, seed: int = 0) -> Critic:
    """The critic in float64, off the symmetries of its start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = MAKERS[name](n_channels).double()
    for i, p in enumerate(critic.parameters()):
        p.data += 0.2 * draw(*p.shape, seed=seed + i)
    return critic


def wild(name: str, seed: int, scale: float, n_channels: int = 1) -> Critic:
    """Weights of any size; those that are logarithms are drawn around that of the size."""
    critic = made(name, n_channels, seed)
    for i, (of, p) in enumerate(critic.named_parameters()):
        size = abs(math.log(scale)) if "log" in of else scale
        p.data = size * draw(*p.shape, seed=seed + i)
    return critic


@pytest.fixture(params=MAKERS)
def critic(request: pytest.FixtureRequest) -> Critic:
    return made(request.param)


@pytest.fixture
def x() -> Tensor:
    """Images whose responses lie on every piece of the potentials."""
    return 0.5 * draw(3, 2, *SIZE, seed=7)


def test_one_number_per_image_whatever_the_companions(critic: Critic, x: Tensor) -> None:
    energies, gradients = critic.value_and_grad(x)
    assert energies.shape == (3,)
    for i in range(3):
        one = x[i : i + 1].clone()
        assert_close(critic(one), energies[i : i + 1], rtol=1e-12, atol=0)
        assert_close(critic.value_and_grad(one)[1], gradients[i : i + 1], rtol=1e-11, atol=1e-13)


def test_value_and_gradient_are_those_of_the_energy(critic: Critic, x: Tensor) -> None:
    value, gradient = critic.value_and_grad(x)
    assert_close(value, critic(x), rtol=1e-13, atol=0)
    x = x.requires_grad_()
    assert_close(gradient, grad(critic(x).sum(), x)[0], rtol=1e-11, atol=1e-13)
    assert gradient.abs().max() > 1e-3


def test_energy_and_gradient_pass_gradcheck(critic: Critic, x: Tensor) -> None:
    x = x[:1].clone().requires_grad_()
    assert gradcheck(critic, x)
    assert gradcheck(lambda x: critic.value_and_grad(x)[1], x, atol=1e-4)


def test_losses_of_the_gradient_are_differentiable_in_every_parameter(critic: Critic, x: Tensor) -> None:
    """What a gradient penalty needs: mixed second derivatives."""
    x = x[:2]

    def loss() -> Tensor:
        value, gradient = critic.value_and_grad(x)
        lengths = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return (lengths - 1).square().sum() + (value * torch.tensor([1.0, -0.5])).sum()

    parameters = list(critic.parameters())
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


def test_gradients_carry_a_graph_exactly_when_enabled(critic: Critic, x: Tensor) -> None:
    value, gradient = critic.value_and_grad(x)
    assert value.requires_grad
    assert gradient.requires_grad
    with torch.no_grad():
        quiet_value, quiet_gradient = critic.value_and_grad(x)
        assert not critic(x).requires_grad
    assert not quiet_value.requires_grad
    assert not quiet_gradient.requires_grad
    assert not x.requires_grad
    assert_close(quiet_value, value.detach(), rtol=1e-13, atol=0)
    assert_close(quiet_gradient, gradient.detach(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("axis", [-1, -2])
def test_an_image_beside_its_copy_has_twice_the_energy(critic: Critic, x: Tensor, axis: int) -> None:
    assert_close(critic(torch.cat([x, x], axis)), 2 * critic(x), rtol=1e-12, atol=0)


def test_energies_do_not_change_under_cyclic_shifts(critic: Critic, x: Tensor) -> None:
    assert_close(critic(x.roll((2, -3), (-2, -1))), critic(x), rtol=1e-12, atol=0)


def test_images_smaller_than_the_filters_are_fine(critic: Critic) -> None:
    if any(isinstance(m, Energy) for m in critic.modules()):
        pytest.skip("torch's own circular padding refuses them")
    x = 0.5 * draw(2, 2, 1, 2)
    assert_close(critic(x.tile(3, 2)), 6 * critic(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["ridge", "convex ridge", "convex", "local", "lipschitz"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_energies_are_not_negative(name: str, scale: float) -> None:
    critic = made(name)
    assert (critic(scale * draw(20, 2, *SIZE)) >= 0).all()


@pytest.mark.parametrize("name", ["ridge", "convex ridge", "convex"])
def test_constants_have_the_least_energy(name: str) -> None:
    """Filters have zero mean."""
    critic, x = made(name), 0.5 * draw(4, 2, *SIZE)
    levels = draw(4, 2, 1, 1, seed=1).expand(4, 2, *SIZE)
    lowest = critic(levels)
    assert_close(lowest, critic(torch.zeros_like(x)), rtol=1e-12, atol=1e-12)
    assert_close(critic(x + levels), critic(x), rtol=1e-12, atol=0)
    assert name == "convex" or (lowest < critic(x)).all()


def test_critics_travel(critic: Critic, x: Tensor) -> None:
    for other in (copy.deepcopy(critic), pickle.loads(pickle.dumps(critic))):
        assert_close(other(x), critic(x), rtol=0, atol=0)
    other = copy.deepcopy(critic)
    for p in other.parameters():
        p.data.zero_()
    other.load_state_dict(critic.state_dict())
    assert_close(other(x), critic(x), rtol=0, atol=0)


def test_single_precision_is_close_to_double(critic: Critic, x: Tensor) -> None:
    value, gradient = critic.value_and_grad(x)
    single, slope = copy.deepcopy(critic).float().value_and_grad(x.float())
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
def test_convex_critics_are_convex(name: str, seed: int, log_weights: float, log_image: float) -> None:
    critic = wild(name, seed, 10**log_weights)
    assert critic.weak_convexity() == 0
    a, b = 10**log_image * draw(2, 20, 1, 4, 5, seed=seed)
    assert excess(critic, a, b).max() <= 1e-10


@given(**WEIGHTS)
def test_ridge_critics_are_1_weakly_convex(seed: int, log_weights: float, log_image: float) -> None:
    critic = wild("ridge", seed, 10**log_weights)
    assert critic.weak_convexity() == 1

    def lifted(x: Tensor) -> Tensor:
        return critic(x) + x.square().sum((1, 2, 3)) / 2

    a, b = 10**log_image * draw(2, 20, 1, 4, 5, seed=seed)
    near = a + 10**log_image * (b - a)
    assert excess(lifted, a, b).max() <= 1e-10
    assert excess(lifted, a, near).max() <= 1e-10


@settings(max_examples=15)
@given(**WEIGHTS, n_channels=st.sampled_from([1, 2]))
def test_curvature_of_ridge_critics(seed: int, log_weights: float, log_image: float, n_channels: int) -> None:
    critic = wild("ridge", seed, 10**log_weights, n_channels)
    lowest = lowest_curvature(critic, 10**log_image * draw(1, n_channels, 4, 4, seed=seed))
    assert lowest >= -1 - 1e-9


def lowest_curvature(critic: Critic, x: Tensor) -> float:
    dense = hessian(lambda x: critic(x).sum(), x).reshape(x.numel(), x.numel())
    assert_close(dense, dense.mT, rtol=1e-9, atol=1e-9)
    return torch.linalg.eigvalsh(dense)[0].item()


def test_ridge_critics_nearly_reach_their_modulus() -> None:
    """A bound that nothing comes near would hide a wrong normalisation."""
    critic = made("ridge", 1)
    critic.log_sharpness.data.fill_(20.0)
    lowest = lowest_curvature(critic, 0.02 * draw(1, 1, 8, 8))
    assert -1 - 1e-9 <= lowest <= -0.7


@settings(max_examples=12)
@given(
    seed=st.integers(0, 9999),
    scales=st.lists(st.sampled_from([1e-3, 1.0, 1e3]), min_size=2, max_size=4),
    size=st.sampled_from([(1, 1), (3, 4), (6, 5)]),
)
def test_lipschitz_critics_keep_their_bound(seed: int, scales: list[float], size: tuple[int, int]) -> None:
    """Even where gradient ascent makes the gradient as long as it can."""
    critic = made("weighted lipschitz", seed=seed)
    for i, p in enumerate(critic.critic.parameters()):
        p.data = scales[i % len(scales)] * draw(*p.shape, seed=seed + i)
    bound = critic.lipschitz(size[0] * size[1])
    assert bound is not None
    x = draw(4, 2, *size, seed=seed)
    for _ in range(15):
        x = x.detach().requires_grad_()
        lengths = torch.linalg.vector_norm(critic.value_and_grad(x)[1].flatten(1), dim=1)
        assert (lengths <= bound * (1 + 1e-9)).all()
        (uphill,) = grad(lengths.sum(), x)
        x = x + uphill / torch.linalg.vector_norm(uphill, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def test_the_lipschitz_bound_is_that_of_a_sum_over_pixels() -> None:
    """Where the softplus is the identity and constants go straight through, it is nearly reached."""
    critic = made("lipschitz", 1)
    assert critic.lipschitz(12) == math.sqrt(12)
    critic.network.direction.data = critic.network.direction.data.abs()
    lengths = critic.value_and_grad(torch.full((1, 1, 3, 4), 1e3, dtype=torch.float64))[1].norm()
    other = critic.value_and_grad(torch.full((1, 1, 3, 4), -1e3, dtype=torch.float64))[1].norm()
    assert 0.3 * math.sqrt(12) < max(lengths, other) <= math.sqrt(12)


def test_what_is_not_known_is_none() -> None:
    for name in ("local", "module"):
        critic = WeightedCritic(made(name))
        assert critic.weak_convexity() is None
        assert critic.lipschitz(9) is None
    assert made("lipschitz").weak_convexity() is None
    assert made("ridge").lipschitz(9) is None
    assert Learned(made("local")).weak_convexity is None


@pytest.mark.parametrize("collapse", [lambda x: x.sum(), lambda x: x.sum()[None], lambda x: x.sum((2, 3))])
def test_modules_must_return_one_number_per_image(collapse: Callable[[Tensor], Tensor], x: Tensor) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return collapse(x)

    critic = ModuleCritic(Wrong(), 2)
    for use in (critic, critic.value_and_grad):
        with pytest.raises(ValueError, match="one number per image"):
            use(x)


@pytest.mark.parametrize("name", ["ridge", "convex", "lipschitz"])
def test_weighting_scales_as_documented(name: str, x: Tensor) -> None:
    plain = made(name)
    critic = WeightedCritic(plain, scale=3.0).double()
    critic.log_scale.fill_(math.log(3.0))
    critic.log_weight.data.fill_(0.7)
    assert_close(critic(x), math.exp(0.7) / 9 * plain(3 * x), rtol=1e-12, atol=0)
    _, gradient = critic.value_and_grad(x)
    assert_close(gradient, math.exp(0.7) / 3 * plain.value_and_grad(3 * x)[1], rtol=1e-12, atol=1e-15)
    modulus, bound = plain.weak_convexity(), plain.lipschitz(30)
    assert critic.weak_convexity() == (None if modulus is None else pytest.approx(math.exp(0.7) * modulus))
    assert critic.lipschitz(30) == (None if bound is None else pytest.approx(math.exp(0.7) / 3 * bound))


def test_the_modulus_of_a_weighted_critic_holds_for_its_curvature() -> None:
    critic = WeightedCritic(made("ridge", 1), scale=4.0).double()
    critic.critic.log_sharpness.data.fill_(20.0)
    critic.log_weight.data.fill_(0.7)
    lowest = lowest_curvature(critic, 0.005 * draw(1, 1, 8, 8))
    assert -math.exp(0.7) - 1e-9 <= lowest <= -0.7 * math.exp(0.7)


def channels_by_hand(critic: Critic, planes: list[Tensor]) -> Tensor:
    """Energies of images given as planes (n, height, width): one by one, or together."""
    if critic.n_channels == 1:
        return sum((critic(plane[:, None]) for plane in planes), torch.zeros(len(planes[0])))
    return critic(torch.stack(planes, 1))


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
        critic = made(name, n_channels)
        functional, expected = Learned(critic), channels_by_hand(critic, parts)
        value, gradient = functional.value_and_grad(x)
        assert value.shape == (2,)
        assert gradient.dtype == dtype
        assert functional.weak_convexity == critic.weak_convexity()
        assert_close(functional(x), expected, rtol=1e-12, atol=0)
        assert_close(value, expected, rtol=1e-12, atol=0)
        assert_close(gradient, grad(expected.sum(), x, retain_graph=True)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4, 5), torch.float64), ((2, 2, 4, 5), torch.complex64)])
def test_images_of_other_channels_are_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    for use in (Learned(made("ridge", 3)), Learned(made("ridge", 3)).value_and_grad):
        with pytest.raises(ValueError, match="images of 3 channels"):
            use(x)
    with pytest.raises(ValueError, match="at most"):
        Learned(made("ridge", 1))(torch.zeros(1, 1, 1, 4, 5))

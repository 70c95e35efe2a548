"""Generators that the user has trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from skinverse import GenerativeCovariancePrior

SIZE = (8, 8)
NOISE = 0.03


def make_generator(*last: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 64), nn.Unflatten(1, (1, *SIZE)), *last]
        return nn.Sequential(*layers)


def images_of(generator: nn.Module, n: int = 16, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    z = torch.randn((n, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        exact = generator(z.float())[:, 0].numpy()
    return exact + noise * np.random.default_rng(seed).normal(size=exact.shape).astype(np.float32)


def around(generator: Any, operator: Any = None, **params: Any) -> GenerativeCovariancePrior:
    settings: dict[str, Any] = {"generator": generator, "covariance": "identity", "n_latent": 2}
    return GenerativeCovariancePrior(operator, **(settings | {"noise": NOISE} | params))


@pytest.mark.parametrize("constraint", ["soft", "range", "sparse", "adapted"])
def test_a_generator_is_a_prior(constraint: str, measure: Any) -> None:
    generator = make_generator()
    method = around(generator, constraint=constraint).fit(images_of(generator, noise=0.05))
    images = images_of(generator, 3, seed=5).astype(np.float64)
    x = method.predict(measure(pylops.Identity(SIZE), images))
    assert np.linalg.norm(x - images) < 0.8 * NOISE * math.sqrt(images.size)


def test_a_generator_is_not_trained_and_not_shared() -> None:
    generator = make_generator()
    before = copy.deepcopy(generator.state_dict())
    method = around(generator, constraint="adapted").fit(images_of(generator, noise=0.05))
    method.predict(images_of(generator, 2, noise=0.2, seed=3))
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(method.module_.decoder.generator.state_dict()[name], value)
    assert all(p.requires_grad for p in generator.parameters())
    assert method.history_ == []


def test_a_generator_in_training_mode_is_taken_as_it_is(blobs: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))
    method = GenerativeCovariancePrior(generator=generator, covariance="identity", n_latent=2)
    method.fit(blobs(12))
    given = generator.state_dict()
    for name, value in method.module_.decoder.generator.state_dict().items():
        assert torch.equal(value, given[name])
    assert generator.training


def test_a_generator_that_keeps_activations_is_copied(blobs: Any) -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 64)

        def forward(self, z: Tensor) -> Tensor:
            self.last = self.linear(z)
            return self.last.view(-1, 1, *SIZE)

    with torch.random.fork_rng():
        generator = Keeping()
    generator(torch.zeros(1, 2))
    method = around(generator).fit(blobs(4))
    x, std = method.predict(blobs(1), return_std=True)
    assert x.shape == std.shape == (1, *SIZE)


def test_deviation_from_the_range_is_measured() -> None:
    generator = make_generator()
    method = around(generator, min_std=1e-3).fit(images_of(generator, 64, noise=0.1))
    std = method.spread_ * (-method.module_.gaussian(torch.zeros(1, 2)).log_diag).exp()
    assert_close(std, torch.full_like(std, 0.1), rtol=0.05, atol=0)
    deviation = method.spread_ * float(method.module_.deviation)
    assert deviation == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.07)


def test_fit_ignores_the_operator(operator: Any) -> None:
    generator = make_generator()
    images = images_of(generator, noise=0.05)
    plain, other = around(generator).fit(images), around(generator, operator).fit(images)
    assert float(plain.module_.deviation) == float(other.module_.deviation)
    assert torch.equal(plain.module_.log_std, other.module_.log_std)


def test_memory_tells_generators_apart(tmp_path: Path) -> None:
    images = images_of(make_generator(), noise=0.05)
    one, other = (around(make_generator(seed=k), memory=str(tmp_path)).fit(images) for k in (0, 1))
    assert float(one.module_.deviation) != float(other.module_.deviation)
    assert not torch.equal(one.module_.decoder.generator[0].weight, other.module_.decoder.generator[0].weight)


def test_a_generator_draws_but_cannot_encode() -> None:
    generator = make_generator(nn.Sigmoid())
    images = images_of(generator)
    method = around(generator).fit(images)
    assert method.sample(3, random_state=0).shape == (3, *SIZE)
    for use in (method.score_samples, lambda x: method.covariance_row(x, (0, 0))):
        with pytest.raises(ValueError, match="generator: one of your own has no encoder"):
            use(images)
    with pytest.raises(ValueError, match='"encoded" needs an encoder'):
        method.set_params(constraint="encoded").predict(images)


def test_a_generator_is_not_saved(tmp_path: Path) -> None:
    generator = make_generator()
    method = around(generator).fit(images_of(generator))
    with pytest.raises(ValueError, match="generator"):
        method.save(tmp_path / "prior.skinverse")


# ------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(("last", "low", "high"), [(nn.Sigmoid(), 0, 1), (nn.Tanh(), -1, 1)])
def test_images_that_the_generator_cannot_give_are_refused(last: nn.Module, low: int, high: int) -> None:
    generator = make_generator(last)
    images = images_of(generator)
    around(generator).fit(images)
    for value in (low - 0.1, high + 0.1):
        spoiled = images.copy()
        spoiled[3, 2, 2] = value
        with pytest.raises(ValueError, match=rf"X_true: expected values in \[{low}.*, {high}.*\].* got \["):
            around(make_generator(last)).fit(spoiled)


def test_range_of_a_generator_is_that_of_its_last_changing_module(blobs: Any) -> None:
    with torch.random.fork_rng():
        bounded = nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Unflatten(1, (1, *SIZE)))
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        around(bounded).fit(50 * blobs(4))

    class Scaled(nn.Module):
        """Whose activation is not what comes out."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.act = nn.Linear(2, 64), nn.Sigmoid()

        def forward(self, z: Tensor) -> Tensor:
            return 255 * self.act(self.net(z)).view(-1, 1, *SIZE)

    with torch.random.fork_rng():
        around(Scaled(), max_steps=5).fit(50 * blobs(4))


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (nn.Linear(3, 64), ValueError, "n_latent=2"),
        (nn.Linear(2, 63), ValueError, r"\(1, 8, 8\), channels first, got \(63,\)"),
        (np.tanh, TypeError, "generator: expected .* nn.Module or None, got a ufunc"),
    ],
)
def test_generators_that_do_not_fit_are_refused(
    generator: Any, error: type, message: str, blobs: Any
) -> None:
    with pytest.raises(error, match=message):
        around(generator).fit(blobs(4))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"constraint": "encoded"}, 'constraint: "encoded" needs an encoder'),
        ({"covariance": "full"}, "generator: .* needs covariance=\"identity\", got 'full'"),
    ],
    ids=str,
)
def test_parameters_that_ask_too_much_of_a_generator_are_refused(
    params: dict[str, str], message: str
) -> None:
    generator = make_generator()
    with pytest.raises(ValueError, match=message):
        around(generator, **params).fit(images_of(generator))

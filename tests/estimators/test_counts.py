"""Counts in methods whose data term is quadratic: weights that the data themselves tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import skinverse
from skinverse import (
    LISTA,
    DeepEquilibriumRecon,
    LearnedGradientDescent,
    LearnedPrimalDual,
    ModelAdaptation,
    Trainer,
    VariationalNetwork,
)
from skinverse.networks import GradientStepCNN
from skinverse.noise import Gaussian, Poisson, PoissonGaussian
from skinverse.operators import as_torch

SIZE, N_DATA = (6, 5), 40
# Learns next to nothing, but finds unit and level.
IDLE = Trainer(max_epochs=1, lr=1e-30, final_lr=1e-30, validation_fraction=0.0)
BRIEF = Trainer(max_epochs=5, lr=3e-2, validation_fraction=0.0)
with torch.random.fork_rng():
    torch.manual_seed(0)
    NETWORK = GradientStepCNN(n_features=8, n_layers=2)
SMALL: dict[Any, dict[str, Any]] = {
    LearnedGradientDescent: {"n_iterations": 2, "n_features": 4, "n_states": 2},
    LearnedPrimalDual: {"n_iterations": 2, "n_features": 4, "n_states": 2},
    LISTA: {"n_iterations": 2, "kernel_size": 3},
    VariationalNetwork: {"n_iterations": 3, "n_filters": 3, "kernel_size": 3, "n_knots": 5},
    DeepEquilibriumRecon: {
        "iteration": "contractive",
        "network": NETWORK,
        "lam": 0.5,
        "pretraining": False,
        "tol": 1e-4,
    },
}
every = pytest.mark.parametrize("method", list(SMALL), ids=lambda m: m.__name__)
BACKGROUND = np.random.default_rng(5).uniform(0, 3, N_DATA)
NOISES = {
    "counts": Poisson(gain=0.5, background=BACKGROUND),
    "each its gain": Poisson(gain=np.linspace(0.5, 2, N_DATA), background=1.0),
    "camera": PoissonGaussian(gain=0.5, std=1.5, background=1.0, offset=20.0),
}
every_noise = pytest.mark.parametrize("kind", list(NOISES))


def measured(noise: Any, scale: float = 20.0) -> tuple[np.ndarray, np.ndarray, Any]:
    """Images of varied brightness, their counts and the operator."""
    rng = np.random.default_rng(0)
    A = pylops.MatrixMult(rng.uniform(size=(N_DATA, 30)) * (rng.random((N_DATA, 1)) < 0.8))
    A.dims = SIZE
    images = rng.uniform(size=(6, *SIZE)) * np.array([0.1, 0.3, 1, 1, 2, 3])[:, None, None] * scale
    return images, noise.sample(np.stack([A @ x for x in images]), 1), A


def fitted(method: Any, noise: Any, trainer: Trainer = IDLE, **params: Any) -> tuple[Any, np.ndarray]:
    images, data, A = measured(noise)
    return method(A, noise=noise, trainer=trainer, **SMALL[method], **params).fit(images, data), data


def relative_weights(method: Any, data: np.ndarray) -> np.ndarray:
    """The formula: variances from each datum, bounded by that of images of the level everywhere."""
    noise, A = method.noise, method.operator
    rest = data - getattr(noise, "offset", 0.0)
    read = getattr(noise, "std", 0.0) ** 2
    dark = noise.gain * noise.background + read
    variances = np.maximum(noise.gain * rest + read, np.maximum(dark, noise.gain**2)) / noise.gain**2
    of_level = (noise.gain * (A @ np.full(SIZE, method.level_)) + dark) / noise.gain**2
    # Of counts, or of their multiples where the gain is one number.
    return np.minimum(1, max(of_level.mean(), 1) / variances) / (noise.gain**2 * np.ones(N_DATA))


def normal_equation(method: Any, x: np.ndarray, data: np.ndarray) -> np.ndarray:
    """``A^T W (A x + dark - y) / ||A||^2`` by dense matrices, the norm being that of counts."""
    A, noise = method.operator.A, method.noise
    each = np.ones(N_DATA) / noise.gain if np.ndim(noise.gain) else np.ones(N_DATA)
    w = relative_weights(method, data) * (1.0 if np.ndim(noise.gain) else noise.gain**2)
    square = as_torch(pylops.MatrixMult(each[:, None] * A)).norm() ** 2
    rest = x.reshape(len(x), -1) @ A.T + noise.dark - data
    return (w * rest @ A / square).reshape(x.shape)


# ------------------------------------------------------------------------------------------ formulas
@every_noise
def test_an_unrolled_gradient_is_that_of_weighted_squares(kind: str) -> None:
    method, data = fitted(VariationalNetwork, NOISES[kind], bounds=(None, None))
    method.module_.slopes.data.zero_()
    lam = np.exp(method.module_.log_lam.detach().numpy())
    first, second, third = method.staged_predict(data)
    assert_allclose(second, first - lam[1] * normal_equation(method, first, data), rtol=1e-6)
    assert_allclose(third, second - lam[2] * normal_equation(method, second, data), rtol=1e-6)
    w = relative_weights(method, data)
    assert (w < 0.3 * w.max()).any()  # or the test would show nothing


@every_noise
def test_an_equilibrium_is_one_of_weighted_squares(kind: str) -> None:
    method, data = fitted(DeepEquilibriumRecon, NOISES[kind])
    x = method.set_params(tol=1e-8, max_steps=1000).predict(data)
    h, normalised = method.module_.double().denoiser(), (x - method.level_) / method.spread_
    with torch.no_grad():
        deviation = normalised - h(torch.from_numpy(normalised)).numpy()
    method.module_.float()
    misfit = normal_equation(method, x, data)
    rest = misfit + method.lam_ * method.spread_ * deviation
    assert np.linalg.norm(rest) < 1e-5 * np.linalg.norm(misfit)


def test_most_of_the_data_keep_a_weight_of_order_one() -> None:
    """What moves a reconstruction: one bright datum among dark ones does not silence them."""
    noise = Poisson()
    method, data = fitted(VariationalNetwork, noise, bounds=(None, None))
    w = relative_weights(method, data)
    for k in (2, 4, 10):
        assert (w < 1 / k).mean() < 1 / k
    method.module_.slopes.data.zero_()
    dark = np.ones((1, N_DATA))
    dark[0, 3] = 1e4
    first, second, _ = method.staged_predict(dark)
    assert_allclose(second, first - normal_equation(method, first, dark), rtol=1e-6)


@every
def test_data_of_one_brightness_are_reconstructed_as_under_gaussian_noise(method: Any) -> None:
    model, data = fitted(method, Poisson(), trainer=BRIEF)
    free = {} if method is DeepEquilibriumRecon else {"bounds": (None, None)}
    uniform = np.full((1, N_DATA), 30.0)  # darker than images of the level, on average
    assert (model.operator @ np.full(SIZE, model.level_)).mean() > 30
    model.set_params(**free)
    counted, varied = model.predict(uniform), model.predict(data)
    model.set_params(noise=None)
    assert_allclose(model.predict(uniform), counted, rtol=1e-5, atol=1e-5 * np.abs(counted).max())
    assert np.abs(model.predict(data) - varied).max() > 5e-5 * np.abs(varied).max()


# ------------------------------------------------------------------------------------------ contract
@pytest.mark.parametrize("unit", [1e-6, 1e6])
@every
def test_the_unit_of_counts_plays_no_part(method: Any, unit: float) -> None:
    images, data, A = measured(Poisson(background=1.0))
    how = {**SMALL[method], "trainer": BRIEF}
    expected = method(A, noise=Poisson(background=1.0), **how).fit(images, data).predict(data)
    scaled = method(A, noise=Poisson(gain=unit, background=unit), **how)
    images, data = (unit * images).astype(np.float32), (unit * data).astype(np.float32)
    found = scaled.fit(images, data).predict(data)
    assert found.dtype == np.float32
    assert_allclose(found / unit, expected, atol=1e-3 * np.abs(expected).max())


@every
def test_no_image_of_counts_feels_its_companions(method: Any) -> None:
    model, data = fitted(method, NOISES["counts"], trainer=BRIEF)
    if method is DeepEquilibriumRecon:
        model.set_params(tol=1e-8)
    together = model.predict(data)
    alone = np.concatenate([model.predict(y[None]) for y in data])
    # The pseudo-inverse, where they start, is accurate to 1e-4.
    assert np.linalg.norm(alone - together) <= 2e-5 * np.linalg.norm(together)


@pytest.mark.parametrize("method", [m for m in SMALL if m is not LearnedPrimalDual], ids=lambda m: m.__name__)
def test_masked_counts_are_never_read(method: Any) -> None:
    model, data = fitted(method, NOISES["counts"], trainer=BRIEF)
    mask = np.random.default_rng(2).random(data.shape) < 0.3
    found = model.predict(np.ma.masked_array(data, mask))
    for value in (-7.0, 1e9, np.nan):
        spoilt = np.where(mask, value, data)
        assert_array_equal(model.predict(np.ma.masked_array(spoilt, mask)), found)
    images, _, A = measured(NOISES["counts"])
    common = np.broadcast_to(mask[0], data.shape)
    again, other = (
        method(A, noise=NOISES["counts"], trainer=BRIEF, **SMALL[method])
        .fit(images, np.ma.masked_array(np.where(common, value, data), common))
        .predict(data)
        for value in (0.0, np.nan)
    )
    assert_array_equal(again, other)
    kept = np.flatnonzero(~mask[0])
    fewer = clone(model).set_params(
        operator=pylops.Restriction(N_DATA, kept) @ model.operator,
        noise=Poisson(gain=0.5, background=BACKGROUND[kept]),
    )
    # The same weights: a network that sees fewer data is the same network.
    fewer.__dict__.update({k: v for k, v in vars(model).items() if k.endswith("_")})
    assert_allclose(fewer.predict(data[:1, kept]), found[:1], rtol=1e-5, atol=1e-6)


@every
def test_what_is_no_count_is_refused(method: Any) -> None:
    model, data = fitted(method, Poisson())
    images, _, A = measured(Poisson())
    for wrong, kind in ((-data, "negative"), (data + 1j, "complex")):
        with pytest.raises(ValueError, match=f"Y_meas: expected real counts >= 0 .* got {kind} values"):
            model.predict(wrong)
        with pytest.raises(ValueError, match="Y_meas: expected real counts >= 0"):
            method(A, noise="poisson", trainer=IDLE, **SMALL[method]).fit(images, wrong)


@pytest.mark.parametrize(
    "method", [m for m in SMALL if m is not DeepEquilibriumRecon], ids=lambda m: m.__name__
)
def test_counted_images_are_not_negative_unless_asked_for(method: Any) -> None:
    model, data = fitted(method, NOISES["counts"], trainer=BRIEF)
    data[0] = 0  # less than the background
    found = model.predict(data)
    assert found.min() == 0
    free = model.set_params(bounds=(None, None)).predict(data)
    assert free.min() < 0
    assert_array_equal(free.clip(0), found)


@every
def test_another_gain_needs_no_training(method: Any) -> None:
    model, data = fitted(method, Poisson(gain=0.5, background=1.0), trainer=BRIEF)
    weights = model.module_.state_dict()
    before = model.predict(data)
    changed = model.set_params(noise=Poisson(gain=5.0, background=4.0)).predict(data)
    assert np.isfinite(changed).all() and np.abs(changed - before).max() > 1e-3 * before.max()
    assert all(torch.equal(value, weights[name]) for name, value in model.module_.state_dict().items())


def test_files_keep_the_noise(tmp_path: Path) -> None:
    model, data = fitted(VariationalNetwork, NOISES["camera"])
    model.save(tmp_path / "method.skinverse")
    loaded = skinverse.load(tmp_path / "method.skinverse")
    assert loaded.noise.offset == 20.0
    assert_array_equal(loaded.predict(data), model.predict(data))


def test_a_training_depends_on_the_noise(tmp_path: Path) -> None:
    images, data, A = measured(Poisson())
    trained = [
        VariationalNetwork(A, noise=noise, memory=tmp_path, trainer=BRIEF, **SMALL[VariationalNetwork])
        .fit(images, data)
        .module_.log_lam.detach()
        for noise in (None, Poisson(), Poisson(background=9.0), Poisson())
    ]
    assert torch.equal(trained[1], trained[3])
    assert len({float(lam.sum()) for lam in trained}) == 3


def test_denoisers_of_counts_are_trained_on_patches_whose_pixels_are_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(1, 60, size=(4, 12, 12))
    for noise in (Poisson(background=2.0), Poisson(background=np.full((12, 12), 2.0))):
        data = noise.sample(images, 0)
        model = DeepEquilibriumRecon(
            noise=noise, patch_size=6, trainer=BRIEF, **SMALL[DeepEquilibriumRecon]
        ).fit(images, data)
        assert np.abs(model.predict(data) - images).mean() < np.abs(data - images).mean() + 2


def test_an_adaptation_by_plain_squares_refuses_methods_for_counts() -> None:
    model, data = fitted(VariationalNetwork, Poisson())
    with pytest.raises(
        ValueError, match="estimator: .* expected a method for Gaussian noise, got noise=Pois"
    ):
        ModelAdaptation(estimator=model).fit(None, data)


def test_gaussian_weights_are_the_same_for_all_images() -> None:
    """Counts of one image in the place of weights that are given."""
    method, data = fitted(VariationalNetwork, Poisson(background=1.0), bounds=(None, None))
    method.module_.slopes.data.zero_()
    w = relative_weights(method, data[:1])[0]
    weighted = clone(method).set_params(noise=Gaussian(weights=w))
    weighted.__dict__.update({k: v for k, v in vars(method).items() if k.endswith("_")})
    A, scale = method.operator.A, np.linalg.norm(np.sqrt(w)[:, None] * method.operator.A, 2) ** 2
    first, second, _ = weighted.staged_predict(data[:1] - 1.0)
    step = (w * (first.reshape(1, -1) @ A.T - data[:1] + 1.0)) @ A / scale
    assert_allclose(second, first - step.reshape(first.shape), rtol=1e-5)


def test_images_without_a_level_are_as_bright_as_their_spread() -> None:
    """With a dictionary of one's own no level is taken, and yet the data have weights of order one."""
    atoms = np.eye(30).reshape(30, *SIZE)
    model, _ = fitted(LISTA, Poisson(), dictionary=atoms, bounds=(None, None))
    assert model.level_ == 0
    dark = np.full((1, N_DATA), 15.0)
    counted = model.predict(dark)
    assert_allclose(model.set_params(noise=None).predict(dark), counted, rtol=1e-6)

"""Direct inversion: it starts as ridge regression, and knows nothing of the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from skorch.callbacks import Callback
from torch import Tensor, nn

import skinverse
from skinverse import DirectInversion, Trainer
from skinverse.datasets import make_ellipses
from skinverse.estimators.supervised import direct_inversion
from skinverse.operators import fourier_sampling, parallel_beam

# Learns next to nothing, but finds the units and the linear map.
IDLE = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.0)
either = pytest.mark.parametrize("kind", ["real", "complex"])


def trainer(max_epochs: int = 2, lr: float = 1e-3, **changed: Any) -> Trainer:
    """Nothing is held out, and the learning rate stays."""
    return Trainer(
        **({"max_epochs": max_epochs, "lr": lr, "final_lr": lr, "validation_fraction": 0.0} | changed)
    )


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[np.ndarray, np.ndarray, Any]]:
    """Sixteen small images, their noisy data and operator: tomography, and Fourier samples of two coils."""
    rng = np.random.default_rng(1)
    images = make_ellipses(16, 12, random_state=0)
    slope = np.linspace(0.2, 1.0, 12) * np.ones((12, 12))
    maps = np.stack([slope, 0.1 + 1j * slope.T])
    problems = {
        "real": (images, parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)),
        "complex": (images * np.exp(1j * images), fourier_sampling(rng.random((12, 12)) < 0.5, maps)),
    }
    noisy = {}
    for kind, (X, A) in problems.items():
        exact = np.stack([A @ x for x in X])
        noisy[kind] = X, exact + 0.02 * np.abs(exact).mean() * rng.normal(size=exact.shape), A
    return noisy


class Still(nn.Module):
    """Leaves its input alone, whatever it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.nothing


def ridge_cv(data: np.ndarray, images: np.ndarray) -> RidgeCV:
    """Ridge regression whose weight is chosen from seven decades around what varies in the data."""
    relative = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2]
    alphas = data.shape[1] * np.square(data - data.mean(0)).mean() * np.array(relative)
    return RidgeCV(alphas).fit(data, images.reshape(len(images), -1))


def linear_pairs(n: int, seed: int = 0, n_measurements: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Images of 3 x 4 pixels and data that are a noisy linear function of them."""
    A = np.random.default_rng(99).normal(size=(n_measurements, 12))
    rng = np.random.default_rng(seed)
    images = 2 + np.cumsum(rng.normal(size=(n, 12)), axis=1)
    return images.reshape(n, 3, 4), images @ A.T + 0.5 * rng.normal(size=(n, n_measurements))


@pytest.mark.parametrize("n", [3, 30])
def test_direct_inversion_starts_as_ridge_regression(n: int) -> None:
    images, data = linear_pairs(n)
    Y = linear_pairs(5, seed=1)[1]
    module = direct_inversion.Direct((1, 3, 4), 9, Still()).double()
    module.start(torch.from_numpy(images)[:, None], torch.from_numpy(data))
    expected = ridge_cv(data, images).predict(Y)
    assert_allclose(module(torch.from_numpy(Y)).detach().flatten(1).numpy(), expected, atol=1e-8)
    model = DirectInversion(network=Still(), trainer=IDLE).fit(images, data)
    assert_allclose(model.predict(Y).reshape(5, -1), expected, rtol=1e-3, atol=1e-3)


def test_the_start_knows_nothing_of_what_is_held_out() -> None:
    images, data = linear_pairs(20)
    idle = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.3)
    order, held = (part.numpy() for part in idle.split(20, seed_of_state_zero()))
    assert len(held) == 6
    model = DirectInversion(network=Still(), trainer=idle).fit(images, data)
    Y = linear_pairs(5, seed=1)[1]
    expected = ridge_cv(data[order], images[order]).predict(Y)
    assert_allclose(model.predict(Y).reshape(5, -1), expected, rtol=1e-3, atol=1e-3)
    images[held], data[held] = 1e3 * images[held][::-1], -data[held]
    # All images, also those held out, have a part in their common unit, and this in the rounding.
    assert_allclose(clone(model).fit(images, data).predict(Y), model.predict(Y), rtol=1e-3, atol=1e-3)


def seed_of_state_zero() -> int:
    """The seed of the trainer under ``random_state=0``."""
    return int(np.random.RandomState(0).randint(2**31))


def test_training_is_never_worse_than_its_start_on_what_is_held_out() -> None:
    images, data = linear_pairs(40)
    wild = Trainer(max_epochs=3, lr=0.3, final_lr=0.3, max_grad_norm=np.inf, validation_fraction=0.4)
    model = DirectInversion(trainer=wild).fit(images, data)
    still = Trainer(max_epochs=1, lr=1e-30, validation_fraction=0.4)
    idle = DirectInversion(trainer=still).fit(images, data)
    kept, held = (part.numpy() for part in wild.split(40, seed_of_state_zero()))
    assert model.score(images[held], data[held]) >= idle.score(images[held], data[held]) - 1e-3
    everything = trainer(3, lr=0.3, max_grad_norm=np.inf)
    without = DirectInversion(trainer=everything).fit(images[kept], data[kept])
    assert without.score(images[held], data[held]) < idle.score(images[held], data[held]) - 1


def test_many_gaussian_pairs_lead_to_the_best_linear_estimate() -> None:
    rng = np.random.default_rng(0)
    A, root, noise_std = rng.normal(size=(5, 6)), np.tril(rng.normal(size=(6, 6))), 0.5
    z, noise = rng.normal(size=(3000, 6)), noise_std * rng.normal(size=(3000, 5))
    images, covariance = 1 + z @ root.T, root @ root.T
    data = images @ A.T + noise
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + noise_std**2 * np.eye(5))
    best = 1 + (data - (A @ np.ones(6))) @ gain.T
    learned = DirectInversion(network=Still(), trainer=trainer(2, batch_size=50, lr=1e-4))
    found = learned.fit(images[:2000], data[:2000]).predict(data[2000:])
    errors = [np.square(x - images[2000:]).mean() for x in (found, best[2000:], np.ones((1000, 6)))]
    assert errors[0] < 1.02 * errors[1] and errors[1] < 0.5 * errors[2]
    assert np.square(found - best[2000:]).mean() < 0.02 * errors[1]


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 5)])
@pytest.mark.parametrize("kinds", [(float, float), (float, complex), (complex, float), (complex, complex)])
def test_without_an_operator_data_may_have_any_shape_and_kind(kinds: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 3, 4)).astype(kinds[0]) * (1 if kinds[0] is float else 1 + 0.5j)
    data = rng.normal(size=(8, *shape)).astype(kinds[1]) * (1 if kinds[1] is float else 1 - 2j)
    model = DirectInversion(trainer=trainer(1)).fit(images, data)
    found = model.predict(data)
    assert found.shape == images.shape and found.dtype == images.dtype
    assert_allclose(model.predict(data.reshape(8, -1)), found)
    with pytest.raises(ValueError, match="Y_meas: expected"):
        model.predict(np.zeros((2, 99)))


@pytest.mark.parametrize("kind", [float, complex])
def test_real_data_are_not_taken_for_complex_ones(kind: Any) -> None:
    images, data = linear_pairs(6)
    model = DirectInversion(trainer=trainer(1)).fit(images, data.astype(kind))
    with pytest.raises(ValueError, match="counts twice"):
        model.predict(data.astype(complex if kind is float else float))


@pytest.mark.parametrize("known", [True, False])
def test_another_operator_after_the_training_is_refused(known: bool, pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = DirectInversion(A if known else None, trainer=trainer(1)).fit(images, data)
    before = model.predict(data)
    other = parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)
    with pytest.raises(ValueError, match="fit again"):
        model.set_params(operator=other).predict(data)
    assert_array_equal(model.set_params(operator=model.operator_).predict(data), before)


def test_huge_maps_are_announced(monkeypatch: Any) -> None:
    images, data = linear_pairs(4)
    DirectInversion(trainer=trainer(1)).fit(images, data)  # else no word
    monkeypatch.setattr(direct_inversion, "_MANY", 12 * 9)
    DirectInversion(trainer=trainer(1)).fit(images, data)
    monkeypatch.setattr(direct_inversion, "_MANY", 12 * 9 - 1)
    with pytest.warns(UserWarning, match=r"1\.1e\+02 weights"):
        DirectInversion(trainer=trainer(1)).fit(images, data)


# ------------------------------------------------------------------------------------ the training
@either
def test_training_comes_closer_to_the_images(kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    errors = [
        np.square(np.abs(DirectInversion(A, trainer=t).fit(images, data).predict(data) - images)).mean()
        for t in (IDLE, trainer(12, lr=3e-3))
    ]
    assert errors[1] < 0.5 * errors[0]


@either
def test_no_image_depends_on_its_companions(kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = DirectInversion(A, trainer=trainer()).fit(images, data)
    together = model.predict(data)
    crowd = data.copy()
    crowd[1:] *= 1e3
    alone = np.concatenate([model.predict(data[i : i + 1]) for i in range(3)])
    assert_allclose(alone, together[:3], atol=1e-9)
    assert_allclose(model.predict(crowd)[0], together[0], atol=1e-9)


@either
def test_a_warm_start_continues(kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = DirectInversion(A, trainer=trainer(4, lr=3e-3), warm_start=True).fit(images, data)
    before, first = model.predict(data), model.history_[0]["train_loss"]
    assert_array_equal(model.set_params(trainer=IDLE).fit(images, data).predict(data), before)
    model.set_params(trainer=trainer(1, lr=3e-3)).fit(images, data)
    assert model.history_[0]["train_loss"] < first
    assert np.abs(model.predict(data) - before).max() > 1e-6
    cold = model.set_params(warm_start=False, trainer=IDLE).fit(images, data).predict(data)
    assert np.abs(cold - before).max() > 1e-4


class Killed(BaseException):
    """What ends a process ends a training."""


class KillAfter(Callback):
    """Ends the training after so many epochs, without a word to anybody."""

    def __init__(self, n_epochs: int) -> None:
        self.n_epochs = n_epochs

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        if len(net.history) == self.n_epochs:
            raise Killed


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_a_killed_training_goes_on_to_the_same_weights(held_out: float, pairs: Any, tmp_path: Any) -> None:
    images, data, A = pairs["real"]
    given = {"max_epochs": 4, "lr": 3e-3, "validation_fraction": held_out}
    whole = DirectInversion(A, trainer=Trainer(**given)).fit(images, data)
    given["checkpoint"] = tmp_path / "training"
    with pytest.raises(Killed):
        DirectInversion(A, trainer=Trainer(**given, callbacks=[KillAfter(2)])).fit(images, data)
    resumed = DirectInversion(A, trainer=Trainer(**given)).fit(images, data)
    weights = resumed.module_.state_dict()
    for name, weight in whole.module_.state_dict().items():
        assert_array_equal(weights[name], weight)
    assert [epoch["train_loss"] for epoch in resumed.history_] == [
        epoch["train_loss"] for epoch in whole.history_
    ]


@either
def test_saved_and_loaded_predict_alike(kind: str, pairs: Any, tmp_path: Any) -> None:
    images, data, A = pairs[kind]
    model = DirectInversion(A, trainer=trainer()).fit(images, data)
    model.save(tmp_path / "model.skinverse")
    assert_array_equal(skinverse.load(tmp_path / "model.skinverse").predict(data), model.predict(data))


@pytest.mark.parametrize("lr", [1e3, 1e10])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_diverging_training_is_told_not_raised(held_out: float, lr: float) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    wild = trainer(4, lr=lr, max_grad_norm=np.inf, validation_fraction=held_out, score_every=1)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        model = DirectInversion(trainer=wild).fit(X, X)
    if held_out:  # what came before is kept
        assert np.square(model.predict(X) - X).mean() < 1


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="pairs"):
        DirectInversion().fit(np.zeros((3, 4, 4)), np.zeros((2, 4, 4)))

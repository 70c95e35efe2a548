"""What all unrolled methods have in common: stages, units, bounds, starts, training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import Tensor
from torch.testing import assert_close

import skinverse
from skinverse import (
    LISTA,
    LearnedGradientDescent,
    LearnedPrimalDual,
    Tikhonov,
    TotalVariationRecon,
    Trainer,
    VariationalNetwork,
)
from skinverse.datasets import make_ellipses, make_problem
from skinverse.estimators.unrolled.base import ScaledProblem
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling, parallel_beam

SMALL: dict[Any, dict[str, Any]] = {
    LearnedGradientDescent: {"n_iterations": 3, "n_features": 8, "n_states": 2},
    LearnedPrimalDual: {"n_iterations": 3, "n_features": 8, "n_states": 2},
    LISTA: {"n_iterations": 3, "kernel_size": 3},
    VariationalNetwork: {"n_iterations": 3, "n_filters": 4, "kernel_size": 3, "n_knots": 7},
}
every = pytest.mark.parametrize("method", list(SMALL))
convolutional = pytest.mark.parametrize("method", [LearnedGradientDescent, LearnedPrimalDual])
either = pytest.mark.parametrize("kind", ["real", "complex"])


def trainer(max_epochs: int = 2, lr: float = 1e-3, **changed: Any) -> Trainer:
    """Nothing is held out, and the learning rate stays."""
    return Trainer(
        **({"max_epochs": max_epochs, "lr": lr, "final_lr": lr, "validation_fraction": 0.0} | changed)
    )


# Learns next to nothing, but finds unit and level.
IDLE = trainer(1, lr=1e-30)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------ scales
def test_scaled_products_have_norm_one_and_are_adjoint() -> None:
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    A = as_torch(7.0 * fourier_sampling(mask))
    data, start = random(2, *A.dimsd, dtype=torch.complex128), random(2, 6, 5, dtype=torch.complex128)
    problem = ScaledProblem(A, data, start)
    x, y = random(2, 2, 6, 5, seed=1), random(*problem.data.shape, seed=2)
    assert_close((problem.forward(x) * y).sum(), (x * problem.adjoint(y)).sum())
    assert_close(problem.gradient(x), problem.adjoint(problem.forward(x)) - problem.adjoint(problem.data))
    seen = x
    for _ in range(30):
        seen = problem.adjoint(problem.forward(seen))
        seen = seen / seen.norm()
    assert float(problem.forward(seen).norm()) == pytest.approx(1.0, abs=2e-3)


@every
def test_the_units_of_operator_and_images_play_no_part(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    plain = method(A, **SMALL[method], trainer=trainer()).fit(images[:8], data[:8]).predict(data[8:12])
    scaled = method(50.0 * A, **SMALL[method], trainer=trainer()).fit(20 * images[:8], 1000 * data[:8])
    assert_allclose(scaled.predict(1000 * data[8:12]) / 20, plain, atol=2e-3 * np.abs(plain).max())


# ------------------------------------------------------------------------------------------ images
@every
def test_pairs_are_learned_and_the_last_stage_is_the_prediction(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    images, data = images[:16], data[:16]
    model = method(A, **SMALL[method], trainer=trainer(60, lr=3e-3)).fit(images, data)
    *_, last = stages = list(model.staged_predict(data))
    assert len(stages) == 3
    assert_array_equal(last, model.predict(data))
    start = as_torch(A).filtered_adjoint(torch.from_numpy(data)).numpy()
    assert psnr(images, last).mean() > psnr(images, start).mean() + 1


@either
@every
def test_stages_differ_and_are_of_the_kind_of_the_images(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    stages = list(model.staged_predict(data))
    assert len(stages) == 3
    assert_array_equal(stages[-1], model.predict(data))
    assert stages[-1].dtype == images.astype(data.dtype).dtype
    assert np.abs(stages[1] - stages[2]).max() > 1e-4


@every
def test_bounds_hold_in_every_stage(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    model = method(A, **SMALL[method], trainer=trainer(1)).fit(images, data)
    free = model.predict(data)
    assert free.min() < 0
    for x in model.set_params(bounds=(0, None)).staged_predict(data):
        assert x.min() >= 0
    assert_array_equal(model.predict(data), free.clip(0, None))


@every
def test_complex_images_have_no_bounds(method: Any) -> None:
    X = np.ones((2, 4, 4), complex)
    with pytest.raises(ValueError, match="bounds: complex images"):
        method(bounds=(0, None)).fit(X, X)
    model = method(**SMALL[method], bounds=(None, None), trainer=IDLE).fit(X, X)
    with pytest.raises(ValueError, match="bounds: complex images"):
        model.set_params(bounds=(0, None)).predict(X)


@every
def test_another_operator_and_size_need_no_training(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    other = parallel_beam((20, 24), np.arange(12) * np.pi / 12, 33)
    X = make_ellipses(2, 24, random_state=5)[:, 2:22]
    Y = np.stack([other @ x for x in X])
    x = model.set_params(operator=other).predict(Y)
    assert psnr(X, x).mean() > psnr(X, np.zeros_like(X)).mean() + 3


@every
def test_other_channels_are_refused(method: Any) -> None:
    images, data, A = make_problem("mri", n_samples=4, size=16, random_state=0)
    model = method(A, **SMALL[method], trainer=trainer(1)).fit(images, data)
    other = parallel_beam((16, 16), np.arange(4), 23)
    with pytest.raises(ValueError, match=r"images of 2 and data of .* got"):
        model.set_params(operator=other).predict(np.zeros((1, 4, 23)))


@every
def test_a_denoiser_of_one_channel_takes_many_one_by_one(method: Any) -> None:
    X = np.random.default_rng(0).normal(size=(4, 6, 6))
    model = method(**SMALL[method], trainer=trainer(1)).fit(X, X)
    stacked = np.stack([X, X], axis=1)
    alone = model.predict(X)
    with pytest.raises(ValueError, match="trained on images of 2 spatial axes, got 3.*channel_axis"):
        model.predict(stacked)
    found = copy.copy(model).set_params(channel_axis=0).predict(stacked)
    assert_allclose(found[:, 1], alone, atol=1e-12)
    with pytest.raises(ValueError, match="a complex one counts twice"):
        model.predict(X + 1j * X)


@either
@every
def test_no_image_depends_on_its_companions(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    together = model.predict(data)
    crowd = data.copy()
    crowd[1:] *= 1e3
    alone = np.concatenate([model.predict(data[i : i + 1]) for i in range(3)])
    assert_allclose(alone, together[:3], atol=1e-9)
    assert_allclose(model.predict(crowd)[0], together[0], atol=1e-9)


# -------------------------------------------------------------------------------------- parameters
@every
@pytest.mark.parametrize("n_iterations", [0, 2.5])
def test_a_number_of_iterations_that_makes_no_network_is_refused(method: Any, n_iterations: Any) -> None:
    with pytest.raises(ValueError, match=f"n_iterations: expected a whole number >= 1, got {n_iterations}"):
        method(n_iterations=n_iterations).fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


@convolutional
@pytest.mark.parametrize("changed", ["n_states", "n_features"])
def test_numbers_that_make_no_network_are_refused(method: Any, changed: str) -> None:
    with pytest.raises(ValueError, match=f"{changed}: expected a whole number >= 1, got 0"):
        method(**{changed: 0}).fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


@every
def test_the_number_of_iterations_is_fixed_by_the_training(
    method: Any, tomography: Any, tmp_path: Any
) -> None:
    images, data, A = tomography
    model = method(A, **SMALL[method], trainer=trainer(1)).fit(images[:8], data[:8])
    assert model.n_iterations_ == 3
    with pytest.raises(ValueError, match="n_iterations: learned with 3, got 2: fit again"):
        model.set_params(n_iterations=2).predict(data[:2])
    if method in (LearnedGradientDescent, LISTA):  # whose weights fit any number
        model.save(tmp_path / "model")
        with pytest.raises(ValueError, match="n_iterations: learned with 3"):
            skinverse.load(tmp_path / "model").predict(data[:2])


@convolutional
def test_shared_weights_are_those_of_one_iteration(method: Any) -> None:
    X = np.random.default_rng(0).normal(size=(4, 6, 6))

    def n_weights(shared: bool) -> int:
        model = method(**SMALL[method] | {"shared": shared, "n_iterations": 4}, trainer=IDLE).fit(X, X)
        return sum(p.numel() for p in model.module_.parameters())

    assert n_weights(False) == 4 * n_weights(True)


# ------------------------------------------------------------------------------------------ starts
@convolutional
def test_untrained_iterations_return_what_they_start_from(method: Any, tomography: Any) -> None:
    images, data, A = tomography
    model = method(A, **SMALL[method], trainer=IDLE).fit(images[:4], data[:4])
    level = np.full((1, *A.dims), model.level_, np.float32)
    rest = torch.from_numpy(data[:2]) - as_torch(A)(torch.from_numpy(level))
    start = level + as_torch(A).filtered_adjoint(rest).numpy()
    for x in model.staged_predict(data[:2]):
        assert_allclose(x, start, atol=1e-6)


@convolutional
def test_iterations_may_start_from_any_reconstruction(method: Any, tomography: Any, tmp_path: Any) -> None:
    images, data, A = tomography
    initial = TotalVariationRecon(lam=0.01)
    idle = method(A, initial=initial, **SMALL[method], trainer=IDLE).fit(images[:8], data[:8])
    assert_allclose(idle.predict(data), TotalVariationRecon(A, lam=0.01).fit().predict(data), atol=1e-6)
    assert not hasattr(initial, "operator_") and initial.operator is None
    model = method(A, initial=initial, **SMALL[method], trainer=trainer(1)).fit(images[:8], data[:8])
    plain = method(A, **SMALL[method], trainer=trainer(1)).fit(images[:8], data[:8])
    assert np.abs(model.predict(data) - plain.predict(data)).max() > 1e-3
    model.save(tmp_path / "model")
    assert_array_equal(skinverse.load(tmp_path / "model").predict(data), model.predict(data))
    other = parallel_beam((16, 16), np.arange(6) * np.pi / 6, 23)
    seen = np.stack([other @ x for x in images])
    assert model.set_params(operator=other).predict(seen).shape == images.shape


@every
def test_a_frozen_start_is_used_as_it_is(
    method: Any, tomography: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, data, A = tomography
    images, data = images[:8], data[:8]
    start = Tikhonov(A, lam=0.01).fit()
    renewed = method(A, initial=Tikhonov(lam=0.01), **SMALL[method], trainer=trainer(1))
    expected = renewed.fit(images, data).predict(data)

    def refuse(*_: Any) -> None:
        raise AssertionError("the start was fitted again")

    monkeypatch.setattr(Tikhonov, "fit", refuse)
    frozen = FrozenEstimator(start)
    model = method(A, initial=frozen, **SMALL[method], trainer=trainer(1)).fit(images, data)
    assert model.initial_ is start
    assert_array_equal(model.predict(data), expected)
    assert model.get_params()["initial"] is frozen
    assert model.get_params()["initial__estimator"] is start
    assert_array_equal(clone(model).fit(images, data).predict(data), expected)
    model.save(tmp_path / "model")
    loaded = skinverse.load(tmp_path / "model")
    assert_array_equal(loaded.predict(data), expected)
    assert_array_equal(loaded.fit(images, data).predict(data), expected)


@every
def test_what_is_no_start_is_refused(method: Any) -> None:
    with pytest.raises(ValueError, match="initial: expected an estimator or None, got 'tv'"):
        method(initial="tv").fit(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


# ---------------------------------------------------------------------------------------- training
@either
@every
def test_training_comes_closer_to_the_images(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    errors = [
        np.square(
            np.abs(method(A, **SMALL[method], trainer=t).fit(images, data).predict(data) - images)
        ).mean()
        for t in (IDLE, trainer(12, lr=1e-2))
    ]
    assert errors[1] < 0.9 * errors[0]


@either
@every
def test_a_warm_start_continues(method: Any, kind: str, pairs: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer(4, lr=3e-3), warm_start=True).fit(images, data)
    before, first = model.predict(data), model.history_[0]["train_loss"]
    assert_array_equal(model.set_params(trainer=IDLE).fit(images, data).predict(data), before)
    model.set_params(trainer=trainer(1, lr=3e-3)).fit(images, data)
    assert model.history_[0]["train_loss"] < first
    assert np.abs(model.predict(data) - before).max() > 1e-6
    cold = model.set_params(warm_start=False, trainer=IDLE).fit(images, data).predict(data)
    assert np.abs(cold - before).max() > 1e-4


def test_a_warm_start_with_another_network_is_refused(pairs: Any) -> None:
    images, data, A = pairs["real"]
    model = LISTA(A, **SMALL[LISTA], trainer=IDLE, warm_start=True).fit(images, data)
    with pytest.raises(ValueError, match=r"warm_start: .*another network.*use warm_start=False"):
        model.set_params(kernel_size=5).fit(images, data)


TINY: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient descent": (LearnedGradientDescent, {"n_features": 4, "n_states": 2, "shared": False}),
    "primal-dual": (LearnedPrimalDual, {"n_features": 4, "n_states": 2}),
    "variational": (VariationalNetwork, {"n_filters": 3, "kernel_size": 3, "n_knots": 6}),
    "tied": (LISTA, {"kernel_size": 3, "shared": False}),
    "untied": (LISTA, {"kernel_size": 3, "shared": False, "tied": False}),
    "dense": (LISTA, {"dictionary": "dense", "tied": False}),
}


@pytest.mark.parametrize("name", list(TINY))
def test_weights_have_exact_derivatives(name: str) -> None:
    method, parameters = TINY[name]
    operator = parallel_beam((5, 5), np.arange(3), 7)
    A = as_torch(operator)
    x, start = random(2, 5, 5), random(2, 5, 5, seed=1)
    y = A(x)
    model = method(operator, n_iterations=2, **parameters, trainer=IDLE).fit(x.numpy(), y.numpy())
    network = model.module_.double()
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for i, (key, p) in enumerate(weights.items()):
            p.copy_(
                torch.full_like(p, 0.04) if key == "threshold" else p + 0.1 * random(*p.shape, seed=7 + i)
            )

    def loss() -> Tensor:
        return (network(A, y, start) - x).square().sum()

    loss().backward()
    if method in (LISTA, VariationalNetwork):  # each iteration uses its own weights, all of them
        assert all((p.grad.reshape(len(p), -1) != 0).any(1).all() for p in weights.values())
    directions = {key: random(*p.shape, seed=i) for i, (key, p) in enumerate(weights.items())}
    slope = sum((p.grad * directions[key]).sum() for key, p in weights.items())
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for key, p in weights.items():
                p.add_(step * directions[key])
            values.append(loss())
            for key, p in weights.items():
                p.sub_(step * directions[key])
    assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


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
@every
def test_a_killed_training_goes_on_to_the_same_weights(
    method: Any, held_out: float, pairs: Any, tmp_path: Any
) -> None:
    images, data, A = pairs["real"]
    given = {"max_epochs": 4, "lr": 3e-3, "validation_fraction": held_out}
    whole = method(A, **SMALL[method], trainer=Trainer(**given)).fit(images, data)
    given["checkpoint"] = tmp_path / "training"
    with pytest.raises(Killed):
        method(A, **SMALL[method], trainer=Trainer(**given, callbacks=[KillAfter(2)])).fit(images, data)
    resumed = method(A, **SMALL[method], trainer=Trainer(**given)).fit(images, data)
    weights = resumed.module_.state_dict()
    for name, weight in whole.module_.state_dict().items():
        assert_array_equal(weights[name], weight)
    assert [epoch["train_loss"] for epoch in resumed.history_] == [
        epoch["train_loss"] for epoch in whole.history_
    ]


@either
@every
def test_saved_and_loaded_predict_alike(method: Any, kind: str, pairs: Any, tmp_path: Any) -> None:
    images, data, A = pairs[kind]
    model = method(A, **SMALL[method], trainer=trainer()).fit(images, data)
    model.save(tmp_path / "model.skinverse")
    assert_array_equal(skinverse.load(tmp_path / "model.skinverse").predict(data), model.predict(data))


@convolutional
def test_a_diverging_training_leaves_weights_that_predict(method: Any) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    wild = trainer(4, lr=1e12, max_grad_norm=np.inf)
    with pytest.warns(ConvergenceWarning, match="last good weights are kept"):
        model = method(n_iterations=2, trainer=wild).fit(X, X[::-1].copy())
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("lr", [1e3, 1e10])
@pytest.mark.parametrize("held_out", [0.0, 0.3])
@pytest.mark.parametrize("method", [LISTA, VariationalNetwork])
def test_a_diverging_training_is_told_not_raised(method: Any, held_out: float, lr: float) -> None:
    X = np.random.default_rng(0).normal(size=(6, 8, 8))
    wild = trainer(4, lr=lr, max_grad_norm=np.inf, validation_fraction=held_out, score_every=1)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        model = method(**SMALL[method], trainer=wild).fit(X, X)
    if held_out:  # what came before is kept
        assert np.square(model.predict(X) - X).mean() < 1


@every
def test_pairs_are_needed(method: Any) -> None:
    with pytest.raises(ValueError, match="pairs"):
        method().fit(np.zeros((3, 4, 4)), np.zeros((2, 4, 4)))

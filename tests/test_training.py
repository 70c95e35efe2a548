"""The trainer and the learned base class, on the smallest network there is."""

from __future__ import annotations

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from skinverse import Trainer
from skinverse.estimators import LearnedReconstructor
from skinverse.operators import LinearMap
from skinverse.solvers import Solution


class Gain(LearnedReconstructor):
    """Learns one number: images are a multiple of the data."""

    def __init__(
        self,
        operator=None,
        *,
        lam=0.0,
        trainer=None,
        memory=None,
        warm_start=False,
        random_state=0,
        verbose=0,
        device="cpu",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _make_module(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def _loss(self, module: nn.Module, images: Tensor, data: Tensor) -> Tensor:
        return (data * module.weight - images).square().flatten(1).sum(1)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        with torch.no_grad():
            return Solution.direct((1 - self.lam) * self.module_.weight * data)


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    Y = np.random.default_rng(0).normal(size=(40, 6))
    return 3 * Y, Y


FAST = Trainer(max_epochs=30, lr=0.1, batch_size=4)


def test_learns_the_gain(pairs) -> None:
    X, Y = pairs
    model = Gain(trainer=FAST).fit(X, Y)
    assert model.module_.weight.item() == pytest.approx(3, abs=0.05)
    assert len(model.history_) == 30
    assert {"train_loss", "valid_loss", "valid_score"} <= set(model.history_[-1])


def test_same_seed_same_weights_and_global_generators_untouched(pairs) -> None:
    X, Y = pairs
    before = torch.get_rng_state()
    first, second = (Gain(trainer=FAST).fit(X, Y).module_.weight.item() for _ in range(2))
    other = Gain(trainer=FAST, random_state=1).fit(X, Y).module_.weight.item()
    assert first == second != other
    assert_array_equal(torch.get_rng_state(), before)


def test_best_epoch_is_kept_not_the_last(pairs) -> None:
    X, Y = pairs
    X = X + np.random.default_rng(1).normal(size=X.shape)
    one = Gain(trainer=Trainer(max_epochs=20, lr=3.0, batch_size=4)).fit(X, Y)
    best = int(np.argmax([epoch["valid_score"] for epoch in one.history_]))
    assert best < 19
    again = Gain(trainer=Trainer(max_epochs=best + 1, lr=3.0, batch_size=4)).fit(X, Y)
    assert one.module_.weight.item() == again.module_.weight.item()


def test_patience_stops_early(pairs) -> None:
    X, Y = pairs
    model = Gain(trainer=Trainer(max_epochs=500, lr=0.5, batch_size=4, patience=3)).fit(X, Y)
    assert len(model.history_) < 500


def test_nothing_held_out_uses_every_pair(pairs) -> None:
    X, Y = pairs
    model = Gain(trainer=Trainer(max_epochs=30, lr=0.1, validation_fraction=0.0)).fit(X, Y)
    assert "valid_loss" not in model.history_[-1]
    assert model.module_.weight.item() == pytest.approx(3, abs=0.1)


def test_divergence_keeps_the_last_good_weights_and_warns(pairs) -> None:
    X, Y = pairs
    with pytest.warns(ConvergenceWarning, match="not finite"):
        model = Gain(trainer=Trainer(max_epochs=50, lr=1e30, optimizer="sgd")).fit(X, Y)
    assert np.isfinite(model.module_.weight.item())
    assert np.isfinite(model.predict(Y)).all()


def test_warm_start_continues(pairs) -> None:
    X, Y = pairs
    short = Trainer(max_epochs=2, lr=0.05, validation_fraction=0.0)
    model = Gain(trainer=short, warm_start=True).fit(X, Y)
    error = abs(model.module_.weight.item() - 3)
    assert abs(model.fit(X, Y).module_.weight.item() - 3) < error


def test_a_grid_over_reconstruction_parameters_trains_once_per_fold(pairs, tmp_path, monkeypatch) -> None:
    X, Y = pairs
    trained: list[int] = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    model = Gain(trainer=FAST, memory=str(tmp_path))
    search = GridSearchCV(model, {"lam": [0.0, 0.1, 0.2, 0.3]}, cv=2, error_score="raise").fit(X, Y)
    assert len(trained) == 3  # two folds and the refit
    assert search.best_params_ == {"lam": 0.0}


def test_cached_training_depends_on_the_operator(pairs, tmp_path) -> None:
    X, Y = pairs
    X = X + np.random.default_rng(1).normal(size=X.shape)
    one = Gain(pylops.Identity(6), trainer=FAST, memory=str(tmp_path)).fit(X, Y)
    two = Gain(2 * pylops.Identity(6), trainer=FAST, memory=str(tmp_path)).fit(X, 2 * Y)
    assert one.module_.weight.item() != two.module_.weight.item()


def test_precision_of_the_images_is_the_modules(pairs) -> None:
    X, Y = pairs
    assert (
        Gain(trainer=Trainer(max_epochs=1)).fit(X.astype("f4"), Y.astype("f4")).module_.weight.dtype
        == torch.float32
    )


def test_missing_images_are_named(pairs) -> None:
    with pytest.raises(ValueError, match="X_true is missing"):
        Gain().fit(Y_meas=pairs[1])


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        (Trainer(optimizer="adamm"), "optimizer: expected one of"),
        (Trainer(validation_fraction=1.0), "nothing of 40"),
    ],
)
def test_bad_trainers_are_refused(pairs, trainer, says) -> None:
    with pytest.raises(ValueError, match=says):
        Gain(trainer=trainer).fit(*pairs)


def test_trainer_parameters_can_be_searched(pairs) -> None:
    search = GridSearchCV(Gain(trainer=Trainer(max_epochs=3)), {"trainer__lr": [1e-4, 0.3]}, cv=2).fit(*pairs)
    assert search.best_params_ == {"trainer__lr": 0.3}

"""The trainer, the loop and the learned base class, on the smallest network there is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pylops
import pytest
import skorch
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import EarlyStopping
from torch import Tensor, nn

from skinverse import Trainer
from skinverse.estimators import LearnedReconstructor, parameter
from skinverse.estimators._problems import Problems
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Phase

n_losses = 0  # calls of the loss
fail_at = 0  # the call that fails


def count() -> None:
    """What a function writes is state and no part of the code that a cache compares."""
    global n_losses, fail_at
    n_losses, fail_at = n_losses + 1, fail_at
    if n_losses == fail_at:
        raise KeyboardInterrupt


class Gain(LearnedReconstructor):
    """Learns one number, in two phases: images are a multiple of the data."""

    _reconstruction_params = ("lam", "verbose", "device")

    lam: float = parameter(default=0.0)
    noise: float = parameter(default=0.0)

    def _make_module(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.0))

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        def loss(module: Any, x: Tensor, y: Tensor) -> Tensor:
            count()
            noisy = y + self.noise * torch.randn_like(y)
            return (noisy * module[0].weight - x).square().flatten(1).sum(1)

        def score(x: Tensor, y: Tensor) -> float:
            return -float((self._reconstruct(problems.A, y).x - x).square().mean())

        trainer = self.trainer.over(max_epochs=100, score_every=1)
        yield Phase("first", loss, (images, data), trainer, score)
        with torch.no_grad():
            module[0].weight.mul_(1 + 0.01 * torch.rand(()))  # what a method does between two phases
        yield Phase("second", loss, (images, data), trainer, score)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        with torch.no_grad():
            return Solution.direct((1 - self.lam) * self.module_[0].weight * data)


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    global n_losses, fail_at
    n_losses, fail_at = 0, 0


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    Y = np.random.default_rng(0).normal(size=(40, 6))
    return 3 * Y, Y


FAST = Trainer(max_epochs=30, lr=0.1, batch_size=4)


def gain(model: Gain) -> float:
    return model.module_[0].weight.item()


# ---------------------------------------------------------------------- the loop
def test_learns_the_gain(pairs) -> None:
    model = Gain(trainer=FAST).fit(*pairs)
    assert gain(model) == pytest.approx(3, abs=0.05)
    assert [epoch["phase"] for epoch in model.history_] == ["first"] * 30 + ["second"] * 30
    assert {"epoch", "train_loss", "valid_loss", "valid_score", "dur"} == set(model.history_[-1]) - {"phase"}
    assert all(type(v) in (int, float, str) for epoch in model.history_ for v in epoch.values())


def test_same_seed_same_weights_and_global_generators_untouched(pairs) -> None:
    before = torch.get_rng_state()
    first, second = (gain(Gain(trainer=FAST).fit(*pairs)) for _ in range(2))
    other = gain(Gain(trainer=FAST, random_state=1).fit(*pairs))
    assert first == second != other
    assert_array_equal(torch.get_rng_state(), before)


def test_best_epoch_is_kept_not_the_last(pairs) -> None:
    X, Y = pairs
    X = X + np.random.default_rng(1).normal(size=X.shape)
    model = Gain(trainer=Trainer(max_epochs=20, lr=3.0, batch_size=4)).fit(X, Y)
    second = [epoch for epoch in model.history_ if epoch["phase"] == "second"]
    best = int(np.argmax([epoch["valid_score"] for epoch in second]))
    assert best < 19
    held_out = Trainer(validation_fraction=0.1).split(40, np.random.RandomState(0).randint(2**31))[1].numpy()
    x, y = ((batch[held_out] - model.level_) / model.spread_ for batch in (X, Y))
    error = np.mean((gain(model) * y - x) ** 2)
    assert -error == pytest.approx(max(epoch["valid_score"] for epoch in second), rel=1e-5)


def test_patience_stops_early(pairs) -> None:
    model = Gain(trainer=Trainer(max_epochs=500, lr=0.5, batch_size=4, patience=3)).fit(*pairs)
    assert len(model.history_) < 500


def test_nothing_held_out_uses_every_pair(pairs) -> None:
    model = Gain(trainer=Trainer(max_epochs=30, lr=0.1, validation_fraction=0.0)).fit(*pairs)
    assert "valid_loss" not in model.history_[-1]
    assert gain(model) == pytest.approx(3, abs=0.1)


def test_divergence_keeps_the_last_good_weights_and_warns(pairs) -> None:
    with pytest.warns(ConvergenceWarning, match="not finite"):
        model = Gain(trainer=Trainer(max_epochs=50, lr=1e30, optimizer="sgd")).fit(*pairs)
    assert np.isfinite(gain(model))
    assert np.isfinite(model.predict(pairs[1])).all()


def test_warm_start_continues(pairs) -> None:
    short = Trainer(max_epochs=2, lr=0.05, validation_fraction=0.0)
    model = Gain(trainer=short, warm_start=True).fit(*pairs)
    error = abs(gain(model) - 3)
    assert abs(gain(model.fit(*pairs)) - 3) < error


def test_precision_of_the_images_is_not_that_of_the_module(pairs) -> None:
    model = Gain(trainer=Trainer(max_epochs=1)).fit(*pairs)
    assert model.module_[0].weight.dtype == torch.float32


def test_missing_images_are_named(pairs) -> None:
    with pytest.raises(ValueError, match="X_true is missing"):
        Gain().fit(Y_meas=pairs[1])


def test_a_bar_for_each_phase_tells_epochs_loss_and_score(pairs, capsys) -> None:
    Gain(trainer=Trainer(max_epochs=3), verbose=1).fit(*pairs)
    shown = capsys.readouterr().err
    assert "first" in shown and "second" in shown
    assert "epoch 3.0 of 3" in shown and "loss=" in shown and "held-out score=" in shown and "left" in shown


# ---------------------------------------------------------------------- the trainer's fields
def test_an_unset_field_is_the_methods_own() -> None:
    trainer = Trainer(lr=1e-2).over(n_steps=100, lr=1e-3, final_lr=1e-4, batch_size=4, max_grad_norm=1.0)
    assert (trainer.lr, trainer.n_steps, trainer.batch_size, trainer.max_grad_norm) == (1e-2, 100, 4, 1.0)
    assert trainer.final_lr == pytest.approx(1e-3)  # the ratio is the method's
    assert Trainer(max_epochs=7).over(n_steps=100).n_steps is None
    assert Trainer(final_lr=1.0).over(n_steps=1, final_lr=1e-5).final_lr == 1.0


def test_steps_are_rounded_up_to_epochs(pairs) -> None:
    model = Gain(trainer=Trainer(n_steps=11, batch_size=10)).fit(*pairs)
    assert len(model.history_) == 2 * 3  # 40 images are 4 steps


def test_the_learning_rate_ends_where_it_says(pairs) -> None:
    class Rates(skorch.callbacks.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_epoch_begin(self, net: Any, **_: Any) -> None:
            self.seen.append(net.optimizer_.param_groups[0]["lr"])

    rates = Rates()
    trainer = Trainer(max_epochs=4, lr=1.0, final_lr=0.0625, callbacks=[rates], validation_fraction=0.0)
    Gain(trainer=trainer).fit(*pairs)
    assert rates.seen == pytest.approx([1.0, 0.5, 0.25, 0.125] * 2)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"optimizer": "adamm"}, "trainer__optimizer: expected one of"),
        ({"validation_fraction": 1.0}, r"trainer__validation_fraction: expected a number in \[0, 1\)"),
        ({"max_epochs": 0}, "trainer__max_epochs: expected a whole number >= 1"),
        ({"batch_size": -1}, "trainer__batch_size"),
        ({"lr": float("nan")}, "trainer__lr: expected a number > 0"),
        ({"score_every": 0}, "trainer__score_every"),
        ({"max_grad_norm": 0.0}, "trainer__max_grad_norm"),
        ({"callbacks": EarlyStopping()}, "trainer__callbacks: expected a list of skorch callbacks"),
        ({"max_epochs": 1, "n_steps": 1}, "both say how long"),
        ({"patience": 2, "validation_fraction": 0.0}, "patience=2 waits"),
        ({"callbacks": [EarlyStopping()], "validation_fraction": 0.0}, "EarlyStopping monitors 'valid_loss'"),
        ({"validation_fraction": 0.99}, "leaves nothing of 40"),
    ],
)
def test_bad_trainers_are_refused(pairs, trainer, says) -> None:
    with pytest.raises(ValueError, match=says):
        Gain().set_params(**{f"trainer__{name}": value for name, value in trainer.items()}).fit(*pairs)


def test_trainer_parameters_can_be_searched(pairs) -> None:
    search = GridSearchCV(Gain(trainer=Trainer(max_epochs=3)), {"trainer__lr": [1e-4, 0.3]}, cv=2).fit(*pairs)
    assert search.best_params_ == {"trainer__lr": 0.3}


# ---------------------------------------------------------------------- callbacks and interrupts
class Recorder(skorch.callbacks.Callback):
    """Holds a lock, as loggers and writers do."""

    def __init__(self) -> None:
        self.lock, self.epochs = threading.Lock(), 0

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        with self.lock:
            self.epochs += 1


def test_the_callback_that_was_handed_over_is_called(pairs) -> None:
    recorder = Recorder()
    model = Gain(trainer=Trainer(max_epochs=2, callbacks=[recorder]))
    clone(model).fit(*pairs)
    assert recorder.epochs == 4
    GridSearchCV(model, {"lam": [0.0, 0.1]}, cv=2).fit(*pairs)
    assert recorder.epochs == 4 + 5 * 4


def test_early_stopping_of_skorch_ends_in_good_order(pairs) -> None:
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=10.0, threshold_mode="abs")
    model = Gain(trainer=Trainer(max_epochs=50, callbacks=[stop])).fit(*pairs)
    assert len(model.history_) < 10


class Failing(skorch.callbacks.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("full"), SystemExit(3)])
def test_what_a_callback_raises_reaches_the_caller_and_leaves_the_estimator(pairs, error, tmp_path) -> None:
    model = Gain(trainer=Trainer(max_epochs=2, callbacks=[Failing(error)]), memory=str(tmp_path))
    before = dict(vars(model))
    with pytest.raises(type(error)):
        model.fit(*pairs)
    assert vars(model) == before
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_interrupted_fit_leaves_the_earlier_one(pairs) -> None:
    global n_losses, fail_at
    model = Gain(trainer=Trainer(max_epochs=2)).fit(*pairs)
    before = model.predict(pairs[1])
    n_losses, fail_at = 0, 5
    with pytest.raises(KeyboardInterrupt):
        model.fit(2 * pairs[0], pairs[1])
    assert_array_equal(model.predict(pairs[1]), before)


# ---------------------------------------------------------------------- checkpoints
@pytest.mark.parametrize("call", [1, 7, 12, 13, 19, 24])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_stopped_training_goes_on_to_the_same_weights(pairs, tmp_path, call, fraction) -> None:
    """Forty images in batches of ten and two phases of three epochs."""
    global n_losses, fail_at
    how = {"max_epochs": 3, "batch_size": 10, "lr": 0.1, "final_lr": 0.01, "validation_fraction": fraction}
    whole = Gain(noise=0.1, trainer=Trainer(**how)).fit(*pairs)
    resumable = Gain(noise=0.1, trainer=Trainer(**how, checkpoint=tmp_path / "training"))
    in_all, n_losses, fail_at = n_losses, 0, call
    with pytest.raises(KeyboardInterrupt):
        clone(resumable).fit(*pairs)
    fail_at = 0
    resumed = clone(resumable).fit(*pairs)
    assert gain(resumed) == gain(whole)
    assert [(e["phase"], e["epoch"], e["train_loss"]) for e in resumed.history_] == [
        (e["phase"], e["epoch"], e["train_loss"]) for e in whole.history_
    ]
    assert n_losses <= in_all + 6  # an epoch of four batches and what was evaluated is done twice at most


def test_a_finished_training_is_not_done_again(pairs, tmp_path) -> None:
    model = Gain(trainer=Trainer(max_epochs=2, checkpoint=tmp_path / "training"))
    first = gain(model.fit(*pairs))
    n_before = n_losses
    assert gain(clone(model).fit(*pairs)) == first
    assert n_losses == n_before


def test_a_checkpoint_of_another_training_is_refused(pairs, tmp_path) -> None:
    path = tmp_path / "training"
    Gain(trainer=Trainer(max_epochs=2, checkpoint=path)).fit(*pairs)
    with pytest.raises(ValueError, match="belongs to a training with other data"):
        Gain(trainer=Trainer(max_epochs=2, checkpoint=path)).fit(pairs[0] + 1, pairs[1])
    with pytest.raises(ValueError, match="belongs to a training with other"):
        Gain(trainer=Trainer(max_epochs=3, checkpoint=path)).fit(*pairs)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no checkpoint"):
        Gain(trainer=Trainer(max_epochs=2, checkpoint=path)).fit(*pairs)


KILLED = """
import os, sys
import numpy as np, torch
from skinverse import PostProcessor, Trainer
from skorch.callbacks import Callback

class Kill(Callback):
    def on_batch_end(self, net, training=False, **_):
        if training and len(net.history) == 2:
            os.kill(os.getpid(), 9)

kill = sys.argv[2] == "kill"
callbacks = [Kill()] if kill else None
trainer = Trainer(max_epochs=3, batch_size=2, checkpoint=sys.argv[1] or None, callbacks=callbacks)
X = np.random.default_rng(0).random((6, 8, 8))
method = PostProcessor(network="dncnn", trainer=trainer).fit(X, X)
print(float(sum(w.double().abs().sum() for w in method.module_.state_dict().values())).hex())
"""


def test_a_killed_process_loses_one_epoch_at_most(tmp_path) -> None:
    def run(path: str, kill: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED, path, kill]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    path = str(tmp_path / "training")
    assert run(path, "kill").returncode == -9
    resumed, whole = run(path, "go on"), run("", "go on")
    assert resumed.stdout == whole.stdout != ""


# ---------------------------------------------------------------------- the cache
def test_a_grid_over_reconstruction_parameters_trains_once_per_fold(pairs, tmp_path) -> None:
    model = Gain(trainer=FAST, memory=str(tmp_path))
    search = GridSearchCV(model, {"lam": [0.0, 0.1, 0.2, 0.3]}, cv=2, error_score="raise").fit(*pairs)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3  # two folds and the refit
    assert search.best_params_ == {"lam": 0.0}


@pytest.mark.parametrize("memory", [str, Path, joblib.Memory])
def test_a_cached_training_is_the_same_and_not_done_again(pairs, tmp_path, memory) -> None:
    first = Gain(trainer=FAST, memory=str(tmp_path)).fit(*pairs)
    n_before = n_losses
    second = Gain(trainer=FAST, memory=memory(tmp_path)).fit(*pairs)
    assert gain(first) == gain(second) and n_losses == n_before
    assert second.history_ == first.history_


@pytest.mark.parametrize(
    "other", [{"noise": 0.5}, {"random_state": 1}, {"trainer": Trainer(max_epochs=29, lr=0.1, batch_size=4)}]
)
def test_what_changes_a_training_changes_its_key(pairs, tmp_path, other) -> None:
    Gain(trainer=FAST, memory=str(tmp_path)).fit(*pairs)
    Gain(**{"trainer": FAST, "memory": str(tmp_path)} | other).fit(*pairs)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_cached_training_depends_on_the_operator(pairs, tmp_path) -> None:
    X, Y = pairs
    X = X + np.random.default_rng(1).normal(size=X.shape)
    one = Gain(pylops.Identity(6), trainer=FAST, memory=str(tmp_path)).fit(X, Y)
    two = Gain(2 * pylops.Identity(6), trainer=FAST, memory=str(tmp_path)).fit(X, 2 * Y)
    assert gain(one) != gain(two)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_foreign_entry_is_not_taken(pairs, tmp_path, content) -> None:
    first = Gain(trainer=FAST, memory=str(tmp_path)).fit(*pairs)
    (entry,) = tmp_path.rglob("*.safetensors")
    if content is None:  # an entry of another network
        from skinverse import PostProcessor

        X = np.random.default_rng(0).random((4, 8, 8))
        PostProcessor(network="dncnn", trainer=Trainer(max_epochs=1), memory=str(tmp_path / "b")).fit(X, X)
        (other,) = (tmp_path / "b").rglob("*.safetensors")
        content = other.read_bytes()
    entry.write_bytes(content)
    assert gain(Gain(trainer=FAST, memory=str(tmp_path)).fit(*pairs)) == gain(first)


def test_what_cannot_be_keyed_is_not_cached_and_said(pairs, tmp_path) -> None:
    model = Gain(trainer=FAST, memory=str(tmp_path), noise=0.0)
    model.set_params(operator=Locked())
    with pytest.warns(UserWarning, match=r"not cached: .*lock"):
        model.fit(*pairs)
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match=r"could not be recognised again: .*lock"):
        model.set_params(memory=None, trainer__checkpoint=tmp_path / "training").fit(*pairs)


class Locked(pylops.LinearOperator):
    """An operator with something that has no content to compare."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        super().__init__(dtype="float64", dims=(6,), dimsd=(6,))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return x

    def _rmatvec(self, y: np.ndarray) -> np.ndarray:
        return y

"""How the model is trained: two phases, the method's own training, resuming, cache, warm start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from skinverse import GenerativeCovariancePrior, Trainer

SHORT: dict[str, Any] = {"batch_size": 16, "lr": 3e-3}


def assert_same_weights(one: GenerativeCovariancePrior, other: GenerativeCovariancePrior) -> None:
    expected = other.module_.state_dict()
    assert one.module_.state_dict().keys() == expected.keys()
    for name, value in one.module_.state_dict().items():
        assert torch.equal(value, expected[name]), name


# ------------------------------------------------------------------------------------------ phases
def test_mean_is_trained_first_and_then_held(images: np.ndarray, fit_prior: Any) -> None:
    """What the first phase has learned is, to the bit, what is learned without a second one."""
    full, identity = (fit_prior(images, covariance=c) for c in ("full", "identity"))
    assert [epoch["phase"] for epoch in full.history_] == ["mean"] * 2 + ["covariance"] * 2
    assert {epoch["phase"] for epoch in identity.history_} == {"mean"}
    weights = full.module_.state_dict()
    for name, value in identity.module_.state_dict().items():
        assert torch.equal(value, weights[name]), name
    z = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    assert full.module_.gaussian(z).off.abs().max() > 0
    assert identity.module_.gaussian(z).off.numel() == 0
    assert identity.module_.gaussian(z).log_diag.unique().numel() == 1


def test_seeds_repeat_the_training(images: np.ndarray, fit_prior: Any) -> None:
    one, again, other = (fit_prior(images[:16], random_state=k) for k in (3, 3, 4))
    assert_same_weights(one, again)
    with pytest.raises(AssertionError):
        assert_same_weights(one, other)


def test_training_leaves_measurements_and_operator_alone(
    images: np.ndarray, operator: Any, measure: Any, fit_prior: Any
) -> None:
    one, other = fit_prior(images[:16]), fit_prior(images[:16], operator)
    paired = clone(other).fit(images[:16], measure(operator, images[:5]))
    assert other.operator_ is paired.operator_ is operator
    assert_same_weights(one, other)
    assert_same_weights(one, paired)


class FirstBatch(Callback):
    """Ends a training before its first step."""

    class Size(Exception):
        pass

    def on_batch_begin(self, net: Any, batch: Any = None, **_: Any) -> None:
        raise self.Size(len(batch[1]))


@pytest.mark.parametrize(("side", "n_images"), [(28, 64), (64, 12), (128, 8)])
def test_the_own_training_takes_fewer_large_images_in_one_step(side: int, n_images: int, blobs: Any) -> None:
    trainer = Trainer(callbacks=[FirstBatch()])
    with pytest.raises(FirstBatch.Size, match=f"^{n_images}$"):
        GenerativeCovariancePrior(trainer=trainer).fit(blobs(65, size=(side, side)))


# ------------------------------------------------------------------------------------------ resuming
class Crash(Callback):
    """Ends a process as a power cut would, as far as files are concerned: in the middle of an epoch."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches

    def on_batch_end(self, net: Any, training: bool = False, **_: Any) -> None:
        self.n_batches -= training
        if self.n_batches < 0:
            raise RuntimeError("crashed")


# Phases of three epochs of two batches: in the first epoch, later in the first phase, at the beginning of the
# second phase, later in it.
@pytest.mark.parametrize("n_batches", [1, 3, 6, 9, 11])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_training_that_was_killed_ends_as_if_it_had_not_been(
    images: np.ndarray, fit_prior: Any, tmp_path: Path, n_batches: int, covariance: str
) -> None:
    how = {"max_epochs": 3, **SHORT}
    expected = fit_prior(images[:32], covariance=covariance, trainer=Trainer(**how))
    how["checkpoint"] = tmp_path / "training"
    with pytest.raises(RuntimeError, match="crashed"):
        fit_prior(images[:32], covariance=covariance, trainer=Trainer(**how, callbacks=[Crash(n_batches)]))
    resumed = fit_prior(images[:32], covariance=covariance, trainer=Trainer(**how))
    assert_same_weights(resumed, expected)
    losses = [[epoch["train_loss"] for epoch in method.history_] for method in (resumed, expected)]
    assert losses[0] == losses[1]
    phases = [epoch["phase"] for epoch in resumed.history_]
    assert phases == ["mean"] * 3 + ["covariance"] * 3


def test_a_resumed_training_does_only_what_is_left(
    images: np.ndarray, fit_prior: Any, tmp_path: Path
) -> None:
    how = {"max_epochs": 3, **SHORT, "checkpoint": tmp_path / "training"}
    with pytest.raises(RuntimeError, match="crashed"):
        fit_prior(images[:32], trainer=Trainer(**how, callbacks=[Crash(9)]))
    count = Count()
    fit_prior(images[:32], trainer=Trainer(**how, callbacks=[count]))
    assert count.n_batches == 12 - 8  # the ninth batch was the first one of an epoch that was lost


# ------------------------------------------------------------------------------------------ cache, warm start
class Count(Callback):
    """Counts trainings and their steps; clones of a trainer share it."""

    def __init__(self) -> None:
        self.n_phases = self.n_batches = 0

    def on_train_begin(self, net: Any, **_: Any) -> None:
        self.n_phases += 1

    def on_batch_end(self, net: Any, training: bool = False, **_: Any) -> None:
        self.n_batches += training


def test_memory_trains_once_for_every_reconstruction(
    images: np.ndarray, operator: Any, fit_prior: Any, tmp_path: Path
) -> None:
    count = Count()
    settings: dict[str, Any] = {
        "memory": str(tmp_path),
        "trainer": Trainer(max_epochs=1, **SHORT, callbacks=[count]),
    }
    first = fit_prior(images[:16], **settings)
    for params in (
        {"lam": 0.5},
        {"lam": "discrepancy"},
        {"constraint": "range"},
        {"constraint": "adapted", "n_restarts": 7},
        {"max_steps": 3, "tol": 0.1, "noise": 1.0},
        {"operator": operator},
    ):
        assert_same_weights(fit_prior(images[:16], **settings, **params), first)
    assert count.n_phases == 2
    different = ({"n_latent": 3}, {"covariance": "diagonal"}, {"min_std": 0.1}, {"neighbourhood": 3})
    for k, params in enumerate(different):
        fit_prior(images[:16], **settings, **params)
        assert count.n_phases == 4 + 2 * k


def test_a_search_over_constraints_trains_once_per_fold(
    images: np.ndarray, operator: Any, measure: Any, tmp_path: Path
) -> None:
    count = Count()
    trainer = Trainer(max_epochs=1, **SHORT, callbacks=[count])
    X = images[:8].astype(np.float64)
    method = GenerativeCovariancePrior(
        operator, n_latent=2, noise=0.03, n_restarts=1, trainer=trainer, memory=str(tmp_path)
    )
    search = GridSearchCV(method, {"constraint": ["soft", "encoded", "range"]}, cv=2, error_score="raise")
    search.fit(X, measure(operator, X))
    assert count.n_phases == 3 * 2  # two folds and the refit, mean and covariance
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_clone_learns_the_same(images: np.ndarray, operator: Any, data: np.ndarray, fit_prior: Any) -> None:
    method = fit_prior(images[:16], operator, constraint="range", neighbourhood=3)
    twin = clone(method)
    assert not hasattr(twin, "module_") and twin.operator is operator
    assert_array_equal(twin.fit(images[:16]).predict(data), method.predict(data))


def test_warm_start_goes_on(images: np.ndarray, fit_prior: Any) -> None:
    cold = fit_prior(images)
    warm = fit_prior(images, warm_start=True)
    for _ in range(4):
        warm.fit(images)
    assert warm.score_samples(images).mean() > cold.score_samples(images).mean() + 1


def test_warm_start_keeps_the_units_of_the_first_training(images: np.ndarray, fit_prior: Any) -> None:
    warm = fit_prior(images[:16], warm_start=True)
    before = warm.level_, warm.spread_
    warm.fit(3 * images[:16] + 1)
    assert (warm.level_, warm.spread_) == before

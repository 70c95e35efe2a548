"""Two processes train one module: the same as one process does, and only the first one writes.

torch starts the processes, which run this very file; what they found is compared here.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import Callback
from torch import Tensor, nn

from skinverse import PostProcessor, Trainer, load
from skinverse.estimators import LearnedReconstructor
from skinverse.estimators._problems import Problems
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Phase, random_patches

pytest.importorskip("accelerate")

# Eleven images to train on: the parts of a batch are of different lengths, and the last batch is one image.
N_IMAGES, HELD_OUT, BATCH = 13, 0.15, 5
X = np.random.default_rng(0).random((N_IMAGES, 8, 8)).astype(np.float32)
Y = X + 0.1 * np.random.default_rng(1).normal(size=X.shape).astype(np.float32)

n_seen = 0  # images that were reconstructed


def note_seen(n: int) -> None:
    """What a function writes is state and no part of the code that a checkpoint compares."""
    global n_seen
    n_seen += n


class Restless(LearnedReconstructor):
    """Draws in every way that losses do, for pairs and then for images and data that are none."""

    def _make_module(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(4, 1, 3, padding=1)
        )

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        seen = LastLosses(len(images))

        def loss(module: Any, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
            x, y = random_patches(torch.stack([x, y], 1), 6).chunk(2, 1)
            level = torch.rand(len(y))[:, None, None, None]
            sign = 2.0 * torch.randint(2, (len(y), 1, 1, 1)) - 1
            noisy = y + 0.1 * level * sign * torch.randn_like(y) + 0.1 * torch.rand(())
            last = 0.0 if index is None else seen.losses[index]
            losses = (module(noisy) - x).square().flatten(1).mean(1) + 0.1 * module[0].bias.sum() * last
            if index is not None:
                seen.losses[index] = losses.detach()
            return losses

        def score(x: Tensor, y: Tensor, *_: Tensor) -> float:
            return -float((self._reconstruct(problems.A, y).x - x).square().mean())

        trainer = self.trainer.over(max_epochs=3)
        numbers = torch.arange(len(images))
        yield Phase("pairs", loss, (images, data, numbers), trainer, score, state=(seen,))
        yield Phase("sets", loss, (images, data[:7]), trainer, score, paired=False)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        note_seen(len(data))
        with torch.no_grad():
            return Solution.direct(self.module_(data[:, None])[:, 0])


class LastLosses:
    """The loss of each image when it was last seen."""

    def __init__(self, n: int) -> None:
        self.losses = torch.zeros(n)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.copy_(state["losses"])


class Normalising(Restless):
    """Its module keeps statistics of the images that a process has seen."""

    def _make_module(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))


class Stop(Callback):
    """An error at the end of the second epoch, before the checkpoint is written."""

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        if len(net.history) == 2:
            raise RuntimeError("stopped")


def trainer(**fields: Any) -> Trainer:
    return Trainer(max_epochs=3, batch_size=BATCH, validation_fraction=HELD_OUT, **fields)


def restless(rank: int = 0, **fields: Any) -> Restless:
    """Each process has a random state of its own; that of the first one counts."""
    return Restless(trainer=trainer(**fields), random_state=np.random.RandomState(rank))


def told(model: Any) -> dict[str, np.ndarray]:
    """What must not depend on the processes."""
    names = ("train_loss", "valid_loss", "valid_score")
    losses = [[epoch.get(name, 0.0) for name in names] for epoch in model.history_]
    weights = [w.numpy().ravel() for w in model.module_.state_dict().values()]
    return {"losses": np.array(losses), "weights": np.concatenate(weights), "images": model.predict(Y)}


def accelerator_of(precision: str) -> Any:
    """An Accelerator of another precision than that of an earlier one, which a program cannot have."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    return Accelerator(cpu=True, mixed_precision=precision)


def watch(folder: Path) -> set[str]:
    """Names of the files in the folder that this process opens to write."""
    written: set[str] = set()

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).startswith(str(folder)) and args[2] & (os.O_WRONLY | os.O_RDWR):
            written.add(Path(str(args[0])).name)

    sys.addaudithook(note)
    return written


# ---------------------------------------------------------------------- what each of the processes does
def work(folder: Path) -> None:
    """Train, interrupt and go on, save and cache: each process with paths of its own."""
    accelerator = accelerator_of("no")
    own = folder / str(accelerator.process_index)
    own.mkdir()
    joined = {"rank": accelerator.process_index, "accelerator": accelerator}
    found: dict[str, Any] = {}
    written = watch(folder)

    def note(name: str, model: Any) -> Any:
        found.update({f"{name} {key}": value for key, value in told(model).items()})
        return model

    model = note("restless", restless(**joined).fit(X, Y))
    found["clone shares"] = model.get_params()["trainer__accelerator"] is accelerator
    before = n_seen
    model.predict(Y)
    found["n_seen"] = n_seen - before
    found["one image"] = model.predict(Y[:1])
    found["out"] = model.predict(Y, out=np.zeros_like(Y))
    model.save(own / "restless.skinverse")

    kept = {**joined, "checkpoint": own / "checkpoint"}
    with contextlib.suppress(RuntimeError):
        restless(**kept, callbacks=[Stop()]).fit(X, Y)
    if accelerator.is_main_process:
        shutil.copy(own / "checkpoint", folder / "stopped")
    note("resumed", restless(**kept).fit(X, Y))
    try:
        restless(**kept).fit(X + 1, Y)
    except ValueError as error:
        found["refusal"] = str(error)

    last = trainer(accelerator=accelerator).set_params(validation_fraction=0.0)
    note("normalising", Normalising(trainer=last).fit(X, Y))

    progress = io.StringIO()
    with contextlib.redirect_stderr(progress):
        network = PostProcessor(network="dncnn", trainer=trainer(accelerator=accelerator), verbose=1)
        network.set_params(memory=str(own / "memory"), random_state=None)
        note("network", network.fit(X, Y))
    found["progress"] = progress.getvalue()
    note("cached", network.set_params(random_state=0).fit(X, Y))
    note("again", network.fit(X, Y))

    note("half", restless(**joined | {"accelerator": accelerator_of("bf16")}).fit(X, Y))
    found["written"] = sorted(written)
    np.savez(folder / f"{accelerator.process_index}.npz", **found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]))
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------- what came of it
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together")
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *start], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / f"{rank}.npz")) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return told(restless().fit(X, Y))


@pytest.mark.parametrize("key", ["losses", "weights", "images"])
@pytest.mark.parametrize(
    "model", ["restless", "resumed", "normalising", "network", "cached", "again", "half"]
)
def test_all_processes_have_the_same(found, model, key) -> None:
    assert_array_equal(found[0][f"{model} {key}"], found[1][f"{model} {key}"])


@pytest.mark.parametrize("key", ["losses", "weights", "images"])
def test_two_processes_train_as_one_does(found, alone, key) -> None:
    assert_allclose(found[0][f"restless {key}"], alone[key], rtol=1e-4, atol=1e-5)


def test_images_are_shared_out(found) -> None:
    assert [int(one["n_seen"]) for one in found] == [7, 6]
    assert_allclose(found[1]["one image"], found[0]["restless images"][:1], rtol=1e-5)


def test_the_first_process_alone_writes_images_where_they_belong(found) -> None:
    assert_allclose(found[0]["out"], found[0]["restless images"], rtol=1e-5)
    assert not found[1]["out"].any()


def test_the_first_process_alone_writes_and_shows(found, folder) -> None:
    assert {path.name for path in (folder / "0").iterdir()} == {"restless.skinverse", "checkpoint", "memory"}
    assert list((folder / "1").iterdir()) == []
    assert len(found[0]["written"]) >= 4 and len(found[1]["written"]) == 0
    assert "supervised: 100%" in str(found[0]["progress"])
    assert str(found[1]["progress"]) == ""


def test_what_was_saved_is_used_by_one_process(folder, found) -> None:
    method = PostProcessor(network="dncnn", trainer=trainer(), memory=str(folder / "0" / "memory"))
    assert_array_equal(told(method.fit(X, Y))["weights"], found[0]["cached weights"])  # read, not trained


@pytest.mark.parametrize("key", ["losses", "weights", "images"])
def test_a_stopped_training_goes_on_to_the_same_weights(found, key) -> None:
    assert_array_equal(found[0][f"resumed {key}"], found[0][f"restless {key}"])


def test_one_process_goes_on_with_the_checkpoint_of_two(folder, alone) -> None:
    one = restless(checkpoint=folder / "stopped").fit(X, Y)
    for key, value in told(one).items():
        assert_allclose(value, alone[key], rtol=1e-4, atol=1e-5)


def test_what_the_first_process_refuses_all_refuse(found) -> None:
    for one in found:
        assert "belongs to a training with other data" in str(one["refusal"])


def test_half_precision_trains_and_images_are_single(found) -> None:
    assert found[0]["half images"].dtype == np.float32
    difference = np.abs(found[0]["half losses"] - found[0]["restless losses"])[:, 0]
    assert 1e-7 < difference.max() < 1e-2


# ---------------------------------------------------------------------- in one process
def test_an_accelerator_of_one_process_changes_nothing(alone) -> None:
    one = restless(accelerator=accelerator_of("no")).fit(X, Y)
    for key, value in told(one).items():
        assert_array_equal(value, alone[key])


def test_processes_that_were_not_joined_are_refused(monkeypatch) -> None:
    single = accelerator_of("no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes .* got one of 1: .*cpu=True"):
        restless(accelerator=single).fit(X, Y)


def test_half_precision_is_another_training_for_the_cache(tmp_path) -> None:
    for precision in ("no", "bf16"):
        accelerator = accelerator_of(precision)
        method = PostProcessor(network="dncnn", trainer=trainer(accelerator=accelerator))
        method.set_params(memory=str(tmp_path)).fit(X, Y)
        method.set_params(trainer__accelerator=None).fit(X, Y)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_an_accelerator_is_not_written_to_a_file(tmp_path) -> None:
    joined = trainer(accelerator=accelerator_of("no"))
    method = PostProcessor(network="dncnn", trainer=joined).fit(X, Y)
    method.save(tmp_path / "method")
    assert load(tmp_path / "method").trainer.accelerator is None


def test_other_things_are_refused_in_a_sentence(monkeypatch) -> None:
    with pytest.raises(ValueError, match="accelerator: expected None or an accelerate.Accelerator, got True"):
        restless(accelerator=True).fit(X, Y)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match=r"this needs accelerate: pip install 'skinverse\[distr"):
        restless(accelerator=True).fit(X, Y)

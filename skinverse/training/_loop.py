"""The training loop, written once: phases in order, the best epoch of each, checkpoints, progress."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, GradientNormClipping, LRScheduler
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from skinverse._defaults import seeded
from skinverse._rows import ahead
from skinverse._tensors import reuse_freed_memory
from skinverse.training._checkpoint import Checkpoint
from skinverse.training._phase import Phase
from skinverse.training._processes import Alone, Processes
from skinverse.training._trainer import OPTIMIZERS, Trainer, stopped_early

History = list[dict[str, Any]]
Rows = tuple[Tensor, ...]

# Rows of stored images by which epochs are compared.
_MOST_HELD = 64
# What the history tells of an epoch.
_TOLD = ("epoch", "train_loss", "valid_loss", "valid_score", "dur")


def run(
    module: nn.Module,
    phases: Iterable[Phase],
    *,
    draws: seeded,
    seed: int,
    verbose: int = 0,
    checkpoint: Checkpoint | None = None,
    processes: Processes | None = None,
) -> History:
    """Train a module in place, one phase after the other.

    Parameters
    ----------
    module : nn.Module
        On the device where it is to be trained.
    phases : iterable of Phase
        What is to be done; a generator may change the module between two phases.
    draws : seeded
        The mode under which the caller runs: each phase draws from a fresh generator of the same ``seed``.
    seed : int
        Fixes the split, the order of the images and whatever the phases draw.
    verbose : int, default=0
        1 shows a progress bar for each phase, 2 a line per epoch.
    checkpoint : Checkpoint or None, default=None
        Where to keep the training after each epoch, and from where to go on.
    processes : Processes or None, default=None
        Those that train together; None is this one alone. Each of them runs the same phases.

    Returns
    -------
    list of dict
        For each epoch the ``phase``, its number ``epoch``, ``train_loss``, seconds ``dur``, and with held-out
        images ``valid_loss`` and, where it was evaluated, ``valid_score``.

    Warns
    -----
    ConvergenceWarning
        If loss or weights of a phase turned non-finite; the last good weights are kept.
    """
    reuse_freed_memory()
    checkpoint, processes = checkpoint or Checkpoint(None, ""), processes or Alone()
    if not processes.first:
        checkpoint, verbose = checkpoint.read_only(), 0
    history: History = []
    for number, phase in enumerate(phases):
        finished = checkpoint.finished(number)
        if finished is None:
            with draws.restarted(seed):
                epochs = _train(module, phase, draws, seed, verbose, checkpoint, processes)
            checkpoint.finish(_progress(module, phase, epochs))
        else:
            epochs = _restore(module, phase, finished)
        module.eval()  # for what comes between two phases, also after a resume
        history += [{"phase": phase.name, **epoch} for epoch in epochs]
    return history


def _train(
    module: nn.Module,
    phase: Phase,
    draws: seeded,
    seed: int,
    verbose: int,
    checkpoint: Checkpoint,
    processes: Processes,
) -> History:
    """Train in one phase and leave the module with the weights of the best epoch."""
    trainer = phase.trainer
    splits = [trainer.split(len(rows), seed) for rows in phase.rows]
    (train, held_out) = ([split[part] for split in splits] for part in (0, 1))
    scored = all(len(index) for index in held_out)
    trainer.check_evaluation(scored=scored and phase.score is not None)
    training, validation = (_dataset(phase, index) for index in (train, held_out))
    if phase.prepare is not None and checkpoint.current is None:
        phase.prepare(*_select(phase.rows, _few(phase, train)))
    n_epochs = trainer.n_epochs(max(len(rows) for rows in phase.rows))
    order = torch.Generator().manual_seed(seed)
    few = _select(phase.rows, _few(phase, held_out)) if scored else None
    selection = _Selection(phase, few, n_epochs, processes)
    with _progress_bar(phase.name, n_epochs, verbose) as bar:
        net = _Net(
            _LossModule(module, phase, draws, processes),
            criterion=_Mean,
            optimizer=OPTIMIZERS[str(trainer.optimizer)],
            lr=trainer.lr,
            max_epochs=n_epochs,
            batch_size=trainer.batch_size,
            iterator_train__shuffle=True,
            iterator_train__generator=order,
            iterator_train__collate_fn=_as_they_are,
            # Partners are drawn where rows are read, which must be the thread of the training.
            iterator_train=_ReadAhead if phase.read_later and phase.paired else DataLoader,
            iterator_valid__collate_fn=_as_they_are,
            train_split=predefined_split(validation) if scored else None,
            callbacks=[
                ("selection", selection),
                ("progress", _Progress(bar)),
                *_schedule(trainer, n_epochs),
                *(trainer.callbacks or []),
                ("checkpoint", _Saving(checkpoint, phase, selection, draws, order)),
            ],
            device=next((p.device for p in module.parameters()), phase.rows[0].device),
            verbose=int(verbose > 1),
        )
        net.initialize()
        processes.align(module.state_dict().values(), draws)
        if checkpoint.current is not None:
            _resume(net, checkpoint.current, phase, selection, draws, order)
        net.partial_fit(training, y=None)
    return _told(net.history)


def _schedule(trainer: Trainer, n_epochs: int) -> list[tuple[str, Callback]]:
    """The learning rate changes by one factor in each epoch; long gradients are shortened."""
    assert trainer.lr is not None and trainer.final_lr is not None and trainer.max_grad_norm is not None
    factor = (trainer.final_lr / trainer.lr) ** (1 / n_epochs)
    schedule = ("schedule", LRScheduler(policy="ExponentialLR", gamma=factor, monitor=None))
    if math.isinf(trainer.max_grad_norm):
        return [schedule]
    return [schedule, ("clipping", GradientNormClipping(trainer.max_grad_norm))]


# ---------------------------------------------------------------------- what skorch is given
class _Net(NeuralNet):
    """A network whose training ends by its own signal only.

    skorch's ``partial_fit`` takes every KeyboardInterrupt for the wish to stop and returns as if all were
    well: a user's Ctrl-C would leave a truncated training behind.
    """

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> _Net:
        self.notify("on_train_begin", X=X, y=y)
        with contextlib.suppress(_EndOfTraining):
            self.fit_loop(X, y, epochs=self.max_epochs - len(self.history))
        self.notify("on_train_end", X=X, y=y)
        return self

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        rows, index = batch
        self._set_training(True)
        losses = self.infer(rows)
        loss = self.module_.processes.backward(self.get_loss(losses, index), self.optimizer_)
        return {"loss": loss, "y_pred": losses}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        step: dict[str, Tensor] = super().validation_step(batch, **fit_params)
        return step | {"loss": self.module_.processes.total(step["loss"])}

    def _step_optimizer(self, step_fn: Callable[[], Tensor]) -> None:
        step_fn()
        self.module_.processes.step(self.optimizer_)

    def run_single_epoch(self, *args: Any, **kwargs: Any) -> None:
        with self.module_.processes.joined(self.module_.phase.state):
            super().run_single_epoch(*args, **kwargs)

    def on_batch_end(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        super().on_batch_end(net, *args, **kwargs)
        self.module_.processes.align(self.module_.buffers(), self.module_.draws)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                if stopped_early(callback):
                    raise _EndOfTraining from None
                raise


class _EndOfTraining(Exception):
    """The training has done what it can."""


class _LossModule(nn.Module):
    """A module whose output is already the loss of each image: all that skorch has to know.

    In several processes these are the images of their part of a batch, with the random numbers that they
    have in the whole.
    """

    def __init__(self, module: nn.Module, phase: Phase, draws: seeded, processes: Processes) -> None:
        super().__init__()
        self.module, self.phase, self.draws, self.processes = module, phase, draws, processes

    def forward(self, rows: Rows) -> Tensor:
        n = len(rows[0])
        part = self.processes.part(n)
        if part.start == part.stop:  # the last batch has fewer images than there are processes
            return rows[0].new_zeros(0, dtype=torch.float32, requires_grad=True)
        with self.draws.of_part(part, n), self.processes.autocast():
            return self.phase.loss(self.module, *(row[part] for row in rows))


class _Mean(nn.Module):
    """The part of these images in the mean over the batch."""

    def forward(self, losses: Tensor, batch: Tensor) -> Tensor:
        return losses.sum() / len(batch)


class _Paired(Dataset[Any]):
    """Rows of several tensors that belong together."""

    def __init__(self, rows: Rows, index: list[Tensor]) -> None:
        self.rows, self.index = rows, index[0]

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, items: list[int]) -> tuple[Rows, Tensor]:
        chosen = self.index[items]
        return _select(self.rows, [chosen] * len(self.rows)), chosen


class _Unpaired(Dataset[Any]):
    """Two sets: each member of the larger one comes once, with a random one of the other."""

    def __init__(self, rows: Rows, index: list[Tensor]) -> None:
        self.rows, self.index = rows, index

    def __len__(self) -> int:
        return max(len(index) for index in self.index)

    def __getitems__(self, items: list[int]) -> tuple[Rows, Tensor]:
        first, second = self.index
        partners = torch.randint(min(len(first), len(second)), (len(items),)).tolist()
        pairs = (items, partners) if len(second) <= len(first) else (partners, items)
        chosen = [index[members] for index, members in zip(self.index, pairs, strict=True)]
        return _select(self.rows, chosen), chosen[0]


class _ReadAhead(DataLoader[Any]):
    """Batches of rows that are read while the ones before are trained on."""

    def __iter__(self) -> Any:
        return ahead(super().__iter__())


def _few(phase: Phase, index: list[Tensor]) -> list[Tensor]:
    """The rows that are to be held in memory: all of them, or of those that are read later some."""
    return [rows[:_MOST_HELD] for rows in index] if phase.read_later else index


def _dataset(phase: Phase, index: list[Tensor]) -> Dataset[Any]:
    return (_Paired if phase.paired else _Unpaired)(phase.rows, index)


def _as_they_are(batch: Any) -> Any:
    """A dataset that is asked for several items at once gives a batch."""
    return batch


def _select(rows: Rows, index: list[Tensor]) -> Rows:
    """Rows in the usual order of memory, in which ``randn_like`` draws whatever the tensors are views of."""
    chosen = [batch[members.to(batch.device)] for batch, members in zip(rows, index, strict=True)]
    return tuple(batch.contiguous() for batch in chosen)


# ---------------------------------------------------------------------- callbacks
class _Selection(Callback):
    """Keeps the weights of the best epoch, and ends a training that gets no better or is lost.

    skorch's EpochScoring, Checkpoint and EarlyStopping want a score in every epoch and know no state before
    the first; here reconstructions are scored now and then, the untrained module among them.
    """

    def __init__(self, phase: Phase, held_out: Rows | None, n_epochs: int, processes: Processes) -> None:
        self.processes = processes
        self.score, self.held_out, self.patience = phase.score, held_out, phase.trainer.patience
        self.every, self.n_epochs = phase.trainer.evaluated_every(n_epochs), n_epochs
        self.best: dict[str, Tensor] | None = None
        self.best_score: float | None = None
        # Weights with which nothing has been computed yet: the next loss tells whether they are any good.
        self.untried: dict[str, Tensor] | None = None
        self.misses, self.lost = 0, False
        self.training: Any = None
        self.last_batch: Any = None

    def on_train_begin(self, net: NeuralNet, X: Any = None, **_: Any) -> None:
        self.training, self.last_batch = X, None
        if self.best is None:
            self.best, self.best_score = _weights(net), self._evaluate(net)

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool = False, **_: Any) -> None:
        if training and not np.isfinite(net.history[-1, "batches", -1, "train_loss"]):
            self._lose()
        if training and self.untried is not None:
            self.best, self.untried = self.untried, None
        self.last_batch = batch

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        if not all(torch.isfinite(value).all() for value in net.module_.state_dict().values()):
            self._lose()  # by the last gradient of the epoch
        if self.best_score is None:
            self.untried = _weights(net)
        epoch = net.history[-1, "epoch"]
        if epoch % self.every and epoch < self.n_epochs:
            return
        score = self._evaluate(net)
        net.history.record("valid_score", score)
        if self.best_score is None or score is None:
            return
        if score > self.best_score:
            self.best, self.best_score, self.misses = _weights(net), score, 0
        else:
            self.misses += 1
        if self.misses == self.patience:
            raise _EndOfTraining

    def on_train_end(self, net: NeuralNet, **_: Any) -> None:
        if self.untried is not None and not self.lost:
            batch = self.last_batch or self.training.__getitems__([0])  # none: resumed after the last epoch
            self.lost = not bool(torch.isfinite(net.validation_step(batch)["loss"]))
            self.best = self.best if self.lost else self.untried
        assert self.best is not None  # on_train_begin
        net.module_.load_state_dict(self.best)
        if self.lost:
            message = (
                "training stopped: loss or weights are not finite; the last good weights are kept (lower lr?)"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        names = ("best", "best_score", "untried", "misses")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def _lose(self) -> None:
        self.lost = True
        raise _EndOfTraining

    def _evaluate(self, net: NeuralNet) -> float | None:
        if self.held_out is None or self.score is None:
            return None
        net.module_.eval()
        score = self.processes.once(partial(float, self.score(*self.held_out)))
        return score if np.isfinite(score) else -math.inf


class _Progress(Callback):
    """Moves the bar by parts of an epoch, and shows the last loss and score beside it."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.shown: dict[str, str] = {}

    def on_train_begin(self, net: NeuralNet, **_: Any) -> None:
        self.n_done = len(net.history)

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Any = None, **_: Any) -> None:
        self.n_batches, self.n_seen = math.ceil(len(dataset_train) / net.batch_size), 0

    def on_batch_end(self, net: NeuralNet, training: bool = False, **_: Any) -> None:
        if training and self.n_seen < self.n_batches:
            self.n_seen += 1
            self.bar.n = self.n_done + self.n_seen / self.n_batches
            self.bar.update(0)

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        self.n_done += 1
        self.bar.n = self.n_done
        epoch = net.history[-1]
        self.shown["loss"] = f"{epoch['train_loss']:.4g}"
        if epoch.get("valid_score") is not None:
            self.shown["held-out score"] = f"{epoch['valid_score']:.2f}"
        self.bar.set_postfix(self.shown)


def _progress_bar(name: str, n_epochs: int, verbose: int) -> Any:
    """One line for a phase: epochs, time left, loss and held-out score."""
    layout = (
        "{desc}: {percentage:3.0f}%|{bar}| epoch {n:.1f} of {total} [{elapsed}, {remaining} left{postfix}]"
    )
    return tqdm(total=n_epochs, desc=name, disable=verbose != 1, bar_format=layout)


# ---------------------------------------------------------------------- checkpoints
class _Saving(Callback):
    """Writes the checkpoint after each epoch, when all other callbacks have had their turn."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        phase: Phase,
        selection: _Selection,
        draws: seeded,
        order: torch.Generator,
    ) -> None:
        self.checkpoint, self.phase, self.selection = checkpoint, phase, selection
        self.draws, self.order = draws, order

    def on_train_begin(self, net: NeuralNet, **_: Any) -> None:
        # Once more: in some releases of torch the scheduler, made anew meanwhile, has taken a step.
        if self.checkpoint.current is not None:
            net.optimizer_.load_state_dict(self.checkpoint.current["optimizer"])

    def on_epoch_end(self, net: NeuralNet, **_: Any) -> None:
        if not self.checkpoint.wanted:
            return
        self.checkpoint.save(
            _progress(net.module_.module, self.phase, _told(net.history, every_key=True))
            | {
                "optimizer": net.optimizer_.state_dict(),
                "selection": self.selection.state_dict(),
                "draws": self.draws.state_dict(),
                "order": self.order.get_state(),
            }
        )


def _progress(module: nn.Module, phase: Phase, epochs: History) -> dict[str, Any]:
    return {
        "phase": phase.name,
        # Copies: a finished phase is kept while the next one trains the same weights.
        "module": {name: value.clone() for name, value in module.state_dict().items()},
        "state": [part.state_dict() for part in phase.state],
        "epochs": epochs,
    }


def _restore(module: nn.Module, phase: Phase, progress: dict[str, Any]) -> History:
    """Leave module and phase as they were, and tell the epochs until then."""
    module.load_state_dict(progress["module"])
    for part, state in zip(phase.state, progress["state"], strict=True):
        part.load_state_dict(state)
    epochs: History = progress["epochs"]
    return epochs


def _resume(
    net: NeuralNet,
    progress: dict[str, Any],
    phase: Phase,
    selection: _Selection,
    draws: seeded,
    order: torch.Generator,
) -> None:
    """Go on where an earlier process stopped."""
    epochs = _restore(net.module_.module, phase, progress)
    net.history.extend({**epoch, "batches": []} for epoch in epochs)
    net.optimizer_.load_state_dict(progress["optimizer"])  # a scheduler looks for its first learning rate
    selection.load_state_dict(progress["selection"])
    draws.load_state_dict(progress["draws"])
    order.set_state(progress["order"])


def _told(history: Any, *, every_key: bool = False) -> History:
    """The history as plain numbers."""
    kept = [{k: v for k, v in e.items() if k in _TOLD or (every_key and k != "batches")} for e in history]
    return [{k: _plain(v) for k, v in epoch.items() if v is not None} for epoch in kept]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _weights(net: NeuralNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.module_.state_dict().items()}

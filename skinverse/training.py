"""Training of torch modules: the one place that knows skorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from skorch import NeuralNet
from skorch.callbacks import Callback, GradientNormClipping, LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn
from tqdm import tqdm

from skinverse._batch import reuse_freed_memory

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Score = Callable[[Tensor, Tensor], float]

_OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}


class Trainer(BaseEstimator):
    """How a learned method is trained: one nested object, whose parameters can be searched.

    Minimises the mean over images of the method's loss with a stochastic gradient method, and keeps the
    weights of the best epoch: the highest held-out reconstruction PSNR where something is held out, else
    those of the last epoch.

    Parameters
    ----------
    max_epochs : int, default=100
        Passes through the training images.
    batch_size : int, default=8
        Images in one step.
    lr : float, default=1e-3
        Learning rate of the optimizer.
    optimizer : {"adam", "rmsprop", "sgd"}, default="adam"
        The stochastic gradient method, with torch's own defaults.
    lr_decay : float > 0, default=1.0
        Learning rate at the end relative to the beginning; it changes by the same factor each epoch.
    max_norm : float > 0 or None, default=None
        Largest norm of the gradient of all weights together; longer ones are shortened.
    validation_fraction : float in [0, 1), default=0.1
        Part of the images held out to choose the best epoch; 0 holds nothing out.
    score_every : int, default=1
        Epochs from one evaluation of the held-out score to the next.
    patience : int or None, default=None
        Stop after so many evaluations without a better score; None trains for ``max_epochs``.
    callbacks : list of skorch callbacks or None, default=None
        What else is to happen during training.

    Examples
    --------
    >>> from skinverse import Trainer
    >>> Trainer(max_epochs=20, lr=1e-4)
    Trainer(lr=0.0001, max_epochs=20)
    """

    def __init__(
        self,
        *,
        max_epochs: int = 100,
        batch_size: int = 8,
        lr: float = 1e-3,
        optimizer: str = "adam",
        lr_decay: float = 1.0,
        max_norm: float | None = None,
        validation_fraction: float = 0.1,
        score_every: int = 1,
        patience: int | None = None,
        callbacks: list[Callback] | None = None,
    ) -> None:
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.lr_decay = lr_decay
        self.max_norm = max_norm
        self.validation_fraction = validation_fraction
        self.score_every = score_every
        self.patience = patience
        self.callbacks = callbacks

    def train(
        self,
        module: nn.Module,
        loss: Loss,
        images: Tensor,
        data: Tensor,
        *,
        paired: bool = True,
        score: Score | None = None,
        seed: int = 0,
        verbose: int = 0,
    ) -> list[dict[str, Any]]:
        """Train ``module`` in place.

        Parameters
        ----------
        module : nn.Module
            On the device where it is to be trained.
        loss : callable
            ``loss(module, images, data)``, one number per image, shape (n,).
        images, data : Tensor of shape (n, ...)
            The training pairs, or two sets that need not be of one size.
        paired : bool
            Whether the i-th image belongs to the i-th data. If not, an epoch is one pass through the larger
            set, and each of its members meets a random one of the other set.
        score : callable or None
            ``score(images, data)``, larger is better, called on what is held out before the first epoch and
            then every ``score_every`` epochs.
        seed : int
            Fixes the split, the order of the images and whatever the module draws; the global generators
            are left as they were.
        verbose : int
            1 shows a progress bar, 2 a line per epoch.

        Returns
        -------
        list of dict
            For each epoch its number, ``train_loss``, duration, and with held-out images ``valid_loss`` and
            ``valid_score``.

        Raises
        ------
        ValueError
            If the optimizer is unknown, ``max_norm`` not positive, or nothing is left to train on.

        Warns
        -----
        ConvergenceWarning
            If the loss turned non-finite; the last good weights are kept.
        """
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {sorted(_OPTIMIZERS)}, got {self.optimizer!r}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(f"max_norm: expected a number > 0 or None, got {self.max_norm!r}")
        reuse_freed_memory()
        (train_images, held_images), (train_data, held_data) = (
            self.split(batch, seed) for batch in (images, data)
        )
        held_out = (held_images, held_data) if len(held_images) and len(held_data) else None
        sets = _dataset if paired else _Unpaired
        with torch.random.fork_rng(), tqdm(total=self.max_epochs, disable=verbose != 1) as bar:
            torch.manual_seed(seed)
            net = NeuralNet(
                _LossModule(module, loss),
                criterion=_Mean,
                optimizer=_OPTIMIZERS[self.optimizer],
                lr=self.lr,
                max_epochs=self.max_epochs,
                batch_size=self.batch_size,
                iterator_train__shuffle=True,
                iterator_train__generator=torch.Generator().manual_seed(seed),
                train_split=None if held_out is None else predefined_split(sets(*held_out)),
                callbacks=self._callbacks(held_out, score, bar),
                device=next(module.parameters()).device,
                verbose=int(verbose > 1),
            )
            net.fit(sets(train_images, train_data), y=None)
        return [{k: v for k, v in epoch.items() if k != "batches" and v is not None} for epoch in net.history]

    def split(self, batch: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """What :meth:`train` trains on and what it holds out; sets of one size are split alike.

        Parameters
        ----------
        batch : Tensor of shape (n, ...)
            Images or data.
        seed : int
            That of :meth:`train`.

        Returns
        -------
        training, held_out : Tensor
            Members of the batch, in another order.
        """
        n_held_out = int(round(self.validation_fraction * len(batch)))
        if not 0 <= self.validation_fraction < 1 or n_held_out >= len(batch):
            raise ValueError(
                f"validation_fraction={self.validation_fraction} leaves nothing of {len(batch)} to train on"
            )
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(batch))).to(batch.device)
        return batch[order[n_held_out:]], batch[order[:n_held_out]]

    def _callbacks(self, held_out: Any, score: Score | None, bar: tqdm) -> list[Any]:
        per_epoch = self.lr_decay ** (1 / max(1, self.max_epochs))
        watch = _Watch(held_out, score, self.score_every, self.patience, bar)
        schedule = LRScheduler(policy="ExponentialLR", gamma=per_epoch, monitor=None)
        known = [("watch", watch), ("schedule", schedule)]
        if self.max_norm is not None:
            known.append(("clipping", GradientNormClipping(self.max_norm)))
        return [*known, *(self.callbacks or [])]


class _LossModule(nn.Module):
    """A module whose output is already the loss of each image: all that skorch has to know."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, images: Tensor, data: Tensor) -> Tensor:
        return self.loss(self.module, images, data)


class _Mean(nn.Module):
    def forward(self, losses: Tensor, _: Tensor) -> Tensor:
        return losses.mean()


class _Watch(Callback):
    """Keeps the best weights, stops when they no longer improve or the loss is no longer a number."""

    def __init__(
        self,
        held_out: tuple[Tensor, Tensor] | None,
        score: Score | None,
        every: int,
        patience: int | None,
        bar: tqdm,
    ) -> None:
        self.held_out, self.score, self.every, self.patience, self.bar = held_out, score, every, patience, bar

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **_: Any) -> None:
        self.misses_, self.failed_ = 0, False
        self.best_, self.best_score_ = _weights(net), self._evaluate(net)
        # The last epoch's weights, where no score tells what they are worth: the next loss does.
        self.latest_: dict[str, Tensor] | None = None

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool = False, **_: Any) -> None:
        if training and not np.isfinite(net.history[-1, "batches", -1, "train_loss"]):
            self.failed_ = True
            raise KeyboardInterrupt  # skorch's way of ending a training in good order
        if training and self.latest_ is not None:
            self.best_, self.latest_ = self.latest_, None
        self.batch_ = batch

    def on_epoch_end(
        self, net: NeuralNet, dataset_train: Any = None, dataset_valid: Any = None, **_: Any
    ) -> None:
        self.bar.update()
        if not all(torch.isfinite(value).all() for value in net.module_.state_dict().values()):
            self.failed_ = True  # by the last gradient of the epoch
            raise KeyboardInterrupt
        epoch = net.history[-1, "epoch"]
        if self.best_score_ is None:
            self.latest_ = _weights(net)
        if epoch % self.every and epoch < net.max_epochs:
            return
        score = self._evaluate(net)
        net.history.record("valid_score", score)
        self.bar.set_postfix({} if score is None else {"score": f"{score:.3f}"})
        if self.best_score_ is None or score is None:
            return
        if score > self.best_score_:
            self.best_, self.best_score_, self.misses_ = _weights(net), score, 0
        else:
            self.misses_ += 1
        if self.misses_ == self.patience:
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **_: Any) -> None:
        if self.latest_ is not None and not self.failed_:  # nothing has been computed with them yet
            self.failed_ = not bool(torch.isfinite(net.evaluation_step(self.batch_)).all())
            self.best_ = self.best_ if self.failed_ else self.latest_
        net.module_.load_state_dict(self.best_)
        if self.failed_:
            message = (
                "training stopped: loss or weights are not finite; the last good weights are kept (lower lr?)"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=2)

    def _evaluate(self, net: NeuralNet) -> float | None:
        if self.held_out is None or self.score is None:
            return None
        net.module_.eval()
        score = self.score(*self.held_out)
        return score if np.isfinite(score) else -np.inf


def _weights(net: NeuralNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.module_.state_dict().items()}


def _dataset(images: Tensor, data: Tensor) -> Dataset:
    return Dataset({"images": images, "data": data})


class _Unpaired(Dataset):
    """Two sets: each member of the larger one comes once, with a random one of the other."""

    def __init__(self, images: Tensor, data: Tensor) -> None:
        self.images, self.data = images, data

    def __len__(self) -> int:
        return max(len(self.images), len(self.data))

    def __getitem__(self, i: int) -> tuple[dict[str, Tensor], Tensor]:
        fewer_data = len(self.data) <= len(self.images)
        j = int(torch.randint(len(self.data if fewer_data else self.images), ()))
        first, second = (i, j) if fewer_data else (j, i)
        return {"images": self.images[first], "data": self.data[second]}, torch.tensor(0)

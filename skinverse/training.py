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
from skorch.callbacks import Callback
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import Tensor, nn

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
    validation_fraction : float in [0, 1), default=0.1
        Part of the pairs held out to choose the best epoch; 0 holds nothing out.
    patience : int or None, default=None
        Stop after so many epochs without a better held-out PSNR; None trains for ``max_epochs``.
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
        validation_fraction: float = 0.1,
        patience: int | None = None,
        callbacks: list[Callback] | None = None,
    ) -> None:
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.callbacks = callbacks

    def train(
        self,
        module: nn.Module,
        loss: Loss,
        images: Tensor,
        data: Tensor,
        *,
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
            The training pairs.
        score : callable or None
            ``score(images, data)``, larger is better, called on the held-out pairs after each epoch.
        seed : int
            Fixes the split, the order of the images and whatever the module draws; the global generators
            are left as they were.
        verbose : int
            1 prints a line per epoch.

        Returns
        -------
        list of dict
            For each epoch its number, ``train_loss``, duration, and with held-out pairs ``valid_loss`` and
            ``valid_score``.

        Raises
        ------
        ValueError
            If the optimizer is unknown or nothing is left to train on.

        Warns
        -----
        ConvergenceWarning
            If the loss turned non-finite; the last good weights are kept.
        """
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {sorted(_OPTIMIZERS)}, got {self.optimizer!r}")
        train, held_out = self._split(images, data, seed)
        watch = _Watch(held_out, score, self.patience)
        with torch.random.fork_rng():
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
                train_split=None if held_out is None else predefined_split(_dataset(*held_out)),
                callbacks=[("watch", watch), *(self.callbacks or [])],
                device=next(module.parameters()).device,
                verbose=verbose,
            )
            net.fit(_dataset(*train), y=None)
        return [{k: v for k, v in epoch.items() if k != "batches" and v is not None} for epoch in net.history]

    def _split(self, images: Tensor, data: Tensor, seed: int) -> tuple[Any, Any]:
        n_held_out = int(round(self.validation_fraction * len(images)))
        if not 0 <= self.validation_fraction < 1 or n_held_out >= len(images):
            raise ValueError(
                f"validation_fraction={self.validation_fraction} leaves nothing of {len(images)} pairs "
                "to train on"
            )
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))).to(images.device)
        held_out, train = order[:n_held_out], order[n_held_out:]
        return (images[train], data[train]), (images[held_out], data[held_out]) if n_held_out else None


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
        self, held_out: tuple[Tensor, Tensor] | None, score: Score | None, patience: int | None
    ) -> None:
        self.held_out, self.score, self.patience = held_out, score, patience

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **_: Any) -> None:
        self.best_, self.best_score_, self.misses_, self.failed_ = _weights(net), -np.inf, 0, False

    def on_batch_end(self, net: NeuralNet, batch: Any = None, training: bool = False, **_: Any) -> None:
        if training and not np.isfinite(net.history[-1, "batches", -1, "train_loss"]):
            self.failed_ = True
            raise KeyboardInterrupt  # skorch's way of ending a training in good order

    def on_epoch_end(
        self, net: NeuralNet, dataset_train: Any = None, dataset_valid: Any = None, **_: Any
    ) -> None:
        score = self._evaluate(net)
        net.history.record("valid_score", score)
        if score is None or score > self.best_score_:
            self.best_, self.best_score_, self.misses_ = _weights(net), score or -np.inf, 0
        else:
            self.misses_ += 1
        if self.misses_ == self.patience:
            raise KeyboardInterrupt

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **_: Any) -> None:
        net.module_.load_state_dict(self.best_)
        if self.failed_:
            message = "training stopped: the loss is not finite; the last good weights are kept (lower lr?)"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)

    def _evaluate(self, net: NeuralNet) -> float | None:
        if self.held_out is None or self.score is None:
            return None
        net.module_.eval()
        return self.score(*self.held_out)


def _weights(net: NeuralNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.module_.state_dict().items()}


def _dataset(images: Tensor, data: Tensor) -> Dataset:
    return Dataset({"images": images, "data": data})

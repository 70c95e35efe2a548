"""How a module is trained: one object, whose fields can be searched."""

from __future__ import annotations

import copy
import math
import os
from typing import Any, Self

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from skinverse._optional import needed_from
from skinverse._parameters import (
    Constraint,
    Elements,
    Instance,
    Integer,
    Null,
    OneOf,
    ParameterError,
    Parametrized,
    Real,
    parameter,
)
from skinverse.training._processes import Alone, Processes, Together

_EVALUATIONS = 4  # of the held-out score in one training, where nobody says

OPTIMIZERS = {"adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}


class _Accelerator(Constraint):
    """What accelerate makes of the processes that were started together."""

    kind = "accelerate.Accelerator"
    expected = "an accelerate.Accelerator"

    def allows(self, value: Any) -> bool:
        with needed_from("distributed"):
            from accelerate import Accelerator
        return isinstance(value, Accelerator)


class Trainer(Parametrized):
    """How a learned method is trained; what is not set is the method's own choice.

    A training minimises the mean over images of the method's loss by a stochastic gradient method, and keeps
    the weights of the best epoch: the one with the largest held-out reconstruction PSNR where something is
    held out, else the last one.

    ``Trainer(lr=1e-4)`` changes the learning rate and nothing else; in a search over an estimator's
    parameters it is ``trainer__lr``.

    Notes
    -----
    Callbacks and the accelerator are not copied: clones of a trainer have the very same objects. The global
    random generators are neither read nor moved during a training.

    With an accelerator a training has the losses and weights of one process, up to rounding, with the same
    ``batch_size``, which is that of all processes together: an image gets the random numbers that it would
    get there. Two things differ. Layers that mix the images of a batch, such as ``nn.BatchNorm2d``, see
    those of their process only. And random numbers whose distribution depends on an image, as those of
    ``torch.poisson``, are other ones.

    Examples
    --------
    >>> from skinverse import Trainer
    >>> Trainer(max_epochs=20, lr=1e-4)
    Trainer(lr=0.0001, max_epochs=20)
    """

    max_epochs: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="Number of passes through the training images; an alternative to ``n_steps``.",
    )
    n_steps: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="Number of steps of the optimiser, rounded up to whole passes through the training images.",
    )
    batch_size: int | None = parameter(
        default=None, allowed=Integer(ge=1) | Null(), doc="Number of images in one step."
    )
    lr: float | None = parameter(
        default=None, allowed=Real(gt=0) | Null(), doc="Learning rate of the optimiser in the first epoch."
    )
    final_lr: float | None = parameter(
        default=None,
        allowed=Real(gt=0) | Null(),
        doc="""
        Learning rate that is reached after the last epoch; it changes by the same factor in each. None keeps
        the ratio to ``lr`` that the method has chosen.""",
    )
    optimizer: str | None = parameter(
        default=None,
        allowed=OneOf(*OPTIMIZERS) | Null(),
        doc="Stochastic gradient method, with torch's own defaults.",
    )
    max_grad_norm: float | None = parameter(
        default=None,
        allowed=Real(gt=0, infinite=True) | Null(),
        doc="Largest norm of the gradient of all weights together; longer ones are shortened.",
    )
    validation_fraction: float | None = parameter(
        default=None,
        allowed=Real(ge=0, lt=1) | Null(),
        doc="Part of the images that is held out to choose the best epoch; 0 holds nothing out.",
    )
    score_every: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="Number of epochs from one evaluation of the held-out score to the next.",
    )
    patience: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="""
        Number of evaluations of the held-out score without a better one after which the training stops. None
        trains to the end.""",
    )
    callbacks: list[Callback] | None = parameter(
        default=None,
        allowed=Elements(Instance(Callback), name="skorch callbacks") | Null(),
        doc="""
        What else is to happen during the training. Every exception that a callback raises ends ``fit`` and
        leaves the estimator as it was; only skorch's ``EarlyStopping`` ends a training in good order.""",
    )
    checkpoint: Any = parameter(
        default=None,
        kind="path-like or None",
        doc="""
        File in which the training is kept after each epoch. The same ``fit`` in another process goes on from
        there, to the very same weights; one with other data or parameters refuses to. The file stays when
        the training has ended.""",
    )
    accelerator: Any = parameter(
        default=None,
        allowed=Null() | _Accelerator(),
        kind="accelerate.Accelerator or None",
        doc="""
        Processes that train together, each on its part of every batch, and the ``mixed_precision`` of a step
        of the training. All of them call ``fit``, ``predict`` and ``save`` in the same order; only the first
        one writes files and shows progress. For all phases that of ``trainer`` counts.""",
    )

    @property
    def processes(self) -> Processes:
        """The processes that train together, this one among them."""
        return Alone() if self.accelerator is None else Together(self.accelerator)

    def over(
        self,
        *,
        n_steps: int | None = None,
        max_epochs: int | None = None,
        batch_size: int = 8,
        lr: float = 1e-3,
        final_lr: float | None = None,
        optimizer: str = "adam",
        max_grad_norm: float = math.inf,
        validation_fraction: float = 0.1,
        score_every: int | None = None,
    ) -> Self:
        """Fill in what is not set by the choices of a method.

        Parameters
        ----------
        n_steps, max_epochs : int or None
            One of both; not used where the trainer has one of them.
        batch_size, lr, final_lr, optimizer, max_grad_norm, validation_fraction, score_every : object
            As the fields. ``final_lr`` is ``lr`` by default.

        Returns
        -------
        Trainer
            A new one.
        """
        timed = self.max_epochs is not None or self.n_steps is not None
        rate = lr if self.lr is None else self.lr
        choices = {
            "n_steps": self.n_steps if timed else n_steps,
            "max_epochs": self.max_epochs if timed else max_epochs,
            "batch_size": batch_size,
            "lr": rate,
            "final_lr": rate * (1.0 if final_lr is None else final_lr / lr),
            "optimizer": optimizer,
            "max_grad_norm": max_grad_norm,
            "validation_fraction": validation_fraction,
            "score_every": 1 if self.patience is not None else score_every,
        }
        filled = copy.copy(self)
        for name, choice in choices.items():
            if getattr(self, name) is None:
                setattr(filled, name, choice)
        return filled

    def n_epochs(self, n_images: int) -> int:
        """Number of passes through so many images, those that are held out included."""
        if self.max_epochs is not None:
            return self.max_epochs
        assert self.n_steps is not None and self.batch_size is not None  # filled in
        return math.ceil(self.n_steps / math.ceil(n_images / self.batch_size))

    def evaluated_every(self, n_epochs: int) -> int:
        """Number of epochs between two evaluations of the held-out score."""
        return self.score_every or math.ceil(n_epochs / _EVALUATIONS)

    def split(self, n_images: int, seed: int) -> tuple[Tensor, Tensor]:
        """Which images are trained on and which are held out; sets of one size are split alike.

        Parameters
        ----------
        n_images : int
            How many there are.
        seed : int
            Seed of the order.

        Returns
        -------
        training, held_out : Tensor of int
            Their indices.

        Raises
        ------
        ParameterError
            If nothing is left to train on.
        """
        fraction = self.validation_fraction or 0.0
        n_held_out = round(fraction * n_images)
        if n_held_out >= n_images:
            raise ParameterError(
                f"validation_fraction={fraction} leaves nothing of {n_images} images to train on"
            )
        order = torch.from_numpy(np.random.default_rng(seed).permutation(n_images))
        return order[n_held_out:], order[:n_held_out]

    def check_evaluation(self, *, scored: bool) -> None:
        """Refuse what waits for a held-out value in a training that has none.

        Parameters
        ----------
        scored : bool
            Whether there are held-out images.

        Raises
        ------
        ParameterError
            If ``patience`` or a callback would wait in vain.
        """
        if scored:
            return
        if self.patience is not None:
            raise ParameterError(
                f"patience={self.patience} waits for a held-out score, but nothing is held out: raise "
                "validation_fraction"
            )
        for callback in self.callbacks or []:
            monitored = getattr(callback, "monitor", None)
            if isinstance(monitored, str) and monitored.startswith("valid_"):
                raise ParameterError(
                    f"callbacks: {type(callback).__name__} monitors {monitored!r}, but nothing is held out: "
                    "raise validation_fraction"
                )

    def _check_combination(self) -> None:
        if self.max_epochs is not None and self.n_steps is not None:
            raise ParameterError(
                f"max_epochs={self.max_epochs} and n_steps={self.n_steps} both say how long: expected one"
            )
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.accelerator is not None and self.accelerator.num_processes < started:
            raise ParameterError(
                f"accelerator: expected that of the {started} processes that were started together, got one "
                f"of {self.accelerator.num_processes}: on CPUs processes are joined by Accelerator(cpu=True)"
            )

    def __sklearn_clone__(self) -> Self:
        """Clones share callbacks and accelerator: what they record, lock or talk to cannot be copied."""
        return copy.copy(self)


def stopped_early(callback: Callback) -> bool:
    """Whether skorch's own ``EarlyStopping`` has ended a training, by a KeyboardInterrupt of its own."""
    return isinstance(callback, EarlyStopping) and callback.misses_ == callback.patience

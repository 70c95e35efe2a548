"""One phase of a training: what a method yields and the loop runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from skinverse._batches import is_read_later
from skinverse.training._stateful import Stateful

if TYPE_CHECKING:
    from skinverse.training._trainer import Trainer

# `loss(module, *rows)`: one number per image, (n,).
Loss = Callable[..., Tensor]
# `score(*rows)` of what is held out: larger is better.
Score = Callable[..., float]


@dataclass(frozen=True)
class Phase:
    """One phase of a training: a loss that is minimised on the rows of some tensors.

    Parameters
    ----------
    name : str
        Name of the phase, in the history and beside the progress bar.
    loss : callable
        ``loss(module, *rows)``, one number per image, shape (n,); the mean over images is minimised.
    rows : tuple of Tensor of shape (n, ...)
        What the loss sees of each image: a step hands it the rows of its images, in this order.
    trainer : Trainer
        How to train; all that is unset takes its last default, see :meth:`Trainer.over`.
    score : callable or None, default=None
        ``score(*rows)`` of what is held out; the weights of the epoch with the largest score are kept. None
        keeps those of the last epoch.
    paired : bool, default=True
        Whether the rows belong together. If not, ``rows`` are two sets that may differ in size: an epoch is
        one pass through the larger one, and each of its members meets a random one of the other.
    prepare : callable or None, default=None
        ``prepare(*rows)``, called with the rows to train on before the first epoch.
    state : tuple of Stateful, default=()
        What changes during the phase beside the module.

    Examples
    --------
    >>> import torch
    >>> from skinverse.training import Phase, Trainer
    >>> def loss(module, x, y):
    ...     return (module(y) - x).square().flatten(1).mean(1)
    >>> Phase("supervised", loss, (torch.zeros(8, 3), torch.zeros(8, 3)), Trainer(n_steps=100)).paired
    True
    """

    name: str
    loss: Loss
    rows: tuple[Tensor, ...]
    trainer: Trainer
    score: Score | None = None
    paired: bool = True
    prepare: Callable[..., None] | None = None
    state: tuple[Stateful, ...] = ()

    @property
    def read_later(self) -> bool:
        """Whether some of the rows are read when they are needed."""
        return any(map(is_read_later, self.rows))

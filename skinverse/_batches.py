"""Batches of which the rows are read when they are asked for, in place of a tensor of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse._arrays import Rows, as_rows, check_complete, check_finite, to_batch
from skinverse._hashing import digest
from skinverse._rows import is_stored, n_rows, take

# Numbers of a stored set from which its level, its spread and what else concerns all of it are estimated.
_SAMPLED = 2**24


# From rows of a stored set and their numbers to a batch, or a sentence on what is wrong with them.
Read = Callable[[Rows, NDArray[np.intp]], Tensor]


class StoredBatch:
    """A set of images or data as a batch of tensors, of which only those rows exist that are asked for.

    Parameters
    ----------
    source : object
        A stored set of rows.
    name : str
        Name of the argument, for errors.
    read : callable
        What becomes of rows when they are read, each by itself.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skinverse._batches import StoredBatch
    >>> batch = StoredBatch(np.ones((5, 2, 2)), "X_true", lambda rows, _: torch.from_numpy(rows))
    >>> doubled = batch.mapped(lambda x: 2 * x)
    >>> doubled.shape, doubled[torch.tensor([3, 0])].sum()
    ((5, 2, 2), tensor(16., dtype=torch.float64))
    """

    def __init__(self, source: Any, name: str, read: Read) -> None:
        self.source, self.name, self.read = source, name, read
        first = self[:1]
        self.shape, self.dtype, self.device = (len(self), *first.shape[1:]), first.dtype, first.device

    def __len__(self) -> int:
        return n_rows(self.source, self.name)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Rows by a slice or by a tensor of their numbers; one row by its number."""
        if isinstance(index, int):
            return self[index : index + 1][0]
        numbers = np.arange(len(self))[index if isinstance(index, slice) else index.cpu().numpy()]
        return self.read(as_rows(take(self.source, numbers), self.name), numbers)

    def is_complex(self) -> bool:
        """Whether the numbers are complex."""
        return self.dtype.is_complex

    def mapped(self, function: Callable[[Tensor], Tensor]) -> StoredBatch:
        """The batch of what a function makes of each row when it is read."""
        read = self.read
        return StoredBatch(self.source, self.name, lambda rows, numbers: function(read(rows, numbers)))

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows, so many at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def as_batch(array: Any, name: str, device: torch.device) -> Any:
    """A complete and finite batch in the precision that is computed in, see :func:`to_batch`.

    Parameters
    ----------
    array : array-like, Tensor or stored set of rows
        Images.
    name : str
        Name of the argument, for errors.
    device : torch.device
        Where to.

    Returns
    -------
    Tensor or StoredBatch
        Stored ones are read when rows are asked for.

    Raises
    ------
    TypeError
        If the array is sparse or does not hold numbers.
    ValueError
        If it is empty, has no axis of samples, is not finite, or values are masked.
    """

    def read(rows: Rows, numbers: NDArray[np.intp] | None) -> Tensor:
        check_complete(rows, name)
        check_finite(rows, name, numbers=numbers)
        return to_batch(rows, device)

    return StoredBatch(array, name, read) if is_stored(array) else read(as_rows(array, name), None)


def is_read_later(batch: Any) -> bool:
    """Whether the rows of a batch are read when they are asked for."""
    return not isinstance(batch, Tensor)


def rowwise(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """A function of each row of a batch, at once or when rows are read."""
    return batch.mapped(function) if is_read_later(batch) else function(batch)


def sampled(*batches: Any) -> tuple[Tensor, ...]:
    """The batches as they are, or where some are read later, some rows of each, evenly spaced."""
    if not any(map(is_read_later, batches)):
        return batches
    most = max(1, _SAMPLED // max(math.prod(batch.shape[1:]) for batch in batches))
    return tuple(batch[torch.from_numpy(_spaced(len(batch), most))] for batch in batches)


def content(batch: Any) -> Any:
    """What tells the numbers of a batch from others; a stored one is read for it."""
    if not is_read_later(batch):
        return batch
    return [digest(part) for part in batch.split(max(1, _SAMPLED // math.prod(batch.shape[1:])))]


def _spaced(n: int, most: int) -> np.ndarray[Any, Any]:
    """At most so many numbers below ``n``, the first one 0 and all equally far apart."""
    return np.arange(0, n, math.ceil(n / most))

"""The processes that train one module together: what each of them does, and what all of them know.

Each process walks through the same batches, works on its part of each, and gets the sum of all gradients:
the steps are those of one process. Gradients are summed after the backward pass and not, as torch's
``DistributedDataParallel`` does, during it: that sees calls of ``module(x)`` only, and losses call parts of a
module, or differentiate through derivatives of it.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from skinverse._defaults import seeded
from skinverse._optional import needed_from
from skinverse.training._stateful import Stateful

T = TypeVar("T")


class Processes(Protocol):
    """One process, or several that call the same methods in the same order."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and shows progress."""

    def part(self, n: int) -> slice:
        """Which of the rows of a batch are worked on here; the first process has one at least."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of a training step."""

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Leave the gradient of the sum of the processes' losses in the weights, and give that sum."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step with these gradients."""

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over the processes."""

    def align(self, tensors: Iterable[Tensor], draws: seeded) -> None:
        """Let all go on with the tensors and random numbers of the first one."""

    def joined(self, parts: Sequence[Stateful]) -> AbstractContextManager[Any]:
        """Within it each process changes its own state; afterwards all have what any of them has changed."""

    def once(self, function: Callable[[], T]) -> T:
        """What a function gives, or raises, in the first process; the other ones do not call it."""

    def spread(self, function: Callable[[slice], Iterator[T]], n: int) -> Iterator[T]:
        """What ``function(part)`` gives for the parts of ``n`` rows, in all processes."""


class Alone:
    """One process, which does everything itself."""

    first = True

    def part(self, n: int) -> slice:
        """All rows."""
        return slice(0, n)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the module."""
        return nullcontext()

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Differentiate."""
        loss.backward()
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step."""
        optimizer.step()

    def total(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def align(self, tensors: Iterable[Tensor], draws: seeded) -> None:
        """Nothing: there is nobody else."""

    def joined(self, parts: Sequence[Stateful]) -> AbstractContextManager[Any]:
        """Nothing: nobody else changes anything."""
        return nullcontext()

    def once(self, function: Callable[[], T]) -> T:
        """What the function gives."""
        return function()

    def spread(self, function: Callable[[slice], Iterator[T]], n: int) -> Iterator[T]:
        """What the function gives, one after the other."""
        return function(slice(0, n))


class Together:
    """The processes of an Accelerator.

    Parameters
    ----------
    accelerator : accelerate.Accelerator
        Its processes, its communication and its ``mixed_precision``, for which it scales the loss if need be.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        with needed_from("distributed"):
            from accelerate import utils
        self._utils = utils

    @property
    def first(self) -> bool:
        """Whether this is the process of rank 0."""
        return bool(self._accelerator.is_main_process)

    def part(self, n: int) -> slice:
        """A run of rows, of one length up to one; empty in the last processes where rows are few."""
        rank, size = self._accelerator.process_index, self._accelerator.num_processes
        return slice(-(-n * rank // size), -(-n * (rank + 1) // size))

    def autocast(self) -> AbstractContextManager[Any]:
        """That of the Accelerator."""
        precision: AbstractContextManager[Any] = self._accelerator.autocast()
        return precision

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Differentiate the own loss, and sum gradients and losses in one message."""
        scaler = self._accelerator.scaler
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()
        weights = [w for group in optimizer.param_groups for w in group["params"] if w.requires_grad]
        own = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        whole = self.total(torch.cat([*(g.flatten() for g in own), loss.detach().reshape(1).to(own[0])]))
        *summed, total = whole.split([*(w.numel() for w in weights), 1])
        for weight, gradient in zip(weights, summed, strict=True):
            weight.grad = gradient.reshape(weight.shape)
        if scaler is not None:
            scaler.unscale_(optimizer)
        return total[0]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take a step, unless a scaled gradient was not finite."""
        scaler = self._accelerator.scaler
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over the processes."""
        total: Tensor = self._accelerator.reduce(value, "sum")
        return total

    def align(self, tensors: Iterable[Tensor], draws: seeded) -> None:
        """Let all go on with the tensors and random numbers of rank 0."""
        for tensor in tensors:
            tensor.data.copy_(self._utils.broadcast(tensor.data.contiguous()))
        draws.load_state_dict(self.once(draws.state_dict))

    @contextmanager
    def joined(self, parts: Sequence[Stateful]) -> Iterator[None]:
        """Afterwards a number in a tensor is that of the process that changed it; the rest is rank 0's."""
        before = copy.deepcopy([part.state_dict() for part in parts])
        yield
        for part, old in zip(parts, before, strict=True):
            part.load_state_dict(self._joined(old, part.state_dict()))

    def _joined(self, old: Any, new: Any) -> Any:
        if isinstance(new, dict):
            return {key: self._joined(old[key], value) for key, value in new.items()}
        if not isinstance(new, Tensor) or not isinstance(old, Tensor):
            return self.once(lambda: new)
        changed = new != old
        # Where several have changed a number, as one of no image in particular, the mean.
        n = self.total(changed.to(torch.int32))
        mean = self.total(torch.where(changed, new, 0)) / n.clamp_min(1)
        return torch.where(n > 0, mean.to(new.dtype), old)

    def once(self, function: Callable[[], T]) -> T:
        """What a function gives, or raises, on rank 0."""
        (outcome,) = self._utils.broadcast_object_list([_outcome(function) if self.first else None])
        value, error = outcome
        if error is not None:
            raise error
        result: T = value
        return result

    def spread(self, function: Callable[[slice], Iterator[T]], n: int) -> Iterator[T]:
        """Each process calls the function for its part; tensors come on the CPU."""
        part, file = self.part(n), io.BytesIO()
        torch.save(list(function(part)) if part.start < part.stop else [], file)
        for content in self._utils.gather_object([file.getvalue()]):
            # Of the own job, whose processes run the same code.
            yield from torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error

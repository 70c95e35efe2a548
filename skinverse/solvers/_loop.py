"""The loop of every iterative solver, written once: it stops image by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from skinverse._tensors import are_finite, expand, norm
from skinverse.solvers._objective import Problem, SmoothObjective
from skinverse.solvers._solution import Solution

# Called after each step with its number and all images, finished ones included.
Callback = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Record:
    """Base of what is remembered of each image of a batch.

    Fields of a subclass are tensors whose first axis counts images, tuples of them, further records, and
    plain numbers, which are the same for all images.
    """

    def select(self, index: Tensor) -> Self:
        """The record of some of the images."""
        return _map(lambda value: value[index], self)

    def where(self, condition: Tensor, other: Self) -> Self:
        """A record that is this one for the images of which the condition holds, the other one elsewhere."""
        return _map(lambda a, b: torch.where(expand(condition, a), a, b), self, other)

    def replaced(self, index: Tensor, other: Self) -> Self:
        """A record with the entries of another one for the images ``index``, in their order."""
        return _map(lambda a, b: a.index_copy(0, index, b), self, other)

    def cleared(self, condition: Tensor) -> Self:
        """A record with zeros for the images of which the condition holds."""
        return _map(lambda value: torch.where(expand(condition, value), 0, value), self)


def _map(function: Callable[..., Tensor], *values: Any) -> Any:
    """Apply a function to the tensors in one or more records of the same kind."""
    first: Any = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, tuple):
        return tuple([_map(function, *entries) for entries in zip(*values, strict=True)])
    if is_dataclass(first):
        fields = zip(*[vars(value).values() for value in values], strict=True)
        record: Any = type(first)
        return record(*[_map(function, *entries) for entries in fields])
    return first


class State(Protocol):
    """What a method remembers from one step to the next: a record with two things that the loop looks at."""

    @property
    def x(self) -> Tensor:
        """The images."""

    @property
    def residual(self) -> Tensor:
        """A number of each image, (n,), to compare with the tolerance."""

    def select(self, index: Tensor) -> Self: ...


P = TypeVar("P", bound=Problem)
S = TypeVar("S", bound=State)


def iterate(
    step: Callable[[P, S], S],
    problem: P,
    state: S,
    *,
    max_steps: int,
    tol: float,
    callback: Callback | None = None,
    report: Callable[[S], dict[str, Tensor]] = lambda state: {},
) -> Solution:
    """Repeat ``step`` on the images that are not finished.

    An image is finished when its residual falls below ``tol``. One that turns non-finite goes back to its
    last finite iterate and counts as not converged. Finished images leave the state and the problem, so
    they cost nothing and cannot influence the others. The solution tells the numbers in ``report(state)``
    as they were when the image stopped.
    """
    n = len(state.x)
    x, active = state.x.detach().clone(), torch.arange(n, device=state.x.device)
    last = {name: unknown(state.x) for name in ("residual", *report(state))}
    n_steps, converged, whole = torch.zeros_like(active), torch.zeros_like(active).bool(), problem
    with torch.no_grad():
        for k in range(max_steps if n else 0):
            new = step(problem, state)
            finite = are_finite(new.x) & ~torch.isnan(new.residual)
            done = finite & (new.residual < tol)
            n_steps[active] += 1
            converged[active] = done
            for name, value in {"residual": new.residual, **report(new)}.items():
                last[name][active] = value
            going = finite & ~done
            if callback is not None or not going.all():
                x[active[finite]] = new.x[finite]
            if callback is not None:
                callback(k + 1, x)
            if going.all():
                state = new
                continue
            x[active[~finite]] = state.x[~finite]
            active, kept = active[going], going.nonzero()[:, 0]
            state = new.select(kept)
            if len(active) == 0:
                break
            problem = problem.select(kept)
        x[active] = state.x
        return Solution(x, n_steps, converged, last.pop("residual"), whole(x), last)


def unknown(x: Tensor) -> Tensor:
    """An infinite number for each image, in the precision of the images."""
    return torch.full((len(x),), torch.inf, dtype=x.dtype.to_real(), device=x.device)


def first_step(objective: SmoothObjective, x: Tensor, gradient: Tensor) -> Tensor:
    """One over the curvature along the gradient, by a difference.

    The difference goes a hundredth of the image's norm: small enough to see the curvature at the image, and
    large against the rounding of single precision.
    """
    tiny = torch.finfo(x.dtype).tiny
    length = 1e-2 * (norm(x) + (norm(x) == 0)) / norm(gradient).clamp_min(tiny)
    change = objective.value_and_grad(x - expand(length, x) * gradient)[1] - gradient
    curvature = norm(change) / (length * norm(gradient)).clamp_min(tiny)
    return torch.where(curvature > 0, 1 / curvature, 1.0)

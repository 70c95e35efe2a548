"""What a solver asks of the things it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

from skinverse._tensors import LinearMap


class Problem(Protocol):
    """A function of each image of a batch, (n, *dims) -> (n,), that can be asked about some of them."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def select(self, index: Tensor, /) -> Self: ...


class SmoothObjective(Protocol):
    """A problem with a gradient."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def value_and_grad(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def select(self, index: Tensor, /) -> SmoothObjective: ...


class Objective(Protocol):
    """A functional: a sum of terms, each of which says what it can do."""

    smooth: bool
    proximable: bool

    @property
    def summands(self) -> Sequence[Objective]: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def grad(self, x: Tensor, /) -> Tensor: ...

    def value_and_grad(self, x: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def prox(self, x: Tensor, step: Tensor | float, /) -> Tensor: ...

    def prox_conjugate(self, u: Tensor, step: Tensor | float, /) -> Tensor: ...

    def conjugate(self, u: Tensor, /) -> Tensor | None: ...

    def split(self) -> tuple[Objective, LinearMap | None]: ...

    def select(self, index: Tensor, /) -> Objective: ...

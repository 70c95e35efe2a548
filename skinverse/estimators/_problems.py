"""The problems that images are learned from: the operator of each, its noise, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import pylops
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.estimators._validation import FEW, check_not_swapped
from skinverse.functionals import Functional
from skinverse.operators import LinearMap

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class Problem:
    """An operator and the noise of its data.

    Parameters
    ----------
    operator : pylops.LinearOperator
        The operator to all data.
    noise : NoiseModel, str, float or None
        The noise of what is measured, as the parameter ``noise`` has it.
    A : LinearMap
        The map to what is measured.
    kept : ndarray of int or None, default=None
        Which of the flat data are measured; None is all of them.
    """

    operator: pylops.LinearOperator
    noise: Any
    A: LinearMap
    kept: NDArray[np.intp] | None = None

    def measured(self, data: Tensor) -> Tensor:
        """What is measured, of a batch of all data."""
        return data if self.kept is None else data.flatten(1)[:, self.kept].reshape(-1, *self.A.dimsd)

    def on_grid(self, value: Tensor) -> Tensor:
        """What belongs to measured values in the shape of all data, (1, *dimsd), elsewhere zero."""
        if self.kept is None:
            return value.expand(1, *self.A.dimsd)
        whole = value.new_zeros(1, *self.operator.dimsd)
        whole.view(-1)[self.kept] = value.flatten()
        return whole


class Problems:
    """A few problems, and to which of them each image belongs.

    Data of all images have one shape. Where problems differ in what is measured, the rest is zero, and a
    function of the data of one problem is given what is measured alone.

    Parameters
    ----------
    distinct : sequence of Problem
        The problems.
    which : Tensor of int, shape (n,)
        The number of the problem of each measurement.
    """

    def __init__(self, distinct: Sequence[Problem], which: Tensor) -> None:
        self.distinct, self.which = tuple(distinct), which

    @classmethod
    def one(cls, problem: Problem, like: Tensor | None = None) -> Self:
        """The same problem for each row."""
        device, n = ("cpu", 0) if like is None else (like.device, len(like))
        return cls((problem,), torch.zeros(n, dtype=torch.long, device=device))

    @property
    def several(self) -> bool:
        """Whether images differ in their problems."""
        return len(self.distinct) > 1

    @property
    def A(self) -> LinearMap:
        """The only operator; an error if there are several problems."""
        self.check_single()
        return self.distinct[0].A

    @property
    def maps(self) -> tuple[LinearMap, ...]:
        """The operators of all problems."""
        return tuple(problem.A for problem in self.distinct)

    @property
    def content(self) -> Any:
        """What tells several problems from others; one is told by the method that learns from it."""
        if not self.several:
            return None
        return [(p.operator, p.noise, p.kept) for p in self.distinct], self.which.cpu()

    def under(self, noise: Callable[[Problem], Any]) -> Problems:
        """The same with other noise."""
        return Problems([replace(p, noise=noise(p)) for p in self.distinct], self.which)

    def stacked(self, values: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        """What belongs to the data of some images, of values that belong to those of each problem."""
        if not self.several:
            return lambda which: values[0]
        whole = torch.cat([p.on_grid(value) for p, value in zip(self.distinct, values, strict=True)])
        return lambda which: whole[which]

    def of(self, which: Tensor) -> Problems:
        """The problems of some of the images."""
        return Problems(self.distinct, which)

    def each(
        self,
        function: Callable[..., Tensor],
        parts: Sequence[Any],
        which: Tensor,
        data: Tensor,
        *rows: Tensor,
    ) -> Tensor:
        """A function of rows, image by image under its own problem.

        Parameters
        ----------
        function : callable
            ``function(part, data, *rows)`` of the images of one problem, with its part and what is measured.
        parts : sequence
            What the function needs of each problem.
        which : Tensor of int, shape (n,)
            The problems of these images.
        data, *rows : Tensor of shape (n, ...)
            Data and whatever else there is of the images.

        Returns
        -------
        Tensor of shape (n, ...)
            Values in the order of the images.
        """
        if not self.several:
            return function(parts[0], data, *rows)
        values, places = [], []
        for problem, part, index in self.groups(which, parts):
            values.append(function(part, problem.measured(data[index]), *(row[index] for row in rows)))
            places.append(index)
        return torch.cat(values)[torch.cat(places).argsort()]

    def groups(self, which: Tensor, parts: Sequence[Part]) -> Iterator[tuple[Problem, Part, Tensor]]:
        """The problems of some images with their parts, and the places of the images that belong to each."""
        order = which.argsort(stable=True)
        numbers, counts = which[order].unique_consecutive(return_counts=True)
        for k, index in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            yield self.distinct[k], parts[k], index

    def each_functional(
        self, function: Callable[[Any, Tensor], Functional], parts: Sequence[Any], which: Tensor, data: Tensor
    ) -> Functional:
        """A functional of images, each of which has its own, ``function(part, data)``."""
        if not self.several:
            return function(parts[0], data)
        found = self.groups(which, parts)
        return _Each([(index, function(part, p.measured(data[index]))) for p, part, index in found])

    def check_single(self) -> None:
        """Refuse several problems, for methods that learn of one.

        Raises
        ------
        ValueError
            If there are several.
        """
        if self.several:
            raise ValueError(
                "Y_meas: expected measurements of one operator to learn from, got parameters or masks that "
                "differ from one image to another"
            )

    def check_not_swapped(self, images: Tensor, data: Tensor) -> None:
        """Refuse images and measurements in the wrong order, see :func:`check_not_swapped`."""
        for problem, _, index in self.groups(self.which[:FEW], self.distinct):
            check_not_swapped(problem.A, images[index], problem.measured(data[index]))


class _Each(Functional):
    """``f_i(x_i)``: every image has its own functional, or one with some others."""

    def __init__(self, parts: Sequence[tuple[Tensor, Functional]]) -> None:
        self.parts = parts
        self.smooth = all(f.smooth for _, f in parts)
        moduli = [f.weak_convexity for _, f in parts]
        self.weak_convexity = None if None in moduli else max(m for m in moduli if m is not None)
        self._places = torch.cat([index for index, _ in parts]).argsort()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([f(x[index]) for index, f in self.parts])[self._places]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = [f.value_and_grad(x[index]) for index, f in self.parts]
        values, gradients = (torch.cat(parts)[self._places] for parts in zip(*found, strict=True))
        return values, gradients

    def select(self, index: Tensor) -> Functional:
        chosen = torch.arange(len(self._places), device=index.device)[index]
        parts = []
        for members, f in self.parts:
            new, old = (chosen[:, None] == members).nonzero(as_tuple=True)
            if len(new):
                parts.append((new, f.select(old)))
        return _Each(parts)

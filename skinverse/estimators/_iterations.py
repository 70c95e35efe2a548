"""What methods of learned iterations share: a problem without units, stages, training on pairs."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import pylops
import torch
from torch import Tensor, nn

from skinverse.estimators._learning import (
    check_kinds,
    first_images,
    fitted_initial,
    following,
    in_memory,
    reached,
    recipe,
    spread,
)
from skinverse.estimators._validation import check_bounds, check_whole, same_kind
from skinverse.functionals import as_channels, from_channels
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Steps and learning rate if nobody says; held-out images to score.
_N_STEPS, _LR, _N_SCORED = 2000, 1e-3, 16


class Scaled:
    """``A / ||A||`` between channels, and the data as channels in the unit of the images."""

    def __init__(self, A: LinearMap, data: Tensor, start: Tensor, unit: Tensor) -> None:
        self.A, self.norm = A, A.norm() or 1.0
        self._x, self._y = start, data
        self.start = as_channels(start) / unit
        self.data = as_channels(data) / (unit * self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """``A x / ||A||``."""
        y = self.A(from_channels(x, self._x)) / self.norm
        return as_channels(y if self._y.is_complex() or not y.is_complex() else y.real)

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^* y / ||A||``."""
        x = self.A.adjoint(from_channels(y, self._y)) / self.norm
        return as_channels(x if self._x.is_complex() or not x.is_complex() else x.real)


class Unrolled(nn.Module, ABC):
    """Learned iterations, each with weights of its own unless ``shared``; the unit is 0 until trained."""

    unit: Tensor

    def __init__(self, n_channels: tuple[int, int], n_iterations: int) -> None:
        super().__init__()
        self.n_channels, self.n_iterations = n_channels, n_iterations
        self.register_buffer("unit", torch.zeros(()))

    @abstractmethod
    def iterates(self, problem: Scaled) -> Iterator[Tensor]:
        """The image after each iteration, as channels in units."""

    def stages(self, A: LinearMap, data: Tensor, start: Tensor) -> Iterator[Tensor]:
        """The image after each iteration, like ``start``."""
        A, y, x = self._folded(A, data, start)
        unit = self.unit.clamp_min(1e-30)
        for found in self.iterates(Scaled(A, y, x, unit)):
            yield from_channels(unit * found, x).reshape(start.shape)

    def forward(self, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        """The last image."""
        *_, last = self.stages(A, data, start)
        return last

    def _folded(self, A: LinearMap, data: Tensor, start: Tensor) -> tuple[LinearMap, Tensor, Tensor]:
        """What has as many channels as were learned; to denoise, one channel stands for each of many."""
        seen = as_channels(start).shape[1], as_channels(data).shape[1]
        if seen == self.n_channels:
            return A, data, start
        if A.identity and self.n_channels == (1, 1) and seen[0] == seen[1]:
            y, x = (as_channels(batch).flatten(0, 1) for batch in (data, start))
            return as_torch(pylops.Identity(x.shape[1:])), y, x
        raise ValueError(
            f"the network was trained on images of {self.n_channels[0]} and data of {self.n_channels[1]} "
            f"channels (a complex one counts twice), got {seen[0]} and {seen[1]}"
        )


class LearnedIterations(ABC):
    """The part of a learned method that is the same for all iterations; ``_make_module`` gives an `Unrolled`.

    The loss is the squared error of the last iterate, the best epoch that of the best held-out images.
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_", "initial_")
    _saved: ClassVar[tuple[str, ...]] = ("_learned",)
    _load: ClassVar[int] = 64
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("bounds", "verbose", "device")
    # Parameters that are whole numbers, one at least.
    _whole: ClassVar[tuple[str, ...]] = ("n_iterations",)
    module_: Any
    initial_: Any
    initial: Any
    bounds: Any
    n_iterations: int
    trainer: Trainer | None

    @abstractmethod
    def _make_module(self) -> Unrolled:
        """The untrained iterations."""

    def staged_predict(self, Y_meas: Any) -> Iterator[Any]:
        """Reconstructions after each iteration.

        Parameters
        ----------
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.

        Returns
        -------
        iterator of ndarray or Tensor of shape (n_samples, *operator.dims)
            The images after the first, second, ... iteration; the last ones are those of ``predict``.
        """
        staged = self._predicted(Y_meas, self._staged).x  # type: ignore[attr-defined]
        return (same_kind(x, Y_meas) for x in staged.unbind(1))

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert A is not None and images is not None and data is not None  # _needs
        for name in self._whole:
            check_whole(getattr(self, name), name, 1)
        check_kinds(A, images, data)
        if images.is_complex() and check_bounds(self.bounds) != (None, None):
            raise ValueError(f"bounds: complex images have no order to be bounded by, got {self.bounds!r}")
        check_bounds(self.bounds)
        self.real_ = not images.is_complex()
        self.initial_ = fitted_initial(self.initial, self.operator_, images, data)  # type: ignore[attr-defined]
        # A complex channel counts twice.
        self.n_channels_ = as_channels(images[:1]).shape[1], as_channels(data[:1]).shape[1]
        super()._fit(A, images, data)  # type: ignore[misc]
        self._learned = self.n_iterations

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        if module.unit == 0:
            module.unit.fill_(spread(as_channels(images)))
        starts = torch.cat([self._start(A, part) for part in data.split(in_memory(A))])

        def loss(module: Any, x: Tensor, index: Tensor) -> Tensor:
            error = (module(A, data[index], starts[index]) - x) / module.unit
            return error.abs().square().flatten(1).mean(1)

        def score(x: Tensor, index: Tensor) -> float:
            return reached(x[:_N_SCORED], self._reconstruct(A, data[index[:_N_SCORED]]).x)

        trainer = self.trainer or recipe(_N_STEPS, _LR, len(data), max_norm=1.0)
        members = torch.arange(len(data), device=data.device)
        return trainer.train(module, loss, images, members, score=score, seed=seed, verbose=verbose)

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """What ``initial`` makes of the data."""
        return first_images(A, data, self.initial_, real=self.real_).x

    def _stages(self, A: LinearMap, data: Tensor, x0: Tensor) -> Iterator[Tensor]:
        """The image after each iteration, within its bounds."""
        learned, (low, high) = getattr(self, "_learned", self.n_iterations), check_bounds(self.bounds)
        if learned != self.n_iterations:
            raise ValueError(f"n_iterations: learned with {learned}, got {self.n_iterations}: fit again")
        module = copy.deepcopy(self.module_).to(x0.device, x0.dtype.to_real())
        with torch.no_grad():
            for x in module.stages(A, data, x0):
                yield x if low is None and high is None else x.clamp(low, high)

    def _staged(self, A: LinearMap, data: Tensor) -> Solution:
        first = first_images(A, data, self.initial_, real=self.real_)
        return following(first, torch.stack(list(self._stages(A, data, first.x)), 1))

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        first = first_images(A, data, self.initial_, real=self.real_)
        *_, last = self._stages(A, data, first.x)
        return following(first, last)

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        found: Tensor = module(A, data, start)
        return found

"""What methods that unroll an iteration share: a problem without units, stages, and training on pairs."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pylops
import torch
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from skinverse._parameters import Elements, Flag, Instance, Integer, Null, ParameterError, fitted, parameter
from skinverse._tensors import as_channels, from_channels, planes_for, real_like, spatial_axes
from skinverse.estimators._base import BaseReconstructor, Measured
from skinverse.estimators._declarations import (
    OF_COUNTS,
    RELATIVE,
    bounds_parameter,
    noise_of_squares_parameter,
)
from skinverse.estimators._learned import (
    LearnedReconstructor,
    after,
    check_kinds,
    fit_initial,
    held_out_psnr,
)
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import Interval, NormalisedFidelity, interval, within
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution
from skinverse.training import Phase

# Held-out images to score.
_N_SCORED = 16


class UnrolledReconstructor(LearnedReconstructor):
    """A method that consists of a fixed number of iterations, whose parts are learned from end to end.

    A method gives :meth:`_make_module`, its iterations. ``fit`` minimises the squared error of the last one.
    """

    _load: ClassVar[int] = 64
    _reads_rows: ClassVar[bool] = True
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("bounds", "verbose", "device")

    n_iterations: int = parameter(
        default=10, allowed=Integer(ge=1), doc="Number of iterations; another one needs another ``fit``."
    )
    initial: BaseReconstructor | FrozenEstimator | None = parameter(
        default=None,
        allowed=Instance(BaseReconstructor, FrozenEstimator, name="estimator") | Null(),
        doc="""
        Method that makes the images to start from; it gets the operator and is fitted on the same pairs, or
        is kept as it is inside scikit-learn's ``FrozenEstimator``. None is filtered back-projection or zero
        filling where there is one, else a regularised pseudo-inverse.""",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter(OF_COUNTS)
    noise: NoiseModel | str | float | None = noise_of_squares_parameter(
        "The iterations see measurements and operator with the roots of the weights; how strong the noise is "
        f"they learn. {inspect.cleandoc(RELATIVE)}"
    )

    module_: Unrolled = fitted(kind="nn.Module", doc="The trained iterations.")
    initial_: BaseReconstructor | None = fitted(
        allowed=Instance(BaseReconstructor, name="estimator") | Null(), doc="The fitted ``initial``."
    )
    n_iterations_: int = fitted(allowed=Integer(ge=1), doc="Number of iterations in the training.")
    n_channels_: tuple[int, int] = fitted(
        kind="tuple of int",
        allowed=Elements(Integer(ge=1), name="whole numbers"),
        doc="Number of real channels of the images and of the data; a complex channel counts twice.",
    )
    real_: bool = fitted(allowed=Flag(), doc="Whether the images of ``fit`` were real.")

    def staged_predict(self, Y_meas: Measured) -> Iterator[Any]:
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
        stages, _ = self._reconstructions(Y_meas, type(self)._staged)
        return (stages[:, k] for k in range(self.n_iterations_))

    # ------------------------------------------------------------------ hooks
    @abstractmethod
    def _make_module(self) -> Unrolled:
        """The untrained iterations."""

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        check_kinds(problems, images, data)
        self.real_, self.n_iterations_ = not images.is_complex(), self.n_iterations
        first = problems.distinct[0]
        space, y = DataSpace.of(first.A, self.channel_axis), first.measured(data[:1])
        self.n_channels_ = self._channels(images[:1]).shape[1], space.channels(y).shape[1]
        self._check_order()
        self.initial_ = fit_initial(self, self.initial, problems, images, data)
        super()._fit(problems, images, data)

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        rows = images, data, problems.which, self._starts(problems, data)
        fidelities = self._fidelities(problems)

        def loss(module: Any, x: Tensor, y: Tensor, which: Tensor, x0: Tensor) -> Tensor:
            def reconstruct(fidelity: NormalisedFidelity, y: Tensor, x0: Tensor) -> Tensor:
                x_hat: Tensor = module(*self._problem(fidelity, y, x0))
                return x_hat

            x_hat = problems.each(reconstruct, fidelities, which, y, x0)
            return (x_hat - x).abs().square().flatten(1).mean(1)

        score = held_out_psnr(self._reconstructions_under(problems), n_images=_N_SCORED)
        trainer = self.trainer.over(n_steps=2000, lr=1e-3, final_lr=1e-4, max_grad_norm=1.0)
        yield Phase("supervised", loss, rows, trainer, score)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        first = self._first_images(A, data, self.initial_, real=self.real_)
        *_, last = self._stages(A, data, first.x)
        return after(first, last)

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        return self._first_images(A, data, self.initial_, real=self.real_).x

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        fidelity = self._fidelity(A)
        images: Tensor = module(*self._problem(fidelity, data, start))
        return images

    # ------------------------------------------------------------------ private
    def _staged(self, A: LinearMap, data: Tensor) -> Solution:
        """The images after all iterations in their own units, (n, n_iterations, *dims)."""
        data = self._normalised(A, data)
        first = self._first_images(A, data, self.initial_, real=self.real_)
        return self._restored(after(first, torch.stack(list(self._stages(A, data, first.x)), 1)))

    def _stages(self, A: LinearMap, data: Tensor, start: Tensor) -> Iterator[Tensor]:
        """Yield the images after each iteration."""
        if self.n_iterations != self.n_iterations_:
            raise ParameterError(
                f"n_iterations: learned with {self.n_iterations_}, got {self.n_iterations}: fit again"
            )
        self._check_order()
        module, fidelity = (
            copy.deepcopy(self.module_).to(start.device, start.dtype.to_real()),
            self._fidelity(A),
        )
        with torch.no_grad():
            yield from module.stages(*self._problem(fidelity, data, start))

    def _problem(
        self, fidelity: NormalisedFidelity, data: Tensor, start: Tensor
    ) -> tuple[LinearMap, Tensor, Tensor, int | None, Tensor | None]:
        """What the iterations see."""
        weights = fidelity.relative_weights(data)
        return fidelity.A, fidelity.weighted_data(data), start, self.channel_axis, weights

    def _restored(self, solution: Solution) -> Solution:
        solution = super()._restored(solution)
        return replace(solution, x=within(solution.x, self._interval))

    @property
    def _interval(self) -> Interval:
        return interval(self.bounds, self._noise_model)

    def _check_order(self) -> None:
        """Refuse bounds of complex images, which have no order."""
        if not self.real_ and any(end is not None for end in self._interval or ()):
            raise ParameterError(
                f"bounds: complex images have no order to be bounded by, got {self._interval!r}"
            )


class Unrolled(nn.Module, ABC):
    """Iterations with learned parts."""

    # Whether what is learned sees the data themselves, and their channels with them.
    sees_data = False

    def __init__(self, n_channels: tuple[int, int], n_iterations: int) -> None:
        super().__init__()
        self.n_channels, self.n_iterations = n_channels, n_iterations

    @abstractmethod
    def iterates(self, problem: ScaledProblem) -> Iterator[Tensor]:
        """Yield the images after each iteration, as channels."""

    def stages(
        self,
        A: LinearMap,
        data: Tensor,
        start: Tensor,
        channel_axis: int | None = None,
        weights: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the images after each iteration, of the kind and shape of ``start``."""
        problem = self._in_trained_channels(A, data, start, channel_axis, weights)
        for x in self.iterates(problem):
            yield from_channels(x, start, channel_axis)

    def forward(
        self,
        A: LinearMap,
        data: Tensor,
        start: Tensor,
        channel_axis: int | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The images after the last iteration."""
        *_, last = self.stages(A, data, start, channel_axis, weights)
        return last

    def _in_trained_channels(
        self, A: LinearMap, data: Tensor, start: Tensor, channel_axis: int | None, weights: Tensor | None
    ) -> ScaledProblem:
        """The problem with the channels of the training; a denoiser of one channel takes many one by one."""
        space = DataSpace.of(A, channel_axis)
        of_images, of_data = as_channels(start, channel_axis).shape[1], space.channels(data).shape[1]
        known = of_data == self.n_channels[1] or not (self.sees_data or A.identity)
        if of_images == self.n_channels[0] and known:
            return ScaledProblem(A, data, start, channel_axis, weights)
        if A.identity and self.n_channels == (1, 1) and of_images == of_data:
            y, x0 = (planes_for(batch, 1, "the network", channel_axis) for batch in (data, start))
            w = None if weights is None else planes_for(weights, 1, "the network", channel_axis)
            return ScaledProblem(as_torch(pylops.Identity(x0.shape[1:])), y, x0, 0, w)
        raise ValueError(
            f"the network was trained on images of {self.n_channels[0]} and data of {self.n_channels[1]} "
            f"channels (a complex one counts twice), got {of_images} and {of_data} with "
            f"channel_axis={channel_axis}"
        )


class ScaledProblem:
    """``A / ||A||`` from channels to channels, and ``y / ||A||`` and start as channels.

    Whatever the unit of the operator is, the learned parts see numbers of order one. With weights ``w``, of
    which each image has its own, ``A`` is ``W^1/2 A`` and ``y`` is ``W^1/2 y`` everywhere.
    """

    def __init__(
        self,
        A: LinearMap,
        data: Tensor,
        start: Tensor,
        channel_axis: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self._A, self._norm = A, A.norm() or 1.0
        self._x, self._y = start, data
        self._channel_axis, self._space = channel_axis, DataSpace.of(A, channel_axis)
        self._root = None if weights is None else self._space.channels(weights.sqrt())
        self.start = as_channels(start, channel_axis)
        self.data = self._weighted(self._space.channels(data)) / self._norm

    def forward(self, x: Tensor) -> Tensor:
        """``A x / ||A||``."""
        y = self._A(from_channels(x, self._x, self._channel_axis)) / self._norm
        return self._weighted(self._space.channels(real_like(y, self._y)))

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^* y / ||A||``."""
        x = self._A.adjoint(self._space.data(self._weighted(y), self._y)) / self._norm
        return as_channels(real_like(x, self._x), self._channel_axis)

    def _weighted(self, y: Tensor) -> Tensor:
        """``W^1/2 y``."""
        return y if self._root is None else self._root * y

    def gradient(self, x: Tensor) -> Tensor:
        """``A^*(A x - y)`` with ``A`` scaled to norm 1: the gradient of the data term."""
        return self.adjoint(self.forward(x) - self.data)


@dataclass(frozen=True)
class DataSpace:
    """Which axes of data the networks take for space: as many as images have, the last ones.

    Axes before them are channels, such as coils. Data of the layout of images have their channels where the
    images have them.
    """

    n_axes: int
    n_leading: int
    channel_axis: int | None
    # Whether what is beside each other along an axis in space belongs together.
    neighbours: tuple[bool, ...]

    @classmethod
    def of(cls, A: LinearMap, channel_axis: int | None = None) -> Self:
        """The layout of the data of an operator on images with this axis of channels."""
        n_axes = max(2, len(spatial_axes(len(A.dims), channel_axis)))
        alike = len(A.dims) == len(A.dimsd)
        if alike and channel_axis is not None and A.dims[channel_axis] == A.dimsd[channel_axis]:
            beside = tuple(A.neighbours[k] for k in spatial_axes(len(A.dimsd), channel_axis))
            return cls(n_axes, 1, channel_axis, (False,) * (n_axes - len(beside)) + beside)
        n_leading = max(0, len(A.dimsd) - n_axes)
        beside = A.neighbours[n_leading:]
        along = (False,) * (n_axes - len(beside)) + beside
        return cls(n_axes, n_leading, 0 if n_leading else None, along)

    def channels(self, data: Tensor) -> Tensor:
        """Data as real channels, (n, channels, *space)."""
        planes = as_channels(self._gathered(data), self.channel_axis)
        missing = self.n_axes + 2 - planes.ndim
        return planes.reshape(*planes.shape[:2], *[1] * missing, *planes.shape[2:])

    def data(self, channels: Tensor, like: Tensor) -> Tensor:
        """Undo :meth:`channels`."""
        return from_channels(channels, self._gathered(like), self.channel_axis).reshape(like.shape)

    def _gathered(self, data: Tensor) -> Tensor:
        """All leading axes as one."""
        return data.flatten(1, self.n_leading) if self.n_leading > 1 else data

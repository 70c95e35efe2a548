"""The estimator under test: made small, with problems, and fitted once for all checks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import pylops
from sklearn.base import clone
from torch.optim.optimizer import register_optimizer_step_pre_hook

from skinverse._checks._expect import relative_difference
from skinverse.operators import structurally_random

Array = np.ndarray[Any, Any]

# The default problem: compressive sensing of a few smooth images, ill-posed and not square.
_DIMS, _N_MEASUREMENTS, _N_IMAGES = (12, 10), 70, 4
_SMALL_DIMS, _N_SMALL_MEASUREMENTS, _N_SMALL_IMAGES = (8, 6), 36, 2
# How comparisons solve for images: what is computed, what is learned in single precision, and in a few steps.
_TIGHT, _TIGHT_LEARNED = {"tol": 1e-7, "max_steps": 5000}, {"tol": 1e-6, "max_steps": 1000}
_ROUGH, _N_SOLVED = {"tol": 1e-2, "max_steps": 100}, 2
# How comparisons train where reconstructions are part of it: at a bilevel method's own 1e-4 rounding decides
# about the number of steps, and two trainings differ by 2e-3; at 1e-6 by 1e-6 where the objective is
# strongly convex.
_TIGHT_TRAINING = {"tol": 1e-6}
# Learning rate of plain gradient steps, and noise relative to the root mean square of the data.
_SGD_LR, _NOISE = 0.1, 0.02
# Counts in a pixel of brightness one.
_BRIGHT = 300


class Reconstructions:
    """Images of one problem in two accuracies: after a few steps, and solved for to a tight tolerance.

    Parameters
    ----------
    make : callable
        Makes them; it is told whether a few steps are enough.
    """

    def __init__(self, make: Callable[[bool], Array]) -> None:
        self.make = cache(make)

    def mapped(self, change: Callable[[Array], Array]) -> Reconstructions:
        """The same images in other units or in another layout."""
        return Reconstructions(lambda roughly: change(self.make(roughly)))

    def change_from(self, expected: Reconstructions, allowed: float) -> float:
        """Relative difference from other ones: of the first steps where it is allowed, else of solutions.

        Iterations that know neither units nor forms are the same step by step, also in when they stop, which
        is told in a hundredth of the time; what takes other steps may still lead to the same solution.
        """
        at_first = relative_difference(self.make(True), expected.make(True))
        return (
            at_first if at_first <= allowed else relative_difference(self.make(False), expected.make(False))
        )


class Problem(NamedTuple):
    """Images, their noisy data and the operator between them; None is the identity of any size."""

    operator: Any
    images: Array
    data: Array


class Subject:
    """The estimator under test.

    Parameters
    ----------
    estimator : object
        The estimator; it is cloned and never changed. Trainings in its parameters are cut to one epoch.
    """

    def __init__(self, estimator: Any) -> None:
        self.kind = type(estimator)
        self.estimator = _trained_briefly(clone(estimator))
        self.parameters: dict[str, Any] = self.estimator.get_params(deep=True)
        # Whether an optimiser of torch is at work in a fit; known when `fitted` is.
        self.trains = False

    # ------------------------------------------------------------------ what it is
    def has(self, name: str) -> bool:
        """Whether the estimator has a parameter, ``trainer__lr`` for a nested one."""
        return name in self.parameters

    def those_of(self, **params: Any) -> dict[str, Any]:
        """The parameters among ``params`` that the estimator has."""
        return {name: value for name, value in params.items() if self.has(name)}

    def nested(self, name: str) -> list[str]:
        """Full names of a parameter of nested objects, such as ``trainer__lr`` for ``lr``."""
        return [full for full in self.parameters if full.split("__")[1:] == [name]]

    @cached_property
    def required(self) -> list[str]:
        """Parameters without a default."""
        signature = inspect.signature(self.kind)
        return [name for name, p in signature.parameters.items() if p.default is inspect.Parameter.empty]

    @cached_property
    def learns(self) -> bool:
        """Whether ``fit`` needs images or measurements."""
        try:
            self.new().fit()
        except (ValueError, TypeError):
            return True
        return False

    @cached_property
    def needs_pairs(self) -> bool:
        """Whether images and measurements of different numbers are refused."""
        _, images, data = self.problem
        try:
            self.new().fit(images, data[:-1])
        except (ValueError, TypeError):
            return True
        return False

    @cached_property
    def counted(self) -> bool:
        """Whether its noise model is one of counts, which are not negative."""
        return self.parameters.get("noise") == "poisson" or self.has("noise__gain")

    # ------------------------------------------------------------------ problems
    @cached_property
    def problem(self) -> Problem:
        """An ill-posed problem: with the estimator's own operator, if it brings one."""
        return self._problem(_DIMS, _N_MEASUREMENTS, _N_IMAGES)

    @cached_property
    def compared_problem(self) -> Problem:
        """The problem of comparisons: a smaller one, for images are solved for to a tight tolerance."""
        n_images = _N_IMAGES if self.learns else _N_SMALL_IMAGES
        return self._problem(_SMALL_DIMS, _N_SMALL_MEASUREMENTS, n_images)

    def _problem(self, dims: tuple[int, ...], n_measurements: int, n_images: int) -> Problem:
        operator = self.parameters.get("operator")
        if operator is None:
            operator = self.mixing(dims, n_measurements)
        images = self.images(n_images, operator.dims, complex_=np.dtype(operator.dtype).kind == "c")
        return Problem(operator, images, self.measured(operator, images))

    def mixing(self, dims: tuple[int, ...], n_measurements: int) -> pylops.LinearOperator:
        """An operator for a method that brings none; counts need one without negative numbers."""
        if not self.counted:
            return structurally_random(dims, n_measurements, random_state=0)
        return _positive(dims, n_measurements)

    def images(self, n_images: int, dims: tuple[int, ...], *, complex_: bool = False) -> Array:
        """Smooth images; those of which data are counted are not negative."""
        images = smooth_images(n_images, dims, complex_=complex_)
        return _BRIGHT * self._gain * np.abs(images) if self.counted else images

    def measured(self, operator: pylops.LinearOperator, images: Array) -> Array:
        """Noisy data of images."""
        data = np.stack([operator @ x.ravel() for x in images]).reshape(len(images), *operator.dimsd)
        return self._noisy(data)

    def _noisy(self, data: Array) -> Array:
        if not self.counted:
            return _noisy(data)
        return self._gain * np.random.default_rng(1).poisson(data / self._gain).astype(float)

    @property
    def _gain(self) -> float:
        return float(self.parameters.get("noise__gain", 1.0))

    def denoising(self, images: Array) -> Problem:
        """A problem without operator: the data are noisy images."""
        # What has required parameters may take operator=None for something else than the identity.
        identity = pylops.Identity(images.shape[1:], dtype=images.dtype) if self.required else None
        return Problem(identity, images, self._noisy(images))

    # ------------------------------------------------------------------ estimators
    def new(self, problem: Problem | None = None, **params: Any) -> Any:
        """A new estimator with the operator of a problem."""
        return clone(self.estimator).set_params(operator=(problem or self.problem).operator, **params)

    def fit(self, problem: Problem | None = None, **params: Any) -> Any:
        """A new estimator, fitted to a problem."""
        problem = problem or self.problem
        return self.new(problem, **params).fit(problem.images, problem.data)

    @cached_property
    def fitted(self) -> Any:
        """The estimator fitted to :attr:`problem`: all checks use it, and none may change it."""
        with optimizer_steps() as steps:
            model = self.fit()
        self.trains = bool(steps)
        return model

    def fit_steadily(self, problem: Problem, **params: Any) -> Any:
        """A new estimator, fitted by plain gradient steps if there is a choice, and to a tight tolerance.

        The first step of Adam is as long as the learning rate however small the gradient is: where a gradient
        is zero but for rounding, rounding decides about the direction, and two fits differ that should not.
        """
        steady: dict[str, Any] = dict.fromkeys(self.nested("optimizer"), "sgd")
        if steady:
            steady |= dict.fromkeys(self.nested("lr"), _SGD_LR)
            steady |= self.those_of(**_TIGHT_TRAINING)
        return self.fit(problem, **steady, **params)

    @cached_property
    def compared(self) -> Any:
        """The estimator fitted to :attr:`compared_problem` in that way."""
        return self.fit_steadily(self.compared_problem)

    def solved(self, model: Any, data: Array) -> Reconstructions:
        """The first reconstructions, to other tolerances than that of the fit.

        Without a tolerance the number of steps is part of the method.
        """

        def make(roughly: bool) -> Array:
            single = data.real.dtype == np.float32
            tight = _TIGHT_LEARNED if self.learns or single else _TIGHT
            how = self.those_of(**(_ROUGH if roughly else tight)) if self.has("tol") else {}
            found: Array = copy.copy(model).set_params(**how).predict(data[:_N_SOLVED])
            return found

        return Reconstructions(make)

    @cached_property
    def compared_images(self) -> Reconstructions:
        """What comparisons expect."""
        return self.solved(self.compared, self.compared_problem.data)

    def copy(self, **params: Any) -> Any:
        """A copy of :attr:`fitted` with other parameters; nested ones become its own."""
        twin = copy.copy(self.fitted)
        for full in params:
            owner = twin
            for name in full.split("__")[:-1]:
                setattr(owner, name, copy.copy(getattr(owner, name)))
                owner = getattr(owner, name)
        return twin.set_params(**params)

    @cached_property
    def reconstruction(self) -> Array:
        """What :attr:`fitted` makes of the data of :attr:`problem`."""
        found: Array = self.fitted.predict(self.problem.data)
        return found


@contextmanager
def optimizer_steps(at: int = 0, error: type[BaseException] = Exception) -> Iterator[list[int]]:
    """Count the steps of all torch optimisers; an error comes before step ``at``, if that is not 0."""
    steps: list[int] = []

    def count(*_: Any) -> None:
        steps.append(len(steps) + 1)
        if len(steps) == at:
            raise error("out of nowhere, before a step of an optimiser")

    hook = register_optimizer_step_pre_hook(count)
    try:
        yield steps
    finally:
        hook.remove()


def smooth_images(n_images: int, dims: tuple[int, ...], *, complex_: bool = False) -> Array:
    """Random walks along the first axis, always the same ones."""
    rng = np.random.default_rng(0)
    images: Array = np.cumsum(rng.normal(size=(n_images, *dims)), axis=1) / 4
    return images * np.exp(1j * rng.uniform(0, 6, (n_images, *[1] * len(dims)))) if complex_ else images


def _positive(dims: tuple[int, ...], n_measurements: int) -> pylops.LinearOperator:
    """A matrix of positive numbers, of which a row sums to one on average."""
    n_pixels = int(np.prod(dims))
    matrix = np.random.default_rng(0).uniform(size=(n_measurements, n_pixels)) * 2 / n_pixels
    return pylops.MatrixMult(matrix) @ pylops.Identity(dims)


def _noisy(data: Array) -> Array:
    rng, level = np.random.default_rng(1), _NOISE * np.sqrt(np.mean(np.abs(data) ** 2))
    noise = rng.normal(size=data.shape)
    return data + level * (noise + 1j * rng.normal(size=data.shape) if np.iscomplexobj(data) else noise)


def _trained_briefly(estimator: Any) -> Any:
    """The estimator with one epoch of training, wherever a trainer is a parameter."""
    params = estimator.get_params(deep=True)
    for name in params:
        owner, _, last = name.rpartition("__")
        if last == "max_epochs" and "__" not in owner:
            estimator.set_params(**{name: 1})
            steps = name.replace("max_epochs", "n_steps")
            if params.get(steps) is not None:
                estimator.set_params(**{steps: None})
    return estimator

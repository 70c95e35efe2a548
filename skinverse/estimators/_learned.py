"""The base class of learned methods, and what a learned reconstruction starts from."""

from __future__ import annotations

import copy
import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple, Self

import joblib
import numpy as np
import pylops
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skinverse import __version__
from skinverse._arrays import Rows
from skinverse._batches import content, is_read_later, rowwise, sampled
from skinverse._defaults import seeded
from skinverse._hashing import Unhashable, digest
from skinverse._measurements import Measurements
from skinverse._parameters import Constraint, Flag, Instance, Integer, Null, Real, declared, fitted, parameter
from skinverse._tensors import as_channels, spatial_axes
from skinverse.estimators._base import BaseReconstructor, Reconstruct
from skinverse.estimators._problems import Problem, Problems
from skinverse.estimators._units import Normalisation, NormalisedFidelity, without_gain
from skinverse.estimators._validation import seed_of, single
from skinverse.functionals import LeastSquares, SquaredNorm
from skinverse.metrics import mean_score, psnr
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, conjugate_gradient, implicit, pseudo_inverse
from skinverse.training import Checkpoint, Phase, Score, Trainer, TrainingCache, crop, run

# Numbers in a batch that is worked on at once outside of a training.
_AT_ONCE = 2**20
# Attributes that do not determine a training.
_UNTOLD = ("history_", "callbacks", "checkpoint")
# Regularisation of the pseudo-inverse, relative to the operator's squared norm, and its tolerance.
_DELTA, _INVERSE_TOL = 1e-2, 1e-4


class _Initial(Constraint):
    """A method to start from, fitted already if it is frozen."""

    kind = expected = "a reconstruction method"

    def allows(self, value: Any) -> bool:
        method = value.estimator if isinstance(value, FrozenEstimator) else value
        return Instance(BaseReconstructor).allows(method)


def initial_parameter() -> Any:
    """Declare the method whose images the learned part starts from."""
    return parameter(
        default=None,
        allowed=_Initial() | Null(),
        kind="estimator or None",
        doc="""
        Method that makes the first reconstructions; it gets the operator and is fitted on the same pairs, or
        is kept as it is inside scikit-learn's ``FrozenEstimator``. None is filtered back-projection or zero
        filling where there is one, else a regularised pseudo-inverse.""",
    )


class Case(NamedTuple):
    """A method for one operator and its noise."""

    method: Any
    A: LinearMap


class LearnedReconstructor(BaseReconstructor):
    """A reconstruction method with a trained torch module.

    A method gives :meth:`_make_module`, :meth:`_phases` and :meth:`_reconstruct`. Seeds, devices, the
    training loop, the cache, checkpoints and the history are here. Training is in single precision.

    All three see images of mean 0 and standard deviation 1: ``x' = (x - level_) / spread_`` and the data
    ``y' = (y - A level_) / spread_`` of these. Trained on images and data times a number, a method gives the
    reconstructions times it, and trained on images with a constant added, it gives the same with it added.
    What has been trained keeps its unit and its level: a network is neither homogeneous nor does it commute
    with adding a constant. The level of complex images is 0, for their phase is arbitrary.
    """

    _needs: ClassVar[tuple[str, ...]] = ("X_true", "Y_meas")
    # Parameters on which nothing that is learned depends.
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("verbose", "device")
    # The most spatial axes of an image that the networks can have.
    _most_axes: ClassVar[int] = 3
    # Whether the training goes on from the weights of an earlier one.
    _continued: bool = False

    trainer: Trainer = parameter(
        default_factory=Trainer,
        allowed=Instance(Trainer),
        doc="How to train; what is not set in it is the method's own choice.",
    )
    memory: Any = parameter(
        default=None,
        allowed=Instance(str, PurePath, joblib.Memory, name="str, Path or joblib.Memory") | Null(),
        kind="str, Path, joblib.Memory or None",
        doc="""
        Folder in which trainings are kept: the same training, or a search over parameters that only concern
        the reconstruction, is done once.""",
    )
    warm_start: bool = parameter(
        default=False, allowed=Flag(), doc="Whether ``fit`` continues from the weights of an earlier one."
    )
    random_state: Any = parameter(
        default=0, kind="int, RandomState or None", doc="Seed of everything that is random in the training."
    )
    verbose: int = parameter(
        default=0, allowed=Integer(ge=0), doc="1 shows a progress bar for each phase, 2 a line per epoch."
    )

    module_: nn.Module = fitted(kind="nn.Module", doc="The trained module.")
    n_axes_: int = fitted(
        allowed=Integer(ge=2, le=3), doc="Number of spatial axes of the networks: 3 for volumes, else 2."
    )
    level_: complex = fitted(
        kind="float, or complex",
        allowed=Instance(float, complex),
        doc="""
        Mean of all values of the training images, which are normalised by it and ``spread_``; 0 of complex
        images.""",
    )
    spread_: float = fitted(
        allowed=Real(gt=0),
        doc="Standard deviation of all these values; where they do not vary, their size.",
    )
    history_: list[dict[str, Any]] = fitted(
        kind="list of dict",
        allowed=Instance(list),
        doc="""
        One entry per epoch: ``phase``, ``epoch``, ``train_loss``, seconds ``dur``, and with held-out images
        ``valid_loss`` and ``valid_score``, the held-out PSNR in dB, which chooses the epoch.""",
    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimator to one file, to be read by :func:`skinverse.load`.

        Parameters
        ----------
        path : path-like
            The file, by convention ``*.skinverse``; overwritten if it exists. Of processes that train
            together the first one writes it, and all of them wait for it.
        """
        self.check_parameters()
        self.trainer.processes.once(partial(super().save, path))

    # ------------------------------------------------------------------ hooks
    @abstractmethod
    def _make_module(self) -> nn.Module:
        """The untrained module for the fitted ``operator_``."""

    @abstractmethod
    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        """Yield the phases of the training; between two of them the module may be changed."""

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """What the data become before anything learned comes into play."""
        return data

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        """The images as a function of the module's weights, and of ``A`` where that has parameters."""
        raise TypeError(f"{type(self).__name__} does not reconstruct differentiably in what it learned")

    def _describe(self) -> None:  # noqa: B027
        """Set the attributes that tell something of ``module_``; by default there are none."""

    def _level_and_spread(self, images: Tensor) -> tuple[complex, float]:
        """Mean and standard deviation by which images are normalised."""
        normal = Normalisation.of(*sampled(images))
        return normal.level, normal.spread

    # ------------------------------------------------------------------ units and level
    @property
    def _normalisation(self) -> Normalisation:
        return Normalisation(self.level_, self.spread_, self._noise_model.dark)

    def _normalised(self, A: LinearMap, data: Tensor) -> Tensor:
        """The data of normalised images."""
        normal = self._normalisation
        return normal.of_data(data, normal.seen(A, data))

    def _normalised_rows(self, problems: Problems, images: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """What is trained on: normalised images and their data in single precision."""
        normal, A = self._normalisation, problems.maps[0]
        seen = [case.method._normalisation.seen(case.A, data) for case in self._cases(problems)]
        of_each = problems.stacked(seen)
        return (
            in_batches(lambda x: single(normal.of_images(x)), A, images),
            in_batches(lambda y, k: single(normal.of_data(y, of_each(k))), A, data, problems.which),
        )

    def _measures_pixels(self, problems: Problems) -> bool:
        """Whether each pixel is measured by itself, and all of them alike: then patches are like images."""
        return all(case.A.identity and case.method._noise_model.uniform for case in self._cases(problems))

    def _cropped_axes(self, problems: Problems) -> tuple[int, ...]:
        """The axes along which a part of an image may stand for it."""
        return self._spatial_axes(problems.maps[0]) if self._measures_pixels(problems) else ()

    def _fidelity(self, A: LinearMap) -> NormalisedFidelity:
        """The fidelity of normalised data of an operator."""
        return NormalisedFidelity(A, self._noise_model, self._normalisation)

    def _restored(self, solution: Solution) -> Solution:
        """What was found for the normalised problem, in the units of the images."""
        objective = solution.objective.double() * self.spread_**2
        return replace(solution, x=self._normalisation.restored(solution.x), objective=objective)

    def _reconstructed(self, A: LinearMap, data: Tensor) -> Solution:
        return self._restored(self._reconstruct(A, self._normalised(A, data)))

    def _solutions(
        self,
        operator: pylops.LinearOperator,
        part: Measurements,
        rows: Rows,
        numbers: NDArray[np.intp],
        reconstruct: Reconstruct,
    ) -> Iterator[tuple[NDArray[np.intp], Solution]]:
        """Of processes that train together each one reconstructs some of the images, and gets all."""
        solutions = super()._solutions

        def own(some: slice) -> Iterator[tuple[NDArray[np.intp], Solution]]:
            for index, solution in solutions(operator, part[some], rows[some], numbers[some], reconstruct):
                yield index + some.start, solution

        return self.trainer.processes.spread(own, len(rows))

    def _write(self, x: Tensor, out: Any, index: NDArray[np.intp], n: int) -> None:
        if self.trainer.processes.first:
            super()._write(x, out, index, n)

    def _first_images(self, A: LinearMap, data: Tensor, initial: Any, *, real: bool) -> Solution:
        """What the fitted ``initial``, by default the analytic inverse, makes; real where images are."""
        if initial is None:
            solution = Solution.direct(data if A.identity else analytic_inverse(A, data))
        elif A.requires_grad:
            raise TypeError(
                "with initial=... a method is not differentiable in the parameters of the operator: "
                "give a known operator"
            )
        else:
            normal = self._normalisation
            solution = initial._reconstructed(A, normal.restored_data(data, normal.seen(A, data)))
            solution = replace(solution, x=normal.of_images(solution.x))
        x = solution.x
        return replace(solution, x=x.real.contiguous()) if real and x.is_complex() else solution

    # ------------------------------------------------------------------ each under its own operator
    def _cases(self, problems: Problems) -> list[Case]:
        """The method for the noise of each problem, with the operator."""
        if not problems.several:
            return [Case(self, problems.A)]
        return [Case(self._with_noise_of(problem), problem.A) for problem in problems.distinct]

    def _with_noise_of(self, problem: Problem) -> Self:
        kept, dimsd = problem.kept, tuple(problem.operator.dimsd)
        twin = copy.copy(self) if kept is None else self._restricted_to(kept, dimsd)
        twin.noise = problem.noise
        return twin

    def _fidelities(self, problems: Problems) -> list[NormalisedFidelity]:
        """The fidelity of each problem."""
        return [case.method._fidelity(case.A) for case in self._cases(problems)]

    def _starts(self, problems: Problems, data: Tensor) -> Tensor:
        """What the data of all images become before anything learned comes into play."""
        cases = self._cases(problems)

        def starts(y: Tensor, which: Tensor) -> Tensor:
            return problems.each(lambda case, y: case.method._start(case.A, y), cases, which, y)

        return in_batches(starts, problems.maps[0], data, problems.which)

    def _reconstructions_under(self, problems: Problems) -> Callable[[Tensor, Tensor], Tensor]:
        """Reconstructions as a function of data and of the problems that they belong to."""
        cases = self._cases(problems)

        def reconstruct(y: Tensor, which: Tensor) -> Tensor:
            return problems.each(lambda case, y: case.method._reconstruct(case.A, y).x, cases, which, y)

        return reconstruct

    # ------------------------------------------------------------------ training
    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        self.n_axes_ = self._n_axes(tuple(images.shape[1:]))
        earlier = dict(self.module_.state_dict()) if hasattr(self, "module_") else {}
        if not earlier:
            self.level_, self.spread_ = self._level_and_spread(images)
        processes, learner = self.trainer.processes, self._learner()
        if "noise" in self._reconstruction_params:
            problems = problems.under(lambda _: learner.noise)
        seed = processes.once(partial(seed_of, self.random_state))
        cache, key = TrainingCache(self.memory), self._key(learner, earlier, problems, images, data, seed)
        training = processes.once(partial(cache.get, key)) if key else None
        if training is None or not _fits(training, learner, images.device):
            checkpoint = processes.once(partial(Checkpoint, self.trainer.checkpoint, key))
            training = learner._learn(problems, images, data, earlier, seed, checkpoint)
            if key:
                processes.once(partial(cache.put, key, training))
        self.history_ = training["history"]
        self.module_ = self._untrained_module(seed, images.device)
        self.module_.load_state_dict(training["weights"])
        self.module_.eval()
        self._describe()

    def _learn(
        self,
        problems: Problems,
        images: Tensor,
        data: Tensor,
        earlier: dict[str, Tensor],
        seed: int,
        checkpoint: Checkpoint,
    ) -> dict[str, Any]:
        """Train a new module: weights and history."""
        x, y = self._normalised_rows(problems, images, data)
        module = self.module_ = self._untrained_module(seed, images.device)
        self._continued = bool(earlier)
        if earlier:
            _continue_from(earlier, module)
        with seeded(seed) as draws:
            phases = self._phases(module, problems, x, y)
            history = run(
                module,
                phases,
                draws=draws,
                seed=seed,
                verbose=self.verbose,
                checkpoint=checkpoint,
                processes=self.trainer.processes,
            )
        return {"weights": {k: v.cpu() for k, v in module.state_dict().items()}, "history": history}

    def _channels(self, images: Tensor) -> Tensor:
        """Images as real channels, (n, channels, *space)."""
        return as_channels(images, self.channel_axis)

    def _n_axes(self, dims: tuple[int, ...]) -> int:
        """Number of spatial axes of the networks; signals are images of one row."""
        return max(2, len(spatial_axes(len(dims), self.channel_axis)))

    def _check_images(self, dims: tuple[int, ...]) -> None:
        super()._check_images(dims)
        n_axes, which = self._n_axes(dims), "channel_axis says which axis holds channels"
        if n_axes > self._most_axes:
            raise ValueError(
                f"{type(self).__name__}: expected images of at most {self._most_axes} spatial axes, got "
                f"{n_axes} in images of shape {dims}: {which}"
            )
        if n_axes != getattr(self, "n_axes_", n_axes):
            raise ValueError(
                f"{type(self).__name__}: trained on images of {self.n_axes_} spatial axes, got {n_axes} in "
                f"images of shape {dims}: {which}"
            )

    def _untrained_module(self, seed: int, device: torch.device) -> nn.Module:
        with seeded(seed):
            module: nn.Module = self._make_module().to(device, torch.float32)
            return module

    def _unfitted(self) -> Self:
        twin = super()._unfitted()
        if self.warm_start and hasattr(self, "module_"):
            twin.module_, twin.level_, twin.spread_ = self.module_, self.level_, self.spread_
        return twin

    def _learner(self) -> Self:
        """A twin whose training cannot depend on the parameters of the reconstruction."""
        learner = copy.copy(self)
        defaults = type(self)()
        for name in set(self._reconstruction_params) - {"verbose", "device"}:
            setattr(learner, name, getattr(defaults, name))
        learner.__dict__.pop("module_", None)
        return learner

    def _key(
        self,
        learner: Self,
        earlier: dict[str, Tensor],
        problems: Problems,
        images: Tensor,
        data: Tensor,
        seed: int,
    ) -> str:
        """What tells this training from others; empty where nobody asks or it cannot be told."""
        if self.memory is None and self.trainer.checkpoint is None:
            return ""
        # The seed stands for `random_state`; `operator_` is what `operator` has become.
        elsewhere = {"operator", "memory", "random_state", "verbose", "device"}
        names = [name for name, _ in (*declared(type(self)), *declared(type(self), init=False))]
        told = {k: _told(v) for k, v in vars(learner).items() if k in names and k not in elsewhere}
        versions = (__version__, torch.__version__, np.__version__)
        try:
            known = problems.content, content(images), content(data)
            return digest(type(self), versions, seed, told, earlier, *known)
        except Unhashable as error:
            if self.trainer.checkpoint is not None:
                raise ValueError(
                    f"checkpoint: this training could not be recognised again: {error}"
                ) from error
            warnings.warn(f"{type(self).__name__}: this training is not cached: {error}", stacklevel=2)
            return ""


def _told(value: Any) -> Any:
    """What a nested estimator or trainer tells of a training; any other value itself.

    Not the seconds in a history, nor what watches or stores a training; of an accelerator its precision.
    """
    if not isinstance(value, BaseEstimator):
        return value
    twin = copy.copy(value)
    for name, held in vars(value).items():
        setattr(twin, name, None if name in _UNTOLD else _told(held))
        if name == "accelerator":
            twin.accelerator = getattr(held, "mixed_precision", "no")
    return twin


def _continue_from(weights: dict[str, Tensor], module: nn.Module) -> None:
    """Give a module the weights of an earlier training, if it is of the same architecture."""
    own = module.state_dict()
    differing = _differing(own, weights)
    if differing:
        raise ValueError(
            "warm_start: the earlier training had another network than the parameters or the images now ask "
            f"for; {len(differing)} weights do not fit, the first is {differing[0]!r}: use warm_start=False"
        )
    module.load_state_dict(weights)


def _differing(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Names of weights that are missing on one side, or of another shape."""
    return [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]


def _fits(training: dict[str, Any], learner: LearnedReconstructor, device: torch.device) -> bool:
    """Whether what a cache holds is a training of this method; it may be a file of somebody else's."""
    weights: Any = training.get("weights")
    history = training.get("history")
    known = isinstance(weights, dict) and all(isinstance(v, Tensor) for v in weights.values())
    return (
        known
        and isinstance(history, list)
        and not _differing(learner._untrained_module(0, device).state_dict(), weights)
    )


# ---------------------------------------------------------------------- quality
def mean_psnr(images: Tensor, x: Tensor) -> float:
    """Mean PSNR of reconstructions in dB; those of a training that diverges are infinitely bad."""
    with np.errstate(over="ignore"):
        return mean_score(psnr(images, x)) if bool(x.isfinite().all()) else -math.inf


def held_out_psnr(
    reconstruct: Callable[[Tensor, Tensor], Tensor], *, n_images: int, cropped: tuple[int, ...] = ()
) -> Score:
    """Score of a phase whose rows begin with images, data and their problems: PSNR of a few reconstructions.

    Along the axes ``cropped`` images and data are cut, for methods that see a neighbourhood of each pixel
    only.
    """

    def score(images: Tensor, data: Tensor, which: Tensor, *_: Tensor) -> float:
        x, y = crop(images[:n_images], data[:n_images], cropped)
        return mean_psnr(x, reconstruct(y, which[:n_images]))

    return score


class Failures:
    """How many of the problems that a training solved did not converge.

    Parameters
    ----------
    sentence : str
        What to say of them, with places for their number ``{n_failed}`` among all ``{n_solved}`` and for the
        largest residual ``{worst}``.
    """

    def __init__(self, sentence: str) -> None:
        self.sentence = sentence
        self.n_failed, self.n_solved, self.worst = 0, 0, 0.0

    def count(self, solution: Solution) -> None:
        """Add the problems of a step."""
        failed = ~solution.converged
        self.n_solved += len(failed)
        self.n_failed += int(failed.sum())
        self.worst = max([self.worst, *solution.residual[failed].tolist()])

    def warn(self) -> None:
        """Say how many there were, if any."""
        if self.n_failed:
            numbers = {"n_failed": self.n_failed, "n_solved": self.n_solved, "worst": f"{self.worst:.1e}"}
            warnings.warn(self.sentence.format(**numbers), ConvergenceWarning, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {name: getattr(self, name) for name in ("n_failed", "n_solved", "worst")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        vars(self).update(state)


# ---------------------------------------------------------------------- data and starts
def analytic_inverse(A: LinearMap, data: Tensor) -> Tensor:
    """Filtered back-projection or zero filling where there is one, else ``A^* (A A^* + delta)^-1 y``.

    ``delta`` is ``||A||^2 / 100``, where weights of the data are undone before, as they are by the formulas:
    what follows is learned, and must not depend on them. Where ``A`` has parameters of which derivatives are
    wanted, so has the result.
    """
    if A.has_analytic_inverse:
        return A.filtered_adjoint(data, filter="ramp")
    Q, A = A.unweighted()
    data = data if Q is None else Q(data)
    with torch.no_grad():
        normed, y, _ = without_gain(A, data)
        x = pseudo_inverse(normed, y, _DELTA, tol=_INVERSE_TOL).x
    if not (A.requires_grad and torch.is_grad_enabled()):
        return x
    objective = LeastSquares(A, data) + _DELTA * A.norm() ** 2 * SquaredNorm()
    return implicit(objective, x, solve=conjugate_gradient, tol=_INVERSE_TOL)


def fit_initial(
    method: LearnedReconstructor, initial: Any, problems: Problems, images: Tensor | None, data: Tensor | None
) -> Any:
    """The estimator that a method starts from, fitted for its operator and these images.

    None stays None; scikit-learn's ``FrozenEstimator`` around a fitted method is that method as it is.
    """
    if initial is None:
        return None
    if isinstance(initial, FrozenEstimator):
        check_is_fitted(initial.estimator)
        return initial.estimator
    operator: Any = method.operator_
    first = clone(initial).set_params(operator=operator, channel_axis=method.channel_axis)
    if not problems.several or images is None or data is None:
        return first.fit(images, data)
    first._learn_beside(operator, problems, images, data)
    return first


def after(first: Solution, x: Tensor) -> Solution:
    """Images that were made of first ones, which did or did not converge."""
    return replace(Solution.direct(x), converged=first.converged, residual=first.residual)


def check_kinds(problems: Problems, images: Tensor, data: Tensor) -> None:
    """Refuse to denoise where images are complex and measurements are real, or the other way round.

    Raises
    ------
    ValueError
        If they are.
    """
    denoising = any(A.identity for A in problems.maps)
    if denoising and images.is_complex() != data.is_complex():
        kinds = ["complex" if batch.is_complex() else "real" for batch in (images, data)]
        raise ValueError(
            f"operator=None is denoising and expects images and measurements of one kind, got {kinds[0]} "
            f"X_true and {kinds[1]} Y_meas"
        )


def batch_size_for(A: LinearMap) -> int:
    """How many images to work on at once."""
    return max(1, _AT_ONCE // max(math.prod(A.dims), math.prod(A.dimsd)))


def in_batches(function: Callable[..., Tensor], A: LinearMap, data: Tensor, *rows: Tensor) -> Tensor:
    """A function of data, a part of the images at a time; no part is kept beside the whole.

    Of data that are read later, which belong to one problem, it is evaluated when they are.
    """
    if is_read_later(data):
        return rowwise(lambda y: function(y, *rows), data)
    whole, start, size = torch.empty(0), 0, batch_size_for(A)
    for part in zip(*(batch.split(size) for batch in (data, *rows)), strict=True):
        values = function(*part)
        if start == 0:
            whole = values.new_empty((len(data), *values.shape[1:]))
        whole[start : start + len(values)] = values
        start += len(values)
    return whole

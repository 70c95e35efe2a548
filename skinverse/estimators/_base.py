"""The base class of all reconstruction methods: the public contract is written once, here."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import pylops
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skinverse import persistence
from skinverse._arrays import (
    Rows,
    as_rows,
    check_complete,
    missing,
    to_batch,
)
from skinverse._batches import StoredBatch, as_batch
from skinverse._defaults import copy_module, standard_defaults, survive_fork
from skinverse._measurements import Measurements
from skinverse._parameters import (
    declared,
)
from skinverse._rows import columns, in_memory, is_stored, n_rows, take
from skinverse._tensors import are_finite, reuse_freed_memory
from skinverse.estimators._problems import Problem, Problems
from skinverse.estimators._reader import Group, Reader
from skinverse.estimators._regressor import ReconstructionRegressor
from skinverse.estimators._validation import (
    FEW,
    alike,
    check_dims,
    information,
    resolve_device,
    same_kind,
    warn_of_doubts,
    write_rows,
)
from skinverse.metrics import mean_score, psnr
from skinverse.operators import LinearMap, as_torch, local_copy, note_sent, with_parameters
from skinverse.solvers import Solution

# What is measured of several images.
Measured: TypeAlias = ArrayLike | Tensor | Measurements
# A method, an operator and data of it to images.
Reconstruct = Callable[[Any, LinearMap, Tensor], Solution]
# Numbers in each variable of a solver: what a processor's caches hold; a GPU wants more work at a time.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}
# Attributes that hold an operator.
_OPERATORS = ("operator", "operator_", "fitted_operator_")

# What to use where images and measurements are no pairs.
_INSTEAD = (
    "; AdversarialRegularizer learns from images and measurements that are no pairs, "
    "GenerativeCovariancePrior from images alone"
)


class BaseReconstructor(Reader):
    """A reconstruction method: measurements in, images out.

    A method declares its parameters, and gives :meth:`_reconstruct` and, if it learns or prepares anything,
    :meth:`_fit`. Both receive the operator as a batched torch map ``A`` and tensors on the right device.
    """

    # Why a method does not keep some promises of the contract, by the names of checks in `skinverse.testing`.
    not_promised: ClassVar[Mapping[str, str]] = {}
    _paired: ClassVar[bool] = True
    # Parameters that clones share instead of copying them.
    _shared: ClassVar[tuple[str, ...]] = ("operator",)
    # Whether a training maps rows by `rowwise` and `in_batches`, and can do without arrays of all of them.
    _reads_rows: ClassVar[bool] = False
    # How many numbers a step holds at once for each one of an image.
    _load: ClassVar[int] = 1

    __metadata_request__fit: ClassVar[dict[str, str]] = {"X_true": UNUSED, "Y_meas": UNUSED}
    __metadata_request__predict: ClassVar[dict[str, str]] = {"Y_meas": UNUSED, "return_info": UNUSED}
    __metadata_request__score: ClassVar[dict[str, str]] = {"X_true": UNUSED, "Y_meas": UNUSED}

    def fit(self, X_true: ArrayLike | Tensor | None = None, Y_meas: Measured | None = None) -> Self:
        """Learn what the method learns; images first, measurements second.

        scikit-learn's own tools call ``fit(X, y)`` and later ``predict(X)``. Here the *second* argument
        is what ``predict`` takes: searches that use ``score`` (``GridSearchCV``, ``cross_val_score``)
        work as they are; for ``Pipeline``, ``cross_val_predict`` and string scorers use
        :meth:`as_regressor`.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *operator.dims), optional
            True images; flat (n_samples, n_pixels) is accepted. Only needed by methods that learn.
        Y_meas : array-like, Tensor or Measurements of shape (n_samples, *operator.dimsd), optional
            Measurements; flat (n_samples, n_measurements) is accepted.

        Returns
        -------
        object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter has a value that it cannot have, something needed is missing, an array is empty,
            not finite or of the wrong shape, the operator's adjoint is wrong, or images and measurements are
            given in the wrong order.
        TypeError
            If the operator is no ``pylops.LinearOperator`` or an array is not numeric.
        """
        survive_fork()
        self.check_parameters()
        pairs = columns(X_true, "X_true")
        if pairs:
            X_true, Y_meas = pairs[0], pairs[1] if Y_meas is None else Y_meas
        self._check_given(X_true, Y_meas)
        # A twin learns: a fit that fails or is interrupted leaves the estimator as it was.
        twin = self._unfitted()
        with standard_defaults():
            twin._fit_to(X_true, Y_meas)
        self.__dict__.clear()
        self.__dict__.update(twin.__dict__)
        return self

    def predict(self, Y_meas: Measured, *, out: Any = None, return_info: bool = False) -> Any:
        """Reconstruct images from measurements.

        Parameters
        ----------
        Y_meas : array-like, Tensor or Measurements of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted. Masked values of a
            ``np.ma.MaskedArray`` were not measured: they are left out of the problem, together with their
            rows of the operator, and never read. With ``operator=None`` the shape must be that of an image:
            after a ``fit`` without arrays, (n_samples, n) is refused, for it may be one image or several
            signals. Stored measurements, such as memory maps, HDF5 and Zarr arrays and map-style data sets,
            are read in parts, the next one while one is reconstructed. A list of arrays of several shapes is
            a set of images of several sizes.
        out : array-like of shape (n_samples, *operator.dims), default=None
            Where to write the images as they come: an array, a memory map, an HDF5 data set.
        return_info : bool, default=False
            Also return how each image's reconstruction ended.

        Returns
        -------
        X_hat : ndarray or Tensor of shape (n_samples, *operator.dims)
            ``out`` where it was given, a list of images where measurements are of several sizes, else the
            images, of the kind of ``Y_meas``. Single precision stays single and double stays double; of
            float16 and bfloat16 comes float32, of integers, booleans and long doubles float64. Byte order,
            memory order and strides of ``Y_meas`` change nothing.
        info : Bunch, only if ``return_info``
            Arrays of shape (n_samples,): ``n_steps``, ``converged``, ``residual`` (what the stopping rule
            compared with its tolerance) and ``objective``, and what else the method reports.

        Raises
        ------
        ValueError
            If ``Y_meas`` is empty, not finite or of the wrong shape, or all measurements of an image are
            masked, or some are and the method needs all of them.

        Warns
        -----
        ConvergenceWarning
            If images stopped before the tolerance was met, or are not finite; the message counts them.
        """
        X_hat, report = self._reconstructions(Y_meas, type(self)._reconstructed, out)
        return (X_hat, information(report)) if return_info else X_hat

    def score(self, X_true: ArrayLike | Tensor, Y_meas: Measured) -> float:
        """Mean peak signal-to-noise ratio of the reconstructions, in dB.

        Parameters
        ----------
        X_true : array-like or Tensor of shape (n_samples, *operator.dims)
            True images.
        Y_meas : array-like, Tensor or Measurements of shape (n_samples, *operator.dimsd)
            Their measurements.

        Returns
        -------
        float
            Mean over images of :func:`skinverse.metrics.psnr`, of which a perfect image counts as 100 dB;
            larger is better.
        """
        measured = Measurements.of(Y_meas)
        X_true, *_ = columns(X_true, "X_true") or [X_true]
        true = X_true if is_stored(X_true) or measured.n_sizes > 1 else as_rows(X_true, "X_true")
        n_true = n_rows(true, "X_true")
        if n_true != len(measured):
            raise ValueError(
                f"X_true: expected one image for each of {len(measured)} measurements, got {n_true}"
            )
        values = []
        for index, part in measured.parts(_CHUNK["cpu"] if is_stored(true) else None):
            X_hat = self.predict(part if part.parameters else part.data)
            images, dims = as_rows(take(true, index), "X_true"), tuple(X_hat.shape[1:])
            check_dims(tuple(images.shape), dims, "X_true", "the reconstructions")
            values.append(psnr(images.reshape(-1, *dims), X_hat))
        return mean_score(np.concatenate(values))

    def as_regressor(self) -> ReconstructionRegressor:
        """The same method in scikit-learn's order: ``fit(Y_meas, X_true)``; arrays may be flat.

        Returns
        -------
        ReconstructionRegressor
            A regressor around this estimator: fitted if this one is fitted.
        """
        return ReconstructionRegressor.of(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimator to one file, to be read by :func:`skinverse.load`.

        Parameters
        ----------
        path : path-like
            The file, by convention ``*.skinverse``; overwritten if it exists.
        """
        self.check_parameters()
        persistence.save(self, path)

    # ------------------------------------------------------------------ hooks
    def _fit(  # noqa: B027
        self, problems: Problems | None, images: Tensor | None, data: Tensor | None
    ) -> None:
        """Learn or prepare; by default there is nothing to do."""

    # ------------------------------------------------------------------ private
    def _reconstructed(self, A: LinearMap, data: Tensor) -> Solution:
        """The reconstruction in the units of the images, also for another method that starts from it."""
        return self._reconstruct(A, data)

    def _unfitted(self) -> Self:
        """A shallow copy without what an earlier ``fit`` has found."""
        twin = copy.copy(self)
        for name, _ in declared(type(self), init=False):
            twin.__dict__.pop(name, None)
        return twin

    def _fit_to(self, X_true: ArrayLike | Tensor | None, Y_meas: Measured | None) -> None:
        """Check operator and arrays, and learn from them."""
        device = resolve_device(self.device)
        measured = None if Y_meas is None else Measurements.of(Y_meas)
        if measured is not None and measured.n_sizes > 1:
            X_true, measured = None, self._of_the_first_size(measured)
        X_true = X_true if self._reads_rows or not self._needs else in_memory(X_true)
        images = None if X_true is None else as_batch(X_true, "X_true", device)
        if measured is not None and self._reads_later(measured):
            self._fit_to_stored(images, measured.data, device)
            return
        rows = None if measured is None else as_rows(in_memory(measured.data), "Y_meas")
        operator = self._operator_for(images, None if rows is None else to_batch(rows[:1]))
        images = self._images_of(operator, images)
        self._check_pairs(images, rows)
        if measured is None or rows is None or operator is None:
            self._learn_from_images(operator, images)
            return
        problems = list(self._problems(operator, measured, rows, np.arange(len(rows))))
        for problem in problems:
            self._check_learned_from(problem.rows)
            if missing(problem.rows) is None:
                warn_of_doubts(problem.A, to_batch(problem.rows[:FEW], device))
        if "Y_meas" not in self._needs and (len(problems) > 1 or missing(problems[0].rows) is not None):
            self._learn_from_images(operator, images)
        else:
            self._learn_from_measured(operator, images, problems, device)

    def _of_the_first_size(self, measured: Measurements) -> Measurements:
        """Measurements to check parameters by, where nothing is learned from those of several sizes."""
        if self._needs:
            raise ValueError(
                f"Y_meas: {type(self).__name__}.fit learns from images of one size, got a list of "
                f"{measured.n_sizes} sizes: train on patches of one size"
            )
        _, part = next(measured.parts(None))
        return part

    def _reads_later(self, measured: Measurements) -> bool:
        """Whether measurements are read when they are needed: stored ones of one operator and noise."""
        known = not measured.parameters and self._noise_model.unmeasured() is None
        return measured.stored and known and (self._reads_rows or not self._needs)

    def _fit_to_stored(self, images: Any, source: Any, device: torch.device) -> None:
        """Check operator and images, and learn from measurements that are read when they are needed."""
        operator: Any = self._operator_for(images, to_batch(as_rows(take(source, slice(0, 1)), "Y_meas")))
        images, A = self._images_of(operator, images), as_torch(operator)

        def read(rows: Rows, numbers: NDArray[np.intp]) -> Tensor:
            known = self._measurements(rows, A, numbers)
            check_complete(known, "Y_meas", f": {type(self).__name__}.fit reads complete measurements only")
            return to_batch(known, device).reshape(-1, *A.dimsd)

        data: Any = StoredBatch(source, "Y_meas", read)
        self._check_pairs(images, data)
        warn_of_doubts(A, data[:FEW])
        if "Y_meas" in self._needs:
            problem = Problem(operator, self.noise, A)
            self._learn_from(operator, Problems.one(problem, data), images, data)
        else:
            self._learn_from_images(operator, images)

    def _learn_from_images(self, operator: pylops.LinearOperator | None, images: Tensor | None) -> None:
        """Learn without measurements."""
        self.operator_, problems = operator, None
        if operator is not None:
            problems = Problems.one(Problem(operator, self.noise, as_torch(operator)), images)
        self._fit(problems, images, None)

    def _learn_from_measured(
        self, operator: Any, images: Tensor | None, found: list[Group], device: torch.device
    ) -> None:
        """Learn from what is measured of each image, with what all of them have in common in place."""
        problems, data = _together(found, device)
        common = problems.distinct[0]
        if problems.several:
            for problem in found:
                problem.method._check_measured(problem.rows, problem.A)
            self._learn_from(operator, problems, images, data)
        elif common.noise is self.noise:
            self._learn_from(common.operator, problems, images, data)
        else:
            given, self.noise = self.noise, common.noise
            self._learn_from(common.operator, problems, images, data)
            self.noise = given
        if not problems.several and common.operator is not operator:
            self.operator_ = operator  # else a method may have found its own

    def _learn_from(
        self, operator: pylops.LinearOperator, problems: Problems, images: Tensor | None, data: Tensor
    ) -> None:
        """Learn from measurements, each under its own operator and noise."""
        self.operator_ = operator
        if images is not None and self._paired:
            problems.check_not_swapped(images, data)
        self._fit(problems, images, data)

    def _learn_beside(
        self, operator: pylops.LinearOperator, problems: Problems, images: Tensor, data: Tensor
    ) -> None:
        """Learn, as a part of another method, from the pairs of that one."""
        self.check_parameters()
        self._check_images(tuple(operator.dims))
        whole = self._noise_model
        whole.check_shape(tuple(operator.dimsd), "noise__")
        if "Y_meas" not in self._needs:
            self._learn_from_images(operator, images)
            return
        own = problems.under(lambda p: self.noise if p.kept is None else whole.restricted(p.kept))
        self._learn_from(operator, own, images, data)

    def _check_learned_from(self, rows: Rows) -> None:
        """Refuse measurements that are not complete where a method learns from each one in its place."""
        if "Y_meas" in self._needs and self._complete:
            check_complete(rows, "Y_meas", f": {type(self).__name__}.fit learns from complete measurements")

    def _check_given(self, X_true: Any, Y_meas: Any) -> None:
        given = {"X_true": X_true, "Y_meas": Y_meas}
        for name in self._needs:
            if given[name] is None:
                others = " and ".join(self._needs)
                instead = _INSTEAD if len(self._needs) > 1 else ""
                raise ValueError(
                    f"{type(self).__name__}.fit learns from {others}, but {name} is missing{instead}"
                )

    def _check_pairs(self, images: Tensor | None, data: Rows | None) -> None:
        if self._paired and images is not None and data is not None and len(images) != len(data):
            raise ValueError(
                f"{type(self).__name__}.fit expects pairs, "
                f"but X_true holds {len(images)} images and Y_meas {len(data)} measurements{_INSTEAD}"
            )

    def _reconstructions(
        self, Y_meas: Any, reconstruct: Reconstruct, out: Any = None
    ) -> tuple[Any, Solution]:
        """Images of the kind of the measurements, and how they ended; a warning of those that did not."""
        measured = Measurements.of(Y_meas)
        if out is not None:
            X_hat, report = out, self._written(measured, reconstruct, out)
        elif measured.n_sizes > 1:
            X_hat, report = self._of_several_sizes(measured, reconstruct)
        else:
            X_hat, report = self._of_one_size(measured, reconstruct)
        self._warn(report)
        return X_hat, report

    def _of_several_sizes(
        self, measured: Measurements, reconstruct: Reconstruct
    ) -> tuple[list[Any], Solution]:
        X_hat: list[Any] = [None] * len(measured)
        reports = []
        for index, solution in self._in_parts(measured, reconstruct):
            for i, x in zip(index, solution.x, strict=True):
                X_hat[i] = same_kind(x, measured.data[i])
            reports.append((index, without_images(solution)))
        return X_hat, Solution.gather(len(measured), reports, torch.device("cpu"))

    def _written(self, measured: Measurements, reconstruct: Reconstruct, out: Any) -> Solution:
        """Write images where they belong, a few at a time."""
        if measured.n_sizes > 1:
            raise ValueError("out: expected measurements of one size, got a list of several")

        def reports() -> Iterator[tuple[NDArray[np.intp], Solution]]:
            for index, solution in self._in_parts(measured, reconstruct, n_values=_CHUNK["cpu"]):
                self._write(solution.x, out, index, len(measured))
                yield index, without_images(solution)

        # Gathered where there is room for all: what is kept between large blocks lets the heap grow by them.
        return Solution.gather(len(measured), reports(), torch.device("cpu"))

    def _write(self, x: Tensor, out: Any, index: NDArray[np.intp], n: int) -> None:
        """Write some of ``n`` images; of several processes one does."""
        write_rows(x, out, index, n)

    def _of_one_size(self, measured: Measurements, reconstruct: Reconstruct) -> tuple[Any, Solution]:
        device = measured.data.device if isinstance(measured.data, Tensor) else torch.device("cpu")
        parts = self._in_parts(measured, reconstruct, device=device)
        index, solution = next(parts)
        if len(index) < len(measured):
            solution = Solution.gather(len(measured), chain([(index, solution)], parts), device)
        return same_kind(solution.x, measured.data), without_images(solution)

    def _in_parts(
        self,
        measured: Measurements,
        reconstruct: Reconstruct,
        *,
        n_values: int | None = None,
        device: torch.device | None = None,
    ) -> Iterator[tuple[NDArray[np.intp], Solution]]:
        """Indices of images and what ``reconstruct`` makes of them, as they are read; of one size each."""
        survive_fork()
        check_is_fitted(self)
        self.check_parameters()
        known: dict[tuple[int, ...], pylops.LinearOperator] = {}
        for index, part in measured.parts(n_values):
            with standard_defaults():
                rows = as_rows(part.data, "Y_meas")
                shape = tuple(rows.shape[1:])
                if shape not in known:
                    known[shape] = self._operator_of(rows)
                solutions = self._solutions(known[shape], part, rows, index, reconstruct)
                solution = Solution.gather(len(rows), solutions, device or torch.device("cpu")).finite()
            yield index, solution

    def _solutions(
        self,
        operator: pylops.LinearOperator,
        part: Measurements,
        rows: Rows,
        numbers: NDArray[np.intp],
        reconstruct: Reconstruct,
    ) -> Iterator[tuple[NDArray[np.intp], Solution]]:
        """Indices of a few images and their reconstructions, where images have their own parameters."""
        for members, _, method, A, known in self._problems(operator, part, rows, numbers):
            method._check_measured(known, A)
            if missing(known) is None:
                # The call of predict that has led here through the parts of the measurements.
                warn_of_doubts(A, to_batch(known[:FEW], resolve_device(self.device)), stacklevel=8)
            for index, solution in method._solutions_of(A, known, reconstruct):
                yield members[index], solution

    def _solutions_of(
        self, A: LinearMap, rows: Rows, reconstruct: Reconstruct
    ) -> Iterator[tuple[NDArray[np.intp], Solution]]:
        """The same for measurements of one operator; no image depends on its companions.

        Where measurements are missing, so are their rows of the operator.
        """
        reuse_freed_memory()
        device = resolve_device(self.device)
        size = max(1, _CHUNK[device.type] // (self._load * max(math.prod(A.dims), math.prod(A.dimsd))))
        for members, kept, B in _measured_alike(A, rows):
            for index in np.split(members, range(size, len(members), size)):
                data = to_batch(rows[index], device).flatten(1)[:, kept].reshape(-1, *B.dimsd)
                yield index, reconstruct(self if B is A else self._restricted_to(kept, A.dimsd), B, data)

    def _warn(self, solution: Solution) -> None:
        """Warn of images that are not finite or did not converge, by a report without them."""
        lost = int((~solution.x).sum())
        if lost:
            warnings.warn(
                f"{type(self).__name__}: {lost} of {len(solution.x)} images are not finite, they hold NaN or "
                "inf: check the weights of the method and the values of the operator",
                ConvergenceWarning,
                stacklevel=4,
            )
        failed = int((~solution.converged).sum()) - lost
        if failed:
            warnings.warn(
                f"{type(self).__name__}: {failed} of {len(solution.x)} images did not converge "
                f"(largest residual {float(solution.residual.max()):.1e}): raise max_steps or tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def set_params(self, **params: Any) -> Self:
        """Set parameters; ``operator__sigma`` gives the estimator another operator of the same kind.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        object
            The estimator.
        """
        of_operator = {
            k.removeprefix("operator__"): v for k, v in params.items() if k.startswith("operator__")
        }
        super().set_params(**{k: v for k, v in params.items() if not k.startswith("operator__")})
        if of_operator:
            known = self.get_params()
            changed = {k: v for k, v in of_operator.items() if not _equal(known.get(f"operator__{k}"), v)}
            # Another one, for the operator itself may be shared; the same where nothing changes.
            self.operator = with_parameters(self.operator, changed) if changed else self.operator
        return self

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        for name in _OPERATORS:
            if isinstance(state.get(name), pylops.LinearOperator):  # else it is refused when it is used
                note_sent(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the operator that this process has already, if it is the same: one copy serves all."""
        held = [name for name in _OPERATORS if isinstance(state.get(name), pylops.LinearOperator)]
        local = {name: local_copy(state[name]) for name in held}
        super().__setstate__({**state, **local})

    def __sklearn_clone__(self) -> Self:
        """Clones share the operator: it may be hundreds of megabytes and is never written to."""
        params = {k: v if k in self._shared else _clone(v) for k, v in self.get_params(deep=False).items()}
        twin = type(self)(**params)
        for name in ("_metadata_request", "_skl_callbacks"):
            if hasattr(self, name):
                setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.target_tags.required = "Y_meas" in self._needs
        tags.input_tags.positive_only = self._noise_model.counted
        return tags


def _equal(known: Any, value: Any) -> bool:
    """Whether a parameter of an operator, None where it is not told, has this value already."""
    return known is not None and np.array_equal(known, value)


def without_images(solution: Solution) -> Solution:
    """How images ended, with the mere fact whether each is finite in its place."""
    return replace(solution, x=are_finite(solution.x))


def _clone(value: Any) -> Any:
    """A copy of a parameter, as scikit-learn makes it; of a module also where torch would refuse to."""
    return copy_module(value) if isinstance(value, nn.Module) else clone(value, safe=False)


def _measured_alike(A: LinearMap, rows: Rows) -> Iterator[tuple[np.ndarray, Any, LinearMap]]:
    """Samples of which the same values are measured, the indices of these values, and the map to them."""
    masks = missing(rows)
    if masks is None:
        yield np.arange(len(rows)), slice(None), A
        return
    for members in alike(masks):
        kept = np.flatnonzero(~masks[members[0]])
        complete = len(kept) == masks[0].size
        yield members, kept, A if complete else as_torch(pylops.Restriction(masks[0].size, kept)) @ A


def _rows_of(operator: Any, kept: NDArray[np.intp]) -> pylops.LinearOperator:
    """The operator to a part of its data."""
    dtype = np.dtype(operator.dtype).name
    return pylops.Restriction(operator.shape[0], kept, dtype=dtype) @ operator


def _together(found: list[Group], device: torch.device) -> tuple[Problems, Tensor]:
    """The problems to learn from, and the data of all images: on the grid, if problems differ in masks."""
    parts = [(p, index, kept, B) for p in found for index, kept, B in _measured_alike(p.A, p.rows)]
    if len(parts) == 1:
        return _alone(found[0], parts[0][2], device)
    n, distinct, whole = sum(len(p.members) for p in found), [], torch.empty(0)
    which = torch.empty(n, dtype=torch.long, device=device)
    for k, (p, index, kept, B) in enumerate(parts):
        values, mask = to_batch(p.rows[index], device).flatten(1), None if B is p.A else kept
        noise = p.method.noise if mask is None else p.method._noise_model.restricted(mask)
        distinct.append(Problem(p.operator, noise, B, mask))
        members = torch.from_numpy(p.members[index]).to(device)
        whole = whole if k else values.new_zeros(n, values.shape[1])
        which[members] = k
        whole[members[:, None], torch.arange(values.shape[1], device=device)[kept]] = values[:, kept]
    return Problems(distinct, which), whole.reshape(-1, *found[0].A.dimsd)


def _alone(problem: Group, kept: Any, device: torch.device) -> tuple[Problems, Tensor]:
    """The only problem, restricted to what is measured, and its data."""
    own, noise = problem.operator, problem.method.noise
    data = to_batch(problem.rows, device).reshape(-1, *problem.A.dimsd)
    if missing(problem.rows) is not None:
        noise = problem.method._noise_model.restricted(kept)
        own, data = _rows_of(own, kept), data.flatten(1)[:, kept]
    return Problems.one(Problem(own, noise, as_torch(own)), data), data

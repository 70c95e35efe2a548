"""Every check of `skinverse.testing` finds the estimator that breaks its promise, and only that."""

from __future__ import annotations

import copy
import inspect
import math
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

import skinverse
from skinverse import ReconstructionRegressor, Tikhonov, Trainer
from skinverse._differences import negative_laplacian
from skinverse._parameters import Integer, Real, fitted, parameter
from skinverse.estimators import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._declarations import noise_parameter
from skinverse.estimators._problems import Problems
from skinverse.functionals import LeastSquares, SquaredNorm
from skinverse.noise import Gaussian
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, gradient_descent
from skinverse.testing import Check, check_reconstructor, reconstructor_checks
from skinverse.training import Phase


# ---------------------------------------------------------------------- estimators that keep all promises
class Descent(BaseReconstructor):
    """A few steps ``x <- x + A^* (y - A x) / ||A||^2`` from zero."""

    n_iterations: int = parameter(default=3, allowed=Integer(ge=1), doc="Number of steps.")

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        x = torch.zeros_like(A.adjoint(data))
        for _ in range(self.n_iterations):
            x = x + self._step(A, A.adjoint(data - A(x)))
        return Solution.direct(x)

    def _step(self, A: LinearMap, gradient: Tensor) -> Tensor:
        return gradient / A.norm() ** 2


class Gain(nn.Module):
    """One number, random before the training."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(()) + 0.5)

    def forward(self, z: Tensor) -> Tensor:
        mean = z.flatten(1).mean(1).reshape(-1, *[1] * (z.ndim - 1))
        return mean + self.gain * (z - mean)


class LearnedGain(LearnedReconstructor):
    """``A^* y / ||A||^2``, whose deviations from the mean are amplified by a learned factor."""

    def _make_module(self) -> nn.Module:
        return Gain()

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        A = problems.A

        def loss(module: Any, x: Tensor, z: Tensor) -> Tensor:
            return (module(z) - x).abs().square().flatten(1).mean(1)

        yield Phase(
            "gain", loss, (images, A.adjoint(data) / A.norm() ** 2), self.trainer.over(max_epochs=5, lr=0.1)
        )

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        z = A.adjoint(data) / A.norm() ** 2
        module = copy.deepcopy(self.module_).to(z.device, z.dtype.to_real())
        with torch.no_grad():
            return Solution.direct(module(z))


class Stranger(BaseEstimator):
    """An estimator that knows nothing of the base classes, but keeps to the words of the contract."""

    not_promised = {"saved": "The files of skinverse hold its own classes and those that derive from them."}

    def __init__(self, operator: Any = None, *, n_iterations: int = 3) -> None:
        self.operator = operator
        self.n_iterations = n_iterations

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Stranger:
        model = Descent(self.operator, n_iterations=self.n_iterations).fit(X_true, Y_meas)
        self.model_, self.operator_ = model, model.operator_
        return self

    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        if not hasattr(self, "model_"):
            raise NotFittedError("This Stranger is not fitted yet.")
        return self._model().predict(Y_meas, return_info=return_info)

    def score(self, X_true: Any, Y_meas: Any) -> float:
        return self._model().score(X_true, Y_meas) if hasattr(self, "model_") else self.predict(Y_meas)

    def as_regressor(self) -> ReconstructionRegressor:
        return ReconstructionRegressor.of(self)

    def save(self, path: Any) -> None:
        raise ValueError("a Stranger has no place in a file")

    def _model(self) -> Descent:
        return copy.copy(self.model_).set_params(operator=self.operator, n_iterations=self.n_iterations)

    def __sklearn_clone__(self) -> Stranger:
        return type(self)(self.operator, n_iterations=self.n_iterations)


SOUND: list[Any] = [Descent(), LearnedGain(), Stranger()]


@pytest.mark.parametrize("estimator", SOUND, ids=lambda e: type(e).__name__)
def test_what_keeps_all_promises_passes(estimator: Any) -> None:
    check_reconstructor(estimator)


def test_checks_are_named_and_tell_their_promise() -> None:
    checks = list(reconstructor_checks(Descent()))
    assert len({check.name for check in checks}) == len(checks) == len({check.promise for check in checks})
    assert all(str(check) == check.name and check.promise.endswith(".") for check in checks)
    assert all("\n" not in check.promise and check.skipped is None for check in checks)


def test_an_operator_of_its_own_is_that_of_the_problems() -> None:
    check_reconstructor(Descent(skinverse.operators.fourier_sampling(np.eye(6, 8) == 0)))


def test_the_given_estimator_is_left_alone() -> None:
    trainer = Trainer(n_steps=7)
    estimator = LearnedGain(trainer=trainer)
    check_reconstructor(estimator)
    assert estimator.trainer is trainer and vars(trainer) == vars(Trainer(n_steps=7))
    assert not hasattr(estimator, "module_")


class Honest(Descent):
    not_promised = {"phase": "It looks at real parts only."}

    def _step(self, A: LinearMap, gradient: Tensor) -> Tensor:
        return super()._step(A, gradient.real + 0 * gradient)


def test_what_is_not_promised_is_told_and_left_out() -> None:
    skipped = {check.name: check.skipped for check in reconstructor_checks(Honest()) if check.skipped}
    assert skipped == Honest.not_promised
    check_reconstructor(Honest())


def test_an_exemption_from_nothing_is_refused() -> None:
    class Mistyped(Descent):
        not_promised = {"phases": "A check of that name does not exist."}

    with pytest.raises(ValueError, match="not_promised.*'phases'"):
        list(reconstructor_checks(Mistyped()))


# ---------------------------------------------------------------------- estimators that break one promise
Make = Callable[[], Any]
BROKEN: list[tuple[str, Make, str]] = []


def breaks(name: str, says: str, *args: Any, **params: Any) -> Callable[[type], type]:
    """A class whose instances, made with some arguments, break a promise, and what is said of them."""

    def add(cls: type) -> type:
        BROKEN.append((name, lambda: cls(*args, **params), says))
        return cls

    return add


# ---- construction
@breaks("default_constructible", "needs an operator", pylops.Identity((6, 6)))
class NeedsOperator(Descent):
    def __post_init__(self) -> None:
        if self.operator is None:
            raise ValueError("it needs an operator")


@breaks("parameters_stored", "constructor changes operator")
class Wraps(Descent):
    def __post_init__(self) -> None:
        self.operator = self.operator if self.operator is None else [self.operator]


@breaks("unknown_argument", "is accepted")
class Takes(Descent):
    def __init__(
        self, operator: Any = None, *, n_iterations: int = 3, device: str = "auto", **others: Any
    ) -> None:
        self.operator, self.n_iterations, self.device = operator, n_iterations, device


@breaks("parameters_round_trip", "does not return the estimator")
class Silent(Descent):
    def set_params(self, **params: Any) -> Any:
        super().set_params(**params)
        return self if "operator" in params and len(params) == 1 else None


@breaks("clones", "copies the operator")
class Copies(Descent):
    def __sklearn_clone__(self) -> Any:
        return type(self)(copy.copy(self.operator), n_iterations=self.n_iterations)


@breaks("clones", "keeps operator_")
class Keeps(Descent):
    def __sklearn_clone__(self) -> Any:
        return copy.copy(self)


@breaks("representation", "does not name the class")
class Nameless(Descent):
    def __repr__(self) -> str:
        return "an estimator"


# ---- arrays
class Changed(Descent):
    """A sound estimator whose reconstructions are changed on their way out."""

    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        X_hat = self.changed(X_hat, Y_meas)
        return (X_hat, info) if return_info else X_hat

    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat


@breaks("shapes", r"\(4, 12, 10\).*\(4, 120\)")
class Flattens(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat.reshape(len(X_hat), -1)


@breaks("flat_arrays", "only images")
class OnlyImages(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        if X_true is not None and X_true.ndim < 3:
            raise ValueError("only images please")
        return super().fit(X_true, Y_meas)


@breaks("precision", "float32 become images of float64")
class Doubles(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat.astype(np.float64)


@breaks("precision", "single precision changes the images")
class Rounds(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + 0.1 * (X_hat.dtype == np.float32)


@breaks("torch_arrays", "becomes a ndarray")
class Detaches(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return np.asarray(X_hat)


@breaks("layout", "Fortran-ordered measurements change")
class ReadsMemory(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = np.asarray(Y_meas).ravel(order="K").reshape(np.shape(Y_meas))
        return super().predict(Y_meas, return_info=return_info)


@breaks("layout", "read-only measurements end in")
class WritesInto(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = np.asarray(Y_meas)
        Y_meas[:1] += 0
        return super().predict(Y_meas, return_info=return_info)


@breaks("layout", "listed measurements end in")
class AsksForShape(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        assert Y_meas.shape
        return super().predict(Y_meas, return_info=return_info)


@breaks("layout", "lazily negated measurements change")
class ReadsStorage(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        if isinstance(Y_meas, Tensor) and Y_meas.is_neg():
            Y_meas = -Y_meas.resolve_neg()
        return super().predict(Y_meas, return_info=return_info)


@breaks("layout", "change the score")
class ScoresReversed(Descent):
    def score(self, X_true: Any, Y_meas: Any) -> float:
        return super().score(X_true, Y_meas) + (np.asarray(Y_meas).strides[0] < 0)


@breaks("measurements", "Measurements change the result")
class KnowsArraysOnly(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        known = 2 * Y_meas.data if isinstance(Y_meas, skinverse.Measurements) else Y_meas
        return super().predict(known, return_info=return_info)


@breaks("operator_of_each_image", "operators of each image change it by")
class TakesTheFirst(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        data = getattr(Y_meas, "parameters", None) and Y_meas.data
        return super().predict(Y_meas if data is None or not len(data) else data, return_info=return_info)


@breaks("rows_read_later", "a set of rows end in")
class AsksForNumbers(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        return super().predict(0 + Y_meas, return_info=return_info)


@breaks("rows_read_later", "a list of arrays changes the result")
class Reverses(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = Y_meas[::-1] if isinstance(Y_meas, list) else Y_meas
        return super().predict(Y_meas, return_info=return_info)


@breaks("number_types", "integers change the result")
class Wraps8(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = Y_meas % 8 if Y_meas.dtype.kind == "i" else Y_meas
        return super().predict(Y_meas, return_info=return_info)


@breaks("number_types", "half precision change the result")
class HalvesInDouble(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = Y_meas.astype(float) if Y_meas.dtype == np.float16 else Y_meas
        return super().predict(Y_meas, return_info=return_info)


@breaks("number_types", "bfloat16 change the result")
class BrainsInDouble(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        Y_meas = Y_meas.double() if Y_meas.dtype == torch.bfloat16 else Y_meas
        return super().predict(Y_meas, return_info=return_info)


@breaks("masked", "is accepted")
class IgnoresMask(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        return super().predict(np.asarray(Y_meas), return_info=return_info)


@breaks("masked", "what lies under the mask changes")
class ReadsUnderMask(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + np.nan_to_num(np.asarray(Y_meas)).mean()


@breaks("masked", "without its rows differ")
class FillsWithOne(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        return super().predict(np.ma.filled(Y_meas, 1), return_info=return_info)


@breaks("masked", "masks of others change an image")
class MasksAll(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        if isinstance(Y_meas, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(Y_meas).any(0)
            Y_meas = np.ma.array(Y_meas.data, mask=np.broadcast_to(mask, Y_meas.shape))
        return super().predict(Y_meas, return_info=return_info)


@breaks("weights", "in the place of an operator with them change")
class IgnoresWeights(Descent):
    noise: Gaussian | float | None = noise_parameter(kind=Gaussian)


@breaks("weight_of_zero", "what has the weight zero changes")
class ReadsAllRows(IgnoresWeights):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        known = copy.copy(self).set_params(noise=None)
        return super(IgnoresWeights, known).predict(np.nan_to_num(Y_meas), return_info=return_info)


@breaks("weight_of_zero", "weights of zero and masks differ")
class HalvesForZeros(IgnoresWeights):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat = super().predict(Y_meas, return_info=return_info)
        return X_hat if self.noise is None else X_hat / 2


@breaks("info", "does not tell converged")
class Tightlipped(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        del info["converged"]
        return (X_hat, info) if return_info else X_hat


@breaks("info", "not boolean")
class Numbers(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        info["converged"] = info["converged"].astype(int)
        return (X_hat, info) if return_info else X_hat


@breaks("convergence_warning", "4 images did not converge, and there is no warning")
class Unaware(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        info["converged"][:] = False
        return (X_hat, info) if return_info else X_hat


@breaks("companions", r"changes by \d\.\de-\d\d relative with the images beside it, more than 1e-06")
class Together(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + 1e-4 * X_hat.mean(0)


@breaks("companions", "with the order of the images")
class KnowsOrder(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat if X_hat[0].sum() >= X_hat[-1].sum() else 1.001 * X_hat


@breaks("companions", "with the chunks in which they come")
class KnowsChunks(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat if len(X_hat) != 2 else 1.001 * X_hat


@breaks("companions", "numbers of steps change with the images beside it")
class CountsTogether(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        info["n_steps"] += len(X_hat)
        return (X_hat, info) if return_info else X_hat


@breaks("channels", "shape")
class OneChannel(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat[:, 0] if X_hat.ndim > 3 else X_hat


class Smooths(Descent):
    """The gradient is smoothed along some axes."""

    def _step(self, A: LinearMap, gradient: Tensor) -> Tensor:
        step = super()._step(A, gradient)
        return step - sum(negative_laplacian(step, (axis,)) for axis in self.axes(A)) / 20

    def axes(self, A: LinearMap) -> tuple[int, ...]:
        return self._spatial_axes(A)


@breaks("volumes", "turning a volume changes")
class Slicewise(Smooths):
    def axes(self, A: LinearMap) -> tuple[int, ...]:
        return self._spatial_axes(A)[-2:]


@breaks("volumes", "refused without naming channel_axis")
class FlatOnly(Descent):
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if len(A.dims) == 3 and self.channel_axis is None:
            raise ValueError("images have two axes")
        return super()._reconstruct(A, data)

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        if problems is not None and data is not None:
            self._reconstruct(problems.A, data)


@breaks("colour", "channel_axis=-1 in place of 0 changes")
class ChannelsFirst(Smooths):
    def axes(self, A: LinearMap) -> tuple[int, ...]:
        return self._spatial_axes(A) if self.channel_axis is None else (-2, -1)


@breaks("colour", "another order of the channels changes")
class ChannelsAreSpace(Smooths):
    def axes(self, A: LinearMap) -> tuple[int, ...]:
        return tuple(range(-len(A.dims), 0))


@breaks("complex_images", "complex128 images .* become float64")
class RealOnly(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat.real


# ---- fit
@breaks("fit_returns_self", "does not return the estimator")
class ReturnsNothing(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        super().fit(X_true, Y_meas)


@breaks("fit_returns_self", "replaces the parameter n_iterations")
class Adjusts(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        self.n_iterations = 5
        return super().fit(X_true, Y_meas)


@breaks("fit_returns_self", "inside of a parameter", trainer=Trainer(callbacks=[]))
class AdjustsTrainer(LearnedGain):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        super().fit(X_true, Y_meas)
        self.trainer.callbacks.append(None)
        return self


class After(Descent):
    """A sound estimator that does something after its fit."""

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        super().fit(X_true, Y_meas)
        self.after(X_true)
        return self

    def after(self, X_true: Any) -> None: ...


@breaks("fitted_names", "fit sets size")
class Unmarked(After):
    def after(self, X_true: Any) -> None:
        self.size = len(X_true)


@breaks("not_fitted", "predict before fit is accepted")
class Eager(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        model = self if hasattr(self, "operator_") else copy.copy(self).fit()
        return super(Eager, model).predict(Y_meas, return_info=return_info)


@breaks("not_fitted", "ends in AttributeError")
class Unprepared(Descent):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        self.operator_  # noqa: B018
        return super().predict(Y_meas, return_info=return_info)


@breaks("better_than_nothing", "1.00 of the images' norm")
class Nothing(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return 0 * X_hat


class Fits(Descent):
    """A sound estimator that looks at its arguments itself."""

    _paired = False

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        self.look(X_true, Y_meas)
        return super().fit(X_true, Y_meas)

    def look(self, X_true: Any, Y_meas: Any) -> None:
        if X_true is not None and len(X_true) != len(Y_meas):
            raise ValueError(f"{len(X_true)} images and {len(Y_meas)} measurements")


@breaks("pairs", "without naming 3")
class Unequal(Fits):
    def look(self, X_true: Any, Y_meas: Any) -> None:
        if X_true is not None and len(X_true) != len(Y_meas):
            raise ValueError("unequal numbers")


@breaks("wrong_way_round", "is accepted")
class AnyOrder(Fits): ...


@breaks("failed_fit", "has changed n_fits_")
class Counts(Fits):
    n_fits_: int = fitted()

    def look(self, X_true: Any, Y_meas: Any) -> None:
        self.n_fits_ = getattr(self, "n_fits_", 0) + 1
        super().look(X_true, Y_meas)


@breaks("failed_fit", "as if there had been no KeyboardInterrupt")
class Swallows(LearnedGain):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        try:
            return super().fit(X_true, Y_meas)
        except KeyboardInterrupt:
            return self


@breaks("failed_fit", "MemoryError reaches the caller as RuntimeError")
class Translates(LearnedGain):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        try:
            return super().fit(X_true, Y_meas)
        except MemoryError as error:
            raise RuntimeError("training failed") from error


@breaks("failed_fit", "after failed fits predict differs")
class InPlace(LearnedGain):
    def _make_module(self) -> nn.Module:
        return self.module_ if hasattr(self, "module_") else super()._make_module()

    def _learner(self) -> Any:
        return self

    def _unfitted(self) -> Any:
        return copy.copy(self)


@breaks("warm_start", "leads away from the first one")
class ColdStart(LearnedGain):
    def _unfitted(self) -> Any:
        twin = super()._unfitted()
        vars(twin).pop("module_", None)
        return twin


@breaks("memory", "is done again")
class Forgetful(LearnedGain):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        memory, self.memory = self.memory, None
        super().fit(X_true, Y_meas)
        self.memory = memory
        return self


# ---- refusals
class Accepts(Descent):
    """A sound estimator that repairs its measurements first."""

    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        return super().predict(self.repaired(Y_meas), return_info=return_info)

    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas


@breaks("lone_image", "is accepted")
class ReadsSignals(Descent):
    def _check_axes(self, shape: tuple[int, ...]) -> None: ...


@breaks("lone_image", "is accepted")
class ReadsSignalsUnfitted(Descent):
    def _check_axes(self, shape: tuple[int, ...]) -> None:
        if self.operator_ is not None:
            super()._check_axes(shape)


@breaks("bad_measurements", "an array with NaN is accepted")
class Blind(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return np.nan_to_num(Y_meas)


@breaks("bad_measurements", "a transposed array is accepted")
class Reshapes(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas.T if Y_meas.shape == (70, 4) else Y_meas


@breaks("bad_measurements", "lacks a row of values is accepted")
class Pads(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return np.pad(Y_meas, ((0, 0), (0, 1))) if Y_meas.shape == (4, 69) else Y_meas


@breaks("bad_measurements", "in another shape is accepted")
class Squeezes(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas[:, 0] if Y_meas.shape == (4, 1, 70) else Y_meas


@breaks("bad_measurements", "an empty array ends in IndexError")
class Peeks(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        Y_meas[0]
        return Y_meas


@breaks("bad_measurements", "one sample without batch axis is accepted")
class AddsAxis(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas[None] if np.ndim(Y_meas) == 1 else Y_meas


@breaks("bad_measurements", "text is accepted")
class Parses(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas.astype(float) if isinstance(Y_meas, np.ndarray) and Y_meas.dtype.kind == "U" else Y_meas


@breaks("bad_measurements", "a list of unequal lengths is refused without naming Y_meas")
class LetsNumPySpeak(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return np.asarray(Y_meas) if isinstance(Y_meas, list) else Y_meas


@breaks("bad_measurements", "a sparse matrix is accepted")
class Densifies(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        return Y_meas.toarray() if hasattr(Y_meas, "toarray") else Y_meas


@breaks("bad_measurements", "something else than one sentence")
class Verbose(Accepts):
    def repaired(self, Y_meas: Any) -> Any:
        if not np.isfinite(np.asarray(Y_meas, dtype=float)).all():
            raise ValueError(f"Y_meas:\n{Y_meas}")
        return Y_meas


@breaks("bad_images", "an array with NaN in fit is accepted")
class BlindToImages(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        images = (
            np.nan_to_num(X_true) if isinstance(X_true, np.ndarray) and X_true.dtype.kind == "f" else X_true
        )
        return super().fit(images, Y_meas)


@breaks("bad_operators", "a matrix as operator is accepted")
class TakesMatrices(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        if not isinstance(self.operator, np.ndarray):
            return super().fit(X_true, Y_meas)
        return type(self)(pylops.MatrixMult(self.operator)).fit(X_true.reshape(len(X_true), -1), Y_meas)


@breaks("bad_operators", "a wrong adjoint is accepted")
class Trusts(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        return (
            super().fit(X_true, Y_meas)
            if isinstance(self.operator, pylops.LinearOperator)
            else self._refused()
        )

    def _fit_to(self, X_true: Any, Y_meas: Any) -> None:
        self.operator_ = self.operator

    def _refused(self) -> Any:
        raise TypeError("operator: expected a pylops.LinearOperator")


@breaks("forgotten_operator", "without naming operator=None")
class Curt(Descent):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        try:
            return super().fit(X_true, Y_meas)
        except ValueError as error:
            raise ValueError("the sizes differ") from error


@breaks("parameters_checked", "n_iterations=-1 in predict is accepted")
class ChecksOnce(Descent):
    def check_parameters(self) -> None:
        if not hasattr(self, "operator_"):
            super().check_parameters()

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        super().check_parameters()
        return super().fit(X_true, Y_meas)


@breaks("parameters_checked", "trainer__max_epochs=-1 in fit is accepted")
class TrustsItsTrainer(LearnedGain):
    def check_parameters(self) -> None:
        twin = copy.copy(self)
        twin.trainer = Trainer() if isinstance(self.trainer, Trainer) else self.trainer
        super(TrustsItsTrainer, twin).check_parameters()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_that_is_replaced_in_silence_is_found() -> None:
    class Falls(Descent):
        def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
            twin = copy.copy(self)
            twin.device = "cpu"
            return super(Falls, twin).predict(Y_meas, return_info=return_info)

    expect_found(Falls(), "missing_device", "is accepted")


# ---- copies
@breaks("pickled", "lock")
class Locked(After):
    def after(self, X_true: Any) -> None:
        self.lock_ = threading.Lock()


@breaks("pickled", "pickle changes the result")
class CountsCopies(Changed):
    n_copies_: int = fitted()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__({**state, "n_copies_": state.get("n_copies_", 0) + 1})

    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat * (1 + getattr(self, "n_copies_", 0))


class Offset(Changed):
    """Something that is found in fit, and not declared, is added to the reconstructions."""

    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        super().fit(X_true, Y_meas)
        self.offset_ = self.offset()
        return self

    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + getattr(self, "offset_", 0.0)

    def offset(self) -> float:
        return 1.0


@breaks("saved", "offset_ of NotDeclared is not declared")
class NotDeclared(Offset): ...


@breaks("saved", "save and load change the result")
class SavesOthers(Descent):
    def save(self, path: Any) -> None:
        super(SavesOthers, copy.copy(self).set_params(n_iterations=1)).save(path)


@breaks("other_operator", "the same image seen by another operator differs by")
class Sticks(Descent):
    def _operator_for(self, images: Any, data: Any) -> Any:
        return self.operator_ if images is None else super()._operator_for(images, data)


@breaks("other_sizes", "one size only")
class OneSize(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        if X_hat.shape[1:] != self.operator_.dims:
            raise ValueError("one size only")
        return X_hat


@breaks("sizes_told", r"without naming \(12, 10\)")
class OneSizeUntold(OneSize): ...


# ---- isolation
@breaks("predict_is_pure", "changes the estimator")
class Remembers(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        self.last_ = X_hat
        return X_hat


@breaks("predict_is_pure", "changes the data")
class Overwrites(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        Y_meas *= 0
        return X_hat


@breaks("predict_is_pure", "a second predict differs")
class Throws(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + np.random.default_rng().normal()


@breaks("repeatable", "the same fit again changes the result")
class Unseeded(Offset):
    def offset(self) -> float:
        return float(np.random.default_rng().normal())


@breaks("generators_left_alone", "move a global generator")
class MovesPython(Offset):
    def offset(self) -> float:
        return 0 * random.random()


@breaks("generators_left_alone", "move a global generator")
class MovesNumPy(Offset):
    def offset(self) -> float:
        return 0 * np.random.random()  # noqa: NPY002


@breaks("generators_left_alone", "move a global generator")
class Seeds(Offset):
    def offset(self) -> float:
        torch.manual_seed(0)
        return 0.0


@breaks("generators_left_alone", "another state of the global generators changes the result")
class ReadsGlobally(Offset):
    def offset(self) -> float:
        return float(torch.get_rng_state().sum())


@breaks("generators_left_alone", "with random_state=None")
class MovesWithoutSeed(LearnedGain):
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Any:
        if self.random_state is None:
            np.random.random()  # noqa: NPY002
        return super().fit(X_true, Y_meas)


class Restores(Offset):
    """A fit that draws from the global generator, and tidies up."""

    def offset(self) -> float:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        time.sleep(0.02)
        drawn = float(torch.rand(()))
        torch.set_rng_state(state)
        return drawn


@breaks("threads", "in another thread changes the result|are not the caller's")
class SharesGenerator(Restores): ...


@breaks("defaults_of_torch", "float64. changes the result")
class DefaultPrecision(Offset):
    def offset(self) -> float:
        return float(torch.as_tensor(0.1, dtype=torch.get_default_dtype()))


@breaks("defaults_of_torch", "meta")
class DefaultDevice(Offset):
    def offset(self) -> float:
        return float(torch.ones(()))


# ---- scikit-learn
@breaks("score_is_psnr", "the score of images")
class Minimised(Descent):
    def score(self, X_true: Any, Y_meas: Any) -> float:
        return -super().score(X_true, Y_meas)


@breaks("grid_search", "score")
class Scoreless(Descent):
    @property
    def score(self) -> Any:
        raise AttributeError("score")


@breaks("grid_search", "by hand")
class ScoresPerSample(Descent):
    def score(self, X_true: Any, Y_meas: Any) -> float:
        return super().score(X_true, Y_meas) + np.random.default_rng().normal()


@breaks("regressor", "not fitted")
class StartsAgain(Descent):
    def as_regressor(self) -> Any:
        return ReconstructionRegressor(clone(self))


@breaks("regressor", "differs by")
class WrongOrder(Descent):
    def as_regressor(self) -> Any:
        class Same(ReconstructionRegressor):
            def predict(self, X: Any) -> Any:
                return 1.01 * super().predict(X)

        return Same.of(self)


# ---- invariances
@breaks("units", "images and data times 0.001 change the image")
class HasUnits(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat + 1e-3


@breaks("units_of_operator", "operator and data times 0.001 change the image")
class FixedStep(Descent):
    def _step(self, A: LinearMap, gradient: Tensor) -> Tensor:
        return 0.5 * gradient


@breaks("form", "written as a product")
class WeighsPixels(Descent):
    """Takes the weights that an operator begins with for a sensitivity, whatever undoes them."""

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        first = getattr(self.operator_, "args", (None,))[-1]
        weights = abs(first.diag).reshape(A.dims) if isinstance(first, pylops.Diagonal) else 1.0
        return Solution.direct(super()._reconstruct(A, data).x / torch.as_tensor(weights))


@breaks("form", "with its rows in another order")
class WeighsRows(Descent):
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        weights = torch.linspace(0, 1, data.shape[1], dtype=data.real.dtype).reshape(
            -1, *[1] * (data.ndim - 2)
        )
        return super()._reconstruct(A, weights * data)


@breaks("form", "stacked from two halves")
class KnowsKinds(Descent):
    def _step(self, A: LinearMap, gradient: Tensor) -> Tensor:
        return super()._step(A, gradient) * (0.9 if isinstance(self.operator_, pylops.VStack) else 1.0)


@breaks("level", "a level of 1 changes the rest of the image")
class Shrinks(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return 0.9 * X_hat


@breaks("phase", "a phase changes the reconstruction")
class PrefersReal(Changed):
    def changed(self, X_hat: Any, Y_meas: Any) -> Any:
        return X_hat if np.isrealobj(X_hat) else X_hat.real + 0.9j * X_hat.imag


# ---- reports
class Gradual(Descent):
    """As many steps as it takes until they are short."""

    max_steps: int = parameter(default=100, allowed=Integer(ge=1), doc="Largest number of steps.")
    tol: float = parameter(default=1e-2, allowed=Real(ge=0), doc="Length of the last step.")

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        f = LeastSquares(A, data) + 0.3 * A.norm() ** 2 * SquaredNorm()
        return gradient_descent(f, torch.zeros_like(A.adjoint(data)), max_steps=self.max_steps, tol=self.tol)


@breaks("converged_is_true", "called converged at tol=0.0001 move by")
class Hasty(Gradual):
    """Takes a short step for the last one."""

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        x = torch.zeros_like(A.adjoint(data))
        for _ in range(round(-math.log10(self.tol))):
            x = x + 0.1 * self._step(A, A.adjoint(data - A(x)))
        return Solution.direct(x)


@breaks("weights_that_are_not_numbers", "4 images are called converged")
class Certain(LearnedGain):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        X_hat, info = super().predict(Y_meas, return_info=True)
        info.converged[:] = True
        return (X_hat, info) if return_info else X_hat


@breaks("weights_that_are_not_numbers", "nothing is said")
class Hushed(LearnedGain):
    def predict(self, Y_meas: Any, *, return_info: bool = False) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return super().predict(Y_meas, return_info=return_info)


def expect_found(estimator: Any, name: str, says: str) -> None:
    check = named(estimator, name)
    with pytest.raises(AssertionError, match=f"(?s){says}") as caught:
        check()
    assert str(caught.value).startswith(f"{name} ({type(estimator).__name__}): ")


def named(estimator: Any, name: str) -> Check:
    return next(check for check in reconstructor_checks(estimator) if check.name == name)


@pytest.mark.draws_globally  # some of the broken ones do
@pytest.mark.parametrize(
    ("name", "make", "says"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_promise_is_found_and_named(name: str, make: Make, says: str) -> None:
    expect_found(make(), name, says)


def test_an_estimator_that_stops_in_time_passes() -> None:
    named(Gradual(), "converged_is_true")()


def test_every_check_has_its_broken_estimator() -> None:
    checked = {check.name for estimator in (*SOUND, Gradual()) for check in reconstructor_checks(estimator)}
    assert checked - {name for name, *_ in BROKEN} <= {"missing_device", "cuda"}


def test_public_functions_tell_their_promises_in_the_first_line() -> None:
    assert inspect.getdoc(check_reconstructor).startswith("Check that an estimator keeps the public contract")
    check_reconstructor(Tikhonov(max_steps=50))

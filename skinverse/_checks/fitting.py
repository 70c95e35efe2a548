"""Promises on ``fit``: what it returns, what it leaves alone, and what is left when it fails."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pylops
from sklearn.exceptions import NotFittedError

from skinverse._checks._expect import expect, expect_close, expect_identical, expect_refusal
from skinverse._checks._promise import promise
from skinverse._checks._subject import Problem, Subject, optimizer_steps
from skinverse._hashing import digest
from skinverse.operators import gaussian_blur

# Learning rate with which a training goes nowhere, and the change of a reconstruction that is nothing.
_VANISHING_LR, _NOTHING = 1e-12, 1e-3


@promise()
def fit_returns_self(subject: Subject) -> None:
    """``fit`` returns the estimator and leaves its parameters as they are."""
    estimator = subject.new()
    given, before = _parameters(estimator), _content(estimator)
    expect(estimator.fit(*subject.problem[1:]) is estimator, "fit does not return the estimator")
    changed = [name for name, value in _parameters(estimator).items() if value is not given[name]]
    expect(not changed, f"fit replaces the parameter {', '.join(changed)}")
    expect(_content(estimator) == before, "fit changes what is inside of a parameter")


def _parameters(estimator: Any) -> dict[str, Any]:
    """All parameters; those of an operator are told anew each time, and are the same where it is."""
    params = estimator.get_params(deep=True)
    return {name: value for name, value in params.items() if not name.startswith("operator__")}


@promise()
def fitted_names(subject: Subject) -> None:
    """What ``fit`` finds stands in attributes whose names end in an underscore."""
    found = vars(subject.fitted).keys() - vars(subject.new()).keys()
    wrong = sorted(name for name in found if not name.endswith("_"))
    expect(bool(found), "fit sets no attribute: scikit-learn takes the estimator for unfitted")
    expect(not wrong, f"fit sets {', '.join(wrong)}")


@promise()
def not_fitted(subject: Subject) -> None:
    """``predict`` and ``score`` before ``fit`` raise scikit-learn's NotFittedError."""
    problem = subject.problem
    for name, arrays in {"predict": problem[2:], "score": problem[1:]}.items():
        try:
            getattr(subject.new(), name)(*arrays)
        except NotFittedError:
            continue
        except Exception as error:
            raise AssertionError(f"{name} before fit ends in {type(error).__name__}: {error}") from error
        raise AssertionError(f"{name} before fit is accepted")


@promise()
def better_than_nothing(subject: Subject) -> None:
    """Reconstructions are nearer to the true images than zero is."""
    images = subject.problem.images
    error = np.linalg.norm(subject.reconstruction - images) / np.linalg.norm(images)
    expect(bool(error < 0.95), f"the error of the reconstructions is {error:.2f} of the images' norm")


@promise()
def pairs(subject: Subject) -> None:
    """Images and measurements of different numbers are taken as no pairs, or refused in one sentence."""
    _, images, data = subject.problem
    if subject.needs_pairs:
        what = f"{len(images)} images with {len(data) - 1} measurements"
        fit = partial(subject.new().fit, images, data[:-1])
        expect_refusal(fit, what, naming=str(len(data) - 1), kinds=ValueError)
    else:
        found = subject.new().fit(images, data[:-1]).predict(data)
        expect(found.shape == images.shape, f"a fit to no pairs reconstructs shape {found.shape}")


@promise(made_by=lambda subject: subject.parameters.get("operator") is None)
def wrong_way_round(subject: Subject) -> None:
    """``fit(Y_meas, X_true)`` of pairs is noticed where the shapes agree; the sentence names as_regressor."""
    if not subject.needs_pairs:
        return
    blur = gaussian_blur((12, 10), 1.0)
    images = np.random.default_rng(0).normal(size=(5, 12, 10))
    images = images**2 if subject.counted else images
    data = np.stack([blur @ x for x in images])
    fit = partial(subject.new(Problem(blur, images, data)).fit, data, images)
    expect_refusal(fit, "fit(Y_meas, X_true)", naming="as_regressor", kinds=ValueError)


@promise()
def failed_fit(subject: Subject) -> None:
    """A fit that fails leaves the estimator as it was, and its exception reaches the caller."""
    _, images, data = subject.problem
    wrong, expected = np.full_like(data, np.nan), subject.reconstruction
    small_steps: dict[str, Any] = dict.fromkeys(subject.nested("batch_size"), 1)
    fitted = subject.copy(**subject.those_of(warm_start=True), **small_steps)
    for model, error in ((subject.new(**small_steps), MemoryError), (fitted, KeyboardInterrupt)):
        _expect_untouched(model, lambda model: model.fit(images, wrong), Exception)
        _expect_untouched(model, _interruption(subject, error), error)
    expect_identical(fitted.predict(data), expected, "after failed fits predict differs by {}")


@promise(made_by=lambda subject: subject.has("warm_start") and bool(subject.nested("lr")))
def warm_start(subject: Subject) -> None:
    """With ``warm_start`` the first fit is as any, and a second one goes on from its weights."""
    _, images, data = subject.problem
    model = subject.fit(warm_start=True)
    first = model.predict(data)
    expect_identical(first, subject.reconstruction, "the first fit with warm_start=True differs by {}")
    model.set_params(**dict.fromkeys(subject.nested("lr"), _VANISHING_LR)).fit(images, data)
    expect_close(
        model.predict(data),
        first,
        _NOTHING,
        "a second fit with a vanishing learning rate leads away from the first one by {}",
    )


@promise(made_by=lambda subject: subject.has("memory"))
def memory(subject: Subject) -> None:
    """With ``memory`` the same training is done once, and gives the same reconstructions."""
    data = subject.problem.data
    with tempfile.TemporaryDirectory() as folder:
        first = subject.fit(memory=folder).predict(data)
        with optimizer_steps() as steps:
            second = subject.fit(memory=folder).predict(data)
    expect(not steps, f"the same training is done again, in {len(steps)} steps")
    expect_identical(first, subject.reconstruction, "a training with memory=... differs by {}")
    expect_identical(second, first, "a training out of the memory differs by {}")


# ---------------------------------------------------------------------- failures
class _Failing(pylops.LinearOperator):
    """An operator that fails after it has been applied so many times."""

    def __init__(self, operator: pylops.LinearOperator, last: int, error: type[BaseException]) -> None:
        super().__init__(dtype=operator.dtype, dims=operator.dims, dimsd=operator.dimsd)
        self.inner, self.last, self.error, self.n_used = operator, last, error, 0

    def _apply(self, apply: Callable[[Any], Any], x: Any) -> Any:
        self.n_used += 1
        if self.n_used == self.last:
            raise self.error("out of nowhere, from the operator")
        return apply(x)

    def _matvec(self, x: Any) -> Any:
        return self._apply(self.inner.matvec, x)

    def _rmatvec(self, y: Any) -> Any:
        return self._apply(self.inner.rmatvec, y)


def _interruption(subject: Subject, error: type[BaseException]) -> Callable[[Any], Any]:
    """A fit into which an error comes: before the second step of a training, or from the operator at last."""
    operator, images, data = subject.problem
    used = _Failing(operator, 0, error)
    if not subject.trains:
        subject.new().set_params(operator=used).fit(images, data)

    def fit(model: Any) -> None:
        if subject.trains:
            with optimizer_steps(2 if subject.nested("batch_size") else 1, error):
                model.fit(images, data)
        else:
            model.set_params(operator=_Failing(operator, used.n_used, error)).fit(images, data)

    return fit


def _expect_untouched(model: Any, fit: Callable[[Any], Any], error: type[BaseException]) -> None:
    """Expect an error, and after it the very same attributes."""
    operator, before = model.operator, dict(vars(model))
    try:
        fit(model)
    except error:
        pass
    except BaseException as other:
        raise AssertionError(f"{error.__name__} reaches the caller as {type(other).__name__}") from other
    else:
        raise AssertionError(f"fit returns as if there had been no {error.__name__}")
    after = vars(model.set_params(operator=operator))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) is not after.get(name))
    expect(not changed, f"a fit that ended in {error.__name__} has changed {', '.join(changed)}")


def _content(estimator: Any) -> str:
    return digest(estimator.get_params(deep=False), opaque="identity")

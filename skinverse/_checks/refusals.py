"""Promises on what is refused: in one sentence that names the argument."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import scipy.sparse
import torch

from skinverse._checks._expect import expect, expect_refusal
from skinverse._checks._promise import promise
from skinverse._checks._subject import Array, Problem, Subject
from skinverse._parameters import ParameterError, declared

# Values of which nearly every parameter refuses one.
_POOL: tuple[Any, ...] = (-1, 0, float("nan"), "no such option", 2.5, object())


def _with_one(a: Array, value: float) -> Array:
    """The array with another value in place of its largest, which an operator surely measures."""
    a = a.copy()
    a.flat[np.abs(a).argmax()] = value
    return a


_Wrong = tuple[Callable[[Array], Any], type[Exception] | tuple[type[Exception], ...]]
_BAD: dict[str, _Wrong] = {
    "an array with NaN": (lambda a: _with_one(a, np.nan), ValueError),
    "an array with inf": (lambda a: _with_one(a, np.inf), ValueError),
    "a transposed array": (lambda a: a.T.copy(), ValueError),
    "an array that lacks a row of values": (lambda a: a[..., :-1], ValueError),
    "the right number of values in another shape": (lambda a: a[:, None], ValueError),
    "an empty array": (lambda a: a[:0], ValueError),
    "one sample without batch axis": (lambda a: a[0], ValueError),
    "text": (lambda a: a.astype(str), TypeError),
    "a list of unequal lengths": (lambda _: [[1.0], [1.0, 2.0]], (TypeError, ValueError)),
    "a sparse matrix": (lambda a: scipy.sparse.csr_array(a.reshape(len(a), -1)), TypeError),
    "a sparse tensor": (lambda a: torch.from_numpy(a).to_sparse(), TypeError),
    "a tensor without values": (lambda a: torch.from_numpy(a).to("meta"), TypeError),
    "dates": (lambda a: np.full(a.shape, np.datetime64("2000-01-01")), TypeError),
    "records": (lambda a: np.zeros(a.shape, [("value", float)]), TypeError),
    "objects": (lambda a: np.full(a.shape, object()), TypeError),
    "a dictionary": (lambda a: {"data": a}, TypeError),
    "a number": (lambda _: 1.0, ValueError),
    "one row of values too many": (lambda a: np.concatenate([a, a[..., :1]], -1), ValueError),
    "a set of the right arrays": (lambda a: np.stack([a, a]), ValueError),
    "masked values only": (lambda a: np.ma.masked_all_like(a), ValueError),
}
_NONE: _Wrong = (lambda _: None, (TypeError, ValueError))


@promise()
def bad_measurements(subject: Subject) -> None:
    """``predict`` refuses measurements that cannot be right in one sentence that names ``Y_meas``."""
    model, data = subject.fitted, subject.problem.data
    for what, (spoil, kinds) in {**_BAD, "None": _NONE}.items():
        expect_refusal(partial(model.predict, spoil(data)), what, naming="Y_meas", kinds=kinds)


@promise(made_by=lambda subject: not subject.required)
def lone_image(subject: Subject) -> None:
    """Without an operator, one image without batch axis is refused, not taken for a set of signals."""
    problem = subject.denoising(subject.images(3, (8, 8)))
    models = [subject.fit(problem)] if subject.learns else [subject.fit(problem), subject.new(problem).fit()]
    for model in models:
        expect_refusal(
            partial(model.predict, np.ones((9, 9))), "one image", naming="Y_meas[None]", kinds=ValueError
        )


@promise()
def bad_images(subject: Subject) -> None:
    """``fit`` and ``score`` refuse images that cannot be right in one sentence that names ``X_true``."""
    _, images, data = subject.problem
    for what, (spoil, kinds) in _BAD.items():
        wrong = spoil(images)
        for call, where in ((subject.new().fit, "fit"), (subject.fitted.score, "score")):
            expect_refusal(partial(call, wrong, data), f"{what} in {where}", naming="X_true", kinds=kinds)


@promise()
def bad_operators(subject: Subject) -> None:
    """An operator that is none of pylops, or has a wrong adjoint, is refused in a sentence that says so."""
    _, images, data = subject.problem
    matrix = np.eye(int(np.prod(data.shape[1:])), int(np.prod(images.shape[1:])))
    expect_refusal(
        partial(subject.new(Problem(matrix, images, data)).fit, images, data),
        "a matrix as operator",
        naming="LinearOperator",
        kinds=TypeError,
    )
    wrong = _WrongAdjoint(subject.problem.operator)
    for model in (subject.new(), subject.copy()):
        model.set_params(operator=wrong)
        fit = partial(model.fit, images, data)
        expect_refusal(fit, "a wrong adjoint", naming="adjoint", kinds=ValueError)


@promise(made_by=lambda subject: not subject.required)
def forgotten_operator(subject: Subject) -> None:
    """Images and measurements of different sizes without an operator are refused, or learned from."""
    images, data = subject.images(3, (4,)), subject.images(3, (5,))
    model = subject.new(Problem(None, images, data))
    try:
        model.fit(images, data)
    except Exception:
        fit = partial(model.fit, images, data)
        expect_refusal(fit, "a forgotten operator", naming="operator=None", kinds=ValueError)
    else:
        shape = model.predict(data).shape
        expect(shape == images.shape, f"images of shape {images.shape} are reconstructed in shape {shape}")


@promise(made_by=lambda subject: bool(list(_refused_values(subject.estimator))))
def parameters_checked(subject: Subject) -> None:
    """``fit``, ``predict``, ``score`` and ``save`` refuse a parameter that ``set_params`` has made wrong."""
    _, images, data = subject.problem
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[Any], Any]] = {
            "fit": lambda model: model.fit(images, data),
            "predict": lambda model: model.predict(data),
            "score": lambda model: model.score(images, data),
            "save": lambda model: model.save(Path(folder) / "model.skinverse"),
        }
        for name, value in _refused_values(subject.estimator):
            for method, call in calls.items():
                what = f"{name}={value!r} in {method}"
                refused = partial(call, subject.copy(**{name: value}))
                expect_refusal(refused, what, naming=f"{name}:", kinds=ParameterError)


@promise(made_by=lambda subject: subject.has("device") and not torch.cuda.is_available())
def missing_device(subject: Subject) -> None:
    """A device that is not there is refused in a sentence that names the parameter."""
    predict = partial(subject.copy(device="cuda").predict, subject.problem.data)
    expect_refusal(predict, 'device="cuda"', naming="device", kinds=ValueError)


class _WrongAdjoint(pylops.LinearOperator):
    """Another operator with one and a half times its adjoint."""

    def __init__(self, operator: pylops.LinearOperator) -> None:
        super().__init__(dtype=operator.dtype, dims=operator.dims, dimsd=operator.dimsd)
        self.inner = operator

    def _matvec(self, x: Any) -> Any:
        return self.inner.matvec(x)

    def _rmatvec(self, y: Any) -> Any:
        return 1.5 * self.inner.rmatvec(y)


def _refused_values(estimator: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """For every declared parameter, also of nested objects, a value that it cannot have."""
    for name, field in declared(type(estimator)):
        allowed, value = field.metadata["allowed"], getattr(estimator, name)
        wrong = [] if allowed is None else [bad for bad in _POOL if not allowed.allows(bad)]
        if wrong:
            yield prefix + name, wrong[0]
        yield from _refused_values(value, f"{prefix}{name}__")

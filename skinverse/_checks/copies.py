"""Promises on what a fitted estimator is carried over to: other processes, files, and other operators."""

from __future__ import annotations

import pickle
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pylops

from skinverse._checks._expect import expect, expect_close, expect_identical, expect_refusal
from skinverse._checks._promise import promise
from skinverse._checks._subject import Subject
from skinverse.persistence import load

# Shapes of images to denoise: one to three axes, single pixels, odd sizes.
_SHAPES = ((8, 8), (5, 7), (1, 1), (1, 6), (2, 4, 4))
_ROUNDING = 1e-6


@promise()
def pickled(subject: Subject) -> None:
    """A fitted estimator survives pickle bit by bit."""
    twin = pickle.loads(pickle.dumps(subject.fitted))
    found = twin.predict(subject.problem.data)
    expect_identical(found, subject.reconstruction, "pickle changes the result by {}")


@promise()
def saved(subject: Subject) -> None:
    """A fitted estimator survives ``save`` and ``skinverse.load`` bit by bit, and so does its regressor."""
    data = subject.problem.data
    twin = _saved_and_loaded(subject.fitted, subject.kind)
    expect(type(twin) is subject.kind, f"the file holds a {type(twin).__name__}")
    expect_identical(twin.predict(data), subject.reconstruction, "save and load change the result by {}")
    regressor = _saved_and_loaded(subject.fitted.as_regressor(), subject.kind)
    expect_identical(
        regressor.predict(data), subject.reconstruction, "as_regressor, save and load change the result by {}"
    )


@promise()
def other_operator(subject: Subject) -> None:
    """``set_params(operator=...)`` after ``fit`` reconstructs under the other operator."""
    operator, _, data = subject.problem
    sign, order = 1 if subject.counted else -1, np.arange(operator.shape[0])[::-1]  # counts have no sign
    other = sign * (pylops.Restriction(operator.shape[0], order, dtype=operator.dtype) @ operator)
    found = subject.copy(operator=other).predict(sign * data.reshape(len(data), -1)[:, order])
    told = "the same image seen by another operator differs by {}"
    expect_close(found, subject.reconstruction, _ROUNDING, told)


@promise()
def other_sizes(subject: Subject) -> None:
    """What was fitted to images of one size reconstructs those of other sizes."""
    model = subject.fit(subject.denoising(subject.images(3, (8, 8))))
    for shape in _SHAPES:
        data = subject.images(3, shape)
        if subject.required:
            model.set_params(operator=pylops.Identity(shape))
        if len(shape) == 3:
            model.set_params(**subject.those_of(channel_axis=0))
        found = model.predict(data)
        expect(found.shape == data.shape, f"data of shape {data.shape} are denoised in shape {found.shape}")
    operator = pylops.Identity((6, 9))
    if subject.parameters.get("operator") is None:
        operator = subject.mixing((6, 9), 30)
    found = subject.copy(operator=operator).predict(subject.images(2, operator.dimsd))
    expect(found.shape == (2, 6, 9), f"images of shape (6, 9) are reconstructed in shape {found.shape[1:]}")


@promise()
def sizes_told(subject: Subject) -> None:
    """What is tied to images of one size says so in one sentence with both sizes."""
    dims = tuple(subject.problem.operator.dims)
    predict = partial(subject.copy(operator=pylops.Identity((6, 9))).predict, np.zeros((2, 6, 9)))
    try:
        predict()
    except Exception:
        for size in (dims, (6, 9)):
            what = f"an operator of images (6, 9) after a fit to {dims}"
            expect_refusal(predict, what, naming=str(size), kinds=ValueError)


def _saved_and_loaded(estimator: Any, kind: type) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.skinverse"
        estimator.save(path)
        return load(path, classes=[kind])

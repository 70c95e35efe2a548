"""Promises on what an estimator leaves alone: itself in ``predict``, random generators, defaults of torch."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from skinverse._checks._expect import expect, expect_identical
from skinverse._checks._promise import promise
from skinverse._checks._subject import Subject
from skinverse._hashing import digest

# Seconds after which threads take turns: often enough to meet in a fit of some milliseconds.
_TURNS = 1e-5


@promise()
def predict_is_pure(subject: Subject) -> None:
    """``predict`` changes neither the estimator nor the data, and gives the same again."""
    model, data = subject.copy(), subject.problem.data.copy()
    before = digest(vars(model), opaque="identity")
    first = model.predict(data)
    expect(digest(vars(model), opaque="identity") == before, "predict changes the estimator")
    expect(np.array_equal(data, subject.problem.data), "predict changes the data")
    expect_identical(model.predict(data), first, "a second predict differs by {}")


@promise()
def repeatable(subject: Subject) -> None:
    """The same fit again, of the same estimator, gives the same reconstructions bit by bit."""
    _, images, data = subject.problem
    found = subject.copy().fit(images, data).predict(data)
    expect_identical(found, subject.reconstruction, "the same fit again changes the result by {}")


@promise()
def generators_left_alone(subject: Subject) -> None:
    """The global random generators are neither read nor moved, with ``random_state=None`` neither."""
    data, expected = subject.problem.data, subject.reconstruction
    with _restored_generators():
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        before = _states()
        found = subject.fit().predict(data)
        expect(_states() == before, "fit and predict move a global generator")
        expect_identical(found, expected, "another state of the global generators changes the result by {}")
        if subject.has("random_state"):
            subject.fit(random_state=None).predict(data)
            expect(_states() == before, "with random_state=None fit and predict move a global generator")


@promise()
def threads(subject: Subject) -> None:
    """Fits in two threads give what they give one after the other, and leave random numbers to the caller."""
    data, expected = subject.problem.data, subject.reconstruction
    with _restored_generators(), _frequent_turns(), ThreadPoolExecutor(2) as pool:
        generators = np.random.RandomState(), torch.Generator()  # noqa: NPY002
        generators[0].set_state(np.random.get_state())  # noqa: NPY002
        generators[1].set_state(torch.get_rng_state())
        fits = [pool.submit(lambda: subject.fit().predict(data)) for _ in range(2)]
        drawn = [_draw()]
        while not all(fit.done() for fit in fits):
            time.sleep(1e-4)
            drawn.append(_draw())
    for fit in fits:
        expect_identical(fit.result(), expected, "a fit in another thread changes the result by {}")
    n_others = sum(numbers != _draw(*generators) for numbers in drawn)
    expect(n_others == 0, f"{n_others} of {len(drawn)} numbers drawn beside the fits are not the caller's")


@promise()
def defaults_of_torch(subject: Subject) -> None:
    """A default dtype or device that the user has set in torch changes nothing."""
    data, expected = subject.problem.data, subject.reconstruction
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = subject.fit().predict(data)
    finally:
        torch.set_default_dtype(before)
    expect_identical(found, expected, "torch.set_default_dtype(torch.float64) changes the result by {}")
    with torch.device("meta"):  # as torch.set_default_device, but local
        found = subject.fit().predict(data)
    expect_identical(found, expected, 'torch.set_default_device("meta") changes the result by {}')


# ---------------------------------------------------------------------- generators of the user
def _states() -> tuple[Any, ...]:
    """States of the global generators of Python, NumPy and torch."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), state[1].tobytes(), state[2:], torch.get_rng_state().numpy().tobytes()


@contextmanager
def _restored_generators() -> Iterator[None]:
    """Whatever happens to the global generators, leave them as they were."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torchs)


def _draw(numpy: Any = np.random, torchs: torch.Generator | None = None) -> tuple[float, float]:
    """A number of each generator, by default of the global ones."""
    return float(numpy.random_sample()), float(torch.rand((), generator=torchs))


@contextmanager
def _frequent_turns() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(_TURNS)
        yield
    finally:
        sys.setswitchinterval(before)

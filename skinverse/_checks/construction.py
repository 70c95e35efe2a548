"""Promises on constructors, parameters and clones: what scikit-learn's tools rest on."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from sklearn.base import clone

from skinverse._checks._expect import expect, expect_refusal
from skinverse._checks._promise import promise
from skinverse._checks._subject import Subject


@promise(made_by=lambda subject: not subject.required)
def default_constructible(subject: Subject) -> None:
    """The estimator can be made without arguments."""
    try:
        subject.kind()
    except Exception as error:
        raise AssertionError(f"{subject.kind.__name__}() raises {type(error).__name__}: {error}") from error


@promise()
def parameters_stored(subject: Subject) -> None:
    """The constructor stores its arguments untouched, under their own names, and does not look at them."""
    given = {name: object() for name in inspect.signature(subject.kind).parameters}
    stored = subject.kind(**given).get_params(deep=False)
    expect(
        stored.keys() == given.keys(), f"get_params tells {sorted(stored)} of the arguments {sorted(given)}"
    )
    changed = [name for name, value in given.items() if stored[name] is not value]
    expect(not changed, f"the constructor changes {', '.join(changed)}")


@promise()
def unknown_argument(subject: Subject) -> None:
    """An argument that the constructor does not know is a TypeError that names it."""
    given = subject.estimator.get_params(deep=False)
    expect_refusal(
        lambda: subject.kind(**given, no_such_parameter=1),
        "an unknown argument",
        naming="no_such_parameter",
        kinds=TypeError,
    )


@promise()
def parameters_round_trip(subject: Subject) -> None:
    """``set_params(**get_params())`` changes nothing, and refuses a name that it does not know."""
    estimator = clone(subject.estimator)
    given = estimator.get_params(deep=True)
    expect(estimator.set_params(**given) is estimator, "set_params does not return the estimator")
    _expect_same(estimator.get_params(deep=True), given, "set_params(**get_params()) changes")
    try:
        estimator.set_params(no_such_parameter=1)
    except ValueError:
        return
    raise AssertionError("set_params accepts an unknown name")


@promise()
def clones(subject: Subject) -> None:
    """A clone has the parameters and nothing that was fitted; it shares the operator."""
    model = subject.fitted
    twin = clone(model)
    given = model.get_params(deep=False)
    expect(twin.operator is model.operator, "a clone copies the operator, which may be huge")
    expect(
        twin.get_params(deep=False).keys() == given.keys(), "a clone has other parameters than the original"
    )
    plain = {name: value for name, value in given.items() if isinstance(value, (int, float, str, tuple))}
    _expect_same({name: getattr(twin, name) for name in plain}, plain, "cloning changes")
    fitted = sorted(name for name in vars(twin) if name.endswith("_") and not name.startswith("_"))
    expect(not fitted, f"a clone of a fitted estimator keeps {', '.join(fitted)}")


@promise()
def representation(subject: Subject) -> None:
    """``repr`` names the class, and is that of a clone too."""
    told = repr(subject.estimator)
    expect(told.startswith(f"{subject.kind.__name__}("), f"repr does not name the class: {told[:80]!r}")
    expect(repr(clone(subject.estimator)) == told, "repr of a clone differs")


def _expect_same(found: dict[str, Any], given: dict[str, Any], what: str) -> None:
    """Expect the very same objects, or for numbers, arrays and text equal ones."""
    for name, value in given.items():
        equal = isinstance(value, (int, float, str, tuple, np.ndarray)) and np.array_equal(found[name], value)
        expect(found[name] is value or equal, f"{what} {name} from {value!r} to {found[name]!r}")

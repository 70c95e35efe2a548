"""What a check is made of: a promise in one sentence, and a function that tries to break it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from skinverse._checks._subject import Subject

Test = Callable[[Subject], None]


@dataclass(frozen=True)
class Promise:
    """A promise of the contract: its name, its sentence, its test, and who makes it."""

    name: str
    sentence: str
    test: Test
    made_by: Callable[[Subject], bool]


# All promises, in the order in which they are checked.
PROMISES: list[Promise] = []


def promise(made_by: Callable[[Subject], bool] = lambda _: True) -> Callable[[Test], Test]:
    """Add a function to the checks; its name and docstring are those of the promise.

    Parameters
    ----------
    made_by : callable
        Whether an estimator makes the promise, told by its parameters: what has no ``warm_start`` does not
        promise to continue a training.

    Returns
    -------
    callable
        The decorator.
    """

    def add(test: Test) -> Test:
        PROMISES.append(Promise(test.__name__, inspect.getdoc(test) or test.__name__, test, made_by))
        return test

    return add

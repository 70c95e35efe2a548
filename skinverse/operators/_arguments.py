"""Kinds of values that a stored description may give to the constructor of an operator."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pylops
import scipy.sparse

# Values of one image or its data: a volume of 1290 pixels along each side.
MAX_VALUES = 2**31
_MAX_AXES, _MAX_OPERATORS, _MAX_LETTERS = 8, 2**16, 200


class Kind(NamedTuple):
    """What an argument is expected to be, in words and as a test that neither raises nor allocates."""

    expected: str
    fits: Callable[[Any], bool]


def told(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, int) and abs(value) > 10**18:
        return "a very large number"
    return reprlib.repr(value) if isinstance(value, (int, float, complex, str)) else type(value).__name__


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any, kinds: Any = (int, float, np.integer, np.floating)) -> bool:
    """A finite number; integers beyond the range of floats are not."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(abs(complex(value)))
    except OverflowError:
        return False


def whole(low: int, high: int = MAX_VALUES) -> Kind:
    """A whole number between two others, which it may equal."""
    return Kind(
        f"a whole number from {low} to {high}", lambda value: _is_whole(value) and low <= value <= high
    )


def choice(*values: Any) -> Kind:
    """One of a few constants."""
    names = ", ".join(map(repr, values))
    return Kind(f"one of {names}", lambda value: any(type(value) is type(v) and value == v for v in values))


def optional(kind: Kind) -> Kind:
    """None, or a value of another kind."""
    return Kind(f"None or {kind.expected}", lambda value: value is None or kind.fits(value))


def either(kind: Kind, other: Kind) -> Kind:
    """A value of one of two kinds."""
    return Kind(f"{kind.expected} or {other.expected}", lambda value: kind.fits(value) or other.fits(value))


def several(kind: Kind, most: int = _MAX_AXES) -> Kind:
    """A list or tuple of values of one kind."""
    return Kind(
        f"a list of at most {most} values, each {kind.expected}",
        lambda value: isinstance(value, (list, tuple)) and len(value) <= most and all(map(kind.fits, value)),
    )


def array(kinds: str, ndim: int | None = None) -> Kind:
    """An array in the file, of these kinds of numbers."""
    axes = "" if ndim is None else f" with {ndim} axes"
    return Kind(
        f"an array{axes} of numbers of the kinds {kinds}",
        lambda value: (
            isinstance(value, np.ndarray) and value.dtype.kind in kinds and ndim in (None, value.ndim)
        ),
    )


def _is_shape(value: Any) -> bool:
    sizes = isinstance(value, (list, tuple)) and 0 < len(value) <= _MAX_AXES
    return sizes and all(_is_whole(n) and n > 0 for n in value) and math.prod(map(int, value)) <= MAX_VALUES


def _is_matrix(value: Any) -> bool:
    stored = isinstance(value, np.ndarray) or scipy.sparse.issparse(value)
    return stored and value.ndim == 2 and value.dtype.kind in NUMBERS


def _is_operator(value: Any) -> bool:
    return isinstance(value, pylops.LinearOperator)


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and (_is_settings(part) or _is_plain(part)) for key, part in value.items()
    )


def _is_plain(value: Any) -> bool:
    """A word, a finite number, or an array or list of such numbers."""
    if isinstance(value, str):
        return True
    if not isinstance(value, (bool, int, float, list, tuple, np.ndarray, np.generic)):
        return False
    array = np.asarray(value)
    return array.dtype.kind in "biuf" and bool(np.isfinite(array).all())


NUMBERS = "biufc"
AXIS = whole(-_MAX_AXES, _MAX_AXES - 1)
BOOLEAN = Kind("True or False", lambda value: isinstance(value, (bool, np.bool_)))
DTYPE = Kind("a NumPy dtype of numbers", lambda value: isinstance(value, np.dtype) and value.kind in NUMBERS)
MATRIX = Kind("a matrix of numbers", _is_matrix)
NUMBER = Kind("a finite number", lambda value: _is_number(value, (int, float, complex, np.number)))
OPERATOR = Kind("an operator", _is_operator)
OPERATORS = Kind(
    f"a list of 1 to {_MAX_OPERATORS} operators",
    lambda value: (
        isinstance(value, list) and 0 < len(value) <= _MAX_OPERATORS and all(map(_is_operator, value))
    ),
)
POSITIVE = Kind("a positive number", lambda value: _is_number(value) and value > 0)
REAL = Kind("a finite real number", _is_number)
SETTINGS = Kind("a dictionary of words, finite numbers, arrays and such dictionaries", _is_settings)
SHAPE = Kind(f"up to {_MAX_AXES} positive sizes of at most {MAX_VALUES} values in all", _is_shape)
TEXT = Kind(
    f"at most {_MAX_LETTERS} letters", lambda value: isinstance(value, str) and len(value) <= _MAX_LETTERS
)

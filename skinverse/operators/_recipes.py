"""How to rebuild a pylops operator: the name of its constructor and the arguments, never its code.

A file can name an entry of :mod:`skinverse.operators._entries` and give it values of the kinds that the entry
lists. Types are matched exactly, since a user's subclass may behave differently.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from pylops import LinearOperator

from skinverse.operators import _arguments as kinds
from skinverse.operators._arguments import Kind
from skinverse.operators._entries import ENTRIES, MAX_PARTS, NAMES, Arguments

__all__ = ["MAX_BYTES", "build", "describe", "held_bytes", "rebuilt"]

# Memory of an operator besides the arrays in its file, and levels of operators inside operators. Without
# limits, a file of a few hundred bytes can ask for terabytes.
MAX_BYTES = 2**31
MAX_DEPTH = 64


def describe(operator: LinearOperator) -> tuple[str, Arguments, Arguments]:
    """Describe an operator by the name of an entry, its arguments, and attributes that all operators have.

    Arguments may again be operators or arrays.

    Raises
    ------
    ValueError
        If there is no entry for the operator's type, or :func:`build` would refuse the description.
    """
    name, arguments = _entry_of(operator)
    common = {attribute: getattr(operator, attribute) for attribute in _COMMON}
    common |= {attribute: tuple(map(int, common[attribute])) for attribute in ("dims", "dimsd")}
    common["dtype"] = np.dtype(operator.dtype)
    _check(name, arguments, common)
    return name, arguments, common


def build(name: str, arguments: Arguments, common: Arguments) -> LinearOperator:
    """Rebuild an operator from what :func:`describe` returned.

    Raises
    ------
    ValueError
        If there is no such entry, an argument is unknown, missing or not of its kind, or the operator would
        be too large. This is known before anything of that size is allocated.
    """
    _check(name, arguments, common)
    try:
        with warnings.catch_warnings():  # they were shown when the operator was made
            warnings.simplefilter("ignore")
            operator = ENTRIES[name].make(**arguments)
        _check_sizes(operator)
        operator.shape = operator.shape  # pylops refuses other sizes once the shape is fixed
        for attribute in _COMMON:
            setattr(operator, attribute, common[attribute])
    except Exception as error:  # whatever pylops and NumPy raise where arguments contradict one another
        raise ValueError(f"the operator {name} cannot be rebuilt: {' '.join(str(error).split())}") from error
    return operator


def rebuilt(operator: LinearOperator, name: str, arguments: Arguments) -> LinearOperator:
    """An operator of the same entry with other arguments, seen as images and data of the same shapes.

    Raises
    ------
    ValueError
        If an argument is not what the entry accepts. Where the size of the operator changes with it, shapes
        are those of the new one.
    """
    _check_arguments(name, arguments)
    other = ENTRIES[name].make(**arguments)
    if other.shape == operator.shape:
        for attribute in ("dims", "dimsd"):
            setattr(other, attribute, tuple(map(int, getattr(operator, attribute))))
    return other


def held_bytes(name: str, arguments: Arguments) -> int:
    """Memory of an operator itself, besides the arrays and operators among its arguments.

    :func:`build` limits each operator with all that is inside it. Whoever reads several operators from one
    file adds up these numbers before building.

    Raises
    ------
    ValueError
        If there is no such entry, or the arguments are not of its kinds.
    """
    _check_arguments(name, arguments)
    return ENTRIES[name].held(arguments)


def _entry_of(operator: LinearOperator) -> tuple[str, Arguments]:
    name = NAMES.get(type(operator))
    if name is None:
        raise ValueError(
            f"the operator {type(operator).__name__} has no recipe and cannot be stored: "
            "save it unfitted with operator=None, or pickle the estimator"
        )
    return name, ENTRIES[name].arguments(operator)


# ---------------------------------------------------------------- checks
_COMMON = {
    "dtype": kinds.DTYPE,
    "dims": kinds.SHAPE,
    "dimsd": kinds.SHAPE,
    "clinear": kinds.BOOLEAN,
    "explicit": kinds.BOOLEAN,
    "forceflat": kinds.optional(kinds.BOOLEAN),
    "name": kinds.optional(kinds.TEXT),
}


def _check(name: str, arguments: Arguments, common: Arguments) -> None:
    """Refuse what an entry does not accept, and what is too large."""
    _check_arguments(name, arguments)
    _check_kinds(name, common, _COMMON)
    cost = _cost_of(name, arguments, {})
    limits = {"levels": MAX_DEPTH, "parts": MAX_PARTS, "bytes": MAX_BYTES}
    for (unit, limit), number in zip(limits.items(), cost, strict=True):
        if number > limit:
            raise ValueError(f"the operator {name} has {number} {unit}, a stored one at most {limit}")


def _check_arguments(name: str, arguments: Arguments) -> None:
    if not isinstance(name, str) or name not in ENTRIES:
        raise ValueError(f"there is no recipe for an operator {kinds.told(name)}")
    entry = ENTRIES[name]
    _check_kinds(name, arguments, entry.kinds, entry.options)
    if not (_axes_exist(arguments) and entry.fits(arguments)):
        raise ValueError(f"the operator {name} has axes, indices or sizes that contradict one another")


def _check_kinds(name: str, values: Any, expected: dict[str, Kind], options: tuple[str, ...] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"the operator {name} needs arguments by name, got {kinds.told(values)}")
    unknown, missing = values.keys() - expected.keys(), expected.keys() - values.keys() - {*options}
    if unknown or missing:
        some = kinds.told(", ".join(sorted(map(str, unknown or missing))))
        raise ValueError(f"the operator {name} has {'unknown' if unknown else 'missing'} arguments: {some}")
    for key, value in values.items():
        if not expected[key].fits(value):
            wanted, got = expected[key].expected, kinds.told(value)
            raise ValueError(f"the operator {name} needs as {key} {wanted}, got {got}")


def _axes_exist(arguments: Arguments) -> bool:
    n = len(arguments.get("dims") or ())
    axes = arguments.get("axes", arguments.get("axis"))
    several = axes if isinstance(axes, (list, tuple)) else [] if axes is None else [axes]
    return n == 0 or all(-n <= axis < n for axis in several)


def _check_sizes(operator: LinearOperator) -> None:
    """Refuse images and data that are too large; here pylops has worked out their sizes."""
    for sizes in (operator.dims, operator.dimsd):
        if math.prod(map(int, sizes)) > kinds.MAX_VALUES:
            raise ValueError(f"its images or data have more than {kinds.MAX_VALUES} values")


class _Cost(NamedTuple):
    depth: int
    parts: int
    held: int


def _cost_of(name: str, arguments: Arguments, known: dict[int, _Cost], level: int = 1) -> _Cost:
    """The cost of an operator. What is shared counts as often as it is applied, but is examined once."""
    if level > MAX_DEPTH:
        raise ValueError(f"the operator has more than {MAX_DEPTH} levels of operators inside operators")
    inner = []
    for operator in _operators_in(arguments):
        # Sixty products of an operator with itself are a short file and 2**60 applications.
        if id(operator) not in known:
            known[id(operator)] = _cost_of(*_entry_of(operator), known, level + 1)
        inner.append(known[id(operator)])
    repeats = arguments["p"] if name == "power" else 1
    return _Cost(
        1 + max((cost.depth for cost in inner), default=0),
        1 + repeats * sum(cost.parts for cost in inner),
        ENTRIES[name].held(arguments) + sum(cost.held for cost in inner),
    )


def _operators_in(arguments: Arguments) -> Iterator[LinearOperator]:
    for value in arguments.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, LinearOperator):
                yield part

"""From a pylops expression tree to a batched torch map."""

from __future__ import annotations

import copy
import copyreg
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import pylops

from skinverse._hashing import digest
from skinverse.operators._bridge import BridgeMap
from skinverse.operators._composite import View
from skinverse.operators._map import LinearMap
from skinverse.operators._validation import check_is_operator

Rule = Callable[[Any], LinearMap | None]
_RULES: dict[type, Rule] = {}


def register(*types: type) -> Callable[[Rule], Rule]:
    """Decorate the rule that lowers operators of exactly these types, or returns None where it cannot."""

    def decorate(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return decorate


def as_torch(op: pylops.LinearOperator) -> LinearMap:
    """Lower a pylops operator to a torch map on batches, differentiable any number of times.

    Products, sums, scalings, adjoints, powers and stacks of the operators in common use become torch code.
    All other operators are applied through NumPy (through CuPy on CUDA, where it is installed), whole batches
    at once where they implement ``_matmat``, and are differentiable all the same. Precision and device follow
    the batch: float32 stays float32.

    Parameters
    ----------
    op : pylops.LinearOperator
        The operator. It is lowered once, and again after its content has changed.

    Returns
    -------
    LinearMap
        ``A(x)``: (n, *dims) -> (n, *dimsd); ``A.adjoint(y)`` back; ``A.norm()``.

    Raises
    ------
    TypeError
        If ``op`` is not a pylops operator.

    Notes
    -----
    The map is remembered beside the operator, not on it, and is freed together with it. Every call compares
    a checksum of the operator's arrays: ask for the map before a loop, not in it.

    The adjoint is that of the forward map, also where pylops 2.8 has another: ``FFT2D`` with the scipy
    engine and ``norm="none"`` or ``"1/n"``.

    Examples
    --------
    >>> import pylops, torch
    >>> from skinverse.operators import as_torch
    >>> A = as_torch(2.0 * pylops.Identity(3))
    >>> A(torch.ones(5, 3)).sum()
    tensor(30.)
    """
    check_is_operator(op, "op")
    # A checksum reads the arrays once, as one product with them does; what has no content counts by identity.
    content = digest(op, opaque="identity", quick=True)
    return _remembered(op, content) or _remember(op, content)


def lower(op: pylops.LinearOperator) -> LinearMap:
    """The map of one operator of a tree, from images of its ``dims`` to data of its ``dimsd``."""
    rule = _RULES.get(type(op), _by_itself)
    linear = rule(op) or BridgeMap(op)
    # Users may have given the operator other dims of the same product since it was made.
    dims, dimsd = tuple(op.dims), tuple(op.dimsd)
    return linear if (linear.dims, linear.dimsd) == (dims, dimsd) else View(linear, dims, dimsd)


def _by_itself(op: Any) -> LinearMap | None:
    """The map for which an operator of another type has a method, as a ``ParametricOperator`` does."""
    return op.lowered() if hasattr(op, "lowered") else None


# ---------------------------------------------------------------- maps beside their operators
class _Entry(NamedTuple):
    operator: weakref.ref[pylops.LinearOperator]  # whose end removes the entry
    content: str
    linear: Callable[[], LinearMap | None]


_ENTRIES: dict[int, _Entry] = {}  # by the id of the operator, for users' classes may define equality
_LOCK = threading.Lock()


def _remembered(op: pylops.LinearOperator, content: str) -> LinearMap | None:
    """The map of the operator, if it was lowered with this content."""
    entry = _ENTRIES.get(id(op))
    return entry.linear() if entry and entry.operator() is op and entry.content == content else None


def _remember(op: pylops.LinearOperator, content: str) -> LinearMap:
    """The map that is remembered from now on: that of another thread, if it was faster."""
    key, twin = id(op), _twin(op)
    linear = lower(twin)
    # A map that keeps the operator itself must not be kept here, or neither would ever be freed.
    kept: Callable[[], LinearMap | None] = weakref.ref(linear) if twin is op else lambda: linear
    entry = _Entry(weakref.ref(op, lambda _: _ENTRIES.pop(key, None)), content, kept)
    # Not during the lowering: at worst two threads lower the same operator, and one map is dropped.
    with _LOCK:
        earlier = _remembered(op, content)
        if earlier is None:
            _ENTRIES[key] = entry
    return earlier or linear


def _twin(op: pylops.LinearOperator) -> pylops.LinearOperator:
    """Another object with the same attributes: a map may keep it and does not thereby keep the operator.

    The operator itself is returned where another object would release or lack something, or refer to it.
    """
    kind: Any = type(op)
    attributes = vars(op)
    if kind in copyreg.dispatch_table:
        return copy.copy(op)
    slots = [slot for parent in kind.__mro__ for slot in getattr(parent, "__slots__", ())]
    owns = hasattr(kind, "__del__") or slots or kind.__new__ is not object.__new__
    if owns or any(_refers_to(op, value) for value in attributes.values()):
        return op
    twin = object.__new__(kind)
    methods = {name: v for name, v in attributes.items() if isinstance(v, MethodType) and v.__self__ is op}
    # Otherwise the very same dictionary: what an operator counts or keeps in its methods reaches its owner.
    bound = {name: MethodType(method.__func__, twin) for name, method in methods.items()}
    twin.__dict__ = attributes | bound if bound else attributes
    return twin


def _refers_to(op: pylops.LinearOperator, value: Any) -> bool:
    """Whether a function that was made with the operator keeps it."""
    if isinstance(value, partial):
        method = getattr(value.func, "__self__", None)
        return any(part is op for part in (method, *value.args, *value.keywords.values()))
    for cell in value.__closure__ or () if isinstance(value, FunctionType) else ():
        with suppress(ValueError):  # that the cell is empty
            if cell.cell_contents is op:
                return True
    return False

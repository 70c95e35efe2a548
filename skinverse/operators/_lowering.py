"""From a pylops expression tree to a batched torch map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pylops

from skinverse.operators._bridge import BridgeMap
from skinverse.operators._composite import View
from skinverse.operators._map import LinearMap

Rule = Callable[[Any], LinearMap | None]
_RULES: dict[type, Rule] = {}


def register(*types: type) -> Callable[[Rule], Rule]:
    """Decorate the function that lowers operators of exactly these types, or returns None if it cannot."""

    def decorate(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return decorate


def as_torch(op: pylops.LinearOperator) -> LinearMap:
    """Lower a pylops operator to a torch map on batches, differentiable any number of times.

    Products, sums, scalings, adjoints, powers and stacks of the operators in common use become torch code;
    what is unknown is applied image by image through NumPy (CuPy on CUDA, where installed), differentiable
    all the same. Precision and device follow the batch: float32 stays float32.

    Parameters
    ----------
    op : pylops.LinearOperator
        The operator; lowered once and remembered with it.

    Returns
    -------
    LinearMap
        ``A(x)``: (n, *dims) -> (n, *dimsd); ``A.adjoint(y)`` back; ``A.norm()``.

    Raises
    ------
    TypeError
        If ``op`` is no pylops operator.

    Notes
    -----
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
    if not isinstance(op, pylops.LinearOperator):
        raise TypeError(f"expected a pylops.LinearOperator, got {type(op).__name__}")
    cache = op.__dict__.setdefault("_skinverse", _Forgetful())
    if cache.value is None:
        cache.value = lower(op)
    return cache.value


def lower(op: pylops.LinearOperator) -> LinearMap:
    """The map of an operator in the tree, shaped as the operator says."""
    rule = _RULES.get(type(op), _own)
    found = rule(op)
    linear = BridgeMap(op) if found is None else found
    dims, dimsd = tuple(op.dims), tuple(op.dimsd)
    return linear if (linear.dims, linear.dimsd) == (dims, dimsd) else View(linear, dims, dimsd)


def _own(op: Any) -> LinearMap | None:
    """What an operator of another kind says of itself, if it does."""
    return op.lowered() if hasattr(op, "lowered") else None


class _Forgetful:
    """Holds the lowered map on its operator; empty again after pickling and copying."""

    def __init__(self) -> None:
        self.value: LinearMap | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Forgetful, ()

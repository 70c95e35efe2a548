"""One copy of an operator in a process, also of those that come back from other processes.

``cross_validate(return_estimator=True, n_jobs=2)`` and bagging send estimators to workers and get them back,
each with an operator of its own, which may be hundreds of megabytes.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pylops

from skinverse._hashing import Unhashable, digest

# Operators that were sent elsewhere, by what is cheap to compare.
_sent: dict[tuple[Any, ...], weakref.WeakSet[pylops.LinearOperator]] = {}
_lock = threading.Lock()


def note_sent(operator: pylops.LinearOperator) -> None:
    """Remember that the operator was sent to another process, without keeping it alive."""
    with _lock:
        _sent.setdefault(_outline(operator), weakref.WeakSet()).add(operator)


def local_copy(operator: pylops.LinearOperator) -> pylops.LinearOperator:
    """The operator of this process with the same content, if one was sent; else the operator itself.

    Parameters
    ----------
    operator : pylops.LinearOperator
        An operator that has come from another process or out of a pickle.

    Returns
    -------
    pylops.LinearOperator
        An operator of the same content: one that was changed since it was sent is another one.
    """
    with _lock:
        candidates = list(_sent.get(_outline(operator), ()))
    if not candidates or operator in candidates:
        return operator
    try:
        content = digest(operator)
        return next((known for known in candidates if digest(known) == content), operator)
    except Unhashable:
        return operator


def _outline(operator: pylops.LinearOperator) -> tuple[Any, ...]:
    return type(operator), tuple(operator.dims), tuple(operator.dimsd), str(operator.dtype)

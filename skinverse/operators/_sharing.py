"""One copy of an operator in a process, also of those that come back from other processes.

``cross_validate(return_estimator=True, n_jobs=2)`` and bagging send estimators to workers and get them back,
each with an operator of its own, which may be hundreds of megabytes. And a worker gets the same operator with
each of its tasks, and would lower it and compute its norm again for each of them.
"""

from __future__ import annotations

import multiprocessing
import threading
import weakref
from collections import deque
from typing import Any

import pylops

from skinverse._hashing import Unhashable, digest

# Operators that were sent elsewhere, by what is cheap to compare.
_sent: dict[tuple[Any, ...], weakref.WeakSet[pylops.LinearOperator]] = {}
# Those that came last to a process that works for another one: they are wanted again for the next task.
_received: deque[pylops.LinearOperator] = deque(maxlen=2)
_lock = threading.Lock()


def note_sent(operator: pylops.LinearOperator) -> None:
    """Remember that the operator was sent to another process, without keeping it alive."""
    with _lock:
        _sent.setdefault(_outline(operator), weakref.WeakSet()).add(operator)


def local_copy(operator: pylops.LinearOperator) -> pylops.LinearOperator:
    """The operator of this process with the same content, if it was sent or came before; else the operator.

    Parameters
    ----------
    operator : pylops.LinearOperator
        An operator that has come from another process or out of a pickle.

    Returns
    -------
    pylops.LinearOperator
        An operator of the same content: one that was changed since it was sent is another one.
    """
    outline = _outline(operator)
    with _lock:
        candidates = [*_sent.get(outline, ()), *(known for known in _received if _outline(known) == outline)]
    if any(known is operator for known in candidates):
        return operator
    local = _alike(operator, candidates)
    if local is operator and multiprocessing.parent_process() is not None:
        with _lock:
            _received.append(operator)
    return local


def _alike(operator: pylops.LinearOperator, candidates: list[pylops.LinearOperator]) -> pylops.LinearOperator:
    """The candidate of the same content, if there is one; else the operator itself."""
    if not candidates:
        return operator
    try:
        content = digest(operator)
        return next((known for known in candidates if digest(known) == content), operator)
    except Unhashable:
        return operator


def _outline(operator: pylops.LinearOperator) -> tuple[Any, ...]:
    return type(operator), tuple(operator.dims), tuple(operator.dimsd), str(operator.dtype)

"""Sentences for what is not an operator, and for sizes that are none."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
import pylops
import scipy.sparse
import scipy.sparse.linalg
import torch


def check_is_operator(operator: Any, name: str = "operator") -> None:
    """Refuse what is not a pylops operator, with the call that makes one of it.

    Parameters
    ----------
    operator : object
        The value that should be a ``pylops.LinearOperator``.
    name : str, default="operator"
        Name of the parameter, with which the message begins.

    Raises
    ------
    TypeError
        If the value is no pylops operator.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import check_is_operator
    >>> check_is_operator(np.eye(2))
    Traceback (most recent call last):
    TypeError: operator: expected a pylops.LinearOperator, got a NumPy array: use pylops.MatrixMult(A)
    """
    if isinstance(operator, pylops.LinearOperator):
        return
    if isinstance(operator, np.ndarray):
        got = "a NumPy array: use pylops.MatrixMult(A)"
    elif isinstance(operator, torch.Tensor):
        got = "a torch tensor: use pylops.MatrixMult(A.numpy())"
    elif scipy.sparse.issparse(operator):
        got = "a SciPy sparse matrix: use pylops.MatrixMult(A)"
    elif isinstance(operator, scipy.sparse.linalg.LinearOperator):
        got = "a SciPy operator: use pylops.aslinearoperator(A)"
    else:
        got = type(operator).__name__
    raise TypeError(f"{name}: expected a pylops.LinearOperator, got {got}")


def sizes(shape: Any, name: str = "dims") -> tuple[int, ...]:
    """The shape of an image; one number is that of a signal."""
    numbers = whole_numbers(shape)
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name} must be positive sizes, got {shape!r}")
    return numbers


def whole_numbers(values: Any) -> tuple[int, ...]:
    """Python integers, of one number or several; empty where one is no whole number."""
    try:
        return tuple(index(value) for value in np.atleast_1d(np.asarray(values, dtype=object)))
    except TypeError:
        return ()


def with_int_sizes(operator: pylops.LinearOperator) -> pylops.LinearOperator:
    """The operator with Python integers where pylops computed NumPy's."""
    for name in ("shape", "dims", "dimsd"):
        setattr(operator, name, tuple(map(int, getattr(operator, name))))
    return operator

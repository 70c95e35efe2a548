"""Checked arguments of functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skinverse._parameters import Constraint, ParameterError

Array = NDArray[Any]


def allowed(value: Any, name: str, constraint: Constraint) -> Any:
    """The value, if it is one that the constraint allows."""
    if not constraint.allows(value):
        raise ParameterError(f"{name}: expected {constraint.expected}, got {value!r}")
    return value


def real(array: ArrayLike, name: str, ndim: int = 1) -> Array:
    """An array of real numbers, at least in single precision, with so many axes at least."""
    if np.ma.is_masked(array):
        raise ValueError(f"{name}: expected all values, got masked ones")
    values = np.asarray(array)
    if values.dtype.kind not in "buif":
        raise TypeError(f"{name}: expected real numbers, got dtype {values.dtype}")
    if values.ndim < ndim or not values.size:
        raise ValueError(f"{name}: expected an array with at least {ndim} axes, got shape {values.shape}")
    return values.astype(np.result_type(values, np.float32), copy=False)


def finite(array: ArrayLike, name: str, ndim: int = 1) -> Array:
    """An array of finite real numbers."""
    values = real(array, name, ndim)
    n_bad = values.size - int(np.isfinite(values).sum())
    if n_bad:
        raise ValueError(f"{name}: expected finite values, got NaN or inf in {n_bad} of {values.size}")
    return values

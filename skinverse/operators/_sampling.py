"""Samples of an array that leave the others where they are, as zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pylops import LinearOperator


class Sampling(LinearOperator):
    """Keeps the values where a mask is True; those elsewhere become zero and are never read, so may be NaN.

    Parameters
    ----------
    dims : tuple of int
        Shape of an array.
    mask : ndarray of bool
        Mask of the last axes, the same along all others.
    dtype : str
        Type of the values.
    """

    def __init__(self, dims: tuple[int, ...], mask: NDArray[np.bool_], dtype: Any) -> None:
        self.mask = mask
        super().__init__(dtype=np.dtype(dtype), dims=dims, dimsd=dims)

    def _matvec(self, x: NDArray) -> NDArray:
        return np.where(self.mask, x.reshape(self.dims), 0).ravel()

    def _rmatvec(self, y: NDArray) -> NDArray:
        return self._matvec(y)

"""Operators without torch code, applied through their own arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pylops
import torch
from pylops.utils.backend import get_array_module
from torch import Tensor

from skinverse.operators._map import LinearMap

Function = Callable[[Any], Any]
_TORCH = ("float32", "float64", "complex64", "complex128")


class BridgeMap(LinearMap):
    """A pylops operator through its own ``matmat`` where it has one, else its ``matvec`` image by image.

    It receives arrays of its own type: real and imaginary part one by one where it is real.
    """

    def __init__(self, op: pylops.LinearOperator) -> None:
        super().__init__(op.dims, op.dimsd)
        self._op = op
        dtype = np.dtype(op.dtype)
        self._divides = dtype.kind != "c" and bool(op.clinear)
        # Counts, booleans and halves say what a matrix holds, not what it is applied to; some transforms that
        # are linear over the real numbers only have a complex type and real images.
        self._dtype = dtype if dtype.kind in "fc" and dtype.itemsize > 2 and op.clinear else None

    def precision(self) -> torch.dtype:
        return torch.float32 if np.dtype(self._op.dtype) in (np.float32, np.complex64) else torch.float64

    def _forward(self, x: Tensor) -> Tensor:
        return self._divided(_columns(self._op, "matvec", "matmat"), x, self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._divided(_columns(self._op, "rmatvec", "rmatmat"), y, self.dims)

    def _divided(self, function: Function, batch: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not (self._divides and batch.is_complex()):
            return self._applied(function, batch, shape)
        parts = torch.cat([batch.real, batch.imag])
        real, imaginary = self._applied(function, parts, shape).split(len(batch))
        return real + 1j * imaginary

    def _applied(self, function: Function, batch: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Apply the function to a copy of the type that it takes, and copy its results."""
        flat = batch.detach().flatten(1).resolve_conj().resolve_neg()
        if batch.is_cuda and importlib.util.find_spec("cupy"):
            import cupy

            rows = cupy.from_dlpack(flat).astype(self._dtype or _type_of(batch))
            out = torch.from_dlpack(cupy.ascontiguousarray(function(rows)))
        else:
            rows = flat.cpu().numpy().astype(self._dtype or _type_of(batch))
            out = torch.from_numpy(known_to_torch(function(rows))).to(batch.device)
        real = batch.dtype.to_real()
        return out.to(real.to_complex() if out.is_complex() else real).reshape(len(batch), *shape)


def _type_of(batch: Tensor) -> np.dtype[Any]:
    """NumPy's name of the batch's type."""
    return np.dtype(str(batch.dtype).removeprefix("torch."))


def _columns(op: pylops.LinearOperator, one: str, all_at_once: str) -> Function:
    """The operator as a function of rows, (n, size) -> (n, size): at once where it has a method for that.

    Wrappers of compiled code work in place, or return one array of their own again and again: every result
    is copied before the next image.
    """
    own, default = (getattr(kind, f"_{all_at_once}") for kind in (type(op), pylops.LinearOperator))
    if own is not default:
        apply_all = getattr(op, all_at_once)
        return lambda rows: apply_all(rows.T.copy()).T.copy()
    apply_one = getattr(op, one)

    def apply_each(rows: Any) -> Any:
        results = [apply_one(row).copy() for row in rows]
        return get_array_module(rows).stack(results)

    return apply_each


def known_to_torch(values: Any) -> Any:
    """The array in double precision where torch has no such type."""
    if values.dtype.name in _TORCH:
        return values
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)

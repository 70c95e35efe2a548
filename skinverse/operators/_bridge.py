"""Operators without torch code, applied image by image through their own arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pylops
import torch
from torch import Tensor

from skinverse.operators._map import LinearMap


class BridgeMap(LinearMap):
    """A pylops operator through its own ``matvec`` and ``rmatvec``, in a Python loop over images."""

    def __init__(self, op: pylops.LinearOperator) -> None:
        super().__init__(op.dims, op.dimsd)
        self._op = op

    def precision(self) -> torch.dtype:
        return torch.float32 if np.dtype(self._op.dtype) in (np.float32, np.complex64) else torch.float64

    def _forward(self, x: Tensor) -> Tensor:
        return _each(self._op.matvec, x, self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _each(self._op.rmatvec, y, self.dims)


def _each(function: Callable[[Any], Any], batch: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Apply the function to copies, and copy its results.

    Wrappers of compiled code work in place, or return one array of their own again and again.
    """
    flat = batch.flatten(1).resolve_conj()
    if batch.is_cuda and importlib.util.find_spec("cupy"):
        import cupy

        results = [cupy.array(function(cupy.from_dlpack(row.clone()))) for row in flat]
        out = torch.stack([torch.from_dlpack(result) for result in results])
    else:
        results = [np.array(function(row.copy())) for row in flat.cpu().numpy()]
        out = torch.from_numpy(np.stack(results)).to(batch.device)
    real = batch.dtype.to_real()
    return out.to(real.to_complex() if out.is_complex() else real).reshape(len(batch), *shape)

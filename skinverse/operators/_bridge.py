"""Operators that torch does not know, applied image by image through their own arrays."""

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
    """A pylops operator as it is; a Python loop over images."""

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
    if batch.is_cuda and importlib.util.find_spec("cupy"):
        import cupy

        results = [function(cupy.from_dlpack(row.contiguous())) for row in batch.flatten(1)]
        out = torch.stack([torch.from_dlpack(cupy.asarray(result)) for result in results])
    else:
        rows = batch.flatten(1).cpu().numpy()
        out = torch.from_numpy(np.stack([np.asarray(function(row)) for row in rows])).to(batch.device)
    real = batch.dtype.to_real()
    return out.to(real.to_complex() if out.is_complex() else real).reshape(len(batch), *shape)

"""What tells one training from another in a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import joblib
import torch
from sklearn.base import BaseEstimator
from torch import nn

from skinverse.operators import LinearMap

# Of an estimator inside another one: what does not touch the images that it gives.
_ELSEWHERE = {"operator", "operator_", "memory", "history_", "verbose", "device"}


def key(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, modules by their weights: two copies of a module are not hashed alike.

    So are estimators by what they hold, but for their operator, which is that of the training.
    """
    return {name: _content(value) for name, value in parameters.items()}


def _content(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _weights(value)
    if isinstance(value, BaseEstimator):
        told = {k: v for k, v in vars(value).items() if k not in _ELSEWHERE}
        return type(value).__qualname__, {k: _content(v) for k, v in told.items()}
    return value


def _weights(module: nn.Module) -> tuple[Any, ...]:
    return type(module), str(module), {k: v.cpu().numpy() for k, v in module.state_dict().items()}


def fingerprint(A: LinearMap) -> str:
    """What the operator makes of one random image: pylops objects count their uses, so they have no hash."""
    probe = torch.randn(1, *A.dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = A(probe)
    digits = (data / data.abs().max().clamp_min(torch.finfo(torch.float64).tiny) * 1e6).numpy().round()
    return str(joblib.hash((A.dims, A.dimsd, float(f"{float(data.abs().max()):.6e}"), digits)))

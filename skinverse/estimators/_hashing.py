"""What tells one training from another in a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import joblib
import torch
from torch import nn

from skinverse.operators import LinearMap


def key(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, modules by their weights: two copies of a module are not hashed alike."""
    return {name: _weights(v) if isinstance(v, nn.Module) else v for name, v in parameters.items()}


def _weights(module: nn.Module) -> tuple[Any, ...]:
    return type(module), str(module), {k: v.cpu().numpy() for k, v in module.state_dict().items()}


def fingerprint(A: LinearMap) -> str:
    """What the operator makes of one random image: pylops objects count their uses, so they have no hash."""
    probe = torch.randn(1, *A.dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = A(probe)
    digits = (data / data.abs().max().clamp_min(torch.finfo(torch.float64).tiny) * 1e6).numpy().round()
    return str(joblib.hash((A.dims, A.dimsd, float(f"{float(data.abs().max()):.6e}"), digits)))

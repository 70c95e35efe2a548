"""What happens inside a training: a function of its arguments alone, and a module whose start is seeded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import torch
from torch import Tensor, nn

from skinverse.estimators._validation import single
from skinverse.operators import as_torch


def train(
    recipe: Any,
    key: dict[str, Any],
    fingerprint: str,
    images: np.ndarray,
    data: np.ndarray,
    start: dict[str, np.ndarray],
    seed: int,
    operator: pylops.LinearOperator,
    device: torch.device,
    verbose: int,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train the recipe's module; a function of its arguments alone, so that it can be cached."""
    recipe.operator_ = operator
    x, y = (single(torch.from_numpy(batch)).to(device) for batch in (images, data))
    module = recipe.module_ = seeded_module(recipe, seed, device)
    if start:
        _continue(module, {name: torch.from_numpy(value) for name, value in start.items()})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        history = recipe._train(module, as_torch(operator), x, y, seed, verbose)
    return {name: value.cpu() for name, value in module.state_dict().items()}, history


def seeded_module(estimator: Any, seed: int, device: torch.device) -> nn.Module:
    """An untrained module in single precision; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made: nn.Module = estimator._make_module().to(device, torch.float32)
        return made


def _continue(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a module the weights of an earlier training, if it is of the same architecture."""
    own = module.state_dict()
    differing = [
        name
        for name in sorted(own.keys() | weights.keys())
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    ]
    if differing:
        raise ValueError(
            "warm_start: the earlier training had another network than the parameters or the images now ask "
            f"for; {len(differing)} weights do not fit, the first is {differing[0]!r}: use warm_start=False"
        )
    module.load_state_dict(weights)

"""The loop of every iterative solver, written once: it stops image by image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._batch import expand, norm
from skinverse.solvers._solution import Solution

# What a method remembers: tensors whose first axis counts images, `x` and `residual` among them.
State = dict[str, Tensor]
Step = Callable[[Any, State], State]
# Called after each step with its number and all images, finished ones included.
Callback = Callable[[int, Tensor], None]


def iterate(
    step: Step,
    objective: Any,
    state: State,
    *,
    max_steps: int,
    tol: float,
    callback: Callback | None = None,
    report: tuple[str, ...] = (),
) -> Solution:
    """Repeat ``step`` on the images that are not finished.

    An image is finished when its ``residual`` falls below ``tol``. One that turns non-finite goes back to
    its last finite iterate and counts as not converged. Finished images leave the state and the objective,
    so they cost nothing and can influence nobody. The solution tells the last numbers named in ``report``.
    """
    n = len(state["x"])
    x, active = state["x"].detach().clone(), torch.arange(n, device=state["x"].device)
    unknown = torch.full((n,), torch.inf, dtype=x.dtype.to_real(), device=x.device)
    told = {name: unknown.clone() for name in ("residual", *report)}
    n_steps, converged, whole = torch.zeros_like(active), torch.zeros_like(active).bool(), objective
    with torch.no_grad():
        for k in range(max_steps if n else 0):
            new = step(objective, state)
            finite = torch.isfinite(new["x"]).flatten(1).all(1) & ~torch.isnan(new["residual"])
            done = finite & (new["residual"] < tol)
            n_steps[active] += 1
            converged[active] = done
            for name, value in told.items():
                value[active] = new[name]
            going = finite & ~done
            if callback is not None or not going.all():
                x[active[finite]] = new["x"][finite]
            if callback is not None:
                callback(k + 1, x)
            if going.all():
                state = new
                continue
            x[active[~finite]] = state["x"][~finite]
            active, kept = active[going], going.nonzero()[:, 0]
            state = {name: value[kept] for name, value in new.items()}
            if len(active) == 0:
                break
            objective = objective.select(kept)
        x[active] = state["x"]
        return Solution(x, n_steps, converged, told.pop("residual"), whole(x), told)


def first_step(objective: Any, x: Tensor, gradient: Tensor) -> Tensor:
    """One over the curvature along the gradient, by a difference small against the image."""
    tiny = torch.finfo(x.dtype).tiny
    length = 1e-2 * (norm(x) + (norm(x) == 0)) / norm(gradient).clamp_min(tiny)
    change = objective.value_and_grad(x - expand(length, x) * gradient)[1] - gradient
    curvature = norm(change) / (length * norm(gradient)).clamp_min(tiny)
    return torch.where(curvature > 0, 1 / curvature, 1.0)

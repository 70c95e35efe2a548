"""Quasi-Newton descent for smooth problems with few unknowns per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse._batch import dot, expand, norm
from skinverse.solvers._loop import Callback, State, first_step, iterate
from skinverse.solvers._solution import Solution

# Decrease wanted, relative to the slope; shrinkage of a step and how often; least curvature to learn from.
_DECREASE, _SHRINK, _MOST_TRIALS, _CURVATURE = 1e-4, 0.3, 12, 1e-8


def lbfgs(
    objective: Any,
    x0: Tensor,
    *,
    max_steps: int = 200,
    tol: float = 1e-5,
    n_pairs: int = 10,
    callback: Callback | None = None,
) -> Solution:
    """Minimise a smooth function of each image by L-BFGS; no step raises it.

    Parameters
    ----------
    objective : Functional
        What has ``value_and_grad`` and ``select``.
    x0 : Tensor of shape (n, *dims)
        Start, real.
    max_steps : int, default=200
        Most steps.
    tol : float, default=1e-5
        An image stops when a step changes it by less than ``tol`` relative to its norm, or when there is no
        descent left along the gradient.
    n_pairs : int, default=10
        Changes of image and gradient to remember.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended.

    Raises
    ------
    ValueError
        If ``n_pairs`` is not positive.

    References
    ----------
    D. C. Liu and J. Nocedal, On the limited memory BFGS method for large scale optimization, Mathematical
    Programming 45, 1989.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> from skinverse.solvers import lbfgs
    >>> lbfgs(LeastSquares(None, torch.ones(1, 2)), torch.zeros(1, 2)).x
    tensor([[1., 1.]])
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs: expected at least 1, got {n_pairs}")
    value, gradient = objective.value_and_grad(x0)
    pairs = x0.new_zeros(len(x0), n_pairs, 2, x0[0].numel())
    first = first_step(objective, x0, gradient)
    state = {"x": x0, "value": value, "gradient": gradient, "pairs": pairs, "first": first}
    return iterate(_step, objective, state, max_steps=max_steps, tol=tol, callback=callback)


def _step(objective: Any, state: State) -> State:
    x, gradient = state["x"], state["gradient"]
    direction = -_inverse_hessian(state["pairs"], gradient.flatten(1), state["first"]).view_as(x)
    uphill = ~(dot(direction, gradient) < 0)
    direction = torch.where(expand(uphill, x), -gradient, direction)
    new = _line_search(objective, state, direction)
    change = torch.stack([(new["x"] - x).flatten(1), (new["gradient"] - gradient).flatten(1)], 1)
    lengths = change.norm(dim=2)
    curved = _inner(change[:, 0], change[:, 1]) > _CURVATURE * lengths[:, 0] * lengths[:, 1]
    learned = torch.cat([state["pairs"][:, 1:], change[:, None]], 1)
    pairs = torch.where(curved[:, None, None, None], learned, state["pairs"])
    moved = norm(new["x"] - x) / norm(new["x"]).clamp_min(torch.finfo(x.dtype).tiny)
    # Where nothing moves, what was learned is forgotten once, before there is said to be no descent.
    stuck = (moved == 0) & state["pairs"].flatten(1).any(1)
    residual = torch.where(torch.isnan(new["value"]), torch.nan, torch.where(stuck, torch.inf, moved))
    pairs = torch.where(stuck[:, None, None, None], 0, pairs)
    return {**new, "pairs": pairs, "first": state["first"], "residual": residual}


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _inverse_hessian(pairs: Tensor, gradient: Tensor, first: Tensor) -> Tensor:
    """Two loops over the pairs, newest first and back; an empty pair changes nothing."""
    q, weights = gradient, []
    changes = [(pair[:, 0], pair[:, 1]) for pair in pairs.unbind(1)]
    for s, y in reversed(changes):
        curvature = _inner(s, y)
        weight = torch.where(curvature > 0, _inner(s, q) / curvature, 0)
        weights.append((weight, curvature))
        q = q - weight[:, None] * y
    s, y = changes[-1]
    square = _inner(y, y)
    q = torch.where(square > 0, _inner(s, y) / square, first)[:, None] * q
    for (s, y), (weight, curvature) in zip(changes, reversed(weights), strict=True):
        back = torch.where(curvature > 0, weight - _inner(y, q) / curvature, 0)
        q = q + back[:, None] * s
    return q


def _line_search(objective: Any, state: State, direction: Tensor) -> State:
    """The first of the steps 1, 0.3, 0.09, ... that decreases the objective enough, or none."""
    x, slope = state["x"], dot(state["gradient"], direction)
    new = {name: state[name].clone() for name in ("x", "value", "gradient")}
    trying, t = torch.arange(len(x), device=x.device), 1.0
    for _ in range(_MOST_TRIALS):
        part = objective if t == 1.0 else objective.select(trying)
        trial = x[trying] + t * direction[trying]
        value, gradient = part.value_and_grad(trial)
        good = value <= state["value"][trying] + _DECREASE * t * slope[trying]
        better = trying[good]
        for name, found in (("x", trial), ("value", value), ("gradient", gradient)):
            new[name][better] = found[good]
        trying, t = trying[~good], t * _SHRINK
        if len(trying) == 0:
            break
    return new

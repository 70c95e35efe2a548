"""Gradient and proximal gradient methods with a line search per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse._batch import dot, expand, norm
from skinverse.solvers._loop import Callback, State, first_step, iterate
from skinverse.solvers._solution import Solution

# A refused step is halved; an accepted one may grow in the next iteration.
_SHRINK, _GROW, _MOST_TRIALS = 0.5, 1.25, 60


def gradient_descent(
    objective: Any,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise a smooth functional by gradient descent, ``x <- x - t grad f(x)``.

    The step ``t`` of each image is found by backtracking and grows again after success.

    Parameters
    ----------
    objective : Functional
        Smooth.
    x0 : Tensor of shape (n, *dims)
        Start.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-5
        An image stops when a step changes it by less than ``tol`` relative to its norm.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended; ``extra["step"]`` is the last ``t``.

    Raises
    ------
    TypeError
        If a term has no gradient.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> from skinverse.solvers import gradient_descent
    >>> gradient_descent(LeastSquares(None, torch.ones(1, 2)), torch.zeros(1, 2)).x.round(decimals=3)
    tensor([[1., 1.]])
    """
    rough = [f for f in objective.summands if not f.smooth]
    if rough:
        raise TypeError(
            f"gradient_descent needs a gradient and {rough[0]!r} has none: "
            "use proximal_gradient or primal_dual"
        )
    return _descend(_proximal_step, objective, x0, max_steps, tol, callback)


def proximal_gradient(
    objective: Any,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``f + g``, smooth plus proximable, by ``x <- prox_(t g)(x - t grad f(x))``.

    The summands of the objective are sorted: smooth ones form ``f``, at most one other is ``g``. The step
    ``t`` of each image is found by backtracking and grows again after success; the objective never rises.

    Parameters
    ----------
    objective : Functional
        A sum.
    x0 : Tensor of shape (n, *dims)
        Start.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-5
        An image stops when a step changes it by less than ``tol`` relative to its norm.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended; ``extra["step"]`` is the last ``t``.

    Raises
    ------
    TypeError
        If there are several non-smooth terms or one without a prox.

    References
    ----------
    P. L. Combettes and V. R. Wajs, Signal recovery by proximal forward-backward splitting, Multiscale
    Modeling and Simulation 4, 2005.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import L1Norm, LeastSquares
    >>> from skinverse.solvers import proximal_gradient
    >>> y = torch.tensor([[3.0, 0.5]])
    >>> proximal_gradient(LeastSquares(None, y) + 1.0 * L1Norm(), torch.zeros(1, 2)).x.round(decimals=3)
    tensor([[2., 0.]])
    """
    _check(objective, "proximal_gradient")
    return _descend(_proximal_step, objective, x0, max_steps, tol, callback)


def accelerated_gradient(
    objective: Any,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``f + g`` by proximal gradient steps with momentum, safe for non-convex smooth ``f``.

    Each image extrapolates, ``z = x + beta (x - x_old)``, and takes a proximal gradient step from ``z``.
    Momentum starts anew when the step points against it; where the step from ``z`` does not decrease the
    objective, the plain step from ``x`` is taken, so the objective never rises.

    Parameters
    ----------
    objective : Functional
        A sum: smooth terms and at most one proximable one.
    x0 : Tensor of shape (n, *dims)
        Start.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-5
        An image stops when a proximal gradient step changes it by less than ``tol`` relative to its norm.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended; ``extra["step"]`` is the last ``t``.

    Raises
    ------
    TypeError
        If there are several non-smooth terms or one without a prox.

    References
    ----------
    A. Beck and M. Teboulle, A fast iterative shrinkage-thresholding algorithm, SIAM Journal on Imaging
    Sciences 2, 2009.
    H. Li and Z. Lin, Accelerated proximal gradient methods for nonconvex programming, NeurIPS, 2015.
    B. O'Donoghue and E. Candes, Adaptive restart for accelerated gradient schemes, Foundations of
    Computational Mathematics 15, 2015.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> from skinverse.solvers import accelerated_gradient
    >>> accelerated_gradient(LeastSquares(None, torch.ones(1, 2)), torch.zeros(1, 2)).x.round(decimals=3)
    tensor([[1., 1.]])
    """
    _check(objective, "accelerated_gradient")
    return _descend(_accelerated_step, objective, x0, max_steps, tol, callback)


class _Parts:
    """The objective as smooth plus proximable, for the images still active."""

    def __init__(self, objective: Any) -> None:
        self.smooth = [f for f in objective.summands if f.smooth]
        self.rough = [f for f in objective.summands if not f.smooth]

    def select(self, index: Tensor) -> _Parts:
        chosen = _Parts.__new__(_Parts)
        chosen.smooth = [f.select(index) for f in self.smooth]
        chosen.rough = [f.select(index) for f in self.rough]
        return chosen

    def value(self, x: Tensor) -> Tensor:
        """Value of the smooth part."""
        zero = torch.zeros(len(x), dtype=x.dtype.to_real(), device=x.device)
        return sum((f(x) for f in self.smooth), zero)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same with its gradient."""
        pairs = [f.value_and_grad(x) for f in self.smooth]
        zero = torch.zeros(len(x), dtype=x.dtype.to_real(), device=x.device)
        return sum((v for v, _ in pairs), zero), sum((g for _, g in pairs), torch.zeros_like(x))

    def prox(self, x: Tensor, step: Tensor) -> Tensor:
        return self.rough[0].prox(x, step) if self.rough else x

    def rest(self, x: Tensor) -> Tensor | float:
        """Value of the proximable part."""
        return self.rough[0](x) if self.rough else 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.value(x) + self.rest(x)


def _check(objective: Any, solver: str) -> None:
    rough = [f for f in objective.summands if not f.smooth]
    for f in rough:
        if not f.proximable:
            raise TypeError(f"{solver} needs a gradient or a prox and {f!r} has neither: use primal_dual")
    if len(rough) > 1:
        raise TypeError(
            f"{solver} takes one non-smooth term, got {rough[0]!r} and {rough[1]!r}: use primal_dual"
        )


def _descend(
    step: Any, objective: Any, x0: Tensor, max_steps: int, tol: float, callback: Callback | None
) -> Solution:
    parts = _Parts(objective)
    with torch.no_grad():
        value, gradient = parts.value_and_grad(x0)
        t = first_step(parts, x0, gradient)
    state = {"x": x0, "old": x0, "value": value, "t": t, "momentum": torch.ones_like(t)}
    return iterate(step, parts, state, max_steps=max_steps, tol=tol, callback=callback, report=("step",))


def _proximal_step(parts: _Parts, state: State) -> State:
    x = state["x"]
    new, value, t = _line_search(parts, x, *parts.value_and_grad(x), state["t"])
    return {**state, "x": new, "value": value, "step": t, "t": _GROW * t, "residual": _change(new, x)}


def _accelerated_step(parts: _Parts, state: State) -> State:
    x, old, m = state["x"], state["old"], state["momentum"]
    next_m = (1 + (1 + 4 * m.square()).sqrt()) / 2
    z = x + expand((m - 1) / next_m, x) * (x - old)
    new, value, t = _line_search(parts, z, *parts.value_and_grad(z), state["t"])
    before = state["value"] + parts.rest(x)
    bound = before + 4 * torch.finfo(before.dtype).eps * before.abs()
    rises = ~(value + parts.rest(new) <= bound) | ~torch.isfinite(norm(new))
    against = dot(z - new, new - x) > 0
    found = {"x": new, "value": value, "step": t, "t": _GROW * t, "residual": _change(new, z)}
    worse = rises.nonzero()[:, 0]
    if len(worse):
        plain = _proximal_step(parts.select(worse), {name: state[name][worse] for name in ("x", "t")})
        found = {name: value.index_copy(0, worse, plain[name]) for name, value in found.items()}
    return {**found, "old": x, "momentum": torch.where(rises | against, 1.0, next_m)}


def _line_search(
    parts: _Parts, x: Tensor, value: Tensor, gradient: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Proximal gradient step from ``x`` whose quadratic model bounds ``f``; halved where it does not."""
    new, new_value, t = x.clone(), value.clone(), t.clone()
    trying = torch.arange(len(x), device=x.device)
    for _ in range(_MOST_TRIALS):
        part = parts if len(trying) == len(x) else parts.select(trying)
        xs, gs, ts = x[trying], gradient[trying], t[trying]
        trial = part.prox(xs - expand(ts, xs) * gs, ts)
        trial_value = part.value(trial)
        accepted = _bounded(part, xs, value[trying], gs, ts, trial, trial_value)
        ok = trying[accepted]
        new[ok], new_value[ok] = trial[accepted], trial_value[accepted]
        trying = trying[~accepted]
        if len(trying) == 0:
            break
        t[trying] *= _SHRINK
    new[trying] = torch.nan  # no step is short enough: there are no numbers to compare
    return new, new_value, t


def _bounded(
    parts: _Parts, x: Tensor, value: Tensor, gradient: Tensor, t: Tensor, new: Tensor, new_value: Tensor
) -> Tensor:
    """``f(new) <= f(x) + <grad f(x), d> + ||d||^2 / 2t``; by gradients where values only round."""
    d = new - x
    square = dot(d, d)
    below = new_value <= value + dot(gradient, d) + square / (2 * t)
    rounding = 16 * torch.finfo(value.dtype).eps * value.abs()
    level = (~below & ((new_value - value).abs() <= rounding)).nonzero()[:, 0]
    if len(level):
        change = parts.select(level).value_and_grad(new[level])[1] - gradient[level]
        below[level] = dot(change, d[level]) <= square[level] / t[level]
    return below


def _change(new: Tensor, x: Tensor) -> Tensor:
    return norm(new - x) / norm(new).clamp_min(torch.finfo(x.dtype).tiny)

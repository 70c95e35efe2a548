"""Gradient and proximal gradient methods with a line search per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skinverse._tensors import dot, expand, norm, relative_change
from skinverse.solvers._loop import Callback, Record, first_step, iterate, unknown
from skinverse.solvers._objective import Objective
from skinverse.solvers._solution import Solution

# A refused step is halved; after an accepted one the next iteration tries a longer one. Sixty halvings are a
# factor of 1e-18, at which no image moves in double precision.
_SHRINK, _GROW, _MOST_TRIALS = 0.5, 1.25, 60
# A step that is shorter than the longest one by more than this factor counts as that one over the factor:
# at a sharp bend steps are short, however far an image has to go. On sums of bends of curvature 1e6 nearly
# all images counted as converged within 20 steps, 20 % away from the minimum.
_SHORTEST = 100.0


def gradient_descent(
    objective: Objective,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise a smooth functional by gradient descent, ``x <- x - t grad f(x)``.

    The step ``t`` of each image is found by backtracking, and grows again after a step that was accepted.

    Parameters
    ----------
    objective : Functional
        Functional to minimise, all of whose terms are smooth.
    x0 : Tensor of shape (n, *dims)
        Starting points.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-5
        Tolerance: an image stops when a step changes it by less than ``tol`` relative to its norm; a step
        that is more than 100 times shorter than the longest one counts as a hundredth of that one.
    callback : callable or None, default=None
        Function called as ``callback(step, x)`` after each step, with all images.

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
    rough = _rough(objective.summands)
    if rough:
        raise TypeError(
            f"gradient_descent needs a gradient and {rough[0]!r} has none: "
            "use proximal_gradient or primal_dual"
        )
    return _descend(_proximal_step, objective, x0, max_steps, tol, callback)


def proximal_gradient(
    objective: Objective,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``f + g``, smooth plus proximable, by ``x <- prox_(t g)(x - t grad f(x))``.

    The smooth summands of the objective form ``f``; at most one other is ``g``. The step ``t`` of each image
    is found by backtracking, and grows again after a step that was accepted. The objective never rises.

    Parameters
    ----------
    objective : Functional
        Functional to minimise: a sum of smooth terms and at most one proximable one.
    x0 : Tensor of shape (n, *dims)
        Starting points.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-5
        Tolerance: an image stops when a step changes it by less than ``tol`` relative to its norm; a step
        that is more than 100 times shorter than the longest one counts as a hundredth of that one.
    callback : callable or None, default=None
        Function called as ``callback(step, x)`` after each step, with all images.

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
    objective: Objective,
    x0: Tensor,
    *,
    max_steps: int = 1000,
    tol: float = 1e-5,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``f + g`` by proximal gradient steps with momentum; ``f`` need not be convex.

    Each image is extrapolated to ``z = x + beta (x - x_old)`` and takes a proximal gradient step from ``z``.
    The momentum is reset when the step points against it. Where the step from ``z`` would raise the
    objective, the step from ``x`` is taken instead, so the objective never rises.

    Parameters
    ----------
    objective : Functional
        Functional to minimise: a sum of smooth terms and at most one proximable one.
    x0 : Tensor of shape (n, *dims)
        Starting points.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-5
        Tolerance: an image stops when a proximal gradient step changes it by less than ``tol`` relative to
        its norm; a step that is more than 100 times shorter than the longest one counts as a hundredth of
        that one.
    callback : callable or None, default=None
        Function called as ``callback(step, x)`` after each step, with all images.

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


@dataclass(frozen=True)
class _Parts:
    """The objective ``f + g`` of the active images: the smooth terms of ``f``, and ``g``, None for zero."""

    smooth: tuple[Objective, ...]
    rough: Objective | None

    def select(self, index: Tensor) -> _Parts:
        rough = None if self.rough is None else self.rough.select(index)
        return _Parts(tuple(f.select(index) for f in self.smooth), rough)

    def __call__(self, x: Tensor) -> Tensor:
        return self.value(x) + self.rest(x)

    def value(self, x: Tensor) -> Tensor:
        """``f(x)``."""
        return sum((f(x) for f in self.smooth), _zero(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``f(x)`` and its gradient."""
        pairs = [f.value_and_grad(x) for f in self.smooth]
        return sum((v for v, _ in pairs), _zero(x)), sum((g for _, g in pairs), torch.zeros_like(x))

    def rest(self, x: Tensor) -> Tensor | float:
        """``g(x)``."""
        return 0.0 if self.rough is None else self.rough(x)

    def prox(self, x: Tensor, step: Tensor) -> Tensor:
        """Prox of ``step g``."""
        return x if self.rough is None else self.rough.prox(x, step)


def _zero(x: Tensor) -> Tensor:
    """The number zero for each image."""
    return torch.zeros(len(x), dtype=x.dtype.to_real(), device=x.device)


@dataclass(frozen=True)
class _Descent(Record):
    """Where the descent stands."""

    x: Tensor
    residual: Tensor  # relative change by the last step, more where steps are too short
    value: Tensor  # f(x)
    step: Tensor  # t of the last step
    trial: Tensor  # t to try next
    longest: Tensor  # t of the longest step
    old: Tensor  # x before the last step
    momentum: Tensor  # t_k of Beck and Teboulle


def _check(objective: Objective, solver: str) -> None:
    rough = _rough(objective.summands)
    for f in rough:
        if not f.proximable:
            raise TypeError(f"{solver} needs a gradient or a prox and {f!r} has neither: use primal_dual")
    if len(rough) > 1:
        raise TypeError(
            f"{solver} takes one non-smooth term, got {rough[0]!r} and {rough[1]!r}: use primal_dual"
        )


def _rough(terms: Iterable[Objective]) -> list[Objective]:
    return [f for f in terms if not f.smooth]


def _descend(
    step: Callable[[_Parts, _Descent], _Descent],
    objective: Objective,
    x0: Tensor,
    max_steps: int,
    tol: float,
    callback: Callback | None,
) -> Solution:
    terms = objective.summands
    parts = _Parts(tuple(f for f in terms if f.smooth), next(iter(_rough(terms)), None))
    with torch.no_grad():
        value, gradient = parts.value_and_grad(x0)
        t = first_step(parts, x0, gradient)
    start = _Descent(x0, unknown(x0), value, step=t, trial=t, longest=t, old=x0, momentum=torch.ones_like(t))
    return iterate(
        step,
        parts,
        start,
        max_steps=max_steps,
        tol=tol,
        callback=callback,
        report=lambda state: {"step": state.step},
    )


def _proximal_step(parts: _Parts, s: _Descent) -> _Descent:
    """``x <- prox_(t g)(x - t grad f(x))``."""
    x, value, t = _line_search(parts, s.x, *parts.value_and_grad(s.x), s.trial)
    longest = torch.maximum(s.longest, t)
    residual = relative_change(x, s.x) * (longest / (_SHORTEST * t)).clamp_min(1)
    return replace(s, x=x, value=value, step=t, trial=_GROW * t, longest=longest, residual=residual)


def _accelerated_step(parts: _Parts, s: _Descent) -> _Descent:
    """A proximal gradient step from an extrapolated point, or from ``x`` where that raises the objective."""
    momentum = (1 + (1 + 4 * s.momentum.square()).sqrt()) / 2
    z = s.x + expand((s.momentum - 1) / momentum, s.x) * (s.x - s.old)
    new = _proximal_step(parts, replace(s, x=z))
    before = s.value + parts.rest(s.x)
    # Values that differ by rounding count as equal.
    bound = before + 4 * torch.finfo(before.dtype).eps * before.abs()
    rises = ~(new.value + parts.rest(new.x) <= bound) | ~torch.isfinite(norm(new.x))
    against = dot(z - new.x, new.x - s.x) > 0  # the gradient scheme of O'Donoghue and Candes
    worse = rises.nonzero()[:, 0]
    if len(worse):
        new = new.replaced(worse, _proximal_step(parts.select(worse), s.select(worse)))
    return replace(new, old=s.x, momentum=torch.where(rises | against, 1.0, momentum))


def _line_search(
    parts: _Parts, x: Tensor, value: Tensor, gradient: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Proximal gradient step from ``x``, halved until its quadratic model bounds ``f``: new x, f(x), t."""
    trial, trial_value, accepted = _try(parts, x, value, gradient, t)
    if accepted.all():  # nearly always
        return trial, trial_value, t
    new, new_value, t = trial.clone(), trial_value.clone(), t.clone()
    for _ in range(_MOST_TRIALS - 1):
        trying = (~accepted).nonzero()[:, 0]
        if len(trying) == 0:
            return new, new_value, t
        t[trying] *= _SHRINK
        new[trying], new_value[trying], accepted[trying] = _try(
            parts.select(trying), x[trying], value[trying], gradient[trying], t[trying]
        )
    new[~accepted] = torch.nan  # no step is short enough, so there are no numbers to compare
    return new, new_value, t


def _try(
    parts: _Parts, x: Tensor, value: Tensor, gradient: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Proximal gradient step of this length: new x, f(x), whether the quadratic model bounds it."""
    new = parts.prox(x - expand(t, x) * gradient, t)
    new_value = parts.value(new)
    return new, new_value, _bounded(parts, x, value, gradient, t, new, new_value)


def _bounded(
    parts: _Parts, x: Tensor, value: Tensor, gradient: Tensor, t: Tensor, new: Tensor, new_value: Tensor
) -> Tensor:
    """``f(new) <= f(x) + <grad f(x), d> + ||d||^2 / 2t`` with ``d = new - x``.

    Where both values agree up to rounding, their gradients are compared instead: the bound holds if
    ``<grad f(new) - grad f(x), d> <= ||d||^2 / t`` and the curvature is constant along ``d``.
    """
    d = new - x
    square = dot(d, d)
    below = new_value <= value + dot(gradient, d) + square / (2 * t)
    rounding = 16 * torch.finfo(value.dtype).eps * value.abs()
    level = (~below & ((new_value - value).abs() <= rounding)).nonzero()[:, 0]
    if len(level):
        change = parts.select(level).value_and_grad(new[level])[1] - gradient[level]
        below[level] = dot(change, d[level]) <= square[level] / t[level]
    return below

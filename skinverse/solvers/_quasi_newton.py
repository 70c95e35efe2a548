"""Quasi-Newton descent for smooth problems with few unknowns per image."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skinverse._tensors import dot, expand, relative_change
from skinverse.solvers._loop import Callback, Record, first_step, iterate, unknown
from skinverse.solvers._objective import SmoothObjective
from skinverse.solvers._solution import Solution

# Armijo's condition: decrease relative to the one that the slope predicts (Nocedal and Wright, section 3.1).
_DECREASE = 1e-4
# Factor on a refused step, and the number of steps tried: the last one is 0.3**11, about 1e-6.
_SHRINK, _MOST_TRIALS = 0.3, 12
# Cosine between the changes of image and gradient below which the pair is left out: it would make the
# approximate inverse Hessian nearly singular, or indefinite.
_CURVATURE = 1e-8
# A decrease below so many units in the last place of the value cannot be seen.
_ROUNDING = 16.0


def lbfgs(
    objective: SmoothObjective,
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
        Functional to minimise; it needs ``value_and_grad`` and ``select`` only.
    x0 : Tensor of shape (n, *dims)
        Starting points, real.
    max_steps : int, default=200
        Largest number of steps.
    tol : float, default=1e-5
        Tolerance: an image stops when a step, had it not been shortened, would change it by less than
        ``tol`` relative to its norm, or when the gradient is so short that no decrease could be seen.
    n_pairs : int, default=10
        Number of changes of image and gradient to remember.
    callback : callable or None, default=None
        Function called as ``callback(step, x)`` after each step, with all images.

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
    start = _Descent(
        x=x0,
        residual=unknown(x0),
        value=value,
        gradient=gradient,
        pairs=x0.new_zeros(len(x0), n_pairs, 2, x0[0].numel()),
        scale=first_step(objective, x0, gradient),
    )
    return iterate(_step, objective, start, max_steps=max_steps, tol=tol, callback=callback)


@dataclass(frozen=True)
class _Point(Record):
    """Images with their values and gradients."""

    x: Tensor
    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class _Descent(Record):
    """Where the descent stands."""

    x: Tensor
    residual: Tensor  # relative change by the last step
    value: Tensor
    gradient: Tensor
    pairs: Tensor  # (n, n_pairs, 2, size): the last changes (s, y) of image and gradient, the newest last
    scale: Tensor  # inverse Hessian, a multiple of the identity, while no pair is known

    def point(self) -> _Point:
        """The images, without what was learned."""
        return _Point(self.x, self.value, self.gradient)


def _step(objective: SmoothObjective, s: _Descent) -> _Descent:
    direction = -_inverse_hessian(s.pairs, s.gradient.flatten(1), s.scale).view_as(s.x)
    uphill = ~(dot(direction, s.gradient) < 0)
    direction = torch.where(expand(uphill, s.x), -s.gradient, direction)
    new, t = _line_search(objective, s.point(), direction)
    moved = relative_change(new.x, s.x) / t  # as if the whole step had been taken
    # Where nothing moves, what was learned is forgotten, and the next steps go along the gradient, ever
    # shorter; where no decrease can be seen along it, the image has converged.
    known = s.pairs.flatten(1).any(1)
    seen = -dot(direction, s.gradient) > _ROUNDING * torch.finfo(s.value.dtype).eps * s.value.abs()
    stuck = (moved == 0) & (known | seen)
    residual = torch.where(torch.isnan(new.value), torch.nan, torch.where(stuck, torch.inf, moved))
    return replace(
        s,
        x=new.x,
        value=new.value,
        gradient=new.gradient,
        pairs=torch.where(expand(stuck, s.pairs), 0, _learned(s, new)),
        scale=torch.where(stuck & ~known, s.scale * _SHRINK**_MOST_TRIALS, s.scale),
        residual=residual,
    )


def _learned(s: _Descent, new: _Point) -> Tensor:
    """The pairs with the newest change, where it shows positive curvature."""
    change = torch.stack([(new.x - s.x).flatten(1), (new.gradient - s.gradient).flatten(1)], 1)
    lengths = change.norm(dim=2)
    curved = _inner(change[:, 0], change[:, 1]) > _CURVATURE * lengths[:, 0] * lengths[:, 1]
    return torch.where(expand(curved, s.pairs), torch.cat([s.pairs[:, 1:], change[:, None]], 1), s.pairs)


def _inverse_hessian(pairs: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
    """Inverse Hessian times gradient by the two-loop recursion (Nocedal and Wright, algorithm 7.4).

    Pairs that are zero change nothing.
    """
    q, weights = gradient, []
    changes = [(pair[:, 0], pair[:, 1]) for pair in pairs.unbind(1)]
    for s, y in reversed(changes):
        curvature = _inner(s, y)
        alpha = torch.where(curvature > 0, _inner(s, q) / curvature, 0)
        weights.append((alpha, curvature))
        q = q - alpha[:, None] * y
    s, y = changes[-1]
    square = _inner(y, y)
    r = torch.where(square > 0, _inner(s, y) / square, scale)[:, None] * q
    for (s, y), (alpha, curvature) in zip(changes, reversed(weights), strict=True):
        back = torch.where(curvature > 0, alpha - _inner(y, r) / curvature, 0)
        r = r + back[:, None] * s
    return r


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _line_search(objective: SmoothObjective, old: _Point, direction: Tensor) -> tuple[_Point, Tensor]:
    """The first of the steps 1, 0.3, 0.09, ... that decreases the objective enough, or none; its length."""
    slope, new = dot(old.gradient, direction), old
    lengths = torch.ones_like(slope)
    trying, t = torch.arange(len(old.x), device=old.x.device), 1.0
    for _ in range(_MOST_TRIALS):
        part = objective if t == 1.0 else objective.select(trying)
        x = old.x[trying] + t * direction[trying]
        trial = _Point(x, *part.value_and_grad(x))
        good = trial.value <= old.value[trying] + _DECREASE * t * slope[trying]
        if good.any():
            new, lengths[trying[good]] = new.replaced(trying[good], trial.select(good)), t
        trying, t = trying[~good], t * _SHRINK
        if len(trying) == 0:
            break
    return new, lengths

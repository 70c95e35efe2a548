"""How strongly a regularizer should act: two numbers, chosen on a few pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from skinverse._batch import expand, norm
from skinverse.functionals import Functional
from skinverse.solvers import Hessian, Solution, minres

Regularizer = Callable[[float], Functional]
Bounds = tuple[float | None, float | None] | None
Solve = Callable[[Functional, Tensor], Solution]

# The derivatives only steer: a few digits will do.
_MOST_STEPS, _TOL = 60, 1e-3


def calibrate(
    fidelity: Functional,
    regularizer: Regularizer,
    solve: Solve,
    x0: Tensor,
    images: Tensor,
    *,
    start: tuple[float, float],
    bounds: Bounds = None,
) -> tuple[float, float]:
    """Weight ``lam`` and scale ``s`` whose reconstructions come closest to the images.

    Minimises ``sum_i ||x_i(lam, s) - x_true_i||^2 / e_i^2`` over the minimisers ``x`` of ``f + lam R_s``,
    where ``R_s(x) = R(s x) / s^2`` and ``e_i`` is the error at the first guess, by Gauss-Newton steps with a
    trust region: near that guess it is the mean PSNR that is maximised. The derivatives of ``x`` in
    ``log lam`` and ``log s`` solve ``H dx = -lam grad R_s`` and ``H dx = -lam (H_s x - grad R_s)`` with the
    Hessians ``H`` of the objective and ``H_s`` of ``R_s``.

    Parameters
    ----------
    fidelity : Functional
        ``f``, bound to the data of the images.
    regularizer : callable
        ``s -> R_s``, smooth.
    solve : callable
        ``(objective, start) -> Solution``.
    x0, images : Tensor of shape (n, *dims)
        Start of the reconstructions, true images.
    start : tuple of float > 0
        First guess of ``lam`` and ``s``.
    bounds : (low, high) or None, default=None
        What ``solve`` confines the values to; those that sit on a bound do not move.

    Returns
    -------
    tuple of float
        ``lam`` and ``s``, each within a factor of 30 of its first guess.
    """
    last: dict[tuple[float, ...], Any] = {}

    def reconstruct(p: np.ndarray) -> tuple[Functional, Functional, Tensor]:
        if tuple(p) not in last:
            R = regularizer(math.exp(p[1]))
            objective = fidelity + math.exp(p[0]) * R
            x = solve(objective, x0).x
            last.clear()
            last[tuple(p)] = R, objective, x
        return last[tuple(p)]

    def residual(p: np.ndarray) -> np.ndarray:
        return _flat(reconstruct(p)[2] - images, per_error)

    def jacobian(p: np.ndarray) -> np.ndarray:
        R, objective, x = reconstruct(p)
        slope, lam, H = R.grad(x).detach(), math.exp(p[0]), Hessian(objective, x, free=inside(x, bounds))
        turned = Hessian(R, x)(x) - slope
        rights = [H.project(-lam * b) for b in (slope, turned)]
        columns = [minres(H, b, max_steps=_MOST_STEPS, tol=_TOL).x for b in rights]
        return np.stack([_flat(column, per_error) for column in columns], axis=1)

    first, reach = np.log(start), math.log(30.0)
    error = norm(reconstruct(first)[2] - images)
    per_error = 1 / error.clamp_min(torch.finfo(error.dtype).tiny)
    best = least_squares(
        residual, first, jacobian, bounds=(first - reach, first + reach), ftol=1e-4, xtol=1e-2, max_nfev=8
    )
    lam, scale = np.exp(best.x)
    return float(lam), float(scale)


def climb(
    score: Callable[..., float], start: tuple[float, ...], factor: float, *, most: int = 12
) -> tuple[tuple[float, ...], float]:
    """Coordinate ascent by factors, with ``most`` scores at most: no number is better times or over it."""
    best, at, n_scores, waiting = score(*start), start, 1, len(start)
    i = 0
    while waiting and n_scores < most:
        before = at
        for step in (factor, 1 / factor):
            while n_scores < most:
                near = (*at[:i], at[i] * step, *at[i + 1 :])
                value, n_scores = score(*near), n_scores + 1
                if not value > best:
                    break
                best, at = value, near
            if at != before:
                break
        waiting = len(start) - 1 if at != before else waiting - 1
        i = (i + 1) % len(start)
    return at, best


def inside(x: Tensor, bounds: Bounds) -> Tensor | None:
    """Where the values are strictly between the bounds; None where there are none."""
    if bounds is None:
        return None
    low, high = bounds
    above = torch.ones_like(x, dtype=torch.bool) if low is None else x > low
    return above if high is None else above & (x < high)


def _flat(x: Tensor, weight: Tensor) -> np.ndarray:
    """All numbers of all images, each image times its weight."""
    weighted = expand(weight, x) * x
    real = torch.view_as_real(weighted) if x.is_complex() else weighted
    return real.flatten().double().cpu().numpy()

"""Calibration of a weight and a scale by Gauss-Newton steps through the reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from skinverse._tensors import expand, norm
from skinverse.estimators.regularizers.lower_level import Interval, free_pixels
from skinverse.functionals import Functional
from skinverse.solvers import Hessian, Solution, minres

Regularizer = Callable[[float], Functional]
Solve = Callable[[Functional, Tensor], Solution]

# The derivatives only steer; with two digits of them (30 steps, 1e-2) a learned energy for deblurring still
# ended 0.05 dB lower, in the same time.
_MOST_STEPS, _TOL = 60, 1e-3


def calibrate(
    misfit: Functional,
    regularizer: Regularizer,
    solve: Solve,
    x0: Tensor,
    images: Tensor,
    *,
    start: tuple[float, float],
    bounds: Interval = None,
) -> tuple[float, float, Solution]:
    """Weight ``lam`` and scale ``s`` whose reconstructions come closest to the images.

    Minimises ``sum_i ||x_i(lam, s) - x_true_i||^2 / e_i^2`` over the minimisers ``x`` of ``f + lam R_s``,
    where ``R_s(x) = R(s x) / s^2`` and ``e_i`` is the error at the first guess, by Gauss-Newton steps with a
    trust region: near that guess it is the mean PSNR that is maximised. The derivatives of ``x`` in
    ``log lam`` and ``log s`` solve ``H dx = -lam grad R_s`` and ``H dx = -lam (H_s x - grad R_s)`` with the
    Hessians ``H`` of the objective and ``H_s`` of ``R_s``.

    Parameters
    ----------
    misfit : Functional
        The fidelity ``f``, bound to the data of the images.
    regularizer : callable
        ``s -> R_s``, smooth.
    solve : callable
        ``(objective, start) -> Solution``.
    x0, images : Tensor of shape (n, *dims)
        Start of the reconstructions, true images.
    start : tuple of float > 0
        First guess of ``lam`` and ``s``.
    bounds : (low, high) or None, default=None
        Interval to which ``solve`` confines the values; those that sit on a bound do not move.

    Returns
    -------
    lam, s : float
        Each within a factor of 30 of its first guess.
    solution : Solution
        The reconstructions.
    """

    @lru_cache  # the Jacobian is asked for after the residual, and both of them at the end
    def reconstruct(log_lam: float, log_scale: float) -> tuple[Functional, Functional, Solution]:
        R = regularizer(math.exp(log_scale))
        objective = misfit + math.exp(log_lam) * R
        return R, objective, solve(objective, x0)

    def residual(p: np.ndarray) -> np.ndarray:
        return _flat(reconstruct(*p)[2].x - images, per_error)

    def jacobian(p: np.ndarray) -> np.ndarray:
        R, objective, found = reconstruct(*p)
        x = found.x
        lam, H, H_s = math.exp(p[0]), Hessian(objective, x, free=free_pixels(x, bounds)), Hessian(R, x)
        slope = R.grad(x).detach()
        rights = [H.project(-lam * b) for b in (slope, H_s(x) - slope)]
        columns = [minres(H, b, max_steps=_MOST_STEPS, tol=_TOL).x for b in rights]
        return np.stack([_flat(column, per_error) for column in columns], axis=1)

    first, reach = np.log(start), math.log(30.0)
    error = norm(reconstruct(*first)[2].x - images)
    per_error = 1 / error.clamp_min(torch.finfo(error.dtype).tiny)
    best = least_squares(
        residual, first, jacobian, bounds=(first - reach, first + reach), ftol=1e-4, xtol=1e-2, max_nfev=8
    )
    lam, scale = np.exp(best.x)
    return float(lam), float(scale), reconstruct(*best.x)[2]


def _flat(x: Tensor, weight: Tensor) -> np.ndarray:
    """All numbers of all images, each image times its weight."""
    weighted = expand(weight, x) * x
    real = torch.view_as_real(weighted) if x.is_complex() else weighted
    return real.flatten().double().cpu().numpy()

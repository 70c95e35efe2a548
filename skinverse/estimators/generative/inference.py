"""Maximum a posteriori inference: the best latent variables for data, and the weight of the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from skinverse._tensors import norm, rms
from skinverse.estimators.generative.model import GenerativeModel
from skinverse.estimators.generative.objectives import (
    ChannelFidelity,
    LatentObjective,
    RangeObjective,
    SoftObjective,
    SparseObjective,
)
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, lbfgs, picard

Algorithm = Callable[..., Solution]
# Objectives that are minimised one after the other, each from where the one before ended.
Stages = Sequence[tuple[LatentObjective, Algorithm]]

# Standard deviation of the noise relative to the root mean square of the data, if none is given.
_RELATIVE_NOISE = 0.05
# Discrepancy principle: bisections of the weight's logarithm, the largest factor between the weight and its
# first value, steps of the algorithm for each weight, and the relative error of the residual that passes.
_N_BISECTIONS, _MAX_FACTOR, _STEPS_PER_WEIGHT, _DISCREPANCY_TOL = 14, 1e4, 15, 0.05
# Distance of images from the range of a generator: starts, steps, tolerance, and the weight of 1/2 ||z||^2
# relative to the images' variance, small enough to let z explain an image.
_N_STARTS, _MAX_STEPS, _TOL, _LATENT_WEIGHT = 4, 500, 1e-4, 1e-3


def alternate(objective: LatentObjective, z: Tensor, *, max_steps: int, tol: float) -> Solution:
    """Joint posterior maximisation (González, Almansa and Tan): ``z = mu(argmin_x J(x, z))``.

    The best image for ``z`` and the encoder's mean for that image are taken in turn.
    """

    def f(z: Tensor, index: Tensor) -> Tensor:
        return objective.model.encode(objective.select(index).best_image(z).x)[0]

    with torch.no_grad():
        images = torch.arange(len(z), device=z.device)
        solution = picard(f, z, given=(images,), max_steps=max_steps, tol=tol)
    return replace(solution, objective=objective(solution.x))


# The range is searched first: its objective needs no linear systems.
STAGES: dict[str, tuple[tuple[type[LatentObjective], Algorithm], ...]] = {
    "soft": ((RangeObjective, lbfgs), (SoftObjective, lbfgs)),
    "encoded": ((SoftObjective, alternate),),
    "range": ((RangeObjective, lbfgs),),
    "sparse": ((RangeObjective, lbfgs), (SparseObjective, lbfgs)),
    "adapted": ((RangeObjective, lbfgs),),
}


def infer_latent(
    model: GenerativeModel,
    fidelity: ChannelFidelity,
    starts: Tensor,
    *,
    constraint: str,
    lam: float | str,
    noise_std: Tensor,
    noise_norm: Tensor,
    max_steps: int,
    tol: float,
) -> tuple[LatentObjective, Solution]:
    """The objective with its weight, and the best latent variables from the starts (n, n_starts, d).

    The standard deviation of the noise and its expected norm, (n,), are those of weighted data.
    """
    variance = noise_std.square() / (2 if fidelity.y.is_complex() else 1)
    weight = variance if isinstance(lam, str) else torch.full_like(variance, lam)
    stages = [(kind(model, fidelity, weight), algorithm) for kind, algorithm in STAGES[constraint]]
    latent = minimise_from_starts(stages, starts, max_steps=max_steps, tol=tol)
    if lam != "discrepancy":
        return stages[-1][0], latent
    return _match_discrepancy(*stages[-1], latent.x, noise_norm, max_steps, tol)


def minimise_from_starts(stages: Stages, starts: Tensor, *, max_steps: int, tol: float) -> Solution:
    """The best minimum of each image that its starts, (n, n_starts, d), lead to; the x are (n, d)."""
    n, n_starts, _ = starts.shape
    owner = torch.arange(n, device=starts.device).repeat_interleave(n_starts)
    z, n_steps = starts.flatten(0, 1), torch.zeros_like(owner)
    for objective, algorithm in stages:
        every = algorithm(objective.select(owner), z, max_steps=max_steps, tol=tol)
        z, n_steps = every.x, n_steps + every.n_steps
    best = every.objective.view(n, n_starts).nan_to_num(nan=math.inf).argmin(1)
    index = best + torch.arange(n, device=best.device) * n_starts
    return Solution(
        x=every.x[index],
        n_steps=n_steps[index],
        converged=every.converged[index],
        residual=every.residual[index],
        objective=every.objective[index],
    )


def noise_level(A: LinearMap, data: Tensor, noise_std: float | None) -> Tensor:
    """Standard deviation of the noise in the data of each image, (n,); by default relative to their size."""
    if noise_std is None:
        level = _RELATIVE_NOISE * norm(data) / math.sqrt(A.n_measured)
    else:
        level = torch.full((len(data),), noise_std, dtype=data.dtype.to_real(), device=data.device)
    # Its square is to be positive, also of data that are zero.
    return level.clamp_min(torch.finfo(level.dtype).tiny ** 0.25)


def _match_discrepancy(
    objective: LatentObjective, algorithm: Algorithm, z: Tensor, target: Tensor, max_steps: int, tol: float
) -> tuple[LatentObjective, Solution]:
    """The objective with the weight at which ``||A x - y||`` is the norm of the noise, and its minimum."""
    objective = objective.with_weight(_discrepancy_weight(objective, algorithm, z, target, tol))
    latent = algorithm(objective, z, max_steps=max_steps, tol=tol)
    met = (_residual_norm(objective, latent.x) / target - 1).abs() < _DISCREPANCY_TOL
    return objective, replace(latent, converged=latent.converged & met)


def _discrepancy_weight(
    objective: LatentObjective, algorithm: Algorithm, z: Tensor, target: Tensor, tol: float
) -> Tensor:
    """Weights at which the residual's norm passes ``target``, by bisection of their logarithms."""
    low, high = objective.lam / _MAX_FACTOR, objective.lam * _MAX_FACTOR
    for _ in range(_N_BISECTIONS):
        trial = objective.with_weight((low * high).sqrt())
        # Always from the same z: else the weight would depend on the path to it.
        latent = algorithm(trial, z, max_steps=_STEPS_PER_WEIGHT, tol=tol)
        above = _residual_norm(trial, latent.x) > target
        low, high = torch.where(above, low, trial.lam), torch.where(above, trial.lam, high)
    return low


def _residual_norm(objective: LatentObjective, z: Tensor) -> Tensor:
    """``||A x - y||`` of the best images for latent variables, (n,)."""
    return (2 * objective.fidelity(objective.best_image(z).x)).sqrt()


@torch.no_grad()
def measure_deviation(model: GenerativeModel, fidelity: ChannelFidelity) -> None:
    """Set the model's ``deviation``: how far images, seen without noise, are from the range of ``G``.

    With a generator of the user's, the root mean square of the deviations becomes the standard deviation.
    """
    images = fidelity.channels(fidelity.y)
    if model.encoder is not None:
        z = model.encode(images)[0]
    else:
        lam = torch.full_like(fidelity.y.real.flatten(1)[:, 0], _LATENT_WEIGHT)
        stages = [(RangeObjective(model, fidelity, lam), lbfgs)]
        z = minimise_from_starts(stages, model.starts(images, _N_STARTS), max_steps=_MAX_STEPS, tol=_TOL).x
    error = images - model.mean(z)
    model.deviation.fill_(float(error.abs().mean().clamp_min(torch.finfo(error.dtype).tiny)))
    if model.encoder is None:
        model.log_std.fill_(math.log(max(rms(error), 1e-6)))

"""How strongly an energy acts: a weight and a scale, searched for on pairs.

A weight is relative to the rule ``lam = rms(A^* noise) / rms(grad R(x_0))``, at which both gradients of the
objective are of one size, and the scale is the ``s`` in ``R_s(x) = R(s x) / s^2``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import rms
from skinverse.estimators._learned import mean_psnr
from skinverse.estimators.regularizers.calibration import Interval, Regularizer, Solve, calibrate
from skinverse.functionals import Functional
from skinverse.solvers import Solution, accelerated_gradient, coordinate_search

# Relative weight and scale with which a calibration starts, and the factor by which it moves at first: a
# regulariser of a small scale is nearly convex.
_SMALL, _COARSE = (0.3, 0.3), 3.0
# Images on which a calibration starts; how often a weight may be reduced to a third.
_N_COARSE, _MOST_REDUCTIONS = 4, 6


def normalise(module: Any, x: Tensor, *, n_pixels: int = 1) -> None:
    """Weigh ``R`` so that its gradient at images has the norm 1 on so many pixels."""
    with torch.no_grad():
        slope = rms(module.value_and_grad(x)[1])
        if 0 < slope < math.inf:
            module.log_weight.sub_(math.log(slope * math.sqrt(n_pixels)))


@dataclasses.dataclass
class BestWeight:
    """The relative weight and the scale that have served best so far in a training.

    Parameters
    ----------
    relative, scale : float, default=1.0
        Weight and scale.
    psnr : float
        PSNR in dB that they have reached.
    factor : float, default=1.5
        Factor by which the next search moves; it is smaller once there is something to start from.
    """

    relative: float = 1.0
    scale: float = 1.0
    psnr: float = -math.inf
    factor: float = 1.5

    def search(self, misfit: Functional, regularizer: Regularizer, x0: Tensor, images: Tensor) -> float:
        """PSNR in dB of quick reconstructions with the best weight and scale near those known so far."""
        start = self.relative, self.scale
        (relative, scale), psnr = _search(misfit, regularizer, _quickly, x0, images, start, self.factor)
        self.factor = 1.25
        if psnr >= self.psnr:
            self.relative, self.scale, self.psnr = relative, scale, psnr
        return psnr

    def move_scale_to(self, module: Any) -> None:
        """Make the scale a part of the module; the weight is kept for the next search."""
        module.log_scale.add_(math.log(self.scale))
        self.scale, self.psnr = 1.0, -math.inf

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        vars(self).update(state)


def fit_weight(
    misfit: Functional, regularizer: Regularizer, solve: Solve, x0: Tensor, images: Tensor, bounds: Interval
) -> tuple[float, float]:
    """Weight and scale whose reconstructions come closest to the images: first coarsely, then calibrated.

    The coarse search goes all the way to the minima too: an image that runs away where the objective is not
    convex may look best long before.
    """
    few = torch.arange(min(_N_COARSE, len(images)), device=images.device)
    (relative, scale), _ = _search(
        misfit.select(few), regularizer, solve, x0[few], images[few], _SMALL, _COARSE
    )
    noise, slope = rms(misfit.grad(images)), rms(regularizer(scale).grad(x0))
    if not (0 < slope < math.inf and noise > 0):
        return 1.0, 1.0
    start = relative * noise / slope, scale
    lam, scale, found = calibrate(misfit, regularizer, solve, x0, images, start=start, bounds=bounds)

    def solution(weight: float) -> Solution:
        return found if weight == lam else solve(misfit + weight * regularizer(scale), x0)

    return backtrack_weight(lam, solution, images), scale


def backtrack_weight(lam: float, solve: Callable[[float], Solution], images: Tensor) -> float:
    """The weight, or a third of it, a ninth, ..., while that is better.

    What is not convex may run away in directions of which the data say nothing; a calibration, which looks at
    neighbouring weights only, does not see that.
    """
    best = mean_psnr(images, solve(lam).x)
    for _ in range(_MOST_REDUCTIONS):
        reduced = mean_psnr(images, solve(lam / 3).x)
        if not reduced > best:
            break
        best, lam = reduced, lam / 3
    return lam


def _search(
    misfit: Functional,
    regularizer: Regularizer,
    solve: Solve,
    x0: Tensor,
    images: Tensor,
    start: tuple[float, ...],
    factor: float,
) -> tuple[tuple[float, ...], float]:
    """Relative weight and scale of the best reconstructions near a start, and their PSNR in dB."""
    noise = rms(misfit.grad(images))

    def psnr_at(relative: float, scale: float) -> float:
        R = regularizer(scale)
        slope = rms(R.grad(x0))
        if not 0 < slope < math.inf:
            return -math.inf
        lam = relative * noise / slope
        return mean_psnr(images, solve(misfit + lam * R, x0).x)

    return coordinate_search(psnr_at, start, factor)


def _quickly(objective: Functional, x0: Tensor) -> Solution:
    """A reconstruction good enough to be compared with others, in the middle of a training."""
    return accelerated_gradient(objective, x0, max_steps=100, tol=1e-3)

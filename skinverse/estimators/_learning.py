"""What learned regularizers share: patches, denoising, the start of a reconstruction, the first weight."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from skinverse._batch import norm
from skinverse.estimators._calibration import Bounds, Regularizer, Solve, calibrate, climb
from skinverse.functionals import Functional, Learned, LeastSquares, SquaredNorm, WeightedCritic
from skinverse.metrics import psnr
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, conjugate_gradient, implicit, pseudo_inverse
from skinverse.training import Trainer

Loss = Callable[[Any, Tensor, Tensor], Tensor]
# Relative weight and scale by the PSNR that they reach.
Found = dict[float, tuple[float, ...]]

# Noise to learn to denoise, relative to the spread of the images' values.
_NOISE = 0.2
_SEARCH_STEPS, _SCORED_SIDE = 100, 80
# Relative weight and scale with which a calibration starts: a small scale is nearly convex.
_SMALL = (0.3, 0.3)
# Images from which a slope is taken, those on which a first weight is sought, numbers to work on at once.
_FEW, _FEWER, _AT_ONCE = 8, 4, 2**20
# How often a weight may be reduced to a third.
_MOST_REDUCTIONS = 6
_BATCH = 8
# Regularization of the pseudo-inverse, relative to the operator's squared norm, and its tolerance.
_DELTA, _INVERSE_TOL = 1e-2, 1e-4


def denoising_loss(patch_size: int | None) -> Loss:
    """``||z - grad R(z) - x||^2`` for noisy ``z``, in units of the noise: one gradient step is to denoise."""

    def loss(module: WeightedCritic, images: Tensor, _: Tensor) -> Tensor:
        x = patches(images, patch_size)
        noise_std = _NOISE / module.log_scale.exp()
        z = x + noise_std * torch.randn_like(x)
        return ((z - module.value_and_grad(z)[1] - x) / noise_std).square().flatten(1).mean(1)

    return loss


def patches(x: Tensor, size: int | None) -> Tensor:
    """A random patch of each image, flipped and turned at random, (n, channels, size, size) at most.

    None is the whole images, as they are.
    """
    if size is None:
        return x
    height, width = x.shape[-2:]
    rows, columns = (_window(len(x), n, min(n, size), x.device) for n in (height, width))
    images = torch.arange(len(x), device=x.device)[:, None, None]
    cut = x[images, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    may_turn = cut.shape[-1] == cut.shape[-2]
    return cut.mT if may_turn and float(torch.rand(())) < 0.5 else cut


def _window(n: int, length: int, size: int, device: torch.device) -> Tensor:
    """For each of ``n`` images ``size`` indices in a row, half of the time backwards."""
    first = torch.randint(length - size + 1, (n, 1), device=device)
    steps = torch.arange(size, device=device).expand(n, size)
    backwards = torch.rand(n, 1, device=device) < 0.5
    return first + torch.where(backwards, size - 1 - steps, steps)


def normalise(module: WeightedCritic, bad: Tensor, *, patch_size: int | None = 1) -> None:
    """Weigh ``R`` so that its gradient at bad images has norm 1 on a patch (by default a pixel)."""
    with torch.no_grad():
        some = patches(bad[:_FEW], patch_size) if patch_size != 1 else bad[:_FEW]
        slope = rms(module.value_and_grad(some)[1])
        n_values = 1 if patch_size == 1 else some[0].numel()
        if 0 < slope < math.inf:
            module.log_weight.sub_(math.log(slope * math.sqrt(n_values)))


def few_steps(objective: Functional, x0: Tensor) -> Solution:
    """What a reconstruction nearly is, soon enough to be scored in the middle of a training."""
    return accelerated_gradient(objective, x0, max_steps=_SEARCH_STEPS, tol=1e-3)


def search(
    misfit: Functional,
    regularizer: Regularizer,
    x0: Tensor,
    images: Tensor,
    found: Found,
    *,
    solve: Solve = few_steps,
    start: tuple[float, ...] = (1.0, 1.0),
    factor: float = 1.5,
) -> float:
    """PSNR of reconstructions at the best weight and scale near the best that were ``found`` so far.

    ``found`` is told the weight, relative to the rule ``E ||A^* noise|| / E ||grad R||``, and the scale.
    """
    noise = rms(misfit.grad(images))

    def psnr_with(relative: float, scale: float) -> float:
        R = regularizer(scale)
        slope = rms(R.grad(x0))
        if not 0 < slope < math.inf:
            return -math.inf
        return float(np.mean(psnr(images, solve(misfit + relative * noise / slope * R, x0).x)))

    start, factor = (found[max(found)], 1.25) if found else (start, factor)
    at, best = climb(psnr_with, start, factor)
    found[best] = at
    return best


def fit_weight(
    misfit: Functional, regularizer: Regularizer, solve: Solve, x0: Tensor, images: Tensor, bounds: Bounds
) -> tuple[float, float]:
    """Weight and scale whose reconstructions come closest to the images: first coarsely, then calibrated.

    The coarse search goes all the way to the minima: what is not convex may look best long before.
    """
    found: Found = {}
    few = torch.arange(min(_FEWER, len(images)), device=images.device)
    search(
        misfit.select(few), regularizer, x0[few], images[few], found, solve=solve, start=_SMALL, factor=3.0
    )
    relative, scale = found[max(found)]
    noise, slope = rms(misfit.grad(images)), rms(regularizer(scale).grad(x0))
    if not (0 < slope < math.inf and noise > 0):
        return 1.0, 1.0
    start = relative * noise / slope, scale
    lam, scale = calibrate(misfit, regularizer, solve, x0, images, start=start, bounds=bounds)
    return held(lam, lambda lam: solve(misfit + lam * regularizer(scale), x0), images), scale


def held(lam: float, solve: Callable[[float], Solution], images: Tensor) -> float:
    """A smaller weight where it is better: what is not convex may run away where the data say nothing."""
    best = float(np.mean(psnr(images, solve(lam).x)))
    for _ in range(_MOST_REDUCTIONS):
        reduced = float(np.mean(psnr(images, solve(lam / 3).x)))
        if not reduced > best:
            break
        best, lam = reduced, lam / 3
    return lam


def learned(module: WeightedCritic, scale: float, like: Tensor | None) -> Functional:
    """``R(s x) / s^2``, in the precision and on the device of the images."""
    if like is not None:
        module = copy.deepcopy(module).to(like.device, like.dtype.to_real())
    return Learned(
        module if scale == 1.0 else WeightedCritic(module, scale=scale).to(next(module.parameters()))
    )


def spread(x: Tensor) -> float:
    """Standard deviation of the values, 1 for constant images."""
    found = float(x.std()) if x.numel() > 1 else 0.0
    return found if found > 0 else 1.0


def rms(x: Tensor) -> float:
    """Root mean square of the values."""
    return math.sqrt(float(x.detach().abs().square().mean()))


def fidelity(A: LinearMap, data: Tensor) -> Functional:
    """``1/2 ||A x - y||^2``."""
    return LeastSquares(None if A.identity else A, data)


def are_pairs(A: Any, images: Tensor, data: Tensor) -> bool:
    """Whether most measurements fit their own image better than the next eight ones."""
    if len(images) != len(data):
        return False
    expected = torch.cat([A(part) for part in images.split(max(1, _AT_ONCE // images[0].numel()))])
    shifts = range(min(len(images), 9))
    misfits = torch.stack([norm(data - expected.roll(shift, 0)) for shift in shifts])
    return float((misfits.argmin(0) == 0).double().mean()) > 0.5


def is_number(lam: Any) -> TypeGuard[float]:
    """Whether a weight is given as such, not by a rule."""
    return lam is not None and not isinstance(lam, str)


def analytic_inverse(A: LinearMap, data: Tensor) -> Tensor:
    """Filtered back-projection where there is one, else a regularized pseudo-inverse.

    Where ``A`` has parameters of which derivatives are wanted, so has the result.
    """
    try:
        return A.filtered_adjoint(data, filter="ramp")
    except TypeError:  # there is none
        delta = _DELTA * A.norm() ** 2 or 1.0
    with torch.no_grad():
        x = pseudo_inverse(A, data, delta, tol=_INVERSE_TOL).x
    if not (A.requires_grad and torch.is_grad_enabled()):
        return x
    objective = LeastSquares(A, data) + delta * SquaredNorm()
    return implicit(objective, x, solve=conjugate_gradient, tol=_INVERSE_TOL)


def fitted_initial(initial: Any, operator: Any, images: Tensor, data: Tensor) -> Any:
    """A clone of the estimator to begin with, fitted for this operator; None stays None."""
    return None if initial is None else clone(initial).set_params(operator=operator).fit(images, data)


def first_images(A: LinearMap, data: Tensor, initial: Any, *, real: bool) -> Solution:
    """What the fitted estimator reconstructs, by default the analytic inverse; real where images are."""
    if initial is None:
        found = Solution.direct(data if A.identity else analytic_inverse(A, data))
    elif A.requires_grad:
        raise TypeError(
            "with initial=... a method is not differentiable in the parameters of the operator: "
            "give a known operator"
        )
    else:
        found = initial._reconstruct(A, data)
    return replace(found, x=found.x.real.contiguous()) if real and found.x.is_complex() else found


def following(first: Solution, x: Tensor) -> Solution:
    """Images that were made of others, which did or did not converge."""
    return replace(Solution.direct(x), converged=first.converged, residual=first.residual)


def reached(images: Tensor, x: Tensor) -> float:
    """Mean PSNR of reconstructions; those of a training that diverges are infinitely bad."""
    with np.errstate(over="ignore"):
        return float(np.mean(psnr(images, x))) if bool(x.isfinite().all()) else -math.inf


def check_kinds(A: LinearMap, images: Tensor, data: Tensor) -> None:
    """To denoise, images and measurements are both real or both complex.

    Raises
    ------
    ValueError
        Otherwise.
    """
    if A.identity and images.is_complex() != data.is_complex():
        kinds = ["complex" if batch.is_complex() else "real" for batch in (images, data)]
        raise ValueError(
            f"operator=None is denoising and expects images and measurements of one kind, got {kinds[0]} "
            f"X_true and {kinds[1]} Y_meas"
        )


def excerpt(images: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """A corner of images and data of one shape: to denoise, it shows as much as the whole."""
    corner: Any = (..., *[slice(0, _SCORED_SIDE)] * min(2, images.ndim - 1))
    return images[corner], data[corner]


def in_memory(A: LinearMap) -> int:
    """How many images to work on at once."""
    return max(1, _AT_ONCE // max(math.prod(A.dims), math.prod(A.dimsd)))


def recipe(n_steps: int, lr: float, n_samples: int, *, max_norm: float | None = None) -> Trainer:
    """So many steps, a few looks at held-out images."""
    n_epochs = max(4, math.ceil(n_steps / math.ceil(n_samples / _BATCH)))
    return Trainer(
        max_epochs=n_epochs,
        batch_size=_BATCH,
        lr=lr,
        lr_decay=0.1,
        max_norm=max_norm,
        score_every=math.ceil(n_epochs / 4),
    )

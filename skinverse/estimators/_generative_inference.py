"""Reconstruction with a generative model: energies of latent variables, their minima, and what is unsure."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from skinverse._batch import expand
from skinverse.estimators._generative_inference_energies import (
    Energy,
    Measured,
    Model,
    Range,
    Soft,
    Sparse,
    preconditioner,
)
from skinverse.estimators._learning import is_number, rms
from skinverse.estimators._validation import discrepancy_level
from skinverse.solvers import Solution, conjugate_gradient, lbfgs, picard

Descent = Callable[..., Solution]

# What is solved for each latent variable.
_INNER_TOL, _INNER_STEPS = 1e-4, 500
# Bisections of the weight, how far from its start it may be, and the steps of a descent for each one.
_N_BISECTIONS, _FAR, _FEW_STEPS = 14, 1e4, 15
# Noise relative to the data if nobody says; weight of latent variables that are to explain an image.
_NOISE, _HARDLY = 0.05, 1e-3
# How near the noise's norm a residual has to come.
_MET = 0.05
# Draws that measure an uncertainty.
_N_DRAWS = 64
# Numbers that all weights adapting at a time may have together.
_MOST_WEIGHTS = 2**24
# Learning rates of latent variables and of weights that adapt to one image.
_LR_LATENT, _LR_WEIGHTS = 1e-2, 1e-3


def settle(energy: Energy, z: Tensor, *, max_steps: int, tol: float) -> Solution:
    """``z = mu(x(z))``: the encoder's mean for the image that is best for ``z``."""

    def f(z: Tensor, index: Tensor) -> Tensor:
        return energy.model.encode(energy.select(index).image(z)[0])[0]

    with torch.no_grad():
        found = picard(f, z, given=(torch.arange(len(z), device=z.device),), max_steps=max_steps, tol=tol)
    return replace(found, objective=energy(found.x))


# Constraint -> what is descended over the latent variables, and how, each from where the one before ended.
STAGES: dict[str, tuple[tuple[type[Energy], Descent], ...]] = {
    "soft": ((Range, lbfgs), (Soft, lbfgs)),
    "encoded": ((Soft, settle),),
    "range": ((Range, lbfgs),),
    "sparse": ((Range, lbfgs), (Sparse, lbfgs)),
    "adapted": ((Range, lbfgs),),
}


def minimise(
    stages: Sequence[tuple[Energy, Descent]], starts: Tensor, *, max_steps: int, tol: float
) -> Solution:
    """The best of what is reached from the starts (n, n_restarts, d); the solution's x is (n, d)."""
    n, n_restarts, _ = starts.shape
    owner = torch.arange(n, device=starts.device).repeat_interleave(n_restarts)
    z, n_steps = starts.flatten(0, 1), torch.zeros_like(owner)
    for energy, descend in stages:
        every = descend(energy.select(owner), z, max_steps=max_steps, tol=tol)
        z, n_steps = every.x, n_steps + every.n_steps
    best = every.objective.view(n, n_restarts).nan_to_num(nan=math.inf).argmin(1)
    return chosen(replace(every, n_steps=n_steps), best + torch.arange(n, device=best.device) * n_restarts)


def chosen(solution: Solution, index: Tensor) -> Solution:
    """The solution of some images."""
    names = ("x", "n_steps", "converged", "residual", "objective")
    return replace(solution, **{name: getattr(solution, name)[index] for name in names})


def minimum(
    model: Model,
    data: Measured,
    starts: Tensor,
    *,
    constraint: str,
    lam: float | str,
    noise_std: Tensor,
    max_steps: int,
    tol: float,
) -> tuple[Energy, Solution, Tensor]:
    """The energy with its weight, its best latent variables, and the norm of the noise."""
    variance = noise_std.square() / (2 if data.y.is_complex() else 1)
    weight = torch.full_like(variance, float(lam)) if is_number(lam) else variance
    stages = [(kind(model, data, weight), descend) for kind, descend in STAGES[constraint]]
    latent = minimise(stages, starts, max_steps=max_steps, tol=tol)
    level, (last, descend) = discrepancy_level(1.0, data.y) * noise_std, stages[-1]
    if lam != "discrepancy":
        return last, latent, level
    energy = last.weighted(discrepancy(last, descend, latent.x, level, tol=tol))
    latent = descend(energy, latent.x, max_steps=max_steps, tol=tol)
    reached = (2 * data.misfit(energy.image(latent.x)[0])).sqrt() / level
    met = (reached - 1).abs() < _MET
    return energy, replace(latent, converged=latent.converged & met), level


def measure(model: Any, data: Measured, n_starts: int) -> None:
    """The deviations of images, seen without noise, from the range of ``G``.

    Of a foreign generator, their root mean square is its standard deviation.
    """
    starts = model.starts(data.channels(data.y), n_starts)
    lam = torch.full_like(data.y.real.flatten(1)[:, 0], _HARDLY * float(model.unit) ** 2)
    if model.own:
        z = starts[:, 0]
    else:
        stages = [(Range(model, data, lam), lbfgs)]
        z = minimise(stages, starts, max_steps=_INNER_STEPS, tol=_INNER_TOL).x
    error = data.channels(data.y) - model.mean(z)
    model.deviation.fill_(float(error.abs().mean().clamp_min(torch.finfo(error.dtype).tiny)))
    if not model.own:
        relative = rms(error) / float(model.unit)
        model.log_std.data.fill_(math.log(max(relative, 1e-6)))


def noise(data: Tensor, noise_std: float | None) -> Tensor:
    """Standard deviation of the noise in the data of each image, (n,); by default relative to their size."""
    guess = _NOISE * data.abs().square().flatten(1).mean(1).sqrt()
    known = guess if noise_std is None else torch.full_like(guess, noise_std)
    return known.clamp_min(torch.finfo(known.dtype).tiny ** 0.25)


def discrepancy(energy: Energy, descend: Descent, z: Tensor, level: Tensor, *, tol: float) -> Tensor:
    """Weights, one per image, with which ``||A x - y||`` is the noise's norm ``level``."""
    low, high = energy.lam / _FAR, energy.lam * _FAR
    for _ in range(_N_BISECTIONS):
        weighted = energy.weighted((low * high).sqrt())
        found = descend(weighted, z, max_steps=_FEW_STEPS, tol=tol).x  # always from z: the path plays no part
        above = (2 * weighted.data.misfit(weighted.image(found)[0])).sqrt() > level
        low, high = torch.where(above, low, weighted.lam), torch.where(above, weighted.lam, high)
    return low


@torch.no_grad()
def uncertainty(energy: Energy, z: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation of every pixel, (n, channels, height, width), and whether it was found.

    The density ``exp(-energy / lam)`` of ``(x, z)`` is taken as a Gaussian at its maximum, ``G`` as linear
    and ``Sigma`` as constant: errors of reconstructions of images and noise drawn from it have its
    covariance, with ``J = dG/dz``.
    """
    model: Any = copy.deepcopy(energy.model)
    model, z, lam = model.double(), z.double(), energy.lam.double()  # Woodbury's formula subtracts
    y = energy.data.y.to(torch.complex128 if energy.data.y.is_complex() else torch.float64)
    data = Measured(energy.data.A, y, energy.data.shape, real=energy.data.real)
    gaussian, J = model.gaussian(z), jacobian(model, z)
    weighted = torch.stack([gaussian.precision_mul(column) for column in J])  # Sigma^-1 J
    gram = torch.einsum("anchw,bnchw->nab", J, weighted) + torch.eye(len(J)).to(J)
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        one = torch.randn(1, *like.shape[1:], generator=generator, dtype=like.dtype)
        return one.to(like.device).expand(like.shape)

    def inverse(v: Tensor) -> Tensor:
        """``(Sigma + J J^T)^-1 v``, by Woodbury's formula."""
        along = torch.linalg.solve(gram, torch.einsum("anchw,nchw->na", weighted, v))
        return gaussian.precision_mul(v) - torch.einsum("anchw,na->nchw", weighted, along)

    squares, divide = torch.zeros_like(gaussian.mean), preconditioner(data.scale, lam, gaussian)
    converged = torch.isfinite(lam)
    for _ in range(_N_DRAWS):
        deviation = gaussian.color(draw(gaussian.mean)) - gaussian.mean
        deviation = deviation + torch.einsum("anchw,na->nchw", J, draw(z))
        noise = draw(data.y) * expand((2 * lam if data.y.is_complex() else lam).sqrt(), data.y)
        found = conjugate_gradient(
            lambda v: data.adjoint(data.apply(v)) + expand(lam, v) * inverse(v),
            data.adjoint(data.apply(deviation) + noise),
            precondition=divide,
            max_steps=_INNER_STEPS,
            tol=1e-3,
        )
        converged = converged & found.converged
        squares += (deviation - found.x).square()
    return (squares / _N_DRAWS).sqrt().to(energy.lam.dtype), converged


def jacobian(model: Model, z: Tensor) -> Tensor:
    """``dG/dz``, (d, n, channels, height, width): derivatives of ``u -> (dG/dz)^T u``, which is linear."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        x = model.mean(z)
        u = torch.zeros_like(x, requires_grad=True)
        (pulled,) = torch.autograd.grad(x, z, u, create_graph=True)
        columns = [torch.autograd.grad(p.sum(), u, retain_graph=True)[0] for p in pulled.unbind(1)]
    return torch.stack(columns).detach()


def adapt(energy: Energy, z: Tensor, level: Tensor, max_steps: int) -> Solution:
    """Weights of ``G`` adapted to each image, so many images at a time that all weights fit into memory."""
    n_weights = sum(w.numel() for w in energy.model.decoder.parameters())
    parts = torch.arange(len(z), device=z.device).split(max(1, _MOST_WEIGHTS // max(1, n_weights)))
    return Solution.concatenate(
        [_adapt(energy.model, energy.data.select(i), z[i], energy.lam[i], level[i], max_steps) for i in parts]
    )


def _adapt(model: Model, data: Measured, z: Tensor, lam: Tensor, level: Tensor, max_steps: int) -> Solution:
    """Minimise ``1/2 ||A G(z) - y||^2 + lam 1/2 ||z||^2`` over ``z`` and the weights of ``G``, per image.

    An image stops at the noise's norm ``level``, before the noise is explained too.
    """
    weights = {k: v.detach().expand(len(z), *v.shape).clone() for k, v in model.decoder.named_parameters()}
    z = z.clone()
    groups = [
        {"params": [z.requires_grad_()], "lr": _LR_LATENT},
        {"params": [w.requires_grad_() for w in weights.values()], "lr": _LR_WEIGHTS},
    ]
    optimizer = torch.optim.Adam(groups)
    mean = vmap(lambda w, z: model.scaled(functional_call(model.decoder, w, (z[None],)))[0])
    best = torch.zeros_like(z[:, 0]) + math.inf
    x, done = best.new_zeros(len(z), *data.shape), torch.zeros_like(best, dtype=torch.bool)
    n_steps = torch.zeros_like(best, dtype=torch.int64)
    for step in range(max_steps + 1):
        with torch.enable_grad():
            found = mean(weights, z)
            misfit = data.misfit(found)
            energy = misfit + lam * 0.5 * z.square().sum(1)
        reached = (2 * misfit.detach()).sqrt() <= level
        better = ~done & ((energy < best) | reached)
        best = torch.where(better, energy.detach(), best)
        x = torch.where(expand(better, x), found.detach(), x)
        done = done | reached
        if done.all() or step == max_steps:
            break
        n_steps += ~done
        optimizer.zero_grad()
        energy.sum().backward()
        optimizer.step()
    ratio = (2 * data.misfit(x)).sqrt() / level.clamp_min(torch.finfo(best.dtype).tiny)
    return Solution(x, n_steps, done, ratio, best)

"""Weights of the generator that adapt to each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from skinverse._tensors import expand
from skinverse.estimators.generative.objectives import LatentObjective, half_square
from skinverse.solvers import Solution

# Learning rates of Adam for latent variables and for weights.
_LR_LATENT, _LR_WEIGHTS = 1e-2, 1e-3
# Weights of all images that adapt at a time: 64 MiB, and Adam and the gradient hold as many three times.
_MAX_WEIGHTS = 2**24


def adapt_weights(objective: LatentObjective, z: Tensor, noise_norm: Tensor, max_steps: int) -> Solution:
    """Minimise ``1/2 ||A G(z) - y||^2 + lam 1/2 ||z||^2`` over ``z`` and the weights of ``G``, per image.

    An image stops as soon as ``||A x - y||`` is the norm of the noise, before the noise is explained too. The
    images of the solution are channels, and its residual is ``||A x - y||`` relative to that norm.
    """
    n_weights = sum(w.numel() for w in objective.model.decoder.parameters())
    batches = torch.arange(len(z), device=z.device).split(max(1, _MAX_WEIGHTS // max(1, n_weights)))
    return Solution.concatenate(
        [_adapt(objective.select(i), z[i], noise_norm[i], max_steps) for i in batches]
    )


def _adapt(objective: LatentObjective, z: Tensor, noise_norm: Tensor, max_steps: int) -> Solution:
    model, fidelity, lam = objective.model, objective.fidelity, objective.lam
    z, weights = z.clone().requires_grad_(), _weights_per_image(model.decoder, len(z))
    groups = [{"params": [z], "lr": _LR_LATENT}, {"params": [*weights.values()], "lr": _LR_WEIGHTS}]
    optimizer = torch.optim.Adam(groups)
    G = vmap(lambda weights, z: functional_call(model.decoder, weights, (z[None],))[0])

    # Adam may raise the objective: the best image is kept, or the first that reaches the norm of the noise.
    best = torch.full_like(lam, math.inf)
    x, done = best.new_zeros(len(z), *fidelity.shape), torch.zeros_like(best, dtype=torch.bool)
    n_steps = torch.zeros_like(best, dtype=torch.int64)
    for step in range(max_steps + 1):
        with torch.enable_grad():
            current = G(weights, z)
            misfit = fidelity(current)
            value = misfit + lam * half_square(z)
        reached = (2 * misfit.detach()).sqrt() <= noise_norm
        better = ~done & ((value < best) | reached)
        best = torch.where(better, value.detach(), best)
        x = torch.where(expand(better, x), current.detach(), x)
        done = done | reached
        if done.all() or step == max_steps:
            break
        n_steps += ~done
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.step()
    residual = (2 * fidelity(x)).sqrt() / noise_norm.clamp_min(torch.finfo(best.dtype).tiny)
    return Solution(x, n_steps, done, residual, best)


def _weights_per_image(decoder: nn.Module, n: int) -> dict[str, Tensor]:
    """The weights of the decoder for each image, (n, ...)."""
    weights = {name: w.detach().expand(n, *w.shape).clone() for name, w in decoder.named_parameters()}
    return {name: w.requires_grad_() for name, w in weights.items()}

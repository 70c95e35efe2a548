"""The maps ``f`` whose fixed points are reconstructions.

``h`` is the network, ``b`` is ``A^* W y``, and ``normal(z, w)`` is ``A^* W A z`` for an operator of norm 1
and weights of at most 1, which are left out where all of them are 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import split_variables, stack_variables
from skinverse.solvers import conjugate_gradient

Images = Callable[[Tensor], Tensor]
Normal = Callable[..., Tensor]  # normal(z) or normal(z, w)
Map = Callable[..., Tensor]  # f(z, b) or f(z, b, w)

# Linear systems of ADMM: steps for a weight of one, tolerance.
_CG_STEPS, _CG_TOL = 10, 1e-6


def gradient(h: Images, normal: Normal, eta: Tensor, lam: Tensor) -> Map:
    """``f(z) = z - eta (A^* W (A z - y) + lam (z - h(z)))``."""
    return lambda z, b, *w: z - eta * (normal(z, *w) - b + lam * (z - h(z)))


def proximal(h: Images, normal: Normal, eta: Tensor) -> Map:
    """``f(z) = h(z - eta A^* W (A z - y))``."""
    return lambda z, b, *w: h(z - eta * (normal(z, *w) - b))


def admm(h: Images, normal: Normal, lam: Tensor, dims: tuple[int, ...]) -> Map:
    """``x = (A^* W A + lam)^-1 (A^* W y + lam (z - u))``, ``z <- h(x + u)``, ``u <- u + x - z``."""

    def f(pair: Tensor, b: Tensor, *w: Tensor) -> Tensor:
        z, u = split_variables(pair, dims, dims)
        x = resolvent(b + lam * (z - u), lam, lambda v: normal(v, *w))
        z = h(x + u)
        return stack_variables(z, u + x - z)

    return f


def resolvent(r: Tensor, lam: Tensor, normal: Images) -> Tensor:
    """``(A^* A + lam)^-1 r``, differentiable in ``r``, in ``lam`` and in the parameters of ``A``."""
    x = _Resolvent.apply(r, lam, normal)
    if not torch.is_grad_enabled():
        return x
    product = normal(x.detach())
    if not product.requires_grad:  # the operator has no parameters
        return x
    # d((B + lam)^-1) r = -(B + lam)^-1 dB x: what is subtracted is zero and has this derivative.
    return x - _Resolvent.apply(product - product.detach(), lam.detach(), normal)


class _Resolvent(torch.autograd.Function):
    """``x = (B + lam)^-1 r`` by conjugate gradients; its derivative takes another such system."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, lam: Tensor, normal: Images) -> Tensor:
        def regularized(v: Tensor) -> Tensor:
            return normal(v) + lam * v

        # The condition is (1 + lam) / lam, and the steps grow with its root.
        n_steps = math.ceil(_CG_STEPS / math.sqrt(max(lam.item(), 1e-4)))
        x = conjugate_gradient(regularized, r, max_steps=n_steps, tol=_CG_TOL).x
        ctx.normal = normal
        ctx.save_for_backward(x, lam)
        return x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
        x, lam = ctx.saved_tensors
        w = _Resolvent.apply(v, lam, ctx.normal)
        return w, -(w.conj() * x).real.sum(), None

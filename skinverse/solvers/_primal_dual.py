"""Primal-dual hybrid gradient method, balanced image by image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from skinverse._batch import expand, norm
from skinverse.solvers._loop import Callback, State, iterate
from skinverse.solvers._solution import Solution

_RELAXATION = 1.8  # over-relaxation, anything below 2 converges
_GAP_EVERY = 10
_LAST_BALANCE = 4096  # from then on the weight is fixed, and the iteration a contraction in one norm


def primal_dual(
    objective: Any,
    x0: Tensor,
    *,
    max_steps: int = 2000,
    tol: float = 1e-3,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``g(x) + sum_i f_i(K_i x)``, all convex and proximable, by primal-dual hybrid gradients.

    Each summand of the objective is split into ``f_i`` and ``K_i``; one without linear map is ``g``, the last
    if there are several, and holds exactly if it is a constraint. With
    ``nu_i = ||K_i||`` and ``m`` maps the steps are ``tau = 1 / omega`` and
    ``sigma_i = omega / (m nu_i^2)``::

        x <- prox_(tau g)(x - tau sum_i K_i^* u_i)
        u_i <- prox_(sigma_i f_i^*)(u_i + sigma_i K_i (2 x_new - x_old))

    over-relaxed. The weight ``omega`` of each image balances the ways that primal and dual variables have
    gone from their start; it is adapted at the steps 1, 2, 4, ..., 4096. Operators of any scale need the same
    number of steps.

    Parameters
    ----------
    objective : Functional
        A sum of terms, each with a split or a prox.
    x0 : Tensor of shape (n, *dims)
        Start.
    max_steps : int, default=2000
        Most steps.
    tol : float, default=1e-3
        Where the primal-dual gap can be computed (``g`` with finite conjugate: denoising, bounded images),
        an image stops at that gap relative to the objective. Elsewhere it stops when a step changes
        primal and dual variables by less than a tenth of ``tol`` in the norm in which the iteration
        contracts, relative to their own norm.
    callback : callable or None, default=None
        ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended.

    Raises
    ------
    TypeError
        If a term has neither split nor prox.

    References
    ----------
    A. Chambolle and T. Pock, A first-order primal-dual algorithm for convex problems with applications to
    imaging, Journal of Mathematical Imaging and Vision 40, 2011, algorithm 1.
    D. Applegate et al., Practical large-scale linear programming using primal-dual hybrid gradient,
    NeurIPS, 2021, section 3.3 (the weight).

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares, TotalVariation
    >>> from skinverse.solvers import primal_dual
    >>> y = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> primal_dual(LeastSquares(None, y) + 0.1 * TotalVariation(), y, tol=1e-6).x
    tensor([[0.0500, 0.0500, 0.9500, 0.9500]])
    """
    saddle = _Saddle(objective)
    with torch.no_grad():
        state = saddle.start(x0)
    return iterate(_step, saddle, state, max_steps=max_steps, tol=tol, callback=callback)


class _Saddle:
    """``min_x max_u g(x) + sum_i <K_i x, u_i> - f_i^*(u_i)`` for the images still active."""

    def __init__(self, objective: Any) -> None:
        pairs = [(term, *term.split()) for term in objective.summands]
        for term, outer, _ in pairs:
            if not outer.proximable:
                raise TypeError(
                    f"primal_dual needs a prox or a split and {term!r} has neither: use accelerated_gradient "
                    "if it is smooth, lifted() if it is a TotalGeneralizedVariation"
                )
        plain = [outer for _, outer, linear in pairs if linear is None]
        # Every iterate is a result of the prox of g: that goes to a constraint, which is written last.
        self.primal = min(reversed(plain), key=lambda f: f.smooth, default=None)
        self.blocks = [(f, K) for _, f, K in pairs if f is not self.primal]
        self.norms = [1.0 if K is None else K.norm() or 1.0 for _, K in self.blocks]
        self.objective = objective

    def select(self, index: Tensor) -> _Saddle:
        chosen = _Saddle.__new__(_Saddle)
        chosen.primal = None if self.primal is None else self.primal.select(index)
        chosen.blocks = [(f.select(index), K) for f, K in self.blocks]
        chosen.norms, chosen.objective = self.norms, self.objective.select(index)
        return chosen

    def __call__(self, x: Tensor) -> Tensor:
        return self.objective(x)

    def start(self, x0: Tensor) -> State:
        scale = max((nu**2 for nu in self.norms), default=1.0)
        omega = torch.full((len(x0),), scale, dtype=x0.dtype.to_real(), device=x0.device)
        duals = {f"u{i}": torch.zeros_like(v) for i, v in enumerate(self.apply(x0))}
        k, residual = torch.zeros_like(omega), torch.full_like(omega, torch.inf)
        return {"x": x0, "z": x0, "start": x0, "omega": omega, "k": k, "residual": residual, **duals}

    def apply(self, x: Tensor) -> list[Tensor]:
        """All ``K_i x``."""
        return [x if K is None else K(x) for _, K in self.blocks]

    def pull(self, u: list[Tensor], like: Tensor) -> Tensor:
        """``sum_i K_i^* u_i``."""
        parts = [v if K is None else K.adjoint(v) for (_, K), v in zip(self.blocks, u, strict=True)]
        return sum(parts[1:], parts[0]) if parts else torch.zeros_like(like)

    def prox(self, x: Tensor, tau: Tensor) -> Tensor:
        return x if self.primal is None else self.primal.prox(x, tau)

    def length(self, u: list[Tensor]) -> Tensor:
        """Norm of the duals in the units of ``K x``: ``sqrt(m sum_i nu_i^2 ||u_i||^2)``."""
        squares = [len(u) * nu**2 * norm(v).square() for nu, v in zip(self.norms, u, strict=True)]
        return torch.stack(squares).sum(0).sqrt() if squares else torch.zeros(())

    def way(self, x: Tensor, start: Tensor, dual: Tensor) -> Tensor:
        """How far the images have gone; of those still at zero, how far the objective lets them go."""
        gone = torch.maximum(norm(x - start), norm(x) / 10)
        ahead = self.objective(x) / dual if bool((gone == 0).any()) else gone
        return torch.where((gone == 0) & torch.isfinite(ahead), ahead, gone)

    def gap(self, x: Tensor, u: list[Tensor], rounding: Tensor) -> Tensor:
        """Primal minus dual value over their size; NaN or inf where it says nothing."""
        conjugates = [f.conjugate(v) for (f, _), v in zip(self.blocks, u, strict=True)]
        low = None if self.primal is None else self.primal.conjugate(-self.pull(u, x))
        if low is None or any(c is None for c in conjugates):
            return torch.full((len(x),), torch.nan, dtype=x.dtype.to_real(), device=x.device)
        assert self.primal is not None  # it has a conjugate
        value = self.primal(x) + sum(f(v) for (f, _), v in zip(self.blocks, self.apply(x), strict=True))
        dual = -low - sum(c for c in conjugates if c is not None)
        return (value - dual) / (torch.maximum(value.abs(), dual.abs()) + rounding)


def _step(saddle: _Saddle, state: State) -> State:
    z, omega, m = state["z"], state["omega"], len(saddle.blocks)
    u = [state[f"u{i}"] for i in range(m)]
    x = saddle.prox(z - expand(1 / omega, z) * saddle.pull(u, z), 1 / omega)
    v = [
        f.prox_conjugate(ui + expand(omega / (m * nu**2), ui) * Kx, omega / (m * nu**2))
        for (f, _), ui, nu, Kx in zip(saddle.blocks, u, saddle.norms, saddle.apply(2 * x - z), strict=True)
    ]
    dx, du = x - z, [vi - ui for vi, ui in zip(v, u, strict=True)]
    k = int(state["k"][0]) + 1
    # Not after the first step, whose weight knows nothing yet of the scale of data and images.
    checked = 1 < k < _GAP_EVERY or k % _GAP_EVERY == 0
    residual = _residual(saddle, omega, x, v, dx, du) if checked else state["residual"]
    duals = {f"u{i}": ui + _RELAXATION * di for i, (ui, di) in enumerate(zip(u, du, strict=True))}
    if k <= _LAST_BALANCE and k & (k - 1) == 0:  # a power of two
        dual = saddle.length(v)
        omega = _balanced(omega, saddle.way(x, state["start"], dual), dual)
    return {
        "x": x,
        "z": z + _RELAXATION * dx,
        "start": state["start"],
        "omega": omega,
        "k": state["k"] + 1,
        "residual": residual,
        **duals,
    }


def _residual(
    saddle: _Saddle, omega: Tensor, x: Tensor, u: list[Tensor], dx: Tensor, du: list[Tensor]
) -> Tensor:
    """Relative gap where there is one, else ten times the relative change in the norm of the iteration."""

    def size(x: Tensor, u: list[Tensor]) -> Tensor:
        return (omega * norm(x).square() + saddle.length(u).square() / omega).sqrt()

    change = 10 * size(dx, du) / size(x, u).clamp_min(torch.finfo(omega.dtype).tiny)
    rounding = math.sqrt(torch.finfo(omega.dtype).eps) * omega * norm(x).square()
    gap = saddle.gap(x, u, rounding)
    return torch.where(torch.isfinite(gap), gap.clamp_min(0), change)


def _balanced(omega: Tensor, primal: Tensor, dual: Tensor) -> Tensor:
    """The weight that lets the dual variables go twice the way of the image: fastest in practice."""
    tiny = math.sqrt(torch.finfo(omega.dtype).tiny)
    return torch.where((primal > tiny) & (dual > tiny), 2 * dual / primal.clamp_min(tiny), omega)

"""Primal-dual hybrid gradient method, balanced image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, expand, norm
from skinverse.solvers._loop import Callback, Record, iterate, unknown
from skinverse.solvers._objective import Objective
from skinverse.solvers._solution import Solution

# Over-relaxation: the iteration converges for every factor below 2 (Condat, 2013).
_RELAXATION = 1.8
# The gap is computed in the steps 2 to 9 and then in every tenth, since it costs as much as one or two steps.
_GAP_EVERY = 10
# From this step on the weight is fixed: only then is the iteration a contraction in one norm, and converges.
_LAST_BALANCE = 4096


def primal_dual(
    objective: Objective,
    x0: Tensor,
    *,
    max_steps: int = 2000,
    tol: float = 1e-3,
    callback: Callback | None = None,
) -> Solution:
    """Minimise ``g(x) + sum_i f_i(K_i x)``, all convex and proximable, by primal-dual hybrid gradients.

    Each summand of the objective is split into ``f_i`` and ``K_i``. One summand without a linear map is
    ``g``: the last one that is not smooth, else the last one. Where ``g`` is a constraint, all images satisfy
    it exactly. With ``nu_i = ||K_i||`` and ``m`` maps, the steps are ``tau = 1 / omega`` and
    ``sigma_i = omega / (m nu_i^2)``::

        x <- prox_(tau g)(x - tau sum_i K_i^* u_i)
        u_i <- prox_(sigma_i f_i^*)(u_i + sigma_i K_i (2 x_new - x_old))

    with over-relaxation. The weight ``omega`` of each image balances the distances of the primal and the dual
    variables from where they started; it is adapted at the steps 1, 2, 4, ..., 4096. The number of steps does
    not depend on the scale of the operators.

    Parameters
    ----------
    objective : Functional
        Functional to minimise: a sum of terms, each with a split or a prox.
    x0 : Tensor of shape (n, *dims)
        Starting points.
    max_steps : int, default=2000
        Largest number of steps.
    tol : float, default=1e-3
        Tolerance. Where the primal-dual gap can be computed (``g`` has a finite conjugate, as in denoising
        and for bounded images), an image stops when the gap is below ``tol`` times the objective. Elsewhere
        it stops when a step changes primal and dual variables by less than a tenth of ``tol``, relative to
        their own norm, in the norm in which the iteration contracts.
    callback : callable or None, default=None
        Function called as ``callback(step, x)`` after each step, with all images.

    Returns
    -------
    Solution
        The images and how each of them ended.

    Raises
    ------
    TypeError
        If a term has neither a split nor a prox.

    References
    ----------
    A. Chambolle and T. Pock, A first-order primal-dual algorithm for convex problems with applications to
    imaging, Journal of Mathematical Imaging and Vision 40, 2011, algorithm 1.
    L. Condat, A primal-dual splitting method for convex optimization involving Lipschitzian, proximable and
    linear composite terms, Journal of Optimization Theory and Applications 158, 2013 (the relaxation).
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
    saddle = _saddle(objective)
    with torch.no_grad():
        start = _start(saddle, x0)
    return iterate(_step, saddle, start, max_steps=max_steps, tol=tol, callback=callback)


class PrimalDualPath:
    """Minimisers of a sequence of objectives, each sought from where the iteration for the last one stopped.

    The iteration is that of :func:`primal_dual`. Objectives that differ in a weight only have primal and dual
    minimisers that are close to one another: it then takes a fraction of the steps.

    Parameters
    ----------
    x0 : Tensor of shape (n, *dims)
        Starting points of the first objective.
    max_steps : int, default=200
        Largest number of steps for each objective.
    tol : float, default=1e-3
        Tolerance, see :func:`primal_dual`.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares, TotalVariation
    >>> from skinverse.solvers import PrimalDualPath
    >>> y = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    >>> path = PrimalDualPath(y, tol=1e-6)
    >>> for weight in (0.2, 0.1):
    ...     print(path.minimise(LeastSquares(None, y) + weight * TotalVariation()))
    tensor([[0.1000, 0.1000, 0.9000, 0.9000]])
    tensor([[0.0500, 0.0500, 0.9500, 0.9500]])
    """

    def __init__(self, x0: Tensor, *, max_steps: int = 200, tol: float = 1e-3) -> None:
        self._x0, self._max_steps, self._tol = x0, max_steps, tol
        self._state: _Iterate | None = None

    def minimise(self, objective: Objective) -> Tensor:
        """The images at which the iteration for the next objective stops, image by image."""
        with torch.no_grad():
            saddle = _saddle(objective)
            state = _start(saddle, self._x0) if self._state is None else self._state
            start = replace(state, residual=unknown(state.x), k=0)
            self._state = _settled(saddle, start, self._max_steps, self._tol)
        return self._state.x

    def select(self, index: Tensor) -> None:
        """Go on with some of the images."""
        self._x0 = self._x0[index]
        self._state = None if self._state is None else self._state.select(index)


def _settled(saddle: _Saddle, state: _Iterate, max_steps: int, tol: float) -> _Iterate:
    """All variables where each image stopped."""
    whole, active = state, torch.arange(len(state.x), device=state.x.device)
    for _ in range(max_steps):
        state = _step(saddle, state)
        going = state.residual >= tol
        if going.all():
            continue
        whole = whole.replaced(active, state)
        active, kept = active[going], going.nonzero()[:, 0]
        if len(active) == 0:
            return whole
        state, saddle = state.select(kept), saddle.select(kept)
    return whole.replaced(active, state)


@dataclass(frozen=True)
class _Block:
    """One term ``f(K x)`` with its dual variable ``u``; ``K`` is None for the identity."""

    f: Objective
    K: LinearMap | None
    nu: float  # ||K||

    def select(self, index: Tensor) -> _Block:
        return replace(self, f=self.f.select(index))

    def apply(self, x: Tensor) -> Tensor:
        """``K x``."""
        return x if self.K is None else self.K(x)

    def adjoint(self, u: Tensor) -> Tensor:
        """``K^* u``."""
        return u if self.K is None else self.K.adjoint(u)

    def dual_step(self, u: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """``prox_(sigma f^*)(u + sigma K x)``."""
        return self.f.prox_conjugate(u + expand(sigma, u) * self.apply(x), sigma)


@dataclass(frozen=True)
class _Saddle:
    """``min_x max_u g(x) + sum_i <K_i x, u_i> - f_i^*(u_i)`` for the active images; ``g`` None is zero."""

    g: Objective | None
    blocks: tuple[_Block, ...]
    objective: Objective

    def __call__(self, x: Tensor) -> Tensor:
        return self.objective(x)

    def select(self, index: Tensor) -> _Saddle:
        g = None if self.g is None else self.g.select(index)
        return _Saddle(g, tuple(block.select(index) for block in self.blocks), self.objective.select(index))

    def prox(self, x: Tensor, tau: Tensor) -> Tensor:
        """Prox of ``tau g``."""
        return x if self.g is None else self.g.prox(x, tau)

    def adjoint(self, u: tuple[Tensor, ...], like: Tensor) -> Tensor:
        """``sum_i K_i^* u_i``."""
        parts = [block.adjoint(v) for block, v in zip(self.blocks, u, strict=True)]
        return sum(parts[1:], parts[0]) if parts else torch.zeros_like(like)

    def dual_length(self, u: tuple[Tensor, ...], like: Tensor) -> Tensor:
        """Norm of the dual variables in the units of ``K x``: ``sqrt(m sum_i nu_i^2 ||u_i||^2)``."""
        squares = [len(u) * b.nu**2 * norm(v).square() for b, v in zip(self.blocks, u, strict=True)]
        return torch.stack(squares).sum(0).sqrt() if squares else torch.zeros_like(like)

    def gap(self, x: Tensor, u: tuple[Tensor, ...], rounding: Tensor) -> Tensor:
        """Difference of primal and dual value relative to their size; NaN or infinite where unknown."""
        conjugates = [block.f.conjugate(v) for block, v in zip(self.blocks, u, strict=True)]
        known = [c for c in conjugates if c is not None]
        low = None if self.g is None else self.g.conjugate(-self.adjoint(u, x))
        if self.g is None or low is None or len(known) < len(conjugates):
            return torch.full_like(rounding, torch.nan)
        value = self.g(x) + sum(block.f(block.apply(x)) for block in self.blocks)
        dual = -low - sum(known)
        return (value - dual) / (torch.maximum(value.abs(), dual.abs()) + rounding)


@dataclass(frozen=True)
class _Iterate(Record):
    """Where the iteration stands."""

    x: Tensor  # images as the prox of g leaves them
    residual: Tensor
    z: Tensor  # images, over-relaxed
    u: tuple[Tensor, ...]  # dual variables, over-relaxed
    x0: Tensor
    omega: Tensor  # weight of the primal against the dual steps
    k: int  # number of steps taken


def _saddle(objective: Objective) -> _Saddle:
    pairs = [(term, *term.split()) for term in objective.summands]
    for term, f, _ in pairs:
        if not f.proximable:
            raise TypeError(
                f"primal_dual needs a prox or a split and {term!r} has neither: use accelerated_gradient "
                "if it is smooth, lifted() if it is a TotalGeneralizedVariation"
            )
    plain = [f for _, f, K in pairs if K is None]
    # Every image is a result of the prox of g. A constraint, which people write last, is therefore g.
    g = min(reversed(plain), key=lambda f: f.smooth, default=None)
    blocks = [_Block(f, K, 1.0 if K is None else K.norm() or 1.0) for _, f, K in pairs if f is not g]
    return _Saddle(g, tuple(blocks), objective)


def _start(saddle: _Saddle, x0: Tensor) -> _Iterate:
    infinite = unknown(x0)
    omega = torch.full_like(infinite, max((block.nu**2 for block in saddle.blocks), default=1.0))
    u = tuple(torch.zeros_like(block.apply(x0)) for block in saddle.blocks)
    return _Iterate(x0, infinite, z=x0, u=u, x0=x0, omega=omega, k=0)


def _step(saddle: _Saddle, s: _Iterate) -> _Iterate:
    z, k, m = s.z, s.k + 1, len(saddle.blocks)
    tau, sigmas = 1 / s.omega, [s.omega / (m * block.nu**2) for block in saddle.blocks]
    x = saddle.prox(z - expand(tau, z) * saddle.adjoint(s.u, z), tau)
    steps = zip(saddle.blocks, s.u, sigmas, strict=True)
    u = tuple(block.dual_step(old, 2 * x - z, sigma) for block, old, sigma in steps)
    dx, du = x - z, tuple(new - old for new, old in zip(u, s.u, strict=True))
    # Not after the first step, whose weight knows nothing yet of the scale of data and images.
    checked = 1 < k < _GAP_EVERY or k % _GAP_EVERY == 0
    balanced = k <= _LAST_BALANCE and k & (k - 1) == 0  # a power of two
    return replace(
        s,
        x=x,
        residual=_residual(saddle, s.omega, x, u, dx, du) if checked else s.residual,
        z=z + _RELAXATION * dx,
        u=tuple(old + _RELAXATION * d for old, d in zip(s.u, du, strict=True)),
        omega=_balanced(saddle, s, x, u) if balanced else s.omega,
        k=k,
    )


def _residual(
    saddle: _Saddle,
    omega: Tensor,
    x: Tensor,
    u: tuple[Tensor, ...],
    dx: Tensor,
    du: tuple[Tensor, ...],
) -> Tensor:
    """Relative gap where it is known, else ten times the relative change in the norm of the iteration."""

    def size(x: Tensor, u: tuple[Tensor, ...]) -> Tensor:
        return (omega * norm(x).square() + saddle.dual_length(u, omega).square() / omega).sqrt()

    change = 10 * size(dx, du) / size(x, u).clamp_min(torch.finfo(omega.dtype).tiny)
    # A gap relative to values that are themselves rounding errors would never become small.
    rounding = math.sqrt(torch.finfo(omega.dtype).eps) * omega * norm(x).square()
    gap = saddle.gap(x, u, rounding)
    residual = torch.where(torch.isfinite(gap), gap.clamp_min(0), change)
    # Constraints behind a linear map hold in the limit only: until then the objective is infinite.
    return torch.where(torch.isposinf(saddle(x)), torch.inf, residual)


def _balanced(saddle: _Saddle, s: _Iterate, x: Tensor, u: tuple[Tensor, ...]) -> Tensor:
    """The weight with which the dual variables go twice as far as the image: the fastest in practice."""
    dual = saddle.dual_length(u, s.omega)
    primal = _distance(saddle, s.x0, x, dual)
    tiny = math.sqrt(torch.finfo(dual.dtype).tiny)
    return torch.where((primal > tiny) & (dual > tiny), 2 * dual / primal.clamp_min(tiny), s.omega)


def _distance(saddle: _Saddle, x0: Tensor, x: Tensor, dual: Tensor) -> Tensor:
    """How far the images are from their start; of those that are still zero, how far they may have to go.

    For an objective of the value ``f(0)`` and dual variables of length ``r`` that is ``f(0) / r``.
    """
    gone = torch.maximum(norm(x - x0), norm(x) / 10)
    if not bool((gone == 0).any()):
        return gone
    ahead = saddle(x) / dual
    return torch.where((gone == 0) & torch.isfinite(ahead), ahead, gone)

"""The lower level of bilevel learning: reconstructions that are differentiable in the regulariser."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import expand, real_like
from skinverse.energies import SmoothEnergy
from skinverse.estimators._learned import Failures
from skinverse.functionals import Functional
from skinverse.solvers import Solution, conjugate_gradient, implicit, jacobian_free, minres

# Lowest and highest value of a pixel, None without bound.
Interval = tuple[float | None, float | None] | None
# `(misfit, regulariser, start, tolerance) -> Solution`.
Minimise = Callable[[Functional, Functional, Tensor, float], Solution]

_UNSOLVED = (
    "BilevelRegularizer: {n_failed} of {n_solved} images in training did not converge at the lower level "
    "(largest residual {worst}): raise max_steps or tol"
)
_UNSOLVED_DERIVATIVES = (
    "BilevelRegularizer: {n_failed} of {n_solved} linear systems for derivatives in training were not solved "
    '(largest residual {worst}): raise max_steps, or take hypergradient="minres" or "jacobian_free"'
)
# Tolerance of the linear systems, and how much looser all tolerances are when a training begins.
_LINEAR_TOL, _LOOSE = 1e-3, 10.0
_LINEAR_SOLVERS = {"cg": conjugate_gradient, "minres": minres}


class LowerLevel:
    """``x_hat = argmin_x 1/2 ||A x - y||^2 + R(x)``, differentiable in the parameters of ``R``.

    The tolerances tighten by a factor of ten in the course of the training, and reconstructions that did not
    converge are counted.

    Parameters
    ----------
    minimise : callable
        ``(misfit, R, start, tol) -> Solution``.
    hypergradient : {"cg", "minres", "jacobian_free"}
        Solver of the linear system in the derivative, or what replaces it.
    bounds : (low, high) or None
        Interval of the values of the images.
    max_steps : int
        Largest number of steps of the linear solver.
    tol : float
        Tolerance of the reconstructions at the end of the training.
    n_steps : int
        Number of steps of the training.
    """

    def __init__(
        self,
        minimise: Minimise,
        hypergradient: str,
        bounds: Interval,
        *,
        max_steps: int,
        tol: float,
        n_steps: int,
    ) -> None:
        self.minimise, self.hypergradient, self.bounds = minimise, hypergradient, bounds
        self.max_steps, self.tol, self.n_steps = max_steps, tol, n_steps
        self.n_steps_done = 0
        self.failures, self.derivatives = Failures(_UNSOLVED), Failures(_UNSOLVED_DERIVATIVES)

    def __call__(self, misfit: Functional, R: Functional, x0: Tensor) -> Tensor:
        """Reconstructions, differentiable where gradients are enabled."""
        progress = min(1.0, self.n_steps_done / max(1, self.n_steps))
        looseness = _LOOSE ** (1 - progress)
        solution = self.minimise(misfit, R, x0, looseness * self.tol)
        if not torch.is_grad_enabled():
            return solution.x
        self.failures.count(solution)
        free = free_pixels(solution.x, self.bounds)
        if self.hypergradient == "jacobian_free":
            return jacobian_free(misfit + R, solution.x, solution.extra["step"], free=free)
        return implicit(
            misfit + R,
            solution.x,
            free=free,
            solve=_LINEAR_SOLVERS[self.hypergradient],
            max_steps=self.max_steps,
            tol=looseness * _LINEAR_TOL,
            note=self.derivatives.count,
        )

    def advance(self) -> None:
        """Count a step of the training."""
        self.n_steps_done += 1

    def warn(self) -> None:
        """Warn of reconstructions and derivatives that did not converge, with their numbers."""
        self.failures.warn()
        self.derivatives.warn()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "n_steps_done": self.n_steps_done,
            "failures": self.failures.state_dict(),
            "derivatives": self.derivatives.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.n_steps_done = state["n_steps_done"]
        self.failures.load_state_dict(state["failures"])
        self.derivatives.load_state_dict(state["derivatives"])


def choose_linear_solver(hypergradient: str, smooth: SmoothEnergy, *, denoising: bool) -> str:
    """Conjugate gradients only where the lower level is known to be strongly convex, MINRES elsewhere.

    What neither the operator nor a convex energy sees, as many do not see a constant, makes the Hessian
    singular: conjugate gradients do not solve such a system.
    """
    wanted = smooth.beta is not None and smooth.beta <= 1 + smooth.alpha
    # Convex whatever the weights will be, by the bound or without it.
    convex = (smooth.certified and wanted) or smooth.energy.weak_convexity() == 0
    if hypergradient == "auto":
        return "cg" if convex and (denoising or smooth.alpha > 0) else "minres"
    if hypergradient == "cg" and not convex and not wanted:
        warnings.warn(
            f'hypergradient="cg" needs beta <= 1 + alpha, got beta={smooth.beta}: MINRES is used instead',
            stacklevel=2,
        )
        return "minres"
    return hypergradient


def free_pixels(x: Tensor, bounds: Interval) -> Tensor | None:
    """The pixels strictly between the bounds, which alone can move; None without bounds."""
    if bounds is None:
        return None
    low, high = bounds
    above = torch.ones_like(x, dtype=torch.bool) if low is None else x > low
    return above if high is None else above & (x < high)


class ProximalFidelity(Functional):
    """``1/2 ||A x - y||^2`` for solvers that take its prox instead of its gradient.

    Parameters
    ----------
    misfit : LeastSquares
        The fidelity.
    """

    proximable = True

    def __init__(self, misfit: Any) -> None:
        self.misfit = misfit

    def __call__(self, x: Tensor) -> Tensor:
        """``1/2 ||A x - y||^2``."""
        return self.misfit(x)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """``(I + t A^*A)^-1 (x + t A^* y)``, by conjugate gradients from ``x``."""
        A, y = self.misfit.A, self.misfit.y
        if A is None:
            return self.misfit.prox(x, step)
        t = expand(step, x)

        def system(z: Tensor) -> Tensor:
            return z + t * real_like(A.adjoint(A(z)), x)

        right = x + t * real_like(A.adjoint(y), x)
        return conjugate_gradient(system, right, x, max_steps=100, tol=1e-6).x

    def select(self, index: Tensor) -> Functional:
        """The same for some of the images."""
        return ProximalFidelity(self.misfit.select(index))

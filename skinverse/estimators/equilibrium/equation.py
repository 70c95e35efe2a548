"""The equation that a reconstruction solves, and its solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import expand, norm, real_like, relative_change
from skinverse.estimators.equilibrium.module import Equilibrium
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, anderson, broyden, fixed_point, gmres, neumann, picard

SOLVERS = {"anderson": anderson, "picard": picard, "broyden": broyden}
BACKWARD: dict[str, Any] = {
    "gmres": gmres,
    "anderson": partial(neumann, forward=anderson),
    "neumann": neumann,
    "jacobian_free": neumann,  # no steps of it
}
_BACKWARD_STEPS, _BACKWARD_TOL = 30, 1e-3
# Relative change in the last unrolled step with which nothing has been reconstructed.
_MOVED = 0.5


class Equation:
    """The equation ``z = f(z, b, w)`` with ``b = A^* W y`` for a batch of measurements ``y``.

    The operator has norm 1. Each image may have weights ``w`` of its own, at most 1, in place of 1. ``z0``
    are the variables of given images ``x0``, which also tell the shape and kind of the solution.
    """

    def __init__(
        self,
        module: Equilibrium,
        A: LinearMap,
        y: Tensor,
        x0: Tensor,
        channel_axis: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.module, self.A, self.dims = module, A, x0.shape[1:]
        self.square = 1.0 if A.identity else A.norm() ** 2 or 1.0
        self.f = module.map(self.normal, self.dims, channel_axis)
        y = y if weights is None else weights * y
        b = (y if A.identity else real_like(A.adjoint(y), x0)) / self.square
        # What belongs to each image beside `z`.
        self.given: tuple[Tensor, ...] = (b,) if weights is None else (b, weights)
        self.z0 = module.variables(x0)

    def normal(self, z: Tensor, w: Tensor | None = None) -> Tensor:
        """``A^* W A z``."""
        Az = z if self.A.identity else self.A(z)
        WAz = Az if w is None else w * Az
        return WAz if self.A.identity else real_like(self.A.adjoint(WAz), z) / self.square

    def image(self, z: Tensor) -> Tensor:
        """The image among the variables."""
        return self.module.image(z, self.dims)


def solve(
    equation: Equation,
    z0: Tensor,
    *,
    solver: str,
    backward: str,
    max_steps: int,
    tol: float,
    note: Callable[[Solution], None] | None = None,
) -> Solution:
    """The fixed point, or so many unrolled steps towards it; differentiable where gradients are enabled.

    ``note`` is called with the solution of the linear systems in a backward pass.
    """
    if backward == "unroll":
        return unroll(equation, z0, max_steps)
    return fixed_point(
        equation.f,
        z0,
        given=equation.given,
        forward=SOLVERS[solver],
        backward=BACKWARD[backward],
        max_steps=max_steps,
        tol=tol,
        backward_steps=0 if backward == "jacobian_free" else _BACKWARD_STEPS,
        backward_tol=_BACKWARD_TOL,
        note=note,
    )


def unroll(equation: Equation, z: Tensor, n_steps: int) -> Solution:
    """So many steps ``z <- f(z, b, w)``; an image that turns non-finite keeps its last finite iterate.

    The residual is the last relative change.
    """
    solution = Solution.direct(z)
    finite, residual = solution.converged, solution.residual
    for _ in range(n_steps):
        new = equation.f(z, *equation.given)
        finite = finite & torch.isfinite(norm(new))
        residual = relative_change(new, z).detach()
        z = torch.where(expand(finite, z), new, z)
    residual = torch.where(finite, residual, torch.inf)
    return replace(
        solution, x=z, n_steps=solution.n_steps + n_steps, converged=residual < _MOVED, residual=residual
    )

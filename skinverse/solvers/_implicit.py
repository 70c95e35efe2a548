"""Derivatives of a minimiser in the parameters of its objective, however it was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skinverse._tensors import expand
from skinverse.solvers._krylov import minres
from skinverse.solvers._objective import Objective
from skinverse.solvers._solution import Solution

LinearSolver = Callable[..., Solution]
PullBack = Callable[[Tensor], tuple[Tensor | None, ...]]
# Called with the solution of the linear systems of a backward pass.
Note = Callable[[Solution], None]

# What torch calls the node of a leaf in its graph.
_LEAF = "torch::autograd::AccumulateGrad"


class Hessian:
    """Second derivative of ``J`` at ``x`` as a linear map of batches.

    The gradient is recorded once; each product is one pass backwards through it.

    Parameters
    ----------
    objective : Functional
        The functional ``J``, twice differentiable near ``x``.
    x : Tensor of shape (n, *dims)
        Images at which to differentiate.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        Pixels that may move; None is all. The others are held by a bound, and there the map is the identity.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import SquaredNorm
    >>> from skinverse.solvers import Hessian
    >>> Hessian(SquaredNorm(), torch.zeros(1, 2))(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def __init__(self, objective: Objective, x: Tensor, *, free: Tensor | None = None) -> None:
        self.free = free
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.gradient = objective.grad(self.x)

    def __call__(self, v: Tensor) -> Tensor:
        inside = self.project(v)
        (product,) = torch.autograd.grad(self.gradient, self.x, inside, retain_graph=True)
        return self.project(product) + (v - inside)

    def project(self, v: Tensor) -> Tensor:
        """The part of ``v`` on the free pixels."""
        return v if self.free is None else torch.where(self.free, v, 0)


def implicit(
    objective: Objective,
    x: Tensor,
    *,
    free: Tensor | None = None,
    solve: LinearSolver = minres,
    max_steps: int = 1000,
    tol: float = 1e-6,
    note: Note | None = None,
) -> Tensor:
    """The minimiser ``x`` of ``J(., theta)`` as a differentiable function of ``theta``.

    The backward pass maps a cotangent ``v`` to ``-(d/dtheta grad J)^T H^-1 v``, where ``H`` is the Hessian of
    ``J`` at ``x``. It solves one linear system per image, whichever solver found ``x`` in however many steps.
    Where ``H`` is singular, as for measurements that do not see a constant, ``H^-1`` is the pseudo-inverse:
    ``x`` is the minimiser nearest to its start, to which descent leads, and does not move in the null space.

    Parameters
    ----------
    objective : Functional
        The functional ``J``, twice differentiable near ``x``, whose parameters require gradients.
    x : Tensor of shape (n, *dims)
        Minimiser of ``J``; the derivative is as accurate as the minimiser is.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        Pixels that are not held by a bound; None is all.
    solve : callable, default=minres
        Solver of the linear systems. Where the Hessian is known to be positive definite,
        :func:`~skinverse.solvers.conjugate_gradient` may be used, which cannot solve singular systems.
    max_steps : int, default=1000
        Largest number of steps of ``solve``.
    tol : float, default=1e-6
        Tolerance of ``solve``, a relative residual.
    note : callable or None, default=None
        Function called with the solution of the linear systems in each backward pass; None warns of those
        that were not solved.

    Returns
    -------
    Tensor of shape (n, *dims)
        A tensor equal to ``x`` that carries the derivative.

    Warns
    -----
    ConvergenceWarning
        In the backward pass, if linear systems were not solved and ``note`` is None.

    References
    ----------
    L. El Ghaoui, F. Gu, B. Travacca, A. Askari and A. Tsai, Implicit deep learning, SIAM Journal on
    Mathematics of Data Science 3, 2021.
    K. G. G. Samuel and M. F. Tappen, Learning optimized MAP estimates in continuously-valued MRF models,
    CVPR, 2009.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> from skinverse.solvers import implicit
    >>> y = torch.ones(1, 2, requires_grad=True)
    >>> implicit(LeastSquares(None, y), torch.ones(1, 2)).sum().backward()
    >>> y.grad
    tensor([[1., 1.]])
    """
    hessian = Hessian(objective, x, free=free)

    def inverse(v: Tensor) -> Tensor:
        found = solve(hessian, hessian.project(v), max_steps=max_steps, tol=tol)
        (note or warn_of_unsolved)(found)
        return hessian.project(found.x)

    return attach(hessian.gradient, hessian.x, inverse)


def warn_of_unsolved(found: Solution) -> None:
    """Say how many linear systems of a backward pass were not solved."""
    failed = ~found.converged
    if failed.any():
        warnings.warn(
            f"{int(failed.sum())} of {len(failed)} linear systems of a derivative were not solved (largest "
            f"residual {float(found.residual[failed].max()):.1e}): raise the number of steps or tol",
            ConvergenceWarning,
            stacklevel=2,
        )


def jacobian_free(
    objective: Objective, x: Tensor, step: Tensor | float, *, free: Tensor | None = None
) -> Tensor:
    """The minimiser ``x`` of ``J``, differentiated through one gradient step only.

    The inverse Hessian of :func:`implicit` is replaced by the step ``t`` of the last iteration. No linear
    system is solved; where the iteration contracts, the result is still a direction of descent.

    Parameters
    ----------
    objective : Functional
        The functional ``J``, whose parameters require gradients.
    x : Tensor of shape (n, *dims)
        Minimiser of ``J``.
    step : float or Tensor of shape (n,)
        Step ``t`` of the gradient method at ``x``.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        Pixels that are not held by a bound; None is all.

    Returns
    -------
    Tensor of shape (n, *dims)
        A tensor equal to ``x`` that carries the derivative.

    References
    ----------
    S. W. Fung et al., JFB: Jacobian-free backpropagation for implicit networks, AAAI, 2022.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> from skinverse.solvers import jacobian_free
    >>> y = torch.ones(1, 2, requires_grad=True)
    >>> jacobian_free(LeastSquares(None, y), torch.ones(1, 2), 0.5).sum().backward()
    >>> y.grad
    tensor([[0.5000, 0.5000]])
    """
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        gradient = objective.grad(z)

    def inverse(v: Tensor) -> Tensor:
        return expand(step, v) * (v if free is None else torch.where(free, v, 0))

    return attach(gradient, z, inverse)


def attach(equation: Tensor, x: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """A copy of ``x`` as the solution of ``equation(x, theta) = 0``, differentiable in ``theta``.

    By the implicit function theorem, a cotangent ``v`` of ``x`` becomes the cotangent ``-inverse(v)`` of the
    equation, where ``inverse`` is the inverse of the transposed derivative of the equation by ``x``.
    """
    parameters = tuple(_leaves(equation) - {x})
    if not parameters:
        return x.detach()

    def pull_back(v: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(equation, parameters, -inverse(v), retain_graph=True, allow_unused=True)

    with torch.enable_grad():
        attached: Tensor = _Attached.apply(x.detach(), pull_back, *parameters)
    return attached


class _Attached(torch.autograd.Function):
    """The identity in ``x`` with a given derivative by the parameters, which its value does not depend on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull_back: PullBack, *parameters: Tensor) -> Tensor:
        ctx.pull_back = pull_back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.pull_back(v))


def _leaves(x: Tensor) -> set[Tensor]:
    """The leaves of the graph of ``x``, in which torch accumulates gradients."""
    waiting: list[Any] = [x.grad_fn]
    seen, leaves = set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == _LEAF:
            leaves.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return leaves

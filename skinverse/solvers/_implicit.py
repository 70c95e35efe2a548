"""Derivatives of a minimiser in the parameters of its objective, however it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skinverse._batch import expand
from skinverse.solvers._krylov import minres
from skinverse.solvers._solution import Solution

LinearSolver = Callable[..., Solution]
PullBack = Callable[[Tensor], tuple[Tensor | None, ...]]


class Hessian:
    """Second derivative of ``J`` at ``x``, as a linear map on batches; its graph is built once.

    Parameters
    ----------
    objective : Functional
        ``J``, smooth.
    x : Tensor of shape (n, *dims)
        Where to differentiate.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        The pixels that may move; the others sit on a bound. On them the map is the identity.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import SquaredNorm
    >>> from skinverse.solvers import Hessian
    >>> Hessian(SquaredNorm(), torch.zeros(1, 2))(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def __init__(self, objective: Any, x: Tensor, *, free: Tensor | None = None) -> None:
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
    objective: Any,
    x: Tensor,
    *,
    free: Tensor | None = None,
    solve: LinearSolver = minres,
    max_steps: int = 1000,
    tol: float = 1e-6,
) -> Tensor:
    """The minimiser ``x`` of ``J(., theta)`` again, as a differentiable function of ``theta``.

    Backwards, a cotangent ``v`` becomes ``-(d/dtheta grad J)^T H^-1 v`` with the Hessian ``H`` of ``J`` at
    ``x``: one linear system per image, whatever solver and however many steps found ``x``; nothing is
    stored per step.

    Parameters
    ----------
    objective : Functional
        ``J``, twice differentiable near ``x``, whose parameters require gradients.
    x : Tensor of shape (n, *dims)
        A minimiser; the derivative is as accurate as it is.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        Pixels that are not held by a bound; by default all.
    solve : callable, default=minres
        :func:`~skinverse.solvers.conjugate_gradient` where the Hessian is known to be positive definite.
    max_steps : int, default=1000
        Most steps of ``solve``.
    tol : float, default=1e-6
        Its relative residual.

    Returns
    -------
    Tensor of shape (n, *dims)
        Equal to ``x``.

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
        return hessian.project(solve(hessian, hessian.project(v), max_steps=max_steps, tol=tol).x)

    return attach(hessian.gradient, hessian.x, inverse)


def jacobian_free(objective: Any, x: Tensor, step: Tensor | float, *, free: Tensor | None = None) -> Tensor:
    """The minimiser ``x`` again, differentiated through one gradient step only.

    The inverse Hessian of :func:`implicit` is replaced by the step ``t`` of the last iteration: cheaper, and
    a descent direction where the iteration contracts.

    Parameters
    ----------
    objective : Functional
        ``J``, whose parameters require gradients.
    x : Tensor of shape (n, *dims)
        A minimiser.
    step : float or Tensor of shape (n,)
        The ``t``.
    free : Tensor of bool, shape (n, *dims), or None, default=None
        Pixels that are not held by a bound; by default all.

    Returns
    -------
    Tensor of shape (n, *dims)
        Equal to ``x``.

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
    return attach(gradient, z, lambda v: expand(step, v) * (v if free is None else torch.where(free, v, 0)))


def attach(gradient: Tensor, x: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """``x``, whose cotangents ``v`` go to the parameters of ``grad J(x, theta)`` as ``-inverse(v)``."""
    parameters = tuple(_leaves(gradient) - {x})
    if not parameters:
        return x.detach()

    def pull_back(v: Tensor) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(gradient, parameters, -inverse(v), retain_graph=True, allow_unused=True)

    with torch.enable_grad():
        attached: Tensor = _Attached.apply(x.detach(), pull_back, *parameters)
    return attached


class _Attached(torch.autograd.Function):
    """The identity, with a derivative of its own in parameters that it does not look at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull_back: PullBack, *parameters: Tensor) -> Tensor:
        ctx.pull_back = pull_back
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.pull_back(v))


def _leaves(x: Tensor) -> set[Tensor]:
    """The tensors that a gradient of ``x`` would end in."""
    waiting, seen, found = [x.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found

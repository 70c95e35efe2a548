"""Derivatives through a fixed point, however it was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skinverse.solvers._fixed_point import FixedPointSolver, Map, anderson, picard
from skinverse.solvers._implicit import LinearSolver, Note, attach, warn_of_unsolved
from skinverse.solvers._krylov import gmres
from skinverse.solvers._solution import Solution


def fixed_point(
    f: Map,
    z0: Tensor,
    *,
    given: tuple[Tensor, ...] = (),
    forward: FixedPointSolver = anderson,
    backward: LinearSolver = gmres,
    max_steps: int = 100,
    tol: float = 1e-5,
    backward_steps: int = 50,
    backward_tol: float = 1e-4,
    note: Note | None = None,
) -> Solution:
    """The solution of ``z = f(z, theta)``, differentiable in ``theta`` and in ``given``.

    The backward pass maps a cotangent ``v`` to ``(df/dtheta)^T (I - J^T)^-1 v``, where ``J`` is the Jacobian
    of ``f`` at the solution. It solves one linear system per image, whichever solver found the solution, and
    the forward pass stores nothing per step.

    Parameters
    ----------
    f : callable
        Map ``f(z, *given)`` of batches, (n, *dims) -> (n, *dims), which treats images separately.
    z0 : Tensor of shape (n, *dims)
        Starting points.
    given : tuple of Tensor of shape (n, ...), default=()
        Further arguments of ``f``, one entry per image.
    forward : callable, default=anderson
        Solver of the equation: :func:`picard`, :func:`anderson` or :func:`broyden`.
    backward : callable, default=gmres
        Solver of ``(I - J^T) w = v``: :func:`gmres`, or :func:`neumann` with one of the forward solvers.
    max_steps, tol : int and float, default=100 and 1e-5
        Largest number of steps and tolerance of ``forward``.
    backward_steps, backward_tol : int and float, default=50 and 1e-4
        Largest number of steps and tolerance of ``backward``. With :func:`neumann`, zero steps give the
        Jacobian-free derivative, ``w = v``.
    note : callable or None, default=None
        Function called with the solution of the linear systems in each backward pass; None warns of those
        that were not solved, unless ``backward_steps`` is zero.

    Returns
    -------
    Solution
        The solution and how each image ended; ``x`` carries the derivative where gradients are enabled.

    Warns
    -----
    ConvergenceWarning
        In the backward pass, if linear systems were not solved and ``note`` is None.

    References
    ----------
    S. Bai, J. Z. Kolter and V. Koltun, Deep equilibrium models, NeurIPS, 2019.
    S. W. Fung et al., JFB: Jacobian-free backpropagation for implicit networks, AAAI, 2022.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import fixed_point
    >>> b = torch.ones(1, 1, requires_grad=True)
    >>> fixed_point(lambda z: z / 2 + b, torch.zeros(1, 1)).x.sum().backward()
    >>> b.grad.round(decimals=3)
    tensor([[2.]])
    """
    solution = forward(f, z0, given=given, max_steps=max_steps, tol=tol)
    if not torch.is_grad_enabled():
        return solution
    z = solution.x.detach().requires_grad_()
    fz = f(z, *given).clone()

    def equation(w: Tensor) -> Tensor:
        return w - torch.autograd.grad(fz, z, w, retain_graph=True, materialize_grads=True)[0]

    def inverse(v: Tensor) -> Tensor:
        found = backward(equation, v, max_steps=backward_steps, tol=backward_tol)
        if backward_steps > 0:  # else nobody wanted a solution
            (note or warn_of_unsolved)(found)
        return -found.x

    return replace(solution, x=attach(fz, z, inverse))


def neumann(
    linear: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    forward: FixedPointSolver = picard,
    max_steps: int = 50,
    tol: float = 1e-4,
) -> Solution:
    """Solve ``B x = b`` as the fixed point of ``x + b - B x``; Picard's steps sum the Neumann series.

    Parameters
    ----------
    linear : callable
        The map ``B`` of batches, (n, *dims) -> (n, *dims), which treats images separately.
    b : Tensor of shape (n, *dims)
        Right-hand sides, which are also the starting points.
    forward : callable, default=picard
        Solver of the fixed-point equation: :func:`picard`, :func:`anderson` or :func:`broyden`.
    max_steps : int, default=50
        Largest number of steps.
    tol : float, default=1e-4
        Tolerance: an image stops when a step changes it by less, relative to its norm.

    Returns
    -------
    Solution
        As of :func:`picard`.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import neumann
    >>> neumann(lambda x: x / 2, torch.ones(1, 1)).x.round(decimals=2)
    tensor([[2.]])
    """

    def f(x: Tensor, index: Tensor) -> Tensor:
        # `linear` takes whole batches only, as the Jacobian of a batch does: finished images are zero.
        whole = torch.zeros_like(b).index_copy(0, index, x)
        return x + (b - linear(whole))[index]

    index = torch.arange(len(b), device=b.device)
    return forward(f, b, given=(index,), max_steps=max_steps, tol=tol)

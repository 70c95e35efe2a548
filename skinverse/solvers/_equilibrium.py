"""Derivatives through a fixed point, however it was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skinverse.solvers._fixed_point import FixedPointSolver, Map, anderson, picard
from skinverse.solvers._implicit import LinearSolver, attach
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
) -> Solution:
    """The solution of ``z = f(z, theta)``, differentiable in ``theta`` and in what is ``given``.

    Backwards a cotangent ``v`` becomes ``(df/dtheta)^T (I - J^T)^-1 v`` with the Jacobian ``J`` of ``f`` at
    the solution: one linear system per image, whatever found the solution; nothing is stored per step.

    Parameters
    ----------
    f : callable
        ``f(z, *given)``, batches to batches, (n, *dims) -> (n, *dims), image by image.
    z0 : Tensor of shape (n, *dims)
        Start.
    given : tuple of Tensor of shape (n, ...), default=()
        What else ``f`` sees of each image.
    forward : callable, default=anderson
        :func:`picard`, :func:`anderson` or :func:`broyden`.
    backward : callable, default=gmres
        Solves ``(I - J^T) w = v``: :func:`gmres`, or :func:`neumann` with one of the forward solvers.
    max_steps, tol : int and float, default=100 and 1e-5
        Limits of ``forward``.
    backward_steps, backward_tol : int and float, default=50 and 1e-4
        Limits of ``backward``. No steps of :func:`neumann` are the Jacobian-free derivative, ``w = v``.

    Returns
    -------
    Solution
        Its ``x`` carries the derivative where gradients are enabled.

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
        return -backward(equation, v, max_steps=backward_steps, tol=backward_tol).x

    return replace(solution, x=attach(fz, z, inverse))


def neumann(
    linear: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    forward: FixedPointSolver = picard,
    max_steps: int = 50,
    tol: float = 1e-4,
) -> Solution:
    """Solve ``B x = b`` as a fixed point, ``x = x + b - B x``; plain steps sum the Neumann series.

    Parameters
    ----------
    linear : callable
        ``B`` on batches.
    b : Tensor of shape (n, *dims)
        Right-hand sides, and the start.
    forward : callable, default=picard
        Also :func:`anderson` or :func:`broyden`.
    max_steps : int, default=50
        Most steps.
    tol : float, default=1e-4
        Relative change at which an image stops.

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

    def f(x: Tensor, members: Tensor) -> Tensor:
        everyone = torch.zeros_like(b).index_copy(0, members, x)
        return x + (b - linear(everyone))[members]

    members = torch.arange(len(b), device=b.device)
    return forward(f, b, given=(members,), max_steps=max_steps, tol=tol)


def join(*variables: Tensor) -> Tensor:
    """Several variables of each image as one vector, (n, ...) each -> (n, size).

    Parameters
    ----------
    *variables : Tensor of shape (n, ...)
        All real or all complex.

    Returns
    -------
    Tensor of shape (n, size)
        To be taken apart by :func:`part`.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import join
    >>> join(torch.zeros(5, 2, 3), torch.zeros(5, 4)).shape
    torch.Size([5, 10])
    """
    return torch.cat([v.flatten(1) for v in variables], 1)


def part(z: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Undo :func:`join`: variables of these shapes, each without its first axis.

    Parameters
    ----------
    z : Tensor of shape (n, size)
        What was joined.
    *shapes : tuple of int
        Shapes of the variables of one image.

    Returns
    -------
    list of Tensor
        The variables.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import part
    >>> [v.shape for v in part(torch.zeros(5, 10), (2, 3), (4,))]
    [torch.Size([5, 2, 3]), torch.Size([5, 4])]
    """
    sizes = [math.prod(shape) for shape in shapes]
    return [v.unflatten(1, shape) for v, shape in zip(z.split(sizes, 1), shapes, strict=True)]

"""Krylov methods for batches of linear systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from skinverse._batch import dot, expand, norm
from skinverse.solvers._solution import Solution

# Pivots so much smaller than their column belong to a singular system.
_SINGULAR = {torch.float64: 1e-14, torch.float32: 1e-6}


def conjugate_gradient(
    linear: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    max_steps: int = 1000,
    tol: float = 1e-6,
) -> Solution:
    """Solve ``B x = b`` for a symmetric positive definite ``B``, image by image.

    Parameters
    ----------
    linear : callable
        ``B`` on batches, (n, *dims) -> (n, *dims); self-adjoint and positive definite on each image.
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex; zero gives exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Start, by default zero.
    precondition : callable or None, default=None
        Something near ``B^-1``, self-adjoint and positive definite too.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-6
        An image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        The objective is ``1/2 <x, B x> - <x, b>``.

    References
    ----------
    M. R. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import conjugate_gradient
    >>> conjugate_gradient(lambda x: 2 * x, torch.ones(1, 3)).x
    tensor([[0.5000, 0.5000, 0.5000]])
    """
    with torch.no_grad():
        x, r, level = _start(linear, b, x0, tol)
        z = r if precondition is None else precondition(r)
        p, square, size = z.clone(), dot(r, z), norm(r)
        going, n_steps = size > level, torch.zeros(len(b), dtype=torch.int64, device=b.device)
        for _ in range(max_steps):
            if not going.any():
                break
            q = linear(p)
            curvature = dot(p, q)
            going = going & (curvature > 0)  # the end of a singular system
            alpha = torch.where(going, square / curvature, 0)
            x = torch.where(expand(going, x), x + expand(alpha, p) * p, x)
            r = r - expand(alpha, q) * q
            z = r if precondition is None else precondition(r)
            new_square = dot(r, z)
            size = norm(r)
            p = torch.where(expand(going, p), z + expand(new_square / square, p) * p, p)
            square = torch.where(going, new_square, square)
            n_steps += going
            going = going & (size > level)
        return _solution(linear, b, x, size, level, n_steps)


def minres(
    linear: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    max_steps: int = 1000,
    tol: float = 1e-6,
) -> Solution:
    """Solve ``B x = b`` for a symmetric, possibly indefinite ``B``, image by image.

    Parameters
    ----------
    linear : callable
        ``B`` on batches, (n, *dims) -> (n, *dims); self-adjoint on each image.
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex; zero gives exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Start, by default zero.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-6
        An image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        The objective is ``1/2 <x, B x> - <x, b>``.

    References
    ----------
    C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, SIAM Journal
    on Numerical Analysis 12, 1975.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import minres
    >>> minres(lambda x: x * torch.tensor([2.0, -1.0]), torch.ones(1, 2)).x
    tensor([[ 0.5000, -1.0000]])
    """
    with torch.no_grad():
        x, r, level = _start(linear, b, x0, tol)
        beta = norm(r)
        tiny = torch.finfo(beta.dtype).tiny
        eta, v = beta.clone(), r / expand(beta.clamp_min(tiny), r)
        v_old, w, w_old = (torch.zeros_like(v) for _ in range(3))
        c, c_old, s, s_old = torch.ones_like(beta), torch.ones_like(beta), beta * 0, beta * 0
        going, n_steps = beta > level, torch.zeros(len(b), dtype=torch.int64, device=b.device)
        for k in range(max_steps):
            if not going.any():
                break
            # Lanczos: B v = beta v_old + alpha v + beta_new v_new
            p = linear(v) - (expand(beta, v) * v_old if k else 0)
            alpha = dot(v, p)
            p = p - expand(alpha, v) * v
            beta_new = norm(p)
            # Givens rotations make the tridiagonal matrix triangular: rho1, rho2, rho3 are its new column.
            off = beta if k else torch.zeros_like(beta)
            rho3, rho2 = s_old * off, s * alpha + c_old * c * off
            pivot = c * alpha - s * c_old * off
            rho1 = torch.hypot(pivot, beta_new).clamp_min(tiny)
            c_old, s_old, c, s = c, s, pivot / rho1, beta_new / rho1
            w_old, w = w, (v - expand(rho3, v) * w_old - expand(rho2, v) * w) / expand(rho1, v)
            x = torch.where(expand(going, x), x + expand(c * eta, w) * w, x)
            eta = torch.where(going, -s * eta, eta)
            v_old, v, beta = v, p / expand(beta_new.clamp_min(tiny), p), beta_new
            n_steps += going
            going = going & (eta.abs() > level)
        return _solution(linear, b, x, eta.abs(), level, n_steps)


def gmres(
    linear: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    max_steps: int = 50,
    tol: float = 1e-6,
) -> Solution:
    """Solve ``B x = b`` for any invertible real-linear ``B``, image by image, without restarts.

    Parameters
    ----------
    linear : callable
        ``B`` on batches, (n, *dims) -> (n, *dims).
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex; zero gives exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Start, by default zero.
    max_steps : int, default=50
        Most steps; each keeps one image in memory.
    tol : float, default=1e-6
        An image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        Of least residual among the combinations of ``b, B b, B^2 b, ...``. The objective is
        ``1/2 <x, B x> - <x, b>``.

    References
    ----------
    Y. Saad and M. H. Schultz, GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear
    systems, SIAM Journal on Scientific and Statistical Computing 7, 1986.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import gmres
    >>> gmres(lambda x: x @ torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 1.0]])).x
    tensor([[1.0000, 1.0000]])
    """
    with torch.no_grad():
        x, r, level = _start(linear, b, x0, tol)
        rest, tiny = norm(r), torch.finfo(level.dtype).tiny
        going, n_steps = rest > level, torch.zeros(len(b), dtype=torch.int64, device=b.device)
        basis = [torch.where(expand(going, r), r / expand(rest.clamp_min(tiny), r), 0)]
        triangle: list[list[Tensor]] = []
        turns: list[tuple[Tensor, Tensor]] = []
        heights: list[Tensor] = []
        for _ in range(max_steps):
            if not going.any():
                break
            product = linear(basis[-1])
            w, column = _orthogonalise(product, basis)
            length = norm(w)
            basis.append(w / expand(length.clamp_min(tiny), w))
            column, turn = _rotate(column, length, turns)
            going = going & (column[-1] > _SINGULAR[level.dtype] * norm(product))
            # The column of an image that has stopped is that of the identity, its height zero.
            triangle.append(
                [torch.where(going, h, 0) for h in column[:-1]] + [torch.where(going, column[-1], 1)]
            )
            heights.append(torch.where(going, turn[0] * rest, 0))
            turns.append(turn)
            rest = torch.where(going, -turn[1] * rest, rest)
            n_steps += going
            going = going & (rest.abs() > level)
        for v, c in zip(basis, _back_substitute(triangle, heights), strict=False):
            x = x + expand(c, v) * v
        return _solution(linear, b, x, norm(b - linear(x)), level, n_steps)


def _orthogonalise(w: Tensor, basis: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What of ``w`` is orthogonal to the basis, and its coefficients; twice, since once is not exact."""
    column = [torch.zeros_like(norm(w))] * len(basis)
    for _ in range(2):
        for i, v in enumerate(basis):
            c = dot(v, w)
            w, column[i] = w - expand(c, v) * v, column[i] + c
    return w, column


def _rotate(
    column: list[Tensor], length: Tensor, turns: list[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """Givens rotations: the old ones on a new column, then one that removes its last entry."""
    for i, (c, s) in enumerate(turns):
        column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
    pivot = torch.hypot(column[-1], length).clamp_min(torch.finfo(length.dtype).tiny)
    turn = column[-1] / pivot, length / pivot
    return [*column[:-1], pivot], turn


def _back_substitute(triangle: list[list[Tensor]], heights: list[Tensor]) -> list[Tensor]:
    """Solve with an upper triangle given by its columns."""
    rest = list(heights)
    for k in reversed(range(len(rest))):
        rest[k] = rest[k] / triangle[k][k]
        for i in range(k):
            rest[i] = rest[i] - triangle[k][i] * rest[k]
    return rest


def pseudo_inverse(
    A: Any, y: Tensor, delta: float | Tensor, *, max_steps: int = 1000, tol: float = 1e-6
) -> Solution:
    """Regularized pseudo-inverse ``A^* (A A^* + delta I)^-1 y``, by conjugate gradients in data space.

    Parameters
    ----------
    A : linear map
        Batched: ``A(x)``, ``A.adjoint(y)``.
    y : Tensor of shape (n, *dimsd)
        Measurements.
    delta : float > 0 or Tensor of shape (n,)
        Regularization; towards zero, noise is amplified.
    max_steps : int, default=1000
        Most steps.
    tol : float, default=1e-6
        Relative residual of the system in data space at which an image stops.

    Returns
    -------
    Solution
        The images.

    Raises
    ------
    ValueError
        If ``delta`` is not positive.

    Notes
    -----
    It is the minimiser of ``1/2 ||A x - y||^2 + delta/2 ||x||^2``.

    References
    ----------
    S. Lunz, O. Oktem and C.-B. Schonlieb, Adversarial regularizers in inverse problems, NeurIPS, 2018.

    Examples
    --------
    >>> import pylops, torch
    >>> from skinverse.operators import as_torch
    >>> from skinverse.solvers import pseudo_inverse
    >>> pseudo_inverse(as_torch(pylops.Identity(2)), torch.ones(1, 2), 1.0).x
    tensor([[0.5000, 0.5000]])
    """
    if not bool((torch.as_tensor(delta) > 0).all()):
        raise ValueError(f"delta: expected a number > 0, got {delta!r}")
    found = conjugate_gradient(
        lambda z: A(A.adjoint(z)) + expand(delta, z) * z, y, max_steps=max_steps, tol=tol
    )
    x = A.adjoint(found.x)
    energy = norm(A(x) - y).square() / 2 + delta * norm(x).square() / 2
    return replace(found, x=x, objective=energy)


def _start(
    linear: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None, tol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """First iterate, its residual, and the residual norm to reach; no right-hand side, nothing to solve."""
    level = tol * norm(b)
    zero = norm(b) == 0
    if x0 is None:
        return torch.zeros_like(b), b.clone(), level
    x = torch.where(expand(zero, b), torch.zeros_like(b), x0)
    return x, b - linear(x), level


def _solution(
    linear: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, residual: Tensor, level: Tensor, n_steps: Tensor
) -> Solution:
    size = norm(b).clamp_min(torch.finfo(residual.dtype).tiny)
    converged = (residual <= level) & torch.isfinite(level)
    return Solution(x, n_steps, converged, residual / size, dot(x, linear(x)) / 2 - dot(x, b))

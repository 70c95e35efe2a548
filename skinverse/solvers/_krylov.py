"""Krylov methods for batches of linear systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, as_numbers, dot, expand, norm
from skinverse.solvers._solution import Solution

Linear = Callable[[Tensor], Tensor]
# A Givens rotation of each image: cosine and sine.
Rotation = tuple[Tensor, Tensor]

# A pivot so small, relative to the length of its column, is a rounding error: the system is singular.
_SINGULAR = {torch.float64: 1e-14, torch.float32: 1e-6}


def conjugate_gradient(
    linear: Linear,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    precondition: Linear | None = None,
    max_steps: int = 1000,
    tol: float = 1e-6,
) -> Solution:
    """Solve ``B x = b`` for a symmetric positive definite ``B``, image by image.

    Parameters
    ----------
    linear : callable
        The map ``B`` of batches, (n, *dims) -> (n, *dims), self-adjoint and positive definite on each image.
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex. Where one is zero, the solution is exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Starting points; None is zero.
    precondition : callable or None, default=None
        Approximation of ``B^-1``, self-adjoint and positive definite too.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-6
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        The solutions and how each of them ended; the objective is ``1/2 <x, B x> - <x, b>``.

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
        p, rho, length = z.clone(), dot(r, z), norm(r)
        active, n_steps = length > level, _no_steps(b)
        for _ in range(max_steps):
            if not active.any():
                break
            q = linear(p)
            curvature = dot(p, q)
            active = active & (curvature > 0)  # else a singular system has no further direction
            alpha = torch.where(active, rho / curvature, 0)
            x = torch.where(expand(active, x), x + expand(alpha, p) * p, x)
            r = r - expand(alpha, q) * q
            z = r if precondition is None else precondition(r)
            rho_new, length = dot(r, z), norm(r)
            p = torch.where(expand(active, p), z + expand(rho_new / rho, p) * p, p)
            rho = torch.where(active, rho_new, rho)
            n_steps += active
            active = active & (length > level)
        return _solution(linear, b, x, length, level, n_steps)


def minres(
    linear: Linear,
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
        The map ``B`` of batches, (n, *dims) -> (n, *dims), self-adjoint on each image.
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex. Where one is zero, the solution is exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Starting points; None is zero.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-6
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        The solutions and how each of them ended; the objective is ``1/2 <x, B x> - <x, b>``.

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
        eta, v = beta.clone(), _divided(r, beta)
        v_old, w, w_old = (torch.zeros_like(v) for _ in range(3))
        c, c_old, s, s_old = torch.ones_like(beta), torch.ones_like(beta), beta * 0, beta * 0
        active, n_steps = beta > level, _no_steps(b)
        for k in range(max_steps):
            if not active.any():
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
            c_old, s_old = c, s
            rho1, (c, s) = _rotation(pivot, beta_new)
            w_old, w = w, (v - expand(rho3, v) * w_old - expand(rho2, v) * w) / expand(rho1, v)
            x = torch.where(expand(active, x), x + expand(c * eta, w) * w, x)
            eta = torch.where(active, -s * eta, eta)
            v_old, v, beta = v, _divided(p, beta_new), beta_new
            n_steps += active
            active = active & (eta.abs() > level)
        return _solution(linear, b, x, eta.abs(), level, n_steps)


def gmres(
    linear: Linear,
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
        The map ``B`` of batches, (n, *dims) -> (n, *dims), which treats images separately.
    b : Tensor of shape (n, *dims)
        Right-hand sides, real or complex. Where one is zero, the solution is exactly zero.
    x0 : Tensor of shape (n, *dims) or None, default=None
        Starting points; None is zero.
    max_steps : int, default=50
        Largest number of steps; each of them keeps another vector of the basis in memory.
    tol : float, default=1e-6
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``.

    Returns
    -------
    Solution
        The points of least residual in ``x0 + span(r, B r, B^2 r, ...)`` with ``r = b - B x0``, and how each
        of them ended; the objective is ``1/2 <x, B x> - <x, b>``.

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
        gamma = norm(r)  # plus or minus the norm of the residual
        active, n_steps = gamma > level, _no_steps(b)
        V = [torch.where(expand(active, r), _divided(r, gamma), 0)]
        R: list[list[Tensor]] = []  # columns of the triangular factor of the Hessenberg matrix
        g: list[Tensor] = []  # the right-hand side of the least squares problem, rotated
        rotations: list[Rotation] = []
        for _ in range(max_steps):
            if not active.any():
                break
            # Arnoldi: B v_j = h_1 v_1 + ... + h_j v_j + h_next v_next
            Bv = linear(V[-1])
            w, h = _orthogonalised(Bv, V)
            h_next = norm(w)
            V.append(_divided(w, h_next))
            # Givens: the rotations before on the new column, and another one that makes h_next zero
            column = _rotated(h, rotations)
            column[-1], (c, s) = _rotation(column[-1], h_next)
            active = active & (column[-1] > _SINGULAR[level.dtype] * norm(Bv))
            # For images that have stopped the system is continued by the identity and zeros.
            R.append([torch.where(active, e, 0) for e in column[:-1]] + [torch.where(active, column[-1], 1)])
            g.append(torch.where(active, c * gamma, 0))
            gamma = torch.where(active, -s * gamma, gamma)
            rotations.append((c, s))
            n_steps += active
            active = active & (gamma.abs() > level)
        for v, y in zip(V[:-1], _back_substituted(R, g), strict=True):
            x = x + expand(y, v) * v
        return _solution(linear, b, x, norm(b - linear(x)), level, n_steps)


def _orthogonalised(w: Tensor, V: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The part of ``w`` orthogonal to the basis ``V``, and the coefficients of the rest.

    Twice is enough: after one pass of modified Gram-Schmidt, rounding errors may have any direction where the
    orthogonal part is short (Saad, Iterative methods for sparse linear systems, section 6.3.2).
    """
    h = [torch.zeros_like(norm(w))] * len(V)
    for _ in range(2):
        for i, v in enumerate(V):
            c = dot(v, w)
            w, h[i] = w - expand(c, v) * v, h[i] + c
    return w, h


def _rotated(h: list[Tensor], rotations: list[Rotation]) -> list[Tensor]:
    """The rotations, one after the other, on neighbouring entries of a column."""
    h = list(h)
    for i, (c, s) in enumerate(rotations):
        h[i], h[i + 1] = c * h[i] + s * h[i + 1], c * h[i + 1] - s * h[i]
    return h


def _rotation(a: Tensor, b: Tensor) -> tuple[Tensor, Rotation]:
    """The rotation that maps ``(a, b)`` to ``(length, 0)``, and this length."""
    length = torch.hypot(a, b).clamp_min(torch.finfo(b.dtype).tiny)
    return length, (a / length, b / length)


def _back_substituted(R: list[list[Tensor]], g: list[Tensor]) -> list[Tensor]:
    """Solve ``R y = g`` for an upper triangular matrix given by its columns."""
    y = list(g)
    for j in reversed(range(len(y))):
        y[j] = y[j] / R[j][j]
        for i in range(j):
            y[i] = y[i] - R[j][i] * y[j]
    return y


def pseudo_inverse(
    A: LinearMap, y: Tensor, delta: float | Tensor, *, max_steps: int = 1000, tol: float = 1e-6
) -> Solution:
    """Regularised pseudo-inverse ``A^* (A A^* + delta I)^-1 y``, by conjugate gradients in data space.

    Parameters
    ----------
    A : linear map
        Linear map of batches, with ``A(x)`` and ``A.adjoint(y)``.
    y : Tensor of shape (n, *dimsd)
        Measurements.
    delta : float > 0 or Tensor of shape (n,)
        Regularisation: the smaller it is, the more noise is amplified.
    max_steps : int, default=1000
        Largest number of steps.
    tol : float, default=1e-6
        Tolerance: an image stops at this relative residual of the system in data space.

    Returns
    -------
    Solution
        The images and how each of them ended.

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
    if not bool((as_numbers(delta) > 0).all()):
        raise ValueError(f"delta: expected a number > 0, got {delta!r}")

    def regularised(z: Tensor) -> Tensor:
        return A(A.adjoint(z)) + expand(delta, z) * z

    found = conjugate_gradient(regularised, y, max_steps=max_steps, tol=tol)
    x = A.adjoint(found.x)
    energy = norm(A(x) - y).square() / 2 + delta * norm(x).square() / 2
    return replace(found, x=x, objective=energy)


def _start(linear: Linear, b: Tensor, x0: Tensor | None, tol: float) -> tuple[Tensor, Tensor, Tensor]:
    """First iterate, its residual, and the norm of the residual at which an image stops."""
    level = tol * norm(b)
    if x0 is None:
        return torch.zeros_like(b), b.clone(), level
    # A right-hand side of zero has the solution zero, which no relative residual could find from elsewhere.
    x = torch.where(expand(norm(b) == 0, b), torch.zeros_like(b), x0)
    return x, b - linear(x), level


def _no_steps(b: Tensor) -> Tensor:
    return torch.zeros(len(b), dtype=torch.int64, device=b.device)


def _divided(v: Tensor, length: Tensor) -> Tensor:
    """``v / length``, or zero where both are zero."""
    return v / expand(length.clamp_min(torch.finfo(length.dtype).tiny), v)


def _solution(
    linear: Linear, b: Tensor, x: Tensor, residual: Tensor, level: Tensor, n_steps: Tensor
) -> Solution:
    size = norm(b).clamp_min(torch.finfo(residual.dtype).tiny)
    converged = (residual <= level) & torch.isfinite(level)
    return Solution(x, n_steps, converged, residual / size, dot(x, linear(x)) / 2 - dot(x, b))

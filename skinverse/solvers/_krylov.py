"""Krylov methods for batches of linear systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, as_numbers, dot, expand, norm
from skinverse.solvers._solution import Solution

Linear = Callable[[Tensor], Tensor]
# From iterates, residuals, levels at which images stop, and numbers of steps: new iterates and numbers.
Steps = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
# A Givens rotation of each image: cosine and sine.
Rotation = tuple[Tensor, Tensor]

# A pivot so small, relative to the length of its column, is a rounding error: the system is singular.
_SINGULAR = {torch.float64: 1e-14, torch.float32: 1e-6}
# A vector that `B` shrinks so much, relative to its norm, is in the null space but for rounding; and one that
# may be, for MINRES comes so far on every system without solution (to 1e-8 and 1e-4 on random ones).
_NULL = {torch.float64: 1e-10, torch.float32: 1e-5}
_NEARLY_NULL = {torch.float64: 1e-7, torch.float32: 3e-4}
# A method that ends above its tolerance starts again from there, if it reduced the residual so much.
_PROGRESS = 0.5


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
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``, computed anew.

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

    def steps(x: Tensor, r: Tensor, level: Tensor, n_steps: Tensor) -> tuple[Tensor, Tensor]:
        active, z = norm(r) > level, r if precondition is None else precondition(r)
        p, rho = z.clone(), dot(r, z)
        while active.any():
            q = linear(p)
            curvature = dot(p, q)
            active = active & (curvature > 0)  # else a singular system has no further direction
            alpha = torch.where(active, rho / curvature, 0)
            x = torch.where(expand(active, x), x + expand(alpha, p) * p, x)
            r = r - expand(alpha, q) * q
            z = r if precondition is None else precondition(r)
            rho_new = dot(r, z)
            p = torch.where(expand(active, p), z + expand(rho_new / rho, p) * p, p)
            rho = torch.where(active, rho_new, rho)
            n_steps = n_steps + active
            active = active & (norm(r) > level) & (n_steps < max_steps)
        return x, n_steps

    with torch.no_grad():
        level = tol * norm(b)
        return _solution(b, *_refined(steps, linear, b, x0, level, _no_steps(b), max_steps), level)


def minres(
    linear: Linear,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    max_steps: int = 1000,
    tol: float = 1e-6,
) -> Solution:
    """Solve ``B x = b`` for a symmetric, possibly indefinite or singular ``B``, image by image.

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
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``. Of a system without solution it stops
        when ``||e - B x|| <= tol ||b||``, where ``e`` is the part of ``b`` in the range of ``B``: what
        ``B`` shrinks to less than ``c ||B||``, with ``c`` 1e-10 in double and 1e-5 in single precision,
        counts as outside. All are computed anew at the end.

    Returns
    -------
    Solution
        The solutions, of singular systems the ones nearest to ``x0`` (of systems without solution those of
        the least squares problem), and how each of them ended; the objective is ``1/2 <x, B x> - <x, b>``.

    References
    ----------
    C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, SIAM Journal
    on Numerical Analysis 12, 1975.
    S.-C. Choi, Iterative methods for singular linear equations and least-squares problems, Stanford, 2006.

    Examples
    --------
    >>> import torch
    >>> from skinverse.solvers import minres
    >>> minres(lambda x: x * torch.tensor([2.0, -1.0]), torch.ones(1, 2)).x
    tensor([[ 0.5000, -1.0000]])
    """
    with torch.no_grad():
        level, size = tol * norm(b), norm(linear(_probe(b))) / norm(_probe(b))
        steps = _minres_steps(linear, size, _NEARLY_NULL[size.dtype], max_steps)
        found = _solution(b, *_refined(steps, linear, b, x0, level, _no_steps(b), max_steps), level)
        stuck = ~found.converged & (found.n_steps < max_steps) & torch.isfinite(level)
        if not stuck.any():
            return found
        return _least_squares(found, stuck, linear, b, x0, level, size, max_steps)


def _minres_steps(linear: Linear, size: Tensor, small: float, max_steps: int) -> Steps:
    """Steps of MINRES to the level, or until the next residual would have ``||B r|| <= small ||B|| ||r||``.

    ``size`` is a number below ``||B||``, which the steps improve.
    """

    def steps(x: Tensor, r: Tensor, level: Tensor, n_steps: Tensor) -> tuple[Tensor, Tensor]:
        beta, largest = norm(r), size
        eta, v = beta.clone(), _divided(r, beta)
        v_old, w, w_old = (torch.zeros_like(v) for _ in range(3))
        c, c_old, s, s_old = torch.ones_like(beta), torch.ones_like(beta), beta * 0, beta * 0
        active, off = beta > level, torch.zeros_like(beta)
        while active.any():
            # Lanczos: B v = off v_old + alpha v + beta v_new
            p = linear(v) - expand(off, v) * v_old
            alpha = dot(v, p)
            p = p - expand(alpha, v) * v
            beta = norm(p)
            # Givens rotations make the tridiagonal matrix triangular: rho1, rho2, rho3 are its new column.
            rho3, rho2 = s_old * off, s * alpha + c_old * c * off
            pivot = c * alpha - s * c_old * off
            # The root of pivot^2 + (c beta)^2 is ||B r|| / ||r|| before this step (Choi, 2006, lemma 2.16).
            largest = torch.maximum(largest, torch.hypot(torch.hypot(alpha, beta), off))
            active = active & (torch.hypot(pivot, c * beta) > small * largest)
            c_old, s_old = c, s
            rho1, (c, s) = _rotation(pivot, beta)
            w_old, w = w, (v - expand(rho3, v) * w_old - expand(rho2, v) * w) / expand(rho1, v)
            x = torch.where(expand(active, x), x + expand(c * eta, w) * w, x)
            eta = torch.where(active, -s * eta, eta)
            v_old, v, off = v, _divided(p, beta), beta
            n_steps = n_steps + active
            active = active & (eta.abs() > level) & (n_steps < max_steps)
        return x, n_steps

    return steps


def _least_squares(
    found: Solution,
    stuck: Tensor,
    linear: Linear,
    b: Tensor,
    x0: Tensor | None,
    level: Tensor,
    size: Tensor,
    max_steps: int,
) -> Solution:
    """The solution, of stuck images that of ``B x = e`` with the part ``e`` of ``b`` in the range of ``B``.

    On a system without solution MINRES loses half of the digits: its steps contain the inverse of a vanishing
    pivot. Both systems that are solved here have solutions: ``B e = B b``, and ``B x = e``.
    """
    null, small = _NULL[size.dtype], _SINGULAR[size.dtype]
    size = size.clamp_min(torch.finfo(size.dtype).tiny)

    def unit(v: Tensor) -> Tensor:  # free of the units of B, whose square may not be a number
        return linear(v) / expand(size, v)

    def solve(
        B: Linear, right: Tensor, start: Tensor | None, level: Tensor, size: Tensor, n_steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, level = _minres_steps(B, size, small, max_steps), torch.where(stuck, level, torch.inf)
        return _refined(steps, B, right, start, level, n_steps, max_steps)

    accuracy = null * norm(b - linear(found.x)) / 2
    e, _, n_steps = solve(unit, unit(b), None, accuracy, torch.ones_like(size), found.n_steps)
    x, _, n_steps = solve(linear, e, x0, level, size, n_steps)
    r = b - linear(x)
    nearest = _solution(b, x, r, n_steps, level)
    outside = ~nearest.converged & (norm(unit(b - e)) <= null * norm(b - e))
    left = norm(r - (b - e))
    nearest = replace(
        nearest,
        converged=nearest.converged | (outside & (left <= level)),
        residual=torch.where(outside, left / norm(b), nearest.residual),
    )
    return _where(stuck & (nearest.converged | (nearest.residual < found.residual)), nearest, found)


def _where(condition: Tensor, a: Solution, b: Solution) -> Solution:
    """The solution ``a`` of the images of which the condition holds, ``b`` of the others."""
    return Solution(
        x=torch.where(expand(condition, a.x), a.x, b.x),
        n_steps=torch.where(condition, a.n_steps, b.n_steps),
        converged=torch.where(condition, a.converged, b.converged),
        residual=torch.where(condition, a.residual, b.residual),
        objective=torch.where(condition, a.objective, b.objective),
    )


def _probe(b: Tensor) -> Tensor:
    """A vector of each image, always the same one, to which every direction contributes."""
    rng = torch.Generator("cpu").manual_seed(0)
    return torch.randn(b.shape[1:], generator=rng, dtype=b.dtype, device="cpu").to(b.device).expand_as(b)


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
        Tolerance: an image stops when ``||b - B x|| <= tol ||b||``, computed anew.

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
        (x, r), level = _start(linear, b, x0), tol * norm(b)
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
        return _solution(b, x, b - linear(x), n_steps, level)


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


def _start(linear: Linear, b: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """First iterate and its residual."""
    if x0 is None:
        return torch.zeros_like(b), b.clone()
    # A right-hand side of zero has the solution zero, which no relative residual could find from elsewhere.
    x = torch.where(expand(norm(b) == 0, b), torch.zeros_like(b), x0)
    return x, b - linear(x)


def _refined(
    steps: Steps,
    linear: Linear,
    b: Tensor,
    x0: Tensor | None,
    level: Tensor,
    n_steps: Tensor,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of a method, and again from where they end, until the residual, computed anew, is at the level.

    The residual that a method updates drifts from the true one, without bound where a system is singular.
    Returned are the iterates, their true residuals, and the numbers of steps.
    """
    x, r = _start(linear, b, x0)
    length = norm(r)
    last = torch.full_like(length, torch.inf)
    while True:
        going = (length > level) & (length <= _PROGRESS * last) & (n_steps < max_steps)
        if not going.any():
            return x, r, n_steps
        x, n_steps = steps(x, r, torch.where(going, level, torch.inf), n_steps)
        r, last = b - linear(x), torch.where(going, length, last)
        length = norm(r)


def _no_steps(b: Tensor) -> Tensor:
    return torch.zeros(len(b), dtype=torch.int64, device=b.device)


def _divided(v: Tensor, length: Tensor) -> Tensor:
    """``v / length``, or zero where both are zero."""
    return v / expand(length.clamp_min(torch.finfo(length.dtype).tiny), v)


def _solution(b: Tensor, x: Tensor, r: Tensor, n_steps: Tensor, level: Tensor) -> Solution:
    """How each image ended, by its residual ``r = b - B x``."""
    length, size = norm(r), norm(b).clamp_min(torch.finfo(level.dtype).tiny)
    converged = (length <= level) & torch.isfinite(level)
    return Solution(x, n_steps, converged, length / size, -dot(x, b + r) / 2)

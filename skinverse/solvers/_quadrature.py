"""Quadratic forms in functions of ``A A^*``, for all functions at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, expand, norm

# Matrices that are decomposed together, and the relative length of a vector that is a rounding error.
_SLICE, _ROUNDING = 64, 100.0


def spectral_measure(A: LinearMap, y: Tensor, *, max_steps: int = 100) -> tuple[Tensor, Tensor]:
    """Nodes ``t_i`` and weights ``w_i`` with ``<y, f(A A^*) y> = sum_i w_i f(t_i)`` for smooth functions.

    They are those of the Gauss-Radau rule with a node at zero, of Golub-Kahan bidiagonalisation from each
    ``y``: exact for polynomials of degree ``2 max_steps``.

    Parameters
    ----------
    A : linear map
        Linear map of batches, with ``A(x)`` and ``A.adjoint(y)``.
    y : Tensor of shape (n, *dimsd)
        Data.
    max_steps : int, default=100
        Largest number of steps, each of which applies the map and its adjoint once.

    Returns
    -------
    nodes, weights : Tensor of shape (n, n_nodes), float64
        Nodes and weights, of which some are zero where the space that ``y`` generates ends.

    References
    ----------
    G. H. Golub and G. Meurant, Matrices, Moments and Quadrature with Applications, Princeton, 2010.

    Examples
    --------
    >>> import pylops, torch
    >>> from skinverse.operators import as_torch
    >>> from skinverse.solvers import spectral_measure
    >>> A = as_torch(pylops.Diagonal(torch.tensor([1.0, 2.0, 3.0]).numpy()))
    >>> nodes, weights = spectral_measure(A, torch.ones(1, 3))
    >>> (weights / (1 + nodes)).sum(1)  # 1/2 + 1/5 + 1/10
    tensor([0.8000], dtype=torch.float64)
    """
    steps = min(max_steps, math.prod(y.shape[1:]))
    with torch.no_grad():
        diagonal, below = _bidiagonal(A, y, steps)
        square = norm(y).double().square()[:, None]
        parts = zip(diagonal.split(_SLICE), below.split(_SLICE), square.split(_SLICE), strict=True)
        rules = [_rule(*part) for part in parts]
    nodes, weights = zip(*rules, strict=True)
    return torch.cat(nodes), torch.cat(weights)


def _bidiagonal(A: LinearMap, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Diagonal and subdiagonal of ``B`` in ``A V = U B``, where ``y`` is the first direction of ``U``."""
    rounding = _ROUNDING * torch.finfo(y.dtype).eps
    u, _ = _direction(y, torch.zeros_like(norm(y)))
    diagonal: list[Tensor] = []
    below: list[Tensor] = []
    largest = torch.zeros_like(norm(y))
    v = torch.zeros_like(A.adjoint(y))
    for _ in range(steps):
        v, alpha = _direction(A.adjoint(u) - (expand(below[-1], v) * v if below else 0), rounding * largest)
        largest = torch.maximum(largest, alpha)
        u, beta = _direction(A(v) - expand(alpha, u) * u, rounding * largest)
        largest = torch.maximum(largest, beta)
        diagonal.append(alpha)
        below.append(beta)
        if not beta.any():
            break
    return torch.stack(diagonal, 1).double(), torch.stack(below, 1).double()


def _direction(vector: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """A vector over its length, and this; both zero where it is at most the least one."""
    length = norm(vector)
    there = length > least
    return vector / expand(torch.where(there, length, torch.inf), vector), torch.where(there, length, 0)


def _rule(diagonal: Tensor, below: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of ``B B^*`` and the squared first entries of their vectors."""
    n, k = diagonal.shape
    B = diagonal.new_zeros((n, k + 1, k))
    index = torch.arange(k, device=B.device)
    B[:, index, index], B[:, index + 1, index] = diagonal, below
    nodes, vectors = torch.linalg.eigh(B @ B.mT)
    return nodes.clamp_min(0), square * vectors[:, 0].square()

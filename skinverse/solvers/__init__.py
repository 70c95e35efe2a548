"""Solvers, start -> image: batched, stopping image by image."""

from skinverse.solvers._gradient import accelerated_gradient, gradient_descent, proximal_gradient
from skinverse.solvers._implicit import Hessian, implicit, jacobian_free
from skinverse.solvers._krylov import conjugate_gradient, minres, pseudo_inverse
from skinverse.solvers._primal_dual import primal_dual
from skinverse.solvers._solution import Solution

__all__ = [
    "Hessian",
    "Solution",
    "accelerated_gradient",
    "conjugate_gradient",
    "gradient_descent",
    "implicit",
    "jacobian_free",
    "minres",
    "primal_dual",
    "proximal_gradient",
    "pseudo_inverse",
]

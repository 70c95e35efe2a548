"""Solvers, start -> image: batched, stopping image by image."""

from skinverse.solvers._coordinate_search import coordinate_search as coordinate_search
from skinverse.solvers._equilibrium import fixed_point, neumann
from skinverse.solvers._fixed_point import anderson, broyden, picard
from skinverse.solvers._gradient import accelerated_gradient, gradient_descent, proximal_gradient
from skinverse.solvers._implicit import Hessian, implicit, jacobian_free
from skinverse.solvers._krylov import conjugate_gradient, gmres, minres, pseudo_inverse
from skinverse.solvers._primal_dual import PrimalDualPath, primal_dual
from skinverse.solvers._quadrature import spectral_measure
from skinverse.solvers._quasi_newton import lbfgs
from skinverse.solvers._solution import Solution

__all__ = [
    "Hessian",
    "PrimalDualPath",
    "Solution",
    "accelerated_gradient",
    "anderson",
    "broyden",
    "conjugate_gradient",
    "fixed_point",
    "gmres",
    "gradient_descent",
    "implicit",
    "jacobian_free",
    "lbfgs",
    "minres",
    "neumann",
    "picard",
    "primal_dual",
    "proximal_gradient",
    "pseudo_inverse",
    "spectral_measure",
]

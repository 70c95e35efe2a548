"""Operators, image -> data: pylops in; batched, differentiable torch maps out."""

from skinverse.operators import _rules as _rules  # registers how each operator is lowered
from skinverse.operators._dot_test import dot_test
from skinverse.operators._factories import fourier_sampling, gaussian_blur, inpainting, structurally_random
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap
from skinverse.operators._parallel_beam import ParallelBeam, parallel_beam
from skinverse.operators._parametric import GaussianBlur, ParametricOperator, Shifted, Turned

__all__ = [
    "GaussianBlur",
    "LinearMap",
    "ParallelBeam",
    "ParametricOperator",
    "Shifted",
    "Turned",
    "as_torch",
    "dot_test",
    "fourier_sampling",
    "gaussian_blur",
    "inpainting",
    "parallel_beam",
    "structurally_random",
]

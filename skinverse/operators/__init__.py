"""Operators, image -> data: pylops operators in; batched, differentiable torch maps out."""

from skinverse.operators import _rules as _rules  # registers how each operator is lowered
from skinverse.operators._astra import from_astra
from skinverse.operators._coils import estimate_coil_maps, whiten_coils
from skinverse.operators._convolution import convolution, gaussian_blur
from skinverse.operators._dot_test import dot_test
from skinverse.operators._factories import fourier_sampling, inpainting, structurally_random
from skinverse.operators._family import parameter_names as parameter_names
from skinverse.operators._family import with_parameters as with_parameters
from skinverse.operators._fan_beam import fan_beam
from skinverse.operators._inverse import AnalyticInverse as AnalyticInverse
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap
from skinverse.operators._mbirtorch import from_mbirtorch
from skinverse.operators._microscope import microscope_psf
from skinverse.operators._nonuniform import nonuniform_fourier
from skinverse.operators._offsets import AngleOffset, DetectorOffset
from skinverse.operators._parallel_beam import parallel_beam
from skinverse.operators._parametric import GaussianBlur, ParametricOperator
from skinverse.operators._recipes import build as build
from skinverse.operators._recipes import describe as describe
from skinverse.operators._recipes import held_bytes as held_bytes
from skinverse.operators._sharing import local_copy as local_copy
from skinverse.operators._sharing import note_sent as note_sent
from skinverse.operators._validation import check_is_operator as check_is_operator

__all__ = [
    "AngleOffset",
    "DetectorOffset",
    "GaussianBlur",
    "LinearMap",
    "ParametricOperator",
    "as_torch",
    "convolution",
    "dot_test",
    "estimate_coil_maps",
    "fourier_sampling",
    "from_astra",
    "from_mbirtorch",
    "gaussian_blur",
    "inpainting",
    "microscope_psf",
    "nonuniform_fourier",
    "fan_beam",
    "parallel_beam",
    "structurally_random",
    "whiten_coils",
]

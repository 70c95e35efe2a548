"""Functionals, image -> number: data fidelities and regularisers with value, gradient and prox."""

from skinverse.functionals._base import Functional
from skinverse.functionals._energy import EnergyFunctional
from skinverse.functionals._fidelity import DataBall, KullbackLeibler, LeastSquares
from skinverse.functionals._gaussian import SparseCholeskyGaussian
from skinverse.functionals._nuclear import NuclearNorm as NuclearNorm
from skinverse.functionals._nuclear import TotalNuclearVariation
from skinverse.functionals._simple import Box, L1Norm, SquaredNorm
from skinverse.functionals._sparsity import CosineSparsity, WaveletSparsity
from skinverse.functionals._transmission import TransmissionDivergence
from skinverse.functionals._variation import GroupNorm as GroupNorm
from skinverse.functionals._variation import TotalGeneralizedVariation, TotalVariation

__all__ = [
    "Box",
    "CosineSparsity",
    "DataBall",
    "EnergyFunctional",
    "Functional",
    "KullbackLeibler",
    "L1Norm",
    "LeastSquares",
    "SparseCholeskyGaussian",
    "SquaredNorm",
    "TotalGeneralizedVariation",
    "TotalNuclearVariation",
    "TotalVariation",
    "TransmissionDivergence",
    "WaveletSparsity",
]

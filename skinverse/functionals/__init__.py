"""Functionals, image -> number: data fidelities and regularizers with value, gradient and prox."""

from skinverse.functionals._base import Functional, Scaled, Sum
from skinverse.functionals._critics import (
    ConvexCritic,
    Critic,
    ModuleCritic,
    NetworkCritic,
    RidgeCritic,
    WeightedCritic,
)
from skinverse.functionals._energies import GradientStepCritic, REDCritic, SmoothCritic
from skinverse.functionals._fidelity import DataBall, KullbackLeibler, LeastSquares
from skinverse.functionals._gaussian import SparseCholeskyGaussian
from skinverse.functionals._learned import Learned, as_channels, from_channels
from skinverse.functionals._simple import Box, L1Norm, SquaredNorm
from skinverse.functionals._sparsity import CosineSparsity, WaveletSparsity
from skinverse.functionals._variation import GroupNorm, OfImage, TotalGeneralizedVariation, TotalVariation

__all__ = [
    "Box",
    "ConvexCritic",
    "Critic",
    "CosineSparsity",
    "DataBall",
    "Functional",
    "GradientStepCritic",
    "GroupNorm",
    "KullbackLeibler",
    "L1Norm",
    "Learned",
    "LeastSquares",
    "ModuleCritic",
    "NetworkCritic",
    "OfImage",
    "REDCritic",
    "RidgeCritic",
    "Scaled",
    "SmoothCritic",
    "SparseCholeskyGaussian",
    "SquaredNorm",
    "Sum",
    "TotalGeneralizedVariation",
    "TotalVariation",
    "WaveletSparsity",
    "WeightedCritic",
    "as_channels",
    "from_channels",
]

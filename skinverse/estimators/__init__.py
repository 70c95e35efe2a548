"""Reconstruction methods: (images, data) -> fitted; data -> image."""

from skinverse.estimators._analytic import FilteredBackProjection, SpectralCutoff, Tikhonov
from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._iterative import Kaczmarz, Landweber
from skinverse.estimators._regressor import ReconstructionRegressor
from skinverse.estimators._variational import (
    TotalGeneralizedVariationRecon,
    TotalVariationRecon,
    WaveletRecon,
)

__all__ = [
    "BaseReconstructor",
    "FilteredBackProjection",
    "Kaczmarz",
    "Landweber",
    "LearnedReconstructor",
    "ReconstructionRegressor",
    "SpectralCutoff",
    "Tikhonov",
    "TotalGeneralizedVariationRecon",
    "TotalVariationRecon",
    "WaveletRecon",
]

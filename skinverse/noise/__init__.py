"""Noise models, clean data -> measured data: draws, fidelities, and what residual to expect."""

from skinverse.noise._estimate import estimate
from skinverse.noise._models import (
    Gaussian,
    NoiseModel,
    Poisson,
    PoissonGaussian,
)
from skinverse.noise._models import expected_divergence as expected_divergence
from skinverse.noise._models import noise_model as noise_model

__all__ = ["Gaussian", "NoiseModel", "Poisson", "PoissonGaussian", "estimate"]

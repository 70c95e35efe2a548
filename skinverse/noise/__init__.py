"""Noise models, clean data -> measured data: draws, fidelities, and what residual to expect."""

import numpy as np

from skinverse.noise._base import NoiseModel
from skinverse.noise._counts import Poisson, PoissonGaussian
from skinverse.noise._counts import expected_divergence as expected_divergence
from skinverse.noise._estimate import estimate
from skinverse.noise._gaussian import Gaussian
from skinverse.noise._transmission import Transmission

__all__ = ["Gaussian", "NoiseModel", "Poisson", "PoissonGaussian", "Transmission", "estimate"]


def noise_model(noise: NoiseModel | str | float | None) -> NoiseModel:
    """The model that a parameter ``noise`` stands for."""
    if noise is None:
        return Gaussian()
    if isinstance(noise, str):
        return Poisson()
    return Gaussian(float(noise)) if isinstance(noise, (int, float, np.number)) else noise

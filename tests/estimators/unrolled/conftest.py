"""Small problems that several files train on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from skinverse.datasets import make_ellipses
from skinverse.operators import fourier_sampling, parallel_beam

Problem = tuple[np.ndarray, np.ndarray, Any]


@pytest.fixture(autouse=True)
def own_generator() -> Iterator[None]:
    """Networks that a test makes itself draw their weights here."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def tomography() -> Problem:
    """Forty-eight small images, their noisy projections in single precision and the operator."""
    operator = parallel_beam((16, 16), np.arange(8) * np.pi / 8, 23)
    images = make_ellipses(48, 16, random_state=0)
    exact = np.stack([operator @ x for x in images])
    noise = 0.02 * np.abs(exact).mean() * np.random.default_rng(1).normal(size=exact.shape)
    return images, (exact + noise).astype(np.float32), operator


@pytest.fixture(scope="session")
def pairs() -> dict[str, Problem]:
    """Sixteen small images, their noisy data and operator: tomography, and Fourier samples of two coils."""
    rng = np.random.default_rng(1)
    images = make_ellipses(16, 12, random_state=0)
    slope = np.linspace(0.2, 1.0, 12) * np.ones((12, 12))
    maps = np.stack([slope, 0.1 + 1j * slope.T])
    problems = {
        "real": (images, parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)),
        "complex": (images * np.exp(1j * images), fourier_sampling(rng.random((12, 12)) < 0.5, maps)),
    }
    return {kind: (X, _noisy(X, A, rng), A) for kind, (X, A) in problems.items()}


def _noisy(images: np.ndarray, operator: Any, rng: np.random.Generator) -> np.ndarray:
    exact = np.stack([operator @ x for x in images])
    return exact + 0.02 * np.abs(exact).mean() * rng.normal(size=exact.shape)

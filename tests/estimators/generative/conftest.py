"""Small images, their data, and priors that are trained on them in a moment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from skinverse import GenerativeCovariancePrior, Trainer
from skinverse.estimators.generative import model, objectives
from skinverse.estimators.generative.objectives import ChannelFidelity, LatentObjective
from skinverse.functionals import SparseCholeskyGaussian
from skinverse.operators import as_torch, fourier_sampling, structurally_random

SIZE = (8, 8)
NOISE = 0.03


@contextmanager
def _narrow_networks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_WIDTH", 16)
        yield


@pytest.fixture(autouse=True)
def narrow_networks() -> Iterator[None]:
    """Networks with few channels: nothing here depends on how many there are."""
    with _narrow_networks():
        yield


# ------------------------------------------------------------------------------------------ images and data
def _blobs(n: int, *, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = (rng.uniform(2, side - 3, (n, 1, 1)) for side in size)
    spots = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 1.8**2))
    texture = rng.normal(size=(n, *size))
    return (spots + 0.05 * (texture + np.roll(texture, 1, 2))).astype(np.float32)


def _measure(operator: Any, images: np.ndarray, *, noise: float = NOISE, seed: int = 1) -> np.ndarray:
    wide = np.complex128 if np.iscomplexobj(images) else np.float64
    exact = np.stack([operator @ image.astype(wide) for image in images])
    rng = np.random.default_rng(seed)
    if np.iscomplexobj(exact):
        drawn = (rng.normal(size=exact.shape) + 1j * rng.normal(size=exact.shape)) / math.sqrt(2)
    else:
        drawn = rng.normal(size=exact.shape)
    return exact + noise * drawn


@pytest.fixture(scope="session")
def blobs() -> Callable[..., np.ndarray]:
    """Makes images: a bright spot anywhere, and a texture whose pixels are correlated in pairs."""
    return _blobs


@pytest.fixture(scope="session")
def measure() -> Callable[..., np.ndarray]:
    """Makes data in double precision; both parts of complex noise together have the standard deviation."""
    return _measure


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return _blobs(64)


@pytest.fixture(scope="session")
def operator() -> Any:
    return structurally_random(SIZE, 32, random_state=0)


@pytest.fixture(scope="session")
def truth() -> np.ndarray:
    return _blobs(3, seed=9).astype(np.float64)


@pytest.fixture(scope="session")
def data(operator: Any, truth: np.ndarray) -> np.ndarray:
    return _measure(operator, truth)


@pytest.fixture(scope="session")
def fourier() -> Any:
    """Samples of the Fourier transform, complex data."""
    return fourier_sampling(np.random.default_rng(0).random(SIZE) < 0.6)


@pytest.fixture(scope="session")
def complex_truth() -> np.ndarray:
    return _blobs(2, seed=9) * np.exp(1j * _blobs(2, seed=8))


@pytest.fixture(scope="session")
def complex_data(fourier: Any, complex_truth: np.ndarray) -> np.ndarray:
    return _measure(fourier, complex_truth)


# ------------------------------------------------------------------------------------------ priors
def _fit_prior(images: np.ndarray, operator: Any = None, **params: Any) -> GenerativeCovariancePrior:
    trainer = Trainer(max_epochs=2, batch_size=16, lr=3e-3, final_lr=3e-3)
    settings: dict[str, Any] = {"n_latent": 2, "noise": NOISE, "n_restarts": 2, "trainer": trainer}
    return GenerativeCovariancePrior(operator, **(settings | params)).fit(images)


@pytest.fixture(scope="session")
def fit_prior() -> Callable[..., GenerativeCovariancePrior]:
    """Makes priors, by default hardly trained."""
    return _fit_prior


@pytest.fixture(scope="session")
def _prior(images: np.ndarray, operator: Any) -> GenerativeCovariancePrior:
    with _narrow_networks():
        trainer = Trainer(max_epochs=25, batch_size=16, lr=3e-3, final_lr=3e-3)
        return _fit_prior(images, operator, trainer=trainer)


@pytest.fixture
def prior(_prior: GenerativeCovariancePrior) -> GenerativeCovariancePrior:
    """A trained prior of real images; a test may change its parameters."""
    return copy.copy(_prior)


@pytest.fixture(scope="session")
def _complex_prior(images: np.ndarray, fourier: Any) -> GenerativeCovariancePrior:
    with _narrow_networks():
        # What is measured has noise of this deviation in both parts together.
        return _fit_prior(images * np.exp(1j * _blobs(64, seed=5)), fourier, noise=NOISE / np.sqrt(2))


@pytest.fixture
def complex_prior(_complex_prior: GenerativeCovariancePrior) -> GenerativeCovariancePrior:
    return copy.copy(_complex_prior)


@pytest.fixture(scope="session")
def _coloured_prior(images: np.ndarray) -> GenerativeCovariancePrior:
    with _narrow_networks():
        return _fit_prior(np.stack([images, images[::-1], 0.5 * images], 1), channel_axis=0)


@pytest.fixture
def coloured_prior(_coloured_prior: GenerativeCovariancePrior) -> GenerativeCovariancePrior:
    return copy.copy(_coloured_prior)


# ------------------------------------------------------------------------------------------ objectives
@pytest.fixture
def accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best image for all latent variables, to rounding."""
    monkeypatch.setattr(objectives, "_LINEAR_TOL", 1e-12)
    monkeypatch.setattr(objectives, "_LINEAR_STEPS", 5000)


@pytest.fixture(scope="session")
def normalised() -> Callable[..., np.ndarray]:
    """Makes the data of the images that a method sees, of mean 0 and standard deviation 1."""

    def make(method: GenerativeCovariancePrior, data: np.ndarray) -> np.ndarray:
        y: np.ndarray = method._normalised(as_torch(method.operator), torch.from_numpy(data)).numpy()
        return y

    return make


@pytest.fixture(scope="session")
def objective_of() -> Callable[..., LatentObjective]:
    """Makes objectives of a fitted method and data of normalised images, in double precision."""

    def make(
        kind: type[LatentObjective], method: GenerativeCovariancePrior, data: np.ndarray, lam: float = 0.01
    ) -> LatentObjective:
        model = copy.deepcopy(method.module_).double().requires_grad_(False)
        y = torch.from_numpy(data)
        fidelity = ChannelFidelity(
            as_torch(method.operator), y, method.shape_, method.channel_axis, real=method.real_
        )
        return kind(model, fidelity, torch.full((len(y),), lam, dtype=torch.float64))

    return make


@pytest.fixture(scope="session")
def real_matrix() -> Callable[..., Tensor]:
    """Makes the matrix of a method's operator on real channels, to real and then imaginary parts of data."""

    def make(method: GenerativeCovariancePrior) -> Tensor:
        A = method.operator.todense()
        A = A if method.real_ else np.hstack([A, 1j * A])
        return torch.from_numpy(np.vstack([A.real, A.imag]) if np.iscomplexobj(A) else A).double()

    return make


@pytest.fixture(scope="session")
def dense_covariance() -> Callable[[SparseCholeskyGaussian], Tensor]:
    """Makes the covariance of a Gaussian, (n, channels * pixels, channels * pixels)."""

    def make(gaussian: SparseCholeskyGaussian) -> Tensor:
        n_values = gaussian.mean[0].numel()
        units = torch.eye(n_values, dtype=gaussian.mean.dtype).view(n_values, 1, *gaussian.mean.shape[1:])
        precision = gaussian.precision_mul(units.expand(-1, *gaussian.mean.shape)).flatten(2).movedim(0, 1)
        return torch.linalg.inv(precision)

    return make

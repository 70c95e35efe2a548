"""Covariance models of digits: Gaussian compressed sensing, calibration, samples.

10 000 training images, 8 latent variables; 64 test images; ``M`` of 784 measurements with noise ``sigma``.
The entries of the matrix have variance ``1 / M``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pylops
import torch
from _record import RESULTS, write

from skinverse import GenerativeCovariancePrior, Tikhonov, TotalVariationRecon
from skinverse.displays import CovarianceDisplay
from skinverse.metrics import psnr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
N_TRAIN, N_TEST, SEED = 10_000, 64, 0
SETTINGS = ((50, 0.05), (150, 0.05), (300, 0.05), (300, 0.01), (150, 0.2))
COVARIANCES = ("full", "diagonal", "identity")
TARGETS = {
    "M=150, sigma=0.05": {"full": 24.6, "full above diagonal": 2.0, "full above identity": 3.5},
    "M=300, sigma=0.01": {"full": 27.2},
    "M=50, sigma=0.05": {"full below range at most": 0.2},
    "seconds, 64 images, 4 restarts": 45,
}


def sensed(images: np.ndarray, m: int, sigma: float) -> tuple[pylops.LinearOperator, np.ndarray]:
    rng = np.random.default_rng(SEED)
    matrix = (rng.normal(size=(m, images[0].size)) / np.sqrt(m)).astype(np.float32)
    data = images.reshape(len(images), -1) @ matrix.T + sigma * rng.normal(size=(len(images), m))
    operator = pylops.MatrixMult(matrix, dtype="float32")
    operator.dims = images.shape[1:]
    return operator, data.astype(np.float32)


def quality(images: np.ndarray, x: np.ndarray) -> float:
    return float(psnr(images, x, data_range=1.0).mean())


def reconstructed(prior: GenerativeCovariancePrior, images: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    x, info = prior.predict(data, return_info=True)
    seconds = time.perf_counter() - start
    return {"psnr": quality(images, x), "seconds": seconds, "mean_steps": float(info.n_steps.mean())}


def calibration(prior: GenerativeCovariancePrior, images: np.ndarray) -> dict[str, float]:
    """Whitened residuals of images with noise as strong as the floor, which the model describes."""
    model, generator = prior.module_, torch.Generator().manual_seed(SEED)
    x = torch.from_numpy(images)[:, None]
    with torch.no_grad():
        mu, log_variance = model.encode(x)
        z = mu + (0.5 * log_variance).exp() * torch.randn(mu.shape, generator=generator)
        white = model.gaussian(z).whiten(x + model.floor * torch.randn(x.shape, generator=generator))
    rest = white - white.mean()
    right, below = (rest[..., 1:] * rest[..., :-1]).mean(), (rest[..., 1:, :] * rest[..., :-1, :]).mean()
    return {
        "whitened_std": float(white.std()),
        "neighbour_correlation": float((right.abs() + below.abs()) / 2 / rest.var()),
        "evidence_bound_nats": float(prior.score_samples(images).mean()),
    }


def coverage(prior: GenerativeCovariancePrior, images: np.ndarray, data: np.ndarray) -> dict[str, float]:
    x, std = prior.predict(data, return_std=True)
    within = np.abs(images - x) <= 2 * std
    return {"all": float(within.mean()), "strokes": float(within[images > 0.05].mean())}


def draw(priors: dict[str, GenerativeCovariancePrior], images: np.ndarray) -> None:
    figure, axes = plt.subplots(len(priors), 10, figsize=(10, 1.05 * len(priors)), layout="constrained")
    for row, (name, prior) in zip(axes, priors.items(), strict=True):
        for axis, x in zip(row, prior.sample(10, random_state=SEED), strict=True):
            axis.imshow(x, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.savefig(RESULTS / "generative_samples.png", dpi=100)
    display = CovarianceDisplay.from_estimator(priors["full"], images[:6], (13, 14))
    display.figure_.savefig(RESULTS / "generative_covariance.png", dpi=80)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "mnist.npz").exists():
        print(f"{DATA / 'mnist.npz'} is not here: nothing measured")
        return
    digits = np.load(DATA / "mnist.npz")
    train = digits["train_x"][:N_TRAIN].astype(np.float32) / 255
    test = digits["test_x"][:N_TEST].astype(np.float32) / 255
    figures: dict[str, Any] = {"targets": TARGETS, "seconds_fit": {}}
    priors = {}
    for covariance in COVARIANCES:
        start = time.perf_counter()
        prior = GenerativeCovariancePrior(covariance=covariance, n_latent=8, min_std=0.03)
        priors[covariance] = prior.fit(train)
        figures["seconds_fit"][covariance] = time.perf_counter() - start
    draw(priors, test)
    figures["calibration"] = {name: calibration(prior, test) for name, prior in priors.items()}
    for m, sigma in SETTINGS:
        operator, data = sensed(test, m, sigma)
        found: dict[str, Any] = {}
        for covariance, prior in priors.items():
            prior.set_params(operator=operator, noise_std=sigma, constraint="soft")
            found[covariance] = reconstructed(prior, test, data)
        for constraint in ("range", "sparse", "adapted"):
            found[constraint] = reconstructed(priors["full"].set_params(constraint=constraint), test, data)
        priors["full"].set_params(constraint="soft")
        for name, method in {"Tikhonov": Tikhonov(operator), "TV": TotalVariationRecon(operator)}.items():
            tried = (method.set_params(lam=lam).fit().predict(data) for lam in np.logspace(-4, 0, 9))
            found[f"{name}, best on test"] = {"psnr": max(quality(test, x) for x in tried)}
        if (m, sigma) == (150, 0.05):
            figures["within_two_std"] = coverage(priors["full"], test, data)
        figures[f"M={m}, sigma={sigma}"] = found
        write("generative_mnist", figures, seed=SEED)


if __name__ == "__main__":
    main()

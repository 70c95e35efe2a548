"""Covariance models of digits: Gaussian compressed sensing, calibration, samples.

10 000 training images, 8 latent variables; 64 test images; ``M`` of 784 measurements with noise ``sigma``.
The entries of the matrix have variance ``1 / M``. Weights of Tikhonov and total variation, the latter also
with the box of the digits' values, are the best on 64 of the training images. Trainings have three seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pylops
import torch
from _record import RESULTS, over_seeds, scores, write
from sklearn.base import clone

from skinverse import GenerativeCovariancePrior, Tikhonov, TotalVariationRecon
from skinverse.displays import CovarianceDisplay
from skinverse.metrics import psnr

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
N_TRAIN, N_TEST, SEED, SEEDS = 10_000, 64, 0, (0, 1, 2)
LAMS = np.logspace(-4, 0, 9)
SETTINGS = ((50, 0.05), (150, 0.05), (300, 0.05), (300, 0.01), (150, 0.2))
COVARIANCES = ("full", "diagonal", "identity")
TARGETS = {
    "M=150, sigma=0.05": {"full": 24.6, "full above diagonal": 2.0, "full above identity": 3.5},
    "M=300, sigma=0.01": {"full": 27.2},
    "M=50, sigma=0.05": {"full below range at most": 0.2},
    "seconds, 64 images, 4 restarts": 45,
}

Found = dict[str, dict[str, Any]]


def sensed(
    images: np.ndarray, m: int, sigma: float, noise_seed: int = SEED + 1
) -> tuple[pylops.LinearOperator, np.ndarray]:
    matrix = np.random.default_rng(SEED).normal(size=(m, images[0].size)).astype(np.float32) / np.sqrt(m)
    matrix, rng = matrix.astype(np.float32), np.random.default_rng(noise_seed)
    data = images.reshape(len(images), -1) @ matrix.T + sigma * rng.normal(size=(len(images), m))
    operator = pylops.MatrixMult(matrix, dtype="float32")
    operator.dims = images.shape[1:]
    return operator, data.astype(np.float32)


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    return scores("psnr", psnr(images, x, data_range=1.0))


def reconstructed(prior: GenerativeCovariancePrior, images: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    x, info = prior.predict(data, return_info=True)
    seconds = time.perf_counter() - start
    return quality(images, x) | {"seconds": seconds, "mean_steps": float(info.n_steps.mean())}


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


def classical(known: np.ndarray, test: np.ndarray, m: int, sigma: float) -> dict[str, dict[str, Any]]:
    """Methods with the weight that is best on other digits."""
    operator, data = sensed(test, m, sigma)
    seen = sensed(known, m, sigma, SEED + 2)[1]
    methods = {
        "Tikhonov": Tikhonov(operator),
        "TV": TotalVariationRecon(operator),
        "TV in [0, 1]": TotalVariationRecon(operator, bounds=(0.0, 1.0)),
    }
    found = {}
    for name, method in methods.items():
        candidates = [clone(method).set_params(lam=lam).fit() for lam in LAMS]
        best = max(candidates, key=lambda one: quality(known, one.predict(seen))["psnr"])
        found[name] = quality(test, best.predict(data)) | {"lam": float(best.lam)}
    return found


def learned(priors: dict[str, GenerativeCovariancePrior], test: np.ndarray, m: int, sigma: float) -> Found:
    """Every covariance, and other constraints on the images with the full one."""
    operator, data = sensed(test, m, sigma)
    found: Found = {}
    for covariance, prior in priors.items():
        prior.set_params(operator=operator, noise=sigma, constraint="soft")
        found[covariance] = reconstructed(prior, test, data)
    for constraint in ("encoded", "range", "sparse", "adapted"):
        found[constraint] = reconstructed(priors["full"].set_params(constraint=constraint), test, data)
    priors["full"].set_params(constraint="soft")
    return found


def together(runs: list[Found]) -> Found:
    """The priors of several seeds."""
    return {
        name: over_seeds([run[name] for run in runs])
        | {key: float(np.mean([run[name][key] for run in runs])) for key in ("seconds", "mean_steps")}
        for name in runs[0]
    }


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "mnist.npz").exists():
        print(f"{DATA / 'mnist.npz'} is not here: nothing measured")
        return
    digits = np.load(DATA / "mnist.npz")
    train = digits["train_x"][:N_TRAIN].astype(np.float32) / 255
    test = digits["test_x"][:N_TEST].astype(np.float32) / 255
    figures: dict[str, Any] = {"targets": TARGETS, "seconds_fit": {name: [] for name in COVARIANCES}}
    figures |= {"calibration": [], "within_two_std": []}
    controls = {setting: classical(train[:N_TEST], test, *setting) for setting in SETTINGS}
    runs: dict[tuple[int, float], list[Found]] = {setting: [] for setting in SETTINGS}
    for seed in SEEDS:
        priors = {}
        for covariance in COVARIANCES:
            start = time.perf_counter()
            prior = GenerativeCovariancePrior(
                covariance=covariance, n_latent=8, min_std=0.03, random_state=seed
            )
            priors[covariance] = prior.fit(train)
            figures["seconds_fit"][covariance].append(time.perf_counter() - start)
        figures["calibration"].append({name: calibration(prior, test) for name, prior in priors.items()})
        for setting in SETTINGS:
            runs[setting].append(learned(priors, test, *setting))
            m, sigma = setting
            figures[f"M={m}, sigma={sigma}"] = together(runs[setting]) | controls[setting]
        operator, data = sensed(test, 150, 0.05)
        full = priors["full"].set_params(operator=operator, noise=0.05)
        figures["within_two_std"].append(coverage(full, test, data))
        write("generative_mnist", figures, seeds=SEEDS, finished=seed == SEEDS[-1])
    draw(priors, test)


if __name__ == "__main__":
    main()

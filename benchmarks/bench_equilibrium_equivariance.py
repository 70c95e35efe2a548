"""Gains of equivariance: few chest MR images to learn from, and networks of one width.

Images have 64 x 64 pixels, and the data are a random quarter of the Fourier coefficients, most of them low.
Every network has the same training on whole images as they are, without turned or flipped ones. Quality is
measured on 50 other images, upright, turned and flipped, and costs as seconds of a training step. Controls:
the plain network with a training of twice the length, and one shown the images in all eight orientations.
Every training has three seeds.
"""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, gain, over_seeds, scores, write
from skimage.transform import downscale_local_mean
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, Trainer
from skinverse.metrics import psnr
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, fourier_sampling

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, RATE, SPREAD, NOISE, SEED, SEEDS, N_TEST = 64, 0.25, 16, 0.01, 0, (0, 1, 2), 50
N_STEPS, N_EQUILIBRIUM, N_FEATURES = 800, 150, 48
GROUPS = {"plain": "C1", "C4": "C4", "D4": "D4"}
WAYS = {
    **{name: (group, 1, False) for name, group in GROUPS.items()},
    "plain, twice as long": ("C1", 2, False),
    "plain, shown all orientations": ("C1", 1, True),
}


def problem() -> tuple[np.ndarray, Any]:
    chest = np.load(DATA / "mri_chest.npz")["chest"].astype(np.float32)
    small = np.stack([downscale_local_mean(image, (4, 4)) for image in chest])
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    density = 0.05 + np.exp(-(rows**2 + columns**2) / SPREAD**2)
    mask = np.random.default_rng(SEED).random((SIZE, SIZE)) < density * RATE / density.mean()
    return (small / small.max((1, 2), keepdims=True)).astype(np.float32), fourier_sampling(mask)


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(np.ascontiguousarray(images)).to(torch.complex64)).numpy()
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *exact.shape)) * NOISE / np.sqrt(2)
    return (exact + noise[0] + 1j * noise[1]).astype(np.complex64)


def trainer(n_steps: int, n_images: int, lr: float) -> Trainer:
    batch = min(8, n_images)
    return Trainer(
        max_epochs=n_steps * batch // n_images,
        batch_size=batch,
        lr=lr,
        final_lr=0.1 * lr,
        max_grad_norm=1.0,
        validation_fraction=0.0,
    )


def network(group: str, seed: int) -> DnCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DnCNN(n_features=N_FEATURES, group=group)


def method(
    group: str, operator: Any, n_train: int, *, length: int = 1, seed: int = SEED
) -> DeepEquilibriumRecon:
    return DeepEquilibriumRecon(
        operator,
        iteration="admm",
        network=network(group, seed),
        backward="jacobian_free",
        patch_size=None,
        max_steps=60,
        tol=1e-4,
        pretrainer=trainer(length * N_STEPS, n_train, 3e-3),
        trainer=trainer(length * N_EQUILIBRIUM, n_train, 1e-3),
        random_state=seed,
    )


def step_seconds(images: np.ndarray, data: np.ndarray, operator: Any) -> dict[str, float]:
    """One step of training on eight images, unrolled five times: every network as often."""
    one = Trainer(
        max_epochs=12, batch_size=8, lr=1e-4, final_lr=1e-4, max_grad_norm=math.inf, validation_fraction=0.0
    )
    seconds = {}
    for name, group in GROUPS.items():
        unrolled = method(group, operator, len(images)).set_params(
            backward="unroll", max_steps=5, pretraining=False, trainer=one
        )
        epochs = unrolled.fit(images, data).history_
        seconds[name] = float(np.median([epoch["dur"] for epoch in epochs[2:]]))
    return seconds


def orientations(images: np.ndarray) -> np.ndarray:
    both = images, images[:, :, ::-1]
    return np.ascontiguousarray(np.concatenate([np.rot90(x, k, (1, 2)) for x in both for k in range(4)]))


def judged(
    name: str, images: np.ndarray, test: dict[str, np.ndarray], operator: Any, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """One training: a turned image as it sees it, and what was found."""
    group, length, shown_all = WAYS[name]
    seen = orientations(images) if shown_all else images
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = method(group, operator, len(seen), length=length, seed=seed)
        fitted = model.fit(seen, measured(seen, operator, seed))
        seconds_fit = time.perf_counter() - start
        fitted.set_params(max_steps=200)
        found = {
            way: fitted.predict(measured(x, operator, SEED + 1), return_info=True) for way, x in test.items()
        }
    figures: dict[str, Any] = {
        "seconds_fit": seconds_fit,
        "weights": sum(p.numel() for p in fitted.module_.network.parameters()),
        "converged": float(found["upright"][1].converged.mean()),
    }
    for way, (x, _) in found.items():
        figures |= scores(way, psnr(test[way], x, data_range=1.0))
    return found["turned"][0][0], figures


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The trainings with several seeds."""
    found = {name: float(np.mean([run[name] for run in runs])) for name in ("seconds_fit", "converged")}
    for way in ("upright", "turned", "flipped"):
        found |= over_seeds(runs, way)
    return found | {"weights": runs[0]["weights"]}


def draw(shown: dict[str, np.ndarray]) -> None:
    """The first test image, turned by a right angle, as every network sees it."""
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.9), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(title=name)
        axis.axis("off")
    figure.savefig(RESULTS / "equilibrium_equivariance.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "mri_chest.npz").exists():
        print(f"{DATA / 'mri_chest.npz'} is not here: nothing measured")
        return
    images, operator = problem()
    test = {
        "upright": images[-N_TEST:],
        "turned": np.rot90(images[-N_TEST:], 1, (1, 2)),
        "flipped": images[-N_TEST:, :, ::-1],
    }
    figures: dict[str, Any] = {"targets": {"gain_at_5": 0.5, "gain_turned_at_20": 0.3, "step_ratio": 1.2}}
    seconds = step_seconds(images[:8], measured(images[:8], operator, SEED), operator)
    figures["step_seconds"] = seconds
    figures["step_ratio"] = {name: seconds[name] / seconds["plain"] for name in seconds}
    shown = {"true": test["turned"][0]}
    for n_train in (5, 20):
        for name in WAYS:
            runs = [judged(name, images[:n_train], test, operator, seed) for seed in SEEDS]
            found = together([figures for _, figures in runs])
            shown[f"{n_train} images, {name}: {found['turned']:.2f} dB"] = runs[0][0]
            figures[f"{n_train} images, {name}"] = found
            plain = figures[f"{n_train} images, plain"]
            found["gain over plain"] = {way: gain(found, plain, way)[way] for way in test}
            write("equilibrium_equivariance", figures, seeds=SEEDS, finished=False)
    write("equilibrium_equivariance", figures, seeds=SEEDS)
    draw(shown)


if __name__ == "__main__":
    main()

"""Cells under Fourier masks: covariance models against total variation, and what happens in unseen settings.

64 x 64 pixels, 128 x 128 where there is a GPU. A supervised network, unrolled ten times, is trained for one
rate of sampling and one noise; the prior is trained once, on images alone. Both are measured over a grid of
rates and noises.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pylops
import torch
from _record import RESULTS, write
from skimage.transform import downscale_local_mean
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, GenerativeCovariancePrior, TotalVariationRecon, Trainer
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE = 128 if torch.cuda.is_available() else 64
N_TEST, SEED, CENTRE = 8, 0, 4
RATES, NOISES, SEEN = (0.1, 0.25, 0.5), (0.01, 0.05, 0.1), (0.25, 0.05)
WEIGHTS = np.geomspace(3e-4, 0.1, 8)


def masked(
    images: np.ndarray, rate: float, noise: float, seed: int
) -> tuple[pylops.LinearOperator, np.ndarray]:
    mask = np.random.default_rng(SEED).random((SIZE, SIZE)) < rate
    mask[SIZE // 2 - CENTRE : SIZE // 2 + CENTRE, SIZE // 2 - CENTRE : SIZE // 2 + CENTRE] = True
    operator = fourier_sampling(mask)
    exact = as_torch(operator)(torch.from_numpy(images).to(torch.complex64)).numpy()
    parts = np.random.default_rng(seed).normal(size=(2, *exact.shape)) * noise / np.sqrt(2)
    return operator, (exact + parts[0] + 1j * parts[1]).astype(np.complex64)


def quality(images: np.ndarray, x: np.ndarray) -> float:
    return float(psnr(images, np.real(x), data_range=1.0).mean())


def best_total_variation(images: np.ndarray, data: np.ndarray, operator: Any) -> float:
    """Among real images, as the prior's are: a real operator onto real and imaginary parts."""
    parts = pylops.VStack([operator.toreal(), (-1j * operator).toreal()], dtype="float32")
    parts.dims, data = operator.dims, np.concatenate([data.real, data.imag], 1)
    found = (TotalVariationRecon(parts, lam=lam).fit().predict(data) for lam in WEIGHTS)
    return max(quality(images, x) for x in found)


def draw(grid: dict[str, dict[str, float]]) -> None:
    """PSNR over the grid, the setting that the network was trained for framed."""
    figure, axes = plt.subplots(1, len(grid), figsize=(3.2 * len(grid), 3.2), layout="constrained")
    values = [value for found in grid.values() for value in found.values()]
    for axis, (name, found) in zip(axes, grid.items(), strict=True):
        table = np.array([[found[f"{rate}, {noise}"] for noise in NOISES] for rate in RATES])
        axis.imshow(table, vmin=min(values), vmax=max(values))
        for (i, j), value in np.ndenumerate(table):
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="white")
        axis.set(title=name, xlabel="noise", ylabel="rate")
        axis.set_xticks(range(len(NOISES)), NOISES)
        axis.set_yticks(range(len(RATES)), RATES)
        corner = NOISES.index(SEEN[1]) - 0.5, RATES.index(SEEN[0]) - 0.5
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    figure.savefig(RESULTS / "generative_grid.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "cells.npz").exists():
        print(f"{DATA / 'cells.npz'} is not here: nothing measured")
        return
    cells = np.load(DATA / "cells.npz")
    train, test = (
        np.stack([downscale_local_mean(x, (128 // SIZE,) * 2) for x in cells[name]]).astype(np.float32)
        for name in ("train", "test")
    )
    largest = train.max()
    train, test = train / largest, test[:N_TEST] / largest
    figures: dict[str, Any] = {"seconds_fit": {}}
    methods: dict[str, Any] = {}
    for covariance in ("full", "diagonal", "identity"):
        start = time.perf_counter()
        recipe = Trainer(
            max_epochs=20, batch_size=16, lr=1e-3, lr_decay=0.05, max_norm=10.0, validation_fraction=0.0
        )
        methods[covariance] = GenerativeCovariancePrior(
            covariance=covariance, n_latent=16, trainer=recipe
        ).fit(train)
        figures["seconds_fit"][covariance] = time.perf_counter() - start
    operator, data = masked(train, *SEEN, SEED)
    start = time.perf_counter()
    recipe = Trainer(max_epochs=6, lr=1e-3, lr_decay=0.1, max_norm=1.0, validation_fraction=0.02)
    first = Trainer(max_epochs=8, lr=2e-3, lr_decay=0.1, validation_fraction=0.0)
    network = DeepEquilibriumRecon(
        operator, backward="unroll", max_steps=10, pretrainer=first, trainer=recipe
    )
    methods["supervised"] = network.fit(train, data)
    figures["seconds_fit"]["supervised"] = time.perf_counter() - start
    grid: dict[str, dict[str, float]] = {name: {} for name in (*methods, "total variation")}
    for rate in RATES:
        for noise in NOISES:
            operator, data = masked(test, rate, noise, SEED + 1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                for name, method in methods.items():
                    known = {} if name == "supervised" else {"noise_std": noise}
                    x = method.set_params(operator=operator, **known).predict(data)
                    grid[name][f"{rate}, {noise}"] = quality(test, x)
            grid["total variation"][f"{rate}, {noise}"] = best_total_variation(test, data, operator)
            figures["psnr at rate, noise"] = grid
            write("generative_cells", figures, seed=SEED)
    draw(grid)


if __name__ == "__main__":
    main()

"""Cells under Fourier masks: covariance models against total variation, also in settings without a training.

Images have 64 x 64 pixels, or 128 x 128 where there is a GPU. A supervised network, unrolled ten times, is
trained for one rate of sampling and one noise. The priors are trained once, on images alone, turned and
flipped. All are measured over a grid of rates and noises, total variation with the weight that is best on
images of the training each time. The latent variables of the priors minimise their energy ("soft") or are
those of the encoder ("encoded"). Trainings are kept in ``.cache``; a covariance or "supervised" on the
command line trains that method alone.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pylops
import torch
from _record import RESULTS, scores, write
from skimage.transform import downscale_local_mean
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, GenerativeCovariancePrior, TotalVariationRecon, Trainer
from skinverse.metrics import psnr
from skinverse.operators import as_torch, fourier_sampling

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(__file__).resolve().parent / ".cache"
SIZE = 128 if torch.cuda.is_available() else 64
N_TEST, SEED, CENTRE = 8, 0, 4
RATES, NOISES, SEEN = (0.1, 0.25, 0.5), (0.01, 0.05, 0.1), (0.25, 0.05)
WEIGHTS = np.geomspace(3e-4, 0.1, 8)
Pairs = tuple[np.ndarray, np.ndarray]
COVARIANCES, CONSTRAINTS, N_SUPERVISED = ("full", "diagonal", "identity"), ("encoded", "soft"), 2000


def masked(
    images: np.ndarray, rate: float, noise: float, seed: int
) -> tuple[pylops.LinearOperator, np.ndarray]:
    mask = np.random.default_rng(SEED).random((SIZE, SIZE)) < rate
    mask[SIZE // 2 - CENTRE : SIZE // 2 + CENTRE, SIZE // 2 - CENTRE : SIZE // 2 + CENTRE] = True
    operator = fourier_sampling(mask)
    exact = as_torch(operator)(torch.from_numpy(images).to(torch.complex64)).numpy()
    parts = np.random.default_rng(seed).normal(size=(2, *exact.shape)) * noise / np.sqrt(2)
    return operator, (exact + parts[0] + 1j * parts[1]).astype(np.complex64)


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    return scores("psnr", psnr(images, np.real(x), data_range=1.0))


def total_variation(chosen_on: Pairs, data: np.ndarray, operator: Any) -> dict[str, np.ndarray]:
    """Total variation of real images, as the prior's are, without and with their box of values.

    The operator is a real one onto real and imaginary parts; the weight is the best on training images.
    """
    parts = pylops.VStack([operator.toreal(), (-1j * operator).toreal()], dtype="float32")
    parts.dims, parts.dimsd = operator.dims, (2, *operator.dimsd)

    def real(data: np.ndarray) -> np.ndarray:
        return np.stack([data.real, data.imag], 1)

    def best(bounds: tuple[float, float] | None) -> np.ndarray:
        images, known = chosen_on
        candidates = [TotalVariationRecon(parts, lam=lam, bounds=bounds).fit() for lam in WEIGHTS]
        tv = max(candidates, key=lambda tv: quality(images, tv.predict(real(known)))["psnr"])
        return tv.predict(real(data))

    return {"total variation": best(None), "total variation in [0, 1]": best((0.0, 1.0))}


def draw(grid: dict[str, dict[str, Any]]) -> None:
    """PSNR over the grid, the setting that the network was trained for framed."""
    figure, axes = plt.subplots(2, len(grid) // 2, figsize=(1.6 * len(grid), 6.6), layout="constrained")
    values = [value["psnr"] for found in grid.values() for value in found.values()]
    for axis, (name, found) in zip(axes.flat, grid.items(), strict=True):
        table = np.array([[found[f"{rate}, {noise}"]["psnr"] for noise in NOISES] for rate in RATES])
        axis.imshow(table, vmin=min(values), vmax=max(values))
        for (i, j), value in np.ndenumerate(table):
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", color="white")
        axis.set(title=name, xlabel="noise", ylabel="rate")
        axis.set_xticks(range(len(NOISES)), NOISES)
        axis.set_yticks(range(len(RATES)), RATES)
        corner = NOISES.index(SEEN[1]) - 0.5, RATES.index(SEEN[0]) - 0.5
        axis.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    figure.savefig(RESULTS / "generative_grid.png", dpi=100)


def turned(images: np.ndarray) -> np.ndarray:
    """In all eight orientations."""
    both = images, images[:, :, ::-1]
    return np.ascontiguousarray(np.concatenate([np.rot90(x, k, (1, 2)) for x in both for k in range(4)]))


def prior(covariance: str) -> GenerativeCovariancePrior:
    recipe = Trainer(
        max_epochs=6, batch_size=16, lr=1e-3, final_lr=5e-5, max_grad_norm=10.0, validation_fraction=0.0
    )
    return GenerativeCovariancePrior(covariance=covariance, n_latent=16, trainer=recipe, memory=str(CACHE))


def supervised(images: np.ndarray) -> DeepEquilibriumRecon:
    """A network unrolled ten times, trained for one rate and one noise."""
    some = images[np.random.default_rng(SEED).permutation(len(images))[:N_SUPERVISED]]
    operator, data = masked(some, *SEEN, SEED)
    recipe = Trainer(
        max_epochs=4, lr=1e-3, final_lr=1e-4, max_grad_norm=1.0, validation_fraction=0.02, score_every=1
    )
    first = Trainer(max_epochs=5, lr=2e-3, final_lr=2e-4, validation_fraction=0.0)
    network = DeepEquilibriumRecon(
        operator, backward="unroll", max_steps=10, pretrainer=first, trainer=recipe, memory=str(CACHE)
    )
    return network.fit(some, data)


def fitted(name: str, images: np.ndarray) -> Any:
    return supervised(images) if name == "supervised" else prior(name).fit(images)


def reconstructed(
    trained: dict[str, Any], operator: Any, data: np.ndarray, noise: float
) -> dict[str, tuple[np.ndarray, float]]:
    """What every method makes of the data, and the seconds it takes."""
    found = {}
    for name, method in trained.items():
        constraints = [{}] if name == "supervised" else [{"constraint": c} for c in CONSTRAINTS]
        for chosen in constraints:
            known = {} if name == "supervised" else {"noise": noise}
            start = time.perf_counter()
            x = method.set_params(operator=operator, **known, **chosen).predict(data)
            found[", ".join([name, *chosen.values()])] = x, time.perf_counter() - start
    return found


def main(names: list[str]) -> None:
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
    few = train[:N_TEST] / largest
    train, test = turned(train / largest), test[:N_TEST] / largest
    trained = {name: fitted(name, train) for name in (names or (*COVARIANCES, "supervised"))}
    if names:
        return
    seconds = {name: sum(epoch["dur"] for epoch in method.history_) for name, method in trained.items()}
    figures: dict[str, Any] = {"seconds_fit": seconds, "n_train": len(train)}
    grid: dict[str, dict[str, Any]] = {}
    for rate, noise in itertools.product(RATES, NOISES):
        operator, data = masked(test, rate, noise, SEED + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = reconstructed(trained, operator, data, noise)
            known = few, masked(few, rate, noise, SEED + 2)[1]
            tv = total_variation(known, data, operator)
        for name, x in {**{name: x for name, (x, _) in found.items()}, **tv}.items():
            grid.setdefault(name, {})[f"{rate}, {noise}"] = quality(test, x)
        if (rate, noise) == SEEN:
            figures["seconds_per_image"] = {name: took / N_TEST for name, (_, took) in found.items()}
        figures["psnr at rate, noise"] = grid
        write("generative_cells", figures, seeds=[SEED], finished=(rate, noise) == (RATES[-1], NOISES[-1]))
    draw(grid)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Supervised reconstruction: sparse-view CT of random ellipses, 64 x 64 pixels, 30 views, 95 detectors.

The protocol of J. Adler and O. Oktem at half the resolution: 5 % noise, and ellipses that no method has seen
to test on; PSNR is for the range of each image. Total variation gets the weight that is best on images of the
training, and stands there with the box of the training images too. Trainings are kept in ``.cache``: methods
named on the command line are trained there, and nothing is written.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, gain, over_seeds, quality, write
from sklearn.base import clone

from skinverse import (
    LISTA,
    FilteredBackProjection,
    LearnedGradientDescent,
    LearnedPrimalDual,
    PostProcessor,
    TotalVariationRecon,
    Trainer,
    VariationalNetwork,
)
from skinverse.datasets import make_ellipses
from skinverse.operators import as_torch, parallel_beam

CACHE = Path(__file__).resolve().parent / ".cache"
SIZE, N_VIEWS, N_DETECTORS, NOISE, SEED, SEEDS = 64, 30, 95, 0.05, 0, (0, 1, 2)
N_TRAIN, N_TEST, FAR = 2000, 64, 10**6
Judged = tuple[np.ndarray, dict[str, Any]]


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    level = NOISE * np.abs(exact).mean((1, 2), keepdims=True)
    return (exact + level * np.random.default_rng(seed).normal(size=exact.shape)).astype(np.float32)


def methods(operator: Any, tv: TotalVariationRecon, seed: int) -> dict[str, Any]:
    """Everything that is trained, each for as many epochs as take a quarter of an hour on one core."""

    def trainer(max_epochs: int, lr: float) -> Trainer:
        return Trainer(
            max_epochs=max_epochs,
            batch_size=5,
            lr=lr,
            final_lr=0.02 * lr,
            max_grad_norm=1.0,
            validation_fraction=0.02,
            score_every=2,
        )

    kept: dict[str, Any] = {"memory": str(CACHE), "random_state": seed}
    fbp = FilteredBackProjection(filter="hann")
    unet: dict[str, Any] = {"patch_size": None, "trainer": trainer(9, 1e-3)}
    return {
        "U-Net after FBP": PostProcessor(operator, initial=fbp, **unet, **kept),
        "U-Net after TV": PostProcessor(operator, initial=tv, **unet, **kept),
        "learned gradient descent after TV": LearnedGradientDescent(
            operator, initial=tv, trainer=trainer(7, 3e-3), **kept
        ),
        "learned primal-dual after TV": LearnedPrimalDual(
            operator, initial=tv, n_features=16, trainer=trainer(7, 3e-3), **kept
        ),
        "variational network": VariationalNetwork(operator, trainer=trainer(7, 1e-3), **kept),
        "LISTA": LISTA(operator, trainer=trainer(2, 1e-3), **kept),
    }


def judged(method: Any, images: np.ndarray, data: np.ndarray) -> Judged:
    start = time.perf_counter()
    x = method.predict(data)
    seconds = (time.perf_counter() - start) / len(images)
    return x, quality(images, x, data_range=None) | {"seconds_per_image": seconds}


def trained(method: Any, images: np.ndarray, data: np.ndarray, x: np.ndarray, y: np.ndarray) -> Judged:
    method.fit(images, data)
    shown, found = judged(method, x, y)
    n_weights = sum(p.numel() for p in method.module_.parameters())
    return shown, found | {
        "n_weights": n_weights,
        "seconds_fit": sum(epoch["dur"] for epoch in method.history_),
    }


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = ("n_weights", "seconds_fit", "seconds_per_image")
    return (
        over_seeds(runs, "psnr")
        | over_seeds(runs, "ssim")
        | {name: float(np.mean([run[name] for run in runs])) for name in means}
    )


def best_total_variation(operator: Any, images: np.ndarray, data: np.ndarray) -> TotalVariationRecon:
    candidates = [TotalVariationRecon(operator, lam=lam).fit() for lam in np.logspace(-1.5, 1, 9)]
    return max(candidates, key=lambda tv: tv.score(images, data))


def draw(images: np.ndarray, shown: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    figure, axes = plt.subplots(
        2, len(shown) + 1, figsize=(2.2 * (len(shown) + 1), 4.6), layout="constrained"
    )
    for column, (name, x) in enumerate([("truth", images), *shown.items()]):
        for row in range(2):
            low, high = images[row].min(), images[row].max()
            axes[row, column].imshow(x[row], cmap="gray", vmin=low, vmax=high)
            axes[row, column].axis("off")
        title = f"{name}\n{figures[name]['psnr']:.2f} dB" if name in figures else name
        axes[0, column].set_title(title, fontsize=9)
    figure.savefig(RESULTS / "supervised_ct.png", dpi=100)


def main(names: list[str]) -> None:
    torch.set_num_threads(2)
    operator = parallel_beam((SIZE, SIZE), (np.arange(N_VIEWS) + 0.5) * np.pi / N_VIEWS, N_DETECTORS)
    images = make_ellipses(N_TRAIN, SIZE, random_state=SEED)
    test = make_ellipses(N_TEST, SIZE, random_state=FAR)
    data, y_test = measured(images, operator, SEED), measured(test, operator, SEED + 1)
    few, low, high = slice(N_TEST), float(images.min()), float(images.max())
    tv = best_total_variation(operator, images[few], data[few])
    if names:
        for name, seed in itertools.product(names, SEEDS):
            methods(operator, clone(tv), seed)[name].fit(images, data)
        return
    classical = {
        "FBP": FilteredBackProjection(operator, filter="hann").fit(),
        "TV": tv,
        "TV, boxed": clone(tv).set_params(bounds=(low, high)).fit(),
    }
    shown, figures = {}, {}
    for name, method in classical.items():
        shown[name], figures[name] = judged(method, test, y_test)
    for name in methods(operator, tv, SEED):
        runs = []
        for seed in SEEDS:
            shown[name], found = trained(methods(operator, clone(tv), seed)[name], images, data, test, y_test)
            runs.append(found)
        figures[name] = together(runs) | {"gain over TV": gain(together(runs), figures["TV"])}
        write("supervised_ct", figures, seeds=SEEDS, finished=False)
    write("supervised_ct", figures, seeds=SEEDS)
    draw(test, shown, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

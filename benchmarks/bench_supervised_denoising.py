"""A supervised denoiser on BSD68 at sigma 0.1, trained on other photographs of the same kind.

370 photographs of 180 x 180 train the network, and corners of 16 others score its epochs; BSD68 is used for
the measurement alone. Total variation has the weight that is best on other photographs. What is
trained has three seeds. Trainings are kept in ``.cache``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, gain, over_seeds, quality, write

from skinverse import PostProcessor, TotalVariationRecon, Trainer
from skinverse.networks import DnCNN

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(__file__).resolve().parent / ".cache"
SIGMA, NOISE_SEED, SEEDS, TV_LAM = 0.1, 0, (0, 1, 2), 0.08
NETWORK = {"n_features": 48, "n_layers": 8}
# Every photograph gives one patch of 64 x 64 per epoch.
TRAINER = Trainer(
    max_epochs=120,
    batch_size=8,
    lr=2e-3,
    final_lr=4e-5,
    max_grad_norm=1.0,
    validation_fraction=30 / 400,
    score_every=20,
)


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return (images + SIGMA * noise).astype(np.float32)


def draw(shown: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    """One photograph as every method sees it."""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image[60:220, 60:260], cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{name} {figures[name]['psnr']:.2f} dB" if name in figures else name)
        axis.axis("off")
    figure.savefig(RESULTS / "supervised_denoising.png", dpi=100)


def trained(
    known: np.ndarray, known_data: np.ndarray, images: np.ndarray, data: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Training and BSD68 with one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DnCNN(**NETWORK)
    method = PostProcessor(network=network, trainer=TRAINER, memory=str(CACHE), random_state=seed)
    method.fit(known, known_data)
    start = time.perf_counter()
    x = method.predict(data)
    return x, quality(images, x) | {
        "n_weights": sum(p.numel() for p in method.module_.parameters()),
        "seconds_fit": sum(epoch["dur"] for epoch in method.history_),
        "seconds_per_image": (time.perf_counter() - start) / len(images),
        "held_out_during_training": [e["valid_score"] for e in method.history_ if "valid_score" in e],
    }


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = ("n_weights", "seconds_fit", "seconds_per_image")
    return (
        over_seeds(runs, "psnr")
        | over_seeds(runs, "ssim")
        | {name: float(np.mean([run[name] for run in runs])) for name in means}
        | {"held_out_during_training": [run["held_out_during_training"] for run in runs]}
    )


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    known, images = (
        (np.load(DATA / f"{name}.npz")["images"] / 255).astype(np.float32) for name in ("bsd400", "bsd68")
    )
    known_data, data = noisy(known, NOISE_SEED), noisy(images, NOISE_SEED + 1)
    tv = TotalVariationRecon(lam=TV_LAM).fit().predict(data)
    figures: dict[str, Any] = {"noisy": quality(images, data), "TV": quality(images, tv)}
    runs = []
    for seed in SEEDS:
        x, found = trained(known, known_data, images, data, seed)
        runs.append(found)
        figures["DnCNN"] = together(runs) | {"gain over TV": gain(together(runs), figures["TV"])}
        write("supervised_denoising", figures, seeds=SEEDS, finished=seed == SEEDS[-1])
    draw({"true": images[0], "noisy": data[0], "TV": tv[0], "DnCNN": x[0]}, figures)


if __name__ == "__main__":
    main()

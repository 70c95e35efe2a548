"""A supervised denoiser on BSD68 at sigma 0.1, trained on other photographs of the same kind.

370 photographs of 180 x 180 train the network, and corners of 16 others score its epochs; BSD68 is used for
the measurement alone. Total variation has the weight that is best on other photographs. Trainings are kept
in ``.cache``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, write

from skinverse import PostProcessor, TotalVariationRecon, Trainer
from skinverse.metrics import psnr, ssim
from skinverse.networks import DnCNN

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(__file__).resolve().parent / ".cache"
SIGMA, SEED, TV_LAM = 0.1, 0, 0.08
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


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, float]:
    return {
        name: float(metric(images, x, data_range=1.0).mean())
        for name, metric in (("psnr", psnr), ("ssim", ssim))
    }


def draw(shown: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    """One photograph as every method sees it."""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.2), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image[60:220, 60:260], cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{name} {figures[name]['psnr']:.2f} dB" if name in figures else name)
        axis.axis("off")
    figure.savefig(RESULTS / "supervised_denoising.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    known, images = (
        (np.load(DATA / f"{name}.npz")["images"] / 255).astype(np.float32) for name in ("bsd400", "bsd68")
    )
    known_data, data = noisy(known, SEED), noisy(images, SEED + 1)
    tv = TotalVariationRecon(lam=TV_LAM).fit().predict(data)
    figures: dict[str, Any] = {"noisy": quality(images, data), "TV": quality(images, tv)}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = DnCNN(**NETWORK)
    method = PostProcessor(network=network, trainer=TRAINER, memory=str(CACHE), random_state=SEED)
    method.fit(known, known_data)
    start = time.perf_counter()
    x = method.predict(data)
    figures["DnCNN"] = quality(images, x) | {
        "network": NETWORK,
        "n_weights": sum(p.numel() for p in method.module_.parameters()),
        "seconds_fit": sum(epoch["dur"] for epoch in method.history_),
        "seconds_per_image": (time.perf_counter() - start) / len(images),
        "held_out_during_training": [e["valid_score"] for e in method.history_ if "valid_score" in e],
    }
    write("supervised_denoising", figures, seed=SEED)
    draw({"true": images[0], "noisy": data[0], "TV": tv[0], "DnCNN": x[0]}, figures)


if __name__ == "__main__":
    main()

"""Adversarial regularisation on BSD68 at sigma 0.1, trained on other photographs of the same kind.

370 photographs of 180 x 180 train the energy, choose its weights and calibrate ``lam`` and the scale; BSD68
is used for the measurement alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write

from skinverse import AdversarialRegularizer, TotalVariationRecon, Trainer
from skinverse.metrics import psnr, ssim

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIGMA, SEED, TV_LAM = 0.1, 0, 0.08
TRAINERS = {"ridge": Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=20)}


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return (images + SIGMA * noise).astype(np.float32)


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, float]:
    return {
        name: float(metric(images, x, data_range=1.0).mean())
        for name, metric in (("psnr", psnr), ("ssim", ssim))
    }


def measure(
    energy: str, known: np.ndarray, known_data: np.ndarray, images: np.ndarray, data: np.ndarray
) -> dict[str, Any]:
    """Training, calibration and BSD68 with one energy."""
    start = time.perf_counter()
    method = AdversarialRegularizer(energy=energy, trainer=TRAINERS[energy]).fit(known, known_data)
    fitted = time.perf_counter()
    x, info = method.predict(data, return_info=True)
    figures = quality(images, x) | {
        "seconds_fit": fitted - start,
        "seconds_per_image": (time.perf_counter() - fitted) / len(images),
        "mean_steps": float(info.n_steps.mean()),
        "converged": float(info.converged.mean()),
        "lam": method.lam_,
        "scale": method.scale_,
        "weak_convexity": method.weak_convexity_,
        "epochs": len(method.history_),
    }
    print(energy, figures, flush=True)
    return figures


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    known, images = (
        (np.load(DATA / f"{name}.npz")["images"] / 255).astype(np.float32) for name in ("bsd400", "bsd68")
    )
    known = known[:370]
    known_data, data = noisy(known, SEED), noisy(images, SEED + 1)
    figures: dict[str, Any] = {
        "noisy": quality(images, data),
        "tv": quality(images, TotalVariationRecon(lam=TV_LAM).fit().predict(data)),
        "target_psnr": 27.6,
        "target_minutes": 15,
    }
    print(figures, flush=True)
    for energy in TRAINERS:
        figures[energy] = measure(energy, known, known_data, images, data)
    write("adversarial_denoising", figures, seed=SEED)


if __name__ == "__main__":
    main()

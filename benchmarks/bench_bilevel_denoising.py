"""Bilevel learning on photographs: trained on BSD400, measured on BSD68, with both hypergradients."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write

from skinverse import BilevelRegularizer, Trainer
from skinverse.metrics import psnr, ssim

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIGMA, SEED, N_TRAIN = 0.1, 0, 370
PRETRAINER = Trainer(max_epochs=70, lr=1e-2, final_lr=1e-3, validation_fraction=0.0)
TRAINER = Trainer(max_epochs=10, lr=1e-2, final_lr=1e-3, score_every=1)


def noisy(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.load(DATA / f"{name}.npz")["images"].astype(np.float32) / 255
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return images, (images + SIGMA * noise).astype(np.float32)


def measure(hypergradient: str, n_test: int | None) -> dict[str, Any]:
    images, data = (batch[:N_TRAIN] for batch in noisy("bsd400", SEED))
    x_test, y_test = (batch[:n_test] for batch in noisy("bsd68", SEED + 1))
    method = BilevelRegularizer(
        hypergradient=hypergradient, patch_size=40, pretrainer=PRETRAINER, trainer=TRAINER
    )
    start = time.perf_counter()
    method.fit(images, data)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    x, info = method.predict(y_test, return_info=True)
    return {
        "psnr": float(psnr(x_test, x, data_range=1.0).mean()),
        "ssim": float(ssim(x_test, x, data_range=1.0).mean()),
        "images": len(x),
        "seconds_fit": seconds,
        "seconds_per_image": (time.perf_counter() - start) / len(x),
        "mean_steps": float(info.n_steps.mean()),
        "lam": method.lam_,
        "weak_convexity": method.weak_convexity_,
    }


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    figures: dict[str, Any] = {"target_psnr": 27.9}
    for hypergradient in ("jacobian_free", "minres"):
        figures[hypergradient] = measure(hypergradient, None)
        write("bilevel_denoising", figures, seed=SEED)


if __name__ == "__main__":
    main()

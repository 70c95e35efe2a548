"""Bilevel learning on photographs: trained on BSD400, measured on BSD68, with both hypergradients.

Controls: the same energy untrained, whose weight alone is learned, and after its pretraining as a denoiser.
What is trained has three seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import over_seeds, quality, write

from skinverse import BilevelRegularizer, Trainer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIGMA, NOISE_SEED, SEEDS, N_TRAIN = 0.1, 0, (0, 1, 2), 370
PRETRAINER = Trainer(max_epochs=70, lr=1e-2, final_lr=1e-3, validation_fraction=0.0)
TRAINER = Trainer(max_epochs=10, lr=1e-2, final_lr=1e-3, score_every=1)
NOTHING = Trainer(max_epochs=1, lr=1e-12, final_lr=1e-12, score_every=1)
WAYS: dict[str, dict[str, Any]] = {
    "jacobian_free": {"hypergradient": "jacobian_free", "pretrainer": PRETRAINER, "trainer": TRAINER},
    "minres": {"hypergradient": "minres", "pretrainer": PRETRAINER, "trainer": TRAINER},
    "pretrained only": {"pretrainer": PRETRAINER, "trainer": NOTHING},
    "untrained": {"pretrainer": NOTHING, "trainer": NOTHING},
}


def noisy(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.load(DATA / f"{name}.npz")["images"].astype(np.float32) / 255
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return images, (images + SIGMA * noise).astype(np.float32)


def measured(way: dict[str, Any], seed: int) -> dict[str, Any]:
    images, data = (batch[:N_TRAIN] for batch in noisy("bsd400", NOISE_SEED))
    x_test, y_test = noisy("bsd68", NOISE_SEED + 1)
    method = BilevelRegularizer(patch_size=40, random_state=seed, **way)
    start = time.perf_counter()
    method.fit(images, data)
    fitted = time.perf_counter()
    x, info = method.predict(y_test, return_info=True)
    return quality(x_test, x) | {
        "images": len(x),
        "seconds_fit": fitted - start,
        "seconds_per_image": (time.perf_counter() - fitted) / len(x),
        "mean_steps": float(info.n_steps.mean()),
        "lam": method.lam_,
        "weak_convexity": method.weak_convexity_,
    }


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = ("images", "seconds_fit", "seconds_per_image", "mean_steps")
    lists = ("lam", "weak_convexity")
    return (
        over_seeds(runs, "psnr")
        | over_seeds(runs, "ssim")
        | {name: float(np.mean([run[name] for run in runs])) for name in means}
        | {name: [run[name] for run in runs] for name in lists}
    )


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    figures: dict[str, Any] = {}
    for name, way in WAYS.items():
        figures[name] = together([measured(way, seed) for seed in SEEDS])
        write("bilevel_denoising", figures, seeds=SEEDS, finished=name == list(WAYS)[-1])


if __name__ == "__main__":
    main()

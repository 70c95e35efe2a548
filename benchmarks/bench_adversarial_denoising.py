"""Adversarial regularisation on BSD68 at sigma 0.1, trained on other photographs of the same kind.

370 photographs of 180 x 180 train the energy, choose its weights and calibrate ``lam`` and the scale; BSD68
is used for the measurement alone. Controls: the same energy untrained and calibrated in the same way, and
total variation with the weight that is best on 30 of the photographs. What is trained has three seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import gain, over_seeds, quality, write

from skinverse import AdversarialRegularizer, TotalVariationRecon, Trainer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIGMA, NOISE_SEED, SEEDS, N_TRAIN, N_CHOSEN = 0.1, 0, (0, 1, 2), 370, 30
TV_LAMS = (0.06, 0.07, 0.08, 0.09, 0.1)
ENERGY = "ridge"
TRAINER = Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=20)
UNTRAINED = Trainer(n_steps=1, lr=1e-12, final_lr=1e-12)


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=images.shape)
    return (images + SIGMA * noise).astype(np.float32)


def total_variation(images: np.ndarray, data: np.ndarray) -> TotalVariationRecon:
    """Total variation with the weight that is best on these images."""
    candidates = [TotalVariationRecon(lam=lam).fit() for lam in TV_LAMS]
    return max(candidates, key=lambda tv: quality(images, tv.predict(data))["psnr"])


def methods(seed: int) -> dict[str, AdversarialRegularizer]:
    trained = AdversarialRegularizer(energy=ENERGY, trainer=TRAINER, random_state=seed)
    untrained = AdversarialRegularizer(energy=ENERGY, trainer=UNTRAINED, pretraining=False, random_state=seed)
    return {f"{ENERGY}, untrained": untrained, ENERGY: trained}


def measured(
    method: AdversarialRegularizer,
    known: tuple[np.ndarray, np.ndarray],
    images: np.ndarray,
    data: np.ndarray,
) -> dict[str, Any]:
    """Training, calibration and BSD68."""
    start = time.perf_counter()
    method.fit(*known)
    fitted = time.perf_counter()
    x, info = method.predict(data, return_info=True)
    return quality(images, x) | {
        "seconds_fit": fitted - start,
        "seconds_per_image": (time.perf_counter() - fitted) / len(images),
        "mean_steps": float(info.n_steps.mean()),
        "converged": float(info.converged.mean()),
        "lam": method.lam_,
        "scale": method.scale_,
        "weak_convexity": method.weak_convexity_,
    }


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several seeds: the mean of times and steps, and every seed's weight."""
    means = ("seconds_fit", "seconds_per_image", "mean_steps", "converged")
    lists = ("lam", "scale", "weak_convexity")
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
    known, images = (
        (np.load(DATA / f"{name}.npz")["images"] / 255).astype(np.float32) for name in ("bsd400", "bsd68")
    )
    known, data = known[:N_TRAIN], noisy(images, NOISE_SEED + 1)
    pairs = known, noisy(known, NOISE_SEED)
    tv = total_variation(known[:N_CHOSEN], pairs[1][:N_CHOSEN])
    boxed = TotalVariationRecon(lam=tv.lam, bounds=(0, 1)).fit()
    figures: dict[str, Any] = {
        "noisy": quality(images, data),
        "tv": quality(images, tv.predict(data)) | {"lam": tv.lam},
        "tv within the range of images": quality(images, boxed.predict(data)) | {"lam": tv.lam},
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        for name, method in methods(seed).items():
            runs.setdefault(name, []).append(measured(method, pairs, images, data))
            figures[name] = together(runs[name])
        figures["gain over tv"] = {name: gain(figures[name], figures["tv"]) for name in runs}
        write("adversarial_denoising", figures, seeds=SEEDS, finished=seed == SEEDS[-1])


if __name__ == "__main__":
    main()

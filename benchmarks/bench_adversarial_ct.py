"""Adversarial regularisation for sparse-view CT: chest images and ellipses, every energy, two rules for lam.

Images have 128 x 128 pixels, data 60 angles and noise of 2.5 % of their mean modulus; 80 images train, 20
test. Controls: the same energy untrained and calibrated in the same way, and total variation with the weight
that is best on 20 of the training images. What is trained has three seeds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import RESULTS, gain, over_seeds, quality, write
from sklearn.base import clone

from skinverse import AdversarialRegularizer, FilteredBackProjection, TotalVariationRecon, Trainer
from skinverse.datasets import make_ellipses
from skinverse.displays import ReconstructionDisplay
from skinverse.operators import as_torch, parallel_beam

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, N_ANGLES, NOISE, N_TRAIN, N_TEST, NOISE_SEED = 128, 60, 0.025, 80, 20, 0
SEEDS, TV_LAMS = (0, 1, 2), np.logspace(-1, 1, 11)
UNTRAINED = Trainer(n_steps=1, lr=1e-12, final_lr=1e-12)
TRAINERS = {
    "ridge": Trainer(max_epochs=200, lr=1e-2, final_lr=1e-3, score_every=50),
    "convex_ridge": Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=40),
    "lipschitz": Trainer(max_epochs=40, lr=3e-3, final_lr=3e-4, score_every=40),
    "convex": Trainer(max_epochs=15, lr=1e-3, final_lr=1e-4, score_every=15),
    "conv": Trainer(max_epochs=40, lr=1e-3, final_lr=1e-4, score_every=40),
}

Pairs = tuple[np.ndarray, np.ndarray]
Judged = tuple[np.ndarray, dict[str, Any]]
Compared = tuple[dict[str, np.ndarray], dict[str, Any]]


def chest() -> np.ndarray:
    """Chest images, averaged down to the size."""
    images = np.load(DATA / "mri_chest.npz")["chest"].astype(np.float32) / 255
    return images.reshape(len(images), SIZE, 2, SIZE, 2).mean((2, 4))


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = np.random.default_rng(seed).normal(size=exact.shape)
    return (exact + NOISE * np.abs(exact).mean((1, 2), keepdims=True) * noise).astype(np.float32)


def total_variation(images: np.ndarray, data: np.ndarray, operator: Any) -> TotalVariationRecon:
    """Total variation with the weight that is best on these images."""
    candidates = [TotalVariationRecon(operator, lam=lam).fit() for lam in TV_LAMS]
    return max(candidates, key=lambda tv: quality(images, tv.predict(data))["psnr"])


def method(operator: Any, energy: str, seed: int, trainer: Trainer, memory: str) -> AdversarialRegularizer:
    return AdversarialRegularizer(
        operator,
        energy=energy,
        lam="fit",
        trainer=trainer,
        pretraining=trainer is not UNTRAINED,
        random_state=seed,
        memory=memory,
    )


def judged(fitted: AdversarialRegularizer, images: np.ndarray, data: np.ndarray) -> Judged:
    x, info = fitted.predict(data, return_info=True)
    return x, quality(images, x) | {
        "lam": fitted.lam_,
        "scale": fitted.scale_,
        "mean_steps": float(info.n_steps.mean()),
        "converged": float(info.converged.mean()),
        "weak_convexity": fitted.weak_convexity_,
        "lipschitz": fitted.lipschitz_,
    }


def learned(energy: str, known: Pairs, test: Pairs, operator: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """An energy with every seed: trained, with both rules for ``lam``, and untrained."""
    fit, auto, untrained, seconds = [], [], [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as memory:  # both rules share one training
            start = time.perf_counter()
            trained = method(operator, energy, seed, TRAINERS[energy], memory).fit(*known)
            seconds.append(time.perf_counter() - start)
            ruled = clone(trained).set_params(lam="auto").fit(*known)
            plain = method(operator, energy, seed, UNTRAINED, memory).fit(*known)
        x, found = judged(trained, *test)
        fit.append(found)
        auto.append(judged(ruled, *test)[1])
        untrained.append(judged(plain, *test)[1])
    names = ("lam", "scale", "mean_steps", "converged", "weak_convexity", "lipschitz")
    return x, {
        "fit": over_seeds(fit) | over_seeds(fit, "ssim") | {n: [run[n] for run in fit] for n in names},
        "auto": over_seeds(auto) | {"lam": [run["lam"] for run in auto]},
        "untrained": over_seeds(untrained) | {"lam": [run["lam"] for run in untrained]},
        "seconds_fit": float(np.mean(seconds)),
    }


def compare(images: np.ndarray, operator: Any, energies: list[str]) -> Iterator[Compared]:
    """FBP, total variation, and every energy: what is shown and what was found, after each of them."""
    data = measured(images, operator, NOISE_SEED)
    (x, x_test), (y, y_test) = ((a[:N_TRAIN], a[N_TRAIN : N_TRAIN + N_TEST]) for a in (images, data))
    tv = total_variation(x[:N_TEST], y[:N_TEST], operator)
    shown = {
        "FBP": FilteredBackProjection(operator, filter="hann").fit().predict(y_test),
        "TV": tv.predict(y_test),
    }
    figures: dict[str, Any] = {
        "fbp": quality(x_test, shown["FBP"]),
        "tv": quality(x_test, shown["TV"]) | {"lam": tv.lam},
    }
    for energy in energies:
        shown[energy], figures[energy] = learned(energy, (x, y), (x_test, y_test), operator)
        figures[energy]["gain over tv"] = gain(figures[energy]["fit"], figures["tv"])
        yield {name: image[:2] for name, image in shown.items()}, figures


def draw(name: str, images: np.ndarray, shown: dict[str, np.ndarray]) -> None:
    display = ReconstructionDisplay.from_predictions(images, shown, data_range=1.0)
    display.figure_.savefig(RESULTS / f"adversarial_ct_{name}.png", dpi=70)


def main() -> None:
    torch.set_num_threads(2)
    angles = np.arange(N_ANGLES) * np.pi / N_ANGLES
    operator = parallel_beam((SIZE, SIZE), angles, 183, spacing=SIZE * np.sqrt(2) / 183)
    sets = {"ellipses": (make_ellipses(N_TRAIN + N_TEST, SIZE, random_state=NOISE_SEED), ["ridge"])}
    if (DATA / "mri_chest.npz").exists():
        sets["chest"] = chest(), list(TRAINERS)
    else:
        print(f"{DATA / 'mri_chest.npz'} is not here: ellipses only")
    figures: dict[str, Any] = {}
    for name, (images, energies) in sets.items():
        for shown, figures[name] in compare(images, operator, energies):
            write("adversarial_ct", figures, seeds=SEEDS, finished=False)
            draw(name, images[N_TRAIN : N_TRAIN + 2], shown)
    write("adversarial_ct", figures, seeds=SEEDS)


if __name__ == "__main__":
    main()

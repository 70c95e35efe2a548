"""Adversarial regularisation for sparse-view CT: chest images and ellipses, every energy, two rules for lam.

Images have 128 x 128 pixels, data 60 angles and noise of 2.5 % of their mean modulus; 80 images train, 20
test. Total variation has the weight that is best on the test set itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import RESULTS, write
from sklearn.base import clone

from skinverse import AdversarialRegularizer, FilteredBackProjection, TotalVariationRecon, Trainer
from skinverse.datasets import make_ellipses
from skinverse.displays import ReconstructionDisplay
from skinverse.metrics import psnr, ssim
from skinverse.operators import as_torch, parallel_beam

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, N_ANGLES, NOISE, N_TRAIN, N_TEST, SEED = 128, 60, 0.025, 80, 20, 0
TRAINERS = {
    "ridge": Trainer(max_epochs=200, lr=1e-2, final_lr=1e-3, score_every=50),
    "convex_ridge": Trainer(max_epochs=40, lr=1e-2, final_lr=1e-3, score_every=40),
    "lipschitz": Trainer(max_epochs=40, lr=3e-3, final_lr=3e-4, score_every=40),
    "convex": Trainer(max_epochs=15, lr=1e-3, final_lr=1e-4, score_every=15),
    "conv": Trainer(max_epochs=40, lr=1e-3, final_lr=1e-4, score_every=40),
}


def chest() -> np.ndarray:
    """Chest images, averaged down to the size."""
    images = np.load(DATA / "mri_chest.npz")["chest"].astype(np.float32) / 255
    return images.reshape(len(images), SIZE, 2, SIZE, 2).mean((2, 4))


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = np.random.default_rng(seed).normal(size=exact.shape)
    return (exact + NOISE * np.abs(exact).mean((1, 2), keepdims=True) * noise).astype(np.float32)


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, float]:
    measures = {"psnr": psnr, "ssim": ssim}
    return {name: float(measure(images, x, data_range=1.0).mean()) for name, measure in measures.items()}


def best_tv(images: np.ndarray, data: np.ndarray, operator: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Total variation at the weight that is best on these very images."""
    tried = {
        lam: TotalVariationRecon(operator, lam=lam).fit().predict(data) for lam in np.logspace(-1, 1, 11)
    }
    lam = max(tried, key=lambda lam: quality(images, tried[lam])["psnr"])
    return tried[lam], quality(images, tried[lam]) | {"lam": float(lam)}


def compare(
    name: str, images: np.ndarray, operator: Any, energies: list[str], everything: dict[str, Any]
) -> None:
    """Measure FBP, total variation and every energy with both rules, and write after each of them."""
    data = measured(images, operator, SEED)
    (x, x_test), (y, y_test) = ((a[:N_TRAIN], a[N_TRAIN : N_TRAIN + N_TEST]) for a in (images, data))
    shown = {"FBP": FilteredBackProjection(operator, filter="hann").fit().predict(y_test)}
    shown["TV"], tv = best_tv(x_test, y_test, operator)
    figures = everything.setdefault(name, {})
    figures |= {"fbp": quality(x_test, shown["FBP"]), "tv_best_on_test": tv}
    for energy in energies:
        with tempfile.TemporaryDirectory() as memory:  # both rules share one training
            method = AdversarialRegularizer(
                operator, energy=energy, lam="fit", trainer=TRAINERS[energy], memory=memory
            )
            start = time.perf_counter()
            method.fit(x, y)
            seconds = time.perf_counter() - start
            ruled = clone(method).set_params(lam="auto").fit(x, y)
        shown[energy], info = method.predict(y_test, return_info=True)
        figures[energy] = {
            "fit": quality(x_test, shown[energy]) | {"lam": method.lam_, "scale": method.scale_},
            "seconds_fit": seconds,
            "mean_steps": float(info.n_steps.mean()),
            "converged": float(info.converged.mean()),
            "weak_convexity": method.weak_convexity_,
            "lipschitz": method.lipschitz_,
            "auto": quality(x_test, ruled.predict(y_test)) | {"lam": ruled.lam_},
        }
        write("adversarial_ct", everything, seed=SEED)
        draw(name, x_test[:2], {label: images[:2] for label, images in shown.items()})


def draw(name: str, images: np.ndarray, shown: dict[str, np.ndarray]) -> None:
    display = ReconstructionDisplay.from_predictions(images, shown, data_range=1.0)
    display.figure_.savefig(RESULTS / f"adversarial_ct_{name}.png", dpi=70)


def known() -> dict[str, Any]:
    """What was measured before."""
    path = RESULTS / "adversarial_ct.json"
    return json.loads(path.read_text())["figures"] if path.exists() else {}


def main(sets: list[str]) -> None:
    """Measure on these sets of images; the others keep their figures."""
    torch.set_num_threads(2)
    angles = np.arange(N_ANGLES) * np.pi / N_ANGLES
    operator = parallel_beam((SIZE, SIZE), angles, 183, detector_spacing=SIZE * np.sqrt(2) / 183)
    figures: dict[str, Any] = {"target_above_tv_db": 0.5} | known()
    if "chest" in sets and not (DATA / "mri_chest.npz").exists():
        print(f"{DATA / 'mri_chest.npz'} is not here: ellipses only")
    elif "chest" in sets:
        compare("chest", chest(), operator, list(TRAINERS), figures)
    if "ellipses" in sets:
        ellipses = make_ellipses(N_TRAIN + N_TEST, SIZE, random_state=SEED)
        compare("ellipses", ellipses, operator, ["ridge"], figures)


if __name__ == "__main__":
    main(sys.argv[1:] or ["chest", "ellipses"])

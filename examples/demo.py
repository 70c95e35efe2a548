"""Deblur photographs that no method has seen: a table on the terminal, a picture in demo.png.

``GridSearchCV`` chooses the parameter of every method on some photographs, and the method is judged on
others. The learned one trains its energy on patches of the same photographs, and calibrates ``lam``
itself.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skinverse import (
    AdversarialRegularizer,
    Landweber,
    Tikhonov,
    TotalGeneralizedVariationRecon,
    TotalVariationRecon,
    Trainer,
    WaveletRecon,
)
from skinverse.datasets import load_photographs
from skinverse.displays import ReconstructionDisplay
from skinverse.estimators import BaseReconstructor
from skinverse.metrics import psnr, ssim
from skinverse.operators import gaussian_blur

SIZE, BLUR, NOISE_STD = 128, 1.6, 0.01
WEIGHTS = np.logspace(-4.5, -2, 6)


def methods(operator) -> dict[str, tuple[BaseReconstructor, dict[str, list]]]:
    """Every method with the parameter to search."""
    return {
        "Tikhonov": (Tikhonov(operator), {"lam": [0.003, 0.01, 0.03]}),
        "Landweber": (Landweber(operator), {"max_steps": [10, 30, 100]}),
        "Wavelets": (WaveletRecon(operator), {"lam": WEIGHTS}),
        "TV": (TotalVariationRecon(operator), {"lam": WEIGHTS}),
        "TGV": (TotalGeneralizedVariationRecon(operator), {"lam": WEIGHTS}),
    }


def measure(images: np.ndarray, operator, rng: np.random.Generator) -> np.ndarray:
    """Blurred and noisy versions of the images."""
    blurred = (operator.matmat(images.reshape(len(images), -1).T)).T.reshape(-1, *operator.dimsd)
    return (blurred + NOISE_STD * rng.normal(size=blurred.shape)).astype(np.float32)


def main() -> None:
    """Search, reconstruct, report."""
    operator = gaussian_blur((SIZE, SIZE), sigma=BLUR)
    rng = np.random.default_rng(0)
    known, unseen = (load_photographs(SIZE, subset=subset) for subset in ("train", "test"))
    known_data, unseen_data = measure(known, operator, rng), measure(unseen, operator, rng)
    print(
        f"{len(known)} photographs to choose parameters, {len(unseen)} to judge; "
        f"{SIZE} x {SIZE}, blur {BLUR} pixels, noise {NOISE_STD}\n"
    )
    print(f"{'method':<18}{'PSNR (dB)':>10}{'SSIM':>8}{'s / image':>11}   chosen")
    reconstructions = {}
    report("blurred data", unseen, unseen_data, 0.0, {})
    for name, (method, grid) in methods(operator).items():
        best = GridSearchCV(method, grid, cv=2, error_score="raise", refit=True).fit(known, known_data)
        start = time.perf_counter()
        reconstructions[name] = clone(best.best_estimator_).fit(known, known_data).predict(unseen_data)
        report(name, unseen, reconstructions[name], time.perf_counter() - start, best.best_params_)
    shown = [1, 3]
    learned = train_energy(known, operator, rng)
    start = time.perf_counter()
    reconstructions["Learned energy"] = learned.predict(unseen_data)
    chosen = {"lam": learned.lam_, "scale": learned.scale_}
    report("Learned energy", unseen, reconstructions["Learned energy"], time.perf_counter() - start, chosen)
    display = ReconstructionDisplay.from_predictions(
        unseen[shown],
        {name: reconstructions[name][shown] for name in ("Tikhonov", "TV", "Learned energy")},
        Y_meas=unseen_data[shown],
        data_range=1.0,
    )
    display.figure_.savefig("demo.png", dpi=110)
    print(f"\npicture: {Path('demo.png').resolve()}")


def train_energy(images: np.ndarray, operator, rng: np.random.Generator) -> AdversarialRegularizer:
    """An energy for this operator, trained on the photographs and their mirror images."""
    more = np.concatenate([images, images[:, :, ::-1], images[:, ::-1]])
    trainer = Trainer(max_epochs=250, lr=1e-2, final_lr=1e-3, score_every=125)
    method = AdversarialRegularizer(operator, trainer=trainer, verbose=1)
    return method.fit(more, measure(more, operator, rng))


def report(name: str, truth: np.ndarray, images: np.ndarray, seconds: float, chosen: dict) -> None:
    """One row of the table."""
    quality = [metric(truth, images, data_range=1.0).mean() for metric in (psnr, ssim)]
    parameters = ", ".join(f"{k}={v:.3g}" for k, v in chosen.items())
    print(
        f"{name:<18}{quality[0]:>10.2f}{quality[1]:>8.3f}{seconds / len(truth):>11.3f}   {parameters}",
        flush=True,
    )


if __name__ == "__main__":
    main()

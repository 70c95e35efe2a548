"""Model adaptation: deblurring learned for a width of 1.6 pixels, measured where it is 2.4 pixels.

Methods learn from pieces of BSD400. They are adapted to pieces of BSD68 without true images, with the new
width told or not, and judged on other pieces. Trainings are kept in ``.cache``.
"""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, scores, write
from sklearn.exceptions import ConvergenceWarning

from skinverse import LearnedGradientDescent, ModelAdaptation, Trainer
from skinverse.metrics import psnr
from skinverse.operators import GaussianBlur, as_torch, gaussian_blur

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(__file__).resolve().parent / ".cache"
SIZE, BEFORE, NOW, NOISE, SEED, N_ADAPT = 64, 1.6, 2.4, 0.01, 0, 16
TRAINER = Trainer(max_epochs=3, lr=1e-3, final_lr=5e-5, max_grad_norm=1.0, validation_fraction=0.0)


def pieces(name: str, corners: tuple[int, ...]) -> np.ndarray:
    images = np.load(DATA / f"{name}.npz")["images"].astype(np.float32) / 255
    return np.concatenate([images[:, i : i + SIZE, j : j + SIZE] for i in corners for j in corners])


def blurred(images: np.ndarray, width: float, seed: int) -> np.ndarray:
    exact = as_torch(gaussian_blur((SIZE, SIZE), width))(torch.from_numpy(images)).numpy()
    return (exact + NOISE * np.random.default_rng(seed).normal(size=exact.shape)).astype(np.float32)


def trained(images: np.ndarray, width: float) -> LearnedGradientDescent:
    operator = gaussian_blur((SIZE, SIZE), width)
    method = LearnedGradientDescent(
        operator, n_iterations=8, n_features=24, trainer=TRAINER, memory=str(CACHE)
    )
    return method.fit(images, blurred(images, width, SEED))


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    return scores("psnr", psnr(images, x, data_range=1.0))


def draw(shown: dict[str, np.ndarray], found: dict[str, float]) -> None:
    figure, axes = plt.subplots(1, len(shown), figsize=(2.2 * len(shown), 2.6), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"{name}\n{found[name]:.2f} dB" if name in found else name, fontsize=9)
        axis.axis("off")
    figure.savefig(RESULTS / "adaptation.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ConvergenceWarning)  # adaptations without a noise level never end
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    images, others = pieces("bsd400", (0, 116)), pieces("bsd68", (58,))
    x, x_test = others[:N_ADAPT], others[N_ADAPT:]
    y, y_test = blurred(x, NOW, SEED + 1), blurred(x_test, NOW, SEED + 2)
    known = gaussian_blur((SIZE, SIZE), NOW)
    before, ideal = trained(images, BEFORE), trained(images, NOW)
    told = copy.copy(before).set_params(operator=known)
    ways: dict[str, Any] = {
        "as trained": before,
        "told the width, not adapted": told,
        "trained for the new width": ideal,
    }
    seconds: dict[str, float] = {}
    unknown = GaussianBlur((SIZE, SIZE), BEFORE)
    for name, operator in (("adapted, width known", known), ("adapted, width unknown", unknown)):
        start = time.perf_counter()
        ways[name] = ModelAdaptation(operator, estimator=before, noise=NOISE).fit(Y_meas=y)
        seconds[name] = time.perf_counter() - start
    shown = {name: method.predict(y_test) for name, method in ways.items()}
    judged = {name: quality(x_test, image) for name, image in shown.items()}
    found = {name: one["psnr"] for name, one in judged.items()}
    gap = found["trained for the new width"] - found["as trained"]
    figures = judged | {
        "seconds": seconds,
        "closed": {name: (found[name] - found["as trained"]) / gap for name in seconds},
        "width": float(ways["adapted, width unknown"].operator_.parameters["sigma"]),
        "targets": {"closed": 0.5, "width": [0.9 * NOW, 1.1 * NOW]},
    }
    write("adaptation", figures, seeds=[SEED])
    draw({"truth": x_test[0], "data": y_test[0], **{name: image[0] for name, image in shown.items()}}, found)


if __name__ == "__main__":
    main()

"""Deep equilibrium deblurring: trained on pieces of BSD400, measured on whole BSD68 images, and iterated on.

The blur is a Gaussian of 1.6 pixels, the noise 0.01. Total variation has the weight that is best on 30
other photographs. Trainings are kept in ``.cache``, so the two ways may be trained one by one, each named on
the command line, before the script is run without a name.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, gain, quality, write
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, TotalVariationRecon, Trainer
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, gaussian_blur

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(__file__).resolve().parent / ".cache"
SIZE, BLUR, NOISE, SEED, N_TRAIN = 64, 1.6, 0.01, 0, 370
TV_LAMS = (1e-4, 2e-4, 3e-4, 4.5e-4, 7e-4)
NETWORK = {"n_features": 48, "n_layers": 5}
PRETRAINER = Trainer(max_epochs=12, lr=3e-3, final_lr=0.05 * 3e-3, validation_fraction=0.0)
# Largest number of steps in training, and the multiples of it that are taken afterwards.
DEPTHS, FACTORS = {"equilibrium": 60, "unrolled": 5}, (1, 2, 5, 10)
EPOCHS = {"equilibrium": 12, "unrolled": 5}
WAYS: dict[str, dict[str, Any]] = {
    "equilibrium": {"backward": "jacobian_free", "tol": 1e-4, "max_steps": DEPTHS["equilibrium"]},
    "unrolled": {"backward": "unroll", "max_steps": DEPTHS["unrolled"]},
}


def pieces(images: np.ndarray, corners: tuple[int, ...]) -> np.ndarray:
    """Squares of all images, whose corners lie on a grid."""
    return np.concatenate([images[:, i : i + SIZE, j : j + SIZE] for i in corners for j in corners])


def blurred(images: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, Any]:
    images = images.astype(np.float32) / 255
    operator = gaussian_blur(images.shape[1:], sigma=BLUR)
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = NOISE * np.random.default_rng(seed).normal(size=exact.shape)
    return images, (exact + noise).astype(np.float32), operator


def total_variation(images: np.ndarray, data: np.ndarray, operator: Any) -> TotalVariationRecon:
    """Total variation with the weight that is best on these images."""
    candidates = [TotalVariationRecon(operator, lam=lam).fit() for lam in TV_LAMS]
    return max(candidates, key=lambda tv: quality(images, tv.predict(data))["psnr"])


def iterated(
    method: DeepEquilibriumRecon, images: np.ndarray, data: np.ndarray, depth: int
) -> dict[int, float]:
    """PSNR after 1, 2, 5 and 10 times the training's depth."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            k: quality(images, method.set_params(max_steps=k * depth, tol=1e-9).predict(data))["psnr"]
            for k in FACTORS
        }


def draw(shown: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    """One image as every method sees it, and what further iterations do."""
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(15, 3.2), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=False):
        axis.imshow(image[100:220, 100:260], cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{name} {figures[name]['psnr']:.2f} dB" if name in figures else name)
        axis.axis("off")
    for name in ("equilibrium", "unrolled"):
        after = figures[name]["pieces_after_times_the_depth"]
        axes[-1].plot([DEPTHS[name] * k for k in after], list(after.values()), marker=".", label=name)
    axes[-1].set(xscale="log", xlabel="iterations", ylabel="PSNR (dB)")
    axes[-1].legend()
    figure.savefig(RESULTS / "equilibrium_deblurring.png", dpi=100)


def fitted(name: str, operator: Any, images: np.ndarray, data: np.ndarray) -> DeepEquilibriumRecon:
    """One of the two ways, trained or taken from the cache."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = DnCNN(**NETWORK)
    trainer = Trainer(
        max_epochs=EPOCHS[name],
        lr=1e-3,
        final_lr=5e-5,
        max_grad_norm=1.0,
        validation_fraction=0.02,
        score_every=2,
    )
    method = DeepEquilibriumRecon(
        operator,
        iteration="admm",
        network=network,
        pretrainer=PRETRAINER,
        trainer=trainer,
        memory=str(CACHE),
        **WAYS[name],
    )
    return method.fit(images, data)


def main(names: list[str]) -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd68.npz").exists():
        print(f"{DATA / 'bsd68.npz'} is not here: nothing measured")
        return
    photographs = np.load(DATA / "bsd400.npz")["images"]
    images, data, operator = blurred(pieces(photographs[:N_TRAIN], (0, 116)), SEED)
    if names:
        for name in names:
            fitted(name, operator, images, data)
        return
    x_held, y_held, _ = blurred(pieces(photographs[N_TRAIN:], (58,)), SEED + 2)
    x_test, y_test, whole = blurred(np.load(DATA / "bsd68.npz")["images"], SEED + 1)
    figures: dict[str, Any] = {"target_above_tv_db": 0.7, "blurred": quality(x_test, y_test)}
    photos, blurry, square = blurred(photographs[N_TRAIN:], SEED + 3)
    tv = total_variation(photos, blurry, square).set_params(operator=whole)
    x = tv.predict(y_test)
    figures["TV"] = quality(x_test, x) | {"lam": tv.lam}
    shown = {"true": x_test[0], "blurred": y_test[0], "TV": x[0]}
    for name, settings in WAYS.items():
        method = fitted(name, operator, images, data)
        more = iterated(method, x_held, y_held, DEPTHS[name])
        start = time.perf_counter()
        x, info = method.set_params(operator=whole, **settings).predict(y_test, return_info=True)
        shown[name] = x[0]
        figures[name] = quality(x_test, x) | {
            "network": NETWORK,
            "seconds_fit": sum(epoch["dur"] for epoch in method.history_),
            "seconds_per_image": (time.perf_counter() - start) / len(x),
            "mean_steps": float(info.n_steps.mean()),
            "converged": float(info.converged.mean()),
            "held_out_during_training": [e["valid_score"] for e in method.history_ if "valid_score" in e],
            "pieces_after_times_the_depth": more,
        }
        figures[name]["gain over TV"] = gain(figures[name], figures["TV"])
        write("equilibrium_deblurring", figures, seeds=[SEED], finished=name == list(WAYS)[-1])
    draw(shown, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

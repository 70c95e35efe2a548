"""Whether equivariance pays: chest MR images, few of them to learn from, networks of one width.

64 x 64 pixels, a random seventh of the Fourier coefficients, the same training for every network; measured on
50 other images, upright, turned and flipped, and in seconds of a training step.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, write
from skimage.transform import downscale_local_mean
from sklearn.exceptions import ConvergenceWarning

from skinverse import DeepEquilibriumRecon, Trainer
from skinverse.metrics import psnr
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, fourier_sampling

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, RATE, NOISE, SEED, N_TEST, N_STEPS, N_EQUILIBRIUM = 64, 0.147, 0.01, 0, 50, 1500, 120


def problem() -> tuple[np.ndarray, Any]:
    chest = np.load(DATA / "mri_chest.npz")["chest"].astype(np.float32)
    small = np.stack([downscale_local_mean(image, (4, 4)) for image in chest])
    mask = np.random.default_rng(SEED).random((SIZE, SIZE)) < RATE
    mask[SIZE // 2 - 2 : SIZE // 2 + 3, SIZE // 2 - 2 : SIZE // 2 + 3] = True
    return (small / small.max((1, 2), keepdims=True)).astype(np.float32), fourier_sampling(mask)


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(np.ascontiguousarray(images)).to(torch.complex64)).numpy()
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *exact.shape)) * NOISE / np.sqrt(2)
    return (exact + noise[0] + 1j * noise[1]).astype(np.complex64)


def trainer(n_steps: int, n_images: int, lr: float) -> Trainer:
    batch = min(8, n_images)
    return Trainer(
        max_epochs=n_steps * batch // n_images,
        batch_size=batch,
        lr=lr,
        lr_decay=0.1,
        max_norm=1.0,
        validation_fraction=0.0,
    )


def step_seconds(group: str) -> float:
    """One step of training the denoiser alone: the networks are all that differs."""
    network, x = DnCNN(group=group), torch.randn(8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    optimizer, times = torch.optim.Adam(network.parameters()), []
    for _ in range(15):
        start = time.perf_counter()
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def draw(shown: dict[str, np.ndarray]) -> None:
    """The first test image, turned by a right angle, as every network sees it."""
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.9), layout="constrained")
    for axis, (name, image) in zip(axes, shown.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set(title=name)
        axis.axis("off")
    figure.savefig(RESULTS / "equilibrium_equivariance.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "mri_chest.npz").exists():
        print(f"{DATA / 'mri_chest.npz'} is not here: nothing measured")
        return
    images, operator = problem()
    test = {
        "upright": images[-N_TEST:],
        "turned": np.rot90(images[-N_TEST:], 1, (1, 2)),
        "flipped": images[-N_TEST:, :, ::-1],
    }
    figures: dict[str, Any] = {"targets": {"gain_at_5": 0.5, "gain_turned_at_20": 0.3, "step_ratio": 1.2}}
    seconds = {group: step_seconds(group) for group in ("C1", "C4", "D4")}
    figures["step_seconds"] = seconds
    figures["step_ratio"] = {group: seconds[group] / seconds["C1"] for group in seconds}
    shown = {"true": test["turned"][0]}
    for n_train in (5, 20):
        data = measured(images[:n_train], operator, SEED)
        for network in ("dncnn", "dncnn_c4", "dncnn_d4"):
            method = DeepEquilibriumRecon(
                operator,
                network=network,
                backward="jacobian_free",
                max_steps=30,
                tol=1e-3,
                pretrainer=trainer(N_STEPS, n_train, 3e-3),
                trainer=trainer(N_EQUILIBRIUM, n_train, 1e-3),
            )
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                method.fit(images[:n_train], data)
                seconds_fit = time.perf_counter() - start
                method.set_params(max_steps=100)
                images_found = {
                    name: method.predict(measured(x, operator, SEED + 1)) for name, x in test.items()
                }
            found = {
                name: float(psnr(test[name], x, data_range=1.0).mean()) for name, x in images_found.items()
            }
            shown[f"{n_train} images, {network}: {found['turned']:.2f} dB"] = images_found["turned"][0]
            weights = sum(p.numel() for p in method.module_.network.parameters())
            figures[f"{n_train} images, {network}"] = found | {"seconds_fit": seconds_fit, "weights": weights}
            write("equilibrium_equivariance", figures, seed=SEED)
    draw(shown)


if __name__ == "__main__":
    main()

"""Train the weights that come with the package, ``skinverse.pretrained("ridge")``, and write their card.

The ridge learns to denoise by minimising ``1/2 ||x - y||^2 + s^2 R(x / s)`` for noise of every standard
deviation ``s``: that is, images and data are divided by ``s``, so that one energy sees noise of deviation one
in images of many contrasts. The weight of ``R`` is one, so that every such objective is convex. The loss is
the logarithm of the mean square error, which is minus the PSNR up to a factor.

The images may be used by everybody: photographs that come with scikit-image, CC0 or in the public domain, and
synthetic ones. BSD68 only measures, when it is there.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from _record import quality, write
from safetensors.torch import save_file
from skimage.color import rgb2gray
from skimage.transform import resize
from torch import Tensor

import skinverse
from skinverse import TotalVariationRecon
from skinverse.datasets import make_ellipses
from skinverse.energies import RidgeEnergy
from skinverse.functionals import EnergyFunctional, LeastSquares
from skinverse.solvers import accelerated_gradient, jacobian_free

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = Path(skinverse.__file__).parent / "energies" / "weights"
SEED, SIZE, N_PHOTOGRAPHS, N_LEAVES, N_ELLIPSES = 0, 64, 3000, 600, 200
NOISE_STDS, N_STEPS, BATCH_SIZE, LR, FINAL_LR = (0.02, 0.25), 1500, 8, 1e-2, 1e-3
MAX_GRAD_NORM, MAX_STEPS, TOL = 1.0, 100, 1e-3
TEST_STD, TV_LAMS = 0.1, (0.06, 0.07, 0.08)
# Where the training starts: thresholds of two standard deviations of the noise, nearly convex.
STEEPNESS, SHARPNESS = 0.5, 5.0


NAMES = ("brick", "coffee", "grass", "gravel", "hubble_deep_field")
NAMES += ("immunohistochemistry", "retina", "rocket")


# ---------------------------------------------------------------------- images
def photographs() -> list[np.ndarray]:
    """All photographs in grey."""
    images = [getattr(skimage.data, name)() for name in NAMES]
    return [rgb2gray(image) if image.ndim == 3 else image / 255 for image in images]


def cut(photograph: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random square of a random size, reduced."""
    side = round(math.exp(rng.uniform(math.log(SIZE), math.log(min(photograph.shape)))))
    top, left = (int(rng.integers(n - side + 1)) for n in photograph.shape)
    square = photograph[top : top + side, left : left + side]
    return resize(square, (SIZE, SIZE), anti_aliasing=side > SIZE)


def dead_leaves(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Shaded discs and boxes that cover each other, of all sizes, some of them striped."""
    return np.stack([_leaves(2 * size, rng) for _ in range(n)]).reshape(n, size, 2, size, 2).mean((2, 4))


def _leaves(side: int, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    image = np.full((side, side), rng.random(), np.float32)
    for _ in range(250):
        radius = 3 / math.sqrt(rng.uniform((3 / side) ** 2, 1))
        reach, (y, x) = int(1.5 * radius) + 1, rng.uniform(0, side, 2)
        around = tuple(slice(max(0, int(c) - reach), int(c) + reach) for c in (y, x))
        angle, flatness = rng.uniform(0, np.pi), rng.uniform(0.3, 1)
        dy, dx = rows[around] - y, columns[around] - x
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        disc = u**2 + (v / flatness) ** 2 < radius**2
        inside = disc if rng.random() < 0.6 else (abs(u) < radius) & (abs(v) < flatness * radius)
        shade = rng.beta(1.2, 1.2) + rng.normal(0, 0.3) * u / (radius + 8)
        if rng.random() < 0.3:
            shade = shade + rng.uniform(0.02, 0.15) * np.sin(2 * np.pi * u / rng.uniform(4, 16))
        image[around][inside] = np.clip(shade, 0, 1)[inside]
    return image


def training_images() -> np.ndarray:
    rng = np.random.default_rng(SEED)
    wholes = photographs()
    patches = np.stack([cut(wholes[k % len(wholes)], rng) for k in range(N_PHOTOGRAPHS)])
    ellipses = make_ellipses(N_ELLIPSES, SIZE, random_state=SEED)
    return np.concatenate([patches, dead_leaves(N_LEAVES, SIZE, rng), ellipses]).astype(np.float32)


# ---------------------------------------------------------------------- training
def denoised(energy: RidgeEnergy, y: Tensor, max_steps: int = MAX_STEPS, tol: float = TOL) -> Any:
    """The minimiser of ``1/2 ||x - y||^2 + R(x)``."""
    with torch.no_grad():
        objective = LeastSquares(None, y) + EnergyFunctional(energy.prepared())
        return accelerated_gradient(objective, y, max_steps=max_steps, tol=tol)


def loss(energy: RidgeEnergy, x: Tensor, y: Tensor) -> Tensor:
    """Logarithm of the mean square error, differentiated through one gradient step."""
    found = denoised(energy, y)
    objective = LeastSquares(None, y) + EnergyFunctional(energy.prepared())
    return (jacobian_free(objective, found.x, found.extra["step"]) - x).square().mean().log()


def drawn(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """A batch, turned and flipped together, in units of a noise."""
    batch = images[rng.integers(len(images), size=BATCH_SIZE)]
    batch = np.rot90(batch, rng.integers(4), (1, 2))[:, :: rng.choice([-1, 1])]
    std = math.exp(rng.uniform(*np.log(NOISE_STDS)))
    return torch.from_numpy(np.ascontiguousarray(batch)) / std


def train(images: np.ndarray) -> RidgeEnergy:
    torch.manual_seed(SEED)
    rng, energy = np.random.default_rng(SEED), RidgeEnergy()
    with torch.no_grad():
        energy.log_steepness.fill_(math.log(STEEPNESS))
        energy.log_sharpness.fill_(math.log(SHARPNESS))
    optimizer = torch.optim.Adam(energy.parameters(), lr=LR, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (FINAL_LR / LR) ** (1 / N_STEPS))
    for step in range(N_STEPS):
        x = drawn(images, rng)
        value = loss(energy, x, x + torch.randn_like(x))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(energy.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {N_STEPS}, loss {value.item():.3f}", flush=True)
    return energy


# ---------------------------------------------------------------------- measurement
def measured(energy: RidgeEnergy) -> dict[str, Any]:
    """BSD68, of which nothing was seen, with the prior and with total variation at its best weight."""
    images = (np.load(DATA / "bsd68.npz")["images"] / 255).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=images.shape)
    data = (images + TEST_STD * noise).astype(np.float32)
    parts = [denoised(energy, torch.from_numpy(y[None]) / TEST_STD, 300, 1e-4) for y in data]
    x = np.concatenate([TEST_STD * part.x.numpy() for part in parts])
    best = max(
        (quality(images, TotalVariationRecon(lam=lam).fit().predict(data)) | {"lam": lam} for lam in TV_LAMS),
        key=lambda found: found["psnr"],
    )
    steps = float(np.mean([part.n_steps.item() for part in parts]))
    return {"ridge": quality(images, x) | {"mean_steps": steps}, "tv at its best weight": best}


def main() -> None:
    torch.set_num_threads(1)
    start = time.perf_counter()
    energy = train(training_images())
    path, weights = WEIGHTS / "ridge.safetensors", energy.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    path.chmod(0o644)
    figures: dict[str, Any] = {"seconds_fit": time.perf_counter() - start}
    if (DATA / "bsd68.npz").exists():
        figures |= measured(energy)
    write("pretrained", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

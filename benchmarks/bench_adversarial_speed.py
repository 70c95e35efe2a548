"""Costs of a training step of the ridge energy, of a search over ``lam``, and of a gradient at 512 x 512."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _record import write
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from skinverse import AdversarialRegularizer, Trainer
from skinverse.datasets import load_photographs
from skinverse.energies import RidgeEnergy, WeightedEnergy
from skinverse.functionals import EnergyFunctional

SIGMA, SEED, BATCH, SIDE, N_STEPS, WEIGHT = 0.1, 0, 8, 64, 100, 10.0


class PlainRidge(nn.Module):
    """The formula of the ridge energy in torch's own operations."""

    def __init__(self) -> None:
        super().__init__()
        start = RidgeEnergy()
        self.filters, self.log_steepness = start.filters, start.log_steepness
        self.log_sharpness, self.log_weight = start.log_sharpness, nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        centred = self.filters - self.filters.mean((-2, -1), keepdim=True)
        norm = torch.fft.rfft2(centred, s=(SIDE, SIDE)).abs().square().sum(0).max().sqrt()
        s, beta = self.log_steepness.exp().view(1, -1, 1, 1), 1 + self.log_sharpness.exp()
        u = s * F.conv2d(F.pad(4.0 * x, (3, 3, 3, 3), mode="circular"), centred / norm)
        psi = F.huber_loss(beta * u, 0 * u, reduction="none") / beta - F.huber_loss(
            u, 0 * u, reduction="none"
        )
        return self.log_weight.exp() / 16 * (psi / s.square()).flatten(1).sum(1)


def plain_loop(images: Tensor, bad: Tensor, energy: nn.Module) -> float:
    """Seconds per step of the loop that one would write: gradients by ``autograd.grad``."""
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(N_STEPS):
        pick = torch.randint(len(images), (BATCH,))
        x, x_bad = images[pick][:, None], bad[pick][:, None]
        t = torch.rand(BATCH, 1, 1, 1)
        mix = (t * x + (1 - t) * x_bad).requires_grad_()
        (slope,) = torch.autograd.grad(energy(mix).sum(), mix, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).clamp_min(0).square()
        loss = (energy(x) - energy(x_bad) + WEIGHT * penalty).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / N_STEPS


def our_step(images: np.ndarray, data: np.ndarray) -> float:
    """Seconds per step of ``fit``, with everything: patches, skorch, history."""
    n_epochs = N_STEPS * BATCH // len(images)
    trainer = Trainer(max_epochs=n_epochs, lr=1e-3, final_lr=1e-3, validation_fraction=0.0)
    method = AdversarialRegularizer(lam=0.1, trainer=trainer, pretraining=False, patch_size=SIDE)
    start = time.perf_counter()
    method.fit(images, data)
    return (time.perf_counter() - start) / N_STEPS


def search(images: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """A search over ten weights against one training per fold and ten reconstructions each."""
    weights = np.logspace(-2, -0.5, 10)
    trainer = Trainer(max_epochs=40, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
    with tempfile.TemporaryDirectory() as memory:
        method = AdversarialRegularizer(trainer=trainer, pretraining=False, memory=memory, lam=0.1)
        start = time.perf_counter()
        GridSearchCV(method, {"lam": weights}, cv=2, refit=False, error_score="raise").fit(images, data)
        searched = time.perf_counter() - start
        n_trained = len(list(Path(memory).rglob("*.safetensors")))  # every training leaves one file
    start = time.perf_counter()
    half = len(images) // 2
    for known, unseen in ((slice(half, None), slice(half)), (slice(half), slice(half, None))):
        plain = clone(method).set_params(memory=None).fit(images[known], data[known])
        for lam in weights:
            plain.set_params(lam=lam).score(images[unseen], data[unseen])
    alone = time.perf_counter() - start
    return {"seconds": searched, "seconds_alone": alone, "ratio": searched / alone, "trainings": n_trained}


def memory_of_a_gradient() -> float:
    """GiB that one value and gradient at 512 x 512 adds to the process, in a process of its own."""
    found = subprocess.run([sys.executable, __file__, "gradient"], capture_output=True, text=True, check=True)
    return float(found.stdout)


def peak() -> int:
    """Most KiB that this process has held; what ``getrusage`` tells would include its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def gradient_alone() -> None:
    torch.set_num_threads(1)
    x, functional = torch.rand(1, 512, 512), EnergyFunctional(WeightedEnergy(RidgeEnergy()))
    before = peak()
    with torch.no_grad():
        value, gradient = functional.value_and_grad(x)
    assert gradient.grad_fn is None and value.grad_fn is None
    print((peak() - before) / 2**20)


def main() -> None:
    torch.set_num_threads(2)
    torch.manual_seed(SEED)
    images = np.concatenate([load_photographs(SIDE, n_patches=80, random_state=SEED)])
    data = (images + SIGMA * np.random.default_rng(SEED).normal(size=images.shape)).astype(np.float32)
    x, y = torch.from_numpy(images), torch.from_numpy(data)
    energies = (PlainRidge(), WeightedEnergy(RidgeEnergy(), scale=4.0))
    steps = [(*(plain_loop(x, y, energy) for energy in energies), our_step(images, data)) for _ in range(5)]
    loop, fast_loop, ours = (float(np.median(times)) for times in zip(*steps, strict=True))
    figures = {
        "step_ms": 1e3 * ours,
        "plain_loop_ms": 1e3 * loop,
        "plain_loop_of_our_energy_ms": 1e3 * fast_loop,
        "step_ratio": ours / loop,
        "search_of_10_weights": search(images, data),
        "gradient_512_gib": memory_of_a_gradient(),
        "target_step_ratio": 1.0,
        "target_search_ratio": 1.3,
        "target_gradient_gib": 1.0,
    }
    write("adversarial_speed", figures, seeds=[SEED])


if __name__ == "__main__":
    gradient_alone() if sys.argv[1:] == ["gradient"] else main()

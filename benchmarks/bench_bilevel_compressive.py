"""Compressive sensing after Nair and Schniter: one small network, trained in several ways.

Pieces of 64 x 64 pixels of BSD400 photographs, 370 to train on and 30 to test; a structurally random matrix
keeps 20 % of the measurements. PSNR against iterations for bilevel training with bounds on the smoothness,
for the same network ``h`` trained as a denoiser and used as RED, and for its energy ``1/2 ||x - h(x)||^2``
trained to denoise by a gradient step, adversarially, and bilevel.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from _record import RESULTS, scores, write
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse import AdversarialRegularizer, BilevelRegularizer, Trainer
from skinverse._defaults import seeded
from skinverse.energies import GradientStepEnergy
from skinverse.metrics import psnr
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, structurally_random
from skinverse.solvers import conjugate_gradient
from skinverse.training import Phase, run

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, SAMPLING, NOISE, SEED, N_TRAIN = 64, 0.2, 0.01, 0, 370
BETAS = (1.0, 2.0, 5.0, None)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
PRETRAINER = Trainer(max_epochs=25, lr=2e-3, final_lr=2e-4, validation_fraction=0.0)
TRAINER = Trainer(max_epochs=28, lr=2e-3, final_lr=1e-4, max_grad_norm=1.0, validation_fraction=0.0)
ADVERSARY = Trainer(max_epochs=3, lr=2e-3, final_lr=2e-4, score_every=1)
# Limits of the reconstructions in training; each starts where it ended in the epoch before.
LOWER: dict[str, Any] = {"max_steps": 100, "tol": 1e-3, "hypergradient": "jacobian_free"}
NOTHING = Trainer(max_epochs=1, lr=1e-12, final_lr=1e-12, score_every=1)


def network() -> DnCNN:
    """Three layers, 16 channels, SiLU."""
    torch.manual_seed(SEED)
    return DnCNN(n_features=16, n_layers=3)


def problem() -> tuple[np.ndarray, np.ndarray, Any]:
    pieces = np.load(DATA / "bsd400.npz")["images"][:, 58 : 58 + SIZE, 58 : 58 + SIZE]
    images = pieces.astype(np.float32) / 255
    operator = structurally_random((SIZE, SIZE), int(SAMPLING * SIZE**2), random_state=SEED)
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = NOISE * np.random.default_rng(SEED).normal(size=exact.shape)
    return images, (exact + noise).astype(np.float32), operator


def quality(images: np.ndarray, x: Any) -> dict[str, Any]:
    return scores("psnr", psnr(images, np.asarray(x), data_range=1.0))


def curve(method: Any, images: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    """PSNR after so many iterations, and after the method's own stop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        after = {
            k: quality(images, method.set_params(max_steps=k, tol=1e-4).predict(data))["psnr"] for k in STEPS
        }
        x, info = method.set_params(max_steps=1000).predict(data, return_info=True)
    return quality(images, x) | {"mean_steps": float(info.n_steps.mean()), "after": after}


def red(images: np.ndarray, data: np.ndarray, operator: Any) -> dict[str, Any]:
    """The network as a denoiser, then proximal gradient steps along ``x - h(x)`` at the best of few lam."""
    h, std = network(), 0.05

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        z = x[:, None] + std * torch.randn_like(x[:, None])
        return (module(z) - x[:, None]).square().flatten(1).sum(1)

    x, y = (torch.from_numpy(batch) for batch in (images, data))
    with seeded(SEED) as draws:
        run(h, [Phase("denoising", loss, (x[:N_TRAIN],), PRETRAINER.over())], draws=draws, seed=SEED)
    A = as_torch(operator)

    def reconstruct(y: Tensor, lam: float, n_steps: int) -> list[Tensor]:
        z, found = A.adjoint(y), []
        for _ in range(n_steps):
            v = z - (z - h(z[:, None])[:, 0])
            z = conjugate_gradient(
                lambda u: lam * u + A.adjoint(A(u)), lam * v + A.adjoint(y), z, max_steps=50
            ).x
            found.append(z)
        return found

    with torch.no_grad():
        weights = np.logspace(-4, 0, 9)
        known = {lam: quality(images[:16], reconstruct(y[:16], lam, 100)[-1])["psnr"] for lam in weights}
        lam = max(known, key=known.__getitem__)
        steps = reconstruct(y[N_TRAIN:], lam, 1000)
    after = {k: quality(images[N_TRAIN:], steps[k - 1])["psnr"] for k in STEPS}
    return quality(images[N_TRAIN:], steps[-1]) | {"mean_steps": 1000, "after": after, "lam": float(lam)}


def draw(figures: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, found in figures.items():
        after = {int(k): v for k, v in found["after"].items()}
        axes.plot(list(after), list(after.values()), marker=".", label=f"{name}: {found['psnr']:.2f} dB")
    axes.set(xscale="log", xlabel="iterations", ylabel="PSNR (dB)", ylim=(15, None))
    axes.legend(fontsize="small")
    figure.savefig(RESULTS / "bilevel_compressive.png", dpi=100)


def main() -> None:
    torch.set_num_threads(2)
    if not (DATA / "bsd400.npz").exists():
        print(f"{DATA / 'bsd400.npz'} is not here: nothing measured")
        return
    images, data, operator = problem()
    x, y, x_test, y_test = images[:N_TRAIN], data[:N_TRAIN], images[N_TRAIN:], data[N_TRAIN:]
    figures: dict[str, Any] = {"RED with a denoiser": red(images, data, operator)}
    energy = GradientStepEnergy(network())
    ways: dict[str, Any] = {
        "gradient step": BilevelRegularizer(
            operator,
            energy=energy,
            pretrainer=PRETRAINER,
            trainer=NOTHING,
            **LOWER,
        ),
        "adversarial": AdversarialRegularizer(operator, energy=energy, trainer=ADVERSARY),
        "adversarial, convex": AdversarialRegularizer(operator, energy="convex", trainer=ADVERSARY),
    }
    for beta in BETAS:
        ways[f"bilevel, beta {beta or 'none'}"] = BilevelRegularizer(
            operator,
            energy=energy,
            beta=beta,
            pretrainer=PRETRAINER,
            trainer=TRAINER,
            **LOWER,
        )
    for name, method in ways.items():
        start = time.perf_counter()
        method.fit(x, y)
        seconds = time.perf_counter() - start
        figures[name] = curve(method, x_test, y_test) | {
            "seconds_fit": seconds,
            "lam": method.lam_,
            "smoothness": getattr(method, "smoothness_", None),
            "weak_convexity": method.weak_convexity_,
        }
        write("bilevel_compressive", figures, seeds=[SEED], finished=name == list(ways)[-1])
        draw(figures)


if __name__ == "__main__":
    main()

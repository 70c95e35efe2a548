"""The table of learned primal-dual reconstruction: trained on random ellipses, measured on Shepp-Logan.

The problem of J. Adler and O. Oktem: 128 x 128 pixels, 30 views, 183 detectors, noise of 5 % of the mean
modulus of the data. The U-Net stands there twice: as it was wired in the published comparison, and as it
was meant. Made for a GPU. Training goes in rounds, each on phantoms that no round before has seen; what is
learned is kept in ``.cache`` after each, and the next call goes on from there. Where methods are named, these
are trained and nothing is written:

    python benchmarks/bench_supervised_table.py            # 20 rounds of every method
    python benchmarks/bench_supervised_table.py 100        # 80 more
    python benchmarks/bench_supervised_table.py 20 "learned primal-dual"

Not as published: Adam's second moments have a memory of 0.999 instead of 0.99, learned primal-dual starts
from filtered back-projection instead of zero, learned gradient descent from the one with the Hann window; the
learning rate falls as half a cosine from round to round, anew where rounds are added. The smaller problem of
``bench_supervised_ct.py`` is the one for two cores.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from _record import RESULTS, scores, write
from torch import Tensor, nn

from skinverse import (
    FilteredBackProjection,
    LearnedGradientDescent,
    LearnedPrimalDual,
    PostProcessor,
    TotalVariationRecon,
    Trainer,
)
from skinverse.datasets import make_ellipses, shepp_logan
from skinverse.metrics import psnr, ssim
from skinverse.operators import as_torch, parallel_beam

CACHE = Path(__file__).resolve().parent / ".cache"
SIZE, N_VIEWS, N_DETECTORS, NOISE, SEED = 128, 30, 183, 0.05, 0
# One round: so many new phantoms, seen so many times.
N_ROUNDS, N_PHANTOMS, N_EPOCHS, BATCH = 20, 2000, 3, 5
N_DRAWS, N_HELD, FAR, TV_LAM = 10, 32, 10**6, 1.255
PUBLISHED = {
    "FBP": 19.75,
    "TV": 28.06,
    "U-Net as published": 29.20,
    "learned gradient descent": 32.02,
    "learned primal-dual": 38.28,
}
TARGETS = {"U-Net as published": 29.2, "learned gradient descent": 31.5, "learned primal-dual": 36.0}
# Widths of the resolutions: those of the public code, where a factor was forgotten, and those intended.
TRAINED = ("U-Net as published", "U-Net", "learned gradient descent", "learned primal-dual")
WIDTHS = {"U-Net as published": (64, 2, 4, 8, 1024), "U-Net": (64, 128, 256, 512, 1024)}


class PublishedUNet(nn.Module):
    """``x + N(x)``: five resolutions of two 3 x 3 convolutions, halved by maxima, doubled by strides."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU())
            for a, b in zip((1, *widths), widths, strict=False)
        )
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * a, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, a, 3, padding=1), nn.ReLU()
            )
            for a in widths[:-1]
        )
        self.last = nn.Conv2d(widths[0], 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.last.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        fine: list[Tensor] = []
        z = x
        for level, block in enumerate(self.down):
            z = block(F.max_pool2d(z, 2) if level else z)
            fine.append(z)
        for skipped, grow, block in list(zip(fine[:-1], self.grow, self.up, strict=True))[::-1]:
            z = block(torch.cat([skipped, grow(z)], 1))
        return x + self.last(z)


def methods(operator: Any) -> dict[str, Any]:
    fbp = FilteredBackProjection(filter="hann")
    found: dict[str, Any] = {}
    for name, widths in WIDTHS.items():
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            network = PublishedUNet(widths)
        found[name] = PostProcessor(operator, initial=fbp, network=network, patch_size=None)
    found["learned gradient descent"] = LearnedGradientDescent(operator, initial=fbp)
    found["learned primal-dual"] = LearnedPrimalDual(operator)
    return found


def measured(images: np.ndarray, operator: Any, seed: int) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact = as_torch(operator)(torch.from_numpy(images).to(device)).cpu().numpy()
    level = NOISE * np.abs(exact).mean((1, 2), keepdims=True)
    return (exact + level * np.random.default_rng(seed).normal(size=exact.shape)).astype(np.float32)


@dataclass
class State:
    """A method between two rounds."""

    method: Any
    rounds: int = 0
    seconds: float = 0.0

    def go_on(self, images: np.ndarray, data: np.ndarray, n_rounds: int) -> None:
        lr = 1e-3 * 0.5 * (1 + math.cos(math.pi * self.rounds / n_rounds))
        trainer = Trainer(
            max_epochs=N_EPOCHS,
            batch_size=BATCH,
            lr=lr,
            final_lr=lr,
            max_grad_norm=1.0,
            validation_fraction=0.0,
        )
        how = {"warm_start": self.rounds > 0, "random_state": SEED + self.rounds, "trainer": trainer}
        start = time.perf_counter()
        self.method.set_params(**how).fit(images, data)
        self.seconds, self.rounds = self.seconds + time.perf_counter() - start, self.rounds + 1


def kept(name: str) -> Path:
    return CACHE / f"table_{SIZE}_{name.replace(' ', '_')}.pickle"


def keep(name: str, state: State) -> None:
    """A call that is cut off leaves what there was before."""
    part = kept(name).with_suffix(".part")
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(pickle.dumps(state))
    part.replace(kept(name))


def train(states: dict[str, State], operator: Any, n_rounds: int) -> None:
    """Every method up to so many rounds, from the last one that is kept."""
    for k in range(min(state.rounds for state in states.values()), n_rounds):
        images = make_ellipses(N_PHANTOMS, SIZE, random_state=SEED + k)
        data = measured(images, operator, SEED + k)
        for name, state in states.items():
            if state.rounds == k:
                state.go_on(images, data, n_rounds)
                keep(name, state)
                loss = state.method.history_[-1]["train_loss"]
                print(f"{name}: round {k + 1}, loss {loss:.2e}, {state.seconds:.0f} s", flush=True)


def quality(images: np.ndarray, x: np.ndarray) -> dict[str, Any]:
    """As in the paper, whose SSIM took a range of 2, and with the range of 1 that the phantom has."""
    return (
        scores("psnr", psnr(images, x, data_range=1.0))
        | scores("ssim_range_2", ssim(images, x, data_range=2.0))
        | scores("ssim_range_1", ssim(images, x, data_range=1.0))
    )


def milliseconds(predict: Callable[[np.ndarray], np.ndarray], data: np.ndarray) -> float:
    """Of one image, the median of seven."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        predict(data[:1])
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def draw(image: np.ndarray, shown: dict[str, np.ndarray], figures: dict[str, Any]) -> None:
    figure, axes = plt.subplots(
        1, len(shown) + 1, figsize=(2.4 * (len(shown) + 1), 2.9), layout="constrained"
    )
    for axis, (name, x) in zip(axes, [("truth", image), *shown.items()], strict=True):
        axis.imshow(x, cmap="gray", vmin=0.1, vmax=0.4)
        axis.set_title(f"{name}\n{figures[name]['psnr']:.2f} dB" if name in figures else name, fontsize=8)
        axis.axis("off")
    figure.savefig(RESULTS / "supervised_table.png", dpi=100)


def main(arguments: list[str]) -> None:
    n_rounds, names = int(arguments[0]) if arguments else N_ROUNDS, arguments[1:]
    if not set(names) <= set(TRAINED):
        raise SystemExit(f"expected names among {TRAINED}, got {names}")
    if not (torch.cuda.is_available() or arguments):
        print(
            "made for a GPU, and there is none: nothing measured (a number of rounds as argument overrides)"
        )
        return
    spacing = SIZE * math.sqrt(2) / N_DETECTORS
    angles = (np.arange(N_VIEWS) + 0.5) * np.pi / N_VIEWS
    operator = parallel_beam((SIZE, SIZE), angles, N_DETECTORS, spacing=spacing)
    images = np.repeat(shepp_logan(SIZE)[None], N_DRAWS, 0)
    held = make_ellipses(N_HELD, SIZE, random_state=FAR)
    data, y_held = measured(images, operator, FAR), measured(held, operator, FAR + 1)
    figures: dict[str, Any] = {"published_psnr": PUBLISHED, "target_psnr": TARGETS}
    shown: dict[str, np.ndarray] = {}
    fbp = FilteredBackProjection(operator, filter="hann").fit()
    for name, method in {"FBP": fbp, "TV": TotalVariationRecon(operator, lam=TV_LAM).fit()}.items():
        shown[name] = method.predict(data)[0]
        figures[name] = quality(images, method.predict(data)) | {
            "milliseconds": milliseconds(method.predict, data)
        }
    chosen = {name: method for name, method in methods(operator).items() if name in names or not names}
    states = {
        name: pickle.loads(kept(name).read_bytes()) if kept(name).exists() else State(method)
        for name, method in chosen.items()
    }
    train(states, operator, n_rounds)
    if names:
        return
    for name, state in states.items():
        x = state.method.predict(data)
        shown[name] = x[0]
        figures[name] = quality(images, x) | {
            "psnr_held_out_ellipses": float(psnr(held, state.method.predict(y_held)).mean()),
            "milliseconds": milliseconds(state.method.predict, data),
            "n_weights": sum(p.numel() for p in state.method.module_.parameters()),
            "steps": state.rounds * N_EPOCHS * math.ceil(N_PHANTOMS / BATCH),
            "seconds_fit": state.seconds,
        }
    write("supervised_table", figures, seeds=[SEED])
    draw(images[0], shown, figures)


if __name__ == "__main__":
    main(sys.argv[1:])

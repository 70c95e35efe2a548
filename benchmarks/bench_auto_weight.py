"""The weights that classical methods choose without truth, against the best ones.

Denoising and deblurring of photographs and of ellipses, CT of ellipses and parallel MRI of complex ones, at
three levels of noise, each image in a unit of its own: how much PSNR is lost against the best weight of a
grid that is as wide as needed, with the noise level known and unknown, and how long the choice takes against
a reconstruction with the weight that was chosen.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from _record import scores, write
from sklearn.exceptions import ConvergenceWarning

from skinverse import Tikhonov, TotalGeneralizedVariationRecon, TotalVariationRecon, WaveletRecon
from skinverse.datasets import load_photographs, make_ellipses, make_problem
from skinverse.metrics import psnr

SIZE, SEED = 48, 0
KINDS = ("denoising", "deblurring", "ct", "mri")
NOISES = (0.01, 0.05, 0.2)
UNITS = (1e-6, 1.0, 255.0, 4096.0)
FACTOR, HALF_WIDTH = 2.0, 2
METHODS = {
    "tikhonov": Tikhonov,
    "tv": TotalVariationRecon,
    "tgv": TotalGeneralizedVariationRecon,
    "wavelets": WaveletRecon,
}
ALLOWED = 1.5


class Case(NamedTuple):
    """Images of one kind, one for each unit, and the noise level of each."""

    name: str
    images: np.ndarray
    data: np.ndarray
    operator: Any
    noise_stds: np.ndarray


def cases() -> Iterator[Case]:
    """Every kind of problem at every level of noise."""
    n = len(UNITS)
    ellipses = make_ellipses(n, SIZE, random_state=SEED)
    photographs = load_photographs(SIZE, n_patches=n, random_state=SEED).astype(ellipses.dtype)
    mixed = np.concatenate([photographs[: n // 2], ellipses[n // 2 :]])
    shown = {"denoising": mixed, "deblurring": mixed, "ct": ellipses, "mri": None}
    for kind in KINDS:
        for noise in NOISES:
            images, data, A = make_problem(kind, n, SIZE, noise, SEED, images=shown[kind])
            clean = np.stack([A @ x.ravel() for x in images])
            yield Case(f"{kind} {noise:g}", images, data, A, noise * np.abs(clean).mean(1))


def in_units(case: Case) -> np.ndarray:
    return case.data * np.array(UNITS, case.data.real.dtype).reshape(-1, *[1] * (case.data.ndim - 1))


def degree(method: type) -> int:
    """The weight of a penalty of degree two has no unit, that of one has the unit of the images."""
    return 0 if method is Tikhonov else 1


def measured(case: Case, method: type) -> dict[str, Any]:
    """Losses of every image, in dB, and times."""
    data, units = in_units(case), np.array(UNITS)
    start = time.perf_counter()
    x, info = method(case.operator).fit().predict(data, return_info=True)
    seconds = time.perf_counter() - start
    known = np.concatenate(
        [
            method(case.operator, noise=float(unit * std)).fit().predict(y[None])
            for y, unit, std in zip(data, units, case.noise_stds, strict=True)
        ]
    )
    found = {
        "unknown": psnr(case.images, x / per_image(units, x)),
        "known": psnr(case.images, known / per_image(units, x)),
    }
    chosen = info.lam / units ** degree(method)
    best, fixed = best_scores(case, method, float(np.exp(np.log(chosen).mean())))
    return {
        **{name: (best - score).tolist() for name, score in found.items()},
        "noise_ratio": (info.noise_std / units / case.noise_stds).tolist(),
        "seconds": seconds,
        "fixed_seconds": fixed,
    }


def per_image(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *[1] * (x.ndim - 1))


def best_scores(case: Case, method: type, middle: float) -> tuple[np.ndarray, float]:
    """Scores of the best weight of each image, and the seconds of one reconstruction with the middle one.

    The grid goes on, on both sides, while the best weight of some image is among its outer ones.
    """
    table: dict[int, np.ndarray] = {}

    def score(power: int) -> float:
        start = time.perf_counter()
        x = method(case.operator, lam=middle * FACTOR**power).fit().predict(case.data)
        table[power] = psnr(case.images, x)
        return time.perf_counter() - start

    seconds = score(0)
    for power in range(-HALF_WIDTH, HALF_WIDTH + 1):
        if power:
            score(power)
    for side in (-1, 1):
        while True:
            powers = sorted(table, key=lambda power: side * power)
            values = np.array([table[power] for power in powers])
            if (values.argmax(0) < len(powers) - 1).all() or len(powers) > 25:
                break
            score(powers[-1] + side)
    return np.array(list(table.values())).max(0), seconds


def summary(losses: dict[str, dict[str, Any]], which: str) -> dict[str, Any]:
    """Mean, largest and number of too large losses of the images of some cases."""
    values = np.concatenate([case[which] for case in losses.values()])
    return scores("loss", values) | {
        "loss_largest": float(values.max()),
        "n_above": int((values > ALLOWED).sum()),
        "n_images": len(values),
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    figures: dict[str, Any] = {}
    every: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        found = {case.name: measured(case, method) for case in cases()}
        every |= {f"{name} {case}": losses for case, losses in found.items()}
        figures[name] = {which: summary(found, which) for which in ("known", "unknown")} | {
            "time_ratio": statistics.median(c["seconds"] / c["fixed_seconds"] for c in found.values()),
            "cases": found,
        }
        figures["all"] = {which: summary(every, which) for which in ("known", "unknown")}
        write("auto_weight", figures, seeds=[SEED], finished=name == list(METHODS)[-1])


if __name__ == "__main__":
    main()

"""Time of a reconstruction over the number and the size of images, and where it grows faster than linear.

Processor time of one thread, which a busy machine changes less than the time on a clock.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import torch
from _record import write
from sklearn.exceptions import ConvergenceWarning

from skinverse import FilteredBackProjection, PostProcessor, TotalVariationRecon, Trainer
from skinverse.operators import as_torch, parallel_beam

SEED = 0
N_VIEWS, NOISE = 32, 0.02
COUNTS, SIDE = (10, 100, 1000, 10_000), 32  # of images of one size
SIDES, COUNT = (64, 128, 256, 512, 1024), 4  # of a number of images
LAM, MAX_STEPS = 0.1, 20
# A time that grows with this power of the number of images, or of pixels, or with a smaller one, is linear.
LINEAR = 1.1
AT_LEAST_S, MOST_RUNS = 1.0, 5  # short runs are repeated, and the fastest counts


def problem(side: int, n: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Projections of random images; what they show does not change the time of a fixed number of steps."""
    A = parallel_beam((side, side), angles=np.linspace(0, np.pi, N_VIEWS, endpoint=False))
    rng = np.random.default_rng(SEED)
    images = rng.random((n, side, side), dtype=np.float32)
    data = np.concatenate([as_torch(A)(part).numpy() for part in torch.from_numpy(images).split(100)])
    return A, images, data + NOISE * rng.normal(size=data.shape).astype(np.float32)


def methods(A: Any, images: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    """Fitted methods; one step of training is enough, for the time does not depend on the weights."""
    once = Trainer(n_steps=1, batch_size=1, validation_fraction=0.0)
    return {
        "FilteredBackProjection": FilteredBackProjection(A).fit(),
        "TotalVariationRecon": TotalVariationRecon(A, lam=LAM, max_steps=MAX_STEPS).fit(),
        "PostProcessor": PostProcessor(A, trainer=once).fit(images[:1], data[:1]),
    }


def seconds(method: Any, data: np.ndarray) -> float:
    """Processor time of ``predict``; what is made once for an operator has been made before."""
    method.predict(data[:1])
    runs: list[float] = []
    while len(runs) < MOST_RUNS and sum(runs) < AT_LEAST_S:
        start = time.process_time()
        method.predict(data)
        runs.append(time.process_time() - start)
    return min(runs)


def growth(amounts: list[int], times: list[float]) -> dict[str, Any]:
    """Powers with which a time grows from one amount to the next, and where they are more than linear."""
    powers = [
        math.log(times[k + 1] / times[k]) / math.log(amounts[k + 1] / amounts[k])
        for k in range(len(times) - 1)
    ]
    steps = [f"{a} to {b}" for a, b in zip(amounts, amounts[1:], strict=False)]
    faster = [step for step, power in zip(steps, powers, strict=True) if power > LINEAR]
    return {"seconds": times, "powers": powers, "faster_than_linear": faster}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is fixed
    A, images, data = problem(SIDE, max(COUNTS))
    over_count = {
        name: growth(list(COUNTS), [seconds(method, data[:n]) for n in COUNTS])
        for name, method in methods(A, images, data).items()
    }
    times: dict[str, list[float]] = {}
    for side in SIDES:
        for name, method in methods(*(given := problem(side, COUNT))).items():
            times.setdefault(name, []).append(seconds(method, given[2]))
    pixels = [side**2 for side in SIDES]
    over_size = {name: growth(pixels, values) for name, values in times.items()}
    write("costs", {"over_number_of_images": over_count, "over_number_of_pixels": over_size}, seeds=[SEED])


if __name__ == "__main__":
    main()

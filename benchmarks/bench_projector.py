"""The projector against ASTRA's on the CPU, with one thread and two: a large image, eight, small ones.

Both are timed in turns in one run, and the median of the ratios is kept: other work on the machine slows
both. ASTRA's `linear` computes its weights anew each time, for one image after the other, in one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import astra
import numpy as np
import torch
from _record import write

from skinverse.operators import _joseph, as_torch, fan_beam, parallel_beam
from skinverse.operators._scanner import ScanOperator

SEED, REPEATS = 0, 5
LARGE = (512, 720, 729)  # size, views, detector elements
SMALL = (256, 180, 363)
SIZES = [(256, 360, 365), (512, 720, 729), (1024, 1440, 1457)]
BATCH = 8


def scanner(size: int, n_views: int, n_detectors: int) -> ScanOperator:
    return parallel_beam((size, size), np.arange(n_views) * np.pi / n_views, n_detectors)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Median seconds of both, and of their ratios in each turn."""
    ours()
    theirs()
    pairs = np.array([(seconds(ours), seconds(theirs)) for _ in range(repeats)])
    return [*map(float, np.median(pairs, 0)), float(np.median(pairs[:, 0] / pairs[:, 1]))]


class Astra:
    """ASTRA's projector of one image."""

    def __init__(self, A: ScanOperator) -> None:
        rays = astra.create_proj_geom("parallel", A.spacing, A.n_detectors, A.angles)
        self.projector = astra.create_projector("linear", rays, astra.create_vol_geom(*A.dims))

    def forward(self, x: np.ndarray) -> np.ndarray:
        return self._taken(astra.create_sino(x, self.projector))

    def adjoint(self, y: np.ndarray) -> np.ndarray:
        return self._taken(astra.create_backprojection(y, self.projector))

    def _taken(self, made: tuple[int, np.ndarray]) -> np.ndarray:
        astra.data2d.delete(made[0])
        return made[1]


def against_astra(n_images: int) -> dict[str, float]:
    """Time of a batch, for each image, over that of one image in ASTRA."""
    operator = scanner(*LARGE)
    A, theirs = as_torch(operator), Astra(operator)
    x = torch.rand(n_images, *A.dims, generator=torch.Generator().manual_seed(SEED))
    y = A(x)
    image, data = x[0].numpy(), y[0].numpy()
    forward = in_turns(lambda: A(x), lambda: theirs.forward(image))
    adjoint = in_turns(lambda: A.adjoint(y), lambda: theirs.adjoint(data))
    distance = np.linalg.norm(data - theirs.forward(image)) / np.linalg.norm(data)
    return {
        "forward_seconds_each": forward[0] / n_images,
        "astra_forward_seconds": forward[1],
        "forward_over_astra": forward[2] / n_images,
        "adjoint_seconds_each": adjoint[0] / n_images,
        "astra_adjoint_seconds": adjoint[1],
        "adjoint_over_astra": adjoint[2] / n_images,
        "relative_distance": float(distance),
    }


def kernel_of(operator: ScanOperator) -> ScanOperator:
    """The same operator, without a stored matrix."""
    operator._rows.is_stored = False
    return operator


def against_the_stored_matrix() -> dict[str, float]:
    """Why small problems store their matrix."""
    found = {}
    for n_images in (1, BATCH):
        stored, kernel = as_torch(scanner(*SMALL)), as_torch(kernel_of(scanner(*SMALL)))
        x = torch.rand(n_images, *stored.dims, generator=torch.Generator().manual_seed(SEED))
        y = stored(x)
        forward = in_turns(lambda: kernel(x), lambda: stored(x))  # noqa: B023
        adjoint = in_turns(lambda: kernel.adjoint(y), lambda: stored.adjoint(y))  # noqa: B023
        found |= {
            f"kernel_over_matrix_forward_batch_{n_images}": forward[2],
            f"kernel_over_matrix_adjoint_batch_{n_images}": adjoint[2],
        }
    return found


def per_pixel_and_view() -> dict[str, float]:
    """Nanoseconds at three sizes, in turns."""
    maps = [as_torch(kernel_of(scanner(*size))) for size in SIZES]
    images = [torch.rand(1, *A.dims, generator=torch.Generator().manual_seed(SEED)) for A in maps]
    data = [A(x) for A, x in zip(maps, images, strict=True)]
    turns = [
        [(seconds(lambda: A(x)), seconds(lambda: A.adjoint(y))) for A, x, y in zip(maps, images, data)]  # noqa: B023, B905
        for _ in range(3)
    ]
    found = {}
    for (size, n_views, _), (forward, adjoint) in zip(SIZES, np.median(turns, 0), strict=True):
        found[f"forward_ns_{size}"] = 1e9 * forward / (size**2 * n_views)
        found[f"adjoint_ns_{size}"] = 1e9 * adjoint / (size**2 * n_views)
    return found


def fans() -> dict[str, float]:
    """One image through a fan, over the time of the parallel beam of the same size."""
    size, n_views, n_detectors = LARGE
    angles = np.arange(n_views) * 2 * np.pi / n_views
    fan = as_torch(
        fan_beam((size, size), angles, n_detectors, source_distance=2 * size, detector_distance=size)
    )
    parallel = as_torch(scanner(*LARGE))
    x = torch.rand(1, size, size, generator=torch.Generator().manual_seed(SEED))
    y = parallel(x)
    return {
        "forward_over_parallel": in_turns(lambda: fan(x), lambda: parallel(x))[2],
        "adjoint_over_parallel": in_turns(lambda: fan.adjoint(y), lambda: parallel.adjoint(y))[2],
    }


ALONE = """
import time
import numpy as np, torch
from skinverse.operators import as_torch, parallel_beam
torch.set_num_threads(1)
def peak():
    with open("/proc/self/status") as status:
        return [int(line.split()[1]) for line in status if line.startswith("VmHWM")][0]
before = peak()
start = time.perf_counter()
A = as_torch(parallel_beam((512, 512), np.arange(720) * np.pi / 720, 729))
x = torch.rand(1, 512, 512)
y = A(x)
first = time.perf_counter() - start
start = time.perf_counter()
A(x)
second = time.perf_counter() - start
A.adjoint(y)
print(first - second, peak() / 1024, (peak() - before) / 1024)
"""


def alone() -> dict[str, float]:
    """A process of its own: set-up with a compiled kernel on the disk, and peak memory."""
    run = subprocess.run([sys.executable, "-c", ALONE], check=True, capture_output=True, text=True)
    setup, peak, own = map(float, run.stdout.split())
    return {"setup_seconds": setup, "peak_megabytes": peak, "peak_over_imports_megabytes": own}


def main() -> None:
    figures: dict[str, Any] = {"a process of its own": alone(), "max_stored_bytes": _joseph.MAX_STORED_BYTES}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        figures[f"{threads} threads"] = {
            "load of the machine": os.getloadavg()[0],
            "one image of 512": against_astra(1),
            "eight images of 512": against_astra(BATCH),
            "256, 180 views": against_the_stored_matrix(),
            "per pixel and view": per_pixel_and_view(),
            "a fan": fans(),
        }
    write("projector", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

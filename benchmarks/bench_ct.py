"""Parallel-beam projector against ASTRA's on the CPU: time, memory, agreement; filtered back-projection.

Ours stores its matrix. ASTRA's "linear" computes its weights anew each time, which takes no memory; ASTRA's
"sparse_matrix" stores those weights as ours does. Both are measured, and what our matrix costs.
"""

from __future__ import annotations

import functools
import gc
import time
import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from _record import scores, write

from skinverse.datasets import shepp_logan
from skinverse.metrics import psnr, ssim
from skinverse.operators import as_torch, parallel_beam
from skinverse.operators._parallel_beam import ParallelBeam

try:
    import astra
except ImportError:
    astra = None

SEED, SIZE, N_ANGLES, N_DETECTORS, BATCH = 0, 256, 180, 363, 8
SIZES = (64, 65, 128, 255, 256)


def scanner(size: int, n_angles: int, n_detectors: int) -> ParallelBeam:
    return parallel_beam((size, size), np.arange(n_angles) * np.pi / n_angles, n_detectors)


def fastest(function: Callable[[], Any], repetitions: int) -> float:
    """Seconds of the fastest repetition, after one that does not count."""
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


class Astra:
    """ASTRA's linear projector, one image at a time, as its Python interface has it; stored or not."""

    def __init__(self, astra: ModuleType, A: ParallelBeam, *, stored: bool = False) -> None:
        geometry = A.spacing, A.n_detectors, A.angles
        image = astra.create_vol_geom(*A.dims)
        detector = astra.create_proj_geom("parallel", *geometry)
        self.projector = astra.create_projector("linear", detector, image)
        if stored:
            matrix = astra.projector.matrix(self.projector)
            rays = astra.create_proj_geom("sparse_matrix", *geometry, matrix)
            self.projector = astra.create_projector("sparse_matrix", rays, image)
        self.astra = astra

    def forward(self, images: np.ndarray) -> np.ndarray:
        return np.stack([self._take(self.astra.create_sino(x, self.projector)) for x in images])

    def adjoint(self, data: np.ndarray) -> np.ndarray:
        return np.stack([self._take(self.astra.create_backprojection(y, self.projector)) for y in data])

    def _take(self, result: tuple[int, np.ndarray]) -> np.ndarray:
        self.astra.data2d.delete(result[0])
        return result[1]


def building() -> dict[str, float]:
    """Time alone first: tracing memory slows it down."""

    def build() -> ParallelBeam:
        A = scanner(SIZE, N_ANGLES, N_DETECTORS)
        A.matrix()
        return A

    seconds = fastest(build, 3)
    gc.collect()
    tracemalloc.start()
    matrix = build().matrix()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(part.nbytes for part in (matrix.data, matrix.indices, matrix.indptr))
    return {
        "build_seconds": seconds,
        "matrix_megabytes": size / 1e6,
        "build_peak_over_matrix": peak / size,
        "index_bits": 8 * matrix.indices.itemsize,
    }


def speed() -> dict[str, float]:
    """Our projector, and how many times as fast it is as both of ASTRA's."""
    operator = scanner(SIZE, N_ANGLES, N_DETECTORS)
    A = as_torch(operator)
    x = torch.rand(BATCH, *A.dims, generator=torch.Generator().manual_seed(SEED))
    y = A(x)
    ours = {"forward": fastest(lambda: A(x), 10), "adjoint": fastest(lambda: A.adjoint(y), 10)}
    single = {
        "forward": fastest(lambda: [A(image) for image in x.split(1)], 5),
        "adjoint": fastest(lambda: [A.adjoint(one) for one in y.split(1)], 5),
    }
    figures = {f"{name}_seconds": seconds for name, seconds in ours.items()}
    figures |= {f"{name}_image_by_image_seconds": seconds for name, seconds in single.items()}
    figures["fbp_seconds"] = fastest(lambda: A.filtered_adjoint(y, "hann"), 3)
    images, data = x.numpy(), y.contiguous().numpy()
    for label, stored in (("astra", False), ("astra_stored", True)) if astra else ():
        projector = Astra(astra, operator, stored=stored)
        theirs = {
            "forward": fastest(functools.partial(projector.forward, images), 3),
            "adjoint": fastest(functools.partial(projector.adjoint, data), 3),
        }
        figures |= {f"{label}_{name}_seconds": seconds for name, seconds in theirs.items()}
        figures |= {f"speedup_{name}_over_{label}": theirs[name] / ours[name] for name in ours}
        figures |= {
            f"speedup_{name}_over_{label}_image_by_image": theirs[name] / single[name] for name in ours
        }
    return figures


def agreement() -> dict[str, float | None]:
    """Relative L2 distance of the Shepp-Logan phantom's data from ASTRA's."""
    return {f"relative_distance_{size}": _distance(size) for size in SIZES}


def _distance(size: int) -> float | None:
    if astra is None:
        return None
    operator = scanner(size, N_ANGLES, int(np.ceil(np.sqrt(2) * size)))
    phantom = shepp_logan(size)
    theirs = Astra(astra, operator).forward(phantom[None])[0]
    return float(np.linalg.norm(operator @ phantom - theirs) / np.linalg.norm(theirs))


def published_fbp() -> dict[str, Any]:
    """Hann's filter on the benchmark of Adler and Oktem, five draws of noise."""
    angles = (np.arange(30) + 0.5) * np.pi / 30
    A = as_torch(parallel_beam((128, 128), angles, 183, spacing=2 * 64 * np.sqrt(2) / 183))
    truth = np.repeat(shepp_logan(128)[None], 5, axis=0)
    clean = A(torch.from_numpy(truth))
    noise = np.stack([np.random.default_rng(seed).normal(size=A.dimsd) for seed in range(5)])
    y = clean + 0.05 * clean.abs().mean() * torch.from_numpy(noise).float()
    x = A.filtered_adjoint(y, "hann").numpy()
    return scores("fbp_hann_psnr", psnr(truth, x, data_range=1.0)) | scores(
        "fbp_hann_ssim", ssim(truth, x, data_range=2.0)
    )


TARGETS = {
    "target_speedup": 8.0,
    "target_build_seconds": 3.0,
    "target_build_peak_over_matrix": 2.2,
    "target_relative_distance": 1e-3,
    "target_fbp_hann_psnr": 19.7,
    "target_fbp_hann_ssim": 0.60,
}


def main() -> None:
    torch.set_num_threads(1)
    if astra is None:
        print("astra-toolbox is not installed: nothing to compare with (pip install 'skinverse[ct]')")
    figures = building() | speed() | agreement() | published_fbp() | TARGETS
    write("ct", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

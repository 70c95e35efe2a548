"""Nonuniform Fourier transforms against finufft with the same plan: 8 coils, 50 000 samples, 320 x 320.

Once without coil maps, where both do the same, and once with them, which finufft knows nothing of: there the
products with the maps, and the sum over coils, are NumPy's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import finufft
import numpy as np
import torch
from _record import write

from skinverse.operators import as_torch, nonuniform_fourier
from skinverse.operators._nonuniform import _EPS, NonuniformTransform

SEED, SIZE, N_COILS, N_SPOKES, N_READOUT, REPEATS = 0, 320, 8, 100, 500, 15


def radial() -> np.ndarray:
    angles, radii = np.meshgrid(np.arange(N_SPOKES) * np.pi / N_SPOKES, np.linspace(-np.pi, np.pi, N_READOUT))
    return np.stack([radii * np.sin(angles), radii * np.cos(angles)], -1).reshape(-1, 2)


def seconds(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """The least time of each; they take turns, so that what else the machine does meets both."""
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS + 1):
        for function, found in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return min(times[0][1:]), min(times[1][1:])


def plan(kind: int, trajectory: np.ndarray, dtype: str) -> finufft.Plan:
    real = np.float32 if dtype == "complex64" else np.float64
    options = {"isign": 1 if kind == 1 else -1, "nthreads": torch.get_num_threads()}
    made = finufft.Plan(
        kind, (SIZE, SIZE), n_trans=N_COILS, dtype=dtype, eps=_EPS[getattr(torch, dtype)], **options
    )
    made.setpts(*(np.ascontiguousarray(axis, dtype=real) for axis in trajectory.T))
    return made


def compare(trajectory: np.ndarray, dtype: str) -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    maps = rng.normal(size=(N_COILS, SIZE, SIZE)) + 1j * rng.normal(size=(N_COILS, SIZE, SIZE))
    maps = maps.astype(dtype)
    there, back = plan(2, trajectory, dtype), plan(1, trajectory, dtype)
    transform = as_torch(NonuniformTransform(maps.shape, trajectory, None, dtype))
    coils = as_torch(nonuniform_fourier(trajectory, (SIZE, SIZE), coil_maps=maps))
    x, y = maps[0], there.execute(maps)
    several, one, data = (torch.from_numpy(a)[None] for a in (maps, x, y))
    pairs = {
        "forward": (lambda: transform(several), lambda: there.execute(maps)),
        "adjoint": (lambda: transform.adjoint(data), lambda: back.execute(y)),
        "forward_with_maps": (lambda: coils(one), lambda: there.execute(maps * x)),
        "adjoint_with_maps": (
            lambda: coils.adjoint(data),
            lambda: (maps.conj() * back.execute(y)).sum(0),
        ),
    }
    figures = {}
    with torch.no_grad():
        for name, (ours, theirs) in pairs.items():
            own, direct = seconds(ours, theirs)
            figures |= {
                f"{name}_ms": 1e3 * own,
                f"{name}_finufft_ms": 1e3 * direct,
                f"{name}_ratio": own / direct,
            }
    return figures


def main() -> None:
    trajectory = radial()
    figures = {dtype: compare(trajectory, dtype) for dtype in ("complex64", "complex128")}
    write("nonuniform", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

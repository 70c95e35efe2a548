"""Operators lowered to torch against pylops' matmat on a batch of 16 images of 128 x 128.

Once with all cores, as they come, and once with one thread.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pylops
import torch
from _record import write
from pylops.medical import CT2D, MRI2D
from pylops.signalprocessing import FFT2D
from threadpoolctl import threadpool_limits

from skinverse.operators import as_torch

SEED, SIZE, BATCH = 0, 128, 16
DIMS = (SIZE, SIZE)


def operators(rng: np.random.Generator) -> Iterator[tuple[str, pylops.LinearOperator]]:
    """Each operator in single precision."""
    yield "FFT2D", FFT2D(DIMS, dtype="complex64")
    yield "MatrixMult", pylops.MatrixMult(rng.normal(size=(1024, SIZE**2)).astype("f4"), dtype="float32")
    yield (
        "Restriction",
        pylops.Restriction(SIZE**2, rng.choice(SIZE**2, SIZE**2 // 4, replace=False), dtype="float32"),
    )
    yield "MRI2D", MRI2D(DIMS, rng.random(DIMS) < 0.3, dtype="complex64")
    if importlib.util.find_spec("astra"):
        yield "CT2D", CT2D(DIMS, 1.0, 183, np.arange(90) * np.pi / 90, engine="cpu", projector_type="linear")
    else:
        print("astra is not installed: CT2D is left out")


def best_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(op: pylops.LinearOperator, rng: np.random.Generator) -> dict[str, float]:
    A = as_torch(op)
    X = rng.normal(size=(BATCH, *A.dims))
    X = (X + 1j * rng.normal(size=X.shape)) if np.dtype(op.dtype).kind == "c" else X
    x = torch.from_numpy(X).to(torch.complex64 if np.iscomplexobj(X) else torch.float32)
    y = A(x)
    columns, rows = x.flatten(1).numpy().T.copy(), y.flatten(1).numpy().T.copy()
    expected = op.matmat(columns).T
    repeats = 3 if type(op) is CT2D else 30
    with torch.no_grad():
        ours = best_seconds(lambda: A(x), repeats), best_seconds(lambda: A.adjoint(y), repeats)
    theirs = (
        best_seconds(lambda: op.matmat(columns), repeats),
        best_seconds(lambda: op.rmatmat(rows), repeats),
    )
    return {
        "forward_ms": 1e3 * ours[0],
        "adjoint_ms": 1e3 * ours[1],
        "pylops_forward_ms": 1e3 * theirs[0],
        "pylops_adjoint_ms": 1e3 * theirs[1],
        "speedup_forward": theirs[0] / ours[0],
        "speedup_adjoint": theirs[1] / ours[1],
        "relative_error_float32": float(
            np.linalg.norm(y.flatten(1).numpy() - expected) / np.linalg.norm(expected)
        ),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    figures = {}
    for threads in (os.cpu_count() or 1, 1):
        torch.set_num_threads(threads)
        rng = np.random.default_rng(SEED)
        with threadpool_limits(threads):
            found = {name: compare(op, rng) for name, op in operators(rng)}
        figures[f"{threads} threads"] = found
    write("operators", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

"""Costs of learned primal-dual: ten iterations, 128 x 128 pixels, 30 views, batches of five.

A training step against one whose products with the operator go image by image through NumPy, by ASTRA where
it is installed and else by pylops; reconstruction of one image against its operators and convolutions alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pylops
import torch
from _record import write
from torch import Tensor

from skinverse.datasets import make_ellipses
from skinverse.estimators.unrolled.primal_dual import PrimalDualUnrolled
from skinverse.operators import LinearMap, as_torch, parallel_beam

SIZE, N_VIEWS, N_DETECTORS, BATCH, SEED, N_RUNS = 128, 30, 183, 5, 0, 7
ANGLES = (np.arange(N_VIEWS) + 0.5) * np.pi / N_VIEWS


class Foreign(pylops.LinearOperator):
    """An operator of which nothing is known but its products with one image."""

    def __init__(self, op: pylops.LinearOperator) -> None:
        self.inner = op
        super().__init__(dtype=op.dtype, dims=op.dims, dimsd=op.dimsd)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self.inner.matvec(x)

    def _rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.inner.rmatvec(y)


def one_by_one() -> tuple[str, LinearMap]:
    """The usual way: ASTRA through pylops, or the sparse matrix of pylops."""
    try:
        op = pylops.medical.CT2D(
            (SIZE, SIZE), 1.0, N_DETECTORS, ANGLES, engine="cpu", projector_type="linear"
        )
        op.matvec(np.zeros(SIZE**2))
        name = "astra"
    except (ImportError, NameError):
        name, op = "pylops", parallel_beam((SIZE, SIZE), ANGLES, N_DETECTORS)
    return name, as_torch(Foreign(op))


def median(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(N_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def step(network: PrimalDualUnrolled, A: LinearMap, y: Tensor, x: Tensor, start: Tensor) -> None:
    network.zero_grad()
    (network(A, y, start) - x).square().mean().backward()


def pairs(A: LinearMap, x: Tensor, y: Tensor, n: int) -> None:
    for _ in range(n):
        A(x)
        A.adjoint(y)


def convolutions(network: PrimalDualUnrolled, x: Tensor, y: Tensor) -> None:
    """The networks of all iterations, without operators."""
    n = network.n_states
    h, f = y[:, None].repeat(1, n + 2, 1, 1), x[:, None].repeat(1, n + 1, 1, 1)
    with torch.no_grad():
        for D, P in zip(network.dual, network.primal, strict=True):
            D(h)
            P(f)


def main() -> None:
    torch.set_num_threads(2)
    A = as_torch(parallel_beam((SIZE, SIZE), ANGLES, N_DETECTORS))
    name, foreign = one_by_one()
    x = torch.from_numpy(make_ellipses(BATCH, SIZE, random_state=SEED))
    torch.manual_seed(SEED)
    network = PrimalDualUnrolled((1, 1), 10, 32, 5, shared=False)
    y, start = A(x), torch.zeros_like(x)
    for linear in (A, foreign):
        linear.norm()
    ours, usual = (median(lambda B=B: step(network, B, y, x, start)) for B in (A, foreign))
    products = 2 * median(lambda: pairs(A, x, y, 10))  # once forwards, once backwards

    def reconstruct() -> None:
        with torch.no_grad():
            network(A, y[:1], start[:1])

    alone = median(lambda: pairs(A, x[:1], y[:1], 10)) + median(lambda: convolutions(network, x[:1], y[:1]))
    inference = median(reconstruct)
    figures = {
        "one by one": name,
        "seconds": {
            "step": ours,
            "step, image by image": usual,
            "inference": inference,
            "parts alone": alone,
        },
        "step_to_image_by_image": ours / usual,
        "share_of_the_operator": products / ours,
        "inference_to_parts_alone": inference / alone,
        "targets": {"step_to_image_by_image": 0.7, "inference_to_parts_alone": 2.0},
    }
    write("supervised_speed", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

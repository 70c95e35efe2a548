"""The sparse Gaussian on one thread: its density against three usual ways, and its samples.

64 x 64 pixels, window 5. The usual ways to form ``L^T r`` are a convolution with one-hot filters,
``unfold``, and padded slices under autograd.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _record import write
from torch import Tensor

from skinverse.functionals import SparseCholeskyGaussian

SIDE, WINDOW, BATCH, DRAWS, SEED = 64, 5, 16, 32, 0
N_OFF = (WINDOW**2 - 1) // 2
OFFSETS = [(i, j) for i in range(WINDOW // 2 + 1) for j in range(-(WINDOW // 2), WINDOW // 2 + 1)][
    WINDOW // 2 :
]


def neighbours_onehot(r: Tensor) -> Tensor:
    kernel = torch.zeros(N_OFF, 1, WINDOW, WINDOW)
    for o, (i, j) in enumerate(OFFSETS[1:]):
        kernel[o, 0, WINDOW // 2 + i, WINDOW // 2 + j] = 1
    return F.conv2d(r, kernel, padding=WINDOW // 2)


def neighbours_unfold(r: Tensor) -> Tensor:
    columns = F.unfold(r, WINDOW, padding=WINDOW // 2)
    return columns[:, -N_OFF:].unflatten(2, r.shape[-2:])


def log_prob(log_diag: Tensor, off: Tensor, r: Tensor, coupled: Tensor) -> Tensor:
    white = log_diag.exp() * r + coupled
    return -0.5 * white.square().flatten(1).sum(1) + log_diag.flatten(1).sum(1)


def onehot(log_diag: Tensor, off: Tensor, r: Tensor) -> Tensor:
    return log_prob(log_diag, off, r, (off[:, 0] * neighbours_onehot(r)).sum(1, keepdim=True))


def unfold(log_diag: Tensor, off: Tensor, r: Tensor) -> Tensor:
    return log_prob(log_diag, off, r, (off[:, 0] * neighbours_unfold(r)).sum(1, keepdim=True))


def slices(log_diag: Tensor, off: Tensor, r: Tensor) -> Tensor:
    half = WINDOW // 2
    padded, coupled = F.pad(r, (half, half, 0, half)), torch.zeros_like(r)
    for o, (i, j) in enumerate(OFFSETS[1:]):
        coupled = torch.addcmul(coupled, off[:, :, o], padded[..., i : i + SIDE, half + j : half + j + SIDE])
    return log_prob(log_diag, off, r, coupled)


def ours(log_diag: Tensor, off: Tensor, r: Tensor) -> Tensor:
    constant = 0.5 * SIDE**2 * math.log(2 * math.pi)
    return SparseCholeskyGaussian(torch.zeros_like(r), log_diag, off).log_prob(r) + constant


def median(call: Callable[[], Any], n: int = 15) -> float:
    """Milliseconds."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[2:]))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    log_diag = (0.1 * torch.randn(DRAWS, 1, SIDE, SIDE)).requires_grad_()
    off = (0.05 * torch.randn(DRAWS, 1, N_OFF, SIDE, SIDE)).requires_grad_()
    r = torch.randn(DRAWS, 1, SIDE, SIDE).requires_grad_()
    part = (log_diag[:BATCH], off[:BATCH], r[:BATCH])
    part = tuple(p.detach().requires_grad_() for p in part)
    ways = (ours, onehot, unfold, slices)
    values = [way(*part).detach() for way in ways]
    milliseconds = {way.__name__: median(lambda way=way: way(*part).sum().backward()) for way in ways}
    with torch.no_grad():
        mean = torch.zeros(DRAWS, 1, SIDE, SIDE)
        one = SparseCholeskyGaussian(mean[:1], log_diag[:1], off[:1])
        many = SparseCholeskyGaussian(mean, log_diag, off)
        samples = {
            "32 of one z": median(lambda: one.sample(DRAWS)),
            "32 different z": median(lambda: many.sample()),
        }
    fastest = min(value for name, value in milliseconds.items() if name != "ours")
    figures = {
        "log_prob_forward_and_backward_ms": milliseconds,
        "largest_relative_difference": max(float(((v - values[0]) / values[0]).abs().max()) for v in values),
        "ours_to_fastest": milliseconds["ours"] / fastest,
        "sample_ms": samples,
        "targets": {"ours_to_fastest": 1.2, "32 of one z": 20, "32 different z": 150},
    }
    write("generative_speed", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

"""Costs of an equilibrium training step, compared with the usual loop, and in memory with an unroll.

The problem is a proximal iteration with a DnCNN of 5 layers and 32 features on 8 blurred pieces of 64 x 64
pixels. The usual loop takes plain steps forwards and, in a hook, plain steps backwards, until the batch meets
the same tolerance. DeepInverse's own loop, with a number of backward steps instead of a tolerance, is
measured where it is installed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import write
from torch import Tensor

from skinverse.datasets import load_photographs
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, gaussian_blur
from skinverse.solvers import fixed_point, gmres

BATCH, SIDE, SEED, TOL, BACKWARD_TOL, MOST, REACH = 8, 64, 0, 1e-4, 1e-3, 100, 8


def pieces() -> tuple[Any, Tensor, Tensor, DnCNN]:
    A = as_torch(gaussian_blur((SIDE, SIDE), sigma=1.6))
    x = torch.from_numpy(load_photographs(SIDE, n_patches=BATCH, random_state=SEED))
    torch.manual_seed(SEED)
    return A, x, A(x), DnCNN()


def make_map(A: Any, h: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """``h`` pulled a little towards zero, so that both loops contract alike."""

    def f(z: Tensor, b: Tensor) -> Tensor:
        return 0.9 * h((z - A.adjoint(A(z)) + b)[:, None])[:, 0]

    return f


def ours(A: Any, x: Tensor, y: Tensor, network: DnCNN, n_steps: int = MOST, tol: float = TOL) -> int:
    f, b = make_map(A, network.prepared()), A.adjoint(y)
    found = fixed_point(
        f, b, given=(b,), backward=gmres, max_steps=n_steps, tol=tol, backward_tol=BACKWARD_TOL
    )
    (found.x - x).square().sum().backward()
    return int(found.n_steps.max())


def usual(A: Any, x: Tensor, y: Tensor, network: DnCNN) -> int:
    f, b = make_map(A, network), A.adjoint(y)

    def iterate(g: Callable[[Tensor], Tensor], z: Tensor, tol: float) -> tuple[Tensor, int]:
        n_steps, done = 0, False
        while not done and n_steps < MOST:
            new = g(z)
            z, done, n_steps = new, bool((new - z).norm() < tol * new.norm()), n_steps + 1
        return z, n_steps

    with torch.no_grad():
        z, n_steps = iterate(lambda z: f(z, b), b, TOL)
    z = f(z, b)
    at = z.detach().requires_grad_()
    again = f(at, b)
    z.register_hook(
        lambda v: iterate(
            lambda w: torch.autograd.grad(again, at, w, retain_graph=True)[0] + v, v, BACKWARD_TOL
        )[0]
    )
    (z - x).square().sum().backward()
    return n_steps


def deep_inverse(A: Any, x: Tensor, y: Tensor, network: DnCNN) -> int:
    """The same map, blur and forward tolerance as DeepInverse does it, with its default equilibrium."""
    import deepinv
    from deepinv.optim import L2, PGD, PnP

    class Denoiser(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, z: Tensor, sigma: Any = None) -> Tensor:
            return 0.9 * self.network(z)

    point = torch.zeros(1, SIDE, SIDE)
    point[0, SIDE // 2, SIDE // 2] = 1.0
    middle = slice(SIDE // 2 - REACH, SIDE // 2 + REACH + 1)
    physics = deepinv.physics.Blur(filter=A(point)[None, :, middle, middle], padding="constant")
    assert torch.allclose(physics.A(x[:, None])[:, 0], y, atol=1e-4)
    model = PGD(
        data_fidelity=L2(),
        prior=PnP(denoiser=Denoiser()),
        stepsize=1.0,
        sigma_denoiser=0.1,
        max_iter=MOST,
        crit_conv="residual",
        thres_conv=TOL,
        early_stop=True,
        unfold=True,
        trainable_params=["stepsize"],
        DEQ=True,
    )
    (model(y[:, None], physics) - x[:, None]).square().sum().backward()
    return 0  # DeepInverse does not tell the number


def unrolled(A: Any, x: Tensor, y: Tensor, network: DnCNN, n_steps: int = 20) -> int:
    f, b = make_map(A, network), A.adjoint(y)
    z = b
    for _ in range(n_steps):
        z = f(z, b)
    (z - x).square().sum().backward()
    return n_steps


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def alone(name: str) -> None:
    torch.set_num_threads(1)
    parts = pieces()
    before = peak()
    if name == "unrolled":
        unrolled(*parts)
    else:
        ours(*parts, n_steps=int(name), tol=0.0)
    print((peak() - before) / 2**20, peak() / 2**20)


def memory(name: str) -> dict[str, float]:
    """GiB of a process that takes one step, and what the step adds to the start: the least of three."""
    runs = [
        subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    ]
    added, whole = np.array([run.split() for run in runs], float).min(0)
    return {"added": float(added), "whole": float(whole)}


def main() -> None:
    torch.set_num_threads(2)
    parts = pieces()
    seconds: dict[str, float] = {}
    steps: dict[str, int] = {}
    peer = [deep_inverse] if importlib.util.find_spec("deepinv") else []
    for way in (ours, usual, unrolled, *peer):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            steps[way.__name__] = way(*parts)
            times.append(time.perf_counter() - start)
        seconds[way.__name__] = float(np.median(times))
    held = {name: memory(name) for name in ("10", "100", "unrolled")}
    figures = {
        "seconds": seconds,
        "steps": {name: n for name, n in steps.items() if n},
        "gib": held,
        "ours_to_usual": seconds["ours"] / seconds["usual"],
        "ours_to_deep_inverse": seconds["ours"] / seconds["deep_inverse"] if peer else None,
        "memory_100_to_10_steps": held["100"]["whole"] / held["10"]["whole"],
        "memory_added_100_to_10_steps": held["100"]["added"] / held["10"]["added"],
        "memory_100_steps_to_unroll_of_20": held["100"]["added"] / held["unrolled"]["added"],
        "targets": {
            "ours_to_usual": 1.0,
            "memory_100_to_10_steps": 1.1,
            "memory_100_steps_to_unroll_of_20": 0.3,
        },
    }
    write("equilibrium_speed", figures, seeds=[SEED])


if __name__ == "__main__":
    alone(sys.argv[1]) if sys.argv[1:] else main()

"""Total variation of a large slice, to 1e-3 of the objective, against primal-dual in NumPy with ASTRA.

Both minimise ``1/2 ||A x - y||^2 + lam TV(x)`` of one image of 512 x 512 pixels and 720 views from zero, and
are timed from the first step until the objective stays within 1e-3 of its minimum. Theirs is the textbook's
iteration (Chambolle and Pock, 2011, algorithm 1) with the operators divided by their norms and the ratio of
steps that is best on a small problem. How many steps it needs is counted with our projector, which computes
the same sums in less time; the time of a step is that with ASTRA's. Steps of both are timed in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _record import write
from bench_projector import Astra, scanner, seconds
from torch import Tensor

from skinverse.datasets import shepp_logan
from skinverse.functionals import LeastSquares, TotalVariation
from skinverse.metrics import psnr
from skinverse.operators import as_torch
from skinverse.operators._scanner import ScanOperator
from skinverse.solvers import primal_dual

SEED, NOISE = 0, 0.02
LAM, LAM_SMALL = 20.0, 3.0  # of good images
LARGE, SMALL = (512, 720, 729), (128, 180, 183)  # size, views, detector elements
RATIOS = (0.03, 0.06, 0.1, 0.2, 0.3)
ACCURACY, REFERENCE, LONGEST, TURNS = 1e-3, 250, 300, 3
EVERY = 5  # steps of which the objective is looked at
Map = Callable[[np.ndarray], np.ndarray]


def problem(shape: tuple[int, int, int]) -> tuple[ScanOperator, np.ndarray]:
    """A phantom with noise of 2 % of the largest datum."""
    operator = scanner(*shape)
    clean = operator @ shepp_logan(shape[0]).astype(np.float32)
    noise = np.random.default_rng(SEED).standard_normal(clean.shape).astype(np.float32)
    return operator, clean + NOISE * clean.max() * noise


def objective_of(operator: ScanOperator, y: np.ndarray, lam: float) -> Any:
    return LeastSquares(as_torch(operator), torch.from_numpy(y)[None]) + lam * TotalVariation()


def textbook(
    forward: Map, adjoint: Map, norm: float, y: np.ndarray, shape: tuple[int, int], lam: float, ratio: float
) -> Callable[[], np.ndarray]:
    """A function that takes one step, of images multiplied by the norm of the operator."""
    data, weight = y, lam / norm  # 1/2 ||(A / s) x' - y||^2 + (lam / s) TV(x') with x' = s x
    tau, sigma = 1 / (3 * ratio), ratio / 3  # ||(A / s, grad)||^2 <= 1 + 8
    x = np.zeros(shape, np.float32)
    u, v = np.zeros_like(y), np.zeros((2, *shape), np.float32)

    def step() -> np.ndarray:
        nonlocal x, u, v
        new = x - np.float32(tau) * (adjoint(u) / np.float32(norm) + transposed_gradient(v))
        ahead, x = 2 * new - x, new
        u = (u + np.float32(sigma) * (forward(ahead) / np.float32(norm) - data)) / np.float32(1 + sigma)
        v = v + np.float32(sigma) * gradient(ahead)
        v /= np.maximum(1, np.sqrt((v * v).sum(0)) / np.float32(weight))
        return x / np.float32(norm)

    return step


def gradient(x: np.ndarray) -> np.ndarray:
    found = np.zeros((2, *x.shape), x.dtype)
    found[0, :-1], found[1, :, :-1] = x[1:] - x[:-1], x[:, 1:] - x[:, :-1]
    return found


def transposed_gradient(v: np.ndarray) -> np.ndarray:
    found = np.zeros(v.shape[1:], v.dtype)
    found[1:] += v[0, :-1]
    found[:-1] -= v[0, :-1]
    found[:, 1:] += v[1, :, :-1]
    found[:, :-1] -= v[1, :, :-1]
    return found


def steps_needed(images: list[Tensor], objective: Any, minimum: float) -> int | None:
    """Steps from which on all objectives are within the accuracy; None if the last one is not."""
    values = np.array([float(objective(x)) for x in images[EVERY - 1 :: EVERY]])
    missed = np.flatnonzero(values > (1 + ACCURACY) * minimum)
    found = EVERY * (int(missed[-1]) + 2 if missed.size else 1)
    return found if found <= len(images) else None


def our_images(objective: Any, operator: ScanOperator, n_steps: int) -> list[Tensor]:
    images: list[Tensor] = []
    x0 = torch.zeros(1, *operator.dims)
    primal_dual(objective, x0, max_steps=n_steps, tol=0.0, callback=lambda step, x: images.append(x.clone()))
    return images


def their_images(
    operator: ScanOperator, y: np.ndarray, lam: float, ratio: float, n_steps: int
) -> list[Tensor]:
    A = as_torch(operator)
    batched: tuple[Map, Map] = (
        lambda x: A(torch.from_numpy(x)[None])[0].numpy(),
        lambda u: A.adjoint(torch.from_numpy(u)[None])[0].numpy(),
    )
    step = textbook(*batched, A.norm(), y, tuple(operator.dims), lam, ratio)
    return [torch.from_numpy(step().copy())[None] for _ in range(n_steps)]


def best_ratio() -> tuple[float, dict[str, int | None]]:
    """The ratio of steps with which theirs needs fewest on a small problem, and the steps of all."""
    operator, y = problem(SMALL)
    objective = objective_of(operator, y, LAM_SMALL)
    minimum = float(objective(our_images(objective, operator, 800)[-1]))
    needed = {
        r: steps_needed(their_images(operator, y, LAM_SMALL, r, 400), objective, minimum) for r in RATIOS
    }
    best = min((steps, r) for r, steps in needed.items() if steps is not None)[1]
    return best, {str(r): steps for r, steps in needed.items()}


def seconds_per_step(operator: ScanOperator, y: np.ndarray, ratio: float) -> tuple[list[float], list[float]]:
    """Seconds of a step of both, in turns; the mean of ten of ours, one of which looks whether to stop."""
    theirs, norm = Astra(operator), float(as_torch(operator).norm())
    step = textbook(theirs.forward, theirs.adjoint, norm, y, tuple(operator.dims), LAM, ratio)
    objective, ours_each, theirs_each = objective_of(operator, y, LAM), [], []
    step()
    for _ in range(TURNS):
        stamps: list[float] = []
        x0 = torch.zeros(1, *operator.dims)
        primal_dual(
            objective,
            x0,
            max_steps=20,
            tol=0.0,
            callback=lambda _, x: stamps.append(time.perf_counter()),  # noqa: B023
        )
        ours_each.append((stamps[19] - stamps[9]) / 10)
        theirs_each.append(seconds(lambda: [step() for _ in range(5)]) / 5)
    return ours_each, theirs_each


def main() -> None:
    torch.set_num_threads(1)
    ratio, of_ratios = best_ratio()
    operator, y = problem(LARGE)
    objective = objective_of(operator, y, LAM)
    as_torch(operator).norm()  # both need it, and once
    ours = our_images(objective, operator, REFERENCE)
    minimum = float(objective(ours[-1]))
    n_ours = steps_needed(ours, objective, minimum)
    n_theirs = steps_needed(their_images(operator, y, LAM, ratio, LONGEST), objective, minimum)
    ours_each, theirs_each = seconds_per_step(operator, y, ratio)
    per_step = float(np.median(np.array(ours_each) / np.array(theirs_each)))
    figures = {
        "lam": LAM,
        "minimum": minimum,
        "psnr": float(psnr(shepp_logan(LARGE[0])[None], ours[-1].numpy(), data_range=1.0)[0]),
        "relative change of the objective in the last 50 steps": float(objective(ours[-51])) / minimum - 1,
        "steps": n_ours,
        "their steps": n_theirs or f"more than {LONGEST}",
        "their ratio of steps": ratio,
        "their steps on the small problem by ratio": of_ratios,
        "seconds per step": float(np.median(ours_each)),
        "their seconds per step": float(np.median(theirs_each)),
        "ratio of seconds per step": per_step,
        "ratio of seconds": per_step * n_ours / (n_theirs or LONGEST) if n_ours else None,
        "target_ratio_of_seconds": 0.5,
    }
    write("projector_tv", figures, seeds=[SEED])


if __name__ == "__main__":
    main()

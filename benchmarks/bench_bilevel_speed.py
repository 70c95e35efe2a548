"""Costs of a bilevel training step, compared with an unroll and with the loop of the comparative study.

The unroll differentiates through 200 gradient steps; the implicit step takes the same 200 and solves one
linear system. The study's loop does the implicit step with torch's own operations: the energy is
differentiated anew for each product with the Hessian, and once more for each parameter tensor.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _record import write
from torch import Tensor, nn

from skinverse.datasets import load_photographs
from skinverse.energies import ModuleEnergy, RidgeEnergy, WeightedEnergy
from skinverse.functionals import EnergyFunctional, LeastSquares
from skinverse.solvers import accelerated_gradient, implicit, minres

SIGMA, SEED, BATCH, SIDE, N_STEPS, STEP, LAM = 0.1, 0, 8, 64, 200, 0.1, 0.1
TOL, LINEAR_TOL = 1e-4, 1e-3


class PlainRidge(nn.Module):
    """The formula of the weighted ridge in torch's own operations, its spectral norm at each evaluation."""

    def __init__(self, start: RidgeEnergy) -> None:
        super().__init__()
        self.filters, self.log_steepness = start.filters, start.log_steepness
        self.log_sharpness = start.log_sharpness

    def forward(self, x: Tensor) -> Tensor:
        centred = self.filters - self.filters.mean((-2, -1), keepdim=True)
        norm = torch.fft.rfft2(centred, s=(SIDE, SIDE)).abs().square().sum(0).max().sqrt()
        s, beta = self.log_steepness.exp().view(1, -1, 1, 1), 1 + self.log_sharpness.exp()
        u = s * F.conv2d(F.pad(4.0 * x, (3, 3, 3, 3), mode="circular"), centred / norm)
        psi = F.huber_loss(beta * u, 0 * u, reduction="none") / beta
        psi = psi - F.huber_loss(u, 0 * u, reduction="none")
        return LAM / 16 * (psi / s.square()).flatten(1).sum(1)


def pieces() -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(load_photographs(SIDE, n_patches=BATCH, random_state=SEED))[:, None]
    return x, x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))


def ridge() -> WeightedEnergy:
    energy = WeightedEnergy(RidgeEnergy(), scale=4.0)
    energy.log_weight.data.fill_(np.log(LAM))
    return energy


def unrolled(x: Tensor, y: Tensor) -> None:
    energy, z = ridge(), y
    for _ in range(N_STEPS):
        z = z - STEP * (z - y + energy.value_and_grad(z)[1])
    (z - x).square().sum().backward()


def implicitly(x: Tensor, y: Tensor) -> None:
    energy, z = ridge(), y
    with torch.no_grad():
        for _ in range(N_STEPS):
            z = z - STEP * (z - y + energy.value_and_grad(z)[1])
    objective = LeastSquares(None, y) + EnergyFunctional(energy)
    (implicit(objective, z, tol=LINEAR_TOL) - x).square().sum().backward()


def our_step(x: Tensor, y: Tensor) -> None:
    objective = LeastSquares(None, y) + EnergyFunctional(ridge())
    z = accelerated_gradient(objective, y, tol=TOL).x
    (implicit(objective, z, tol=LINEAR_TOL) - x).square().sum().backward()


def study_step(x: Tensor, y: Tensor) -> None:
    """The same lower level and linear solver, everything differentiated anew each time."""
    energy = PlainRidge(RidgeEnergy())
    objective = LeastSquares(None, y) + EnergyFunctional(ModuleEnergy(energy, 1))
    z = accelerated_gradient(objective, y, tol=TOL).x

    def gradient(z: Tensor) -> Tensor:
        value = (z - y).square().sum() / 2 + energy(z).sum()
        return torch.autograd.grad(value, z, create_graph=True)[0]

    def hessian(v: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            return torch.autograd.grad(gradient(at), at, v)[0]

    w = minres(hessian, z - x, tol=LINEAR_TOL).x
    for p in energy.parameters():
        at = z.detach().requires_grad_()
        p.grad = torch.autograd.grad(gradient(at), p, -2 * w)[0]


WAYS = {f.__name__: f for f in (unrolled, implicitly, our_step, study_step)}


def seconds(step: Callable[[Tensor, Tensor], None], x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    step(x, y)
    return time.perf_counter() - start


def memory(name: str) -> float:
    """GiB that a step adds to a process of its own."""
    found = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return float(found.stdout)


def alone(name: str) -> None:
    torch.set_num_threads(1)
    x, y = pieces()
    before = peak()
    WAYS[name](x, y)
    print((peak() - before) / 2**20)


def peak() -> int:
    """Most KiB that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    torch.set_num_threads(2)
    x, y = pieces()
    times = {name: float(np.median([seconds(step, x, y) for _ in range(3)])) for name, step in WAYS.items()}
    held = {name: memory(name) for name in ("unrolled", "implicitly")}
    figures = {
        "seconds": times,
        "gib": held,
        "implicit_to_unrolled": times["implicitly"] / times["unrolled"],
        "memory_implicit_to_unrolled": held["implicitly"] / held["unrolled"],
        "our_step_to_study": times["our_step"] / times["study_step"],
        "targets": {
            "implicit_to_unrolled": 0.7,
            "memory_implicit_to_unrolled": 0.2,
            "our_step_to_study": 1.0,
        },
    }
    write("bilevel_speed", figures, seeds=[SEED])


if __name__ == "__main__":
    alone(sys.argv[1]) if sys.argv[1:] else main()

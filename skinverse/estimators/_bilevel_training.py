"""The two levels of bilevel learning, and how smooth the regularizer is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from scipy.linalg import eigvalsh_tridiagonal
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse._batch import dot, expand, norm
from skinverse.estimators._calibration import inside
from skinverse.estimators._learning import fidelity, patches, rms
from skinverse.functionals import (
    ConvexCritic,
    Critic,
    Functional,
    GradientStepCritic,
    Learned,
    ModuleCritic,
    REDCritic,
    RidgeCritic,
    SmoothCritic,
    WeightedCritic,
    as_channels,
)
from skinverse.networks import DnCNN
from skinverse.operators import LinearMap
from skinverse.solvers import (
    Hessian,
    Solution,
    conjugate_gradient,
    implicit,
    jacobian_free,
    minres,
)

Bounds = tuple[float | None, float | None] | None
Solve = Callable[[Functional, Functional, Tensor, float], Solution]
Measure = Callable[[Tensor], Tensor]

LOSSES: dict[str, Measure] = {"l2": lambda error: error.abs().square(), "l1": torch.abs}
REGULARIZERS: dict[str, Callable[[int], Critic]] = {
    "ridge": RidgeCritic,
    "convex_ridge": lambda n_channels: RidgeCritic(n_channels, convex=True),
    "convex": ConvexCritic,
    "red": lambda n_channels: REDCritic(DnCNN(n_channels)),
    "gradient_step": lambda n_channels: GradientStepCritic(DnCNN(n_channels)),
}

# Part of the reconstructions in training that start anew.
_ANEW = 0.1
# Tolerance of the linear systems, and how much looser both levels start than they end.
_LINEAR_TOL, _LOOSE = 1e-3, 10.0
# Products with a Hessian that measure its spectrum.
_N_LANCZOS = 100
# Growth and shrinkage of the steps that look for the steepest change, and its first length.
_GROW, _SHRINK, _LENGTH = 1.3, 1 / 1.3, 0.1
# Excess over the bound that is worth a warning.
_VIOLATED = 1.2
# Probe of the divergence, relative to the noise.
_PROBE = 0.1


class LowerLevel:
    """Reconstructions, differentiable in the regularizer: ``argmin_x 1/2 ||A x - y||^2 + R(x)``.

    Its tolerances tighten by a factor of ten while ``progress`` goes from 0 to 1. Failures are counted.
    """

    def __init__(self, solve: Solve, hypergradient: str, bounds: Bounds, max_steps: int, tol: float) -> None:
        self.solve, self.hypergradient, self.bounds = solve, hypergradient, bounds
        self.max_steps, self.tol = max_steps, tol
        self.n_failed, self.n_solved, self.worst = 0, 0, 0.0

    def __call__(self, misfit: Functional, R: Functional, x0: Tensor, progress: float) -> Tensor:
        loose = _LOOSE ** (1 - progress)
        solution = self.solve(misfit, R, x0, loose * self.tol)
        if not torch.is_grad_enabled():
            return solution.x
        self._count(solution)
        free = inside(solution.x, self.bounds)
        if self.hypergradient == "jacobian_free":
            return jacobian_free(misfit + R, solution.x, solution.extra["step"], free=free)
        return implicit(
            misfit + R,
            solution.x,
            free=free,
            solve=conjugate_gradient if self.hypergradient == "cg" else minres,
            max_steps=self.max_steps,
            tol=loose * _LINEAR_TOL,
        )

    def warn(self) -> None:
        """Say how many reconstructions did not converge."""
        if self.n_failed:
            warnings.warn(
                f"BilevelRegularizer: {self.n_failed} of {self.n_solved} images in training did not converge "
                f"at the lower level (largest residual {self.worst:.1e}): raise max_steps or tol",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _count(self, solution: Solution) -> None:
        failed = ~solution.converged
        self.n_solved += len(failed)
        self.n_failed += int(failed.sum())
        self.worst = max([self.worst, *solution.residual[failed].tolist()])


class UpperLevel:
    """Loss of each reconstruction, the mean over its pixels, and the price of a regularizer too rough.

    For denoising, images and data are cut to patches; else reconstructions start where they ended the last
    time, and one in ten anew: what ``predict`` meets on its longer way would otherwise stay unseen.
    Everything is measured in ``unit``, the spread of the images' values.
    """

    def __init__(
        self,
        lower: LowerLevel,
        A: LinearMap,
        data: Tensor,
        starts: Tensor,
        *,
        loss: str,
        noise_std: float | None,
        unit: float,
        patch_size: int | None,
        smoothness: Smoothness | None,
        n_calls: int,
    ) -> None:
        self.lower, self.A, self.data, self.first, self.last = lower, A, data, starts, starts.clone()
        self.loss, self.noise_std, self.unit, self.patch_size = loss, noise_std, unit, patch_size
        self.smoothness, self.n_calls, self.called = smoothness, n_calls, 0

    def __call__(self, module: WeightedCritic, images: Tensor, index: Tensor) -> Tensor:
        self.called += module.training
        cut = self.A.identity and self.patch_size is not None
        x, y = self._patches(images, index) if cut else (images, self.data[index])
        misfit, R = fidelity(self.A, y), Learned(module)
        progress = min(1.0, self.called / max(1, self.n_calls))
        x_hat = self.lower(misfit, R, y if self.A.identity else self._starts(index), progress)
        if not self.A.identity:
            self.last[index] = x_hat.detach()
        if self.loss == "sure":
            halves = cut and self.data.is_complex()  # real and imaginary part, each with half of the noise
            value = self._risk(y, x_hat, R, progress, 2**-0.5 if halves else 1.0)
        else:
            value = LOSSES[self.loss]((x_hat - x) / self.unit).flatten(1).mean(1)
        if self.smoothness is None or not torch.is_grad_enabled():
            return value
        return value + self.smoothness(module, as_channels(x), index)

    def risk(self, module: WeightedCritic, images: Tensor, index: Tensor) -> float:
        """Mean loss, without derivatives."""
        with torch.no_grad():
            return float(self(module, images, index).mean())

    def _starts(self, index: Tensor) -> Tensor:
        anew = torch.rand(len(index), device=self.first.device) < _ANEW
        shape = -1, *[1] * (self.first.ndim - 1)
        return torch.where(anew.reshape(shape), self.first[index], self.last[index])

    def _patches(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([as_channels(images), as_channels(self.data[index])], 1)
        x, y = patches(both, self.patch_size).chunk(2, 1)
        return x.contiguous(), y.contiguous()

    def _risk(self, y: Tensor, x_hat: Tensor, R: Functional, progress: float, part: float) -> Tensor:
        """Stein's estimate of ``||A x_hat - A x||^2``, from the measurements alone."""
        assert self.noise_std is not None  # checked by the estimator
        A, noise_std = self.A, part * self.noise_std
        length = _PROBE * noise_std
        probe = torch.randn_like(y)
        near = self.lower(fidelity(A, y + length * probe), R, x_hat.detach(), progress)
        seen, moved = (z if A.identity else A(z) for z in (x_hat, near - x_hat))
        divergence = dot(probe, moved) / length
        variance = noise_std**2
        total = norm(seen - y).square() + variance * (2 * divergence - y[0].numel())
        return total / (y[0].numel() * self.unit**2)


class Smoothness:
    """``xi (max_d ||grad s(x) - grad s(x + d)|| / ||d|| - beta)_+`` at the training images.

    Every image keeps its ``d``, relative to its own norm, and a step length; each call takes one step of
    steepest ascent, accepted where the quotient grows.

    References
    ----------
    L. Bungert, R. Raab, T. Roith, L. Schwinn and D. Tenbrinck, CLIP: cheap Lipschitz training of neural
    networks, SSVM, 2021.
    """

    def __init__(self, n_images: int, weight: float, patch_size: int | None) -> None:
        self.weight, self.patch_size = weight, patch_size
        self.directions: dict[tuple[int, ...], Tensor] = {}
        self.steps = torch.ones(n_images)

    def __call__(self, module: WeightedCritic, x: Tensor, index: Tensor) -> Tensor:
        smooth: Any = module.critic
        whole = self.patch_size is not None and max(x.shape[-2:]) > self.patch_size
        x = module.log_scale.exp() * (patches(x, self.patch_size) if whole else x)
        direction = self._ascend(smooth, x, index)
        excess = _quotient(smooth, x, direction) - smooth.beta
        return self.weight * excess.clamp_min(0)

    def _ascend(self, smooth: SmoothCritic, x: Tensor, index: Tensor) -> Tensor:
        if tuple(x.shape[1:]) not in self.directions:
            self.directions[tuple(x.shape[1:])] = _random(len(self.steps), x)
        known = self.directions[tuple(x.shape[1:])]
        size = expand(norm(x) + (norm(x) == 0), x)
        old = (size * known[index.cpu()].to(x)).requires_grad_()
        quotient = _quotient(smooth, x.detach(), old)
        (slope,) = torch.autograd.grad(quotient.sum(), old)
        step = self.steps[index.cpu()].to(x)
        length = step * norm(old) / norm(slope).clamp_min(torch.finfo(x.dtype).tiny)
        new = (old + expand(length, old) * slope).detach()
        with torch.no_grad():
            grew = _quotient(smooth, x, new) > quotient
        best = torch.where(expand(grew, old), new, old.detach())
        self.steps[index.cpu()] = torch.where(grew, _GROW * step, _SHRINK * step).to(self.steps)
        relative = best / size
        known[index.cpu()] = (relative / expand(norm(relative).clamp_min(1), relative)).to(known)
        return best


def _random(n: int, x: Tensor) -> Tensor:
    """A direction for each of ``n`` images, relative to their norms."""
    found = torch.randn(n, *x.shape[1:])
    return _LENGTH * found / expand(norm(found), found)


def _quotient(smooth: SmoothCritic, x: Tensor, direction: Tensor) -> Tensor:
    change = smooth.smooth_gradient(x + direction) - smooth.smooth_gradient(x)
    return norm(change) / norm(direction).clamp_min(torch.finfo(x.dtype).tiny)


class ProximalFidelity(Functional):
    """``1/2 ||A x - y||^2`` by its prox, ``(I + t A^*A)^-1 (x + t A^* y)``."""

    proximable = True

    def __init__(self, misfit: Any) -> None:
        self.misfit = misfit

    def __call__(self, x: Tensor) -> Tensor:
        return self.misfit(x)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        A, y = self.misfit.A, self.misfit.y
        if A is None:
            return self.misfit.prox(x, step)
        t = expand(step, x)

        def back(u: Tensor) -> Tensor:
            z: Tensor = A.adjoint(u)
            return z if x.is_complex() or not z.is_complex() else z.real

        return conjugate_gradient(lambda z: z + t * back(A(z)), x + t * back(y), x, max_steps=100, tol=1e-6).x

    def select(self, index: Tensor) -> Functional:
        return ProximalFidelity(self.misfit.select(index))


def linear_solver(hypergradient: str, smooth: SmoothCritic) -> str:
    """Conjugate gradients only where the lower level is known to be convex."""
    bounded = smooth.certified and smooth.beta is not None and smooth.beta <= 1 + smooth.alpha
    convex = bounded or smooth.critic.weak_convexity() == 0  # whatever the weights will be
    if hypergradient == "auto":
        return "cg" if convex else "minres"
    wanted = smooth.beta is not None and smooth.beta <= 1 + smooth.alpha
    if hypergradient == "cg" and not convex and not wanted:
        message = (
            f'hypergradient="cg" needs beta <= 1 + alpha, got beta={smooth.beta}: MINRES is used instead'
        )
        warnings.warn(message, stacklevel=2)
        return "minres"
    return hypergradient


def noise_pulled(A: LinearMap, data: Tensor, x0: Tensor, noise_std: Any) -> float:
    """Root mean square of ``A^* noise`` per pixel."""
    return float(noise_std) * rms(fidelity(A, torch.randn_like(data)).grad(torch.zeros_like(x0)))


def measure(module: WeightedCritic, x: Tensor, patch_size: int | None) -> tuple[float, float, bool]:
    """Weak convexity of ``r``, Lipschitz constant of ``grad s``, and whether both are proven."""
    smooth: Any = module.critic
    known = smooth.weak_convexity()
    if smooth.certified:
        return float(known), float(smooth.beta), True
    r = WeightedCritic(smooth).to(module.log_scale)
    r.log_scale.copy_(module.log_scale)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        some = patches(x.to(module.log_scale), patch_size)
    low, high = curvature(Learned(r), some)
    centre = 1 + smooth.alpha
    found = max(abs(centre - low), abs(centre - high))
    if smooth.beta is not None and found > _VIOLATED * smooth.beta:
        message = (
            f"beta={smooth.beta} is violated: measured {found:.3g}; raise smoothness_weight or train longer"
        )
        warnings.warn(message, stacklevel=2)
    return max(0.0, -low) if known is None else float(known), found, False


def curvature(functional: Functional, x: Tensor) -> tuple[float, float]:
    """Smallest and largest eigenvalue of the Hessian at the images, from inside, by Lanczos' method."""
    hessian, tiny = Hessian(functional, x), torch.finfo(x.dtype).tiny
    v, old, beta = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x), x * 0, 0.0
    v = v / v.norm()
    diagonal, beside = [], []
    for _ in range(min(_N_LANCZOS, x.numel())):
        p = hessian(v) - beta * old
        diagonal.append(float((v * p).sum()))
        p = p - diagonal[-1] * v
        beta = float(p.norm())
        beside.append(beta)
        if beta <= 1e-6 * max(map(abs, diagonal)) + tiny:  # an invariant subspace
            break
        v, old = p / beta, v
    values = eigvalsh_tridiagonal(diagonal, beside[: len(diagonal) - 1])
    return float(values[0]), float(values[-1])


def make_critic(regularizer: Any, n_channels: int, beta: float | None) -> Critic:
    """The untrained energy; a ridge is convex where the bound asks for it."""
    if isinstance(regularizer, nn.Module):
        return ModuleCritic(copy.deepcopy(regularizer), n_channels)
    if regularizer == "ridge" and beta is not None and beta <= 1:
        regularizer = "convex_ridge"
    return REGULARIZERS[regularizer](n_channels)

"""The maps whose fixed points are reconstructions, and how they are trained."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse._batch import norm
from skinverse.estimators._learning import Loss, patches
from skinverse.functionals import as_channels, from_channels
from skinverse.networks import DnCNN, GradientStepCNN, UNet, prepared
from skinverse.operators import LinearMap
from skinverse.solvers import (
    Solution,
    anderson,
    broyden,
    conjugate_gradient,
    fixed_point,
    gmres,
    join,
    neumann,
    part,
    picard,
)

Images = Callable[[Tensor], Tensor]
# `f(z, b)` with `b = A^* y`.
Map = Callable[[Tensor, Tensor], Tensor]

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dncnn": (DnCNN, {}),
    "dncnn_c4": (DnCNN, {"group": "C4"}),
    "dncnn_d4": (DnCNN, {"group": "D4"}),
    "unet": (UNet, {}),
    "gradient_step": (GradientStepCNN, {}),
    "gradient_step_c4": (GradientStepCNN, {"group": "C4"}),
    "gradient_step_d4": (GradientStepCNN, {"group": "D4"}),
}
ITERATIONS = ("proximal", "gradient", "admm", "contractive")
SOLVERS = {"anderson": anderson, "picard": picard, "broyden": broyden}
BACKWARD: dict[str, Any] = {
    "gmres": gmres,
    "anderson": partial(neumann, forward=anderson),
    "neumann": neumann,
    "jacobian_free": neumann,
    "unroll": None,
}
_BACKWARD_STEPS, _BACKWARD_TOL = 30, 1e-3
# Noise of the denoiser to start from, at most, relative to the spread of the images' values.
_NOISE = 0.2
# Relative change in the last unrolled step that is no reconstruction any more.
_MOVED = 0.5
# Squared error, relative to the images and to their spread, of a training that diverges.
_DIVERGED = 1e4
# Linear systems of ADMM: steps for a weight of one, tolerance.
_CG_STEPS, _CG_TOL = 10, 1e-6


class Equilibrium(nn.Module):
    """A network, a step ``eta``, a weight ``lam``, a scale ``s`` in ``h(s z) / s``, and the unit of images.

    ``shrunk`` is the constant to which the Lipschitz constant of the network is scaled, negative where it is
    not. The unit is zero until something has been learned.
    """

    unit: Tensor
    shrunk: Tensor

    def __init__(
        self, network: nn.Module, lam: float, *, n_channels: int, shrunk: float | None = None
    ) -> None:
        super().__init__()
        self.network, self.n_channels = network, n_channels
        self.log_eta = nn.Parameter(torch.zeros(()))
        self.log_lam = nn.Parameter(torch.tensor(math.log(max(lam, 1e-30))))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("unit", torch.zeros(()))
        self.register_buffer("shrunk", torch.tensor(-1.0 if shrunk is None else shrunk))

    def denoiser(self) -> Images:
        """The network on images of any kind, its kernels made."""
        network: Any = self.network
        h, scale = prepared(network), self.log_scale.exp()
        factor = self.shrunk / max(network.lipschitz, 1e-30) if self.contracts else 1.0

        def denoise(z: Tensor) -> Tensor:
            seen = self._seen(z)
            found = h(scale * seen)
            if found.shape != seen.shape:
                raise ValueError(
                    "network: expected a module that keeps the shape (images, channels, height, width), got "
                    f"{tuple(found.shape)} from {tuple(seen.shape)}"
                )
            return factor / scale * from_channels(found, z)

        return denoise

    def _seen(self, z: Tensor) -> Tensor:
        """Channels as the network knows them; one of a single channel looks at all of them, one by one."""
        channels = as_channels(z)
        if self.n_channels == 1:
            return channels.flatten(0, 1)[:, None]
        if channels.shape[1] != self.n_channels:
            raise ValueError(
                f"the network was trained on images of {self.n_channels} channels (a complex one counts "
                f"twice), got {channels.shape[1]} in images {tuple(z.shape[1:])}"
            )
        return channels

    def map(self, iteration: str, normal: Images, dims: tuple[int, ...]) -> Map:
        """The map of an iteration for a normal operator ``A^* A`` of norm 1."""
        h, lam = self.denoiser(), self.log_lam.exp()
        if iteration == "proximal":
            return proximal(h, normal, self.log_eta.exp())
        if iteration == "admm":
            return admm(h, normal, lam, dims)
        return gradient(h, normal, 1 / (1 + lam), lam)

    @property
    def contracts(self) -> bool:
        """Whether the network is scaled to a Lipschitz constant below one."""
        return bool(self.shrunk >= 0)

    def scalars(self, iteration: str, *, fit_lam: bool) -> list[nn.Parameter]:
        """Those of scale, step and weight that an iteration has and that are to be learned."""
        if iteration == "proximal":
            return [self.log_scale, self.log_eta]
        return [self.log_scale, self.log_lam] if fit_lam else [self.log_scale]

    def contraction(self) -> float | None:
        """``1 - eta lam (1 - c)`` with ``eta = 1 / (1 + lam)``, where the network is scaled to ``c``."""
        lam = math.exp(self.log_lam.item())
        return 1 - lam / (1 + lam) * (1 - self.shrunk.item()) if self.contracts else None


def gradient(h: Images, normal: Images, eta: Tensor, lam: Tensor) -> Map:
    """``z - eta (A^*(A z - y) + lam (z - h(z)))``."""
    return lambda z, b: z - eta * (normal(z) - b + lam * (z - h(z)))


def proximal(h: Images, normal: Images, eta: Tensor) -> Map:
    """``h(z - eta A^*(A z - y))``."""
    return lambda z, b: h(z - eta * (normal(z) - b))


def admm(h: Images, normal: Images, lam: Tensor, dims: tuple[int, ...]) -> Map:
    """``x = (A^* A + lam)^-1 (A^* y + lam (z - u))``, ``z <- h(x + u)``, ``u <- u + x - z`` for ``z, u``."""

    def f(pair: Tensor, b: Tensor) -> Tensor:
        z, u = part(pair, dims, dims)
        x = resolvent(b + lam * (z - u), lam, normal)
        denoised = h(x + u)
        return join(denoised, u + x - denoised)

    return f


def resolvent(r: Tensor, lam: Tensor, normal: Images) -> Tensor:
    """``(A^* A + lam)^-1 r``, differentiable in all three."""
    x = _Resolvent.apply(r, lam, normal)
    seen = normal(x.detach()) if torch.is_grad_enabled() else x.detach()
    if not seen.requires_grad:  # the operator has no parameters
        return x
    return x - _Resolvent.apply(seen - seen.detach(), lam.detach(), normal)


class _Resolvent(torch.autograd.Function):
    """``(B + lam)^-1 r`` by conjugate gradients; differentiated in ``r`` and ``lam`` by solving once more."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, lam: Tensor, normal: Images) -> Tensor:
        def regularized(v: Tensor) -> Tensor:
            return normal(v) + lam * v

        n_steps = math.ceil(_CG_STEPS / math.sqrt(max(lam.item(), 1e-4)))  # the condition is (1 + lam) / lam
        x = conjugate_gradient(regularized, r, max_steps=n_steps, tol=_CG_TOL).x
        ctx.normal = normal
        ctx.save_for_backward(x, lam)
        return x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, None]:
        x, lam = ctx.saved_tensors
        w = _Resolvent.apply(v, lam, ctx.normal)
        return w, -(w.conj() * x).real.sum(), None


class Equation:
    """The equation ``z = f(z, b)`` of given measurements, solved to its end or unrolled.

    Everything is in units in which the operator has norm 1 and images a standard deviation of 1.
    """

    def __init__(self, A: LinearMap, iteration: str) -> None:
        self.A, self.iteration = A, iteration
        self.square = 1.0 if A.identity else (A.norm() ** 2 or 1.0)

    def normal(self, z: Tensor) -> Tensor:
        """``A^* A z``."""
        return z if self.A.identity else self._like(self.A.adjoint(self.A(z)), z) / self.square

    def pulled(self, y: Tensor, like: Tensor, unit: Tensor) -> Tensor:
        """``A^* y``."""
        return (y if self.A.identity else self._like(self.A.adjoint(y), like)) / (self.square * unit)

    def start(self, x0: Tensor, unit: Tensor) -> Tensor:
        """The variables of which ``x0`` is the image."""
        z = x0 / unit
        return join(z, torch.zeros_like(z)) if self.iteration == "admm" else z

    def image(self, z: Tensor, like: Tensor, unit: Tensor) -> Tensor:
        """The image that the variables show."""
        x = part(z, like.shape[1:], like.shape[1:])[0] if self.iteration == "admm" else z
        return x * unit

    def map(self, module: Equilibrium, like: Tensor) -> Map:
        """The map for the present weights."""
        return module.map(self.iteration, self.normal, like.shape[1:])

    @staticmethod
    def _like(back: Tensor, z: Tensor) -> Tensor:
        """Of real images, also under a complex operator, only the real part counts."""
        return back.real if back.is_complex() and not z.is_complex() else back


def unrolled(f: Map, z0: Tensor, b: Tensor, n_steps: int) -> Solution:
    """So many plain steps; an image that turns non-finite keeps its last finite iterate.

    The residual is the last relative change; who moved by more than half of itself has not converged.
    """
    z, solution = z0, Solution.direct(z0)
    finite, residual = solution.converged, solution.residual
    for _ in range(n_steps):
        new = f(z, b)
        finite = finite & torch.isfinite(norm(new))
        residual = (norm(new - z) / norm(new).clamp_min(torch.finfo(residual.dtype).tiny)).detach()
        z = torch.where(finite.reshape(-1, *[1] * (z.ndim - 1)), new, z)
    residual = torch.where(finite, residual, torch.inf)
    steps, converged = solution.n_steps + n_steps, residual < _MOVED
    return replace(solution, x=z, n_steps=steps, converged=converged, residual=residual)


def solved(
    f: Map, z0: Tensor, b: Tensor, solver: str, backward: str, *, max_steps: int, tol: float
) -> Solution:
    """The fixed point, or so many steps towards it, differentiable in weights and in ``b``."""
    if backward == "unroll":
        return unrolled(f, z0, b, max_steps)
    return fixed_point(
        f,
        z0.detach(),
        given=(b,),
        forward=SOLVERS[solver],
        backward=BACKWARD[backward],
        max_steps=max_steps,
        tol=tol,
        backward_steps=0 if backward == "jacobian_free" else _BACKWARD_STEPS,
        backward_tol=_BACKWARD_TOL,
    )


class EquilibriumLoss:
    """Squared error of the fixed point, the mean over its pixels in units of the images' spread.

    For denoising, images and data are cut to patches; else iterations start where they ended the last time,
    unless they are unrolled. Images that do not converge are counted.
    """

    def __init__(
        self,
        equation: Equation,
        data: Tensor,
        starts: Tensor,
        *,
        solver: str,
        backward: str,
        jacobian_weight: float,
        patch_size: int | None,
        max_steps: int,
        tol: float,
    ) -> None:
        self.equation, self.data, self.starts, self.patch_size = equation, data, starts, patch_size
        self.solver, self.backward, self.jacobian_weight = solver, backward, jacobian_weight
        self.max_steps, self.tol = max_steps, tol
        self.variables: Tensor | None = None
        self.n_failed, self.n_solved, self.worst = 0, 0, 0.0

    def __call__(self, module: Equilibrium, images: Tensor, index: Tensor) -> Tensor:
        x, y, x0 = self._members(images, index)
        f, b = self.equation.map(module, x0), self.equation.pulled(y, x0, module.unit)
        z0 = self.equation.start(x0, module.unit)
        solution = self._solve(f, z0, b, index)
        z = solution.x
        error = (self.equation.image(z, x0, module.unit) - x) / module.unit
        value = error.abs().square().flatten(1).mean(1)
        # Where the map gives no numbers at all, or nothing like images, the loss is none either, and the
        # training ends.
        most = _DIVERGED * (x / module.unit).abs().square().flatten(1).mean(1).clamp_min(1)
        value = torch.where(torch.isfinite(solution.residual) & (value < most), value, torch.nan)
        if not self.jacobian_weight or not torch.is_grad_enabled():
            return value
        return value + self.jacobian_weight * jacobian_size(f, z.detach(), b)

    def _members(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not (self.equation.A.identity and self.patch_size is not None):
            return images, self.data[index], self.starts[index]
        both = torch.cat([as_channels(images), as_channels(self.data[index])], 1)
        x, y = patches(both, self.patch_size).chunk(2, 1)
        return x.contiguous(), y.contiguous(), y.contiguous()

    def _solve(self, f: Map, z0: Tensor, b: Tensor, index: Tensor) -> Solution:
        cut = self.equation.A.identity and self.patch_size is not None
        goes_on = not cut and self.backward != "unroll"
        if goes_on:
            if self.variables is None:
                self.variables = self.equation.start(self.starts, torch.ones_like(self.starts[:1]))
                self.known = torch.zeros(len(self.starts), dtype=torch.bool, device=z0.device)
            known = self.known[index].reshape(-1, *[1] * (z0.ndim - 1))
            z0 = torch.where(known, self.variables[index], z0)
        solution = solved(f, z0, b, self.solver, self.backward, max_steps=self.max_steps, tol=self.tol)
        if goes_on and self.variables is not None:
            self.variables[index], self.known[index] = solution.x.detach(), solution.converged
        if self.backward != "unroll" and torch.is_grad_enabled():
            self._count(solution)
        return solution

    def _count(self, solution: Solution) -> None:
        failed = ~solution.converged
        self.n_solved += len(failed)
        self.n_failed += int(failed.sum())
        self.worst = max([self.worst, *solution.residual[failed].tolist()])

    def warn(self) -> None:
        """Say how many images did not converge."""
        if self.n_failed:
            warnings.warn(
                f"DeepEquilibriumRecon: {self.n_failed} of {self.n_solved} images in training did not reach "
                f"a fixed point (largest residual {self.worst:.1e}): raise max_steps or tol",
                ConvergenceWarning,
                stacklevel=2,
            )


def jacobian_size(f: Map, z: Tensor, b: Tensor) -> Tensor:
    """Hutchinson's estimate of ``||df/dz||_F^2`` of each image, per number."""
    with torch.enable_grad():
        z = z.requires_grad_()
        probe = torch.randn_like(z)
        (pulled,) = torch.autograd.grad(f(z, b), z, probe, create_graph=True)
    return norm(pulled).square() / z[0].numel()


def denoiser_loss(patch_size: int | None) -> Loss:
    """``||h(x + noise) - x||^2`` per pixel with noise of a random level."""

    def loss(module: Equilibrium, images: Tensor, _: Tensor) -> Tensor:
        x = patches(images, patch_size) / module.unit
        noise_std = _NOISE * torch.rand(len(x), 1, 1, 1, device=x.device)
        return (module.denoiser()(x + noise_std * torch.randn_like(x)) - x).square().flatten(1).mean(1)

    return loss


def make_network(network: Any, iteration: str, n_channels: int) -> nn.Module:
    """The untrained network; by default a DnCNN, or its nonexpansive kin where the map has to contract."""
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)
    default = "gradient_step" if iteration == "contractive" else "dncnn"
    make, settings = NETWORKS[network or default]
    made: nn.Module = make(n_channels, **settings)
    return made


def proven(network: Any) -> bool:
    """Whether a network, or what has such a name, has a known Lipschitz constant."""
    if isinstance(network, nn.Module):
        return getattr(network, "lipschitz", None) is not None
    return network is None or NETWORKS[network][0].lipschitz is not None

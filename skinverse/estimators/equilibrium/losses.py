"""What deep equilibrium models are trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import as_channels, expand, norm
from skinverse.estimators._learned import Failures
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import NormalisedFidelity
from skinverse.estimators.equilibrium.equation import Equation
from skinverse.estimators.equilibrium.maps import Map
from skinverse.estimators.equilibrium.module import Equilibrium
from skinverse.solvers import Solution
from skinverse.training import Loss, random_patches

# Largest noise that is to be removed in the pretraining, relative to the spread of the images.
_NOISE = 0.2
# Squared error, relative to the images and to their spread, of a training that diverges.
_DIVERGED = 1e4


def denoiser_loss(patch_size: int | None) -> Loss:
    """``||h(x + noise) - x||^2`` per pixel, with noise of a random level for each image."""

    def loss(module: Equilibrium, images: Tensor) -> Tensor:
        x = random_patches(images, patch_size)
        noise_std = expand(_NOISE * torch.rand(len(x), device=x.device), x)
        return _mean_square(module.denoiser(0)(x + noise_std * torch.randn_like(x)) - x)

    return loss


class EquilibriumLoss:
    """``||x(y) - x||^2 + jacobian_weight ||df/dz||_F^2`` per number, where ``x(y)`` is the fixed point.

    ``solve(equation, z0)`` finds the fixed point; ``last``, if it is
    given, starts it where it was the last time. With a ``patch_size`` images and data are cut, which only a
    denoiser can do.
    """

    def __init__(
        self,
        problems: Problems,
        fidelities: Sequence[NormalisedFidelity],
        solve: Callable[[Equation, Tensor], Solution],
        *,
        jacobian_weight: float,
        patch_size: int | None,
        channel_axis: int | None = None,
        last: LastEquilibria | None,
        failures: Failures,
    ) -> None:
        self.problems, self.fidelities, self.solve = problems, fidelities, solve
        self.jacobian_weight, self.patch_size = jacobian_weight, patch_size
        self.channel_axis = channel_axis
        self.last, self.failures = last, failures

    def __call__(
        self, module: Equilibrium, x: Tensor, y: Tensor, which: Tensor, x0: Tensor, index: Tensor
    ) -> Tensor:
        """The loss of each image under its problem; ``x0`` are the starts, ``index`` the places among all."""
        channel_axis = self.channel_axis
        if self.patch_size is not None:
            x, y = _patches(as_channels(x, channel_axis), as_channels(y, channel_axis), self.patch_size)
            x0, channel_axis = y, 0

        def loss(fidelity: NormalisedFidelity, y: Tensor, *rows: Tensor) -> Tensor:
            return self._under(fidelity, module, channel_axis, y, *rows)

        return self.problems.each(loss, self.fidelities, which, y, x, x0, index)

    def _under(
        self,
        fidelity: NormalisedFidelity,
        module: Equilibrium,
        channel_axis: int | None,
        y: Tensor,
        x: Tensor,
        x0: Tensor,
        index: Tensor,
    ) -> Tensor:
        """The loss of the images of one problem."""
        y, weights = fidelity.weighted_data(y), fidelity.relative_weights(y)
        equation = Equation(module, fidelity.A, y, x0, channel_axis, weights)
        solution = self._solution(equation, index)
        value = _mean_square(equation.image(solution.x) - x)
        # Where the map gives no numbers, or nothing like images, the loss is none either: the training ends.
        most = _DIVERGED * _mean_square(x).clamp_min(1)
        value = torch.where(torch.isfinite(solution.residual) & (value < most), value, torch.nan)
        if self.jacobian_weight and torch.is_grad_enabled():
            size = jacobian_size(equation.f, solution.x.detach(), *equation.given)
            value = value + self.jacobian_weight * size
        return value

    def _solution(self, equation: Equation, index: Tensor) -> Solution:
        """The fixed points of the images with these indices."""
        if self.last is None:
            solution = self.solve(equation, equation.z0)
        else:
            solution = self.solve(equation, self.last.starts(index, equation.z0))
            self.last.note(index, solution)
        if torch.is_grad_enabled():
            self.failures.count(solution)
        return solution


class LastEquilibria:
    """Where the iteration of each training image ended the last time: the next one starts there.

    From one epoch to the next the weights change little, and fixed points with them.
    """

    def __init__(self, z0: Tensor) -> None:
        self.z, self.known = torch.zeros_like(z0), torch.zeros(len(z0), dtype=torch.bool, device=z0.device)

    def starts(self, index: Tensor, z0: Tensor) -> Tensor:
        """The last fixed points of some images, ``z0`` where none was reached."""
        return torch.where(expand(self.known[index], z0), self.z[index], z0)

    def note(self, index: Tensor, solution: Solution) -> None:
        """Keep the fixed points of some images."""
        self.z[index], self.known[index] = solution.x.detach(), solution.converged

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"z": self.z.clone(), "known": self.known.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.z.copy_(state["z"])
        self.known.copy_(state["known"])


def jacobian_size(f: Map, z: Tensor, *given: Tensor) -> Tensor:
    """Hutchinson's estimate of ``||df/dz||_F^2`` of each image, per number."""
    with torch.enable_grad():
        z = z.requires_grad_()
        probe = torch.randn_like(z)
        (product,) = torch.autograd.grad(f(z, *given), z, probe, create_graph=True)
    return norm(product).square() / z[0].numel()


def _patches(x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same random patch of each image and of its data."""
    x, y = random_patches(torch.cat([x, y], 1), size).chunk(2, 1)
    return x.contiguous(), y.contiguous()


def _mean_square(error: Tensor) -> Tensor:
    """Mean of the squares of each image."""
    return error.abs().square().flatten(1).mean(1)

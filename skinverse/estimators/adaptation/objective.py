"""What an adaptation minimises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from skinverse._tensors import dot, norm

# `A f(y)` of some data, for the variables as they are when it is called.
Prediction = Callable[[], Tensor]
# One number for each of these data, likewise.
Risk = Callable[[], Tensor]

# How far data are moved to see how much the prediction follows them, in units of the noise.
_PROBE = 0.3


def misfit(predict: Callable[[Tensor], Prediction], y: Tensor, unit: float) -> Risk:
    """``||A f(y) - y||^2`` of data in a unit."""
    prediction = predict(y)
    return lambda: norm((prediction() - y) / unit).square()


def stein_risk(
    predict: Callable[[Tensor], Prediction],
    y: Tensor,
    n_measured: int,
    noise_std: float,
    unit: float,
    generator: torch.Generator,
) -> Risk:
    """Stein's unbiased estimate of ``||A f(y) - A x||^2`` for ``y = A x`` with noise, of data in a unit.

    It is ``||A f(y) - y||^2 + sigma^2 (2 div (A f)(y) - m)``. The divergence is estimated by a difference in
    a random direction, ``<z - y, A f(z) - A f(y)> / t^2`` with ``z = y + t n`` for standard normal ``n``.
    """
    probe = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    sigma = noise_std / unit
    t = _PROBE * sigma
    at_y, at_z = predict(y), predict(y + _PROBE * noise_std * probe)

    def risk() -> Tensor:
        prediction = at_y()
        divergence = dot(probe, (at_z() - prediction) / unit) / t
        return norm((prediction - y) / unit).square() + sigma**2 * (2 * divergence - n_measured)

    return risk


class Objective:
    """``J(v) = max(R(v) - level, 0) + mu ||v - v_0||^2`` with the mean risk ``R(v) = 1/n sum_i r_i(v)``.

    The row ``v``, (1, size), holds all variables, which are tensors that the risks depend on; each evaluation
    writes it there. Without a level, ``J`` is ``R(v) + mu ||v - v_0||^2``.
    """

    def __init__(
        self,
        risks: Sequence[Risk],
        n_images: int,
        variables: Sequence[Tensor],
        *,
        mu: float = 0.0,
        level: float | None = None,
    ) -> None:
        self.risks, self.n_images, self.variables = risks, n_images, variables
        self.mu, self.level = mu, level
        rows = [v.detach().flatten().to(variables[0].device, torch.float64) for v in variables]
        self.start = torch.cat(rows)[None]
        self._latest: tuple[Tensor, Tensor] | None = None

    def __call__(self, v: Tensor) -> Tensor:
        """``J(v)``, which is known where it was computed last."""
        if self._latest is not None and torch.equal(v, self._latest[0]):
            return self._latest[1]
        return self.value_and_grad(v)[0]

    def value_and_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """``J(v)`` and its gradient."""
        self.write(v)
        change = v - self.start
        excess, slope = self._excess(*self._mean_risk())
        value = v.new_full((1,), excess + self.mu * float(change.square().sum()))
        self._latest = v, value
        return value, slope + 2 * self.mu * change

    def _mean_risk(self) -> tuple[float, Tensor]:
        """``R(v)`` and its gradient, a part of the data at a time."""
        mean, gradient = 0.0, torch.zeros_like(self.start)
        for risk in self.risks:
            with torch.enable_grad():
                part = risk().sum() / self.n_images
                if not part.requires_grad:
                    raise TypeError(
                        "ModelAdaptation: the reconstruction does not depend differentiably on what was "
                        "learned: a network that detaches its input or works under no_grad?"
                    )
                slopes = torch.autograd.grad(part, self.variables, materialize_grads=True)
            mean += float(part.detach())
            gradient += torch.cat([slope.flatten().to(gradient) for slope in slopes])
        return mean, gradient

    def _excess(self, risk: float, slope: Tensor) -> tuple[float, Tensor]:
        """``max(R(v) - level, 0)`` and its gradient."""
        if self.level is None:
            return risk, slope
        if risk <= self.level:
            return 0.0, torch.zeros_like(slope)
        return risk - self.level, slope

    def select(self, index: Tensor) -> Self:
        """The objective of some of the rows: there is one."""
        return self

    def write(self, v: Tensor) -> None:
        """Hand the row out to the variables."""
        with torch.no_grad():
            parts = v[0].split([variable.numel() for variable in self.variables])
            for variable, part in zip(self.variables, parts, strict=True):
                variable.copy_(part.view_as(variable))

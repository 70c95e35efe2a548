"""The weight of a regulariser, chosen image by image from the data alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skinverse._parameters import OneOf, Real, parameter
from skinverse._tensors import LinearMap, dot, expand, norm
from skinverse.estimators._units import Units
from skinverse.functionals import Functional
from skinverse.solvers import PrimalDualPath

# Weights of the search, free of units: octaves from where noise alone becomes flat to where nothing is smoothed.
_WEIGHTS = tuple(4 * 2.0**-k for k in range(22))
# Octaves without a smaller risk after which the search ends.
_PATIENCE = 2
# Length of the difference that measures divergences: data have a mean square of one.
_STEP = 1e-3
# Steps and tolerance of the search. With 30 steps for each weight, CT at 1 % of noise lost 8 dB.
_MAX_STEPS, _TOL = 100, 1e-3
# Smallest share of the data that counts as not fitted.
_LEAST_FREE = 0.03


def weight_parameter(doc: str) -> Any:
    """Declare the weight ``lam`` of a regulariser; the text says what "discrepancy" does."""
    return parameter(
        default="auto",
        allowed=Real(ge=0) | OneOf("auto", "discrepancy"),
        doc=f"""
        Weight of the regulariser, in units that depend on those of the data. "auto" chooses it per image,
        without truth: such that unseen data of the same image would be predicted best, by Stein's risk
        estimate where ``noise_std`` is given and by generalised cross-validation where it is not. {doc}""",
    )


@dataclass(frozen=True)
class Choice:
    """What was chosen for each image, free of units: weight, noise level, and the image at about it."""

    weight: Tensor  # (n,)
    noise_std: Tensor  # (n,)
    x: Tensor


def least_risk(
    units: Units,
    noise_std: Tensor | None,
    x0: Tensor,
    objective: Callable[[Units, float], Functional],
    variables: Callable[[Tensor], Tensor],
    images: Callable[[Tensor], Tensor],
) -> Choice:
    """The weight at which unseen data would be predicted best, for each image.

    The mean square error of the prediction is estimated by ``(RSS + 2 sigma^2 df) / m`` where the noise level
    is known (Stein, 1981) and by ``m RSS / (m - df)^2`` where it is not (Golub, Heath and Wahba, 1979), with
    the residual sum of squares and the degrees of freedom ``df = tr d(A x)/dy``. As in Ramani, Blu and Unser
    (2008), one random perturbation of the data measures the trace: each image is solved for together with
    its twin. Weights fall by octaves until the estimate has not fallen for three of them: cross-validation
    has a spurious minimum where everything is fitted, and large weights are solved for quickly.
    """
    n, probe = len(x0), _probe(units)
    moved = units.A(probe)
    pairs = _doubled(units, torch.stack([units.data, units.data + _STEP * moved], 1).flatten(0, 1))
    n_data = ((units.data != 0) | (moved != 0)).flatten(1).sum(1)  # zero rows of the operator measure nothing
    path = PrimalDualPath(
        variables(x0.repeat_interleave(2, 0)).unflatten(0, (n, 2)), max_steps=_MAX_STEPS, tol=_TOL
    )
    active = torch.arange(n, device=x0.device)
    risks = torch.full((n, len(_WEIGHTS)), torch.inf, dtype=torch.float64, device=x0.device)
    x, found = x0.clone(), torch.ones_like(risks[:, 0]) if noise_std is None else noise_std.double()
    for k, weight in enumerate(_WEIGHTS):
        z = path.minimise(Twins(objective(pairs, weight)).select(active))
        image, twin = images(z.flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        rss = norm(units.A(image) - units.data[active]).double().square()
        df = _share(units, image) * dot(probe[active], twin - image).double() / _STEP
        m = n_data[active].double()
        free = torch.where(m - df > _LEAST_FREE * m, m - df, torch.nan)
        level = torch.finfo(x.dtype).eps ** 2
        if noise_std is None:
            risk = (m * rss / free.square()).clamp_min(level).nan_to_num(torch.inf)
        else:
            risk = ((rss + 2 * noise_std[active].square() * df) / m).clamp_min(level)
        better = risk < risks[active].amin(1)
        risks[active, k] = risk.log()
        better = risks[active].argmin(1) == k
        x[active[better]] = image[better]
        if noise_std is None:
            found[active[better]] = (rss / free).sqrt()[better]
        going = (k - risks[active].argmin(1) < _PATIENCE).nonzero()[:, 0]
        if len(going) < len(active):
            active = active[going]
            path.select(going)
        if len(active) == 0:
            break
    return Choice(_vertex(risks).to(x.dtype.to_real()), found.to(x.dtype.to_real()), x)


def _vertex(risks: Tensor) -> Tensor:
    """The weight of least risk, by a parabola through the logarithms around the smallest one."""
    n, best = len(risks), risks.argmin(1)
    inner = best.clamp(1, risks.shape[1] - 2)
    left, middle, right = (risks[torch.arange(n), inner + i] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = torch.where(bend > 0, (left - right) / (2 * bend), 0).nan_to_num(0).clamp(-1, 1)
    at_end = best != inner
    octaves = torch.where(at_end, best, inner + shift)
    return _WEIGHTS[0] * 2.0**-octaves.double()


def _probe(units: Units) -> Tensor:
    """Random images of modulus one, the same ones whatever the data are, but for their phase."""
    back = units.A.adjoint(units.data)
    generator = torch.Generator().manual_seed(0)
    turn = torch.rand(back.shape[1:], generator=generator, dtype=torch.float64, device="cpu").to(back.device)
    if back.is_complex():
        w = torch.polar(torch.ones_like(turn), 2 * torch.pi * turn)
    else:
        w = torch.where(turn < 0.5, -1.0, 1.0)
    w = w.to(back.dtype)
    # A phase of the data, or a sign, is one of the probe: it changes nothing else.
    along = (w.conj() * back).flatten(1).sum(1)
    sign = torch.where(along == 0, 1, torch.sgn(along))
    return expand(sign, back) * w


def _share(units: Units, x: Tensor) -> float:
    """From the trace over the images to that over the data: complex numbers count twice."""
    return (2 if x.is_complex() else 1) / (2 if units.data.is_complex() else 1)


def _doubled(units: Units, data: Tensor) -> Units:
    size, base = (value.repeat_interleave(2) for value in (units.size, units.base))
    return replace(units, data=data, size=size, base=base)


class Twins(Functional):
    """A functional of 2 n images as one of n pairs, (n, 2, *dims).

    Pairs take the same steps and stop together: the difference of the two is then the derivative of what was
    computed, however far the iteration has come.
    """

    def __init__(self, functional: Functional) -> None:
        self.functional = functional
        self.smooth, self.proximable = functional.smooth, functional.proximable

    def __call__(self, z: Tensor) -> Tensor:
        return _summed(self.functional(z.flatten(0, 1)))

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return self.functional.prox(z.flatten(0, 1), _twice(step)).unflatten(0, (-1, 2))

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        return self.functional.prox_conjugate(u.flatten(0, 1), _twice(step)).unflatten(0, (-1, 2))

    def conjugate(self, u: Tensor) -> Tensor | None:
        value = self.functional.conjugate(u.flatten(0, 1))
        return None if value is None else _summed(value)

    def split(self) -> tuple[Functional, LinearMap | None]:
        outer, linear = self.functional.split()
        return Twins(outer), None if linear is None else _TwinMap(linear)

    def select(self, index: Tensor) -> Functional:
        return Twins(self.functional.select(torch.stack([2 * index, 2 * index + 1], 1).flatten()))

    @property
    def summands(self) -> tuple[Functional, ...]:
        return tuple(Twins(f) for f in self.functional.summands)


class _TwinMap:
    """A linear map of pairs."""

    def __init__(self, linear: LinearMap) -> None:
        self.linear = linear

    def __call__(self, z: Tensor) -> Tensor:
        return self.linear(z.flatten(0, 1)).unflatten(0, (-1, 2))

    def adjoint(self, u: Tensor) -> Tensor:
        return self.linear.adjoint(u.flatten(0, 1)).unflatten(0, (-1, 2))

    def norm(self) -> float:
        return self.linear.norm()


def _summed(values: Tensor) -> Tensor:
    return values.unflatten(0, (-1, 2)).sum(1)


def _twice(step: Tensor | float) -> Tensor | float:
    return step.repeat_interleave(2) if isinstance(step, Tensor) and step.ndim else step

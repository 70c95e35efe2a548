"""The fidelity of counts that went through an object."""

from __future__ import annotations

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, as_numbers, expand
from skinverse.functionals._base import Functional
from skinverse.functionals._fidelity import _Fidelity, _pick

# Newton steps for Lambert's function: five are exact to the rounding of double precision.
_STEPS = 5


class TransmissionDivergence(_Fidelity):
    """Divergence of counts from ``v = f exp(-A x) + d``: ``sum_i v_i - y_i + y_i log(y_i / v_i)``.

    It is convex, and has a prox, where nothing is counted without light.

    Parameters
    ----------
    A : linear map or None
        Linear map of batches; None is the identity.
    y : Tensor of shape (n, *dimsd)
        Counts, real and non-negative.
    flat : Tensor or float
        Means ``f > 0`` of what passes through where there is no object.
    dark : Tensor or float, default=0.0
        Means ``d >= 0`` of what is counted without light.

    Raises
    ------
    ValueError
        If a count or ``dark`` is negative or complex, or ``flat`` is not positive.

    References
    ----------
    K. Lange and R. Carson, EM reconstruction algorithms for emission and transmission tomography, Journal of
    Computer Assisted Tomography 8, 1984.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import TransmissionDivergence
    >>> TransmissionDivergence(None, torch.tensor([[100.0, 0.0]]), 100.0)(torch.zeros(1, 2)).round()
    tensor([100.])
    """

    def __init__(
        self, A: LinearMap | None, y: Tensor, flat: Tensor | float, dark: Tensor | float = 0.0
    ) -> None:
        if y.is_complex() or bool((y < 0).any()):
            raise ValueError(
                "TransmissionDivergence: expected real counts >= 0, got negative or complex ones"
            )
        if not bool((as_numbers(flat) > 0).all()) or not bool((as_numbers(dark) >= 0).all()):
            raise ValueError("TransmissionDivergence: expected flat > 0 and dark >= 0, got others")
        super().__init__(A, _TransmissionDistance(y, *(torch.as_tensor(v).to(y) for v in (flat, dark))))
        self.proximable = A is None and self.distance.proximable
        self.weak_convexity = self.distance.weak_convexity
        self.y, self.flat, self.dark = y, flat, dark

    def select(self, index: Tensor) -> Functional:
        flat, dark = (_pick(value, index, self.y.shape) for value in (self.flat, self.dark))
        return TransmissionDivergence(self.A, self.y[index], flat, dark)


class _TransmissionDistance(Functional):
    """``sum_i v_i - y_i + y_i log(y_i / v_i)`` at ``v = f exp(-u) + d``, in logarithms against overflow."""

    smooth = True

    def __init__(self, y: Tensor, flat: Tensor, dark: Tensor) -> None:
        self.y, self.flat, self.dark = y, flat, dark
        self.proximable = not bool(dark.any())
        self.weak_convexity = 0.0 if self.proximable else None

    def __call__(self, u: Tensor) -> Tensor:
        log_v = torch.logaddexp(self.flat.log() - u, self.dark.log())
        return (log_v.exp() - self.y + torch.special.xlogy(self.y, self.y) - self.y * log_v).flatten(1).sum(1)

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_light = self.flat.log() - u
        share = torch.sigmoid(log_light - self.dark.log())  # of the light in what is counted
        return self(u), self.y * share - log_light.exp()

    def prox(self, u: Tensor, step: Tensor | float) -> Tensor:
        # The root of z - u + s y = s f exp(-z) is z = c + w = log(s f) - log w with c = u - s y and
        # w = W(s f exp(-c)); in each case the one of these sums is taken that does not cancel.
        if not self.proximable:
            return super().prox(u, step)
        s = expand(step, u)
        c, light = u - s * self.y, (s * self.flat).log()
        w = _lambert(light - c)
        return torch.where(w < 1, c + w, light - w.log())

    def select(self, index: Tensor) -> Functional:
        return _TransmissionDistance(*(_pick(v, index, self.y.shape) for v in (self.y, self.flat, self.dark)))


def _lambert(log_z: Tensor) -> Tensor:
    """Lambert's ``W(z)`` of the exponential of a number: the root of ``w + log w = log z``."""
    tiny = torch.finfo(log_z.dtype).tiny
    w = torch.where(log_z > 1, log_z, log_z.clamp_max(1).exp()).clamp_min(tiny)
    for _ in range(_STEPS):
        w = (w * (1 + log_z - w.log()) / (1 + w)).clamp_min(tiny)
    return w

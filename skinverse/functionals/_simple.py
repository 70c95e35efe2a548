"""Simple functionals: value, prox and conjugate are one formula each."""

from __future__ import annotations

import torch
from torch import Tensor

from skinverse._tensors import as_numbers, dot, expand
from skinverse.functionals._base import Functional, indicator


class SquaredNorm(Functional):
    """``1/2 ||x||^2``.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import SquaredNorm
    >>> SquaredNorm()(torch.tensor([[3.0, 4.0]]))
    tensor([12.5000])
    """

    smooth = proximable = True

    def __call__(self, x: Tensor) -> Tensor:
        return dot(x, x) / 2

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), x

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return x / (1 + expand(step, x))

    def conjugate(self, u: Tensor) -> Tensor | None:
        return self(u)


class Box(Functional):
    """Zero for real images with ``low <= x <= high``, infinite elsewhere; its prox is the projection.

    Parameters
    ----------
    low, high : float, Tensor of shape (n,) or None, default=None
        Bounds of the values, or one for each image; None is no bound. ``Box(0)`` is non-negativity.

    Raises
    ------
    ValueError
        If ``low > high``; on use, if images are complex.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import Box
    >>> Box(0, 1).prox(torch.tensor([[-1.0, 0.5, 2.0]]), 1.0)
    tensor([[0.0000, 0.5000, 1.0000]])
    """

    proximable = True

    def __init__(self, low: float | Tensor | None = None, high: float | Tensor | None = None) -> None:
        if low is not None and high is not None and bool((as_numbers(low) > as_numbers(high)).any()):
            raise ValueError(f"Box: expected low <= high, got low={low} and high={high}")
        self.low, self.high = low, high

    def __call__(self, x: Tensor) -> Tensor:
        inside = (x == self.prox(x, 1.0)).flatten(1).all(1)
        return indicator(inside, x.dtype)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        if x.is_complex():
            raise ValueError("Box: expected real images, complex numbers have no order")
        return x.clamp(*self._ends(x))

    def conjugate(self, u: Tensor) -> Tensor | None:
        low, high = self._ends(u)
        # An infinite bound times zero is NaN: where the product is not needed, it is zero.
        below, above = torch.where(u < 0, low * u, 0), torch.where(u > 0, high * u, 0)
        return (below + above).flatten(1).sum(1)

    def select(self, index: Tensor) -> Functional:
        return Box(
            *(end[index] if isinstance(end, Tensor) and end.ndim else end for end in (self.low, self.high))
        )

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both bounds, infinite where there is none, for images like these."""
        low = -torch.inf if self.low is None else self.low
        high = torch.inf if self.high is None else self.high
        low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (low, high))
        return expand(low, like), expand(high, like)

    def __repr__(self) -> str:
        return f"Box({self.low}, {self.high})"


class L1Norm(Functional):
    """``sum |x|`` of real or complex numbers.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import L1Norm
    >>> L1Norm()(torch.tensor([[1.0, -2.0]]))
    tensor([3.])
    """

    proximable = True

    def __call__(self, x: Tensor) -> Tensor:
        return x.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return shrink(x, x.abs().clamp_min(torch.finfo(x.dtype).tiny), step)

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        return u / u.abs().clamp_min(1)

    def conjugate(self, u: Tensor) -> Tensor | None:
        return unit_ball(u.abs().flatten(1).amax(1))


def shrink(x: Tensor, length: Tensor, step: Tensor | float) -> Tensor:
    """``(1 - step / length)_+ x`` for lengths > 0, with derivatives that are finite where it is zero."""
    s = expand(step, x)
    return x * (1 - s / torch.clamp(length, min=s))


def unit_ball(largest: Tensor) -> Tensor:
    """Indicator of ``largest <= 1``, up to the rounding of single precision."""
    return indicator(largest <= 1 + 1e-5, largest.dtype)

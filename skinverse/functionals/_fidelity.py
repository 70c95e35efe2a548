"""Data fidelities: how far the data of an image are from the measurements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, as_numbers, dot, expand, norm, real_like
from skinverse.functionals._base import Functional, indicator

# Relative excess of a distance over the radius of a ball that counts as rounding.
_EXCESS = 1e-3


class _Fidelity(Functional):
    """``D(A x)`` for a distance ``D`` from the measurements; ``A`` None is the identity."""

    def __init__(self, A: LinearMap | None, distance: Functional) -> None:
        self.A, self.distance = A, distance
        self.smooth, self.proximable = distance.smooth, A is None

    def __call__(self, x: Tensor) -> Tensor:
        return self.distance(x if self.A is None else self.A(x))

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.smooth:
            return super().value_and_grad(x)  # says that there is no gradient
        value, gradient = self.distance.value_and_grad(x if self.A is None else self.A(x))
        return value, real_like(gradient if self.A is None else self.A.adjoint(gradient), x)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return self.distance.prox(x, step) if self.A is None else super().prox(x, step)

    def conjugate(self, u: Tensor) -> Tensor | None:
        return self.distance.conjugate(u) if self.A is None else None

    def split(self) -> tuple[Functional, LinearMap | None]:
        return self.distance, self.A


class LeastSquares(_Fidelity):
    """Least squares, ``1/2 sum_i w_i |(A x - y)_i|^2``: Gaussian noise of variance ``1 / w``.

    Parameters
    ----------
    A : linear map or None
        Linear map of batches, with ``A(x)``, ``A.adjoint(y)`` and ``A.norm()``; None is the identity.
    y : Tensor of shape (n, *dimsd)
        Measurements.
    weights : Tensor of shape (n, *dimsd) or broadcastable to it, or None, default=None
        Non-negative weights ``w``; None is one.

    Raises
    ------
    ValueError
        If a weight is negative.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import LeastSquares
    >>> LeastSquares(None, torch.tensor([[1.0, 2.0]]))(torch.zeros(1, 2))
    tensor([2.5000])
    """

    def __init__(self, A: LinearMap | None, y: Tensor, *, weights: Tensor | None = None) -> None:
        if weights is not None and bool((weights < 0).any()):
            raise ValueError("LeastSquares: expected weights >= 0, got negative values")
        super().__init__(A, _SquaredDistance(y, weights))
        self.y, self.weights = y, weights

    @property
    def lipschitz(self) -> float:
        """Lipschitz constant of the gradient, ``||A||^2 max w``."""
        largest = 1.0 if self.weights is None else float(self.weights.detach().max())
        return largest if self.A is None else largest * self.A.norm() ** 2

    def select(self, index: Tensor) -> Functional:
        return LeastSquares(self.A, self.y[index], weights=_pick(self.weights, index, self.y.shape))


class _SquaredDistance(Functional):
    """``1/2 sum_i w_i |u_i - y_i|^2``."""

    smooth = proximable = True

    def __init__(self, y: Tensor, weights: Tensor | None) -> None:
        self.y, self.weights = y, weights
        self.w: Tensor | float = 1.0 if weights is None else weights

    def __call__(self, u: Tensor) -> Tensor:
        return self.value_and_grad(u)[0]

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        residual = u - self.y
        gradient = self.w * residual
        return dot(residual, gradient) / 2, gradient

    def prox(self, u: Tensor, step: Tensor | float) -> Tensor:
        s = expand(step, u) * self.w
        return (u + s * self.y) / (1 + s)

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        s = expand(step, u)
        return self.w * (u - s * self.y) / (self.w + s)

    def conjugate(self, u: Tensor) -> Tensor | None:
        square = torch.where(u == 0, 0, u.abs().square() / self.w)  # infinite where w is zero and u is not
        return dot(u, self.y) + square.flatten(1).sum(1) / 2

    def select(self, index: Tensor) -> Functional:
        return _SquaredDistance(self.y[index], _pick(self.weights, index, self.y.shape))


class KullbackLeibler(_Fidelity):
    """Kullback-Leibler divergence, ``sum_i w_i (v_i - y_i + y_i log(y_i / v_i))``, ``v = A x + b``: counts.

    It is infinite where ``A x + b`` is negative, or zero under a positive count.

    Parameters
    ----------
    A : linear map or None
        Linear map of batches; None is the identity.
    y : Tensor of shape (n, *dimsd)
        Counts, real and non-negative.
    background : float or Tensor, default=0.0
        Expected background ``b >= 0``, for example scatter and randoms in PET.
    weights : Tensor of shape (n, *dimsd) or broadcastable to it, or float, default=1.0
        Positive weights ``w``, for example one over the data units per count.

    Raises
    ------
    ValueError
        If a count or the background is negative or complex, or a weight is not positive.

    References
    ----------
    L. A. Shepp and Y. Vardi, Maximum likelihood reconstruction for emission tomography, IEEE Transactions
    on Medical Imaging 1, 1982.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import KullbackLeibler
    >>> KullbackLeibler(None, torch.tensor([[3.0, 0.0]]))(torch.tensor([[3.0, 1.0]]))
    tensor([1.])
    """

    def __init__(
        self,
        A: LinearMap | None,
        y: Tensor,
        *,
        background: Tensor | float = 0.0,
        weights: Tensor | float = 1.0,
    ) -> None:
        if y.is_complex() or bool((y < 0).any()):
            raise ValueError("KullbackLeibler: expected real counts y >= 0, got negative or complex values")
        if bool((as_numbers(background) < 0).any()):
            raise ValueError("KullbackLeibler: expected a background >= 0, got negative values")
        if not bool((as_numbers(weights) > 0).all()):
            raise ValueError("KullbackLeibler: expected weights > 0, got others")
        super().__init__(A, _PoissonDistance(y, background, weights))
        self.y, self.background, self.weights = y, background, weights

    def select(self, index: Tensor) -> Functional:
        background, weights = (_pick(v, index, self.y.shape) for v in (self.background, self.weights))
        return KullbackLeibler(self.A, self.y[index], background=background, weights=weights)


class _PoissonDistance(Functional):
    """``sum_i w_i (v_i - y_i + y_i log(y_i / v_i))`` at ``v = u + b``."""

    smooth = proximable = True

    def __init__(self, y: Tensor, background: Tensor | float, weights: Tensor | float) -> None:
        self.y, self.background, self.w = y, background, weights

    def __call__(self, u: Tensor) -> Tensor:
        v, xlogy = u + self.background, torch.special.xlogy
        divergence = xlogy(self.y, self.y) - xlogy(self.y, self._counted(v).clamp_min(0)) + v - self.y
        return torch.where(v < 0, torch.inf, self.w * divergence).flatten(1).sum(1)

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self(u), self.w * (1 - self.y / self._counted(u + self.background))

    def prox(self, u: Tensor, step: Tensor | float) -> Tensor:
        # The root v >= 0 of v^2 - p v - s y = 0 with p = u + b - s. Where p is negative its formula would
        # cancel; there it comes from the other root, since the product of both is -s y.
        s = expand(step, u) * self.w
        p = u + self.background - s
        far = (p.abs() + (p.square() + 4 * s * self.y).sqrt()) / 2  # modulus of the root far from zero
        near = s * self.y / far.clamp_min(torch.finfo(p.dtype).tiny)
        return torch.where(p < 0, near, far) - self.background

    def conjugate(self, u: Tensor) -> Tensor | None:
        c = u / self.w
        value = -self.w * torch.special.xlogy(self.y, (1 - c).clamp_min(0)) - self.background * u
        return torch.where(c > 1, torch.inf, value).flatten(1).sum(1)

    def select(self, index: Tensor) -> Functional:
        background, weights = (_pick(v, index, self.y.shape) for v in (self.background, self.w))
        return _PoissonDistance(self.y[index], background, weights)

    def _counted(self, v: Tensor) -> Tensor:
        """The means ``v``, but one where nothing was counted: there ``v`` may be zero, and 0/0 is NaN."""
        return torch.where(self.y > 0, v, 1)


class DataBall(_Fidelity):
    """Zero where ``||A x - y|| <= radius``, infinite elsewhere: the discrepancy principle as a constraint.

    Parameters
    ----------
    A : linear map or None
        Linear map of batches; None is the identity.
    y : Tensor of shape (n, *dimsd)
        Measurements.
    radius : Tensor of shape (n,) or float
        Radius of the ball: the expected norm of the noise, ``sqrt(n_measurements) * noise_std``.

    Raises
    ------
    ValueError
        If a radius is negative.

    Notes
    -----
    The value allows for rounding: a distance that exceeds the radius by a thousandth of it counts as inside.

    References
    ----------
    V. A. Morozov, On the solution of functional equations by the method of regularization, 1966.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import DataBall
    >>> DataBall(None, torch.zeros(2, 1), 1.0)(torch.tensor([[0.5], [2.0]]))
    tensor([0., inf])
    """

    def __init__(self, A: LinearMap | None, y: Tensor, radius: Tensor | float) -> None:
        if bool((as_numbers(radius) < 0).any()):
            raise ValueError(f"DataBall: expected a radius >= 0, got {radius}")
        super().__init__(A, _Ball(y, radius))
        self.y, self.radius = y, radius

    def select(self, index: Tensor) -> Functional:
        return DataBall(self.A, self.y[index], _pick(self.radius, index, self.y.shape[:1]))


class _Ball(Functional):
    """Indicator of ``||u - y|| <= radius``."""

    proximable = True

    def __init__(self, y: Tensor, radius: Tensor | float) -> None:
        self.y, self.radius = y, radius

    def __call__(self, u: Tensor) -> Tensor:
        distance = norm(u - self.y)
        return indicator(distance <= (1 + _EXCESS) * self.radius, distance.dtype)

    def prox(self, u: Tensor, step: Tensor | float) -> Tensor:
        offset = u - self.y
        shrink = (self.radius / norm(offset).clamp_min(torch.finfo(offset.dtype).tiny)).clamp_max(1)
        return self.y + expand(shrink, u) * offset

    def conjugate(self, u: Tensor) -> Tensor | None:
        return dot(u, self.y) + self.radius * norm(u)

    def select(self, index: Tensor) -> Functional:
        return _Ball(self.y[index], _pick(self.radius, index, self.y.shape[:1]))


def _pick(value: Any, index: Tensor, shape: tuple[int, ...]) -> Any:
    """The entries of some images of a tensor that begins like ``shape``; what all images share stays."""
    per_image = isinstance(value, Tensor) and value.ndim == len(shape) and len(value) == shape[0]
    return value[index] if per_image else value

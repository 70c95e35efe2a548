"""What every functional can do, and how functionals add and scale."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from skinverse._tensors import LinearMap, as_numbers, expand, norm


class Functional(ABC):
    """A map from images to numbers, one per image: ``(n, *dims) -> (n,)``.

    Sums and multiples of functionals are functionals, ``LeastSquares(A, y) + lam * TotalVariation()``. What
    solvers use is the value ``f(x)``; ``f.grad(x)`` where ``f.smooth``; ``f.prox(x, step)`` where
    ``f.proximable``; and ``f.split()`` where ``f`` is a proximable functional of a linear map.

    Attributes
    ----------
    smooth : bool
        Whether the functional is differentiable everywhere.
    proximable : bool
        Whether its prox has a closed form.
    weak_convexity : float or None
        Smallest number ``rho >= 0`` for which ``f + rho/2 ||x||^2`` is known to be convex: 0 for a convex
        functional, None if no such number is known.
    """

    smooth: bool = False
    proximable: bool = False
    weak_convexity: float | None = 0.0

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Value of each image, real, shape (n,)."""

    def grad(self, x: Tensor) -> Tensor:
        """Gradient at each image; it is itself differentiable where gradients are enabled."""
        return self.value_and_grad(x)[1]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient in one pass, by automatic differentiation where a subclass has no formula."""
        if not self.smooth:
            raise TypeError(f"{self!r} is not differentiable: it has a prox or a split, but no gradient")
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self(x)
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=keep_graph)
        return (value if keep_graph else value.detach()), gradient

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """``argmin_z 1/2 ||z - x||^2 + step f(z)`` for each image; ``step`` is a number or one per image."""
        raise TypeError(f"{self!r} has no prox in closed form: give it to primal_dual")

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        """Prox of the convex conjugate, by Moreau's identity."""
        s = expand(step, u)
        return u - s * self.prox(u / s, 1 / step)

    def conjugate(self, u: Tensor) -> Tensor | None:
        """Value of the convex conjugate, (n,), possibly inf; None where it has no closed form."""
        return None

    def split(self) -> tuple[Functional, LinearMap | None]:
        """``(g, K)`` with ``f(x) = g(K x)`` and ``g`` proximable; ``K`` is None for the identity."""
        return self, None

    def select(self, index: Tensor) -> Functional:
        """The same functional for the images ``index`` of the batch it was bound to."""
        return self

    @property
    def summands(self) -> tuple[Functional, ...]:
        """The terms of a sum; a functional that is not a sum is its own only term."""
        return (self,)

    def __add__(self, other: Functional) -> Functional:
        return Sum(self.summands + other.summands)

    def __rmul__(self, weight: float | Tensor) -> Functional:
        return Scaled(weight, self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Sum(Functional):
    """Sum of functionals, ``f + g``."""

    def __init__(self, terms: tuple[Functional, ...]) -> None:
        self.terms = terms
        self.smooth = all(f.smooth for f in terms)
        moduli = [f.weak_convexity for f in terms]
        self.weak_convexity = None if None in moduli else sum(m for m in moduli if m is not None)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([f(x) for f in self.terms]).sum(0)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [f.value_and_grad(x) for f in self.terms]
        return torch.stack([v for v, _ in pairs]).sum(0), torch.stack([g for _, g in pairs]).sum(0)

    def select(self, index: Tensor) -> Functional:
        return Sum(tuple(f.select(index) for f in self.terms))

    def __rmul__(self, weight: float | Tensor) -> Functional:
        return Sum(tuple(weight * f for f in self.terms))  # solvers look at each term separately

    @property
    def summands(self) -> tuple[Functional, ...]:
        return self.terms

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms))


class Scaled(Functional):
    """Multiple of a functional, ``weight * f``, for a number or one per image, (n,)."""

    def __init__(self, weight: float | Tensor, functional: Functional) -> None:
        weights = as_numbers(weight)
        if not bool((weights >= 0).all()):
            raise ValueError(f"expected a weight >= 0 of {functional!r}, got {weight}")
        self.weight, self.functional = weight, functional
        self.smooth, self.proximable = functional.smooth, functional.proximable
        modulus = functional.weak_convexity
        self.weak_convexity = None if modulus is None else float(weights.max()) * modulus

    def __call__(self, x: Tensor) -> Tensor:
        return self.weight * self.functional(x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.functional.value_and_grad(x)
        return self.weight * value, expand(self.weight, x) * gradient

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return self.functional.prox(x, step * self.weight)

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        weight, safe = self._safe_weight(u)
        return expand(weight, u) * self.functional.prox_conjugate(u / expand(safe, u), step / safe)

    def conjugate(self, u: Tensor) -> Tensor | None:
        weight, safe = self._safe_weight(u)
        value = self.functional.conjugate(u / expand(safe, u))
        of_zero = indicator(norm(u) == 0, weight.dtype)  # the conjugate of the functional zero
        return None if value is None else torch.where(weight == 0, of_zero, weight * value)

    def split(self) -> tuple[Functional, LinearMap | None]:
        outer, linear = self.functional.split()
        return Scaled(self.weight, outer), linear

    def select(self, index: Tensor) -> Functional:
        weight = self.weight[index] if isinstance(self.weight, Tensor) and self.weight.ndim else self.weight
        return Scaled(weight, self.functional.select(index))

    def _safe_weight(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each image, and the same with ones instead of zeros, to divide by."""
        weight = torch.as_tensor(self.weight, dtype=u.dtype.to_real(), device=u.device).expand(len(u))
        return weight, torch.where(weight == 0, 1.0, weight)

    def __repr__(self) -> str:
        return f"{self.weight} * {self.functional!r}"


def indicator(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where the condition holds, infinite elsewhere."""
    return torch.where(inside, 0.0, torch.inf).to(dtype)

"""Total variation and total generalised variation."""

from __future__ import annotations

import math
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skinverse._differences import IMAGE_AXES, Axes, Spacing, axes_of
from skinverse._tensors import LinearMap, dot, expand
from skinverse.functionals._base import Functional
from skinverse.functionals._derivatives import (
    Gradient,
    SymmetrizedDerivative,
    check_spacing,
    n_entries,
    on_differences,
)
from skinverse.functionals._simple import L1Norm, shrink, unit_ball


class GroupNorm(Functional):
    """``sum_pixels |p|``, the Euclidean length of each pixel's channels, (n, channels, *dims).

    With ``sizes`` the channels are cut into groups of these sizes, whose lengths add up; None is one group.
    """

    proximable = True

    def __init__(self, sizes: tuple[int, ...] | None = None) -> None:
        self.sizes = sizes

    def __call__(self, p: Tensor) -> Tensor:
        zero = math.sqrt(torch.finfo(p.dtype).tiny)  # what _root makes of zero
        return torch.stack([(_root(s) - zero).flatten(1).sum(1) for _, s in self._groups(p)]).sum(0)

    def prox(self, p: Tensor, step: Tensor | float) -> Tensor:
        groups = [shrink(g, _root(squares), step) for g, squares in self._groups(p)]
        return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        groups = [g / squares.clamp_min(1).sqrt() for g, squares in self._groups(u)]
        return groups[0] if len(groups) == 1 else torch.cat(groups, dim=1)

    def conjugate(self, u: Tensor) -> Tensor | None:
        largest = torch.stack([squares.flatten(1).amax(1) for _, squares in self._groups(u)]).amax(0)
        return unit_ball(largest.sqrt())

    def _groups(self, p: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each group and its pixelwise squared length."""
        groups = [p] if self.sizes is None else p.split(self.sizes, dim=1)
        return [(g, _squares(g)) for g in groups]


def _squares(p: Tensor) -> Tensor:
    """Squared length over the channels; torch's own norm is many times slower along so short an axis."""
    squares = p.real.square() + p.imag.square() if p.is_complex() else p.square()
    return squares.sum(1, keepdim=True)


def _root(squares: Tensor) -> Tensor:
    """Square root that stays off zero, where its derivative is infinite: there it is constant."""
    return squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()


class TotalVariation(Functional):
    """Total variation, ``TV(x) = sum_pixels |grad x|``.

    The gradient consists of forward differences, which are zero across the border (Neumann), divided by the
    distances of the pixels. The variations of channels add up. Of complex images the moduli of the
    differences count.

    Parameters
    ----------
    isotropic : bool, default=True
        Whether ``|.|`` is the Euclidean length of the gradient in each pixel. Otherwise it is the sum of the
        moduli of the gradient's entries, which is invariant under rotations by 90 degrees and flips.
    axes : tuple of int, default=(-2, -1)
        The spatial axes of a batch, counted from the end: (-3, -2, -1) of volumes (n, D, H, W), (-3, -2) of
        images (n, H, W, C). All others are channels; of signals (n, L) there is only the last one.
    spacing : sequence of float > 0 or None, default=None
        Distances of neighbouring pixels along each of the axes, in any unit of length; None is 1. The value
        has the unit of images over lengths: it is a sum over pixels, whatever their size.

    Raises
    ------
    ValueError
        If ``spacing`` is not one positive number for each axis.

    See Also
    --------
    TotalNuclearVariation : Edges that channels share.

    References
    ----------
    L. Rudin, S. Osher and E. Fatemi, Nonlinear total variation based noise removal algorithms, Physica D
    60, 1992.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import TotalVariation
    >>> x = torch.zeros(1, 8, 8)
    >>> x[:, 2:5, 2:5] = 1
    >>> TotalVariation(isotropic=False)(x)  # the perimeter
    tensor([12.])
    """

    def __init__(self, *, isotropic: bool = True, axes: Axes = IMAGE_AXES, spacing: Spacing = None) -> None:
        check_spacing(spacing, axes)
        self.isotropic, self.axes, self.spacing = isotropic, axes, spacing

    def __call__(self, x: Tensor) -> Tensor:
        outer, gradient = self.split()
        return outer(gradient(x))

    def split(self) -> tuple[Functional, LinearMap]:
        return GroupNorm() if self.isotropic else L1Norm(), Gradient(self.axes, self.spacing)

    def __repr__(self) -> str:
        return f"TotalVariation(isotropic={self.isotropic}, axes={self.axes}, spacing={self.spacing})"


class TotalGeneralizedVariation(Functional):
    """Second-order total generalised variation.

    ``TGV(x) = min_v sum_pixels |grad x - v| + alpha |E v|`` with the symmetrised derivative ``E``. It is zero
    for affine images, where total variation is not, so that slopes do not turn into stairs. The field ``v``
    has one entry per forward difference; channels and border are those of :class:`TotalVariation`.

    Parameters
    ----------
    alpha : float > 0, default=2.0
        Weight of the second order relative to the first, a length in the unit of ``spacing``.
    axes : tuple of int, default=(-2, -1)
        The spatial axes of a batch, as in :class:`TotalVariation`.
    spacing : sequence of float > 0 or None, default=None
        Distances of neighbouring pixels along each of the axes; None is 1.

    Raises
    ------
    ValueError
        If ``alpha`` is not positive, or ``spacing`` not one positive number for each axis.

    Notes
    -----
    There is no formula for the minimum over ``v``. The value is computed iteratively, to a relative duality
    gap of 1e-4, or with a ``ConvergenceWarning`` after 50 000 steps. To reconstruct, minimise over image and
    field together, ``z = (x, v)`` of shape (n, 1 + d, *dims): :meth:`pack` makes a start, :meth:`lifted` is
    the variation and :meth:`lift` any functional of ``x`` as a functional of ``z``.

    References
    ----------
    K. Bredies, K. Kunisch and T. Pock, Total generalized variation, SIAM Journal on Imaging Sciences 3,
    2010, equation 3.1.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import TotalGeneralizedVariation, TotalVariation
    >>> slope = torch.linspace(0, 1, 9).expand(1, 9, 9)
    >>> TotalGeneralizedVariation()(slope) < 1e-3, TotalVariation()(slope)
    (tensor([True]), tensor([9.]))
    """

    def __init__(self, *, alpha: float = 2.0, axes: Axes = IMAGE_AXES, spacing: Spacing = None) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha: expected a number > 0, got {alpha!r}")
        check_spacing(spacing, axes)
        self.alpha, self.axes, self.spacing = alpha, axes, spacing

    def __call__(self, x: Tensor) -> Tensor:
        g = Gradient(self.axes, self.spacing)(x.detach())
        return _minimum_over_fields(g, self.alpha, self.axes, self.spacing)

    def lifted(self) -> Functional:
        """``sum_pixels |grad x - v| + alpha |E v|`` as a functional of image and field."""
        return _LiftedVariation(self.alpha, self.axes, self.spacing)

    def lift(self, functional: Functional, n_axes: int = 2) -> Functional:
        """A functional of the image as one of image and field; the field has ``n_axes`` components."""
        return OfImage(functional, n_axes)

    def pack(self, x: Tensor) -> Tensor:
        """Images with the field zero, (n, *dims) -> (n, 1 + d, *dims)."""
        field = x.new_zeros((len(x), len(axes_of(x, self.axes)), *x.shape[1:]))
        return torch.cat([x[:, None], field], dim=1)

    def __repr__(self) -> str:
        return f"TotalGeneralizedVariation(alpha={self.alpha}, axes={self.axes}, spacing={self.spacing})"


class OfImage(Functional):
    """A functional of the image as a functional of image and field: ``f(x)`` at ``z = (x, v)``.

    The field has ``n_axes`` components: 2 for images, 1 for signals, 3 for volumes.
    """

    def __init__(self, functional: Functional, n_axes: int) -> None:
        self.functional, self.n_axes = functional, n_axes
        self.smooth, self.proximable = functional.smooth, functional.proximable
        self.weak_convexity = functional.weak_convexity

    def __call__(self, z: Tensor) -> Tensor:
        return self.functional(z[:, 0])

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.functional.value_and_grad(z[:, 0])
        return value, _embed(gradient, self.n_axes)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return torch.cat([self.functional.prox(z[:, 0], step)[:, None], z[:, 1:]], dim=1)

    def split(self) -> tuple[Functional, LinearMap | None]:
        outer, linear = self.functional.split()
        return (self, None) if linear is None else (outer, _ImagePart(linear, self.n_axes))

    def select(self, index: Tensor) -> Functional:
        return OfImage(self.functional.select(index), self.n_axes)

    @property
    def summands(self) -> tuple[Functional, ...]:
        terms = self.functional.summands
        return (self,) if len(terms) == 1 else tuple(OfImage(f, self.n_axes) for f in terms)

    def __repr__(self) -> str:
        return f"OfImage({self.functional!r}, {self.n_axes})"


class _ImagePart:
    """``z = (x, v) -> K x``."""

    def __init__(self, linear: LinearMap, n_axes: int) -> None:
        self.linear, self.n_axes = linear, n_axes

    def __call__(self, z: Tensor) -> Tensor:
        return self.linear(z[:, 0])

    def adjoint(self, y: Tensor) -> Tensor:
        return _embed(self.linear.adjoint(y), self.n_axes)

    def norm(self) -> float:
        return self.linear.norm()


def _embed(x: Tensor, n_axes: int) -> Tensor:
    """``x -> (x, 0)``."""
    z = x.new_zeros((len(x), 1 + n_axes, *x.shape[1:]))
    z[:, 0] = x
    return z


class _LiftedVariation(Functional):
    """``sum |grad x - v| + alpha |E v|`` of ``z = (x, v)``."""

    def __init__(self, alpha: float, axes: Axes, spacing: Spacing) -> None:
        self.alpha, self.axes, self.spacing = alpha, axes, spacing

    def __call__(self, z: Tensor) -> Tensor:
        outer, linear = self.split()
        return outer(linear(z))

    def split(self) -> tuple[Functional, LinearMap]:
        return _JointNorm(self.axes), _Joint(self.alpha, self.axes, self.spacing)


class _Joint:
    """``(x, v) -> (grad x - v, alpha E v)``, stacked along the channels."""

    def __init__(self, alpha: float, axes: Axes, spacing: Spacing) -> None:
        self.alpha, self.axes = alpha, axes
        self._grad, self._E = Gradient(axes, spacing), SymmetrizedDerivative(axes, spacing)

    def __call__(self, z: Tensor) -> Tensor:
        x, v = z[:, 0], on_differences(z[:, 1:], self.axes)
        return torch.cat([self._grad(x) - v, self.alpha * self._E(v)], dim=1)

    def adjoint(self, p: Tensor) -> Tensor:
        d = len(axes_of(p[:, 0], self.axes))
        q, e = p[:, :d], p[:, d:]
        v = on_differences(self.alpha * self._E.adjoint(e) - q, self.axes)
        return torch.cat([self._grad.adjoint(q)[:, None], v], dim=1)

    def norm(self) -> float:
        """``||K (x, v)|| <= ||M (||x||, ||v||)||`` for the small matrix of the blocks' bounds."""
        bound = self._E.norm()
        blocks = [[bound, 1.0], [0.0, self.alpha * bound]]
        return float(torch.linalg.matrix_norm(torch.tensor(blocks, dtype=torch.float32, device="cpu"), 2))


class _JointNorm(Functional):
    """Group norm whose groups are the channels of first order and those of second order."""

    proximable = True

    def __init__(self, axes: Axes) -> None:
        self.axes = axes

    def __call__(self, p: Tensor) -> Tensor:
        return self._groups(p)(p)

    def prox(self, p: Tensor, step: Tensor | float) -> Tensor:
        return self._groups(p).prox(p, step)

    def prox_conjugate(self, u: Tensor, step: Tensor | float) -> Tensor:
        return self._groups(u).prox_conjugate(u, step)

    def conjugate(self, u: Tensor) -> Tensor | None:
        return self._groups(u).conjugate(u)

    def _groups(self, p: Tensor) -> GroupNorm:
        d = len(axes_of(p[:, 0], self.axes))
        return GroupNorm((d, n_entries(d)))


def _minimum_over_fields(
    g: Tensor,
    alpha: float,
    axes: Axes = IMAGE_AXES,
    spacing: Spacing = None,
    *,
    gap: float = 1e-4,
    max_steps: int = 50_000,
) -> Tensor:
    """``min_v ||g - v|| + alpha ||E v||`` for gradients ``g``, by primal-dual steps to a relative gap.

    The dual problem is ``max <g, alpha E^T w>`` over ``|w| <= 1, |alpha E^T w| <= 1``. A dual iterate divided
    by its largest ``|alpha E^T w|`` is feasible, so the gap is a certificate. The gradients are scaled to a
    mean length of one, which suits steps of equal size.
    """
    E, norm = SymmetrizedDerivative(axes, spacing), GroupNorm()
    mean = norm(g) / math.prod(g.shape[2:])
    unit = torch.where(mean > 0, mean, 1)
    g = g / expand(unit, g)
    step = 1 / (alpha * E.norm())
    v, w = g.clone(), torch.zeros_like(E(g))
    v_bar, upper, lower = v, norm(g), torch.zeros_like(unit)  # the bounds of v = 0 and of w = 0
    for k in range(max_steps):
        w = norm.prox_conjugate(w + step * alpha * E(v_bar), step)
        slope = alpha * E.adjoint(w)
        new = on_differences(g + norm.prox(v - step * slope - g, step), axes)
        v_bar, v = 2 * new - v, new
        if k % 10 == 9:
            longest = _squares(slope).flatten(1).amax(1).clamp_min(1).sqrt()
            done = ~(upper - lower > gap * upper + torch.finfo(g.dtype).eps * norm(g))  # also where it is NaN
            upper = torch.where(done, upper, torch.minimum(upper, norm(g - v) + alpha * norm(E(v))))
            lower = torch.where(done, lower, torch.maximum(lower, dot(g, slope) / longest))
            if bool(done.all()):
                break
    else:
        warnings.warn(
            f"total generalised variation: {int((~done).sum())} of {len(g)} values are upper bounds only, "
            f"with a relative gap above {gap} after {max_steps} steps",
            ConvergenceWarning,
            stacklevel=3,
        )
    return unit * upper

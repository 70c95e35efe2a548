"""Families of operators with unknown parameters, differentiable in them."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse._hashing import digest
from skinverse._tensors import norm
from skinverse.operators._inverse import AnalyticInverse, Form, Formula
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap, check_shape, leading

Parameters = dict[str, Tensor]

# Least width of a blur, in pixels, that a search can end with.
_NARROW = 1e-3


class ParametricOperator(LinearOperator, ABC):
    """An operator that is one member of a family: ``A(p)`` for parameters ``p`` that can be learned.

    A family is a subclass with :meth:`apply`, torch code that autograd can differentiate with respect to the
    image and to the parameters. Its members are pylops operators; their adjoint comes from automatic
    differentiation. An operator that is composed of a member and other operators is a fixed operator. A
    member never changes, since estimators share it: :meth:`with_parameters` gives another one. A family whose
    constructor computes more than ``parameters`` from its arguments overrides that method.

    Parameters
    ----------
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    parameters : dict of float or array
        Values of the parameters by name, finite; they are stored as tensors in double precision.
    dtype : str, default="float64"
        Type of images and data; a complex one is meant for both.

    Raises
    ------
    ValueError
        If a parameter is not finite.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        dimsd: tuple[int, ...],
        parameters: Mapping[str, Any],
        dtype: str = "float64",
    ) -> None:
        self.parameters = {name: _as_parameter(value, name) for name, value in parameters.items()}
        dims, dimsd = (tuple(int(size) for size in sizes) for sizes in (dims, dimsd))
        super().__init__(dtype=np.dtype(dtype), dims=dims, dimsd=dimsd)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the parameters that are sought where nothing else is said: all, unless overridden."""
        return tuple(self.parameters)

    @property
    def analytic_inverse(self) -> AnalyticInverse:
        """Kind of the inverse that :meth:`filtered` applies: none, unless a family overrides both."""
        return AnalyticInverse.NONE

    @property
    def measured(self) -> Tensor | None:
        """Which data depend on the image, as of a :class:`LinearMap`: all, unless a family overrides it."""
        return None

    @abstractmethod
    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """``A(p) x`` of a batch, (n, *dims) -> (n, *dimsd), linear in ``x``."""

    def apply_adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """``A(p)^* y``, by automatic differentiation of :meth:`apply`, which is linear."""
        complex_images = np.issubdtype(self.dtype, np.complexfloating)
        kind = y.dtype.to_complex() if complex_images else y.dtype
        wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (y, *parameters.values()))
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.dims, dtype=kind, device=y.device, requires_grad=True)
            forward = self.apply(x, parameters)
        (adjoint,) = torch.autograd.grad(forward, x, y, create_graph=wanted)
        return adjoint if wanted else adjoint.detach()

    def with_parameters(self, parameters: Mapping[str, Any]) -> Self:
        """Another member of the family.

        Parameters
        ----------
        parameters : dict of float or array
            New values by name. The others stay as they are.

        Returns
        -------
        ParametricOperator
            The member with these parameters; this one is unchanged.

        Raises
        ------
        ValueError
            If the family has no such parameter, or a value is not finite or has another shape.
        """
        unknown = sorted(set(parameters) - set(self.parameters))
        if unknown:
            known = ", ".join(self.parameters)
            raise ValueError(f"{type(self).__name__} has the parameters {known}, got {', '.join(unknown)}")
        changed = {name: _as_parameter(value, name) for name, value in parameters.items()}
        for name, value in changed.items():
            expected, got = tuple(self.parameters[name].shape), tuple(value.shape)
            if got != expected:
                raise ValueError(f"{name}: expected a value of shape {expected}, got shape {got}")
        # A shallow copy: what the family holds besides, such as a known operator, is shared.
        other = copy.copy(self)
        other.parameters = self.parameters | changed
        return other

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, as scikit-learn asks for them: ``operator__sigma`` in a search.

        Parameters
        ----------
        deep : bool, default=True
            Without effect, since parameters have no parameters of their own.

        Returns
        -------
        dict
            Floats and arrays.
        """
        values = {name: value.detach().cpu().numpy() for name, value in self.parameters.items()}
        return {name: value.copy() if value.ndim else float(value) for name, value in values.items()}

    def set_params(self, **parameters: Any) -> NoReturn:
        """Refuse to change an operator that other estimators share.

        Parameters
        ----------
        **parameters : object
            New values by name.

        Raises
        ------
        TypeError
            Always, with what to call instead.
        """
        raise TypeError(
            "an operator is shared by estimators and does not change: use operator.with_parameters({...}), "
            "or set_params(operator__name=...) of the estimator"
        )

    def __sklearn_clone__(self) -> Self:
        return self  # as a value of a search; with get_params alone, clone would call the constructor

    def filtered(self, y: Tensor, parameters: Parameters, weights: NDArray, filter: str) -> Tensor:
        """The analytic inverse of ``A(p)``, see :attr:`analytic_inverse`.

        Parameters
        ----------
        y : Tensor of shape (n, *dimsd)
            Data.
        parameters : dict of Tensor
            Parameters in the precision and on the device of the data.
        weights : ndarray of shape (prod(dimsd),)
            Weights of the data, which are zero where nothing was measured.
        filter : str
            Window on the ramp filter of a filtered back-projection.

        Returns
        -------
        Tensor of shape (n, *dims)
            Images.
        """
        raise TypeError(f"{type(self).__name__} has no analytic inverse")

    def at(self, parameters: Parameters) -> LinearMap:
        """The member with these parameters as a torch map, differentiable in them."""
        return _Member(self, parameters)

    def lowered(self) -> LinearMap:
        """The torch map of this member."""
        return self.at(self.parameters)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        typed = np.ascontiguousarray(x, dtype=np.result_type(x, self.dtype))
        batch = torch.from_numpy(typed).reshape(1, *self.dims)
        return as_torch(self)(batch).numpy().ravel()

    def _rmatvec(self, y: np.ndarray) -> np.ndarray:
        typed = np.ascontiguousarray(y, dtype=np.result_type(y, self.dtype))
        batch = torch.from_numpy(typed).reshape(1, *self.dimsd)
        return as_torch(self).adjoint(batch).numpy().ravel()


class _Member(LinearMap):
    """One member of a family; autograd goes through it to image, data and parameters."""

    def __init__(self, family: ParametricOperator, parameters: Parameters) -> None:
        super().__init__(tuple(family.dims), tuple(family.dimsd))
        self.family, self.parameters = family, parameters
        self.requires_grad = any(p.requires_grad for p in parameters.values())
        self._direction: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        check_shape(x, self.dims, "images", "dims")
        return self.family.apply(x, self._like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        check_shape(y, self.dimsd, "data", "dimsd")
        return self.family.apply_adjoint(y, self._like(y))

    def norm(self) -> Any:
        """Spectral norm, differentiable in the parameters, which may change between two calls."""
        if not self.requires_grad:
            return super().norm()
        with torch.no_grad():
            self._direction = leading(self, self._direction)
        return norm(self(self._direction))[0]

    @property
    def analytic_inverse(self) -> AnalyticInverse:
        """That of the family."""
        return self.family.analytic_inverse

    def unweighted(self) -> tuple[LinearMap | None, LinearMap]:
        """None and the map, whose data have no weights."""
        return None, self

    def weighted_inverse(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """The family's own, differentiable in the parameters."""
        return self.family.filtered(y, self._like(y), weights, filter)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        return self.family.measured

    def form_after(self, inner: Form) -> Form | None:
        if not self.family.analytic_inverse:
            return super().form_after(inner)
        return inner.through(_OfMember(self), sp.eye_array(math.prod(self.dimsd), format="csr"))

    def _like(self, x: Tensor) -> Parameters:
        real = x.dtype.to_real()
        return {name: p.to(x.device, real) for name, p in self.parameters.items()}

    def _forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self.adjoint(y)


class _OfMember(Formula):
    """The analytic inverse of a member."""

    def __init__(self, member: _Member) -> None:
        self._member, self.kind, self.dimsd = member, member.family.analytic_inverse, member.dimsd
        self.key = self.family = digest(member, opaque="identity", quick=True)

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """The images, flat."""
        return self._member.weighted_inverse(y.reshape(len(y), *self.dimsd), weights, filter).flatten(1)

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """The same for all pixels."""
        return np.full(math.prod(self._member.dims), float(measured.any()))


def _as_parameter(value: Any, name: str) -> Tensor:
    """A copy in double precision, of which no derivatives are wanted."""
    numbers = (
        value if isinstance(value, Tensor) else np.array(value)
    )  # a copy: torch warns of read-only arrays
    parameter = torch.as_tensor(numbers, dtype=torch.float64, device="cpu").detach().clone()
    if not bool(parameter.isfinite().all()):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return parameter


class GaussianBlur(ParametricOperator):
    r"""Blur by a Gaussian whose width is a parameter.

    Parameters
    ----------
    dims : tuple of int
        Shape of the image, (height, width) or (channels, height, width).
    sigma : float in pixels
        Standard deviation of the Gaussian.
    radius : int or None, default=None
        Distance in pixels from the centre of the kernel to its end; None is eight standard deviations,
        enough for a width of twice ``sigma``.

    Raises
    ------
    ValueError
        If ``sigma`` is not positive or the image has fewer than two dimensions.

    See Also
    --------
    gaussian_blur : Blur of a known width, with a shorter kernel.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import GaussianBlur
    >>> A = GaussianBlur((32, 32), 1.5)
    >>> point = np.zeros((32, 32))
    >>> point[16, 16] = 1
    >>> round(float((A @ point).sum()), 6)
    1.0
    """

    def __init__(self, dims: tuple[int, ...], sigma: float, *, radius: int | None = None) -> None:
        dims = tuple(int(size) for size in dims)
        if len(dims) < 2:
            raise ValueError(f"dims must be (height, width) or (channels, height, width), got {dims}")
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma!r}")
        self.radius = int(8 * sigma + 0.5) if radius is None else radius
        super().__init__(dims, dims, {"sigma": float(sigma)})

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        rows, columns = (self._along(n, parameters["sigma"]).to(x.dtype) for n in self.dims[-2:])
        return rows @ x @ columns

    def _along(self, n: int, sigma: Tensor) -> Tensor:
        """The blur of a line of ``n`` pixels as a symmetric matrix."""
        place = torch.arange(n, device=sigma.device)
        distance = (place[:, None] - place).abs()
        profile = torch.exp(-0.5 * (torch.arange(self.radius + 1, device=sigma.device) / sigma) ** 2)
        profile = profile / (2 * profile.sum() - profile[0])
        return torch.where(distance <= self.radius, profile[distance.clamp_max(self.radius)], 0)

    def apply_adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        return self.apply(y, parameters)  # the blur is symmetric

    def with_parameters(self, parameters: Mapping[str, Any]) -> Self:
        """Another width; its sign does not count, for a search may pass through zero."""
        sigma = super().with_parameters(parameters).parameters["sigma"]
        return super().with_parameters({"sigma": sigma.abs().clamp_min(_NARROW)})

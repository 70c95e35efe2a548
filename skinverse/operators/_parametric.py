"""Families of operators with unknown parameters, differentiable in them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from pylops import LinearOperator
from torch import Tensor

from skinverse._batch import norm
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap, check_shape, leading

Parameters = dict[str, Tensor]

# Least width of a blur that a search can end with.
_NARROW = 1e-3


class ParametricOperator(LinearOperator, ABC):
    """An operator that is one of a family: ``A(p)`` for parameters ``p`` that can be learned.

    A family is a subclass with :meth:`apply`, torch code that autograd can follow to the image and to the
    parameters, and :meth:`with_parameters`. An operator of it works wherever a pylops operator does; the
    adjoint comes by automatic differentiation. What is composed of it with other operators is fixed.

    Parameters
    ----------
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    parameters : dict of float or array
        The parameters by name; here they are stored as tensors in double precision.
    dtype : str, default="float64"
        Of images and data; a complex one is meant for both.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        dimsd: tuple[int, ...],
        parameters: dict[str, Any],
        dtype: str = "float64",
    ) -> None:
        self.parameters = {
            name: torch.as_tensor(value, dtype=torch.float64).detach().clone()
            for name, value in parameters.items()
        }
        super().__init__(dtype=np.dtype(dtype), dims=dims, dimsd=dimsd)

    @abstractmethod
    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """``A(p) x`` of a batch, (n, *dims) -> (n, *dimsd), linear in ``x``."""

    def apply_adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        """``A(p)^* y``, by automatic differentiation of what is linear."""
        complex_images = np.issubdtype(self.dtype, np.complexfloating)
        kind = y.dtype.to_complex() if complex_images else y.dtype
        wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (y, *parameters.values()))
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.dims, dtype=kind, device=y.device, requires_grad=True)
            forward = self.apply(x, parameters)
        (found,) = torch.autograd.grad(forward, x, y, create_graph=wanted)
        return found if wanted else found.detach()

    @abstractmethod
    def with_parameters(self, parameters: Parameters) -> Self:
        """Another member of the family."""

    def filtered(self, y: Tensor, parameters: Parameters, filter: str) -> Tensor:
        """The analytic inverse, if there is one."""
        raise TypeError(f"{type(self).__name__} has no analytic inverse")

    def at(self, parameters: Parameters) -> LinearMap:
        """The member with these parameters as a torch map, differentiable in them."""
        return _Member(self, parameters)

    def lowered(self) -> LinearMap:
        """The torch map of the parameters that it has."""
        return self.at(self.parameters)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        seen = np.ascontiguousarray(x, dtype=np.result_type(x, self.dtype))
        batch = torch.from_numpy(seen).reshape(1, *self.dims)
        return as_torch(self)(batch).numpy().ravel()

    def _rmatvec(self, y: np.ndarray) -> np.ndarray:
        seen = np.ascontiguousarray(y, dtype=np.result_type(y, self.dtype))
        batch = torch.from_numpy(seen).reshape(1, *self.dimsd)
        return as_torch(self).adjoint(batch).numpy().ravel()


class _Member(LinearMap):
    """One of a family; autograd goes through it to image, data and parameters."""

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
        """Spectral norm, differentiable where parameters are; they may change in between."""
        if not self.requires_grad:
            return super().norm()
        with torch.no_grad():
            self._direction = leading(self, self._direction)
        return norm(self(self._direction))[0]

    def filtered_adjoint(self, y: Tensor, filter: str = "ramp") -> Tensor:
        return self.family.filtered(y, self._like(y), filter)

    def _like(self, x: Tensor) -> Parameters:
        real = x.dtype.to_real()
        return {name: p.to(x.device, real) for name, p in self.parameters.items()}

    def _forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self.adjoint(y)


class GaussianBlur(ParametricOperator):
    r"""Blur by a Gaussian whose width is a parameter.

    Parameters
    ----------
    dims : tuple of int
        Shape of the image, (height, width) or (channels, height, width).
    sigma : float
        Standard deviation of the Gaussian in pixels.
    radius : int or None, default=None
        Pixels from the centre of the kernel to its end; None is eight standard deviations, enough for a
        width of twice ``sigma``.

    Raises
    ------
    ValueError
        If ``sigma`` is not positive or the image has fewer than two dimensions.

    See Also
    --------
    gaussian_blur : The same for a width that is known, with a kernel that ends sooner.

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
        """The blur of ``n`` pixels in a row as a symmetric matrix."""
        place = torch.arange(n, device=sigma.device)
        distance = (place[:, None] - place).abs()
        profile = torch.exp(-0.5 * (torch.arange(self.radius + 1, device=sigma.device) / sigma) ** 2)
        profile = profile / (2 * profile.sum() - profile[0])
        return torch.where(distance <= self.radius, profile[distance.clamp_max(self.radius)], 0)

    def apply_adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        return self.apply(y, parameters)  # it is symmetric

    def with_parameters(self, parameters: Parameters) -> GaussianBlur:
        sigma = max(abs(float(parameters["sigma"])), _NARROW)  # a search may pass through zero
        return GaussianBlur(self.dims, sigma, radius=self.radius)


class Turned(ParametricOperator):
    r"""An operator that sees the image turned by an unknown angle: projections whose angles have an offset.

    Parameters
    ----------
    operator : pylops.LinearOperator
        From images (height, width); all of its angles are too small by the offset.
    angle : float, default=0.0
        The offset in radians: the image is turned clockwise about its centre, by Fourier interpolation, zero
        from outside. What turns with it is all that the data can tell: only what an image looks like tells
        how it stood.

    Raises
    ------
    ValueError
        If the images of the operator do not have two dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import Turned, parallel_beam
    >>> A = parallel_beam((16, 16), [0.0, 0.5], 23)
    >>> x = np.zeros((16, 16))
    >>> x[8, 8] = 1.0
    >>> bool(np.allclose(Turned(A) @ x, A @ x))
    True
    """

    def __init__(self, operator: LinearOperator, angle: float = 0.0) -> None:
        if len(operator.dims) != 2:
            raise ValueError(f"operator: expected one of images (height, width), got dims {operator.dims}")
        self.operator = operator
        dtype = str(np.dtype(operator.dtype))
        check_finite(angle, "angle")
        super().__init__(tuple(operator.dims), tuple(operator.dimsd), {"angle": float(angle)}, dtype=dtype)

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        return as_torch(self.operator)(turn(x, parameters["angle"]))

    def filtered(self, y: Tensor, parameters: Parameters, filter: str) -> Tensor:
        return turn(as_torch(self.operator).filtered_adjoint(y, filter), -parameters["angle"])

    def with_parameters(self, parameters: Parameters) -> Turned:
        return Turned(self.operator, float(parameters["angle"]))


class Shifted(ParametricOperator):
    r"""An operator whose detector is shifted: projections about a centre of rotation that is unknown.

    Parameters
    ----------
    operator : pylops.LinearOperator
        To data (n_views, n_detectors), such as :func:`parallel_beam`.
    shift : float, default=0.0
        By how many pixels of the detector all data are moved towards larger indices, by Fourier
        interpolation; what comes in from outside is zero.

    Raises
    ------
    ValueError
        If the data of the operator do not have two dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import Shifted, parallel_beam
    >>> A = parallel_beam((8, 8), [0.0, 0.5], 13)
    >>> x = np.ones((8, 8))
    >>> bool(np.allclose((Shifted(A, 1.0) @ x)[:, 1:], (A @ x)[:, :-1]))
    True
    """

    def __init__(self, operator: LinearOperator, shift: float = 0.0) -> None:
        if len(operator.dimsd) != 2:
            raise ValueError(
                f"operator: expected one to data (n_views, n_detectors), got dimsd {operator.dimsd}"
            )
        self.operator = operator
        dtype = str(np.dtype(operator.dtype))
        check_finite(shift, "shift")
        super().__init__(tuple(operator.dims), tuple(operator.dimsd), {"shift": float(shift)}, dtype=dtype)

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        return shifted(as_torch(self.operator)(x), parameters["shift"])

    def filtered(self, y: Tensor, parameters: Parameters, filter: str) -> Tensor:
        return as_torch(self.operator).filtered_adjoint(shifted(y, -parameters["shift"]), filter)

    def with_parameters(self, parameters: Parameters) -> Shifted:
        return Shifted(self.operator, float(parameters["shift"]))


def check_finite(value: float, name: str) -> None:
    """Refuse what no operator has."""
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")


def shifted(y: Tensor, shift: Tensor) -> Tensor:
    """Data moved along their last axis, zero from outside."""
    n = y.shape[-1]
    if abs(float(shift.detach())) >= n:  # all of them are outside
        return 0 * y + 0 * shift.to(y.real.dtype)
    return moved(F.pad(y, (0, n + 1)), shift)[..., :n]


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Images turned clockwise about their centre, zero from outside: ``z(p) = x(R p)``.

    ``R`` is half a turn or none, and three shears, each of which moves rows or columns along themselves. They
    have a pixel in their centre, so that quarter turns move by whole pixels.
    """
    height, width = x.shape[-2:]
    halves = round(float(angle.detach()) / math.pi)
    rest = angle - math.pi * halves
    side = 3 * max(height, width) | 1  # nothing that a shear moves out comes in again
    centre, top, left = side // 2, (side - height) // 2, (side - width) // 2
    z = F.pad(x.flip((-2, -1)) if halves % 2 else x, (left, side - width - left, top, side - height - top))
    down, right = (
        torch.full_like(angle, centre - first - (n - 1) / 2) for first, n in ((top, height), (left, width))
    )
    i = torch.arange(side, device=x.device, dtype=angle.dtype) - centre
    along, across = torch.tan(rest / 2) * i, -torch.sin(rest) * i
    z = moved(moved(z, right).mT, down + along).mT
    z = moved(z, across)
    z = moved(moved(z.mT, along - down).mT, -right)
    return z[..., top : top + height, left : left + width]


def moved(x: Tensor, shift: Tensor) -> Tensor:
    """Periodic lines moved towards larger indices, all alike or each by its own shift.

    Between the pixels they are their Fourier series: smooth in the shift, and no shift blurs, so that none is
    favoured by a search.
    """
    frequencies = 2 * math.pi * torch.fft.fftfreq(x.shape[-1], device=x.device, dtype=shift.dtype)
    angles = shift[..., None] * frequencies
    if x.shape[-1] % 2 == 0:  # the highest frequency stands for both signs
        both = torch.arange(x.shape[-1], device=x.device) == x.shape[-1] // 2
        phases = torch.where(both, torch.cos(angles).to(angles.dtype.to_complex()), torch.exp(-1j * angles))
    else:
        phases = torch.exp(-1j * angles)
    z = torch.fft.ifft(torch.fft.fft(x) * phases.to(x.dtype.to_complex()))
    return z if x.is_complex() else z.real

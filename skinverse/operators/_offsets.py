"""Projections whose angles or detector have an unknown offset."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse.operators._inverse import AnalyticInverse
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap
from skinverse.operators._parametric import Parameters, ParametricOperator
from skinverse.operators._validation import check_is_operator


class _OffsetOperator(ParametricOperator):
    """A known operator with an unknown offset of its geometry."""

    def __init__(self, operator: LinearOperator, offset: dict[str, float]) -> None:
        self.operator = operator
        self._map: LinearMap | None = None  # of the operator, in the copies that maps are made of
        dtype = str(np.dtype(operator.dtype))
        super().__init__(tuple(operator.dims), tuple(operator.dimsd), offset, dtype=dtype)

    @property
    def analytic_inverse(self) -> AnalyticInverse:
        return self._known().analytic_inverse

    def at(self, parameters: Parameters) -> LinearMap:
        # as_torch takes a checksum of the operator: once for the map, not once for each application.
        prepared = copy.copy(self)
        prepared._map = as_torch(self.operator)
        return super(_OffsetOperator, prepared).at(parameters)

    def _known(self) -> LinearMap:
        return as_torch(self.operator) if self._map is None else self._map


class AngleOffset(_OffsetOperator):
    r"""An operator that sees the image rotated by an unknown angle: projections whose angles have an offset.

    Parameters
    ----------
    operator : pylops.LinearOperator
        The known operator, from images (height, width). Its angles are all too small by the offset.
    angle : float in radians, default=0.0
        The offset. The image is rotated clockwise about its centre by Fourier interpolation, with zeros
        outside. Data alone determine neither the offset nor the orientation of the object, only their sum;
        knowledge of images, such as that of a trained network, separates the two.

    Raises
    ------
    TypeError
        If ``operator`` is no pylops operator.
    ValueError
        If its images do not have two dimensions, or the angle is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import AngleOffset, parallel_beam
    >>> A = parallel_beam((16, 16), [0.0, 0.5], 23)
    >>> x = np.zeros((16, 16))
    >>> x[8, 8] = 1.0
    >>> bool(np.allclose(AngleOffset(A) @ x, A @ x))
    True
    """

    def __init__(self, operator: LinearOperator, angle: float = 0.0) -> None:
        check_is_operator(operator)
        if len(operator.dims) != 2:
            raise ValueError(f"operator: expected one of images (height, width), got dims {operator.dims}")
        super().__init__(operator, {"angle": angle})

    @property
    def measured(self) -> Tensor | None:
        return self._known().measured

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        return self._known()(rotate(x, parameters["angle"]))

    def filtered(self, y: Tensor, parameters: Parameters, weights: NDArray, filter: str) -> Tensor:
        return rotate(self._known().weighted_inverse(y, weights, filter), -parameters["angle"])


class DetectorOffset(_OffsetOperator):
    r"""An operator whose detector is shifted: projections about an unknown centre of rotation.

    Parameters
    ----------
    operator : pylops.LinearOperator
        The known operator, to data (n_views, n_detectors), such as :func:`parallel_beam`.
    shift : float in detector pixels, default=0.0
        Distance by which all data are shifted towards larger indices, by Fourier interpolation, with zeros
        from outside. It has the sign of the known ``offset`` of :func:`parallel_beam`, whose rays are moved
        instead, so that nothing is lost at the ends of the detector.

    Raises
    ------
    TypeError
        If ``operator`` is no pylops operator.
    ValueError
        If its data do not have two dimensions, or the shift is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import DetectorOffset, parallel_beam
    >>> A = parallel_beam((8, 8), [0.0, 0.5], 13)
    >>> x = np.ones((8, 8))
    >>> bool(np.allclose((DetectorOffset(A, 1.0) @ x)[:, 1:], (A @ x)[:, :-1]))
    True
    """

    def __init__(self, operator: LinearOperator, shift: float = 0.0) -> None:
        check_is_operator(operator)
        if len(operator.dimsd) != 2:
            raise ValueError(
                f"operator: expected one to data (n_views, n_detectors), got dimsd {operator.dimsd}"
            )
        super().__init__(operator, {"shift": shift})

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        return shift_into_zeros(self._known()(x), parameters["shift"])

    def filtered(self, y: Tensor, parameters: Parameters, weights: NDArray, filter: str) -> Tensor:
        back = shift_into_zeros(y, -parameters["shift"])
        return self._known().weighted_inverse(back, weights, filter)


def shift_into_zeros(y: Tensor, shift: Tensor) -> Tensor:
    """Lines shifted towards larger indices, in pixels, with zeros from outside."""
    n = y.shape[-1]
    if abs(float(shift.detach())) >= n:  # all of them are outside
        return 0 * y + 0 * shift.to(y.real.dtype)
    return fourier_shift(F.pad(y, (0, n + 1)), shift)[..., :n]


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Images rotated clockwise about their centre, in radians, with zeros outside: ``z(p) = x(R p)``.

    ``R`` is a rotation by pi or by none, followed by three shears, each of which shifts rows or columns
    (Unser, Thevenaz, Yaroslavsky, IEEE Transactions on Image Processing 4(10), 1995). The shears fix the
    pixel in the centre of a padded image, so that rotations by pi / 2 shift by whole numbers of pixels.
    """
    height, width = x.shape[-2:]
    halves = round(float(angle.detach()) / math.pi)
    rest = angle - math.pi * halves
    side = 3 * max(height, width) | 1  # wide enough: what a shear shifts out does not come in again
    centre, top, left = side // 2, (side - height) // 2, (side - width) // 2
    z = F.pad(x.flip((-2, -1)) if halves % 2 else x, (left, side - width - left, top, side - height - top))
    down, right = (
        torch.full_like(angle, centre - first - (n - 1) / 2) for first, n in ((top, height), (left, width))
    )
    i = torch.arange(side, device=x.device, dtype=angle.dtype) - centre
    along, across = torch.tan(rest / 2) * i, -torch.sin(rest) * i
    z = fourier_shift(fourier_shift(z, right).mT, down + along).mT
    z = fourier_shift(z, across)
    z = fourier_shift(fourier_shift(z.mT, along - down).mT, -right)
    return z[..., top : top + height, left : left + width]


def fourier_shift(x: Tensor, shift: Tensor) -> Tensor:
    """Periodic lines shifted towards larger indices, in pixels, by one shift or each by its own.

    Between pixels a line is its Fourier series. That is smooth in the shift, and no shift blurs, so that a
    search favours none of them.
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

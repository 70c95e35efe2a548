"""Parallel-beam tomography in two dimensions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse.operators._fbp import Projections
from skinverse.operators._inverse import Form
from skinverse.operators._joseph import Geometry, JosephMatrix
from skinverse.operators._lowering import register
from skinverse.operators._map import LinearMap
from skinverse.operators._sparse import SparseMap


class ParallelBeam(LinearOperator):
    """Line integrals along parallel rays: the operator that :func:`parallel_beam` makes and documents."""

    def __init__(
        self,
        dims: tuple[int, int],
        angles: ArrayLike,
        n_detectors: int,
        *,
        pixel_size: float = 1.0,
        detector_spacing: float | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        spacing = pixel_size if detector_spacing is None else detector_spacing
        geometry = Geometry(
            _height_and_width(dims),
            _radians(angles),
            _positive_int(n_detectors, "n_detectors"),
            _length(pixel_size, "pixel_size"),
            _length(spacing, "detector_spacing"),
        )
        self._rows = JosephMatrix(geometry, _real(dtype))
        shape = (len(geometry.angles), geometry.n_detectors)
        super().__init__(dtype=self._rows.dtype, dims=geometry.dims, dimsd=shape)

    @property
    def angles(self) -> NDArray[np.float64]:
        """Directions in radians."""
        return self._rows.geometry.angles

    @property
    def n_detectors(self) -> int:
        """Number of detector elements."""
        return self._rows.geometry.n_detectors

    @property
    def pixel_size(self) -> float:
        """Side of a pixel."""
        return self._rows.geometry.pixel_size

    @property
    def detector_spacing(self) -> float:
        """Distance between neighbouring detector elements."""
        return self._rows.geometry.detector_spacing

    def matrix(self) -> sp.csr_array:
        """Return the matrix of shape (n_angles * n_detectors, height * width), which must not be changed.

        The first call builds it; every call does so if the matrix is too large to be stored.

        Returns
        -------
        scipy.sparse.csr_array
            Weights in units of length, with 32-bit indices.

        Raises
        ------
        ValueError
            If 32-bit indices cannot count the entries.
        """
        return self._rows.whole()

    def _matmat(self, X: Any) -> NDArray:
        X = X.toarray() if sp.issparse(X) else X  # the identity of todense
        return np.concatenate([matrix @ X for _, matrix in self._rows.pieces()])

    def _rmatmat(self, X: NDArray) -> NDArray:
        views = X.reshape(*self.dimsd, -1)
        pieces = self._rows.pieces()
        return sum(matrix.T @ views[angles].reshape(matrix.shape[0], -1) for angles, matrix in pieces)

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()


@register(ParallelBeam)
def _lower(operator: ParallelBeam) -> LinearMap:
    return _ParallelBeamMap(operator._rows)


class _ParallelBeamMap(LinearMap):
    """Batched products with the stored matrix or, where it is too large, with a few angles at a time."""

    def __init__(self, rows: JosephMatrix) -> None:
        geometry = rows.geometry
        super().__init__(geometry.dims, (len(geometry.angles), geometry.n_detectors))
        self._rows = rows

    def _pieces(self) -> Iterator[tuple[slice, LinearMap]]:
        if self._rows.is_stored:
            self._parts = self._parts or (SparseMap(self._rows.whole(), self.dims, self.dimsd),)
            yield slice(None), self._parts[0]
            return
        for angles, matrix in self._rows.pieces():
            n_angles = matrix.shape[0] // self.dimsd[1]
            yield angles, SparseMap(matrix, self.dims, (n_angles, self.dimsd[1]))

    def _forward(self, x: Tensor) -> Tensor:
        return torch.cat([piece._forward(x) for _, piece in self._pieces()], dim=1)

    def _adjoint(self, y: Tensor) -> Tensor:
        images = reduce(torch.add, (piece._adjoint(y[:, angles]) for angles, piece in self._pieces()))
        return images.contiguous()

    def precision(self) -> torch.dtype:
        return torch.float32 if self._rows.dtype == np.float32 else torch.float64

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        """Keep some angles."""
        return _ParallelBeamMap(self._rows.block(slice(start, stop, step)))

    def form_after(self, inner: Form) -> Form | None:
        views, (rows,) = Projections.of_scans([self._rows.geometry])
        return inner.through(views, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": ()}


def parallel_beam(
    dims: tuple[int, int],
    angles: ArrayLike,
    n_detectors: int,
    *,
    pixel_size: float = 1.0,
    detector_spacing: float | None = None,
    dtype: DTypeLike = "float32",
) -> ParallelBeam:
    r"""Two-dimensional parallel-beam transform: line integrals of an image.

    Lengths are in the unit of ``pixel_size``. If that is mm, and the image an attenuation per mm, the data
    have no unit.

    Parameters
    ----------
    dims : tuple of int
        Height and width of the image in pixels, odd or even.
    angles : array_like of shape (n_angles,), in radians
        Directions :math:`\theta`, in any order.
    n_detectors : int
        Number of detector elements. The detector covers the whole image at every angle if it is
        ``hypot(height, width)`` pixel sizes long.
    pixel_size : float, default=1.0
        Side of a pixel, in any unit of length.
    detector_spacing : float, default=None
        Distance between neighbouring elements in the same unit; None is ``pixel_size``.
    dtype : {"float32", "float64"}, default="float32"
        Precision of the matrix.

    Returns
    -------
    pylops.LinearOperator
        The operator from images (height, width) to data (n_angles, n_detectors). It has the arguments as
        attributes, and a method ``matrix()`` that returns its sparse matrix.

    Raises
    ------
    ValueError
        If there is no angle, an angle is not finite, or a size or length is not positive.

    Warns
    -----
    UserWarning
        If angles beyond :math:`2\pi` look like degrees.

    Notes
    -----
    **Geometry.** The element ``d`` at angle :math:`\theta` measures the integral along the line

    .. math:: u \cos\theta + v \sin\theta = s_d,
       \qquad s_d = \bigl(d - \tfrac{n - 1}{2}\bigr) \cdot \text{detector spacing},

    where the pixel in row ``i`` and column ``j`` has its centre at

    .. math:: u_j = \bigl(j - \tfrac{W - 1}{2}\bigr) \cdot \text{pixel size} \text{ (to the right)},
       \qquad v_i = \bigl(\tfrac{H - 1}{2} - i\bigr) \cdot \text{pixel size} \text{ (upwards)}.

    The centre of rotation is the geometric centre of the image and of the detector, whether their sizes are
    odd or even; if both sides of the image are even, four pixels meet there. At :math:`\theta = 0` the data
    are the sums of the columns, at :math:`\pi / 2` those of the rows from the lowest to the uppermost. This
    is the orientation of ASTRA's ``parallel`` geometry.

    **Weights.** A ray that is nearer to the vertical is sampled where it crosses the rows of pixel centres,
    by linear interpolation between neighbouring pixels with zeros outside of the image, and multiplied by
    its length ``pixel_size / |cos|`` from row to row. For all other rays, columns take the place of rows
    [1]_. The adjoint is the transposed matrix.

    **Memory.** The sparse matrix is built on first use and kept. It has about
    ``2 * height * width * n_angles * 0.9`` entries (at equal spacings) of 8 bytes in float32, and is stored
    twice for fast adjoints. A matrix larger than ``skinverse.operators._joseph.MAX_STORED_BYTES`` = 2 GiB is
    not stored: every application builds it anew, a few angles at a time, which takes about ten times as
    long.

    References
    ----------
    .. [1] Joseph, "An improved algorithm for reprojecting rays through pixel images", IEEE Transactions
       on Medical Imaging 1(3), 1982.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import parallel_beam
    >>> A = parallel_beam((2, 4), [0, np.pi / 2], 4)
    >>> x = np.arange(8, dtype=np.float32).reshape(2, 4)
    >>> (A @ x).round(3)
    array([[ 4.,  6.,  8., 10.],
           [ 0., 22.,  6.,  0.]], dtype=float32)
    """
    return ParallelBeam(
        dims, angles, n_detectors, pixel_size=pixel_size, detector_spacing=detector_spacing, dtype=dtype
    )


def _height_and_width(dims: tuple[int, int]) -> tuple[int, int]:
    if np.shape(dims) != (2,):
        raise ValueError(f"dims must be the height and width of the image, got {dims!r}")
    return _positive_int(dims[0], "the height"), _positive_int(dims[1], "the width")


def _positive_int(value: int, name: str) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")
    return int(value)


def _length(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive length, got {value!r}")
    return float(value)


def _real(dtype: DTypeLike) -> np.dtype:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    return np.dtype(dtype)


def _radians(angles: ArrayLike) -> NDArray[np.float64]:
    radians = np.array(angles, dtype=np.float64)
    if radians.ndim != 1 or radians.size == 0:
        raise ValueError(f"angles must be a non-empty one-dimensional array, got shape {radians.shape}")
    if not np.isfinite(radians).all():
        raise ValueError("angles must be finite, got NaN or infinity")
    if np.abs(radians).max() > 2 * np.pi + 1e-6:
        largest = np.abs(radians).max()
        warnings.warn(
            f"angles are in radians, but their largest, {largest:g}, looks like degrees: use numpy.deg2rad",
            UserWarning,
            stacklevel=4,
        )
    return radians

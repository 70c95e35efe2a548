"""Fan-beam tomography in two dimensions."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike, DTypeLike

from skinverse.operators import _geometry
from skinverse.operators._geometry import FanScan
from skinverse.operators._scanner import ScanOperator


class FanBeam(ScanOperator):
    """Line integrals along the rays of a fan: the operator that :func:`fan_beam` makes and documents."""

    def __init__(self, scan: FanScan, offset: ArrayLike, dtype: DTypeLike) -> None:
        _check(scan)
        super().__init__(scan, offset, dtype)
        self._scan = scan

    @property
    def source_distance(self) -> float:
        """Distance of the source from the rotation axis."""
        return self._scan.source_distance

    @property
    def detector_distance(self) -> float:
        """Distance of the detector from the rotation axis."""
        return self._scan.detector_distance

    @property
    def curved(self) -> bool:
        """Whether the detector is an arc about the source."""
        return self._scan.curved


def fan_beam(
    dims: tuple[int, int],
    angles: ArrayLike,
    n_detectors: int,
    *,
    source_distance: float,
    detector_distance: float,
    curved: bool = False,
    offset: ArrayLike = 0.0,
    spacing: float | None = None,
    pixel_size: float = 1.0,
    dtype: DTypeLike = "float32",
) -> FanBeam:
    r"""Two-dimensional fan-beam transform: line integrals of an image along rays from a source.

    All lengths are in one unit. If that is mm, and the image an attenuation per mm, the data have no unit.

    Parameters
    ----------
    dims : tuple of int
        Height and width of the image in pixels, odd or even.
    angles : array_like of shape (n_angles,), in radians
        Angles :math:`\theta` of the views, in any order, over any range.
    n_detectors : int
        Number of detector elements.
    source_distance : float
        Distance :math:`R` from the source to the rotation axis.
    detector_distance : float
        Distance :math:`D` from the rotation axis to the detector; zero is a detector in the axis, to whose
        scale data are often brought.
    curved : bool, default=False
        Whether the detector is an arc about the source, at the distance :math:`R + D`, or flat.
    offset : float or array_like of shape (n_angles,), default=0.0
        Where the ray through the rotation axis meets the detector, from the detector's centre towards higher
        indices, in elements: one number, or one for each view.
    spacing : float, default=None
        Distance between neighbouring elements on the detector, along the arc if it is curved; None is a pixel
        magnified from the rotation axis to the detector, ``pixel_size * (R + D) / R``.
    pixel_size : float, default=1.0
        Side of a pixel.
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
        If the source is inside the image, there is no angle, an angle or offset is not finite, their numbers
        differ, a size or length is not positive, or a ray leaves the source away from the axis.

    Warns
    -----
    UserWarning
        If angles look like degrees, see :func:`parallel_beam`.

    Notes
    -----
    **Geometry.** Coordinates are those of :func:`parallel_beam`: ``u`` to the right, ``v`` upwards, the
    rotation axis in the centre of the image. At the angle :math:`\theta` the source is at
    :math:`R (\sin\theta, -\cos\theta)`, the detector on the other side of the axis, and its elements run
    along :math:`(\cos\theta, \sin\theta)`: at :math:`\theta = 0` the source is below, the detector above, and
    the elements run to the right. This is the orientation of ASTRA's ``fanflat`` geometry. The ray to the
    element ``d`` has the angle

    .. math:: \gamma_d = \arctan \frac{s_d}{R + D} \text{ (flat)}, \quad \frac{s_d}{R + D} \text{ (curved)},
       \qquad s_d = \bigl(d - \tfrac{n - 1}{2} - \text{offset}\bigr) \cdot \text{spacing},

    to the one through the axis, and is the line
    :math:`u \cos(\theta - \gamma_d) + v \sin(\theta - \gamma_d) = R \sin\gamma_d`.

    **Weights and memory** are those of :func:`parallel_beam`, and so is the family, whose parameters are the
    two distances in addition; the spacing of the elements does not change with them.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import fan_beam
    >>> A = fan_beam((3, 3), [0, np.pi], 3, source_distance=100, detector_distance=50)
    >>> x = np.zeros((3, 3), dtype=np.float32)
    >>> x[:, 2] = 1
    >>> (A @ x).round(1)
    array([[0., 0., 3.],
           [3., 0., 0.]], dtype=float32)
    """
    size, views = _geometry.height_and_width(dims), _geometry.radians(angles)
    pixel = _geometry.length(pixel_size, "pixel_size")
    source, detector = float(source_distance), float(detector_distance)
    offsets = _geometry.offsets(offset, len(views))
    n = _geometry.positive_int(n_detectors, "n_detectors")
    if spacing is None:
        spacing = pixel * (source + detector) / _geometry.length(source, "source_distance")
    element = _geometry.length(spacing, "spacing")
    scan = FanScan(size, views, n, offsets + 0 * views, element, pixel, source, detector, bool(curved))
    return FanBeam(scan, offsets, dtype)


def _check(scan: FanScan) -> None:
    """Refuse distances with which rays enter the image from within, or miss it."""
    radius = math.hypot(*scan.dims) / 2 * scan.pixel_size
    if not radius < scan.source_distance < math.inf:
        raise ValueError(
            f"source_distance: expected more than half the diagonal of the image, {radius:g}, "
            f"or the source would be inside the object, got {scan.source_distance:g}"
        )
    if not 0 <= scan.detector_distance < math.inf:
        raise ValueError(
            f"detector_distance: expected a length of zero or more, got {scan.detector_distance!r}"
        )
    widest = (scan.n_detectors / 2 + max(abs(scan.offset))) * scan.spacing
    if scan.curved and widest >= math.pi / 2 * (scan.source_distance + scan.detector_distance):
        raise ValueError(
            "spacing: expected a curved detector of less than a right angle on either side, "
            f"got {scan.n_detectors} elements of {scan.spacing:g}"
        )

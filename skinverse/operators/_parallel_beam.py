"""Parallel-beam tomography in two dimensions."""

from __future__ import annotations

from numpy.typing import ArrayLike, DTypeLike

from skinverse.operators import _geometry
from skinverse.operators._geometry import ParallelScan
from skinverse.operators._scanner import ScanOperator


class ParallelBeam(ScanOperator):
    """Line integrals along parallel rays: the operator that :func:`parallel_beam` makes and documents."""


def parallel_beam(
    dims: tuple[int, int],
    angles: ArrayLike,
    n_detectors: int | None = None,
    *,
    offset: ArrayLike = 0.0,
    spacing: float | None = None,
    pixel_size: float = 1.0,
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
        Directions :math:`\theta`, in any order, over any range.
    n_detectors : int, default=None
        Number of detector elements. None is the smallest number that covers the whole image at every angle.
    offset : float or array_like of shape (n_angles,), default=0.0
        Where the rotation axis meets the detector, from the detector's centre towards higher indices, in
        elements: one number, or one for each view.
    spacing : float, default=None
        Distance between neighbouring elements, in any unit of length; None is ``pixel_size``.
    pixel_size : float, default=1.0
        Side of a pixel in the same unit.
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
        If there is no angle, an angle or offset is not finite, their numbers differ, or a size or length is
        not positive.

    Warns
    -----
    UserWarning
        If angles look like degrees: some are beyond :math:`2\pi`, and the median step between neighbours,
        in whatever order they are given, is more than half a radian.

    Notes
    -----
    **Geometry.** The element ``d`` at angle :math:`\theta` measures the integral along the line

    .. math:: u \cos\theta + v \sin\theta = s_d,
       \qquad s_d = \bigl(d - \tfrac{n - 1}{2} - \text{offset}\bigr) \cdot \text{spacing},

    where the pixel in row ``i`` and column ``j`` has its centre at

    .. math:: u_j = \bigl(j - \tfrac{W - 1}{2}\bigr) \cdot \text{pixel size} \text{ (to the right)},
       \qquad v_i = \bigl(\tfrac{H - 1}{2} - i\bigr) \cdot \text{pixel size} \text{ (upwards)}.

    The centre of rotation is the geometric centre of the image, and of the detector if the offset is zero,
    whether their sizes are odd or even; if both sides of the image are even, four pixels meet there. At
    :math:`\theta = 0` the data are the sums of the columns, at :math:`\pi / 2` those of the rows from the
    lowest to the uppermost. This is the orientation of ASTRA's ``parallel`` geometry.

    **Weights.** A ray that is nearer to the vertical is sampled where it crosses the rows of pixel centres,
    by linear interpolation between neighbouring pixels with zeros outside of the image, and multiplied by
    its length ``pixel_size / |cos|`` from row to row. For all other rays, columns take the place of rows
    [1]_. The adjoint is the transposed matrix.

    **Memory.** A sparse matrix of up to 256 MiB is built on first use and kept, twice for fast adjoints. It
    has about ``2 * height * width * n_angles * 0.9`` entries (at equal spacings) of 8 bytes in float32. The
    weights of a larger one are computed as they are needed, by a compiled kernel, in as many threads as
    torch uses and with the same result for any number of them. The first use of the kernel on a machine
    compiles it, which takes seconds.

    **A family.** ``offset`` and ``angles`` are parameters as those of a :class:`ParametricOperator`: searches
    know them as ``operator__offset``, ``with_parameters({"offset": 1.5})`` is another scan with the same
    detector, and :class:`~skinverse.ModelAdaptation` seeks those that it is told to. The derivatives are
    those of the linear interpolation, which jump where a ray passes through the centre of a pixel; the
    analytic inverse has them, too, with the share of every ray in the half circle taken for constant.

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
    size, views = _geometry.height_and_width(dims), _geometry.radians(angles)
    pixel = _geometry.length(pixel_size, "pixel_size")
    element = pixel if spacing is None else _geometry.length(spacing, "spacing")
    offsets = _geometry.offsets(offset, len(views))
    if n_detectors is None:
        n_detectors = _geometry.covering(size, offsets, element / pixel)
    n = _geometry.positive_int(n_detectors, "n_detectors")
    return ParallelBeam(ParallelScan(size, views, n, offsets + 0 * views, element, pixel), offsets, dtype)

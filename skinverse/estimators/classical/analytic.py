"""Reconstruction by a formula: filtered back-projection and zero filling."""

from __future__ import annotations

from torch import Tensor

from skinverse._parameters import OneOf, parameter
from skinverse.estimators._base import BaseReconstructor
from skinverse.operators import AnalyticInverse, LinearMap
from skinverse.solvers import Solution


class FilteredBackProjection(BaseReconstructor):
    """Filtered back-projection: the inversion formula of CT.

    The data are filtered along the detector and smeared back along the rays, ``x = A^* (h * y)`` in physical
    units, where every view stands for a part of the half circle: half of the gaps to both of its neighbours.

    The operator is a :func:`~skinverse.operators.parallel_beam`, a :func:`~skinverse.operators.fan_beam`, or
    made of one: the views of several scans by one detector, weighted, selected or repeated data, weighted or
    reordered pixels. The same linear map gives the same image, however it is written.

    Raises
    ------
    TypeError
        By ``predict``, if the operator has no such formula.

    See Also
    --------
    ZeroFilled : For sampled Fourier data.
    Tikhonov : For any operator.

    Notes
    -----
    Angles may be in any order and make more than one turn; views in the same direction, or in the opposite
    one, are averaged. Data are divided by their weights (a diagonal to the left of the projections), and the
    image by those of its pixels. Data of weight zero are not measured: a view without any measured element is
    left out, and single elements are interpolated along the detector, constant beyond the last measured one.

    A wide gap between angles, more than three times as wide as those beside it and than 36 degrees, is a
    missing wedge, for which no view stands. The weights of the views make up the half circle all the same,
    so that the mean of the image is kept.

    Rays that are measured twice, in a full turn of a fan or of a detector at one side of the axis, or in the
    overlap of a short scan, have weights that sum to one and fall smoothly to zero at the ends of the scan
    and of the detector (Parker's weights in the form of Noo and others). If a detector does not see all of
    the image, and something is measured at its end, the view is continued by the root of the parabola through
    the squares near that end: the projection of an ellipse. That much is not linear in the data.

    References
    ----------
    A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, SIAM, 2001, chapter 3.

    F. Noo, M. Defrise, R. Clackdoyle and H. Kudo, Image reconstruction from fan-beam projections on less than
    a short scan, Physics in Medicine and Biology 47(14), 2002.

    J. Hsieh and others, A novel reconstruction algorithm to extend the CT scan field-of-view, Medical Physics
    31(9), 2004.

    Examples
    --------
    >>> from skinverse import FilteredBackProjection
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("ct", n_samples=2, size=32, noise=0.01, random_state=0)
    >>> FilteredBackProjection(A, filter="hann").fit().predict(data).shape
    (2, 32, 32)
    """

    filter: str = parameter(
        default="ramp",
        allowed=OneOf("ramp", "shepp-logan", "cosine", "hamming", "hann"),
        doc='Window on the ramp filter: "ramp" is the sharpest, "hann" the smoothest.',
    )

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if AnalyticInverse.FILTERED_BACK_PROJECTION not in A.analytic_inverse:
            raise TypeError(
                "FilteredBackProjection needs projections of parallel beams: use ZeroFilled for sampled "
                "Fourier or cosine transforms, Tikhonov for any other operator"
            )
        return Solution.direct(A.filtered_adjoint(data, filter=self.filter))


class ZeroFilled(BaseReconstructor):
    """Zero filling: the inverse transform of sampled Fourier or cosine data, what is missing being zero.

    ``x = A^* y`` for an orthonormal transform of which some coefficients were measured. The images of several
    coils are combined by the sum of squares of their maps, ``sum_c conj(S_c) x_c / sum_c |S_c|^2``, and are
    zero where all maps are.

    The operator is a :func:`~skinverse.operators.fourier_sampling` or
    :func:`~skinverse.operators.structurally_random`, or another one made of a transform and of weighted,
    selected, repeated or reordered data and pixels. Data are divided by their weights, so that whitening
    changes nothing, repeated ones are averaged, and those of weight zero are not measured. The same linear
    map gives the same image, however it is written.

    Raises
    ------
    TypeError
        By ``predict``, if the operator is of another kind.

    See Also
    --------
    FilteredBackProjection : For projections.
    Tikhonov : For any operator.

    References
    ----------
    K. P. Pruessmann, M. Weiger, M. B. Scheidegger and P. Boesiger, SENSE: sensitivity encoding for fast MRI,
    Magnetic Resonance in Medicine 42, 1999.

    Examples
    --------
    >>> from skinverse import ZeroFilled
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("mri", n_samples=2, size=16, random_state=0)
    >>> ZeroFilled(A).fit().predict(data).shape
    (2, 16, 16)
    """

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if AnalyticInverse.ZERO_FILLING not in A.analytic_inverse:
            raise TypeError(
                "ZeroFilled needs a sampled Fourier or cosine transform: use FilteredBackProjection for "
                "projections, Tikhonov for any other operator"
            )
        return Solution.direct(A.filtered_adjoint(data))

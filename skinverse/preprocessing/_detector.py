"""Faults of detectors: elements that count wrongly all the time, and values that are struck once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

from skinverse._parameters import Integer, Real
from skinverse.preprocessing._checks import allowed, finite

Array = NDArray[Any]


def remove_rings(sinogram: ArrayLike, *, size: int = 21) -> Array:
    """Remove the stripes of detector elements that are wrong in all views, which make rings in an image.

    Parameters
    ----------
    sinogram : array-like of shape (..., n_angles, n_detectors)
        Line integrals; every row of a stack is one by itself.
    size : odd int, default=21
        Detector elements of the median. Stripes of less than half of it are removed; structures of the object
        are smoothed a little if they are.

    Returns
    -------
    ndarray of the shape of ``sinogram``
        The sinogram without stripes.

    Raises
    ------
    ValueError
        If it has less than two axes or values that are not finite, or ``size`` is not odd and positive.

    See Also
    --------
    minus_log : Its interpolation over dead elements comes before.

    Notes
    -----
    This is the third algorithm of the reference: each element's values are sorted, a median is taken over
    neighbouring elements, and the values are put back in their places in time. Sorted values change slowly
    from one element to the next unless an element is wrong. Stripes whose strength changes from view to view
    are left.

    References
    ----------
    N. T. Vo, R. C. Atwood and M. Drakopoulos, "Superior techniques for eliminating ring artifacts in X-ray
    micro-tomography", Optics Express 26(22), 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.preprocessing import remove_rings
    >>> sinogram = np.ones((4, 9))
    >>> sinogram[:, 5] += 0.3
    >>> bool(np.all(remove_rings(sinogram, size=5) == 1))
    True
    """
    y = finite(sinogram, "sinogram", ndim=2)
    allowed(size, "size", Integer(ge=1, odd=True))
    order = np.argsort(y, axis=-2, kind="stable")
    neighbours = (*[1] * (y.ndim - 1), size)
    smooth = median_filter(np.take_along_axis(y, order, axis=-2), size=neighbours, mode="reflect")
    corrected = np.empty_like(y)
    np.put_along_axis(corrected, order, smooth, axis=-2)
    return corrected


def remove_zingers(projections: ArrayLike, *, threshold: float, size: int = 3) -> Array:
    """Remove single bright values, as scattered X-rays leave them that strike the camera directly.

    Parameters
    ----------
    projections : array-like of shape (..., n_rows, n_detectors)
        Counts or line integrals. The median is taken over the last two axes, so of one row of the detector,
        (n_angles, n_detectors), over neighbouring angles.
    threshold : float > 0
        How much more than the median around it makes a value a zinger, in the unit of the projections; for
        counts several times the standard deviation of the noise.
    size : odd int, default=3
        Side of the square of the median.

    Returns
    -------
    ndarray of the shape of ``projections``
        The projections with medians in place of the zingers; all else is as it was.

    Raises
    ------
    ValueError
        If there are less than two axes, values that are not finite, or a parameter is out of range.

    References
    ----------
    D. Gürsoy, F. De Carlo, X. Xiao and C. Jacobsen, "TomoPy: a framework for the analysis of synchrotron
    tomographic data", Journal of Synchrotron Radiation 21(5), 2014 (``remove_outlier``).

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.preprocessing import remove_zingers
    >>> counts = np.full((3, 4), 100.0)
    >>> counts[1, 2] = 900
    >>> bool(np.all(remove_zingers(counts, threshold=50) == 100))
    True
    """
    y = finite(projections, "projections", ndim=2)
    allowed(threshold, "threshold", Real(gt=0))
    allowed(size, "size", Integer(ge=1, odd=True))
    median = median_filter(y, size=(*[1] * (y.ndim - 2), size, size), mode="reflect")
    return np.where(y - median > threshold, median, y)

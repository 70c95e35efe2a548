"""Convolution with a point spread function, and how the image goes on beyond its border."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse.operators._arguments import NUMBERS, told
from skinverse.operators._bridge import known_to_torch
from skinverse.operators._circulant import BOUNDARIES
from skinverse.operators._lowering import as_torch, register
from skinverse.operators._map import LinearMap
from skinverse.operators._validation import sizes, whole_numbers

Images = TypeVar("Images", NDArray, Tensor)


class Convolution(LinearOperator):
    """Convolution with a point spread function: the operator that :func:`convolution` makes and documents."""

    def __init__(
        self,
        psf: ArrayLike,
        dims: int | Sequence[int],
        boundary: str,
        centre: int | Sequence[int] | None = None,
    ) -> None:
        self.psf, self.boundary = _numbers(psf), _known(boundary)
        self.centre = _centre(centre, self.psf.shape)
        image = sizes(dims)
        if self.psf.ndim > len(image):
            raise ValueError(f"psf must have no more axes than dims {image}, got shape {self.psf.shape}")
        if boundary != "zero":  # nothing is beyond a black border, however far the kernel reaches
            _check_that_it_fits(self.psf, image)
        others = (1,) * (len(image) - self.psf.ndim)
        self._kernel_sizes = (*others, *self.psf.shape)
        self._origin = (*(0 for _ in others), *self.centre)
        # How many pixels an image has more than its data along each axis, and how many of them before these.
        lost = [k - 1 if boundary == "valid" else 0 for k in self._kernel_sizes]
        self._before = tuple(max(k - c, 0) for k, c in zip(lost, self._origin, strict=True))
        self._image, self._data = image, tuple(n - k for n, k in zip(image, lost, strict=True))
        super().__init__(dtype=self.psf.dtype, dims=self._image, dimsd=self._data)

    def crop_to_data(self, images: Images) -> Images:
        """The pixels that the data lie on: for each datum that under the centre of the kernel.

        Parameters
        ----------
        images : ndarray or Tensor of shape (..., *dims)
            Images, such as those reconstructed from data with the boundary "valid".

        Returns
        -------
        ndarray or Tensor of shape (..., *dimsd)
            View of the images; with any other boundary, all of them.

        Raises
        ------
        ValueError
            If the images have other sizes.
        """
        if tuple(images.shape[-len(self._image) :]) != self._image:
            expected = ", ".join(["...", *map(str, self._image)])
            raise ValueError(f"images must be of shape ({expected}), got {tuple(images.shape)}")
        part: Any = tuple(slice(start, start + n) for start, n in zip(self._before, self._data, strict=True))
        return images[(..., *part)]

    def _matmat(self, X: Any) -> NDArray:
        A = as_torch(self)
        return A(self._rows(X, A.dims)).flatten(1).numpy().T

    def _rmatmat(self, X: Any) -> NDArray:
        A = as_torch(self)
        return A.adjoint(self._rows(X, A.dimsd)).flatten(1).numpy().T

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()

    def _rows(self, X: Any, shape: tuple[int, ...]) -> Tensor:
        """The columns of a matrix as a batch; todense() gives a sparse one."""
        columns = X.toarray() if sp.issparse(X) else X
        rows = np.require(columns.T, np.result_type(columns, self.dtype), ["C", "W"])
        return torch.from_numpy(rows).reshape(-1, *shape)


class GaussianConvolution(Convolution):
    """Convolution with a Gaussian: the operator that :func:`gaussian_blur` makes and documents."""

    def __init__(
        self, dims: tuple[int, ...], sigma: float | Sequence[float], truncate: float, boundary: str
    ) -> None:
        widths = np.ravel([sigma, sigma] if np.ndim(sigma) == 0 else sigma)
        kernel = reduce(np.multiply.outer, [_profile(width, truncate) for width in widths])
        super().__init__(kernel, dims, boundary)
        self.sigma = float(widths[0]) if np.ndim(sigma) == 0 else tuple(map(float, widths))
        self.truncate = float(truncate)


@register(Convolution, GaussianConvolution)
def _lower(operator: Convolution) -> LinearMap:
    make = BOUNDARIES[operator.boundary]
    return make(operator.psf.reshape(operator._kernel_sizes), operator._origin, operator._image)


def convolution(
    psf: ArrayLike,
    dims: int | Sequence[int],
    *,
    boundary: str = "zero",
    centre: int | Sequence[int] | None = None,
) -> Convolution:
    r"""Convolution with a known point spread function: microscopes, telescopes, cameras out of focus.

    Parameters
    ----------
    psf : array_like
        Point spread function, the image of one point: measured or computed, of odd or even size, real or
        complex, with one axis for each of the last axes of ``dims``. Images along all other axes, such as
        channels, are blurred one by one. It is used as it is: one that does not sum to one also changes the
        brightness, and integers become floating point numbers. Divide by ``psf.sum()``, after its
        background was subtracted, to keep the brightness.
    dims : tuple of int
        Shape of the image.
    boundary : {"zero", "periodic", "reflect", "valid"}, default="zero"
        Continuation of the image beyond its border, see the notes.
    centre : tuple of int, default=None
        Pixel of the point spread function that is the place of the point; ``n // 2`` along each axis by
        default. With another one, all images are shifted.

    Returns
    -------
    pylops.LinearOperator
        The operator from images ``dims`` to data of the same shape or, with "valid", smaller by the size of
        ``psf`` minus one along each of its axes. It has the arguments ``psf``, ``boundary`` and ``centre`` as
        attributes, and a method ``crop_to_data(images)`` that returns the pixels of images which the data lie
        on. Its precision is that of ``psf``.

    Raises
    ------
    ValueError
        If ``psf`` has more axes than ``dims`` or is larger, holds nothing but zeros or a value that is not
        finite, if ``centre`` is not a pixel of it, ``boundary`` is unknown, or ``dims`` are not positive
        whole numbers.

    See Also
    --------
    microscope_psf : Point spread function of a microscope.
    gaussian_blur : Gaussian point spread function.

    Notes
    -----
    With the point spread function :math:`h` and its centre :math:`c`, along each axis,

    .. math:: y_i = \sum_j h_j \, x_{i + c - j} .

    Beyond the border of an image ``a b c d`` there is

    ==============  =====================  ================================================================
    ``"zero"``      ``0 0 0|a b c d|0 0``  darkness, as around a specimen that is all in the picture
    ``"periodic"``  ``b c d|a b c d|a b``  the other end of the image; the norm is exact, and an application
                                           is the fastest
    ``"reflect"``   ``c b a|a b c d|d c``  the mirror image, with the pixel at the border twice
    ``"valid"``     nothing                no data where the kernel would reach beyond the image
    ==============  =====================  ================================================================

    The first three are the modes ``constant``, ``wrap`` and ``reflect`` of :func:`scipy.ndimage.convolve`,
    for odd and even sizes, with its ``origin = centre - n // 2``. The last one is the mode ``valid`` of
    :func:`scipy.signal.fftconvolve`, whatever the centre, which only says where the data lie on the image.

    A photograph is cut from a larger scene. What was beyond its border has been blurred into it, and all that
    is known of it is in the data: take "valid", with images that are larger than the data. With any other
    border, a reconstruction invents what is not there, and is wrong far into the image.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import convolution
    >>> psf = np.array([[0.0, 1.0, 0.0], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]])
    >>> A = convolution(psf / psf.sum(), (16, 18), boundary="valid")
    >>> A.dimsd
    (14, 16)
    >>> image = np.random.default_rng(0).random((16, 18))
    >>> bool(np.allclose(A.crop_to_data(image), image[1:-1, 1:-1]))
    True
    """
    operator = Convolution(psf, dims, boundary, centre)
    _check_that_it_fits(operator.psf, operator.dims)
    return operator


def gaussian_blur(
    dims: tuple[int, ...],
    sigma: float | Sequence[float],
    *,
    truncate: float = 4.0,
    boundary: str = "zero",
) -> Convolution:
    r"""Blur by a Gaussian of known width.

    Parameters
    ----------
    dims : tuple of int
        Shape of the image, of two or more axes.
    sigma : float or sequence of float, in pixels
        Standard deviation of the Gaussian along the last two axes, or one for each of the last axes, such as
        ``(3.0, 1.5, 1.5)`` for a volume.
    truncate : float in standard deviations, default=4.0
        Radius at which the kernel ends, rounded to pixels.
    boundary : {"zero", "periodic", "reflect", "valid"}, default="zero"
        Continuation of the image beyond its border, see :func:`convolution`.

    Returns
    -------
    pylops.LinearOperator
        The operator from images ``dims`` to data ``dims``, which is symmetric; with "valid" to data that are
        smaller by twice the radius. It has what that of :func:`convolution` has.

    Raises
    ------
    ValueError
        If ``sigma`` or ``truncate`` is not positive, the image has fewer than two dimensions or fewer than
        ``sigma``, ``boundary`` is unknown, or the kernel is larger than the image and the border is not zero.

    See Also
    --------
    convolution : Any other point spread function.
    GaussianBlur : Blur whose width is a parameter that can be learned.

    Notes
    -----
    The kernel sums to one, hence :math:`\|A\| \le 1`. With the border "zero", what is blurred across the
    border is lost, and the data are darker near it. That is right for an object that is all in the picture
    and wrong for a photograph, see :func:`convolution`.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import gaussian_blur
    >>> A = gaussian_blur((32, 32), 1.5)
    >>> point = np.zeros((32, 32))
    >>> point[16, 16] = 1
    >>> round(float((A @ point).sum()), 6)
    1.0
    >>> gaussian_blur((32, 32), 1.5, boundary="valid").dimsd
    (20, 20)
    """
    image = sizes(dims)
    if len(image) < 2:
        raise ValueError(f"dims must be (height, width) or (channels, height, width), got {image}")
    widths = np.ravel([sigma, sigma] if np.ndim(sigma) == 0 else sigma)
    given = np.append(widths, truncate)
    if not (widths.size and given.dtype.kind in "iuf" and np.all((given > 0) & (given < np.inf))):
        raise ValueError(f"sigma and truncate must be positive, got {sigma!r} and {truncate!r}")
    return GaussianConvolution(image, sigma, truncate, boundary)


def _profile(sigma: float, truncate: float) -> NDArray[np.float64]:
    """A Gaussian with the sum one."""
    radius = int(truncate * sigma + 0.5)
    values = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return values / values.sum()


# ---------------------------------------------------------------- checks
def _numbers(psf: ArrayLike) -> NDArray:
    """A copy in a type that torch has."""
    values = np.array(psf)
    if values.dtype.kind not in NUMBERS or values.ndim == 0:
        raise ValueError(f"psf must be an array of numbers, got {told(psf)}")
    values = known_to_torch(values)
    if not np.isfinite(values).all():
        raise ValueError("psf must be finite, got NaN or infinity")
    if not values.any():
        raise ValueError("psf must have a value that is not zero, got nothing but zeros")
    return values


def _known(boundary: str) -> str:
    if boundary not in tuple(BOUNDARIES):
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    return boundary


def _centre(centre: int | Sequence[int] | None, shape: tuple[int, ...]) -> tuple[int, ...]:
    if centre is None:
        return tuple(n // 2 for n in shape)
    pixel = whole_numbers(centre)
    if len(pixel) != len(shape) or not all(0 <= c < n for c, n in zip(pixel, shape, strict=True)):
        raise ValueError(f"centre must be a pixel of the psf of shape {shape}, got {centre!r}")
    return pixel


def _check_that_it_fits(psf: NDArray, dims: tuple[int, ...]) -> None:
    image = tuple(dims)[-psf.ndim :]
    if any(k > n for k, n in zip(psf.shape, image, strict=True)):
        raise ValueError(f"psf must not be larger than the image of shape {image}, got shape {psf.shape}")

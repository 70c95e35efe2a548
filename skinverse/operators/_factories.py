"""Operators of common measurements, composed of pylops operators."""

from __future__ import annotations

import math

import numpy as np
import pylops
from numpy.typing import ArrayLike, NDArray
from pylops import LinearOperator
from pylops.signalprocessing import DCT, FFT2D

from skinverse.operators._coils import Sensitivities
from skinverse.operators._sampling import Sampling
from skinverse.operators._validation import sizes, with_int_sizes


def fourier_sampling(
    mask: ArrayLike, coil_maps: ArrayLike | None = None, *, centred: bool = False
) -> LinearOperator:
    r"""Cartesian Fourier samples of a complex image: magnetic resonance imaging with one or more coils.

    The data are the whole grid of frequencies, as files have them. What the mask leaves out is zero in
    simulated data, and may be anything in measured ones: it is never read.

    Parameters
    ----------
    mask : array_like of bool, shape (height, width) or (width,)
        Frequencies that are measured, in the order in which a spectrum is displayed: the zero frequency is
        ``mask[height // 2, width // 2]``. Apply :func:`numpy.fft.fftshift` to a mask that has it in its
        corner. A row of columns, as fastMRI has it, holds for all rows; it needs coil maps, which tell their
        number.
    coil_maps : array_like of shape (n_coils, height, width), default=None
        Complex sensitivities; None is one coil with sensitivity one everywhere.
    centred : bool, default=False
        Whether the origin of the image is its pixel ``[height // 2, width // 2]``, as in data of BART, sigpy,
        fastMRI and ISMRMRD: ``fftshift(fft2(ifftshift(x), norm="ortho"))``. Otherwise it is the first pixel:
        ``fftshift(fft2(x, norm="ortho"))``. Data of the one convention give in the other an image that is
        shifted by half its size; ``fit`` and ``predict`` warn where they see that.

    Returns
    -------
    pylops.LinearOperator
        The operator from complex images (height, width) to complex data (height, width), or
        (n_coils, height, width) with coil maps. The precision is that of the coil maps, double without them.

    Raises
    ------
    ValueError
        If the mask is not a boolean array of one or two axes with at least one True, or the coil maps do not
        have its size.

    See Also
    --------
    nonuniform_fourier : Frequencies that are not on a grid.
    estimate_coil_maps : Coil maps of measured data.

    Notes
    -----
    With the orthonormal Fourier transform :math:`F`, the mask :math:`M` as a diagonal of ones and zeros, and
    the sensitivities :math:`S_c`, coil ``c`` measures :math:`M F S_c x`. Without coil maps the measured rows
    are orthonormal, and the adjoint is the zero-filled inverse. This also holds for normalised coil maps,
    :math:`\sum_c |S_c|^2 = 1`.

    Whatever counts measurements counts those that the mask selects: the residual that noise leaves, noise
    levels, the sizes by which methods make data free of units.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import fourier_sampling
    >>> mask = np.zeros((4, 6), dtype=bool)
    >>> mask[:, 2:5] = True  # three lines in the centre
    >>> A = fourier_sampling(mask)
    >>> A.dims, A.dimsd
    ((4, 6), (4, 6))
    >>> (A @ np.ones((4, 6))).real.round(3)  # a constant image has the zero frequency only
    array([[0.   , 0.   , 0.   , 0.   , 0.   , 0.   ],
           [0.   , 0.   , 0.   , 0.   , 0.   , 0.   ],
           [0.   , 0.   , 0.   , 4.899, 0.   , 0.   ],
           [0.   , 0.   , 0.   , 0.   , 0.   , 0.   ]])
    """
    mask = _mask(mask)
    if mask.ndim not in (1, 2):
        raise ValueError(f"mask must be of shape (height, width) or (width,), got {mask.shape}")
    if coil_maps is None:
        if mask.ndim == 1:
            raise ValueError(
                f"mask must be of shape (height, width) if no coil_maps tell the height, got {mask.shape}: "
                "use np.tile(mask, (height, 1))"
            )
        spectrum = _spectrum(mask.shape, "complex128", centred=centred)
        return with_int_sizes(Sampling(mask.shape, mask, "complex128") @ spectrum)
    coil_maps = np.asarray(coil_maps)
    if coil_maps.ndim != 3 or coil_maps.shape[-mask.ndim :] != mask.shape:
        expected = ", ".join(["n_coils", *["height"] * (mask.ndim == 1), *map(str, mask.shape)])
        raise ValueError(f"coil_maps must be of shape ({expected}) as the mask is, got {coil_maps.shape}")
    sense = Sensitivities(coil_maps)
    dtype = str(sense.dtype)
    spectrum = _spectrum(coil_maps.shape, dtype, centred=centred)
    return with_int_sizes(Sampling(coil_maps.shape, mask, dtype) @ spectrum @ sense)


def _spectrum(dims: tuple[int, ...], dtype: str, *, centred: bool) -> LinearOperator:
    """Orthonormal Fourier transform of the last two axes, with the zero frequency in the centre."""
    # NumPy's engine warns that it computes in double precision.
    engine = "scipy" if dtype == "complex64" else "numpy"
    return FFT2D(
        dims,
        axes=(-2, -1),
        norm="ortho",
        ifftshift_before=centred,
        fftshift_after=True,
        engine=engine,
        dtype=dtype,
    )


def structurally_random(
    dims: tuple[int, ...], n_measurements: int, *, random_state: int | np.random.Generator | None = None
) -> LinearOperator:
    r"""Structurally random matrix: compressive sensing at the cost of a fast transform.

    Parameters
    ----------
    dims : tuple of int
        Shape of the image.
    n_measurements : int
        Number of measurements, at most the number of pixels.
    random_state : int, Generator or None, default=None
        Seed or generator of the permutation, the signs and the subsampling.

    Returns
    -------
    pylops.LinearOperator
        The operator from images ``dims`` to data (n_measurements,).

    Raises
    ------
    ValueError
        If ``n_measurements`` is less than one or more than the number of pixels.

    Notes
    -----
    Random signs (:math:`R`) and a random permutation (:math:`P`) of the pixels are followed by the
    orthonormal discrete cosine transform (:math:`T`) and a random subsampling (:math:`D`),

    .. math:: A = D \, T \, P \, R, \qquad A A^T = I .

    Without the factor :math:`\sqrt{n / m}` of the reference the rows are orthonormal, hence
    :math:`\|A\| = 1`.

    References
    ----------
    .. [1] Do, Gan, Nguyen, Tran, "Fast and efficient compressive sensing using structurally random
       matrices", IEEE Transactions on Signal Processing 60(1), 2012, section II.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import structurally_random
    >>> A = structurally_random((8, 8), 16, random_state=0)
    >>> y = np.ones(16)
    >>> bool(np.allclose(A @ (A.H @ y), y))
    True
    """
    dims = sizes(dims)
    n = math.prod(dims)
    if not 1 <= n_measurements <= n:
        raise ValueError(f"n_measurements must be between 1 and the {n} pixels, got {n_measurements}")
    rng = np.random.default_rng(random_state)
    flip = pylops.Diagonal(rng.choice([-1.0, 1.0], dims))
    permute = pylops.Restriction(n, rng.permutation(n))
    subsample = pylops.Restriction(n, np.sort(rng.choice(n, n_measurements, replace=False)))
    return with_int_sizes(subsample @ DCT(n) @ permute @ flip)


def inpainting(mask: ArrayLike) -> LinearOperator:
    """Restriction to the known pixels.

    Parameters
    ----------
    mask : array_like of bool, any shape
        Mask that is True at the known pixels.

    Returns
    -------
    pylops.LinearOperator
        The operator from images of the mask's shape to data (n_known,), in the order of ``mask.nonzero()``.

    Raises
    ------
    ValueError
        If the mask is not boolean, or no pixel is known.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import inpainting
    >>> A = inpainting([[True, False], [True, True]])
    >>> A @ np.array([1.0, 2.0, 3.0, 4.0])
    array([1., 3., 4.])
    """
    known = _mask(mask)
    return with_int_sizes(
        pylops.Restriction(known.size, np.flatnonzero(known)) @ pylops.Identity(known.shape)
    )


def _mask(mask: ArrayLike) -> NDArray[np.bool_]:
    """A boolean array; numbers are refused, since they may be indices or densities."""
    mask = np.array(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean, got {mask.dtype}")
    if not mask.any():
        raise ValueError("mask must be True somewhere, got an empty selection")
    return mask

"""Coils of MRI: their sensitivities from measured data, and their noise made white."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from pylops import LinearOperator

from skinverse.operators._validation import whole_numbers

# Singular values of the calibration matrix, relative to the largest one, below which there is only noise.
_NOISE = 0.02
# Eigenvalues whose vectors are computed together.
_AT_ONCE = 2**15


class Sensitivities(LinearOperator):
    """The images that coils of these complex sensitivities, (n_coils, ...), see.

    Raises
    ------
    ValueError
        If there is no coil, or a sensitivity is no number, NaN or infinite.
    """

    def __init__(self, coil_maps: NDArray) -> None:
        maps = np.asarray(coil_maps)
        if maps.dtype.kind not in "biufc" or not len(maps):
            raise ValueError(f"coil_maps must be numbers of one coil or more, got {maps.dtype} {maps.shape}")
        if not np.isfinite(maps).all():
            raise ValueError("coil_maps must be finite, got NaN or inf")
        self.coil_maps = maps.astype(np.result_type(maps, np.complex64), copy=False)
        super().__init__(dtype=self.coil_maps.dtype, dims=maps.shape[1:], dimsd=maps.shape)

    def _matvec(self, x: NDArray) -> NDArray:
        return (self.coil_maps * x.reshape(self.dims)).ravel()

    def _rmatvec(self, y: NDArray) -> NDArray:
        return (self.coil_maps.conj() * y.reshape(self.dimsd)).sum(0).ravel()


def estimate_coil_maps(
    kspace: ArrayLike,
    *,
    n_calibration: int = 24,
    kernel_size: int = 6,
    crop: float = 0.9,
    centred: bool = False,
) -> NDArray:
    r"""Sensitivities of coils from the centre of their Fourier data, by ESPIRiT.

    Parameters
    ----------
    kspace : array_like of shape (n_coils, height, width)
        Complex Fourier data with the zero frequency in the centre, as those of :func:`fourier_sampling`. The
        centre is measured completely; nothing else is looked at.
    n_calibration : int, default=24
        Side of the square in the centre that is used, at most that of the data.
    kernel_size : int, default=6
        Side of the patches of which neighbouring frequencies are combined, at most ``(n_calibration + 1) //
        2``: with fewer patches than frequencies in a patch, the maps of most pixels would be lost. Larger
        ones follow maps that vary faster, and need more time.
    crop : float, default=0.9
        Least eigenvalue, from 0 to 1, at which a pixel belongs to the object. Elsewhere the data tell nothing
        of the maps, which are zero there.
    centred : bool, default=False
        Whether the origin of the image is its central pixel, as in :func:`fourier_sampling`.

    Returns
    -------
    ndarray of shape (n_coils, height, width)
        Complex maps with a sum of squares of one, or zero outside of the object. A phase that all coils have
        in common cannot be known; it is chosen such that the coils' main combination has the phase zero.

    Raises
    ------
    ValueError
        If the data are not of that shape, the centre is not measured, or a number is out of its range.

    See Also
    --------
    fourier_sampling : The operator that takes the maps.
    whiten_coils : Makes the noise of coils white, before the maps are estimated.

    Notes
    -----
    Patches of data, with all coils beside each other, span a space of low dimension. With the projection
    :math:`P` onto it, the maps :math:`s` at a pixel :math:`q` fulfil :math:`P (s \otimes e_q) = s \otimes
    e_q`, where :math:`e_q` is the wave of the pixel on a patch: they are the eigenvector with the eigenvalue
    one of a small matrix [1]_.

    References
    ----------
    .. [1] Uecker, Lai, Murphy, Virtue, Elad, Pauly, Vasanawala, Lustig, "ESPIRiT: an eigenvalue approach to
       autocalibrating parallel MRI", Magnetic Resonance in Medicine 71, 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import estimate_coil_maps
    >>> y, x = np.mgrid[-1:1:32j, -1:1:32j]
    >>> maps = np.stack([np.exp(x), np.exp(1j * y)])
    >>> kspace = np.fft.fftshift(np.fft.fft2(maps * (x**2 + y**2 < 0.5), norm="ortho"), (-2, -1))
    >>> found = estimate_coil_maps(kspace)
    >>> found.shape
    (2, 32, 32)
    >>> [round(float(abs(m[1, 16, 20] / m[0, 16, 20])), 1) for m in (found, maps)]
    [0.7, 0.7]
    """
    kspace = np.asarray(kspace)
    if kspace.ndim != 3 or not kspace.size or kspace.dtype.kind not in "biufc":
        expected = "numbers of shape (n_coils, height, width)"
        raise ValueError(f"kspace: expected {expected}, got {kspace.dtype} {kspace.shape}")
    for name, value in {"n_calibration": n_calibration, "kernel_size": kernel_size}.items():
        if len(whole_numbers(value)) != 1:
            raise ValueError(f"{name}: expected a whole number, got {value!r}")
    if not 0 <= crop <= 1:
        raise ValueError(f"crop: expected a number from 0 to 1, got {crop!r}")
    centre = _centre(kspace, n_calibration).astype(np.complex128)
    largest = (min(centre.shape[1:]) + 1) // 2
    if not 1 <= kernel_size <= largest:
        raise ValueError(
            f"kernel_size: expected a number from 1 to {largest}, so that the centre has as many patches as "
            f"each of them has frequencies, got {kernel_size!r}"
        )
    pairs = _pairs(_projection(centre, kernel_size), len(kspace), kernel_size)
    values, vectors = _leading(pairs, kspace.shape[1:], centred=centred)
    along = vectors @ _main_combination(centre).conj()
    phase = np.where(along == 0, 1, np.exp(-1j * np.angle(along)))
    maps = np.where(values >= crop, phase, 0)[..., None] * vectors
    return np.moveaxis(maps, -1, 0).astype(np.result_type(kspace.dtype, np.complex64))


def whiten_coils(kspace: ArrayLike, noise: ArrayLike, *, axis: int = 0) -> NDArray:
    r"""Combine coils such that their noise is white: uncorrelated, with a standard deviation of one.

    The likelihood of Gaussian noise is a plain sum of squares then. Maps that the operator takes are to be
    whitened by the same noise, ``whiten_coils(coil_maps, noise)``, unless they were estimated from whitened
    data.

    Parameters
    ----------
    kspace : array_like of shape (n_coils, ...)
        Data or maps of the coils.
    noise : array_like of shape (n_coils, ...)
        Complex measurements without an object, with many samples of each coil.
    axis : int, default=0
        Axis of ``kspace`` that holds the coils; 1 of (n_slices, n_coils, height, width).

    Returns
    -------
    ndarray
        Whitened data of the shape of ``kspace``. Real and imaginary part of their noise have a standard
        deviation of one each.

    Raises
    ------
    ValueError
        If the numbers of coils differ, the noise is not complex and finite, or it has not as many independent
        samples as there are coils.

    Notes
    -----
    With the covariance :math:`\Psi = L L^H` of the coils' noise, the data :math:`y` become :math:`L^{-1} y`.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import whiten_coils
    >>> rng = np.random.default_rng(0)
    >>> parts = rng.normal(size=(2, 2, 9999))
    >>> noise = np.array([[2.0, 0.0], [1.0, 0.5]]) @ (parts[0] + 1j * parts[1])
    >>> white = whiten_coils(noise, noise)
    >>> np.abs(white @ white.conj().T / (2 * 9999)).round(6)
    array([[1., 0.],
           [0., 1.]])
    """
    data, scan = np.asarray(kspace), np.asarray(noise)
    n_coils = len(scan) if scan.ndim else 0
    if not (-data.ndim <= axis < data.ndim and n_coils == data.shape[axis]):
        raise ValueError(
            f"noise: expected a scan with the coils of kspace, its axis {axis}, as first axis, got shapes "
            f"{scan.shape} and {data.shape}"
        )
    if not np.iscomplexobj(scan) or not np.isfinite(scan).all():
        raise ValueError(f"noise: expected finite complex samples, got {scan.dtype} or some not finite")
    samples = scan.reshape(n_coils, -1).astype(np.complex128)
    covariance = samples @ samples.conj().T / (2 * max(samples.shape[1], 1))
    deviations = np.sqrt(np.diag(covariance).real)
    scales = np.where(deviations > 0, deviations, 1)
    # Of coils in units of their own, so that independence does not depend on units.
    correlation = covariance / np.outer(scales, scales)
    if not np.linalg.eigvalsh(correlation)[0] > n_coils * np.finfo(float).eps:
        raise ValueError(
            f"noise: expected at least {n_coils} independent samples of {n_coils} coils that have noise, got "
            f"{samples.shape[1]} samples of rank {np.linalg.matrix_rank(correlation, hermitian=True)}"
        )
    whitening = np.linalg.inv(np.linalg.cholesky(correlation)) / scales
    white = np.moveaxis(np.tensordot(whitening, data, (1, axis)), 0, axis)
    return white.astype(np.result_type(data.dtype, np.complex64))


def _centre(kspace: NDArray, n_calibration: int) -> NDArray:
    """The square of the lowest frequencies, which was measured completely."""
    if n_calibration < 1:
        raise ValueError(f"n_calibration: expected a positive number, got {n_calibration!r}")
    sides = [min(n_calibration, size) for size in kspace.shape[1:]]
    starts = [size // 2 - side // 2 for size, side in zip(kspace.shape[1:], sides, strict=True)]
    rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    centre = kspace[:, rows, columns]
    n_missing = int((centre == 0).all(0).sum() + (~np.isfinite(centre)).any(0).sum())
    if n_missing:
        raise ValueError(
            f"kspace: expected a central square of {sides[0]} x {sides[1]} that is measured, got zeros or "
            f"NaN at {n_missing} of its frequencies: lower n_calibration"
        )
    return centre


def _projection(centre: NDArray, size: int) -> NDArray:
    """The projection onto what patches with all coils span, (n_coils * size**2, n_coils * size**2)."""
    patches = np.moveaxis(sliding_window_view(centre, (size, size), (1, 2)), 0, 2)
    _, singular, span = np.linalg.svd(patches.reshape(-1, len(centre) * size**2), full_matrices=False)
    span = span[singular > _NOISE * singular[0]]
    return span.T @ span.conj()


def _pairs(projection: NDArray, n_coils: int, size: int) -> NDArray:
    """The projection summed over pairs of places that have the same distance, for each pair of coils."""
    places = projection.reshape(n_coils, size, size, n_coils, size, size)
    pairs = np.zeros((2 * size - 1, 2 * size - 1, n_coils, n_coils), dtype=complex)
    for i in range(size):
        for j in range(size):
            # From the place (i, j) to all others.
            rows, columns = slice(size - 1 - i, 2 * size - 1 - i), slice(size - 1 - j, 2 * size - 1 - j)
            pairs[rows, columns] += places[:, :, :, :, i, j].transpose(1, 2, 0, 3)
    return pairs / size**2


def _leading(pairs: NDArray, shape: tuple[int, ...], *, centred: bool) -> tuple[NDArray, NDArray]:
    """The largest eigenvalue and its vector of the sums of the pairs over their waves, at each pixel."""
    distances = np.arange(len(pairs)) - len(pairs) // 2
    down, right = (
        np.exp(2j * np.pi * np.outer(np.arange(n) - (n // 2 if centred else 0), distances) / n) for n in shape
    )
    columns = np.tensordot(right, pairs, (1, 1))  # (width, distance, n_coils, n_coils)
    values, vectors = [], []
    for rows in np.array_split(down, max(1, shape[0] * shape[1] // _AT_ONCE)):
        found = np.linalg.eigh(np.tensordot(rows, columns, (1, 1)))
        values.append(found.eigenvalues[..., -1])
        vectors.append(found.eigenvectors[..., -1])
    return np.concatenate(values), np.concatenate(vectors)


def _main_combination(centre: NDArray) -> NDArray:
    """The combination of coils with the most signal in the centre; its largest weight is positive."""
    main = np.linalg.svd(centre.reshape(len(centre), -1), full_matrices=False)[0][:, 0]
    largest = main[np.abs(main).argmax()]
    return main * abs(largest) / largest

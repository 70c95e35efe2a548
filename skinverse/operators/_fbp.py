"""Filtered back-projection of parallel-beam data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.operators._inverse import AnalyticInverse, Formula
from skinverse.operators._joseph import Geometry
from skinverse.operators._map import LinearMap

_WINDOWS: dict[str, Callable[[NDArray], NDArray]] = {  # of the frequency, in units of Nyquist's
    "ramp": np.ones_like,
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
}
# A gap between angles counts as a missing wedge where it is wider than this many of the gaps beside it, and
# wider than a fifth of the half circle: across 30 degrees it is still better that the views at its rims stand
# for the gap, by up to 1 dB on ellipses, across 60 degrees worse by as much.
_WIDE, _WEDGE = 3, np.pi / 5
_SAME = 1e-6  # radians between angles that are one direction


class FilteredBackProjectionMap(LinearMap):
    r"""Analytic inverse of the parallel-beam transform, itself a linear map from data to images.

    Parameters
    ----------
    geometry : Geometry
        The scan.
    filter : {"ramp", "shepp-logan", "cosine", "hamming", "hann"}
        Window on the ramp filter.

    Notes
    -----
    With the measured :math:`p_\theta(s)` and the band-limited ramp :math:`h`,

    .. math:: x(u, v) = \int_0^\pi (h * p_\theta)(u \cos\theta + v \sin\theta) \, d\theta ,

    linearly interpolated between the detectors. The samples of :math:`h` itself are transformed, not
    :math:`|f|` sampled, which would shift the mean value [1]_.

    References
    ----------
    .. [1] Kak, Slaney, "Principles of Computerized Tomographic Imaging", IEEE Press, 1988,
       section 3.3, equation 61.
    """

    def __init__(self, geometry: Geometry, filter: str) -> None:
        super().__init__((len(geometry.angles), geometry.n_detectors), geometry.dims)
        height, width = geometry.dims
        constants = {
            "response": _response(geometry.n_detectors, filter) / geometry.detector_spacing,
            "weights": angular_weights(geometry.angles),
            "u": (np.arange(width) - (width - 1) / 2) * geometry.pixel_size / geometry.detector_spacing,
            "v": ((height - 1) / 2 - np.arange(height)) * geometry.pixel_size / geometry.detector_spacing,
        }
        self._constants = {name: torch.from_numpy(value) for name, value in constants.items()}
        self._angles = geometry.angles

    def _forward(self, x: Tensor) -> Tensor:
        """Filter the data, then sum them over the rays through each pixel."""
        views = self._filter(x) * self._constant("weights", x)[:, None]
        views = torch.nn.functional.pad(views, (1, 1)).permute(1, 2, 0).contiguous()
        image = x.new_zeros(int(np.prod(self.dimsd)), len(x))
        for angle, view in zip(self._angles, views, strict=True):
            low, fraction = self._interpolation(angle, x)
            image += torch.lerp(view[low], view[low + 1], fraction)
        return image.T.reshape(-1, *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        """Add each pixel to the detectors that it falls on, then filter."""
        pixels = y.flatten(1).T.contiguous()
        views = y.new_zeros(self.dims[0], self.dims[1] + 2, len(y))
        for angle, view in zip(self._angles, views, strict=True):
            low, fraction = self._interpolation(angle, y)
            view.index_add_(0, low, pixels * (1 - fraction)).index_add_(0, low + 1, pixels * fraction)
        return self._filter(views[:, 1:-1].permute(2, 0, 1) * self._constant("weights", y)[:, None])

    def _filter(self, views: Tensor) -> Tensor:
        """Convolve with the symmetric kernel, padded so that the convolution is not periodic."""
        response = self._constant("response", views)
        padded = 2 * (len(response) - 1)
        spectrum = torch.fft.rfft(views, padded) * response
        return torch.fft.irfft(spectrum, padded)[..., : self.dims[1]]

    def _interpolation(self, angle: float, like: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the pixels between the detectors, to which a zero is added at both ends."""
        n_detectors = self.dims[1]
        u, v = self._constant("u", like), self._constant("v", like)
        position = (u * np.cos(angle) + v[:, None] * np.sin(angle)).flatten() + (n_detectors + 1) / 2
        position = position.clamp(0, n_detectors + 1)
        low = position.floor().clamp(max=n_detectors)
        return low.int(), (position - low)[:, None]


def _response(n_detectors: int, filter: str) -> NDArray[np.float64]:
    """Transfer function of the windowed ramp at unit spacing, padded to at least twice the detector."""
    if filter not in _WINDOWS:
        raise ValueError(f"filter must be one of {', '.join(map(repr, _WINDOWS))}, got {filter!r}")
    padded = max(64, 2 ** int(np.ceil(np.log2(2 * n_detectors))))
    n = np.fft.fftfreq(padded, 1 / padded)
    odd = n % 2 == 1
    kernel = np.where(n == 0, 0.25, 0.0)
    kernel[odd] = -1 / (np.pi * n[odd]) ** 2
    return np.fft.rfft(kernel).real * _WINDOWS[filter](np.fft.rfftfreq(padded, 0.5))


class Projections(Formula):
    """Filtered back-projection of views, each in a direction of its own; several scans make one."""

    kind = AnalyticInverse.FILTERED_BACK_PROJECTION

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        detector = (geometry.dims, geometry.n_detectors, geometry.pixel_size, geometry.detector_spacing)
        self.family, self.key = detector, (*detector, geometry.angles.tobytes())
        self.dimsd = (len(geometry.angles), geometry.n_detectors)

    @classmethod
    def of_scans(cls, geometries: list[Geometry]) -> tuple[Projections, list[sp.csr_array]]:
        """The views of scans with one detector, and the data of each scan as rows of theirs.

        A view from behind is the mirrored one from before; views in the same direction are one.
        """
        first, n = geometries[0], geometries[0].n_detectors
        directions, view, mirrored = half_circle(np.concatenate([scan.angles for scan in geometries]))
        detector = np.where(mirrored[:, None], np.arange(n)[::-1], np.arange(n))
        columns = (n * view[:, None] + detector).ravel()
        shape = (columns.size, n * len(directions))
        rows = sp.csr_array((np.ones(columns.size), columns, np.arange(columns.size + 1)), shape=shape)
        ends = np.cumsum([scan.n_rays for scan in geometries])[:-1]
        pieces = [rows[piece[0] : piece[-1] + 1] for piece in np.split(np.arange(columns.size), ends)]
        return cls(replace(first, angles=directions)), pieces

    def joined(self, others: list[Projections]) -> tuple[Formula, list[sp.csr_array]]:
        """The views of several scans."""
        return self.of_scans([other._geometry for other in others])

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """Filtered back-projection of the views of which something was measured, the rest interpolated."""
        measured = weights.reshape(-1, self._geometry.n_detectors) > 0
        there = measured.any(1)
        if not there.any():
            return y.new_zeros(len(y), math.prod(self._geometry.dims))
        views = y.reshape(len(y), *measured.shape)
        if not there.all():
            views = views[:, torch.from_numpy(np.flatnonzero(there)).to(y.device)]
        views = interpolated(views, measured[there])
        inverse = FilteredBackProjectionMap(
            replace(self._geometry, angles=self._geometry.angles[there]), filter
        )
        image = torch.complex(inverse(views.real), inverse(views.imag)) if y.is_complex() else inverse(views)
        return image.flatten(1)

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """The same for all pixels."""
        return np.full(math.prod(self._geometry.dims), float(measured.any()))


def interpolated(views: Tensor, measured: NDArray[np.bool_]) -> Tensor:
    """Views whose missing elements are interpolated along the detector, and constant beyond the last one."""
    if measured.all():
        return views
    n = measured.shape[1]
    place = np.arange(n)
    left = np.maximum.accumulate(np.where(measured, place, -1), axis=1)
    right = np.minimum.accumulate(np.where(measured, place, n)[:, ::-1], axis=1)[:, ::-1]
    left, right = np.where(left < 0, right, left), np.where(right == n, left, right)
    fraction = (place - left) / np.maximum(right - left, 1)
    low, high = (
        views.gather(2, torch.from_numpy(index).to(views.device).expand(len(views), -1, -1))
        for index in (left, right)
    )
    return low + torch.from_numpy(fraction).to(views.device, views.dtype.to_real()) * (high - low)


def half_circle(
    angles: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Directions in ``[0, pi)``, ascending; of each angle, which one it has and whether it is opposite."""
    half_turns = np.floor((angles + _SAME) / np.pi)
    folded = angles - np.pi * half_turns
    order = np.argsort(folded, kind="stable")
    new = np.diff(folded[order], prepend=-np.inf) > _SAME
    which = np.empty(len(angles), dtype=np.int64)
    which[order] = np.cumsum(new) - 1
    return folded[order][new], which, half_turns % 2 == 1


def angular_weights(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part of the half circle for which each angle stands: half of the gaps to both of its neighbours.

    Directions are taken modulo pi, and angles in the same direction share its part. A wide gap that is much
    wider than the two on either side of it is a missing wedge, and counts as the widest of these, since the
    views beside it would otherwise outweigh all others. Then all weights grow to make up the half circle:
    it is their sum that keeps the mean of the image.
    """
    directions, which, _ = half_circle(angles)
    gaps = np.diff(directions, append=directions[0] + np.pi)  # to the next
    beside = np.max([np.roll(gaps, k) for k in (-2, -1, 1, 2)], axis=0)
    gaps = np.where((gaps > _WIDE * beside) & (gaps > _WEDGE), beside, gaps)
    weights = (gaps + np.roll(gaps, 1)) / (2 * np.bincount(which))
    return (weights * np.pi / gaps.sum())[which]

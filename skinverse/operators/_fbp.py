"""Filtered back-projection of parallel-beam data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.operators._joseph import Geometry
from skinverse.operators._map import LinearMap

_WINDOWS: dict[str, Callable[[NDArray], NDArray]] = {  # of the frequency, in units of Nyquist's
    "ramp": np.ones_like,
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
}
_MISSING_WEDGE = 10  # times the median gap between angles


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


def angular_weights(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part of the half circle for which each angle stands: half of the gaps to both of its neighbours.

    Directions are taken modulo pi. A gap that is much wider than the median is a missing wedge and counts as
    a median gap, since the views beside it would otherwise outweigh all others.
    """
    directions = np.mod(angles, np.pi)
    order = np.argsort(directions)
    gaps = np.diff(directions[order], append=directions[order[0]] + np.pi)  # to the next
    usual = np.median(gaps[gaps > 1e-6])
    gaps[gaps > _MISSING_WEDGE * usual] = usual
    weights = np.empty_like(gaps)
    weights[order] = (gaps + np.roll(gaps, 1)) / 2
    return weights

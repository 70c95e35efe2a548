"""Filtered back-projection of the data of a scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skinverse._arrays import nearest_known
from skinverse.operators._geometry import Scan
from skinverse.operators._inverse import AnalyticInverse, Formula
from skinverse.operators._map import LinearMap
from skinverse.operators._truncation import continued
from skinverse.operators._view_weights import half_circle, ray_weights

_WINDOWS: dict[str, Callable[[NDArray], NDArray]] = {  # of the frequency, in units of Nyquist's
    "ramp": np.ones_like,
    "shepp-logan": lambda f: np.sinc(f / 2),
    "cosine": lambda f: np.cos(np.pi * f / 2),
    "hamming": lambda f: 0.54 + 0.46 * np.cos(np.pi * f),
    "hann": lambda f: 0.5 + 0.5 * np.cos(np.pi * f),
}
_LARGE = 2**24  # pixels times views from which on the compiled kernel is worth while
_OF_VIEWS = ("angles", "offset")


class FilteredBackProjectionMap(LinearMap):
    r"""Analytic inverse of a scan, itself a linear map from data to images.

    Parameters
    ----------
    scan : Scan
        The scan.
    weights : ndarray of shape (n_views, n_detectors)
        Part of the half circle for which every ray stands.
    filter : {"ramp", "shepp-logan", "cosine", "hamming", "hann"}
        Window on the ramp filter.

    Notes
    -----
    With the measured :math:`p_\theta(s)` and the band-limited ramp :math:`h`,

    .. math:: x(u, v) = \int_0^\pi (h * p_\theta)(u \cos\theta + v \sin\theta) \, d\theta ,

    linearly interpolated between the detectors. The samples of :math:`h` itself are transformed, not
    :math:`|f|` sampled, which would shift the mean value [1]_. For a fan, rays are weighted by the cosines of
    their angles, and pixels by their distance from the source.

    References
    ----------
    .. [1] Kak, Slaney, "Principles of Computerized Tomographic Imaging", IEEE Press, 1988,
       sections 3.3, equation 61, and 3.4.
    """

    def __init__(self, scan: Scan, weights: NDArray, filter: str) -> None:
        super().__init__(scan.dimsd, scan.dims)
        height, width = scan.dims
        constants = {
            "response": _response(scan, filter) / scan.axis_spacing,
            "weights": scan.xp.asarray(weights) * scan.xp.cos(scan.fan_angles),
            "u": (np.arange(width) - (width - 1) / 2) * scan.pixel_size,
            "v": ((height - 1) / 2 - np.arange(height))[:, None] * scan.pixel_size,
        }
        self._constants = {name: torch.as_tensor(value) for name, value in constants.items()}
        self._scan, self._fixed = scan, scan.xp is np
        # Python's numbers, not NumPy's, which would make tensors of double precision.
        self._views = [v.tolist() if self._fixed else v for v in (scan.frames, scan.offset)]

    def _forward(self, x: Tensor) -> Tensor:
        """Filter the data, then sum them over the rays through each pixel."""
        views = torch.nn.functional.pad(self._filter(x * self._constant("weights", x)), (1, 1))
        if self._fixed and x.device.type == "cpu" and self.dims[0] * math.prod(self.dimsd) > _LARGE:
            from skinverse.operators._projector import smear  # numba takes a second

            return torch.from_numpy(smear(self._scan, views.contiguous().numpy()))
        views = views.permute(1, 2, 0).contiguous()
        image = x.new_zeros(int(np.prod(self.dimsd)), len(x))
        for number, view in enumerate(views):
            # Where there are derivatives, memory holds what they need of one view at a time.
            image += self._smeared(number, view) if self._fixed else _recomputed(self._smeared, number, view)
        return image.T.reshape(-1, *self.dimsd)

    def _smeared(self, number: int, view: Tensor) -> Tensor:
        """The part of a view in all pixels."""
        low, fraction, weight = self._interpolation(number, view)
        return weight * torch.lerp(view[low], view[low + 1], fraction)

    def _adjoint(self, y: Tensor) -> Tensor:
        """Add each pixel to the detectors that it falls on, then filter."""
        pixels = y.flatten(1).T.contiguous()
        views = y.new_zeros(self.dims[0], self.dims[1] + 2, len(y))
        for number, view in enumerate(views):
            low, fraction, weight = self._interpolation(number, y)
            weighted = weight * pixels
            view.index_add_(0, low, weighted * (1 - fraction)).index_add_(0, low + 1, weighted * fraction)
        return self._filter(views[:, 1:-1].permute(2, 0, 1)) * self._constant("weights", y)

    def _filter(self, views: Tensor) -> Tensor:
        """Convolve with the symmetric kernel, padded so that the convolution is not periodic."""
        response = self._constant("response", views)
        padded = 2 * (len(response) - 1)
        spectrum = torch.fft.rfft(views, padded) * response
        return torch.fft.irfft(spectrum, padded)[..., : self.dims[1]]

    def _interpolation(self, number: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the pixels between the detectors, with a zero at both ends, and their weights."""
        n_detectors, scan = self.dims[1], self._scan
        u, v = self._constant("u", like), self._constant("v", like)
        frame, offset = (values[number] for values in self._views)
        across, along = (a + b * u + c * v for a, b, c in frame)
        place = scan.elements * (torch.atan2(across, along) if scan.curved else across / along)
        weight = 1 / (along**2 + across**2 if scan.curved else along**2)
        position = place.flatten() + ((n_detectors + 1) / 2 + offset)
        position = position.clamp(0, n_detectors + 1)
        low = position.floor().clamp(max=n_detectors)
        return low.int(), (position - low)[:, None], weight.flatten()[:, None]


_recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def _response(scan: Scan, filter: str) -> Any:
    """Transfer function of the windowed ramp at unit spacing, padded to at least twice the detector."""
    if filter not in _WINDOWS:
        raise ValueError(f"filter must be one of {', '.join(map(repr, _WINDOWS))}, got {filter!r}")
    padded = max(64, 2 ** int(np.ceil(np.log2(2 * scan.n_detectors))))
    n = np.fft.fftfreq(padded, 1 / padded)
    odd = n % 2 == 1
    kernel = np.where(n == 0, 0.25, 0.0)
    kernel[odd] = -1 / (np.pi * n[odd]) ** 2
    xp = scan.xp
    kernel, n = xp.asarray(kernel), xp.asarray(np.clip(n, -scan.n_detectors, scan.n_detectors))
    if scan.curved:  # rays at equal angles: the ramp is one of their sines
        kernel = kernel / xp.sinc(n / scan.elements / np.pi) ** 2
    return xp.fft.rfft(kernel).real * xp.asarray(_WINDOWS[filter](np.fft.rfftfreq(padded, 0.5)))


class Projections(Formula):
    """Filtered back-projection of the views of a scan; several scans with one detector make one."""

    kind = AnalyticInverse.FILTERED_BACK_PROJECTION

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.family = scan.detector
        self.key = (*scan.detector, scan.angles.tobytes(), scan.offset.tobytes())
        self.dimsd = scan.dimsd

    @classmethod
    def of_scans(cls, scans: list[Scan]) -> tuple[Projections, list[sp.csr_array]]:
        """The views of scans with one detector, and the data of each scan as rows of theirs.

        Where a view from behind is the mirrored one from before, it is so; views in the same direction then
        are one.
        """
        first, n = scans[0], scans[0].n_detectors
        angles, offset = (np.concatenate([getattr(scan, name) for scan in scans]) for name in _OF_VIEWS)
        together = replace(first, angles=angles, offset=offset)
        view, mirrored = np.arange(len(angles)), np.zeros(len(angles), dtype=bool)
        if together.mirrors:
            directions, view, mirrored = half_circle(angles)
            together = replace(first, angles=directions, offset=np.zeros(len(directions)))
        detector = np.where(mirrored[:, None], np.arange(n)[::-1], np.arange(n))
        columns = (n * view[:, None] + detector).ravel()
        shape = (columns.size, together.n_rays)
        rows = sp.csr_array((np.ones(columns.size), columns, np.arange(columns.size + 1)), shape=shape)
        ends = np.cumsum([scan.n_rays for scan in scans])[:-1]
        pieces = [rows[piece[0] : piece[-1] + 1] for piece in np.split(np.arange(columns.size), ends)]
        return cls(together), pieces

    def joined(self, others: list[Projections]) -> tuple[Formula, list[sp.csr_array]]:
        """The views of several scans."""
        return self.of_scans([other._scan for other in others])

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """Filtered back-projection of the views of which something was measured, the rest interpolated."""
        views = y.reshape(len(y), *self.dimsd)
        measured = weights.reshape(self.dimsd) > 0
        return filtered_back_projection(self._scan, views, measured, filter).flatten(1)

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """The same for all pixels."""
        return np.full(math.prod(self._scan.dims), float(measured.any()))


def filtered_back_projection(scan: Scan, y: Tensor, measured: NDArray[np.bool_], filter: str) -> Tensor:
    """Images of data (n, n_views, n_detectors), differentiable in the tensors of the scan, if it has any."""
    there = np.flatnonzero(measured.any(1))
    if not there.size:
        return y.new_zeros(len(y), *scan.dims)
    if there.size < len(measured):
        y, scan = y[:, torch.from_numpy(there).to(y.device)], scan[there]
    views = interpolated(y, measured[there])
    views, shares, scan = continued(views, ray_weights(scan.known), scan)
    inverse = FilteredBackProjectionMap(scan, shares, filter)
    apply = inverse if scan.xp is np else inverse._forward
    return torch.complex(apply(views.real), apply(views.imag)) if y.is_complex() else apply(views)


def interpolated(views: Tensor, measured: NDArray[np.bool_]) -> Tensor:
    """Views whose missing elements are interpolated along the detector, and constant beyond the last one."""
    if measured.all():
        return views
    left, right, share = nearest_known(measured)
    low, high = (
        views.gather(2, torch.from_numpy(index).to(views.device).expand(len(views), -1, -1))
        for index in (left, right)
    )
    return low + torch.from_numpy(share).to(views.device, views.dtype.to_real()) * (high - low)

"""Fourier and cosine transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse.operators._inverse import AnalyticInverse, Form, Formula
from skinverse.operators._map import LinearMap

# How much brighter the border is than the middle where an image is said to be shifted by half its size: at
# most 2.3 for 60 photographs under eleven masks, 4 to 11 for a shifted phantom where the mask is dense around
# the zero frequency, less under regular or random gaps there.
_FAR = 3.0


class Fourier(LinearMap):
    """Discrete Fourier transform of some axes, which are cropped or padded to ``sizes`` and may be shifted.

    With ``half`` the images are real and only half of the spectrum is kept, with weights that make the
    transform an isometry up to its scale.

    Parameters
    ----------
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    axes, sizes : tuple of int
        Transformed axes as negative indices, and their lengths in the transform.
    scale : float
        Factor on the unnormalised transform.
    half : bool
        Whether half of the spectrum is kept.
    real : bool
        Whether the images are real.
    before, after : tuple of int
        Axes shifted before (``ifftshift``) and after (``fftshift``) the transform.
    """

    keeps_neighbours = True

    def __init__(
        self,
        dims: tuple[int, ...],
        dimsd: tuple[int, ...],
        *,
        axes: tuple[int, ...],
        sizes: tuple[int, ...],
        scale: float,
        half: bool,
        real: bool,
        before: tuple[int, ...],
        after: tuple[int, ...],
    ) -> None:
        super().__init__(dims, dimsd)
        self._axes, self._sizes, self._scale = axes, sizes, scale
        self._half, self._real = half, real
        self.isometry = not (real and not half) and all(
            size >= dims[axis] for axis, size in zip(axes, sizes, strict=True)
        )
        self.coisometry = not real and all(size <= dims[axis] for axis, size in zip(axes, sizes, strict=True))
        self._kind = (self.dims, self.dimsd, axes, sizes, half, real, before, after)
        # To shift the spectrum of an even number of samples by half, change the sign of every other sample.
        size = dict(zip(axes, sizes, strict=True))
        even = tuple(axis for axis in after if size[axis] % 2 == 0)
        # The same holds for the image, unless it is padded; where both are shifted, up to an overall sign.
        whole = tuple(axis for axis in before if size[axis] == dims[axis] and dims[axis] % 2 == 0)
        self._before = tuple(axis for axis in before if axis not in whole)
        self._after = tuple(axis for axis in after if axis not in even)
        overall = (-1.0) ** sum(dims[axis] // 2 for axis in whole if axis in even)
        self._constants["signs"] = torch.from_numpy(_alternating(dims, even))
        self._constants["signs of the spectrum"] = torch.from_numpy(overall * _alternating(dimsd, whole))
        self._centred, self._shifted = bool(before), bool(after) and {*after} == {*axes}

    def _forward(self, x: Tensor) -> Tensor:
        x = torch.fft.ifftshift(x, dim=self._before) if self._before else x
        x = x.real if self._real and x.is_complex() else x
        x = self._signed(x, "signs")
        transform = torch.fft.rfftn if self._half else torch.fft.fftn
        # The transform applies the usual scale, "ortho", at no cost.
        y = transform(x, s=self._sizes, dim=self._axes, norm="ortho")
        y = self._signed(self._weighted(self._rescaled(y), math.sqrt(2)), "signs of the spectrum")
        return torch.fft.fftshift(y, dim=self._after) if self._after else y

    def _adjoint(self, y: Tensor) -> Tensor:
        y = torch.fft.ifftshift(y, dim=self._after) if self._after else y
        inverse = torch.fft.irfftn if self._half else torch.fft.ifftn
        weighted = self._weighted(self._signed(y, "signs of the spectrum"), 1 / math.sqrt(2))
        x = self._rescaled(inverse(weighted, s=self._sizes, dim=self._axes, norm="ortho"))
        x = _fit(x, self._axes, tuple(self.dims[axis] for axis in self._axes))
        x = self._signed(x.real if self._real and x.is_complex() else x, "signs")
        return torch.fft.fftshift(x, dim=self._before) if self._before else x

    def norm(self) -> float:
        """That of the whole transform, since the image or its padding keeps its length."""
        return self._scale * math.sqrt(math.prod(self._sizes))

    def form_after(self, inner: Form) -> Form | None:
        factor = self._scale * math.sqrt(math.prod(self._sizes))
        formula = ZeroFilling(self, factor, self._axes, ("Fourier", *self._kind), real=self._real)
        return inner.through(formula, factor * sp.eye_array(math.prod(self.dimsd), format="csr"))

    def doubt(self, y: Tensor) -> str | None:
        """Whether the image is bright along its border and dark along the lines through its middle.

        That is an object with air around it, shifted by half the size of the image. Only data with a peak at
        the zero frequency tell: what is left of an image without it has its edges where it is continued.
        """
        if not self._shifted or len(self._axes) < 2 or not _peaks_in_the_middle(y, self._axes):
            return None
        if _frame(self._adjoint(y), self._axes) <= _FAR:
            return None
        return (
            "the images are bright at the border and dark in the middle, as if data of the other convention "
            f"were given: try fourier_sampling(..., centred={not self._centred})"
        )

    def _signed(self, x: Tensor, name: str) -> Tensor:
        signs = self._constant(name, x)
        return x if signs.numel() == 1 and float(self._constants[name].sum()) == 1 else signs * x

    def _rescaled(self, x: Tensor) -> Tensor:
        factor = self._scale * math.sqrt(math.prod(self._sizes))
        return x if math.isclose(factor, 1, rel_tol=1e-14) else factor * x

    def _weighted(self, y: Tensor, weight: float) -> Tensor:
        """Weight the frequencies of the half spectrum that also stand for a negative frequency."""
        if not self._half:
            return y
        weights = torch.ones(y.shape[self._axes[-1]], dtype=y.dtype.to_real(), device=y.device)
        weights[1 : 1 + (self._sizes[-1] - 1) // 2] = weight
        return y * weights.reshape(-1, *[1] * (-self._axes[-1] - 1))


class Cosine(LinearMap):
    """Orthonormal discrete cosine transform (DCT-II) of some axes, by one FFT per axis."""

    isometry = coisometry = True

    keeps_neighbours = True

    def __init__(self, dims: tuple[int, ...], axes: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._axes = axes
        for axis in axes:
            n = dims[axis]
            twiddle = np.sqrt(2 / n) * np.exp(-0.5j * np.pi * np.arange(n) / n)
            twiddle[0] = 1 / np.sqrt(n)
            self._constants[str(axis)] = torch.from_numpy(twiddle)

    def _forward(self, x: Tensor) -> Tensor:
        return self._along_axes(x, self._analysis)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._along_axes(y, self._synthesis)

    def norm(self) -> float:
        """One."""
        return 1.0

    def form_after(self, inner: Form) -> Form | None:
        formula = ZeroFilling(self, 1.0, self._axes, ("cosine", self.dims, self._axes))
        return inner.through(formula, sp.eye_array(math.prod(self.dimsd), format="csr"))

    def _along_axes(self, x: Tensor, one: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        for axis in self._axes:
            twiddle = self._constant(str(axis), x)
            x = _real_linear(partial(one, twiddle), x.transpose(axis, -1)).transpose(axis, -1)
        return x

    def _analysis(self, twiddle: Tensor, x: Tensor) -> Tensor:
        folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
        return (torch.fft.fft(folded) * twiddle).real

    def _synthesis(self, twiddle: Tensor, y: Tensor) -> Tensor:
        folded = torch.fft.ifft(y * twiddle.conj(), norm="forward").real
        half = (y.shape[-1] + 1) // 2
        x = torch.empty_like(folded)
        x[..., ::2], x[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
        return x


class ZeroFilling(Formula):
    """The adjoint of an orthonormal transform, which is given with a factor; what is missing is zero."""

    kind = AnalyticInverse.ZERO_FILLING

    def __init__(
        self, transform: LinearMap, factor: float, axes: tuple[int, ...], key: Hashable, *, real: bool = False
    ) -> None:
        self._transform, self._factor, self._axes = transform, factor, axes
        self.dimsd, self.key, self.family, self.real = transform.dimsd, key, key, real

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """The images, flat."""
        return self._transform.adjoint(y.reshape(len(y), *self.dimsd)).flatten(1) / self._factor

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """1 where something of the transform was measured of which a pixel is a part, of one coil say."""
        some = measured.reshape(self.dimsd).any(axis=self._axes, keepdims=True)
        return np.broadcast_to(some, self._transform.dims).ravel().astype(float)


def _peaks_in_the_middle(y: Tensor, axes: tuple[int, ...]) -> bool:
    """Whether the zero frequency is the largest sample of all."""
    sizes = _mean_size(y, axes)
    peak = np.unravel_index(int(sizes.argmax()), sizes.shape)
    return all(int(k) == n // 2 for k, n in zip(peak, sizes.shape, strict=True))


def _frame(x: Tensor, axes: tuple[int, ...]) -> float:
    """Mean size on the border of the image over that on the lines through its middle, of the same width."""
    sizes = _mean_size(x, axes)
    middle = sizes.roll([n // 2 for n in sizes.shape], list(range(sizes.ndim)))
    border = torch.zeros_like(sizes, dtype=torch.bool)
    for axis, n in enumerate(sizes.shape):
        width = max(1, n // 32)
        border.narrow(axis, 0, width).fill_(True)
        border.narrow(axis, n - width, width).fill_(True)
    return float(sizes[border].sum() / middle[border].sum().clamp_min(torch.finfo(sizes.dtype).tiny))


def _mean_size(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Absolute values, their mean over images and all other axes."""
    others = [axis for axis in range(-x.ndim, 0) if axis not in axes]
    return x.abs().to(torch.float64).mean(others)


def _alternating(dims: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Product of the signs ``(-1)^n`` along the axes."""
    signs = np.ones([1] * len(dims))
    for axis in axes:
        signs = signs * (-1.0) ** np.arange(dims[axis]).reshape(-1, *[1] * (-axis - 1))
    return signs


def _real_linear(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a real linear function to the real and the imaginary part."""
    return torch.complex(function(x.real), function(x.imag)) if x.is_complex() else function(x)


def _fit(x: Tensor, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """The image cropped or padded with zeros at the end of each axis."""
    for axis, size in zip(axes, sizes, strict=True):
        missing = size - x.shape[axis]
        if missing > 0:
            x = torch.nn.functional.pad(x, [0, 0] * (-axis - 1) + [0, missing])
        x = x.narrow(axis, 0, size)
    return x

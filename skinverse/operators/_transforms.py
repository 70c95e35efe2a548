"""Fourier and cosine transforms, and convolutions through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from skinverse.operators._inverse import AnalyticInverse, Form, Formula
from skinverse.operators._map import LinearMap


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
        self._kind = (self.dims, self.dimsd, axes, sizes, half, real, before, after)
        # To shift the spectrum of an even number of samples by half, change the sign of every other sample.
        length = dict(zip(axes, sizes, strict=True))
        even = tuple(axis for axis in after if length[axis] % 2 == 0)
        self._before, self._after = before, tuple(axis for axis in after if axis not in even)
        self._constants["signs"] = torch.from_numpy(_alternating(dims, even))

    def _forward(self, x: Tensor) -> Tensor:
        x = torch.fft.ifftshift(x, dim=self._before) if self._before else x
        x = x.real if self._real and x.is_complex() else x
        x = self._signed(x)
        transform = torch.fft.rfftn if self._half else torch.fft.fftn
        # The transform applies the usual scale, "ortho", at no cost.
        y = transform(x, s=self._sizes, dim=self._axes, norm="ortho")
        y = self._weighted(self._rescaled(y), math.sqrt(2))
        return torch.fft.fftshift(y, dim=self._after) if self._after else y

    def _adjoint(self, y: Tensor) -> Tensor:
        y = torch.fft.ifftshift(y, dim=self._after) if self._after else y
        inverse = torch.fft.irfftn if self._half else torch.fft.ifftn
        weighted = self._weighted(y, 1 / math.sqrt(2))
        x = self._rescaled(inverse(weighted, s=self._sizes, dim=self._axes, norm="ortho"))
        x = _fit(x, self._axes, tuple(self.dims[axis] for axis in self._axes))
        x = self._signed(x.real if self._real and x.is_complex() else x)
        return torch.fft.fftshift(x, dim=self._before) if self._before else x

    def form_after(self, inner: Form) -> Form | None:
        factor = self._scale * math.sqrt(math.prod(self._sizes))
        formula = ZeroFilling(self, factor, self._axes, ("Fourier", *self._kind), real=self._real)
        return inner.through(formula, factor * sp.eye_array(math.prod(self.dimsd), format="csr"))

    def _signed(self, x: Tensor) -> Tensor:
        signs = self._constant("signs", x)
        return x if signs.numel() == 1 else signs * x

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


class Convolution(LinearMap):
    """Convolution by FFT; the image is zero outside, the data have its size, the kernel has any size."""

    def __init__(self, kernel: np.ndarray, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._axes = tuple(axis for axis in range(-len(dims), 0) if kernel.shape[axis] > 1) or (-1,)
        self._start = tuple((kernel.shape[axis] - 1) // 2 for axis in self._axes)
        self._kept = tuple(dims[axis] for axis in self._axes)
        self._sizes = tuple(next_fast_len(dims[axis] + kernel.shape[axis] - 1, True) for axis in self._axes)
        self._complex = np.iscomplexobj(kernel)
        transform = np.fft.fftn if self._complex else np.fft.rfftn
        self._constants["spectrum"] = torch.from_numpy(transform(kernel, s=self._sizes, axes=self._axes))

    def _forward(self, x: Tensor) -> Tensor:
        full = self._filter(x, conjugate=False)
        for axis, start, size in zip(self._axes, self._start, self._kept, strict=True):
            full = full.narrow(axis, start, size)
        return full

    def _adjoint(self, y: Tensor) -> Tensor:
        widths = [0] * (2 * len(self.dims))
        for axis, start in zip(self._axes, self._start, strict=True):
            widths[2 * (-axis - 1)] = start
        padded = torch.nn.functional.pad(y, widths)
        return _fit(self._filter(padded, conjugate=True), self._axes, self._kept)

    def _filter(self, x: Tensor, *, conjugate: bool) -> Tensor:
        spectrum = self._constant("spectrum", x)
        spectrum = spectrum.conj() if conjugate else spectrum
        if self._complex:
            return torch.fft.ifftn(torch.fft.fftn(x, self._sizes, self._axes) * spectrum, dim=self._axes)

        def convolve(v: Tensor) -> Tensor:
            return torch.fft.irfftn(
                torch.fft.rfftn(v, self._sizes, self._axes) * spectrum, self._sizes, self._axes
            )

        return _real_linear(convolve, x)


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

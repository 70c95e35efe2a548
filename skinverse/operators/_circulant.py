"""Convolutions by FFT under each border, and their norms."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import fftn, next_fast_len, rfftn
from torch import Tensor

from skinverse.operators._map import LinearMap, length

Sizes = tuple[int, ...]

# Lower over upper bound of a norm from which on their mean is taken: it is right to 0.8 %.
_CLOSE = 0.985
# Steps of the power iteration between bounds: few beside the hundred that Lanczos takes.
_MOST_STEPS = 24
# Kernels are even up to what single precision makes of them, beside the largest value.
_ROUNDING = 1e-6
# What every pixel of a positive image has at least, beside the largest one. Rounding of an FFT is far less.
_FLOOR = 1e-6


class Convolution(LinearMap):
    """``y[i] = sum_j kernel[j] x[i + origin - j]``, for an image that is continued in some way.

    Parameters
    ----------
    kernel : ndarray
        Kernel, with as many axes as the images; along an axis where it has one pixel, images are independent.
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    """

    keeps_neighbours = True

    def __init__(self, kernel: NDArray, dims: Sizes, dimsd: Sizes) -> None:
        super().__init__(dims, dimsd)
        self._kernel = kernel
        self._axes = tuple(axis for axis in range(-len(dims), 0) if kernel.shape[axis] > 1) or (-1,)

    def _norm_of_one_sign(self, start: Tensor, largest: float = math.inf) -> float | None:
        """The norm between two bounds that meet where the kernel has hardly any other sign than one.

        For an operator without negative entries and any positive ``v``, ``||A||^2 <= max(A^* A v / v)``
        (Collatz, Mathematische Zeitschrift 48, 1942; Wielandt, ibid. 52, 1950); the power iteration makes
        both sides meet, first of all at the border.
        """
        if abs(self._kernel.sum()) < _CLOSE * abs(self._kernel).sum():
            return None
        v, lower, upper = start, 0.0, largest
        positive = self._with(abs(self._kernel))
        for _ in range(_MOST_STEPS):
            w = positive._adjoint(positive._forward(v))
            upper = min(upper, math.sqrt(float((w / v).amax())))
            lower = max(lower, length(self._forward(v)) / length(v))
            if lower >= _CLOSE * upper:
                return (lower + upper) / 2
            v = w / w.amax() + _FLOOR
        return None

    @abstractmethod
    def _with(self, kernel: NDArray) -> Convolution:
        """The same convolution with another kernel."""


class Circulant(Convolution):
    """A convolution as a periodic one of a larger image, which is zero there, and of which a part is kept.

    Parameters
    ----------
    kernel : ndarray
        Kernel with as many axes as the images.
    origin : tuple of int
        Index of the kernel's pixel that weighs ``x[i]`` in ``y[i]``.
    sizes : tuple of int
        Shape of the larger image.
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    """

    def __init__(self, kernel: NDArray, origin: Sizes, sizes: Sizes, dims: Sizes, dimsd: Sizes) -> None:
        super().__init__(kernel, dims, dimsd)
        self._origin, self._period = origin, sizes
        self._sizes = tuple(sizes[axis] for axis in self._axes)
        self._complex = np.iscomplexobj(kernel)
        transform = fftn if self._complex else rfftn
        self._constants["spectrum"] = torch.from_numpy(transform(self._rolled(), axes=self._axes))

    def _rolled(self) -> NDArray:
        """The kernel with its origin in the first pixel of the larger image."""
        shape = list(self._kernel.shape)
        for axis, size in zip(self._axes, self._sizes, strict=True):
            shape[axis] = size
        padded = np.zeros(shape, self._kernel.dtype)
        padded[tuple(map(slice, self._kernel.shape))] = self._kernel
        return np.roll(padded, [-self._origin[axis] for axis in self._axes], self._axes)

    def _with(self, kernel: NDArray) -> Circulant:
        return Circulant(kernel, self._origin, self._period, self.dims, self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        return self._filtered(x, self._constant("spectrum", x), self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(y, self._constant("spectrum", y).conj(), self.dims)

    def _filtered(self, x: Tensor, spectrum: Tensor, kept: Sizes) -> Tensor:
        if self._complex:
            full = torch.fft.ifftn(torch.fft.fftn(x, self._sizes, self._axes) * spectrum, dim=self._axes)
        elif x.is_complex():
            return torch.complex(*(self._filtered(part, spectrum, kept) for part in (x.real, x.imag)))
        else:
            product = torch.fft.rfftn(x, self._sizes, self._axes) * spectrum
            full = torch.fft.irfftn(product, self._sizes, self._axes)
        return reduce(lambda y, axis: y.narrow(axis, 0, kept[axis]), self._axes, full)

    def _spectral_norm(self) -> float:
        """The peak of the spectrum, nearly, where a wave of its frequency that ends at the border reaches it.

        The peak is an upper bound, since the periodic convolution is cropped; the wave gives a lower one.
        """
        spectrum = self._constants["spectrum"].abs()
        peak = float(spectrum.amax())
        if all(self._period[axis] == self.dims[axis] == self.dimsd[axis] for axis in self._axes):
            return peak  # nothing is cropped
        wave = self._wave(np.unravel_index(int(spectrum.argmax()), spectrum.shape))
        lower = length(self._forward(wave)) / length(wave)
        if lower >= _CLOSE * peak:
            return (lower + peak) / 2
        return self._norm_of_one_sign(wave.abs(), peak) or super()._spectral_norm()

    def _wave(self, frequency: tuple[Any, ...]) -> Tensor:
        """A wave under half a period of a sine along each axis of the kernel, the same along all others."""
        wave = torch.ones([1] * (len(self.dims) + 1), dtype=torch.complex128, device="cpu")
        for axis, size in zip(self._axes, self._sizes, strict=True):
            n = self.dims[axis]
            place = np.arange(n)
            line = np.sin(np.pi * (place + 1) / (n + 1)) * np.exp(2j * np.pi * frequency[axis] * place / size)
            wave = wave * torch.from_numpy(line).reshape(-1, *[1] * (-axis - 1))
        return wave


class Reflecting(Convolution):
    """A convolution of the image continued by its mirror images, in which the pixel at the border is twice.

    Parameters
    ----------
    kernel : ndarray
        Kernel with as many axes as the images.
    origin : tuple of int
        Index of the kernel's pixel that weighs ``x[i]`` in ``y[i]``.
    dims : tuple of int
        Shape of one image and of its data.
    """

    def __init__(self, kernel: NDArray, origin: Sizes, dims: Sizes) -> None:
        super().__init__(kernel, dims, dims)
        self._origin = origin
        sides = [(kernel.shape[axis] - 1 - origin[axis], origin[axis]) for axis in self._axes]
        self._sides = tuple(zip(self._axes, sides, strict=True))
        extended = tuple(n + k - 1 for n, k in zip(dims, kernel.shape, strict=True))
        self._parts = (valid(kernel, origin, extended),)

    def _with(self, kernel: NDArray) -> Reflecting:
        return Reflecting(kernel, self._origin, self.dims)

    def _forward(self, x: Tensor) -> Tensor:
        for axis, (before, after) in self._sides:
            n = x.shape[axis]
            start, end = x.narrow(axis, 0, before), x.narrow(axis, n - after, after)
            x = torch.cat([start.flip(axis), x, end.flip(axis)], axis)
        return self._parts[0]._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        x = self._parts[0]._adjoint(y)
        for axis, (before, after) in self._sides:
            n = x.shape[axis] - before - after
            start, x, end = x.split([before, n, after], axis)
            x = x.clone()
            x.narrow(axis, 0, before).add_(start.flip(axis))
            x.narrow(axis, n - after, after).add_(end.flip(axis))
        return x

    def _spectral_norm(self) -> float:
        """The peak of the cosine transform, in which a kernel that is even along each axis is diagonal."""
        if self._is_even():
            return float(abs(self._cosine_transform()).max())
        ones = torch.ones([1, *self.dims], dtype=torch.float64, device="cpu")
        return self._norm_of_one_sign(ones) or super()._spectral_norm()

    def _is_even(self) -> bool:
        """Whether the kernel is its own mirror image along each axis, about its origin."""
        ends = [k - 1 - 2 * c for k, c in zip(self._kernel.shape, self._origin, strict=True)]
        centred = np.pad(self._kernel, [(max(end, 0), max(-end, 0)) for end in ends])
        differences = (abs(centred - np.flip(centred, axis)).max() for axis in self._axes)
        return max(differences) <= _ROUNDING * abs(centred).max()

    def _cosine_transform(self) -> NDArray:
        spectrum = self._kernel
        for axis in self._axes:
            offsets = np.arange(self._kernel.shape[axis]) - self._origin[axis]
            cosines = np.cos(np.pi * np.outer(np.arange(self.dims[axis]), offsets) / self.dims[axis])
            spectrum = np.moveaxis(np.tensordot(cosines, spectrum, (1, axis)), 0, axis)
        return spectrum


def zero(kernel: NDArray, origin: Sizes, dims: Sizes) -> Convolution:
    """Outside, the image is zero."""
    reach = [n + max(c, k - 1 - c) for n, k, c in zip(dims, kernel.shape, origin, strict=True)]
    sizes = tuple(next_fast_len(max(n, k), True) for n, k in zip(reach, kernel.shape, strict=True))
    return Circulant(kernel, origin, sizes, dims, dims)


def periodic(kernel: NDArray, origin: Sizes, dims: Sizes) -> Convolution:
    """Outside, the image is repeated."""
    return Circulant(kernel, origin, dims, dims, dims)


def reflect(kernel: NDArray, origin: Sizes, dims: Sizes) -> Convolution:
    """Outside, the image is mirrored, with the pixel at the border twice."""
    return Reflecting(kernel, origin, dims)


def valid(kernel: NDArray, origin: Sizes, dims: Sizes) -> Convolution:
    """Nothing is outside: there are data only where the whole kernel lies within the image."""
    last = tuple(k - 1 for k in kernel.shape)
    sizes = tuple(next_fast_len(n, True) for n in dims)
    dimsd = tuple(n - k + 1 for n, k in zip(dims, kernel.shape, strict=True))
    return Circulant(kernel, last, sizes, dims, dimsd)


BOUNDARIES = {"zero": zero, "periodic": periodic, "reflect": reflect, "valid": valid}

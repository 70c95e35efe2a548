"""Sparsity in an orthonormal transform: wavelets and cosines."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skinverse.functionals._base import Functional
from skinverse.functionals._differences import image_axes
from skinverse.functionals._simple import L1Norm


class WaveletTransform:
    """Orthonormal periodic Daubechies wavelet transform of the image axes.

    Lengths may be any: of an odd number of samples the last one passes to the next coarser level as it is,
    which keeps the transform orthonormal. Coefficients stand where Mallat's pyramid puts them: the
    approximation at the start of each axis, details behind it.

    Parameters
    ----------
    order : int from 1 to 10, default=4
        Vanishing moments; 1 is Haar.
    n_levels : int or None, default=None
        Levels of the pyramid; None goes on while an axis has at least ``2 * order`` samples, at most 5.
    """

    def __init__(self, order: int = 4, n_levels: int | None = None) -> None:
        if order not in range(1, 11):
            raise ValueError(f"order: expected an integer from 1 to 10, got {order!r}")
        self.order, self.n_levels = order, n_levels

    def __call__(self, x: Tensor) -> Tensor:
        c = x.clone()
        for shape in self._pyramid(x):
            block = _corner(c, shape)
            for axis in image_axes(x.ndim):
                block.copy_(_along(axis, block, self._analysis))
        return c

    def adjoint(self, c: Tensor) -> Tensor:
        x = c.clone()
        for shape in reversed(self._pyramid(c)):
            block = _corner(x, shape)
            for axis in reversed(image_axes(c.ndim)):
                block.copy_(_along(axis, block, self._synthesis))
        return x

    def norm(self) -> float:
        """One, the transform is orthonormal."""
        return 1.0

    def approximation(self, x: Tensor) -> Tensor:
        """The coarsest approximation, a view into the coefficients ``x``."""
        pyramid = self._pyramid(x)
        sizes = pyramid[-1] if pyramid else ()
        return _corner(x, tuple(-(-size // 2) if size > 1 else 1 for size in sizes)) if pyramid else x

    def _pyramid(self, x: Tensor) -> list[tuple[int, ...]]:
        """Shape of the block that each level transforms."""
        shape = tuple(x.shape[axis] for axis in image_axes(x.ndim))
        shapes: list[tuple[int, ...]] = []
        most = 5 if self.n_levels is None else self.n_levels
        least = 2 * self.order if self.n_levels is None else 2
        while len(shapes) < most and max(shape) >= least:
            shapes.append(shape)
            shape = tuple(-(-size // 2) for size in shape)
        return shapes

    def _analysis(self, x: Tensor) -> Tensor:
        """One level along the last axis: approximations, the odd sample, details."""
        half, odd = divmod(x.shape[-1], 2)
        if half == 0:
            return x
        c = torch.zeros_like(x)
        c[..., half : half + odd] = x[..., 2 * half :]
        samples = _periodic(x[..., : 2 * half], 0, 2 * self.order - 2)
        low, high = _daubechies(self.order)
        for taps, part in ((low, c[..., :half]), (high, c[..., half + odd :])):
            for k, tap in enumerate(taps):  # coefficient j sees sample 2 j + k through tap k
                part.add_(samples[..., k : k + 2 * half - 1 : 2], alpha=tap)
        return c

    def _synthesis(self, c: Tensor) -> Tensor:
        half, odd = divmod(c.shape[-1], 2)
        if half == 0:
            return c
        x, before = torch.zeros_like(c), self.order - 1
        x[..., 2 * half :] = c[..., half : half + odd]
        low, high = _daubechies(self.order)
        for taps, part in ((low, c[..., :half]), (high, c[..., half + odd :])):
            coefficients = _periodic(part, before, 0)
            for k, tap in enumerate(taps):
                shifted = coefficients.narrow(-1, before - k // 2, half)
                x[..., k % 2 : 2 * half : 2].add_(shifted, alpha=tap)
        return x


class CosineTransform:
    """Orthonormal discrete cosine transform (DCT-II) of the image axes, by one real FFT per axis."""

    def __call__(self, x: Tensor) -> Tensor:
        for axis in image_axes(x.ndim):
            x = _along(axis, x, _cosines)
        return x

    def adjoint(self, c: Tensor) -> Tensor:
        for axis in image_axes(c.ndim):
            c = _along(axis, c, _from_cosines)
        return c

    def norm(self) -> float:
        """One, the transform is orthonormal."""
        return 1.0

    def approximation(self, c: Tensor) -> Tensor:
        """The mean's coefficient, a view."""
        return _corner(c, (1,) * len(image_axes(c.ndim)))


class _Sparsity(Functional):
    """``sum |W x|`` over all but the coarsest coefficients, ``W`` orthonormal."""

    proximable = True
    _transform: Any

    @abstractmethod
    def __init__(self) -> None: ...

    def __call__(self, x: Tensor) -> Tensor:
        c = self._transform(x)
        self._transform.approximation(c).zero_()
        return c.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        c = self._transform(x)
        shrunk = L1Norm().prox(c, step)
        self._transform.approximation(shrunk).copy_(self._transform.approximation(c))
        return self._transform.adjoint(shrunk)


class WaveletSparsity(_Sparsity):
    """Wavelet sparsity, ``sum |W x|`` over the details of an orthonormal Daubechies transform.

    The coarsest approximation is not penalised. Images of any size; the border is periodic. Complex images
    count by the modulus of their coefficients.

    Parameters
    ----------
    order : int from 1 to 10, default=4
        Vanishing moments of the wavelet; 1 is Haar.
    n_levels : int or None, default=None
        Levels of the pyramid; None goes on while an axis has at least ``2 * order`` samples, at most 5.

    References
    ----------
    I. Daubechies, Ten Lectures on Wavelets, SIAM, 1992, section 6.4.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import WaveletSparsity
    >>> WaveletSparsity(order=1)(torch.ones(1, 8, 8)) < 1e-5
    tensor([True])
    """

    def __init__(self, order: int = 4, n_levels: int | None = None) -> None:
        self._transform = WaveletTransform(order, n_levels)

    def __repr__(self) -> str:
        return f"WaveletSparsity(order={self._transform.order}, n_levels={self._transform.n_levels})"


class CosineSparsity(_Sparsity):
    """Sparsity in the orthonormal cosine transform (DCT-II), whose mean is not penalised.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import CosineSparsity
    >>> CosineSparsity()(torch.ones(1, 8, 8)) < 1e-5
    tensor([True])
    """

    def __init__(self) -> None:
        self._transform = CosineTransform()


def _along(axis: int, x: Tensor, function: Any) -> Tensor:
    return function(x) if axis == -1 else function(x.transpose(axis, -1)).transpose(axis, -1)


def _corner(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    for axis, size in zip(image_axes(x.ndim), shape, strict=True):
        x = x.narrow(axis, 0, size)
    return x


def _periodic(x: Tensor, before: int, after: int) -> Tensor:
    """Continue the last axis periodically by so many samples, also over several periods."""
    return x[..., torch.arange(-before, x.shape[-1] + after, device=x.device) % x.shape[-1]]


def _cosines(x: Tensor) -> Tensor:
    """DCT-II of the last axis: coefficient k is the real part of ``z_k``, n - k minus its imaginary part."""
    if x.is_complex():
        return torch.complex(_cosines(x.real), _cosines(x.imag))
    n = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    z = torch.fft.rfft(folded) * _half_sample_shift(n, x)
    return torch.cat([z.real, -z.imag[..., 1 : (n + 1) // 2].flip(-1)], dim=-1)


def _from_cosines(c: Tensor) -> Tensor:
    """Inverse of :func:`_cosines`."""
    if c.is_complex():
        return torch.complex(_from_cosines(c.real), _from_cosines(c.imag))
    n = c.shape[-1]
    mirrored = torch.nn.functional.pad(c, (0, 1)).flip(-1)  # coefficient n - k, zero for k = 0
    z = torch.complex(c, -mirrored[..., :n])[..., : n // 2 + 1]
    folded = torch.fft.irfft(z / _half_sample_shift(n, c), n)
    x = torch.empty_like(c)
    x[..., ::2], x[..., 1::2] = folded[..., : (n + 1) // 2], folded[..., (n + 1) // 2 :].flip(-1)
    return x


def _half_sample_shift(n: int, like: Tensor) -> Tensor:
    """``exp(-i pi k / 2n)`` for the half spectrum, scaled so that the transform is orthonormal."""
    k = torch.arange(n // 2 + 1, dtype=like.dtype, device=like.device)
    scale = torch.full_like(k, math.sqrt(2 / n))
    scale[0] = math.sqrt(1 / n)
    return torch.polar(scale, -math.pi / (2 * n) * k)


@lru_cache(maxsize=10)
def _daubechies(order: int) -> tuple[list[float], list[float]]:
    """Low- and high-pass filter by spectral factorisation of Daubechies' half-band polynomial."""
    p = np.poly1d([math.comb(order - 1 + k, k) for k in range(order)][::-1])  # P(y), y = sin^2(w/2)
    roots = []
    for y in p.roots:  # y = (2 - z - 1/z) / 4: of the pair z, 1/z take the one inside the unit circle
        z = np.roots([1, 4 * y - 2, 1])
        roots.append(z[np.argmin(np.abs(z))])
    low = np.real(np.poly([-1.0] * order + roots))
    low *= math.sqrt(2) / low.sum()
    high = low[::-1] * (-1) ** np.arange(len(low))
    return low.tolist(), high.tolist()

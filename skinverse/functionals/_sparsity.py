"""Sparsity in an orthonormal transform: wavelets and cosines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import pywt
import torch
from torch import Tensor

from skinverse._cosines import cosine_transform, inverse_cosine_transform
from skinverse._differences import IMAGE_AXES, Axes, axes_of
from skinverse.functionals._base import Functional
from skinverse.functionals._simple import L1Norm

# Levels of a wavelet transform if nobody says: after five, a sample of the approximation covers 32 pixels.
_MOST_LEVELS = 5


class Transform(ABC):
    """An orthonormal transform along spatial axes, counted from the end."""

    axes: Axes

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def adjoint(self, c: Tensor) -> Tensor: ...

    @abstractmethod
    def approximation(self, c: Tensor) -> Tensor:
        """The coefficients of the coarsest approximation, as a view of all of them."""

    def norm(self) -> float:
        """One, since the transform is orthonormal."""
        return 1.0


class WaveletTransform(Transform):
    """Orthonormal periodic Daubechies wavelet transform along spatial axes.

    An axis may have any length. Of an odd number of samples the last one passes to the next coarser level
    unchanged, which keeps the transform orthonormal; PyWavelets, whose filters these are, would extend the
    signal instead. Coefficients are ordered as in Mallat's pyramid: along each axis the approximation comes
    first, details behind it.

    Parameters
    ----------
    order : int from 1 to 10, default=4
        Number of vanishing moments; 1 is Haar.
    n_levels : int or None, default=None
        Number of levels; None goes on while an axis has at least ``2 * order`` samples, at most 5 times.
    """

    def __init__(self, order: int = 4, n_levels: int | None = None, *, axes: Axes = IMAGE_AXES) -> None:
        if order not in range(1, 11):
            raise ValueError(f"order: expected an integer from 1 to 10, got {order!r}")
        self.order, self.n_levels, self.axes = order, n_levels, axes
        wavelet = pywt.Wavelet(f"db{order}")
        self._low, self._high = wavelet.rec_lo, wavelet.rec_hi

    def __call__(self, x: Tensor) -> Tensor:
        c = x.clone()
        for shape in self._pyramid(x):
            block = _corner(c, axes_of(c, self.axes), shape)
            for axis in axes_of(x, self.axes):
                block.copy_(_along(axis, block, self._analysis))
        return c

    def adjoint(self, c: Tensor) -> Tensor:
        x = c.clone()
        for shape in reversed(self._pyramid(c)):
            block = _corner(x, axes_of(x, self.axes), shape)
            for axis in reversed(axes_of(c, self.axes)):
                block.copy_(_along(axis, block, self._synthesis))
        return x

    def approximation(self, c: Tensor) -> Tensor:
        pyramid = self._pyramid(c)
        return _corner(c, axes_of(c, self.axes), _halved(pyramid[-1])) if pyramid else c

    def _pyramid(self, x: Tensor) -> list[tuple[int, ...]]:
        """Shape of the block that each level transforms."""
        shape = tuple(x.shape[axis] for axis in axes_of(x, self.axes))
        shapes: list[tuple[int, ...]] = []
        most = _MOST_LEVELS if self.n_levels is None else self.n_levels
        least = 2 * self.order if self.n_levels is None else 2
        while len(shapes) < most and max(shape) >= least:
            shapes.append(shape)
            shape = _halved(shape)
        return shapes

    def _analysis(self, x: Tensor) -> Tensor:
        """One level along the last axis: approximations, the odd sample if there is one, details."""
        half, odd = divmod(x.shape[-1], 2)
        if half == 0:
            return x
        c = torch.zeros_like(x)
        c[..., half : half + odd] = x[..., 2 * half :]
        samples = _periodic(x[..., : 2 * half], 0, 2 * self.order - 2)
        for taps, part in ((self._low, c[..., :half]), (self._high, c[..., half + odd :])):
            for k, tap in enumerate(taps):  # coefficient j sees sample 2 j + k through tap k
                part.add_(samples[..., k : k + 2 * half - 1 : 2], alpha=tap)
        return c

    def _synthesis(self, c: Tensor) -> Tensor:
        """The adjoint of :meth:`_analysis`."""
        half, odd = divmod(c.shape[-1], 2)
        if half == 0:
            return c
        x, before = torch.zeros_like(c), self.order - 1
        x[..., 2 * half :] = c[..., half : half + odd]
        for taps, part in ((self._low, c[..., :half]), (self._high, c[..., half + odd :])):
            coefficients = _periodic(part, before, 0)
            for k, tap in enumerate(taps):
                shifted = coefficients.narrow(-1, before - k // 2, half)
                x[..., k % 2 : 2 * half : 2].add_(shifted, alpha=tap)
        return x


class CosineTransform(Transform):
    """Orthonormal discrete cosine transform (DCT-II) along spatial axes; the mean is the approximation."""

    def __init__(self, *, axes: Axes = IMAGE_AXES) -> None:
        self.axes = axes

    def __call__(self, x: Tensor) -> Tensor:
        return cosine_transform(x, axes_of(x, self.axes))

    def adjoint(self, c: Tensor) -> Tensor:
        return inverse_cosine_transform(c, axes_of(c, self.axes))

    def approximation(self, c: Tensor) -> Tensor:
        axes = axes_of(c, self.axes)
        return _corner(c, axes, (1,) * len(axes))


class _Sparsity(Functional):
    """``sum |W x|`` over all coefficients but the approximation, for an orthonormal transform ``W``."""

    proximable = True

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, x: Tensor) -> Tensor:
        c = self.transform(x)
        self.transform.approximation(c).zero_()
        return c.abs().flatten(1).sum(1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        c = self.transform(x)
        shrunk = L1Norm().prox(c, step)
        self.transform.approximation(shrunk).copy_(self.transform.approximation(c))
        return self.transform.adjoint(shrunk)


class WaveletSparsity(_Sparsity):
    """Wavelet sparsity, ``sum |W x|`` over the details of an orthonormal Daubechies transform.

    The coarsest approximation is not penalised. Images may have any size, and are continued periodically. Of
    complex images the moduli of the coefficients count.

    Parameters
    ----------
    order : int from 1 to 10, default=4
        Number of vanishing moments of the wavelet; 1 is Haar.
    n_levels : int or None, default=None
        Number of levels; None goes on while an axis has at least ``2 * order`` samples, at most 5 times.
    axes : tuple of int, default=(-2, -1)
        The spatial axes of a batch, counted from the end: (-3, -2, -1) of volumes (n, D, H, W), (-3, -2) of
        images (n, H, W, C). All others are channels; of signals (n, L) there is only the last one.

    Attributes
    ----------
    transform : linear map
        The transform ``W``: ``transform(x)``, and its adjoint and inverse, ``transform.adjoint(c)``.

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

    def __init__(self, order: int = 4, n_levels: int | None = None, *, axes: Axes = IMAGE_AXES) -> None:
        super().__init__(WaveletTransform(order, n_levels, axes=axes))
        self.order, self.n_levels, self.axes = order, n_levels, axes

    def __repr__(self) -> str:
        return f"WaveletSparsity(order={self.order}, n_levels={self.n_levels}, axes={self.axes})"


class CosineSparsity(_Sparsity):
    """Sparsity in cosines, ``sum |C x|`` for the orthonormal cosine transform ``C`` (DCT-II).

    The mean of an image is not penalised.

    Parameters
    ----------
    axes : tuple of int, default=(-2, -1)
        The spatial axes of a batch, as in :class:`WaveletSparsity`.

    Attributes
    ----------
    transform : linear map
        The transform ``C``: ``transform(x)``, and its adjoint and inverse, ``transform.adjoint(c)``.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import CosineSparsity
    >>> CosineSparsity()(torch.ones(1, 8, 8)) < 1e-5
    tensor([True])
    """

    def __init__(self, *, axes: Axes = IMAGE_AXES) -> None:
        super().__init__(CosineTransform(axes=axes))
        self.axes = axes

    def __repr__(self) -> str:
        return f"CosineSparsity(axes={self.axes})"


def _along(axis: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of the last axis to another axis."""
    return function(x) if axis == -1 else function(x.transpose(axis, -1)).transpose(axis, -1)


def _halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the approximation of a block; odd sizes are rounded up."""
    return tuple(-(-size // 2) for size in shape)


def _corner(x: Tensor, axes: Axes, shape: tuple[int, ...]) -> Tensor:
    """The first entries along some axes, as a view."""
    for axis, size in zip(axes, shape, strict=True):
        x = x.narrow(axis, 0, size)
    return x


def _periodic(x: Tensor, before: int, after: int) -> Tensor:
    """Continue the last axis periodically by so many samples, also over several periods."""
    return x[..., torch.arange(-before, x.shape[-1] + after, device=x.device) % x.shape[-1]]

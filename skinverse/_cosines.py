"""The orthonormal discrete cosine transform (DCT-II) and its inverse, by one real FFT per axis.

J. Makhoul, A fast cosine transform in one and two dimensions, IEEE Transactions on Acoustics, Speech, and
Signal Processing 28, 1980.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cosine_transform(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Coefficients of ``x`` in orthonormal cosines along some axes.

    Parameters
    ----------
    x : Tensor
        Numbers, real or complex.
    axes : tuple of int
        Axes to transform, counted from the end: -1 is the last one.

    Returns
    -------
    Tensor
        The coefficients, of the shape of ``x``.

    Examples
    --------
    >>> import torch
    >>> from skinverse._cosines import cosine_transform
    >>> cosine_transform(torch.tensor([[1.0, -1.0]]), (-1,))
    tensor([[0.0000, 1.4142]])
    """
    for axis in axes:
        x = _along(axis, x, _analysis)
    return x


def inverse_cosine_transform(c: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Inverse and adjoint of :func:`cosine_transform`; the rows of the identity become the cosines.

    Parameters
    ----------
    c : Tensor
        Coefficients, real or complex.
    axes : tuple of int
        Axes to transform, counted from the end.

    Returns
    -------
    Tensor
        The numbers, of the shape of ``c``.

    Examples
    --------
    >>> import torch
    >>> from skinverse._cosines import inverse_cosine_transform
    >>> inverse_cosine_transform(torch.eye(2), (-1,)).round(decimals=3)
    tensor([[ 0.7070,  0.7070],
            [ 0.7070, -0.7070]])
    """
    for axis in axes:
        c = _along(axis, c, _synthesis)
    return c


def _along(axis: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A linear function of the last axis along another one, of real and imaginary parts each."""
    if x.is_complex():
        return torch.complex(_along(axis, x.real, function), _along(axis, x.imag, function))
    return function(x) if axis == -1 else function(x.transpose(axis, -1)).transpose(axis, -1)


def _analysis(x: Tensor) -> Tensor:
    """With the spectrum ``z``, coefficient k is the real part of ``z_k``, n - k minus its imaginary part."""
    n = x.shape[-1]
    # Even samples forwards, then odd ones backwards: of this order the DCT-II is a Fourier transform.
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    z = torch.fft.rfft(folded) * _half_sample_shift(n, x)
    return torch.cat([z.real, -z.imag[..., 1 : (n + 1) // 2].flip(-1)], dim=-1)


def _synthesis(c: Tensor) -> Tensor:
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

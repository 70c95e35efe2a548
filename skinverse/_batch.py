"""Arithmetic on batches: the first axis counts images, everything else belongs to one image."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of each pair of images, ``Re <a_i, b_i>``.

    Parameters
    ----------
    a, b : Tensor of shape (n, ...)
        Two batches of the same shape, real or complex.

    Returns
    -------
    Tensor of shape (n,)
        One real number per image.
    """
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return product.flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    """Euclidean norm of each image, a real tensor of shape (n,)."""
    return torch.linalg.vector_norm(a.flatten(1), dim=1)


@overload
def expand(value: Tensor, like: Tensor) -> Tensor: ...
@overload
def expand(value: float, like: Tensor) -> float: ...
@overload
def expand(value: Tensor | float, like: Tensor) -> Tensor | float: ...
def expand(value: Tensor | float, like: Tensor) -> Tensor | float:
    """Shape one number per image, (n,), so that it multiplies a batch (n, ...); plain numbers pass."""
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.reshape(-1, *[1] * (like.ndim - 1))
    return value


def reuse_freed_memory() -> None:
    """Teach the C library to keep freed memory instead of returning it page by page to the system.

    glibc maps large blocks afresh, and every page of them faults once, which can take longer than the
    arithmetic. It raises the limit to the largest block freed so far, up to 32 MiB: freeing one that large
    makes what works on many megabytes per step, such as a training, up to three times as fast.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def wrap(x: Tensor, width: int) -> Tensor:
    """The image continued periodically by ``width`` pixels on each side, however small it is."""
    if width <= min(x.shape[-2:]):
        return F.pad(x, (width,) * 4, mode="circular")
    rows, columns = (torch.arange(-width, n + width, device=x.device) % n for n in x.shape[-2:])
    return x[..., rows[:, None], columns]

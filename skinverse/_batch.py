"""Arithmetic on batches: the first axis counts images, everything else belongs to one image."""

from __future__ import annotations

from typing import overload

import torch
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

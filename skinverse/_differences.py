"""Finite differences of batches of images; across the border of an image they are zero (Neumann)."""

from __future__ import annotations

import torch
from torch import Tensor


def image_axes(ndim: int) -> tuple[int, ...]:
    """Spatial axes of a batch with ``ndim`` axes: the last two of images, the last one of signals."""
    return (-2, -1) if ndim > 2 else (-1,)


def add_adjoint_difference(g: Tensor, axis: int, out: Tensor) -> None:
    """Add the adjoint of ``x.diff(dim=axis)`` at ``g`` to ``out``, which is one entry longer than ``g``."""
    without_end(out, axis).sub_(g)
    without_start(out, axis).add_(g)


def negative_laplacian(x: Tensor) -> Tensor:
    """``-div grad x`` along the image axes: the gradient of ``1/2 ||grad x||^2``.

    Parameters
    ----------
    x : Tensor of shape (n, *dims)
        Images, real or complex.

    Returns
    -------
    Tensor of shape (n, *dims)
        The result, which sums to zero over each image.

    Examples
    --------
    >>> import torch
    >>> from skinverse._differences import negative_laplacian
    >>> negative_laplacian(torch.tensor([[0.0, 1.0, 4.0, 9.0]]))
    tensor([[-1., -2., -2.,  5.]])
    """
    total = torch.zeros_like(x)
    for axis in image_axes(x.ndim):
        add_adjoint_difference(x.diff(dim=axis), axis, total)
    return total


def without_end(x: Tensor, axis: int) -> Tensor:
    """All but the last entry along an axis, as a view."""
    return x.narrow(axis, 0, max(x.shape[axis] - 1, 0))


def without_start(x: Tensor, axis: int) -> Tensor:
    """All but the first entry along an axis, as a view."""
    return x.narrow(axis, min(1, x.shape[axis]), max(x.shape[axis] - 1, 0))

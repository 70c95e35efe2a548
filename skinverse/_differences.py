"""Finite differences of batches of images; across the border of an image they are zero (Neumann)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Axes of a batch, counted from the end.
Axes = tuple[int, ...]

# The spatial axes of grey images (n, H, W), and of those with channels (n, C, H, W).
IMAGE_AXES: Axes = (-2, -1)

# Distances of neighbouring pixels along some axes, one for each; None is 1 along all of them.
Spacing = Sequence[float] | None


def axes_of(x: Tensor, axes: Axes) -> Axes:
    """Those of some spatial axes that a batch has behind its first one: of signals (n, L) only the last."""
    return tuple(axis for axis in axes if axis + x.ndim > 0)


def distances(axes: Axes, spacing: Spacing) -> tuple[float, ...]:
    """Distances of neighbouring pixels along the axes, 1 where nothing is said."""
    return (1.0,) * len(axes) if spacing is None else tuple(spacing)


def add_adjoint_difference(g: Tensor, axis: int, out: Tensor, factor: float = 1.0) -> None:
    """Add the adjoint of ``factor * x.diff(dim=axis)`` at ``g`` to ``out``, which is one entry longer."""
    without_end(out, axis).sub_(g, alpha=factor)
    without_start(out, axis).add_(g, alpha=factor)


def negative_laplacian(x: Tensor, axes: Axes = IMAGE_AXES) -> Tensor:
    """``-div grad x`` along the spatial axes: the gradient of ``1/2 ||grad x||^2``.

    Parameters
    ----------
    x : Tensor of shape (n, *dims)
        Images, real or complex.
    axes : tuple of int, default=(-2, -1)
        The spatial axes, counted from the end; of signals (n, L) there is only the last one.

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
    for axis in axes_of(x, axes):
        add_adjoint_difference(x.diff(dim=axis), axis, total)
    return total


def without_end(x: Tensor, axis: int) -> Tensor:
    """All but the last entry along an axis, as a view."""
    return x.narrow(axis, 0, max(x.shape[axis] - 1, 0))


def without_start(x: Tensor, axis: int) -> Tensor:
    """All but the first entry along an axis, as a view."""
    return x.narrow(axis, min(1, x.shape[axis]), max(x.shape[axis] - 1, 0))

"""Pieces of images to train on and to judge by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Side of the piece of an image that is scored where one piece shows as much as the whole.
_SCORED_SIDE = 80


def random_patches(x: Tensor, size: int | None) -> Tensor:
    """A random patch of each image, flipped and transposed at random.

    Parameters
    ----------
    x : Tensor of shape (n, channels, height, width)
        Images.
    size : int or None
        Side of the patches, or less where an image is smaller; None gives the images as they are.

    Returns
    -------
    Tensor of shape (n, channels, size, size)
        One patch of each image.
    """
    if size is None:
        return x
    height, width = x.shape[-2:]
    rows, columns = (_random_run(len(x), n, min(n, size), x.device) for n in (height, width))
    images = torch.arange(len(x), device=x.device)[:, None, None]
    patches = x[images, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    square = patches.shape[-1] == patches.shape[-2]
    return patches.mT if square and float(torch.rand(())) < 0.5 else patches


def _random_run(n: int, length: int, size: int, device: torch.device) -> Tensor:
    """For each of ``n`` images ``size`` consecutive indices, half of the time in descending order."""
    first = torch.randint(length - size + 1, (n, 1), device=device)
    steps = torch.arange(size, device=device).expand(n, size)
    descending = torch.rand(n, 1, device=device) < 0.5
    return first + torch.where(descending, size - 1 - steps, steps)


def crop(images: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """The upper left corner of images and of data of the same shape: enough to judge a denoiser by."""
    corner: Any = (..., *[slice(0, _SCORED_SIDE)] * min(2, images.ndim - 1))
    return images[corner], data[corner]

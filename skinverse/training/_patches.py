"""Pieces of images to train on and to judge by."""

from __future__ import annotations

import torch
from torch import Tensor

# Side of the piece of an image that is scored where one piece shows as much as the whole.
_SCORED_SIDE = 80


def random_patches(x: Tensor, size: int | None) -> Tensor:
    """A random patch of each image, flipped, and with its last two axes exchanged, at random.

    Parameters
    ----------
    x : Tensor of shape (n, channels, *space)
        Images, or volumes.
    size : int or None
        Side of the patches, or less where an image is smaller; None gives the images as they are.

    Returns
    -------
    Tensor of shape (n, channels, size, ..., size)
        One patch of each image.
    """
    if size is None:
        return x
    n, d = len(x), x.ndim - 2
    runs = [_random_run(n, length, min(length, size), x.device) for length in x.shape[2:]]
    places = [run.reshape(n, *[1] * k, -1, *[1] * (d - 1 - k)) for k, run in enumerate(runs)]
    images = torch.arange(n, device=x.device).reshape(n, *[1] * d)
    patches = x.movedim(1, -1)[(images, *places)].movedim(-1, 1)
    square = patches.shape[-1] == patches.shape[-2]
    return patches.mT if square and float(torch.rand(())) < 0.5 else patches


def _random_run(n: int, length: int, size: int, device: torch.device) -> Tensor:
    """For each of ``n`` images ``size`` consecutive indices, half of the time in descending order."""
    first = torch.randint(length - size + 1, (n, 1), device=device)
    steps = torch.arange(size, device=device).expand(n, size)
    descending = torch.rand(n, 1, device=device) < 0.5
    return first + torch.where(descending, size - 1 - steps, steps)


def crop(images: Tensor, data: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The first corner of images and of data of the same shape: enough to judge a denoiser by.

    ``axes`` are the spatial ones, counted from the end.
    """
    for axis in axes:
        side = min(images.shape[axis], _SCORED_SIDE)
        images, data = images.narrow(axis, 0, side), data.narrow(axis, 0, side)
    return images, data

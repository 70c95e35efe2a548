"""Groups of rotations and flips, and convolutions that commute with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A transformation is a flip of the columns, or none, and then so many quarter turns.
Element = tuple[int, bool]

GROUPS: dict[str, tuple[Element, ...]] = {
    "C1": ((0, False),),
    "D1": ((0, False), (0, True)),
    "C2": ((0, False), (2, False)),
    "C4": tuple((turns, False) for turns in range(4)),
    "D4": tuple((turns, flip) for flip in (False, True) for turns in range(4)),
}


def transform(x: Tensor, element: Element) -> Tensor:
    """Flip and turn images or kernels.

    Parameters
    ----------
    x : Tensor of shape (..., height, width)
        Odd quarter turns exchange height and width.
    element : (turns, flip)
        Quarter turns, after a flip of the columns if ``flip``.

    Returns
    -------
    Tensor
        The same values, flipped and turned.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks._groups import transform
    >>> transform(torch.tensor([[1, 2], [3, 4]]), (1, False))
    tensor([[2, 4],
            [1, 3]])
    """
    turns, flip = element
    return torch.rot90(x.flip(-1) if flip else x, turns, (-2, -1))


def elements(group: str) -> tuple[Element, ...]:
    """The transformations of a group, the identity first; ValueError if it is unknown."""
    if group not in GROUPS:
        raise ValueError(f"group: expected one of {sorted(GROUPS)}, got {group!r}")
    return GROUPS[group]


def quotients(group: str) -> Tensor:
    """Table of indices: the entry ``[g, h]`` is that of ``g^-1 h``."""
    known, probe = elements(group), torch.arange(9).reshape(3, 3)
    moved = torch.stack([transform(probe, g) for g in known])
    products = torch.stack([transform(moved, g) for g in known])  # [g, k] is g k
    index = (products[:, :, None] == moved[None, None]).all((-1, -2)).int().argmax(-1)
    return index.argsort(1)


class GroupConv(nn.Module):
    """Weights of a convolution that commutes with a group, as the kernel of an ordinary one.

    Features are fields: a field has one channel for each transformation, and transforming the image also
    permutes them. ``LiftConv`` leads from images to fields, ``GroupConv`` from fields to fields and
    ``ProjectConv`` from fields to images.

    Parameters
    ----------
    n_in, n_out : int
        Numbers of fields.
    kernel_size : int, default=3
        Side of the kernel in pixels.
    group : {"C1", "D1", "C2", "C4", "D4"}, default="C4"
        Symmetry: none, a flip, half turns, quarter turns, quarter turns and flips; of volumes in the plane of
        the last two axes.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    References
    ----------
    T. Cohen and M. Welling, Group equivariant convolutional networks, ICML, 2016.
    E. Celledoni, M. J. Ehrhardt, C. Etmann, B. Owren, C.-B. Schonlieb and F. Sherry, Equivariant neural
    networks for inverse problems, Inverse Problems 37, 2021.

    Examples
    --------
    >>> from skinverse.networks import GroupConv
    >>> GroupConv(2, 3, group="D4").kernel().shape
    torch.Size([24, 16, 3, 3])
    """

    quotients: Tensor

    def __init__(
        self, n_in: int, n_out: int, *, kernel_size: int = 3, group: str = "C4", ndim: int = 2
    ) -> None:
        super().__init__()
        self.elements = elements(group)
        order = len(self.elements)
        self.register_buffer("quotients", quotients(group), persistent=False)
        size = [kernel_size] * ndim
        fan_in = n_in * order * math.prod(size)
        self.weight = nn.Parameter(_uniform((n_out, n_in, order, *size), fan_in))
        self.offset = nn.Parameter(_uniform((n_out,), fan_in))

    def kernel(self) -> Tensor:
        """The kernel, (n_out x order, n_in x order, k, k)."""
        copies = [
            transform(self.weight[:, :, self.quotients[i]], g) for i, g in enumerate(self.elements)
        ]  # [g][out, in, h] is g applied to the weight of g^-1 h
        return torch.stack(copies, 1).flatten(2, 3).flatten(0, 1)

    def bias(self) -> Tensor:
        """The bias, (n_out x order,)."""
        return self.offset.repeat_interleave(len(self.elements))


class LiftConv(nn.Module):
    """Convolution from images to fields; see :class:`GroupConv`.

    Parameters
    ----------
    n_in, n_out : int
        Channels of the images, and fields.
    kernel_size : int, default=3
        Side of the kernel in pixels.
    group : {"C1", "D1", "C2", "C4", "D4"}, default="C4"
        The group.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Examples
    --------
    >>> from skinverse.networks import LiftConv
    >>> LiftConv(2, 3, group="D4").kernel().shape
    torch.Size([24, 2, 3, 3])
    """

    def __init__(
        self, n_in: int, n_out: int, *, kernel_size: int = 3, group: str = "C4", ndim: int = 2
    ) -> None:
        super().__init__()
        self.elements = elements(group)
        size = [kernel_size] * ndim
        fan_in = n_in * math.prod(size)
        self.weight = nn.Parameter(_uniform((n_out, n_in, *size), fan_in))
        self.offset = nn.Parameter(_uniform((n_out,), fan_in))

    def kernel(self) -> Tensor:
        """The kernel, (n_out x order, n_in, k, k)."""
        return torch.stack([transform(self.weight, g) for g in self.elements], 1).flatten(0, 1)

    def bias(self) -> Tensor:
        """The bias, (n_out x order,)."""
        return self.offset.repeat_interleave(len(self.elements))


class ProjectConv(nn.Module):
    """Convolution from fields to images; see :class:`GroupConv`.

    Parameters
    ----------
    n_in, n_out : int
        Fields, and channels of the images.
    kernel_size : int, default=3
        Side of the kernel in pixels.
    group : {"C1", "D1", "C2", "C4", "D4"}, default="C4"
        The group.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Examples
    --------
    >>> from skinverse.networks import ProjectConv
    >>> ProjectConv(3, 2, group="D4").kernel().shape
    torch.Size([2, 24, 3, 3])
    """

    def __init__(
        self, n_in: int, n_out: int, *, kernel_size: int = 3, group: str = "C4", ndim: int = 2
    ) -> None:
        super().__init__()
        self.elements = elements(group)
        size = [kernel_size] * ndim
        fan_in = n_in * len(self.elements) * math.prod(size)
        self.weight = nn.Parameter(_uniform((n_out, n_in, *size), fan_in))
        self.offset = nn.Parameter(_uniform((n_out,), fan_in))

    def kernel(self) -> Tensor:
        """The kernel, (n_out, n_in x order, k, k)."""
        return torch.stack([transform(self.weight, g) for g in self.elements], 2).flatten(1, 2)

    def bias(self) -> Tensor:
        """The bias, (n_out,)."""
        return self.offset


def _uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
    """As torch draws the weights of its own convolutions."""
    return (2 * torch.rand(shape) - 1) / math.sqrt(fan_in)

"""Arithmetic on batches: the first axis counts images, everything else belongs to one image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


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


def real_like(x: Tensor, like: Tensor) -> Tensor:
    """``x``, but its real part where ``like`` is real: the adjoint of a complex map of real images."""
    return x.real if x.is_complex() and not like.is_complex() else x


def spread(x: Tensor) -> float:
    """Standard deviation of all values, 1 for constant images."""
    std = float(x.std()) if x.numel() > 1 else 0.0
    return std if std > 0 else 1.0


def rms(x: Tensor) -> float:
    """Root mean square of all values."""
    return math.sqrt(float(x.detach().abs().square().mean()))


def full_precision(function: Function) -> Function:
    """Let autocasting leave a function alone: half precision comes in as single precision.

    For derivatives of our own, which expect numbers of one kind, and for products with an operator: of a
    residual ``A x - y`` three digits would be left.
    """

    @wraps(function)
    def computed(x: Tensor, *others: Any, **named: Any) -> Any:
        if not torch.is_autocast_enabled(x.device.type):
            return function(x, *others, **named)
        with torch.autocast(x.device.type, enabled=False):
            return function(_single(x), *map(_single, others), **named)

    return cast(Function, computed)


def _single(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


def reuse_freed_memory() -> None:
    """Teach the C library to keep freed memory instead of returning it page by page to the system.

    glibc maps large blocks afresh, and every page of them faults once, which can take longer than the
    arithmetic. It raises the limit to the largest block freed so far, up to 32 MiB: freeing one that large
    makes what works on many megabytes per step, such as a training, up to three times as fast.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def mirror(x: Tensor, width: int) -> Tensor:
    """The image continued by its mirror images, ``width`` pixels on each side, however small it is.

    The pixel at the edge is repeated, as by ``numpy.pad(..., mode="symmetric")``: this commutes with turns
    and flips, and the cosine transform (DCT-II) continues images so.

    Parameters
    ----------
    x : Tensor of shape (n, channels, ...)
        Images with any number of axes.
    width : int
        Pixels to add, also more than the image has.

    Returns
    -------
    Tensor
        Larger images; :func:`fold` is the adjoint.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import mirror
    >>> mirror(torch.tensor([[[1, 2, 3]]]), 2)
    tensor([[[2, 1, 1, 2, 3, 3, 2]]])
    """
    for axis in range(2, x.ndim):
        x = _mirrored(x, width, axis)
    return x


def fold(x: Tensor, width: int) -> Tensor:
    """Adjoint of :func:`mirror`: add every pixel of the margins to the one that it is an image of.

    Parameters
    ----------
    x : Tensor of shape (n, channels, ...)
        Images with margins of ``width`` pixels on each side.
    width : int
        Width of the margins.

    Returns
    -------
    Tensor
        Images without margins.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import fold
    >>> fold(torch.tensor([[[100, 10, 1, 2, 3, 30, 300]]]), 2)
    tensor([[[ 11, 402,  33]]])
    """
    for axis in range(2, x.ndim):
        x = _folded(x, width, axis)
    return x


def _mirrored(x: Tensor, width: int, axis: int) -> Tensor:
    n = x.shape[axis]
    if width > n:  # the image between two mirror images is symmetric about its own ends, too
        return _mirrored(_mirrored(x, n, axis), width - n, axis)
    before, after = x.narrow(axis, 0, width), x.narrow(axis, n - width, width)
    return torch.cat([before.flip(axis), x, after.flip(axis)], axis)


def _folded(x: Tensor, width: int, axis: int) -> Tensor:
    n = x.shape[axis] - 2 * width
    if width > n:
        return _folded(_folded(x, width - n, axis), n, axis)
    before, middle, after = x.split([width, n, width], axis)
    folded = middle.clone()
    folded.narrow(axis, 0, width).add_(before.flip(axis))
    folded.narrow(axis, n - width, width).add_(after.flip(axis))
    return folded


def spatial_axes(n_axes: int, channel_axis: int | None) -> tuple[int, ...]:
    """Axes of images that are space, counted from the end: all of ``n_axes`` but the one with channels."""
    channels = None if channel_axis is None else channel_axis % n_axes
    return tuple(axis - n_axes for axis in range(n_axes) if axis != channels)


def as_channels(x: Tensor, channel_axis: int | None) -> Tensor:
    """Images (n, *dims), real or complex, as real channels of at least two axes, (n, channels, *space).

    Parameters
    ----------
    x : Tensor of shape (n, *dims)
        The images.
    channel_axis : int or None
        The axis of one image that holds channels; None where all are space.

    Returns
    -------
    Tensor
        The same numbers; of complex images the real and imaginary parts are channels one after the other.
        Signals are images of one row.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import as_channels
    >>> as_channels(torch.zeros(5, 8, 9, dtype=torch.complex64), None).shape
    torch.Size([5, 2, 8, 9])
    >>> as_channels(torch.zeros(5, 8, 9, 3), -1).shape
    torch.Size([5, 3, 8, 9])
    """
    # Contiguous: random numbers that are drawn for channels depend on the order in memory.
    first = x[:, None] if channel_axis is None else x.movedim(1 + channel_axis % (x.ndim - 1), 1).contiguous()
    planes = first[:, :, None] if first.ndim == 3 else first
    return torch.view_as_real(planes).movedim(-1, 2).flatten(1, 2) if x.is_complex() else planes


def from_channels(channels: Tensor, like: Tensor, channel_axis: int | None) -> Tensor:
    """Undo :func:`as_channels`.

    Parameters
    ----------
    channels : Tensor
        Real, (n, channels, *space), or with the channels folded into the first axis.
    like : Tensor
        Images of the shape and kind wanted.
    channel_axis : int or None
        The axis of one image that holds channels; None where all are space.

    Returns
    -------
    Tensor
        Images of the shape of ``like``.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import as_channels, from_channels
    >>> x = torch.ones(1, 4, dtype=torch.complex64)
    >>> bool((from_channels(as_channels(x, None), x, None) == x).all())
    True
    """
    axis = None if channel_axis is None else 1 + channel_axis % (like.ndim - 1)
    shape = like.shape if axis is None else like.movedim(axis, 1).shape
    if like.is_complex():
        n, c = (len(like), 1) if axis is None else shape[:2]
        parts = channels.reshape(n, c, 2, -1).movedim(2, -1).contiguous()
        channels = torch.view_as_complex(parts)
    images = channels.reshape(shape)
    return images if axis is None else images.movedim(1, axis)


def planes_for(x: Tensor, n_channels: int, what: str, channel_axis: int | None) -> Tensor:
    """Images (n, *dims) as the channels of what was trained on ``n_channels`` of them.

    What was trained on a single channel sees the channels of an image one by one, as images of their own,
    (n * channels, 1, *space).

    Parameters
    ----------
    x : Tensor of shape (n, *dims)
        Images, real or complex.
    n_channels : int
        Real channels of the training.
    what : str
        What was trained, for the error.
    channel_axis : int or None
        The axis of one image that holds channels; None where all are space.

    Returns
    -------
    Tensor of shape (n, n_channels, *space) or (n * channels, 1, *space)
        Real channels; :func:`from_channels` undoes both.

    Raises
    ------
    ValueError
        If the images have other channels.
    """
    channels = as_channels(x, channel_axis)
    if n_channels == 1:
        return channels.flatten(0, 1)[:, None]
    if channels.shape[1] != n_channels:
        raise ValueError(
            f"{what} was trained on images of {n_channels} channels (a complex one counts twice), got "
            f"{channels.shape[1]} in images {tuple(x.shape[1:])} with channel_axis={channel_axis}"
        )
    return channels


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """``||new - old|| / ||new||`` of each image, a real tensor of shape (n,)."""
    return norm(new - old) / norm(new).clamp_min(torch.finfo(new.dtype).tiny)


def are_finite(x: Tensor) -> Tensor:
    """Which images hold neither NaN nor inf, (n,); nothing of the size of the images is written."""
    smallest, largest = (
        (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).flatten(1).aminmax(dim=1)
    )
    return torch.isfinite(smallest) & torch.isfinite(largest)


def as_numbers(value: Tensor | float) -> Tensor:
    """A number, or one per image, as a tensor: plain numbers are float64, whatever torch's defaults are."""
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def stack_variables(*variables: Tensor) -> Tensor:
    """Several variables of each image as one vector, (n, ...) each -> (n, size).

    Parameters
    ----------
    *variables : Tensor of shape (n, ...)
        The variables, all real or all complex.

    Returns
    -------
    Tensor of shape (n, size)
        The vectors; :func:`split_variables` takes them apart.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import stack_variables
    >>> stack_variables(torch.zeros(5, 2, 3), torch.zeros(5, 4)).shape
    torch.Size([5, 10])
    """
    return torch.cat([v.flatten(1) for v in variables], 1)


def split_variables(z: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Undo :func:`stack_variables`.

    Parameters
    ----------
    z : Tensor of shape (n, size)
        The vectors.
    *shapes : tuple of int
        Shape of each variable of one image.

    Returns
    -------
    list of Tensor
        The variables, (n, *shape) each.

    Examples
    --------
    >>> import torch
    >>> from skinverse._tensors import split_variables
    >>> [v.shape for v in split_variables(torch.zeros(5, 10), (2, 3), (4,))]
    [torch.Size([5, 2, 3]), torch.Size([5, 4])]
    """
    sizes = [math.prod(shape) for shape in shapes]
    return [v.unflatten(1, shape) for v, shape in zip(z.split(sizes, 1), shapes, strict=True)]


class LinearMap(Protocol):
    """What functionals and solvers ask of a linear map of batches, such as an operator or a gradient."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def adjoint(self, y: Tensor, /) -> Tensor: ...

    def norm(self) -> float: ...

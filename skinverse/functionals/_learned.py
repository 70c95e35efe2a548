"""A learned energy as a functional of images of any kind: flat or not, grey or coloured, real or complex."""

from __future__ import annotations

import torch
from torch import Tensor

from skinverse.functionals._base import Functional
from skinverse.functionals._critics import Critic


class Learned(Functional):
    """Energy of images ``(n, *dims)`` by a critic of images ``(n, channels, height, width)``.

    Complex images are two real channels. A critic of one channel looks at the channels one by one, and the
    energies add up.

    Parameters
    ----------
    critic : Critic
        The energy, in the precision and on the device of the images.

    Raises
    ------
    ValueError
        On use, if the images have other channels than the critic was made for.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import Learned, RidgeCritic
    >>> Learned(RidgeCritic())(torch.ones(3, 8)).shape
    torch.Size([3])
    """

    smooth = True

    def __init__(self, critic: Critic) -> None:
        self.critic = critic
        self.weak_convexity = critic.weak_convexity()

    def __call__(self, x: Tensor) -> Tensor:
        return self.critic(self._seen(x)).view(len(x), -1).sum(1)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self.critic.value_and_grad(self._seen(x))
        return value.view(len(x), -1).sum(1), from_channels(gradient, x)

    def _seen(self, x: Tensor) -> Tensor:
        channels = as_channels(x)
        if self.critic.n_channels == 1:
            return channels.flatten(0, 1)[:, None]
        if channels.shape[1] != self.critic.n_channels:
            raise ValueError(
                f"the critic was trained on images of {self.critic.n_channels} channels "
                f"(a complex one counts twice), got {channels.shape[1]} in images {tuple(x.shape[1:])}"
            )
        return channels

    def __repr__(self) -> str:
        return f"Learned({type(self.critic).__name__})"


def as_channels(x: Tensor) -> Tensor:
    """Images (n, *dims), real or complex, as real (n, channels, height, width).

    Parameters
    ----------
    x : Tensor of shape (n, width), (n, height, width) or (n, channels, height, width)
        The images.

    Returns
    -------
    Tensor
        The same numbers; of complex images the real and imaginary parts are channels one after the other.

    Raises
    ------
    ValueError
        If the images have more than three axes.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import as_channels
    >>> as_channels(torch.zeros(5, 8, 9, dtype=torch.complex64)).shape
    torch.Size([5, 2, 8, 9])
    """
    if x.ndim > 4:
        raise ValueError(f"expected images (channels, height, width) at most, got {tuple(x.shape[1:])}")
    planes = x.reshape(len(x), *[1] * (4 - x.ndim), *x.shape[1:])
    return torch.view_as_real(planes).movedim(-1, 2).flatten(1, 2) if x.is_complex() else planes


def from_channels(channels: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`as_channels`.

    Parameters
    ----------
    channels : Tensor
        Real, (n, channels, height, width), or with the channels folded into the first axis.
    like : Tensor
        Images of the shape and kind wanted.

    Returns
    -------
    Tensor
        Images of the shape of ``like``.

    Examples
    --------
    >>> import torch
    >>> from skinverse.functionals import as_channels, from_channels
    >>> x = torch.ones(1, 4, dtype=torch.complex64)
    >>> bool((from_channels(as_channels(x), x) == x).all())
    True
    """
    if not like.is_complex():
        return channels.reshape(like.shape)
    height_width = channels.shape[-2:]
    parts = channels.reshape(len(like), -1, 2, *height_width).movedim(2, -1).contiguous()
    return torch.view_as_complex(parts).reshape(like.shape)

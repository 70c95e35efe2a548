"""A generator that the user has trained: what is asked of it, and what it gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skinverse._defaults import copy_module

# What the activations at the end of most generators can give.
_RANGES: dict[type[nn.Module], tuple[float, float]] = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}


class NormalisedGenerator(nn.Module):
    """A generator of images in the user's units, as one of normalised images.

    Parameters
    ----------
    generator : nn.Module
        The user's generator.
    shape : tuple of int
        Real channels, height and width of an image.
    level, spread : float, or complex
        Mean and standard deviation of the training images.
    """

    level: Tensor
    spread: Tensor

    def __init__(
        self, generator: nn.Module, shape: tuple[int, int, int], level: complex, spread: float
    ) -> None:
        super().__init__()
        self.generator, self.shape = generator, shape
        parts = [level.real, level.imag] if isinstance(level, complex) else [level]
        channels = torch.tensor(parts).repeat(shape[0] // len(parts))
        self.register_buffer("level", channels[:, None, None])
        self.register_buffer("spread", torch.tensor(spread))

    def forward(self, z: Tensor) -> Tensor:
        """Normalised images, (n, channels, height, width)."""
        made: Tensor = self.generator(z)
        return (made.reshape(len(made), *self.shape) - self.level) / self.spread


def check_generator(generator: nn.Module, n_latent: int, x: Tensor) -> None:
    """Refuse a generator that does not take ``n_latent`` numbers to images such as ``x``.

    Parameters
    ----------
    generator : nn.Module
        Generator of the user.
    n_latent : int
        Number of latent variables.
    x : Tensor of shape (n, channels, height, width)
        Training images.

    Raises
    ------
    ValueError
        If it takes another number of latent variables, gives images of another size, or ``x`` leaves the
        range of an ``nn.Sigmoid`` or ``nn.Tanh`` at the end of an ``nn.Sequential``. What other modules
        compute last is not known.
    """
    _check_sizes(generator, n_latent, x)
    low, high = _RANGES.get(_last_kind(generator), (-math.inf, math.inf))
    if x.min() < low or x.max() > high:
        raise ValueError(
            f"X_true: expected values in [{low:g}, {high:g}], all that the generator can give, got "
            f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"
        )


def _check_sizes(generator: nn.Module, n_latent: int, x: Tensor) -> None:
    like = next(generator.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            made = copy_module(generator).eval()(like.new_zeros(2, n_latent))
    except RuntimeError as error:
        raise ValueError(f"generator: it does not take n_latent={n_latent} numbers: {error}") from error
    if made.shape[0] != 2 or made[0].numel() != x[0].numel():
        raise ValueError(
            f"generator: expected images of shape {tuple(x.shape[1:])}, channels first, "
            f"got {tuple(made.shape[1:])}"
        )


def _last_kind(generator: nn.Module) -> type[nn.Module]:
    """The class of the last module of a sequence that changes values."""
    if not isinstance(generator, nn.Sequential):
        return type(generator)
    changing = [m for m in generator if not isinstance(m, nn.Unflatten | nn.Flatten | nn.Identity)]
    return _last_kind(changing[-1]) if changing else nn.Identity

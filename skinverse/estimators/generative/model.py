"""The generative model: an autoencoder whose decoders give the mean and the sparse precision of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._parameters import ParameterError
from skinverse.functionals import SparseCholeskyGaussian

# Height and width of an image and of its halves.
Sizes = list[tuple[int, int]]

# Channels of all layers, and the side at which images are no longer halved.
_WIDTH, _SMALLEST_SIDE = 64, 8
# Factor on the initial weights of a decoder's last layer: a training starts near the mean of all images.
_INITIAL_SCALE = 0.1
# Bounds of the log-variances of latent variables: standard deviations from 0.0025 to 7.4, the prior having 1.
_LOG_VARIANCES = -12.0, 4.0
# Bounds of a pixel's standard deviation given the pixels that follow it, relative to that of all values: the
# floor if none is given, and the ceiling.
_MIN_STD, _MAX_STD = 0.1, 3.0
# Side of the window in which pixels are coupled, if none is given.
_WINDOW = 5


class _Linear(nn.Linear):
    """A linear layer that, once trained, adds in the same order for every image, whatever its companions.

    The best latent variables are searched for with linear systems that are solved to 1e-4: by rounding in a
    matrix product, which is another one in each place of a batch, images differed by 4e-3.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b``."""
        return super().forward(x) if self.training else (x[:, None] * self.weight).sum(2) + self.bias


class Encoder(nn.Module):
    """Images (n, channels, height, width) to means and log-variances of their latent variables, (n, 2, d)."""

    def __init__(self, n_channels: int, n_latent: int, sizes: Sizes) -> None:
        super().__init__()
        n_halvings = len(sizes) - 1
        # Half of the channels at the largest size, where a convolution costs most.
        widths = [n_channels, *[_WIDTH // 2] * min(1, n_halvings), *[_WIDTH] * (n_halvings - 1)]
        self.shrink = nn.ModuleList(
            _convolution(a, b, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.last = _convolution(widths[-1], _WIDTH)
        self.latent = _Linear(_WIDTH * math.prod(sizes[-1]), 2 * n_latent)

    def forward(self, x: Tensor) -> Tensor:
        """``mu`` and ``log v``, not yet bounded."""
        for layer in self.shrink:
            x = F.silu(layer(x))
        return self.latent(F.silu(self.last(x)).flatten(1)).unflatten(1, (2, -1))


class Decoder(nn.Module):
    """Latent variables (n, d) to planes (n, n_out, height, width)."""

    def __init__(self, n_latent: int, n_out: int, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes[::-1]
        self.first = _Linear(n_latent, _WIDTH * math.prod(sizes[-1]))
        self.grow = nn.ModuleList(_convolution(_WIDTH, _WIDTH) for _ in sizes[2:])
        self.mix = _convolution(_WIDTH, _WIDTH)
        # The last doubling moves channels to pixels: a convolution of all channels at full size is slow.
        self.shuffle = min(2, len(sizes))
        self.last = _convolution(_WIDTH, n_out * self.shuffle**2)
        with torch.no_grad():
            self.last.weight.mul_(_INITIAL_SCALE)

    def forward(self, z: Tensor) -> Tensor:
        """The planes, nearly zero before a training."""
        x = F.silu(self.first(z).unflatten(1, (_WIDTH, *self.sizes[0])))
        for layer, size in zip(self.grow, self.sizes[1:], strict=False):
            x = F.silu(layer(F.interpolate(x, size=size)))
        x = self.last(F.silu(self.mix(x)))
        height, width = self.sizes[-1]
        return F.pixel_shuffle(x, self.shuffle)[..., :height, :width]


def _convolution(n_in: int, n_out: int, *, stride: int = 1) -> nn.Conv2d:
    """Of 3 x 3 pixels; at the border it sees one pixel of the mirror image."""
    return nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, padding_mode="replicate")


class GenerativeModel(nn.Module):
    """``x ~ N(G(z), Sigma(z))`` with ``z ~ N(0, I)``, and the encoder's ``q(z | x) = N(mu(x), diag v(x))``.

    Images are real channels, (n, channels, height, width), and normalised as the training images are to mean
    0 and standard deviation 1. The buffer ``floor`` is the least standard deviation of a pixel, ``deviation``
    the mean absolute deviation of the training images from the range of ``G``. A generator of the user's
    takes the place of ``G``; then there is no encoder.
    """

    floor: Tensor
    deviation: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_latent: int,
        *,
        covariance: str,
        window: int,
        generator: nn.Module | None,
    ) -> None:
        super().__init__()
        n_channels, height, width = shape
        sizes = halvings((height, width))
        self.shape, self.n_latent = shape, n_latent
        # Couplings of a pixel with those of the window that follow it.
        self.n_couplings = (window**2 - 1) // 2 if covariance == "full" else 0
        self.encoder = Encoder(n_channels, n_latent, sizes) if generator is None else None
        self.decoder = Decoder(n_latent, n_channels, sizes) if generator is None else generator
        n_out = n_channels * (1 + self.n_couplings)
        self.covariance_decoder = None if covariance == "identity" else Decoder(n_latent, n_out, sizes)
        self.log_std = nn.Parameter(torch.zeros(()))  # of all pixels, while G is trained
        for name, value in {"floor": _MIN_STD, "deviation": 1.0}.items():
            self.register_buffer(name, torch.tensor(value))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``mu(x)`` and ``log v(x)`` of the latent variables of images, (n, d) each."""
        assert self.encoder is not None  # nobody encodes with a generator of the user's
        mu, log_variance = _of_several(self.encoder, x).unbind(1)
        return mu, log_variance.clamp(*_LOG_VARIANCES)

    def mean(self, z: Tensor) -> Tensor:
        """``G(z)``, (n, channels, height, width)."""
        return _of_several(self.decoder, z)

    def gaussian(self, z: Tensor) -> SparseCholeskyGaussian:
        """``N(G(z), Sigma(z))``."""
        return self.gaussian_around(self.mean(z), z)

    def gaussian_around(self, mean: Tensor, z: Tensor) -> SparseCholeskyGaussian:
        """``N(mean, Sigma(z))``."""
        if self.covariance_decoder is None:
            std = torch.hypot(self.log_std.exp(), self.floor)
            log_diag = -std.log().expand(mean.shape)
            return SparseCholeskyGaussian(mean, log_diag, mean.new_zeros(*mean.shape[:2], 0, *mean.shape[2:]))
        planes = _of_several(self.covariance_decoder, z).unflatten(1, (mean.shape[1], 1 + self.n_couplings))
        log_diag = self._log_diagonal(planes[:, :, 0])
        return SparseCholeskyGaussian(mean, log_diag, planes[:, :, 1:] * log_diag.exp()[:, :, None])

    def _log_diagonal(self, a: Tensor) -> Tensor:
        """``-log std`` of each pixel, within its bounds by a sigmoid of ``a``.

        At ``a = 0`` it is that of the mean's training, or near the bound that this one exceeds.
        """
        low, high = -(2 * self.floor).clamp_min(_MAX_STD).log(), -self.floor.log()
        first = (-self.log_std - low) / (high - low)
        return low + (high - low) * torch.sigmoid(a + torch.logit(first.clamp(0.05, 0.95)))

    @torch.no_grad()
    def sample(self, n_samples: int, seed: int) -> Tensor:
        """Images of random latent variables, with the noise of their covariance."""
        rng = torch.Generator().manual_seed(seed)
        z = torch.randn(n_samples, self.n_latent, generator=rng)
        return self.gaussian(z).sample(1, rng)[0]

    @torch.no_grad()
    def starts(self, x: Tensor, n_starts: int) -> Tensor:
        """Latent variables to start from, (n, n_starts, d): those of the images ``x``, then random ones.

        The random ones are the same for all images, and the first of many starts are those of few.
        """
        rng = torch.Generator().manual_seed(0)
        drawn = torch.stack([torch.randn(self.n_latent, generator=rng) for _ in range(n_starts)]).to(x)
        z = drawn.expand(len(x), -1, -1).clone()
        if self.encoder is not None:
            z[:, 0] = self.encode(x)[0]
        return z


def _of_several(network: nn.Module, x: Tensor) -> Tensor:
    """What a network makes of images; one gets a companion, since alone it is added up in another order."""
    made: Tensor = network(torch.cat([x, x]) if len(x) == 1 else x)
    return made[: len(x)]


def halvings(size: tuple[int, int]) -> Sizes:
    """The size of an image and its halves, until both sides are small."""
    sizes = [size]
    while max(sizes[-1]) > _SMALLEST_SIDE:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


def window_for(neighbourhood: int | None, size: tuple[int, int]) -> int:
    """The side of the window; by default 5 or the largest odd number of pixels that the image has.

    Raises
    ------
    ParameterError
        If the window is larger than the image.
    """
    longest = max(size)
    if neighbourhood is None:
        return min(_WINDOW, longest - (longest + 1) % 2)
    if neighbourhood > longest:
        raise ParameterError(
            "neighbourhood: expected an odd number of pixels, at most the image's "
            f"{longest}, got {neighbourhood}"
        )
    return neighbourhood

"""A variational autoencoder whose decoders give the mean and the sparse precision of an image."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse.estimators._validation import check_lam, check_whole
from skinverse.functionals import SparseCholeskyGaussian
from skinverse.operators import LinearMap
from skinverse.training import Trainer

Sizes = list[tuple[int, int]]

COVARIANCES = ("full", "diagonal", "identity")
CONSTRAINTS = ("soft", "encoded", "range", "sparse", "adapted")
# Width of all layers, side down to which images are halved, weights of a last layer at the start.
_WIDTH, _SIDE, _LAST = 64, 8, 0.1
# Steps of each stage of the training if nobody says, images in one step, learning rate; pixels of a small
# image, and the fewest images in one step of large ones.
_N_STEPS, _BATCH, _LR, _SMALL, _FEWEST = 3000, 64, 1e-3, 28**2, 8
# Floor of the standard deviation relative to the spread of the values; widest window by default.
_FLOOR, _WINDOW = 0.1, 5
# Draws of an evidence bound.
_N_DRAWS = 16
# Largest conditional standard deviation of a pixel, in units of the spread of the images' values.
_MOST = 3.0


class Encoder(nn.Module):
    """Images (n, channels, height, width) to means and log-variances of their latent variables, (n, 2, d)."""

    def __init__(self, n_channels: int, n_latent: int, sizes: Sizes) -> None:
        super().__init__()
        halvings = len(sizes) - 1
        widths = [n_channels, *[_WIDTH // 2] * min(1, halvings), *[_WIDTH] * (halvings - 1)]
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.last = nn.Conv2d(widths[-1], _WIDTH, 3, padding=1)
        self.latent = nn.Linear(_WIDTH * math.prod(sizes[-1]), 2 * n_latent)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.shrink:
            x = F.silu(layer(x))
        return self.latent(F.silu(self.last(x)).flatten(1)).unflatten(1, (2, -1))


class Decoder(nn.Module):
    """Latent variables (n, d) to planes (n, n_out, height, width).

    The last doubling moves channels to pixels: a convolution onto few planes of full size would be slow.
    """

    def __init__(self, n_latent: int, n_out: int, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes[::-1]
        self.first = nn.Linear(n_latent, _WIDTH * math.prod(sizes[-1]))
        self.grow = nn.ModuleList(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in sizes[2:])
        self.mix = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.shuffle = min(2, len(sizes))
        self.last = nn.Conv2d(_WIDTH, n_out * self.shuffle**2, 3, padding=1)
        with torch.no_grad():
            self.last.weight.mul_(_LAST)

    def forward(self, z: Tensor) -> Tensor:
        x = F.silu(self.first(z).unflatten(1, (_WIDTH, *self.sizes[0])))
        for layer, size in zip(self.grow, self.sizes[1:], strict=False):
            x = F.silu(layer(F.interpolate(x, size=size)))
        x = self.last(F.silu(self.mix(x)))
        height, width = self.sizes[-1]
        return F.pixel_shuffle(x, self.shuffle)[..., :height, :width]


def halved(size: tuple[int, int]) -> Sizes:
    """The image's size and its halves, until both sides are small."""
    sizes = [size]
    while max(sizes[-1]) > _SIDE:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return sizes


class GenerativeModel(nn.Module):
    """``x ~ N(G(z), Sigma(z))`` with ``z ~ N(0, I)``, and ``q(z | x) = N(mu(x), diag v(x))``.

    Everything is measured in ``unit``, the spread of the images' values, and from their mean ``centre``.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_latent: int,
        *,
        covariance: str,
        neighbourhood: int,
        generator: nn.Module | None,
    ) -> None:
        super().__init__()
        n_channels, height, width = shape
        sizes = halved((height, width))
        self.n_latent, self.shape, self.own = n_latent, shape, generator is None
        self.n_off = (neighbourhood**2 - 1) // 2 if covariance == "full" else 0
        self.encoder = Encoder(n_channels, n_latent, sizes) if generator is None else None
        self.decoder = Decoder(n_latent, n_channels, sizes) if generator is None else generator
        n_out = n_channels * (1 + self.n_off)
        self.spread = None if covariance == "identity" else Decoder(n_latent, n_out, sizes)
        self.log_std = nn.Parameter(torch.zeros(()))
        for name, value in (("centre", 0.0), ("unit", 1.0), ("floor", 0.0), ("deviation", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    centre: Tensor
    unit: Tensor
    floor: Tensor
    deviation: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of the latent variables, (n, d) each."""
        assert self.encoder is not None  # asked of a model of our own only
        mean, log_variance = self.encoder((x - self.centre) / self.unit).unbind(1)
        return mean, log_variance.clamp(-12.0, 4.0)

    def mean(self, z: Tensor) -> Tensor:
        """``G(z)``, (n, channels, height, width)."""
        return self.scaled(self.decoder(z))

    def scaled(self, x: Tensor) -> Tensor:
        """The decoder's output in the unit of the images; a foreign decoder knows it itself."""
        return self.centre + self.unit * x if self.own else x.reshape(len(x), *self.shape)

    def gaussian(self, z: Tensor) -> SparseCholeskyGaussian:
        """``N(G(z), Sigma(z))``."""
        return self._gaussian(z, self.mean(z))

    def _gaussian(self, z: Tensor, mean: Tensor) -> SparseCholeskyGaussian:
        n, channels, height, width = mean.shape
        if self.spread is None:
            std = torch.hypot(self.unit * self.log_std.exp(), self.floor)
            log_diag = -std.log().expand(mean.shape)
            return SparseCholeskyGaussian(mean, log_diag, mean.new_zeros(n, channels, 0, height, width))
        planes = self.spread(z).unflatten(1, (channels, 1 + self.n_off))
        log_diag = self._bounded(planes[:, :, 0])
        return SparseCholeskyGaussian(mean, log_diag, planes[:, :, 1:] * log_diag.exp()[:, :, None])

    def _bounded(self, a: Tensor) -> Tensor:
        """Log-diagonals whose standard deviations lie between the floor and the most; it begins with 0."""
        low, high = -torch.maximum(_MOST * self.unit, 2 * self.floor).log(), -self.floor.log()
        start = torch.logit(
            ((-(self.unit * self.log_std.exp()).log() - low) / (high - low)).clamp(0.05, 0.95)
        )
        return low + (high - low) * torch.sigmoid(a + start)

    # ------------------------------------------------------------------ losses, one number per image
    def mean_loss(self, x: Tensor) -> Tensor:
        """Negative evidence bound with one standard deviation for all pixels, learned with the mean."""
        mu, log_variance = self.encode(x)
        z = mu + (0.5 * log_variance).exp() * torch.randn_like(mu)
        error = ((x - self.mean(z)) / self.unit).square().flatten(1)
        likelihood = 0.5 * error.sum(1) * (-2 * self.log_std).exp() + error.shape[1] * self.log_std
        return (likelihood + divergence(mu, log_variance)) / error.shape[1]

    def covariance_loss(self, x: Tensor) -> Tensor:
        """Negative log-likelihood of images with noise as strong as the floor, encoder and mean held."""
        with torch.no_grad():
            mu, log_variance = self.encode(x)
            z = mu + (0.5 * log_variance).exp() * torch.randn_like(mu)
            noisy, mean = x + self.floor * torch.randn_like(x), self.mean(z)
        return -self._gaussian(z, mean).log_prob(noisy) / x[0].numel()

    # ------------------------------------------------------------------ what the model tells
    @torch.no_grad()
    def evidence(self, x: Tensor) -> Tensor:
        """Lower bound on the log-density of images, (n,)."""
        mu, log_variance = self.encode(x)
        generator, total = torch.Generator().manual_seed(0), torch.zeros_like(x[:, 0, 0, 0])
        for _ in range(_N_DRAWS):
            noise = torch.randn(1, self.n_latent, generator=generator).to(x)
            total += self.gaussian(mu + (0.5 * log_variance).exp() * noise).log_prob(x)
        return total / _N_DRAWS - divergence(mu, log_variance)

    def covariance_row(self, x: Tensor, pixel: tuple[int, ...]) -> Tensor:
        """Covariance of a pixel with all others, near images."""
        return self.gaussian(self.encode(x)[0]).covariance_row(pixel)

    @torch.no_grad()
    def draw(self, n_samples: int, seed: int) -> Tensor:
        """Images of random latent variables, with the noise of their covariance."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(n_samples, self.n_latent, generator=generator)
        return self.gaussian(z).sample(1, generator)[0]

    @torch.no_grad()
    def starts(self, x: Tensor, n_starts: int) -> Tensor:
        """Latent variables to start from, (n, n_starts, d): the encoded image's, then the same for all."""
        generator = torch.Generator().manual_seed(0)
        # One by one: of more starts the first ones are the same.
        drawn = torch.stack([torch.randn(self.n_latent, generator=generator) for _ in range(n_starts)]).to(x)
        found = drawn.expand(len(x), -1, -1).clone()
        if self.own:
            found[:, 0] = self.encode(x)[0]
        return found


def learn(
    model: GenerativeModel, x: Tensor, trainer: Trainer | None, min_std: float | None, seed: int, verbose: int
) -> list[dict[str, Any]]:
    """Train the mean, then, with the mean held, the covariance; the history of both."""
    if model.unit == 1 and model.floor == 0:  # untrained
        model.centre.fill_(float(x.mean()))
        model.unit.fill_(float(x.std()) if x.numel() > 1 and x.std() > 0 else 1.0)
    model.floor.fill_(min_std or _FLOOR * float(model.unit))
    history: list[dict[str, Any]] = []
    members = torch.arange(len(x), device=x.device)
    stages: dict[str, Any] = {"mean": lambda m, some, _: m.mean_loss(some)} if model.own else {}
    if model.spread is not None:
        stages["covariance"] = lambda m, some, _: m.covariance_loss(some)
    for phase, loss in stages.items():
        for name, weights in model.named_parameters():
            weights.requires_grad_(name.startswith("spread") == (phase == "covariance"))
        epochs = (trainer or _recipe(len(x), x[0, 0].numel())).train(
            model, loss, x, members, seed=seed, verbose=verbose
        )
        history.extend({"phase": phase, **epoch} for epoch in epochs)
    model.requires_grad_(False)
    return history


def _recipe(n_images: int, n_pixels: int) -> Trainer:
    """So many steps, of fewer images the larger they are."""
    batch = min(_BATCH, max(_FEWEST, _BATCH * _SMALL // n_pixels))
    n_epochs = max(1, math.ceil(_N_STEPS / math.ceil(n_images / batch)))
    return Trainer(
        max_epochs=n_epochs, batch_size=batch, lr=_LR, lr_decay=0.05, max_norm=10.0, validation_fraction=0.0
    )


def divergence(mu: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of ``N(mu, diag v)`` from ``N(0, I)``, (n,)."""
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(1)


def check_parameters(prior: Any) -> None:
    """Refuse what a prior cannot work with.

    Raises
    ------
    ValueError
        If a parameter is not one of those known, not a whole number or out of its range.
    """
    check_lam(prior.lam, prior.noise_std, rules=("auto", "discrepancy"))
    for name in ("n_latent", "n_restarts", "max_steps"):
        check_whole(getattr(prior, name), name, 1)
    for name, known in {"covariance": COVARIANCES, "constraint": CONSTRAINTS}.items():
        if getattr(prior, name) not in known:
            raise ValueError(f"{name}: expected one of {list(known)}, got {getattr(prior, name)!r}")
    if prior.constraint == "encoded" and prior.generator is not None:
        raise ValueError('constraint: "encoded" needs our own encoder, and a generator comes without one')
    if prior.min_std is not None and not 0 < prior.min_std < math.inf:
        raise ValueError(f"min_std: expected a number > 0 or None, got {prior.min_std!r}")


def check_size(A: LinearMap, dims: tuple[int, ...]) -> None:
    """Decoders are tied to one size of images.

    Raises
    ------
    ValueError
        If the operator's images have another one.
    """
    if A.dims not in (dims, (math.prod(dims),)) and dims != (math.prod(A.dims),):
        raise ValueError(
            f"the decoders were trained for images of shape {dims} and the operator takes {A.dims}: fit "
            "again with images of that size"
        )


def window(neighbourhood: int | None, size: tuple[int, int]) -> int:
    """The side of the window, checked; by default 5 or the largest odd number that the image has.

    Raises
    ------
    ValueError
        If it is even or larger than the image.
    """
    longest = max(size)
    if neighbourhood is None:
        return min(_WINDOW, longest - (longest + 1) % 2)
    whole = isinstance(neighbourhood, (int, np.integer)) and not isinstance(neighbourhood, bool)
    if not whole or neighbourhood < 1 or neighbourhood % 2 == 0 or neighbourhood > longest:
        raise ValueError(
            "neighbourhood: expected an odd number of pixels, at most the image's "
            f"{longest}, got {neighbourhood!r}"
        )
    return int(neighbourhood)


def check_generator(generator: Any, covariance: str, n_latent: int, x: Tensor) -> None:
    """A foreign generator has no covariance, and images must be ones that it can give.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If a covariance is asked for, it does not take ``n_latent`` numbers to such images, or images leave
        the range of the ``nn.Sigmoid`` or ``nn.Tanh`` at the end of an ``nn.Sequential`` (others are not
        seen).
    """
    if generator is None:
        return
    if not isinstance(generator, nn.Module):
        raise TypeError(f"generator: expected a torch.nn.Module, got {type(generator).__name__}")
    if covariance != "identity":
        raise ValueError(
            "generator: a decoder of your own comes without a covariance and needs "
            f'covariance="identity", got {covariance!r}'
        )
    _check_sizes(generator, n_latent, x)
    low, high = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}.get(_last(generator), (-math.inf, math.inf))
    if x.min() < low or x.max() > high:
        raise ValueError(
            f"X_true: expected values in [{low:g}, {high:g}], all that the generator can give, got "
            f"[{float(x.min()):.4g}, {float(x.max()):.4g}]"
        )


def _last(generator: nn.Module) -> type[nn.Module]:
    """The kind of the last module that changes values, where the order of modules is known."""
    if not isinstance(generator, nn.Sequential):
        return type(generator)
    acting = [m for m in generator if not isinstance(m, nn.Unflatten | nn.Flatten | nn.Identity)]
    return _last(acting[-1]) if acting else nn.Identity


def planes_of(pixel: tuple[int, ...], shape: tuple[int, int, int], *, real: bool) -> tuple[int, int, int]:
    """Where a pixel is among real channels; a complex channel is two of them, the real part first.

    Raises
    ------
    IndexError
        If there is no such pixel.
    """
    parts = 1 if real else 2
    size = shape[0] // parts, *shape[1:]
    at = (0,) * (3 - len(pixel)) + tuple(pixel)
    if len(at) != 3 or any(not -n <= i < n for i, n in zip(at, size, strict=True)):
        raise IndexError(
            f"pixel: expected (row, column) or (channel, row, column) within {size}, got {pixel}"
        )
    channel, row, column = (i % n for i, n in zip(at, size, strict=True))
    return parts * channel, row, column


def _check_sizes(generator: nn.Module, n_latent: int, x: Tensor) -> None:
    like = next(generator.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            made = copy.deepcopy(generator).eval()(like.new_zeros(2, n_latent))
    except RuntimeError as error:
        raise ValueError(f"generator: it does not take n_latent={n_latent} numbers: {error}") from error
    if made.shape[0] != 2 or made[0].numel() != x[0].numel():
        raise ValueError(
            f"generator: expected images of shape {tuple(x.shape[1:])}, channels first, "
            f"got {tuple(made.shape[1:])}"
        )

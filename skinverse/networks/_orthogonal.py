"""Orthogonal and nonexpansive convolutions, and networks of them: 1-Lipschitz by construction."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._filters import mirrored_gram
from skinverse._tensors import mirror
from skinverse.networks._base import Images, Network


class OrthogonalConv2d(nn.Module):
    """Circular convolution with an orthogonal matrix: ``||Q x|| = ||x||`` for images of every size.

    With mirrored borders no such convolution is orthogonal: what leaves the image on one side has to enter on
    the other. :class:`LipschitzCNN` shows how a network of them continues images by their mirror images.

    The kernel is a product of convolutions ``P + (I - P) S`` with an orthogonal projection ``P`` over the
    channels and a shift ``S`` by one pixel, each of which is orthogonal, and one rotation of the channels.
    All are made of free weights by QR decompositions, so the property holds at every step of a training.

    Parameters
    ----------
    n_features : int
        Number of channels, in and out.
    kernel_size : int, default=3
        Side of the kernel in pixels, odd.

    References
    ----------
    L. Xiao et al., Dynamical isometry and a mean field theory of CNNs, ICML, 2018, algorithm 1.
    Q. Li, S. Haque, C. Anil, J. Lucas, R. Grosse and J.-H. Jacobsen, Preventing gradient attenuation in
    Lipschitz constrained convolutional networks, NeurIPS, 2019.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import OrthogonalConv2d
    >>> layer, x = OrthogonalConv2d(4), torch.ones(1, 4, 5, 5)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    def __init__(self, n_features: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        n_shifts = 2 * (kernel_size - 1)
        self.rotation = nn.Parameter(torch.randn(n_features, n_features))
        self.ranges = nn.Parameter(torch.randn(n_shifts, n_features, n_features // 2))

    def forward(self, x: Tensor) -> Tensor:
        return _circular(x, self.kernel())

    def kernel(self) -> Tensor:
        """The kernel of the convolution, (n_features, n_features, kernel_size, kernel_size)."""
        basis = torch.linalg.qr(self.ranges)[0]
        stay = basis @ basis.mT
        move = torch.eye(stay.shape[-1], dtype=stay.dtype, device=stay.device) - stay
        kernel = torch.linalg.qr(self.rotation)[0][:, :, None, None]
        for i in range(len(stay)):
            kernel = _shifted_sum(kernel, stay[i], move[i], axis=2 + i % 2)
        return kernel


def _circular(x: Tensor, kernel: Tensor) -> Tensor:
    """Circular correlation of images with a kernel."""
    return F.conv2d(_periodic(x, kernel.shape[-1] // 2), kernel)


def _periodic(x: Tensor, width: int) -> Tensor:
    """The image continued periodically by ``width`` pixels on each side, however small it is."""
    if width <= min(x.shape[-2:]):
        return F.pad(x, (width,) * 4, mode="circular")
    rows, columns = (torch.arange(-width, n + width, device=x.device) % n for n in x.shape[-2:])
    return x[..., rows[:, None], columns]


def _shifted_sum(kernel: Tensor, stay: Tensor, move: Tensor, axis: int) -> Tensor:
    """Kernel of ``(P + (I - P) S) K``, one pixel longer along the axis."""
    before, after = ((0, 0, 0, 1), (0, 0, 1, 0)) if axis == 2 else ((0, 1), (1, 0))
    first, second = (torch.einsum("ab,bcij->acij", p, kernel) for p in (stay, move))
    return F.pad(first, before) + F.pad(second, after)


class AOLConv2d(nn.Module):
    """Convolution that cannot enlarge a norm, from any channels to any: almost orthogonal.

    Images are continued by their mirror images. With a kernel ``G >= W^T W`` that holds for them, the weight
    of each input channel is divided by the root of the sum of ``|G|`` over its row, so that by diagonal
    dominance ``||W x|| <= ||x||`` for all weights and images of every size. It takes any numbers of channels,
    but signals lose strength in a chain of such layers.

    Parameters
    ----------
    n_in, n_out : int
        Numbers of channels.
    kernel_size : int, default=3
        Side of the kernel in pixels, odd.

    References
    ----------
    B. Prach and C. H. Lampert, Almost-orthogonal layers for efficient general-purpose Lipschitz networks,
    ECCV, 2022, theorem 1.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import AOLConv2d
    >>> layer, x = AOLConv2d(1, 8), torch.rand(1, 1, 5, 5)
    >>> bool(layer(x).norm() <= x.norm())
    True
    """

    def __init__(self, n_in: int, n_out: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(mirror(x, self.weight.shape[-1] // 2), self.kernel(), self.bias)

    def kernel(self) -> Tensor:
        """The kernel of the convolution, (n_out, n_in, kernel_size, kernel_size)."""
        rows = mirrored_gram(self.weight).abs().sum((1, 2, 3)).clamp_min(torch.finfo(self.weight.dtype).tiny)
        return self.weight / rows.sqrt()[:, None, None]


class SmoothMaxMin(nn.Module):
    """Sorts pairs of channels, smoothly: ``(a, b)`` becomes its mean plus and minus half of ``|a - b|``.

    It is 1-Lipschitz for every ``width``, and nearly keeps the norm of gradients away from ``a = b``.

    Parameters
    ----------
    width : float > 0, default=0.1
        Width of the rounding of ``|t|``, which becomes ``sqrt(t^2 + width^2)``.

    References
    ----------
    C. Anil, J. Lucas and R. Grosse, Sorting out Lipschitz function approximation, ICML, 2019.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import SmoothMaxMin
    >>> SmoothMaxMin(1e-3)(torch.tensor([[1.0, 3.0]])).round(decimals=3)
    tensor([[3., 1.]])
    """

    def __init__(self, width: float = 0.1) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        mean, half = (a + b) / 2, ((a - b).square() + self.width**2).sqrt() / 2
        return torch.cat([mean + half, mean - half], dim=1)


class LipschitzCNN(Network):
    """1-Lipschitz network, (n, channels, h, w) -> (n, 1, h, w), of orthogonal convolutions and sorting.

    The output is the product of the last channels with a learned unit vector.

    An image is continued by its mirror images: together with them it is a periodic image of twice the height
    and width, on which circular convolutions are orthogonal, and the output is the mean over the four. Both
    steps change norms by a factor, 2 and 1/2, so that the whole is 1-Lipschitz; and it commutes with flips.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=16
        Number of features, even and at least ``n_channels``; the other channels of the input are zero.
    n_layers : int, default=4
        Number of orthogonal convolutions of 3 x 3 pixels.

    Attributes
    ----------
    lipschitz : float
        1, proven: every layer is.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import LipschitzCNN
    >>> LipschitzCNN()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    lipschitz: float | None = 1.0

    def __init__(self, n_channels: int = 1, *, n_features: int = 16, n_layers: int = 4) -> None:
        super().__init__()
        self.n_channels, self.n_features = n_channels, max(n_features, n_channels + n_channels % 2)
        self.layers = nn.ModuleList(OrthogonalConv2d(self.n_features) for _ in range(n_layers))
        self.biases = nn.Parameter(torch.zeros(n_layers, self.n_features, 1, 1))
        self.direction = nn.Parameter(torch.randn(self.n_features))
        self.sort = SmoothMaxMin()

    def prepared(self) -> Images:
        layers: Any = self.layers
        kernels = [layer.kernel() for layer in layers]
        unit = self.direction / torch.linalg.vector_norm(self.direction)

        def network(x: Tensor) -> Tensor:
            z = F.pad(_beside_mirror_images(x), (0, 0, 0, 0, 0, self.n_features - self.n_channels))
            for kernel, bias in zip(kernels, self.biases, strict=True):
                z = self.sort(_circular(z, kernel) + bias)
            return _mean_over_mirror_images(torch.einsum("nchw,c->nhw", z, unit)[:, None])

        return network


def _beside_mirror_images(x: Tensor) -> Tensor:
    """Images (n, channels, h, w) and their mirror images as periodic ones, (n, channels, 2 h, 2 w)."""
    for axis in (2, 3):
        x = torch.cat([x, x.flip(axis)], axis)
    return x


def _mean_over_mirror_images(x: Tensor) -> Tensor:
    """A quarter of the adjoint."""
    for axis in (2, 3):
        image, mirror_image = x.chunk(2, axis)
        x = (image + mirror_image.flip(axis)) / 2
    return x

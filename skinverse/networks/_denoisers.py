"""Denoisers: residual networks of ordinary, equivariant and nonexpansive layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse._filters import CONVOLUTIONS, analyse, convolve, mirrored_norm, synthesise
from skinverse._tensors import mirror
from skinverse.networks._base import Images, Network
from skinverse.networks._groups import GroupConv, LiftConv, ProjectConv, elements, transform

# Factor on the initial weights of the last convolution of a residual network: it begins near the identity.
_LAST = 0.1
# Bound on the logarithm of a level, beyond which its exponential would leave single precision.
_MAX_LOG_LEVEL = 20.0


class DnCNN(Network):
    """Residual denoiser, ``h(x) = x - N(x)``: 3 x 3 convolutions with SiLU, (n, channels, h, w) to the same.

    It continues images by their mirror images. It has no batch normalisation, so that the result for one
    image does not depend on the others, and it is smooth, so that it can be differentiated twice. With a
    group it commutes exactly with turning and flipping images of any size: ``h(g x) = g h(x)``. Evaluation
    costs the same for every group; a larger one has fewer weights.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=32
        Number of features, a multiple of the number of transformations of the group.
    n_layers : int, default=5
        Number of convolutions, at least two; each pixel sees ``2 n_layers + 1`` pixels in each direction.
    group : {"C1", "D1", "C2", "C4", "D4"}, default="C1"
        Symmetry of the network: none, a flip, half turns, quarter turns, quarter turns and flips; of volumes
        in the plane of the last two axes.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Raises
    ------
    ValueError
        If the group is unknown or does not fit the width.

    References
    ----------
    K. Zhang, W. Zuo, Y. Chen, D. Meng and L. Zhang, Beyond a Gaussian denoiser: residual learning of deep CNN
    for image denoising, IEEE Transactions on Image Processing 26, 2017.
    E. Celledoni, M. J. Ehrhardt, C. Etmann, B. Owren, C.-B. Schonlieb and F. Sherry, Equivariant neural
    networks for inverse problems, Inverse Problems 37, 2021.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import DnCNN
    >>> h, x = DnCNN(group="D4"), torch.rand(2, 1, 8, 9)
    >>> bool(torch.allclose(h(x.rot90(1, (2, 3))), h(x).rot90(1, (2, 3)), atol=1e-5))
    True
    """

    def __init__(
        self,
        n_channels: int = 1,
        *,
        n_features: int = 32,
        n_layers: int = 5,
        group: str = "C1",
        ndim: int = 2,
    ) -> None:
        super().__init__()
        if n_layers < 2:
            raise ValueError(f"n_layers: expected at least 2, got {n_layers}")
        self.n_channels = n_channels
        n_fields = _fields(n_features, group)
        middle = [GroupConv(n_fields, n_fields, group=group, ndim=ndim) for _ in range(n_layers - 2)]
        first, last = (
            LiftConv(n_channels, n_fields, group=group, ndim=ndim),
            ProjectConv(n_fields, n_channels, group=group, ndim=ndim),
        )
        self.layers = nn.ModuleList([first, *middle, last])
        with torch.no_grad():
            last.weight.mul_(_LAST)  # h begins near the identity

    def prepared(self) -> Images:
        layers: Any = self.layers
        (first, bias), *rest = [(layer.kernel(), layer.bias()) for layer in layers]

        def h(x: Tensor) -> Tensor:
            z = convolve(mirror(x, 1 + len(rest)), first, bias)
            for kernel, offset in rest:
                z = convolve(F.silu(z), kernel, offset)
            return x - z

        return h


class GradientStepCNN(Network):
    """Nonexpansive denoiser by construction, ``x <- x - s W^T sigma(W x)`` layer by layer.

    ``sigma(t) = c tanh(t / c)`` has slopes between 0 and 1 and ``||W|| <= 1``, so that each layer is a
    gradient step on a convex function with ``0 < s < 2`` and cannot enlarge a distance, for all weights. It
    removes small responses of the filters, mostly noise, and keeps large ones, mostly edges.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=32
        Number of filters of each layer, a multiple of the number of transformations of the group.
    n_layers : int, default=5
        Number of layers.
    kernel_size : int, default=5
        Side of the filters in pixels, odd.
    group : {"C1", "D1", "C2", "C4", "D4"}, default="C1"
        Symmetry of the network: the filters come in all orientations of the group.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    Attributes
    ----------
    lipschitz : float
        1, proven.

    Raises
    ------
    ValueError
        If the group is unknown or does not fit the width.

    References
    ----------
    L. Meunier, B. Delattre, A. Araujo and A. Allauzen, A dynamical system perspective for Lipschitz neural
    networks, ICML, 2022.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import GradientStepCNN
    >>> h, x, y = GradientStepCNN(), torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    >>> bool((h(x) - h(y)).norm() <= (x - y).norm())
    True
    """

    lipschitz: float | None = 1.0

    def __init__(
        self,
        n_channels: int = 1,
        *,
        n_features: int = 32,
        n_layers: int = 5,
        kernel_size: int = 5,
        group: str = "C1",
        ndim: int = 2,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.n_channels, self.elements = n_channels, elements(group)
        n_fields = _fields(n_features, group)
        size = [kernel_size] * ndim
        self.filters = nn.Parameter(torch.randn(n_layers, n_fields, n_channels, *size))
        self.log_level = nn.Parameter(torch.full((n_layers, n_fields), math.log(0.1)))
        self.step = nn.Parameter(torch.zeros(n_layers))

    def prepared(self) -> Images:
        levels = self.log_level.clamp(-_MAX_LOG_LEVEL, _MAX_LOG_LEVEL).exp()
        layers = [self._layer(*parts) for parts in zip(self.filters, levels, self.step, strict=True)]

        def h(x: Tensor) -> Tensor:
            for W, level, step in layers:
                x = x - step * synthesise(level * torch.tanh(analyse(x, W) / level), W)
            return x

        return h

    def _layer(self, filters: Tensor, level: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bank = torch.stack([transform(filters, g) for g in self.elements], 1).flatten(0, 1)
        levels = level.repeat_interleave(len(self.elements)).reshape(-1, *[1] * (filters.ndim - 2))
        return bank / mirrored_norm(bank), levels, 2 * torch.sigmoid(step)


class UNet(Network):
    """Residual U-Net, ``h(x) = x - N(x)``, without normalisation, for images of every size.

    It has two 3 x 3 convolutions with SiLU at each resolution, takes averages on the way down and nearest
    neighbours on the way up, and continues images by their mirror images at each resolution.

    Parameters
    ----------
    n_channels : int, default=1
        Channels of the images.
    n_features : int, default=32
        Number of features at full resolution; it doubles with each halving.
    n_levels : int, default=3
        Number of resolutions.
    ndim : int, default=2
        Number of spatial axes of the images: 3 for volumes.

    References
    ----------
    O. Ronneberger, P. Fischer and T. Brox, U-Net: convolutional networks for biomedical image segmentation,
    MICCAI, 2015.
    K. H. Jin, M. T. McCann, E. Froustey and M. Unser, Deep convolutional neural network for inverse problems
    in imaging, IEEE Transactions on Image Processing 26, 2017.

    Examples
    --------
    >>> import torch
    >>> from skinverse.networks import UNet
    >>> UNet(n_features=8)(torch.zeros(2, 1, 7, 1)).shape
    torch.Size([2, 1, 7, 1])
    """

    def __init__(
        self, n_channels: int = 1, *, n_features: int = 32, n_levels: int = 3, ndim: int = 2
    ) -> None:
        super().__init__()
        if n_levels < 1:
            raise ValueError(f"n_levels: expected at least 1, got {n_levels}")
        self.n_channels = n_channels
        widths = [n_features * 2**level for level in range(n_levels)]
        self.down = nn.ModuleList(
            _block(a, b, ndim) for a, b in zip([n_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(_block(a + b, a, ndim) for a, b in zip(widths, widths[1:], strict=False))
        self.last = CONVOLUTIONS[ndim](n_features, n_channels, 1)
        with torch.no_grad():
            self.last.weight.mul_(_LAST)

    def prepared(self) -> Images:
        return self._denoise

    def _denoise(self, x: Tensor) -> Tensor:
        first, *rest = self.down
        z = _twice(first, x)
        fine = []
        for block in rest:
            fine.append(z)
            z = _twice(block, _halved(z))
        for block, skipped in zip(reversed(self.up), reversed(fine), strict=True):
            coarse = F.interpolate(z, scale_factor=2)
            for axis in range(2, z.ndim):
                coarse = coarse.narrow(axis, 0, skipped.shape[axis])
            z = _twice(block, torch.cat([skipped, coarse], 1))
        return x - self.last(z)


def _block(n_in: int, n_out: int, ndim: int) -> nn.ModuleList:
    return nn.ModuleList([CONVOLUTIONS[ndim](n_in, n_out, 3), CONVOLUTIONS[ndim](n_out, n_out, 3)])


def _halved(z: Tensor) -> Tensor:
    """Averages over two pixels in each direction, and over less at the end of an odd axis."""
    average: Any = F.avg_pool2d if z.ndim == 4 else F.avg_pool3d
    halved: Tensor = average(z, [min(2, n) for n in z.shape[2:]], stride=2, ceil_mode=True)
    return halved


def _twice(block: nn.Module, x: Tensor) -> Tensor:
    first, second = block.children()
    return F.silu(second(F.silu(first(mirror(x, 2)))))


def _fields(n_features: int, group: str) -> int:
    order = len(elements(group))
    if n_features % order or n_features < 1:
        raise ValueError(
            f"n_features: expected a multiple of {order} for the group {group}, got {n_features}"
        )
    return n_features // order

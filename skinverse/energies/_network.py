"""Energies that are a formula of a network."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from skinverse._tensors import dot
from skinverse.energies._base import Energy


class _OfNetwork(Energy):
    """A formula of a network, which makes its kernels when it is asked to, or at every call."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.n_channels = network, network.n_channels

    def prepared(self) -> Energy:
        return self._with("network", _Ready(self.network)) if hasattr(self.network, "prepared") else self


class _Ready:
    """A network of ours with its kernels made."""

    def __init__(self, network: Any) -> None:
        self.images, self.lipschitz = network.prepared(), network.lipschitz

    def __call__(self, x: Tensor) -> Tensor:
        images: Tensor = self.images(x)
        return images


class NetworkEnergy(_OfNetwork):
    """Smoothed 1-norm of what a network sees, ``R(x) = sum_i sqrt(1 + N(x)_i^2) - 1``.

    Parameters
    ----------
    network : nn.Module
        Network ``N`` from images to one channel, with attributes ``n_channels`` and ``lipschitz``, its
        Lipschitz constant or None.

    References
    ----------
    S. Lunz, O. Oktem and C.-B. Schonlieb, Adversarial regularizers in inverse problems, NeurIPS, 2018.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import NetworkEnergy
    >>> from skinverse.networks import LocalCNN
    >>> NetworkEnergy(LocalCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def forward(self, x: Tensor) -> Tensor:
        return ((1 + self.network(x).square()).sqrt() - 1).flatten(1).sum(1)

    def lipschitz(self, n_pixels: int) -> float | None:
        """``Lip(N) sqrt(n_pixels)``: summing the pixels of an image has the norm ``sqrt(n_pixels)``."""
        known: float | None = self.network.lipschitz
        return None if known is None else known * math.sqrt(n_pixels)


class REDEnergy(_OfNetwork):
    """Regularisation by denoising, ``R(x) = 1/2 <x, x - h(x)>`` with a network ``h``.

    The gradient is exact. It equals the ``x - h(x)`` of the literature only for networks that are homogeneous
    and have a symmetric Jacobian, and most do not.

    Parameters
    ----------
    network : nn.Module
        Smooth network ``h`` from images to images, with an attribute ``n_channels``.

    References
    ----------
    Y. Romano, M. Elad and P. Milanfar, The little engine that could: regularization by denoising (RED), SIAM
    Journal on Imaging Sciences 10, 2017.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import REDEnergy
    >>> from skinverse.networks import DnCNN
    >>> REDEnergy(DnCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def forward(self, x: Tensor) -> Tensor:
        return dot(x, x - self.network(x)) / 2


class GradientStepEnergy(_OfNetwork):
    """Energy of the gradient-step denoiser, ``R(x) = 1/2 ||x - h(x)||^2`` with a network ``h``.

    Parameters
    ----------
    network : nn.Module
        Smooth network ``h`` from images to images, with an attribute ``n_channels``.

    References
    ----------
    S. Hurault, A. Leclaire and N. Papadakis, Gradient step denoiser for convergent plug-and-play, ICLR, 2022.

    Examples
    --------
    >>> import torch
    >>> from skinverse.energies import GradientStepEnergy
    >>> from skinverse.networks import DnCNN
    >>> GradientStepEnergy(DnCNN())(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def forward(self, x: Tensor) -> Tensor:
        rest = x - self.network(x)
        return dot(rest, rest) / 2

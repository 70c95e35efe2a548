"""What a deep equilibrium model learns."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from skinverse._tensors import from_channels, planes_for, split_variables, stack_variables
from skinverse.estimators.equilibrium.maps import Images, Map, Normal, admm, gradient, proximal
from skinverse.networks import lipschitz_constant, prepared

# Values of an image up to which its companions could be felt: 16 x 16 pixels with DnCNN, 32 x 32 with U-Net.
_SMALL = 64**2


class Equilibrium(nn.Module):
    """A network ``h_0`` with a scale ``s``, a step ``eta`` and a weight ``lam``.

    The map of an iteration has the network as ``h(z) = h_0(s z) / s``. Where a Lipschitz constant ``c`` is
    asked for, ``h`` is multiplied by ``c / L`` with the constant ``L`` that is proven for ``h_0``.
    """

    lipschitz: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        iteration: str,
        *,
        n_channels: int,
        lam: float,
        lipschitz: float | None = None,
    ) -> None:
        super().__init__()
        self.network, self.iteration, self.n_channels = network, iteration, n_channels
        self.log_eta = nn.Parameter(torch.zeros(()))
        self.log_lam = nn.Parameter(torch.tensor(math.log(lam)))
        self.log_scale = nn.Parameter(torch.zeros(()))
        # A parameter of the method and nothing learned: a warm start must not bring back an earlier one.
        constant = None if lipschitz is None else torch.tensor(lipschitz)
        self.register_buffer("lipschitz", constant, persistent=False)

    def denoiser(self, channel_axis: int | None = None) -> Images:
        """The map ``h`` on images with this axis of channels, its kernels made once."""
        h0, s = prepared(self.network), self.log_scale.exp()
        factor: Tensor | float = 1.0
        if self.lipschitz is not None:
            proven = lipschitz_constant(self.network)
            assert proven is not None  # the method takes no other network for a contraction
            factor = self.lipschitz / proven

        def h(z: Tensor) -> Tensor:
            planes = planes_for(z, self.n_channels, "the network", channel_axis)
            # One small image alone makes convolutions add in another order than several do, in single
            # precision, of which iterations that do not contract make 1e-2: it gets a companion.
            alone = len(planes) == 1 and planes.numel() <= _SMALL
            output = h0(s * (torch.cat([planes, planes]) if alone else planes))[: len(planes)]
            if output.shape != planes.shape:
                raise ValueError(
                    "network: expected a module that keeps the shape (images, channels, *space), got "
                    f"{tuple(output.shape)} from {tuple(planes.shape)}"
                )
            return factor / s * from_channels(output, z, channel_axis)

        return h

    def map(self, normal: Normal, dims: tuple[int, ...], channel_axis: int | None = None) -> Map:
        """The map ``f`` of the iteration for a normal operator ``A^* W A`` of norm 1."""
        h, lam = self.denoiser(channel_axis), self.log_lam.exp()
        if self.iteration == "proximal":
            return proximal(h, normal, self.log_eta.exp())
        if self.iteration == "admm":
            return admm(h, normal, lam, dims)
        return gradient(h, normal, 1 / (1 + lam), lam)

    def variables(self, x: Tensor) -> Tensor:
        """What the iteration starts with for an image: ADMM has a dual variable beside it, zero at first."""
        return stack_variables(x, torch.zeros_like(x)) if self.iteration == "admm" else x

    def image(self, z: Tensor, dims: tuple[int, ...]) -> Tensor:
        """The image among the variables."""
        return split_variables(z, dims, dims)[0] if self.iteration == "admm" else z

    def contraction(self) -> float | None:
        """The factor ``1 - eta lam (1 - c)`` with ``eta = 1 / (1 + lam)``; None where none is proven."""
        if self.lipschitz is None:
            return None
        lam = math.exp(self.log_lam.item())
        return 1 - lam / (1 + lam) * (1 - self.lipschitz.item())

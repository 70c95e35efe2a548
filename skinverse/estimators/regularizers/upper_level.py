"""The upper level of bilevel learning: how good the reconstructions are that a regulariser gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from skinverse._tensors import as_channels, dot, norm
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import NormalisedFidelity
from skinverse.estimators.regularizers.lower_level import LowerLevel
from skinverse.estimators.regularizers.smoothness import Smoothness
from skinverse.functionals import EnergyFunctional
from skinverse.operators import LinearMap
from skinverse.training import Stateful, random_patches

# `(data, start) -> images`, with the regulariser as it is.
Reconstruct = Callable[[Tensor, Tensor], Tensor]
# `loss(x_hat, x, y, reconstruct)`, one number per image.
UpperLoss = Callable[[Tensor, Tensor, Tensor, Reconstruct], Tensor]

# Part of the reconstructions that start from the beginning.
_RESTARTED = 0.1
# Length of the step whose effect estimates the divergence, relative to the noise.
_PROBE = 0.1


class Sampler(Protocol):
    """What of the images a step is to see, where their channels are, and where its reconstructions start."""

    channel_axis: int | None

    def sample(self, x: Tensor, y: Tensor, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, data and starts for a step."""

    def remember(self, index: Tensor, x_hat: Tensor) -> None:
        """Take note of the reconstructions of some images."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class Inner(NamedTuple):
    """What is minimised for the images of one problem, and how the minimiser is judged.

    The objective is ``unit F + R`` with the fidelity ``F``; the loss is :func:`squared_error`,
    :func:`absolute_error` or :func:`stein_risk`.
    """

    fidelity: NormalisedFidelity
    unit: float
    loss: UpperLoss


class UpperLevel:
    """``l(x_hat_i(theta), x_i) + xi (Lip(grad s) - beta)_+`` for each image, to be minimised over ``theta``.

    Parameters
    ----------
    problems : Problems
        The problems of the images.
    inner : sequence of Inner
        What is minimised, and how its minimiser is judged, for each problem.
    lower : LowerLevel
        Makes the reconstructions ``x_hat``.
    sampler : Sampler
        :class:`Patches` or :class:`WholeImages`.
    smoothness : Smoothness or None
        The second term, None where the bound is met by construction or not wanted.
    """

    def __init__(
        self,
        problems: Problems,
        inner: Sequence[Inner],
        lower: LowerLevel,
        sampler: Sampler,
        smoothness: Smoothness | None,
    ) -> None:
        self.problems, self.inner, self.lower = problems, inner, lower
        self.sampler, self.smoothness = sampler, smoothness

    @property
    def state(self) -> tuple[Stateful, ...]:
        """What changes during the training beside the regulariser."""
        always = self.lower, self.sampler
        return always if self.smoothness is None else (*always, self.smoothness)

    def __call__(self, module: Any, x: Tensor, y: Tensor, which: Tensor, x0: Tensor, index: Tensor) -> Tensor:
        """The loss of some images under their problems, by their numbers among the training images."""
        R = EnergyFunctional(module.prepared(), self.sampler.channel_axis)

        def of_one(inner: Inner, y: Tensor, x: Tensor, x0: Tensor, index: Tensor) -> Tensor:
            def reconstruct(y: Tensor, x0: Tensor) -> Tensor:
                weighted = R if inner.unit == 1 else (1 / inner.unit) * R
                return self.lower(inner.fidelity(y), weighted, x0)

            x_hat = reconstruct(y, x0)
            self.sampler.remember(index, x_hat)
            return inner.loss(x_hat, x, y, reconstruct)

        if module.training:
            self.lower.advance()
        x, y, x0 = self.sampler.sample(x, y, x0, index)
        loss = self.problems.each(of_one, self.inner, which, y, x, x0, index)
        if self.smoothness is None or not torch.is_grad_enabled():
            return loss
        return loss + self.smoothness(module, as_channels(x, self.sampler.channel_axis), index)

    def risk(self, module: Any, *rows: Tensor) -> float:
        """Mean loss, without derivatives."""
        with torch.no_grad():
            return float(self(module, *rows).mean())


# ---------------------------------------------------------------------- what a step sees
class Patches:
    """For denoising: patches of images and of data at the same place; data are the start.

    Parameters
    ----------
    patch_size : int or None
        Side of the patches, whose channels come first; None is whole images.
    channel_axis : int or None
        The axis of one image that holds channels.
    """

    def __init__(self, patch_size: int | None, channel_axis: int | None) -> None:
        self.patch_size, self._of_images = patch_size, channel_axis
        self.channel_axis = channel_axis if patch_size is None else 0

    def sample(self, x: Tensor, y: Tensor, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, data and starts for a step."""
        if self.patch_size is not None:
            both = torch.cat([as_channels(x, self._of_images), as_channels(y, self._of_images)], 1)
            x, y = (part.contiguous() for part in random_patches(both, self.patch_size).chunk(2, 1))
        return x, y, y

    def remember(self, index: Tensor, x_hat: Tensor) -> None:
        """Take no note: the next patches are other ones."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class FromTheStart:
    """With an operator and images that are read when they are needed: reconstructions always start anew.

    Parameters
    ----------
    channel_axis : int or None
        The axis of one image that holds channels.
    """

    def __init__(self, channel_axis: int | None) -> None:
        self.channel_axis = channel_axis

    def sample(self, x: Tensor, y: Tensor, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, data and starts for a step."""
        return x, y, x0

    def remember(self, index: Tensor, x_hat: Tensor) -> None:
        """Take no note: there would be as many as there are images."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class WholeImages:
    """With an operator: reconstructions start where they ended the last time, and one in ten anew.

    Otherwise the training would never see what ``predict`` meets on its longer way.

    Parameters
    ----------
    starts : Tensor of shape (n, *dims)
        Where the reconstructions of all images start anew.
    channel_axis : int or None
        The axis of one image that holds channels.
    """

    def __init__(self, starts: Tensor, channel_axis: int | None) -> None:
        self.last, self.channel_axis = starts.clone(), channel_axis

    def sample(self, x: Tensor, y: Tensor, x0: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, data and starts for a step."""
        restarted = torch.rand(len(index), device=x0.device) < _RESTARTED
        return x, y, torch.where(restarted.reshape(-1, *[1] * (x0.ndim - 1)), x0, self.last[index])

    def remember(self, index: Tensor, x_hat: Tensor) -> None:
        """Take note of the reconstructions of some images."""
        self.last[index] = x_hat.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.last.copy_(state["last"])


# ---------------------------------------------------------------------- losses
def squared_error(x_hat: Tensor, x: Tensor, *_: Any) -> Tensor:
    """``||x_hat - x||^2``, the mean over pixels."""
    return (x_hat - x).abs().square().flatten(1).mean(1)


def absolute_error(x_hat: Tensor, x: Tensor, *_: Any) -> Tensor:
    """``||x_hat - x||_1``, the mean over pixels."""
    return (x_hat - x).abs().flatten(1).mean(1)


def stein_risk(A: LinearMap, noise_std: float, gain: float, *, complex_data: bool) -> UpperLoss:
    """Stein's unbiased estimate of ``||A x_hat - A x||^2``, from the measurements alone, by one random probe.

    It is taken relative to the square of the operator's ``gain``, and as a mean over measurements.

    ``||A x_hat(y) - y||^2 + sigma^2 (2 div - m)`` for ``m`` measurements, where the divergence ``div`` of
    ``A x_hat(y)`` in ``y`` is ``<b, A x_hat(y + h b) - A x_hat(y)> / h`` with white noise ``b``. Complex data
    that are cut to patches have become real channels, each with half of the variance.

    References
    ----------
    S. Ramani, T. Blu and M. Unser, Monte-Carlo SURE, IEEE Transactions on Image Processing 17, 2008.
    """

    def loss(x_hat: Tensor, _: Tensor, y: Tensor, reconstruct: Reconstruct) -> Tensor:
        sigma = (2**-0.5 if complex_data and not y.is_complex() else 1.0) * noise_std
        # Patches are measured as they are, whatever their size.
        m = y[0].numel() if A.identity else A.n_measured
        h, b = _PROBE * sigma, torch.randn_like(y)
        change = reconstruct(y + h * b, x_hat.detach()) - x_hat
        seen, seen_change = (z if A.identity else A(z) for z in (x_hat, change))
        divergence = dot(b, seen_change) / h
        risk = norm(seen - y).square() + sigma**2 * (2 * divergence - m)
        return risk / (m * gain**2)

    return loss

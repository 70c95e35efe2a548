"""The variational network: gradient descent on a field of experts, unrolled, with all of it learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from skinverse._filters import analyse, synthesise
from skinverse._parameters import Integer, fitted, parameter
from skinverse._tensors import expand, norm
from skinverse.estimators.unrolled.base import ScaledProblem, Unrolled, UnrolledReconstructor

# Largest response of a filter up to which the slopes are learned, in units of the images' spread. The slopes
# of all filters together begin as this multiple of the response: small beside the data's step of 1.
RANGE, _SLOPE = 2.0, 0.2


class VariationalNetwork(UnrolledReconstructor):
    """Gradient steps on ``lam/2 ||A x - y||^2`` and on potentials of filters, different in each iteration.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||x_N(y) - x||^2`` over pairs, where ``x_0`` is the
    analytic inverse of ``y`` and

    ``x <- x - sum_i K_i^T phi_i'(K_i x) - lam A^*(A x - y)``

    with filters ``K_i`` of mean zero and norm 1, slopes ``phi_i'`` of potentials, linear between knots, and
    ``lam > 0``, all learned for each iteration. Complex images are filtered with complex filters.

    See Also
    --------
    BilevelRegularizer : Filters and potentials of one regulariser, minimised to the end.

    Notes
    -----
    The method's own training has 2000 steps of 8 images; the learning rate falls from 1e-3 to 1e-4, and
    gradients are shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the potentials are functions of fixed numbers.

    Under counts ``A`` is ``W^1/2 A`` and ``y`` is ``W^1/2 y``, with weights that ``noise`` describes.

    References
    ----------
    K. Hammernik, T. Klatzer, E. Kobler, M. P. Recht, D. K. Sodickson, T. Pock and F. Knoll, Learning a
    variational network for reconstruction of accelerated MRI data, Magnetic Resonance in Medicine 79, 2018.

    Examples
    --------
    >>> from skinverse import Trainer, VariationalNetwork
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("mri", n_samples=8, size=16, random_state=0)
    >>> method = VariationalNetwork(A, n_iterations=3, n_filters=8, trainer=Trainer(max_epochs=2))
    >>> method.fit(images, data).predict(data).shape
    (8, 16, 16)
    """

    not_promised = {
        "phase": "Real and imaginary parts are filtered as two channels: the image changes by 0.01 relative.",
    }

    n_filters: int = parameter(default=24, allowed=Integer(ge=1), doc="Number of filters in each iteration.")
    kernel_size: int = parameter(
        default=7, allowed=Integer(ge=3, odd=True), doc="Side of the filters in pixels (11 in the paper)."
    )
    n_knots: int = parameter(default=31, allowed=Integer(ge=2), doc="Number of knots of the slopes.")

    module_: Unrolled = fitted(kind="nn.Module", doc="Filters, slopes and weights of all iterations.")

    def _make_module(self) -> Unrolled:
        return Experts(
            self.n_channels_,
            self.n_iterations,
            self.n_filters,
            self.kernel_size,
            self.n_knots,
            self.n_axes_,
        )


class Experts(Unrolled):
    """``x <- x - sum_i K_i^T phi_i'(K_i x) - lam A^*(A x - y)``."""

    def __init__(
        self,
        n_channels: tuple[int, int],
        n_iterations: int,
        n_filters: int,
        kernel_size: int,
        n_knots: int,
        n_axes: int = 2,
    ) -> None:
        super().__init__(n_channels, n_iterations)
        size = [kernel_size] * n_axes
        self.filters = nn.Parameter(torch.randn(n_iterations, n_filters, n_channels[0], *size))
        knots = torch.linspace(-RANGE, RANGE, n_knots)
        self.slopes = nn.Parameter((_SLOPE / n_filters * knots).repeat(n_iterations, n_filters, 1))
        self.log_lam = nn.Parameter(torch.zeros(n_iterations))

    def iterates(self, problem: ScaledProblem) -> Iterator[Tensor]:
        """Yield the images after each iteration."""
        x = problem.start
        for filters, slopes, log_lam in zip(self.filters, self.slopes, self.log_lam, strict=True):
            K, lam = centred(filters), log_lam.exp()
            x = x - lam * problem.gradient(x) - synthesise(Spline.apply(analyse(x, K), slopes), K)
            yield x


def centred(filters: Tensor) -> Tensor:
    """Filters of mean zero in each channel and norm 1."""
    zero_mean = filters - filters.mean(tuple(range(2, filters.ndim)), keepdim=True)
    return zero_mean / expand(norm(zero_mean).clamp_min(1e-12), filters)


class Spline(torch.autograd.Function):
    """A function of each channel, linear between equidistant knots and constant beyond the last ones.

    It takes ``t`` (n, channels, *space) and the values at the knots (channels, n_knots). For the
    derivatives it keeps an index and two numbers of each ``t``, where autograd would keep every intermediate
    result.
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, values: Tensor) -> Tensor:
        """Interpolate."""
        n_channels, n_knots = values.shape
        per_unit = (n_knots - 1) / (2 * RANGE)
        position = (t + RANGE) * per_unit
        left = position.floor().clamp(0, n_knots - 2).nan_to_num(0)  # no index is NaN; the result will be
        part = (position - left).clamp(0, 1)
        index = left.long() + n_knots * torch.arange(n_channels, device=t.device).reshape(
            -1, *[1] * (t.ndim - 2)
        )
        low, high = values.flatten()[index], values.flatten()[index + 1]
        rise = high - low
        inside = (position >= 0) & (position < n_knots - 1)
        ctx.save_for_backward(index, part, torch.where(inside, per_unit * rise, 0))
        ctx.shape = values.shape
        return low + part * rise

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives in ``t`` and in the values."""
        index, part, slope = ctx.saved_tensors
        n = ctx.shape.numel()
        knots = torch.bincount((index + 1).flatten(), (part * g).flatten(), n)
        knots += torch.bincount(index.flatten(), ((1 - part) * g).flatten(), n)
        return slope * g, knots.view(ctx.shape).to(g.dtype)

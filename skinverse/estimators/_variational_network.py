"""The variational network: gradient descent on a field of experts, unrolled, with all of it learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pylops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._iterations import LearnedIterations, Scaled, Unrolled
from skinverse.training import Trainer

# The potentials' slopes are learned up to this response of a filter, in units of the images' spread, and
# begin so steep together.
_RANGE, _SLOPE = 2.0, 0.2


class VariationalNetwork(LearnedIterations, LearnedReconstructor):
    """Gradient steps on ``lam/2 ||A x - y||^2`` and on potentials of filters, different in each step.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||x_N(y) - x||^2`` over pairs, where ``x_0`` is the
    analytic inverse of ``y`` and

    ``x <- x - sum_i K_i^T phi_i'(K_i x) - lam A^*(A x - y)``

    with filters ``K_i`` of mean zero and norm 1, slopes ``phi_i'`` of potentials, linear between knots, and
    ``lam > 0``, all learned for each step. Complex images are filtered with complex filters.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``, such as :func:`skinverse.operators.fourier_sampling` with coil maps; None is the
        identity (denoising).
    n_iterations : int, default=10
        Number of steps; fixed by the training.
    n_filters : int, default=24
        Filters of each step.
    kernel_size : int, default=7
        Side of the filters in pixels, odd (11 in the paper).
    n_knots : int, default=31
        Knots of the slopes, two at least.
    initial : estimator or None, default=None
        What reconstructs the images to start from, fitted on the same pairs; None is the analytic inverse
        (filtered back-projection, zero-filled or regularized pseudo-inverse).
    bounds : (low, high) or None, default=None
        Bounds of the images, None for no bound: every iterate that is returned is projected.
    trainer : Trainer or None, default=None
        How to train; by default 2000 steps with gradients of norm 1 at most.
    memory : str, joblib.Memory or None, default=None
        Where to keep what has been trained.
    warm_start : bool, default=False
        Whether ``fit`` continues from what it learned before.
    random_state : int, RandomState or None, default=0
        Seed of the training.
    verbose : int, default=0
        1 shows progress, 2 a line per epoch.
    device : str, default="auto"
        "cpu", "cuda", or CUDA where there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator seen by ``fit``.
    initial_ : estimator or None
        The fitted ``initial``.
    module_ : nn.Module
        Filters, slopes and weights of all steps.
    history_ : list of dict
        One entry per epoch.

    Raises
    ------
    ValueError
        If the filters have no centre or there are too few knots.

    See Also
    --------
    BilevelRegularizer : Filters and potentials of one regularizer, minimised to the end.

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

    _whole: ClassVar[tuple[str, ...]] = ("n_iterations", "n_filters", "kernel_size", "n_knots")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        n_iterations: int = 10,
        n_filters: int = 24,
        kernel_size: int = 7,
        n_knots: int = 31,
        initial: BaseReconstructor | None = None,
        bounds: Any = None,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.n_iterations = n_iterations
        self.n_filters = n_filters
        self.kernel_size = kernel_size
        self.n_knots = n_knots
        self.initial = initial
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _make_module(self) -> Unrolled:
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size: expected an odd number, at least 3, got {self.kernel_size}")
        if self.n_knots < 2:
            raise ValueError(f"n_knots: expected at least 2, got {self.n_knots}")
        return Experts(self.n_channels_, self.n_iterations, self.n_filters, self.kernel_size, self.n_knots)


class Experts(Unrolled):
    """``x <- x - sum_i K_i^T phi_i'(K_i x) - lam A^*(A x - y)``."""

    def __init__(
        self, n_channels: tuple[int, int], n_iterations: int, n_filters: int, kernel_size: int, n_knots: int
    ) -> None:
        super().__init__(n_channels, n_iterations)
        self.filters = nn.Parameter(
            torch.randn(n_iterations, n_filters, n_channels[0], kernel_size, kernel_size)
        )
        knots = torch.linspace(-_RANGE, _RANGE, n_knots)
        self.slopes = nn.Parameter((_SLOPE / n_filters * knots).repeat(n_iterations, n_filters, 1))
        self.log_lam = nn.Parameter(torch.zeros(n_iterations))

    def iterates(self, problem: Scaled) -> Iterator[Tensor]:
        x = problem.start
        for filters, slopes, log_lam in zip(self.filters, self.slopes, self.log_lam, strict=True):
            K = centred(filters)
            gradient = log_lam.exp() * problem.adjoint(problem.forward(x) - problem.data)
            x = x - gradient - _adjoint(Spline.apply(_filtered(x, K), slopes), K)
            yield x


def centred(filters: Tensor) -> Tensor:
    """Filters of mean zero in each channel and norm 1."""
    zero_mean = filters - filters.mean((-2, -1), keepdim=True)
    return zero_mean / zero_mean.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)


def _filtered(x: Tensor, K: Tensor) -> Tensor:
    return F.conv2d(x, K, padding=K.shape[-1] // 2)


def _adjoint(u: Tensor, K: Tensor) -> Tensor:
    return F.conv_transpose2d(u, K, padding=K.shape[-1] // 2)


class Spline(torch.autograd.Function):
    """A function of each channel, linear between equidistant knots and constant beyond the last ones.

    Of ``t`` (n, channels, height, width) and the values at the knots (channels, n_knots).
    """

    @staticmethod
    def forward(ctx: Any, t: Tensor, values: Tensor) -> Tensor:
        n_channels, n_knots = values.shape
        per_unit = (n_knots - 1) / (2 * _RANGE)
        place = (t + _RANGE) * per_unit
        left = place.floor().clamp(0, n_knots - 2).nan_to_num(0)  # what is no number has no place, but stays
        part = (place - left).clamp(0, 1)
        index = left.long() + n_knots * torch.arange(n_channels, device=t.device)[:, None, None]
        low, high = values.flatten()[index], values.flatten()[index + 1]
        rise = high - low
        inside = (place >= 0) & (place < n_knots - 1)
        ctx.save_for_backward(index, part, torch.where(inside, per_unit * rise, 0))
        ctx.shape = values.shape
        return low + part * rise

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        index, part, slope = ctx.saved_tensors
        n = ctx.shape.numel()
        knots = torch.bincount((index + 1).flatten(), (part * g).flatten(), n)
        knots += torch.bincount(index.flatten(), ((1 - part) * g).flatten(), n)
        return slope * g, knots.view(ctx.shape).to(g.dtype)

"""Learned iterations, trained on pairs from end to end: learned gradient descent and learned primal-dual."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from torch import Tensor, nn

from skinverse.estimators._base import LearnedReconstructor
from skinverse.estimators._learning import analytic_inverse, in_memory, recipe, spread
from skinverse.estimators._unrolled_networks import GradientUnrolled, PrimalDualUnrolled, Unrolled
from skinverse.estimators._validation import check_bounds, check_whole, same_kind
from skinverse.functionals import as_channels
from skinverse.metrics import psnr
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Steps and learning rate if nobody says; held-out images to score.
_N_STEPS, _LR, _N_SCORED = 2000, 1e-3, 16


class LearnedGradientDescent(LearnedReconstructor):
    """Learned gradient descent: iterations that a network makes of gradients.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||x_N(y) - x||^2`` over pairs, where ``x_0`` is the
    analytic inverse of ``y`` and a network ``U`` makes of the image, both gradients and a memory ``s >= 0``

    ``x <- x + U(x, A^*(A x - y), -Laplacian x, s)``.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    n_iterations : int, default=10
        Number of iterations; fixed by the training.
    n_features : int, default=32
        Width of the networks.
    n_memory : int, default=5
        Channels that one iteration hands to the next beside the image.
    shared : bool, default=True
        Whether all iterations have the same weights.
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
    module_ : nn.Module
        The networks of all iterations.
    history_ : list of dict
        One entry per epoch.

    See Also
    --------
    LearnedPrimalDual : Learns on the side of the data too.

    References
    ----------
    J. Adler and O. Oktem, Solving ill-posed inverse problems using iterative deep neural networks, Inverse
    Problems 33, 2017.

    Examples
    --------
    >>> from skinverse import LearnedGradientDescent, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedGradientDescent(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_")
    _load: ClassVar[int] = 64
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("bounds", "verbose", "device")
    module_: Unrolled

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        n_iterations: int = 10,
        n_features: int = 32,
        n_memory: int = 5,
        shared: bool = True,
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
        self.n_features = n_features
        self.n_memory = n_memory
        self.shared = shared
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def staged_predict(self, Y_meas: Any) -> Iterator[Any]:
        """Reconstructions after each iteration.

        Parameters
        ----------
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.

        Returns
        -------
        iterator of ndarray or Tensor of shape (n_samples, *operator.dims)
            The images after the first, second, ... iteration; the last ones are those of ``predict``.
        """
        staged = self._predicted(Y_meas, self._staged).x
        return (same_kind(x, Y_meas) for x in staged.unbind(1))

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert images is not None and data is not None  # _needs
        check(self)
        self.real_, self.n_channels_ = not images.is_complex(), channels(images, data)
        super()._fit(A, images, data)

    def _make_module(self) -> nn.Module:
        return GradientUnrolled(
            self.n_channels_, self.n_iterations, self.n_features, self.n_memory, shared=self.shared
        )

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        return train(self, module, A, images, data, seed, verbose)

    def _staged(self, A: LinearMap, data: Tensor) -> Solution:
        return Solution.direct(torch.stack(list(stages(self, A, data)), 1))

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        *_, last = stages(self, A, data)
        return Solution.direct(last)


class LearnedPrimalDual(LearnedReconstructor):
    """Learned primal-dual: networks between the products with the operator and its adjoint.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||f_N(y) - x||^2`` over pairs, where several images
    ``f`` and several data ``h`` are updated in turn, in each iteration by networks of its own,

    ``h <- h + D_k(h, A f_1, y)``, ``f <- f + P_k(f, A^* h_0)``,

    and the first of the images is the reconstruction. ``f`` starts with the analytic inverse of ``y`` (with
    zero in the paper), ``h`` with zero.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    n_iterations : int, default=10
        Number of iterations; fixed by the training.
    n_features : int, default=32
        Width of the networks.
    n_memory : int, default=5
        How many images and data are updated.
    shared : bool, default=False
        Whether all iterations have the same weights.
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
    module_ : nn.Module
        The networks of all iterations.
    history_ : list of dict
        One entry per epoch.

    See Also
    --------
    LearnedGradientDescent : Learns on the side of the image alone.

    References
    ----------
    J. Adler and O. Oktem, Learned primal-dual reconstruction, IEEE Transactions on Medical Imaging 37, 2018.

    Examples
    --------
    >>> from skinverse import LearnedPrimalDual, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedPrimalDual(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_")
    _load: ClassVar[int] = 64
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("bounds", "verbose", "device")
    module_: Unrolled

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        n_iterations: int = 10,
        n_features: int = 32,
        n_memory: int = 5,
        shared: bool = False,
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
        self.n_features = n_features
        self.n_memory = n_memory
        self.shared = shared
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def staged_predict(self, Y_meas: Any) -> Iterator[Any]:
        """Reconstructions after each iteration.

        Parameters
        ----------
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements; flat (n_samples, n_measurements) is accepted.

        Returns
        -------
        iterator of ndarray or Tensor of shape (n_samples, *operator.dims)
            The images after the first, second, ... iteration; the last ones are those of ``predict``.
        """
        staged = self._predicted(Y_meas, self._staged).x
        return (same_kind(x, Y_meas) for x in staged.unbind(1))

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert images is not None and data is not None  # _needs
        check(self)
        self.real_, self.n_channels_ = not images.is_complex(), channels(images, data)
        super()._fit(A, images, data)

    def _make_module(self) -> nn.Module:
        return PrimalDualUnrolled(
            self.n_channels_, self.n_iterations, self.n_features, self.n_memory, shared=self.shared
        )

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        return train(self, module, A, images, data, seed, verbose)

    def _staged(self, A: LinearMap, data: Tensor) -> Solution:
        return Solution.direct(torch.stack(list(stages(self, A, data)), 1))

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        *_, last = stages(self, A, data)
        return Solution.direct(last)


def check(method: Any) -> None:
    """The parameters that both methods have."""
    for name in ("n_iterations", "n_features", "n_memory"):
        check_whole(getattr(method, name), name, 1)
    check_bounds(method.bounds)


def channels(images: Tensor, data: Tensor) -> tuple[int, int]:
    """Channels of images and data, a complex one counting twice."""
    return as_channels(images[:1]).shape[1], as_channels(data[:1]).shape[1]


def start(method: Any, A: LinearMap, data: Tensor) -> Tensor:
    """``A_delta^+ y``, real where images are."""
    x = data if A.identity else analytic_inverse(A, data)
    return x.real.contiguous() if method.real_ and x.is_complex() else x


def stages(method: Any, A: LinearMap, data: Tensor) -> Iterator[Tensor]:
    """The image after each iteration, within its bounds."""
    x0, (low, high) = start(method, A, data), check_bounds(method.bounds)
    module = copy.deepcopy(method.module_).to(x0.device, x0.dtype.to_real())
    with torch.no_grad():
        for x in module.stages(A, data, x0):
            yield x if low is None and high is None else x.clamp(low, high)


def train(
    method: Any, module: Unrolled, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
) -> list[dict[str, Any]]:
    """Minimise the squared error of the last iterate; the best epoch is that of the best held-out images."""
    if module.unit == 0:
        module.unit.fill_(spread(as_channels(images)))
    starts = torch.cat([start(method, A, part) for part in data.split(in_memory(A))])

    def loss(module: Any, x: Tensor, index: Tensor) -> Tensor:
        error = (module(A, data[index], starts[index]) - x) / module.unit
        return error.abs().square().flatten(1).mean(1)

    def score(x: Tensor, index: Tensor) -> float:
        with np.errstate(over="ignore"):  # a diverging training is the trainer's to report
            *_, last = stages(method, A, data[index[:_N_SCORED]])
            return float(psnr(x[:_N_SCORED], last).mean())

    trainer = method.trainer or recipe(_N_STEPS, _LR, len(data), max_norm=1.0)
    members = torch.arange(len(data), device=data.device)
    return trainer.train(module, loss, images, members, score=score, seed=seed, verbose=verbose)

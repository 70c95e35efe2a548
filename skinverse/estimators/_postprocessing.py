"""Post-processing: a network that takes the artefacts out of an analytic reconstruction."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pylops
import torch
from torch import Tensor, nn

from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._learning import (
    check_kinds,
    excerpt,
    first_images,
    fitted_initial,
    following,
    in_memory,
    patches,
    reached,
    recipe,
    spread,
)
from skinverse.estimators._residual import Residual, check_network
from skinverse.estimators._validation import check_whole
from skinverse.functionals import as_channels, from_channels
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Steps and learning rate if nobody says; held-out images to score.
_N_STEPS, _LR, _N_SCORED = 3000, 1e-3, 16


class PostProcessor(LearnedReconstructor):
    """A reconstruction, and a residual network that improves it.

    ``fit`` reconstructs with ``initial`` and minimises ``sum ||h(x_0(y)) - x||^2`` over pairs. Without an
    operator the data are noisy images, and the network is a supervised denoiser.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    initial : estimator or None, default=None
        Makes the first reconstructions; it gets the operator, and is fitted on the same pairs. None is
        filtered back-projection where there is one, else a regularized pseudo-inverse.
    network : {"unet", "dncnn", "dncnn_c4", "dncnn_d4"} or nn.Module, default="unet"
        The ``h``, whose input is its image in units of the images' spread; those of a group commute with
        turns, and with flips. A module takes (n, channels, height, width) to the same, at least where the
        sides are multiples of 64 or less; :meth:`save` does not take it.
    patch_size : int or None, default=64
        Side of the patches to train on; None is whole images.
    trainer : Trainer or None, default=None
        How to train; by default 3000 steps.
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
        The network.
    history_ : list of dict
        One entry per epoch.

    See Also
    --------
    LearnedPrimalDual : Sees the data in every iteration.

    References
    ----------
    K. H. Jin, M. T. McCann, E. Froustey and M. Unser, Deep convolutional neural network for inverse problems
    in imaging, IEEE Transactions on Image Processing 26, 2017.

    Examples
    --------
    >>> from skinverse import PostProcessor, Tikhonov, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = PostProcessor(A, initial=Tikhonov(lam=0.01), trainer=Trainer(max_epochs=2))
    >>> method.fit(images, data).predict(data).shape
    (8, 16, 16)
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_", "initial_")
    _load: ClassVar[int] = 128
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("verbose", "device")
    module_: Residual
    initial_: BaseReconstructor | None

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        initial: BaseReconstructor | None = None,
        network: str | nn.Module = "unet",
        patch_size: int | None = 64,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.initial = initial
        self.network = network
        self.patch_size = patch_size
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert A is not None and images is not None and data is not None  # _needs
        check_network(self.network)
        check_kinds(A, images, data)
        check_whole(1 if self.patch_size is None else self.patch_size, "patch_size", 1)
        self.real_, self.n_channels_ = not images.is_complex(), as_channels(images[:1]).shape[1]
        self.initial_ = fitted_initial(self.initial, self.operator_, images, data)
        super()._fit(A, images, data)

    def _make_module(self) -> nn.Module:
        return Residual(self.network, self.n_channels_)

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        if module.unit == 0:
            module.unit.fill_(spread(as_channels(images)))
        first = torch.cat([self._start(A, part) for part in data.split(in_memory(A))])

        def loss(module: Any, x: Tensor, x0: Tensor) -> Tensor:
            both = patches(torch.cat([as_channels(x), as_channels(x0)], 1), self.patch_size)
            x, x0 = both.chunk(2, 1)
            return ((module(x0) - x) / module.unit).square().flatten(1).mean(1)

        def score(x: Tensor, x0: Tensor) -> float:
            some, start = excerpt(x[:_N_SCORED], x0[:_N_SCORED])
            return reached(some, module.improved(start))

        trainer = self.trainer or recipe(_N_STEPS, _LR, len(data), max_norm=1.0)
        return trainer.train(module, loss, images, first, score=score, seed=seed, verbose=verbose)

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        return first_images(A, data, self.initial_, real=self.real_).x

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        first = first_images(A, data, self.initial_, real=self.real_)
        module = copy.deepcopy(self.module_).to(first.x.device, first.x.dtype.to_real())
        return following(first, module.improved(first.x))

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        return from_channels(module(as_channels(start)), start)

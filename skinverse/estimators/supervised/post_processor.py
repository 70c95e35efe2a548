"""Post-processing: a network that takes the artefacts out of an analytic reconstruction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from skinverse._defaults import copy_module
from skinverse._parameters import Flag, Instance, Integer, Null, fitted, parameter
from skinverse._tensors import from_channels
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._learned import (
    LearnedReconstructor,
    after,
    check_kinds,
    fit_initial,
    mean_psnr,
)
from skinverse.estimators._problems import Problems
from skinverse.estimators.supervised.residual import NETWORKS, Residual
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Phase, crop, random_patches

# Held-out images to score.
_N_SCORED = 16


class PostProcessor(LearnedReconstructor):
    """A reconstruction, and a residual network that improves it.

    ``fit`` reconstructs with ``initial`` and minimises ``sum ||h(x_0(y)) - x||^2`` over pairs. Without an
    operator the data are noisy images, and the network is a supervised denoiser.

    See Also
    --------
    LearnedPrimalDual : Sees the data in every iteration.

    Notes
    -----
    The method's own training has 3000 steps of 8 patches; the learning rate falls from 1e-3 to 1e-4, and
    gradients are shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the network is neither homogeneous nor does it
    keep constants.

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

    not_promised = {
        "phase": (
            "The network sees real and imaginary parts as two channels: the image changes by 0.01 relative."
        ),
    }

    _load: ClassVar[int] = 128
    _reads_rows: ClassVar[bool] = True

    initial: BaseReconstructor | FrozenEstimator | None = parameter(
        default=None,
        allowed=Instance(BaseReconstructor, FrozenEstimator, name="estimator") | Null(),
        doc="""
        Method that makes the first reconstructions; it gets the operator and is fitted on the same pairs, or
        is kept as it is inside scikit-learn's ``FrozenEstimator``. None is filtered back-projection or zero
        filling where there is one, else a regularised pseudo-inverse.""",
    )
    network: str | nn.Module = parameter(
        default="unet",
        allowed=NETWORKS | Instance(nn.Module, name="nn.Module"),
        doc="""
        The network ``h``, for images that are normalised as the training images are to mean 0 and standard
        deviation 1; those of a group commute with quarter turns, and with flips. A module takes (n, channels,
        height, width) to the same shape, at least where the sides are multiples of 64 or less; :meth:`save`
        does not take it.""",
    )
    patch_size: int | None = parameter(
        default=64,
        allowed=Integer(ge=1) | Null(),
        doc="Side of the patches to train on, in pixels; None trains on whole images.",
    )

    module_: Residual = fitted(kind="nn.Module", doc="The trained network.")
    initial_: BaseReconstructor | None = fitted(
        allowed=Instance(BaseReconstructor, name="estimator") | Null(), doc="The fitted ``initial``."
    )
    n_channels_: int = fitted(
        allowed=Integer(ge=1), doc="Number of real channels of the images; a complex channel counts twice."
    )
    real_: bool = fitted(allowed=Flag(), doc="Whether the images of ``fit`` were real.")

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        check_kinds(problems, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), self._channels(images[:1]).shape[1]
        self.initial_ = fit_initial(self, self.initial, problems, images, data)
        super()._fit(problems, images, data)

    def _make_module(self) -> nn.Module:
        return Residual(self.network, self.n_channels_, self.n_axes_)

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        first, axes = self._starts(problems, data), self._spatial_axes(problems.maps[0])

        def loss(module: Any, x: Tensor, x0: Tensor) -> Tensor:
            both = random_patches(torch.cat([self._channels(x), self._channels(x0)], 1), self.patch_size)
            x, x0 = both.chunk(2, 1)
            return (module(x0) - x).square().flatten(1).mean(1)

        def score(x: Tensor, x0: Tensor) -> float:
            x, x0 = crop(x[:_N_SCORED], x0[:_N_SCORED], axes)
            return mean_psnr(x, self._improved(module, x0))

        trainer = self.trainer.over(n_steps=3000, lr=1e-3, final_lr=1e-4, max_grad_norm=1.0)
        yield Phase("supervised", loss, (images, first), trainer, score)

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        return self._first_images(A, data, self.initial_, real=self.real_).x

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        first = self._first_images(A, data, self.initial_, real=self.real_)
        module: Any = copy_module(self.module_).to(first.x.device, first.x.dtype.to_real())
        return after(first, self._improved(module, first.x))

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        return from_channels(module(self._channels(start)), start, self.channel_axis)

    @torch.no_grad()
    def _improved(self, module: nn.Module, x: Tensor) -> Tensor:
        return from_channels(module(self._channels(x)), x, self.channel_axis)

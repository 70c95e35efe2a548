"""Direct inversion: a map from data to images that knows nothing of the operator."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor, nn

from skinverse._batches import rowwise
from skinverse._defaults import copy_module
from skinverse._parameters import Elements, Flag, Instance, Integer, fitted, parameter
from skinverse._tensors import as_channels, from_channels, rms
from skinverse.estimators._learned import LearnedReconstructor, held_out_psnr
from skinverse.estimators._problems import Problems
from skinverse.estimators.supervised.residual import NETWORKS, Residual
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Phase

# Held-out images to score, and the number of weights that is announced: 0.8 GB in single precision.
_N_SCORED, _MANY = 16, 2 * 10**8
# Regularisations among which that of the linear map is chosen, relative to the size of the data.
_ALPHAS = np.logspace(-4, 2, 7)


class DirectInversion(LearnedReconstructor):
    """A linear map from data to image and a residual network behind it, both learned, without an operator.

    ``fit`` minimises ``sum ||h(L y + b) - x||^2`` over pairs. ``L`` begins as the linear map that ridge
    regression finds. It has as many weights as pixels times measurements: 68 million for 64 x 64 pixels and
    four times as many measurements, 69 billion for 512 x 512 pixels and as many measurements. Use it where
    the operator is unknown; a method that knows it needs fewer images.

    Warns
    -----
    UserWarning
        If there are more than 200 million weights.

    See Also
    --------
    PostProcessor : Begins with an analytic inverse instead.

    Notes
    -----
    The method's own training has 1000 steps of 8 images; the learning rate falls from 1e-4 to 1e-5, and
    gradients are shortened to norm 1.

    What is learned is the map to normalised images, ``(x - level_) / spread_``, from data less the mean of
    each measurement and divided by one number. Trained on images and data times a number, or with a constant
    added to the images and its data to the data, it gives the same reconstructions times it, or with it
    added. Images of another unit or level than those of the training need another training: the network is
    neither homogeneous nor does it keep constants.

    References
    ----------
    B. Zhu, J. Z. Liu, S. F. Cauley, B. R. Rosen and M. S. Rosen, Image reconstruction by domain-transform
    manifold learning, Nature 555, 2018.

    Examples
    --------
    >>> from skinverse import DirectInversion, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, _ = make_problem("ct", n_samples=8, size=16, random_state=0)
    >>> DirectInversion(trainer=Trainer(max_epochs=2)).fit(images, data).predict(data).shape
    (8, 16, 16)
    """

    not_promised = {
        "other_operator": "The map from data to images is learned for one operator.",
        "other_sizes": "The linear map is learned for one size of images and one of data.",
        "phase": (
            "The learned map is linear in real and imaginary parts, not in complex numbers: the image "
            "changes by 0.7 relative."
        ),
    }

    # The linear map is one of all data, each measurement in its place.
    _complete: ClassVar[bool] = True
    _load: ClassVar[int] = 64

    network: str | nn.Module = parameter(
        default="dncnn",
        allowed=NETWORKS | Instance(nn.Module, name="nn.Module"),
        doc="""
        Network ``h`` behind the linear map, for images that are normalised as the training images are to mean
        0 and standard deviation 1. A module takes (n, channels, height, width) to the same shape, at least
        where the sides are multiples of 64 or less; :meth:`save` does not take it.""",
    )

    _one_operator: ClassVar[bool] = True
    _reads_rows: ClassVar[bool] = True

    module_: Direct = fitted(kind="nn.Module", doc="Linear map and network.")
    image_shape_: tuple[int, ...] = fitted(
        kind="tuple of int",
        allowed=Elements(Integer(ge=1), name="whole numbers"),
        doc="Real channels and spatial axes of an image; a complex channel counts twice.",
    )
    n_measurements_: int = fitted(
        allowed=Integer(ge=1),
        doc="Number of real numbers in the data of an image; a complex one counts twice.",
    )
    real_: bool = fitted(allowed=Flag(), doc="Whether the images of ``fit`` were real.")

    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        """The operator of the training; without one, a map to zero that only tells the shapes."""
        if images is None:
            known: Any = getattr(self, "operator_", None)
            given: Any = self.operator
            if given is not None and given is not known:
                raise ValueError(
                    "DirectInversion: what was learned belongs to the operator of the training, from images "
                    f"{known.dims}, got another one from images {given.dims}: fit again"
                )
            return known
        if self.operator is not None or data is None:
            return self.operator
        shapes = tuple(data.shape[1:]), tuple(images.shape[1:])
        return pylops.Zero(*shapes, dtype=str(data.dtype).removeprefix("torch."))

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        A = problems.A
        self.real_ = not images.is_complex()
        self.image_shape_ = tuple(self._channels(images[:1]).shape[1:])
        self.n_measurements_ = _numbers(data[:1], A).shape[1]
        n_weights = math.prod(self.image_shape_) * self.n_measurements_
        if n_weights > _MANY:
            warnings.warn(
                f"DirectInversion: the linear map has {n_weights:.1e} weights, {n_weights / 2**28:.1f} GiB, "
                "four times as much in training: a method that knows the operator needs none of them",
                stacklevel=6,
            )
        super()._fit(problems, images, data)

    def _make_module(self) -> nn.Module:
        return Direct(self.image_shape_, self.n_measurements_, self.network)

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        def prepare(x: Tensor, y: Tensor, _: Tensor) -> None:
            if not self._continued:
                module.start(x, y)

        def loss(module: Any, x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            return (module(y) - x).square().flatten(1).mean(1)

        def reconstruct(y: Tensor, _: Tensor) -> Tensor:
            with torch.no_grad():
                x: Tensor = module(y)
                return x

        A = problems.A
        rows = rowwise(self._channels, images), rowwise(lambda y: _numbers(y, A), data), problems.which
        score = held_out_psnr(reconstruct, n_images=_N_SCORED)
        trainer = self.trainer.over(n_steps=1000, lr=1e-4, final_lr=1e-5, max_grad_norm=1.0)
        yield Phase("supervised", loss, rows, trainer, score, prepare=prepare)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        y = _numbers(data, A)
        if y.shape[1] != self.n_measurements_:
            raise ValueError(
                f"Y_meas: expected {self.n_measurements_} numbers per sample (a complex one counts twice), "
                f"as in the training, got {y.shape[1]}"
            )
        weight = self.module_.linear.weight
        alike = (weight.dtype, weight.device) == (y.dtype, y.device)
        # Not copied where it need not be: the linear map may be most of the memory.
        module: Any = self.module_ if alike else copy_module(self.module_).to(y.device, y.dtype)
        with torch.no_grad():
            return Solution.direct(self._images(module(y), A))

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        return self._images(module(_numbers(data, A)), A)

    def _images(self, channels: Tensor, A: LinearMap) -> Tensor:
        kind = channels.dtype if self.real_ else channels.dtype.to_complex()
        return from_channels(channels, torch.empty(len(channels), *A.dims, dtype=kind), self.channel_axis)


def _numbers(data: Tensor, A: LinearMap) -> Tensor:
    """What is measured, as real numbers, (n, n_measurements)."""
    return as_channels(data.flatten(1) if A.measured is None else data[:, A.measured], None).flatten(1)


class Direct(nn.Module):
    """``h(L (y - m) / s + b)``, data to channels.

    The operator, through which the level of the images would be seen, is not known here: the mean ``m`` of
    each measurement and the scale ``s`` of what varies are those of the training data.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, image_shape: tuple[int, ...], n_measurements: int, network: str | nn.Module) -> None:
        super().__init__()
        self.image_shape = image_shape
        self.linear = nn.Linear(n_measurements, math.prod(image_shape))
        self.network = Residual(network, image_shape[0], len(image_shape) - 1)
        self.register_buffer("mean", torch.zeros(n_measurements))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, y: Tensor) -> Tensor:
        """Images (n, channels, *space) of data (n, n_measurements)."""
        x: Tensor = self.linear((y - self.mean) / self.scale)
        return self.network(x.view(-1, *self.image_shape))

    def start(self, x: Tensor, y: Tensor) -> None:
        """Normalise the data, and find the linear map by ridge regression, its weight by leaving one out."""
        self.mean.copy_(y.double().mean(0))
        size, varying = rms(y), rms(y - self.mean)
        self.scale.fill_(varying if varying > torch.finfo(y.dtype).eps * size else size or 1.0)
        data, images = ((y - self.mean) / self.scale).cpu().numpy(), x.flatten(1).cpu().numpy()
        alphas = data.shape[1] * _ALPHAS
        # Of one or two images nothing can be left out.
        ridge = (RidgeCV(alphas) if len(data) > 2 else Ridge(alphas[-1])).fit(data, images)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(np.atleast_2d(ridge.coef_)))
            self.linear.bias.copy_(torch.from_numpy(np.atleast_1d(ridge.intercept_)))

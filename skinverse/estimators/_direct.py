"""Direct inversion: a map from data to images that knows nothing of the operator."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor, nn

from skinverse.estimators._base import LearnedReconstructor
from skinverse.estimators._learning import reached, recipe, rms, spread
from skinverse.estimators._residual import Residual, check_network
from skinverse.functionals import as_channels, from_channels
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Steps and learning rate if nobody says, held-out images to score, weights of which a user should know.
_N_STEPS, _LR, _N_SCORED, _MANY = 1000, 1e-4, 16, 2 * 10**8
# Regularizations among which that of the linear map is chosen, relative to the size of the data.
_ALPHAS = np.logspace(-4, 2, 7)


class DirectInversion(LearnedReconstructor):
    """A linear map from data to image and a residual network behind it, both learned, without an operator.

    ``fit`` minimises ``sum ||h(L y + b) - x||^2`` over pairs. ``L`` begins as the linear map that ridge
    regression finds. It has pixels times measurements weights: 68 million for 64 x 64 pixels and four times
    as many measurements, 69 billion for 512 x 512 pixels and as many measurements; a warning says so before
    the memory ends. Use it where the operator is unknown; a method that knows it needs fewer images.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        Only tells the shapes of images and data; None takes them from the pairs.
    network : {"unet", "dncnn", "dncnn_c4", "dncnn_d4"} or nn.Module, default="dncnn"
        What follows the linear map, channels to channels.
    trainer : Trainer or None, default=None
        How to train; by default 1000 steps.
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
        The operator, or one of the sizes seen that maps to zero.
    module_ : nn.Module
        Linear map and network.
    history_ : list of dict
        One entry per epoch.

    Warns
    -----
    UserWarning
        If there are more than 200 million weights.

    See Also
    --------
    PostProcessor : Begins with an analytic inverse instead.

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

    _seen: ClassVar[tuple[str, ...]] = ("sizes_", "real_")
    _load: ClassVar[int] = 64
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("verbose", "device")
    module_: Direct

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        network: str | nn.Module = "dncnn",
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.network = network
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        if images is None:
            known: Any = getattr(self, "operator_", None)
            if self.operator is not None and self.operator is not known:
                raise ValueError(
                    "DirectInversion: what was learned belongs to the operator of the training, from images "
                    f"{known.dims}, got another one from images {self.operator.dims}: fit again"
                )
            return known
        if self.operator is not None or data is None:
            return self.operator
        sizes = tuple(data.shape[1:]), tuple(images.shape[1:])
        return pylops.Zero(*sizes, dtype=str(data.dtype).removeprefix("torch."))

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert images is not None and data is not None  # _needs
        check_network(self.network)
        self.real_ = not images.is_complex()
        self.sizes_ = tuple(as_channels(images[:1]).shape[1:]), as_channels(data[:1]).numel()
        n_weights = math.prod(self.sizes_[0]) * self.sizes_[1]
        if n_weights > _MANY:
            warnings.warn(
                f"DirectInversion: the linear map has {n_weights:.1e} weights, {n_weights / 2**28:.1f} GiB, "
                "four times as much in training: a method that knows the operator needs none of them",
                stacklevel=3,
            )
        super()._fit(A, images, data)

    def _make_module(self) -> nn.Module:
        return Direct(*self.sizes_, self.network)

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        trainer = self.trainer or recipe(_N_STEPS, _LR, len(data), max_norm=1.0)
        x, y = as_channels(images), as_channels(data).flatten(1)
        if module.network.unit == 0:
            module.start(*(trainer.split(batch, seed)[0] for batch in (x, y)))

        def loss(module: Any, x: Tensor, y: Tensor) -> Tensor:
            return ((module(y) - x) / module.network.unit).square().flatten(1).mean(1)

        def score(x: Tensor, y: Tensor) -> float:
            with torch.no_grad():
                return reached(x[:_N_SCORED], module(y[:_N_SCORED]))

        return trainer.train(module, loss, x, y, score=score, seed=seed, verbose=verbose)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        y = as_channels(data).flatten(1)
        if y.shape[1] != self.sizes_[1]:
            raise ValueError(
                f"Y_meas: expected {self.sizes_[1]} numbers per sample (a complex one counts twice), as in "
                f"the training, got {y.shape[1]}"
            )
        known = self.module_.linear.weight
        same = (known.dtype, known.device) == (y.dtype, y.device)
        module = self.module_ if same else copy.deepcopy(self.module_).to(y.device, y.dtype)
        with torch.no_grad():
            return Solution.direct(self._images(module(y), A))

    def _images(self, channels: Tensor, A: LinearMap) -> Tensor:
        kind = channels.dtype if self.real_ else channels.dtype.to_complex()
        return from_channels(channels, torch.empty(len(channels), *A.dims, dtype=kind))

    def _differentiable(self, module: nn.Module, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        return self._images(module(as_channels(data).flatten(1)), A)


class Direct(nn.Module):
    """``h(L y + b)``, numbers to channels."""

    scale: Tensor

    def __init__(self, shape: tuple[int, ...], n_data: int, network: str | nn.Module) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(n_data, math.prod(shape))
        self.network = Residual(network, shape[0])
        self.register_buffer("scale", torch.ones(()))

    def forward(self, y: Tensor) -> Tensor:
        """Images (n, channels, height, width) of data (n, n_data)."""
        x: Tensor = self.linear(y / self.scale) * self.network.unit
        return self.network(x.view(-1, *self.shape))

    def start(self, x: Tensor, y: Tensor) -> None:
        """The units, and the linear map of ridge regression, its weight chosen by leaving one out."""
        unit, scale = spread(x), rms(y) or 1.0
        self.network.unit.fill_(unit)
        self.scale.fill_(scale)
        data, images = (y / scale).cpu().numpy(), (x.flatten(1) / unit).cpu().numpy()
        alphas = data.shape[1] * _ALPHAS
        ridge = (RidgeCV(alphas) if len(data) > 2 else Ridge(alphas[-1])).fit(data, images)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(np.atleast_2d(ridge.coef_)))
            self.linear.bias.copy_(torch.from_numpy(np.atleast_1d(ridge.intercept_)))

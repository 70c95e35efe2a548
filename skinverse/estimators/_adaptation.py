"""Adapting what has been learned to another operator, from measurements alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from skinverse._batch import norm
from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._learning import in_memory
from skinverse.estimators._validation import check_whole, single
from skinverse.functionals import Functional
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution, lbfgs

# How many training steps' worth of images may be worked on at once.
_AT_ONCE = 8


class ModelAdaptation(BaseReconstructor):
    r"""Adapts a trained method to the operator that the data really come from, without true images.

    ``fit`` minimises, from the weights ``theta_0`` that were learned,

    ``mean_i max(||y_i - B f(y_i; theta, B)||^2 - m noise_std^2, 0) + mu ||theta - theta_0||^2``

    over the weights, and over the parameters of ``B`` where it is a
    :class:`~skinverse.operators.ParametricOperator`; ``m`` is the number of measurements, and what the noise
    explains is not fitted. The sums are over all measurements and all weights. The given estimator stays as
    it is.

    Parameters
    ----------
    estimator : LearnedReconstructor
        What has been fitted: post-processing, learned iterations, direct inversion or a deep equilibrium.
    operator : pylops.LinearOperator, ParametricOperator or None, default=None
        The operator ``B`` of the data; the parameters of a parametric one are where the search begins. None
        is the operator of the estimator.
    mu : float >= 0, default=1e-2
        Weight of what has been learned; the larger, the closer to it. A weight that is infinite keeps it, and
        only the parameters of the operator are sought.
    noise_std : float or None, default=None
        Standard deviation of the noise, of complex noise in absolute value; None takes it as zero.
    per_image : bool, default=False
        Whether ``predict`` also adapts the weights to each image on its own, beginning with those of ``fit``.
        The operator stays that of ``fit``.
    max_steps : int, default=100
        Most steps of L-BFGS.
    tol : float, default=1e-5
        ``fit`` stops when a step changes the weights by less than ``tol`` relative to their norm.
    device : str, default="auto"
        "cpu", "cuda", or CUDA where there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator ``B``; of a parametric one the member that was found.
    estimator_ : LearnedReconstructor
        The adapted method.
    history_ : list of dict
        For each step the ``objective`` and the parameters of the operator.

    Raises
    ------
    TypeError
        If the estimator does not reconstruct differentiably in what it learned.

    References
    ----------
    D. Gilton, G. Ongie and R. Willett, Model adaptation for inverse problems in imaging, IEEE Transactions on
    Computational Imaging 7, 2021 (parametrize and perturb).

    Examples
    --------
    >>> from skinverse import LearnedGradientDescent, ModelAdaptation, Trainer
    >>> from skinverse.datasets import make_problem
    >>> from skinverse.operators import GaussianBlur
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedGradientDescent(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> adapted = ModelAdaptation(method, operator=GaussianBlur((16, 16), 1.0), max_steps=3).fit(Y_meas=data)
    >>> sorted(adapted.operator_.parameters)
    ['sigma']
    >>> adapted.predict(data).shape
    (8, 16, 16)
    """

    _needs: ClassVar[tuple[str, ...]] = ("Y_meas",)
    _paired: ClassVar[bool] = False
    _shared: ClassVar[tuple[str, ...]] = ("operator", "estimator")
    _load: ClassVar[int] = 64
    estimator_: LearnedReconstructor

    def __init__(
        self,
        estimator: LearnedReconstructor,
        operator: pylops.LinearOperator | None = None,
        *,
        mu: float = 1e-2,
        noise_std: float | None = None,
        per_image: bool = False,
        max_steps: int = 100,
        tol: float = 1e-5,
        device: str = "auto",
    ) -> None:
        self.estimator = estimator
        self.operator = operator
        self.mu = mu
        self.noise_std = noise_std
        self.per_image = per_image
        self.max_steps = max_steps
        self.tol = tol
        self.device = device

    # ------------------------------------------------------------------ fit
    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        if images is None and data is not None and hasattr(self, "operator_"):
            return self.operator_
        fitted: Any = getattr(self.estimator, "operator_", None)
        return fitted if self.operator is None else self.operator

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert data is not None  # _needs
        self._check()
        family: Any = self.operator_
        module = copy.deepcopy(self.estimator.module_).to(data.device)
        parameters = {
            name: value.to(data.device).clone() for name, value in getattr(family, "parameters", {}).items()
        }
        objective = self._objective(module, family, parameters, single(data))
        self.history_ = self._minimise(objective)
        if parameters:
            found = {name: value.detach() for name, value in parameters.items()}
            self.operator_ = family.with_parameters(found)
        self.estimator_ = self._with(module, self.operator_)

    def _check(self) -> None:
        name = type(self.estimator).__name__
        hook = getattr(type(self.estimator), "_differentiable", None)
        if hook is None:
            raise TypeError(f"ModelAdaptation: expected a method that learned from images, got {name}")
        if hook is LearnedReconstructor._differentiable:
            raise TypeError(
                f"ModelAdaptation: {name} does not reconstruct differentiably in what it learned; "
                "set_params(operator=...) takes it to another operator as it is"
            )
        if not hasattr(self.estimator, "module_"):
            raise NotFittedError(f"ModelAdaptation: expected a fitted estimator, got {name} before its fit")
        if not self.mu >= 0:
            raise ValueError(f"mu: expected a number >= 0, got {self.mu!r}")
        check_whole(self.max_steps, "max_steps", 1)

    def _objective(
        self, module: nn.Module, family: Any, parameters: dict[str, Tensor], data: Tensor
    ) -> Misfit:
        method = self._with(module, family)

        def misfit(data: Tensor, start: Tensor | None) -> Tensor:
            A = family.at(parameters) if parameters else as_torch(family)
            start = method._start(A, data) if start is None else start
            return norm(A(method._differentiable(module, A, data, start)) - data).square()

        A, starts = as_torch(family), None
        if not parameters:  # the operator is known, and so is the start
            with torch.no_grad():
                starts = torch.cat([method._start(A, part) for part in data.split(in_memory(A))])
        free: list[Tensor] = []
        if np.isfinite(self.mu):
            free += [p for p in module.parameters() if p.requires_grad]
        unknown = [value.requires_grad_() for value in parameters.values()]
        level = data[0].numel() * (self.noise_std or 0.0) ** 2
        size = max(1, _AT_ONCE * in_memory(A) // self._load)
        return Misfit(misfit, data, starts, free, unknown, mu=self.mu, level=level, size=size)

    def _minimise(self, objective: Misfit) -> list[dict[str, float]]:
        """Leave module and parameters where the objective is least, and tell the way."""
        history: list[dict[str, float]] = []

        def note(step: int, x: Tensor) -> None:
            history.append({"step": step, "objective": objective.last})

        if objective.variables:
            start = objective.pack()[None]
            found = lbfgs(objective, start, max_steps=self.max_steps, tol=self.tol, callback=note)
            objective.unpack(found.x[0])
        return history

    def _with(self, module: nn.Module, operator: pylops.LinearOperator) -> LearnedReconstructor:
        """The estimator with other weights and another operator; the given one keeps its own."""
        method = copy.copy(self.estimator)
        method.module_ = module
        method.operator = method.operator_ = operator
        return method

    # ------------------------------------------------------------------ reconstruction
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if not self.per_image:
            return self.estimator_._reconstruct(A, data)
        return Solution.concatenate([self._alone(A, one) for one in data.split(1)])

    def _alone(self, A: LinearMap, data: Tensor) -> Solution:
        """The reconstruction with weights adapted to this image."""
        module = copy.deepcopy(self.estimator_.module_).to(data.device)
        self._minimise(self._objective(module, self.operator_, {}, single(data)))
        return self._with(module, self.operator_)._reconstruct(A, data)


class Misfit(Functional):
    """``max(mean_i misfit_i - level, 0) + mu ||theta - theta_0||^2`` of weights and parameters in a row.

    Each evaluation writes them into the tensors from which the misfit is computed.
    """

    smooth = True

    def __init__(
        self,
        misfit: Callable[[Tensor, Tensor | None], Tensor],
        data: Tensor,
        starts: Tensor | None,
        weights: list[Tensor],
        parameters: list[Tensor],
        *,
        mu: float,
        level: float,
        size: int,
    ) -> None:
        self.misfit, self.mu, self.level = misfit, mu, level
        self.parts = data.split(size)
        self.starts = [None] * len(self.parts) if starts is None else starts.split(size)
        self.variables = [*weights, *parameters]
        self.n_weights, self.n_data = sum(p.numel() for p in weights), len(data)
        self.anchor, self.last = self.pack(), float("nan")

    def __call__(self, x: Tensor) -> Tensor:
        return self.value_and_grad(x)[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.unpack(x[0])
        value, slopes = 0.0, [torch.zeros_like(v) for v in self.variables]
        with torch.enable_grad():
            for data, start in zip(self.parts, self.starts, strict=True):
                part = self.misfit(data, start).sum() / self.n_data
                found = torch.autograd.grad(part, self.variables, allow_unused=True)
                value += float(part.detach())
                slopes = [a if b is None else a + b for a, b in zip(slopes, found, strict=True)]
        change = x[0] - self.anchor
        change[self.n_weights :] = 0
        gradient = 2 * self.mu * change if self.n_weights else 0 * change
        if value > self.level:
            gradient = gradient + torch.cat([slope.flatten().to(x) for slope in slopes])
        penalty = self.mu * float(change.square().sum()) if self.n_weights else 0.0
        self.last = max(value - self.level, 0.0) + penalty
        return x.new_full((1,), self.last), gradient[None]

    def pack(self) -> Tensor:
        """Weights and parameters in a row."""
        rows = [v.detach().flatten().to(self.variables[0].device, torch.float64) for v in self.variables]
        return torch.cat(rows) if rows else torch.zeros(0)

    def unpack(self, row: Tensor) -> None:
        """Write them back."""
        parts = row.split([v.numel() for v in self.variables])
        with torch.no_grad():
            for v, part in zip(self.variables, parts, strict=True):
                v.copy_(part.view_as(v))

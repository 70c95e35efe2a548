"""Adapting what has been learned to another operator, from measurements alone."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pylops
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import Tensor, nn

from skinverse._batch import dot, norm
from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._learning import in_memory
from skinverse.estimators._validation import check_whole, seed_of, single
from skinverse.functionals import Functional
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution, lbfgs

# Data, and the images that a method starts from.
Part = tuple[Tensor, Tensor | None]
Explained = Callable[[Tensor, Tensor | None], Tensor]

# How many training steps' worth of images may be worked on at once; how far data are moved to see how much
# the reconstruction follows them, in units of the noise.
_AT_ONCE, _PROBE = 8, 0.3


class ModelAdaptation(BaseReconstructor):
    r"""Adapts a trained method to the operator that the data really come from, without true images.

    ``fit`` minimises, from the weights ``theta_0`` that were learned,

    ``max(mean_i ||y_i - B f(y_i; theta, B)||^2 - m noise_std^2, 0) + mu ||theta - theta_0||^2``

    where ``m`` is the number of measurements: what the noise explains is not fitted. Of a
    :class:`~skinverse.operators.ParametricOperator` the member is sought first, with the weights as they
    are: it has the least risk ``E ||B x - B f(y; theta_0, B)||^2``, by Stein's unbiased estimate, or the
    least ``||y - B f||^2`` without ``noise_std``. (Together, weights explain the data under any operator, and
    the fit alone prefers operators that lose too little.) Bounds of the method hold in ``predict`` only. The
    given estimator stays as it is.

    Parameters
    ----------
    estimator : LearnedReconstructor
        What has been fitted: post-processing, learned iterations, direct inversion or a deep equilibrium.
    operator : pylops.LinearOperator, ParametricOperator or None, default=None
        The operator ``B`` of the data; the parameters of a parametric one are where the search begins. None
        is the operator of the estimator.
    mu : float >= 0, default=1e-2
        Weight of what has been learned; the larger, the closer to it. An infinite one keeps it, and only the
        parameters of the operator are sought. Norms are sums over all measurements and all weights.
    noise_std : float or None, default=None
        Standard deviation of the noise, of complex noise in absolute value; None takes it as zero, and adapts
        to noise if there is any.
    per_image : bool, default=False
        Whether ``predict`` also adapts the weights to each image on its own, beginning with those of ``fit``.
        The operator stays that of ``fit``.
    max_steps : int, default=100
        Most steps of L-BFGS, for the operator and for the weights.
    tol : float, default=1e-5
        ``fit`` stops when a step changes the weights by less than ``tol`` relative to their norm.
    random_state : int, RandomState or None, default=0
        Seed of the directions in which Stein's estimate looks.
    device : str, default="auto"
        "cpu", "cuda", or CUDA where there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator ``B``; of a parametric one the member that was found.
    estimator_ : LearnedReconstructor
        The adapted method.
    history_ : list of dict
        For each step its ``phase``, "operator" or "weights", and the ``objective``.

    Raises
    ------
    TypeError
        If the estimator does not reconstruct differentiably in what it learned.
    ValueError
        If the operator of ``predict`` is not the one that was adapted to.

    Warns
    -----
    ConvergenceWarning
        If a search ended after ``max_steps``.

    References
    ----------
    D. Gilton, G. Ongie and R. Willett, Model adaptation for inverse problems in imaging, IEEE Transactions on
    Computational Imaging 7, 2021 (parametrize and perturb).
    C. M. Stein, Estimation of the mean of a multivariate normal distribution, The Annals of Statistics 9,
    1981.

    Examples
    --------
    >>> from skinverse import LearnedGradientDescent, ModelAdaptation, Trainer
    >>> from skinverse.datasets import make_problem
    >>> from skinverse.operators import GaussianBlur
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedGradientDescent(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> adapted = ModelAdaptation(method, GaussianBlur((16, 16), 1.0), noise_std=0.05).fit(Y_meas=data)
    >>> sorted(adapted.operator_.parameters)
    ['sigma']
    >>> adapted.predict(data).shape
    (8, 16, 16)
    """

    _needs: ClassVar[tuple[str, ...]] = ("Y_meas",)
    _paired: ClassVar[bool] = False
    _saved: ClassVar[tuple[str, ...]] = ("_asked",)
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
        random_state: Any = 0,
        device: str = "auto",
    ) -> None:
        self.estimator = estimator
        self.operator = operator
        self.mu = mu
        self.noise_std = noise_std
        self.per_image = per_image
        self.max_steps = max_steps
        self.tol = tol
        self.random_state = random_state
        self.device = device

    def __sklearn_clone__(self) -> Self:
        """A clone has the weights of the given estimator, not its parameters."""
        twin = super().__sklearn_clone__()
        twin.estimator = copy.copy(self.estimator)
        return twin

    # ------------------------------------------------------------------ fit
    def fit(self, X_true: Any = None, Y_meas: Any = None) -> Self:
        """Adapt to measurements.

        Parameters
        ----------
        X_true : None
            Not used; searches score with it.
        Y_meas : array-like or Tensor of shape (n_samples, *operator.dimsd)
            Measurements of the operator to adapt to.

        Returns
        -------
        object
            The fitted estimator.
        """
        if hasattr(self, "operator_"):
            del self.operator_  # the search begins with the operator that is given
        return super().fit(X_true, Y_meas)

    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        known: Any = getattr(self, "operator_", None)
        if known is None:
            fitted: Any = getattr(self.estimator, "operator_", None)
            return fitted if self.operator is None else self.operator
        if self.operator is not self._asked:
            raise ValueError(
                "ModelAdaptation: expected the operator that was adapted to, got another one: fit again"
            )
        return known

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert data is not None  # _needs
        self._check()
        self._asked = self.operator
        module, y = copy.deepcopy(self.estimator.module_).to(data.device), single(data)
        self.history_ = self._find_operator(module, y)
        history, found = self._adapt(module, y)
        self.history_ += history
        self._tell(found, "weights")
        self.estimator_ = self._with(module, self.operator_)
        self.estimator_._describe()

    def _find_operator(self, module: nn.Module, data: Tensor) -> list[dict[str, Any]]:
        """Leave the member of the family that predicts the data best as ``operator_``."""
        family: Any = self.operator_
        if not hasattr(family, "parameters"):
            return []
        noise_std = self.noise_std or None
        unknown = {name: v.to(data.device).clone().requires_grad_() for name, v in family.parameters.items()}
        A, method = family.at(unknown), self._with(module, family)
        parts = self._parts(A, method, data, noise_std)
        risk = Objective(explains(A, method, module), parts, list(unknown.values()), noise_std=noise_std)
        history, found = self._minimise(risk, "operator")
        self._tell(found, "operator")
        self.operator_ = family.with_parameters({name: value.detach() for name, value in unknown.items()})
        return history

    def _adapt(self, module: nn.Module, data: Tensor) -> tuple[list[dict[str, Any]], Solution]:
        """Move the weights until they explain the data under ``operator_``."""
        weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if np.isinf(self.mu) or not weights:
            return [], Solution.direct(data.new_zeros(1, 1))
        A, method = as_torch(self.operator_), self._with(module, self.operator_)
        level = data[0].numel() * (self.noise_std or 0.0) ** 2
        parts = self._parts(A, method, data, None)
        misfit = Objective(explains(A, method, module), parts, weights, mu=self.mu, level=level)
        return self._minimise(misfit, "weights")

    def _check(self) -> None:
        name = type(self.estimator).__name__
        hook = getattr(type(self.estimator), "_differentiable", None)
        if hook is None:
            inner = "; adapt its estimator_" if hasattr(self.estimator, "estimator_") else ""
            raise TypeError(f"ModelAdaptation: expected a method that learned from images, got {name}{inner}")
        if hook is LearnedReconstructor._differentiable:
            raise TypeError(
                f"ModelAdaptation: {name} does not reconstruct differentiably in what it learned; "
                "set_params(operator=...) takes it to another operator as it is"
            )
        if type(self.operator_) is pylops.Zero:
            raise ValueError(
                "operator: expected the operator of the data, got None, and the estimator has none"
            )
        if not hasattr(self.estimator, "module_"):
            raise NotFittedError(f"ModelAdaptation: expected a fitted estimator, got {name} before its fit")
        if not hasattr(self.operator_, "parameters") and holds_family(self.operator_):
            raise ValueError(
                "operator: its parameters would not be searched, since it is composed of a family and other "
                "operators: expected a family by itself, or an operator without one"
            )
        if not (isinstance(self.mu, (int, float, np.number)) and self.mu >= 0):
            raise ValueError(f"mu: expected a number >= 0, got {self.mu!r}")
        if self.noise_std is not None and not 0 <= self.noise_std < math.inf:
            raise ValueError(f"noise_std: expected a number >= 0 or None, got {self.noise_std!r}")
        check_whole(self.max_steps, "max_steps", 1)

    def _parts(
        self, A: LinearMap, method: LearnedReconstructor, data: Tensor, noise_std: float | None
    ) -> list[list[Part]]:
        """Few data at a time, with noise also some more of it, and the start of each where it is known."""
        generator, parts = torch.Generator(), []
        if noise_std is not None:
            generator.manual_seed(seed_of(self.random_state))
        for y in data.split(max(1, _AT_ONCE * in_memory(A) // self._load)):
            seen = [y]
            if noise_std is not None:
                more = torch.randn(y.shape, generator=generator, dtype=y.dtype)
                seen.append(y + _PROBE * noise_std * more.to(y.device))
            with torch.no_grad():
                parts.append([(z, None if A.requires_grad else method._start(A, z)) for z in seen])
        return parts

    def _minimise(self, objective: Objective, phase: str) -> tuple[list[dict[str, Any]], Solution]:
        """Leave the variables where the objective is least, and tell the way."""
        history: list[dict[str, Any]] = []

        def note(step: int, x: Tensor) -> None:
            value = objective.last if torch.equal(x, objective.seen) else float(objective(x))
            history.append({"phase": phase, "step": step, "objective": value})

        found = lbfgs(objective, objective.start, max_steps=self.max_steps, tol=self.tol, callback=note)
        objective.write(found.x)
        return history, replace(found, converged=found.converged & torch.isfinite(found.objective))

    def _tell(self, found: Solution, what: str) -> None:
        if not bool(found.converged.all()):
            warnings.warn(
                f"ModelAdaptation: the search for the {what} did not converge in {self.max_steps} steps "
                f"(last change {float(found.residual.max()):.1e}): raise max_steps or tol, or give noise_std",
                ConvergenceWarning,
                stacklevel=5,
            )

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
        _, found = self._adapt(module, single(data))
        solution = self._with(module, self.operator_)._reconstruct(A, data)
        converged, residual = solution.converged & found.converged, found.residual.to(solution.residual)
        return replace(solution, n_steps=found.n_steps, converged=converged, residual=residual)


def explains(A: LinearMap, method: LearnedReconstructor, module: nn.Module) -> Explained:
    """``A f(y)`` as a function of the data, and of the start of ``f`` where that is known."""

    def explained(y: Tensor, start: Tensor | None) -> Tensor:
        x0 = method._start(A, y) if start is None else start
        return A(method._differentiable(module, A, y, x0))

    return explained


def holds_family(operator: Any) -> bool:
    """Whether a pylops operator has unknown parameters somewhere inside."""
    waiting, seen = [operator], set()
    while waiting:
        one = waiting.pop()
        if hasattr(one, "parameters"):
            return True
        seen.add(id(one))
        held = [
            m
            for value in vars(one).values()
            for m in (value if isinstance(value, (tuple, list)) else [value])
        ]
        waiting += [m for m in held if isinstance(m, pylops.LinearOperator) and id(m) not in seen]
    return False


class Objective(Functional):
    """``max(mean_i risk_i - level, 0) + mu ||v - v_0||^2`` of all variables in a row, (1, n).

    Each evaluation writes the row into the tensors from which ``explained`` computes.
    """

    smooth = True

    def __init__(
        self,
        explained: Explained,
        parts: list[list[Part]],
        variables: list[Tensor],
        *,
        mu: float = 0.0,
        level: float = -math.inf,
        noise_std: float | None = None,
    ) -> None:
        self.explained, self.parts, self.variables = explained, parts, variables
        self.mu, self.level, self.noise_std = mu, level, noise_std
        self.n_data = sum(len(part[0][0]) for part in parts)
        rows = [v.detach().flatten().to(variables[0].device, torch.float64) for v in variables]
        self.start, self.last = torch.cat(rows)[None], math.nan
        self.seen = self.start

    def __call__(self, x: Tensor) -> Tensor:
        return self.value_and_grad(x)[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.write(x)
        self.seen, change = x, x - self.start
        value, gradient = 0.0, torch.zeros_like(x)
        for part in self.parts:
            with torch.enable_grad():
                risk = self.risk(part).sum() / self.n_data
                if not risk.requires_grad:
                    raise TypeError(
                        "ModelAdaptation: the reconstruction does not depend differentiably on what was "
                        "learned: a network that detaches its input or works under no_grad?"
                    )
                slopes = torch.autograd.grad(risk, self.variables, materialize_grads=True)
            value += float(risk.detach())
            gradient += torch.cat([slope.flatten().to(x) for slope in slopes])
        if value <= self.level:
            value, gradient = self.level, torch.zeros_like(x)
        self.last = value - max(self.level, 0.0) + self.mu * float(change.square().sum())
        return x.new_full((1,), self.last), gradient + 2 * self.mu * change

    def risk(self, part: list[Part]) -> Tensor:
        """``||y - A f(y)||^2``; with noise, Stein's unbiased estimate of ``||A x - A f(y)||^2``."""
        y, start = part[0]
        seen = self.explained(y, start)
        misfit = norm(seen - y).square()
        if self.noise_std is None:
            return misfit
        z, start = part[1]
        divergence = dot(z - y, self.explained(z, start) - seen) / (_PROBE * self.noise_std) ** 2
        return misfit + self.noise_std**2 * (2 * divergence - y[0].numel())

    def write(self, x: Tensor) -> None:
        """Hand the row out to the variables."""
        with torch.no_grad():
            for v, part in zip(self.variables, x[0].split([v.numel() for v in self.variables]), strict=True):
                v.copy_(part.view_as(v))

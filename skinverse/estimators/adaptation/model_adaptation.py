"""Adapting what has been learned to another operator, from measurements alone."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import pylops
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import Tensor, nn

from skinverse._parameters import (
    Elements,
    Flag,
    Instance,
    Null,
    OneOf,
    ParameterError,
    Real,
    fitted,
    parameter,
)
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import max_steps_parameter, noise_parameter, tol_parameter
from skinverse.estimators._learned import LearnedReconstructor, batch_size_for
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import gain_of
from skinverse.estimators._validation import double, seed_of, white_std
from skinverse.estimators.adaptation.objective import Objective, Prediction, Risk, misfit, stein_risk
from skinverse.noise import Gaussian
from skinverse.operators import LinearMap, ParametricOperator, as_torch
from skinverse.solvers import Solution, lbfgs

# How many training steps' worth of images may be worked on at once.
_AT_ONCE = 8


class ModelAdaptation(BaseReconstructor):
    r"""Adapts a trained method to the operator that the data really come from, without true images.

    With the reconstruction ``f(y; theta, B)`` of the method, ``fit`` minimises, from the weights ``theta_0``
    that were learned,

    ``max(mean_i ||y_i - B f(y_i; theta, B)||^2 - m std^2, 0) + mu ||theta - theta_0||^2``

    with the number ``m`` of measurements of an image: what the noise explains is not fitted.

    If ``B`` has ``unknown`` parameters, as members of a :class:`~skinverse.operators.ParametricOperator` and
    scans may, these are sought first, with the weights ``theta_0``. They minimise the risk
    ``E ||B x - B f(y; theta_0, B)||^2``, which Stein's unbiased estimate tells without the image ``x``, or
    ``||y - B f(y)||^2`` where the ``noise`` is unknown. Weights and parameters are not sought together,
    because the weights can explain the data under any operator, and the objective alone prefers operators
    under which too little of the image is lost.

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

    Notes
    -----
    The given estimator is not changed. Bounds that it has hold in ``predict`` only. ``fit`` learns nothing
    from ``X_true``; it is there for searches, which score with it. The adapted method keeps the unit and the
    level of its training.

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
    >>> family = GaussianBlur((16, 16), 1.0)
    >>> adapted = ModelAdaptation(family, estimator=method, noise=0.05, tol=1e-3).fit(Y_meas=data)
    >>> sorted(adapted.operator_.parameters)
    ['sigma']
    >>> adapted.predict(data).shape
    (8, 16, 16)
    """

    not_promised = {
        "channels": "Without an operator it is that of the adapted method, not the identity.",
        "colour": "Without an operator it is that of the adapted method, not the identity.",
        "volumes": "Without an operator it is that of the adapted method, not the identity.",
        "complex_images": "Without an operator it is that of the adapted method, not the identity.",
        "forgotten_operator": "Without an operator it is that of the adapted method, not the identity.",
        "lone_image": "Without an operator it is that of the adapted method, not the identity.",
        "other_sizes": "Without an operator it is that of the adapted method, not the identity.",
        "other_operator": (
            "What was adapted belongs to one operator: another one is refused until the next ``fit``."
        ),
        "sizes_told": "What was adapted belongs to one operator: another one is refused whatever its size.",
        "units": (
            "The adapted method keeps the unit of its own training: data times 1000 change the image by 43 "
            "relative."
        ),
        "level": (
            "The adapted method keeps the level of its own training: a level of 1 changes the rest of the "
            "image by 2e-3 relative."
        ),
        "phase": "A method that was trained on real images takes no complex ones.",
    }

    _needs: ClassVar[tuple[str, ...]] = ("Y_meas",)
    _paired: ClassVar[bool] = False
    # Weights are adapted to the operator of all measurements.
    _complete: ClassVar[bool] = True
    _shared: ClassVar[tuple[str, ...]] = ("operator", "estimator")
    _load: ClassVar[int] = 64

    operator: pylops.LinearOperator | None = parameter(
        default=None,
        kw_only=False,
        kind="pylops.LinearOperator, ParametricOperator or None",
        doc="""
        The operator ``B`` of the data; with the parameters of a parametric one the search begins. None is the
        operator of the estimator.""",
    )
    unknown: Sequence[str] | str = parameter(
        default="auto",
        allowed=OneOf("auto") | Elements(Instance(str, name="name"), name="names"),
        doc="""
        Names of the operator's parameters that are sought, such as ``("offset",)`` of a
        :func:`~skinverse.operators.parallel_beam`. "auto" is all of a family, such as a blur of unknown
        width, and none of a scan.""",
    )
    estimator: LearnedReconstructor | None = parameter(
        default=None,
        allowed=Instance(LearnedReconstructor, name="method that learned from images") | Null(),
        kind="estimator or None",
        doc="""
        Fitted method that is adapted, without which ``fit`` refuses: post-processing, learned iterations,
        direct inversion or a deep equilibrium. To adapt once more, give the ``estimator_`` of the first
        adaptation. Clones share what it has learned.""",
    )
    mu: float = parameter(
        default=1e-2,
        allowed=Real(ge=0, infinite=True),
        doc="""
        Weight of the distance to the weights that were learned. An infinite one keeps them, and only the
        parameters of the operator are sought. Squared norms are sums over all measurements, in units in which
        the training images have a standard deviation of 1 and ``B`` has the norm 1, and over all weights.""",
    )
    noise: Gaussian | float | None = noise_parameter(
        """It must be alike in all measurements. Where it is unknown it is taken for zero, and the weights are
        adapted to the noise, too.""",
        kind=Gaussian,
    )
    per_image: bool = parameter(
        default=False,
        allowed=Flag(),
        doc="""
        Whether ``predict`` also adapts the weights to each image on its own, beginning with those of
        ``fit``. The operator stays that of ``fit``.""",
    )
    max_steps: int = max_steps_parameter(
        100, "Largest number of steps of L-BFGS, for the operator and for the weights."
    )
    tol: float = tol_parameter(
        1e-5,
        "Tolerance: a search stops when a step changes the variables by less than ``tol`` of their norm.",
    )
    random_state: Any = parameter(
        default=0,
        kind="int, RandomState or None",
        doc="Seed of the directions in which Stein's estimate looks.",
    )

    operator_: pylops.LinearOperator = fitted(
        kind="pylops.LinearOperator",
        doc="The operator ``B``; of a parametric one the member that was found.",
    )
    estimator_: LearnedReconstructor = fitted(
        kind="estimator", allowed=Instance(LearnedReconstructor), doc="The adapted method."
    )
    fitted_operator_: pylops.LinearOperator | None = fitted(
        kind="pylops.LinearOperator or None", doc="Value of ``operator`` in ``fit``."
    )
    history_: list[dict[str, Any]] = fitted(
        kind="list of dict",
        allowed=Instance(list),
        doc="""
        One entry per step: its ``phase``, "operator" or "weights", the number ``step`` and the
        ``objective``.""",
    )

    def __sklearn_clone__(self) -> Self:
        """A clone has the weights of the given estimator, not its parameters."""
        twin = super().__sklearn_clone__()
        twin.estimator = copy.copy(self.estimator)
        return twin

    # ------------------------------------------------------------------ fit
    def _operator_for(self, images: Tensor | None, data: Tensor | None) -> pylops.LinearOperator | None:
        if not hasattr(self, "operator_"):
            return getattr(self.estimator, "operator_", None) if self.operator is None else self.operator
        if self.operator is not self.fitted_operator_:
            raise ValueError(
                "ModelAdaptation: expected the operator that was adapted to, got another one: fit again"
            )
        return self.operator_

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        self._check_estimator()
        assert problems is not None and data is not None  # _needs
        problems.check_single()
        self._check_operator()
        self.fitted_operator_, self.history_ = self.operator, []
        # In double precision: a line search that sees the rounding of single precision does not end.
        module, y = copy.deepcopy(self._given().module_).to(data.device).double(), double(data)
        unknown = self._sought()
        if unknown:
            self.operator_, solution, values = self._find_member(self.operator_, unknown, module, y)
            self._note("operator", solution, values)
        solution, values = self._adapt(module, y)
        self._note("weights", solution, values)
        self.estimator_ = self._with(module.float(), self.operator_)
        self.estimator_._describe()

    def _find_member(
        self, family: ParametricOperator, names: Sequence[str], module: nn.Module, data: Tensor
    ) -> tuple[ParametricOperator, Solution, list[float]]:
        """The member of the family that predicts the data best, with the weights as they are."""
        unknown = {name: family.parameters[name].to(data.device).clone().requires_grad_() for name in names}
        method, noise_std = self._with(module, family), self._noise_std(data)
        risks = self._risks(family.at(family.parameters | unknown), method, data, noise_std, self._unit())
        solution, values = self._minimise(Objective(risks, len(data), list(unknown.values())))
        member = family.with_parameters({name: value.detach() for name, value in unknown.items()})
        return member, solution, values

    def _adapt(self, module: nn.Module, data: Tensor) -> tuple[Solution, list[float]]:
        """Move the weights until they explain the data under ``operator_``."""
        weights = [p for p in module.parameters() if p.requires_grad]
        if math.isinf(self.mu) or not weights:
            return Solution.direct(data.new_zeros(1, 1)), []
        method = self._with(module, self.operator_)
        unit = self._unit()
        A = as_torch(self.operator_)
        risks = self._risks(A, method, data, None, unit)
        level = A.n_measured * ((self._noise_std(data) or 0.0) / unit) ** 2
        return self._minimise(Objective(risks, len(data), weights, mu=self.mu, level=level))

    def _risks(
        self, A: LinearMap, method: LearnedReconstructor, data: Tensor, noise_std: float | None, unit: float
    ) -> list[Risk]:
        """The risk of each image in a unit of the data, for few of them at a time."""
        predict = partial(prediction, A, method)
        parts = data.split(max(1, _AT_ONCE * batch_size_for(A) // self._load))
        if noise_std is None:
            return [misfit(predict, y, unit) for y in parts]
        generator = torch.Generator().manual_seed(seed_of(self.random_state))
        return [stein_risk(predict, y, A.n_measured, noise_std, unit, generator) for y in parts]

    def _noise_std(self, data: Tensor) -> float | None:
        """Standard deviation of the noise, of complex noise in absolute value."""
        return white_std(self.noise, "ModelAdaptation", data)

    def _unit(self) -> float:
        """The unit of data of images with a standard deviation of 1, under an operator of norm 1."""
        return gain_of(as_torch(self.operator_)) * self._given().spread_

    def _minimise(self, objective: Objective) -> tuple[Solution, list[float]]:
        """Leave the variables where the objective is least, and tell its values on the way."""
        values: list[float] = []
        solution = lbfgs(
            objective,
            objective.start,
            max_steps=self.max_steps,
            tol=self.tol,
            callback=lambda step, v: values.append(float(objective(v))),
        )
        objective.write(solution.x)
        finite = torch.isfinite(solution.objective)
        return replace(solution, converged=solution.converged & finite), values

    def _note(self, phase: str, solution: Solution, values: list[float]) -> None:
        """Put a search into the history, and warn if it did not end."""
        for step, value in enumerate(values, 1):
            self.history_.append({"phase": phase, "step": step, "objective": value})
        if not bool(solution.converged.all()):
            change = float(solution.residual.max())
            warnings.warn(
                f"ModelAdaptation: the search for the {phase} did not converge in {self.max_steps} steps "
                f"(last change {change:.1e}): raise max_steps or tol, or give noise",
                ConvergenceWarning,
                stacklevel=7,
            )

    # ------------------------------------------------------------------ what is given
    def _given(self) -> LearnedReconstructor:
        """The estimator to adapt."""
        if self.estimator is None:
            raise ValueError("ModelAdaptation adapts a fitted method: expected it as estimator=..., got None")
        return self.estimator

    def _check_estimator(self) -> None:
        """Refuse what has not been fitted, and what is no differentiable function of what it learned."""
        kind = type(self._given())
        if kind._differentiable is LearnedReconstructor._differentiable:
            raise TypeError(
                f"ModelAdaptation: {kind.__name__} does not reconstruct differentiably in what it learned; "
                "set_params(operator=...) takes it to another operator as it is"
            )
        if not hasattr(self.estimator, "module_"):
            raise NotFittedError(
                f"ModelAdaptation: expected a fitted estimator, got {kind.__name__} before its fit"
            )
        if self._given()._noise_model.counted:
            raise ParameterError(
                "estimator: ModelAdaptation compares all data by the same squares: expected a method for "
                f"Gaussian noise, got noise={self._given().noise!r}"
            )
        known = self._given().channel_axis
        if self.channel_axis not in (None, known):
            raise ParameterError(
                f"channel_axis: expected None or that of the adapted method, {known}, got {self.channel_axis}"
            )

    def _check_operator(self) -> None:
        """Refuse a lack of operators, and parameters that would not be sought."""
        if type(self.operator_) is pylops.Zero:  # what a method that was trained without an operator has
            raise ValueError(
                "operator: expected the operator of the data, got None, and the estimator has none"
            )
        if self.unknown == "auto" and not unknown_of(self.operator_) and contains_unknown(self.operator_):
            raise ValueError(
                "operator: its parameters would not be searched, since it is composed of a family and other "
                "operators: expected a family by itself, or an operator without one"
            )

    def _sought(self) -> Sequence[str]:
        """Names of the operator's parameters that are not known."""
        if self.unknown == "auto":
            return unknown_of(self.operator_)
        known = getattr(self.operator_, "parameters", {})
        for name in self.unknown:
            if name not in known:
                expected = ", ".join(known) or "none"
                raise ParameterError(
                    f"unknown: expected parameters of the operator, {expected}, got {name!r}"
                )
        return self.unknown

    def _with(self, module: nn.Module, operator: pylops.LinearOperator) -> LearnedReconstructor:
        """The estimator with other weights and another operator; the given one keeps its own."""
        method = copy.copy(self._given())
        method.module_ = module
        method.operator = method.operator_ = operator
        return method

    # ------------------------------------------------------------------ reconstruction
    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if not self.per_image:
            return self.estimator_._reconstructed(A, data)
        return Solution.concatenate([self._reconstruct_alone(A, one) for one in data.split(1)])

    def _reconstruct_alone(self, A: LinearMap, data: Tensor) -> Solution:
        """The reconstruction with weights adapted to this image."""
        module = copy.deepcopy(self.estimator_.module_).to(data.device).double()
        search, _ = self._adapt(module, double(data))
        solution = self._with(module.float(), self.operator_)._reconstructed(A, data)
        converged, residual = solution.converged & search.converged, search.residual.to(solution.residual)
        return replace(solution, n_steps=search.n_steps, converged=converged, residual=residual)


def prediction(A: LinearMap, method: LearnedReconstructor, y: Tensor) -> Prediction:
    """``A f(y)`` for the weights of the method and the parameters of ``A`` as they are when it is called."""
    restored = method._normalisation.restored

    def problem() -> tuple[Tensor, Tensor]:
        normalised = method._normalised(A, y)
        return normalised, method._start(A, normalised)

    def images(data: Tensor, start: Tensor) -> Tensor:
        return restored(method._differentiable(method.module_, A, data, start))

    if A.requires_grad:
        return lambda: A(images(*problem()))
    with torch.no_grad():
        known = problem()
    return lambda: A(images(*known))


def unknown_of(operator: pylops.LinearOperator) -> tuple[str, ...]:
    """Names of the parameters of an operator that are sought where nothing is said."""
    return getattr(operator, "unknown", ())


def contains_unknown(operator: pylops.LinearOperator) -> bool:
    """Whether an operator is composed of one with unknown parameters."""
    waiting, seen = [operator], set()
    while waiting:
        one = waiting.pop()
        if unknown_of(one):
            return True
        seen.add(id(one))
        held = [m for v in vars(one).values() for m in (v if isinstance(v, (tuple, list)) else [v])]
        waiting += [m for m in held if isinstance(m, pylops.LinearOperator) and id(m) not in seen]
    return False

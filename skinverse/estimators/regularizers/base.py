"""What the methods with a learned energy share: the reconstruction, and how it is described."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skinverse._defaults import copy_module
from skinverse._parameters import Flag, Integer, Null, OneOf, Real, fitted, parameter
from skinverse._tensors import expand, norm
from skinverse.energies import WeightedEnergy
from skinverse.estimators._declarations import (
    OF_COUNTS,
    bounds_parameter,
    max_steps_parameter,
    tol_parameter,
)
from skinverse.estimators._learned import Case, LearnedReconstructor, check_kinds
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import Interval, NormalisedFidelity, interval, within
from skinverse.estimators._validation import double
from skinverse.functionals import Box, EnergyFunctional, Functional
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, proximal_gradient

# How stability is measured: relative change of the data, images, steps, and the amplification that is told.
# After default trainings for denoising and CT it was 5 at most, also with a hundred times the weight.
_CHANGE, _N_MEASURED, _N_STEPS, _CHAOS = 1e-6, 2, 50, 1e3


class Part(NamedTuple):
    """A method for one operator and its noise, with the fidelity and its unit relative to a common one."""

    method: Any
    A: LinearMap
    fidelity: NormalisedFidelity
    unit: float


class EnergyReconstructor(LearnedReconstructor):
    """A learned energy as regulariser: minimises ``D(A x, y) + lam R(x)`` by gradient steps.

    The energy that is learned sees normalised images, and the fidelity is divided by ``||A||^2``.

    A method declares ``energy``, ``lam``, ``solver`` and ``patch_size``, and how it is trained.
    """

    _load: ClassVar[int] = 8
    _reads_rows: ClassVar[bool] = True
    lam: float | str
    solver: str

    pretraining: bool = parameter(
        default=True,
        allowed=Flag(),
        doc="""
        Whether the energy first learns to denoise true images by one gradient step, ``x = z - grad R(z)``,
        where the noise is a fifth of their standard deviation.""",
    )
    patch_size: int | None = parameter(
        default=64,
        allowed=Integer(ge=1) | Null(),
        doc="""
        Side of the patches to train on, in pixels, which are flipped and transposed at random; None trains on
        whole images as they are.""",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter(OF_COUNTS)
    max_steps: int = max_steps_parameter(500, "Largest number of iterations of a reconstruction.")
    tol: float = tol_parameter(1e-4, "Relative change by one step at which an image stops.")

    module_: WeightedEnergy = fitted(kind="nn.Module", doc="The trained energy.")
    fitted_lam_: float | str = fitted(
        allowed=Real(ge=0) | OneOf("auto", "fit"), doc="Value of ``lam`` in ``fit``."
    )
    n_channels_: int = fitted(
        allowed=Integer(ge=1), doc="Number of real channels of the images; a complex channel counts twice."
    )
    amplification_: float | None = fitted(
        allowed=Real(ge=0) | Null(),
        doc="""
        How many times larger than a change of the data, by 1e-6, the change of the reconstruction is, both
        relative and of normalised images: measured at two of the measurements of ``fit``; None where the
        objective is known to be convex. ``fit`` warns where it exceeds 1000: then there are many minima, and
        rounding chooses.""",
    )
    real_: bool = fitted(
        allowed=Flag(),
        doc="Whether the images of ``fit`` were real. If so, reconstructions under an operator are real too.",
    )

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        check_kinds(problems, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), self._channels(images[:1]).shape[1]
        super()._fit(problems, images, data)
        self.fitted_lam_ = self.lam

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``, where a reconstruction starts."""
        return self._first_images(A, data, None, real=self.real_ and not A.identity).x

    @property
    def _interval(self) -> Interval:
        return interval(self.bounds, self._noise_model)

    @property
    def _normalised_bounds(self) -> Interval:
        return self._normalisation.of_bounds(self._interval)

    def _restored(self, solution: Solution) -> Solution:
        solution = super()._restored(solution)
        return replace(solution, x=within(solution.x, self._interval))

    def _regularizer(self, scale: float = 1.0, *, like: Tensor | None = None) -> Functional:
        """``R(s x) / s^2``, for reconstructions, in the precision and on the device of the images."""
        module: Any = self.module_
        if like is not None:
            module = copy_module(module).to(like.device, like.dtype.to_real())
        if scale != 1.0:
            module = WeightedEnergy(module, scale=scale).to(module.log_scale)
        with torch.no_grad():  # or each Hessian would also be one of the filters
            energy = module.prepared()
        return EnergyFunctional(energy, self.channel_axis)

    def _descend(self, objective: Functional, x0: Tensor, tol: float | None = None) -> Solution:
        """Minimise within the bounds by gradient steps."""
        bounds = self._normalised_bounds
        if bounds is not None:
            objective = objective + Box(*bounds)
        solve = accelerated_gradient if self.solver == "accelerated" else proximal_gradient
        return solve(objective, x0, max_steps=self.max_steps, tol=self.tol if tol is None else tol)

    def _parts(self, problems: Problems) -> list[Part]:
        """The fidelity of each problem, and its unit relative to that of one of them."""
        cases = self._cases(problems)
        fidelities = [case.method._fidelity(case.A) for case in cases]
        unit = median_low(fidelity.unit for fidelity in fidelities)
        return [Part(*c, f, f.unit / unit) for c, f in zip(cases, fidelities, strict=True)]

    def _starts_under(self, problems: Problems, parts: Sequence[Part], which: Tensor, data: Tensor) -> Tensor:
        """Where reconstructions of a few images start."""
        return problems.each(lambda part, y: part.method._start(part.A, y), parts, which, data)

    def _misfit(self, problems: Problems, parts: Sequence[Part], which: Tensor, data: Tensor) -> Functional:
        """The fidelity of images, each under its own problem, in one unit."""

        def in_one_unit(part: Part, y: Tensor) -> Functional:
            return part.fidelity(y) if part.unit == 1 else part.unit * part.fidelity(y)

        return problems.each_functional(in_one_unit, parts, which, data)

    def _measure_amplification(self, problems: Problems, data: Tensor, weak_convexity: float | None) -> None:
        """Reconstruct twice, from data that hardly differ, and warn where the images do."""
        self.amplification_ = None
        if weak_convexity == 0:
            return
        twin, y = copy.copy(self), double(data[:_N_MEASURED])
        twin.max_steps, twin.tol = min(_N_STEPS, self.max_steps), 0.0
        rng = torch.Generator("cpu").manual_seed(0)

        def reconstruct(case: Case, y: Tensor) -> Tensor:
            """Two images of each, side by side."""
            y = case.method._normalised(case.A, y)
            noise = torch.randn(y.shape, generator=rng, dtype=y.dtype, device="cpu").to(y.device)
            moved = y + expand(_CHANGE * norm(y) / norm(noise), y) * noise
            return torch.stack([case.method._reconstruct(case.A, batch).x for batch in (y, moved)], 1)

        which = problems.which[:_N_MEASURED]
        x, x_moved = problems.each(reconstruct, twin._cases(problems), which, y).unbind(1)
        size = norm(x).clamp_min(torch.finfo(torch.float64).tiny)
        self.amplification_ = float((norm(x_moved - x) / size).max()) / _CHANGE
        if not self.amplification_ <= _CHAOS:
            known = "unknown" if weak_convexity is None else f"{weak_convexity:.3g}"
            warnings.warn(
                f"{type(self).__name__}: a change of the data by {_CHANGE:g} changes the reconstruction by "
                f"{_CHANGE * self.amplification_:.1e}, for the objective has many minima (weak convexity of "
                f"the energy: {known}): lower lam, or take a convex energy",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _check_rule(self) -> None:
        """Refuse a rule for ``lam`` that ``fit`` has not followed."""
        if isinstance(self.lam, str) and self.lam != self.fitted_lam_:
            raise ValueError(
                f"lam={self.lam!r} was {self.fitted_lam_!r} when fitted: fit again, or pass a number"
            )

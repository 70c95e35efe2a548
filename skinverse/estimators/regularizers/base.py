"""What the methods with a learned energy share: the reconstruction, and how it is described."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from skinverse._defaults import copy_module
from skinverse._parameters import Flag, Integer, Null, OneOf, Real, fitted, parameter
from skinverse.energies import WeightedEnergy
from skinverse.estimators._base import bounds_parameter, max_steps_parameter, tol_parameter
from skinverse.estimators._learned import LearnedReconstructor, check_kinds
from skinverse.estimators._units import Interval, within
from skinverse.functionals import Box, EnergyFunctional, Functional
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, proximal_gradient


class EnergyReconstructor(LearnedReconstructor):
    """A learned energy as regulariser: minimises ``1/2 ||A x - y||^2 + lam R(x)`` by gradient steps.

    The energy that is learned sees normalised images, and the fidelity is divided by ``||A||^2``.

    A method declares ``energy``, ``lam``, ``solver`` and ``patch_size``, and how it is trained.
    """

    _load: ClassVar[int] = 8
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
    bounds: tuple[float | None, float | None] | None = bounds_parameter()
    max_steps: int = max_steps_parameter(500, "Largest number of iterations of a reconstruction.")
    tol: float = tol_parameter(1e-4, "Relative change by one step at which an image stops.")

    module_: WeightedEnergy = fitted(kind="nn.Module", doc="The trained energy.")
    fitted_lam_: float | str = fitted(
        allowed=Real(ge=0) | OneOf("auto", "fit"), doc="Value of ``lam`` in ``fit``."
    )
    n_channels_: int = fitted(
        allowed=Integer(ge=1), doc="Number of real channels of the images; a complex channel counts twice."
    )
    real_: bool = fitted(
        allowed=Flag(),
        doc="Whether the images of ``fit`` were real. If so, reconstructions under an operator are real too.",
    )

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert A is not None and images is not None and data is not None  # _needs
        check_kinds(A, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), self._channels(images[:1]).shape[1]
        super()._fit(A, images, data)
        self.fitted_lam_ = self.lam

    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``, where a reconstruction starts."""
        return self._first_images(A, data, None, real=self.real_ and not A.identity).x

    @property
    def _normalised_bounds(self) -> Interval:
        return self._normalisation.of_bounds(self.bounds)

    def _restored(self, solution: Solution) -> Solution:
        solution = super()._restored(solution)
        return replace(solution, x=within(solution.x, self.bounds))

    def _regularizer(self, scale: float = 1.0, *, like: Tensor | None = None) -> Functional:
        """``R(s x) / s^2``, in the precision and on the device of the images."""
        module: Any = self.module_
        if like is not None:
            module = copy_module(module).to(like.device, like.dtype.to_real())
        if scale == 1.0:
            return EnergyFunctional(module, self.channel_axis)
        scaled = WeightedEnergy(module, scale=scale).to(module.log_scale)
        return EnergyFunctional(scaled, self.channel_axis)

    def _descend(self, objective: Functional, x0: Tensor, tol: float | None = None) -> Solution:
        """Minimise within the bounds by gradient steps."""
        bounds = self._normalised_bounds
        if bounds is not None:
            objective = objective + Box(*bounds)
        solve = accelerated_gradient if self.solver == "accelerated" else proximal_gradient
        return solve(objective, x0, max_steps=self.max_steps, tol=self.tol if tol is None else tol)

    def _check_rule(self) -> None:
        """Refuse a rule for ``lam`` that ``fit`` has not followed."""
        if isinstance(self.lam, str) and self.lam != self.fitted_lam_:
            raise ValueError(
                f"lam={self.lam!r} was {self.fitted_lam_!r} when fitted: fit again, or pass a number"
            )

"""Deep equilibrium reconstruction: a network iterated to its fixed point."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse._batches import is_read_later, rowwise
from skinverse._defaults import copy_module
from skinverse._parameters import (
    Flag,
    Instance,
    Integer,
    Null,
    OneOf,
    ParameterError,
    Real,
    fitted,
    parameter,
)
from skinverse._tensors import expand
from skinverse.estimators._declarations import (
    RELATIVE,
    max_steps_parameter,
    noise_of_squares_parameter,
    tol_parameter,
)
from skinverse.estimators._learned import (
    Case,
    Failures,
    LearnedReconstructor,
    analytic_inverse,
    check_kinds,
    held_out_psnr,
    mean_psnr,
)
from skinverse.estimators._problems import Problems
from skinverse.estimators.equilibrium.equation import BACKWARD, SOLVERS, Equation, solve
from skinverse.estimators.equilibrium.losses import EquilibriumLoss, LastEquilibria, denoiser_loss
from skinverse.estimators.equilibrium.module import Equilibrium
from skinverse.networks import lipschitz_constant, make_network
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, coordinate_search
from skinverse.training import Phase, Trainer, crop

_ITERATIONS = OneOf("proximal", "gradient", "admm", "contractive")
_NETWORKS = OneOf(
    "dncnn", "dncnn_c4", "dncnn_d4", "unet", "gradient_step", "gradient_step_c4", "gradient_step_d4"
)
_LAM = Real(gt=0) | OneOf("fit")
_LIPSCHITZ = Real(ge=0, lt=1)

# Held-out images to score.
_N_SCORED = 6
# First weight, and the factor by which weight, scale and step are tried.
_FIRST_LAM, _FACTOR = 0.1, 2.0
_UNSOLVED = (
    "DeepEquilibriumRecon: {n_failed} of {n_solved} images in training did not reach a fixed point "
    "(largest residual {worst}): raise max_steps or tol"
)
_UNSOLVED_DERIVATIVES = (
    "DeepEquilibriumRecon: {n_failed} of {n_solved} linear systems for derivatives in training were not "
    "solved (largest residual {worst}): raise jacobian_weight, which makes them easier, or take "
    'backward="jacobian_free"'
)


class DeepEquilibriumRecon(LearnedReconstructor):
    """Deep equilibrium model: the reconstruction is the fixed point of one learned iteration.

    With ``A`` scaled to norm 1 and a network ``h``, ``fit`` minimises ``sum ||z(y) - x||^2`` over pairs,
    where ``z(y)`` solves ``z = f(z, y)``. The derivative of ``z(y)`` follows from the equation. Training
    therefore needs the memory of one application of ``f``, however many steps the solver takes, and more
    steps after the training lead closer to the fixed point.

    See Also
    --------
    BilevelRegularizer : Learns a regulariser instead of a map, and is trained the same way.

    Notes
    -----
    A contraction has one fixed point. It is found from every start and depends continuously on ``y``; as the
    noise and ``lam`` tend to zero, the noise faster, it tends to a solution of ``A x = y``. For the other
    iterations nothing is proven: where no fixed point is reached, the best iterate is returned with a
    ``ConvergenceWarning``.

    The method's own training has two phases with 8 images in a step. In the first one the network learns to
    remove noise from the true images, in 2000 steps with a learning rate that falls from 2e-3 to 2e-4; then
    the scale of its input, ``lam`` and ``eta`` are chosen on a few pairs. In the second one the equilibrium
    is trained on pairs, in 300 steps with a learning rate that falls from 5e-4 to 5e-5 and gradients that are
    shortened to norm 1.

    What is learned is the map of normalised images, ``(x - level_) / spread_``, from ``(y - A level_) /
    spread_``. Trained on images and data times a number, or with a constant added to the images and ``A`` of
    it to the data, it gives the same reconstructions times it, or with it added. Images of another unit or
    level than those of the training need another training: the network is neither homogeneous nor does it
    keep constants.

    Under counts ``A^* A`` is ``A^* W A`` and ``A^* y`` is ``A^* W y``, with weights of at most 1 that
    ``noise`` describes: what is proven of a contraction holds for them, too.

    References
    ----------
    D. Gilton, G. Ongie and R. Willett, Deep equilibrium architectures for inverse problems in imaging, IEEE
    Transactions on Computational Imaging 7, 2021.
    D. Obmann and M. Haltmeier, Convergence analysis of equilibrium methods for inverse problems,
    arXiv:2306.01421, 2023.

    Examples
    --------
    >>> from skinverse import DeepEquilibriumRecon, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> brief = Trainer(max_epochs=2)
    >>> method = DeepEquilibriumRecon(A, iteration="contractive", trainer=brief, pretrainer=brief)
    >>> method.fit(images, data).predict(data).shape
    (8, 16, 16)
    >>> method.contraction_ < 1
    True
    """

    not_promised = {
        "phase": (
            "The network sees real and imaginary parts as two channels: the image changes by 4e-3 relative."
        ),
    }

    _load: ClassVar[int] = 16
    _reads_rows: ClassVar[bool] = True

    iteration: str = parameter(
        default="proximal",
        allowed=_ITERATIONS,
        doc="""
        Map ``f``:

        - ``"proximal"``: ``h(z - eta A^*(A z - y))`` with a learned step ``eta``;
        - ``"gradient"``: ``z - eta (A^*(A z - y) + lam (z - h(z)))`` with ``eta = 1 / (1 + lam)``;
        - ``"admm"``: ``x = (A^* A + lam)^-1 (A^* y + lam (z - u))``, ``z <- h(x + u)``, ``u <- u + x - z``;
        - ``"contractive"``: that of "gradient" with a network scaled to the Lipschitz constant
          ``lipschitz = c < 1``. It is a contraction with factor ``1 - eta lam (1 - c)`` for every ``A``, and
          its unique fixed point solves ``A^*(A x - y) + lam G(x) = 0`` with ``G(x) = x - h(x)``.""",
    )
    network: str | nn.Module | None = parameter(
        default=None,
        allowed=_NETWORKS | Instance(nn.Module, name="nn.Module") | Null(),
        kind="str, nn.Module or None",
        doc="""
        Network ``h``: ``"dncnn"``, ``"unet"`` or ``"gradient_step"``, which is 1-Lipschitz by construction;
        the first and the last also as ``"..._c4"`` and ``"..._d4"``, which commute with quarter turns, and
        with flips. A module takes (n, channels, height, width) to the same shape; :meth:`save` does not take
        it. None is "gradient_step" for a contraction and "dncnn" for other maps.""",
    )
    lam: float | str = parameter(
        default="fit",
        allowed=_LAM,
        doc='Weight of the network; "fit" learns it together with the network. "proximal" has none.',
    )
    lipschitz: float = parameter(
        default=0.95, allowed=_LIPSCHITZ, doc='Lipschitz constant ``c`` of the network for "contractive".'
    )
    solver: str = parameter(
        default="anderson", allowed=OneOf(*SOLVERS), doc="Method that finds the fixed point."
    )
    backward: str = parameter(
        default="gmres",
        allowed=OneOf(*BACKWARD, "unroll"),
        doc="""
        Method that solves the linear system of the derivative; "jacobian_free" replaces its matrix by the
        identity. "unroll" takes exactly ``max_steps`` steps instead, in training and in reconstruction, and
        differentiates them one by one.""",
    )
    jacobian_weight: float = parameter(
        default=0.0,
        allowed=Real(ge=0),
        doc="""
        Weight of the penalty ``||df/dz||_F^2`` per number at the fixed point, which is estimated with one
        random vector.""",
    )
    pretraining: bool = parameter(
        default=True, allowed=Flag(), doc="Whether the network first learns to denoise the true images."
    )
    pretrainer: Trainer = parameter(
        default_factory=Trainer,
        allowed=Instance(Trainer),
        doc="""
        How to train the denoiser; what is not set in it is the method's own choice, whatever ``trainer``
        says.""",
    )
    patch_size: int | None = parameter(
        default=64,
        allowed=Integer(ge=1) | Null(),
        doc="""
        Side of the patches on which the network learns to denoise, in pixels; None takes whole images.
        Without an operator the equilibrium is trained on patches too.""",
    )
    noise: NoiseModel | str | float | None = noise_of_squares_parameter(
        "The iteration sees measurements and operator with the roots of the weights; how strong the noise is "
        f"it learns. {inspect.cleandoc(RELATIVE)}"
    )
    max_steps: int = max_steps_parameter(100, "Largest number of steps to the fixed point.")
    tol: float = tol_parameter(
        1e-5,
        """
        Tolerance: an image stops when ``||f(z) - z|| < tol ||f(z)||``. Its distance to the fixed point of a
        contraction with factor ``q`` is then at most ``tol / (1 - q)`` times ``||f(z)||``.""",
    )

    module_: Equilibrium = fitted(kind="nn.Module", doc="The network with its scale, step and weight.")
    lam_: float | None = fitted(
        allowed=Real(gt=0) | Null(), doc='Weight of the network; None for "proximal", which has none.'
    )
    eta_: float | None = fitted(
        allowed=Real(gt=0) | Null(), doc='Step ``eta`` of the iteration; None for "admm", which has none.'
    )
    contraction_: float | None = fitted(
        allowed=Real(ge=0, le=1) | Null(),
        doc="""
        Proven factor by which each step comes closer to the fixed point; None where nothing is proven.""",
    )
    n_channels_: int = fitted(
        allowed=Integer(ge=1), doc="Number of real channels of the images; a complex channel counts twice."
    )
    real_: bool = fitted(allowed=Flag(), doc="Whether the images of ``fit`` were real.")
    fitted_iteration_: str = fitted(allowed=_ITERATIONS, doc="Value of ``iteration`` in ``fit``.")
    fitted_lam_: float | str = fitted(allowed=_LAM, doc="Value of ``lam`` in ``fit``.")
    fitted_lipschitz_: float = fitted(allowed=_LIPSCHITZ, doc="Value of ``lipschitz`` in ``fit``.")

    def _check_combination(self) -> None:
        if self.iteration != "contractive" or self.network is None:
            return
        if lipschitz_constant(self.network) is None:
            certified = [name for name in _NETWORKS.options if lipschitz_constant(name) is not None]
            raise ParameterError(
                'iteration="contractive" needs a network with a proven Lipschitz constant (its attribute '
                f"`lipschitz`): expected one of {certified}, got {self.network!r}"
            )

    # ------------------------------------------------------------------ training
    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        check_kinds(problems, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), self._channels(images[:1]).shape[1]
        self.fitted_iteration_, self.fitted_lam_ = self.iteration, self.lam
        self.fitted_lipschitz_ = self.lipschitz
        super()._fit(problems, images, data)

    def _make_module(self) -> nn.Module:
        contractive = self.fitted_iteration_ == "contractive"
        network = self.network or ("gradient_step" if contractive else "dncnn")
        return Equilibrium(
            make_network(network, self.n_channels_, self.n_axes_)
            if isinstance(network, str)
            else copy_module(network),
            self.fitted_iteration_,
            n_channels=self.n_channels_,
            lam=_FIRST_LAM if isinstance(self.fitted_lam_, str) else self.fitted_lam_,
            lipschitz=self.fitted_lipschitz_ if contractive else None,
        )

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        if isinstance(self.lam, str):
            module.log_lam.requires_grad_(True)
        else:
            module.log_lam.requires_grad_(False).fill_(math.log(self.lam))
        if self.pretraining and not self._continued:
            trainer = self.pretrainer.over(n_steps=2000, lr=2e-3, final_lr=2e-4)
            channels = rowwise(self._channels, images)
            yield Phase("pretraining", denoiser_loss(self.patch_size), (channels,), trainer)
            self._calibrate(module, problems, images[:_N_SCORED], data[:_N_SCORED])
        yield from self._equilibrium_phase(module, problems, images, data)

    def _equilibrium_phase(
        self, module: Equilibrium, problems: Problems, images: Tensor, data: Tensor
    ) -> Iterator[Phase]:
        """Train through the fixed point."""
        starts = self._starts(problems, data)
        patch_size = self.patch_size if self._measures_pixels(problems) else None
        # A patch is another one each time, and the unrolled iteration has to begin where it does in the end.
        # And what is read later is too much to keep.
        goes_on = patch_size is None and self.backward != "unroll" and not is_read_later(starts)
        last = LastEquilibria(module.variables(starts)) if goes_on else None
        failures, derivatives = Failures(_UNSOLVED), Failures(_UNSOLVED_DERIVATIVES)
        loss = EquilibriumLoss(
            problems,
            self._fidelities(problems),
            partial(self._solve, note=derivatives.count),
            jacobian_weight=self.jacobian_weight,
            patch_size=patch_size,
            channel_axis=self.channel_axis,
            last=last,
            failures=failures,
        )
        yield Phase(
            "equilibrium",
            loss,
            (images, data, problems.which, starts, torch.arange(len(data), device=data.device)),
            self.trainer.over(n_steps=300, lr=5e-4, final_lr=5e-5, max_grad_norm=1.0),
            held_out_psnr(
                self._reconstructions_under(problems),
                n_images=_N_SCORED,
                cropped=self._cropped_axes(problems),
            ),
            state=(failures, derivatives) if last is None else (failures, derivatives, last),
        )
        if self.backward != "unroll":
            failures.warn()
            derivatives.warn()

    def _calibrate(self, module: Equilibrium, problems: Problems, images: Tensor, data: Tensor) -> None:
        """Scale, step and weight to start from: the best reconstructions among those that converge."""
        x, y = crop(images, data, self._cropped_axes(problems))
        cases, which = self._cases(problems), problems.which[: len(y)]

        def reconstruct(case: Case, y: Tensor) -> Tensor:
            """The images; NaN where no fixed point is reached."""
            solution = case.method._reconstruct(case.A, y)
            return torch.where(expand(solution.converged, solution.x), solution.x, torch.nan)

        numbers = [module.log_scale]
        if self.iteration == "proximal":
            numbers.append(module.log_eta)
        elif self.lam == "fit":
            numbers.append(module.log_lam)
        module.eval()

        def quality(*values: float) -> float:
            for number, value in zip(numbers, values, strict=True):
                number.data.fill_(math.log(value))
            return mean_psnr(x, problems.each(reconstruct, cases, which, y))

        best, score = coordinate_search(quality, tuple(math.exp(n.item()) for n in numbers), _FACTOR)
        quality(*best)
        if score == -math.inf:
            warnings.warn(
                "DeepEquilibriumRecon: no scale, step or weight near those of the start gives an iteration "
                "that converges: raise max_steps or tol, or take another network",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _describe(self) -> None:
        lam, eta = (math.exp(number.item()) for number in (self.module_.log_lam, self.module_.log_eta))
        self.lam_ = None if self.fitted_iteration_ == "proximal" else lam
        self.eta_ = {"proximal": eta, "admm": None}.get(self.fitted_iteration_, 1 / (1 + lam))
        self.contraction_ = self.module_.contraction()

    # ------------------------------------------------------------------ reconstruction
    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``."""
        if A.identity:
            return data
        x = analytic_inverse(A, data)
        return x.real.contiguous() if self.real_ and x.is_complex() else x

    def _solve(
        self, equation: Equation, z0: Tensor, note: Callable[[Solution], None] | None = None
    ) -> Solution:
        return solve(
            equation,
            z0,
            solver=self.solver,
            backward=self.backward,
            max_steps=self.max_steps,
            tol=self.tol,
            note=note,
        )

    def _differentiable(self, module: Any, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        equation = self._equation(module, A, data, start)
        return equation.image(self._solve(equation, equation.z0).x)

    def _equation(self, module: Equilibrium, A: LinearMap, data: Tensor, start: Tensor) -> Equation:
        fidelity = self._fidelity(A)
        y, weights = fidelity.weighted_data(data), fidelity.relative_weights(data)
        return Equation(module, fidelity.A, y, start, self.channel_axis, weights)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        self._check_unchanged()
        x0 = self._start(A, data)
        module = copy.deepcopy(self.module_).to(x0.device, x0.dtype.to_real())
        with torch.no_grad():
            equation = self._equation(module, A, data, x0)
            solution = self._solve(equation, equation.z0)
            return replace(solution, x=equation.image(solution.x))

    def _check_unchanged(self) -> None:
        """Refuse to reconstruct with a map that the network was not trained for."""
        for name in ("iteration", "lam", "lipschitz"):
            value, fitted_value = getattr(self, name), getattr(self, f"fitted_{name}_")
            if value != fitted_value:
                raise ValueError(
                    f"{name}={value!r} was {fitted_value!r} when fitted, and the network was trained for "
                    "that: fit again"
                )

"""Bilevel learning: a regulariser trained so that the reconstruction is good."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from skinverse._batches import is_read_later
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
from skinverse._tensors import rms
from skinverse.energies import SmoothEnergy, WeightedEnergy
from skinverse.estimators._declarations import noise_parameter
from skinverse.estimators._learned import held_out_psnr
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import gain_of
from skinverse.estimators._validation import white_std
from skinverse.estimators.regularizers.base import EnergyReconstructor, Part
from skinverse.estimators.regularizers.data import back_projection
from skinverse.estimators.regularizers.energies import untrained
from skinverse.estimators.regularizers.losses import denoising_loss
from skinverse.estimators.regularizers.lower_level import LowerLevel, ProximalFidelity, choose_linear_solver
from skinverse.estimators.regularizers.smoothness import Smoothness, moduli
from skinverse.estimators.regularizers.upper_level import (
    FromTheStart,
    Inner,
    Patches,
    Sampler,
    UpperLevel,
    UpperLoss,
    WholeImages,
    absolute_error,
    squared_error,
    stein_risk,
)
from skinverse.estimators.regularizers.weights import fit_weight
from skinverse.functionals import Functional
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, proximal_gradient
from skinverse.training import Phase, Score, Trainer, crop

# Held-out images to score, images to measure the curvature at.
_N_SCORED, _N_MEASURED = 6, 4
# Data that are not complex.
_REAL = torch.empty(0, device="cpu")
# In place of a weight of zero, which has no logarithm.
_SMALLEST_WEIGHT = 1e-30


class BilevelRegularizer(EnergyReconstructor):
    """Regulariser trained through the reconstruction, with its weight: bilevel learning.

    Reconstruction minimises, for each image, ``D(A x, y) + lam r(x)`` with
    ``r(x) = (1 + alpha)/2 ||x||^2 - s(x)``. Training minimises, over the parameters of ``s`` and ``lam``,
    ``sum ||x_hat - x||^2 + xi (Lip(grad s) - beta)_+`` where ``x_hat`` is that reconstruction. The derivative
    of ``x_hat`` comes from the implicit function theorem, whatever solver found it and in however many steps.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam r(x)``; its ``lam`` is twice this one. The bound
    ``beta`` limits ``r`` and not ``lam r``, whose curvature grows with a learned ``lam``. For denoising
    ``lam_ weak_convexity_ < 1`` makes the minimum unique.

    The method's own training takes 400 steps of 8 images with a learning rate that falls from 1e-3 to 1e-4.
    Its own pretraining takes 2000 steps of 8 patches, with a learning rate from 1e-2 to 1e-3 for the ridges
    and from 1e-3 to 1e-4 for the others. Where ``beta`` is enforced by a penalty, the last epoch is kept,
    since held-out quality alone would choose the roughest regulariser. Without true images the score is minus
    the estimated risk. ``max_steps`` also bounds the iterations of the linear solver, and the training begins
    with ten times ``tol``.

    The energy that is learned, ``r'``, is one of normalised images: ``r(x) = spread_^2 r'((x - level_) /
    spread_)``, and the norms above are those of ``x - level_``. Trained on images and data times a number,
    the method gives the reconstructions times it; trained on images with a constant added, and data to match,
    it gives them with it added. What has been trained keeps its unit. Of a constant in later data, the ridges
    see nothing where ``alpha`` is 0 and ``beta`` is None.

    References
    ----------
    S. Nair and P. Schniter, Deep regularization via bi-level optimization, Asilomar Conference on Signals,
    Systems, and Computers, 2022.
    K. Kunisch and T. Pock, A bilevel optimization approach for parameter learning in variational models, SIAM
    Journal on Imaging Sciences 6, 2013.
    S. Ramani, T. Blu and M. Unser, Monte-Carlo SURE, IEEE Transactions on Image Processing 17, 2008.

    Examples
    --------
    >>> from skinverse import BilevelRegularizer, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("denoising", n_samples=8, size=16, noise=0.1, random_state=0)
    >>> brief = Trainer(max_epochs=2)
    >>> method = BilevelRegularizer(A, beta=1.0, pretrainer=brief, trainer=brief).fit(images, data)
    >>> method.predict(data).shape
    (8, 16, 16)
    >>> method.weak_convexity_
    0.0
    """

    not_promised = {
        "phase": (
            "The energy sees real and imaginary parts as two channels: the image changes by 3e-3 relative."
        ),
    }

    lam: float | str = parameter(
        default="fit",
        allowed=Real(ge=0) | OneOf("fit"),
        doc='Weight of the regulariser; "fit" learns it together with the regulariser.',
    )
    energy: str | nn.Module = parameter(
        default="ridge",
        allowed=OneOf("ridge", "convex_ridge", "convex", "red", "gradient_step")
        | Instance(nn.Module, name="nn.Module"),
        doc="""
        The energy ``e = r - alpha/2 ||x||^2``:

        - ``"ridge"``: filters and a learned potential, weakly convex, convex for ``beta <= 1``; the fastest;
        - ``"convex_ridge"``: the same with a convex potential;
        - ``"convex"``: input-convex network;
        - ``"red"``: ``1/2 <x, x - h(x)>`` with a residual network ``h``;
        - ``"gradient_step"``: ``1/2 ||x - h(x)||^2``;
        - a module, (n, channels, height, width) -> (n,), twice differentiable almost everywhere.""",
    )
    alpha: float = parameter(
        default=0.0, allowed=Real(ge=0), doc="Modulus of strong convexity that is added."
    )
    beta: float | None = parameter(
        default=None,
        allowed=Real(ge=0) | Null(),
        doc="""
        Bound on the Lipschitz constant of ``grad s``: small is convex and fast, large is accurate. The
        ridges obey it by construction, so that ``beta <= 1 + alpha`` is proven to be convex; the others are
        penalised where they violate it. None is no bound.""",
    )
    smoothness_weight: float = parameter(
        default=1.0, allowed=Real(ge=0), doc="Price ``xi`` of violating ``beta``."
    )
    hypergradient: str = parameter(
        default="auto",
        allowed=OneOf("auto", "cg", "minres", "jacobian_free"),
        doc="""
        Solver of the linear system in the derivative. "auto" is conjugate gradients where the objective is
        proven to be strongly convex, and MINRES elsewhere, which also solves singular systems;
        "jacobian_free" replaces the system by one gradient step.""",
    )
    loss: str = parameter(
        default="l2",
        allowed=OneOf("l2", "l1", "sure"),
        doc="""
        Quality of a reconstruction in the training: squared or absolute error, or, from measurements alone,
        Stein's unbiased estimate of ``||A x_hat - A x||^2`` with one random probe. "sure" needs ``noise``
        and no ``X_true``; if there are true images, they serve the pretraining, the first weight and the
        score.""",
    )
    pretrainer: Trainer = parameter(
        default_factory=Trainer,
        allowed=Instance(Trainer),
        doc="How to pretrain; what is not set in it is the method's own choice.",
    )
    patch_size: int | None = parameter(
        default=64,
        allowed=Integer(ge=1) | Null(),
        doc="""
        Side of the patches of the pretraining, and for denoising of all training, in pixels; None trains on
        whole images.""",
    )
    solver: str = parameter(
        default="accelerated",
        allowed=OneOf("accelerated", "gradient", "proximal"),
        doc="""
        Gradient descent with momentum or without, or proximal gradient steps, ``x <- prox(x - t grad r(x))``
        with the prox of the data term (conjugate gradients); all with line search.""",
    )
    noise: NoiseModel | str | float | None = noise_parameter('``loss="sure"`` needs one standard deviation.')

    module_: WeightedEnergy = fitted(kind="nn.Module", doc="The trained energy ``lam r``.")
    supervised_: bool = fitted(allowed=Flag(), doc="Whether ``fit`` had true images.")
    lam_: float = fitted(allowed=Real(ge=0), doc="Weight that ``fit`` has learned, or was given.")
    weak_convexity_: float = fitted(
        allowed=Real(ge=0),
        doc="Smallest ``rho`` known with ``r + rho/2 ||x||^2`` convex; 0 for a convex ``r``.",
    )
    smoothness_: float = fitted(allowed=Real(ge=0), doc="Lipschitz constant of ``grad s``.")
    certified_: bool = fitted(
        allowed=Flag(),
        doc="""
        Whether both are proven; otherwise they are measured at a few training images, by Lanczos' method, and
        may be larger elsewhere.""",
    )

    # ------------------------------------------------------------------ fit
    def _check_combination(self) -> None:
        if self.loss == "sure" and white_std(self.noise, 'loss="sure"', _REAL) is None:
            raise ParameterError('loss="sure" estimates the risk from the noise level: noise is missing')
        if self.solver == "proximal" and self._interval is not None:
            raise ParameterError('solver="proximal" has the prox of the data term only: bounds must be None')
        if self.solver == "proximal" and self._noise_model.counted:
            raise ParameterError('solver="proximal" has the prox of squares only: expected Gaussian noise')

    def _check_given(self, X_true: Any, Y_meas: Any) -> None:
        if self.loss != "sure":
            super()._check_given(X_true, Y_meas)
        elif Y_meas is None:
            raise ValueError('BilevelRegularizer.fit with loss="sure" learns from Y_meas, but it is missing')

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and data is not None  # _check_given
        self.supervised_, self.real_ = images is not None, False
        if images is None:
            images = self._starts(problems, data)
        super()._fit(problems, images, data)
        learned = self._common_unit(problems) * self._trained_weight()
        self.lam_ = learned if isinstance(self.lam, str) else float(self.lam)
        few = self._channels(self._normalisation.of_images(images[:_N_MEASURED]))
        # The Hessian of r(x) = spread^2 r'(x') is that of r'.
        self.weak_convexity_, self.smoothness_, self.certified_ = moduli(self.module_, few, self.patch_size)
        self._measure_amplification(problems, data, self.weak_convexity_)

    # ------------------------------------------------------------------ training
    def _make_module(self) -> nn.Module:
        convex = self.energy == "ridge" and self.beta is not None and self.beta <= 1
        energy = untrained("convex_ridge" if convex else self.energy, self.n_channels_, self.n_axes_)
        return WeightedEnergy(SmoothEnergy(energy, alpha=self.alpha, beta=self.beta))

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        starts, fresh = self._starts(problems, data), not self._continued
        module.log_weight.requires_grad_(self.lam == "fit")
        if fresh and self.pretraining and self.supervised_:
            lr = 1e-2 if self.energy in ("ridge", "convex_ridge") else 1e-3
            pretrainer = self.pretrainer.over(n_steps=2000, lr=lr, final_lr=lr / 10)
            yield Phase(
                "pretraining", denoising_loss(self.patch_size, self.channel_axis), (images,), pretrainer
            )
        with torch.no_grad():
            if not isinstance(self.lam, str):
                weight = self.lam / self._common_unit(problems)
                module.log_weight.fill_(math.log(max(weight, _SMALLEST_WEIGHT)))
            elif fresh:
                self._set_first_weight(module, problems, images, data, starts)

        trainer = self.trainer.over(n_steps=400, lr=1e-3, final_lr=1e-4)
        upper = self._upper_level(module, problems, data, starts, trainer)
        rows = images, data, problems.which, starts, torch.arange(len(data), device=data.device)
        # Held-out quality alone would choose the roughest regulariser: with a penalty the last one is kept.
        score = self._score(problems, module, upper) if upper.smoothness is None else None
        yield Phase("bilevel", upper, rows, trainer, score, state=upper.state)
        upper.lower.warn()

    def _set_first_weight(
        self, module: Any, problems: Problems, images: Tensor, data: Tensor, starts: Tensor
    ) -> None:
        """Calibrate weight and scale on a few pairs; without true images the weight follows a rule."""
        x, y, x0 = images[:_N_SCORED], data[:_N_SCORED], starts[:_N_SCORED]
        if self._measures_pixels(problems):
            x, y = crop(x, y, self._spatial_axes(problems.maps[0]))
            x0 = y
        parts, which = self._parts(problems), problems.which[:_N_SCORED]
        if self.supervised_:
            misfit, bounds = self._misfit(problems, parts, which, y), self._normalised_bounds
            lam, scale = fit_weight(misfit, self._regularizer, self._descend, x0, x, bounds)
        else:
            lam, scale = self._weight_by_rule(problems, parts, which, y, x0), 1.0
        module.log_scale.add_(math.log(scale))
        module.log_weight.add_(math.log(max(lam, _SMALLEST_WEIGHT)))

    def _weight_by_rule(
        self, problems: Problems, parts: Sequence[Part], which: Tensor, data: Tensor, x0: Tensor
    ) -> float:
        """``rms(A^* noise) / rms(grad r(x_0))``: both gradients of the objective are of one size."""

        def seen(part: Part, y: Tensor, x0: Tensor) -> Tensor:
            noise = back_projection(part.A, torch.randn_like(y), x0)
            return part.unit * part.method._normalised_noise(y) * noise

        noise = rms(problems.each(seen, parts, which, data, x0))
        slope = rms(self._regularizer().grad(x0))
        return noise / slope if slope > 1e-6 * noise else 1.0

    def _upper_level(
        self, module: Any, problems: Problems, data: Tensor, starts: Tensor, trainer: Trainer
    ) -> UpperLevel:
        n, smooth, pixels = len(data), module.energy, self._measures_pixels(problems)
        assert trainer.batch_size is not None  # filled in
        lower = LowerLevel(
            self._minimise,
            choose_linear_solver(self.hypergradient, smooth, denoising=pixels),
            self._normalised_bounds,
            max_steps=self.max_steps,
            tol=self.tol,
            n_steps=trainer.n_epochs(n) * math.ceil(n / trainer.batch_size),
        )
        smoothness = None
        if self.beta is not None and not smooth.certified and self.smoothness_weight > 0:
            smoothness = Smoothness(n, self.smoothness_weight, self.beta, self.patch_size)
        sampler = self._sampler(starts, pixels=pixels)
        inner = [
            Inner(part.fidelity, part.unit, part.method._upper_loss(part.A, data))
            for part in self._parts(problems)
        ]
        return UpperLevel(problems, inner, lower, sampler, smoothness)

    def _sampler(self, starts: Tensor, *, pixels: bool) -> Sampler:
        if pixels:
            return Patches(self.patch_size, self.channel_axis)
        if is_read_later(starts):
            return FromTheStart(self.channel_axis)
        return WholeImages(starts, self.channel_axis)

    def _upper_loss(self, A: LinearMap, data: Tensor) -> UpperLoss:
        if self.loss == "sure":
            return stein_risk(A, self._normalised_noise(data), gain_of(A), complex_data=data.is_complex())
        return squared_error if self.loss == "l2" else absolute_error

    def _normalised_noise(self, data: Tensor) -> float:
        std: Any = white_std(self.noise, 'loss="sure"', data)  # _check_combination
        return std / self.spread_

    def _unit(self, A: LinearMap) -> float:
        """The ``lam`` that weighs the normalised regulariser by one."""
        return self._fidelity(A).unit / self.spread_**2

    def _common_unit(self, problems: Problems) -> float:
        """The same, where problems have units of their own."""
        first, *_ = self._parts(problems)
        return first.method._unit(first.A) / first.unit

    def _score(self, problems: Problems, module: Any, upper: UpperLevel) -> Score:
        """PSNR of held-out reconstructions, or minus their risk where there are no true images."""
        if not self.supervised_:
            return lambda *rows: -upper.risk(module, *rows)
        parts = self._parts(problems)

        def reconstruct(y: Tensor, which: Tensor) -> Tensor:
            return problems.each(lambda p, y: p.method._solution(p.A, y, 1 / p.unit).x, parts, which, y)

        return held_out_psnr(reconstruct, n_images=_N_SCORED, cropped=self._cropped_axes(problems))

    # ------------------------------------------------------------------ reconstruction
    def _minimise(self, misfit: Any, R: Functional, x0: Tensor, tol: float) -> Solution:
        if self.solver == "proximal":
            return proximal_gradient(ProximalFidelity(misfit) + R, x0, max_steps=self.max_steps, tol=tol)
        return self._descend(misfit + R, x0, tol)

    def _solution(self, A: LinearMap, data: Tensor, relative: float = 1.0) -> Solution:
        """Reconstructions with a weight relative to the one that the trained energy has in it."""
        x0 = self._start(A, data)
        return self._minimise(self._fidelity(A)(data), relative * self._regularizer(like=x0), x0, self.tol)

    def _trained_weight(self) -> float:
        return math.exp(self.module_.log_weight.item())

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        self._check_rule()
        lam = self.lam_ if isinstance(self.lam, str) else float(self.lam)
        solution = self._solution(A, data, lam / (self._unit(A) * self._trained_weight()))
        return replace(solution, objective=solution.objective.double() * self._unit(A))

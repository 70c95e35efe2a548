"""Adversarial regularisation: an energy that tells true images from bad reconstructions, as regulariser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from skinverse._batches import is_read_later, rowwise, sampled
from skinverse._parameters import Instance, Integer, Null, OneOf, Real, fitted, parameter
from skinverse._tensors import spatial_axes
from skinverse.energies import WeightedEnergy
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import noise_parameter
from skinverse.estimators._learned import fit_initial, in_batches
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import NormalisedFidelity
from skinverse.estimators.regularizers.base import EnergyReconstructor, Part
from skinverse.estimators.regularizers.data import are_pairs, noise_in_images
from skinverse.estimators.regularizers.energies import untrained
from skinverse.estimators.regularizers.losses import (
    PENALTIES,
    adversarial_loss,
    denoising_loss,
    separation,
)
from skinverse.estimators.regularizers.weights import BestWeight, fit_weight, normalise
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient
from skinverse.training import Loss, Phase, Score, Trainer, crop, random_patches

# Steps and learning rate of each energy's own training.
_TRAININGS: dict[object, tuple[int, float]] = {
    "ridge": (3000, 1e-2),
    "convex_ridge": (3000, 1e-2),
    "lipschitz": (1500, 3e-3),
}
_TRAINING = 1500, 1e-3
# Held-out images to score; pairs to calibrate on; bad images whose gradients have norm 1.
_N_SCORED, _N_CALIBRATION, _N_NORMALISED = 6, 8, 8
# Steps of a partial reconstruction.
_PARTIAL = 10


class AdversarialRegularizer(EnergyReconstructor):
    """Regulariser that is trained to tell true images from bad reconstructions, without pairs.

    Reconstruction minimises, for each image, ``D(A x, y) + lam R(x)``. Before that the energy ``R``,
    called the critic in the literature, minimises
    ``E R(x) - E R(x_bad) + mu E (||grad R(x_mix)|| - 1)_+^2`` over true images ``x`` and bad ones
    ``x_bad = A_delta^+ y``, with ``x_mix`` at random between the two. The optimal 1-Lipschitz ``R`` measures
    the Wasserstein distance between both kinds, and under weak assumptions it is the distance to the set of
    true images. ``R`` is a sum over pixels, and training is on small patches.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam R(x)``; its ``lam`` is twice this one.

    The method's own training takes, in each phase, 3000 steps of 8 patches with a learning rate that falls
    from 1e-2 to 1e-3 for the ridges, 1500 steps from 3e-3 to 3e-4 for "lipschitz", and 1500 steps from 1e-3
    to 1e-4 for the others. The score that chooses the epoch is the PSNR in dB of held-out reconstructions,
    each at the best of several weights; without pairs it is the held-out separation
    ``(E R(x_bad) - E R(x)) / max ||grad R||``.

    The energy that is learned, ``R'``, is one of normalised images: ``R(x) = spread_ R'((x - level_) /
    spread_)``. Trained on images and data times a number ``c``, with ``lam`` times ``c`` where it is a
    number, the method gives the reconstructions times ``c``; trained on images with a constant added, and
    data to match, it gives them with it added. What has been trained keeps its unit. Of a constant in later
    data, the ridges see nothing.

    References
    ----------
    S. Lunz, O. Oktem and C.-B. Schonlieb, Adversarial regularizers in inverse problems, NeurIPS, 2018.

    Examples
    --------
    >>> from skinverse import AdversarialRegularizer, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("denoising", n_samples=8, size=16, noise=0.1, random_state=0)
    >>> method = AdversarialRegularizer(A, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> method.predict(data).shape
    (8, 16, 16)
    """

    not_promised = {
        "phase": (
            "The energy sees real and imaginary parts as two channels: the image changes by 0.2 relative."
        ),
    }

    _paired: ClassVar[bool] = False
    _reconstruction_params: ClassVar[tuple[str, ...]] = (
        "lam", "bounds", "solver", "noise", "max_steps", "tol", "verbose", "device",
    )  # fmt: skip

    lam: float | str = parameter(
        default="fit",
        allowed=Real(ge=0) | OneOf("auto", "fit"),
        doc="""
        Weight of the energy. ``R`` is scaled so that its gradient at bad images has a root mean square of 1
        per pixel; then ``lam`` compares with the noise in ``A^* y``. "auto" is the rule
        ``lam = E ||A^* noise|| / E ||grad R(x_bad)||``. "fit" is calibrated on pairs: ``lam`` and a scale
        ``s`` in ``R(s x) / s^2`` are those whose reconstructions are closest to some of the images; where the
        two sets are no pairs, it is the rule of "auto".""",
    )
    energy: str | nn.Module = parameter(
        default="ridge",
        allowed=OneOf("ridge", "convex_ridge", "conv", "convex", "lipschitz")
        | Instance(nn.Module, name="nn.Module"),
        doc="""
        The energy ``R``:

        - ``"ridge"``: filters and a learned potential, weakly convex; the fastest, gradient in closed form;
        - ``"convex_ridge"``: the same with a convex potential: one minimum, which is always found;
        - ``"conv"``: smooth convolutional network, the local regulariser;
        - ``"convex"``: input-convex network;
        - ``"lipschitz"``: network with a proven Lipschitz constant, trained without penalty and pretraining;
        - a module, (n, channels, height, width) -> (n,), smooth almost everywhere.""",
    )
    gradient_penalty: float = parameter(
        default=10.0, allowed=Real(ge=0), doc='Weight ``mu`` of the penalty; not used by "lipschitz".'
    )
    penalty: str = parameter(
        default="one_sided",
        allowed=OneOf(*PENALTIES),
        doc='Gradients that are penalised: those longer than 1, for "two_sided" also those shorter than 1.',
    )
    initial: BaseReconstructor | None = parameter(
        default=None,
        kind="estimator or None",
        doc="""
        Method that makes the bad images and the start of the reconstruction; it gets the operator and is
        fitted, on the same pairs where the sets are pairs, or is kept as it is inside scikit-learn's
        ``FrozenEstimator``. None is the data themselves for denoising, filtered back-projection or zero
        filling where there is one, else ``A^* (A A^* + delta I)^-1 y`` with ``delta = ||A||^2 / 100``.""",
    )
    n_recursions: int = parameter(
        default=0,
        allowed=Integer(ge=0),
        doc="""
        Number of times that partial reconstructions with the energy join the bad images and the training goes
        on.""",
    )
    solver: str = parameter(
        default="accelerated",
        allowed=OneOf("accelerated", "gradient"),
        doc="Gradient descent with momentum or without, both with line search.",
    )
    noise: NoiseModel | str | float | None = noise_parameter(
        """``lam="auto"`` asks how strong it is; where that is unknown, it measures the noise, directly on
        pairs, and otherwise, as if it were white, by what ``A^* y`` has in high frequencies and ``A^* A x``
        has not."""
    )

    initial_: BaseReconstructor | None = fitted(kind="estimator or None", doc="The fitted ``initial``.")
    paired_: bool = fitted(kind="bool", doc="Whether the measurements were those of the images, one by one.")
    lam_: float = fitted(allowed=Real(ge=0), doc="Weight that ``fit`` has chosen, or was given.")
    scale_: float = fitted(
        allowed=Real(gt=0), doc="Scale ``s`` that ``fit`` has chosen; 1 unless calibrated."
    )
    weak_convexity_: float | None = fitted(
        allowed=Real(ge=0) | Null(),
        doc="""
        Smallest ``rho`` known with ``R + rho/2 ||x||^2`` convex. For denoising ``lam_ rho <= 1`` makes the
        minimum unique.""",
    )
    lipschitz_: float | None = fitted(
        allowed=Real(ge=0) | Null(),
        doc="Proven Lipschitz constant of ``R`` on images of the operator's size.",
    )

    # ------------------------------------------------------------------ fit
    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        assert problems is not None and images is not None and data is not None  # _needs
        few = sampled(images, data, problems.which)
        self.paired_ = len(images) == len(data) and are_pairs(problems, *few)
        if self.paired_:
            problems.check_not_swapped(images, data)
        pairs: Any = (images, data) if self.paired_ else (None, None)
        self.initial_ = fit_initial(self, self.initial, problems, *pairs)
        super()._fit(problems, images, data)
        self.lam_, self.scale_ = self._weight_and_scale(problems, images, data)
        self._measure_amplification(problems, data, self.weak_convexity_)

    def _describe(self) -> None:
        assert self.operator_ is not None  # fitted on images
        # Of R(x) = spread R'(x'), whose gradient is that of R'.
        dims, known = self.operator_.dims, self.module_.weak_convexity()
        self.weak_convexity_ = None if known is None else known / self.spread_
        self.lipschitz_ = self.module_.lipschitz(
            math.prod(dims[axis] for axis in spatial_axes(len(dims), self.channel_axis))
        )

    def _weight_and_scale(self, problems: Problems, images: Tensor, data: Tensor) -> tuple[float, float]:
        if not isinstance(self.lam, str):
            return float(self.lam), 1.0
        x, y = self._normalised_rows(problems, images, data)
        parts = self._parts(problems)
        rule, unit = self._noise(problems, parts, x, y), parts[0].fidelity.unit_of_weight / parts[0].unit
        if rule == 0 or self.lam == "auto" or not self.paired_:
            return unit * rule, 1.0
        x, y = crop(x[:_N_CALIBRATION], y[:_N_CALIBRATION], self._cropped_axes(problems))
        which, bounds = problems.which[:_N_CALIBRATION], self._normalised_bounds
        misfit, x0 = self._misfit(problems, parts, which, y), self._starts_under(problems, parts, which, y)
        lam, scale = fit_weight(misfit, self._regularizer, self._descend, x0, x, bounds)
        return unit * lam, scale

    def _noise(self, problems: Problems, parts: Sequence[Part], images: Tensor, data: Tensor) -> float:
        images, data, which = sampled(images, data, problems.which)
        return noise_in_images(
            list(self._with_images(problems.of(which), parts, images, data)),
            self._spatial_axes(problems.maps[0]),
            known=self._noise_model.known,
            paired=self.paired_,
        )

    def _with_images(
        self, problems: Problems, parts: Sequence[Part], images: Tensor, data: Tensor
    ) -> Iterator[tuple[NormalisedFidelity, float, Tensor, Tensor]]:
        """The fidelity of each problem with its unit, images and data; any images where they are no pairs."""
        if not problems.several:
            yield parts[0].fidelity, 1.0, images, data
            return
        for problem, part, index in problems.groups(problems.which, parts):
            yield part.fidelity, part.unit, images[index % len(images)], problem.measured(data[index])

    # ------------------------------------------------------------------ training
    def _make_module(self) -> nn.Module:
        return WeightedEnergy(untrained(self.energy, self.n_channels_, self.n_axes_))

    def _phases(self, module: Any, problems: Problems, images: Tensor, data: Tensor) -> Iterator[Phase]:
        bad, parts = rowwise(self._channels, self._starts(problems, data)), self._parts(problems)
        few, best, trainer = bad[:_N_NORMALISED], BestWeight(), self._trainer()
        certified = module.lipschitz(1) is not None
        versions = rowwise(lambda x: x[:, None], bad)
        if self.n_recursions and is_read_later(versions):
            raise ValueError("n_recursions: expected 0 where measurements are read when they are needed")

        def phase(name: str, loss: Loss, versions: Tensor) -> Iterator[Phase]:
            rows = (images, versions, data, problems.which) if self.paired_ else (images, versions)
            score = self._score(problems, parts, best)
            yield Phase(name, loss, rows, trainer, score, paired=self.paired_, state=(best,))
            best.move_scale_to(module)

        if self.pretraining and not certified and not self._continued:
            yield from phase("pretraining", denoising_loss(self.patch_size, self.channel_axis), versions)
        module.log_weight.requires_grad_(not certified)  # the proven constant must not grow with the weight
        patches = random_patches(few, self.patch_size)
        normalise(module, patches, n_pixels=patches[0].numel())

        loss = adversarial_loss(
            self.gradient_penalty, self.penalty, self.patch_size, self.channel_axis, paired=self.paired_
        )
        yield from phase("adversarial", loss, versions)
        for k in range(self.n_recursions):
            normalise(module, few)
            versions = torch.cat([versions, self._partial(problems, parts, images, data)[:, None]], 1)
            yield from phase(f"recursion {k + 1}", loss, versions)
        normalise(module, few)

    def _trainer(self) -> Trainer:
        n_steps, lr = _TRAININGS.get(self.energy, _TRAINING)
        return self.trainer.over(n_steps=n_steps, lr=lr, final_lr=lr / 10)

    def _partial(self, problems: Problems, parts: Sequence[Part], images: Tensor, data: Tensor) -> Tensor:
        """Reconstructions after a few steps, with the energy as it is now, as real channels."""
        lam = self._noise(problems, parts, images, data)

        def a_few_steps(part: Part, y: Tensor) -> Tensor:
            objective = part.fidelity(y) + lam / part.unit * self._regularizer()
            start = part.method._start(part.A, y)
            return accelerated_gradient(objective, start, max_steps=_PARTIAL, tol=0.0).x

        def of_each(y: Tensor, which: Tensor) -> Tensor:
            return problems.each(a_few_steps, parts, which, y)

        return self._channels(in_batches(of_each, problems.maps[0], data, problems.which))

    def _score(self, problems: Problems, parts: Sequence[Part], best: BestWeight) -> Score:
        """What tells better epochs from worse ones: reconstructions of pairs, or the separation."""
        if not self.paired_:
            return lambda x, versions: separation(self.module_, self._channels(x), versions[:, 0])
        cropped = self._cropped_axes(problems)
        n = _N_SCORED if cropped else _N_SCORED // 2

        def psnr_at_best_weight(x: Tensor, _: Tensor, y: Tensor, which: Tensor) -> float:
            (x, y), which = crop(x[:n], y[:n], cropped), which[:n]
            misfit = self._misfit(problems, parts, which, y)
            x0 = self._starts_under(problems, parts, which, y)
            return best.search(misfit, self._regularizer, x0, x)

        return psnr_at_best_weight

    # ------------------------------------------------------------------ reconstruction
    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        return self._first_images(A, data, self.initial_, real=self.real_ and not A.identity).x

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        self._check_rule()
        by_rule = isinstance(self.lam, str)
        lam, scale = (self.lam_, self.scale_) if by_rule else (float(self.lam), 1.0)
        x0, fidelity = self._start(A, data), self._fidelity(A)
        weight = lam / fidelity.unit_of_weight
        solution = self._descend(fidelity(data) + weight * self._regularizer(scale, like=x0), x0)
        return replace(solution, objective=solution.objective.double() * fidelity.unit / self.spread_**2)

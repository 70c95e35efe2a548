"""Adversarial regularization: a learned critic as regularizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pylops
import torch
from sklearn.base import clone
from torch import Tensor, nn

from skinverse.estimators._adversarial_training import (
    PENALTIES,
    adversarial_loss,
    noise_level,
    recipe,
    separation,
)
from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._learning import (
    Found,
    Loss,
    analytic_inverse,
    are_pairs,
    denoising_loss,
    excerpt,
    fidelity,
    fit_weight,
    in_memory,
    is_number,
    learned,
    normalise,
    search,
    spread,
)
from skinverse.estimators._validation import check_bounds, check_lam, check_whole, single
from skinverse.functionals import (
    Box,
    ConvexCritic,
    Critic,
    Functional,
    ModuleCritic,
    NetworkCritic,
    RidgeCritic,
    WeightedCritic,
    as_channels,
)
from skinverse.networks import LipschitzCNN, LocalCNN
from skinverse.operators import LinearMap
from skinverse.solvers import (
    Solution,
    accelerated_gradient,
    gradient_descent,
    proximal_gradient,
)
from skinverse.training import Score, Trainer

_CRITICS: dict[str, Callable[[int], Critic]] = {
    "ridge": RidgeCritic,
    "convex_ridge": lambda n_channels: RidgeCritic(n_channels, convex=True),
    "conv": lambda n_channels: NetworkCritic(LocalCNN(n_channels)),
    "convex": ConvexCritic,
    "lipschitz": lambda n_channels: NetworkCritic(LipschitzCNN(n_channels)),
}
_SOLVERS = {"accelerated": accelerated_gradient, "gradient": gradient_descent}
# Held-out images to score; pairs to calibrate on; steps of a partial reconstruction.
_N_SCORED, _N_CALIBRATION, _PARTIAL = 6, 8, 10


class AdversarialRegularizer(LearnedReconstructor):
    """Learned critic as regularizer: trained to tell true images from bad reconstructions, without pairs.

    Reconstruction minimises, for each image, ``1/2 ||A x - y||^2 + lam R(x)``. Before that the critic ``R``
    minimises ``E R(x) - E R(x_bad) + mu E (||grad R(x_mix)|| - 1)_+^2`` over true images ``x`` and bad ones
    ``x_bad = A_delta^+ y``, with ``x_mix`` between the two at random: the optimal 1-Lipschitz ``R`` measures
    the Wasserstein distance between both kinds, and under weak assumptions the distance to the true images.
    ``R`` is a sum over pixels; training is on small patches, flipped and turned at random.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0, "auto", "fit" or None, default=None
        Weight of the critic. ``R`` is scaled so that its gradient at bad images has a root mean square of 1
        per pixel; then ``lam`` compares with the noise in ``A^* y``. "auto" is the rule
        ``lam = E ||A^* noise|| / E ||grad R(x_bad)||``, "fit" calibrates ``lam`` and a scale ``s`` in
        ``R(s x) / s^2`` on a few pairs by differentiating through the reconstruction. None is "fit" where
        the sets are pairs and "auto" where they are not.
    critic : {"ridge", "convex_ridge", "conv", "convex", "lipschitz"} or nn.Module, default="ridge"
        - ``"ridge"``: filters and a learned potential, weakly convex; the fastest, gradient in closed form;
        - ``"convex_ridge"``: the same with a convex potential: one minimum, found for certain;
        - ``"conv"``: smooth convolutional network, the local regularizer;
        - ``"convex"``: input-convex network;
        - ``"lipschitz"``: network with a proven Lipschitz constant, trained without penalty;
        - a module, (n, channels, height, width) -> (n,), smooth almost everywhere.
    gradient_penalty : float >= 0, default=10.0
        The ``mu``; not used by "lipschitz".
    penalty : {"one-sided", "two-sided"}, default="one-sided"
        Whether gradients shorter than 1 are penalised too.
    initial : estimator or None, default=None
        Makes the bad images and the start of the reconstruction. None is the data themselves for denoising,
        filtered back-projection (ramp) where there is one, else ``A^* (A A^* + delta I)^-1 y`` with
        ``delta = ||A||^2 / 100``.
    n_recursions : int >= 0, default=0
        How often partial reconstructions with the critic join the bad images and training goes on.
    pretraining : bool, default=True
        Whether ``R`` first learns to denoise true images by one gradient step, ``x = z - grad R(z)``, with
        noise of a fifth of their standard deviation. Not for "lipschitz".
    patch_size : int or None, default=64
        Side of the patches to train on; None trains on whole images, never turned.
    bounds : (low, high) or None, default=None
        Search images with values in this interval only; ``(0, None)`` is non-negativity.
    solver : {"accelerated", "gradient"}, default="accelerated"
        Gradient descent with momentum or without, both with line search.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one measurement, for ``lam="auto"``. None measures the noise: on
        pairs directly, else, as if it were white, by what ``A^* y`` has in high frequencies and ``A^* A x``
        has not.
    max_steps : int, default=500
        Most iterations of the reconstruction.
    tol : float, default=1e-4
        Relative change by one step at which an image stops.
    trainer : Trainer or None, default=None
        How to train; None is the critic's own recipe. Both phases take it.
    memory : str, path, joblib.Memory or None, default=None
        Where to keep trainings: a search over ``lam``, ``bounds``, ``solver``, ``max_steps`` or ``tol`` then
        trains once per fold.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights it finds.
    random_state : int, RandomState or None, default=0
        Seed of everything that is random in the training.
    verbose : int, default=0
        1 shows a progress bar.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator seen by ``fit``.
    module_ : nn.Module
        The trained critic.
    history_ : list of dict
        One entry per epoch: ``phase``, ``train_loss``, ``valid_loss``, ``valid_score``. The score chooses the
        epoch: PSNR in dB of held-out reconstructions, each at the best of several weights, or, without pairs,
        the held-out separation ``(E R(x_bad) - E R(x)) / max ||grad R||``.
    paired_ : bool
        Whether the measurements given were those of the images given, one by one.
    lam_, scale_ : float
        Weight and scale in use.
    weak_convexity_ : float or None
        Smallest ``rho`` known with ``R + rho/2 ||x||^2`` convex. For denoising ``lam_ rho <= 1`` makes the
        minimum unique.
    lipschitz_ : float or None
        Proven Lipschitz constant of ``R`` on images of the operator's size.
    n_channels_ : int
        Real channels of the images; a complex one counts twice.
    real_ : bool
        Whether the images were real. If so, reconstructions under an operator are real too.
    initial_ : estimator or None
        The fitted ``initial``.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam R(x)``; its ``lam`` is twice this one.

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

    _paired: ClassVar[bool] = False
    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_", "initial_", "paired_")
    _saved: ClassVar[tuple[str, ...]] = ("_rule",)
    _load: ClassVar[int] = 8
    module_: WeightedCritic
    _reconstruction_params: ClassVar[tuple[str, ...]] = (
        "lam", "bounds", "solver", "noise_std", "max_steps", "tol", "verbose", "device",
    )  # fmt: skip

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str | None = None,
        critic: str | nn.Module = "ridge",
        gradient_penalty: float = 10.0,
        penalty: str = "one-sided",
        initial: BaseReconstructor | None = None,
        n_recursions: int = 0,
        pretraining: bool = True,
        patch_size: int | None = 64,
        bounds: tuple[float | None, float | None] | None = None,
        solver: str = "accelerated",
        noise_std: float | None = None,
        max_steps: int = 500,
        tol: float = 1e-4,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.critic = critic
        self.gradient_penalty = gradient_penalty
        self.penalty = penalty
        self.initial = initial
        self.n_recursions = n_recursions
        self.pretraining = pretraining
        self.patch_size = patch_size
        self.bounds = bounds
        self.solver = solver
        self.noise_std = noise_std
        self.max_steps = max_steps
        self.tol = tol
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    # ------------------------------------------------------------------ fit
    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        assert A is not None and images is not None and data is not None  # _needs
        self._check()
        self.paired_ = are_pairs(A, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), as_channels(images[:1]).shape[1]
        self.initial_ = self._fit_initial(images, data)
        super()._fit(A, images, data)
        self.weak_convexity_ = self.module_.weak_convexity()
        self.lipschitz_ = self.module_.lipschitz(math.prod(A.dims[-2:]))
        self._rule, self.lam_, self.scale_ = self.lam, *self._choose_weight(A, images, data)

    def _check(self) -> None:
        check_lam(self.lam, self.noise_std, rules=("auto", "fit", None))
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)
        check_whole(self.n_recursions, "n_recursions", 0)
        check_whole(1 if self.patch_size is None else self.patch_size, "patch_size", 1)
        for name, known in (("solver", _SOLVERS), ("penalty", PENALTIES), ("critic", _CRITICS)):
            value = getattr(self, name)
            if value not in known and not isinstance(value, nn.Module):
                raise ValueError(f"{name}: expected one of {sorted(known)}, got {value!r}")
        if not self.gradient_penalty >= 0:
            raise ValueError(f"gradient_penalty: expected a number >= 0, got {self.gradient_penalty!r}")

    def _fit_initial(self, images: Tensor, data: Tensor) -> BaseReconstructor | None:
        if self.initial is None:
            return None
        initial = clone(self.initial).set_params(operator=self.operator_)
        return initial.fit(images, data) if self.paired_ else initial.fit()

    def _choose_weight(self, A: LinearMap, images: Tensor, data: Tensor) -> tuple[float, float]:
        """``lam`` and the scale ``s``."""
        if is_number(self.lam):
            return float(self.lam), 1.0
        lam = self._noise(A, images, data)
        if lam == 0 or self.lam == "auto" or (self.lam is None and not self.paired_):
            return lam, 1.0
        if not self.paired_:
            raise ValueError(
                'lam="fit" compares reconstructions with true images: X_true and Y_meas must be pairs'
            )
        x, y = (single(batch[:_N_CALIBRATION]) for batch in (images, data))
        if A.identity:
            x, y = excerpt(x, y)
        return fit_weight(fidelity(A, y), self._regularizer, self._solve, self._start(A, y), x, self.bounds)

    def _noise(self, A: LinearMap, images: Tensor, data: Tensor) -> float:
        return noise_level(A, images, data, self.noise_std, paired=self.paired_)

    # ------------------------------------------------------------------ training
    def _make_module(self) -> nn.Module:
        if isinstance(self.critic, str):
            return WeightedCritic(_CRITICS[self.critic](self.n_channels_))
        return WeightedCritic(ModuleCritic(copy.deepcopy(self.critic), self.n_channels_))

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        truth, bad = as_channels(images), self._bad(A, data)
        fresh, certified, unit = bool(module.log_scale == 0), module.lipschitz(1) is not None, spread(truth)
        if fresh:
            module.log_scale.fill_(-math.log(unit))
        trainer = self.trainer or recipe(self.critic, max(len(images), len(data)))
        members = torch.arange(len(data), device=data.device)
        history: list[dict[str, Any]] = []
        found: Found = {}

        def adversarial(bad: list[Tensor]) -> Loss:
            mu, penalty = self.gradient_penalty, self.penalty
            return adversarial_loss(torch.stack(bad), unit, self.patch_size, mu, penalty, paired=self.paired_)

        def run(phase: str, loss: Loss) -> None:
            nonlocal found
            score = self._score(A, images, data, bad, found)
            epochs = trainer.train(
                module, loss, truth, members, paired=self.paired_, score=score, seed=seed, verbose=verbose
            )
            history.extend({"phase": phase, **epoch} for epoch in epochs)
            if found:  # the scale at which the weights that were kept do best becomes theirs
                lam, scale = found[max(found)]
                module.log_scale += math.log(scale)
                found = {-math.inf: (lam, 1.0)}

        if self.pretraining and fresh and not certified:
            run("pretraining", denoising_loss(self.patch_size))
        module.log_weight.requires_grad_(not certified)  # a bound that may grow is none
        normalise(module, bad, patch_size=self.patch_size)
        versions = [bad]
        run("adversarial", adversarial(versions))
        for k in range(self.n_recursions):
            versions.append(self._partial(A, images, data))
            run(f"recursion {k + 1}", adversarial(versions))
        normalise(module, bad)
        return history

    def _bad(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y`` as real channels."""
        return as_channels(torch.cat([self._start(A, part) for part in data.split(in_memory(A))]))

    def _partial(self, A: LinearMap, images: Tensor, data: Tensor) -> Tensor:
        """Reconstructions on their way, with the critic as it is now."""
        normalise(self.module_, self._bad(A, data))
        lam, found = self._noise(A, images, data), []
        for part in data.split(in_memory(A)):
            objective = fidelity(A, part) + lam * self._regularizer()
            found.append(accelerated_gradient(objective, self._start(A, part), max_steps=_PARTIAL, tol=0.0).x)
        return as_channels(torch.cat(found))

    def _score(self, A: LinearMap, images: Tensor, data: Tensor, bad: Tensor, found: Found) -> Score:
        """What tells good weights from better ones: reconstructions of pairs, or separation."""
        if not self.paired_:
            return lambda truth, index: separation(self.module_, truth, bad[index])

        def best_psnr(_: Tensor, index: Tensor) -> float:
            few = index[: _N_SCORED if A.identity else _N_SCORED // 2]
            x, y = excerpt(images[few], data[few]) if A.identity else (images[few], data[few])
            return search(fidelity(A, y), self._regularizer, self._start(A, y), x, found)

        return best_psnr

    # ------------------------------------------------------------------ reconstruction
    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``."""
        if self.initial_ is not None:
            x = self.initial_._reconstruct(A, data).x
        else:
            x = data.clone() if A.identity else analytic_inverse(A, data)
        return x.real.contiguous() if self.real_ and x.is_complex() and not A.identity else x

    def _regularizer(self, scale: float = 1.0, *, like: Tensor | None = None) -> Functional:
        """``R(s x) / s^2``, in the precision of the images."""
        return learned(self.module_, scale, like)

    def _solve(self, objective: Functional, x0: Tensor) -> Solution:
        if self.bounds is not None:
            objective = objective + Box(*self.bounds)
        bounded_gradient = self.solver == "gradient" and self.bounds is not None
        solve = proximal_gradient if bounded_gradient else _SOLVERS[self.solver]
        return solve(objective, x0, max_steps=self.max_steps, tol=self.tol)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if not is_number(self.lam) and self.lam != self._rule:
            raise ValueError(f"lam={self.lam!r} was {self._rule!r} when fitted: fit again, or pass a number")
        lam, scale = (float(self.lam), 1.0) if is_number(self.lam) else (self.lam_, self.scale_)
        x0 = self._start(A, data)
        objective = fidelity(A, data) + lam * self._regularizer(scale, like=x0)
        return self._solve(objective, x0)

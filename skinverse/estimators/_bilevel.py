"""Bilevel learning: a regularizer trained so that the reconstruction is good."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pylops
import torch
from torch import Tensor, nn

from skinverse.estimators._base import LearnedReconstructor
from skinverse.estimators._bilevel_training import (
    LOSSES,
    REGULARIZERS,
    LowerLevel,
    ProximalFidelity,
    Smoothness,
    UpperLevel,
    linear_solver,
    make_critic,
    measure,
    noise_pulled,
)
from skinverse.estimators._learning import (
    analytic_inverse,
    denoising_loss,
    excerpt,
    fidelity,
    fit_weight,
    in_memory,
    is_number,
    learned,
    reached,
    recipe,
    rms,
    spread,
)
from skinverse.estimators._validation import check_bounds, check_lam, check_whole
from skinverse.functionals import (
    Box,
    Functional,
    SmoothCritic,
    WeightedCritic,
    as_channels,
)
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, proximal_gradient
from skinverse.training import Score, Trainer

_SOLVERS = ("accelerated", "gradient", "proximal")
_HYPERGRADIENTS = ("auto", "cg", "minres", "jacobian_free")
# Held-out images to score, images to measure the curvature at; steps of both phases if nobody says.
_N_SCORED, _N_MEASURED, _N_PRETRAINING, _N_STEPS = 6, 4, 2000, 400


class BilevelRegularizer(LearnedReconstructor):
    """Regularizer trained through the reconstruction, with its weight: bilevel learning.

    Reconstruction minimises, for each image, ``1/2 ||A x - y||^2 + lam r(x)`` with
    ``r(x) = (1 + alpha)/2 ||x||^2 - s(x)``. Training minimises, over the parameters of ``s`` and ``lam``,
    ``sum ||x_hat - x||^2 + xi (Lip(grad s) - beta)_+`` where ``x_hat`` is that reconstruction; its derivative
    comes from the implicit function theorem, whatever solver found it and however many steps it took.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0 or "fit", default="fit"
        Weight of the regularizer; "fit" learns it together with the regularizer.
    regularizer : {"ridge", "convex_ridge", "convex", "red", "gradient_step"} or nn.Module, default="ridge"
        The energy ``e = r - alpha/2 ||x||^2``:

        - ``"ridge"``: filters and a learned potential, weakly convex, convex for ``beta <= 1``; the fastest;
        - ``"convex_ridge"``: the same with a convex potential;
        - ``"convex"``: input-convex network;
        - ``"red"``: ``1/2 <x, x - h(x)>`` with a residual network ``h``;
        - ``"gradient_step"``: ``1/2 ||x - h(x)||^2``;
        - a module, (n, channels, height, width) -> (n,), twice differentiable almost everywhere.
    alpha : float >= 0, default=0.0
        Strong convexity that is added.
    beta : float >= 0 or None, default=None
        Bound on the Lipschitz constant of ``grad s``: small is convex and fast, large is accurate. The
        ridges obey it by construction, so that ``beta <= 1 + alpha`` is proven to be convex; the others are
        penalised where they violate it. None is no bound.
    smoothness_weight : float >= 0, default=1.0
        The price ``xi`` of violating ``beta``.
    hypergradient : {"auto", "cg", "minres", "jacobian_free"}, default="auto"
        Solver of the linear system behind the derivative, "auto" is conjugate gradients where ``r`` is proven
        to be convex and MINRES where not; "jacobian_free" replaces the system by one gradient step.
    loss : {"l2", "l1", "sure"}, default="l2"
        Squared or absolute error, or, from measurements alone, Stein's unbiased estimate of
        ``||A x_hat - A x||^2`` with one random probe; "sure" needs ``noise_std`` and no ``X_true``. If there
        are true images, they serve the pretraining, the first weight and the score.
    pretraining : bool, default=True
        Whether ``w r``, with some weight ``w``, first learns to denoise true images by one gradient step,
        ``x = z - w grad r(z)``.
    pretrainer : Trainer or None, default=None
        How; None is ``trainer``, and where that is None too, 2000 steps of 8 patches.
    patch_size : int or None, default=64
        Side of the patches of the pretraining, and for denoising of all training; None is whole images.
    bounds : (low, high) or None, default=None
        Search images with values in this interval only; ``(0, None)`` is non-negativity.
    solver : {"accelerated", "gradient", "proximal"}, default="accelerated"
        Gradient descent with momentum or without, or proximal gradient steps, ``x <- prox(x - t grad r(x))``
        with the prox of the data term (conjugate gradients); all with line search.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one measurement, for ``loss="sure"``.
    max_steps : int, default=500
        Most iterations of a reconstruction, and of a linear system.
    tol : float, default=1e-4
        Relative change by one step at which an image stops; training starts with ten times that.
    trainer : Trainer or None, default=None
        How to train; None is 400 steps of 8 images.
    memory : str, path, joblib.Memory or None, default=None
        Where to keep trainings.
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
        The trained energy ``lam r``.
    history_ : list of dict
        One entry per epoch: ``phase``, ``train_loss``, ``valid_loss``, ``valid_score`` (held-out PSNR in dB,
        or minus the risk where there are no true images), which chooses the epoch; under a penalty on the
        smoothness there is no score and the last epoch is kept.
    lam_ : float
        The weight found by or given to ``fit``.
    weak_convexity_ : float
        Smallest ``rho`` known with ``r + rho/2 ||x||^2`` convex; 0 for a convex ``r``.
    smoothness_ : float
        Lipschitz constant of ``grad s``.
    certified_ : bool
        Whether both are proven; otherwise they are measured at a few training images, by
        Lanczos' method, and may be larger elsewhere.
    n_channels_ : int
        Real channels of the images; a complex one counts twice.
    real_ : bool
        Whether the images were real. If so, reconstructions under an operator are real too.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam r(x)``; its ``lam`` is twice this one. With
    ``lam="fit"`` the product ``lam r`` may be as non-convex as it likes for ``beta > 1 + alpha``; for
    denoising ``lam_ weak_convexity_ < 1`` makes the minimum unique.

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
    >>> method = BilevelRegularizer(A, beta=1.0, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> method.predict(data).shape
    (8, 16, 16)
    >>> method.weak_convexity_
    0.0
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_", "_rule", "_blind")
    _saved: ClassVar[tuple[str, ...]] = ("_rule",)
    _load: ClassVar[int] = 8
    module_: WeightedCritic
    # The weight is part of what is learned.
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("verbose", "device")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = "fit",
        regularizer: str | nn.Module = "ridge",
        alpha: float = 0.0,
        beta: float | None = None,
        smoothness_weight: float = 1.0,
        hypergradient: str = "auto",
        loss: str = "l2",
        pretraining: bool = True,
        pretrainer: Trainer | None = None,
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
        self.regularizer = regularizer
        self.alpha = alpha
        self.beta = beta
        self.smoothness_weight = smoothness_weight
        self.hypergradient = hypergradient
        self.loss = loss
        self.pretraining = pretraining
        self.pretrainer = pretrainer
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
        assert A is not None and data is not None  # _needs
        self._check()
        self._rule, self._blind, self.real_ = self.lam, images is None, False
        if images is None:
            images = torch.cat([self._start(A, part) for part in data.split(in_memory(A))])
        self.real_, self.n_channels_ = not images.is_complex(), as_channels(images[:1]).shape[1]
        super()._fit(A, images, data)
        self.lam_ = math.exp(self.module_.log_weight.item()) if self.lam == "fit" else float(self.lam)
        self.weak_convexity_, self.smoothness_, self.certified_ = measure(
            self.module_, as_channels(images[:_N_MEASURED]), self.patch_size
        )

    def _check(self) -> None:
        check_lam(self.lam, self.noise_std, rules=("fit",))
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)
        check_whole(1 if self.patch_size is None else self.patch_size, "patch_size", 1)
        choices = {
            "solver": _SOLVERS,
            "loss": (*LOSSES, "sure"),
            "hypergradient": _HYPERGRADIENTS,
            "regularizer": REGULARIZERS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known and not isinstance(value, nn.Module):
                raise ValueError(f"{name}: expected one of {sorted(known)}, got {value!r}")
        for name in ("alpha", "smoothness_weight", "beta"):
            value = getattr(self, name)
            if not (value is None and name == "beta") and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
        if self.loss == "sure" and self.noise_std is None:
            raise ValueError('loss="sure" estimates the risk from the noise level: noise_std is missing')
        if self.solver == "proximal" and self.bounds is not None:
            raise ValueError('solver="proximal" has the prox of the data term only: bounds must be None')

    def _check_given(self, X_true: Any, Y_meas: Any) -> None:
        measurements_do = self.loss == "sure" and X_true is None
        if measurements_do and Y_meas is None:
            raise ValueError('BilevelRegularizer.fit with loss="sure" learns from Y_meas, but it is missing')
        super()._check_given(Y_meas if measurements_do else X_true, Y_meas)

    def _check_pairs(self, images: Tensor | None, data: Tensor | None) -> None:
        if images is not None and data is not None and len(images) != len(data):
            raise ValueError(
                f"BilevelRegularizer.fit expects pairs, but X_true holds {len(images)} images and Y_meas "
                f"{len(data)} measurements: AdversarialRegularizer learns from sets that are no pairs"
            )

    # ------------------------------------------------------------------ training
    def _make_module(self) -> nn.Module:
        critic = make_critic(self.regularizer, self.n_channels_, self.beta)
        return WeightedCritic(SmoothCritic(critic, alpha=self.alpha, beta=self.beta))

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = []
        members = torch.arange(len(data), device=data.device)
        fresh, unit = bool(module.log_scale == 0), spread(as_channels(images))
        starts = torch.cat([self._start(A, part) for part in data.split(in_memory(A))])

        def run(phase: str, trainer: Trainer, loss: Any, truth: Tensor, score: Score | None) -> None:
            epochs = trainer.train(module, loss, truth, members, score=score, seed=seed, verbose=verbose)
            history.extend({"phase": phase, **epoch} for epoch in epochs)

        module.log_weight.requires_grad_(self.lam == "fit")
        if fresh:
            module.log_scale.fill_(-math.log(unit))
            if self.pretraining and not self._blind:
                loss = denoising_loss(self.patch_size)
                lr = 1e-2 if self.regularizer in ("ridge", "convex_ridge") else 1e-3
                pretrainer = self.pretrainer or self.trainer or recipe(_N_PRETRAINING, lr, len(data))
                run("pretraining", pretrainer, loss, as_channels(images), None)
            if self.lam == "fit":
                with torch.no_grad():
                    self._weigh(module, A, images, data, starts)
        if is_number(self.lam):
            module.log_weight.data.fill_(math.log(max(float(self.lam), 1e-30)))
        trainer = self.trainer or recipe(_N_STEPS, 1e-3, len(data))
        upper = self._upper_level(module, A, data, starts, unit, trainer)
        # Held-out quality alone would choose the roughest regularizer: with a penalty the last one is kept.
        score = self._score(A, data, upper) if upper.smoothness is None else None
        run("bilevel", trainer, upper, images, score)
        upper.lower.warn()
        return history

    def _weigh(self, module: Any, A: LinearMap, images: Tensor, data: Tensor, starts: Tensor) -> None:
        """Weight and scale to start from."""
        x, y, x0 = images[:_N_SCORED], data[:_N_SCORED], starts[:_N_SCORED]
        if A.identity:
            x, y = excerpt(x, y)
            x0 = y
        if self._blind:
            noise, slope, scale = (
                noise_pulled(A, y, x0, self.noise_std),
                rms(self._regularizer().grad(x0)),
                1.0,
            )
            lam = noise / slope if slope > 1e-6 * noise else 1.0
        else:
            lam, scale = fit_weight(fidelity(A, y), self._regularizer, self._descend, x0, x, self.bounds)
        module.log_scale += math.log(scale)
        module.log_weight += math.log(max(lam, 1e-30))

    def _upper_level(
        self, module: Any, A: LinearMap, data: Tensor, starts: Tensor, unit: float, trainer: Trainer
    ) -> UpperLevel:
        smooth = module.critic
        hypergradient = linear_solver(self.hypergradient, smooth)
        penalised = self.beta is not None and not smooth.certified and self.smoothness_weight > 0
        return UpperLevel(
            LowerLevel(self._solve, hypergradient, self.bounds, self.max_steps, self.tol),
            A,
            data,
            starts,
            loss=self.loss,
            noise_std=self.noise_std,
            unit=unit,
            patch_size=self.patch_size,
            smoothness=Smoothness(len(data), self.smoothness_weight, self.patch_size) if penalised else None,
            n_calls=trainer.max_epochs * math.ceil(len(data) / trainer.batch_size),
        )

    def _score(self, A: LinearMap, data: Tensor, upper: UpperLevel) -> Score:
        """PSNR of held-out reconstructions, or minus their risk where there is no truth."""
        if self._blind:
            return lambda images, index: -upper.risk(self.module_, images, index)

        def held_out_psnr(images: Tensor, index: Tensor) -> float:
            x, y = images[:_N_SCORED], data[index[:_N_SCORED]]
            x, y = excerpt(x, y) if A.identity else (x, y)
            return reached(x, self._reconstruct(A, y).x)

        return held_out_psnr

    # ------------------------------------------------------------------ reconstruction
    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``."""
        x = data.clone() if A.identity else analytic_inverse(A, data)
        return x.real.contiguous() if self.real_ and x.is_complex() and not A.identity else x

    def _regularizer(self, scale: float = 1.0, *, like: Tensor | None = None) -> Functional:
        """``lam r(s x) / s^2``, in the precision of the images."""
        return learned(self.module_, scale, like)

    def _solve(self, misfit: Any, R: Functional, x0: Tensor, tol: float) -> Solution:
        if self.solver == "proximal":
            misfit = ProximalFidelity(misfit)
            return proximal_gradient(misfit + R, x0, max_steps=self.max_steps, tol=tol)
        return self._descend(misfit + R, x0, tol)

    def _descend(self, objective: Functional, x0: Tensor, tol: float | None = None) -> Solution:
        if self.bounds is not None:
            objective = objective + Box(*self.bounds)
        solve = accelerated_gradient if self.solver == "accelerated" else proximal_gradient
        return solve(objective, x0, max_steps=self.max_steps, tol=self.tol if tol is None else tol)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if not is_number(self.lam) and self.lam != self._rule:
            raise ValueError(f"lam={self.lam!r} was {self._rule!r} when fitted: fit again, or pass a number")
        relative = float(self.lam) / math.exp(self.module_.log_weight.item()) if is_number(self.lam) else 1.0
        x0 = self._start(A, data)
        return self._solve(fidelity(A, data), relative * self._regularizer(like=x0), x0, self.tol)

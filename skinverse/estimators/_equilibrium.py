"""Deep equilibrium reconstruction: a network iterated to its fixed point."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from typing import Any, ClassVar

import pylops
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse.estimators._base import LearnedReconstructor
from skinverse.estimators._calibration import climb
from skinverse.estimators._equilibrium_maps import (
    BACKWARD,
    ITERATIONS,
    NETWORKS,
    SOLVERS,
    Equation,
    Equilibrium,
    EquilibriumLoss,
    denoiser_loss,
    make_network,
    proven,
    solved,
    unrolled,
)
from skinverse.estimators._learning import (
    analytic_inverse,
    check_kinds,
    excerpt,
    in_memory,
    is_number,
    reached,
    recipe,
    spread,
)
from skinverse.estimators._validation import check_lam, check_whole
from skinverse.functionals import as_channels
from skinverse.metrics import psnr
from skinverse.operators import LinearMap
from skinverse.solvers import Solution
from skinverse.training import Trainer

# Held-out images to score; steps and learning rates of both phases if nobody says.
_N_SCORED, _N_PRETRAINING, _N_STEPS, _LR_PRETRAINING, _LR = 6, 2000, 300, 2e-3, 5e-4
# What cannot be changed without another training.
_FIXED = ("iteration", "lam", "lipschitz")
# First weight, and the factor by which weight, scale and step are tried.
_LAM, _FACTOR = 0.1, 2.0


class DeepEquilibriumRecon(LearnedReconstructor):
    """Deep equilibrium model: the reconstruction is the fixed point of one learned iteration.

    With ``A`` scaled to norm 1 and a network ``h``, ``fit`` minimises ``sum ||z(y) - x||^2`` over pairs where
    ``z(y)`` solves ``z = f(z, y)``; its derivative comes from the equation, so that the memory is that of one
    application of ``f`` however many it takes, and more steps at test time lead closer to the fixed point.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    iteration : {"proximal", "gradient", "admm", "contractive"}, default="proximal"
        The map ``f``:

        - ``"proximal"``: ``h(z - eta A^*(A z - y))``, the step ``eta`` being learned;
        - ``"gradient"``: ``z - eta (A^*(A z - y) + lam (z - h(z)))`` with ``eta = 1 / (1 + lam)``;
        - ``"admm"``: ``x = (A^* A + lam)^-1 (A^* y + lam (z - u))``, ``z <- h(x + u)``, ``u <- u + x - z``;
        - ``"contractive"``: that of "gradient" with a network scaled to the Lipschitz constant
          ``lipschitz = c < 1``: a contraction by ``1 - eta lam (1 - c)`` for every ``A``,
          whose unique fixed point solves ``A^*(A x - y) + lam G(x) = 0`` with ``G(x) = x - h(x)``.
    network : str, nn.Module or None, default=None
        The ``h``: ``"dncnn"``, ``"unet"``, ``"gradient_step"`` (1-Lipschitz by construction), the first and
        the last also as ``"..._c4"`` and ``"..._d4"``, which commute with quarter turns, and with flips; or a
        module, (n, channels, height, width) to the same, which :meth:`save` does not take. None is
        "gradient_step" where the map is to contract and "dncnn" elsewhere.
    lam : float > 0 or "fit", default="fit"
        Weight of the network, learned with it under "fit"; not used by "proximal".
    lipschitz : float in [0, 1), default=0.95
        The ``c`` of "contractive".
    solver : {"anderson", "picard", "broyden"}, default="anderson"
        Finds the fixed point.
    backward : {"gmres", "anderson", "neumann", "jacobian_free", "unroll"}, default="gmres"
        Solves the linear system of the derivative; "jacobian_free" replaces its matrix by the identity.
        "unroll" is the unrolled twin: exactly ``max_steps`` steps, in training and afterwards,
        differentiated one by one.
    jacobian_weight : float >= 0, default=0.0
        Weight of ``||df/dz||_F^2`` per number at the fixed point, estimated with one random vector.
    pretraining : bool, default=True
        Whether the network first learns to denoise the true images.
    pretrainer : Trainer or None, default=None
        How; by default as ``trainer``, or 2000 steps.
    patch_size : int or None, default=64
        Side of the patches to denoise; the equilibrium is trained on patches too where there is no operator.
        None is whole images.
    max_steps : int, default=100
        Most steps to the fixed point.
    tol : float, default=1e-5
        An image stops when ``||f(z) - z|| < tol ||f(z)||``; its distance to the fixed point of a contraction
        by ``q`` is at most ``1 / (1 - q)`` times that.
    trainer : Trainer or None, default=None
        How to train through the equilibrium; by default 300 steps.
    memory : str, joblib.Memory or None, default=None
        Where to keep what has been trained.
    warm_start : bool, default=False
        Whether ``fit`` continues from what it learned before.
    random_state : int, RandomState or None, default=0
        Seed of the training.
    verbose : int, default=0
        1 shows progress, 2 a line per epoch.
    device : str, default="auto"
        "cpu", "cuda", or CUDA where there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator seen by ``fit``.
    module_ : nn.Module
        The network with step and weight.
    history_ : list of dict
        One entry per epoch, ``phase`` being "pretraining" or "equilibrium".
    lam_, eta_ : float or None
        Weight and step; None where the iteration has none.
    contraction_ : float or None
        Proven factor of "contractive" by which every step comes closer to the fixed point.

    See Also
    --------
    BilevelRegularizer : A regularizer instead of a map, trained the same way.

    Notes
    -----
    What contracts has one fixed point, found from every start, which depends continuously on ``y``; as noise
    and ``lam`` go to zero, the noise faster, it tends to a solution of ``A x = y``. The other iterations
    promise nothing: where no fixed point is reached the best iterate is returned, with a
    ``ConvergenceWarning``.

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
    >>> method = DeepEquilibriumRecon(A, iteration="contractive", trainer=Trainer(max_epochs=2))
    >>> method.fit(images, data).predict(data).shape
    (8, 16, 16)
    >>> method.contraction_ < 1
    True
    """

    _seen: ClassVar[tuple[str, ...]] = ("n_channels_", "real_")
    _saved: ClassVar[tuple[str, ...]] = ("_rule",)
    _load: ClassVar[int] = 16
    module_: Equilibrium
    # What trains through the reconstruction depends on all of it.
    _reconstruction_params: ClassVar[tuple[str, ...]] = ("verbose", "device")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        iteration: str = "proximal",
        network: str | nn.Module | None = None,
        lam: float | str = "fit",
        lipschitz: float = 0.95,
        solver: str = "anderson",
        backward: str = "gmres",
        jacobian_weight: float = 0.0,
        pretraining: bool = True,
        pretrainer: Trainer | None = None,
        patch_size: int | None = 64,
        max_steps: int = 100,
        tol: float = 1e-5,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.iteration = iteration
        self.network = network
        self.lam = lam
        self.lipschitz = lipschitz
        self.solver = solver
        self.backward = backward
        self.jacobian_weight = jacobian_weight
        self.pretraining = pretraining
        self.pretrainer = pretrainer
        self.patch_size = patch_size
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
        check_kinds(A, images, data)
        self.real_, self.n_channels_ = not images.is_complex(), as_channels(images[:1]).shape[1]
        super()._fit(A, images, data)
        self._describe()
        self._rule = {name: getattr(self, name) for name in _FIXED}

    def _describe(self) -> None:
        lam, eta = (math.exp(p.item()) for p in (self.module_.log_lam, self.module_.log_eta))
        self.lam_ = None if self.iteration == "proximal" else lam
        self.eta_ = {"proximal": eta, "admm": None}.get(self.iteration, 1 / (1 + lam))
        self.contraction_ = self.module_.contraction()

    def _check(self) -> None:
        check_lam(self.lam, None, rules=("fit",))
        check_whole(self.max_steps, "max_steps", 1)
        check_whole(1 if self.patch_size is None else self.patch_size, "patch_size", 1)
        choices = {
            "iteration": ITERATIONS,
            "solver": SOLVERS,
            "backward": BACKWARD,
            "network": (None, *NETWORKS),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if not isinstance(value, nn.Module) and value not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}")
        if not 0 <= self.lipschitz < 1:
            raise ValueError(f"lipschitz: expected a number in [0, 1), got {self.lipschitz!r}")
        if not 0 <= self.jacobian_weight < math.inf:
            raise ValueError(f"jacobian_weight: expected a number >= 0, got {self.jacobian_weight!r}")
        if self.lam == 0 and self.iteration != "proximal":
            raise ValueError("lam: expected a number > 0, without which the network has no say, got 0")
        if self.iteration == "contractive" and not proven(self.network):
            certified = [name for name in NETWORKS if proven(name)]
            raise ValueError(
                'iteration="contractive" needs a network with a proven Lipschitz constant (its attribute '
                f"`lipschitz`): expected one of {certified}, got {self.network!r}"
            )

    # ------------------------------------------------------------------ training
    def _make_module(self) -> nn.Module:
        network = make_network(self.network, self.iteration, self.n_channels_)
        lam = _LAM if isinstance(self.lam, str) else float(self.lam)
        shrunk = self.lipschitz if self.iteration == "contractive" else None
        return Equilibrium(network, lam, n_channels=self.n_channels_, shrunk=shrunk)

    def _train(
        self, module: Any, A: LinearMap, images: Tensor, data: Tensor, seed: int, verbose: int
    ) -> list[dict[str, Any]]:
        history: list[dict[str, Any]] = []
        members = torch.arange(len(data), device=data.device)
        fresh = bool(module.unit == 0)
        module.unit.fill_(spread(as_channels(images)) if fresh else float(module.unit))
        module.log_lam.requires_grad_(self.lam == "fit")
        if is_number(self.lam):
            module.log_lam.data.fill_(math.log(max(float(self.lam), 1e-30)))

        def run(phase: str, trainer: Trainer, loss: Any, truth: Tensor, score: Any) -> None:
            epochs = trainer.train(module, loss, truth, members, score=score, seed=seed, verbose=verbose)
            history.extend({"phase": phase, **epoch} for epoch in epochs)

        if fresh and self.pretraining:
            pretrainer = self.pretrainer or self.trainer or recipe(_N_PRETRAINING, _LR_PRETRAINING, len(data))
            run("pretraining", pretrainer, denoiser_loss(self.patch_size), as_channels(images), None)
            self._calibrate(module, A, images[:_N_SCORED], data[:_N_SCORED])
        loss = EquilibriumLoss(
            Equation(A, self.iteration),
            data,
            torch.cat([self._start(A, some) for some in data.split(in_memory(A))]),
            solver=self.solver,
            backward=self.backward,
            jacobian_weight=self.jacobian_weight,
            patch_size=self.patch_size,
            max_steps=self.max_steps,
            tol=self.tol,
        )
        trainer = self.trainer or recipe(_N_STEPS, _LR, len(data), max_norm=1.0)
        run("equilibrium", trainer, loss, images, self._held_out_psnr(A, data))
        loss.warn()
        return history

    def _calibrate(self, module: Equilibrium, A: LinearMap, images: Tensor, data: Tensor) -> None:
        """Scale, step and weight to start from: the best reconstructions among those that converge."""
        x, y = excerpt(images, data) if A.identity else (images, data)
        scalars = module.scalars(self.iteration, fit_lam=self.lam == "fit")
        start = tuple(math.exp(p.item()) for p in scalars)

        module.eval()

        def quality(*values: float) -> float:
            for p, value in zip(scalars, values, strict=True):
                p.data.fill_(math.log(value))
            solution = self._reconstruct(A, y)
            return float(psnr(x, solution.x).mean()) if solution.converged.all() else -math.inf

        best, score = climb(quality, start, _FACTOR)
        quality(*best)
        if score == -math.inf:
            warnings.warn(
                "DeepEquilibriumRecon: no scale, step or weight near those of the start gives an iteration "
                "that converges: raise max_steps or tol, or take another network",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _held_out_psnr(self, A: LinearMap, data: Tensor) -> Any:
        def score(images: Tensor, index: Tensor) -> float:
            x, y = images[:_N_SCORED], data[index[:_N_SCORED]]
            x, y = excerpt(x, y) if A.identity else (x, y)
            return reached(x, self._reconstruct(A, y).x)

        return score

    # ------------------------------------------------------------------ reconstruction
    def _start(self, A: LinearMap, data: Tensor) -> Tensor:
        """``A_delta^+ y``."""
        x = data.clone() if A.identity else analytic_inverse(A, data)
        return x.real.contiguous() if self.real_ and x.is_complex() and not A.identity else x

    def _differentiable(self, module: Any, A: LinearMap, data: Tensor, start: Tensor) -> Tensor:
        equation = Equation(A, self.iteration)
        f, b = equation.map(module, start), equation.pulled(data, start, module.unit)
        z0 = equation.start(start, module.unit)
        solution = solved(f, z0, b, self.solver, self.backward, max_steps=self.max_steps, tol=self.tol)
        return equation.image(solution.x, start, module.unit)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        self._check()
        changed = [name for name, value in getattr(self, "_rule", {}).items() if getattr(self, name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}={getattr(self, name)!r} was {self._rule[name]!r} when fitted, and the network was "
                "trained for that: fit again"
            )
        x0, equation = self._start(A, data), Equation(A, self.iteration)
        module = copy.deepcopy(self.module_).to(x0.device, x0.dtype.to_real())
        with torch.no_grad():
            f, b = equation.map(module, x0), equation.pulled(data, x0, module.unit)
            z0 = equation.start(x0, module.unit)
            if self.backward == "unroll":
                solution = unrolled(f, z0, b, self.max_steps)
            else:
                solution = SOLVERS[self.solver](f, z0, given=(b,), max_steps=self.max_steps, tol=self.tol)
            return replace(solution, x=equation.image(solution.x, x0, module.unit))

"""Learned iterations, trained on pairs from end to end: learned gradient descent and learned primal-dual."""

from __future__ import annotations

from typing import Any, ClassVar

import pylops

from skinverse.estimators._base import BaseReconstructor, LearnedReconstructor
from skinverse.estimators._iterations import LearnedIterations, Unrolled
from skinverse.estimators._unrolled_networks import GradientUnrolled, PrimalDualUnrolled
from skinverse.training import Trainer


class LearnedGradientDescent(LearnedIterations, LearnedReconstructor):
    """Learned gradient descent: iterations that a network makes of gradients.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||x_N(y) - x||^2`` over pairs, where ``x_0`` is the
    analytic inverse of ``y`` and a network ``U`` makes of the image, both gradients and a memory ``s >= 0``

    ``x <- x + U(x, A^*(A x - y), -Laplacian x, s)``.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    n_iterations : int, default=10
        Number of iterations; fixed by the training.
    n_features : int, default=32
        Width of the networks.
    n_memory : int, default=5
        Channels that one iteration hands to the next beside the image.
    shared : bool, default=True
        Whether all iterations have the same weights.
    initial : estimator or None, default=None
        What reconstructs the images to start from, fitted on the same pairs; None is the analytic inverse
        (filtered back-projection, zero-filled or regularized pseudo-inverse).
    bounds : (low, high) or None, default=None
        Bounds of the images, None for no bound: every iterate that is returned is projected.
    trainer : Trainer or None, default=None
        How to train; by default 2000 steps with gradients of norm 1 at most.
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
    initial_ : estimator or None
        The fitted ``initial``.
    module_ : nn.Module
        The networks of all iterations.
    history_ : list of dict
        One entry per epoch.

    See Also
    --------
    LearnedPrimalDual : Learns on the side of the data too.

    References
    ----------
    J. Adler and O. Oktem, Solving ill-posed inverse problems using iterative deep neural networks, Inverse
    Problems 33, 2017.

    Examples
    --------
    >>> from skinverse import LearnedGradientDescent, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedGradientDescent(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    _whole: ClassVar[tuple[str, ...]] = ("n_iterations", "n_features", "n_memory")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        n_iterations: int = 10,
        n_features: int = 32,
        n_memory: int = 5,
        shared: bool = True,
        initial: BaseReconstructor | None = None,
        bounds: Any = None,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.n_iterations = n_iterations
        self.n_features = n_features
        self.n_memory = n_memory
        self.shared = shared
        self.initial = initial
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _make_module(self) -> Unrolled:
        return GradientUnrolled(
            self.n_channels_, self.n_iterations, self.n_features, self.n_memory, shared=self.shared
        )


class LearnedPrimalDual(LearnedIterations, LearnedReconstructor):
    """Learned primal-dual: networks between the products with the operator and its adjoint.

    With ``A`` scaled to norm 1, ``fit`` minimises ``sum ||f_N(y) - x||^2`` over pairs, where several images
    ``f`` and several data ``h`` are updated in turn, in each iteration by networks of its own,

    ``h <- h + D_k(h, A f_1, y)``, ``f <- f + P_k(f, A^* h_0)``,

    and the first of the images is the reconstruction. ``f`` starts with what ``initial`` makes of ``y`` (with
    zero in the paper), ``h`` with zero.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    n_iterations : int, default=10
        Number of iterations; fixed by the training.
    n_features : int, default=32
        Width of the networks.
    n_memory : int, default=5
        How many images and data are updated.
    shared : bool, default=False
        Whether all iterations have the same weights.
    initial : estimator or None, default=None
        What reconstructs the images to start from, fitted on the same pairs; None is the analytic inverse
        (filtered back-projection, zero-filled or regularized pseudo-inverse).
    bounds : (low, high) or None, default=None
        Bounds of the images, None for no bound: every iterate that is returned is projected.
    trainer : Trainer or None, default=None
        How to train; by default 2000 steps with gradients of norm 1 at most.
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
    initial_ : estimator or None
        The fitted ``initial``.
    module_ : nn.Module
        The networks of all iterations.
    history_ : list of dict
        One entry per epoch.

    See Also
    --------
    LearnedGradientDescent : Learns on the side of the image alone.

    References
    ----------
    J. Adler and O. Oktem, Learned primal-dual reconstruction, IEEE Transactions on Medical Imaging 37, 2018.

    Examples
    --------
    >>> from skinverse import LearnedPrimalDual, Trainer
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=8, size=16, random_state=0)
    >>> method = LearnedPrimalDual(A, n_iterations=3, trainer=Trainer(max_epochs=2)).fit(images, data)
    >>> [x.shape for x in method.staged_predict(data)]
    [(8, 16, 16), (8, 16, 16), (8, 16, 16)]
    """

    _whole: ClassVar[tuple[str, ...]] = ("n_iterations", "n_features", "n_memory")

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        n_iterations: int = 10,
        n_features: int = 32,
        n_memory: int = 5,
        shared: bool = False,
        initial: BaseReconstructor | None = None,
        bounds: Any = None,
        trainer: Trainer | None = None,
        memory: Any = None,
        warm_start: bool = False,
        random_state: Any = 0,
        verbose: int = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.n_iterations = n_iterations
        self.n_features = n_features
        self.n_memory = n_memory
        self.shared = shared
        self.initial = initial
        self.bounds = bounds
        self.trainer = trainer
        self.memory = memory
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def _make_module(self) -> Unrolled:
        return PrimalDualUnrolled(
            self.n_channels_, self.n_iterations, self.n_features, self.n_memory, shared=self.shared
        )

"""Iterative regularization: the number of steps is the regularization parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pylops
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skinverse._batch import norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._validation import check_bounds, check_lam, check_whole, discrepancy_level
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution

# One sweep: images, their data and their residual ``y - A x`` to better images.
Sweep = Callable[[Tensor, Tensor, Tensor], Tensor]


class Landweber(BaseReconstructor):
    """Landweber iteration: gradient descent on the data fidelity, stopped early.

    Iterates ``x <- x + omega A^* (y - A x)`` from zero with ``omega = relaxation / ||A||^2``, a descent on
    ``1/2 ||A x - y||^2``. Early iterates are smooth, late ones fit the noise: ``max_steps`` regularizes,
    or the discrepancy principle where the noise level is known.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity.
    max_steps : int, default=100
        Number of steps; with ``noise_std`` the most steps.
    relaxation : float in (0, 2), default=1.0
        Step size in units of ``1 / ||A||^2``.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one measurement. If given, an image stops at the first iterate
        with ``||A x - y|| <= sqrt(n_measurements) * noise_std``.
    bounds : (low, high) or None, default=None
        Project each iterate onto this interval; None on either side is no bound, ``(0, None)`` is
        non-negativity.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    See Also
    --------
    Kaczmarz : Uses a part of the data at a time, needs far fewer sweeps.

    References
    ----------
    L. Landweber, An iteration formula for Fredholm integral equations of the first kind, American Journal
    of Mathematics 73, 1951.
    H. W. Engl, M. Hanke and A. Neubauer, Regularization of Inverse Problems, Kluwer, 1996, chapter 6.

    Examples
    --------
    >>> from skinverse import Landweber
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("ct", n_samples=2, size=32, noise=0.01, random_state=0)
    >>> X_hat, info = Landweber(A, max_steps=20).fit().predict(data, return_info=True)
    >>> info.n_steps
    array([20, 20])
    """

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        max_steps: int = 100,
        relaxation: float = 1.0,
        noise_std: float | None = None,
        bounds: tuple[float | None, float | None] | None = None,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.max_steps = max_steps
        self.relaxation = relaxation
        self.noise_std = noise_std
        self.bounds = bounds
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        _check_relaxation(self.relaxation)
        check_lam(0.0, self.noise_std)
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        omega = self.relaxation / A.norm() ** 2 if A.norm() > 0 else 0.0

        def sweep(x: Tensor, _: Tensor, residual: Tensor) -> Tensor:
            return _project(x + omega * A.adjoint(residual), self.bounds)

        return _sweep_until_discrepancy(sweep, A, data, self.noise_std, self.max_steps)


class Kaczmarz(BaseReconstructor):
    """Block Kaczmarz iteration; with random blocks, stochastic gradient descent.

    One step uses a block ``b`` of the data, consecutive along the first data axis (for CT, projection
    angles): ``x <- x + relaxation ||A_b||^-2 A_b^* (y_b - A_b x)``. With blocks of one row this is
    Kaczmarz's projection onto the hyperplane of that row. ``max_steps`` counts sweeps through the data.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity. Explicit matrices and ``parallel_beam`` work on the rows
        of a block alone; for other operators a block costs as much as the whole.
    max_steps : int, default=10
        Number of sweeps; with ``noise_std`` the most sweeps.
    n_blocks : int or None, default=None
        Into how many blocks the first data axis is cut; None is one per row, at most 64.
    order : {"random", "cyclic"}, default="random"
        "random" draws blocks with probability proportional to ``||A_b||^2``, the same for every image;
        "cyclic" takes them in turn.
    relaxation : float in (0, 2), default=1.0
        Step size in units of ``1 / ||A_b||^2``; noisy data want less than 1.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one measurement. If given, an image stops after the first
        sweep with ``||A x - y|| <= sqrt(n_measurements) * noise_std``.
    bounds : (low, high) or None, default=None
        Project each iterate onto this interval.
    random_state : int, RandomState or None, default=0
        Seed of the random order.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    block_norms_ : ndarray of shape (n_blocks,)
        The ``||A_b||``; set if the operator is known to ``fit``.
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    References
    ----------
    S. Kaczmarz, Angenaeherte Aufloesung von Systemen linearer Gleichungen, 1937.
    T. Strohmer and R. Vershynin, A randomized Kaczmarz algorithm with exponential convergence, Journal of
    Fourier Analysis and Applications 15, 2009.

    Examples
    --------
    >>> import numpy as np, pylops
    >>> from skinverse import Kaczmarz
    >>> A = pylops.MatrixMult(np.array([[1.0, 0.0], [1.0, 1.0]]))
    >>> Kaczmarz(A, max_steps=50).fit().predict(np.array([[1.0, 3.0]])).round(3)
    array([[1., 2.]])
    """

    _saved: ClassVar[tuple[str, ...]] = ("_seed",)

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        max_steps: int = 10,
        n_blocks: int | None = None,
        order: str = "random",
        relaxation: float = 1.0,
        noise_std: float | None = None,
        bounds: tuple[float | None, float | None] | None = None,
        random_state: Any = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.max_steps = max_steps
        self.n_blocks = n_blocks
        self.order = order
        self.relaxation = relaxation
        self.noise_std = noise_std
        self.bounds = bounds
        self.random_state = random_state
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        if self.order not in ("random", "cyclic"):
            raise ValueError(f'order: expected "random" or "cyclic", got {self.order!r}')
        _check_relaxation(self.relaxation)
        check_lam(0.0, self.noise_std)
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)
        if self.n_blocks is not None:
            check_whole(self.n_blocks, "n_blocks", 1)
        self._seed = int(check_random_state(self.random_state).randint(2**31))
        if A is not None:
            self.block_norms_ = self._norms(A)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        edges = self._edges(A)
        blocks = [A.block(start, stop) for start, stop in edges]
        seen = self.operator_ is not None and A is as_torch(self.operator_)
        known = seen and len(self.block_norms_) == len(blocks)  # n_blocks may have changed since
        squares = (self.block_norms_ if known else self._norms(A)) ** 2
        random = np.random.default_rng(self._seed)

        def sweep(x: Tensor, y: Tensor, _: Tensor) -> Tensor:
            for b in self._order(squares, random):
                residual = y[:, slice(*edges[b])] - blocks[b](x)
                x = _project(x + self.relaxation / squares[b] * blocks[b].adjoint(residual), self.bounds)
            return x

        return _sweep_until_discrepancy(sweep, A, data, self.noise_std, self.max_steps)

    def _norms(self, A: LinearMap) -> np.ndarray:
        return np.array([A.block(start, stop).norm() for start, stop in self._edges(A)])

    def _edges(self, A: LinearMap) -> list[tuple[int, int]]:
        rows = A.dimsd[0]
        n_blocks = min(rows, self.n_blocks or 64)
        cuts = np.linspace(0, rows, n_blocks + 1).round().astype(int)
        return [(int(a), int(b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]

    def _order(self, squares: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Blocks of one sweep; a block of zeros says nothing and is left out."""
        if self.order == "cyclic":
            return np.flatnonzero(squares)
        return (
            random.choice(len(squares), len(squares), p=squares / squares.sum())
            if squares.any()
            else np.array([], int)
        )


def _sweep_until_discrepancy(
    sweep: Sweep, A: LinearMap, data: Tensor, noise_std: float | None, max_steps: int
) -> Solution:
    """Sweep from zero; an image whose residual is down to the noise leaves."""
    x = torch.zeros_like(A.adjoint(data))
    level = torch.full_like(norm(data), -1.0) if noise_std is None else discrepancy_level(noise_std, data)
    n_steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active, residual = torch.arange(len(x), device=x.device), data - A(x)
    for _ in range(max_steps):
        going = norm(residual) > level[active]
        active, residual = active[going], residual[going]
        if len(active) == 0:
            break
        x[active] = sweep(x[active], data[active], residual)
        n_steps[active] += 1
        residual = data[active] - A(x[active])
    final = norm(data - A(x))
    met = torch.isfinite(final) if noise_std is None else final <= level
    return Solution(x, n_steps, met, final, final.square() / 2)


def _project(x: Tensor, bounds: tuple[float | None, float | None] | None) -> Tensor:
    return x if bounds is None else x.clamp(*bounds)


def _check_relaxation(relaxation: float) -> None:
    if not 0 < relaxation < 2:
        raise ValueError(f"relaxation: expected a number in (0, 2), got {relaxation!r}")

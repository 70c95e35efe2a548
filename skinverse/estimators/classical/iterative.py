"""Iterative regularisation: the number of steps is the regularisation parameter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skinverse._parameters import Array, Instance, Integer, Null, OneOf, Real, fitted, parameter
from skinverse._tensors import norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import bounds_parameter, max_steps_parameter, noise_parameter
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import Interval, Units
from skinverse.estimators._validation import operator_digest, seed_of
from skinverse.noise import Gaussian
from skinverse.operators import LinearMap
from skinverse.solvers import Solution

_STOPS = (
    "Where its strength is known, an image stops after the first {} with "
    "``||A x - y|| <= sqrt(n_measurements) * std``."
)
Project = Callable[[Tensor], Tensor]
# One sweep: images, their data, their residual ``y - A x`` and the projection to the bounds to better images.
Sweep = Callable[[Tensor, Tensor, Tensor, Project], Tensor]


class Landweber(BaseReconstructor):
    """Landweber iteration: gradient descent on the data fidelity, stopped early.

    Iterates ``x <- x + omega A^* (y - A x)`` from zero with ``omega = relaxation / ||A||^2``, a descent on
    ``1/2 ||A x - y||^2``. Early iterates are smooth, late ones fit the noise: ``max_steps`` regularises,
    or the discrepancy principle where the noise level is known.

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

    max_steps: int = max_steps_parameter(
        100, "Number of steps; with a known ``noise`` the largest number of steps."
    )
    relaxation: float = parameter(
        default=1.0,
        allowed=Real(gt=0, lt=2),
        doc="Step size in units of ``1 / ||A||^2``.",
    )
    noise: Gaussian | float | None = noise_parameter(_STOPS.format("iterate"), kind=Gaussian)
    bounds: tuple[float | None, float | None] | None = bounds_parameter()

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units = Units.of(A, data, self._noise_model)

        def sweep(x: Tensor, _: Tensor, residual: Tensor, project: Project) -> Tensor:
            return project(x + self.relaxation * units.A.adjoint(residual))  # the norm of A is one

        return _sweep_until_discrepancy(sweep, units, self.max_steps, self.bounds)


class Kaczmarz(BaseReconstructor):
    """Block Kaczmarz iteration; with random blocks, stochastic gradient descent.

    One step uses a block ``b`` of the data, consecutive along the first data axis (for CT, projection
    angles): ``x <- x + relaxation ||A_b||^-2 A_b^* (y_b - A_b x)``. With blocks of one row this is
    Kaczmarz's projection onto the hyperplane of that row. ``max_steps`` counts sweeps through the data.

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

    max_steps: int = max_steps_parameter(
        10, "Number of sweeps; with a known ``noise`` the largest number of sweeps."
    )
    n_blocks: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="Number of blocks into which the first data axis is cut; None is one per row, at most 64.",
    )
    order: str = parameter(
        default="random",
        allowed=OneOf("random", "cyclic"),
        doc="""
        "random" draws blocks with probability proportional to ``||A_b||^2``, the same for every image;
        "cyclic" takes them in turn.""",
    )
    relaxation: float = parameter(
        default=1.0,
        allowed=Real(gt=0, lt=2),
        doc="Step size in units of ``1 / ||A_b||^2``; noisy data want less than 1.",
    )
    noise: Gaussian | float | None = noise_parameter(_STOPS.format("sweep"), kind=Gaussian)
    bounds: tuple[float | None, float | None] | None = bounds_parameter()
    random_state: Any = parameter(
        default=0,
        kind="int, RandomState or None",
        doc="Seed of the random order.",
    )

    block_norms_: Any = fitted(
        kind="ndarray of shape (n_blocks,)",
        allowed=Array(ndim=1),
        doc="The ``||A_b||``; set if the operator is known to ``fit``.",
    )
    operator_digest_: str = fitted(
        kind="str", allowed=Instance(str), doc="Content of the operator of which ``block_norms_`` are known."
    )
    seed_: int = fitted(kind="int", allowed=Integer(ge=0), doc="Seed of the order in ``predict``.")

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        self.seed_ = seed_of(self.random_state)
        if problems is not None:
            self.operator_digest_ = operator_digest(self.operator_)
            self.block_norms_ = self._norms(problems.A)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units, edges = Units.of(A, data, self._noise_model), self._edges(A)
        blocks = [units.A.block(start, stop) for start, stop in edges]
        squares = self._squares(A, units, len(blocks))
        random = np.random.default_rng(self.seed_)

        def sweep(x: Tensor, y: Tensor, _: Tensor, project: Project) -> Tensor:
            for b in self._order(squares, random):
                residual = y[:, slice(*edges[b])] - blocks[b](x)
                x = project(x + self.relaxation / squares[b] * blocks[b].adjoint(residual))
            return x

        return _sweep_until_discrepancy(sweep, units, self.max_steps, self.bounds)

    def _squares(self, A: LinearMap, units: Units, n_blocks: int) -> np.ndarray:
        """``||A_b||^2`` of the problem without units, where weights of the noise count."""
        if self._noise_model.uniform and self._knows_norms(A, n_blocks):
            return np.square(self.block_norms_ / units.gain)
        return np.square(self._norms(units.A))

    def _knows_norms(self, A: LinearMap, n_blocks: int) -> bool:
        """Whether ``block_norms_`` are those of this operator, as it is now, and of so many blocks."""
        operator: Any = self.operator_ if self.operator is None else self.operator
        known = getattr(self, "operator_digest_", None) == operator_digest(operator)
        same_sizes = (A.dims, A.dimsd) == (tuple(operator.dims), tuple(operator.dimsd))
        return known and same_sizes and len(self.block_norms_) == n_blocks

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


def _sweep_until_discrepancy(sweep: Sweep, units: Units, max_steps: int, bounds: Interval) -> Solution:
    """Sweep from zero; an image whose residual is down to the noise leaves."""
    A, data = units.A, units.data
    x = torch.zeros_like(A.adjoint(data))
    level = -units.size if units.noise_std is None else units.discrepancy
    n_steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active, residual = torch.arange(len(x), device=x.device), data - A(x)
    for _ in range(max_steps):
        going = norm(residual) > level[active]
        active, residual = active[going], residual[going]
        if len(active) == 0:
            break
        project = _keep if bounds is None else partial(units.box(bounds).select(active).prox, step=1.0)
        x[active] = sweep(x[active], data[active], residual, project)
        n_steps[active] += 1
        residual = data[active] - A(x[active])
    final = norm(data - A(x))
    met = torch.isfinite(final) if units.noise_std is None else final <= level
    return units.restored(Solution(x, n_steps, met, units.size * final, final.square() / 2), bounds)


def _keep(x: Tensor) -> Tensor:
    return x

"""Tikhonov regularisation: a linear system for each image."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from skinverse._tensors import expand, norm
from skinverse.estimators._base import (
    BaseReconstructor,
    max_steps_parameter,
    noise_std_parameter,
    tol_parameter,
)
from skinverse.estimators._units import Units
from skinverse.estimators._validation import check_noise_known, discrepancy_level
from skinverse.estimators.classical.weights import least_error, weight_parameter
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, conjugate_gradient

# Bisections of log(lam) over 16 decades: the weight is found to 0.3 %.
_N_BISECTIONS = 14


class Tikhonov(BaseReconstructor):
    """Tikhonov regularisation: the classical baseline for any linear operator.

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam/2 ||x||^2``, whose solution
    ``(A^* A + lam I)^-1 A^* y = A^* (A A^* + lam I)^-1 y`` is computed by conjugate gradients.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam ||x||^2``, which has the same minimiser.

    References
    ----------
    H. W. Engl, M. Hanke and A. Neubauer, Regularization of Inverse Problems, Kluwer, 1996, chapter 5
    and section 4.3 (discrepancy principle).

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skinverse import Tikhonov
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=6, size=16, noise=0.01, random_state=0)
    >>> search = GridSearchCV(Tikhonov(A), {"lam": [1e-3, 1e-2, 1e-1]}, cv=3).fit(images, data)
    >>> search.predict(data).shape
    (6, 16, 16)
    """

    not_promised = {
        "level": "The penalty sees a constant: a level of 1 changes the rest of the image by 0.24 relative.",
    }

    lam: float | str = weight_parameter(
        """
        "discrepancy" chooses it such that ``||A x - y|| = sqrt(n_measurements) * noise_std``.""",
    )
    noise_std: float | None = noise_std_parameter(
        '``lam="discrepancy"`` needs it, "auto" uses it where it is given.'
    )
    max_steps: int = max_steps_parameter(1000, "Largest number of conjugate gradient steps.")
    tol: float = tol_parameter(
        1e-5,
        "Relative residual of the linear system at which an image stops.",
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise_std)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units, told = Units.of(A, data), {}
        if self.lam == "discrepancy":
            level = units.of_data(discrepancy_level(self.noise_std, A, units.data))
            solution = self._by_discrepancy(units.A, units.data, level)
        elif self.lam == "auto":
            known = None if self.noise_std is None else units.of_data(self.noise_std)
            lam, noise_std = least_error(units, known)
            solution = self._solve(units.A, units.data, lam)
            told = {"noise_std": noise_std.double() * units.size.double()}
        else:
            lam = torch.full_like(units.size, float(self.lam) / units.gain**2)
            solution = self._solve(units.A, units.data, lam)
        weights = solution.extra["lam"].double() * units.gain**2
        return units.restored(replace(solution, extra={"lam": weights} | told))

    def _solve(self, A: LinearMap, data: Tensor, lam: Tensor, x0: Tensor | None = None) -> Solution:
        def normal(x: Tensor) -> Tensor:
            return A.adjoint(A(x)) + expand(lam, x) * x

        solution = conjugate_gradient(normal, A.adjoint(data), x0, max_steps=self.max_steps, tol=self.tol)
        energy = (norm(A(solution.x) - data).square() + lam * norm(solution.x).square()) / 2
        return replace(solution, objective=energy, extra={"lam": lam})

    def _by_discrepancy(self, A: LinearMap, data: Tensor, target: Tensor) -> Solution:
        """The residual norm grows with lam: bisect log(lam), per image, until it meets the noise."""
        low, high = (torch.full_like(target, math.log(c)) for c in (1e-10, 1e6))
        solution = self._solve(A, data, ((low + high) / 2).exp())
        for _ in range(_N_BISECTIONS):
            above = norm(A(solution.x) - data) > target
            middle = (low + high) / 2
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            solution = self._solve(A, data, ((low + high) / 2).exp(), solution.x)
        met = norm(A(solution.x) - data) <= 1.01 * target
        return replace(solution, converged=solution.converged & met)

"""Tikhonov regularisation: a linear system for each image."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from skinverse._tensors import expand, norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import max_steps_parameter, noise_parameter, tol_parameter
from skinverse.estimators._units import Units
from skinverse.estimators._validation import check_noise_known
from skinverse.estimators.classical.weights import least_error, weight_parameter
from skinverse.noise import Gaussian
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, conjugate_gradient

# Bisections of log(lam) over 16 decades: the weight is found to 0.3 %.
_N_BISECTIONS = 14


class Tikhonov(BaseReconstructor):
    """Tikhonov regularisation: the classical baseline for any linear operator.

    Minimises, for each image, ``D(A x, y) + lam/2 ||x||^2`` with ``D = 1/2 ||A x - y||^2``, or with
    ``D = 1/2 ||W (A x - y)||^2`` where the noise has weights ``W^2`` or is known, so that it has the
    deviation 1 after that. The solution ``(A^* A + lam I)^-1 A^* y = A^* (A A^* + lam I)^-1 y``, with ``W A``
    and ``W y`` in the place of ``A`` and ``y``, is computed by conjugate gradients.

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
        "discrepancy" chooses it such that ``||A x - y|| = sqrt(n_measurements) * std``.""",
    )
    noise: Gaussian | float | None = noise_parameter(
        '``lam="discrepancy"`` needs to know how strong it is, "auto" uses it where it is known.',
        kind=Gaussian,
    )
    max_steps: int = max_steps_parameter(1000, "Largest number of conjugate gradient steps.")
    tol: float = tol_parameter(
        1e-5,
        "Relative residual of the linear system at which an image stops.",
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units, told = Units.of(A, data, self._noise_model), {}
        if self.lam == "discrepancy":
            solution = self._by_discrepancy(units.A, units.data, units.discrepancy)
        elif self.lam == "auto":
            lam, noise_std = least_error(units)
            solution = self._solve(units.A, units.data, lam)
            told = {"noise_std": units.restored_std(noise_std, data)}
        else:
            lam = torch.full_like(units.size, float(self.lam) / units.factor / units.gain**2)
            solution = self._solve(units.A, units.data, lam)
        weights = solution.extra["lam"].double() * units.factor * units.gain**2
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

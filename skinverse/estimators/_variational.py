"""Classical variational reconstruction: least squares plus a regularizer that is no network."""

from __future__ import annotations

import pylops
import torch
from torch import Tensor

from skinverse._batch import norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._validation import check_bounds, check_lam, discrepancy_level
from skinverse.functionals import Box, DataBall, Functional, LeastSquares, TotalVariation
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, primal_dual


class TotalVariationRecon(BaseReconstructor):
    """Total variation regularization (Rudin, Osher and Fatemi).

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam TV(x)`` with ``TV(x) = sum_pixels |grad x|`` by a
    primal-dual method.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0 or "discrepancy", default=0.1
        Weight of the total variation. With "discrepancy" the total variation is minimised among all
        images that explain the data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.
    isotropic : bool, default=True
        Euclidean length of the gradient in each pixel; otherwise the sum of the absolute differences.
    bounds : (low, high) or None, default=None
        Search images with values in this interval only; ``(0, None)`` is non-negativity.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one (real or complex) measurement; needed by "discrepancy".
    max_steps : int, default=2000
        Most iterations.
    tol : float, default=1e-3
        Relative optimality residual at which an image stops.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    See Also
    --------
    TotalGeneralizedVariationRecon : Does not turn slopes into stairs.

    Notes
    -----
    Papers that minimise ``||A x - y||^2 + lam TV(x)`` use twice our ``lam``.

    References
    ----------
    L. Rudin, S. Osher and E. Fatemi, Nonlinear total variation based noise removal algorithms, Physica D
    60, 1992.
    A. Chambolle and T. Pock, A first-order primal-dual algorithm for convex problems with applications to
    imaging, Journal of Mathematical Imaging and Vision 40, 2011.

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skinverse import TotalVariationRecon
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("denoising", n_samples=6, size=16, noise=0.1, random_state=0)
    >>> search = GridSearchCV(TotalVariationRecon(A), {"lam": [0.01, 0.1]}, cv=3).fit(images, data)
    >>> search.predict(data).shape
    (6, 16, 16)
    """

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = 0.1,
        isotropic: bool = True,
        bounds: tuple[float | None, float | None] | None = None,
        noise_std: float | None = None,
        max_steps: int = 2000,
        tol: float = 1e-3,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.isotropic = isotropic
        self.bounds = bounds
        self.noise_std = noise_std
        self.max_steps = max_steps
        self.tol = tol
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        check_lam(self.lam, self.noise_std)
        check_bounds(self.bounds)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        objective = _objective(A, data, self.lam, self.noise_std, TotalVariation(isotropic=self.isotropic))
        if self.bounds is not None:
            objective = objective + Box(*self.bounds)
        return primal_dual(objective, A.adjoint(data) * 0, max_steps=self.max_steps, tol=self.tol)


def _objective(
    A: LinearMap, data: Tensor, lam: float | str, noise_std: float | None, regularizer: Functional
) -> Functional:
    """``1/2 ||A x - y||^2 + lam R(x)``, or ``R(x)`` where the residual is at most the noise."""
    if lam == "discrepancy":
        return DataBall(A, data, discrepancy_level(noise_std, data)) + regularizer
    return LeastSquares(A, data) + float(lam) * regularizer

"""Classical variational reconstruction: least squares plus a regularizer that is no network."""

from __future__ import annotations

from dataclasses import replace

import pylops
import torch
from torch import Tensor

from skinverse._batch import dot, expand, norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._validation import check_bounds, check_lam, check_whole, discrepancy_level
from skinverse.functionals import (
    Box,
    DataBall,
    Functional,
    LeastSquares,
    OfImage,
    TotalGeneralizedVariation,
    TotalVariation,
    WaveletSparsity,
)
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, primal_dual, proximal_gradient


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
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.
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
        check_whole(self.max_steps, "max_steps", 1)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        fidelity = _fidelity(A, data, self.lam, self.noise_std)
        objective = fidelity + _weight(self.lam) * TotalVariation(isotropic=self.isotropic)
        if self.bounds is not None:
            objective = objective + Box(*self.bounds)
        return primal_dual(objective, _back_projection(A, data), max_steps=self.max_steps, tol=self.tol)


class TotalGeneralizedVariationRecon(BaseReconstructor):
    """Total generalized variation regularization: edges and slopes, without stairs.

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam TGV(x)`` with
    ``TGV(x) = min_v sum_pixels |grad x - v| + alpha |E v|``, jointly in image and field, by a primal-dual
    method.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0 or "discrepancy", default=0.1
        Weight of the regularizer. With "discrepancy" it is minimised among all images that explain the
        data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.
    tgv_ratio : float > 0, default=2.0
        The ``alpha`` of the formula, weight of the second order against the first.
    bounds : (low, high) or None, default=None
        Search images with values in this interval only; ``(0, None)`` is non-negativity.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one (real or complex) measurement; needed by "discrepancy".
    max_steps : int, default=5000
        Most iterations.
    tol : float, default=1e-3
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    See Also
    --------
    TotalVariationRecon : Faster; for piecewise constant images.

    References
    ----------
    K. Bredies, K. Kunisch and T. Pock, Total generalized variation, SIAM Journal on Imaging Sciences 3,
    2010.

    Examples
    --------
    >>> from skinverse import TotalGeneralizedVariationRecon
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("denoising", n_samples=2, size=16, noise=0.1, random_state=0)
    >>> TotalGeneralizedVariationRecon(A, lam=0.05).fit().predict(data).shape
    (2, 16, 16)
    """

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = 0.1,
        tgv_ratio: float = 2.0,
        bounds: tuple[float | None, float | None] | None = None,
        noise_std: float | None = None,
        max_steps: int = 5000,
        tol: float = 1e-3,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.tgv_ratio = tgv_ratio
        self.bounds = bounds
        self.noise_std = noise_std
        self.max_steps = max_steps
        self.tol = tol
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        check_lam(self.lam, self.noise_std)
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)
        TotalGeneralizedVariation(alpha=self.tgv_ratio)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        tgv = TotalGeneralizedVariation(alpha=self.tgv_ratio)
        z0 = tgv.pack(_back_projection(A, data))
        n_axes = z0.shape[1] - 1
        objective = (
            OfImage(_fidelity(A, data, self.lam, self.noise_std), n_axes) + _weight(self.lam) * tgv.lifted()
        )
        if self.bounds is not None:
            objective = objective + OfImage(Box(*self.bounds), n_axes)
        found = primal_dual(objective, z0, max_steps=self.max_steps, tol=self.tol)
        return replace(found, x=found.x[:, 0])


class WaveletRecon(BaseReconstructor):
    """Sparsity of wavelet coefficients (ISTA, FISTA).

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam sum |W x|`` over the details of an orthonormal
    Daubechies transform ``W`` (the coarsest approximation is free). Proximal gradient steps threshold the
    coefficients, ``x <- W^T S_(t lam) W (x - t A^*(A x - y))``; with bounds or "discrepancy" a primal-dual
    method is used.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0 or "discrepancy", default=0.1
        Weight of the coefficients. With "discrepancy" their sum is minimised among all images that explain
        the data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.
    wavelet_order : int from 1 to 10, default=4
        Vanishing moments of the Daubechies wavelet; 1 is Haar.
    n_levels : int or None, default=None
        Levels of the transform; None as many as the size allows, at most 5.
    bounds : (low, high) or None, default=None
        Search images with values in this interval only; ``(0, None)`` is non-negativity.
    solver : {"fista", "ista"}, default="fista"
        With or without momentum.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one (real or complex) measurement; needed by "discrepancy".
    max_steps : int, default=2000
        Most iterations.
    tol : float, default=1e-4
        Relative change by one step at which an image stops; with bounds or "discrepancy" as in
        :func:`~skinverse.solvers.primal_dual`.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    References
    ----------
    I. Daubechies, M. Defrise and C. De Mol, An iterative thresholding algorithm for linear inverse problems
    with a sparsity constraint, Communications on Pure and Applied Mathematics 57, 2004.
    A. Beck and M. Teboulle, A fast iterative shrinkage-thresholding algorithm for linear inverse problems,
    SIAM Journal on Imaging Sciences 2, 2009.

    Examples
    --------
    >>> from skinverse import WaveletRecon
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=2, size=16, noise=0.01, random_state=0)
    >>> WaveletRecon(A, lam=1e-3, bounds=(0, None)).fit().predict(data).min() >= 0
    np.True_
    """

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = 0.1,
        wavelet_order: int = 4,
        n_levels: int | None = None,
        bounds: tuple[float | None, float | None] | None = None,
        solver: str = "fista",
        noise_std: float | None = None,
        max_steps: int = 2000,
        tol: float = 1e-4,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.wavelet_order = wavelet_order
        self.n_levels = n_levels
        self.bounds = bounds
        self.solver = solver
        self.noise_std = noise_std
        self.max_steps = max_steps
        self.tol = tol
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        check_lam(self.lam, self.noise_std)
        check_bounds(self.bounds)
        check_whole(self.max_steps, "max_steps", 1)
        if self.solver not in _ITERATIONS:
            raise ValueError(f"solver: expected one of {sorted(_ITERATIONS)}, got {self.solver!r}")
        WaveletSparsity(self.wavelet_order, self.n_levels)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        objective = _fidelity(A, data, self.lam, self.noise_std) + _weight(self.lam) * WaveletSparsity(
            self.wavelet_order, self.n_levels
        )
        solve = _ITERATIONS[self.solver]
        if self.bounds is not None or self.lam == "discrepancy":
            solve = primal_dual
            objective = objective if self.bounds is None else objective + Box(*self.bounds)
        return solve(objective, _back_projection(A, data), max_steps=self.max_steps, tol=self.tol)


_ITERATIONS = {"fista": accelerated_gradient, "ista": proximal_gradient}


def _fidelity(A: LinearMap, data: Tensor, lam: float | str, noise_std: float | None) -> Functional:
    """``1/2 ||A x - y||^2``, or the set of images whose residual is at most the noise."""
    linear = None if A.identity else A
    if lam == "discrepancy":
        return DataBall(linear, data, discrepancy_level(noise_std, data))
    return LeastSquares(linear, data)


def _weight(lam: float | str) -> float:
    return 1.0 if lam == "discrepancy" else float(lam)


def _back_projection(A: LinearMap, data: Tensor) -> Tensor:
    """``A^* y`` at the scale that explains the data best: a start of the right magnitude."""
    x = A.adjoint(data)
    Ax = A(x)
    tiny = torch.finfo(Ax.dtype).tiny
    return expand(dot(Ax, data) / norm(Ax).square().clamp_min(tiny), x) * x

"""Classical variational reconstruction: least squares plus a regulariser that is no network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from skinverse._parameters import Flag, Integer, Null, OneOf, Real, parameter
from skinverse._tensors import dot, expand, norm
from skinverse.estimators._base import (
    BaseReconstructor,
    bounds_parameter,
    max_steps_parameter,
    noise_std_parameter,
    tol_parameter,
)
from skinverse.estimators._units import Units
from skinverse.estimators._validation import check_noise_known, discrepancy_level
from skinverse.functionals import (
    DataBall,
    Functional,
    LeastSquares,
    TotalGeneralizedVariation,
    TotalVariation,
    WaveletSparsity,
)
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, primal_dual, proximal_gradient


class TotalVariationRecon(BaseReconstructor):
    """Total variation regularisation (Rudin, Osher and Fatemi).

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam TV(x)`` with ``TV(x) = sum_pixels |grad x|`` by a
    primal-dual method. The variations of channels add up.

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

    lam: float | str = parameter(
        default=0.1,
        allowed=Real(ge=0) | OneOf("discrepancy"),
        doc="""
        Weight of the total variation. With "discrepancy" the total variation is minimised among all
        images that explain the data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.""",
    )
    isotropic: bool = parameter(
        default=True,
        allowed=Flag(),
        doc="""
        Euclidean length of the gradient in each pixel; otherwise the sum of the absolute differences.""",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter()
    noise_std: float | None = noise_std_parameter('It is needed by ``lam="discrepancy"``.')
    max_steps: int = max_steps_parameter(2000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-3,
        """
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise_std)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units = Units.without_level(A, data)
        variation = TotalVariation(isotropic=self.isotropic, axes=self._spatial_axes(A))
        fidelity = _fidelity(units, self.lam, self.noise_std)
        objective = fidelity + _weight(units, self.lam) * variation
        if self.bounds is not None:
            objective = objective + units.box(self.bounds)
        x0 = _back_projection(units.A, units.data)
        solution = primal_dual(objective, x0, max_steps=self.max_steps, tol=self.tol)
        return units.restored(solution, self.bounds)


class TotalGeneralizedVariationRecon(BaseReconstructor):
    """Total generalised variation regularisation: edges and slopes, without stairs.

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam TGV(x)`` with
    ``TGV(x) = min_v sum_pixels |grad x - v| + alpha |E v|``, jointly in image and field, by a primal-dual
    method. The variations of channels add up.

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

    lam: float | str = parameter(
        default=0.1,
        allowed=Real(ge=0) | OneOf("discrepancy"),
        doc="""
        Weight of the regulariser. With "discrepancy" it is minimised among all images that explain the
        data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.""",
    )
    tgv_ratio: float = parameter(
        default=2.0,
        allowed=Real(gt=0),
        doc="The ``alpha`` of the formula, weight of the second order against the first.",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter()
    noise_std: float | None = noise_std_parameter('It is needed by ``lam="discrepancy"``.')
    max_steps: int = max_steps_parameter(5000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-3,
        """
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise_std)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units, axes = Units.without_level(A, data), self._spatial_axes(A)
        tgv = TotalGeneralizedVariation(alpha=self.tgv_ratio, axes=axes)
        z0 = tgv.pack(_back_projection(units.A, units.data))
        fidelity = tgv.lift(_fidelity(units, self.lam, self.noise_std), len(axes))
        objective = fidelity + _weight(units, self.lam) * tgv.lifted()
        if self.bounds is not None:
            objective = objective + tgv.lift(units.box(self.bounds), len(axes))
        solution = primal_dual(objective, z0, max_steps=self.max_steps, tol=self.tol)
        return units.restored(replace(solution, x=solution.x[:, 0]), self.bounds)


class WaveletRecon(BaseReconstructor):
    """Sparsity of wavelet coefficients (ISTA, FISTA).

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam sum |W x|`` over the details of an orthonormal
    Daubechies transform ``W`` of each channel (the coarsest approximation is free). Proximal gradient steps
    threshold the coefficients, ``x <- W^T S_(t lam) W (x - t A^*(A x - y))``; with bounds or "discrepancy" a
    primal-dual method is used.

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

    lam: float | str = parameter(
        default=0.1,
        allowed=Real(ge=0) | OneOf("discrepancy"),
        doc="""
        Weight of the coefficients. With "discrepancy" their sum is minimised among all images that explain
        the data, ``||A x - y|| <= sqrt(n_measurements) * noise_std``.""",
    )
    wavelet_order: int = parameter(
        default=4,
        allowed=Integer(ge=1, le=10),
        doc="Vanishing moments of the Daubechies wavelet; 1 is Haar.",
    )
    n_levels: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="Levels of the transform; None as many as the size allows, at most 5.",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter()
    solver: str = parameter(
        default="fista",
        allowed=OneOf("fista", "ista"),
        doc="With or without momentum.",
    )
    noise_std: float | None = noise_std_parameter('It is needed by ``lam="discrepancy"``.')
    max_steps: int = max_steps_parameter(2000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-4,
        """
        Relative change by one step at which an image stops; with bounds or "discrepancy" as in
        :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise_std)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units, axes = Units.without_level(A, data), self._spatial_axes(A)
        sparsity = WaveletSparsity(self.wavelet_order, self.n_levels, axes=axes)
        objective = _fidelity(units, self.lam, self.noise_std) + _weight(units, self.lam) * sparsity
        solve = _ITERATIONS[self.solver]
        if self.bounds is not None or self.lam == "discrepancy":
            solve = primal_dual
            objective = objective if self.bounds is None else objective + units.box(self.bounds)
        x0 = _back_projection(units.A, units.data)
        return units.restored(solve(objective, x0, max_steps=self.max_steps, tol=self.tol), self.bounds)


_ITERATIONS = {"fista": accelerated_gradient, "ista": proximal_gradient}


def _fidelity(units: Units, lam: float | str, noise_std: float | None) -> Functional:
    """``1/2 ||A x - y||^2``, or the set of images whose residual is at most the noise."""
    linear = None if units.A.identity else units.A
    if lam == "discrepancy":
        return DataBall(linear, units.data, units.of_data(discrepancy_level(noise_std, units.data)))
    return LeastSquares(linear, units.data)


def _weight(units: Units, lam: float | str) -> float | Tensor:
    return 1.0 if isinstance(lam, str) else units.weight(lam)


def _back_projection(A: LinearMap, data: Tensor) -> Tensor:
    """``A^* y`` at the scale that explains the data best: a start of the right magnitude."""
    x = A.adjoint(data)
    Ax = A(x)
    tiny = torch.finfo(Ax.dtype).tiny
    return expand(dot(Ax, data) / norm(Ax).square().clamp_min(tiny), x) * x

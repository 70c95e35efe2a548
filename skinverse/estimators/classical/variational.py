"""Classical variational reconstruction: a fidelity plus a regulariser that is no network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from skinverse._parameters import Integer, Null, OneOf, Real, parameter
from skinverse._tensors import dot, expand, norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import (
    OF_COUNTS,
    bounds_parameter,
    max_steps_parameter,
    noise_parameter,
    spacing_parameter,
    tol_parameter,
)
from skinverse.estimators._units import Interval, Units, in_pixels
from skinverse.estimators._validation import check_noise_known
from skinverse.estimators.classical.weights import (
    Minimisation,
    least_risk,
    weight_of_discrepancy,
    weight_parameter,
)
from skinverse.functionals import (
    DataBall,
    Functional,
    TotalGeneralizedVariation,
    TotalNuclearVariation,
    TotalVariation,
    WaveletSparsity,
)
from skinverse.noise import NoiseModel
from skinverse.operators import LinearMap
from skinverse.solvers import Solution, accelerated_gradient, primal_dual, proximal_gradient


class VariationalReconstructor(BaseReconstructor):
    """A method that minimises a fidelity plus ``lam`` times a regulariser of degree one.

    A method gives :meth:`_regularizer`; one that minimises over more than the image also :meth:`_lift`,
    :meth:`_variables` and :meth:`_images`.
    """

    not_promised = {
        "volumes": (
            "The rule for lam perturbs images at random, in the order of their pixels: turning a volume of "
            "3 x 6 x 5 voxels changes it by 0.02 relative."
        ),
        "colour": (
            "The rule for lam perturbs images at random, in the order of their pixels: moving channels of "
            "a small image changes it by 0.07 relative."
        ),
    }

    lam: float | str = weight_parameter(
        """
        "discrepancy" makes the fidelity of the image what it is of the true image on average: of Gaussian
        noise it minimises the regulariser among all images that explain the data,
        ``||A x - y|| <= sqrt(n_measurements) * std``; of counts the weight is bisected.""",
    )
    bounds: tuple[float | None, float | None] | None = bounds_parameter(OF_COUNTS)
    noise: NoiseModel | str | float | None = noise_parameter(
        '``lam="discrepancy"`` needs to know how strong it is, "auto" uses it where it is known.'
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units = Units.without_level(A, data, self._noise_model, self.spacing)
        x0 = _back_projection(units.A, units.data) if units.background is None else _constant(units)
        if self.lam == "auto":
            return self._by_least_risk(units, x0)
        if self.lam == "discrepancy":
            return self._by_discrepancy(units, x0)
        return self._solution(units, self._penalised(units, units.weight(float(self.lam))), x0)

    def _by_least_risk(self, units: Units, x0: Tensor) -> Solution:
        found = least_risk(units, x0, self._minimisation(units))
        solution = self._solution(units, self._penalised(units, found.weight), found.x)
        told = {"lam": units.restored_weight(found.weight)}
        if units.background is None:
            told["noise_std"] = units.restored_std(found.noise_std, units.data)
        return replace(solution, extra=solution.extra | told)

    def _by_discrepancy(self, units: Units, x0: Tensor) -> Solution:
        if units.background is None:
            ball = DataBall(units.linear, units.data, units.discrepancy)
            return self._solution(units, self._objective(units, ball, 1.0), x0)
        weight, met = weight_of_discrepancy(units, x0, self._minimisation(units))
        solution = self._solution(units, self._penalised(units, weight), x0)
        told = solution.extra | {"lam": units.restored_weight(weight)}
        return replace(solution, converged=solution.converged & met, extra=told)

    def _minimisation(self, units: Units) -> Minimisation:
        """What the rules for ``lam`` minimise."""
        variables = partial(self._variables, units.A)
        return Minimisation(self._penalised, variables, self._images, self.max_steps)

    def _solution(self, units: Units, objective: Functional, x0: Tensor) -> Solution:
        solution = self._minimise(objective, self._variables(units.A, x0))
        return units.restored(replace(solution, x=self._images(solution.x)), self._interval(units))

    def _penalised(self, units: Units, weight: float | Tensor) -> Functional:
        """The fidelity plus the weighted regulariser."""
        return self._objective(units, units.fidelity(), weight)

    def _objective(self, units: Units, fidelity: Functional, weight: float | Tensor) -> Functional:
        objective = self._lift(units.A, fidelity) + weight * self._regularizer(units.A)
        bounds = self._interval(units)
        return objective if bounds is None else objective + self._lift(units.A, units.box(bounds))

    def _interval(self, units: Units) -> Interval:
        """The bounds: those of counts are non-negative where nobody says."""
        return (0.0, None) if self.bounds is None and units.background is not None else self.bounds

    # ------------------------------------------------------------------ hooks
    @abstractmethod
    def _regularizer(self, A: LinearMap) -> Functional:
        """The regulariser, a functional of the variables."""

    def _lift(self, A: LinearMap, functional: Functional) -> Functional:
        """A functional of the image as one of the variables."""
        return functional

    def _variables(self, A: LinearMap, images: Tensor) -> Tensor:
        """Variables to start from."""
        return images

    def _images(self, variables: Tensor) -> Tensor:
        """The images among the variables."""
        return variables

    def _minimise(self, objective: Functional, z0: Tensor) -> Solution:
        return primal_dual(objective, z0, max_steps=self.max_steps, tol=self.tol)


class TotalVariationRecon(VariationalReconstructor):
    """Total variation regularisation (Rudin, Osher and Fatemi).

    Minimises, for each image, ``D(A x, y) + lam TV(x)`` with ``TV(x) = sum_pixels |grad x|`` by a
    primal-dual method. The variations of channels add up, or channels share their edges
    (``variation="nuclear"``).

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
    K. M. Holt, Total nuclear variation and Jacobian extensions of total variation for vector fields, IEEE
    Transactions on Image Processing 23, 2014.

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

    variation: str = parameter(
        default="isotropic",
        allowed=OneOf("isotropic", "anisotropic", "nuclear"),
        doc="""
        What is summed over pixels: "isotropic" is the Euclidean length of the gradient of each channel,
        "anisotropic" the sum of its absolute values. "nuclear" is the sum of the singular values of the
        Jacobian of all channels: it is smallest where they have their edges in the same places, as colours
        and energies do, and the isotropic one where there is one channel.""",
    )
    spacing: Sequence[float] | None = spacing_parameter()
    max_steps: int = max_steps_parameter(2000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-3,
        """
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _regularizer(self, A: LinearMap) -> Functional:
        return _VARIATIONS[self.variation](axes=self._spatial_axes(A), spacing=in_pixels(self.spacing))


_VARIATIONS: dict[str, Callable[..., Functional]] = {
    "isotropic": TotalVariation,
    "anisotropic": partial(TotalVariation, isotropic=False),
    "nuclear": TotalNuclearVariation,
}


class TotalGeneralizedVariationRecon(VariationalReconstructor):
    """Total generalised variation regularisation: edges and slopes, without stairs.

    Minimises, for each image, ``D(A x, y) + lam TGV(x)`` with
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

    tgv_ratio: float = parameter(
        default=2.0,
        allowed=Real(gt=0),
        doc="""
        The ``alpha`` of the formula, weight of the second order against the first, in units of the smallest
        ``spacing``.""",
    )
    spacing: Sequence[float] | None = spacing_parameter()
    max_steps: int = max_steps_parameter(5000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-3,
        """
        Relative optimality residual at which an image stops, see :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _regularizer(self, A: LinearMap) -> Functional:
        return self._variation(A).lifted()

    def _lift(self, A: LinearMap, functional: Functional) -> Functional:
        return self._variation(A).lift(functional, len(self._spatial_axes(A)))

    def _variables(self, A: LinearMap, images: Tensor) -> Tensor:
        return self._variation(A).pack(images)

    def _images(self, variables: Tensor) -> Tensor:
        return variables[:, 0]

    def _variation(self, A: LinearMap) -> TotalGeneralizedVariation:
        axes, spacing = self._spatial_axes(A), in_pixels(self.spacing)
        return TotalGeneralizedVariation(alpha=self.tgv_ratio, axes=axes, spacing=spacing)


class WaveletRecon(VariationalReconstructor):
    """Sparsity of wavelet coefficients (ISTA, FISTA).

    Minimises, for each image, ``D(A x, y) + lam sum |W x|`` over the details of an orthonormal Daubechies
    transform ``W`` of each channel (the coarsest approximation is free). Proximal gradient steps threshold
    the coefficients, ``x <- W^T S_(t lam) W (x - t grad D)``, where ``grad D`` is ``A^*(A x - y)`` unless the
    noise has weights or is known; with bounds, for counts, or where ``lam`` is no number, a primal-dual
    method is used.

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
    solver: str = parameter(
        default="fista",
        allowed=OneOf("fista", "ista"),
        doc="Proximal gradient steps with or without momentum, where ``lam`` is a number.",
    )
    max_steps: int = max_steps_parameter(5000, "Largest number of iterations.")
    tol: float = tol_parameter(
        1e-4,
        """
        Relative change by one step at which an image stops; with bounds, or where ``lam`` is no number, as in
        :func:`~skinverse.solvers.primal_dual`.""",
    )

    def _regularizer(self, A: LinearMap) -> Functional:
        return WaveletSparsity(self.wavelet_order, self.n_levels, axes=self._spatial_axes(A))

    def _minimise(self, objective: Functional, z0: Tensor) -> Solution:
        # At small weights, which the data may choose, the line search in single precision was off by 4 %.
        if self.bounds is not None or isinstance(self.lam, str) or self._noise_model.counted:
            return super()._minimise(objective, z0)
        return _ITERATIONS[self.solver](objective, z0, max_steps=self.max_steps, tol=self.tol)


_ITERATIONS = {"fista": accelerated_gradient, "ista": proximal_gradient}


def _constant(units: Units) -> Tensor:
    """The constant images that explain counts best: minimisers for large weights, where a search begins.

    From a back-projection the first images of the search were not flat yet, and looked better than the next.
    """
    assert units.background is not None  # of counts
    ones = torch.ones_like(units.A.adjoint(units.data))
    of_ones, signal = units.A(ones), units.data - units.background
    tiny = torch.finfo(of_ones.dtype).tiny
    return ones * expand((dot(of_ones, signal) / norm(of_ones).square().clamp_min(tiny)).clamp_min(0), ones)


def _back_projection(A: LinearMap, data: Tensor) -> Tensor:
    """``A^* y`` at the scale that explains the data best: a start of the right magnitude."""
    x = A.adjoint(data)
    Ax = A(x)
    tiny = torch.finfo(Ax.dtype).tiny
    return expand(dot(Ax, data) / norm(Ax).square().clamp_min(tiny), x) * x

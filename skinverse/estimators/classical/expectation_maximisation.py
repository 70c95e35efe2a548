"""Maximum likelihood images of counts, by expectation maximisation that is stopped early."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pylops
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse._parameters import Flag, Integer, Real, parameter
from skinverse._tensors import expand, relative_change
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import max_steps_parameter, noise_parameter, spacing_parameter
from skinverse.estimators._units import Units, in_pixels
from skinverse.functionals import TotalVariation
from skinverse.noise import NoiseModel, Poisson
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution

# Least mean of a count relative to the largest datum, by which one may divide, and least denominator
# relative to what is without regulariser.
_LEAST, _LEAST_DENOMINATOR = 1e-12, 0.1
# Sensitivity relative to the largest one up to which it is zero but for rounding. Fourier transforms in
# single precision leave some 1e-7, and pixels that a blur hardly sees would grow by the ratio of two such
# errors.
_UNSEEN = 1e-4


class ExpectationMaximisation(BaseReconstructor):
    """A method that multiplies images by what their counts lack, ``x <- x / d * A^* (y / (A x + b))``.

    A method gives :meth:`_penalty` and :meth:`_denominator`, and one that uses parts of the data in turn
    :meth:`_parts`.
    """

    max_steps: int = max_steps_parameter(
        50, "Number of steps through the data; with ``early_stopping`` the largest number of them."
    )
    early_stopping: bool = parameter(
        default=False,
        allowed=Flag(),
        doc="""
        Whether an image stops after the first step at which the divergence of the counts from their means is
        what it is on average for the true image (the discrepancy principle for counts). The ``gain`` of the
        noise must be right for that.""",
    )
    noise: Poisson | str | None = noise_parameter(kind=Poisson)

    @property
    def _noise_model(self) -> NoiseModel:
        return Poisson() if self.noise is None else super()._noise_model

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        units = Units.of(A, data, self._noise_model, self.spacing)
        subsets = [_Subset.of(units, *part) for part in self._parts(units.A)]
        seen = torch.stack([subset.sensitivity > 0 for subset in subsets]).any(0)
        x = torch.where(seen, _uniform(units), 0)
        n_steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        residual, met = torch.full_like(units.size, torch.inf), torch.zeros_like(n_steps, dtype=torch.bool)
        active = torch.arange(len(x), device=x.device)
        now, parts, latest = units, subsets, x.clone()  # of the images that go on
        for _ in range(self.max_steps):
            earlier = latest
            for part in parts:
                latest = self._step(now, part, latest)
            n_steps[active] += 1
            if self.early_stopping:
                met[active] = now.explained_by(latest)
            going = ~met[active]
            if not going.all():
                x[active], residual[active] = latest, relative_change(latest, earlier)
                active, latest, earlier = active[going], latest[going], earlier[going]
                if len(active) == 0:
                    break
                now, parts = units.select(active), [subset.select(active) for subset in subsets]
        x[active], residual[active] = latest, relative_change(latest, earlier)
        solution = Solution(
            x,
            n_steps,
            met if self.early_stopping else torch.isfinite(residual),
            residual,
            units.fidelity()(x) + self._penalty(units, x),
        )
        return units.restored(solution, (0.0, None))

    def _step(self, units: Units, subset: _Subset, x: Tensor) -> Tensor:
        """One multiplication of the pixels that these data see."""
        means = (subset.A(x) + subset.background).clamp_min(_LEAST)
        ratio = subset.A.adjoint(subset.data / means).clamp_min(0)
        denominator = self._denominator(units, x, subset.sensitivity)
        return torch.where(denominator > 0, ratio.mul_(x).div_(denominator), x)

    # ------------------------------------------------------------------ hooks
    def _parts(self, A: LinearMap) -> list[tuple[LinearMap, Any]]:
        """Maps to the parts of the data that are used in turn, and their indices along the first axis."""
        return [(A, slice(None))]

    @abstractmethod
    def _penalty(self, units: Units, x: Tensor) -> Tensor | float:
        """What is minimised beside the divergence."""

    @abstractmethod
    def _denominator(self, units: Units, x: Tensor, sensitivity: Tensor) -> Tensor:
        """The ``d`` of the formula; ``sensitivity`` is ``A^* 1``."""


class MLEM(ExpectationMaximisation):
    """Maximum likelihood expectation maximisation: the images under which counts are most probable.

    Maximises, for each image, the likelihood of Poisson distributed counts over images ``x >= 0``, by
    ``x <- x / A^* 1 * A^* (y / (A x + b))`` from a uniform image with as many counts as the data. Every step
    makes the data more probable, and without background keeps the number of counts, ``sum A x = sum y``.
    Early images are smooth, late ones fit the noise: ``max_steps`` regularises.

    With ordered subsets (OSEM) each step uses parts of the data in turn, and each part makes about as much
    progress as all of the data do. The iteration then need not converge.

    See Also
    --------
    RichardsonLucy : The same for blurred images, with total variation on request.
    TotalVariationRecon : With ``noise="poisson"`` the regularised maximum likelihood.

    References
    ----------
    L. A. Shepp and Y. Vardi, Maximum likelihood reconstruction for emission tomography, IEEE Transactions on
    Medical Imaging 1, 1982.
    H. M. Hudson and R. S. Larkin, Accelerated image reconstruction using ordered subsets of projection data,
    IEEE Transactions on Medical Imaging 13, 1994.
    M. Bertero, P. Boccacci, G. Talenti, R. Zanella and L. Zanni, A discrepancy principle for Poisson data,
    Inverse Problems 26, 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse import MLEM
    >>> from skinverse.datasets import make_problem
    >>> _, data, A = make_problem("deblurring", n_samples=2, size=16, noise=0.0, random_state=0)
    >>> x = MLEM(A, max_steps=20).fit().predict(data)
    >>> bool(np.allclose((A @ x[0]).sum(), data[0].sum(), rtol=1e-4))
    True
    """

    n_subsets: int = parameter(
        default=1,
        allowed=Integer(ge=1),
        doc="""
        Number of subsets of the first data axis, for CT and PET of the projection angles, that are used in
        turn; subset ``k`` has the indices ``k, k + n_subsets, ...``. One is all data at once.""",
    )

    # The subset that each measurement belongs to, where some are missing and the others have no first axis.
    _subset_of: NDArray[np.intp] | None = None

    def _restricted_to(self, kept: NDArray[np.intp], dimsd: tuple[int, ...]) -> Self:
        twin = super()._restricted_to(kept, dimsd)
        twin._subset_of = np.unravel_index(kept, dimsd)[0] % min(self.n_subsets, dimsd[0])
        return twin

    def _parts(self, A: LinearMap) -> list[tuple[LinearMap, Any]]:
        n = min(self.n_subsets, A.dimsd[0])
        if n == 1:
            return super()._parts(A)
        if self._subset_of is None:
            return [(A.block(k, A.dimsd[0], n), slice(k, None, n)) for k in range(n)]
        indices = [np.flatnonzero(self._subset_of == k) for k in np.unique(self._subset_of)]
        return [(as_torch(pylops.Restriction(A.dimsd[0], index)) @ A, index) for index in indices]

    def _penalty(self, units: Units, x: Tensor) -> float:
        return 0.0

    def _denominator(self, units: Units, x: Tensor, sensitivity: Tensor) -> Tensor:
        return sensitivity


class RichardsonLucy(ExpectationMaximisation):
    """Richardson-Lucy deconvolution, with total variation on request.

    Iterates ``x <- x / (A^* 1 - lam div(grad x / |grad x|)) * A^* (y / (A x + b))`` from a uniform image with
    as many counts as the data. Fixed points are minimisers of ``D(A x, y) + lam TV(x)`` over ``x >= 0``,
    where ``D`` is the divergence of counts. With ``lam=0`` early images are smooth, late ones fit the noise.

    See Also
    --------
    MLEM : The same without total variation, with ordered subsets.
    TotalVariationRecon : With ``noise="poisson"`` minimises the same objective to any accuracy.

    Notes
    -----
    The denominator is not made smaller than a tenth of ``A^* 1``. For a large ``lam`` total variation would
    do so, and the method of the reference does not converge.

    References
    ----------
    W. H. Richardson, Bayesian-based iterative method of image restoration, Journal of the Optical Society of
    America 62, 1972.
    L. B. Lucy, An iterative technique for the rectification of observed distributions, Astronomical Journal
    79, 1974.
    N. Dey, L. Blanc-Feraud, C. Zimmer, P. Roux, Z. Kam, J.-C. Olivo-Marin and J. Zerubia, Richardson-Lucy
    algorithm with total variation regularization for 3D confocal microscope deconvolution, Microscopy
    Research and Technique 69, 2006.

    Examples
    --------
    >>> from skinverse import RichardsonLucy
    >>> from skinverse.datasets import make_problem
    >>> _, data, A = make_problem("deblurring", n_samples=2, size=16, noise=0.0, random_state=0)
    >>> RichardsonLucy(A, max_steps=10).fit().predict(data).min() >= 0
    np.True_
    """

    lam: float = parameter(default=0.0, allowed=Real(ge=0), doc="Weight of the total variation.")
    spacing: Sequence[float] | None = spacing_parameter()

    def _penalty(self, units: Units, x: Tensor) -> Tensor:
        return units.weight(self.lam) * self._variation(units.A)(x)

    def _denominator(self, units: Units, x: Tensor, sensitivity: Tensor) -> Tensor:
        if self.lam == 0:
            return sensitivity
        slope = _slope(x, self._variation(units.A))
        weight = expand(units.weight(self.lam), x)
        return torch.maximum(sensitivity + weight * slope, _LEAST_DENOMINATOR * sensitivity)

    def _variation(self, A: LinearMap) -> TotalVariation:
        return TotalVariation(axes=self._spatial_axes(A), spacing=in_pixels(self.spacing))


@dataclass(frozen=True)
class _Subset:
    """Some of the measurements: their operator, counts, expected background and ``A^* 1``."""

    A: LinearMap
    data: Tensor
    background: Tensor
    sensitivity: Tensor  # (1, *dims)

    @classmethod
    def of(cls, units: Units, A: LinearMap, index: Any) -> Self:
        """The measurements with these indices along the first axis, to which ``A`` is the map.

        Raises
        ------
        ValueError
            If the operator has negative values, so that images without negative ones would not stay so.
        """
        assert units.background is not None  # of counts
        data, background = units.data[:, index], units.background.expand(units.data.shape)[:, index]
        sensitivity = A.adjoint(torch.ones_like(data[:1]))
        most = float(sensitivity.abs().max())
        if bool((sensitivity < -_UNSEEN * most).any()):
            raise ValueError(
                "operator: expected one without negative values, which makes counts of images, got an "
                "operator whose adjoint of ones has some"
            )
        return cls(A, data, background, torch.where(sensitivity > _UNSEEN * most, sensitivity, 0))

    def select(self, index: Tensor) -> Self:
        """The same of some images."""
        return replace(self, data=self.data[index], background=self.background[index])


def _uniform(units: Units) -> Tensor:
    """Uniform images with the number of counts of the data."""
    assert units.background is not None  # of counts
    ones = torch.ones_like(units.A.adjoint(units.data))
    signal = units.data - units.background
    wanted = torch.where(_sum(signal) > 0, _sum(signal), _sum(units.data))
    return ones * expand(wanted / _sum(units.A(ones[:1])), ones)


def _sum(x: Tensor) -> Tensor:
    """Sum of the values of each image."""
    return x.flatten(1).sum(1)


def _slope(x: Tensor, variation: TotalVariation) -> Tensor:
    """Derivative of the total variation, ``-div(grad x / |grad x|)``; what is flat has none."""
    _, gradient = variation.split()
    g = gradient(x)
    length = g.square().sum(1, keepdim=True).sqrt()
    return gradient.adjoint(torch.where(length > 0, g / length, 0))

"""Noise of counts that went through an object."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse._parameters import Real, parameter
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional, TransmissionDivergence
from skinverse.noise._base import DataModel, Numbers
from skinverse.noise._counts import drawn_counts, expected_divergence


class Transmission(DataModel):
    """Counts of light that an object absorbs, as an X-ray detector has them.

    They are Poisson distributed with the mean ``flat * exp(-A x) + dark``. What is linear in the image are
    not the data but their logarithms, so that estimators, which compare data with ``A x``, do not take this
    model: :func:`skinverse.preprocessing.minus_log` makes line integrals of counts, and weights that say how
    certain these are. With less than some ten counts behind the object they have a bias, which this fidelity
    has not; :mod:`skinverse.solvers` minimise it together with a regulariser.

    See Also
    --------
    skinverse.preprocessing.minus_log : Line integrals and weights, for estimators.

    References
    ----------
    K. Lange and R. Carson, EM reconstruction algorithms for emission and transmission tomography, Journal of
    Computer Assisted Tomography 8, 1984.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skinverse.functionals import TotalVariation
    >>> from skinverse.noise import Transmission
    >>> from skinverse.operators import as_torch, parallel_beam
    >>> from skinverse.solvers import primal_dual
    >>> A = as_torch(parallel_beam((16, 16), np.linspace(0, 3, 20), 23, dtype="float64"))
    >>> x = torch.zeros(1, 16, 16, dtype=torch.float64)
    >>> x[:, 5:11, 5:11] = 0.3
    >>> noise = Transmission(flat=500.0)
    >>> counts = noise.sample(A(x), random_state=0)
    >>> found = primal_dual(noise.fidelity(A, counts) + 5.0 * TotalVariation(), 0 * x).x
    >>> round(float(found[0, 7:9, 7:9].mean()), 1)
    0.3
    """

    flat: Any = parameter(
        default=1.0,
        allowed=Numbers(Real(gt=0)),
        kw_only=False,
        doc="Mean of the counts of light where there is no object.",
    )
    dark: Any = parameter(
        default=0.0,
        allowed=Numbers(Real(ge=0)),
        kw_only=False,
        doc="""
        Mean of the counts without light. With one above zero the fidelity is not convex, and has a gradient
        but no prox.""",
    )

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        self._check(tuple(y.shape[1:]))
        return TransmissionDivergence(A, y, self._tensor("flat", y), self._tensor("dark", y))

    def expected_fidelity(self, clean: Tensor) -> Tensor:
        self._check(tuple(clean.shape[1:]))
        means = self._tensor("flat", clean) * torch.exp(-clean) + self._tensor("dark", clean)
        return expected_divergence(means).flatten(1).sum(1)

    # ------------------------------------------------------------------ private
    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        if np.iscomplexobj(clean):
            raise ValueError("Transmission: expected real noise-free line integrals, got complex values")
        return np.asarray(self._array("flat", clean) * np.exp(-clean) + self._array("dark", clean))

    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        return drawn_counts(self._variance(clean), rng, "Transmission")  # which is their mean

"""Noise of counts, and that of cameras, which count photons."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy
from scipy.stats import poisson
from torch import Tensor

from skinverse._parameters import Real, parameter
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional, KullbackLeibler
from skinverse.noise._base import (
    NoiseModel,
    Numbers,
    Reduced,
    in_shape_of,
    tensor,
)

# Means up to which the expected divergence is tabulated, and nodes of the table for each unit of their root.
_BRIGHT, _PER_UNIT = 64.0, 64
# Means beyond which NumPy draws no counts, which are 64-bit integers.
_MOST = 9e18


class Poisson(NoiseModel):
    """Noise of counts, of photons or of other independent events.

    Data are ``gain`` times counts that are Poisson distributed with the mean ``(A x + background) / gain``:
    on average they are ``A x + background``, with the variance ``gain * (A x + background)``. The fidelity is
    the Kullback-Leibler divergence ``sum v - c + c log(c / v)`` of the counts ``c`` from their means ``v``.

    References
    ----------
    L. A. Shepp and Y. Vardi, Maximum likelihood reconstruction for emission tomography, IEEE Transactions on
    Medical Imaging 1, 1982.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.noise import Poisson
    >>> Poisson(background=2.0).variance(np.array([[0.0, 10.0]]))
    array([[ 2., 12.]])
    """

    gain: Any = parameter(
        default=1.0, allowed=Numbers(Real(gt=0)), doc="Number of data units for each counted event."
    )
    background: Any = parameter(
        default=0.0,
        allowed=Numbers(Real(ge=0)),
        doc="""
        Mean of what is counted without an image, in data units, such as scatter, random coincidences or dark
        current.""",
    )

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        # The divergence is homogeneous: that of data over the gain is that of counts.
        self._check(tuple(y.shape[1:]))
        self.check_data(y)
        data, background = self._counted(y)
        return KullbackLeibler(A, data, background=background, weights=1 / self._tensor("gain", y))

    def expected_fidelity(self, clean: Tensor) -> Tensor:
        self._check(tuple(clean.shape[1:]))
        _, background = self._counted(torch.zeros_like(clean))
        means = ((clean + background) / self._tensor("gain", clean)).clamp_min(0)
        return expected_divergence(means).flatten(1).sum(1)

    @property
    def counted(self) -> bool:
        return True

    @property
    def factor(self) -> float:
        return 1.0 if isinstance(self.gain, np.ndarray) else 1 / float(self._value("gain"))

    @property
    def rows(self) -> NDArray[Any] | None:
        return 1 / self._value("gain") if isinstance(self.gain, np.ndarray) else None

    def reduced(self, y: Tensor) -> Reduced:
        data, background = self._counted(y)
        rows = in_shape_of(y, self.rows)
        if rows is None:
            return Reduced(data, background=background)
        return Reduced(rows * data, background=rows * background)

    def check_data(self, y: Tensor) -> None:
        if y.is_complex() or bool((y < 0).any()):
            kind = "complex" if y.is_complex() else "negative"
            raise ValueError(f"Y_meas: expected real counts >= 0 under Poisson noise, got {kind} values")

    @property
    def dark(self) -> Any:
        return self._value("background")

    # ------------------------------------------------------------------ private
    def _counted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Data, not negative, and background whose variance is ``gain`` times their mean."""
        return y.clamp_min(0), self._tensor("background", y)

    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(self._array("gain", clean) * self._means(clean))

    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        gain, means = self._array("gain", clean), self._means(clean)
        return np.asarray(gain * drawn_counts(means / gain, rng, type(self).__name__))

    def _means(self, clean: NDArray[Any]) -> NDArray[Any]:
        """Means of what is counted, in data units."""
        means = np.asarray(clean + self._array("background", clean))
        if np.iscomplexobj(means) or (means < 0).any():
            raise ValueError(
                f"{type(self).__name__}: expected real noise-free data, >= 0 with the background, got "
                f"{'complex' if np.iscomplexobj(means) else 'negative'} values"
            )
        return means


class PoissonGaussian(Poisson):
    """Noise of a camera: that of counted photons, and Gaussian noise of the electronics.

    Data are ``gain * photons + offset`` plus Gaussian noise of the standard deviation ``std``. The number of
    photons is Poisson distributed with the mean ``(A x + background) / gain``. On average data are
    ``A x + background + offset``, with the variance ``gain * (A x + background) + std^2``.

    The fidelity is that of :class:`Poisson`, where ``(y - offset) / gain + (std / gain)^2``, or zero where
    this is negative, is taken for counts of the mean ``(A x + background) / gain + (std / gain)^2``. Mean and
    variance of these counts are the right ones.

    References
    ----------
    D. L. Snyder, A. M. Hammoud and R. L. White, Image recovery from data acquired with a
    charge-coupled-device camera, Journal of the Optical Society of America A 10, 1993.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.noise import PoissonGaussian
    >>> camera = PoissonGaussian(gain=0.5, std=2.0, offset=100.0)
    >>> camera.variance(np.array([[0.0, 1000.0]]))
    array([[  4., 504.]])
    """

    std: Any = parameter(
        default=0.0,
        allowed=Numbers(Real(ge=0)),
        doc="Standard deviation of the Gaussian part of the noise, in data units.",
    )
    offset: Any = parameter(
        default=0.0,
        allowed=Numbers(Real()),
        doc="Constant that the electronics add, in data units. It has no variance.",
    )

    @property
    def dark(self) -> Any:
        return self._value("background") + self._value("offset")

    def check_data(self, y: Tensor) -> None:
        if y.is_complex():
            raise ValueError("Y_meas: expected real data of a camera, got complex values")

    def _counted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        # In double precision: squares of single precision reach from 1e-38 to 1e38 only.
        dark = tensor(np.square(self._array("std", y)) / self._array("gain", y), y)
        data, background = super()._counted(y - self._tensor("offset", y) + dark)
        return data, background + dark

    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        return super()._variance(clean) + self._array("std", clean) ** 2

    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        counted = super()._drawn(clean, rng) + self._array("offset", clean)
        return counted + self._array("std", clean) * rng.standard_normal(clean.shape)


def drawn_counts(means: NDArray[Any], rng: np.random.Generator, owner: str) -> NDArray[Any]:
    """Counts of these means."""
    most = float(means.max())
    if not most < _MOST:
        raise ValueError(f"{owner}: expected less than {_MOST:.0g} counts, got {most:.2g}")
    return np.asarray(rng.poisson(means), float)


def expected_divergence(means: Tensor) -> Tensor:
    """``E c log(c / v) - c + v`` of counts ``c`` of the means ``v``: 1/2 for bright ones, 0 for dark ones."""
    table = torch.from_numpy(_divergences()).to(means)
    place = means.clamp(max=_BRIGHT).sqrt() * _PER_UNIT
    index = place.floor().long().clamp_max(len(table) - 2)
    between = torch.lerp(table[index], table[index + 1], place - index)
    return torch.where(means < _BRIGHT, between, 0.5 + (1 + 1 / means) / (12 * means))  # Barndorff-Nielsen


@cache
def _divergences() -> NDArray[np.float64]:
    """The expected divergence for means up to 64, whose roots are equally spaced."""
    means = (np.arange(int(math.sqrt(_BRIGHT)) * _PER_UNIT + 1) / _PER_UNIT)[:, None] ** 2
    counts = np.arange(4 * int(_BRIGHT))
    divergences = xlogy(counts, counts) - xlogy(counts, means + (means == 0)) - counts + means
    return np.asarray((poisson.pmf(counts, means) * divergences).sum(1))

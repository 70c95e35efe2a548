"""Noise models, clean data -> measured data: draws, fidelities, and what residual to expect.

Data ``y`` are ``A x + background`` on average, those of a camera with an offset in addition, and everything
is in units of the data. A model knows the variance of ``y``, draws from it, and gives the fidelity
``D(A x, y)``, the negative log-likelihood up to a constant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import poisson
from torch import Tensor

from skinverse._defaults import RandomState, numpy_generator
from skinverse._parameters import Constraint, Null, ParameterError, Parametrized, Real, parameter
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional, KullbackLeibler, LeastSquares

# Means up to which the expected divergence is tabulated, and nodes of the table for each unit of their root.
_BRIGHT, _PER_UNIT = 64.0, 64


class _Numbers(Constraint):
    """A number within bounds, or an array of such numbers, one for each value of the data."""

    def __init__(self, number: Real) -> None:
        self.number = number

    @property
    def kind(self) -> str:
        return f"{self.number.kind} or array of the data's shape"

    @property
    def expected(self) -> str:
        return f"{self.number.expected} or an array of such numbers"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, np.ndarray):
            return self.number.allows(value)
        ends = (value.min(), value.max()) if value.size and value.dtype.kind in "iuf" else (None,)
        return all(self.number.allows(end) for end in ends)


@dataclass(frozen=True)
class Reduced:
    """Measurements in the form in which all of them have the same noise.

    With a ``background`` they are multiples of counts, of the mean ``A x + background``. Where that is None
    the noise is white, of the standard deviation ``std``, None where it is unknown.
    """

    data: Tensor
    std: float | None = None
    background: Tensor | None = None


class NoiseModel(Parametrized, ABC):
    """What is known of the noise of measurements."""

    @abstractmethod
    def sample(self, clean: ArrayLike | Tensor, random_state: RandomState = None) -> Any:
        """Draw measurements of noise-free data.

        Parameters
        ----------
        clean : array-like or Tensor of shape (n_samples, *dimsd)
            Noise-free data ``A x``, in data units and without background.
        random_state : int, Generator, RandomState or None, default=None
            Seed or source of the random numbers.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, *dimsd)
            Measurements, of the kind and precision of ``clean``; integers become float64.

        Raises
        ------
        ValueError
            If the strength of the noise is unknown, or the noise-free data are negative or complex where
            counts are drawn.
        """

    @abstractmethod
    def variance(self, clean: ArrayLike | Tensor) -> Any:
        """Variance of the measurements; of complex ones that of the real and of the imaginary part, each.

        Parameters
        ----------
        clean : array-like or Tensor of shape (n_samples, *dimsd)
            Noise-free data ``A x``.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, *dimsd)
            Variances, in data units squared; infinite where nothing is measured.

        Raises
        ------
        ValueError
            If the strength of the noise is unknown.
        """

    @abstractmethod
    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        """The fidelity ``D(A x, y)`` as a function of the image.

        Parameters
        ----------
        A : linear map or None
            Linear map of batches; None is the identity.
        y : Tensor of shape (n, *dimsd)
            Measurements.

        Returns
        -------
        Functional
            ``(n, *dims) -> (n,)``, zero where the image explains the measurements exactly.
        """

    @abstractmethod
    def expected_fidelity(self, clean: Tensor) -> Tensor:
        """Mean of the fidelity of the true image: the level at which the discrepancy principle stops.

        Parameters
        ----------
        clean : Tensor of shape (n, *dimsd)
            Noise-free data ``A x``, or what a reconstruction makes of them.

        Returns
        -------
        Tensor of shape (n,)
            One number for each image.
        """

    # ------------------------------------------------------------------ for estimators
    @property
    def known(self) -> bool:
        """Whether the strength of the noise is known."""
        return True

    @property
    def uniform(self) -> bool:
        """Whether all measurements have the same parameters."""
        return not any(isinstance(value, np.ndarray) for value in self.get_params().values())

    @property
    def counted(self) -> bool:
        """Whether the data are counts, whose variance is their mean."""
        return False

    @property
    @abstractmethod
    def factor(self) -> float:
        """The fidelity is this times least squares, or a divergence of counts, of data times ``rows``."""

    @property
    @abstractmethod
    def rows(self) -> NDArray[Any] | None:
        """What data are multiplied by before the noise has one parameter for all of them; None is one."""

    @abstractmethod
    def reduced(self, y: Tensor) -> Reduced:
        """The measurements (n, *dimsd), multiplied by ``rows``, and what is known of their noise."""

    def check_data(self, y: Tensor) -> None:  # noqa: B027
        """Refuse values that cannot be measured with a ValueError."""

    @property
    def dark(self) -> Any:
        """Mean of the data without an image: a number, or an array of their shape."""
        return 0.0

    def unmeasured(self) -> NDArray[np.bool_] | None:
        """Which data are known to say nothing, boolean and of their shape; None where all say something."""
        return None

    def restricted(self, kept: Any) -> Self:
        """The noise of those data alone that are selected by indices into the flat ones."""
        values = self.get_params().items()
        return type(self)(**{k: v.ravel()[kept] if isinstance(v, np.ndarray) else v for k, v in values})

    def check_shape(self, dimsd: tuple[int, ...]) -> None:
        """Refuse arrays that are not of the data's shape with a ParameterError."""
        for name, value in self.get_params().items():
            if isinstance(value, np.ndarray) and value.shape not in (dimsd, (math.prod(dimsd),)):
                raise ParameterError(
                    f"noise__{name}: expected a number or an array of the data's shape {dimsd}, got shape "
                    f"{value.shape}"
                )


class Gaussian(NoiseModel):
    """Gaussian noise, independent from one measurement to the next.

    The fidelity is ``sum_i w_i |(A x - y)_i|^2 / (2 std^2)``, and with unknown ``std`` half of the weighted
    sum of squares. The noise of measurement ``i`` has the variance ``std^2 / w_i``.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.noise import Gaussian
    >>> noise = Gaussian(0.1)
    >>> noise.variance(np.zeros((1, 3))).round(3)
    array([[0.01, 0.01, 0.01]])
    >>> noise.sample(np.ones((1, 3)), random_state=0).round(2)
    array([[1.01, 0.99, 1.06]])
    """

    std: Any = parameter(
        default=None,
        allowed=_Numbers(Real(gt=0)) | Null(),
        kw_only=False,
        doc="""
        Standard deviation of the noise in data units; of complex data that of the real part and of the
        imaginary part, each. None where it is unknown.""",
    )
    weights: Any = parameter(
        default=None,
        allowed=_Numbers(Real(ge=0)) | Null(),
        doc="""
        Weights ``w`` of the measurements, inversely proportional to the variance of their noise. A weight of
        zero says that nothing was measured: the value there is never read. None is one.""",
    )

    def sample(self, clean: ArrayLike | Tensor, random_state: RandomState = None) -> Any:
        values, rng = as_numpy(clean), numpy_generator(random_state)
        std = np.sqrt(self._variance(values.shape[1:], "draw"))
        std = np.where(np.isfinite(std), std, 0)  # where nothing is measured
        noise = rng.standard_normal(values.shape)
        if np.iscomplexobj(values):
            noise = noise + 1j * rng.standard_normal(values.shape)
        return _like(values + std * noise, clean)

    def variance(self, clean: ArrayLike | Tensor) -> Any:
        values = as_numpy(clean)
        return _like(np.broadcast_to(self._variance(values.shape[1:], "tell"), values.shape), clean)

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        precision = _tensor(self._precision(tuple(y.shape[1:])), y)
        measured = y if self.unmeasured() is None else torch.where(precision > 0, y, 0)
        return LeastSquares(A, measured, weights=precision)

    def expected_fidelity(self, clean: Tensor) -> Tensor:
        unmeasured = self.unmeasured()
        n_data = clean[0].numel() - (0 if unmeasured is None else int(unmeasured.sum()))
        n_numbers = (2 if clean.is_complex() else 1) * n_data
        return torch.full((len(clean),), n_numbers / 2, dtype=clean.dtype.to_real(), device=clean.device)

    @property
    def known(self) -> bool:
        return self.std is not None

    @property
    def rows(self) -> NDArray[Any] | None:
        if self.uniform:
            return None
        weights, std = (1.0 if value is None else value for value in (self.weights, self.std))
        return np.asarray(np.sqrt(weights) * _size(std) / std)

    @property
    def factor(self) -> float:
        weight = 1.0 if self.weights is None or not self.uniform else float(self.weights)
        return weight if self.std is None else weight / _size(self.std) ** 2

    def reduced(self, y: Tensor) -> Reduced:
        rows = _in_shape_of(y, self.rows)
        std = None if self.std is None else 1 / math.sqrt(self.factor)
        return Reduced(y if rows is None else rows * y, std=std)

    def unmeasured(self) -> NDArray[np.bool_] | None:
        if self.weights is None or np.all(self.weights):
            return None
        return np.asarray(self.weights) == 0

    def _precision(self, dimsd: tuple[int, ...]) -> NDArray[Any]:
        """``w / std^2``, of shape ``dimsd``; with unknown ``std`` the weights."""
        weights = 1.0 if self.weights is None else self.weights
        std = 1.0 if self.std is None else self.std
        return np.broadcast_to(_flat(weights / np.square(std), dimsd), math.prod(dimsd)).reshape(dimsd)

    def _variance(self, dimsd: tuple[int, ...], purpose: str) -> NDArray[Any]:
        if self.std is None:
            raise ValueError(f"Gaussian: expected a std to {purpose} the noise by, got std=None")
        with np.errstate(divide="ignore"):
            return 1 / self._precision(dimsd)


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
        default=1.0, allowed=_Numbers(Real(gt=0)), doc="Number of data units for each counted event."
    )
    background: Any = parameter(
        default=0.0,
        allowed=_Numbers(Real(ge=0)),
        doc="""
        Mean of what is counted without an image, in data units, such as scatter, random coincidences or dark
        current.""",
    )

    def sample(self, clean: ArrayLike | Tensor, random_state: RandomState = None) -> Any:
        return _like(self._drawn(as_numpy(clean), numpy_generator(random_state)), clean)

    def variance(self, clean: ArrayLike | Tensor) -> Any:
        values = as_numpy(clean)
        return _like(self._variance(values), clean)

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        # The divergence is homogeneous: that of data over the gain is that of counts.
        self.check_data(y)
        data, background = self._counted(y)
        return KullbackLeibler(A, data, background=background, weights=1 / self._tensor("gain", y))

    def expected_fidelity(self, clean: Tensor) -> Tensor:
        _, background = self._counted(torch.zeros_like(clean))
        means = ((clean + background) / self._tensor("gain", clean)).clamp_min(0)
        return expected_divergence(means).flatten(1).sum(1)

    @property
    def counted(self) -> bool:
        return True

    @property
    def factor(self) -> float:
        return 1.0 if isinstance(self.gain, np.ndarray) else 1 / float(self.gain)

    @property
    def rows(self) -> NDArray[Any] | None:
        return 1 / self.gain if isinstance(self.gain, np.ndarray) else None

    def reduced(self, y: Tensor) -> Reduced:
        data, background = self._counted(y)
        rows = _in_shape_of(y, self.rows)
        if rows is None:
            return Reduced(data, background=background)
        return Reduced(rows * data, background=rows * background)

    def check_data(self, y: Tensor) -> None:
        if y.is_complex() or bool((y < 0).any()):
            kind = "complex" if y.is_complex() else "negative"
            raise ValueError(f"Y_meas: expected real counts >= 0 under Poisson noise, got {kind} values")

    @property
    def dark(self) -> Any:
        return self.background

    # ------------------------------------------------------------------ private
    def _counted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Data, not negative, and background whose variance is ``gain`` times their mean."""
        return y.clamp_min(0), self._tensor("background", y)

    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        gain, background = (self._array(name, clean) for name in ("gain", "background"))
        return gain * (clean + background)

    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Data of these clean ones."""
        gain, means = self._array("gain", clean), clean + self._array("background", clean)
        if np.iscomplexobj(means) or (means < 0).any():
            raise ValueError(
                f"{type(self).__name__}: expected real noise-free data, >= 0 with the background, got "
                f"{'complex' if np.iscomplexobj(means) else 'negative'} values"
            )
        return gain * rng.poisson(means / gain)

    def _array(self, name: str, like: NDArray[Any] | Tensor) -> Any:
        """A parameter as a number, or as an array of the shape of one image's data."""
        value = getattr(self, name)
        return value.reshape(like.shape[1:]) if isinstance(value, np.ndarray) else value

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        """The same in the precision and on the device of data."""
        return _tensor(self._array(name, like), like)


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
        allowed=_Numbers(Real(ge=0)),
        doc="Standard deviation of the Gaussian part of the noise, in data units.",
    )
    offset: Any = parameter(
        default=0.0,
        allowed=_Numbers(Real()),
        doc="Constant that the electronics add, in data units. It has no variance.",
    )

    @property
    def dark(self) -> Any:
        return self.background + self.offset

    def check_data(self, y: Tensor) -> None:
        if y.is_complex():
            raise ValueError("Y_meas: expected real data of a camera, got complex values")

    def _counted(self, y: Tensor) -> tuple[Tensor, Tensor]:
        dark = self._tensor("std", y).square() / self._tensor("gain", y)
        data, background = super()._counted(y - self._tensor("offset", y) + dark)
        return data, background + dark

    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        return super()._variance(clean) + self._array("std", clean) ** 2

    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        counted = super()._drawn(clean, rng) + self._array("offset", clean)
        return counted + self._array("std", clean) * rng.standard_normal(clean.shape)


def noise_model(noise: NoiseModel | str | float | None) -> NoiseModel:
    """The model that a parameter ``noise`` stands for."""
    if noise is None:
        return Gaussian()
    if isinstance(noise, str):
        return Poisson()
    return Gaussian(float(noise)) if isinstance(noise, (int, float, np.number)) else noise


# ---------------------------------------------------------------------- formulas and layouts
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


def as_numpy(data: Any) -> NDArray[Any]:
    """The numbers of an array or tensor, in floating point."""
    array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    return array if array.dtype.kind in "fc" else array.astype(float)


def _like(values: NDArray[Any], data: Any) -> Any:
    """Values of the kind, precision and device of data."""
    if isinstance(data, Tensor):
        dtype = data.dtype if data.is_floating_point() or data.is_complex() else torch.float64
        real = dtype if np.iscomplexobj(values) else dtype.to_real()
        return torch.from_numpy(np.array(values)).to(data.device, real)
    kind = as_numpy(data).dtype
    return values.astype(kind if np.iscomplexobj(values) else kind.type(0).real.dtype)


def _size(value: Any) -> float:
    """Root mean square of a number or an array."""
    return float(np.sqrt(np.mean(np.square(value))))


def _in_shape_of(y: Tensor, rows: NDArray[Any] | None) -> Tensor | None:
    """One number for each value of an image's data, like these data."""
    return None if rows is None else _tensor(rows.reshape(y.shape[1:]), y)


def _flat(value: Any, dimsd: tuple[int, ...]) -> NDArray[Any]:
    """An array of data's shape, or a number, with one axis."""
    return np.broadcast_to(np.asarray(value).reshape(-1), (math.prod(dimsd),))


def _tensor(value: Any, like: Tensor) -> Tensor:
    """A number or an array in the real precision and on the device of data."""
    return torch.tensor(np.asarray(value, dtype=float), dtype=like.dtype.to_real(), device=like.device)

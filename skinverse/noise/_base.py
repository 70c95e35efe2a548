"""What a noise model is, and what all of them share.

Data ``y`` are ``A x + background`` on average, those of a camera with an offset in addition, and everything
is in units of the data. Behind an object that absorbs light, they are exponentials of ``A x``. A model knows
the variance of ``y``, draws from it, and gives the fidelity ``D(A x, y)``, the negative log-likelihood up to
a constant.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from skinverse._arrays import as_rows, check_complete, check_finite, to_batch
from skinverse._defaults import RandomState, numpy_generator
from skinverse._parameters import Constraint, ParameterError, Parametrized, Real
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional


class Numbers(Constraint):
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
        if isinstance(value, np.ma.MaskedArray):  # of which NumPy would read what is under the mask
            return False
        if not value.size or value.dtype.kind not in "biuf":
            return False
        return self.number.allows(float(value.min())) and self.number.allows(float(value.max()))


@dataclass(frozen=True)
class Reduced:
    """Measurements in the form in which all of them have the same noise.

    With a ``background`` they are multiples of counts, of the mean ``A x + background``. Where that is None
    the noise is white, of the standard deviation ``std``, None where it is unknown.
    """

    data: Tensor
    std: float | None = None
    background: Tensor | None = None


class DataModel(Parametrized, ABC):
    """What is known of how measurements come from noise-free data ``A x``."""

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
            If a parameter has a value or a shape that it cannot have, the strength of the noise is unknown,
            or the noise-free data are empty or not finite, or negative or complex where counts are drawn.
        TypeError
            If they are not numbers.
        """
        values = self._checked(clean)
        return in_kind_of(self._drawn(values, numpy_generator(random_state)), clean)

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
            As :meth:`sample`.
        TypeError
            If the noise-free data are not numbers.
        """
        values = self._checked(clean)
        return in_kind_of(np.broadcast_to(self._variance(values), values.shape), clean)

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

    def check_shape(self, dimsd: tuple[int, ...], owner: str = "") -> None:
        """Refuse arrays that are not of the data's shape with a ParameterError; ``owner`` begins names."""
        for name, value in self.get_params().items():
            if isinstance(value, np.ndarray) and value.shape not in (dimsd, (math.prod(dimsd),)):
                raise ParameterError(
                    f"{owner}{name}: expected a number or an array of the data's shape {dimsd}, got shape "
                    f"{value.shape}"
                )

    # ------------------------------------------------------------------ for models
    @abstractmethod
    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """Measurements of these noise-free data, (n_samples, *dimsd) in double precision."""

    @abstractmethod
    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        """Their variances, of a shape that broadcasts to that of the data."""

    def _checked(self, clean: ArrayLike | Tensor) -> NDArray[Any]:
        """Noise-free data in double precision."""
        rows = as_rows(clean, "clean")
        check_complete(rows, "clean")
        check_finite(rows, "clean")
        self._check(tuple(rows.shape[1:]))
        values = to_batch(rows).cpu().numpy()
        return values.astype(np.result_type(values, np.float64))

    def _check(self, dimsd: tuple[int, ...]) -> None:
        """Refuse parameters that are not those of data of this shape."""
        self.check_parameters()
        self.check_shape(dimsd)

    def _value(self, name: str) -> Any:
        """A parameter in double precision: squares of small types over- and underflow, and integers wrap."""
        value = getattr(self, name)
        return value if value is None else np.asarray(value, np.float64)[()]

    def _array(self, name: str, like: NDArray[Any] | Tensor) -> Any:
        """A parameter as a number, or as an array of the shape of one image's data."""
        value = self._value(name)
        return value.reshape(like.shape[1:]) if np.ndim(value) else value

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        """The same in the precision and on the device of data."""
        return tensor(self._array(name, like), like)


class NoiseModel(DataModel):
    """What is known of the noise of measurements that are ``A x`` on average, up to a constant."""

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

    def with_parameters(self, values: Mapping[str, Any]) -> Self:
        """The noise with other values of some parameters."""
        return type(self)(**(self.get_params(deep=False) | dict(values)))

    def restricted(self, kept: Any) -> Self:
        """The noise of those data alone that are selected by indices into the flat ones."""
        values = self.get_params().items()
        return type(self)(**{k: v.ravel()[kept] if isinstance(v, np.ndarray) else v for k, v in values})


# ---------------------------------------------------------------------- layouts
def as_numpy(data: ArrayLike) -> NDArray[Any]:
    """The numbers of an array, in floating point."""
    array = np.asarray(data)
    return array if array.dtype.kind in "fc" else array.astype(float)


def in_kind_of(values: NDArray[Any], data: Any) -> Any:
    """Values of the kind, precision and device of data."""
    if isinstance(data, Tensor):
        dtype = data.dtype if data.is_floating_point() or data.is_complex() else torch.float64
        real = dtype if np.iscomplexobj(values) else dtype.to_real()
        return torch.from_numpy(np.array(values)).to(data.device, real)
    kind = as_numpy(data).dtype
    return values.astype(kind if np.iscomplexobj(values) else kind.type(0).real.dtype)


def size(value: Any) -> float:
    """Root mean square of a number or an array."""
    return float(np.sqrt(np.mean(np.square(value))))


def in_shape_of(y: Tensor, rows: NDArray[Any] | None) -> Tensor | None:
    """One number for each value of an image's data, like these data."""
    return None if rows is None else tensor(rows.reshape(y.shape[1:]), y)


def flat(value: Any, dimsd: tuple[int, ...]) -> NDArray[Any]:
    """An array of data's shape, or a number, with one axis."""
    return np.broadcast_to(np.asarray(value).reshape(-1), (math.prod(dimsd),))


def tensor(value: Any, like: Tensor) -> Tensor:
    """A number or an array in the real precision and on the device of data."""
    return torch.tensor(np.asarray(value, dtype=float), dtype=like.dtype.to_real(), device=like.device)

"""Gaussian noise, whose strength may differ from one measurement to another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skinverse._parameters import Null, ParameterError, Real, parameter
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional, LeastSquares
from skinverse.noise._base import (
    NoiseModel,
    Numbers,
    Reduced,
    flat,
    in_shape_of,
    size,
    tensor,
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
        allowed=Numbers(Real(gt=0)) | Null(),
        kw_only=False,
        doc="""
        Standard deviation of the noise in data units; of complex data that of the real part and of the
        imaginary part, each. None where it is unknown.""",
    )
    weights: Any = parameter(
        default=None,
        allowed=Numbers(Real(ge=0)) | Null(),
        doc="""
        Weights ``w`` of the measurements, inversely proportional to the variance of their noise. A weight of
        zero says that nothing was measured: the value there is never read. A boolean array says which were
        measured. None is one.""",
    )

    def _check_combination(self) -> None:
        if self.weights is not None and not np.any(self.weights):
            raise ParameterError("weights: expected some above zero, got zeros: nothing was measured")

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        self._check(tuple(y.shape[1:]))
        precision = tensor(self._precision(tuple(y.shape[1:])), y)
        measured = y if self.unmeasured() is None else torch.where(precision > 0, y, 0)
        return LeastSquares(A, measured, weights=precision)

    def expected_fidelity(self, clean: Tensor) -> Tensor:
        self._check(tuple(clean.shape[1:]))
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
        weights, std = self._values()
        return np.asarray(np.sqrt(weights) * size(std) / std)

    @property
    def factor(self) -> float:
        weights, std = self._values()
        return float(weights if self.uniform else 1.0) / size(std) ** 2

    def reduced(self, y: Tensor) -> Reduced:
        rows = in_shape_of(y, self.rows)
        std = None if self.std is None else 1 / math.sqrt(self.factor)
        return Reduced(y if rows is None else rows * y, std=std)

    def unmeasured(self) -> NDArray[np.bool_] | None:
        if self.weights is None or np.all(self.weights):
            return None
        return np.asarray(self.weights) == 0

    # ------------------------------------------------------------------ private
    def _drawn(self, clean: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        std = np.sqrt(self._variance(clean))
        std = np.where(np.isfinite(std), std, 0)  # where nothing is measured
        noise = rng.standard_normal(clean.shape)
        if np.iscomplexobj(clean):
            noise = noise + 1j * rng.standard_normal(clean.shape)
        return clean + std * noise

    def _variance(self, clean: NDArray[Any]) -> NDArray[Any]:
        if self.std is None:
            raise ValueError(
                "Gaussian: expected a std to draw the noise by or to tell its variance, got std=None"
            )
        with np.errstate(divide="ignore"):
            return 1 / self._precision(clean.shape[1:])

    def _precision(self, dimsd: tuple[int, ...]) -> NDArray[Any]:
        """``w / std^2``, of shape ``dimsd``; with unknown ``std`` the weights."""
        weights, std = self._values()
        return flat(weights / np.square(std), dimsd).reshape(dimsd)

    def _values(self) -> tuple[Any, Any]:
        """Weights and standard deviation, one where nothing is known."""
        weights, std = (self._value(name) for name in ("weights", "std"))
        return 1.0 if weights is None else weights, 1.0 if std is None else std

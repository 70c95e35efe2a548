"""Gaussian noise, whose strength may differ from one measurement to another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from skinverse._defaults import RandomState, numpy_generator
from skinverse._parameters import Null, ParameterError, Real, parameter
from skinverse._tensors import LinearMap
from skinverse.functionals import Functional, LeastSquares
from skinverse.noise._base import (
    NoiseModel,
    Numbers,
    Reduced,
    as_numpy,
    flat,
    in_kind_of,
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
        zero says that nothing was measured: the value there is never read. None is one.""",
    )

    def _check_combination(self) -> None:
        if self.weights is not None and not np.any(self.weights):
            raise ParameterError("weights: expected some above zero, got zeros: nothing was measured")

    def sample(self, clean: ArrayLike | Tensor, random_state: RandomState = None) -> Any:
        values, rng = as_numpy(clean), numpy_generator(random_state)
        std = np.sqrt(self._variance(values.shape[1:], "draw"))
        std = np.where(np.isfinite(std), std, 0)  # where nothing is measured
        noise = rng.standard_normal(values.shape)
        if np.iscomplexobj(values):
            noise = noise + 1j * rng.standard_normal(values.shape)
        return in_kind_of(values + std * noise, clean)

    def variance(self, clean: ArrayLike | Tensor) -> Any:
        values = as_numpy(clean)
        return in_kind_of(np.broadcast_to(self._variance(values.shape[1:], "tell"), values.shape), clean)

    def fidelity(self, A: LinearMap | None, y: Tensor) -> Functional:
        precision = tensor(self._precision(tuple(y.shape[1:])), y)
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
        return np.asarray(np.sqrt(weights) * size(std) / std)

    @property
    def factor(self) -> float:
        weight = 1.0 if self.weights is None or not self.uniform else float(self.weights)
        return weight if self.std is None else weight / size(self.std) ** 2

    def reduced(self, y: Tensor) -> Reduced:
        rows = in_shape_of(y, self.rows)
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
        return np.broadcast_to(flat(weights / np.square(std), dimsd), math.prod(dimsd)).reshape(dimsd)

    def _variance(self, dimsd: tuple[int, ...], purpose: str) -> NDArray[Any]:
        if self.std is None:
            raise ValueError(f"Gaussian: expected a std to {purpose} the noise by, got std=None")
        with np.errstate(divide="ignore"):
            return 1 / self._precision(dimsd)

"""Truncated singular value decomposition."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from skinverse._parameters import Array, Instance, Integer, Null, OneOf, Real, fitted, parameter
from skinverse._tensors import expand, norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._declarations import noise_parameter
from skinverse.estimators._problems import Problems
from skinverse.estimators._units import size_of
from skinverse.estimators._validation import (
    check_noise_known,
    operator_digest,
    seed_of,
    white_std,
)
from skinverse.noise import Gaussian
from skinverse.operators import LinearMap
from skinverse.solvers import Solution

# Data that are not complex.
_REAL = torch.empty(0, device="cpu")
# Up to this many numbers the operator is written out as a dense matrix for an exact decomposition.
_DENSE = 2**22
# Components are computed until `lam` cuts one off, first so many, then by a factor more each time, as long as
# the singular vectors hold at most this many numbers, 128 MiB.
_FIRST, _MORE, _LARGEST = 200, 3, 2**24
# A singular value that is so small, relative to the largest one and their number, is zero but for rounding.
_ZERO = torch.finfo(torch.float64).eps


class SpectralCutoff(BaseReconstructor):
    """Truncated singular value decomposition.

    With ``A = sum_i s_i u_i v_i^*`` the reconstruction is ``sum_(s_i^2 >= lam) s_i^-1 <u_i, y> v_i``:
    singular values that Tikhonov regularisation with the same ``lam`` would halve or worse are cut off.

    References
    ----------
    H. W. Engl, M. Hanke and A. Neubauer, Regularization of Inverse Problems, Kluwer, 1996, example 4.8.
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, SIAM Review 53, 2011,
    algorithm 4.4.

    Examples
    --------
    >>> import numpy as np, pylops
    >>> from skinverse import SpectralCutoff
    >>> A = pylops.MatrixMult(np.diag([2.0, 1.0, 0.001]))
    >>> SpectralCutoff(A, lam=0.01).fit().predict(np.ones((1, 3))).round(2)
    array([[0.5, 1. , 0. ]])
    """

    lam: float | str = parameter(
        default=0.1,
        allowed=Real(ge=0) | OneOf("discrepancy"),
        doc="""
        Smallest squared singular value kept. "discrepancy" keeps, per image, as few as bring
        ``||A x - y||`` down to ``sqrt(n_measurements) * std``.""",
    )
    noise: Gaussian | float | None = noise_parameter(
        'It is used by ``lam="discrepancy"``, and must be alike in all measurements.', kind=Gaussian
    )
    n_components: int | None = parameter(
        default=None,
        allowed=Integer(ge=1) | Null(),
        doc="""
        Most singular values computed. None computes all of an operator of at most 2^22 entries (exact,
        dense), and of a larger one (randomised) 200 or as many as a number ``lam`` keeps, as long as the
        singular vectors hold at most 2^24 numbers; a warning tells where ``lam`` keeps all of these.""",
    )
    random_state: Any = parameter(
        default=0,
        kind="int, RandomState or None",
        doc="Seed of the randomised decomposition.",
    )

    singular_values_: Any = fitted(
        kind="ndarray of shape (n_components,)",
        allowed=Array(ndim=1),
        doc="The singular values, largest first; set if the operator is known to ``fit``.",
    )
    components_: Any = fitted(
        kind="ndarray of shape (n_components, *operator.dims)",
        allowed=Array(),
        doc="The singular vectors ``v_i``, images.",
    )
    data_components_: Any = fitted(
        kind="ndarray of shape (n_components, *operator.dimsd)",
        allowed=Array(),
        doc="The singular vectors ``u_i``, data.",
    )

    seed_: int = fitted(kind="int", allowed=Integer(ge=0), doc="Seed of a decomposition in ``predict``.")
    operator_digest_: str = fitted(
        kind="str", allowed=Instance(str), doc="Content of the operator that ``fit`` has decomposed."
    )

    def _check_combination(self) -> None:
        check_noise_known(self.lam, self.noise)
        white_std(self.noise, "SpectralCutoff", _REAL)

    def _check_fitted(self) -> None:
        operator = getattr(self, "operator_", None)
        if operator is None:
            return
        n = len(self.singular_values_)
        known = {"components_": operator.dims, "data_components_": operator.dimsd}
        for name, sizes in known.items():
            if getattr(self, name).shape != (n, *sizes):
                raise ValueError(
                    f"{name}: expected shape {(n, *sizes)} from singular_values_ and operator_, got "
                    f"{getattr(self, name).shape}"
                )

    def _fit(self, problems: Problems | None, images: Tensor | None, data: Tensor | None) -> None:
        self.seed_ = seed_of(self.random_state)
        if problems is not None:
            self.operator_digest_ = operator_digest(self.operator_)
            parts = self._decompose(problems.A)
            self.data_components_, self.singular_values_, self.components_ = (
                np.ascontiguousarray(t.cpu().resolve_conj()) for t in parts
            )

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        u, s, v = self._parts(A, data)
        size = size_of(data, A)
        data = data / expand(size, data)
        dtype = torch.promote_types(u.dtype, data.dtype)
        coefficients = torch.einsum("i...,n...->ni", u.conj().to(dtype), data.to(dtype))
        coefficients = coefficients if v.is_complex() or not u.is_complex() else coefficients.real
        keep = self._kept(A, s, coefficients.abs(), data, size)
        self._warn_of_missing(A, s, keep)
        weights = torch.where(keep, coefficients / s, 0)
        dtype = torch.promote_types(weights.dtype, v.dtype)
        x = torch.einsum("ni,i...->n...", weights.to(dtype), v.to(dtype))
        return Solution.direct(expand(size, x) * x, extra={"n_components": keep.sum(1)})

    def _warn_of_missing(self, A: LinearMap, s: Tensor, keep: Tensor) -> None:
        """Say so where the last component computed is kept, and nobody has chosen their number."""
        n_all = min(math.prod(A.dims), A.n_measured)
        if self.n_components is None and len(s) < n_all and bool(keep[:, -1].any()):
            warnings.warn(
                f"SpectralCutoff: lam={self.lam!r} keeps all of the {len(s)} largest singular values that "
                f"were computed, down to {float(s[-1]):.2g}, and the rest counts as cut off: raise "
                f"n_components, of which there are {n_all}, or lam",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _kept(self, A: LinearMap, s: Tensor, coefficients: Tensor, data: Tensor, size: Tensor) -> Tensor:
        """Which singular values each image keeps, (n, n_components); never one that is zero to rounding."""
        usable = s > s[0] * torch.finfo(s.dtype).eps * len(s)
        if self.lam != "discrepancy":
            return (usable & (s.double().square() >= float(self.lam))).expand_as(coefficients)
        noise_std: Any = white_std(self.noise, "SpectralCutoff", data)  # check_noise_known
        level = math.sqrt(A.n_measured) * noise_std / size
        removed = coefficients.square().cumsum(1) - coefficients.square()
        residual = norm(data).square()[:, None] - removed  # before component i is added
        return usable & (residual > level.square()[:, None])

    def _parts(self, A: LinearMap, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decomposition that ``fit`` stored, or that of an operator that came later."""
        operator = self.operator_ if self.operator is None else self.operator
        if getattr(self, "operator_digest_", None) == operator_digest(operator) and self._suffices(A):
            parts: Any = self.data_components_, self.singular_values_, self.components_
        else:
            parts = self._decompose(A)
        real = data.dtype.to_real()
        u, s, v = (torch.as_tensor(t, device=data.device) for t in parts)
        u, s, v = (t.to(real.to_complex() if t.is_complex() else real) for t in (u, s, v))
        return u, s, v

    def _suffices(self, A: LinearMap) -> bool:
        """Whether the stored decomposition has the sizes of ``A``, and all that ``lam`` keeps."""
        if (A.dims, A.dimsd) != (self.components_.shape[1:], self.data_components_.shape[1:]):
            return False
        complete = self.n_components is not None or len(self.singular_values_) >= _most(A)
        return complete or not self._keeps(self.singular_values_)

    def _decompose(self, A: LinearMap) -> tuple[Tensor, Tensor, Tensor]:
        n_pixels, n_data = math.prod(A.dims), A.n_measured
        n_all = min(n_pixels, n_data)
        if n_pixels * n_data <= _DENSE:
            return _truncated(_dense_svd(A), self.n_components or n_all)
        if self.n_components is not None:
            return _leading(A, min(self.n_components, n_all), self.seed_)
        n = min(_FIRST, n_all)
        parts = _leading(A, n, self.seed_)
        while n < _most(A) and self._keeps(parts[1]):
            n = min(_MORE * n, _most(A))
            # The randomised way to half of the components takes longer than the exact one to all.
            if 2 * n > n_all and n_pixels * n_data <= _LARGEST:
                return _dense_svd(A)
            parts = _leading(A, n, self.seed_)
        return parts

    def _keeps(self, s: Any) -> bool:
        """Whether a number ``lam`` keeps the last singular value, so that more may be wanted."""
        if self.lam == "discrepancy":
            return False
        return bool(s[-1] > s[0] * _ZERO * len(s)) and float(s[-1]) ** 2 >= float(self.lam)


def _most(A: LinearMap) -> int:
    """Number of components that are computed at most, where nobody has chosen it."""
    n_pixels, n_data = math.prod(A.dims), A.n_measured
    return min(n_pixels, n_data, max(_FIRST, _LARGEST // (n_pixels + n_data)))


def _leading(A: LinearMap, n_components: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """So many singular triplets, by the randomised decomposition."""
    n_all = min(math.prod(A.dims), A.n_measured)
    return _truncated(_randomized_svd(A, min(n_components + 10, n_all), seed), n_components)


def _truncated(parts: tuple[Tensor, Tensor, Tensor], n_components: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = parts
    return u[:n_components], s[:n_components], v[:n_components]


def _dense_svd(A: LinearMap) -> tuple[Tensor, Tensor, Tensor]:
    """All singular triplets: data-shaped ``u``, numbers ``s``, image-shaped ``v``."""
    n_pixels = math.prod(A.dims)
    columns = A(torch.eye(n_pixels, dtype=torch.float64).reshape(n_pixels, *A.dims))
    pack, unpack = _coordinates(A, columns)
    u, s, vh = torch.linalg.svd(pack(columns).T, full_matrices=False)
    return unpack(u.T), s, vh.conj().reshape(-1, *A.dims)


def _randomized_svd(
    A: LinearMap, n_components: int, seed: int, *, n_power: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets from a random range and power iterations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n_components, *A.dims), dtype=torch.float64, generator=generator)
    pack, unpack = _coordinates(A, A(x))
    for _ in range(n_power):
        x = A.adjoint(unpack(_orthonormal(pack(A(x))))).reshape(n_components, *A.dims)
        x = _orthonormal(x.flatten(1)).reshape(n_components, *A.dims)
    q = _orthonormal(pack(A(x)))
    u, s, vh = torch.linalg.svd(A.adjoint(unpack(q)).flatten(1).conj(), full_matrices=False)
    return unpack(u.T @ q), s, vh.conj().reshape(-1, *A.dims)


def _orthonormal(rows: Tensor) -> Tensor:
    return torch.linalg.qr(rows.T).Q.T


def _coordinates(A: LinearMap, data: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Data to vectors and back; complex data of a map from real images count as two real numbers."""
    if data.is_complex() and not A.adjoint(data[:1]).is_complex():
        return (
            lambda y: torch.view_as_real(y).flatten(1),
            lambda c: torch.view_as_complex(c.reshape(-1, *A.dimsd, 2).contiguous()),
        )
    return lambda y: y.flatten(1), lambda c: c.reshape(-1, *A.dimsd)

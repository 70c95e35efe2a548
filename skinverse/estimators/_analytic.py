"""Reconstruction by a formula: filtered back-projection, Tikhonov regularization, spectral cut-off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pylops
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skinverse._batch import expand, norm
from skinverse.estimators._base import BaseReconstructor
from skinverse.estimators._validation import check_lam, check_whole, discrepancy_level
from skinverse.operators import LinearMap, as_torch
from skinverse.solvers import Solution, conjugate_gradient

# Up to this many numbers the operator is written out as a dense matrix for an exact decomposition.
_DENSE = 2**22


class FilteredBackProjection(BaseReconstructor):
    """Filtered back-projection; the zero-filled inverse for sampled Fourier data.

    For parallel-beam CT the data are filtered along the detector and smeared back along the rays,
    ``x = A^* (h * y)`` in physical units. For (multi-coil, undersampled) Fourier measurements, missing
    samples count as zero; coil maps are taken to be normalised, ``sum_c |S_c|^2 = 1``. Nothing is iterated,
    nothing learned.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        A :func:`~skinverse.operators.parallel_beam` or
        :func:`~skinverse.operators.fourier_sampling` operator, possibly scaled; None is the identity.
    filter : {"ramp", "shepp-logan", "cosine", "hamming", "hann"}, default="ramp"
        Window on the ramp filter: "ramp" is sharpest, "hann" smoothest. Ignored for Fourier data.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator
        The operator seen by ``fit``.

    See Also
    --------
    Tikhonov : For any operator.

    References
    ----------
    A. C. Kak and M. Slaney, Principles of Computerized Tomographic Imaging, SIAM, 2001, chapter 3.

    Examples
    --------
    >>> from skinverse import FilteredBackProjection
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("ct", n_samples=2, size=32, noise=0.01, random_state=0)
    >>> FilteredBackProjection(A, filter="hann").fit().predict(data).shape
    (2, 32, 32)
    """

    def __init__(
        self, operator: pylops.LinearOperator | None = None, *, filter: str = "ramp", device: str = "auto"
    ) -> None:
        self.operator = operator
        self.filter = filter
        self.device = device

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        return Solution.direct(A.filtered_adjoint(data, filter=self.filter))


class Tikhonov(BaseReconstructor):
    """Tikhonov regularization: the classical baseline for any linear operator.

    Minimises, for each image, ``1/2 ||A x - y||^2 + lam/2 ||x||^2``, whose solution
    ``(A^* A + lam I)^-1 A^* y = A^* (A A^* + lam I)^-1 y`` is computed by conjugate gradients.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity (denoising).
    lam : float >= 0 or "discrepancy", default=0.1
        Weight of the penalty. "discrepancy" chooses it per image so that
        ``||A x - y|| = sqrt(n_measurements) * noise_std``.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one (real or complex) measurement; needed by "discrepancy".
    max_steps : int, default=1000
        Most conjugate gradient steps.
    tol : float, default=1e-5
        Relative residual of the linear system at which an image stops.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

    Notes
    -----
    Much of the literature minimises ``||A x - y||^2 + lam ||x||^2``, which has the same minimiser.

    References
    ----------
    H. W. Engl, M. Hanke and A. Neubauer, Regularization of Inverse Problems, Kluwer, 1996, chapter 5
    and section 4.3 (discrepancy principle).

    Examples
    --------
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skinverse import Tikhonov
    >>> from skinverse.datasets import make_problem
    >>> images, data, A = make_problem("deblurring", n_samples=6, size=16, noise=0.01, random_state=0)
    >>> search = GridSearchCV(Tikhonov(A), {"lam": [1e-3, 1e-2, 1e-1]}, cv=3).fit(images, data)
    >>> search.predict(data).shape
    (6, 16, 16)
    """

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = 0.1,
        noise_std: float | None = None,
        max_steps: int = 1000,
        tol: float = 1e-5,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.noise_std = noise_std
        self.max_steps = max_steps
        self.tol = tol
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        check_lam(self.lam, self.noise_std)
        check_whole(self.max_steps, "max_steps", 1)

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        if self.lam != "discrepancy":
            return self._solve(
                A, data, data.new_full((len(data),), float(self.lam), dtype=data.dtype.to_real())
            )
        return self._by_discrepancy(A, data)

    def _solve(self, A: LinearMap, data: Tensor, lam: Tensor, x0: Tensor | None = None) -> Solution:
        def normal(x: Tensor) -> Tensor:
            return A.adjoint(A(x)) + expand(lam, x) * x

        found = conjugate_gradient(normal, A.adjoint(data), x0, max_steps=self.max_steps, tol=self.tol)
        energy = (norm(A(found.x) - data).square() + lam * norm(found.x).square()) / 2
        return replace(found, objective=energy, extra={"lam": lam})

    def _by_discrepancy(self, A: LinearMap, data: Tensor) -> Solution:
        """The residual norm grows with lam: bisect log(lam), per image, until it meets the noise."""
        target, scale = discrepancy_level(self.noise_std, data), A.norm() ** 2
        low, high = (torch.full_like(target, math.log(scale * c)) for c in (1e-10, 1e6))
        found = self._solve(A, data, ((low + high) / 2).exp())
        for _ in range(14):
            above = norm(A(found.x) - data) > target
            middle = (low + high) / 2
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            found = self._solve(A, data, ((low + high) / 2).exp(), found.x)
        met = norm(A(found.x) - data) <= 1.01 * target
        return replace(found, converged=found.converged & met)


class SpectralCutoff(BaseReconstructor):
    """Truncated singular value decomposition.

    With ``A = sum_i s_i u_i v_i^*`` the reconstruction is ``sum_(s_i^2 >= lam) s_i^-1 <u_i, y> v_i``:
    singular values that Tikhonov regularization with the same ``lam`` would halve or worse are cut off.

    Parameters
    ----------
    operator : pylops.LinearOperator or None, default=None
        The operator ``A``; None is the identity.
    lam : float >= 0 or "discrepancy", default=0.1
        Smallest squared singular value kept. "discrepancy" keeps, per image, as few as bring
        ``||A x - y||`` down to ``sqrt(n_measurements) * noise_std``.
    noise_std : float > 0 or None, default=None
        Standard deviation of the noise in one measurement; needed by "discrepancy".
    n_components : int or None, default=None
        Most singular values computed. None computes all of an operator of at most 2^22 entries (exact,
        dense) and 200 of a larger one (randomized).
    random_state : int, RandomState or None, default=0
        Seed of the randomized decomposition.
    device : str, default="auto"
        Where to compute; "auto" is CUDA if there is one.

    Attributes
    ----------
    singular_values_ : ndarray of shape (n_components,)
        Largest first; set if the operator is known to ``fit``.
    components_ : ndarray of shape (n_components, *operator.dims)
        The ``v_i``.
    data_components_ : ndarray of shape (n_components, *operator.dimsd)
        The ``u_i``.
    operator_ : pylops.LinearOperator or None
        The operator seen by ``fit``.

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

    def __init__(
        self,
        operator: pylops.LinearOperator | None = None,
        *,
        lam: float | str = 0.1,
        noise_std: float | None = None,
        n_components: int | None = None,
        random_state: Any = 0,
        device: str = "auto",
    ) -> None:
        self.operator = operator
        self.lam = lam
        self.noise_std = noise_std
        self.n_components = n_components
        self.random_state = random_state
        self.device = device

    def _fit(self, A: LinearMap | None, images: Tensor | None, data: Tensor | None) -> None:
        check_lam(self.lam, self.noise_std)
        if self.n_components is not None:
            check_whole(self.n_components, "n_components", 1)
        if A is not None:
            parts = self._decompose(A)
            self.data_components_, self.singular_values_, self.components_ = (
                np.ascontiguousarray(t.cpu().resolve_conj()) for t in parts
            )

    def _reconstruct(self, A: LinearMap, data: Tensor) -> Solution:
        u, s, v = self._parts(A, data)
        dtype = torch.promote_types(u.dtype, data.dtype)
        coefficients = torch.einsum("i...,n...->ni", u.conj().to(dtype), data.to(dtype))
        coefficients = coefficients if v.is_complex() or not u.is_complex() else coefficients.real
        keep = self._kept(s, coefficients.abs(), data)
        weights = torch.where(keep, coefficients / s, 0)
        dtype = torch.promote_types(weights.dtype, v.dtype)
        x = torch.einsum("ni,i...->n...", weights.to(dtype), v.to(dtype))
        return Solution.direct(x, extra={"n_components": keep.sum(1)})

    def _kept(self, s: Tensor, coefficients: Tensor, data: Tensor) -> Tensor:
        """Which singular values each image keeps, (n, n_components); never one that is zero to rounding."""
        usable = s > s[0] * torch.finfo(s.dtype).eps * len(s)
        if self.lam != "discrepancy":
            return (usable & (s.square() >= float(self.lam))).expand_as(coefficients)
        level = discrepancy_level(self.noise_std, data)
        removed = coefficients.square().cumsum(1) - coefficients.square()
        residual = norm(data).square()[:, None] - removed  # before component i is added
        return usable & (residual > level.square()[:, None])

    def _parts(self, A: LinearMap, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decomposition that ``fit`` stored, or that of an operator that came later."""
        stored = self.operator_ is not None and A is as_torch(self.operator_)
        found = (
            (self.data_components_, self.singular_values_, self.components_) if stored else self._decompose(A)
        )
        real = data.dtype.to_real()
        u, s, v = (torch.as_tensor(t, device=data.device) for t in found)
        u, s, v = (t.to(real.to_complex() if t.is_complex() else real) for t in (u, s, v))
        return u, s, v

    def _decompose(self, A: LinearMap) -> tuple[Tensor, Tensor, Tensor]:
        n_pixels, n_data = math.prod(A.dims), math.prod(A.dimsd)
        n_all = min(n_pixels, n_data)
        if n_pixels * n_data <= _DENSE:
            return _truncated(_dense_svd(A), self.n_components or n_all)
        n_components = min(self.n_components or 200, n_all)
        seed = int(check_random_state(self.random_state).randint(2**31))
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

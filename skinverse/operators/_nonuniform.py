"""Fourier transforms at frequencies that are not on a grid: radial, spiral and other trajectories of MRI."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import reduce
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse._optional import needed_from
from skinverse.operators._coils import Sensitivities
from skinverse.operators._inverse import AnalyticInverse, Form, Formula
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import Layout, LinearMap
from skinverse.operators._validation import sizes, with_int_sizes

# Relative error of the transforms in single and in double precision. That of the adjoint is rounding alone:
# finufft computes it with the transposed steps.
_EPS = {torch.complex64: 1e-6, torch.complex128: 1e-12}
# Plans that are kept: the batches of a few sizes, in two directions.
_N_PLANS = 8
# Largest frequency, with the rounding of trajectories that end at the border of the band.
MAX_FREQUENCY = math.pi * (1 + 1e-5)
# Steps to density weights: five more gave radial and spiral images that are as near to the truth to 0.1 dB.
_N_DENSITY = 10


def nonuniform_fourier(
    trajectory: ArrayLike,
    shape: tuple[int, ...],
    *,
    coil_maps: ArrayLike | None = None,
    density: ArrayLike | None = None,
) -> LinearOperator:
    r"""Fourier samples of a complex image or volume along a trajectory: radial, spiral and other MRI.

    Computed by finufft, of ``pip install skinverse[mri]``: all images and coils of a batch at once, on the
    processor also where tensors are on a graphics card.

    Parameters
    ----------
    trajectory : array_like of shape (n_samples, ndim), in radians per pixel
        Frequencies along the axes of the image, in their order, each from -pi to pi. In cycles per field of
        view, as MRI files have them, they are ``k``; then this is ``2 * pi * k / shape``.
    shape : tuple of int
        Shape of the image, of two or three axes.
    coil_maps : array_like of shape (n_coils, *shape), default=None
        Complex sensitivities; None is one coil with sensitivity one everywhere.
    density : array_like of shape (n_samples,), default=None
        Weights of the samples in the analytic inverse (gridding), up to a factor: the area of the frequency
        domain that belongs to each, ``abs(k)`` on radial lines in a plane. They play no part in the operator
        itself. None computes them from the trajectory.

    Returns
    -------
    pylops.LinearOperator
        The operator from complex images ``shape`` to complex data (n_samples,), or (n_coils, n_samples) with
        coil maps. The precision is that of the coil maps, double without them.

    Raises
    ------
    ModuleNotFoundError
        If finufft is not installed.
    ValueError
        If the trajectory has another shape or leaves the band, coil maps or density have another shape, or
        the density is negative somewhere.

    See Also
    --------
    fourier_sampling : Frequencies on a grid.
    estimate_coil_maps : Coil maps of measured data.

    Notes
    -----
    With :math:`N` pixels :math:`n`, counted from the centre ``shape // 2``, coil :math:`c` measures

    .. math:: y_{cj} = N^{-1/2} \sum_n S_c(n) \, x(n) \, e^{-i \omega_j \cdot n} .

    On a grid of frequencies this is ``fourier_sampling(mask, coil_maps, centred=True)``, and orthonormal. The
    relative error is 1e-6 in single and 1e-12 in double precision.

    The analytic inverse is the adjoint of the weighted data, ``F^H w y``, with coils combined by the sum of
    squares of their maps. Weights that are not given are found by an iteration [1]_, by transforms to images
    of twice the size; it also gives those that are given their factor.

    References
    ----------
    .. [1] Pipe, Menon, "Sampling density compensation in MRI: rationale and an iterative numerical solution",
       Magnetic Resonance in Medicine 41, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import nonuniform_fourier
    >>> angles, radii = np.meshgrid(np.arange(8) * np.pi / 8, np.linspace(-np.pi, np.pi, 32))
    >>> spokes = np.stack([radii * np.sin(angles), radii * np.cos(angles)], -1).reshape(-1, 2)
    >>> A = nonuniform_fourier(spokes, (16, 16))
    >>> A.dims, A.dimsd
    ((16, 16), (256,))
    """
    shape = sizes(shape, "shape")
    if len(shape) not in (2, 3):
        raise ValueError(f"shape must be that of an image of two or three axes, got {shape}")
    points = _trajectory(trajectory, len(shape))
    weights = None if density is None else _density(density, len(points))
    if coil_maps is None:
        return NonuniformTransform(shape, points, weights, "complex128")
    maps = np.asarray(coil_maps)
    if maps.ndim != len(shape) + 1 or maps.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"coil_maps must be of shape (n_coils, {expected}), got {maps.shape}")
    sense = Sensitivities(maps)
    return with_int_sizes(NonuniformTransform(maps.shape, points, weights, str(sense.dtype)) @ sense)


def _trajectory(trajectory: ArrayLike, ndim: int) -> NDArray[np.float64]:
    points = np.asarray(trajectory)
    if points.ndim != 2 or points.shape[1] != ndim or not len(points) or points.dtype.kind not in "iuf":
        raise ValueError(
            f"trajectory must be real and of shape (n_samples, {ndim}), got {points.dtype} {points.shape}"
        )
    points = points.astype(np.float64)
    if not bool((np.abs(points) <= MAX_FREQUENCY).all()):
        raise ValueError(
            "trajectory must be in radians per pixel, from -pi to pi, got values up to "
            f"{np.abs(points).max():.4g}: of k in cycles per field of view it is 2 * pi * k / shape"
        )
    return points


def _density(density: ArrayLike, n_samples: int) -> NDArray[np.float64]:
    weights = np.array(density, dtype=np.float64)
    if weights.shape != (n_samples,):
        raise ValueError(f"density must be of shape ({n_samples},) as the trajectory is, got {weights.shape}")
    if not (bool(np.isfinite(weights).all()) and weights.min() >= 0 and weights.any()):
        raise ValueError(f"density must be finite, not negative and positive somewhere, got {weights.min()}")
    return weights


class NonuniformTransform(LinearOperator):
    """The transform of the last axes at the points of a trajectory, the same along the other axes.

    Parameters
    ----------
    dims : tuple of int
        Shape of an image, or of several.
    trajectory : ndarray of shape (n_samples, ndim)
        Frequencies in radians per pixel.
    density : ndarray of shape (n_samples,) or None
        Weights of the analytic inverse.
    dtype : str
        Type of the data.
    """

    def __init__(
        self, dims: tuple[int, ...], trajectory: NDArray, density: NDArray | None, dtype: Any
    ) -> None:
        _finufft()
        self.trajectory, self.density = trajectory, density
        dims = tuple(int(size) for size in dims)
        dimsd = (*dims[: -trajectory.shape[1]], len(trajectory))
        super().__init__(dtype=np.dtype(dtype), dims=dims, dimsd=dimsd)

    def lowered(self) -> LinearMap:
        """The torch map."""
        return _Nonuniform(self.dims, self.dimsd, self.trajectory, self.density)

    def _matvec(self, x: NDArray) -> NDArray:
        return as_torch(self)(self._batch(x, self.dims)).numpy().ravel()

    def _rmatvec(self, y: NDArray) -> NDArray:
        return as_torch(self).adjoint(self._batch(y, self.dimsd)).numpy().ravel()

    def _batch(self, values: NDArray, shape: tuple[int, ...]) -> Tensor:
        typed = np.require(values, np.result_type(values, self.dtype), ["C", "W"])
        return torch.from_numpy(typed).reshape(1, *shape)


class _Plans(threading.local):
    """The plans of one thread, since a plan computes in memory of its own."""

    def __init__(self) -> None:
        self.made: dict[tuple[Any, ...], Any] = {}


class _Nonuniform(LinearMap):
    """The transform by finufft, of all images and coils of a batch at once."""

    def __init__(
        self, dims: tuple[int, ...], dimsd: tuple[int, ...], trajectory: NDArray, density: NDArray | None
    ) -> None:
        super().__init__(dims, dimsd)
        self._trajectory, self._density = trajectory, density
        self._shape = self.dims[-trajectory.shape[1] :]
        self._scale = math.prod(self._shape) ** -0.5
        self._plans = _Plans()

    def layout_after(self, images: Layout) -> Layout:
        """Coils and samples are lists."""
        return tuple((size, False) for size in self.dimsd)

    def _forward(self, x: Tensor) -> Tensor:
        return self._transformed(2, x, self._shape, self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._transformed(1, y, (len(self._trajectory),), self.dims)

    def form_after(self, inner: Form) -> Form | None:
        return inner.through(_Gridding(self), sp.eye_array(math.prod(self.dimsd), format="csr"))

    def weights(self) -> Tensor:
        """The density weights ``w`` whose ``sum_j w_j exp(i omega_j n)`` nearly vanishes but for ``n = 0``.

        That is to hold for all differences ``n`` of pixels, an image of twice the size. In it the triangle
        that counts the pairs of each difference makes the conditions one positive kernel, ``K w = 1``.
        """
        w, response = torch.ones(len(self._trajectory), device="cpu"), self._response()
        if self._density is not None:
            w = torch.from_numpy(self._density / self._density.max()).float()
            q = response(w)
            return w * ((w * q).sum() / (w * q.square()).sum())
        for _ in range(_N_DENSITY):
            w = w / response(w).clamp_min(torch.finfo(w.dtype).tiny)
        return w

    def _response(self) -> Callable[[Tensor], Tensor]:
        """``w -> K w``, one at every frequency of a grid for weights of one."""
        wide = tuple(2 * size for size in self._shape)
        transform = _Nonuniform(wide, (len(self._trajectory),), self._trajectory, None)
        lines = (1 - (torch.arange(2 * n, device="cpu") - n).abs() / n for n in self._shape)
        triangle = reduce(torch.multiply, torch.meshgrid(*lines, indexing="ij"))

        def response(w: Tensor) -> Tensor:
            images = triangle * transform._adjoint(w[None])
            return 2 ** len(self._shape) * transform._forward(images)[0].real

        return response

    def _transformed(
        self, kind: int, batch: Tensor, shape: tuple[int, ...], result: tuple[int, ...]
    ) -> Tensor:
        values = batch.detach().to(batch.dtype.to_complex()).resolve_conj().resolve_neg()
        rows = values.cpu().contiguous().numpy().reshape(-1, *shape)
        # A single transform has no axis of transforms.
        plan = self._plan(kind, len(rows), values.dtype)
        found = plan.execute(rows if len(rows) > 1 else rows[0])
        found *= self._scale
        return torch.from_numpy(found).to(batch.device).reshape(len(batch), *result)

    def _plan(self, kind: int, n: int, dtype: torch.dtype) -> Any:
        plans, key = self._plans.made, (kind, n, dtype, torch.get_num_threads())
        if key not in plans:
            while len(plans) >= _N_PLANS:
                del plans[next(iter(plans))]  # the oldest
            name = str(dtype).removeprefix("torch.")
            sign, threads = -1 if kind == 2 else 1, torch.get_num_threads()
            if kind == 1:  # several threads in one adjoint transform add in no fixed order: each has its own
                threads = math.gcd(n, threads)
            options = {"eps": _EPS[dtype], "isign": sign, "dtype": name, "nthreads": threads}
            plan = _finufft().Plan(kind, self._shape, n_trans=n, **options)
            real = np.float32 if dtype == torch.complex64 else np.float64
            plan.setpts(*(np.ascontiguousarray(axis, dtype=real) for axis in self._trajectory.T))
            plans[key] = plan
        return plans[key]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_plans"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _plans=_Plans())


class _Gridding(Formula):
    """The adjoint of data that are weighted by the density of their samples."""

    kind = AnalyticInverse.ZERO_FILLING

    def __init__(self, transform: _Nonuniform) -> None:
        self._transform, self.dimsd = transform, transform.dimsd
        self._weights: Tensor | None = None
        density = transform._density
        self.key = self.family = (
            "nonuniform",
            transform.dims,
            transform._trajectory.tobytes(),
            None if density is None else density.tobytes(),
        )

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """The images, flat."""
        if self._weights is None:
            self._weights = self._transform.weights()
        w = self._weights.to(y.device, y.dtype.to_real())
        return self._transform.adjoint(w * y.reshape(len(y), *self.dimsd)).flatten(1)

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """1 where something of the transform was measured of which a pixel is a part, of one coil say."""
        some = measured.reshape(self.dimsd).any(axis=-1, keepdims=True)
        n_pixels = math.prod(self._transform._shape)
        return np.broadcast_to(some, (*self.dimsd[:-1], n_pixels)).ravel().astype(float)


def _finufft() -> ModuleType:
    with needed_from("mri"):
        import finufft
    return finufft

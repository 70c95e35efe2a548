"""The torch face of a linear operator: batched, differentiable any number of times, on any device."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from skinverse._hashing import digest
from skinverse._tensors import full_precision
from skinverse.operators._inverse import AnalyticInverse, Form, Formula, adjoint_times, single_entries

# Axes of data as they are in memory, whatever shape they are given: the size of each, and whether what is
# beside each other along it belongs together.
Layout = tuple[tuple[int, bool], ...]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class _Apply(torch.autograd.Function):
    """``A x``. Its derivative ``A^H g`` is the same function with the roles of both maps swapped."""

    @staticmethod
    def forward(x: Tensor, linear: LinearMap, adjoint: bool) -> Tensor:
        return linear._adjoint(x) if adjoint else linear._forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.linear, ctx.adjoint = inputs
        ctx.real = not x.is_complex()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        back = _applied(g, ctx.linear, adjoint=not ctx.adjoint)
        return (back.real if ctx.real and back.is_complex() else back), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:
        return _applied(dx, ctx.linear, adjoint=ctx.adjoint)


@full_precision
def _applied(x: Tensor, linear: LinearMap, *, adjoint: bool) -> Tensor:
    """``A x`` or ``A^H x``; recorded only where a derivative is asked for, for that takes 20 microseconds."""
    recorded = (torch.is_grad_enabled() and x.requires_grad) or unpack_dual(x).tangent is not None
    product: Tensor = _Apply.apply(x, linear, adjoint) if recorded else _Apply.forward(x, linear, adjoint)
    return product


class LinearMap(ABC):
    """A linear map between batches, ``(n, *dims) -> (n, *dimsd)``.

    A subclass implements :meth:`_forward` and :meth:`_adjoint` in plain torch code, which autograd never
    follows. Its constants are stored in ``_constants``; :meth:`_constant` returns them on the device and in
    the precision of a batch, so that float32 stays float32 and float64 stays float64.

    Parameters
    ----------
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    """

    def __init__(self, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        self.dims = tuple(int(d) for d in dims)
        self.dimsd = tuple(int(d) for d in dimsd)
        self._constants: dict[str, Tensor] = {}
        self._parts: tuple[LinearMap, ...] = ()
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}
        self._norm: float | None = None
        self._form: tuple[Form | None] | None = None
        self._unweighted: tuple[LinearMap | None, LinearMap] | None = None
        self._measured: tuple[Tensor | None] | None = None

    # Whether every datum is a multiple of one pixel, as where pixels are selected, moved or weighted.
    monomial = False
    # Whether the map is the identity, for which some functionals have closed forms.
    identity = False
    # Whether `A^H A`, or `A A^H`, is the square of the norm times the identity: then the norm of a product is
    # that of the other factors, times this one.
    isometry = False
    coisometry = False
    # Whether every axis of the data has neighbours where that of the images has them.
    keeps_neighbours = False
    # Whether derivatives with respect to parameters of the map are wanted.
    requires_grad = False

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map to a batch of images, (n, *dims) -> (n, *dimsd)."""
        check_shape(x, self.dims, "images", "dims")
        return _applied(x, self, adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint to a batch of data, (n, *dimsd) -> (n, *dims)."""
        check_shape(y, self.dimsd, "data", "dimsd")
        return _applied(y, self, adjoint=True)

    @property
    def measured(self) -> Tensor | None:
        """Which data depend on the image at all, boolean of shape ``dimsd``; None where all do.

        Others have rows of zeros: frequencies that a mask leaves out, weights of zero. Only rows count that
        are zero by the form of the map, not rows of a matrix. None also of a map to zero, which says nothing
        of the data.
        """
        if self._measured is None:
            reached = self.reached(None)
            known = reached is not None and bool(reached.any()) and not bool(reached.all())
            self._measured = (reached if known else None,)
        return self._measured[0]

    @property
    def n_measured(self) -> int:
        """Number of data of one image that depend on it."""
        return math.prod(self.dimsd) if self.measured is None else int(self.measured.sum())

    def measured_part(self, y: Tensor) -> Tensor:
        """The data with zeros where nothing is measured, whatever stands there."""
        return y if self.measured is None else torch.where(self.measured.to(y.device), y, 0)

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        """Which data can differ from zero where only these pixels can; None stands for all of them."""
        if not self.monomial:
            return None
        some = torch.ones(self.dims, device="cpu") if pixels is None else pixels
        return self._forward(some[None].double())[0] != 0

    @property
    def analytic_inverse(self) -> AnalyticInverse:
        """Kind of the inverse that :meth:`filtered_adjoint` applies."""
        form = self._inverse_form()
        return AnalyticInverse.NONE if form is None else form.kind

    @property
    def has_analytic_inverse(self) -> bool:
        """Whether :meth:`filtered_adjoint` is defined for this map."""
        return bool(self.analytic_inverse)

    def filtered_adjoint(self, y: Tensor, filter: str = "ramp") -> Tensor:
        """Apply the analytic inverse of a map that has one, see :attr:`has_analytic_inverse`.

        It is the filtered back-projection of parallel-beam CT or the zero-filled inverse of sampled Fourier
        and cosine transforms, also where data or images are weighted, selected, repeated, reordered or
        stacked: data are divided by their weights, repeated ones are averaged (by least squares), missing
        views and frequencies have no part in it, single missing detector elements are interpolated along the
        detector, and several images of one, such as those of coils, are combined by ``sum_c conj(S_c) x_c /
        sum_c |S_c|^2``. What no datum depends on is zero. The same linear map has the same inverse, however
        it is written.

        Parameters
        ----------
        y : Tensor of shape (n, *dimsd)
            Data.
        filter : {"ramp", "shepp-logan", "cosine", "hamming", "hann"}, default="ramp"
            Window on the ramp filter of a filtered back-projection.

        Returns
        -------
        Tensor of shape (n, *dims)
            Images.

        Raises
        ------
        TypeError
            If the map has no analytic inverse.
        """
        return self.weighted_inverse(y, np.ones(math.prod(self.dimsd)), filter)

    def weighted_inverse(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """The analytic inverse where data have weights, flat; a weight of zero means not measured."""
        check_shape(y, self.dimsd, "data", "dimsd")
        form = self._inverse_form()
        if form is None or not form.kind:
            raise TypeError(
                f"filtered back-projection needs projections of parallel beams, zero filling a Fourier or "
                f"cosine transform, got {type(self).__name__}: use Tikhonov, which takes any operator"
            )
        return form.invert(y.flatten(1), weights, filter).reshape(len(y), *self.dims)

    def form_after(self, inner: Form) -> Form | None:
        """The form of this map after another one, of which the analytic inverse is made; None without one."""
        if self.monomial:
            return inner.times(single_entries(self._forward, self.dims))
        return inner.through(_Unknown(self), sp.eye_array(math.prod(self.dimsd), format="csr"))

    def unweighted(self) -> tuple[LinearMap | None, LinearMap]:
        """Undo the weights of the data, also where there is no analytic inverse.

        Data are divided by the factors of a product with a diagonal, repeated ones are averaged, and those of
        weight zero are left out, as the analytic inverse does.

        Returns
        -------
        Q : LinearMap or None
            The map of the data; None where they have no weights.
        QA : LinearMap
            ``Q A``, or this map.
        """
        if self._unweighted is None:
            form = self._inverse_form()
            matrix = form and form.left_inverse
            Q = None if matrix is None else _Rows(matrix, self.dimsd)
            self._unweighted = (Q, self if Q is None else Q @ self)
        return self._unweighted

    def _inverse_form(self) -> Form | None:
        if self._form is None:
            self._form = (self.form_after(Form.of_image(math.prod(self.dims))),)
        return self._form[0]

    @property
    def neighbours(self) -> tuple[bool, ...]:
        """For each axis of the data, whether what is beside each other along it belongs together.

        So it does for pixels, for the angles and detectors of a sinogram and for the frequencies of a full
        grid, not for coils or for a list of samples. Of a map that says nothing, several axes are taken for a
        grid, a single one for a list.
        """
        images = tuple((size, True) for size in self.dims)
        return neighbours_in(self.layout_after(images), self.dimsd)

    def layout_after(self, images: Layout) -> Layout:
        """The axes of the data, made of those of the images."""
        if not self.keeps_neighbours:
            return tuple((size, len(self.dimsd) > 1) for size in self.dimsd)
        if self.dims == self.dimsd:
            return images
        return tuple(zip(self.dimsd, neighbours_in(images, self.dims), strict=True))

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        """The map to a range of the data along their first axis.

        Matrices and projections compute these rows only; all other maps compute all data and select.

        Parameters
        ----------
        start, stop, step : int
            Range of indices along the first axis of the data, as in ``range(start, stop, step)``.

        Returns
        -------
        LinearMap
            The map to data of shape ``(len(range(start, stop, step)), *dimsd[1:])``.
        """
        return _Block(self, range(start, stop, step))

    def to(self, device: torch.device | str) -> Self:
        """Move the constants to a device, so that no later call has to copy them."""
        self._constants = {name: value.to(device) for name, value in self._constants.items()}
        self._cast = {}
        for part in self._parts:
            part.to(device)
        return self

    def __matmul__(self, other: LinearMap) -> LinearMap:
        """``(A @ B)(x) = A(B(x))``."""
        return Composition((self, other))

    def norm(self) -> float:
        """Spectral norm, computed once: a formula where the map has one, else Lanczos to 1 %."""
        if self._norm is None:
            with torch.no_grad():
                self._norm = self._spectral_norm()
        return self._norm

    def _spectral_norm(self) -> float:
        """The norm; a map that has a formula for it overrides this."""
        return spectral_norm(self)

    def precision(self) -> torch.dtype:
        """float32 if a constant is stored in it, so that checks need no second copy; else float64."""
        kept = [
            c.dtype.to_real() for c in self._constants.values() if c.is_floating_point() or c.is_complex()
        ]
        single = torch.float32 in [*kept, *(part.precision() for part in self._parts)]
        return torch.float32 if single else torch.float64

    def doubt(self, y: Tensor) -> str | None:
        """Why the data look as if they were made in another convention than the map's, if they do."""
        return None

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    def _constant(self, name: str, like: Tensor) -> Tensor:
        """A constant on the device and in the precision of ``like``; indices and masks keep their type."""
        stored = self._constants[name]
        real = like.dtype.to_real()
        dtype = (
            _COMPLEX[real] if stored.is_complex() else real if stored.is_floating_point() else stored.dtype
        )
        key = (name, like.device, dtype)
        if key not in self._cast:
            self._cast[key] = stored.to(like.device, dtype)
        return self._cast[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cast": {}, "_form": None, "_unweighted": None, "_measured": None}


# Lanczos from a random start misses an error of `_ERROR` in the square of the norm with at most this
# probability (Kuczynski and Wozniakowski, SIAM Journal on Matrix Analysis and Applications 13(4), 1992,
# theorem 3.2).
_ERROR, _FAILURE = 0.02, 1e-3
# Steps from a direction that was the leading one shortly before.
_FEW_STEPS = 12


def spectral_norm(linear: LinearMap) -> float:
    """Largest singular value to 1 %, by Golub-Kahan bidiagonalisation from a random start."""
    return _bidiagonalise(linear, _random_image(linear), _steps(linear))[0]


def leading(linear: LinearMap, start: Tensor | None = None) -> Tensor:
    """The leading right singular vector, (1, *dims); quickly from one that was it before a small change."""
    x, steps = _random_image(linear), _steps(linear)
    if start is not None:  # a random part finds directions that the old one does not contain
        x, steps = start / length(start) + x / length(x), min(steps, _FEW_STEPS)
    _, weights = _bidiagonalise(linear, x, steps)
    direction: Tensor | float = 0.0
    for weight, v in zip(weights, _right_vectors(linear, x), strict=False):
        direction = direction + weight * v
    assert isinstance(direction, Tensor)
    return direction / (length(direction) or 1.0)


def length(x: Tensor) -> float:
    """Euclidean norm of all values, without a square that is too large or too small."""
    peak = float(x.abs().amax())
    return peak * float(torch.linalg.vector_norm(x / peak)) if 0 < peak < math.inf else peak


def _steps(linear: LinearMap) -> int:
    """Steps after which the largest Ritz value is right, and never more than there are dimensions."""
    n, m = math.prod(linear.dims), math.prod(linear.dimsd)
    enough = (1 + math.log(1.648 * math.sqrt(n) / _FAILURE) / math.sqrt(_ERROR)) / 2
    return max(1, min(math.ceil(enough), n, m))


def _random_image(linear: LinearMap) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, *linear.dims), generator=generator, dtype=linear.precision(), device="cpu")


def _bidiagonalise(linear: LinearMap, start: Tensor, steps: int) -> tuple[float, list[float]]:
    """Largest singular value of ``B`` in ``A V = U B``, and its right singular vector in the basis ``V``.

    The basis is not kept and not orthogonalised: rounding makes copies of the largest value, no larger one.
    """
    diagonal: list[float] = []
    above: list[float] = []
    for _, (alpha, beta) in zip(range(steps), _coefficients(linear, start), strict=False):
        diagonal.append(alpha)
        above.append(beta)
    scale = max(*diagonal, *above, 0.0)
    if not 0 < scale < math.inf:
        return scale, [1.0]
    # With the last superdiagonal entry, without which a map to a single datum would be known in part.
    B = (np.diag([*diagonal, 0.0]) + np.diag(above, 1))[:-1] / scale
    _, values, right = np.linalg.svd(B)
    return scale * float(values[0]), [float(weight) for weight in right[0]]


def _coefficients(linear: LinearMap, start: Tensor) -> Iterator[tuple[float, float]]:
    return ((alpha, beta) for _, alpha, beta in _golub_kahan(linear, start))


def _right_vectors(linear: LinearMap, start: Tensor) -> Iterator[Tensor]:
    return (v for v, _, _ in _golub_kahan(linear, start))


def _golub_kahan(linear: LinearMap, start: Tensor) -> Iterator[tuple[Tensor, float, float]]:
    """Right vectors, diagonal and superdiagonal of ``B``; ends where the Krylov space does."""
    v, previous, beta, largest = start / (length(start) or 1.0), None, 0.0, 0.0
    tiny = torch.finfo(start.dtype).eps
    while True:
        u = linear(v) if previous is None else linear(v) - beta * previous
        alpha = length(u)
        largest = max(largest, alpha)
        if alpha <= 10 * tiny * largest:
            yield v, alpha, 0.0
            return
        previous = u / alpha
        w = linear.adjoint(previous) - alpha * v
        beta = length(w)
        largest = max(largest, beta)
        yield v, alpha, beta
        if not 10 * tiny * largest < beta < math.inf:
            return
        v = w / beta


def check_shape(batch: Tensor, dims: tuple[int, ...], what: str, source: str) -> None:
    if tuple(batch.shape[1:]) != dims:
        expected = ", ".join(["n", *map(str, dims)])
        raise ValueError(f"expected {what} of shape ({expected}) from {source}, got {tuple(batch.shape)}")


def neighbours_in(layout: Layout, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which axes of an array are axes along which there are neighbours."""
    ends = accumulate((size for size, _ in layout), operator.mul)
    known = {(end, size) for end, (size, beside) in zip(ends, layout, strict=True) if beside and size > 1}
    return tuple(
        (end, size) in known for end, size in zip(accumulate(shape, operator.mul), shape, strict=True)
    )


class _Unknown(Formula):
    """A map that has no formula, for all that is known real-linear only; what is around it can be undone."""

    kind = AnalyticInverse.NONE
    real = True

    def __init__(self, linear: LinearMap) -> None:
        self.dims, self.dimsd = linear.dims, linear.dimsd
        self.key = self.family = digest(linear, opaque="identity", quick=True)

    def invert(self, y: Tensor, weights: NDArray, filter: str) -> Tensor:
        """Never asked for."""
        raise NotImplementedError

    def image_weights(self, measured: NDArray[np.bool_]) -> NDArray:
        """Never asked for."""
        raise NotImplementedError


class _Rows(LinearMap):
    """A sparse matrix with few entries in each column, between data and flat data."""

    def __init__(self, matrix: sp.csr_array, dims: tuple[int, ...]) -> None:
        super().__init__(dims, (matrix.shape[0],))
        self._matrix, self._adjoint_matrix = matrix, sp.csr_array(matrix.conj().T)

    def _forward(self, x: Tensor) -> Tensor:
        return adjoint_times(self._adjoint_matrix, x.flatten(1))

    def _adjoint(self, y: Tensor) -> Tensor:
        return adjoint_times(self._matrix, y).reshape(len(y), *self.dims)


class _Block(LinearMap):
    """A range of the data of another map."""

    def __init__(self, whole: LinearMap, rows: range) -> None:
        super().__init__(whole.dims, (len(rows), *whole.dimsd[1:]))
        self._parts, self._rows = (whole,), slice(rows.start, rows.stop, rows.step)

    def _forward(self, x: Tensor) -> Tensor:
        return self._parts[0]._forward(x)[:, self._rows]

    def _adjoint(self, y: Tensor) -> Tensor:
        padded = y.new_zeros((len(y), *self._parts[0].dimsd))
        padded[:, self._rows] = y
        return self._parts[0]._adjoint(padded)

    def layout_after(self, images: Layout) -> Layout:
        whole = self._parts[0]
        return tuple(zip(self.dimsd, neighbours_in(whole.layout_after(images), whole.dimsd), strict=True))

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        whole = self._parts[0].reached(pixels)
        return None if whole is None else whole[self._rows]

    def form_after(self, inner: Form) -> Form | None:
        whole = self._parts[0].form_after(inner)
        places = np.arange(math.prod(self._parts[0].dimsd)).reshape(self._parts[0].dimsd)
        return whole and whole.selected(places[self._rows].ravel())


class Composition(LinearMap):
    """``A_1 A_2 ... A_k x``; between two maps, data are reshaped to the images that the next one takes."""

    def __init__(self, parts: tuple[LinearMap, ...]) -> None:
        super().__init__(parts[-1].dims, parts[0].dimsd)
        self._parts = parts
        self.isometry = all(part.isometry for part in parts)
        self.coisometry = all(part.coisometry for part in parts)

    def _forward(self, x: Tensor) -> Tensor:
        for part in reversed(self._parts):
            x = part._forward(x.reshape(len(x), *part.dims))
        return x

    def _adjoint(self, y: Tensor) -> Tensor:
        for part in self._parts:
            y = part._adjoint(y.reshape(len(y), *part.dimsd))
        return y

    def form_after(self, inner: Form) -> Form | None:
        form: Form | None = inner
        for part in reversed(self._parts):
            form = form and part.form_after(form)
        return form

    def layout_after(self, images: Layout) -> Layout:
        for part in reversed(self._parts):
            images = part.layout_after(images)
        return images

    def reached(self, pixels: Tensor | None) -> Tensor | None:
        for part in reversed(self._parts):
            pixels = part.reached(None if pixels is None else pixels.reshape(part.dims))
        return pixels

    def doubt(self, y: Tensor) -> str | None:
        """The first doubt that a part has, from the data to the image."""
        for part in self._parts:
            y = y.reshape(len(y), *part.dimsd)
            found = part.doubt(y)
            if found:
                return found
            y = part._adjoint(y)
        return None

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        return Composition((self._parts[0].block(start, stop, step), *self._parts[1:]))

    def _spectral_norm(self) -> float:
        """``||U A V|| = ||U|| ||A|| ||V||`` for an isometry ``U`` and a co-isometry ``V``."""
        first, last = 0, len(self._parts) - 1
        while first < last and self._parts[first].isometry:
            first += 1
        while first < last and self._parts[last].coisometry:
            last -= 1
        inner = self._parts[first : last + 1]
        outer = (*self._parts[:first], *self._parts[last + 1 :])
        known = inner[0].norm() if len(inner) == 1 else spectral_norm(Composition(inner))
        return known * math.prod(part.norm() for part in outer)

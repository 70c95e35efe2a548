"""Elementary operators in torch code: diagonals, matrices, indexing and finite differences."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from skinverse.operators._inverse import Form, single_entries
from skinverse.operators._map import Layout, LinearMap, neighbours_in


class Identity(LinearMap):
    """The identity; between unequal shapes it crops or pads with zeros at the end of each axis."""

    keeps_neighbours = True
    monomial = True

    def __init__(self, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self.identity = self.dims == self.dimsd
        self.isometry = all(new >= old for new, old in zip(self.dimsd, self.dims, strict=True))
        self.coisometry = all(new <= old for new, old in zip(self.dimsd, self.dims, strict=True))

    def _forward(self, x: Tensor) -> Tensor:
        return _fitted(x, self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return _fitted(y, self.dims)

    def norm(self) -> float:
        """One."""
        return 1.0


class Zero(LinearMap):
    """Maps everything to zero."""

    def norm(self) -> float:
        """Zero."""
        return 0.0

    monomial = True

    def _forward(self, x: Tensor) -> Tensor:
        return x.new_zeros((len(x), *self.dimsd))

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros((len(y), *self.dims))


class Diagonal(LinearMap):
    """Multiplies an image by a diagonal, pixel by pixel."""

    keeps_neighbours = True
    monomial = True

    def __init__(self, values: np.ndarray, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._constants["d"] = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        self.isometry = self.coisometry = bool(np.ptp(np.abs(values).astype(float)) == 0)

    def _forward(self, x: Tensor) -> Tensor:
        return self._constant("d", x) * x

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._constant("d", y).conj() * y

    def _spectral_norm(self) -> float:
        return float(np.abs(self._constants["d"].cpu().numpy()).max())


class Diagonals(LinearMap):
    """Several diagonals above each other, such as the sensitivities of coils, in one multiplication."""

    monomial = True

    def __init__(self, values: np.ndarray, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._constants["d"] = torch.from_numpy(np.ascontiguousarray(values))

    def layout_after(self, images: Layout) -> Layout:
        return ((len(self._constants["d"]), False), *images)

    def _forward(self, x: Tensor) -> Tensor:
        d = self._constant("d", x)
        return (d * x.reshape(len(x), 1, *d.shape[1:])).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        d = self._constant("d", y)
        return (d.conj() * y.reshape(len(y), *d.shape)).sum(1).reshape(len(y), *self.dims)

    def _spectral_norm(self) -> float:
        """The largest length of the values that one pixel is multiplied by."""
        sizes = np.abs(self._constants["d"].cpu().numpy()).astype(float)
        peak = float(sizes.max()) or 1.0
        return peak * float(np.linalg.norm(sizes / peak, axis=0).max())


class Restriction(LinearMap):
    """Selects entries along an axis, possibly with repetitions."""

    monomial = True

    def __init__(self, index: np.ndarray, axis: int, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._axis = axis % len(dims) + 1
        self._constants["index"] = torch.from_numpy(np.asarray(index, dtype=np.int64) % dims[axis])
        self._counts = np.bincount(self._constants["index"].numpy(), minlength=dims[axis])
        self._repeats = bool(self._counts.max() > 1)
        self.isometry, self.coisometry = bool(np.ptp(self._counts) == 0), not self._repeats

    def layout_after(self, images: Layout) -> Layout:
        """Along the axis there are neighbours where the entries are at equal distances."""
        index, axis = self._constants["index"].cpu().numpy(), self._axis - 1
        beside = list(neighbours_in(images, self.dims))
        beside[axis] &= bool(index.size < 2 or (np.diff(index) == index[1] - index[0]).all())
        return tuple(zip(self.dimsd, beside, strict=True))

    def _forward(self, x: Tensor) -> Tensor:
        return x.index_select(self._axis, self._constant("index", x))

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros((len(y), *self.dims))
        index = self._constant("index", y).reshape(-1, *[1] * (y.ndim - self._axis - 1)).expand_as(y)
        put = x.scatter_add_ if self._repeats else x.scatter_
        return put(self._axis, index, y)

    def _spectral_norm(self) -> float:
        return float(np.sqrt(self._counts.max()))


class Sampling(LinearMap):
    """Keeps what a mask of the last axes selects; what it does not is zero and never read."""

    keeps_neighbours = True
    monomial = True

    def __init__(self, mask: np.ndarray, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._constants["mask"] = torch.from_numpy(np.array(mask, order="C"))
        self.isometry = self.coisometry = bool(mask.all())

    def _forward(self, x: Tensor) -> Tensor:
        return torch.where(self._constant("mask", x), x, 0)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def norm(self) -> float:
        """One, since a mask selects something."""
        return 1.0


class Matrix(LinearMap):
    """A dense matrix along the first axis."""

    def __init__(self, matrix: np.ndarray, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._constants["A"] = torch.from_numpy(np.require(matrix, requirements=["C", "W"]))

    def layout_after(self, images: Layout) -> Layout:
        return (
            (self.dimsd[0], False),
            *zip(self.dimsd[1:], neighbours_in(images, self.dims)[1:], strict=True),
        )

    def _forward(self, x: Tensor) -> Tensor:
        return self._times(self._constant("A", x), x, self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._times(self._constant("A", y).mH, y, self.dims)

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        rows = self._constants["A"][start:stop:step].numpy()
        return Matrix(rows, self.dims, (len(rows), *self.dimsd[1:]))

    def form_after(self, inner: Form) -> Form | None:
        if bool((self._constants["A"].count_nonzero(1) > 1).any()):
            return super().form_after(inner)
        return inner.times(single_entries(self._forward, self.dims))

    def _times(self, matrix: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        dtype = torch.promote_types(matrix.dtype, x.dtype)
        matrix, x = matrix.to(dtype), x.to(dtype)
        product = x @ matrix.T if x.ndim == 2 else matrix @ x.flatten(2)
        return product.reshape(len(x), *shape)


class Bands(LinearMap):
    """A matrix with few diagonals along an axis, by their offsets: finite differences."""

    keeps_neighbours = True

    def __init__(self, diagonals: dict[int, np.ndarray], axis: int, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._axis = axis - len(dims)
        self._offsets = sorted(diagonals)
        for k in self._offsets:
            self._constants[str(k)] = torch.from_numpy(diagonals[k])

    def _forward(self, x: Tensor) -> Tensor:
        return self._add(x, transposed=False)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._add(y, transposed=True)

    def _add(self, x: Tensor, *, transposed: bool) -> Tensor:
        """``y[i] += d_k[i] x[i + k]`` for each diagonal ``k``, or with the indices exchanged."""
        out, n = torch.zeros_like(x), x.shape[self._axis]
        for k in self._offsets:
            row, column, size = max(-k, 0), max(k, 0), n - abs(k)
            row, column = (column, row) if transposed else (row, column)
            d = self._constant(str(k), x).reshape(-1, *[1] * (-self._axis - 1))
            out.narrow(self._axis, row, size).addcmul_(d, x.narrow(self._axis, column, size))
        return out


class Flip(LinearMap):
    """Reverses an axis."""

    keeps_neighbours = True
    isometry = coisometry = True
    monomial = True

    def __init__(self, axis: int, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._axis = axis % len(dims) + 1

    def _forward(self, x: Tensor) -> Tensor:
        return x.flip(self._axis)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.flip(self._axis)

    def norm(self) -> float:
        """One."""
        return 1.0


class Roll(LinearMap):
    """Shifts periodically along an axis."""

    keeps_neighbours = True
    isometry = coisometry = True
    monomial = True

    def __init__(self, shift: int, axis: int, dims: tuple[int, ...]) -> None:
        super().__init__(dims, dims)
        self._shift, self._axis = shift, axis % len(dims) + 1

    def _forward(self, x: Tensor) -> Tensor:
        return x.roll(self._shift, self._axis)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.roll(-self._shift, self._axis)

    def norm(self) -> float:
        """One."""
        return 1.0


class Transpose(LinearMap):
    """Exchanges axes."""

    isometry = coisometry = True
    monomial = True

    def __init__(self, axes: list[int], dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._there = [0, *(a + 1 for a in axes)]
        self._back = [int(a) for a in np.argsort(self._there)]

    def layout_after(self, images: Layout) -> Layout:
        beside = neighbours_in(images, self.dims)
        return tuple((self.dims[axis - 1], beside[axis - 1]) for axis in self._there[1:])

    def _forward(self, x: Tensor) -> Tensor:
        return x.permute(self._there)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.permute(self._back)

    def norm(self) -> float:
        """One."""
        return 1.0


class Pad(LinearMap):
    """Pads with zeros."""

    keeps_neighbours = True
    isometry = True
    monomial = True

    def __init__(self, pad: list[tuple[int, int]], dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._widths = [int(width) for pair in reversed(pad) for width in pair]

    def _forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, self._widths)

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.nn.functional.pad(y, [-width for width in self._widths])

    def norm(self) -> float:
        """One."""
        return 1.0


class Sum(LinearMap):
    """Sums along an axis."""

    coisometry = True

    def __init__(self, axis: int, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._axis = axis % len(dims) + 1

    def layout_after(self, images: Layout) -> Layout:
        layout = list(zip(self.dims, neighbours_in(images, self.dims), strict=True))
        del layout[self._axis - 1]
        return tuple(layout)

    def _forward(self, x: Tensor) -> Tensor:
        return x.sum(self._axis)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.unsqueeze(self._axis).expand(len(y), *self.dims).clone()

    def _spectral_norm(self) -> float:
        return float(self.dims[self._axis - 1] ** 0.5)


class Real(LinearMap):
    """Real part of complex images."""

    keeps_neighbours = True

    def _forward(self, x: Tensor) -> Tensor:
        return x.real if x.is_complex() else x

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.real if y.is_complex() else y


class Imaginary(LinearMap):
    """Imaginary part of complex images."""

    keeps_neighbours = True

    def _forward(self, x: Tensor) -> Tensor:
        return x.imag if x.is_complex() else torch.zeros_like(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        real = y.real if y.is_complex() else y
        return torch.complex(torch.zeros_like(real), real)


def _fitted(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The image cropped or padded with zeros at the end of each axis."""
    widths = [
        width
        for new, old in zip(reversed(shape), reversed(x.shape[1:]), strict=True)
        for width in (0, new - old)
    ]
    return torch.nn.functional.pad(x, widths) if any(widths) else x

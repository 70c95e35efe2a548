"""Products of sparse matrices and batches."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from skinverse.operators._inverse import Form
from skinverse.operators._map import LinearMap


class SparseMap(LinearMap):
    """A sparse matrix between flattened images and flattened data.

    It is stored in compressed rows with 32-bit indices. The first adjoint stores it once more, transposed,
    since products with compressed columns are several times slower.

    Parameters
    ----------
    matrix : scipy sparse matrix of shape (prod(dimsd), prod(dims))
        Real or complex.
    dims, dimsd : tuple of int
        Shape of one image, shape of its data.
    """

    def __init__(self, matrix: sp.sparray, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._matrix = sp.csr_array(matrix)

    def _forward(self, x: Tensor) -> Tensor:
        return self._times("rows", x).reshape(len(x), *self.dimsd)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._times("columns", y).reshape(len(y), *self.dims)

    def precision(self) -> torch.dtype:
        return torch.float32 if self._matrix.dtype in (np.float32, np.complex64) else torch.float64

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        """Keep some rows of the data along their first axis."""
        width, kept = int(np.prod(self.dimsd[1:])), range(start, stop, step)
        rows: Any = slice(start * width, stop * width)
        if step != 1:
            rows = (np.array(kept)[:, None] * width + np.arange(width)).ravel()
        return SparseMap(self._matrix[rows], self.dims, (len(kept), *self.dimsd[1:]))

    def form_after(self, inner: Form) -> Form | None:
        monomial = bool((np.diff(self._matrix.indptr) <= 1).all())
        return inner.times(self._matrix) if monomial else super().form_after(inner)

    def _times(self, name: str, batch: Tensor) -> Tensor:
        if name not in self._constants:
            self._constants[name] = _csr(
                self._matrix if name == "rows" else self._matrix.conj(copy=False).T.tocsr()
            )
        matrix, flat = self._constant(name, batch), batch.reshape(len(batch), -1)
        if flat.is_complex() and not matrix.is_complex():
            product = torch.complex(matrix @ flat.real.T, matrix @ flat.imag.T)
        else:
            product = matrix @ flat.T.to(matrix.dtype)
        return product.T.contiguous()

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_constants": {}}


def _csr(matrix: sp.csr_array) -> Tensor:
    """The same memory as a torch tensor, without the warning that sparse tensors are in beta state."""
    small = max(matrix.nnz, *matrix.shape) < 2**31
    index = np.int32 if small else np.int64
    arrays = (matrix.indptr.astype(index, copy=False), matrix.indices.astype(index, copy=False), matrix.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rows, columns, values = (torch.from_numpy(np.require(a, requirements="W")) for a in arrays)
        shape = tuple(map(int, matrix.shape))
        return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False, device="cpu")

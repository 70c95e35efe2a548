"""What all scans of a plane have in common, as a pylops operator and as a torch map."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import DTypeLike, NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse.operators._fbp import Projections
from skinverse.operators._geometry import Scan
from skinverse.operators._inverse import Form
from skinverse.operators._joseph import JosephMatrix
from skinverse.operators._map import LinearMap
from skinverse.operators._sparse import SparseMap


class ScanOperator(LinearOperator):
    """Line integrals along the rays of a scan."""

    def __init__(self, scan: Scan, dtype: DTypeLike) -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
        self._rows = JosephMatrix(scan, dtype)
        super().__init__(dtype=self._rows.dtype, dims=scan.dims, dimsd=scan.dimsd)

    @property
    def angles(self) -> NDArray[np.float64]:
        """Directions of the views in radians."""
        return self._rows.scan.angles

    @property
    def n_detectors(self) -> int:
        """Number of detector elements."""
        return self._rows.scan.n_detectors

    @property
    def offset(self) -> NDArray[np.float64]:
        """Of every view, where the rotation axis meets the detector, in elements from its centre."""
        return self._rows.scan.offset

    @property
    def spacing(self) -> float:
        """Distance between neighbouring detector elements."""
        return self._rows.scan.spacing

    @property
    def pixel_size(self) -> float:
        """Side of a pixel."""
        return self._rows.scan.pixel_size

    def matrix(self) -> sp.csr_array:
        """Return the matrix of shape (n_views * n_detectors, height * width), which must not be changed.

        The first call builds it; every call does so if the matrix is too large to be stored.

        Returns
        -------
        scipy.sparse.csr_array
            Weights in units of length, with 32-bit indices.

        Raises
        ------
        ValueError
            If 32-bit indices cannot count the entries.
        """
        return self._rows.whole()

    def _matmat(self, X: Any) -> NDArray:
        X = X.toarray() if sp.issparse(X) else X  # the identity of todense
        if self._rows.is_stored:
            return self._rows.whole() @ X
        images = X.T.reshape(-1, *self.dims).astype(np.result_type(X, self.dtype), copy=False)
        return _projected(self._rows.scan, images).reshape(len(images), -1).T

    def _rmatmat(self, X: NDArray) -> NDArray:
        if self._rows.is_stored:
            return self._rows.whole().T @ X
        data = X.T.reshape(-1, *self.dimsd).astype(np.result_type(X, self.dtype), copy=False)
        return _back_projected(self._rows.scan, data).reshape(len(data), -1).T

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()


def lowered(operator: ScanOperator) -> LinearMap:
    """The torch map of a scan."""
    return _ScanMap(operator._rows)


class _ScanMap(LinearMap):
    """Batched products with the stored matrix or, where it is too large, with the compiled kernel."""

    def __init__(self, rows: JosephMatrix) -> None:
        super().__init__(rows.scan.dims, rows.scan.dimsd)
        self._rows = rows

    def _forward(self, x: Tensor) -> Tensor:
        if self._rows.is_stored:
            return self._stored()._forward(x)
        return _on_cpu(_projected, self._rows.scan, x)

    def _adjoint(self, y: Tensor) -> Tensor:
        if self._rows.is_stored:
            return self._stored()._adjoint(y)
        return _on_cpu(_back_projected, self._rows.scan, y)

    def _stored(self) -> LinearMap:
        self._parts = self._parts or (SparseMap(self._rows.whole(), self.dims, self.dimsd),)
        return self._parts[0]

    def precision(self) -> torch.dtype:
        return torch.float32 if self._rows.dtype == np.float32 else torch.float64

    def block(self, start: int, stop: int, step: int = 1) -> LinearMap:
        """Keep some views."""
        return _ScanMap(self._rows.block(slice(start, stop, step)))

    def form_after(self, inner: Form) -> Form | None:
        views, (rows,) = Projections.of_scans([self._rows.scan])
        return inner.through(views, rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": ()}


def _on_cpu(product: Any, scan: Scan, batch: Tensor) -> Tensor:
    """A product of the compiled kernel, which runs on the CPU."""
    values = batch.detach().resolve_conj().resolve_neg().cpu().numpy()
    return torch.from_numpy(product(scan, values)).to(batch.device)


def _projected(scan: Scan, images: NDArray) -> NDArray:
    from skinverse.operators._projector import project  # numba takes a second

    return _by_real_parts(project, scan, images)


def _back_projected(scan: Scan, data: NDArray) -> NDArray:
    from skinverse.operators._projector import back_project

    return _by_real_parts(back_project, scan, data)


def _by_real_parts(product: Any, scan: Scan, batch: NDArray) -> NDArray:
    """A product in the precision of the batch; real and imaginary parts are images of their own."""
    if np.iscomplexobj(batch):
        real, imaginary = np.split(product(scan, np.concatenate([batch.real, batch.imag])), 2)
        return real + 1j * imaginary
    return product(scan, batch.astype(np.result_type(batch, np.float32), copy=False))

"""What all scans of a plane have in common, as a pylops operator and as a torch map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from skinverse.operators import _calibration
from skinverse.operators._fbp import Projections, filtered_back_projection
from skinverse.operators._geometry import Scan, offsets
from skinverse.operators._inverse import AnalyticInverse, Form
from skinverse.operators._joseph import JosephMatrix
from skinverse.operators._map import LinearMap
from skinverse.operators._parametric import Parameters, ParametricOperator
from skinverse.operators._products import back_projected, on_cpu, projected
from skinverse.operators._sparse import SparseMap


class ScanOperator(ParametricOperator):
    """Line integrals along the rays of a scan; its parameters are ``offset``, ``angles`` and distances."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """None: a scan is known unless a search names its parameters."""
        return ()

    def __init__(self, scan: Scan, offset: ArrayLike, dtype: DTypeLike) -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ValueError(f"dtype: expected float32 or float64, got {dtype!r}")
        self._rows = JosephMatrix(scan, dtype)
        values = {"offset": offset, "angles": scan.angles}
        values |= {name: getattr(scan, name) for name in scan.distances}
        super().__init__(scan.dims, scan.dimsd, values, dtype=self._rows.dtype.name)

    @property
    def angles(self) -> NDArray[np.float64]:
        """Directions of the views in radians."""
        return self._rows.scan.angles

    @property
    def n_detectors(self) -> int:
        """Number of detector elements."""
        return self._rows.scan.n_detectors

    @property
    def offset(self) -> float | NDArray[np.float64]:
        """Where the rotation axis meets the detector, in elements from its centre: one or of every view."""
        return self.get_params()["offset"]

    @property
    def spacing(self) -> float:
        """Distance between neighbouring detector elements."""
        return self._rows.scan.spacing

    @property
    def pixel_size(self) -> float:
        """Side of a pixel."""
        return self._rows.scan.pixel_size

    # ------------------------------------------------------------------ as a member of a family
    def with_parameters(self, parameters: Mapping[str, Any]) -> Self:
        """The scan with another ``offset``, ``angles`` or distances; the elements of the detector stay.

        As in the function that makes the scan, the offset is one number or that of every view.
        """
        others = {name: value for name, value in parameters.items() if name != "offset"}
        values = super().with_parameters(others).get_params()
        given = parameters.get("offset", values["offset"])
        offset = offsets(given.numpy() if isinstance(given, Tensor) else given, len(self.angles))
        return type(self)(self._rows.scan.at(values | {"offset": offset}), offset, self.dtype)

    @property
    def analytic_inverse(self) -> AnalyticInverse:
        """Filtered back-projection."""
        return AnalyticInverse.FILTERED_BACK_PROJECTION

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        return _calibration.project(self._rows.scan.at(parameters), x)

    def apply_adjoint(self, y: Tensor, parameters: Parameters) -> Tensor:
        return _calibration.back_project(self._rows.scan.at(parameters), y)

    def filtered(self, y: Tensor, parameters: Parameters, weights: NDArray, filter: str) -> Tensor:
        """Filtered back-projection; how much every ray counts is taken for constant in the parameters."""
        scan = self._rows.scan.at(parameters)
        return filtered_back_projection(scan, y, weights.reshape(self.dimsd) > 0, filter)

    def lowered(self) -> LinearMap:
        """The torch map of this scan, which is fixed."""
        return _ScanMap(self._rows)

    # ------------------------------------------------------------------ products
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
        return projected(self._rows.scan, images).reshape(len(images), -1).T

    def _rmatmat(self, X: NDArray) -> NDArray:
        if self._rows.is_stored:
            return self._rows.whole().T @ X
        data = X.T.reshape(-1, *self.dimsd).astype(np.result_type(X, self.dtype), copy=False)
        return back_projected(self._rows.scan, data).reshape(len(data), -1).T

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()


class _ScanMap(LinearMap):
    """Batched products with the stored matrix or, where it is too large, with the compiled kernel."""

    def __init__(self, rows: JosephMatrix) -> None:
        super().__init__(rows.scan.dims, rows.scan.dimsd)
        self._rows = rows

    def _forward(self, x: Tensor) -> Tensor:
        if self._rows.is_stored:
            return self._stored()._forward(x)
        return on_cpu(projected, self._rows.scan, x)

    def _adjoint(self, y: Tensor) -> Tensor:
        if self._rows.is_stored:
            return self._stored()._adjoint(y)
        return on_cpu(back_projected, self._rows.scan, y)

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

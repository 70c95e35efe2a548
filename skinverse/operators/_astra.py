"""Projections by ASTRA, for geometries that this package has no projector of its own for."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pylops import LinearOperator

from skinverse._optional import needed_from
from skinverse.operators import _arguments as kinds

# ASTRA's projector for each type of geometry where none is named. All but the first four need CUDA.
_PROJECTORS = {
    "parallel": "linear",
    "parallel_vec": "linear",
    "fanflat": "line_fanflat",
    "fanflat_vec": "line_fanflat",
    "parallel3d": "cuda3d",
    "parallel3d_vec": "cuda3d",
    "cone": "cuda3d",
    "cone_vec": "cuda3d",
}


class AstraProjector(LinearOperator):
    """Projections by ASTRA: the operator that :func:`from_astra` makes and documents.

    It holds the geometries. A projector of ASTRA's, which is a number in this process, is made for each
    product, in 0.1 ms.
    """

    def __init__(
        self, proj_geom: Mapping[str, Any], vol_geom: Mapping[str, Any], projector: str | None = None
    ) -> None:
        with needed_from("ct"):
            import astra
        self.proj_geom, self.vol_geom = _copy(proj_geom), _copy(vol_geom)
        self.projector = projector or _default(self.proj_geom)
        if self.projector.startswith("cuda") and not astra.use_cuda():
            raise RuntimeError(
                f"the projector {self.projector!r} of ASTRA needs CUDA, got a machine without it"
            )
        with self._astra() as projections:
            dims, dimsd = projections.vshape, projections.sshape
        super().__init__(dtype=np.dtype("float32"), dims=dims, dimsd=dimsd)

    def _matmat(self, X: NDArray) -> NDArray:
        with self._astra() as projections:
            return _columns(projections.FP, X, projections.vshape)

    def _rmatmat(self, X: NDArray) -> NDArray:
        with self._astra() as projections:
            return _columns(projections.BP, X, projections.sshape)

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()

    @contextmanager
    def _astra(self) -> Iterator[Any]:
        """ASTRA's own operator."""
        import astra

        try:
            number = astra.create_projector(self.projector, self.proj_geom, self.vol_geom)
        except Exception as error:  # ASTRA's own kind
            raise ValueError(
                f"from_astra: expected geometries for the projector {self.projector!r}, got {error}"
            ) from error
        try:
            yield astra.OpTomo(number)
        finally:
            (astra.projector3d if self.projector == "cuda3d" else astra.projector).delete(number)


def from_astra(
    proj_geom: Mapping[str, Any], vol_geom: Mapping[str, Any], projector: str | None = None
) -> AstraProjector:
    """Projections of any geometry that ASTRA knows, as a pylops operator.

    Parameters
    ----------
    proj_geom : dict
        Projection geometry, as ``astra.create_proj_geom`` makes it: parallel and fan beams in a plane;
        parallel and cone beams in space, with vectors also helical scans, laminography and misaligned
        detectors.
    vol_geom : dict
        Volume geometry, as ``astra.create_vol_geom`` makes it.
    projector : str or None, default=None
        ASTRA's name of the projector. None is ``"linear"`` for parallel and ``"line_fanflat"`` for fan beams
        in a plane, which run on the CPU, and ``"cuda3d"`` in space. ``"cuda"`` is that of a plane on a GPU.

    Returns
    -------
    pylops.LinearOperator
        The operator between images and data in ASTRA's order: (height, width) and (n_views, n_detectors) in a
        plane, (slices, rows, columns) and (detector rows, n_views, detector columns) in space. It computes
        in single precision and image by image. It can be stored and copied to other processes, having nothing
        but copies of the two dictionaries.

    Raises
    ------
    ModuleNotFoundError
        If ASTRA is not installed, which is the extra ``ct``.
    RuntimeError
        If the projector needs CUDA and there is none.
    ValueError
        If the type of the geometry is unknown, or the projector does not fit it.

    See Also
    --------
    parallel_beam, fan_beam : Faster on a CPU, and with filtered back-projection.

    Notes
    -----
    Projectors on the CPU have exact adjoints. Those on a GPU do not, see the parameter ``check_operator`` of
    estimators; the error depends on the geometry.

    References
    ----------
    W. van Aarle, W. J. Palenstijn et al., Fast and flexible X-ray tomography using the ASTRA
    toolbox, Optics Express 24(22), 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse.operators import from_astra
    >>> vol_geom = {"GridRowCount": 4, "GridColCount": 4}
    >>> vol_geom["option"] = {"WindowMinX": -2, "WindowMaxX": 2, "WindowMinY": -2, "WindowMaxY": 2}
    >>> proj_geom = {"type": "parallel", "DetectorWidth": 1.0, "DetectorCount": 4, "ProjectionAngles": [0.0]}
    >>> from_astra(proj_geom, vol_geom) @ np.ones((4, 4))
    array([[4., 4., 4., 4.]], dtype=float32)
    """
    return AstraProjector(proj_geom, vol_geom, projector)


def _copy(geometry: Mapping[str, Any]) -> dict[str, Any]:
    if not kinds.SETTINGS.fits(geometry):
        raise ValueError(
            f"from_astra: expected geometries, {kinds.SETTINGS.expected}, got {reprlib.repr(geometry)}"
        )
    return copy.deepcopy(dict(geometry))


def _default(proj_geom: Mapping[str, Any]) -> str:
    kind = proj_geom.get("type")
    if kind not in _PROJECTORS:
        raise ValueError(f"proj_geom: expected a type among {', '.join(_PROJECTORS)}, got {kind!r}")
    return _PROJECTORS[kind]


def _columns(product: Callable[[NDArray], NDArray], X: NDArray, shape: tuple[int, ...]) -> NDArray:
    """A product of ASTRA's with each column, of complex ones with both parts."""
    if np.iscomplexobj(X):
        return _columns(product, X.real, shape) + 1j * _columns(product, X.imag, shape)
    images = np.ascontiguousarray(X.T, dtype=np.float32).reshape(-1, *shape)
    return np.stack([product(image).ravel() for image in images], axis=1)

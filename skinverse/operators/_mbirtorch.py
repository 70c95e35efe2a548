"""Projections by mbirtorch, for geometries that this package has no projector of its own for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pylops import LinearOperator
from torch import Tensor

from skinverse._optional import needed_from
from skinverse.operators._lowering import as_torch
from skinverse.operators._map import LinearMap


class MbirtorchProjector(LinearOperator):
    """Projections by mbirtorch: the operator that :func:`from_mbirtorch` makes and documents.

    It holds the parameters of a model, and makes one of its own when it is first needed.
    """

    def __init__(self, geometry: dict[str, Any], options: dict[str, Any], compile_mode: str) -> None:
        self.geometry, self.options, self.compile_mode = dict(geometry), dict(options), compile_mode
        self._own: Any = None
        sizes = (self._model().get_params(name) for name in ("recon_shape", "sinogram_shape"))
        dims, dimsd = (tuple(map(int, shape)) for shape in sizes)
        super().__init__(dtype=np.dtype("float32"), dims=dims, dimsd=dimsd)

    def lowered(self) -> LinearMap:
        """The torch map, on the device that mbirtorch chooses."""
        return _Projections(self._model(), self.dims, self.dimsd)

    def _model(self) -> Any:
        if self._own is None:
            with needed_from("ct"):
                import mbirtorch
            self._own = mbirtorch.build_model(self.geometry, self.options)
            self._own.compile_mode = self.compile_mode
            self._own.configure_devices(1)  # as its differentiable projectors need it
        return self._own

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_own": None}

    def _matmat(self, X: NDArray) -> NDArray:
        return _columns(as_torch(self), X, self.dims)

    def _rmatmat(self, X: NDArray) -> NDArray:
        return _columns(as_torch(self).adjoint, X, self.dimsd)

    def _matvec(self, x: NDArray) -> NDArray:
        return self._matmat(x.reshape(-1, 1)).ravel()

    def _rmatvec(self, x: NDArray) -> NDArray:
        return self._rmatmat(x.reshape(-1, 1)).ravel()


def from_mbirtorch(model: Any) -> MbirtorchProjector:
    """Projections of any geometry that mbirtorch knows, as a pylops operator.

    Parameters
    ----------
    model : mbirtorch.TomographyModel
        A model of parallel, cone, helical, multi-axis or translated beams. On a CPU make it with
        ``compile_mode="off"``: compiling its projectors takes minutes there.

    Returns
    -------
    pylops.LinearOperator
        The operator between volumes and data in mbirtorch's order, (rows, columns, slices) and (n_views,
        detector rows, detector channels). It computes in single precision, image by image, on one device,
        with exact adjoints. It holds the parameters that the model has now; what the model is given later
        does not reach it, nor does its regularisation.

    Raises
    ------
    ModuleNotFoundError
        If mbirtorch is not installed, which is in the extra ``ct``.
    TypeError
        If ``model`` is no model.

    Notes
    -----
    Where the model has ``use_ror_mask``, as by default, pixels outside the circle in the image are not seen.

    Examples
    --------
    >>> import mbirtorch, numpy as np  # doctest: +SKIP
    >>> from skinverse.operators import from_mbirtorch
    >>> angles = np.linspace(0, np.pi, 90)
    >>> model = mbirtorch.ParallelBeamModel((90, 4, 64), angles, compile_mode="off")  # doctest: +SKIP
    >>> from_mbirtorch(model).dims  # doctest: +SKIP
    (64, 64, 4)
    """
    if not hasattr(model, "get_all_params"):
        raise TypeError(f"model: expected a model of mbirtorch, got {type(model).__name__}")
    geometry, options, _ = model.get_all_params()
    geometry |= {"geometry_type": type(model).__name__}
    chosen = {name: value for name, value in options.items() if value is not None}
    return MbirtorchProjector(geometry, chosen, model.compile_mode)


class _Projections(LinearMap):
    """Image by image by the projectors of a model."""

    def __init__(self, model: Any, dims: tuple[int, ...], dimsd: tuple[int, ...]) -> None:
        super().__init__(dims, dimsd)
        self._model = model

    def precision(self) -> torch.dtype:
        return torch.float32

    def _forward(self, x: Tensor) -> Tensor:
        from mbirtorch import forward_project_differentiable as project

        return _each(partial(project, self._model), x)

    def _adjoint(self, y: Tensor) -> Tensor:
        from mbirtorch import back_project_differentiable as back_project

        return _each(partial(back_project, self._model), y)


def _each(product: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """A product with each image, and of complex ones with both parts."""
    if batch.is_complex():
        return torch.complex(_each(product, batch.real), _each(product, batch.imag))
    return torch.stack([product(image) for image in batch]).to(batch)


def _columns(product: Callable[[Tensor], Tensor], X: NDArray, shape: tuple[int, ...]) -> NDArray:
    """A product with each column."""
    batch = torch.from_numpy(np.ascontiguousarray(X.T)).reshape(-1, *shape)
    return product(batch).flatten(1).numpy().T

"""Measurements and what belonged to each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from skinverse._arrays import as_rows
from skinverse._rows import ahead, column, columns, in_memory, is_stored, n_rows, take

# Numbers of stored measurements that are read together.
_AT_ONCE = 2**20


class Measurements:
    """Measurements of several images, with what the instrument did for each of them.

    ``fit``, ``predict`` and ``score`` take them wherever they take an array of measurements, and so do the
    splitters and searches of scikit-learn. An image is reconstructed as if operator and noise had been given
    its own values from the beginning.

    Parameters
    ----------
    data : array-like, Tensor or list of shape (n_samples, *dimsd)
        The measurements; stored ones (memory maps, HDF5, Zarr, map-style data sets) are read in parts.
    **parameters : array-like of shape (n_samples, ...)
        One value for each image, by the names of the operator's parameters, such as ``mask`` and
        ``coil_maps`` of :func:`~skinverse.operators.fourier_sampling`, ``psf`` of
        :func:`~skinverse.operators.convolution`, ``angles`` and ``offset`` of
        :func:`~skinverse.operators.parallel_beam`, ``sigma`` of
        :func:`~skinverse.operators.gaussian_blur`, or those of a
        :class:`~skinverse.operators.ParametricOperator`; and of the noise model, such as ``weights``, ``std``
        and ``gain``. A name that both have is told apart as ``operator__offset`` and ``noise__offset``.
        ``predict`` and ``score`` read stored ones in parts, ``fit`` as a whole.

    Raises
    ------
    ValueError
        If there is not one value for each image.
    TypeError
        If data or values have no rows.

    Notes
    -----
    Images of which all values are the same are reconstructed together; the time grows with the number of
    different operators. A method inside another one, ``initial=``, gets the operator of each image, and of
    the noise what is not measured; its own noise stays as it is.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse import Measurements, Tikhonov
    >>> from skinverse.operators import gaussian_blur
    >>> blurred = np.random.default_rng(0).random((3, 16, 16))
    >>> Y_meas = Measurements(blurred, sigma=[0.5, 1.0, 1.5])
    >>> len(Y_meas[1:]), Y_meas[1:].parameters["sigma"]
    (2, [1.0, 1.5])
    >>> Tikhonov(gaussian_blur((16, 16), 1.0), lam=0.01).fit().predict(Y_meas).shape
    (3, 16, 16)
    """

    def __init__(self, data: Any, /, **parameters: Any) -> None:
        _, data = columns(data, "Y_meas") or (None, data)
        data = data if hasattr(data, "__len__") else as_rows(data, "Y_meas")
        n = n_rows(data, "Y_meas")
        parameters = {name: column(values, name) for name, values in parameters.items()}
        for name, values in parameters.items():
            n_values = n_rows(values, name)
            if n_values != n:
                raise ValueError(f"{name}: expected one value for each of {n} measurements, got {n_values}")
        self.data, self.parameters = data, parameters

    @classmethod
    def of(cls, measured: Any) -> Self:
        """The measurements as they are, or an array as measurements of which nothing more is known.

        Parameters
        ----------
        measured : array-like or Measurements
            What ``predict`` takes.

        Returns
        -------
        Measurements
            The same.
        """
        return measured if type(measured) is cls else cls(measured)

    def __len__(self) -> int:
        return n_rows(self.data, "Y_meas")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data, with the axis of images first: the only one of data of several sizes."""
        if self.n_sizes > 1:
            return (len(self),)
        known = getattr(self.data, "shape", None)
        return (len(self), *np.shape(self.data[0])) if known is None else tuple(known)

    @property
    def n_sizes(self) -> int:
        """Number of different sizes among the data."""
        return len(set(map(np.shape, self.data))) if isinstance(self.data, (list, tuple)) else 1

    @property
    def stored(self) -> bool:
        """Whether something of them is to be read when it is needed."""
        return any(map(is_stored, (self.data, *self.parameters.values())))

    def __getitem__(self, index: Any) -> Self:
        """Some of the images with what belongs to them; one index gives a set of one.

        Parameters
        ----------
        index : int, slice, or array-like of int or bool
            Which images.

        Returns
        -------
        Measurements
            Those images.
        """
        rows = self._rows(index)
        parameters = {name: take(values, rows) for name, values in self.parameters.items()}
        return type(self)(take(self.data, rows), **parameters)

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Refuse to forget what belongs to each image."""
        raise TypeError("Measurements are no array: their data are its attribute `data`")

    def __sizeof__(self) -> int:
        """Bytes with those of arrays in it: what is large, dask sends to its workers once."""
        parts = (self.data, *self.parameters.values())
        return super().__sizeof__() + sum(int(getattr(part, "nbytes", 0)) for part in parts)

    def __repr__(self) -> str:
        """Show how many there are, and what is known of each."""
        names = ", ".join(["data", *self.parameters])
        return f"<{type(self).__name__}: {names} of {len(self)} images>"

    def of_data(self, data: Any) -> Self:
        """The same parameters with other data, such as corrected ones.

        Parameters
        ----------
        data : array-like, Tensor or list of shape (n_samples, ...)
            The new data.

        Returns
        -------
        Measurements
            New measurements; these are unchanged.
        """
        return type(self)(data, **self.parameters)

    # ------------------------------------------------------------------ for estimators
    def parts(self, n_values: int | None) -> Iterator[tuple[NDArray[np.intp], Self]]:
        """Indices and measurements of one size in memory, about so many numbers of them, or all there are."""
        if self.n_sizes > 1:
            shapes = [np.shape(row) for row in self.data]
            groups = [[i for i, shape in enumerate(shapes) if shape == one] for one in dict.fromkeys(shapes)]
            return ((np.array(group), self[group]) for group in groups)
        if not self.stored and n_values is None:
            return iter([(np.arange(len(self)), self)])
        size = max(1, (n_values or _AT_ONCE) // math.prod(np.shape(take(self.data, slice(0, 1)))[1:]))
        return ahead(self._consecutive(size))

    def alike(self) -> Iterator[tuple[NDArray[np.intp], dict[str, Any]]]:
        """Indices of images with the same values, and these values; one group where nothing differs."""
        if not self.parameters:
            yield np.arange(len(self)), {}
            return
        groups: dict[Any, list[int]] = {}
        read = {name: in_memory(values) for name, values in self.parameters.items()}
        columns = {name: [np.asarray(row) for row in values] for name, values in read.items()}
        for i in range(len(self)):
            groups.setdefault(tuple(_content(column[i]) for column in columns.values()), []).append(i)
        for members in groups.values():
            values = {name: column[members[0]] for name, column in columns.items()}
            yield np.array(members), {k: v.item() if v.ndim == 0 else v for k, v in values.items()}

    def _consecutive(self, size: int) -> Iterator[tuple[NDArray[np.intp], Self]]:
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield np.arange(start, stop), self[start:stop]

    def _rows(self, index: Any) -> slice | NDArray[np.intp]:
        """A slice, or indices that exist."""
        if isinstance(index, tuple) and len(index) == 2 and index[1] is Ellipsis:
            index = index[0]  # as scikit-learn asks for rows
        if isinstance(index, slice):
            return index
        array = np.atleast_1d(np.asarray(index))
        if array.dtype == bool and array.shape != (len(self),):
            raise IndexError(f"expected a mask of {len(self)} measurements, got shape {array.shape}")
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
            raise IndexError(f"expected an index, a slice, indices or a mask of measurements, got {index!r}")
        return np.arange(len(self))[array.astype(int) if not array.size else array]


def _content(value: NDArray[Any]) -> tuple[Any, ...]:
    """What tells a value from others of other bytes, shape or type."""
    return value.shape, value.dtype.str, value.tobytes()

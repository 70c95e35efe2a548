"""Rows of arrays, lists and stored sets: how many there are, and those that are asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor

Item = TypeVar("Item")

# Bytes up to which a memory map is read as an array in memory is, such as those that joblib makes for its
# workers.
_MAPPED = 2**28

# What arrays in memory have and sets that are read from elsewhere have not: NumPy's, torch's, those of other
# packages, tables.
_IN_MEMORY = ("__array_interface__", "__dlpack__", "iloc")


def is_stored(source: Any) -> bool:
    """Whether rows are to be read when they are needed: of memory maps, HDF5, Zarr, map-style data sets.

    Parameters
    ----------
    source : object
        What somebody hands over for an array.

    Returns
    -------
    bool
        False for arrays in memory, for lists, and for what has no rows.
    """
    if isinstance(source, np.memmap):
        return source.nbytes > _MAPPED
    if isinstance(source, (list, tuple, str, dict)) or issparse(source):
        return False
    if any(hasattr(source, name) for name in _IN_MEMORY):
        return False
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def columns(source: Any, name: str) -> list[Any]:
    """The two columns of a map-style data set of pairs, images first; none of any other set of rows.

    Parameters
    ----------
    source : object
        What somebody hands over for an array.
    name : str
        Name of the argument, for the error.

    Returns
    -------
    list
        Two sets of rows, or none.

    Raises
    ------
    TypeError
        If its items are neither arrays nor pairs.
    """
    if not is_stored(source) or hasattr(source, "shape") or not len(source):
        return []
    first = source[0]
    if isinstance(first, (list, tuple)) and len(first) == 2:
        return [_Column(source, 0, name), _Column(source, 1, name)]
    if isinstance(first, (list, tuple, dict, str)):
        kind = type(first).__name__
        raise TypeError(f"{name}: expected pairs (image, data) or arrays, got {kind} in row 0")
    return []


class _Column:
    """One of two things that each item of a data set holds."""

    def __init__(self, source: Any, place: int, name: str) -> None:
        self._source, self._place, self._name = source, place, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> Any:
        item = self._source[row]
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            kind = type(item).__name__
            raise TypeError(f"{self._name}: expected a pair (image, data) in row {row}, got {kind}")
        return item[self._place]


def column(values: Any, name: str) -> Any:
    """One value for each image as a list, an array, a tensor or a stored set; tables become arrays.

    Parameters
    ----------
    values : array-like
        The values.
    name : str
        Their name, for the error.

    Returns
    -------
    list, tuple, ndarray, Tensor or stored set
        The same values.

    Raises
    ------
    TypeError
        If they have no order.
    """
    if isinstance(values, (dict, str, set)):
        raise TypeError(f"{name}: expected one row for each image, got {type(values).__name__}")
    rows = values if isinstance(values, (list, tuple)) else [values]
    if any(isinstance(row, np.ma.MaskedArray) for row in rows):
        raise TypeError(
            f"{name}: expected values without a mask; a weight of zero says that nothing was measured"
        )
    if isinstance(values, Tensor):
        return values.detach().cpu().resolve_conj()
    if isinstance(values, (list, tuple, np.ndarray)) or is_stored(values) or not hasattr(values, "__len__"):
        return values
    return np.asarray(values)


def n_rows(source: Any, name: str) -> int:
    """Number of rows.

    Parameters
    ----------
    source : array-like
        An array, a list or a stored set.
    name : str
        Name of the argument, for the error.

    Returns
    -------
    int
        How many.

    Raises
    ------
    TypeError
        If it has none.
    """
    try:
        return int(source.shape[0]) if getattr(source, "shape", ()) else len(source)
    except TypeError:
        raise TypeError(f"{name}: expected one row for each image, got {type(source).__name__}") from None


def take(source: Any, index: slice | NDArray[np.intp]) -> Any:
    """Some rows: a list of a list, otherwise an array or a tensor.

    Parameters
    ----------
    source : array-like
        An array, a list or a stored set, of which only these rows are read.
    index : slice or ndarray of int
        Which rows; stored sets are asked for slices alone, since they differ in what else they know.

    Returns
    -------
    list, ndarray or Tensor
        The rows, in this order.
    """
    if isinstance(source, (list, tuple)):
        return [source[i] for i in np.arange(len(source))[index]]
    if not is_stored(source):
        return source[index] if isinstance(source, (np.ndarray, Tensor)) else np.asarray(source)[index]
    chosen = np.arange(n_rows(source, "rows"))[index]
    if not hasattr(source, "shape"):
        return _together([source[int(i)] for i in chosen], chosen, stack=True)
    runs = [run for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1) if len(run)]
    parts = [source[int(run[0]) : int(run[-1]) + 1] for run in runs]
    rows = _together(parts, [run[0] for run in runs], stack=False)
    release(source)
    return rows


def in_memory(source: Any) -> Any:
    """All rows; those of an array in memory as it is."""
    return take(source, slice(None)) if is_stored(source) else source


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items; while one of them is worked on, the next one is made by another thread."""
    waiting, end = iter(items), object()
    with ThreadPoolExecutor(1) as reader:
        coming: Any = reader.submit(next, waiting, end)
        while (item := coming.result()) is not end:
            coming = reader.submit(next, waiting, end)
            yield item


def release(source: Any) -> None:
    """Let the memory go in which parts of a mapped file lie, which is theirs; no other set has any."""
    mapping = getattr(source, "_mmap", None) if getattr(source, "mode", "") in ("r", "r+", "w+") else None
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _together(parts: list[Any], first: Any, *, stack: bool) -> Any:
    """What was read one after the other, in memory; ``first`` are the rows with which the parts begin."""
    if not parts:
        raise ValueError("rows: expected at least one, got none")
    shapes = [tuple(np.shape(part))[0 if stack else 1 :] for part in parts]
    for row, shape in zip(first, shapes, strict=True):
        if shape != shapes[0]:
            known = f"{shapes[0]} in row {first[0]}"
            raise ValueError(f"rows: expected one shape, got {known} and {shape} in row {row}")
    if all(isinstance(part, Tensor) for part in parts):
        return torch.stack(parts) if stack else torch.cat(parts)
    arrays = [part if isinstance(part, np.ma.MaskedArray) else np.asarray(part) for part in parts]
    package: Any = np.ma if any(isinstance(array, np.ma.MaskedArray) for array in arrays) else np
    return package.stack(arrays) if stack else package.concatenate(arrays)

"""HDF5: files that are opened, and data sets that are checked before they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skinverse._optional import needed_from


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Give the file open for reading."""
    with needed_from("io"):
        import h5py
    Path(path).open("rb").close()  # its errors say more than those of h5py
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{os.fspath(path)}: expected an HDF5 file, but: {error}") from error
    with file:
        yield file


def dataset(file: Any, name: str, *layouts: str, kinds: str = "biuf") -> Any:
    """Give the data set, unread, if it has the axes of one of the layouts, such as ``"angles, rows"``.

    It holds real numbers, or those of other kinds, by NumPy's letters.
    """
    found = file.get(name)
    if not hasattr(found, "shape"):
        raise ValueError(f"{file.filename}: expected a data set {name!r}, which is not there")
    if found.ndim not in {len(layout.split(", ")) for layout in layouts}:
        axes = " or ".join(f"({layout})" for layout in layouts)
        raise ValueError(f"{file.filename}: {name}: expected the axes {axes}, got the shape {found.shape}")
    if found.dtype.kind not in kinds:
        numbers = "complex numbers" if kinds == "c" else "real numbers"
        raise ValueError(f"{file.filename}: {name}: expected {numbers}, got {found.dtype}")
    return found


def part(selection: slice | None, n: int, name: str) -> slice:
    """Give the slice of an axis of length ``n`` that is to be read."""
    if selection is None:
        return slice(n)
    if not isinstance(selection, slice):
        raise TypeError(f"{name}: expected a slice such as slice(10, 12), got {selection!r}")
    start, stop, step = selection.indices(n)
    if step < 1 or start >= stop:
        raise ValueError(f"{name}: expected a slice that holds some of 0 to {n - 1} upwards, got {selection}")
    return slice(start, stop, step)

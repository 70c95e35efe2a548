"""Packages that only some functions need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needed_from"]


@contextmanager
def needed_from(extra: str) -> Iterator[None]:
    """Imports within name, where they fail, the extra of the package that installs what is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs {error.name}: pip install 'skinverse[{extra}]'", name=error.name
        ) from error

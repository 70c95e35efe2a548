"""A training kept in a file, to be continued after its process is gone."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from skinverse._files import pack, unpack, write_atomically

Progress = dict[str, Any]


class Checkpoint:
    """How far a training is: its finished phases and the epoch that it reached in the current one.

    Parameters
    ----------
    path : path-like or None
        The file; None keeps nothing.
    key : str
        What tells this training from others: data, parameters, versions.

    Raises
    ------
    ValueError
        If the file belongs to another training or is no checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self._path, self._key = None if path is None else Path(path), key
        self._finished: list[Progress] = []
        self.current: Progress | None = None
        if self._path is not None and self._path.exists():
            self._read(self._path)

    def read_only(self) -> Checkpoint:
        """The same for a process that must not write: it goes on from there and keeps nothing."""
        twin = copy.copy(self)
        twin._path = None
        return twin

    @property
    def wanted(self) -> bool:
        """Whether there is a file to write to."""
        return self._path is not None

    def finished(self, number: int) -> Progress | None:
        """What a phase left behind, if it has been finished."""
        return self._finished[number] if number < len(self._finished) else None

    def save(self, current: Progress) -> None:
        """Note the epoch that the current phase has reached."""
        self._write(current)

    def finish(self, phase: Progress) -> None:
        """Note the end of the current phase."""
        self._finished.append(phase)
        self.current = None
        self._write(None)

    def _write(self, current: Progress | None) -> None:
        if self._path is not None:
            tree = {"format": "skinverse checkpoint", "key": self._key}
            content = pack(tree | {"finished": self._finished, "current": current})
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content)

    def _read(self, path: Path) -> None:
        try:
            tree = unpack(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"checkpoint: {path} is no checkpoint of skinverse: {error}") from error
        if not isinstance(tree, dict) or tree.get("format") != "skinverse checkpoint":
            raise ValueError(f"checkpoint: {path} is no checkpoint of skinverse")
        if tree["key"] != self._key:
            raise ValueError(
                f"checkpoint: {path} belongs to a training with other data, parameters or versions: expected "
                "that of this one, or a path where there is no file"
            )
        self._finished, self.current = tree["finished"], tree["current"]

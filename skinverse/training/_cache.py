"""Trainings that are remembered: the same one is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib

from skinverse._files import pack, unpack, write_atomically


class TrainingCache:
    """A folder of finished trainings, one file each, that several processes may share.

    Entries hold numbers and text only; a file that somebody else put there runs nothing.

    Parameters
    ----------
    memory : path-like, joblib.Memory or None
        The folder, or that of the memory; None remembers nothing.
    """

    def __init__(self, memory: Any) -> None:
        location = memory.location if isinstance(memory, joblib.Memory) else memory
        self._folder = None if location is None else Path(location) / "skinverse"

    @property
    def wanted(self) -> bool:
        """Whether anything is remembered."""
        return self._folder is not None

    def get(self, key: str) -> dict[str, Any] | None:
        """The training with this key; None if there is none, or its file is damaged."""
        if self._folder is None:
            return None
        try:
            entry = unpack((self._folder / f"{key}.safetensors").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return entry if isinstance(entry, dict) else None

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Remember a training."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / f"{key}.safetensors", pack(entry))

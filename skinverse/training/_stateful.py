"""What changes during a training beside the module."""

from __future__ import annotations

from typing import Any, Protocol


class Stateful(Protocol):
    """What changes during a phase beside the module, and therefore belongs into a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors in dicts, lists and tuples."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""

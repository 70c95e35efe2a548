"""Import matplotlib, an optional dependency, when something is drawn."""

from __future__ import annotations

from typing import Any


def pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("displays need matplotlib: pip install 'skinverse[plot]'") from error
    return plt

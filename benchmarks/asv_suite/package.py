"""What a user pays before the first image."""

from __future__ import annotations

import subprocess
import sys


class Import:
    """In a process of its own, where nothing is loaded yet."""

    def time_import(self) -> None:
        subprocess.run([sys.executable, "-c", "import skinverse"], check=True)

"""Writes the numbers of a benchmark together with what they were made with."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "pylops", "scikit-learn", "skinverse")
_STARTED = time.perf_counter()


def write(name: str, figures: Mapping[str, Any], *, seed: int) -> Path:
    """Write ``results/NAME.json``: figures, versions, machine, seed, seconds since the start and date."""
    record = {
        "figures": dict(figures),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seed": seed,
        "seconds": round(time.perf_counter() - _STARTED, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(path.read_text(), end="")
    return path


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor; the platform module knows it on few systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

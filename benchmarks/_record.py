"""What the benchmarks measure with, and the record that one run of them leaves.

A record holds what is needed to believe its figures and to get them again: commit, command, parameters,
versions, machine, seeds, the score of every image, and intervals. One run makes one record.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skinverse.metrics import psnr, ssim

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "pylops", "scikit-learn", "skinverse")
_STARTED = time.perf_counter()
_N_RESAMPLED = 2000


# ---------------------------------------------------------------------- scores
def quality(images: np.ndarray, x: np.ndarray, *, data_range: float | None = 1.0) -> dict[str, Any]:
    """PSNR and SSIM: mean, interval and the score of every image."""
    return scores("psnr", psnr(images, x, data_range=data_range)) | scores(
        "ssim", ssim(images, x, data_range=data_range)
    )


def scores(name: str, per_image: np.ndarray) -> dict[str, Any]:
    """Mean, interval of the mean and single scores of images."""
    return {
        name: float(np.mean(per_image)),
        f"{name}_interval": interval(per_image),
        f"{name}_per_image": [round(float(score), 4) for score in per_image],
    }


def over_seeds(runs: Sequence[Mapping[str, Any]], name: str = "psnr") -> dict[str, Any]:
    """The same measurement with several seeds: the mean of all, that of each, and every image."""
    table = np.array([run[f"{name}_per_image"] for run in runs])
    return {
        name: float(table.mean()),
        f"{name}_interval": interval(table.mean(0)),
        f"{name}_per_seed": table.mean(1).tolist(),
        f"{name}_per_image": table.tolist(),
    }


def gain(found: Mapping[str, Any], control: Mapping[str, Any], name: str = "psnr") -> dict[str, Any]:
    """How much better than its control a method is, image by image."""
    a, b = (np.atleast_2d(run[f"{name}_per_image"]).mean(0) for run in (found, control))
    return {name: float((a - b).mean()), f"{name}_interval": interval(a - b)}


def interval(per_image: np.ndarray) -> list[float]:
    """Interval of 95 % for the mean over images, by drawing the images again (percentile bootstrap)."""
    values = np.asarray(per_image, dtype=float)
    drawn = np.random.default_rng(0).integers(len(values), size=(_N_RESAMPLED, len(values)))
    return [float(end) for end in np.quantile(values[drawn].mean(1), (0.025, 0.975))]


# ---------------------------------------------------------------------- the record
def write(name: str, figures: Mapping[str, Any], *, seeds: Sequence[int], finished: bool = True) -> Path:
    """Write ``results/NAME.json``; a run that goes on for long writes it again as it gets further."""
    record = {
        "commit": _commit(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "finished": finished,
        "parameters": _parameters(),
        "seeds": list(seeds),
        "figures": dict(figures),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "seconds": round(time.perf_counter() - _STARTED, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(_json(record) + "\n")
    print(_json(_without_images(record["figures"])), flush=True)
    return path


def _commit() -> str:
    """The commit that was measured, and whether files of it were changed."""

    def git(*arguments: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "../skinverse", "./*.py")
    return git("rev-parse", "HEAD") + (" with changes" if changed else "")


def _parameters() -> dict[str, Any]:
    """The constants of the script, which are all that it can be given."""
    script = vars(sys.modules["__main__"])
    constants = {name: value for name, value in script.items() if name.isupper()}
    return {
        name: _plain(value)
        for name, value in constants.items()
        if not isinstance(value, Path) and value is not script.get("RESULTS")
    }


def _plain(value: Any) -> Any:
    """A value that JSON has; of others their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else _text(value)


def _text(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of an object, and one for each list, however long."""
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value)
    inner = indent + "  "
    rows = (f"{inner}{json.dumps(str(key))}: {_json(entry, inner)}" for key, entry in value.items())
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def _without_images(figures: Any) -> Any:
    """The figures without those of single images, to be read on a screen."""
    if not isinstance(figures, Mapping):
        return figures
    return {k: _without_images(v) for k, v in figures.items() if not str(k).endswith("_per_image")}


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

"""Versions of Python, the package and its dependencies, for bug reports."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["show_versions"]

_REQUIRED = (
    "skinverse",
    "scikit-learn",
    "skorch",
    "torch",
    "numpy",
    "scipy",
    "joblib",
    "pylops",
    "scikit-image",
    "safetensors",
    "lazy-loader",
    "PyWavelets",
    "tqdm",
)
_OPTIONAL = ("matplotlib", "astra-toolbox", "finufft", "h5py", "pydicom", "tifffile", "dask", "accelerate")


def show_versions() -> None:
    """Print the versions of Python, skinverse and what it rests on, and the devices torch sees.

    Examples
    --------
    >>> import skinverse
    >>> skinverse.show_versions()  # doctest: +ELLIPSIS
    System
    ...
    """
    import torch

    print("System")
    _print("python", platform.python_version())
    _print("platform", platform.platform())
    _print("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    _print("GPU", _gpus())
    print("Required")
    for name in _REQUIRED:
        _print(name, installed_version(name))
    print("Optional")
    for name in _OPTIONAL:
        _print(name, installed_version(name))


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) + f" (CUDA {torch.version.cuda})" if names else "none"


def installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _print(name: str, value: str) -> None:
    print(f"  {name}: {value}")

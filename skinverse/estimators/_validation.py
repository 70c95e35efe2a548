"""From what a user hands over to a batch on the right device and back, or a sentence on what is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pylops
import scipy.sparse
import torch
from sklearn.utils import Bunch, check_random_state
from torch import Tensor

from skinverse.operators import dot_test
from skinverse.solvers import Solution

_FLOATS = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is one, the CPU otherwise.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not str(device).startswith(("cpu", "cuda")):
        raise ValueError(f'device: expected "auto", "cpu" or "cuda", got {device!r}')
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {device!r} without CUDA")
    return found


def as_batch(array: Any, name: str, device: torch.device) -> Tensor:
    """A finite float or complex tensor with at least one image; float32 and float64 stay what they are.

    Raises
    ------
    TypeError
        If the array is sparse or does not hold numbers.
    ValueError
        If it is empty, has no image axis or is not finite.
    """
    batch = array.detach() if isinstance(array, Tensor) else _from_numpy(array, name)
    if batch.ndim < 2:
        raise ValueError(
            f"{name}: expected a batch of images, (n_samples, ...), got shape {tuple(batch.shape)}"
        )
    if batch.numel() == 0:
        raise ValueError(
            f"{name}: expected at least one image of at least one value, got shape {tuple(batch.shape)}"
        )
    batch = batch.to(device, batch.dtype if batch.dtype in _FLOATS else torch.float64)
    finite = torch.isfinite(batch)
    if not finite.all():
        n_bad = int((~finite).flatten(1).any(1).sum())
        raise ValueError(f"{name}: expected finite values, got NaN or inf in {n_bad} of {len(batch)} samples")
    return batch


def _from_numpy(array: Any, name: str) -> Tensor:
    if scipy.sparse.issparse(array):
        raise TypeError(f"{name}: expected a dense array, got a sparse {type(array).__name__}")
    values = np.asarray(array)
    if values.dtype == object:
        raise TypeError(f"{name}: expected an array of numbers, got dtype object (images of unequal shape?)")
    if values.dtype.kind not in "buifc":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {values.dtype}")
    kept = values.dtype if values.dtype.name in ("float32", "float64", "complex64", "complex128") else None
    wanted = kept or (np.complex128 if values.dtype.kind == "c" else np.float64)
    # Memory maps of parallel workers are read-only, which torch does not allow: those are copied.
    return torch.from_numpy(np.require(values, wanted, ["C", "W"]))


def per_sample(batch: Tensor, dims: tuple[int, ...], name: str, source: str) -> Tensor:
    """The batch as (n, *dims); only flat arrays are reshaped."""
    dims = tuple(dims)
    if tuple(batch.shape[1:]) == dims:
        return batch
    if batch.ndim == 2 and batch.shape[1] == math.prod(dims):
        return batch.reshape(-1, *dims)
    expected = ", ".join(map(str, dims))
    flat = f", or flat (n_samples, {math.prod(dims)})" if len(dims) > 1 else ""
    raise ValueError(
        f"{name}: expected shape (n_samples, {expected}) from {source}{flat}, got {tuple(batch.shape)}"
    )


def check_operator(operator: Any) -> None:
    """Refuse what is no pylops operator, and an operator whose adjoint is not its adjoint.

    Raises
    ------
    TypeError
        If ``operator`` is no ``pylops.LinearOperator``.
    ValueError
        If it fails its dot test.
    """
    if not isinstance(operator, pylops.LinearOperator):
        raise TypeError(f"operator: expected a pylops.LinearOperator, got {type(operator).__name__}")
    dot_test(operator)


def same_kind(x: Tensor, like: Any) -> Any:
    """Torch out where torch came in (on its device), NumPy otherwise."""
    return x.to(like.device) if isinstance(like, Tensor) else x.cpu().numpy()


def information(solution: Solution) -> Bunch:
    """What the solver reports of each image, as NumPy arrays."""
    fields = {name: getattr(solution, name) for name in ("n_steps", "converged", "residual", "objective")}
    return Bunch(**{name: value.cpu().numpy() for name, value in (fields | solution.extra).items()})


def check_lam(lam: Any, noise_std: float | None, *, rules: tuple[str | None, ...] = ("discrepancy",)) -> None:
    """A weight is a number >= 0 or one of the rules; "discrepancy" needs a known noise level.

    Raises
    ------
    ValueError
        Otherwise.
    """
    is_weight = isinstance(lam, (int, float, np.number)) and 0 <= lam < math.inf
    if not is_weight and lam not in rules:
        names = " or ".join(f'"{rule}"' if rule else "None" for rule in rules)
        raise ValueError(f"lam: expected a number >= 0 or {names}, got {lam!r}")
    if isinstance(lam, str) and lam == "discrepancy" and noise_std is None:
        raise ValueError('lam="discrepancy" matches the residual to the noise: noise_std is missing')
    if noise_std is not None and not noise_std > 0:
        raise ValueError(f"noise_std: expected a number > 0, got {noise_std!r}")


def discrepancy_level(noise_std: float | None, data: Tensor) -> Tensor:
    """Expected norm of the noise, ``sqrt(n_measurements) * noise_std``, one per image."""
    assert noise_std is not None  # check_lam
    level = math.sqrt(data[0].numel()) * noise_std
    return torch.full((len(data),), level, dtype=data.dtype.to_real(), device=data.device)


def check_bounds(bounds: Any) -> tuple[float | None, float | None]:
    """``(low, high)`` with None for no bound.

    Raises
    ------
    ValueError
        If ``bounds`` is no such pair.
    """
    if bounds is not None and not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise ValueError(f"bounds: expected (low, high) or None, got {bounds!r}")
    low, high = (None, None) if bounds is None else bounds
    if low is not None and high is not None and not low < high:
        raise ValueError(f"bounds: expected (low, high) with low < high, got {bounds!r}")
    return low, high


def check_whole(value: Any, name: str, least: int) -> None:
    """A parameter that counts.

    Raises
    ------
    ValueError
        If it is no whole number of at least ``least``.
    """
    if not (isinstance(value, (int, np.integer)) and value >= least):
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")


def single(batch: Tensor) -> Tensor:
    """The batch in single precision."""
    return batch.to(torch.complex64 if batch.is_complex() else torch.float32)


def seed_of(random_state: Any) -> int:
    """A seed; of None one that nobody knows, without a draw from the global generator."""
    known = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return int(known.randint(2**31))

"""From what a user hands over to a batch on the right device and back, or a sentence on what is wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pylops
import torch
from sklearn.utils import Bunch, check_random_state
from torch import Tensor

from skinverse._batches import rowwise
from skinverse._hashing import digest
from skinverse._parameters import ParameterError
from skinverse._rows import release
from skinverse._tensors import norm
from skinverse.noise import NoiseModel, noise_model
from skinverse.operators import LinearMap, check_is_operator, dot_test, parameter_names
from skinverse.solvers import Solution

# Pairs that tell whether images and measurements were exchanged: a blur had relative residuals of 0.02 in
# the right order and 0.13 in the wrong one.
FEW, _SWAPPED_BELOW, _SWAPPED_RATIO = 8, 0.3, 2.0


def resolve_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is one, the CPU otherwise.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: expected one that is there, got {device!r} without CUDA")
    return found


def check_dims(shape: tuple[int, ...], dims: tuple[int, ...], name: str, source: str) -> None:
    """Refuse what is no batch of (n, *dims) and no flat one.

    Raises
    ------
    ValueError
        If it is none.
    """
    if shape[1:] == dims or shape[1:] == (math.prod(dims),):
        return
    expected = ", ".join(map(str, dims))
    flat = f", or flat (n_samples, {math.prod(dims)})" if len(dims) > 1 else ""
    alone = f": a single sample is {name}[None]" if shape == dims else ""
    raise ValueError(
        f"{name}: expected shape (n_samples, {expected}) from {source}{flat}, got {shape}{alone}"
    )


def per_sample(batch: Any, dims: tuple[int, ...], name: str, source: str) -> Any:
    """The batch as (n, *dims); only flat arrays are reshaped."""
    dims = tuple(dims)
    check_dims(tuple(batch.shape), dims, name, source)
    return rowwise(lambda x: x.reshape(-1, *dims), batch)


def check_channel_axis(channel_axis: int | None, dims: tuple[int, ...]) -> None:
    """Refuse an axis of channels that images of ``dims`` have not, and channels without space.

    Raises
    ------
    ParameterError
        If there is no such axis, or no other one.
    """
    if channel_axis is None or (len(dims) > 1 and -len(dims) <= channel_axis < len(dims)):
        return
    size = ", ".join(map(str, dims))
    raise ParameterError(
        f"channel_axis: expected an axis of one image beside one of space, got {channel_axis} for images of "
        f"shape ({size}{',' * (len(dims) == 1)})"
    )


def check_spacing(spacing: Sequence[float] | None, axes: tuple[int, ...]) -> None:
    """Refuse distances of pixels that are not one for each axis of space.

    Raises
    ------
    ParameterError
        If there are more or fewer.
    """
    if spacing is not None and len(spacing) != len(axes):
        raise ParameterError(
            f"spacing: expected one number for each of {len(axes)} axes of space, got {spacing!r}"
        )


def alike(masks: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Indices of the samples that have the same mask, one array for each mask."""
    groups: dict[bytes, list[int]] = {}
    for i, mask in enumerate(masks):
        groups.setdefault(mask.tobytes(), []).append(i)
    return [np.array(members) for members in groups.values()]


def check_operator(operator: Any, action: str | float) -> None:
    """Refuse what is no pylops operator, and an operator whose adjoint is not its adjoint.

    Parameters
    ----------
    operator : object
        What should be a pylops operator.
    action : {"error", "warn"} or float
        What to do where it fails its dot test; a number is the largest relative error that is allowed.

    Raises
    ------
    TypeError
        If ``operator`` is no ``pylops.LinearOperator``.
    ValueError
        If it fails its dot test.
    """
    check_is_operator(operator)
    try:
        dot_test(operator, tol=None if isinstance(action, str) else action)
    except ValueError as error:
        if action != "warn":
            raise
        warnings.warn(str(error), UserWarning, stacklevel=5)


def warn_of_doubts(A: LinearMap, data: Tensor, stacklevel: int = 4) -> None:
    """Warn of data that seem to be of another convention than the operator's.

    Warns
    -----
    UserWarning
        With the reason.
    """
    found = A.doubt(data[:FEW].reshape(-1, *A.dimsd))
    if found:
        warnings.warn(f"Y_meas: {found}", UserWarning, stacklevel=stacklevel)


def assigned(
    values: dict[str, Any], operator: pylops.LinearOperator, noise: NoiseModel
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of one image, divided among the operator and the noise.

    Raises
    ------
    ValueError
        If neither has a parameter of the name, or both have.
    """
    known = {"operator": parameter_names(operator), "noise": tuple(noise.get_params(deep=False))}
    found: dict[str, dict[str, Any]] = {"operator": {}, "noise": {}}
    for name, value in values.items():
        asked, _, plain = name.rpartition("__")
        owners = [owner for owner, names in known.items() if plain in names and asked in ("", owner)]
        if len(owners) != 1:
            told = "; ".join(f"{owner}: {', '.join(names) or 'none'}" for owner, names in known.items())
            both = f", such as noise__{name}" if owners else ""
            raise ValueError(f"{name}: expected a parameter of operator or noise{both} ({told})")
        found[owners[0]][plain] = value
    return found["operator"], found["noise"]


def write_rows(x: Tensor, out: Any, index: np.ndarray[Any, Any], n_images: int) -> None:
    """Write consecutive images into an array, a memory map or a stored set of all of them.

    Raises
    ------
    ValueError
        If it has another shape, or is real where the images are complex.
    """
    shape = (n_images, *x.shape[1:])
    if tuple(getattr(out, "shape", shape)) != shape:
        raise ValueError(f"out: expected shape {shape}, got {tuple(out.shape)}")
    kind = _kind(getattr(out, "dtype", np.complex128))
    if kind not in ("c" if x.is_complex() else "fc"):
        needed = "complex images" if x.is_complex() else "images of floating point numbers"
        raise ValueError(f"out: expected room for {needed}, got {out.dtype}")
    rows = slice(int(index[0]), int(index[-1]) + 1)
    out[rows] = x.to(out.device) if isinstance(out, Tensor) else x.cpu().numpy()
    release(out)


def _kind(dtype: Any) -> str:
    """The letter of NumPy for a type of NumPy or of torch."""
    if isinstance(dtype, torch.dtype):
        return "c" if dtype.is_complex else "f" if dtype.is_floating_point else "i"
    return str(np.dtype(dtype).kind)


def operator_digest(operator: pylops.LinearOperator | None) -> str:
    """The content of an operator, to notice that what is known of it belongs to another one."""
    return digest(operator, opaque="identity", quick=True)


def same_kind(x: Tensor, like: Any) -> Any:
    """Torch out where torch came in (on its device), NumPy otherwise."""
    return x.to(like.device) if isinstance(like, Tensor) else x.cpu().numpy()


def information(solution: Solution) -> Bunch:
    """What the solver reports of each image, as NumPy arrays."""
    fields = {name: getattr(solution, name) for name in ("n_steps", "converged", "residual", "objective")}
    return Bunch(**{name: value.cpu().numpy() for name, value in (fields | solution.extra).items()})


def check_noise_known(lam: Any, noise: Any) -> None:
    """Refuse the discrepancy principle without a noise level.

    Raises
    ------
    ParameterError
        If ``lam="discrepancy"`` and the strength of the noise is unknown.
    """
    if isinstance(lam, str) and lam == "discrepancy" and not noise_model(noise).known:
        raise ParameterError(
            f'lam="discrepancy" matches the residual to the noise: expected its standard deviation, got '
            f"noise={noise!r}"
        )


def white_std(noise: Any, method: str, data: Tensor) -> float | None:
    """Standard deviation of white noise, of complex noise in absolute value; None where it is unknown.

    Raises
    ------
    ParameterError
        If the noise has weights.
    """
    model = noise_model(noise)
    if model.counted or not model.uniform:
        raise ParameterError(
            f"noise: {method} treats white noise only: expected one standard deviation, got noise that "
            "differs from one measurement to another"
        )
    std = model.reduced(data[:0]).std
    return None if std is None else math.sqrt(2 if data.is_complex() else 1) * std


def check_not_swapped(A: LinearMap, images: Tensor, data: Tensor) -> None:
    """Refuse images and measurements in scikit-learn's order, where their shapes do not tell.

    Compared are the relative residuals of ``A X_true ~ Y_meas`` and of ``A Y_meas ~ X_true``. Both are large
    where the pairs have nothing to do with the operator, which is nobody's mistake.

    Raises
    ------
    ValueError
        If the exchanged pair explains itself far better than the given one.
    """
    if A.identity or images[0].numel() != data[0].numel() or images.is_complex() != data.is_complex():
        return
    x, y = images[:FEW], data[:FEW]
    given, exchanged = _misfit(A, x, y), _misfit(A, y.reshape(x.shape), x.reshape(y.shape))
    if exchanged < _SWAPPED_BELOW and _SWAPPED_RATIO * exchanged < given:
        raise ValueError(
            "fit expects images first and measurements second, fit(X_true, Y_meas), but the operator makes "
            f"the first array of the second (relative residual {exchanged:.2g}) rather than the other way "
            f"round ({given:.2g}): exchange them, or use as_regressor(), which has scikit-learn's order"
        )


def _misfit(A: LinearMap, x: Tensor, y: Tensor) -> float:
    """``||A x - y|| / ||y||`` of all pairs together."""
    size = float(norm(y).square().sum())
    return float(norm(A(x) - y).square().sum() / size) ** 0.5 if size > 0 else 0.0


def single(batch: Tensor) -> Tensor:
    """The batch in single precision."""
    return batch.to(torch.complex64 if batch.is_complex() else torch.float32)


def double(batch: Tensor) -> Tensor:
    """The batch in double precision."""
    return batch.to(torch.complex128 if batch.is_complex() else torch.float64)


def seed_of(random_state: Any) -> int:
    """A seed; of None one that nobody knows, without a draw from the global generator."""
    known = np.random.RandomState() if random_state is None else check_random_state(random_state)
    return int(known.randint(2**31))

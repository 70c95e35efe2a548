"""From arrays as people have them to batches that torch can work on, or a sentence on what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.masked import is_masked_tensor

# A dense array of numbers with an axis of samples; it may be masked.
Rows: TypeAlias = np.ndarray[Any, Any] | Tensor

# What is computed in single precision; all other numbers, integers among them, in double precision. That is
# also what scikit-image does.
_SINGLE = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "complex32": "complex64",
    "complex64": "complex64",
}
# Numbers that are looked at together: what is written beside the array stays small.
_AT_ONCE = 2**20


def as_rows(array: Any, name: str) -> Rows:
    """The array as it lies in memory, where it is one, otherwise a copy of its numbers.

    Parameters
    ----------
    array : array-like or Tensor of shape (n_samples, ...)
        Anything that NumPy or torch takes for an array of numbers, masked arrays among them.
    name : str
        Name of the argument, for the error.

    Returns
    -------
    ndarray, MaskedArray or Tensor
        At least one sample of at least one value.

    Raises
    ------
    TypeError
        If it is sparse or does not hold numbers.
    ValueError
        If it has no axis of samples, or is empty.
    """
    rows = _dense(array, name) if isinstance(array, Tensor) else _from_numpy(array, name)
    shape = tuple(rows.shape)
    if len(shape) < 2:
        alone = f"; a single sample is {name}[None]" if len(shape) == 1 else ""
        raise ValueError(f"{name}: expected a batch of images, (n_samples, ...), got shape {shape}{alone}")
    if 0 in shape:
        raise ValueError(f"{name}: expected at least one image of at least one value, got shape {shape}")
    return rows


def to_batch(rows: Rows, device: torch.device | None = None) -> Tensor:
    """Rows in the precision that is computed in, in the usual order of memory; masked values are zero.

    Parameters
    ----------
    rows : ndarray, MaskedArray or Tensor
        Rows of :func:`as_rows`.
    device : torch.device, optional
        Where to; by default where they are.

    Returns
    -------
    Tensor
        A batch of float32, float64, complex64 or complex128. It shares memory with ``rows`` where it can.
    """
    if isinstance(rows, Tensor):
        dtype = getattr(torch, _working(str(rows.dtype).removeprefix("torch."), rows.is_complex()))
        # The lazy conjugate and negative of torch, too, would be computed with in another order.
        plain = rows.detach().as_subclass(Tensor)
        return plain.to(device or rows.device, dtype).resolve_conj().resolve_neg().contiguous()
    values = np.ma.filled(rows, 0) if isinstance(rows, np.ma.MaskedArray) else rows
    with np.errstate(over="ignore"):  # of a long double; it is found to be infinite
        # Memory maps of parallel workers are read-only, which torch does not allow: those are copied.
        usual = np.require(values, _working(values.dtype.name, values.dtype.kind == "c"), ["C", "W", "A"])
    # The stride of an axis of length 1 may be anything, which torch does not allow either.
    return torch.from_numpy(usual.reshape(-1)).reshape(usual.shape).to(device or "cpu")


def in_parts(rows: Rows) -> Iterator[Rows]:
    """A few rows at a time."""
    size = max(1, _AT_ONCE * len(rows) // int(np.prod(rows.shape)))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def check_finite(
    rows: Rows, name: str, otherwise: str = "", *, numbers: np.ndarray[Any, Any] | None = None
) -> None:
    """Refuse rows with NaN or inf, except under a mask.

    Parameters
    ----------
    rows : ndarray, MaskedArray or Tensor
        Rows of :func:`as_rows`.
    name : str
        Name of the argument.
    otherwise : str, default=""
        What to do instead, the end of the sentence.
    numbers : ndarray of int, default=None
        Numbers of the rows among all that were given; None is all of them.

    Raises
    ------
    ValueError
        If there are some; it tells in how many samples, and which is the first.
    """
    bad = [~torch.isfinite(to_batch(part)).flatten(1).all(1) for part in in_parts(rows)]
    found = torch.cat(bad).nonzero()[:, 0].tolist()
    if found:
        first = found[0] if numbers is None else int(numbers[found[0]])
        raise ValueError(
            f"{name}: expected finite values, got NaN or inf in {len(found)} of {len(rows)} samples, the "
            f"first in row {first}{otherwise}"
        )


def where_measured(rows: Rows, measured: Tensor | None) -> Rows:
    """The rows with zeros, and no mask, where nothing is measured, whatever stands there.

    Parameters
    ----------
    rows : ndarray, MaskedArray or Tensor
        Rows of :func:`as_rows`.
    measured : Tensor or None
        What is measured of each row, boolean; None where everything is.

    Returns
    -------
    ndarray, MaskedArray or Tensor
        The rows themselves where everything is measured, else a copy.
    """
    if measured is None:
        return rows
    known = measured.reshape(rows.shape[1:])
    if isinstance(rows, Tensor):
        return torch.where(known.to(rows.device), rows, 0)
    # Of a masked array a masked array, which is then masked where something is missing that is measured.
    values = np.where(known.numpy(), np.ma.getdata(rows), rows.dtype.type(0))
    mask = missing(rows)
    return values if mask is None else np.ma.array(values, mask=mask & known.numpy())


def check_complete(rows: Rows, name: str, otherwise: str = "") -> None:
    """Refuse rows of which values are masked.

    Parameters
    ----------
    rows : ndarray, MaskedArray or Tensor
        Rows of :func:`as_rows`.
    name : str
        Name of the argument.
    otherwise : str, default=""
        What to do instead, the end of the sentence.

    Raises
    ------
    ValueError
        If there are some; it tells how many.
    """
    mask = missing(rows)
    if mask is not None:
        raise ValueError(f"{name}: expected all values, got {mask.sum()} masked ones{otherwise}")


def missing(rows: Rows) -> np.ndarray[Any, Any] | None:
    """Which values are masked, boolean and of the shape of the rows; None if there are none."""
    if isinstance(rows, np.ma.MaskedArray) and np.ma.is_masked(rows):
        return np.ma.getmaskarray(rows)
    return None


def masked(rows: Rows, mask: np.ndarray[Any, Any]) -> Rows:
    """The rows with the values under a mask of one row masked in all of them, too."""
    values = to_batch(rows).cpu().numpy() if isinstance(rows, Tensor) else rows
    return np.ma.array(values, mask=np.ma.getmaskarray(values) | mask.reshape(rows.shape[1:]))


def _working(name: str, is_complex: bool) -> str:
    """Name of the type of numbers that is computed with."""
    return _SINGLE.get(name, "complex128" if is_complex else "float64")


def _dense(array: Tensor, name: str) -> Tensor:
    if is_masked_tensor(array):
        raise TypeError(
            f"{name}: expected a dense tensor, got a MaskedTensor: mask as np.ma.MaskedArray does"
        )
    if array.layout is not torch.strided or array.is_nested or array.is_quantized or array.is_meta:
        what = f"of {array.layout} and {array.dtype} on {array.device}"
        raise TypeError(f"{name}: expected a dense tensor of numbers, got one {what}")
    return array


def _from_numpy(array: Any, name: str) -> Rows:
    if scipy.sparse.issparse(array):
        raise TypeError(f"{name}: expected a dense array, got a sparse {type(array).__name__}")
    if hasattr(array, "__dlpack__") and not hasattr(array, "__array__"):
        return torch.from_dlpack(array)
    try:
        values = _masked(array) if _has_masked(array) else np.asarray(array)
    except ValueError as error:
        raise TypeError(f"{name}: expected an array of numbers, got lists of unequal lengths") from error
    except Exception as error:  # whatever the array of another package says
        kind = type(array).__name__
        raise TypeError(f"{name}: expected an array of numbers, got a {kind}, of which: {error}") from error
    if values.dtype == object:
        raise TypeError(f"{name}: expected an array of numbers, got dtype object (images of unequal shape?)")
    if values.dtype.kind not in "buifc":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {values.dtype}")
    return values


def _has_masked(array: Any) -> bool:
    """Whether this is a masked array, or a list that holds one, of which NumPy would forget the mask."""
    if isinstance(array, (list, tuple)):
        return any(isinstance(row, np.ma.MaskedArray) for row in array)
    return isinstance(array, np.ma.MaskedArray)


def _masked(array: Any) -> Any:
    return np.ma.stack(array) if isinstance(array, (list, tuple)) else array


# ---------------------------------------------------------------------- gaps
def nearest_known(
    known: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices of the nearest known values on both sides along the last axis, and how far from the first.

    Beyond the last known value both are that one. In each row at least one value is to be known.

    Parameters
    ----------
    known : ndarray of bool
        Which values are known.

    Returns
    -------
    left, right, share : ndarray
        The value between is ``(1 - share) * values[left] + share * values[right]``.
    """
    n = known.shape[-1]
    place = np.arange(n)
    left = np.maximum.accumulate(np.where(known, place, -1), axis=-1)
    right = np.minimum.accumulate(np.where(known, place, n)[..., ::-1], axis=-1)[..., ::-1]
    left, right = np.where(left < 0, right, left), np.where(right == n, left, right)
    return left, right, (place - left) / np.maximum(right - left, 1)

"""Promises on what goes into an estimator and what comes out: shapes, precision, layout, companions."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import torch
from sklearn.exceptions import ConvergenceWarning

from skinverse._checks._expect import (
    as_array,
    expect,
    expect_close,
    expect_identical,
    expect_refusal,
    relative_difference,
)
from skinverse._checks._promise import promise
from skinverse._checks._subject import Array, Subject
from skinverse.noise import Gaussian

# What rounding does to a reconstruction when it is computed in other company.
_ROUNDING = 1e-6
# Single against double precision, relative to the largest measurement; the objective is less sensitive.
_SINGLE, _SINGLE_OBJECTIVE = 5e-3, 2e-2


class _Rows:
    """A set of rows that is no array: what HDF5, Zarr and others have in common."""

    def __init__(self, rows: Array) -> None:
        self._rows, self.shape, self.dtype = rows, rows.shape, rows.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice) -> Array:
        return self._rows[index]


# What ``return_info`` tells of every image.
_TOLD = ("n_steps", "converged", "residual", "objective")


@promise()
def shapes(subject: Subject) -> None:
    """Reconstructions have the shape of the operator's images, and are finite."""
    found, expected = subject.reconstruction, subject.problem.images.shape
    expect(found.shape == expected, f"images of shape {expected} are reconstructed in shape {found.shape}")
    expect(bool(np.isfinite(found).all()), "the reconstructions are not finite")


@promise()
def flat_arrays(subject: Subject) -> None:
    """Images and measurements may be flat rows."""
    _, images, data = subject.problem
    rows = data.reshape(len(data), -1)
    model = subject.new().fit(images.reshape(len(images), -1), rows)
    expect_close(
        model.predict(rows), subject.reconstruction, _ROUNDING, "flat arrays change the result by {}"
    )


@promise()
def precision(subject: Subject) -> None:
    """Single precision stays single, double stays double, and both give the same images."""
    data = subject.problem.data
    narrow = data.astype(np.complex64 if np.iscomplexobj(data) else np.float32)
    (single, of_single), (double, of_double) = (
        subject.fitted.predict(y, return_info=True) for y in (narrow, data)
    )
    for found, y in ((single, narrow), (double, data)):  # complex data may become real images
        expect(found.real.dtype == y.real.dtype, f"data of {y.dtype} become images of {found.dtype}")
    if getattr(subject.fitted, "weak_convexity_", 0.0) == 0.0:  # else there may be several minima
        change = np.abs(single - double).max() / np.abs(data).max()
        expect(change <= _SINGLE, f"single precision changes the images by {change:.1e} of the data")
    low, high = np.asarray(of_single.objective), np.asarray(of_double.objective)
    close = np.isclose(low, high, rtol=_SINGLE_OBJECTIVE, atol=1e-6, equal_nan=True)
    expect(bool(close.all()), f"single precision changes the objective from {high} to {low}")


@promise()
def torch_arrays(subject: Subject) -> None:
    """Tensors become tensors on the same device, and give what arrays give."""
    images, data = (torch.from_numpy(a) for a in subject.problem[1:])
    found = subject.new().fit(images, data).predict(data)
    expect(isinstance(found, torch.Tensor), f"a tensor becomes a {type(found).__name__}")
    expect(found.device == data.device, f"a tensor on {data.device} becomes one on {found.device}")
    expect_identical(found, subject.reconstruction, "tensors change the result by {}")


@promise()
def layout(subject: Subject) -> None:
    """Memory and byte order, strides, lists, read-only, mapped and lazy arrays change no bit of a result."""
    _, images, data = subject.problem
    for name, lay_out in _LAYOUTS.items():
        found = _attempt(partial(subject.fitted.predict, lay_out(data)), f"{name} measurements")
        expect_identical(found, subject.reconstruction, f"{name} measurements change the result by {{}}")
    with tempfile.TemporaryDirectory() as folder:
        found = subject.fitted.predict(_mapped(data, Path(folder) / "data"))
    expect_identical(found, subject.reconstruction, "mapped measurements change the result by {}")
    model = subject.new()
    _attempt(partial(model.fit, _big_endian(images), _strided(data)), "big-endian images")
    expect_identical(model.predict(data), subject.reconstruction, "layouts in fit change the result by {}")
    score = subject.fitted.score(images, data)
    found = _attempt(partial(subject.fitted.score, images.tolist(), _reversed(data)), "lists in score")
    expect(found == score, f"lists and negative strides change the score from {score} to {found}")


@promise()
def rows_read_later(subject: Subject) -> None:
    """Sets of which rows are read when they are needed give what arrays give, and lists of arrays do."""
    images, data = subject.problem[1:]
    rows = _Rows(data)
    found = _attempt(partial(subject.fitted.predict, rows), "a set of rows")
    expect_identical(found, subject.reconstruction, "a set of rows changes the result by {}")
    found = subject.fitted.predict(list(data))
    expect_identical(found, subject.reconstruction, "a list of arrays changes the result by {}")
    score, expected = subject.fitted.score(_Rows(images), _Rows(data)), subject.fitted.score(images, data)
    expect(score == expected, f"sets of rows change the score from {expected} to {score}")
    model = _attempt(partial(subject.new().fit, _Rows(images), _Rows(data)), "sets of rows in fit")
    expect_close(
        model.predict(data), subject.reconstruction, 1e-3, "sets of rows in fit change the result by {}"
    )


@promise()
def number_types(subject: Subject) -> None:
    """Integers, booleans and long doubles give what the same values give as float64, halves as float32."""
    data = subject.problem.data
    whole = np.round(4 * data.real)
    for name, (given, same) in {
        "integers": (whole.astype(int), whole),
        "unsigned integers": (np.abs(whole).astype(np.uint16), np.abs(whole)),
        "booleans": (whole > 0, (whole > 0).astype(float)),
        "long doubles": (data.astype(np.result_type(data, np.longdouble)), data),
        "half precision": (data.real.astype(np.float16), data.real.astype(np.float16).astype(np.float32)),
        "bfloat16": (torch.from_numpy(whole).bfloat16(), torch.from_numpy(whole).bfloat16().float()),
    }.items():
        found = _attempt(partial(subject.fitted.predict, given), name)
        expected = subject.fitted.predict(same)
        expect_identical(found, expected, f"{name} change the result by {{}}")


@promise()
def masked(subject: Subject) -> None:
    """What is masked is never read: the rest is reconstructed by its rows of the operator, or refused."""
    operator, _, data = subject.problem
    mask = np.zeros(data.shape, dtype=bool)
    mask.reshape(len(data), -1)[1:, ::7] = True  # the first sample is complete
    try:
        found = subject.fitted.predict(np.ma.array(np.where(mask, np.nan, data), mask=mask))
    except Exception:
        refused = partial(subject.fitted.predict, np.ma.array(data, mask=mask))
        expect_refusal(refused, "a masked array", naming="Y_meas", kinds=ValueError)
        return
    lower = subject.fitted.predict(np.ma.array(np.where(mask, 1.0, data), mask=mask))
    expect_identical(found, lower, "what lies under the mask changes the result by {}")
    alone = "masks of others change an image by {}"
    expect_close(found[:1], subject.reconstruction[:1], _ROUNDING, alone)
    kept = np.flatnonzero(~mask[1])
    rest = subject.copy(operator=pylops.Restriction(mask[1].size, kept, dtype=operator.dtype) @ operator)
    expected = rest.predict(data[1:].reshape(len(data) - 1, -1)[:, kept])
    expect_close(found[1:], expected, 1e-5, "a mask and an operator without its rows differ by {}")


@promise(made_by=lambda subject: subject.has("noise") and not subject.counted)
def weight_of_zero(subject: Subject) -> None:
    """What has the weight zero is never read: it is as if it were masked, or weights are refused."""
    data = subject.problem.data
    mask = np.zeros(data.shape[1:], dtype=bool)
    mask.ravel()[::7] = True
    try:
        model = subject.copy(noise=Gaussian(weights=np.where(mask, 0.0, 1.0)))
        found = model.predict(np.where(mask, np.nan, data))
    except ValueError as error:
        expect("noise" in str(error) or "Y_meas" in str(error), f"weights of zero end in: {error}")
        return
    lower = model.predict(np.where(mask, 1.0, data))
    expect_identical(found, lower, "what has the weight zero changes the result by {}")
    masked = subject.copy(noise=None).predict(np.ma.array(data, mask=np.broadcast_to(mask, data.shape)))
    expect_close(found, masked, 1e-5, "weights of zero and masks differ by {}")


@promise()
def info(subject: Subject) -> None:
    """``return_info`` tells one number of every image, and whether its reconstruction converged."""
    data = subject.problem.data
    found, told = subject.fitted.predict(data, return_info=True)
    expect_identical(found, subject.reconstruction, "return_info=True changes the result by {}")
    missing = [name for name in _TOLD if name not in told]
    expect(not missing, f"return_info does not tell {', '.join(missing)}")
    for name, values in told.items():
        shape = np.shape(values)
        expect(shape == (len(data),), f"{name} has the shape {shape}, not ({len(data)},)")
    kind = np.asarray(told["converged"]).dtype
    expect(kind.kind == "b", f"converged is of {kind}, not boolean")


@promise()
def convergence_warning(subject: Subject) -> None:
    """Images that did not converge, and only they, make ``predict`` give a ConvergenceWarning."""
    for params in ({}, subject.those_of(tol=1e-15, max_steps=1)):
        model = subject.copy(**params)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            _, told = model.predict(subject.problem.data, return_info=True)
        warned = any(issubclass(warning.category, ConvergenceWarning) for warning in given)
        n_failed = int((~np.asarray(told["converged"], dtype=bool)).sum())
        said = "a" if warned else "no"
        expect(warned == (n_failed > 0), f"{n_failed} images did not converge, and there is {said} warning")


@promise()
def companions(subject: Subject) -> None:
    """An image's reconstruction does not depend on the images beside it, nor on their order."""
    data = subject.problem.data
    # A loose tolerance: what stops together, stops at the wrong step for some.
    model = subject.copy(**subject.those_of(tol=1e-2, max_steps=40) if subject.has("tol") else {})
    together, told = model.predict(data, return_info=True)
    order = np.random.default_rng(0).permutation(len(data))
    parts: dict[str, list[Any]] = {
        "with the images beside it": [[i] for i in range(len(data))],
        "with the order of the images": [order],
        "with the chunks in which they come": [range(2), range(2, len(data))],
    }
    for otherwise, members in parts.items():
        found = [model.predict(data[list(chosen)], return_info=True) for chosen in members]
        place = np.argsort(np.concatenate([list(chosen) for chosen in members]))
        images = np.concatenate([as_array(x) for x, _ in found])[place]
        n_steps = np.concatenate([np.asarray(told["n_steps"]) for _, told in found])[place]
        expect_close(
            images, together, _ROUNDING, f"the reconstruction of an image changes by {{}} {otherwise}"
        )
        expected = np.asarray(told["n_steps"])
        expect(
            np.array_equal(n_steps, expected),
            f"the numbers of steps change {otherwise}, from {expected} to {n_steps}",
        )


@promise(made_by=lambda subject: not subject.counted)
def channels(subject: Subject) -> None:
    """Images of several channels are denoised, real or complex, and stay what they are."""
    rng = np.random.default_rng(0)
    real, imaginary = rng.normal(size=(2, 2, 3, 6, 6))
    for images in (real, real + 1j * imaginary):
        model = subject.fit(subject.denoising(images), **subject.those_of(channel_axis=0))
        _expect_kept(model.predict(images), images)


@promise(made_by=lambda subject: not subject.counted)
def complex_images(subject: Subject) -> None:
    """Complex images are denoised, stay complex, and keep their precision."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 6, 6)) + 1j * rng.normal(size=(2, 6, 6))
    model = subject.fit(subject.denoising(images))
    for dtype in (np.complex128, np.complex64):
        _expect_kept(model.predict(images.astype(dtype)), images.astype(dtype))


@promise(made_by=lambda subject: subject.has("device") and torch.cuda.is_available())
def cuda(subject: Subject) -> None:
    """Reconstructions on a GPU are those on the processor, and come back to where the data were."""
    data = subject.problem.data
    model = subject.copy(device="cuda")
    found = model.predict(torch.from_numpy(data).cuda())
    expect(bool(found.is_cuda), "a tensor on the GPU becomes one on the processor")
    expected = subject.copy(device="cpu").predict(data)
    expect_close(found, expected, 1e-5, "the GPU changes the result by {}")


# ---------------------------------------------------------------------- the same values in another place
def _big_endian(a: Array) -> Array:
    return a.astype(a.dtype.newbyteorder(">"))


def _strided(a: Array) -> Array:
    """Every second row of a larger array, from the last to the first."""
    wide = np.zeros((2 * len(a), *a.shape[1:]), a.dtype)
    wide[::2] = a[::-1]
    return wide[::2][::-1]


def _reversed(a: Array) -> Array:
    """A view with negative strides along all axes."""
    return np.flip(np.flip(a).copy())


def _unaligned(a: Array) -> Array:
    """The numbers begin at an odd address."""
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    moved = buffer[1:].view(a.dtype).reshape(a.shape)
    moved[:] = a
    return moved


def _packed(a: Array) -> Array:
    """A field of records of an odd length."""
    records = np.zeros(a.shape, [("flag", "u1"), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def _of_tensor(view: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Any]:
    return lambda a: view(torch.from_numpy(a))


def _read_only(a: Array) -> Array:
    a = a.copy()
    a.setflags(write=False)
    return a


def _mapped(a: Array, path: Path) -> Array:
    np.memmap(path, a.dtype, "w+", shape=a.shape)[:] = a
    return np.memmap(path, a.dtype, "r", shape=a.shape)


class _Exchanged:
    """An array of another package, of which no more is known than how to exchange it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


_LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "Fortran-ordered": np.asfortranarray,
    "big-endian": _big_endian,
    "strided": _strided,
    "reversed": _reversed,
    "unaligned": _unaligned,
    "packed": _packed,
    "read-only": _read_only,
    "listed": lambda a: a.tolist(),
    "transposed torch": _of_tensor(lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)),
    "differentiable": _of_tensor(lambda t: t.clone().requires_grad_()),
    "lazily conjugated": _of_tensor(lambda t: t.conj().resolve_conj().conj()),
    "lazily negated": _of_tensor(lambda t: torch._neg_view(-t)),
    "exchanged": lambda a: _Exchanged(torch.from_numpy(a)),
}


def _attempt(call: Callable[[], Any], what: str) -> Any:
    try:
        return call()
    except Exception as error:
        raise AssertionError(f"{what} end in {type(error).__name__}: {error}") from error


def _expect_kept(found: Array, images: Array) -> None:
    expect(
        found.shape == images.shape and found.dtype == images.dtype,
        f"{images.dtype} images of shape {images.shape} become {found.dtype} ones of shape {found.shape}",
    )
    expect(relative_difference(found, images) < np.inf, "the reconstructions are not finite")

"""Numbers and text in one file that is never half written, and whose reading runs nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

__all__ = ["pack", "read", "reason", "storable", "unpack", "write_atomically"]

Tree = Any  # nested dicts, lists and tuples of None, bool, int, float, str, arrays, tensors
Json = Any

# The one entry of the metadata: a second one would make the order of the bytes random.
_ENTRY = "skinverse"
# What a hostile text may cost, checked before it is parsed: bytes, values, nesting. A list of a million lists
# takes 70 MB; a hundred thousand epochs of history need 15 MB and 600 000 values.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 2**25, 1_000_000, 250
# Larger whole numbers can be chosen such that all of them have one hash.
_MAX_KEY = 2**53

# Characters of an error.
_LONGEST = 300

_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]], _STEPS[[ord("]"), ord("}")]] = 1, -1

_FLOATS = ("nan", "inf", "-inf")
_DTYPES = {np.dtype(code) for code in "?bhilqBHILQefdFD"}
_TORCH_DTYPES = {torch.from_numpy(np.empty(0, dtype)).dtype for dtype in _DTYPES} | {torch.bfloat16}


# ---------------------------------------------------------------------- writing files
def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: beside the old one first, which is then replaced.

    Parameters
    ----------
    path : path-like
        The file; its permissions are kept if it exists.
    content : bytes
        What it is to hold.

    Raises
    ------
    OSError
        If that is impossible; the old file is as it was, and no other one is left behind.
    """
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    if target.exists() and not target.is_file():
        target.write_bytes(content)  # a pipe or a device has nothing to lose, and a directory is an error
        return
    beside = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))  # renaming would not mind
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make the renaming outlast a power failure, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------------- trees of values
def pack(tree: Tree) -> bytes:
    """Turn a tree of values into the bytes of one safetensors file.

    Parameters
    ----------
    tree : object
        Nested dicts with names or whole numbers as keys, lists and tuples, of None, bool, int, float, str,
        tensors, NumPy arrays and their scalars. Subclasses of dict, list and tuple become these.

    Returns
    -------
    bytes
        The same for the same tree.

    Raises
    ------
    ValueError
        If there is anything else in it, or more than :func:`unpack` takes.
    """
    tensors: dict[str, Tensor] = {}
    try:
        text = json.dumps(_encode(tree, tensors), allow_nan=False, separators=(",", ":")).encode()
    except RecursionError:
        raise ValueError(f"there are more than {_MAX_DEPTH} levels of nesting, or a part of itself") from None
    _parse(text)  # what could not be read must not be written
    content = save_tensors(tensors, {_ENTRY: f"{_checksum(text, tensors):08x}{text.decode()}"})
    _parse(_header(content))
    return content


def unpack(content: bytes) -> Tree:
    """Turn what :func:`pack` gave into the tree again, on the CPU.

    Parameters
    ----------
    content : bytes
        A whole file.

    Returns
    -------
    object
        The tree, with arrays of its own that can be written to.

    Raises
    ------
    ValueError
        If the bytes are not those that :func:`pack` wrote, or ask for more than is reasonable.
    """
    try:
        entry = _parse(_header(content))["__metadata__"][_ENTRY]
        checksum, text = int(entry[:8], 16), entry[8:].encode()
        tree = _parse(text)
        with torch.device("cpu"):
            tensors = load_tensors(content)
            if _checksum(text, tensors) != checksum:
                raise ValueError("the checksum is that of other contents")
            decoded = _decode(tree, tensors)
    except Exception as error:  # whatever damaged bytes lead to
        raise ValueError(f"the contents are damaged or of another kind: {reason(error)}") from error
    if tensors:
        raise ValueError(f"the contents are damaged: {len(tensors)} arrays belong to nothing")
    return decoded


def read(path: str | os.PathLike[str]) -> Tree:
    """Unpack a file; of a foreign one only the beginning is read.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    object
        The tree.

    Raises
    ------
    ValueError
        If the file is not one that :func:`pack` wrote.
    """
    with open(path, "rb") as file:
        _check_start(file.read(8), os.fstat(file.fileno()).st_size)
        file.seek(0)
        return unpack(file.read())


def storable(value: NDArray[Any] | np.generic | Tensor) -> bool:
    """Whether there is a place for an array or a tensor of this type."""
    if isinstance(value, Tensor):
        dense = value.layout is torch.strided and not value.is_quantized and value.device.type != "meta"
        return dense and value.dtype in _TORCH_DTYPES
    return value.dtype.newbyteorder("=") in _DTYPES and not isinstance(value, np.ma.MaskedArray)


def reason(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, _LONGEST, placeholder="...")


# ---------------------------------------------------------------------- the text
def _check_start(start: bytes, size: int) -> None:
    """A file begins with the length of its header, eight bytes long."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MAX_BYTES, size - 8):
        raise ValueError("the contents are damaged or of another kind")


def _header(content: bytes) -> bytes:
    _check_start(content[:8], len(content))
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _parse(text: bytes) -> Json:
    """Parse JSON once it is known not to be too much."""
    _at_most(_MAX_BYTES, len(text), "bytes of text")
    _at_most(_MAX_VALUES, 1 + sum(text.count(mark) for mark in (b"[", b"{", b",")), "values")
    _at_most(_MAX_DEPTH, _depth(text), "levels of nesting")
    return json.loads(text.decode(), parse_constant=_no_number)


def _at_most(limit: int, number: int, what: str) -> None:
    if number > limit:
        raise ValueError(f"there are {number} {what}, more than the {limit} that are read")


def _depth(text: bytes) -> int:
    """How deep brackets are nested outside of strings."""
    marks = np.frombuffer(text.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    steps = _STEPS[marks]
    inside = np.cumsum(marks == ord('"'), dtype=np.uint8) % 2  # whether the number of quotes is odd
    steps[inside != 0] = 0
    return int(np.cumsum(steps[steps != 0]).max(initial=0))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _checksum(text: bytes, tensors: dict[str, Tensor]) -> int:
    """Of all that matters: safetensors has none, and a wrong bit in a weight would go unnoticed."""
    total = zlib.crc32(text)
    for name in sorted(tensors):
        value = tensors[name]
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


# ---------------------------------------------------------------------- values to JSON and back
def _encode(value: Tree, tensors: dict[str, Tensor]) -> Json:
    """Write a value as JSON, arrays set aside; what JSON lacks becomes an object with one key ``$...``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, dict):
        return _encode_dict(value, tensors)
    if isinstance(value, Tensor):
        return {"$tensor": _set_aside(value, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _set_aside(value, tensors)}
    if isinstance(value, np.generic):
        return {"$scalar": _set_aside(value, tensors)}
    raise ValueError(f"there is no place for a {type(value).__module__}.{type(value).__qualname__} in a file")


def _encode_dict(value: dict[Any, Tree], tensors: dict[str, Tensor]) -> Json:
    for key in value:
        _check_key(key)
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(item, tensors) for key, item in value.items()}
    return {"$dict": [[key, _encode(item, tensors)] for key, item in value.items()]}


def _check_key(key: Any) -> None:
    if type(key) is not str and not (type(key) is int and abs(key) <= _MAX_KEY):
        raise ValueError(f"the keys of a dict in a file are names and whole numbers, got {key!r:.80}")


def _set_aside(value: NDArray[Any] | np.generic | Tensor, tensors: dict[str, Tensor]) -> str:
    """Put a copy among the tensors, under the name given back; complex numbers become pairs."""
    if not storable(value):
        kind = f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"there is no place for a {kind} of {value.dtype} in a file")
    if not isinstance(value, Tensor):
        value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    name = f"{len(tensors)}{'.complex' * plain.is_complex()}"
    tensors[name] = torch.view_as_real(plain) if plain.is_complex() else plain
    return name


def _fetch(name: str, tensors: dict[str, Tensor]) -> Tensor:
    """Take a tensor; each belongs to one value, so that many references cannot multiply it."""
    stored = tensors.pop(name)
    return torch.view_as_complex(stored) if name.endswith(".complex") else stored


def _decode(node: Json, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(node, list):
        return [_decode(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if not any(key.startswith("$") for key in node):
        return {key: _decode(item, tensors) for key, item in node.items()}
    ((tag, content),) = node.items()
    return _DECODERS[tag](content, tensors)


def _decode_float(node: Json, _: dict[str, Tensor]) -> float:
    if node not in _FLOATS:
        raise ValueError(f"expected one of {list(_FLOATS)}, got {node!r:.80}")
    return float(node)


def _decode_dict(node: Json, tensors: dict[str, Tensor]) -> dict[Any, Tree]:
    for key, _ in node:
        _check_key(key)
    return {key: _decode(item, tensors) for key, item in node}


_DECODERS: dict[str, Callable[[Json, dict[str, Tensor]], Tree]] = {
    "$float": _decode_float,
    "$tuple": lambda node, tensors: tuple(_decode(item, tensors) for item in node),
    "$dict": _decode_dict,
    "$tensor": _fetch,
    "$array": lambda node, tensors: _fetch(node, tensors).numpy(),
    "$scalar": lambda node, tensors: _fetch(node, tensors).numpy()[()],
}

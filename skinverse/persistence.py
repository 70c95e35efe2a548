"""One file per estimator: numbers and text, of which objects of the package's own classes are made again.

A file is a tree of plain values (see :mod:`skinverse._files`). What is not plain, such as an operator or
an estimator, is a node ``{"kind": ..., ...}``. The table ``_KINDS`` at the end says for each kind what is
written, and how it is read.
"""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from pylops import LinearOperator
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import skinverse
from skinverse import _files
from skinverse._defaults import seeded
from skinverse._parameters import Parametrized, declared
from skinverse.operators import build, describe, held_bytes

__all__ = ["load", "save"]

FORMAT, FORMAT_VERSION = "skinverse", 2

Node = Any  # what a file can hold
# Parameters that name places and processes of the machine that wrote the file: None after reading, whatever
# is written.
_LOCAL = ("memory", "checkpoint", "accelerator")
# Operators of one file, each made in a quarter of a millisecond, and the memory that they take besides the
# arrays in it: a file of few bytes can ask for long Fourier transforms.
_MAX_OPERATORS, _MAX_OPERATOR_BYTES = 5000, 400_000_000


def save(estimator: Parametrized, path: str | os.PathLike[str]) -> None:
    """Write an estimator, fitted or not, to one file.

    Parameters
    ----------
    estimator : object
        An estimator of skinverse, or of a class of your own that declares its parameters in the same way.
    path : path-like
        The file, by convention ``*.skinverse``. It is written beside an existing one, which is then
        replaced: whatever goes wrong, the old file is whole.

    Raises
    ------
    ValueError
        If a parameter has a value that it cannot have, or something has no place in a file: an operator
        that cannot be described, a callable, a network of your own, an object of another package.
    OSError
        If the file cannot be written.

    Notes
    -----
    The file holds the constructor's parameters, the fitted attributes and the weights of ``module_``.
    Operators are described by the arguments of their constructors. ``memory``, ``Trainer.checkpoint`` and
    ``Trainer.accelerator`` are not stored, since they name places and processes of one machine. The same
    estimator gives the same bytes.

    Examples
    --------
    >>> import tempfile, skinverse
    >>> path = tempfile.mkdtemp() + "/tikhonov.skinverse"
    >>> skinverse.Tikhonov(lam=0.5).save(path)
    >>> skinverse.load(path)
    Tikhonov(lam=0.5)
    """
    if _kind_of(type(estimator)) != "estimator":
        raise ValueError(f"a {_full_name(type(estimator))} is no estimator of skinverse and cannot be saved")
    tree = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "skinverse_version": skinverse.__version__,
        "estimator": _Writer().write(estimator),
    }
    _files.write_atomically(path, _files.pack(tree))


def load(path: str | os.PathLike[str], *, classes: Iterable[type] = ()) -> Any:
    """Read an estimator from the file that its ``save`` wrote.

    Nothing in the file is executed, also if a stranger wrote it: it names classes of skinverse, and what it
    says of their parameters is checked before anything is made of it.

    Parameters
    ----------
    path : path-like
        The file.
    classes : iterable of type, default=()
        Classes of your own that the file may name besides the public ones.

    Returns
    -------
    object
        The estimator, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged, was not written by skinverse, or by another version of its format.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile, skinverse
    >>> with tempfile.NamedTemporaryFile(suffix=".skinverse") as file:
    ...     skinverse.Tikhonov(lam=0.5).fit().save(file.name)
    ...     skinverse.load(file.name)
    Tikhonov(lam=0.5)
    """
    try:
        _refuse_version_1(path)
        tree = _files.read(path)
        _check_format(tree)
        estimator = _Reader(classes).read(tree["estimator"])
        if _kind_of(type(estimator)) != "estimator":
            raise ValueError(f"it holds no estimator, but a {type(estimator).__name__}")
        return estimator
    except OSError:
        raise
    except Exception as error:  # whatever a forged file leads to
        raise ValueError(f"{os.fspath(path)} cannot be loaded: {_files.reason(error)}") from error


def _refuse_version_1(path: str | os.PathLike[str]) -> None:
    """Files of version 1 were zips."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK") and b"config.json" in start:
        _check_format({"format": FORMAT, "format_version": 1, "skinverse_version": "0.1.0 or older"})


def _check_format(tree: Node) -> None:
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError("it is no file of an estimator")
    if tree["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"it is in format {tree['format_version']}, written by skinverse {tree['skinverse_version']}, "
            f"but this skinverse {skinverse.__version__} reads format {FORMAT_VERSION}"
        )


# ---------------------------------------------------------------------- the format
class _Kind(NamedTuple):
    """A kind of value that is not plain: its types, what a node holds of it, and how it is made again."""

    types: tuple[type, ...]
    write: Callable[[_Writer, Any], dict[str, Node]]
    read: Callable[[_Reader, dict[str, Node]], Any]
    shared: bool = False  # whether an object that occurs twice is written once, and is one object again


class _Writer:
    """Turns values into nodes."""

    def __init__(self) -> None:
        self.where = "the estimator"
        self.operators = _Tally()
        self._known: dict[int, tuple[int, Any]] = {}  # with the object, so that its id stays taken

    def write(self, value: Any) -> Node:
        """Write a value; plain ones are their own nodes."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple):
            return type(value)([self.write(item) for item in value])
        if isinstance(value, np.generic) and _files.storable(value):
            return value
        name = _kind_of(type(value))
        if name is None:
            raise self.refusal(f"there is no place for a {_full_name(type(value))}")
        kind = _KINDS[name]
        if id(value) in self._known:
            return {"kind": "same", "id": self._known[id(value)][0]}
        node = {"kind": name, **kind.write(self, value)}
        if kind.shared:
            node["id"] = len(self._known)
            self._known[id(value)] = node["id"], value
        return node

    def fields(self, owner: str, values: dict[str, Any]) -> dict[str, Node]:
        """Write what belongs to an object, so that an error can say where it is."""
        nodes = {}
        for name, value in values.items():
            self.where = f"{owner}.{name}"
            nodes[name] = self.write(value)
        return nodes

    def refusal(self, reason: str) -> ValueError:
        return ValueError(f"{self.where} cannot be saved: {reason}")


class _Reader:
    """Turns nodes into values."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}
        self.operators = _Tally()
        self._known: dict[int, Any] = {}

    def read(self, node: Node) -> Any:
        """Read a node."""
        if isinstance(node, (list, tuple)):
            return type(node)([self.read(item) for item in node])
        if not isinstance(node, dict):
            return node
        name = node["kind"]
        if name == "same":
            if node["id"] not in self._known:
                raise ValueError("it refers to a value that does not come before")
            return self._known[node["id"]]
        if name not in _KINDS:
            raise ValueError(f"it holds a value of unknown kind {name!r:.80}")
        value = _KINDS[name].read(self, node)
        if _KINDS[name].shared:
            self._known[node["id"]] = value
        return value

    def fields(self, nodes: dict[str, Node]) -> dict[str, Any]:
        """Read what belongs to an object."""
        return {name: self.read(node) for name, node in nodes.items()}

    def named(self, name: str) -> type[Parametrized]:
        """A class that the file may name."""
        cls: Any = self._classes.get(name) or _public(name)
        if not isinstance(cls, type) or _kind_of(cls) != "estimator":
            raise ValueError(
                f"it holds a {name!r:.80}, which is no estimator of this skinverse, and not among the given "
                "classes"
            )
        return cls


def _kind_of(cls: type) -> str | None:
    """The kind of objects of a class, by the closest of its bases that the table has."""
    names = {known: name for name, kind in _KINDS.items() for known in kind.types}
    return next((names[base] for base in cls.__mro__ if base in names), None)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _public(name: str) -> Any:
    """What the public list, or that of noise models, has under a name."""
    owner = skinverse.noise if name in skinverse.noise.__all__ else skinverse
    return getattr(owner, name) if name in dir(owner) else None


# ---------------------------------------------------------------------- values
def _write_dict(writer: _Writer, value: dict[Any, Any]) -> dict[str, Node]:
    for key in value:
        if type(key) not in (str, int):
            raise writer.refusal(f"there is no place for the key {key!r:.80} of a dict")
    return {"items": {key: writer.write(item) for key, item in value.items()}}


def _write_dtype(writer: _Writer, value: np.dtype[Any]) -> dict[str, Node]:
    if not _files.storable(np.empty(0, value)):
        raise writer.refusal(f"there is no place for the dtype {value}")
    return {"name": value.str}


def _read_dtype(_: _Reader, node: dict[str, Node]) -> np.dtype[Any]:
    # A dtype can also be a structure, or an array of any size.
    if not re.fullmatch(r"[<>|][biufc]\d\d?", node["name"]):
        raise ValueError(f"{node['name']!r:.80} is no dtype of numbers")
    return np.dtype(node["name"])


def _write_array(writer: _Writer, value: Any) -> dict[str, Node]:
    # A matrix, a record array and the like multiply or compare in ways of their own.
    if type(value) not in (np.ndarray, np.memmap) or not _files.storable(value):
        raise writer.refusal(f"there is no place for a {type(value).__name__} of {value.dtype}")
    return {"value": value}


def _write_tensor(writer: _Writer, value: Tensor) -> dict[str, Node]:
    if not _files.storable(value):
        raise writer.refusal(f"there is no place for a {value.layout} tensor of {value.dtype}")
    return {"value": value}


def _write_masked(writer: _Writer, value: np.ma.MaskedArray) -> dict[str, Node]:
    if not _files.storable(value.data):
        raise writer.refusal(f"there is no place for a masked array of {value.dtype}")
    return {"data": value.data, "mask": np.ma.getmaskarray(value)}


def _read_masked(_: _Reader, node: dict[str, Node]) -> np.ma.MaskedArray:
    data, mask = _of(np.ndarray, node["data"]), _of(np.ndarray, node["mask"])
    if data.shape != mask.shape or mask.dtype != bool:
        raise ValueError("a masked array has another mask than it should")
    return np.ma.MaskedArray(data, mask)


def _write_sparse(writer: _Writer, value: Any) -> dict[str, Node]:
    rows = value.tocsr()
    parts = {name: getattr(rows, name) for name in ("data", "indices", "indptr")}
    return {"array": isinstance(value, scipy.sparse.sparray), "shape": tuple(map(int, rows.shape))} | parts


def _read_sparse(_: _Reader, node: dict[str, Node]) -> Any:
    make = scipy.sparse.csr_array if node["array"] else scipy.sparse.csr_matrix
    parts = tuple(_of(np.ndarray, node[name]) for name in ("data", "indices", "indptr"))
    matrix = make(parts, shape=node["shape"])
    matrix.check_format(full_check=True)  # an index out of range would read foreign memory
    return matrix


def _write_random_state(writer: _Writer, value: np.random.RandomState) -> dict[str, Node]:
    if value.get_state(legacy=False)["bit_generator"] != "MT19937":
        raise writer.refusal("there is no place for a random state of another kind than NumPy's own")
    return {"state": value.get_state()}


def _read_random_state(_: _Reader, node: dict[str, Node]) -> np.random.RandomState:
    name, words, position, has_gauss, gauss = node["state"]
    # NumPy itself does not look, and would read beyond the words.
    if name != "MT19937" or _of(np.ndarray, words).shape != (624,) or not 0 <= _of(int, position) <= 624:
        raise ValueError("a random state has another form than it should")
    state = np.random.RandomState()
    state.set_state((name, words, position, has_gauss, gauss))
    return state


def _of(cls: type, value: Any) -> Any:
    """The value, which has to be of a class."""
    if type(value) is not cls:
        raise ValueError(f"expected a {cls.__name__}, got a {type(value).__name__}")
    return value


# ---------------------------------------------------------------------- operators
class _Tally:
    """What the operators of one file come to; those that share a file must not add up to too much."""

    def __init__(self) -> None:
        self._number = self._bytes = 0

    def add(self, name: str, arguments: dict[str, Any]) -> None:
        """Count an operator that is to be built."""
        self._number += 1
        self._bytes += held_bytes(name, arguments)
        if self._number > _MAX_OPERATORS or self._bytes > _MAX_OPERATOR_BYTES:
            raise ValueError(
                f"{self._number} operators that need {self._bytes} bytes are more than the {_MAX_OPERATORS} "
                f"operators and {_MAX_OPERATOR_BYTES} bytes that one file may ask for"
            )


def _write_operator(writer: _Writer, value: LinearOperator) -> dict[str, Node]:
    where = writer.where
    try:
        name, arguments, common = describe(value)
        writer.operators.add(name, arguments)
    except ValueError as error:
        raise writer.refusal(str(error)) from None
    nodes = {
        "name": name,
        "arguments": {key: writer.write(item) for key, item in arguments.items()},
        "common": {key: writer.write(item) for key, item in common.items()},
    }
    writer.where = where
    return nodes


def _read_operator(reader: _Reader, node: dict[str, Node]) -> LinearOperator:
    arguments, common = reader.fields(node["arguments"]), reader.fields(node["common"])
    reader.operators.add(node["name"], arguments)
    return build(node["name"], arguments, common)


# ---------------------------------------------------------------------- estimators
def _write_estimator(writer: _Writer, value: Parametrized) -> dict[str, Node]:
    cls = type(value)
    name = cls.__name__
    if _public(name) not in (None, cls):
        raise writer.refusal(f"{_full_name(cls)} has the name of a class of skinverse")
    value.check_parameters()
    fields = dict(declared(cls) + declared(cls, init=False))
    for key in vars(value):
        if key.endswith("_") and not key.startswith("_") and key not in fields:
            raise writer.refusal(f"the attribute {key} of {name} is not declared")
    stored = {key: vars(value)[key] for key in fields if key in vars(value) and key not in _LOCAL}
    weights = dict(stored.pop("module_").state_dict()) if "module_" in stored else None
    if weights is not None:
        _check_weights(value, weights)
    parameters = {key: item for key, item in stored.items() if fields[key].init}
    fitted = {key: item for key, item in stored.items() if not fields[key].init}
    for key, item in fitted.items():
        _check(cls, fields[key], key, item)
    return {
        "class": name,
        "parameters": writer.fields(name, parameters),
        "fitted": writer.fields(name, fitted),
        "weights": None if weights is None else writer.fields(f"{name}.module_", weights),
    }


def _read_estimator(reader: _Reader, node: dict[str, Node]) -> Any:
    """Make an estimator of checked parameters; its module comes last, being made for what was fitted."""
    cls = reader.named(node["class"])
    estimator: Any = cls(**_read_fields(reader, cls, node["parameters"], init=True))
    estimator.check_parameters()
    for key, value in _read_fields(reader, cls, node["fitted"], init=False).items():
        setattr(estimator, key, value)
    estimator._check_fitted()
    if node["weights"] is not None:
        if "module_" not in dict(declared(cls, init=False)):
            raise ValueError(f"a {cls.__name__} has no module that the weights could belong to")
        weights = {key: _of(Tensor, reader.read(item)) for key, item in node["weights"].items()}
        estimator.module_ = _module(estimator, weights)
    return estimator


def _read_fields(
    reader: _Reader, cls: type[Parametrized], nodes: dict[str, Node], *, init: bool
) -> dict[str, Any]:
    """Read parameters or fitted attributes: those that the class declares, with values that it allows."""
    fields, values = dict(declared(cls, init=init)), {}
    fields.pop("module_", None)  # which has weights instead
    for key, node in nodes.items():
        if key not in fields:
            what = "parameter" if init else "fitted attribute"
            raise ValueError(f"{key!r:.80} is no {what} of {cls.__name__}")
        if key not in _LOCAL:
            values[key] = reader.read(node)
            _check(cls, fields[key], key, values[key])
    return values


def _check(cls: type, field: dataclasses.Field[Any], key: str, value: Any) -> None:
    allowed = field.metadata["allowed"]
    if allowed is not None and not allowed.allows(value):
        raise ValueError(f"{cls.__name__}.{key}: expected {allowed.expected}, got {reprlib.repr(value)}")


def _module(estimator: Any, weights: dict[str, Tensor]) -> nn.Module:
    """The estimator's module with weights from the file."""
    _check_weights(estimator, weights)
    with seeded(0):  # what it draws is replaced
        module: nn.Module = estimator._make_module()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def _check_weights(estimator: Any, weights: dict[str, Tensor]) -> None:
    """Refuse weights that do not belong to the module that the estimator would make.

    It is made without memory: the parameters in a forged file may ask for any number of any size.
    """
    try:
        with _Budget(weights), torch.device("meta"):
            wanted = _shapes(estimator._make_module().state_dict())
    except (RuntimeError, TypeError) as error:  # torch's answer to sizes beyond all numbers
        raise ValueError(f"the module that its parameters ask for cannot be made: {error}") from error
    given = _shapes(weights)
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"its weights are those of another module: {name!r:.80} is {given.get(name, 'missing')}, and "
                f"the parameters ask for {wanted.get(name, 'none')}"
            )


def _shapes(weights: dict[str, Tensor]) -> dict[str, str]:
    """Kind and shape of weights; their precision is free."""
    kinds = {True: "floats", False: "whole numbers"}
    return {
        name: f"{kinds[value.is_floating_point()]} of shape {tuple(value.shape)}"
        for name, value in weights.items()
    }


class _Budget(TorchFunctionMode):
    """Ends what makes far more tensors, or larger ones, than the weights in the file; for one thread only."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._n_calls = min(1000 + 100 * len(weights), 200_000)  # one takes ten microseconds
        self._n_numbers = 1_000_000 + 100 * sum(value.numel() for value in weights.values())

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._n_calls -= 1
        self._n_numbers -= result.numel() if isinstance(result, Tensor) else 0
        if self._n_calls < 0 or self._n_numbers < 0:
            raise ValueError("its parameters ask for a module that is larger than the weights that it holds")
        return result


# ---------------------------------------------------------------------- the table
_KINDS: dict[str, _Kind] = {
    "complex": _Kind(
        (complex,),
        lambda _, value: {"real": value.real, "imag": value.imag},
        lambda _, node: complex(_of(float, node["real"]), _of(float, node["imag"])),
    ),
    "dict": _Kind((dict,), _write_dict, lambda reader, node: reader.fields(node["items"])),
    "dtype": _Kind((np.dtype,), _write_dtype, _read_dtype),
    "array": _Kind((np.ndarray,), _write_array, lambda _, node: _of(np.ndarray, node["value"]), shared=True),
    "masked array": _Kind((np.ma.MaskedArray,), _write_masked, _read_masked, shared=True),
    "tensor": _Kind((Tensor,), _write_tensor, lambda _, node: _of(Tensor, node["value"]), shared=True),
    "sparse matrix": _Kind(
        (scipy.sparse.sparray, scipy.sparse.spmatrix), _write_sparse, _read_sparse, shared=True
    ),
    "random state": _Kind((np.random.RandomState,), _write_random_state, _read_random_state),
    "operator": _Kind((LinearOperator,), _write_operator, _read_operator, shared=True),
    "estimator": _Kind((Parametrized,), _write_estimator, _read_estimator),
    "frozen estimator": _Kind(
        (FrozenEstimator,),
        lambda writer, value: {"estimator": writer.write(value.estimator)},
        lambda reader, node: FrozenEstimator(reader.read(node["estimator"])),
    ),
}

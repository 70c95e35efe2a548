"""One file per estimator: JSON and safetensors in a zip. Reading it runs nothing that is in it."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from functools import singledispatchmethod
from pathlib import Path, PurePath
from typing import Any, ClassVar

import joblib
import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from pylops import LinearOperator
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from sklearn.base import BaseEstimator
from torch import Tensor, nn

import skinverse
from skinverse._recipes import build, recipe

__all__ = ["load", "save"]

FORMAT_VERSION = 1
_CONFIG, _ARRAYS = "config.json", "arrays.safetensors"
_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")

Node = Any  # what JSON can hold


def save(estimator: BaseEstimator, path: str | os.PathLike[str]) -> None:
    """Write an estimator, fitted or not, to one file.

    Parameters
    ----------
    estimator : object
        A public estimator of skinverse.
    path : path-like
        The file, by convention ``*.skinverse``; overwritten if it exists.

    Raises
    ------
    ValueError
        If the estimator is not public, or something in it has no place in the file: an operator without a
        recipe, a callable, an object of another package.

    Notes
    -----
    Stored are the constructor's parameters, the fitted attributes and the weights of ``module_``. The
    operator is stored as a recipe, large matrices of skinverse's own operators are rebuilt on loading. A
    cache (``memory``) is stored as its path. The same estimator gives the same bytes.

    Examples
    --------
    >>> import tempfile, skinverse
    >>> path = tempfile.mkdtemp() + "/tikhonov.skinverse"
    >>> skinverse.Tikhonov(lam=0.5).save(path)
    >>> skinverse.load(path)
    Tikhonov(lam=0.5)
    """
    writer = _Writer()
    config = {
        "format": "skinverse",
        "format_version": FORMAT_VERSION,
        "skinverse_version": skinverse.__version__,
        "estimator": writer.encode(estimator),
    }
    Path(path).write_bytes(_pack(config, writer.arrays))


def load(path: str | os.PathLike[str]) -> Any:
    """Read an estimator from the file that its ``save`` wrote.

    Nothing in the file is executed: it can only name public estimators of skinverse and operators that
    have a recipe.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    object
        The estimator, on the CPU.

    Raises
    ------
    ValueError
        If the file is damaged, was not written by skinverse or by a newer format.

    Examples
    --------
    >>> import tempfile, skinverse
    >>> with tempfile.NamedTemporaryFile(suffix=".skinverse") as file:
    ...     skinverse.Tikhonov(lam=0.5).fit().save(file.name)
    ...     skinverse.load(file.name)
    Tikhonov(lam=0.5)
    """
    content = Path(path).read_bytes()
    try:
        config, arrays = _unpack(content)
        return _Reader(arrays).decode(config["estimator"])
    except Exception as error:  # whatever a damaged file leads to
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{os.fspath(path)} cannot be loaded: {' '.join(reason.split())}") from error


def _estimator_classes() -> dict[str, type[BaseEstimator]]:
    """All that a file may name."""
    public = {name: getattr(skinverse, name) for name in dir(skinverse)}
    return {k: v for k, v in public.items() if isinstance(v, type) and issubclass(v, BaseEstimator)}


# ---------------------------------------------------------------------- the zip
def _pack(config: dict[str, Node], arrays: dict[str, NDArray[Any]]) -> bytes:
    """Store, without compression or dates: equal contents give equal bytes, and no zip bomb is valid."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        text = json.dumps(config, indent=1, allow_nan=False)
        file.writestr(zipfile.ZipInfo(_CONFIG), text)
        file.writestr(zipfile.ZipInfo(_ARRAYS), save_arrays(arrays))
    return buffer.getvalue()


def _unpack(content: bytes) -> tuple[dict[str, Node], dict[str, NDArray[Any]]]:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is damaged or no skinverse file")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {info.filename: info for info in file.infolist()}
        if set(members) != {_CONFIG, _ARRAYS} or any(info.compress_type for info in members.values()):
            raise ValueError(f"expected {_CONFIG} and {_ARRAYS} in it, uncompressed, got {sorted(members)}")
        config = json.loads(file.read(_CONFIG))
        _check_format(config)
        return config, load_arrays(file.read(_ARRAYS))


def _check_format(config: Node) -> None:
    if not isinstance(config, dict) or config.get("format") != "skinverse":
        raise ValueError("it is no skinverse file")
    if config["format_version"] != FORMAT_VERSION:
        writer = f"skinverse {config['skinverse_version']}"
        raise ValueError(
            f"it is in format {config['format_version']}, written by {writer}, "
            f"but this skinverse {skinverse.__version__} reads format {FORMAT_VERSION}"
        )


# ---------------------------------------------------------------------- values to JSON
class _Writer:
    """Turns values into JSON nodes, and puts arrays aside. What is not registered has no place."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self._where = "the estimator"
        self._seen: dict[int, tuple[Any, Node]] = {}  # with the object itself, so that its id stays taken

    @singledispatchmethod
    def encode(self, value: Any) -> Node:
        """Turn a value into a node."""
        raise self._refusal(f"there is no place for a {type(value).__module__}.{type(value).__qualname__}")

    @encode.register
    def _(self, value: None | bool | int | str) -> Node:
        return value

    @encode.register
    def _(self, value: float) -> Node:
        return value if np.isfinite(value) else {"type": "float", "value": repr(value)}

    @encode.register
    def _(self, value: complex) -> Node:
        return {"type": "complex", "value": [self.encode(value.real), self.encode(value.imag)]}

    @encode.register
    def _(self, value: np.generic) -> Node:
        return {"type": "scalar", "dtype": value.dtype.str, "value": self.encode(value.item())}

    @encode.register
    def _(self, value: list) -> Node:
        return [self.encode(item) for item in value]

    @encode.register
    def _(self, value: tuple) -> Node:
        return {"type": "tuple", "value": [self.encode(item) for item in value]}

    @encode.register
    def _(self, value: dict) -> Node:
        return {"type": "dict", "value": [[self.encode(k), self.encode(v)] for k, v in value.items()]}

    @encode.register
    def _(self, value: np.dtype) -> Node:
        return {"type": "dtype", "value": value.str}

    @encode.register
    def _(self, value: torch.dtype) -> Node:
        return {"type": "torch_dtype", "value": str(value).removeprefix("torch.")}

    @encode.register
    def _(self, value: torch.device) -> Node:
        return {"type": "device", "value": str(value)}

    @encode.register
    def _(self, value: PurePath) -> Node:
        return str(value)

    @encode.register
    def _(self, value: joblib.Memory) -> Node:
        return self.encode(value.location)

    @encode.register
    def _(self, value: np.random.Generator) -> Node:
        return {"type": "generator", "value": self.encode(value.bit_generator.state)}

    @encode.register
    def _(self, value: np.random.RandomState) -> Node:
        return {"type": "random_state", "value": self.encode(value.get_state(legacy=False))}

    @encode.register
    def _(self, value: np.ndarray) -> Node:
        return self._once(value, lambda: self._array(value))

    @encode.register
    def _(self, value: Tensor) -> Node:
        array = value.detach().cpu().resolve_conj().resolve_neg()
        return self._once(value, lambda: {"type": "tensor", "value": self._array(array.numpy())})

    @encode.register
    def _(self, value: scipy.sparse.sparray | scipy.sparse.spmatrix) -> Node:
        csr = value.tocsr()
        parts = {name: self.encode(getattr(csr, name)) for name in ("data", "indices", "indptr")}
        new = isinstance(value, scipy.sparse.sparray)
        return {"type": "sparse", "new": new, "shape": list(csr.shape)} | parts

    @encode.register
    def _(self, value: LinearOperator) -> Node:
        return self._once(value, lambda: self._operator(value))

    @encode.register
    def _(self, value: nn.Module) -> Node:
        if not self._where.endswith(".module_"):
            raise self._refusal("of modules only module_ is stored, as its weights")
        return {"type": "module", "value": {name: self.encode(x) for name, x in value.state_dict().items()}}

    @encode.register
    def _(self, value: BaseEstimator) -> Node:
        name = type(value).__name__
        if _estimator_classes().get(name) is not type(value):
            raise self._refusal(f"{name} is no public estimator of skinverse")
        params = self._fields(name, value.get_params(deep=False))
        fitted = {key: item for key, item in vars(value).items() if _is_fitted(key, type(value))}
        return {"type": "estimator", "class": name, "params": params, "fitted": self._fields(name, fitted)}

    def _fields(self, owner: str, values: dict[str, Any]) -> dict[str, Node]:
        nodes = {}
        for name, value in values.items():
            self._where = f"{owner}.{name}"
            nodes[name] = self.encode(value)
        return nodes

    def _operator(self, operator: LinearOperator) -> Node:
        name, arguments, common = recipe(operator)
        parts = {"arguments": arguments, "common": common}
        nodes = {part: {k: self.encode(v) for k, v in values.items()} for part, values in parts.items()}
        return {"type": "operator", "name": name} | nodes

    def _array(self, array: NDArray[Any]) -> Node:
        """Put an array aside; safetensors has no double-precision complex numbers, so these become pairs."""
        is_complex = array.dtype.kind == "c"
        if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if is_complex else 8):
            raise self._refusal(f"there is no place for an array of {array.dtype}")
        plain = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C")
        key = str(len(self.arrays))
        self.arrays[key] = plain[..., None].view(plain.real.dtype) if is_complex else plain
        return {"type": "array", "complex": is_complex, "key": key}

    def _once(self, value: Any, encode: Callable[[], Node]) -> Node:
        """Encode what may be shared, and refer to it from then on."""
        if id(value) in self._seen:
            return {"type": "same", "id": self._seen[id(value)][1]["id"]}
        node = encode()
        node["id"] = len(self._seen)
        self._seen[id(value)] = (value, node)
        return node

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"{self._where} cannot be saved: {reason}")


def _is_fitted(name: str, kind: type) -> bool:
    """Public fitted attributes, and what the class names besides."""
    return (name.endswith("_") and not name.startswith("_")) or name in getattr(kind, "_saved", ())


# ---------------------------------------------------------------------- JSON to values
class _Reader:
    """Turns nodes back into values: one method for each type a node may name."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        self._seen: dict[int, Any] = {}

    def decode(self, node: Node) -> Any:
        """Turn a node into its value."""
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        method = self._methods.get(node["type"])
        if method is None:
            raise ValueError(f"it holds a value of unknown type {node['type']!r}")
        value = method(self, node)
        if "id" in node:
            self._seen.setdefault(node["id"], value)
        return value

    def _torch_dtype(self, node: Node) -> torch.dtype:
        dtype = getattr(torch, node["value"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"expected the name of a torch dtype, got {node['value']!r}")
        return dtype

    def _generator(self, node: Node) -> np.random.Generator:
        state = self.decode(node["value"])
        if state["bit_generator"] not in _GENERATORS:
            raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
        generator = np.random.Generator(getattr(np.random, state["bit_generator"])())
        generator.bit_generator.state = state
        return generator

    def _random_state(self, node: Node) -> np.random.RandomState:
        random_state = np.random.RandomState()
        random_state.set_state(self.decode(node["value"]))
        return random_state

    def _array(self, node: Node) -> NDArray[Any]:
        stored = self._arrays[node["key"]].copy()
        if not node["complex"]:
            return stored
        return stored.view(np.result_type(stored.dtype, np.complex64))[..., 0]

    def _sparse(self, node: Node) -> Any:
        kind = scipy.sparse.csr_array if node["new"] else scipy.sparse.csr_matrix
        parts = tuple(self.decode(node[name]) for name in ("data", "indices", "indptr"))
        matrix = kind(parts, shape=tuple(node["shape"]))
        matrix.check_format(full_check=True)  # an index out of range would read foreign memory
        return matrix

    def _operator(self, node: Node) -> LinearOperator:
        parts = ({k: self.decode(v) for k, v in node[part].items()} for part in ("arguments", "common"))
        return build(node["name"], *parts)

    def _estimator(self, node: Node) -> BaseEstimator:
        """Rebuild an estimator; its module comes last, since making it takes what was fitted."""
        kind = _estimator_classes().get(node["class"])
        if kind is None:
            raise ValueError(f"it holds a {node['class']!r}, which is no public estimator of this skinverse")
        estimator = kind(**{name: self.decode(value) for name, value in node["params"].items()})
        fitted = dict(node["fitted"])
        module = fitted.pop("module_", None)
        for name, value in fitted.items():
            if not _is_fitted(name, kind):
                raise ValueError(f"{name!r} is no fitted attribute of {node['class']}")
            setattr(estimator, name, self.decode(value))
        if module is not None:
            self._load_module(estimator, module)
        return estimator

    def _load_module(self, estimator: Any, node: Node) -> None:
        with torch.random.fork_rng(devices=[]):  # the weights it draws are replaced
            estimator.module_ = estimator._make_module()
        weights = {name: self.decode(value) for name, value in node["value"].items()}
        estimator.module_.load_state_dict(weights, assign=True)
        estimator.module_.eval()

    _methods: ClassVar[dict[str, Callable[[_Reader, Node], Any]]] = {
        "same": lambda self, node: self._seen[node["id"]],
        "float": lambda self, node: float(node["value"]),
        "complex": lambda self, node: complex(*self.decode(node["value"])),
        "scalar": lambda self, node: np.dtype(node["dtype"]).type(self.decode(node["value"])),
        "tuple": lambda self, node: tuple(self.decode(node["value"])),
        "dict": lambda self, node: dict(self.decode(node["value"])),
        "dtype": lambda self, node: np.dtype(str(node["value"])),
        "torch_dtype": _torch_dtype,
        "device": lambda self, node: torch.device(node["value"]),
        "generator": _generator,
        "random_state": _random_state,
        "array": _array,
        "tensor": lambda self, node: torch.from_numpy(self._array(node["value"])),
        "sparse": _sparse,
        "operator": _operator,
        "estimator": _estimator,
    }

"""The content of Python values as a short text, the same in every process of one Python version.

The bytes of pickle and of ``joblib.hash`` do not serve here. They depend on which parts are shared; they hold
the names of functions and classes, not their code (a cell of a notebook that is edited and run again defines
another class of the same name); and pylops operators count their own uses. The content of all other
objects is what pickle would store.
"""

from __future__ import annotations

import builtins
import copyreg
import dis
import functools
import logging
import platform
import struct
import sys
import sysconfig
import types
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import pylops
import scipy.sparse
import scipy.special
import torch
from torch import Tensor, nn

__all__ = ["Unhashable", "digest"]

# What a value consists of: the parts, each with its name in the path that an error tells ("" for none).
Parts = Iterator[tuple[str, Any]]

_SIZE = 20  # bytes: two of 2**60 values agree by chance with a probability of 1e-12
_BUFFERED = 2**16  # values of a transposed array that are copied at a time


class Unhashable(TypeError):
    """A value has a part without content, such as a lock or an open file; the message says where."""


def digest(*values: Any, opaque: Literal["refuse", "identity"] = "refuse", quick: bool = False) -> str:
    """Digest of the content of any Python values, functions and classes included.

    Parameters
    ----------
    *values : object
        The values. Equal content gives equal digests, however arrays lie in memory and whichever parts
        are shared. Types count (``1`` is not ``1.0``), and so does the order of lists and of ordered
        dictionaries.
    opaque : {"refuse", "identity"}, default="refuse"
        Treatment of parts without content, such as locks, open files and handles of C libraries.
        ``"identity"`` takes the identity of the object, which means something in this process only.
    quick : bool, default=False
        Whether the values of an array are summed up in a checksum of 32 bits: that is enough to notice a
        change, and takes half the time.

    Returns
    -------
    str
        Hexadecimal digits.

    Raises
    ------
    Unhashable
        If a part has no content and ``opaque="refuse"``.

    Notes
    -----
    A function consists of its bytecode, constants, defaults, closure and the globals that it reads; a global
    that it also writes is a state of the program and no part of the function. Functions and classes of an
    installed package count by their name and the version of the package, all others by their code.

    Examples
    --------
    >>> import numpy as np
    >>> from skinverse._hashing import digest
    >>> digest(np.eye(2)) == digest(np.eye(2).T) != digest(np.eye(2, dtype="float32"))
    True
    """
    named = [("", value) for value in values] if len(values) == 1 else _numbered(values)
    return _Walk(identity=opaque == "identity", quick=quick).digest_of(iter(named)).hex()


# ---------------------------------------------------------------- the walk
class _Step:
    """A value on the way, its parts, and the name of the one at hand."""

    def __init__(self, value: Any, parts: Parts, outside: int) -> None:
        self.value, self.parts, self.name = value, parts, ""
        self.outside = outside  # the earliest value to which what came before leads back
        self.content = blake2b(digest_size=_SIZE)


class _Walk:
    """One way through a value and its parts, which may lead back to where it was.

    A finished value is remembered: what is shared is read once and counts as if it were not shared. A value
    that is met inside itself counts as the number of steps back to it. The values on such a loop are finished
    together, when the first of them is; they are a strongly connected component (Tarjan, SIAM Journal on
    Computing 1(2), 1972). There is no recursion, for a product of many operators is a deep tree.
    """

    def __init__(self, *, identity: bool, quick: bool) -> None:
        self._identity, self._quick = identity, quick
        self._way: list[_Step] = []
        # Both hold the value as well, so that its id is not given to another one.
        self._finished: dict[int, tuple[Any, bytes]] = {}
        self._on_loop: dict[int, tuple[Any, bytes]] = {}
        self._numbers: dict[int, int] = {}  # of the values that are not finished, as they were met
        self._lowest = 0  # number of the earliest value to which the one at hand leads back

    def digest_of(self, parts: Parts) -> bytes:
        """The digest of named parts."""
        self._way.append(_Step(None, parts, 0))
        while True:
            step = self._way[-1]
            part = next(step.parts, None)
            if part is not None:
                step.name, value = part
                encoded = self._at_once(value)
                if encoded is None:
                    encoded = self._enter(value)
                step.content.update(encoded)
                continue
            self._way.pop()
            if not self._way:
                return step.content.digest()
            self._way[-1].content.update(self._leave(step))

    def _at_once(self, value: Any) -> bytes | None:
        """A value without parts, or whose parts were read before, as bytes that tell where they end."""
        kind, key = type(value), id(value)
        if kind in _ATOMS:
            content = _ATOMS[kind](value)
            return b"%s %d %b" % (kind.__name__.encode(), len(content), content)
        if kind is _Buffer:
            return self._bytes_of(value)
        if key in self._finished:
            return self._finished[key][1]
        if key in self._numbers:
            self._lowest = min(self._lowest, self._numbers[key])
            return b"back %d " % (len(self._numbers) - self._numbers[key])
        return None

    def _enter(self, value: Any) -> bytes:
        """Go on with the parts of a value, or take the identity of what has none."""
        try:
            parts = list(_parts(value))
        except Exception as error:  # whatever objects raise that cannot be pickled
            return self._opaque(value, error)
        self._way.append(_Step(value, iter(parts), self._lowest))
        self._lowest = self._numbers[id(value)] = len(self._numbers)
        return b""

    def _leave(self, step: _Step) -> bytes:
        key, encoded = id(step.value), b"#" + step.content.digest()
        if self._lowest < self._numbers[key]:
            self._on_loop[key] = step.value, encoded
        else:
            self._finish(step.value, encoded)
        self._lowest = min(self._lowest, step.outside)
        return encoded

    def _finish(self, value: Any, encoded: bytes) -> None:
        """Finish a value, and all that lie on loops through it."""
        while (key := self._numbers.popitem()[0]) != id(value):
            member, own = self._on_loop.pop(key)
            self._finished[key] = member, b"#" + blake2b(encoded + own, digest_size=_SIZE).digest()
        self._finished[id(value)] = value, encoded

    def _bytes_of(self, buffer: _Buffer) -> bytes:
        if self._quick:  # 2.4 GB/s, where blake2b does 1.1
            checksum = 0
            for piece in buffer.pieces():
                checksum = zlib.crc32(piece, checksum)
            return b"crc32 %d " % checksum
        content = blake2b(digest_size=_SIZE)
        for piece in buffer.pieces():
            content.update(piece)
        return b"#" + content.digest()

    def _opaque(self, value: Any, error: Exception) -> bytes:
        if self._identity:
            return b"identity %d " % id(value)
        name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        article = "an" if name.lstrip("_")[0].lower() in "aeiou" else "a"
        path = ".".join(step.name for step in self._way if step.name)
        where = f"{path}: " if path else ""
        raise Unhashable(f"{where}{article} {name} has no content to compare") from error


class _Buffer:
    """The values of an array as bytes, in the order of its indices."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def pieces(self) -> Iterable[memoryview]:
        """All at once where they lie so in memory, else as copies of a few at a time."""
        if self.array.flags.c_contiguous:
            return [self.array.reshape(-1).view(np.uint8).data]
        flags: Any = ["external_loop", "buffered", "zerosize_ok"]
        pieces = np.nditer(self.array, flags, order="C", buffersize=_BUFFERED)
        return (np.ascontiguousarray(piece).view(np.uint8).data for piece in pieces)


_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"",
    bool: lambda value: b"%d" % value,
    int: lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True),
    float: lambda value: b"nan" if value != value else struct.pack(">d", value),
    complex: lambda value: _ATOMS[float](value.real) + b"+j" + _ATOMS[float](value.imag),
    str: lambda value: value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: value,
}


# ---------------------------------------------------------------- containers and objects
def _parts(value: Any) -> Parts:
    """The parts of any value that is no atom; the first one says of what kind they are."""
    name = _name_in_package(value) if isinstance(value, _NAMED) else None
    if name:
        return iter([("", "of a package"), ("", name)])
    if type(value) in (list, tuple):  # of what derives from containers, pickle knows what else it holds
        return _list(value)
    if type(value) in (dict, types.MappingProxyType):  # whose order is no content, as for ==
        return _dict(value)
    return _describe(value)


def _numbered(values: Iterable[Any]) -> Parts:
    return ((str(index), value) for index, value in enumerate(values))


def _ordered(pairs: Iterable[tuple[Any, Any]]) -> Parts:
    """Keys and values in their order."""
    for key, value in pairs:
        yield "", key
        yield key if isinstance(key, str) else "", value


def _unordered(pairs: Iterable[tuple[Any, Any]]) -> Parts:
    """Keys and values in an order that is the same in every process, unlike that of a set."""
    return _ordered(sorted(pairs, key=lambda pair: _bytes(pair[0])))


def _bytes(value: Any) -> bytes:
    return _Walk(identity=True, quick=True).digest_of(iter([("", value)]))


def _list(value: Iterable[Any]) -> Parts:
    yield "", type(value).__name__
    yield from _numbered(value)


def _dict(value: Any) -> Parts:
    yield "", "dict"
    yield from _unordered(value.items())


@functools.singledispatch
def _describe(value: Any) -> Parts:
    """What pickle would store of an object; raise what pickle would raise."""
    if any(kind.__module__ in ("ctypes", "_ctypes") for kind in type(value).__mro__):
        raise TypeError("addresses mean something in one process only")
    yield "", "object"
    yield from _reduced(value)


def _reduced(value: Any, *, without: tuple[str, ...] = ()) -> Parts:
    """The class and the attributes of an object by pickle's protocol, and the items where it has some."""
    reduce = copyreg.dispatch_table.get(type(value))
    reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(reduced, str):  # the name of a constant, such as Ellipsis
        reduced = (type(value), (reduced,))
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    yield "", make
    yield from (("", argument) for argument in arguments)
    # Attributes in slots come in a second dictionary.
    for attributes in state if isinstance(state, tuple) else (state,):
        if type(attributes) is dict:
            yield from _unordered((name, part) for name, part in attributes.items() if name not in without)
        else:
            yield "", attributes
    yield "", list(items or ())
    yield from _ordered(pairs or ())


@_describe.register
def _(value: set | frozenset) -> Parts:
    yield "", "set"
    yield "", type(value)
    yield from (("", element) for element in sorted(value, key=_bytes))
    yield "", getattr(value, "__dict__", {})


@_describe.register
def _(value: PurePath | torch.dtype | torch.device | torch.layout | torch.memory_format) -> Parts:
    yield "", type(value)
    yield "", str(value)


@_describe.register
def _(value: logging.Logger) -> Parts:
    yield "", "logger"  # who listens to it changes no result
    yield "", value.name


@_describe.register
def _(value: pylops.LinearOperator) -> Parts:
    yield "", "operator"
    # The shape is set when it is first asked for, unless it says what the others do not.
    known = ("_shape",) if {"_dims", "_dimsd"} <= vars(value).keys() else ()
    yield from _reduced(value, without=_COUNTERS + known)


_COUNTERS = ("matvec_count", "rmatvec_count", "matmat_count", "rmatmat_count")


# ---------------------------------------------------------------- arrays and generators
@_describe.register
def _(value: np.ndarray) -> Parts:
    if value.dtype.kind == "V":
        raise TypeError("there is garbage between the fields of structured arrays")
    yield "", "array"
    yield "", (value.dtype.str, value.shape)
    if isinstance(value, np.ma.MaskedArray):
        yield "", np.ma.getmaskarray(value)
    elif type(value) not in (np.ndarray, np.memmap):
        yield "", (type(value), vars(value))
    yield from _values(np.asarray(value))


def _values(array: np.ndarray) -> Parts:
    if array.dtype.kind in "OT":  # addresses of Python objects and strings
        yield "", array.ravel().tolist()
    elif array.dtype.char in "gG":  # padded with garbage: as a sum of two shorter numbers
        short = np.float64 if array.dtype.char == "g" else np.complex128
        yield "", array.astype(short)
        yield "", (array - array.astype(short)).astype(short)
    else:
        yield "", _Buffer(array)


@_describe.register
def _(value: np.generic) -> Parts:
    yield "", "scalar"
    yield "", np.asarray(value)


@_describe.register
def _(value: np.dtype) -> Parts:
    yield "", "dtype"
    yield "", repr(value)


@_describe.register
def _(value: scipy.sparse.sparray | scipy.sparse.spmatrix) -> Parts:
    yield "", "sparse"
    yield "", (type(value), value.shape)  # its other attributes remember whether the indices are sorted
    stored = value.tocsr() if value.format in ("lil", "dok") else value
    names = ("data", "indices", "indptr", "offsets", "coords")
    yield from _ordered((name, getattr(stored, name)) for name in names if hasattr(stored, name))


_SPARSE = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@_describe.register
def _(value: Tensor) -> Parts:
    yield "", "tensor"
    yield "", (str(value.dtype), tuple(value.shape))
    if isinstance(value, nn.Parameter):  # whether it is trained counts
        yield "", ("parameter", value.requires_grad)
    elif type(value) is not Tensor:
        yield "", (type(value), vars(value))
    yield "", list((value._backward_hooks or {}).values())
    plain = value.detach()
    if plain.layout is torch.strided:
        plain = plain.as_subclass(Tensor).resolve_conj().resolve_neg().cpu().contiguous()
        yield "", _Buffer(plain.reshape(-1).view(torch.uint8).numpy())
    else:
        plain = plain.coalesce() if plain.layout is torch.sparse_coo else plain
        yield from _ordered((name, getattr(plain, name)()) for name in _SPARSE[plain.layout])


@_describe.register
def _(value: nn.Module) -> Parts:
    """All that decides what ``forward`` gives, and not the mode, which fitting changes."""
    yield "", "module"
    yield "", type(value)
    # Not its vars(): recurrent layers have weak references there, which their state leaves out.
    attributes = dict(value.__getstate__())
    for kind in ("_parameters", "_buffers", "_modules"):
        yield "", kind
        yield from _ordered(attributes.pop(kind).items())
    # The keys of hooks are counted through the process: only their order is content.
    hooks = {name: attributes.pop(name) for name, part in [*attributes.items()] if _are_hooks(name, part)}
    keys = sorted({key for some in hooks.values() for key in some})
    yield "", {name: {keys.index(k): hook for k, hook in some.items()} for name, some in hooks.items()}
    yield from _unordered((name, part) for name, part in attributes.items() if name != "training")


def _are_hooks(name: str, part: Any) -> bool:
    return (
        name.startswith("_")
        and "hooks" in name
        and isinstance(part, dict)
        and all(type(k) is int for k in part)
    )


@_describe.register
def _(value: torch.Generator) -> Parts:
    yield "", "torch generator"
    yield "", (str(value.device), value.get_state())


@_describe.register
def _(value: np.random.Generator) -> Parts:
    yield "", "generator"
    yield "", value.bit_generator


@_describe.register
def _(value: np.random.RandomState) -> Parts:
    yield "", "random state"
    yield "", value.get_state(legacy=False)


@_describe.register
def _(value: np.random.BitGenerator | np.random.SeedSequence) -> Parts:
    yield "", type(value)
    yield "", value.state


@_describe.register
def _(value: np.ufunc) -> Parts:
    if value not in (getattr(np, value.__name__, None), getattr(scipy.special, value.__name__, None)):
        raise TypeError("a ufunc of other packages does not tell what it computes")
    yield "", "ufunc"
    yield "", value.__name__


# ---------------------------------------------------------------- code
_NAMED: Any = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    type(np.sum),
    type(functools.cache(len)),
)

# What a class holds besides its code and constants.
_UNTOLD = {
    "__abstractmethods__",
    "__annotate__",
    "__annotate_func__",
    "__annotations__",
    "__annotations_cache__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__match_args__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "__slotnames__",  # what pickle remembers of slots
    "__static_attributes__",
    "__type_params__",
    "__weakref__",
    "_abc_impl",
}


@_describe.register
def _(value: type) -> Parts:
    yield "", "class"
    yield "", (value.__qualname__, type(value))
    # All bases, since those of a user may stand behind nn.Module in the list of bases.
    for kind in value.__mro__:
        name = _name_in_package(kind)
        yield "", name
        if name is None:
            yield from _unordered((key, part) for key, part in vars(kind).items() if key not in _UNTOLD)


@_describe.register
def _(value: types.FunctionType) -> Parts:
    yield "", "function"
    yield "", value.__code__
    yield "", (value.__defaults__, value.__kwdefaults__)
    cells = map(_content_of, value.__closure__ or ())
    yield from _ordered(zip(value.__code__.co_freevars, cells, strict=True))
    yield from _unordered(_globals_of(value).items())
    yield "", vars(value)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


@_describe.register
def _(value: types.CodeType) -> Parts:
    """All but its name and the lines it was written in."""
    yield "", "code"
    yield "", (value.co_code, value.co_exceptiontable, value.co_flags, value.co_consts)
    yield "", (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
    yield "", (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function reads of its module and of Python itself, less what it also writes.

    Of the modules of a user's own project, also the attributes that are read, which lead to further code.
    """
    known = ChainMap(function.__globals__, vars(builtins))
    read: dict[str, Any] = {}
    written = set()
    for code in _nested(function.__code__):
        name = ""  # of what the instruction before has read
        for instruction in dis.get_instructions(code):
            kind, argument = instruction.opname, instruction.argval
            if kind in ("LOAD_GLOBAL", "LOAD_NAME"):  # the second in the bodies of classes
                name, read[argument] = argument, known.get(argument, "undefined")
            elif kind == "IMPORT_NAME":
                name, read[argument] = argument, sys.modules.get(argument, "undefined")
            elif kind in ("LOAD_ATTR", "LOAD_METHOD") and name and _is_own_module(read[name]):
                value = getattr(read[name], argument, "undefined")
                name = f"{name}.{argument}"
                read[name] = value
            else:
                name = ""
            if kind in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                written.add(argument)
    return {name: value for name, value in read.items() if name not in written}


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions and classes that are defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


@_describe.register
def _(value: types.ModuleType) -> Parts:
    yield "", "module of code"
    yield "", (value.__name__, _version(value.__name__))
    if _is_own_module(value) and getattr(value, "__file__", None):
        yield "", Path(value.__file__ or "").read_bytes()


@_describe.register
def _(value: types.MethodType) -> Parts:
    yield "", "method"
    yield "", value.__func__
    yield "", value.__self__


@_describe.register
def _(value: types.BuiltinFunctionType) -> Parts:
    yield "", "builtin"
    yield "", (value.__module__, value.__qualname__)
    owner = value.__self__  # of functions there is none, their module, or an address
    if not isinstance(owner, (type, types.ModuleType)) and type(owner).__name__ != "PyCapsule":
        yield "", owner


@_describe.register(types.GetSetDescriptorType)
@_describe.register(types.MemberDescriptorType)
@_describe.register(types.MethodDescriptorType)
@_describe.register(types.WrapperDescriptorType)
@_describe.register(types.ClassMethodDescriptorType)
def _(value: Any) -> Parts:
    yield "", "of a type"
    yield "", value.__qualname__


@_describe.register(staticmethod)
@_describe.register(classmethod)
def _(value: Any) -> Parts:
    yield "", type(value)
    yield "", value.__func__


@_describe.register
def _(value: property) -> Parts:
    yield "", "property"
    yield "", (value.fget, value.fset, value.fdel)


@_describe.register
def _(value: functools.cached_property) -> Parts:
    yield "", "cached property"  # before Python 3.12 it has a lock
    yield "", value.func


@_describe.register(type(functools.cache(len)))
def _(value: Any) -> Parts:
    yield "", "cached function"
    yield "", value.__wrapped__


# ---------------------------------------------------------------- packages
def _name_in_package(value: Any) -> str | None:
    """Name and version by which an installed package knows a function or class; None if none does."""
    module, name = value.__module__, value.__qualname__
    if not (isinstance(module, str) and _is_installed(module)):
        return None
    found: Any = sys.modules.get(module)
    # The name alone proves nothing: code that is run without a module name says that it belongs to builtins.
    for step in name.split("."):
        found = getattr(found, step, None)
    return f"{module}.{name} {_version(module)}" if found is value else None


def _is_own_module(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and not _is_installed(value.__name__)


def _is_installed(module: str) -> bool:
    """Whether a module belongs to Python, to an installed package, or to this one."""
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return True
    # By the path, not by the metadata of packages: a user's project that is installed in place changes, and
    # its version does not.
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is not None:
        parts = Path(file).parts
        return "site-packages" in parts or "dist-packages" in parts or file.startswith(_STANDARD_LIBRARY)
    parent = module.rpartition(".")[0]
    return _is_installed(parent) if parent else module in sys.builtin_module_names


_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def _version(module: str) -> str:
    """Version of the package of a module; that of Python where it has none."""
    version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", None)
    return version if isinstance(version, str) else platform.python_version()

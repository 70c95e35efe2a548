"""Parameters of objects, each declared once: name, type, default, what is allowed, and the text on it.

A class below :class:`Parametrized` lists its hyper-parameters as fields::

    lam: float = parameter(default=0.1, allowed=Real(ge=0), doc="Weight of the penalty.")

and what ``fit`` finds as ``lam_: float = fitted(doc="...")``. The constructor, the sections "Parameters" and
"Attributes" of the docstring, the checks at every public call, and what a file may hold are made of that.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, dataclass_transform

import numpy as np
from sklearn.base import BaseEstimator

__all__ = [
    "Array",
    "Bounds",
    "Constraint",
    "Elements",
    "Flag",
    "Instance",
    "Integer",
    "Null",
    "OneOf",
    "ParameterError",
    "Parametrized",
    "Real",
    "declared",
    "fitted",
    "parameter",
]


# Characters of a value that an error shows.
_LONGEST = 80


class ParameterError(ValueError, TypeError):
    """A parameter has a value, or a type, that it cannot have."""


# ---------------------------------------------------------------------- what is allowed
class Constraint(ABC):
    """What values a parameter may have; ``a | b`` allows what either does."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The type as a docstring writes it, such as ``float >= 0``."""

    @property
    @abstractmethod
    def expected(self) -> str:
        """The same in the words of an error, such as "a number >= 0"."""

    @abstractmethod
    def allows(self, value: Any) -> bool:
        """Whether the value is allowed."""

    def __or__(self, other: Constraint) -> Constraint:
        return _Either(self, other)


@dataclasses.dataclass(frozen=True)
class _Either(Constraint):
    first: Constraint
    second: Constraint

    @property
    def kind(self) -> str:
        return _alternatives(self.first.kind, self.second.kind)

    @property
    def expected(self) -> str:
        return _alternatives(self.first.expected, self.second.expected)

    def allows(self, value: Any) -> bool:
        return self.first.allows(value) or self.second.allows(value)


def _alternatives(first: str, last: str) -> str:
    """``a, b or c``."""
    return f"{first.replace(' or ', ', ')} or {last}"


@dataclasses.dataclass(frozen=True)
class _Number(Constraint):
    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf

    def _range(self) -> str:
        bounds = {">=": self.ge, ">": self.gt, "<=": self.le, "<": self.lt}
        told = [f"{sign} {bound:g}" for sign, bound in bounds.items() if math.isfinite(bound)]
        if len(told) < 2:
            return "".join(f" {one}" for one in told)
        opening, low = ("[", self.ge) if math.isfinite(self.ge) else ("(", self.gt)
        closing, high = ("]", self.le) if math.isfinite(self.le) else (")", self.lt)
        return f" in {opening}{low:g}, {high:g}{closing}"

    def _contains(self, value: Any) -> bool:
        return bool(self.ge <= value <= self.le and (value > self.gt or self.gt == -math.inf)) and bool(
            value < self.lt or self.lt == math.inf
        )


@dataclasses.dataclass(frozen=True)
class Real(_Number):
    """A number within bounds; infinite only where ``infinite`` says so."""

    infinite: bool = False

    @property
    def kind(self) -> str:
        return f"float{self._range()}"

    @property
    def expected(self) -> str:
        return f"a number{self._range()}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
            return False
        return (
            not np.iscomplexobj(value) and (self.infinite or math.isfinite(value)) and self._contains(value)
        )


@dataclasses.dataclass(frozen=True)
class Integer(_Number):
    """A whole number within bounds."""

    odd: bool = False

    @property
    def kind(self) -> str:
        return f"{'odd ' * self.odd}int{self._range()}"

    @property
    def expected(self) -> str:
        return f"{'an odd' if self.odd else 'a whole'} number{self._range()}"

    def allows(self, value: Any) -> bool:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            return False
        return self._contains(value) and not (self.odd and value % 2 == 0)


class OneOf(Constraint):
    """One of several strings."""

    def __init__(self, *options: str) -> None:
        self.options = options

    @property
    def kind(self) -> str:
        names = [f'"{option}"' for option in self.options]
        return names[0] if len(names) == 1 else "{" + ", ".join(names) + "}"

    @property
    def expected(self) -> str:
        names = [f'"{option}"' for option in self.options]
        return names[0] if len(names) == 1 else f"one of {list(self.options)}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.options


class Instance(Constraint):
    """An object of some class, named by what users call it."""

    def __init__(self, *classes: type, name: str | None = None) -> None:
        self.classes = classes
        self._name = name or " or ".join(cls.__name__ for cls in classes)

    @property
    def kind(self) -> str:
        return self._name

    @property
    def expected(self) -> str:
        return f"{'an' if self._name[0] in 'aeiouAEIOU' else 'a'} {self._name}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, self.classes)


class Null(Constraint):
    """None."""

    kind = expected = "None"

    def allows(self, value: Any) -> bool:
        return value is None


class Flag(Constraint):
    """True or False."""

    kind = "bool"
    expected = "True or False"

    def allows(self, value: Any) -> bool:
        return isinstance(value, (bool, np.bool_))


class Bounds(Constraint):
    """An interval, ``(low, high)`` with None for a side without bound."""

    kind = "(low, high)"
    expected = "(low, high) with low < high, None for no bound,"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            return False
        number = Real()
        if not all(end is None or number.allows(end) for end in value):
            return False
        return None in value or value[0] < value[1]


class Array(Constraint):
    """A NumPy array of finite numbers with so many axes, at least one."""

    def __init__(self, ndim: int | None = None) -> None:
        self.ndim = ndim

    @property
    def kind(self) -> str:
        return "ndarray"

    @property
    def expected(self) -> str:
        return "an array of finite numbers" + ("" if self.ndim is None else f" with {self.ndim} axes")

    def allows(self, value: Any) -> bool:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
            return False
        return value.ndim == (self.ndim or max(1, value.ndim)) and bool(np.isfinite(value).all())


class Elements(Constraint):
    """A list or tuple whose items obey a constraint."""

    def __init__(self, item: Constraint, *, name: str) -> None:
        self.item, self._name = item, name

    @property
    def kind(self) -> str:
        return f"list of {self._name}"

    @property
    def expected(self) -> str:
        return f"a list of {self._name}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(self.item.allows(item) for item in value)


# ---------------------------------------------------------------------- declarations
def parameter(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    allowed: Constraint | None = None,
    doc: str = "",
    kind: str | None = None,
    kw_only: bool = True,
) -> Any:
    """Declare a hyper-parameter of a class below :class:`Parametrized`.

    Parameters
    ----------
    default : object
        The value if none is given.
    default_factory : callable
        Makes a value of its own for every object, instead of ``default``.
    allowed : Constraint or None, default=None
        What it may be; None is anything.
    doc : str
        What it means, for the docstring; starts with a noun.
    kind : str or None, default=None
        The type as the docstring writes it; None is that of ``allowed``.
    kw_only : bool, default=True
        Whether it is given by name only.

    Returns
    -------
    object
        The field of a dataclass.
    """
    metadata = {"allowed": allowed, "doc": inspect.cleandoc(doc), "kind": kind}
    return dataclasses.field(
        default=default, default_factory=default_factory, kw_only=kw_only, metadata=metadata
    )


def fitted(
    *, doc: str = "", allowed: Constraint | None = None, kind: str | None = None, init: Literal[False] = False
) -> Any:
    """Declare an attribute that ``fit`` sets; ``allowed`` is what a file may hold in its place."""
    metadata = {"allowed": allowed, "doc": inspect.cleandoc(doc), "kind": kind}
    return dataclasses.field(init=init, metadata=metadata)


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(parameter, fitted))
class Parametrized(BaseEstimator):
    """An object with hyper-parameters that are declared as fields.

    Subclasses become keyword-only dataclasses without ``__eq__`` and ``__repr__`` of their own, as
    scikit-learn's ``get_params``, ``set_params``, ``clone`` and ``repr`` expect them.
    """

    # All that a class and its bases declare, by name: parameters and fitted attributes.
    _declarations: ClassVar[dict[str, dataclasses.Field[Any]]] = {}
    _declared_here: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = {k: v for k, v in vars(cls).items() if isinstance(v, dataclasses.Field)}
        by_hand = "__init__" in vars(cls)
        annotations = dict(cls.__dict__.get("__annotations__", {}))
        cls._declarations, cls._declared_here = {**cls._declarations, **own}, tuple(own)
        # An annotation alone is no parameter: a dataclass would take it for one without default.
        cls.__annotations__ = {name: annotations[name] for name in own}
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.__annotations__ = annotations
        if not by_hand:
            cls.__init__.__signature__ = _signature(cls)  # type: ignore[attr-defined]
        cls.__doc__ = _complete_docstring(cls)

    def check_parameters(self) -> None:
        """Check all parameters, also those of nested objects.

        Raises
        ------
        ParameterError
            If a parameter has a value that it cannot have; a ``ValueError`` and a ``TypeError``.
        """
        for name, field in declared(type(self)):
            value, allowed = getattr(self, name), field.metadata["allowed"]
            if allowed is not None and not allowed.allows(value):
                raise ParameterError(f"{name}: expected {allowed.expected}, got {_short(value)}")
            nested = getattr(value, "check_parameters", None)
            if nested is not None:
                _check_nested(name, nested)
        self._check_combination()

    def _check_combination(self) -> None:
        """Check what one parameter says of another one; by default nothing."""

    def _check_fitted(self) -> None:
        """Check what fitted attributes of a file say of one another; by default nothing."""


def declared(cls: type[Parametrized], *, init: bool = True) -> list[tuple[str, dataclasses.Field[Any]]]:
    """Names and declarations of a class: its parameters, or with ``init=False`` its fitted attributes.

    Positional ones come first, then those of the class itself before those of its bases.
    """
    names = [name for base in cls.__mro__ for name in vars(base).get("_declared_here", ())]
    fields = [(name, cls._declarations[name]) for name in dict.fromkeys(names)]
    chosen = [(name, field) for name, field in fields if field.init is init]
    return sorted(chosen, key=lambda pair: pair[1].kw_only is not False)


def _check_nested(name: str, check: Any) -> None:
    """Check a nested object, whose errors then name it."""
    try:
        check()
    except ParameterError as error:
        raise ParameterError(f"{name}__{error}") from None


def _short(value: Any) -> str:
    """The value for an error: never long, and a kind instead of an address in memory."""
    if isinstance(value, np.ndarray):
        masked = isinstance(value, np.ma.MaskedArray)
        told = f"a{' masked' if masked else 'n'} array of shape {value.shape} of {value.dtype}"
        if masked or not value.size or value.dtype.kind not in "iuf":
            return told
        return f"{told}, from {value.min():.3g} to {value.max():.3g}"
    text = repr(value)
    if text.startswith("<"):
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    made = field.default_factory
    return inspect.Parameter.empty if made is dataclasses.MISSING else made()


def _signature(cls: type[Parametrized]) -> inspect.Signature:
    """The constructor's signature in the order in which parameters are told."""
    kinds = {True: inspect.Parameter.KEYWORD_ONLY, False: inspect.Parameter.POSITIONAL_OR_KEYWORD}
    annotations: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        annotations |= base.__dict__.get("__annotations__", {})
    told = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, field in declared(cls):
        told.append(
            inspect.Parameter(
                name,
                kinds[field.kw_only is not False],
                default=_default(field),
                annotation=annotations.get(name, inspect.Parameter.empty),
            )
        )
    return inspect.Signature(told, return_annotation=None)


# ---------------------------------------------------------------------- docstrings
_SECTION = re.compile(r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
_ORDER = ("Parameters", "Attributes", "Raises", "Warns", "See Also", "Notes", "References", "Examples")


def _complete_docstring(cls: type[Parametrized]) -> str | None:
    """The class's own words with the sections "Parameters" and "Attributes" of all that it declares."""
    doc = cls.__doc__
    if doc is None or doc.startswith(f"{cls.__name__}("):  # what a dataclass writes where there is none
        return None
    head, sections = _sections(inspect.cleandoc(doc))
    entries = {
        "Parameters": [_entry(name, f, _default(f)) for name, f in declared(cls)],
        "Attributes": [_entry(name, f, inspect.Parameter.empty) for name, f in declared(cls, init=False)],
    }
    for section, made in entries.items():
        text = "\n".join(made)
        sections[section] = "\n".join(filter(None, [sections.get(section, ""), text]))
    ordered = sorted(sections, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    told = [f"{name}\n{'-' * len(name)}\n{sections[name]}" for name in ordered if sections[name]]
    indented = "\n\n".join([head, *told]).replace("\n", "\n    ")
    return re.sub(r"[ \t]+$", "", indented, flags=re.MULTILINE) + "\n    "


def _sections(doc: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and the sections by name."""
    found = list(_SECTION.finditer(doc))
    if not found:
        return doc, {}
    ends = [m.start() for m in found[1:]] + [len(doc)]
    bodies = {m["name"]: doc[m.end() : end].strip("\n") for m, end in zip(found, ends, strict=True)}
    return doc[: found[0].start()].rstrip(), bodies


def _entry(name: str, field: dataclasses.Field[Any], default: Any) -> str:
    """One parameter as numpydoc writes it."""
    allowed = field.metadata["allowed"]
    kind = field.metadata["kind"] or (allowed.kind if allowed is not None else "object")
    shown = "" if default is inspect.Parameter.empty else f", default={_default_text(default)}"
    doc = "\n".join(f"    {line}" if line else "" for line in field.metadata["doc"].splitlines())
    return f"{name} : {kind}{shown}\n{doc}"


def _default_text(default: Any) -> str:
    return f'"{default}"' if isinstance(default, str) else repr(default)

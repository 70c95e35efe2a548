"""Declarations of parameters: constructors, docstrings, checks, and what errors say."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpydoc.docscrape import NumpyDocString
from sklearn.base import clone

from skinverse._parameters import (
    Array,
    Bounds,
    Elements,
    Flag,
    Instance,
    Integer,
    Null,
    OneOf,
    ParameterError,
    Parametrized,
    Real,
    declared,
    fitted,
    parameter,
)


class Tool(Parametrized):
    """A tool."""

    size: int = parameter(default=3, allowed=Integer(ge=1), doc="Number of teeth.")


class Base(Parametrized):
    """A machine."""

    operator: object = parameter(default=None, kw_only=False, kind="operator or None", doc="What moves it.")
    tool: Tool = parameter(default_factory=Tool, allowed=Instance(Tool), doc="What it holds.")
    operator_: object = fitted(kind="operator", doc="What has moved it.")


class Machine(Base):
    """A machine that cuts.

    It is good at that.

    Notes
    -----
    Mind the fingers.
    """

    depth: float | str = parameter(
        default=0.1,
        allowed=Real(ge=0) | OneOf("auto") | Null(),
        doc="""
        Depth of the cut:

        - a number, in millimetres;
        - ``"auto"``, what the wood says.""",
    )
    label: str  # an annotation is no parameter
    depth_: float = fitted(allowed=Real(), doc="Depth in use.")

    def _check_combination(self) -> None:
        if self.depth is None and self.operator is None:
            raise ParameterError("depth: expected a number where operator is None, got None")


# ---------------------------------------------------------------------- constructors
def test_own_parameters_come_before_inherited_ones_and_positional_ones_first() -> None:
    assert list(inspect.signature(Machine).parameters) == ["operator", "depth", "tool"]
    assert [name for name, _ in declared(Machine, init=False)] == ["depth_", "operator_"]


def test_scikit_learn_sees_the_parameters() -> None:
    machine = Machine("horse", depth=1.0)
    assert machine.get_params() == {
        "operator": "horse", "depth": 1.0, "tool": machine.tool, "tool__size": 3,
    }  # fmt: skip
    assert repr(machine) == "Machine(depth=1.0, operator='horse')"
    assert repr(Machine()) == "Machine()"
    twin = clone(machine).set_params(tool__size=5)
    assert (twin.tool.size, machine.tool.size) == (5, 3)


def test_every_object_has_defaults_of_its_own() -> None:
    assert Machine().tool is not Machine().tool


@pytest.mark.parametrize("call", [lambda: Machine(1, 2), lambda: Machine(deepth=1)])
def test_unknown_and_positional_arguments_are_type_errors(call) -> None:
    with pytest.raises(TypeError):
        call()


def test_a_constructor_written_by_hand_is_respected() -> None:
    class ByHand(Base):
        """A machine made by hand."""

        def __init__(self, *, colour: str = "red") -> None:
            self.colour = colour

    assert ByHand(colour="blue").get_params() == {"colour": "blue"}


# ---------------------------------------------------------------------- docstrings
def test_the_docstring_tells_all_that_is_declared() -> None:
    doc = NumpyDocString(inspect.getdoc(Machine))
    assert [(p.name, p.type) for p in doc["Parameters"]] == [
        ("operator", "operator or None, default=None"),
        ("depth", 'float >= 0, "auto" or None, default=0.1'),
        ("tool", "Tool, default=Tool()"),
    ]
    assert doc["Parameters"][1].desc[0] == "Depth of the cut:"
    assert doc["Parameters"][1].desc[2] == "- a number, in millimetres;"
    assert [(p.name, p.type) for p in doc["Attributes"]] == [("depth_", "float"), ("operator_", "operator")]
    assert doc["Notes"] == ["Mind the fingers."]
    assert doc["Summary"] == ["A machine that cuts."]


# ---------------------------------------------------------------------- checks
@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"depth": -1}, r'depth: expected a number >= 0, "auto" or None, got -1$'),
        ({"depth": math.nan}, "depth: .*got nan"),
        ({"depth": True}, "depth: .*got True"),
        ({"depth": "deep"}, "depth: .*got 'deep'"),
        ({"depth": np.ones((100, 100))}, r"depth: .*got an array of shape \(100, 100\)"),
        ({"depth": object()}, "depth: .*got a object"),
        ({"depth": "x" * 1000}, r"depth: .*\.\.\.$"),
        ({"tool": None}, "tool: expected a Tool, got None"),
        ({"tool__size": 0}, "tool__size: expected a whole number >= 1, got 0"),
        ({"tool__size": 2.0}, "tool__size: expected a whole number >= 1, got 2.0"),
        ({"depth": None}, "where operator is None"),
    ],
)
def test_what_is_not_allowed_is_said_in_one_sentence(params, says) -> None:
    machine = Machine().set_params(**params)
    with pytest.raises(ParameterError, match=says) as caught:
        machine.check_parameters()
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, TypeError)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("depth", [0, 0.5, np.float32(2), np.int64(3), "auto", 10**30])
def test_what_is_allowed_passes(depth) -> None:
    Machine(depth=depth).check_parameters()


CONSTRAINTS = [
    (Real(), [0, -1.5, np.float64(2)], [math.inf, math.nan, "1", None, 1j, np.ones(1)]),
    (Real(gt=0, infinite=True), [1e-300, math.inf], [0, -1, math.nan]),
    (Real(ge=0, lt=1), [0, 0.999], [1, -1e-9]),
    (Real(gt=0, le=2), [1e-9, 2], [0, 2.1]),
    (Integer(ge=1), [1, np.int32(4)], [0, 1.0, True, "1"]),
    (Integer(ge=1, odd=True), [1, 3], [2, 0]),
    (Integer(ge=1, le=10), [1, 10], [0, 11]),
    (OneOf("a", "b"), ["a", "b"], ["c", "", None, 1]),
    (Flag(), [True, False, np.True_], [0, 1, None, "True"]),
    (Null(), [None], [0, ""]),
    (Instance(str, list), ["", []], [(), 1]),
    (Bounds(), [(0, 1), (None, 1), [0.5, None]], [(1, 0), (0, 0), (0,), 3, ("a", 1), (0, math.inf)]),
    (Elements(Integer(), name="numbers"), [[], [1], (1, 2)], [1, [1.5], "ab"]),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "good", "bad"), CONSTRAINTS, ids=lambda c: type(c).__name__)
def test_constraints(constraint, good, bad) -> None:
    assert all(constraint.allows(value) for value in good)
    assert not any(constraint.allows(value) for value in bad)
    assert constraint.kind and constraint.expected


@given(st.floats(allow_nan=True), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_an_interval_contains_what_lies_between(value: float, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    assert Real(ge=low, le=high).allows(value) == (low <= value <= high)
    assert Real(gt=low, lt=high).allows(value) == (low < value < high)


@pytest.mark.parametrize(
    ("constraint", "kind", "expected"),
    [
        (Real(ge=0, lt=1), "float in [0, 1)", "a number in [0, 1)"),
        (Integer(ge=3, odd=True), "odd int >= 3", "an odd number >= 3"),
        (OneOf("a") | Null(), '"a" or None', '"a" or None'),
        (
            OneOf("a", "b") | Instance(int) | Null(),
            '{"a", "b"}, int or None',
            "one of ['a', 'b'], an int or None",
        ),
    ],
)
def test_constraints_in_words(constraint, kind, expected) -> None:
    assert (constraint.kind, constraint.expected) == (kind, expected)


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (np.ones(3), True),
        (np.ones((3, 1)), False),
        (np.array([np.nan]), False),
        ([1.0], False),
        (np.array("a"), False),
    ],
)
def test_arrays_have_finite_numbers_and_axes(value, allowed) -> None:
    assert Array(ndim=1).allows(value) is allowed

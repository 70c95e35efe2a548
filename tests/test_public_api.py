"""The public door: quick to open, complete, documented."""

from __future__ import annotations

import inspect
import statistics
import subprocess
import sys
import tomllib
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from numpydoc.validate import get_validation_checks, validate

import skinverse
from skinverse.estimators import BaseReconstructor, LearnedReconstructor

ROOT = Path(__file__).parents[1]


def public_objects() -> dict[str, Any]:
    """Every public class and function by its full name, also those of the public submodules."""
    names = [f"skinverse.{name}" for name in skinverse.__all__]
    for room in [name for name in skinverse.__all__ if inspect.ismodule(getattr(skinverse, name))]:
        names += [f"skinverse.{room}.{name}" for name in getattr(skinverse, room).__all__]
    things = {name: attrgetter(name.removeprefix("skinverse."))(skinverse) for name in names}
    return {
        name: thing for name, thing in things.items() if inspect.isclass(thing) or inspect.isfunction(thing)
    }


def public_methods() -> list[str]:
    """What public classes, and the bases of all methods, define themselves."""
    kinds = (FunctionType, classmethod, property)
    classes = {name: thing for name, thing in public_objects().items() if inspect.isclass(thing)}
    classes |= {f"skinverse.estimators.{c.__name__}": c for c in (BaseReconstructor, LearnedReconstructor)}
    return [
        f"{full}.{name}"
        for full, cls in classes.items()
        for name, member in vars(cls).items()
        if not name.startswith("_") and isinstance(member, kinds)
    ]


def complaints(full_name: str) -> list[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["numpydoc_validation"]
    checks = get_validation_checks(set(config["checks"]))
    return [f"{code}: {text}" for code, text in validate(full_name)["errors"] if code in checks]


NO_DOCSTRING = "GL08: The object does not have a docstring"

IMPORT = """
import sys, time
start = time.perf_counter()
import skinverse
print(time.perf_counter() - start, *{"torch", "sklearn", "skorch", "pylops", "numpy"} & sys.modules.keys())
"""


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    runs = [subprocess.check_output([sys.executable, "-c", IMPORT], text=True).split() for _ in range(3)]
    assert statistics.median(float(seconds) for seconds, *_ in runs) <= 0.5
    assert not any(loaded for _, *loaded in runs)


def test_every_public_name_can_be_imported_and_is_listed_by_dir() -> None:
    for name in skinverse.__all__:
        assert isinstance(getattr(skinverse, name), (type, ModuleType)) or callable(getattr(skinverse, name))
    assert set(skinverse.__all__) <= set(dir(skinverse))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Tikhonow"):
        skinverse.Tikhonow  # noqa: B018


@pytest.mark.parametrize("name", public_objects())
def test_docstrings_are_numpydoc(name: str) -> None:
    assert complaints(name) == []


@pytest.mark.parametrize("name", public_methods())
def test_docstrings_of_methods_are_one_line_or_numpydoc(name: str) -> None:
    """A method that overrides another may leave the words to it."""
    doc = inspect.getdoc(attrgetter(name.removeprefix("skinverse."))(skinverse))
    assert doc
    assert "\n" not in doc or complaints(name) in ([], [NO_DOCSTRING])


@pytest.mark.parametrize(
    "name", [n for n, thing in public_objects().items() if not inspect.isabstract(thing)]
)
def test_docstrings_have_runnable_examples(name: str) -> None:
    assert ">>> " in inspect.getdoc(public_objects()[name])

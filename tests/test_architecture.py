"""The house rules, read from the source: which room may import which, and how large things may grow."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import skinverse

PACKAGE = Path(skinverse.__file__).parent

# What each room may import from the package besides itself. Rooms do not know each other; estimators
# introduce them. A room that is not listed may import nothing.
MAY_IMPORT = {
    "operators": {"_batch"},
    "_filters": {"_batch"},
    "functionals": {"_batch", "_filters"},
    "networks": {"_batch", "_filters"},
    "solvers": {"_batch"},
    "training": {"_batch"},
    "datasets": {"operators"},
    "displays": {"metrics"},
    "estimators": {
        "_batch",
        "functionals",
        "metrics",
        "networks",
        "operators",
        "persistence",
        "solvers",
        "training",
    },
    "persistence": {"_recipes", "skinverse"},  # the public list says which classes may be loaded
    "_recipes": {"operators"},
}

# An estimator's file knows no other one, except what they all stand on ...
SHARED_BY_ESTIMATORS = {
    "_base",
    "_calibration",
    "_hashing",
    "_iterations",
    "_learning",
    "_residual",
    "_validation",
}
# ... the adapter's default method, and the two ends of `as_regressor`.
SIBLINGS = {("_regressor", "_analytic"), ("_base", "_regressor")}

# Third parties that one room alone knows.
ONLY_IN = {"skorch": {"training"}, "matplotlib": {"displays"}, "safetensors": {"persistence"}}

MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 400, 40, 10


class Import(NamedTuple):
    """One imported module: by whom, where, and its parts without the package's name."""

    path: Path
    line: int
    importer: tuple[str, ...]
    target: tuple[str, ...]
    ours: bool


Rule = Callable[[Path], Iterator[str]]


# ---------------------------------------------------------------------------------- reading the source
def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def nodes(package: Path) -> Iterator[tuple[Path, ast.AST]]:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


def imports(package: Path) -> Iterator[Import]:
    """Every import, also those inside functions and under ``TYPE_CHECKING``."""
    for path, node in nodes(package):
        importer = path.relative_to(package).with_suffix("").parts
        for name in imported_names(node, (package.name, *importer)):
            ours = name[0] == package.name
            yield Import(path, node.lineno, importer, room_of(name[1:]) if ours else name, ours)


def imported_names(node: ast.AST, importer: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = importer[: len(importer) - node.level] if node.level else ()
        module = (*base, *(node.module or "").split(".")) if node.module else base
        # `from skinverse import operators` names a room, `from skinverse.operators import as_torch` does not.
        yield from ((*module, alias.name) if len(module) == 1 else module for alias in node.names)


def room_of(name: tuple[str, ...]) -> tuple[str, ...]:
    """``from skinverse import Tikhonov`` (or nothing) is a use of the public list."""
    rooms = {path.stem for path in PACKAGE.iterdir()} | MAY_IMPORT.keys()
    return name if name and name[0] in rooms else ("skinverse",)


# ------------------------------------------------------------------------------------------- the rules
def foreign_rooms(package: Path) -> Iterator[str]:
    for i in imports(package):
        room, target = i.importer[0], i.target[0]
        if i.ours and target != room and target not in MAY_IMPORT.get(room, set()):
            yield f"{i.path}:{i.line}: room '{room}' must not import room '{target}'"


def foreign_siblings(package: Path) -> Iterator[str]:
    for i in imports(package):
        if i.ours and i.importer[0] == i.target[0] == "estimators" and len(i.target) > 1:
            file, target = i.importer[-1], i.target[1]
            part = target.startswith(f"{file}_")  # a family too long for one file has parts named after it
            if not (
                file == "__init__" or part or target in SHARED_BY_ESTIMATORS or (file, target) in SIBLINGS
            ):
                yield f"{i.path}:{i.line}: estimators '{file}' must not import its sibling '{target}'"


def back_doors(package: Path) -> Iterator[str]:
    for i in imports(package):
        if i.ours and i.target[0] != i.importer[0] and any(part.startswith("_") for part in i.target[1:]):
            yield f"{i.path}:{i.line}: '{i.importer[0]}' imports the private module {'.'.join(i.target)}"


def strangers(package: Path) -> Iterator[str]:
    for i in imports(package):
        if not i.ours and i.importer[0] not in ONLY_IN.get(i.target[0], {i.importer[0]}):
            yield f"{i.path}:{i.line}: only {ONLY_IN[i.target[0]]} may import {i.target[0]}"


def long_files(package: Path) -> Iterator[str]:
    for path in sources(package):
        n_lines = len(path.read_text().splitlines())
        if n_lines > MAX_FILE:
            yield f"{path}: {n_lines} lines, at most {MAX_FILE}"


def long_functions(package: Path) -> Iterator[str]:
    for path, node in nodes(package):
        if isinstance(node, ast.FunctionDef):
            n_lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            if n_lines > MAX_FUNCTION and node.name != "__init__":  # one line for each hyper-parameter
                yield f"{path}:{node.lineno}: {node.name} has {n_lines} lines, at most {MAX_FUNCTION}"


def docstring_lines(node: ast.FunctionDef) -> int:
    first = node.body[0]
    return first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0


def many_arguments(package: Path) -> Iterator[str]:
    for path, node in nodes(package):
        if isinstance(node, ast.FunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            n_arguments = len([name for name in names if name not in ("self", "cls")])
            if n_arguments > MAX_ARGUMENTS and node.name != "__init__":  # hyper-parameters, all by name
                yield f"{path}:{node.lineno}: {node.name} takes {n_arguments}, at most {MAX_ARGUMENTS}"


def open_constructors(package: Path) -> Iterator[str]:
    for path, node in nodes(package):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and node.args.kwarg is not None:
            yield f"{path}:{node.lineno}: a constructor takes **{node.args.kwarg.arg}"


def type_questions(package: Path) -> Iterator[str]:
    ours = {node.name for _, node in nodes(package) if isinstance(node, ast.ClassDef)}
    for path, node in nodes(package):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)} & ours
            if asked:
                yield f"{path}:{node.lineno}: isinstance asks for our own {', '.join(sorted(asked))}"


RULES: list[Rule] = [
    foreign_rooms,
    foreign_siblings,
    back_doors,
    strangers,
    long_files,
    long_functions,
    many_arguments,
    open_constructors,
    type_questions,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    broken = list(rule(PACKAGE))
    assert not broken, "\n".join(broken)


# ------------------------------------------------------------------------- a rule that never fails is none
BREACHES = [
    (foreign_rooms, "solvers/_cg.py", "from skinverse.functionals import Box", "'solvers' .* 'functionals'"),
    (foreign_rooms, "solvers/_cg.py", "import skinverse.operators", "'solvers' .* 'operators'"),
    (foreign_rooms, "solvers/_cg.py", "from skinverse import operators", "'solvers' .* 'operators'"),
    (foreign_rooms, "solvers/_cg.py", "from ..operators import as_torch", "'solvers' .* 'operators'"),
    (
        foreign_rooms,
        "solvers/_cg.py",
        "def f():\n    from skinverse import Trainer",
        "'solvers' .* 'skinverse'",
    ),
    (foreign_rooms, "functionals/_tv.py", "from skinverse.solvers import x", "'functionals' .* 'solvers'"),
    (foreign_rooms, "training.py", "from skinverse.networks import UNet", "'training' .* 'networks'"),
    (foreign_rooms, "metrics.py", "from skinverse.estimators._base import x", "'metrics' .* 'estimators'"),
    (foreign_rooms, "operators/_ct.py", "from skinverse.datasets import x", "'operators' .* 'datasets'"),
    (foreign_siblings, "estimators/_new.py", "from skinverse.estimators._iterative import x", "'_iterative'"),
    (foreign_siblings, "estimators/_new.py", "from ._iterative import x", "'_new' .* '_iterative'"),
    (back_doors, "estimators/_new.py", "from skinverse.operators._map import LinearMap", "operators._map"),
    (strangers, "estimators/_new.py", "from skorch import NeuralNet", "skorch"),
    (long_files, "metrics.py", "x = 1\n" * (MAX_FILE + 1), f"{MAX_FILE + 1} lines"),
    (long_functions, "metrics.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION, f"f has {MAX_FUNCTION + 1}"),
    (many_arguments, "metrics.py", "def f(a, b, c, d, e, f, g, h, i, j, *, k): ...", "f takes 11"),
    (open_constructors, "metrics.py", "class C:\n    def __init__(self, **kw): ...", r"\*\*kw"),
    (type_questions, "metrics.py", "class C: ...\nisinstance(1, (int, C))", "our own C"),
]


@pytest.mark.parametrize(("rule", "file", "source", "says"), BREACHES)
def test_a_breach_is_found_and_named(rule: Rule, file: str, source: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "skinverse" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    broken = list(rule(tmp_path / "skinverse"))
    assert len(broken) == 1
    assert file in broken[0]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(broken[0])


ALLOWED = [
    ("solvers/_cg.py", "from skinverse._batch import dot\nfrom skinverse.solvers._solution import Solution"),
    (
        "estimators/_new.py",
        "from skinverse.operators import x\nfrom skinverse.estimators._base import x",
    ),
    ("estimators/_new.py", "from skinverse.estimators._new_losses import x"),
    ("training.py", "import skorch"),
    ("metrics.py", 'def f():\n    """Doc.\n' + "\n" * MAX_FUNCTION + '    """\n    return 1'),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_is_allowed_passes(file: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / "skinverse" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert [broken for rule in RULES for broken in rule(tmp_path / "skinverse")] == []


# ----------------------------------------------------------------------------------------- the estimators
def estimator_classes() -> Iterator[type]:
    """Every public class below the base class, wherever in ``estimators`` it is defined."""
    from skinverse import estimators
    from skinverse.estimators._base import BaseReconstructor

    for module in pkgutil.iter_modules(estimators.__path__):
        importlib.import_module(f"skinverse.estimators.{module.name}")
    waiting = [BaseReconstructor]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.__module__.startswith("skinverse.") and not cls.__name__.startswith("_"):
            yield cls


def test_every_estimator_is_in_the_public_list() -> None:
    concrete = {cls.__name__ for cls in estimator_classes() if not inspect.isabstract(cls)}
    assert concrete
    assert concrete <= set(skinverse.__all__)


def test_classes_are_abstract_or_final() -> None:
    for cls in estimator_classes():
        parents = [base for base in cls.__bases__ if base.__module__.startswith("skinverse.")]
        assert all(inspect.isabstract(parent) for parent in parents), f"{cls} refines a finished method"

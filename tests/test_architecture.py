"""The house rules, read from the source: which room may import which, and that nothing goes in a circle."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import skinverse

PACKAGE = Path(skinverse.__file__).parent

# Modules beside the rooms, that everybody may use; among themselves each uses the ones before it only.
ROOT = [
    "_arrays",
    "_rows",
    "_measurements",
    "_tensors",
    "_filters",
    "_differences",
    "_cosines",
    "_defaults",
    "_hashing",
    "_batches",
    "_files",
    "_parameters",
    "_optional",
]

# What else each room may import from the package besides itself. Rooms do not know each other; estimators
# introduce them. A room that is not listed may import ROOT only.
MAY_IMPORT = {
    "operators": set(),
    "functionals": set(),
    "noise": {"functionals"},
    "energies": set(),
    "networks": set(),
    "solvers": set(),
    "training": set(),
    "preprocessing": set(),
    "datasets": {"noise", "operators"},
    "displays": {"metrics"},
    "persistence": {"operators", "skinverse"},  # the public list says which classes may be loaded
    "estimators": {
        "energies",
        "functionals",
        "metrics",
        "networks",
        "noise",
        "operators",
        "persistence",
        "skinverse",  # the version is part of the key of a cached training
        "solvers",
        "training",
    },
    "_checks": {"metrics", "noise", "operators", "persistence"},
    "testing": {"_checks"},
}

# A family of estimators knows itself, these files, and the rooms.
BASE_FILES = {
    "_base",
    "_declarations",
    "_learned",
    "_problems",
    "_reader",
    "_regressor",
    "_units",
    "_validation",
}

# Third parties that few modules know.
ONLY_IN = {
    "skorch": {"training"},
    "accelerate": {"training"},
    "matplotlib": {"displays"},
    "safetensors": {"_files", "persistence"},
    "pytest": {"testing"},
    "h5py": {"datasets", "io"},
    "pydicom": {"io"},
    "tifffile": {"datasets", "io"},
}


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
        yield from ((path, node) for node in walked(path.read_text()))


@cache
def walked(source: str) -> tuple[ast.AST, ...]:
    """All nodes of a file, for every rule."""
    return tuple(ast.walk(ast.parse(source)))


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
    rooms = {path.stem for path in PACKAGE.iterdir()} | MAY_IMPORT.keys() | set(ROOT)
    return name if name and name[0] in rooms else ("skinverse",)


# ------------------------------------------------------------------------------------------- the rules
def foreign_rooms(package: Path) -> Iterator[str]:
    for i in imports(package):
        room, target = i.importer[0], i.target[0]
        earlier = ROOT[: ROOT.index(room)] if room in ROOT else ROOT
        if i.ours and target != room and target not in {*earlier, *MAY_IMPORT.get(room, set())}:
            yield f"{i.path}:{i.line}: room '{room}' must not import room '{target}'"


def foreign_families(package: Path) -> Iterator[str]:
    for i in imports(package):
        if i.ours and i.importer[0] == i.target[0] == "estimators" and len(i.target) > 1:
            family, target = i.importer[1], i.target[1]
            if target != family and target not in BASE_FILES and family != "__init__":
                yield f"{i.path}:{i.line}: family '{family}' must not import '{target}'"


def base_files_that_know_families(package: Path) -> Iterator[str]:
    for i in imports(package):
        if i.ours and i.importer[0] == "estimators" and i.importer[1] in BASE_FILES:
            known = i.target[0] != "estimators" or i.target[1:2] == () or i.target[1] in BASE_FILES
            if not known:
                yield f"{i.path}:{i.line}: '{i.importer[1]}' must not import the family '{i.target[1]}'"


def circles(package: Path) -> Iterator[str]:
    """Modules that import one another, directly or through others."""
    modules = {path.relative_to(package).with_suffix("").parts for path in sources(package)}
    arrows: dict[tuple[str, ...], set[tuple[str, ...]]] = {module: set() for module in modules}
    for path, node in nodes(package):
        importer = path.relative_to(package).with_suffix("").parts
        for name in exact_names(node, (package.name, *importer)):
            # The module itself, the package, or the module that a name is taken from.
            targets = (name[1:], (*name[1:], "__init__"), name[1:-1], (*name[1:-1], "__init__"))
            found = [target for target in targets if target in modules]
            arrows[importer] |= set(found[:1]) if name[0] == package.name else set()
    for start in sorted(modules):
        reached: set[tuple[str, ...]] = set()
        waiting = list(arrows[start])
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += arrows[one]
        if start in reached:
            yield f"{'.'.join(start)} imports itself through others"


def exact_names(node: ast.AST, importer: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a statement imports, one by one: ``from a.b import c`` is ``a.b.c``."""
    for module in imported_names(node, importer):
        names = node.names if isinstance(node, ast.ImportFrom) else []
        dotted = module if not names or module[-1] in {n.name for n in names} else None
        if dotted is not None:
            yield dotted
        else:
            yield from ((*module, alias.name) for alias in names)


def back_doors(package: Path) -> Iterator[str]:
    for i in imports(package):
        if i.ours and i.target[0] != i.importer[0] and any(part.startswith("_") for part in i.target[1:]):
            yield f"{i.path}:{i.line}: '{i.importer[0]}' imports the private module {'.'.join(i.target)}"


def strangers(package: Path) -> Iterator[str]:
    for i in imports(package):
        if not i.ours and i.importer[0] not in ONLY_IN.get(i.target[0], {i.importer[0]}):
            yield f"{i.path}:{i.line}: only {ONLY_IN[i.target[0]]} may import {i.target[0]}"


def open_constructors(package: Path) -> Iterator[str]:
    for path, node in nodes(package):
        if path.stem == "_measurements":  # whose names are those of parameters of any operator
            continue
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
    foreign_families,
    base_files_that_know_families,
    circles,
    back_doors,
    strangers,
    open_constructors,
    type_questions,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    broken = list(rule(PACKAGE))
    assert not broken, "\n".join(broken)


# ------------------------------------------------------------------------- a rule that never fails is none
NEW = "estimators/supervised/new.py"
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
    (foreign_rooms, "energies/_a.py", "from skinverse.networks import UNet", "'energies' .* 'networks'"),
    (foreign_rooms, "training/_a.py", "from skinverse.networks import UNet", "'training' .* 'networks'"),
    (foreign_rooms, "metrics.py", "from skinverse.estimators import x", "'metrics' .* 'estimators'"),
    (foreign_rooms, "operators/_ct.py", "from skinverse.datasets import x", "'operators' .* 'datasets'"),
    (foreign_rooms, "_tensors.py", "from skinverse._files import pack", "'_tensors' .* '_files'"),
    (foreign_families, NEW, "from skinverse.estimators.classical.tikhonov import x", "'classical'"),
    (foreign_families, NEW, "from ..classical.tikhonov import x", "'supervised' .* 'classical'"),
    (
        base_files_that_know_families,
        "estimators/_base.py",
        "from skinverse.estimators.classical.tikhonov import x",
        "'classical'",
    ),
    (back_doors, NEW, "from skinverse.operators._map import LinearMap", "operators._map"),
    (strangers, NEW, "from skorch import NeuralNet", "skorch"),
    (open_constructors, "metrics.py", "class C:\n    def __init__(self, **kw): ...", r"\*\*kw"),
    (type_questions, "metrics.py", "class C: ...\nisinstance(1, (int, C))", "our own C"),
]


@pytest.mark.parametrize(("rule", "file", "source", "says"), BREACHES)
def test_a_breach_is_found_and_named(rule: Rule, file: str, source: str, says: str, tmp_path: Path) -> None:
    write(tmp_path / "skinverse" / file, source)
    broken = list(rule(tmp_path / "skinverse"))
    assert len(broken) == 1
    assert file in broken[0]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(broken[0])


def test_a_circle_is_found(tmp_path: Path) -> None:
    write(tmp_path / "skinverse/solvers/_a.py", "from skinverse.solvers._b import x")
    write(tmp_path / "skinverse/solvers/_b.py", "def f():\n    from skinverse.solvers import _c")
    write(tmp_path / "skinverse/solvers/_c.py", "import skinverse.solvers._a")
    assert len(list(circles(tmp_path / "skinverse"))) == 3
    write(tmp_path / "skinverse/solvers/_b.py", "def f():\n    from skinverse.solvers._d import x")
    assert list(circles(tmp_path / "skinverse")) == []
    write(tmp_path / "skinverse/solvers/__init__.py", "from skinverse.solvers._d import x")
    write(tmp_path / "skinverse/solvers/_d.py", "from skinverse.solvers import x")
    assert len(list(circles(tmp_path / "skinverse"))) == 2


ALLOWED = [
    (
        "solvers/_cg.py",
        "from skinverse._tensors import dot\nfrom skinverse.solvers._solution import Solution",
    ),
    (NEW, "from skinverse.operators import x\nfrom skinverse.estimators._base import x"),
    (NEW, "from skinverse.estimators.supervised.losses import x"),
    ("training/_loop.py", "import skorch"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_is_allowed_passes(file: str, source: str, tmp_path: Path) -> None:
    write(tmp_path / "skinverse" / file, source)
    assert [broken for rule in RULES for broken in rule(tmp_path / "skinverse")] == []


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


# ----------------------------------------------------------------------------------------- the estimators
def estimator_classes() -> Iterator[type]:
    """Every class below the base class, wherever in ``estimators`` it is defined."""
    from skinverse import estimators

    for module in pkgutil.walk_packages(estimators.__path__, "skinverse.estimators."):
        importlib.import_module(module.name)
    waiting = [estimators.BaseReconstructor]
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
        parents = [base for base in cls.__bases__ if base.__module__.startswith("skinverse.estimators")]
        assert all(inspect.isabstract(parent) for parent in parents), f"{cls} refines a finished method"


def test_no_method_has_a_constructor_or_a_training_loop_of_its_own() -> None:
    from skinverse.estimators import LearnedReconstructor

    for cls in estimator_classes():
        assert "_learn" not in vars(cls) or cls is LearnedReconstructor, f"{cls} trains by itself"
        assert "def __init__" not in inspect.getsource(cls), f"{cls} writes its constructor by hand"

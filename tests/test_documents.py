"""What README and CONTRIBUTING show is what the package does."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

import skinverse
from skinverse import Trainer
from skinverse.datasets import make_problem
from skinverse.estimators import BaseReconstructor
from skinverse.testing import reconstructor_checks

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


# An energy that one epoch has trained may have many minima, which a last bit of the data decides.
@pytest.mark.filterwarnings("ignore:.*a change of the data by:sklearn.exceptions.ConvergenceWarning")
def test_the_lines_of_the_readme_run(monkeypatch, tmp_path) -> None:  # without the minutes of training
    five_lines, *learned = python_blocks("README.md")
    names: dict[str, object] = {}
    exec(five_lines, names)
    assert names["X_hat"].shape == names["X_true"].shape
    monkeypatch.setattr(Trainer, "n_epochs", lambda *_: 1)
    monkeypatch.chdir(tmp_path)
    for lines in learned:
        names.pop("X_hat")
        exec(lines, names)
        assert names["X_hat"].shape == names["X_true"].shape


# ---------------------------------------------------------------------- the method shown to contributors
@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> ModuleType:
    """The block of CONTRIBUTING as the module that it is to become."""
    method, line = python_blocks("CONTRIBUTING.md")
    assert len(method.splitlines()) <= 60
    assert line == "from .estimators.supervised.learned_filter import LearnedFilter as LearnedFilter\n"
    path = tmp_path_factory.mktemp("contributed") / "learned_filter.py"
    path.write_text(method)
    spec = importlib.util.spec_from_file_location("learned_filter", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["learned_filter"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def listed(shown, monkeypatch) -> type[BaseReconstructor]:
    """The method as if its line stood in the public list."""
    monkeypatch.setattr(skinverse, "LearnedFilter", shown.LearnedFilter, raising=False)
    monkeypatch.setattr(skinverse, "__dir__", lambda: [*skinverse.__all__, "LearnedFilter"])
    monkeypatch.setattr(skinverse, "__all__", [*skinverse.__all__, "LearnedFilter"])
    return shown.LearnedFilter


def test_the_shown_method_learns(listed) -> None:
    X, Y, A = make_problem("deblurring", n_samples=12, size=24, noise=0.01, random_state=0)
    method = listed(A).fit(X[:8], Y[:8])
    untrained = listed(A, trainer=Trainer(max_epochs=1, lr=1e-12)).fit(X[:8], Y[:8])
    assert method.score(X[8:], Y[8:]) > untrained.score(X[8:], Y[8:]) + 0.5


def test_the_shown_method_is_searched_saved_and_loaded(listed, tmp_path) -> None:
    X, Y, A = make_problem("deblurring", n_samples=6, size=16, noise=0.01, random_state=0)
    search = GridSearchCV(listed(A, trainer=Trainer(max_epochs=2)), {"kernel_size": [3, 5]}, cv=2)
    method = search.fit(X, Y).best_estimator_
    method.save(tmp_path / "filter.skinverse")
    loaded = skinverse.load(tmp_path / "filter.skinverse")
    np.testing.assert_array_equal(loaded.predict(Y), method.predict(Y))


def test_the_shown_method_keeps_the_promises(listed) -> None:
    for check in reconstructor_checks(listed(trainer=Trainer(max_epochs=1))):
        if not check.skipped:
            check()


# ---------------------------------------------------------------------- the README
def test_the_readme_has_every_method() -> None:
    public = {name: getattr(skinverse, name) for name in skinverse.__all__}
    methods = {n for n, t in public.items() if isinstance(t, type) and issubclass(t, BaseReconstructor)}
    rows = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert rows == methods


# ---------------------------------------------------------------------- one spelling
# Names of classes, parameters and methods keep their own spelling, and so do titles of papers.
AMERICAN = re.compile(
    r"\b(?:(?!\w*(?:size|sizing|priz|seiz))\w+iz(?:e|es|ed|er|ers|ing|able|ation|ations)"
    r"|(?:analyz|artifact|behavior|color|favor|fiber|gray|neighbor)\w*"
    r"|center(?:s|ed|ing)?|(?:cancel|label|model|signal)(?:ed|ing))\b",
    re.IGNORECASE,
)
NOT_PROSE = re.compile(
    r'```.*?```|``.*?``|`[^`]*`|"[\w-]+"'  # code
    r"|^References\n-+\n.*?(?=\n\n[A-Z]\w+\n-+$|\Z)"  # of a docstring
    r"|^ *(?:>>>|\.\.\.).*?$"
    r"|^ *[\w, *]+ : |\b\w+(?==|: expected)|\b\w+(?:\.\w+)+",  # names of parameters and modules
    re.DOTALL | re.MULTILINE,
)


def american(text: str) -> list[str]:
    """Words of the other spelling in prose."""
    return [word for word in AMERICAN.findall(NOT_PROSE.sub(" ", text)) if word[1:].islower()]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """What a reader reads of a file, with line numbers: of Python code the comments and sentences."""
    if path.suffix != ".py":
        yield 1, path.read_text()
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, inspect.cleandoc(node.value)


@pytest.mark.parametrize("where", ["*.md", "docs", "examples", "benchmarks", "skinverse"])
def test_prose_has_british_spelling(where) -> None:
    assert american("We minimize, colored, in ``normalize``.\n>>> normalize()") == ["minimize", "colored"]
    made = {"_build", "api", "gallery", "generated"}
    files = [f for s in (".md", ".rst", ".py") for f in sorted((ROOT / where).rglob(f"*{s}"))]
    files = sorted(ROOT.glob(where)) if "*" in where else [f for f in files if not made & set(f.parts)]
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in files
        for line, text in prose(path)
        for word in american(text)
    ]
    assert not found, "\n".join(found)

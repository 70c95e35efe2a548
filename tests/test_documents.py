"""What README and CONTRIBUTING show is what the package does."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import skinverse
from skinverse.estimators import BaseReconstructor

ROOT = Path(__file__).parents[1]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_the_lines_of_the_readme_run(monkeypatch, tmp_path) -> None:  # without the minutes of training
    five_lines, *learned = python_blocks("README.md")
    names: dict[str, object] = {}
    exec(five_lines, names)
    assert names["X_hat"].shape == names["X_true"].shape
    monkeypatch.setattr("skinverse.training.NeuralNet.fit", lambda net, *_, **__: net.initialize())
    monkeypatch.chdir(tmp_path)
    for lines in learned:
        names.pop("X_hat")
        exec(lines, names)
        assert names["X_hat"].shape == names["X_true"].shape


def test_the_method_shown_to_contributors_is_the_one_in_the_source() -> None:
    constructor, hooks, line = python_blocks("CONTRIBUTING.md")
    source = (ROOT / "skinverse/estimators/_iterative.py").read_text()
    assert constructor in source
    for hook in hooks.split("\n\n\n"):
        assert textwrap.indent(hook, "    ") in source
    assert line in (ROOT / "skinverse/__init__.pyi").read_text()


def test_the_readme_has_every_method() -> None:
    public = {name: getattr(skinverse, name) for name in skinverse.__all__}
    methods = {n for n, t in public.items() if isinstance(t, type) and issubclass(t, BaseReconstructor)}
    rows = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert rows == methods

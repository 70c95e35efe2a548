"""What goes into a bug report."""

from __future__ import annotations

import platform

import torch

from skinverse import _versions


def test_versions_of_what_is_and_is_not_installed_are_shown(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_versions, "_OPTIONAL", ("no-such-package",))
    _versions.show_versions()
    shown = capsys.readouterr().out
    assert f"python: {platform.python_version()}" in shown
    assert f"torch: {torch.__version__}" in shown
    assert "no-such-package: not installed" in shown
    assert "GPU: " in shown

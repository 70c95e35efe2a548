"""Sphinx: the API pages and the table of methods are written here, from the public list."""

from __future__ import annotations

import inspect
import io
import json
import re
from collections.abc import Iterator
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import skinverse
from skinverse.estimators import BaseReconstructor

HERE = Path(__file__).parent

project = "skinverse"
author = copyright = "skinverse developers"
version = release = skinverse.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/**.ipynb", "gallery/**.py", "gallery/**.md5"]
templates_path = ["_templates"]
smartquotes = False  # "auto" is a value

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give types, with shapes and ranges
numpydoc_show_class_members = False

myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = "skinverse"
html_theme_options = {"show_prev_next": True, "navigation_with_keys": False}
html_show_sourcelink = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"(^|/)(?!plot_)[^/]*\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "capture_repr": ("_repr_html_",),  # a display or a line of matplotlib would show its address
}
# The gallery shows all that an example writes to stderr; progress bars are for terminals and notebooks.
tqdm.__init__ = partialmethod(tqdm.__init__, file=io.StringIO())


# ------------------------------------------------------------------------------------ measured numbers
RESULTS = HERE.parent / "benchmarks" / "results"
# Heading of a score: its name in a record.
SCORES = {"PSNR (dB)": "psnr", "PSNR (dB), upright": "upright", "PSNR (dB), turned": "turned", "SSIM": "ssim"}


def listed(name: str) -> str:
    """A row for each entry of a record that has a score, and where the figures come from."""
    record = read(name)
    rows = list(scored(record["figures"]))
    columns = {heading: [cell(found) for _, found in rows] for heading, cell in CELLS.items()}
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    names = [", ".join(path) for path, _ in rows]
    return table([("", *columns), *zip(names, *columns.values(), strict=True)], origin(record))


def crossed(name: str) -> str:
    """A row and a column for the two names of each entry of a record that has a PSNR."""
    record = read(name)
    found = {path[-2:]: show_score(entry, "psnr") for path, entry in scored(record["figures"])}
    rows, columns = (list(dict.fromkeys(path[i] for path in found)) for i in (0, 1))
    cells = [(row, *(found.get((row, column), "") for column in columns)) for row in rows]
    return table([("PSNR (dB)", *columns), *cells], origin(record))


def read(name: str) -> dict[str, Any]:
    """What a benchmark wrote."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def scored(figures: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The entries that have a score, and where they stand in the record."""
    for name, found in figures.items():
        if isinstance(found, dict):
            if not found.keys().isdisjoint(SCORES.values()):
                yield (*path, name), found
            yield from scored(found, (*path, name))


def show_score(found: dict[str, Any], score: str) -> str:
    """A score to two or three digits, with its interval."""
    digits = 3 if score == "ssim" else 2
    if score not in found:
        return ""
    ends = ", ".join(f"{end:.{digits}f}" for end in found.get(f"{score}_interval", ()))
    return f"{found[score]:.{digits}f}" + (f" [{ends}]" if ends else "")


def show_mean(found: dict[str, Any], name: str, scale: float, digits: int) -> str:
    """The mean over seeds of what was measured; nothing where it was not."""
    values = np.atleast_1d(found.get(name, []))
    return f"{scale * values.mean():.{digits}f}" if len(values) else ""


CELLS = {
    **{heading: partial(show_score, score=score) for heading, score in SCORES.items()},
    "minutes of fit": partial(show_mean, name="seconds_fit", scale=1 / 60, digits=1),
    "seconds per image": partial(show_mean, name="seconds_per_image", scale=1, digits=3),
    "iterations": partial(show_mean, name="mean_steps", scale=1, digits=0),
}


def origin(record: dict[str, Any]) -> str:
    """One sentence on the run that gave the figures."""
    if "commit" not in record:
        return "Measured with the first edition, in one run with one seed."
    seeds = len(record["seeds"])
    return (
        f"Measured at commit {record['commit'][:9]} by ``{record['command']}``, "
        f"{seeds} seed{'s' * (seeds > 1)}. Brackets hold 95 % intervals of the mean over images."
    )


def table(cells: list[tuple[str, ...]], below: str) -> str:
    """A table whose first row is its head, and a sentence; an empty text where nothing was measured."""
    if len(cells) < 2:
        return ""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in cells:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, "", below, ""])


# Text that a page of docs/methods includes: the tables it is made of.
MEASURED = {
    "measured": [listed("tv_ct"), listed("denoising")],
    "measured_adversarial": [listed("adversarial_denoising"), listed("adversarial_ct")],
    "measured_bilevel": [listed("bilevel_denoising"), listed("bilevel_compressive")],
    "measured_equilibrium": [listed("equilibrium_deblurring"), listed("equilibrium_equivariance")],
    "measured_generative": [crossed("generative_mnist"), crossed("generative_cells")],
    "measured_supervised": [listed("supervised_ct"), listed("supervised_denoising")],
    "measured_adaptation": [listed("adaptation")],
}
for name, tables in MEASURED.items():
    (HERE / "methods" / f"{name}.txt").write_text("\n".join(tables))


# ------------------------------------------------------------------------------------ reading the docstrings
def escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the star of a shape such as (n, *dims): outside of literals it would be emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[i] = re.sub(r"(``.*?``)|\*(?=[\w.]+[,)])", lambda star: star[1] or r"\*", line)


INITIAL = re.compile(r"[A-Z]\. ")


def itemize_references(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make one item of each reference, whose first initial would pass for the number of a list."""
    start = lines.index("References") + 2 if "References" in lines else len(lines)
    stop = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    if start < stop and INITIAL.match(lines[start]):
        lines[start:stop] = [("* \\" if INITIAL.match(line) else "  ") + line for line in lines[start:stop]]


def skip_foreign(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a class inherits from other packages, which document it."""
    function = getattr(obj, "fget", obj)
    return None if str(getattr(function, "__module__", "")).startswith("skinverse") else True


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_stars, priority=1)
    app.connect("autodoc-process-docstring", itemize_references, priority=1)
    app.connect("autodoc-skip-member", skip_foreign)


# --------------------------------------------------------------------------- pages made of the public list
def title(text: str, underline: str = "=") -> str:
    return f"{text}\n{underline * len(text)}\n"


def autosummary(module: str, names: list[str]) -> str:
    directive = (
        f".. currentmodule:: {module}\n\n.. autosummary::\n   :toctree: generated\n   :nosignatures:\n"
    )
    return "\n".join([directive, *(f"   {name}" for name in names), ""])


def page_of_package() -> str:
    things = {name: getattr(skinverse, name) for name in skinverse.__all__}
    methods = [n for n, t in things.items() if inspect.isclass(t) and issubclass(t, BaseReconstructor)]
    rest = [n for n, t in things.items() if not inspect.ismodule(t) and n not in methods]
    rooms = [n for n, t in things.items() if inspect.ismodule(t)]
    parts = [
        title("API"),
        title("Methods", "-"),
        autosummary("skinverse", methods),
        title("Other classes and functions", "-"),
        autosummary("skinverse", rest),
    ]
    for room in rooms:
        parts += [title(f"skinverse.{room}", "-"), f".. automodule:: skinverse.{room}\n   :no-members:\n"]
        parts += [autosummary(f"skinverse.{room}", things[room].__all__)]
    return "\n".join(parts)


api = HERE / "api" / "index.rst"
api.parent.mkdir(exist_ok=True)
api.write_text(page_of_package())

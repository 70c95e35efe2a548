"""Sphinx: the API pages and the table of methods are written here, from the public list."""

from __future__ import annotations

import inspect
import io
import json
import re
from functools import partialmethod
from pathlib import Path
from typing import Any

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
def measured() -> str:
    """A table of the numbers that the benchmarks wrote."""
    results = HERE.parent / "benchmarks" / "results"
    ct, bsd = (
        json.loads((results / f"{name}.json").read_text())["figures"] for name in ("tv_ct", "denoising")
    )
    rows = [
        ("sparse-view CT, filtered back-projection", ct["fbp_psnr"], ct["fbp_ssim_range_2"], None),
        ("sparse-view CT, total variation", ct["tv_psnr"], ct["tv_ssim_range_2"], ct["seconds_default_stop"]),
        ("BSD68, noisy", bsd["psnr_noisy"], None, None),
        ("BSD68, total variation", bsd["psnr_tv"], bsd["ssim_tv"], bsd["seconds_per_image"]),
    ]
    cells = [("", "PSNR (dB)", "SSIM", "seconds per image")]
    cells += [(name, f"{a:.2f}", f"{b:.3f}" if b else "", f"{c:.2f}" if c else "") for name, a, b, c in rows]
    return table(cells) + "\nThe SSIM of the CT images takes a data range of 2, as in the published table.\n"


def measured_adversarial() -> str:
    """Results of learned energies, beside total variation."""
    results = HERE.parent / "benchmarks" / "results"
    files = [results / f"adversarial_{name}.json" for name in ("denoising", "ct")]
    bsd, ct = (json.loads(file.read_text())["figures"] if file.exists() else {} for file in files)
    cells = [("", "PSNR (dB)", "SSIM", 'PSNR, lam="auto"', "minutes of fit")]
    if bsd:
        cells += [("BSD68, total variation", f"{bsd['tv']['psnr']:.2f}", f"{bsd['tv']['ssim']:.3f}", "", "")]
    for energy in [name for name, found in bsd.items() if "seconds_fit" in str(found)]:
        found = bsd[energy]
        minutes = f"{found['seconds_fit'] / 60:.1f}"
        cells += [(f"BSD68, {energy}", f"{found['psnr']:.2f}", f"{found['ssim']:.3f}", "", minutes)]
    for data in [name for name in ("chest", "ellipses") if name in ct]:
        fbp, tv = ct[data]["fbp"], ct[data]["tv_best_on_test"]
        cells += [
            (f"CT of {data}, filtered back-projection", f"{fbp['psnr']:.2f}", f"{fbp['ssim']:.3f}", "", "")
        ]
        cells += [(f"CT of {data}, total variation", f"{tv['psnr']:.2f}", f"{tv['ssim']:.3f}", "", "")]
        for energy in [name for name in ct[data] if "fit" in ct[data][name]]:
            found = ct[data][energy]
            fit, auto, minutes = found["fit"], found["auto"], found["seconds_fit"] / 60
            row = (f"{fit['psnr']:.2f}", f"{fit['ssim']:.3f}", f"{auto['psnr']:.2f}", f"{minutes:.1f}")
            cells += [(f"CT of {data}, {energy}", *row)]
    return table(cells)


def measured_bilevel() -> str:
    """Results of bilevel learning, with both hypergradients."""
    results = HERE.parent / "benchmarks" / "results"
    files = [results / f"bilevel_{name}.json" for name in ("denoising", "compressive")]
    bsd, sensing = (json.loads(file.read_text())["figures"] if file.exists() else {} for file in files)
    cells = [("", "PSNR (dB)", "iterations", "minutes of fit")]
    for name in [name for name in ("jacobian_free", "minres") if name in bsd]:
        found = bsd[name]
        row = (f"{found['psnr']:.2f}", f"{found['mean_steps']:.0f}", f"{found['seconds_fit'] / 60:.1f}")
        cells += [(f"BSD68, ridge, {name}", *row)]
    for name, found in sensing.items():
        minutes = f"{found['seconds_fit'] / 60:.1f}" if "seconds_fit" in found else ""
        row = (f"{found['psnr']:.2f}", f"{found['mean_steps']:.0f}", minutes)
        cells += [(f"compressive sensing, {name}", *row)]
    return table(cells)


def measured_equilibrium() -> str:
    """Results of equilibria, beside total variation, an unrolled network and networks without symmetry."""
    results = HERE.parent / "benchmarks" / "results"
    files = [results / f"equilibrium_{name}.json" for name in ("deblurring", "equivariance")]
    bsd, mri = (json.loads(file.read_text())["figures"] if file.exists() else {} for file in files)
    cells = [("", "PSNR (dB)", "turned", "minutes of fit")]
    for name in [name for name in ("TV", "equilibrium", "unrolled") if name in bsd]:
        minutes = f"{bsd[name]['seconds_fit'] / 60:.1f}" if "seconds_fit" in bsd[name] else ""
        cells += [(f"BSD68 deblurred, {name}", f"{bsd[name]['psnr']:.2f}", "", minutes)]
    for name in [name for name in mri if "images" in name]:
        found = mri[name]
        row = (f"{found['upright']:.2f}", f"{found['turned']:.2f}", f"{found['seconds_fit'] / 60:.1f}")
        cells += [(f"MRI, {name}", *row)]
    return table(cells)


def measured_generative() -> str:
    """Results of covariance models, beside other constraints, a supervised network and total variation."""
    results = HERE.parent / "benchmarks" / "results"
    files = [results / f"generative_{name}.json" for name in ("mnist", "cells")]
    mnist, cells = (json.loads(file.read_text())["figures"] if file.exists() else {} for file in files)
    digits = {name: found for name, found in mnist.items() if name.startswith("M=")}
    names = list(next(iter(digits.values()))) if digits else []
    first = [("digits, PSNR (dB)", *digits)]
    first += [(name, *(f"{digits[at][name]['psnr']:.2f}" for at in digits)) for name in names]
    grid = cells.get("psnr at rate, noise", {})
    settings = list(next(iter(grid.values()))) if grid else []
    second = [("cells at rate, noise, PSNR (dB)", *settings)]
    second += [(name, *(f"{found[at]:.2f}" for at in settings)) for name, found in grid.items()]
    return table(first) + "\n" + table(second)


def measured_supervised() -> str:
    """Results of supervised methods on ellipses and photographs, beside classical ones."""
    tables = []
    for name, title in (("ct", "CT of ellipses"), ("denoising", "BSD68, noise 0.1")):
        file = HERE.parent / "benchmarks" / "results" / f"supervised_{name}.json"
        figures = json.loads(file.read_text())["figures"] if file.exists() else {}
        cells = [(title, "PSNR (dB)", "SSIM", "weights", "minutes of fit", "ms per image")]
        for method, found in figures.items():
            minutes = f"{found['seconds_fit'] / 60:.1f}" if "seconds_fit" in found else ""
            numbers = (f"{found['psnr']:.2f}", f"{found['ssim']:.3f}", str(found.get("n_weights", "")))
            each = f"{1000 * found['seconds_per_image']:.0f}" if "seconds_per_image" in found else ""
            cells += [(method, *numbers, minutes, each)]
        tables.append(table(cells))
    return "\n".join(tables)


def measured_adaptation() -> str:
    """Gains of adaptation where the blur has changed."""
    file = HERE.parent / "benchmarks" / "results" / "adaptation.json"
    figures = json.loads(file.read_text())["figures"] if file.exists() else {}
    cells = [("deblurring after the blur has changed", "PSNR (dB)")]
    return table(cells + [(name, f"{value:.2f}") for name, value in figures.get("psnr", {}).items()])


def table(cells: list[tuple[str, ...]]) -> str:
    """A table whose first row is its head; an empty text where nothing was measured."""
    if len(cells) < 2:
        return ""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in cells:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, ""])


(HERE / "methods" / "measured.txt").write_text(measured())
(HERE / "methods" / "measured_adversarial.txt").write_text(measured_adversarial())
(HERE / "methods" / "measured_bilevel.txt").write_text(measured_bilevel())
(HERE / "methods" / "measured_equilibrium.txt").write_text(measured_equilibrium())
(HERE / "methods" / "measured_generative.txt").write_text(measured_generative())
(HERE / "methods" / "measured_supervised.txt").write_text(measured_supervised())
(HERE / "methods" / "measured_adaptation.txt").write_text(measured_adaptation())


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

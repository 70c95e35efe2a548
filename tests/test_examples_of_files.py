"""The examples that start from files of instruments, on small data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skinverse.metrics import psnr

pytest.importorskip("matplotlib")
pytest.importorskip("h5py")
pytest.importorskip("tifffile")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def names_of(example: str, smaller: dict[str, str]) -> dict[str, Any]:
    """What an example has at its end, with some of its words replaced."""
    lines = (EXAMPLES / f"{example}.py").read_text()
    for word, other in smaller.items():
        assert lines.count(word) == 1, word
        lines = lines.replace(word, other)
    names: dict[str, Any] = {}
    exec(compile(lines, example, "exec"), names)
    return names


def scores(names: dict[str, Any]) -> dict[str, float]:
    truth = np.abs(names["X_true"])
    return {name: float(psnr(truth[: len(x)], x).mean()) for name, x in names["X_hat"].items()}


def test_a_stack_of_a_microscope_is_deblurred() -> None:
    smaller = {
        "(6, 56, 56)": "(3, 24, 24)",
        "TotalVariationRecon(A, noise=camera)": "TotalVariationRecon(A, noise=camera, lam=2e-3)",  # no search
    }
    names = names_of("plot_microscopy_counts", smaller)
    blurred = float(psnr(names["X_true"], names["Y_meas"] - 100.0).mean())
    assert min(scores(names).values()) > blurred + 0.5
    written = names["read_tiff"](names["folder"] / "deconvolved.tif")
    assert written.image.shape == (3, 24, 24)
    np.testing.assert_allclose(written.spacing, names["stack"].spacing, rtol=1e-6)


def test_a_slice_of_a_scanner_loses_its_aliases() -> None:
    smaller = {
        "make_fastmri_file(path,": "make_fastmri_file(path, shepp_logan(48)[None],",
        "import make_fastmri_file": "import make_fastmri_file, shepp_logan",
        "n_calibration=10, kernel_size=4": "n_calibration=4, kernel_size=2",
    }
    found = scores(names_of("plot_mri_from_file", smaller))
    assert found["TV"] > found["wavelets"] > found["zero-filled"]
    assert found["TV"] > found["zero-filled"] + 3


def test_counts_behind_a_foam_become_an_image() -> None:
    smaller = {"SIZE = 64": "SIZE = 48", "foam(100, 1)": "foam(12, 1)", "max_epochs=10": "max_epochs=4"}
    names = names_of("plot_ct_from_file", smaller)
    assert names["offset"] == pytest.approx(3.3, abs=0.1)
    found = scores(names)
    assert found["TV"] > found["FBP"] + 1
    assert np.isfinite(found["post-processing"])  # after a few steps of training


def test_few_counts_become_an_image() -> None:
    smaller = {"size = 64": "size = 32", "np.pi, 64,": "np.pi, 32,", "91": "47", "n_steps=100": "n_steps=20"}
    names = names_of("plot_pet_counts", smaller)
    found = scores(names)
    assert found["TV"] > found["MLEM, stopped"] > found["MLEM, 100"]
    assert found["OSEM, stopped"] > found["MLEM, stopped"] - 1
    assert found["learned"] > found["MLEM, 100"]  # after a fifth of the training
    assert min(names["X_hat"][name].min() for name in ("TV", "learned")) >= 0

"""Stripes, zingers and fringes that are put on what is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skinverse.preprocessing import remove_rings, remove_zingers, retrieve_phase


def disc(n_angles: int = 90, n_detectors: int = 121) -> np.ndarray:
    """Line integrals of a disc beside the axis."""
    theta = np.linspace(0, np.pi, n_angles, endpoint=False)[:, None]
    s = np.arange(n_detectors) - (n_detectors - 1) / 2
    return 2 * np.sqrt(np.maximum(35**2 - (s - 12 * np.cos(theta)) ** 2, 0)) / 70


# ---------------------------------------------------------------------- rings
def test_stripes_are_removed() -> None:
    clean = disc()
    stripes = np.zeros(clean.shape[1])
    stripes[[20, 47, 48, 80]] = [0.1, -0.05, 0.08, 0.15]
    left = remove_rings(clean + stripes, size=11) - remove_rings(clean, size=11)
    assert np.abs(left.mean(0)).max() <= 0.2 * stripes.max()  # the rings


def test_views_that_are_all_alike_are_smoothed_by_the_median() -> None:
    views = np.random.default_rng(0).normal(size=50) * np.ones((7, 1))
    padded = np.pad(views[0], 2, mode="symmetric")
    medians = [np.median(padded[i : i + 5]) for i in range(50)]
    assert_array_equal(remove_rings(views, size=5), medians * np.ones((7, 1)))


def test_a_sinogram_without_stripes_stays() -> None:
    clean = disc()
    assert np.sqrt(np.mean((remove_rings(clean, size=5) - clean) ** 2)) <= 0.01
    assert_array_equal(remove_rings(clean, size=1), clean)


def test_rows_of_the_detector_are_apart() -> None:
    rows = np.stack([disc(), disc()[::-1] + np.eye(121)[30]])
    assert_array_equal(remove_rings(rows), np.stack([remove_rings(row) for row in rows]))


# ---------------------------------------------------------------------- zingers
def test_zingers_are_replaced_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(1000.0, 10.0, (3, 30, 40))
    struck = clean.copy()
    struck[0, 4, 5] += 500
    struck[1, 0, 0] += 300
    struck[2, 20, 10:12] += 400
    cleaned = remove_zingers(struck, threshold=100)
    assert_array_equal(cleaned == clean, struck == clean)
    assert np.abs(cleaned - clean).max() <= 50
    assert struck[0, 4, 5] > 1400  # the input is left alone


# ---------------------------------------------------------------------- phase
OPTICS = {"distance": 0.2, "energy": 25.0, "pixel_size": 2e-6, "delta_beta": 300.0}


def spread(optics: dict[str, float]) -> float:
    """Distance times wavelength times delta by 4 pi beta, in square metres."""
    planck, light, kev = 6.62607015e-34, 299792458.0, 1.602176634e-16
    return optics["distance"] * planck * light / (optics["energy"] * kev) * optics["delta_beta"] / (4 * np.pi)


def test_fringes_of_the_transport_of_intensity_are_undone() -> None:
    """Of I = exp(-y), the detector sees I - spread * Laplacian(I), by differences between pixels."""
    y = np.random.default_rng(0).uniform(0, 0.1, (2, 12, 17)) + np.linspace(0, 2, 17)
    padded = np.pad(np.exp(-y), ((0, 0), (1, 1), (1, 1)), mode="symmetric")
    inner, across, along = padded[:, 1:-1, 1:-1], padded[:, 1:-1], padded[:, :, 1:-1]
    laplacian = across[..., 2:] + across[..., :-2] + along[:, 2:] + along[:, :-2] - 4 * inner
    optics = OPTICS | {"distance": 0.01}
    seen = inner - spread(optics) * laplacian / optics["pixel_size"] ** 2
    assert seen.min() > 0
    assert_allclose(retrieve_phase(-np.log(seen), **optics), y, atol=1e-9)


def test_a_long_wave_is_damped_as_in_the_formula() -> None:
    wave = np.cos(3 * np.pi * (np.arange(400) + 0.5) / 400)
    k = 3 * np.pi / (400 * OPTICS["pixel_size"])
    damped = retrieve_phase(-np.log(1 + 0.2 * wave)[None, None], **OPTICS)
    assert_allclose(np.exp(-damped[0, 0]), 1 + 0.2 * wave / (1 + spread(OPTICS) * k**2), rtol=1e-5)


def test_the_intensity_stays_positive() -> None:
    y = np.zeros((20, 20))
    y[5:9, 7:12] = 14.0
    assert np.isfinite(retrieve_phase(y, **OPTICS | {"distance": 1e-3})).all()


# ---------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: remove_rings(np.ones(5)), "^sinogram: expected an array with at least 2 axes, got shape"),
        (lambda: remove_rings(np.ones((5, 5)), size=4), "^size: expected an odd number >= 1, got 4$"),
        (lambda: remove_rings(np.full((2, 2), np.inf)), "^sinogram: expected finite values, got NaN or inf"),
        (lambda: remove_zingers(np.ones((5, 5)), threshold=0), "^threshold: expected a number > 0, got 0$"),
        (
            lambda: retrieve_phase(np.ones((5, 5)), **OPTICS | {"energy": -1}),
            "^energy: expected a number > 0",
        ),
        (lambda: retrieve_phase(np.ones(5), **OPTICS), "^data: expected an array with at least 2 axes"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()

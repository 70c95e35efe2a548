"""Counts whose line integrals are known."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skinverse.preprocessing import correct_beam_hardening, minus_log

RNG = np.random.default_rng(0)
ANGLES, ROWS, COLUMNS = 5, 3, 40


def scan():
    """Line integrals, a beam and a dark level that differ from one detector element to the next."""
    integrals = RNG.uniform(0, 2, (ANGLES, ROWS, COLUMNS))
    beam, dark = RNG.uniform(500, 900, (ROWS, COLUMNS)), RNG.uniform(80, 90, (ROWS, COLUMNS))
    return integrals, beam, dark, beam * np.exp(-integrals) + dark


def both(measured):
    """Data and weights in the layout of projections."""
    return measured.data.swapaxes(0, 1), measured.parameters["weights"].swapaxes(0, 1)


def of_one_row(measured):
    """Data and weights of a detector without rows."""
    return measured.data[0], measured.parameters["weights"][0]


def test_line_integrals_and_weights_are_those_of_the_formula() -> None:
    integrals, beam, dark, counts = scan()
    data, weights = both(minus_log(counts, beam + dark, dark, gain=2.0))
    assert_allclose(data, integrals, rtol=1e-12)
    assert_allclose(weights, beam * np.exp(-integrals) / 2.0, rtol=1e-12)


def test_frames_are_averaged_and_a_dark_level_may_be_a_number() -> None:
    integrals, beam, _, _ = scan()
    counts, frames = beam * np.exp(-integrals) + 10, beam + 10 + np.array([-20, 5, 15])[:, None, None]
    assert_allclose(minus_log(counts, frames, 10.0).data, integrals.swapaxes(0, 1), rtol=1e-12)
    assert_allclose(minus_log(counts[:, 0], frames[:, 0], 10.0).data, integrals[None, :, 0], rtol=1e-12)


def test_weights_are_one_by_the_variance() -> None:
    photons, gain = RNG.poisson(200.0, (400, 100)), 3.0
    data, weights = of_one_row(minus_log(gain * photons + 50.0, 1000.0, 50.0, gain=gain))
    assert (data.var() * weights.mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("bad", [10.0, 3.0, np.nan])
def test_counts_that_are_not_above_the_dark_level_are_reported(bad: float) -> None:
    counts = 10 + 100 * np.exp(-np.linspace(0, 1, 20)) * np.ones((4, 1))
    counts[1, 4:7], counts[2, :2], counts[3] = bad, bad, bad
    with pytest.warns(UserWarning, match="^projections: 25 of 80 .* weight 0: 25 not above .* 0 sat.* 0 of"):
        data, weights = of_one_row(minus_log(counts, np.full(20, 110.0), 10.0))
    assert_array_equal(weights == 0, ~(counts > 10))
    line = np.linspace(0, 1, 20)  # between the neighbours, and the nearest one at the end
    assert_allclose(data, np.stack([line, line, np.maximum(line, line[2]), np.zeros(20)]), atol=1e-12)


def test_saturated_counts_and_dead_elements_are_reported() -> None:
    counts, flat = np.full((3, 10), 60.0), np.full(10, 110.0)
    counts[0, 2], counts[1, 3], flat[7], flat[8] = 255.0, 400.0, 10.0, 255.0
    with pytest.warns(UserWarning, match="8 of 30 .* 0 not above the dark level, 2 saturated, 6 of elements"):
        data, weights = of_one_row(minus_log(counts, flat, 10.0, saturation=255.0))
    assert_allclose(data, np.log(2.0))
    assert (weights == 0).sum() == 8


def test_only_what_is_wrong_is_reported() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minus_log(np.full((3, 10), 60), np.full(10, 110), np.full(10, 10))


@pytest.mark.parametrize(
    ("counts", "frames", "expected"),
    [
        (np.uint16, np.float32, np.float32),
        (np.uint16, np.uint16, np.float32),
        (np.float32, np.float32, np.float32),
        (np.int64, np.float32, np.float64),
        (np.float32, np.float64, np.float64),
    ],
)
def test_precision_is_that_of_the_counts(counts: type, frames: type, expected: type) -> None:
    found = minus_log(np.full((3, 10), 60, counts), np.full(10, 110, frames), 10.0)
    assert found.data.dtype == found.parameters["weights"].dtype == expected


def test_files_are_read_a_few_angles_at_a_time(tmp_path: Path) -> None:
    integrals, beam, dark, counts = scan()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["data"] = counts
        data, _ = both(minus_log(file["data"], beam + dark, dark))
        assert_allclose(data, integrals, rtol=1e-12)
    many = np.broadcast_to(np.full((1, 1, 2**18), 60, np.uint16), (9, 1, 2**18))  # more than one part
    assert_allclose(minus_log(many, 110.0, 10.0).data, np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"projections": np.ones(3)}, "^projections: expected the shape .* got \\(3,\\)$"),
        ({"projections": 1j * np.ones((2, 3))}, "^projections: expected real numbers, got dtype complex128$"),
        ({"projections": np.ma.masked_less(np.eye(3), 1)}, "^projections: expected all values, got masked"),
        ({"flats": np.ones(4)}, "^flats: expected the shape \\(3,\\) of one projection.* got \\(4,\\)$"),
        ({"darks": [0, np.nan, 0]}, "^darks: expected finite values, got NaN or inf in 1 of 3$"),
        ({"gain": 0.0}, "^gain: expected a number > 0, got 0.0$"),
        ({"saturation": "full"}, "^saturation: expected a number or None, got 'full'$"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, says: str) -> None:
    right = {"projections": np.ones((2, 3)), "flats": np.full(3, 2.0), "darks": 0.0}
    with pytest.raises((ValueError, TypeError), match=says):
        minus_log(**right | arguments)


# ---------------------------------------------------------------------- beam hardening
def test_the_polynomial_has_no_constant() -> None:
    y = np.linspace(0, 3, 12).reshape(3, 4)
    assert_allclose(correct_beam_hardening(y, [1.0, 0.2, 0.05]), y + 0.2 * y**2 + 0.05 * y**3, rtol=1e-14)
    assert correct_beam_hardening(y.astype(np.float32), [1.0, 0.1]).dtype == np.float32


def test_coefficients_have_one_axis() -> None:
    with pytest.raises(ValueError, match="^coefficients: expected one for each power, got the shape"):
        correct_beam_hardening(np.ones(3), np.ones((2, 2)))

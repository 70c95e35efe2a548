"""Rotation axes found in closed forms of ellipses that are noisy, off-centre or wider than the detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skinverse.preprocessing import find_rotation_axis

Array = NDArray[Any]


def projections(ellipses: Array, angles: Array, n_detectors: int, offset: float) -> Array:
    """Line integrals of ellipses, each with value, centre, half axes and inclination, about an axis."""
    s = np.arange(n_detectors) - (n_detectors - 1) / 2 - offset
    total = np.zeros((len(angles), n_detectors))
    for value, x, y, a, b, inclination in ellipses:
        turned = (angles - inclination)[:, None]
        width = (a * np.cos(turned)) ** 2 + (b * np.sin(turned)) ** 2
        away = s - (x * np.cos(angles) + y * np.sin(angles))[:, None]
        total += value * 2 * a * b * np.sqrt(np.maximum(width - away**2, 0)) / width
    return total


def drawn(seed: int, radius: float, off_centre: float, noise: float, degrees: Array, n_detectors: int = 160):
    """An ellipse with seven others in it, its noisy projections, their angles and the offset of the axis."""
    rng = np.random.default_rng(seed)
    offset, angles = rng.uniform(-12, 12), np.deg2rad(degrees)
    centre, turn = off_centre * rng.normal(size=2) / np.sqrt(2), rng.uniform(0, np.pi, 8)
    distance, where = radius * rng.uniform(0.1, 0.6, 7), rng.uniform(0, 2 * np.pi, 7)
    x, y = centre[0] + distance * np.cos(where), centre[1] + distance * np.sin(where)
    sizes = radius * rng.uniform(0.05, 0.25, (2, 7))
    inner = np.stack([rng.uniform(-0.5, 0.8, 7), x, y, *sizes, turn[1:]], axis=1)
    outer = [1.0, *centre, radius, radius * rng.uniform(0.8, 1.0), turn[0]]
    sinogram = projections(np.array([outer, *inner]), angles, n_detectors, offset)
    return sinogram + noise * sinogram.max() * rng.normal(size=sinogram.shape), angles, offset


HALF, TURN = np.arange(180.0), np.arange(360.0)
CASES = {
    "half a turn": [(seed, 40, 6, 0.02, HALF) for seed in range(4)],
    "half a turn, noisy": [(seed, 45, 5, 0.05, HALF) for seed in range(4, 6)],
    "half a turn, few views": [(seed, 40, 5, 0.01, HALF[::4]) for seed in range(6, 8)],
    "a turn": [(seed, 40, 6, 0.05, TURN) for seed in range(8, 10)],
    "a turn, few views of odd number": [
        (seed, 40, 6, 0.01, np.linspace(0, 360, 91)[:-1][::2]) for seed in (10,)
    ],
    "a turn, cut off": [(seed, 100, 15, 0.02, TURN) for seed in range(11, 15)],
    "a turn, cut off, noisy": [(seed, 95, 25, 0.05, TURN) for seed in range(15, 17)],
    "two views, cut off": [(seed, 90, 5, 0.005, np.arange(181.0)) for seed in range(17, 19)],
    "short scan, cut off": [(seed, 90, 10, 0.02, np.arange(220.0)) for seed in (19,)],
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{kind} {case[0]}") for kind, cases in CASES.items() for case in cases]
)
def test_the_axis_is_found_within_a_tenth_of_an_element(case) -> None:
    sinogram, angles, offset = drawn(*case)
    assert find_rotation_axis(sinogram, angles) == pytest.approx(offset, abs=0.1)


def test_rows_of_one_detector_have_one_axis() -> None:
    sinogram, angles, offset = drawn(0, 40, 6, 0.0, HALF)
    noise = 0.2 * sinogram.max() * np.random.default_rng(0).normal(size=(50, *sinogram.shape))
    assert find_rotation_axis(sinogram + noise, angles) == pytest.approx(offset, abs=0.1)
    sinogram, angles, offset = drawn(11, 100, 15, 0.0, TURN)
    noise = 0.2 * sinogram.max() * np.random.default_rng(0).normal(size=(8, *sinogram.shape))
    assert find_rotation_axis(sinogram + noise, angles) == pytest.approx(offset, abs=0.2)
    assert find_rotation_axis(sinogram + noise / 2, angles) == pytest.approx(offset, abs=0.1)


@pytest.mark.parametrize("case", [(0, 40, 6, 0.02, HALF), (11, 100, 15, 0.02, TURN)])
def test_units_order_and_turns_of_the_angles_do_not_matter(case) -> None:
    sinogram, angles, _ = drawn(*case)
    found = find_rotation_axis(sinogram, angles)
    order = np.random.default_rng(0).permutation(len(angles))
    assert find_rotation_axis(1e-9 * sinogram[order], angles[order] - 20 * np.pi) == pytest.approx(
        found, abs=2e-3
    )
    assert find_rotation_axis(sinogram.astype(np.float32), angles) == pytest.approx(found, abs=2e-3)
    assert find_rotation_axis(sinogram[:, ::-1], angles) == pytest.approx(-found, abs=2e-3)


def test_what_is_left_of_the_beam_does_not_matter() -> None:
    sinogram, angles, offset = drawn(4, 35, 6, 0.0, HALF)
    assert find_rotation_axis(sinogram + 0.04 * sinogram.max(), angles) == pytest.approx(offset, abs=0.05)


@pytest.mark.parametrize("offset", [-65.0, 50.3])
def test_an_axis_near_the_end_of_the_detector_is_found(offset: float) -> None:
    angles = np.deg2rad(TURN)
    ellipses = np.array([[1, 3, -5, 90, 80, 0.3], [0.5, 20, 30, 10, 12, 0], [0.8, 10, -40, 6, 8, 2.0]])
    sinogram = projections(ellipses, angles, 160, offset)
    noise = 0.01 * sinogram.max() * np.random.default_rng(1).normal(size=sinogram.shape)
    assert find_rotation_axis(sinogram + noise, angles) == pytest.approx(offset, abs=0.1)
    with pytest.raises(ValueError, match="^sinogram: expected an axis within 66 elements of the centre"):
        find_rotation_axis(projections(ellipses, angles, 160, 75.0), angles)


def test_angles_in_degrees_are_noticed() -> None:
    with pytest.warns(
        UserWarning, match="^angles: expected radians, got angles from 0 to 179 that look like"
    ):
        find_rotation_axis(drawn(0, 20, 1, 0.0, HALF)[0], HALF)


CUT_OFF = drawn(11, 100, 15, 0.02, HALF)[0]
WHOLE = drawn(0, 40, 6, 0.02, HALF)[0]
NOISE = np.random.default_rng(0).normal(size=(360, 160))


@pytest.mark.parametrize(
    ("sinogram", "degrees", "says"),
    [
        (CUT_OFF, HALF, "^sinogram: expected opposite views, or the whole object .* cut off"),
        (np.linspace(1, 1.5, 180)[:, None] * WHOLE, HALF, "^sinogram: .* sums differ by more than 5 %"),
        (WHOLE[:9], HALF[:9], "^angles: expected views over about half a turn, got so few that the axis is"),
        (WHOLE[:3], HALF[:3], "^angles: expected at least four different ones, got fewer$"),
        (NOISE, TURN, "^sinogram: expected opposite views that mirror each other, got views that do not$"),
        (0 * NOISE, TURN, "^sinogram: expected an object in the views, got zeros$"),
        (WHOLE, TURN, r"^angles: expected one for each of 180 views, got shape \(360,\)$"),
        (WHOLE[0], HALF, r"^sinogram: expected the shape .* got \(160,\)$"),
        (WHOLE[:, :20], HALF, "^sinogram: expected at least 32 detector elements, got 20$"),
        (np.nan * WHOLE, HALF, "^sinogram: expected finite values, got NaN or inf in 28800 of 28800$"),
    ],
)
def test_an_axis_that_cannot_be_found_is_said_in_a_sentence(
    sinogram: Array, degrees: Array, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        find_rotation_axis(sinogram, np.deg2rad(degrees))

"""Fan beams, flat and curved: geometry against closed forms and ASTRA, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from skinverse import MLEM, FilteredBackProjection, Kaczmarz
from skinverse.operators import as_torch, dot_test, fan_beam, parallel_beam

SOURCE, DETECTOR, PIXEL, SPACING = 120.0, 60.0, 0.5, 0.8  # mm
CENTRE, RADIUS, MU = (6.0, -4.0), 14.0, 0.02
FULL, SHORT = np.deg2rad(np.arange(0, 360, 2.0)), np.linspace(0.3, 0.3 + np.pi + 0.8, 130)


def scan(angles: NDArray, n_detectors: int = 180, size: int = 100, **more: Any) -> Any:
    given = {"spacing": SPACING, "pixel_size": 50 / size} | more
    return fan_beam(
        (size, size), angles, n_detectors, source_distance=SOURCE, detector_distance=DETECTOR, **given
    )


def chords(angles: NDArray, n_detectors: int, *, curved: bool, offset: Any = 0.0) -> NDArray:
    """Line integrals through a disc, from the positions of the source and of each element."""
    theta = angles[:, None]
    s = (np.arange(n_detectors) - (n_detectors - 1) / 2 - np.reshape(offset, (-1, 1))) * SPACING
    length = SOURCE + DETECTOR
    across, along = (np.sin(s / length), np.cos(s / length)) if curved else (s / length, 1.0)
    dx, dy = -along * np.sin(theta) + across * np.cos(theta), along * np.cos(theta) + across * np.sin(theta)
    px, py = SOURCE * np.sin(theta), -SOURCE * np.cos(theta)
    distance = ((CENTRE[0] - px) * dy - (CENTRE[1] - py) * dx) / np.hypot(dx, dy)
    return MU * 2 * np.sqrt(np.clip(RADIUS**2 - distance**2, 0, None))


def disc(size: int, fine: int = 1) -> NDArray:
    """The part of each pixel that the disc covers."""
    n, pixel = size * fine, 50 / size / fine
    u, v = (np.arange(n) - (n - 1) / 2) * pixel, ((n - 1) / 2 - np.arange(n)[:, None]) * pixel
    inside = (u - CENTRE[0]) ** 2 + (v - CENTRE[1]) ** 2 <= RADIUS**2
    return inside.reshape(size, fine, size, fine).mean(axis=(1, 3))


def relative(x: NDArray, expected: NDArray) -> float:
    return float(np.linalg.norm(x - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("offset", [0.0, -17.5])
def test_chords_of_a_disc_converge(curved: bool, offset: float) -> None:
    angles = FULL[::6]
    exact = chords(angles, 180, curved=curved, offset=offset)
    errors = []
    for size in (50, 100, 200):
        A = scan(angles, size=size, curved=curved, offset=offset, dtype="float64")
        errors.append(relative(MU * (A @ disc(size, 6)), exact))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[1] < 0.01
    assert (orders > 0.8).all()  # a disc of pixels is right up to a part of one


@pytest.mark.parametrize("curved", [False, True])
def test_projections_of_a_smooth_object_converge_quadratically(curved: bool) -> None:
    angles, width, errors = FULL[::6], 4.0, []
    for size in (25, 50, 100):
        A = scan(angles, size=size, curved=curved, dtype="float64")
        u, v = (np.arange(size) - (size - 1) / 2) * A.pixel_size, (np.arange(size) - (size - 1) / 2)[:, None]
        squared = (u - CENTRE[0]) ** 2 + (v * A.pixel_size + CENTRE[1]) ** 2
        half_chords = chords(angles, 180, curved=curved) / MU / 2  # of the disc, and so the distances
        distance2 = np.where(half_chords > 0, RADIUS**2 - half_chords**2, np.inf)
        exact = np.sqrt(2 * np.pi) * width * np.exp(-distance2 / (2 * width**2))
        seen = half_chords > 0
        errors.append(relative((A @ np.exp(-squared / (2 * width**2)))[seen], exact[seen]))
    assert (np.log2(np.divide(errors[:-1], errors[1:])) > 1.8).all()


def test_an_offset_of_every_view() -> None:
    offset = np.random.default_rng(0).normal(size=len(FULL))
    A = scan(FULL, offset=offset, dtype="float64")
    assert relative(MU * (A @ disc(100, 6)), chords(FULL, 180, curved=False, offset=offset)) < 0.01


def test_from_far_away_it_is_a_parallel_beam() -> None:
    x = np.random.default_rng(0).random((20, 17))
    A = fan_beam((20, 17), SHORT, 25, source_distance=1e9, detector_distance=1e9, dtype="float64")
    assert_allclose(A.spacing, 2)  # a pixel at the axis
    assert_allclose(A @ x, parallel_beam((20, 17), SHORT, 25, dtype="float64") @ x, atol=1e-5)


def test_agreement_with_astra() -> None:
    astra = pytest.importorskip("astra")
    n, x = 64, np.random.default_rng(0).random((64, 64)).astype(np.float32)
    x = np.pad((x[8:-8, 8:-8] + x[9:-7, 8:-8] + x[8:-8, 9:-7]) / 3, 8)
    rays = astra.create_proj_geom("fanflat", 1.5, 90, FULL, 100.0, 50.0)
    projector = astra.create_projector("line_fanflat", rays, astra.create_vol_geom(n, n))
    stored, theirs = astra.create_sino(x, projector)
    astra.data2d.delete(stored)
    astra.projector.delete(projector)
    A = fan_beam((n, n), FULL, 90, source_distance=100, detector_distance=50)
    assert A.spacing == 1.5
    assert relative(A @ x, theirs) < 0.02  # theirs is the exact length in each pixel


@pytest.mark.parametrize("curved", [False, True])
def test_dot_test(curved: bool) -> None:
    dot_test(scan(FULL[::20], 30, 20, curved=curved))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize(
    ("angles", "n_detectors", "offset"),
    [
        (FULL, 180, 0.0),
        (SHORT, 180, 0.0),
        (-SHORT[::-1], 180, 2.2),
        (FULL * 3, 180, 0.0),  # every third view of three turns is one of the first turn again
        (FULL, 110, -30.0),  # at one side of the axis
        (FULL, 110, 30.0),
        (FULL, 60, 0.0),  # the object is wider than the detector
        (FULL, 180, np.sin(FULL)),
    ],
)
def test_the_attenuation_of_a_disc_is_recovered(
    angles: NDArray, n_detectors: int, offset: Any, curved: bool
) -> None:
    A = scan(angles, n_detectors, curved=curved, offset=offset)
    y = chords(angles, n_detectors, curved=curved, offset=offset).astype(np.float32)
    x = FilteredBackProjection(A).fit().predict(y[None])[0]
    u, v = (np.arange(100) - 49.5) * PIXEL, (49.5 - np.arange(100)[:, None]) * PIXEL
    inside = np.hypot(u - CENTRE[0], v - CENTRE[1]) < 0.8 * RADIUS
    assert_allclose(x[inside].mean(), MU, rtol=0.01)
    assert_allclose(x[inside], MU, rtol=0.05)
    assert relative(x, MU * disc(100, 4)) < 0.15


def test_the_views_of_several_scans_are_one() -> None:
    A = scan(FULL, 60, 24, spacing=2.4, dtype="float64")
    parts = [scan(FULL[k::2], 60, 24, spacing=2.4, dtype="float64") for k in (0, 1)]
    y = np.random.default_rng(0).random((1, *A.dimsd))
    both = np.concatenate([y[:, k::2] for k in (0, 1)], axis=1)
    x = FilteredBackProjection(A).fit().predict(y)
    assert_allclose(FilteredBackProjection(pylops.VStack(parts)).fit().predict(both.reshape(1, -1)), x)
    some = np.r_[0:50, 55:180]
    masked = np.ma.array(y, mask=~np.isin(np.arange(180), some)[:, None] & np.ones(60, bool))
    alone = scan(FULL[some], 60, 24, spacing=2.4, dtype="float64")
    expected = FilteredBackProjection(alone).fit().predict(y[:, some])
    assert_allclose(FilteredBackProjection(A).fit().predict(masked), expected)


def test_methods_that_use_blocks_of_views() -> None:
    A = scan(FULL[::5], 60, 24, spacing=2.4)
    x = disc(24, 4)[None].astype(np.float32)
    y = np.asarray([A @ x[0]])
    for method in (Kaczmarz(A, max_steps=20), MLEM(A, n_subsets=4, max_steps=20)):
        assert relative(method.fit().predict(y), x) < 0.2


def test_it_can_be_pickled() -> None:
    A = scan(FULL[::9], 20, 10, curved=True, offset=1.5)
    B = pickle.loads(pickle.dumps(A))
    names = ("source_distance", "detector_distance", "curved", "spacing", "pixel_size", "n_detectors")
    assert [getattr(B, name) for name in names] == [SOURCE, DETECTOR, True, SPACING, 5.0, 20]
    x = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_torch(A)(x), as_torch(B)(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_distance": 5.0}, "source_distance: .*5.65685.*inside the object, got 5"),
        ({"source_distance": -1.0}, "source_distance: .*positive length, got -1"),
        ({"detector_distance": -1.0}, "detector_distance: .*zero or more, got -1"),
        ({"offset": [1.0, 2.0]}, r"offset: .*each of 1 views, got \(2,\)"),
        ({"offset": np.nan}, "offset: .*NaN"),
        ({"spacing": 0.0}, "spacing: .*0.0"),
        ({"curved": True, "spacing": 30.0}, "spacing: .*less than a right angle.*9 elements of 30"),
        ({"n_detectors": 2.5}, "n_detectors: .*2.5"),
        ({"dims": (8, 8, 8)}, "dims: .*height and width"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given = {"dims": (8, 8), "angles": [0.0], "n_detectors": 9, "source_distance": 20, "detector_distance": 5}
    with pytest.raises(ValueError, match=message):
        fan_beam(**(given | change))

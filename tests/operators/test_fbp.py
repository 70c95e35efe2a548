"""Filtered back-projection: attenuations recovered, angular weights, the published benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skinverse.datasets import shepp_logan
from skinverse.operators import as_torch, parallel_beam
from skinverse.operators._fbp import FilteredBackProjectionMap
from skinverse.operators._view_weights import angular_weights, ray_weights

FILTERS = ["ramp", "shepp-logan", "cosine", "hamming", "hann"]


def centres(n: int, spacing: float = 1.0) -> NDArray:
    return (np.arange(n) - (n - 1) / 2) * spacing


def disc(
    angles: NDArray, n_detectors: int, spacing: float, radius: float, centre: tuple[float, float]
) -> NDArray:
    """Exact data of a disc of attenuation 0.02."""
    shadow = centre[0] * np.cos(angles) + centre[1] * np.sin(angles)
    distance = centres(n_detectors, spacing)[None, :] - shadow[:, None]
    return 0.04 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(
    ("dims", "turn", "n_angles", "n_detectors", "pixel_size", "spacing"),
    [
        ((64, 64), np.pi, 120, 95, 1.0, 1.0),
        ((65, 65), 2 * np.pi, 240, 95, 2.0, 2.0),
        ((65, 50), 2 * np.pi, 161, 201, 0.5, 0.25),
        ((51, 70), -np.pi, 120, 70, 0.8, 1.1),
    ],
)
def test_the_attenuation_of_a_disc_is_recovered(
    filter: str,
    dims: tuple[int, int],
    turn: float,
    n_angles: int,
    n_detectors: int,
    pixel_size: float,
    spacing: float,
) -> None:
    angles = 0.01 + np.arange(n_angles) * turn / n_angles
    radius, centre = 14 * pixel_size, (5 * pixel_size, -3 * pixel_size)
    A = parallel_beam(dims, angles, n_detectors, pixel_size=pixel_size, spacing=spacing)
    y = torch.from_numpy(disc(angles, n_detectors, spacing, radius, centre))[None]
    x = as_torch(A).filtered_adjoint(y, filter)[0].numpy()
    u, v = centres(dims[1], pixel_size)[None, :], -centres(dims[0], pixel_size)[:, None]
    distance = np.hypot(u - centre[0], v - centre[1])
    assert_allclose(x[distance < 0.8 * radius], 0.02, rtol=0.02)
    assert abs(x[distance > 1.3 * radius].mean()) < 0.001 * 0.02


def test_nothing_wraps_around_and_the_mean_is_kept() -> None:
    """A disc that fills the detector looks the same on one eight times as long."""
    angles = np.arange(180) * np.pi / 180

    def image(n_detectors: int) -> NDArray:
        y = torch.from_numpy(disc(angles, n_detectors, 1.0, 59.2, (0.0, 0.0)))[None]
        return as_torch(parallel_beam((128, 128), angles, n_detectors)).filtered_adjoint(y)[0].numpy()

    distance = np.hypot(centres(128)[None, :], centres(128)[:, None])
    assert_allclose(image(128)[distance < 63], image(1024)[distance < 63], atol=1e-12)
    for ring in (distance < 20, (distance > 45) & (distance < 54)):
        assert_allclose(image(128)[ring].mean(), 0.02, rtol=3e-4)


def test_the_published_benchmark() -> None:
    """Adler and Oktem, "Learned primal-dual reconstruction", table I: 19.75 dB, SSIM 0.597."""
    angles, spacing = (np.arange(30) + 0.5) * np.pi / 30, 2 * 90.5097 / 183
    A = as_torch(parallel_beam((128, 128), angles, 183, spacing=spacing))
    truth = shepp_logan(128)
    clean = A(torch.from_numpy(truth)[None])
    noise = np.stack([np.random.default_rng(seed).normal(size=(30, 183)) for seed in range(5)])
    y = clean + 0.05 * clean.abs().mean() * torch.from_numpy(noise).float()
    images = A.filtered_adjoint(y, "hann").numpy()
    assert np.mean([peak_signal_noise_ratio(truth, x, data_range=1) for x in images]) > 19.7
    assert np.mean([structural_similarity(truth, x, data_range=2) for x in images]) > 0.6


@pytest.mark.draws_globally  # gradcheck does
@pytest.mark.parametrize("filter", FILTERS)
def test_it_is_linear_and_its_adjoint_exact(filter: str) -> None:
    scan = parallel_beam((9, 12), [0.1, 0.9, 2.2, 4.0], 7, spacing=1.3)._rows.scan
    inverse = FilteredBackProjectionMap(scan, ray_weights(scan), filter)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 9, 12, generator=generator, dtype=torch.float64)
    assert_allclose((inverse(y) * x).sum().item(), (y * inverse.adjoint(x)).sum().item(), rtol=1e-12)
    torch.autograd.gradcheck(inverse, y)
    torch.autograd.gradgradcheck(lambda y: inverse(y) ** 3, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept_and_images_are_independent(dtype: torch.dtype) -> None:
    A = as_torch(parallel_beam((9, 12), [0.1, 0.9, 2.2], 17))
    y = torch.rand(3, 3, 17, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x = A.filtered_adjoint(y, "hann")
    assert x.dtype == dtype
    torch.testing.assert_close(A.filtered_adjoint(y[1:2], "hann"), x[1:2])


def test_unknown_filters_are_named() -> None:
    A = as_torch(parallel_beam((4, 4), [0.1], 5))
    with pytest.raises(ValueError, match="filter.*'hann'.*'han'"):
        A.filtered_adjoint(torch.zeros(1, 1, 5), "han")


# ---------------------------------------------------------------- angular weights
@given(n=st.integers(1, 40), start=st.floats(-3, 3), turns=st.integers(1, 2))
def test_even_angles_have_even_weights(n: int, start: float, turns: int) -> None:
    angles = start + np.arange(n) * turns * np.pi / n
    covered = np.unique(np.round(np.mod(angles - start + 1e-9, np.pi), 6)).size
    assert_allclose(angular_weights(angles).sum(), np.pi)
    if turns == 1 or covered == n:
        assert_allclose(angular_weights(angles), np.pi / n)


@given(st.permutations(range(9)))
def test_weights_follow_their_angles(order: list[int]) -> None:
    angles = np.array([0.0, 0.1, 0.3, 0.7, 1.1, 1.5, 1.9, 2.4, 2.8])
    assert_allclose(angular_weights(angles[order]), angular_weights(angles)[order])
    assert_allclose(angular_weights(angles)[1:-1], (angles[2:] - angles[:-2]) / 2)


def test_a_missing_wedge_does_not_weigh_on_its_rims() -> None:
    angles = np.deg2rad(np.arange(0, 120.5, 1))
    assert_allclose(angular_weights(angles), np.pi / 121)


# ---------------------------------------------------------------- scans that are not centred, or too narrow
FULL, HALF = np.deg2rad(np.arange(0, 360, 1.5)), np.deg2rad(np.arange(0, 180, 1.5))


@pytest.mark.parametrize(
    ("angles", "n_detectors", "offset", "radius", "centre"),
    [
        (FULL, 90, -32.0, 30.0, (20.0, -15.0)),  # a half-detector scan
        (FULL, 90, 32.0, 30.0, (20.0, -15.0)),
        (FULL[::-1] * 3, 90, 32.0, 30.0, (20.0, -15.0)),
        (FULL, 120, 2.5, 30.0, (10.0, -15.0)),
        (HALF, 120, -7.3, 30.0, (10.0, -15.0)),
        (FULL, 120, np.cos(3 * FULL), 30.0, (10.0, -15.0)),
        (HALF, 71, 0.0, 50.0, (3.0, 2.0)),  # sees 70 % of the disc
        (FULL, 80, -32.0, 50.0, (3.0, 2.0)),  # a half-detector scan that does not see all of it
        (np.r_[HALF, np.pi + HALF[:20]], 120, 1.0, 30.0, (10.0, -15.0)),
    ],
)
def test_a_disc_seen_by_a_detector_that_is_moved_or_short(
    angles: NDArray, n_detectors: int, offset: Any, radius: float, centre: tuple[float, float]
) -> None:
    pixel = 0.5
    A = parallel_beam((112, 112), angles, n_detectors, offset=offset, pixel_size=pixel, dtype="float64")
    theta, s = A._rows.scan.lines()
    shadow = pixel * (centre[0] * np.cos(theta) + centre[1] * np.sin(theta))
    y = 0.04 * np.sqrt(np.clip((pixel * radius) ** 2 - (s - shadow) ** 2, 0, None))
    x = as_torch(A).filtered_adjoint(torch.from_numpy(y)[None])[0].numpy()
    u, v = centres(112)[None, :], -centres(112)[:, None]
    seen = np.hypot(u - centre[0], v - centre[1]) < 0.8 * radius
    if radius == 50:
        seen &= np.hypot(u, v) < 25
    assert_allclose(x[seen].mean(), 0.02, rtol=0.005)
    assert_allclose(x[seen], 0.02, rtol=0.04)


def test_noise_at_the_ends_is_no_object() -> None:
    """What is measured at the ends of the detector counts for an object beyond them if it is large."""
    y = disc(HALF, 71, 1.0, 20.0, (3.0, 2.0))
    noisy = y + 0.02 * y.max() * np.random.default_rng(0).normal(size=y.shape)
    short, long = (as_torch(parallel_beam((112, 112), HALF, n)) for n in (71, 159))
    x = short.filtered_adjoint(torch.from_numpy(noisy)[None])
    padded = long.filtered_adjoint(torch.from_numpy(np.pad(noisy, ((0, 0), (44, 44))))[None])
    torch.testing.assert_close(x, padded)


@pytest.mark.draws_globally  # gradcheck does
def test_truncated_views_scale_with_their_units_and_have_derivatives() -> None:
    A = as_torch(parallel_beam((40, 40), HALF[::10], 24, dtype="float64"))
    y = torch.from_numpy(disc(HALF[::10], 24, 1.0, 18.0, (1.0, 0.0)))[None]
    scale = 2.0**-30  # by which nothing is rounded
    scaled = scale * A.filtered_adjoint(y)
    torch.testing.assert_close(A.filtered_adjoint(scale * y), scaled, rtol=1e-12, atol=0)
    turned = A.filtered_adjoint(1j * y)
    torch.testing.assert_close(turned, 1j * A.filtered_adjoint(y).to(turned.dtype))
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(A.filtered_adjoint(y).sum(), y)
    along = (gradient * y).sum()  # homogeneous of degree one
    torch.testing.assert_close(along, A.filtered_adjoint(y).sum())


@pytest.mark.parametrize("offset", [0.0, 3.0, -20.0])
def test_rays_of_one_line_have_weights_that_sum_to_one(offset: float) -> None:
    scan = parallel_beam((64, 64), FULL, 60, offset=offset)._rows.scan
    weights = ray_weights(scan) / angular_weights(FULL, 2 * np.pi)[:, None]
    place = scan.detectors[0]
    for element in np.flatnonzero(np.isclose(np.abs(place[:, None] + place), 0).any(1)):
        behind = np.argmin(abs(place + place[element]))
        assert_allclose(weights[0, element] + weights[120, behind], 1)

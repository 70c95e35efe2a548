"""Coil maps from measured data, and coils with white noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skinverse import Tikhonov
from skinverse.datasets import shepp_logan
from skinverse.metrics import psnr
from skinverse.operators import estimate_coil_maps, fourier_sampling, whiten_coils


def smooth_maps(n_coils: int, height: int, width: int) -> NDArray:
    """Coils around the image, with a phase of their own, and a sum of squares of one."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angles = 2 * np.pi * np.arange(n_coils)[:, None, None] / n_coils
    down, right = np.sin(angles), np.cos(angles)
    maps = np.exp(-((x - 1.3 * right) ** 2 + (y - 1.3 * down) ** 2) / 1.5)
    maps = maps * np.exp(1j * (1.5 * (right * x + down * y) + angles))
    return maps / np.linalg.norm(maps, axis=0)


SHAPE = (64, 60)
PHANTOM = np.asarray(shepp_logan(64))[:, 2:62]
MAPS = smooth_maps(4, *SHAPE)
INSIDE = PHANTOM > 0.05


def measured(*, centred: bool = False, mask: NDArray | None = None, noise: float = 0.0) -> NDArray:
    everything = np.ones(SHAPE, bool) if mask is None else mask
    rng = np.random.default_rng(0)
    exact = fourier_sampling(everything, MAPS, centred=centred) @ PHANTOM.astype(complex)
    return exact + noise * everything * (rng.normal(size=exact.shape) + 1j * rng.normal(size=exact.shape))


def misalignment(found: NDArray, maps: NDArray) -> float:
    """Sine of the angle between two vectors of sensitivities, root mean square over the object."""
    cosine = np.abs((found.conj() * maps).sum(0)) / np.linalg.norm(maps, axis=0)
    return float(np.sqrt((1 - np.clip(cosine[INSIDE], 0, 1) ** 2).mean()))


# ---------------------------------------------------------------- maps
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.01), (0.003, 0.02)])
def test_maps_are_those_of_the_coils(centred: bool, noise: float, tolerance: float) -> None:
    found = estimate_coil_maps(measured(centred=centred, noise=noise), centred=centred)
    assert found.shape == MAPS.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=0)[INSIDE], 1, atol=1e-12)
    assert misalignment(found, MAPS) < tolerance


def test_only_the_centre_counts() -> None:
    kspace = measured()
    other = np.full_like(kspace, np.nan)
    other[:, 20:44, 18:42] = kspace[:, 20:44, 18:42]
    np.testing.assert_array_equal(estimate_coil_maps(other), estimate_coil_maps(kspace))


def test_maps_neither_know_units_nor_the_order_of_coils() -> None:
    kspace = measured(noise=0.003)
    expected = estimate_coil_maps(kspace)
    np.testing.assert_allclose(estimate_coil_maps(1e9j * kspace), expected, atol=1e-9)
    np.testing.assert_allclose(estimate_coil_maps(kspace[::-1]), expected[::-1], atol=1e-9)
    single = estimate_coil_maps(kspace.astype(np.complex64))
    assert single.dtype == np.complex64
    np.testing.assert_allclose(single, expected, atol=1e-3)


def test_the_phase_of_maps_is_smooth() -> None:
    found = estimate_coil_maps(measured())
    both = INSIDE[:, 1:] & INSIDE[:, :-1]
    steps = np.abs(found[:, :, 1:] - found[:, :, :-1])[:, both]
    assert steps.max() < 0.2


def test_nothing_is_known_outside_of_the_object() -> None:
    found = estimate_coil_maps(measured(noise=0.003), crop=0.98)
    corner = np.linalg.norm(found[:, :4, :4], axis=0)
    assert not corner.any()
    assert np.linalg.norm(estimate_coil_maps(measured(noise=0.003), crop=0.0)[:, :4, :4], axis=0).all()


def test_undersampled_data_are_reconstructed_with_estimated_maps() -> None:
    columns = (np.arange(60) % 3 == 0) | (np.abs(np.arange(60) - 30) <= 12)
    mask = np.tile(columns, (64, 1))
    kspace = measured(centred=True, mask=mask, noise=0.001)
    maps = estimate_coil_maps(kspace, centred=True)
    known, found = (
        np.abs(Tikhonov(fourier_sampling(columns, m, centred=True), lam=1e-4).fit().predict(kspace[None]))
        for m in (MAPS, maps)
    )
    truth = PHANTOM[None]
    assert psnr(truth, found)[0] > psnr(truth, known)[0] - 1.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: estimate_coil_maps(y[0]), r"n_coils, height, width.*\(64, 60\)"),
        (lambda y: estimate_coil_maps(y, n_calibration=0), "n_calibration.*positive.*0"),
        (lambda y: estimate_coil_maps(y, n_calibration=10), "kernel_size.*1 to 5.*6"),
        (lambda y: estimate_coil_maps(y, kernel_size=0), "kernel_size.*0"),
        (lambda y: estimate_coil_maps(y, crop=2.0), "crop.*2.0"),
        (lambda y: estimate_coil_maps(y * (np.arange(60) % 2)), "central square of 24 x 24.*288.*n_calib"),
    ],
)
def test_bad_data_are_named(make: Callable[[NDArray], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(measured())


# ---------------------------------------------------------------- whitening
def correlated(*shape: int) -> NDArray:
    """Noise of coils that are as different as 1 to 1000, and correlated."""
    rng = np.random.default_rng(3)
    mixing = (rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))) * np.array([1, 1e-3, 10, 1])[:, None]
    samples = np.random.default_rng(len(shape)).normal(size=(2, 4, *shape))
    return np.tensordot(mixing, samples[0] + 1j * samples[1], 1)


def test_noise_becomes_white_with_a_standard_deviation_of_one() -> None:
    scan, noise = correlated(20000), correlated(90, 90)
    white = whiten_coils(noise, scan).reshape(4, -1)
    np.testing.assert_allclose(white @ white.conj().T / (2 * white.shape[1]), np.eye(4), atol=0.05)
    assert white.real.std() == pytest.approx(1, abs=0.02)
    assert white.imag.std() == pytest.approx(1, abs=0.02)


def test_whitened_maps_explain_whitened_data() -> None:
    scan, mask = correlated(500), np.ones(SHAPE, bool)
    white = fourier_sampling(mask, whiten_coils(MAPS, scan)) @ PHANTOM.astype(complex)
    np.testing.assert_allclose(white, whiten_coils(measured(), scan), atol=1e-9 * np.abs(white).max())


def test_slices_are_whitened_alike() -> None:
    scan, slices = correlated(500), np.stack([measured(), 2 * measured()]).astype(np.complex64)
    found = whiten_coils(slices, scan, axis=1)
    assert found.dtype == np.complex64
    for one, expected in zip(found, slices, strict=True):
        np.testing.assert_array_equal(one, whiten_coils(expected, scan))


def test_a_whitened_problem_weighs_coils_by_their_noise() -> None:
    scan = correlated(5000)
    kspace = measured()[None] + 0.02 * correlated(*SHAPE)[None]
    plain = Tikhonov(fourier_sampling(np.ones(SHAPE, bool), MAPS), lam=1e-3).fit().predict(kspace)
    white = fourier_sampling(np.ones(SHAPE, bool), whiten_coils(MAPS, 0.02 * scan))
    better = Tikhonov(white, lam=1e-3).fit().predict(whiten_coils(kspace, 0.02 * scan, axis=1))
    assert psnr(PHANTOM[None], better.real)[0] > psnr(PHANTOM[None], plain.real)[0] + 10


@pytest.mark.parametrize(
    ("data", "scan", "message"),
    [
        (np.ones((3, 5)), np.ones((4, 9)), r"noise.*\(4, 9\) and \(3, 5\)"),
        (np.ones((2, 5)), np.ones((2, 9)), "expected finite complex samples, got float64"),
        (np.ones((2, 5)), np.full((2, 9), np.nan + 0j), "expected finite complex samples"),
        (
            np.ones((2, 5)),
            np.ones((2, 9), complex),
            "at least 2 independent samples of 2 coils.*9 samples of rank 1",
        ),
        (np.ones((2, 5)), np.zeros((2, 9), complex), "rank 0"),
    ],
)
def test_scans_that_tell_nothing_are_refused(data: NDArray, scan: NDArray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whiten_coils(data, scan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_calibration": 8.0}, "n_calibration: expected a whole number, got 8.0"),
        ({"n_calibration": None}, "n_calibration: expected a whole number, got None"),
        ({"kernel_size": 2.5}, "kernel_size: expected a whole number, got 2.5"),
    ],
)
def test_sizes_that_are_no_whole_numbers_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_coil_maps(np.ones((2, 16, 16), complex), **options)


@pytest.mark.parametrize("maps", [np.zeros((0, 4, 4)), np.full((1, 4, 4), "a")])
def test_maps_that_are_none_are_refused(maps: NDArray) -> None:
    with pytest.raises(ValueError, match="coil_maps must be numbers of one coil or more"):
        fourier_sampling(np.ones((4, 4), bool), maps)

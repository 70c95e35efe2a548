"""Noise levels that are estimated from data, against those that the data were drawn with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skinverse.datasets import load_photographs
from skinverse.noise import Gaussian, PoissonGaussian, estimate

CAMERA = PoissonGaussian(gain=0.8, std=3.0, offset=100.0)


def photographs(n: int = 4) -> np.ndarray:
    return load_photographs(128, n_patches=n, random_state=0)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_white_noise_of_photographs(std: float) -> None:
    assert_allclose(estimate(Gaussian(std).sample(photographs(), 0)).std, std, rtol=0.1)


def test_white_noise_in_any_units_and_of_complex_data() -> None:
    noisy = Gaussian(0.05).sample(photographs(), 0)
    assert_allclose(estimate(1e4 * noisy).std, 1e4 * estimate(noisy).std, rtol=1e-5)
    turned = Gaussian(0.05).sample(photographs() * np.exp(0.4j), 0)
    assert_allclose(estimate(turned).std, 0.05, rtol=0.1)  # that of each part
    coloured = Gaussian(0.05).sample(np.stack([photographs()] * 3, -1), 0)
    assert_allclose(estimate(coloured, channel_axis=-1).std, 0.05, rtol=0.1)


def flat_pairs() -> np.ndarray:
    return CAMERA.sample(np.tile(np.array([20.0, 100, 400, 900])[:, None, None, None], (1, 2, 64, 64)), 0)


def test_a_camera_from_flat_pairs_and_dark_frames() -> None:
    found = estimate(flat_pairs(), model="camera", dark=CAMERA.sample(np.zeros((6, 64, 64)), 1))
    assert_allclose([found.gain, found.std, found.offset], [0.8, 3.0, 100.0], rtol=0.05)


def test_what_both_exposures_share_is_no_noise() -> None:
    uneven = np.linspace(0.5, 1.5, 64) * np.ones((64, 1))
    pairs = CAMERA.sample(np.array([100.0, 400, 900])[:, None, None, None] * np.tile(uneven, (3, 2, 1, 1)), 0)
    assert_allclose(estimate(pairs, model="camera").gain, 0.8, rtol=0.06)


@pytest.mark.parametrize("dark", [True, False])
def test_a_camera_from_one_photograph(dark: bool) -> None:
    image = CAMERA.sample(1000 * load_photographs(256, n_patches=1, random_state=1), 0)
    frames = CAMERA.sample(np.zeros((2, 64, 64)), 1) if dark else None
    found = estimate(image, model="camera", dark=frames)
    assert_allclose(found.gain, 0.8, rtol=0.15)
    # Without dark frames only the line of variances is known.
    bright = np.full((1, 1), 600.0)
    truth = CAMERA.variance(bright - 100)
    assert_allclose(found.variance(bright - found.offset), truth, rtol=0.15)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: expected one of \['gaussian', 'camera'\], got 'poisson'"):
        estimate(photographs(), model="poisson")
    with pytest.raises(ValueError, match="expected images of different brightness"):
        estimate(np.ones((2, 2, 32, 32)), model="camera")

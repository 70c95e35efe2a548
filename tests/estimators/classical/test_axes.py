"""Volumes, and images with channels: which axes of an image are space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
import pywt
from numpy.testing import assert_allclose
from skimage.restoration import denoise_tv_chambolle

from skinverse import Tikhonov, TotalGeneralizedVariationRecon, TotalVariationRecon, WaveletRecon

VARIATIONAL = [TotalVariationRecon, TotalGeneralizedVariationRecon, WaveletRecon]
TIGHT: dict[str, Any] = {"tol": 1e-7, "max_steps": 20000}


def noisy(*shape: int) -> np.ndarray:
    """Images with edges along their first axis."""
    rng = np.random.default_rng(0)
    return np.round(rng.normal(size=shape).cumsum(1)) + 0.3 * rng.normal(size=shape)


@pytest.mark.parametrize("shape", [(9,), (6, 7), (6, 7, 5), (3, 4, 3, 5)])
def test_total_variation_has_as_many_dimensions_as_the_image(shape: tuple[int, ...]) -> None:
    y = noisy(2, *shape)
    expected = [denoise_tv_chambolle(image, weight=0.3, eps=1e-14, max_num_iter=20000) for image in y]
    x = TotalVariationRecon(pylops.Identity(shape), lam=0.3, **TIGHT).fit().predict(y)
    assert_allclose(x, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(8, 8, 8), (4, 8, 12)])
def test_wavelets_have_as_many_dimensions_as_the_image(shape: tuple[int, ...]) -> None:
    """Haar, of which nobody needs to continue the image."""
    y = noisy(1, *shape)
    coefficients = pywt.wavedecn(y[0], "haar", level=2, mode="periodization")
    shrunk = [{k: pywt.threshold(c, 0.3) for k, c in level.items()} for level in coefficients[1:]]
    expected = pywt.waverecn([coefficients[0], *shrunk], "haar", mode="periodization")
    x = WaveletRecon(lam=0.3, wavelet_order=1, n_levels=2, **TIGHT).fit().predict(y)
    assert_allclose(x[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", [TotalVariationRecon, TotalGeneralizedVariationRecon])
def test_a_volume_of_equal_slices_is_its_slice(method: type) -> None:
    y = noisy(1, 6, 7)
    slices = method(lam=0.3, **TIGHT).fit().predict(y)
    volume = method(lam=0.3, **TIGHT).fit().predict(np.repeat(y[:, None], 4, axis=1))
    assert_allclose(volume, np.repeat(slices[:, None], 4, axis=1), atol=2e-4)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_turning_a_volume_turns_its_reconstruction(method: type) -> None:
    y, order = noisy(1, 6, 8, 5), (0, 3, 1, 2)
    model = method(lam=0.3, **TIGHT).fit()
    assert_allclose(model.predict(y.transpose(order)), model.predict(y).transpose(order), atol=2e-4)


def test_generalised_variation_keeps_a_slope_in_depth() -> None:
    slope = np.broadcast_to(np.linspace(0, 1, 8)[:, None, None], (1, 8, 6, 7))
    change = [
        np.abs(method(lam=0.5).fit().predict(slope) - slope).max()
        for method in (TotalVariationRecon, TotalGeneralizedVariationRecon)
    ]
    assert change[0] > 0.1 > 10 * change[1]


@pytest.mark.parametrize("method", VARIATIONAL)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_channels_are_treated_one_by_one_wherever_they_are(method: type, axis: int) -> None:
    y = noisy(2, 3, 6, 8)
    alone = method(lam=0.3, **TIGHT).fit().predict(y.reshape(6, 6, 8)).reshape(y.shape)
    place = axis % 3 + 1
    x = method(lam=0.3, channel_axis=axis, **TIGHT).fit().predict(np.moveaxis(y, 1, place))
    assert_allclose(np.moveaxis(x, place, 1), alone, atol=2e-4)


@pytest.mark.parametrize("method", VARIATIONAL)
def test_channels_of_an_operator_and_of_volumes(method: type) -> None:
    """Mixtures of each row of volumes in two channels, which are first or last."""
    y = np.random.default_rng(1).normal(size=(1, 5, 2, 3, 4))
    alone = (
        method(rowwise((3, 4, 5)), lam=0.1, tol=1e-5, max_steps=20000).fit().predict(np.moveaxis(y[0], 1, 0))
    )
    first = rowwise((2, 3, 4, 5))
    x = method(first, lam=0.1, channel_axis=0, tol=1e-5, max_steps=20000).fit().predict(y)
    last = first @ pylops.Transpose((3, 4, 5, 2), axes=(3, 0, 1, 2))
    moved = method(last, lam=0.1, channel_axis=-1, tol=1e-5, max_steps=20000).fit().predict(y)
    assert_allclose(x[0], alone, atol=2e-3)
    assert_allclose(np.moveaxis(moved, -1, 1), x, atol=2e-3)


def rowwise(dims: tuple[int, ...]) -> pylops.LinearOperator:
    matrix = np.eye(5) + 0.1 * np.random.default_rng(2).normal(size=(5, 5))
    return pylops.MatrixMult(matrix, otherdims=dims[:-1]) @ pylops.Transpose(
        dims, axes=(len(dims) - 1, *range(len(dims) - 1))
    )


@pytest.mark.parametrize("method", [Tikhonov, *VARIATIONAL])
@pytest.mark.parametrize(
    ("axis", "shape", "says"),
    [
        (3, (2, 4, 5, 3), r"channel_axis: expected an axis of one image .* got 3 for .*\(4, 5, 3\)"),
        (-4, (2, 4, 5, 3), "got -4"),
        (0, (2, 7), r"got 0 for images of shape \(7,\)"),
        (1.0, (2, 4, 5, 3), "channel_axis"),
        (True, (2, 4, 5, 3), "channel_axis"),
    ],
)
def test_channels_that_are_not_there_are_refused(method: type, axis: Any, shape: Any, says: str) -> None:
    y = np.ones(shape)
    with pytest.raises(ValueError, match=says):
        method(channel_axis=axis).fit(y, y)
    with pytest.raises(ValueError, match=says):
        method().fit(y, y).set_params(channel_axis=axis).predict(y)


def test_one_colour_picture_is_not_a_set_of_signals() -> None:
    model = TotalVariationRecon(channel_axis=-1).fit()
    with pytest.raises(ValueError, match=r"one image is Y_meas\[None\]"):
        model.predict(np.ones((8, 9, 3)))
    assert model.predict(np.ones((1, 8, 9, 3))).shape == (1, 8, 9, 3)

"""Metrics against scikit-image and closed forms; scorers in a search."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from skinverse import Tikhonov
from skinverse.datasets import make_problem
from skinverse.metrics import (
    ReconstructionScorer,
    neg_nmse_scorer,
    nmse,
    psnr,
    psnr_scorer,
    ssim,
    ssim_scorer,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 16, 20)) * np.array([1, 2, 5, 0.1])[:, None, None]
X_HAT = X + 0.1 * RNG.normal(size=X.shape)


class Scale(BaseEstimator):
    """Multiplies the data: right where the factor is the inverse of theirs."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def fit(self, X_true, Y_meas):
        return self

    def predict(self, Y_meas):
        return self.factor * Y_meas


@pytest.mark.parametrize("data_range", [None, 2.0, np.array([1.0, 2.0, 3.0, 4.0])])
def test_psnr_equals_scikit_image_image_by_image(data_range) -> None:
    ranges = np.ptp(X, axis=(1, 2)) if data_range is None else np.broadcast_to(data_range, 4)
    expected = [peak_signal_noise_ratio(a, b, data_range=r) for a, b, r in zip(X, X_HAT, ranges, strict=True)]
    assert_allclose(psnr(X, X_HAT, data_range=data_range), expected, rtol=1e-12)


@pytest.mark.parametrize("data_range", [None, 2.0])
def test_ssim_equals_scikit_image_image_by_image(data_range) -> None:
    ranges = np.ptp(X, axis=(1, 2)) if data_range is None else np.full(4, data_range)
    expected = [structural_similarity(a, b, data_range=r) for a, b, r in zip(X, X_HAT, ranges, strict=True)]
    assert_allclose(ssim(X, X_HAT, data_range=data_range), expected, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 2, -1, None])
def test_ssim_of_channels_and_of_volumes_is_that_of_scikit_image(axis: int | None) -> None:
    x, x_hat = X.reshape(2, 2, 16, 20), X_HAT.reshape(2, 2, 16, 20)
    if axis is None:
        x, x_hat = (np.concatenate([a] * 4, 1) for a in (x, x_hat))
    else:
        x, x_hat = (np.moveaxis(a, 1, axis % 3 + 1) for a in (x, x_hat))
    expected = [
        structural_similarity(a, b, data_range=np.ptp(a), channel_axis=axis)
        for a, b in zip(x, x_hat, strict=True)
    ]
    assert_allclose(ssim(x, x_hat, channel_axis=axis), expected, rtol=1e-12)


@pytest.mark.parametrize(("x", "axis"), [(X, 2), (X, -3), (X.reshape(4, -1), 0)])
def test_channels_that_are_not_there_are_refused(x: np.ndarray, axis: int) -> None:
    with pytest.raises(ValueError, match=f"channel_axis: expected an axis of one image .* got {axis}"):
        ssim(x, x, channel_axis=axis)


def test_scorers_know_the_channels_of_the_estimator() -> None:
    x = np.moveaxis(X.reshape(2, 2, 16, 20), 1, -1)
    y = x + 0.1 * RNG.normal(size=x.shape)
    model = Tikhonov(lam=0.1, channel_axis=-1).fit(x, y)
    assert ssim_scorer(model, x, y) == np.mean(ssim(x, model.predict(y), channel_axis=-1))
    assert ReconstructionScorer(nmse, sign=-1)(model, x, y) == -np.mean(nmse(x, model.predict(y)))


def test_nmse_is_the_relative_squared_error() -> None:
    expected = [np.linalg.norm(a - b) ** 2 / np.linalg.norm(a) ** 2 for a, b in zip(X, X_HAT, strict=True)]
    assert_allclose(nmse(X, X_HAT), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "shape", [(1,), (2,), (5,), (20,), (1, 1), (1, 9), (2, 2), (6, 11), (3, 1, 1), (3, 4, 5)]
)
def test_small_and_flat_images_have_finite_metrics_and_perfect_ones_are_recognised(shape) -> None:
    x = RNG.normal(size=(3, *shape))
    x_hat = x + RNG.normal(size=x.shape)
    assert np.isfinite(psnr(x, x_hat)).all()
    assert (ssim(x, x_hat) < 1).all()
    assert_allclose(ssim(x, x), 1)
    assert_array_equal(psnr(x, x), np.inf)
    assert_array_equal(nmse(x, x), 0)


def test_ssim_window_shrinks_to_the_largest_odd_one() -> None:
    x, x_hat = X[:, :6], X_HAT[:, :6]
    expected = [
        structural_similarity(a, b, data_range=np.ptp(a), win_size=5) for a, b in zip(x, x_hat, strict=True)
    ]
    assert_allclose(ssim(x, x_hat), expected, rtol=1e-12)


def test_complex_images_are_compared_by_the_modulus_of_the_error() -> None:
    x, x_hat = X + 1j * X[::-1], X_HAT + 1j * X_HAT[::-1]
    error = np.mean(np.abs(x - x_hat) ** 2, axis=(1, 2))
    assert_allclose(psnr(x, x_hat), 10 * np.log10(np.ptp(np.abs(x), axis=(1, 2)) ** 2 / error))
    assert_allclose(ssim(x, x_hat), ssim(np.abs(x), np.abs(x_hat)))
    assert (psnr(x, x * 1j) < 20).all()


@pytest.mark.parametrize(("value", "data_range"), [(3.0, 3.0), (-3.0, 3.0), (0.0, 1.0)])
def test_constant_images_take_their_modulus_as_range(value, data_range) -> None:
    x = np.full((1, 8, 8), value)
    assert_allclose(psnr(x, x + 0.1), 20 * np.log10(data_range / 0.1))
    assert np.isfinite(ssim(x, x + 0.1)).all()


def test_error_of_a_zero_image_is_infinite_unless_it_is_zero() -> None:
    x = np.zeros((2, 3))
    assert_array_equal(nmse(x, np.array([[0, 0, 0], [0, 0, 1.0]])), [0, np.inf])


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_psnr_with_own_range_does_not_depend_on_the_unit(scale, shift) -> None:
    assert_allclose(psnr(scale * X + shift, scale * X_HAT + shift), psnr(X, X_HAT), rtol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim, nmse])
def test_one_number_per_image_whatever_the_companions(metric) -> None:
    alone = np.concatenate([metric(X[i : i + 1], X_HAT[i : i + 1]) for i in range(len(X))])
    assert_array_equal(metric(X, X_HAT), alone)


@pytest.mark.parametrize("metric", [psnr, ssim, nmse])
def test_tensors_give_the_same_as_arrays(metric) -> None:
    values = metric(torch.from_numpy(X).requires_grad_(), torch.from_numpy(X_HAT))
    assert isinstance(values, np.ndarray)
    assert_array_equal(values, metric(X, X_HAT))


def test_unsigned_integers_do_not_wrap_around() -> None:
    x, x_hat = np.array([[0, 255]], dtype=np.uint8), np.array([[255, 255]], dtype=np.uint8)
    assert_allclose(psnr(x, x_hat), 10 * np.log10(2))


@pytest.mark.parametrize("metric", [psnr, ssim, nmse])
def test_bad_input_is_named(metric) -> None:
    with pytest.raises(ValueError, match=r"X_true of \(4, 16, 20\) and X_pred of \(4, 20, 16\)"):
        metric(X, X.swapaxes(1, 2))
    with pytest.raises(ValueError, match="NaN or inf in 1 of 4 samples"):
        metric(X, np.where(np.arange(4)[:, None, None] == 2, np.nan, X))
    with pytest.raises(ValueError, match="expected a batch of images"):
        metric(np.ones(3), np.ones(3))


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("data_range", [0.0, -1.0, np.nan, np.ones(3)])
def test_bad_data_range_is_named(metric, data_range) -> None:
    with pytest.raises(ValueError, match="data_range: expected a positive number"):
        metric(X, X_HAT, data_range=data_range)


@pytest.mark.parametrize("scorer", [psnr_scorer, ssim_scorer, neg_nmse_scorer], ids=repr)
def test_scorers_choose_the_right_parameter(scorer) -> None:
    search = GridSearchCV(Scale(), {"factor": [0.4, 0.5, 0.6]}, scoring=scorer, cv=2, error_score="raise")
    search.fit(X, 2 * X + 0.01 * X_HAT)
    assert search.best_params_ == {"factor": 0.5}


def test_scorer_is_the_signed_mean_of_its_metric() -> None:
    scale = Scale(0.9)
    assert psnr_scorer(scale, X, X_HAT) == pytest.approx(psnr(X, 0.9 * X_HAT).mean())
    assert neg_nmse_scorer(scale, X, X_HAT) == pytest.approx(-nmse(X, 0.9 * X_HAT).mean())
    fixed = ReconstructionScorer(ssim, data_range=2.0)
    assert fixed(scale, X, X_HAT) == pytest.approx(ssim(X, 0.9 * X_HAT, data_range=2.0).mean())
    assert fixed(scale, X.reshape(4, -1), X_HAT) == fixed(scale, X, X_HAT)


def test_scorers_survive_pickling_and_say_what_they_are() -> None:
    assert pickle.loads(pickle.dumps(neg_nmse_scorer)) == neg_nmse_scorer
    assert repr(psnr_scorer) == "ReconstructionScorer(psnr)"
    assert repr(neg_nmse_scorer) == "ReconstructionScorer(nmse, sign=-1)"


@pytest.mark.parametrize("metric", [psnr, ssim, nmse])
def test_complex_images_are_not_compared_with_magnitudes(metric) -> None:
    """The phase would count as an error: 6 dB for the true image with a phase of one half."""
    magnitudes = np.random.default_rng(0).random((2, 8, 8))
    images = magnitudes * np.exp(0.5j)
    for pair, kinds in (((magnitudes, images), "real.*complex"), ((images, magnitudes), "complex.*real")):
        with pytest.raises(ValueError, match=rf"X_true {kinds}: magnitudes are compared as np.abs"):
            metric(*pair)
    assert np.isfinite(metric(np.abs(images), magnitudes + 0.1)).all()


def test_a_score_is_not_that_of_a_phase() -> None:
    images, data, A = make_problem("mri", n_samples=2, size=16, noise=0.01, random_state=0)
    method = Tikhonov(A, lam=1e-3).fit()
    with pytest.raises(ValueError, match="np.abs"):
        method.score(np.abs(images), data)
    with pytest.raises(ValueError, match="np.abs"):
        psnr_scorer(method, np.abs(images), data)
    assert method.score(images, data) > 10

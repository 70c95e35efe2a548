"""What the displays draw, and what they say when they cannot."""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch

from skinverse import TotalVariationRecon
from skinverse.displays import ConvergenceDisplay, CovarianceDisplay, ReconstructionDisplay
from skinverse.metrics import nmse, psnr

RNG = np.random.default_rng(0)
X = RNG.random((3, 12, 8))
X[1] *= 4
NEAR, FAR = X + 0.01, X - 0.3


class Halving(BaseEstimator):
    """Each step halves the distance to the data; an image is done when it is near enough."""

    def __init__(self, max_steps: int = 64) -> None:
        self.max_steps = max_steps

    def fit(self, X_true, Y_meas):
        self.fitted_ = True
        return self

    def predict(self, Y_meas, *, return_info=False):
        assert self.fitted_
        needed = np.array([2, 5, 10])
        steps = np.minimum(needed, self.max_steps)
        x = (1 - 0.5 ** steps[:, None, None]) * Y_meas
        return (x, Bunch(n_steps=steps, converged=steps == needed)) if return_info else x


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def titles(display: ReconstructionDisplay, row: int = 0) -> list[str]:
    return [axis.get_title() for axis in display.axes_[row]]


def shown(axis) -> np.ndarray:
    return np.asarray(axis.images[0].get_array())


def test_columns_are_data_truth_reconstructions_and_errors() -> None:
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR, "far": FAR}, Y_meas=2 * X)
    values = [f"{value:.2f} dB" for value in (psnr(X, NEAR)[0], psnr(X, FAR)[0])]
    assert titles(display) == [
        "Data", "Truth", f"near\n{values[0]}", f"far\n{values[1]}", "|error|, near", "|error|, far",
    ]  # fmt: skip
    for row in range(3):
        expected = [2 * X, X, NEAR, FAR, np.abs(X - NEAR), np.abs(X - FAR)]
        for axis, images in zip(display.axes_[row], expected, strict=True):
            assert_array_equal(shown(axis), images[row])
    assert titles(display, 2)[2] == f"{psnr(X, NEAR)[2]:.2f} dB"


def test_a_row_has_the_grey_scale_of_its_truth_and_errors_have_one_scale() -> None:
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR, "far": FAR})
    for row, image in enumerate(X):
        for axis in display.axes_[row, :3]:
            assert_allclose(axis.images[0].get_clim(), (image.min(), image.max()))
    for axis in display.axes_[:, 3:].ravel():
        assert_allclose(axis.images[0].get_clim(), (0, 0.3))
    (bar,) = set(display.figure_.axes) - set(display.axes_.ravel())
    assert_allclose(bar.get_ylim(), (0, 0.3))


def test_axes_have_no_ticks_and_figures_render() -> None:
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR}, Y_meas=RNG.random((3, 5, 30)))
    for axis in display.axes_.ravel():
        assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0
    display.figure_.canvas.draw()


@pytest.mark.parametrize(
    "data", [RNG.random((3, 40)), RNG.random((3, 2, 12, 8)), None], ids=["flat", "coils", "none"]
)
def test_data_that_are_no_pictures_are_left_out(data) -> None:
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR}, Y_meas=data)
    assert titles(display)[0] == "Truth"


def test_sinograms_fill_their_axes_and_k_space_is_logarithmic() -> None:
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR}, Y_meas=RNG.random((3, 5, 30)))
    assert [axis.get_aspect() for axis in display.axes_[0, :2]] == ["auto", 1.0]
    k_space = 100 * np.fft.fft2(X)
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR}, Y_meas=k_space)
    assert_allclose(shown(display.axes_[0, 0]), np.log1p(np.abs(k_space[0])))
    assert display.axes_[0, 0].get_aspect() == 1.0


def test_complex_colour_and_channel_images() -> None:
    display = ReconstructionDisplay.from_predictions(1j * X, {"near": 1j * NEAR}, errors=False)
    assert_allclose(shown(display.axes_[1, 0]), X[1])
    colours = RNG.random((2, 3, 6, 7))
    for axis in (0, -1):
        x = np.moveaxis(colours, 1, axis % 3 + 1)
        display = ReconstructionDisplay.from_predictions(x, {"half": x / 2}, Y_meas=x, channel_axis=axis)
        assert_allclose(shown(display.axes_[0, 0]), np.moveaxis(colours[0], 0, -1))
        assert_allclose(shown(display.axes_[0, 3]), colours[0].mean(axis=0) / 2)
    channels = RNG.random((2, 5, 6, 6))
    display = ReconstructionDisplay.from_predictions(channels, {"same": channels}, channel_axis=0)
    assert_allclose(shown(display.axes_[0, 0]), channels[0].mean(axis=0))


def test_the_middle_slice_of_a_volume_is_shown() -> None:
    volume = RNG.random((2, 3, 6, 7))
    display = ReconstructionDisplay.from_predictions(volume, {"half": volume / 2}, Y_meas=volume)
    for axis, expected in zip(display.axes_[1], np.array([1, 1, 0.5, 0.5]) * 1.0, strict=True):
        assert_allclose(shown(axis), expected * volume[1, 1])
    coloured = RNG.random((2, 5, 6, 7, 3))
    display = ReconstructionDisplay.from_predictions(coloured, {"same": coloured}, channel_axis=-1)
    assert_allclose(shown(display.axes_[0, 0]), coloured[0, 2])


def test_estimators_tell_their_displays_of_channels() -> None:
    x = RNG.random((2, 6, 7, 3))
    model = TotalVariationRecon(channel_axis=-1).fit()
    display = ReconstructionDisplay.from_estimator(model, x, x)
    assert_allclose(shown(display.axes_[0, 0]), x[0])


@pytest.mark.parametrize(("shape", "axis"), [((2, 9), None), ((2, 3, 4, 5, 6), None), ((2, 4, 5), -1)])
def test_images_that_cannot_be_shown_are_refused(shape: tuple[int, ...], axis: int | None) -> None:
    x = np.ones(shape)
    with pytest.raises(ValueError, match="expected images .* or volumes"):
        ReconstructionDisplay.from_predictions(x, {"same": x}, channel_axis=axis)


def test_perfect_reconstruction_and_tensors() -> None:
    display = ReconstructionDisplay.from_predictions(torch.from_numpy(X), {"same": torch.from_numpy(X)})
    assert titles(display)[1] == "same\ninf dB"


def test_from_estimator_reconstructs_and_names_the_class() -> None:
    estimator = Halving().fit(X, X)
    display = ReconstructionDisplay.from_estimator(estimator, X, X)
    assert titles(display)[2].startswith("Halving\n")
    assert_array_equal(shown(display.axes_[0, 2]), estimator.predict(X)[0])


def test_plots_into_given_axes() -> None:
    figure, axes = plt.subplots(3, 2)
    display = ReconstructionDisplay.from_predictions(X, {"near": NEAR}, errors=False, axes=axes)
    assert display.figure_ is figure
    assert display.axes_[2, 1] is axes[2, 1]
    with pytest.raises(ValueError, match="axes: expected 3 x 3"):
        ReconstructionDisplay.from_predictions(X, {"near": NEAR}, axes=axes)


@pytest.mark.parametrize(
    ("images", "predictions", "data", "message"),
    [
        (
            X.reshape(3, -1),
            {"flat": X.reshape(3, -1)},
            None,
            r"X_true: expected images .* got shape \(3, 96\)",
        ),
        (X, {}, None, "at least one reconstruction"),
        (X, {"near": NEAR[:2]}, None, r"near: expected .* got \(3, 12, 8\) and \(2, 12, 8\)"),
        (X, {"near": NEAR}, X[:2], "as many measurements as images, got 2 and 3"),
    ],
)
def test_bad_input_is_named(images, predictions, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        ReconstructionDisplay.from_predictions(images, predictions, Y_meas=data)


@pytest.mark.parametrize("wrong", [[[1, 2], [3]], X.astype(str), torch.from_numpy(X).to("meta"), object()])
def test_what_holds_no_numbers_is_named(wrong) -> None:
    for images, predictions, data, name in (
        (wrong, {"near": NEAR}, None, "X_true"),
        (X, {"near": wrong}, None, "near"),
        (X, {"near": NEAR}, wrong, "Y_meas"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            ReconstructionDisplay.from_predictions(images, predictions, Y_meas=data)


def test_whole_numbers_do_not_wrap_around_and_masked_data_are_blank() -> None:
    black, white = (np.full((1, 4, 4), value, np.uint8) for value in (0, 255))
    data = np.ma.array(np.full((1, 4, 4), 9.0), mask=np.eye(4, dtype=bool)[None])
    display = ReconstructionDisplay.from_predictions(black, {"white": white}, Y_meas=data)
    shown = [axes.images[0].get_array() for axes in display.axes_[0]]
    assert_array_equal(shown[0].mask, data.mask[0])
    assert_array_equal(shown[3], 255)


def test_missing_matplotlib_is_named_with_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"skinverse\[plot\]"):
        ReconstructionDisplay.from_predictions(X, {"near": NEAR})


def test_convergence_draws_mean_and_band() -> None:
    values = np.array([[10.0, 12.0], [20.0, 26.0]])
    display = ConvergenceDisplay.from_histories({"TV": ([1, 10], values), "CG": ([1, 5], [3.0, 4.0])})
    assert_allclose(display.lines_[0].get_ydata(), [11, 23])
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["TV", "CG"]
    (band,) = display.ax_.collections
    assert_allclose(band.get_datalim(display.ax_.transData).get_points()[:, 1], [10, 26])


def test_convergence_of_an_estimator_is_what_its_step_limits_give() -> None:
    estimator = Halving(max_steps=64).fit(X, X)
    display = ConvergenceDisplay.from_estimator(estimator, X, X, n_points=7)
    steps = [1, 2, 4, 8, 10]  # limits 1, 2, 4, ..., until everything has converged
    assert_allclose(display.lines_[0].get_xdata(), steps)
    expected = [psnr(X, Halving(k).fit(X, X).predict(X)).mean() for k in steps]
    assert_allclose(display.lines_[0].get_ydata(), expected)
    assert estimator.max_steps == 64


def test_convergence_against_seconds_and_another_metric() -> None:
    figure, axis = plt.subplots()
    display = ConvergenceDisplay.from_estimator(
        Halving().fit(X, X), X, X, against="seconds", metric=nmse, name="mine", ax=axis
    )
    assert display.figure_ is figure
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("seconds per image", "nmse")
    assert (display.lines_[0].get_xdata() > 0).all()
    figure.canvas.draw()


def test_convergence_needs_a_step_limit_and_a_known_abscissa() -> None:
    with pytest.raises(ValueError, match="step limit max_steps, got BaseEstimator"):
        ConvergenceDisplay.from_estimator(BaseEstimator(), X, X)
    with pytest.raises(ValueError, match="'steps' or 'seconds', got 'hours'"):
        ConvergenceDisplay.from_estimator(Halving().fit(X, X), X, X, against="hours")


class Nearby:
    """Every pixel hangs together with its right neighbour, and with the pixel below the other way round."""

    def covariance_row(self, X_true, pixel):
        rows = np.zeros_like(X_true)
        i, j = pixel
        rows[:, i, j], rows[:, i, j + 1], rows[:, i + 1, j] = 9.0, 2.0, -3.0
        return rows


def test_covariances_stand_below_their_images_with_both_signs_on_one_scale() -> None:
    display = CovarianceDisplay.from_estimator(Nearby(), X, (4, 3))
    assert display.axes_.shape == (2, 3)
    for image, above, below in zip(X, *display.axes_, strict=True):
        assert_array_equal(shown(above), image)
        assert shown(below)[4, 4] == 2 and shown(below)[5, 3] == -3
        assert_allclose(below.images[0].get_clim(), (-3, 3))  # the variance of the pixel itself is beyond it
    display.figure_.canvas.draw()


def test_covariances_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 12, 8\) and \(3, 8, 12\)"):
        CovarianceDisplay(X, X.transpose(0, 2, 1), (1, 1)).plot()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(1, 2\)"):
        CovarianceDisplay(X, X, (1, 1)).plot(axes=plt.subplots(1, 2, squeeze=False)[1])

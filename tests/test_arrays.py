"""What people hand over: masked arrays, lone images, wrong shapes, large sets; layouts are promises."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV, cross_val_predict

from skinverse import (
    AdversarialRegularizer,
    Kaczmarz,
    Landweber,
    LearnedPrimalDual,
    PostProcessor,
    SpectralCutoff,
    Tikhonov,
    TotalGeneralizedVariationRecon,
    TotalVariationRecon,
    Trainer,
    WaveletRecon,
)
from skinverse.metrics import neg_nmse_scorer, nmse, psnr, ssim
from skinverse.noise import Gaussian

# The rows of this operator are not orthogonal: a measurement of zero is something else than none.
DIMS, N = (8, 6), 30
A = pylops.MatrixMult(np.random.default_rng(0).normal(size=(N, 48)) + 1.0) @ pylops.Identity(DIMS)
X = np.random.default_rng(1).normal(size=(5, *DIMS)).cumsum(1)
Y = np.stack([A @ x.ravel() for x in X]) + 0.1 * np.random.default_rng(2).normal(size=(5, N))
MASK = np.random.default_rng(3).random((5, N)) < 0.3
MASK[0], MASK[4] = False, MASK[2]  # a complete one, and two that are alike

METHODS = [
    Tikhonov(A, lam=0.1),
    Tikhonov(A, lam="discrepancy", noise=0.5, tol=1e-8),
    TotalVariationRecon(A, lam=0.5, max_steps=200),
    TotalVariationRecon(A, lam="discrepancy", noise=0.5, max_steps=200),
    TotalGeneralizedVariationRecon(A, lam=0.5, max_steps=100),
    WaveletRecon(A, lam=0.5, max_steps=100),
    Landweber(A, max_steps=20, noise=0.5),
    Kaczmarz(A, n_blocks=5),
    SpectralCutoff(A, lam=1.0),
    AdversarialRegularizer(A, lam=0.1, trainer=Trainer(n_steps=1), max_steps=5),
    PostProcessor(A, network="dncnn", trainer=Trainer(n_steps=1)),
]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def masked(values: Any, mask: np.ndarray, under: float) -> Any:
    return np.ma.array(np.where(mask, under, values), mask=mask)


# ---------------------------------------------------------------------- masked measurements
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_masked_measurements_are_left_out_of_the_problem(method: Any) -> None:
    fitted = method.fit(X, Y)
    found, info = fitted.predict(masked(Y, MASK, np.nan), return_info=True)
    assert_array_equal(found, fitted.predict(masked(Y, MASK, 1e3)))
    assert len(info.converged) == len(Y)
    for mask in MASK:
        alike, kept = (mask == MASK).all(1), np.flatnonzero(~mask)
        fitted.set_params(operator=pylops.Restriction(N, kept) @ A)
        expected = fitted.predict(Y[alike][:, kept])
        assert_allclose(found[alike], expected, rtol=1e-5, atol=1e-5 * np.ptp(X))
    fitted.set_params(operator=A)


def test_masked_pixels_are_not_measured_where_there_is_no_operator() -> None:
    images = np.kron(X[:2, :2, :2], np.ones((5, 5)))
    mask = np.random.default_rng(0).random(images.shape) < 0.2
    method = TotalVariationRecon(lam=0.01, tol=1e-5).fit()
    found = method.predict(masked(images, mask, np.nan))
    assert_array_equal(found, method.predict(masked(images, mask, 1e3)))
    assert nmse(images, found).max() < 0.05  # what is missing is between its neighbours


def test_a_mask_without_masked_values_and_a_list_of_masked_arrays() -> None:
    fitted = Tikhonov(A).fit()
    assert_array_equal(fitted.predict(np.ma.array(Y)), fitted.predict(Y))
    listed = list(masked(Y, MASK, 7.0))
    assert_array_equal(fitted.predict(listed), fitted.predict(masked(Y, MASK, 0.0)))


def test_boolean_weights_say_what_was_measured() -> None:
    measured = ~MASK[1]
    found = Tikhonov(A, lam=0.1, noise=Gaussian(weights=measured)).fit().predict(np.where(measured, Y, 1e9))
    expected = Tikhonov(A, lam=0.1).fit().predict(masked(Y, np.broadcast_to(~measured, Y.shape), np.nan))
    assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.ptp(X))


def test_masked_measurements_in_scikit_learns_tools() -> None:
    Y_masked = masked(Y, MASK, np.nan)
    search = GridSearchCV(Tikhonov(A), {"lam": [0.1, 1.0]}, cv=2, error_score="raise").fit(X, Y_masked)
    assert_allclose(search.predict(Y_masked), Tikhonov(A, **search.best_params_).fit().predict(Y_masked))
    found = cross_val_predict(Tikhonov(A).as_regressor(), Y_masked.reshape(5, 6, 5), X, cv=2)
    assert_allclose(found, Tikhonov(A).fit().predict(Y_masked))


def test_what_is_refused_of_masked_arrays_is_told() -> None:
    Y_masked, X_masked = masked(Y, MASK, 0.0), np.ma.array(X, mask=X > 0)
    with pytest.raises(ValueError, match=r"Y_meas: .* got NaN or inf in 1 .*masked, as np.ma.masked_invalid"):
        Tikhonov(A).fit().predict(np.where(np.arange(5)[:, None] == 3, np.nan, Y))
    with pytest.raises(ValueError, match="Y_meas: .* 1 of 5 samples with all values masked"):
        Tikhonov(A).fit().predict(np.ma.array(Y, mask=(np.arange(5)[:, None] == 2) | MASK))
    learned = LearnedPrimalDual(A, n_iterations=1, trainer=Trainer(n_steps=1))
    with pytest.raises(ValueError, match=f"Y_meas: .* {MASK.sum()} masked.*learns from complete"):
        learned.fit(X, Y_masked)
    with pytest.raises(ValueError, match="Y_meas: .* masked ones: LearnedPrimalDual needs each measurement"):
        learned.fit(X, Y).predict(Y_masked)
    with pytest.raises(ValueError, match="Y_meas: .* masked ones: PostProcessor needs each measurement"):
        PostProcessor(A, network="dncnn", initial=learned, trainer=Trainer(n_steps=1)).fit(X, Y).predict(
            Y_masked
        )
    for call in (Tikhonov(A).fit, Tikhonov(A).fit().score):
        with pytest.raises(ValueError, match="X_true: expected all values, got .* masked"):
            call(X_masked, Y)
    with pytest.raises(ValueError, match="y: expected all values"):
        Tikhonov(A).as_regressor().fit(Y, X_masked)
    for metric in (psnr, ssim, nmse):
        with pytest.raises(ValueError, match="X_true: expected all values"):
            metric(X_masked, X)


# ---------------------------------------------------------------------- one image, wrong shapes, wrong things
def test_one_image_is_not_read_as_something_else() -> None:
    with pytest.raises(ValueError, match=re.escape("one image is Y_meas[None]; for signals pass pylops.")):
        Tikhonov().fit().predict(X[0])
    seen = Tikhonov().fit(X, X)
    for other in (X[0], np.ones((9, 7))):
        with pytest.raises(ValueError, match=re.escape("(n_samples, 8, 6), got shape") + ".*" + r"\[None\]"):
            seen.predict(other)
    assert seen.predict(X.reshape(5, -1)).shape == X.shape
    colour = np.ones((4, 3, 8, 6))
    with pytest.raises(ValueError, match=re.escape("(n_samples, 3, 8, 6), got shape (3, 8, 6)")):
        Tikhonov().fit(colour, colour).predict(colour[0])
    with pytest.raises(ValueError, match=re.escape("(n_samples, 8, 6)") + ".*" + re.escape("Y_meas[None]")):
        Tikhonov(pylops.Identity(DIMS)).fit().predict(X[0])
    with pytest.raises(ValueError, match=re.escape("a single sample is Y_meas[None]")):
        Tikhonov(A).fit().predict(Y[0])


def test_signals_are_told_by_fit_or_by_the_operator() -> None:
    signals = np.random.default_rng(0).normal(size=(4, 20))
    expected = TotalVariationRecon(pylops.Identity(20)).fit().predict(signals)
    assert_array_equal(TotalVariationRecon().fit(signals, signals).predict(signals), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        np.ones((3, *DIMS, 2)),
        np.ones((3, *DIMS[::-1])),
        np.ones(()),
        torch.ones(5, 8, 6).to_sparse(),
        torch.nested.nested_tensor([torch.ones(3), torch.ones(4)], layout=torch.jagged),
        [torch.ones(8, 6, requires_grad=True), torch.ones(8, 5)],
        [[1, 2], [3]],
        {"a": 1},
        "text",
        np.array(["a"] * 5),
        np.ma.masked_all((5, *DIMS)),
        object(),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_metrics_and_scorers_name_what_is_wrong(wrong: Any) -> None:
    for call in (psnr, ssim, nmse):
        with pytest.raises((ValueError, TypeError), match="X_pred"):
            call(X, wrong)
        with pytest.raises((ValueError, TypeError), match="X_true"):
            call(wrong, X)
    with pytest.raises((ValueError, TypeError), match="X_true"):
        neg_nmse_scorer(Tikhonov(A).fit(), wrong, Y)


def test_metrics_read_every_type_of_number() -> None:
    whole = np.round(10 * X)
    for narrow in (whole.astype(np.int8), whole.astype(np.float16), torch.from_numpy(whole).bfloat16()):
        assert_array_equal(psnr(whole, narrow), np.inf)
        assert_array_equal(nmse(narrow, whole), 0)


def test_lazy_conjugates_and_negatives_are_carried_out() -> None:
    y = torch.complex(*torch.from_numpy(X[:4]).reshape(2, 2, *DIMS))
    method = PostProcessor(network="dncnn", trainer=Trainer(n_steps=1))
    expected = method.fit(y, y).predict(y)
    for lazy in (y.conj().resolve_conj().conj(), torch._neg_view(-y)):
        assert lazy.is_conj() or lazy.is_neg()
        assert_array_equal(method.fit(lazy, lazy).predict(lazy), expected)


# ---------------------------------------------------------------------- memory
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the memory of the process from /proc")
def test_a_large_set_is_not_copied_on_its_way() -> None:
    # Big-endian single precision is the hardest case: all of it is to be converted.
    script = """
        import threading
        import numpy as np
        from skinverse import Tikhonov, metrics
        from skinverse.estimators import _base

        _base._CHUNK["cpu"] = 2**16
        X = np.random.default_rng(0).random((400, 128, 128), np.float32).astype(">f4")
        model = Tikhonov(max_steps=2).fit(X[:2], X[:2])

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096

        def sets(call):
            call(X[:8])
            before, most, done = resident(), [0], threading.Event()
            def watch():
                while not done.wait(1e-4):
                    most[0] = max(most[0], resident())
            watching = threading.Thread(target=watch)
            watching.start()
            call(X)
            done.set()
            watching.join()
            return (most[0] - before) / X.nbytes

        print(sets(model.predict), sets(lambda X: model.score(X, X)), sets(lambda X: metrics.psnr(X, X)))
    """
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    predict, score, psnr_ = map(float, ran.stdout.split())
    assert predict < 1.9  # the images, and a few of them at work
    assert score < 1.9
    assert psnr_ < 0.9

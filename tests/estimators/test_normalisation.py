"""Learned methods see images of mean 0 and standard deviation 1, whatever those of the user are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skinverse import LISTA, LearnedGradientDescent, PostProcessor, Tikhonov, Trainer
from skinverse.datasets import make_problem
from skinverse.estimators import _units
from skinverse.estimators._units import Normalisation
from skinverse.operators import as_torch

BRIEF = Trainer(n_steps=6)


@pytest.fixture(scope="module")
def blurred() -> Any:
    images, data, A = make_problem("deblurring", n_samples=12, size=16, noise=0.03, random_state=0)
    seen = (A @ np.ones(A.shape[1])).reshape(A.dimsd)
    return images.astype(np.float64), data.astype(np.float64), A, seen


@pytest.mark.parametrize("kind", ["float32", "float64", "complex64"])
def test_level_and_spread_are_mean_and_standard_deviation(kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(_units, "_AT_ONCE", 100)  # several parts
    rng = np.random.default_rng(0)
    images = 5e4 + rng.normal(size=(7, 6, 5)) + (1j * rng.normal(size=(7, 6, 5)) if kind[0] == "c" else 0)
    images = images.astype(kind)
    normal = Normalisation.of(torch.from_numpy(images))
    if kind[0] == "c":  # a level would have a phase
        assert normal.level == 0
        assert normal.spread == pytest.approx(np.sqrt(np.mean(np.abs(images.astype(complex)) ** 2)), rel=1e-8)
        return
    wide = images.astype(float)
    assert normal.level == pytest.approx(wide.mean(), rel=1e-12)
    assert normal.spread == pytest.approx(wide.std(), rel=1e-8)


@pytest.mark.parametrize("value", [0.1, 1000.3, -1e-30, 1e30])
def test_the_spread_of_images_that_do_not_vary_is_their_size(value: float) -> None:
    images = torch.full((3, 5, 5), value)
    assert Normalisation.of(images).spread == pytest.approx(abs(value))
    assert Normalisation.of(0 * images).spread == 1.0


def test_the_level_is_seen_through_the_operator(blurred: Any) -> None:
    images, data, A, seen = blurred
    normal, linear = Normalisation.of(torch.from_numpy(images)), as_torch(A)
    y = torch.from_numpy(data)
    found = normal.of_data(y, normal.seen(linear, y))
    assert_allclose(found, (data - normal.level * seen) / normal.spread, rtol=1e-10)
    assert_allclose(normal.restored_data(found, normal.seen(linear, y)), data, rtol=1e-10)


@pytest.mark.parametrize("method", [LearnedGradientDescent, PostProcessor])
def test_trained_in_any_unit_and_at_any_level_the_gain_is_the_same(method: Any, blurred: Any) -> None:
    images, data, A, seen = blurred
    expected = method(A, trainer=BRIEF).fit(images[:8], data[:8]).predict(data[8:])
    for unit, level in ((4096.0, -1000.0), (65535.0, 0.0), (1e-3, 1e-2)):
        model = method(A, trainer=BRIEF).fit(unit * images[:8] + level, unit * data[:8] + level * seen)
        found = model.predict(unit * data[8:] + level * seen)
        assert_allclose((found - level) / unit, expected, atol=1e-3 * expected.std())


def test_the_first_method_gets_the_data_in_their_own_units(blurred: Any) -> None:
    images, data, A, seen = blurred
    start = Tikhonov(lam=0.02)
    model = PostProcessor(A, initial=start, trainer=BRIEF).fit(300 * images + 7, 300 * data + 7 * seen)
    first = model._start(as_torch(A), model._normalised(as_torch(A), torch.from_numpy(300 * data + 7 * seen)))
    expected = Tikhonov(A, lam=0.02).fit().predict(300 * data + 7 * seen)
    assert_allclose(model.level_ + model.spread_ * first, expected, atol=1e-4 * 300)


def test_bounds_are_in_the_units_of_the_images(blurred: Any) -> None:
    images, data, A, _ = blurred
    low, high = (float(v) for v in np.quantile(images, [0.3, 0.6]))
    x = LearnedGradientDescent(A, bounds=(low, high), trainer=BRIEF).fit(images, data).predict(data)
    assert x.min() == low and x.max() == high


def test_images_that_are_sparse_in_atoms_of_the_user_keep_their_level(blurred: Any) -> None:
    images, data, A, _ = blurred
    own = LISTA(A, dictionary=np.eye(256).reshape(256, 16, 16), trainer=BRIEF).fit(images, data)
    assert own.level_ == 0 and own.spread_ == pytest.approx(images.std())
    assert LISTA(A, trainer=BRIEF).fit(images, data).level_ == pytest.approx(images.mean())

"""Analytic reconstructions, and what starts from them, do not depend on weights of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose

from skinverse import (
    FilteredBackProjection,
    LearnedGradientDescent,
    LearnedPrimalDual,
    PostProcessor,
    Trainer,
    VariationalNetwork,
    ZeroFilled,
)
from skinverse.datasets import make_problem

ANALYTIC = {"ct": FilteredBackProjection, "mri": ZeroFilled, "compressive_sensing": ZeroFilled}
LEARNED: dict[type, dict[str, Any]] = {
    PostProcessor: {"network": "dncnn", "patch_size": None},
    LearnedGradientDescent: {"n_iterations": 2},
    LearnedPrimalDual: {"n_iterations": 2},
    VariationalNetwork: {"n_iterations": 2},
}


def statistical_weights(clean: np.ndarray) -> np.ndarray:
    """Those of counts behind an object: the square root of ``exp(-projection)``, here down to 2e-3."""
    return np.exp(-6 * np.abs(clean) / np.abs(clean).max())


@pytest.mark.parametrize("name", ANALYTIC)
def test_weights_of_rows_do_not_change_an_analytic_reconstruction(name: str) -> None:
    images, data, A = make_problem(name, n_samples=2, size=16, noise=0.05, random_state=0)
    d = np.random.default_rng(0).uniform(0.5, 2, data.shape[1:]) * statistical_weights(data[0])
    weighted = pylops.Diagonal(d) @ A
    weighted.dimsd = A.dimsd
    method = ANALYTIC[name]
    expected = method(A).fit().predict(data)
    for op, y in ((weighted, d * data), (pylops.Diagonal(1 / d) @ weighted, data)):
        assert_allclose(method(op).fit().predict(y), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["deblurring", "matrix"])
def test_weights_do_not_spoil_a_start_without_a_formula(name: str) -> None:
    images, data, A = make_problem("deblurring", n_samples=10, size=16, noise=0.01, random_state=0)
    A = A if name == "deblurring" else pylops.MatrixMult(A.todense())
    A.dims = A.dimsd = (16, 16)
    d = statistical_weights(data.mean(0))

    def images_of(op: pylops.LinearOperator, y: np.ndarray) -> np.ndarray:
        model = PostProcessor(op, network="dncnn", patch_size=None, trainer=Trainer(n_steps=2))
        return model.fit(images[:8], y[:8]).predict(y[8:])

    expected = images_of(A, data)
    halves = [
        pylops.Restriction(d.size, half) @ pylops.Diagonal(d) @ A for half in np.split(np.arange(d.size), 2)
    ]
    for op in (pylops.Diagonal(d) @ A, pylops.VStack(halves)):
        op.dims = A.dims
        found = images_of(op, (d * data).reshape(-1, *op.dimsd))
        assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("method", LEARNED)
def test_statistical_weights_do_not_spoil_what_is_learned(method: Any) -> None:
    images, data, A = make_problem("ct", n_samples=10, size=24, noise=0.01, random_state=0)
    d = statistical_weights((A @ images.mean(0).ravel()).reshape(A.dimsd))

    def quality(op: pylops.LinearOperator, y: np.ndarray) -> float:
        model = method(op, trainer=Trainer(n_steps=10), **LEARNED[method])
        return float(model.fit(images[:8], y[:8]).score(images[8:], y[8:]))

    assert_allclose(quality(pylops.Diagonal(d) @ A, d * data), quality(A, data), atol=0.5)

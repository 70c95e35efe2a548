"""Projections by mbirtorch: exact lengths of rays, and operators like all others."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import skinverse
from skinverse import Tikhonov
from skinverse.operators import as_torch, dot_test, from_mbirtorch
from skinverse.operators._recipes import build, describe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that there is one thread
    mbirtorch = pytest.importorskip("mbirtorch")

ANGLES = np.linspace(0, np.pi, 12, endpoint=False)
DIMSD, OFF = (12, 4, 24), {"compile_mode": "off"}
MODELS: dict[str, Any] = {
    "parallel": lambda: mbirtorch.ParallelBeamModel(DIMSD, ANGLES, **OFF),
    "cone": lambda: mbirtorch.ConeBeamModel(
        DIMSD, ANGLES, source_detector_dist=100.0, source_iso_dist=60.0, **OFF
    ),
    "laminography": lambda: mbirtorch.MultiAxisParallelModel(
        DIMSD, np.stack([ANGLES, np.full(12, 0.3)], 1), **OFF
    ),
}
every = pytest.mark.parametrize("name", MODELS)


def volumes(n: int) -> torch.Tensor:
    return torch.rand(n, 24, 24, 4, generator=torch.Generator().manual_seed(0))


def test_a_cylinder_casts_the_shadow_of_its_chords() -> None:
    A = from_mbirtorch(MODELS["parallel"]())
    i, j = np.mgrid[:24, :24] - 11.5
    x = np.repeat((np.hypot(i, j) < 9)[..., None], 4, axis=2)
    s = np.arange(24) - 11.5
    chords = 2 * np.sqrt(np.maximum(81 - s**2, 0))
    assert abs((A @ x.astype("float32")).mean((0, 1)) - chords).mean() < 0.4


@every
def test_it_is_an_operator_like_all_others(name: str) -> None:
    model = MODELS[name]()
    model.set_params(det_channel_offset=0.7)
    A = from_mbirtorch(model)
    assert (A.dims, A.dimsd) == ((24, 24, 4), DIMSD)
    dot_test(A)
    M, x = as_torch(A), volumes(2).requires_grad_()
    y = M(x)
    assert_allclose(y[1].detach(), model.forward_project(x[1].detach()), atol=1e-5)
    assert_array_equal(M(x[1:]).detach(), y[1:].detach())
    assert as_torch(A) is M  # what the model has worked out is no part of the operator
    (gradient,) = torch.autograd.grad(y.square().sum() / 2, x)
    assert_allclose(gradient, M.adjoint(y).detach())
    z = torch.complex(x, 2 * x).detach()
    assert_allclose(M(z), torch.complex(y, 2 * y).detach(), rtol=1e-5)


@every
def test_copies_are_those_of_its_parameters(name: str) -> None:
    model = MODELS[name]()
    A, x = from_mbirtorch(model), volumes(1)[0].numpy()
    before = A @ x
    model.set_params(det_channel_offset=3.0)  # of which the operator knows nothing
    for twin in (A, pickle.loads(pickle.dumps(A)), build(*describe(A))):
        assert_array_equal(twin @ x, before)


def test_estimators_take_it(tmp_path: Path) -> None:
    A = from_mbirtorch(MODELS["parallel"]())
    Y_meas = as_torch(A)(volumes(1)).numpy()
    method = clone(Tikhonov(A, lam=1.0, tol=1e-3)).fit()
    method.save(tmp_path / "tikhonov")
    assert_array_equal(skinverse.load(tmp_path / "tikhonov").predict(Y_meas), method.predict(Y_meas))


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a model of mbirtorch, got int"):
        from_mbirtorch(7)

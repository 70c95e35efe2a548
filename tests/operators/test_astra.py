"""Projections by ASTRA: those of our own projectors, and operators like all others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

import skinverse
from skinverse import Tikhonov
from skinverse.datasets import make_ellipses
from skinverse.operators import as_torch, dot_test, fan_beam, from_astra, parallel_beam
from skinverse.operators._recipes import build, describe

astra = pytest.importorskip("astra")

ANGLES = np.linspace(0.1, 6.2, 40)
PLANE = astra.create_vol_geom(24, 20)
PARALLEL = astra.create_proj_geom("parallel", 1.0, 35, ANGLES)
FAN = astra.create_proj_geom("fanflat", 1.5, 45, ANGLES, 60.0, 30.0)
CONE = astra.create_proj_geom("cone", 1.0, 1.0, 6, 12, ANGLES, 60.0, 30.0)
GEOMETRIES: dict[str, Any] = {
    "parallel": (PARALLEL, None),
    "strips": (PARALLEL, "strip"),
    "vectors": (astra.geom_2vec(PARALLEL), "line"),
    "fan": (FAN, None),
    "strips of a fan": (FAN, "strip_fanflat"),
    "vectors of a fan": (astra.geom_2vec(FAN), None),
}
every = pytest.mark.parametrize("name", GEOMETRIES)


def operator(name: str) -> Any:
    geometry, projector = GEOMETRIES[name]
    return from_astra(geometry, PLANE, projector)


def images(n: int) -> torch.Tensor:
    return torch.from_numpy(make_ellipses(n, 24, random_state=0)[:, :, :20].copy())


def test_parallel_beams_are_ours() -> None:
    x = images(2)
    assert_allclose(
        as_torch(operator("parallel"))(x), as_torch(parallel_beam((24, 20), ANGLES, 35))(x), atol=1e-4
    )


@pytest.mark.parametrize(("name", "tolerance"), [("strips of a fan", 0.03), ("fan", 0.08)])
def test_fans_are_ours_up_to_the_interpolation(name: str, tolerance: float) -> None:
    ours = fan_beam((24, 20), ANGLES, 45, source_distance=60, detector_distance=30)
    y, theirs = (as_torch(A)(images(2)) for A in (ours, operator(name)))
    assert float((y - theirs).norm() / y.norm()) < tolerance


@every
def test_it_is_an_operator_like_all_others(name: str) -> None:
    A = operator(name)
    dot_test(A)
    M, x = as_torch(A), images(3).requires_grad_()
    y = M(x)
    assert y.dtype == torch.float32
    assert_array_equal(y[1:2].detach(), M(x[1:2]).detach())  # companions do not count
    assert_allclose((A @ x[0].detach().numpy()), y[0].detach())
    (gradient,) = torch.autograd.grad(y.square().sum() / 2, x)
    assert_allclose(gradient, M.adjoint(y).detach())
    z = torch.complex(x, 2 * x).detach()
    assert_allclose(M(z), torch.complex(y, 2 * y).detach(), rtol=1e-5)
    assert_allclose(A @ z[0].numpy(), M(z)[0], rtol=1e-5)


@every
def test_copies_are_those_of_its_geometries(name: str) -> None:
    A, x = operator(name), images(1)[0].numpy()
    for twin in (pickle.loads(pickle.dumps(A)), build(*describe(A))):
        assert_array_equal(twin @ x, A @ x)
        assert (twin.dims, twin.dimsd, twin.projector) == (A.dims, A.dimsd, A.projector)


def test_nothing_outside_changes_it() -> None:
    angles, x = ANGLES.copy(), images(1)[0].numpy()
    A = from_astra(astra.create_proj_geom("parallel", 1.0, 35, angles), PLANE)
    before = A @ x
    angles += 1
    astra.clear()  # of all that is kept in this process
    assert_array_equal(A @ x, before)


def test_estimators_take_it(tmp_path: Path) -> None:
    A, X_true = operator("fan"), images(2).numpy()
    Y_meas = as_torch(A)(torch.from_numpy(X_true)).numpy()
    method = clone(Tikhonov(A, lam=1.0, tol=1e-4)).fit()
    assert method.score(X_true, Y_meas) > 15
    method.save(tmp_path / "tikhonov")
    assert_array_equal(skinverse.load(tmp_path / "tikhonov").predict(Y_meas), method.predict(Y_meas))


@pytest.mark.skipif(astra.use_cuda(), reason="there is CUDA")
def test_volumes_need_cuda() -> None:
    with pytest.raises(RuntimeError, match="the projector 'cuda3d' of ASTRA needs CUDA"):
        from_astra(CONE, astra.create_vol_geom(8, 8, 6))
    with pytest.raises(RuntimeError, match="the projector 'cuda' of ASTRA needs CUDA"):
        from_astra(PARALLEL, PLANE, "cuda")


@pytest.mark.skipif(not astra.use_cuda(), reason="needs CUDA")
def test_volumes() -> None:
    A = from_astra(CONE, astra.create_vol_geom(8, 8, 6))
    assert (A.dims, A.dimsd) == ((6, 8, 8), (6, len(ANGLES), 12))
    dot_test(A, tol=0.05)  # not an exact pair


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (({"type": "spiral"}, PLANE), "proj_geom: expected a type among parallel, .* got 'spiral'"),
        ((PARALLEL, PLANE, "line_fanflat"), "expected geometries for the projector 'line_fanflat', got"),
        ((PARALLEL | {"ProjectionAngles": [np.nan]}, PLANE), "finite numbers, arrays"),
        ((7, PLANE), "dictionaries, got 7"),
        ((PARALLEL, {}), "expected geometries for the projector 'linear'"),
    ],
)
def test_what_is_no_geometry_is_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_astra(*arguments)

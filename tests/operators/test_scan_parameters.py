"""Scans as members of a family: derivatives in offset, angles and distances, and other members."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV
from torch import Tensor

from skinverse import FilteredBackProjection
from skinverse.datasets import make_ellipses
from skinverse.operators import LinearMap, as_torch, dot_test, fan_beam, parallel_beam

# No ray passes through the centres of pixels, where the derivative jumps, and none is at 45 degrees.
ANGLES = np.linspace(0.013, 6.1, 9)
FAN: dict[str, Any] = {"source_distance": 20.3, "detector_distance": 7.7, "dtype": "float64"}
SCANS: dict[str, Any] = {
    "parallel": parallel_beam((13, 10), ANGLES, 19, offset=0.31, dtype="float64"),
    "offset of every view": parallel_beam((13, 10), ANGLES, 19, offset=0.7 * np.sin(ANGLES), dtype="float64"),
    "flat fan": fan_beam((13, 10), ANGLES, 19, offset=0.27, **FAN),
    "curved fan": fan_beam((13, 10), ANGLES, 19, offset=0.27, curved=True, **FAN),
}
every = pytest.mark.parametrize("A", SCANS.values(), ids=SCANS)
PRODUCTS: dict[str, Callable[[LinearMap, Tensor, Tensor], Tensor]] = {
    "projection": lambda A, x, y: (A(x) * y.conj()).real.sum(),
    "back-projection": lambda A, x, y: (A.adjoint(y) * x.conj()).real.sum(),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slope(A: Any, name: str, direction: Tensor, value: Callable[[LinearMap], Tensor]) -> tuple[float, float]:
    """The derivative in a direction of one parameter, by autograd and by a difference."""
    parameter = A.parameters[name].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(A.at(A.parameters | {name: parameter})), parameter)
    h = 1e-6
    there, here = (
        value(as_torch(A.with_parameters({name: A.parameters[name] + s * direction}))) for s in (h, -h)
    )
    return float((gradient * direction).sum()), float((there - here).detach()) / (2 * h)


# ------------------------------------------------------------------------------------------ derivatives
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("product", PRODUCTS)
@every
def test_derivatives_are_those_of_differences(A: Any, product: str, dtype: torch.dtype) -> None:
    x, y = random(2, *A.dims, dtype=dtype), random(2, *A.dimsd, seed=1, dtype=dtype)
    for name, value in A.parameters.items():
        direction = 1.0 + torch.linspace(0, 1, value.numel()).reshape(value.shape)
        exact, difference = slope(A, name, direction, lambda M: PRODUCTS[product](M, x, y))
        assert exact == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", ["source_distance", "detector_distance"])
@pytest.mark.parametrize("kind", ["flat fan", "curved fan"])
def test_filtered_back_projection_has_derivatives_in_distances(kind: str, name: str) -> None:
    A, x = SCANS[kind], random(2, 13, 10)
    y = random(2, 9, 19, seed=1).requires_grad_()  # as that of a network's reconstruction has derivatives
    exact, difference = slope(A, name, torch.ones(()), lambda M: (M.filtered_adjoint(y) * x).sum())
    assert exact == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", ["offset", "angles"])
def test_filtered_back_projection_has_derivatives_in_offset_and_angles(name: str) -> None:
    """In half a turn at equal angles, every ray counts the same wherever the axis is."""
    angles = 0.013 + np.arange(12) * np.pi / 12
    A = parallel_beam((13, 10), angles, 31, offset=0.31, dtype="float64")
    x, y = random(2, 13, 10), random(2, 12, 31, seed=1)
    exact, difference = slope(A, name, torch.ones(()), lambda M: (M.filtered_adjoint(y) * x).sum())
    assert exact == pytest.approx(difference, rel=1e-5)


@every
def test_derivatives_in_images_and_data_go_with_them(A: Any) -> None:
    x, y = random(1, *A.dims).requires_grad_(), random(1, *A.dimsd, seed=1).requires_grad_()
    offset = A.parameters["offset"].clone().requires_grad_()
    M, fixed = A.at(A.parameters | {"offset": offset}), as_torch(A)
    assert_allclose(torch.autograd.grad((M(x) * y).sum(), (x, y))[0].detach(), fixed.adjoint(y).detach())
    assert_allclose(torch.autograd.grad((M.adjoint(y) * x).sum(), y)[0].detach(), fixed(x).detach())


def test_a_second_derivative_is_refused() -> None:
    A = SCANS["parallel"]
    offset = A.parameters["offset"].clone().requires_grad_()
    y = A.at(A.parameters | {"offset": offset})(random(1, *A.dims).requires_grad_())
    (first,) = torch.autograd.grad(y.square().sum(), offset, create_graph=True)
    with pytest.raises(RuntimeError, match="second one"):
        first.backward()


def test_single_precision_stays_single() -> None:
    A = parallel_beam((13, 10), ANGLES, 19, offset=0.31)
    x = random(2, 13, 10, dtype=torch.float32)
    y = A.at(A.parameters)(x)
    assert y.dtype == torch.float32
    assert_allclose(y, as_torch(A)(x), atol=1e-5)


# ------------------------------------------------------------------------------------------ members
@every
def test_another_member_is_the_scan_with_these_parameters(A: Any) -> None:
    changed = {name: value + 0.05 for name, value in A.get_params().items()}
    B = A.with_parameters(changed)
    make, more = (parallel_beam, {}) if len(changed) == 2 else (fan_beam, {"curved": A.curved})
    fresh = make(A.dims, n_detectors=19, spacing=A.spacing, dtype="float64", **changed, **more)
    x = random(13, 10).numpy()
    assert_array_equal(B @ x, fresh @ x)
    dot_test(B)
    assert_array_equal(pickle.loads(pickle.dumps(B)) @ x, fresh @ x)
    assert_array_equal(A.angles, ANGLES)
    y = random(1, *A.dimsd)
    assert_allclose(as_torch(B).filtered_adjoint(y), as_torch(fresh).filtered_adjoint(y))
    assert_allclose(B.at(B.parameters).filtered_adjoint(y), as_torch(fresh).filtered_adjoint(y), atol=1e-12)


def test_an_offset_may_become_that_of_every_view() -> None:
    A, x, jitter = SCANS["parallel"], random(13, 10).numpy(), 0.1 * np.cos(ANGLES)
    B = A.with_parameters({"offset": jitter})
    fresh = parallel_beam((13, 10), ANGLES, 19, offset=jitter, dtype="float64")
    assert_array_equal(B @ x, fresh @ x)
    assert_array_equal(B.with_parameters({"offset": 0.31}) @ x, A @ x)


def test_what_cannot_be_is_refused() -> None:
    fan, parallel = SCANS["flat fan"], SCANS["parallel"]
    with pytest.raises(ValueError, match="source would be inside"):
        fan.with_parameters({"source_distance": 3.0})
    with pytest.raises(ValueError, match="detector_distance: expected a length"):
        fan.with_parameters({"detector_distance": -1.0})
    with pytest.raises(ValueError, match="has the parameters offset, angles, got sigma"):
        parallel.with_parameters({"sigma": 1.0})
    with pytest.raises(ValueError, match=r"offset: expected a number or one for each of 9 views, got \(3,\)"):
        parallel.with_parameters({"offset": np.zeros(3)})
    with pytest.raises(ValueError, match="angles: expected a value of shape"):
        parallel.with_parameters({"angles": np.zeros(3)})


def test_a_search_finds_the_offset() -> None:
    images = make_ellipses(4, 32, random_state=0)
    A = parallel_beam((32, 32), np.arange(40) * np.pi / 40, 51)
    data = as_torch(A.with_parameters({"offset": 1.5}))(torch.from_numpy(images)).numpy()
    offsets = {"operator__offset": [-1.5, 0.0, 1.5]}
    search = GridSearchCV(FilteredBackProjection(A), offsets, cv=2).fit(images, data)
    assert search.best_params_ == {"operator__offset": 1.5}

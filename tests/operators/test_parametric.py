"""Families of operators: equal to their kin where these are known, adjoint, differentiable in everything."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pylops import LinearOperator
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import Tensor
from torch.testing import assert_close

import skinverse
from skinverse import Tikhonov
from skinverse.operators import (
    AngleOffset,
    DetectorOffset,
    GaussianBlur,
    ParametricOperator,
    as_torch,
    dot_test,
    fourier_sampling,
    gaussian_blur,
    parallel_beam,
)
from skinverse.operators._offsets import fourier_shift, rotate

TOMOGRAPH = parallel_beam((9, 9), np.arange(5) * np.pi / 5, 15)


class Gain(ParametricOperator):
    """A user's own family: each pixel times a number of its own, each image plus its neighbour."""

    def __init__(self, gain: Any) -> None:
        gain = torch.as_tensor(gain, dtype=torch.float64)
        super().__init__((len(gain),), (len(gain) + 1,), {"gain": gain})

    def apply(self, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        seen = parameters["gain"] * x
        return torch.cat([seen, seen[:, :1]], 1)


MEMBERS: dict[str, Any] = {
    "blur": GaussianBlur((6, 5), 1.2),
    "blur of channels": GaussianBlur((2, 4, 7), 0.6, radius=2),
    "blur of a pixel": GaussianBlur((1, 1), 0.5),
    "projections": AngleOffset(TOMOGRAPH, 0.3),
    "shifted projections": DetectorOffset(TOMOGRAPH, -1.4),
    "samples of a spectrum": AngleOffset(fourier_sampling(np.eye(6, dtype=bool)), -1.1),
    "own": Gain([1.0, -2.0, 3.0]),
}
every = pytest.mark.parametrize("A", MEMBERS.values(), ids=MEMBERS)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def kind(A: LinearOperator) -> torch.dtype:
    return torch.complex128 if np.issubdtype(A.dtype, np.complexfloating) else torch.float64


def slanted(n: int) -> np.ndarray:
    """A smooth image without any symmetry, zero near the rim."""
    i, j = np.mgrid[:n, :n] / n - 0.5
    bumps = np.exp(-60 * ((i - 0.1) ** 2 + (j - 0.15) ** 2)) + 0.5 * np.exp(-80 * ((i + 0.2) ** 2 + j**2))
    return bumps


# ------------------------------------------------------------------------------------------ their kin
@pytest.mark.parametrize("dims", [(12, 9), (2, 7, 8), (3, 3)])
def test_blur_is_that_of_the_known_width(dims: tuple[int, ...]) -> None:
    x = random(3, *dims)
    known = as_torch(gaussian_blur(dims, 1.1, truncate=3.0))
    assert_close(as_torch(GaussianBlur(dims, 1.1, radius=3))(x), known(x))


def test_turned_by_nothing_is_the_operator() -> None:
    x = random(2, 9, 9)
    assert_close(as_torch(AngleOffset(TOMOGRAPH))(x), as_torch(TOMOGRAPH)(x))


@pytest.mark.parametrize("offset", [-0.3, 0.15, 1.0])
def test_turned_adds_its_angle_to_all_angles(offset: float) -> None:
    x, angles = slanted(48), np.arange(7) * np.pi / 7
    expected = parallel_beam((48, 48), angles + offset, 71) @ x
    A = parallel_beam((48, 48), angles, 71)
    misfit = [np.linalg.norm(AngleOffset(A, sign * offset) @ x - expected) for sign in (1, -1)]
    assert misfit[0] < 0.02 * np.linalg.norm(expected) < 0.2 * misfit[1]


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_lines_between_pixels_are_those_of_scipy(n: int) -> None:
    x, shifts = random(3, 2, n), [0.0, -1.3]
    found = fourier_shift(x, torch.tensor(shifts, dtype=torch.float64))
    for line, shift in enumerate(shifts):
        for image in range(3):
            spectrum = scipy.ndimage.fourier_shift(np.fft.fft(x[image, line]), shift)
            assert_allclose(found[image, line], np.fft.ifft(spectrum).real, atol=1e-12)


@pytest.mark.parametrize("angle", [0.4, -1.3, 2.0, 3.0, -8.0])
@pytest.mark.parametrize("shape", [(40, 40), (40, 31), (33, 40)])
def test_turned_images_are_those_of_scipy(shape: tuple[int, int], angle: float) -> None:
    x = slanted(40)[: shape[0], : shape[1]] * np.hanning(shape[0])[:, None] * np.hanning(shape[1])
    middle = (np.array(shape) - 1) / 2
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = scipy.ndimage.affine_transform(x, R, middle - R @ middle, order=5)
    found = rotate(torch.from_numpy(x)[None], torch.tensor(angle, dtype=torch.float64))[0]
    assert_allclose(found, expected, atol=2e-3 * x.max())


def test_half_a_turn_is_exact() -> None:
    x = random(2, 4, 7)
    assert_close(rotate(x, torch.tensor(np.pi, dtype=torch.float64)), x.flip((1, 2)))


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 7)])
def test_a_quarter_turn_moves_by_whole_pixels(shape: tuple[int, int]) -> None:
    x = random(1, *shape)
    before, after = (rotate(x, torch.tensor(np.pi / 2 + s, dtype=torch.float64)) for s in (-1e-9, 1e-9))
    assert_close(before, after, atol=1e-6, rtol=0)
    if shape[0] == shape[1]:
        assert_close(before, x.rot90(-1, (1, 2)), atol=1e-6, rtol=0)


def test_a_detector_moved_out_sees_nothing() -> None:
    for shift in (35.0, -1e9):
        assert_array_equal(DetectorOffset(parallel_beam((24, 24), np.arange(5), 35), shift) @ slanted(24), 0)
    for family in (AngleOffset, DetectorOffset):
        with pytest.raises(ValueError, match="expected a finite number"):
            family(TOMOGRAPH, np.inf)


@pytest.mark.parametrize("family", [AngleOffset, DetectorOffset], ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [0.0, 1.0, np.pi / 4, -0.3])
def test_slopes_are_those_of_differences_also_at_whole_pixels(family: Any, value: float) -> None:
    A, x = parallel_beam((24, 24), np.arange(5), 35), torch.from_numpy(slanted(24))[None]
    y = as_torch(family(A, 0.2))(x)
    (name,) = family(A).parameters

    def misfit(p: Tensor) -> Tensor:
        return (family(A).apply(x, {name: p}) - y).square().sum()

    p = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(misfit(p), p)
    with torch.no_grad():
        expected = (misfit(p + 1e-5) - misfit(p - 1e-5)) / 2e-5
    assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.parametrize("shift", [-1.3, 0.5, 2.0])
def test_shifted_moves_the_detector(shift: float) -> None:
    angles = np.arange(7) * np.pi / 7
    A = parallel_beam((32, 32), angles, 59)
    x = slanted(32)
    lines = np.pad(A @ x, [(0, 0), (100, 100)])
    expected = np.array([np.fft.ifft(scipy.ndimage.fourier_shift(np.fft.fft(line), shift)) for line in lines])
    assert_allclose(DetectorOffset(A, shift) @ x, expected.real[:, 100:-100], atol=1e-4)
    y = torch.from_numpy(DetectorOffset(A, shift) @ x)[None]
    back = as_torch(A).filtered_adjoint(torch.from_numpy(A @ x)[None])
    assert float((as_torch(DetectorOffset(A, shift)).filtered_adjoint(y) - back).norm() / back.norm()) < 0.1


def test_a_filtered_back_projection_is_turned_back() -> None:
    x, angles = slanted(32), np.arange(40) * np.pi / 40
    A = AngleOffset(parallel_beam((32, 32), angles, 47), 0.4)
    y = torch.from_numpy(A @ x)[None]
    error = as_torch(A).filtered_adjoint(y)[0].numpy() - x
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(x)
    with pytest.raises(TypeError, match="GaussianBlur has no analytic inverse"):
        as_torch(GaussianBlur((4, 4), 1.0)).filtered_adjoint(random(1, 4, 4))


# ------------------------------------------------------------------------------------------ every family
@every
def test_adjoint_is_the_adjoint(A: Any) -> None:
    assert dot_test(A) < 1e-12
    x, y = random(3, *A.dims, dtype=kind(A)), random(3, *A.dimsd, seed=1, dtype=kind(A))
    linear = as_torch(A)
    assert_close((linear(x).conj() * y).sum(), (x.conj() * linear.adjoint(y)).sum())


@every
def test_precision_is_that_of_the_batch(A: Any) -> None:
    x = random(2, *A.dims).to(kind(A).to_real() if kind(A).is_complex else kind(A))
    x = x.to(torch.complex64 if kind(A).is_complex else torch.float32)
    y = as_torch(A)(x)
    assert y.dtype == x.dtype == as_torch(A).adjoint(y).dtype


@every
def test_numpy_sees_the_same_operator(A: Any) -> None:
    x = random(*A.dims, dtype=kind(A))
    single = {"rtol": 1e-5, "atol": 1e-5}  # matrices of projections are kept in single precision
    assert_allclose((A @ x.numpy().ravel()).reshape(A.dimsd), as_torch(A)(x[None])[0].numpy(), **single)
    dense = A.todense()
    assert_allclose((A.H @ dense[:, 0]).ravel(), dense.conj().T @ dense[:, 0], **single)


@every
def test_derivatives_in_image_data_and_parameters(A: Any) -> None:
    names = list(A.parameters)
    values = tuple(A.parameters[name].clone().requires_grad_() for name in names)
    x = random(2, *A.dims, dtype=kind(A)).requires_grad_()
    y = random(2, *A.dimsd, seed=1, dtype=kind(A)).requires_grad_()

    def both(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        linear = A.at(dict(zip(names, values, strict=True)))
        return linear(x), linear.adjoint(y)

    assert torch.autograd.gradcheck(both, (x, y, *values))


@every
def test_without_wanting_derivatives_there_is_no_graph(A: Any) -> None:
    y = random(1, *A.dimsd, dtype=kind(A))
    assert not as_torch(A).adjoint(y).requires_grad
    assert not as_torch(A).requires_grad


@every
def test_other_parameters_leave_the_member_as_it_is(A: Any) -> None:
    before = {name: value.clone() for name, value in A.parameters.items()}
    other = A.with_parameters({name: value + 0.5 for name, value in before.items()})
    for name, value in before.items():
        assert_close(A.parameters[name], value)
        assert_close(other.parameters[name], value + 0.5)
    assert (other.dims, other.dimsd) == (A.dims, A.dimsd)


@every
def test_pickling_keeps_the_member(A: Any) -> None:
    x = random(1, *A.dims, dtype=kind(A))
    expected = as_torch(A)(x)
    assert_close(as_torch(pickle.loads(pickle.dumps(A)))(x), expected)


# ------------------------------------------------------------------------------------------ parameters
class Two(ParametricOperator):
    """A family of two parameters, one of them an array."""

    def __init__(self, gain: float, weights: Any) -> None:
        super().__init__((3,), (3,), {"gain": gain, "weights": weights})

    def apply(self, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return parameters["gain"] * parameters["weights"] * x


def test_a_part_of_the_parameters_can_be_changed() -> None:
    A = Two(2.0, np.arange(3))
    B = A.with_parameters({"gain": 3})
    assert_allclose(B @ np.ones(3), 3.0 * np.arange(3))
    assert_allclose(A @ np.ones(3), 2.0 * np.arange(3))
    assert_allclose(B.with_parameters({"weights": torch.ones(3)}) @ np.ones(3), [3, 3, 3])
    assert_allclose(A.with_parameters({}) @ np.ones(3), A @ np.ones(3))
    assert type(B) is Two


@every
def test_parameters_are_read_as_scikit_learn_does(A: Any) -> None:
    values = A.get_params()
    assert values.keys() == A.parameters.keys() == A.get_params(deep=False).keys()
    for name, value in values.items():
        assert isinstance(value, (float, np.ndarray))
        assert_array_equal(value, A.parameters[name].numpy())
    B = A.with_parameters(values)
    assert_array_equal(
        as_torch(B)(random(1, *A.dims, dtype=kind(A))), as_torch(A)(random(1, *A.dims, dtype=kind(A)))
    )
    array = values.get("gain")
    if array is not None:
        array[:] = 7.0
        assert_array_equal(A.parameters["gain"], [1.0, -2.0, 3.0])


def test_parameters_of_an_operator_are_seen_through_the_estimator() -> None:
    model = Tikhonov(GaussianBlur((6, 5), 1.2), lam=0.1)
    assert model.get_params()["operator__sigma"] == 1.2
    assert "operator__sigma" not in model.get_params(deep=False)


def test_clones_share_an_operator_also_as_a_value_of_a_search() -> None:
    A = GaussianBlur((6, 5), 1.2)
    assert clone(A) is A
    assert clone({"operator": [A]}["operator"], safe=False)[0] is A
    assert clone(Tikhonov(A, lam=0.1)).operator is A
    images = np.random.default_rng(0).random((4, 6, 5))
    widths = [A.with_parameters({"sigma": sigma}) for sigma in (0.5, 1.2)]
    data = np.stack([A @ x for x in images])
    search = GridSearchCV(Tikhonov(A, lam=1e-6), {"operator": widths}, cv=2).fit(images, data)
    assert search.best_params_["operator"] is widths[1]


def test_an_operator_does_not_change() -> None:
    A = GaussianBlur((6, 5), 1.2)
    with pytest.raises(
        TypeError, match=r"shared by estimators and does not change: use operator\.with_parameters"
    ):
        A.set_params(sigma=2.0)
    assert A.get_params() == {"sigma": 1.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 1.0}, "Two has the parameters gain, weights, got width"),
        ({"gain": np.nan}, "gain: expected a finite number, got nan"),
        ({"gain": torch.tensor(np.inf)}, "gain: expected a finite number"),
        ({"gain": [1.0, 2.0]}, r"gain: expected a value of shape \(\), got shape \(2,\)"),
        ({"weights": [1.0, 2.0]}, r"weights: expected a value of shape \(3,\), got shape \(2,\)"),
    ],
)
def test_parameters_that_no_member_has_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Two(2.0, np.arange(3)).with_parameters(change)


@pytest.mark.parametrize("sigma", [0.0, 1e-9, -2.0, torch.tensor(2.0, requires_grad=True)])
def test_a_search_for_a_width_may_pass_through_zero(sigma: Any) -> None:
    found = GaussianBlur((6, 5), 1.2).with_parameters({"sigma": sigma}).parameters["sigma"]
    assert float(found) == max(abs(float(torch.as_tensor(sigma).detach())), 1e-3)
    assert not found.requires_grad


@every
def test_sizes_are_plain_integers(A: Any) -> None:
    assert all(type(size) is int for size in (*A.dims, *A.dimsd, *A.with_parameters({}).dims))


# ------------------------------------------------------------------------------------------ in use
@pytest.mark.parametrize("name", ["blur", "projections", "shifted projections"])
def test_methods_use_and_store_a_member(name: str, tmp_path: Any) -> None:
    A = MEMBERS[name]
    data = random(2, *A.dimsd).numpy()
    model = Tikhonov(A, lam=0.1).fit()
    model.save(tmp_path / "model")
    assert_allclose(skinverse.load(tmp_path / "model").predict(data), model.predict(data))


def test_a_family_of_ones_own_cannot_be_stored_and_says_so(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="Gain has no recipe"):
        Tikhonov(MEMBERS["own"], lam=0.1).fit().save(tmp_path / "model")


@pytest.mark.parametrize("side", [1, 12, 16])
def test_a_kernel_larger_than_the_image_has_derivatives_in_single_precision(side: int) -> None:
    sigma = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    linear = GaussianBlur((side, side), 1.5).at({"sigma": sigma})
    linear(torch.ones(4, side, side)).sum().backward()
    assert sigma.grad is not None
    assert torch.isfinite(sigma.grad)


def test_blur_takes_complex_images() -> None:
    A, x = GaussianBlur((6, 5), 1.2), random(6, 5, dtype=torch.complex128).numpy()
    assert_allclose(A @ x, A @ x.real + 1j * (A @ x.imag))
    assert_allclose(as_torch(A)(torch.from_numpy(x)[None])[0], A @ x)


@pytest.mark.parametrize("side", ["images", "data"])
def test_batches_of_another_shape_are_refused(side: str) -> None:
    linear = as_torch(GaussianBlur((8, 8), 1.0))
    with pytest.raises(ValueError, match=rf"expected {side} of shape \(n, 8, 8\)"):
        (linear if side == "images" else linear.adjoint)(torch.ones(1, 4, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianBlur((4,), 1.0), "dims must be"),
        (lambda: GaussianBlur((4, 4), 0.0), "sigma must be positive"),
        (lambda: AngleOffset(GaussianBlur((2, 4, 4), 1.0)), "images .height, width."),
    ],
)
def test_what_is_no_member_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()

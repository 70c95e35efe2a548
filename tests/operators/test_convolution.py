"""Convolutions under four borders, against SciPy; their norms; point spread functions of microscopes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import ndimage, signal
from scipy.integrate import quad
from scipy.special import j0, j1
from skimage.data import camera

import skinverse
from skinverse import TotalVariationRecon
from skinverse.metrics import psnr
from skinverse.operators import as_torch, convolution, dot_test, gaussian_blur, microscope_psf

MODES = {"zero": "constant", "periodic": "wrap", "reflect": "reflect"}
BOUNDARIES = [*MODES, "valid"]
SHAPES = [  # of images and kernels: odd and even, thin, as large as the image, volumes, channels
    ((9,), (4,)),
    ((12, 11), (5, 4)),
    ((12, 11), (4, 5)),
    ((7, 8), (1, 4)),
    ((6, 5), (6, 5)),
    ((4, 4), (1, 1)),
    ((3, 9, 8), (4, 3)),
    ((6, 7, 8), (3, 4, 5)),
]


def random(*shape: int) -> NDArray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def by_scipy(psf: NDArray, x: NDArray, boundary: str, centre: tuple[int, ...]) -> NDArray:
    kernel = psf.reshape((1,) * (x.ndim - psf.ndim) + psf.shape)
    if boundary == "valid":
        return signal.fftconvolve(x, kernel, mode="valid")
    origin = [0] * (x.ndim - psf.ndim) + [c - n // 2 for c, n in zip(centre, psf.shape, strict=True)]
    return ndimage.convolve(x, kernel, mode=MODES[boundary], origin=origin)


# ---------------------------------------------------------------- the same as SciPy's
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize(("dims", "size"), SHAPES)
def test_it_is_scipys_convolution(dims: tuple[int, ...], size: tuple[int, ...], boundary: str) -> None:
    psf, x = random(*size), random(*dims)
    A = convolution(psf, dims, boundary=boundary)
    assert A.dims == dims
    expected = by_scipy(psf, x, boundary, A.centre)
    assert A.dimsd == expected.shape
    assert_allclose(A @ x, expected, atol=1e-12)
    dot_test(A, tol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_every_centre_is_scipys_origin(size: tuple[int, int], boundary: str) -> None:
    psf, x = random(*size), random(9, 8)
    for centre in np.ndindex(*size):
        A = convolution(psf, x.shape, boundary=boundary, centre=centre)
        assert_allclose(A @ x, by_scipy(psf, x, boundary, centre), atol=1e-12)
        dot_test(A, tol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_batches_complex_images_and_complex_kernels(boundary: str) -> None:
    psf = random(3, 4) + 1j * random(4, 3).T
    x = random(2, 5, 9, 8)[0] + 1j * random(2, 5, 9, 8)[1]
    for kernel, images in ((psf.real, x.real), (psf.real, x), (psf, x)):
        op = convolution(kernel, (9, 8), boundary=boundary)
        y = as_torch(op)(torch.from_numpy(images.copy()))
        expected = [by_scipy(kernel, image, boundary, op.centre) for image in images]
        assert_allclose(y.numpy(), expected, atol=1e-12)
        assert_array_equal(op.matmat(images.reshape(5, -1).T).T.reshape(y.shape), y)
        assert_array_equal(op @ images[2], op.matmat(images[2].reshape(-1, 1)).reshape(op.dimsd))
    dot_test(op, tol=1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_precision_is_that_of_the_kernel_and_of_the_batch(boundary: str) -> None:
    psf, x = random(3, 4), random(1, 9, 8)
    exact = convolution(psf, (9, 8), boundary=boundary)
    single = convolution(psf.astype("float32"), (9, 8), boundary=boundary)
    assert (exact.dtype, single.dtype) == ("float64", "float32")
    assert (single @ x[0].astype("float32")).dtype == "float32"
    assert (exact @ x[0].astype("float32")).dtype == "float64"
    for op in (exact, single):
        y = as_torch(op)(torch.from_numpy(x.astype("float32")))
        assert y.dtype == torch.float32
        assert_allclose(y[0].numpy(), exact @ x[0], atol=1e-5)


@pytest.mark.draws_globally  # gradgradcheck does
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_it_is_differentiable_twice(boundary: str) -> None:
    A = as_torch(convolution(random(3, 4), (5, 6), boundary=boundary))
    x = torch.from_numpy(random(2, 5, 6)).requires_grad_()
    torch.autograd.gradcheck(A, x)
    torch.autograd.gradgradcheck(A, x)


def test_counts_are_numbers_and_the_kernel_is_a_copy() -> None:
    counts = (100 * abs(random(3, 3))).astype(np.uint16)
    A = convolution(counts, (6, 6))
    assert A.dtype == "float64"
    expected = A @ np.ones((6, 6))
    counts[:] = 0
    assert_array_equal(A @ np.ones((6, 6)), expected)
    assert expected[2, 3] == A.psf.sum()  # it is used as it is


def test_read_only_images_are_taken() -> None:
    x = random(6, 6)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convolution(random(3, 3), (6, 6)) @ x


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 8)), min_size=1, max_size=3),
    st.sampled_from(BOUNDARIES),
)
def test_any_sizes(sides: list[tuple[int, int, int]], boundary: str) -> None:
    dims = tuple(max(n, k) for n, k, _ in sides)
    size, centre = tuple(k for _, k, _ in sides), tuple(min(c, k - 1) for _, k, c in sides)
    psf, x = random(*size), random(*dims)
    A = convolution(psf, dims, boundary=boundary, centre=centre)
    inside = all(-(k // 2) <= c - k // 2 <= (k - 1) // 2 for c, k in zip(centre, size, strict=True))
    assert inside
    assert_allclose(A @ x, by_scipy(psf, x, boundary, centre), atol=1e-11)
    dot_test(A, tol=1e-11)


# ---------------------------------------------------------------- where the data lie
@pytest.mark.parametrize("centre", [None, (0, 0), (3, 4), (1, 2)])
def test_data_lie_under_the_centre(centre: tuple[int, int] | None) -> None:
    """A kernel that is nothing but its centre copies the pixels on which the data lie."""
    psf = np.zeros((4, 5))
    psf[(2, 2) if centre is None else centre] = 1
    A = convolution(psf, (3, 9, 8), boundary="valid", centre=centre)
    x = random(3, 9, 8)
    assert_allclose(A @ x, A.crop_to_data(x), atol=1e-14)
    assert A.crop_to_data(torch.zeros(2, 7, 3, 9, 8)).shape == (2, 7, *A.dimsd)


@pytest.mark.parametrize("boundary", MODES)
def test_with_other_borders_data_lie_on_all_pixels(boundary: str) -> None:
    x = random(6, 6)
    assert_array_equal(convolution(random(3, 3), (6, 6), boundary=boundary).crop_to_data(x), x)


def test_images_of_other_sizes_are_not_cropped() -> None:
    A = convolution(random(3, 3), (6, 7), boundary="valid")
    with pytest.raises(ValueError, match=r"\(\.\.\., 6, 7\), got \(4, 5\)"):
        A.crop_to_data(np.ones(A.dimsd))


def test_composed_reshaped_and_stored(tmp_path: Any) -> None:
    A = convolution(random(3, 4), (9, 8), boundary="valid", centre=(0, 3))
    x = random(9, 8)
    linear = as_torch(2 * A)
    assert linear.neighbours == (True, True)
    assert_allclose(linear(torch.from_numpy(x[None]))[0], 2 * (A @ x), atol=1e-12)
    path = tmp_path / "tv.skinverse"
    skinverse.TotalVariationRecon(A, lam=0.1, max_steps=3).fit().save(path)
    again = skinverse.load(path).operator
    assert (again.boundary, again.centre, again.dims, again.dimsd) == ("valid", (0, 3), (9, 8), (7, 5))
    assert_array_equal(again @ x, A @ x)
    A.dims, A.dimsd = (72,), (35,)
    assert_array_equal(A @ x.ravel(), (again @ x).ravel())


# ---------------------------------------------------------------- Gaussian
@pytest.mark.parametrize("boundary", MODES)
def test_gaussian_blur_is_scipys(boundary: str) -> None:
    x = random(2, 15, 14)
    y = ndimage.gaussian_filter(x, 1.3, mode=MODES[boundary], axes=(-2, -1))
    assert_allclose(gaussian_blur(x.shape, 1.3, boundary=boundary) @ x, y, atol=1e-12)


def test_gaussian_blur_of_a_volume() -> None:
    x = random(20, 11, 12)
    y = ndimage.gaussian_filter(x, (2.0, 1.0, 1.1), mode="reflect")
    assert_allclose(gaussian_blur(x.shape, (2.0, 1.0, 1.1), boundary="reflect") @ x, y, atol=1e-12)


# ---------------------------------------------------------------- norms
def shifted(size: int) -> NDArray:
    """A Gaussian beside the centre of its kernel, with 5 % of its peak as noise."""
    psf = np.roll(gaussian_blur((32, 32), size / 8).psf, 1, 0)
    return psf + 0.05 * psf.max() * random(*psf.shape)


KERNELS: dict[str, NDArray] = {
    "gaussian": gaussian_blur((32, 32), 2.0).psf,
    "measured": shifted(8),
    "random": random(5, 4),
    "edges": np.array([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]),
    "complex": random(3, 3) + 1j * random(3, 3).T,
    "shift": np.eye(5)[:1],
    "number": -3 * np.ones((1, 1)),
    "padded with zeros": np.pad(np.ones((2, 3)), 3),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dims", [(20, 24), (18, 40)])
def test_norms_are_largest_singular_values(name: str, boundary: str, dims: tuple[int, int]) -> None:
    psf = KERNELS[name]
    for centre in (None, (0, 0)):
        A = convolution(psf, dims, boundary=boundary, centre=centre)
        assert as_torch(A).norm() == pytest.approx(np.linalg.norm(A.todense(), 2), rel=0.01)


def test_symmetric_kernels_of_mirrored_images_have_an_exact_norm() -> None:
    A = convolution(KERNELS["edges"], (7, 9), boundary="reflect")
    assert as_torch(A).norm() == pytest.approx(np.linalg.norm(A.todense(), 2), rel=1e-12)
    B = convolution(random(5, 4), (7, 9), boundary="periodic")
    assert as_torch(B).norm() == pytest.approx(np.linalg.norm(B.todense(), 2), rel=1e-12)


VOLUME = (8, 48, 48)
PSF = gaussian_blur(VOLUME, (0.8, 1.2, 1.2)).psf
UNEVEN = PSF * (1 + 0.3 * np.random.default_rng(0).random(PSF.shape))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("psf", [PSF, UNEVEN], ids=["even", "uneven"])
def test_norm_of_a_volume_needs_few_products(psf: NDArray, boundary: str) -> None:
    """Lanczos takes a hundred of both kinds; the half sine of a thin axis is too far from the border."""
    A = as_torch(convolution(psf, VOLUME, boundary=boundary))
    forward, calls = A._forward, []
    A._forward = lambda x: calls.append(1) or forward(x)  # type: ignore[method-assign]
    bound = float(psf.sum())
    assert 0.5 * bound < A.norm() < 1.1 * bound
    assert len(calls) <= 12


# ---------------------------------------------------------------- bad input
ONES = np.ones((3, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: convolution(np.ones((3, 7)), (6, 6)), r"larger than the image of shape \(6, 6\).*\(3, 7\)"),
        (lambda: convolution(np.ones((7, 3)), (2, 6, 6), boundary="valid"), r"shape \(6, 6\).*\(7, 3\)"),
        (lambda: convolution(ONES * np.nan, (6, 6)), "psf must be finite, got NaN"),
        (lambda: convolution(ONES * np.inf, (6, 6)), "psf must be finite"),
        (lambda: convolution(0 * ONES, (6, 6)), "nothing but zeros"),
        (lambda: convolution(np.ones((3, 3, 0)), (6, 6, 6)), "nothing but zeros"),
        (lambda: convolution(ONES.astype(str), (6, 6)), "array of numbers"),
        (lambda: convolution(1.0, (6, 6)), "array of numbers"),
        (lambda: convolution(ONES, (6 + 0j, 6)), "positive sizes"),
        (lambda: convolution(ONES, (6.5, 6)), "positive sizes"),
        (lambda: convolution(ONES, (6, 0)), "positive sizes"),
        (lambda: convolution(ONES, (6,)), r"no more axes than dims \(6,\), got shape \(3, 3\)"),
        (lambda: convolution(ONES, (6, 6), centre=(1, 3)), r"pixel of the psf of shape \(3, 3\)"),
        (lambda: convolution(ONES, (6, 6), centre=(-1, 1)), "pixel of the psf"),
        (lambda: convolution(ONES, (6, 6), centre=(1.5, 1)), "pixel of the psf"),
        (lambda: convolution(ONES, (6, 6), centre=1), "pixel of the psf"),
        (lambda: convolution(ONES, (6, 6), boundary="wrap"), "zero, periodic, reflect, valid, got 'wrap'"),
        (lambda: convolution(ONES, (6, 6), boundary=["zero"]), "zero, periodic, reflect, valid"),
        (lambda: gaussian_blur((8, 8), 2.0, boundary="valid"), r"\(8, 8\), got shape \(17, 17\)"),
        (lambda: gaussian_blur((8, 8), (1.0, 1.0, 1.0)), "no more axes"),
        (lambda: gaussian_blur((8, 8), (1.0, -1.0)), "positive"),
        (lambda: gaussian_blur((8, 8), math.inf), "positive, got inf"),
        (lambda: gaussian_blur((8, 8), 1.0, boundary="mirror"), "got 'mirror'"),
    ],
)
def test_bad_input_is_one_sentence(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- unknown borders
def test_photograph_cut_from_a_scene() -> None:
    """With zeros outside, the border spoils what is a whole width of the blur within the data."""
    scene = camera()[100:150, 180:230] / 255
    truth = gaussian_blur(scene.shape, 2.5, truncate=2.5, boundary="valid")
    data, image = truth @ scene, truth.crop_to_data(scene)
    inner = np.s_[:, 3:-3, 3:-3]
    scores = []
    for A in (truth, gaussian_blur(data.shape, 2.5, truncate=2.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few steps do not converge
            x = A.crop_to_data(TotalVariationRecon(A, lam=1e-5, max_steps=400).fit().predict(data[None]))
        scores.append(
            [float(psnr(image[None][part], x[part], data_range=1)[0]) for part in (np.s_[:], inner)]
        )
    (valid, valid_inside), (zero, zero_inside) = scores
    assert valid > zero + 20
    assert valid_inside > zero_inside + 15


# ---------------------------------------------------------------- microscopes
GREEN: dict[str, Any] = {"wavelength_um": 0.52, "numerical_aperture": 1.2, "refractive_index": 1.33}


def intensity(r: float, z: float) -> float:
    """The integral of Born and Wolf, by adaptive quadrature."""
    k = 2 * np.pi / GREEN["wavelength_um"]
    v, u = k * 1.2 * r, k * 1.2**2 * z / 1.33
    real, imaginary = (
        quad(lambda t, wave=wave: 2 * t * j0(v * t) * wave(u * t * t / 2), 0, 1, limit=200)[0]
        for wave in (np.cos, np.sin)
    )
    return real**2 + imaginary**2


def test_volume_is_the_integral_of_born_and_wolf() -> None:
    psf = microscope_psf((21, 16, 15), pixel_size_um=(0.3, 0.07, 0.06), **GREEN)
    assert psf.shape == (21, 16, 15)
    assert psf.sum() == pytest.approx(1)
    assert np.unravel_index(psf.argmax(), psf.shape) == (10, 8, 7)
    for i, j, k in [(10, 3, 4), (0, 0, 0), (20, 15, 3), (13, 8, 12)]:
        expected = intensity(float(np.hypot((j - 8) * 0.07, (k - 7) * 0.06)), (i - 10) * 0.3)
        assert psf[i, j, k] / psf.max() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_image_in_focus_is_the_airy_disc() -> None:
    psf = microscope_psf((9, 12), pixel_size_um=0.05, **GREEN)
    y, x = np.ogrid[-4:5, -6:6]
    v = 2 * np.pi / 0.52 * 1.2 * 0.05 * np.hypot(y, x)
    v[4, 6] = 1
    expected = (2 * j1(v) / v) ** 2
    expected[4, 6] = 1
    assert_allclose(psf, expected / expected.sum(), rtol=1e-12)
    plane = microscope_psf((3, 9, 12), pixel_size_um=(0.2, 0.05, 0.05), **GREEN)[1]
    assert_allclose(psf, plane / plane.sum(), rtol=1e-9, atol=1e-15)


def test_zeros_across_and_along_the_axis() -> None:
    across = microscope_psf((1, 3), pixel_size_um=0.60983 * 0.52 / 1.2, **GREEN)
    assert across[0, 0] < 1e-8 * across[0, 1]
    step = 2 * 1.33 * 0.52 / 1.2**2
    along = microscope_psf((5, 1, 1), pixel_size_um=(step, 1, 1), **GREEN)[:, 0, 0]
    assert_allclose(along, [0, 0, 1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 5)])
def test_gaussian_has_the_curvature_of_the_peak(shape: tuple[int, ...]) -> None:
    exact, gaussian = (
        microscope_psf(shape, pixel_size_um=0.01, model=model, **GREEN) for model in ("born-wolf", "gaussian")
    )
    fall = 1 - exact / exact.max()
    assert_allclose(1 - gaussian / gaussian.max(), fall, atol=fall.max() ** 2)


def test_gaussian_widths() -> None:
    psf = microscope_psf(
        (1, 3), pixel_size_um=math.sqrt(2) * 0.52 / (2 * np.pi * 1.2), model="gaussian", **GREEN
    )
    assert_allclose(psf[0] / psf.max(), np.exp([-0.5, 0, -0.5]))
    step = 2 * math.sqrt(6) * 1.33 * 0.52 / (2 * np.pi * 1.2**2)
    psf = microscope_psf((3, 1, 1), pixel_size_um=step, model="gaussian", **GREEN)
    assert_allclose(psf[:, 0, 0] / psf.max(), np.exp([-0.5, 0, -0.5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (5,)}, r"\(height, width\) or \(depth, height, width\), got \(5,\)"),
        ({"shape": (5, -5)}, "shape must be positive sizes"),
        ({"numerical_aperture": 1.4}, "at most refractive_index, got 1.4 and 1.33"),
        ({"numerical_aperture": 0.0}, "must be positive"),
        ({"refractive_index": math.nan}, "at most refractive_index"),
        ({"wavelength_um": -0.5}, "wavelength_um must be positive, got -0.5"),
        ({"wavelength_um": math.inf}, "wavelength_um must be positive"),
        ({"pixel_size_um": 0.0}, "pixel_size_um must be positive"),
        ({"pixel_size_um": (0.1, 0.1)}, "one or 3"),
        ({"model": "airy"}, "born-wolf, gaussian, got 'airy'"),
    ],
)
def test_microscopes_that_cannot_be(change: dict[str, Any], message: str) -> None:
    arguments = {"shape": (5, 5, 5), "pixel_size_um": 0.1, **GREEN} | change
    with pytest.raises(ValueError, match=message):
        microscope_psf(arguments.pop("shape"), **arguments)

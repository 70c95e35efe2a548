"""Phantoms against tables and moments, photographs from the wheels, noise levels, seeds."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from skimage.color import rgb2gray
from skimage.data import shepp_logan_phantom

from skinverse.datasets import load_photographs, make_ellipses, make_problem, shepp_logan
from skinverse.datasets._photographs import _PHOTOGRAPHS
from skinverse.operators import as_torch, dot_test

PROBLEMS = ["ct", "mri", "deblurring", "denoising", "compressive_sensing"]


def pixel(image: np.ndarray, x: float, y: float) -> float:
    """The value at a point of [-1, 1]^2, y upwards."""
    n = len(image)
    return image[int((1 - y) / 2 * n), int((1 + x) / 2 * n)]


# ---------------------------------------------------------------------- phantoms
def test_shepp_logan_is_that_of_scikit_image_but_for_pixels_on_edges() -> None:
    ours, theirs = shepp_logan(400), shepp_logan_phantom()
    assert (np.abs(ours - theirs) > 0.05).mean() < 0.01
    assert_allclose(np.unique(ours), [0, 0.1, 0.2, 0.3, 0.4, 1], atol=1e-7)


@pytest.mark.parametrize(
    ("x", "y", "original", "modified"),
    [
        (0.0, 0.98, 0.0, 0.0),  # outside
        (0.0, 0.9, 2.0, 1.0),  # skull
        (0.0, -0.3, 1.02, 0.2),  # brain
        (0.22, 0.0, 1.0, 0.0),  # ventricles
        (-0.22, 0.0, 1.0, 0.0),
        (0.0, 0.45, 1.03, 0.3),  # large tumour, above the centre
        (-0.08, -0.605, 1.03, 0.3),  # small ones, below
        (0.06, -0.605, 1.03, 0.3),
    ],
)
def test_shepp_logan_has_the_values_of_the_table(x, y, original, modified) -> None:
    assert pixel(shepp_logan(512, modified=False), x, y) == pytest.approx(original)
    assert pixel(shepp_logan(512), x, y) == pytest.approx(modified, abs=1e-12)


def test_shepp_logan_head_is_symmetric_and_its_ventricles_lean_outwards() -> None:
    phantom = shepp_logan(256)
    assert_array_equal(phantom > 0.9, phantom[:, ::-1] > 0.9)
    assert pixel(phantom, 0.29, 0.2) == pixel(phantom, -0.31, 0.25) == 0
    assert pixel(phantom, 0.29, -0.2) == pixel(phantom, -0.31, -0.25) == pytest.approx(0.2)


@pytest.mark.parametrize("size", [1, 2, 7, 65])
def test_phantoms_exist_at_every_size(size) -> None:
    assert shepp_logan(size).shape == (size, size)
    assert make_ellipses(2, size, random_state=0).shape == (2, size, size)


def test_shepp_logan_means_the_same_at_every_size() -> None:
    coarse = shepp_logan(64)
    averaged = shepp_logan(512).reshape(64, 8, 64, 8).mean(axis=(1, 3))
    assert abs(coarse.mean() - averaged.mean()) < 2e-3


def test_ellipses_have_the_moments_of_adler_and_oktem() -> None:
    images = make_ellipses(400, 128, random_state=0)
    standard_error = images.mean(axis=(1, 2)).std() / np.sqrt(400)
    assert abs(images.mean() - 0.001) < 4 * standard_error
    assert images.std() == pytest.approx(0.19, abs=0.01)
    assert -2.6 < images.min() < -1.2
    assert 1.2 < images.max() < 2.6


def test_ellipses_are_dense_at_the_centre_and_equal_in_all_directions() -> None:
    power = (make_ellipses(400, 64, random_state=1) ** 2).mean(axis=0)
    assert power[24:40, 24:40].mean() > 1.3 * np.concatenate([power[:4].ravel(), power[-4:].ravel()]).mean()
    halves = [power[:32].mean(), power[32:].mean(), power[:, :32].mean(), power[:, 32:].mean()]
    assert_allclose(halves, power.mean(), rtol=0.1)


def test_more_ellipses_begin_with_the_same_ones() -> None:
    assert_array_equal(make_ellipses(2, 32, random_state=0), make_ellipses(5, 32, random_state=0)[:2])


# ---------------------------------------------------------------------- photographs
def test_photographs_are_inside_the_wheels() -> None:
    wheels = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
    shipped = {str(file) for wheel in wheels.values() for file in importlib.metadata.files(wheel)}
    for sources in _PHOTOGRAPHS.values():
        for package, name in sources:
            assert f"{package.replace('.', '/')}/{name}" in shipped


def test_photographs_need_no_network(monkeypatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    images = load_photographs(32)
    assert images.shape == (16, 32, 32)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.std(axis=(1, 2)) > 0.01).all()


@pytest.mark.parametrize("n_patches", [None, 3])
def test_photographs_have_their_colours_on_the_axis_asked_for(n_patches: int | None) -> None:
    settings = {"subset": "test", "n_patches": n_patches, "random_state": 0}
    last, first = (load_photographs(24, channel_axis=axis, **settings) for axis in (-1, 0))
    grey = load_photographs(24, **settings)
    assert last.shape == (*grey.shape, 3)
    assert_array_equal(np.moveaxis(last, -1, 1), first)
    assert_allclose(rgb2gray(last), grey, atol=1e-5)


def test_train_and_test_are_different_photographs_and_all_is_both() -> None:
    parts = [load_photographs(24, subset=subset) for subset in ("train", "test")]
    assert_array_equal(np.concatenate(parts), load_photographs(24))
    assert not set(_PHOTOGRAPHS["train"]) & set(_PHOTOGRAPHS["test"])
    flat = np.concatenate(parts).reshape(16, -1)
    similar = np.corrcoef(flat) - np.eye(16)
    assert similar.max() < 0.9


def test_reduced_photographs_keep_their_brightness() -> None:
    small, large = load_photographs(30), load_photographs(300)
    assert_allclose(small.mean(axis=(1, 2)), large.mean(axis=(1, 2)), atol=0.01)
    blocks = large.reshape(16, 30, 10, 30, 10).mean(axis=(2, 4))
    assert np.abs(small - blocks).mean() < 0.02


def test_patches_are_random_squares_of_one_subset() -> None:
    patches = load_photographs(16, subset="test", n_patches=40, random_state=0)
    assert patches.shape == (40, 16, 16)
    assert len(np.unique(patches.reshape(40, -1), axis=0)) == 40
    assert_array_equal(patches, load_photographs(16, subset="test", n_patches=40, random_state=0))
    assert not np.array_equal(patches, load_photographs(16, subset="test", n_patches=40, random_state=1))


# ---------------------------------------------------------------------- problems
@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_fits_together(name) -> None:
    images, data, operator = make_problem(name, n_samples=3, size=32, noise=0.0, random_state=0)
    assert images.shape == (3, *operator.dims) == (3, 32, 32)
    assert data.shape == (3, *operator.dimsd)
    exact = np.stack([operator.matvec(x.ravel()).reshape(operator.dimsd) for x in images])
    assert_allclose(data, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    assert data.dtype == images.dtype == (np.complex64 if name == "mri" else np.float32)
    dot_test(operator)


@pytest.mark.parametrize("name", PROBLEMS)
def test_noise_has_the_level_asked_for_in_each_sample(name) -> None:
    noisy = make_problem(name, n_samples=4, size=48, noise=0.2, random_state=0)
    clean = make_problem(name, n_samples=4, size=48, noise=0.0, random_state=0)
    assert_array_equal(noisy.images, clean.images)
    axes = tuple(range(1, clean.data.ndim))
    n_values = as_torch(clean.operator).n_measured  # a quarter of k-space
    level = np.sqrt((np.abs(noisy.data - clean.data) ** 2).sum(axis=axes) / n_values)
    expected = 0.2 * np.abs(clean.data).sum(axis=axes) / n_values
    assert_allclose(level, expected, rtol=5 / np.sqrt(n_values))


def test_complex_noise_is_circular() -> None:
    noisy = make_problem("mri", n_samples=8, size=48, noise=0.2, random_state=0)
    clean = make_problem("mri", n_samples=8, size=48, noise=0.0, random_state=0)
    noise = (noisy.data - clean.data).ravel()
    measured = np.tile(as_torch(clean.operator).measured.numpy().ravel(), 8)
    assert not noise[~measured].any()
    noise = noise[measured]
    assert noise.real.std() == pytest.approx(noise.imag.std(), rel=0.03)
    assert abs(np.corrcoef(noise.real, noise.imag)[0, 1]) < 0.03


@pytest.mark.parametrize("name", PROBLEMS)
def test_operator_does_not_depend_on_the_seed(name) -> None:
    x = np.random.default_rng(0).normal(size=16 * 16)
    first, second = (make_problem(name, 1, 16, random_state=seed).operator for seed in (0, 1))
    assert_array_equal(first.matvec(x), second.matvec(x))


@pytest.mark.parametrize("name", PROBLEMS)
def test_same_seed_same_problem_and_another_seed_another(name) -> None:
    first, second, other = (make_problem(name, 2, 16, random_state=seed) for seed in (3, 3, 4))
    assert_array_equal(first.images, second.images)
    assert_array_equal(first.data, second.data)
    assert not np.array_equal(first.images, other.images)


def test_ct_at_128_is_the_geometry_of_adler_and_oktem() -> None:
    phantom = shepp_logan(128)[None]
    _, data, operator = make_problem("ct", images=phantom, noise=0.0)
    assert operator.dimsd == (30, 183)
    # Theirs is 11.006 with the centres of the outermost pixels at -1 and 1, so for a smaller head.
    assert np.abs(data).mean() == pytest.approx(11.006 * (128 / 127) ** 2, rel=0.005)


def test_mri_coils_see_a_quarter_of_k_space_and_lose_no_energy_otherwise() -> None:
    images, data, _ = make_problem("mri", 3, 64, noise=0.0, random_state=0)
    ratio = np.linalg.norm(data) / np.linalg.norm(images)
    assert 0.5 < ratio <= 1 + 1e-5
    assert np.abs(np.angle(images)).max() > 0.3


def test_given_images_are_measured_in_their_precision() -> None:
    images = load_photographs(24, subset="test", dtype=np.float64)
    problem = make_problem("deblurring", images=images, random_state=0)
    assert problem.images is images
    assert problem.data.dtype == np.float64
    assert problem.data.shape == (6, 24, 24)


@pytest.mark.parametrize("seed", [0, np.random.default_rng(0), np.random.RandomState(0), None])
def test_every_kind_of_random_state_is_taken(seed) -> None:
    assert make_ellipses(1, 8, random_state=seed).shape == (1, 8, 8)


def test_generators_go_on_and_seeds_repeat() -> None:
    rng = np.random.RandomState(0)
    first, second = (make_ellipses(1, 16, random_state=rng) for _ in range(2))
    assert not np.array_equal(first, second)
    assert_array_equal(first, make_ellipses(1, 16, random_state=np.random.RandomState(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shepp_logan(0), "size: expected a positive integer, got 0"),
        (lambda: shepp_logan(2.5), "size: expected a positive integer, got 2.5"),
        (lambda: make_ellipses(0, 8), "n_samples: expected a positive integer"),
        (lambda: load_photographs(301), "size: expected 1 to 300 pixels, got 301"),
        (lambda: load_photographs(8, subset="validation"), "'train', 'test' or 'all', got 'validation'"),
        (
            lambda: load_photographs(8, channel_axis=3),
            "channel_axis: expected None or an axis of three, got 3",
        ),
        (lambda: load_photographs(8, n_patches=0), "n_patches: expected a positive integer"),
        (lambda: make_problem("pet"), r"name: expected one of \['compressive_sensing', 'ct'.* got 'pet'"),
        (lambda: make_problem("ct", noise=-0.1), "noise: expected a number that is not negative"),
        (lambda: make_problem("ct", images=np.ones((2, 3, 4))), r"images: expected shape .* \(2, 3, 4\)"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()

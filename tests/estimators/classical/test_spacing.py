"""Distances of pixels, and edges that channels share, in reconstructions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import skinverse
from skinverse import RichardsonLucy, TotalGeneralizedVariationRecon, TotalVariationRecon
from skinverse.metrics import psnr
from skinverse.noise import Poisson

VARIATIONS = [TotalVariationRecon, TotalGeneralizedVariationRecon]
METHODS = [*VARIATIONS, RichardsonLucy]
TIGHT: dict[str, Any] = {"tol": 1e-6, "max_steps": 20000}
MICROSCOPE = (4.0, 1.0, 1.0)


def volume(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ball in slices that are four times as far apart as its pixels, and the same with noise."""
    z, y, x = np.meshgrid(4 * (np.arange(5) - 2), np.arange(16) - 7.5, np.arange(16) - 7.5, indexing="ij")
    ball = (x**2 + y**2 + z**2 < 50).astype(float)[None]
    return ball, ball + noise * np.random.default_rng(seed).normal(size=ball.shape)


def spheres(p: np.ndarray) -> np.ndarray:
    """The nearest vectors (d, ...) of length 1 or less."""
    return p / np.maximum(1, np.linalg.norm(p, axis=0))


def spectral_balls(p: np.ndarray) -> np.ndarray:
    """The nearest matrices (d, channels, ...) whose singular values are 1 or less."""
    U, S, Vh = np.linalg.svd(np.moveaxis(p, (0, 1), (-2, -1)), full_matrices=False)
    return np.moveaxis((U * S.clip(max=1)[..., None, :]) @ Vh, (-2, -1), (0, 1))


def denoised(
    y: np.ndarray, lam: float, spacing: tuple[float, ...], project: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """``min 1/2 ||x - y||^2 + lam R(x)`` for the last axes of one image, by accelerated steps in the dual."""
    axes = range(-len(spacing), 0)

    def gradient(x: np.ndarray) -> np.ndarray:
        ends = [np.diff(x, axis=k, append=x.take([-1], k)) for k in axes]
        return np.stack([g / h for g, h in zip(ends, spacing, strict=True)])

    def adjoint(p: np.ndarray) -> np.ndarray:
        total = np.zeros_like(y)
        for q, k, h in zip(p, axes, spacing, strict=True):
            inner = np.delete(q, -1, k) / h
            total -= np.diff(inner, axis=k, prepend=0, append=0)
        return total

    u = v = np.zeros_like(gradient(y))
    step, t = 1 / sum(4 / h**2 for h in spacing), 1.0
    for _ in range(1500):
        new = project(v + step / lam * gradient(y - lam * adjoint(v)))
        t, before = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
        v, u = new + (before - 1) / t * (new - u), new
    return y - lam * adjoint(u)


@pytest.mark.parametrize("spacing", [(0.5,), (2.0, 1.0), (5.0, 1.0, 0.5)])
def test_total_variation_of_distances_is_that_of_another_solver(spacing: tuple[float, ...]) -> None:
    y = np.random.default_rng(0).normal(size=(6, 5, 7)[: len(spacing)])
    A = pylops.Identity(y.shape)
    x = TotalVariationRecon(A, lam=0.3, spacing=spacing, **TIGHT).fit().predict(y[None])
    assert_allclose(x[0], denoised(y, 0.3, spacing, spheres), atol=2e-3)


@pytest.mark.parametrize(("spacing", "axis"), [((1.0, 1.0), 0), ((2.0, 1.0), -1), ((3.0, 1.0, 1.0), 0)])
def test_nuclear_variation_is_that_of_another_solver(spacing: tuple[float, ...], axis: int) -> None:
    y = np.random.default_rng(0).normal(size=(3, 5, 4, 3)[: len(spacing) + 1])
    method = TotalVariationRecon(lam=0.3, variation="nuclear", spacing=spacing, channel_axis=axis, **TIGHT)
    x = method.fit().predict(np.moveaxis(y, 0, axis)[None])
    assert_allclose(np.moveaxis(x[0], axis, 0), denoised(y, 0.3, spacing, spectral_balls), atol=2e-3)


@pytest.mark.parametrize("method", VARIATIONS)
def test_distances_of_one_are_none(method: type) -> None:
    y = volume(0.3)[1][:, :3, :10, :10]
    expected = method(lam=0.2).fit().predict(y)
    assert_array_equal(method(lam=0.2, spacing=(1, 1, 1)).fit().predict(y), expected)
    assert_array_equal(method(lam=0.4, spacing=[2, 2, 2]).fit().predict(y), expected)


@pytest.mark.parametrize("method", VARIATIONS)
@pytest.mark.parametrize("how", [{}, {"noise": 0.3}, {"lam": "discrepancy", "noise": 0.3}])
def test_the_unit_of_length_does_not_matter_where_a_rule_chooses(method: type, how: dict[str, Any]) -> None:
    y = volume(0.3)[1][:, :3, :10, :10]
    expected, told = method(spacing=MICROSCOPE, **how).fit().predict(y, return_info=True)
    spacing = tuple(3e-7 * h for h in MICROSCOPE)
    x, info = method(spacing=spacing, **how).fit().predict(y, return_info=True)
    assert_allclose(x, expected, atol=1e-4)
    if "lam" in told:
        assert_allclose(info.lam, 3e-7 * told.lam, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_number_lam_is_a_length(method: type) -> None:
    _, y = volume(0.0)
    y = 50 * y + 10
    how = {"noise": Poisson()} if method is RichardsonLucy else {}
    expected = method(spacing=MICROSCOPE, lam=0.1, **how).fit().predict(y)
    spacing = tuple(1e-3 * h for h in MICROSCOPE)
    assert_allclose(method(spacing=spacing, lam=1e-4, **how).fit().predict(y), expected, rtol=1e-6)
    assert np.abs(method(lam=0.1, **how).fit().predict(y) - expected).max() > 0.01


def test_counts_may_choose_the_weight() -> None:
    clean, _ = volume(0.0)
    counts = Poisson().sample(20 * clean + 5, random_state=0)
    found = []
    for spacing in (MICROSCOPE, tuple(0.1 * h for h in MICROSCOPE)):
        method = TotalVariationRecon(lam="discrepancy", noise="poisson", spacing=spacing)
        found.append(method.fit().predict(counts, return_info=True))
    (x, info), (small, told) = found
    assert_allclose(small, x, rtol=1e-4)
    assert_allclose(told.lam, 0.1 * info.lam, rtol=1e-6)


def test_a_stack_is_denoised_better_by_its_distances() -> None:
    clean, y = volume(0.4)
    plain, spaced = (
        psnr(clean, TotalVariationRecon(spacing=spacing).fit().predict(y))[0]
        for spacing in (None, MICROSCOPE)
    )
    assert spaced > plain + 1


def test_flat_voxels_take_no_more_steps() -> None:
    _, y = volume(0.4)
    steps = [
        TotalVariationRecon(lam=0.3, spacing=h, tol=1e-4).fit().predict(y, return_info=True)[1].n_steps[0]
        for h in (None, (5, 1, 1), (1, 5, 5))
    ]
    assert max(steps) <= 1.5 * steps[0]


def test_richardson_lucy_has_the_variation_of_these_distances() -> None:
    """At convergence its objective is that of the other method for the same weight and distances."""
    clean, _ = volume(0.0)
    counts = Poisson().sample(20 * clean + 5, random_state=0)
    how = {"lam": 0.01, "spacing": MICROSCOPE, "noise": Poisson()}
    _, found = RichardsonLucy(max_steps=100, **how).fit().predict(counts, return_info=True)
    _, least = TotalVariationRecon(**how).fit().predict(counts, return_info=True)
    _, other = TotalVariationRecon(**{**how, "spacing": None}).fit().predict(counts, return_info=True)
    assert_allclose(found.objective, least.objective, rtol=2e-3)
    assert other.objective > 1.2 * least.objective


@pytest.mark.parametrize("axis", [0, -1])
def test_channels_have_no_distance(axis: int) -> None:
    y = np.random.default_rng(0).normal(size=(1, 2, 6, 5))
    alone = TotalVariationRecon(lam=0.3, spacing=(3, 1), **TIGHT).fit(y[0], y[0]).predict(y[0])
    together = TotalVariationRecon(lam=0.3, spacing=(3, 1), channel_axis=axis, **TIGHT)
    x = together.fit().predict(np.moveaxis(y, 1, axis % 3 + 1))
    assert_allclose(np.moveaxis(x, axis % 3 + 1, 1)[0], alone, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("spacing", "says"),
    [
        ((1, 0, 1), r"spacing: expected a list of numbers > 0 or None, got \(1, 0, 1\)"),
        ((1, -1, 1), "spacing: expected a list of numbers > 0"),
        ((1, np.nan, 1), "spacing: expected a list of numbers > 0"),
        ((1, np.inf, 1), "spacing: expected a list of numbers > 0"),
        (2.0, "spacing: expected a list of numbers > 0"),
        ("112", "spacing: expected a list of numbers > 0"),
        ((2, 1), r"spacing: expected one number for each of 3 axes of space, got \(2, 1\)"),
        ((), r"spacing: expected one number for each of 3 axes of space, got \(\)"),
    ],
)
def test_other_distances_are_refused(method: type, spacing: Any, says: str) -> None:
    y = np.ones((1, 3, 4, 5))
    with pytest.raises(ValueError, match=says):
        method(spacing=spacing).fit(y, y)
    with pytest.raises(ValueError, match=says):
        method().fit(y, y).set_params(spacing=spacing).predict(y)


def test_distances_are_those_of_the_axes_beside_the_channels() -> None:
    y = np.ones((1, 3, 4, 5))
    with pytest.raises(ValueError, match="expected one number for each of 2 axes of space"):
        TotalVariationRecon(spacing=(1, 1, 1), channel_axis=0).fit(y, y)


def test_files_keep_distances_and_variation(tmp_path: Any) -> None:
    _, y = volume(0.3)
    method = TotalVariationRecon(lam=0.2, spacing=(np.float32(4), 1, 1.0), variation="anisotropic").fit()
    method.save(tmp_path / "method.skinverse")
    again = skinverse.load(tmp_path / "method.skinverse")
    assert_array_equal(again.predict(y), method.predict(y))
    assert tuple(again.spacing) == (4, 1, 1)


# Channels


def colours(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Three shapes, each of a colour of its own, (1, 24, 24, 3), and the same with noise."""
    rng = np.random.default_rng(0)
    i, j = np.mgrid[:24, :24]
    shapes = [(i - 8) ** 2 + (j - 9) ** 2 < 30, (abs(i - 16) < 5) & (abs(j - 15) < 6), i + j > 36]
    image = np.zeros((1, 24, 24, 3))
    for shape in shapes:
        image[:, shape] = rng.uniform(0, 1, 3)
    return image, image + noise * rng.normal(size=image.shape)


def test_edges_that_channels_share_are_found_better_together() -> None:
    clean, y = colours(0.15)
    apart, together = (
        max(
            psnr(clean, TotalVariationRecon(lam=lam, variation=kind, channel_axis=-1).fit().predict(y))[0]
            for lam in np.geomspace(0.05, 0.4, 7)
        )
        for kind in ("isotropic", "nuclear")
    )
    assert together > apart + 1
    for noise in (None, 0.15):
        method = TotalVariationRecon(variation="nuclear", channel_axis=-1, noise=noise)
        assert psnr(clean, method.fit().predict(y))[0] > together - 0.5


@pytest.mark.parametrize("how", [{"channel_axis": None}, {"channel_axis": -1}])
def test_one_channel_has_the_nuclear_variation_of_an_image(how: dict[str, Any]) -> None:
    y = np.random.default_rng(0).normal(size=(2, 6, 7, 1)).cumsum(1)
    y = y[..., 0] if how["channel_axis"] is None else y
    isotropic, nuclear = (
        TotalVariationRecon(lam=0.2, variation=kind, **how).fit(y, y).predict(y)
        for kind in ("isotropic", "nuclear")
    )
    assert_array_equal(nuclear, isotropic)


def test_nuclear_variation_of_complex_channels_knows_no_phase() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(1, 2, 6, 7)) + 1j * rng.normal(size=(1, 2, 6, 7))
    method = TotalVariationRecon(lam=0.3, variation="nuclear", channel_axis=0, **TIGHT).fit()
    turns = np.exp(1j * np.array([0.3, 2.0]))[:, None, None]  # a unitary mixture of the channels
    assert_allclose(method.predict(turns * y), turns * method.predict(y), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_distances_may_be_an_array(method: Any, tmp_path: Any) -> None:
    _, noisy = volume(0.1)
    listed = method(lam=0.1, spacing=list(MICROSCOPE), max_steps=2).fit()
    given = method(lam=0.1, spacing=np.array(MICROSCOPE, np.float32), max_steps=2).fit()
    given.save(tmp_path / "a.skinverse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = listed.predict(np.abs(noisy))
        for twin in (given, skinverse.load(tmp_path / "a.skinverse"), clone(given).fit()):
            assert_array_equal(twin.predict(np.abs(noisy)), expected)
    with pytest.raises(ValueError, match="spacing: expected a list of numbers > 0 or None, got an array"):
        clone(given).set_params(spacing=np.array([1.0, 0.0, 1.0])).fit()

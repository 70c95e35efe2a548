"""Noise models: their statistics, and their fidelities against likelihoods and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from sklearn.base import clone

from skinverse import TotalVariationRecon
from skinverse.noise import Gaussian, NoiseModel, Poisson, PoissonGaussian
from skinverse.operators import as_torch, gaussian_blur

DIMSD = (3, 4)
SPREAD = np.linspace(0.5, 2, 12).reshape(DIMSD)
MODELS: dict[str, NoiseModel] = {
    "white": Gaussian(0.3),
    "heteroscedastic": Gaussian(0.3 * SPREAD),
    "weighted": Gaussian(0.3, weights=SPREAD),
    "counts": Poisson(),
    "counts with gain and background": Poisson(gain=0.5, background=2.0),
    "counts with arrays": Poisson(gain=SPREAD, background=2 * SPREAD),
    "camera": PoissonGaussian(gain=0.5, std=1.5, background=1.0, offset=100.0),
    "camera with arrays": PoissonGaussian(gain=SPREAD, std=SPREAD, background=1.0, offset=SPREAD),
}
EVERY = pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))


def clean_data(n: int = 1) -> np.ndarray:
    """Noise-free data of some counts."""
    return np.tile(np.linspace(5, 40, 12).reshape(DIMSD), (n, 1, 1))


# ---------------------------------------------------------------------- draws
@EVERY
def test_draws_have_the_mean_and_the_variance_of_the_model(model: NoiseModel) -> None:
    n = 4000
    clean = clean_data(n)
    drawn, variance = model.sample(clean, 0), model.variance(clean[:1])[0]
    error = np.sqrt(variance / n)
    assert np.all(np.abs(drawn.mean(0) - clean[0] - np.broadcast_to(model.dark, DIMSD)) < 5 * error)
    # A variance of n draws has a relative deviation of sqrt((kurtosis + 2) / n), here at most 0.03.
    assert_allclose(drawn.var(0), variance, rtol=0.15)


def test_counts_are_those_of_a_poisson_distribution() -> None:
    counts = Poisson(gain=0.25, background=0.5).sample(np.full((1, 5000), 1.0), 0)[0] / 0.25
    assert_array_equal(counts, counts.round())
    values = np.arange(16)
    observed = np.bincount(np.minimum(counts, 15).astype(int), minlength=16)
    probabilities = np.append(stats.poisson.pmf(values[:-1], 6), stats.poisson.sf(14, 6))
    assert stats.chisquare(observed, 5000 * probabilities).pvalue > 1e-3


def test_deviations_of_complex_data_are_those_of_both_parts() -> None:
    drawn = Gaussian(0.5).sample(np.zeros((1, 20000), complex), 0)
    assert_allclose([drawn.real.std(), drawn.imag.std()], 0.5, rtol=0.03)
    assert abs(np.mean(drawn.real * drawn.imag)) < 0.01


@EVERY
def test_draws_are_repeatable_and_of_the_kind_of_the_data(model: NoiseModel) -> None:
    single = clean_data(2).astype(np.float32)
    drawn = model.sample(single, 3)
    assert drawn.dtype == np.float32
    assert_array_equal(drawn, model.sample(single, np.random.default_rng(3)))
    of_torch = model.sample(torch.from_numpy(single.copy()), 3)
    assert isinstance(of_torch, torch.Tensor) and of_torch.dtype == torch.float32
    assert_array_equal(of_torch, drawn)
    assert np.any(model.sample(single, 4) != drawn)


def test_where_nothing_is_measured_nothing_is_drawn() -> None:
    model = Gaussian(1.0, weights=np.array([1.0, 0.0]))
    assert model.sample(np.ones((1, 2)), 0)[0, 1] == 1
    assert model.variance(np.ones((1, 2)))[0, 1] == np.inf


# ---------------------------------------------------------------------- fidelities
def fidelity(model: NoiseModel, y: np.ndarray, u: np.ndarray) -> np.ndarray:
    return model.fidelity(None, torch.from_numpy(y))(torch.from_numpy(u)).numpy()


@EVERY
def test_the_fidelity_is_the_negative_logarithm_of_a_likelihood(model: NoiseModel) -> None:
    y, u = model.sample(clean_data(1), 0), clean_data(1) + 3
    gain, background = (
        np.broadcast_to(getattr(model, k, d), DIMSD) for k, d in (("gain", 1), ("background", 0))
    )
    std = np.broadcast_to(getattr(model, "std", 0.0), DIMSD)
    if model.counted:
        shift = (std / gain) ** 2
        c = (y - np.broadcast_to(model.dark, DIMSD) + background) / gain + shift
        best, found = (c * np.log(v) - v for v in (c, (u + background) / gain + shift))
    else:
        weights = np.broadcast_to(1.0 if model.weights is None else model.weights, DIMSD)
        best, found = (stats.norm.logpdf(y, v, std / np.sqrt(weights)) for v in (y, u))
    assert_allclose(fidelity(model, y, u), (best - found).sum(), rtol=1e-10)


def test_unknown_noise_has_half_of_the_weighted_squares() -> None:
    y, u = clean_data(2), clean_data(2) + 1
    assert_allclose(fidelity(Gaussian(), y, u), 6)
    assert_allclose(fidelity(Gaussian(weights=SPREAD), y, u), SPREAD.sum() / 2)


@EVERY
def test_gradients_are_those_of_differences(model: NoiseModel) -> None:
    f = model.fidelity(None, torch.from_numpy(model.sample(clean_data(1), 0)))
    u, d = torch.from_numpy(clean_data(1) + 2.0), torch.from_numpy(np.cos(clean_data(1)))
    difference = (f(u + 1e-5 * d) - f(u - 1e-5 * d)) / 2e-5
    assert_allclose(difference, (f.grad(u) * d).sum(), rtol=1e-6)


@EVERY
@pytest.mark.parametrize("step", [1e-3, 1.0, 1e3])
def test_proxes_solve_their_equation(model: NoiseModel, step: float) -> None:
    f = model.fidelity(None, torch.from_numpy(model.sample(clean_data(1), 0)))
    z = torch.from_numpy(clean_data(1) + 10.0)
    p = f.prox(z, step)
    assert_allclose(p + step * f.grad(p), z, rtol=1e-6)
    # Moreau's identity, by which primal-dual methods see the fidelity.
    u = torch.from_numpy(SPREAD[None] - 1.5)
    assert_allclose(f.prox_conjugate(u, step), u - step * f.prox(u / step, 1 / step), rtol=1e-6, atol=1e-8)


@EVERY
def test_conjugates_are_suprema(model: NoiseModel) -> None:
    f = model.fidelity(None, torch.from_numpy(model.sample(clean_data(1), 0)))
    u = torch.from_numpy(clean_data(1) + 1.0)
    p = f.grad(u)
    conjugate = f.conjugate(p)
    assert conjugate is not None
    assert_allclose(conjugate + f(u), (p * u).sum(), rtol=1e-8)  # Fenchel and Young, with equality


@EVERY
def test_the_true_image_has_the_expected_fidelity(model: NoiseModel) -> None:
    n = 3000
    clean = clean_data(n)
    found = fidelity(model, model.sample(clean, 0), clean).mean()
    expected = float(model.expected_fidelity(torch.from_numpy(clean[:1].copy())))
    assert_allclose(found, expected, rtol=0.03)


@pytest.mark.parametrize("mean", [0.0, 0.05, 1.0, 7.3, 63.0, 65.0, 1e4])
def test_the_expected_divergence_of_counts_is_a_sum_over_their_distribution(mean: float) -> None:
    counts = np.arange(int(mean + 20 * np.sqrt(mean) + 20))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(counts > 0, counts * np.log(counts / max(mean, 1e-300)), 0)
    expected = (stats.poisson.pmf(counts, mean) * (logs - counts + mean)).sum()
    found = Poisson().expected_fidelity(torch.tensor([[mean]], dtype=torch.float64))
    assert_allclose(found, expected, rtol=1e-3, atol=1e-12)


@EVERY
def test_units_are_those_of_the_data(model: NoiseModel) -> None:
    scaled = type(model)(
        **{k: v if v is None or k == "weights" else 7 * v for k, v in model.get_params().items()}
    )
    y, u = model.sample(clean_data(1), 0), clean_data(1) + 3
    assert_allclose(fidelity(scaled, 7 * y, 7 * u), fidelity(model, y, u), rtol=1e-10)


# ---------------------------------------------------------------------- as a parameter
def test_models_are_parameters_that_can_be_searched() -> None:
    method = TotalVariationRecon(noise=Poisson(background=SPREAD))
    twin = clone(method).set_params(noise__gain=0.5)
    assert twin.noise.gain == 0.5 and method.noise.gain == 1.0
    assert_array_equal(twin.noise.background, SPREAD)


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        (Gaussian(0.0), "noise__std: expected a number > 0"),
        (
            Gaussian(np.array([1.0, -1.0])),
            "noise__std: expected a number > 0, an array of such numbers or None",
        ),
        (Gaussian(weights=np.array([1.0, -1.0])), "noise__weights: expected a number >= 0"),
        (Poisson(gain=0.0), "noise__gain: expected a number > 0"),
        (Poisson(background=np.array([np.nan])), "noise__background: expected a number >= 0"),
        (PoissonGaussian(std=-1.0), "noise__std: expected a number >= 0"),
        (PoissonGaussian(offset=np.inf), "noise__offset: expected a number, got inf|noise__offset: expected"),
        ("gauss", "noise: expected"),
        (0.0, "noise: expected a standard deviation > 0"),
        (Poisson, "noise: expected"),
    ],
)
def test_impossible_parameters_are_refused(noise: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TotalVariationRecon(noise=noise).fit()


@pytest.mark.parametrize(
    ("noise", "data", "sentence"),
    [
        (
            "poisson",
            -np.ones((1, 8, 8)),
            "expected real counts >= 0 under Poisson noise, got negative values",
        ),
        ("poisson", np.ones((1, 8, 8), complex), "got complex values"),
        (PoissonGaussian(std=1.0), np.ones((1, 8, 8), complex), "expected real data of a camera"),
        (
            Gaussian(weights=np.ones(3)),
            np.ones((1, 8, 8)),
            r"array of the data's shape \(8, 8\), got shape \(3,\)",
        ),
    ],
)
def test_data_that_the_noise_cannot_give_are_refused(noise: Any, data: np.ndarray, sentence: str) -> None:
    method = TotalVariationRecon(gaussian_blur((8, 8), 1.0), noise=noise, lam=0.1)
    for call in (lambda: method.fit(Y_meas=data), lambda: method.fit().predict(data)):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_draws_are_refused_where_the_noise_is_unknown_or_the_mean_negative() -> None:
    with pytest.raises(ValueError, match="expected a std to draw the noise by"):
        Gaussian().sample(np.ones((1, 2)))
    with pytest.raises(
        ValueError, match="expected real noise-free data, >= 0 with the background, got negative"
    ):
        Poisson().sample(-np.ones((1, 2)))


def test_a_fidelity_of_an_operator_is_that_of_its_data() -> None:
    A = as_torch(gaussian_blur((6, 6), 1.0))
    x = torch.from_numpy(np.random.default_rng(0).uniform(size=(2, 6, 6)))
    y = torch.from_numpy(Poisson(gain=0.1).sample(A(x).numpy(), 0))
    of_image, of_data = (Poisson(gain=0.1).fidelity(B, y) for B in (A, None))
    assert_allclose(of_image(x), of_data(A(x)))
    assert_allclose(of_image.grad(x), A.adjoint(of_data.grad(A(x))))


# ---------------------------------------------------------------------- parameters and data of any kind
@pytest.mark.parametrize(
    ("model", "variance"),
    [
        (Gaussian(np.uint8(20)), 400),
        (Gaussian(np.full(DIMSD, 1e-4, np.float16)), float(np.float16(1e-4)) ** 2),
        (PoissonGaussian(std=np.full(DIMSD, 20, np.int8)), 440),
        (Gaussian(2.0, weights=np.full(DIMSD, 3, np.uint8)), 4 / 3),
        (Poisson(gain=np.full(DIMSD, 1e-5, np.float16)), 40 * float(np.float16(1e-5))),
    ],
)
def test_the_type_of_a_parameter_changes_nothing(model: NoiseModel, variance: float) -> None:
    assert_allclose(model.variance(np.full((1, *DIMSD), 40.0)), variance, rtol=1e-12)
    wide = {k: None if v is None else np.asarray(v, float)[()] for k, v in model.get_params().items()}
    counts = np.random.default_rng(0).poisson(40, (1, 12)).reshape(1, *DIMSD).astype(float)
    found, expected = (
        TotalVariationRecon(noise=noise, lam=0.1, max_steps=10, tol=1e3).fit().predict(counts)
        for noise in (model, type(model)(**wide))
    )
    assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Gaussian(0.0), "std: expected a number > 0"),
        (Gaussian(1.0, weights=np.zeros(DIMSD)), "weights: expected some above zero"),
        (Gaussian(1.0, weights=-np.ones(DIMSD)), "weights: .* got an array .* of float64, from -1 to -1"),
        (Gaussian(1.0, weights=np.ma.masked_less(SPREAD, 1)), "weights: .* got a masked array"),
        (Gaussian(1.0, weights=np.ones(3)), "^weights: expected a number or an array of the data's shape"),
        (Poisson(gain=0.0), "gain: expected a number > 0"),
        (Poisson(background=-1.0), "background: expected a number >= 0"),
        (Poisson(gain=np.ones(3)), "^gain: expected a number or an array of the data's shape"),
        (PoissonGaussian(std=-1.0), "std: expected a number >= 0"),
    ],
)
def test_a_model_that_is_used_alone_checks_its_parameters(model: NoiseModel, words: str) -> None:
    clean = torch.from_numpy(clean_data())
    for use in (model.sample, model.variance, model.expected_fidelity):
        with pytest.raises(ValueError, match=words):
            use(clean)
    with pytest.raises(ValueError, match=words):
        model.fidelity(None, clean)


@pytest.mark.parametrize("model", [Gaussian(1.0), Poisson(), PoissonGaussian(std=1.0)])
@pytest.mark.parametrize(
    ("clean", "words"),
    [
        (np.full((1, 2), np.nan), "clean: expected finite values"),
        (np.ma.masked_less([[1.0, -5.0]], 0), "clean: expected all values, got 1 masked"),
        (np.array([["a"]]), "clean: expected an array of numbers"),
        (np.float64(3.0), "clean: expected a batch"),
    ],
)
def test_what_cannot_be_measured_is_told(model: NoiseModel, clean: Any, words: str) -> None:
    for use in (model.sample, model.variance):
        with pytest.raises((ValueError, TypeError), match=words):
            use(clean)


def test_more_counts_than_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="Poisson: expected less than 9e\\+18 counts, got 1e\\+20"):
        Poisson(gain=1e-10).sample(np.full((1, 2), 1e10))


@pytest.mark.parametrize("model", [Gaussian(1.0), Poisson()])
def test_half_precision_of_torch(model: NoiseModel) -> None:
    clean = torch.full((1, 4), 8.0, dtype=torch.bfloat16)
    drawn = model.sample(clean, 0)
    assert drawn.dtype == torch.bfloat16
    assert torch.equal(drawn, model.sample(clean.double(), 0).bfloat16())

"""What is minimised, how well, and with which weight: constraints, discrepancy, starts, companions."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from skinverse import GenerativeCovariancePrior
from skinverse._tensors import as_channels
from skinverse.estimators.generative import inference, objectives
from skinverse.estimators.generative.inference import minimise_from_starts
from skinverse.estimators.generative.objectives import RangeObjective, SoftObjective
from skinverse.operators import as_torch, structurally_random
from skinverse.solvers import lbfgs

SIZE = (8, 8)
NOISE = 0.03
CONSTRAINTS = ("soft", "encoded", "range", "sparse", "adapted")
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def residual_norms(operator: Any, x: np.ndarray, data: np.ndarray) -> np.ndarray:
    exact = np.stack([operator @ image for image in x])
    return np.linalg.norm((exact - data).reshape(len(data), -1), axis=1)


# ------------------------------------------------------------------------------------------ constraints
def distance_from_the_range(method: Any, images: np.ndarray, objective_of: Any) -> Tensor:
    """``min_z ||G(z) - x||``, each image's."""
    denoising = copy.copy(method).set_params(operator=pylops.Identity(method.dims_, dtype="float64"))
    x = (images - method.level_) / method.spread_
    objective = objective_of(RangeObjective, denoising, x, lam=0.0)
    starts = objective.model.starts(as_channels(torch.from_numpy(x), None), 4)
    nearest = minimise_from_starts([(objective, lbfgs)], starts, max_steps=500, tol=1e-12)
    return method.spread_ * (2 * nearest.objective).sqrt()


def test_range_gives_images_of_the_generator_exactly(prior: Any, data: np.ndarray, objective_of: Any) -> None:
    inside, soft = (prior.set_params(constraint=c).predict(data) for c in ("range", "soft"))
    assert (distance_from_the_range(prior, inside, objective_of) < 1e-5).all()
    assert (distance_from_the_range(prior, soft, objective_of) > 0.05).all()


def test_range_recovers_what_lies_in_it(prior: Any, operator: Any, measure: Any) -> None:
    model = copy.deepcopy(prior.module_).double()
    images = prior.level_ + prior.spread_ * model.mean(0.7 * draw(4, 2)).detach()[:, 0].numpy()
    prior.set_params(constraint="range", lam=1e-6, n_restarts=4, tol=1e-8)
    assert_allclose(prior.predict(measure(operator, images, noise=0.0)), images, atol=1e-2)


def test_sparse_keeps_single_pixels_that_no_image_has(prior: Any) -> None:
    model = copy.deepcopy(prior.module_).double()
    smooth = prior.level_ + prior.spread_ * model.mean(0.3 * draw(2, 2)).detach()[:, 0].numpy()
    spoiled = smooth.copy()
    spoiled[:, 1, 6] += 2
    x = prior.set_params(operator=None, constraint="sparse", lam=0.01, noise=None).predict(spoiled)
    assert_allclose(x[:, 1, 6], spoiled[:, 1, 6], atol=0.3)
    assert np.median(np.abs(x - smooth)) < 0.02


def test_adapted_weights_explain_the_data_and_are_forgotten(
    prior: Any, operator: Any, data: np.ndarray
) -> None:
    before = {name: value.clone() for name, value in prior.module_.state_dict().items()}
    inside = prior.set_params(constraint="range").predict(data)
    adapted, info = prior.set_params(constraint="adapted").predict(data, return_info=True)
    level = NOISE * math.sqrt(data.shape[1])
    assert (residual_norms(operator, inside, data) > 1.2 * level).all()  # something is left to explain
    assert (residual_norms(operator, adapted, data) <= 1.001 * level).all()
    assert info.converged.all()
    for name, value in prior.module_.state_dict().items():
        assert torch.equal(value, before[name])
    assert_allclose(prior.set_params(constraint="range").predict(data), inside, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_adapting_for_longer_never_raises_the_objective(prior: Any, data: np.ndarray) -> None:
    start = prior.set_params(constraint="range").predict(data, return_info=True)[1].objective
    last = start = start * (NOISE / 1e-3) ** 2  # the fidelity is in units of the noise
    prior.set_params(constraint="adapted", noise=1e-3, lam=(NOISE / 1e-3) ** 2)
    for max_steps in (40, 80, 160):
        objective = prior.set_params(max_steps=max_steps).predict(data, return_info=True)[1].objective
        assert (objective <= last * (1 + 1e-9)).all()
        last = objective
    assert (last < 0.9 * start).all()


def test_the_reconstructions_are_worth_it(
    prior: Any, operator: Any, truth: np.ndarray, data: np.ndarray
) -> None:
    """Soft and encoded beat the pseudo-inverse, and soft the range where something deviates from it."""
    pseudo = np.linalg.norm(np.stack([operator.H @ y for y in data]) - truth)
    soft, encoded, inside = (
        np.linalg.norm(prior.set_params(constraint=c).predict(data) - truth)
        for c in ("soft", "encoded", "range")
    )
    assert soft < 0.7 * pseudo
    assert encoded < 0.7 * pseudo
    assert soft < inside


def test_encoded_image_and_latent_variables_agree(
    accurate: None, prior: Any, data: np.ndarray, normalised: Any
) -> None:
    """The image is the best one for what the encoder sees in it: the linear system by a dense matrix."""
    prior.set_params(constraint="encoded", lam=0.02, tol=1e-10, noise=None)
    x, info = prior.predict(data, return_info=True)
    assert info.converged.all()
    model = copy.deepcopy(prior.module_).double().requires_grad_(False)
    x, y, lam = (x - prior.level_) / prior.spread_, normalised(prior, data), 0.02 / prior.spread_**2
    gaussian = model.gaussian(model.encode(torch.from_numpy(x[:, None]))[0])
    mean, A = gaussian.mean.flatten(1).numpy(), prior.operator.todense()
    unit = torch.eye(64).double().reshape(64, 1, 1, *SIZE).expand(64, 3, 1, *SIZE)
    columns = torch.stack([gaussian.precision_mul(e) for e in unit]).flatten(2).numpy()
    for k in range(3):
        system = A.T @ A + lam * columns[:, k]
        best = mean[k] + np.linalg.solve(system, A.T @ (y[k] - A @ mean[k]))
        assert_allclose(x[k].ravel(), best, atol=1e-8)


def test_encoded_takes_one_start_and_knows_its_uncertainty(prior: Any, data: np.ndarray) -> None:
    soft = prior.predict(data, return_std=True)[1]
    x, std = prior.set_params(constraint="encoded").predict(data, return_std=True)
    assert_allclose(prior.set_params(n_restarts=7).predict(data), x, rtol=1e-12)
    assert_allclose(std.mean(), soft.mean(), rtol=0.3)


# ------------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize(("constraint", "noise"), [("soft", 0.03), ("sparse", 0.1)])
def test_discrepancy_meets_the_noise(
    monkeypatch: pytest.MonkeyPatch,
    prior: Any,
    operator: Any,
    truth: np.ndarray,
    measure: Any,
    constraint: str,
    noise: float,
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 10)
    A = operator if constraint == "soft" else pylops.Identity(SIZE)
    data = measure(A, truth[:2], noise=noise)
    prior.set_params(operator=A, constraint=constraint, lam="discrepancy", noise=noise)
    x, info = prior.predict(data, return_info=True)
    assert_allclose(residual_norms(A, x, data), noise * math.sqrt(data[0].size), rtol=0.04)
    assert info.lam.shape == (2,) and info.lam[0] != info.lam[1]


def test_discrepancy_counts_both_parts_of_complex_noise(
    monkeypatch: pytest.MonkeyPatch, complex_prior: Any, complex_data: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 10)
    x = complex_prior.set_params(lam="discrepancy", n_restarts=1).predict(complex_data[:1])
    misfit = residual_norms(complex_prior.operator, x, complex_data[:1])
    assert_allclose(misfit, NOISE * math.sqrt(complex_data[0].size), rtol=0.04)


@pytest.mark.filterwarnings("ignore:GenerativeCovariancePrior:sklearn.exceptions.ConvergenceWarning")
def test_encoded_meets_the_discrepancy_where_it_can(
    monkeypatch: pytest.MonkeyPatch, prior: Any, data: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 8)
    prior.set_params(constraint="encoded", lam="discrepancy", noise=0.05)
    x, info = prior.predict(data, return_info=True)
    level = 0.05 * math.sqrt(data[0].size)
    met = np.abs(residual_norms(prior.operator, x, data) / level - 1) < 0.05
    assert_array_equal(met, info.converged)
    assert met.any()


def test_a_level_that_cannot_be_met_is_warned_of(prior: Any, data: np.ndarray) -> None:
    prior.set_params(constraint="range", lam="discrepancy", noise=1e-4)
    with pytest.warns(ConvergenceWarning, match="3 of 3 images"):
        prior.predict(data)


def test_auto_is_one_in_units_of_the_noise(
    prior: Any, complex_prior: Any, data: np.ndarray, complex_data: np.ndarray, normalised: Any
) -> None:
    def weight(method: Any, data: np.ndarray) -> np.ndarray:
        return method.set_params(constraint="range").predict(data, return_info=True)[1].lam

    assert_allclose(weight(prior, data), 1, rtol=1e-6)
    prior.set_params(noise=None)
    varying = prior.spread_ * normalised(prior, data)
    assert_allclose(weight(prior, data), (0.05**2) * (varying**2).mean(1), rtol=1e-6)
    assert_allclose(weight(complex_prior, complex_data), 1, rtol=1e-6)
    complex_prior.set_params(noise=None)
    varying = complex_prior.spread_ * normalised(complex_prior, complex_data)
    measured = as_torch(complex_prior.operator).measured
    assert measured is not None
    # Half of the square is that of each part.
    expected = 0.05**2 * (np.abs(varying[:, measured.numpy()]) ** 2).mean(1) / 2
    assert_allclose(weight(complex_prior, complex_data), expected, rtol=1e-6)


def test_a_number_is_the_weight(prior: Any, operator: Any, data: np.ndarray) -> None:
    x, info = prior.set_params(lam=0.5, noise=None).predict(data, return_info=True)
    assert (info.lam == 0.5).all()
    little = prior.set_params(lam=1e-3).predict(data)
    residuals = [np.linalg.norm(residual_norms(operator, v, data)) for v in (little, x)]
    assert residuals[0] < 0.5 * residuals[1]


@pytest.mark.parametrize(("constraint", "unit"), [("range", 1e-3), ("soft", 1e-3), ("soft", 1e4)])
def test_the_unit_of_the_images_plays_no_part(
    monkeypatch: pytest.MonkeyPatch,
    images: np.ndarray,
    operator: Any,
    data: np.ndarray,
    fit_prior: Any,
    constraint: str,
    unit: float,
) -> None:
    monkeypatch.setattr(objectives, "_LINEAR_TOL", 1e-6)
    monkeypatch.setattr(objectives, "_LINEAR_STEPS", 2000)
    params: dict[str, Any] = {"constraint": constraint, "n_restarts": 1}
    expected = fit_prior(images[:16], operator, **params).predict(data[:1])
    other = fit_prior(unit * images[:16], operator, noise=unit * NOISE, **params)
    assert_allclose(other.predict(unit * data[:1]) / unit, expected, atol=2e-3)


def test_large_units_take_as_few_steps(
    images: np.ndarray, operator: Any, data: np.ndarray, fit_prior: Any
) -> None:
    params: dict[str, Any] = {"constraint": "range", "tol": 1e-6}
    same = fit_prior(images[:16], operator, **params)
    other = fit_prior(1e6 * images[:16], operator, noise=1e6 * NOISE, **params)
    few, many = (
        method.predict(y, return_info=True)[1].n_steps for method, y in ((same, data), (other, 1e6 * data))
    )
    assert (many <= 2 * few).all()


# ------------------------------------------------------------------------------------------ the search
@pytest.mark.parametrize("constraint", ["soft", "encoded", "range", "sparse"])
def test_more_restarts_never_raise_the_objective(prior: Any, data: np.ndarray, constraint: str) -> None:
    """ "adapted" starts from "range"."""
    prior.set_params(constraint=constraint, lam=0.02, noise=None)
    objectives = [
        prior.set_params(n_restarts=k).predict(data, return_info=True)[1].objective for k in (1, 2, 5)
    ]
    assert (np.diff(objectives, axis=0) <= 1e-6 * np.abs(objectives[:-1])).all()


def test_more_restarts_keep_the_starts_of_fewer(measure: Any) -> None:
    """Here most starts end in bad minima: a start that is lost is missed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 64), nn.Unflatten(1, (1, *SIZE)))
    with torch.no_grad():
        generator[0].weight.mul_(4)
        images = generator(draw(16, 5).float())[:, 0].numpy()
    method = GenerativeCovariancePrior(
        generator=generator,
        covariance="identity",
        n_latent=5,
        noise=NOISE,
        constraint="range",
        max_steps=400,
    ).fit(images)
    method.set_params(operator=structurally_random(SIZE, 8, random_state=3))
    data = measure(method.operator, images[:8].astype(np.float64))
    objectives = [
        method.set_params(n_restarts=k).predict(data, return_info=True)[1].objective for k in range(1, 7)
    ]
    assert (np.diff(objectives, axis=0) <= 1e-8).all()


def test_soft_objective_is_below_that_of_what_the_encoder_says(
    accurate: None, prior: Any, data: np.ndarray, truth: np.ndarray, objective_of: Any, normalised: Any
) -> None:
    x, info = prior.set_params(lam=0.02, noise=None, tol=1e-7).predict(data, return_info=True)
    square = prior.spread_**2
    objective = objective_of(SoftObjective, prior, normalised(prior, data), 0.02 / square)
    x, truth = ((v - prior.level_) / prior.spread_ for v in (x, truth))
    with torch.no_grad():
        guesses = [objective.model.encode(torch.from_numpy(v[:, None]))[0] for v in (x, truth)]
    for z in (*guesses, torch.zeros(3, 2).double()):
        assert (info.objective <= square * objective(z).numpy() + 1e-9).all()
    again = minimise_from_starts([(objective, lbfgs)], guesses[0][:, None], max_steps=200, tol=1e-7)
    assert objective.value_and_grad(again.x)[1].abs().max() < 1e-5
    assert_allclose(info.objective, square * again.objective, rtol=1e-6)  # it is a minimum, found again


def test_too_few_steps_are_told(prior: Any, data: np.ndarray) -> None:
    prior.set_params(max_steps=1, tol=1e-9)
    with pytest.warns(ConvergenceWarning, match="3 of 3 images did not converge"):
        _, info = prior.predict(data, return_info=True)
    assert not info.converged.any()


# ------------------------------------------------------------------------------------------ companions
@every_constraint
def test_companions_do_not_matter(prior: Any, data: np.ndarray, constraint: str) -> None:
    prior.set_params(constraint=constraint)
    together, told = prior.predict(data, return_info=True)
    alone, info = prior.predict(data[1:2], return_info=True)
    assert_allclose(alone[0], together[1], atol=1e-6)
    assert_allclose(info.objective[0], told.objective[1], rtol=1e-6)


def test_companions_do_not_matter_where_the_data_say_little(prior: Any, data: np.ndarray) -> None:
    prior.set_params(constraint="encoded", lam=0.3, noise=None, max_steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        together = prior.predict(data)
        for k in range(len(data)):
            assert_allclose(prior.predict(data[k : k + 1])[0], together[k], atol=1e-10)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("constraint", "dtype"),
    [("soft", "float32"), ("encoded", "float64"), ("range", "float32"), ("sparse", "float64")],
)
def test_companions_and_their_order_change_less_than_1e_6(
    prior: Any, data: np.ndarray, constraint: str, dtype: str
) -> None:
    prior.set_params(constraint=constraint, max_steps=8)
    data = data.astype(dtype)
    together = prior.predict(data)
    for other in (prior.predict(data[::-1])[::-1], np.concatenate([prior.predict(y[None]) for y in data])):
        assert np.linalg.norm(other - together) <= 1e-6 * np.linalg.norm(together)

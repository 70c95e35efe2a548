"""The generative prior: its energies, its uncertainty, its constraints, its weights, its model, bad input."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.testing import assert_close

import skinverse
import skinverse.estimators._generative_inference as inference
import skinverse.estimators._generative_inference_energies as energies
import skinverse.estimators._generative_model as architecture
from skinverse import GenerativeCovariancePrior, Trainer
from skinverse.estimators._generative_inference_energies import Energy, Measured, Range, Soft, Sparse
from skinverse.functionals import SparseCholeskyGaussian, as_channels
from skinverse.operators import as_torch, fourier_sampling, gaussian_blur, inpainting, structurally_random
from skinverse.solvers import lbfgs

SIZE = (8, 8)
NOISE = 0.03
BRIEF = Trainer(max_epochs=25, batch_size=16, lr=3e-3, validation_fraction=0.0)
TINY = Trainer(max_epochs=2, batch_size=16, lr=3e-3, validation_fraction=0.0)
CONSTRAINTS = architecture.CONSTRAINTS
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)


# ------------------------------------------------------------------------------------------ material
@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Small networks: nothing here depends on how many channels they have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture, "_WIDTH", 16)
        yield


def blobs(n: int, *, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Bright spots anywhere, and a texture whose pixels go together in pairs."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = (rng.uniform(2, side - 3, (n, 1, 1)) for side in size)
    spots = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * 1.8**2))
    texture = rng.normal(size=(n, *size))
    return (spots + 0.05 * (texture + np.roll(texture, 1, 2))).astype(np.float32)


def measure(operator: Any, images: np.ndarray, *, noise: float = NOISE, seed: int = 1) -> np.ndarray:
    """Data in double precision; of a complex noise both parts together have that deviation."""
    wide = np.complex128 if np.iscomplexobj(images) else np.float64
    exact = np.stack([operator @ image.astype(wide) for image in images])
    rng = np.random.default_rng(seed)
    if np.iscomplexobj(exact):
        drawn = (rng.normal(size=exact.shape) + 1j * rng.normal(size=exact.shape)) / math.sqrt(2)
    else:
        drawn = rng.normal(size=exact.shape)
    return exact + noise * drawn


def changed(method: GenerativeCovariancePrior, **params: Any) -> GenerativeCovariancePrior:
    """The same fitted method with other parameters; the fixture keeps its own."""
    return copy.copy(method).set_params(**params)


def fitted(images: np.ndarray, operator: Any = None, **params: Any) -> GenerativeCovariancePrior:
    settings: dict[str, Any] = {"n_latent": 2, "noise_std": NOISE, "n_restarts": 2, "trainer": TINY}
    return GenerativeCovariancePrior(operator, **(settings | params)).fit(images)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return blobs(64)


@pytest.fixture(scope="module")
def operator() -> Any:
    return structurally_random(SIZE, 32, random_state=0)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return blobs(3, seed=9).astype(np.float64)


@pytest.fixture(scope="module")
def data(operator: Any, truth: np.ndarray) -> np.ndarray:
    return measure(operator, truth)


@pytest.fixture(scope="module")
def prior(images: np.ndarray, operator: Any) -> GenerativeCovariancePrior:
    return fitted(images, operator, trainer=BRIEF)


@pytest.fixture(scope="module")
def complex_prior(images: np.ndarray) -> GenerativeCovariancePrior:
    mask = np.random.default_rng(0).random(SIZE) < 0.6
    return fitted(images * np.exp(1j * blobs(64, seed=5)), fourier_sampling(mask))


@pytest.fixture(scope="module")
def coloured_prior(images: np.ndarray) -> GenerativeCovariancePrior:
    return fitted(np.stack([images, images[::-1], 0.5 * images], 1))


@pytest.fixture
def accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best image of every latent variable, to rounding."""
    monkeypatch.setattr(energies, "_INNER_TOL", 1e-12)
    monkeypatch.setattr(energies, "_INNER_STEPS", 5000)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def energy_of(
    kind: type[Energy], method: GenerativeCovariancePrior, data: np.ndarray, lam: float = 0.01
) -> Any:
    """In double precision."""
    model = copy.deepcopy(method.module_).double().requires_grad_(False)
    y = torch.from_numpy(data)
    measured = Measured(as_torch(method.operator), y, method.shape_, real=method.real_)
    return kind(model, measured, torch.full((len(y),), lam, dtype=torch.float64))


def real_matrix(operator: Any, *, real: bool) -> Tensor:
    """The operator on real channels, real and imaginary parts of the data one after the other."""
    A = operator.todense()
    A = A if real else np.hstack([A, 1j * A])
    return torch.from_numpy(np.vstack([A.real, A.imag]) if np.iscomplexobj(A) else A).double()


def real_data(data: np.ndarray) -> Tensor:
    flat = torch.from_numpy(data).flatten(1)
    return torch.cat([flat.real, flat.imag], 1) if flat.is_complex() else flat


def covariance_of(gaussian: SparseCholeskyGaussian) -> Tensor:
    """Dense, (n, channels * pixels, channels * pixels)."""
    n_values = gaussian.mean[0].numel()
    units = torch.eye(n_values, dtype=gaussian.mean.dtype).view(n_values, 1, *gaussian.mean.shape[1:])
    precision = gaussian.precision_mul(units.expand(-1, *gaussian.mean.shape)).flatten(2).movedim(0, 1)
    return torch.linalg.inv(precision)


# ------------------------------------------------------------------------------------------ energies
def assert_gradient_is_that_of_finite_differences(energy: Energy, n: int, step: float = 1e-5) -> None:
    z = draw(n, 2, seed=3)
    value, gradient = energy.value_and_grad(z)
    assert_close(value, energy(z), rtol=1e-10, atol=1e-12)
    units = step * torch.eye(2, dtype=torch.float64)
    found = torch.stack([(energy(z + unit) - energy(z - unit)) / (2 * step) for unit in units], 1)
    assert_close(gradient, found, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("kind", [Range, Soft, Sparse])
def test_gradient_of_the_best_image_is_that_of_finite_differences(
    accurate: None, prior: Any, data: np.ndarray, kind: type[Energy]
) -> None:
    assert_gradient_is_that_of_finite_differences(energy_of(kind, prior, data), len(data))


@pytest.mark.parametrize("kind", [Range, Soft, Sparse])
def test_gradient_holds_for_complex_images(accurate: None, complex_prior: Any, kind: type[Energy]) -> None:
    images = blobs(2, seed=9) * np.exp(1j * blobs(2, seed=8))
    data = measure(complex_prior.operator, images)
    assert_gradient_is_that_of_finite_differences(energy_of(kind, complex_prior, data), 2)


@pytest.mark.parametrize("kind", [Range, Soft, Sparse])
def test_gradient_holds_for_real_images_with_complex_data(
    accurate: None, prior: Any, truth: np.ndarray, kind: type[Energy]
) -> None:
    method = changed(prior, operator=fourier_sampling(np.random.default_rng(0).random(SIZE) < 0.4))
    data = measure(method.operator, truth)
    assert_gradient_is_that_of_finite_differences(energy_of(kind, method, data), len(data))


@pytest.mark.parametrize("covariance", ["full", "diagonal", "identity"])
def test_soft_image_and_value_are_those_of_the_dense_formulas(
    accurate: None, images: np.ndarray, operator: Any, data: np.ndarray, covariance: str
) -> None:
    """``x = G + Sigma A^T (lam I + A Sigma A^T)^-1 (y - A G)``, and the value that goes with it."""
    method, lam = fitted(images, operator, covariance=covariance), 0.01
    assert_soft_is_dense(energy_of(Soft, method, data, lam), method, data, lam)


def test_soft_image_and_value_are_dense_for_complex_images(accurate: None, complex_prior: Any) -> None:
    data = measure(complex_prior.operator, blobs(2, seed=9) * np.exp(1j * blobs(2, seed=8)))
    assert_soft_is_dense(energy_of(Soft, complex_prior, data, 0.02), complex_prior, data, 0.02)


def assert_soft_is_dense(energy: Soft, method: Any, data: np.ndarray, lam: float) -> None:
    z = draw(len(data), 2, seed=3)
    x, value, _ = energy.at(z)
    A, y, gaussian = (
        real_matrix(method.operator, real=method.real_),
        real_data(data),
        energy.model.gaussian(z),
    )
    covariance, G = covariance_of(gaussian), gaussian.mean.flatten(1)
    precision = torch.linalg.inv(covariance)
    normal = A.T @ A + lam * precision
    right = y @ A + lam * torch.einsum("npq,nq->np", precision, G)
    assert_close(x.flatten(1), torch.linalg.solve(normal, right), rtol=1e-6, atol=1e-8)
    rest = y - G @ A.T
    outer = lam * torch.eye(len(A), dtype=torch.float64) + A @ covariance @ A.T
    misfit = lam / 2 * (rest * torch.linalg.solve(outer, rest)).sum(1)
    log_det = torch.linalg.slogdet(covariance).logabsdet
    assert_close(value, misfit + lam / 2 * (log_det + z.square().sum(1)), rtol=1e-8, atol=1e-10)


def test_soft_energy_does_not_remember_where_it_was(accurate: None, prior: Any, data: np.ndarray) -> None:
    energy = energy_of(Soft, prior, data)
    value = energy(draw(3, 2))
    energy(draw(3, 2, seed=1))
    assert_close(energy(draw(3, 2)), value, rtol=1e-9, atol=1e-12)
    some = torch.tensor([2, 0])
    assert_close(energy.select(some)(draw(3, 2)[some]), value[some], rtol=1e-9, atol=1e-12)


def test_sparse_image_is_optimal(accurate: None, prior: Any, data: np.ndarray) -> None:
    """``A^T (y - A x) = lam / b sign(v)`` where ``v`` is not zero, and no larger where it is."""
    energy, z, A = energy_of(Sparse, prior, data), draw(3, 2, seed=3), real_matrix(prior.operator, real=True)
    x = energy.image(z)[0].flatten(1)
    deviation = x - energy.model.mean(z).flatten(1)
    slope, weight = (real_data(data) - x @ A.T) @ A, 0.01 / float(energy.model.deviation)
    moved = deviation.abs() > 1e-9
    assert 0.02 < moved.double().mean() < 0.6
    assert_close(slope[moved], weight * deviation[moved].sign(), rtol=1e-4, atol=1e-6)
    assert (slope[~moved].abs() <= weight * (1 + 1e-6)).all()


def test_measured_adjoint_is_the_adjoint_on_channels(
    prior: Any, complex_prior: Any, truth: np.ndarray
) -> None:
    to_real = changed(prior, operator=complex_prior.operator)
    for method in (prior, to_real, complex_prior):
        measured = energy_of(Range, method, measure(method.operator, truth)).data
        x = draw(3, *method.shape_, seed=4)
        y = torch.from_numpy(measure(method.operator, truth, seed=7))
        left = (measured.apply(x).conj() * y).real.flatten(1).sum(1)
        assert_close(left, (x * measured.adjoint(y)).flatten(1).sum(1))


# ------------------------------------------------------------------------------------------ uncertainty
def dense_deviation(method: Any, energy: Energy, z: Tensor, lam: float) -> Tensor:
    """Root of the diagonal of ``(A^T A / lam + (Sigma + J J^T)^-1)^-1``, (n, channels * pixels)."""
    A = real_matrix(method.operator, real=method.real_)
    found = []
    for one, covariance in zip(z, covariance_of(energy.model.gaussian(z)), strict=True):
        J = torch.autograd.functional.jacobian(lambda u: energy.model.mean(u[None]).flatten(), one)
        posterior = torch.linalg.inv(A.T @ A / lam + torch.linalg.inv(covariance + J @ J.T))
        found.append(posterior.diagonal().sqrt())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["prior", "complex_prior"])
def test_uncertainty_is_the_dense_formula(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(inference, "_N_DRAWS", 120)
    method, lam = request.getfixturevalue(name), 0.02
    some = blobs(1, seed=9) * (1 if method.real_ else np.exp(1j * blobs(1, seed=8)))
    energy, z = energy_of(Soft, method, measure(method.operator, some), lam), draw(1, 2, seed=3)
    found = inference.uncertainty(energy, z)[0].flatten(1)
    ratio = found / dense_deviation(method, energy, z, lam)
    assert (ratio - 1).abs().max() < 0.3  # each to 6.5 %
    assert (ratio - 1).abs().mean() < 0.08
    assert ratio.mean().item() == pytest.approx(1, abs=0.04)


def test_jacobian_is_that_of_the_mean(prior: Any) -> None:
    model, z = copy.deepcopy(prior.module_).double(), draw(2, 2)
    found = inference.jacobian(model, z)
    for i in range(2):
        expected = torch.autograd.functional.jacobian(lambda u: model.mean(u[None])[0], z[i])
        assert_close(found[:, i], expected.movedim(-1, 0))


def test_uncertainty_of_the_estimator_is_that_of_its_posterior(prior: Any, data: np.ndarray) -> None:
    """With ``lam="auto"`` the weight is the variance of the noise."""
    x, std, info = prior.predict(data, return_std=True, return_info=True)
    assert_allclose(info.lam, NOISE**2, rtol=1e-6)
    energy = energy_of(Soft, prior, data, NOISE**2)
    starts = energy.model.starts(as_channels(torch.from_numpy(x)), 1)
    latent = inference.minimise([(energy, lbfgs)], starts, max_steps=200, tol=1e-6).x
    ratio = torch.from_numpy(std).flatten(1) / dense_deviation(prior, energy, latent, NOISE**2)
    assert (ratio - 1).abs().max() < 0.45  # 64 draws: each to 9 %
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)
    assert_allclose(prior.predict(data), x, rtol=1e-12)


def test_seen_pixels_are_surer_than_hidden_ones(prior: Any, truth: np.ndarray) -> None:
    mask = np.arange(64).reshape(SIZE) % 2 == 0
    method = changed(prior, operator=inpainting(mask))
    _, std = method.predict(measure(method.operator, truth), return_std=True)
    assert std[:, mask].mean() < 0.8 * std[:, ~mask].mean()
    assert (std > 0).all()


def test_deviations_have_the_shape_and_kind_of_the_images(
    monkeypatch: pytest.MonkeyPatch, prior: Any, complex_prior: Any, coloured_prior: Any, data: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_DRAWS", 3)
    x, std = prior.predict(data.astype(np.float32), return_std=True)
    assert x.shape == std.shape == (3, *SIZE)
    assert x.dtype == std.dtype == np.float32
    x, std, info = prior.predict(torch.from_numpy(data), return_std=True, return_info=True)
    assert isinstance(std, Tensor) and std.dtype == torch.float64
    assert set(info) == {"n_steps", "converged", "residual", "objective", "lam"}
    noisy = measure(complex_prior.operator, blobs(2, seed=3)).astype(np.complex64)
    x, std = complex_prior.predict(noisy, return_std=True)
    assert x.dtype == np.complex64 and std.dtype == np.float32
    assert x.shape == std.shape == (2, *SIZE)
    x, std = coloured_prior.predict(np.stack([blobs(2, seed=3)] * 3, 1), return_std=True)
    assert x.shape == std.shape == (2, 3, *SIZE)


# ------------------------------------------------------------------------------------------ constraints
def distance_from_the_range(method: Any, images: np.ndarray) -> Tensor:
    """``min_z ||G(z) - x||``, each image's."""
    denoising = changed(method, operator=pylops.Identity(method.dims_, dtype="float64"))
    energy = energy_of(Range, denoising, images, lam=0.0)
    starts = energy.model.starts(as_channels(torch.from_numpy(images)), 4)
    return (2 * inference.minimise([(energy, lbfgs)], starts, max_steps=500, tol=1e-12).objective).sqrt()


def test_range_gives_images_of_the_generator_exactly(prior: Any, data: np.ndarray) -> None:
    inside, soft = (changed(prior, constraint=c).predict(data) for c in ("range", "soft"))
    assert (distance_from_the_range(prior, inside) < 1e-5).all()
    assert (distance_from_the_range(prior, soft) > 0.05).all()


def test_range_recovers_what_lies_in_it(prior: Any, operator: Any) -> None:
    model = copy.deepcopy(prior.module_).double()
    images = model.mean(0.7 * draw(4, 2)).detach()[:, 0].numpy()
    method = changed(prior, constraint="range", lam=1e-6, n_restarts=4, tol=1e-8)
    assert_allclose(method.predict(measure(operator, images, noise=0.0)), images, atol=1e-2)


def test_sparse_keeps_single_pixels_that_no_image_has(prior: Any) -> None:
    model = copy.deepcopy(prior.module_).double()
    smooth = model.mean(0.3 * draw(2, 2)).detach()[:, 0].numpy()
    spoiled = smooth.copy()
    spoiled[:, 1, 6] += 2
    method = changed(prior, operator=None, constraint="sparse", lam=0.01)
    x = method.predict(spoiled)
    assert_allclose(x[:, 1, 6], spoiled[:, 1, 6], atol=0.3)
    assert np.median(np.abs(x - smooth)) < 0.02


def test_adapted_weights_explain_the_data_and_are_forgotten(
    prior: Any, operator: Any, data: np.ndarray
) -> None:
    before = {name: value.clone() for name, value in prior.module_.state_dict().items()}
    inside = changed(prior, constraint="range").predict(data)
    adapted, info = changed(prior, constraint="adapted").predict(data, return_info=True)
    misfits = [np.linalg.norm(measure(operator, x, noise=0.0) - data, axis=1) for x in (inside, adapted)]
    level = NOISE * math.sqrt(data.shape[1])
    assert (misfits[0] > 1.2 * level).all()  # something is left to explain
    assert (misfits[1] <= 1.001 * level).all()
    assert info.converged.all()
    for name, value in prior.module_.state_dict().items():
        assert torch.equal(value, before[name])
    assert_allclose(changed(prior, constraint="range").predict(data), inside, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_adapting_for_longer_never_raises_the_objective(prior: Any, data: np.ndarray) -> None:
    start = changed(prior, constraint="range").predict(data, return_info=True)[1].objective
    last = start
    for max_steps in (40, 80, 160):
        method = changed(prior, constraint="adapted", noise_std=1e-3, lam=NOISE**2, max_steps=max_steps)
        objective = method.predict(data, return_info=True)[1].objective
        assert (objective <= last * (1 + 1e-9)).all()
        last = objective
    assert (last < 0.9 * start).all()


def test_the_reconstructions_are_worth_it(
    prior: Any, operator: Any, truth: np.ndarray, data: np.ndarray
) -> None:
    """Soft beats the pseudo-inverse, and the range where something deviates from it."""
    pseudo = np.stack([operator.H @ y for y in data])
    errors = {c: np.linalg.norm(changed(prior, constraint=c).predict(data) - truth) for c in CONSTRAINTS}
    assert errors["soft"] < 0.7 * np.linalg.norm(pseudo - truth)
    assert errors["soft"] < errors["range"]
    assert errors["encoded"] < 0.7 * np.linalg.norm(pseudo - truth)


def test_encoded_image_and_latent_variables_agree(accurate: None, prior: Any, data: np.ndarray) -> None:
    """The image is the best one for what the encoder sees in it: the linear system by a dense matrix."""
    x, info = changed(prior, constraint="encoded", lam=0.02, tol=1e-10).predict(data, return_info=True)
    assert info.converged.all()
    model = copy.deepcopy(prior.module_).double().requires_grad_(False)
    gaussian = model.gaussian(model.encode(torch.from_numpy(x[:, None]))[0])
    mean, A = gaussian.mean.flatten(1).numpy(), prior.operator.todense()
    unit = torch.eye(64).double().reshape(64, 1, 1, *SIZE).expand(64, 3, 1, *SIZE)
    columns = torch.stack([gaussian.precision_mul(e) for e in unit]).flatten(2).numpy()
    for k in range(3):
        system = A.T @ A + 0.02 * columns[:, k]
        best = mean[k] + np.linalg.solve(system, A.T @ (data[k] - A @ mean[k]))
        assert_allclose(x[k].ravel(), best, atol=1e-8)


def test_encoded_takes_one_start_and_knows_how_sure_it_is(prior: Any, data: np.ndarray) -> None:
    method = changed(prior, constraint="encoded")
    x, std = method.predict(data, return_std=True)
    assert_allclose(changed(method, n_restarts=7).predict(data), x, rtol=1e-12)
    soft = prior.predict(data, return_std=True)[1]
    assert_allclose(std.mean(), soft.mean(), rtol=0.3)


# ------------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize(("constraint", "noise"), [("soft", 0.03), ("sparse", 0.1)])
def test_discrepancy_meets_the_noise(
    monkeypatch: pytest.MonkeyPatch,
    prior: Any,
    operator: Any,
    truth: np.ndarray,
    constraint: str,
    noise: float,
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 10)
    A = operator if constraint == "soft" else pylops.Identity(SIZE)
    data = measure(A, truth[:2], noise=noise)
    method = changed(prior, operator=A, constraint=constraint, lam="discrepancy", noise_std=noise)
    x, info = method.predict(data, return_info=True)
    misfit = np.linalg.norm((measure(A, x, noise=0.0) - data).reshape(2, -1), axis=1)
    assert_allclose(misfit, noise * math.sqrt(data[0].size), rtol=0.04)
    assert info.lam.shape == (2,) and info.lam[0] != info.lam[1]


def test_discrepancy_counts_both_parts_of_complex_noise(
    monkeypatch: pytest.MonkeyPatch, complex_prior: Any
) -> None:
    monkeypatch.setattr(inference, "_N_BISECTIONS", 10)
    data = measure(complex_prior.operator, blobs(2, seed=9) * np.exp(1j * blobs(2, seed=8)))
    x = changed(complex_prior, lam="discrepancy", n_restarts=1).predict(data)
    misfit = np.linalg.norm((measure(complex_prior.operator, x, noise=0.0) - data).reshape(2, -1), axis=1)
    assert_allclose(misfit, NOISE * math.sqrt(data[0].size), rtol=0.04)


def test_auto_is_the_variance_of_the_noise(prior: Any, complex_prior: Any, data: np.ndarray) -> None:
    def weight(method: Any, data: np.ndarray, **params: Any) -> np.ndarray:
        return changed(method, constraint="range", **params).predict(data, return_info=True)[1].lam

    assert_allclose(weight(prior, data), NOISE**2, rtol=1e-6)
    assert_allclose(weight(prior, data, noise_std=None), (0.05**2) * (data**2).mean(1), rtol=1e-6)
    y = measure(complex_prior.operator, blobs(2, seed=3))
    assert_allclose(weight(complex_prior, y), NOISE**2 / 2, rtol=1e-6)


def test_a_number_is_the_weight(prior: Any, data: np.ndarray) -> None:
    x, info = changed(prior, lam=0.5).predict(data, return_info=True)
    assert (info.lam == 0.5).all()
    little = changed(prior, lam=1e-3).predict(data)
    residuals = [np.linalg.norm(measure(prior.operator, v, noise=0.0) - data) for v in (little, x)]
    assert residuals[0] < 0.5 * residuals[1]


@pytest.mark.parametrize(("constraint", "unit"), [("range", 1e-3), ("soft", 1e-3), ("soft", 1e4)])
def test_the_unit_of_the_images_plays_no_part(
    monkeypatch: pytest.MonkeyPatch,
    images: np.ndarray,
    operator: Any,
    data: np.ndarray,
    constraint: str,
    unit: float,
) -> None:
    monkeypatch.setattr(inference, "_INNER_TOL", 1e-6)
    monkeypatch.setattr(inference, "_INNER_STEPS", 2000)
    params: dict[str, Any] = {"constraint": constraint, "n_restarts": 1}
    expected = fitted(images[:16], operator, **params).predict(data[:1])
    other = fitted(unit * images[:16], operator, noise_std=unit * NOISE, **params)
    assert_allclose(other.predict(unit * data[:1]) / unit, expected, atol=2e-3)


def test_large_units_take_as_few_steps(images: np.ndarray, operator: Any, data: np.ndarray) -> None:
    other = fitted(1e6 * images[:16], operator, noise_std=1e6 * NOISE)
    same = fitted(images[:16], operator)
    few, many = (
        changed(method, constraint="range", tol=1e-6).predict(y, return_info=True)[1].n_steps
        for method, y in ((same, data), (other, 1e6 * data))
    )
    assert (many <= 2 * few).all()


# ------------------------------------------------------------------------------------------ the search
@every_constraint
def test_more_restarts_never_raise_the_objective(prior: Any, data: np.ndarray, constraint: str) -> None:
    if constraint == "adapted":
        constraint = "range"  # what it starts from
    objectives = [
        changed(prior, constraint=constraint, n_restarts=k, lam=0.02)
        .predict(data, return_info=True)[1]
        .objective
        for k in (1, 2, 5)
    ]
    assert (np.diff(objectives, axis=0) <= 1e-6 * np.abs(objectives[:-1])).all()


def test_more_restarts_keep_the_starts_of_fewer() -> None:
    """Here most starts end in bad minima: a start that is lost is missed."""
    generator = small_generator(n_latent=5)
    with torch.no_grad():
        generator[0].weight.mul_(4)
    images = of_generator(generator, n_latent=5)
    method = around(generator, n_latent=5, constraint="range", max_steps=400).fit(images)
    method.set_params(operator=structurally_random(SIZE, 8, random_state=3))
    data = measure(method.operator, images[:8].astype(np.float64))
    objectives = [
        method.set_params(n_restarts=k).predict(data, return_info=True)[1].objective for k in range(1, 7)
    ]
    assert (np.diff(objectives, axis=0) <= 1e-8).all()


def test_soft_objective_is_below_that_of_what_the_encoder_says(
    accurate: None, prior: Any, data: np.ndarray, truth: np.ndarray
) -> None:
    x, info = changed(prior, lam=0.02, tol=1e-7).predict(data, return_info=True)
    energy = energy_of(Soft, prior, data, 0.02)
    with torch.no_grad():
        guesses = [energy.model.encode(torch.from_numpy(v[:, None]))[0] for v in (x, truth)]
    for z in (*guesses, torch.zeros(3, 2).double()):
        assert (info.objective <= energy(z).numpy() + 1e-9).all()
    solution = inference.minimise([(energy, lbfgs)], guesses[0][:, None], max_steps=200, tol=1e-7)
    assert energy.value_and_grad(solution.x)[1].abs().max() < 1e-5
    assert_allclose(info.objective, solution.objective, rtol=1e-6)  # it is a minimum, found again


@every_constraint
def test_image_does_not_feel_its_companions(prior: Any, data: np.ndarray, constraint: str) -> None:
    method = changed(prior, constraint=constraint)
    together, told = method.predict(data, return_info=True)
    for i in (0, 2):
        alone, info = method.predict(data[i : i + 1], return_info=True)
        assert_allclose(alone[0], together[i], atol=1e-6)
        assert_allclose(info.objective[0], told.objective[i], rtol=1e-6)


def test_deviation_does_not_feel_its_companions(
    monkeypatch: pytest.MonkeyPatch, prior: Any, data: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_DRAWS", 5)
    _, together = prior.predict(data, return_std=True)
    for i in range(3):
        assert_allclose(prior.predict(data[i : i + 1], return_std=True)[1][0], together[i], atol=1e-6)


def test_too_few_steps_are_told(prior: Any, data: np.ndarray) -> None:
    method = changed(prior, max_steps=1, tol=1e-9)
    with pytest.warns(ConvergenceWarning, match="3 of 3 images did not converge"):
        _, info = method.predict(data, return_info=True)
    assert not info.converged.any()


# ------------------------------------------------------------------------------------------ operators, kinds
def test_another_operator_needs_no_training(prior: Any, truth: np.ndarray) -> None:
    weights = {name: value.clone() for name, value in prior.module_.state_dict().items()}
    for other in (gaussian_blur(SIZE, 0.7), inpainting(np.arange(64).reshape(SIZE) % 3 > 0)):
        method = changed(prior, operator=other)
        noisy = measure(other, truth)
        x = method.predict(noisy)
        assert x.shape == truth.shape
        assert np.linalg.norm(x - truth) < 0.5 * np.linalg.norm(truth)
    assert all(torch.equal(value, weights[name]) for name, value in prior.module_.state_dict().items())


@every_constraint
def test_operators_with_flat_images_are_served(
    prior: Any, operator: Any, data: np.ndarray, constraint: str
) -> None:
    flat = pylops.MatrixMult(operator.todense())
    assert flat.dims == (64,)
    x = changed(prior, operator=flat, constraint=constraint).predict(data)
    assert x.shape == (3, 64)
    atol = 1e-2 if constraint == "adapted" else 2e-3  # Adam's first steps have the size of a sign
    assert_allclose(x.reshape(3, *SIZE), changed(prior, constraint=constraint).predict(data), atol=atol)


def test_flat_operators_have_uncertainty_too(
    monkeypatch: pytest.MonkeyPatch, prior: Any, operator: Any, data: np.ndarray
) -> None:
    monkeypatch.setattr(inference, "_N_DRAWS", 5)
    _, std = changed(prior, operator=pylops.MatrixMult(operator.todense())).predict(data, return_std=True)
    assert_allclose(std.reshape(3, *SIZE), prior.predict(data, return_std=True)[1], atol=1e-4)


@every_constraint
def test_complex_images_stay_complex(complex_prior: Any, constraint: str) -> None:
    images = blobs(1, seed=9) * np.exp(1j * blobs(1, seed=8))
    method = changed(complex_prior, constraint=constraint, noise_std=0.3, n_restarts=1, max_steps=2000)
    x = method.predict(measure(method.operator, images, noise=0.3).astype(np.complex64))
    assert x.dtype == np.complex64 and x.shape == images.shape
    assert np.abs(x.imag).max() > 0.01
    assert method.sample(3, random_state=0).dtype == np.complex64


@every_constraint
def test_real_images_are_reconstructed_from_complex_data(
    prior: Any, complex_prior: Any, truth: np.ndarray, constraint: str
) -> None:
    method = changed(prior, operator=complex_prior.operator, constraint=constraint, max_steps=500)
    x = method.predict(measure(method.operator, truth))
    assert x.dtype == np.float64
    assert np.linalg.norm(x - truth) < 0.5 * np.linalg.norm(truth)


@every_constraint
def test_coloured_images_are_reconstructed(coloured_prior: Any, constraint: str) -> None:
    noisy = np.stack([blobs(2, seed=9), blobs(2, seed=9), 0.5 * blobs(2, seed=9)], 1)
    x = changed(coloured_prior, constraint=constraint, noise_std=0.3).predict(noisy)
    assert x.shape == (2, 3, *SIZE) and x.dtype == np.float32
    assert coloured_prior.sample(4, random_state=0).shape == (4, 3, *SIZE)


@pytest.mark.parametrize("size", [(9, 13), (16, 10), (1, 12), (2, 2)], ids=str)
def test_images_of_any_size_are_learned(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).normal(size=(16, *size)).astype(np.float32)
    method = fitted(images, noise_std=0.5)
    assert method.predict(images[:2]).shape == (2, *size)
    assert method.sample(2, random_state=0).shape == (2, *size)


def test_training_leaves_measurements_and_operator_alone(images: np.ndarray, operator: Any) -> None:
    one, other = fitted(images[:16]), fitted(images[:16], operator)
    paired = clone(other).fit(images[:16], measure(operator, images[:5]))
    for name, value in one.module_.state_dict().items():
        assert torch.equal(other.module_.state_dict()[name], value)
        assert torch.equal(paired.module_.state_dict()[name], value)


def test_seeds_repeat_the_training(images: np.ndarray) -> None:
    one, again, other = (fitted(images[:16], random_state=k) for k in (3, 3, 4))
    assert all(map(torch.equal, one.module_.state_dict().values(), again.module_.state_dict().values()))
    assert not all(map(torch.equal, one.module_.state_dict().values(), other.module_.state_dict().values()))


def test_mean_is_trained_first_and_then_held(images: np.ndarray) -> None:
    full, identity = (fitted(images, covariance=c) for c in ("full", "identity"))
    assert [epoch["phase"] for epoch in full.history_] == ["mean"] * 2 + ["covariance"] * 2
    assert {epoch["phase"] for epoch in identity.history_} == {"mean"}
    for part in ("encoder", "decoder"):
        for a, b in zip(
            getattr(full.module_, part).parameters(),
            getattr(identity.module_, part).parameters(),
            strict=True,
        ):
            assert a.shape == b.shape
    z = draw(2, 2).float()
    assert full.module_.gaussian(z).off.abs().max() > 0
    assert identity.module_.gaussian(z).off.numel() == 0
    assert identity.module_.gaussian(z).log_diag.std() == 0


# ------------------------------------------------------------------------------------------ the model itself
def test_standard_deviations_stay_above_the_floor(images: np.ndarray) -> None:
    constant = images.copy()
    constant[:, :4] = 0
    for floor in (0.02, 0.2):
        method = fitted(constant, min_std=floor, n_latent=1)
        z = torch.linspace(-2, 2, 5)[:, None]
        std = (-method.module_.gaussian(z).log_diag).exp()
        assert (std >= floor * (1 - 1e-5)).all()
        assert std[:, 0, :4].mean() < std[:, 0, 4:].mean() + 1e-6


@pytest.mark.parametrize("covariance", ["full", "identity"])
def test_evidence_bound_is_below_the_density(images: np.ndarray, covariance: str) -> None:
    """One latent variable: both by quadrature over it."""
    trainer = Trainer(max_epochs=8, batch_size=16, lr=3e-3, validation_fraction=0.0)
    method, some = (
        fitted(images, n_latent=1, covariance=covariance, trainer=trainer),
        images[:2].astype(float),
    )
    model, x = copy.deepcopy(method.module_).double(), torch.from_numpy(some)[:, None]
    z = torch.linspace(-6, 6, 801, dtype=torch.float64)
    step = float(z[1] - z[0])
    with torch.no_grad():
        likelihood = model.gaussian(z[:, None]).log_prob(x[:, None].expand(-1, len(z), *x.shape[1:]))
        mu, log_variance = model.encode(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    density = torch.logsumexp(likelihood + normal.log_prob(z), 1) + math.log(step)
    q = torch.distributions.Normal(mu, (log_variance / 2).exp())
    weights = q.log_prob(z).exp() * step
    assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)
    divergence = torch.distributions.kl_divergence(
        q, torch.distributions.Normal(torch.zeros(1).double(), 1.0)
    )
    bound = (weights * likelihood).sum(1) - divergence[:, 0]
    spread = ((weights * likelihood.square()).sum(1) - (weights * likelihood).sum(1).square()).clamp_min(0)
    scores = torch.from_numpy(method.score_samples(some))
    assert (bound <= density + 1e-6).all()
    assert ((scores - bound).abs() <= 4 * (spread / 16).sqrt() + 1e-6).all()


def test_images_like_those_of_the_training_have_more_evidence(prior: Any, images: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(images[:16].reshape(16, -1), axis=1).reshape(16, *SIZE)
    noise = (images.mean() + images.std() * rng.normal(size=(16, *SIZE))).astype(np.float32)
    likely = prior.score_samples(blobs(16, seed=9))
    assert likely.shape == (16,)
    assert likely.min() > prior.score_samples(noise).max()
    assert likely.min() > prior.score_samples(shuffled).max()


def test_evidence_is_repeatable_and_takes_flat_images(prior: Any, images: np.ndarray) -> None:
    scores = prior.score_samples(images[:4])
    assert_allclose(prior.score_samples(images[:4].reshape(4, -1)), scores)
    assert_allclose(prior.score_samples(images[1:2])[0], scores[1], rtol=1e-4)


def test_full_covariance_has_more_evidence_than_an_identity(prior: Any, images: np.ndarray) -> None:
    identity = fitted(images, covariance="identity", trainer=BRIEF)
    held_out = blobs(32, seed=9)
    assert prior.score_samples(held_out).mean() > identity.score_samples(held_out).mean() + 3


def test_samples_are_repeatable_images_like_those_seen(prior: Any, images: np.ndarray) -> None:
    drawn = prior.sample(400, random_state=0)
    assert drawn.shape == (400, *SIZE) and drawn.dtype == np.float32
    assert np.array_equal(drawn, prior.sample(400, random_state=0))
    assert not np.array_equal(drawn, prior.sample(400, random_state=1))
    assert not np.array_equal(prior.sample(2), prior.sample(2))
    assert prior.sample().shape == (1, *SIZE)
    assert_allclose(drawn.mean(0), images.mean(0), atol=0.2)
    assert drawn.std() == pytest.approx(images.std(), rel=0.4)


def test_covariance_is_symmetric_between_pixels_and_positive(prior: Any, images: np.ndarray) -> None:
    pixels = [(0, 0), (3, 4), (3, 5), (4, 4), (7, 7)]
    some = images[:2].astype(np.float64)
    rows = {p: prior.covariance_row(some, p) for p in pixels}
    for p in pixels:
        assert rows[p].shape == (2, *SIZE)
        assert (rows[p][:, *p] > 0).all()
        for q in pixels:
            assert_allclose(rows[p][:, *q], rows[q][:, *p], rtol=1e-9, atol=1e-15)
            assert (rows[p][:, *q] ** 2 <= rows[p][:, *p] * rows[q][:, *q] * (1 + 1e-9)).all()


def test_covariance_knows_which_pixels_go_together() -> None:
    """Nothing but texture, the same in pairs in a row: correlated by one half beside, not below."""
    texture = np.random.default_rng(0).normal(size=(64, *SIZE)).astype(np.float32)
    texture += np.roll(texture, 1, 2)
    trainer = Trainer(max_epochs=20, batch_size=16, lr=3e-3, validation_fraction=0.0)
    method, found = fitted(texture, n_latent=1, trainer=trainer), []
    for row in range(1, 7):
        for column in range(1, 7):
            covariance = method.covariance_row(texture[:4], (row, column)).mean(0)
            own, beside, below = (covariance[row + i, column + j] for i, j in ((0, 0), (0, 1), (1, 0)))
            found.append((own, beside / own, below / own))
    own, beside, below = np.mean(found, 0)
    assert own == pytest.approx(2, rel=0.2)
    assert beside == pytest.approx(0.5, abs=0.08)
    assert abs(below) < 0.08


def test_covariance_of_colours_stays_in_its_channel(coloured_prior: Any, complex_prior: Any) -> None:
    images = np.stack([blobs(2, seed=3)] * 3, 1)
    row = coloured_prior.covariance_row(images, (2, 3, 4))
    assert row.shape == (2, 3, *SIZE)
    assert (row[:, :2] == 0).all() and (row[:, 2, 3, 4] > 0).all()
    row = complex_prior.covariance_row(blobs(2).astype(np.complex64), (3, 4))
    assert row.shape == (2, *SIZE) and row.dtype == np.float32


# ------------------------------------------------------------------------------------------ cache, files
def durations(method: GenerativeCovariancePrior) -> list[float]:
    """Of every epoch: two trainings never have the same."""
    return [epoch["dur"] for epoch in method.history_]


def test_memory_trains_once_for_every_reconstruction(
    images: np.ndarray, operator: Any, tmp_path: Path
) -> None:
    first = fitted(images[:16], memory=str(tmp_path))
    for params in (
        {"lam": 0.5},
        {"lam": "discrepancy"},
        {"constraint": "range"},
        {"constraint": "adapted", "n_restarts": 7},
        {"max_steps": 3, "tol": 0.1, "noise_std": 1.0},
        {"operator": operator},
    ):
        assert durations(fitted(images[:16], memory=str(tmp_path), **params)) == durations(first)
    for params in ({"n_latent": 3}, {"covariance": "diagonal"}, {"min_std": 0.1}, {"neighbourhood": 3}):
        assert durations(fitted(images[:16], memory=str(tmp_path), **params)) != durations(first)


@pytest.mark.parametrize("constraint", ["soft", "adapted"])
def test_saved_and_loaded_predicts_the_same(
    prior: Any, data: np.ndarray, images: np.ndarray, tmp_path: Path, constraint: str
) -> None:
    method = changed(prior, constraint=constraint)
    method.save(tmp_path / "prior.skinverse")
    loaded = skinverse.load(tmp_path / "prior.skinverse")
    assert np.array_equal(loaded.predict(data), method.predict(data))
    assert np.array_equal(loaded.sample(2, random_state=0), method.sample(2, random_state=0))
    assert np.array_equal(loaded.score_samples(images[:2]), method.score_samples(images[:2]))


def test_complex_prior_is_saved_too(complex_prior: Any, tmp_path: Path) -> None:
    method = changed(complex_prior, constraint="range")
    method.save(tmp_path / "prior.skinverse")
    data = measure(method.operator, blobs(2, seed=9))
    assert np.array_equal(skinverse.load(tmp_path / "prior.skinverse").predict(data), method.predict(data))


def test_clone_learns_the_same(images: np.ndarray, operator: Any, data: np.ndarray) -> None:
    method = fitted(images[:16], operator, constraint="range", neighbourhood=3)
    twin = clone(method)
    assert not hasattr(twin, "module_") and twin.operator is operator
    assert np.array_equal(twin.fit(images[:16]).predict(data), method.predict(data))


def test_warm_start_goes_on(images: np.ndarray) -> None:
    cold = fitted(images)
    warm = fitted(images, warm_start=True)
    for _ in range(4):
        warm.fit(images)
    assert warm.score_samples(images).mean() > cold.score_samples(images).mean() + 1


# ------------------------------------------------------------------------------------------ own generators
def small_generator(*last: nn.Module, n_latent: int = 2, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(n_latent, 16), nn.Tanh(), nn.Linear(16, 64), nn.Unflatten(1, (1, *SIZE)), *last]
        return nn.Sequential(*layers)


def of_generator(
    generator: nn.Module, n: int = 16, *, n_latent: int = 2, noise: float = 0.0, seed: int = 0
) -> np.ndarray:
    with torch.no_grad():
        exact = generator(draw(n, n_latent, seed=seed).float())[:, 0].numpy()
    return exact + noise * np.random.default_rng(seed).normal(size=exact.shape).astype(np.float32)


def around(generator: nn.Module, operator: Any = None, **params: Any) -> GenerativeCovariancePrior:
    settings: dict[str, Any] = {"generator": generator, "covariance": "identity", "n_latent": 2}
    return GenerativeCovariancePrior(operator, **(settings | {"noise_std": NOISE} | params))


@pytest.mark.parametrize("constraint", ["soft", "range", "sparse", "adapted"])
def test_own_generator_is_a_prior(constraint: str) -> None:
    generator = small_generator()
    method = around(generator, constraint=constraint).fit(of_generator(generator, noise=0.05))
    images = of_generator(generator, 3, seed=5).astype(np.float64)
    x = method.predict(measure(pylops.Identity(SIZE), images))
    assert np.linalg.norm(x - images) < 0.8 * NOISE * math.sqrt(images.size)


def test_own_generator_is_not_trained_and_not_shared() -> None:
    generator = small_generator()
    before = copy.deepcopy(generator.state_dict())
    method = around(generator, constraint="adapted").fit(of_generator(generator, noise=0.05))
    method.predict(of_generator(generator, 2, noise=0.2, seed=3))
    for name, value in generator.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(method.module_.decoder.state_dict()[name], value)
    assert all(p.requires_grad for p in generator.parameters())
    assert method.history_ == []


def test_deviation_from_an_own_generator_is_measured() -> None:
    generator = small_generator()
    method = around(generator, min_std=1e-3).fit(of_generator(generator, 64, noise=0.1))
    std = (-method.module_.gaussian(torch.zeros(1, 2)).log_diag).exp()
    assert_close(std, torch.full_like(std, 0.1), rtol=0.05, atol=0)
    assert float(method.module_.deviation) == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.07)


def test_fit_around_an_own_generator_ignores_the_operator(operator: Any) -> None:
    generator = small_generator()
    images = of_generator(generator, noise=0.05)
    plain, other = around(generator).fit(images), around(generator, operator).fit(images)
    assert float(plain.module_.deviation) == float(other.module_.deviation)
    assert torch.equal(plain.module_.log_std, other.module_.log_std)


def test_memory_tells_generators_apart(tmp_path: Path) -> None:
    images = of_generator(small_generator(), noise=0.05)
    one, other = (around(small_generator(seed=k), memory=str(tmp_path)).fit(images) for k in (0, 1))
    assert float(one.module_.deviation) != float(other.module_.deviation)
    assert not torch.equal(one.module_.decoder[0].weight, other.module_.decoder[0].weight)


def test_own_generator_draws_but_cannot_encode() -> None:
    generator = small_generator(nn.Sigmoid())
    images = of_generator(generator)
    method = around(generator).fit(images)
    assert method.sample(3, random_state=0).shape == (3, *SIZE)
    for use in (method.score_samples, lambda x: method.covariance_row(x, (0, 0))):
        with pytest.raises(ValueError, match="generator is not our own and has no encoder"):
            use(images)


def test_own_generator_is_not_saved(tmp_path: Path) -> None:
    generator = small_generator()
    method = around(generator).fit(of_generator(generator))
    with pytest.raises(ValueError, match="generator"):
        method.save(tmp_path / "prior.skinverse")


@pytest.mark.parametrize(("last", "low", "high"), [(nn.Sigmoid(), 0, 1), (nn.Tanh(), -1, 1)])
def test_images_that_the_generator_cannot_give_are_refused(last: nn.Module, low: int, high: int) -> None:
    generator = small_generator(last)
    images = of_generator(generator)
    around(generator).fit(images)
    for value in (low - 0.1, high + 0.1):
        spoiled = images.copy()
        spoiled[3, 2, 2] = value
        with pytest.raises(ValueError, match=rf"X_true: expected values in \[{low}.*, {high}.*\].* got \["):
            around(small_generator(last)).fit(spoiled)


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (128, 128)])
def test_sizes_of_real_images(size: tuple[int, int]) -> None:
    images = blobs(4, size=size)
    one = Trainer(max_epochs=1, batch_size=2, validation_fraction=0.0)
    prior = fitted(images, pylops.Identity(size), trainer=one, constraint="encoded")
    x, std = prior.predict(images[:1], return_std=True)
    assert x.shape == std.shape == (1, *size)
    assert np.isfinite(x).all() and (std > 0).all()
    assert prior.sample(2, random_state=0).shape == (2, *size)
    assert prior.covariance_row(images[:1], (size[0] // 2, 3)).shape == (1, *size)


@pytest.mark.filterwarnings("ignore:GenerativeCovariancePrior:sklearn.exceptions.ConvergenceWarning")
def test_encoded_meets_the_discrepancy_where_it_can(prior: Any, data: np.ndarray) -> None:
    method = changed(prior, constraint="encoded", lam="discrepancy", noise_std=0.05)
    x, info = method.predict(data, return_info=True)
    A = as_torch(prior.operator)
    residual = (A(torch.from_numpy(x)) - torch.from_numpy(data)).flatten(1).norm(dim=1)
    level = 0.05 * math.sqrt(data[0].size)
    met = (residual / level - 1).abs() < 0.05
    assert_array_equal(met.numpy(), info.converged)
    assert met.any()


def test_encoded_does_not_feel_companions_where_the_data_say_little(prior: Any, data: np.ndarray) -> None:
    method = changed(prior, constraint="encoded", lam=0.3, max_steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        together = method.predict(data)
        for k in range(len(data)):
            assert_allclose(method.predict(data[k : k + 1])[0], together[k], atol=1e-10)


def test_a_search_over_constraints_trains_once_per_fold(
    images: np.ndarray, operator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, train = [], Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    X = images[:8].astype(np.float64)
    method = GenerativeCovariancePrior(
        operator, n_latent=2, noise_std=NOISE, n_restarts=1, trainer=TINY, memory=str(tmp_path)
    )
    search = GridSearchCV(method, {"constraint": ["soft", "encoded", "range"]}, cv=2, error_score="raise")
    search.fit(X, measure(operator, X))
    assert len(trained) == 3 * 2  # two folds and the refit, mean and covariance
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_pixels_of_complex_coloured_images_are_counted_as_they_are(images: np.ndarray) -> None:
    X = np.stack([images, 2 * images, 0.5 * images], 1)[:12] * np.exp(0.3j)
    prior = fitted(X)
    rows = [prior.covariance_row(X[:1], (c, 3, 4)) for c in range(3)]
    for channel, row in enumerate(rows):
        assert row.shape == (1, 3, *SIZE)
        assert row[0, channel, 3, 4] > 0  # its variance
    assert_array_equal(prior.covariance_row(X[:1], (3, 4)), rows[0])
    for pixel in ((3, 3, 4), (0, 8, 0), (4,) * 4):
        with pytest.raises(IndexError, match=r"pixel: expected .* within \(3, 8, 8\)"):
            prior.covariance_row(X[:1], pixel)


def test_range_of_a_generator_is_that_of_its_last_acting_module() -> None:
    with torch.random.fork_rng():
        bounded = nn.Sequential(nn.Linear(2, 64), nn.Sigmoid(), nn.Unflatten(1, (1, *SIZE)))
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        around(bounded).fit(50 * blobs(4))

    class Scaled(nn.Module):
        """Whose activation is not what comes out."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.act = nn.Linear(2, 64), nn.Sigmoid()

        def forward(self, z: Tensor) -> Tensor:
            return 255 * self.act(self.net(z)).view(-1, 1, *SIZE)

    with torch.random.fork_rng():
        around(Scaled(), max_steps=5).fit(50 * blobs(4))


def test_own_generator_has_no_encoder() -> None:
    with pytest.raises(ValueError, match='"encoded" needs our own encoder'):
        around(small_generator(), constraint="encoded").fit(of_generator(small_generator()))


# ------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n_latent": 0}, "n_latent: expected a whole number >= 1, got 0"),
        ({"n_latent": 2.5}, "n_latent: expected a whole number"),
        ({"n_restarts": 0}, "n_restarts: expected a whole number >= 1, got 0"),
        ({"max_steps": 0}, "max_steps: expected a whole number >= 1, got 0"),
        ({"covariance": "sparse"}, "covariance: expected one of .*'sparse'"),
        ({"constraint": "hard"}, "constraint: expected one of .*'hard'"),
        ({"lam": -1.0}, "lam: expected a number >= 0"),
        ({"lam": "fit"}, "lam: expected a number >= 0"),
        ({"lam": "discrepancy", "noise_std": None}, "noise_std is missing"),
        ({"noise_std": 0.0}, "noise_std: expected a number > 0"),
        ({"min_std": 0.0}, "min_std: expected a number > 0"),
        ({"min_std": math.inf}, "min_std: expected a number > 0"),
        ({"neighbourhood": 4}, "neighbourhood: expected an odd number .* got 4"),
        ({"neighbourhood": 0}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": 9}, "neighbourhood: expected an odd number .* at most the image's 8, got 9"),
        ({"neighbourhood": 2.5}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": math.inf}, "neighbourhood: expected an odd number"),
        ({"neighbourhood": True}, "neighbourhood: expected an odd number"),
        ({"generator": nn.Identity()}, "generator: .* needs covariance=\"identity\", got 'full'"),
    ],
    ids=str,
)
def test_parameters_that_make_no_sense_are_refused(images: np.ndarray, params: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fitted(images[:4], **params)


def test_fit_without_images_is_refused(data: np.ndarray) -> None:
    for given in ((), (None, data)):
        with pytest.raises(ValueError, match="learns from X_true, but X_true is missing"):
            GenerativeCovariancePrior().fit(*given)


def test_images_without_numbers_are_refused(images: np.ndarray) -> None:
    spoiled = images[:4].copy()
    spoiled[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="X_true: expected finite values"):
        fitted(spoiled)


def test_operator_of_another_image_size_is_refused(prior: Any) -> None:
    method = changed(prior, operator=structurally_random((9, 9), 20, random_state=0))
    with pytest.raises(ValueError, match=r"images of shape \(8, 8\) and the operator takes \(9, 9\)"):
        method.predict(np.ones((2, 20)))
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        changed(prior, operator=None).predict(np.ones((2, 7, 7)))


@pytest.mark.parametrize("constraint", ["range", "sparse", "adapted"])
def test_uncertainty_without_a_covariance_is_refused(prior: Any, data: np.ndarray, constraint: str) -> None:
    with pytest.raises(ValueError, match=f"return_std: .*covariance.*{constraint}"):
        changed(prior, constraint=constraint).predict(data, return_std=True)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"lam": "discrepancy", "noise_std": None}, "noise_std is missing"),
        ({"constraint": "hard"}, "constraint: expected one of"),
        ({"lam": math.nan}, "lam: expected"),
        ({"n_restarts": 0}, "n_restarts: expected"),
    ],
    ids=str,
)
def test_parameters_changed_after_the_training_are_checked(
    prior: Any, data: np.ndarray, params: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        changed(prior, **params).predict(data)


def test_real_data_of_complex_images_are_served_or_refused(complex_prior: Any) -> None:
    method = changed(complex_prior, operator=gaussian_blur(SIZE, 0.7), constraint="range")
    try:
        assert method.predict(blobs(2)).shape == (2, *SIZE)
    except ValueError as refusal:
        assert "complex" in str(refusal)


def test_bad_measurements_and_counts_are_refused(prior: Any, data: np.ndarray, images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Y_meas: expected shape"):
        prior.predict(data[:, :-1])
    with pytest.raises(ValueError, match="Y_meas: expected finite values"):
        prior.predict(np.full_like(data, np.nan))
    with pytest.raises(ValueError, match="n_samples: expected a whole number"):
        prior.sample(0)
    with pytest.raises(ValueError, match="X_true: expected shape"):
        prior.score_samples(images[:, :7])
    with pytest.raises(IndexError):
        prior.covariance_row(images[:1], (8, 0))


@pytest.mark.parametrize("use", ["predict", "score_samples", "sample", "covariance_row"])
def test_nothing_works_before_the_training(images: np.ndarray, use: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"sample": (1,), "covariance_row": (images, (0, 0))}
    with pytest.raises(NotFittedError):
        getattr(GenerativeCovariancePrior(), use)(*arguments.get(use, (images,)))


def test_flat_data_become_flat_images_only_where_the_operator_says(prior: Any, truth: np.ndarray) -> None:
    blur: Callable[..., Any] = gaussian_blur(SIZE, 0.7)
    noisy = measure(blur, truth)
    method = changed(prior, operator=blur, constraint="range")
    assert_allclose(method.predict(noisy.reshape(3, 64)), method.predict(noisy))


# ---------------------------------------------------------------------------------------- further care
def test_images_of_the_same_number_of_pixels_but_another_shape_are_refused(prior: Any) -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(4, 16\)"):
        changed(prior, operator=pylops.Identity((4, 16))).predict(np.zeros((1, 4, 16)))


def test_a_level_that_cannot_be_met_is_warned_of(prior: Any, data: np.ndarray) -> None:
    method = changed(prior, constraint="range", lam="discrepancy", noise_std=1e-4)
    with pytest.warns(ConvergenceWarning, match="3 of 3 images"):
        method.predict(data)


def test_a_generator_in_training_mode_is_taken_as_it_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))
    method = GenerativeCovariancePrior(generator=generator, covariance="identity", n_latent=2)
    method.fit(blobs(12))
    given = {name: value for name, value in generator.state_dict().items()}
    for name, value in method.module_.decoder.state_dict().items():
        assert torch.equal(value, given[name])
    assert generator.training


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (nn.Linear(3, 64), ValueError, "n_latent=2"),
        (nn.Linear(2, 63), ValueError, r"\(1, 8, 8\), channels first, got \(63,\)"),
        (np.tanh, TypeError, "torch.nn.Module, got ufunc"),
    ],
)
def test_generators_that_do_not_fit_are_refused(generator: Any, error: type, message: str) -> None:
    method = GenerativeCovariancePrior(generator=generator, covariance="identity", n_latent=2)
    with pytest.raises(error, match=message):
        method.fit(blobs(4))


def test_tensors_in_are_tensors_out_in_what_the_model_says(prior: Any, truth: np.ndarray) -> None:
    images = torch.from_numpy(truth)
    assert isinstance(prior.score_samples(images), Tensor)
    rows = prior.covariance_row(images, (3, 3))
    assert isinstance(rows, Tensor) and not rows.requires_grad
    assert_allclose(rows.numpy(), prior.covariance_row(truth, (3, 3)), rtol=1e-5)


def test_complex_images_of_a_real_prior_are_refused(prior: Any, truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected real images"):
        prior.score_samples(truth + 1j)


def test_a_matrix_told_the_shape_of_its_images_sees_their_neighbours(truth: np.ndarray) -> None:
    matrix = pylops.MatrixMult(np.random.default_rng(0).normal(size=(20, 64)))
    matrix.dims = SIZE
    method = GenerativeCovariancePrior(matrix, n_latent=2, trainer=TINY).fit(blobs(16))
    assert method.shape_ == (1, *SIZE)
    assert method.predict(np.zeros((2, 20))).shape == (2, *SIZE)


def test_larger_images_are_fewer_in_one_step_of_the_default_training() -> None:
    sizes = [architecture._recipe(1000, side**2).batch_size for side in (28, 64, 128)]
    assert sizes == [64, 12, 8]

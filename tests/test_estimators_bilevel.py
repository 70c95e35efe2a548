"""Bilevel learning against closed forms, differences of solutions, and the bounds that it proves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from skinverse import BilevelRegularizer, Trainer
from skinverse.datasets import make_problem
from skinverse.estimators._bilevel_training import ProximalFidelity, curvature
from skinverse.functionals import (
    ConvexCritic,
    Critic,
    GradientStepCritic,
    Learned,
    LeastSquares,
    REDCritic,
    RidgeCritic,
    SmoothCritic,
    SquaredNorm,
    WeightedCritic,
)
from skinverse.networks import DnCNN
from skinverse.operators import as_torch, gaussian_blur
from skinverse.solvers import Hessian, accelerated_gradient, implicit

TINY = Trainer(max_epochs=1, validation_fraction=0.0)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def denoising() -> tuple[np.ndarray, np.ndarray, Any]:
    return make_problem("denoising", n_samples=12, size=24, noise=0.2, random_state=0)


class Roughness(nn.Module):
    """``1/2 ||D x||^2``: one minimum, a closed form, and nothing to learn but its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([x - x.roll(1, -1), x - x.roll(1, -2)])
        return (steps.square().sum((0, 2, 3, 4)) + self.nothing**2) / 2


def smoothed(y: np.ndarray, lam: float) -> np.ndarray:
    """Minimiser of ``1/2 ||x - y||^2 + lam/2 ||D x||^2``, in the Fourier domain."""
    eigen = [4 * np.sin(np.pi * np.fft.fftfreq(n)) ** 2 for n in y.shape[-2:]]
    return np.fft.ifft2(np.fft.fft2(y) / (1 + lam * (eigen[0][:, None] + eigen[1]))).real


def best_weight(images: np.ndarray, data: np.ndarray) -> float:
    weights = np.geomspace(1e-2, 1e1, 300)
    return float(min(weights, key=lambda lam: np.square(smoothed(data, lam) - images).sum()))


def roughness(**params: Any) -> BilevelRegularizer:
    trainer = Trainer(max_epochs=60, batch_size=12, lr=0.1, lr_decay=0.1, validation_fraction=0.0)
    return BilevelRegularizer(
        regularizer=Roughness(), trainer=trainer, pretraining=False, patch_size=None, **params
    )


# ------------------------------------------------------------------------------- what training finds
@pytest.mark.parametrize("hypergradient", ["minres", "cg", "jacobian_free"])
@pytest.mark.filterwarnings("ignore:hypergradient")
def test_training_finds_the_best_weight_of_a_known_regularizer(denoising, hypergradient) -> None:
    images, data, _ = denoising
    method = roughness(hypergradient=hypergradient).fit(images, data)
    best = np.square(smoothed(data, best_weight(images, data)) - images).sum()
    assert_allclose(method.predict(data), smoothed(data, method.lam_), atol=5e-3)
    assert np.square(method.predict(data) - images).sum() < 1.01 * best


def test_the_risk_is_minimised_without_true_images(denoising) -> None:
    images, data, _ = denoising
    noise_std = float(np.std(data - images))
    method = roughness(loss="sure", noise_std=noise_std).fit(Y_meas=data)
    best = np.square(smoothed(data, best_weight(images, data)) - images).sum()
    assert np.square(method.predict(data) - images).sum() < 1.05 * best


def test_training_beats_its_own_start() -> None:
    """The upper level improves on denoising pretraining with calibrated weight and scale."""
    images, data, A = make_problem("denoising", n_samples=24, size=24, noise=0.2, random_state=0)
    pretrained = Trainer(max_epochs=20, lr=1e-2, validation_fraction=0.0)
    start, trained = (
        BilevelRegularizer(
            A, pretrainer=pretrained, trainer=Trainer(max_epochs=n, lr=lr, validation_fraction=0.0)
        )
        .fit(images, data)
        .predict(data)
        for n, lr in ((1, 1e-9), (25, 1e-2))
    )
    assert np.square(trained - images).mean() < 0.9 * np.square(start - images).mean()


def test_the_penalty_makes_the_regularizer_smoother(denoising) -> None:
    images, data, A = denoising
    energy = GradientStepCritic(DnCNN(n_features=8, n_layers=2))
    for p in energy.parameters():
        p.data *= 4  # rough to begin with
    common = dict(
        regularizer=energy, beta=1.2, lam=0.1, pretraining=False,
        trainer=Trainer(max_epochs=30, lr=1e-2, lr_decay=0.1, validation_fraction=0.0),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        free, bound = (
            BilevelRegularizer(A, smoothness_weight=xi, **common).fit(images, data) for xi in (0.0, 1.0)
        )
    assert not bound.certified_
    assert bound.smoothness_ < free.smoothness_ / 3
    assert any("beta=1.2 is violated: measured" in str(w.message) for w in caught)


def test_a_fixed_weight_is_kept_and_may_be_changed_afterwards(denoising) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, lam=0.7, beta=1.0, trainer=TINY, tol=1e-6).fit(images, data)
    assert method.lam_ == 0.7
    expected = method.predict(data)
    changed = method.set_params(lam=2.0).predict(data)
    assert np.linalg.norm(changed - data) > 1.1 * np.linalg.norm(expected - data)
    assert_allclose(method.set_params(lam=0.0).predict(data), data, atol=1e-5)
    assert_allclose(method.set_params(lam=0.7).predict(data), expected)
    with pytest.raises(ValueError, match="fit again"):
        method.set_params(lam="fit").predict(data)


def test_search_over_weight_and_smoothness_is_the_same_in_parallel(denoising) -> None:
    images, data, A = denoising
    grid = {"lam": [0.05, 0.2], "beta": [1.0, 2.0]}
    method = BilevelRegularizer(A, trainer=TINY, pretraining=False)
    one, two = (GridSearchCV(method, grid, cv=2, n_jobs=n).fit(images, data) for n in (1, 2))
    assert_allclose(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"], rtol=1e-6)
    assert one.best_params_ == two.best_params_


def test_complex_images_are_learned_from_too() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 8, 8)) + 1j * rng.normal(size=(4, 8, 8))
    method = BilevelRegularizer(trainer=TINY, lam=0.1).fit(images, images)
    assert method.n_channels_ == 2
    assert method.predict(images).dtype == images.dtype


@pytest.mark.parametrize("regularizer", ["convex_ridge", "convex"])
def test_solvers_find_the_same_minimum(denoising, regularizer) -> None:
    images, data = (batch.astype(np.float64) for batch in denoising[:2])
    A = gaussian_blur((24, 24), 1.0)
    method = BilevelRegularizer(A, regularizer=regularizer, alpha=0.1, trainer=TINY, lam=0.1, max_steps=5000)
    method.fit(images, data).set_params(tol=1e-5)
    expected = method.predict(data)
    for solver in ("gradient", "proximal"):
        found = method.set_params(solver=solver).predict(data)
        assert_allclose(found, expected, atol=2e-3)


# ------------------------------------------------------------------------------------ derivatives
FORMS = {
    "ridge": lambda: RidgeCritic(n_filters=3, kernel_size=3),
    "convex": lambda: ConvexCritic(n_features=2, kernel_size=3),
    "red": lambda: REDCritic(DnCNN(n_features=3, n_layers=2)),
    "gradient_step": lambda: GradientStepCritic(DnCNN(n_features=3, n_layers=2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_hypergradients_equal_differences_in_every_tensor(form) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        smooth = SmoothCritic(FORMS[form](), alpha=0.2, beta=1.5)
        module = WeightedCritic(smooth, scale=1.3).double()
        x_true, noise = torch.randn(2, 2, 5, 6, dtype=torch.float64)
        y = x_true + 0.3 * noise

    def upper(tol: float = 1e-14) -> Tensor:
        objective = LeastSquares(None, y) + Learned(module)
        x = accelerated_gradient(objective, y, max_steps=3000, tol=tol).x
        return (implicit(objective, x, tol=1e-12) - x_true).square().sum()

    names, tensors = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(upper(), tensors)
    for name, p, g in zip(names, tensors, found, strict=True):
        direction = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
        start, h, values = p.detach().clone(), 1e-5, []
        for step in (h, -h):
            p.data = start + step * direction
            values.append(upper().item())
        p.data = start
        expected = (values[0] - values[1]) / (2 * h)
        assert abs((g * direction).sum().item() - expected) <= 1e-6 * max(abs(expected), 1e-2), name


# ------------------------------------------------------------------------------------ what is proven
@settings(max_examples=20, deadline=None)
@given(
    beta=st.sampled_from([0.3, 1.0, 1.2, 2.0, 5.0]),
    alpha=st.sampled_from([0.0, 0.5]),
    size=st.floats(-3, 3),
    seed=st.integers(0, 10**6),
)
def test_certified_gradients_are_smooth_for_wild_weights(beta, alpha, size, seed) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        critic = RidgeCritic(convex=beta <= 1, n_filters=4, kernel_size=3)
        for p in critic.parameters():
            p.data = p.data + torch.randn(p.shape)
        critic.filters.data *= 10**size
        smooth = SmoothCritic(critic, alpha=alpha, beta=beta)
        x = torch.randn(3, 1, 7, 9).double()
    smooth = smooth.double()
    assert smooth.certified
    low, high = curvature(Learned(smooth), x)
    assert low >= 1 + alpha - beta - 1e-9
    assert high <= 1 + alpha + beta + 1e-9
    assert -low <= smooth.weak_convexity() + 1e-9
    z = x + torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    change = smooth.smooth_gradient(x) - smooth.smooth_gradient(z)
    assert (change.flatten(1).norm(dim=1) <= (1 + 1e-9) * beta * (x - z).flatten(1).norm(dim=1)).all()


def test_the_bound_is_used_up() -> None:
    """The largest allowed weight: of a quadratic with curvature 1, ``grad s`` has the constant beta."""
    for beta in (0.5, 1.0, 2.0):
        smooth = SmoothCritic(RidgeCritic(convex=True), beta=beta)
        largest = smooth.largest_curvature()
        assert largest is not None
        assert_allclose(largest.item(), 1 + beta, rtol=1e-6)


def test_nothing_is_certified_without_a_proof() -> None:
    assert not SmoothCritic(ConvexCritic(), beta=1.0).certified
    assert not SmoothCritic(REDCritic(DnCNN()), beta=1.0).certified
    assert not SmoothCritic(RidgeCritic()).certified
    assert not SmoothCritic(RidgeCritic(), beta=1.0).certified  # no convex function is a multiple of it


def test_beta_one_is_convex(denoising) -> None:
    images, data, A = denoising
    for alpha in (0.0, 0.1):
        method = BilevelRegularizer(A, alpha=alpha, beta=1.0, trainer=TINY, pretraining=False)
        method.fit(images, data)
        assert method.certified_
        assert method.weak_convexity_ == 0.0
        assert method.smoothness_ == 1.0


def test_measured_curvature_is_that_of_the_dense_hessian() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic: Critic = RidgeCritic(n_filters=4, kernel_size=3).double()
        x = torch.randn(1, 1, 4, 5, dtype=torch.float64)
    hessian = Hessian(Learned(critic), x)
    dense = torch.stack([hessian(e.view_as(x)).flatten() for e in torch.eye(20, dtype=x.dtype)])
    values = torch.linalg.eigvalsh(dense)
    low, high = curvature(Learned(critic), x)
    assert_allclose([low, high], [values[0], values[-1]], rtol=0.02)


def test_red_with_a_symmetric_linear_network_has_the_gradient_of_the_literature() -> None:
    class Blur(nn.Module):
        n_channels = 1

        def forward(self, x: Tensor) -> Tensor:
            return (2 * x + x.roll(1, -1) + x.roll(-1, -1)) / 4

    x = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, gradient = REDCritic(Blur()).value_and_grad(x)
    torch.testing.assert_close(gradient, x - Blur()(x))
    energy, gradient = GradientStepCritic(Blur()).value_and_grad(x)
    rest = x - Blur()(x)
    torch.testing.assert_close(energy, rest.square().flatten(1).sum(1) / 2)
    torch.testing.assert_close(gradient, rest - Blur()(rest))


def test_prox_of_the_data_term_solves_its_linear_system() -> None:
    A = as_torch(gaussian_blur((6, 5), 1.0))
    x, y = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    found = ProximalFidelity(LeastSquares(A, y)).prox(x, step)
    t = step[:, None, None]
    torch.testing.assert_close(found + t * A.adjoint(A(found)), x + t * A.adjoint(y), rtol=1e-3, atol=1e-4)
    assert not ProximalFidelity(LeastSquares(A, y)).smooth
    assert SquaredNorm().smooth


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beta": -1.0}, "beta: expected a number >= 0, got -1.0"),
        ({"alpha": -0.1}, "alpha: expected a number >= 0, got -0.1"),
        ({"smoothness_weight": -1}, "smoothness_weight: expected a number >= 0"),
        ({"lam": "auto"}, 'lam: expected a number >= 0 or "fit"'),
        ({"regularizer": "tv"}, "regularizer: expected one of"),
        ({"hypergradient": "unrolled"}, "hypergradient: expected one of"),
        ({"loss": "ssim"}, "loss: expected one of"),
        ({"loss": "sure"}, "noise_std is missing"),
        ({"solver": "proximal", "bounds": (0, 1)}, "bounds must be None"),
        ({"patch_size": 0}, "patch_size: expected a whole number >= 1"),
    ],
)
def test_bad_parameters_are_named(denoising, params, message) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match=message):
        BilevelRegularizer(A, trainer=TINY, **params).fit(images, data)


def test_unpaired_sets_are_refused_with_the_method_for_them(denoising) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match="AdversarialRegularizer"):
        BilevelRegularizer(A).fit(images, data[:5])
    with pytest.raises(ValueError, match="X_true is missing"):
        BilevelRegularizer(A).fit(Y_meas=data)


def test_conjugate_gradients_without_convexity_fall_to_minres_and_say_so_once(denoising) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, hypergradient="cg", beta=3.0, lam=0.1, trainer=TINY, pretraining=False)
    with pytest.warns(UserWarning, match="beta <= 1") as caught:
        method.fit(images, data)
    assert sum("MINRES" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        method.set_params(beta=1.0).fit(images, data)


def test_unfinished_lower_levels_are_counted(denoising) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, lam=0.3, trainer=TINY, pretraining=False, max_steps=1, tol=1e-9)
    with pytest.warns(ConvergenceWarning, match="12 of 12 images in training did not converge"):
        method.fit(images, data)

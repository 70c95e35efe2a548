"""The adversarial regularizer against its theory: distances, Wasserstein decay, stability, calibration."""

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
from scipy.stats import wasserstein_distance
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import Tensor, nn

from skinverse import AdversarialRegularizer, FilteredBackProjection, Tikhonov, Trainer, load
from skinverse.datasets import make_ellipses, make_problem
from skinverse.energies import RidgeEnergy, WeightedEnergy
from skinverse.estimators.regularizers.weights import backtrack_weight
from skinverse.functionals import EnergyFunctional, LeastSquares
from skinverse.operators import as_torch, gaussian_blur
from skinverse.solvers import Hessian, Solution

TINY = Trainer(max_epochs=2, lr=1e-3, validation_fraction=0.0)
ENERGIES = ["ridge", "convex_ridge", "conv", "convex", "lipschitz"]


@pytest.fixture(scope="module")
def denoising() -> tuple[np.ndarray, np.ndarray, Any]:
    return make_problem("denoising", n_samples=12, size=24, noise=0.2, random_state=0)


@pytest.fixture(scope="module")
def trained(denoising) -> AdversarialRegularizer:
    images, data, A = denoising
    return AdversarialRegularizer(
        A, lam="auto", trainer=Trainer(max_epochs=30, lr=1e-2, final_lr=1e-2, score_every=30)
    ).fit(images, data)


class PointEnergy(nn.Module):
    """A small smooth network on images of two pixels: points of the plane."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(),
                nn.Linear(2, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def points_on_the_circle(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on the unit circle, and the same pushed off it along the normal, in another order."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 2 * np.pi, n)
    true = np.stack([np.cos(t), np.sin(t)], 1)
    return true, rng.permutation(true * (1 + noise * rng.uniform(0.2, 1.0, (n, 1))))


@pytest.fixture(scope="module")
def circle() -> AdversarialRegularizer:
    true, bad = points_on_the_circle(1000, 0.8, 0)
    trainer = Trainer(max_epochs=60, batch_size=50, lr=3e-3, final_lr=3e-4, score_every=10)
    method = AdversarialRegularizer(
        energy=PointEnergy(),
        lam=0.1,
        trainer=trainer,
        patch_size=None,
        pretraining=False,
        gradient_penalty=10.0,
    )
    return method.fit(true, bad)


def normalised(method: AdversarialRegularizer, x: np.ndarray) -> Tensor:
    """What the energy sees of images; its gradient there is that of the regulariser."""
    return torch.from_numpy((x - method.level_) / method.spread_)


def values(method: AdversarialRegularizer, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return method.spread_ * EnergyFunctional(method.module_)(normalised(method, x).float()).numpy()


# ------------------------------------------------------------------------------------------ theory
def test_energy_of_a_circle_approaches_the_distance_to_it(circle) -> None:
    """The distance to the data manifold is optimal (theorem 2 of Lunz et al.)."""
    _, x = points_on_the_circle(500, 0.8, 1)
    distance = np.linalg.norm(x, axis=1) - 1
    assert np.corrcoef(values(circle, x), distance)[0, 1] > 0.98


def test_energy_of_a_subspace_approaches_the_distance_to_it() -> None:
    rng = np.random.default_rng(0)
    line = np.array([[0.6, 0.8]])
    true = rng.normal(size=(1000, 1)) * line
    bad = rng.permutation(true) + rng.normal(size=(1000, 1)) * np.array([[-0.8, 0.6]])
    trainer = Trainer(max_epochs=60, batch_size=50, lr=3e-3, final_lr=3e-4, score_every=10)
    method = AdversarialRegularizer(
        energy=PointEnergy(), lam=0.1, trainer=trainer, patch_size=None, pretraining=False
    ).fit(true, bad)
    x = rng.uniform(-1, 1, size=(500, 2))
    distance = np.abs(x @ np.array([-0.8, 0.6]))
    assert np.corrcoef(values(method, x), distance)[0, 1] > 0.95


def test_gradient_step_decreases_the_wasserstein_distance_at_nearly_the_best_rate(circle) -> None:
    """``w'(0) = -1`` is the best that a step of a 1-Lipschitz function can do (theorem 1 of Lunz et al.)."""
    _, bad = points_on_the_circle(2000, 0.8, 2)
    z = normalised(circle, bad).float()
    gradient = EnergyFunctional(circle.module_).grad(z).detach().numpy()
    unit = gradient / np.linalg.norm(gradient, axis=1).max()
    step = 0.05
    # On the circle, transport along the radius is optimal: W1 is that of the radii.
    before, after = (wasserstein_distance(np.linalg.norm(x, axis=1), [1.0]) for x in (bad, bad - step * unit))
    rate = (after - before) / step
    assert -1.0 - 1e-6 <= rate < -0.75


def test_a_step_down_a_trained_energy_brings_distributions_nearer() -> None:
    """The same for filters and potentials of the package, and a single true image.

    The distance of a distribution to a point mass is the mean distance to the point, exactly.
    """
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    true = np.sin(t)[:, None] * np.cos(t)

    def noisy(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        noise, length = rng.normal(size=(200, 12, 12)), rng.uniform(2, 5, (200, 1, 1))
        return true + length * noise / np.linalg.norm(noise, axis=(1, 2), keepdims=True)

    def rate(n_steps: int) -> float:
        trainer = Trainer(n_steps=n_steps, batch_size=20, lr=1e-2, final_lr=1e-3, validation_fraction=0.0)
        method = AdversarialRegularizer(lam=0.1, patch_size=None, pretraining=False, trainer=trainer)
        method.fit(np.repeat(true[None], 200, 0), noisy(0))
        bad, step = noisy(1), 0.05
        slope = EnergyFunctional(method.module_).grad(torch.from_numpy(bad).float()).detach().numpy()
        unit = slope / np.linalg.norm(slope, axis=(1, 2)).max()
        before, after = (np.linalg.norm(x - true, axis=(1, 2)).mean() for x in (bad, bad - step * unit))
        return float(after - before) / step

    assert -1.0 - 1e-6 <= rate(150) < -0.7
    assert rate(1) > -0.5  # it is the training that does it


def test_minimisers_depend_stably_on_the_data(trained, denoising) -> None:
    """Where the objective is strongly convex, with an operator whose singular values are at least ``s``.

    ``||x - x'|| <= ||A^* (y - y')|| / (s^2 - lam rho)``; half of this bound is exceeded by a change of the
    level, which the energy does not see.
    """
    _, data, identity = denoising
    gains = np.where(np.arange(24) < 12, 0.6, 1.0)
    lam = 0.5 * 0.36 / trained.weak_convexity_
    A = pylops.Diagonal(gains, dims=(24, 24), axis=0)
    gains = np.tile(gains[:, None], 24)
    method = trained.set_params(operator=A, lam=lam, tol=1e-8, max_steps=5000)
    y = gains * data.astype("f8")
    directions = {"noise": np.random.default_rng(0).normal(size=y.shape), "level": gains * (gains < 1)}
    ratios: dict[str, float] = {}
    x = method.predict(y)
    for name, direction in directions.items():
        for size in (1e-1, 1e-2):
            change = np.broadcast_to(size * direction, y.shape)
            distance = np.linalg.norm(method.predict(y + change) - x, axis=(1, 2))
            bound = np.linalg.norm(gains * change, axis=(1, 2)) / (0.5 * 0.36)
            ratios[name] = max(ratios.get(name, 0.0), float((distance / bound).max()))
    trained.set_params(operator=identity, lam="auto", tol=1e-4, max_steps=500)
    assert max(ratios.values()) <= 1 + 1e-3
    assert ratios["level"] > 0.4


@pytest.mark.parametrize("lam", [0.02, 0.2])
def test_reconstruction_is_a_stationary_point(trained, denoising, lam) -> None:
    _, data, A = denoising
    method = trained.set_params(lam=lam, tol=1e-7, max_steps=3000)
    x, info = method.predict(data.astype("f8"), return_info=True)
    trained.set_params(lam="auto", tol=1e-4, max_steps=500)
    z, y = torch.from_numpy(x), torch.from_numpy(data.astype("f8"))
    with torch.random.fork_rng():
        R = EnergyFunctional(WeightedEnergy(RidgeEnergy()).double())
    R.energy.load_state_dict(trained.module_.state_dict())
    gradient = LeastSquares(None, y).grad(z) + lam * R.grad(normalised(trained, x)).detach()
    assert info.converged.all()
    assert gradient.abs().max() < 1e-2 * lam  # the slope of R is about 1


def test_both_solvers_find_the_same_minimum(trained, denoising) -> None:
    _, data, _ = denoising
    convex = trained.set_params(lam=0.5 / trained.weak_convexity_, tol=1e-6, max_steps=5000)
    fast, slow = (convex.set_params(solver=name).predict(data) for name in ("accelerated", "gradient"))
    trained.set_params(lam="auto", tol=1e-4, max_steps=500, solver="accelerated")
    assert_allclose(fast, slow, atol=1e-3)


# ------------------------------------------------------------------------------------------ what is learned
def test_training_beats_the_data(trained, denoising) -> None:
    images, data, _ = denoising
    noisy = Tikhonov(lam=0.0).fit().score(images, data)
    assert trained.score(images, data) > noisy + 2


@pytest.mark.parametrize("energy", ENERGIES)
def test_every_energy_trains_and_reports_what_is_known(denoising, energy) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.1, energy=energy, trainer=TINY).fit(images, data)
    assert method.predict(data[:2]).shape == images[:2].shape
    assert (method.weak_convexity_ is not None) == (energy in ("ridge", "convex_ridge", "convex"))
    assert (method.lipschitz_ is not None) == (energy == "lipschitz")
    phases = {epoch["phase"] for epoch in method.history_}
    assert phases == ({"adversarial"} if energy == "lipschitz" else {"pretraining", "adversarial"})


def test_losses_and_scores_are_told(denoising) -> None:
    images, data, A = denoising
    # Scores search for the best weight, and take longer than the rest of a brief training.
    method = AdversarialRegularizer(A, lam=0.1, trainer=Trainer(max_epochs=2, score_every=2))
    assert {"train_loss", "valid_loss", "valid_score"} <= set(method.fit(images, data).history_[-1])


def test_lipschitz_bound_holds_for_the_trained_energy(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(
        A, lam=0.1, energy="lipschitz", trainer=Trainer(max_epochs=5, lr=1e-2, validation_fraction=0.0)
    ).fit(images, data)
    for x in (images, data, 10 * data):
        slopes = EnergyFunctional(method.module_).grad(normalised(method, x)).flatten(1).norm(dim=1)
        assert slopes.max() <= method.lipschitz_ * (1 + 1e-5)


def test_weak_convexity_of_the_trained_energy_holds_and_is_met(trained) -> None:
    """By all eigenvalues of the Hessian, at noise of many sizes.

    Filters that are a tight frame come near ``rho``, so that 0.8 of it would not do; trained ones to 0.15.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = WeightedEnergy(RidgeEnergy())
    for module, part in ((trained.module_, 0.1), (fresh, 0.8)):
        module = copy.deepcopy(module).double().requires_grad_(False)
        unit, basis = math.exp(-module.log_scale.item()), torch.eye(144, dtype=torch.float64)
        lowest = 0.0
        for size in np.logspace(-2, 1, 10):
            x = size * unit * torch.from_numpy(np.random.default_rng(0).normal(size=(1, 12, 12)))
            hessian = Hessian(EnergyFunctional(module), x.repeat(144, 1, 1))
            dense = hessian(basis.reshape(144, 12, 12)).reshape(144, 144)
            lowest = min(lowest, float(torch.linalg.eigvalsh((dense + dense.mT) / 2)[0]))
        assert part * module.weak_convexity() < -lowest <= module.weak_convexity() * (1 + 1e-6)


def test_slope_at_bad_images_is_one_per_pixel(trained, denoising) -> None:
    _, data, _ = denoising
    slope = EnergyFunctional(trained.module_).grad(normalised(trained, data[:8]))
    assert slope.square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)


def test_penalty_holds_the_slope_of_a_patch_near_one(denoising) -> None:
    images, data, A = denoising
    trainer = Trainer(max_epochs=20, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
    loose, firm = (
        AdversarialRegularizer(
            A, lam=0.1, trainer=trainer, gradient_penalty=mu, pretraining=False, patch_size=None
        )
        .fit(images, data)
        .history_[-1]["train_loss"]
        for mu in (0.5, 50.0)
    )
    assert loose < firm < 0


# ------------------------------------------------------------------------------------------ pairs or none
def test_unpaired_sets_of_different_sizes(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, trainer=Trainer(max_epochs=20, lr=1e-2)).fit(images, data[:9])
    assert not method.paired_
    assert method.history_[-1]["valid_score"] > 0  # bad images stand above true ones
    assert method.score(images[9:], data[9:]) > Tikhonov(lam=0.0).fit().score(images[9:], data[9:])


@pytest.mark.parametrize(
    ("change", "paired"),
    [
        (lambda y: y, True),
        (lambda y: y + np.random.default_rng(0).normal(size=y.shape).astype("f4"), True),
        (lambda y: np.roll(y, 1, 0), False),
        (lambda y: y[np.random.default_rng(1).permutation(12)], False),
        (lambda y: y[:5], False),
    ],
    ids=["pairs", "noisy pairs", "shifted", "shuffled", "fewer"],
)
def test_pairs_are_recognised(denoising, change, paired) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.1, trainer=TINY, pretraining=False)
    assert method.fit(images, change(data)).paired_ is paired


def test_noise_of_unpaired_sets_is_measured_in_high_frequencies() -> None:
    images, data, A = make_problem("denoising", n_samples=40, size=48, noise=0.2, random_state=0)
    true = np.std(data[20:] - images[20:])
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY).fit(images[:20], data[20:])
    assert method.lam_ == pytest.approx(true, rel=0.3)


def test_pairs_in_the_wrong_order_are_refused() -> None:
    images, A = make_ellipses(6, 16, random_state=0), gaussian_blur((16, 16), 2.0)
    data = np.stack([A @ x for x in images])
    with pytest.raises(ValueError, match="images first and measurements second"):
        AdversarialRegularizer(A, trainer=TINY).fit(data, images)


def test_real_images_of_complex_data_are_refused_for_denoising(denoising) -> None:
    images, data, _ = denoising
    with pytest.raises(ValueError, match="images and measurements of one kind"):
        AdversarialRegularizer(trainer=TINY).fit(images, data + 1j)


def test_noise_free_unpaired_data_are_reported(denoising) -> None:
    images, _, A = denoising
    with pytest.warns(UserWarning, match="lam is 0; pass noise or lam"):
        method = AdversarialRegularizer(A, trainer=TINY).fit(images, images[:5] / 2)
    assert method.lam_ == 0


def test_given_noise_level_is_used(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY, noise=0.3).fit(images, data)
    # A^* noise has the deviation 0.3, and the fidelity is 1/2 ||x - y||^2 over its square.
    assert method.lam_ == pytest.approx(1 / 0.3, rel=0.03)


# ------------------------------------------------------------------------------------------ the weight
def test_auto_is_the_noise_in_back_projected_data(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY).fit(images, data)
    assert method.lam_ == pytest.approx(np.sqrt(np.mean((data - images) ** 2)), rel=1e-5)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> str:
    """A folder of trainings that methods share which differ in the reconstruction alone."""
    return str(tmp_path_factory.mktemp("trainings"))


@pytest.mark.parametrize("bounds", [None, (0.3, 0.6)])
def test_fit_finds_the_best_weight_and_scale(denoising, bounds, trainings) -> None:
    """No neighbour on a grid of weights and scales does better on the pairs that it saw."""
    images, data, A = denoising
    trainer = Trainer(max_epochs=20, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
    method = AdversarialRegularizer(
        A, lam="fit", bounds=bounds, tol=1e-5, max_steps=1000, trainer=trainer, memory=trainings
    ).fit(images, data)
    best = method.score(images[:8], data[:8])
    lam, scale = method.lam_, method.scale_
    for change_of_lam, change_of_scale in ((0.9, 1), (1.1, 1), (1, 0.9), (1, 1.1)):
        method.lam_, method.scale_ = change_of_lam * lam, change_of_scale * scale
        assert best >= method.score(images[:8], data[:8]) - 0.02


def test_a_number_is_taken_as_it_is_and_rules_need_a_fit(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.05, trainer=TINY).fit(images, data)
    assert method.lam_ == 0.05
    assert_allclose(method.set_params(lam=0.0).predict(data), data, atol=1e-6)
    with pytest.raises(ValueError, match="lam='fit' was 0.05 when fitted: fit again"):
        method.set_params(lam="fit").predict(data)


def test_fit_calibrates_on_pairs_and_is_the_rule_without(denoising, trainings) -> None:
    images, data, A = denoising
    fitted, ruled = (
        AdversarialRegularizer(A, lam=lam, trainer=TINY, memory=trainings).fit(images, data[:7])
        for lam in ("fit", "auto")
    )
    assert (fitted.lam_, fitted.scale_) == (ruled.lam_, ruled.scale_) == (ruled.lam_, 1)
    fitted, ruled = (
        AdversarialRegularizer(A, lam=lam, trainer=TINY, memory=trainings).fit(images, data)
        for lam in ("fit", "auto")
    )
    assert AdversarialRegularizer().lam == "fit"
    assert fitted.scale_ != 1 and fitted.lam_ != ruled.lam_
    assert fitted.score(images[:8], data[:8]) > ruled.score(images[:8], data[:8])


class Count(Callback):
    """Counts trainings."""

    n = 0

    def on_train_begin(self, net: Any, **_: Any) -> None:
        Count.n += 1


def test_a_grid_over_lam_trains_once_per_fold(denoising, tmp_path, monkeypatch) -> None:
    images, data, A = denoising
    monkeypatch.setattr(Count, "n", 0)
    trainer = Trainer(max_epochs=2, validation_fraction=0.0, callbacks=[Count()])
    method = AdversarialRegularizer(A, tol=1e-2, trainer=trainer, pretraining=False, memory=str(tmp_path))
    grid = {"lam": [0.01, 0.1], "bounds": [None, (0, 1)]}
    GridSearchCV(method, grid, cv=2, error_score="raise").fit(images, data)
    assert Count.n == 3


# ------------------------------------------------------------------------------------------ how it is trained
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("n_data", [6, 5])
def test_initial_makes_the_bad_images_and_the_start(frozen, n_data) -> None:
    images, data, A = make_problem("ct", n_samples=6, size=24, noise=0.05, random_state=0)
    initial: Any = Tikhonov(lam=3.0)
    expected = clone(initial).set_params(operator=A).fit().predict(data[:n_data])
    if frozen:
        initial = FrozenEstimator(Tikhonov(A, lam=3.0).fit())
    method = AdversarialRegularizer(A, lam=0.0, initial=initial, trainer=TINY, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        method.fit(images, data[:n_data])
        after_one_step = method.predict(data[:n_data])
    assert np.linalg.norm(after_one_step - expected) < 0.5 * np.linalg.norm(expected)
    slope = EnergyFunctional(method.module_).grad(normalised(method, expected))
    assert slope.square().mean().sqrt().item() == pytest.approx(1, rel=1e-3)


def test_by_default_the_start_is_filtered_back_projection() -> None:
    """That of what the data have beside the level, which filtered back-projection does not keep exactly."""
    images, data, A = make_problem("ct", n_samples=6, size=24, noise=0.05, random_state=0)
    method, linear = AdversarialRegularizer(A, lam=0.1, trainer=TINY).fit(images, data), as_torch(A)
    rest = method._normalised(linear, torch.from_numpy(data))
    assert_allclose(method._start(linear, rest), linear.filtered_adjoint(rest), atol=1e-6)
    given = AdversarialRegularizer(A, lam=0.1, initial=FilteredBackProjection(), trainer=TINY)
    expected = FilteredBackProjection(A).fit().predict(data)
    start = given.fit(images, data)._start(linear, rest)
    assert_allclose(given.level_ + given.spread_ * start, expected, atol=1e-5)


def test_recursion_adds_partial_reconstructions_and_goes_on(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.1, n_recursions=2, trainer=TINY).fit(images, data)
    phases = list(dict.fromkeys(epoch["phase"] for epoch in method.history_))
    assert phases == ["pretraining", "adversarial", "recursion 1", "recursion 2"]


def test_a_training_that_only_spoils_keeps_the_weights_it_started_from(denoising) -> None:
    images, data, A = denoising
    wild, idle = (
        AdversarialRegularizer(A, lam=0.1, trainer=Trainer(max_epochs=2, lr=lr)).fit(images, data)
        for lr in (10.0, 1e-12)
    )
    assert wild.score(images, data) > idle.score(images, data) - 0.1


def test_non_finite_loss_stops_keeps_good_weights_and_warns(denoising) -> None:
    images, data, A = denoising
    wild = Trainer(max_epochs=20, lr=1e20, optimizer="sgd")
    with pytest.warns(ConvergenceWarning, match="not finite"):
        method = AdversarialRegularizer(A, lam=0.1, energy="conv", trainer=wild, pretraining=False).fit(
            images, data
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert np.isfinite(method.predict(data)).all()


def test_training_images_may_have_any_unit(denoising) -> None:
    """Grey values from 0 to 255 or from 0 to 1: the same reconstruction in other units."""
    images, data, _ = denoising
    one, other = (
        AdversarialRegularizer(lam="auto", trainer=Trainer(max_epochs=3, lr=1e-2, validation_fraction=0.0))
        .fit(c * images, c * data)
        .predict(c * data)
        for c in (1.0, 255.0)
    )
    assert_allclose(other / 255, one, atol=5e-3)


def test_complex_images_and_channels_are_learned_jointly() -> None:
    images, data, A = make_problem("mri", n_samples=6, size=16, noise=0.05, random_state=0)
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY).fit(images, data)
    assert method.n_channels_ == 2
    assert method.predict(data).dtype == np.complex64


def test_real_images_give_real_reconstructions_under_a_complex_operator() -> None:
    images = make_ellipses(6, 16, random_state=0)
    _, _, A = make_problem("mri", n_samples=1, size=16, random_state=0)
    data = (A @ images.reshape(6, -1).T).T.reshape(6, *A.dimsd).astype("c8")
    X_hat = AdversarialRegularizer(A, lam="auto", trainer=TINY, noise=0.01).fit(images, data).predict(data)
    assert X_hat.dtype == np.float32


def test_other_channels_than_trained_on_are_refused() -> None:
    rng = np.random.default_rng(0)
    method = AdversarialRegularizer(trainer=TINY, lam=0.1, channel_axis=0).fit(
        rng.random((4, 3, 8, 8)), rng.random((4, 3, 8, 8))
    )
    with pytest.raises(ValueError, match="trained on images of 3 channels"):
        method.predict(rng.random((2, 2, 8, 8)))


def test_trained_on_patches_reconstructs_whole_images(trained) -> None:
    y = np.random.default_rng(0).random((1, 40, 70)).astype("f4")
    assert trained.set_params(operator=None).predict(y).shape == y.shape


def test_saved_with_its_history_and_weight(trained, denoising, tmp_path) -> None:
    _, data, A = denoising
    trained.set_params(operator=A).save(tmp_path / "ar.skinverse")
    again = load(tmp_path / "ar.skinverse")
    assert again.history_ == trained.history_ and again.lam_ == trained.lam_
    assert_array_equal(again.predict(data), trained.predict(data))


# ------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("given", "missing"), [(("X_true",), "Y_meas is missing"), (("Y_meas",), "X_true is missing")]
)
def test_missing_sets_are_named(denoising, given, missing) -> None:
    images, data, A = denoising
    sets = {"X_true": images, "Y_meas": data}
    with pytest.raises(ValueError, match=f"X_true and Y_meas, but {missing}"):
        AdversarialRegularizer(A).fit(**{name: sets[name] for name in given})


def test_one_number_for_the_batch_is_refused(denoising) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum()

    images, data, A = denoising
    with pytest.raises(ValueError, match="expected one number per image, never one for the batch"):
        AdversarialRegularizer(A, energy=Sum(), trainer=TINY).fit(images, data)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"lam": -1.0}, r"lam: expected a number >= 0 or one of \['auto', 'fit'\], got -1.0"),
        ({"lam": None}, "lam: expected"),
        ({"lam": "discrepancy"}, "lam: expected"),
        ({"energy": "cnn"}, "energy: expected one of"),
        ({"penalty": "both"}, "penalty: expected one of"),
        ({"solver": "adam"}, "solver: expected one of"),
        ({"gradient_penalty": -1.0}, "gradient_penalty: expected a number >= 0"),
        ({"n_recursions": -1}, "n_recursions: expected a whole number >= 0"),
        ({"patch_size": 0}, "patch_size: expected a whole number >= 1"),
        ({"bounds": (1, 0)}, "bounds: expected"),
        ({"noise": 0.0}, "noise: expected a standard deviation > 0"),
    ],
)
def test_bad_parameters_are_refused_before_training(denoising, params, says) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match=says):
        AdversarialRegularizer(A, **params).fit(images, data)


# ------------------------------------------------------------------------------------ the first weight
@pytest.mark.parametrize("best", [1.0, 1 / 9, 0.0])
def test_a_weight_that_lets_images_run_away_is_reduced(best) -> None:
    """In thirds, as long as the reconstructions improve."""
    images = torch.from_numpy(make_ellipses(2, 8, random_state=0))
    found = backtrack_weight(1.0, lambda lam: Solution.direct(images + 0.1 * abs(lam - best)), images)
    assert found == pytest.approx(max(best, 3.0**-6))


# ------------------------------------------------------------------------------------------ interruptions
class Killed(Exception):
    """The end of a process."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the training before the optimizer has taken so many steps."""
    taken, take = [0], torch.optim.Adam.step

    def take_or_end(self: Any, closure: Any = None) -> Any:
        taken[0] += 1
        if taken[0] == step:
            raise Killed
        return take(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", take_or_end)


@pytest.fixture(scope="module", params=[True, False], ids=["pairs", "no pairs"])
def uninterrupted(request) -> tuple[AdversarialRegularizer, np.ndarray, np.ndarray]:
    """Three phases of two epochs of two steps each."""
    images, data, A = make_problem("denoising", n_samples=8, size=12, noise=0.2, random_state=0)
    data = data if request.param else data[:7]
    trainer = Trainer(max_epochs=2, batch_size=3, lr=1e-2, validation_fraction=0.25, score_every=2)
    method = AdversarialRegularizer(A, lam="auto", n_recursions=1, patch_size=8, trainer=trainer)
    return method.fit(images, data), images, data


@pytest.mark.parametrize("step", [7, 11])
def test_a_killed_training_goes_on_to_the_same_weights(uninterrupted, step, tmp_path, monkeypatch) -> None:
    whole, images, data = uninterrupted
    method = clone(whole).set_params(trainer__checkpoint=tmp_path / "training")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        clone(method).fit(images, data)
    resumed = method.fit(images, data)
    for name, weight in whole.module_.state_dict().items():
        assert torch.equal(resumed.module_.state_dict()[name], weight), name
    assert told(resumed) == told(whole)
    assert resumed.lam_ == whole.lam_


def told(method: AdversarialRegularizer) -> list[dict[str, Any]]:
    """The history without the seconds."""
    return [{name: value for name, value in epoch.items() if name != "dur"} for epoch in method.history_]


class Waves(nn.Module):
    """``sum cos(30 x)``: minima everywhere, and a maximum at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.height = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.height * torch.cos(30 * x).flatten(1).sum(1)


def test_reconstructions_that_rounding_chooses_are_told() -> None:
    """Pixels that are zero stand on a maximum of the energy, from which the least change leads away."""
    signs = np.random.default_rng(0).permutation(np.tile([-1.0, 1.0], 6 * 12 * 12 // 2)).reshape(6, 12, 12)
    images = np.where(np.arange(12) % 2, signs, 0.0)
    images -= images.sum() / (images != 0).sum() * (images != 0)  # the level that is taken out is zero
    method = AdversarialRegularizer(
        energy=Waves(), lam=1.0, patch_size=None, pretraining=False, trainer=Trainer(n_steps=1, lr=1e-6)
    )
    with pytest.warns(ConvergenceWarning, match="change of the data by 1e-06 changes.*many minima"):
        method.fit(images, images)
    assert method.amplification_ > 1e3
    calm = clone(method).set_params(lam=1e-3).fit(images, images)
    assert calm.amplification_ < 10
    assert clone(method).set_params(energy="convex_ridge").fit(images, images).amplification_ is None

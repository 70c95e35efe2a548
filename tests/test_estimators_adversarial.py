"""The adversarial regularizer against its theory: distances, Wasserstein decay, stability, calibration."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import wasserstein_distance
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from skinverse import AdversarialRegularizer, FilteredBackProjection, Tikhonov, Trainer, load
from skinverse.datasets import make_ellipses, make_problem
from skinverse.estimators._adversarial_training import white_noise
from skinverse.estimators._learning import are_pairs, held, patches
from skinverse.functionals import Learned, LeastSquares, RidgeCritic, WeightedCritic
from skinverse.operators import as_torch
from skinverse.solvers import Solution

TINY = Trainer(max_epochs=2, lr=1e-3)
CRITICS = ["ridge", "convex_ridge", "conv", "convex", "lipschitz"]


@pytest.fixture(scope="module")
def denoising() -> tuple[np.ndarray, np.ndarray, Any]:
    return make_problem("denoising", n_samples=12, size=24, noise=0.2, random_state=0)


@pytest.fixture(scope="module")
def trained(denoising) -> AdversarialRegularizer:
    images, data, A = denoising
    return AdversarialRegularizer(A, lam="auto", trainer=Trainer(max_epochs=30, lr=1e-2, score_every=10)).fit(
        images, data
    )


class PointCritic(nn.Module):
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
    trainer = Trainer(max_epochs=60, batch_size=50, lr=3e-3, lr_decay=0.1, score_every=10)
    method = AdversarialRegularizer(
        critic=PointCritic(),
        lam=0.1,
        trainer=trainer,
        patch_size=None,
        pretraining=False,
        gradient_penalty=10.0,
    )
    return method.fit(true, bad)


def energies(method: AdversarialRegularizer, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Learned(method.module_)(torch.from_numpy(x).float()).numpy()


# ------------------------------------------------------------------------------------------ theory
def test_critic_of_a_circle_approaches_the_distance_to_it(circle) -> None:
    """The distance to the data manifold is optimal (theorem 2 of Lunz et al.)."""
    _, x = points_on_the_circle(500, 0.8, 1)
    distance = np.linalg.norm(x, axis=1) - 1
    assert np.corrcoef(energies(circle, x), distance)[0, 1] > 0.98


def test_critic_of_a_subspace_approaches_the_distance_to_it() -> None:
    rng = np.random.default_rng(0)
    line = np.array([[0.6, 0.8]])
    true = rng.normal(size=(1000, 1)) * line
    bad = rng.permutation(true) + rng.normal(size=(1000, 1)) * np.array([[-0.8, 0.6]])
    trainer = Trainer(max_epochs=60, batch_size=50, lr=3e-3, lr_decay=0.1, score_every=10)
    method = AdversarialRegularizer(
        critic=PointCritic(), lam=0.1, trainer=trainer, patch_size=None, pretraining=False
    ).fit(true, bad)
    x = rng.uniform(-1, 1, size=(500, 2))
    distance = np.abs(x @ np.array([-0.8, 0.6]))
    assert np.corrcoef(energies(method, x), distance)[0, 1] > 0.95


def test_gradient_step_decreases_the_wasserstein_distance_at_nearly_the_best_rate(circle) -> None:
    """``w'(0) = -1`` is the best that a step of a 1-Lipschitz function can do (theorem 1 of Lunz et al.)."""
    _, bad = points_on_the_circle(2000, 0.8, 2)
    z = torch.from_numpy(bad).float()
    gradient = Learned(circle.module_).grad(z).detach().numpy()
    unit = gradient / np.linalg.norm(gradient, axis=1).max()
    step = 0.05
    # On the circle, transport along the radius is optimal: W1 is that of the radii.
    before, after = (wasserstein_distance(np.linalg.norm(x, axis=1), [1.0]) for x in (bad, bad - step * unit))
    rate = (after - before) / step
    assert -1.0 - 1e-6 <= rate < -0.75


def test_minimisers_depend_stably_on_the_data(trained, denoising) -> None:
    """Where the objective is strongly convex, ``||x - x'|| <= ||y - y'|| / (1 - lam rho)``."""
    _, data, _ = denoising
    method = trained.set_params(lam=0.5 / trained.weak_convexity_, tol=1e-7, max_steps=2000)
    direction = np.random.default_rng(0).normal(size=data.shape)
    x = method.predict(data.astype("f8"))
    for size in (1e-1, 1e-2, 1e-3):
        moved = method.predict(data + size * direction)
        distance = np.linalg.norm((moved - x).reshape(len(x), -1), axis=1)
        assert (distance <= 2 * size * np.linalg.norm(direction.reshape(len(x), -1), axis=1) + 1e-5).all()
    trained.set_params(lam="auto", tol=1e-4, max_steps=500)


@pytest.mark.parametrize("lam", [0.02, 0.2])
def test_reconstruction_is_a_stationary_point(trained, denoising, lam) -> None:
    _, data, A = denoising
    method = trained.set_params(lam=lam, tol=1e-7, max_steps=3000)
    x, info = method.predict(data.astype("f8"), return_info=True)
    trained.set_params(lam="auto", tol=1e-4, max_steps=500)
    z, y = torch.from_numpy(x), torch.from_numpy(data.astype("f8"))
    with torch.random.fork_rng():
        R = Learned(WeightedCritic(RidgeCritic()).double())
    R.critic.load_state_dict(trained.module_.state_dict())
    gradient = (LeastSquares(None, y) + lam * R).grad(z).detach()
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


@pytest.mark.parametrize("critic", CRITICS)
def test_every_critic_trains_and_reports_what_is_known(denoising, critic) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.1, critic=critic, trainer=TINY).fit(images, data)
    assert method.predict(data).shape == images.shape
    assert (method.weak_convexity_ is not None) == (critic in ("ridge", "convex_ridge", "convex"))
    assert (method.lipschitz_ is not None) == (critic == "lipschitz")
    phases = {epoch["phase"] for epoch in method.history_}
    assert phases == ({"adversarial"} if critic == "lipschitz" else {"pretraining", "adversarial"})
    assert {"train_loss", "valid_loss", "valid_score"} <= set(method.history_[-1])


def test_lipschitz_bound_holds_for_the_trained_critic(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(
        A, lam=0.1, critic="lipschitz", trainer=Trainer(max_epochs=5, lr=1e-2)
    ).fit(images, data)
    for x in (images, data, 10 * data):
        slopes = Learned(method.module_).grad(torch.from_numpy(x)).flatten(1).norm(dim=1)
        assert slopes.max() <= method.lipschitz_ * (1 + 1e-5)


def test_weak_convexity_holds_for_the_trained_critic(trained) -> None:
    """Convex after adding ``rho/2 ||x||^2``: the midpoint lies below the chord."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 24, 24))
    rho = trained.weak_convexity_

    def lifted(x: np.ndarray) -> np.ndarray:
        return energies(trained, x) + rho / 2 * (x**2).sum((1, 2))

    assert (lifted((a + b) / 2) <= (lifted(a) + lifted(b)) / 2 + 1e-3).all()


def test_slope_at_bad_images_is_one_per_pixel(trained, denoising) -> None:
    _, data, _ = denoising
    slope = Learned(trained.module_).grad(torch.from_numpy(data[:8]))
    assert slope.square().mean().sqrt().item() == pytest.approx(1, rel=1e-4)


def test_penalty_holds_the_slope_of_a_patch_near_one(denoising) -> None:
    images, data, A = denoising
    trainer = Trainer(max_epochs=40, lr=1e-2, validation_fraction=0.0)
    loose, firm = (
        AdversarialRegularizer(A, trainer=trainer, gradient_penalty=mu, pretraining=False, patch_size=None)
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


def test_pairs_are_recognised(denoising) -> None:
    images, data, A = denoising
    x, y = torch.from_numpy(images), torch.from_numpy(data)
    assert are_pairs(as_torch(A), x, y)
    assert not are_pairs(as_torch(A), x, y.roll(1, 0))
    assert not are_pairs(as_torch(A), x, y[torch.randperm(12, generator=torch.Generator().manual_seed(1))])
    assert not are_pairs(as_torch(A), x, y[:5])
    weak = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert are_pairs(as_torch(A), x, weak)


def test_unpaired_noise_is_measured_in_high_frequencies() -> None:
    images, data, _ = make_problem("denoising", n_samples=40, size=48, noise=0.2, random_state=0)
    x, y = torch.from_numpy(images[:20]), torch.from_numpy(data[20:])
    unit = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    true = np.std(data[20:] - images[20:])
    assert white_noise(y, x, unit) == pytest.approx(true, rel=0.3)


def test_noise_free_unpaired_data_are_reported(denoising) -> None:
    images, _, A = denoising
    with pytest.warns(UserWarning, match="lam is 0; pass noise_std or lam"):
        method = AdversarialRegularizer(A, trainer=TINY).fit(images, images[:5] / 2)
    assert method.lam_ == 0


def test_given_noise_level_is_used(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY, noise_std=0.3).fit(images, data)
    assert method.lam_ == pytest.approx(0.3, rel=0.03)


# ------------------------------------------------------------------------------------------ the weight
def test_auto_is_the_noise_in_back_projected_data(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam="auto", trainer=TINY).fit(images, data)
    assert method.lam_ == pytest.approx(np.sqrt(np.mean((data - images) ** 2)), rel=1e-5)


@pytest.mark.parametrize("bounds", [None, (0.3, 0.6)])
def test_fit_finds_the_best_weight_and_scale(denoising, bounds) -> None:
    """No neighbour on a grid of weights and scales does better on the pairs that it saw."""
    images, data, A = denoising
    trainer = Trainer(max_epochs=20, lr=1e-2, score_every=10)
    method = AdversarialRegularizer(
        A, lam="fit", bounds=bounds, tol=1e-5, max_steps=1000, trainer=trainer
    ).fit(images, data)
    best = method.score(images[:8], data[:8])
    lam, scale = method.lam_, method.scale_
    for method.lam_ in (0.9 * lam, lam, 1.1 * lam):
        for method.scale_ in (0.9 * scale, scale, 1.1 * scale):
            assert best >= method.score(images[:8], data[:8]) - 0.02


def test_a_number_is_taken_as_it_is_and_rules_need_a_fit(denoising) -> None:
    images, data, A = denoising
    method = AdversarialRegularizer(A, lam=0.05, trainer=TINY).fit(images, data)
    assert method.lam_ == 0.05
    assert_allclose(method.set_params(lam=0.0).predict(data), data, atol=1e-6)
    with pytest.raises(ValueError, match="lam='fit' was 0.05 when fitted: fit again"):
        method.set_params(lam="fit").predict(data)


def test_unless_told_otherwise_pairs_are_calibrated_on_and_others_follow_the_rule(denoising) -> None:
    images, data, A = denoising
    unpaired = AdversarialRegularizer(A, trainer=TINY, noise_std=0.3).fit(images, data[:7])
    assert unpaired.lam_ == pytest.approx(0.3, rel=0.03) and unpaired.scale_ == 1
    paired = AdversarialRegularizer(A, trainer=TINY).fit(images, data)
    fitted = AdversarialRegularizer(A, lam="fit", trainer=TINY).fit(images, data)
    assert (paired.lam_, paired.scale_) == (fitted.lam_, fitted.scale_)


def test_fit_needs_pairs(denoising) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match="must be pairs"):
        AdversarialRegularizer(A, lam="fit", trainer=TINY).fit(images, data[:7])


def test_a_grid_over_lam_trains_once_per_fold(denoising, tmp_path, monkeypatch) -> None:
    images, data, A = denoising
    trained: list[int] = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    method = AdversarialRegularizer(A, trainer=TINY, pretraining=False, memory=str(tmp_path))
    grid = {"lam": [0.01, 0.1], "bounds": [None, (0, 1)]}
    GridSearchCV(method, grid, cv=2, error_score="raise").fit(images, data)
    assert len(trained) == 3


# ------------------------------------------------------------------------------------------ how it is trained
def test_initial_estimator_makes_the_bad_images() -> None:
    images, data, A = make_problem("ct", n_samples=6, size=24, noise=0.05, random_state=0)
    method = AdversarialRegularizer(A, lam=0.0, initial=FilteredBackProjection(), trainer=TINY, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        method.fit(images, data)
        start = method.predict(data)
    fbp = FilteredBackProjection(A).fit().predict(data)
    one_step = np.linalg.norm(start - fbp) / np.linalg.norm(fbp)
    assert 0 < one_step < 1
    assert_array_equal(method._bad(as_torch(A), torch.from_numpy(data))[:, 0].numpy(), fbp)


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
        method = AdversarialRegularizer(A, lam=0.1, critic="conv", trainer=wild, pretraining=False).fit(
            images, data
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert np.isfinite(method.predict(data)).all()


def test_patches_are_aligned_windows_of_the_image() -> None:
    x = torch.arange(2 * 6 * 8.0).view(2, 1, 6, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(20):
            cut = patches(torch.cat([x, x + 1000], 1), 4)
            assert cut.shape == (2, 2, 4, 4)
            assert_array_equal(cut[:, 1] - cut[:, 0], 1000)
            steps = {
                abs(d)
                for d in (cut[:, 0].diff(dim=-1).unique().tolist() + cut[:, 0].diff(dim=-2).unique().tolist())
            }
            assert steps == {1.0, 8.0}
        assert patches(x, None).shape == x.shape and patches(x, 100).shape == x.shape


def test_training_images_may_have_any_unit(denoising) -> None:
    """Grey values from 0 to 255 or from 0 to 1: the same reconstruction in other units."""
    images, data, _ = denoising
    one, other = (
        AdversarialRegularizer(lam="auto", trainer=Trainer(max_epochs=3, lr=1e-2))
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
    X_hat = (
        AdversarialRegularizer(A, lam="auto", trainer=TINY, noise_std=0.01).fit(images, data).predict(data)
    )
    assert X_hat.dtype == np.float32


def test_other_channels_than_trained_on_are_refused() -> None:
    rng = np.random.default_rng(0)
    method = AdversarialRegularizer(trainer=TINY, lam=0.1).fit(
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
        AdversarialRegularizer(A, critic=Sum(), trainer=TINY).fit(images, data)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"lam": -1.0}, 'lam: expected a number >= 0 or "auto" or "fit"'),
        ({"lam": "discrepancy"}, "lam: expected"),
        ({"critic": "cnn"}, "critic: expected one of"),
        ({"penalty": "both"}, "penalty: expected one of"),
        ({"solver": "adam"}, "solver: expected one of"),
        ({"gradient_penalty": -1.0}, "gradient_penalty: expected a number >= 0"),
        ({"n_recursions": -1}, "n_recursions: expected a whole number >= 0"),
        ({"patch_size": 0}, "patch_size: expected a whole number >= 1"),
        ({"bounds": (1, 0)}, "bounds: expected"),
        ({"noise_std": 0.0}, "noise_std: expected a number > 0"),
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
    found = held(1.0, lambda lam: Solution.direct(images + 0.1 * abs(lam - best)), images)
    assert found == pytest.approx(max(best, 3.0**-6))

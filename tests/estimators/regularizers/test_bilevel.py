"""Bilevel learning against closed forms, differences of solutions, and the bounds that it proves."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

from skinverse import BilevelRegularizer, Trainer, load
from skinverse.datasets import make_problem
from skinverse.energies import (
    ConvexEnergy,
    GradientStepEnergy,
    REDEnergy,
    RidgeEnergy,
    SmoothEnergy,
    WeightedEnergy,
)
from skinverse.functionals import EnergyFunctional, LeastSquares
from skinverse.networks import DnCNN
from skinverse.operators import gaussian_blur
from skinverse.solvers import accelerated_gradient, implicit

BRIEF = Trainer(max_epochs=1, validation_fraction=0.0)
TINY: dict[str, Any] = {"trainer": BRIEF, "pretrainer": BRIEF}


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
    trainer = Trainer(max_epochs=45, batch_size=12, lr=0.1, final_lr=0.01, validation_fraction=0.0)
    return BilevelRegularizer(
        energy=Roughness(), trainer=trainer, pretraining=False, patch_size=None, **params
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


def test_the_best_weight_is_found_where_pixels_sit_on_bounds(denoising) -> None:
    """Those do not move with the weight; a derivative that moved them would end elsewhere."""
    images, data, _ = denoising
    method = roughness(bounds=(0.4, 0.6), tol=1e-6).set_params(trainer__max_epochs=60)
    method.fit(images, data)
    lam, errors = method.lam_, []
    for factor in (0.9, 1.0, 1.1):
        errors.append(np.square(method.set_params(lam=factor * lam).predict(data) - images).sum())
    assert errors[1] < min(errors[0], errors[2])


def test_the_risk_is_minimised_without_true_images(denoising) -> None:
    images, data, _ = denoising
    noise_std = float(np.std(data - images))
    method = roughness(loss="sure", noise=noise_std).fit(Y_meas=data)
    best = np.square(smoothed(data, best_weight(images, data)) - images).sum()
    assert np.square(method.predict(data) - images).sum() < 1.05 * best


def test_training_beats_its_own_start() -> None:
    """The upper level improves on denoising pretraining with calibrated weight and scale."""
    images, data, A = make_problem("denoising", n_samples=12, size=16, noise=0.2, random_state=0)
    pretrained = Trainer(max_epochs=10, lr=1e-2, final_lr=1e-2, validation_fraction=0.0)
    start, trained = (
        BilevelRegularizer(
            A,
            pretrainer=pretrained,
            trainer=Trainer(max_epochs=n, lr=lr, final_lr=lr, validation_fraction=0.0),
        )
        .fit(images, data)
        .predict(data)
        for n, lr in ((1, 1e-9), (10, 1e-2))
    )
    assert np.square(trained - images).mean() < 0.9 * np.square(start - images).mean()


def test_the_penalty_makes_the_regularizer_smoother(denoising) -> None:
    images, data, A = denoising
    energy = GradientStepEnergy(DnCNN(n_features=8, n_layers=2))
    for p in energy.parameters():
        p.data *= 4  # rough to begin with
    common = dict(
        energy=energy, beta=1.2, lam=0.1, pretraining=False,
        trainer=Trainer(max_epochs=15, lr=1e-2, final_lr=1e-3, validation_fraction=0.0),
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
    method = BilevelRegularizer(A, lam=0.7, beta=1.0, **TINY, tol=1e-6).fit(images, data)
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
    grid = [{"lam": [0.05], "beta": [1.0]}, {"lam": [0.2], "beta": [2.0]}]
    method = BilevelRegularizer(A, **TINY, pretraining=False)
    one, two = (GridSearchCV(method, grid, cv=2, n_jobs=n).fit(images, data) for n in (1, 2))
    assert_allclose(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"], rtol=1e-6)
    assert one.best_params_ == two.best_params_


def test_complex_images_are_learned_from_too() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 8, 8)) + 1j * rng.normal(size=(4, 8, 8))
    method = BilevelRegularizer(**TINY, lam=0.1).fit(images, images)
    assert method.n_channels_ == 2
    assert method.predict(images).dtype == images.dtype


@pytest.mark.parametrize("energy", ["convex_ridge", "convex"])
def test_solvers_find_the_same_minimum(denoising, energy) -> None:
    images, data = (batch[:4, :12, :12].astype(np.float64) for batch in denoising[:2])
    A = gaussian_blur((12, 12), 1.0)
    method = BilevelRegularizer(A, energy=energy, alpha=0.1, **TINY, lam=0.1, max_steps=5000)
    method.fit(images, data).set_params(tol=1e-5)
    expected = method.predict(data)
    for solver in ("gradient", "proximal"):
        found = method.set_params(solver=solver).predict(data)
        assert_allclose(found, expected, atol=2e-3)


# ------------------------------------------------------------------------------------ derivatives
FORMS = {
    "ridge": lambda: RidgeEnergy(n_filters=3, kernel_size=3),
    "convex": lambda: ConvexEnergy(n_features=2, kernel_size=3),
    "red": lambda: REDEnergy(DnCNN(n_features=3, n_layers=2)),
    "gradient_step": lambda: GradientStepEnergy(DnCNN(n_features=3, n_layers=2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_hypergradients_equal_differences_in_every_tensor(form) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        smooth = SmoothEnergy(FORMS[form](), alpha=0.2, beta=1.5)
        module = WeightedEnergy(smooth, scale=1.3).double()
        x_true, noise = torch.randn(2, 2, 5, 6, dtype=torch.float64)
        y = x_true + 0.3 * noise

    def upper(tol: float = 1e-14) -> Tensor:
        objective = LeastSquares(None, y) + EnergyFunctional(module)
        x = accelerated_gradient(objective, y, max_steps=3000, tol=tol).x
        return (implicit(objective, x, tol=1e-12) - x_true).square().sum()

    names, tensors = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(upper(), tensors)
    for name, p, g in zip(names, tensors, found, strict=True):
        direction = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1))
        # The bound of mirrored filters bends sharply: with 1e-5 the difference is 1e-4 off, with 1e-6 2e-6.
        start, values, h = p.detach().clone(), [], 2e-7 if name.endswith("filters") else 1e-5
        for step in (h, -h):
            p.data = start + step * direction
            values.append(upper().item())
        p.data = start
        expected = (values[0] - values[1]) / (2 * h)
        assert abs((g * direction).sum().item() - expected) <= 1e-6 * max(abs(expected), 1e-2), name


# ------------------------------------------------------------------------------------ what is proven
def test_beta_one_is_convex(denoising) -> None:
    images, data, A = denoising
    for alpha in (0.0, 0.1):
        method = BilevelRegularizer(A, alpha=alpha, beta=1.0, **TINY, pretraining=False)
        method.fit(images, data)
        assert method.certified_
        assert method.weak_convexity_ == 0.0
        assert method.smoothness_ == 1.0


def test_measured_curvature_is_that_of_the_hessian(denoising) -> None:
    """That of ``1/2 ||D x||^2`` has the eigenvalues ``4 sin^2 + 4 sin^2``, from 0 to 8."""
    images, data, _ = denoising
    method = roughness(alpha=0.25).fit(images, data)
    assert not method.certified_
    assert_allclose(method.smoothness_, 8 - 1, rtol=0.01)
    assert method.weak_convexity_ == 0


class Hollow(nn.Module):
    """``-1/2 ||D x||^2``, which is 8-weakly convex, and as good as constant."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return -self.log_weight.exp() * Roughness()(x)


def test_measured_weak_convexity_is_minus_the_smallest_eigenvalue(denoising) -> None:
    images, data, _ = denoising
    method = BilevelRegularizer(energy=Hollow(), lam=0.01, pretraining=False, **TINY).fit(images, data)
    assert_allclose([method.weak_convexity_, method.smoothness_], [8, 9], rtol=0.01)


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"beta": -1.0}, "beta: expected a number >= 0 or None, got -1.0"),
        ({"alpha": -0.1}, "alpha: expected a number >= 0, got -0.1"),
        ({"smoothness_weight": -1}, "smoothness_weight: expected a number >= 0"),
        ({"lam": "auto"}, 'lam: expected a number >= 0 or "fit"'),
        ({"energy": "tv"}, "energy: expected one of"),
        ({"hypergradient": "unrolled"}, "hypergradient: expected one of"),
        ({"loss": "ssim"}, "loss: expected one of"),
        ({"loss": "sure"}, "noise is missing"),
        ({"solver": "proximal", "bounds": (0, 1)}, "bounds must be None"),
        ({"patch_size": 0}, "patch_size: expected a whole number >= 1"),
    ],
)
def test_bad_parameters_are_named(denoising, params, message) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match=message):
        BilevelRegularizer(A, **TINY, **params).fit(images, data)


def test_unpaired_sets_are_refused_with_the_method_for_them(denoising) -> None:
    images, data, A = denoising
    with pytest.raises(ValueError, match="AdversarialRegularizer"):
        BilevelRegularizer(A).fit(images, data[:5])
    with pytest.raises(ValueError, match="X_true is missing"):
        BilevelRegularizer(A).fit(Y_meas=data)


def test_conjugate_gradients_without_convexity_fall_to_minres_and_say_so_once(denoising) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, hypergradient="cg", beta=3.0, lam=0.1, **TINY, pretraining=False)
    with pytest.warns(UserWarning, match="beta <= 1") as caught:
        method.fit(images, data)
    assert sum("MINRES" in str(w.message) for w in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        method.set_params(beta=1.0).fit(images, data)


def test_unfinished_lower_levels_are_counted(denoising) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, lam=0.3, **TINY, pretraining=False, max_steps=1, tol=1e-9)
    images_told = pytest.warns(ConvergenceWarning, match="12 of 12 images in training did not converge")
    derivatives_told = pytest.warns(ConvergenceWarning, match="12 of 12 linear systems for derivatives")
    with images_told, derivatives_told:
        method.fit(images, data)


# ------------------------------------------------------------------------------------ interruptions
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


CASES: dict[str, dict[str, Any]] = {
    "starts": {"max_steps": 3, "tol": 1e-6},
    "directions": {"energy": "red", "beta": 0.5, "lam": 0.1, "max_steps": 3, "tol": 1e-6},
    "risk": {"loss": "sure", "noise": 0.02, "max_steps": 3, "tol": 1e-6},
}


def fit(method: BilevelRegularizer, images: np.ndarray, data: np.ndarray) -> tuple[Any, list[str]]:
    """Fit, from measurements alone where that is meant, and catch the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.fit(None if method.loss == "sure" else images, data)
    return method, [str(warning.message) for warning in caught]


@pytest.fixture(scope="module", params=CASES)
def uninterrupted(request) -> tuple[BilevelRegularizer, list[str], np.ndarray, np.ndarray]:
    """Two phases, or one without true images, of three epochs of two steps each."""
    images, data, A = make_problem("deblurring", n_samples=8, size=12, noise=0.02, random_state=0)
    trainer = Trainer(max_epochs=3, batch_size=3, lr=1e-2, validation_fraction=0.25, score_every=3)
    method = BilevelRegularizer(A, patch_size=8, pretrainer=trainer, trainer=trainer, **CASES[request.param])
    return *fit(method, images, data), images, data


@pytest.mark.parametrize("step", [2, 10])
def test_a_killed_training_goes_on_to_the_same_weights(uninterrupted, step, tmp_path, monkeypatch) -> None:
    """With the same warning too, which counts the reconstructions of both processes."""
    whole, warned, images, data = uninterrupted
    if step > len(whole.history_) * 2:
        pytest.skip("there is no pretraining")
    method = clone(whole).set_params(trainer__checkpoint=tmp_path / "training")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(step, patch)
        fit(clone(method), images, data)
    resumed, warned_later = fit(method, images, data)
    for name, weight in whole.module_.state_dict().items():
        assert torch.equal(resumed.module_.state_dict()[name], weight), name
    assert told(resumed) == told(whole)
    assert warned_later == warned
    assert any("at the lower level" in message for message in warned)


def told(method: BilevelRegularizer) -> list[dict[str, Any]]:
    """The history without the seconds."""
    return [{name: value for name, value in epoch.items() if name != "dur"} for epoch in method.history_]


def test_saved_with_what_was_proven(denoising, tmp_path) -> None:
    images, data, A = denoising
    method = BilevelRegularizer(A, alpha=0.1, beta=1.0, **TINY).fit(images, data)
    method.save(tmp_path / "bilevel.skinverse")
    again = load(tmp_path / "bilevel.skinverse")
    assert (again.lam_, again.weak_convexity_, again.certified_) == (method.lam_, 0.0, True)
    assert np.array_equal(again.predict(data), method.predict(data))

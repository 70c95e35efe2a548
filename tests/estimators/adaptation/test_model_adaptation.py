"""Adaptation: its objective and derivatives, what it leaves alone, what it finds."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV

import skinverse
from skinverse import (
    LISTA,
    AdversarialRegularizer,
    DeepEquilibriumRecon,
    DirectInversion,
    LearnedGradientDescent,
    LearnedPrimalDual,
    ModelAdaptation,
    PostProcessor,
    Tikhonov,
    Trainer,
    VariationalNetwork,
)
from skinverse.datasets import make_ellipses
from skinverse.estimators.adaptation.model_adaptation import prediction
from skinverse.estimators.adaptation.objective import Objective, misfit, stein_risk
from skinverse.networks import GradientStepCNN
from skinverse.operators import DetectorOffset, GaussianBlur, as_torch, gaussian_blur, parallel_beam
from skinverse.preprocessing import find_rotation_axis

# Most tests look at a few steps only.
pytestmark = [
    pytest.mark.filterwarnings("ignore:ModelAdaptation:sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.* of a derivative were not:sklearn.exceptions.ConvergenceWarning"),
]

BRIEF = Trainer(max_epochs=6, lr=3e-3, validation_fraction=0.0)
SIZE, OLD, NEW = 12, 0.8, 1.2
# Unit of the data in which risks are told.
UNIT = 2.0


def measured(images: np.ndarray, operator: Any, noise_std: float = 0.0) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = noise_std * np.random.default_rng(1).normal(size=exact.shape)
    return (exact + noise).astype(images.dtype)


IMAGES = make_ellipses(20, SIZE, random_state=0)
A, B = gaussian_blur((SIZE, SIZE), OLD), gaussian_blur((SIZE, SIZE), NEW)
DATA, ELSEWHERE = measured(IMAGES, A), measured(IMAGES, B)


class Shrunk(torch.nn.Module):
    """With 0.8 times a 1-Lipschitz network ADMM finds its fixed point to all digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = GradientStepCNN(n_features=4, n_layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.8 * self.network(x)


def equilibrium(iteration: str) -> DeepEquilibriumRecon:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Shrunk() if iteration == "admm" else GradientStepCNN(n_features=4, n_layers=2)
    short = Trainer(max_epochs=2)
    return DeepEquilibriumRecon(
        A, iteration=iteration, network=network, lam=1.0, trainer=short, pretrainer=short, tol=1e-5
    )


METHODS: dict[str, Any] = {
    "gradient descent": LearnedGradientDescent(A, n_iterations=3, n_features=8, n_states=2, trainer=BRIEF),
    "primal-dual": LearnedPrimalDual(A, n_iterations=2, n_features=8, n_states=2, trainer=BRIEF),
    "variational": VariationalNetwork(A, n_iterations=2, n_filters=4, kernel_size=3, trainer=BRIEF),
    "lista": LISTA(A, n_iterations=3, kernel_size=3, trainer=BRIEF),
    "post-processing": PostProcessor(A, network="dncnn", patch_size=None, trainer=BRIEF),
    "equilibrium": equilibrium("contractive"),
    "equilibrium by ADMM": equilibrium("admm"),
    "direct": DirectInversion(A, trainer=BRIEF),
}
every = pytest.mark.parametrize("name", METHODS)
iterated = pytest.mark.parametrize("name", ["gradient descent", "equilibrium", "post-processing"])


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {name: clone(method).fit(IMAGES, DATA) for name, method in METHODS.items()}


def weights(method: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.module_.parameters()])


def left_over(method: Any, operator: Any, data: np.ndarray) -> float:
    """``||y - B f(y; theta, B)||^2``, the mean over images."""
    moved = copy.copy(method).set_params(operator=operator)
    return float(((measured(moved.predict(data), operator) - data) ** 2).sum((1, 2)).mean())


def unit_of(method: Any, operator: Any) -> float:
    """The unit of data of images with a standard deviation of 1, under an operator of norm 1."""
    unit: float = as_torch(operator).norm() * method.spread_
    return unit


class ExactNorm(GaussianBlur):
    """A family whose norm is that of a dense matrix, since a finite difference sees an inexact one."""

    def at(self, parameters: dict[str, torch.Tensor]) -> Any:
        member: Any = super().at(parameters)
        pixels = torch.eye(SIZE**2, dtype=torch.float64).reshape(-1, SIZE, SIZE)
        if member.requires_grad:
            member.norm = lambda: torch.linalg.matrix_norm(member(pixels).flatten(1), 2)
        return member


def objective(method: Any, operator: Any, data: np.ndarray, noise_std: float | None) -> Objective:
    """Of the weights where the operator is known, else of its parameters and the weights."""
    method, y = copy.copy(method), torch.from_numpy(data)
    method.module_ = copy.deepcopy(method.module_).to(y.dtype)
    unknown = {k: v.clone().requires_grad_() for k, v in getattr(operator, "parameters", {}).items()}
    predict = partial(prediction, operator.at(unknown) if unknown else as_torch(operator), method)
    generator = torch.Generator().manual_seed(0)
    if noise_std is None:
        risk = misfit(predict, y, UNIT)
    else:
        risk = stein_risk(predict, y, SIZE**2, noise_std, UNIT, generator)
    return Objective([risk], len(y), [*unknown.values(), *method.module_.parameters()], mu=0.1)


# ------------------------------------------------------------------------------------------ the objective
@pytest.mark.parametrize("level", [None, 0.0, 1.0, 100.0])
def test_value_and_gradient_are_those_of_the_formula(level: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    risks = [lambda i=i: (a * x[i] + b - y[i]).square().sum(1) for i in (slice(0, 3), slice(3, 5))]
    J = Objective(risks, 5, [a, b], mu=0.3, level=level)
    points = [J.start + t for t in (0.5, -0.25, 0.5)]
    values = [float(J(v)) for v in points]
    for v, told in zip(points, values, strict=True):
        leaf = v.clone().requires_grad_()
        risk = (leaf[0, :2] * x + leaf[0, 2:] - y).square().sum(1).mean()
        excess = risk if level is None else (risk - level).clamp_min(0)
        expected = excess + 0.3 * (leaf - 1).square().sum()
        value, gradient = J.value_and_grad(v)
        assert float(value) == pytest.approx(float(expected.detach())) == told
        assert_allclose(gradient, torch.autograd.grad(expected, leaf)[0], atol=1e-12)
        assert_allclose(torch.cat([a, b]).detach(), v[0])


@pytest.mark.parametrize(
    ("name", "explained"), [("gradient descent", 0.0), *((name, 0.1) for name in METHODS)]
)
def test_the_objective_of_the_last_step_is_the_formula(name: str, explained: float, fitted: Any) -> None:
    """With a noise that explains nothing, or a tenth of what is left over."""
    method, operator = fitted[name], A if name == "direct" else B
    level = explained * left_over(method, operator, ELSEWHERE)
    settings: dict[str, Any] = {"mu": 0.1, "noise": level**0.5 / SIZE or None, "max_steps": 2}
    model = ModelAdaptation(operator, estimator=method, **settings).fit(Y_meas=ELSEWHERE)
    expected = max(left_over(model.estimator_, operator, ELSEWHERE) - level, 0)
    expected /= unit_of(method, operator) ** 2
    expected += 0.1 * float((weights(model.estimator_) - weights(method)).square().sum())
    assert model.history_[-1]["objective"] == pytest.approx(expected, rel=2e-4, abs=1e-6)


@every
@pytest.mark.parametrize(("known", "noise_std"), [(True, None), (False, 0.05)], ids=["known", "parametric"])
def test_derivatives_are_those_of_finite_differences(
    name: str, known: bool, noise_std: float | None, fitted: Any, monkeypatch: Any
) -> None:
    for constant, value in {
        "_learned._INVERSE_TOL": 1e-11,
        "equilibrium.equation._BACKWARD_TOL": 1e-9,
        "equilibrium.maps._CG_TOL": 1e-14,
        "equilibrium.maps._CG_STEPS": 200,
    }.items():
        monkeypatch.setattr(f"skinverse.estimators.{constant}", value)
    method = copy.copy(fitted[name])
    if name.startswith("equilibrium"):
        method.set_params(tol=1e-11, max_steps=1000)
    operator = B if known else ExactNorm((SIZE, SIZE), NEW, radius=6)
    J = objective(method, operator, ELSEWHERE[:3].astype(np.float64), noise_std)
    gradient = J.value_and_grad(J.start)[1]
    # Along the operator's parameter or the gradient; thresholds have kinks.
    d = gradient / gradient.norm() if known else torch.zeros_like(gradient)
    d[:, 0] += not known
    h = 1e-6 if known else 1e-4
    ahead, behind = (float(J.value_and_grad(J.start + s * h * d)[0]) for s in (1, -1))
    slope = float((gradient * d).sum())
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=5e-3, abs=1e-3 * float(gradient.norm()))


def test_the_risk_is_estimated_without_bias(fitted: Any) -> None:
    method, noise_std = fitted["gradient descent"], 0.05
    images = make_ellipses(300, SIZE, random_state=5)
    data = measured(images, B, noise_std)
    J = objective(method, B, data, noise_std)
    moved = copy.copy(method).set_params(operator=B)
    risk = ((measured(moved.predict(data), B) - measured(images, B)) ** 2).sum((1, 2)).mean()
    assert UNIT**2 * float(J(J.start)) == pytest.approx(risk, rel=0.1)
    assert left_over(method, B, data) - SIZE**2 * noise_std**2 < 0.5 * risk


def test_what_the_noise_explains_is_not_fitted(fitted: Any) -> None:
    method = fitted["post-processing"]
    loud = ModelAdaptation(B, estimator=method, noise=10.0).fit(Y_meas=ELSEWHERE)
    assert_array_equal(weights(loud.estimator_), weights(method))
    noise_std = 0.85 * np.sqrt(left_over(method, B, ELSEWHERE)) / SIZE
    settings: dict[str, Any] = {"estimator": method, "mu": 1e-8, "max_steps": 60}
    quiet = ModelAdaptation(B, noise=noise_std, **settings).fit(Y_meas=ELSEWHERE)
    deaf = ModelAdaptation(B, **settings).fit(Y_meas=ELSEWHERE)
    level = SIZE**2 * noise_std**2
    assert left_over(deaf.estimator_, B, ELSEWHERE) < 0.9 * level
    assert 0.95 * level < left_over(quiet.estimator_, B, ELSEWHERE) < 1.05 * level


# ------------------------------------------------------------------------------------------ what it does
@every
def test_the_given_estimator_is_left_alone(name: str, fitted: Any) -> None:
    before, images = weights(fitted[name]), fitted[name].predict(DATA[:2])
    operator = A if name == "direct" else B
    adapted = ModelAdaptation(operator, estimator=fitted[name], max_steps=3).fit(Y_meas=ELSEWHERE)
    assert not torch.equal(weights(adapted.estimator_), before)
    assert_array_equal(weights(fitted[name]), before)
    assert_array_equal(fitted[name].predict(DATA[:2]), images)
    assert fitted[name].operator is A


@iterated
def test_adapting_lowers_the_objective_step_by_step(name: str, fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted[name], mu=1e-3, max_steps=10).fit(Y_meas=ELSEWHERE)
    told = [entry["objective"] for entry in model.history_]
    assert [entry["step"] for entry in model.history_] == list(range(1, len(told) + 1))
    assert len(told) >= 3
    assert np.all(np.diff(told) <= 0)
    assert told[-1] < 0.999 * left_over(fitted[name], B, ELSEWHERE) / unit_of(fitted[name], B) ** 2


def test_an_infinite_weight_keeps_what_was_learned(fitted: Any) -> None:
    method = fitted["gradient descent"]
    model = ModelAdaptation(GaussianBlur((SIZE, SIZE), OLD), estimator=method, mu=np.inf)
    model.fit(Y_meas=ELSEWHERE)
    assert_array_equal(weights(model.estimator_), weights(method))
    assert {entry["phase"] for entry in model.history_} == {"operator"}
    assert model.operator_.parameters["sigma"] != OLD
    assert model.operator.parameters["sigma"] == OLD


@pytest.mark.parametrize("wrong", [0.15, -0.3])
def test_the_offset_of_the_detector_is_found_from_zero(wrong: float) -> None:
    """Where the search begins no offset is favoured."""
    images = make_ellipses(24, 24, random_state=0)
    views = parallel_beam((24, 24), np.arange(20) * np.pi / 20, 35)
    trained = PostProcessor(views, patch_size=None, network="dncnn", trainer=BRIEF)
    trained.fit(images, measured(images, views))
    # An image of its own: of many random ones none tells how it stood.
    data = measured(images[:4], DetectorOffset(views, 2 * wrong), 0.05)
    model = ModelAdaptation(DetectorOffset(views), estimator=trained, mu=np.inf, noise=0.05)
    model.fit(Y_meas=data)
    assert float(model.operator_.parameters["shift"]) == pytest.approx(2 * wrong, abs=0.1)


def test_the_offset_of_a_scan_is_found_where_opposite_views_see_it() -> None:
    images, turn = make_ellipses(24, 32, random_state=0), np.arange(24) * np.pi / 12
    centred = parallel_beam((32, 32), turn, 51)
    trained = PostProcessor(centred, patch_size=None, network="dncnn", trainer=BRIEF)
    trained.fit(images, measured(images, centred))
    data = measured(images[:2], centred.with_parameters({"offset": -1.4}), 0.05)
    model = ModelAdaptation(centred, unknown=("offset",), estimator=trained, mu=np.inf, noise=0.05)
    found = model.fit(Y_meas=data).operator_
    assert found.offset == pytest.approx(-1.4, abs=0.1)
    assert found.offset == pytest.approx(find_rotation_axis(data, turn), abs=0.1)
    assert_array_equal(found.angles, turn)


def test_a_scan_is_known_unless_its_parameters_are_named() -> None:
    scan = parallel_beam((12, 12), np.arange(6) * np.pi / 6, 17)
    trained = PostProcessor(scan, patch_size=None, network="dncnn", trainer=BRIEF)
    trained.fit(IMAGES, measured(IMAGES, scan))
    data, model = measured(IMAGES[:2], scan), ModelAdaptation(estimator=trained, max_steps=1)
    for known in (scan, 2.0 * scan):
        model.set_params(operator=known).fit(Y_meas=data)
        assert {entry["phase"] for entry in model.history_} == {"weights"}
    for operator, names in ((scan, "offset, angles"), (2.0 * scan, "none")):
        with pytest.raises(ValueError, match=f"unknown: expected parameters of the operator, {names}, got"):
            model.set_params(operator=operator, unknown=["shift"]).fit(Y_meas=data)


def test_a_blur_may_be_taken_for_known(fitted: Any) -> None:
    family = GaussianBlur((SIZE, SIZE), NEW)
    method = fitted["gradient descent"]
    model = ModelAdaptation(family, unknown=(), estimator=method, max_steps=1).fit(Y_meas=ELSEWHERE)
    assert model.operator_ is family


def test_a_larger_weight_keeps_closer(fitted: Any) -> None:
    method, moved = fitted["gradient descent"], []
    for mu in (1e-2, 10.0, 1e4):
        model = ModelAdaptation(B, estimator=method, mu=mu, max_steps=30).fit(Y_meas=ELSEWHERE)
        moved.append(float((weights(model.estimator_) - weights(method)).norm()))
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


def test_a_shift_of_the_detector_is_found() -> None:
    images, angles = make_ellipses(24, 24, random_state=0), np.arange(12) * np.pi / 12
    tomograph = parallel_beam((24, 24), angles, 35)
    method = LearnedGradientDescent(
        tomograph, n_iterations=3, n_features=8, n_states=2, trainer=Trainer(max_epochs=20, lr=3e-3)
    ).fit(images, measured(images, tomograph))
    elsewhere = measured(images, DetectorOffset(tomograph, 0.8), 0.01)
    model = ModelAdaptation(DetectorOffset(tomograph), estimator=method, mu=np.inf, noise=0.01)
    model.fit(Y_meas=elsewhere)
    # Not exactly: a shift by half a pixel smooths, and the projections of another image may do so too.
    assert float(model.operator_.parameters["shift"]) == pytest.approx(0.8, abs=0.2)
    assert model.score(images, elsewhere) > method.score(images, elsewhere) + 1


def test_each_image_may_be_adapted_to_alone(fitted: Any) -> None:
    settings: dict[str, Any] = {"mu": 1e-3, "max_steps": 5, "per_image": True}
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], **settings).fit(Y_meas=ELSEWHERE)
    before = weights(model.estimator_)
    together = model.predict(ELSEWHERE[:3])
    assert_allclose(model.predict(ELSEWHERE[1:2]), together[1:2], atol=1e-6)
    assert_array_equal(weights(model.estimator_), before)
    shared = model.set_params(per_image=False).predict(ELSEWHERE[:3])
    left = [((measured(x, B) - ELSEWHERE[:3]) ** 2).sum() for x in (together, shared)]
    assert left[0] < left[1]


def test_the_operator_of_the_estimator_is_the_default(fitted: Any) -> None:
    model = ModelAdaptation(estimator=fitted["gradient descent"], max_steps=2).fit(Y_meas=DATA)
    assert model.operator_ is A


# ------------------------------------------------------------------------------------------ the contract
def test_clones_share_the_trained_estimator_and_a_search_works(fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], max_steps=2)
    twin = clone(model).set_params(estimator__bounds=(0, 1))
    assert twin.estimator.module_ is model.estimator.module_
    assert twin.get_params()["estimator__bounds"] == (0, 1)
    assert model.get_params()["estimator__bounds"] is None
    search = GridSearchCV(model, {"mu": [1e-3, 10.0]}, cv=2, error_score="raise").fit(IMAGES, ELSEWHERE)
    assert search.predict(ELSEWHERE).shape == IMAGES.shape


def test_a_fit_that_fails_changes_nothing(fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], max_steps=2).fit(Y_meas=ELSEWHERE)
    before = model.predict(ELSEWHERE[:2])
    with pytest.raises(ValueError, match="NaN"):
        model.fit(Y_meas=np.nan * ELSEWHERE)
    composed = 2.0 * GaussianBlur((SIZE, SIZE), OLD)
    with pytest.raises(ValueError, match="would not be searched"):
        model.set_params(operator=composed).fit(Y_meas=ELSEWHERE)
    assert_array_equal(model.set_params(operator=B).predict(ELSEWHERE[:2]), before)


@pytest.mark.parametrize("operator", [B, GaussianBlur((SIZE, SIZE), OLD)], ids=["known", "parametric"])
def test_storing_keeps_what_was_adapted(operator: Any, fitted: Any, tmp_path: Path) -> None:
    model = ModelAdaptation(operator, estimator=fitted["gradient descent"], max_steps=2).fit(Y_meas=ELSEWHERE)
    model.save(tmp_path / "model")
    for twin in (skinverse.load(tmp_path / "model"), pickle.loads(pickle.dumps(model))):
        assert_array_equal(twin.predict(ELSEWHERE), model.predict(ELSEWHERE))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_kept(dtype: str, fitted: Any) -> None:
    for per_image in (False, True):
        model = ModelAdaptation(B, estimator=fitted["gradient descent"], per_image=per_image, max_steps=1)
        model.fit(Y_meas=ELSEWHERE.astype(dtype))
        assert model.predict(ELSEWHERE[:2].astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (Tikhonov(A), TypeError, "estimator: expected a method that learned from images.*got Tikhonov"),
        (ModelAdaptation(B), TypeError, "estimator: expected a method that learned.*got ModelAdaptation"),
        (AdversarialRegularizer(A), TypeError, "AdversarialRegularizer does not reconstruct differentiably"),
        (LearnedGradientDescent(A), NotFittedError, "fitted estimator, got LearnedGradientDescent"),
        (None, ValueError, "adapts a fitted method: expected it as estimator=..., got None"),
    ],
)
def test_what_cannot_be_adapted_is_refused(estimator: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ModelAdaptation(B, estimator=estimator).fit(Y_meas=ELSEWHERE)


def test_without_arguments_only_fit_refuses() -> None:
    with pytest.raises(ValueError, match="expected it as estimator"):
        clone(ModelAdaptation()).fit(Y_meas=ELSEWHERE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": -1.0}, "mu: expected a number >= 0, got -1.0"),
        ({"mu": "auto"}, "mu: expected a number >= 0, got 'auto'"),
        ({"max_steps": 0}, "max_steps: expected a whole number >= 1"),
        ({"noise": -1.0}, "noise: expected a standard deviation > 0"),
        ({"noise": np.inf}, "noise: expected a standard deviation > 0"),
        ({"per_image": "yes"}, "per_image: expected True or False"),
    ],
)
def test_numbers_without_a_meaning_are_refused(changed: dict[str, Any], message: str, fitted: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ModelAdaptation(B, estimator=fitted["gradient descent"], **changed).fit(Y_meas=ELSEWHERE)


def test_measurements_are_needed(fitted: Any) -> None:
    with pytest.raises(ValueError, match="Y_meas"):
        ModelAdaptation(B, estimator=fitted["gradient descent"]).fit(IMAGES)


# ----------------------------------------------------------------------------------------- changes and limits
def test_another_operator_needs_another_fit(fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], max_steps=1).fit(Y_meas=ELSEWHERE)
    with pytest.raises(ValueError, match="fit again"):
        model.set_params(operator=A).predict(DATA)
    assert model.fit(Y_meas=DATA).operator_ is A
    family = GaussianBlur((SIZE, SIZE), OLD)
    once = model.set_params(operator=family, mu=np.inf).fit(Y_meas=ELSEWHERE).operator_.parameters["sigma"]
    assert model.fit(Y_meas=ELSEWHERE).operator_.parameters["sigma"] == once


@pytest.mark.filterwarnings("default:ModelAdaptation:sklearn.exceptions.ConvergenceWarning")
def test_a_search_that_did_not_end_says_so(fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], max_steps=1)
    with pytest.warns(ConvergenceWarning, match="weights did not converge in 1 steps") as told:
        model.fit(Y_meas=ELSEWHERE)
    assert told[0].filename == __file__  # the line of the user
    with pytest.warns(ConvergenceWarning, match="2 of 2 images did not converge"):
        _, info = model.set_params(per_image=True).predict(ELSEWHERE[:2], return_info=True)
    assert not info.converged.any()


def test_an_initial_that_hides_the_operator_needs_it_known() -> None:
    method = PostProcessor(A, initial=Tikhonov(lam=0.01), network="dncnn", patch_size=None, trainer=BRIEF)
    method.fit(IMAGES, DATA)
    ModelAdaptation(B, estimator=method, max_steps=1).fit(Y_meas=ELSEWHERE)
    with pytest.raises(TypeError, match="give a known operator"):
        ModelAdaptation(GaussianBlur((SIZE, SIZE), OLD), estimator=method).fit(Y_meas=ELSEWHERE)


def test_without_any_operator_there_is_nothing_to_explain() -> None:
    method = DirectInversion(trainer=BRIEF).fit(IMAGES, DATA[:, :, :7])
    with pytest.raises(ValueError, match="expected the operator of the data, got None"):
        ModelAdaptation(estimator=method).fit(Y_meas=DATA[:, :, :7])


def test_a_seed_is_drawn_once_and_only_where_it_is_needed(fitted: Any) -> None:
    state = np.random.RandomState(0)
    settings: dict[str, Any] = {"random_state": state, "max_steps": 1, "per_image": True}
    model = ModelAdaptation(B, estimator=fitted["gradient descent"], **settings)
    before = state.get_state()[2]
    model.fit(Y_meas=ELSEWHERE).predict(ELSEWHERE[:2])
    assert state.get_state()[2] == before


def test_what_is_told_of_an_adapted_equilibrium_is_its_own(fitted: Any) -> None:
    model = ModelAdaptation(B, estimator=fitted["equilibrium"], mu=0.0, max_steps=5).fit(Y_meas=ELSEWHERE)
    adapted = model.estimator_
    assert adapted.contraction_ == adapted.module_.contraction()
    assert adapted.lam_ == pytest.approx(float(adapted.module_.log_lam.detach().exp()))
    assert fitted["equilibrium"].lam_ == 1.0


def test_a_family_inside_a_composition_is_refused(fitted: Any) -> None:
    composed = 2.0 * GaussianBlur((SIZE, SIZE), OLD)
    with pytest.raises(ValueError, match="its parameters would not be searched"):
        ModelAdaptation(composed, estimator=fitted["gradient descent"]).fit(Y_meas=ELSEWHERE)


def test_what_was_adapted_is_adapted_again(fitted: Any) -> None:
    settings: dict[str, Any] = {"mu": 0.1, "max_steps": 2}
    first = ModelAdaptation(B, estimator=fitted["gradient descent"], **settings).fit(Y_meas=ELSEWHERE)
    second = ModelAdaptation(A, estimator=first.estimator_, **settings).fit(Y_meas=DATA)
    expected = left_over(second.estimator_, A, DATA) / unit_of(first.estimator_, A) ** 2
    expected += 0.1 * float((weights(second.estimator_) - weights(first.estimator_)).square().sum())
    # Single precision ends the inverse that both start from at another step than double does.
    assert second.history_[-1]["objective"] == pytest.approx(expected, rel=1e-3)


class Detached(torch.nn.Module):
    """Keeps what it learned from being differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.weight if self.training else self.weight.detach())


def test_a_network_that_detaches_is_refused_with_the_reason() -> None:
    trained = PostProcessor(A, network=Detached(), patch_size=None, trainer=BRIEF).fit(IMAGES, DATA)
    with pytest.raises(TypeError, match="does not depend differentiably on what was learned"):
        ModelAdaptation(B, estimator=trained).fit(Y_meas=ELSEWHERE)

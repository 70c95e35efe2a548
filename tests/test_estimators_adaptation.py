"""Adaptation: its objective and derivatives, what it leaves alone, what it finds."""

from __future__ import annotations

import copy
from functools import partial
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
from skinverse.estimators import _equilibrium_maps, _learning
from skinverse.estimators._adaptation import Objective, explains
from skinverse.networks import GradientStepCNN
from skinverse.operators import GaussianBlur, Shifted, _parametric, as_torch, gaussian_blur, parallel_beam
from skinverse.operators._map import leading

# Most tests look at a few steps only.
pytestmark = pytest.mark.filterwarnings("ignore:ModelAdaptation:sklearn.exceptions.ConvergenceWarning")

BRIEF = Trainer(max_epochs=6, lr=3e-3, validation_fraction=0.0)
SIZE, OLD, NEW = 12, 0.8, 1.2


def measured(images: np.ndarray, operator: Any, noise_std: float = 0.0) -> np.ndarray:
    exact = as_torch(operator)(torch.from_numpy(images)).numpy()
    noise = noise_std * np.random.default_rng(1).normal(size=exact.shape)
    return (exact + noise).astype(images.dtype)


IMAGES = make_ellipses(20, SIZE, random_state=0)
A, B = gaussian_blur((SIZE, SIZE), OLD), gaussian_blur((SIZE, SIZE), NEW)
DATA, ELSEWHERE = measured(IMAGES, A), measured(IMAGES, B)

METHODS: dict[str, Any] = {
    "gradient descent": LearnedGradientDescent(A, n_iterations=3, n_features=8, n_memory=2, trainer=BRIEF),
    "primal-dual": LearnedPrimalDual(A, n_iterations=2, n_features=8, n_memory=2, trainer=BRIEF),
    "variational": VariationalNetwork(A, n_iterations=2, n_filters=4, kernel_size=3, trainer=BRIEF),
    "lista": LISTA(A, n_iterations=3, kernel_size=3, trainer=BRIEF),
    "post-processing": PostProcessor(A, network="dncnn", patch_size=None, trainer=BRIEF),
    "equilibrium": DeepEquilibriumRecon(
        A,
        iteration="contractive",
        network=GradientStepCNN(n_features=4, n_layers=2),
        lam=1.0,
        trainer=Trainer(max_epochs=2),
        tol=1e-6,
    ),
    "direct": DirectInversion(A, trainer=BRIEF),
}
every = pytest.mark.parametrize("name", METHODS)
iterated = pytest.mark.parametrize("name", ["gradient descent", "equilibrium", "post-processing"])


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    return {name: clone(method).fit(IMAGES, DATA) for name, method in METHODS.items()}


def weights(method: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.module_.parameters()])


def misfit(method: Any, operator: Any, data: np.ndarray) -> float:
    """``||y - B f(y; theta, B)||^2``, the mean over images."""
    moved = copy.copy(method)
    moved.operator = moved.operator_ = operator
    x = moved._reconstruct(as_torch(operator), torch.from_numpy(data)).x.numpy()
    return float(((measured(x, operator) - data) ** 2).sum((1, 2)).mean())


def objective(name: str, method: Any, operator: Any, data: np.ndarray, noise_std: float | None) -> Objective:
    """Of the weights where the operator is known, else of its parameters and the weights."""
    module = copy.deepcopy(method.module_).to(torch.from_numpy(data).dtype)
    unknown = {k: v.clone().requires_grad_() for k, v in getattr(operator, "parameters", {}).items()}
    A = operator.at(unknown) if unknown else as_torch(operator)
    adaptation = ModelAdaptation(method, operator)
    parts = adaptation._parts(A, method, torch.from_numpy(data), noise_std)
    variables = [*unknown.values(), *module.parameters()]
    return Objective(explains(A, method, module), parts, variables, mu=0.1, noise_std=noise_std)


# ------------------------------------------------------------------------------------------ the objective
@every
def test_the_objective_is_the_formula(name: str, fitted: Any) -> None:
    J = objective(name, fitted[name], B, ELSEWHERE, None)
    generator = torch.Generator().manual_seed(0)
    v = J.start + 0.01 * torch.randn(J.start.shape, generator=generator, dtype=J.start.dtype)
    value, _ = J.value_and_grad(v)
    moved = copy.copy(fitted[name])
    moved.module_ = copy.deepcopy(moved.module_)
    torch.nn.utils.vector_to_parameters(v[0].float(), moved.module_.parameters())
    expected = misfit(moved, B, ELSEWHERE) + 0.1 * float((v - J.start).square().sum())
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [*METHODS, "equilibrium by ADMM"])
@pytest.mark.parametrize("noise_std", [None, 0.05])
@pytest.mark.parametrize("known", [True, False], ids=["known", "parametric"])
def test_derivatives_are_those_of_finite_differences(
    name: str, known: bool, noise_std: float | None, fitted: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_parametric, "leading", partial(leading, max_steps=10_000, tol=1e-14))
    monkeypatch.setattr(_learning, "_INVERSE_TOL", 1e-11)
    monkeypatch.setattr(_equilibrium_maps, "_BACKWARD_TOL", 1e-9)
    monkeypatch.setattr(fitted["equilibrium"], "tol", 1e-11)
    monkeypatch.setattr(fitted["equilibrium"], "max_steps", 1000)
    operator = B if known else GaussianBlur((SIZE, SIZE), NEW, radius=6)
    method = fitted[name.removesuffix(" by ADMM")]
    if name.endswith("ADMM"):
        monkeypatch.setattr(_equilibrium_maps, "_CG_TOL", 1e-12)
        monkeypatch.setattr(_equilibrium_maps, "_CG_STEPS", 200)
        method = copy.copy(method)
        method.iteration = "admm"
        monkeypatch.setattr(method, "_rule", {}, raising=False)
    J = objective(name, method, operator, ELSEWHERE[:3].astype(np.float64), noise_std)
    gradient = J.value_and_grad(J.start)[1]
    # Along the operator's parameter or the gradient; thresholds have kinks.
    d = torch.zeros_like(gradient) if not known else gradient / gradient.norm()
    d[:, 0] += not known
    h = 1e-6 if known else 1e-4
    ahead, behind = (float(J.value_and_grad(J.start + s * h * d)[0]) for s in (1, -1))
    slope = float((gradient * d).sum())
    assert slope == pytest.approx((ahead - behind) / (2 * h), rel=5e-3, abs=1e-3 * float(gradient.norm()))


def test_the_risk_is_estimated_without_bias(fitted: Any) -> None:
    method, noise_std = fitted["gradient descent"], 0.05
    images = make_ellipses(300, SIZE, random_state=5)
    data = measured(images, B, noise_std)
    J = objective("", method, B, data, noise_std)
    moved = copy.copy(method)
    moved.operator = moved.operator_ = B
    risk = ((measured(moved.predict(data), B) - measured(images, B)) ** 2).sum((1, 2)).mean()
    assert float(J.value_and_grad(J.start)[0]) == pytest.approx(risk, rel=0.1)
    assert misfit(method, B, data) - SIZE**2 * noise_std**2 < 0.5 * risk


def test_what_the_noise_explains_is_not_fitted(fitted: Any) -> None:
    method = fitted["post-processing"]
    loud = ModelAdaptation(method, B, noise_std=10.0).fit(Y_meas=ELSEWHERE)
    assert_array_equal(weights(loud.estimator_), weights(method))
    noise_std = 0.9 * np.sqrt(misfit(method, B, ELSEWHERE)) / SIZE
    settings: dict[str, Any] = {"mu": 1e-8, "max_steps": 60}
    quiet = ModelAdaptation(method, B, noise_std=noise_std, **settings).fit(Y_meas=ELSEWHERE)
    deaf = ModelAdaptation(method, B, **settings).fit(Y_meas=ELSEWHERE)
    level = SIZE**2 * noise_std**2
    assert misfit(deaf.estimator_, B, ELSEWHERE) < 0.9 * level
    assert 0.95 * level < misfit(quiet.estimator_, B, ELSEWHERE) < 1.05 * level


# ------------------------------------------------------------------------------------------ what it does
@every
def test_the_given_estimator_is_left_alone(name: str, fitted: Any) -> None:
    before, images = weights(fitted[name]), fitted[name].predict(DATA[:2])
    operator = A if name == "direct" else B
    adapted = ModelAdaptation(fitted[name], operator, max_steps=3).fit(Y_meas=ELSEWHERE)
    assert not torch.equal(weights(adapted.estimator_), before)
    assert_array_equal(weights(fitted[name]), before)
    assert_array_equal(fitted[name].predict(DATA[:2]), images)
    assert fitted[name].operator is A


@iterated
def test_adapting_lowers_the_objective_step_by_step(name: str, fitted: Any) -> None:
    model = ModelAdaptation(fitted[name], B, mu=1e-3, max_steps=10).fit(Y_meas=ELSEWHERE)
    told = [entry["objective"] for entry in model.history_]
    assert len(told) >= 3
    assert np.all(np.diff(told) <= 0)
    assert told[-1] < 0.999 * misfit(fitted[name], B, ELSEWHERE)


def test_an_infinite_weight_keeps_what_was_learned(fitted: Any) -> None:
    method = fitted["gradient descent"]
    model = ModelAdaptation(method, GaussianBlur((SIZE, SIZE), OLD), mu=np.inf).fit(Y_meas=ELSEWHERE)
    assert_array_equal(weights(model.estimator_), weights(method))
    assert model.operator_.parameters["sigma"] != OLD
    assert model.operator.parameters["sigma"] == OLD


@pytest.mark.parametrize("wrong", [0.15, -0.3])
def test_the_offset_of_the_angles_is_found_from_zero(wrong: float) -> None:
    """Where the search begins no offset is favoured."""
    images = make_ellipses(24, 24, random_state=0)
    views = parallel_beam((24, 24), np.arange(20) * np.pi / 20, 35)
    trained = PostProcessor(views, patch_size=None, network="dncnn", trainer=BRIEF)
    trained.fit(images, measured(images, views))
    # An image of its own: of many random ones none tells how it stood.
    data = measured(images[:4], Shifted(views, 2 * wrong), 0.05)
    model = ModelAdaptation(trained, Shifted(views), mu=np.inf, noise_std=0.05).fit(Y_meas=data)
    assert float(model.operator_.parameters["shift"]) == pytest.approx(2 * wrong, abs=0.1)


def test_a_larger_weight_keeps_closer(fitted: Any) -> None:
    method = fitted["gradient descent"]
    moved = [
        float((weights(ModelAdaptation(method, B, mu=mu, max_steps=30).fit(Y_meas=ELSEWHERE).estimator_)
               - weights(method)).norm())
        for mu in (1e-3, 1.0, 1e3)
    ]  # fmt: skip
    assert moved[0] > 2 * moved[1] > 4 * moved[2]


def test_a_shift_of_the_detector_is_found() -> None:
    images, angles = make_ellipses(24, 24, random_state=0), np.arange(12) * np.pi / 12
    tomograph = parallel_beam((24, 24), angles, 35)
    method = LearnedGradientDescent(
        tomograph, n_iterations=3, n_features=8, n_memory=2, trainer=Trainer(max_epochs=20, lr=3e-3)
    ).fit(images, measured(images, tomograph))
    elsewhere = measured(images, Shifted(tomograph, 0.8), 0.01)
    model = ModelAdaptation(method, Shifted(tomograph), mu=np.inf, noise_std=0.01).fit(Y_meas=elsewhere)
    # Not exactly: a shift by half a pixel smooths, and the projections of another image may do so too.
    assert float(model.operator_.parameters["shift"]) == pytest.approx(0.8, abs=0.2)
    assert model.score(images, elsewhere) > method.score(images, elsewhere) + 1


def test_each_image_may_be_adapted_to_alone(fitted: Any) -> None:
    settings: dict[str, Any] = {"mu": 1e-3, "max_steps": 5, "per_image": True}
    model = ModelAdaptation(fitted["gradient descent"], B, **settings).fit(Y_meas=ELSEWHERE)
    before = weights(model.estimator_)
    together = model.predict(ELSEWHERE[:3])
    assert_allclose(model.predict(ELSEWHERE[1:2]), together[1:2], atol=1e-6)
    assert_array_equal(weights(model.estimator_), before)
    shared = model.set_params(per_image=False).predict(ELSEWHERE[:3])
    left = [((measured(x, B) - ELSEWHERE[:3]) ** 2).sum() for x in (together, shared)]
    assert left[0] < left[1]


def test_the_operator_of_the_estimator_is_the_default(fitted: Any) -> None:
    model = ModelAdaptation(fitted["gradient descent"], max_steps=2).fit(Y_meas=DATA)
    assert model.operator_ is A


# ------------------------------------------------------------------------------------------ the contract
def test_clones_share_the_trained_estimator_and_a_search_works(fitted: Any) -> None:
    model = ModelAdaptation(fitted["gradient descent"], B, max_steps=2)
    twin = clone(model).set_params(estimator__bounds=(0, 1))
    assert twin.estimator.module_ is model.estimator.module_
    assert model.estimator.bounds is None
    search = GridSearchCV(model, {"mu": [1e-3, 10.0]}, cv=2, error_score="raise").fit(IMAGES, ELSEWHERE)
    assert search.predict(ELSEWHERE).shape == IMAGES.shape


@pytest.mark.parametrize("operator", [B, GaussianBlur((SIZE, SIZE), OLD)], ids=["known", "parametric"])
def test_storing_keeps_what_was_adapted(operator: Any, fitted: Any, tmp_path: Any) -> None:
    model = ModelAdaptation(fitted["gradient descent"], operator, max_steps=2).fit(Y_meas=ELSEWHERE)
    model.save(tmp_path / "model")
    assert_array_equal(skinverse.load(tmp_path / "model").predict(ELSEWHERE), model.predict(ELSEWHERE))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_kept(dtype: str, fitted: Any) -> None:
    for per_image in (False, True):
        model = ModelAdaptation(fitted["gradient descent"], B, per_image=per_image, max_steps=1)
        model.fit(Y_meas=ELSEWHERE.astype(dtype))
        assert model.predict(ELSEWHERE[:2].astype(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (Tikhonov(A).fit(), TypeError, "learned from images, got Tikhonov"),
        (AdversarialRegularizer(A), TypeError, "AdversarialRegularizer does not reconstruct differentiably"),
        (LearnedGradientDescent(A), NotFittedError, "fitted estimator, got LearnedGradientDescent"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_what_cannot_be_adapted_is_refused(estimator: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ModelAdaptation(estimator, B).fit(Y_meas=ELSEWHERE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"mu": -1.0}, "mu"), ({"max_steps": 0}, "max_steps"), ({"noise_std": -1.0}, "noise_std")],
)
def test_numbers_without_a_meaning_are_refused(changed: dict[str, Any], message: str, fitted: Any) -> None:
    with pytest.raises(ValueError, match=message):
        ModelAdaptation(fitted["gradient descent"], B, **changed).fit(Y_meas=ELSEWHERE)


def test_measurements_are_needed(fitted: Any) -> None:
    with pytest.raises(ValueError, match="Y_meas"):
        ModelAdaptation(fitted["gradient descent"], B).fit(IMAGES)


# ----------------------------------------------------------------------------------------- changes and limits
def test_another_operator_needs_another_fit(fitted: Any) -> None:
    model = ModelAdaptation(fitted["gradient descent"], B, max_steps=1).fit(Y_meas=ELSEWHERE)
    with pytest.raises(ValueError, match="fit again"):
        model.set_params(operator=A).predict(DATA)
    assert model.fit(Y_meas=DATA).operator_ is A
    family = GaussianBlur((SIZE, SIZE), OLD)
    once = model.set_params(operator=family, mu=np.inf).fit(Y_meas=ELSEWHERE).operator_.parameters["sigma"]
    assert model.fit(Y_meas=ELSEWHERE).operator_.parameters["sigma"] == once


def test_no_noise_is_noise_of_level_zero(fitted: Any) -> None:
    family = GaussianBlur((SIZE, SIZE), OLD)
    found = [
        ModelAdaptation(fitted["gradient descent"], family, mu=np.inf, noise_std=level)
        .fit(Y_meas=ELSEWHERE)
        .operator_.parameters["sigma"]
        for level in (None, 0.0)
    ]
    assert found[0] == found[1]


@pytest.mark.filterwarnings("default:ModelAdaptation:sklearn.exceptions.ConvergenceWarning")
def test_a_search_that_did_not_end_says_so(fitted: Any) -> None:
    model = ModelAdaptation(fitted["gradient descent"], B, max_steps=1)
    with pytest.warns(ConvergenceWarning, match="weights did not converge in 1 steps"):
        model.fit(Y_meas=ELSEWHERE)
    with pytest.warns(ConvergenceWarning, match="2 of 2 images did not converge"):
        _, info = model.set_params(per_image=True).predict(ELSEWHERE[:2], return_info=True)
    assert not info.converged.any()


def test_an_initial_that_hides_the_operator_needs_it_known() -> None:
    method = PostProcessor(A, initial=Tikhonov(lam=0.01), network="dncnn", patch_size=None, trainer=BRIEF)
    method.fit(IMAGES, DATA)
    ModelAdaptation(method, B, max_steps=1).fit(Y_meas=ELSEWHERE)
    with pytest.raises(TypeError, match="give a known operator"):
        ModelAdaptation(method, GaussianBlur((SIZE, SIZE), OLD)).fit(Y_meas=ELSEWHERE)


def test_without_any_operator_there_is_nothing_to_explain() -> None:
    method = DirectInversion(trainer=BRIEF).fit(IMAGES, DATA[:, :, :7])
    with pytest.raises(ValueError, match="expected the operator of the data, got None"):
        ModelAdaptation(method).fit(Y_meas=DATA[:, :, :7])


def test_a_seed_is_drawn_once_and_only_where_it_is_needed(fitted: Any) -> None:
    state = np.random.RandomState(0)
    model = ModelAdaptation(fitted["gradient descent"], B, random_state=state, max_steps=1, per_image=True)
    before = state.get_state()[2]
    model.fit(Y_meas=ELSEWHERE).predict(ELSEWHERE[:2])
    assert state.get_state()[2] == before


def test_what_is_told_of_an_adapted_equilibrium_is_its_own(fitted: Any) -> None:
    adapted = ModelAdaptation(fitted["equilibrium"], B, mu=0.0, max_steps=5).fit(Y_meas=ELSEWHERE).estimator_
    assert adapted.contraction_ == adapted.module_.contraction()
    assert adapted.lam_ == pytest.approx(float(adapted.module_.log_lam.detach().exp()))
    assert fitted["equilibrium"].lam_ == 1.0


def test_a_family_inside_a_composition_is_refused(fitted: Any) -> None:
    composed = 2.0 * GaussianBlur((SIZE, SIZE), OLD)
    with pytest.raises(ValueError, match="its parameters would not be searched"):
        ModelAdaptation(fitted["gradient descent"], composed).fit(Y_meas=ELSEWHERE)


def test_an_adapted_method_is_not_adapted_again(fitted: Any) -> None:
    adapted = ModelAdaptation(fitted["gradient descent"], B, max_steps=1).fit(Y_meas=ELSEWHERE)
    with pytest.raises(TypeError, match="adapt its estimator_"):
        ModelAdaptation(adapted, A).fit(Y_meas=DATA)


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
        ModelAdaptation(trained, B).fit(Y_meas=ELSEWHERE)


def test_a_noise_without_bound_is_refused(fitted: Any) -> None:
    with pytest.raises(ValueError, match="noise_std"):
        ModelAdaptation(fitted["gradient descent"], B, noise_std=np.inf).fit(Y_meas=ELSEWHERE)
    with pytest.raises(ValueError, match="mu: expected a number"):
        ModelAdaptation(fitted["gradient descent"], B, mu="auto").fit(Y_meas=ELSEWHERE)

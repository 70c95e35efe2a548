"""Learning from images each of which was measured in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from skorch.callbacks import Callback

import skinverse as sv
from skinverse import Measurements, Trainer
from skinverse.noise import Gaussian
from skinverse.operators import fourier_sampling, gaussian_blur

SIZE = 12
RNG = np.random.default_rng(0)
# Two images of one mean and standard deviation: methods that learn from either are normalised alike.
PAIR = np.stack([x := np.kron(RNG.random((4, 4)), np.ones((3, 3))), x.T[::-1]])
MANY = np.kron(RNG.random((8, 4, 4)), np.ones((3, 3)))
WIDTHS = [0.6, 1.4]
BLURS = [gaussian_blur((SIZE, SIZE), width) for width in WIDTHS]
# One step of plain gradient descent, with all images in it.
ONE_STEP = Trainer(
    optimizer="sgd",
    lr=0.5,
    final_lr=0.5,
    max_epochs=1,
    batch_size=8,
    validation_fraction=0.0,
    max_grad_norm=np.inf,
)
BRIEF = Trainer(max_epochs=2)
FEW = Trainer(max_epochs=1, validation_fraction=0.25)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Kill(Callback):  # type: ignore[misc]
    """Ends the process, as it were, in the third epoch."""

    def on_epoch_begin(self, net: Any, **_: Any) -> None:
        if len(net.history) == 3:
            raise KeyboardInterrupt


def measured(operators: Any, images: Any, noise: float = 0.01) -> Any:
    exact = np.stack([A @ x for A, x in zip(operators, images, strict=True)])
    return exact + noise * np.random.default_rng(1).standard_normal(exact.shape)


def weights(method: Any) -> dict[str, np.ndarray]:
    return {k: v.numpy().astype(float) for k, v in method.module_.state_dict().items()}


def assert_mean_of_steps(together: Any, alone: list[Any]) -> None:
    """A step on two images goes to the mean of where steps on each of them go, which is elsewhere."""
    steps = [weights(fitted) for fitted in alone]
    # Reconstructions that a solver has found end at other iterates after another rounding, which depends on
    # the processor.
    tolerance = 0.1 if hasattr(together, "energy") else 2e-3
    for name, found in weights(together).items():
        if name != "log_weight":  # in the unit of one of the problems
            expected = np.mean([step[name] for step in steps], 0)
            size = np.abs(steps[0][name] - steps[1][name]).max()
            np.testing.assert_allclose(found, expected, atol=tolerance * size + 1e-5, err_msg=name)
    assert max(np.abs(steps[0][name] - steps[1][name]).max() for name in steps[0]) > 1e-4


GRADIENT = sv.LearnedGradientDescent(n_iterations=2, n_features=4, trainer=ONE_STEP)
VARIATIONAL = sv.VariationalNetwork(n_iterations=2, n_filters=3, kernel_size=3, trainer=ONE_STEP)
EQUILIBRIUM = sv.DeepEquilibriumRecon(
    pretraining=False, iteration="contractive", trainer=ONE_STEP, max_steps=500, tol=1e-6
)
BILEVEL = sv.BilevelRegularizer(
    pretraining=False, lam=0.05, alpha=0.1, beta=1.0, trainer=ONE_STEP, max_steps=500, tol=1e-6
)
ONE_STEPPED = {
    "gradient": GRADIENT,
    "primal-dual": sv.LearnedPrimalDual(n_iterations=2, n_features=4, n_states=2, trainer=ONE_STEP),
    "variational": VARIATIONAL,
    "lista": sv.LISTA(n_iterations=2, kernel_size=3, trainer=ONE_STEP),
    "post-processor": sv.PostProcessor(
        initial=sv.Tikhonov(lam=0.01), network="dncnn", patch_size=None, trainer=ONE_STEP
    ),
    "equilibrium": EQUILIBRIUM,
    "bilevel": BILEVEL,
}


def one_step(method: Any, operators: list[Any], data: Any, noises: tuple[Any, ...] = ()) -> list[Any]:
    """The method after a step on each image by itself."""
    found = []
    for k, operator in enumerate(operators):
        alone = clone(method).set_params(operator=operator)
        alone = alone.set_params(noise=noises[k]) if noises else alone
        found.append(alone.fit(PAIR[k : k + 1], data[k : k + 1]))
    return found


@pytest.mark.parametrize("name", ONE_STEPPED)
def test_a_step_is_the_mean_over_images_each_under_its_operator(name: str) -> None:
    method, Y = ONE_STEPPED[name], measured(BLURS, PAIR)
    together = clone(method).set_params(operator=gaussian_blur((SIZE, SIZE), 1.0))
    together.fit(PAIR, Measurements(Y, sigma=WIDTHS))
    assert_mean_of_steps(together, one_step(method, BLURS, Y))


@pytest.mark.parametrize("method", [EQUILIBRIUM, BILEVEL], ids=lambda m: type(m).__name__)
def test_and_each_under_its_noise(method: Any) -> None:
    A = BLURS[0]
    weights = np.random.default_rng(3).random((2, SIZE, SIZE)) + 0.05
    Y = measured([A, A], PAIR)
    together = clone(method).set_params(operator=A).fit(PAIR, Measurements(Y, weights=weights))
    noises = tuple(Gaussian(weights=w) for w in weights)
    assert_mean_of_steps(together, one_step(method, [A, A], Y, noises))


@pytest.mark.parametrize("method", [GRADIENT, BILEVEL], ids=lambda m: type(m).__name__)
def test_one_weight_of_the_energy_for_operators_of_different_size(method: Any) -> None:
    blur, factors = gaussian_blur((SIZE, SIZE), 1.0), [1.0, 3.0]
    operators = [factor * blur for factor in factors]
    Y = measured(operators, PAIR)
    together = clone(method).set_params(operator=2.0 * blur).fit(PAIR, Measurements(Y, alpha=factors))
    assert_mean_of_steps(together, one_step(method, operators, Y))


@pytest.mark.parametrize(
    "method", [GRADIENT, VARIATIONAL, EQUILIBRIUM, BILEVEL], ids=lambda m: type(m).__name__
)
def test_masks_that_differ_are_parts_of_the_operator(method: Any) -> None:
    A, hidden = BLURS[1], RNG.random((2, SIZE, SIZE)) < [[[0.2]], [[0.5]]]
    Y = measured([A, A], PAIR)
    kept = [np.flatnonzero(~h) for h in hidden]
    alone = [
        clone(method)
        .set_params(operator=pylops.Restriction(SIZE**2, k) @ A)
        .fit(PAIR[i : i + 1], Y[i].ravel()[k][None])
        for i, k in enumerate(kept)
    ]
    spoiled = np.ma.array(np.where(hidden, np.nan, Y), mask=hidden)
    together = clone(method).set_params(operator=A).fit(PAIR, spoiled)
    assert_mean_of_steps(together, alone)
    assert np.isfinite(together.score(PAIR, spoiled))


def test_masks_are_those_of_the_first_method_too() -> None:
    A, hidden = BLURS[1], RNG.random((2, SIZE, SIZE)) < 0.3
    first = sv.Tikhonov(lam=0.01, noise=Gaussian(std=1 + RNG.random((SIZE, SIZE))))
    masked = np.ma.array(measured([A, A], PAIR), mask=hidden)
    method = sv.PostProcessor(A, initial=first, network="dncnn", trainer=BRIEF).fit(PAIR, masked)
    assert np.isfinite(method.score(PAIR, masked))


def test_complete_data_of_coils_beside_masked_ones() -> None:
    maps = np.stack([np.linspace(0.2, 1, SIZE) * np.ones((SIZE, SIZE)), np.ones((SIZE, SIZE))])
    A = fourier_sampling(np.ones((SIZE, SIZE), bool), maps)
    Y = measured([A] * 8, MANY.astype(complex))
    hidden = np.zeros(Y.shape, bool)
    hidden[1::2, :, ::3] = True
    method = clone(VARIATIONAL).set_params(operator=A, trainer=BRIEF)
    method.fit(MANY, np.ma.array(Y, mask=hidden))
    assert np.isfinite(method.score(MANY, np.ma.array(Y, mask=hidden)))


# ---------------------------------------------------------------------- all of a method
SLOWLY: dict[str, Any] = {
    "adversarial": sv.AdversarialRegularizer(energy="convex_ridge", trainer=FEW, max_steps=20),
    "adversarial by rule": sv.AdversarialRegularizer(
        energy="convex_ridge", trainer=FEW, lam="auto", n_recursions=1, max_steps=20
    ),
    "adversarial, no pairs": sv.AdversarialRegularizer(energy="convex_ridge", trainer=FEW, max_steps=20),
    "bilevel": sv.BilevelRegularizer(
        alpha=0.1, beta=1.0, trainer=FEW, pretrainer=FEW, max_steps=20, solver="proximal"
    ),
    "risk": sv.BilevelRegularizer(
        alpha=0.1, beta=1.0, trainer=FEW, loss="sure", noise=0.2, pretraining=False, max_steps=20
    ),
    "equilibrium": sv.DeepEquilibriumRecon(trainer=FEW, pretrainer=FEW, max_steps=20),
    "initial": sv.PostProcessor(
        initial=sv.LearnedGradientDescent(n_iterations=1, n_features=2, trainer=FEW), trainer=FEW
    ),
    "lista": sv.LISTA(n_iterations=1, kernel_size=3, trainer=FEW),
}


@pytest.mark.parametrize("name", SLOWLY)
def test_nearly_equal_operators_give_nearly_what_one_gives(name: str) -> None:
    A = gaussian_blur((SIZE, SIZE), 1.0)
    Y, nearly = measured([A] * 4, MANY[:4], 0.2), 1 + 1e-9 * (np.arange(4) % 3)
    images = MANY[4:] if name.endswith("no pairs") else MANY[:4]
    one = clone(SLOWLY[name]).set_params(operator=A).fit(images, Y)
    several = clone(one).fit(images, Measurements(Y, sigma=nearly))
    found, expected = ([epoch["train_loss"] for epoch in m.history_] for m in (several, one))
    assert found == pytest.approx(expected, rel=0.1, abs=2e-3)
    assert several.predict(Y) == pytest.approx(one.predict(Y), abs=0.02)


@pytest.mark.parametrize("name", ["lista", "initial"])
def test_equal_parameters_are_one_operator(name: str) -> None:
    A = gaussian_blur((SIZE, SIZE), 1.0)
    Y = measured([A] * 8, MANY)
    one = clone(SLOWLY[name]).set_params(operator=A).fit(MANY, Y)
    other = clone(one).set_params(operator=gaussian_blur((SIZE, SIZE), 2.0))
    other.fit(MANY, Measurements(Y, sigma=[1.0] * 8))
    for key, expected in weights(one).items():
        np.testing.assert_array_equal(weights(other)[key], expected, err_msg=key)


def test_the_rule_for_the_weight_of_an_energy_takes_all_images() -> None:
    blur, factors = gaussian_blur((SIZE, SIZE), 1.0), [1.0, 4.0]
    operators = [factor * blur for factor in factors]
    Y = measured(operators, PAIR)
    method = sv.AdversarialRegularizer(
        lam="auto", noise=0.01, trainer=BRIEF, max_steps=5, energy="convex_ridge"
    )
    alone = [a.lam_ for a in one_step(method, operators, Y)]
    found = clone(method).set_params(operator=2.0 * blur).fit(PAIR, Measurements(Y, alpha=factors)).lam_
    assert alone[1] > 3 * alone[0]
    # Each is estimated from noise that is drawn.
    assert found == pytest.approx(np.sqrt(np.mean(np.square(alone))), rel=0.15)


def test_images_alone_need_no_operator() -> None:
    Y = measured(BLURS, PAIR)
    method = sv.GenerativeCovariancePrior(BLURS[0], n_latent=2, noise=0.01, trainer=BRIEF)
    expected = weights(clone(method).fit(PAIR))
    found = weights(method.fit(PAIR, Measurements(Y, sigma=WIDTHS)))
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_what_a_method_starts_from_learns_from_the_same() -> None:
    A, widths = gaussian_blur((SIZE, SIZE), 1.0), np.linspace(0.5, 1.5, 8)
    Y = Measurements(measured([gaussian_blur((SIZE, SIZE), w) for w in widths], MANY), sigma=widths)
    first = clone(GRADIENT).set_params(trainer=FEW)
    whole = sv.PostProcessor(A, initial=first, trainer=FEW).fit(MANY, Y)
    expected = weights(clone(first).set_params(operator=A).fit(MANY, Y))
    found = weights(whole.initial_)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


# ---------------------------------------------------------------------- quality, and what comes of it
def test_masks_of_their_own_train_a_network_for_other_masks() -> None:
    rng = np.random.default_rng(2)
    images = np.kron(rng.random((24, 4, 4)), np.ones((3, 3)))
    masks = rng.random((24, SIZE, SIZE)) < 0.6
    F = fourier_sampling(masks[0])
    Y = Measurements(measured(map(fourier_sampling, masks), images.astype(complex)), mask=masks)
    method = sv.VariationalNetwork(
        F, n_iterations=3, n_filters=8, trainer=Trainer(max_epochs=25, lr=1e-2, final_lr=1e-3)
    )
    method.fit(images[:16], Y[:16])
    baseline = sv.ZeroFilled(F).fit().score(images[16:].astype(complex), Y[16:])
    assert method.score(images[16:], Y[16:]) > baseline + 3


def test_a_training_on_all_widths_serves_all_of_them() -> None:
    rng = np.random.default_rng(2)
    images, widths = np.kron(rng.random((24, 4, 4)), np.ones((3, 3))), np.tile([0.5, 1.0, 1.5], 8)
    Y = Measurements(measured([gaussian_blur((SIZE, SIZE), w) for w in widths], images), sigma=widths)
    A = gaussian_blur((SIZE, SIZE), 1.0)
    method = clone(GRADIENT).set_params(
        operator=A, n_features=8, trainer=Trainer(max_epochs=40, lr=5e-3, final_lr=5e-4)
    )
    method.fit(images[:18], Y[:18])
    assert method.score(images[18:], Y[18:]) > sv.Tikhonov(A).fit().score(images[18:], Y[18:]) + 1


def test_searches_take_them() -> None:
    widths = np.linspace(0.5, 1.5, 8)
    Y = Measurements(measured([gaussian_blur((SIZE, SIZE), w) for w in widths], MANY), sigma=widths)
    method = clone(GRADIENT).set_params(operator=gaussian_blur((SIZE, SIZE), 1.0), trainer=BRIEF)
    search = GridSearchCV(method, {"n_iterations": [1, 2]}, cv=2, error_score="raise").fit(MANY, Y)
    half = np.arange(8) < 4
    expected = clone(method).set_params(n_iterations=1).fit(MANY[~half], Y[~half]).score(MANY[half], Y[half])
    assert search.cv_results_["split0_test_score"][0] == pytest.approx(expected, abs=1e-9)
    found = cross_validate(method, MANY, Y, cv=2, error_score="raise")["test_score"]
    assert found == pytest.approx([search.cv_results_[f"split{k}_test_score"][1] for k in range(2)])


@pytest.mark.parametrize("changed", ["sigma", "std", "nothing"])
def test_a_cached_training_knows_what_belonged_to_each_image(tmp_path: Path, changed: str) -> None:
    values: dict[str, Any] = {"sigma": np.linspace(0.5, 1.5, 8), "std": np.full(8, 0.01)}
    Y = measured([gaussian_blur((SIZE, SIZE), w) for w in values["sigma"]], MANY)
    method = clone(GRADIENT).set_params(operator=BLURS[0], trainer=BRIEF, memory=tmp_path)
    first = clone(method).fit(MANY, Measurements(Y, **values)).history_
    if changed in values:
        values[changed] = np.r_[values[changed][:7], 2 * values[changed][7]]
    again = clone(method).fit(MANY, Measurements(Y, **values)).history_
    assert ([e["dur"] for e in first] == [e["dur"] for e in again]) == (changed == "nothing")


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    widths = np.linspace(0.5, 1.5, 8)
    Y = Measurements(measured([gaussian_blur((SIZE, SIZE), w) for w in widths], MANY), sigma=widths)
    method = clone(EQUILIBRIUM).set_params(operator=BLURS[0], max_steps=20, backward="jacobian_free")
    expected = weights(clone(method).set_params(trainer=Trainer(max_epochs=3, batch_size=4)).fit(MANY, Y))

    trainer = Trainer(max_epochs=3, batch_size=4, checkpoint=tmp_path / "training")
    with pytest.raises(KeyboardInterrupt):
        clone(method).set_params(trainer=clone(trainer).set_params(callbacks=[Kill()])).fit(MANY, Y)
    found = weights(clone(method).set_params(trainer=trainer).fit(MANY, Y))
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


# ---------------------------------------------------------------------- refusals
def test_what_learns_of_one_operator_says_so() -> None:
    A, Y = gaussian_blur((SIZE, SIZE), 1.0), Measurements(measured(BLURS, PAIR), sigma=WIDTHS)
    with pytest.raises(ValueError, match=r"DirectInversion: .* one operator, got sigma for each image"):
        sv.DirectInversion(A, trainer=BRIEF).fit(PAIR, Y)
    with pytest.raises(
        ValueError, match=r"measurements of one operator to learn from, got parameters or masks"
    ):
        sv.DirectInversion(A, trainer=BRIEF).fit(PAIR, Measurements(Y.data, std=[0.1, 0.2]))
    method = clone(GRADIENT).set_params(operator=A).fit(PAIR, Y)
    with pytest.raises(ValueError, match=r"measurements of one operator to learn from"):
        sv.ModelAdaptation(A, estimator=method, noise=0.01).fit(Y_meas=Y)


def test_masks_are_refused_where_each_datum_has_its_place() -> None:
    A, hidden = BLURS[0], RNG.random((2, SIZE, SIZE)) < 0.3
    masked = np.ma.array(measured(BLURS, PAIR), mask=hidden)
    primal_dual = ONE_STEPPED["primal-dual"]
    with pytest.raises(ValueError, match="learns from complete measurements"):
        clone(primal_dual).set_params(operator=A).fit(PAIR, masked)
    with pytest.raises(ValueError, match="needs each measurement in its place"):
        sv.PostProcessor(A, initial=primal_dual, trainer=BRIEF).fit(PAIR, masked)
    masked[1] = np.ma.masked
    with pytest.raises(ValueError, match="got 1 of 2 samples with all values masked"):
        clone(GRADIENT).set_params(operator=A).fit(PAIR, masked)


def test_the_wrong_way_round_is_noticed_under_several_operators() -> None:
    Y = measured(BLURS, PAIR, 0.0)
    with pytest.raises(ValueError, match="images first and measurements second"):
        clone(GRADIENT).set_params(operator=BLURS[0]).fit(Y, Measurements(PAIR, sigma=WIDTHS))

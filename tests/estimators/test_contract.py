"""The public contract, checked for every estimator of the public list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pylops
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import skinverse
from skinverse import LearnedGradientDescent, ReconstructionRegressor, Tikhonov, Trainer
from skinverse.estimators import BaseReconstructor
from skinverse.noise import Poisson
from skinverse.operators import parallel_beam, structurally_random
from skinverse.testing import Check, reconstructor_checks

METHODS = [
    cls
    for cls in (getattr(skinverse, name) for name in skinverse.__all__)
    if isinstance(cls, type) and issubclass(cls, BaseReconstructor)
]

# What has hardly been trained need not have a good weight, nor contract, unless it does by construction.
UNTRAINED: dict[str, dict[str, Any]] = {
    "AdversarialRegularizer": {"lam": 0.1},
    "BilevelRegularizer": {"lam": 0.1},
    "DeepEquilibriumRecon": {"lam": 0.1, "iteration": "contractive"},
    "GenerativeCovariancePrior": {"lam": 0.1},
}
# Parameters with which a method takes less time, or does what its exemptions speak of.
QUICK: dict[str, dict[str, Any]] = {
    "AdversarialRegularizer": {"tol": 1e-2, "max_steps": 20},
    "BilevelRegularizer": {"alpha": 0.1, "beta": 1.0, "tol": 1e-2},
    "DeepEquilibriumRecon": {"tol": 1e-4, "pretraining": False},
    "GenerativeCovariancePrior": {"n_latent": 2, "n_restarts": 1, "max_steps": 2},
    "Kaczmarz": {"n_blocks": 6},
    "LISTA": {"n_iterations": 2},
    "LearnedGradientDescent": {"n_iterations": 2},
    "LearnedPrimalDual": {"n_iterations": 2},
    "MLEM": {"noise": Poisson(gain=0.1), "max_steps": 10},
    "ModelAdaptation": {"max_steps": 5},
    "RichardsonLucy": {"noise": Poisson(gain=0.1, background=0.5), "max_steps": 10, "lam": 0.1},
    # With an unknown noise level it leaves images without operator as they are, and their level too.
    "Tikhonov": {"noise": 0.02},
    "TotalGeneralizedVariationRecon": {"lam": 0.1, "tol": 1e-2, "max_steps": 50},
    "TotalVariationRecon": {"lam": 0.1, "tol": 1e-2, "max_steps": 50},
    "VariationalNetwork": {"n_iterations": 2},
    "WaveletRecon": {"lam": 0.1, "tol": 1e-2, "max_steps": 50},
}
# Methods whose rule for lam takes twenty times as long as a number. What they do not promise is for that
# rule. The fastest of them shows it, and what the rule must keep beside what its own tests say; wavelets see
# nothing in such small images.
BY_RULE = ("TotalGeneralizedVariationRecon", "TotalVariationRecon", "WaveletRecon")
KEPT_BY_RULE = ("units_of_operator", "level", "form", "phase", "converged_is_true")
# What methods that take several kinds of noise must keep where data are counts.
OF_COUNTS = {
    "AdversarialRegularizer": ("pickled", "regressor"),
    "BilevelRegularizer": ("saved",),
    "GenerativeCovariancePrior": ("masked",),
    "LearnedPrimalDual": ("saved", "units"),
    "TotalVariationRecon": (
        "masked",
        "saved",
        "companions",
        "precision",
        "units",
        "units_of_operator",
        "form",
    ),
    "VariationalNetwork": ("masked", "companions", "form", "regressor", "units_of_operator"),
}
# Other options of total variation, and what they must keep.
OPTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"variation": "nuclear", "channel_axis": 0}, ("companions", "level", "phase", "converged_is_true")),
    ({"spacing": (4e-6, 1e-6), "lam": 1e-7}, ("units", "saved")),
]


def reconstructors() -> Iterator[BaseReconstructor]:
    """Every public method, with an operator where it takes only some."""
    for method in METHODS:
        name = method.__name__
        estimator = method(**UNTRAINED.get(name, {}), **QUICK.get(name, {}))
        if method is skinverse.FilteredBackProjection:
            estimator.operator = parallel_beam((12, 12), np.arange(12) * np.pi / 12, 17)
        if method is skinverse.ModelAdaptation:
            estimator.estimator = learned()
        yield estimator


def learned() -> LearnedGradientDescent:
    """A fitted method to be adapted."""
    rng = np.random.default_rng(0)
    A = structurally_random((12, 10), 70, random_state=0)
    X = rng.normal(size=(4, 12, 10)).cumsum(1) / 4
    Y = np.stack([A @ x.ravel() for x in X])
    return LearnedGradientDescent(A, n_iterations=2, trainer=Trainer(max_epochs=1)).fit(X, Y)


def contract() -> Iterator[Any]:
    for estimator in reconstructors():
        name = type(estimator).__name__
        for check in reconstructor_checks(estimator):
            if not (check.skipped and name in BY_RULE):
                yield pytest.param(check, id=f"{name}-{check}")
        if name in OF_COUNTS:
            counting = estimator.set_params(noise=Poisson(gain=0.1))
            for check in reconstructor_checks(counting):
                if check.name in OF_COUNTS[name]:
                    yield pytest.param(check, id=f"{name}-of-counts-{check}")
    for check in reconstructor_checks(skinverse.TotalVariationRecon(tol=1e-2, max_steps=50)):
        if check.skipped or check.name in KEPT_BY_RULE:
            yield pytest.param(check, id=f"by-rule-{check}")
    for option, kept in OPTIONS:
        method = skinverse.TotalVariationRecon(**QUICK["TotalVariationRecon"] | option)
        for check in reconstructor_checks(method):
            if check.name in kept:
                yield pytest.param(check, id=f"with-{'-'.join(option)}-{check}")


@pytest.mark.parametrize("check", list(contract()))
def test_keeps_the_contract(check: Check) -> None:
    if check.skipped is None:
        check()
    else:  # what is kept must be promised
        with pytest.raises(AssertionError):
            check()


def test_every_exemption_is_a_sentence() -> None:
    for method in METHODS:
        for why in method.not_promised.values():
            assert why[0].isupper() and why.endswith(".") and "\n" not in why


# Parameters with which a method takes less time in scikit-learn's checks, which fit it 44 times.
BRIEF: dict[str, dict[str, Any]] = {
    "AdversarialRegularizer": QUICK["AdversarialRegularizer"] | {"pretraining": False},
    "BilevelRegularizer": QUICK["BilevelRegularizer"] | {"pretraining": False},
    "DeepEquilibriumRecon": {"tol": 1e-2},
    **{name: {"n_iterations": 2} for name in QUICK if "n_iterations" in QUICK[name]},
    "GenerativeCovariancePrior": {"n_latent": 2, "n_restarts": 1},
    **{name: {"lam": 0.1, "tol": 1e-2} for name in BY_RULE if name != "TotalVariationRecon"},
}
# Trainings of them; held-out images are scored in those that the contract sees.
ONE_STEP = {"max_epochs": 1, "batch_size": 100, "validation_fraction": 0.0}


def regressors() -> Iterator[ReconstructionRegressor]:
    """Every public method in scikit-learn's order; what learns, learns for a moment."""
    for method in METHODS:
        if method is not skinverse.ModelAdaptation:  # the checks' regressions have no operator to adapt to
            name = method.__name__
            regressor = method(**UNTRAINED.get(name, {}) | BRIEF.get(name, {})).as_regressor()
            names = regressor.get_params()
            yield regressor.set_params(
                **{
                    name: value
                    for end, value in ONE_STEP.items()
                    for name in names
                    if name.endswith(f"__{end}")
                }
            )


@pytest.mark.filterwarnings("ignore:lam=.* sees no noise")  # the checks send numbers that are no measurements
@pytest.mark.draws_globally  # one of scikit-learn's checks does
@parametrize_with_checks(list(regressors()))
def test_keeps_the_contract_of_scikit_learn(estimator: ReconstructionRegressor, check: Any) -> None:
    check(estimator)


def test_large_batches_are_cut_without_a_trace() -> None:
    Y = np.random.default_rng(0).normal(size=(1030, 32, 32))  # more than 2^20 numbers
    method = Tikhonov().fit()
    assert_allclose(method.predict(Y), np.concatenate([method.predict(part) for part in np.split(Y, 2)]))


def test_a_flat_shape_is_not_taken_for_another_image() -> None:
    model = Tikhonov(pylops.Identity((4, 6))).fit()
    with pytest.raises(ValueError, match=r"expected shape \(n_samples, 4, 6\).*got \(2, 6, 4\)"):
        model.predict(np.ones((2, 6, 4)))


def test_clones_of_the_public_methods_have_their_parameters() -> None:
    for estimator in reconstructors():
        assert repr(clone(estimator)) == repr(estimator)

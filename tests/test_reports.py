"""What is reported is true: convergence of what is not finite, scores of blank images, missing components."""

from __future__ import annotations

import warnings

import numpy as np
import pylops
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skinverse import LISTA, PostProcessor, SpectralCutoff, TotalVariationRecon, Trainer
from skinverse.datasets import make_problem
from skinverse.metrics import mean_score, nmse, psnr_scorer
from skinverse.solvers import Solution


def test_images_that_are_not_finite_have_not_converged() -> None:
    x = torch.zeros(3, 2, 2)
    x[1, 0, 0], x[2, 1, 1] = torch.nan, -torch.inf
    assert Solution.direct(x).finite().converged.tolist() == [True, False, False]


def test_a_method_whose_weights_are_nan_says_so() -> None:
    X, Y, A = make_problem("deblurring", n_samples=4, size=16, noise=0.05, random_state=0)
    method = PostProcessor(A, network="dncnn", trainer=Trainer(max_epochs=1)).fit(X, Y)
    with torch.no_grad():
        for weights in method.module_.parameters():
            weights.fill_(float("nan"))
    with pytest.warns(ConvergenceWarning, match="4 of 4 images are not finite"):
        _, info = method.predict(Y, return_info=True)
    assert not info.converged.any()


def test_blank_images_do_not_decide_a_search() -> None:
    X, Y, A = make_problem("deblurring", n_samples=12, size=16, noise=0.05, random_state=0)
    blank = np.isin(np.arange(12), (1, 5, 9))
    sets = {"without": (X[~blank], Y[~blank])}
    sets["with"] = tuple(np.where(blank[:, None, None], 0, batch) for batch in (X, Y))
    searches = {}
    for name, (images, data) in sets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            method = TotalVariationRecon(A, max_steps=100)
            searches[name] = GridSearchCV(method, {"lam": [10.0, 1e-2, 1e-4]}, cv=3).fit(images, data)
    assert searches["with"].best_params_ == searches["without"].best_params_
    scores = {name: search.cv_results_["mean_test_score"] for name, search in searches.items()}
    assert_allclose(scores["with"], 0.75 * scores["without"] + 0.25 * 100, rtol=0.05)


def test_a_scorer_counts_a_perfect_image_like_score() -> None:
    X, Y, A = make_problem("denoising", n_samples=4, size=16, noise=0.05, random_state=0)
    X[0], Y[0] = 0, 0
    method = TotalVariationRecon(A, lam=0.05).fit()
    assert np.isfinite(method.score(X, Y))
    assert psnr_scorer(method, X, Y) == method.score(X, Y)


def test_an_error_of_a_blank_image_is_not_a_perfect_image() -> None:
    assert mean_score(np.array([20.0, -np.inf])) == -np.inf
    assert nmse(np.zeros((1, 4)), np.ones((1, 4)))[0] == np.inf


def test_blank_held_out_images_do_not_throw_a_training_away() -> None:
    X, Y, A = make_problem("deblurring", n_samples=24, size=16, noise=0.02, random_state=0)
    X[::3], Y[::3] = 0, 0
    trainer = Trainer(max_epochs=6, batch_size=4, lr=1e-3, validation_fraction=0.5, score_every=1)
    method = LISTA(A, trainer=trainer).fit(X, Y)
    scores = [epoch["valid_score"] for epoch in method.history_ if "valid_score" in epoch]
    assert np.isfinite(scores).all()


def test_all_components_that_lam_keeps_are_computed() -> None:
    data = np.random.default_rng(0).random((1, 46, 46))
    assert_allclose(SpectralCutoff(pylops.Identity((46, 46)), lam=0.1).fit().predict(data), data, rtol=1e-6)
    # Of a large operator no more than needed, also where lam was another one in fit.
    gains = 10.0 / np.arange(1, 2501)
    method = SpectralCutoff(pylops.Diagonal(gains), lam=1.1e-2).fit()
    assert len(method.singular_values_) == 200
    for lam, n in ((1.1e-2, 95), (3.1e-4, 567)):
        _, info = method.set_params(lam=lam).predict(gains[None], return_info=True)
        assert info.n_components[0] == pytest.approx(n, rel=0.03)  # the decomposition is a randomised one


def test_components_that_were_not_computed_are_told(monkeypatch) -> None:
    monkeypatch.setattr("skinverse.estimators.classical.spectral_cutoff._LARGEST", 2**20)
    data = np.random.default_rng(0).random((1, 46, 46))
    method = SpectralCutoff(pylops.Identity((46, 46)), lam=0.1).fit()
    with pytest.warns(ConvergenceWarning, match="247 largest singular values.*there are 2116"):
        method.predict(data)
    # Nobody is told what he has chosen, and nothing is missing where lam cuts off what was computed.
    SpectralCutoff(pylops.Identity((46, 46)), lam=0.1, n_components=20).fit().predict(data)
    SpectralCutoff(pylops.Identity((46, 46)), lam=2.0).fit().predict(data)

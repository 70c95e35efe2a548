"""Trainings on sets that are read when rows are needed: the same as on arrays in memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone

import skinverse as sv
from skinverse.operators import gaussian_blur

SIZE, N = 16, 12
RNG = np.random.default_rng(0)
IMAGES = np.kron(RNG.random((N, 4, 4)), np.ones((4, 4))).astype(np.float32)
A = gaussian_blur((SIZE, SIZE), 1.0)
DATA = np.stack([(A @ x.ravel()).reshape(x.shape) for x in IMAGES]).astype(np.float32)
DATA += 0.02 * RNG.standard_normal(DATA.shape, dtype=np.float32)
BRIEF = sv.Trainer(max_epochs=2, batch_size=4)

METHODS = [
    sv.PostProcessor(A, trainer=BRIEF),
    sv.PostProcessor(A, initial=sv.Tikhonov(lam=0.1), trainer=BRIEF),
    sv.LearnedGradientDescent(A, n_iterations=2, trainer=BRIEF),
    sv.LearnedPrimalDual(A, n_iterations=2, trainer=BRIEF),
    sv.VariationalNetwork(A, n_iterations=2, trainer=BRIEF),
    sv.LISTA(A, n_iterations=2, trainer=BRIEF),
    sv.DirectInversion(A, trainer=BRIEF),
    sv.AdversarialRegularizer(A, trainer=BRIEF, energy="convex_ridge", lam="auto", max_steps=20),
    sv.BilevelRegularizer(trainer=BRIEF, pretrainer=BRIEF, max_steps=30),
    sv.DeepEquilibriumRecon(trainer=BRIEF, pretrainer=BRIEF, max_steps=20),
    sv.GenerativeCovariancePrior(A, trainer=BRIEF, neighbourhood=3, n_latent=2, max_steps=10),
]
# Methods that remember, of every image in memory, where its reconstruction ended.
REMEMBERING = [
    sv.BilevelRegularizer(A, trainer=BRIEF, pretrainer=BRIEF, energy="convex_ridge", max_steps=30),
    sv.DeepEquilibriumRecon(A, trainer=BRIEF, pretrainer=BRIEF, network="gradient_step", max_steps=10),
]


class Rows:
    """Rows that are read when they are asked for, and only as slices."""

    def __init__(self, data: Any) -> None:
        self.data, self.asked = data, []
        self.shape, self.dtype = data.shape, data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: slice) -> Any:
        self.asked.append(len(range(len(self))[index]))
        return self.data[index]


@pytest.fixture(autouse=True)
def _brief() -> Any:
    """Trainings of two epochs do not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def weights(method: Any) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in method.module_.state_dict().values()])


def told(method: Any) -> list[Any]:
    return [(epoch["phase"], epoch["train_loss"], epoch.get("valid_score")) for epoch in method.history_]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_training_on_rows_is_that_on_arrays(method: Any) -> None:
    expected = clone(method).fit(IMAGES, DATA)
    got = clone(method).fit(Rows(IMAGES), Rows(DATA))
    torch.testing.assert_close(weights(got), weights(expected), rtol=1e-5, atol=1e-7)
    assert [e[0] for e in told(got)] == [e[0] for e in told(expected)]
    np.testing.assert_allclose(got.predict(DATA), expected.predict(DATA), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", REMEMBERING, ids=lambda m: type(m).__name__)
def test_what_is_not_remembered_is_learned_all_the_same(method: Any) -> None:
    expected = clone(method).fit(IMAGES, DATA).score(IMAGES, DATA)
    assert clone(method).fit(Rows(IMAGES), Rows(DATA)).score(IMAGES, DATA) > expected - 0.5


# ---------------------------------------------------------------------- what is read
def test_few_rows_are_read_at_once() -> None:
    n = 200
    rows = Rows(np.resize(IMAGES, (n, SIZE, SIZE))), Rows(np.resize(DATA, (n, SIZE, SIZE)))
    method = sv.PostProcessor(trainer=sv.Trainer(max_epochs=1, batch_size=4, validation_fraction=0.5))
    method.fit(*rows)
    for one in rows:
        assert sum(one.asked) > n  # an epoch, and a sample for the level
        assert max(one.asked) <= n  # of small images the sample is all of them
        assert max(one.asked[-50:]) <= 4


def test_pairs_are_learned_from() -> None:
    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            return IMAGES[i], torch.from_numpy(DATA[i])

    method = sv.LearnedGradientDescent(A, n_iterations=2, trainer=BRIEF)
    expected = clone(method).fit(IMAGES, DATA)
    got = clone(method).fit(Pairs())
    torch.testing.assert_close(weights(got), weights(expected), rtol=1e-5, atol=1e-7)
    assert got.score(Pairs(), Pairs()) == pytest.approx(expected.score(IMAGES, DATA), abs=1e-3)


def test_a_training_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    class Failing(Rows):
        n_left = 7

        def __getitem__(self, index: slice) -> Any:
            self.n_left -= 1
            if self.n_left == 0:
                raise Interrupted
            return super().__getitem__(index)

    trainer = sv.Trainer(max_epochs=4, batch_size=6, validation_fraction=0, checkpoint=tmp_path / "c")
    method = sv.LearnedGradientDescent(A, n_iterations=1, trainer=trainer)
    expected = clone(method).set_params(trainer__checkpoint=None).fit(Rows(IMAGES), Rows(DATA))
    failing = Failing(DATA)
    failing.n_left = 40
    with pytest.raises(Interrupted):
        clone(method).fit(Rows(IMAGES), failing)
    assert (tmp_path / "c").exists()
    got = clone(method).fit(Rows(IMAGES), Rows(DATA))
    assert torch.equal(weights(got), weights(expected))
    with pytest.raises(ValueError, match="another|other data"):
        clone(method).fit(Rows(IMAGES), Rows(DATA + 1))


@pytest.mark.parametrize("broken", ["images", "data"])
def test_a_broken_row_is_named(broken: str) -> None:
    rows = {"images": IMAGES.copy(), "data": DATA.copy()}
    rows[broken][7, 3, 3] = np.nan
    method = sv.PostProcessor(A, trainer=BRIEF)
    name = {"images": "X_true", "data": "Y_meas"}[broken]
    with pytest.raises(ValueError, match=rf"{name}: expected finite values, .* in row 7"):
        method.fit(Rows(rows["images"]), Rows(rows["data"]))
    assert not hasattr(method, "module_")


def test_recursions_need_arrays_in_memory() -> None:
    method = sv.AdversarialRegularizer(A, trainer=BRIEF, energy="convex_ridge", n_recursions=1)
    with pytest.raises(ValueError, match="n_recursions: expected 0"):
        method.fit(Rows(IMAGES), Rows(DATA))


def test_a_classical_method_reads_one_row() -> None:
    data = Rows(DATA)
    sv.Tikhonov(A, lam=0.1).fit(None, data)
    assert max(data.asked) <= 8

"""Data of which the operator measures a part: what stands elsewhere is never read, and does not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pylops
import pytest
import torch

from skinverse import (
    DirectInversion,
    Kaczmarz,
    Landweber,
    LearnedPrimalDual,
    SpectralCutoff,
    Tikhonov,
    TotalVariationRecon,
    Trainer,
    ZeroFilled,
)
from skinverse.datasets import make_problem

SIZE = 12
QUICK = Trainer(max_epochs=1)
IMAGES, DATA, A = make_problem("mri", n_samples=3, size=SIZE, noise=0.05, random_state=0)
MASK = np.broadcast_to(np.abs(DATA).max((0, 1)) > 0, (SIZE, SIZE))
PACKED = pylops.Restriction((4, SIZE**2), np.flatnonzero(MASK), axis=1) @ A
KEPT = DATA[:, :, MASK]
NOISE = float(np.sqrt((np.abs(DATA - np.stack([A @ x for x in IMAGES])) ** 2).sum() / KEPT.size))

METHODS: dict[str, Any] = {
    "zero filling": ZeroFilled(),
    "Tikhonov": Tikhonov(),
    "Tikhonov to the noise": Tikhonov(lam="discrepancy", noise=NOISE),
    "total variation": TotalVariationRecon(lam=0.02),
    "total variation to the noise": TotalVariationRecon(lam="discrepancy", noise=NOISE, max_steps=100),
    "Landweber": Landweber(noise=NOISE),
    "spectral cutoff": SpectralCutoff(lam=0.1),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", METHODS)
def test_the_grid_and_the_list_of_samples_give_the_same(name: str) -> None:
    grid, packed = (METHODS[name].__sklearn_clone__().set_params(operator=op) for op in (A, PACKED))
    x, info = grid.fit(None, DATA).predict(DATA, return_info=True)
    expected, others = packed.fit(None, KEPT).predict(KEPT, return_info=True)
    np.testing.assert_allclose(x, expected, atol=2e-3 * np.abs(expected).max())
    for key in info:
        np.testing.assert_allclose(info[key], others[key], rtol=2e-2, atol=1e-4, err_msg=key)


LEARNED: dict[str, Any] = {
    "Kaczmarz": Kaczmarz(A, noise=NOISE),
    "learned primal-dual": LearnedPrimalDual(A, n_iterations=2, n_states=1, n_features=2, trainer=QUICK),
    "direct inversion": DirectInversion(A, trainer=QUICK),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", [*METHODS, *LEARNED])
def test_the_rest_is_never_read(name: str) -> None:
    method = ({k: v.__sklearn_clone__().set_params(operator=A) for k, v in METHODS.items()} | LEARNED)[name]
    spoiled = np.where(MASK, DATA, np.array([1e6, np.nan, np.inf])[:, None, None, None]).astype(DATA.dtype)
    plain = method.__sklearn_clone__().fit(IMAGES, DATA)
    other = method.__sklearn_clone__().fit(IMAGES, spoiled)
    expected = plain.predict(DATA)
    np.testing.assert_array_equal(other.predict(spoiled), expected)
    assert other.score(IMAGES, spoiled) == plain.score(IMAGES, DATA)


def test_nor_is_it_of_any_kind_of_array() -> None:
    method, spoiled = Tikhonov(A).fit(), np.where(MASK, DATA, np.nan)
    expected = method.predict(DATA)
    np.testing.assert_array_equal(method.predict(torch.from_numpy(spoiled)).numpy(), expected)
    np.testing.assert_array_equal(method.predict(spoiled.reshape(3, -1)), expected)
    masked = np.ma.array(spoiled, mask=np.broadcast_to(~MASK, DATA.shape))
    np.testing.assert_array_equal(method.predict(masked), expected)


def test_what_is_measured_is_still_checked() -> None:
    bad, third = np.where(MASK, DATA, np.nan), (np.arange(3) == 2)[:, None, None, None]
    bad[2, 1][MASK] = np.inf
    with pytest.raises(ValueError, match="NaN or inf in 1 of 3 samples"):
        Tikhonov(A).fit().predict(bad)
    with pytest.raises(ValueError, match="1 of 3 samples with all values masked"):
        Tikhonov(A).fit().predict(np.ma.array(bad, mask=np.broadcast_to(MASK & third, bad.shape)))


def test_missing_values_beside_unmeasured_ones() -> None:
    hidden = np.zeros(DATA.shape, bool)
    hidden[1:, :, 3] = True
    found = Tikhonov(A).fit().predict(np.ma.array(np.where(hidden, np.nan, DATA), mask=hidden))
    weighted = pylops.Diagonal((~hidden[1]).astype(np.complex64)) @ A
    np.testing.assert_allclose(found[1:], Tikhonov(weighted).fit().predict(DATA[1:]), atol=1e-4)

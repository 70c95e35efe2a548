"""Which data depend on the image: that of each map, and of maps made of others."""

from __future__ import annotations

import pickle

import numpy as np
import pylops
import pytest
import torch
from pylops.signalprocessing import FFT2D

from skinverse.operators import AngleOffset, DetectorOffset, as_torch, fourier_sampling, parallel_beam

DIMS = (6, 6)
RNG = np.random.default_rng(0)
MASK = RNG.random(DIMS) < 0.4
COILS = RNG.normal(size=(3, *DIMS)) + 1j * RNG.normal(size=(3, *DIMS))
A = fourier_sampling(MASK)
F = FFT2D(DIMS, norm="ortho")
WEIGHTS = np.where(RNG.random(DIMS) < 0.5, 0, RNG.normal(size=DIMS))
SOME = pylops.Restriction(36, np.flatnonzero(MASK), dtype="complex128")


@pytest.mark.parametrize("flip", [np.s_[::-1], np.s_[:, ::-1]])
def test_a_flipped_mask_is_one_of_its_own(flip: tuple[slice, ...]) -> None:
    mask = MASK.copy()
    linear = as_torch(fourier_sampling(mask[flip]))
    mask[:] = True  # the caller's
    x = torch.from_numpy(RNG.normal(size=(1, *DIMS)) + 0j)
    np.testing.assert_array_equal(linear(x)[0].numpy() != 0, MASK[flip])


def shaped(operator: pylops.LinearOperator, *dimsd: int) -> pylops.LinearOperator:
    operator.dimsd = dimsd
    return operator


KNOWN = {
    "samples": A,
    "coils": fourier_sampling(MASK, COILS),
    "columns": fourier_sampling(MASK[0], COILS, centred=True),
    "scaled": 2j * A,
    "weighted": pylops.Diagonal(WEIGHTS.astype(complex)) @ A,
    "weights of zero": pylops.Diagonal(WEIGHTS) @ pylops.MatrixMult(RNG.normal(size=(36, 36))),
    "some rows": pylops.Restriction(DIMS, [1, 4], axis=0) @ A,
    "turned": pylops.Transpose(DIMS, (1, 0)) @ pylops.Flip(DIMS, axis=0) @ A,
    "padded": pylops.Pad(DIMS, ((1, 1), (0, 2))) @ A,
    "put back": SOME.H @ SOME @ F,
    "stack": pylops.VStack([A, F]),
    "shaped stack": shaped(pylops.VStack([A, A]), 2, *DIMS),
    "blocks": pylops.BlockDiag([A, F]),
    "blocks after a stack": pylops.BlockDiag([pylops.Diagonal(WEIGHTS + 0j), F]) @ pylops.VStack([A, F]),
    "beside each other": pylops.HStack([A, pylops.Diagonal(WEIGHTS.ravel() + 0j) @ A]),
    "sum": A + fourier_sampling(np.roll(MASK, 1)),
    "mask of a sum": pylops.Diagonal(MASK + 0j) @ (F + 2 * F),
    "real part": A.toreal(),
    "conjugate": A.conj(),
    "rotated": AngleOffset(A, 0.3),
}


def rows(operator: pylops.LinearOperator) -> np.ndarray:
    """Which rows of the matrix are not zero."""
    dense = np.stack([np.ravel(operator @ e) for e in np.eye(operator.shape[1]) + 0j], 1)
    return (np.abs(dense).max(1) > 1e-12).reshape(operator.dimsd)


@pytest.mark.parametrize("name", KNOWN)
def test_rows_that_are_not_zero(name: str) -> None:
    linear, expected = as_torch(KNOWN[name]), rows(KNOWN[name])
    assert not expected.all()
    assert linear.measured is not None
    np.testing.assert_array_equal(linear.measured, expected)
    assert linear.n_measured == expected.sum()


@pytest.mark.parametrize("name", KNOWN)
def test_other_data_are_never_read(name: str) -> None:
    linear = as_torch(KNOWN[name])
    y = torch.from_numpy(RNG.normal(size=(2, *linear.dimsd)) + 0j)
    spoiled = torch.where(linear.measured, y, torch.nan)
    assert torch.equal(linear.adjoint(linear.measured_part(spoiled)), linear.adjoint(linear.measured_part(y)))


@pytest.mark.parametrize(
    "operator",
    [
        F,
        fourier_sampling(np.ones(DIMS, bool)),
        parallel_beam(DIMS, [0.0, 1.0], 7),
        DetectorOffset(A, 0.4),
        pylops.MatrixMult(np.zeros((3, 4))),
        pylops.Zero(3, 4),  # says nothing of its data
        A.H,
    ],
)
def test_elsewhere_everything_is_measured(operator: pylops.LinearOperator) -> None:
    linear = as_torch(operator)
    y = torch.ones(1, *linear.dimsd)
    assert linear.measured is None
    assert linear.n_measured == y.numel()
    assert linear.measured_part(y) is y


def test_blocks_and_copies_know_it_too() -> None:
    linear = as_torch(2.0 * fourier_sampling(MASK, COILS))
    np.testing.assert_array_equal(linear.block(1, 3).measured, linear.measured[1:3])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(linear)).measured, linear.measured)


@pytest.mark.parametrize("name", ["samples", "coils", "columns"])
def test_samples_of_a_spectrum_do_not_read_the_rest(name: str) -> None:
    operator, linear = KNOWN[name], as_torch(KNOWN[name])
    y = RNG.normal(size=operator.dimsd) + 1j * RNG.normal(size=operator.dimsd)
    spoiled = np.where(linear.measured, y, np.nan)
    np.testing.assert_array_equal(operator.H @ spoiled.ravel(), operator.H @ y.ravel())
    images = [linear.adjoint(torch.from_numpy(data)[None]) for data in (spoiled, y)]
    assert torch.equal(*images)

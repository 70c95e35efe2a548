"""Spectral norms: right to 1 % for any leading direction, in any units."""

import numpy as np
import pylops
import pytest
import torch
from pylops.signalprocessing import Convolve2D, ConvolveND

from skinverse import Landweber
from skinverse.operators import (
    GaussianBlur,
    as_torch,
    fourier_sampling,
    structurally_random,
)

rng = np.random.default_rng(0)


class Hidden(pylops.LinearOperator):
    """A diagonal that nobody knows to be one."""

    def __init__(self, values):
        self.values = values
        super().__init__(dtype=values.dtype, dims=values.shape, dimsd=values.shape)

    def _matvec(self, x):
        return self.values.ravel() * x

    def _rmatvec(self, y):
        return self.values.ravel() * y


@pytest.mark.parametrize("n", [8, 64, 200])
@pytest.mark.parametrize("others", ["ones", "uniform"])
def test_lone_heavy_pixel_is_found(n, others):
    for _ in range(30 if n < 100 else 3):
        weights = np.ones((n, n)) if others == "ones" else rng.random((n, n))
        weights[tuple(rng.integers(n, size=2))] = 1.5
        assert as_torch(Hidden(weights)).norm() == pytest.approx(1.5, rel=0.01)


def test_landweber_survives_a_heavy_pixel():
    weights = np.ones((64, 64))
    weights[0, 63] = 1.5
    A = Hidden(weights)
    x = Landweber(A, max_steps=60).fit().predict((A @ np.ones((64, 64)))[None])
    np.testing.assert_allclose(x, 1, atol=1e-3)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1.0, 1e9, 1e12, 1e30])
def test_single_precision_in_any_units(factor):
    matrix = rng.standard_normal((30, 40))
    A = as_torch(pylops.MatrixMult((factor * matrix).astype(np.float32), dtype="float32"))
    assert A.norm() / factor == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-3)


D = pylops.Diagonal(rng.standard_normal((6, 8)))
CASES = {
    "diagonal": D,
    "complex diagonal": pylops.Diagonal(rng.standard_normal(7) * 2j, dtype="complex128"),
    "boolean diagonal": pylops.Diagonal(np.array([False, True, True]), dtype="float64"),
    "zero diagonal": pylops.Diagonal(np.zeros(5)),
    "coils": pylops.VStack([pylops.Diagonal(rng.standard_normal(9)) for _ in range(3)]),
    "repeated rows": pylops.Restriction((6, 8), [0, 2, 2, 2, 5], axis=0),
    "every row twice": D @ pylops.Restriction((3, 8), [0, 0, 1, 1, 2, 2], axis=0),
    "scaled": -3.0 * D,
    "adjoint": D.H,
    "sum of an axis": pylops.Sum((6, 8), axis=1),
    "padding": pylops.Pad((6, 8), [(1, 2), (0, 3)]) @ D,
    "blocks": pylops.BlockDiag([D, 2 * D]),
    "gradient": pylops.Gradient((6, 8)),
    "weights after a transform": D @ structurally_random((6, 8), 48, random_state=0),
    "transform after weights": structurally_random((6, 8), 48, random_state=0) @ D,
    "some rows of a transform": structurally_random((6, 8), 20, random_state=0) @ D,
    "sampling": fourier_sampling(rng.random((6, 9)) > 0.5),
    "coils of a full mask": fourier_sampling(np.ones((6, 9), bool), rng.standard_normal((3, 6, 9))),
    "coils of a mask": fourier_sampling(rng.random((6, 9)) > 0.5, rng.standard_normal((3, 6, 9))),
    "rough kernel": Convolve2D((12, 10), rng.standard_normal((5, 5)), offset=(2, 2)),
    "complex kernel": Convolve2D(
        (12, 10), np.exp(1j * rng.random((5, 3))), offset=(2, 1), dtype="complex128"
    ),
    "smooth kernel": Convolve2D((40, 30), np.ones((3, 3)) / 9, offset=(1, 1)),
    "kernel of one axis": ConvolveND((12, 40), np.array([[0.0, 1.0, -1.0]]), offset=(0, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_formulas_agree_with_the_largest_singular_value(name):
    op = CASES[name]
    assert as_torch(op).norm() == pytest.approx(np.linalg.norm(op.todense(), 2), rel=0.01)


def test_large_convolution_needs_one_application():
    """It took 300 products with the operator and its adjoint."""
    A = as_torch(ConvolveND((40, 64, 64), np.ones((3, 3, 3)) / 27, offset=(1, 1, 1)))
    forward, calls = A._forward, []
    A._forward = lambda x: calls.append(1) or forward(x)
    assert A.norm() == pytest.approx(1, rel=0.01)
    assert len(calls) == 1


def test_norm_of_a_family_follows_its_parameters():
    sigma = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    family = GaussianBlur((16, 16), 1.0)
    A = family.at({"sigma": sigma})
    (slope,) = torch.autograd.grad(A.norm(), sigma)
    h = 1e-4
    above, below = (as_torch(family.with_parameters({"sigma": 1.0 + s})).norm() for s in (h, -h))
    assert float(slope) == pytest.approx((above - below) / (2 * h), rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (2, 7), (7, 2), (1, 1)])
@pytest.mark.parametrize("rank", [1, 2])
def test_few_data_few_pixels_and_low_rank(shape, rank):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    assert as_torch(pylops.MatrixMult(matrix)).norm() == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)

"""Operators without torch code: types, batches, and arrays that are used again."""

import numpy as np
import pylops
import pytest
import torch

from skinverse import Tikhonov
from skinverse.operators import as_torch, dot_test

rng = np.random.default_rng(0)
M = rng.standard_normal((6, 8))
C = M + 1j * rng.standard_normal((6, 8))


def drawn(shape, dtype=torch.float64):
    real, imaginary = (torch.from_numpy(rng.standard_normal(shape)) for _ in range(2))
    return (torch.complex(real, imaginary) if dtype.is_complex else real).to(dtype)


class Unknown(pylops.LinearOperator):
    """A matrix that takes nothing but its own type."""

    def __init__(self, matrix, dtype=None):
        self.matrix = matrix
        super().__init__(dtype=dtype or matrix.dtype, shape=matrix.shape)

    def _matvec(self, x):
        assert x.dtype == self.dtype or self.dtype.kind == "i"
        return self.matrix @ x

    def _rmatvec(self, y):
        assert y.dtype == self.dtype or self.dtype.kind == "i"
        return self.matrix.conj().T @ y


@pytest.mark.parametrize("matrix", [M, C, M.astype(np.float32), C.astype(np.complex64), (9 * M).astype(int)])
@pytest.mark.parametrize("batch_type", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_an_operator_gets_its_own_type_and_the_batch_keeps_its_precision(matrix, batch_type):
    A = as_torch(Unknown(matrix))
    x, y = (drawn((3, size), batch_type) for size in (8, 6))
    exact = x.numpy() @ matrix.T, y.numpy() @ matrix.conj()
    for got, expected in zip((A(x), A.adjoint(y)), exact, strict=True):
        assert got.dtype.to_real() == batch_type.to_real()
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert dot_test(Unknown(matrix)) < 1e-4


def test_real_images_of_a_strict_complex_operator_have_real_gradients():
    x = drawn((2, 8)).requires_grad_()
    (g,) = torch.autograd.grad(as_torch(Unknown(C))(x).abs().square().sum(), x)
    np.testing.assert_allclose(g.numpy(), 2 * (x.detach().numpy() @ C.T @ C.conj()).real)


def test_a_whole_batch_goes_through_matmat():
    class Batched(Unknown):
        calls = 0

        def _matmat(self, X):
            type(self).calls += 1
            return self.matrix @ X

        def _rmatmat(self, Y):
            type(self).calls += 1
            return self.matrix.T @ Y

        def _matvec(self, x):
            raise AssertionError

        _rmatvec = _matvec

    A = as_torch(Batched(M))
    x = drawn((5, 8))
    np.testing.assert_allclose(A.adjoint(A(x)).numpy(), x.numpy() @ M.T @ M)
    assert Batched.calls == 2


class Reused(Unknown):
    """Returns an array of its own, and works in place."""

    def _matvec(self, x):
        self.out = getattr(self, "out", np.empty(6))
        np.dot(self.matrix, x, out=self.out)
        x[:] = np.nan
        return self.out

    def _rmatvec(self, y):
        self.image = getattr(self, "image", np.empty(8))
        np.dot(self.matrix.T, y, out=self.image)
        y[:] = np.nan
        return self.image


def test_reused_and_changed_arrays_are_copied():
    Y = rng.standard_normal((3, 6))
    kept = Y.copy()
    expected, got = (Tikhonov(A, lam=0.1).fit().predict(Y) for A in (pylops.MatrixMult(M), Reused(M)))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(Y, kept)


class Inexact(Unknown):
    def _rmatvec(self, y):
        return 1.001 * self.matrix.T @ y


def test_what_to_do_with_an_inexact_adjoint_is_the_users():
    A = Inexact(M)
    with pytest.raises(ValueError, match="differ by"):
        Tikhonov(A, lam=0.1).fit()
    with pytest.warns(UserWarning, match="differ by"):
        Tikhonov(A, lam=0.1, check_operator="warn").fit()
    Tikhonov(A, lam=0.1, check_operator=1e-2).fit()
    with pytest.raises(ValueError, match="differ by"):
        Tikhonov(A, lam=0.1, check_operator=1e-5).fit()
    with pytest.raises(ValueError, match="check_operator"):
        Tikhonov(A, lam=0.1, check_operator="never").fit()


def test_a_batch_that_differs_from_its_images_is_refused():
    class Wrong(Unknown):
        def _matmat(self, X):
            return 2 * self.matrix @ X

        def _rmatmat(self, Y):
            return 2 * self.matrix.T @ Y

    with pytest.raises(ValueError, match="image by image"):
        Tikhonov(Wrong(M), lam=0.1).fit()


@pytest.mark.parametrize("operator", [pylops.MatrixMult(M, dtype="float32"), Unknown(M.astype("float32"))])
def test_autocasting_leaves_products_with_an_operator_alone(operator):
    A, x = as_torch(operator), drawn((3, 8), torch.float32)
    plain = A(x), A.adjoint(A(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(A(x), plain[0])
        assert torch.equal(A.adjoint(A(x)), plain[1])
        assert A(x.bfloat16()).dtype == torch.float32

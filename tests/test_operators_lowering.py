"""Every operator that is lowered, against pylops itself."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pylops
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose
from pylops.basicoperators import Conj
from pylops.medical import MRI2D
from pylops.signalprocessing import DCT, FFT, FFT2D, FFTND, Convolve1D, Convolve2D, ConvolveND
from torch.autograd import gradcheck, gradgradcheck

from skinverse.operators import as_torch, dot_test
from skinverse.operators._bridge import BridgeMap

rng = np.random.default_rng(0)
M, C = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)) + 1j * rng.normal(size=(6, 4))
SQUARE = pylops.MatrixMult(M[:4])
COMPLEX = pylops.MatrixMult(C, dtype="complex128")
GRID = (5, 6)
SPARSE = sp.random_array((6, 4), density=0.4, rng=0)


class Unknown(pylops.LinearOperator):
    """A pylops operator of the user's own."""

    def __init__(self) -> None:
        super().__init__(dtype=np.dtype("float64"), dims=(4,), dimsd=(6,))

    def _matvec(self, x):
        return M @ x

    def _rmatvec(self, y):
        return M.T @ y


def ffts() -> dict[str, pylops.LinearOperator]:
    found = {}
    for norm in ("ortho", "none", "1/n"):
        for engine in ("numpy", "scipy"):
            for real in (False, True):
                dtype = "float64" if real else "complex128"
                name = f"{engine} {norm} {'real' if real else 'complex'}"
                found[f"FFT {name}"] = FFT(GRID, axis=0, norm=norm, engine=engine, real=real, dtype=dtype)
                found[f"FFTND {name}"] = FFTND(
                    (3, 4, 5), axes=(0, 2), norm=norm, engine=engine, real=real, dtype=dtype
                )
                if engine == "numpy" or norm == "ortho":
                    found[f"FFT2D {name}"] = FFT2D(GRID, norm=norm, engine=engine, real=real, dtype=dtype)
    found["FFT2D odd real"] = FFT2D((4, 5), real=True, dtype="float64")
    found["FFT2D shifted"] = FFT2D(GRID, ifftshift_before=True, fftshift_after=True, dtype="complex128")
    found["FFT2D padded"] = FFT2D(GRID, nffts=(8, 9), dtype="complex128")
    found["FFT2D padded real"] = FFT2D(GRID, nffts=(8, 9), real=True, dtype="float64")
    found["FFT2D of reals"] = FFT2D(GRID, dtype="float64")
    found["FFT2D inner axes"] = FFT2D((3, 4, 5), axes=(0, 1), fftshift_after=True, dtype="complex128")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pylops remarks that the transform is cut
        found["FFT cut"] = FFT(8, nfft=6, dtype="complex128")
        found["FFT2D cut"] = FFT2D((6, 7), nffts=(4, 9), dtype="complex128")
    return found


OPERATORS = {
    "product": pylops.MatrixMult(M) @ SQUARE,
    "sum": pylops.MatrixMult(M) + pylops.MatrixMult(M[::-1].copy()),
    "difference": SQUARE - pylops.Identity(4),
    "scaled": -2.5 * pylops.MatrixMult(M),
    "complex scaled": (1 + 2j) * COMPLEX,
    "adjoint": pylops.MatrixMult(M).H,
    "complex adjoint": COMPLEX.H,
    "transposed": COMPLEX.T,
    "conjugate": COMPLEX.conj(),
    "power": SQUARE**3,
    "real part": COMPLEX.toreal(),
    "imaginary part": COMPLEX.toimag(),
    "VStack": pylops.VStack([pylops.MatrixMult(M), SQUARE]),
    "VStack of images": pylops.VStack(
        [pylops.FirstDerivative(GRID, axis=0), pylops.FirstDerivative(GRID, axis=1)]
    ),
    "VStack of diagonals": pylops.VStack(
        [pylops.Diagonal(rng.normal(size=GRID) + 1j, dtype="complex128") for _ in range(3)]
    ),
    "HStack": pylops.HStack([SQUARE, pylops.Identity(4)]),
    "BlockDiag": pylops.BlockDiag([pylops.MatrixMult(M), pylops.Identity(3)]),
    "BlockDiag complex": pylops.BlockDiag([COMPLEX, pylops.Identity(3, dtype="complex128")]),
    "Identity": pylops.Identity(GRID),
    "Identity cuts": pylops.Identity(3, 5),
    "Identity pads": pylops.Identity((5, 6), (3, 4)),
    "Zero": pylops.Zero(3, 5),
    "Diagonal": pylops.Diagonal(rng.normal(size=GRID)),
    "Diagonal axis": pylops.Diagonal(rng.normal(size=6), dims=GRID, axis=1),
    "Diagonal complex": pylops.Diagonal(rng.normal(size=5) + 1j * rng.normal(size=5), dtype="complex128"),
    "Restriction": pylops.Restriction(GRID, [4, 0, 2], axis=0),
    "Restriction repeats": pylops.Restriction(GRID, [1, 1, 5], axis=1),
    "Restriction negative": pylops.Restriction(6, [-1, 2]),
    "MatrixMult": pylops.MatrixMult(M),
    "MatrixMult complex": COMPLEX,
    "MatrixMult otherdims": pylops.MatrixMult(M, otherdims=(3, 2)),
    "MatrixMult sparse": pylops.MatrixMult(SPARSE.tocsr()),
    "MatrixMult sparse csc otherdims": pylops.MatrixMult(SPARSE.tocsc(), otherdims=(3,)),
    "MatrixMult sparse complex": pylops.MatrixMult((SPARSE * 1j).tocsr(), dtype="complex128"),
    **{
        f"FirstDerivative {kind} {axis} edge={edge} order={order}": pylops.FirstDerivative(
            (6, 7), axis=axis, kind=kind, edge=edge, order=order, sampling=0.5
        )
        for kind, order in [("forward", 3), ("backward", 3), ("centered", 3), ("centered", 5)]
        for axis in (0, 1)
        for edge in (False, True)
    },
    **{
        f"SecondDerivative {kind} edge={edge}": pylops.SecondDerivative((6, 7), axis=-1, kind=kind, edge=edge)
        for kind in ("forward", "backward", "centered")
        for edge in (False, True)
    },
    "Gradient": pylops.Gradient(GRID, kind="forward"),
    "Laplacian": pylops.Laplacian(GRID, axes=(0, 1), weights=(1, 2)),
    "DCT": DCT(GRID),
    "DCT one axis": DCT((3, 5, 4), axes=1),
    "DCT odd": DCT(7),
    "DCT type 3": DCT(GRID, type=3),
    "DCT type 4": DCT(6, type=4),
    "Flip": pylops.Flip(GRID, axis=1),
    "Roll": pylops.Roll(GRID, axis=0, shift=2),
    "Transpose": pylops.Transpose((2, 3, 4), axes=(2, 0, 1)),
    "Pad": pylops.Pad(GRID, ((1, 2), (0, 3))),
    "Sum": pylops.Sum((3, 4, 5), axis=1),
    "Real": pylops.Real(5, dtype="complex128"),
    "Imag": pylops.Imag(5, dtype="complex128"),
    "Conj": Conj(5, dtype="complex128"),
    "Convolve1D": Convolve1D(GRID, rng.normal(size=3), offset=1, axis=0),
    "Convolve1D offset": Convolve1D(12, rng.normal(size=4), offset=0),
    "Convolve1D long": Convolve1D(5, rng.normal(size=7), offset=3),
    "Convolve2D": Convolve2D((7, 8), rng.normal(size=(3, 5)), offset=(1, 2)),
    "Convolve2D even": Convolve2D((7, 8), rng.normal(size=(4, 2)), offset=(2, 1)),
    "Convolve2D offset": Convolve2D((7, 8), rng.normal(size=(3, 3)), offset=(0, 2)),
    "Convolve2D complex": Convolve2D((7, 8), rng.normal(size=(3, 3)) * 1j, offset=(1, 1), dtype="complex128"),
    "ConvolveND axes": ConvolveND((4, 7, 8), rng.normal(size=(3, 3)), offset=(1, 1), axes=(1, 2)),
    "MRI2D": MRI2D((6, 8), rng.random((6, 8)) < 0.5, dtype="complex128"),
    "unknown": Unknown(),
    **ffts(),
}
every = pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS.keys())


def batch(shape, *, complex: bool, n: int = 3, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, *shape))
    return x + 1j * random.normal(size=x.shape) if complex else x


def by_pylops(function, X, shape) -> np.ndarray:
    return np.stack([function(x.ravel()).reshape(shape) for x in X])


@every
@pytest.mark.parametrize(("precision", "tol"), [("double", 1e-12), ("single", 2e-6)])
def test_agrees_with_pylops_both_ways(op, precision, tol) -> None:
    A = as_torch(op)
    kinds = {"double": ("c16", "f8"), "single": ("c8", "f4")}[precision]
    X = batch(op.dims, complex=op.dtype.kind == "c" and op.clinear)
    expected = by_pylops(op.matvec, X, op.dimsd)
    Y = A(torch.from_numpy(X.astype(kinds[X.dtype.kind != "c"])))
    assert Y.dtype.to_real() == {"double": torch.float64, "single": torch.float32}[precision]
    assert_allclose(Y.numpy(), expected, rtol=0, atol=tol * np.abs(expected).max())
    V = batch(op.dimsd, complex=np.iscomplexobj(expected))
    expected = by_pylops(op.rmatvec, V, op.dims)
    found = A.adjoint(torch.from_numpy(V.astype(kinds[V.dtype.kind != "c"]))).numpy()
    assert_allclose(found, expected, rtol=0, atol=tol * max(np.abs(expected).max(), 1e-300))


@every
def test_dot_test(op) -> None:
    assert dot_test(op) < 1e-12


@every
@pytest.mark.draws_globally  # gradcheck's fast mode does
def test_first_and_second_derivatives(op) -> None:
    A = as_torch(op)
    x = torch.from_numpy(batch(op.dims, complex=op.dtype.kind == "c" and op.clinear, n=2)).requires_grad_()
    y = torch.from_numpy(batch(op.dimsd, complex=A(x).is_complex(), n=2)).requires_grad_()
    for function, at in ((A, x), (A.adjoint, y)):
        assert gradcheck(function, (at,), fast_mode=True)
        assert gradgradcheck(lambda v, f=function: f(v).abs().square().sum(), (at,), fast_mode=True)


@every
def test_images_of_a_batch_do_not_mix(op) -> None:
    A = as_torch(op)
    X = torch.from_numpy(batch(op.dims, complex=op.dtype.kind == "c" and op.clinear))
    assert_allclose(A(X)[1:2].numpy(), A(X[1:2].clone()).numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("norm", ["none", "1/n"])
def test_scipys_fft_gets_its_true_adjoint(norm) -> None:
    """pylops 2.8 scales this adjoint wrongly."""
    assert dot_test(FFT2D(GRID, engine="scipy", norm=norm, dtype="complex128")) < 1e-12


@pytest.mark.draws_globally
def test_real_images_of_a_complex_operator_have_real_gradients() -> None:
    A = as_torch(FFT2D(GRID, dtype="complex128"))
    x = torch.randn(2, *GRID, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: A(v).abs().square().sum(), (x,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own
def test_forward_mode() -> None:
    A, x = as_torch(pylops.MatrixMult(M)), torch.from_numpy(batch((4,), complex=False))
    _, derivative = torch.func.jvp(A, (x,), (x,))
    assert_allclose(derivative.numpy(), A(x).numpy())


def test_operator_is_lowered_once() -> None:
    op = pylops.MatrixMult(M)
    assert as_torch(op) is as_torch(op)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda op: pickle.loads(pickle.dumps(op))])
def test_copies_forget_the_lowered_map(duplicate) -> None:
    op = pylops.MatrixMult(M)
    size = len(pickle.dumps(op))
    A = as_torch(op)
    assert len(pickle.dumps(op)) < size + 200
    twin = duplicate(op)
    assert as_torch(twin) is not A
    assert_allclose(as_torch(twin)(torch.ones(1, 4)).numpy(), A(torch.ones(1, 4)).numpy())


def test_dense_matrix_is_not_copied() -> None:
    op = pylops.MatrixMult(M)
    x = torch.ones(1, 4, dtype=torch.float64)
    assert as_torch(op)._constant("A", x).data_ptr() == op.A.ctypes.data


def test_maps_can_be_pickled() -> None:
    A = as_torch(OPERATORS["VStack"])
    x = torch.ones(2, 4)
    assert_allclose(pickle.loads(pickle.dumps(A))(x).numpy(), A(x).numpy())


def test_unknown_operators_go_over_the_bridge() -> None:
    assert isinstance(as_torch(Unknown()), BridgeMap)


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(TypeError, match=r"LinearOperator, got ndarray"):
        as_torch(M)


def test_wrong_shapes_are_named() -> None:
    A = as_torch(pylops.Identity(GRID))
    with pytest.raises(ValueError, match=r"images of shape \(n, 5, 6\) from dims, got \(2, 30\)"):
        A(torch.ones(2, 30))
    with pytest.raises(ValueError, match=r"data of shape \(n, 5, 6\) from dimsd"):
        A.adjoint(torch.ones(5, 6))


def test_wrong_adjoint_is_named() -> None:
    class Wrong(Unknown):
        def _rmatvec(self, y):
            return 1.01 * M.T @ y

    with pytest.raises(ValueError, match=r"Wrong.*differ by"):
        dot_test(Wrong())


@pytest.mark.parametrize(
    "name", ["MatrixMult", "MatrixMult complex", "Convolve2D", "FFT2D padded", "Gradient", "Identity"]
)
def test_norm_is_the_largest_singular_value(name) -> None:
    op = OPERATORS[name]
    expected = np.linalg.norm(op.todense(), 2)
    assert_allclose(as_torch(op).norm(), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["MatrixMult", "MatrixMult sparse", "product", "scaled", "Restriction", "Gradient", "sum"]
)
def test_block_is_the_rows(name) -> None:
    A, op = as_torch(OPERATORS[name]), OPERATORS[name]
    x = torch.from_numpy(batch(op.dims, complex=False))
    block = A.block(1, 2)
    assert block.dimsd == (1, *A.dimsd[1:])
    assert_allclose(block(x).numpy(), A(x)[:, 1:2].numpy(), atol=1e-12)
    y = torch.from_numpy(batch(block.dimsd, complex=False))
    padded = torch.zeros(3, *A.dimsd, dtype=torch.float64)
    padded[:, 1:2] = y
    assert_allclose(block.adjoint(y).numpy(), A.adjoint(padded).numpy(), atol=1e-12)


def test_composition_by_hand() -> None:
    A, B = as_torch(pylops.MatrixMult(M)), as_torch(SQUARE)
    x = torch.from_numpy(batch((4,), complex=False))
    assert_allclose((A @ B)(x).numpy(), A(B(x)).numpy())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_same_on_cuda() -> None:
    for op in OPERATORS.values():
        A = as_torch(op)
        x = torch.from_numpy(batch(op.dims, complex=op.dtype.kind == "c" and op.clinear))
        assert_allclose(A(x.cuda()).cpu().numpy(), A(x).numpy(), atol=1e-9)


@pytest.mark.parametrize("matrix", [M, sp.csr_array(M)], ids=["dense", "sparse"])
def test_a_matrix_may_be_given_the_shape_of_images(matrix) -> None:
    op = pylops.MatrixMult(matrix)
    n = op.shape[1]
    op.dims = (2, n // 2)
    x = np.random.default_rng(0).normal(size=(3, *op.dims))
    A = as_torch(op)
    assert A.dims == (2, n // 2)
    assert_allclose(A(torch.from_numpy(x)).numpy(), x.reshape(3, -1) @ M.T, atol=1e-12)
    assert A.adjoint(A(torch.from_numpy(x))).shape == x.shape

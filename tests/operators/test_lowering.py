"""Every operator that is lowered, against pylops itself."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pylops
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose
from pylops.basicoperators import Conj
from pylops.medical import MRI2D
from pylops.signalprocessing import DCT, FFT, FFT2D, FFTND, Convolve1D, Convolve2D, ConvolveND
from scipy.sparse.linalg import aslinearoperator
from torch.autograd import gradcheck, gradgradcheck

from skinverse.operators import (
    AnalyticInverse,
    AngleOffset,
    DetectorOffset,
    GaussianBlur,
    LinearMap,
    as_torch,
    check_is_operator,
    dot_test,
    fourier_sampling,
    inpainting,
    parallel_beam,
    structurally_random,
)

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


# ---------------------------------------------------------------- maps beside their operators
class Mine(pylops.LinearOperator):
    """A user's own: with a matrix, a number, and a count of its calls."""

    def __init__(self, matrix: np.ndarray, scale: float = 1.0) -> None:
        self.matrix, self.scale, self.calls = matrix, scale, 0
        super().__init__(dtype=matrix.dtype, shape=matrix.shape)

    def _matvec(self, x):
        self.calls += 1
        return self.scale * (self.matrix @ x)

    def _rmatvec(self, y):
        return self.scale * (self.matrix.T @ y)


class WithMethods(Mine):
    """Chooses its methods when it is made, as some operators of pylops do."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(matrix)
        self._matvec = super()._matvec
        self.adjoint_of = super()._rmatvec


class WithClosure(Mine):
    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(matrix)
        self.apply = lambda x: self.matrix @ x
        self.call = partial(Mine._matvec, self)


class WithHandle(Mine):
    """Owns something that it frees at its end, and which no copy may free again."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__(matrix)
        self.handle, self.lock = ctypes.c_void_p(1), threading.Lock()

    def _matvec(self, x):
        assert self.handle.value == 1
        return super()._matvec(x)

    def __del__(self) -> None:
        self.handle.value = None


class WithSlots(Mine):
    __slots__ = ("extra",)

    def __init__(self, matrix: np.ndarray) -> None:
        self.extra = 1.0
        super().__init__(matrix)

    def _matvec(self, x):
        return self.extra * super()._matvec(x)


OWN = [Mine, WithMethods, WithClosure, WithHandle, WithSlots]


@every
def test_operator_is_lowered_once_and_nothing_is_written_on_it(op) -> None:
    before = dict(vars(op))
    A = as_torch(op)
    assert as_torch(op) is A
    assert vars(op).keys() == before.keys()
    op.matvec(np.ones(op.shape[1]))  # which pylops counts
    assert as_torch(op) is A


def test_a_map_is_remembered_also_when_nobody_else_keeps_it() -> None:
    remembered = {op: weakref.ref(as_torch(op)) for op in [*OPERATORS.values(), Mine(M), WithMethods(M)]}
    gc.collect()  # once for all: it takes half a second
    for op, linear in remembered.items():
        assert linear() is as_torch(op) is not None, op


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda op: pickle.loads(pickle.dumps(op))])
@pytest.mark.parametrize("make", [lambda: pylops.MatrixMult(M), lambda: GaussianBlur((2, 2), 1.0)])
def test_copies_and_pickles_carry_no_map(duplicate, make) -> None:
    op = make()
    size = len(pickle.dumps(op))
    A = as_torch(op)
    A.norm()
    assert len(pickle.dumps(op)) == size
    twin = duplicate(op)
    assert as_torch(twin) is not A
    x = torch.ones(1, *A.dims)
    assert_allclose(as_torch(twin)(x).numpy(), A(x).numpy())


def doubled(values: Any) -> None:
    values *= 2


def rescaled(op: Any) -> None:
    op.scale = 2.0


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "matrix": (lambda: pylops.MatrixMult(M.copy()), lambda op: doubled(op.A)),
    "sparse matrix": (lambda: pylops.MatrixMult(SPARSE.tocsr()), lambda op: doubled(op.A.data)),
    "diagonal": (lambda: pylops.Diagonal(rng.normal(size=GRID)), lambda op: doubled(op.diag)),
    "another diagonal": (lambda: pylops.Diagonal(np.ones(5)), lambda op: setattr(op, "diag", 2 * op.diag)),
    "product": (
        lambda: SQUARE @ (pylops.MatrixMult(M[:4].copy()) @ SQUARE),
        lambda op: doubled(op.args[1].args[0].A),
    ),
    "sum": (lambda: SQUARE + pylops.Diagonal(np.ones(4)), lambda op: doubled(op.args[1].diag)),
    "stack": (
        lambda: pylops.VStack([SQUARE, pylops.Diagonal(np.ones(4))]),
        lambda op: doubled(op.ops[1].diag),
    ),
    "adjoint": (lambda: pylops.MatrixMult(M.copy()).H, lambda op: doubled(op.A.A)),
    "scaling": (lambda: 2.0 * SQUARE, lambda op: setattr(op, "args", (SQUARE, 3.0))),
    "restriction": (
        lambda: pylops.Restriction(5, [0, 2]) @ pylops.Identity(5),
        lambda op: op.args[0].iava.__setitem__(0, 4),
    ),
    "convolution": (
        lambda: Convolve2D((7, 8), rng.normal(size=(3, 3)), offset=(1, 1)),
        lambda op: doubled(op.h),
    ),
    "shape": (lambda: pylops.MatrixMult(M.copy()), lambda op: setattr(op, "dims", (2, 2))),
    "blur": (lambda: GaussianBlur((6, 5), 1.0), lambda op: op.parameters["sigma"].fill_(2.0)),
    "inside an offset": (
        lambda: AngleOffset(pylops.Diagonal(np.ones((4, 4))), 0.1),
        lambda op: doubled(op.operator.diag),
    ),
    **{
        f"own matrix, {kind.__name__}": (partial(kind, M.copy()), lambda op: doubled(op.matrix))
        for kind in OWN
    },
    **{f"own number, {kind.__name__}": (partial(kind, M.copy()), rescaled) for kind in OWN},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_in_place_is_seen_with_norm_and_precision(name: str) -> None:
    make, change = CHANGES[name]
    op = make()
    before = as_torch(op)
    x = torch.from_numpy(batch(op.dims, complex=False, n=2))
    old = before(x), before(x.float()), before.norm()
    change(op)
    A = as_torch(op)
    assert A is not before
    assert as_torch(op) is A
    x = x.reshape(2, *op.dims)
    expected = np.stack([op.matvec(image.numpy().ravel()).reshape(op.dimsd) for image in x])
    assert_allclose(A(x).numpy(), expected, atol=1e-12)
    assert_allclose(A(x.float()).numpy(), expected, atol=1e-5)
    assert_allclose(A.norm(), np.linalg.norm(op.todense(), 2), rtol=1e-3)
    if name != "shape":
        assert not np.allclose(old[1], expected, atol=1e-3)
        if name != "restriction":
            assert abs(A.norm() - old[2]) > 1e-3


def test_maps_are_freed_with_their_operators() -> None:
    makes: list[Callable[[], Any]] = [
        *(partial(kind, M) for kind in OWN),
        *(
            partial(copy.deepcopy, op)
            for name, op in OPERATORS.items()
            if name[:3] not in ("FFT", "Fir", "Sec")
        ),
        lambda: OPERATORS["FFT2D shifted"] @ pylops.Diagonal(np.ones(GRID) + 0j, dtype="complex128"),
        lambda: pylops.FirstDerivative(5),
        lambda: pylops.signalprocessing.Bilinear(np.array([[0.3], [1.1]]), GRID),
        lambda: pylops.FunctionOperator(lambda x: M @ x, lambda y: M.T @ y, 6, 4),
        lambda: parallel_beam((5, 5), [0.1, 0.2], 7),
        lambda: DetectorOffset(parallel_beam((5, 5), [0.1, 0.2], 7), 0.5),
        lambda: 2.0 * GaussianBlur((5, 5), 1.0),
    ]
    once_there_were = [used(make()) for make in makes]
    gc.collect()
    for make, (operator, linear) in zip(makes, once_there_were, strict=True):
        assert operator() is None, make
        assert linear() is None, make


def used(op: Any) -> tuple[weakref.ref[Any], weakref.ref[Any]]:
    """An operator that nobody keeps, and its map, after it has been at work."""
    A = as_torch(op)
    A.norm()
    operator, linear = weakref.ref(op), weakref.ref(A)
    del A
    assert as_torch(op).norm() > -1
    return operator, linear


@pytest.mark.parametrize("kind", OWN)
def test_the_map_works_without_its_operator(kind: type) -> None:
    A = as_torch(kind(M))
    gc.collect()
    x = torch.ones(2, 4, dtype=torch.float64)
    assert_allclose(A(x).numpy(), x.numpy() @ M.T)
    assert_allclose(A.adjoint(A(x)).numpy(), x.numpy() @ M.T @ M)


def test_what_an_operator_writes_down_reaches_its_owner() -> None:
    op = Mine(M)
    as_torch(op)(torch.ones(3, 4))
    assert op.calls == 3


def test_many_threads_get_one_map() -> None:
    op = pylops.MatrixMult(rng.normal(size=(60, 60))) @ pylops.FirstDerivative(60)
    start = threading.Barrier(8)

    def ask(_: int) -> LinearMap:
        start.wait()
        return as_torch(op)

    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(ask, range(8)))
    assert all(A is maps[0] for A in maps)
    assert as_torch(op) is maps[0]


def test_operators_come_and_go_in_many_threads() -> None:
    def work(seed: int) -> float:
        total = 0.0
        for k in range(30):
            op = pylops.Diagonal(np.full(4, float(seed + k)))
            x = torch.ones(1, 4, dtype=torch.float64)
            total += float(as_torch(op)(x)[0, 0]) - (seed + k)
        return total

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(0, 800, 100))) == [0.0] * 8


def test_operators_that_define_equality_are_told_apart() -> None:
    class Equal(Mine):
        def __eq__(self, other: object) -> bool:
            return True

    a, b = Equal(M), Equal(2 * M)
    x = torch.ones(1, 4, dtype=torch.float64)
    assert_allclose(2 * as_torch(a)(x), as_torch(b)(x))


@pytest.mark.parametrize("family", [AngleOffset, DetectorOffset])
def test_an_operator_inside_another_is_not_compared_in_every_application(
    family: Any, monkeypatch: Any
) -> None:
    from skinverse.operators import _lowering

    A = as_torch(family(parallel_beam((5, 5), [0.1, 0.2], 7), 0.3))
    asked = []
    monkeypatch.setattr(_lowering, "digest", lambda *args, **kwargs: asked.append(1) or "")
    A.adjoint(A(torch.ones(2, 5, 5)))
    A.norm()
    assert not asked


def test_dense_matrix_is_not_copied() -> None:
    op = pylops.MatrixMult(M)
    x = torch.ones(1, 4, dtype=torch.float64)
    assert as_torch(op)._constant("A", x).data_ptr() == op.A.ctypes.data


def test_maps_can_be_pickled() -> None:
    A = as_torch(OPERATORS["VStack"])
    x = torch.ones(2, 4)
    assert_allclose(pickle.loads(pickle.dumps(A))(x).numpy(), A(x).numpy())


class Reused(pylops.LinearOperator):
    """Returns the same two arrays again and again, and works in place, as wrappers of compiled code do."""

    def __init__(self, dtype: str) -> None:
        self.data, self.image = np.zeros(6, dtype), np.zeros(4, dtype)
        super().__init__(dtype=dtype, shape=(6, 4))

    def _matvec(self, x):
        np.dot(M.astype(x.dtype), x, out=self.data)
        x[:] = np.nan
        return self.data

    def _rmatvec(self, y):
        np.dot(M.T.astype(y.dtype), y, out=self.image)
        y[:] = np.nan
        return self.image


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_operator_that_returns_its_own_buffer_is_copied(dtype: str) -> None:
    A, x = as_torch(Reused(dtype)), torch.from_numpy(batch((4,), complex=False).astype(dtype))
    before = x.clone()
    y = A(x)
    assert_allclose(y.numpy(), before.numpy() @ M.T, rtol=1e-5, atol=1e-5)
    assert_allclose(A.adjoint(y).numpy(), before.numpy() @ M.T @ M, rtol=1e-4, atol=1e-4)
    assert_allclose(x.numpy(), before.numpy())
    assert_allclose(y.numpy(), before.numpy() @ M.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [as_torch, dot_test, check_is_operator, AngleOffset, DetectorOffset])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (M, r"a NumPy array: use pylops\.MatrixMult\(A\)"),
        (SPARSE, r"a SciPy sparse matrix: use pylops\.MatrixMult\(A\)"),
        (sp.csr_matrix(M), r"a SciPy sparse matrix: use pylops\.MatrixMult\(A\)"),
        (aslinearoperator(M), r"a SciPy operator: use pylops\.aslinearoperator\(A\)"),
        (torch.from_numpy(M), r"a torch tensor: use pylops\.MatrixMult\(A\.numpy\(\)\)"),
        (None, "NoneType"),
        (pylops.MatrixMult, "ABCMeta"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_operator_is_refused_with_the_way_out(function: Any, value: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^\w+: expected a pylops\.LinearOperator, got {got}$"):
        function(value)


def test_the_way_out_works() -> None:
    x = torch.ones(1, 4, dtype=torch.float64)
    for op in (pylops.MatrixMult(SPARSE.tocsr()), pylops.aslinearoperator(aslinearoperator(SPARSE.tocsr()))):
        assert_allclose(as_torch(op)(x)[0].numpy(), SPARSE.toarray().sum(1))


# ---------------------------------------------------------------- analytic inverses
FBP, FILLING = AnalyticInverse.FILTERED_BACK_PROJECTION, AnalyticInverse.ZERO_FILLING
SCAN = parallel_beam((6, 6), [0.1, 0.9, 2.0], 9)
COILS = rng.normal(size=(3, 6, 5)) + 1j
INVERSES: dict[str, tuple[Callable[[], LinearMap], AnalyticInverse]] = {
    "projections": (lambda: as_torch(SCAN), FBP),
    "scaled": (lambda: as_torch(2.0 * SCAN), FBP),
    "weighted": (lambda: as_torch(pylops.Diagonal(np.ones((3, 9))) @ SCAN), FBP),
    "some views": (lambda: as_torch(SCAN).block(0, 2), FBP),
    "every second view": (lambda: as_torch(SCAN).block(0, 5, 2), FBP),
    "some views of a scaled one": (lambda: as_torch(2.0 * SCAN).block(1, 3), FBP),
    "stacked": (lambda: as_torch(pylops.VStack([SCAN, SCAN])), FBP),
    "angle offset": (lambda: as_torch(AngleOffset(SCAN, 0.2)), FBP),
    "detector offset": (lambda: as_torch(2.0 * DetectorOffset(SCAN, 0.2)), FBP),
    "at other parameters": (lambda: AngleOffset(SCAN).at({"angle": torch.tensor(0.3)}), FBP),
    "images by their cosines": (lambda: as_torch(SCAN @ DCT((6, 6))), FBP),
    "Fourier samples": (lambda: as_torch(fourier_sampling(np.eye(6, 5, dtype=bool))), FILLING),
    "coils": (lambda: as_torch(fourier_sampling(np.eye(6, 5, dtype=bool), COILS)), FILLING),
    "rotated Fourier samples": (
        lambda: as_torch(AngleOffset(fourier_sampling(np.eye(6, dtype=bool)))),
        FILLING,
    ),
    "cosines": (lambda: as_torch(structurally_random((4, 5), 7, random_state=0)), FILLING),
    "identity": (lambda: as_torch(pylops.Identity(5)), FBP | FILLING),
    "inpainting": (lambda: as_torch(inpainting(np.eye(3, dtype=bool))), FBP | FILLING),
    "matrix": (lambda: as_torch(pylops.MatrixMult(M)), AnalyticInverse.NONE),
    "projections of a matrix": (
        lambda: as_torch(SCAN @ pylops.Diagonal(np.ones(36)) @ Mine(np.eye(36))),
        AnalyticInverse.NONE,
    ),
    "restriction": (lambda: as_torch(pylops.Restriction(5, [1])), FBP | FILLING),
    "diagonal": (lambda: as_torch(pylops.Diagonal(np.ones(5)) @ pylops.Flip(5)), FBP | FILLING),
    "sum": (lambda: as_torch(SCAN + SCAN), FBP),
    "adjoint": (lambda: as_torch(SCAN.H), AnalyticInverse.NONE),
    "blur": (lambda: as_torch(GaussianBlur((5, 5), 1.0)), AnalyticInverse.NONE),
    "rotated blur": (lambda: as_torch(AngleOffset(GaussianBlur((5, 5), 1.0))), AnalyticInverse.NONE),
    "stack with a matrix": (
        lambda: as_torch(pylops.VStack([pylops.Identity(4), pylops.MatrixMult(M)])),
        AnalyticInverse.NONE,
    ),
    "rows of Fourier samples": (
        lambda: as_torch(fourier_sampling(np.eye(6, 5, dtype=bool))).block(0, 2),
        FILLING,
    ),
    "own": (lambda: as_torch(Mine(M)), AnalyticInverse.NONE),
}


@pytest.mark.parametrize("name", INVERSES)
def test_maps_say_whether_and_which_analytic_inverse_they_have(name: str) -> None:
    make, kind = INVERSES[name]
    A = make()
    assert A.analytic_inverse == kind
    assert A.has_analytic_inverse == bool(kind)
    y = torch.ones(2, *A.dimsd, dtype=torch.complex128 if kind == FILLING else torch.float64)
    if A.has_analytic_inverse:
        assert A.filtered_adjoint(y).shape == (2, *A.dims)
    else:
        with pytest.raises(TypeError):
            A.filtered_adjoint(y)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_map_that_claims_an_inverse_has_one(name: str) -> None:
    A = as_torch(OPERATORS[name])
    y = A(torch.zeros(1, *A.dims))
    if A.has_analytic_inverse:
        assert A.filtered_adjoint(y).shape == (1, *A.dims)
    else:
        with pytest.raises(TypeError):
            A.filtered_adjoint(y)


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

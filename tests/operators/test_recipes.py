"""Descriptions of operators: rebuilt to the bit, and harmless whatever a stranger writes into them."""

from __future__ import annotations

import multiprocessing
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pylops
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from pylops import LinearOperator, medical, signalprocessing

from skinverse.operators import (
    AngleOffset,
    DetectorOffset,
    GaussianBlur,
    build,
    convolution,
    describe,
    fan_beam,
    fourier_sampling,
    gaussian_blur,
    held_bytes,
    nonuniform_fourier,
    parallel_beam,
    structurally_random,
)
from skinverse.operators._entries import ENTRIES
from skinverse.operators._recipes import MAX_BYTES

RNG = np.random.default_rng(0)
DIMS = (6, 5)


def _complex(*shape: int) -> NDArray:
    return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


M, N = pylops.MatrixMult(RNG.normal(size=(6, 6))), pylops.MatrixMult(RNG.normal(size=(6, 6)))
C = pylops.MatrixMult(_complex(6, 6), dtype="complex128")
PROJECTIONS = parallel_beam((9, 9), np.arange(5) * np.pi / 5, 15)


def _named(op: LinearOperator) -> LinearOperator:
    op.dims, op.dimsd, op.name = (2, 3), (3, 2), "mine"
    return op


OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "identity": lambda: pylops.Identity(DIMS, dtype="float32"),
    "identity that pads": lambda: pylops.Identity(7, 5),
    "zero": lambda: pylops.Zero((2, 3), DIMS),
    "diagonal": lambda: pylops.Diagonal(RNG.normal(size=DIMS)),
    "diagonal along an axis": lambda: pylops.Diagonal(_complex(6), dims=DIMS, axis=0, dtype="complex128"),
    "restriction": lambda: pylops.Restriction(DIMS, [0, 3, 3, -1], axis=0),
    "dense matrix": lambda: pylops.MatrixMult(RNG.normal(size=(4, 6)).astype("float32"), dtype="float32"),
    "matrix on one axis": lambda: pylops.MatrixMult(_complex(4, 6), otherdims=(5,), dtype="complex128"),
    "sparse matrix": lambda: pylops.MatrixMult(scipy.sparse.random_array((4, 6), density=0.5, rng=0).tocsr()),
    "sparse matrix on one axis": lambda: pylops.MatrixMult(scipy.sparse.csr_array(np.eye(4, 6, 1)), (3,)),
    "flip": lambda: pylops.Flip(DIMS, axis=0),
    "roll": lambda: pylops.Roll(DIMS, axis=0, shift=-2),
    "transpose": lambda: pylops.Transpose((2, 3, 4), (2, 0, 1)),
    "pad": lambda: pylops.Pad(DIMS, [(1, 2), (0, 3)]),
    "pad a signal": lambda: pylops.Pad(5, (1, 2)),
    "sum": lambda: pylops.Sum((2, 3, 4), axis=1),
    "real": lambda: pylops.Real(DIMS),
    "imag": lambda: pylops.Imag(DIMS),
    "conj": lambda: pylops.basicoperators.Conj(DIMS),
    "first derivative": lambda: pylops.FirstDerivative(DIMS, axis=0, sampling=0.5, edge=True, order=5),
    "second derivative": lambda: pylops.SecondDerivative(DIMS, axis=1, kind="forward"),
    "gradient": lambda: pylops.Gradient(DIMS, sampling=(0.5, 2.0), kind="forward", edge=True),
    "laplacian": lambda: pylops.Laplacian(DIMS, weights=(1.0, 3.0), edge=True),
    "convolve 1d": lambda: signalprocessing.Convolve1D(DIMS, RNG.normal(size=4), offset=1, axis=0),
    "convolve 1d at the end": lambda: signalprocessing.Convolve1D(9, RNG.normal(size=5), offset=4),
    "convolve 1d, many filters": lambda: signalprocessing.Convolve1D(DIMS, RNG.normal(size=(6, 3)), offset=1),
    "convolve 1d, long": lambda: signalprocessing.Convolve1D(5, RNG.normal(size=8), offset=1),
    "convolve 2d": lambda: signalprocessing.Convolve2D(DIMS, RNG.normal(size=(3, 4)), offset=(0, 2)),
    "convolve nd": lambda: signalprocessing.ConvolveND(
        (3, 6, 5), RNG.normal(size=(2, 3)), offset=(1, 1), axes=(0, 2)
    ),
    "convolution": lambda: convolution(RNG.normal(size=(3, 4)), (2, 6, 5), boundary="valid", centre=(2, 0)),
    "convolution in single precision": lambda: convolution(
        RNG.normal(size=(3, 2)).astype("float32"), DIMS, boundary="reflect"
    ),
    "bilinear": lambda: signalprocessing.Bilinear(np.array([[0.3, 2.7], [1.1, 3.9]]), DIMS),
    "dct": lambda: signalprocessing.DCT(DIMS, type=3, axes=(1,), workers=2),
    "dct of one axis": lambda: signalprocessing.DCT(DIMS, axes=0),
    "dct of all axes": lambda: signalprocessing.DCT(DIMS),
    "fft": lambda: signalprocessing.FFT(DIMS, axis=0, nfft=8, sampling=0.3, fftshift_after=True),
    "real fft": lambda: signalprocessing.FFT(8, real=True, engine="scipy", dtype="float32", norm="1/n"),
    "fft 2d": lambda: signalprocessing.FFT2D(DIMS, nffts=(8, 8), norm="none", ifftshift_before=(True, False)),
    "real fft 2d": lambda: signalprocessing.FFT2D(
        DIMS, real=True, engine="scipy", dtype="float32", workers=1, overwrite_x=False
    ),
    "fft nd": lambda: signalprocessing.FFTND((2, 3, 4), axes=(2, 0), engine="scipy", dtype="complex64"),
    "mri, mask": lambda: medical.MRI2D((8, 8), (RNG.random((8, 8)) > 0.5).astype(float)),
    "mri, lines": lambda: medical.MRI2D(
        (8, 8), "vertical-uni", nlines=2, perc_center=0.25, fft_engine="scipy"
    ),
    "mri, radial": lambda: medical.MRI2D((8, 8), "radial-uni", nlines=3, perc_center=0.0),
    "parallel beam": lambda: parallel_beam((9, 8), np.linspace(0, 3, 4), 11, pixel_size=0.5, spacing=0.4),
    "fan beam": lambda: fan_beam(
        (9, 8),
        np.linspace(0, 6, 4),
        11,
        source_distance=20,
        detector_distance=3,
        curved=True,
        offset=[1, 0, 0, 2],
    ),
    "fourier sampling": lambda: fourier_sampling(RNG.random(DIMS) > 0.5, _complex(2, *DIMS)),
    "fourier sampling in single precision": lambda: fourier_sampling(
        RNG.random(DIMS) > 0.5, _complex(2, *DIMS).astype("complex64")
    ),
    "fourier sampling of columns": lambda: fourier_sampling(
        np.arange(DIMS[1]) % 2 == 0, _complex(2, *DIMS), centred=True
    ),
    "nonuniform fourier": lambda: nonuniform_fourier(RNG.uniform(-3, 3, (9, 2)), DIMS, density=np.arange(9)),
    "nonuniform fourier of coils": lambda: nonuniform_fourier(
        RNG.uniform(-3, 3, (9, len(DIMS))), DIMS, coil_maps=_complex(2, *DIMS)
    ),
    "structurally random": lambda: structurally_random((4, 4), 7, random_state=0),
    "gaussian blur": lambda: gaussian_blur((8, 8), 1.0),
    "vstack": lambda: pylops.VStack([M, 2 * N]),
    "hstack": lambda: pylops.HStack([M, N.H]),
    "blockdiag": lambda: pylops.BlockDiag([M, pylops.Gradient(DIMS)]),
    "kronecker": lambda: pylops.Kronecker(M, pylops.Identity(2)),
    "sum of two": lambda: M + N,
    "complex scaling": lambda: (1 + 2j) * C,
    "power": lambda: M**3,
    "adjoint": lambda: C.H,
    "transposed": lambda: C.T,
    "conjugate": lambda: C.conj(),
    "real part": lambda: C.toreal(),
    "imaginary part": lambda: C.toimag(forw=False),
    "renamed and reshaped": lambda: _named(M @ N),
    "blur of unknown width": lambda: GaussianBlur(DIMS, 1.2),
    "detector offset": lambda: DetectorOffset(PROJECTIONS, -1.4),
    "angle offset": lambda: AngleOffset(PROJECTIONS, 0.3),
}


def described(op: LinearOperator) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The description as a file has it: with copies, and with operators rebuilt from theirs."""

    def stored(value: Any) -> Any:
        if isinstance(value, LinearOperator):
            return build(*described(value))
        if isinstance(value, list):
            return [stored(item) for item in value]
        return value.copy() if hasattr(value, "copy") else value

    name, arguments, common = describe(op)
    return name, {key: stored(value) for key, value in arguments.items()}, common


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_rebuilt_to_the_bit(name: str) -> None:
    op = OPERATORS[name]()
    rebuilt = build(*described(op))
    assert type(rebuilt) is type(op)
    for attribute in ("shape", "dims", "dimsd", "dtype", "name", "clinear", "explicit", "forceflat"):
        assert getattr(rebuilt, attribute) == getattr(op, attribute), attribute
    for n, apply in ((op.shape[1], "matvec"), (op.shape[0], "rmatvec")):
        v = (
            _complex(n)
            if np.issubdtype(op.dtype, np.complexfloating)
            else RNG.normal(size=n).astype(op.dtype)
        )
        assert_array_equal(getattr(rebuilt, apply)(v), getattr(op, apply)(v))


def entries_of(op: LinearOperator) -> set[str]:
    name, arguments, _ = describe(op)
    inner = [*arguments.values(), *arguments.get("ops", [])]
    return {name}.union(*(entries_of(value) for value in inner if isinstance(value, LinearOperator)))


def test_every_entry_is_tested() -> None:
    tested = set.union(*(entries_of(make()) for make in OPERATORS.values()))
    assert set(ENTRIES) - tested == {
        "CT2D",
        "AstraProjector",
        "MbirtorchProjector",
    }  # tested where their packages are


def test_astra_operator_is_rebuilt() -> None:
    pytest.importorskip("astra")
    geometry = {"det_width": 1.0, "det_count": 12, "thetas": np.linspace(0, np.pi, 5), "engine": "cpu"}
    op = medical.CT2D((8, 8), **geometry, projector_type="linear")
    x = RNG.normal(size=64).astype("float32")
    assert_array_equal(build(*described(op)).matvec(x), op.matvec(x))


def test_processes_and_threads_are_not_described() -> None:
    with_threads = pylops.VStack([M, N], nproc=2, parallel_kind="multithread")
    try:
        assert describe(with_threads)[1].keys() == {"ops"}
        assert describe(OPERATORS["dct"]())[1].keys() == {"dims", "type", "axes", "dtype"}
    finally:
        with_threads.pool.shutdown()


def test_what_cannot_be_rebuilt_is_refused_when_it_is_described() -> None:
    with pytest.raises(ValueError, match=r"Smoothing1D has no recipe .* unfitted with operator=None"):
        describe(pylops.Smoothing1D(3, 6))
    with pytest.raises(ValueError, match="Smoothing1D has no recipe"):
        describe(M @ pylops.Smoothing1D(3, 6))
    with pytest.raises(ValueError, match="unknown arguments: 'plan'"):
        describe(signalprocessing.FFT(8, engine="scipy", plan=None))

    class Mine(pylops.Identity):
        pass

    with pytest.raises(ValueError, match="Mine has no recipe"):
        describe(Mine(3))


# ---------------------------------------------------------------- files of strangers
@contextmanager
def harmless() -> Iterator[None]:
    """What happens here takes less than 5 s and 500 MB, and starts nothing."""
    threads, processes = set(threading.enumerate()), set(multiprocessing.active_children())
    start = time.perf_counter()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500e6
    assert time.perf_counter() - start < 5
    assert set(threading.enumerate()) <= threads
    assert processes.issuperset(multiprocessing.active_children())


def refusal(name: Any, arguments: Any, common: Any) -> str:
    """The sentence with which a description is refused."""
    with harmless(), pytest.raises(ValueError) as caught:
        build(name, arguments, common)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 500
    return message


HOSTILE: list[Any] = [
    *(-1, 0, 2, 10**6, 3 * 10**8, 2**31, 2**40, 10**12, 2**63, 10**400, -(10**8), -(10**18)),
    *(0.0, -1.0, 1e-300, 1e308, float("nan"), float("inf"), 1j, complex("nan")),
    *(None, True, "", "a" * 10**6, "cuda", b"", (), [], {}, [[]], [None], {"nproc": 4}),
    *((0,), (-1, 3), (2**40,), (2**40, 2**40), (10**6, 10**6), (1,) * 9, (2,) * 70, [1.5], [2**31]),
    *([10**9, 10**9], [(10**12, 0), (0, 0)], [[3, 3]], [np.nan], [True, True], [0, 0], [5, 7]),
    *(np.zeros(0), np.zeros((2, 0)), np.full(3, np.nan), np.full((2, 3), 1e300), np.array([None])),
    *(np.array([2**62]), np.array([-100, 100]), np.zeros((3, 3, 3)), np.array(["a"]), np.int64(2**40)),
    *(scipy.sparse.csr_array((3, 10**12)), scipy.sparse.eye_array(4).tocsr(), np.dtype("O"), np.dtype("f2")),
    *(np.dtype("V8"), np.dtype("c16"), M, [M, M], [M] * 3 + [None], pylops.Identity(2**30), len, object()),
]
CASES = [(name, key) for name in OPERATORS for key in describe(OPERATORS[name]())[1]]


@pytest.mark.parametrize("name", OPERATORS)
def test_no_value_of_an_argument_does_harm(name: str) -> None:
    """Each value is refused in a sentence, or gives an operator that has been no more work than others."""
    entry, arguments, common = describe(OPERATORS[name]())
    for key in arguments:
        for value in HOSTILE:
            with harmless():
                try:
                    op = build(entry, arguments | {key: value}, common)
                except ValueError as error:
                    assert "\n" not in str(error)
                    assert 0 < len(str(error)) < 500
                else:
                    assert type(op) in ENTRIES[entry].types
                    describe(op)


@pytest.mark.parametrize("name", OPERATORS)
def test_unknown_and_missing_arguments_are_named(name: str) -> None:
    entry, arguments, common = describe(OPERATORS[name]())
    for extra in ("nproc", "parallel_kind", "inoutengine", "self", "__class__"):
        assert f"'{extra}'" in refusal(entry, arguments | {extra: 4}, common)
    for key in arguments.keys() - {*ENTRIES[entry].options}:
        without = {k: v for k, v in arguments.items() if k != key}
        assert "missing" in refusal(entry, without, common)
        assert key in refusal(entry, without, common)


@pytest.mark.parametrize("key", ["dtype", "dims", "dimsd", "clinear", "explicit", "forceflat", "name"])
def test_no_value_of_a_common_attribute_does_harm(key: str) -> None:
    entry, arguments, common = describe(M @ N)
    for value in HOSTILE:
        with harmless():
            try:
                op = build(entry, arguments, common | {key: value})
            except ValueError:
                continue
        assert op.shape == (6, 6)
    refusal(entry, arguments, {k: v for k, v in common.items() if k != key})
    assert "matmat_count" in refusal(entry, arguments, common | {"matmat_count": 1})


@pytest.mark.parametrize("broken", [None, 3, [], "", {1: 2}, len])
def test_descriptions_of_other_kinds_are_refused(broken: Any) -> None:
    entry, arguments, common = describe(M)
    refusal(broken, arguments, common)
    refusal("os.system", arguments, common)
    refusal(entry, broken, common)
    refusal(entry, arguments, broken)


SIZES: list[tuple[str, dict[str, Any]]] = [
    ("identity", {"N": (10**12,), "M": (10**12,)}),
    ("zero", {"N": (10**6, 10**6)}),
    ("fft", {"nfft": 3 * 10**8}),
    ("fft 2d", {"nffts": (10**8, 10)}),
    ("fft nd", {"nffts": (2**40, 2)}),
    ("parallel beam", {"n_detectors": 10**10}),
    ("parallel beam", {"n_detectors": 2**31}),
    ("matrix on one axis", {"otherdims": (10**9,)}),
    ("sparse matrix on one axis", {"otherdims": (10**8,)}),
    ("pad", {"pad": [(10**10, 0), (0, 0)]}),
    ("restriction", {"dims": (6, 2**29), "iava": np.zeros(10**4, dtype=int)}),
    ("blur of unknown width", {"dims": (1, 10**5)}),
    ("blur of unknown width", {"radius": 10**9}),
    ("convolution", {"dims": (2, 2**13, 2**14)}),
    ("gradient", {"dims": (2**15, 2**15 + 1)}),
    ("bilinear", {"dims": (6, 5, 2**31 - 1)}),
    ("transpose", {"dims": (2**11, 2**11, 2**11)}),
]


@pytest.mark.parametrize(("name", "change"), SIZES, ids=lambda value: str(value)[:40])
def test_sizes_beyond_the_budget_are_refused(name: str, change: dict[str, Any]) -> None:
    """The refusal names the budget, not some contradiction that a careful stranger would have avoided."""
    entry, arguments, common = describe(OPERATORS[name]())
    message = refusal(entry, arguments | change, common)
    assert any(unit in message for unit in ("values", "bytes", "from 1 to 2147483648"))


def test_indices_and_points_outside_are_refused() -> None:
    for name, change in [
        ("restriction", {"iava": np.array([0, 6])}),
        ("restriction", {"iava": np.array([-7])}),
        ("restriction", {"axis": 2}),
        ("bilinear", {"iava": np.array([[0.5], [4.0]])}),
        ("bilinear", {"iava": np.array([[np.nan], [1.0]])}),
        ("flip", {"axis": -3}),
        ("dct", {"axes": (0, 2)}),
    ]:
        entry, arguments, common = describe(OPERATORS[name]())
        assert "contradict" in refusal(entry, arguments | change, common)


def nested(depth: int) -> LinearOperator:
    op = pylops.Identity(2)
    for _ in range(depth - 1):
        op = pylops.HStack([op])
    return op


def test_operators_inside_operators_are_limited() -> None:
    build(*describe(nested(64)))
    with pytest.raises(ValueError, match="levels"):
        describe(nested(65))
    with pytest.raises(ValueError, match="levels"):
        describe(nested(5000))
    entry, _, common = describe(nested(64))
    assert "levels" in refusal(entry, {"ops": [nested(64)]}, common)


def test_parts_count_as_often_as_they_are_applied() -> None:
    doubled = pylops.Identity(2)
    with harmless(), pytest.raises(ValueError, match="parts"):
        for _ in range(60):
            doubled = build(*describe(doubled @ doubled))
    power = build(*describe(M**1000))
    with pytest.raises(ValueError, match="parts"):
        describe(power**1000)


def test_sizes_that_grow_from_level_to_level_are_refused() -> None:
    grown = pylops.Identity(2)
    with harmless(), pytest.raises(ValueError, match="values"):
        for _ in range(40):
            grown = build(*describe(pylops.BlockDiag([grown, grown])))
    product = pylops.Identity(10)
    with harmless(), pytest.raises(ValueError, match="values"):
        for _ in range(40):
            product = build(*describe(pylops.Kronecker(product, pylops.Identity(10))))


def test_memory_is_counted_through_all_levels() -> None:
    n = MAX_BYTES // 24 // 3
    ffts = [build(*describe(signalprocessing.FFT(8, nfft=2**16))) for _ in range(2)]
    assert held_bytes(*describe(ffts[0])[:2]) == 24 * 2**16
    assert held_bytes(*describe(pylops.VStack(ffts))[:2]) == 0
    entry, arguments, _ = describe(ffts[0])
    assert held_bytes(entry, arguments | {"nfft": n}) > MAX_BYTES / 4
    with pytest.raises(ValueError, match="no recipe"):
        held_bytes("FunctionOperator", {})
    with pytest.raises(ValueError, match="nfft"):
        held_bytes(entry, arguments | {"nfft": -1})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(HOSTILE[:30]),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.sampled_from(CASES), VALUES, st.data())
def test_random_changes_do_no_harm(case: tuple[str, str], value: Any, data: st.DataObject) -> None:
    name, key = case
    entry, arguments, common = describe(OPERATORS[name]())
    other = data.draw(st.sampled_from(sorted(arguments)))
    changes = {key: value, other: data.draw(VALUES)}
    with harmless():
        try:
            build(entry, arguments | changes, common)
        except ValueError as error:
            assert "\n" not in str(error)

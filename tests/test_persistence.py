"""Files give back what was saved, and nothing that a stranger put into them is run or costs much."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pylops
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pylops import medical, signalprocessing
from sklearn.frozen import FrozenEstimator
from torch import nn

import skinverse
from skinverse._files import pack, read, write_atomically
from skinverse._parameters import Integer, Parametrized, Real, fitted, parameter
from skinverse.persistence import load, save

RNG = np.random.default_rng(0)


class Toy(Parametrized):
    """A stand-in with a parameter that may be anything, fitted attributes and a network."""

    operator: Any = parameter(default=None, kw_only=False, doc="Operator.")
    value: Any = parameter(default=None, doc="Anything.")
    n_layers: int = parameter(default=1, allowed=Integer(ge=1), doc="Number of layers.")
    width: int = parameter(default=2, allowed=Integer(ge=1), doc="Width of the network.")
    memory: Any = parameter(default=None, doc="Cache.")

    operator_: Any = fitted(doc="Operator.")
    module_: nn.Module = fitted(doc="Network.")
    history_: list[dict[str, Any]] = fitted(doc="Losses.")
    lam_: float = fitted(allowed=Real(ge=0), doc="Weight.")

    def fit(self) -> Toy:
        self.operator_, self.history_, self.lam_ = self.operator, [{"epoch": 1, "loss": 0.5}], 0.1
        self.module_ = self._make_module().double()
        self._scratch = object()
        return self

    def _make_module(self) -> nn.Module:
        layers = [Layer(self.operator_.shape[1], self.width) for _ in range(self.n_layers)]
        return nn.Sequential(*layers, nn.BatchNorm1d(self.width))


class Layer(nn.Module):
    """A module with something that is no weight."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_out, n_in))
        self.signs = torch.tensor([1.0, -1.0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.skinverse"


def read_back(path: Path) -> Any:
    return load(path, classes=[Toy])


def round_trip(estimator: Any, path: Path) -> Any:
    save(estimator, path)
    return read_back(path)


# ---------------------------------------------------------------------- operators
def _complex(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


M, N = pylops.MatrixMult(RNG.normal(size=(6, 6))), pylops.MatrixMult(RNG.normal(size=(6, 6)))
C = pylops.MatrixMult(_complex(6, 6), dtype="complex128")
DIMS = (6, 5)


def _coil() -> pylops.LinearOperator:
    lines = pylops.Restriction(DIMS, [0, 3, 4], axis=0, dtype="complex128")
    return lines @ signalprocessing.FFT2D(DIMS) @ pylops.Diagonal(_complex(*DIMS), dtype="complex128")


def _named(op: pylops.LinearOperator) -> pylops.LinearOperator:
    op.dims, op.dimsd, op.name = (2, 3), (3, 2), "mine"
    return op


OPERATORS = {
    "identity": lambda: pylops.Identity(DIMS, dtype="float32"),
    "identity that pads": lambda: pylops.Identity(7, 5),
    "zero": lambda: pylops.Zero((2, 3), DIMS),
    "diagonal": lambda: pylops.Diagonal(RNG.normal(size=DIMS)),
    "diagonal along an axis": lambda: pylops.Diagonal(_complex(6), dims=DIMS, axis=0, dtype="complex128"),
    "restriction": lambda: pylops.Restriction(DIMS, [0, 3, 3, 5], axis=0),
    "dense matrix": lambda: pylops.MatrixMult(RNG.normal(size=(4, 6)).astype("float32"), dtype="float32"),
    "matrix on one axis": lambda: pylops.MatrixMult(_complex(4, 6), otherdims=(5,), dtype="complex128"),
    "sparse matrix": lambda: pylops.MatrixMult(scipy.sparse.random_array((4, 6), density=0.5, rng=0).tocsr()),
    "old sparse matrix": lambda: pylops.MatrixMult(scipy.sparse.csr_matrix(np.eye(4, 6, 1))),
    "flip": lambda: pylops.Flip(DIMS, axis=0),
    "roll": lambda: pylops.Roll(DIMS, axis=0, shift=-2),
    "transpose": lambda: pylops.Transpose((2, 3, 4), (2, 0, 1)),
    "pad": lambda: pylops.Pad(DIMS, [(1, 2), (0, 3)]),
    "pad a signal": lambda: pylops.Pad(5, (1, 2)),
    "sum": lambda: pylops.Sum((2, 3, 4), axis=1),
    "sum of a signal": lambda: pylops.Sum((5,), axis=0),
    "real": lambda: pylops.Real(DIMS),
    "imag": lambda: pylops.Imag(DIMS),
    "conj": lambda: pylops.basicoperators.Conj(DIMS),
    "first derivative": lambda: pylops.FirstDerivative(
        DIMS, axis=0, sampling=0.5, kind="centered", edge=True, order=5
    ),
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
    "dct": lambda: signalprocessing.DCT(DIMS, type=3, axes=(1,)),
    "fft": lambda: signalprocessing.FFT(DIMS, axis=0, nfft=8, sampling=0.3, fftshift_after=True),
    "real fft": lambda: signalprocessing.FFT(8, real=True, engine="scipy", dtype="float32", norm="1/n"),
    "fft 2d": lambda: signalprocessing.FFT2D(DIMS, nffts=(8, 8), norm="none", ifftshift_before=(True, False)),
    "real fft 2d": lambda: signalprocessing.FFT2D(
        DIMS, real=True, engine="scipy", dtype="float32", workers=1
    ),
    "fft nd": lambda: signalprocessing.FFTND((2, 3, 4), axes=(2, 0), engine="scipy", dtype="complex64"),
    "bilinear": lambda: signalprocessing.Bilinear(np.array([[0.3, 2.7], [1.1, 3.9]]), DIMS),
    "mri, mask": lambda: medical.MRI2D((8, 8), (RNG.random((8, 8)) > 0.5).astype(float)),
    "mri, drawn lines": lambda: medical.MRI2D(
        (8, 8), "vertical-uni", nlines=2, perc_center=0.25, fft_engine="scipy"
    ),
    "mri, radial": lambda: medical.MRI2D((8, 8), "radial-uni", nlines=3, perc_center=0.0),
    "parallel beam": lambda: skinverse.operators.parallel_beam(
        (9, 8), np.linspace(0, 3, 4), 11, pixel_size=0.5, spacing=0.4
    ),
    "fan beam": lambda: skinverse.operators.fan_beam(
        (9, 8),
        np.linspace(0, 6, 4),
        11,
        source_distance=20,
        detector_distance=3,
        curved=True,
        offset=[1, 0, 0, 2],
    ),
    "fourier sampling": lambda: skinverse.operators.fourier_sampling(RNG.random(DIMS) > 0.5),
    "structurally random": lambda: skinverse.operators.structurally_random((4, 4), 7, random_state=0),
    "gaussian blur": lambda: skinverse.operators.gaussian_blur((8, 8), 1.0),
    "inpainting": lambda: skinverse.operators.inpainting(RNG.random(DIMS) > 0.5),
    "vstack": lambda: pylops.VStack([M, 2 * N]),
    "hstack": lambda: pylops.HStack([M, N.H]),
    "blockdiag": lambda: pylops.BlockDiag([M, pylops.Gradient(DIMS)]),
    "kronecker": lambda: pylops.Kronecker(M, pylops.Identity(2)),
    "product": lambda: M @ N,
    "sum of two": lambda: M + N,
    "complex scaling": lambda: (1 + 2j) * C,
    "power": lambda: M**3,
    "adjoint": lambda: C.H,
    "transposed": lambda: C.T,
    "conjugate": lambda: C.conj(),
    "real part": lambda: C.toreal(),
    "imaginary part": lambda: C.toimag(forw=False),
    "renamed and reshaped": lambda: _named(M @ N),
    "blur of unknown width": lambda: skinverse.operators.GaussianBlur((6, 5), 1.2),
    "shifted detector": lambda: skinverse.operators.DetectorOffset(_projections(), -1.4),
    "turned": lambda: skinverse.operators.AngleOffset(_projections(), 0.3),
    "multi-coil": lambda: pylops.VStack([_coil(), _coil()]),
}


def _projections() -> pylops.LinearOperator:
    return skinverse.operators.parallel_beam((9, 9), np.arange(5) * np.pi / 5, 15)


def _vector(size: int, dtype) -> np.ndarray:
    complex_too = np.issubdtype(dtype, np.complexfloating)
    return _complex(size) if complex_too else RNG.normal(size=size).astype(dtype)


def check_operator_round_trip(operator: pylops.LinearOperator, path: Path) -> None:
    rebuilt = round_trip(Toy(operator), path).operator
    assert type(rebuilt) is type(operator)
    for name in ("shape", "dims", "dimsd", "dtype", "name", "clinear", "explicit", "forceflat"):
        assert getattr(rebuilt, name) == getattr(operator, name), name
    for _ in range(2):
        x, y = _vector(operator.shape[1], operator.dtype), _vector(operator.shape[0], operator.dtype)
        assert_array_equal(rebuilt.matvec(x), operator.matvec(x))
        assert_array_equal(rebuilt.rmatvec(y), operator.rmatvec(y))


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_rebuilt_to_the_bit(name, path) -> None:
    check_operator_round_trip(OPERATORS[name](), path)


def test_astra_operator_is_rebuilt(path) -> None:
    pytest.importorskip("astra")
    geometry = {"det_width": 1.0, "det_count": 12, "thetas": np.linspace(0, np.pi, 5), "engine": "cpu"}
    check_operator_round_trip(medical.CT2D((8, 8), **geometry, projector_type="linear"), path)


def test_rays_are_traced_again_not_stored(path) -> None:
    operator = skinverse.operators.parallel_beam((64, 64), np.linspace(0, 3, 60), 91)
    operator.matvec(np.ones(64 * 64))  # so that its matrix is there
    save(Toy(operator), path)
    assert path.stat().st_size < 10_000


def test_saving_again_does_not_grow_the_file(path) -> None:
    operator = OPERATORS["convolve 2d"]()
    save(Toy(operator), path)
    first = path.read_bytes()
    second = round_trip(read_back(path), path)
    save(second, path)
    assert len(path.read_bytes()) == pytest.approx(len(first), rel=0.1)


def test_unknown_operator_is_named_with_the_way_out(path) -> None:
    operator = M @ pylops.Smoothing1D(3, 6)
    with pytest.raises(ValueError, match=r"Smoothing1D has no recipe .* save it unfitted with operator=None"):
        save(Toy(operator), path)
    assert not path.exists()


def test_subclass_of_a_known_operator_is_unknown(path) -> None:
    class Mine(pylops.Identity):
        pass

    with pytest.raises(ValueError, match="Mine has no recipe"):
        save(Toy(Mine(3)), path)


# ---------------------------------------------------------------------- estimators and values
def test_shared_operator_is_stored_once_and_stays_shared(path: Path) -> None:
    big = pylops.MatrixMult(RNG.normal(size=(100, 100)))
    loaded = round_trip(Toy(big, value=[big, big.A, 2 * big]).fit(), path)
    assert loaded.operator_ is loaded.operator is loaded.value[0] is loaded.value[2].args[0]
    assert loaded.value[1] is loaded.operator.A
    assert path.stat().st_size < 1.5 * big.A.nbytes


def test_fitted_estimator_comes_back_with_its_weights(path: Path) -> None:
    toy = Toy(M, n_layers=3).fit()
    with torch.no_grad():
        for value in toy.module_.state_dict().values():
            value.add_(1)
    loaded = round_trip(toy, path)
    for name, value in toy.module_.state_dict().items():
        assert_array_equal(loaded.module_.state_dict()[name], value)
        assert loaded.module_.state_dict()[name].dtype == value.dtype
    assert all(p.requires_grad for p in loaded.module_.parameters())
    assert loaded.module_[0].signs.tolist() == [1, -1]
    assert not loaded.module_.training
    assert loaded.history_ == toy.history_
    assert loaded.lam_ == toy.lam_
    assert not hasattr(loaded, "_scratch")


def test_unfitted_estimator_comes_back_unfitted(path: Path) -> None:
    assert not hasattr(round_trip(Toy(M), path), "operator_")


def test_same_estimator_gives_the_same_bytes(path: Path) -> None:
    toy = Toy(M, value={"a": np.arange(3)}).fit()
    save(toy, path)
    first = path.read_bytes()
    save(toy, path)
    assert path.read_bytes() == first


def test_failed_save_leaves_the_older_file_whole(path: Path) -> None:
    save(skinverse.Tikhonov(lam=1.0), path)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            save(skinverse.Tikhonov(pylops.MatrixMult(np.eye(100)), lam=2.0), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(ValueError, match="no place"):
        save(Toy(value=len), path)
    assert path.read_bytes() == old
    assert load(path).lam == 1.0
    assert list(path.parent.iterdir()) == [path]


VALUES = [
    None,
    True,
    7,
    10**40,
    0.1,
    float("inf"),
    -float("inf"),
    "\u00f8 \n",
    1 - 2j,
    complex(float("inf"), -0.0),
    (1, [2.5, (None,)], {"a": {1: "b", "$c": []}}),
    np.float32(0.1),
    np.float64("inf"),
    np.int8(-3),
    np.bool_(True),
    np.complex64(1 + 1j),
    np.dtype("float32"),
    np.dtype(">c16"),
    {"kind": "estimator", "class": "Toy"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_with_its_type(value: Any, path: Path) -> None:
    loaded = round_trip(Toy(value=value), path).value
    assert loaded == value
    assert type(loaded) is type(value)


ARRAYS = [
    np.arange(6.0).reshape(2, 3).T,
    np.array(3, dtype="int16"),
    np.zeros((0, 4), dtype="float32"),
    np.array([True, False]),
    np.array([np.nan, -np.inf, -0.0], dtype="float16"),
    np.array([2 + 1j, 3], dtype="complex64"),
    np.array(1 + 1j),
    np.arange(3, dtype=">f8"),
    torch.arange(4, dtype=torch.int64),
    torch.tensor([0.1, float("nan")], dtype=torch.bfloat16),
    torch.tensor([[1 + 2j, 3 - 1j]], dtype=torch.complex128).conj(),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{type(a).__name__} {a.dtype} {tuple(a.shape)}")
def test_array_comes_back_with_its_type_and_can_be_written(value: Any, path: Path) -> None:
    loaded = round_trip(Toy(value=value), path).value
    assert type(loaded) is type(value)
    assert loaded.shape == value.shape
    if isinstance(value, np.ndarray):
        assert loaded.dtype == value.dtype.newbyteorder("=")
        assert_array_equal(loaded, value)
    else:
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded.nan_to_num(), value.resolve_conj().nan_to_num())
    loaded[...] = 0


def test_masked_array_comes_back_with_its_mask(path: Path) -> None:
    value = np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]])
    loaded = round_trip(Toy(value=value), path).value
    assert type(loaded) is np.ma.MaskedArray
    assert_array_equal(loaded.mask, value.mask)
    assert_array_equal(loaded.data, value.data)


def test_random_state_goes_on_where_it_was(path: Path) -> None:
    generator = np.random.RandomState(3)
    generator.normal(size=5)
    loaded = round_trip(Toy(value=generator), path).value
    assert_array_equal(loaded.normal(size=4), generator.normal(size=4))


def test_places_on_this_machine_are_not_stored(path: Path, tmp_path: Path) -> None:
    cache = joblib.Memory(tmp_path / "cache", verbose=0)
    trainer = skinverse.Trainer(lr=0.1, checkpoint=tmp_path / "checkpoint")
    loaded = round_trip(Toy(memory=cache, value=trainer), path)
    assert loaded.memory is None
    assert loaded.value.checkpoint is None
    assert loaded.value.lr == 0.1


def test_callbacks_have_no_place(path: Path) -> None:
    from skorch.callbacks import EarlyStopping

    with pytest.raises(ValueError, match=r"Trainer.callbacks cannot be saved: .*EarlyStopping"):
        save(Toy(value=skinverse.Trainer(callbacks=[EarlyStopping()])), path)


def test_nested_estimators_come_back(path: Path) -> None:
    loaded = round_trip(Toy(M, value=[Toy(M, value=3), FrozenEstimator(Toy(value=4))]), path)
    assert loaded.value[0].value == 3
    assert loaded.value[0].operator is loaded.operator
    assert isinstance(loaded.value[1], FrozenEstimator)
    assert loaded.value[1].estimator.value == 4


@pytest.mark.parametrize(
    "value",
    [
        len,
        object(),
        np.array([None]),
        np.array(["a"]),
        np.zeros(2, dtype="f4,f4"),
        np.longdouble(1),
        np.zeros(2, dtype=np.longdouble),
        np.ma.zeros(2, dtype=np.longdouble),
        np.ones((1, 1)).view(np.matrix),
        np.dtype("f4,f4"),
        np.random.RandomState(np.random.PCG64(0)),
        torch.eye(2).to_sparse(),
        {(1, 2): 3},
        nn.ReLU(),
        Toy,
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_place_is_refused_by_name(value: Any, path: Path) -> None:
    with pytest.raises(ValueError, match=r"Toy.value cannot be saved: there is no place for"):
        save(Toy(value=[value]), path)
    assert not path.exists()


def test_what_load_would_refuse_is_not_saved(path: Path) -> None:
    with pytest.raises(ValueError, match=r"Toy.value cannot be saved: 5001 operators"):
        save(Toy(value=[OPERATORS["flip"]() for _ in range(6000)]), path)
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(ValueError, match="nesting"):
        save(Toy(value=deep), path)
    with pytest.raises(ValueError, match="n_layers: expected a whole number >= 1"):
        save(Toy(n_layers=0), path)
    toy = Toy()
    toy.lam_ = -1.0
    with pytest.raises(ValueError, match="Toy.lam_: expected a number >= 0"):
        save(toy, path)
    toy = Toy(M).fit().set_params(width=3)
    with pytest.raises(ValueError, match="its weights are those of another module"):
        save(toy, path)
    toy = Toy()
    toy.found_ = 2
    with pytest.raises(ValueError, match="the attribute found_ of Toy is not declared"):
        save(toy, path)
    assert not path.exists()


def test_foreign_estimators_are_refused(path: Path) -> None:
    from sklearn.linear_model import Ridge

    with pytest.raises(ValueError, match=r"Ridge is no estimator of skinverse"):
        save(Ridge(), path)  # type: ignore[arg-type]

    class Tikhonov(Parametrized):
        """Another one."""

    with pytest.raises(ValueError, match="has the name of a class of skinverse"):
        save(Tikhonov(), path)
    save(Toy(), path)
    with pytest.raises(ValueError, match="it holds a 'Toy', which is no estimator of this skinverse"):
        load(path)


# ---------------------------------------------------------------------- files of another kind
def test_file_names_its_format_and_holds_no_pickle(path: Path) -> None:
    save(Toy(M, value={"a": np.arange(3)}).fit(), path)
    tree = read(path)
    assert (tree["format"], tree["format_version"]) == ("skinverse", 2)
    assert tree["skinverse_version"] == skinverse.__version__
    with pytest.raises(Exception):  # noqa: B017
        pickle.loads(path.read_bytes())


def test_truncated_file_is_refused(path: Path) -> None:
    save(Toy(M).fit(), path)
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="toy.skinverse cannot be loaded: the contents are damaged"):
            read_back(path)


def test_one_wrong_byte_is_found_or_harmless(path: Path) -> None:
    toy = Toy(M).fit()
    save(toy, path)
    whole = path.read_bytes()
    found = 0
    for position in np.random.default_rng(0).integers(len(whole), size=60):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            loaded = read_back(path)
        except ValueError:
            found += 1
        else:
            assert_array_equal(loaded.operator.A, toy.operator.A)
    assert found > 55


FOREIGN = [b"", b"text", pickle.dumps({"format": "skinverse"}), b"PK" + bytes(100), RNG.bytes(200)]


@pytest.mark.parametrize("data", FOREIGN)
def test_foreign_file_is_refused(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be loaded: the contents are damaged or of another kind"):
        load(path)


def test_file_of_format_1_is_refused_as_such(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", '{"format": "skinverse", "format_version": 1}')
        file.writestr("arrays.safetensors", b"")
    with pytest.raises(ValueError, match=r"it is in format 1, written by .*, but .* reads format 2"):
        load(path)


def test_missing_file_is_a_missing_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(path)


# ---------------------------------------------------------------------- forged files
Tree = dict[str, Any]


def forge(path: Path, estimator: Any, edit: Callable[[Tree], Any]) -> None:
    """Save an estimator, edit the tree in the file, and make its checksum right again."""
    save(estimator, path)
    tree = read(path)
    edit(tree)
    write_atomically(path, pack(tree))


def assert_refused(path: Path, message: str) -> None:
    """In one sentence, soon, with little memory, without a process."""
    start, processes = time.process_time(), set(multiprocessing.active_children())
    with limited_memory(500_000_000), pytest.raises(ValueError, match=message) as caught:
        read_back(path)
    assert time.process_time() - start < 5
    assert str(caught.value).startswith(f"{path} cannot be loaded: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert processes.issuperset(multiprocessing.active_children())


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let the process have so many bytes more than it has; where the system can."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(statm.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def parameters(tree: Tree) -> Tree:
    return tree["estimator"]["parameters"]


def operator_node(tree: Tree) -> Tree:
    return parameters(tree)["operator"]


def put(value: Any) -> Callable[[Tree], Any]:
    """Write a node in the place of the parameter that may be anything."""
    return lambda tree: parameters(tree).update(value=value)


def nested(depth: int, around: Callable[[Any], Any], node: Any) -> Any:
    for _ in range(depth):
        node = around(node)
    return node


def fourier(size: int) -> Tree:
    """An operator that keeps its frequencies, in a description of few bytes."""
    dtype = {"kind": "dtype", "name": "<f8"}
    shifts = {"ifftshift_before": False, "fftshift_after": False}
    arguments = {"dims": (2,), "axis": 0, "nfft": size, "sampling": 1.0, "norm": "ortho", "real": False}
    common = {"dims": (2,), "dimsd": (size,), "clinear": True, "explicit": False, "forceflat": None}
    return {
        "kind": "operator",
        "name": "FFT",
        "arguments": arguments | shifts | {"dtype": dtype, "engine": "numpy"},
        "common": common | {"name": None, "dtype": {"kind": "dtype", "name": "<c16"}},
        "id": 1000 + size,
    }


STATE = np.random.RandomState(0).get_state()

# What a stranger may write, and what the refusal says. A parameter that may be anything is the worst case.
FORGED: dict[str, tuple[Callable[[Tree], Any], str]] = {
    "other format": (lambda tree: tree.update(format="other"), "it is no file of an estimator"),
    "newer format": (
        lambda tree: tree.update(format_version=3, skinverse_version="7.0"),
        "format 3, written by skinverse 7.0, .* reads format 2",
    ),
    "no estimator": (lambda tree: tree.pop("estimator"), "KeyError: 'estimator'"),
    "estimator that is a number": (lambda tree: tree.update(estimator=3), "holds no estimator, but a int"),
    # -- names
    "class of another package": (
        lambda tree: tree["estimator"].update({"class": "Popen"}),
        "holds a 'Popen'",
    ),
    "public function": (lambda tree: tree["estimator"].update({"class": "load"}), "holds a 'load'"),
    "public module": (lambda tree: tree["estimator"].update({"class": "solvers"}), "holds a 'solvers'"),
    "class that is a list": (lambda tree: tree["estimator"].update({"class": []}), "."),
    "unknown parameter": (lambda tree: parameters(tree).update(shell=True), "'shell' is no parameter of Toy"),
    "method as a parameter": (lambda tree: parameters(tree).update(fit=1), "'fit' is no parameter of Toy"),
    "method as an attribute": (
        lambda tree: tree["estimator"]["fitted"].update(fit=1),
        "'fit' is no fitted attribute of Toy",
    ),
    "module as an attribute": (
        lambda tree: tree["estimator"]["fitted"].update(module_=None),
        "'module_' is no fitted attribute of Toy",
    ),
    "parameter as an attribute": (
        lambda tree: tree["estimator"]["fitted"].update(n_layers=10**9),
        "'n_layers' is no fitted attribute of Toy",
    ),
    "parameter out of range": (
        lambda tree: parameters(tree).update(n_layers=0),
        r"Toy.n_layers: expected a whole number >= 1, got 0",
    ),
    "attribute of another type": (
        lambda tree: tree["estimator"]["fitted"].update(lam_="1"),
        r"Toy.lam_: expected a number >= 0, got '1'",
    ),
    "huge value of another type": (
        lambda tree: parameters(tree).update(n_layers=["x" * 100] * 100_000),
        r"Toy.n_layers: expected a whole number >= 1, got \[",
    ),
    # -- values
    "unknown kind": (put({"kind": "pickle", "value": "gASVAAAA"}), "unknown kind 'pickle'"),
    "no kind": (put({"value": 1}), "KeyError: 'kind'"),
    "kind that is a list": (put({"kind": []}), "."),
    "structured dtype": (put({"kind": "dtype", "name": "(100000,100000)f8"}), "is no dtype of numbers"),
    "dtype of objects": (put({"kind": "dtype", "name": "|O8"}), "is no dtype of numbers"),
    "array that is a list": (
        put({"kind": "array", "value": [1], "id": 99}),
        "expected a ndarray, got a list",
    ),
    "mask of another shape": (
        put({"kind": "masked array", "data": np.zeros(3), "mask": np.zeros(2, bool), "id": 99}),
        "another mask",
    ),
    "mask of numbers": (
        put({"kind": "masked array", "data": np.zeros(3), "mask": np.zeros(3), "id": 99}),
        "another mask",
    ),
    "parameters that contradict each other": (
        put(
            {"kind": "estimator", "class": "Trainer", "fitted": {}, "weights": None}
            | {"parameters": {"max_epochs": 1, "n_steps": 1}}
        ),
        "both say how long",
    ),
    "random state beyond its words": (
        put({"kind": "random state", "state": (*STATE[:2], 10**6, *STATE[3:])}),
        "random state has another form",
    ),
    "random state of few words": (
        put({"kind": "random state", "state": (STATE[0], STATE[1][:9], *STATE[2:])}),
        "random state has another form",
    ),
    "sparse matrix with foreign indices": (
        put(
            {"kind": "sparse matrix", "array": True, "shape": (3, 3), "id": 99}
            | {"data": np.ones(1), "indices": np.array([1000]), "indptr": np.array([0, 1, 1, 1])}
        ),
        "indices",
    ),
    "sparse matrix of many rows": (
        put(
            {"kind": "sparse matrix", "array": True, "shape": (10**12, 3), "id": 99}
            | {"data": np.ones(1), "indices": np.array([0]), "indptr": np.array([0, 1])}
        ),
        "index pointer size",
    ),
    "reference to nothing": (put({"kind": "same", "id": 99}), "refers to a value that does not come before"),
    "reference to itself": (
        put({"kind": "array", "value": {"kind": "same", "id": 99}, "id": 99}),
        "expected a ndarray, got a dict",
    ),
    "operator of itself": (
        put(
            {"kind": "operator", "name": "adjoint", "common": {}, "id": 99}
            | {"arguments": {"A": {"kind": "same", "id": 99}}}
        ),
        "refers to a value that does not come before",
    ),
    "a million references": (
        lambda tree: parameters(tree).update(n_layers=[{"kind": "same", "id": 0}] * 300_000),
        "Toy.n_layers: expected a whole number",
    ),
    "deep estimators": (
        put(nested(60, lambda inner: {"kind": "frozen estimator", "estimator": inner}, {"kind": "x"})),
        "unknown kind 'x'",
    ),
    # -- operators
    "unknown operator": (
        lambda tree: operator_node(tree).update(name="FunctionOperator"),
        "FunctionOperator",
    ),
    "operator with a foreign argument": (
        lambda tree: operator_node(tree)["arguments"].update(nproc=4),
        "nproc",
    ),
    "operator of another shape": (
        lambda tree: operator_node(tree)["common"].update(dims=(1000,)),
        "dims",
    ),
    "many operators": (
        lambda tree: parameters(tree).update(value=[dict(operator_node(tree), id=5)] * 6000),
        "5001 operators that need",
    ),
    "operators that need much together": (
        put([fourier(10**7), fourier(10**7)]),
        "operators that need 480000000 bytes",
    ),
    "operator that needs gigabytes": (put(fourier(8 * 10**7)), "operators that need 1920000000 bytes"),
    "operator that needs terabytes": (
        put(fourier(3 * 10**11)),
        "the operator FFT needs as nfft a whole number",
    ),
    # -- modules
    "many layers": (lambda tree: parameters(tree).update(n_layers=10**9), "larger than the weights"),
    "wide layers": (lambda tree: parameters(tree).update(width=10**9), "larger than the weights"),
    "layers beyond numbers": (
        lambda tree: parameters(tree).update(width=10**30),
        "module that its parameters ask for cannot be made",
    ),
    "somewhat wider layers": (
        lambda tree: parameters(tree).update(width=3),
        r"'0.weight' is floats of shape \(2, 6\), and the parameters ask for floats of shape \(3, 6\)",
    ),
    "missing weight": (
        lambda tree: tree["estimator"]["weights"].pop("0.weight"),
        r"'0.weight' is missing, and the parameters ask for floats of shape \(2, 6\)",
    ),
    "foreign weight": (
        lambda tree: tree["estimator"]["weights"].update(x=tree["estimator"]["weights"].pop("1.weight")),
        "'1.weight' is missing",
    ),
    "weight of whole numbers": (
        lambda tree: tree["estimator"]["weights"]["0.weight"].update(value=torch.ones(2, 6).int()),
        "whole numbers of shape",
    ),
    "weight that is no tensor": (
        lambda tree: tree["estimator"]["weights"].update({"0.weight": 3}),
        "expected a Tensor, got a int",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_file_is_refused_with_the_reason(name: str, path: Path) -> None:
    edit, message = FORGED[name]
    forge(path, Toy(M, value=1).fit(), edit)
    assert_refused(path, message)


def test_weights_of_what_has_no_module_are_refused(path: Path) -> None:
    forge(path, skinverse.Tikhonov(), lambda tree: tree["estimator"].update(weights={}))
    assert_refused(path, "Tikhonov has no module")


def test_stored_cache_is_not_used(path: Path, tmp_path: Path) -> None:
    forge(path, Toy(), lambda tree: parameters(tree).update(memory=str(tmp_path)))
    assert read_back(path).memory is None


def test_loading_leaves_the_generators_and_the_defaults_of_the_user_alone(path: Path) -> None:
    save(Toy(M).fit(), path)  # that no global generator moves is checked around every test
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            loaded = read_back(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loaded.module_[0].signs.dtype == torch.float32
    assert {value.device.type for value in loaded.module_.state_dict().values()} == {"cpu"}


# ---------------------------------------------------------------------- the public estimators
OF_COUNTS = ("MLEM", "RichardsonLucy")
MADE_OF_OTHERS = ("ModelAdaptation", "ReconstructionRegressor")


def public_estimators() -> list[str]:
    """All but the one that is made of a fitted one, and has a test of its own."""
    public = {name: getattr(skinverse, name) for name in skinverse.__all__}
    return [name for name, kind in public.items() if hasattr(kind, "save") and name not in MADE_OF_OTHERS]


@functools.cache
def example(name: str) -> tuple[Any, np.ndarray]:
    """A public estimator that has hardly been trained, and data for it."""
    operator = OPERATORS["parallel beam"]()
    if name == "ZeroFilled":
        operator = OPERATORS["fourier sampling"]()
    estimator = getattr(skinverse, name)(operator)
    images = RNG.normal(size=(3, *operator.dims))
    if name in OF_COUNTS:
        images = np.abs(images)
    data = np.stack([operator @ x for x in images])
    short = {"trainer": skinverse.Trainer(max_epochs=1), "pretraining": False, "lam": 0.1, "max_steps": 20}
    known = estimator.get_params()
    return estimator.set_params(**{k: v for k, v in short.items() if k in known}).fit(images, data), data


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", public_estimators())
def test_public_estimator_reconstructs_the_same_after_loading(name: str, path: Path) -> None:
    estimator, data = example(name)
    estimator.save(path)
    assert_allclose(load(path).predict(data), estimator.predict(data), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", public_estimators())
def test_numbers_in_a_forged_file_cost_nothing(name: str, path: Path) -> None:
    """Every number of an estimator may be enormous: it is refused, or nothing is made of it."""
    example(name)[0].save(path)
    tree = read(path)
    for part in ("parameters", "fitted"):
        nodes = tree["estimator"][part]
        for key, true in [(key, node) for key, node in nodes.items() if type(node) in (int, tuple)]:
            huge = 10**9 if type(true) is int else (10**9,) * len(true)
            nodes[key] = huge
            write_atomically(path, pack(tree))
            start = time.process_time()
            try:
                with limited_memory(500_000_000):
                    load(path)
            except ValueError as error:
                assert "expected" in str(error) or "its weights" in str(error) or "module" in str(error)
            assert time.process_time() - start < 5
            nodes[key] = true


def test_regressor_comes_back_with_the_method_inside(path) -> None:
    data, column = RNG.normal(size=(6, 4)), RNG.normal(size=6)
    regressor = skinverse.Tikhonov(lam=0.1).as_regressor().fit(data, column)
    assert_array_equal(round_trip(regressor, path).predict(data), regressor.predict(data))


def test_fresh_process_reconstructs_the_same(path, tmp_path) -> None:
    operator = 2.0 * skinverse.operators.gaussian_blur((8, 8), 1.0)
    data = RNG.normal(size=(2, 8, 8))
    estimator = skinverse.Tikhonov(operator, lam=0.1).fit()
    estimator.save(path)
    np.save(tmp_path / "data.npy", data)
    program = (
        "import sys, numpy as np, skinverse, torch\n"
        "torch.set_num_threads(1)\n"  # sums depend on it in the last bit
        "np.save(sys.argv[3], skinverse.load(sys.argv[1]).predict(np.load(sys.argv[2])))"
    )
    arguments = [path, tmp_path / "data.npy", tmp_path / "images.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)
    assert_array_equal(np.load(tmp_path / "images.npy"), estimator.predict(data))

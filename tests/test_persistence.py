"""Files give back what was saved, and nothing that a stranger put into them is run."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pylops
import pytest
import scipy.sparse
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pylops import medical, signalprocessing
from sklearn.base import BaseEstimator
from torch import nn

import skinverse
from skinverse import _recipes, persistence
from skinverse.persistence import load, save

RNG = np.random.default_rng(0)


class Toy(BaseEstimator):
    """A stand-in with one parameter besides the operator, fitted attributes and a network."""

    _saved = ("_hidden",)

    def __init__(self, operator=None, *, value=None) -> None:
        self.operator = operator
        self.value = value

    def fit(self) -> Toy:
        self.operator_ = self.operator
        with torch.random.fork_rng():
            self.module_ = self._make_module().double()
        self.history_ = [{"epoch": 1, "loss": 0.5}]
        self._hidden = np.arange(3)
        self._scratch = object()
        return self

    def _make_module(self) -> nn.Module:  # draws its weights, as torch's layers do
        return nn.Sequential(nn.Linear(self.operator_.shape[1], 2), nn.BatchNorm1d(2))


@pytest.fixture(autouse=True)
def allow_toy(monkeypatch) -> None:
    public = persistence._estimator_classes()
    monkeypatch.setattr(persistence, "_estimator_classes", lambda: public | {"Toy": Toy})


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "toy.skinverse"


def round_trip(estimator: BaseEstimator, path: Path) -> BaseEstimator:
    save(estimator, path)
    return load(path)


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
        (9, 8), np.linspace(0, 3, 4), 11, pixel_size=0.5, detector_spacing=0.4
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
    "shifted detector": lambda: skinverse.operators.Shifted(_projections(), -1.4),
    "turned": lambda: skinverse.operators.Turned(_projections(), 0.3),
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


def test_every_recipe_is_tested() -> None:
    def kinds(op) -> set[str]:
        _, arguments, _ = _recipes.recipe(op)
        values = [*arguments.values(), *arguments.get("ops", [])]
        return {_recipes.recipe(op)[0]}.union(
            *(kinds(v) for v in values if isinstance(v, pylops.LinearOperator))
        )

    tested = set.union(*(kinds(make()) for make in OPERATORS.values()))
    assert set(_recipes._ENTRIES) - tested == {"CT2D"}  # which is tested where astra is installed


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
    second = round_trip(load(path), path)
    save(second, path)
    assert len(path.read_bytes()) == pytest.approx(len(first), rel=0.1)


def test_unknown_operator_is_named_with_the_way_out(path) -> None:
    operator = M @ pylops.Smoothing1D(3, 6)
    with pytest.raises(
        ValueError, match=r"Smoothing1D has no recipe .* save after set_params\(operator=None\)"
    ):
        save(Toy(operator), path)
    assert not path.exists()


def test_subclass_of_a_known_operator_is_unknown(path) -> None:
    class Mine(pylops.Identity):
        pass

    with pytest.raises(ValueError, match="Mine has no recipe"):
        save(Toy(Mine(3)), path)


# ---------------------------------------------------------------------- estimators and values
def test_shared_operator_is_stored_once_and_stays_shared(path) -> None:
    big = pylops.MatrixMult(RNG.normal(size=(100, 100)))
    loaded = round_trip(Toy(big, value=[big, big.A]).fit(), path)
    assert loaded.operator_ is loaded.operator is loaded.value[0]
    assert loaded.value[1] is loaded.operator.A
    assert path.stat().st_size < 1.5 * big.A.nbytes


def test_fitted_estimator_comes_back_with_its_weights(path) -> None:
    toy = Toy(M).fit()
    toy.module_(torch.ones(4, 6, dtype=torch.float64))  # moves the buffers
    loaded = round_trip(toy, path)
    for name, value in toy.module_.state_dict().items():
        assert_array_equal(loaded.module_.state_dict()[name], value)
        assert loaded.module_.state_dict()[name].dtype == value.dtype
    assert all(p.requires_grad for p in loaded.module_.parameters())
    assert not loaded.module_.training
    assert loaded.history_ == toy.history_
    assert_array_equal(loaded._hidden, toy._hidden)
    assert not hasattr(loaded, "_scratch")


def test_unfitted_estimator_comes_back_unfitted(path) -> None:
    assert not hasattr(round_trip(Toy(M), path), "operator_")


def test_same_estimator_gives_the_same_bytes(path) -> None:
    toy = Toy(M, value={"a": np.arange(3)}).fit()
    save(toy, path)
    first = path.read_bytes()
    save(toy, path)
    assert path.read_bytes() == first


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
    (1, [2.5, (None,)], {"a": {1: "b", (2, 3): []}}),
    np.float32(0.1),
    np.int8(-3),
    np.bool_(True),
    np.complex64(1 + 1j),
    np.dtype("float32"),
    torch.complex64,
    torch.device("cpu"),
    {"type": "estimator", "class": "Toy"},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_with_its_type(value, path) -> None:
    loaded = round_trip(Toy(value=value), path).value
    assert loaded == value
    assert type(loaded) is type(value)


ARRAYS = [
    np.arange(6.0).reshape(2, 3).T,
    np.array(3, dtype="int16"),
    np.zeros((0, 4), dtype="float32"),
    np.array([True, False]),
    _complex(2, 3).astype("complex64"),
    np.array(1 + 1j),
    np.arange(3, dtype=">f8"),
    torch.arange(4, dtype=torch.int64),
    torch.randn(2, 3, dtype=torch.complex128).conj(),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{type(a).__name__} {a.dtype} {tuple(a.shape)}")
def test_array_comes_back_with_its_type_and_can_be_written(value, path) -> None:
    loaded = round_trip(Toy(value=value), path).value
    assert type(loaded) is type(value)
    assert loaded.shape == value.shape
    assert loaded.dtype == (value.dtype.newbyteorder("=") if isinstance(value, np.ndarray) else value.dtype)
    assert_array_equal(
        np.asarray(loaded), np.asarray(value.resolve_conj() if torch.is_tensor(value) else value)
    )
    loaded[...] = 0


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_random_generator_goes_on_where_it_was(make, path) -> None:
    generator = make(3)
    generator.normal(size=5)
    loaded = round_trip(Toy(value=generator), path).value
    assert_array_equal(loaded.normal(size=4), generator.normal(size=4))


def test_cache_is_stored_as_its_place(path, tmp_path) -> None:
    assert round_trip(Toy(value=joblib.Memory(tmp_path / "cache", verbose=0)), path).value == str(
        tmp_path / "cache"
    )
    assert round_trip(Toy(value=tmp_path), path).value == str(tmp_path)


def test_nested_estimator_comes_back(path) -> None:
    loaded = round_trip(Toy(M, value=Toy(M, value=3)), path)
    assert loaded.value.value == 3
    assert loaded.value.operator is loaded.operator


@pytest.mark.parametrize(
    "value",
    [len, object(), np.array([None]), np.array(["a"]), nn.ReLU(), Toy, {1, 2}],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_place_is_refused_by_name(value, path) -> None:
    with pytest.raises(ValueError, match="Toy.value cannot be saved"):
        save(Toy(value=value), path)
    assert not path.exists()


def test_estimator_of_another_package_is_refused(path) -> None:
    from sklearn.linear_model import Ridge

    with pytest.raises(ValueError, match="Ridge is no public estimator of skinverse"):
        save(Ridge(), path)


# ---------------------------------------------------------------------- bad files
def content(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)


def change(path: Path, edit) -> None:
    """Save a toy and edit its config."""
    save(Toy(M, value=1).fit(), path)
    members = content(path)
    config = json.loads(members["config.json"])
    edit(config)
    write(path, members | {"config.json": json.dumps(config).encode()})


def test_file_holds_json_and_arrays_and_no_pickle(path) -> None:
    save(Toy(M, value={"a": np.arange(3)}).fit(), path)
    members = content(path)
    assert set(members) == {"config.json", "arrays.safetensors"}
    assert json.loads(members["config.json"])["format"] == "skinverse"
    for data in members.values():
        with pytest.raises(Exception):  # noqa: B017
            pickle.loads(data)


def test_truncated_file_is_refused(path) -> None:
    save(Toy(M).fit(), path)
    whole = path.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be loaded"):
            load(path)


def test_one_wrong_byte_is_found_or_harmless(path) -> None:
    """The checksums of the zip find it in the contents; names and dates of the zip itself do not matter."""
    toy = Toy(M).fit()
    save(toy, path)
    whole = path.read_bytes()
    found = 0
    for position in np.random.default_rng(0).integers(len(whole), size=60):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            loaded = load(path)
        except ValueError:
            found += 1
        else:
            assert_array_equal(loaded.operator.A, toy.operator.A)
    assert found > 50


@pytest.mark.parametrize("data", [b"", b"not a zip", pickle.dumps({"format": "skinverse"}), RNG.bytes(200)])
def test_foreign_file_is_refused(data, path) -> None:
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged or no skinverse file"):
        load(path)


def test_foreign_zip_is_refused(path) -> None:
    write(path, {"data.pkl": pickle.dumps(1)})
    with pytest.raises(
        ValueError, match=r"expected config.json and arrays.safetensors .* got \['data.pkl'\]"
    ):
        load(path)


def test_extra_and_compressed_members_are_refused(path) -> None:
    save(Toy(M), path)
    members = content(path)
    write(path, members | {"module.pkl": b""})
    with pytest.raises(ValueError, match="module.pkl"):
        load(path)
    write(path, members, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="uncompressed"):
        load(path)


def test_missing_file_is_a_missing_file(path) -> None:
    with pytest.raises(FileNotFoundError):
        load(path)


def test_newer_format_is_refused_with_its_version(path) -> None:
    change(path, lambda config: config.update(format_version=2, skinverse_version="7.0"))
    with pytest.raises(ValueError, match="format 2, written by skinverse 7.0, .* reads format 1"):
        load(path)


def _rename_class(config) -> None:
    config["estimator"]["class"] = "Popen"


def _rename_operator(config) -> None:
    config["estimator"]["params"]["operator"]["name"] = "FunctionOperator"


def _add_parameter(config) -> None:
    config["estimator"]["params"]["shell"] = True


def _add_method(config) -> None:
    config["estimator"]["fitted"]["predict"] = 1


def _unknown_type(config) -> None:
    config["estimator"]["params"]["value"] = {"type": "pickle", "value": "gASVAAAA"}


def _dtype_function(config) -> None:
    config["estimator"]["params"]["value"] = {"type": "torch_dtype", "value": "load"}


def _bit_generator(config) -> None:
    state = {"type": "dict", "value": [["bit_generator", "seed"]]}
    config["estimator"]["params"]["value"] = {"type": "generator", "value": state}


def _missing_array(config) -> None:
    config["estimator"]["params"]["value"] = {"type": "array", "complex": False, "key": "99"}


def _bad_common(config) -> None:
    config["estimator"]["params"]["operator"]["common"]["dims"] = [1000]


def _no_estimator(config) -> None:
    del config["estimator"]


def _deep(config) -> None:
    config["estimator"]["params"]["value"] = json.loads("[" * 900 + "]" * 900)


def _other_weights(config) -> None:
    config["estimator"]["fitted"]["module_"]["value"].pop("0.weight")


EDITS = [
    (_rename_class, "'Popen', which is no public estimator"),
    (_rename_operator, "no recipe for an operator 'FunctionOperator'"),
    (_add_parameter, "shell"),
    (_add_method, "'predict' is no fitted attribute of Toy"),
    (_unknown_type, "unknown type 'pickle'"),
    (_dtype_function, "name of a torch dtype"),
    (_bit_generator, "unknown bit generator 'seed'"),
    (_missing_array, "KeyError: '99'"),
    (_bad_common, "dims incompatible"),
    (_no_estimator, "KeyError: 'estimator'"),
    (_deep, "RecursionError"),
    (_other_weights, "Missing key"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=lambda x: getattr(x, "__name__", ""))
def test_forged_file_is_refused_with_the_reason(edit, message, path) -> None:
    change(path, edit)
    with pytest.raises(ValueError, match=f"toy.skinverse cannot be loaded: .*{message}"):
        load(path)


def test_sparse_matrix_with_foreign_indices_is_refused(path) -> None:
    matrix = scipy.sparse.csr_array(np.eye(3))
    matrix.indices[1] = 1000
    with pytest.raises(ValueError, match="cannot be loaded"):
        round_trip(Toy(value=matrix), path)


def test_object_array_inside_safetensors_is_impossible(path) -> None:
    save(Toy(value=np.arange(3)), path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([len], dtype=object))
    write(path, content(path) | {"arrays.safetensors": buffer.getvalue()})
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(path)


# ---------------------------------------------------------------------- the public estimators
def public_estimators() -> list[str]:
    """All but the one that is made of a fitted one, and has a test of its own."""
    found = [name for name, kind in persistence._estimator_classes().items() if hasattr(kind, "save")]
    return [name for name in found if name != "ModelAdaptation"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", public_estimators())
def test_public_estimator_reconstructs_the_same_after_loading(name, path) -> None:
    operator = skinverse.operators.parallel_beam((12, 10), np.linspace(0, 3, 8), 17, dtype="float64")
    images = RNG.normal(size=(3, 12, 10))
    data = np.stack([operator @ x for x in images])
    estimator = getattr(skinverse, name)(operator)
    # What has hardly been trained contracts by proof only.
    short = {"trainer": skinverse.Trainer(max_epochs=1), "lam": 0.1, "iteration": "contractive"}
    if "trainer" in estimator.get_params():
        estimator.set_params(**{k: v for k, v in short.items() if k in estimator.get_params()})
    estimator.fit(images, data).save(path)
    assert_allclose(load(path).predict(data), estimator.predict(data), rtol=1e-9, atol=1e-12)


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

"""The digest of a value: equal for equal content, different for all that can change a result."""

from __future__ import annotations

import collections
import copy
import ctypes
import enum
import functools
import io
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import types
from pathlib import Path
from typing import Any

import numpy as np
import pylops
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import Ridge
from torch import nn

from skinverse._hashing import Unhashable, digest


def execute(code: str, **names: Any) -> dict[str, Any]:
    """What code defines that has no source, as a cell of a notebook does."""
    scope: dict[str, Any] = {"np": np, "torch": torch, "__name__": "__main__", **names}
    exec(textwrap.dedent(code), scope)
    return scope


def executed(code: str, name: str = "f", **names: Any) -> Any:
    return execute(code, **names)[name]


# ---------------------------------------------------------------- plain values
PLAIN = [
    None,
    False,
    True,
    0,
    1,
    -1,
    10**400,
    0.0,
    -0.0,
    1.0,
    float("nan"),
    float("inf"),
    1j,
    1 + 0j,
    "",
    "1",
    b"1",
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    [1],
    {1},
    frozenset({1}),
    [[1], 2],
    [1, [2]],
    [[1, 2]],
    {"a": 1},
    {"a": 1.0},
    {"b": 1},
    collections.OrderedDict(a=1),
    collections.deque([1]),
    collections.defaultdict(list, a=1),
    range(3),
    slice(1, 2),
    ...,
    NotImplemented,
    np.float64(1),
    np.float32(1),
    np.int64(1),
    np.bool_(True),
    np.datetime64("2020-01-01"),
    np.dtype("f4"),
    np.dtype(">f4"),
    torch.float32,
    torch.device("cpu"),
    torch.device("meta"),
    torch.Size((1,)),
    Path("a"),
    Path("b"),
    int,
    float,
    len,
    print,
    np.sum,
    np.mean,
    np.add,
    np.multiply,
    torch.relu,
    torch.tanh,
    nn.functional.relu,
    nn.functional.softplus,
    nn.ReLU,
    nn.Tanh,
    nn.ReLU(),
    str.lower,
    str.upper,
    functools.partial(len, "a"),
    functools.partial(len, "b"),
]


def test_different_values_have_different_digests() -> None:
    digests = [digest(value) for value in PLAIN]
    alike = [(PLAIN[i], PLAIN[j]) for i in range(len(PLAIN)) for j in range(i) if digests[i] == digests[j]]
    assert alike == []


@pytest.mark.parametrize("value", PLAIN, ids=map(str, range(len(PLAIN))))
def test_copies_have_the_digest_of_the_original(value: Any) -> None:
    assert digest(copy.deepcopy(value)) == digest(value) == digest(pickle.loads(pickle.dumps(value)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_equal_digests_mean_equal_values_of_equal_types(a: Any, b: Any) -> None:
    assert digest(a) == digest(copy.deepcopy(a))
    assert (digest(a) == digest(b)) == (ast_of(a) == ast_of(b))


def ast_of(value: Any) -> str:
    """The value written out, its types told apart."""
    if isinstance(value, dict):
        return f"{{{sorted((key, ast_of(item)) for key, item in value.items())}}}"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(ast_of, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[ast_of(item) for item in value]}"
    return f"{type(value).__name__} {value!r}"


def test_the_number_of_values_and_their_nesting_count() -> None:
    assert len({digest(1, 2), digest((1, 2)), digest([1, 2]), digest(12), digest(), digest(2, 1)}) == 6


def test_sharing_does_not_count() -> None:
    a = np.arange(3)
    assert digest([a, a]) == digest([a, a.copy()])
    part = {"a": [1]}
    assert digest([part, part]) == digest([part, {"a": [1]}])


def test_values_that_contain_themselves_are_compared() -> None:
    def ring(value: int) -> list[Any]:
        first: list[Any] = [value]
        first.append([first])
        return first

    assert digest(ring(1)) == digest(ring(1)) != digest(ring(2))
    one, other = ring(1), ring(1)
    assert digest([one, one[1], one]) == digest([other, other[1], other])


def test_loops_that_lead_back_to_different_places_are_told_apart() -> None:
    first: list[Any] = [1]
    second = [first]
    first.append(second)
    other: list[Any] = [1, [0]]
    other[1][0] = other
    whole: list[Any] = [other]
    whole.append([whole])
    assert digest([first, second]) != digest(whole)


def test_the_order_of_keys_counts_where_it_is_content() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(collections.OrderedDict(a=1, b=2)) != digest(collections.OrderedDict(b=2, a=1))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


def test_members_of_enumerations_are_told_apart() -> None:
    values = [Colour.RED, Colour.BLUE, Level.LOW, Level.HIGH, Level.LOW | Level.HIGH, 1]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(Colour.RED) == digest(Colour(1))


# ---------------------------------------------------------------- arrays
@given(hnp.arrays(st.sampled_from(["f8", "f4", "i2", "c16", "?"]), hnp.array_shapes(min_side=0, max_side=4)))
def test_the_layout_of_an_array_does_not_count(array: np.ndarray) -> None:
    assert digest(np.asfortranarray(array)) == digest(array) == digest(array.copy())
    spaced = np.zeros((*array.shape, 2), array.dtype)[..., 0]
    spaced[...] = array
    for quick in (False, True):
        assert digest(spaced, quick=quick) == digest(array, quick=quick)
    if array.ndim > 1 and array.size and array.shape != array.shape[::-1]:
        assert digest(array.T) != digest(array)


def test_type_shape_and_values_of_arrays_count() -> None:
    a = np.arange(6.0)
    changed = a.copy()
    changed[5] = np.nextafter(5, 6)
    arrays = [a, a.astype(">f8"), a.astype("f4"), a.reshape(2, 3), a.reshape(3, 2), a[::-1], changed]
    arrays += [a.astype("c16"), torch.from_numpy(a), list(a), np.ma.masked_equal(a, 2)]
    arrays += [np.zeros(6), np.zeros(6, ">f8"), np.zeros(6, "i8"), np.zeros(6, "m8[s]"), np.zeros(6, "m8[h]")]
    arrays += [np.ma.masked_equal(a, 3), a.astype("O"), a.astype("U"), a.astype(np.longdouble) / 3]
    for quick in (False, True):
        assert len({digest(array, quick=quick) for array in arrays}) == len(arrays)


def test_an_array_on_disk_is_an_array(tmp_path: Path) -> None:
    a = np.arange(100.0).reshape(10, 10)
    np.save(tmp_path / "a.npy", a)
    stored = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert digest(stored) == digest(a)
    assert digest(stored.T) == digest(a.T)


def test_large_arrays_are_not_copied() -> None:
    array = np.ones((1000, 2000))
    for value in (array, torch.from_numpy(array), array.T, array[:, ::2]):
        tracemalloc.start()
        digest(value)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000


def test_tensors_count_by_type_shape_values_and_whether_they_are_trained() -> None:
    t = torch.arange(6.0)
    tensors = [t, t.double(), t.bfloat16(), t.reshape(2, 3), t.flip(0), t.to(torch.complex64), t > 1]
    tensors += [t[:0], nn.Parameter(t), nn.Parameter(t, requires_grad=False)]
    tensors += [torch.eye(3), torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse()]
    assert len({digest(tensor) for tensor in tensors}) == len(tensors)
    z = torch.complex(t, -t)
    assert digest(z.conj()) == digest(z.conj().resolve_conj())
    assert digest(torch.arange(12.0)[::2]) == digest(torch.arange(0, 12.0, 2))
    assert digest(torch.eye(3).to_sparse()) == digest(torch.eye(3).to_sparse())


def test_states_of_generators_count() -> None:
    def drawn(generator: Any, n: int) -> Any:
        generator.random(n)
        return generator

    for make in (np.random.default_rng, lambda seed: np.random.Generator(np.random.Philox(seed))):
        assert digest(make(0)) == digest(make(0)) != digest(make(1))
        assert digest(drawn(make(0), 3)) == digest(drawn(make(0), 3)) != digest(make(0))
    assert (
        digest(np.random.RandomState(0))
        == digest(np.random.RandomState(0))
        != digest(np.random.RandomState(1))
    )
    seeded = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    assert digest(seeded[0]) == digest(seeded[1]) != digest(seeded[2])


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_sparse_matrices_count_by_their_entries(form: str) -> None:
    dense = np.diag([1.0, 2.0, 0.0])
    matrix = sp.csr_array(dense).asformat(form)
    before = digest(matrix)
    assert (
        before == digest(sp.csr_array(dense).asformat(form)) != digest(sp.csr_array(2 * dense).asformat(form))
    )
    assert before != digest(sp.csr_matrix(dense).asformat(form)) or form == "lil"
    matrix @ np.ones(3)  # which remembers whether the indices are sorted
    assert digest(matrix) == before


# ---------------------------------------------------------------- functions
BASE = """
def f(x, scale=2.0):
    def inner(y):
        return y * factor
    return inner(x) * scale + helper(x)

def helper(x):
    return x + offset
"""


def test_a_function_is_its_code_not_its_name_or_place() -> None:
    known = {"factor": 3.0, "offset": 1.0}
    first = executed(BASE, **known)
    assert digest(executed("\n\n# moved and told\n" + BASE, **known)) == digest(first)
    renamed = executed(BASE.replace("def f(", "def g("), "g", **known)
    assert digest(renamed) == digest(first)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale=2.0", "scale=2.5"),
        ("* scale", "/ scale"),
        ("y * factor", "y + factor"),
        ("x + offset", "x - offset"),
        ("x, scale=2.0", "x, *, scale=2.0"),
        ("+ helper(x)", "+ abs(helper(x))"),
        ("return y * factor", "return y * 7"),
    ],
)
def test_every_change_of_code_is_seen(old: str, new: str) -> None:
    known = {"factor": 3.0, "offset": 1.0}
    assert old in BASE
    assert digest(executed(BASE, **known)) != digest(executed(BASE.replace(old, new), **known))


def test_globals_that_a_function_reads_count_also_through_other_functions() -> None:
    known: dict[str, Any] = {"factor": np.ones(3), "offset": 1.0}
    first = digest(executed(BASE, **known))
    assert first == digest(executed(BASE, **known | {"unread": 5}))
    assert first != digest(executed(BASE, **known | {"offset": 2.0}))
    assert first != digest(executed(BASE, **known | {"factor": np.full(3, 2.0)}))
    assert first != digest(executed(BASE, offset=1.0))  # not defined yet


def test_a_global_that_a_function_writes_is_a_state() -> None:
    code = """
    def f(x):
        global calls
        calls += 1
        return x * gain
    """
    assert digest(executed(code, calls=0, gain=1)) == digest(executed(code, calls=5, gain=1))
    assert digest(executed(code, calls=0, gain=1)) != digest(executed(code, calls=0, gain=2))


def test_closures_defaults_and_attributes_count() -> None:
    def scaled(by: float) -> Any:
        return lambda x: by * x

    assert digest(scaled(1.0)) == digest(scaled(1.0)) != digest(scaled(2.0))
    assert digest(functools.partial(scaled(1.0), 1)) != digest(functools.partial(scaled(2.0), 1))
    f, g = scaled(1.0), scaled(1.0)
    g.mode = "fast"
    assert digest(f) != digest(g)
    cached = functools.lru_cache(scaled(1.0)), functools.lru_cache(scaled(2.0))
    assert digest(cached[0]) != digest(cached[1])


def test_functions_that_call_one_another_are_compared() -> None:
    code = """
    def f(n): return g(n - 1) if n else start
    def g(n): return f(n - 1)
    """
    assert (
        digest(executed(code, start=0)) == digest(executed(code, start=0)) != digest(executed(code, start=1))
    )
    assert digest(executed(code, "g", start=0)) != digest(executed(code, "g", start=1))


def test_decorators_of_packages_do_not_hide_the_function() -> None:
    code = "@torch.no_grad()\ndef f(x): return x {} 1"
    assert digest(executed(code.format("+"))) == digest(executed(code.format("+")))
    assert digest(executed(code.format("+"))) != digest(executed(code.format("-")))


def test_modules_of_a_project_count_by_what_is_read_of_them(tmp_path: Path) -> None:
    def helpers(body: str) -> types.ModuleType:
        module = types.ModuleType("helpers")
        exec(body, module.__dict__)
        return module

    code = "def f(x): return helpers.g(x)"
    plus, minus = (helpers(f"def g(x): return x {sign} 1") for sign in "+-")
    assert digest(executed(code, helpers=plus)) != digest(executed(code, helpers=minus))
    assert digest(executed("def f(x): return np.sqrt(x)")) == digest(executed("def f(x): return np.sqrt(x)"))
    assert digest(np) != digest(torch)


def test_methods_count_with_their_object() -> None:
    class Scale:
        def __init__(self, by: float) -> None:
            self.by = by

        def apply(self, x: float) -> float:
            return self.by * x

    assert digest(Scale(1.0).apply) == digest(Scale(1.0).apply) != digest(Scale(2.0).apply)
    assert digest([1].append) != digest([2].append)


# ---------------------------------------------------------------- classes and objects
CLASS = """
class Base:
    gain = 1.0
    def shared(self, x): return x + self.gain

class f(Base):
    "A documented class."
    def apply(self, x): return super().shared(x) * 2
    @property
    def twice(self): return 2 * self.gain
    @staticmethod
    def plain(x): return x
    @classmethod
    def of(cls): return cls()
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gain = 1.0", "gain = 2.0"),
        ("x + self.gain", "x - self.gain"),
        ("* 2", "* 3"),
        ("2 * self.gain", "3 * self.gain"),
        ("plain(x): return x", "plain(x): return -x"),
        ("return cls()", "return cls"),
        ("(Base)", ""),
    ],
)
def test_a_class_without_source_is_its_code_and_that_of_its_bases(old: str, new: str) -> None:
    first, same, other = executed(CLASS), executed(CLASS), executed(CLASS.replace(old, new))
    assert digest(first) == digest(same) != digest(other)
    assert digest(first()) == digest(same()) != digest(other())
    assert digest(first) == digest(executed(CLASS.replace("A documented class", "Another text")))


def test_code_run_without_a_module_name_is_not_taken_for_pythons_own() -> None:
    def made(body: str) -> Any:
        scope: dict[str, Any] = {}
        exec(f"class Made:\n    def f(self): return {body}", scope)
        return scope["Made"]

    assert made("1").__module__ == "builtins"
    assert digest(made("1")) != digest(made("2"))


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


class Described:
    """Says itself what is kept of it: not the lock, nor what has been computed meanwhile."""

    def __init__(self, value: int) -> None:
        self.value, self.lock, self.cache = value, threading.Lock(), object()

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value}


def test_attributes_count_with_and_without_slots() -> None:
    for kind in (Slotted, Described, types.SimpleNamespace):
        make = (lambda a: types.SimpleNamespace(a=a)) if kind is types.SimpleNamespace else kind
        assert digest(make(1)) == digest(make(1)) != digest(make(2))
    assert digest(Ridge(alpha=1)) == digest(Ridge(alpha=1)) != digest(Ridge(alpha=2))
    fitted = Ridge().fit(np.eye(3), np.ones(3))
    assert digest(fitted) != digest(Ridge())


def test_subclasses_of_containers_keep_class_items_and_attributes() -> None:
    class Named(list):
        pass

    class Bag(set):
        pass

    Point = collections.namedtuple("Point", "x y")  # noqa: PYI024
    named = Named([1])
    other = Named([1])
    other.name = "b"
    values = [[1], named, other, Named([2]), (1, 2), Point(1, 2), Point(2, 1), {1}, Bag([1]), Bag([2])]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(Bag(["a", "b", "c"])) == digest(Bag(["c", "b", "a"]))


# ---------------------------------------------------------------- networks
NETWORK = """
class f(torch.nn.Module):
    def __init__(self, gain=1.0, act=torch.tanh, taps=1.0):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)
        self.gain, self.act = gain, act
        self.register_buffer("taps", torch.tensor(taps), persistent=False)

    def forward(self, x):
        global trained
        trained += self.training
        return x - self.gain * self.taps * self.act(self.conv(x))
"""


def network(code: str = NETWORK, **attributes: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return executed(code, trained=0)(**attributes)


def changed_weights() -> nn.Module:
    module = network()
    with torch.no_grad():
        module.conv.weight[0, 0, 0, 0] += 1e-6
    return module


def frozen() -> nn.Module:
    module = network()
    module.conv.requires_grad_(False)
    return module


def hooked(by: float) -> nn.Module:
    module = network()
    module.conv.register_forward_hook(lambda module, x, y: by * y)
    return module


def hooked_weight(by: float) -> nn.Module:
    module = network()
    module.conv.weight.register_hook(lambda gradient: by * gradient)
    return module


NETWORKS = {
    "as it is": network,
    "gain": lambda: network(gain=2.0),
    "activation": lambda: network(act=torch.relu),
    "buffer": lambda: network(taps=3.0),
    "forward": lambda: network(NETWORK.replace("return x -", "return x +")),
    "base": lambda: network(NETWORK.replace("padding=1", "padding=1, padding_mode='circular'")),
    "weights": changed_weights,
    "frozen": frozen,
    "hook": lambda: hooked(1.0),
    "another hook": lambda: hooked(2.0),
    "hook of a weight": lambda: hooked_weight(1.0),
    "another hook of a weight": lambda: hooked_weight(2.0),
    "inner": lambda: nn.Sequential(network(), nn.ReLU()),
    "order": lambda: nn.Sequential(nn.ReLU(), network()),
    "named order": lambda: nn.Sequential(collections.OrderedDict(b=nn.ReLU(), a=nn.Tanh())),
    "named order turned": lambda: nn.Sequential(collections.OrderedDict(a=nn.Tanh(), b=nn.ReLU())),
    "recurrent": lambda: network("f = lambda: torch.nn.LSTM(2, 3)"),
}


def test_all_that_decides_what_a_network_gives_counts() -> None:
    digests = {name: digest(make()) for name, make in NETWORKS.items()}
    assert len(set(digests.values())) == len(NETWORKS)
    assert {name: digest(make()) for name, make in NETWORKS.items()} == digests


def test_attributes_named_like_hooks_count_as_attributes() -> None:
    one, other = network(), network()
    one._hooks_wanted, other._hooks_wanted = True, False
    one._my_hooks = other._my_hooks = {"a": 1}
    assert digest(one) != digest(other)


def test_training_mode_and_gradients_do_not_count() -> None:
    module = network()
    before = digest(module)
    module.eval()(torch.ones(1, 1, 4, 4)).sum().backward()
    assert digest(module) == before == digest(copy.deepcopy(network()))


# ---------------------------------------------------------------- operators
def test_operators_count_by_content_not_by_use() -> None:
    strong, weak = np.ones(8), np.ones(8)
    strong[1:], weak[0] = 2.0, 1e8
    strong[0] = 1e8
    assert digest(pylops.Diagonal(strong)) != digest(pylops.Diagonal(weak))
    operators = [
        lambda: pylops.MatrixMult(np.eye(3)) @ pylops.FirstDerivative(3),
        lambda: pylops.signalprocessing.FFT2D((4, 5)),
        lambda: pylops.VStack([pylops.Identity(4), 2 * pylops.Identity(4)]),
        lambda: pylops.Restriction(5, [1, 2]).H,
    ]
    for make in operators:
        op = make()
        before = digest(op)
        op.matvec(np.ones(op.shape[1]))
        op.H @ np.ones(op.shape[0])
        assert digest(op) == before == digest(make())
    assert len({digest(make()) for make in operators}) == len(operators)


# ---------------------------------------------------------------- what has no content
class Holder(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ReLU()])
        self.layers[0].lock = held


OPAQUE = {
    "_thread.lock": threading.Lock,
    "_io.TextIOWrapper": lambda: open(__file__),  # noqa: SIM115
    "socket.socket": socket.socket,
    "generator": lambda: (i for i in range(3)),
    "ctypes.c_void_p": ctypes.c_void_p,
    "ctypes.CDLL": lambda: ctypes.CDLL(None),
    "_thread._local": threading.local,
    "numpy.ufunc": lambda: np.frompyfunc(abs, 1, 1),
    "numpy.ndarray": lambda: np.zeros(2, [("a", "i1"), ("b", "f8")]),
    "memoryview": lambda: memoryview(b"1"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_has_no_content_is_named_with_the_path_to_it(name: str) -> None:
    opaque = OPAQUE[name]()
    try:
        with pytest.raises(
            Unhashable, match=rf"^network\.layers\.0\.lock: an? {name} has no content to compare$"
        ):
            digest({"network": Holder(opaque)})
        assert issubclass(Unhashable, TypeError)
        same, other = (digest(Holder(held), opaque="identity") for held in (opaque, threading.Lock()))
        assert same != other
    finally:
        getattr(opaque, "close", lambda: None)()


def test_paths_lead_through_code_as_well() -> None:
    f = executed("def f(x):\n    with lock: return x", lock=threading.Lock())
    with pytest.raises(Unhashable, match=r"^0\.step\.lock: a _thread\.lock has no content"):
        digest([{"step": f}])


def test_objects_that_raise_when_they_are_asked_have_no_content() -> None:
    class Moody:
        def __getstate__(self) -> Any:
            raise RuntimeError("not now")

    with pytest.raises(Unhashable, match="Moody has no content"):
        digest(Moody())


def test_deep_values_are_compared() -> None:
    def nested(depth: int) -> list[Any]:
        deep: list[Any] = []
        for _ in range(depth):
            deep = [deep]
        return deep

    assert digest(nested(20_000)) == digest(nested(20_000)) != digest(nested(20_001))


def test_open_buffers_in_memory_have_content() -> None:
    assert digest(io.BytesIO(b"a")) != digest(io.BytesIO(b"b"))


# ---------------------------------------------------------------- every process
IN_A_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, torch, pylops
from test_hashing import digest, network, executed, CLASS, BASE, Colour, Slotted
code = executed(CLASS), executed(BASE, factor=1, offset=2), Colour, np.sum, torch.relu
data = Colour.RED, Slotted({"a", "b", "c"}), {"x", "y", "z", 1}, [1.5, "a"], {"b": 1, "a": 2}
print(digest(network(), code, data, pylops.FirstDerivative((3, 4))))
"""


def test_digests_are_the_same_in_every_process() -> None:
    def printed(seed: str) -> str:
        command = [sys.executable, "-c", IN_A_PROCESS, str(Path(__file__).parent)]
        return subprocess.check_output(
            command, text=True, env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        )

    assert printed("1") == printed("2")


def test_a_network_of_many_layers_is_quick() -> None:
    module = nn.Sequential(*(nn.Dropout() for _ in range(200)))
    start = time.perf_counter()
    digest(module, torch.nn, np, nn.Linear)
    assert time.perf_counter() - start < 2

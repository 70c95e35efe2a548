"""Files are whole or as before, give back every bit, and cost little whatever they hold."""

from __future__ import annotations

import math
import os
import resource
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors
from torch import nn

from skinverse._files import pack, read, unpack, write_atomically

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------------- written whole or not at all
@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "file"


def assert_alone(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]


def test_content_is_written_and_replaced(path: Path) -> None:
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert_alone(path)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_an_ordinary_file_or_of_the_old_one(path: Path) -> None:
    beside = path.with_name("ordinary")
    beside.touch()
    write_atomically(path, b"old")
    assert path.stat().st_mode == beside.stat().st_mode
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_write_protected_file_is_not_replaced(path: Path) -> None:
    write_atomically(path, b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert_alone(path)


def test_symbolic_link_stays_one(path: Path) -> None:
    link = path.parent.parent / "link"
    link.symlink_to(path)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_device_stays_one() -> None:
    write_atomically(os.devnull, b"nothing")
    assert not Path(os.devnull).is_file()


def test_missing_folder_is_named(path: Path) -> None:
    wanted = path.parent / "missing" / "file"
    with pytest.raises(FileNotFoundError, match=r"missing.file'$"):
        write_atomically(wanted, b"new")


def test_folder_is_not_replaced(path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_atomically(path.parent, b"new")


def test_full_disk_leaves_the_old_file_whole(path: Path) -> None:
    write_atomically(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="large.*file'"):
            write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert_alone(path)


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_failure_at_the_last_moment_leaves_the_old_file_whole(
    error: BaseException, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert_alone(path)


def test_kill_and_a_second_writer_leave_a_whole_file(path: Path) -> None:
    """Two processes write a megabyte of their own letter again and again, until both are killed."""
    program = (
        "import sys\nfrom skinverse._files import write_atomically\n"
        "while True: write_atomically(sys.argv[1], sys.argv[2].encode() * 2**20)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in ("a", "b")]
    try:
        seen: set[bytes] = set()
        deadline = time.monotonic() + 60
        while len(seen) < 2 and time.monotonic() < deadline:
            if path.exists():
                seen.add(_letter(path))
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert seen == {b"a", b"b"}
    assert _letter(path) in seen


def _letter(path: Path) -> bytes:
    content = path.read_bytes()
    assert content == content[:1] * 2**20
    return content[:1]


# ---------------------------------------------------------------------- every bit
def same(a: Any, b: Any) -> bool:
    """Equal in value, type and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        plain = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (a, b)]
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in plain]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return repr(a) == repr(b) if isinstance(a, float) else a == b


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text()
    | st.sampled_from(["$tensor", "[[[", '"', "\\", "\ud800"])
)
KEYS = st.text(max_size=5) | st.integers(-(2**53), 2**53) | st.sampled_from(["$tuple", "$", ""])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(TREES)
def test_tree_comes_back(tree: Any) -> None:
    assert same(unpack(pack(tree)), tree)


DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
]


def bits(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any bits, NaN with any payload and negative zeros among them."""
    value = torch.zeros(shape, dtype=dtype)
    if dtype == torch.bool:
        return value.logical_not()
    raw = RNG.bytes(value.numel() * value.element_size())
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if raw else value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_tensor_comes_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = bits(dtype, *shape)
    tree = {"tensor": value, "turned": value.mT if value.ndim > 1 else value}
    if dtype != torch.bfloat16:
        tree |= {"array": value.numpy(), "scalars": list(value.numpy().reshape(-1)[:2])}
    assert same(unpack(pack(tree)), tree)


def test_views_and_shared_memory_are_copied() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    whole.requires_grad_()
    complex_ = torch.tensor([1 + 2j, 3 - 4j])
    tree = [whole, whole, whole[1:, ::2], whole.T, complex_.conj(), complex_.conj().imag, nn.Parameter(whole)]
    again = unpack(pack(tree))
    for old, new in zip(tree, again, strict=True):
        assert torch.equal(old, new)
        assert new.is_contiguous()
        assert not new.requires_grad
    again[0].zero_()
    assert torch.equal(again[1], whole)


def test_byte_order_and_memory_order_of_arrays_do_not_matter() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    loaded = unpack(pack(array))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, array)
    loaded[...] = 0  # can be written to
    assert unpack(pack(np.frombuffer(b"abc", np.uint8))).flags.writeable


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_optimizer_comes_back(make: Callable[..., torch.optim.Optimizer]) -> None:
    weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
    optimizer = make(weights, lr=0.1)
    (weights[0] @ weights[1]).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert same(unpack(pack(state)), state)
    make(weights, lr=0.1).load_state_dict(unpack(pack(state)))


def test_same_tree_gives_the_same_bytes() -> None:
    tree = {"b": np.arange(3), "a": [torch.ones(2), 0.1], 3: None}
    assert pack(tree) == pack(tree)


def test_default_dtype_and_device_of_the_user_do_not_matter() -> None:
    tree = [torch.zeros(0, 3), np.float64(0.1), torch.arange(3)]
    content = pack(tree)
    with torch.device("meta"):
        assert pack([tree[1]]) == pack([tree[1]])
        assert same(unpack(content), tree)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        1j,
        b"bytes",
        np.longdouble(1),
        np.array(["text"]),
        np.zeros(2, "f4,f4"),
        np.array([None]),
        np.datetime64("2020"),
        np.ma.array([1.0]),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        {(1, 2): 3},
        {1.5: 2},
        {True: 2},
        {2**61: 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_place_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="in a file"):
        pack([value])


def test_tree_that_holds_itself_or_is_too_deep_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="levels of nesting"):
        pack(circle)
    with pytest.raises(ValueError, match="levels of nesting"):
        pack(nested(300))
    with pytest.raises(ValueError, match="bytes of text"):
        pack("a" * 10**8)
    assert unpack(pack("[" * 300)) == "[" * 300
    assert unpack(pack(nested(150))) == nested(150)


def nested(depth: int) -> list[Any]:
    tree: list[Any] = []
    for _ in range(depth - 1):
        tree = [tree]
    return tree


# ---------------------------------------------------------------------- damaged and hostile files
TREE = {"weights": torch.arange(4.0).reshape(2, 2), "steps": [np.float32(0.5), 7, "text", {3: math.nan}]}


def test_truncated_file_is_refused() -> None:
    content = pack(TREE)
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"^the contents are damaged"):
            unpack(content[:size])
    with pytest.raises(ValueError, match=r"^the contents are damaged"):
        unpack(content + b"\0")


def test_one_wrong_bit_is_found_or_harmless() -> None:
    content = bytearray(pack(TREE))
    found = 0
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        try:
            assert same(unpack(bytes(content)), TREE)
        except ValueError as error:
            assert "\n" not in str(error)
            found += 1
        content[position] ^= 1 << position % 8
    assert found > len(content) - 20


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(ValueError, match=r"^the contents are damaged"):
        unpack(noise)


def file_of(text: str, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    """A file that holds any text, with the right checksum: that of the text and of the sorted tensors."""
    tensors = tensors or {}
    total = zlib.crc32(text.encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.numpy().tobytes(), total)
    return save_tensors(tensors, {"skinverse": f"{total:08x}{text}"})


def test_files_of_these_tests_are_read() -> None:
    assert same(unpack(file_of('[1, {"$tensor": "0"}]', {"0": torch.ones(2)})), [1, torch.ones(2)])


ONE = {"0": torch.ones(2)}
HOSTILE: dict[str, tuple[bytes, str]] = {
    "header of 100 megabytes": ((10**8).to_bytes(8, "little") + bytes(100), "another kind"),
    "header of exabytes": (b"\xff" * 8 + bytes(100), "another kind"),
    "no header": (bytes(8), "another kind"),
    "another metadata": (save_tensors({}, {"format": "pt"}), "KeyError"),
    "no metadata": (save_tensors({"0": torch.ones(2)}), "KeyError"),
    "deep lists": (file_of("[" * 10**5 + "]" * 10**5), "levels of nesting"),
    "deep dicts": (file_of('{"":' * 10**5 + "0" + "}" * 10**5), "levels of nesting"),
    "deep after a string": (file_of('["\\\\",' * 500 + "0" + "]" * 500), "levels of nesting"),
    "deep and unclosed": (file_of("[" * 10**5), "levels of nesting"),
    "many lists": (file_of("[" + "[]," * 5 * 10**6 + "0]"), "values, more than"),
    "long text": (file_of('"' + "a" * 2**26 + '"'), "another kind"),
    "escaped quotes": (file_of('["' + r"\"" * 10**6), "Unterminated string"),
    "no number": (file_of("[NaN]"), "NaN is no JSON"),
    "number of many digits": (file_of("[" + "9" * 10**6 + "]"), "digits"),
    "unknown tag": (file_of('{"$pickle": "gASV"}'), "KeyError: '\\$pickle'"),
    "two tags": (file_of('{"$float": "nan", "$tuple": []}'), "too many values"),
    "float that is none": (file_of('{"$float": "1_0"}'), "expected one of"),
    "keys of one hash": (file_of(f'{{"$dict": [[{2**61 - 1}, 0]]}}'), "names and whole numbers"),
    "key that is a list": (file_of('{"$dict": [[[], 0]]}'), "names and whole numbers"),
    "missing array": (file_of('{"$array": "0"}'), "KeyError: '0'"),
    "array that is used twice": (file_of('[{"$array": "0"}, {"$array": "0"}]', ONE), "KeyError: '0'"),
    "array that belongs to nothing": (file_of("[]", ONE), "1 arrays belong to nothing"),
    "complex number of no pair": (
        file_of('{"$tensor": "a.complex"}', {"a.complex": torch.ones(3)}),
        "size 2",
    ),
    "wrong checksum": (file_of("[1]").replace(b"[1]", b"[2]"), "checksum"),
    "overlapping arrays": (
        save_tensors({"0": torch.ones(2), "1": torch.ones(2)}, {"skinverse": "00000000[]"}).replace(
            b"[8,16]", b"[0,8] "
        ),
        "SafetensorError",
    ),
    "array of exabytes": (
        save_tensors({"0": torch.ones(2)}, {"skinverse": "00000000[]"}).replace(b"[2]", b"[9]"),
        "SafetensorError",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_soon_in_one_sentence(name: str) -> None:
    content, message = HOSTILE[name]
    start = time.process_time()
    with limited_memory(500_000_000), pytest.raises(ValueError, match=message) as caught:
        unpack(content)
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert "Memory" not in str(caught.value)


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let the process have so many bytes more than it has; where the system can."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(statm.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_foreign_file_is_not_read_to_its_end(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"something else")
        file.truncate(10**12)  # a hole, which takes no space
    with limited_memory(500_000_000), pytest.raises(ValueError, match="another kind"):
        read(path)
    with pytest.raises(ValueError, match="another kind"):
        read("/dev/zero")
    with pytest.raises(FileNotFoundError):
        read(path.with_name("missing"))


def test_file_is_read(path: Path) -> None:
    write_atomically(path, pack(TREE))
    assert same(read(path), TREE)

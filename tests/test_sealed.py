"""Sealed files: they are read back as written, and a single changed bit is refused."""

import hashlib
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xcnn.errors import CheckpointError, UsageError
from xcnn.runs.sealed import pack, read_sealed, unpack, write_sealed

TENSORS = {
    "0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.asarray(7),
    "empty": np.zeros((0, 3), np.float32),
}
ENTRIES = {"xcnn": {"name": 'quoted "sha256":"', "rate": 0.1, "big": 2**127}}


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "some.safetensors"
    write_sealed(path, TENSORS, ENTRIES)
    return path, metadata(path)["sha256"]


def metadata(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def test_what_is_written_comes_back(sealed):
    path, _ = sealed
    back = read_sealed(path)
    assert back.entries["xcnn"] == ENTRIES["xcnn"]
    assert back.tensors.keys() == TENSORS.keys() == load_file(path).keys()
    for name, tensor in TENSORS.items():
        assert (back.tensors[name].dtype, back.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert back.tensors[name].tobytes() == tensor.tobytes()
        assert back.entries["tensors"][name] == hashlib.sha256(tensor.tobytes()).hexdigest()


def test_the_digest_is_that_of_the_header_with_zeros_in_its_place(sealed):
    path, digest = sealed
    content = path.read_bytes()
    assert content.count(digest.encode()) == 1
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    assert hashlib.sha256(header.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_every_other_bit_is_refused(sealed):
    """One bit of every byte in turn, including the bytes of lengths."""
    path, _ = sealed
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in range(len(content)):
        mutant = bytearray(content)
        mutant[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(mutant)
        with pytest.raises(CheckpointError):
            refuse_plain(path)
    for damaged in (b"", content[:-1], content + b"\0", content[:100], content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_sealed(path)


def refuse_plain(path):
    """Read a file, and refuse it if it does not say that xcnn wrote it, as every reader of checkpoints does."""
    if not read_sealed(path).entries:
        raise CheckpointError("it says nothing of a model")


def test_a_damaged_tensor_is_named(sealed):
    path, _ = sealed
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: (0\.weight|count) is not as it was written"):
        read_sealed(path)


def test_a_seal_of_another_file_is_refused(tmp_path):
    """The metadata of one file with the tensors of another, saved with safetensors."""
    path = tmp_path / "spliced.safetensors"
    write_sealed(path, TENSORS, ENTRIES)
    texts = metadata(path)
    save_file(TENSORS | {"count": np.asarray(8)}, path, texts)
    with pytest.raises(CheckpointError, match="count is not as it was written"):
        read_sealed(path)
    save_file({**TENSORS, "more": np.asarray(8)}, path, texts)
    with pytest.raises(CheckpointError, match="its list of tensors does not match"):
        read_sealed(path)
    del texts["sha256"]
    save_file(TENSORS, path, texts)
    with pytest.raises(CheckpointError, match="its metadata have no sha256"):
        read_sealed(path)


def test_plain_files_of_others_are_read_as_they_are(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(TENSORS, path, {"format": "pt"})
    back = read_sealed(path)
    assert back.entries == {}
    assert back.tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("head", "says"),
    [
        ((2**40).to_bytes(8, "little"), "its header has 1099511627784 bytes"),
        (
            b'{"w": {"dtype": "U8", "shape": [%s1], "data_offsets": [0, 0]}}' % ((b"9" * 4000 + b",") * 400),
            "shape of w",
        ),
        (b'{"w": {"dtype": "U8", "shape": "", "data_offsets": [0, 0]}}', ""),
        (b'{"w": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}', "shape of w"),
        ('{"w": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}'.encode("utf-16"), ""),
    ],
)
def test_hostile_headers_are_refused(tmp_path, head, says):
    """Products of huge sizes would take minutes, in which Ctrl-C is not heard."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes((b"" if len(head) == 8 else len(head).to_bytes(8, "little")) + head + b"\0")
    with pytest.raises(CheckpointError, match=f"cannot be read as a safetensors file: .*{says}"):
        read_sealed(path)


def test_a_dtype_that_numpy_lacks_is_named(tmp_path):
    path = tmp_path / "half.safetensors"
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(CheckpointError, match="w is of the dtype F8_E4M3, which NumPy does not have"):
        read_sealed(path)


def test_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    entries = {"a": ([2, 1], [0, 4]), "b": ([], [4, 6])}
    header = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": place} for name, (shape, place) in entries.items()
    }
    text = json.dumps(header).encode()
    numbers = np.array([1.5, -(2.0**100), np.inf], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype("<u2")
    path.write_bytes(len(text).to_bytes(8, "little") + text + halves.tobytes())
    found = read_sealed(path).tensors
    assert found["a"].dtype == found["b"].dtype == np.float32
    assert np.array_equal(found["a"], numbers[:2, None])
    assert (found["b"].shape, float(found["b"])) == ((), np.inf)


shapes = st.lists(st.integers(0, 3), max_size=2)
sizes = st.integers(-4, 4) | st.sampled_from([1.0, True, None, 2**63, "2"])
slips = st.sampled_from([0, 0, 0, 0, 0, -1, 1, 4])


@given(st.data())
@settings(max_examples=200)
def test_headers_are_read_as_the_library_of_the_format_reads_them(tmp_path_factory, data):
    """A file that is read at all has the tensors that safetensors finds in it."""
    path = tmp_path_factory.mktemp("sealed") / "some.safetensors"
    header, end = {}, 0
    for name in data.draw(st.lists(st.sampled_from("abc"), unique=True)):
        shape = data.draw(shapes)
        code, width = data.draw(st.sampled_from([("F32", 4), ("U8", 1), ("BOOL", 1), ("I64", 8), ("F8", 1)]))
        start = end + data.draw(slips)
        end = start + math.prod(shape) * width + data.draw(slips)
        shape = data.draw(st.just(shape) | st.lists(sizes, max_size=2))
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(max(0, end + data.draw(slips))))
    try:
        ours = read_sealed(path).tensors
    except CheckpointError:
        with pytest.raises((SafetensorError, KeyError)):
            load_file(path)
        return
    theirs = load_file(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)


def test_reading_takes_the_memory_of_the_file_once(tmp_path):
    path = tmp_path / "large.safetensors"
    write_sealed(path, {"a": np.zeros(2**20), "b": np.zeros(2**21, np.float32)}, {"xcnn": {}})
    tracemalloc.start()
    read_sealed(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * path.stat().st_size


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | hnp.arrays(st.sampled_from(["<f4", "<f8", "<i8", "u1", "<u2"]), hnp.array_shapes(min_dims=0, max_dims=2))
)
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=12)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(trees)
@settings(max_examples=100)
def test_a_tree_comes_back_through_json_and_arrays(tree):
    plain, arrays = pack(tree, "some")
    assert same(unpack(json.loads(json.dumps(plain)), arrays), tree)


def test_numbers_of_numpy_become_pythons():
    assert pack({"a": np.float64(0.5), "b": (np.int32(3),)}, "x") == ({"a": 0.5, "b": [3]}, {})


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"a": {"$array": "x.b"}}, "'x.b' that is not there"),
        ({"a": {"$array": "x.a"}, "b": {"$array": "x.a"}}, "'x.a' that is not there"),
        ({"a": {"$array": ["x.a"]}}, "that is not there"),
        ({}, "does not say what the array 'x.a' is for"),
    ],
)
def test_trees_that_do_not_fit_their_arrays_are_refused(plain, message):
    with pytest.raises(CheckpointError, match=message):
        unpack(plain, {"x.a": np.zeros(2)})


def test_a_header_that_would_take_much_memory_is_refused(tmp_path):
    path = tmp_path / "large.safetensors"
    with pytest.raises(
        UsageError, match=r"large.safetensors cannot be written: its header would have 20,0..,... bytes"
    ):
        write_sealed(path, {}, {"xcnn": "x" * 20_000_000})
    path.write_bytes((20_000_000).to_bytes(8, "little") + b"[" * 20_000_000)
    with pytest.raises(CheckpointError, match="its header has 20000008 bytes"):
        read_sealed(path)

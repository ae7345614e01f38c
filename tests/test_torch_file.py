"""The reader of files of `torch.save`, against files made by hand, and where it is installed, against PyTorch."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import SIMPLE, legacy, named, payload, pickled, zipped

import xcnn
from xcnn.errors import CheckpointError
from xcnn.runs.torch_file import read_torch

FORMATS = {"zip": zipped, "legacy": legacy}


@pytest.fixture(params=FORMATS)
def write(request, tmp_path):
    def write(value):
        path = tmp_path / "x.pth"
        path.write_bytes(FORMATS[request.param](value))
        return path

    return write


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("around", [lambda s: s, lambda s: {"epoch": 3, "lr": "1e-3", "state_dict": s},
                                    lambda s: {"model": {"state_dict": s}}])  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_dict_of_tensors_is_read_in_order(write, around, prefix):
    path = write(around({prefix + name: array for name, array in SIMPLE.items()}))
    same(read_torch(path), SIMPLE)


def test_every_dtype_and_strides(write):
    values = {
        kind: np.arange(6).astype(kind).reshape(2, 3) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")
    }
    values["turned"] = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    values["none"] = np.zeros((0, 3), "f4")
    same(read_torch(write(values)), values)
    numbers = np.array([1.0, -2.5, 3e38, np.inf], "f4")
    found = read_torch(write({"x": (numbers.view("u4") >> 16).astype("u2")}))["x"]  # bfloat16
    assert found.dtype == np.float32
    assert np.allclose(found, numbers, rtol=2**-7)


# Files made to do harm


def test_a_planted_payload_is_refused_by_name_and_not_run(write, tmp_path):
    for value in (payload(tmp_path / "run"), {"state_dict": SIMPLE, "x": payload(tmp_path / "run")}):
        path = write(value)
        with pytest.raises(CheckpointError, match=r"names 'os\.mkdir', .* nothing that a file names is run") as caught:
            xcnn.load(path)
        assert str(path) in str(caught.value)
        assert not (tmp_path / "run").exists()
    # The payload works where it is run.
    __import__("pickle").loads(pickled(payload(tmp_path / "run")))
    assert (tmp_path / "run").is_dir()


STACK_GLOBAL = b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (STACK_GLOBAL, "names 'os.system'"),
        (named("builtins", "eval") + b")R", "names 'builtins.eval'"),
        (named("torch.nn.modules.linear", "Linear") + b")\x81", r"save model.state_dict\(\) alone"),
        (named("torch", "_utils._rebuild_tensor_v2") + b")R", "which weights do not need"),
        (named("collections", "OrderedDict") + b")\x81", "instruction NEWOBJ"),
        (named("collections", "OrderedDict") + named("os", "system") + b"b", "names 'os.system'"),
        (b"]" + named("collections", "OrderedDict") + b"N" + b"b", "_Name where a dict is expected"),
        (b"\xff", "opcode b'.xff' unknown"),
        (b"}" + b"(" + b"K\x01t" + b"K\x02s", "key of the type tuple"),
        (b"}]K\x01s", "key of the type list"),
        (b"0", "instruction POP"),
        (b"t", "pop from empty list"),
        (b"h\x05", "5"),
        (b"K\x05", "holds a int, expected a dict of tensors"),
        (b"}", "holds no tensors"),
        (b"}" + b"X\x01\x00\x00\x00a" + b"K\x05" + b"s", "holds no tensors"),
        (b"R", "more from the stack than is there"),
        (b"(" * 5 + b"R", "more from the stack than is there"),
        (b"", "more from the stack than is there"),
        ((b")" + b"\x85" * 9999), "holds a tuple"),
    ],
)
def test_other_pickles_are_refused(write, program, says):
    with pytest.raises(CheckpointError, match=says) as caught:
        read_torch(write(program))
    assert len(str(caught.value)) < 500


def test_files_that_are_no_weights_say_what_they_are(tmp_path):
    path = tmp_path / "x.pth"
    whole = zipped({"a": np.zeros(1000, np.float32)})
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="its end is missing, as when a download is not complete"):
        xcnn.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="it is empty"):
        xcnn.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled({}))
        archive.writestr("x/code/model.py", "x = 1\n" * 99, zipfile.ZIP_DEFLATED)
        archive.writestr("x/constants.pkl", pickled(()))
    with pytest.raises(CheckpointError, match="a program of TorchScript, which is not run; save"):
        xcnn.load(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "size"),
    [
        ((2, 3), (3, 1), 1, 6),  # one past the end
        ((2, 3), (4, 1), 0, 6),
        ((10**12,), (0,), 0, 6),  # would take terabytes when it is copied
        ((2**62, 2**62), (0, 0), 0, 6),
        ((2, 3), (3, -1), 2, 6),
        ((2, 3), (3,), 0, 6),
        ((1,) * 65, (1,) * 65, 0, 6),
        ((2, 3), (3, 1), -1, 6),
        ((2, 3), (3, 1), 0, 10**15),
        ((True, 3), (3, 1), 0, 6),
    ],
)
def test_tensors_outside_their_numbers_are_refused(write, shape, strides, offset, size):
    array = np.arange(6, dtype="f4")
    reference = ("storage", named("torch", "FloatStorage"), "0", "cpu", size)
    tensor = pickled((pickled(reference)[2:-1] + b"Q", offset, shape, strides, False, None))[2:-1] + b"R"
    path = write({"a": array, "b": named("torch._utils", "_rebuild_tensor_v2") + tensor})
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"outside its storage|invalid|expected|shape or the strides"):
            read_torch(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("key", "says"), [("9", "storage 9 has 0 bytes, expected 6 of float32"), ("9" * 10**5, "the storage 999")]
)
def test_storages_that_are_missing_are_named_in_a_short_sentence(tmp_path, key, says):
    reference = pickled(("storage", named("torch", "FloatStorage"), key, "cpu", 6))[2:-1] + b"Q"
    tensor = named("torch._utils", "_rebuild_tensor_v2") + pickled((reference, 0, (6,), (1,), False, None))[2:-1] + b"R"
    path = tmp_path / "x.pth"
    path.write_bytes(zipped({"a": tensor}))
    with pytest.raises(CheckpointError, match=says) as caught:
        read_torch(path)
    assert len(str(caught.value)) < 1000


def test_archives_that_are_others_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    zeros = {"a": np.zeros(1 << 22, "f4")}
    path.write_bytes(zipped(zeros, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(CheckpointError, match=r"without a data\.pkl"):
        read_torch(path)
    content = zipped({"a": np.arange(64, dtype="f4")})
    at = content.index(np.arange(64, dtype="f4").tobytes())
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read_torch(path)
    content = zipped({"a": np.zeros(4, "f4")})
    at = content.index(b"PK\x01\x02")
    path.write_bytes(content[: at + 20] + (1 << 30).to_bytes(4, "little") + content[at + 24 :])  # the compressed size
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(path)
    path.write_bytes(zipped("x" * (5 << 20)))
    with pytest.raises(CheckpointError, match="its pickle has 5"):
        read_torch(path)
    path.write_bytes(legacy("x" * (5 << 20)))
    with pytest.raises(CheckpointError, match=r"only .* remain"):
        read_torch(path)
    path.write_bytes(pickled({"a": 1}))
    with pytest.raises(CheckpointError, match="another kind of pickle"):
        read_torch(path)


def test_one_list_does_not_stand_for_many_dicts(write):
    ordered = named("collections", "OrderedDict")
    items = b"](" + b"".join(b"(J" + k.to_bytes(4, "little") + b"Nt" for k in range(10_000)) + b"e"
    assert read_torch(write({"a": np.ones(1, "f4"), "b": ordered + items + b"\x85R"})).keys() == {"a"}  # Python 2's
    many = b"](" + (ordered + b"h\x07\x85R") * 500 + b"e"
    path = write({"a": np.ones(1, "f4"), "b": items + b"q\x07" + many + b"\x86"})
    tracemalloc.start()
    try:
        read_torch(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


# With PyTorch


def test_files_of_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    parallel = torch.nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 3, 3, 6)).sum().backward()
    optimizer.step()
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
             torch.uint8, torch.bool]  # fmt: skip
    views = {"shared": base, "part": base[5:9], "turned": base.reshape(4, 6).T, "steps": base.reshape(4, 6)[1::2, ::3],
             "parameter": torch.nn.Parameter(base), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3),
             **{str(kind): base.to(kind) for kind in kinds}}  # fmt: skip
    checkpoint = {"epoch": 1, "best": 0.5, "optimizer": optimizer.state_dict(), "name": "é", "big": 2**70,
                  "size": torch.Size([2, 3]), "done": [True, None, (1, 2.5)]}  # fmt: skip
    cases = [
        (model.state_dict(), model.state_dict()),
        (parallel.state_dict(), model.state_dict()),
        ({**checkpoint, "model": parallel.state_dict()}, model.state_dict()),
        (views, views),
    ]
    path = tmp_path / "x.pt"
    for saved, expected in cases:
        for options in ({}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}):
            torch.save(saved, path, **options)
            found = read_torch(path)
            wide = {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in expected.items()}
            same(found, {name: x.detach().numpy() for name, x in wide.items()})
    torch.save(model, path)
    with pytest.raises(CheckpointError, match=r"names 'torch\.nn\.modules\.container\.Sequential'"):
        read_torch(path)

"""Files as `torch.save` writes them, made without PyTorch, for tests of the reader and for `hostile.py`."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np

__all__ = ["SIMPLE", "legacy", "make", "mend_zip", "payload", "pickled", "zipped"]

SIMPLE = {
    "0.weight": np.arange(24, dtype="<f4").reshape(2, 3, 2, 2),
    "0.bias": np.array([1, -1], "<f8"),
    "1.num_batches_tracked": np.array(3, "<i8"),
}

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char",
         "u1": "Byte", "b1": "Bool", "u2": "BFloat16"}  # fmt: skip


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def pickled(value, storages=None):
    """Return the pickle of protocol 2 of numbers, text, dicts, tuples, arrays as tensors, and bytes as they are."""
    return b"\x80\x02" + _program(value, {} if storages is None else storages) + b"."


def _program(value, storages):
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(_program(inner, storages) for inner in value) + b"t"
        case list():
            return b"](" + b"".join(_program(inner, storages) for inner in value) + b"e"
        case dict():
            items = (part for item in value.items() for part in item)
            return b"}(" + b"".join(_program(part, storages) for part in items) + b"u"
    key, kind = str(len(storages)), KINDS[value.dtype.str[1:]]
    storages[key] = value
    strides = tuple(step // value.itemsize for step in value.strides)
    reference = ("storage", named("torch", f"{kind}Storage"), key, "cpu", value.size)
    storage = _program(reference, storages) + b"Q"
    arguments = (storage, 0, value.shape, strides, False, named("collections", "OrderedDict") + b")R")
    return named("torch._utils", "_rebuild_tensor_v2") + _program(arguments, storages) + b"R"


def zipped(value, compression=zipfile.ZIP_STORED):
    """Return the file that PyTorch writes since 1.6."""
    storages, file = {}, io.BytesIO()
    program = pickled(value, storages)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"x/data/{key}", array.tobytes("A"))
    return file.getvalue()


def legacy(value):
    """Return the file that PyTorch wrote before."""
    storages = {}
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickled(part, storages) for part in (0x1950A86A20F9469CFC6C, 1001, about, value)]
    contents = [struct.pack("<q", array.size) + array.tobytes("A") for array in storages.values()]
    return b"".join([*head, pickled(list(storages)), *contents])


def payload(path):
    """Return instructions that make `pickle` create a file: `os.mkdir(path)`."""
    return named("os", "mkdir") + _program((str(path),), {}) + b"R"


def make(folder: Path, content=zipped, planted=False) -> Path:
    """Write a checkpoint of a training script into a folder; one with a payload would make a folder beside it."""
    path = folder / "weights.pth"
    epoch = payload(folder / "run") if planted else 3
    path.write_bytes(content({"epoch": epoch, "state_dict": {f"module.{name}": a for name, a in SIMPLE.items()}}))
    return path


def mend_zip(content: bytes) -> bytes:
    """Update the checksums of the members of an archive, as far as their headers can be found."""
    mended = bytearray(content)
    at = content.find(b"PK\x01\x02")
    while at >= 0 and at + 46 <= len(content):
        size, start = (int.from_bytes(content[at + k : at + k + 4], "little") for k in (24, 42))
        skip = 30 + sum(int.from_bytes(content[start + k : start + k + 2], "little") for k in (26, 28))
        mended[at + 16 : at + 20] = zipfile.crc32(content[start + skip : start + skip + size]).to_bytes(4, "little")
        at = content.find(b"PK\x01\x02", at + 46)
    return bytes(mended)

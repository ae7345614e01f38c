"""The ONNX files that `hostile.py` damages: their bytes, and what the bytes say.

Damaged bytes rarely are a model any more, so `edit` changes the fields of one: sizes, names, types and options.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from onnx import numpy_helper, parser

from xcnn.onnx import read

__all__ = ["edit", "make_onnx", "read_onnx"]

TEXT = """
    <ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    small (float[N, 2, 6, 6] x) => (float[N, K] y, float[N, 4, 6, 6] z) {
        pairs = Constant <value = int64[2] {0, 1}> ()
        c = Conv <pads = [1, 1, 1, 1], group = 1> (x, conv_weight, conv_bias)
        b = BatchNormalization <epsilon = 0.001> (c, conv_bias, bias, mean, var)
        r = own.gate (b)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (r)
        scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
        up = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (p, , scales)
        sizes = Shape (up)
        first = Gather (sizes, zero)
        row = Unsqueeze (first, zero_)
        rest = Constant <value = int64[1] {-1}> ()
        shape = Concat <axis = 0> (row, rest)
        one = Constant <value = int64[4] {1, 4, 6, 6}> ()
        ones = ConstantOfShape <value = float[1] {2.0}> (one)
        twice = Tile (ones, tiles)
        some = Slice (twice, starts, ends, axes)
        grown = Expand (some, one)
        count = Range (zero, four, step)
        counted = Cast <to = 1> (count)
        lines = Reshape (counted, lined)
        moved = Add (up, grown)
        bent = Mul (moved, lines)
        turned = Transpose <perm = [0, 1, 3, 2]> (bent)
        padded = Pad (turned, sides)
        m = ReduceMean <keepdims = 1> (padded, last)
        z = Mul (bent, m)
        flat = Flatten (z)
        y = Gemm <transB = 1> (flat, fc_weight, fc_bias)
    }
    <domain: "own", opset_import: ["" : 18]>
    gate (x) => (y) { s = Sigmoid (x) y = Mul (x, s) }
    """
INTEGERS = {
    "zero": 0, "zero_": [0], "tiles": [1, 1, 1, 1], "starts": [0], "ends": [9], "axes": [2], "four": 4, "step": 1,
    "lined": [1, 4, 1, 1], "sides": [0, 0, 0, 0, 0, 0, 0, 0], "last": [-1],
}  # fmt: skip


def make_onnx(folder: Path) -> Path:
    """Write a network with what exporters write: a function, arithmetic of shapes, and a tensor in another file."""
    model, rng = parser.parse_model(TEXT), np.random.default_rng(0)
    shapes = {"conv_weight": (4, 2, 3, 3), "fc_weight": (3, 144), "fc_bias": (3,)}
    shapes |= dict.fromkeys(("conv_bias", "bias", "mean", "var"), (4,))
    for name, shape in shapes.items():
        array = rng.uniform(0.5, 1, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, numbers in INTEGERS.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(numbers, np.int64), name))
    tensor = model.graph.initializer[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    path = folder / "x.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def read_onnx(path: Path) -> object:
    return read(path).graph


NUMBERS = [-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 7, 64, 1000, 2**16, 2**20, 2**31 - 1, 2**40, 2**62, 2**63 - 1]
TEXTS = ["", "x", "y", "a.b", "conv_weight", "\0", "../../etc/passwd", "/etc/passwd", "weights.bin", "x" * 300, "own"]
TYPES = ["If", "Loop", "Scan", "Reshape", "Expand", "Conv", "Gather", "Split", "Einsum", "Cast", "Sum", "Resize", "Pow"]


def edit(file: bytearray, rng: random.Random, other: bytes) -> None:
    """Change one field of the model in a file, wherever it is."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(file))
    except Exception:  # DecodeError of protobuf, which has no types
        return
    places: list[tuple[Any, FieldDescriptor]] = []
    _collect(model, places)
    message, field = rng.choice(places)
    if rng.random() < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated:
        _edit_list(getattr(message, field.name), field, rng)
    elif field.message_type is None:
        _set(message, field, _drawn(field, rng, getattr(message, field.name)))
    file[:] = model.SerializeToString()


def _collect(message: Any, places: list[tuple[Any, FieldDescriptor]]) -> None:
    for field, value in message.ListFields():
        places.append((message, field))
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                _collect(one, places)


def _edit_list(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    i = rng.randrange(len(values))
    change = rng.choice(["remove", "repeat", "set", "swap"])
    if change == "remove":
        del values[i]
    elif field.message_type is not None:
        j = rng.randrange(len(values))
        if change == "repeat":
            values.add().CopyFrom(values[i])
        else:
            kept = type(values[i])()
            kept.CopyFrom(values[i])
            values[i].CopyFrom(values[j])
            values[j].CopyFrom(kept)
    elif change == "repeat":
        values.extend(list(values[i:]) * rng.choice([1, 2, 10]))
    else:
        values[i] = _drawn(field, rng, values[rng.randrange(len(values))])


def _drawn(field: FieldDescriptor, rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool | int):
        number = rng.choice([*NUMBERS, value + 1, value - 1, value, rng.randrange(30)])
        return (
            number
            if field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
            else (
                max(min(number, 2**31 - 1), -(2**31))
                if field.cpp_type != FieldDescriptor.CPPTYPE_ENUM
                else abs(number) % 30
            )
        )
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), value, -value])
    text = rng.choice([*TEXTS, *(TYPES if field.name == "op_type" else ())])
    if isinstance(value, bytes):
        return rng.choice([text.encode(), value[: len(value) // 2], value + value, b"\xff" * 4])
    return text


def _set(message: Any, field: FieldDescriptor, value: Any) -> None:
    try:
        setattr(message, field.name, value)
    except ValueError:  # a number that an enumeration does not have, or a negative one without a sign
        message.ClearField(field.name)

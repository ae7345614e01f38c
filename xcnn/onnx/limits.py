"""ONNX files as input that is not trusted: what a file says is compared with what it holds before memory is taken.

A tensor takes as many bytes as the file holds for it. Arrays that are made while a file is read, such as constants that
are computed, are paid from a `Budget`. Tensors outside the file must be in its folder. Nothing is executed.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, inliner, numpy_helper

from xcnn._check import path as as_path
from xcnn._check import shown
from xcnn.errors import CheckpointError

__all__ = ["FLOATS", "Budget", "Invalid", "arrays", "open_file"]

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""The types of tensors that networks compute with; those of 16 bits become float32."""

_OPSETS = 6, defs.onnx_opset_version()
"""The first and last version of the standard operators that is read."""

_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data",
} | dict.fromkeys(
    [
        getattr(TensorProto, name)
        for name in ("INT32", "INT16", "INT8", "UINT16", "UINT8", "BOOL", "FLOAT16", "BFLOAT16")
    ],
    "int32_data",
)
"""The types that are read, with the fields that hold their numbers where they are not bytes."""

_MOST_NODES = 50_000
_FREE, _PER_BYTE = 16 << 20, 8
"""Memory for arrays that are made from what a file says: a constant, and a number of bytes per byte of the file."""


class Invalid(Exception):
    """What is wrong with a file, or with one of its nodes; whoever opens the file adds its name."""


class Budget:
    """The memory that may be taken for arrays that are not in the file.

    Parameters
    ----------
    size : size of the file in bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = _FREE + _PER_BYTE * size

    def take(self, shape: Iterable[int], itemsize: int) -> None:
        """Pay for an array, or raise `Invalid`."""
        size = math.prod(shape) * itemsize
        if size > self.left:
            raise Invalid(f"an array of {size:,} bytes would be made from constants, and {self.left:,} are allowed")
        self.left -= size


def open_file(path: Any, caller: str) -> tuple[onnx.ModelProto, Path, Budget]:
    """Return the model in a file, without functions of its own, with the path and the budget of the file.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is not an ONNX model whose versions are known.
    """
    path = as_path(caller, "path", path)
    try:
        if not path.is_file() and path.exists():
            raise CheckpointError(f"{path}: must be a file, but it is a directory, pipe or device")
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception:  # DecodeError of protobuf, which has no types
        raise CheckpointError(f"{path}: it is not an ONNX file, or it is damaged") from None
    try:
        _check(model)
        return _inlined(model), path, Budget(len(content))
    except Invalid as error:
        raise CheckpointError(f"{path}: {error}") from None


def _texts(message: Any) -> Iterator[object]:
    """Yield every text of a model; those that are not UTF-8 are bytes."""
    if isinstance(message, TensorProto):  # without its numbers
        yield message.name
        message = TensorProto(external_data=message.external_data)
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from [value] if isinstance(value, str | bytes) else value
        elif field.message_type is not None:
            for one in value if hasattr(value, "__len__") else [value]:
                yield from _texts(one)


def _check(model: onnx.ModelProto) -> None:
    if not all(isinstance(text, str) for text in _texts(model)):
        raise Invalid("it is not an ONNX file, or it is damaged: a name is not text")
    if not model.HasField("graph") or not model.graph.output:
        raise Invalid("it is not an ONNX file, or it is damaged: there is no graph with an output")
    versions = {one.domain: one.version for one in model.opset_import if one.domain in ("", "ai.onnx")}
    for version in versions.values():
        if not _OPSETS[0] <= version <= _OPSETS[1]:
            raise Invalid(f"its operators are of version {version}; versions {_OPSETS[0]} to {_OPSETS[1]} are read")
    if len(versions) != 1:
        raise Invalid("it is not an ONNX file, or it is damaged: it does not say the version of its operators")
    if model.graph.sparse_initializer:
        raise Invalid("it has sparse tensors, which are not supported; store them as dense ones")
    names = Counter(tensor.name for tensor in model.graph.initializer)
    names.update({one.name for one in model.graph.input} - names.keys())
    names.update(name for node in model.graph.node for name in node.output if name)
    for name, count in names.items():
        if count > 1:
            raise Invalid(f"{shown(name)} is the name of {count} values; each needs its own")


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the calls of the file's own functions by what is in them, if that is not too much."""
    functions = {(one.domain, one.name): one for one in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[onnx.NodeProto], above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type
            if key in above:
                raise Invalid(f"its function {shown(node.op_type)} calls itself")
            if key in functions and key not in counts:
                counts[key] = count(functions[key].node, (*above, key))
            total += counts.get(key, 1)
            if total > _MOST_NODES:
                raise Invalid(f"it has too many nodes; at most {_MOST_NODES:,} are read")
        return total

    try:
        count(model.graph.node, ())
        return inliner.inline_local_functions(model) if functions else model
    except RecursionError:
        raise Invalid("its functions are nested too deep") from None
    except Exception as error:
        if isinstance(error, Invalid):
            raise
        raise Invalid(f"its functions cannot be resolved: {error}") from None


def arrays(tensors: Iterable[TensorProto], folder: Path | None) -> dict[str, np.ndarray]:
    """Return tensors as arrays by name; those outside the file are read from its folder.

    Raises
    ------
    Invalid
        If a tensor is not what its type and shape say, or is not to be read.
    """
    read: Counter[Path] = Counter()  # bytes of each file, so that small files cannot stand for many large arrays
    return {tensor.name: _array(tensor, folder, read) for tensor in tensors}


def _array(tensor: TensorProto, folder: Path | None, read: Counter[Path]) -> np.ndarray:
    kind, shape = tensor.data_type, tuple(tensor.dims)
    name = f"the tensor {shown(tensor.name)}"
    if kind not in _FIELDS:
        known = kind in TensorProto.DataType.values()
        raise Invalid(f"{name} has the type {TensorProto.DataType.Name(kind) if known else kind}, which is not read")
    if any(size < 0 for size in shape) or len(shape) > 32:
        raise Invalid(f"{name} has the shape {shape}")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    size = math.prod(shape)
    if tensor.HasField("segment"):
        raise Invalid(f"{name} is stored in segments, which are not supported")
    if tensor.data_location == TensorProto.EXTERNAL:
        array = np.frombuffer(_external(tensor, name, size * dtype.itemsize, folder, read), dtype).reshape(shape)
    else:
        raw = tensor.HasField("raw_data")
        came = len(tensor.raw_data) if raw else len(getattr(tensor, _FIELDS[kind]))
        wanted = size * dtype.itemsize if raw else size
        if came != wanted:
            raise Invalid(f"{name} of shape {shape} needs {wanted:,} {'bytes' if raw else 'numbers'}, got {came:,}")
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, OverflowError, TypeError) as error:
            raise Invalid(f"{name} is damaged: {error}") from None
    return array.astype(np.float32) if kind in FLOATS and dtype.itemsize == 2 else array


def _external(tensor: TensorProto, name: str, size: int, folder: Path | None, read: Counter[Path]) -> bytes:
    """Return the bytes of a tensor from a file in the folder of the model."""
    if folder is None:
        raise Invalid(f"{name} is in another file, which only tensors of the graph may be")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where, root = entries.get("location", ""), folder.resolve()
    shown_where = shown(where)
    try:
        path = (root / where).resolve(strict=True)
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
        inside, available = path.is_relative_to(root) and path.is_file(), path.stat().st_size
    except FileNotFoundError:
        raise Invalid(f"{name} is in the file {shown_where} beside it, which is missing") from None
    except (OSError, ValueError, RuntimeError):  # such as a name with a null byte, or links in a circle
        inside = False
    if not inside or not where:
        raise Invalid(f"{name} is in {shown_where}, which is not a file in the folder of the model")
    if length != size or not 0 <= offset <= available - size:
        raise Invalid(f"{name} needs {size:,} bytes of {shown_where} from {offset:,}, which has {available:,}")
    read[path] += size
    if read[path] > available:
        raise Invalid(f"its tensors need {read[path]:,} bytes of {shown_where}, which has {available:,}")
    with path.open("rb") as file:
        file.seek(offset)
        content: bytes = file.read(size)
    if len(content) != size:
        raise Invalid(f"{name} could not be read from {shown_where}")
    return content

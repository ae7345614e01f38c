"""Sealed files: named tensors and JSON in one safetensors file in which every changed bit is detected.

The metadata holds the JSON texts of the caller; `tensors`, the SHA-256 of the bytes of each tensor by name; and
`sha256`, that of the header, computed with its own 64 digits as zeros. Any reader of safetensors can use the file.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn._files import replacing
from xcnn.errors import CheckpointError, UsageError

__all__ = ["Sealed", "pack", "read_sealed", "unpack", "widened", "write_sealed"]

_SEAL = b'"sha256":"'  # cannot occur inside a JSON text of the metadata, where quotes are escaped
_BLANK = b"0" * 64
_OURS = {"xcnn", "tensors", "sha256"}
_LONGEST_HEADER = 100_000_000  # of the format
_MOST_TEXT = 1 << 24  # of the header of a small file; parsed JSON may take twenty times its length
_CODES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_DTYPES = {code: np.dtype(text) for code, text in _CODES.items()}
"""The dtypes of NumPy by their names in safetensors files."""


_BFLOAT16 = "BF16"
"""A dtype that other programs write; see `widened`."""


class Sealed(NamedTuple):
    """The content of a safetensors file. Without `entries`, the parsed metadata, it was not written by xcnn."""

    tensors: dict[str, np.ndarray]
    entries: dict[str, Any]


def write_sealed(path: Path, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Any]) -> None:
    """Write host arrays and JSON values to a sealed file, atomically and without copying all arrays at once."""
    # The widest dtypes first, so that each tensor is aligned.
    arrays = {name: tensors[name] for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))}
    metadata = {name: json.dumps(entry) for name, entry in entries.items()}
    metadata["tensors"] = json.dumps({name: _sha256(array) for name, array in arrays.items()})
    metadata["sha256"] = _BLANK.decode()
    header: dict[str, Any] = {"__metadata__": metadata}
    codes, end = {dtype: code for code, dtype in _DTYPES.items()}, 0
    for name, array in arrays.items():
        code = codes.get(array.dtype.newbyteorder("<"))
        if code is None:
            raise UsageError(f"{name} cannot be saved: its dtype is {array.dtype}")
        start, end = end, end + array.nbytes
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _longest_header(end):
        raise UsageError(f"{path} cannot be written: its header would have {len(text):,} bytes; keep less text in it")
    head = len(text).to_bytes(8, "little") + text
    seal = hashlib.sha256(head).hexdigest().encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(head.replace(_SEAL + _BLANK, _SEAL + seal))
        for array in arrays.values():
            file.write(_bytes(array))


def _longest_header(tensors: int) -> int:
    """Return how long the header may be in a file with this many bytes of tensors."""
    return min(_LONGEST_HEADER, _MOST_TEXT + tensors // 16)


def _bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array as a file holds them: in C order, little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_bytes(array)).hexdigest()


def read_sealed(path: Path) -> Sealed:
    """Read and check a sealed file, or read any other safetensors file, holding its bytes in memory only once."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content = np.fromfile(path, np.uint8)
        if not content.size:
            raise ValueError("it is empty")
        end = 8 + int.from_bytes(content[:8].tobytes(), "little")
        if end > _longest_header(content.size):
            raise ValueError(f"its header has {end} bytes")
        head = content[:end].tobytes()
        header = json.loads(head[8:].decode())
        metadata = header.pop("__metadata__", None) or {}
        ours = bool(_OURS & metadata.keys())  # a sealed file has one of them, however damaged
        tensors = _tensors(header, content[end:])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a safetensors file: {error}") from None
    return Sealed(tensors, _entries(path, head, tensors, metadata) if ours else {})


def _tensors(header: dict[str, Any], content: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of a file as views of its content, which they must cover without gaps."""
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in (*_DTYPES, _BFLOAT16):
            raise ValueError(f"{name} is of the dtype {entry['dtype']}, which NumPy does not have")
        wide = entry["dtype"] == _BFLOAT16
        dtype, shape = np.dtype("<u2") if wide else _DTYPES[entry["dtype"]], entry["shape"]
        if (
            type(shape) is not list
            or len(shape) > 64
            or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
        ):
            raise ValueError(f"the shape of {name} is invalid")
        start, stop = entry["data_offsets"]
        if start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the place of {name} does not fit its shape and the tensor before it")
        tensor = np.require(content[start:stop].view(dtype).reshape(shape), requirements="A")
        tensors[name] = widened(tensor) if wide else tensor
        end = stop
    if end != content.size:
        raise ValueError(f"it has {content.size} bytes of tensors, expected {end}")
    return tensors


def widened(bits: np.ndarray) -> np.ndarray:
    """Return the float32 numbers of which the upper halves, bfloat16, are given as integers of 16 bits."""
    return np.asarray(bits.astype(np.uint32) << 16).view(np.float32)


def _entries(path: Path, head: bytes, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> dict[str, Any]:
    """Return the parsed texts of the metadata, after checking every digest."""
    try:
        if missing := _OURS - metadata.keys():
            raise ValueError(f"its metadata have no {min(missing)}")
        entries = {name: json.loads(text) for name, text in metadata.items() if name != "sha256"}
        if entries["tensors"].keys() != tensors.keys():
            raise ValueError("its list of tensors does not match")
        for name, tensor in tensors.items():  # before the header, as this error names the tensor
            if entries["tensors"][name] != _sha256(tensor):
                raise ValueError(f"{name} is not as it was written")
        seal = metadata["sha256"]
        if hashlib.sha256(head.replace(_SEAL + seal.encode(), _SEAL + _BLANK)).hexdigest() != seal:
            raise ValueError("its header is not as it was written")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return entries


_ARRAY = "$array"


def pack(tree: Any, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Separate the arrays in nested dicts and lists from the values that JSON can hold.

    Returns
    -------
    (plain, arrays) : the tree with each array replaced by `{"$array": name}`, and the arrays by name. A name is
        made of `prefix` and the position in the tree.

    >>> pack({"step": 3, "mean": np.zeros(2)}, "adam")
    ({'step': 3, 'mean': {'$array': 'adam.mean'}}, {'adam.mean': array([0., 0.])})
    """
    arrays: dict[str, np.ndarray] = {}
    return _split(tree, prefix, arrays), arrays


def _split(node: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    # Not nested in `pack`: a recursive closure is a reference cycle, which would keep the arrays alive.
    if isinstance(node, Mapping):
        return {str(key): _split(value, f"{name}.{key}", arrays) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_split(value, f"{name}.{index}", arrays) for index, value in enumerate(node)]
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, str | int | float | None):
        return node
    if not isinstance(node, np.ndarray) or node.dtype.kind not in "biuf":
        kind = f"an array of {node.dtype}" if isinstance(node, np.ndarray) else type(node).__name__
        raise UsageError(
            f"{name} cannot be saved in a checkpoint: it is {kind}, not a number, text or array of numbers"
        )
    while name in arrays:  # keys may hold dots
        name += "'"
    arrays[name] = node
    return {_ARRAY: name}


def unpack(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Restore the tree that `pack` has split, with lists for tuples and strings for keys; use every array once."""
    left = dict(arrays)
    tree = _join(plain, left)
    if left:
        raise CheckpointError(f"the training state does not say what the array {min(left)!r} is for")
    return tree


def _join(node: Any, left: dict[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_join(value, left) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() != {_ARRAY}:
        return {key: _join(value, left) for key, value in node.items()}
    name = node[_ARRAY]
    if not isinstance(name, str) or name not in left:
        raise CheckpointError(f"the training state refers to an array {name!r} that is not there")
    return left.pop(name)

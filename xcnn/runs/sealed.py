"""Sealed files: named tensors and JSON in one safetensors file in which every changed bit is detected.

The metadata holds the JSON texts of the caller; `tensors`, the SHA-256 of the bytes of each tensor by name; and
`sha256`, that of the whole file, computed with its own 64 digits as zeros. Any reader of safetensors can use the file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xcnn._files import replacing
from xcnn.errors import CheckpointError, UsageError

__all__ = ["Sealed", "pack", "read_sealed", "unpack", "write_sealed"]

_SEAL = b'"sha256":"'  # cannot occur inside a JSON text of the metadata, where quotes are escaped
_BLANK = b"0" * 64
_OURS = {"xcnn", "tensors", "sha256"}
_DTYPES = {"float": "F", "int": "I", "uint": "U", "bool": "BOOL"}


@dataclass(frozen=True)
class Sealed:
    """The content of a safetensors file.

    Attributes
    ----------
    tensors : host arrays by name.
    entries : the parsed JSON texts of the metadata; empty for a file that was not written by xcnn.
    """

    tensors: dict[str, np.ndarray]
    entries: dict[str, Any]


def write_sealed(path: Path, tensors: Mapping[str, np.ndarray], entries: Mapping[str, Any]) -> None:
    """Write a sealed file atomically, without copying all tensors at once.

    Parameters
    ----------
    path : the file, replaced if it exists.
    tensors : host arrays by name.
    entries : JSON values by name.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    # The widest dtypes first, so that each tensor is aligned.
    arrays = {name: tensors[name] for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))}
    metadata = {name: json.dumps(entry) for name, entry in entries.items()}
    metadata["tensors"] = json.dumps({name: _sha256(array) for name, array in arrays.items()})
    metadata["sha256"] = _BLANK.decode()
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _dtype(array), "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    for array in arrays.values():
        digest.update(_bytes(array))
    digits = _find_seal(head)
    head = head[:digits] + digest.hexdigest().encode() + head[digits + len(_BLANK) :]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        for array in arrays.values():
            file.write(_bytes(array))


def _dtype(array: np.ndarray) -> str:
    """Return the safetensors name of the dtype of an array."""
    if array.dtype.kind not in "biuf" or array.itemsize > 8:
        raise UsageError(f"an array of {array.dtype} cannot be saved")
    kind = array.dtype.name.rstrip("0123456789")
    return _DTYPES[kind] if kind == "bool" else f"{_DTYPES[kind]}{8 * array.itemsize}"


def _bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array as a file holds them: in C order, little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def read_sealed(path: Path) -> Sealed:
    """Read a sealed file, or any other safetensors file, whose content is not checked.

    Raises
    ------
    CheckpointError
        If the file is missing, incomplete, not a safetensors file, or damaged; the message names the damaged tensor.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except KeyError as error:
        raise CheckpointError(f"{path} holds a dtype that NumPy does not have: {error.args[0]}") from None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None
    metadata = header.get("__metadata__", {})
    if not _OURS & metadata.keys():  # a sealed file has one of them, however damaged
        return Sealed(tensors, {})
    _check(path, content, tensors, metadata)
    return Sealed(tensors, {name: json.loads(text) for name, text in metadata.items() if name != "sha256"})


def _check(path: Path, content: bytes, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    try:
        if missing := _OURS - metadata.keys():
            raise ValueError(f"its metadata have no {min(missing)}")
        written = json.loads(metadata["tensors"])
        digits = _find_seal(content)
        if written.keys() != tensors.keys():
            raise ValueError("its list of tensors is another")
        # First, since this error names the tensor.
        for name, tensor in tensors.items():
            if written[name] != _sha256(tensor):
                raise ValueError(f"{name} is not as it was written")
        whole = hashlib.sha256(content[:digits] + _BLANK)
        whole.update(memoryview(content)[digits + len(_BLANK) :])
        if content[digits : digits + len(_BLANK)] != whole.hexdigest().encode():
            raise ValueError("its header is not as it was written")
        for name, text in metadata.items():
            if name != "sha256":
                json.loads(text)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _find_seal(content: bytes) -> int:
    """Return the position of the digits of the SHA-256 of the whole file."""
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    if header.count(_SEAL) != 1:
        raise ValueError("it is not sealed once")
    return 8 + header.index(_SEAL) + len(_SEAL)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(_bytes(array)).hexdigest()


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
    if not isinstance(node, np.ndarray):
        if not isinstance(node, str | int | float | None):
            raise UsageError(
                f"{name} cannot be saved in a checkpoint: {type(node).__name__}, not a number, text or array"
            )
        return node
    if node.dtype.kind not in "biuf":
        raise UsageError(f"{name} cannot be saved in a checkpoint: an array of {node.dtype}")
    while name in arrays:  # keys may hold dots
        name += "'"
    arrays[name] = node
    return {_ARRAY: name}


def unpack(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Restore the tree that `pack` has split. Tuples become lists, and keys strings.

    Raises
    ------
    CheckpointError
        If an array is missing, used twice, or left over.
    """
    used: set[str] = set()
    tree = _join(plain, arrays, used)
    if unused := arrays.keys() - used:
        raise CheckpointError(f"the training state does not say what the array {min(unused)!r} is for")
    return tree


def _join(node: Any, arrays: Mapping[str, np.ndarray], used: set[str]) -> Any:
    if isinstance(node, list):
        return [_join(value, arrays, used) for value in node]
    if not isinstance(node, dict):
        return node
    if node.keys() != {_ARRAY}:
        return {key: _join(value, arrays, used) for key, value in node.items()}
    name = node[_ARRAY]
    if not isinstance(name, str) or name not in arrays or name in used:
        raise CheckpointError(f"the training state refers to an array {name!r} that is not there")
    used.add(name)
    return arrays[name]

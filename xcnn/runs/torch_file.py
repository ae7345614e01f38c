"""Read weights that `torch.save` wrote, without PyTorch and without running anything that the file names.

Such a file is a pickle: a program for a small stack machine that may call any function. Here `_run` interprets the few
instructions that a dict of tensors needs, and knows the five names in `_MAKERS` and the storages; any other name is
refused. The numbers stand beside the pickle: as members of a ZIP archive, or since before PyTorch 1.6 after it.
"""

import functools
import io
import math
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn._check import shown
from xcnn.errors import CheckpointError
from xcnn.runs.sealed import widened

__all__ = ["is_torch_file", "read_torch"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file from before PyTorch 1.6."""

_LONGEST = 1 << 22
"""Bytes of a pickle for a file of any size; each may take a hundred bytes of memory. A tensor needs some 200."""

_MOST_LETTERS = 400
"""The longest reason why a file is refused."""

_DTYPES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
"""The dtypes of storages; bfloat16, the upper half of float32, is read as integers and widened."""

_WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "params", "weights")
"""Where checkpoints of training scripts keep the weights, beside the state of the optimizer and other things."""

_WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DataParallel and torch.compile put before all names."""


class _Name(NamedTuple):
    """A name that the file would import."""

    full: str


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_torch_file(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is one of `torch.save`, as far as they tell."""
    return start.startswith((_ZIP, _PICKLE)) and start[8:9] != b"{"  # where safetensors has a brace


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Return the weights in a file of `torch.save` by name, in their order; bfloat16 becomes float32.

    Parameters
    ----------
    path : a `.pth` or `.pt` file with a `state_dict()`, or with a dict that has one as `state_dict`, `model` or the
        like. A prefix `module.` of all names is removed.

    Raises
    ------
    CheckpointError
        If the file is damaged, or holds other things than tensors, numbers and text in dicts and lists, such as a
        whole model.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == _ZIP
        tree, arrays = (_open_zip if zipped else _open_legacy)(path)
        tensors = _find(tree)
        return {name: _view(name, tensor, arrays) for name, tensor in tensors.items()}
    except (
        *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
        *(zipfile.BadZipFile, NotImplementedError, RuntimeError),  # ZIP archives of other kinds
    ) as error:
        reason = str(error)
        reason = reason if len(reason) <= _MOST_LETTERS else f"{reason[:_MOST_LETTERS]}..."  # it may quote the file
        raise CheckpointError(f"{path} cannot be read as a file of torch.save: {reason}") from None


# The two formats: each returns the object of the pickle, and a function that returns the numbers of a storage


def _open_zip(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    size = path.stat().st_size
    try:
        found = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise ValueError("its end is missing, as when a download is not complete") from None
    with found as archive:
        members = {member.filename: member for member in archive.infolist()}
        if any(name.endswith("/constants.pkl") for name in members):
            raise ValueError("it is a program of TorchScript, which is not run; save model.state_dict() alone")
        if any(part.compress_type or part.compress_size != part.file_size for part in members.values()):
            raise ValueError("its members are compressed, which torch.save never does")
        if sum(member.file_size for member in members.values()) > size:
            raise ValueError("its members are longer than the file")
        roots = [name[:-8] for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError("it is a ZIP archive without a data.pkl")
        program = archive.read(f"{roots[0]}data.pkl")
        if len(program) > _most(size):
            raise ValueError(f"its pickle has {len(program):,} bytes")
        tree = _run(io.BytesIO(program))
        order = archive.read(f"{roots[0]}byteorder") if f"{roots[0]}byteorder" in members else b"little"
        contents = {
            name.removeprefix(f"{roots[0]}data/"): archive.read(name)
            for name in members
            if name.startswith(f"{roots[0]}data/")
        }

    @functools.cache
    def array(storage: _Storage) -> np.ndarray:
        return _numbers(contents.get(storage.key, b""), storage, ">" if order == b"big" else "<")

    return tree, array


def _open_legacy(path: Path) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    size = path.stat().st_size
    with path.open("rb") as whole:
        file = io.BytesIO(whole.read(min(size, _most(size))))  # so that a pickle ends there
        if _run(file) != _MAGIC or _run(file) != _PROTOCOL:
            raise ValueError("it is another kind of pickle")
        about = _run(file)
        little = not isinstance(about, dict) or about.get("little_endian") is not False
        storages: dict[str, _Storage] = {}
        tree, keys = _run(file, storages), _run(file)
        whole.seek(file.tell())
        contents = {}
        for key in keys:
            storage = storages[key]
            count = int.from_bytes(whole.read(8), "little" if little else "big")
            if count != storage.size:
                raise ValueError(f"the storage {key} has {count:,} numbers, expected {storage.size:,}")
            contents[key] = whole.read(min(size, count * np.dtype(_DTYPES[storage.kind]).itemsize))

    @functools.cache
    def array(storage: _Storage) -> np.ndarray:
        return _numbers(contents.get(storage.key, b""), storage, "<" if little else ">")

    return tree, array


def _most(size: int) -> int:
    """Return how long the pickle in a file of this size may be."""
    return _LONGEST + size // 64


def _numbers(content: bytes, storage: _Storage, order: str) -> np.ndarray:
    dtype = np.dtype(order + _DTYPES[storage.kind])
    if len(content) != storage.size * dtype.itemsize:
        raise ValueError(f"the storage {storage.key} has {len(content):,} bytes, expected {storage.size} of {dtype}")
    array = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="), copy=False)
    return widened(array) if storage.kind == "BFloat16Storage" else array


# From the object to arrays


def _find(tree: Any) -> dict[str, _Tensor]:
    """Return the tensors by name in the dict of a file, or in the one of its dicts that holds the weights."""
    for _ in range(3):
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__.strip('_').lower()}, expected a dict of tensors")
        found = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, _Tensor)}
        if found:
            for prefix in _WRAPPERS:
                if all(name.startswith(prefix) for name in found):
                    found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            return found
        inner = [tree[name] for name in _WEIGHTS if isinstance(tree.get(name), dict)]
        if not inner:
            raise ValueError(f"it holds no tensors, nor a dict of them under {_WEIGHTS[0]}, but {shown([*tree][:8])}")
        tree = inner[0]
    raise ValueError("it holds no tensors, but dicts in dicts")


def _view(name: str, tensor: _Tensor, arrays: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    """Return a tensor as a view of its storage, inside which it must lie."""
    storage, offset, shape, strides = tensor
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if count else offset
    if count > storage.size or (count and last >= storage.size):
        raise ValueError(f"{name} {shape} lies outside its storage of {storage.size:,} numbers")
    flat = arrays(storage)
    if not count:
        return flat[:0].reshape(shape)
    steps = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)


# The stack machine


def _sizes(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError("a shape or the strides of a tensor are invalid")
    return value


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise ValueError("a tensor is invalid")
    if len(_sizes(shape)) != len(_sizes(strides)):
        raise ValueError("a tensor is invalid: it has not one stride per axis")
    return _Tensor(storage, offset, shape, strides)


def _ordered(*items: Any) -> dict[Any, Any]:
    """Return an OrderedDict, which Python 2 wrote with a list of its items."""
    made: dict[Any, Any] = {}
    for pairs in items:
        for key, value in _of(list, pairs):
            _store((key, value), made)
        pairs.clear()  # so that one list cannot stand for many dicts
    return made


_MAKERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered,
    "torch._utils _rebuild_tensor": _rebuild,
    "torch._utils _rebuild_tensor_v2": _rebuild,
    "torch._utils _rebuild_parameter": lambda data, *rest: data,
    "torch Size": _sizes,
}
"""What stands for the functions that a file may name; none of theirs is called."""

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
}
"""Instructions that push their argument."""

_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
"""Instructions that push a constant or an empty container."""

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _run(file: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Run the pickle that begins here and return its object; `storages` receives the storages by key."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def pop(count: int) -> list[Any]:
        if len(stack) - count < (marks[-1] if marks else 0):
            raise ValueError("its pickle takes more from the stack than is there")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def since_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for opcode, arg, _ in pickletools.genops(file):
        kind: Any = opcode.name
        if kind in _VALUES:
            stack.append(arg)
        elif kind in _NEW:
            stack.append(_NEW[kind]())
        elif kind in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if arg is None else arg] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif kind == "MARK":
            marks.append(len(stack))
        elif kind == "TUPLE":
            stack.append(tuple(since_mark()))
        elif kind in _TUPLES:
            stack.append(tuple(pop(_TUPLES[kind])))
        elif kind in ("SETITEM", "SETITEMS"):
            _store(pop(2) if kind == "SETITEM" else since_mark(), stack[-1])
        elif kind in ("APPEND", "APPENDS"):
            more = pop(1) if kind == "APPEND" else since_mark()
            _of(list, stack[-1]).extend(more)
        elif kind in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_named(str(arg) if kind == "GLOBAL" else " ".join(_of(str, part) for part in pop(2))))
        elif kind == "BINPERSID":
            stack.append(_storage(pop(1)[0], {} if storages is None else storages))
        elif kind == "REDUCE":
            name, arguments = pop(2)
            stack.append(_MAKERS[_of(_Name, name).full](*_of(tuple, arguments)))
        elif kind == "BUILD":  # the attributes of an OrderedDict, such as the versions of modules
            pop(1)
            _of(dict, stack[-1])
        elif kind == "STOP":
            return pop(1)[0]
        elif kind not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle has the instruction {kind}, which weights do not need")
    raise EOFError("its pickle has no end")


def _of(kind: type, value: Any) -> Any:
    """Return a value of this very type."""
    if type(value) is not kind:
        raise ValueError(f"its pickle has a {type(value).__name__} where a {kind.__name__} is expected")
    return value


def _store(items: Sequence[Any], into: Any) -> None:
    """Store keys and values that take turns; other keys than text and integers may take for ever to compare."""
    table = _of(dict, into)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise ValueError(f"its pickle has a dict with a key of the type {type(key).__name__}")
        table[key] = value


def _named(full: str) -> _Name:
    module, _, name = full.partition(" ")
    if full not in _MAKERS and not (module in ("torch", "torch.cuda") and name in _DTYPES):
        raise ValueError(
            f"it names {shown(f'{module}.{name}')}, which weights do not need, and nothing that a file names is run; "
            "save model.state_dict() alone"
        )
    return _Name(full)


def _storage(reference: Any, storages: dict[str, _Storage]) -> _Storage:
    """Return the storage to which a persistent id refers."""
    what, kind, key, _, size, *view = _of(tuple, reference)
    if what != "storage" or type(key) is not str or type(size) is not int or size < 0 or view not in ([], [None]):
        raise ValueError("a storage is invalid")
    storage = _Storage(_of(_Name, kind).full.rpartition(" ")[2], key, size)
    if storage.kind not in _DTYPES or storages.setdefault(key, storage) != storage:
        raise ValueError(f"the storage {key} is invalid")
    return storage

"""Functions that are written as instructions for LLVM, compiled when they are first used, and kept on disk.

A file is named by a digest of all that its machine code depends on: the instructions, the processor and the version of
llvmlite. So it can be damaged, which its content tells, but never be stale.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config

from xcnn._dispatch import COMPILATION
from xcnn._files import cache_folder, replacing
from xcnn.errors import XcnnError
from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._vectors import DOUBLE, INT

__all__ = ["address", "machine_code", "native"]

_MOST = 2000
"""Files that stay when others are removed: some 20 MiB."""

_SECONDS_TO_WRITE = 60
"""Writing one file takes less."""

_SUFFIX = ".kernel"

_LOCK = threading.RLock()

_number_at, _place = ctypes.c_void_p.from_address, object.__basicsize__


def _address(array: np.ndarray) -> int:
    return _number_at(id(array) + _place).value or 0


_ONE = np.empty(1)
_KNOWN = _address(_ONE) == _ONE.ctypes.data
address: Callable[[np.ndarray], int] = _address if _KNOWN else lambda array: array.ctypes.data
"""Return where an array begins. `array.ctypes` takes seven times as long as reading NumPy's own pointer, its first."""


def machine_code(write: Callable[[Any], None]) -> int:
    """Compile a function `loop`, which `write(module)` writes; return its address."""
    module = ir.Module()
    write(module)
    return int(_engine(str(module)).get_function_address("loop"))


def native(kinds: str) -> Callable[[Callable[..., None]], Any]:
    """Compile a function when it is first used; the decorated one, `write(emit, *arguments)`, writes its instructions.

    The result is a function of the bytes of a number, 4 or 8. It returns the compiled one, which takes C-contiguous
    arrays as they are: its code finds their addresses faster than Python could. It needs no lock of the interpreter.
    The result has the attributes `address(itemsize)`, and `write(emit, address, *arguments)`, which writes a call: code
    that several functions need is compiled once, and they are given its address.

    Parameters
    ----------
    kinds : a letter per argument. x is an array of numbers, i, d and u of int64, float64 and uint8; an upper-case
        letter is one that may be None. n is an integer, f a float64. Before a colon, n if the result is an integer.
        What is written gets pointers in place of arrays, null for None.
    """
    result, _, given = kinds.rpartition(":")

    def types(itemsize: int) -> list[Any]:
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        of = {"x": number, "i": INT, "d": DOUBLE, "u": ir.IntType(8)}
        return [{"n": INT, "f": DOUBLE}.get(kind) or of[kind.lower()].as_pointer() for kind in given]

    def decorate(write: Callable[..., None]) -> Any:
        returned = INT if result else ir.VoidType()

        @functools.cache
        def engine(itemsize: int) -> Any:
            module = ir.Module()
            function = ir.Function(module, ir.FunctionType(returned, types(itemsize)), "loop")
            function.attributes.add("noinline")
            builder = ir.IRBuilder(function.append_basic_block())
            write(Functions(builder, itemsize), *function.args)
            if not builder.block.is_terminated:
                builder.ret_void()
            if _KNOWN:
                _write_call(module, function, given)
            return _engine(str(module))

        @functools.cache
        def of_address(itemsize: int) -> int:
            return int(engine(itemsize).get_function_address("loop"))

        @functools.cache
        def of_python(itemsize: int) -> Any:
            kinds_of: dict[str, Any] = {"n": ctypes.c_int64, "f": ctypes.c_double}
            array: Any = ctypes.py_object if _KNOWN else ctypes.c_void_p
            kind = ctypes.CFUNCTYPE(kinds_of.get(result), *[kinds_of.get(kind, array) for kind in given])
            if not _KNOWN:
                call = kind(of_address(itemsize))
                return lambda *a: call(*(address(one) if isinstance(one, np.ndarray) else one for one in a))
            if given.lower() != given:
                none = engine(itemsize).get_global_value_address("none")
                ctypes.c_void_p.from_address(none).value = id(None)
            return kind(engine(itemsize).get_function_address("call"))

        def write_call(emit: Any, place: Any, *values: Any) -> Any:
            builder, wanted = emit.builder, types(emit.itemsize)
            given = [getattr(value, "value", value) for value in (place, *values)]
            given = [INT(value) if isinstance(value, int) else value for value in given]
            cast = [builder.bitcast(value, kind) for value, kind in zip(given[1:], wanted, strict=True)]
            kind = ir.FunctionType(returned, wanted).as_pointer()
            return builder.call(builder.inttoptr(given[0], kind), cast)

        made: Any = of_python
        made.address, made.write = of_address, write_call
        return made

    return decorate


def _write_call(module: Any, function: Any, given: str) -> None:
    """Write the function `call`, which is given objects of Python instead of pointers.

    None is wherever the variable `none` says, as its address differs from process to process.
    """
    wanted = function.function_type
    plain = [kind if letter in "nf" else INT.as_pointer() for letter, kind in zip(given, wanted.args, strict=True)]
    whole = ir.Function(module, ir.FunctionType(wanted.return_type, plain), "call")
    builder = ir.IRBuilder(whole.append_basic_block())
    null = ir.GlobalVariable(module, INT.as_pointer(), "none")
    null.initializer = ir.Constant(null.value_type, None)
    values = list(whole.args)
    for i, (letter, kind) in enumerate(zip(given, wanted.args, strict=True)):
        if letter in "nf":
            continue
        place = builder.gep(values[i], [INT(_place // 8)])
        if letter.isupper():
            none = builder.icmp_unsigned("==", values[i], builder.load(null))
            place = builder.select(none, builder.bitcast(null, place.type), place)
        start = builder.inttoptr(builder.load(place), kind)
        values[i] = builder.select(none, kind(None), start) if letter.isupper() else start
    returned = builder.call(function, values)
    if wanted.return_type == INT:
        builder.ret(returned)
    else:
        builder.ret_void()


_ENGINES: dict[str, Any] = {}
"""They own the machine code, each that of one text."""


def _target() -> Any:
    """Return a new description of the processor: each engine takes one."""
    if not _ENGINES:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(*_processor(), opt=2, jit=True)


@functools.cache
def _processor() -> tuple[str, str]:
    """Return the name of the processor and its features."""
    if config.CPU_NAME is None:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return config.CPU_NAME, config.CPU_FEATURES or ""


def _engine(text: str) -> Any:
    """Return what has the machine code of a module."""
    key = "\n".join([text, *_processor(), llvmlite.__version__, str(llvm.llvm_version_info)])
    name = hashlib.sha256(key.encode()).hexdigest()[:40]
    with _LOCK:
        if name not in _ENGINES:
            target = _target()
            content = _read(name) or _compiled(name, text, target)
            engine = llvm.create_mcjit_compiler(llvm.parse_assembly("", llvm.create_context()), target)
            engine.add_object_file(llvm.ObjectFileRef.from_data(content))
            engine.finalize_object()
            _ENGINES[name] = engine
        return _ENGINES[name]


def _compiled(name: str, text: str, target: Any) -> bytes:
    """Compile a module, whose instructions LLVM takes as they are: optimising them takes longer, and gains nothing."""
    COMPILATION.begin()
    try:
        module = llvm.parse_assembly(text, llvm.create_context())
        module.triple, module.data_layout = target.triple, str(target.target_data)
        content = bytes(target.emit_object(module))
    finally:
        COMPILATION.end()
    _keep(name, content)
    return content


@functools.cache
def _folder() -> Path | None:
    """Return the folder of machine code, which may be read-only; None if there is none."""
    if chosen := os.environ.get("XCNN_CACHE_DIR"):
        return Path(chosen)
    for find in (lambda: Path(__file__).with_name("__pycache__"), lambda: cache_folder() / "kernels"):
        with contextlib.suppress(OSError, RuntimeError):  # such as that the user has no home
            folder = find()
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _read(name: str) -> bytes | None:
    """Return the machine code of this name; None if there is none, or it is damaged."""
    if folder := _folder():
        with contextlib.suppress(OSError):
            whole = (folder / (name + _SUFFIX)).read_bytes()
            if whole[:32] == _digest(whole[32:]):
                return whole[32:]
    return None


def _keep(name: str, content: bytes) -> None:
    """Write machine code if possible. If the disk is full, the next process compiles again."""
    if folder := _folder():
        with contextlib.suppress(OSError, XcnnError):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            with replacing(folder / (name + _SUFFIX)) as temporary:
                temporary.write_bytes(_digest(content) + content)


@functools.cache
def _sweep(folder: Path) -> None:
    """Remove the oldest files of many, and what killed processes left, but nothing that one may be writing now."""
    times = {}
    for path in folder.glob(f"*{_SUFFIX}*"):
        with contextlib.suppress(OSError):
            times[path] = path.stat().st_mtime
    left = [path for path in times if path.suffix == ".tmp" and time.time() - times[path] > _SECONDS_TO_WRITE]
    whole = sorted((path for path in times if path.suffix == _SUFFIX), key=times.__getitem__, reverse=True)
    for path in left + whole[_MOST:]:
        with contextlib.suppress(OSError):
            path.unlink()

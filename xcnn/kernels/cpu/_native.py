"""Functions that are written as instructions for LLVM, compiled when they are first used, and kept on disk.

A file is named by a digest of all that its machine code depends on: the instructions, the system, the processor and the
version of llvmlite. So it can be damaged or have another's name, which its content tells, but never be stale.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from xcnn._dispatch import COMPILATION
from xcnn._files import cache_folder, replacing
from xcnn.errors import XcnnError
from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._vectors import CPU_NAME, DOUBLE, FEATURES, INT

__all__ = ["HERE", "LOCK", "PLACES", "PLAIN", "RECORDER", "address", "machine_code", "native"]

_log = logging.getLogger("xcnn")

_MOST = 2000
"""Files that stay when others are removed: some 20 MiB."""

_SECONDS_TO_WRITE = 60
"""Writing one file takes less."""

_SUFFIX = ".kernel"

LOCK = threading.RLock()
"""Held by whoever uses LLVM."""

if hasattr(os, "register_at_fork"):  # a child would wait for ever for this lock, or for that of LLVM
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)

_number_at, _place = ctypes.c_void_p.from_address, object.__basicsize__


def address(array: np.ndarray) -> int:
    """Return where an array begins. `array.ctypes` takes seven times as long as reading NumPy's own pointer."""
    return _number_at(id(array) + _place).value or 0


PLACES = _place, _place + 8, _place + 16, _place + 48
"""Where in an array are the addresses of its numbers, how many axes it has, the address of their sizes, and flags."""

PLAIN = 1
"""The flag of an array in C order."""

RECORDER = (ctypes.c_int64 * 1)()
"""Where a function of C is that compiled code calls after each call from Python, or 0; see `record.py`."""


class _Here(threading.local):
    """Whether a kernel has computed something in Python, by which it changes an array in place: `record.py` asks."""

    in_python = False


HERE = _Here()

_ONE = np.empty(1)
if (
    sys.implementation.name != "cpython"
    or address(_ONE) != _ONE.ctypes.data
    or [ctypes.c_int.from_address(id(_ONE) + at).value for at in PLACES[1::2]] != [1, _ONE.flags.num]
    or ctypes.c_int64.from_address(_number_at(id(_ONE) + PLACES[2]).value or id(_ONE)).value != 1
):
    raise ImportError("this interpreter, or this NumPy, lays out arrays in another way")


def machine_code(write: Callable[[Any], None], kinds: str) -> Callable[..., Any]:
    """Compile a function `loop`, which `write(module)` writes; return a function as `native` does."""
    module = ir.Module()
    write(module)
    _write_call(module, module.get_global("loop"), kinds)
    with LOCK:
        call: Callable[..., Any] = _function_of_python(_engine(str(module)))
        return call


def native(kinds: str) -> Callable[[Callable[..., None]], Any]:
    """Compile a function when it is first used; the decorated one, `write(emit, *arguments)`, writes its instructions.

    The result is a function of the bytes of a number, 4 or 8. It returns the compiled one, which takes C-contiguous
    arrays as they are: its code finds their addresses faster than Python could. It needs no lock of the interpreter. If
    an array is not contiguous, it does nothing and returns NotImplemented. Arrays need not be aligned.
    The result has the attributes `address(itemsize)`, and `write(emit, address, *arguments)`, which writes a call: code
    that several functions need is compiled once, and they are given its address.

    Parameters
    ----------
    kinds : a letter per argument. x is an array of numbers, i, d and u of int64, float64 and uint8; an upper-case
        letter is one that may be None. p is an array or its address, n an integer, f a float64. Before a colon, n if
        the result is an integer.
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
            _write_call(module, function, given)
            return _engine(str(module))

        @functools.cache
        def of_address(itemsize: int) -> int:
            with LOCK:
                return int(engine(itemsize).get_function_address("loop"))

        @functools.cache
        def of_python(itemsize: int) -> Any:
            with LOCK:
                return _function_of_python(engine(itemsize))

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


_PYTHON = (
    "PyErr_BadArgument", "PyErr_Occurred", "PyEval_RestoreThread", "PyEval_SaveThread", "PyFloat_AsDouble",
    "PyLong_AsLongLong", "PyLong_FromLongLong", "Py_IncRef",
)  # fmt: skip
"""The functions of CPython that `call` uses. Their addresses, and those of objects, differ from process to process."""

_OBJECTS = None, NotImplemented, int


class _Method(ctypes.Structure):
    """What CPython knows of a function of C."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)
    )  # fmt: skip


_METHODS: list[_Method] = []
"""CPython does not copy them."""

_ARRAY = 0x80
"""METH_FASTCALL: the arguments are an array."""


def _function_of_python(engine: Any) -> Any:
    """Return the function `call` of an engine. CPython calls it in a tenth of the time that ctypes takes."""
    places: list[Any] = [*map(id, _OBJECTS)]
    places += [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in _PYTHON]
    places += [ctypes.addressof(RECORDER)]
    (ctypes.c_int64 * len(places)).from_address(engine.get_global_value_address("python"))[:] = places
    method = _Method(b"native", engine.get_function_address("call"), _ARRAY, None)
    _METHODS.append(method)
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p)
    make: Any = kind(("PyCFunction_NewEx", ctypes.pythonapi))
    return make(ctypes.pointer(method), None, None)


def _write_call(module: Any, function: Any, given: str) -> None:
    """Write the function `call(self, arguments, count)` of objects of Python, which releases its lock.

    A second one, `packed`, takes the arguments as they are in memory, 8 bytes each.
    """
    thing, wanted = INT.as_pointer(), function.function_type
    packed = ir.Function(module, ir.FunctionType(INT, [thing]), "packed")
    builder, values = ir.IRBuilder(packed.append_basic_block()), []
    for i, kind in enumerate(wanted.args):
        place = builder.gep(packed.args[0], [INT(i)])
        values.append(builder.load(builder.bitcast(place, kind.as_pointer())))
    returned = builder.call(function, values)
    builder.ret(returned if wanted.return_type == INT else INT(0))

    whole = ir.Function(module, ir.FunctionType(thing, [thing, thing.as_pointer(), INT]), "call")
    (_, objects, count), builder = whole.args, ir.IRBuilder(whole.append_basic_block())
    known = ir.GlobalVariable(module, ir.ArrayType(INT, len(_OBJECTS) + len(_PYTHON) + 1), "python")
    known.initializer = ir.Constant(known.value_type, None)

    def python(name: str, result: Any, *arguments: Any) -> Any:
        place = builder.load(builder.gep(known, [INT(0), INT(len(_OBJECTS) + _PYTHON.index(name))]))
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(builder.inttoptr(place, kind.as_pointer()), arguments)

    with builder.if_then(builder.icmp_signed("!=", count, INT(len(given)))):
        python("PyErr_BadArgument", ir.IntType(32))
        builder.ret(thing(None))
    nothing, refused, whole_number = (builder.load(builder.gep(known, [INT(0), INT(i)])) for i in range(3))
    flags, values, raw = INT(PLAIN), [], ir.IntType(1)(0)

    def read(place: Any) -> tuple[Any, Any]:
        """Return the address and the flags of an array."""
        return builder.load(place), builder.load(builder.gep(place, [INT((PLACES[3] - _place) // 8)]))

    for i, (letter, kind) in enumerate(zip(given, wanted.args, strict=True)):
        value = builder.load(builder.gep(objects, [INT(i)]))
        if letter in "nf":
            values.append(python("PyLong_AsLongLong" if letter == "n" else "PyFloat_AsDouble", kind, value))
            continue
        place = builder.gep(value, [INT(_place // 8)])
        if letter == "p":
            number = builder.icmp_unsigned("==", builder.load(builder.gep(place, [INT(-1)])), whole_number)
            raw = builder.or_(raw, number)
            with builder.if_else(number) as (is_number, is_array):
                with is_number:
                    both = [((python("PyLong_AsLongLong", INT, value), INT(PLAIN)), builder.block)]
                with is_array:
                    both.append((read(place), builder.block))
            start, plain = builder.phi(INT), builder.phi(INT)
            for found, block in both:
                start.add_incoming(found[0], block)
                plain.add_incoming(found[1], block)
        elif letter.isupper():
            none = builder.icmp_unsigned("==", builder.ptrtoint(value, INT), nothing)
            found = read(builder.select(none, builder.bitcast(known, place.type), place))
            start, plain = (builder.select(none, INT(k), one) for k, one in zip((0, PLAIN), found, strict=True))
        else:
            start, plain = read(place)
        flags = builder.and_(flags, plain)
        values.append(builder.inttoptr(start, kind))
    failed = python("PyErr_Occurred", thing)
    with builder.if_then(builder.icmp_unsigned("!=", failed, thing(None))):
        builder.ret(thing(None))
    with builder.if_then(builder.icmp_unsigned("!=", flags, INT(PLAIN)), likely=False):
        python("Py_IncRef", ir.VoidType(), builder.inttoptr(refused, thing))
        builder.ret(builder.inttoptr(refused, thing))
    state = python("PyEval_SaveThread", thing)
    returned = builder.call(function, values)
    python("PyEval_RestoreThread", ir.VoidType(), state)
    place = builder.load(builder.gep(known, [INT(0), INT(len(_OBJECTS) + len(_PYTHON))]))
    recorder = builder.load(builder.inttoptr(place, thing))
    with builder.if_then(builder.icmp_unsigned("!=", recorder, INT(0)), likely=False):
        numbers = [builder.ptrtoint(packed, INT), returned if wanted.return_type == INT else INT(0), *values]
        room = builder.alloca(INT, len(numbers))
        for i, number in enumerate(numbers):
            builder.store(number, builder.bitcast(builder.gep(room, [INT(i)]), number.type.as_pointer()))
        kind = ir.FunctionType(ir.VoidType(), [thing, thing.as_pointer(), INT, INT]).as_pointer()
        builder.call(builder.inttoptr(recorder, kind), [room, objects, count, builder.zext(raw, INT)])
    if wanted.return_type == INT:
        builder.ret(python("PyLong_FromLongLong", thing, returned))
    else:
        none = builder.inttoptr(nothing, thing)
        python("Py_IncRef", ir.VoidType(), none)
        builder.ret(none)


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
    return CPU_NAME, llvm.FeatureMap(FEATURES).flatten()


def _engine(text: str) -> Any:
    """Return what has the machine code of a module. The caller holds the lock, also while what was used is freed."""
    system = llvm.get_default_triple()  # folders may be shared, and systems call functions in different ways
    key = "\n".join([text, system, *_processor(), llvmlite.__version__, str(llvm.llvm_version_info)])
    name = hashlib.sha256(key.encode()).hexdigest()[:40]
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


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _read(name: str) -> bytes | None:
    """Return the machine code of this name; None if there is none, or it is damaged."""
    if folder := _folder():
        with contextlib.suppress(OSError):
            whole = (folder / (name + _SUFFIX)).read_bytes()
            if whole[:32] == _digest(name, whole[32:]):
                return whole[32:]
    return None


def _keep(name: str, content: bytes) -> None:
    """Write machine code if possible. If the disk is full, the next process compiles again."""
    folder = _folder()
    if folder is None:
        _warn("beside the kernels, nor in the user's cache folder")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        with replacing(folder / (name + _SUFFIX)) as temporary:
            temporary.write_bytes(_digest(name, content) + content)
    except (OSError, XcnnError) as error:
        _warn(f"in {folder} ({error})")


@functools.cache
def _warn(where: str) -> None:
    _log.warning("machine code cannot be kept %s, so every process compiles it again", where)


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

"""Compile kernels with Numba, and keep their machine code on disk.

Numba's own cache has an index file beside the files with code, and neither records the sources that the other was made
from: after a failed write, or if two processes write at once, an index may name old code or code for other types. Here
every function and signature has one file: its name depends on everything that the code depends on, and its content is
checked.
"""

import contextlib
import functools
import hashlib
import logging
import pickle
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit, types
from numba.core import event, serialize
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from xcnn._dispatch import COMPILATION
from xcnn._files import replacing

__all__ = ["by_address", "compiled", "summing"]

_log = logging.getLogger("xcnn")

_SECONDS_TO_WRITE = 60
"""Writing one file takes less."""


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Return a function that is compiled at its first call; the machine code is kept on disk if possible."""
    dispatcher = njit(**({"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True} | options))(function)
    _OURS.add(id(dispatcher))
    _keep(dispatcher)
    return dispatcher


def summing(function: Callable[..., Any]) -> Any:
    """Return a function as `compiled` does, which may reorder sums to use vector instructions."""
    return compiled(function, fastmath={"reassoc"})


def by_address(kinds: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that compiled functions call by its address, given as the first argument.

    Otherwise its code would be compiled again in each of them. It returns nothing. The result has `address(itemsize)`,
    `direct`, which Python calls, and `write(context, builder, dtype, address, *values)`, by which intrinsics call it.

    Parameters
    ----------
    kinds : a letter per argument: x flat array of floats, i flat array of integers, f float64, n integer.
    """

    def types_for(number: Any) -> tuple[Any, ...]:
        each = {"x": number[::1], "i": types.intp[::1], "f": types.float64, "n": types.intp}
        return tuple(each[kind] for kind in kinds)

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = compiled(function)

        def write(context: Any, builder: Any, number: Any, address: Any, *values: Any) -> None:
            kinds_of = types_for(number)
            kind = context.call_conv.get_function_type(types.none, kinds_of).as_pointer()
            context.call_conv.call_function(builder, builder.inttoptr(address, kind), types.none, kinds_of, values)

        @intrinsic
        def call(_: Any, address: Any, *arguments: Any) -> Any:
            number = arguments[kinds.index("x")].dtype

            def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                given = [builder.extract_value(values[1], i) for i in range(len(kinds))]
                write(context, builder, number, values[0], *given)
                return context.get_dummy_value()

            return types.void(types.intp, types.Tuple(types_for(number))), generate

        @functools.cache
        def address(itemsize: int) -> int:
            signature = types_for(types.float64 if itemsize == 8 else types.float32)
            dispatcher.compile(signature)
            entry = dispatcher.overloads[signature]
            return int(entry.library.get_pointer_to_function(entry.fndesc.llvm_func_name))

        call.address, call.direct, call.write = address, dispatcher, write
        return call

    return decorate


def _keep(dispatcher: Any) -> None:
    """Make a compiled function keep its machine code on disk, if there is a folder for it."""
    try:
        if not hasattr(dispatcher, "_cache"):
            raise AttributeError("its functions have no _cache")
        dispatcher._cache = _Kept(dispatcher.py_func)
        _sweep_once(Path(dispatcher._cache.cache_path))
    except RuntimeError:  # every folder that Numba knows is read-only
        pass
    except Exception as error:
        _warn_once(f"compiled code is not kept on disk: unexpected internals of Numba {numba.__version__} ({error!r})")


@functools.cache
def _sweep_once(folder: Path) -> None:
    """Remove the temporary files of killed processes. Newer files may belong to a process that is writing them."""
    for path in folder.glob(".*.nbc.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _SECONDS_TO_WRITE:
                path.unlink()


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


_IMPORT = re.compile(rb"^\s*from xcnn\.kernels\.cpu\.(\w+) import", re.MULTILINE)


@functools.cache
def _source(file: Path) -> bytes:
    """Return the content of a file, read once: an upgrade may replace it while a process still runs the old code."""
    return file.read_bytes()


@functools.cache
def _stamp(file: Path) -> str:
    """Return the digest of a file and of all files of this folder that it imports: its machine code contains theirs."""
    found, waiting = {}, [file, Path(__file__)]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = _source(one)
            waiting += [one.with_name(f"{name.decode()}.py") for name in _IMPORT.findall(found[one])]
    return _digest(b"".join(found[one] for one in sorted(found)))


class _Kept(FunctionCache):  # type: ignore[misc]
    """The files of one function: `file.function.python.numba.stamp.signature.nbc`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        for needed in ("_cache_file", "_impl", "_load_overload"):  # attributes that this class replaces and uses
            getattr(self, needed)
        self._cache_file = self
        module, name = Path(function.__code__.co_filename).stem, function.__qualname__
        versions = f"{sys.implementation.cache_tag}.{numba.__version__}"
        self.base = f"{module}.{name}.{versions}.".replace("<", "").replace(">", "")
        self.line = function.__code__.co_firstlineno
        self.stamp = _stamp(Path(function.__code__.co_filename))

    def path(self, key: Any) -> Path:
        """Return the file of a key: types, processor and byte code."""
        return Path(self.cache_path, f"{self.base}{self.stamp}.{_digest(repr((self.line, key)).encode())}.nbc")

    def load(self, key: Any) -> Any:
        """Return what was saved, or None if there is no such file or it is damaged."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, data = content[:32], content[32:]
        return pickle.loads(data) if digest == _digest(data).encode() else None

    def save(self, key: Any, data: Any) -> None:
        """Write the whole file atomically, then remove the files that other sources left."""
        content = serialize.dumps(data)
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(_digest(content).encode() + content)
        self.flush(but=self.base + self.stamp)

    def flush(self, but: str = "-") -> None:
        """Remove the files of this function whose names do not begin with `but`."""
        for path in Path(self.cache_path).glob(f"{self.base}*.nbc"):
            if not path.name.startswith(but):
                path.unlink(missing_ok=True)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the machine code for a signature, or None, which makes Numba compile it.

        Numba's own method first loads what compiling needs: 200 modules, 25 MiB and a fifth of a second.
        """
        try:
            rtsys.initialize(context)
            return self._load_overload(signature, context)
        except Exception as error:
            _log.debug("%s: machine code on disk cannot be used: %r", self.base, error)
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Save machine code if possible. If the disk is full, the next process compiles again."""
        with contextlib.suppress(Exception):
            super().save_overload(signature, data)


_OURS: set[int] = set()
"""The `id` of every compiled function of this package; none is ever freed."""


class _Clock(event.Listener):  # type: ignore[misc]
    """Records the time in which functions of this package are compiled; reading code from disk does not count."""

    def on_start(self, event: Any) -> None:
        if id(event.data["dispatcher"]) in _OURS:
            COMPILATION.begin()

    def on_end(self, event: Any) -> None:
        if id(event.data["dispatcher"]) in _OURS:
            COMPILATION.end()


event.register("numba:compile", _Clock())

"""How kernels are compiled, and how their machine code is kept on disk. It needs Numba, and so does whoever imports it.

Numba's own files have an index beside the code, and neither says which sources the other was made from: after a write
that fails, or two processes that write at once, an index may name old code or that of other types. Here every function
and signature has one file, whose name says all that the code depends on and whose content is checked.
"""

import contextlib
import functools
import hashlib
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import event, serialize
from numba.core.caching import FunctionCache

from xcnn._dispatch import COMPILATION
from xcnn._files import replacing

__all__ = ["compiled", "summing"]

_log = logging.getLogger("xcnn")


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function at its first call. The machine code is kept on disk if possible."""
    dispatcher = njit(**({"nogil": True, "error_model": "numpy"} | options))(function)
    _OURS.add(id(dispatcher))
    _keep(dispatcher)
    return dispatcher


def summing(function: Callable[..., Any]) -> Any:
    """Compile a function whose sums may be added in another order: several at a time, in a vector."""
    return compiled(function, fastmath={"reassoc"})


def _keep(dispatcher: Any) -> None:
    """Keep the machine code of a compiled function on disk, unless there is no folder for it."""
    try:
        if not hasattr(dispatcher, "_cache"):
            raise AttributeError("its functions have no _cache")
        dispatcher._cache = _Kept(dispatcher.py_func)
    except RuntimeError:  # every folder that Numba knows is read-only
        pass
    except Exception as error:
        _say_once(f"compiled code is not kept on disk, as Numba {numba.__version__} is not known: {error!r}")


@functools.cache
def _say_once(message: str) -> None:
    _log.warning("%s", message)


@functools.cache
def _stamp() -> str:
    """Return what changes with any file of this room: code of one file is in the machine code of others."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return _digest(b"".join(file.read_bytes() for file in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


class _Kept(FunctionCache):  # type: ignore[misc]
    """The files of one function: `file.function.python.numba.stamp.signature.nbc`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        for needed in ("_cache_file", "_impl"):  # what these methods replace and use
            getattr(self, needed)
        self._cache_file = self
        module, name = Path(function.__code__.co_filename).stem, function.__qualname__
        versions = f"{sys.implementation.cache_tag}.{numba.__version__}"
        self.base = f"{module}.{name}.{versions}.".replace("<", "").replace(">", "")
        self.line = function.__code__.co_firstlineno

    def path(self, key: Any) -> Path:
        """Return the file of a key: types, processor and byte code."""
        return Path(self.cache_path, f"{self.base}{_stamp()}.{_digest(repr((self.line, key)).encode())}.nbc")

    def load(self, key: Any) -> Any:
        """Return what was saved, or None where there is no such file or it is damaged."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        digest, data = content[:32], content[32:]
        return pickle.loads(data) if digest == _digest(data).encode() else None

    def save(self, key: Any, data: Any) -> None:
        """Write a file as a whole, and remove those of other sources."""
        content = serialize.dumps(data)
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(_digest(content).encode() + content)
        self.flush(but=self.base + _stamp())

    def flush(self, but: str = "-") -> None:
        """Remove the files of this function whose names do not begin as given."""
        for path in Path(self.cache_path).glob(f"{self.base}*.nbc"):
            if not path.name.startswith(but):
                path.unlink(missing_ok=True)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the machine code for a signature, or None, which makes Numba compile it."""
        try:
            return super().load_overload(signature, context)
        except Exception as error:
            _log.debug("%s: machine code on disk cannot be used: %r", self.base, error)
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        """Save machine code. A full disk costs the next process the time of compiling, and this one nothing."""
        with contextlib.suppress(Exception):
            super().save_overload(signature, data)


_OURS: set[int] = set()
"""The compiled functions of this room by `id`; they are never freed."""


class _Clock(event.Listener):  # type: ignore[misc]
    """Notes when a function of ours is compiled. Reading machine code from disk does not count."""

    def on_start(self, event: Any) -> None:
        if id(event.data["dispatcher"]) in _OURS:
            COMPILATION.begin()

    def on_end(self, event: Any) -> None:
        if id(event.data["dispatcher"]) in _OURS:
            COMPILATION.end()


event.register("numba:compile", _Clock())

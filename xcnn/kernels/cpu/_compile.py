"""How compiled code is compiled. It needs Numba, and so does whoever imports it."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import event

from xcnn._dispatch import COMPILATION

__all__ = ["compiled", "summing"]


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function at its first call, for good: the machine code is kept on disk if possible."""
    options = {"nogil": True, "error_model": "numpy"} | options
    try:
        dispatcher = njit(cache=True, **options)(function)
    except RuntimeError:  # Numba finds no such folder
        return njit(**options)(function)
    # Numba looks at the function's own file alone, but code of this room is in others' machine code.
    dispatcher._cache._cache_file._source_stamp = _stamp()
    save = dispatcher._cache.save_overload

    def save_if_possible(signature: Any, data: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk costs the next process its time, and this one nothing
            save(signature, data)

    dispatcher._cache.save_overload = save_if_possible
    return dispatcher


@functools.cache
def _stamp() -> str:
    """Give what changes with any file of this room."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def summing(function: Callable[..., Any]) -> Any:
    """Compile a function whose sums may be added in another order: several at a time, in a vector."""
    return compiled(function, fastmath={"reassoc"})


class _Clock(event.Listener):  # type: ignore[misc]
    """Adds up the seconds in which something is compiled; what is read from disk is no such thing."""

    def __init__(self) -> None:
        self.depth, self.start, self.announced = 0, 0.0, False

    def on_start(self, event: Any) -> None:
        if not self.announced:
            self.announced = True
            COMPILATION.announce()
        if self.depth == 0:
            self.start = time.perf_counter()
        self.depth += 1

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            COMPILATION.seconds += time.perf_counter() - self.start


event.register("numba:compile", _Clock())

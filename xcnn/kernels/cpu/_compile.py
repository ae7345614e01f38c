"""How compiled code is compiled. It needs Numba, and so does whoever imports it."""

import time
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import event

from xcnn._dispatch import COMPILATION

__all__ = ["compiled"]

compiled: Callable[[Any], Any] = njit(nogil=True, cache=True, error_model="numpy")
"""Compile a function at its first call, for good: the machine code is kept on disk."""


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

"""Matrix products on one thread of BLAS, so that their bits do not depend on how many cores there are.

BLAS cuts a product by the number of its threads, and on busy cores these wait for each other; the products of networks
are small. So kernels cut what is large into parts themselves (`xcnn.threads`) and hold BLAS to one thread meanwhile.

The number of threads belongs to the process: while a kernel multiplies, products of other threads run on one thread,
too. (`openblas_set_num_threads_local` of the OpenBLAS in NumPy's wheels sets it for all threads, in spite of its name.)
Afterwards it is what it was. Where threadpoolctl does not know NumPy's BLAS, as on Apple's Accelerate, nothing is held.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["one_blas_thread"]

_OPENBLAS = ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads")


class _Library:
    """A library that NumPy multiplies with: how to get and put its number of threads, and what it was."""

    def __init__(self, get: Callable[[], int], put: Callable[[int], object]) -> None:
        self.get, self.put, self.before = get, put, 0


def _libraries() -> list[_Library]:
    """Find what NumPy multiplies with among the libraries that are loaded."""
    from threadpoolctl import ThreadpoolController

    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    ours = [library for library in found if "numpy" in library.filepath]  # as in its wheels; else all share one
    return [
        _openblas(library.filepath) or _Library(library.get_num_threads, library.set_num_threads)
        for library in ours or found
    ]


def _openblas(path: str) -> _Library | None:
    """Return the functions of OpenBLAS. threadpoolctl looks them up at each call, which takes a microsecond."""
    library = ctypes.PyDLL(path)  # they return at once, so they need not let go of the interpreter
    for name in _OPENBLAS:
        with contextlib.suppress(AttributeError):
            get, put = (getattr(library, name.format(verb)) for verb in ("get", "set"))
            put.restype = None
            return _Library(get, put)
    return None


class _OneThread:
    """Holds NumPy's matrix products to one thread inside a `with`, which costs less than a microsecond.

    Several threads may be inside. The last one that leaves restores the number of threads.
    """

    def __init__(self) -> None:
        self.libraries: list[_Library] | None = None
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                if self.libraries is None:
                    self.libraries = _libraries()
                for library in self.libraries:
                    library.before = library.get()
                    library.put(1)
            self.inside += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.restore()

    def restore(self) -> None:
        for library in self.libraries or ():
            library.put(library.before)

    def after_fork(self) -> None:
        """Forget, in a child process, the threads of its parent that were inside."""
        if self.inside:
            self.restore()
        self.lock, self.inside = threading.Lock(), 0


one_blas_thread = _OneThread()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_blas_thread.after_fork)

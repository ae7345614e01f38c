"""Matrix products on one thread of BLAS, so that their bits do not depend on the number of cores.

BLAS splits a product by its number of threads, and on busy cores these threads wait for each other. So kernels split
large products themselves (`xcnn.threads`) and limit BLAS to one thread meanwhile.

The number of BLAS threads is one for the whole process: while a kernel multiplies, products of other threads run on one
thread, too. (`openblas_set_num_threads_local` of the OpenBLAS in NumPy's wheels affects all threads, despite its name.)
Afterwards the number is restored. If threadpoolctl does not know NumPy's BLAS, such as Apple's Accelerate, the
number is not changed.
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
    """A BLAS library: functions that get and set its number of threads, and the number to restore."""

    __slots__ = ("before", "get", "put")

    def __init__(self, get: Callable[[], int], put: Callable[[int], object]) -> None:
        self.get, self.put, self.before = get, put, get()


def _libraries() -> list[_Library]:
    """Return the loaded libraries that NumPy multiplies with."""
    from threadpoolctl import ThreadpoolController

    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    ours = [
        library for library in found if "numpy" in library.filepath
    ]  # the one in NumPy's wheels; otherwise all packages share one
    return [
        _openblas(library.filepath) or _Library(library.get_num_threads, library.set_num_threads)
        for library in ours or found
    ]


def _openblas(path: str) -> _Library | None:
    """Return OpenBLAS's own functions: from 3.7 on, those of threadpoolctl do nothing in all threads but one."""
    library = ctypes.PyDLL(path)  # the functions return at once, so there is no need to release the interpreter lock
    for name in _OPENBLAS:
        with contextlib.suppress(AttributeError):
            get, put = (getattr(library, name.format(verb)) for verb in ("get", "set"))
            put.restype = None
            return _Library(get, put)
    return None


class _OneThread:
    """A context manager that limits NumPy's matrix products to one thread; it costs less than a microsecond.

    It can be nested, and several threads may be inside. The last one to leave restores the number of threads.
    """

    __slots__ = ("inside", "libraries", "lock")

    def __init__(self) -> None:
        self.libraries: list[_Library] | None = None
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                if self.libraries is None:
                    self.libraries = _libraries()
                for library in self.libraries:
                    library.before = library.get()
                    library.put(1)
            self.inside += 1

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        with self.lock:
            # Counted first: an interrupt in between may leave BLAS on one thread, but never a hold without effect.
            last, self.inside = self.inside == 1, max(0, self.inside - 1)  # 0: a child leaves what its parent entered
            if last:
                for library in self.libraries or ():
                    library.put(library.before)

    def after_fork(self) -> None:
        """Restore the number of threads in a child process, where the parent's threads do not exist."""
        self.lock, self.inside = threading.Lock(), min(self.inside, 1)
        self.__exit__(None, None, None)


one_blas_thread = _OneThread()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=one_blas_thread.after_fork)

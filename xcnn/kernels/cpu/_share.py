"""Check which arrays kernels take, and distribute work on independent images, maps or channels over threads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.threads import parallel, parts

__all__ = ["NUMBERS_PER_MICROSECOND", "binding", "plain", "share", "supports"]

NUMBERS_PER_MICROSECOND = 4000
"""Speed of a thread that mostly reads and writes."""


def supports(a: np.ndarray) -> bool:
    """Return whether an array holds float32 or float64 in this machine's byte order, and is not empty."""
    return a.dtype in _DTYPES and a.size > 0


_DTYPES: tuple[Any, ...] = np.dtype(np.float32), np.dtype(np.float64)


def plain(a: Any) -> Any:
    """Return an array, or a copy if its numbers do not lie side by side in C order; or None."""
    if a is None or a.flags.c_contiguous:
        return a
    b = np.empty(a.shape, a.dtype)
    share(lambda begin, end: np.copyto(b[begin:end], a[begin:end]), 4 * a.size, n=len(a))
    return b


def binding(bind: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that binds calls of the body of its name (see `kernel`); single calls are bound as well."""

    def call(*arguments: Any) -> Any:
        run = bind(*arguments)
        return run if run is NotImplemented else run(*[plain(a) if isinstance(a, np.ndarray) else a for a in arguments])

    call.__name__, call.__module__ = bind.__name__, bind.__module__
    kernel(np, bind)(call)
    return bind


def share(function: Callable[..., object], work: int, *arguments: Any, n: int | None = None) -> None:
    """Call `function(*arguments, begin, end)` for ranges that cover 0 .. n - 1, in several threads if that is faster.

    Parameters
    ----------
    function : a compiled function; its work for one index must not depend on the others.
    work : how many numbers are read and written in total; more costly ones count several times.
    n : number of indices; by default, the length of the first argument.
    """
    n = len(arguments[0]) if n is None else n
    count = parts(n, work / NUMBERS_PER_MICROSECOND)
    if count == 1:
        function(*arguments, 0, n)
    else:
        parallel(lambda part: function(*arguments, n * part // count, n * (part + 1) // count), count)

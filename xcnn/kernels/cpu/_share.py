"""Check which arrays kernels take, and distribute work on independent images, maps or channels over threads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn.threads import parallel, parts

__all__ = ["flat", "share", "supports"]

_NUMBERS_PER_MICROSECOND = 4000
"""Speed of a thread that mostly reads and writes."""


def supports(a: np.ndarray) -> bool:
    """Return whether an array holds float32 or float64 in this machine's byte order, and is not empty."""
    return a.dtype in _DTYPES and a.size > 0


_DTYPES: tuple[Any, ...] = np.dtype(np.float32), np.dtype(np.float64)
_NOTHING: dict[int, np.ndarray] = {dtype.itemsize: np.empty(0, dtype) for dtype in _DTYPES}


def flat(a: np.ndarray | None, itemsize: int) -> np.ndarray:
    """Return the numbers of an array side by side in C order, as a view if possible; for None, an empty array.

    A reshaped slice such as `row[::2]` may stay a view with gaps, which compiled code would not see. A read-only array
    is copied: to Numba its type is another one, for which all would be compiled once more.
    """
    if a is None:
        return _NOTHING[itemsize]
    numbers = a.ravel()
    return numbers if numbers.flags.writeable else numbers.copy()


def share(function: Callable[..., object], work: int, *arguments: Any, n: int | None = None) -> None:
    """Call `function(*arguments, begin, end)` for ranges that cover 0 .. n - 1, in several threads if that is faster.

    Parameters
    ----------
    function : a compiled function; its work for one index must not depend on the others.
    work : how many numbers are read and written in total; more costly ones count several times.
    n : number of indices; by default, the length of the first argument.
    """
    n = len(arguments[0]) if n is None else n
    count = parts(n, work / _NUMBERS_PER_MICROSECOND)
    if count == 1:
        function(*arguments, 0, n)
    else:
        parallel(lambda part: function(*arguments, n * part // count, n * (part + 1) // count), count)

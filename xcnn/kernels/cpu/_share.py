"""Which arrays kernels take, and how work is shared out to threads where every image, map or channel has its own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn.threads import parallel, parts

__all__ = ["share", "supports"]

_NUMBERS_PER_MICROSECOND = 4000
"""What a thread reads and writes where it has little else to do."""


def supports(a: np.ndarray) -> bool:
    """Return whether an array holds float32 or float64 in this machine's byte order, and is not empty."""
    return a.dtype.kind == "f" and a.dtype.itemsize in (4, 8) and a.dtype.isnative and a.size > 0


def share(function: Callable[..., object], work: int, *arguments: Any, n: int | None = None) -> None:
    """Call `function(*arguments, begin, end)` for ranges that together are 0 .. n - 1, in threads where that pays.

    Parameters
    ----------
    function : compiled; what it does with one index must not depend on the others.
    work : in numbers read and written one after the other; costlier ones count several times.
    n : the length of the first argument unless given.
    """
    n = len(arguments[0]) if n is None else n
    count = parts(n, work / _NUMBERS_PER_MICROSECOND)
    if count == 1:
        function(*arguments, 0, n)
    else:
        parallel(lambda part: function(*arguments, n * part // count, n * (part + 1) // count), count)

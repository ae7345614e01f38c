"""Check which arrays kernels take, and distribute work on independent images, maps or channels over threads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.threads import parallel, parts

__all__ = ["NUMBERS_PER_MICROSECOND", "binding", "bound_only", "plain", "share", "supports", "whole"]

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
    source, target = a, b
    if a.size and a.strides[-1] == a.itemsize:  # NumPy copies rows up to six times faster than their numbers
        source, target = (one.view(f"V{a.shape[-1] * a.itemsize}") for one in (a, b))
    share(lambda begin, end: np.copyto(target[begin:end], source[begin:end]), 4 * a.size, n=len(a))
    return b


def binding(bind: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that binds calls of the body of its name (see `kernel`), which has one result."""
    kernel(np, bind)(_calling(bind))
    return bind


def bound_only(bind: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function that binds calls of the body of its name; to other calls it would be of no use."""

    def call(*_: Any) -> Any:
        return NotImplemented

    call.__name__, call.__module__ = bind.__name__, bind.__module__
    kernel(np, bind)(call)
    return bind


def whole(first: Callable[..., Any] | None = None) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that binds calls of the body of its name with all results, such as its backward pass.

    `first` is what binds calls of which only the first result is needed.
    """

    def decorate(bind: Callable[..., Any]) -> Callable[..., Any]:
        kernel(np, first, bind)(_calling(bind))
        return bind

    return decorate


def _calling(bind: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel that binds each call; it copies arrays only where a bound function does not take them."""

    def call(*arguments: Any) -> Any:
        run = bind(*arguments)
        result = run if run is NotImplemented else run(*arguments)
        if result is not NotImplemented or run is NotImplemented:
            return result
        return run(*[plain(a) if isinstance(a, np.ndarray) else a for a in arguments])

    call.__name__, call.__module__ = bind.__name__, bind.__module__
    return call


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

"""The one place where faster code for one array library stands in for the portable code.

A body is what remains of an op, an optimizer's rule or another computation once its arguments are checked: a function
of a namespace, arrays and plain options. A kernel is a function of the same name and arguments, without the namespace,
in a room of `kernels/`. It returns what the body would, or NotImplemented for arguments that it does not take.

To add a kernel: write it under `@kernel(numpy)` in the room of its library, with the name of the body. To add a room:
one line in `_ROOMS`. Nothing else knows about kernels.
"""

import contextlib
import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

__all__ = ["BODIES", "COMPILATION", "Compilation", "body", "kernel", "kernels", "portable"]


class Compilation:
    """What compiling kernels has cost this process.

    Attributes
    ----------
    seconds : spent on it so far, by one thread or several that waited for it.
    announce : called when it begins for the first time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.announce: Callable[[], object] = lambda: None

    def clock(self) -> float:
        """Return the time in seconds, from some beginning, which stands still while kernels are compiled."""
        return time.perf_counter() - self.seconds


COMPILATION = Compilation()
"""The one record; kernels that compile themselves write it."""

F = TypeVar("F", bound=Callable[..., Any])

_ROOMS = {"numpy": "xcnn.kernels.cpu", "array_api_compat.cupy": "xcnn.kernels.cuda"}
"""Where the kernels of an array library are, by the name of its namespace."""

BODIES: dict[str, Callable[..., Any]] = {}
"""The portable code of every body, by name."""

_REGISTERED: dict[ModuleType, dict[str, Callable[..., Any]]] = {}
_KERNELS: dict[ModuleType, dict[str, Callable[..., Any]]] = {}
_LOCK = threading.RLock()


def body(function: F) -> F:
    """Make a function `(xp, *arguments)` a body, which calls the kernel of the library where there is one."""
    name = function.__name__.lstrip("_")
    BODIES[name] = function

    @functools.wraps(function)
    def dispatched(xp: ModuleType, *arguments: Any) -> Any:
        try:
            found = _KERNELS[xp]
        except KeyError:
            found = kernels(xp)
        if name in found:
            result = found[name](*arguments)
            if result is not NotImplemented:
                return result
        return function(xp, *arguments)

    return dispatched  # type: ignore[return-value]


def kernel(xp: ModuleType) -> Callable[[F], F]:
    """Make a function the kernel of the body of its name, for the arrays of one library."""

    def register(function: F) -> F:
        _REGISTERED.setdefault(xp, {})[function.__name__] = function
        return function

    return register


def kernels(xp: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the kernels for the arrays of one library by name, after loading them; none if `XCNN_KERNELS` is `off`."""
    with _LOCK:
        if xp not in _KERNELS:
            if xp.__name__ in _ROOMS and os.environ.get("XCNN_KERNELS") != "off":
                importlib.import_module(_ROOMS[xp.__name__])
            _KERNELS[xp] = _REGISTERED.setdefault(xp, {})  # only now: no thread is to see half of them
    return _KERNELS[xp]


@contextlib.contextmanager
def portable(xp: ModuleType) -> Iterator[None]:
    """Run the portable code alone for the arrays of one library inside a `with`."""
    found = dict(kernels(xp))
    _KERNELS[xp].clear()
    try:
        yield
    finally:
        _KERNELS[xp].update(found)

"""The one place where faster code for one array library replaces the portable code.

A body is the portable code of an op, of an optimizer's rule or of another computation, after the arguments are checked:
a function of a namespace, arrays and plain options. A kernel is a function of the same name and arguments, without the
namespace, in a subpackage of `kernels/`. It returns what the body would return, or NotImplemented for arguments that
it does not handle. A body may have several kernels: the last one registered is tried first, the body itself last.

A formula is the portable code of an elementwise function of one array: y, and the slope of y, each as a function of a
namespace and an array. Kernels find it by its name and may make instructions of it.

A kernel may be *bound*: made for arrays of some shapes and dtypes and for some options once, and called many times.

To add a kernel, write it under `@kernel(numpy)` in the subpackage of its library, with the name of the body. To add a
subpackage, add a line to `_ROOMS`. No other file knows about kernels.
"""

import contextlib
import functools
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from xcnn.errors import UsageError

__all__ = [
    "BODIES",
    "COMPILATION",
    "FORMULAS",
    "Call",
    "Compilation",
    "Formula",
    "add_formula",
    "binds",
    "body",
    "bound",
    "kernel",
    "kernels",
    "portable",
    "switched_off",
    "tracing",
    "trusted",
    "version",
]

_log = logging.getLogger("xcnn")


class Compilation:
    """The time that this process has spent compiling kernels, and a function to call when compiling begins.

    Attributes
    ----------
    seconds : time spent so far, in any thread.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._announce: Callable[[], object] | None = None
        self._depth, self._start = 0, 0.0
        self._lock = threading.Lock()

    def clock(self) -> float:
        """Return a time in seconds that excludes the compilation of kernels; only differences are meaningful."""
        return time.perf_counter() - self.seconds

    @contextlib.contextmanager
    def announced(self, announce: Callable[[], object]) -> Iterator[None]:
        """Call `announce()` when a kernel is first compiled inside this `with`; of several, the outermost is called."""
        waiting = self._announce is not None
        if not waiting:
            self._announce = announce
        try:
            yield
        finally:
            if not waiting:
                self._announce = None

    def begin(self) -> None:
        """Record that the compilation of a kernel begins; several compilations may overlap."""
        with self._lock:
            announce, self._announce = self._announce, None
        if announce is not None:
            announce()  # before anything is counted, as it may fail
        with self._lock:
            if self._depth == 0:
                self._start = time.perf_counter()
            self._depth += 1

    def end(self) -> None:
        """Record that the compilation of a kernel ends."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += time.perf_counter() - self._start


COMPILATION = Compilation()
"""The record of this process, written by kernels that are compiled at run time."""

F = TypeVar("F", bound=Callable[..., Any])
Kernels = dict[str, list[Callable[..., Any]]]

_ROOMS = {"numpy": "xcnn.kernels.cpu", "array_api_compat.cupy": "xcnn.kernels.cuda"}
"""The package with the kernels of an array library, by the name of its namespace."""

BODIES: dict[str, Callable[..., Any]] = {}
"""The portable code of every body, by name."""


@dataclass(frozen=True, eq=False)
class Formula:
    """An elementwise function of one array, written in the array API.

    Attributes
    ----------
    name : its name.
    forward : a function `(xp, x, *parameters)` that returns y.
    slope : a function `(xp, kept, *parameters)` that returns the slope of y, or a mask if the slope is 1 or 0.
    keeps : what `slope` is a function of, `"x"` or `"y"`.
    check : a function `(caller, *options)` that returns the parameters: numbers, or strings by which the functions
        choose. The names and defaults of its options are those of the op.
    """

    name: str
    forward: Callable[..., Any]
    slope: Callable[..., Any]
    keeps: str
    check: Callable[..., tuple[float | str, ...]]


FORMULAS: dict[str, Formula] = {}
"""Every formula by name."""

_REGISTERED: dict[ModuleType, Kernels] = {}
_KERNELS: dict[ModuleType, Kernels] = {}
_BINDS: dict[Callable[..., Any], Callable[..., Any]] = {}
_WHOLE: dict[Callable[..., Any], Callable[..., Any]] = {}
_LOCK, _PORTABLE = threading.RLock(), threading.RLock()
_version = 0


@dataclass(slots=True)
class Call:
    """One call of a body: `body(xp, *arguments)` repeats it. `result` is None if the call was stopped."""

    body: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: Any = None


class _Stopped(BaseException):
    """Ends a call of an op at its first body; no code that expects errors catches it."""


class _Trace(threading.local):
    calls: list[Call] | None = None
    stop = False

    def record(self, called: Callable[..., Any], xp: ModuleType, arguments: tuple[Any, ...]) -> Any:
        calls, call = self.calls, Call(called, arguments)
        assert calls is not None
        calls.append(call)
        if self.stop:
            raise _Stopped
        self.calls = None  # bodies inside this one are part of it
        try:
            call.result = called(xp, *arguments)
        finally:
            self.calls = calls
        return call.result


_TRACE = _Trace()


@contextlib.contextmanager
def tracing(stop: bool = False) -> Iterator[list[Call]]:
    """Record the calls of bodies by this thread inside a `with`; with `stop`, leave the `with` at the first one.

    So all checks before a body can be made once for many calls with the same shapes and options.
    """
    calls: list[Call] = []
    before, _TRACE.calls, _TRACE.stop = (_TRACE.calls, _TRACE.stop), calls, stop
    try:
        with contextlib.suppress(_Stopped):
            yield calls
    finally:
        _TRACE.calls, _TRACE.stop = before


def body(function: F) -> F:
    """Decorate a function `(xp, *arguments)` as a body: a call first tries the kernels of its library."""
    name = function.__name__.lstrip("_")
    BODIES[name] = function

    @functools.wraps(function)
    def dispatched(xp: ModuleType, *arguments: Any) -> Any:
        if _TRACE.calls is not None:
            return _TRACE.record(dispatched, xp, arguments)
        try:
            found = _KERNELS[xp]
        except KeyError:
            found = kernels(xp)
        for faster in found.get(name, ()):
            result = faster(*arguments)
            if result is not NotImplemented:
                return result
        return function(xp, *arguments)

    return dispatched  # type: ignore[return-value]


def binds(called: Callable[..., Any], whole: bool = False) -> Callable[[F], F]:
    """Return a decorator of a function `(xp, *arguments)` that binds calls of a body where no kernel does.

    It is written in portable code and returns what the `bind` of `kernel` returns, or its `whole`.
    """

    def register(function: F) -> F:
        (_WHOLE if whole else _BINDS)[BODIES[called.__name__.lstrip("_")]] = function
        return function

    return register


def kernel(
    xp: ModuleType, bind: Callable[..., Any] | None = None, whole: Callable[..., Any] | None = None
) -> Callable[[F], F]:
    """Return a decorator that registers a kernel for the body of the same name and the arrays of one library.

    The kernel is tried before those already registered, which get the calls for which it returns NotImplemented.

    Parameters
    ----------
    xp : the namespace of the library.
    bind : a function of the kernel's arguments. It returns NotImplemented, or a function of the same arguments that may
        rely on the shapes and dtypes of arrays, and on options, but on nothing else. That returns only the first result
        of the body, or NotImplemented, for example for other strides.
    whole : the same, but its function returns all that the body returns, such as its backward pass.
    """

    def register(function: F) -> F:
        global _version
        _REGISTERED.setdefault(xp, {}).setdefault(function.__name__, []).insert(0, function)
        for binds, one in ((_BINDS, bind), (_WHOLE, whole)):
            if one is not None:
                binds[function] = one
        _version += 1
        return function

    return register


def kernels(xp: ModuleType) -> Kernels:
    """Return the kernels for the arrays of one library, by name; the first call loads them unless `XCNN_KERNELS=off`.

    If they cannot be loaded, a warning is logged once, and the portable code is used.
    """
    with _LOCK:
        if xp not in _KERNELS:
            if xp.__name__ in _ROOMS and not switched_off():
                try:
                    importlib.import_module(_ROOMS[xp.__name__])
                except Exception as error:
                    _log.warning("kernels for %s cannot be used, so everything is slower: %r", xp.__name__, error)
            _KERNELS[xp] = _REGISTERED.setdefault(xp, {})  # last, so that no thread sees an incomplete table
    return _KERNELS[xp]


def switched_off() -> bool:
    """Return whether `XCNN_KERNELS=off` in the environment leaves all kernels off.

    Raises
    ------
    UsageError
        If it has another value.
    """
    setting = os.environ.get("XCNN_KERNELS", "")
    if setting not in ("", "off"):
        raise UsageError(f"XCNN_KERNELS in the environment must be off, or not set, got {setting!r}")
    return setting == "off"


def version() -> int:
    """Return a number that changes with kernels and formulas: what is bound holds as long as it is the same."""
    return _version


def add_formula(formula: Formula) -> None:
    """Add a formula to `FORMULAS`, or replace that of the same name; what is bound is then made again."""
    global _version
    FORMULAS[formula.name] = formula
    _version += 1


def bound(
    called: Callable[..., Any], xp: ModuleType, arguments: Sequence[Any], whole: bool = False
) -> Callable[..., Any] | None:
    """Return the bound function of the kernel or body that handles a call, see `kernel`; None if there is none.

    With all its results (`whole`), a body that no kernel handles and nothing binds is bound as its portable code.
    """
    name, registered = called.__name__.lstrip("_"), _WHOLE if whole else _BINDS
    function: Callable[..., Any] = NotImplemented
    for bind in map(registered.get, kernels(xp).get(name, ())):
        if bind is None:  # this kernel has to be asked at each call
            return None
        function = bind(*arguments)
        if function is not NotImplemented:
            return function
    if BODIES[name] in registered:
        function = registered[BODIES[name]](xp, *arguments)
    if function is NotImplemented:
        return functools.partial(BODIES[name], xp) if whole else None
    return function


def trusted(called: Callable[..., Any], xp: ModuleType) -> bool:
    """Return whether a body and all its kernels are of this package."""
    name = called.__name__.lstrip("_")
    return all(one.__module__.startswith("xcnn.") for one in (BODIES[name], *kernels(xp).get(name, ())))


@contextlib.contextmanager
def portable(xp: ModuleType) -> Iterator[None]:
    """Run only portable code for the arrays of one library inside a `with`, in all threads.

    It can be nested; another thread that enters it waits until this one has left.
    """
    global _version
    with _PORTABLE:
        found = kernels(xp)
        _KERNELS[xp] = {}
        _version += 1
        try:
            yield
        finally:
            _KERNELS[xp] = found
            _version += 1

"""Faster code for individual array libraries, and the decorator that adds your own.

A body is the portable code of an op or an optimizer, after its arguments are checked: a function `(xp, *arguments)`.
`BODIES` holds all of them by name; `inspect.signature(BODIES["linear"])` shows the arguments. A kernel takes the same
arguments without `xp`, and returns what the body would return, or NotImplemented for arguments that it does not handle.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from xcnn._dispatch import BODIES, kernels
from xcnn._dispatch import kernel as _register
from xcnn.errors import UsageError, unknown

__all__ = ["BODIES", "kernel"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(xp: ModuleType, bind: Callable[..., Any] | None = None) -> Callable[[F], F]:
    """Return a decorator that registers a function as a kernel of the body of the same name.

    The kernel is tried before those already registered, and these before the body. First import the module that defines
    the body (`xcnn.ops`, `xcnn.optim`).

    Parameters
    ----------
    xp : namespace of the arrays that the kernel takes, such as `numpy` or `xcnn.device("torch").xp`.
    bind : None, or a function of the kernel's arguments, which inference calls once for arrays of given shapes. It
        returns NotImplemented if the kernel would, else a function that is called instead of the kernel from then on:
        with the same arguments, of which other arrays have the shapes and dtypes of the first ones. That returns only
        the first result of the body, or NotImplemented to have the kernel called.

    Raises
    ------
    UsageError
        If `xp` is not a namespace, `bind` is no function, or there is no body of that name.
    """
    if not isinstance(xp, ModuleType):
        raise UsageError(f"kernel: xp must be the namespace of an array library, such as numpy, got {xp!r}")
    if bind is not None and not callable(bind):
        raise UsageError(f"kernel: bind must be a function of the kernel's arguments or None, got {bind!r}")

    def register(function: F) -> F:
        name = getattr(function, "__name__", function)
        if name not in BODIES:
            raise unknown("body", name, BODIES)
        kernels(xp)  # loads the package's own kernels first
        return _register(xp, bind)(function)

    return register

"""Faster code for one array library each, and the way to add your own.

A body is the portable computation behind an op or an optimizer, after its arguments are checked: a function
`(xp, *arguments)`. `BODIES` has all of them by name, and `inspect.signature(BODIES["relu"])` shows the arguments. A
kernel takes the same arguments without `xp`, and returns what the body would, or NotImplemented for arguments that it
does not handle.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from xcnn._dispatch import BODIES, kernels
from xcnn._dispatch import kernel as _register
from xcnn.errors import unknown

__all__ = ["BODIES", "kernel"]

F = TypeVar("F", bound=Callable[..., Any])


def kernel(xp: ModuleType) -> Callable[[F], F]:
    """Return a decorator that makes a function the kernel of the body of the same name.

    It is called before all kernels that were there, and those before the body. Import the module that defines the body
    first (`xcnn.ops`, `xcnn.optim`).

    Parameters
    ----------
    xp : the namespace of the arrays that it takes, such as `numpy`, or the `xp` of an `xcnn.device`.

    Raises
    ------
    UsageError
        If there is no body of that name.
    """

    def register(function: F) -> F:
        if function.__name__ not in BODIES:
            raise unknown("body", function.__name__, BODIES)
        kernels(xp)  # loads ours, so that they are there before
        return _register(xp)(function)

    return register

"""What `Module` makes of the `forward` of a class: its backward pass runs once, and errors name the layer."""

import functools
from collections.abc import Callable
from typing import Any

from xcnn._array import Array
from xcnn.errors import UsageError, XcnnError, wrong_call
from xcnn.ops._op import captured

__all__ = ["Once", "locate", "prepared"]


class Once:
    """A module's backward pass, which runs once and then releases the arrays that it kept.

    Call it with `dy`, the gradient with respect to the module's output. It adds into the gradient of every parameter
    and returns the gradient with respect to the module's input, or None if `need_dx` is False.
    """

    __slots__ = ("_function", "_name")

    def __init__(self, name: str, function: Callable[[Any, bool], Any]) -> None:
        self._name = name
        self._function: Callable[[Any, bool], Any] | None = function

    def __call__(self, dy: Any, need_dx: bool = True) -> Any:
        function, self._function = self._function, None
        if function is None:
            raise UsageError(f"{self._name}: backward was called already; call forward again first")
        try:
            return function(dy, need_dx)
        except TypeError:
            if wrong_call("backward", function, (dy, need_dx), {}) is None:
                raise
            message = f"{self._name}: the backward that forward returns must take two arguments, (dy, need_dx)"
            raise UsageError(message) from None

    def saved(self) -> dict[str, Array]:
        """Return the arrays that this backward keeps alive; a container's layers keep theirs."""
        return {} if self._function is None else captured(self._function)


def prepared(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `forward` of a class; see `Module`."""

    @functools.wraps(forward)
    def called(self: Any, x: Any, train: bool = True) -> tuple[Any, Once]:
        name = type(self).__name__
        try:
            result = forward(self, x, train)
        except XcnnError as error:
            _trace(error, self)
            raise
        except TypeError:
            if wrong_call(name, forward, (self, x, train), {}) is not None:
                raise UsageError(f"{name}: forward must take (x, train) and return (y, backward)") from None
            raise
        if type(result) is not tuple or len(result) != 2 or not callable(result[1]):
            raise UsageError(f"{name}: forward must return (y, backward), got {type(result).__name__}")
        return result[0], Once(name, result[1])

    return called


def _trace(error: XcnnError, module: Any) -> None:
    """Record in an error that it passed through a module, and name the child that raised it."""
    for name, child in module.children() if error.module is not None else ():
        if child is error.module:
            locate(error, name, child)
            break
    error.module = module


def locate(error: XcnnError, name: str, module: object) -> None:
    """Prefix an error with the layer that raised it: `3 (Conv2d): conv2d: ...`, then `body.3 (Conv2d): ...`."""
    inside = f"{name}." if error.layer else f"{name} ({type(module).__name__}): "
    error.layer = f"{name}.{error.layer}" if error.layer else name
    error.args = (f"{inside}{error}",)

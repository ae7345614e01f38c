"""What `Module` makes of the `forward` of a class: its backward pass runs once, and errors name the layer."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

from xcnn._array import Array, is_array
from xcnn.errors import UsageError, XcnnError, wrong_call
from xcnn.ops._op import captured
from xcnn.parameter import Parameter

__all__ = ["ABSENT", "Once", "call", "is_one_image", "locate", "prepared", "refuse"]

ABSENT: Any = object()
"""The default of an input, by which a call without it is told; a `TypeError` of Python would not name the layer."""


class Once:
    """A module's backward pass, which runs once and then releases the arrays that it kept.

    Call it with `dy`, the gradient with respect to the module's output. It adds into the gradient of every parameter
    and returns the gradient with respect to the module's input, or None if `need_dx` is False.
    """

    __slots__ = ("_function", "_input", "_name")

    def __init__(self, name: str, function: Callable[[Any, bool], Any], x: Any) -> None:
        self._name = name
        # What `_require` asks for: the number of inputs, or the dtype of the only one.
        self._input = len(x) if isinstance(x, tuple | list) else getattr(x, "dtype", None)
        self._function: Callable[[Any, bool], Any] | None = function

    def __call__(self, dy: Any = None, need_dx: bool = True) -> Any:
        function, self._function = self._function, None
        if function is None:
            raise UsageError(f"{self._name}: backward was called already; call forward again first")
        if dy is None:
            raise UsageError(f"{self._name}: dy must be the gradient with respect to y, got None")
        try:
            dx = function(dy, need_dx)
        except TypeError:
            if wrong_call("backward", function, (dy, need_dx), {}) is None:
                raise
            message = f"{self._name}: the backward that forward returns must take two arguments, (dy, need_dx)"
            raise UsageError(message) from None
        if need_dx and (dx is None or type(self._input) is int):
            self._require(dx)
        return dx

    def _require(self, dx: Any) -> None:
        """Check that there is a gradient for each input, as without it the layers below would not be trained."""
        taken = self._input
        if type(taken) is int:
            if not isinstance(dx, tuple | list) or len(dx) != taken:
                came = f"{len(dx)} of them" if isinstance(dx, tuple | list) else type(dx).__name__
                raise UsageError(f"{self._name}: backward must return a tuple of {taken} gradients, got {came}")
        elif "float" in str(taken):  # the dtype of x, of any library; integers have no gradient
            raise UsageError(f"{self._name}: backward must return the gradient with respect to x, got None")

    def saved(self) -> dict[str, Array]:
        """Return the arrays that this backward keeps alive; a container's layers keep theirs."""
        return {} if self._function is None else captured(self._function)


def call(x: Any) -> Any:
    """Take what a module takes when it is called; see `refuse`."""


def _forward(x: Any, train: bool = True) -> Any:
    """Take what a module's `forward` takes; see `refuse`."""


def refuse(name: str, function: Callable[..., Any], given: tuple[Any, ...], others: dict[str, Any]) -> NoReturn:
    """Raise the error of a call, by its name, with other arguments than `function` takes."""
    if function is call and len(given) > 1:
        raise UsageError(f"{name}: x is the only argument, got {len(given)}; pass several inputs as one tuple")
    raise wrong_call(name, function, () if given[0] is ABSENT else given, others) or UsageError(name)


def is_one_image(module: Any, x: Any) -> bool:
    """Return whether x has no batch axis, but the channels of the first layer of maps: it should have been x[None]."""
    weights = ((one, getattr(one, "weight", None)) for _, one in module.modules())
    layer, kernel = next(
        ((one, w.data.ndim) for one, w in weights if isinstance(w, Parameter) and w.data.ndim > 1), (None, 0)
    )
    return bool(is_array(x) and x.ndim == kernel - 1 and getattr(layer, "in_channels", None) == x.shape[0])


def prepared(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the `forward` of a class; see `Module`."""

    @functools.wraps(forward)
    def called(self: Any, x: Any = ABSENT, train: bool = True, *more: Any, **others: Any) -> tuple[Any, Once]:
        name = type(self).__name__
        if x is ABSENT or more or others:
            refuse(f"{name}.forward", _forward, (x, train, *more), others)
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
        return result[0], Once(name, result[1], x)

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

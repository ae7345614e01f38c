"""`Layer`: a module that is one op. The op's arguments are found among the layer's attributes, by name.

A layer without parameters is a dataclass whose fields are the op's options:

    @dataclass(eq=False, repr=False)
    class LeakyReLU(Layer, op=ops.leaky_relu):
        negative_slope: float = 0.01

One with parameters assigns them under the names of the op's array arguments (`self.weight`, `self.bias`, which may be
None) and draws them in `_reset`.
"""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from xcnn.errors import UsageError
from xcnn.nn._module import Module
from xcnn.ops._op import OPS

__all__ = ["Layer", "positive"]


class Layer(Module):
    """Base of the layers that call one op; a subclass names it: `class ReLU(Layer, op=ops.relu)`."""

    _op: ClassVar[Callable[..., Any]]
    _weights: ClassVar[tuple[str, ...]]
    _options: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, op: Callable[..., Any] | None = None) -> None:
        super().__init_subclass__()
        if op is not None:
            arrays = OPS[op.__name__].arrays
            cls._op = staticmethod(op)
            cls._weights = arrays[1:]
            cls._options = tuple(name for name in inspect.signature(op).parameters if name not in arrays)

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        parameters = [getattr(self, name) for name in self._weights]
        arguments = {name: getattr(self, name) for name in self._options}
        for name, parameter in zip(self._weights, parameters, strict=True):
            arguments[name] = None if parameter is None else parameter.data
        y, op_backward = self._op(x, **arguments)

        def backward(dy: Any, need_dx: bool) -> Any:
            needs = need_dx, *(parameter is not None for parameter in parameters)
            if not any(needs):
                return None
            dx, *grads = op_backward(dy, needs)
            for parameter, grad in zip(parameters, grads, strict=True):
                if parameter is not None:
                    parameter.accumulate(grad)
            return dx

        return y, backward


def positive(layer: str, **arguments: int) -> None:
    """Refuse constructor arguments that are no integers of at least 1."""
    for name, value in arguments.items():
        if not hasattr(value, "__index__") or isinstance(value, bool) or value < 1:
            raise UsageError(f"{layer}: {name} must be an integer of at least 1, got {value!r}")

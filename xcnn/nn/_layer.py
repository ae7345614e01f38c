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

from xcnn._check import integer
from xcnn.errors import UsageError
from xcnn.nn._module import Module
from xcnn.ops._op import OPS
from xcnn.parameter import Parameter

__all__ = ["Layer", "positive"]


class Layer(Module):
    """Base of the layers that call one op; a subclass names it: `class ReLU(Layer, op=ops.relu)`."""

    _op: ClassVar[Callable[..., Any]]
    _slots: ClassVar[tuple[str, ...]]
    _options: ClassVar[tuple[str, ...]]

    activation: ClassVar[str | None] = None  # for ops that have this option: a container may run a ReLU with the layer

    def __init_subclass__(cls, op: Callable[..., Any] | None = None) -> None:
        super().__init_subclass__()
        if op is not None:
            arrays = OPS[op.__name__].arrays
            cls._op = staticmethod(op)
            cls._slots = arrays[1:]
            cls._options = tuple(name for name in inspect.signature(op).parameters if name not in arrays)

    def _forward(self, x: Any, train: bool) -> tuple[Any, Callable[[Any, bool], Any]]:
        return self._call(x)

    def _call(self, x: Any, **options: Any) -> tuple[Any, Callable[[Any, bool], Any]]:
        """Call the op with `options`, and with attributes for all that is not among them."""
        slots = []  # parameters, buffers and None
        for name in self._slots:
            slot = getattr(self, name)
            slots.append(slot)
            options[name] = None if slot is None else slot.data
        for name in self._options:
            if name not in options:
                options[name] = getattr(self, name)
        y, op_backward = self._op(x, **options)
        updates = [slot.updates for slot in slots if isinstance(slot, Parameter)]

        def backward(dy: Any, need_dx: bool) -> Any:
            trained = [isinstance(slot, Parameter) for slot in slots]
            if not need_dx and True not in trained:
                return None
            if updates != [slot.updates for slot in slots if isinstance(slot, Parameter)]:
                raise UsageError(
                    f"{type(self).__name__}: an optimizer has changed the parameters since forward; call backward first"
                )
            dx, *grads = op_backward(dy, (need_dx, *trained))
            for slot, grad in zip(slots, grads, strict=True):
                if grad is not None:
                    slot.accumulate(grad)
            return dx

        return y, backward


def positive(layer: str, **arguments: int) -> None:
    """Refuse constructor arguments that are no integers of at least 1."""
    for name, value in arguments.items():
        integer(layer, name, value)

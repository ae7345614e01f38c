"""Layers that combine several arrays into one."""

from collections.abc import Callable, Sequence
from typing import Any

from xcnn import ops
from xcnn.errors import UsageError
from xcnn.nn._module import Module, options

__all__ = ["Add", "Concat"]


def _arrays(layer: Module, x: Any) -> Sequence[Any]:
    if not isinstance(x, tuple | list) or not x:
        raise UsageError(f"{type(layer).__name__}: x must be a tuple of arrays, got {type(x).__name__}")
    return x


class Add(Module):
    """Add a tuple of arrays whose shapes broadcast."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        y, *others = _arrays(self, x)
        backwards = []
        for other in others:
            y, backward = ops.add(y, other)
            backwards.append(backward)

        def backward_all(dy: Any, need_dx: bool) -> Any:
            if not need_dx:
                return None
            gradients = []
            for backward in reversed(backwards):
                dy, dother = backward(dy)
                gradients.append(dother)
            return (dy, *reversed(gradients))

        return y, backward_all


@options
class Concat(Module):
    """Join a tuple of arrays along axis `dim`, by default the channels."""

    dim: int = 1

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        y, backward = ops.concat(_arrays(self, x), self.dim)
        return y, lambda dy, need_dx: backward(dy) if need_dx else None

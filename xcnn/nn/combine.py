"""Layers that combine several arrays into one."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from xcnn import ops
from xcnn.errors import UsageError
from xcnn.nn._module import Module, options

__all__ = ["Add", "Concat", "Multiply"]


def _arrays(layer: Module, x: Any) -> Sequence[Any]:
    if not isinstance(x, tuple | list) or not x:
        raise UsageError(f"{type(layer).__name__}: x must be a tuple of arrays, got {type(x).__name__}")
    return x


class _Pairwise(Module):
    """Combine a tuple of arrays, one after the other, by an op of two."""

    _op: ClassVar[Callable[..., Any]]

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        return self._forward(x, train)

    def _forward(self, x: Any, train: bool, **last: Any) -> tuple[Any, Callable[..., Any]]:
        """Do what `forward` does, with more options for the last call of the op: `activation`, see `_plan.py`."""
        y, *others = _arrays(self, x)
        backwards = []
        for i, other in enumerate(others, 1):
            y, backward = type(self)._op(y, other, **last if i == len(others) else {})
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

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        return type(self)._op.__name__, {}


class Add(_Pairwise):
    """Add a tuple of arrays whose shapes broadcast."""

    _op = ops.add


class Multiply(_Pairwise):
    """Multiply a tuple of arrays whose shapes broadcast, such as maps (n, c, h, w) and a gate (n, c, 1, 1)."""

    _op = ops.multiply


@options
class Concat(Module):
    """Join a tuple of arrays along axis `dim`, by default the channels."""

    dim: int = 1

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Callable[..., Any]]:
        y, backward = ops.concat(_arrays(self, x), self.dim)
        return y, lambda dy, need_dx: backward(dy) if need_dx else None

    def _calls(self) -> tuple[str, dict[str, Any]] | None:
        return "concat", {"dim": self.dim}

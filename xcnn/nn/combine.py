"""Layers that combine several arrays into one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from xcnn import ops
from xcnn.errors import UsageError
from xcnn.nn._module import Module, options

__all__ = ["Add", "Concat"]

Backward = Callable[..., Any]


def _arrays(layer: Module, x: Any) -> Sequence[Any]:
    if not isinstance(x, tuple | list) or not x:
        raise UsageError(f"{type(layer).__name__}: x must be a tuple of arrays, got {type(x).__name__}")
    return x


class Add(Module):
    """Add a tuple of arrays of one shape."""

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Backward]:
        """Return y and its backward pass; see `Module.forward`."""
        count = len(_arrays(self, x))
        y = functools.reduce(lambda total, term: ops.add(total, term)[0], x)
        return y, lambda dy, need_dx: (dy,) * count if need_dx else None


@options
class Concat(Module):
    """Join a tuple of arrays along axis `dim`, by default the channels."""

    dim: int = 1

    def forward(self, x: Any, train: bool = True) -> tuple[Any, Backward]:
        """Return y and its backward pass; see `Module.forward`."""
        y, backward = ops.concat(_arrays(self, x), self.dim)
        return y, lambda dy, need_dx: backward(dy) if need_dx else None

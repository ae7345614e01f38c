"""Layers that combine several arrays into one."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xcnn import ops
from xcnn.errors import UsageError
from xcnn.nn._module import Module

__all__ = ["Add", "Concat"]

Backward = Callable[[Any, bool], Any]


def _arrays(layer: Module, x: Any) -> Sequence[Any]:
    if not isinstance(x, tuple | list) or not x:
        raise UsageError(f"{type(layer).__name__}: x must be a tuple of arrays, got {type(x).__name__}")
    return x


class Add(Module):
    """Add a tuple of arrays of one shape."""

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        count = len(_arrays(self, x))
        y = functools.reduce(lambda total, term: ops.add(total, term)[0], x)
        return y, lambda dy, need_dx: (dy,) * count if need_dx else None


@dataclass(eq=False, repr=False)
class Concat(Module):
    """Join a tuple of arrays along axis `dim`, by default the channels."""

    dim: int = 1

    def _forward(self, x: Any, train: bool) -> tuple[Any, Backward]:
        y, backward = ops.concat(_arrays(self, x), self.dim)
        return y, lambda dy, need_dx: backward(dy) if need_dx else None

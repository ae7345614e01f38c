"""Integers in code that is written for LLVM, so that its loops read like those of Python.

Numba takes ten times as long for the same loops, in proportion to their statements.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from numba.core import cgutils

from xcnn.kernels.cpu._vectors import INT

__all__ = ["Integer"]


def _operator(name: str) -> Callable[["Integer", Any], "Integer"]:
    return lambda self, other: self.joined(getattr(self.builder, name), other)


class Integer:
    """An integer in the code that is written, with its arithmetic."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, INT(value) if isinstance(value, int) else value

    def joined(self, operation: Callable[[Any, Any], Any], other: Any) -> "Integer":
        return Integer(self.builder, operation(self.value, other.value if isinstance(other, Integer) else INT(other)))

    __add__, __sub__, __mul__, __floordiv__ = map(_operator, ("add", "sub", "mul", "udiv"))

    def holds(self, sign: str, other: Any) -> Any:
        """Return the condition that it compares like this with another one."""
        return self.joined(lambda a, b: self.builder.icmp_signed(sign, a, b), other).value

    def least(self, other: Any) -> "Integer":
        return self.joined(lambda a, b: self.builder.select(self.holds("<", other), a, b), other)

    def most(self, other: Any) -> "Integer":
        return self.joined(lambda a, b: self.builder.select(self.holds(">", other), a, b), other)

    @contextlib.contextmanager
    def up_to(self, end: Any, step: Any = 1) -> Iterator["Integer"]:
        """Write a loop from this integer on."""
        stop, each = (Integer(self.builder, 0) + one for one in (end, step))
        with cgutils.for_range_slice(self.builder, self.value, stop.value, each.value) as (index, _):
            yield Integer(self.builder, index)

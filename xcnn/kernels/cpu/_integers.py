"""Integers in code that is written for LLVM, so that its loops read like those of Python."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from xcnn.kernels.cpu._vectors import INT, loop

__all__ = ["Integer", "Integers"]


def _operator(name: str) -> Callable[["Integer", Any], "Integer"]:
    return lambda self, other: self.joined(getattr(self.builder, name), other)


class Integer:
    """An integer in the code that is written, with its arithmetic; others may be int or what the builder made."""

    def __init__(self, builder: Any, value: Any) -> None:
        if isinstance(value, Integer):
            value = value.value
        self.builder = builder
        self.value: Any = INT(value) if isinstance(value, int) else value

    def joined(self, operation: Callable[[Any, Any], Any], other: Any) -> "Integer":
        return Integer(self.builder, operation(self.value, Integer(self.builder, other).value))

    __add__, __sub__, __mul__, __floordiv__ = map(_operator, ("add", "sub", "mul", "udiv"))

    def holds(self, sign: str, other: Any) -> Any:
        """Return the condition that it compares like this with another one."""
        return self.joined(lambda a, b: self.builder.icmp_signed(sign, a, b), other).value

    def least(self, other: Any) -> "Integer":
        return self.joined(lambda a, b: self.builder.select(self.holds("<", other), a, b), other)

    def most(self, other: Any) -> "Integer":
        return self.joined(lambda a, b: self.builder.select(self.holds(">", other), a, b), other)

    def if_(self, condition: Any, other: Any) -> "Integer":
        """Return this one if a condition holds, else the other one."""
        return self.joined(lambda a, b: self.builder.select(condition, a, b), other)

    def of(self, pointer: Any) -> Any:
        """Return a pointer to the number with this index, of those at a pointer."""
        return self.builder.gep(pointer, [self.value])

    @contextlib.contextmanager
    def up_to(self, end: Any, step: Any = 1) -> Iterator["Integer"]:
        """Write a loop from this integer on."""
        stop, each = (Integer(self.builder, one).value for one in (end, step))
        with loop(self.builder, self.value, stop, each) as (index, _, _):
            yield Integer(self.builder, index)


class Integers:
    """An array of integers in the code that is written; `size` is that of an array in tables."""

    def __init__(self, builder: Any, pointer: Any, size: Any = 0) -> None:
        self.builder, self.pointer, self.size = builder, pointer, Integer(builder, size)

    def __getitem__(self, i: Any) -> Integer:
        return Integer(self.builder, self.builder.load(Integer(self.builder, i).of(self.pointer)))

    def some(self, place: Any, count: int) -> list[Integer]:
        """Return `count` adjacent ones."""
        start = Integers(self.builder, Integer(self.builder, place).of(self.pointer))
        return [start[i] for i in range(count)]

    def array(self, i: Any) -> "Integers":
        """Return array i of tables that `_grids.pack` wrote."""
        begin, end = self.some(self[0] + i + 1, 2)
        return Integers(self.builder, begin.of(self.pointer), end - begin)

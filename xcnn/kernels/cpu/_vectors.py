"""Vector registers, and instructions on vectors of one element type: the base of all code that is written for LLVM.

Rows are processed by whole vectors and, at their end, by one with a mask, so that nothing outside a row is read or
written. Processors without masked loads and stores do these lane by lane.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir

__all__ = ["BYTES", "CPU_NAME", "DOUBLE", "FEATURES", "FUSED", "INT", "LANE", "Vectors", "blocks", "counted", "loop"]

_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
_NAMED = os.environ.get("XCNN_CPU_NAME", "")
if _NAMED and not (_NAMED in _LEVELS and platform.machine() in ("x86_64", "AMD64")):  # LLVM would end the process
    raise ValueError(f"XCNN_CPU_NAME takes {', '.join(_LEVELS)} on an x86-64 processor, got {_NAMED!r}")

CPU_NAME = _NAMED or llvmlite.binding.get_host_cpu_name()
FEATURES = {} if _NAMED else llvmlite.binding.get_host_cpu_features()
"""The processor for which code is written, and its features; of one that is named, only those of the name are used."""

FUSED = bool(FEATURES.get("fma")) or platform.machine() not in ("x86_64", "AMD64", "i386", "i686")
"""Whether the processor has a fused multiply-add; without one, LLVM would call a function per number."""

BYTES = 64 if FEATURES.get("avx512f") else 32 if FEATURES.get("avx") else 16
"""Size of a vector register."""

INT, LANE, DOUBLE = ir.IntType(64), ir.IntType(32), ir.DoubleType()


@contextlib.contextmanager
def loop(builder: Any, start: Any, stop: Any, step: Any, values: Sequence[Any] = ()) -> Iterator[Any]:
    """Write a loop: yield its index, the values that it carries, and a list for those of the next iteration."""
    before = builder.block
    head, inside, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    index, carried, following = builder.phi(INT), [builder.phi(value.type) for value in values], list[Any]()
    builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
    builder.position_at_end(inside)
    yield index, carried, following
    last, end = builder.add(index, step), builder.block
    builder.branch(head)
    for phi, first, later in zip([index, *carried], [start, *values], [last, *following], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, end)
    builder.position_at_end(after)


def counted(
    builder: Any, start: Any, stop: Any, step: Any, values: Sequence[Any], body: Callable[..., Sequence[Any]]
) -> list[Any]:
    """Write a loop that carries values from each iteration to the next one; return the last ones.

    `body(index, values)` writes an iteration and returns the values for the next one.
    """
    with loop(builder, start, stop, step, values) as (index, carried, following):
        following += body(index, carried)
    last: list[Any] = carried
    return last


def blocks(
    builder: Any, start: Any, stop: Any, length: Any, values: Sequence[Any], body: Callable[..., Sequence[Any]]
) -> list[Any]:
    """Write a loop over blocks of a length, of which the last may be shorter: `body(begin, end, values)` as above."""

    def block(begin: Any, carried: Sequence[Any]) -> Sequence[Any]:
        end = builder.add(begin, length)
        return body(begin, builder.select(builder.icmp_signed("<", end, stop), end, stop), carried)

    return counted(builder, start, stop, length, values, block)


class Vectors:
    """Emits instructions on vectors of one type.

    Parameters
    ----------
    builder : the builder of the function that contains them.
    itemsize : bytes of a number, 4 or 8.
    """

    def __init__(self, builder: Any, itemsize: int) -> None:
        self.builder, self.itemsize, self.lanes = builder, itemsize, BYTES // itemsize
        self.vector = ir.VectorType(ir.FloatType() if itemsize == 4 else DOUBLE, self.lanes)

    @staticmethod
    def lane_list(lanes: Sequence[int]) -> Any:
        return ir.Constant(ir.VectorType(LANE, len(lanes)), [*lanes])

    def shuffle(self, a: Any, b: Any, lanes: Sequence[int]) -> Any:
        """Return the vector of some lanes of a and, counted after these, of b."""
        return self.builder.shuffle_vector(a, b, self.lane_list(lanes))

    def number(self, value: Any) -> Any:
        """Convert a float64 number to the element type."""
        return value if value.type == self.vector.element else self.builder.fptrunc(value, self.vector.element)

    def spread(self, value: Any, lanes: int = 0) -> Any:
        """Return a number of any type in all lanes."""
        empty = ir.Constant(ir.VectorType(value.type, lanes or self.lanes), ir.Undefined)
        return self.shuffle(self.builder.insert_element(empty, value, LANE(0)), empty, [0] * empty.type.count)

    def first(self, count: Any) -> Any:
        """Return a mask of the first lanes; `count` may be negative, or exceed their number."""
        lanes = count.type(self.lanes)
        bounded = self.builder.select(self.builder.icmp_signed("<", count, lanes), count, lanes)
        places = self.lane_list(range(self.lanes))
        return self.builder.icmp_signed("<", places, self.spread(self.builder.trunc(bounded, LANE)))

    def read(self, pointer: Any, index: Any, mask: Any = None) -> Any:
        """Load a vector of the numbers at a pointer. With a mask, other lanes are 0, and their memory is not read."""
        vector = ir.VectorType(pointer.type.pointee, self.lanes)
        place, align = self._place(pointer, index, vector)
        if mask is None:
            return self.builder.load(place, align=align)
        return self.call(
            "masked.load", vector, vector, place, LANE(align), mask, ir.Constant(vector, None), after=".p0"
        )

    def write(self, value: Any, pointer: Any, index: Any, mask: Any = None) -> None:
        """Store a vector, or some lanes of it."""
        place, align = self._place(pointer, index, value.type)
        if mask is None:
            self.builder.store(value, place, align=align)
        else:
            self.call("masked.store", ir.VoidType(), value.type, value, place, LANE(align), mask, after=".p0")

    def _place(self, pointer: Any, index: Any, vector: Any) -> tuple[Any, int]:
        """Return a pointer to a vector, and the alignment of its numbers."""
        return self.builder.bitcast(self.builder.gep(pointer, [index]), vector.as_pointer()), _bits(vector) // 8

    def call(self, name: str, result: Any, vector: Any, *arguments: Any, after: str = "") -> Any:
        """Call a function of LLVM that has versions for all types of vectors."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        letter = "i" if isinstance(vector.element, ir.IntType) else "f"
        full = f"llvm.{name}.v{vector.count}{letter}{_bits(vector)}{after}"
        return self.builder.call(self.declared(full, kind), arguments)

    def declared(self, name: str, kind: Any) -> Any:
        """Return a function of LLVM."""
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, kind, name)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """Return `a * b + c` of vectors of any type, with one rounding if the processor has a fused multiply-add."""
        if not FUSED:
            return self.builder.fadd(self.builder.fmul(a, b), c)
        return self.call("fma", a.type, a.type, a, b, c)

    def limits(self, low: Any, high: Any) -> list[Any]:
        """Return two numbers of float64 as `clipped` takes them."""
        return [self.spread(self.number(limit)) for limit in (low, high)]

    def clipped(self, value: Any, limits: Iterable[Any]) -> Any:
        """Return a vector limited to the interval between two others; NaN propagates."""
        for sign, limit in zip("<>", limits, strict=True):
            value = self.builder.select(self.builder.fcmp_ordered(sign, value, limit), limit, value)
        return value

    def optional(self, pointer: Any, number: float) -> tuple[Any, Any]:
        """Return a pointer, or one to a vector of a number if it is null; and the step to the next one, 1 or 0."""
        return self.or_else(self.exists(pointer), pointer, number)

    def zeros(self) -> Any:
        """Return zeros of float64."""
        return ir.Constant(ir.VectorType(DOUBLE, self.lanes), None)

    def widened(self, value: Any, mask: Any = None) -> Any:
        """Return a vector in float64, with zeros where a mask is False."""
        wide = self.builder.fpext(value, self.zeros().type) if self.itemsize == 4 else value
        return wide if mask is None else self.builder.select(mask, wide, self.zeros())

    def folded(self, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """Return a vector whose lanes each combine all lanes, by halves."""
        half = self.lanes
        while half > 1:
            half //= 2
            vector = combine(vector, self.shuffle(vector, vector, [i ^ half for i in range(self.lanes)]))
        return vector

    def total(self, vector: Any) -> Any:
        """Sum the lanes of a vector, by halves."""
        return self.builder.extract_element(self.folded(vector, self.builder.fadd), LANE(0))

    def load(self, pointer: Any) -> Any:
        """Load the vector at a pointer."""
        return self.read(pointer, INT(0))

    def store(self, value: Any, pointer: Any) -> None:
        """Store a vector at a pointer."""
        self.write(value, pointer, INT(0))

    def broadcast(self, pointer: Any) -> Any:
        """Load one number into all lanes."""
        return self.spread(self.builder.load(pointer))

    def exists(self, pointer: Any) -> Any:
        """Return the condition that a pointer is not null."""
        return self.builder.icmp_unsigned("!=", pointer, ir.Constant(pointer.type, None))

    def or_else(self, exists: Any, pointer: Any, number: float) -> tuple[Any, Any]:
        """Return a pointer, or one to a vector of a number unless it exists; and the step to the next one, 1 or 0."""
        with self.builder.goto_entry_block():
            same = self.builder.alloca(self.vector)
            self.builder.store(ir.Constant(self.vector, [number] * self.lanes), same)
            same = self.builder.bitcast(same, self.vector.element.as_pointer())
        return self.builder.select(exists, pointer, same), self.builder.zext(exists, INT)

    def prefetch(self, pointer: Any) -> None:
        """Begin to read the line at a pointer, which need not be valid, into the second-level cache."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, LANE, LANE, LANE])
        self.builder.call(self.declared("llvm.prefetch.p0", kind), [pointer, LANE(0), LANE(2), LANE(1)])

    def transpose(self, square: list[Any]) -> list[Any]:
        """Return the columns of as many vectors as a vector has lanes."""
        half = self.lanes // 2
        while half:  # exchange the upper right and the lower left quarter of all squares of this size
            for i in (i for i in range(self.lanes) if not i & half):
                upper, lower = square[i], square[i + half]
                lanes = [lane if not lane & half else self.lanes + lane - half for lane in range(self.lanes)]
                square[i] = self.shuffle(upper, lower, lanes)
                square[i + half] = self.shuffle(upper, lower, [lane + half for lane in lanes])
            half //= 2
        return square

    def barrier(self) -> None:
        """Keep loads and stores on their side of this place; emits no instruction."""
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)

    def rolled(self) -> None:
        """Keep LLVM from writing the steps of the loop around this place eight times, which costs registers."""
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)

    def span(
        self, begin: Any, end: Any, values: Sequence[Any], body: Callable[..., Sequence[Any]], many: int = 1,
        spare: int = 0,
    ) -> list[Any]:  # fmt: skip
        """Write the loops over vectors of the numbers from `begin` to `end`, `many` at once, then one by one.

        `body(places, mask, values)` is given the indices of the vectors, and a mask of those numbers that exist: None
        for many, which all do. Values are carried as in `counted`. The last `spare` numbers always have a mask.
        """
        builder, step, one = self.builder, INT(many * self.lanes), INT(self.lanes)
        whole = builder.sdiv(builder.sub(builder.sub(end, begin), INT(spare)), step)
        wide = builder.add(begin, builder.mul(whole, step))

        def several(start: Any, values: Sequence[Any]) -> Sequence[Any]:
            if many > 1:
                self.rolled()
            return body([builder.add(start, INT(k * self.lanes)) for k in range(many)], None, values)

        def rest(index: Any, values: Sequence[Any]) -> Sequence[Any]:
            self.rolled()
            return body([index], self.first(builder.sub(end, index)), values)

        return counted(builder, wide, end, one, counted(builder, begin, wide, step, values, several), rest)

    def fill(self, pointer: Any, count: Any, vector: Any = None) -> None:
        """Write the loops that set so many numbers at a pointer to those of a vector, or to 0."""
        value = ir.Constant(self.vector, None) if vector is None else vector

        def some(places: Any, mask: Any, _: Any) -> Any:
            self.write(value, pointer, places[0], mask)
            return ()

        self.span(INT(0), count, (), some)


def _bits(vector: Any) -> int:
    element = vector.element
    return element.width if isinstance(element, ir.IntType) else 32 if element == ir.FloatType() else 64

"""The product of a matrix and vectors, written as LLVM instructions, because NumPy's BLAS would need copies.

It reads vectors at any offset into a plane of pixels, so that a convolution needs no columns: the windows of a tap are
the plane itself, shifted. It is divided into blocks of rows and vectors whose sums fit in registers.

Indices count elements. Bounds are not checked: the callers lay out their planes accordingly.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._vectors import BYTES, FUSED, INT, LANE, Vectors, counted

__all__ = ["BYTES", "FUSED", "STRIP", "TERMS", "Emitter", "strip"]

_INT, _LANE = INT, LANE

# AVX-512 has 32 registers, all others are assumed to have 16. Each sum takes one, the factors take the rest.
STRIP = 6 if BYTES == 64 else 4
"""The most vectors of a strip."""

_BLOCKS = ((8, (3, 2, 1)), (4, (3, 2, 1)), (2, (6,))) if BYTES == 64 else ((6, (2, 1)), (4, (2, 1)), (2, (4,)))
"""Rows of the blocks of `strip`, and how many vectors they have, largest first."""

TERMS = 512
"""Products that are added one after another, lane by lane; longer sums are sums of such sums (see `_sums.py`)."""


class Emitter(Vectors):
    """Emits instructions on vectors of the numbers of an array, in a function that Numba compiles."""

    def __init__(self, context: Any, builder: Any, array: types.Array) -> None:
        super().__init__(builder, array.dtype.bitwidth // 8)
        self.context = context

    def pointer(self, array: types.Array, value: Any, index: Any = 0) -> Any:
        start = self.context.make_array(array)(self.context, self.builder, value).data
        return self.at(start, (index, 1))

    def at(self, pointer: Any, product: tuple[Any, Any], scale: int = 1) -> Any:
        """Advance a pointer by the product of two numbers times `scale`."""
        a, b = (_INT(factor) if isinstance(factor, int) else factor for factor in product)
        return self.builder.gep(pointer, [self.builder.mul(self.builder.mul(a, b), _INT(scale))])

    def strips(self, length: Any, many: int, unit: int = 0) -> Iterator[tuple[Any, int]]:
        """Loop over 0 .. length - 1 in steps of `many` units, then of one; a unit is a vector unless given.

        Yields the first index of a step and how many units it has. The last one may be longer than what is left.
        """
        unit = unit or self.lanes
        wide = self.builder.mul(self.builder.udiv(length, _INT(many * unit)), _INT(many * unit))
        with cgutils.for_range_slice(self.builder, _INT(0), wide, _INT(many * unit)) as (index, _):
            yield index, many
        with cgutils.for_range_slice(self.builder, wide, length, _INT(unit)) as (index, _):
            yield index, 1

    def smaller(self, a: Any, b: Any) -> Any:
        """Return the smaller of two integers."""
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def larger(self, a: Any, b: Any) -> Any:
        """Return the larger of two integers."""
        return self.builder.select(self.builder.icmp_signed(">", a, b), a, b)

    def load(self, pointer: Any, lanes: int = 0) -> Any:
        vector = ir.VectorType(self.vector.element, lanes or self.lanes)
        return self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), align=self.itemsize)

    def store(self, value: Any, pointer: Any) -> None:
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=self.itemsize)

    def prefetch(self, pointer: Any) -> None:
        """Begin to read the line at a pointer, which need not be valid, into the second-level cache."""
        pointer = self.builder.bitcast(pointer, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _LANE, _LANE, _LANE])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [pointer, _LANE(0), _LANE(2), _LANE(1)])

    def sums(self, rows: int, columns: int) -> list[list[Any]]:
        """Make vectors of zeros, which become registers."""
        sums = [[cgutils.alloca_once(self.builder, self.vector) for _ in range(columns)] for _ in range(rows)]
        for total in (total for row in sums for total in row):
            self.builder.store(ir.Constant(self.vector, [0.0] * self.lanes), total)
        return sums

    def broadcast(self, pointer: Any, lanes: int = 0) -> Any:
        """Load one number into all lanes."""
        return self.spread(self.builder.load(pointer), lanes)

    def filled(self, number: Any, lanes: int) -> Any:
        """Return a vector of one number."""
        return self.spread(number, lanes)

    def size(self, array: types.Array, value: Any) -> Any:
        """Return how many numbers an array has."""
        return self.context.make_array(array)(self.context, self.builder, value).nitems

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

    def pieces(self, length: Any) -> Iterator[tuple[Any, int]]:
        """Divide 0 .. length - 1 into vectors, and what is left into shorter ones; yields first indices and lanes."""
        first = self.builder.and_(length, _INT(-self.lanes))
        with cgutils.for_range_slice(self.builder, _INT(0), first, _INT(self.lanes)) as (index, _):
            yield index, self.lanes
        lanes = self.lanes // 2
        while lanes:
            part = self.builder.and_(length, _INT(lanes))
            with self.builder.if_then(self.builder.icmp_signed("!=", part, _INT(0))):
                yield first, lanes
            first, lanes = self.builder.add(first, part), lanes // 2

    def multiply_add(self, a: Any, b: Any, total: Any) -> None:
        """Compute `total += a * b`, with one rounding if the processor has a fused multiply-add."""
        self.builder.store(self.fused(a, b, self.builder.load(total)), total)

    def barrier(self) -> None:
        """Keep loads and stores on their side of this place; emits no instruction."""
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)


@intrinsic
def strip(
    _: Any,
    x: Any,
    x0: Any,
    shifts: Any,
    w: Any,
    w0: Any,
    row: Any,
    offsets: Any,
    count: Any,
    y: Any,
    y0: Any,
    step: Any,
    rows: Any,
    vectors: Any,
) -> Any:
    """Set `rows` rows of y, of at most STRIP `vectors` each, to the product of a matrix and shifted vectors.

    For i < `rows` and j < `vectors` times the numbers of a vector:

        y[y0 + i * step + j] = sum over k < count of w[w0 + lines[i] + offsets[k]] * x[x0 + shifts[k] + j]

    with lines[i] = i * row, or offsets[i - row] if `row` is negative. Some rows may be computed twice, with the same
    result.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, shifts_, w_, w0_, row_, offsets_, count_, y_, y0_, step_, rows_, vectors_ = arguments
        emit = Emitter(context, builder, x)
        source, target, weights = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(w, w_, w0_)
        shift, offset = emit.pointer(shifts, shifts_), emit.pointer(offsets, offsets_)
        zero, nothing = ir.Constant(emit.vector, None), cgutils.alloca_once_value(builder, _INT(0))
        listed, apart = builder.icmp_signed("<", row_, _INT(0)), emit.larger(row_, _INT(0))
        # At least one run, so that y is 0 if there are no terms.
        runs = builder.udiv(builder.add(emit.larger(count_, _INT(1)), _INT(TERMS - 1)), _INT(TERMS))

        def line(r: Any) -> Any:
            place = builder.load(builder.select(listed, builder.gep(offset, [builder.sub(r, row_)]), nothing))
            return emit.at(builder.gep(weights, [place]), (r, apart))

        def block(r: Any, size: int, v: Any, width: int) -> None:
            numbers = [emit.smaller(builder.add(r, _INT(i)), builder.sub(rows_, _INT(1))) for i in range(size)]
            lines, first = [line(number) for number in numbers], emit.at(target, (v, emit.lanes))
            places = [emit.at(emit.at(first, (i, step_)), (j, emit.lanes)) for i in numbers for j in range(width)]
            begins = emit.at(source, (v, emit.lanes))

            def term(k: Any, sums: list[Any]) -> list[Any]:
                pixels = builder.gep(begins, [builder.load(builder.gep(shift, [k]))])
                values = [emit.load(emit.at(pixels, (j, emit.lanes))) for j in range(width)]
                column = builder.load(builder.gep(offset, [k]))
                totals = []
                for i, one in enumerate(lines):
                    weight = emit.broadcast(builder.gep(one, [column]))
                    totals += [emit.fused(weight, values[j], sums[i * width + j]) for j in range(width)]
                    emit.barrier()  # otherwise all weights are loaded first, and sums lose their registers
                return totals

            with cgutils.for_range(builder, runs) as run:
                begin = builder.mul(run.index, _INT(TERMS))
                end = emit.smaller(builder.add(begin, _INT(TERMS)), count_)
                later = builder.icmp_signed(">", run.index, _INT(0))
                totals = counted(builder, begin, end, _INT(1), [zero] * len(places), term)
                before = [builder.select(later, emit.load(place), zero) for place in places]
                for place, old, total in zip(places, before, totals, strict=True):
                    emit.store(builder.fadd(old, total), place)

        def blocks(r: Any, size: int, widths: tuple[int, ...]) -> None:
            v: Any = _INT(0)
            for width in widths:
                end = builder.add(v, builder.mul(builder.udiv(builder.sub(vectors_, v), _INT(width)), _INT(width)))
                if width == 3:  # two and two are faster than three and one
                    end = builder.select(builder.icmp_signed("==", vectors_, _INT(4)), v, end)
                with cgutils.for_range_slice(builder, v, end, _INT(width)) as (first, _):
                    block(r, size, first, width)
                v = end

        # The last block of several rows may begin before the end of those before it.
        (most, _), (some, _), (_, (wide,)) = _BLOCKS
        whole = builder.add(rows_, _INT(most - 1 - some))
        whole = builder.mul(builder.udiv(whole, _INT(most)), _INT(most))
        whole = builder.select(builder.icmp_signed("<", rows_, _INT(most)), _INT(0), whole)
        few = builder.icmp_signed("<=", rows_, _INT(_BLOCKS[2][0]))
        few = builder.and_(few, builder.icmp_signed("==", vectors_, _INT(wide)))
        ends = whole, builder.select(few, _INT(0), rows_), rows_
        for start, end, (size, widths) in zip((_INT(0), whole, ends[1]), ends, _BLOCKS, strict=True):
            last = emit.larger(builder.sub(rows_, _INT(size)), _INT(0))
            with cgutils.for_range_slice(builder, start, end, _INT(size)) as (r, _):
                blocks(emit.smaller(r, last), size, widths)
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, shifts, w, n, n, offsets, n, y, n, n, n, n), generate

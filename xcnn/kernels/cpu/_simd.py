"""Two products of vectors, written as LLVM instructions, because NumPy's BLAS would need copies.

Both read vectors at any offset into a plane of pixels, so that a convolution needs no columns: the windows of a tap are
the plane itself, shifted. Each is divided into blocks of rows and columns whose sums fit in registers.

Indices count elements. Bounds are not checked: the callers in `conv.py` lay out their planes accordingly.
"""

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._vectors import BYTES, FUSED, INT, LANE, Vectors

__all__ = [
    "BYTES",
    "CORRELATION_BLOCKS",
    "FUSED",
    "STRIP",
    "STRIP_BLOCKS",
    "TERMS",
    "Emitter",
    "correlation",
    "strip",
]

_INT, _LANE = INT, LANE

# AVX-512 has 32 registers, all others are assumed to have 16. Each sum takes one, the factors take the rest.
STRIP = 6 if BYTES == 64 else 4
"""The most vectors of a strip."""

STRIP_BLOCKS = ((8, 3), (4, 6), (2, 6), (1, 6)) if BYTES == 64 else ((6, 2), (4, 2), (2, 4), (1, 4))
"""Rows and vectors of the blocks of `strip`, largest first."""

CORRELATION_BLOCKS = ((4, 6), (2, 8), (1, 8)) if BYTES == 64 else ((4, 2), (2, 4), (1, 6))
"""Rows and columns of the blocks of `correlation`, largest first."""

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

        y[y0 + i * step + j] = sum over k < count of w[w0 + i * row + offsets[k]] * x[x0 + shifts[k] + j]
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, shifts_, w_, w0_, row_, offsets_, count_, y_, y0_, step_, rows_, vectors_ = arguments
        emit = Emitter(context, builder, x)
        source, target, weights = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(w, w_, w0_)
        shift, offset = emit.pointer(shifts, shifts_), emit.pointer(offsets, offsets_)
        # At least one run, so that y is 0 if there are no terms.
        runs = builder.udiv(builder.add(emit.larger(count_, _INT(1)), _INT(TERMS - 1)), _INT(TERMS))

        def block(r: Any, size: int, v: Any, width: int) -> None:
            lines = [emit.at(emit.at(weights, (r, row_)), (i, row_)) for i in range(size)]
            first = emit.at(emit.at(target, (r, step_)), (v, emit.lanes))
            places = [emit.at(emit.at(first, (i, step_)), (j, emit.lanes)) for i in range(size) for j in range(width)]
            begins = emit.at(source, (v, emit.lanes))
            with cgutils.for_range(builder, runs) as run:
                begin = builder.mul(run.index, _INT(TERMS))
                end = emit.smaller(builder.add(begin, _INT(TERMS)), count_)
                sums = emit.sums(size, width)
                with cgutils.for_range_slice(builder, begin, end, _INT(1)) as (k, _):
                    pixels = builder.gep(begins, [builder.load(builder.gep(shift, [k]))])
                    values = [emit.load(emit.at(pixels, (j, emit.lanes))) for j in range(width)]
                    column = builder.load(builder.gep(offset, [k]))
                    for line, line_sums in zip(lines, sums, strict=True):
                        weight = emit.broadcast(builder.gep(line, [column]))
                        for value, total in zip(values, line_sums, strict=True):
                            emit.multiply_add(weight, value, total)
                        emit.barrier()  # otherwise all weights are loaded first, and sums lose their registers
                totals = [builder.load(total) for line_sums in sums for total in line_sums]
                with builder.if_else(builder.icmp_signed("==", run.index, _INT(0))) as (is_first, is_later):
                    with is_first:
                        for place, total in zip(places, totals, strict=True):
                            emit.store(total, place)
                    with is_later:
                        for place, total in zip(places, totals, strict=True):
                            emit.store(builder.fadd(emit.load(place), total), place)

        done: Any = _INT(0)
        for size, width in STRIP_BLOCKS:
            left = builder.sub(rows_, done)
            end = builder.add(done, builder.mul(builder.udiv(left, _INT(size)), _INT(size)))
            with cgutils.for_range_slice(builder, done, end, _INT(size)) as (r, _):
                for v, many in emit.strips(vectors_, width, 1):
                    block(r, size, v, many)
            done = end
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, shifts, w, n, n, offsets, n, y, n, n, n, n), generate


def correlation(rows: int, columns: int) -> Callable[..., None]:
    """Build the sums over images and pixels of vectors times shifted vectors, in blocks of `rows` and `columns`.

    The result is a function `(a, a0, plane, a_step, x, x_step, shifts, count, images, length, out, out0, blocks)` that
    adds, for the `blocks * rows` rows i and all k < `count`, with `length` rounded up to whole vectors:

        out[out0 + i * count + k] += sum over n < images and l < length of
            a[a0 + n * a_step + i * plane + l] * x[n * x_step + shifts[k] + l]
    """

    @intrinsic
    def product(
        _: Any,
        a: Any,
        a0: Any,
        plane: Any,
        a_step: Any,
        x: Any,
        x_step: Any,
        shifts: Any,
        count: Any,
        images: Any,
        length: Any,
        out: Any,
        out0: Any,
        blocks: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a_, a0_, plane_, a_step_, x_, x_step_, shifts_, count_, images_, length_, out_, out0_, blocks_ = arguments
            emit = Emitter(context, builder, x)
            left, right, target = emit.pointer(a, a_, a0_), emit.pointer(x, x_), emit.pointer(out, out_, out0_)
            shift = emit.pointer(shifts, shifts_)
            vectors = builder.udiv(builder.add(length_, _INT(emit.lanes - 1)), _INT(emit.lanes))

            def block(b: Any, k: Any, width: int) -> None:
                starts = [builder.load(emit.at(builder.gep(shift, [k]), (v, 1))) for v in range(width)]
                sums = emit.sums(rows, width)
                with cgutils.for_range(builder, images_) as image:
                    upper = emit.at(emit.at(left, (image.index, a_step_)), (b, plane_), scale=rows)
                    pixels = emit.at(right, (image.index, x_step_))
                    with cgutils.for_range(builder, vectors) as loop:
                        place = (loop.index, emit.lanes)
                        values = [emit.load(emit.at(emit.at(upper, (i, plane_)), place)) for i in range(rows)]
                        for v, start in enumerate(starts):
                            pixel = emit.load(emit.at(builder.gep(pixels, [start]), place))
                            for i, value in enumerate(values):
                                emit.multiply_add(value, pixel, sums[i][v])
                first = emit.at(builder.gep(target, [k]), (b, count_), scale=rows)
                for i, row in enumerate(sums):
                    for v, total in enumerate(row):
                        entry = emit.at(emit.at(first, (i, count_)), (v, 1))
                        builder.store(builder.fadd(builder.load(entry), emit.total(builder.load(total))), entry)

            with cgutils.for_range(builder, blocks_) as loop:
                for k, width in emit.strips(count_, columns, 1):
                    block(loop.index, k, width)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, n, x, n, shifts, n, n, n, out, n, n), generate

    return product  # type: ignore[no-any-return]

"""Passes over the rows of maps, written as LLVM instructions: every stride-th pixel, and the windows of a pool.

They read and write no element beyond the `n` that they are asked for. Indices count elements; bounds are not checked.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._simd import Emitter

__all__ = ["SEVERAL", "accumulate", "deal", "rolled", "transpose", "window_max", "window_sum"]

_INT, _LANE, _BIT = (ir.IntType(bits) for bits in (64, 32, 1))

SEVERAL = 4
"""Maps whose windows are reduced at once, so that the processor need not wait for each result."""

_FEW = 32
"""Pixels that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""


class _Rows(Emitter):
    """Emits instructions on vectors of which the last may be incomplete."""

    def __init__(self, context: Any, builder: Any, array: types.Array) -> None:
        super().__init__(context, builder, array)
        self.numbers, self.bits = ir.VectorType(_LANE, self.lanes), ir.VectorType(_BIT, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.align}"

    def spread(self, value: Any, kind: Any) -> Any:
        """Copy a value into all lanes of a vector."""
        empty = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(empty, value, _LANE(0))
        return self.builder.shuffle_vector(first, empty, self.lane_list([0] * self.lanes))

    def mask(self, count: Any) -> Any:
        """Return which lanes are among the first `count`, a number that may be negative or large."""
        count = self.smaller(self.larger(count, _INT(0)), _INT(self.lanes))
        lanes = self.spread(self.builder.trunc(count, _LANE), self.numbers)
        return self.builder.icmp_signed("<", self.lane_list([*range(self.lanes)]), lanes)

    def pieces(self, n: Any, spare: int = 0) -> Iterator[tuple[Any, Any]]:
        """Loop over n numbers by vectors; yield the first index, and a mask if the vector is incomplete.

        The last `spare` numbers are in a vector with a mask in any case.
        """
        whole = self.builder.sdiv(self.builder.sub(n, _INT(spare)), _INT(self.lanes))
        whole = self.builder.mul(whole, _INT(self.lanes))
        with cgutils.for_range_slice(self.builder, _INT(0), whole, _INT(self.lanes)) as (index, _):
            yield index, None
        with self.builder.if_then(self.builder.icmp_signed(">", n, whole)):
            yield whole, self.mask(self.builder.sub(n, whole))

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def read(self, pointer: Any, mask: Any, kind: Any = None) -> Any:
        """Load a vector, or only its lanes in the mask; the others are 0."""
        kind = kind or self.vector
        place = self.builder.bitcast(pointer, kind.as_pointer())
        size = self.align if kind is self.vector else 4
        if mask is None:
            return self.builder.load(place, align=size)
        name = self.suffix if kind is self.vector else f"v{self.lanes}i32"
        return self._call(f"llvm.masked.load.{name}.p0", kind, place, _LANE(size), mask, ir.Constant(kind, None))

    def write(self, value: Any, pointer: Any, mask: Any) -> None:
        """Store a vector, or only its lanes in the mask."""
        place = self.builder.bitcast(pointer, value.type.as_pointer())
        name, size = self.suffix, self.align
        if value.type != self.vector:
            bits = value.type.element.width
            name, size = f"v{self.lanes}i{bits}", bits // 8
        if mask is None:
            self.builder.store(value, place, align=size)
        else:
            self._call(f"llvm.masked.store.{name}.p0", ir.VoidType(), value, place, _LANE(size), mask)


@intrinsic
def deal(_: Any, x: Any, x0: Any, stride: Any, y: Any, y0: Any, n: Any) -> Any:
    """Set `y[y0 + i] = x[x0 + i * stride]` for i < n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, stride_, y_, y0_, n_ = arguments
        emit = _Rows(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        even = emit.lane_list([2 * lane for lane in range(emit.lanes)])

        def pairs(i: Any, mask: Any) -> Any:
            first, left = emit.at(source, (i, 2)), builder.sub(builder.mul(builder.sub(n_, i), _INT(2)), _INT(1))
            halves = [
                emit.read(emit.at(first, (1, at)), mask and emit.mask(builder.sub(left, _INT(at))))
                for at in (0, emit.lanes)
            ]
            return builder.shuffle_vector(*halves, even)

        with builder.if_then(builder.icmp_signed("==", stride_, _INT(1))):
            for i, mask in emit.pieces(n_):
                emit.write(emit.read(builder.gep(source, [i]), mask), builder.gep(target, [i]), mask)
        with builder.if_then(builder.icmp_signed("==", stride_, _INT(2))):
            for i, mask in emit.pieces(n_, 1):  # the last pair may be incomplete
                emit.write(pairs(i, mask), builder.gep(target, [i]), mask)
        with builder.if_then(builder.icmp_signed(">", stride_, _INT(2))), cgutils.for_range(builder, n_) as loop:
            emit.barrier()  # it also keeps LLVM from making the loop eight times as long
            builder.store(builder.load(emit.at(source, (loop.index, stride_))), builder.gep(target, [loop.index]))
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, y, i, i), generate


@intrinsic
def accumulate(_: Any, x: Any, x0: Any, y: Any, y0: Any, n: Any) -> Any:
    """Add `x[x0 + i]` to `y[y0 + i]` for i < n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, y_, y0_, n_ = arguments
        emit = _Rows(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        for i, mask in emit.pieces(n_):
            place = builder.gep(target, [i])
            total = builder.fadd(emit.read(place, mask), emit.read(builder.gep(source, [i]), mask))
            emit.write(total, place, mask)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, y, i, i), generate


@intrinsic
def rolled(_: Any) -> Any:
    """Keep LLVM from writing the steps of the loop around this call eight times, which would cost registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], True)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def transpose(_: Any, x: Any, x0: Any, x_step: Any, y: Any, y0: Any, y_step: Any) -> Any:
    """Set `y[y0 + i * y_step + j] = x[x0 + j * x_step + i]` for all i and j below the numbers of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, y_, y0_, y_step_ = arguments
        emit = _Rows(context, builder, x)
        source, target, lanes = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), range(emit.lanes)
        rows = [emit.load(emit.at(source, (i, x_step_))) for i in lanes]
        bit = 1
        while bit < emit.lanes:  # exchange one bit of the numbers of rows and columns after the other
            low = emit.lane_list([lane if not lane & bit else emit.lanes + (lane ^ bit) for lane in lanes])
            high = emit.lane_list([emit.lanes + lane if lane & bit else lane | bit for lane in lanes])
            for i in (i for i in lanes if not i & bit):
                pair = rows[i], rows[i | bit]
                rows[i], rows[i | bit] = (builder.shuffle_vector(*pair, order) for order in (low, high))
            bit *= 2
        for i, row in enumerate(rows):
            emit.store(row, emit.at(target, (i, y_step_)))
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, y, i, i), generate


@intrinsic
def window_max(
    _: Any,
    x: Any,
    x0: Any,
    x_step: Any,
    taps: Any,
    begin: Any,
    end: Any,
    skip: Any,
    planes: Any,
    first: Any,
    none: Any,
    y: Any,
    winners: Any,
    y0: Any,
    y_step: Any,
    maps: Any,
    n: Any,
) -> Any:
    """Set y to the maxima of n windows of some maps, and `winners` to the positions of the first ones, or of NaN.

    Window i of map m has the pixels `x[x0 + m * x_step + taps[t] + i]` for `begin <= t < end`, and those with t larger
    by multiples of `skip` for the other `planes`. If none is more than minus infinity, the winner is `begin + first[i]`
    or `none`, whichever is smaller.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, taps_, begin_, end_, skip_, planes_, first_, none_, y_, won_, y0_, y_step_, maps_, n_ = (
            arguments
        )
        emit = _Rows(context, builder, x)
        source, target, won = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(winners, won_, y0_)
        tap, start = emit.pointer(taps, taps_), emit.pointer(first, first_)
        kind = ir.VectorType(ir.IntType(winners.dtype.bitwidth), emit.lanes)

        def numbers(value: Any) -> Any:
            return emit.spread(builder.trunc(value, _LANE), emit.numbers)

        some = builder.and_(builder.icmp_signed(">", planes_, _INT(0)), builder.icmp_signed("<", begin_, end_))
        origin, limit = numbers(builder.select(some, begin_, none_)), numbers(none_)
        for i, mask in emit.pieces(n_):
            place = builder.add(emit.read(builder.gep(start, [i]), mask, emit.numbers), origin)
            place = builder.select(builder.icmp_signed(">", place, limit), limit, place)
            for m, many in emit.strips(maps_, SEVERAL, 1):
                best, holder, open_ = (
                    [cgutils.alloca_once(builder, of) for _ in range(many)]
                    for of in (emit.vector, emit.numbers, emit.bits)
                )
                for v in range(many):
                    builder.store(ir.Constant(emit.vector, [float("-inf")] * emit.lanes), best[v])
                    builder.store(place, holder[v])
                    builder.store(ir.Constant(emit.bits, [1] * emit.lanes), open_[v])
                pixels = builder.gep(emit.at(source, (m, x_step_)), [i])
                with cgutils.for_range(builder, planes_) as plane:
                    low, high = (builder.add(t, builder.mul(plane.index, skip_)) for t in (begin_, end_))
                    with cgutils.for_range_slice(builder, low, high, _INT(1)) as (t, _):
                        emit.barrier()
                        seen, here = builder.gep(pixels, [builder.load(builder.gep(tap, [t]))]), numbers(t)
                        for v in range(many):
                            new, old, free = (
                                emit.read(emit.at(seen, (v, x_step_)), mask),
                                builder.load(best[v]),
                                builder.load(open_[v]),
                            )
                            wins = builder.and_(free, builder.fcmp_unordered(">", new, old))
                            builder.store(builder.and_(free, builder.fcmp_ordered("ord", new, new)), open_[v])
                            builder.store(builder.select(wins, new, old), best[v])
                            builder.store(builder.select(wins, here, builder.load(holder[v])), holder[v])
                for v in range(many):
                    at = builder.add(i, builder.mul(builder.add(m, _INT(v)), y_step_))
                    emit.write(builder.load(best[v]), builder.gep(target, [at]), mask)
                    winner = builder.load(holder[v])
                    winner = winner if kind == emit.numbers else builder.trunc(winner, kind)
                    emit.write(winner, builder.gep(won, [at]), mask)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, taps, i, i, i, i, first, i, y, winners, i, i, i, i), generate


@intrinsic
def window_sum(
    _: Any,
    x: Any,
    x0: Any,
    x_step: Any,
    taps: Any,
    begin: Any,
    end: Any,
    skip: Any,
    planes: Any,
    divisors: Any,
    y: Any,
    y0: Any,
    y_step: Any,
    maps: Any,
    n: Any,
) -> Any:
    """Set y to the sums of n windows of some maps, divided by their `divisors`. See `window_max` for the windows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, taps_, begin_, end_, skip_, planes_, divisors_, y_, y0_, y_step_, maps_, n_ = arguments
        emit = _Rows(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        tap, divisor = emit.pointer(taps, taps_), emit.pointer(divisors, divisors_)
        for i, mask in emit.pieces(n_):
            by = emit.read(builder.gep(divisor, [i]), mask)
            for m, many in emit.strips(maps_, SEVERAL, 1):
                (totals,) = emit.sums(1, many)
                pixels = builder.gep(emit.at(source, (m, x_step_)), [i])
                with cgutils.for_range(builder, planes_) as plane:
                    low, high = (builder.add(t, builder.mul(plane.index, skip_)) for t in (begin_, end_))
                    with cgutils.for_range_slice(builder, low, high, _INT(_FEW)) as (first, _):
                        (parts,) = emit.sums(1, many)
                        last = emit.smaller(builder.add(first, _INT(_FEW)), high)
                        with cgutils.for_range_slice(builder, first, last, _INT(1)) as (t, _):
                            emit.barrier()
                            seen = builder.gep(pixels, [builder.load(builder.gep(tap, [t]))])
                            for v, part in enumerate(parts):
                                value = emit.read(emit.at(seen, (v, x_step_)), mask)
                                builder.store(builder.fadd(builder.load(part), value), part)
                        for total, part in zip(totals, parts, strict=True):
                            builder.store(builder.fadd(builder.load(total), builder.load(part)), total)
                for v, total in enumerate(totals):
                    at = builder.add(i, builder.mul(builder.add(m, _INT(v)), y_step_))
                    emit.write(builder.fdiv(builder.load(total), by), builder.gep(target, [at]), mask)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, taps, i, i, i, i, divisors, y, i, i, i, i), generate

"""Passes over the rows of maps, written as LLVM instructions: every stride-th pixel, and the windows of a pool.

They read and write no element beyond the `n` that they are asked for. Indices count elements; bounds are not checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._simd import Emitter
from xcnn.kernels.cpu._vectors import INT, LANE, Vectors

__all__ = ["SEVERAL", "accumulate", "deal", "doubled", "rolled", "transpose", "window_max", "window_sum"]

SEVERAL = 4
"""Maps whose windows are reduced at once, so that the processor need not wait for each result."""

_FEW = 32
"""Pixels that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""


@intrinsic
def deal(_: Any, x: Any, x0: Any, stride: Any, y: Any, y0: Any, n: Any) -> Any:
    """Set `y[y0 + i] = x[x0 + i * stride]` for i < n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, stride_, y_, y0_, n_ = arguments
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        even = emit.lane_list(range(0, 2 * emit.lanes, 2))

        def copy(places: Any, mask: Any, _: Any) -> list[Any]:
            emit.write(emit.read(source, places[0], mask), target, places[0], mask)
            return []

        def pairs(places: Any, mask: Any, _: Any) -> list[Any]:
            first = builder.mul(places[0], INT(2))
            left = builder.sub(builder.sub(builder.mul(n_, INT(2)), first), INT(1))
            halves = [
                emit.read(source, builder.add(first, INT(at)), mask and emit.first(builder.sub(left, INT(at))))
                for at in (0, emit.lanes)
            ]
            emit.write(builder.shuffle_vector(*halves, even), target, places[0], mask)
            return []

        with builder.if_then(builder.icmp_signed("==", stride_, INT(1))):
            emit.span(INT(0), n_, [], copy)
        with builder.if_then(builder.icmp_signed("==", stride_, INT(2))):
            emit.span(INT(0), n_, [], pairs, spare=1)  # the last pair may be incomplete
        with builder.if_then(builder.icmp_signed(">", stride_, INT(2))), cgutils.for_range(builder, n_) as loop:
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
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)

        def some(places: Any, mask: Any, _: Any) -> list[Any]:
            (i,) = places
            emit.write(builder.fadd(emit.read(target, i, mask), emit.read(source, i, mask)), target, i, mask)
            return []

        emit.span(INT(0), n_, [], some)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, y, i, i), generate


@intrinsic
def doubled(_: Any, x: Any, x0: Any, factor: Any, y: Any, y0: Any, n: Any) -> Any:
    """Set `y[y0 + 2 * i]` and the next number to `factor * x[x0 + i]` for i < n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, factor_, y_, y0_, n_ = arguments
        emit = Emitter(context, builder, x)
        source, target, by = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.spread(factor_)

        def some(places: Any, mask: Any, _: Any) -> list[Any]:
            (i,) = places
            value, left = builder.fmul(emit.read(source, i, mask), by), builder.mul(builder.sub(n_, i), INT(2))
            for at in (0, emit.lanes):
                pairs = emit.shuffle(value, value, [(at + k) // 2 for k in range(emit.lanes)])
                place = builder.add(builder.mul(i, INT(2)), INT(at))
                emit.write(pairs, target, place, mask and emit.first(builder.sub(left, INT(at))))
            return []

        emit.span(INT(0), n_, [], some)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, x.dtype, y, i, i), generate


@intrinsic
def rolled(_: Any) -> Any:
    """Keep LLVM from writing the steps of the loop around this call eight times, which would cost registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Vectors(builder, 4).rolled()
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def transpose(_: Any, x: Any, x0: Any, x_step: Any, y: Any, y0: Any, y_step: Any) -> Any:
    """Set `y[y0 + i * y_step + j] = x[x0 + j * x_step + i]` for all i and j below the numbers of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, y_, y0_, y_step_ = arguments
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        square = emit.transpose([emit.load(emit.at(source, (i, x_step_))) for i in range(emit.lanes)])
        for i, row in enumerate(square):
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
        emit = Emitter(context, builder, x)
        source, target, won = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(winners, won_, y0_)
        tap, start = emit.pointer(taps, taps_), emit.pointer(first, first_)
        numbers, bits = ir.VectorType(LANE, emit.lanes), ir.VectorType(ir.IntType(1), emit.lanes)
        kind = ir.VectorType(ir.IntType(winners.dtype.bitwidth), emit.lanes)

        def spread(value: Any) -> Any:
            return emit.spread(builder.trunc(value, LANE))

        some = builder.and_(builder.icmp_signed(">", planes_, INT(0)), builder.icmp_signed("<", begin_, end_))
        origin, limit = spread(builder.select(some, begin_, none_)), spread(none_)

        def windows(places: Any, mask: Any, _: Any) -> list[Any]:
            (i,) = places
            place = builder.add(emit.read(start, i, mask), origin)
            place = builder.select(builder.icmp_signed(">", place, limit), limit, place)
            for m, many in emit.strips(maps_, SEVERAL, 1):
                best, holder, open_ = (
                    [cgutils.alloca_once(builder, of) for _ in range(many)] for of in (emit.vector, numbers, bits)
                )
                for v in range(many):
                    builder.store(ir.Constant(emit.vector, [float("-inf")] * emit.lanes), best[v])
                    builder.store(place, holder[v])
                    builder.store(ir.Constant(bits, [1] * emit.lanes), open_[v])
                pixels = emit.at(source, (m, x_step_))
                with cgutils.for_range(builder, planes_) as plane:
                    low, high = (builder.add(t, builder.mul(plane.index, skip_)) for t in (begin_, end_))
                    with cgutils.for_range_slice(builder, low, high, INT(1)) as (t, _):
                        emit.barrier()
                        seen, here = builder.gep(pixels, [builder.load(builder.gep(tap, [t]))]), spread(t)
                        for v in range(many):
                            new = emit.read(emit.at(seen, (v, x_step_)), i, mask)
                            old, free = builder.load(best[v]), builder.load(open_[v])
                            wins = builder.and_(free, builder.fcmp_unordered(">", new, old))
                            builder.store(builder.and_(free, builder.fcmp_ordered("ord", new, new)), open_[v])
                            builder.store(builder.select(wins, new, old), best[v])
                            builder.store(builder.select(wins, here, builder.load(holder[v])), holder[v])
                for v in range(many):
                    at = builder.add(i, builder.mul(builder.add(m, INT(v)), y_step_))
                    emit.write(builder.load(best[v]), target, at, mask)
                    winner = builder.load(holder[v])
                    emit.write(winner if kind == numbers else builder.trunc(winner, kind), won, at, mask)
            return []

        emit.span(INT(0), n_, [], windows)
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
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        tap, divisor = emit.pointer(taps, taps_), emit.pointer(divisors, divisors_)

        def windows(places: Any, mask: Any, _: Any) -> list[Any]:
            (i,) = places
            by = emit.read(divisor, i, mask)
            for m, many in emit.strips(maps_, SEVERAL, 1):
                (totals,) = emit.sums(1, many)
                pixels = emit.at(source, (m, x_step_))
                with cgutils.for_range(builder, planes_) as plane:
                    low, high = (builder.add(t, builder.mul(plane.index, skip_)) for t in (begin_, end_))
                    with cgutils.for_range_slice(builder, low, high, INT(_FEW)) as (first, _):
                        (parts,) = emit.sums(1, many)
                        last = emit.smaller(builder.add(first, INT(_FEW)), high)
                        with cgutils.for_range_slice(builder, first, last, INT(1)) as (t, _):
                            emit.barrier()
                            seen = builder.gep(pixels, [builder.load(builder.gep(tap, [t]))])
                            for v, part in enumerate(parts):
                                value = emit.read(emit.at(seen, (v, x_step_)), i, mask)
                                builder.store(builder.fadd(builder.load(part), value), part)
                        for total, part in zip(totals, parts, strict=True):
                            builder.store(builder.fadd(builder.load(total), builder.load(part)), total)
                for v, total in enumerate(totals):
                    at = builder.add(i, builder.mul(builder.add(m, INT(v)), y_step_))
                    emit.write(builder.fdiv(builder.load(total), by), target, at, mask)
            return []

        emit.span(INT(0), n_, [], windows)
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, taps, i, i, i, i, divisors, y, i, i, i, i), generate

"""What a convolution does with rows besides products, and the product of a depthwise one, as LLVM instructions.

Indices count elements. Bounds are not checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import by_address
from xcnn.kernels.cpu._simd import Emitter

__all__ = ["affine", "every", "lanes_product"]

_INT = ir.IntType(64)


@intrinsic
def _affine(
    _: Any,
    x: Any,
    x0: Any,
    x_step: Any,
    scale: Any,
    shift: Any,
    row0: Any,
    each: Any,
    residual: Any,
    low: Any,
    high: Any,
    y: Any,
    y0: Any,
    y_step: Any,
    rows: Any,
    count: Any,
) -> Any:
    """Set rows of y to scaled and shifted rows of x plus a residual, limited to an interval; NaN propagates.

    If x and y are the same rows, `count` must be a multiple of the numbers of a vector.

    For i < `rows` and j < `count`, with r = row0 + i * each, or 0 in an array of one number; an empty residual is 0:

        y[y0 + i * y_step + j] =
            clip(x[x0 + i * x_step + j] * scale[r] + shift[r] + residual[y0 + i * y_step + j], low, high)
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, scale_, shift_, row0_, each_, residual_, low_, high_ = arguments[:10]
        y_, y0_, y_step_, rows_, count_ = arguments[10:]
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        added = emit.pointer(residual, residual_, y0_)
        limits = [emit.number(low_), emit.number(high_)]
        factors = [
            (emit.pointer(array, value), builder.zext(builder.icmp_signed(">", emit.size(array, value), _INT(1)), _INT))
            for array, value in ((scale, scale_), (shift, shift_))
        ]

        def row(i: Any, plus: bool) -> None:
            at = builder.add(row0_, builder.mul(i, each_))
            numbers = [builder.load(emit.at(pointer, (at, several))) for pointer, several in factors] + limits
            sources, targets, others = (
                emit.at(pointer, (i, step))
                for pointer, step in ((source, x_step_), (target, y_step_), (added, y_step_))
            )

            def vector(j: Any, width: int) -> None:
                a, b, least, most = (emit.filled(one, width) for one in numbers)
                value = emit.load(builder.gep(sources, [j]), width)
                value = emit.fused(value, a, b)
                if plus:
                    value = builder.fadd(value, emit.load(builder.gep(others, [j]), width))
                value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
                emit.store(value, builder.gep(targets, [j]))

            lanes = emit.lanes
            whole = builder.and_(count_, _INT(-lanes))
            with cgutils.for_range_slice(builder, _INT(0), whole, _INT(lanes)) as (j, _):
                vector(j, lanes)
            some, rest = builder.icmp_signed("!=", whole, _INT(0)), builder.icmp_signed("!=", whole, count_)
            with builder.if_then(builder.and_(some, rest)):
                vector(builder.sub(count_, _INT(lanes)), lanes)
            with builder.if_then(builder.not_(some)):
                done: Any = _INT(0)
                while lanes > 1:
                    lanes //= 2
                    with builder.if_then(builder.icmp_signed("!=", builder.and_(count_, _INT(lanes)), _INT(0))):
                        vector(done, lanes)
                    done = builder.or_(done, builder.and_(count_, _INT(lanes)))

        nothing = builder.icmp_signed("==", emit.size(residual, residual_), _INT(0))
        with cgutils.for_range(builder, rows_) as loop, builder.if_else(nothing) as (alone, together):
            with alone:
                row(loop.index, False)
            with together:
                row(loop.index, True)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(x, n, n, scale, shift, n, n, residual, f, f, y, n, n, n, n), generate


@by_address("xnnxxnnxffxnnnn")
def affine(x, x0, x_step, scale, shift, row0, each, residual, low, high, y, y0, y_step, rows, count):
    """Do what `_affine` does."""
    _affine(x, x0, x_step, scale, shift, row0, each, residual, low, high, y, y0, y_step, rows, count)


@intrinsic
def _every(
    _: Any, x: Any, x0: Any, x_step: Any, stride: Any, mask: Any, y: Any, y0: Any, y_step: Any, apart: Any, rows: Any,
    count: Any,
) -> Any:  # fmt: skip
    """Copy numbers that are `stride` apart to places that are `apart`; those where the mask of x is 0 become 0.

    For i < `rows` and j < `count`, unless mask is empty and all is copied:

        y[y0 + i * y_step + j * apart] = x[at] if mask[at] != 0 else 0    at = x0 + i * x_step + j * stride
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, stride_, mask_, y_, y0_, y_step_, apart_, rows_, count_ = arguments
        emit = Emitter(context, builder, x)
        lanes, one = emit.lanes, _INT(1)
        even = [2 * i if 2 * i < lanes else 2 * i + 1 for i in range(lanes)]
        masked = builder.icmp_signed(">", emit.size(mask, mask_), _INT(0))
        adjacent = builder.icmp_signed("==", apart_, one)
        single = builder.and_(adjacent, builder.icmp_signed("==", stride_, one))
        double = builder.and_(adjacent, builder.icmp_signed("==", stride_, _INT(2)))
        wide = builder.and_(double, builder.icmp_signed(">=", count_, _INT(lanes)))
        wide = builder.and_(wide, builder.not_(masked))
        others = builder.not_(builder.or_(single, wide))
        with cgutils.for_range(builder, rows_) as loop:
            source, kept = (
                emit.at(emit.pointer(kind, array, x0_), (loop.index, x_step_))
                for kind, array in ((x, x_), (mask, mask_))
            )
            target = emit.at(emit.pointer(y, y_, y0_), (loop.index, y_step_))

            def some(at: Any, to: Any, many: int, source: Any = source, kept: Any = kept, target: Any = target) -> None:
                value = emit.load(builder.gep(source, [at]), many)
                with builder.if_else(masked) as (partly, all_of_it):
                    with partly:
                        zero = ir.Constant(value.type, None)
                        chosen = builder.fcmp_unordered("!=", emit.load(builder.gep(kept, [at]), many), zero)
                        emit.store(builder.select(chosen, value, zero), builder.gep(target, [to]))
                    with all_of_it:
                        emit.store(value, builder.gep(target, [to]))

            with builder.if_then(single):
                for j, many in emit.pieces(count_):
                    some(j, j, many)
            with builder.if_then(wide), cgutils.for_range_slice(builder, _INT(0), count_, _INT(lanes)) as (j, _):
                j = emit.smaller(j, builder.sub(count_, _INT(lanes)))
                pixels = emit.at(source, (j, 2))
                parts = emit.load(pixels), emit.load(builder.gep(pixels, [_INT(lanes - 1)]))
                emit.store(emit.shuffle(*parts, even), builder.gep(target, [j]))
            with builder.if_then(others), cgutils.for_range(builder, count_) as each:
                some(builder.mul(each.index, stride_), builder.mul(each.index, apart_), 1)
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, n, n, mask, y, n, n, n, n, n), generate


@by_address("xnnnxxnnnnn")
def every(x, x0, x_step, stride, mask, y, y0, y_step, apart, rows, count):
    """Do what `_every` does."""
    _every(x, x0, x_step, stride, mask, y, y0, y_step, apart, rows, count)


_SUMS = 9
"""Vectors of sums that `lanes_product` computes at once: more than a processor's latency takes, and 3 x 3 taps."""


@intrinsic
def _lanes_product(
    _: Any, x: Any, x0: Any, bases: Any, shifts: Any, w: Any, w0: Any, y: Any, y0: Any, count: Any
) -> Any:
    """Set `count` vectors of y to sums of products of vectors, lane by lane.

    For i < `count`, with L the numbers of a vector and [] a vector from an index on:

        y[y0 + i * L] = sum over k < shifts.size of w[w0 + k * L] * x[x0 + bases[i] + shifts[k]]
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, bases_, shifts_, w_, w0_, y_, y0_, count_ = arguments
        emit = Emitter(context, builder, x)
        source, target, weights = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(w, w_, w0_)
        base, shift = emit.pointer(bases, bases_), emit.pointer(shifts, shifts_)
        terms = context.make_array(shifts)(context, builder, shifts_).nitems

        def block(i: Any, many: int) -> None:
            starts = [
                builder.gep(source, [builder.load(builder.gep(base, [builder.add(i, _INT(j))]))]) for j in range(many)
            ]
            (sums,) = emit.sums(1, many)
            with cgutils.for_range(builder, terms) as loop:
                offset = builder.load(builder.gep(shift, [loop.index]))
                weight = emit.load(emit.at(weights, (loop.index, emit.lanes)))
                for start, total in zip(starts, sums, strict=True):
                    emit.multiply_add(weight, emit.load(builder.gep(start, [offset])), total)
            for j, total in enumerate(sums):
                emit.store(builder.load(total), emit.at(target, (builder.add(i, _INT(j)), emit.lanes)))

        many = builder.icmp_signed(">=", count_, _INT(_SUMS))
        with builder.if_else(many) as (several, few):
            with several, cgutils.for_range_slice(builder, _INT(0), count_, _INT(_SUMS)) as (i, _):
                block(emit.smaller(i, builder.sub(count_, _INT(_SUMS))), _SUMS)
            with few:
                threes = builder.mul(builder.udiv(count_, _INT(3)), _INT(3))
                with cgutils.for_range_slice(builder, _INT(0), threes, _INT(3)) as (i, _):
                    block(i, 3)
                with cgutils.for_range_slice(builder, threes, count_, _INT(1)) as (i, _):
                    block(i, 1)
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, bases, shifts, w, n, y, n, n), generate


@by_address("xniixnxnn")
def lanes_product(x, x0, bases, shifts, w, w0, y, y0, count):
    """Do what `_lanes_product` does."""
    _lanes_product(x, x0, bases, shifts, w, w0, y, y0, count)

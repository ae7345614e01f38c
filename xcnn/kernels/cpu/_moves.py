"""What a convolution does with rows besides products, as LLVM instructions.

Indices count elements. Bounds are not checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import by_address
from xcnn.kernels.cpu._simd import Emitter

__all__ = ["affine", "every"]

_INT, _FALSE = ir.IntType(64), ir.IntType(1)(0)


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

    x and y may be the same rows.

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

            def vector(places: Any, mask: Any, _: Any) -> Any:
                value = emit.read(sources, places[0], mask)
                value = emit.fused(value, *(emit.spread(number) for number in numbers[:2]))
                if plus:
                    value = builder.fadd(value, emit.read(others, places[0], mask))
                for compared, limit in zip("<>", map(emit.spread, numbers[2:]), strict=True):
                    value = builder.select(builder.fcmp_ordered(compared, value, limit), limit, value)
                emit.write(value, targets, places[0], mask)
                return ()

            emit.span(_INT(0), count_, (), vector)

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
        lanes, one, two = emit.lanes, _INT(1), _INT(2)
        masked = builder.icmp_signed(">", emit.size(mask, mask_), _INT(0))
        every_lane = emit.spread(builder.not_(masked))
        alternate = ir.Constant(every_lane.type, [1 - k % 2 for k in range(lanes)])
        even = [2 * k if 2 * k < lanes else 2 * k + 1 for k in range(lanes)]

        def steps(a: Any, b: Any) -> Any:
            return builder.and_(builder.icmp_signed("==", stride_, a), builder.icmp_signed("==", apart_, b))

        single, wide = steps(one, one), steps(one, two)
        narrow = builder.and_(steps(two, one), builder.not_(masked))
        with cgutils.for_range(builder, rows_) as loop:
            source = emit.at(emit.pointer(x, x_, x0_), (loop.index, x_step_))
            kept = emit.at(emit.pointer(mask, mask_, x0_), (loop.index, x_step_))
            kept, target = (
                builder.select(masked, kept, source),
                emit.at(emit.pointer(y, y_, y0_), (loop.index, y_step_)),
            )

            def value(j: Any, some: Any, source: Any = source, kept: Any = kept) -> Any:
                number = emit.read(source, j, some)
                zero = ir.Constant(number.type, None)
                chosen = builder.fcmp_unordered("!=", emit.read(kept, j, some), zero)
                return builder.select(builder.or_(chosen, every_lane), number, zero)

            def copy(places: Any, some: Any, _: Any, target: Any = target) -> Any:
                emit.write(value(places[0], some), target, places[0], some)
                return ()

            def halves(places: Any, some: Any) -> Any:
                """Return where two vectors of every second number begin, and which of their lanes exist, or None."""
                first = builder.mul(places[0], two)
                left = builder.sub(builder.mul(count_, two), first)
                masks = [some and emit.first(builder.sub(left, _INT(k))) for k in (1, lanes)]
                return first, masks

            def gather(places: Any, some: Any, _: Any, source: Any = source, target: Any = target) -> Any:
                first, masks = halves(places, some)
                pairs = zip((0, lanes - 1), masks, strict=True)
                parts = [emit.read(source, builder.add(first, _INT(k)), exist) for k, exist in pairs]
                emit.write(emit.shuffle(parts[0], parts[1], even), target, places[0], some)
                return ()

            def scatter(places: Any, some: Any, _: Any, target: Any = target) -> Any:
                number, (first, masks) = value(places[0], some), halves(places, some)
                for k, exist in zip((0, lanes), masks, strict=True):
                    spread = emit.shuffle(number, number, [(k + lane) // 2 for lane in range(lanes)])
                    exist = builder.and_(exist, alternate) if exist else alternate
                    emit.write(spread, target, builder.add(first, _INT(k)), exist)
                return ()

            done: Any = _FALSE
            for chosen, body in ((single, copy), (narrow, gather), (wide, scatter)):
                with builder.if_then(chosen):
                    emit.span(_INT(0), count_, (), body)
                done = builder.or_(done, chosen)
            with builder.if_then(builder.not_(done)), cgutils.for_range(builder, count_) as each:
                from_, to = builder.mul(each.index, stride_), builder.mul(each.index, apart_)
                number = builder.load(builder.gep(source, [from_]))
                zero = ir.Constant(number.type, 0.0)
                chosen = builder.fcmp_unordered("!=", builder.load(builder.gep(kept, [from_])), zero)
                number = builder.select(builder.or_(chosen, builder.not_(masked)), number, zero)
                builder.store(number, builder.gep(target, [to]))
        return context.get_dummy_value()

    n = types.intp
    return types.void(x, n, n, n, mask, y, n, n, n, n, n), generate


@by_address("xnnnxxnnnnn")
def every(x, x0, x_step, stride, mask, y, y0, y_step, apart, rows, count):
    """Do what `_every` does."""
    _every(x, x0, x_step, stride, mask, y, y0, y_step, apart, rows, count)

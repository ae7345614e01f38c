"""What a convolution does with rows besides products.

Indices count elements. Bounds are not checked.
"""

from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import INT

__all__ = ["affine", "every"]


@native("xnnXXnnXffxnnnn")
def affine(emit, x, x0, x_step, scale, shift, row0, each, residual, low, high, y, y0, y_step, rows, count):
    """Set rows of y to scaled and shifted rows of x plus a residual, limited to an interval; NaN propagates.

    x and y may be the same rows. Without a scale, a shift or a residual, these are 1, 0 and 0.

    For i < `rows` and j < `count`, with r = row0 + i * each:

        y[y0 + i * y_step + j] =
            clip(x[x0 + i * x_step + j] * scale[r] + shift[r] + residual[y0 + i * y_step + j], low, high)
    """
    builder, added, limits = emit.builder, emit.exists(residual), [emit.number(low), emit.number(high)]
    x0, x_step, row0, each, y0, y_step = (Integer(builder, value) for value in (x0, x_step, row0, each, y0, y_step))
    factors = emit.optional(scale, 1.0), emit.optional(shift, 0.0)

    def row(i: Integer, plus: bool) -> None:
        at = row0 + i * each
        numbers = [builder.load((at * step).of(pointer)) for pointer, step in factors] + limits
        source, target, other = (
            (start + i * step).of(pointer)
            for pointer, start, step in ((x, x0, x_step), (y, y0, y_step), (residual, y0, y_step))
        )

        def vector(places: Any, mask: Any, _: Any) -> Any:
            value = emit.read(source, places[0], mask)
            value = emit.fused(value, *(emit.spread(number) for number in numbers[:2]))
            if plus:
                value = builder.fadd(value, emit.read(other, places[0], mask))
            emit.write(emit.clipped(value, map(emit.spread, numbers[2:])), target, places[0], mask)
            return ()

        emit.span(INT(0), count, (), vector)

    with Integer(builder, 0).up_to(rows) as i, builder.if_else(added) as (together, alone):
        with together:
            row(i, True)
        with alone:
            row(i, False)


@native("xnnnxnnnnn")
def every(emit, x, x0, x_step, stride, y, y0, y_step, apart, rows, count):
    """Copy numbers that are `stride` apart to places that are `apart`.

    For i < `rows` and j < `count`: `y[y0 + i * y_step + j * apart] = x[x0 + i * x_step + j * stride]`
    """
    builder, lanes, two, zero = emit.builder, emit.lanes, INT(2), Integer(emit.builder, 0)
    x0, x_step, y0, y_step = (Integer(builder, value) for value in (x0, x_step, y0, y_step))
    alternate = ir.Constant(ir.VectorType(ir.IntType(1), lanes), [1 - k % 2 for k in range(lanes)])
    even = [2 * k if 2 * k < lanes else 2 * k + 1 for k in range(lanes)]

    def steps(a: int, b: int) -> Any:
        return builder.and_(builder.icmp_signed("==", stride, INT(a)), builder.icmp_signed("==", apart, INT(b)))

    def copy(source: Any, target: Any, place: Any, some: Any) -> None:
        emit.write(emit.read(source, place, some), target, place, some)

    def halves(place: Any, some: Any) -> Any:
        """Return where two vectors of every second number begin, and which of their lanes exist, or None."""
        first = builder.mul(place, two)
        left = builder.sub(builder.mul(count, two), first)
        return first, [some and emit.first(builder.sub(left, INT(k))) for k in (1, lanes)]

    def gather(source: Any, target: Any, place: Any, some: Any) -> None:
        first, masks = halves(place, some)
        pairs = zip((0, lanes - 1), masks, strict=True)
        parts = [emit.read(source, builder.add(first, INT(k)), exist) for k, exist in pairs]
        emit.write(emit.shuffle(parts[0], parts[1], even), target, place, some)

    def scatter(source: Any, target: Any, place: Any, some: Any) -> None:
        number, (first, masks) = emit.read(source, place, some), halves(place, some)
        for k, exist in zip((0, lanes), masks, strict=True):
            spread = emit.shuffle(number, number, [(k + lane) // 2 for lane in range(lanes)])
            exist = builder.and_(exist, alternate) if exist else alternate
            emit.write(spread, target, builder.add(first, INT(k)), exist)

    done: Any = ir.IntType(1)(0)
    is_short = builder.icmp_signed("<=", count, INT(lanes))
    for chosen, move in ((steps(1, 1), copy), (steps(2, 1), gather), (steps(1, 2), scatter)):
        with builder.if_then(chosen), builder.if_else(is_short) as (short, long):
            with short, zero.up_to(rows) as i:  # one vector each
                move((x0 + i * x_step).of(x), (y0 + i * y_step).of(y), INT(0), emit.first(count))
            with long, zero.up_to(rows) as i:
                ends = (x0 + i * x_step).of(x), (y0 + i * y_step).of(y)

                def some(places: Any, mask: Any, _: Any, move: Any = move, ends: Any = ends) -> Any:
                    move(*ends, places[0], mask)
                    return ()

                emit.span(INT(0), count, (), some)
        done = builder.or_(done, chosen)
    with builder.if_then(builder.not_(done)), zero.up_to(rows) as i, zero.up_to(count) as each:
        from_, to = x0 + i * x_step + each * stride, y0 + i * y_step + each * apart
        builder.store(builder.load(from_.of(x)), to.of(y))

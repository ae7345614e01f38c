"""What a convolution does with rows besides products, and copies from and to any strides.

Indices count elements. Bounds are not checked.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import INT

__all__ = ["FEW", "affine", "copying", "every"]

FEW = 200_000
"""The most numbers that one thread copies."""


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
            with long, zero.up_to(rows) as i, zero.up_to(count, lanes) as j:  # the last one may begin before others end
                place = j.least(Integer(builder, count) - lanes)
                move((x0 + i * x_step).of(x), (y0 + i * y_step).of(y), place.value, None)
        done = builder.or_(done, chosen)
    with builder.if_then(builder.not_(done)), zero.up_to(rows) as i, zero.up_to(count) as each:
        from_, to = x0 + i * x_step + each * stride, y0 + i * y_step + each * apart
        builder.store(builder.load(from_.of(x)), to.of(y))


@native("nxxi")
def _copy(emit, move, x, y, table):
    """Copy rows along two more axes by `move`, the address of `every`; `table` has starts, sizes and steps."""
    zero, (x0, y0, *axes) = Integer(emit.builder, 0), Integers(emit.builder, table).some(0, 14)
    (a, b, rows, count), (xa, xb, x_row, x_step), (ya, yb, y_row, y_step) = (axes[i : i + 4] for i in (0, 4, 8))
    with zero.up_to(a) as i, zero.up_to(b) as j:
        source, target = x0 + i * xa + j * xb, y0 + i * ya + j * yb
        every.write(emit, move, x, source, x_row, x_step, y, target, y_row, y_step, rows, count)


@functools.lru_cache(256)
def copying(
    itemsize: int, shape: tuple[int, ...], x_steps: tuple[int, ...], y_steps: tuple[int, ...], x0: int = 0, y0: int = 0
) -> Callable[[Any, Any], Any] | None:
    """Return a function `(x, y)` that copies numbers of an array to another one; None if there are too many axes.

    Parameters
    ----------
    shape, x_steps, y_steps : sizes of the axes, and how many elements of x and of y the numbers are apart.
    x0, y0 : the first elements.
    """
    axes: list[tuple[int, int, int]] = []
    for size, x_step, y_step in zip(shape, x_steps, y_steps, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1:] == (x_step * size, y_step * size):
            axes[-1] = axes[-1][0] * size, x_step, y_step
        else:
            axes.append((size, x_step, y_step))
    if len(axes) > 4:
        return None
    axes = [(1, 0, 0)] * (4 - len(axes)) + axes
    table = np.array([x0, y0, *(number for kind in zip(*axes, strict=True) for number in kind)], np.int64)
    call, address = _copy(itemsize), every.address(itemsize)
    return lambda x, y: call(address, x, y, table)

"""The compiled passes of depthwise convolutions, with vectors of channels.

The pixels of as many channels as a vector has numbers are transposed side by side, with padding around them. Then every
kernel position of a window is one vector, for any stride and dilation, and no lane is wasted at the edges of a map.
This is done a few lines at a time, which are still in the nearest cache when they are multiplied and written.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import by_address, compiled
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._simd import BYTES, Emitter
from xcnn.kernels.cpu._tables import array
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["depthwise", "depthwise_weight_gradient", "lanes_product"]

_INT = ir.IntType(64)

_compiled = functools.partial(compiled, _nrt=False)
"""Compiled without counting references to arrays, which would take as long as a small product."""

_SUMS = 9
"""Vectors of sums that `lanes_product` computes at once: more than a processor's latency takes, and 3 x 3 taps."""


@intrinsic
def _lanes_product(
    _: Any, x: Any, x0: Any, bases: Any, shifts: Any, w: Any, w0: Any, f: Any, f0: Any, r: Any, r0: Any, r_step: Any,
    low: Any, high: Any, y: Any, y0: Any,
) -> Any:  # fmt: skip
    """Set vectors of y to sums of products of vectors, lane by lane, scaled and shifted; NaN propagates.

    For i < bases.size, with L the numbers of a vector and [] a vector from an index on:

        y[y0 + i * L] = clip(s * f[f0] + f[f0 + L] + r[r0 + i * r_step], low, high)
        s = sum over k < shifts.size of w[w0 + k * L] * x[x0 + bases[i] + shifts[k]]
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, bases_, shifts_, w_, w0_, f_, f0_, r_, r0_, r_step_, low_, high_, y_, y0_ = arguments
        emit = Emitter(context, builder, x)
        source, target, weights = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_), emit.pointer(w, w_, w0_)
        factor, added = emit.pointer(f, f_, f0_), emit.pointer(r, r_, r0_)
        base, shift = emit.pointer(bases, bases_), emit.pointer(shifts, shifts_)
        terms, count = emit.size(shifts, shifts_), emit.size(bases, bases_)
        least, most = (emit.spread(emit.number(limit)) for limit in (low_, high_))

        def block(i: Any, many: int) -> None:
            starts = [
                builder.gep(source, [builder.load(builder.gep(base, [builder.add(i, _INT(j))]))]) for j in range(many)
            ]
            (sums,) = emit.sums(1, many)
            with cgutils.for_range(builder, terms) as loop:
                emit.rolled()
                offset = builder.load(builder.gep(shift, [loop.index]))
                weight = emit.load(emit.at(weights, (loop.index, emit.lanes)))
                for start, total in zip(starts, sums, strict=True):
                    emit.multiply_add(weight, emit.load(builder.gep(start, [offset])), total)
            scale, plus = emit.load(factor), emit.load(builder.gep(factor, [_INT(emit.lanes)]))
            for j, total in enumerate(sums):
                at = builder.add(i, _INT(j))
                value = emit.fused(builder.load(total), scale, plus)
                value = builder.fadd(value, emit.load(emit.at(added, (at, r_step_))))
                value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
                emit.store(value, emit.at(target, (at, emit.lanes)))

        done: Any = _INT(0)
        for many in (_SUMS, 3, 1):
            end = builder.add(done, builder.mul(builder.udiv(builder.sub(count, done), _INT(many)), _INT(many)))
            with cgutils.for_range_slice(builder, done, end, _INT(many)) as (i, _):
                block(i, many)
            done = end
        return context.get_dummy_value()

    n, number = types.intp, types.float64
    return types.void(x, n, bases, shifts, w, n, f, n, r, n, n, number, number, y, n), generate


@by_address("xniixnxnxnnffxn")
def lanes_product(x, x0, bases, shifts, w, w0, f, f0, r, r0, r_step, low, high, y, y0):
    """Do what `_lanes_product` does."""
    _lanes_product(x, x0, bases, shifts, w, w0, f, f0, r, r0, r_step, low, high, y, y0)


@_compiled
def _clear(numbers, count):
    for k in range(count):
        numbers[k] = 0


@_compiled
def _take(copy, turn, x, mask, x0, rows, even, count, apart, memory, masked, target, places):
    """Transpose channels of x, which begin at `x0 + rows`, to `target + places` in memory.

    They become 0 where `mask` is 0, unless that is empty: `count` channels, `apart`, are copied to `even` rows first.
    """
    if mask.size:
        every(copy, x, x0 + rows[0], apart, 1, mask, memory, masked, even[1], 1, count, places.size)
        x, x0, rows = memory, masked, even
    transpose(turn, x, x0, rows, memory, target, places)


@_compiled
def depthwise(
    copy, turn, sum_up, x, mask, weight, scale, shift, residual, low, high, y, tables, first, last, memory
):  # fmt: skip
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    A job is a band of an image, for a block of a vector's worth of channels of y; the blocks run slowest. The input
    gradient is such a convolution, of dy.

    Parameters
    ----------
    copy, turn, sum_up : addresses of `every`, `transpose` and `lanes_product`.
    x, mask, weight : x is set to 0 where `mask` is 0, unless that is empty; all arrays are flat.
    scale, shift, residual : of one number or of the channels of y; empty, or as y.
    tables : as `_plan` of `depthwise.py` makes them.
    memory : of the size that it states.
    """
    lanes, n, outputs, planes = BYTES // x.itemsize, tables[1], tables[2], tables[4]
    pixels, out_pixels, bands, blocks = tables[5], tables[6], tables[7], tables[8]
    room, weights, masked, added, sums = tables[9], tables[10], tables[11], tables[12], tables[13]
    steps, taps, plain = array(tables, 0), array(tables, 1), weights - lanes
    width, factors = steps.size // bands, plain - 2 * lanes
    _clear(memory, weights)
    block = -1
    for job in range(first, last):
        rest = job // bands
        b, at = rest // n, (job - rest * bands) * width
        image = rest - b * n
        if bands > 1:  # otherwise the padding is still 0
            _clear(memory, planes * room)
        if b != block:
            block = b
            for i in range(lanes):
                o = min(b * lanes + i, outputs - 1)
                memory[factors + i] = scale[min(o, scale.size - 1)]
                memory[factors + lanes + i] = shift[min(o, shift.size - 1)]
                to, o = weights + i, o * tables[14]
                for tap in taps:
                    memory[to] = weight[o + tap]
                    to += lanes
        count, k = min(lanes, outputs - b * lanes), blocks + 3 * b
        rows, targets, even = array(tables, k), array(tables, k + 1), array(tables, k + 2)
        for j in range(planes):
            _take(
                copy, turn, x, mask, (image * tables[3] + j) * pixels + steps[at], rows, even, count, planes * pixels,
                memory, masked, j * room, array(tables, steps[at + 1]),
            )  # fmt: skip
        out, places = image * outputs * out_pixels + steps[at + 2], array(tables, steps[at + 3])
        plus, apart = plain, 0
        if residual.size:
            plus, apart = added, lanes
            transpose(turn, residual, out, targets, memory, added, places)
        w0, y0 = weights, sums
        for f in range(4, width):
            bases, shifts = array(tables, steps[at + f]), array(tables, f - 2)
            lanes_product(
                sum_up, memory, 0, bases, shifts, memory, w0, memory, factors, memory, plus, apart, low, high, memory,
                y0,
            )  # fmt: skip
            w0, y0, plus = w0 + shifts.size * lanes, y0 + bases.size * lanes, plus + bases.size * apart
        transpose(turn, memory, sums, places, y, out, targets)


@_compiled
def depthwise_weight_gradient(
    copy, turn, sum_up, x, dy, mask, out, tables, first, last, block, end, memory, sums, image, part
):  # fmt: skip
    """Set the part of blocks `block` .. `end` - 1 of the weight gradient (o, taps), flat, of images first .. last - 1.

    The arguments are as above, but for dy, which is set to 0 where `mask` is 0; the last three are memory for sums.
    """
    lanes, outputs, pixels, out_pixels = BYTES // x.itemsize, tables[2], tables[5], tables[6]
    blocks, plain, masked, dys = tables[8], tables[10] - lanes, tables[11], tables[13]
    steps, shifts = array(tables, 0), array(tables, 2)
    width = steps.size // tables[7]
    _clear(memory, plain + lanes)
    for k in range(plain - 2 * lanes, plain - lanes):
        memory[k] = 1
    for b in range(block, end):
        count, k = min(lanes, outputs - b * lanes), blocks + 3 * b
        rows, targets, even = array(tables, k), array(tables, k + 1), array(tables, k + 2)
        _clear(sums, sums.size)
        for n in range(first, last):
            _clear(image, image.size)
            for at in range(0, steps.size, width):
                if steps.size > width:
                    _clear(memory, plain - 2 * lanes)
                _take(
                    copy, turn, x, x[:0], n * tables[3] * pixels + steps[at], rows, even, count, pixels,
                    memory, masked, np.intp(0), array(tables, steps[at + 1]),
                )  # fmt: skip
                _take(
                    copy, turn, dy, mask, n * outputs * out_pixels + steps[at + 2], targets, even, count, out_pixels,
                    memory, masked, dys, array(tables, steps[at + 3]),
                )  # fmt: skip
                dy0 = dys
                for f in range(4, width):
                    windows = array(tables, steps[at + f])
                    lanes_product(
                        sum_up, memory, 0, shifts, windows, memory, dy0, memory, plain - 2 * lanes, memory, plain, 0,
                        -np.inf, np.inf, part, 0,
                    )  # fmt: skip
                    dy0 += windows.size * lanes
                    for k in range(part.size):
                        image[k] += part[k]
            for k in range(image.size):
                sums[k] += image[k]
        for i in range(count):
            for t in range(shifts.size):
                out[(b * lanes + i) * shifts.size + t] = sums[t * lanes + i]

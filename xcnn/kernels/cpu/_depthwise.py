"""The compiled passes of depthwise convolutions, with vectors of channels.

The pixels of as many channels as a vector has numbers are transposed side by side, with padding around them. Then every
kernel position of a window is one vector, for any stride and dilation, and no lane is wasted at the edges of a map.
This is done a few lines at a time, which are still in the nearest cache when they are multiplied and written.
"""

import functools
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._depthwise_rows import rows_read
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import INT, counted

__all__ = ["depthwise", "depthwise_weight_gradient", "lanes_gradient", "lanes_product"]

_COUNTS = 4, 2, 1
"""Windows of a row that `lanes_gradient` takes at once: what several of them read is loaded once."""

_SUMS = 9
"""Vectors of sums that `lanes_product` computes at once: more than a processor's latency takes, and 3 x 3 taps."""


@native("xnininxnxnxnnffxn")
def lanes_product(emit, x, x0, bases, many, shifts, terms, w, w0, f, f0, r, r0, r_step, low, high, y, y0):
    """Set vectors of y to sums of products of vectors, lane by lane, scaled and shifted; NaN propagates.

    For i < `many`, with L the numbers of a vector and [] a vector from an index on:

        y[y0 + i * L] = clip(s * f[f0] + f[f0 + L] + r[r0 + i * r_step], low, high)
        s = sum over k < `terms` of w[w0 + k * L] * x[x0 + bases[i] + shifts[k]]
    """
    builder, lanes, zero = emit.builder, emit.lanes, Integer(emit.builder, 0)
    bases, shifts, many = Integers(builder, bases), Integers(builder, shifts), Integer(builder, many)
    x, w, f, r, y = (builder.gep(pointer, [place]) for pointer, place in ((x, x0), (w, w0), (f, f0), (r, r0), (y, y0)))
    limits, scale, plus = emit.limits(low, high), emit.load(f), emit.read(f, INT(lanes))

    def block(i: Integer, count: int) -> None:
        starts = [bases[i + j].of(x) for j in range(count)]

        def term(k: Any, sums: list[Any]) -> list[Any]:
            emit.rolled()
            offset, weight = shifts[k], emit.load((Integer(builder, k) * lanes).of(w))
            return [
                emit.fused(weight, emit.load(offset.of(start)), total)
                for start, total in zip(starts, sums, strict=True)
            ]

        sums = counted(builder, INT(0), terms, INT(1), [ir.Constant(emit.vector, None)] * count, term)
        for j, total in enumerate(sums):
            value = emit.fused(total, scale, plus)
            value = builder.fadd(value, emit.load(((i + j) * r_step).of(r)))
            emit.store(emit.clipped(value, limits), ((i + j) * lanes).of(y))

    done = zero
    for count in (_SUMS, 3, 1):
        end = done + (many - done) // count * count
        with done.up_to(end, count) as i:
            block(i, count)
        done = end


@functools.cache
def lanes_gradient(taps: int, stride: int, dilation: int, rows: int) -> Any:
    """Return the code for the gradient of the weights of as many rows of taps at once."""

    @native("xninninxnxn")
    def gradient(emit, x, x0, bases, many, run, shifts, terms, dy, dy0, y, y0):
        """Add to `y[y0 + k * L]` the sum over i < `many` of `dy[dy0 + i * L] * x[x0 + bases[i] + shifts[k]]`.

        The windows come in rows of `run`, `stride` vectors apart, and the taps in rows, `dilation` vectors apart.
        """
        builder, lanes, zero, many = emit.builder, emit.lanes, Integer(emit.builder, 0), Integer(emit.builder, many)
        bases, shifts, run = Integers(builder, bases), Integers(builder, shifts), Integer(builder, run).least(many)
        x, dy, y = (builder.gep(pointer, [place]) for pointer, place in ((x, x0), (dy, dy0), (y, y0)))

        def block(count: int, offsets: list[Integer], i: Any, sums: list[Any]) -> list[Any]:
            emit.rolled()
            i, sums = Integer(builder, i), [*sums]
            start, gradients = bases[i].of(x), [emit.load(((i + j) * lanes).of(dy)) for j in range(count)]
            for a, offset in enumerate(offsets):
                for place, pairs in rows_read(taps, stride, dilation, count):
                    vector = emit.read(offset.of(start), INT(place * lanes))
                    for j, c in pairs:
                        sums[a * taps + c] = emit.fused(gradients[j], vector, sums[a * taps + c])
                emit.barrier()  # otherwise all rows are read first, and sums lose their registers
            return sums

        with zero.up_to(terms, rows * taps) as k:
            offsets = [shifts[k + a * taps] for a in range(rows)]

            def row(begin: Any, sums: list[Any], offsets: list[Integer] = offsets) -> list[Any]:
                done, stop = Integer(builder, begin), run + begin
                for count in _COUNTS:
                    end = done + (stop - done) // count * count
                    some = functools.partial(block, count, offsets)
                    sums, done = counted(builder, done.value, end.value, INT(count), sums, some), end
                return sums

            nothing = [ir.Constant(emit.vector, None)] * (rows * taps)
            for c, total in enumerate(counted(builder, INT(0), many.value, run.value, nothing, row)):
                place = ((k + c) * lanes).of(y)
                emit.store(builder.fadd(emit.load(place), total), place)

    return gradient


@native("nnxxXXXffxinnx")
def depthwise(emit, turn, sum_up, x, weight, scale, shift, residual, low, high, y, tables, first, last, memory):
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    A job is a band of an image, for a block of a vector's worth of channels of y; the images run slowest, so that the
    next band or block is what follows in memory, and is fetched. The input gradient is such a convolution, of dy.

    Parameters
    ----------
    turn, sum_up : addresses of `transpose` and `lanes_product`.
    scale, shift, residual : of the channels of y; of its shape; or None.
    tables : as `_plan` of `depthwise.py` makes them.
    memory : of the size that it states.
    """
    builder, lanes, zero, tables = emit.builder, emit.lanes, Integer(emit.builder, 0), Integers(emit.builder, tables)
    outputs, channels, planes, pixels, out_pixels, bands, blocks, room, plain, added, sums, weights, kernel = (
        tables.some(2, 13)
    )
    steps, taps, many = tables.array(0), tables.array(1), (outputs + lanes - 1) // lanes
    width, first, apart = steps.size // bands, Integer(builder, first), (taps.size + 2) * lanes
    options, whole = (emit.optional(scale, 1.0), emit.optional(shift, 0.0)), bands.holds("==", 1)
    emit.fill(memory, added.value)
    with (first // bands).up_to(((first + many * bands).least(last) - 1) // bands + 1) as rest:
        b = rest - rest // many * many
        start = (weights + b * apart).of(memory)
        with zero.up_to(lanes) as i:
            o = (b * lanes + i).least(outputs - 1)
            for k, (pointer, step) in enumerate(options):
                builder.store(builder.load((o * step).of(pointer)), (i + k * lanes).of(start))
            with zero.up_to(taps.size) as t:
                number = builder.load((o * kernel + taps[t]).of(weight))
                builder.store(number, (i + (t + 2) * lanes).of(start))
    with first.up_to(last) as job:
        rest = job // bands
        image, at = rest // many, (job - rest * bands) * width
        b = rest - image * many
        factors = weights + b * apart
        with builder.if_then(bands.holds(">", 1)):  # otherwise the padding is still 0
            emit.fill(memory, (planes * room).value)
        rows, targets = (tables.array(blocks + b * 2 + i) for i in range(2))
        with zero.up_to(planes) as j:
            read = tables.array(steps[at + 1])
            transpose.write(
                emit, turn, x, (image * channels + j) * pixels + steps[at], rows.pointer, rows.size, memory, j * room,
                read.pointer, read.size, (pixels * lanes).if_(whole, read.size), 0,
            )  # fmt: skip
        out, places = image * outputs * out_pixels + steps[at + 2], tables.array(steps[at + 3])
        exists = emit.exists(residual)
        with builder.if_then(exists):
            transpose.write(
                emit, turn, residual, out, targets.pointer, targets.size, memory, added, places.pointer, places.size,
                (out_pixels * lanes).if_(whole, places.size), 0,
            )  # fmt: skip
        plus, step = added.if_(exists, plain), Integer(builder, lanes).if_(exists, 0)

        def phase(f: Any, begins: Any, at: Integer = at, factors: Integer = factors, step: Integer = step) -> list[Any]:
            (w0, y0, plus), bases = begins, tables.array(steps[at + f])
            shifts = tables.array(Integer(builder, f) - 2)
            lanes_product.write(
                emit, sum_up, memory, 0, bases.pointer, bases.size, shifts.pointer, shifts.size, memory, w0, memory,
                factors, memory, plus, step, low, high, memory, y0,
            )  # fmt: skip
            moves = shifts.size * lanes, bases.size * lanes, bases.size * step
            return [(move + begin).value for move, begin in zip(moves, begins, strict=True)]

        counted(builder, INT(4), width.value, INT(1), [(factors + lanes * 2).value, sums.value, plus.value], phase)
        transpose.write(
            emit, turn, memory, sums, places.pointer, places.size, y, out, targets.pointer, targets.size,
            0, (out_pixels * lanes).if_(whole, places.size),
        )  # fmt: skip


@native("nnxxxinnnnxxx")
def depthwise_weight_gradient(emit, turn, sum_up, x, dy, out, tables, first, last, block, end, memory, sums, image):
    """Set the part of blocks `block` .. `end` - 1 of the weight gradient (o, taps) of images first .. last - 1.

    The arguments are as above; the last two are memory for the sums of all blocks, and of an image.
    """
    builder, lanes, zero, tables = emit.builder, emit.lanes, Integer(emit.builder, 0), Integers(emit.builder, tables)
    outputs, channels, _, pixels, out_pixels, bands, blocks, _, plain, _, dys, _, _, run = tables.some(2, 14)
    steps, shifts = tables.array(0), tables.array(2)
    width, size, whole = steps.size // bands, shifts.size * lanes, bands.holds("==", 1)
    emit.fill(memory, plain.value)
    emit.fill(sums, ((Integer(builder, end) - block) * size).value)
    with Integer(builder, first).up_to(last) as n, Integer(builder, block).up_to(end) as b:
        rows, targets = (tables.array(blocks + b * 2 + i) for i in range(2))
        emit.fill(image, size.value)
        with zero.up_to(steps.size, width) as at:
            with builder.if_then(bands.holds(">", 1)):
                emit.fill(memory, plain.value)
            for source, maps, all_pixels, each, target, i in (
                (x, channels, pixels, rows, 0, 0), (dy, outputs, out_pixels, targets, dys, 2)
            ):  # fmt: skip
                places = tables.array(steps[at + i + 1])
                transpose.write(
                    emit, turn, source, n * maps * all_pixels + steps[at + i], each.pointer, each.size, memory,
                    target, places.pointer, places.size, (all_pixels * lanes).if_(whole, places.size), 0,
                )  # fmt: skip

            def some(f: Any, begins: Any, at: Integer = at) -> list[Any]:
                windows = tables.array(steps[at + f])
                lanes_gradient(1, 1, 1, 1).write(
                    emit, sum_up, memory, 0, windows.pointer, windows.size, run, shifts.pointer, shifts.size, memory,
                    *begins, image, 0,
                )  # fmt: skip
                return [(windows.size * lanes + begins[0]).value]

            counted(builder, INT(4), width.value, INT(1), [dys.value], some)
        total = ((b - block) * size).of(sums)
        with zero.up_to(size, lanes) as k:
            emit.store(builder.fadd(emit.load(k.of(total)), emit.load(k.of(image))), k.of(total))
    with Integer(builder, block).up_to(end) as b:
        total = ((b - block) * size).of(sums)
        with zero.up_to((outputs - b * lanes).least(lanes)) as i, zero.up_to(shifts.size) as t:
            number = builder.load((t * lanes + i).of(total))
            builder.store(number, ((b * lanes + i) * shifts.size + t).of(out))

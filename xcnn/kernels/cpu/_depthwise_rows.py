"""The compiled passes of depthwise convolutions with vectors of the pixels of rows, which are read in place.

What a tap reads is a row from another pixel on; lanes beyond its ends are masked. Several rows of a map are computed at
once, so that a row is read once for all that need it.
"""

import functools
import itertools
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import BYTES, INT, LANE, counted

__all__ = ["ROWS", "SOME", "row_gradient", "rows", "rows_read"]

ROWS = 8 if BYTES == 64 else 4
"""Rows of y that are computed at once: their sums are held in registers."""

SOME = 4
"""Rows of dy whose products are summed at once for a weight gradient."""


def rows_read(kernel: int, stride: int, dilation: int, many: int = ROWS) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return the rows of x that some rows of y read, from the first one on, and the pairs of y and tap of each."""
    found: dict[int, list[tuple[int, int]]] = {}
    for r, k in itertools.product(range(many), range(kernel)):
        found.setdefault(r * stride + k * dilation, []).append((r, k))
    return sorted(found.items())


def _reader(emit: Any, begin: Integer, end: Integer, across: int) -> Any:
    """Return a function that reads every pixel or every second one of a row from one on; those outside are 0."""
    begins, stop = [begin + k * emit.lanes for k in range(across)], emit.spread(emit.builder.trunc(end.value, LANE))
    order, exist = emit.lane_list(range(emit.lanes)), []
    for one in begins:
        pixels = emit.builder.add(order, emit.spread(emit.builder.trunc(one.value, LANE)))
        exist.append(emit.builder.icmp_unsigned("<", pixels, stop))

    def read(row: Any) -> Any:
        parts = [emit.read(row, one.value, some) for one, some in zip(begins, exist, strict=True)]
        return parts[0] if across == 1 else emit.shuffle(*parts, [2 * k for k in range(emit.lanes)])

    return read


def _find(emit: Any, lines: Any, places: Any, start: Any, top: Integer, size: tuple[Integer, Integer], no: Any) -> None:
    """Set pointers to the rows of a map of so many rows and columns, or to zeros where there are none."""
    builder, (many, width) = emit.builder, size
    for k, (i, _) in enumerate(places):
        row = top + i
        exists = builder.icmp_unsigned("<", row.value, many.value)
        builder.store(builder.select(exists, (row * width).of(start), no), Integer(builder, k).of(lines))


@functools.cache
def rows(kernel: int, stride: int, dilation: int, across: int, apart: int) -> Any:
    """Return the pass for taps, stride and dilation along columns, and a stride and distance of pixels of y along rows.

    These are 1 or 2, but not both 2.
    """
    places = rows_read(kernel, stride, dilation)

    @native("xxXXXffxxinn")
    def convolve(emit, x, weight, scale, shift, residual, low, high, y, nothing, numbers, first, last):
        """Set pixels of maps first .. last - 1 of y to clip(convolution * scale + shift + residual, low, high).

        Parameters
        ----------
        scale, shift, residual : of the channels of y; of its shape, if pixels are not apart; or None.
        nothing : as many zeros as a row of x has pixels.
        numbers : channels of y, and maps of y per map of x; rows and columns of x; rows of y, how far apart these are,
            and columns; pixels of a map of y, and the first of them; rows and columns of padding before x; taps and
            dilation along rows; weights of a channel, the first, and how far apart those of columns and of rows are.
        """
        builder, lanes, zero = emit.builder, emit.lanes, Integer(emit.builder, 0)
        channels, multiple, *sizes = Integers(builder, numbers).some(0, 17)
        x_rows, x_width, y_rows, y_row, y_width, y_size, y0, above, left, taps, step, size, w0, w_row, w_column = sizes
        options = [emit.or_else(emit.exists(a), a, number) for a, number in ((scale, 1.0), (shift, 0.0))]
        least, most = (emit.spread(emit.number(limit)) for limit in (low, high))
        added, empty = emit.exists(residual), ir.Constant(emit.vector, None)
        with builder.goto_entry_block():
            lines = builder.alloca(x.type, size=len(places))  # registers would not be enough

        def column(tap: Any, sums: list[Any], weights: Any, j: Integer) -> list[Any]:
            """Add the products of the taps of a column."""
            emit.rolled()
            sums, at = [*sums], Integer(builder, tap)
            read = _reader(emit, j * across + at * step - left, x_width, across)
            factors = [emit.broadcast((at * w_row + w_column * k).of(weights)) for k in range(kernel)]
            for i, (_, pairs) in enumerate(places):
                vector = read(builder.load(Integer(builder, i).of(lines)))
                for r, k in pairs:
                    sums[r] = emit.fused(factors[k], vector, sums[r])
                emit.barrier()  # otherwise all rows are read first, and sums lose their registers
            return sums

        def write(values: list[Any], ends: list[Integer], j: Integer) -> None:
            exist = emit.first((y_width - j).value)
            if apart == 1:
                before = builder.block
                with builder.if_then(added):
                    others = [
                        builder.fadd(value, emit.read(residual, (end + j).value, exist))
                        for value, end in zip(values, ends, strict=True)
                    ]
                    inside = builder.block
                phis = [builder.phi(emit.vector) for _ in values]
                for phi, *pair in zip(phis, values, others, strict=True):
                    for value, block in zip(pair, (before, inside), strict=True):
                        phi.add_incoming(value, block)
                values = phis
            # Backwards, so that rows that do not exist are replaced by the last one.
            for value, end in reversed([*zip(values, ends, strict=True)]):
                for sign, limit in (("<", least), (">", most)):
                    value = builder.select(builder.fcmp_ordered(sign, value, limit), limit, value)
                if apart == 1:
                    emit.write(value, y, (end + j).value, exist)
                    continue
                for k in (0, lanes):
                    some = emit.first(((y_width - j) * 2 - k).value)
                    some = builder.and_(some, ir.Constant(some.type, [1 - lane % 2 for lane in range(lanes)]))
                    spread = emit.shuffle(value, value, [(k + lane) // 2 for lane in range(lanes)])
                    emit.write(spread, y, (end + j * 2 + k).value, some)

        with Integer(builder, first).up_to(last) as one:
            channel, out = one - one // channels * channels, one * y_size + y0
            factor, plus = (emit.broadcast((channel * each).of(a)) for a, each in options)
            weights, start = (channel * size + w0).of(weight), (one // multiple * x_rows * x_width).of(x)
            with zero.up_to(y_rows, ROWS) as block:
                top = block.least((y_rows - ROWS).most(0))
                _find(emit, lines, places, start, top * stride - above, (x_rows, x_width), nothing)
                ends = [out + (top + r).least(y_rows - 1) * y_row for r in range(ROWS)]
                with zero.up_to(y_width, lanes) as j:
                    for i in range(max(0, len(places) - ROWS * stride), len(places)):
                        row = builder.load(Integer(builder, i).of(lines))
                        for k in range(across):
                            emit.prefetch((x_width * (ROWS * stride) + j * across + k * lanes).of(row))
                    sums = counted(
                        builder, INT(0), taps.value, INT(1), [empty] * ROWS,
                        lambda tap, sums, j=j: column(tap, sums, weights, j),
                    )  # fmt: skip
                    write([emit.fused(total, factor, plus) for total in sums], ends, j)

    return convolve


@functools.cache
def row_gradient(kernel: int, stride: int, dilation: int, columns: int, across: int, step: int) -> Any:
    """Return the pass of weight gradients for taps, stride and dilation along columns and along rows."""

    @native("xxxxinnn")
    def gradient(emit, x, dy, out, nothing, numbers, images, first, last):
        """Set the weight gradient of channels first .. last - 1 of dy; the arguments are as above."""
        builder, lanes, zero = emit.builder, emit.lanes, Integer(emit.builder, 0)
        channels, multiple, x_rows, x_width, y_rows, y_row, y_width, y_size, _, above, left = (
            Integers(builder, numbers).some(0, 11)
        )  # fmt: skip
        nothings = [ir.Constant(emit.vector, None)] * (kernel * columns)
        shifts = [Integer(builder, k * step) - left for k in range(columns)]
        # No pixel beyond those of the last window: it may be infinite, and the products with what is not in dy are NaN.
        ends = [((y_width - 1) * across + shift + 1).least(x_width).most(0) for shift in shifts]
        with builder.goto_entry_block():
            lines = builder.alloca(x.type, size=len(rows_read(kernel, stride, dilation, SOME)))

        def added(some: list[Any], others: list[Any]) -> list[Any]:
            return [builder.fadd(a, b) for a, b in zip(some, others, strict=True)]

        def block(top: Integer, many: int, source: Any, target: Any) -> list[Any]:
            """Return the sums over some rows of dy."""
            places = rows_read(kernel, stride, dilation, many)
            _find(emit, lines, places, source, top * stride - above, (x_rows, x_width), nothing)
            others = [((top + r) * y_row).of(target) for r in range(many)]

            def vector(j: Any, sums: list[Any]) -> list[Any]:
                emit.rolled()
                at, sums = Integer(builder, j), [*sums]
                exist = emit.first((y_width - at).value)
                gradients = [emit.read(row, j, exist) for row in others]
                for column, (shift, end) in enumerate(zip(shifts, ends, strict=True)):
                    read = _reader(emit, at * across + shift, end, across)
                    for i, (_, pairs) in enumerate(places):
                        pixels = read(builder.load(Integer(builder, i).of(lines)))
                        for r, k in pairs:
                            place = k * columns + column
                            sums[place] = emit.fused(gradients[r], pixels, sums[place])
                        emit.barrier()
                return sums

            return counted(builder, INT(0), y_width.value, INT(lanes), nothings, vector)

        with Integer(builder, first).up_to(last) as channel:

            def image(i: Any, sums: list[Any], channel: Integer = channel) -> list[Any]:
                one = Integer(builder, i) * channels + channel
                source, target = (one // multiple * x_rows * x_width).of(x), (one * y_size).of(dy)
                whole, begin, totals = y_rows // SOME * SOME, zero, nothings
                for many, end in ((SOME, whole), (1, y_rows)):
                    totals = counted(
                        builder, begin.value, end.value, INT(many), totals,
                        lambda top, sums, many=many: added(sums, block(Integer(builder, top), many, source, target)),
                    )  # fmt: skip
                    begin = whole
                return added(sums, totals)

            for k, total in enumerate(counted(builder, INT(0), images, INT(1), nothings, image)):
                builder.store(emit.total(total), (channel * len(nothings) + k).of(out))

    return gradient

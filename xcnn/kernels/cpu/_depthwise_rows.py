"""The compiled passes of depthwise convolutions with vectors of the pixels of rows, which are read in place.

What a tap reads is a row from another pixel on; lanes beyond its ends are masked. Several rows of a map are computed at
once, so that a row is read once for all that need it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import BYTES, INT, LANE, counted

__all__ = ["AHEAD", "ROWS", "SOME", "row_gradient", "rows", "rows_read", "summed"]

ROWS = 8 if BYTES == 64 else 4
"""Rows of y that are computed at once: their sums are held in registers."""

AHEAD = 12_288
"""Bytes between what is computed and what is fetched from memory meanwhile."""

SOME = 4
"""Rows of dy whose products are summed at once for a weight gradient."""


def summed(
    emit: Any, taps: int, channels: Integer, images: Any, some: Any, sums: Any, out: Any, totals: Callable[..., Any]
) -> None:
    """Write code that sets the weight gradients of some channels: of each tap, the sum of its totals of some images.

    `totals(map, nothings)` returns a vector for each tap; `nothings` are as many zeros.
    """
    builder, size = emit.builder, taps * emit.lanes
    first, last = (Integer(builder, end) for end in some)
    emit.fill(sums, ((last - first) * size).value)
    with Integer(builder, images[0]).up_to(images[1]) as i, first.up_to(last) as channel:
        there = ((channel - first) * size).of(sums)
        for k, total in enumerate(totals(i * channels + channel, [ir.Constant(emit.vector, None)] * taps)):
            place = INT(k * emit.lanes)
            emit.write(builder.fadd(emit.read(there, place), total), there, place)
    with first.up_to(last) as channel, Integer(builder, 0).up_to(taps) as tap:
        total = emit.load(((channel - first) * size + tap * emit.lanes).of(sums))
        builder.store(emit.total(total), (channel * taps + tap).of(out))


def rows_read(kernel: int, stride: int, dilation: int, many: int = ROWS) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return the rows of x that some rows of y read, from the first one on, and the pairs of y and tap of each."""
    found: dict[int, list[tuple[int, int]]] = {}
    for r, k in itertools.product(range(many), range(kernel)):
        found.setdefault(r * stride + k * dilation, []).append((r, k))
    return sorted(found.items())


class _Lines:
    """Rows of a map in the code that is written; there are too many for registers. What is outside the map is 0."""

    def __init__(self, emit: Any, places: Any, numbers: Any) -> None:
        self.emit, self.builder, self.places = emit, emit.builder, places
        with emit.builder.goto_entry_block():
            self.pointers = emit.builder.alloca(numbers.type, size=len(places))

    def __getitem__(self, k: int) -> Any:
        return self.builder.load(Integer(self.builder, k).of(self.pointers))

    def find(self, start: Any, top: Integer, many: Integer, width: Integer, nothing: Any) -> None:
        """Begin at a row of a map that has so many of a width; zeros are at `nothing`."""
        for k, (i, _) in enumerate(self.places):
            exists = self.builder.icmp_unsigned("<", (top + i).value, many.value)
            pointer = self.builder.select(exists, ((top + i) * width).of(start), nothing)
            self.builder.store(pointer, Integer(self.builder, k).of(self.pointers))

    def vectors(self, begin: Integer, end: Integer, across: int) -> Any:
        """Yield from each row a vector of every pixel or every second one from `begin` on, and its pairs."""
        emit, builder, exist = self.emit, self.builder, []
        begins, stop = [begin + k * emit.lanes for k in range(across)], emit.spread(builder.trunc(end.value, LANE))
        for one in begins:
            pixels = builder.add(emit.lane_list(range(emit.lanes)), emit.spread(builder.trunc(one.value, LANE)))
            exist.append(builder.icmp_unsigned("<", pixels, stop))
        for k, (_, pairs) in enumerate(self.places):
            row = self[k]
            parts = [emit.read(row, one.value, some) for one, some in zip(begins, exist, strict=True)]
            yield parts[0] if across == 1 else emit.shuffle(*parts, [2 * k for k in range(emit.lanes)]), pairs
            emit.barrier()  # otherwise all rows are read first, and sums lose their registers


@functools.cache
def rows(kernel: int, stride: int, dilation: int, across: int) -> Any:
    """Return the pass for taps, stride and dilation along columns, and a stride along rows of 1 or 2."""

    @native("xxXXXffxinnx")
    def convolve(emit, x, weight, scale, shift, residual, low, high, y, numbers, first, last, nothing):
        """Set maps first .. last - 1 of y to clip(convolution * scale + shift + residual, low, high).

        Parameters
        ----------
        scale, shift, residual : of the channels of y; of its shape; or None.
        numbers : images; channels of y, and maps of y per map of x; rows and columns of x and of y, and of padding
            before x; taps and dilation along rows; the place of a channel's first weight, and the step to the next one.
        nothing : as many zeros as a row of x has pixels.
        """
        builder, lanes, zero = emit.builder, emit.lanes, Integer(emit.builder, 0)
        channels, multiple, x_rows, x_width, y_rows, y_width, above, left, taps, step, w0, w_step = (
            Integers(builder, numbers).some(1, 12)
        )  # fmt: skip
        options, (residual, each) = (emit.optional(scale, 1.0), emit.optional(shift, 0.0)), emit.optional(residual, 0.0)
        limits = emit.limits(low, high)
        lines = _Lines(emit, rows_read(kernel, stride, dilation), x)

        def column(tap: Any, sums: list[Any], weights: Any, j: Integer) -> list[Any]:
            """Add the products of the taps of a column."""
            emit.rolled()
            sums, at = [*sums], Integer(builder, tap)
            factors = [emit.broadcast(((taps * k + at) * w_step).of(weights)) for k in range(kernel)]
            for vector, pairs in lines.vectors(j * across + at * step - left, x_width, across):
                for r, k in pairs:
                    sums[r] = emit.fused(factors[k], vector, sums[r])
            return sums

        with Integer(builder, first).up_to(last) as one:
            channel, out = one - one // channels * channels, one * y_rows * y_width
            factor, plus = (emit.broadcast((channel * step).of(pointer)) for pointer, step in options)
            weights, start = (channel * taps * kernel + w0).of(weight), (one // multiple * x_rows * x_width).of(x)
            with zero.up_to(y_rows, ROWS) as block:
                top = block.least((y_rows - ROWS).most(0))
                lines.find(start, top * stride - above, x_rows, x_width, nothing)
                ends = [out + (top + r).least(y_rows - 1) * y_width for r in range(ROWS)]
                with zero.up_to(y_width, lanes) as j:
                    later = j + AHEAD // emit.itemsize
                    for i, k in itertools.product(range(len(lines.places))[-ROWS * stride :], range(across)):
                        emit.prefetch((later + j * (across - 1) + k * lanes).of(lines[i]))
                    for end in ends:
                        emit.prefetch((end + later).of(y))  # otherwise stores wait for what they replace
                    sums = counted(
                        builder, INT(0), taps.value, INT(1), [ir.Constant(emit.vector, None)] * ROWS,
                        lambda tap, sums, j=j: column(tap, sums, weights, j),
                    )  # fmt: skip
                    exist = emit.first((y_width - j).value)
                    # Backwards, so that rows that do not exist are replaced by the last one.
                    for total, end in reversed([*zip(sums, ends, strict=True)]):
                        value = emit.fused(total, factor, plus)
                        value = builder.fadd(value, emit.read(residual, ((end + j) * each).value, exist))
                        emit.write(emit.clipped(value, limits), y, (end + j).value, exist)

    return convolve


@functools.cache
def row_gradient(kernel: int, stride: int, dilation: int, columns: int, across: int, step: int) -> Any:
    """Return the pass of weight gradients for taps, stride and dilation along columns and along rows."""

    @native("xxxinnnnxx")
    def gradient(emit, x, dy, out, numbers, begin, stop, first, last, nothing, sums):
        """Set the weight gradient of channels first .. last - 1 of dy, of images begin .. stop - 1.

        The arguments are as above, and memory for the sums of the channels, which follow each other in memory.
        """
        builder, zero = emit.builder, Integer(emit.builder, 0)
        channels, multiple, x_rows, x_width, y_rows, y_width, above, left = Integers(builder, numbers).some(1, 8)
        shifts = [Integer(builder, k * step) - left for k in range(columns)]
        # No pixel beyond those of the last window: it may be infinite, and the products with what is not in dy are NaN.
        ends = [((y_width - 1) * across + shift + 1).least(x_width).most(0) for shift in shifts]

        def added(some: list[Any], others: list[Any]) -> list[Any]:
            return [builder.fadd(a, b) for a, b in zip(some, others, strict=True)]

        def block(way: Any, source: Any, target: Any, nothings: Any, index: Any, totals: list[Any]) -> list[Any]:
            """Return sums, and those over some rows of dy."""
            (many, lines), top = way, Integer(builder, index)
            lines.find(source, top * stride - above, x_rows, x_width, nothing)
            others = [((top + r) * y_width).of(target) for r in range(many)]

            def vector(j: Any, sums: list[Any]) -> list[Any]:
                emit.rolled()
                at, sums = Integer(builder, j), [*sums]
                exist = emit.first((y_width - at).value)
                gradients = [emit.read(row, j, exist) for row in others]
                for pointer, step in [
                    *((row, 1) for row in others),
                    *((lines[i], across) for i in range(many * stride)),
                ]:
                    for k in range(step):
                        emit.prefetch((at * step + k * emit.lanes + AHEAD // emit.itemsize).of(pointer))
                for column, (shift, end) in enumerate(zip(shifts, ends, strict=True)):
                    for pixels, pairs in lines.vectors(at * across + shift, end, across):
                        for r, k in pairs:
                            place = k * columns + column
                            sums[place] = emit.fused(gradients[r], pixels, sums[place])
                return sums

            return added(totals, counted(builder, INT(0), y_width.value, INT(emit.lanes), nothings, vector))

        ways = [(many, _Lines(emit, rows_read(kernel, stride, dilation, many), x)) for many in (SOME, 1)]

        def totals(one: Integer, nothings: list[Any]) -> list[Any]:
            source, target = (one // multiple * x_rows * x_width).of(x), (one * y_rows * y_width).of(dy)
            whole, found = y_rows // SOME * SOME, nothings
            for way, top, end in zip(ways, (zero, whole), (whole, y_rows), strict=True):
                some = functools.partial(block, way, source, target, nothings)
                found = counted(builder, top.value, end.value, INT(way[0]), found, some)
            return found

        summed(emit, kernel * columns, channels, (begin, stop), (first, last), sums, out, totals)

    return gradient

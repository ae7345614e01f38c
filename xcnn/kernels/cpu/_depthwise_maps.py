"""The compiled passes of depthwise convolutions with as many windows as pixels, by vectors of the pixels of whole maps.

Each row of taps reads a map from where it lies, shifted by a number of pixels: a vector of them, whichever rows these
are of, and between this vector and the next ones are those of the other taps. Masks leave out what is not in the map,
or in another of its rows; they are the same for all maps.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._depthwise_rows import AHEAD, summed
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._vectors import INT, blocks, counted

__all__ = ["map_gradient", "maps"]

_NUMBERS = 5
"""The numbers before those of rows of taps."""

_TERMS = 64
"""Vectors whose products are added one after another."""


class _Taps:
    """What the taps read, in the code that is written; `offsets` are those of a row from the pixel of a window."""

    def __init__(self, emit: Any, numbers: Any, rows: int, offsets: tuple[int, ...]) -> None:
        self.emit, self.builder, self.rows, self.offsets = emit, emit.builder, rows, offsets
        self.shifts = Integers(self.builder, numbers).some(_NUMBERS, rows)
        masks = Integer(self.builder, _NUMBERS + rows).of(numbers)
        self.masks = self.builder.bitcast(masks, ir.IntType(emit.lanes).as_pointer())

    def mask(self, j: Integer, k: int) -> Any:
        """Load a mask of the vector at a pixel: that of a row of taps, or after these of an offset."""
        lanes, many = self.emit.lanes, self.rows + len(self.offsets)
        bits = self.builder.load(((j + lanes) // lanes * many + k).of(self.masks), align=1)
        return self.builder.bitcast(bits, ir.VectorType(ir.IntType(1), lanes))

    def each(
        self, x: Any, begin: Any, stop: Any, values: list[Any], start: Callable[..., Any], use: Callable[..., Any],
        end: Callable[..., Any],
    ) -> list[Any]:  # fmt: skip
        """Write a loop over the vectors from a pixel to another one of a map at x; return the values that it carries.

        For each vector, `start(j, values)` returns a list, in which `use(list, tap, vector)` replaces numbers, and
        `end(j, list)` the values for the next one.
        """
        emit, builder, lanes, rows = self.emit, self.builder, self.emit.lanes, self.rows
        lines, many = [shift.of(x) for shift in self.shifts], len(values)
        whole = ir.VectorType(ir.IntType(8 * emit.itemsize), lanes)

        def read(r: int, j: Integer) -> Any:
            return emit.read(lines[r], j.value, self.mask(j, r))

        def vector(index: Any, carried: list[Any]) -> list[Any]:
            emit.rolled()
            j, (*lefts,), (*middles,) = Integer(builder, index), carried[many : many + rows], carried[many + rows :]
            emit.prefetch((j + AHEAD // emit.itemsize).of(x))
            found, rights = start(j, carried[:many]), []
            masks = [self.mask(j, rows + k) for k in range(len(self.offsets))]
            for r, (left, middle) in enumerate(zip(lefts, middles, strict=True)):
                rights.append(read(r, j + lanes))
                for k, (offset, mask) in enumerate(zip(self.offsets, masks, strict=True)):
                    some = middle
                    if offset:  # as integers, of which LLVM knows the instruction
                        pair = (left, middle) if offset < 0 else (middle, rights[r])
                        places = [offset % lanes + lane for lane in range(lanes)]
                        some = emit.shuffle(*(builder.bitcast(one, whole) for one in pair), places)
                        some = builder.bitcast(builder.select(mask, some, ir.Constant(whole, None)), emit.vector)
                    use(found, r * len(self.offsets) + k, some)
                emit.barrier()  # otherwise all rows are read first, and sums lose their registers
            return [*end(j, found), *middles, *rights]

        first = Integer(builder, begin)
        carried = [*values, *(read(r, j) for j in (first - lanes, first) for r in range(rows))]
        return counted(builder, begin, stop, INT(lanes), carried, vector)[:many]


@functools.cache
def maps(rows: int, *offsets: int) -> Any:
    """Return the pass for rows of taps, and how far the taps of a row are from the pixel of a window."""

    @native("xxXXXffxinn")
    def convolve(emit, x, weight, scale, shift, residual, low, high, y, numbers, first, last):
        """Set maps first .. last - 1 of y to clip(convolution * scale + shift + residual, low, high).

        Parameters
        ----------
        scale, shift, residual : of the channels of y; of its shape; or None.
        numbers : channels of y, and maps of y per map of x; pixels; the place of a channel's first weight, and the step
            to the next one; how far from a window each row of taps is; and for each vector of pixels, and one before
            and after them, a bit per lane and mask: which pixels of each row of taps, and which columns of each tap,
            are in the map.
        """
        builder, columns, reads = emit.builder, len(offsets), _Taps(emit, numbers, rows, offsets)
        taps = rows * columns
        channels, multiple, pixels, w0, w_step = Integers(builder, numbers).some(0, _NUMBERS)
        options, (residual, each) = (emit.optional(scale, 1.0), emit.optional(shift, 0.0)), emit.optional(residual, 0.0)
        limits, nothings = emit.limits(low, high), [ir.Constant(emit.vector, None)] * columns
        with Integer(builder, first).up_to(last) as one:
            channel, out = one - one // channels * channels, one * pixels
            factor, plus = (emit.broadcast((channel * step).of(pointer)) for pointer, step in options)
            weights = (channel * taps + w0).of(weight)
            factors = [emit.broadcast((w_step * k).of(weights)) for k in range(taps)]

            def start(j: Integer, _: Any, out: Integer = out) -> list[Any]:
                emit.prefetch((out + j + AHEAD // emit.itemsize).of(y))  # otherwise stores wait for what they replace
                return [*nothings]

            def use(sums: list[Any], tap: int, vector: Any, factors: list[Any] = factors) -> None:
                k = tap % columns  # more than one sum, as a processor would wait for it
                sums[k] = emit.fused(factors[tap], vector, sums[k])

            def end(j: Integer, sums: list[Any], out: Integer = out, factor: Any = factor, plus: Any = plus) -> Any:
                exist = emit.first((pixels - j).value)
                value = emit.fused(functools.reduce(builder.fadd, sums), factor, plus)
                value = builder.fadd(value, emit.read(residual, ((out + j) * each).value, exist))
                emit.write(emit.clipped(value, limits), y, (out + j).value, exist)
                return []

            reads.each((one // multiple * pixels).of(x), INT(0), pixels.value, [], start, use, end)

    return convolve


@functools.cache
def map_gradient(rows: int, *offsets: int) -> Any:
    """Return the pass of weight gradients; the arguments are as above."""

    @native("xxxinnnnx")
    def gradient(emit, x, dy, out, numbers, begin, stop, first, last, sums):
        """Set the weight gradient of channels first .. last - 1 of dy, of images begin .. stop - 1.

        The arguments are as above, and memory for the sums of the channels, which follow each other in memory.
        """
        reads = _Taps(emit, numbers, rows, offsets)
        channels, multiple, pixels = Integers(emit.builder, numbers).some(0, 3)

        def totals(one: Integer, nothings: list[Any]) -> list[Any]:
            target, taps = (one * pixels).of(dy), len(nothings)

            def start(j: Integer, totals: list[Any]) -> list[Any]:
                emit.prefetch((j + AHEAD // emit.itemsize).of(target))
                return [*totals, emit.read(target, j.value, emit.first((pixels - j).value))]

            def use(found: list[Any], tap: int, vector: Any) -> None:
                found[tap] = emit.fused(found[taps], vector, found[tap])

            def block(begin: Any, stop: Any, totals: list[Any]) -> list[Any]:
                source = (one // multiple * pixels).of(x)
                sums = reads.each(source, begin, stop, nothings, start, use, lambda _, found: found[:taps])
                return [emit.builder.fadd(*pair) for pair in zip(totals, sums, strict=True)]

            found: list[Any] = blocks(emit.builder, INT(0), pixels.value, INT(_TERMS * emit.lanes), nothings, block)
            return found

        summed(emit, rows * len(offsets), channels, (begin, stop), (first, last), sums, out, totals)

    return gradient

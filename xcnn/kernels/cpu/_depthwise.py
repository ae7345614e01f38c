"""The compiled passes of depthwise convolutions, with vectors of channels.

The pixels of as many channels as a vector has numbers are copied side by side, with padding around them. Then every
kernel position of a window is one vector, for any stride and dilation, and no lane is wasted at the edges of a map.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._simd import BYTES, Emitter
from xcnn.kernels.cpu._tables import array
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._weight_gradient import keep

__all__ = ["depthwise", "depthwise_weight_gradient"]

_MANY = 8
_TAPS = 9
_TERMS = 64
"""Windows whose products are added one after another."""


def _combination(many: int) -> Callable[..., None]:
    """Build sums over taps, for `many` pixels at once.

    The result is a function `(x, bases, j, shifts, w, count, y, places)` that sets, for i < `many` and every lane l:

        y[places[j + i] + l] = sum over t < count of x[bases[j + i] + shifts[t] + l] * w[t * lanes + l]
    """

    @intrinsic
    def combine(_: Any, x: Any, bases: Any, j: Any, shifts: Any, w: Any, count: Any, y: Any, places: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x_, bases_, j_, shifts_, w_, count_, y_, places_ = arguments
            emit = Emitter(context, builder, x)
            source, target, weight = emit.pointer(x, x_), emit.pointer(y, y_), emit.pointer(w, w_)
            shift = emit.pointer(shifts, shifts_)
            base, place = emit.pointer(bases, bases_, j_), emit.pointer(places, places_, j_)
            starts = [builder.gep(source, [builder.load(emit.at(base, (i, 1)))]) for i in range(many)]
            (sums,) = emit.sums(1, many)
            with cgutils.for_range(builder, count_) as loop:
                value = emit.load(emit.at(weight, (loop.index, emit.lanes)))
                moved = builder.load(builder.gep(shift, [loop.index]))
                for start, total in zip(starts, sums, strict=True):
                    emit.multiply_add(value, emit.load(builder.gep(start, [moved])), total)
            for i, total in enumerate(sums):
                emit.store(builder.load(total), builder.gep(target, [builder.load(emit.at(place, (i, 1)))]))
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, bases, n, shifts, w, n, y, places), generate

    return combine  # type: ignore[no-any-return]


def _accumulation(taps: int) -> Callable[..., None]:
    """Build sums over windows, for `taps` kernel positions at once.

    The result is a function `(x, bases, dy, begin, end, shifts, t, sums)` that adds, for i < `taps` and every lane l:

        sums[(t + i) * lanes + l] += sum over begin <= j < end of x[bases[j] + shifts[t + i] + l] * dy[j * lanes + l]
    """

    @intrinsic
    def accumulate(_: Any, x: Any, bases: Any, dy: Any, begin: Any, end: Any, shifts: Any, t: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x_, bases_, dy_, begin_, end_, shifts_, t_, sums_ = arguments
            emit = Emitter(context, builder, x)
            source, right, target = emit.pointer(x, x_), emit.pointer(dy, dy_), emit.pointer(sums, sums_)
            base, shift = emit.pointer(bases, bases_), emit.pointer(shifts, shifts_, t_)
            starts = [builder.gep(source, [builder.load(emit.at(shift, (i, 1)))]) for i in range(taps)]
            (totals,) = emit.sums(1, taps)
            with cgutils.for_range_slice(builder, begin_, end_, ir.IntType(64)(1)) as (j, _):
                value = emit.load(emit.at(right, (j, emit.lanes)))
                moved = builder.load(builder.gep(base, [j]))
                for start, total in zip(starts, totals, strict=True):
                    emit.multiply_add(value, emit.load(builder.gep(start, [moved])), total)
            first = emit.at(target, (t_, emit.lanes))
            for i, total in enumerate(totals):
                place = emit.at(first, (i, emit.lanes))
                emit.store(builder.fadd(emit.load(place), builder.load(total)), place)
            return context.get_dummy_value()

        n = types.intp
        return types.void(x, bases, dy, n, n, shifts, n, sums), generate

    return accumulate  # type: ignore[no-any-return]


_combine_many, _combine_one = _combination(_MANY), _combination(1)
_accumulate_many, _accumulate_some, _accumulate_one = _accumulation(_TAPS), _accumulation(3), _accumulation(1)


@compiled
def depthwise(x, mask, weight, out, tables, first, last, block, end, masked, xs, ys, ws):
    """Set blocks `block` .. `end` - 1 of channels of y, or of dx, of images first .. last - 1.

    Parameters
    ----------
    x, mask, weight, out : x or dy, set to 0 where `mask` is 0 unless that is empty; (c, taps); y or dx; all flat.
    tables : these numbers and arrays.

        - channels c
        - where the channels of a block begin in x, and where its pixels are in xs
        - the same for out and ys
        - for each phase its first pixel and tap, and the number of both
        - for each pixel, phase by phase, where it reads xs, and its place in ys
        - for each tap, phase by phase, how far from there it reads, and its number
    masked, xs, ys, ws : memory, in which the padding of xs is 0.
    """
    c, rows, places, out_rows, out_places = (
        tables[1],
        array(tables, 0),
        array(tables, 1),
        array(tables, 2),
        array(tables, 3),
    )
    phases, bases, targets = array(tables, 4), array(tables, 5), array(tables, 6)
    shifts, taps = array(tables, 7), array(tables, 8)
    lanes, width, pixels, out_pixels = BYTES // x.itemsize, rows.size, places.size, out_places.size
    for b in range(block, end):
        c0 = min(b * width, c - width)
        for t in range(taps.size):
            for k in range(width):
                ws[t * lanes + k] = weight[(c0 + k) * (weight.size // c) + taps[t]]
        for n in range(first, last):
            at, source = (n * c + c0) * pixels, x
            if mask.size:
                keep(x, mask, at, width * pixels, masked)
                at, source = 0, masked
            transpose(source, at, rows, xs, 0, places)
            for p in range(0, phases.size, 4):
                pixel, tap, many, count = phases[p], phases[p + 1], phases[p + 2], phases[p + 3]
                reads, weights = shifts[tap : tap + count], ws[tap * lanes :]
                done = pixel + many // _MANY * _MANY
                for j in range(pixel, done, _MANY):
                    _combine_many(xs, bases, j, reads, weights, count, ys, targets)
                for j in range(done, pixel + many):
                    _combine_one(xs, bases, j, reads, weights, count, ys, targets)
            transpose(ys, 0, out_places, out, (n * c + c0) * out_pixels, out_rows)


@compiled
def depthwise_weight_gradient(x, dy, mask, out, tables, first, last, block, end, masked, xs, dys, sums, image):
    """Set the part of blocks `block` .. `end` - 1 of the weight gradient (c, taps), flat, of images first .. last - 1.

    Parameters
    ----------
    x, dy, mask : flat; dy is set to 0 where `mask` is 0, unless that is empty.
    tables : these numbers and arrays.

        - channels c
        - where the channels of a block begin in x, and where its pixels are in xs
        - the same for dy and dys
        - where each window, and each tap from there, reads xs
    masked, xs, dys, sums, image : memory, in which the padding of xs is 0.
    """
    c, rows, places, dy_rows, dy_places = (
        tables[1],
        array(tables, 0),
        array(tables, 1),
        array(tables, 2),
        array(tables, 3),
    )
    bases, shifts = array(tables, 4), array(tables, 5)
    lanes, width, pixels, windows, taps = BYTES // x.itemsize, rows.size, places.size, dy_places.size, shifts.size
    zero = x.dtype.type(0)
    for b in range(block, end):
        c0 = min(b * width, c - width)
        for k in range(taps * lanes):
            sums[k] = zero
        for n in range(first, last):
            transpose(x, (n * c + c0) * pixels, rows, xs, 0, places)
            at, source = (n * c + c0) * windows, dy
            if mask.size:
                keep(dy, mask, at, width * windows, masked)
                at, source = 0, masked
            transpose(source, at, dy_rows, dys, 0, dy_places)
            for k in range(taps * lanes):
                image[k] = zero
            for j in range(0, windows, _TERMS):
                stop, t = min(j + _TERMS, windows), 0
                while t + _TAPS <= taps:
                    _accumulate_many(xs, bases, dys, j, stop, shifts, t, image)
                    t += _TAPS
                while t + 3 <= taps:
                    _accumulate_some(xs, bases, dys, j, stop, shifts, t, image)
                    t += 3
                while t < taps:
                    _accumulate_one(xs, bases, dys, j, stop, shifts, t, image)
                    t += 1
            for k in range(taps * lanes):
                sums[k] += image[k]
        for k in range(width):  # last, as a block that overlaps this one may write the same numbers in another thread
            for t in range(taps):
                out[(c0 + k) * taps + t] = sums[t * lanes + k]

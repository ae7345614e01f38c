"""The compiled passes of depthwise convolutions, with vectors of channels.

The pixels of as many channels as a vector has numbers are copied side by side, with padding around them. Then every
kernel position of a window is one vector, for any stride and dilation, and no lane is wasted at the edges of a map.
"""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import every, lanes_product
from xcnn.kernels.cpu._simd import BYTES
from xcnn.kernels.cpu._tables import array
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["depthwise", "depthwise_weight_gradient"]

_TERMS = 64
"""Windows whose products are added one after another."""


@compiled
def depthwise(copy, turn, sum_up, x, mask, weight, out, tables, first, last, block, end, masked, xs, ys, ws):
    """Set blocks `block` .. `end` - 1 of channels of y, or of dx, of images first .. last - 1.

    Parameters
    ----------
    copy, turn, sum_up : addresses of `every`, `transpose` and `lanes_product`.
    x, mask, weight, out : x or dy, set to 0 where `mask` is 0 unless that is empty; (c, taps); y or dx; all flat.
    tables : these numbers and arrays.

        - channels c
        - where the channels of a block begin in x, and where its pixels are in xs
        - the same for out and ys
        - for each phase its first pixel and tap, and the number of both
        - for each pixel, phase by phase, where it reads xs
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
    phases, bases, shifts, taps = array(tables, 4), array(tables, 5), array(tables, 6), array(tables, 7)
    lanes, width, pixels, out_pixels = BYTES // x.itemsize, rows.size, places.size, out_places.size
    for b in range(block, end):
        c0 = min(b * width, c - width)
        for t in range(taps.size):
            for k in range(width):
                ws[t * lanes + k] = weight[(c0 + k) * (weight.size // c) + taps[t]]
        for n in range(first, last):
            at, source = (n * c + c0) * pixels, x
            if mask.size:
                every(copy, x, at, 0, 1, mask, masked, 0, 0, 1, 1, width * pixels)
                at, source = 0, masked
            transpose(turn, source, at, rows, xs, 0, places)
            for p in range(0, phases.size, 4):
                pixel, tap, many, count = phases[p], phases[p + 1], phases[p + 2], phases[p + 3]
                lanes_product(
                    sum_up, xs, 0, bases[pixel : pixel + many], shifts[tap : tap + count], ws, tap * lanes, ys,
                    pixel * lanes, many,
                )  # fmt: skip
            transpose(turn, ys, 0, out_places, out, (n * c + c0) * out_pixels, out_rows)


@compiled
def depthwise_weight_gradient(
    copy, turn, sum_up, x, dy, mask, out, tables, first, last, block, end, masked, xs, dys, sums, image, part
):  # fmt: skip
    """Set the part of blocks `block` .. `end` - 1 of the weight gradient (c, taps), flat, of images first .. last - 1.

    Parameters
    ----------
    copy, turn, sum_up : addresses as above.
    x, dy, mask : flat; dy is set to 0 where `mask` is 0, unless that is empty.
    tables : these numbers and arrays.

        - channels c
        - where the channels of a block begin in x, and where its pixels are in xs
        - the same for dy and dys
        - where each window, and each tap from there, reads xs
    masked, xs, dys, sums, image, part : memory, in which the padding of xs is 0.
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
            transpose(turn, x, (n * c + c0) * pixels, rows, xs, 0, places)
            at, source = (n * c + c0) * windows, dy
            if mask.size:
                every(copy, dy, at, 0, 1, mask, masked, 0, 0, 1, 1, width * windows)
                at, source = 0, masked
            transpose(turn, source, at, dy_rows, dys, 0, dy_places)
            for k in range(taps * lanes):
                image[k] = zero
            for j in range(0, windows, _TERMS):
                lanes_product(sum_up, xs, 0, shifts, bases[j : min(j + _TERMS, windows)], dys, j * lanes, part, 0, taps)
                for k in range(taps * lanes):
                    image[k] += part[k]
            for k in range(taps * lanes):
                sums[k] += image[k]
        for k in range(width):  # last, as a block that overlaps this one may write the same numbers in another thread
            for t in range(taps):
                out[(c0 + k) * taps + t] = sums[t * lanes + k]

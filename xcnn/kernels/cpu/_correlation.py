"""The compiled pass of a weight gradient with few channels: sums of products of the planes of dy and x, shifted."""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._planes import SIZE, STEP, STRIDE
from xcnn.kernels.cpu._simd import BYTES, CORRELATION_BLOCKS, TERMS, correlation
from xcnn.kernels.cpu._tables import array

__all__ = ["correlate"]

_Y, _X = 6, 12
"""Where the second and the third axis of the planes begin."""

_S0, _S1, _S2 = (rows for rows, _ in CORRELATION_BLOCKS)
_C0, _C1, _C2 = (correlation(*block) for block in CORRELATION_BLOCKS)


@compiled
def _correlate(dy, dy0, plane, dy_step, x, x_step, shifts, images, length, out, out0, rows):
    """Add the products of dy's rows with the shifted x to out (rows, K)."""
    count = shifts.size
    b0 = rows // _S0
    _C0(dy, dy0, plane, dy_step, x, x_step, shifts, count, images, length, out, out0, b0)
    r = b0 * _S0
    b1 = (rows - r) // _S1
    _C1(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b1)
    r += b1 * _S1
    b2 = (rows - r) // _S2
    _C2(dy, dy0 + r * plane, plane, dy_step, x, x_step, shifts, count, images, length, out, out0 + r * count, b2)


@compiled
def correlate(copy, x, dy, y, dweight, tables, first, last, xs, dys):
    """Add the weight gradient of images first .. last - 1 to dweight.

    Parameters
    ----------
    copy : address of `every`.
    x, dy, y, dweight : flat.
    tables : these numbers and arrays.

        - groups, and channels of x and dy in each
        - pixels of a map of dy, how many numbers a row of it has, and images that are laid out together
        - size of a plane of x, phases, places of the outputs, size of a plane of dy and its first pixel
        - where each row of dy is copied from, and where to in a plane
        - for each phase its number, and for each axis the first place and pixel, and how many there are
        - the axes of the planes, and for each channel and tap, where x is read
    xs, dys : memory, in which the padding is 0.
    """
    groups, cg, og, dy_pixels, laid, chunk = tables[1], tables[2], tables[3], tables[4], tables[5], tables[6]
    plane, phases, length, room, start = tables[7], tables[8], tables[9], tables[10], tables[11]
    laid_from, laid_to, spans = array(tables, 0), array(tables, 1), array(tables, 2)
    axes, shifts = array(tables, 3), array(tables, 4)
    depth, height, width = axes[SIZE], axes[_Y + SIZE], axes[_X + SIZE]
    c, o, count = groups * cg, groups * og, shifts.size
    span = TERMS * (BYTES // dys.itemsize)
    places = min(length, span)
    several = max(1, span // places)
    for n in range(first, last, chunk):
        images = min(chunk, last - n)
        for i in range(images):
            for row in range(laid_from.size):
                every(
                    copy, dy, (n + i) * o * dy_pixels + laid_from[row], dy_pixels, 1, y, dys,
                    i * o * room + laid_to[row], room, 1, o, laid,
                )  # fmt: skip
            for k in range(0, spans.size, 10):
                to = (i * c * phases + spans[k]) * plane + spans[k + 2] * axes[_Y + STEP] + spans[k + 3]
                for z in range(spans[k + 7]):
                    pixel = (spans[k + 4] + z * axes[STRIDE]) * height + spans[k + 5]
                    for channel in range(c):
                        every(
                            copy, x, (((n + i) * c + channel) * depth * height + pixel) * width + spans[k + 6],
                            axes[_Y + STRIDE] * width, axes[_X + STRIDE], y[:0], xs,
                            to + channel * phases * plane + (spans[k + 1] + z) * axes[STEP], axes[_Y + STEP], 1,
                            spans[k + 8], spans[k + 9],
                        )  # fmt: skip
        for g in range(groups):
            for i in range(0, images, several):
                for at in range(0, length, places):
                    _correlate(
                        dys, (i * o + g * og) * room + start + at, room, o * room,
                        xs[(i * c + g * cg) * phases * plane + at :], c * phases * plane, shifts,
                        min(several, images - i), min(places, length - at), dweight, g * og * count, og,
                    )  # fmt: skip

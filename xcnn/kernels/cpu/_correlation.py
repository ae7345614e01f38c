"""The compiled pass of a weight gradient with few channels: sums of products of the planes of dy and x, shifted."""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._input_gradient import copy_rows
from xcnn.kernels.cpu._passes import lay
from xcnn.kernels.cpu._simd import BYTES, CORRELATION_BLOCKS, TERMS, correlation
from xcnn.kernels.cpu._tables import array

__all__ = ["correlate"]

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
def correlate(x, dy, y, dweight, tables, first, last, xs, dys):
    """Add the weight gradient of images first .. last - 1 to dweight.

    Parameters
    ----------
    x, dy, y, dweight : (n, c, d, h, w); the others flat.
    tables : these numbers and arrays.

        - groups, and channels of x and dy in each
        - pixels of a map of dy, how many numbers a row of it has, and images that are laid out together
        - size of a plane of x, phases, places of the outputs, size of a plane of dy and its first pixel
        - where each row of dy is copied from, and where to in a plane
        - the axes of the planes, and for each channel and tap, where x is read
    xs, dys : memory, in which the padding is 0.
    """
    groups, cg, og, dy_pixels, laid, chunk = tables[1], tables[2], tables[3], tables[4], tables[5], tables[6]
    plane, phases, length, room, start = tables[7], tables[8], tables[9], tables[10], tables[11]
    laid_from, laid_to, shifts = array(tables, 0), array(tables, 1), array(tables, 3)
    axes = array(tables, 2).reshape((3, 6))
    c, o, count = groups * cg, groups * og, shifts.size
    span = TERMS * (BYTES // dys.itemsize)
    places = min(length, span)
    several = max(1, span // places)
    for n in range(first, last, chunk):
        images = min(chunk, last - n)
        for i in range(images):
            copy_rows(
                dy, y, (n + i) * o * dy_pixels, dy_pixels, o, laid_from, laid_to, laid, dys[i * o * room :], room
            )  # fmt: skip
            lay(x[n + i], axes, plane, xs, i * c * phases * plane)
        for g in range(groups):
            for i in range(0, images, several):
                for at in range(0, length, places):
                    _correlate(
                        dys, (i * o + g * og) * room + start + at, room, o * room,
                        xs[(i * c + g * cg) * phases * plane + at :], c * phases * plane, shifts,
                        min(several, images - i), min(places, length - at), dweight, g * og * count, og,
                    )  # fmt: skip

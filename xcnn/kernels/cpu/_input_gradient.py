"""The compiled passes of an input gradient: lay out dy, multiply it by the weights where they lie, write dx.

A few small images share a plane (a stack), so that vectors are full. Where rows of pixels are copied from and to is in
tables, which are the same for any rank, stride and dilation.
"""

from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._tables import array

__all__ = ["BAND", "bias_gradient", "input_gradient"]

BAND = 960
"""The most places of a plane that are multiplied before they are written: whole strips."""

_WEIGHTS = 1 << 16
"""The most weights that are multiplied before the next pixels: a quarter of a second-level cache."""


@summing
def bias_gradient(dy, y, out, pixels, first, last):
    """Set rows first .. last - 1 of out to the sums of dy's maps, where y is not 0 if it is not empty."""
    zero = dy.dtype.type(0)
    for i in range(first, last):
        total = zero
        for at in range(i * pixels, (i + 1) * pixels, BLOCK):
            source, part = dy[at : min(at + BLOCK, (i + 1) * pixels)], zero
            if y.size:
                mask = y[at : min(at + BLOCK, (i + 1) * pixels)]
                for k in range(source.size):
                    part += source[k] if mask[k] != zero else zero
            else:
                for k in range(source.size):
                    part += source[k]
            total += part
        out[i] = total


@compiled
def input_gradient(product, copy, dy, y, weight, bias, dx, tables, first, last, begin, end, dys, ys):
    """Set channels begin .. end - 1 of each group of dx, of images first .. last - 1.

    Parameters
    ----------
    product, copy : addresses of `multiply` and `every`.
    dy, y, weight, bias, dx : flat; y and bias may be empty.
    tables : these numbers and arrays.

        - groups, and channels of dx and dy in each
        - pixels of a map of dy and of dx, and taps of a kernel
        - images that share a plane of dy, its size, and how many numbers a row of dy has
        - where each row of dy is copied from, and where to in a plane
        - the same for the rows of dx, phase by phase, and how many numbers they have, at most BAND
        - for each phase its first row and the number of its rows, how far apart the numbers of a row are in dx, its
          first term and the number of its terms
        - for each term, an output channel and tap, where dy and the weight are read
    dys, ys : memory, in which the padding of dys is 0; without dys, dy is read and dx written where they lie.
    """
    groups, cg, og = tables[1], tables[2], tables[3]
    dy_pixels, dx_pixels, taps = tables[4], tables[5], tables[6]
    images, room, laid = tables[7], tables[8], tables[9]
    laid_from, laid_to = array(tables, 0), array(tables, 1)
    written_from, written_to, written = array(tables, 2), array(tables, 3), array(tables, 4)
    phases, shifts, offsets = array(tables, 5), array(tables, 6), array(tables, 7)
    step = BAND + 16  # not a power of 2, as the cache has few places for those
    most = max(8, min(_WEIGHTS // (og * taps), ys.size // step) // 8 * 8)
    for n in range(first, last, images):
        many = min(images, last - n)
        for g in range(groups):
            dy0, dx0, w0 = (n * groups + g) * og * dy_pixels, (n * groups + g) * cg * dx_pixels, g * og * cg * taps
            if not dys.size:
                for c in range(begin, end, most):
                    multiply(
                        product, dy, dy0, shifts, weight, w0 + c * taps, taps, offsets, offsets.size, dx,
                        dx0 + c * dx_pixels, dx_pixels, min(most, end - c), dx_pixels,
                    )  # fmt: skip
                continue
            rows = laid_from.size // images * many
            for row in range(rows):
                every(copy, dy, dy0 + laid_from[row], dy_pixels, 1, y, dys, laid_to[row], room, 1, og, laid)
            for p in range(0, phases.size, 5):
                row, rows, stride = phases[p], phases[p + 1] // images * many, phases[p + 2]
                term, terms = phases[p + 3], phases[p + 4]
                reads, columns = shifts[term : term + terms], offsets[term : term + terms]
                for c in range(begin, end, most):
                    channels, r = min(most, end - c), 0
                    while r < rows:
                        origin, stop = written_from[row + r], r + 1
                        length = written[row + r]
                        while stop < rows and written_from[row + stop] + written[row + stop] - origin <= BAND:
                            length = written_from[row + stop] + written[row + stop] - origin
                            stop += 1
                        multiply(
                            product, dys, origin, reads, weight, w0 + c * taps, taps, columns, terms, ys, 0, step,
                            channels, length,
                        )  # fmt: skip
                        if bias.size:
                            for i in range(channels):
                                add = bias[g * cg + c + i]
                                for j in range(i * step, i * step + length):
                                    ys[j] += add
                        for i in range(row + r, row + stop):
                            every(
                                copy, ys, written_from[i] - origin, step, 1, y[:0], dx,
                                dx0 + c * dx_pixels + written_to[i], dx_pixels, stride, channels, written[i],
                            )  # fmt: skip
                        r = stop

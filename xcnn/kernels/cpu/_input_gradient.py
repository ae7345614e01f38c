"""The compiled passes of an input gradient: lay out dy, multiply it by the weights where they lie, write dx.

A few small images share a plane (a stack), so that vectors are full. Where rows of pixels are copied from and to is in
tables, which are the same for any rank, stride and dilation.
"""

from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._sums import BLOCK

__all__ = ["BAND", "bias_gradient", "copy_rows", "input_gradient"]

BAND = 960
"""The most places of a plane that are multiplied before they are written: whole strips."""

_WEIGHTS = 1 << 16
"""The most weights that are multiplied before the next pixels: a quarter of a second-level cache."""


@compiled
def copy_rows(dy, y, dy0, pixels, channels, sources, targets, width, out, room):
    """Copy rows of `width` numbers of each channel, where y is not 0; all of them if y is empty."""
    zero = dy.dtype.type(0)
    for o in range(channels):
        for row in range(sources.size):
            at = dy0 + o * pixels + sources[row]
            source, target = dy[at : at + width], out[o * room + targets[row] :]
            if y.size:
                mask = y[at : at + width]
                for k in range(width):
                    target[k] = source[k] if mask[k] != zero else zero
            else:
                for k in range(width):
                    target[k] = source[k]


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
def _write(ys, step, channels, sources, targets, widths, first, last, origin, stride, bias, b0, dx, dx0, pixels):
    """Copy rows first .. last - 1 of each channel to their pixels, `stride` apart, and add the bias."""
    for c in range(channels):
        b = bias[b0 + c] if bias.size else ys.dtype.type(0)
        for row in range(first, last):
            at = c * step + sources[row] - origin
            source, target = ys[at : at + widths[row]], dx[dx0 + c * pixels + targets[row] :]
            if stride == 1:
                for k in range(source.size):
                    target[k] = source[k] + b
            else:
                for k in range(source.size):
                    target[k * stride] = source[k] + b


@compiled
def input_gradient(
    dy, y, weight, bias, dx, counts, dy_pixels, dx_pixels, taps, room, laid_from, laid_to, laid, written_from,
    written_to, written, phases, shifts, offsets, images, first, last, begin, end, dys, ys,
):  # fmt: skip
    """Set channels begin .. end - 1 of each group of dx, of images first .. last - 1, `images` of them at a time.

    Parameters
    ----------
    dy, y, weight, bias, dx : flat; y and bias may be empty.
    counts : (3,), groups, and channels of dx and dy in each.
    dy_pixels, dx_pixels, taps : pixels of a map of dy and dx, and of a kernel.
    room : the size of a plane of dy.
    laid_from, laid_to, laid : where each row of dy is copied from and to in a plane, and how many numbers it has.
    written_from, written_to, written : the same for each row of dx, phase by phase; no row has more than BAND numbers.
    phases : (p, 5), for each phase its first row and the number of its rows, how far apart the numbers of a row are in
        dx, its first term and the number of its terms.
    shifts, offsets : for each output channel and tap, where dy and the weight are read.
    dys, ys : memory, in which the padding of dys is 0; without dys, dy is read and dx written where they lie.
    """
    groups, cg, og = counts
    step = BAND + 16  # not a power of 2, as the cache has few places for those
    most = max(8, min(_WEIGHTS // (og * taps), ys.size // step) // 8 * 8)
    for n in range(first, last, images):
        many = min(images, last - n)
        for g in range(groups):
            dy0, dx0, w0 = (n * groups + g) * og * dy_pixels, (n * groups + g) * cg * dx_pixels, g * og * cg * taps
            if not dys.size:
                for c in range(begin, end, most):
                    multiply(
                        dy, dy0, shifts, weight, w0 + c * taps, taps, offsets, dx, dx0 + c * dx_pixels, dx_pixels,
                        min(most, end - c), dx_pixels,
                    )  # fmt: skip
                continue
            rows = laid_from.size // images * many
            copy_rows(dy, y, dy0, dy_pixels, og, laid_from[:rows], laid_to[:rows], laid, dys, room)
            for p in range(phases.shape[0]):
                row, rows, stride, term, terms = phases[p]
                rows = rows // images * many
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
                            dys, origin, reads, weight, w0 + c * taps, taps, columns, ys, 0, step, channels, length
                        )  # fmt: skip
                        _write(
                            ys, step, channels, written_from, written_to, written, row + r, row + stop, origin, stride,
                            bias, g * cg + c, dx, dx0 + c * dx_pixels, dx_pixels,
                        )  # fmt: skip
                        r = stop

"""The compiled passes of a weight gradient whose vectors run along channels, either of x or of dy.

The pixels of the one of the two that is called b are copied with their channels side by side. The other one, a, is read
number by number, so its channels may be anywhere: it is read where it is, unless it needs padding or a mask.

If b is x, the channels of the kernel positions of a row are adjacent, and a window has one vector of them per row. If b
is dy, there is one vector per window, and a row of the product is a channel and kernel position of x. The terms are the
windows, in both cases.
"""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._tables import array
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["ROWS", "TERMS", "collect", "weight_gradient"]

ROWS, TERMS = 64, 1024
"""The rows and windows of a that are multiplied together: a quarter of a second-level cache."""


@compiled
def weight_gradient(product, copy, turn, a, b, a_y, b_y, sums, tables, first, last, block, end, planes, bs, masked, ys):
    """Set the sums of blocks `block` .. `end` - 1 to the products of images first .. last - 1.

    Parameters
    ----------
    product, copy, turn : addresses of `multiply`, `every` and `transpose`.
    a, b : (n, channels, pixels), flat.
    a_y, b_y : y, if that of the two is dy and masked to where y is not 0; else empty.
    sums : for each block, row of kernel positions of b and row of a, `columns` numbers, flat.
    tables : these numbers and arrays.

        - groups, and channels of a and b in each
        - pixels of a map of a and of b
        - images that are multiplied together, how many numbers each takes in bs, and how many pixels are laid out
        - columns: how many numbers the vectors of a row of kernel positions have
        - channels of b in a block, and how far its channels are apart where they are read
        - how far channels of a are apart in planes; how many numbers are in a row of a that is copied there, how many
          rows there are, and how far they are apart, before and after
        - in the weights, how far rows of a, channels of b, and groups are apart
        - where the channels of a block of b are, and where its pixels are stored in bs
        - for each window of the images, where it begins in bs
        - the same for a, then where each row of a begins
        - where the rows of kernel positions begin in bs
        - where planes of a are copied from, and where to
    planes, bs, masked, ys : memory, in which the padding is 0; without planes, a is read where it is.
    """
    groups, ca, cb, a_pixels, b_pixels = tables[1], tables[2], tables[3], tables[4], tables[5]
    images, room, piece, columns, width, apart = tables[6], tables[7], tables[8], tables[9], tables[10], tables[11]
    places, stored, windows, offsets = array(tables, 0), array(tables, 1), array(tables, 2), array(tables, 3)
    runs, copied_from, copied_to = array(tables, 4), array(tables, 5), array(tables, 6)
    per_group, count, rows = -(-cb // width), windows.size // images, offsets.size - windows.size
    step = ys.size // ROWS
    for n in range(first, last, images):
        many = min(images, last - n)
        for at in range(block, end):
            g = at // per_group
            a_in, a0 = a, (n * groups + g) * ca * a_pixels
            if planes.size:
                a_in = planes
                if at == block or at % per_group == 0:
                    for i in range(many * ca):
                        source = a0 + (i // ca * groups * ca + i % ca) * a_pixels
                        for k in range(copied_from.size):
                            every(
                                copy, a, source + copied_from[k], tables[15], 1, a_y, planes,
                                i * tables[12] + copied_to[k], tables[16], 1, tables[14], tables[13],
                            )  # fmt: skip
                a0 = a0 - a0
            b0 = (n * groups * cb + g * cb + max(0, min(at % per_group * width, cb - width))) * b_pixels
            for low in range(0, b_pixels, piece):
                laid = min(piece, b_pixels - low)
                for i in range(many):
                    b_in, begin = b, b0 + i * groups * cb * b_pixels + low
                    if b_y.size:
                        every(copy, b, begin, b_pixels, 1, b_y, masked, 0, apart, 1, min(width, cb), laid)
                        b_in, begin = masked, begin - begin
                    transpose(turn, b_in, begin, places, bs, i * room, stored[:laid])
                stop = min(piece, many * count - low)
                for k in range(0, stop, TERMS):
                    terms = min(TERMS, stop - k)
                    for r in range(0, rows, ROWS):
                        for j in range(runs.size):
                            some = min(ROWS, rows - r)
                            multiply(
                                product, bs, runs[j], windows[k:], a_in, a0, low + k - windows.size - r,
                                offsets[low + k :], terms, ys, 0, step, some, columns,
                            )  # fmt: skip
                            for i in range(some):
                                source, target = ys[i * step :], sums[((at * runs.size + j) * rows + r + i) * columns :]
                                if n == first and low + k == 0:
                                    for c in range(columns):
                                        target[c] = source[c]
                                else:
                                    for c in range(columns):
                                        target[c] += source[c]


@compiled
def collect(parts, tables, out, first, last):
    """Set the weight gradient of rows first .. last - 1 of a, of all groups, to the sum of the parts.

    Parameters
    ----------
    parts : (p, numbers), each as `sums` above.
    tables : as above.
    out : flat.
    """
    cb, columns, width, runs = tables[3], tables[9], tables[10], array(tables, 4).size
    rows = array(tables, 3).size - array(tables, 2).size
    per_group, taps = -(-cb // width), columns // width
    for row in range(first, last):
        g, r = divmod(row, rows)
        for block in range(per_group):
            start = g * tables[19] + r * tables[17] + max(0, min(block * width, cb - width)) * tables[18]
            for j in range(runs):
                at = (((g * per_group + block) * runs + j) * rows + r) * columns
                total = parts[0, at : at + columns]
                for p in range(1, parts.shape[0]):
                    for k in range(columns):
                        total[k] += parts[p, at + k]
                for q in range(taps):
                    for c in range(min(width, cb)):
                        out[start + c * tables[18] + j * taps + q] = total[q * width + c]

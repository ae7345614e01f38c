"""The compiled passes of a weight gradient whose vectors run along channels.

The pixels of x are copied with their channels side by side, and padding around them. There the channels of the kernel
positions of a row are adjacent, and a window has one vector of them per row. The weight gradient is the product of dy,
read where it lies, and of these vectors; its terms are the windows.

For a kernel of one pixel, x and dy may change places. So the names here are a for what is read in place, b for what is
copied, and width for the channels of b that are copied together, a block.
"""

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._tables import array
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["ROWS", "TERMS", "collect", "weight_gradient"]

ROWS, TERMS = 64, 1024
"""The channels and windows of a that are multiplied together: a quarter of a second-level cache."""


@compiled
def weight_gradient(product, copy, turn, a, b, a_y, b_y, sums, tables, first, last, block, end, masked, bs, ys):
    """Set the sums of blocks `block` .. `end` - 1 to the products of images first .. last - 1.

    Parameters
    ----------
    product, copy, turn : addresses of `multiply`, `every` and `transpose`.
    a, b : (n, channels, pixels), flat.
    a_y, b_y : y, if that of the two is dy and masked to where y is not 0; else empty.
    sums : for each block, row of kernel positions and channel of a in its group, `columns` numbers, flat.
    tables : these numbers and arrays.

        - groups, and channels of a and b in each
        - pixels of a map of a
        - images that are multiplied together, and how many numbers each takes in bs
        - columns: how many numbers the vectors of a row of kernel positions have
        - where the channels of a block of b begin, and where its pixels are stored in bs
        - for each window of the images, where it begins in bs, and where it is in a
        - where the rows of kernel positions begin in bs
    masked, bs, ys : memory; the padding in bs is 0.
    """
    groups, ca, cb, a_pixels = tables[1], tables[2], tables[3], tables[4]
    images, room, columns = tables[5], tables[6], tables[7]
    rows, places, windows = array(tables, 0), array(tables, 1), array(tables, 2)
    offsets, runs = array(tables, 3), array(tables, 4)
    width, b_pixels, step = rows.size, places.size, ys.size // ROWS
    per_group, count = -(-cb // width), windows.size // images
    for n in range(first, last, images):
        many, a_in, b_in, a_n, b_n = min(images, last - n), a, b, n, n
        terms = many * count
        if a_y.size:
            size = groups * ca * a_pixels
            every(copy, a, n * size, 0, 1, a_y, masked, 0, 0, 1, 1, many * size)
            a_in, a_n = masked, 0
        if b_y.size:
            size = groups * cb * b_pixels
            every(copy, b, n * size, 0, 1, b_y, masked, 0, 0, 1, 1, many * size)
            b_in, b_n = masked, 0
        for at in range(block, end):
            g = at // per_group
            channel = g * cb + min(at % per_group * width, cb - width)
            for i in range(many):
                transpose(turn, b_in, ((b_n + i) * groups * cb + channel) * b_pixels, rows, bs, i * room, places)
            for k in range(0, terms, TERMS):
                begin, stop = k, min(k + TERMS, terms)
                for r in range(0, ca, ROWS):
                    channels, a0 = min(ROWS, ca - r), (a_n * groups * ca + g * ca + r) * a_pixels
                    for j in range(runs.size):
                        multiply(
                            product, bs, runs[j], windows[begin:stop], a_in, a0, a_pixels, offsets[begin:stop],
                            stop - begin, ys, 0, step, channels, columns,
                        )  # fmt: skip
                        for i in range(channels):
                            source, target = ys[i * step :], sums[((at * runs.size + j) * ca + r + i) * columns :]
                            if n == first and k == 0:
                                for c in range(columns):
                                    target[c] = source[c]
                            else:
                                for c in range(columns):
                                    target[c] += source[c]


@compiled
def collect(parts, tables, swapped, out, first, last):
    """Set the weight gradient of channels first .. last - 1 of a, of all groups, to the sum of the parts.

    Parameters
    ----------
    parts : (p, numbers), each as `sums` above.
    tables : as above.
    swapped : if not 0, a is x, and out is (groups, channels of x, channels of dy).
    out : flat.
    """
    ca, cb, columns, width, runs = tables[2], tables[3], tables[7], array(tables, 0).size, array(tables, 4).size
    per_group, taps = -(-cb // width), columns // width
    all_taps = 1 if swapped else runs * taps
    for channel in range(first, last):
        g, o = divmod(channel, ca)
        for block in range(per_group):
            start = (channel * cb + min(block * width, cb - width)) * all_taps
            for j in range(runs):
                at = (((g * per_group + block) * runs + j) * ca + o) * columns
                total = parts[0, at : at + columns]
                for p in range(1, parts.shape[0]):
                    for k in range(columns):
                        total[k] += parts[p, at + k]
                for q in range(taps):
                    for c in range(width):
                        out[start + c * all_taps + j * taps + q] = total[q * width + c]

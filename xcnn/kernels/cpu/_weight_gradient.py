"""The compiled passes of a weight gradient whose vectors run along channels, either of x or of dy.

The pixels of the one of the two that is called b are copied with their channels side by side. The other one, a, is read
number by number, so its channels may be anywhere: it is read where it is, unless it needs padding or a mask.

If b is x, the channels of the kernel positions of a row are adjacent, and a window has one vector of them per row. If b
is dy, there is one vector per window, and a row of the product is a channel and kernel position of x. The terms are the
windows, in both cases. Blocks are some channels of b in a group.
"""

import numpy as np

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._tables import array, cut
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["ROWS", "TERMS", "collect", "weight_gradient"]

ROWS, TERMS = 64, 1024
"""The rows and windows of a that are multiplied together: a quarter of a second-level cache."""

(
    IMAGES, A_IMAGE, B_IMAGE, PIXELS, B_MAP, COPIES, COPIED, LINES, PITCH, TO_PITCH, MAPS, APART, ROOM, PIECE, COLUMNS,
    UNITS, STEP, BLOCK, PARTS, PART,
) = range(1, 21)  # fmt: skip
"""The numbers of the tables:

- images that are multiplied together, how many numbers one has in a and b, how many windows, how many pixels a map of b
- pieces of an image of a that are copied to planes, if any; how many numbers a line of them has, how many lines there
  are, and how far they are apart, before and after
- channels of b in a block, and how far they are apart where they are read; how many numbers an image takes in bs, and
  how many pixels are laid out at once
- numbers of a row of the product, a multiple of those of a vector
- units of a group (see `collect`) and how far they are apart in the weights; how many numbers the sums of a block have;
  how many parts these have for a unit, and how far they are apart
"""

(A_AT, B_AT, PLACES, STORED, WINDOWS, OFFSETS, RUNS, FROM, TO, SOURCES, TARGETS, STARTS) = range(12)
"""The arrays of the tables:

- where each block begins in an image of a and of b
- where the channels of a block of b are, and where its pixels are stored in bs
- for each window of the images, where it begins in bs
- the same for a, then where each row of a begins
- where the rows of kernel positions begin in bs
- for each piece of the images, where it is copied from, and where to
- where the vectors of a unit are in the sums, and where their numbers belong in the weights; where a block begins there
"""


@compiled
def weight_gradient(calls, a, b, a_y, b_y, sums, tables, first, last, block, end, planes, bs, masked, ys, one):
    """Set the sums of blocks `block` .. `end` - 1 to the products of images first .. last - 1.

    Parameters
    ----------
    calls : addresses of `multiply`, `every`, `transpose` and `affine`.
    a, b : (n, channels, pixels), flat.
    a_y, b_y : y, if that of the two is dy and masked to where y is not 0; else empty.
    sums : for each block, row of kernel positions of b and row of a, COLUMNS numbers, flat.
    tables : numbers and arrays, as above.
    planes, bs, masked, ys : memory, in which the padding is 0; without planes, a is read where it is.
    one : an array of 1 and 0.
    """
    product, copy, turn, add = calls[0], calls[1], calls[2], calls[3]
    a_at, b_at, places, stored = array(tables, A_AT), array(tables, B_AT), array(tables, PLACES), array(tables, STORED)
    windows, offsets, runs = array(tables, WINDOWS), array(tables, OFFSETS), array(tables, RUNS)
    copied_from, copied_to = array(tables, FROM), array(tables, TO)
    unit, nothing = cut(one, 0, 1), cut(one, 1, 2)
    columns, rows, images = tables[COLUMNS], offsets.size - windows.size, tables[IMAGES]
    b_image, b_map, piece = tables[B_IMAGE], tables[B_MAP], tables[PIECE]
    for n in range(first, last, images):
        many = min(images, last - n)
        for at in range(block, end):
            a0, b0, a_in = n * tables[A_IMAGE] + a_at[at], n * b_image + b_at[at], a
            if planes.size:
                for k in range(many * tables[COPIES] if at == block or a_at[at] != a_at[at - 1] else 0):
                    every(
                        copy, a, a0 + copied_from[k], tables[PITCH], 1, a_y, planes, copied_to[k], tables[TO_PITCH], 1,
                        tables[LINES], tables[COPIED],
                    )  # fmt: skip
                a0, a_in = a0 - a0, planes
            for low in range(0, b_map, piece):
                laid = min(piece, b_map - low)
                for i in range(many):
                    begin, b_in = b0 + i * b_image + low, b
                    if b_y.size:
                        every(copy, b, begin, b_map, 1, b_y, masked, 0, tables[APART], 1, tables[MAPS], laid)
                        begin, b_in = begin - begin, masked
                    transpose(turn, b_in, begin, places, bs, i * tables[ROOM], cut(stored, 0, laid))
                stop = min(piece, many * tables[PIXELS] - low)
                for k in range(0, stop, TERMS):
                    before = cut(sums, 0, 0 if n == first and low + k == 0 else sums.size)
                    for r in range(0, rows, ROWS):
                        some = min(ROWS, rows - r)
                        for j in range(runs.size):
                            multiply(
                                product, bs, runs[j], cut(windows, k, windows.size), a_in, a0,
                                low + k - windows.size - r, cut(offsets, low + k, offsets.size), min(TERMS, stop - k),
                                ys, 0, columns, some, columns,
                            )  # fmt: skip
                            affine(
                                add, ys, 0, columns, unit, nothing, 0, 0, before, -np.inf, np.inf, sums,
                                ((at * runs.size + j) * rows + r) * columns, columns, some, columns,
                            )  # fmt: skip


@compiled
def collect(calls, sums, parts, tables, one, out, first, last):
    """Set the weight gradient of units first .. last - 1: a channel of dy if this is a, or else a group.

    Parameters
    ----------
    calls, tables, one : as above.
    sums : `parts` arrays, each as above.
    out : flat.
    """
    sources, targets, starts = array(tables, SOURCES), array(tables, TARGETS), array(tables, STARTS)
    unit, nothing = cut(one, 0, 1), cut(one, 1, 2)
    columns, apart, size = tables[COLUMNS], tables[PART], sums.size // parts
    for i in range(first, last):
        g, r = i // tables[UNITS], i % tables[UNITS]
        for block in range(starts.size):
            at = (g * starts.size + block) * tables[BLOCK] + r * columns
            for p in range(1, parts):
                affine(
                    calls[3], sums, p * size + at, apart, unit, nothing, 0, 0, sums, -np.inf, np.inf, sums, at,
                    apart, tables[PARTS], columns,
                )  # fmt: skip
            transpose(calls[2], sums, at, sources, out, i * tables[STEP] + starts[block], targets)

"""The compiled passes of a weight gradient whose vectors run along channels, either of x or of dy.

The pixels of the one of the two that is called b are copied with their channels side by side. The other one, a, is read
number by number, so its channels may be anywhere: it is read where it is, unless it needs padding.

If b is x, the channels of the kernel positions of a row are adjacent, and a window has one vector of them per row. If b
is dy, there is one vector per window, and a row of the product is a channel and kernel position of x. The terms are the
windows, in both cases. Blocks are some channels of b in a group.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import DOUBLE

__all__ = ["ROWS", "TERMS", "Plan", "collect", "weight_gradient"]

ROWS, TERMS = 64, 1024
"""The rows and windows of a that are multiplied together: a quarter of a second-level cache."""

(
    IMAGES, A_IMAGE, B_IMAGE, PIXELS, B_MAP, COPIES, COPIED, LINES, PITCH, TO_PITCH, ROOM, PIECE, COLUMNS, UNITS, STEP,
    BLOCK, PARTS, PART,
) = range(1, 19)  # fmt: skip
"""The numbers of the tables:

- images that are multiplied together, how many numbers one has in a and b, how many windows, how many pixels a map of b
- pieces of an image of a that are copied to planes, if any; how many numbers a line of them has, how many lines there
  are, and how far they are apart, before and after
- how many numbers an image takes in bs, and how many pixels are laid out at once
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


class Plan(NamedTuple):
    """What is counted from shapes.

    Attributes
    ----------
    function : computes the sums of a part, as `weight_gradient` does.
    tables : for `function` and `collect`.
    swapped : whether b is dy, not x.
    units : what `collect` does.
    numbers : size of the sums of a part.
    memory : name and size of what `function` needs, and whether what it never writes is 0.
    blocks, parts : blocks of channels, and the most parts into which images are divided.
    cycles : cost for one image.
    number : unique number of the layout.
    """

    function: Any
    tables: np.ndarray
    swapped: bool
    units: int
    numbers: int
    memory: tuple[tuple[str, int, bool], ...]
    blocks: int
    parts: int
    cycles: float
    number: int


class _Tables:
    """The numbers and arrays of the tables, and the addresses of other functions."""

    def __init__(self, emit: Any, calls: Any, tables: Any) -> None:
        self.emit, whole = emit, Integers(emit.builder, tables)
        self.multiply, self.every, self.transpose, self.affine = Integers(emit.builder, calls).some(0, 4)
        self.arrays = [whole.array(i) for i in range(STARTS + 1)]
        self.numbers = whole.some(0, PART + 1)

    def add(self, before: Any, sums: Any, at: Any, apart: Any, rows: Any, *source: Any) -> None:
        """Set rows of sums to those before, if any, plus others, whose array, place and distance are given."""
        nothing, limits = ir.Constant(sums.type, None), (DOUBLE(-math.inf), DOUBLE(math.inf))
        affine.write(
            self.emit, self.affine, *source, nothing, nothing, 0, 0, before, *limits, sums, at, apart, rows,
            self.numbers[COLUMNS],
        )  # fmt: skip


@native("ixxxinnnnXxx")
def weight_gradient(emit, calls, a, b, sums, tables, first, last, block, end, planes, bs, ys):
    """Set the sums of blocks `block` .. `end` - 1 to the products of images first .. last - 1.

    Parameters
    ----------
    calls : addresses of `multiply`, `every`, `transpose` and `affine`.
    a, b : (n, channels, pixels), flat.
    sums : for each block, row of kernel positions of b and row of a, COLUMNS numbers, flat.
    tables : numbers and arrays, as above.
    planes, bs, ys : memory, in which the padding is 0; if planes is None, a is read where it is.
    """
    builder, zero, code = emit.builder, Integer(emit.builder, 0), _Tables(emit, calls, tables)
    first, last, block, end = (Integer(builder, value) for value in (first, last, block, end))
    number = code.numbers
    a_at, b_at, places, stored, windows, offsets, runs, from_, to, *_ = code.arrays
    rows, width = offsets.size - windows.size, number[COLUMNS]
    laid_out = emit.exists(planes)
    a_in = builder.select(laid_out, planes, a)
    with first.up_to(last, number[IMAGES]) as n, block.up_to(end) as at:
        many, begin = number[IMAGES].least(last - n), a_at[at]
        a0, b0 = n * number[A_IMAGE] + begin, n * number[B_IMAGE] + b_at[at]
        other = builder.or_(at.holds("==", block), begin.holds("!=", a_at[at - 1]))
        copies = (many * number[COPIES]).if_(builder.and_(laid_out, other), 0)
        with zero.up_to(copies) as k:
            every.write(
                emit, code.every, a, a0 + from_[k], number[PITCH], 1, planes, to[k], number[TO_PITCH], 1,
                number[LINES], number[COPIED],
            )  # fmt: skip
        with zero.up_to(number[B_MAP], number[PIECE]) as low:
            laid = number[PIECE].least(number[B_MAP] - low)
            with zero.up_to(many) as i:
                transpose.write(
                    emit, code.transpose, b, b0 + i * number[B_IMAGE] + low, places.pointer, places.size, bs,
                    i * number[ROOM], stored.pointer, laid, 0, 0,
                )  # fmt: skip
            stop = number[PIECE].least(many * number[PIXELS] - low)
            with zero.up_to(stop, TERMS) as k, zero.up_to(rows, ROWS) as r, zero.up_to(runs.size) as j:
                some, terms = (rows - r).least(ROWS), (stop - k).least(TERMS)
                multiply.write(
                    emit, code.multiply, bs, runs[j], k.of(windows.pointer), a_in, zero.if_(laid_out, a0),
                    low + k - windows.size - r, (low + k).of(offsets.pointer), terms, ys, 0, width, some, width,
                )  # fmt: skip
                fresh = builder.and_(n.holds("==", first), (low + k).holds("==", 0))
                before = builder.select(fresh, ir.Constant(sums.type, None), sums)
                target = ((at * runs.size + j) * rows + r) * width
                code.add(before, sums, target, width, some, ys, 0, width)


@native("ixnnixnn")
def collect(emit, calls, sums, size, parts, tables, out, first, last):
    """Set the weight gradient of units first .. last - 1: a channel of dy if this is a, or else a group.

    Parameters
    ----------
    calls, tables : as above.
    sums : `parts` arrays of `size` numbers, each as above.
    out : flat.
    """
    builder, zero, code = emit.builder, Integer(emit.builder, 0), _Tables(emit, calls, tables)
    number, (starts, sources, targets) = code.numbers, [code.arrays[i] for i in (STARTS, SOURCES, TARGETS)]
    with Integer(builder, first).up_to(last) as i, zero.up_to(starts.size) as block:
        g = i // number[UNITS]
        row = (i - g * number[UNITS]) * number[COLUMNS]
        at = (g * starts.size + block) * number[BLOCK] + row
        with Integer(builder, 1).up_to(parts) as p:
            apart = number[PART]
            code.add(sums, sums, at, apart, number[PARTS], sums, p * size + at, apart)
        transpose.write(
            emit, code.transpose, sums, at, sources.pointer, sources.size, out, i * number[STEP] + starts[block],
            targets.pointer, targets.size, 0, 0,
        )  # fmt: skip

"""The compiled passes of a weight gradient whose vectors run along channels, either of x or of dy.

The pixels of the one of the two that is called b are copied with their channels side by side. The other one, a, is read
number by number, so its channels may be anywhere: it is read where it is, unless it needs padding or a mask.

If b is x, the channels of the kernel positions of a row are adjacent, and a window has one vector of them per row. If b
is dy, there is one vector per window, and a row of the product is a channel and kernel position of x. The terms are the
windows, in both cases. Blocks are some channels of b in a group.
"""

import math
from typing import Any

from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._tables import view
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import DOUBLE, INT

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


class _Code:
    """Writes code that reads the tables and calls other functions; `floats` is the type of arrays of numbers."""

    def __init__(self, context: Any, builder: Any, calls: Any, tables: Any, floats: Any) -> None:
        self.context, self.builder, self.calls, self.floats = context, builder, calls, floats
        self.zero, self.integers = Integer(builder, 0), types.intp[::1]
        self.arrays = [view(context, builder, self.integers, tables, INT(i)) for i in range(STARTS + 1)]
        self.numbers = [self.entry(tables, i) for i in range(PART + 1)]

    def entry(self, array: Any, i: Any) -> Integer:
        """Return a number of an array of integers."""
        data = self.context.make_array(self.integers)(self.context, self.builder, array).data
        return Integer(self.builder, self.builder.load(self.builder.gep(data, [(self.zero + i).value])))

    def size(self, array: Any) -> Integer:
        return Integer(self.builder, self.builder.extract_value(array, 2))

    def either(self, condition: Any, one: Any, other: Any) -> Integer:
        first: Integer = self.zero + one
        return first.joined(lambda a, b: self.builder.select(condition, a, b), other)

    def cut(self, kind: Any, array: Any, begin: Any, end: Any) -> Any:
        """Return array[begin:end], without looking at the bounds."""
        first, last = ((self.zero + bound).value for bound in (begin, end))
        make, size = self.context.make_array(kind), INT(kind.dtype.bitwidth // 8)
        data, found = make(self.context, self.builder, array).data, make(self.context, self.builder)
        count = self.builder.sub(last, first)
        populate_array(found, self.builder.gep(data, [first]), [count], [size], size, None)
        return found._getvalue()

    def call(self, place: int, function: Any, *values: Any) -> None:
        given = [(self.zero + value).value if isinstance(value, int | Integer) else value for value in values]
        function.write(self.context, self.builder, self.floats.dtype, self.entry(self.calls, place).value, *given)

    def add(self, one: Any, before: Any, sums: Any, at: Any, apart: Any, rows: Any, *source: Any) -> None:
        """Set rows of sums to those before plus others, whose array, place and distance are given."""
        unit, nothing = (self.cut(self.floats, one, i, i + 1) for i in (0, 1))
        limits = DOUBLE(-math.inf), DOUBLE(math.inf)
        columns = self.numbers[COLUMNS]
        self.call(3, affine, *source, unit, nothing, 0, 0, before, *limits, sums, at, apart, rows, columns)


@intrinsic
def _weight_gradient(
    _: Any, calls: Any, a: Any, b: Any, a_y: Any, b_y: Any, sums: Any, tables: Any, first: Any, last: Any, block: Any,
    end: Any, planes: Any, bs: Any, masked: Any, ys: Any, one: Any,
) -> Any:  # fmt: skip
    """Do what `weight_gradient` does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        calls_, a_, b_, a_y_, b_y_, sums_, tables_, *range_, planes_, bs_, masked_, ys_, one_ = arguments
        code = _Code(context, builder, calls_, tables_, a)
        first_, last_, block_, end_ = (Integer(builder, value) for value in range_)
        number, zero, either = code.numbers, code.zero, code.either
        a_at, b_at, places, stored, windows, offsets, runs, from_, to, *_ = code.arrays
        rows, width = code.size(offsets) - code.size(windows), number[COLUMNS]
        laid_out, is_masked = code.size(planes_).holds(">", 0), code.size(b_y_).holds(">", 0)
        a_in, b_in = builder.select(laid_out, planes_, a_), builder.select(is_masked, masked_, b_)
        with first_.up_to(last_, number[IMAGES]) as n, block_.up_to(end_) as at:
            many, begin = number[IMAGES].least(last_ - n), code.entry(a_at, at)
            a0, b0 = n * number[A_IMAGE] + begin, n * number[B_IMAGE] + code.entry(b_at, at)
            other = builder.or_(at.holds("==", block_), begin.holds("!=", code.entry(a_at, at - 1)))
            copies = either(builder.and_(laid_out, other), many * number[COPIES], 0)
            with zero.up_to(copies) as k:
                code.call(
                    1, every, a_, a0 + code.entry(from_, k), number[PITCH], 1, a_y_, planes_, code.entry(to, k),
                    number[TO_PITCH], 1, number[LINES], number[COPIED],
                )  # fmt: skip
            with zero.up_to(number[B_MAP], number[PIECE]) as low:
                laid = number[PIECE].least(number[B_MAP] - low)
                with zero.up_to(many) as i:
                    begin = b0 + i * number[B_IMAGE] + low
                    with builder.if_then(is_masked):
                        code.call(
                            1, every, b_, begin, number[B_MAP], 1, b_y_, masked_, 0, number[APART], 1, number[MAPS],
                            laid,
                        )  # fmt: skip
                    code.call(
                        2, transpose, b_in, either(is_masked, 0, begin), places, bs_, i * number[ROOM],
                        code.cut(tables, stored, 0, laid),
                    )  # fmt: skip
                stop = number[PIECE].least(many * number[PIXELS] - low)
                with zero.up_to(stop, TERMS) as k, zero.up_to(rows, ROWS) as r, zero.up_to(code.size(runs)) as j:
                    some, terms = (rows - r).least(ROWS), (stop - k).least(TERMS)
                    code.call(
                        0, multiply, bs_, code.entry(runs, j), code.cut(tables, windows, k, k + terms), a_in,
                        either(laid_out, 0, a0), low + k - code.size(windows) - r,
                        code.cut(tables, offsets, low + k, code.size(offsets)), terms, ys_, 0, width, some, width,
                    )  # fmt: skip
                    fresh = builder.and_(n.holds("==", first_), (low + k).holds("==", 0))
                    before = code.cut(a, sums_, 0, either(fresh, 0, code.size(sums_)))
                    target = ((at * code.size(runs) + j) * rows + r) * width
                    code.add(one_, before, sums_, target, width, some, ys_, 0, width)
        return context.get_dummy_value()

    n = types.intp
    return types.void(calls, a, b, a_y, b_y, sums, tables, n, n, n, n, planes, bs, masked, ys, one), generate


@intrinsic
def _collect(_: Any, calls: Any, sums: Any, parts: Any, tables: Any, one: Any, out: Any, first: Any, last: Any) -> Any:
    """Do what `collect` does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        calls_, sums_, parts_, tables_, one_, out_, first_, last_ = arguments
        code = _Code(context, builder, calls_, tables_, sums)
        number, starts = code.numbers, code.arrays[STARTS]
        size = code.size(sums_) // Integer(builder, parts_)
        with Integer(builder, first_).up_to(Integer(builder, last_)) as i, code.zero.up_to(code.size(starts)) as block:
            g = i // number[UNITS]
            row = (i - g * number[UNITS]) * number[COLUMNS]
            at = (g * code.size(starts) + block) * number[BLOCK] + row
            with (code.zero + 1).up_to(Integer(builder, parts_)) as p:
                apart = number[PART]
                code.add(one_, sums_, sums_, at, apart, number[PARTS], sums_, p * size + at, apart)
            code.call(
                2, transpose, sums_, at, code.arrays[SOURCES], out_, i * number[STEP] + code.entry(starts, block),
                code.arrays[TARGETS],
            )  # fmt: skip
        return context.get_dummy_value()

    n = types.intp
    return types.void(calls, sums, n, tables, one, out, n, n), generate


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
    _weight_gradient(calls, a, b, a_y, b_y, sums, tables, first, last, block, end, planes, bs, masked, ys, one)


@compiled
def collect(calls, sums, parts, tables, one, out, first, last):
    """Set the weight gradient of units first .. last - 1: a channel of dy if this is a, or else a group.

    Parameters
    ----------
    calls, tables, one : as above.
    sums : `parts` arrays, each as above.
    out : flat.
    """
    _collect(calls, sums, parts, tables, one, out, first, last)

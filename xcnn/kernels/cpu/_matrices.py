"""Products of matrices, in blocks that stay in the cache.

    c = a @ b    a (m, k), b (k, n), c (m, n)

The numbers of a are read where they are, whatever its strides. Those of b are read as vectors: some of its columns at a
time are first copied, or transposed, to panels as wide as a strip, so that neither edges nor strides matter. The
products of a few rows with a panel go to a tile in the nearest cache, and from there to c. With few rows of a, b is
read only once, where it lies.

What to multiply is in a table of products, which depends on shapes alone and numbers the arrays. Indices count
elements; bounds are not checked.
"""

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import address, native
from xcnn.kernels.cpu._product import STRIP, multiply
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES, DOUBLE, INT
from xcnn.threads import parallel, parts

__all__ = ["Product", "Products", "multiplied", "table"]

_FLOPS_PER_MICROSECOND, _NUMBERS_PER_MICROSECOND = 160_000, 14_000
"""Speed of a thread: of its arithmetic, and of what it reads and writes."""

_TERMS = 256
"""Products that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""

_ROWS, _MANY_ROWS = 8, 64
"""Rows of a tile, and those that are multiplied at once if none is needed."""

_ROOM = 524288
"""Bytes of the panels that are packed at once."""

_AHEAD = 16
"""Rows of b that are read ahead while one is copied: they are far apart, so that processors do not foresee them."""

_FEW, _SOME = 8, 32
"""With at most this many rows of a, transposing b, or copying it, would take longer than multiplying it."""

_JOINT = 4 if BYTES == 64 else 2
"""Rows of a whose sums over columns of b are computed at once, with as many columns."""

_LEAST_ROWS = 256
"""Rows of a part: each part packs b."""

_PACKED, _DIRECT, _DOTS = range(3)
"""How b is read: from panels; where its rows lie; or, if its columns are adjacent, as sums over each of them."""


class _Writer:
    """Writes the code of a product; `index` is the memory of this thread, see `_Rooms`, and `row` that of a table."""

    def __init__(self, emit: Any, index: Integers, row: Integers) -> None:
        self.emit, self.builder, numbers = emit, emit.builder, row.some(0, _COLUMNS)
        self.a0, self.b0, self.c0, self.a_row, self.a_column, self.b_row, self.b_column, self.c_row = numbers[3:11]
        self.m, self.n, self.k, self.first, self.way, self.width, self.most, self.together = numbers[11:]
        self.a, self.b, self.c = (self.pointer(index[which]) for which in numbers[:3])
        self.multiply, self.transpose, offsets, shifts, lines, tile, panels, self.room = index.some(7, 8)
        self.offsets, self.shifts, self.lines = (
            self.builder.inttoptr(place.value, INT.as_pointer()) for place in (offsets, shifts, lines)
        )
        self.tile, self.panels = self.pointer(tile), self.pointer(panels)
        self.zero, self.tiled = Integer(self.builder, 0), self.together.holds("==", _ROWS)
        self.direct, self.dots, self.packed = (self.way.holds("==", way) for way in (_DIRECT, _DOTS, _PACKED))

    def pointer(self, place: Any) -> Any:
        """Return a pointer to the numbers at an address."""
        return self.builder.inttoptr(Integer(self.builder, place).value, self.emit.vector.element.as_pointer())

    def start(self, j: Integer) -> Integer:
        """Return the first column of the panel with column j: the last one, too, is as wide as the others."""
        return j.least(self.n - self.width).most(0)

    def write(self, after: Sequence[Any]) -> None:
        """Write all loops; what follows the product is given as in `_products`."""
        emit, builder, zero, n = self.emit, self.builder, self.zero, self.n
        step = self.b_row.if_(self.direct, self.width)
        with zero.up_to(self.k.least(_TERMS).most(self.width)) as i:
            builder.store((i * self.a_column).value, i.of(self.offsets))
            builder.store((i * step).value, i.of(self.shifts))
            builder.store((i.least(n - 1) * self.b_column).value, i.of(self.lines))
        with zero.up_to(self.k, self.most) as term:
            count = self.most.least(self.k - term)
            many = ((self.room // (count * self.width)).most(1) * self.width).if_(self.packed, n)
            with zero.up_to(n, many) as left:
                right = (left + many).least(n)
                with builder.if_then(self.packed):
                    self.pack(term, count, left, right)
                with zero.up_to(self.m, self.together) as r, left.up_to(right, self.width) as j:
                    rows, a0 = (self.m - r).least(self.together), self.a0 + r * self.a_row + term * self.a_column
                    c0 = self.c0 + r * self.c_row
                    with builder.if_else(self.dots) as (as_dots, as_vectors):
                        with as_dots:
                            self.sum_columns(a0, rows, self.b0 + term, self.start(j), count)
                        with as_vectors:
                            source = builder.select(self.direct, self.b, self.panels)
                            at = self.b0 + term * self.b_row + self.start(j)
                            multiply.write(
                                emit, self.multiply, source, at.if_(self.direct, (j - left) * count), self.shifts,
                                self.a, a0, self.a_row, self.offsets, count,
                                builder.select(self.tiled, self.tile, self.c),
                                zero.if_(self.tiled, c0 + self.start(j)), self.width.if_(self.tiled, self.c_row), rows,
                                self.width.least(n),
                            )  # fmt: skip
                    with builder.if_then(self.tiled), zero.up_to(rows) as p:
                        begin, length = p * self.width + j - self.start(j), self.width.least(right - j)
                        self.finish(begin, c0 + p * self.c_row + j, self.first + j, length, term, count, after)

    def pack(self, term: Integer, count: Integer, left: Integer, right: Integer) -> None:
        """Copy `count` rows of some columns of b to panels, one row after another, or transpose them."""
        builder, emit, one = self.builder, self.emit, self.b_column.holds("==", 1)
        with self.zero.up_to(count.if_(one, 1)) as p, left.up_to(right, self.width) as j:
            at = self.start(j) * self.b_column + self.b0 + (term + p) * self.b_row
            to, later = (j - left) * count + p * self.width, (at + self.b_row * _AHEAD).of(self.b)
            source, target = at.of(self.b), to.of(self.panels)

            def copy(places: Any, mask: Any, _: Any) -> list[Any]:
                emit.prefetch(builder.gep(later, places))
                emit.write(emit.read(source, places[0], mask), target, places[0], mask)
                return []

            with builder.if_else(one) as (then, otherwise):
                with then:
                    emit.span(INT(0), self.width.least(self.n).value, [], copy)
                with otherwise:
                    transpose.write(
                        emit, self.transpose, self.b, at, self.lines, self.width, self.panels, to, self.shifts, count,
                        0, 0,
                    )  # fmt: skip

    def sum_columns(self, a0: Integer, rows: Integer, b0: Integer, start: Integer, count: Integer) -> None:
        """Set the tile to products of rows of a and columns of b, each of `count` adjacent numbers."""
        emit, lanes, alone = self.emit, self.emit.lanes, rows.holds("==", 1)
        with self.zero.up_to(self.width.least(self.n - start), lanes) as q:
            last = self.n - start - q - 1
            columns = [(start + q + Integer(self.builder, i).least(last)) * self.b_column + b0 for i in range(lanes)]
            lines = [place.of(self.b) for place in columns]
            for size, end in ((1, rows.if_(alone, 0)), (_JOINT, self.zero.if_(alone, rows))):
                with self.zero.up_to(end, size) as p:
                    numbers = [(p + i).least(rows - 1) for i in range(size)]
                    begins = [(a0 + number * self.a_row).of(self.a) for number in numbers]
                    for number, total in zip(numbers, self.dot(begins, lines, count), strict=True):
                        emit.store(total, (number * self.width + q).of(self.tile))

    def dot(self, rows: list[Any], columns: list[Any], count: Integer) -> list[Any]:
        """Return a vector for each row: its products with as many columns as a vector has numbers."""
        emit, builder, found, few = self.emit, self.builder, list[list[Any]](), 8 if len(rows) == 1 else _JOINT

        def some(lines: Any, places: Any, mask: Any, sums: Any) -> list[Any]:
            factors, totals = [emit.read(row, places[0], mask) for row in rows], iter(sums)
            vectors = (emit.read(line, places[0], mask) for line in lines)
            return [emit.fused(factor, vector, next(totals)) for vector in vectors for factor in factors]

        for k in range(0, emit.lanes, few):  # those a power of two apart have few places in a cache
            lines = columns[k : k + few]
            zeros = [ir.Constant(emit.vector, None)] * (len(lines) * len(rows))
            found.append(emit.span(INT(0), count.value, zeros, functools.partial(some, lines)))
        vectors = []
        for i in range(len(rows)):
            sums, half = [total for some in found for total in some[i :: len(rows)]], emit.lanes
            while half > 1:  # each time, half of the sums of a vector go to another one
                half //= 2
                lanes = [lane if not lane & half else emit.lanes + lane - half for lane in range(emit.lanes)]
                pairs = [(emit.shuffle(a, b, lanes), emit.shuffle(a, b, [lane + half for lane in lanes]))
                         for a, b in zip(sums[:half], sums[half:], strict=True)]  # fmt: skip
                sums = [builder.fadd(*pair) for pair in pairs]
            vectors += sums
        return vectors

    def finish(
        self, begin: Integer, at: Integer, column: Integer, length: Integer, term: Integer, count: Integer,
        after: Sequence[Any],
    ) -> None:  # fmt: skip
        """Move a row from the tile to c, or add it unless it has the first terms; what follows comes with the last."""
        builder, emit, (scale, shift, residual, *bounds) = self.builder, self.emit, after
        operands, last = [], (term + count).holds("==", self.k)
        for operation, place, number, neutral, exists in (
            (builder.fadd, self.c, at, 0.0, term.holds(">", 0)), (builder.fmul, scale, column, 1.0, last),
            (builder.fadd, shift, column, 0.0, last), (builder.fadd, residual, at, 0.0, last),
        ):  # fmt: skip
            operand, step = emit.or_else(builder.and_(exists, emit.exists(place)), number.of(place), neutral)
            operands.append((operation, operand, step))
        ends = [builder.select(last, bound, DOUBLE(end)) for bound, end in zip(bounds, _UNLIMITED, strict=True)]
        limits = emit.limits(*ends)
        source, target = begin.of(self.tile), at.of(self.c)

        def some(places: Any, mask: Any, _: Any) -> list[Any]:
            value = emit.read(source, places[0], mask)
            for operation, operand, step in operands:
                value = operation(value, emit.read(operand, builder.mul(places[0], step), mask))
            emit.write(emit.clipped(value, limits), target, places[0], mask)
            return []

        emit.span(INT(0), length.value, [], some)


@native("iinnXXXXXXXXXff")
def _products(
    emit, index, table, begin, end, x, weight, y, dx, dweight, dbias, scale, shift, residual, low, high
):  # fmt: skip
    """Compute rows begin .. end - 1 of a table of products.

    Parameters
    ----------
    index : the memory of this thread, see `_Rooms`.
    x, weight, y, dx, dweight, dbias : the arrays that the table numbers.
    scale, shift, residual, low, high : what follows, see `multiplied`.
    """
    builder, after = emit.builder, (scale, shift, residual, low, high)
    for i, array in enumerate((x, weight, y, dx, dweight, dbias)):
        builder.store(builder.ptrtoint(array, INT), Integer(builder, i).of(index))
    with Integer(builder, begin).up_to(end) as row:
        _Writer(emit, Integers(builder, index), Integers(builder, (row * _COLUMNS).of(table))).write(after)


class Product(NamedTuple):
    """A product c = a @ b of sizes (m, n, k): which arrays a and b are, and the steps of their rows and columns.

    One of the steps of b is 1. If it is `bare`, nothing follows.
    """

    a: tuple[int, int, int]
    b: tuple[int, int, int]
    c: int
    m: int
    n: int
    k: int
    bare: bool = True


class Products(NamedTuple):
    """The table of some products, and the first and last rows of each part."""

    table: np.ndarray
    bounds: tuple[tuple[int, int], ...]


def _panel(n: int, lanes: int) -> int:
    """Return how wide panels of n columns are computed fastest: four rows take 2 cycles per vector, a single one 3.

    All panels are equally wide, so that the last one may compute columns of the one before again.
    """
    costs = [(-(-n // (v * lanes)) * (2 * v + (v == 1)), -v * lanes) for v in range(1, STRIP + 1)]
    return -min(costs)[1]


def table(itemsize: int, *products: Product, starts: Sequence[tuple[int, int, int]] = ()) -> Products:
    """Lay out products of contiguous arrays; with `starts`, the only one is repeated for matrices that begin there."""
    rows, lanes, time = [], BYTES // itemsize, 0.0
    for (a, a_row, a_column), (b, b_row, b_column), c, m, n, k, bare in products:
        way, most, width = _PACKED, _TERMS, STRIP * lanes
        if m <= _FEW and b_row == a_column == 1:
            way, most, width = _DOTS, BLOCK if m == 1 else 4 * _TERMS, lanes
        elif m <= _SOME and b_column == 1 and n >= lanes:
            way, width = _DIRECT, n
        together = _MANY_ROWS if bare and k <= most and n >= lanes and way != _DOTS else _ROWS
        microseconds = 2 * m * n * k / _FLOPS_PER_MICROSECOND + (m * k + k * n + m * n) / _NUMBERS_PER_MICROSECOND
        time += microseconds * max(1, len(starts))
        by_rows, unit = m // _LEAST_ROWS >= n // (3 * lanes), 3 * lanes
        count = 1 if starts else parts(max(m // _LEAST_ROWS, n // unit), microseconds)
        ends = [m * i // count if by_rows else min(n, -(-n // unit) * i // count * unit) for i in range(count + 1)]
        for first, end in itertools.pairwise(ends):
            at = (first * a_row, 0, first * n) if by_rows else (0, first * b_column, first)
            some = (end - first, n, k, 0) if by_rows else (m, end - first, k, first)
            last = way, min(width, _panel(some[1], lanes)), most, together
            rows.append((a, b, c, *at, a_row, a_column, b_row, b_column, n, *some, *last))
    count = parts(len(starts or rows), time)
    if starts:
        rows = [(*rows[0][:3], *start, *rows[0][6:]) for start in starts]
    elif count > 1:
        count = len(rows)
    ends = [len(rows) * i // count for i in range(count + 1)]
    return Products(np.array(rows, np.int64), tuple(itertools.pairwise(ends)))


_ONE = {dtype.itemsize: np.ones(1, dtype) for dtype in map(np.dtype, ("float32", "float64"))}
_INDEX, _COLUMNS, _UNLIMITED = np.dtype(np.int64), 19, (-math.inf, math.inf)


class _Rooms(threading.local):
    """The memory of a thread for products, by the size of a number."""

    def __init__(self) -> None:
        self.rooms: dict[int, tuple[np.ndarray, ...]] = {}

    def get(self, itemsize: int) -> np.ndarray:
        """Return places: of six arrays, a one, two functions, and those that are kept with them; size of the last."""
        if itemsize not in self.rooms:
            dtype, sizes = _ONE[itemsize].dtype, (("at", _TERMS), ("to", _TERMS), ("row", _TERMS))
            rooms = [scratch(0, name, size, _INDEX) for name, size in sizes]
            rooms += [scratch(0, "tile", _ROWS * STRIP * BYTES // itemsize, dtype)]
            rooms += [scratch(0, "panels", _ROOM // itemsize, dtype)]
            index = np.empty(15, np.int64)
            index[:7] = address(_ONE[itemsize])
            index[7:9] = [function.address(itemsize) for function in (multiply, transpose)]
            index[9:] = [*map(address, rooms), rooms[-1].size]
            self.rooms[itemsize] = index, *rooms
        return self.rooms[itemsize][0]


_ROOMS = _Rooms()


def multiplied(
    products: Products, itemsize: int, arrays: Sequence[np.ndarray | None],
    after: Sequence[np.ndarray | None] = (None, None, None), interval: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """Compute products of arrays in C order, and apply what follows; return NotImplemented for arrays in another order.

    Parameters
    ----------
    arrays : those that the table numbers; None for those that it does not.
    after : a scale and a shift of each column of the result, and a residual of its shape; or None.
    interval : the least and the largest number of the result; NaN stays. None is the same as infinite ends.
    """
    numbers, bounds = products
    arguments = *arrays, *after, *(interval or _UNLIMITED)
    run = _products(itemsize)
    if len(bounds) == 1:
        return run(_ROOMS.get(itemsize), numbers, *bounds[0], *arguments)
    results: list[Any] = []
    parallel(lambda i: results.append(run(_ROOMS.get(itemsize), numbers, *bounds[i], *arguments)), len(bounds))
    return results[0]

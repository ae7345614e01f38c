"""Products of matrices, in blocks that stay in the cache.

    c = a @ b    a (m, k), b (k, n), c (m, n)

The numbers of a are read where they are, whatever its strides. Those of b are read as vectors: some of its columns at a
time are first copied, or transposed, to panels as wide as a strip, so that neither edges nor strides matter. The
products of a few rows with a panel go to a tile in the nearest cache, and from there to c. With few rows of a, b is
read only once, where it lies.

What to multiply is in a table of products, which depends on shapes alone. Arrays are given by their addresses, so that
read-only ones need no code of their own. Indices count elements; bounds are not checked.
"""

import functools
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._native import address
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._simd import BYTES, STRIP, Emitter
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import DOUBLE, INT
from xcnn.threads import parallel, parts

__all__ = ["Product", "Products", "multiplied", "plain", "table"]

_FLOPS_PER_MICROSECOND, _NUMBERS_PER_MICROSECOND = 160_000, 4000
"""Speed of a thread: of its arithmetic, and of what it reads and writes."""

_TERMS = 256
"""Products that are added one after another; longer sums are sums of such sums (see `_sums.py`)."""

_ROWS, _MANY_ROWS = 8, 64
"""Rows of a tile, and those that are multiplied at once if none is needed."""

_ROOM = 524288
"""Bytes of the panels that are packed at once."""

_AHEAD = 16
"""Rows of b that are read ahead while one is copied: they are far apart, so that processors do not foresee them."""

_FEW, _SOME = 4, 32
"""With at most this many rows of a, transposing b, or copying it, would take longer than multiplying it."""

_LEAST_ROWS = 256
"""Rows of a part: each part packs b."""

_PACKED, _DIRECT, _DOTS = range(3)
"""How b is read: from panels; where its rows lie; or, if its columns are adjacent, as sums over each of them."""


class _Writer:
    """Writes the code of a product; `index` is the memory of this thread, see `_Rooms`, and `row` that of a table."""

    def __init__(self, context: Any, builder: Any, like: Any, index: Any, row: Any) -> None:
        self.context, self.builder, self.like, self.emit = context, builder, like, Emitter(context, builder, like)
        numbers = [Integer(builder, builder.load(builder.gep(row, [INT(i)]))) for i in range(_COLUMNS)]
        self.a0, self.b0, self.c0, self.a_row, self.a_column, self.b_row, self.b_column, self.c_row = numbers[3:11]
        self.m, self.n, self.k, self.first, self.way, self.width, self.most, self.together = numbers[11:]
        self.a, self.b, self.c = (builder.load(builder.gep(index, [which.value])) for which in numbers[:3])
        rest = [builder.load(builder.gep(index, [INT(i)])) for i in range(7, 15)]
        self.multiply, self.transpose, self.offsets, self.shifts, self.lines, self.tile, self.panels, room = rest
        self.room, self.zero, self.tiled = Integer(builder, room), Integer(builder, 0), self.together.holds("==", _ROWS)
        self.direct, self.dots, self.packed = (self.way.holds("==", way) for way in (_DIRECT, _DOTS, _PACKED))

    def view(self, place: Any, size: Any = 0, integers: bool = False) -> Any:
        """Return the array of `size` numbers at an address."""
        kind = types.intp[::1] if integers else self.like
        array = self.context.make_array(kind)(self.context, self.builder)
        itemsize, data = INT(8 if integers else self.emit.itemsize), self.builder.inttoptr(place, array.data.type)
        populate_array(array, data, [(self.zero + size).value], [itemsize], itemsize, None)
        return array._getvalue()

    def pointer(self, place: Any, at: Integer) -> Any:
        """Return a pointer to number `at` behind an address."""
        start = self.builder.inttoptr(place, self.emit.vector.element.as_pointer())
        return self.builder.gep(start, [at.value])

    def call(self, function: Any, place: Any, *values: Any) -> None:
        """Call a function at an address."""
        given = [(self.zero + value).value if isinstance(value, int | Integer) else value for value in values]
        function.write(self.context, self.builder, self.like.dtype, place, *given)

    def either(self, condition: Any, one: Integer, other: Any) -> Integer:
        return one.joined(lambda a, b: self.builder.select(condition, a, b), other)

    def start(self, j: Integer) -> Integer:
        """Return the first column of the panel with column j: the last one, too, is as wide as the others."""
        return j.least(self.n - self.width).most(0)

    def write(self, after: Sequence[Any]) -> None:
        """Write all loops; what follows the product is given as in `_products`."""
        builder, zero, n = self.builder, self.zero, self.n
        tables = [builder.inttoptr(place, INT.as_pointer()) for place in (self.offsets, self.shifts, self.lines)]
        step = self.either(self.direct, self.b_row, self.width)
        with zero.up_to(self.k.least(_TERMS).most(self.width)) as i:
            for place, number in zip(
                tables, (i * self.a_column, i * step, i.least(n - 1) * self.b_column), strict=True
            ):
                builder.store(number.value, builder.gep(place, [i.value]))
        with zero.up_to(self.k, self.most) as term:
            count = self.most.least(self.k - term)
            many = self.either(self.packed, (self.room // (count * self.width)).most(1) * self.width, n)
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
                            shifts, offsets = (self.view(place, 0, True) for place in (self.shifts, self.offsets))
                            self.call(
                                multiply, self.multiply, self.view(source),
                                self.either(self.direct, at, (j - left) * count), shifts, self.view(self.a), a0,
                                self.a_row, offsets, count, self.view(builder.select(self.tiled, self.tile, self.c)),
                                self.either(self.tiled, zero, c0 + self.start(j)),
                                self.either(self.tiled, self.width, self.c_row), rows, self.width.least(n),
                            )  # fmt: skip
                    with builder.if_then(self.tiled), zero.up_to(rows) as p:
                        begin, length = p * self.width + j - self.start(j), self.width.least(right - j)
                        self.finish(begin, c0 + p * self.c_row + j, self.first + j, length, term, count, after)

    def pack(self, term: Integer, count: Integer, left: Integer, right: Integer) -> None:
        """Copy `count` rows of some columns of b to panels, one row after another, or transpose them."""
        builder, emit, one = self.builder, self.emit, self.b_column.holds("==", 1)
        with self.zero.up_to(self.either(one, count, 1)) as p, left.up_to(right, self.width) as j:
            at = self.start(j) * self.b_column + self.b0 + (term + p) * self.b_row
            to, later = (j - left) * count + p * self.width, self.pointer(self.b, at + self.b_row * _AHEAD)
            source, target = self.pointer(self.b, at), self.pointer(self.panels, to)

            def copy(places: Any, mask: Any, _: Any) -> list[Any]:
                emit.prefetch(builder.gep(later, places))
                emit.write(emit.read(source, places[0], mask), target, places[0], mask)
                return []

            with builder.if_else(one) as (then, otherwise):
                with then:
                    emit.span(INT(0), self.width.least(self.n).value, [], copy)
                with otherwise:
                    b, panels = self.view(self.b), self.view(self.panels)
                    lines, steps = self.view(self.lines, self.width, True), self.view(self.shifts, count, True)
                    self.call(transpose, self.transpose, b, at, lines, panels, to, steps)

    def sum_columns(self, a0: Integer, rows: Integer, b0: Integer, start: Integer, count: Integer) -> None:
        """Set the tile to products of rows of a and columns of b, each of `count` adjacent numbers."""
        builder, emit, half = self.builder, self.emit, self.emit.lanes
        with self.zero.up_to(self.width.least(self.n - start), half) as q, self.zero.up_to(rows) as p:
            row, last = self.pointer(self.a, a0 + p * self.a_row), self.n - start - q - 1
            columns = [(start + q + Integer(builder, i).least(last)) * self.b_column + b0 for i in range(half)]
            lines, sums = [self.pointer(self.b, place) for place in columns], list[Any]()

            def some(lines: Any, places: Any, mask: Any, sums: Any) -> list[Any]:
                factor = emit.read(row, places[0], mask)
                return [emit.fused(factor, emit.read(b, places[0], mask), s) for b, s in zip(lines, sums, strict=True)]

            while len(sums) < half:  # few at once: those a power of two apart have few places in a cache
                few = lines[len(sums) : len(sums) + 8]
                zeros = [ir.Constant(emit.vector, None)] * len(few)
                sums += emit.span(INT(0), count.value, zeros, functools.partial(some, few))
            while half > 1:  # each time, half of the sums of a vector go to another one
                half //= 2
                lanes = [lane if not lane & half else emit.lanes + lane - half for lane in range(emit.lanes)]
                pairs = [(emit.shuffle(a, b, lanes), emit.shuffle(a, b, [lane + half for lane in lanes]))
                         for a, b in zip(sums[:half], sums[half:], strict=True)]  # fmt: skip
                sums = [builder.fadd(*pair) for pair in pairs]
            emit.write(sums[0], self.pointer(self.tile, p * self.width + q), INT(0))

    def finish(
        self,
        begin: Integer,
        at: Integer,
        column: Integer,
        length: Integer,
        term: Integer,
        count: Integer,
        after: Sequence[Any],
    ) -> None:
        """Move a row from the tile to c, or add it unless it has the first terms; what follows comes with the last."""
        builder, emit, (scale, shift, residual, *bounds) = self.builder, self.emit, after
        element, operands, last = emit.vector.element.as_pointer(), [], (term + count).holds("==", self.k)
        given = [builder.and_(last, Integer(builder, place).holds("!=", 0)) for place in (scale, shift, residual)]
        for operation, place, number, neutral, exists in (
            (builder.fadd, self.c, at, 0.0, term.holds(">", 0)), (builder.fmul, scale, column, 1.0, given[0]),
            (builder.fadd, shift, column, 0.0, given[1]), (builder.fadd, residual, at, 0.0, given[2]),
        ):  # fmt: skip
            same = cgutils.alloca_once_value(builder, emit.spread(emit.vector.element(neutral)))
            found = builder.select(exists, self.pointer(place, number), builder.bitcast(same, element))
            operands.append((operation, found, builder.zext(exists, INT)))
        limits = [builder.select(last, bound, DOUBLE(end)) for bound, end in zip(bounds, _UNLIMITED, strict=True)]
        vectors = [emit.spread(emit.number(limit)) for limit in limits]
        source, target = self.pointer(self.tile, begin), self.pointer(self.c, at)

        def some(places: Any, mask: Any, _: Any) -> list[Any]:
            value = emit.read(source, places[0], mask)
            for operation, operand, step in operands:
                value = operation(value, emit.read(operand, builder.mul(places[0], step), mask))
            for sign, limit in zip("<>", vectors, strict=True):
                value = builder.select(builder.fcmp_ordered(sign, value, limit), limit, value)
            emit.write(value, target, places[0], mask)
            return []

        emit.span(INT(0), length.value, [], some)


@intrinsic
def _product(
    _: Any, like: Any, index: Any, table: Any, row: Any, scale: Any, shift: Any, residual: Any, low: Any, high: Any
) -> Any:
    """Do what a row of a table says, and what follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        room, rows = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in ((index, arguments[1]), (table, arguments[2]))
        )
        row = builder.gep(rows, [builder.mul(arguments[3], INT(_COLUMNS))])
        _Writer(context, builder, like, room, row).write(arguments[4:])
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, index, table, n, n, n, n, f, f), generate


@compiled
def _products(like, index, table, begin, end, x, weight, y, dx, dweight, dbias, scale, shift, residual, low, high):
    """Compute rows begin .. end - 1 of a table of products.

    Parameters
    ----------
    like : any array of the dtype of all others.
    index : the memory of this thread, see `_Rooms`.
    x, weight, y, dx, dweight, dbias : the addresses of the arrays that the table numbers.
    scale, shift, residual, low, high : what follows, see `multiplied`.
    """
    index[0], index[1], index[2], index[3], index[4], index[5] = x, weight, y, dx, dweight, dbias
    for row in range(begin, end):
        _product(like, index, table, row, scale, shift, residual, low, high)


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


def table(itemsize: int, *products: Product, starts: Sequence[tuple[int, int, int]] = ()) -> Products:
    """Lay out products of contiguous arrays; with `starts`, the only one is repeated for matrices that begin there."""
    rows, lanes, time = [], BYTES // itemsize, 0.0
    for (a, a_row, a_column), (b, b_row, b_column), c, m, n, k, bare in products:
        way, most, width = _PACKED, _TERMS, -(-n // lanes) * lanes
        if m <= _FEW and b_row == a_column == 1:
            way, most = _DOTS, BLOCK if m == 1 else 2 * _TERMS if m == 2 else _TERMS
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
            last = way, min(width, STRIP * lanes, -(-some[1] // lanes) * lanes), most, together
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


def plain(a: np.ndarray) -> np.ndarray:
    """Return an array, or a copy if its numbers do not lie side by side in C order at places for such numbers."""
    flags = a.flags
    return a if flags.c_contiguous and flags.aligned else a.copy("C")


def multiplied(
    products: Products,
    itemsize: int,
    places: Sequence[int],
    after: Sequence[int] = (0, 0, 0),
    interval: tuple[float, float] | None = None,
) -> None:
    """Compute products of arrays at some addresses, and apply what follows.

    Parameters
    ----------
    places : the addresses of the arrays that the table numbers; 0 for those that it does not.
    after : the addresses of a scale and a shift of each column of the result, and of a residual of its shape; or 0.
    interval : the least and the largest number of the result; NaN stays. None is the same as infinite ends.
    """
    numbers, bounds = products
    arguments = *places, *after, *(interval or _UNLIMITED)
    if len(bounds) == 1:
        _products(_ONE[itemsize], _ROOMS.get(itemsize), numbers, *bounds[0], *arguments)
    else:
        one = _ONE[itemsize]
        parallel(lambda i: _products(one, _ROOMS.get(itemsize), numbers, *bounds[i], *arguments), len(bounds))

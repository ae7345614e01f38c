"""Weight gradients of 3 x 3 convolutions of maps by Winograd's minimal filtering F(3 x 3, 2 x 2).

dweight is itself a convolution, of x with dy. Of each tile of 2 x 2 numbers of dy and 4 x 4 of x, the 9 gradients take
16 products instead of 36:

    dweight = A (sum over tiles of (G dy G') * (B x B')) A'     (Lavin and Gray, 2016, "Fast algorithms for
                                                                 convolutional neural networks")

So there are 16 products of matrices, of channels and tiles. The channels of a pixel lie side by side, so transforming
tiles is additions of vectors. Blocks are some channels of dy and some of x in a group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu import _weight_gradient as table
from xcnn.kernels.cpu._grids import grid, pack, padded_grid, repeat
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._scratch import new_owner
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES, INT, counted
from xcnn.kernels.cpu._weight_gradient import Plan
from xcnn.kernels.cpu._winograd import both, of_pixels

__all__ = ["winograd"]

_WIDTH = 64
"""The most channels of a block, of x and of dy."""

_ROWS = 16 if BYTES == 64 else 8
"""Rows of a block of products, whose sums fit in registers."""

_TILE_BYTES = 1 << 18
"""Size of the transformed tiles that are multiplied together."""

_TILES = 256
"""The least tiles of a part of the images, as the sums of parts take time."""

_PLANE_BYTES = 1 << 22
"""Size of the channels of a block in an image up to which this way is taken."""

(TILES, MOST, WIDTH, A_ROOM, B_LINE, A_LINE, B_APART, A_APART) = range(table.PART + 1, table.PART + 9)
"""More numbers of the tables; a is dy, and b is x:

- tiles of an image, and how many are multiplied together
- channels of a in a block, in whole vectors, as COLUMNS are those of b
- how many numbers an image takes where a is laid out, and a line of b and of a
- how far the 16 numbers of a transformed tile are apart
"""

(A_PLACES, A_STORED, COUNTS, SUMS_AT, LINES) = range(table.STARTS + 1, table.STARTS + 6)
"""More arrays of the tables:

- where the channels of a block of a are, and where its pixels are stored
- how many channels of a each block has, and where its sums belong
- where each row of products begins
"""


def _of_dy(emit: Any, d: Sequence[Any]) -> list[Any]:
    """Return G d; its second and third row are twice as large as usual, and A halves them."""
    return [d[0], emit.add(*d), emit.subtract(*d), d[1]]


def _of_sums(emit: Any, m: Sequence[Any]) -> list[Any]:
    """Return A m."""
    plus, minus = (emit.multiply(step(m[1], m[2]), emit.constant(0.5)) for step in (emit.add, emit.subtract))
    return [emit.add(m[0], plus), minus, emit.subtract(plus, m[3])]


def _transform(
    emit: Any, one: Any, size: int, x: Any, places: Integers, line: Integer, column: Integer, y: Any, apart: Integer,
    count: Integer, width: Integer, ahead: Any = None,
) -> None:  # fmt: skip
    """Write one of these transforms of the columns, then of the rows of squares of vectors.

    Number (i, j) of square t, itself a row of `width`, begins at `x[places[t] + i * line + j * column]`; number k of
    the result, in row-major order, goes to `y[k * apart + t * width]`. Meanwhile, the four pixels per square of what
    lies ahead are read into the cache.
    """
    zero, lines, columns = Integer(emit.builder, 0), *([step * k for k in range(size)] for step in (line, column))
    with zero.up_to(count) as t, zero.up_to(width, emit.lanes) as v:
        source, target = (places[t] + v).of(x), (t * width + v).of(y)
        if ahead is not None:
            for k in range(4):
                emit.prefetch(((t * width + v) * 4 + k * emit.lanes).of(ahead))
        square = ([emit.read(row.of(source), step.value) for row in lines] for step in columns)
        for k, number in enumerate(both(one, emit, square)):
            emit.write(number, target, (apart * k).value)


def _block(
    emit: Any, x: Any, width: Integer, dy: Any, rows: Integer, terms: Any, y: Any, kept: Any, shape: Any
) -> None:
    """Write `y[r * width + v] = (y[...] if kept else 0) + sum over t < terms of dy[t * rows + r] * x[t * width + v]`.

    So many rows r and vectors v make the shape.
    """
    builder, nothing, (size, many) = emit.builder, emit.constant(0.0), shape
    places = [(k, INT(i * emit.lanes)) for k in range(size) for i in range(many)]

    def term(t: Any, sums: Any) -> Any:
        vectors = [emit.read((width * t).of(x), place) for _, place in places[:many]]
        factors, totals = (rows * t).of(dy), []
        for k in range(size):
            factor = emit.broadcast(builder.gep(factors, [INT(k)]))
            totals += [emit.fused(factor, vectors[i], sums[k * many + i]) for i in range(many)]
            emit.barrier()  # otherwise all factors are loaded first, and sums lose their registers
        return totals

    totals = counted(builder, INT(0), terms.value, INT(1), [nothing] * len(places), term)
    for (k, place), total in zip(places, totals, strict=True):
        before = builder.select(kept, emit.read((width * k).of(y), place), nothing)
        emit.write(builder.fadd(before, total), (width * k).of(y), place)


@native("ixxxinnnnxxxx")
def _products(emit, calls, a, b, sums, tables, first, last, block, end, a_in, b_in, tiles, products):
    """Set the sums of blocks `block` .. `end` - 1 to those of images first .. last - 1, as `weight_gradient` does."""
    builder, lanes, zero, whole = emit.builder, emit.lanes, Integer(emit.builder, 0), Integers(emit.builder, tables)
    first, last, block, end = (Integer(builder, value) for value in (first, last, block, end))
    number, arrays = whole.some(0, A_APART + 1), [whole.array(i) for i in range(LINES + 1)]
    lay = Integers(builder, calls)[2]
    width, rows, apart, b_apart = (number[k] for k in (table.COLUMNS, WIDTH, A_APART, B_APART))
    b_tiles, matrix, pairs = (apart * 16).of(tiles), width * rows, width // (2 * lanes) * (2 * lanes)
    with block.up_to(end) as at, first.up_to(last, number[table.IMAGES]) as n:
        many, count = number[table.IMAGES].least(last - n), arrays[COUNTS][at]
        with zero.up_to(many) as i:
            a0 = (n + i) * number[table.A_IMAGE] + arrays[table.A_AT][at]
            b0 = (n + i) * number[table.B_IMAGE] + arrays[table.B_AT][at]
            transpose.write(
                emit, lay, a, a0, arrays[A_PLACES].pointer, count, a_in, i * number[A_ROOM], arrays[A_STORED].pointer,
                number[table.PIXELS], 0, 0,
            )  # fmt: skip
            transpose.write(
                emit, lay, b, b0, arrays[table.PLACES].pointer, arrays[table.PLACES].size, b_in, i * number[table.ROOM],
                arrays[table.STORED].pointer, number[table.B_MAP], 0, 0,
            )  # fmt: skip
        stop = many * number[TILES]
        with zero.up_to(stop, number[MOST]) as k:
            terms = number[MOST].least(stop - k)
            a_at, b_at = (Integers(builder, k.of(arrays[j].pointer)) for j in (table.OFFSETS, table.WINDOWS))
            a_next = (arrays[table.A_AT][at] + (n + many) * number[table.A_IMAGE] + k * rows * 4).of(a)
            b_next = (arrays[table.B_AT][at] + (n + many) * number[table.B_IMAGE] + k * width * 4).of(b)
            _transform(emit, _of_dy, 2, a_in, a_at, number[A_LINE], rows, tiles, apart, terms, rows, a_next)
            _transform(emit, of_pixels, 4, b_in, b_at, number[B_LINE], width, b_tiles, b_apart, terms, width, b_next)
            kept = builder.or_(n.holds("!=", first), k.holds("!=", 0))
            with zero.up_to(16) as j:
                for begin, stop_, shape in ((zero, pairs, (_ROWS // 2, 2)), (pairs, width, (_ROWS, 1))):
                    with begin.up_to(stop_, shape[1] * lanes) as v, zero.up_to(rows, shape[0]) as r:
                        x, dy = (j * b_apart + v).of(b_tiles), (j * apart + r).of(tiles)
                        y = (j * matrix + r * width + v).of(products)
                        _block(emit, x, width, dy, rows, terms, y, kept, shape)
        with builder.if_then((n + many).holds("==", last)):
            target = arrays[SUMS_AT][at].of(sums)
            _transform(
                emit, _of_sums, 4, products, arrays[LINES], matrix * 4, matrix, target, number[table.PART], count, width
            )


def winograd(itemsize: int, n: int, axes: tuple[Any, ...], groups: int, og: int, cg: int) -> Plan | None:
    """Return how to compute a weight gradient in this way, or None if it cannot be."""
    lanes = BYTES // itemsize
    if len(axes) != 2 or {(a.kernel, a.stride, a.dilation) for a in axes} != {(3, 1, 1)} or min(og, cg) < lanes:
        return None
    # Blocks of about equal numbers of whole vectors. There are zeros beside maps of uneven sizes.
    width, rows = (-(-s // (-(-s // _WIDTH) * k)) * k for s, k in ((cg, lanes), (og, max(lanes, _ROWS))))
    even = tuple(a._replace(out=a.out + a.out % 2) for a in axes)
    p, outs, pixels = padded_grid(even), axes[0].out * axes[1].out, axes[0].size * axes[1].size
    line, a_line, halves = p.taps[3], even[1].out, [a.out // 2 for a in even]
    tiles, room, a_room = halves[0] * halves[1], p.size * width, even[0].out * a_line * rows
    if (room + a_room) * itemsize > _PLANE_BYTES:
        return None
    most = _TILE_BYTES // (16 * (width + rows) * itemsize)
    images = min(n, max(1, most // tiles))
    # No multiples of large powers of two, which would share few sets of the cache.
    apart, a_apart, maps, part = most * width + lanes, most * rows + lanes, min(width, cg), og * width
    starts = np.maximum(0, np.minimum(np.arange(0, cg, width), cg - width))
    g, block, a = (each.ravel() for each in np.indices((groups, starts.size, -(-og // rows))))
    tables = pack(
        [
            images, groups * og * outs, groups * cg * pixels, outs, pixels, *[0] * 5, room, 0, width, og, cg * 9,
            9 * part, 9, part, tiles, most, rows, a_room, line * width, a_line * rows, apart, a_apart,
        ],
        (g * og + a * rows) * outs,
        (g * cg + starts[block]) * pixels,
        np.arange(maps) * pixels,
        p.pixels * width,
        repeat(room, images, grid([line, 1], [0, 0], halves, [2, 2]) * width),
        repeat(a_room, images, grid([a_line, 1], [0, 0], halves, [2, 2]) * rows),
        *[np.zeros(1)] * 3,
        np.arange(9) * part,
        np.arange(maps) * 9,
        starts * 9,
        np.arange(rows) * outs,
        grid([a_line, 1], [0, 0], [axis.out for axis in axes], [1, 1]) * rows,
        np.minimum(rows, og - a * rows),
        (g * starts.size + block) * 9 * part + a * rows * width,
        np.arange(rows) * width,
    )  # fmt: skip
    b_vectors, a_vectors = width // lanes, rows // lanes
    memory = (
        ("gaps" if even != axes else "windows", images * a_room, even != axes),
        ("padded", images * room, True),
        ("pixels", 16 * (apart + a_apart), False),
        ("sums", 16 * rows * width, False),
    )
    # For each tile, products, adding them to those before, and transforms; the last one is done once.
    cycles = tiles * (rows * b_vectors * (8 + 24 / min(most, images * tiles)) + 45 * (b_vectors + a_vectors))
    cycles += 50 * rows * b_vectors / n
    cycles += (0.35 + 2.5 / lanes) * (pixels * width + outs * rows)
    return Plan(
        _products, tables, False, groups * og, groups * starts.size * 9 * part, memory, g.size,
        max(1, min(n, n * tiles // _TILES)), g.size * cycles, new_owner(),
    )  # fmt: skip

"""3x3 convolutions of stride 1 with 4 products per output instead of 9: Winograd's minimal filtering F(2x2, 3x3).

Two outputs of a kernel of three taps, from four pixels, need four products instead of six. In two dimensions,
the 2x2 outputs Y of a tile are found from its 4x4 pixels D and the kernel G3 by

    Y = At [(G G3 Gt) * (Bt D B)] A     * is elementwise

         [1  0 -1  0]        [1    0    0 ]        [1  1  1  0]
    Bt = [0  1  1  0]    G = [1/2  1/2 1/2]   At = [0  1 -1 -1]
         [0 -1  1  0]        [1/2 -1/2 1/2]
         [0  1  0 -1]        [0    0    1 ]

(A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016). As channels are summed between the
transforms, the products are those of 16 matrices, each of targets times channels with channels times tiles: 16
multiply-adds per tile instead of 36. The transforms of a tile take 32 additions per channel and 24 per target.

Kernels turned by 180 degrees have the same transforms with rows 0 and 3, and columns 0 and 3, exchanged. So the input
gradient takes the same ones, read in another order.

All entries are at most 1, so rounding errors are only some times those of the direct sum. But an infinite pixel, or
one so large that the difference of two is, makes NaN where the direct sum does not. `winograd` returns whether all
sums were finite; else the convolution is computed directly.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._grids import pack
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._moves import affine
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._product import FLOPS_PER_MICROSECOND, multiply, product_cycles
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import share
from xcnn.kernels.cpu._vectors import BYTES, FUSED, INT
from xcnn.threads import parallel, parts

__all__ = ["Tiles", "both", "in_tiles", "of_pixels", "tiles", "to_products", "to_sums", "to_weights", "winograd"]

_SUM_BYTES, _NEAR, _MOST, _MOST_WEIGHTS = 200_000, 300_000, 1_600_000, 6_000_000
"""Size of the products of a block of targets, which should stay in the second-level cache; of the pixels of a block of
tiles that do, and the largest one of several images, half of that of one; and of transformed weights and of those of a
line of tiles, which would else go through memory."""

_WEIGHTS, _BLOCK, _CALL = 24, 1000, 4000
"""Bytes of weights that are read in a cycle, and cycles that a block of tiles and a call take besides."""

_FAR, _FAR_BYTES = 1_000_000, 2
"""Size of transformed weights that stay in the second-level cache, and bytes of others that are written and read in a
cycle."""

_GAIN = 0.9
"""The part of the time of a direct convolution that tiles may take at most, as counted."""

_FEWEST = 8
"""Channels of which the largest pixel and weight of a tile tell the size of a sum; of fewer, errors are large for it.
"""

_MICROSECONDS, _LEAST = 300, 32
"""The least work that one more job is worth, if there are few, and its least targets: it transforms the pixels again.
"""


def of_pixels(emit: Any, d: Sequence[Any]) -> list[Any]:
    """Return Bt d."""
    return [emit.subtract(d[0], d[2]), emit.add(d[1], d[2]), emit.subtract(d[2], d[1]), emit.subtract(d[1], d[3])]


def _after(emit: Any, m: Sequence[Any]) -> list[Any]:
    """Return At m."""
    return [emit.add(emit.add(m[0], m[1]), m[2]), emit.subtract(emit.subtract(m[1], m[2]), m[3])]


def _kernel(emit: Any, g: Sequence[Any]) -> list[Any]:
    """Return G g."""
    half, outer = emit.constant(0.5), emit.add(g[0], g[2])
    return [g[0], *(emit.multiply(step(outer, g[1]), half) for step in (emit.add, emit.subtract)), g[2]]


def both(transform: Any, emit: Any, columns: Iterable[Sequence[Any]]) -> list[Any]:
    """Return the numbers of T S Tt, row by row, of a transform T and the columns of a square S."""
    rows = zip(*[transform(emit, column) for column in columns], strict=True)
    return [number for row in rows for number in transform(emit, row)]


def _among(emit: Any, first: Integer, count: Any) -> Any:
    """Return a mask of the lanes for which 0 <= first + lane < count."""
    below = emit.first((Integer(emit.builder, 0) - first).value)
    return emit.builder.and_(emit.first((Integer(emit.builder, count) - first).value), emit.builder.not_(below))


def _narrow(emit: Any, times: int) -> Functions:
    """Return what emits instructions on vectors of a fraction of the lanes."""
    narrow = Functions(emit.builder, emit.itemsize)
    narrow.lanes //= times
    narrow.vector = ir.VectorType(emit.vector.element, narrow.lanes)
    return narrow


def _fetch(emit: Any, place: Any, several: Any, width: Any) -> None:
    """Begin to read what is as far from a place as the pixels of a vector of tiles, of several lines or of one, are."""
    line = Integer(emit.builder, 2 * emit.lanes).if_(several, width)
    for a, h in itertools.product((0, 1), (0, emit.lanes)):
        emit.prefetch((line * a + h).of(place))


@native("xxnnnnn")
def to_weights(emit, w, u, channels, row, plane, begin, end):
    """Set `u[i * plane + k * row + c]` to number i of the 16 of `G w[k, c] Gt`, begin <= k < end."""
    builder, lanes, zero = emit.builder, emit.lanes, Integer(emit.builder, 0)
    taps = range(9)
    with Integer(builder, begin).up_to(end) as k, zero.up_to(channels, lanes) as c:
        left = Integer(builder, channels) - c
        source, target = ((k * channels + c) * 9).of(w), (k * row + c).of(u)
        read = [emit.read(source, INT(i * lanes), emit.first((left * 9 - i * lanes).value)) for i in taps]
        found = []
        for tap in taps:  # number 9 * lane + tap; 9 and the number of lanes have no common factor: all lanes differ
            places = [divmod(9 * lane + tap, lanes) for lane in range(lanes)]
            which = {lane: vector for vector, lane in places}
            mixed = read[0]
            for i in taps[1:]:
                mixed = emit.shuffle(mixed, read[i], [lane + lanes * (which[lane] == i) for lane in range(lanes)])
            found.append(emit.shuffle(mixed, mixed, [lane for _, lane in places]))
        for i, number in enumerate(both(_kernel, emit, [found[a::3] for a in range(3)])):
            emit.write(number, (Integer(builder, plane) * i).of(target), INT(0), emit.first(left.value))


@functools.cache
def to_products(quarters: bool) -> Any:
    """Return what transforms pixels, whose vectors are in four lines or not."""
    some = 4 if quarters else 2

    @native("xnnnnnnnnnnxnnn")
    def transform(emit, x, x0, ahead, channels, height, width, top, left, rows, columns, each, v, at, row, plane):
        """Set `v[i * plane + c * row + at + tile]` to number i of `Bt D B` of the 4x4 pixels of tiles of an image.

        Tile (r, s) begins at pixel (top + 2 r, left + 2 s); pixels outside the image are 0. A vector has tiles of
        `each` rows, 1 or as many as fill it, 2 or 4. Up to a vector beyond the tiles is overwritten. Pixels that are
        `ahead` of these begin to be read: memory takes its time.
        """
        builder, zero, lanes, part = emit.builder, Integer(emit.builder, 0), emit.lanes, _narrow(emit, some // 2)
        x0, top, at, plane, columns, each = (Integer(builder, value) for value in (x0, top, at, plane, columns, each))
        with builder.goto_entry_block():
            nothing = builder.alloca(emit.vector, 2)
            for i in range(2):
                builder.store(ir.Constant(emit.vector, None), builder.gep(nothing, [INT(i)]))
            nothing = builder.bitcast(nothing, emit.vector.element.as_pointer())
        even, odd = range(0, 2 * lanes, 2), range(1, 2 * lanes, 2)
        several = each.holds(">", 1)
        apart, below = zero.if_(several, lanes), Integer(builder, 2).if_(several, 0)
        count = (columns + (lanes - 1)) // lanes
        with zero.up_to(count) as index:  # from the last ones, as more than they are is written
            j = (count - index - 1) * lanes
            column = j * 2 + left
            exist = [[_among(part, column + apart * p + move, width) for move in (0, 2)] for p in range(some)]

            def pixels(line: Integer, c: Integer, move: int) -> list[Any]:
                """Return two vectors of the pixels of a line from the first, or the third one of a tile on."""
                found = []
                for p in range(some):
                    y = line + below * p
                    inside = builder.icmp_unsigned("<", y.value, height)
                    place = x0 + (c * height + y) * width + column + apart * p
                    source = builder.select(inside, place.of(x), nothing)
                    found.append(part.read(source, INT(2 * move), exist[p][move]))
                return [emit.shuffle(*found[i : i + 2], range(lanes)) for i in (0, 2)] if quarters else found

            with zero.up_to(channels) as c, zero.up_to(rows, each) as i:
                target = (at + c * row + i * columns + j).of(v)
                following = (c * height + top + i * 2) * width + column + x0 + ahead
                _fetch(emit, following.of(x), several, width)
                lines = [pixels(top + i * 2 + a, c, move) for a in range(4) for move in (0, 1)]
                vectors = [of_pixels(emit, [pair[h] for pair in lines[move::2]]) for move in (0, 1) for h in (0, 1)]
                for a in range(4):
                    pairs = [[vector[a] for vector in vectors[k : k + 2]] for k in (0, 2)]
                    four = [emit.shuffle(*pair, which) for pair in pairs for which in (even, odd)]
                    for b, number in enumerate(of_pixels(emit, four)):
                        emit.write(number, (plane * (4 * a + b)).of(target), INT(0))

    return transform


@native("n:xnnnxnnnnnnnnn")
def to_sums(emit, m, at, row, plane, y, y0, ahead, targets, height, width, until, rows, columns, each):
    """Set the 2x2 outputs of tiles of an image to `At M A`, and return whether one of them is not finite.

    Channel k of the outputs is at `y0 + k * height * width`; `rows` lines of tiles make `until` lines. A vector has
    tiles of `each` rows. What is `ahead` of the outputs begins to be read, as it is written later.
    """
    builder, zero, lanes = emit.builder, Integer(emit.builder, 0), emit.lanes
    at, plane, columns, each = (Integer(builder, value) for value in (at, plane, columns, each))
    several = each.holds(">", 1)
    with builder.goto_entry_block():
        total = builder.alloca(emit.vector)
        builder.store(ir.Constant(emit.vector, None), total)

    def tiles(many: int) -> None:
        part, size = _narrow(emit, many // 2), 2 * lanes // many
        apart, below = zero.if_(several, lanes), Integer(builder, 2).if_(several, 0)
        spread = [[lane // 2 + lanes * (lane % 2) for lane in range(p * size, (p + 1) * size)] for p in range(many)]
        with zero.up_to(columns, lanes) as j:
            column = j * 2
            exist = [part.first((Integer(builder, width) - column - apart * p).value) for p in range(many)]
            with zero.up_to(targets) as k, zero.up_to(rows, each) as i:
                source = (at + k * row + i * columns + j).of(m)
                following = (k * height + i * 2) * width + column + y0 + ahead
                _fetch(emit, following.of(y), several, width)
                some = emit.first(((Integer(builder, rows) - i) * columns).if_(several, columns - j).value)
                read = [emit.read((plane * number).of(source), INT(0), some) for number in range(16)]
                sums = both(_after, emit, [read[a::4] for a in range(4)])
                whole = functools.reduce(builder.fadd, sums)
                builder.store(emit.fused(whole, emit.constant(0.0), builder.load(total)), total)
                for p, (lanes_of, e) in enumerate(zip(spread, exist, strict=True)):
                    for a, pair in enumerate((sums[:2], sums[2:])):
                        line = i * 2 + below * p + a
                        target = ((k * height + line) * width + column + apart * p).of(Integer(builder, y0).of(y))
                        with builder.if_then(line.holds("<", until)):
                            part.write(emit.shuffle(*pair, lanes_of), target, INT(0), e)

    for many, fits in ((2, each.holds("<", 4)), (4, each.holds("==", 4))):
        with builder.if_then(fits):
            tiles(many)
    failed = builder.fcmp_unordered("!=", emit.total(builder.load(total)), emit.vector.element(0.0))
    builder.ret(builder.zext(failed, INT))


@native("n:nnnnxxXXXffnxinnxx")
def winograd(
    emit, before, product, after, write, x, u, scale, shift, residual, low, high, plain, y, tables, first, last, v, m
):
    """Do jobs first .. last - 1 of `clip(convolution * scale + shift + residual, low, high)`, as `convolve` does.

    Return how often a sum was not finite. `u` is what `to_weights` makes, and v and m are memory.
    """
    builder, zero, tables = emit.builder, Integer(emit.builder, 0), Integers(emit.builder, tables)
    channels, height, width, targets, y_height, y_width, top, left = tables.some(1, 8)
    n, stacks, lines, band, columns, groups, bands, row, plane, sums, block, u_row, u_group, each, most, splits = (
        tables.some(9, 16)
    )
    pixels, weights, planes = (tables.array(i) for i in range(3))
    step, done = y_height * y_width, builder.trunc(plain, ir.IntType(1))
    with builder.goto_entry_block():
        failures = builder.alloca(INT)
        builder.store(INT(0), failures)
    with Integer(builder, first).up_to(last) as job:
        rest = job // splits
        split, part = job - rest * splits, rest // groups
        group, stack = rest - part * groups, part // bands
        line, image = (part - stack * bands) * band, n * stack // stacks
        many, rows = n * (stack + 1) // stacks - image, (lines - line).least(band)
        tiles, until = rows * columns, (y_height - line * 2).least(rows * 2)
        only, more = bands.holds("==", 1), (job + 1).holds("<", stacks * bands * groups * splits)
        ahead = (many * groups * channels * height * width).if_(only, band * 2 * width).if_(more, 0)
        with builder.if_then(builder.or_(split.holds("==", 0), job.holds("==", first))), zero.up_to(many) as i:
            to_products(False).write(
                emit, before, x, ((image + i) * groups + group) * channels * height * width, ahead, channels,
                height, width, line * 2 - top, zero - left, rows, columns, each, v, i * tiles, row, plane,
            )  # fmt: skip
        start = split * most
        end = (start + most).least(targets)
        with start.up_to(end, block) as k:
            some = (end - k).least(block)
            with zero.up_to(16) as i:
                multiply.write(
                    emit, product, v, i * plane, pixels.pointer, u, planes[i] + group * u_group + k * u_row, u_row,
                    weights.pointer, channels, m, i * sums, row, some, many * tiles,
                )  # fmt: skip
            next_y = (many * groups * targets * step).if_(only, until * y_width) - (k - start) * step
            next_y = (block * step).if_((k + block).holds("<", end), next_y.if_(more, 0))
            with zero.up_to(many) as i:
                channel = group * targets + k
                y0 = ((image + i) * groups * targets + channel) * step + line * 2 * y_width
                failed = to_sums.write(
                    emit, after, m, i * tiles, row, sums, y, y0, next_y, some, y_height, y_width, until, rows, columns,
                    each,
                )  # fmt: skip
                builder.store(builder.add(builder.load(failures), failed), failures)
                with builder.if_then(builder.not_(done)):
                    affine.write(
                        emit, write, y, y0, step, scale, shift, channel, 1, residual, low, high, y, y0, step, some,
                        until * y_width,
                    )  # fmt: skip
    builder.ret(builder.load(failures))


class Tiles(NamedTuple):
    """A plan: `tables` for `winograd`, jobs and parts of them, sizes of memory, and what the transforms take."""

    tables: np.ndarray
    jobs: int
    parts: int
    shape: tuple[int, ...]
    pixels: int
    sums: int
    rows: int
    channels: int
    row: int
    plane: int
    quarters: bool


def _odd(size: int) -> int:
    """Return an odd number of cache lines of 16 numbers, so that rows this far apart use all of a cache."""
    lines = -(-size // 16)
    return 16 * (lines + (lines % 2 == 0))


def _cut(channels: int, targets: int, lines: int, columns: int, n: int, least: int, itemsize: int) -> Any:
    """Return the cycles of the products of n images, and into how many stacks of images and bands of lines to cut them.

    A block is the tiles of a stack or of a band of an image; there should be at least some.
    """

    def size(stacks: int, bands: int) -> int:
        return -(-n // stacks) * -(-lines // bands) * columns

    def cycles(stacks: int, bands: int) -> float:
        nbytes, pairs = 16 * channels * size(stacks, bands) * itemsize, channels * targets
        block = 8 * pairs * product_cycles(-(-size(stacks, bands) * itemsize // BYTES)) + _BLOCK
        return stacks * bands * (block + 16 * pairs * itemsize / _WEIGHTS + max(0, nbytes - _NEAR) / 8)

    most = _MOST // (16 * channels * itemsize)
    images = range(1, max(1, min(n // least, most // (lines * columns))) + 1)
    ways = [(-(-n // some), 1) for some in images] + [(n, bands) for bands in range(2, lines + 1)]
    small = [way for way in ways if size(*way) <= 2 * most] or ways[-1:]
    return min((cycles(*way), *way) for way in small)


@functools.lru_cache(maxsize=512)
def tiles(
    axes: tuple[Any, ...], n: int, weights: tuple[int, ...], groups: int, itemsize: int, transposed: bool, steady: bool
) -> Tiles | None:
    """Plan a convolution of n images, or the input gradient, in tiles; return None where it does not pay.

    Parameters
    ----------
    steady : whether that must not depend on n, so that an image has the same result in every batch.
    """
    if len(axes) != 2 or any((a.kernel, a.stride, a.dilation) != (3, 1, 1) for a in axes) or BYTES < 32 or not FUSED:
        return None
    lanes, (cg, og) = BYTES // itemsize, (weights[1], weights[0] // groups)
    channels, targets = (og, cg) if transposed else (cg, og)
    sizes, outs, before = zip(
        *((a.out, a.size, 2 - a.before) if transposed else (a.size, a.out, a.before) for a in axes), strict=True
    )
    lines, columns = ((out + 1) // 2 for out in outs)
    each = lanes // columns if columns in (lanes // 2, lanes // 4) else 1

    # Whether it takes less time than `convolve`, by counted cycles
    images, pairs = 1 if steady else n, channels * targets
    vectors, (height, width) = images * -(-lines // each) * -(-columns // lanes), outs
    here = _cut(channels, targets, lines, columns, images, 1, itemsize)[0] + _CALL
    here += pairs / lanes * 80 + vectors * (channels * 45 + targets * 80)
    if not steady:  # else as for many images, which share the weights
        here += max(0, 16 * pairs * itemsize - _FAR) / _FAR_BYTES
    there = 4.5 * pairs * product_cycles(-(-images * height * (width + 1) // lanes))
    there += images * (channels + targets) * height * (8 + 4 * -(-width // lanes))
    large = 16 * max(pairs, channels * columns) * itemsize > _MOST_WEIGHTS
    if here > _GAIN * there or channels < _FEWEST or large:
        return None

    microseconds = 2 * n * groups * lines * columns * 16 * pairs / FLOPS_PER_MICROSECOND
    jobs = max(1, min(4, int(microseconds / _MICROSECONDS)))
    _, stacks, bands = _cut(channels, targets, lines, columns, n, min(n, jobs), itemsize)
    band = -(-lines // bands)
    bands = -(-lines // band)
    part = min(targets, max(_LEAST, -(-targets // -(-jobs // (stacks * bands * groups)) // 8) * 8))
    splits = -(-targets // part)
    row = _odd(-(-n // stacks) * band * columns + lanes)
    block = min(part, max(8, _SUM_BYTES // (16 * row * itemsize) // 8 * 8))
    plane, sums, u_row, u_plane = channels * row + 16, block * row + 16, _odd(cg), weights[0] * _odd(cg) + 16
    order = [[4 * a + b for b in side] for side in [(3, 1, 2, 0) if transposed else range(4)] for a in side]
    numbers = [
        channels, *sizes, targets, *outs, *before, n, stacks, lines, band, columns, groups, bands, row, plane, sums,
        block, 1 if transposed else u_row, og * u_row, each, part, splits,
    ]  # fmt: skip
    arrays = np.arange(channels) * row, np.arange(channels) * (u_row if transposed else 1), np.array(order) * u_plane
    jobs = stacks * bands * groups * splits
    return Tiles(
        pack(numbers, *arrays), jobs, parts(jobs, microseconds), (groups * targets, *outs), 16 * plane, 16 * sums,
        weights[0], cg, u_row, u_plane, each == 4,
    )  # fmt: skip


def in_tiles(f: Tiles, n: int, arrays: list[Any], ends: tuple[float, float], bare: bool) -> np.ndarray | None:
    """Return a convolution as planned, or None if a sum is not finite.

    Parameters
    ----------
    arrays : as `convolve` takes them: x, weights, scale, shift and residual.
    """
    x, weight, *rest = arrays
    dtype, size = x.dtype, x.itemsize
    y, u = np.empty((n, *f.shape), dtype), scratch(-1, "transformed", 16 * f.plane, dtype)
    share(to_weights(size), 25 * f.rows * f.channels, weight, u, f.channels, f.row, f.plane, n=f.rows)
    calls = [one.address(size) for one in (to_products(f.quarters), multiply, to_sums, affine)]
    fixed = (*calls, x, u, *rest, *ends, bare, y, f.tables)
    run, failures = winograd(size), [0] * f.parts

    def some(part: int) -> None:
        v, m = (scratch(-1, name, count, dtype) for name, count in (("tiles", f.pixels), ("sums", f.sums)))
        failures[part] = run(*fixed, f.jobs * part // f.parts, f.jobs * (part + 1) // f.parts, v, m)

    parallel(some, f.parts)
    return None if any(failures) else y

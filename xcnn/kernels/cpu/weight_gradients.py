"""The weight gradient of a convolution on the CPU, in one of two ways.

With vectors of channels (`_weight_gradient.py`) dy is read where it lies, and for a kernel of one pixel x may be; with
few channels, vectors of pixels are used (`_correlation.py`). The cheaper way is chosen from counted cycles. Work is
distributed over threads by images, and by channels if there are few images.

With vectors of pixels, rows of dy have zeros between them, and an infinite x times 0 is NaN. So more of dweight may
become NaN than with im2col.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._correlation import correlate
from xcnn.kernels.cpu._grids import grid, pack, padded_grid, phase_spans, repeat, steps_of
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import flat, share
from xcnn.kernels.cpu._simd import BYTES
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._weight_gradient import ROWS, TERMS, collect, weight_gradient
from xcnn.threads import parallel, parts

__all__ = ["weight_gradients"]

_CHUNK_BYTES = 800_000
"""Size of the pixels of x and dy that are processed together; they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_CYCLES_PER_MICROSECOND = 4000

Axes = tuple[Any, ...]


class _Windows(NamedTuple):
    """What is counted from shapes, for vectors of channels.

    Attributes
    ----------
    tables : for `weight_gradient`.
    swapped : whether x is read in place and dy is copied, instead of the reverse.
    numbers : size of the sums of a part.
    masked, room, columns : sizes of the memory for masked dy and for copied pixels, and of a row of products.
    by_images, by_blocks, blocks : parts, and blocks of channels.
    cycles : cost for one image.
    number : unique number of the layout.
    """

    tables: np.ndarray
    swapped: bool
    numbers: int
    masked: int
    room: int
    columns: int
    by_images: int
    by_blocks: int
    blocks: int
    cycles: float
    number: int


def _cycles(vectors: int) -> float:
    """Return the cycles of a row of `strip` per term, for a number of vectors: blocks of 8 rows and 3 or 1 vectors."""
    return (12 * (vectors // 3) + 5.5 * (vectors % 3)) / 8


def _width(channels: int, run: int, most: int, lanes: int) -> tuple[int, float]:
    """Return the channels of a block, at most `most` if possible, and the cycles of all blocks per term and run."""
    widths = {*range(lanes, min(channels, most) + 1, lanes), min(channels, max(most, lanes))}
    cost, width = min((-(-channels // w) * _cycles(-(-w * run // lanes)), -w) for w in widths)
    return -width, cost


@functools.lru_cache(maxsize=256)
def _windows(axes: Axes, groups: int, og: int, cg: int, n: int, itemsize: int, swapped: bool) -> _Windows:
    """Lay out a weight gradient; only one of a kernel of one pixel without padding may be swapped."""
    ca, cb = (cg, og) if swapped else (og, cg)
    outs = math.prod(a.out for a in axes)
    zeros, ones = [0] * len(axes), [1] * len(axes)
    offsets = grid(steps_of([a.out for a in axes]), zeros, [a.out for a in axes], ones)
    a_size = math.prod(a.out for a in axes)
    if swapped:
        sizes = [a.size for a in axes]
        offsets, a_size = (
            grid(steps_of(sizes), zeros, [a.out for a in axes], [a.stride for a in axes]),
            math.prod(sizes),
        )
        axes = tuple(a._replace(size=a.out, stride=1, after=0) for a in axes)
    p, lanes = padded_grid(axes), BYTES // itemsize
    images = max(1, min(n, TERMS // outs))
    run = axes[-1].kernel if axes[-1].dilation == 1 else 1
    width, cycles = _width(cb, run, max(4 * lanes, _CHUNK_BYTES // 2 // (images * p.size * itemsize)), lanes)
    runs, room = p.taps[::run], p.size * width
    tables = pack(
        [groups, ca, cb, a_size, images, room, run * width],
        np.arange(width) * p.pixels.size,
        p.pixels * width,
        repeat(room, images, p.windows * width),
        repeat(groups * ca * a_size, images, offsets),
        runs * width,
    )
    blocks, numbers = groups * -(-cb // width), groups * -(-cb // width) * runs.size * ca * run * width
    cost = groups * outs * (cycles * ca * runs.size + cb * p.pixels.size / outs)
    count = parts(n * blocks, n * cost / _CYCLES_PER_MICROSECOND)
    by_images = max(1, min(count, -(-n // images), _PARTIAL_BYTES // (numbers * itemsize)))
    by_blocks = max(1, min(count // by_images, blocks))
    return _Windows(
        tables, swapped, numbers, images * groups * og * outs, images * room + run * width + lanes, run * width,
        by_images, by_blocks, blocks, cost, new_owner(),
    )  # fmt: skip


def _sum_over_windows(
    x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, groups: int, f: _Windows
) -> np.ndarray:
    n, (o, cg), dtype, size = x.shape[0], weight.shape[:2], x.dtype, x.itemsize
    sums = np.empty((f.by_images, f.numbers), dtype)
    arrays = [flat(a, size) for a in ((x, dy, None, y) if f.swapped else (dy, x, y, None))]

    def some(part: int) -> None:
        i, block = divmod(part, f.by_blocks)
        weight_gradient(
            *(function.address(size) for function in (multiply, every, transpose)), *arrays, sums[i], f.tables,
            n * i // f.by_images, n * (i + 1) // f.by_images,
            f.blocks * block // f.by_blocks, f.blocks * (block + 1) // f.by_blocks,
            scratch(0, "masked", 0 if y is None else f.masked, dtype), cleared(f.number, "windows", f.room, dtype),
            scratch(0, "sums", ROWS * max(f.columns, BYTES), dtype),
        )  # fmt: skip

    parallel(some, f.by_images * f.by_blocks)
    out = np.empty(weight.size, dtype)
    share(collect, 4 * sums.size, sums, f.tables, int(f.swapped), out, n=groups * cg if f.swapped else o)
    if f.swapped:
        turned, og = np.empty(weight.size, dtype), o // groups
        for g in range(groups):
            transpose.direct(out, g * og * cg, np.arange(cg) * og, turned, g * og * cg, np.arange(og) * cg)
        out = turned
    return out.reshape(weight.shape)


class _Pixels(NamedTuple):
    """What is counted from shapes, for vectors of pixels: tables for `correlate`, sizes of its memory, parts, cost."""

    tables: np.ndarray
    xs: int
    dys: int
    parts: int
    cycles: float
    number: int


def _three(numbers: list[int], missing: int) -> list[int]:
    return [missing] * (3 - len(numbers)) + numbers


@functools.lru_cache(maxsize=256)
def _pixels(axes: Axes, groups: int, og: int, cg: int, n: int, itemsize: int) -> _Pixels:
    f, c, o, outs = planes(axes), groups * cg, groups * og, [a.out for a in axes]
    products = groups * og * cg * math.prod(a.kernel for a in axes)
    count = parts(
        min(n, max(2, _PARTIAL_BYTES // (products * itemsize))), 2 * n * f.length * products / FLOPS_PER_MICROSECOND
    )
    chunk = max(1, _CHUNK_BYTES // ((c * f.phases * f.plane + o * f.dy_plane) * itemsize))
    # Half a cycle per vector, a quarter more for what surrounds it; and to add its lanes, once for several images.
    cycles = products * (0.625 * itemsize / BYTES * f.length + 5 / chunk)
    chunk = min(chunk, -(-n // count))
    steps = [int(step) for step in f.axes[3 - len(axes) :, STEP]]
    zeros, ones = [0] * (len(axes) - 1), [1] * (len(axes) - 1)
    tables = pack(
        [groups, cg, og, math.prod(outs), outs[-1], chunk, f.plane, f.phases, f.length, f.dy_plane, f.dy_start],
        grid(steps_of(outs)[:-1], zeros, outs[:-1], ones),
        grid(steps[:-1], zeros, outs[:-1], ones) + f.dy_start,
        np.array(
            [[s.phase, *_three(s.firsts, 0), *_three(s.pixels, 0), *_three(s.counts, 1)] for s in phase_spans(axes)]
        ),
        f.axes,
        np.add.outer(np.arange(cg) * (f.phases * f.plane), f.x_shifts),
    )
    xs, dys = chunk * c * f.phases * f.plane, chunk * o * f.dy_plane
    return _Pixels(tables, xs, dys, count, cycles, new_owner())


def _correlate(x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, f: _Pixels) -> np.ndarray:
    n, dtype, size = x.shape[0], x.dtype, x.itemsize
    dweight = np.zeros((f.parts, weight.size), dtype)
    x, dy, y = (flat(a, size) for a in (x, dy, y))

    def some(part: int) -> None:
        xs, dys = cleared(f.number, "x", f.xs, dtype), cleared(f.number, "dy", f.dys, dtype)
        correlate(
            every.address(size), x, dy, y, dweight[part], f.tables, n * part // f.parts, n * (part + 1) // f.parts,
            xs, dys,
        )  # fmt: skip

    parallel(some, f.parts)
    total: np.ndarray = dweight[0] if f.parts == 1 else dweight.sum(axis=0)
    return total.reshape(weight.shape)


@functools.lru_cache(maxsize=256)
def _way(axes: Axes, groups: int, og: int, cg: int, n: int, itemsize: int) -> _Windows | _Pixels:
    """Return the cheapest layout."""
    shapes = axes, groups, og, cg, n, itemsize
    ways: list[_Windows | _Pixels] = [_pixels(*shapes), _windows(*shapes, False)]
    if all(a.kernel == 1 and a.before == 0 and (a.out - 1) * a.stride < a.size for a in axes):
        ways.append(_windows(*shapes, True))
    return min(ways, key=lambda way: way.cycles)


def weight_gradients(
    x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes, groups: int
) -> np.ndarray:
    """Return dweight; dy is masked to where y is not 0, unless y is None."""
    og, cg = weight.shape[0] // groups, weight.shape[1]
    if og == cg == 1 < groups:
        return depthwise.weight_gradients(x, dy, y, weight, axes)
    f = _way(axes, groups, og, cg, x.shape[0], x.itemsize)
    if isinstance(f, _Pixels):
        return _correlate(x, dy, y, weight, f)
    return _sum_over_windows(x, dy, y, weight, groups, f)

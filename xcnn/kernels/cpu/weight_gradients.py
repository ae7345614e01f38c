"""The weight gradient of a convolution on the CPU: products of dy and x, one of them with vectors of its channels.

Vectors run along the channels of x or of dy; the other one is read where it lies if it needs no padding
(`_weight_gradient.py`). With 3 x 3 kernels, fewer products of transformed tiles may do (`_winograd_gradient.py`). If
one image has few windows and many weights, all three would mostly move sums: then the gradient is the product of dy and
the columns of x, each number of which is written once, where it belongs. The cheapest way is chosen from counted
cycles. Work is distributed over threads by images, and by channels if there are few images.

If dy has few channels, vectors have those of several windows, and lines of dy have zeros between them. An infinite x
times 0 is NaN, so where the result is not finite, it is computed again with vectors of x, which have no such zeros.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._grids import pack, padded_grid, repeat
from xcnn.kernels.cpu._matrices import Product, Products, multiplied, table
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import CYCLES_PER_MICROSECOND, multiply
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import share
from xcnn.kernels.cpu._sums import not_finite
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.kernels.cpu._weight_gradient import ROWS, TERMS, Plan, collect, weight_gradient
from xcnn.kernels.cpu._winograd_gradient import winograd
from xcnn.threads import parallel, parts

__all__ = ["weight_gradients"]

_CHUNK_BYTES = 800_000
"""Size of the pixels of x and dy that are processed together; they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_GAIN = 0.97
"""The part of the time of the direct ways that Winograd's may take at most, as counted."""

_WINDOWS = 256
"""The most windows of an image whose columns are multiplied, as longer sums would be read again."""

_SUM, _NUMBER, _COLUMN, _COPY = 1.5, 0.5, 0.8, 3.0
"""Cycles of each number of the gradient that is a sum, and of one that is written at once; and of each number of x that
is multiplied as a column, and is copied before, because of windows."""

Axes = tuple[Any, ...]


def _width(channels: int, run: int, most: int, lanes: int) -> tuple[int, float]:
    """Return the channels of a block, at most `most` if possible, and the cycles of all blocks for 4 rows and a term.

    Four rows and a vector take 2 cycles, and a single one takes one more.
    """
    least = lanes if run == 1 else 1
    widths = {*range(lanes, min(channels, most) + 1, lanes), max(least, min(channels, max(most, lanes)))}
    vectors = {w: -(-w * run // lanes) for w in widths}
    cost, width = min((-(-channels // w) * (2 * v + (v == 1)), -w) for w, v in vectors.items())
    return -width, cost


@functools.lru_cache(maxsize=512)
def _plan(itemsize: int, n: int, axes: Axes, groups: int, og: int, cg: int, swapped: bool) -> Plan:
    p, lanes = padded_grid(axes), BYTES // itemsize
    outs, pixels, taps = p.windows.size, p.pixels.size, p.taps.size
    images = max(1, min(n, TERMS // outs))
    most = max(4 * lanes, _CHUNK_BYTES // 2 // (images * p.size * itemsize))
    last, side = axes[-1], og if swapped else cg
    run = last.kernel if last.dilation == 1 else 1
    if swapped:
        run = min(run, max(1, lanes // og)) if last.stride == 1 else 1
    width, cycles = _width(side, run, most, lanes)
    columns, zero = -(-run * width // lanes) * lanes, np.zeros(1, np.int64)
    if swapped:
        # A vector has `run` windows. A number of x meets each one at the kernel position before that of the last one.
        ca, cb, a_pixels, b_pixels, copied = cg, og, pixels, outs, p.size > pixels or run > 1
        plane, long, rows = p.size if copied else pixels, last.out + run - 1, np.arange(outs // last.out)
        offsets = np.add.outer(p.windows[:: last.out], np.arange(long) * last.stride).ravel()
        lines = np.add.outer(np.arange(ca) * plane, p.taps).reshape(-1, last.kernel)[:, ::run]
        stored = np.add.outer(rows * long, np.arange(run - 1, long)).ravel()
        windows, runs = np.arange(offsets.size), zero
        laid, piece = (min(outs, TERMS), TERMS) if run == 1 else (outs, outs + images * offsets.size)
        stored, room = stored[:laid], laid if run == 1 else offsets.size + run - 1
        sources = np.add.outer(np.arange(lines.size).reshape(lines.shape) * columns, np.arange(run - 1, -1, -1) * og)
        sources = sources.reshape(ca * taps // last.kernel, -1)[:, : last.kernel]
        to = p.pixels[:: last.size]
        lines_of = axes[-2].size if len(axes) > 1 else 1
        copies = [last.size, lines_of, last.size, to[lines_of - 1] - to[max(0, lines_of - 2)]]
        pieces = (pixels, np.arange(0, pixels, lines_of * last.size)), (plane, to[::lines_of])
        each = [np.add.outer(np.arange(ca) * apart, places).ravel() for apart, places in pieces]
        units, step, unit_step, part, count = 1, cg * taps, og * cg * taps, columns, lines.size
    else:
        ca, cb, a_pixels, b_pixels, copied, laid = og, cg, outs, pixels, False, pixels
        plane, offsets, lines = outs, np.arange(outs), np.arange(og) * outs
        stored, windows, room, runs, piece = p.pixels, p.windows, p.size, p.taps[::run] * width, pixels + images * outs
        copies, each = [0] * 4, [zero[:0]] * 2
        units, step, unit_step, part, count = og, taps, cg * taps, og * columns, runs.size
        sources = np.add.outer(np.arange(runs.size) * part, np.arange(run) * width)
    maps = min(width, cb)
    starts = np.maximum(0, np.minimum(np.arange(0, cb, width), cb - width))
    image = groups * ca * a_pixels
    tables = pack(
        [
            images, image, groups * cb * b_pixels, windows.size, b_pixels, each[0].size, *copies,
            room * width, piece, columns, units, unit_step, runs.size * lines.size * columns, count, part,
        ],
        np.repeat(np.arange(groups) * ca * a_pixels, starts.size),
        np.add.outer(np.arange(groups) * cb, starts) * b_pixels,
        np.minimum(np.arange(width), cb - 1) * b_pixels,
        stored * width,
        repeat(room * width, images, windows * width),
        np.concatenate([repeat(ca * plane if copied else image, images, offsets), lines.ravel()]),
        runs,
        repeat(image, images if copied else 0, each[0]),
        repeat(ca * plane, images if copied else 0, each[1]),
        sources,
        np.arange(maps) * step,
        starts * step,
    )  # fmt: skip
    # Copies are counted with what it takes to read from memory.
    moves = cb * b_pixels * (0.35 + 2.5 / min(width, b_pixels, lanes))
    moves += 0.3 * ca * plane * copied
    cost = groups * (windows.size * cycles * runs.size * -(-lines.size // 4) + moves)
    blocks = groups * starts.size
    numbers = blocks * runs.size * lines.size * columns
    planes, vectors = (images * ca * plane + lanes) * copied, images * room * width + columns
    gaps = swapped and run > 1
    memory = (
        ("padded" if swapped else "pixels", planes, swapped),
        ("gaps" if gaps else "pixels" if swapped else "padded", vectors, gaps or not swapped),
        ("sums", ROWS * columns, False),
    )
    return Plan(
        weight_gradient, tables, swapped, groups * units, numbers, memory, blocks,
        -(-n // images), cost, new_owner(),
    )  # fmt: skip


@functools.cache
def _calls(itemsize: int) -> np.ndarray:
    return np.array([function.address(itemsize) for function in (multiply, every, transpose, affine)], np.int64)


@functools.lru_cache(maxsize=512)
def _ways(itemsize: int, n: int, *shapes: Any) -> tuple[Plan, ...]:
    """Return the cheapest way, and those for numbers that are infinite or NaN; the last one is right for these."""
    by_dy, by_x = (_plan(itemsize, n, *shapes, swapped) for swapped in (True, False))
    direct = (by_dy, by_x) if by_dy.cycles < by_x.cycles else (by_x,)
    faster = winograd(itemsize, n, *shapes)
    return (faster, *direct) if faster is not None and faster.cycles < _GAIN * direct[0].cycles else direct


@functools.lru_cache(maxsize=512)
def _product(itemsize: int, axes: Axes, o: int, c: int, cycles: float) -> Products | None:
    """Return the product of dy and the columns of one image, if it takes less than so many cycles; or None."""
    windows, columns = math.prod(a.out for a in axes), c * math.prod(a.kernel for a in axes)
    numbers, moved = o * columns, columns * windows * (_COLUMN + _COPY * (not _bare(axes)))
    here = 2 * numbers * windows * itemsize / BYTES / 4 + numbers * _NUMBER + moved
    if windows > _WINDOWS or here > cycles + numbers * _SUM:
        return None
    return table(itemsize, Product((0, windows, 1), (1, 1, windows), 2, o, columns, windows))


def _bare(axes: Axes) -> bool:
    """Return whether the columns of x are x itself."""
    return all((a.kernel, a.stride, a.before, a.after) == (1, 1, 0, 0) for a in axes)


def _columns(x: np.ndarray, axes: Axes) -> np.ndarray:
    """Return the pixels of the windows of one image: (channels, *kernel, *outs)."""
    padded = np.zeros((x.shape[1], *(a.padded for a in axes)), x.dtype)
    padded[(slice(None), *(slice(a.before, a.before + a.size) for a in axes))] = x[0]
    shape = *(a.kernel for a in axes), *(a.out for a in axes)
    apart = [a.dilation for a in axes] + [a.stride for a in axes]
    step, *steps = padded.strides
    strides = step, *(number * size for number, size in zip(apart, 2 * steps, strict=True))
    return np.ascontiguousarray(np.ndarray((len(padded), *shape), x.dtype, padded, strides=strides))


def weight_gradients(n: int, dtype: Any, shape: tuple[int, ...], axes: Axes, groups: int) -> Callable[..., Any]:
    """Return a function that returns dweight, of a shape, for n images x and dy in C order."""
    (o, cg), size = shape[:2], dtype.itemsize
    plans = _ways(size, n, axes, groups, o // groups, cg)
    product = _product(size, axes, o, cg, plans[0].cycles) if n == groups == 1 else None
    if product is not None:

        def multiply_columns(x: np.ndarray, dy: np.ndarray) -> Any:
            out = np.empty(shape, dtype)
            columns = x if _bare(axes) else _columns(x, axes)
            multiplied(product, size, (dy, columns, out, None, None, None))
            return out

        return multiply_columns

    ways = [_bound(f, n, dtype, shape) for f in plans]
    if depthwise.pays(shape, groups, size):
        ways.insert(0, depthwise.weight_gradients(n, dtype, shape, axes, groups))
    (*others, last), count = ways, math.prod(shape)
    unfit: Any = not_finite(size) if others else None

    def run(x: np.ndarray, dy: np.ndarray) -> Any:
        for way in others:
            out = way(x, dy)
            if not unfit(out, count):
                return out
        return last(x, dy)

    return run


def _bound(f: Plan, n: int, dtype: Any, shape: tuple[int, ...]) -> Callable[..., Any]:
    """Return the function of x and dy that does what a plan says."""
    most = parts(n * f.blocks, n * f.cycles / CYCLES_PER_MICROSECOND)
    by_images = max(1, min(most, f.parts, _PARTIAL_BYTES // (f.numbers * dtype.itemsize)))
    by_blocks = max(1, min(most // by_images, f.blocks))
    calls, call, gather = _calls(dtype.itemsize), f.function(dtype.itemsize), collect(dtype.itemsize)
    pieces = [
        (i, n * i // by_images, n * (i + 1) // by_images, f.blocks * j // by_blocks, f.blocks * (j + 1) // by_blocks)
        for i in range(by_images)
        for j in range(by_blocks)
    ]
    size = f.numbers

    def run(x: np.ndarray, dy: np.ndarray) -> Any:
        out, sums = np.empty(shape, dtype), np.empty((by_images, size), dtype)
        arrays = (x, dy) if f.swapped else (dy, x)

        def some(part: int) -> None:
            i, *ends = pieces[part]
            memory = [
                (cleared(f.number, name, many, dtype) if is_0 else scratch(0, name, many, dtype)) if many else None
                for name, many, is_0 in f.memory
            ]
            call(calls, *arrays, sums[i], f.tables, *ends, *memory)

        parallel(some, len(pieces))
        share(gather, 4 * sums.size, calls, sums, size, by_images, f.tables, out, n=f.units)
        return out

    return run

"""The weight gradient of a convolution on the CPU: products of dy and x, one of them with vectors of its channels.

Vectors run along the channels of x or of dy; the other one is read where it lies if it needs no padding and no mask
(`_weight_gradient.py`). The cheaper way is chosen from counted cycles. Work is distributed over threads by images, and
by channels if there are few images.

If dy has few channels, vectors have those of several windows, and lines of dy have zeros between them. An infinite x
times 0 is NaN, so more of dweight may become NaN than with im2col.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._grids import pack, padded_grid, repeat
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import STRIP, multiply
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import plain, share
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.kernels.cpu._weight_gradient import ROWS, TERMS, collect, weight_gradient
from xcnn.threads import parallel, parts

__all__ = ["weight_gradients"]

_CHUNK_BYTES = 800_000
"""Size of the pixels of x and dy that are processed together; they should stay in the second-level cache."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_CYCLES_PER_MICROSECOND = 4000

Axes = tuple[Any, ...]


class _Plan(NamedTuple):
    """What is counted from shapes.

    Attributes
    ----------
    tables : for `weight_gradient`.
    swapped : whether vectors run along the channels of dy, not of x.
    gaps : whether there are zeros between the vectors of dy.
    units : what `collect` does.
    numbers : size of the sums of a part.
    planes, room, masked, columns : sizes of the memory for what is multiplied with vectors, for the vectors, for dy
        before it becomes vectors, and of a row of products.
    by_images, by_blocks, blocks : parts, and blocks of channels.
    cycles : cost for one image.
    number : unique number of the layout.
    """

    tables: np.ndarray
    swapped: bool
    gaps: bool
    units: int
    numbers: int
    planes: int
    room: int
    masked: int
    columns: int
    by_images: int
    by_blocks: int
    blocks: int
    cycles: float
    number: int


def _width(channels: int, run: int, most: int, lanes: int) -> tuple[int, float]:
    """Return the channels of a block, at most `most` if possible, and the cycles of all blocks for 4 rows and a term.

    Four rows and a vector take 2 cycles, and a single one takes one more.
    """
    least = lanes if run == 1 else 1
    widths = {*range(lanes, min(channels, most) + 1, lanes), max(least, min(channels, max(most, lanes)))}
    vectors = {w: -(-w * run // lanes) for w in widths}
    cost, width = min((-(-channels // w) * (2 * v + (v % STRIP == 1)), -w) for w, v in vectors.items())
    return -width, cost


@functools.lru_cache(maxsize=512)
def _plan(axes: Axes, groups: int, og: int, cg: int, n: int, itemsize: int, masked: bool, swapped: bool) -> _Plan:
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
        ca, cb, a_pixels, b_pixels, copied, laid = og, cg, outs, pixels, masked, pixels
        plane, offsets, lines = outs, np.arange(outs), np.arange(og) * outs
        stored, windows, room, runs, piece = p.pixels, p.windows, p.size, p.taps[::run] * width, pixels + images * outs
        copies, each = [og * outs, 1, 0, 0], [zero, zero]
        units, step, unit_step, part, count = og, taps, cg * taps, og * columns, runs.size
        sources = np.add.outer(np.arange(runs.size) * part, np.arange(run) * width)
    maps, apart = min(width, cb), laid if swapped and masked else b_pixels
    starts = np.maximum(0, np.minimum(np.arange(0, cb, width), cb - width))
    image = groups * ca * a_pixels
    tables = pack(
        [
            images, image, groups * cb * b_pixels, windows.size, b_pixels, each[0].size, *copies, maps, apart,
            room * width, piece, columns, units, unit_step, runs.size * lines.size * columns, count, part,
        ],
        np.repeat(np.arange(groups) * ca * a_pixels, starts.size),
        np.add.outer(np.arange(groups) * cb, starts) * b_pixels,
        np.minimum(np.arange(width), cb - 1) * apart,
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
    moves += 0.3 * (ca * plane * copied + cb * outs * (swapped and masked))
    cost = groups * (windows.size * cycles * runs.size * -(-lines.size // 4) + moves)
    blocks = groups * starts.size
    numbers = blocks * runs.size * lines.size * columns
    most_parts = parts(n * blocks, n * cost / _CYCLES_PER_MICROSECOND)
    by_images = max(1, min(most_parts, -(-n // images), _PARTIAL_BYTES // (numbers * itemsize)))
    by_blocks = max(1, min(most_parts // by_images, blocks))
    return _Plan(
        tables, swapped, swapped and run > 1, groups * units, numbers, (images * ca * plane + lanes) * copied,
        images * room * width + columns, apart * maps * (swapped and masked), columns, by_images, by_blocks, blocks,
        cost, new_owner(),
    )  # fmt: skip


@functools.cache
def _calls(itemsize: int) -> np.ndarray:
    return np.array([function.address(itemsize) for function in (multiply, every, transpose, affine)], np.int64)


@functools.lru_cache(maxsize=512)
def _cheapest(*shapes: Any) -> _Plan:
    return min((_plan(*shapes, swapped) for swapped in (False, True)), key=lambda plan: plan.cycles)


def weight_gradients(
    x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes, groups: int
) -> np.ndarray:
    """Return dweight; dy is masked to where y is not 0, unless y is None."""
    (o, cg), n, dtype, size = weight.shape[:2], x.shape[0], x.dtype, x.itemsize
    if depthwise.pays(weight.shape, groups, size):
        return depthwise.weight_gradients(x, dy, y, weight, axes, groups)
    f = _cheapest(axes, groups, o // groups, cg, n, size, y is not None)
    sums, out = np.empty(f.by_images * f.numbers, dtype), np.empty(weight.shape, dtype)
    arrays = [plain(a) for a in ((x, dy, None, y) if f.swapped else (dy, x, y, None))]

    def some(part: int) -> None:
        i, block = divmod(part, f.by_blocks)
        padded = cleared(f.number, "padded", f.planes if f.swapped else f.room, dtype)
        many = f.room if f.swapped else f.planes
        others = cleared(f.number, "gaps", many, dtype) if f.gaps else scratch(0, "pixels", many, dtype)
        planes, bs = (padded, others) if f.swapped else (others, padded)
        some_sums = sums[f.numbers * i : f.numbers * (i + 1)]
        weight_gradient(size)(
            _calls(size), *arrays, some_sums, f.tables, n * i // f.by_images, n * (i + 1) // f.by_images,
            f.blocks * block // f.by_blocks, f.blocks * (block + 1) // f.by_blocks, planes if f.planes else None, bs,
            scratch(0, "masked", f.masked, dtype), scratch(0, "sums", ROWS * f.columns, dtype),
        )  # fmt: skip

    parallel(some, f.by_images * f.by_blocks)
    given = _calls(size), sums, f.numbers, f.by_images, f.tables, out
    share(collect(size), 4 * sums.size, *given, n=f.units)
    return out

"""The weight gradient of a convolution on the CPU: products of dy and x, one of them with vectors of its channels.

Vectors run along the channels of x or of dy; the other one is read where it lies if it needs no padding and no mask
(`_weight_gradient.py`). The cheaper way is chosen from counted cycles. Work is distributed over threads by images, and
by channels if there are few images.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._grids import pack, padded_grid, repeat
from xcnn.kernels.cpu._moves import every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import flat, share
from xcnn.kernels.cpu._simd import BYTES, STRIP
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


class _Plan(NamedTuple):
    """What is counted from shapes.

    Attributes
    ----------
    tables : for `weight_gradient`.
    swapped : whether vectors run along the channels of dy, not of x.
    rows : channels of dy, or channels and kernel positions of x, that vectors are multiplied with.
    numbers : size of the sums of a part.
    planes, room, masked, columns : sizes of the memory for what is multiplied with vectors, for the vectors, for dy
        before it becomes vectors, and of a row of products.
    by_images, by_blocks, blocks : parts, and blocks of channels.
    cycles : cost for one image.
    number : unique number of the layout.
    """

    tables: np.ndarray
    swapped: bool
    rows: int
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
    run = 1 if swapped or axes[-1].dilation > 1 else axes[-1].kernel
    width, cycles = _width(og if swapped else cg, run, most, lanes)
    row, zero = axes[-1].size, np.zeros(1, np.int64)
    if swapped:
        ca, cb, a_pixels, b_pixels, copied, piece = cg, og, pixels, outs, p.size > pixels, min(outs, TERMS)
        channel = p.size if copied else pixels
        offsets, lines = p.windows, np.add.outer(np.arange(ca) * channel, p.taps).ravel()
        stored, windows, room, runs = np.arange(piece), np.arange(outs), piece, zero
        lines_of = p.pixels.reshape(-1, row)[:, 0]  # where rows of pixels are stored
        ahead = axes[-2].size if len(axes) > 1 else 1
        copies = [row, ahead, row, (lines_of[1] - lines_of[0]) if ahead > 1 else row]
        planes_from, planes_to = np.arange(0, pixels, ahead * row), lines_of[::ahead]
        row_step, step = 1, cg * taps
    else:
        ca, cb, a_pixels, b_pixels, copied, piece = og, cg, outs, pixels, masked, pixels + images * outs
        channel, offsets, lines = outs, np.arange(outs), np.arange(og) * outs
        stored, windows, room, runs = p.pixels, p.windows, p.size, p.taps[::run] * width
        copies, planes_from, planes_to = [outs, 1, outs, outs], zero, zero
        row_step, step = cg * taps, taps
    apart = piece if swapped and masked else b_pixels
    tables = pack(
        [
            groups, ca, cb, a_pixels, b_pixels, images, room * width, max(piece, TERMS), run * width, width, apart,
            channel, *copies, row_step, step, og * cg * taps,
        ],
        np.minimum(np.arange(width), cb - 1) * apart,
        stored * width,
        repeat(room * width, images, windows * width),
        np.concatenate([repeat((1 if copied else groups) * ca * channel, images, offsets), lines]),
        runs,
        planes_from,
        planes_to,
    )  # fmt: skip
    blocks = groups * -(-cb // width)
    numbers = blocks * runs.size * lines.size * run * width
    # Copies are counted with what it takes to read from memory.
    moves = cb * b_pixels * (0.5 + 2.5 / min(width, b_pixels, lanes))
    moves += 0.4 * (ca * channel * copied + cb * outs * (swapped and masked))
    cost = groups * (outs * cycles * runs.size * -(-lines.size // 4) + moves)
    count = parts(n * blocks, n * cost / _CYCLES_PER_MICROSECOND)
    by_images = max(1, min(count, -(-n // images), _PARTIAL_BYTES // (numbers * itemsize)))
    by_blocks = max(1, min(count // by_images, blocks))
    return _Plan(
        tables, swapped, groups * lines.size, numbers, images * ca * channel * copied,
        images * room * width + run * width + lanes, apart * min(width, cb) * (swapped and masked), run * width,
        by_images, by_blocks, blocks, cost, new_owner(),
    )  # fmt: skip


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
    sums, out = np.empty((f.by_images, f.numbers), dtype), np.empty(weight.shape, dtype)
    arrays = [flat(a, size) for a in ((x, dy, None, y) if f.swapped else (dy, x, y, None))]

    def some(part: int) -> None:
        i, block = divmod(part, f.by_blocks)
        padded = cleared(f.number, "padded", f.planes if f.swapped else f.room, dtype)
        others = scratch(0, "pixels", f.room if f.swapped else f.planes, dtype)
        planes, bs = (padded, others) if f.swapped else (others, padded)
        weight_gradient(
            *(function.address(size) for function in (multiply, every, transpose)), *arrays, sums[i], f.tables,
            n * i // f.by_images, n * (i + 1) // f.by_images,
            f.blocks * block // f.by_blocks, f.blocks * (block + 1) // f.by_blocks,
            planes, bs, scratch(0, "masked", f.masked, dtype), scratch(0, "sums", ROWS * max(f.columns, BYTES), dtype),
        )  # fmt: skip

    parallel(some, f.by_images * f.by_blocks)
    share(collect, 4 * sums.size, sums, f.tables, out.reshape(-1), n=f.rows)
    return out

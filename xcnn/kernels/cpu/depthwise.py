"""The gradients of depthwise convolutions on the CPU, with vectors of channels (`_depthwise.py`).

Work is distributed over threads by images and by blocks of channels.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._depthwise import depthwise, depthwise_weight_gradient
from xcnn.kernels.cpu._grids import grid, pack, padded_grid, phase_spans, steps_of
from xcnn.kernels.cpu._moves import every, lanes_product
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._scratch import cleared, new_owner, scratch
from xcnn.kernels.cpu._share import flat
from xcnn.kernels.cpu._simd import BYTES
from xcnn.kernels.cpu._transpose import transpose
from xcnn.threads import parallel, parts

__all__ = ["input_gradients", "weight_gradients"]

_PRODUCTS_PER_MICROSECOND = 20_000

Axes = tuple[Any, ...]


class _Layout(NamedTuple):
    """What is counted from shapes: the tables for compiled code, the sizes of its memory, and how work is shared.

    Attributes
    ----------
    padded, memory : size of the memory with padding, names and sizes of the rest.
    masked : size of the memory for a masked block, if dy is masked.
    by_images, by_blocks, blocks : parts, and blocks of channels.
    number : unique number of the layout.
    """

    tables: np.ndarray
    padded: int
    memory: dict[str, int]
    masked: int
    by_images: int
    by_blocks: int
    blocks: int
    number: int


def _shared(tables: np.ndarray, padded: int, memory: dict[str, int], width: int, n: int, c: int, axes: Axes) -> _Layout:
    blocks, outs = -(-c // width), math.prod(a.out for a in axes)
    products = n * c * outs * math.prod(a.kernel for a in axes)
    count = parts(n * blocks, products / _PRODUCTS_PER_MICROSECOND)
    by_images = min(n, count)
    by_blocks = max(1, min(blocks, count // by_images))
    return _Layout(tables, padded, memory, width * outs, by_images, by_blocks, blocks, new_owner())


@functools.lru_cache(maxsize=256)
def _input(axes: Axes, n: int, c: int, lanes: int) -> _Layout:
    width, p, spans = min(lanes, c), planes(axes), phase_spans(axes)
    steps = [int(step) for step in p.axes[3 - len(axes) :, STEP]]
    outs, sizes, ones = [a.out for a in axes], [a.size for a in axes], [1] * len(axes)
    shifts = p.dx_shifts - p.dx_shifts.min()
    places = grid(steps, [0] * len(axes), outs, ones) + p.dy_start - p.dx_shifts.min()
    bases = [grid(steps, span.firsts, span.counts, ones) for span in spans]
    targets = [grid(steps_of(sizes), s.pixels, s.counts, [a.stride for a in axes]) for s in spans]
    taps = [np.flatnonzero(p.dx_phase == span.phase) for span in spans]
    counts = np.array([[some.size for some in bases], [some.size for some in taps]], np.int64)
    begins = np.cumsum(counts, axis=1) - counts
    chosen = np.concatenate(taps)
    size = max(int(places.max()), max(int(some.max()) for some in bases) + int(shifts.max())) + 1
    tables = pack(
        [c],
        np.arange(width) * math.prod(outs),
        places * lanes,
        np.arange(width) * math.prod(sizes),
        np.argsort(np.concatenate(targets)) * lanes,
        np.concatenate([begins, counts]).T,
        np.concatenate(bases) * lanes,
        shifts[chosen] * lanes,
        chosen,
    )
    memory = size * lanes, {"dx": math.prod(sizes) * lanes, "w": chosen.size * lanes}
    return _shared(tables, *memory, width, n, c, axes)


@functools.lru_cache(maxsize=256)
def _weight(axes: Axes, n: int, c: int, lanes: int) -> _Layout:
    width, p = min(lanes, c), padded_grid(axes)
    channels = np.arange(width)
    tables = pack(
        [c],
        channels * p.pixels.size,
        p.pixels * lanes,
        channels * p.windows.size,
        np.arange(p.windows.size) * lanes,
        p.windows * lanes,
        p.taps * lanes,
    )
    memory = {
        "dy": p.windows.size * lanes,
        "sums": p.taps.size * lanes,
        "sums of an image": p.taps.size * lanes,
        "part": p.taps.size * lanes,
    }
    return _shared(tables, p.size * lanes, memory, width, n, c, axes)


def _run(f: _Layout, n: int, dtype: Any, mask: np.ndarray | None, function: Any, *arrays: np.ndarray) -> None:
    """Call a compiled function for all parts, with a part's first array of several in the last one of `arrays`."""
    *inputs, out = arrays
    addresses = [call.address(dtype.itemsize) for call in (every, transpose, lanes_product)]

    def some(part: int) -> None:
        i, b = divmod(part, f.by_blocks)
        function(
            *addresses, *inputs, out[i] if out.ndim > 1 else out, f.tables,
            n * i // f.by_images, n * (i + 1) // f.by_images,
            f.blocks * b // f.by_blocks, f.blocks * (b + 1) // f.by_blocks,
            scratch(0, "masked", 0 if mask is None else f.masked, dtype), cleared(f.number, "padded", f.padded, dtype),
            *(scratch(0, name, size, dtype) for name, size in f.memory.items()),
        )  # fmt: skip

    parallel(some, f.by_images * f.by_blocks)


def input_gradients(dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """Return dx; dy is masked to where y is not 0, unless y is None."""
    n, c, dtype, size = dy.shape[0], dy.shape[1], dy.dtype, dy.itemsize
    f = _input(axes, n, c, BYTES // size)
    dx = np.empty((n, c, *(a.size for a in axes)), dtype)
    _run(f, n, dtype, y, depthwise, flat(dy, size), flat(y, size), flat(weight, size), flat(dx, size))
    return dx


def weight_gradients(x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """Return dweight; dy is masked to where y is not 0, unless y is None."""
    n, c, dtype, size = dy.shape[0], dy.shape[1], dy.dtype, dy.itemsize
    f = _weight(axes, n, c, BYTES // size)
    sums = np.empty((f.by_images, weight.size), dtype)
    _run(f, n, dtype, y, depthwise_weight_gradient, flat(x, size), flat(dy, size), flat(y, size), sums)
    total: np.ndarray = sums[0] if f.by_images == 1 else sums.sum(axis=0)
    return total.reshape(weight.shape)

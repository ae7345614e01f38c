"""The gradients of depthwise convolutions on the CPU, with vectors of channels (`_depthwise.py`).

Work is distributed over threads by images and by blocks of channels.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._depthwise import depthwise, depthwise_weight_gradient
from xcnn.kernels.cpu._grids import grid, padded_grid, phase_spans, steps_of
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._simd import BYTES
from xcnn.threads import parallel, parts

__all__ = ["input_gradients", "weight_gradients"]

_PRODUCTS_PER_MICROSECOND = 20_000

_numbers = itertools.count(-1_000_000, -1)

Axes = tuple[Any, ...]


class _Input(NamedTuple):
    """The tables of `depthwise` for the input gradient, in its order, then the size of xs and the layout's number."""

    rows: np.ndarray
    places: np.ndarray
    out_rows: np.ndarray
    out_places: np.ndarray
    phases: np.ndarray
    bases: np.ndarray
    targets: np.ndarray
    shifts: np.ndarray
    taps: np.ndarray
    size: int
    number: int


@functools.lru_cache(maxsize=256)
def _input(axes: Axes, width: int, lanes: int) -> _Input:
    p, spans = planes(axes), phase_spans(axes)
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
    return _Input(
        np.arange(width) * math.prod(outs),
        places * lanes,
        np.arange(width) * math.prod(sizes),
        np.arange(math.prod(sizes)) * lanes,
        np.ascontiguousarray(np.concatenate([begins, counts]).T),
        np.concatenate(bases) * lanes,
        np.concatenate(targets) * lanes,
        shifts[chosen] * lanes,
        chosen,
        size * lanes,
        next(_numbers),
    )


def _share(n: int, c: int, width: int, products: int) -> tuple[int, int, int]:
    """Return the number of parts by images and by blocks of channels, and the number of blocks."""
    blocks = -(-c // width)
    count = parts(n * blocks, products / _PRODUCTS_PER_MICROSECOND)
    by_images = min(n, count)
    return by_images, max(1, min(blocks, count // by_images)), blocks


def _flat(*arrays: np.ndarray | None) -> list[np.ndarray]:
    given = next(a for a in arrays if a is not None)
    return [np.empty(0, given.dtype) if a is None else np.ascontiguousarray(a).reshape(-1) for a in arrays]


def input_gradients(dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """Return dx; dy is masked to where y is not 0, unless y is None."""
    (n, c), dtype = dy.shape[:2], dy.dtype
    lanes = BYTES // dy.itemsize
    width = min(lanes, c)
    f = _input(axes, width, lanes)
    dx = np.empty((n, c, *(a.size for a in axes)), dtype)
    dy_, y_, weight_, dx_ = _flat(dy, y, weight, dx)
    by_images, by_blocks, blocks = _share(n, c, width, dy.size * f.taps.size)

    def some(part: int) -> None:
        i, b = divmod(part, by_blocks)
        memory = {"dy": f.size, "dx": f.out_places.size * lanes, "w": f.taps.size * lanes}
        masked = scratch(f.number, "masked", 0 if y is None else width * f.places.size, dtype)
        depthwise(
            dy_, y_, weight_, dx_, c, *f[:-2], n * i // by_images, n * (i + 1) // by_images,
            blocks * b // by_blocks, blocks * (b + 1) // by_blocks, masked,
            *(scratch(f.number, name, size, dtype) for name, size in memory.items()),
        )  # fmt: skip

    parallel(some, by_images * by_blocks)
    return dx


class _Weight(NamedTuple):
    """The tables of `depthwise_weight_gradient`, in its order, then the size of xs and the number of the layout."""

    rows: np.ndarray
    places: np.ndarray
    dy_rows: np.ndarray
    dy_places: np.ndarray
    bases: np.ndarray
    shifts: np.ndarray
    size: int
    number: int


@functools.lru_cache(maxsize=256)
def _weight(axes: Axes, width: int, lanes: int) -> _Weight:
    p, channels = padded_grid(axes), np.arange(width)
    return _Weight(
        channels * p.pixels.size,
        p.pixels * lanes,
        channels * p.windows.size,
        np.arange(p.windows.size) * lanes,
        p.windows * lanes,
        p.taps * lanes,
        p.size * lanes,
        next(_numbers),
    )


def weight_gradients(x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes) -> np.ndarray:
    """Return dweight; dy is masked to where y is not 0, unless y is None."""
    (n, c), dtype = dy.shape[:2], dy.dtype
    lanes = BYTES // dy.itemsize
    width = min(lanes, c)
    f = _weight(axes, width, lanes)
    x_, dy_, y_ = _flat(x, dy, y)
    by_images, by_blocks, blocks = _share(n, c, width, dy.size * f.shifts.size)
    sums = np.empty((by_images, weight.size), dtype)

    def some(part: int) -> None:
        i, b = divmod(part, by_blocks)
        memory = {
            "x": f.size,
            "windows": f.dy_places.size * lanes,
            "sums": f.shifts.size * lanes,
            "image": f.shifts.size * lanes,
        }
        masked = scratch(f.number, "masked", 0 if y is None else width * f.dy_places.size, dtype)
        depthwise_weight_gradient(
            x_, dy_, y_, sums[i], c, *f[:-2], n * i // by_images, n * (i + 1) // by_images,
            blocks * b // by_blocks, blocks * (b + 1) // by_blocks, masked,
            *(scratch(f.number, name, size, dtype) for name, size in memory.items()),
        )  # fmt: skip

    parallel(some, by_images * by_blocks)
    total: np.ndarray = sums[0] if by_images == 1 else sums.sum(axis=0)
    return total.reshape(weight.shape)

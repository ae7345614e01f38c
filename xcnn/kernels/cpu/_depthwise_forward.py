"""Depthwise convolution: each channel has kernels of its own, so vectors hold the same pixel of several channels.

The pixels of a vector's worth of channels are transposed into a buffer with padding around them, in which an output is
a base place, and a tap is a shift from it, whatever the stride, the dilation and the rank. Products with vectors of
weights are transposed back. A large map is cut into bands of lines that fit in the cache.
"""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._moves import affine, lanes_product
from xcnn.kernels.cpu._simd import BYTES, TERMS
from xcnn.kernels.cpu._transpose import transpose

__all__ = ["Tables", "depthwise", "depthwise_pays", "tables"]

_BUFFER_BYTES = 700_000
"""Size of the buffers of a band, which should stay in the second-level cache."""

_NUMBERS_PER_MICROSECOND = 80_000
"""Products that a thread computes; moving a number there or back takes as long as four."""

_CHANNELS, _OUTPUTS, _PIXELS, _BANDS, _BAND, _STRIDE, _BEFORE, _SIZE, _EXTENT, _OUT = range(10)
_LINE, _LINE_PIXELS, _LINE_OUTPUTS, _ROOM, _WIDTH, _MULTIPLE, _HEADER = range(10, 17)


class Tables(NamedTuple):
    """The layout of a depthwise convolution for compiled code.

    Attributes
    ----------
    numbers : the header.
    bases, vectors : where the window and the sum of an output are in the buffers.
    places, shifts : where a pixel of a band is in its buffer, and how far a tap is from the first one of a window.
    jobs : number of jobs of one image.
    scratch : size of the buffers.
    microseconds : time that one image takes one thread.
    number : unique number of the layout.
    """

    numbers: np.ndarray
    bases: np.ndarray
    vectors: np.ndarray
    places: np.ndarray
    shifts: np.ndarray
    jobs: int
    scratch: int
    microseconds: float
    number: int


_numbers = itertools.count(1 << 40)


def _grid(axes: Iterable[Iterable[int]]) -> list[int]:
    """Return the sums of one number of each axis, the last axis running fastest."""
    return [sum(numbers) for numbers in itertools.product(*axes)]


def depthwise_pays(shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Return whether a convolution with weights of a shape is depthwise, and its channels fill vectors."""
    enough = BYTES // itemsize // 2 <= shape[0] < 4 * groups
    return enough and shape[1] == 1 and math.prod(shape[2:]) <= TERMS


@functools.lru_cache(maxsize=256)
def tables(axes: tuple[Any, ...], shape: tuple[int, ...], groups: int, itemsize: int) -> Tables:
    """Lay out a depthwise convolution whose windows are `axes`, with weights of a shape.

    Lines are those along the first axis of several pixels; they are cut into bands.
    """
    lanes = BYTES // itemsize
    while len(axes) > 1 and axes[0].size == axes[0].kernel == axes[0].out == 1 and not axes[0].before:
        axes = axes[1:]
    first, *inner = axes
    extents = [(axis.out - 1) * axis.stride + axis.extent for axis in inner]
    steps = [math.prod(extents[i:]) for i in range(len(axes))]
    line, line_pixels, line_outputs = steps[0], math.prod(a.size for a in inner), math.prod(a.out for a in inner)
    most = _BUFFER_BYTES // ((first.stride * line + 2 * line_outputs) * BYTES)
    bands = -(-first.out // max(1, most))
    band = -(-first.out // bands)
    extent = (band - 1) * first.stride + first.extent
    room = extent * line
    bases = _grid(
        range(0, out * axis.stride * step, axis.stride * step)
        for axis, step, out in zip(axes, steps, [band, *(a.out for a in inner)], strict=True)
    )
    shifts = _grid(range(0, a.extent * step, a.dilation * step) for a, step in zip(axes, steps, strict=True))
    beyond = 2 * room  # for pixels that are in no window
    columns = [
        [(i + axis.before) * step if i + axis.before < size else beyond for i in range(axis.size)]
        for axis, step, size in zip(inner, steps[1:], extents, strict=True)
    ]
    places = np.minimum(_grid([range(0, room, line), *columns]), room)
    outputs = len(bases)
    width = -(-outputs // lanes) * lanes
    blocks = -(-shape[0] // lanes)
    header = [
        groups, shape[0], first.size * line_pixels, bands, band, first.stride, first.before, first.size, first.extent,
        first.out, line * lanes, line_pixels, line_outputs, (2 * room + 1) * lanes, width, shape[0] // groups,
    ]  # fmt: skip
    return Tables(
        np.array(header, np.int64),
        np.array(bases, np.int64) * lanes,
        np.arange(outputs) * lanes,
        places.astype(np.int64) * lanes,
        np.array(shifts, np.int64) * lanes,
        blocks * bands,
        (2 * room + 1 + 2 * width + len(shifts)) * lanes,
        blocks * bands * (outputs * (len(shifts) + 8) + extent * line_pixels * 4) * lanes / _NUMBERS_PER_MICROSECOND,
        next(_numbers),
    )


@compiled
def depthwise(
    write, turn, sum_up, x, w, scale, shift, residual, low, high, y, layout, bases, vectors, places, shifts, n, first,
    last, xs,
):  # fmt: skip
    """Do jobs first .. last - 1 of n images: y = clip(convolution * scale + shift + residual, low, high).

    A job is a band of an image, for a vector's worth of output channels; the blocks of channels run slowest. Padding in
    xs is 0, and stays so. write, turn and sum_up are the addresses of `affine`, `transpose` and `lanes_product`.
    """
    lanes = BYTES // x.itemsize
    channels, outputs, pixels, line = layout[_CHANNELS], layout[_OUTPUTS], layout[_PIXELS], layout[_LINE]
    line_pixels, line_outputs, width = layout[_LINE_PIXELS], layout[_LINE_OUTPUTS], layout[_WIDTH]
    bands, sums = layout[_BANDS], layout[_ROOM]
    taps, map_outputs = shifts.size, layout[_OUT] * line_outputs
    weights = sums + 2 * width * lanes
    rows = sums + width * lanes
    sources, columns = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for i in range(lanes):
        columns[i] = i * width
    block = -1
    for job in range(first, last):
        rest, band = divmod(job, bands)
        now, image = divmod(rest, n)
        o0 = now * lanes
        if now != block:
            block = now
            for i in range(lanes):
                o = min(o0 + i, outputs - 1)
                sources[i] = o // layout[_MULTIPLE] * pixels
                for k in range(taps):
                    xs[weights + k * lanes + i] = w[o * taps + k]
        lines = min(layout[_BAND], layout[_OUT] - band * layout[_BAND])
        begin = band * layout[_BAND] * layout[_STRIDE] - layout[_BEFORE]
        end = begin + (lines - 1) * layout[_STRIDE] + layout[_EXTENT]
        low_line, high_line = max(0, begin), min(layout[_SIZE], end)
        if bands > 1:  # otherwise this is where no pixel was ever written
            for k in range((min(low_line, end) - begin) * line):
                xs[k] = 0
            for k in range((max(high_line, begin) - begin) * line, (end - begin) * line):
                xs[k] = 0
        count = max(0, high_line - low_line) * line_pixels
        source, target = image * channels * pixels + low_line * line_pixels, (low_line - begin) * line
        transpose(turn, x, source, sources, xs, target, places[:count])
        lanes_product(sum_up, xs, 0, bases, shifts, xs, weights, xs, sums, lines * line_outputs)
        transpose(turn, xs, sums, vectors[: lines * line_outputs], xs, rows, columns)
        affine(
            write, xs, rows, width, scale, shift, o0, 1, residual, low, high, y,
            (image * outputs + o0) * map_outputs + band * layout[_BAND] * line_outputs, map_outputs,
            min(lanes, outputs - o0), lines * line_outputs,
        )  # fmt: skip

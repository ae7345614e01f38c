"""The gradients of a convolution on the CPU, as products of dy with the weights and with x.

The weights are read where they lie, and dy too where it can be. There are two ways to the weight gradient: with vectors
of channels (`_weight_gradient.py`), and for few channels with vectors of pixels (`_correlation.py`). The cheaper one is
chosen from counted cycles. Work is distributed over threads by images, and by channels if there are few images.

Rows of dy that are laid out have zeros between them, and an infinite number times 0 is NaN. So more of the gradients
may become NaN than with im2col.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu import depthwise
from xcnn.kernels.cpu._correlation import correlate
from xcnn.kernels.cpu._grids import grid, padded_grid, phase_spans, steps_of
from xcnn.kernels.cpu._input_gradient import BAND, bias_gradient, input_gradient
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND, Layout, flops, layout, volume
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import share
from xcnn.kernels.cpu._simd import BYTES
from xcnn.kernels.cpu._sums import add_rows
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._weight_gradient import ROWS, TERMS, collect, weight_gradient
from xcnn.threads import parallel, parts

__all__ = ["bias_gradients", "conv_gradients", "input_gradients", "weight_gradients"]

_CHUNK_BYTES = 800_000
"""Size of the planes of x and dy that are processed together; they should stay in the second-level cache."""

_STACK_BYTES = 600_000
"""The same where the results and the weights have to stay there, too."""

_PARTIAL_BYTES = 1 << 24
"""Memory for the weight gradients of the parts, which are added at the end."""

_CYCLES_PER_MICROSECOND = 4000

_numbers = itertools.count(-1000, -1)

Axes = tuple[Any, ...]


def _images(step: int, images: int, rows: np.ndarray) -> np.ndarray:
    """Return the places of rows in several images."""
    places: np.ndarray = np.add.outer(np.arange(images) * step, rows)
    return places.ravel()


class _Stack(NamedTuple):
    """The tables of `input_gradient`, in its order, then the size of dys, and the number of the layout."""

    room: int
    laid_from: np.ndarray
    laid_to: np.ndarray
    laid: int
    written_from: np.ndarray
    written_to: np.ndarray
    written: np.ndarray
    phases: np.ndarray
    shifts: np.ndarray
    offsets: np.ndarray
    images: int
    number: int


@functools.lru_cache(maxsize=256)
def _stack(axes: Axes, groups: int, cg: int, og: int, n: int, itemsize: int) -> _Stack:
    p, rank = planes(axes), len(axes)
    steps = [int(step) for step in p.axes[3 - rank :, STEP]]
    kernel = [range(axis.kernel) for axis in axes]
    reach = p.dy_start - int(p.dx_shifts.min())
    spans = phase_spans(axes)

    def place(index: Sequence[int]) -> int:
        return sum(i * step for i, step in zip(index, steps, strict=True))

    ends = [place([f + c - 1 for f, c in zip(firsts, counts, strict=True)]) for _, firsts, _, counts in spans]
    first = min((place(firsts) for _, firsts, _, _ in spans), default=0)
    # One image's windows must not reach the pixels of the next one.
    image = max([p.length + reach - first, *(end + 1 for end in ends)])
    lanes = BYTES // itemsize
    # Planes that are read once per row may come from further away.
    most = _STACK_BYTES * (1 if p.x_shifts.size > 1 else 4)
    images = max(1, min(n, BAND // image, most // (og * image * itemsize)))
    outs, sizes = [axis.out for axis in axes], [axis.size for axis in axes]
    if images == 1 and image == outs[0] == sizes[0] >= lanes:
        room = image  # then dy can be read where it lies
    else:
        room = reach + (images - 1) * image + max([p.length, *(end + 1 for end in ends)]) + lanes
        room = (-(-room // 16) | 1) * 16  # odd, as the cache has few places for numbers a power of 2 apart
    ones = [1] * rank
    laid_from = grid(steps_of(outs)[:-1], [0] * (rank - 1), outs[:-1], ones[:-1])
    laid_to = grid(steps[:-1], [0] * (rank - 1), outs[:-1], ones[:-1]) + reach
    written: list[tuple[Any, Any, Any]] = []
    phases, shifts, offsets = [], [], []
    row = term = 0
    for number, firsts, pixels, counts in spans:
        stride = axes[-1].stride
        cuts = range(0, counts[-1], BAND)
        widths = np.array([min(BAND, counts[-1] - cut) for cut in cuts], np.int64)
        places = grid(steps[:-1], firsts[:-1], counts[:-1], ones[:-1])[:, None] + (firsts[-1] + np.array(cuts))
        strides = [axis.stride for axis in axes]
        to = grid(steps_of(sizes)[:-1], [0] * (rank - 1), counts[:-1], strides[:-1])[:, None]
        to = to + sum(u * step for u, step in zip(pixels, steps_of(sizes), strict=True)) + np.array(cuts) * stride
        count = places.size * images
        written.append(
            (
                _images(image, images, places.ravel()),
                _images(groups * cg * math.prod(sizes), images, to.ravel()),
                np.tile(widths, count // widths.size),
            )
        )
        taps = np.flatnonzero(p.dx_phase == number)
        shifts.append((np.arange(og)[:, None] * room + reach + p.dx_shifts[taps] - p.dy_start).ravel())
        offsets.append((np.arange(og)[:, None] * (cg * math.prod(map(len, kernel))) + taps).ravel())
        phases.append((row, count, stride, term, taps.size * og))
        row, term = row + count, term + taps.size * og
    return _Stack(
        room,
        _images(groups * og * math.prod(outs), images, laid_from),
        _images(image, images, laid_to),
        outs[-1],
        np.concatenate([places for places, _, _ in written]),
        np.concatenate([pixels for _, pixels, _ in written]),
        np.concatenate([widths for _, _, widths in written]),
        np.array(phases, np.int64),
        np.concatenate(shifts),
        np.concatenate(offsets),
        images,
        next(_numbers),
    )


def _flat_axes(axes: Axes) -> Axes:
    """Return the axes of a convolution with single pixels as one axis."""
    if any(a.kernel > 1 or a.stride > 1 or a.before or a.after for a in axes):
        return axes
    pixels = math.prod(a.size for a in axes)
    return (replace(axes[0], size=pixels, out=pixels, dilation=1, grown=0),)


def input_gradients(
    dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, bias: np.ndarray | None, axes: Axes, groups: int
) -> np.ndarray:
    """Return dx, plus a bias if it is the result of a transposed convolution; dy is masked to where y is not 0."""
    n, og, cg = dy.shape[0], dy.shape[1] // groups, weight.shape[1]
    if og == cg == 1 < groups and bias is None:
        return depthwise.input_gradients(dy, y, weight, axes)
    dx = np.empty((n, cg * groups, *(axis.size for axis in axes)), dy.dtype)
    dx_pixels, dy_pixels = (math.prod(a.shape[2:]) for a in (dx, dy))
    taps = math.prod(weight.shape[2:])
    f = _stack(_flat_axes(axes), groups, cg, og, n, dy.itemsize)
    nothing = np.empty(0, dy.dtype)
    flat = [nothing if a is None else np.ascontiguousarray(a).reshape(-1) for a in (dy, y, weight, bias, dx)]
    direct = f.room == dx_pixels and y is None and bias is None
    work = 2 * n * groups * cg * og * taps * dy_pixels / FLOPS_PER_MICROSECOND
    most = parts(n * cg, work)
    by_images = min(most, -(-n // f.images))
    # Each part lays out dy for itself, which should be little beside the products.
    by_channels = max(1, min(most // by_images, cg // (8 if direct else max(8, 256 // taps))))
    counts = np.array([groups, cg, og], np.int64)

    def some(part: int) -> None:
        i, c = divmod(part, by_channels)
        dys = nothing if direct else scratch(f.number, "dy", og * f.room, dy.dtype)
        ys = scratch(0, "products", 64 * (BAND + 16), dy.dtype)
        input_gradient(
            *flat, counts, dy_pixels, dx_pixels, taps, *f[:-1], n * i // by_images, n * (i + 1) // by_images,
            cg * c // by_channels, cg * (c + 1) // by_channels, dys, ys,
        )  # fmt: skip

    parallel(some, by_images * by_channels)
    return dx


class _Windows(NamedTuple):
    """The tables of `weight_gradient`, in its order, then the blocks of all groups, and the number of the layout."""

    rows: np.ndarray
    places: np.ndarray
    windows: np.ndarray
    offsets: np.ndarray
    runs: np.ndarray
    columns: int
    room: int
    images: int
    blocks: int
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
def _windows(axes: Axes, groups: int, ca: int, cb: int, n: int, itemsize: int, swapped: bool) -> tuple[_Windows, float]:
    """Return the tables, and the cycles per window and group, for a with ca channels per group and b with cb.

    a is dy and b is x, or vice versa if `swapped`, which takes a kernel of one pixel without padding.
    """
    zeros, ones = [0] * len(axes), [1] * len(axes)
    offsets = grid(steps_of([a.out for a in axes]), zeros, [a.out for a in axes], ones)
    a_size = math.prod(a.out for a in axes)
    if swapped:
        sizes = [a.size for a in axes]
        offsets, a_size = (
            grid(steps_of(sizes), zeros, [a.out for a in axes], [a.stride for a in axes]),
            math.prod(sizes),
        )
        axes = tuple(replace(a, size=a.out, stride=1, after=0) for a in axes)
    p, lanes = padded_grid(axes), BYTES // itemsize
    pixels, outs = p.pixels.size, p.windows.size
    images = max(1, min(n, TERMS // outs))
    run = axes[-1].kernel if axes[-1].dilation == 1 else 1
    width, cycles = _width(cb, run, max(4 * lanes, _CHUNK_BYTES // 2 // (images * p.size * itemsize)), lanes)
    runs, room = p.taps[::run], p.size * width
    tables = _Windows(
        rows=np.arange(width) * pixels,
        places=p.pixels * width,
        windows=_images(room, images, p.windows * width),
        offsets=_images(groups * ca * a_size, images, offsets),
        runs=runs * width,
        columns=run * width,
        room=room,
        images=images,
        blocks=groups * -(-cb // width),
        number=next(_numbers),
    )
    return tables, cycles * ca * runs.size + cb * pixels / outs


@functools.lru_cache(maxsize=256)
def _way(axes: Axes, groups: int, og: int, cg: int, n: int, itemsize: int) -> tuple[_Windows, bool, float] | None:
    """Return the cheapest tables, whether they are swapped, and microseconds; None if vectors of pixels are cheaper."""
    ways = [(*_windows(axes, groups, og, cg, n, itemsize, False), False)]
    if all(a.kernel == 1 and a.before == 0 and (a.out - 1) * a.stride < a.size for a in axes):
        ways.append((*_windows(axes, groups, cg, og, n, itemsize, True), True))
    tables, cycles, swapped = min(ways, key=lambda way: way[1])
    f, outs = layout(axes, cg, og), math.prod(a.out for a in axes)
    products = og * cg * math.prod(a.kernel for a in axes)
    # Half a cycle per vector, a quarter more for what surrounds it; and to add its lanes, once for several images.
    of_pixels = products * (0.625 * itemsize / BYTES * f.length + 5 / _chunk(f, groups * cg, groups * og, itemsize))
    if of_pixels < cycles * outs:
        return None
    return tables, swapped, n * groups * outs * cycles / _CYCLES_PER_MICROSECOND


def _sum_over_windows(
    x: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    groups: int,
    f: _Windows,
    swapped: bool,
    work: float,
) -> np.ndarray:
    """Return the weight gradient, with vectors of channels; `work` is in microseconds."""
    n, dtype = x.shape[0], x.dtype
    a, b = (x, dy) if swapped else (dy, x)
    counts = np.array([groups, a.shape[1] // groups, b.shape[1] // groups], np.int64)
    count = parts(n * f.blocks, work)
    by_images = max(1, min(count, -(-n // f.images), _PARTIAL_BYTES // weight.nbytes))
    by_blocks = min(-(-count // by_images), f.blocks) if by_images < count else 1
    sums = np.empty((by_images, f.blocks * f.runs.size * int(counts[1]) * f.columns), dtype)
    a_y, b_y = (None, y) if swapped else (y, None)
    flat = [np.empty(0, dtype) if a is None else np.ascontiguousarray(a).reshape(-1) for a in (a, b, a_y, b_y)]
    masked_size = 0 if y is None else f.images * dy[0].size

    def some(part: int) -> None:
        i, block = divmod(part, by_blocks)
        masked = scratch(f.number, "masked", masked_size, dtype)
        bs = scratch(f.number, "windows", f.images * f.room + f.columns + BYTES, dtype)
        ys = scratch(0, "sums", ROWS * max(f.columns, BYTES), dtype)
        weight_gradient(
            *flat, sums[i], counts, math.prod(a.shape[2:]), *f[:-2], n * i // by_images, n * (i + 1) // by_images,
            f.blocks * block // by_blocks, f.blocks * (block + 1) // by_blocks, masked, bs, ys,
        )  # fmt: skip

    parallel(some, by_images * by_blocks)
    (o, cg), taps = weight.shape[:2], math.prod(weight.shape[2:])
    og, out = o // groups, np.empty(weight.size, dtype)
    strides = np.array([og * cg * taps, *((og, 1) if swapped else (cg * taps, taps))], np.int64)
    share(
        collect, 4 * sums.size, sums, counts, f.rows.size, f.runs.size, f.columns, out, strides, n=a.shape[1]
    )  # fmt: skip
    if swapped:
        flat, out = [out], np.empty(weight.size, dtype)
        for g in range(groups):
            transpose(*flat, g * og * cg, np.arange(cg) * og, out, g * og * cg, np.arange(og) * cg)
    return out.reshape(weight.shape)


def _chunk(f: Layout, c: int, o: int, itemsize: int) -> int:
    """Return the number of images whose planes of c and o channels are laid out together."""
    return int(max(1, _CHUNK_BYTES // ((c * f.phases * f.plane + o * f.dy_plane) * itemsize)))


def _correlate(
    x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes, groups: int
) -> np.ndarray:
    """Return the weight gradient, with vectors of pixels."""
    (n, o), (c, dtype) = dy.shape[:2], (x.shape[1], x.dtype)
    f = layout(axes, c // groups, o // groups)
    counts = np.array([groups, c // groups, o // groups], np.int64)
    count = parts(min(n, max(2, _PARTIAL_BYTES // weight.nbytes)), flops(n, weight, f) / FLOPS_PER_MICROSECOND)
    dweight = np.zeros((count, weight.size), dtype)
    chunk = min(_chunk(f, c, o, dtype.itemsize), -(-n // count))
    outs = [axis.out for axis in axes]
    steps = [int(step) for step in f.axes[3 - len(axes) :, STEP]]
    zeros, ones = [0] * (len(axes) - 1), [1] * (len(axes) - 1)
    laid = grid(steps_of(outs)[:-1], zeros, outs[:-1], ones), grid(steps[:-1], zeros, outs[:-1], ones) + f.start
    flat = [np.empty(0, dtype) if a is None else np.ascontiguousarray(a).reshape(-1) for a in (dy, y)]
    images = volume(x)

    def some(part: int) -> None:
        xs = scratch(f.number, "x chunk", chunk * c * f.phases * f.plane, dtype)
        dys = scratch(f.number, "dy", chunk * o * f.dy_plane, dtype)
        correlate(
            images, *flat, dweight[part], counts, *f[:7], *laid, outs[-1], math.prod(outs), n * part // count,
            n * (part + 1) // count, chunk, xs, dys,
        )  # fmt: skip

    parallel(some, count)
    total: np.ndarray = dweight[0] if count == 1 else dweight.sum(axis=0)
    return total.reshape(weight.shape)


def weight_gradients(
    x: np.ndarray, dy: np.ndarray, y: np.ndarray | None, weight: np.ndarray, axes: Axes, groups: int
) -> np.ndarray:
    """Return dweight; dy is masked to where y is not 0."""
    n, og, cg = x.shape[0], dy.shape[1] // groups, x.shape[1] // groups
    if og == cg == 1 < groups:
        return depthwise.weight_gradients(x, dy, y, weight, axes)
    found = _way(axes, groups, og, cg, n, x.itemsize)
    if found is None:
        return _correlate(x, dy, y, weight, axes, groups)
    return _sum_over_windows(x, dy, y, weight, groups, *found)


def conv_gradients(
    x: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray | None,
    weight: np.ndarray,
    axes: Axes,
    groups: int,
    needs: Sequence[bool],
) -> tuple[np.ndarray | None, ...]:
    """Return dx, dweight and dbias, as needed; dy is masked to where y is not 0, unless y is None."""
    return (
        input_gradients(dy, y, weight, None, axes, groups) if needs[0] else None,
        weight_gradients(x, dy, y, weight, axes, groups) if needs[1] else None,
        bias_gradients(dy, y) if needs[2] else None,
    )


def bias_gradients(dy: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Return dbias; dy is masked to where y is not 0."""
    n, o, pixels = *dy.shape[:2], math.prod(dy.shape[2:])
    sums = np.empty((n, o), dy.dtype)
    flat = [np.empty(0, dy.dtype) if a is None else np.ascontiguousarray(a).reshape(-1) for a in (dy, y)]
    share(bias_gradient, dy.size, *flat, sums.reshape(-1), pixels, n=n * o)
    total: np.ndarray = sums[0]
    if n > 1:
        total = np.empty(o, dy.dtype)
        add_rows(sums, total)
    return total

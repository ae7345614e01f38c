"""Max and average pooling of any windows, row by row.

A row of windows is reduced from the rows of x that it covers, a vector of windows at a time, whose results stay in
registers (`_windows.py`). Without padding and with stride 1, vectors are read from x itself. Otherwise the pixels of a
row are first sorted by their phase, the remainder of their place divided by the stride, with padding around them: then
the pixels that one kernel position sees are adjacent. Padding above and below a map is left out instead.

Max pooling keeps the kernel position of each maximum, in one byte unless there are more than 255 positions, and neither
x nor y, as backward needs no other data.

There are three spatial axes; maps of one or two have leading axes of one pixel. `windows` (3, outputs, 3) has for each
window along an axis the first kernel position that is not padding, the end of these, and where position 0 is, which may
be padding: in pixels along the last axis, in rows along the others.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._windows import SEVERAL, accumulate, deal, rolled, window_max, window_sum

__all__ = ["adaptive_avg", "adaptive_max", "avg_pool", "global_avg_pool", "max_pool", "reduction"]

_BYTE = 255
"""The winner of a window that is all padding, and the most kernel positions, if winners are bytes."""


@compiled
def _lay(x, x0, maps, pitches, phases, xs):
    """Sort the rows of some maps of x, which begin at x0, into the phases of xs."""
    stride, pitch = phases.shape[0], pitches[1]
    plane, rows, width, joined = xs.size // stride, maps * pitches[2], pitches[0], 1
    if stride * pitch == width and phases[0, 1] == 0:  # without padding, all rows are one
        rows, joined = 1, rows
    for r in range(rows):
        for phase in range(stride):
            at = phase * plane + r * pitch + phases[phase, 1]
            deal(x, x0 + r * width + phases[phase, 0], stride, xs, at, phases[phase, 2] * joined)


@compiled
def _max(x, windows, steps, pitches, phases, taps, first, none, y, winners, begin, end):
    """Set y and winners (maps, od, oh, ow) of some maps of x, which is flat."""
    flat, won, size = y.reshape(-1), winners.reshape(-1), y.shape[1] * y.shape[2] * y.shape[3]
    step = pitches[1] * pitches[2]
    laid = np.empty(phases.shape[0] * SEVERAL * step, x.dtype)
    for k in range(laid.size):
        laid[k] = -np.inf  # as padding never wins
    for p in range(begin, end, SEVERAL):
        maps, at, x0, source = min(SEVERAL, end - p), p * size, p * pitches[2] * pitches[0], x
        if laid.size:
            _lay(x, x0, maps, pitches, phases, laid)
            x0, source = np.intp(0), laid
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                corner = (windows[0, i, 2] + windows[1, j, 2]) * pitches[1]
                t = windows[0, i, 0] * steps[0]
                window_max(
                    source, x0 + corner, step, taps, t + windows[1, j, 0] * steps[1], t + windows[1, j, 1] * steps[1],
                    steps[0], windows[0, i, 1] - windows[0, i, 0], first, none, flat, won, at, size, maps, y.shape[3],
                )  # fmt: skip
                at += y.shape[3]


@compiled
def _sum(x, windows, steps, pitches, phases, taps, divisors, y, begin, end):
    """Set y (maps, od, oh, ow) to the sums of the windows of some maps of x, divided by the product of the divisors."""
    flat, size = y.reshape(-1), y.shape[1] * y.shape[2] * y.shape[3]
    step = pitches[1] * pitches[2]
    laid = np.zeros(phases.shape[0] * SEVERAL * step, x.dtype)
    by = np.empty(y.shape[3], x.dtype)
    for p in range(begin, end, SEVERAL):
        maps, at, x0, source = min(SEVERAL, end - p), p * size, p * pitches[2] * pitches[0], x
        if laid.size:
            _lay(x, x0, maps, pitches, phases, laid)
            x0, source = np.intp(0), laid
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for o in range(by.size):
                    by[o] = divisors[0, i] * divisors[1, j] * divisors[2, o]
                corner = (windows[0, i, 2] + windows[1, j, 2]) * pitches[1]
                t = windows[0, i, 0] * steps[0]
                window_sum(
                    source, x0 + corner, step, taps, t + windows[1, j, 0] * steps[1], t + windows[1, j, 1] * steps[1],
                    steps[0], windows[0, i, 1] - windows[0, i, 0], by, flat, at, size, maps, y.shape[3],
                )  # fmt: skip
                at += y.shape[3]


@compiled
def _max_gradient(winners, dy, windows, offsets, width, none, dx, begin, end):
    """Set the maps of dx (maps, pixels): each dy goes to the winner of its window, `offsets` pixels from its corner."""
    won, source, target, pixels, outs = winners.reshape(-1), dy.reshape(-1), dx.reshape(-1), dx.shape[1], dy.shape[3]
    stride = windows[2, 1, 2] - windows[2, 0, 2] if outs > 1 else 0
    at = begin * dy.shape[1] * dy.shape[2] * outs
    for p in range(begin, end):
        for k in range(p * pixels, (p + 1) * pixels):
            target[np.uintp(k)] = 0
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                corner = p * pixels + (windows[0, i, 2] + windows[1, j, 2]) * width + windows[2, 0, 2]
                for o in range(outs):
                    rolled()
                    winner = won[np.uintp(at + o)]
                    if winner != none:
                        target[np.uintp(corner + o * stride + offsets[winner])] += source[np.uintp(at + o)]
                at += outs


@compiled
def _spread(dy, windows, rows, dilation, pairs, shares, dx, begin, end):
    """Set the maps of dx (maps, rows, width): each dy, multiplied by its shares, is added to its whole window.

    `pairs` says that windows along the last axis are adjacent pairs of pixels, which are then set in vectors.
    """
    width, outs, count = dx.shape[2], dy.shape[3], dx.shape[1]
    lines, zeros, across = np.zeros((dy.shape[1] * dy.shape[2], width), dx.dtype), np.zeros(width, dx.dtype), shares[2]
    pixels, flat = dx.reshape(-1), lines.reshape(-1)
    for p in range(begin, end):
        for r in range(p * count, (p + 1) * count):
            deal(zeros, 0, 1, pixels, r * width, width)
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                part, source, row = shares[0, i] * shares[1, j], dy[p, i, j], lines[i * dy.shape[2] + j]
                if pairs:
                    for o in range(outs):
                        value = source[o] * (part * across[o])
                        row[2 * o] = value
                        row[2 * o + 1] = value
                else:
                    for k in range(width):
                        row[k] = 0
                    for o in range(outs):
                        value = source[o] * (part * across[o])
                        for k in range(windows[2, o, 0], windows[2, o, 1]):
                            rolled()
                            row[np.uintp(windows[2, o, 2] + k * dilation)] += value
        # Only now, as a processor cannot read at once what it has just written in smaller pieces.
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                for k in range(windows[0, i, 0], windows[0, i, 1]):
                    for m in range(windows[1, j, 0], windows[1, j, 1]):
                        r = p * count + windows[0, i, 2] + k * rows[0] + windows[1, j, 2] + m * rows[1]
                        accumulate(flat, (i * dy.shape[2] + j) * width, pixels, r * width, width)


@summing
def _means(x, y, begin, end):
    """Set y (maps,) to the means of the rows of x (maps, pixels)."""
    for p in range(begin, end):
        pixels, total = x[p], 0.0
        for first in range(0, pixels.size, BLOCK):
            block, part = pixels[first : first + BLOCK], 0.0
            for k in range(block.size):
                part += block[k]
            total += part
        y[p] = total / pixels.size


@compiled
def _spread_means(dy, dx, begin, end):
    """Set the rows of dx (maps, pixels) to dy (maps,) divided by their length."""
    for p in range(begin, end):
        dx[p] = dy[p] / dx.dtype.type(dx.shape[1])


@compiled
def _adaptive_sum(x, windows, divisors, y, begin, end):
    """Set y (maps, od, oh, ow) to the means of windows of any lengths of x (maps, d, h, w)."""
    row = np.empty(x.shape[3], x.dtype)
    for p in range(begin, end):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for k in range(row.size):
                    row[k] = 0
                for r in range(windows[0, i, 2], windows[0, i, 2] + windows[0, i, 1]):
                    for q in range(windows[1, j, 2], windows[1, j, 2] + windows[1, j, 1]):
                        source = x[p, r, q]
                        for k in range(row.size):
                            row[k] += source[k]
                target, by = y[p, i, j], divisors[0, i] * divisors[1, j]
                for o in range(target.size):
                    total = row[windows[2, o, 2]]
                    for k in range(windows[2, o, 2] + 1, windows[2, o, 2] + windows[2, o, 1]):
                        rolled()
                        total += row[k]
                    target[o] = total / (by * divisors[2, o])


@compiled
def _adaptive_max(x, windows, y, winners, begin, end):
    """Set y (maps, od, oh, ow) to the maxima of windows of any lengths of x (maps, d, h, w), and their pixels."""
    for p in range(begin, end):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for o in range(y.shape[3]):
                    z0, y0, x0 = windows[0, i, 2], windows[1, j, 2], windows[2, o, 2]
                    best, winner = x[p, z0, y0, x0], (z0 * x.shape[2] + y0) * x.shape[3] + x0
                    for r in range(z0, z0 + windows[0, i, 1]):
                        for q in range(y0, y0 + windows[1, j, 1]):
                            for k in range(x0, x0 + windows[2, o, 1]):
                                rolled()
                                new = x[p, r, q, k]
                                if (new > best) | ((new != new) & (best == best)):
                                    best, winner = new, (r * x.shape[2] + q) * x.shape[3] + k
                    y[p, i, j, o], winners[p, i, j, o] = best, winner


class _Layout(NamedTuple):
    """The windows of a pool for compiled code.

    Attributes
    ----------
    windows : as above.
    steps : the number of kernel positions between neighbours along the first axis, and along the second.
    rows : rows between these, along the first two axes.
    pitches : pixels of a row of x, the distance of rows where they are read, and the rows of a map.
    phases : (stride, 3), the first pixel of each phase, its place and how many there are; none if x is not laid out.
    taps : where the kernel positions are, counted from that of position 0.
    first : the first position along the last axis of each window that is not padding, or a large number.
    offsets : pixels from the corner of a window to each position.
    outs : outputs along each axis.
    """

    windows: np.ndarray
    steps: np.ndarray
    rows: np.ndarray
    pitches: np.ndarray
    phases: np.ndarray
    taps: np.ndarray
    first: np.ndarray
    offsets: np.ndarray
    outs: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _layout(axes: tuple[Any, ...]) -> _Layout:
    outs = tuple(axis.out for axis in axes)
    axes = (type(axes[0])(1, 1, 1, 1, 0, 0, 1),) * (3 - len(axes)) + axes
    deep, high, wide = axes
    windows = np.zeros((3, max(axis.out for axis in axes), 3), np.int64)
    offsets = np.zeros(1, np.int64)
    for row, (axis, rows) in enumerate(zip(axes, (high.size, 1, 1), strict=True)):
        start = np.arange(axis.out) * axis.stride - axis.before
        begin = np.maximum(-(start // axis.dilation), 0)
        end = np.minimum((axis.size - 1 - start) // axis.dilation + 1, axis.kernel)
        windows[row, : axis.out] = np.stack([begin, end, start * rows], axis=1)
        pixels = rows * (wide.size if row < 2 else 1)
        offsets = np.add.outer(offsets, np.arange(axis.kernel) * axis.dilation * pixels).ravel()
    seen = np.arange(wide.kernel) * wide.dilation
    pitch, phases, taps = wide.size, np.empty((0, 3), np.int64), seen
    if (wide.stride > 1 and wide.out > 1) or wide.before or wide.after:
        stride = wide.stride
        room = wide.out + (wide.extent - 1) // stride
        pixel = (np.arange(stride) - wide.before) % stride
        place = (wide.before + pixel) // stride
        count = np.minimum(-((pixel - wide.size) // stride), room - place)
        phases, pitch = np.stack([pixel, place, count], axis=1), room
        taps = seen % stride * SEVERAL * deep.size * high.size * room + seen // stride
    inside = windows[2, : wide.out, 0] < windows[2, : wide.out, 1]
    first = np.where(inside, windows[2, : wide.out, 0], 1 << 24).astype(np.int32)
    rows = np.array([deep.dilation * high.size, high.dilation], np.int64)
    for step, axis in ((rows[1], high), (rows[0], deep)):
        taps = np.add.outer(np.arange(axis.kernel) * step * pitch, taps).ravel()
    steps = np.array([high.kernel * wide.kernel, wide.kernel], np.int64)
    pitches = np.array([wide.size, pitch, deep.size * high.size], np.int64)
    return _Layout(windows, steps, rows, pitches, phases, taps, first, offsets, outs)


class _Means(NamedTuple):
    """What is computed once for an average pool.

    Attributes
    ----------
    whole : whether a window is the whole map.
    divisors, shares : (3, outputs), along three axes; their product is that of a window, and its inverse.
    pairs : whether windows along the last axis are adjacent pairs.
    covers, cover_divisors : the windows of dy whose means are dx, and their divisors, if strides and divisors allow it.
    """

    whole: bool
    divisors: np.ndarray
    shares: np.ndarray
    pairs: bool
    covers: tuple[Any, ...]
    cover_divisors: np.ndarray


@functools.lru_cache(maxsize=256)
def _means_of(axes: tuple[Any, ...], counts: tuple[tuple[int, ...], ...], divisor: int | None, dtype: Any) -> _Means:
    divisors = np.ones((3, max(axis.out for axis in axes)), dtype)
    if divisor is not None:
        divisors[2] = divisor
    else:
        for row, along in enumerate(counts, 3 - len(counts)):
            divisors[row, : len(along)] = along
    equal = divisor is not None or all(min(along) == max(along) for along in counts)
    covers = tuple(map(_reversed, axes)) if equal and all(a.stride == 1 for a in axes) else ()
    wide = axes[-1]
    return _Means(
        whole=divisor is None and all(a.kernel == a.padded == a.size and a.dilation == 1 for a in axes),
        divisors=divisors,
        shares=1 / divisors,
        pairs=wide.kernel == wide.stride == 2 and 2 * wide.out == wide.padded == wide.size,
        covers=covers,
        cover_divisors=np.repeat(divisors[:, :1], max(axis.size for axis in axes), axis=1),
    )


def _flat(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a).reshape(-1)


def _maps(a: np.ndarray, rank: int) -> np.ndarray:
    """Join the leading axes: (maps, *sizes), in C order."""
    return np.ascontiguousarray(a).reshape(-1, *a.shape[a.ndim - rank :])


def _rows(a: np.ndarray, rank: int) -> np.ndarray:
    """Return maps as rows (maps, pixels), in C order."""
    return np.ascontiguousarray(a).reshape(-1, math.prod(a.shape[a.ndim - rank :]))


def _volumes(a: np.ndarray, rank: int) -> np.ndarray:
    """Return maps with three axes (maps, d, h, w), in C order."""
    return np.ascontiguousarray(a).reshape(-1, *(1,) * (3 - rank), *a.shape[a.ndim - rank :])


@kernel(np)
def max_pool(x: np.ndarray, axes: tuple[Any, ...]) -> Any:
    """Return the maxima; keep their positions."""
    if not supports(x):
        return NotImplemented
    f, rank, shape = _layout(axes), len(axes), x.shape
    y = np.empty((*shape[: x.ndim - rank], *f.outs), x.dtype)
    small = f.offsets.size <= _BYTE
    winners = np.empty(y.shape, np.uint8 if small else np.int32)
    none = _BYTE if small else f.offsets.size
    results = _volumes(y, rank), _volumes(winners, rank)
    work = 2 * x.size + f.offsets.size * y.size // 4
    tables = f.windows, f.steps, f.pitches, f.phases, f.taps, f.first, none
    share(_max, work, _flat(x), *tables, *results, n=len(results[0]))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        f = _layout(axes)
        dx = np.empty(shape, dy.dtype)
        arrays = _volumes(winners, rank), _volumes(dy, rank), f.windows, f.offsets, axes[-1].size, none, _rows(dx, rank)
        share(_max_gradient, dx.size + 8 * dy.size, *arrays)
        return (dx,)

    return y, backward


def _whole(x: np.ndarray, rank: int) -> Any:
    """Pool whole maps."""
    shape = x.shape
    y, rows_backward = global_avg_pool(_rows(x, rank)[None])

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        (dx,) = rows_backward(dy.reshape(1, -1), needs)
        return (None if dx is None else dx.reshape(shape),)

    return y.reshape(*shape[: x.ndim - rank], *(1,) * rank), backward


@kernel(np)
def avg_pool(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Take the means of windows, and spread gradients evenly."""
    if not supports(x):
        return NotImplemented
    means = _means_of(axes, counts, divisor, x.dtype)
    if means.whole:
        return _whole(x, len(axes))
    rank, shape = len(axes), x.shape

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        means = _means_of(axes, counts, divisor, dy.dtype)
        if means.covers:
            return (_sums(dy, means.covers, means.cover_divisors),)
        f = _layout(axes)
        dx = np.empty(shape, dy.dtype)
        rows = dx.reshape(-1, math.prod(shape[len(shape) - rank : -1]), shape[-1])
        tables = f.windows, f.rows, axes[-1].dilation, means.pairs, means.shares
        share(_spread, 2 * dx.size + 4 * dy.size, _volumes(dy, rank), *tables, rows)
        return (dx,)

    return _sums(x, axes, means.divisors), backward


def _reversed(axis: Any) -> Any:
    """Return the windows of stride 1 of outputs that cover each pixel."""
    before, after = (axis.extent - 1 - side for side in (axis.before, axis.after))
    return type(axis)(axis.out, axis.kernel, 1, axis.dilation, before, after, axis.size)


def _sums(x: np.ndarray, axes: tuple[Any, ...], divisors: np.ndarray) -> np.ndarray:
    """Return the sums of windows, divided by the divisors."""
    f, rank = _layout(axes), len(axes)
    y = np.empty((*x.shape[: x.ndim - rank], *f.outs), x.dtype)
    maps = _volumes(y, rank)
    work = 2 * x.size + f.offsets.size * y.size // 8
    share(_sum, work, _flat(x), f.windows, f.steps, f.pitches, f.phases, f.taps, divisors, maps, n=len(maps))
    return y


@kernel(np)
def global_avg_pool(x: np.ndarray) -> Any:
    """Take the means of the rows of x (n, c, pixels)."""
    if not supports(x):
        return NotImplemented
    shape = x.shape
    y = np.empty(shape[:2], x.dtype)
    share(_means, x.size, _rows(x, 1), y.reshape(-1))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = np.empty(shape, dy.dtype)
        share(_spread_means, dx.size, _maps(dy, 0), _rows(dx, 1))
        return (dx,)

    return y, backward


@functools.lru_cache(maxsize=256)
def _adaptive(plan: tuple[tuple[int, int], ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of axes with these sizes and outputs, in the form above, and their lengths."""
    plan = ((1, 1),) * (3 - len(plan)) + plan
    windows = np.zeros((3, max(out for _, out in plan), 3), np.int64)
    for row, (size, out) in enumerate(plan):
        start, end = np.arange(out) * size // out, -(-np.arange(1, out + 1) * size // out)
        windows[row, :out] = np.stack([np.zeros_like(start), end - start, start], axis=1)
    return windows, windows[:, :, 1].astype(dtype)


@kernel(np)
def adaptive_avg(x: np.ndarray, plan: tuple[tuple[int, int], ...]) -> Any:
    """Take the means of windows of any lengths, and spread gradients evenly."""
    if not supports(x):
        return NotImplemented
    (windows, divisors), rank, shape = _adaptive(plan, x.dtype), len(plan), x.shape
    y = np.empty((*shape[: x.ndim - rank], *(out for _, out in plan)), x.dtype)
    share(_adaptive_sum, 4 * x.size + 8 * y.size, _volumes(x, rank), windows, divisors, _volumes(y, rank))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        windows, divisors = _adaptive(plan, dy.dtype)
        high = plan[-2][0] if rank > 1 else 1
        tables = (
            windows * [[[1, 1, high]], [[1, 1, 1]], [[1, 1, 1]]],
            np.array([high, 1]),
            1,
            False,
            1 / np.maximum(divisors, 1),
        )
        dx = np.empty(shape, dy.dtype)
        maps = dx.reshape(-1, math.prod(shape[len(shape) - rank : -1]), shape[-1])
        share(_spread, 4 * dx.size + 8 * dy.size, _volumes(dy, rank), *tables, maps)
        return (dx,)

    return y, backward


@kernel(np)
def adaptive_max(x: np.ndarray, plan: tuple[tuple[int, int], ...]) -> Any:
    """Return the maxima of windows of any lengths; keep their pixels."""
    rank, shape = len(plan), x.shape
    if not supports(x) or math.prod(size for size, _ in plan) > np.iinfo(np.int32).max:
        return NotImplemented
    y = np.empty((*shape[: x.ndim - rank], *(out for _, out in plan)), x.dtype)
    winners = np.empty(y.shape, np.int32)
    share(
        _adaptive_max,
        8 * x.size,
        _volumes(x, rank),
        _adaptive(plan, x.dtype)[0],
        _volumes(y, rank),
        _volumes(winners, rank),
    )

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = np.empty(shape, dy.dtype)
        corners = np.zeros((3, max(out for _, out in plan), 3), np.int64)
        pixels = np.arange(math.prod(size for size, _ in plan))
        arrays = _volumes(winners, rank), _volumes(dy, rank), corners, pixels, 0, -1, _rows(dx, rank)
        share(_max_gradient, dx.size + 8 * dy.size, *arrays)
        return (dx,)

    return y, backward


@kernel(np)
def reduction(x: np.ndarray, axes: tuple[int, ...], keepdims: bool, average: bool) -> Any:
    """Take the means over the last axes, as of maps."""
    lead, shape = x.ndim - len(axes), x.shape
    if not average or not axes or axes[0] != lead or not supports(x):
        return NotImplemented
    maps = x.reshape(1, math.prod(shape[:lead]), math.prod(shape[lead:]))
    y, of_maps = global_avg_pool(maps)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        (dx,) = of_maps(dy.reshape(1, -1), needs)
        return (None if dx is None else dx.reshape(shape),)

    return y.reshape(shape[:lead] + (1,) * len(axes) * keepdims), backward

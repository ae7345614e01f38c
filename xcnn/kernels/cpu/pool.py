"""Max and average pooling of any windows, row by row.

A row of windows is reduced from the rows of x that it covers, a vector of windows at a time, whose results stay in
registers (`_windows.py`). Without padding and with stride 1, vectors are read from x itself. Otherwise the pixels of a
row are first sorted by their phase, the remainder of their place divided by the stride, with padding around them: then
the pixels that one kernel position sees are adjacent. Padding above and below a map is left out instead.

Max pooling keeps the kernel position of each maximum, in one byte unless there are more than 255 positions, and neither
x nor y, as backward needs no other data.

Compiled code takes arrays as their numbers in C order. There are three spatial axes; maps of one or two have leading
axes of one pixel. `windows` (3, outputs, 3) has for each
window along an axis the first kernel position that is not padding, the end of these, and where position 0 is, which may
be padding: in pixels along the last axis, in rows along the others.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._windows import SEVERAL, accumulate, deal, doubled, rolled, window_max, window_sum

__all__ = ["adaptive_avg", "adaptive_max", "avg_pool", "max_pool", "reduction"]

_BYTE = 255
"""The winner of a window that is all padding, and the most kernel positions, if winners are bytes."""


_STEP, _STEPS, _WIDTH, _PITCH, _ROWS, _DEEP, _HIGH, _WIDE, _FAR, _NEXT, _DILATION, _PAIRS = range(12)
"""What `sizes` has: kernel positions between neighbours along the first axis, and along the second; pixels of a row of
x, the distance of rows where they are read, the rows of a map; outputs along the three axes; rows between neighbouring
kernel positions along the first two axes, and pixels along the last; whether windows along it are adjacent pairs."""


@compiled
def _lay(x, x0, maps, sizes, phases, xs):
    """Sort the rows of some maps of x, which begin at x0, into the phases of xs."""
    stride, pitch = phases.shape[0], sizes[_PITCH]
    plane, rows, width, joined = xs.size // stride, maps * sizes[_ROWS], sizes[_WIDTH], 1
    if stride * pitch == width and phases[0, 1] == 0:  # without padding, all rows are one
        rows, joined = 1, rows
    for r in range(rows):
        for phase in range(stride):
            at = phase * plane + r * pitch + phases[phase, 1]
            deal(x, x0 + r * width + phases[phase, 0], stride, xs, at, phases[phase, 2] * joined)


@compiled
def _max(x, windows, sizes, phases, taps, first, none, y, winners, laid, begin, end):
    """Set y and winners of some maps of x."""
    deep, high, wide, step = sizes[_DEEP], sizes[_HIGH], sizes[_WIDE], sizes[_PITCH] * sizes[_ROWS]
    size = deep * high * wide
    for k in range(laid.size):
        laid[k] = -np.inf  # as padding never wins
    for p in range(begin, end, SEVERAL):
        maps, at, x0, source = min(SEVERAL, end - p), p * size, p * sizes[_ROWS] * sizes[_WIDTH], x
        if laid.size:
            _lay(x, x0, maps, sizes, phases, laid)
            x0, source = np.intp(0), laid
        for i in range(deep):
            for j in range(high):
                corner = (windows[0, i, 2] + windows[1, j, 2]) * sizes[_PITCH]
                t = windows[0, i, 0] * sizes[_STEP]
                window_max(
                    source, x0 + corner, step, taps, t + windows[1, j, 0] * sizes[_STEPS],
                    t + windows[1, j, 1] * sizes[_STEPS], sizes[_STEP], windows[0, i, 1] - windows[0, i, 0], first,
                    none, y, winners, at, size, maps, wide,
                )  # fmt: skip
                at += wide


@compiled
def _sum(x, windows, sizes, phases, taps, divisors, y, by, laid, begin, end):
    """Set y to the sums of the windows of some maps of x, divided by the product of the divisors, `by`."""
    deep, high, wide, step = sizes[_DEEP], sizes[_HIGH], sizes[_WIDE], sizes[_PITCH] * sizes[_ROWS]
    size = deep * high * wide
    for k in range(laid.size):
        laid[k] = 0
    for p in range(begin, end, SEVERAL):
        maps, at, x0, source = min(SEVERAL, end - p), p * size, p * sizes[_ROWS] * sizes[_WIDTH], x
        if laid.size:
            _lay(x, x0, maps, sizes, phases, laid)
            x0, source = np.intp(0), laid
        for i in range(deep):
            for j in range(high):
                for o in range(wide):
                    by[o] = divisors[0, i] * divisors[1, j] * divisors[2, o]
                corner = (windows[0, i, 2] + windows[1, j, 2]) * sizes[_PITCH]
                t = windows[0, i, 0] * sizes[_STEP]
                window_sum(
                    source, x0 + corner, step, taps, t + windows[1, j, 0] * sizes[_STEPS],
                    t + windows[1, j, 1] * sizes[_STEPS], sizes[_STEP], windows[0, i, 1] - windows[0, i, 0], by, y,
                    at, size, maps, wide,
                )  # fmt: skip
                at += wide


@compiled
def _max_gradient(winners, dy, windows, offsets, sizes, none, dx, begin, end):
    """Set some maps of dx: each dy goes to the winner of its window, `offsets` pixels from its corner."""
    deep, high, outs, pixels = sizes[_DEEP], sizes[_HIGH], sizes[_WIDE], sizes[_ROWS] * sizes[_WIDTH]
    stride = windows[2, 1, 2] - windows[2, 0, 2] if outs > 1 else 0
    at = begin * deep * high * outs
    for p in range(begin, end):
        for k in range(p * pixels, (p + 1) * pixels):
            dx[np.uintp(k)] = 0
        for i in range(deep):
            for j in range(high):
                corner = p * pixels + (windows[0, i, 2] + windows[1, j, 2]) * sizes[_WIDTH] + windows[2, 0, 2]
                for o in range(outs):
                    rolled()
                    winner = winners[np.uintp(at + o)]
                    if winner != none:
                        dx[np.uintp(corner + o * stride + offsets[winner])] += dy[np.uintp(at + o)]
                at += outs


@compiled
def _spread(dy, windows, sizes, shares, dx, lines, begin, end):
    """Set some maps of dx: each dy, multiplied by its shares, is added to its whole window."""
    deep, high, outs, width, count = sizes[_DEEP], sizes[_HIGH], sizes[_WIDE], sizes[_WIDTH], sizes[_ROWS]
    for p in range(begin, end):
        for k in range(p * count * width, (p + 1) * count * width):
            dx[np.uintp(k)] = 0
        for i in range(deep):
            for j in range(high):
                row, at, part = (i * high + j) * width, ((p * deep + i) * high + j) * outs, shares[0, i] * shares[1, j]
                if sizes[_PAIRS]:  # without padding, so all shares are alike
                    doubled(dy, at, part * shares[2, 0], lines, row, outs)
                else:
                    for k in range(row, row + width):
                        lines[np.uintp(k)] = 0
                    for o in range(outs):
                        value, corner = dy[np.uintp(at + o)] * (part * shares[2, o]), row + windows[2, o, 2]
                        for k in range(windows[2, o, 0], windows[2, o, 1]):
                            rolled()
                            lines[np.uintp(corner + k * sizes[_DILATION])] += value
        # Only now, as a processor cannot read at once what it has just written in smaller pieces.
        for i in range(deep):
            for j in range(high):
                for k in range(windows[0, i, 0], windows[0, i, 1]):
                    for m in range(windows[1, j, 0], windows[1, j, 1]):
                        r = p * count + windows[0, i, 2] + k * sizes[_FAR] + windows[1, j, 2] + m * sizes[_NEXT]
                        accumulate(lines, (i * high + j) * width, dx, r * width, width)


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
    sizes : as above.
    phases : (stride, 3), the first pixel of each phase, its place and how many there are; none if x is not laid out.
    taps : where the kernel positions are, counted from that of position 0.
    first : the first position along the last axis of each window that is not padding, or a large number.
    offsets : pixels from the corner of a window to each position.
    outs : outputs along each axis.
    room : how many numbers are laid out.
    """

    windows: np.ndarray
    sizes: np.ndarray
    phases: np.ndarray
    taps: np.ndarray
    first: np.ndarray
    offsets: np.ndarray
    outs: tuple[int, ...]
    room: int


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
    for step, axis in ((high.dilation, high), (deep.dilation * high.size, deep)):
        taps = np.add.outer(np.arange(axis.kernel) * step * pitch, taps).ravel()
    pairs = wide.kernel == wide.stride == 2 and 2 * wide.out == wide.padded == wide.size
    sizes = (
        high.kernel * wide.kernel, wide.kernel, wide.size, pitch, deep.size * high.size, deep.out, high.out, wide.out,
        deep.dilation * high.size, high.dilation, wide.dilation, pairs,
    )  # fmt: skip
    room = len(phases) * SEVERAL * pitch * deep.size * high.size
    return _Layout(windows, np.array(sizes, np.int64), phases, taps, first, offsets, outs, room)


class _Means(NamedTuple):
    """What is computed once for an average pool.

    Attributes
    ----------
    whole : whether a window is the whole map.
    divisors, shares : (3, outputs), along three axes; their product is that of a window, and its inverse.
    covers, cover_divisors : the windows of dy whose means are dx, and their divisors, if strides and divisors allow it.
    """

    whole: bool
    divisors: np.ndarray
    shares: np.ndarray
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
    return _Means(
        whole=divisor is None and all(a.kernel == a.padded == a.size and a.dilation == 1 for a in axes),
        divisors=divisors,
        shares=1 / divisors,
        covers=covers,
        cover_divisors=np.repeat(divisors[:, :1], max(axis.size for axis in axes), axis=1),
    )


def _flat(a: np.ndarray) -> np.ndarray:
    return a.ravel()  # a reshaped slice may keep gaps between its numbers


def _share(
    function: Callable[..., None], work: int, maps: int, *arguments: Any, rooms: Sequence[int], dtype: Any
) -> None:
    """Share out maps, and give each thread arrays of its own, which come after the other arguments."""

    def some(begin: int, end: int) -> None:
        own = [scratch(0, f"windows {k}", size, dtype) for k, size in enumerate(rooms)]
        function(*arguments, *own, begin, end)

    share(some, work, n=maps)


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
    work, maps = 2 * x.size + f.offsets.size * y.size // 4, math.prod(shape[: x.ndim - rank])
    tables = f.windows, f.sizes, f.phases, f.taps, f.first, none
    _share(_max, work, maps, _flat(x), *tables, _flat(y), _flat(winners), rooms=[f.room], dtype=x.dtype)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        f = _layout(axes)
        dx = np.empty(shape, dy.dtype)
        arrays = _flat(winners), _flat(dy), f.windows, f.offsets, f.sizes, none, _flat(dx)
        share(_max_gradient, dx.size + 8 * dy.size, *arrays, n=maps)
        return (dx,)

    return y, backward


@kernel(np)
def avg_pool(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Take the means of windows, and spread gradients evenly."""
    if not supports(x):
        return NotImplemented
    means = _means_of(axes, counts, divisor, x.dtype)
    if means.whole:
        return _last(x, len(axes), True)
    shape = x.shape

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        means = _means_of(axes, counts, divisor, dy.dtype)
        if means.covers:
            return (_sums(dy, means.covers, means.cover_divisors),)
        f = _layout(axes)
        dx = np.empty(shape, dy.dtype)
        _spread_all(dy, f.windows, f.sizes, means.shares, dx)
        return (dx,)

    return _sums(x, axes, means.divisors), backward


def _spread_all(dy: np.ndarray, windows: np.ndarray, sizes: np.ndarray, shares: np.ndarray, dx: np.ndarray) -> None:
    """Set dx to the shares of dy."""
    lines = math.prod(sizes[[_DEEP, _HIGH, _WIDTH]].tolist())
    maps, arguments = dx.size // int(sizes[_ROWS] * sizes[_WIDTH]), (_flat(dy), windows, sizes, shares, _flat(dx))
    _share(_spread, 2 * dx.size + 4 * dy.size, maps, *arguments, rooms=[lines], dtype=dx.dtype)


def _reversed(axis: Any) -> Any:
    """Return the windows of stride 1 of outputs that cover each pixel."""
    before, after = (axis.extent - 1 - side for side in (axis.before, axis.after))
    return type(axis)(axis.out, axis.kernel, 1, axis.dilation, before, after, axis.size)


def _sums(x: np.ndarray, axes: tuple[Any, ...], divisors: np.ndarray) -> np.ndarray:
    """Return the sums of windows, divided by the divisors."""
    f, rank = _layout(axes), len(axes)
    y = np.empty((*x.shape[: x.ndim - rank], *f.outs), x.dtype)
    work, maps = 2 * x.size + f.offsets.size * y.size // 8, math.prod(x.shape[: x.ndim - rank])
    arguments = _flat(x), f.windows, f.sizes, f.phases, f.taps, divisors, _flat(y)
    _share(_sum, work, maps, *arguments, rooms=[f.outs[-1], f.room], dtype=x.dtype)
    return y


def _last(x: np.ndarray, rank: int, keepdims: bool) -> Any:
    """Take the means over the last axes."""
    shape, lead = x.shape, x.shape[: x.ndim - rank]
    y, maps = np.empty(lead, x.dtype), math.prod(lead)
    share(_means, x.size, np.ascontiguousarray(x).reshape(maps, -1), _flat(y))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = np.empty(shape, dy.dtype)
        share(_spread_means, dx.size, _flat(dy), dx.reshape(maps, -1))
        return (dx,)

    return y.reshape(lead + (1,) * rank * keepdims), backward


@functools.lru_cache(maxsize=256)
def _adaptive(plan: tuple[tuple[int, int], ...], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of axes with these sizes and outputs, in the form above, and their lengths."""
    plan = ((1, 1),) * (3 - len(plan)) + plan
    windows = np.zeros((3, max(out for _, out in plan), 3), np.int64)
    for row, (size, out) in enumerate(plan):
        start, end = np.arange(out) * size // out, -(-np.arange(1, out + 1) * size // out)
        windows[row, :out] = np.stack([np.zeros_like(start), end - start, start], axis=1)
    return windows, windows[:, :, 1].astype(dtype)


def _sizes(plan: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Return the sizes that the gradients of adaptive pools need."""
    (deep, od), (high, oh), (wide, ow) = ((1, 1),) * (3 - len(plan)) + plan
    return np.array((0, 0, wide, wide, deep * high, od, oh, ow, high, 1, 1, False), np.int64)


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
        windows, sizes = windows * [[[1, 1, plan[-2][0] if rank > 1 else 1]], [[1, 1, 1]], [[1, 1, 1]]], _sizes(plan)
        dx, shares = np.empty(shape, dy.dtype), 1 / np.maximum(divisors, 1)
        _spread_all(dy, windows, sizes, shares, dx)
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
        arrays = _flat(winners), _flat(dy), corners, pixels, _sizes(plan), -1, _flat(dx)
        share(_max_gradient, dx.size + 8 * dy.size, *arrays, n=math.prod(shape[: len(shape) - rank]))
        return (dx,)

    return y, backward


@kernel(np)
def reduction(x: np.ndarray, axes: tuple[int, ...], keepdims: bool, average: bool) -> Any:
    """Take the means over the last axes, as of maps."""
    if not average or not axes or axes[0] != x.ndim - len(axes) or not supports(x):
        return NotImplemented
    return _last(x, len(axes), keepdims)

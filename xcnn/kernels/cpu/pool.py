"""Max and average pooling, map by map.

Max pooling keeps one byte per window, the kernel position of its maximum, and neither x nor y, as backward needs no
other data. The usual adjacent windows of 2 x 2 pixels have separate loops, which become vector instructions. For all
others a map is laid out as for a convolution (`_planes.py`): the pixels that a kernel position sees are contiguous in
memory, and are compared with the maxima of all windows at once.

These loops have three spatial axes; maps of one or two have leading axes of one pixel. `windows` (3, outputs, 3) has
for each window along an axis the first kernel position that is not padding, the end of these, and the pixel at position
0, which may be padding.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._passes import lay
from xcnn.kernels.cpu._planes import STEP, planes
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._sums import BLOCK

__all__ = ["avg_pool", "global_avg_pool", "max_pool"]

_NO_PIXEL = 255
"""The winner of a window that is all padding; kernel positions must be smaller."""


@compiled
def _challenge(pixels, best, winner, position):
    """Update the maxima and winners with the pixels of one kernel position."""
    for o in range(best.size):
        new, old, holder = pixels[o], best[o], winner[o]
        wins = (new > old) | ((new != new) & (old == old))
        best[o] = new if wins else old
        winner[o] = position if wins else holder


@compiled
def _max(x, axes, plane, phases, length, shifts, windows, strides, y, winners, begin, end):
    """Set y and winners (maps, od, oh, ow) of some maps of x (maps, d, h, w).

    `strides` are the distances between the kernel positions along each axis, in positions.
    """
    lowest = x.dtype.type(-np.inf)
    planes_of_x = np.full(phases * plane, lowest, x.dtype)  # as padding never wins
    best, winner = np.empty(length, x.dtype), np.empty(length, np.int32)
    for p in range(begin, end):
        lay(x[p : p + 1], axes, plane, planes_of_x, 0)
        best[:] = lowest
        winner[:] = _NO_PIXEL
        for position in range(shifts.size):
            _challenge(planes_of_x[shifts[position] :], best, winner, np.int32(position))
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                at = i * axes[0, STEP] + j * axes[1, STEP]
                top, won = y[p, i, j], winners[p, i, j]
                values, positions = best[at : at + top.size], winner[at : at + top.size]
                for o in range(top.size):
                    top[o] = values[o]
                for o in range(top.size):
                    won[o] = positions[o]
                for o in range(top.size):
                    if won[o] == _NO_PIXEL:  # the first pixel wins if all are the lowest number
                        a, b, k = windows[0, i], windows[1, j], windows[2, o]
                        if a[0] < a[1] and b[0] < b[1] and k[0] < k[1]:
                            won[o] = a[0] * strides[0] + b[0] * strides[1] + k[0] * strides[2]


@compiled
def _max_gradient(winners, dy, windows, offsets, dx, begin, end):
    """Set the maps of dx (maps, pixels): each dy goes to the winner of its window, `offsets` pixels from its corner."""
    for p in range(begin, end):
        pixels = dx[p]
        pixels[:] = 0
        for i in range(dy.shape[1]):
            for j in range(dy.shape[2]):
                corner = windows[0, i, 2] + windows[1, j, 2]
                won, source = winners[p, i, j], dy[p, i, j]
                for o in range(source.size):
                    if won[o] != _NO_PIXEL:
                        pixels[corner + windows[2, o, 2] + offsets[won[o]]] += source[o]


@compiled
def _max_2x2(x, y, winners, begin, end):
    """Do what `_max` does for adjacent windows of 2 x 2 pixels: x (maps, h, w), y and winners (maps, oh, ow)."""
    for p in range(begin, end):
        for i in range(y.shape[1]):
            upper, lower, top, won = x[p, 2 * i], x[p, 2 * i + 1], y[p, i], winners[p, i]
            for j in range(y.shape[2]):
                a, b, c, d = upper[2 * j], upper[2 * j + 1], lower[2 * j], lower[2 * j + 1]
                b_wins = (b > a) | ((b != b) & (a == a))
                d_wins = (d > c) | ((d != d) & (c == c))
                a = b if b_wins else a
                c = d if d_wins else c
                c_wins = (c > a) | ((c != c) & (a == a))
                top[j] = c if c_wins else a
                won[j] = np.uint8(2 + d_wins) if c_wins else np.uint8(b_wins)


@compiled
def _max_gradient_2x2(winners, dy, dx, begin, end):
    """Do what `_max_gradient` does for adjacent windows of 2 x 2 pixels."""
    zero = dx.dtype.type(0)
    oh, ow = dy.shape[1], dy.shape[2]
    for p in range(begin, end):
        for i in range(oh):
            won, source = winners[p, i], dy[p, i]
            for row in range(2):  # one row at a time: only then are there vector instructions
                target = dx[p, 2 * i + row]
                for j in range(ow):
                    value, winner = source[j], won[j]
                    target[2 * j] = value if winner == 2 * row else zero
                    target[2 * j + 1] = value if winner == 2 * row + 1 else zero
                target[2 * ow :] = zero
        dx[p, 2 * oh :] = zero


@compiled
def _average_2x2(x, count, y, begin, end):
    """Set y to the averages of adjacent windows of 2 x 2 pixels: x (maps, h, w), y (maps, oh, ow)."""
    for p in range(begin, end):
        for i in range(y.shape[1]):
            upper, lower, target = x[p, 2 * i], x[p, 2 * i + 1], y[p, i]
            for j in range(y.shape[2]):
                target[j] = ((upper[2 * j] + lower[2 * j]) + (upper[2 * j + 1] + lower[2 * j + 1])) / count


@compiled
def _average_gradient_2x2(dy, count, dx, begin, end):
    """Set the maps of dx (maps, h, w): each dy is spread evenly over its window."""
    oh, ow = dy.shape[1], dy.shape[2]
    for p in range(begin, end):
        for i in range(oh):
            source = dy[p, i]
            for row in range(2):
                target = dx[p, 2 * i + row]
                for j in range(ow):
                    part = source[j] / count
                    target[2 * j] = part
                    target[2 * j + 1] = part
                target[2 * ow :] = 0
        dx[p, 2 * oh :] = 0


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


class _Layout(NamedTuple):
    """The windows of a pool for compiled code, with the offsets from the corner of a window to its positions."""

    windows: np.ndarray
    strides: np.ndarray
    offsets: np.ndarray
    outs: tuple[int, ...]
    are_2x2: bool


@functools.lru_cache(maxsize=256)
def _layout(axes: tuple[Any, ...]) -> _Layout:
    missing = 3 - len(axes)
    windows = np.zeros((3, max(axis.out for axis in axes), 3), np.int64)
    windows[:, :, 1] = 1
    strides, offsets = np.ones(3, np.int64), np.zeros(1, np.int64)
    for row, axis in enumerate(axes, missing):
        inner = axes[row - missing + 1 :]
        step = math.prod(a.size for a in inner)
        start = np.arange(axis.out) * axis.stride - axis.before
        first = np.maximum(-(start // axis.dilation), 0)
        end = np.minimum((axis.size - 1 - start) // axis.dilation + 1, axis.kernel)
        windows[row, : axis.out] = np.stack([first, end, start * step], axis=1)
        strides[row] = math.prod(a.kernel for a in inner)
        offsets = np.add.outer(offsets, np.arange(axis.kernel) * axis.dilation * step).ravel()
    are_2x2 = len(axes) == 2 and all(
        a.kernel == a.stride == 2 and a.dilation == 1 and a.before == 0 and 2 * a.out <= a.size for a in axes
    )
    return _Layout(windows, strides, offsets, tuple(axis.out for axis in axes), are_2x2)


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
    f = _layout(axes)
    if not supports(x) or f.offsets.size > _NO_PIXEL:
        return NotImplemented
    rank, shape = len(axes), x.shape
    y = np.empty((*shape[: x.ndim - rank], *f.outs), x.dtype)
    winners = np.empty(y.shape, np.uint8)
    if f.are_2x2:
        work = 2 * x.size
        share(_max_2x2, work, _maps(x, rank), _maps(y, rank), _maps(winners, rank))
    else:
        layout = planes(axes)
        results = _volumes(y, rank), _volumes(winners, rank)
        work = 2 * x.size + f.offsets.size * y.size
        share(_max, work, _volumes(x, rank), *layout[:5], f.windows, f.strides, *results)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        f = _layout(axes)
        dx = np.empty(shape, dy.dtype)
        if f.are_2x2:
            share(_max_gradient_2x2, 2 * dx.size, _maps(winners, rank), _maps(dy, rank), _maps(dx, rank))
        else:
            arrays = _volumes(winners, rank), _volumes(dy, rank), f.windows, f.offsets, _rows(dx, rank)
            share(_max_gradient, dx.size + 8 * dy.size, *arrays)
        return (dx,)

    return y, backward


@kernel(np)
def avg_pool(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Take the means of windows of 2 x 2 pixels, and spread gradients evenly."""
    if not supports(x) or not _layout(axes).are_2x2:
        return NotImplemented
    shape, dtype = x.shape, x.dtype
    y = np.empty((*shape[:-2], *(axis.out for axis in axes)), dtype)
    share(_average_2x2, 2 * x.size, _maps(x, 2), dtype.type(divisor or 4), _maps(y, 2))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx = np.empty(shape, dtype)
        share(_average_gradient_2x2, 2 * dx.size, _maps(dy, 2), dtype.type(divisor or 4), _maps(dx, 2))
        return (dx,)

    return y, backward


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

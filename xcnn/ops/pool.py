"""Max and average pooling in one, two and three dimensions.

A pool reduces each window to one pixel. The reduction is separable, so forward works along one axis at a time, in as
many passes as the kernel has positions along it. Only trailing axes take part, so x may lack a batch axis.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import array_api_compat

from xcnn._array import Array, add_slice, namespace, set_slice, zeros
from xcnn._check import flag, integer, integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, Sample, op_of_ranks, sample
from xcnn.ops._options import Integers
from xcnn.ops._window import Axes, Axis, Padding, along, inner_taps, map_sizes, pad_windows, resized, window_axes

__all__ = [
    "avg_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "pool_axes",
]


def pool_axes(
    name: str,
    sizes: tuple[int, ...],
    kernel_size: Integers,
    stride: Integers | None,
    padding: Padding,
    dilation: Integers,
    ceil_mode: bool,
) -> Axes:
    """Return the windows of a pool on maps of these sizes: `window_axes` with the rules that pools add."""
    kernel = integers(name, "kernel_size", kernel_size, len(sizes))
    stride = kernel if stride is None else stride
    axes = window_axes(name, sizes, kernel, stride, padding, dilation, flag(name, "ceil_mode", ceil_mode))
    if any(max(a.before, a.after - a.grown) >= a.extent for a in axes):
        extents = tuple(a.extent for a in axes)
        raise UsageError(f"{name}: padding must be smaller than the extent {extents} of a window, got {padding!r}")
    return axes


def _dims(axes: Axes) -> list[tuple[int, Axis]]:
    """Return each spatial axis with its number in the array, counted from the end."""
    return list(enumerate(axes, -len(axes)))


def _fold(xp: ModuleType, function: Callable[[Array, Array], Array], x: Array, axes: Axes, fill: float) -> Array:
    """Reduce the windows of x to one pixel each by a function of two, along one axis after the other."""
    y = pad_windows(xp, x, axes, fill)
    for dim, axis in _dims(axes):
        y = functools.reduce(function, [y[along(dim, axis.tap(i))] for i in range(axis.kernel)])
    return y


def _unfold(xp: ModuleType, dy: Array, axes: Axes) -> Array:
    """Add each dy to the pixels of its window: the transpose of `_fold` with `+`."""
    for dim, axis in reversed(_dims(axes)):
        put = _put((axis,))
        dx = zeros(xp, resized(dy.shape, dim, axis.size), dy)
        for windows, pixels in filter(None, map(axis.inner_tap, range(axis.kernel))):
            dx = put(dx, along(dim, pixels), dy[along(dim, windows)])
        dy = dx
    return dy


def _put(axes: Axes) -> Callable[[Array, Any, Array], Array]:
    """Return the function that adds gradients of windows to pixels: a faster one if no two windows share a pixel."""
    return set_slice if all(a.stride >= a.extent for a in axes) else add_slice


@body
def max_pool(xp: ModuleType, x: Array, axes: Axes) -> Result:
    """Take the maxima of the windows `axes` of x (..., *sizes)."""
    y = _fold(xp, xp.maximum, x, axes, -xp.inf)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        found, put = inner_taps(axes), _put(axes)
        dx = zeros(xp, x.shape, x)
        left = xp.ones_like(y, dtype=xp.bool)  # windows whose maximum has not been found yet
        for windows, pixels in found[:-1]:
            values = xp.asarray(x[pixels], copy=True)  # read the strided slice once
            hit = ((values == y[windows]) | (values != values)) & left[windows]
            left = set_slice(left, windows, left[windows] ^ hit)
            # A product is several times faster than xp.where, but an infinite dy makes its whole window NaN.
            dx = put(dx, pixels, xp.astype(hit, dy.dtype) * dy[windows])
        for windows, pixels in found[-1:]:  # the rest needs no comparison
            dx = put(dx, pixels, xp.astype(left[windows], dy.dtype) * dy[windows])
        return (dx,)

    return y, backward


def _max_pool_nd(
    rank: int,
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Padding = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the maximum of each window of signals (1d), images (2d) or volumes (3d).

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image. The sizes are (w,), (h, w) or (d, h, w).
    kernel_size, stride, dilation : an integer, or one per axis; stride None means kernel_size.
    padding : number of pixels, all minus infinity, on both sides of each map: an integer, one per axis, a (before,
        after) pair per axis, `'valid'` for none, or `'same'` for `ceil(size / stride)` outputs. It is smaller than the
        extent `dilation * (kernel_size - 1) + 1` of a window. (PyTorch allows half the extent.)
    ceil_mode : whether to round the number of windows up; a window that would start in the padding after the map is
        dropped.

    Returns
    -------
    y : (n, c, *outs), or (c, *outs) for one image, with
        `out = (size + before + after - dilation * (kernel_size - 1) - 1) // stride + 1` along each axis; NaN for a
        window that holds NaN.
    backward : dy -> (dx,). The gradient of a window goes to its first maximum in row-major order, or to its first NaN.
        Backward keeps x and y and finds the maxima again; in compiled code it keeps one byte per window instead. An
        infinite dy may make the rest of its window NaN.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        If x has other axes or is not a floating-point array, an option is out of range, or the kernel is larger than
        the padded map.
    """
    name = f"max_pool{rank}d"
    xp = namespace(name, x=x)
    axes = pool_axes(name, map_sizes(name, x, rank), kernel_size, stride, padding, dilation, ceil_mode)
    return max_pool(xp, x, axes)


def _max_samples(rank: int) -> list[Sample]:
    sizes = (6, 5, 4)[:rank]
    return [
        sample({"x": (2, 3, *sizes)}, kernel_size=2),
        sample({"x": (2, 2, *sizes)}, kernel_size=3, stride=(1, 2, 2)[:rank], padding=1, ceil_mode=True),
        sample(
            {"x": (3, *sizes)},
            kernel_size=(3, 2, 2)[:rank],
            stride=1,
            padding=(1, 1, 0)[:rank],
            dilation=(2, 1, 2)[:rank],
        ),
        sample({"x": (2, 2, *sizes)}, kernel_size=3, stride=2, padding=((2, 0), (0, 1), (1, 2))[:rank]),
    ]


max_pool1d, max_pool2d, max_pool3d = op_of_ranks(_max_pool_nd, "x", "x? y? winners?", _max_samples, apart=True)


@functools.lru_cache(maxsize=1024)
def _counts(axis: Axis, padding: bool) -> tuple[int, ...]:
    """Count the pixels of each window inside the map, or inside the padded map without what ceil_mode adds to it."""
    first, end = (-axis.before, axis.size + axis.after - axis.grown) if padding else (0, axis.size)
    starts = (o * axis.stride - axis.before for o in range(axis.out))
    reach = range(0, axis.extent, axis.dilation)
    return tuple(sum(first <= start + tap < end for tap in reach) for start in starts)


Counts = tuple[tuple[int, ...], ...]
"""Per axis, the number of pixels of each window that count."""


def _divide(xp: ModuleType, a: Array, counts: Counts, divisor: int | None) -> Array:
    """Divide each window by the number of its pixels, or by `divisor`."""
    if divisor is not None:
        return a / divisor
    scale = 1
    for dim, along_axis in enumerate(counts, -len(counts)):
        if min(along_axis) == max(along_axis):
            scale *= along_axis[0]
        else:
            column = xp.asarray(along_axis, dtype=a.dtype, device=array_api_compat.device(a))
            a = a / xp.reshape(column, (-1, *(1,) * (-dim - 1)))
    return a / scale


@body
def avg_pool(xp: ModuleType, x: Array, axes: Axes, counts: Counts, divisor: int | None) -> Result:
    """Sum the windows `axes` of x (..., *sizes); divide by the product of their `counts` per axis, or by `divisor`."""
    y = _divide(xp, _fold(xp, operator.add, x, axes, 0.0), counts, divisor)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (_unfold(xp, _divide(xp, dy, counts, divisor), axes) if needs[0] else None,)

    return y, backward


def _avg_pool_nd(
    rank: int,
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    dilation: Integers = 1,
) -> Result:
    """Take the mean of each window of signals (1d), images (2d) or volumes (3d).

    Parameters
    ----------
    x : floating-point array (n, c, *sizes), or (c, *sizes) for one image. The sizes are (w,), (h, w) or (d, h, w).
    kernel_size, stride, dilation : an integer, or one per axis; stride None means kernel_size. (PyTorch's average pools
        have no dilation.)
    padding : zeros on both sides of each map, as in `max_pool2d`.
    ceil_mode : as in `max_pool2d`.
    count_include_pad : whether the mean counts the padding; it never counts what `ceil_mode` adds.
    divisor_override : an integer that divides each sum instead of the number of pixels. (PyTorch's avg_pool1d has
        none.)

    Returns
    -------
    y : (n, c, *outs), or (c, *outs) for one image, sized as in `max_pool2d`.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        As in `max_pool2d`; also if a window has no pixel that counts.
    """
    name = f"avg_pool{rank}d"
    xp = namespace(name, x=x)
    if divisor_override is not None:
        integer(name, "divisor_override", divisor_override, 1, 2**31 - 1)
    axes = pool_axes(name, map_sizes(name, x, rank), kernel_size, stride, padding, dilation, ceil_mode)
    include = flag(name, "count_include_pad", count_include_pad)
    counts = tuple(_counts(axis, include) for axis in axes)
    if divisor_override is None and any(0 in of_axis for of_axis in counts):
        raise ShapeError(
            f"{name}: a window of kernel {kernel_size!r} with dilation {dilation!r} has no pixel of the map "
            f"{tuple(a.size for a in axes)}; set count_include_pad=True"
        )
    return avg_pool(xp, x, axes, counts, divisor_override)


def _avg_samples(rank: int) -> list[Sample]:
    sizes, common = (6, 5, 4)[:rank], {"kernel_size": 3, "stride": (1, 2, 2)[:rank], "padding": 1, "ceil_mode": True}
    return [
        sample({"x": (2, 3, *sizes)}, kernel_size=2),
        sample({"x": (2, 2, *sizes)}, **common),
        sample({"x": (3, *sizes)}, **common, count_include_pad=False),
        sample({"x": (2, 2, *sizes)}, kernel_size=2, stride=1, padding=((1, 2), (0, 1), (2, 0))[:rank], dilation=2),
        sample({"x": (2, *sizes)}, kernel_size=(2, 3, 2)[:rank], divisor_override=4),
    ]


avg_pool1d, avg_pool2d, avg_pool3d = op_of_ranks(_avg_pool_nd, "x", "", _avg_samples, apart=True)

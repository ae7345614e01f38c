"""Max and average pooling in one, two and three dimensions.

A pool folds the pixels of each window into one. The fold is separable, so forward goes one axis at a time: `k` passes
for an axis, not the product of the kernel. Only trailing axes are touched, so a missing batch axis needs no care.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import array_api_compat

from xcnn._array import Array, add_slice, namespace, set_slice, zeros
from xcnn._check import integers
from xcnn._dispatch import body
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._options import Integers
from xcnn.ops._window import Axes, Axis, along, inner_taps, pad_windows, window_axes

__all__ = ["avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "pool_axes"]


def _maps(name: str, rank: int, x: Array) -> tuple[int, ...]:
    """Give the sizes of the maps of x."""
    if x.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"{name}: x must have {rank + 2} axes (n, c, *sizes), or {rank + 1} for one image; got {tuple(x.shape)}"
        )
    return tuple(x.shape[-rank:])


def pool_axes(
    name: str,
    sizes: tuple[int, ...],
    kernel_size: Integers,
    stride: Integers | None,
    padding: Integers,
    dilation: Integers,
    ceil_mode: bool,
) -> Axes:
    """Lay the windows of a pool over maps of these sizes: `window_axes` with the rules that pools add."""
    rank = len(sizes)
    kernel = integers(name, "kernel_size", kernel_size, rank)
    pads = integers(name, "padding", padding, rank, 0)
    stride = kernel if stride is None else stride
    axes = window_axes(name, sizes, kernel, stride, pads, dilation, ceil_mode)
    if any(p > k // 2 for p, k in zip(pads, kernel, strict=True)):
        raise UsageError(f"{name}: padding {pads} must be at most half the kernel {kernel}")
    return axes


def _dims(axes: Axes) -> list[tuple[int, Axis]]:
    """Pair each spatial axis with its place in the array, counted from the end."""
    return list(enumerate(axes, -len(axes)))


def _fold(xp: ModuleType, function: Callable[[Array, Array], Array], x: Array, axes: Axes, fill: float) -> Array:
    """Fold the windows of x into one pixel each, along one axis after the other."""
    y = pad_windows(xp, x, axes, fill)
    for dim, axis in _dims(axes):
        y = functools.reduce(function, [y[along(dim, axis.tap(i))] for i in range(axis.kernel)])
    return y


def _spread(xp: ModuleType, dy: Array, axes: Axes) -> Array:
    """Add every dy to the pixels of its window, the transpose of folding with `+`."""
    for dim, axis in reversed(_dims(axes)):
        shape, put = list(dy.shape), _put((axis,))
        shape[dim] = axis.size
        dx = zeros(xp, tuple(shape), dy)
        for windows, pixels in filter(None, map(axis.inner_tap, range(axis.kernel))):
            dx = put(dx, along(dim, pixels), dy[along(dim, windows)])
        dy = dx
    return dy


def _put(axes: Axes) -> Callable[[Array, Any, Array], Array]:
    """Choose how a gradient collects what windows send to pixels: by writing where no two windows share a pixel."""
    return set_slice if all(a.stride >= a.extent for a in axes) else add_slice


@body
def _max_pool(xp: ModuleType, x: Array, axes: Axes) -> Result:
    y = _fold(xp, xp.maximum, x, axes, -xp.inf)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        found, put = inner_taps(axes), _put(axes)
        dx = zeros(xp, x.shape, x)
        left = xp.ones_like(y, dtype=xp.bool)  # windows whose maximum is not found yet
        for windows, pixels in found[:-1]:
            values = xp.asarray(x[pixels], copy=True)  # read the strided slice once
            hit = ((values == y[windows]) | (values != values)) & left[windows]
            left = set_slice(left, windows, left[windows] ^ hit)
            # a product is several times faster than xp.where; its price: an infinite dy makes its whole window NaN
            dx = put(dx, pixels, xp.astype(hit, dy.dtype) * dy[windows])
        for windows, pixels in found[-1:]:  # what is left needs no look at x
            dx = put(dx, pixels, xp.astype(left[windows], dy.dtype) * dy[windows])
        return (dx,)

    return y, backward


def _max_pool_nd(
    rank: int,
    x: Array,
    kernel_size: Integers,
    stride: Integers | None,
    padding: Integers,
    dilation: Integers,
    ceil_mode: bool,
) -> Result:
    name = f"max_pool{rank}d"
    xp = namespace(name, x=x)
    axes = pool_axes(name, _maps(name, rank, x), kernel_size, stride, padding, dilation, ceil_mode)
    return _max_pool(xp, x, axes)


def _max_samples(rank: int) -> list[Any]:
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
    ]


@op("x", saves="x? y? winners?", samples=_max_samples(2))
def max_pool2d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the largest pixel of each window.

    Parameters
    ----------
    x : (n, c, h, w), or (c, h, w) for one image; floating point.
    kernel_size, stride, dilation : an integer, or one per axis; stride None means kernel_size.
    padding : pixels on both sides of each axis that never win, at most half the kernel.
    ceil_mode : also pool the incomplete windows at the end, if they start inside the map or the padding before it.

    Returns
    -------
    y : (n, c, oh, ow) with `oh = (h + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1`, the division
        rounded up in `ceil_mode`. NaN where a window has one.
    backward : dy -> (dx,). The first maximum of each window, in row-major order, gets its gradient; in a window with
        NaN the first NaN. It keeps x and y, and finds the maxima again; or, in compiled code, a byte per window. An
        infinite dy may make the rest of its window NaN, not 0.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where x or the options have no meaning, or the kernel is larger than the padded map.
    """
    return _max_pool_nd(2, x, kernel_size, stride, padding, dilation, ceil_mode)


@op("x", saves="x? y? winners?", samples=_max_samples(1))
def max_pool1d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the largest value of each window of a signal: `max_pool2d` with one spatial axis. x (n, c, w) or (c, w)."""
    return _max_pool_nd(1, x, kernel_size, stride, padding, dilation, ceil_mode)


@op("x", saves="x? y? winners?", samples=_max_samples(3))
def max_pool3d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the largest voxel of each window: `max_pool2d` along three axes. x (n, c, d, h, w) or (c, d, h, w)."""
    return _max_pool_nd(3, x, kernel_size, stride, padding, dilation, ceil_mode)


@functools.lru_cache(maxsize=1024)
def _counts(axis: Axis, padding: bool) -> tuple[int, ...]:
    """Count the pixels of each window inside the map, or inside the padded map without what ceil_mode adds to it."""
    margin = axis.before if padding else 0
    starts = (o * axis.stride - axis.before for o in range(axis.out))
    return tuple(min(s + axis.kernel, axis.size + margin) - max(s, -margin) for s in starts)


Counts = tuple[tuple[int, ...], ...]
"""Per axis, the pixels that count of each window."""


def _divide(xp: ModuleType, a: Array, counts: Counts, divisor: int | None) -> Array:
    """Divide each window by the number of its pixels, or all by `divisor`."""
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
def _avg_pool(xp: ModuleType, x: Array, axes: Axes, counts: Counts, divisor: int | None) -> Result:
    y = _divide(xp, _fold(xp, operator.add, x, axes, 0.0), counts, divisor)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        return (_spread(xp, _divide(xp, dy, counts, divisor), axes) if needs[0] else None,)

    return y, backward


def _avg_pool_nd(
    rank: int,
    x: Array,
    kernel_size: Integers,
    stride: Integers | None,
    padding: Integers,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> Result:
    name = f"avg_pool{rank}d"
    xp = namespace(name, x=x)
    if divisor_override is not None:
        (divisor_override,) = integers(name, "divisor_override", divisor_override, 1)
    axes = pool_axes(name, _maps(name, rank, x), kernel_size, stride, padding, 1, ceil_mode)
    counts = tuple(_counts(axis, count_include_pad) for axis in axes)
    return _avg_pool(xp, x, axes, counts, divisor_override)


def _avg_samples(rank: int) -> list[Any]:
    sizes, common = (6, 5, 4)[:rank], {"kernel_size": 3, "stride": (1, 2, 2)[:rank], "padding": 1, "ceil_mode": True}
    return [
        sample({"x": (2, 3, *sizes)}, kernel_size=2),
        sample({"x": (2, 2, *sizes)}, **common),
        sample({"x": (3, *sizes)}, **common, count_include_pad=False),
    ]


@op("x", samples=[*_avg_samples(2), sample({"x": (2, 6, 5)}, kernel_size=(2, 3), divisor_override=4)])
def avg_pool2d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Take the mean of each window.

    Parameters
    ----------
    x : (n, c, h, w), or (c, h, w) for one image; floating point.
    kernel_size, stride : an integer, or one per axis; stride None means kernel_size.
    padding : zeros on both sides of each axis, at most half the kernel.
    ceil_mode : also pool the incomplete windows at the end, if they start inside the map or the padding before it.
    count_include_pad : whether the padding counts as pixels; what `ceil_mode` adds never does.
    divisor_override : divide every sum by this integer instead.

    Returns
    -------
    y : (n, c, oh, ow), sized as by `max_pool2d`.
    backward : dy -> (dx,). It keeps nothing.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where x or the options have no meaning, or the kernel is larger than the padded map.
    """
    return _avg_pool_nd(2, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


@op("x", samples=_avg_samples(1))
def avg_pool1d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """Take the mean of each window of a signal: `avg_pool2d` along one axis. x (n, c, w) or (c, w)."""
    return _avg_pool_nd(1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


@op("x", samples=_avg_samples(3))
def avg_pool3d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """Take the mean of each window of a volume: `avg_pool2d` along three axes. x (n, c, d, h, w) or (c, d, h, w)."""
    return _avg_pool_nd(3, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

"""Max and average pooling in one, two and three dimensions.

A pool folds the pixels of each window into one. The fold is separable, so forward goes one axis at a time: `k` passes
for an axis, not the product of the kernel. Only trailing axes are touched, so a missing batch axis needs no care.
"""

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from xcnn._array import Array, add_slice, namespace, set_slice, zeros
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._op import Gradients, Result, op, sample
from xcnn.ops._window import Axes, Integers, inner_taps, integers, pad_windows, taps, window_axes

__all__ = ["max_pool1d", "max_pool2d", "max_pool3d"]


def _axes(
    name: str,
    rank: int,
    x: Array,
    kernel_size: Integers,
    stride: Integers | None,
    padding: Integers,
    dilation: Integers,
    ceil_mode: bool,
) -> Axes:
    if x.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"{name}: x must have {rank + 2} axes (n, c, *sizes), or {rank + 1} for one image; got {tuple(x.shape)}"
        )
    kernel = integers(name, "kernel_size", kernel_size, rank)
    pads = integers(name, "padding", padding, rank, 0)
    stride = kernel if stride is None else stride
    axes = window_axes(name, tuple(x.shape[-rank:]), kernel, stride, pads, dilation, ceil_mode)
    if any(p > k // 2 for p, k in zip(pads, kernel, strict=True)):
        raise UsageError(f"{name}: padding {pads} must be at most half the kernel {kernel}")
    return axes


def _fold(xp: ModuleType, function: Callable[[Array, Array], Array], x: Array, axes: Axes, fill: float) -> Array:
    """Fold the windows of x into one pixel each, along one axis after the other."""
    y = pad_windows(xp, x, axes, fill)
    for i, axis in enumerate(axes):
        rest = (slice(None),) * (len(axes) - 1 - i)
        y = functools.reduce(function, [y[(*tap, *rest)] for tap in taps((axis,))])
    return y


def _max_pool(
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
    axes = _axes(name, rank, x, kernel_size, stride, padding, dilation, ceil_mode)
    y = _fold(xp, xp.maximum, x, axes, -xp.inf)

    def backward(dy: Array, needs: Sequence[bool]) -> Gradients:
        if not needs[0]:
            return (None,)
        found = inner_taps(axes)
        put = set_slice if all(a.stride >= a.extent for a in axes) else add_slice  # each pixel is in one window at most
        dx = zeros(xp, x.shape, x)
        left = xp.ones_like(y, dtype=xp.bool)  # windows whose maximum is not found yet
        for windows, pixels in found[:-1]:
            values = xp.asarray(x[pixels], copy=True)  # read the strided slice once
            hit = ((values == y[windows]) | (values != values)) & left[windows]
            left = set_slice(left, windows, left[windows] ^ hit)
            dx = put(dx, pixels, xp.astype(hit, dy.dtype) * dy[windows])  # several times faster than xp.where
        for windows, pixels in found[-1:]:  # what is left needs no look at x
            dx = put(dx, pixels, xp.astype(left[windows], dy.dtype) * dy[windows])
        return (dx,)

    return y, backward


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


@op("x", saves="x y", samples=_max_samples(2))
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
        NaN the first NaN. It keeps x and y, and finds the maxima again.

    Raises
    ------
    ShapeError, DtypeError, UsageError
        Where x or the options have no meaning, or the kernel is larger than the padded map.
    """
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode)


@op("x", saves="x y", samples=_max_samples(1))
def max_pool1d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the largest value of each window of a signal: `max_pool2d` with one spatial axis. x (n, c, w) or (c, w)."""
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode)


@op("x", saves="x y", samples=_max_samples(3))
def max_pool3d(
    x: Array,
    kernel_size: Integers,
    stride: Integers | None = None,
    padding: Integers = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the largest voxel of each window: `max_pool2d` along three axes. x (n, c, d, h, w) or (c, d, h, w)."""
    return _max_pool(3, x, kernel_size, stride, padding, dilation, ceil_mode)

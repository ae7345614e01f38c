"""Sliding windows in any number of dimensions: output sizes, padding, im2col and col2im.

Convolution and pooling treat an image as the windows that a kernel covers. Kernel position ("tap") `i` along one axis
touches the padded pixels `i * dilation + stride * (0 .. out - 1)`, which is one strided slice. im2col stacks these
slices, col2im adds them back, and a pool reduces them. All output sizes are computed here.

Sizes: n images, c channels, k kernel, o output, one entry per spatial axis; L is the product of the output sizes.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

from xcnn._array import Array, add_slice, full, set_slice, zeros
from xcnn._check import integers
from xcnn.errors import ShapeError, UsageError
from xcnn.ops._options import Integers

__all__ = [
    "ANY_SIZE",
    "Axes",
    "Axis",
    "Padding",
    "along",
    "col2im",
    "im2col",
    "inner_taps",
    "map_sizes",
    "pad_windows",
    "resized",
    "taps",
    "transposed_axes",
    "window_axes",
]

ANY_SIZE = 1 << 40
"""Size of a map on which every kernel fits, to check options before there is a map."""

Padding = int | str | Sequence[int] | Sequence[tuple[int, int]]


class Axis(NamedTuple):
    """The windows along one spatial axis: `out` of them, over `before + size + after` pixels.

    `grown` is the part of `after` that `ceil_mode` adds.
    """

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    out: int
    grown: int = 0

    @property
    def padded(self) -> int:
        """Size of the axis with its padding."""
        return self.before + self.size + self.after

    @property
    def extent(self) -> int:
        """Number of padded pixels from the first to the last of a window."""
        return self.dilation * (self.kernel - 1) + 1

    def tap(self, i: int) -> slice:
        """Return the padded pixels that kernel position `i` touches, one per window."""
        start = i * self.dilation
        return slice(start, start + self.stride * (self.out - 1) + 1, self.stride)

    def inner_tap(self, i: int) -> tuple[slice, slice] | None:
        """Return the windows where kernel position `i` lies inside the map, and its pixels there, or None."""
        start = i * self.dilation - self.before
        first = max(0, -(start // self.stride))
        last = min(self.out - 1, (self.size - 1 - start) // self.stride)
        if first > last:
            return None
        pixel = start + first * self.stride
        pixels = slice(pixel, pixel + self.stride * (last - first) + 1, self.stride)
        return slice(first, last + 1), pixels


Axes = tuple[Axis, ...]


def map_sizes(op: str, x: Array, rank: int) -> tuple[int, ...]:
    """Return the spatial sizes of x (n, c, *sizes) or (c, *sizes)."""
    if x.ndim not in (rank + 1, rank + 2):
        raise ShapeError(
            f"{op}: x must have {rank + 2} axes (n, c, *sizes), or {rank + 1} for one image; got {tuple(x.shape)}"
        )
    return tuple(x.shape[-rank:])


def _pads(op: str, padding: Padding, rank: int) -> tuple[tuple[int, int], ...] | str:
    """Return (before, after) per axis, or 'same'."""
    if isinstance(padding, str):
        if padding == "same":
            return "same"
        if padding == "valid":
            return ((0, 0),) * rank
        raise UsageError(f"{op}: padding takes 'same', 'valid', an integer, {rank} integers or pairs, got {padding!r}")
    if (
        not isinstance(padding, int)
        and isinstance(padding, Sequence)
        and {*map(type, padding)} != {int}  # the usual case; looking for pairs costs microseconds
        and any(isinstance(entry, Sequence) for entry in padding)
    ):
        if len(padding) != rank or not all(isinstance(entry, Sequence) for entry in padding):
            raise UsageError(f"{op}: padding takes {rank} (before, after) pairs, got {padding!r}")
        before, after = zip(*(integers(op, "padding", entry, 2, 0) for entry in padding), strict=True)  # type: ignore[arg-type]
        return tuple(zip(before, after, strict=True))
    pads = integers(op, "padding", padding, rank, 0)  # type: ignore[arg-type]
    return tuple(zip(pads, pads, strict=True))


def window_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Integers = 1,
    padding: Padding = 0,
    dilation: Integers = 1,
    ceil_mode: bool = False,
) -> Axes:
    """Return the windows of a kernel on a map.

    Each axis has `out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1` windows.

    Parameters
    ----------
    op : name of the caller, which begins error messages.
    sizes, kernel : sizes of the map and the kernel, one per spatial axis.
    stride, dilation : an integer or one per axis.
    padding : pixels on both sides: an integer, one per axis, a (before, after) pair per axis, `'valid'` for none, or
        `'same'` for `out = ceil(size / stride)` with the odd pixel at the end.
    ceil_mode : round the division up, but drop a window that would start in the padding after the map (PyTorch's
        rule). The padding after the map grows to what the last window covers.

    Raises
    ------
    UsageError
        If an option is not an integer in range.
    ShapeError
        If the map is empty, or the kernel is larger than the padded map.
    """
    rank = len(sizes)
    strides = integers(op, "stride", stride, rank)
    dilations = integers(op, "dilation", dilation, rank)
    return _window_axes(op, sizes, kernel, strides, _pads(op, padding, rank), dilations, ceil_mode)


@functools.lru_cache(maxsize=1024)
def _window_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: tuple[tuple[int, int], ...] | str,
    dilation: tuple[int, ...],
    ceil_mode: bool,
) -> Axes:
    axes = []
    for i, (size, k, s, d) in enumerate(zip(sizes, kernel, stride, dilation, strict=True)):
        extent = d * (k - 1) + 1
        if isinstance(pads, str):
            total = max((math.ceil(size / s) - 1) * s + extent - size, 0)
            before, after = total // 2, total - total // 2
        else:
            before, after = pads[i]
        room = size + before + after - extent
        out = -(-room // s) + 1 if ceil_mode else room // s + 1
        if out < 1 or size == 0:
            padded = sizes if isinstance(pads, str) else tuple(n + sum(p) for n, p in zip(sizes, pads, strict=True))
            raise ShapeError(
                f"{op}: kernel {kernel} with dilation {dilation} does not fit the map {sizes}, padded {padded}"
            )
        grown = 0
        if ceil_mode:
            if (out - 1) * s >= size + before:
                out -= 1
            grown = max(0, (out - 1) * s + extent - size - before - after)
        axes.append(Axis(size, k, s, d, before, after + grown, out, grown))
    return tuple(axes)


def transposed_axes(
    op: str,
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: Integers,
    padding: Padding,
    output_padding: Integers,
    dilation: Integers,
) -> Axes:
    """Return the windows of the convolution whose input gradient is this transposed convolution.

    `sizes` are the output sizes of that convolution. Its input, which is the result of the transposed convolution, has
    `(size - 1) * stride - before - after + dilation * (kernel - 1) + output_padding + 1` pixels per axis.
    """
    rank = len(sizes)
    strides = integers(op, "stride", stride, rank)
    dilations = integers(op, "dilation", dilation, rank)
    extras = integers(op, "output_padding", output_padding, rank, 0)
    pads = _pads(op, padding, rank)
    if isinstance(pads, str):
        raise UsageError(f"{op}: padding takes integers or (before, after) pairs, got {padding!r}")
    axes = []
    for size, k, s, (before, after), extra, d in zip(sizes, kernel, strides, pads, extras, dilations, strict=True):
        if extra >= max(s, d):
            raise UsageError(f"{op}: output_padding must be smaller than stride or dilation, got {output_padding!r}")
        result = (size - 1) * s - before - after + d * (k - 1) + extra + 1
        if size == 0 or result < 1:
            raise ShapeError(f"{op}: a map of {sizes} with kernel {kernel} and padding {padding} gives no pixels")
        axes.append(Axis(result, k, s, d, before, after, size))
    return tuple(axes)


def along(dim: int, part: slice) -> tuple[object, ...]:
    """Return the index of a slice along axis `dim`, which is counted from the end: -1, -2, ..."""
    return (..., part, *(slice(None),) * (-dim - 1))


def resized(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    """Return a shape with another size along axis `dim`, which is counted from the end."""
    return (*shape[:dim], size, *shape[len(shape) + dim + 1 :])


@functools.lru_cache(maxsize=1024)
def taps(axes: Axes) -> tuple[tuple[object, ...], ...]:
    """Return the slice of a padded map that each kernel position touches, in row-major order of the kernel."""
    positions = itertools.product(*(range(a.kernel) for a in axes))
    return tuple((..., *(a.tap(i) for a, i in zip(axes, position, strict=True))) for position in positions)


@functools.lru_cache(maxsize=1024)
def inner_taps(axes: Axes) -> tuple[tuple[tuple[object, ...], tuple[object, ...]], ...]:
    """Return, per kernel position in row-major order, the windows where it lies inside the map and its pixels there.

    These are the `taps` of the map without padding, so that a gradient never touches a padding pixel.
    """
    positions = itertools.product(*([a.inner_tap(i) for i in range(a.kernel)] for a in axes))
    pairs = [tuple(zip(*position, strict=True)) for position in positions if None not in position]
    return tuple(((..., *windows), (..., *pixels)) for windows, pixels in pairs)


def _inside(axes: Axes) -> tuple[object, ...]:
    return (..., *(slice(a.before, a.before + a.size) for a in axes))


def pad_windows(xp: ModuleType, x: Array, axes: Axes, value: float = 0.0) -> Array:
    """Return `x` with the padding of `axes` around its spatial axes, or `x` itself if there is none."""
    if not any(a.before or a.after for a in axes):
        return x
    shape = (*x.shape[: -len(axes)], *(a.padded for a in axes))
    padded = full(xp, shape, value, x) if value else zeros(xp, shape, x)
    return set_slice(padded, _inside(axes), x)


def im2col(xp: ModuleType, x: Array, axes: Axes) -> Array:
    """Copy the windows of `x` (n, c, *sizes) into columns (n, c, K, *outs), K the product of the kernel sizes."""
    padded = pad_windows(xp, x, axes)[:, :, None, ...]
    return xp.concat([padded[tap] for tap in taps(axes)], axis=2)


def col2im(xp: ModuleType, columns: Array, axes: Axes) -> Array:
    """Add columns (n, c, K, *outs) back to the pixels they came from (n, c, *sizes): the transpose of `im2col`."""
    padded = zeros(xp, (*columns.shape[:2], *(a.padded for a in axes)), columns)
    for i, tap in enumerate(taps(axes)):
        padded = add_slice(padded, tap, columns[:, :, i, ...])
    return padded[_inside(axes)]

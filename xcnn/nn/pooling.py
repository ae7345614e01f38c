"""Pooling layers. Names, order and defaults are those of PyTorch."""

from collections.abc import Sequence
from dataclasses import field
from typing import ClassVar

from xcnn import ops
from xcnn._check import flag, integer
from xcnn.nn._layer import Layer
from xcnn.nn._module import options
from xcnn.ops._options import Integers
from xcnn.ops._window import ANY_SIZE, Padding
from xcnn.ops.adaptive import adaptive_sizes
from xcnn.ops.pool import pool_axes

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
]


@options
class _Pool(Layer):
    _rank: ClassVar[int]

    kernel_size: Integers
    stride: Integers | None = None
    padding: Padding = 0
    dilation: Integers = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        maps = (ANY_SIZE,) * self._rank
        pool_axes(type(self).__name__, maps, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)


class MaxPool1d(_Pool, op=ops.max_pool1d):
    """Take the maximum of each window of signals (n, c, w), by default without overlap. See `ops.max_pool2d`."""

    _rank = 1


class MaxPool2d(_Pool, op=ops.max_pool2d):
    """Take the maximum of each window of images (n, c, h, w), by default without overlap. See `ops.max_pool2d`."""

    _rank = 2


class MaxPool3d(_Pool, op=ops.max_pool3d):
    """Take the maximum of each window of volumes (n, c, d, h, w), by default without overlap. See `ops.max_pool2d`."""

    _rank = 3


@options
class AvgPool1d(_Pool, op=ops.avg_pool1d):
    """Take the mean of each window of signals (n, c, w), by default without overlap. See `ops.avg_pool2d`."""

    _rank = 1

    dilation: Integers = field(default=1, kw_only=True)
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(type(self).__name__, "count_include_pad", self.count_include_pad)


@options
class AvgPool2d(AvgPool1d, op=ops.avg_pool2d):
    """Take the mean of each window of images (n, c, h, w), by default without overlap. See `ops.avg_pool2d`."""

    _rank = 2

    divisor_override: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.divisor_override is not None:
            integer(type(self).__name__, "divisor_override", self.divisor_override, 1, 2**31 - 1)


class AvgPool3d(AvgPool2d, op=ops.avg_pool3d):
    """Take the mean of each window of volumes (n, c, d, h, w), by default without overlap. See `ops.avg_pool2d`."""

    _rank = 3


@options
class _AdaptivePool(Layer):
    _rank: ClassVar[int]

    output_size: int | Sequence[int | None] | None

    def __post_init__(self) -> None:
        adaptive_sizes(type(self).__name__, (1,) * self._rank, self.output_size)


class AdaptiveAvgPool1d(_AdaptivePool, op=ops.adaptive_avg_pool1d):
    """Average signals (n, c, w) of any length to `output_size`; None keeps the length."""

    _rank = 1


class AdaptiveAvgPool2d(_AdaptivePool, op=ops.adaptive_avg_pool2d):
    """Average images (n, c, h, w) to `output_size`, one integer or one per axis; None keeps the axis."""

    _rank = 2


class AdaptiveAvgPool3d(_AdaptivePool, op=ops.adaptive_avg_pool3d):
    """Average volumes (n, c, d, h, w) to `output_size`, one integer or one per axis; None keeps the axis."""

    _rank = 3


class AdaptiveMaxPool1d(_AdaptivePool, op=ops.adaptive_max_pool1d):
    """Take the largest numbers of signals (n, c, w) of any length in `output_size` windows; None keeps the length."""

    _rank = 1


class AdaptiveMaxPool2d(_AdaptivePool, op=ops.adaptive_max_pool2d):
    """Take the largest pixels of images (n, c, h, w) in `output_size` windows, one integer or one or None per axis."""

    _rank = 2


class AdaptiveMaxPool3d(_AdaptivePool, op=ops.adaptive_max_pool3d):
    """Take the largest pixels of volumes (n, c, d, h, w) in `output_size` windows, as `AdaptiveMaxPool2d`."""

    _rank = 3


class GlobalAvgPool(Layer, op=ops.global_avg_pool):
    """Take the mean of each map: x (n, c, *sizes), y (n, c)."""


class GlobalMaxPool(Layer, op=ops.global_max_pool):
    """Take the maximum of each map: x (n, c, *sizes), y (n, c)."""

"""Convolution and transposed convolution layers. Names, order and defaults are those of PyTorch."""

from typing import Any, ClassVar

from xcnn import ops
from xcnn._check import integer, integers
from xcnn.errors import UsageError
from xcnn.nn._weighted import Init, Weighted
from xcnn.ops._options import Integers
from xcnn.ops._window import ANY_SIZE, Padding, transposed_axes, window_axes

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _AnyConv(Weighted):
    """The checks and sizes that convolution and transposed convolution share."""

    _rank: ClassVar[int]

    def _open(self, in_channels: int, out_channels: int, kernel_size: Integers, groups: int) -> tuple[int, ...]:
        """Check and store the sizes; return that of the kernel."""
        name = type(self).__name__
        integer(name, "groups", groups)
        for side, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if integer(name, side, channels) % groups:
                raise UsageError(f"{name}: groups must divide {side}, got groups={groups} and {side}={channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = integers(name, "kernel_size", kernel_size, self._rank)
        return self.kernel_size


class _Conv(_AnyConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Integers,
        stride: Integers = 1,
        padding: Padding = 0,
        dilation: Integers = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        init: Init = "fan_in_uniform",
    ) -> None:
        kernel = self._open(in_channels, out_channels, kernel_size, groups)
        window_axes(type(self).__name__, (ANY_SIZE,) * self._rank, kernel, stride, padding, dilation)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self._set((out_channels, in_channels // groups, *kernel), out_channels, bias, init)


class _ConvTranspose(_AnyConv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Integers,
        stride: Integers = 1,
        padding: Integers = 0,
        output_padding: Integers = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Integers = 1,
        *,
        init: Init = "fan_in_uniform",
    ) -> None:
        kernel = self._open(in_channels, out_channels, kernel_size, groups)
        maps = (ANY_SIZE,) * self._rank
        transposed_axes(type(self).__name__, maps, kernel, stride, padding, output_padding, dilation)
        self.stride, self.padding, self.output_padding, self.dilation = stride, padding, output_padding, dilation
        self._set((in_channels, out_channels // groups, *kernel), out_channels, bias, init)

    def multiply_adds(self, x: Any, y: Any) -> int:
        return super().multiply_adds(y, x)  # those of the convolution that it transposes


class Conv2d(_Conv, op=ops.conv2d):
    """Convolve images (n, in_channels, h, w); see `ops.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : numbers of channels of x and y.
    kernel_size, stride, dilation : an integer, or one per axis.
    padding : an integer, one per axis, a (before, after) pair per axis, `'same'` or `'valid'`.
    groups : number of groups that the channels are split into; it divides both numbers of channels.
    bias : whether there is a bias.
    init : as in `Linear`.

    Raises
    ------
    UsageError
        If an option is out of range, the groups do not divide the channels, or the initialiser is unknown.
    """

    _rank = 2


class Conv1d(_Conv, op=ops.conv1d):
    """Convolve signals (n, in_channels, w): `Conv2d` with one spatial axis."""

    _rank = 1


class Conv3d(_Conv, op=ops.conv3d):
    """Convolve volumes (n, in_channels, d, h, w): `Conv2d` with three spatial axes."""

    _rank = 3


class ConvTranspose2d(_ConvTranspose, op=ops.conv_transpose2d):
    """Apply a transposed convolution to images (n, in_channels, h, w); see `ops.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : numbers of channels of x and y.
    kernel_size, stride, padding, dilation : those of the convolution that this one transposes.
    output_padding : number of pixels added at the end of each axis.
    groups, bias, init : as in `Conv2d`.

    Raises
    ------
    UsageError
        If an option is out of range, the groups do not divide the channels, or the initialiser is unknown.
    """

    _rank = 2


class ConvTranspose1d(_ConvTranspose, op=ops.conv_transpose1d):
    """Apply a transposed convolution to signals (n, in_channels, w): `ConvTranspose2d` with one spatial axis."""

    _rank = 1


class ConvTranspose3d(_ConvTranspose, op=ops.conv_transpose3d):
    """Apply a transposed convolution to volumes (n, in_channels, d, h, w): see `ConvTranspose2d`."""

    _rank = 3

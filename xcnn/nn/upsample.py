"""Layers that enlarge maps, or move pixels and channels. Names and order are those of PyTorch."""

from xcnn import ops
from xcnn._check import integer
from xcnn.nn._layer import Layer
from xcnn.nn._module import options
from xcnn.ops._options import Integers
from xcnn.ops.upsample import Factors, check_target

__all__ = ["ChannelShuffle", "PixelShuffle", "PixelUnshuffle", "Upsample"]


@options
class Upsample(Layer, op=ops.interpolate):
    """Resize maps (n, c, *sizes) to `size` or by `scale_factor`; see `ops.interpolate`.

    Parameters
    ----------
    size : the new sizes, an integer or one per spatial axis; this or `scale_factor`.
    scale_factor : number that multiplies each size, or one per spatial axis.
    mode : `'nearest'`, `'nearest-exact'`, `'linear'` (signals), `'bilinear'` (images) or `'trilinear'` (volumes).
    align_corners : for the linear modes, whether the centres of the corner pixels stay where they are.

    Raises
    ------
    UsageError
        If both or none of size and scale_factor are given, or an argument is out of range.
    """

    size: Integers | None = None
    scale_factor: Factors | None = None
    mode: str = "nearest"
    align_corners: bool | None = None

    def __post_init__(self) -> None:
        check_target("Upsample", self.size, self.scale_factor, self.mode, self.align_corners)


@options
class PixelShuffle(Layer, op=ops.pixel_shuffle):
    """Make one channel of larger images from each r x r channels, r the `upscale_factor`; see `ops.pixel_shuffle`."""

    upscale_factor: int

    def __post_init__(self) -> None:
        integer("PixelShuffle", "upscale_factor", self.upscale_factor, 1, 2**31 - 1)


@options
class PixelUnshuffle(Layer, op=ops.pixel_unshuffle):
    """Make r x r channels of smaller images from each channel, r the `downscale_factor`: undo `PixelShuffle`."""

    downscale_factor: int

    def __post_init__(self) -> None:
        integer("PixelUnshuffle", "downscale_factor", self.downscale_factor, 1, 2**31 - 1)


@options
class ChannelShuffle(Layer, op=ops.channel_shuffle):
    """Deal the channels of each of `groups` out to all groups; see `ops.channel_shuffle`."""

    groups: int

    def __post_init__(self) -> None:
        integer("ChannelShuffle", "groups", self.groups, 1, 2**31 - 1)

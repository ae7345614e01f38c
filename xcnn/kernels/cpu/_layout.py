"""What both directions of a convolution count from its windows."""

import math
from typing import Any

__all__ = ["FLOPS_PER_MICROSECOND", "skips"]

FLOPS_PER_MICROSECOND = 80_000

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, for which this layout is used."""


def skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))

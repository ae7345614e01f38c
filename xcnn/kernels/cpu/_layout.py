"""What both directions of a convolution count from its windows, and how long a thread takes for it."""

import math
from typing import Any

__all__ = ["CYCLES_PER_MICROSECOND", "FLOPS_PER_MICROSECOND", "skips"]

CYCLES_PER_MICROSECOND, FLOPS_PER_MICROSECOND = 4000, 80_000

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, for which this layout is used."""


def skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))

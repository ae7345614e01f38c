"""What both directions of a convolution count from its windows."""

import math
from typing import Any

import numpy as np

__all__ = ["FLOPS_PER_MICROSECOND", "skips", "volume"]

FLOPS_PER_MICROSECOND = 80_000

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, for which this layout is used."""


def volume(a: np.ndarray) -> np.ndarray:
    """Return maps of one or two axes leading axes of one pixel, in C order."""
    return np.ascontiguousarray(a).reshape(*a.shape[:2], *(1,) * (5 - a.ndim), *a.shape[2:])


def skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))

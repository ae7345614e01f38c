"""The memory layout of maps, and windows in the form that kernels take."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cuda._launch import launch_blocks
from xcnn.kernels.cuda._library import ascontiguousarray, empty

__all__ = ["Maps", "column_sums", "contiguous", "maps", "row_sums", "slices", "total", "windows"]

_AXIS = ("size", "kernel", "stride", "dilation", "before", "out")
_WINDOWS = np.dtype([(name, "3i4") for name in _AXIS])

_SLICE = 4096
"""How many numbers a block adds: few enough that a long sum is divided among many blocks."""

_MOST_SUMS = 2048
"""Slices of all sums together; more keep no device busier."""


@functools.lru_cache(maxsize=1024)
def windows(axes: tuple[Any, ...]) -> np.ndarray:
    """Return the windows along up to three axes as the `Windows` of the kernels, which are passed by value."""
    made = np.ones((), _WINDOWS)
    made["before"] = 0
    for place, axis in enumerate(axes, 3 - len(axes)):
        for name in _AXIS:
            made[name][place] = getattr(axis, name)
    return made


def contiguous(a: Any) -> Any:
    """Return an array in C order, itself if it is already contiguous."""
    # `ascontiguousarray` alone gives an array without axes an axis.
    return a if a.flags.c_contiguous else ascontiguousarray(a)


class Maps(NamedTuple):
    """An array and the strides of its images and channels in elements: three arguments of a kernel."""

    array: Any
    image: int
    channel: int


def maps(a: Any, rank: int) -> Maps:
    """View (images, channels, *sizes) or (channels, *sizes) as maps of `rank` axes; a copy if pixels are scattered."""
    if not a.flags.c_contiguous:
        step = a.itemsize
        for size, stride in zip(a.shape[: -rank - 1 : -1], a.strides[: -rank - 1 : -1], strict=True):
            if size != 1 and stride != step:
                break
            step *= size
        else:
            if min(a.strides[:-rank]) >= 0:
                return Maps(a, *([0] + [stride // a.itemsize for stride in a.strides[:-rank]])[-2:])
        a = ascontiguousarray(a)
    pixels = math.prod(a.shape[-rank:])
    return Maps(a, a.shape[-rank - 1] * pixels, pixels)


def slices(sums: int, length: int) -> int:
    """Return the number of slices of each sum; it depends on the shape alone, so results are reproducible."""
    return max(1, min(-(-length // _SLICE), _MOST_SUMS // sums))


def row_sums(x: Any) -> Any:
    """Sum x (rows, length) along its rows."""
    rows, length = x.shape
    cut = slices(rows, length)
    sums = empty((rows, cut), x.dtype)
    launch_blocks("row_sums", rows * cut, x, sums, length, cut)
    return total(sums)


def total(sums: Any) -> Any:
    """Sum the results of slices (rows, slices) along the rows, which are short."""
    return sums.reshape(-1) if sums.shape[1] == 1 else row_sums(sums)


def column_sums(x: Any, y: Any = None, masked: Any = None) -> Any:
    """Sum x (rows, columns) along its columns; given y, only where y is not 0, storing the masked x in `masked`."""
    rows, columns = x.shape
    groups = -(-columns // 32)
    cut = slices(groups, 32 * rows)
    sums = empty((cut, columns), x.dtype)
    launch_blocks("column_sums", groups * cut, x, y, masked, sums, rows, columns, cut)
    return sums.reshape(-1) if cut == 1 else column_sums(sums)

"""The layout that the passes of one convolution share, in both directions, and what is counted from it."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._planes import PLACES, STEP, planes

__all__ = ["FLOPS_PER_MICROSECOND", "Layout", "flops", "grouped", "layout", "skips", "volume"]

FLOPS_PER_MICROSECOND = 80_000

_MOST_SKIPPED = 4
"""The largest number of pixels of x between windows, per kernel position, for which this layout is used."""

_numbers = itertools.count()


class Layout(NamedTuple):
    """The planes of a convolution with given channels: first the arguments of compiled code, in order, then the rest.

    Attributes
    ----------
    order, bounds : the taps sorted by phase, and where each phase begins.
    row : places of a row of results.
    number : unique number of the layout.
    """

    axes: np.ndarray
    plane: int
    phases: int
    length: int
    shifts: np.ndarray
    dy_plane: int
    start: int
    phase_shifts: np.ndarray
    bounds: np.ndarray
    order: np.ndarray
    row: int
    number: int


@functools.lru_cache(maxsize=256)
def layout(axes: tuple[Any, ...], cg: int, og: int) -> Layout:
    p = planes(axes)
    by_phase = [np.flatnonzero(p.dx_phase == phase) for phase in range(p.phases)]
    outputs = np.arange(og)[:, None] * p.dy_plane
    longest = max(p.length, int(((p.axes[:, PLACES] - 1) * p.axes[:, STEP]).sum()) + 1)
    return Layout(
        axes=p.axes,
        plane=p.plane,
        phases=p.phases,
        length=p.length,
        shifts=(np.arange(cg)[:, None] * (p.phases * p.plane) + p.x_shifts).ravel(),
        dy_plane=p.dy_plane,
        start=p.dy_start,
        phase_shifts=np.concatenate([(outputs + p.dx_shifts[taps]).ravel() for taps in by_phase]),
        bounds=np.cumsum([0, *map(len, by_phase)]),
        order=np.concatenate(by_phase),
        row=-(-longest // 16) * 16,
        number=next(_numbers),
    )


def volume(a: np.ndarray) -> np.ndarray:
    """Return maps of one or two axes leading axes of one pixel, in C order."""
    return np.ascontiguousarray(a).reshape(*a.shape[:2], *(1,) * (5 - a.ndim), *a.shape[2:])


def grouped(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return weight as (g, og, cg, taps), in C order."""
    o, cg, *kernel = weight.shape
    return np.ascontiguousarray(weight).reshape(groups, o // groups, cg, math.prod(kernel))


def skips(axes: tuple[Any, ...]) -> bool:
    """Return whether strides pass over most pixels: laying out pixels outside all windows would be wasted work."""
    return bool(math.prod(axis.stride for axis in axes) > _MOST_SKIPPED * math.prod(axis.kernel for axis in axes))


def flops(n: int, weight: np.ndarray, f: Layout) -> int:
    return 2 * n * f.length * weight.size

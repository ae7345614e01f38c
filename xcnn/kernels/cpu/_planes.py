"""The layout of planes for a convolution, in which the windows of each tap are one shifted plane.

The padded pixels of a map are stored row after row with a `pitch`. Kernel position `p` of window `j` is pixel
`j * stride + p * dilation`; for stride 1 that is place `j + shift` for all windows at once. For a larger stride the
pixels are sorted into `stride` phases, plane by plane: pixel `u` is place `u // stride` of phase `u % stride`, and the
tap has the phase `p * dilation % stride` and the shift `p * dilation // stride`.

Padding is stored only between rows: reads beyond the end of a row get the padding before the next one. The
gradient of the outputs is laid out with the same pitch, so that it can be multiplied with x place by place; it has room
before it, as the input gradient reads it shifted the other way.

There are always three spatial axes; maps with one or two get leading axes of one pixel.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BEFORE", "OUT", "PLACES", "SIZE", "STEP", "STRIDE", "Planes", "planes"]

SIZE, STRIDE, BEFORE, OUT, STEP, PLACES = range(6)
"""The columns of `Planes.axes`: pixels, stride, padding before, outputs, the distance in places of
neighbours along the axis, and the number of places in which pixels are stored."""

_SLACK = 16
"""Places after a plane that the last vector may read."""


class Planes(NamedTuple):
    """The layout of one convolution, for kernels: integers and arrays of integers.

    Attributes
    ----------
    axes : (3, 6), for each axis the columns named above.
    plane : places of one phase of a channel of x; a channel has `phases` of them.
    phases : product of the strides.
    length : places from the first to the last output.
    x_shifts : (taps,), where each tap reads x.
    dy_plane, dy_start : places of a channel of dy, and the one of its first pixel.
    dx_phase : (taps,), the phase of x that each tap touches.
    dx_shifts : (taps,), where each tap reads dy for the input gradient.
    """

    axes: np.ndarray
    plane: int
    phases: int
    length: int
    x_shifts: np.ndarray
    dy_plane: int
    dy_start: int
    dx_phase: np.ndarray
    dx_shifts: np.ndarray


class _Places(NamedTuple):
    """The places along one axis: the last of a pixel, the largest shift, and the pitch that they need."""

    last: int
    shift: int
    pitch: int


def _places(axis: Any) -> _Places:
    phases = {p * axis.dilation % axis.stride for p in range(axis.kernel)}
    shift = axis.dilation * (axis.kernel - 1) // axis.stride
    lead = min(max(0, -(-(axis.before - phase) // axis.stride)) for phase in phases)
    last = (axis.size - 1 + axis.before) // axis.stride
    return _Places(last, shift, max(last + 1, axis.out + shift - lead, axis.out))


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


@functools.lru_cache(maxsize=256)
def planes(axes: tuple[Any, ...]) -> Planes:
    """Lay out the planes of a convolution whose windows are `axes` (`xcnn.ops._window.Axis`, at most three)."""
    places = [_places(axis) for axis in axes]
    steps = [math.prod(p.pitch for p in places[i + 1 :]) for i in range(len(axes))]

    def place(counts: Any) -> int:
        return sum(count * step for count, step in zip(counts, steps, strict=True))

    shifts, dx_phase, dx_shifts = [], [], []
    start = _round_up(place(p.shift for p in places), 16)
    reach = place(max(p.last, axis.out - 1 + p.shift) for axis, p in zip(axes, places, strict=True))
    plane = _round_up(reach + 1 + _SLACK, 16)
    for position in itertools.product(*(range(axis.kernel) for axis in axes)):
        pixels = [p * axis.dilation for axis, p in zip(axes, position, strict=True)]
        phase = 0
        for axis, pixel in zip(axes, pixels, strict=True):
            phase = phase * axis.stride + pixel % axis.stride
        shift = place(pixel // axis.stride for axis, pixel in zip(axes, pixels, strict=True))
        shifts.append(phase * plane + shift)
        dx_phase.append(phase)
        dx_shifts.append(start - shift)
    rows = [
        (axis.size, axis.stride, axis.before, axis.out, step, p.last + 1)
        for axis, p, step in zip(axes, places, steps, strict=True)
    ]
    missing = [(1, 1, 0, 1, 0, 1)] * (3 - len(axes))
    return Planes(
        axes=np.array(missing + rows, np.int64),
        plane=plane,
        phases=math.prod(axis.stride for axis in axes),
        length=place(axis.out - 1 for axis in axes) + 1,
        x_shifts=np.array(shifts, np.int64),
        dy_plane=_round_up(start + reach + 1 + _SLACK, 16),
        dy_start=start,
        dx_phase=np.array(dx_phase, np.int64),
        dx_shifts=np.array(dx_shifts, np.int64),
    )

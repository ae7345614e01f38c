"""The layout of a convolution's forward pass: planes of several small images, or of a band of a large one.

A tap of a convolution is a shift of a plane (`_planes.py`). Here a plane holds a *stack*: the images of a few, line by
line (line 0 of all images, then line 1, ...), so that their padding above and below costs nothing, vectors are full,
and the weights are read once for all. A large image is cut into *bands* of lines that fit in the cache. Axes without
windows are joined, so a 1x1 convolution has lines of all pixels; if a stack is one image, it is read where it is, and
if lines of outputs have no gaps, they are written where they go.

The work is a list of jobs in a fixed order: for each stack, band, and group, blocks of output channels.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND
from xcnn.kernels.cpu._simd import BYTES, STRIP

__all__ = ["AXIS", "HEADER", "ROWS", "Stacks", "stacks"]

(
    N, C, F, GROUPS, STACKS, IMAGES, BANDS, BAND, BAND_AXIS, BLOCKS, BLOCK, IN_PLACE, DIRECT, PLANE, PHASES, COUNT,
    SUMS, SUM_ROWS, WIDTH, PADDED,
) = range(20)  # fmt: skip
HEADER, AXIS = 20, 6
SIZE, STRIDE, BEFORE, OUT, STEP, PLACES = range(AXIS)
"""Where the numbers of a layout are: first the header (C, F: channels of x and y), then AXIS numbers of each of three
axes, COUNT shifts and COUNT columns of the weights, and for each band, phase, and axis a span (`_span`)."""

ROWS = 64
"""The most output channels of which a strip is computed before it is finished; they fit in the nearest cache."""

_SUM_BYTES = 250_000
"""Size of the results that are computed before they are written line by line, which a processor does faster."""

_PLANE_BYTES = 1_000_000
"""Size of the planes of a stack or a band, which should stay in the second-level cache."""

_NEAR_BYTES = 1_000_000
"""The largest image that is read or written where it is: of a larger one, long lines are copied faster than short ones
are accessed."""

_CONFLICT = 1024
"""Rows that are a multiple of this many bytes apart share few lines of a cache."""

_MICROSECONDS = 100
"""The least work that one more block of output channels is worth, if there are few images."""

_MOST_IMAGES = 512


class Stacks(NamedTuple):
    """A layout.

    Attributes
    ----------
    numbers : all that compiled code needs.
    jobs : number of jobs.
    scratch : size of the memory for planes and sums.
    microseconds : time that it takes one thread.
    pieces : number of stacks; the first jobs are those of the first stack, and so on.
    """

    numbers: np.ndarray
    jobs: int
    scratch: int
    microseconds: float
    pieces: int


def _joined(axes: tuple[Any, ...], itemsize: int) -> list[Any]:
    """Return three axes: those of one pixel left out, neighbours without windows joined, and leading ones of one pixel.

    They are not joined if channels would then be a multiple of `_CONFLICT` apart.
    """
    one = dataclasses.replace(axes[0], size=1, kernel=1, stride=1, dilation=1, before=0, after=0, out=1, grown=0)

    def plain(axis: Any) -> bool:
        return bool(axis.kernel == 1 and axis.size == axis.out and axis.before == 0 and 1 in (axis.stride, axis.size))

    joined: list[Any] = []
    for axis in axes:
        if plain(axis) and axis.size == 1:
            continue
        size = joined[-1].size * axis.size if joined else 0
        if joined and plain(axis) and plain(joined[-1]) and size * itemsize % _CONFLICT:
            joined[-1] = dataclasses.replace(one, size=size, out=size)
        else:
            joined.append(axis)
    return [one] * (3 - len(joined)) + joined


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


class _Places(NamedTuple):
    """The places along one axis: phases that a tap has, the largest shift, the places of pixels, and the pitch."""

    phases: list[int]
    shift: int
    places: int
    pitch: int


def _places(axis: Any, out: int) -> _Places:
    """Lay out `out` windows of an axis. Reads beyond the end of a line get the padding before the next one."""
    phases = sorted({tap * axis.dilation % axis.stride for tap in range(axis.kernel)})
    shift = axis.dilation * (axis.kernel - 1) // axis.stride
    lead = min(max(0, -(-(axis.before - phase) // axis.stride)) for phase in phases)
    last = min((axis.size - 1 + axis.before) // axis.stride, out - 1 + shift)
    return _Places(phases, shift, last + 1, max(last + 1, out + shift - lead, out))


def _span(axis: Any, places: int, phase: int, origin: int) -> tuple[int, int, int]:
    """Return the first place of a phase that is a pixel, its pixel, and how many there are; `origin` is place 0."""
    before = axis.before - origin * axis.stride - phase
    first = max(0, -(-before // axis.stride))
    pixel = first * axis.stride - before
    return first, pixel, max(0, min((axis.size - 1 - pixel) // axis.stride + 1, places - first))


class _Plan(NamedTuple):
    axes: list[Any]
    places: list[_Places]
    steps: list[int]
    images: int
    band: int
    band_axis: int
    length: int
    plane: int


def _plan(axes: list[Any], images: int, band_axis: int, band: int) -> _Plan:
    """Lay out a stack of some images, or a band of some lines along an axis."""
    outs = [band if i == band_axis else axis.out for i, axis in enumerate(axes)]
    places = []
    for i, (axis, out) in enumerate(zip(axes, outs, strict=True)):
        p = _places(axis, out)
        if i == band_axis:  # its padding is stored
            p = p._replace(places=out + p.shift, pitch=out + p.shift)
        places.append(p)
    line = places[2].pitch * images
    steps = [places[1].pitch * line, line, 1]
    last = (images - 1) * places[2].pitch
    length = sum((out - 1) * step for out, step in zip(outs, steps, strict=True)) + last + 1
    shift = sum(p.shift * step for p, step in zip(places, steps, strict=True))
    stored = places[0].places * steps[0]
    plane = _round_up(max(length + shift, stored) + 16, 16)
    return _Plan(axes, places, steps, images, band, band_axis, length, plane + 16 * (plane // 16 % 2 == 0))


def _best(axes: list[Any], cg: int, n: int, itemsize: int) -> _Plan:
    """Choose the number of images of a stack, or of lines of a band."""
    lanes = BYTES // itemsize
    band_axis = 0 if axes[0].size > 1 or axes[0].kernel > 1 else 1
    out = axes[band_axis].out

    def nbytes(plan: _Plan) -> int:
        return cg * math.prod(len(p.phases) for p in plan.places) * plan.plane * itemsize

    whole = _plan(axes, 1, band_axis, out)
    if nbytes(whole) > _PLANE_BYTES and out > 1:
        shift = whole.places[band_axis].shift
        least = max(1, 2 * shift, 2 * STRIP * lanes // whole.steps[band_axis])
        per_line = nbytes(whole) / (out + shift)
        band = min(out, max(least, int(_PLANE_BYTES / per_line) - shift))
        return _plan(axes, 1, band_axis, -(-out // -(-out // band)))
    best, cost = whole, n * _vectors(whole, lanes)
    for count in range(-(-n // 2), 0, -1):
        images = -(-n // count)
        if images == 1 or best.length > 8 * STRIP * lanes:
            break
        plan = _plan(axes, images, band_axis, out)
        if images > _MOST_IMAGES or nbytes(plan) > _PLANE_BYTES:
            break
        if count * _vectors(plan, lanes) < 0.98 * cost:
            best, cost = plan, count * _vectors(plan, lanes)
    return best


def _vectors(plan: _Plan, lanes: int) -> float:
    """Return the time of a plan in units of the product with one vector; each strip takes some, too."""
    return -(-plan.length // lanes) + 0.3 * -(-plan.length // (lanes * STRIP))


@functools.lru_cache(maxsize=512)
def stacks(axes: tuple[Any, ...], n: int, shape: tuple[int, ...], groups: int, itemsize: int) -> Stacks:
    """Lay out a convolution of n images with weights of a shape.

    Parameters
    ----------
    axes : the windows, `xcnn.ops._window.Axis`, at most three.
    """
    cg, og = shape[1], shape[0] // groups
    p = _best(_joined(axes, itemsize), cg, n, itemsize)
    lanes = BYTES // itemsize
    out = p.axes[p.band_axis].out
    bands, count = -(-out // p.band), -(-n // p.images)
    pixels = math.prod(axis.size for axis in p.axes)
    taps = math.prod(axis.kernel for axis in p.axes)
    bare = all(axis.kernel == axis.stride == 1 and axis.size == axis.out for axis in p.axes)
    near = cg <= 8 or pixels * itemsize % _CONFLICT
    in_place = bool(
        bare and near and cg * pixels * itemsize <= _NEAR_BYTES and p.images == bands == 1 and p.length >= lanes
    )
    dense = p.places[2].pitch == p.axes[2].out and (p.axes[0].out == 1 or p.places[1].pitch == p.axes[1].out)
    last = _plan(p.axes, 1, p.band_axis, out - (bands - 1) * p.band)
    outputs = math.prod(axis.out for axis in p.axes)
    direct = p.images == 1 and dense and last.length >= lanes and og * outputs * itemsize <= _NEAR_BYTES
    microseconds = 2 * n * outputs * math.prod(shape) / FLOPS_PER_MICROSECOND
    blocks = -(-min(8, int(microseconds / _MICROSECONDS)) // (count * bands * groups))
    block = _round_up(-(-og // max(1, blocks)), 32)
    phases = list(itertools.product(*(q.phases for q in p.places)))
    channel = pixels if in_place else len(phases) * p.plane
    shifts = []
    for position in itertools.product(*(range(axis.kernel) for axis in p.axes)):
        at = [tap * axis.dilation for axis, tap in zip(p.axes, position, strict=True)]
        phase = tuple(a % axis.stride for axis, a in zip(p.axes, at, strict=True))
        steps = sum(a // axis.stride * step for axis, a, step in zip(p.axes, at, p.steps, strict=True))
        shifts.append(phases.index(phase) * p.plane + steps)
    planes = 0 if in_place else cg * channel
    width = _round_up(p.length, 16)
    rows = block if direct else min(block, max(8, _SUM_BYTES // (width * itemsize) // 8 * 8))
    padded = any(a.kernel > 1 or a.before or (a.out - 1) * a.stride >= a.size for a in p.axes)
    header = [
        n, cg * groups, og * groups, groups, count, p.images, bands, p.band, p.band_axis, -(-og // block), block,
        int(in_place), int(direct), p.plane, len(phases), cg * taps, planes, rows, width, int(padded),
    ]  # fmt: skip
    for axis, q, step in zip(p.axes, p.places, p.steps, strict=True):
        header += [axis.size, axis.stride, axis.before, axis.out, step, q.places]
    every = [c * channel + shift for c in range(cg) for shift in shifts]
    spans = (
        _span(axis, q.places, phase, p.band * band if i == p.band_axis else 0)
        for band in range(bands)
        for some in phases
        for i, (axis, q, phase) in enumerate(zip(p.axes, p.places, some, strict=True))
    )
    numbers = np.array([*header, *every, *range(cg * taps), *itertools.chain(*spans)], np.int64)
    jobs = count * bands * groups * -(-og // block)
    return Stacks(numbers, jobs, planes + (0 if direct else rows * width) + 16, microseconds, count)

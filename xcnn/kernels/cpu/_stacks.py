"""The plan of a convolution, or of its input gradient, which is a convolution of dy for each residue of the strides.

Along an axis, target j of a residue is the sum over some taps of the pixels `(j + shift) * stride + phase`. For a
convolution there is one residue, of all outputs, and tap k has the shift and the phase of `k * dilation - before`. For
an input gradient, the pixels of x that are `stride` apart make a residue, and its taps are those that touch them.

The pixels of a phase are stored as a plane, line by line, so a tap is a shift of the plane. Padding is stored between
lines only: reads beyond the end of a line get the padding before the next one. A plane holds a *stack*, the images of a
few: line 0 of all images, then line 1, and so on, so that padding above and below costs nothing, vectors are full, and
the weights are read once for all. A large image is cut into *bands* of lines that fit in the cache. Axes without
windows are joined, so a 1x1 convolution has lines of all pixels; if a stack is one image, it is read where it is, and
if lines of targets have no gaps, they are written where they go.

All that compiled code does is in tables: the lines to copy, the terms of a product, the pieces of targets that are
computed together, and the lines to write. The work is a list of jobs in a fixed order: for each stack, band, and group,
blocks of target channels.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._grids import pack
from xcnn.kernels.cpu._layout import FLOPS_PER_MICROSECOND
from xcnn.kernels.cpu._scratch import new_owner
from xcnn.kernels.cpu._simd import BYTES, STRIP

__all__ = ["Plan", "plan"]

_ROWS = 64
"""The most target channels of which a strip is computed before it is finished; they fit in the nearest cache."""

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
"""The least work that one more block of target channels is worth, if there are few images."""

_MOST_IMAGES = 512


class Plan(NamedTuple):
    """A plan.

    Attributes
    ----------
    tables : all that `convolve` needs.
    jobs : number of jobs.
    planes, sums : sizes of the memory for planes and sums.
    keeps : whether what is not a pixel in the planes is never written, so that it stays 0.
    microseconds : time that it takes one thread.
    pieces : number of stacks; the first jobs are those of the first stack, and so on.
    number : unique number of the plan.
    """

    tables: np.ndarray
    jobs: int
    planes: int
    sums: int
    keeps: bool
    microseconds: float
    pieces: int
    number: int


class _Residue(NamedTuple):
    """The targets `first + j * apart` for j < count, and of each tap its number, phase and shift."""

    first: int
    count: int
    taps: tuple[tuple[int, int, int], ...]


class _Way(NamedTuple):
    """How pixels are read and targets are written along an axis."""

    size: int
    stride: int
    targets: int
    apart: int
    residues: tuple[_Residue, ...]


def _forward(axis: Any) -> _Way:
    places = (divmod(tap * axis.dilation - axis.before, axis.stride) for tap in range(axis.kernel))
    taps = tuple((tap, phase, shift) for tap, (shift, phase) in enumerate(places))
    return _Way(axis.size, axis.stride, axis.out, 1, (_Residue(0, axis.out, taps),))


def _backward(axis: Any) -> _Way:
    residues = []
    for first in range(min(axis.stride, axis.size)):
        places = (divmod(first + axis.before - tap * axis.dilation, axis.stride) for tap in range(axis.kernel))
        taps = tuple((tap, 0, shift) for tap, (shift, rest) in enumerate(places) if rest == 0)
        residues.append(_Residue(first, -((first - axis.size) // axis.stride), taps))
    return _Way(axis.out, 1, axis.size, axis.stride, tuple(residues))


def _joined(axes: tuple[Any, ...], itemsize: int) -> list[Any]:
    """Return three axes: those of one pixel left out, neighbours without windows joined, and leading ones of one pixel.

    They are not joined if channels would then be a multiple of `_CONFLICT` apart.
    """
    one = axes[0]._replace(size=1, kernel=1, stride=1, dilation=1, before=0, after=0, out=1, grown=0)

    def plain(axis: Any) -> bool:
        return bool(axis.kernel == 1 and axis.size == axis.out and axis.before == 0 and 1 in (axis.stride, axis.size))

    joined: list[Any] = []
    for axis in axes:
        if plain(axis) and axis.size == 1:
            continue
        size = joined[-1].size * axis.size if joined else 0
        if joined and plain(axis) and plain(joined[-1]) and size * itemsize % _CONFLICT:
            joined[-1] = one._replace(size=size, out=size)
        else:
            joined.append(axis)
    return [one] * (3 - len(joined)) + joined


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


class _Line(NamedTuple):
    """The places along one axis.

    Attributes
    ----------
    phases : those that a tap has.
    low, high : the smallest and the largest shift.
    count : targets of the largest residue.
    places : how many are stored.
    last : the last one that is read.
    pitch : places from a line to the next one.
    """

    phases: list[int]
    low: int
    high: int
    count: int
    places: int
    last: int
    pitch: int


def _line(way: _Way) -> _Line:
    reads = [(r.count, phase, shift) for r in way.residues for _, phase, shift in r.taps] or [(1, 0, 0)]
    phases = sorted({phase for _, phase, _ in reads})
    low, high = (bound(shift for *_, shift in reads) for bound in (min, max))
    last = max(count - 1 + shift for count, _, shift in reads)
    count = max(residue.count for residue in way.residues)
    places = max(0, min((way.size - 1) // way.stride, last) + 1)
    return _Line(phases, low, high, count, places, last, max(last + 1, places - low, count))


class _Stack(NamedTuple):
    """Planes of some images, or of a band of lines along an axis.

    Attributes
    ----------
    lead : the place of the first pixel.
    length : places from the first to the last target of the largest residue.
    plane : size of a plane.
    """

    lines: list[_Line]
    steps: list[int]
    images: int
    along: int
    band: int
    lead: int
    length: int
    plane: int


def _stack(lines: list[_Line], images: int, along: int, band: int) -> _Stack:
    lines = [
        q._replace(places=band + q.high - q.low, last=band - 1 + q.high - q.low, count=band) if i == along else q
        for i, q in enumerate(lines)  # the padding of this axis is stored
    ]
    line = lines[2].pitch * images
    steps = [lines[1].pitch * line, line, 1]
    stack = (images - 1) * lines[2].pitch + 1
    lead = sum(max(0, -q.low) * step for q, step in zip(lines[along + 1 :], steps[along + 1 :], strict=True))
    last = sum(max(q.last, q.places - 1, 0) * step for q, step in zip(lines, steps, strict=True))
    length = sum((q.count - 1) * step for q, step in zip(lines, steps, strict=True)) + stack
    plane = _round_up(lead + max(last + stack, length) + 16, 16)
    return _Stack(lines, steps, images, along, band, lead, length, plane + 16 * (plane // 16 % 2 == 0))


def _best(lines: list[_Line], along: int, channels: int, n: int, itemsize: int) -> _Stack:
    """Choose the number of images of a stack, or of lines of a band."""
    lanes, out = BYTES // itemsize, lines[along].count

    def nbytes(stack: _Stack) -> int:
        return channels * math.prod(len(q.phases) for q in lines) * stack.plane * itemsize

    def cost(stack: _Stack) -> float:
        """Return its time in units of the product with one vector; each strip takes some, too."""
        return -(-stack.length // lanes) + 0.3 * -(-stack.length // (lanes * STRIP))

    whole = _stack(lines, 1, along, out)
    if nbytes(whole) > _PLANE_BYTES and out > 1:
        shift = lines[along].high - lines[along].low
        least = max(1, 2 * shift, 2 * STRIP * lanes // whole.steps[along])
        per_line = nbytes(whole) / (out + shift)
        band = min(out, max(least, int(_PLANE_BYTES / per_line) - shift))
        return _stack(lines, 1, along, -(-out // -(-out // band)))
    best, lowest = whole, n * cost(whole)
    for count in range(-(-n // 2), 0, -1):
        images = -(-n // count)
        if images == 1 or best.length > 8 * STRIP * lanes:
            break
        stack = _stack(lines, images, along, out)
        if images > _MOST_IMAGES or nbytes(stack) > _PLANE_BYTES:
            break
        if count * cost(stack) < 0.98 * lowest:
            best, lowest = stack, count * cost(stack)
    return best


def _copies(ways: list[_Way], p: _Stack, begin: int) -> Iterator[tuple[int, ...]]:
    """Yield the rows of pixels of a band: from, how far apart, to, how far apart, how many, and how long."""
    for number, phases in enumerate(itertools.product(*(q.phases for q in p.lines))):
        spans = []
        for i, (way, q, phase) in enumerate(zip(ways, p.lines, phases, strict=True)):
            low = begin + q.low if i == p.along else 0  # the place that is stored first
            first, end = max(0, low), min((way.size - 1 - phase) // way.stride + 1, low + q.places)
            spans.append((first * way.stride + phase, first - low, end - first))
        (z, place_z, nz), (y, place_y, ny), (x, place_x, nx) = spans
        if min(ny, nx) > 0:
            for k in range(nz):
                at = ((z + k * ways[0].stride) * ways[1].size + y) * ways[2].size + x
                places = (place_z + k) * p.steps[0] + place_y * p.steps[1] + place_x
                yield (
                    at, ways[1].stride * ways[2].size, number * p.plane + p.lead + places, p.steps[1], ny, nx,
                )  # fmt: skip


def _terms(
    p: _Stack, residues: tuple[_Residue, ...], kernel: list[int], channel: int, channels: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the terms of a residue read pixels and weights, whose channels are `channel` and `step` apart."""
    all_phases = list(itertools.product(*(q.phases for q in p.lines)))
    shifts, columns = [], []
    for taps in itertools.product(*(residue.taps for residue in residues)):
        numbers, phases, moves = zip(*taps, strict=True)
        place = all_phases.index(phases) * p.plane + p.lead
        for i, move in enumerate(moves):
            place += (move - (p.lines[i].low if i == p.along else 0)) * p.steps[i]
        shifts.append(place)
        columns.append((numbers[0] * kernel[1] + numbers[1]) * kernel[2] + numbers[2])
    each = np.arange(channels)[:, None]
    return (
        (each * channel + np.array(shifts, np.int64)).ravel(),
        (each * step + np.array(columns, np.int64)).ravel(),
    )


class _Region(NamedTuple):
    """The targets of a residue in a band: how many, and the first one and the distances along each axis in y."""

    counts: list[int]
    first: int
    steps: list[int]


def _region(ways: list[_Way], p: _Stack, residues: tuple[_Residue, ...], begin: int) -> _Region:
    steps = [math.prod(way.targets for way in ways[i + 1 :]) for i in range(3)]
    counts, first = [], 0
    for i, (way, residue, step) in enumerate(zip(ways, residues, steps, strict=True)):
        skipped = begin if i == p.along else 0
        counts.append(min(residue.count - skipped, p.band) if i == p.along else residue.count)
        first += (residue.first + skipped * way.apart) * step
    return _Region(counts, first, [way.apart * step for way, step in zip(ways, steps, strict=True)])


def _written(p: _Stack, t: _Region, most: int) -> Iterator[tuple[int, int, list[tuple[int, ...]]]]:
    """Yield the pieces of at most `most` places, if lines allow: place, length, and rows of targets as in `_copies`."""
    nz, ny, nx = t.counts
    lines, depth = (ny, nz) if most >= p.length else (max(1, most // step) for step in (p.steps[1], p.steps[0]))
    depth = depth if lines >= ny else 1
    for z in range(0, nz, depth):
        for y in range(0, ny, lines):
            many, rows = min(depth, nz - z), min(lines, ny - y)
            first = t.first + z * t.steps[0] + y * t.steps[1]
            last = (many - 1) * p.steps[0] + (rows - 1) * p.steps[1]
            yield (
                z * p.steps[0] + y * p.steps[1],
                last + (p.images - 1) * p.lines[2].pitch + nx,
                [(k * p.steps[0], p.steps[1], first + k * t.steps[0], t.steps[1], rows, nx) for k in range(many)],
            )


def _strips(length: int, first: int, lanes: int) -> Iterator[tuple[int, int, list[tuple[int, ...]]]]:
    """Yield the same for strips of adjacent targets; the last one may begin in the one before, to fill a vector."""
    for place in range(0, length, STRIP * lanes):
        at = min(place, length - lanes)
        many = min(STRIP * lanes, length - at)
        yield at, many, [(0, 0, first + at, 0, 1, many)]


@functools.lru_cache(maxsize=512)
def plan(
    axes: tuple[Any, ...], n: int, shape: tuple[int, ...], groups: int, itemsize: int, transposed: bool, masked: bool
) -> Plan:
    """Plan a convolution of n images with weights of a shape.

    Parameters
    ----------
    axes : the windows, `xcnn.ops._window.Axis`, at most three.
    transposed : whether it is the input gradient instead.
    masked : whether pixels are masked, so that they are not read where they are.
    """
    cg, og, taps = shape[1], shape[0] // groups, math.prod(shape[2:])
    channels, targets = (og, cg) if transposed else (cg, og)
    joined = _joined(axes, itemsize)
    ways = [(_backward if transposed else _forward)(axis) for axis in joined]
    along = int(joined[0][:7] == (1, 1, 1, 1, 0, 0, 1))
    p = _best([_line(way) for way in ways], along, channels, n, itemsize)
    lanes, phases = BYTES // itemsize, math.prod(len(q.phases) for q in p.lines)
    bands, count = range(0, max(r.count for r in ways[along].residues), p.band), -(-n // p.images)
    pixels, outputs = math.prod(way.size for way in ways), math.prod(way.targets for way in ways)
    bare = all(axis.kernel == axis.stride == 1 and axis.size == axis.out for axis in joined)
    near = channels <= 8 or pixels * itemsize % _CONFLICT
    in_place = bool(
        bare and near and not masked and channels * pixels * itemsize <= _NEAR_BYTES
        and p.images == len(bands) == 1 and p.length >= lanes
    )  # fmt: skip
    dense = p.lines[2].pitch == ways[2].targets and (ways[0].targets == 1 or p.lines[1].pitch == ways[1].targets)
    last = _region(ways, p, tuple(way.residues[0] for way in ways), bands[-1])
    direct = (
        dense and p.images == 1 and all(way.apart == 1 for way in ways) and math.prod(last.counts) >= lanes
        and targets * outputs * itemsize <= _NEAR_BYTES
    )  # fmt: skip
    microseconds = 2 * n * math.prod(axis.out for axis in axes) * math.prod(shape) / FLOPS_PER_MICROSECOND
    blocks = -(-min(8, int(microseconds / _MICROSECONDS)) // (count * len(bands) * groups))
    block = _round_up(-(-targets // max(1, blocks)), 32)
    at_once = p.length if in_place else min(p.length, max(p.steps[1], _SUM_BYTES // (min(block, _ROWS) * itemsize)))
    width = _round_up(at_once, 16)
    most = _ROWS if direct else min(block, max(8, _SUM_BYTES // (width * itemsize) // 8 * 8))
    channel = pixels if in_place else phases * p.plane
    residues = list(itertools.product(*(way.residues for way in ways)))
    copies: list[tuple[int, ...]] = []
    pieces: list[tuple[int, ...]] = []
    rows: list[tuple[int, ...]] = []
    units: list[tuple[int, ...]] = []
    for begin in bands:
        copy, piece = len(copies), len(pieces)
        if not in_place:
            copies += _copies(ways, p, begin)
        for number, some in enumerate(residues):
            region = _region(ways, p, some, begin)
            if min(region.counts) > 0:
                one = _strips(math.prod(region.counts), region.first, lanes) if direct else _written(p, region, at_once)
                for place, length, targets_of in one:
                    pieces.append((number, place, length, len(rows), len(rows) + len(targets_of)))
                    rows += targets_of
        for g in range(groups):
            for at in range(0, targets, block):
                units.append(
                    (
                        g * channels * pixels, g * targets + at, min(block, targets - at),
                        g * og * cg * taps + at * (taps if transposed else cg * taps),
                        int(at == 0), copy, len(copies), piece, len(pieces),
                    )  # fmt: skip
                )
    keeps = len(bands) == 1
    planes = 0 if in_place else channels * channel
    across = direct or p.lines[along].count == 1
    numbers = [
        n, count, channels, pixels, groups * channels * pixels, outputs, groups * targets * outputs, channel,
        0 if keeps else planes, p.lines[2].pitch, taps if transposed else cg * taps, outputs if direct else width, most,
        int(in_place), int(direct), int(across), ways[2].stride, ways[2].apart,
    ]  # fmt: skip
    if in_place:
        terms = [(np.arange(channels) * pixels, np.arange(channels) * (cg if transposed else 1))]
    else:
        step = cg * taps if transposed else taps
        terms = [_terms(p, some, [a.kernel for a in joined], channel, channels, step) for some in residues]
    tables = pack(
        numbers,
        *(np.array(table, np.int64) for table in (units, copies, pieces, rows)),
        *itertools.chain(*terms),
    )
    sums = 0 if direct else min(most, block) * width + 16
    jobs = count * len(units)
    return Plan(tables, jobs, planes + lanes, sums, keeps, microseconds, count, new_owner())

"""The plan of a convolution, or of its input gradient, which is a convolution of dy for each residue of the strides.

Along an axis, target j of a residue is the sum over some taps of the pixels `(j + shift) * stride + phase`. For a
convolution there is one residue, of all outputs, and tap k has the shift and the phase of `k * dilation - before`. For
an input gradient, the pixels of x that are `stride` apart make a residue, and its taps are those that touch them.

The pixels of a phase are stored as a plane, line by line, so a tap is a shift of the plane. Padding is stored between
lines only: reads beyond the end of a line get the padding before the next one. Or, along the last axis, each tap has a
plane of its own, shifted already and with the padding that it reads. So lines have no gaps: products of small maps take
fewer vectors, and results may be written where they go, but more is copied. `_cycles` counts what takes less time. The
lines between the planes of an image of three axes are not multiplied if that takes less time, plane by plane.

A plane holds a *stack*, the images of a few: line 0 of all images, then line 1, and so on, so that padding above and
below costs nothing, vectors are full, and the weights are read once for all. A large image is cut into *bands* of lines
that fit in the cache. Axes without windows are joined, so a 1x1 convolution has lines of all pixels; if a stack is one
image, it is read where it is, and if lines of targets have no gaps, they are written where they go.

All that compiled code does is in tables: the lines to copy, the terms of a product, the pieces of targets that are
computed together, and the lines to write. The work is a list of jobs in a fixed order: for each stack, band, and group,
blocks of target channels.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._grids import pack
from xcnn.kernels.cpu._product import CYCLES_PER_MICROSECOND, FLOPS_PER_MICROSECOND, STRIP, product_cycles
from xcnn.kernels.cpu._scratch import new_owner
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.threads import get_num_threads, parts

__all__ = ["Plan", "plan"]

_ROWS = 64
"""The most target channels of which a strip is computed before it is finished; they fit in the nearest cache."""

_SUM_BYTES = 250_000
"""Size of the results that are computed before they are written line by line, which a processor does faster."""

_WEIGHT_BYTES = 262_144
"""Size of the weights that are multiplied before those of other channels, if those of a channel are far apart."""

_PLANE_BYTES = 1_000_000
"""Size of the planes of a stack or a band, which should stay in the second-level cache."""

_NEAR_BYTES = 1_000_000
"""The largest image that is read or written where it is: of a larger one, long lines are copied faster than short ones
are accessed."""

_CONFLICT = 1024
"""Rows that are a multiple of this many bytes apart share few lines of a cache."""

_MICROSECONDS = 100
"""The least work that one more job is worth, if there are few."""

_PRODUCTS = 256
"""The least products of a pixel in a block of target channels, as blocks in several threads are laid out several times.
"""

_MOST_IMAGES = 512

_TILE = 12
"""Cycles of two rows of a block of sums, whatever its terms."""

_CALL, _ROW, _VECTOR, _FAR = 40, 6, 4, 170_000
"""Cycles of a copy of rows, of each row, and of each vector of it, one more for each `_FAR` bytes of planes."""


class Plan(NamedTuple):
    """A plan.

    Attributes
    ----------
    tables : all that `convolve` needs.
    jobs : number of jobs.
    parts : how many threads may share them.
    shape : of an image of y.
    planes, sums : sizes of the memory for planes and sums.
    keeps : whether what is not a pixel in the planes is never written, so that it stays 0.
    pieces : number of stacks; the first jobs are those of the first stack, and so on.
    number : unique number of the plan.
    """

    tables: np.ndarray
    jobs: int
    parts: int
    shape: tuple[int, ...]
    planes: int
    sums: int
    keeps: bool
    pieces: int
    number: int


class _Residue(NamedTuple):
    """The targets `first + j * apart` for j < outs, and of each tap its number, phase and shift."""

    first: int
    outs: int
    taps: tuple[tuple[int, int, int], ...]


class _Way(NamedTuple):
    """How pixels are read and targets are written along an axis."""

    size: int
    stride: int
    targets: int
    apart: int
    residues: tuple[_Residue, ...]


def _taps(places: Iterable[tuple[int, int]], stride: int, apart: bool) -> tuple[tuple[int, int, int], ...]:
    return tuple((tap, place, 0) if apart else (tap, place % stride, place // stride) for tap, place in places)


def _forward(axis: Any, apart: bool) -> _Way:
    places = ((tap, tap * axis.dilation - axis.before) for tap in range(axis.kernel))
    return _Way(axis.size, axis.stride, axis.out, 1, (_Residue(0, axis.out, _taps(places, axis.stride, apart)),))


def _backward(axis: Any, apart: bool) -> _Way:
    residues = []
    for first in range(min(axis.stride, axis.size)):
        places = (divmod(first + axis.before - tap * axis.dilation, axis.stride) for tap in range(axis.kernel))
        taps = ((tap, shift) for tap, (shift, rest) in enumerate(places) if rest == 0)
        residues.append(_Residue(first, -((first - axis.size) // axis.stride), _taps(taps, 1, apart)))
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
    outs : targets of the largest residue.
    places : how many are stored.
    last : the last one that is read.
    pitch : places from a line to the next one.
    """

    phases: list[int]
    low: int
    high: int
    outs: int
    places: int
    last: int
    pitch: int


def _line(way: _Way) -> _Line:
    reads = [(r.outs, phase, shift) for r in way.residues for _, phase, shift in r.taps] or [(1, 0, 0)]
    phases = sorted({phase for _, phase, _ in reads})
    low, high = (bound(shift for *_, shift in reads) for bound in (min, max))
    last = max(count - 1 + shift for count, _, shift in reads)
    count = max(residue.outs for residue in way.residues)
    places = max(0, min((way.size - 1 - phases[0]) // way.stride, last) + 1)
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
        q._replace(places=band + q.high - q.low, last=band - 1 + q.high - q.low, outs=band) if i == along else q
        for i, q in enumerate(lines)  # the padding of this axis is stored
    ]
    line = lines[2].pitch * images
    steps = [lines[1].pitch * line, line, 1]
    stack = (images - 1) * lines[2].pitch + 1
    lead = sum(max(0, -q.low) * step for q, step in zip(lines[along + 1 :], steps[along + 1 :], strict=True))
    last = sum(max(q.last, q.places - 1, 0) * step for q, step in zip(lines, steps, strict=True))
    length = sum((q.outs - 1) * step for q, step in zip(lines, steps, strict=True)) + stack
    plane = _round_up(lead + max(last + stack, length) + 16, 16)
    return _Stack(lines, steps, images, along, band, lead, length, plane + 16 * (plane // 16 % 2 == 0))


def _stacks(lines: list[_Line], along: int, channels: int, n: int, least: int, itemsize: int) -> Iterator[_Stack]:
    """Yield stacks of more and more images, of which there should be at least some, or a band of lines."""
    lanes, out = BYTES // itemsize, lines[along].outs

    def nbytes(stack: _Stack) -> int:
        return channels * math.prod(len(q.phases) for q in lines) * stack.plane * itemsize

    stack = _stack(lines, 1, along, out)
    # Planes that are read once per target channel may come from further away.
    most = _PLANE_BYTES * (3 if all(q.low == q.high and len(q.phases) == 1 for q in lines) else 1)
    if nbytes(stack) > _PLANE_BYTES and out > 1:
        shift = lines[along].high - lines[along].low
        few = max(1, 2 * shift, 2 * STRIP * lanes // stack.steps[along])
        per_line = nbytes(stack) / (out + shift)
        band = min(out, max(few, int(_PLANE_BYTES / per_line) - shift))
        yield _stack(lines, 1, along, -(-out // -(-out // band)))
        return
    yield stack
    for images in sorted({-(-n // count) for count in range(least, n)}):
        length, stack = stack.length, _stack(lines, images, along, out)
        if length > 8 * STRIP * lanes or images > _MOST_IMAGES or nbytes(stack) > most:
            break
        yield stack


def _copies(ways: list[_Way], p: _Stack, begin: int) -> Iterator[tuple[int, ...]]:
    """Yield the rows of pixels of a band: from, how far apart, to, how far apart, how many, and how long."""
    for number, phases in enumerate(itertools.product(*(q.phases for q in p.lines))):
        spans = []
        for i, (way, q, phase) in enumerate(zip(ways, p.lines, phases, strict=True)):
            low = begin + q.low if i == p.along else 0  # the place that is stored first
            first = max(0, low, -(phase // way.stride))
            end = min((way.size - 1 - phase) // way.stride + 1, low + q.places)
            spans.append((first * way.stride + phase, first - low, end - first))
        (z, place_z, nz), (y, place_y, ny), (x, place_x, nx) = spans
        if min(ny, nx) > 0:
            for k in range(nz):
                at = ((z + k * ways[0].stride) * ways[1].size + y) * ways[2].size + x
                places = (place_z + k) * p.steps[0] + place_y * p.steps[1] + place_x
                yield (
                    at, ways[1].stride * ways[2].size, number * p.plane + p.lead + places, p.steps[1], ny, nx,
                )  # fmt: skip


def _direct(ways: list[_Way], p: _Stack, targets: int, itemsize: int) -> bool:
    """Return whether targets of so many channels are written where they go, as there are no gaps between lines."""
    sizes = [way.targets for way in ways]
    last = (sizes[p.along] - 1) % p.band + 1  # lines of the last band
    return (
        p.images == 1 and p.lines[2].pitch == sizes[2] and p.length == math.prod(q.outs for q in p.lines)
        and all(way.apart == 1 for way in ways) and targets * math.prod(sizes) * itemsize <= _NEAR_BYTES
        and last * math.prod(sizes[p.along + 1 :]) * itemsize >= BYTES
    )  # fmt: skip


def _in_place(ways: list[_Way], p: _Stack, channels: int, itemsize: int) -> bool:
    """Return whether pixels of so many channels are read where they are."""
    pixels = math.prod(way.size for way in ways)
    pointwise = all(q.phases == [0] and q.low == q.high == 0 for q in p.lines)
    bare = pointwise and all(way.stride == way.apart == 1 and way.targets == way.size for way in ways)
    near = channels <= 8 or pixels * itemsize % _CONFLICT
    return bool(
        bare and near and channels * pixels * itemsize <= _NEAR_BYTES
        and p.images == 1 and p.band >= ways[p.along].targets and p.length >= BYTES // itemsize
    )  # fmt: skip


def _strips(length: int, lanes: int, terms: int) -> float:
    """Return about how many cycles two rows take with so many terms."""
    vectors = -(-length // lanes)
    return terms * product_cycles(vectors) + _TILE * -(-vectors // (STRIP // 2))


def _product(p: _Stack, lanes: int, terms: int) -> tuple[float, int]:
    """Return about how many cycles two rows of so many terms take, and how many places are multiplied together.

    They are those along the last two axes, if it takes less time not to multiply the lines between them.
    """
    whole, count = _strips(p.length, lanes, terms), p.lines[0].outs
    each = count * _strips(p.length - (count - 1) * p.steps[0], lanes, terms)
    return (each, p.steps[0]) if each < whole else (whole, p.length)


def _cycles(
    ways: list[_Way], p: _Stack, n: int, channels: int, targets: int, taps: int, itemsize: int, bare: bool
) -> float:
    """Return about how many cycles a group takes: those of products, and of copies into planes and out of buffers."""
    lanes, bands = BYTES // itemsize, -(-ways[p.along].residues[0].outs // p.band)
    planes, outs = math.prod(len(q.phases) for q in p.lines) * p.plane, math.prod(way.targets for way in ways)
    direct = _direct(ways, p, targets, itemsize)
    length = STRIP * lanes if direct else ways[2].targets
    rows, _ = _product(p, lanes, channels * taps)

    def moved(lines: int, length: int, vector: float) -> float:
        return lines * (_ROW + -(-length // lanes) * vector)

    place = _VECTOR + channels * planes * itemsize / _FAR
    place *= ways[2].stride if ways[2].stride <= 2 else lanes / 2  # else they are copied one by one
    rows_of = () if _in_place(ways, p, channels, itemsize) else _copies(ways, p, 0)
    copies = bands * sum(_CALL + moved(lines, length, place) for *_, lines, length in rows_of)
    products = -(-n // p.images) * bands * rows * targets / 2
    written = moved(-(-outs // length), min(length, outs), _VECTOR / 2 if direct else _VECTOR)  # strips are near
    if direct and bare:
        written = 0.0
    elif not direct and p.band > 1:  # else a call writes lines of all targets
        written += _CALL
    return n * (channels * copies + targets * written) + products


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


def _pieces(
    ways: list[_Way], p: _Stack, residues: tuple[_Residue, ...], begin: int, most: int, lanes: int
) -> Iterator[tuple[int, int, list[tuple[int, ...]]]]:
    """Yield the pieces of the targets of a residue in a band: place, length, and rows of targets as in `_copies`.

    They have at most `most` places, if lines allow. With `lanes`, there are no gaps between lines, and pieces are
    strips, the last one with what would be one vector more.
    """
    steps = [math.prod(way.targets for way in ways[i + 1 :]) for i in range(3)]
    skipped = [begin if i == p.along else 0 for i in range(3)]
    counts = [min(r.outs - skip, q.outs) for r, q, skip in zip(residues, p.lines, skipped, strict=True)]
    if min(counts) <= 0 or not all(residue.taps for residue in residues):
        return
    every = [way.apart * step for way, step in zip(ways, steps, strict=True)]
    first = sum(
        r.first * step + skip * each for r, step, skip, each in zip(residues, steps, skipped, every, strict=True)
    )
    nz, ny, nx = counts
    if lanes:
        for at in range(0, max(1, nz * ny * nx - lanes), STRIP * lanes):
            left = nz * ny * nx - at
            many = left if left <= (STRIP + 1) * lanes else STRIP * lanes
            yield at, many, [(0, 0, first + at, 0, 1, many)]
        return
    lines, depth = (ny, nz) if most >= p.length else (max(1, most // step) for step in (p.steps[1], p.steps[0]))
    for z, y in itertools.product(range(0, nz, depth if lines >= ny else 1), range(0, ny, lines)):
        many, rows = min(depth if lines >= ny else 1, nz - z), min(lines, ny - y)
        to = first + z * every[0] + y * every[1]
        last = (many - 1) * p.steps[0] + (rows - 1) * p.steps[1] + (p.images - 1) * p.lines[2].pitch
        at = z * p.steps[0] + y * p.steps[1]
        yield at, last + nx, [(k * p.steps[0], p.steps[1], to + k * every[0], every[1], rows, nx) for k in range(many)]


def plan(
    axes: tuple[Any, ...], n: int, weights: tuple[int, ...], groups: int, itemsize: int, transposed: bool, bare: bool
) -> Plan:
    """Plan a convolution of n images with weights of a shape.

    Parameters
    ----------
    axes : the windows, `xcnn.ops._window.Axis`, at most three.
    transposed : whether it is the input gradient instead.
    bare : whether targets are sums of products and nothing else.
    """
    return _plan(axes, n, weights, groups, itemsize, transposed, bare, get_num_threads())


@functools.lru_cache(maxsize=512)
def _plan(
    axes: tuple[Any, ...], n: int, weights: tuple[int, ...], groups: int, itemsize: int, transposed: bool, bare: bool,
    threads: int,
) -> Plan:  # fmt: skip
    cg, og, taps = weights[1], weights[0] // groups, math.prod(weights[2:])
    channels, targets = (og, cg) if transposed else (cg, og)
    joined = _joined(axes, itemsize)
    along = int(joined[0][:7] == (1, 1, 1, 1, 0, 0, 1))
    microseconds = 2 * n * math.prod(axis.out for axis in axes) * math.prod(weights) / FLOPS_PER_MICROSECOND
    jobs, most_blocks = min(8 if n == 1 else 4, int(microseconds / _MICROSECONDS)), max(1, targets * taps // _PRODUCTS)
    layouts, least = [], -(-jobs // (most_blocks * groups)) or 1
    for apart in (False, True):
        ways = [(_backward if transposed else _forward)(axis, apart and i == 2) for i, axis in enumerate(joined)]
        for p in _stacks([_line(way) for way in ways], along, channels, n, least, itemsize):
            layouts.append((_cycles(ways, p, n, channels, targets, taps, itemsize, bare), ways, p))
    cycles, ways, p = min(layouts, key=lambda layout: layout[0])
    microseconds = max(microseconds, groups * cycles / CYCLES_PER_MICROSECOND)  # small maps are mostly moved
    lanes, phases = BYTES // itemsize, math.prod(len(q.phases) for q in p.lines)
    bands, count = range(0, ways[along].residues[0].outs, p.band), -(-n // p.images)
    pixels, outputs = math.prod(way.size for way in ways), math.prod(way.targets for way in ways)
    in_place = _in_place(ways, p, channels, itemsize)
    line = math.prod(way.targets for way in ways[along + 1 :])
    direct = _direct(ways, p, targets, itemsize)
    blocks = -(-jobs // (count * len(bands) * groups))
    blocks = max(1, blocks if in_place else min(blocks, most_blocks))
    block = _round_up(-(-targets // blocks), 32)
    at_once = p.length if in_place else max(p.steps[1], _SUM_BYTES // (min(block, _ROWS) * itemsize))
    at_once = min(at_once, _product(p, lanes, channels * taps)[1])
    width = _round_up(at_once, 16)
    most = _ROWS if direct else max(8, _SUM_BYTES // (width * itemsize) // 8 * 8)
    if transposed and taps == 1:
        most = min(most, max(32, _WEIGHT_BYTES // (channels * itemsize) // 16 * 16))
    most, w_row = min(block, most), taps if transposed else cg * taps
    channel = pixels if in_place else phases * p.plane
    size, residues = og * cg * taps, list(itertools.product(*(way.residues for way in ways)))
    empty = any(not residue.taps for some in residues for residue in some)
    units, copies, pieces, rows = tables = [list[tuple[int, ...]]() for _ in range(4)]
    for begin in bands:
        copy, piece = len(copies), len(pieces)
        if not in_place:
            copies += _copies(ways, p, begin)
        first, end = (min(at * ways[p.along].apart, ways[p.along].targets) * line for at in (begin, begin + p.band))
        found = [
            (i, number, *piece_of)
            for number, some in enumerate(residues)
            for i, piece_of in enumerate(_pieces(ways, p, some, begin, at_once, lanes if direct else 0))
        ]
        for _, number, place, length, written in sorted(found):  # the residues of the same lines one after another
            pieces.append((number, place, length, 6 * len(rows), 6 * (len(rows) + len(written))))
            rows += written
        for g in range(groups):
            for at in range(0, targets, most):
                where = g * channels * pixels, g * targets + at, min(most, targets - at), w_row * at + g * size
                fresh, until = int(at == 0), end if empty else first
                units.append((*where, fresh, 6 * copy, 6 * len(copies), 5 * piece, 5 * len(pieces), first, until))
    keeps, step = len(bands) == 1, cg * taps if transposed else taps
    if in_place:
        terms = [(np.arange(channels) * pixels, np.arange(channels) * step)]
    else:
        terms = [_terms(p, some, [a.kernel for a in joined], channel, channels, step) for some in residues]
    planes = 0 if in_place else channels * channel
    numbers = [
        channels, pixels, groups * channels * pixels, outputs, groups * targets * outputs, channel,
        0 if keeps else planes, p.lines[2].pitch, w_row, outputs if direct else width, int(in_place), int(direct),
        int(direct or p.band == 1), ways[2].stride, ways[2].apart,
    ]  # fmt: skip
    stacks = [n * part // count for part in range(count + 1)]
    arrays = (np.array(table, np.int64) for table in (units, stacks, *tables[1:]))
    sums = 0 if direct else most * width + 16
    laid = count * len(bands) * groups
    # Each part lays out its pixels, so parts of the same pixels are for threads that would have nothing else to do.
    useful = laid * blocks if in_place else laid if laid >= 4 * threads else math.lcm(laid, threads)
    most = parts(min(useful, laid * blocks), microseconds)
    shape = groups * targets, *(axis.size if transposed else axis.out for axis in axes)
    packed = pack(numbers, *arrays, *itertools.chain(*terms))
    return Plan(packed, count * len(units), most, shape, planes + lanes, sums, keeps, count, new_owner())

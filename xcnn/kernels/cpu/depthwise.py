"""Depthwise convolutions on the CPU, forward and both gradients, with vectors of channels or of pixels.

`_depthwise.py` brings channels side by side. Where that is faster, `_depthwise_maps.py` and `_depthwise_rows.py` read
maps, or their rows, in place.
A large map is cut into bands of lines that fit in the cache; a line is what has one index of the first axis. Work is
distributed over threads by images, by blocks of channels, and by bands.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._depthwise import depthwise, depthwise_weight_gradient, lanes_gradient, lanes_product
from xcnn.kernels.cpu._depthwise_maps import map_gradient, maps
from xcnn.kernels.cpu._depthwise_rows import ROWS, SOME, row_gradient, rows, rows_read
from xcnn.kernels.cpu._grids import pack
from xcnn.kernels.cpu._product import CYCLES_PER_MICROSECOND, TERMS
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.threads import parallel, parts

__all__ = ["convolve", "pays", "weight_gradients"]

_BAND_BYTES = 400_000
"""Size of the pixels and outputs of a band, which should stay in the second-level cache."""

_TERMS = 64
"""Windows whose products are added one after another in a weight gradient."""

_MOST_TAPS = 8
"""Taps along the columns of a map, all of whose weights are in registers."""

_MOST_SUMS = 25 if BYTES == 64 else 9
"""Taps whose sums, or weights, are in registers."""

_BLOCK, _MOVE, _PRODUCT = 300, 8, 0.85
"""Cycles that it takes to begin a block of channels of an image, to bring a vector's worth of pixels to where channels
lie side by side, or back, and to multiply one."""

_OWNER = -2
"""The owner of memory, in which "nothing" stays 0."""

Axes = tuple[Any, ...]


class _Phase(NamedTuple):
    """Outputs along some axes that read the same kernel positions: where their windows begin, and the positions."""

    outs: np.ndarray
    begins: np.ndarray
    taps: np.ndarray
    shifts: np.ndarray


class _Axis(NamedTuple):
    """What is read along some axes: where its pixels are, how many places there are, kernel positions and outputs."""

    places: np.ndarray
    length: int
    kernel: int
    out: int
    phases: list[_Phase]


class _Plan(NamedTuple):
    """What is counted from shapes: compiled code, its tables, names and sizes of its memory, and parts of the work.

    The parts are ranges of jobs, or for a weight gradient ranges of images times ranges of blocks or channels. The
    cycles are counted where there are other ways.
    """

    run: Callable[..., Any]
    tables: np.ndarray
    memory: dict[str, int]
    jobs: int
    parts: int
    cycles: float = 0.0


def _forward(a: Any) -> _Axis:
    taps, outs, length = np.arange(a.kernel), np.arange(a.out), (a.out - 1) * a.stride + a.extent
    return _Axis(
        np.arange(a.size) + a.before, length, a.kernel, a.out, [_Phase(outs, outs * a.stride, taps, taps * a.dilation)]
    )


def _backward(a: Any) -> _Axis:
    """Return the axis of dy; pixels of x that are a multiple of the stride apart read the same kernel positions."""
    places, pixels = np.arange(a.kernel) * a.dilation, np.arange(a.size) + a.before
    lead, phases = int(places[-1]) // a.stride, []
    for u in range(min(a.stride, a.size)):
        outs, taps = np.arange(u, a.size, a.stride), np.flatnonzero((places - pixels[u]) % a.stride == 0)
        phases.append(_Phase(outs, pixels[outs] // a.stride, taps, lead - places[taps] // a.stride))
    length = lead + max(a.out, int(pixels[-1]) // a.stride + 1)
    return _Axis(np.arange(a.out) + lead, length, a.kernel, a.size, phases)


def _joined(a: _Phase, b: _Phase, steps: tuple[int, ...]) -> _Phase:
    return _Phase(*(np.add.outer(one * step, other).ravel() for one, other, step in zip(a, b, steps, strict=True)))


def _line(axes: list[_Axis]) -> _Axis:
    """Return several axes as one."""
    point = np.zeros(1, np.int64)
    places, length, kernel, out, phases = point, 1, 1, 1, [_Phase(point, point, point, point)]
    for a in reversed(axes):
        steps = out, length, kernel, length
        phases = [_joined(one, other, steps) for one in a.phases for other in phases]
        places = np.add.outer(a.places * length, places).ravel()
        length, kernel, out = length * max(a.length, int(a.places[-1]) + 1), kernel * a.kernel, out * a.out
    return _Axis(places, length, kernel, out, phases)


def _cycles(axes: Axes, jobs: int) -> float:
    """Return about how many cycles so many images of blocks of channels take."""
    pixels, outs, taps = (math.prod(sizes) for sizes in zip(*((a.size, a.out, a.kernel) for a in axes), strict=True))
    return float(jobs * (_BLOCK + _MOVE * (pixels + outs) + _PRODUCT * outs * taps))


def pays(shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Return whether a convolution with weights of a shape is depthwise, and its channels fill vectors."""
    enough = BYTES // itemsize // 2 <= shape[0] < 4 * groups
    return enough and shape[1] == 1 and math.prod(shape[2:]) <= TERMS


@functools.lru_cache(maxsize=256)
def _plan(axes: Axes, n: int, o: int, groups: int, itemsize: int, way: str) -> _Plan:
    """Lay out a depthwise convolution with o output channels, or the gradient of its `"input"` or its `"weight"`.

    The tables are these numbers and arrays; places count numbers.

    - images; channels of y and x; input channels of an output channel; pixels of both
    - bands; the array with which those of the blocks begin; where the parts of memory begin; weights of a channel of y
    - for each band: its first pixel of x, the array of places of its pixels, its first output, the array of places of
      its outputs, and the arrays of where the windows of each phase begin, or some windows of a weight gradient
    - the kernel positions, phase by phase; for each phase how far they are from the beginning of a window
    - arrays of places, and for each block of channels where they begin in x and in y
    """
    while len(axes) > 1 and axes[0].size == axes[0].kernel == axes[0].out == 1 and not axes[0].before:
        axes = axes[1:]
    lanes, multiple, backward = BYTES // itemsize, o // groups, way == "input"
    outputs, channels, planes = (groups, o, multiple) if backward else (o, groups, 1)
    all_axes = [_backward(a) if backward else _forward(a) for a in axes]
    whole, line, first = _line(all_axes), _line(all_axes[1:]), all_axes[0]
    pixels, blocks = whole.places.size, -(-outputs // lanes)
    count = parts(n * blocks * first.out, _cycles(axes, n * blocks) / CYCLES_PER_MICROSECOND)
    most = _BAND_BYTES // (BYTES * (planes * line.length * first.length // first.out + line.out))
    bands = -(-first.out // max(1, most))
    if way != "weight":
        bands = max(bands, min(first.out, -(-count // (n * blocks))))
    each = -(-first.out // bands)
    found: dict[bytes, tuple[int, np.ndarray]] = {}

    def number(places: np.ndarray) -> int:
        """Return the number of an array in the tables; many bands have the same one."""
        return found.setdefault(places.tobytes(), (2 + len(whole.phases) + len(found), places * lanes))[0]

    run = axes[-1].out  # windows of a row
    several = max(1, _TERMS // run) * run if len(axes) > 1 else _TERMS
    steps: list[list[int]] = []
    room = 0
    for cut in range(0, first.out, each):
        some = [slice(*np.searchsorted(p.outs, (cut * line.out, (cut + each) * line.out))) for p in whole.phases]
        begins = [p.begins[s] for p, s in zip(whole.phases, some, strict=True)]
        order = np.argsort(np.concatenate([p.outs[s] for p, s in zip(whole.phases, some, strict=True)]))
        ends = [int(b[-1] + p.shifts.max(initial=0)) for p, b in zip(whole.phases, begins, strict=True) if b.size]
        begin, end = min(int(b[0]) for b in begins if b.size) // line.length, max(ends) // line.length + 1
        begin, end = begin * line.length, end * line.length
        inside = np.flatnonzero((whole.places >= begin) & (whole.places < end))
        read, windows = whole.places[inside] - begin, [b - begin for b in begins]
        if way == "weight":
            windows = [*np.split(windows[0], range(several, order.size, several))]
        pixel = int(inside[0]) if inside.size else 0
        steps.append([pixel, number(read), cut * line.out, number(order), *map(number, windows)])
        room = max(room, end - begin)
    longest = max(map(len, steps))
    steps = [step + [number(np.zeros(0, np.int64))] * (longest - len(step)) for step in steps]
    taps, outs = whole.kernel * planes, each * line.out
    *places, memory = (int(size) * lanes for size in np.cumsum([planes * room + 2, 1, outs, outs, blocks * (taps + 2)]))
    rows = [np.minimum(np.arange(b * lanes, (b + 1) * lanes), outputs - 1) for b in range(blocks)]
    tables = pack(
        [
            n, outputs, channels, planes, pixels, whole.out, len(steps), 2 + len(whole.phases) + len(found),
            room * lanes, *places, taps, run,
        ],
        np.array(steps),
        np.concatenate([np.add.outer(np.arange(planes) * whole.kernel, p.taps).ravel() for p in whole.phases]),
        *(np.add.outer(np.arange(planes) * room, p.shifts).ravel() * lanes for p in whole.phases),
        *(lanes_of for _, lanes_of in found.values()),
        *(
            begins
            for k in rows
            for begins in (k * planes // (1 if backward else multiple) * pixels, k * whole.out)
        ),
    )  # fmt: skip
    code, sum_up, needs, jobs = depthwise, lanes_product, {"depthwise": memory}, n * blocks * len(steps)
    count = min(count, jobs)
    if way == "weight":
        across = axes[-1].kernel if axes[-1].kernel <= _MOST_SUMS else 1
        rows_of_taps = taps // across if taps <= _MOST_SUMS else 1
        code, sum_up, jobs = depthwise_weight_gradient, lanes_gradient(across, *axes[-1][2:4], rows_of_taps), blocks
        needs |= {"sums": blocks * taps * lanes, "image": taps * lanes}
    call = functools.partial(code(itemsize), transpose.address(itemsize), sum_up.address(itemsize))
    return _Plan(call, tables, needs, jobs, count)


@functools.lru_cache(maxsize=256)
def _rows(axes: Axes, n: int, o: int, groups: int, itemsize: int, way: str) -> _Plan | None:
    """Lay out what `_plan` does by rows of pixels; return None if vectors of channels take fewer cycles or must do it.

    A job is a map, or for a weight gradient a channel.
    """
    lanes, multiple, backward = BYTES // itemsize, o // groups, way == "input"
    if BYTES == 16 or len(axes) != 2:
        return None  # with 16 bytes, vectors are not masked by one instruction
    (high, wide), taps, jobs = axes, math.prod(a.kernel for a in axes), n * o
    if wide.stride > 2 or high.kernel > _MOST_TAPS or (backward and max(multiple, high.stride, wide.stride) > 1):
        return None
    sizes = [(a.size, a.out) for a in axes]
    (x_rows, y_rows), (x_width, y_width) = [pair[::-1] for pair in sizes] if backward else sizes
    many, dys = (SOME, 1) if way == "weight" else (ROWS, 0)
    along = high.kernel, high.stride, high.dilation
    loads = dys + len(rows_read(*along, many)) * wide.kernel * wide.stride / many
    whole = y_rows if dys else -(-y_rows // ROWS) * ROWS
    start, each = (150, 2 + 1.8 * loads) if dys else (40, 5 + 1.5 * loads + taps / 4)  # as measured
    cycles = jobs * (start + whole * -(-y_width // lanes) * each)
    if cycles > _cycles(axes, n * -(-o // lanes)) or (dys and taps > 9):  # beside rows, more sums lose their registers
        return None
    before = [a.extent - 1 - a.before if backward else a.before for a in axes]
    weights = (taps - 1, -1) if backward else (0, 1)
    numbers = [n, o, multiple, x_rows, x_width, y_rows, y_width, *before, wide.kernel, wide.dilation, *weights]
    tables, count = np.array(numbers, np.int64), parts(jobs, cycles / CYCLES_PER_MICROSECOND)
    if way == "weight":
        needs = {"nothing": x_width, "sums": o * taps * lanes}
        return _Plan(row_gradient(*along, *wide[1:4])(itemsize), tables, needs, o, count, cycles)
    return _Plan(rows(*along, wide.stride)(itemsize), tables, {"nothing": x_width}, jobs, count, cycles)


@functools.lru_cache(maxsize=256)
def _maps(axes: Axes, n: int, o: int, groups: int, itemsize: int, way: str) -> _Plan | None:
    """Lay out what `_plan` does by vectors of whole maps; return None as `_rows` does."""
    lanes, multiple, backward = BYTES // itemsize, o // groups, way == "input"
    taps, pixels, jobs = math.prod(a.kernel for a in axes), math.prod(a.size for a in axes), n * o
    if BYTES < 64 or len(axes) > 2 or any(a.stride > 1 or a.out != a.size for a in axes):
        return None  # with less, making masks of bits takes longer than all else
    begins = [np.arange(a.kernel) * a.dilation - (a.extent - 1 - a.before if backward else a.before) for a in axes]
    start, each = (80, 1.05 * taps) if way == "weight" else (10 + 1.4 * taps, 4.5 + 0.8 * taps)  # as measured
    cycles = jobs * (start + -(-pixels // lanes) * each)
    if cycles > _cycles(axes, n * -(-o // lanes)) or taps > (9 if way == "weight" else _MOST_SUMS):
        return None  # the registers do not hold the sums, or the weights
    if (backward and multiple > 1) or abs(begins[-1]).max() >= lanes:
        return None
    width, columns, places = axes[-1].size, begins[-1], np.arange(-lanes, -(-pixels // lanes) * lanes + lanes)
    shifts = begins[0] * width if len(axes) > 1 else np.zeros(1, np.int64)

    def bits(at: np.ndarray, steps: np.ndarray, end: int) -> list[np.ndarray]:
        """Return for each step which places are on the map, or on their row, after it."""
        return [np.packbits((at >= -step) & (at < end - step), bitorder="little") for step in steps]

    masks = np.array(bits(places, shifts, pixels) + bits(places % width, columns, width))
    masks = masks.reshape(len(masks), -1, lanes // 8).transpose(1, 0, 2).ravel()
    weights = (taps - 1, -1) if backward else (0, 1)
    numbers = np.array([o, multiple, pixels, *weights, *shifts], np.int64)
    tables = np.concatenate([numbers, np.pad(masks, (0, -masks.size % 8)).view(np.int64)])
    options, count = (shifts.size, *columns.tolist()), parts(jobs, cycles / CYCLES_PER_MICROSECOND)
    if way == "weight":
        return _Plan(map_gradient(*options)(itemsize), tables, {"sums": o * taps * lanes}, o, count, cycles)
    return _Plan(maps(*options)(itemsize), tables, {}, jobs, count, cycles)


@functools.lru_cache(maxsize=256)
def _cheapest(*key: Any) -> _Plan:
    """Return the way that takes the fewest cycles by count."""
    ways = [way for way in (_maps(*key), _rows(*key)) if way is not None]
    return min(ways, key=lambda way: way.cycles) if ways else _plan(*key)


def _memory(plan: _Plan, dtype: Any) -> list[np.ndarray]:
    return [scratch(_OWNER, name, size, dtype) for name, size in plan.memory.items()]


def convolve(
    y: np.ndarray, arrays: Sequence[np.ndarray | None], limits: tuple[float, float], axes: Axes, o: int, groups: int,
    transposed: bool,
) -> None:  # fmt: skip
    """Set y to a convolution, or the input gradient of one with o channels; the arrays are those of `depthwise`."""
    key = axes, y.shape[0], o, groups, y.itemsize, "input" if transposed else "forward"
    plan = _cheapest(*key)

    def some(part: int) -> None:
        first, last = plan.jobs * part // plan.parts, plan.jobs * (part + 1) // plan.parts
        plan.run(*arrays, *limits, y, plan.tables, first, last, *_memory(plan, y.dtype))

    parallel(some, plan.parts)


def weight_gradients(n: int, dtype: Any, shape: tuple[int, ...], axes: Axes, groups: int) -> Callable[..., Any]:
    """Return a function that returns dweight, of a shape, for n images x and dy in C order."""
    key = axes, n, shape[0], groups, dtype.itemsize, "weight"
    plan = _cheapest(*key)
    by_images = min(n, plan.parts)
    by_jobs = max(1, min(plan.jobs, plan.parts // by_images))

    def run(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        sums = np.empty((by_images, math.prod(shape)), dtype)

        def some(part: int) -> None:
            i, j = divmod(part, by_jobs)
            plan.run(
                x, dy, sums[i], plan.tables, n * i // by_images, n * (i + 1) // by_images,
                plan.jobs * j // by_jobs, plan.jobs * (j + 1) // by_jobs, *_memory(plan, dtype),
            )  # fmt: skip

        parallel(some, by_images * by_jobs)
        total: np.ndarray = sums[0] if by_images == 1 else sums.sum(axis=0)
        return total.reshape(shape)

    return run

"""Max and average pooling of any windows, and the windows of adaptive pools: one pass of `_windows.py` each way.

Max pooling keeps the kernel position of each maximum, in one byte unless there are more than 255 positions, and neither
x nor y, as backward needs no other data. Means over whole maps are sums of rows, and their maxima those of rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._loops import ROW, traced
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import plain, share, supports, whole
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.kernels.cpu._windows import HEADER, PHASES, largest, window_pass

__all__ = ["adaptive_avg", "adaptive_max", "avg_pool", "global_max", "max_pool", "reduction"]

_INDEX = np.dtype(np.int64)

_MOST = 1 << 31
"""Maps have fewer numbers, as compiled code counts a row in 32 bits."""

_LISTED, _SHARE = 1 << 18, 16
"""The most pixels of windows that a table lists, or one for so many numbers of x: it takes 16 bytes for each."""

_WRITTEN = 3
"""The most columns of a window that have code of their own."""


class _Plan(NamedTuple):
    """How one direction of a pool is computed.

    Attributes
    ----------
    call : the compiled pass.
    table : its table.
    sizes : the spatial axes of the targets.
    positions : of a window.
    codes : the dtype of their numbers.
    """

    call: Callable[..., None]
    table: np.ndarray
    sizes: tuple[int, ...]
    positions: int
    codes: Any


class _Adaptive(NamedTuple):
    """An axis of an adaptive pool, whose windows have different lengths and no stride."""

    size: int
    out: int
    stride: int = 0

    @property
    def kernel(self) -> int:
        """Length that no window exceeds."""
        return self.size // self.out + 2 * (self.size % self.out > 0)


class _Regular(NamedTuple):
    """An axis of adjacent windows of one length; by default, of single pixels."""

    size: int
    out: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0


def _adaptive(size: int, out: int) -> Any:
    """Return the axis of an adaptive pool."""
    length, rest = divmod(size, out)
    return _Adaptive(size, out) if rest or length == 0 else _Regular(size, out, length, length)


def _windows(axis: Any) -> np.ndarray:
    """Return the pixels (windows, positions) along an axis; -1 is outside."""
    if not axis.stride:
        start = np.arange(axis.out) * axis.size // axis.out
        end = -(-np.arange(1, axis.out + 1) * axis.size // axis.out)
        pixels = start[:, None] + np.arange(np.max(end - start))
        return np.where(pixels < end[:, None], pixels, -1)
    pixels = np.add.outer(np.arange(axis.out) * axis.stride - axis.before, np.arange(axis.kernel) * axis.dilation)
    return np.where(pixels < axis.size, np.maximum(pixels, -1), -1)


def _sources(axis: Any, back: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return what each target along an axis sees (targets, most): pixels, or windows, and positions; -1 for none."""
    pixels = _windows(axis)
    if not back:
        return np.maximum(pixels, 0), np.where(pixels < 0, -1, np.arange(pixels.shape[1]))
    window, position = np.nonzero(pixels >= 0)
    pixel = pixels[window, position]
    count = np.bincount(pixel, minlength=axis.size)
    order, slot = np.argsort(pixel, kind="stable"), np.arange(pixel.size) - np.repeat(np.cumsum(count) - count, count)
    sources, codes = np.zeros((axis.size, count.max()), int), np.full((axis.size, count.max()), -1)
    sources[pixel[order], slot], codes[pixel[order], slot] = window[order], position[order]
    return sources, codes


def _moves(axis: Any, back: bool) -> tuple[int, list[list[tuple[int, int]]]]:
    """Return the step of compiled code along the last axis, and the columns of each phase; a step of 0 if it has none.

    Forward, position k of window q has the pixel `q * stride - before + k * dilation`; backward is the reverse of it.
    """
    if not 0 < axis.stride <= PHASES:
        return 0, []
    places = [(k * axis.dilation - axis.before, k) for k in range(axis.kernel)]
    if not back:
        return axis.stride, [places]
    return 1, [
        [((phase - place) // axis.stride, k) for place, k in places if (phase - place) % axis.stride == 0]
        for phase in range(axis.stride)
    ]


def _takes(x: np.ndarray, axes: tuple[Any, ...]) -> bool:
    """Return whether the compiled code counts the pixels of x, and the table of these windows is small beside it."""
    *rows, columns = (axis.out * axis.kernel for axis in axes)
    listed = max(math.prod(rows), 0 if 0 < axes[-1].stride <= PHASES else columns)
    pixels = math.prod(x.shape[x.ndim - len(axes) :])
    return supports(x) and pixels < _MOST and listed <= max(_LISTED, x.size // _SHARE)


@functools.lru_cache(maxsize=256)
def _plan(kind: str, axes: tuple[Any, ...], back: bool, itemsize: int) -> _Plan:
    """Make the table of a pass."""
    order = slice(None, None, -1 if kind == "max" else 1)  # the first of equal maxima is seen last
    kernels, sizes, seen_sizes = zip(*((axis.kernel, axis.size, axis.out) for axis in axes), strict=True)
    if not back:
        sizes, seen_sizes = seen_sizes, sizes
    rows, codes = np.zeros((2, 1, 1), int)
    for axis, kernel_size, size in zip(axes[:-1], kernels, seen_sizes, strict=False):
        along, position = _sources(axis, back)
        rows = (rows[:, None, :, None] * size + along[:, None]).reshape(len(rows) * len(along), -1)
        both = codes[:, None, :, None] * kernel_size + position[:, None]
        none = (codes[:, None, :, None] < 0) | (position[:, None] < 0)
        codes = np.where(none, -1, both).reshape(rows.shape)
    rows, codes, width, wide = rows[:, order], codes[:, order], seen_sizes[-1], sizes[-1]
    ends = np.cumsum((codes >= 0).sum(axis=1))
    lines = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
    seen = np.stack([rows * width, codes * kernels[-1]], axis=2)[codes >= 0]
    step, phases = _moves(axes[-1], back)
    if step:
        columns = np.array([pair for phase in phases for pair in phase[order]])
        low, high = columns[:, 0].min(), columns[:, 0].max()
        stops = np.cumsum([len(phase) for phase in phases])
    else:
        pairs = np.stack(_sources(axes[-1], back))[..., order]  # (2, targets, most)
        spare = -wide % (BYTES // itemsize)
        columns = np.pad(pairs, ((0, 0), (0, spare), (0, 0)), constant_values=-1).transpose(2, 0, 1)
        columns[:, 0] = np.maximum(columns[:, 0], 0)
        low, high, stops = 0, 0, np.array([len(columns)])
    first = HEADER + columns.size
    lists = HEADER, first, first + lines.size
    header = [math.prod(seen_sizes), width, len(rows), wide, low, high, *np.resize(stops, PHASES), *lists]
    table = np.concatenate([header, columns.ravel(), lines.ravel(), seen.ravel()]).astype(np.int64)
    positions = math.prod(kernels)
    kept = np.dtype(np.uint8 if positions <= 255 else np.int32)
    counts = tuple(len(phase) if max(map(len, phases)) <= _WRITTEN else 0 for phase in phases) or (0,)
    call = window_pass(kind, step, counts, itemsize, kept.itemsize)
    return _Plan(call, table, sizes, positions, kept)


def _run(plan: _Plan, sources: np.ndarray, other: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Do a pass over all maps; return the targets."""
    maps = targets.size // math.prod(plan.sizes)
    sources = np.ascontiguousarray(sources)
    work = sources.size + targets.size + plan.positions * min(sources.size, targets.size) // 8
    share(plan.call, work, plan.table, sources, other, targets, n=maps)
    return targets


def _bind(kind: str, x: np.ndarray, axes: tuple[Any, ...], divisors: np.ndarray | None = None) -> Any:
    """Bind a forward pass: a function of x and what has the codes of maxima, which may be forgotten."""
    if not _takes(x, axes):
        return NotImplemented
    plan = _plan(kind, axes, False, x.itemsize)
    shape, dtype = (*x.shape[: x.ndim - len(axes)], *plan.sizes), x.dtype
    size = math.prod(shape)

    def run(x: np.ndarray, *given: Any, codes: np.ndarray | None = divisors) -> np.ndarray:
        other = scratch(0, "codes", size, plan.codes) if codes is None else codes
        return _run(plan, x, other, np.empty(shape, dtype))

    return run


def _max(x: np.ndarray, axes: tuple[Any, ...]) -> Any:
    """Bind maxima whose positions are kept."""
    shape, dtype, run = x.shape, x.dtype, _bind("max", x, axes)
    if run is NotImplemented:
        return NotImplemented
    size = x.itemsize
    plan, back = _plan("max", axes, False, size), functools.cache(lambda: _plan("gradient", axes, True, size))
    y_shape, codes = (*shape[: x.ndim - len(axes)], *plan.sizes), plan.codes

    def both(x: np.ndarray, _: Any) -> Any:
        y = run(x, codes=(winners := np.empty(y_shape, codes)))

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            return (_run(back(), dy, winners, np.empty(shape, dtype)) if needs[0] else None,)

        return y, backward

    return both


def _largest(x: np.ndarray, shape: tuple[int, ...], keeps: bool = True) -> Any:
    """Bind the maxima of whole maps, in an array of a shape; their places are kept for a backward pass, if any."""
    sizes, maps, work, dtype = x.shape, math.prod(shape), 2 * x.size, x.dtype
    if not supports(x) or x.size >= _MOST * maps:
        return NotImplemented
    call, pixels = largest(x.itemsize), x.size // maps
    codes: Any = np.uint8 if pixels <= 256 else np.int32

    def run(x: np.ndarray, *_: Any) -> Any:
        y, places = np.empty(shape, dtype), scratch(0, "places", maps, _INDEX)
        share(call, work, plain(x), y, places, pixels, n=maps)
        if not keeps:
            return y
        winners = places.astype(codes)

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            if not needs[0]:
                return (None,)
            dx = np.zeros(maps * pixels, dy.dtype)
            dx[np.arange(0, dx.size, pixels) + winners] = dy.reshape(maps)
            return (dx.reshape(sizes),)

        return y, backward

    return run


@whole(lambda x: _largest(x, x.shape[:2], keeps=False))
def global_max(x: np.ndarray) -> Any:
    """Return the largest pixels of maps; keep their places."""
    return _largest(x, x.shape[:2])


def _bind_max(x: np.ndarray, axes: tuple[Any, ...], keeps: bool = False) -> Any:
    """Bind `max_pool`."""
    if _whole(axes, None):
        return _largest(x, x.shape[: x.ndim - len(axes)] + (1,) * len(axes), keeps)
    return _max(x, axes) if keeps else _bind("max", x, axes)


@whole(_bind_max)
def max_pool(x: np.ndarray, axes: tuple[Any, ...]) -> Any:
    """Return the maxima; keep their positions."""
    return _bind_max(x, axes, keeps=True)


@whole(lambda x, plan: _bind("max", x, tuple(_adaptive(*sizes) for sizes in plan)))
def adaptive_max(x: np.ndarray, plan: tuple[tuple[int, int], ...]) -> Any:
    """Return the maxima of windows of any lengths; keep their positions."""
    return _max(x, tuple(_adaptive(*sizes) for sizes in plan))


@functools.lru_cache(maxsize=256)
def _divisors(counts: tuple[tuple[int, ...], ...], divisor: int | None, sizes: tuple[int, ...], dtype: Any) -> Any:
    """Return the divisors of windows, those of pixels, and those of dy beforehand unless all are alike."""
    rows = functools.reduce(np.multiply.outer, map(np.array, counts[:-1]), np.ones(()))
    columns = np.array(counts[-1])
    if divisor is not None:
        rows, columns = np.ones_like(rows), np.full_like(columns, divisor)
    each = np.multiply.outer(rows, columns).astype(dtype)
    alike = each.min() == each.max()
    spare = PHASES * BYTES // dtype.itemsize
    windows = np.concatenate([rows.ravel(), columns, np.ones(spare)]).astype(dtype)
    pixels = np.ones(math.prod(sizes[:-1]) + sizes[-1] + spare, dtype)
    if alike:
        pixels[math.prod(sizes[:-1]) :] = each.flat[0]
    return windows, pixels, None if alike else each


def _passes(axes: tuple[Any, ...], counts: tuple[tuple[int, ...], ...], divisor: int | None) -> tuple[Any, ...]:
    """Return axes, counts and divisor of the passes of an average: two if windows are summed along the last axis last.

    The first sums are then of whole vectors: columns that are listed are read singly.
    """
    *rows, last = axes
    if 0 < last.stride <= PHASES or all(axis.out >= axis.size for axis in rows):
        return ((axes, counts, divisor),)
    first = (*rows, _Regular(last.size, last.size)), (*counts[:-1], (1,) * last.size), 1
    return first, ((*(_Regular(axis.out, axis.out) for axis in rows), last), counts, divisor)


def _bind_average(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Bind the means of windows."""
    runs, lead, dtype = [], x.shape[: x.ndim - len(axes)], x.dtype
    for windows, *each in _passes(axes, counts, divisor) if supports(x) else ():
        sizes = tuple([axis.size for axis in windows])
        runs.append(_bind("sum", np.empty((*lead, *sizes), dtype), windows, _divisors(*each, sizes, dtype)[0]))
    if not runs or NotImplemented in runs:
        return NotImplemented
    return runs[0] if len(runs) == 1 else lambda x, *_: runs[1](runs[0](x))


def _average(x: np.ndarray, axes: tuple[Any, ...], counts: tuple[tuple[int, ...], ...], divisor: int | None) -> Any:
    """Bind the means of windows, and a backward pass that spreads gradients evenly."""
    run, lead, dtype = _bind_average(x, axes, counts, divisor), x.shape[: x.ndim - len(axes)], x.dtype
    if run is NotImplemented:
        return NotImplemented

    @functools.cache
    def passes() -> list[tuple[Any, ...]]:
        found = []
        for windows, *each in reversed(_passes(axes, counts, divisor)):
            sizes = tuple([axis.size for axis in windows])
            plan, divisors = _plan("sum", windows, True, dtype.itemsize), _divisors(*each, sizes, dtype)[1:]
            found.append((plan, *divisors, (*lead, *sizes)))
        return found

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        for plan, pixels, before, shape in passes():
            dy = _run(plan, dy if before is None else dy / before, pixels, np.empty(shape, dtype))
        return (dy,)

    return lambda x, *_: (run(x), backward)


def _whole(axes: tuple[Any, ...], divisor: int | None) -> bool:
    """Return whether the only windows are whole maps."""
    return divisor is None and all(a.out == 1 == a.dilation and a.kernel == a.size and a.before == 0 for a in axes)


def _bind_pool(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Bind `avg_pool`."""
    whole = _whole(axes, divisor)
    return _bind_last(x, len(axes), True) if whole else _bind_average(x, axes, counts, divisor)


@whole(_bind_pool)
def avg_pool(x: np.ndarray, axes: tuple[Any, ...], counts: Any, divisor: int | None) -> Any:
    """Take the means of windows, and spread gradients evenly."""
    return _last(x, len(axes), True) if _whole(axes, divisor) else _average(x, axes, counts, divisor)


@functools.lru_cache(maxsize=256)
def _adapted(plan: tuple[tuple[int, int], ...]) -> tuple[Any, ...]:
    """Return the arguments of `avg_pool` after x."""
    axes = tuple(_adaptive(*sizes) for sizes in plan)
    return axes, tuple(tuple((_windows(axis) >= 0).sum(axis=1).tolist()) for axis in axes), None


@whole(lambda x, plan: _bind_pool(x, *_adapted(plan)))
def adaptive_avg(x: np.ndarray, plan: tuple[tuple[int, int], ...]) -> Any:
    """Take the means of windows of any lengths, and spread gradients evenly."""
    return avg_pool(x, *_adapted(plan))


def _itself(xp: Any, key: Any, x: Any) -> list[Any]:
    return [x]


@native("dxfn")
def _divide(emit, totals, y, divisor, count):
    """Set y to float64 totals divided by a number."""
    builder = emit.builder
    with Integer(builder, 0).up_to(count) as i:
        builder.store(emit.number(builder.fdiv(builder.load(i.of(totals)), divisor)), i.of(y))


def _bind_last(x: np.ndarray, rank: int, keepdims: bool) -> Any:
    """Bind the means over the last axes."""
    dtype, lead, work = x.dtype, x.shape[: x.ndim - rank], x.size
    sums = traced(_itself, None, (ROW,), (True,), (), x.itemsize, True) if supports(x) else None
    if sums is None:
        return NotImplemented
    call, divide, maps, shape = sums.call, _divide(x.itemsize), math.prod(lead), lead + (1,) * rank * keepdims
    pixels = work // maps

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        source, totals = np.ascontiguousarray(x), np.empty(shape)
        share(lambda begin, end: call(totals, source, maps, begin, end, 0, 1, 0, pixels, pixels), work, n=maps)
        divide(totals, y := np.empty(shape, dtype), pixels, maps)
        return y

    return run


def _last(x: np.ndarray, rank: int, keepdims: bool) -> Any:
    """Bind the means over the last axes, and their backward pass."""
    shape, run, maps = x.shape, _bind_last(x, rank, keepdims), math.prod(x.shape[: x.ndim - rank])
    if run is NotImplemented:
        return NotImplemented
    pixels = x.size // maps

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return (None,)
        dx, each = np.empty((maps, pixels), dy.dtype), (dy / dy.dtype.type(pixels)).reshape(maps, 1)
        share(lambda begin, end: np.copyto(dx[begin:end], each[begin:end]), dx.size, n=maps)
        return (dx.reshape(shape),)

    return lambda x, *_: (run(x), backward)


def _of_maps(means: Callable[..., Any], x: np.ndarray, axes: tuple[int, ...], keepdims: bool, average: bool) -> Any:
    if not average or not axes or axes[0] != x.ndim - len(axes):
        return NotImplemented
    return means(x, len(axes), keepdims)


@whole(functools.partial(_of_maps, _bind_last))
def reduction(x: np.ndarray, axes: tuple[int, ...], keepdims: bool, average: bool) -> Any:
    """Take the means over the last axes, as of maps."""
    return _of_maps(_last, x, axes, keepdims, average)

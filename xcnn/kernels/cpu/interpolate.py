"""Interpolation along one axis after the other, while maps are in the cache.

Many small maps are turned: a vector holds one pixel of as many maps, and all passes are over full vectors.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._taps import MODES, tables
from xcnn.kernels.cpu._grids import pack
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import plain, share, supports, whole
from xcnn.kernels.cpu._transpose import transpose
from xcnn.kernels.cpu._vectors import BYTES, INT, counted

__all__ = ["interpolate"]

_COLUMNS = 8
"""Those of passes: x (outer, size, inner) becomes sums (outer, outs, inner) of up to so many terms; where its part of
the tables begins, and that of the numbers of terms; and the kind, one of the following."""

_ROWS, _NUMBERS, _TWO, _FROM_PAIRS, _TO_PAIRS = range(5)
"""All but the first are for an inner size of 1: any sums, or those of two; each pair becomes a pixel, or each pixel a
pair."""

_VECTORS = 4
"""Vectors per iteration."""

_TURNED_BYTES = 80_000, 1_400_000
"""Size of the largest maps that are turned at once, before and after; those that are copied, and those that are mixed,
which takes longer number by number."""


class _Pass:
    """Writes the pass along one axis of a map, of which `plan` is a row of `passes`."""

    def __init__(self, emit: Any, plan: Sequence[Integer], indices: Integers, weights: Any, counts: Integers) -> None:
        self.emit, self.builder = emit, emit.builder
        self.outer, self.size, self.inner, self.outs, self.terms, table, row, self.kind = plan
        parts = (table, indices), (row, counts)
        self.indices, self.counts = (Integers(self.builder, begin.of(a.pointer)) for begin, a in parts)
        self.weights = table.of(weights)

    def write(self, x: Any, y: Any) -> None:
        ways: list[Any] = [functools.partial(self.numbers, terms) for terms in (0, 2)]
        ways += [functools.partial(self.pairs, split) for split in (False, True)]
        with self.builder.if_else(self.kind.holds("==", _ROWS)) as (rows, others):
            with rows:
                self.rows(x, y)
            with others, Integer(self.builder, 0).up_to(self.outer) as i:
                source, target = self.line(i, self.size, x), self.line(i, self.outs, y)
                for kind, way in enumerate(ways, _NUMBERS):
                    with self.builder.if_then(self.kind.holds("==", kind)):
                        way(source, target)

    def line(self, i: Integer, size: Any, pointer: Any) -> Any:
        return (i * size * self.inner).of(pointer)

    def rows(self, x: Any, y: Any) -> None:
        """Write the pass for rows: a vector of several, or several vectors of one."""
        emit, builder, zero = self.emit, self.builder, Integer(self.builder, 0)
        whole = self.outer // _VECTORS * _VECTORS
        with zero.up_to(self.outs) as o:
            begin, count = o * self.terms, self.counts[o]
            end, start = begin + count, emit.spread(self.nothing(count))

            def add(sources: Sequence[Any], targets: Sequence[Any], places: Any, exist: Any, _: Any) -> Any:
                def term(t: Any, totals: Sequence[Any]) -> Sequence[Any]:
                    row, weight = self.indices[t] * self.inner, emit.spread(self.weight(t))
                    pixels = [emit.read(row.of(line), place, exist) for line in sources for place in places]
                    return [*map(builder.fadd, totals, [builder.fmul(pixel, weight) for pixel in pixels])]

                totals = counted(builder, begin.value, end.value, INT(1), [start] * (len(sources) * len(places)), term)
                for total, (line, place) in zip(totals, itertools.product(targets, places), strict=True):
                    emit.write(total, line, place, exist)
                return ()

            for first, last, lines, many in ((zero, whole, _VECTORS, 1), (whole, self.outer, 1, _VECTORS)):
                with first.up_to(last, lines) as i:
                    sources = [self.line(i + k, self.size, x) for k in range(lines)]
                    targets = [self.line((i + k) * self.outs + o, 1, y) for k in range(lines)]
                    emit.span(INT(0), self.inner.value, (), functools.partial(add, sources, targets), many)

    def nothing(self, count: Integer) -> Any:
        """Return the sum of no terms, or what changes no sum."""
        number = self.emit.vector.element
        return self.builder.select(count.holds("==", 0), number(0.0), number(-0.0))

    def weight(self, t: Any) -> Any:
        return self.builder.load(Integer(self.builder, t).of(self.weights))

    def numbers(self, terms: int, source: Any, target: Any) -> None:
        """Write sums of so many terms, or of any number of them for 0."""
        builder = self.builder

        def term(t: Any, totals: Sequence[Any] = ()) -> Sequence[Any]:
            product = builder.fmul(builder.load(self.indices[t].of(source)), self.weight(t))
            return [builder.fadd(total, product) for total in totals] or [product]

        with Integer(builder, 0).up_to(self.outs) as o:
            if terms == 2:  # without a loop, or how many there are
                totals = term(o * 2 + 1, term(o * 2))
            else:
                begin, count = o * self.terms, self.counts[o]
                totals = counted(builder, begin.value, (begin + count).value, INT(1), [self.nothing(count)], term)
            builder.store(totals[0], o.of(target))

    def pairs(self, split: bool, source: Any, target: Any) -> None:
        emit, count = self.emit, self.size if split else self.outs

        def some(places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
            first = Integer(self.builder, places[0]) * 2
            firsts = [first, first + emit.lanes]
            ends = [(end.value, exist and emit.first((count * 2 - end).value)) for end in firsts]
            if split:
                value = emit.read(source, places[0], exist)
                for k, end in enumerate(ends):
                    lanes = [(k * emit.lanes + lane) // 2 for lane in range(emit.lanes)]
                    emit.write(emit.shuffle(value, value, lanes), target, *end)
            else:
                both = [emit.read(source, *end) for end in ends]
                even, odd = (emit.shuffle(*both, [2 * lane + k for lane in range(emit.lanes)]) for k in range(2))
                emit.write(self.builder.fadd(even, odd), target, places[0], exist)
            return []

        emit.span(INT(0), count.value, [], some)


@native("nxxixxnn")
def _resize(emit, turn, x, y, tables, weights, room, begin, end):
    """Resize maps by all passes; if they are turned by `transpose`, as many at once as a vector has numbers."""
    builder, lanes, tables = emit.builder, emit.lanes, Integers(emit.builder, tables)
    passes, places, chosen, begins, ends, indices, counts = (tables.array(k) for k in range(7))
    at_once, size, area, half = tables.some(1, 4)
    turned, half, end = at_once.holds(">", 1), half.of(room), Integer(builder, end)
    with Integer(builder, begin).up_to(end, at_once) as p:
        source, target, many = (p * size).of(x), (p * area).of(y), (end - p).least(lanes)
        with builder.if_then(turned):
            transpose.write(
                emit, turn, source, 0, begins.pointer, many, room, 0, places.pointer, places.size, size * lanes, 0
            )

        def one(at: Any, rooms: Sequence[Any]) -> Sequence[Any]:
            (source, free, other), at = rooms, Integer(builder, at)
            last = builder.and_(builder.not_(turned), (at + _COLUMNS).holds("==", passes.size))
            free = builder.select(last, target, free)
            _Pass(emit, passes.some(at, _COLUMNS), indices, weights, counts).write(source, free)
            return free, other, free

        start = [builder.select(turned, room, source), half, room]
        done, *_ = counted(builder, INT(0), passes.size.value, INT(_COLUMNS), start, one)
        with builder.if_then(turned):
            transpose.write(
                emit, turn, done, 0, chosen.pointer, chosen.size, target, 0, ends.pointer, many, 0, area * lanes
            )


def _tables(axes: Sequence[Any], sizes: Sequence[int], at_once: int, back: bool, dtype: Any) -> tuple[Any, ...]:
    """Return the tables and weights of all passes over maps of these sizes, and the size of the room."""
    passes, parts, current, pixels = [], list[tuple[np.ndarray, ...]](), [*sizes], [math.prod(sizes)]
    turned = copied = at_once > 1  # only then are places of pixels needed, which take more memory than a map
    chosen = np.arange(pixels[0]).reshape(sizes) if turned else np.zeros(0, np.int64)
    for dim, (indices, weights) in axes:
        terms, outs = indices.shape
        counts = (weights != 0).sum(axis=0) if back else np.full(outs, terms)
        outer, inner = math.prod(current[:dim]), math.prod(current[dim:][1:]) * at_once
        at, row = (sum(part[kind].size for part in parts) for kind in (0, 2))
        equal, ones = (counts == terms).all(), (weights == 1.0).all()
        pair = np.arange(2 * min(current[dim], outs)) // (2 if outs > current[dim] else 1)
        kind = _ROWS if inner > 1 else _TWO if equal and terms == 2 else _NUMBERS
        if inner == 1 and equal and ones and np.array_equal(indices.T.ravel(), pair) and terms * outs == pair.size:
            kind = _TO_PAIRS if terms == 1 else _FROM_PAIRS
        passes.append((outer, current[dim], inner, outs, terms, at, row, kind))
        parts.append((indices.T.ravel(), weights.T.ravel(), counts))
        copied, current[dim] = copied and terms == 1 and ones, outs
        chosen = chosen.take(indices[0], axis=dim) if copied else chosen
        pixels.append(math.prod(current))
    size, area, room = pixels[0], pixels[-1], max(pixels if turned else [0, *pixels[1:-1]])
    if copied:  # each pixel is turned back from where it is
        passes = []
    places = np.arange(size if turned else 0), chosen if copied else np.arange(area if turned else 0)
    steps = (np.arange(at_once) * step for step in (size, area))
    indices, weights, counts = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    numbers, passed = [at_once, size, area, room * at_once], np.array(passes, np.int64)
    whole = pack(numbers, passed, *(place * at_once for place in places), *steps, indices, counts)
    return whole, weights.astype(dtype), 2 * room * at_once


@functools.lru_cache(maxsize=128)
def _resizer(plan: tuple[Any, ...], shape: tuple[int, ...], back: bool, dtype: Any) -> Any:
    """Return a function of arrays of this shape that resizes them, or makes the gradient."""
    axes = [(dim, tables(*arguments)[back]) for dim, arguments in (plan if back else reversed(plan))]
    lanes, maps, outs = BYTES // dtype.itemsize, math.prod(shape[:2]), [*shape[2:]]
    call, turn = _resize(dtype.itemsize), transpose.address(dtype.itemsize)
    pixels = [math.prod(outs)]
    for dim, arguments in plan if back else reversed(plan):
        outs[dim] = arguments[0 if back else 1]
        pixels.append(math.prod(outs))
    most = _TURNED_BYTES[MODES[plan[0][1][3]] > 0]
    small = max(pixels[0] + pixels[-1], *pixels) * BYTES <= most  # there may be more between two passes
    at_once = lanes if small and 2 * maps >= lanes else 1
    whole, weights, room = _tables(axes, shape[2:], at_once, back, dtype)

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        y, x = np.empty((*shape[:2], *outs), dtype), plain(x)

        def some(begin: int, end: int) -> None:
            memory = scratch(-1, "resized", room, dtype)
            call(turn, x, y, whole, weights, memory, begin * at_once, min(end * at_once, maps))

        share(some, x.size + y.size, n=-(-maps // at_once))
        return y

    return run


def _bind(x: np.ndarray, plan: tuple[Any, ...]) -> Any:
    return _resizer(plan, x.shape, False, x.dtype) if supports(x) else NotImplemented


@whole(_bind)
def interpolate(x: np.ndarray, plan: tuple[Any, ...]) -> Any:
    """Resize axes by the taps of `tables(*arguments)`."""
    resize = _bind(x, plan)
    if resize is NotImplemented:
        return NotImplemented

    def run(x: np.ndarray, _: Any) -> Any:
        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            return (_resizer(plan, dy.shape, True, dy.dtype)(dy) if needs[0] else None,)

        return resize(x), backward

    return run

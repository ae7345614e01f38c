"""Interpolation map by map: along one axis after the other, while a map is in the cache."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._taps import tables
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import share, supports, whole
from xcnn.kernels.cpu._vectors import INT, counted

__all__ = ["interpolate"]

_COLUMNS = 8
"""Those of `passes`: x (outer, size, inner) becomes sums (outer, outs, inner) of up to so many terms; where its part of
the tables begins, and that of the numbers of terms; and the kind, one of the following."""

_ROWS, _NUMBERS, _ONE, _TWO, _TO_PAIRS, _FROM_PAIRS = range(6)
"""All but the first are for an inner size of 1: sums have any number of terms, or one, or two; each pixel becomes a
pair, or each pair a pixel."""

_VECTORS = 4
"""Vectors per iteration."""


class _Pass:
    """Writes the pass along one axis of a map, of which `plan` is a row of `passes`."""

    def __init__(self, emit: Any, plan: Sequence[Integer], indices: Any, weights: Any, counts: Any) -> None:
        self.emit, self.builder = emit, emit.builder
        self.outer, self.size, self.inner, self.outs, self.terms, table, row, self.kind = plan
        self.indices, self.counts = (Integers(self.builder, p.of(a)) for p, a in ((table, indices), (row, counts)))
        self.weights = table.of(weights)

    def write(self, x: Any, y: Any) -> None:
        ways: list[Callable[[Any, Any], None]] = [self.rows, *(functools.partial(self.numbers, k) for k in range(3))]
        with Integer(self.builder, 0).up_to(self.outer) as i:
            source, target = (i * size * self.inner for size in (self.size, self.outs))
            for kind, way in enumerate([*ways, self.to_pairs, self.from_pairs]):
                with self.builder.if_then(self.kind.holds("==", kind)):
                    way(source.of(x), target.of(y))

    def rows(self, source: Any, target: Any) -> None:
        emit, builder = self.emit, self.builder
        with Integer(builder, 0).up_to(self.outs) as o:
            begin, count = o * self.terms, self.counts[o]
            start = emit.spread(self.nothing(count))

            def some(places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
                def term(t: Any, totals: Sequence[Any]) -> Sequence[Any]:
                    row, weight = (self.indices[t] * self.inner).of(source), emit.spread(self.weight(t))
                    terms = [builder.fmul(emit.read(row, place, exist), weight) for place in places]
                    return [*map(builder.fadd, totals, terms)]

                sums = counted(builder, begin.value, (begin + count).value, INT(1), [start] * len(places), term)
                for place, total in zip(places, sums, strict=True):
                    emit.write(total, (o * self.inner).of(target), place, exist)
                return []

            emit.span(INT(0), self.inner.value, [], some, _VECTORS)

    def nothing(self, count: Integer) -> Any:
        """Return the sum of no terms, or what changes no sum."""
        number = self.emit.vector.element
        return self.builder.select(count.holds("==", 0), number(0.0), number(-0.0))

    def weight(self, t: Any) -> Any:
        return self.builder.load(Integer(self.builder, t).of(self.weights))

    def numbers(self, many: int, source: Any, target: Any) -> None:
        """Write the pass for sums of so many terms; if it is 0, of any number."""
        builder = self.builder

        def term(t: Any, totals: Sequence[Any]) -> Sequence[Any]:
            product = builder.fmul(builder.load(self.indices[t].of(source)), self.weight(t))
            return [builder.fadd(total, product) for total in totals] or [product]

        with Integer(builder, 0).up_to(self.outs) as o:
            if many:
                begin = o * many
                totals: Sequence[Any] = []
                for k in range(many):
                    totals = term(begin + k, totals)
            else:
                begin, count = o * self.terms, self.counts[o]
                start = [self.nothing(count)]
                totals = counted(builder, begin.value, (begin + count).value, INT(1), start, term)
            builder.store(totals[0], o.of(target))

    def to_pairs(self, source: Any, target: Any) -> None:
        emit = self.emit

        def some(places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
            value = emit.read(source, places[0], exist)
            for k, (place, exists) in enumerate(self.pair(places[0], self.size, exist)):
                lanes = [(k * emit.lanes + lane) // 2 for lane in range(emit.lanes)]
                emit.write(emit.shuffle(value, value, lanes), target, place, exists)
            return []

        emit.span(INT(0), self.size.value, [], some)

    def from_pairs(self, source: Any, target: Any) -> None:
        emit = self.emit

        def some(places: Sequence[Any], exist: Any, _: Any) -> Sequence[Any]:
            both = [emit.read(source, place, exists) for place, exists in self.pair(places[0], self.outs, exist)]
            even, odd = (emit.shuffle(*both, [2 * lane + k for lane in range(emit.lanes)]) for k in range(2))
            emit.write(self.builder.fadd(even, odd), target, places[0], exist)
            return []

        emit.span(INT(0), self.outs.value, [], some)

    def pair(self, place: Any, count: Integer, exist: Any) -> list[tuple[Any, Any]]:
        """Return the places of two vectors with the pairs of those numbers, of which there are `count`; their masks."""
        first = Integer(self.builder, place) * 2
        places = [first, first + self.emit.lanes]
        return [(one.value, exist and self.emit.first((count * 2 - one).value)) for one in places]


@native("xnxninxnixinn")
def _resize(emit, x, size, y, area, passes, count, room, half, indices, weights, counts, begin, end):
    """Resize maps of x of so many pixels each, with two halves of a `room` for the pixels between two passes."""
    builder, passes = emit.builder, Integers(builder=emit.builder, pointer=passes)
    size, area, count, half = (Integer(builder, value) for value in (size, area, count, half))
    with Integer(builder, begin).up_to(end) as p:

        def one(s: Any, rooms: Sequence[Any]) -> Sequence[Any]:
            s, (source, free, other) = Integer(builder, s), rooms
            target = builder.select((s + 1).holds("==", count), (p * area).of(y), free)
            _Pass(emit, passes.some(s * _COLUMNS, _COLUMNS), indices, weights, counts).write(source, target)
            return target, other, free

        counted(builder, INT(0), count.value, INT(1), [(p * size).of(x), room, half.of(room)], one)


@functools.lru_cache(maxsize=64)
def _passes(plan: tuple[Any, ...], sizes: tuple[int, ...], back: bool, dtype: Any) -> Any:
    """Return the tables of all passes over maps of these sizes, and the sizes of the results."""
    parts: list[tuple[np.ndarray, ...]] = []
    passes, current, room = [], list(sizes), 0
    for dim, arguments in plan if back else reversed(plan):
        indices, weights = tables(*arguments)[back]
        terms, outs = indices.shape
        counts = (weights != 0).sum(axis=0) if back else np.full(outs, terms)
        outer, inner = math.prod(current[:dim]), math.prod(current[dim:][1:])
        at, row = (sum(part[kind].size for part in parts) for kind in (0, 2))
        equal = (counts == terms).all()
        pair = np.arange(2 * min(current[dim], outs)) // (2 if outs > current[dim] else 1)
        pairs = (
            equal and np.all(weights == 1.0) and np.array_equal(indices.T.ravel(), pair) and terms * outs == pair.size
        )
        kind = _ROWS if inner > 1 else _NUMBERS
        if inner == 1 and pairs:
            kind = _TO_PAIRS if terms == 1 else _FROM_PAIRS
        elif inner == 1 and equal and terms <= 2:
            kind = _ONE if terms == 1 else _TWO
        passes.append((outer, current[dim], inner, outs, terms, at, row, kind))
        parts.append((indices.T.ravel(), weights.T.ravel(), counts))
        current[dim] = outs
        room = max(room, math.prod(current))
    indices, weights, counts = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    both = np.array(passes, np.int64), room, indices.astype(np.int64), weights.astype(dtype), counts.astype(np.int64)
    return both, tuple(current)


def _bind(x: np.ndarray, plan: tuple[Any, ...], back: bool = False) -> Any:
    """Bind what resizes x, or the gradient of what does."""
    if not supports(x):
        return NotImplemented
    lead, dtype, work = x.shape[:2], x.dtype, x.size
    (table, half, *rest), outs = _passes(plan, x.shape[2:], back, dtype)
    call, shape, maps = _resize(x.itemsize), (*lead, *outs), math.prod(lead)
    fixed, pixels, area = (table, len(table)), work // maps, math.prod(outs)

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        x, y = np.ascontiguousarray(x), np.empty(shape, dtype)

        def some(begin: int, end: int) -> None:
            call(x, pixels, y, area, *fixed, scratch(0, "resized", 2 * half, dtype), half, *rest, begin, end)

        share(some, 4 * (work + y.size), n=maps)
        return y

    return run


@whole(_bind)
def interpolate(x: np.ndarray, plan: tuple[Any, ...]) -> Any:
    """Resize axes by the taps of `tables(*arguments)`."""
    resize = _bind(x, plan)
    if resize is NotImplemented:
        return NotImplemented

    def run(x: np.ndarray, _: Any) -> Any:
        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            return (_bind(dy, plan, back=True)(dy) if needs[0] else None,)

        return resize(x), backward

    return run

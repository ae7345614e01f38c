"""Reductions of windows as compiled loops, forward and backward: pixels to windows, and windows to pixels.

Both compute *targets*, row by row, from some *sources* each: windows from their pixels, or pixels of dx from the
windows that they belong to. A table lists rows and columns of sources. A vector of adjacent targets is computed in
registers and written once. Where sources would be padding, their lanes are masked: padding takes no memory, and pixels
outside all windows no pass of zeros.

There are three kinds of passes:

- `max`: targets are maxima, or NaN, and the codes of the sources that hold them: the last listed of several.
- `sum`: targets are sums, divided by the product of a number of the target's column and one of its row.
- `gradient`: targets are the sums of those sources whose code is the one that they are seen with.

Maxima of whole maps are those of rows, which have a function of their own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import machine_code, native
from xcnn.kernels.cpu._vectors import DOUBLE, INT, LANE, Vectors, counted

__all__ = ["HEADER", "PHASES", "largest", "window_pass"]

PHASES = 4
"""The largest stride whose columns are read and written as whole vectors."""

_SEVERAL = 4
"""Maps that are reduced at once, so that the processor need not wait for each result."""

HEADER = 9 + PHASES
"""Numbers at the beginning of a table: those of a map of sources, and of a row of it; the rows of a map of targets, and
the numbers of a row of it; the smallest and the largest place of a column; where the columns of each phase end;
where the columns, the rows and the sources of rows are listed. Columns and sources are pairs of a place and the
code of a window's position; a row is a pair of its first source and the end of them."""


@functools.cache
def window_pass(kind: str, step: int, counts: tuple[int, ...], itemsize: int, code: int) -> Callable[..., None]:
    """Compile a function `(table, sources, other, targets, begin, end)` that does some maps.

    Parameters
    ----------
    kind : one of those above. `other` has codes, or the divisors of the rows, of the columns, and some vectors more.
    step : targets `q * phases + phase` see the columns `q * step + place`; each phase has places of its own. If it is
        0, there is a list of places for all targets and one of codes, -1 for none, at each position. These lists
        have whole vectors.
    counts : for each phase, how many columns it has if these are written out, or 0.
    itemsize, code : bytes of a number, and of a code. The code of a maximum without sources is -1.
    """
    return machine_code(lambda module: _Writer(module, kind, step, counts, itemsize, code).write_all(), "ppppnn")


class _Writer(Vectors):
    """Writes the function `loop` into a module."""

    def __init__(self, module: Any, kind: str, step: int, counts: tuple[int, ...], itemsize: int, code: int) -> None:
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        self.kind, self.step, self.counts, self.code = kind, step, counts, ir.IntType(8 * code)
        self.phases = len(counts)
        arrays = [INT, number, number if kind == "sum" else self.code, number]
        signature = ir.FunctionType(ir.VoidType(), [*(a.as_pointer() for a in arrays), INT, INT])
        function = ir.Function(module, signature, "loop")
        super().__init__(ir.IRBuilder(function.append_basic_block()), itemsize)
        table, self.sources, self.other, self.targets, begin, end = function.args
        self.table, self.zero = Integers(self.builder, table), Integer(self.builder, 0)
        self.begin, self.end = self.zero + begin, self.zero + end
        self.size, self.width, self.rows, self.count, self.low, self.high, *self.ends, self.columns, self.lines = (
            self.table.some(0, HEADER - 1)
        )
        self.none = ir.Constant(self.vector, None)

    def write_all(self) -> None:
        self.area = self.rows * self.count
        all_sources, self.all_targets = self.end * self.size, self.end * self.area
        self.blocks = (self.count + (self.phases - 1)) // self.phases
        with self.begin.up_to(self.end, _SEVERAL) as p:
            each = [(p + v).least(self.end - 1) for v in range(_SEVERAL)]
            self.maps = [one * self.size for one in each]
            self.inside = (self.maps[-1] + self.size + PHASES * self.lanes).holds("<=", all_sources)
            with self.zero.up_to(self.rows) as self.line:
                self.seen, start = self._pair(self.lines, self.line), self.line * self.count
                self.rows_of = [one * self.area + start for one in each]
                self.left = self.area - start
                with self.zero.up_to(self.blocks, self.lanes) as q:
                    self._vectors(q)
        self.builder.ret_void()

    def _pair(self, start: Integer, index: Any) -> list[Integer]:
        return self.table.some(start + Integer(self.builder, index) * 2, 2)

    def _vectors(self, q: Integer) -> None:
        """Write the vectors of all phases from q on; without masks if their targets see no padding.

        Targets beyond a row are the first of the next one, which are computed again; what they see must exist.
        """
        builder = self.builder
        if not self.step:  # what is listed exists
            self._block(q, True)
            return
        first, last = q * self.step, (q + (self.lanes - 1)).least(self.blocks - 1) * self.step
        whole = builder.and_(self.inside, (first + self.low).holds(">=", 0))
        whole = builder.and_(whole, (last + self.high).holds("<", self.width))
        with builder.if_else(whole) as (all_exist, some_exist):
            with all_exist:
                self._block(q, False)
            with some_exist:
                self._block(q, True)

    def _block(self, q: Integer, masked: bool) -> None:
        builder = self.builder
        ends = [self.zero, *self.ends]
        found = [self._reduce(q, ends[k], ends[k + 1], count, masked) for k, count in enumerate(self.counts)]
        targets = [divmod(k, self.phases) for k in range(self.phases * self.lanes)]
        parts = [
            [(phase, lane) for lane, phase in targets[k : k + self.lanes]] for k in range(0, len(targets), self.lanes)
        ]
        for k, values in enumerate(zip(*found, strict=True)):
            v, codes = divmod(k, 2) if self.kind == "max" else (k, 0)
            for i, part in enumerate(parts):
                vector = self._chosen(values, part)
                at = q * self.phases + i * self.lanes
                if self.kind == "sum":
                    of_row = self.broadcast(self.line.of(self.other))
                    by = builder.fmul(self.read(self.other, (self.rows + at).value), of_row)
                    vector = builder.fdiv(vector, by)
                if codes and self.code != LANE:
                    vector = builder.trunc(vector, self._codes(self.code))
                self._store(vector, self.other if codes else self.targets, self.rows_of[v], at)

    def _store(self, vector: Any, array: Any, row: Integer, at: Integer) -> None:
        """Write a vector, of which only what is in the map counts. Some processors take long for masked bytes."""
        place, left = row + at, self.left - at
        target = place.of(array)
        with self.builder.if_else(left.holds(">=", self.lanes)) as (inside, beyond):
            with inside:
                self.store(vector, target)
            with beyond:
                exist = self.first(left.value)
                with self.builder.if_else((place + self.lanes).holds(">", self.all_targets)) as (end, between):
                    with end:
                        self.write(vector, target, INT(0), exist)
                    with between:
                        self.store(self.builder.select(exist, vector, self.load(target)), target)

    def _chosen(self, vectors: Sequence[Any], lanes: Sequence[tuple[int, int]]) -> Any:
        """Return the vector of some lanes of several vectors; each is given by the vector and its lane there."""
        chosen = vectors[0]
        for k, vector in enumerate(vectors[1:], 1):
            places = [self.lanes + lane if of == k else lane if k == 1 else i for i, (of, lane) in enumerate(lanes)]
            chosen = self.shuffle(chosen, vector, places)
        return chosen

    def _codes(self, kind: Any) -> Any:
        return ir.VectorType(kind, self.lanes)

    def _reduce(self, q: Integer, begin: Integer, end: Integer, count: int, masked: bool) -> list[Any]:
        """Return a vector of targets, which see the columns listed from `begin` to `end`; also codes of maxima."""
        builder = self.builder
        start, own = [self.none] * _SEVERAL, 1
        if self.kind == "max":
            lowest = ir.Constant(self.vector, [float("-inf")] * self.lanes)
            start, own = [lowest, ir.Constant(self._codes(LANE), [-1] * self.lanes)] * _SEVERAL, 2
        listed = self.table[HEADER - 1]
        column = self._moved if self.step else self._listed
        written = [column(q, begin + t, masked) for t in range(count)]

        def row(r: Any, outer: list[Any]) -> list[Any]:
            place, code = self._pair(listed, r)
            firsts = [one + place for one in self.maps]

            def each(column: tuple[Any, Any, Any], values: list[Any]) -> list[Any]:
                read, exist, codes = column
                several: list[Any] = []
                for first, *old in zip(firsts, *(values[k::own] for k in range(own)), strict=True):
                    new = read(first.of(self.sources))
                    if self.kind == "gradient":
                        other = read(first.of(self.other))
                        taken = exist(builder.icmp_signed("==", other, codes(code, self.code)))
                        new = builder.select(taken, new, self.none)
                    if self.kind != "max":
                        several.append(builder.fadd(old[0], new))
                        continue
                    # NaN wins over all that come before it; where nothing exists, new is 0.
                    taken = exist(builder.fcmp_ordered(">=", new, old[0]))
                    taken = builder.or_(taken, builder.fcmp_unordered("uno", new, new))
                    several += [builder.select(taken, a, b) for a, b in zip((new, codes(code, LANE)), old, strict=True)]
                return several

            def rolled(t: Any, inner: list[Any]) -> list[Any]:
                self.rolled()
                return each(column(q, t, masked), inner)

            inner = start if self.kind == "sum" else outer
            if written:
                for one in written:
                    inner = each(one, inner)
            else:
                inner = counted(builder, begin.value, end.value, INT(1), inner, rolled)
            return inner if self.kind != "sum" else [builder.fadd(a, b) for a, b in zip(outer, inner, strict=True)]

        first, last = self.seen
        return counted(builder, first.value, last.value, INT(1), start, row)

    def _moved(self, q: Integer, t: Any, masked: bool) -> tuple[Any, Any, Any]:
        """Return functions for what targets from q on see with column t: to read it, to mask it, and for its codes."""
        builder, lanes = self.builder, self.lanes
        place, of_column = self._pair(self.columns, t)
        first = q * self.step + place

        def existing(start: Integer, step: int) -> Any:
            if not masked:
                return None
            start, width = (self.spread(builder.trunc(k.value, LANE)) for k in (start, self.width))
            return builder.icmp_unsigned("<", builder.add(start, self.lane_list(range(0, step * lanes, step))), width)

        starts = [
            *range(0, (self.step - 1) * lanes, lanes),
            (lanes - 1) * self.step + 1 - lanes,
        ]  # the last pixel is last
        places = [first + start for start in starts]
        chosen = [(min(i * self.step // lanes, self.step - 1), i * self.step) for i in range(lanes)]
        chosen = [(k, place - starts[k]) for k, place in chosen]
        masks, whole = [existing(at, 1) for at in places], existing(first, self.step)

        def read(pointer: Any) -> Any:
            vectors = [self.read(pointer, at.value, mask) for at, mask in zip(places, masks, strict=True)]
            return self._chosen(vectors, chosen)

        def codes(code: Integer, kind: Any) -> Any:
            return self.spread(builder.trunc((code + of_column).value, kind))

        return read, lambda mask: mask if whole is None else builder.and_(mask, whole), codes

    def _listed(self, q: Integer, t: Any, _: bool) -> tuple[Any, Any, Any]:
        """Do the same where all places are listed."""
        builder, lanes = self.builder, self.lanes
        length = (self.count + (lanes - 1)) // lanes * lanes
        start = self.columns + q + Integer(builder, t) * 2 * length
        listed = self.read(self.table.pointer, (start + length).value)
        whole = builder.icmp_signed(">=", listed, ir.Constant(listed.type, None))
        places = self.table.some(start, lanes)

        def read(pointer: Any) -> Any:
            empty = vector = ir.Constant(ir.VectorType(pointer.type.pointee, lanes), None)
            for k, place in enumerate(places):
                vector = builder.insert_element(vector, builder.load(place.of(pointer)), LANE(k))
            return builder.select(whole, vector, empty)

        def codes(code: Integer, kind: Any) -> Any:
            return builder.trunc(builder.add(listed, self.spread(code.value)), self._codes(kind))

        return read, lambda mask: builder.and_(mask, whole), codes


@native("xxinnn")
def largest(emit, x, y, winners, count, begin, end):
    """Set y to the maxima of rows of x, or NaN, and `winners` to the index of the first one, or of the first NaN."""
    builder, lowest = emit.builder, ir.Constant(emit.vector, [float("-inf")] * emit.lanes)
    nowhere = emit.lane_list([0] * emit.lanes)
    with Integer(builder, begin).up_to(end) as r:
        row = (r * count).of(x)

        def some(places: Sequence[Any], exist: Any, found: Sequence[Any]) -> Sequence[Any]:
            new, own = emit.read(row, places[0], exist), builder.fcmp_ordered("ord", found[0], found[0])
            indices = builder.add(emit.spread(builder.trunc(places[0], LANE)), emit.lane_list(range(emit.lanes)))
            new = new if exist is None else builder.select(exist, new, lowest)
            taken = builder.and_(builder.fcmp_unordered(">", new, found[0]), own)  # NaN stays
            return [builder.select(taken, *pair) for pair in zip((new, indices), found, strict=True)]

        value, place = emit.span(INT(0), count, [lowest, nowhere], some)
        best = emit.folded(value, emit.maximum)
        here = builder.or_(builder.fcmp_ordered("==", value, best), builder.fcmp_unordered("uno", value, value))
        place = builder.select(here, place, emit.lane_list([2**31 - 1] * emit.lanes))
        place = emit.folded(place, lambda a, b: builder.select(builder.icmp_signed("<", a, b), a, b))
        builder.store(builder.extract_element(best, LANE(0)), r.of(y))
        builder.store(builder.zext(builder.extract_element(place, LANE(0)), INT), r.of(winners))

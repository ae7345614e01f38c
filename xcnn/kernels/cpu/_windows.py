"""Reductions of windows as compiled loops, forward and backward: pixels to windows, and windows to pixels.

Both compute *targets*, row by row, from some *sources* each: windows from their pixels, or pixels of dx from the
windows that they belong to. A table lists rows and columns of sources. A vector of adjacent targets is computed in
registers and written once. Where sources would be padding, their lanes are masked: padding takes no memory, and pixels
outside all windows no pass of zeros.

There are three kinds of passes:

- `max`: targets are maxima, or NaN, and the codes of the sources that hold them: the last listed of several.
- `sum`: targets are sums, divided by the product of a number of the target's column and one of its row.
- `gradient`: targets are the sums of those sources whose code is the one that they are seen with.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._native import machine_code
from xcnn.kernels.cpu._vectors import DOUBLE, INT, LANE, Vectors, counted

__all__ = ["HEADER", "PHASES", "window_pass"]

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
    """Compile a function `(table, sources, other, targets, begin, end)` of addresses that does some maps.

    Parameters
    ----------
    kind : one of those above. `other` has codes, or the divisors of the rows, of the columns, and some vectors more.
    step : targets `q * phases + phase` see the columns `q * step + place`; each phase has places of its own. If it is
        0, there is a list of places for all targets and one of codes, -1 for none, at each position. These lists
        have whole vectors.
    counts : for each phase, how many columns it has if these are written out, or 0.
    itemsize, code : bytes of a number, and of a code. The code of a maximum without sources is -1.
    """
    start = machine_code(lambda module: _Writer(module, kind, step, counts, itemsize, code).write_all())
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 2)(start)


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
        self.table, self.sources, self.other, self.targets, self.begin, self.end = function.args
        self.size, self.width, self.rows, self.count, self.low, self.high, *self.ends, self.columns, self.lines = (
            self._number(INT(k)) for k in range(HEADER - 1)
        )
        self.zero = ir.Constant(self.vector, None)

    def write_all(self) -> None:
        builder = self.builder
        self.area = builder.mul(self.rows, self.count)
        all_sources, self.all_targets = builder.mul(self.end, self.size), builder.mul(self.end, self.area)
        self.blocks = builder.udiv(builder.add(self.count, INT(self.phases - 1)), INT(self.phases))

        def several(p: Any, _: Any) -> list[Any]:
            last = builder.sub(self.end, INT(1))
            each = [builder.add(p, INT(v)) for v in range(_SEVERAL)]
            each = [builder.select(builder.icmp_signed("<", one, last), one, last) for one in each]
            self.maps = [builder.mul(one, self.size) for one in each]
            after = builder.add(self.maps[-1], builder.add(self.size, INT(PHASES * self.lanes)))
            self.inside = builder.icmp_signed("<=", after, all_sources)

            def row(r: Any, _: Any) -> list[Any]:
                self.line, self.seen, start = r, self._pair(self.lines, r), builder.mul(r, self.count)
                self.rows_of = [builder.add(builder.mul(one, self.area), start) for one in each]
                self.left = builder.sub(self.area, start)
                counted(builder, INT(0), self.blocks, INT(self.lanes), [], self._vectors)
                return []

            return counted(builder, INT(0), self.rows, INT(1), [], row)

        counted(builder, self.begin, self.end, INT(_SEVERAL), [], several)
        builder.ret_void()

    def _number(self, place: Any) -> Any:
        return self.builder.load(self.builder.gep(self.table, [place]))

    def _pair(self, start: Any, index: Any) -> tuple[Any, Any]:
        place = self.builder.add(start, self.builder.mul(index, INT(2)))
        return self._number(place), self._number(self.builder.add(place, INT(1)))

    def _vectors(self, q: Any, _: Any) -> list[Any]:
        """Write the vectors of all phases from q on; without masks if their targets see no padding.

        Targets beyond a row are the first of the next one, which are computed again; what they see must exist.
        """
        builder = self.builder
        if not self.step:  # what is listed exists
            self._block(q, True)
            return []
        last = builder.sub(self.blocks, INT(1))
        end = builder.add(q, INT(self.lanes - 1))
        end = builder.select(builder.icmp_signed("<", end, last), end, last)
        first, last = (builder.mul(k, INT(self.step)) for k in (q, end))
        whole = builder.and_(self.inside, builder.icmp_signed(">=", builder.add(first, self.low), INT(0)))
        whole = builder.and_(whole, builder.icmp_signed("<", builder.add(last, self.high), self.width))
        with builder.if_else(whole) as (all_exist, some_exist):
            with all_exist:
                self._block(q, False)
            with some_exist:
                self._block(q, True)
        return []

    def _block(self, q: Any, masked: bool) -> None:
        builder = self.builder
        ends = [INT(0), *self.ends]
        found = [self._reduce(q, ends[k], ends[k + 1], count, masked) for k, count in enumerate(self.counts)]
        targets = [divmod(k, self.phases) for k in range(self.phases * self.lanes)]
        parts = [
            [(phase, lane) for lane, phase in targets[k : k + self.lanes]] for k in range(0, len(targets), self.lanes)
        ]
        for k, values in enumerate(zip(*found, strict=True)):
            v, codes = divmod(k, 2) if self.kind == "max" else (k, 0)
            for i, part in enumerate(parts):
                vector = self._chosen(values, part)
                at = builder.add(builder.mul(q, INT(self.phases)), INT(i * self.lanes))
                if self.kind == "sum":
                    of_row = builder.load(builder.gep(self.other, [self.line]))
                    by = builder.fmul(self.read(self.other, builder.add(self.rows, at)), self.spread(of_row))
                    vector = builder.fdiv(vector, by)
                if codes and self.code != LANE:
                    vector = builder.trunc(vector, self._codes(self.code))
                self._store(vector, self.other if codes else self.targets, self.rows_of[v], at)

    def _store(self, vector: Any, array: Any, row: Any, at: Any) -> None:
        """Write a vector, of which only what is in the map counts. Some processors take long for masked bytes."""
        builder = self.builder
        place, left = builder.add(row, at), builder.sub(self.left, at)
        with builder.if_else(builder.icmp_signed(">=", left, INT(self.lanes))) as (inside, beyond):
            with inside:
                self.write(vector, array, place)
            with beyond:
                last = builder.icmp_signed(">", builder.add(place, INT(self.lanes)), self.all_targets)
                with builder.if_else(last) as (end, between):
                    with end:
                        self.write(vector, array, place, self.first(left))
                    with between:
                        old = self.read(array, place)
                        self.write(builder.select(self.first(left), vector, old), array, place)

    def _chosen(self, vectors: Sequence[Any], lanes: Sequence[tuple[int, int]]) -> Any:
        """Return the vector of some lanes of several vectors; each is given by the vector and its lane there."""
        chosen = vectors[0]
        for k, vector in enumerate(vectors[1:], 1):
            places = [self.lanes + lane if of == k else lane if k == 1 else i for i, (of, lane) in enumerate(lanes)]
            chosen = self.shuffle(chosen, vector, places)
        return chosen

    def _codes(self, kind: Any) -> Any:
        return ir.VectorType(kind, self.lanes)

    def _reduce(self, q: Any, begin: Any, end: Any, count: int, masked: bool) -> list[Any]:
        """Return a vector of targets, which see the columns listed from `begin` to `end`; also codes of maxima."""
        builder = self.builder
        start, own = [self.zero] * _SEVERAL, 1
        if self.kind == "max":
            lowest = ir.Constant(self.vector, [float("-inf")] * self.lanes)
            start, own = [lowest, ir.Constant(self._codes(LANE), [-1] * self.lanes)] * _SEVERAL, 2
        listed = self._number(INT(HEADER - 1))
        column = self._moved if self.step else self._listed
        written = [column(q, builder.add(begin, INT(t)), masked) for t in range(count)]

        def row(r: Any, outer: list[Any]) -> list[Any]:
            place, code = self._pair(listed, r)
            firsts = [builder.add(one, place) for one in self.maps]

            def each(column: tuple[Any, Any, Any], values: list[Any]) -> list[Any]:
                read, exist, codes = column
                several: list[Any] = []
                for first, *old in zip(firsts, *(values[k::own] for k in range(own)), strict=True):
                    new = read(builder.gep(self.sources, [first]))
                    if self.kind == "gradient":
                        other = read(builder.gep(self.other, [first]))
                        taken = exist(builder.icmp_signed("==", other, codes(code, self.code)))
                        new = builder.select(taken, new, self.zero)
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
                inner = counted(builder, begin, end, INT(1), inner, rolled)
            return inner if self.kind != "sum" else [builder.fadd(a, b) for a, b in zip(outer, inner, strict=True)]

        return counted(builder, *self.seen, INT(1), start, row)

    def _moved(self, q: Any, t: Any, masked: bool) -> tuple[Any, Any, Any]:
        """Return functions for what targets from q on see with column t: to read it, to mask it, and for its codes."""
        builder, lanes = self.builder, self.lanes
        place, of_column = self._pair(self.columns, t)
        first = builder.add(builder.mul(q, INT(self.step)), place)

        def existing(start: Any, step: int) -> Any:
            if not masked:
                return None
            start, width = (self.spread(builder.trunc(k, LANE)) for k in (start, self.width))
            return builder.icmp_unsigned("<", builder.add(start, self.lane_list(range(0, step * lanes, step))), width)

        starts = [
            *range(0, (self.step - 1) * lanes, lanes),
            (lanes - 1) * self.step + 1 - lanes,
        ]  # the last pixel is last
        places = [builder.add(first, INT(start)) for start in starts]
        chosen = [(min(i * self.step // lanes, self.step - 1), i * self.step) for i in range(lanes)]
        chosen = [(k, place - starts[k]) for k, place in chosen]
        masks, whole = [existing(at, 1) for at in places], existing(first, self.step)

        def read(pointer: Any) -> Any:
            vectors = [self.read(pointer, at, mask) for at, mask in zip(places, masks, strict=True)]
            return self._chosen(vectors, chosen)

        def codes(code: Any, kind: Any) -> Any:
            whole = builder.add(code, of_column)
            return self.spread(builder.trunc(whole, kind))

        return read, lambda mask: mask if whole is None else builder.and_(mask, whole), codes

    def _listed(self, q: Any, t: Any, _: bool) -> tuple[Any, Any, Any]:
        """Do the same where all places are listed."""
        builder, lanes = self.builder, self.lanes
        length = builder.and_(builder.add(self.count, INT(lanes - 1)), INT(-lanes))
        start = builder.add(builder.add(self.columns, q), builder.mul(builder.mul(t, INT(2)), length))
        listed = self.read(self.table, builder.add(start, length))
        whole = builder.icmp_signed(">=", listed, ir.Constant(listed.type, None))
        places = [self._number(builder.add(start, INT(k))) for k in range(lanes)]

        def read(pointer: Any) -> Any:
            empty = vector = ir.Constant(ir.VectorType(pointer.type.pointee, lanes), None)
            for k, place in enumerate(places):
                vector = builder.insert_element(vector, builder.load(builder.gep(pointer, [place])), LANE(k))
            return builder.select(whole, vector, empty)

        def codes(code: Any, kind: Any) -> Any:
            return builder.trunc(builder.add(listed, self.spread(code)), self._codes(kind))

        return read, lambda mask: builder.and_(mask, whole), codes

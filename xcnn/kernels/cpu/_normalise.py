"""Normalisations as compiled loops, one for each direction: sums over a unit, then a second pass over it.

A *unit* is what shares a mean: rows of adjacent numbers. A row has one weight and bias or, if it is `wide`, one for
each number. Short rows of adjacent units are `joined`: vectors run over all of them, some rows after the other, with
sums, means and parameters for each column. Whatever the length, nothing outside a row is read or written. Sums of a
unit are float64, and vectors of it until they are complete.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._native import machine_code
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._vectors import DOUBLE, INT, LANE, Vectors, blocks, counted

__all__ = ["TABLE", "norm_backward", "norm_forward"]

TABLE = ("unit", "rows", "step", "row", "together", "period", "of_unit", "of_row", "count", "units", "slots", "slot",
         "parameters", "tile", "width")  # fmt: skip
"""What a table has. Unit u begins at number `u * unit` and has `rows` of `row` numbers, `step` apart; row j begins at
parameter `u % period * of_unit + j * of_row`. `count` numbers have a mean. The `units` are done in `slots`, in each of
them so many `together`, row by row in the order of memory; sums for the `parameters` of each slot are `slot` apart.
Joined rows are done in tiles of so many, and their columns have room for arrays of some `width`."""

_MANY = 2
"""Vectors per iteration."""

_FORWARD = ("x", "residual", "y", "weight", "bias", "mean", "var", "rstd", "sums")
_BACKWARD = ("x", "dy", "y", "dresidual", "dx", "weight", "mean", "rstd", "shift", "slope", "shared", "sums")
_PARAMETERS = ("weight", "bias")
_OPERANDS = ("mean", "rstd", *_PARAMETERS, "shift", "slope")
"""What the numbers of a row are computed with."""


@functools.cache
def norm_forward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, eps, low, high, begin, end)` that sets y of the units of some slots.

    Arrays: x, residual, y, weight, bias, mean, var, rstd, and room for two vectors of float64 per unit, or for eight
    numbers per column.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `joined`; `wide`; `short`, a wide row of few vectors, whose sums are complete at once; `given`, mean and
        var are not computed; `residual`, which is added; `limited` to an interval; `moments`, y is not computed.
    """
    return _function(_Forward, _FORWARD, 3, itemsize, options)


@functools.cache
def norm_backward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, low, high, begin, end)` that sets the gradients of the units of some slots.

    Arrays: x, dy, y, dresidual, dx, weight, mean, rstd, room for two more numbers per unit, sums (slots, 2, parameters)
    for dbias and dweight, zeros at first, and room as above, or for two vectors per row if it has its own parameter.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `joined`; `wide`; `short`; `limited`, the gradient is 0 where y is at or beyond the limits; `sums`,
        `residual`, `gradient`: what is wanted besides; `given`, mean and variance do not depend on x. Without `sums`
        and `given`, the two numbers per unit are not computed, but read: the shift and the slope of dx.
    """
    return _function(_Backward, _BACKWARD, 2, itemsize, options)


def _function(
    writer: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]
) -> Callable[..., None]:
    kinds = "p" * (1 + len(names)) + "f" * numbers + "nn"
    return machine_code(lambda module: writer(module, names, numbers, itemsize, options).write_all(), kinds)


class _Norm(Vectors):
    """Writes the function `loop` into a module."""

    def __init__(self, module: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]) -> None:
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        arrays = [(DOUBLE if name == "sums" else number).as_pointer() for name in names]
        kinds = [INT.as_pointer(), *arrays, *[DOUBLE] * numbers, INT, INT]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "loop")
        super().__init__(ir.IRBuilder(function.append_basic_block()), itemsize)
        table, *given, begin, end = function.args
        self.of = dict(zip(names, given, strict=False))
        self.eps, self.ends = given[len(names)], self.limits(*given[-2:])
        self.size = dict(zip(TABLE, Integers(self.builder, table).some(0, len(TABLE)), strict=True))
        self.options, self.none = options, ir.Constant(self.vector, None)
        self.joined = "joined" in options
        self.begin, self.end, self.zero = (Integer(self.builder, one) for one in (begin, end, 0))
        self.apart = self.size["width"] if self.joined else Integer(self.builder, self.lanes)

    def sums(self, block: Integer, until: Integer) -> None:
        """Write the first pass of some units, and what follows from it."""
        raise NotImplementedError

    def results(self, block: Integer, until: Integer) -> None:
        """Write the second pass of these units."""
        raise NotImplementedError

    def write_all(self) -> None:
        size, together = self.size, self.size["together"]
        with self.begin.up_to(self.end, size["slots"] if self.joined else 1) as self.slot:
            after = self.end if self.joined else self.slot + 1
            first, last = (k * size["units"] // size["slots"] for k in (self.slot, after))
            with first.up_to(last, together) as block:
                until = (block + together).least(last)
                self.sums(block, until)
                self.results(block, until)
        self.builder.ret_void()

    def get(self, name: str, place: Integer) -> Any:
        """Load a number as float64."""
        value = self.builder.load(place.of(self.of[name]))
        return value if value.type == DOUBLE else self.builder.fpext(value, DOUBLE)

    def put(self, value: Any, name: str, place: Integer) -> None:
        target = place.of(self.of[name])
        self.builder.store(value if target.type.pointee == DOUBLE else self.number(value), target)

    def parameter(self, u: Integer, j: Integer) -> Integer:
        turn = u - u // self.size["period"] * self.size["period"]
        return turn * self.size["of_unit"] + self.size["of_row"] * j

    def room(self, u: Integer, block: Integer, j: Integer | int = 0) -> Integer:
        """Return the place of the sums of a unit, or of its row j if rows have their own."""
        return (u - block) * self.size["row"] if self.joined else (u - block + self.size["of_row"] * j) * 2 * self.lanes

    @contextlib.contextmanager
    def rows(self, block: Integer, until: Integer) -> Iterator[tuple[Integer, Integer, Integer, Integer]]:
        """Write a loop over the rows of some units: the unit, and the places of numbers, parameters and sums.

        Joined rows are those of all units, of which it gives the first one, and a tile of them at a time.
        """
        size, units = self.size, self.size["together"] if self.joined else 1
        self.length = (until - block) * size["row"] if self.joined else size["row"]
        with self.zero.up_to(size["rows"], size["tile"]) as j, block.up_to(until, units) as u:
            self.lines = (size["rows"] - j).least(size["tile"])
            yield u, u * size["unit"] + j * size["step"], self.parameter(u, j), self.room(u, block, j)

    def clear(self, block: Integer, until: Integer) -> None:
        """Set the sums of some units, of the rows of one, or of columns, to 0."""
        if "short" in self.options:
            return
        end = self.apart * 2 if self.joined else self.room(until, block, self.size["rows"] - 1)
        with self.zero.up_to(end, self.lanes) as k:
            self.write(self.zeros(), self.of["sums"], k.value)

    def each(
        self, operands: Sequence[Callable[..., Any]], body: Callable[..., Any], zeros: Sequence[Any] = (),
        begin: Any = None, end: Any = None,
    ) -> list[Any]:  # fmt: skip
        """Write `body(index, mask, *operands, *values)` for the vectors of a row, or of all rows of a tile.

        Values are zeros at first; the body returns the next ones, of one of many vectors. For a row they are returned,
        and those of a tile are added to the sums of columns.
        """
        builder, own = self.builder, len(zeros)
        many = 1 if "short" in self.options else 2 * _MANY if self.joined else _MANY

        def some(places: Sequence[Any], mask: Any, carried: Sequence[Any]) -> list[Any]:
            fixed = [[operand(index, mask) for operand in operands] for index in places]

            def row(j: Any, carried: Sequence[Any]) -> list[Any]:
                new, start = [*carried], Integer(builder, j) * self.size["step"]
                for k, index in enumerate(places):
                    at = (start + index).value if self.joined else index
                    new[k * own : (k + 1) * own] = body(at, mask, *fixed[k], *carried[k * own : (k + 1) * own]) or []
                return new

            if not self.joined:
                return row(INT(0), carried)
            found = counted(builder, INT(0), self.lines.value, INT(1), [*zeros] * len(places), row)
            for k, term in enumerate(found):
                self.add(term, self.apart * (k % own) + places[k // own])
            return []

        values = [] if self.joined else [*zeros] * many
        return self.span(begin or INT(0), end or self.length.value, values, some, many)

    def add(self, term: Any, place: Integer) -> None:
        """Add a vector to the sums at a place."""
        term = term if term.type == self.zeros().type else self.widened(term)
        self.write(self.builder.fadd(self.read(self.of["sums"], place.value), term), self.of["sums"], place.value)

    def sum(self, operands: Sequence[Any], body: Callable[..., Any], zero: Any, place: Integer) -> None:
        """Add two vectors of a row, each the sum of what `body` makes of `zero`, to the sums at a place, in blocks."""

        def block(begin: Any, end: Any, _: Any) -> list[Any]:
            found = self.each(operands, body, [zero] * 2, begin, end)
            for k in range(2):
                self.add(self.builder.fadd(found[k], found[k + 2]), place + self.apart * k)
            return []

        if self.joined or "short" in self.options:
            found = self.each(operands, body, [zero] * 2)
            self.found = [self.total(self.widened(one) if one.type == self.vector else one) for one in found]
        else:
            blocks(self.builder, INT(0), self.size["row"].value, INT(BLOCK), [], block)

    def totals(self, place: Integer) -> list[Any]:
        """Return the two sums at a place, or those of the short row that has just been read."""
        if "short" in self.options:
            return self.found
        builder, sums, places = self.builder, self.of["sums"], (place, place + self.apart)
        if not self.joined:
            return [self.total(self.read(sums, at.value)) for at in places]

        def column(k: Any, totals: Sequence[Any]) -> list[Any]:
            return [builder.fadd(one, builder.load((at + k).of(sums))) for one, at in zip(totals, places, strict=True)]

        return counted(builder, INT(0), self.size["row"].value, INT(1), [DOUBLE(0.0)] * 2, column)

    def same(self, name: str, u: Integer, of: Integer) -> Any:
        """Load an operand of a row into all lanes."""
        return self.broadcast((of if name in _PARAMETERS else u).of(self.of[name]))

    def operand(self, name: str, u: Integer, of: Integer) -> Callable[..., Any]:
        """Return a function of an index in a row, and a mask, that gives a vector of an operand."""
        if self.joined or (name in _PARAMETERS and "wide" in self.options):
            array = self.column(name) if self.joined else of.of(self.of[name])
            return lambda index, mask: self.read(array, index, mask)
        same = self.same(name, u, of)
        return lambda index, mask: same

    def column(self, name: str) -> Any:
        """Return the array of an operand for each column, which follows the sums."""
        start = (self.apart * 2).of(self.of["sums"])
        return (self.apart * _OPERANDS.index(name)).of(self.builder.bitcast(start, self.of["mean"].type))

    def expand(self, names: Sequence[str], block: Integer, until: Integer) -> None:
        """Write operands of joined units into the arrays for their columns, by whole vectors, which may overlap."""
        if self.joined:
            with block.up_to(until) as u:
                for name in names:
                    same, array = self.same(name, u, u), self.room(u, block).of(self.column(name))
                    with self.zero.up_to(self.size["row"], self.lanes) as k:
                        self.write(same, array, k.value)


class _Forward(_Norm):
    def origin(self, u: Integer) -> Any:
        """Return the first number of a unit, from which moments count, or 0 if it is infinite or NaN."""
        builder = self.builder
        value = builder.load((u * self.size["unit"]).of(self.of["x"]))
        finite = builder.fcmp_ordered("ord", builder.fsub(value, value), value.type(0.0))
        return builder.select(finite, value, value.type(0.0))

    def sums(self, block: Integer, until: Integer) -> None:
        builder, given = self.builder, "given" in self.options
        if not given:
            self.clear(block, until)
            with block.up_to(until) as u:
                self.put(self.origin(u), "mean", u)
            self.expand(["mean"], block, until)
            with self.rows(block, until) as (u, at, of, _):
                source = at.of(self.of["x"])

                def moments(index: Any, mask: Any, centre: Any, total: Any, square: Any) -> list[Any]:
                    value = self.widened(builder.fsub(self.read(source, index, mask), centre), mask)
                    return [builder.fadd(total, value), self.fused(value, value, square)]

                self.sum([self.operand("mean", u, of)], moments, self.zeros(), self.room(u, block))
                if "short" in self.options:
                    self.unit(u, block)
        if given or "short" not in self.options:
            with block.up_to(until) as u:
                self.unit(u, block)
        self.expand(_OPERANDS[:4], block, until)

    def unit(self, u: Integer, block: Integer) -> None:
        """Set what follows from the sums of a unit."""
        builder = self.builder
        if "given" not in self.options:
            total, squares = self.totals(self.room(u, block))
            count, start = builder.sitofp(self.size["count"].value, DOUBLE), self.get("mean", u)
            average = builder.fdiv(total, count)
            variance = builder.fdiv(builder.fsub(squares, builder.fmul(total, average)), count)
            below = builder.fcmp_ordered("<", variance, DOUBLE(0.0))
            self.put(builder.fadd(start, average), "mean", u)
            self.put(builder.select(below, DOUBLE(0.0), variance), "var", u)
        around = self.spread(builder.fadd(self.get("var", u), self.eps))
        root = builder.extract_element(self.call("sqrt", around.type, around.type, around), LANE(0))
        self.put(builder.fdiv(DOUBLE(1.0), root), "rstd", u)

    def results(self, block: Integer, until: Integer) -> None:
        builder = self.builder
        if "moments" in self.options:
            return
        with self.rows(block, until) as (u, at, of, _):
            source, target, residual = (at.of(self.of[name]) for name in ("x", "y", "residual"))

            def body(index: Any, mask: Any, centre: Any, factor: Any, weight: Any, bias: Any) -> None:
                value = builder.fsub(self.read(source, index, mask), centre)
                value = self.fused(value, builder.fmul(weight, factor), bias)
                if "residual" in self.options:
                    value = builder.fadd(value, self.read(residual, index, mask))
                if "limited" in self.options:
                    value = self.clipped(value, self.ends)
                self.write(value, target, index, mask)

            self.each([self.operand(name, u, of) for name in _OPERANDS[:4]], body)


class _Backward(_Norm):
    def gradient(self, at: Integer) -> Callable[[Any, Any], Any]:
        """Return a function that gives a vector of dy where y is between the limits, and zeros elsewhere."""
        builder = self.builder
        dy, y = at.of(self.of["dy"]), at.of(self.of["y"])

        def vector(index: Any, mask: Any) -> Any:
            g = self.read(dy, index, mask)
            if "limited" not in self.options:
                return g
            kept, (low, high) = self.read(y, index, mask), self.ends
            beyond = builder.or_(builder.fcmp_ordered("<=", kept, low), builder.fcmp_ordered(">=", kept, high))
            return builder.select(beyond, self.none, g)

        return vector

    def sums(self, block: Integer, until: Integer) -> None:
        builder, size, options = self.builder, self.size, self.options
        if "sums" not in options:
            return
        start = self.slot * size["slot"]
        self.clear(block, until)
        self.expand(_OPERANDS[:3], block, until)
        with self.rows(block, until) as (u, at, of, place):
            gradient, source, copy = self.gradient(at), at.of(self.of["x"]), at.of(self.of["dresidual"])
            targets = [(start + of + k).of(self.of["shared"]) for k in (0, size["parameters"])]

            def body(index: Any, mask: Any, centre: Any, factor: Any, weight: Any, *sums: Any) -> list[Any]:
                g, centred = gradient(index, mask), builder.fsub(self.read(source, index, mask), centre)
                if "residual" in options:
                    self.write(g, copy, index, mask)
                if "wide" in options:
                    for target, term in zip(targets, (g, builder.fmul(g, builder.fmul(centred, factor))), strict=True):
                        # Whole vectors: what is written with a mask cannot be read again until it is in the cache.
                        term = term if mask is None else builder.select(mask, term, self.none)
                        self.write(builder.fadd(self.read(target, index), term), target, index)
                    g = builder.fmul(g, weight)
                if mask is not None:  # x may be infinite
                    centred = builder.select(mask, centred, self.none)
                return [builder.fadd(sums[0], g), self.fused(g, centred, sums[1])]

            self.sum([self.operand(name, u, of) for name in _OPERANDS[:3]], body, self.none, place)
            if "short" in options:
                self.unit(u, block, start)
        if "short" not in options:
            with block.up_to(until) as u:
                self.unit(u, block, start)

    def unit(self, u: Integer, block: Integer, start: Integer) -> None:
        """Set what follows from the sums of a unit; those for parameters begin at `start`."""
        builder, size = self.builder, self.size
        place, inverse = self.room(u, block), self.get("rstd", u)

        def one(k: Any, carried: Sequence[Any]) -> list[Any]:
            row = Integer(builder, k)
            found = self.totals(place + row * (2 * self.lanes))
            if "wide" in self.options:
                return found
            of = self.parameter(u, row)
            weight, terms = self.get("weight", of), (found[0], builder.fmul(found[1], inverse))
            for term, column in zip(terms, (start + of, start + of + size["parameters"]), strict=True):
                self.put(builder.fadd(self.get("shared", column), term), "shared", column)
            return [builder.fadd(a, builder.fmul(b, weight)) for a, b in zip(carried, found, strict=True)]

        last = (size["rows"] - 1) * size["of_row"] + 1
        total, product = counted(builder, INT(0), last.value, INT(1), [DOUBLE(0.0)] * 2, one)
        count, square = builder.sitofp(size["count"].value, DOUBLE), builder.fmul(inverse, inverse)
        self.put(builder.fdiv(total, count), "shift", u)
        self.put(builder.fmul(builder.fdiv(product, count), square), "slope", u)

    def results(self, block: Integer, until: Integer) -> None:
        builder, given = self.builder, "given" in self.options
        if "gradient" not in self.options:
            return
        names = (*_OPERANDS[:3], *(() if given else _OPERANDS[4:]))
        self.expand(names[3 * ("sums" in self.options) :], block, until)
        with self.rows(block, until) as (u, at, of, _):
            gradient, source, target = self.gradient(at), at.of(self.of["x"]), at.of(self.of["dx"])

            def body(index: Any, mask: Any, centre: Any, factor: Any, weight: Any, *terms: Any) -> None:
                g = builder.fmul(gradient(index, mask), weight)
                if not given:
                    shift, slope = terms
                    centred = builder.fsub(self.read(source, index, mask), centre)
                    g = builder.fsub(g, self.fused(centred, slope, shift))
                self.write(builder.fmul(g, factor), target, index, mask)

            self.each([self.operand(name, u, of) for name in names], body)

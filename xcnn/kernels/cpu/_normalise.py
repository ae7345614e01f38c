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
_BACKWARD = ("x", "dy", "y", "dresidual", "dx", "weight", "mean", "rstd", "shared", "sums")
_PARAMETERS, _FROM_SUMS = ("weight", "bias"), ("shift", "slope")


@functools.cache
def norm_forward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, eps, low, high, begin, end)` that sets y of the units of some slots.

    Arrays: x, residual, y, weight, bias, mean, var, rstd, and room for two vectors of float64 per unit, or for seven
    numbers per column.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `joined`; `wide`; `short`, a wide row of few vectors, whose sums are complete at once; `given`, mean and
        var are not computed; `residual`, which is added; `limited` to an interval.
    """
    return _function(_Forward, _FORWARD, 3, itemsize, options)


@functools.cache
def norm_backward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, low, high, begin, end)` that sets the gradients of the units of some slots.

    Arrays: x, dy, y, dresidual, dx, weight, mean, rstd, sums (slots, 2, parameters) for dbias and
    dweight, zeros at first, and room as above, or for two vectors per row if it has its own parameter.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `joined`; `wide`; `short`; `limited`, the gradient is 0 where y is at or beyond the limits; `sums`,
        `residual`, `gradient`: what is wanted besides; `given`, mean and variance do not depend on x.
    """
    return _function(_Backward, _BACKWARD, 2, itemsize, options)


def _function(
    writer: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]
) -> Callable[..., None]:
    kinds = "p" * (1 + len(names)) + "f" * numbers + "nn"
    return machine_code(lambda module: writer(module, names, numbers, itemsize, options).write_all(), kinds)


class _Norm(Vectors):
    """Writes the function `loop` into a module."""

    OPERANDS: Sequence[str] = ()
    """What a number is computed with in the second pass: of its unit, of its parameters, or from sums."""

    def __init__(self, module: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]) -> None:
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        arrays = [(DOUBLE if name == "sums" else number).as_pointer() for name in names]
        kinds = [INT.as_pointer(), *arrays, *[DOUBLE] * numbers, INT, INT]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "loop")
        super().__init__(ir.IRBuilder(function.append_basic_block()), itemsize)
        table, *given, begin, self.end = function.args
        self.of = dict(zip(names, given, strict=False))
        self.eps, self.ends = given[len(names)], self.limits(*given[-2:])
        self.size = dict(zip(TABLE, Integers(self.builder, table).some(0, len(TABLE)), strict=True))
        self.options, self.none = options, ir.Constant(self.vector, None)
        self.joined, self.length, self.lines = "joined" in options, self.size["row"], Integer(self.builder, 1)
        self.begin, self.zero = Integer(self.builder, begin), Integer(self.builder, 0)
        self.apart = self.size["width"] if self.joined else Integer(self.builder, self.lanes)

    def sums(self, block: Integer, until: Integer) -> None:
        """Write the first pass of some units, and what follows from it."""
        raise NotImplementedError

    def results(self, block: Integer, until: Integer) -> None:
        """Write the second pass of these units."""
        raise NotImplementedError

    def write_all(self) -> None:
        size, together = self.size, self.size["together"]
        step = size["slots"] if self.joined else Integer(self.builder, 1)
        with self.begin.up_to(self.end, step) as self.slot:
            ends = self.slot, (self.slot + step).least(self.end)
            first, last = (k * size["units"] // size["slots"] for k in ends)
            with first.up_to(last, together) as block:
                until = (block + together).least(last)
                self.sums(block, until)
                self.results(block, until)
        self.builder.ret_void()

    def get(self, name: str, place: Integer) -> Any:
        """Load a number as float64."""
        return self.double(self.builder.load(place.of(self.of[name])))

    def double(self, value: Any) -> Any:
        return value if value.type == DOUBLE else self.builder.fpext(value, DOUBLE)

    def put(self, value: Any, name: str, place: Integer) -> None:
        target = place.of(self.of[name])
        self.builder.store(value if target.type.pointee == DOUBLE else self.number(value), target)

    def parameter(self, u: Integer, j: Integer) -> Integer:
        turn = u - u // self.size["period"] * self.size["period"]
        return turn * self.size["of_unit"] + self.size["of_row"] * j

    def room(self, u: Integer, block: Integer, j: Integer | int = 0) -> Integer:
        """Return the place of the sums of a unit, or of its row j if rows have their own."""
        return (u - block + self.size["of_row"] * j) * (1 if self.joined else 2 * self.lanes)

    @contextlib.contextmanager
    def rows(self, block: Integer, until: Integer) -> Iterator[tuple[Integer, Integer, Integer, Integer]]:
        """Write a loop over the rows of some units: the unit, and the places of numbers, parameters and sums."""
        size = self.size
        if self.joined:
            self.length = (until - block) * size["row"]
            with self.zero.up_to(size["rows"], size["tile"]) as j:
                self.lines = (size["rows"] - j).least(size["tile"])
                yield block, block * size["unit"] + j * size["step"], block, self.zero
        else:
            with self.zero.up_to(size["rows"]) as j, block.up_to(until) as u:
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

    def sum(self, vectors: Sequence[Any], body: Callable[..., Any], zero: Any, place: Integer) -> None:
        """Add two vectors of a row, each the sum of what `body` makes of `zero`, to the sums at a place, in blocks."""
        builder = self.builder

        def block(begin: Any, end: Any, _: Any) -> list[Any]:
            found = self.each(vectors, body, [zero] * 2, begin, end)
            for k in range(2):
                self.add(builder.fadd(found[k], found[k + 2]), place + self.apart * k)
            return []

        if self.joined:
            self.each(vectors, body, [zero] * 2)
        elif "short" in self.options:
            found = self.each(vectors, body, [zero] * 2)
            self.found = [self.total(self.widened(one) if one.type == self.vector else one) for one in found]
        else:
            blocks(builder, INT(0), self.size["row"].value, INT(BLOCK), [], block)

    def totals(self, place: Integer) -> list[Any]:
        """Return the two sums at a place, those of the columns of a unit, or of the short row that has been read."""
        if "short" in self.options:
            return self.found
        sums, builder = self.of["sums"], self.builder
        if self.joined:
            start, row = place * self.size["row"], self.size["row"].value

            def column(k: Any, totals: Sequence[Any]) -> list[Any]:
                places = (start + self.apart * i + k for i in range(2))
                return [builder.fadd(old, builder.load(at.of(sums))) for old, at in zip(totals, places, strict=True)]

            return counted(builder, INT(0), row, INT(1), [DOUBLE(0.0)] * 2, column)
        return [self.total(self.read(sums, (place + self.apart * k).value)) for k in range(2)]

    def same(self, name: str, u: Integer, of: Integer, place: Integer) -> Any:
        """Load an operand of a row into all lanes."""
        if name in _FROM_SUMS:
            pointer = (place + self.apart * _FROM_SUMS.index(name)).of(self.of["sums"])
            return self.spread(self.number(self.builder.load(pointer)))
        return self.broadcast((of if name in _PARAMETERS else u).of(self.of[name]))

    def operands(self, names: Sequence[str], u: Integer, of: Integer, place: Integer) -> list[Callable[..., Any]]:
        """Return functions of an index in a row, and a mask, that give vectors of operands."""

        def one(name: str) -> Callable[..., Any]:
            if self.joined:
                array = self.column(name)
                return lambda index, mask: self.read(array, index)
            if name in _PARAMETERS and "wide" in self.options:
                array = of.of(self.of[name])
                return lambda index, mask: self.read(array, index, mask)
            same = self.same(name, u, of, place)
            return lambda index, mask: same

        return [one(name) for name in names]

    def column(self, name: str) -> Any:
        """Return the array of an operand for each column, which follows the sums."""
        start = (self.apart * 2).of(self.of["sums"])
        return (self.apart * self.OPERANDS.index(name)).of(self.builder.bitcast(start, self.of["mean"].type))

    def expand(self, names: Sequence[str], block: Integer, until: Integer) -> None:
        """Write operands of joined units into the arrays for their columns, by whole vectors, which may overlap."""
        if self.joined:
            with block.up_to(until) as u:
                place, row = self.room(u, block), self.size["row"]
                for name in names:
                    same, array = self.same(name, u, u, place), (place * row).of(self.column(name))
                    with self.zero.up_to(row, self.lanes) as k:
                        self.write(same, array, k.value)


class _Forward(_Norm):
    OPERANDS = ("mean", "rstd", "weight", "bias")

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
            with self.rows(block, until) as (u, at, of, place):
                source = at.of(self.of["x"])

                def moments(index: Any, mask: Any, centre: Any, total: Any, square: Any) -> list[Any]:
                    value = self.widened(builder.fsub(self.read(source, index, mask), centre), mask)
                    return [builder.fadd(total, value), self.fused(value, value, square)]

                self.sum(self.operands(["mean"], u, of, place), moments, self.zeros(), self.room(u, block))
                if "short" in self.options:
                    self.unit(u, block)
        if given or "short" not in self.options:
            with block.up_to(until) as u:
                self.unit(u, block)
        self.expand(self.OPERANDS, block, until)

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
        with self.rows(block, until) as (u, at, of, place):
            source, target, residual = (at.of(self.of[name]) for name in ("x", "y", "residual"))

            def body(index: Any, mask: Any, centre: Any, factor: Any, weight: Any, bias: Any) -> None:
                value = builder.fsub(self.read(source, index, mask), centre)
                value = self.fused(value, builder.fmul(weight, factor), bias)
                if "residual" in self.options:
                    value = builder.fadd(value, self.read(residual, index, mask))
                if "limited" in self.options:
                    value = self.clipped(value, self.ends)
                self.write(value, target, index, mask)

            self.each(self.operands(self.OPERANDS, u, of, place), body)


class _Backward(_Norm):
    OPERANDS = ("mean", "rstd", "weight", "shift", "slope")

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
        self.expand(["mean"], block, until)
        with self.rows(block, until) as (u, at, of, place):
            gradient, source, copy = self.gradient(at), at.of(self.of["x"]), at.of(self.of["dresidual"])
            targets = [(start + of + k).of(self.of["shared"]) for k in (0, size["parameters"])]
            names = ("mean", "rstd", "weight")[: 3 if "wide" in options else 1]

            def body(index: Any, mask: Any, centre: Any, *others: Any) -> list[Any]:
                (*affine, total, product) = others
                g, centred = gradient(index, mask), builder.fsub(self.read(source, index, mask), centre)
                if "residual" in options:
                    self.write(g, copy, index, mask)
                if affine:
                    factor, weight = affine
                    for target, term in zip(targets, (g, builder.fmul(g, builder.fmul(centred, factor))), strict=True):
                        # Whole vectors: what is written with a mask cannot be read again until it is in the cache.
                        term = term if mask is None else builder.select(mask, term, self.none)
                        self.write(builder.fadd(self.read(target, index), term), target, index)
                    g = builder.fmul(g, weight)
                if mask is not None:  # x may be infinite
                    centred = builder.select(mask, centred, self.none)
                return [builder.fadd(total, g), self.fused(g, centred, product)]

            self.sum(self.operands(names, u, of, place), body, self.none, place)
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
        self.put(builder.fdiv(total, count), "sums", place)
        self.put(builder.fmul(builder.fdiv(product, count), square), "sums", place + self.apart)

    def results(self, block: Integer, until: Integer) -> None:
        builder, given = self.builder, "given" in self.options
        if "gradient" not in self.options:
            return
        names = self.OPERANDS[: 3 if given else 5]
        self.expand(names, block, until)
        with self.rows(block, until) as (u, at, of, _):
            gradient, source, target = self.gradient(at), at.of(self.of["x"]), at.of(self.of["dx"])

            def body(index: Any, mask: Any, centre: Any, factor: Any, weight: Any, *terms: Any) -> None:
                g = builder.fmul(gradient(index, mask), weight)
                if not given:
                    shift, slope = terms
                    centred = builder.fsub(self.read(source, index, mask), centre)
                    g = builder.fsub(g, self.fused(centred, slope, shift))
                self.write(builder.fmul(g, factor), target, index, mask)

            self.each(self.operands(names, u, of, self.room(u, block)), body)

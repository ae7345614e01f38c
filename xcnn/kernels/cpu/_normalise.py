"""Normalisations as compiled loops, one for each direction: sums over a unit, then a second pass over it.

A *unit* is what shares a mean: rows of adjacent numbers. A row has one weight and bias or, if it is `wide`, one for
each number. Whatever the length, nothing outside a row is read or written. Sums of a unit are vectors of float64 until
they are complete.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._native import machine_code
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._vectors import DOUBLE, INT, LANE, Vectors, blocks, counted

__all__ = ["TABLE", "norm_backward", "norm_forward"]

TABLE = ("unit", "rows", "step", "row", "together", "period", "of_unit", "of_row", "count", "units", "slots", "slot",
         "parameters")  # fmt: skip
"""What a table has. Unit u begins at number `u * unit` and has `rows` of `row` numbers, `step` apart; row j begins at
parameter `u % period * of_unit + j * of_row`. `count` numbers have a mean. The `units` are done in `slots`, in each of
them so many `together`, row by row in the order of memory; sums for the `parameters` of each slot are `slot` apart."""

_MANY = 2
"""Vectors per iteration."""

_FORWARD = ("x", "residual", "y", "weight", "bias", "mean", "var", "rstd", "sums")
_BACKWARD = ("x", "dy", "y", "dresidual", "dx", "weight", "mean", "rstd", "shared", "sums")


@functools.cache
def norm_forward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, eps, low, high, begin, end)` that sets y of the units of some slots.

    Arrays are addresses: x, residual, y, weight, bias, mean, var, rstd, and room for two vectors of float64 per unit.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `wide`; `given`, mean and var are not computed; `residual`, which is added; `limited` to an interval.
    """
    return _function(_Forward, _FORWARD, 3, itemsize, options)


@functools.cache
def norm_backward(itemsize: int, *options: str) -> Callable[..., None]:
    """Compile a function `(table, *arrays, low, high, begin, end)` that sets the gradients of the units of some slots.

    Arrays are addresses: x, dy, y, dresidual, dx, weight, mean, rstd, sums (slots, 2, parameters) for dbias and
    dweight, zeros at first, and room for two vectors of float64 per unit, or per row if it has its own parameter.

    Parameters
    ----------
    itemsize : bytes of a number.
    options : `wide`; `limited`, the gradient is 0 where y is at or beyond the limits; `sums`, `residual`,
        `gradient`: what is wanted besides; `given`, mean and variance do not depend on x.
    """
    return _function(_Backward, _BACKWARD, 2, itemsize, options)


def _function(
    writer: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]
) -> Callable[..., None]:
    start = machine_code(lambda module: writer(module, names, numbers, itemsize, options).write_all())
    kinds = [ctypes.c_void_p] * (1 + len(names)) + [ctypes.c_double] * numbers + [ctypes.c_int64] * 2
    call: Callable[..., None] = ctypes.CFUNCTYPE(None, *kinds)(start)
    return call


class _Norm(Vectors):
    """Writes the function `loop` into a module."""

    def __init__(self, module: Any, names: Sequence[str], numbers: int, itemsize: int, options: Sequence[str]) -> None:
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        arrays = [(DOUBLE if name == "sums" else number).as_pointer() for name in names]
        kinds = [INT.as_pointer(), *arrays, *[DOUBLE] * numbers, INT, INT]
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "loop")
        super().__init__(ir.IRBuilder(function.append_basic_block()), itemsize)
        table, *given, self.begin, self.end = function.args
        self.of = dict(zip(names, given, strict=False))
        self.eps, self.limits = given[len(names)], [self.spread(self.number(one)) for one in given[-2:]]
        self.size = {name: self.builder.load(self.builder.gep(table, [INT(k)])) for k, name in enumerate(TABLE)}
        self.options, self.none = options, ir.Constant(self.vector, None)
        self.width = INT(2 * self.lanes)

    def sums(self, block: Any, until: Any) -> None:
        """Write the first pass of some units, and what follows from it."""
        raise NotImplementedError

    def results(self, block: Any, until: Any) -> None:
        """Write the second pass of these units."""
        raise NotImplementedError

    def write_all(self) -> None:
        builder, size = self.builder, self.size

        def slot(s: Any, _: Any) -> list[Any]:
            self.slot = s
            after = builder.add(s, INT(1))
            first, last = (builder.sdiv(builder.mul(k, size["units"]), size["slots"]) for k in (s, after))

            def block(u: Any, until: Any, _: Any) -> list[Any]:
                self.sums(u, until)
                self.results(u, until)
                return []

            blocks(builder, first, last, size["together"], [], block)
            return []

        counted(builder, self.begin, self.end, INT(1), [], slot)
        builder.ret_void()

    def at(self, name: str, place: Any) -> Any:
        return self.builder.gep(self.of[name], [place])

    def get(self, name: str, place: Any) -> Any:
        """Load a number as float64."""
        return self.double(self.builder.load(self.at(name, place)))

    def double(self, value: Any) -> Any:
        return value if value.type == DOUBLE else self.builder.fpext(value, DOUBLE)

    def put(self, value: Any, name: str, place: Any) -> None:
        target = self.at(name, place)
        self.builder.store(value if target.type.pointee == DOUBLE else self.number(value), target)

    def loop(self, begin: Any, end: Any, body: Callable[..., None]) -> None:
        def step(index: Any, _: Any) -> list[Any]:
            body(index)
            return []

        counted(self.builder, begin, end, INT(1), [], step)

    def parameter(self, u: Any, j: Any) -> Any:
        builder, size = self.builder, self.size
        turn = builder.srem(u, size["period"])
        return builder.add(builder.mul(turn, size["of_unit"]), builder.mul(j, size["of_row"]))

    def rows(self, block: Any, until: Any, body: Callable[..., None]) -> None:
        """Write `body(u, at, of, sums)` for the rows of some units: the places of numbers, parameters and sums."""
        builder, size = self.builder, self.size

        def line(j: Any) -> None:
            def one(u: Any) -> None:
                at = builder.add(builder.mul(u, size["unit"]), builder.mul(j, size["step"]))
                place = builder.add(builder.sub(u, block), builder.mul(j, size["of_row"]))
                body(u, at, self.parameter(u, j), builder.mul(place, self.width))

            self.loop(block, until, one)

        self.loop(INT(0), size["rows"], line)

    def clear(self, block: Any, until: Any) -> None:
        """Set the sums of some units, or of the rows of one, to 0."""
        builder = self.builder
        count = builder.add(
            builder.sub(until, block), builder.mul(builder.sub(self.size["rows"], INT(1)), self.size["of_row"])
        )
        zeros = self.zeros()
        self.loop(
            INT(0),
            builder.mul(count, INT(2)),
            lambda k: self.write(zeros, self.of["sums"], builder.mul(k, INT(self.lanes))),
        )

    def each(
        self, body: Callable[..., Any], values: Sequence[Any] = (), begin: Any = None, end: Any = None
    ) -> list[Any]:
        """Write `body(index, mask, *values)` for the vectors of a row; it returns the next values of one of _MANY."""
        own = len(values)

        def some(places: Sequence[Any], mask: Any, carried: Sequence[Any]) -> list[Any]:
            new = [*carried]
            for k, index in enumerate(places):
                new[k * own : (k + 1) * own] = body(index, mask, *carried[k * own : (k + 1) * own]) or []
            return new

        return self.span(begin or INT(0), end or self.size["row"], [*values] * _MANY, some, _MANY)

    def sum(self, body: Callable[..., Any], zero: Any, place: Any) -> None:
        """Add two vectors of a row, each the sum of what `body` makes of `zero`, to the sums at a place, in blocks."""
        builder = self.builder

        def block(begin: Any, end: Any, _: Any) -> list[Any]:
            found = self.each(body, [zero] * 2, begin, end)
            for k in range(2):
                term, at = builder.fadd(found[k], found[k + 2]), builder.add(place, INT(k * self.lanes))
                term = term if term.type == self.zeros().type else self.widened(term)
                self.write(builder.fadd(self.read(self.of["sums"], at), term), self.of["sums"], at)
            return []

        blocks(builder, INT(0), self.size["row"], INT(BLOCK), [], block)

    def totals(self, place: Any) -> list[Any]:
        return [self.total(self.read(self.of["sums"], self.builder.add(place, INT(k * self.lanes)))) for k in range(2)]

    def affine(self, name: str, of: Any) -> Callable[[Any, Any], Any]:
        """Return a function that gives a vector of weights or biases of a row."""
        array = self.at(name, of)
        if "wide" in self.options:
            return lambda index, mask: self.read(array, index, mask)
        same = self.spread(self.builder.load(array))
        return lambda index, mask: same


class _Forward(_Norm):
    def sums(self, block: Any, until: Any) -> None:
        builder = self.builder

        def origin(u: Any) -> Any:
            """Return the first number of a unit, from which moments count, or 0 if it is infinite or NaN."""
            value = builder.load(self.at("x", builder.mul(u, self.size["unit"])))
            finite = builder.fcmp_ordered("ord", builder.fsub(value, value), value.type(0.0))
            return builder.select(finite, value, value.type(0.0))

        def row(u: Any, at: Any, of: Any, _: Any) -> None:
            place = builder.mul(builder.sub(u, block), self.width)
            source, centre = self.at("x", at), self.spread(origin(u))

            def moments(index: Any, mask: Any, total: Any, square: Any) -> list[Any]:
                value = self.widened(builder.fsub(self.read(source, index, mask), centre), mask)
                return [builder.fadd(total, value), self.fused(value, value, square)]

            self.sum(moments, self.zeros(), place)

        def unit(u: Any) -> None:
            if "given" not in self.options:
                total, squares = self.totals(builder.mul(builder.sub(u, block), self.width))
                count, start = builder.sitofp(self.size["count"], DOUBLE), self.double(origin(u))
                average = builder.fdiv(total, count)
                variance = builder.fdiv(builder.fsub(squares, builder.fmul(total, average)), count)
                below = builder.fcmp_ordered("<", variance, DOUBLE(0.0))
                self.put(builder.fadd(start, average), "mean", u)
                self.put(builder.select(below, DOUBLE(0.0), variance), "var", u)
            around = self.spread(builder.fadd(self.get("var", u), self.eps))
            root = builder.extract_element(self.call("sqrt", around.type, around.type, around), LANE(0))
            self.put(builder.fdiv(DOUBLE(1.0), root), "rstd", u)

        if "given" not in self.options:
            self.clear(block, until)
            self.rows(block, until, row)
        self.loop(block, until, unit)

    def results(self, block: Any, until: Any) -> None:
        builder = self.builder

        def row(u: Any, at: Any, of: Any, _: Any) -> None:
            source, target = self.at("x", at), self.at("y", at)
            centre, factor = (self.spread(builder.load(self.at(name, u))) for name in ("mean", "rstd"))
            weight, bias = self.affine("weight", of), self.affine("bias", of)

            def body(index: Any, mask: Any) -> None:
                value = builder.fsub(self.read(source, index, mask), centre)
                value = self.fused(value, builder.fmul(weight(index, mask), factor), bias(index, mask))
                if "residual" in self.options:
                    value = builder.fadd(value, self.read(self.at("residual", at), index, mask))
                if "limited" in self.options:
                    for sign, limit in zip("<>", self.limits, strict=True):
                        value = builder.select(builder.fcmp_ordered(sign, value, limit), limit, value)
                self.write(value, target, index, mask)

            self.each(body)

        self.rows(block, until, row)


class _Backward(_Norm):
    def gradient(self, at: Any) -> Callable[[Any, Any], Any]:
        """Return a function that gives a vector of dy where y is between the limits, and zeros elsewhere."""
        builder = self.builder
        dy, y = self.at("dy", at), self.at("y", at)

        def vector(index: Any, mask: Any) -> Any:
            g = self.read(dy, index, mask)
            if "limited" not in self.options:
                return g
            kept, (low, high) = self.read(y, index, mask), self.limits
            beyond = builder.or_(builder.fcmp_ordered("<=", kept, low), builder.fcmp_ordered(">=", kept, high))
            return builder.select(beyond, self.none, g)

        return vector

    def sums(self, block: Any, until: Any) -> None:
        builder, size, options = self.builder, self.size, self.options
        if "sums" not in options:
            return
        start = builder.mul(self.slot, size["slot"])

        def row(u: Any, at: Any, of: Any, place: Any) -> None:
            gradient, source = self.gradient(at), self.at("x", at)
            centre, factor = (self.spread(builder.load(self.at(name, u))) for name in ("mean", "rstd"))
            weight, columns = self.affine("weight", of), builder.add(start, of)
            targets = [self.at("shared", k) for k in (columns, builder.add(columns, size["parameters"]))]

            def body(index: Any, mask: Any, total: Any, product: Any) -> list[Any]:
                g, centred = gradient(index, mask), builder.fsub(self.read(source, index, mask), centre)
                if "residual" in options:
                    self.write(g, self.at("dresidual", at), index, mask)
                if "wide" in options:
                    for target, term in zip(targets, (g, builder.fmul(g, builder.fmul(centred, factor))), strict=True):
                        self.write(builder.fadd(self.read(target, index, mask), term), target, index, mask)
                    g = builder.fmul(g, weight(index, mask))
                if mask is not None:  # x may be infinite
                    centred = builder.select(mask, centred, self.none)
                return [builder.fadd(total, g), self.fused(g, centred, product)]

            self.sum(body, self.none, place)

        def unit(u: Any) -> None:
            place, inverse = builder.mul(builder.sub(u, block), self.width), self.get("rstd", u)

            def one(k: Any, carried: Sequence[Any]) -> list[Any]:
                found = self.totals(builder.add(place, builder.mul(k, self.width)))
                if "wide" in options:
                    return found
                of = self.parameter(u, k)
                weight, columns = self.get("weight", of), builder.add(start, of)
                terms = found[0], builder.fmul(found[1], inverse)
                for term, column in zip(terms, (columns, builder.add(columns, size["parameters"])), strict=True):
                    self.put(builder.fadd(self.get("shared", column), term), "shared", column)
                return [builder.fadd(a, builder.fmul(b, weight)) for a, b in zip(carried, found, strict=True)]

            last = builder.add(builder.mul(builder.sub(size["rows"], INT(1)), size["of_row"]), INT(1))
            total, product = counted(builder, INT(0), last, INT(1), [DOUBLE(0.0)] * 2, one)
            count, square = builder.sitofp(size["count"], DOUBLE), builder.fmul(inverse, inverse)
            self.put(builder.fdiv(total, count), "sums", place)
            self.put(builder.fmul(builder.fdiv(product, count), square), "sums", builder.add(place, INT(1)))

        self.clear(block, until)
        self.rows(block, until, row)
        self.loop(block, until, unit)

    def results(self, block: Any, until: Any) -> None:
        builder = self.builder
        if "gradient" not in self.options:
            return

        def row(u: Any, at: Any, of: Any, _: Any) -> None:
            gradient, source, target = self.gradient(at), self.at("x", at), self.at("dx", at)
            centre, factor = (self.spread(builder.load(self.at(name, u))) for name in ("mean", "rstd"))
            weight, place = self.affine("weight", of), builder.mul(builder.sub(u, block), self.width)
            if "given" not in self.options:
                places = place, builder.add(place, INT(1))
                shift, slope = (self.spread(self.number(builder.load(self.at("sums", k)))) for k in places)

            def body(index: Any, mask: Any) -> None:
                g = builder.fmul(gradient(index, mask), weight(index, mask))
                if "given" not in self.options:
                    centred = builder.fsub(self.read(source, index, mask), centre)
                    g = builder.fsub(g, self.fused(centred, slope, shift))
                self.write(builder.fmul(g, factor), target, index, mask)

            self.each(body)

        self.rows(block, until, row)

"""Passes over rows of adjacent numbers for normalisations, written as LLVM instructions.

A row has one mean for all its numbers or, with `columns`, one for each. It has one weight and bias or, if it is `wide`,
one for each number. Arrays are given by their addresses, so that read-only ones need no code of their own; `like` is
any array of the same dtype. Whatever the length, nothing outside a row is read or written. Sums are float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._vectors import DOUBLE, INT, Vectors, counted

__all__ = ["gradient_sums", "input_gradient", "moments", "normalise", "origin", "where"]

_MANY = 2
"""Vectors per iteration."""


class _Rows(Vectors):
    """Emits instructions on vectors of the numbers of an array type, given by their addresses."""

    def __init__(self, builder: Any, like: types.Array) -> None:
        super().__init__(builder, like.dtype.bitwidth // 8)
        self.none = ir.Constant(self.vector, None)

    def at(self, address: Any, number: Any = None) -> Any:
        """Return a pointer to a number."""
        return self.builder.inttoptr(address, (number or self.vector.element).as_pointer())

    def same(self, value: Any) -> Any:
        """Return a float64 number, rounded to the arrays' dtype, in all lanes."""
        return self.spread(self.number(value))

    def wide(self, value: Any) -> Any:
        """Convert a number to float64."""
        return value if value.type == DOUBLE else self.builder.fpext(value, DOUBLE)

    def add_to(self, pointer: Any, total: Any) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(pointer), self.wide(total)), pointer)

    def add_columns(self, value: Any, pointer: Any, index: Any, mask: Any) -> None:
        """Add a vector to numbers in memory."""
        self.write(self.builder.fadd(self.read(pointer, index, mask), value), pointer, index, mask)

    def flag(self, value: Any) -> Any:
        return self.builder.icmp_signed("!=", value, INT(0))

    def choice(self, flag: Any, pointer: Any, value: Any) -> tuple[Any, Any]:
        """Return where to load vectors from, and a factor of their index: an array if `flag`, else the same vector."""
        room = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, room)
        same = self.builder.bitcast(room, pointer.type)
        chosen, factor = self.flag(flag), self.builder.zext(self.flag(flag), INT)
        return self.builder.select(chosen, pointer, same), factor

    def chosen(self, choice: tuple[Any, Any], index: Any, mask: Any) -> Any:
        pointer, factor = choice
        return self.read(pointer, self.builder.mul(index, factor), mask)

    def either(self, flag: Any, emit: Callable[[bool], None]) -> None:
        """Emit two versions of a loop, and choose by a flag."""
        with self.builder.if_else(self.flag(flag)) as (then, otherwise):
            with then:
                emit(True)
            with otherwise:
                emit(False)

    def masked(self, dy: Any, y: Any, low: Any, high: Any) -> Any:
        """Return dy where y is not at or beyond a limit; comparisons with NaN are false."""
        below, above = self.builder.fcmp_ordered("<=", y, low), self.builder.fcmp_ordered(">=", y, high)
        return self.builder.select(self.builder.or_(below, above), self.none, dy)

    def rows(self, which: Sequence[Any], body: Callable[..., None]) -> None:
        """Emit `body(at, of, u, length)` for the rows of some units, in the order of memory.

        It is given the first number of a row, its parameter, its unit, and how many numbers it has. `which`
        is the address of the sizes of a `_Layout` in `norm.py`, the first unit, and the end of the units.
        """
        table, block, until = which
        builder, start = self.builder, self.at(table, INT)
        unit, rows, step, row, end, _, period, of_unit, of_row = (
            builder.load(builder.gep(start, [INT(k)])) for k in range(9)
        )
        first = builder.urem(block, period)

        def line(j: Any, _: Any) -> list[Any]:
            moved, moved_of = builder.mul(j, step), builder.mul(j, of_row)

            def one(u: Any, turns: Sequence[Any]) -> list[Any]:
                begin, (turn,) = builder.mul(u, unit), turns
                left = builder.sub(end, begin)
                length = builder.select(builder.icmp_signed("<", left, row), left, row)
                body(builder.add(begin, moved), builder.add(builder.mul(turn, of_unit), moved_of), u, length)
                turn = builder.add(turn, INT(1))
                return [builder.select(builder.icmp_signed("<", turn, period), turn, INT(0))]

            counted(builder, block, until, INT(1), [first], one)
            return []

        counted(builder, INT(0), rows, INT(1), [], line)

    def of_unit(self, means: Any, rstds: Any, u: Any, columns: Any) -> tuple[Any, Any]:
        """Return where the means of a unit are, and its rstd in all lanes; that of `columns` is 1."""
        by_column, one = self.flag(columns), self.vector.element(1.0)
        place = self.builder.select(by_column, INT(0), u)
        factor = self.builder.select(by_column, one, self.builder.load(self.beside(rstds, place)))
        return self.beside(means, place), self.spread(factor)

    def beside(self, pointer: Any, index: Any) -> Any:
        """Return a pointer moved by some numbers."""
        return self.builder.gep(pointer, [index])

    def each(self, length: Any, body: Callable[..., Any], values: Sequence[Any] = ()) -> list[Any]:
        """Emit `body(index, mask, *values)` for all vectors of a row.

        With values, it returns their next ones. There are _MANY times as many, those of each vector of an iteration.
        """
        own = len(values)

        def some(places: Sequence[Any], mask: Any, all_values: Sequence[Any]) -> list[Any]:
            new = [*all_values]
            for k, index in enumerate(places):
                new[k * own : (k + 1) * own] = body(index, mask, *all_values[k * own : (k + 1) * own]) or []
            return new

        return self.span(INT(0), length, [*values] * _MANY, some, _MANY)


@intrinsic
def where(_: Any, array: Any) -> Any:
    """Return the address of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(array)(context, builder, arguments[0]).data, INT)

    return types.intp(array), generate


@intrinsic
def origin(_: Any, like: Any, address: Any) -> Any:
    """Return the number from which `moments` counts, as float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = _Rows(builder, like)
        value = emit.wide(builder.load(emit.at(arguments[1])))
        return builder.select(builder.fcmp_ordered("ord", builder.fsub(value, value), DOUBLE(0.0)), value, DOUBLE(0.0))

    return types.float64(like, types.intp), generate


@intrinsic
def moments(_: Any, like: Any, x: Any, shift: Any, columns: Any, sums: Any, squares: Any, length: Any) -> Any:
    """Add `d = x - shift` and its square to sums: of the row, or of each column.

    `shift` is the address of a number, or of a row. If it is infinite or NaN, 0 takes its place.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x_, shift_, columns_, sums_, squares_, length_ = arguments
        emit = _Rows(builder, like)
        source, shifts = emit.at(x_), emit.at(shift_)
        targets = [emit.at(a, DOUBLE) for a in (sums_, squares_)]

        def steady(value: Any) -> Any:
            finite = builder.fcmp_ordered("ord", builder.fsub(value, value), emit.none)
            return builder.select(finite, value, emit.none)

        def loop(by_column: bool) -> None:
            centre = None if by_column else steady(emit.spread(builder.load(shifts)))

            def column(index: Any, mask: Any) -> None:
                value = builder.fsub(emit.read(source, index, mask), steady(emit.read(shifts, index, mask)))
                for target, term in zip(targets, (value, builder.fmul(value, value)), strict=True):
                    emit.add_columns(emit.widened(term), target, index, mask)

            def row(index: Any, mask: Any, total: Any, square: Any) -> tuple[Any, Any]:
                value = emit.widened(builder.fsub(emit.read(source, index, mask), centre), mask)
                return builder.fadd(total, value), emit.fused(value, value, square)

            if by_column:
                emit.each(length_, column)
                return
            totals = emit.each(length_, row, [emit.zeros()] * 2)
            for k, target in enumerate(targets):
                emit.add_to(target, emit.total(builder.fadd(totals[k], totals[k + 2])))

        emit.either(columns_, loop)
        return context.get_dummy_value()

    n = types.intp
    return types.void(like, n, n, n, n, n, n), generate


@intrinsic
def normalise(
    _: Any, like: Any, x: Any, residual: Any, y: Any, adds: Any, mean: Any, columns: Any, rstd: Any, weight: Any,
    bias: Any, wide: Any, low: Any, high: Any, table: Any, block: Any, until: Any,
) -> Any:  # fmt: skip
    """Set rows of y to `(x - mean) * rstd * weight + bias`, plus the residual if it `adds`, between two limits.

    See `_Rows.rows` for the last arguments. With `columns`, rstd is part of the weight; otherwise mean and rstd are
    those of the units.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x_, residual_, y_, adds_, mean_, columns_, rstd_, weight_, bias_, wide_, low_, high_ = arguments[:13]
        emit = _Rows(builder, like)
        x0, residual0, y0, mean0, rstd0, weight0, bias0 = (
            emit.at(a) for a in (x_, residual_, y_, mean_, rstd_, weight_, bias_)
        )
        least, most = emit.same(low_), emit.same(high_)

        def row(at: Any, of: Any, u: Any, length: Any) -> None:
            source, target, weights, biases = (
                emit.beside(a, k) for a, k in ((x0, at), (y0, at), (weight0, of), (bias0, of))
            )
            means, factor = emit.of_unit(mean0, rstd0, u, columns_)
            addends = emit.choice(adds_, emit.beside(residual0, at), emit.none)

            def loop(is_wide: bool) -> None:
                centre = emit.spread(builder.load(means))
                if is_wide:
                    centres = emit.choice(columns_, means, centre)
                else:
                    shift = emit.spread(builder.load(biases))
                    slope = builder.fmul(factor, emit.spread(builder.load(weights)))

                def body(index: Any, mask: Any) -> None:
                    value = emit.read(source, index, mask)
                    if is_wide:
                        value = builder.fmul(builder.fsub(value, emit.chosen(centres, index, mask)), factor)
                        value = emit.fused(value, emit.read(weights, index, mask), emit.read(biases, index, mask))
                    else:
                        value = emit.fused(builder.fsub(value, centre), slope, shift)
                    value = builder.fadd(value, emit.chosen(addends, index, mask))
                    value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                    value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
                    emit.write(value, target, index, mask)

                emit.each(length, body)

            emit.either(wide_, loop)

        emit.rows(arguments[13:], row)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, n, n, n, n, f, f, n, n, n), generate


@intrinsic
def gradient_sums(
    _: Any, like: Any, x: Any, dy: Any, y: Any, dresidual: Any, writes: Any, mean: Any, columns: Any, rstd: Any,
    weight: Any, wide: Any, low: Any, high: Any, sums: Any, dbias: Any, dweight: Any, length: Any,
) -> Any:  # fmt: skip
    """Add a row's sums of `g = dy`, where y is between the limits, and of `g * (x - mean)` to the two float64 sums.

    If it is wide, these are the sums of `g * weight`, and each column's g and `g * (x - mean) * rstd` are added to the
    rows dbias and dweight. If it `writes`, dresidual becomes g. Lanes are summed in the arrays' dtype.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (_, x_, dy_, y_, dresidual_, writes_, mean_, columns_, rstd_, weight_, wide_, low_, high_, sums_, dbias_,
         dweight_, length_) = arguments  # fmt: skip
        emit = _Rows(builder, like)
        source, gradient, result, means, weights = (emit.at(a) for a in (x_, dy_, y_, mean_, weight_))
        least, most, factor = emit.same(low_), emit.same(high_), emit.same(rstd_)
        biases, products = emit.at(dbias_), emit.at(dweight_)
        targets = emit.choice(writes_, emit.at(dresidual_), emit.none)

        def loop(is_wide: bool) -> None:
            centre = emit.spread(builder.load(means))
            centres = emit.choice(columns_, means, centre)

            def body(index: Any, mask: Any, total: Any, product: Any) -> tuple[Any, Any]:
                g = emit.masked(emit.read(gradient, index, mask), emit.read(result, index, mask), least, most)
                emit.write(g, targets[0], builder.mul(index, targets[1]), mask)
                centred = emit.read(source, index, mask)
                centred = builder.fsub(centred, emit.chosen(centres, index, mask) if is_wide else centre)
                if is_wide:
                    emit.add_columns(g, biases, index, mask)
                    emit.add_columns(builder.fmul(g, builder.fmul(centred, factor)), products, index, mask)
                    g = builder.fmul(g, emit.read(weights, index, mask))
                return builder.fadd(total, g), emit.fused(g, centred, product)

            totals = emit.each(length_, body, [emit.none] * 2)
            for k in range(2):
                place = emit.at(builder.add(sums_, INT(8 * k)), DOUBLE)
                emit.add_to(place, emit.total(builder.fadd(totals[k], totals[k + 2])))

        emit.either(wide_, loop)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, n, f, n, n, f, f, n, n, n, n), generate


@intrinsic
def input_gradient(
    _: Any, like: Any, x: Any, dy: Any, y: Any, dx: Any, constant: Any, mean: Any, shift: Any, slope: Any, columns: Any,
    rstd: Any, weight: Any, wide: Any, low: Any, high: Any, table: Any, block: Any, until: Any,
) -> Any:  # fmt: skip
    """Set rows of dx to `g * rstd * weight - ((x - mean) * slope + shift)`, or the first term if it is `constant`.

    g is dy where y is between the limits. `shift` and `slope` are those of columns, or of units from `block` on. See
    `normalise` for the others.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (_, x_, dy_, y_, dx_, constant_, mean_, shift_, slope_, columns_, rstd_, weight_, wide_, low_, high_) = (
            arguments[:15]
        )
        emit = _Rows(builder, like)
        arrays = [emit.at(a) for a in (x_, dy_, y_, dx_)]
        weight0, mean0, rstd0, terms = emit.at(weight_), emit.at(mean_), emit.at(rstd_), (shift_, slope_)
        least, most = emit.same(low_), emit.same(high_)
        varies, by_unit = builder.icmp_signed("==", constant_, INT(0)), builder.not_(emit.flag(columns_))

        def row(at: Any, of: Any, u: Any, length: Any) -> None:
            source, gradient, result, target = (emit.beside(a, at) for a in arrays)
            weights, (means, factor) = emit.beside(weight0, of), emit.of_unit(mean0, rstd0, u, columns_)
            place = builder.select(by_unit, builder.sub(u, arguments[16]), INT(0))
            rows = [means, *(emit.beside(emit.at(a), place) for a in terms)]

            def loop(is_wide: bool) -> None:
                same = [emit.spread(builder.load(a)) for a in rows]
                choices = [emit.choice(columns_, a, value) for a, value in zip(rows, same, strict=True)]
                scale = None if is_wide else builder.fmul(factor, emit.spread(builder.load(weights)))

                def body(index: Any, mask: Any) -> None:
                    g = emit.masked(emit.read(gradient, index, mask), emit.read(result, index, mask), least, most)
                    centre, shift, slope = (emit.chosen(c, index, mask) for c in choices) if is_wide else same
                    g = builder.fmul(g, builder.fmul(factor, emit.read(weights, index, mask)) if is_wide else scale)
                    centred = builder.fsub(emit.read(source, index, mask), centre)
                    whole = builder.fsub(g, emit.fused(centred, slope, shift))
                    emit.write(builder.select(varies, whole, g), target, index, mask)

                emit.each(length, body)

            emit.either(wide_, loop)

        emit.rows(arguments[15:], row)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, n, n, n, n, n, n, f, f, n, n, n), generate

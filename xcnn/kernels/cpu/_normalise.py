"""Passes over rows of adjacent numbers for normalisations, written as LLVM instructions.

A row has one mean for all its numbers or, with `columns`, one for each. It has one weight and bias or, if it is `wide`,
one for each number. Arrays are given by their addresses, so that read-only ones need no code of their own; `like` is
any array of the same dtype. Whatever the length, nothing outside a row is read or written. Sums are float64.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from xcnn.kernels.cpu._simd import BYTES

__all__ = ["gradient_sums", "input_gradient", "moments", "normalise", "origin", "where"]

_INT, _LANE, _WIDE = ir.IntType(64), ir.IntType(32), ir.DoubleType()
_MANY = 2
"""Vectors per iteration."""


class _Vectors:
    """Emits instructions on vectors of the numbers of an array type, and of float64."""

    def __init__(self, builder: Any, like: types.Array) -> None:
        self.builder = builder
        self.number = ir.FloatType() if like.dtype.bitwidth == 32 else _WIDE

    def lanes(self, number: Any) -> int:
        return BYTES // (4 if isinstance(number, ir.FloatType) else 8)

    def vector(self, number: Any = None) -> Any:
        number = number or self.number
        return ir.VectorType(number, self.lanes(number))

    def at(self, address: Any, number: Any = None) -> Any:
        """Return a pointer to a number."""
        return self.builder.inttoptr(address, (number or self.number).as_pointer())

    def spread(self, value: Any) -> Any:
        """Return a vector with a number in all lanes; float64 is rounded to the arrays' dtype."""
        if value.type != self.number:
            value = self.builder.fptrunc(value, self.number)
        empty = ir.Constant(self.vector(), ir.Undefined)
        first = self.builder.insert_element(empty, value, _LANE(0))
        return self.builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_LANE, empty.type.count), None))

    def first(self, count: Any) -> Any:
        """Return a mask of the first `count` lanes, if there are so many."""
        lanes = self.lanes(self.number)
        empty = ir.Constant(ir.VectorType(_INT, lanes), ir.Undefined)
        one = self.builder.insert_element(empty, count, _LANE(0))
        counts = self.builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_LANE, lanes), None))
        return self.builder.icmp_signed("<", ir.Constant(empty.type, list(range(lanes))), counts)

    def load(self, pointer: Any, index: Any, mask: Any) -> Any:
        """Load a vector; lanes that are masked out are 0, and their memory is not read."""
        number = pointer.type.pointee
        vector, size = self.vector(number), 8 * BYTES // self.lanes(number)
        place = self.builder.bitcast(self.builder.gep(pointer, [index]), vector.as_pointer())
        if mask is None:
            return self.builder.load(place, align=size // 8)
        return self._masked("load", vector, size, [place, _LANE(size // 8), mask, ir.Constant(vector, None)])

    def store(self, value: Any, pointer: Any, index: Any, mask: Any) -> None:
        number = pointer.type.pointee
        size = 8 * BYTES // self.lanes(number)
        place = self.builder.bitcast(self.builder.gep(pointer, [index]), value.type.as_pointer())
        if mask is None:
            self.builder.store(value, place, align=size // 8)
        else:
            self._masked("store", ir.VoidType(), size, [value, place, _LANE(size // 8), mask])

    def _masked(self, name: str, result: Any, bits: int, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        full = f"llvm.masked.{name}.v{8 * BYTES // bits}f{bits}.p0"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, full), arguments)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c, with one rounding if that is faster."""
        bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
        kind = ir.FunctionType(a.type, [a.type] * 3)
        name = f"llvm.fmuladd.v{a.type.count}f{bits}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [a, b, c])

    def halves(self, value: Any) -> list[Any]:
        """Return a vector as those of float64 have its lanes: in halves, or as it is."""
        if self.number is _WIDE:
            return [value]
        half = value.type.count // 2
        parts = [ir.Constant(ir.VectorType(_LANE, half), list(range(k, k + half))) for k in (0, half)]
        return [self.builder.shuffle_vector(value, value, part) for part in parts]

    def widened(self, value: Any) -> list[Any]:
        """Return the same numbers as vectors of float64."""
        parts = self.halves(value)
        return parts if self.number is _WIDE else [self.builder.fpext(part, self.vector(_WIDE)) for part in parts]

    def sum(self, number: Any = None) -> Any:
        """Make a vector of zeros, which becomes a register."""
        room = cgutils.alloca_once(self.builder, self.vector(number))
        self.builder.store(ir.Constant(self.vector(number), None), room)
        return room

    def total(self, sums: list[Any]) -> Any:
        """Add all lanes of one or two sums, by halves; return a float64 number."""
        values = [self.builder.load(one) for one in sums]
        value = values[0] if len(values) == 1 else self.builder.fadd(*values)
        lanes = half = value.type.count
        while half > 1:
            half //= 2
            upper = ir.Constant(ir.VectorType(_LANE, lanes), [min(i + half, lanes - 1) for i in range(lanes)])
            value = self.builder.fadd(value, self.builder.shuffle_vector(value, value, upper))
        value = self.builder.extract_element(value, _LANE(0))
        return value if value.type == _WIDE else self.builder.fpext(value, _WIDE)

    def add_to(self, pointer: Any, total: Any) -> None:
        self.builder.store(self.builder.fadd(self.builder.load(pointer), total), pointer)

    def add_columns(self, pointer: Any, index: Any, mask: Any, value: Any) -> None:
        """Add a vector to float64 numbers in memory."""
        masks = [None] * 2 if mask is None else self.halves(mask)
        for k, (part, its) in enumerate(zip(self.widened(value), masks, strict=False)):
            place = self.builder.add(index, _INT(k * part.type.count))
            self.store(self.builder.fadd(self.load(pointer, place, its), part), pointer, place, its)

    def choice(self, flag: Any, pointer: Any, value: Any) -> tuple[Any, Any]:
        """Return where to load vectors from, and a factor of their index: an array if `flag`, else the same vector."""
        room = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, room)
        same = self.builder.bitcast(room, pointer.type)
        return self.builder.select(self.flag(flag), pointer, same), self.builder.select(
            self.flag(flag), _INT(1), _INT(0)
        )

    def flag(self, value: Any) -> Any:
        return self.builder.icmp_signed("!=", value, _INT(0))

    def chosen(self, choice: tuple[Any, Any], index: Any, mask: Any) -> Any:
        pointer, factor = choice
        return self.load(pointer, self.builder.mul(index, factor), mask)

    def each(self, length: Any, body: Callable[[Any, Any, int], None]) -> None:
        """Emit `body(index, mask, k)` for all vectors of a row, number k of an iteration; only the last have masks."""
        lanes = self.lanes(self.number)
        step = _INT(_MANY * lanes)
        whole = self.builder.mul(self.builder.udiv(length, step), step)
        with cgutils.for_range_slice(self.builder, _INT(0), whole, step) as (index, _):
            for k in range(_MANY):
                body(self.builder.add(index, _INT(k * lanes)), None, k)
        with cgutils.for_range_slice(self.builder, whole, length, _INT(lanes)) as (index, _):
            body(index, self.first(self.builder.sub(length, index)), 0)

    def either(self, flag: Any, emit: Callable[[bool], None]) -> None:
        """Emit two versions of a loop, and choose by a flag."""
        with self.builder.if_else(self.flag(flag)) as (then, otherwise):
            with then:
                emit(True)
            with otherwise:
                emit(False)

    def masked(self, dy: Any, y: Any, low: Any, high: Any) -> Any:
        """Return dy where y is not at or beyond a limit; comparisons with NaN are false."""
        outside = self.builder.or_(
            self.builder.fcmp_ordered("<=", y, low), self.builder.fcmp_ordered(">=", y, high)
        )  # fmt: skip
        return self.builder.select(outside, ir.Constant(self.vector(), None), dy)


@intrinsic
def where(_: Any, array: Any) -> Any:
    """Return the address of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(context.make_array(array)(context, builder, arguments[0]).data, _INT)

    return types.intp(array), generate


@intrinsic
def origin(_: Any, like: Any, address: Any) -> Any:
    """Return the number from which `moments` counts, as float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_Vectors(builder, like).at(arguments[1]))
        value = value if value.type == _WIDE else builder.fpext(value, _WIDE)
        return builder.select(builder.fcmp_ordered("ord", builder.fsub(value, value), _WIDE(0.0)), value, _WIDE(0.0))

    return types.float64(like, types.intp), generate


@intrinsic
def moments(_: Any, like: Any, x: Any, shift: Any, columns: Any, sums: Any, squares: Any, length: Any) -> Any:
    """Add `d = x - shift` and its square to sums: of the row, or of each column.

    `shift` is the address of a number, or of a row. If it is infinite or NaN, 0 takes its place.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x_, shift_, columns_, sums_, squares_, length_ = arguments
        emit = _Vectors(builder, like)
        source, shifts = emit.at(x_), emit.at(shift_)
        targets = [emit.at(a, _WIDE) for a in (sums_, squares_)]
        none = ir.Constant(emit.vector(), None)

        def steady(value: Any) -> Any:
            return builder.select(builder.fcmp_ordered("ord", builder.fsub(value, value), none), value, none)

        def loop(by_column: bool) -> None:
            totals = [[emit.sum(_WIDE) for _ in emit.widened(none)] for _ in range(2)]
            centre = None if by_column else steady(emit.spread(builder.load(shifts)))

            def body(index: Any, mask: Any, k: int) -> None:
                value = emit.load(source, index, mask)
                one = steady(emit.load(shifts, index, mask)) if by_column else centre
                value = builder.fsub(value, one)
                if by_column:
                    emit.add_columns(targets[0], index, mask, value)
                    emit.add_columns(targets[1], index, mask, builder.fmul(value, value))
                    return
                if mask is not None:
                    value = builder.select(mask, value, none)
                for part, total, square in zip(emit.widened(value), *totals, strict=True):
                    builder.store(builder.fadd(builder.load(total), part), total)
                    builder.store(emit.multiply_add(part, part, builder.load(square)), square)

            emit.each(length_, body)
            if not by_column:
                for target, total in zip(targets, totals, strict=True):
                    emit.add_to(target, emit.total(total))

        emit.either(columns_, loop)
        return context.get_dummy_value()

    n = types.intp
    return types.void(like, n, n, n, n, n, n), generate


@intrinsic
def normalise(
    _: Any, like: Any, x: Any, residual: Any, y: Any, adds: Any, mean: Any, columns: Any, rstd: Any, weight: Any,
    bias: Any, wide: Any, low: Any, high: Any, length: Any,
) -> Any:  # fmt: skip
    """Set a row of y to `(x - mean) * rstd * weight + bias`, plus the residual if it `adds`, between two limits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, x_, residual_, y_, adds_, mean_, columns_, rstd_, weight_, bias_, wide_, low_, high_, length_ = arguments
        emit = _Vectors(builder, like)
        source, target = emit.at(x_), emit.at(y_)
        means, weights, biases = emit.at(mean_), emit.at(weight_), emit.at(bias_)
        least, most, factor = emit.spread(low_), emit.spread(high_), emit.spread(rstd_)
        addends = emit.choice(adds_, emit.at(residual_), ir.Constant(emit.vector(), None))

        def loop(is_wide: bool) -> None:
            centre = emit.spread(builder.load(means))
            if is_wide:
                centres = emit.choice(columns_, means, centre)
            else:
                shift = emit.spread(builder.load(biases))
                slope = builder.fmul(factor, emit.spread(builder.load(weights)))

            def body(index: Any, mask: Any, k: int) -> None:
                value = emit.load(source, index, mask)
                if is_wide:
                    value = builder.fmul(builder.fsub(value, emit.chosen(centres, index, mask)), factor)
                    value = emit.multiply_add(
                        value, emit.load(weights, index, mask), emit.load(biases, index, mask)
                    )  # fmt: skip
                else:
                    value = emit.multiply_add(builder.fsub(value, centre), slope, shift)
                value = builder.fadd(value, emit.chosen(addends, index, mask))
                value = builder.select(builder.fcmp_ordered("<", value, least), least, value)
                value = builder.select(builder.fcmp_ordered(">", value, most), most, value)
                emit.store(value, target, index, mask)

            emit.each(length_, body)

        emit.either(wide_, loop)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, f, n, n, n, f, f, n), generate


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
        emit = _Vectors(builder, like)
        source, gradient, result, means, weights = (emit.at(a) for a in (x_, dy_, y_, mean_, weight_))
        least, most, factor = emit.spread(low_), emit.spread(high_), emit.spread(rstd_)
        biases, products, none = emit.at(dbias_), emit.at(dweight_), ir.Constant(emit.vector(), None)
        targets = emit.choice(writes_, emit.at(dresidual_), none)
        totals_at = [emit.at(builder.add(sums_, _INT(8 * k)), _WIDE) for k in range(2)]

        def loop(is_wide: bool) -> None:
            totals = [[emit.sum() for _ in range(2)] for _ in range(_MANY)]
            centre = emit.spread(builder.load(means))
            centres = emit.choice(columns_, means, centre)

            def body(index: Any, mask: Any, k: int) -> None:
                g = emit.masked(emit.load(gradient, index, mask), emit.load(result, index, mask), least, most)
                emit.store(g, targets[0], builder.mul(index, targets[1]), mask)
                centred = emit.load(source, index, mask)
                centred = builder.fsub(centred, emit.chosen(centres, index, mask) if is_wide else centre)
                if is_wide:
                    emit.store(builder.fadd(emit.load(biases, index, mask), g), biases, index, mask)
                    product = builder.fadd(
                        emit.load(products, index, mask), builder.fmul(g, builder.fmul(centred, factor))
                    )
                    emit.store(product, products, index, mask)
                    g = builder.fmul(g, emit.load(weights, index, mask))
                total, product = totals[k]
                builder.store(builder.fadd(builder.load(total), g), total)
                builder.store(emit.multiply_add(g, centred, builder.load(product)), product)

            emit.each(length_, body)
            for place, *parts in zip(totals_at, *totals, strict=True):
                emit.add_to(place, emit.total(parts))

        emit.either(wide_, loop)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, n, f, n, n, f, f, n, n, n, n), generate


@intrinsic
def input_gradient(
    _: Any, like: Any, x: Any, dy: Any, y: Any, dx: Any, constant: Any, mean: Any, shift: Any, slope: Any, columns: Any,
    rstd: Any, weight: Any, wide: Any, low: Any, high: Any, length: Any,
) -> Any:  # fmt: skip
    """Set a row of dx to `g * rstd * weight - ((x - mean) * slope + shift)`, or the first term if it is `constant`.

    g is dy where y is between the limits. `shift` and `slope` lie like `mean`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (_, x_, dy_, y_, dx_, constant_, mean_, shift_, slope_, columns_, rstd_, weight_, wide_, low_, high_,
         length_) = arguments  # fmt: skip
        emit = _Vectors(builder, like)
        source, gradient, result, target, weights = (emit.at(a) for a in (x_, dy_, y_, dx_, weight_))
        least, most, factor = emit.spread(low_), emit.spread(high_), emit.spread(rstd_)
        varies = builder.icmp_signed("==", constant_, _INT(0))

        def loop(is_wide: bool) -> None:
            rows = [emit.at(a) for a in (mean_, shift_, slope_)]
            same = [emit.spread(builder.load(a)) for a in rows]
            choices = [emit.choice(columns_, a, value) for a, value in zip(rows, same, strict=True)]
            scale = None if is_wide else builder.fmul(factor, emit.spread(builder.load(weights)))

            def body(index: Any, mask: Any, k: int) -> None:
                g = emit.masked(emit.load(gradient, index, mask), emit.load(result, index, mask), least, most)
                centre, shift, slope = (emit.chosen(c, index, mask) for c in choices) if is_wide else same
                g = builder.fmul(g, builder.fmul(factor, emit.load(weights, index, mask)) if is_wide else scale)
                centred = builder.fsub(emit.load(source, index, mask), centre)
                whole = builder.fsub(g, emit.multiply_add(centred, slope, shift))
                emit.store(builder.select(varies, whole, g), target, index, mask)

            emit.each(length_, body)

        emit.either(wide_, loop)
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return types.void(like, n, n, n, n, n, n, n, n, n, f, n, n, f, f, n), generate

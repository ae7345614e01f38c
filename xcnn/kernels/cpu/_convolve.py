"""The compiled passes of a convolution and of its input gradient: lay out, multiply, write; `_stacks.py` plans them."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._integers import Integer
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._simd import Emitter
from xcnn.kernels.cpu._tables import view
from xcnn.kernels.cpu._vectors import INT

__all__ = ["convolve", "fold"]


@compiled
def fold(bias, mean, var, weight, add, eps, scale, shift):
    """Set scale and shift of each channel so that they add a bias and apply a batch norm; either may be empty."""
    for o in range(scale.size):
        factor = 1 / (var[o] + eps) ** 0.5
        if weight.size:
            factor *= weight[o]
        centre = (bias[o] if bias.size else 0.0) - mean[o]
        scale[o] = factor
        shift[o] = centre * factor + (add[o] if add.size else 0.0)


@intrinsic
def _convolve(
    _: Any, product: Any, copy: Any, write: Any, x: Any, mask: Any, w: Any, scale: Any, shift: Any, residual: Any,
    low: Any, high: Any, plain: Any, y: Any, tables: Any, first: Any, last: Any, xs: Any, ys: Any,
) -> Any:  # fmt: skip
    """Do what `convolve` does."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product_, copy_, write_, x_, mask_, w_, scale_, shift_, residual_, low_, high_ = arguments[:11]
        plain_, y_, tables_, first_, last_, xs_, ys_ = arguments[11:]
        emit, zero = Emitter(context, builder, x), Integer(builder, 0)
        data = context.make_array(tables)(context, builder, tables_).data

        def numbers(place: Integer, count: int) -> list[Integer]:
            pointer = builder.gep(data, [place.value])
            return [Integer(builder, builder.load(builder.gep(pointer, [INT(i)]))) for i in range(count)]

        def call(function: Any, address: Any, *values: Any) -> None:
            given = [(zero + value).value if isinstance(value, int | Integer) else value for value in values]
            function.write(context, builder, x.dtype, address, *given)

        def either(condition: Any, one: Integer, other: Any) -> Integer:
            return one.joined(lambda a, b: builder.select(condition, a, b), other)

        channels, x_map, x_image, y_map, y_image, channel, cleared, pitch, w_row, width = numbers(zero + 1, 10)
        *flags, stride, apart, units, stacks, copies, pieces, rows = numbers(zero + 11, 10)
        in_place, direct, across = (flag.holds("!=", 0) for flag in flags)
        wide, begin, end = apart.holds("==", 1), Integer(builder, first_), Integer(builder, last_)
        source, results = builder.select(in_place, x_, xs_), builder.select(direct, y_, ys_)
        target, per_stack = builder.select(wide, y_, ys_), (stacks - units) // 11
        several = builder.icmp_signed(">", emit.size(shift, shift_), INT(1))
        with begin.up_to(end) as job:
            part = job // per_stack
            x0, row, many, w0, fresh, copy0, copy1, piece0, piece1, fill0, fill1 = numbers(
                units + (job - part * per_stack) * 11, 11
            )
            image, next_image = numbers(stacks + part, 2)
            images, x0, to = next_image - image, image * x_image + x0, image * y_image + row * y_map
            fresh_ = builder.or_(fresh.holds("!=", 0), job.holds("==", begin))
            with builder.if_then(builder.and_(builder.not_(in_place), fresh_)):
                with zero.up_to(cleared) as i:
                    builder.store(emit.vector.element(0.0), emit.pointer(xs, xs_, i.value))
                with zero.up_to(channels) as c, zero.up_to(images) as i, copy0.up_to(copy1, 6) as k:
                    from_, x_step, at, y_step, lines, length = numbers(copies + k, 6)
                    call(
                        every, copy_, x_, x0 + i * x_image + c * x_map + from_, x_step, stride, mask_, xs_,
                        at + i * pitch + c * channel, y_step, 1, lines, length,
                    )  # fmt: skip
            with zero.up_to(images) as i, zero.up_to(many) as c:
                value = builder.load(emit.pointer(shift, shift_, either(several, row + c, 0).value))
                place = to + i * y_image + c * y_map
                with (place + fill0).up_to(place + fill1) as j:
                    builder.store(value, emit.pointer(y, y_, j.value))
            with piece0.up_to(piece1, 5) as p:
                which, place, length, row0, row1 = numbers(pieces + p, 5)
                shifts, columns = (view(context, builder, tables, tables_, (which * 2 + i).value) for i in (5, 6))
                at = either(direct, to + numbers(rows + row0 + 2, 1)[0], 0)
                terms = emit.size(tables, columns)
                call(
                    multiply, product_, source, either(in_place, x0, 0) + place, shifts, w_, w0, w_row, columns,
                    terms, results, at, width, many, length,
                )  # fmt: skip
                written = builder.not_(builder.and_(direct, plain_))
                with builder.if_then(written), row0.up_to(row1, 6) as k:
                    from_, from_step, to_, to_step, lines, length = numbers(rows + k, 6)
                    outer, outer_from, outer_to, inner, inner_from, inner_to = (
                        either(across, a, b)
                        for a, b in (
                            (lines, many), (from_step, width), (to_step, y_map),
                            (many, lines), (width, from_step), (y_map, to_step),
                        )
                    )  # fmt: skip
                    with zero.up_to(images) as i, zero.up_to(outer) as c:
                        here = at + i * pitch + from_ + c * outer_from
                        there = to + i * y_image + to_ + c * outer_to
                        with builder.if_then(builder.or_(wide, builder.not_(plain_))):
                            call(
                                affine, write_, results, here, inner_from, scale_, shift_,
                                row + either(across, zero, c), flags[2], residual_, low_, high_, target,
                                either(wide, there, here),
                                either(wide, inner_to, inner_from), inner, length,
                            )  # fmt: skip
                        with builder.if_then(builder.not_(wide)):
                            call(
                                every, copy_, ys_, here, inner_from, 1, residual_, y_, there, inner_to, apart, inner,
                                length,
                            )  # fmt: skip
        return context.get_dummy_value()

    n, f = types.intp, types.float64
    return (
        types.void(n, n, n, x, mask, w, scale, shift, residual, f, f, types.boolean, y, tables, n, n, xs, ys),
        generate,
    )


@compiled
def convolve(
    product, copy, write, x, mask, w, scale, shift, residual, low, high, plain, y, tables, first, last, xs, ys
):
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    Parameters
    ----------
    product, copy, write : addresses of `multiply`, `every` and `affine`.
    mask : of the shape of x, which counts as 0 where it is 0; or empty.
    scale, shift : of each channel of y, or one for all.
    residual : of the shape of y, or empty.
    plain : whether y is only the convolution.
    tables : numbers, and these arrays.

        - units: jobs of a stack. Where its channels are in x, its first channel of y, how many it has, its first
          weight, whether it is the first one of its pixels, its copies and its pieces, and the targets that are set to
          the shift at first, because no tap touches some of them.
        - stacks: the first image of each.
        - copies: rows of pixels. From, how far apart, to, how far apart, how many, and how long.
        - pieces: targets that are computed together. The terms, place, length, and the rows to write.
        - rows of targets, as copies.
        - of each number of terms: where pixels, and where weights are read.
    xs, ys : memory for planes and products.
    """
    _convolve(
        product, copy, write, x, mask, w, scale, shift, residual, low, high, plain, y, tables, first, last, xs, ys
    )

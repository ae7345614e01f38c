"""The compiled passes of a convolution and of its input gradient: lay out, multiply, write; `_stacks.py` plans them."""

from typing import Any

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._moves import affine, every
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._product import multiply
from xcnn.kernels.cpu._share import plain
from xcnn.kernels.cpu._vectors import DOUBLE

__all__ = ["convolve", "folded"]


@native("XxxXXfxxn")
def _fold(emit, bias, mean, var, weight, add, eps, scale, shift, channels):
    """Set scale and shift of each channel so that they add a bias and apply a batch norm; either may be None."""
    builder = emit.builder
    options = emit.optional(bias, 0.0), emit.optional(weight, 1.0), emit.optional(add, 0.0)
    root = emit.declared("llvm.sqrt.f64", ir.FunctionType(DOUBLE, [DOUBLE]))
    with Integer(builder, 0).up_to(channels) as o:

        def wide(pointer: Any, step: Any = 1, o: Integer = o) -> Any:
            number = builder.load((o * step).of(pointer))
            return number if emit.itemsize == 8 else builder.fpext(number, DOUBLE)

        plus, gamma, beta = (wide(*option) for option in options)
        factor = builder.fdiv(DOUBLE(1.0), builder.call(root, [builder.fadd(wide(var), eps)]))
        factor = builder.fmul(factor, gamma)
        centre = builder.fsub(plus, wide(mean))
        builder.store(emit.number(factor), o.of(scale))
        builder.store(emit.number(builder.fadd(builder.fmul(centre, factor), beta)), o.of(shift))


def folded(bias: np.ndarray | None, norm: tuple[Any, ...], dtype: Any) -> Any:
    """Return scale and shift of each channel that add a bias and apply a batch norm, (mean, var, weight, bias, eps)."""
    scale, shift = np.empty((2, norm[0].size), dtype)
    if _fold(dtype.itemsize)(bias, *norm, scale, shift, scale.size) is NotImplemented:
        _fold(dtype.itemsize)(*map(plain, (bias, *norm[:4])), norm[4], scale, shift, scale.size)
    return scale, shift


@native("nnnxxXXXffnxinnxx")
def convolve(
    emit, product, copy, write, x, w, scale, shift, residual, low, high, plain, y, tables, first, last, xs, ys
):
    """Do jobs first .. last - 1: y = clip(convolution * scale + shift + residual, low, high).

    Parameters
    ----------
    product, copy, write : addresses of `multiply`, `every` and `affine`.
    scale, shift : of each channel of y, or None for 1 and 0.
    residual : of the shape of y, or None.
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
    builder, zero, tables = emit.builder, Integer(emit.builder, 0), Integers(emit.builder, tables)
    shifts, several = emit.optional(shift, 0.0)
    plain = builder.trunc(plain, ir.IntType(1))
    channels, x_map, x_image, y_map, y_image, channel, cleared, pitch, w_row, width = tables.some(1, 10)
    *flags, stride, apart, units, stacks, copies, pieces, rows = tables.some(11, 10)
    in_place, direct, across = (flag.holds("!=", 0) for flag in flags)
    wide, begin, end = apart.holds("==", 1), Integer(builder, first), Integer(builder, last)
    source, results = builder.select(in_place, x, xs), builder.select(direct, y, ys)
    target, per_stack = builder.select(wide, y, ys), (stacks - units) // 11

    with begin.up_to(end) as job:
        part = job // per_stack
        x0, row, many, w0, fresh, copy0, copy1, piece0, piece1, fill0, fill1 = tables.some(
            units + (job - part * per_stack) * 11, 11
        )
        image, next_image = tables.some(stacks + part, 2)
        images, x0, to = next_image - image, image * x_image + x0, image * y_image + row * y_map
        fresh_ = builder.or_(fresh.holds("!=", 0), job.holds("==", begin))
        with builder.if_then(builder.and_(builder.not_(in_place), fresh_)):
            emit.fill(xs, cleared.value)
            with zero.up_to(channels) as c, zero.up_to(images) as i, copy0.up_to(copy1, 6) as k:
                from_, x_step, at, y_step, lines, length = tables.some(copies + k, 6)
                every.write(
                    emit, copy, x, x0 + i * x_image + c * x_map + from_, x_step, stride, xs,
                    at + i * pitch + c * channel, y_step, 1, lines, length,
                )  # fmt: skip
        some = many.if_(fill1.holds(">", fill0), 0)
        with zero.up_to(images) as i, zero.up_to(some) as c:
            value = emit.broadcast(((row + c) * several).of(shifts))
            emit.fill((to + i * y_image + c * y_map + fill0).of(y), (fill1 - fill0).value, value)
        with piece0.up_to(piece1, 5) as p:
            which, place, length, row0, row1 = tables.some(pieces + p, 5)
            pixels, columns = (tables.array(which * 2 + i) for i in (5, 6))
            at = (to + tables[rows + row0 + 2]).if_(direct, 0)
            multiply.write(
                emit, product, source, x0.if_(in_place, 0) + place, pixels.pointer, w, w0, w_row, columns.pointer,
                columns.size, results, at, width, many, length,
            )  # fmt: skip
            written = builder.not_(builder.and_(direct, plain))
            with builder.if_then(written), row0.up_to(row1, 6) as k:
                from_, from_step, to_, to_step, lines, length = tables.some(rows + k, 6)
                outer, outer_from, outer_to, inner, inner_from, inner_to = (
                    a.if_(across, b)
                    for a, b in (
                        (lines, many), (from_step, width), (to_step, y_map),
                        (many, lines), (width, from_step), (y_map, to_step),
                    )
                )  # fmt: skip
                with zero.up_to(images) as i, zero.up_to(outer) as c:
                    here = at + i * pitch + from_ + c * outer_from
                    there = to + i * y_image + to_ + c * outer_to
                    with builder.if_then(builder.or_(wide, builder.not_(plain))):
                        affine.write(
                            emit, write, results, here, inner_from, scale, shift,
                            row + zero.if_(across, c), flags[2], residual, low, high, target,
                            there.if_(wide, here), inner_to.if_(wide, inner_from), inner, length,
                        )  # fmt: skip
                    with builder.if_then(builder.not_(wide)):
                        every.write(
                            emit, copy, ys, here, inner_from, 1, y, there, inner_to, apart, inner, length,
                        )  # fmt: skip

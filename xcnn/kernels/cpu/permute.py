"""Copies with the axes in another order, of which tiles are transposed in registers."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._grids import steps_of
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._moves import FEW, copying
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import bound_only, share, supports

__all__ = ["joined", "pad", "permuted"]


_AT_ONCE = 8
"""Numbers of a line that are copied one by one in an iteration."""


@native("xxinn")
def _copy(emit, x, y, table, begin, end):
    """Set some matrices of y to those of x transposed.

    `table` (5, 3) has the size, the stride in x and the stride in y of each axis; the last two are those of a matrix.
    They have the strides 1 in x and in y respectively.
    """
    builder, lanes, zero, one = emit.builder, emit.lanes, Integer(emit.builder, 0), Integer(emit.builder, 1)
    table = Integers(builder, table)
    rows, columns, step, pitch = (table[i] for i in (9, 12, 13, 11))
    down, across = (size // lanes * lanes for size in (rows, columns))
    with Integer(builder, begin).up_to(end) as matrix:
        rest, source, target = matrix, zero, zero
        for axis in (2, 1, 0):
            size, stride, apart = table.some(3 * axis, 3)
            at = rest - rest // size * size
            rest, source, target = rest // size, source + at * stride, target + at * apart

        def line(start: Integer, end: Integer, from_: Integer, stride: Integer, to: Integer, apart: Integer) -> None:
            """Copy numbers from the first one of a line on, several at once."""
            whole = start + (end - start) // _AT_ONCE * _AT_ONCE
            for begin, stop, many in ((start, whole, _AT_ONCE), (whole, end, 1)):
                with begin.up_to(stop, many) as k:
                    places = (from_ + k * stride).of(x), (to + k * apart).of(y)
                    for t in range(many):
                        builder.store(builder.load((stride * t).of(places[0])), (apart * t).of(places[1]))

        with zero.up_to(down, lanes) as i, zero.up_to(across, lanes) as j:
            first, last = source + i + j * step, target + i * pitch + j
            square = [emit.load((first + step * k).of(x)) for k in range(lanes)]
            for k, row in enumerate(emit.transpose(square)):
                emit.store(row, (last + pitch * k).of(y))
        with builder.if_else(rows.holds("<", columns)) as (wide, high):
            with wide, zero.up_to(rows) as i:
                line(across.if_(i.holds("<", down), 0), columns, source + i, step, target + i * pitch, one)
            with high, zero.up_to(columns) as j:
                line(down.if_(j.holds("<", across), 0), rows, source + j * step, one, target + j, pitch)


@functools.lru_cache(maxsize=256)
def _table(shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray | None:
    """Return the table of `_copy`, or None if whole rows are copied or there are too many axes."""
    strides = steps_of(shape)
    axes: list[list[int]] = []  # of y: size, stride in x
    for axis in order:
        if shape[axis] == 1:
            continue
        if axes and axes[-1][1] == shape[axis] * strides[axis]:  # next to each other before and after
            axes[-1] = [axes[-1][0] * shape[axis], strides[axis]]
        else:
            axes.append([shape[axis], strides[axis]])
    if len(axes) < 2 or len(axes) > 5 or axes[-1][1] == 1:
        return None
    full = [[size, stride, math.prod(one for one, _ in axes[i + 1 :])] for i, (size, stride) in enumerate(axes)]
    row = next(axis for axis in full if axis[1] == 1)
    outer = [axis for axis in full[:-1] if axis is not row]
    return np.array([[1, 0, 0]] * (3 - len(outer)) + [*outer, row, full[-1]], np.int64)


def _bind(x: np.ndarray, order: tuple[int, ...], rows: bool = True) -> Any:
    """Bind `permuted` if the last axis changes, or, for `rows`, if there is little to copy."""
    table = _table(x.shape, order) if supports(x) else None
    shape, dtype, work = tuple([x.shape[axis] for axis in order]), x.dtype, 4 * x.size
    if table is not None:
        call, many = _copy(x.itemsize), math.prod(table[:3, 0].tolist())
        copy: Any = lambda x, y: share(call, work, x, y, table, n=many)  # noqa: E731
    else:
        steps, apart = steps_of(x.shape), steps_of(shape)
        few = rows and supports(x) and x.size <= FEW
        copy = copying(x.itemsize, shape, tuple([steps[axis] for axis in order]), apart) if few else None
    if copy is None:
        return NotImplemented

    def run(x: np.ndarray, *_: Any) -> Any:
        if not x.flags.c_contiguous:
            return NotImplemented
        copy(x, y := np.empty(shape, dtype))
        return y

    return run


@bound_only
def joined(dim: int, *xs: np.ndarray) -> Any:
    """Join arrays if there is little to copy."""
    dtype, shapes = xs[0].dtype, [x.shape for x in xs]
    shape = (*shapes[0][:dim], sum(one[dim] for one in shapes), *shapes[0][dim + 1 :])
    if not all(supports(x) and x.dtype == dtype for x in xs) or math.prod(shape) > FEW:
        return NotImplemented
    copies, steps, first = list[Any](), steps_of(shape), 0
    for one in shapes:
        copies.append(copying(dtype.itemsize, one, steps_of(one), steps, 0, first * steps[dim]))
        first += one[dim]
    if None in copies:
        return NotImplemented

    def run(dim: int, *xs: np.ndarray) -> Any:
        y = np.empty(shape, dtype)
        for copy, x in zip(copies, xs, strict=True):
            copy(np.ascontiguousarray(x), y)
        return y

    return run


@bound_only
def pad(x: np.ndarray, plan: tuple[Any, ...], value: float) -> Any:
    """Pad and crop axes; see `ops.pad`."""
    shape, inner, dtype, size = [*x.shape], [*x.shape], x.dtype, x.itemsize
    for dim, _, padded, ((kept, _), *_) in plan:
        shape[dim], inner[dim] = padded, kept.stop - kept.start
    count, width, steps, apart = math.prod(shape), shape[-1], steps_of(x.shape), steps_of(shape)
    if not supports(x) or count > FEW or 0 in inner:
        return NotImplemented
    starts = [(kept.start * steps[dim], place.start * apart[dim]) for dim, _, _, ((kept, place), *_) in plan]
    from_, to = map(sum, zip(*starts, strict=True))
    fill = copying(size, (count // width, width), (0, 1), (width, 1))
    move, borders, row = copying(size, tuple(inner), steps, apart, from_, to), list[Any](), np.full(width, value, dtype)
    for dim, _, _, ((kept, place), *copies) in plan:
        line = (*shape[: len(shape) + dim], 1, *shape[len(shape) + dim :][1:])
        for a, b in copies:
            start = a.start - kept.start + place.start
            borders.append(copying(size, line, apart, apart, start * apart[dim], b.start * apart[dim]))
    if fill is None or move is None or None in borders:
        return NotImplemented

    def run(x: np.ndarray, *_: Any) -> np.ndarray:
        fill(row, y := np.empty(shape, dtype))
        move(np.ascontiguousarray(x), y)
        for copy in borders:
            copy(y, y)
        return y

    return run


@kernel(np, _bind)
def permuted(x: np.ndarray, order: tuple[int, ...]) -> Any:
    """Return a contiguous copy; the gradient is another one, or a view."""
    run = _bind(x, order, rows=False)
    y = run if run is NotImplemented else run(x)
    if y is NotImplemented:
        return NotImplemented
    back = tuple([order.index(dim) for dim in range(len(order))])

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        found = permuted(dy, back) if needs[0] else (None,)
        return (dy.transpose(back),) if found is NotImplemented else found[:1]

    return y, backward

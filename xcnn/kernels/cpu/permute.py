"""Copies with the axes in another order, of which tiles are transposed in registers."""

import functools
import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import contiguous, share, supports
from xcnn.kernels.cpu._simd import BYTES, Emitter

__all__ = ["permuted"]


@intrinsic
def _transpose(_: Any, x: Any, x0: Any, x_step: Any, y: Any, y0: Any, y_step: Any) -> Any:
    """Set `y[y0 + i * y_step + j] = x[x0 + j * x_step + i]` for all i and j below the numbers of a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, x_step_, y_, y0_, y_step_ = arguments
        emit = Emitter(context, builder, x)
        source, target = emit.pointer(x, x_, x0_), emit.pointer(y, y_, y0_)
        square = emit.transpose([emit.load(emit.at(source, (i, x_step_))) for i in range(emit.lanes)])
        for i, row in enumerate(square):
            emit.store(row, emit.at(target, (i, y_step_)))
        return context.get_dummy_value()

    i = types.intp
    return types.void(x, i, i, y, i, i), generate


@compiled
def _copy(x, y, table, begin, end):
    """Set some matrices of y, which is flat, to those of x transposed.

    `table` (5, 3) has the size, the stride in x and the stride in y of each axis; the last two are those of a matrix.
    They have the strides 1 in x and in y respectively.
    """
    rows, columns, step, pitch = table[3, 0], table[4, 0], table[4, 1], table[3, 2]
    lanes = BYTES // y.itemsize
    for matrix in range(begin, end):
        rest, source, target = matrix, 0, 0
        for axis in (2, 1, 0):
            rest, at = rest // table[axis, 0], rest % table[axis, 0]
            source += at * table[axis, 1]
            target += at * table[axis, 2]
        across, down = columns - columns % lanes, rows - rows % lanes
        for i in range(0, down, lanes):
            for j in range(0, across, lanes):
                _transpose(x, source + i + j * step, step, y, target + i * pitch + j, pitch)
        if rows < columns:
            for i in range(rows):
                for j in range(across if i < down else 0, columns):
                    y[np.uintp(target + i * pitch + j)] = x[np.uintp(source + i + j * step)]
        else:
            for j in range(columns):
                for i in range(down if j < across else 0, rows):
                    y[np.uintp(target + i * pitch + j)] = x[np.uintp(source + i + j * step)]


@functools.lru_cache(maxsize=256)
def _table(shape: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray | None:
    """Return the table of `_copy`, or None if whole rows are copied or there are too many axes."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
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


@kernel(np)
def permuted(x: np.ndarray, order: tuple[int, ...]) -> Any:
    """Return a contiguous copy if the last axis changes."""
    if not supports(x) or not x.flags.c_contiguous:
        return NotImplemented
    table = _table(x.shape, order)
    if table is None:
        return NotImplemented
    y = np.empty([x.shape[axis] for axis in order], x.dtype)
    share(_copy, 4 * x.size, contiguous(x).reshape(-1), y.reshape(-1), table, n=math.prod(table[:3, 0].tolist()))
    return y

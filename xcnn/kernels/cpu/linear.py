"""Products of rows with a matrix: BLAS for the products, compiled code for bias, ReLU and gradients.

BLAS uses one thread. Large products are split into parts, each a product of its own. Products of a few rows with
a small matrix do not use BLAS, as preparing its calls takes longer than they do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._blas import one_blas_thread
from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._share import supports
from xcnn.kernels.cpu._sums import BLOCK, add_rows
from xcnn.threads import parallel, parts

__all__ = ["linear"]

_FLOPS_PER_MICROSECOND = 80_000
_LEAST_WIDTH = 64
"""Columns of a part: BLAS is slow on narrower matrices."""

_FEW_ROWS = 4
"""With at most this many images, memory bandwidth limits the weight gradient, and BLAS is ten times slower."""

_SMALL = 1 << 16
"""The largest number of weights for which products with few rows do not use BLAS."""


@summing
def _dots(x, weight, y):
    """Set y to x @ weight^T."""
    for n in range(y.shape[0]):
        for o in range(y.shape[1]):
            row, column, total = x[n], weight[o], y.dtype.type(0)
            for first in range(0, row.size, BLOCK):
                one, other, part = row[first : first + BLOCK], column[first : first + BLOCK], y.dtype.type(0)
                for i in range(one.size):
                    part += one[i] * other[i]
                total += part
            y[n, o] = total


@compiled
def _combine(dy, weight, dx):
    """Set dx to dy @ weight; the rows are added in blocks, as in `add_rows`."""
    outputs = weight.shape[0]
    step = max(1, int(math.sqrt(outputs)))
    part = np.empty_like(dx[0])
    for n in range(dx.shape[0]):
        total = dx[n]
        total[:] = 0
        for first in range(0, outputs, step):
            part[:] = 0
            for o in range(first, min(first + step, outputs)):
                value, row = dy[n, o], weight[o]
                for i in range(row.size):
                    part[i] += value * row[i]
            for i in range(part.size):
                total[i] += part[i]


@compiled
def _finish(y, bias, relu):
    """Add the bias to the rows of y and set negative numbers to 0 (ReLU), in place."""
    zero = y.dtype.type(0)
    for n in range(y.shape[0]):
        row = y[n]
        if bias.size:
            for o in range(row.size):
                row[o] += bias[o]
        if relu:
            for o in range(row.size):
                row[o] = zero if row[o] <= zero else row[o]


@compiled
def _masked(dy, y, target):
    """Set target to dy where y is not 0."""
    zero = dy.dtype.type(0)
    for n in range(dy.shape[0]):
        row, mask, source = target[n], y[n], dy[n]
        for o in range(row.size):
            row[o] = source[o] if mask[o] != zero else zero


@compiled
def _outer(dy, x, dweight):
    """Set dweight to dy^T @ x."""
    for o in range(dweight.shape[0]):
        row = dweight[o]
        value, source = dy[0, o], x[0]
        for i in range(row.size):
            row[i] = value * source[i]
        for n in range(1, dy.shape[0]):
            value, source = dy[n, o], x[n]
            for i in range(row.size):
                row[i] += value * source[i]


def _cut(width: int, flops: int, task: Callable[[slice], object]) -> None:
    """Call a task for all columns of its result, in parts if that is faster."""
    count = parts(width // _LEAST_WIDTH, flops / _FLOPS_PER_MICROSECOND)
    parallel(lambda part: task(slice(width * part // count, width * (part + 1) // count)), count)


@kernel(np)
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, activation: tuple[Any, ...] | None) -> Any:
    """Multiply, and apply bias and ReLU in place."""
    if not supports(x) or not weight.size or activation not in (None, ("relu",)):
        return NotImplemented
    (n, i), o, has_bias, relu = x.shape, weight.shape[0], bias is not None, activation is not None
    flops = 2 * n * i * o
    few = n <= _FEW_ROWS and weight.size <= _SMALL and weight.flags.c_contiguous
    result = np.empty((n, o), x.dtype)
    if few:
        _dots(np.ascontiguousarray(x), weight, result)
    else:
        with one_blas_thread:
            _cut(o, flops, lambda part: np.matmul(x, weight[part].T, out=result[:, part]))
    if has_bias or relu:
        _finish(result, np.empty(0, x.dtype) if bias is None else bias, relu)
    y = result if relu else None  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dy = np.ascontiguousarray(dy)
        if y is not None:
            masked = np.empty((n, o), x.dtype)
            _masked(dy, y, masked)
            dy = masked
        dx = np.empty((n, i), x.dtype) if needs[0] else None
        dweight = np.empty((o, i), x.dtype) if needs[1] else None
        dbias = None
        if dx is not None and few:
            _combine(dy, weight, dx)
        if dweight is not None and n <= _FEW_ROWS:
            _outer(dy, np.ascontiguousarray(x), dweight)
        if not few:
            with one_blas_thread:
                if dx is not None:
                    _cut(i, flops, lambda part: np.matmul(dy, weight[:, part], out=dx[:, part]))
                if dweight is not None and n > _FEW_ROWS:
                    _cut(i, flops, lambda part: np.matmul(dy.T, x[:, part], out=dweight[:, part]))
        if needs[2] and has_bias:
            dbias = np.empty(o, x.dtype)
            add_rows(dy, dbias)
        return dx, dweight, dbias

    return result, backward

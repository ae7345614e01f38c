"""Products of rows with a matrix, with bias, normalisation, residual and activation where they are written.

`_matrices.py` multiplies. With a few rows, the time is that of reading the weights, so these are read once, in order.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import summing
from xcnn.kernels.cpu._matrices import ONE, After, finish, matrix_product
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu.elementwise import clamp, gradient, in_place

__all__ = ["linear", "linear_inference", "matmul"]

_FEW_ROWS = 4
"""With at most this many images, y is computed by `_dots`."""

_SMALL = 1 << 16
"""The largest number of weights for which NumPy's product of a column and a row is as fast."""

_ONES = {dtype: np.ones(1, dtype) for dtype in map(np.dtype, ("float32", "float64"))}


@summing
def _dots(x, weight, y, scale, shift, residual, low, high, begin, end):
    """Set columns begin .. end - 1 of y to those of x @ weight^T, and apply what follows."""
    zero, outputs = y.dtype.type(0), weight.shape[0]
    for n in range(y.shape[0]):
        for o in range(begin, end):
            y[n, o] = zero
    for first in range(0, x.shape[1], BLOCK):
        last = min(x.shape[1], first + BLOCK)
        for o in range(begin, end, 4):
            left = min(4, end - o)
            # Rows that do not exist are the last one again.
            w0, w1, w2, w3 = (
                weight[o, first:last], weight[o + min(1, left - 1), first:last],
                weight[o + min(2, left - 1), first:last], weight[o + left - 1, first:last],
            )  # fmt: skip
            for n in range(y.shape[0]):
                row = x[n, first:last]
                a = b = c = d = zero
                for i in range(row.size):
                    a += row[i] * w0[i]
                    b += row[i] * w1[i]
                    c += row[i] * w2[i]
                    d += row[i] * w3[i]
                for q, total in enumerate((a, b, c, d)):
                    if q < left:
                        y[n, o + q] += total
    for n in range(y.shape[0]):
        at = n * outputs + begin
        finish(y, at, y, at, end - begin, False, True, scale, shift, begin, residual, low, high)


def _product(x: np.ndarray, weight: np.ndarray, after: After) -> np.ndarray:
    """Return x (n, i) @ weight^T and what follows, in an array (n, o)."""
    (n, i), o = x.shape, weight.shape[0]
    y = np.empty((n, o), x.dtype)
    if n <= _FEW_ROWS:
        arguments = np.ascontiguousarray(x), np.ascontiguousarray(weight), y, *after.arguments(x.dtype)
        share(_dots, weight.size, *arguments, n=o)
    else:
        matrix_product(x, (i, 1), weight, (1, i), y, (n, o, i), after=after)
    return y


@kernel(np)
def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, activation: tuple[Any, ...] | None) -> Any:
    """Multiply, and apply bias and activation in the same pass."""
    if not supports(x) or not weight.size:
        return NotImplemented
    interval, (n, i), o, has_bias = clamp(activation), x.shape, weight.shape[0], bias is not None
    result = _product(x, weight, After(shift=bias, interval=interval))
    if interval is None:
        in_place(activation, result, serial=False)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = dweight = dbias = None
        dy = np.ascontiguousarray(dy)
        if y is not None:
            source, dy = dy, np.empty((n, o), x.dtype)
            gradient(activation, y, source, dy, serial=False)
        if needs[0]:
            dx = np.empty((n, i), x.dtype)
            matrix_product(dy, (o, 1), weight, (i, 1), dx, (n, i, o))
        if needs[1] and n == 1 and weight.size <= _SMALL:
            dweight = np.multiply(dy.T, x)
        elif needs[1]:
            dweight = np.empty((o, i), x.dtype)
            matrix_product(dy, (1, o), x, (i, 1), dweight, (o, i, n))
        if needs[2] and has_bias and n == 1:
            dbias = dy[0].copy()
        elif needs[2] and has_bias:
            dbias = np.empty(o, x.dtype)
            matrix_product(_ONES[x.dtype], (0, 0), dy, (o, 1), dbias, (1, o, n))
        return dx, dweight, dbias

    return result, backward


@kernel(np)
def linear_inference(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    norm: tuple[Any, ...] | None,
    residual: np.ndarray | None,
    activation: tuple[Any, ...] | None,
) -> Any:
    """Multiply, and apply what follows where it is written."""
    if not supports(x) or not weight.size:
        return NotImplemented
    scale, shift, interval = None, bias, clamp(activation)
    if norm is not None:
        mean, var, gamma, beta, eps = norm
        scale = 1 / np.sqrt(var + np.asarray(eps, x.dtype))
        scale = scale if gamma is None else scale * gamma
        shift = (-mean if bias is None else bias - mean) * scale
        shift = shift if beta is None else shift + beta
    after = After(scale, shift, residual, interval)
    y = _product(x.reshape(-1, x.shape[-1]), weight, after)
    if interval is None:
        in_place(activation, y, serial=False)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _times(a: np.ndarray, b: np.ndarray, turned: tuple[bool, bool], shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return the product of stacks of matrices, or of their transposes, summed to a shape if one is given."""
    (ar, ac), (br, bc) = a.shape[-2:], b.shape[-2:]
    m, k, a_steps = (ac, ar, (1, ac)) if turned[0] else (ar, ac, (ac, 1))
    n, b_steps = (br, (1, bc)) if turned[1] else (bc, (bc, 1))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    c = np.empty((*batch, m, n), a.dtype)
    starts = ONE
    if batch:
        counts = [np.arange(math.prod(lead)).reshape(lead) for lead in (a.shape[:-2], b.shape[:-2], batch)]
        steps = zip(counts, (ar * ac, br * bc, m * n), strict=True)
        starts = np.stack([np.broadcast_to(count * step, batch).reshape(-1) for count, step in steps], 1)
    matrix_product(a, a_steps, b, b_steps, c, (m, n, k), starts)
    if not shape or shape == c.shape:
        return c
    before = c.ndim - len(shape)
    axes = [axis for axis in range(len(batch)) if axis < before or c.shape[axis] != shape[axis - before]]
    total: np.ndarray = np.sum(c, axis=tuple(axes)).reshape(shape)
    return total


@kernel(np)
def matmul(x: np.ndarray, other: np.ndarray) -> Any:
    """Multiply stacks of matrices."""
    if not supports(x) or not other.size:
        return NotImplemented
    y = _times(x, other, (False, False))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = _times(dy, other, (False, True), x.shape) if needs[0] else None
        return dx, _times(x, dy, (True, False), other.shape) if needs[1] else None

    return y, backward

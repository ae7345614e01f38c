"""Products of rows with a matrix, with bias, normalisation, residual and activation where they are written.

`_matrices.py` multiplies. With a few rows, the time is that of reading the weights, so these are read once, in order.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._convolve import folded
from xcnn.kernels.cpu._matrices import Product, Products, multiplied, table
from xcnn.kernels.cpu._share import binding, plain, supports, whole
from xcnn.kernels.cpu.elementwise import applying, clamp, sloping

__all__ = ["linear", "linear_inference", "matmul"]

_X, _WEIGHT, _Y, _DX, _DWEIGHT, _DBIAS, _ONES = range(7)

_FEW, _LEAST_BYTES = 64, 2000
"""The most products of a stack whose matrices may take less than so many bytes each: a row of a table takes 152."""


@functools.lru_cache(256)
def _forward(n: int, i: int, o: int, itemsize: int) -> Products:
    """Lay out y = x @ weight^T."""
    return table(itemsize, Product((_X, i, 1), (_WEIGHT, 1, i), _Y, n, o, i, bare=False))


@functools.lru_cache(256)
def _backward(n: int, i: int, o: int, itemsize: int, dx: bool, dweight: bool, dbias: bool) -> Products:
    """Lay out those gradients that are needed, dy being in the place of y."""
    wanted = (
        (dx, Product((_Y, o, 1), (_WEIGHT, i, 1), _DX, n, i, o)),
        (dweight, Product((_Y, 1, o), (_X, i, 1), _DWEIGHT, o, i, n)),
        (dbias, Product((_ONES, 0, 0), (_Y, o, 1), _DBIAS, 1, o, n)),
    )
    return table(itemsize, *(product for needed, product in wanted if needed))


@whole()
def linear(x: np.ndarray, weight: np.ndarray, bias: Any, activation: tuple[Any, ...] | None) -> Any:
    """Multiply, and apply bias and activation in the same pass; all gradients are another pass."""
    if not supports(x) or not weight.size:
        return NotImplemented
    shape, (o, i), dtype, size, interval = x.shape, weight.shape, x.dtype, x.itemsize, clamp(activation)
    n, y_shape = x.size // i, (*shape[:-1], o)
    products, slope = _forward(n, i, o, size), sloping(activation, size)
    apply = None if activation is None or interval else applying(activation, size)

    def run(x: np.ndarray, weight: np.ndarray, bias: Any, _: Any) -> Any:
        result, has_bias = np.empty(y_shape, dtype), bias is not None
        arrays, after = (x, weight, result, None, None, None), (None, bias, None)
        if multiplied(products, size, arrays, after, interval) is NotImplemented:
            return NotImplemented
        if apply is not None:
            apply(result, result, serial=False)
        y = None if slope is None else result  # backward keeps it

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            dx = np.empty(shape, dtype) if needs[0] else None
            dweight = np.empty((o, i), dtype) if needs[1] else None
            dbias = np.empty(o, dtype) if needs[2] and has_bias else None
            dy = plain(dy)
            if slope is not None:
                source, dy = dy, np.empty(dy.shape, dtype)
                slope(dy, y, source, serial=False)
            needed = dx is not None, dweight is not None, dbias is not None
            if True in needed:
                multiplied(_backward(n, i, o, size, *needed), size, (x, weight, dy, dx, dweight, dbias))
            return dx, dweight, dbias

        return result, backward

    return run


@binding
def linear_inference(x: np.ndarray, weight: np.ndarray, bias: Any, norm: Any, residual: Any, activation: Any) -> Any:
    """Multiply, and apply what follows where it is written."""
    if not supports(x) or not weight.size:
        return NotImplemented
    interval, shape, dtype, size = clamp(activation), (*x.shape[:-1], weight.shape[0]), x.dtype, x.itemsize
    products = _forward(math.prod(shape[:-1]), x.shape[-1], shape[-1], size)
    apply = None if activation is None or interval else applying(activation, size)

    def run(x: Any, weight: Any, bias: Any, norm: Any, residual: Any, _: Any) -> Any:
        y, after = np.empty(shape, dtype), (*((None, bias) if norm is None else folded(bias, norm, dtype)), residual)
        if multiplied(products, size, (x, weight, y, None, None, None), after, interval) is NotImplemented:
            return NotImplemented
        if apply is not None:
            apply(y, y, serial=False)
        return y

    return run


@functools.lru_cache(256)
def _pays(a: tuple[int, ...], b: tuple[int, ...], itemsize: int) -> bool:
    """Return whether the table of the products of stacks, which is kept, is small beside the matrices."""
    (m, k), n, count = a[-2:], b[-1], math.prod(np.broadcast_shapes(a[:-2], b[:-2]))
    return count <= _FEW or itemsize * (m * k + k * n + m * n) >= _LEAST_BYTES


@functools.lru_cache(64)
def _stack(a: tuple[int, ...], b: tuple[int, ...], turned: tuple[bool, bool], itemsize: int) -> tuple[Products, Any]:
    """Lay out the products of stacks of matrices, or of their transposes; return the shape of the result, too."""
    (ar, ac), (br, bc), batch = a[-2:], b[-2:], np.broadcast_shapes(a[:-2], b[:-2])
    m, k, a_steps = (ac, ar, (_X, 1, ac)) if turned[0] else (ar, ac, (_X, ac, 1))
    n, b_steps = (br, (_WEIGHT, 1, bc)) if turned[1] else (bc, (_WEIGHT, bc, 1))
    counts = [np.arange(math.prod(lead)).reshape(lead) for lead in (a[:-2], b[:-2], batch)]
    steps = zip(counts, (ar * ac, br * bc, m * n), strict=True)
    starts = [np.broadcast_to(count * step, batch).reshape(-1).tolist() for count, step in steps]
    one = Product(a_steps, b_steps, _Y, m, n, k)
    return table(itemsize, one, starts=[*zip(*starts, strict=True)] if batch else ()), (*batch, m, n)


def _times(a: np.ndarray, b: np.ndarray, turned: tuple[bool, bool], shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return the product of stacks of matrices, or of their transposes, summed to a shape if one is given."""
    products, full = _stack(a.shape, b.shape, turned, a.itemsize)
    c = np.empty(full, a.dtype)
    multiplied(products, a.itemsize, (a, b, c, None, None, None))
    if not shape or shape == full:
        return c
    before = c.ndim - len(shape)
    axes = [axis for axis in range(c.ndim - 2) if axis < before or c.shape[axis] != shape[axis - before]]
    total: np.ndarray = np.sum(c, axis=tuple(axes)).reshape(shape)
    return total


@kernel(np)
def matmul(x: np.ndarray, other: np.ndarray) -> Any:
    """Multiply stacks of matrices."""
    if not supports(x) or not other.size or not _pays(x.shape, other.shape, x.itemsize):
        return NotImplemented
    x, other = plain(x), plain(other)
    y = _times(x, other, (False, False))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dy = plain(dy)
        dx = _times(dy, other, (False, True), x.shape) if needs[0] else None
        return dx, _times(x, dy, (True, False), other.shape) if needs[1] else None

    return y, backward

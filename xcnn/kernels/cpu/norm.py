"""Batch normalisation: a pass for the mean, one for the variance, one that normalises; backward has two.

The sums that statistics and gradients come from are taken in float64, so one order is as good as another and they
become vector instructions. A channel's numbers are the rows x[n, c] (pixels); threads share the channels. Every pass
goes over the images first, as they lie in memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import share

__all__ = ["normalisation"]

_summing = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})


@_summing
def _sum(row):
    total = 0.0
    for i in range(row.size):
        total += row[i]
    return total


@_summing
def _squares(row, mean):
    total = 0.0
    for i in range(row.size):
        total += (row[i] - mean) ** 2
    return total


@_summing
def _products(row, mean, dy):
    """Give the sums of dy and of dy * (row - mean)."""
    total, product = 0.0, 0.0
    for i in range(row.size):
        total += dy[i]
        product += dy[i] * np.float64(row[i] - mean)
    return total, product


@compiled
def _normalise(x, weight, bias, eps, mean, var, rstd, given, y, begin, end):
    """Set some channels of y, and of the statistics unless they are given."""
    count = x.shape[0] * x.shape[2]
    if not given:
        totals, squares = np.zeros(end), np.zeros(end)
        for n in range(x.shape[0]):
            for c in range(begin, end):
                totals[c] += _sum(x[n, c])
        for n in range(x.shape[0]):
            for c in range(begin, end):
                squares[c] += _squares(x[n, c], totals[c] / count)
        for c in range(begin, end):
            mean[c], var[c] = totals[c] / count, squares[c] / count
    for c in range(begin, end):
        rstd[c] = 1.0 / np.sqrt(np.float64(var[c]) + eps)
    one = mean.dtype.type(1)
    for n in range(x.shape[0]):
        for c in range(begin, end):
            centre, shift = mean[c], bias[c] if bias.size else one * 0
            factor = rstd[c] * (weight[c] if weight.size else one)
            source, target = x[n, c], y[n, c]
            for i in range(source.size):
                target[i] = (source[i] - centre) * factor + shift


@compiled
def _gradients(x, dy, weight, mean, rstd, dx, dweight, dbias, constant, begin, end):
    """Set the gradients of some channels; those whose array is empty are not wanted.

    With f = rstd * weight, `dx = f * (dy - mean(dy) - (x - mean) * rstd^2 * mean(dy * (x - mean)))`, and `f * dy` where
    mean and rstd are constants.
    """
    count = x.shape[0] * x.shape[2]
    totals, products = np.zeros(end), np.zeros(end)
    if dweight.size or dbias.size or not constant:
        for n in range(x.shape[0]):
            for c in range(begin, end):
                total, product = _products(x[n, c], mean[c], dy[n, c])
                totals[c] += total
                products[c] += product
    for c in range(begin, end):
        if dweight.size:
            dweight[c] = products[c] * rstd[c]
        if dbias.size:
            dbias[c] = totals[c]
    if dx.size == 0:
        return
    one = mean.dtype.type(1)
    for n in range(x.shape[0]):
        for c in range(begin, end):
            factor, slope, shift = rstd[c] * (weight[c] if weight.size else one), one * 0, one * 0
            if not constant:
                slope += factor * rstd[c] * rstd[c] * (products[c] / count)
                shift += factor * (totals[c] / count)
            centre, source, gradient, target = mean[c], x[n, c], dy[n, c], dx[n, c]
            for i in range(source.size):
                target[i] = gradient[i] * factor - ((source[i] - centre) * slope + shift)


@kernel(np)
def normalisation(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    view: Any,
    given: tuple[np.ndarray, np.ndarray] | None = None,
) -> Any:
    """Normalise channels of several pixels over a batch; other groups are left to the portable code."""
    if view.axes != (0, 2) or view.shape[2] == 1 or x.dtype.itemsize not in (4, 8) or not x.size:
        return NotImplemented
    dtype, shape, c = x.dtype, view.shape, view.shape[1]
    none, has_bias, constant = np.empty(0, dtype), bias is not None, given is not None
    mean, var = (np.array(a) for a in given) if given else (np.empty(c, dtype), np.empty(c, dtype))
    rstd, y = np.empty(c, dtype), np.empty(x.shape, dtype)
    parameters = (none if a is None else np.ascontiguousarray(a) for a in (weight, bias))
    rows = np.ascontiguousarray(x).reshape(shape)
    share(_normalise, 6 * x.size, rows, *parameters, eps, mean, var, rstd, constant, y.reshape(shape), n=c)

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        wants = needs[0], needs[1] and weight is not None, needs[2] and has_bias
        sources = (np.ascontiguousarray(a).reshape(shape) for a in (x, dy))
        factor = np.empty(0, dtype) if weight is None else np.ascontiguousarray(weight)
        dx = np.empty(x.shape if wants[0] else 0, dtype)
        gradients = tuple(np.empty(c if want else 0, dtype) for want in wants[1:])
        rows = dx.reshape(shape) if wants[0] else dx.reshape(0, 0, 0)
        share(_gradients, 8 * x.size, *sources, factor, mean, rstd, rows, *gradients, constant, n=c)
        return tuple(array if want else None for array, want in zip((dx, *gradients), wants, strict=True))

    return y, backward, mean.reshape(view.weight), var.reshape(view.weight)

"""Batch normalisation: one pass for mean and variance and one that normalises; backward has two passes.

A channel's numbers are the rows x[n, c] (pixels). Sums of rows are taken in float64, so their order hardly matters
and they become vector instructions; a (n, c) table of them is added up after the pass. So threads share the images in
memory order, and no result depends on the number of threads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled, summing
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._sums import BLOCK, add_rows

__all__ = ["norm"]


@summing
def _sum(block):
    total = 0.0
    for i in range(block.size):
        total += block[i]
    return total


@summing
def _squares(block, mean):
    total = 0.0
    for i in range(block.size):
        total += (block[i] - mean) ** 2
    return total


@summing
def _products(block, mean, dy):
    """Return the sums of dy and of dy * (block - mean)."""
    total, product = 0.0, 0.0
    for i in range(block.size):
        total += dy[i]
        product += dy[i] * np.float64(block[i] - mean)
    return total, product


@compiled
def _moments(x, sums, begin, end):
    """Set sums[0] to the sums of some images' rows, and sums[1] to the sums of squares about the rows' own means."""
    for n in range(begin, end):
        for c in range(x.shape[1]):
            row, total, squares = x[n, c], 0.0, 0.0
            for first in range(0, row.size, BLOCK):
                total += _sum(row[first : first + BLOCK])
            for first in range(0, row.size, BLOCK):
                squares += _squares(row[first : first + BLOCK], total / row.size)
            sums[0, n, c], sums[1, n, c] = total, squares


@compiled
def _statistics(sums, pixels, mean, var):
    """Set mean and variance of each channel; sums[1] becomes the sums of squares about the channels' means."""
    count = sums.shape[1] * pixels
    totals, squares = np.empty(mean.size), np.empty(mean.size)
    add_rows(sums[0], totals)
    for n in range(sums.shape[1]):
        for c in range(mean.size):
            sums[1, n, c] += (sums[0, n, c] / pixels - totals[c] / count) ** 2 * pixels
    add_rows(sums[1], squares)
    for c in range(mean.size):
        mean[c], var[c] = totals[c] / count, squares[c] / count


@compiled
def _normalise(x, mean, rstd, weight, bias, y, begin, end):
    """Set some images of y."""
    one = mean.dtype.type(1)
    for n in range(begin, end):
        for c in range(x.shape[1]):
            centre, shift = mean[c], bias[c] if bias.size else one * 0
            factor = rstd[c] * (weight[c] if weight.size else one)
            source, target = x[n, c], y[n, c]
            for i in range(source.size):
                target[i] = (source[i] - centre) * factor + shift


@compiled
def _gradient_sums(x, dy, mean, sums, begin, end):
    """Set sums[0] to the sums of dy of some images' rows, and sums[1] to those of dy * (x - mean)."""
    for n in range(begin, end):
        for c in range(x.shape[1]):
            row, gradient, total, product = x[n, c], dy[n, c], 0.0, 0.0
            for first in range(0, row.size, BLOCK):
                one, other = _products(row[first : first + BLOCK], mean[c], gradient[first : first + BLOCK])
                total += one
                product += other
            sums[0, n, c], sums[1, n, c] = total, product


@compiled
def _input_gradient(x, dy, mean, rstd, weight, sums, dx, begin, end):
    """Set some images of dx from the sums (2, c) of dy and dy * (x - mean), empty if mean is a constant.

    With f = rstd * weight, `dx = f * (dy - mean(dy) - (x - mean) * rstd^2 * mean(dy * (x - mean)))`, else `f * dy`.
    """
    one = mean.dtype.type(1)
    count = x.shape[0] * x.shape[2]
    for n in range(begin, end):
        for c in range(x.shape[1]):
            factor, slope, shift = rstd[c] * (weight[c] if weight.size else one), one * 0, one * 0
            if sums.size:
                slope += factor * rstd[c] * rstd[c] * (sums[1, c] / count)
                shift += factor * (sums[0, c] / count)
            centre, source, gradient, target = mean[c], x[n, c], dy[n, c], dx[n, c]
            if sums.size:
                for i in range(source.size):
                    target[i] = gradient[i] * factor - ((source[i] - centre) * slope + shift)
            else:  # an infinite x must not affect it
                for i in range(source.size):
                    target[i] = gradient[i] * factor


@kernel(np)
def norm(
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    view: Any,
    given: tuple[np.ndarray, np.ndarray] | None = None,
    residual: np.ndarray | None = None,
    activation: tuple[Any, ...] | None = None,
) -> Any:
    """Normalise channels of several pixels over a batch; other groups are left to the portable code."""
    if view.axes != (0, 2) or view.shape[2] == 1 or not supports(x) or residual is not None or activation is not None:
        return NotImplemented
    dtype, shape, c = x.dtype, view.shape, view.shape[1]
    none, has_bias, constant = np.empty(0, dtype), bias is not None, given is not None
    rows = np.ascontiguousarray(x).reshape(shape)
    if given is None:
        mean, var, sums = np.empty(c, dtype), np.empty(c, dtype), np.empty((2, *shape[:2]))
        share(_moments, 4 * x.size, rows, sums)
        _statistics(sums, shape[2], mean, var)
    else:
        mean, var = map(np.array, given)
    rstd, y = 1.0 / np.sqrt(var + eps), np.empty(x.shape, dtype)
    parameters = (none if a is None else np.ascontiguousarray(a) for a in (weight, bias))
    share(_normalise, 2 * x.size, rows, mean, rstd, *parameters, y.reshape(shape))

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        rows, gradients = (np.ascontiguousarray(a).reshape(shape) for a in (x, dy))
        wants_weight, wants_bias = needs[1] and weight is not None, needs[2] and has_bias
        sums = np.empty((2, 0))
        if wants_weight or wants_bias or not constant:
            of_rows = np.empty((2, *shape[:2]))
            share(_gradient_sums, 4 * x.size, rows, gradients, mean, of_rows)
            sums = np.empty((2, shape[1]))
            for rows_sums, total in zip(of_rows, sums, strict=True):
                add_rows(rows_sums, total)
        dx = None
        if needs[0]:
            dx, factor = (
                np.empty(x.shape, dtype),
                np.empty(0, dtype) if weight is None else np.ascontiguousarray(weight),
            )
            used = np.empty((2, 0)) if constant else sums
            share(_input_gradient, 3 * x.size, rows, gradients, mean, rstd, factor, used, dx.reshape(shape))
        dweight = (sums[1] * rstd).astype(dtype) if wants_weight else None
        return dx, dweight, sums[0].astype(dtype) if wants_bias else None, None

    return y, backward, mean.reshape(view.weight), var.reshape(view.weight)

"""Normalisations of all kinds: a pass for mean and variance and one that normalises; backward has two passes as well.

The work is divided into units, each of which needs nothing of the others: the images' rows of a channel for batch norm,
a group of channels of an image or a vector of features for the others. Both passes of a unit follow each other, while
it is in the cache. A unit is a number of rows (`_normalise.py`). Maps of few pixels would make short rows; rather,
batch norm takes the pixels of several channels as columns of one row, the others all pixels of a group.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._loops import address
from xcnn.kernels.cpu._normalise import gradient_sums, input_gradient, moments, normalise, origin, where
from xcnn.kernels.cpu._scratch import scratch
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._simd import BYTES
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu.elementwise import clamp, gradient, in_place

__all__ = ["norm", "norm_inference"]

_DOUBLE = np.dtype(np.float64)

_LIMITED = ("relu", "relu6", "hardtanh")
"""Activations whose slope is 1 between two limits of y, and 0 elsewhere."""

_BATCH_VECTORS, _GROUP_VECTORS = 3, 8
"""The least vectors of a row of batch norm, and of a group norm; shorter ones are joined."""

_TERMS = 64
"""Rows whose columns are added in the arrays' dtype; these sums are added in float64."""

_TOGETHER = 64
"""The most units whose first pass is done before the second."""

_COLUMNS = 512
"""About how many columns a unit has."""


class _Layout(NamedTuple):
    """The units of a view. If they have `columns`, `pixels` of them share a mean.

    Unit u begins at element `u * unit` and has some `rows` of `row` numbers, `step` apart; nothing is beyond `end`. Its
    row j begins at parameter `u % period * of_unit + j * of_row`. There are as many `numbers` per mean. The `units` are
    done in `slots`; sums for dbias and dweight, one for each of the `parameters`, are `slot` apart. There are `repeats`
    of each parameter. The means have the shape `kept`. A pass over so many units that are done `together` follows the
    other, and reads them in the order of memory. `sizes` has the first 17 of these for compiled code.
    """

    unit: int
    rows: int
    step: int
    row: int
    end: int
    together: int
    period: int
    of_unit: int
    of_row: int
    pixels: int
    columns: int
    wide: int
    numbers: int
    units: int
    slots: int
    slot: int
    parameters: int
    repeats: int
    kept: tuple[int, ...]
    sizes: np.ndarray = np.empty(0, np.int64)


@functools.lru_cache(maxsize=256)
def _layout(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> _Layout:
    layout = _units(shape, axes, itemsize)
    return layout._replace(sizes=np.array(layout[:17], np.int64))


def _units(shape: tuple[int, ...], axes: tuple[int, ...], itemsize: int) -> _Layout:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if axes == (0, 2):
        n, c, p = shape
        if p * itemsize >= _BATCH_VECTORS * BYTES:
            return _Layout(p, n, c * p, p, c * p, _TOGETHER, c, 1, 0, p, 0, 0, n * p, c, c, 0, c, 1, kept)
        row = min(max(_COLUMNS // p, 1), c) * p
        units = -(-c * p // row)
        return _Layout(row, n, c * p, row, c * p, 1, units, 0, 0, p, 1, 1, n * p, units, units, 0, c, 1, kept)
    n, g, s, p = shape if len(shape) == 4 else (shape[0], 1, shape[1], 1)
    units, end, c = n * g, math.prod(shape), g * s
    slots = math.isqrt(units)  # sums of sums (see `_sums.py`)
    if p * itemsize >= _GROUP_VECTORS * BYTES:
        return _Layout(s * p, s, p, p, end, 1, g, s, 1, 1, 0, 0, s * p, units, slots, 2 * c, c, 1, kept)
    slots = min(slots, max(2, n // 8))  # more would take as much memory as x
    size, together = s * p, min(_TOGETHER, 1 + 4096 // (s * p))
    return _Layout(
        size, 1, 0, size, end, together, g, size, 0, 1, 0, 1, size, units, slots, 2 * c * p, c * p, p, kept
    )  # fmt: skip


@compiled
def _forward(
    x, residual, y, adds, weight, bias, mean, var, rstd, sums, table, given, eps, low, high, sizes, first_unit,
    last_unit,
):  # fmt: skip
    """Set y, and mean, variance (unless they are `given`) and rstd, of some units."""
    unit, rows, step, row, end, together = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    pixels, columns, wide, count, size = sizes[9], sizes[10], sizes[11], sizes[12], mean.itemsize
    width = row if columns else together
    to_sums, to_table = where(sums), where(table)
    each, part = width // pixels if columns else 1, 1.0 / count
    for block in range(first_unit, last_unit, together):
        until = min(block + together, last_unit)
        if not given:
            for i in range(2 * width):
                sums[i] = 0.0
            for j in range(rows):
                for u in range(block, until):
                    base = u * unit
                    length = min(row, end - base)
                    for first in range(0, length, BLOCK):
                        at, shift = base + j * step + first, base + columns * first
                        target = to_sums + (u - block + columns * first) * 8
                        moments(
                            mean, x + at * size, x + shift * size, columns, target, target + width * 8,
                            min(BLOCK, length - first),
                        )  # fmt: skip
        for u in range(block, until):
            base = u * unit
            groups, across = (min(row, end - base) // pixels, pixels) if columns else (1, 1)
            for c in range(groups):
                k, at = u * each + c, u - block + c * across
                if not given:
                    start = origin(mean, x + (base + c * across) * size)
                    total, squares = 0.0, 0.0
                    for i in range(across):  # sums about one origin instead of one for each
                        d = origin(mean, x + (base + c * across + i) * size) - start
                        total += sums[at + i] + rows * d
                        squares += sums[width + at + i] + d * (2.0 * sums[at + i] + rows * d)
                    average = total * part
                    mean[k] = start + average
                    variance = (squares - total * average) * part
                    var[k] = 0.0 if variance < 0.0 else variance
                rstd[k] = 1.0 / math.sqrt(var[k] + eps)
                if columns:
                    centre, factor, shift = mean[k], rstd[k] * weight[k], bias[k]
                    for i in range(c * pixels, (c + 1) * pixels):
                        table[i] = centre
                        table[width + i] = factor
                        table[2 * width + i] = shift
        means, scales, shifts = where(mean), where(weight), where(bias)
        if columns:
            means, scales, shifts = to_table, to_table + width * size, to_table + 2 * width * size
        normalise(
            mean, x, residual, y, adds, means, columns, where(rstd), scales, shifts, wide, low, high, where(sizes),
            block, until,
        )  # fmt: skip


@compiled
def _backward(
    x, dy, y, dresidual, dx, weight, mean, rstd, shared, of_columns, table, constant, sums, writes, gradient, low, high,
    sizes, first_slot, last_slot,
):  # fmt: skip
    """Do some slots: the `sums` of gradients, and dresidual if it `writes`, then dx if there is a `gradient`.

    `shared` (slots, 2, parameters), zeros at first, becomes the sums of dbias and dweight.
    """
    unit, rows, step, row, end, together = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    period, of_unit, of_row, pixels, columns, wide = sizes[6], sizes[7], sizes[8], sizes[9], sizes[10], sizes[11]
    count, units, slots, slot, parameters = sizes[12], sizes[13], sizes[14], sizes[15], sizes[16]
    size = mean.itemsize
    width = row if columns else together
    each, part = width // pixels if columns else 1, 1.0 / count
    to_table, to_shared, of_row_at = where(table), where(shared), 2 * width
    to_columns = to_table + 4 * width * size
    many = 1 if slot else last_slot - first_slot
    for s in range(first_slot, last_slot, many):
        last_unit = (s + many) * units // slots
        for block in range(s * units // slots, last_unit, together):
            until = min(block + together, last_unit)
            turn_of_block = block % period
            groups = min(row, end - block * unit) // pixels if columns else 1
            for i in range(2 * width):
                of_columns[i] = 0.0
                table[4 * width + i] = 0.0
            means, factor, scales = where(mean), np.float64(1.0), where(weight)
            if columns:
                means, scales = to_table, to_table + 3 * width * size
                for c in range(groups):
                    centre, scale = mean[block * each + c], rstd[block * each + c] * weight[block * each + c]
                    for i in range(c * pixels, (c + 1) * pixels):
                        table[i] = centre
                        table[3 * width + i] = scale
            if sums:
                for j in range(rows):
                    turn = turn_of_block
                    for u in range(block, until):
                        at, weights = (u * unit + j * step) * size, turn * of_unit + j * of_row
                        turn = turn + 1 if turn + 1 < period else 0
                        of, length = s * slot + weights, min(row, end - u * unit)
                        biases, products = to_shared + of * size, to_shared + (parameters + of) * size
                        mean_at = means
                        if columns:
                            biases, products = to_columns, to_columns + width * size
                        else:
                            mean_at, factor = means + u * size, np.float64(rstd[u])
                        of_columns[of_row_at] = of_columns[of_row_at + 1] = 0.0
                        for first in range(0, length, BLOCK):
                            skip, here = wide * first * size, at + first * size
                            gradient_sums(
                                mean, x + here, dy + here, y + here, dresidual + here, writes,
                                mean_at + columns * first * size, columns, factor, scales + weights * size + skip, wide,
                                low, high, where(of_columns) + of_row_at * 8, biases + skip, products + skip,
                                min(BLOCK, length - first),
                            )  # fmt: skip
                        if not columns:
                            total, product, scale = of_columns[of_row_at], of_columns[of_row_at + 1], np.float64(1.0)
                            if not wide:
                                scale = np.float64(weight[weights])
                                shared[of] += total
                                shared[parameters + of] += product * factor
                            of_columns[u - block] += total * scale
                            of_columns[width + u - block] += product * scale
                    if columns and (j == rows - 1 or j % _TERMS == _TERMS - 1):
                        for i in range(2 * width):
                            of_columns[i] += table[4 * width + i]
                            table[4 * width + i] = 0.0
            for c in range(groups if columns else until - block):
                k, at, across = block * each + c, c * pixels if columns else c, pixels if columns else 1
                inverse = np.float64(rstd[k])
                total, product = 0.0, 0.0
                for i in range(at, at + across):
                    total += of_columns[i]
                    product += of_columns[width + i]
                if columns:
                    shared[k], shared[parameters + k] = total, product * inverse
                    total, product = total * weight[k], product * weight[k]
                shift, slope = total * inverse * part, product * inverse * inverse * inverse * part
                for i in range(at, at + across):
                    table[width + i] = shift
                    table[2 * width + i] = slope
            if gradient:
                terms = to_table + width * size
                input_gradient(
                    mean, x, dy, y, dx, constant, means, terms, terms + width * size, columns, where(rstd), scales,
                    wide, low, high, where(sizes), block, until,
                )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _ones(count: int, value: int, dtype: np.dtype) -> np.ndarray:
    return np.full(count, value, dtype)


def _parameter(array: np.ndarray | None, layout: _Layout, default: int, dtype: np.dtype) -> np.ndarray:
    """Return the weight or bias as compiled code takes it."""
    if array is None:
        return _ones(layout.parameters, default, dtype)
    array = array.reshape(-1)
    if layout.repeats > 1:
        return np.repeat(array, layout.repeats)
    return array if array.flags.carray else array.copy()


def _run(
    x: np.ndarray, weight: Any, bias: Any, eps: float, layout: _Layout, mean: np.ndarray, var: np.ndarray, given: bool,
    residual: np.ndarray | None, activation: tuple[Any, ...] | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return y and rstd; set mean and variance unless they are given."""
    dtype, limits = x.dtype, clamp(activation)
    low, high = limits or (-math.inf, math.inf)
    source, y, rstd = np.ascontiguousarray(x), np.empty(x.shape, dtype), np.empty(mean.shape, dtype)
    addend = source if residual is None else np.ascontiguousarray(residual)
    width = layout.row if layout.columns else layout.together
    arrays = (
        address(source), address(addend), address(y), int(residual is not None), _parameter(weight, layout, 1, dtype),
        _parameter(bias, layout, 0, dtype), mean, var, rstd,
    )  # fmt: skip

    def units(first: int, last: int) -> None:
        room = scratch(0, "sums of norms", 2 * width, _DOUBLE), scratch(0, "columns of norms", 3 * width, dtype)
        _forward(*arrays, *room, int(given), eps, low, high, layout.sizes, first, last)

    share(units, 3 * x.size, n=layout.units)
    if limits is None:
        flat = y.reshape(-1)
        share(lambda begin, end: in_place(activation, flat[begin:end]), 4 * x.size, n=x.size)
    return y, rstd


def _masked(dy: np.ndarray, y: np.ndarray, activation: tuple[Any, ...]) -> np.ndarray:
    """Return the gradient before an activation."""
    dx, kept, dy = np.empty(y.shape, y.dtype), y.reshape(-1), dy.reshape(-1)
    flat = dx.reshape(-1)
    share(lambda i, j: gradient(activation, kept[i:j], dy[i:j], flat[i:j]), 5 * y.size, n=y.size)
    return dx


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
    """Normalise, and return the gradients."""
    axes, shape, dtype, constant = view.axes, x.shape, x.dtype, given is not None
    if axes not in ((0, 2), (2, 3), (1,)) or not supports(x):
        return NotImplemented
    layout = _layout(view.shape, axes, dtype.itemsize)
    bias_shape, has_residual = None if bias is None else bias.shape, residual is not None
    if given is None:
        count = math.prod(layout.kept)
        mean, var = np.empty(count, dtype), np.empty(count, dtype)
    else:
        mean, var = map(np.array, given)
    result, rstd = _run(x, weight, bias, eps, layout, mean, var, constant, residual, activation)
    y = None if activation is None else result  # backward keeps it

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        dx = dresidual = dweight = dbias = None
        layout = _layout(view.shape, axes, dtype.itemsize)
        source, above = np.ascontiguousarray(x), np.ascontiguousarray(dy)
        limited, low, high = above, math.nan, math.nan
        if y is not None and activation is not None:
            if activation[0] in _LIMITED:
                limited, (low, high) = y, clamp(activation) or (low, high)
                high = math.nan if activation[0] == "relu" else high  # an infinite y has a slope
            else:
                above = limited = dy = _masked(above, y, activation)
        wants_weight, wants_bias = needs[1] and weight is not None, needs[2] and bias_shape is not None
        writes = needs[3] and has_residual and limited is not above
        if needs[3] and has_residual:
            dresidual = np.empty(shape, dtype) if writes else dy
        sums = writes or wants_weight or wants_bias or (needs[0] and not constant)
        if needs[0]:
            dx = np.empty(shape, dtype)
        shared = np.zeros((layout.slots if layout.slot else 1, 2, layout.parameters), dtype)
        width = layout.row if layout.columns else layout.together
        arrays = (
            address(source), address(above), address(limited), address(source if dresidual is None else dresidual),
            address(source if dx is None else dx), _parameter(weight, layout, 1, dtype), mean, rstd, shared.reshape(-1),
        )  # fmt: skip
        flags = int(constant), int(sums), int(writes), int(needs[0]), low, high

        def slots(first: int, last: int) -> None:
            room = scratch(0, "sums of norms", 2 * width + 2, _DOUBLE), scratch(0, "columns of norms", 6 * width, dtype)
            _backward(*arrays, *room, *flags, layout.sizes, first, last)

        share(slots, 5 * x.size, n=layout.slots)
        total = shared[0] if len(shared) == 1 else shared.sum(axis=0, dtype=np.float64)
        if layout.repeats > 1:
            total = total.reshape(2, -1, layout.repeats).sum(axis=2)
        if weight is not None and needs[1]:
            dweight = total[1].astype(dtype).reshape(weight.shape)
        if wants_bias:
            dbias = total[0].astype(dtype).reshape(bias_shape)
        return dx, dweight, dbias, dresidual

    return result, backward, mean.reshape(layout.kept), var.reshape(layout.kept)


@kernel(np)
def norm_inference(
    x: np.ndarray,
    norm: tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, float],
    residual: np.ndarray | None = None,
    activation: tuple[Any, ...] | None = None,
) -> Any:
    """Normalise by running statistics."""
    if not supports(x):
        return NotImplemented
    mean, var, weight, bias, eps = norm
    layout = _layout((*x.shape[:2], math.prod(x.shape[2:])), (0, 2), x.dtype.itemsize)
    mean, var = _parameter(mean, layout, 0, x.dtype), _parameter(var, layout, 0, x.dtype)
    return _run(x, weight, bias, eps, layout, mean, var, True, residual, activation)[0]

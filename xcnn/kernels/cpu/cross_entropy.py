"""Cross entropy of rows of logits with class indices, in one call each way.

Forward keeps the softmax and the labels, so that backward needs no exponentials. Weights, smoothing, other shapes and
all errors are left to the portable code.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._functions import Functions
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._simd import Emitter
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._vectors import INT, LANE
from xcnn.threads import parallel, parts

__all__ = ["cross_entropy"]

_NUMBERS_PER_MICROSECOND = 1500

_ROWS = 128
"""Losses per block of their sum."""


def _joined(
    emit: Functions, length: Any, value: Callable[[Any, Any], Any], join: Callable[[Any, Any], Any], least: Any
) -> Any:
    """Return what `join` makes of the numbers of `value(index, mask)`, which are `least` beyond the end."""

    def some(places: Any, mask: Any, values: Sequence[Any]) -> list[Any]:
        found = value(places[0], mask)
        return [join(values[0], found if mask is None else emit.where(mask, found, least))]

    (joined,) = emit.span(INT(0), length, [least], some)
    return emit.builder.extract_element(emit.folded(joined, join), LANE(0))


@intrinsic
def _largest(_: Any, x: Any, x0: Any, length: Any) -> Any:
    """Return the largest of some numbers of x, NaN if there is one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, x0_, length_ = arguments
        at, emit = Emitter(context, builder, x), Functions(builder, x.dtype.bitwidth // 8)
        begin, least = at.pointer(x, x_, x0_), emit.constant(-math.inf)
        return _joined(emit, length_, lambda j, mask: emit.read(begin, j, mask), emit.maximum, least)

    return x.dtype(x, types.intp, types.intp), generate


@intrinsic
def _exponentials(_: Any, x: Any, y: Any, x0: Any, length: Any, largest: Any) -> Any:
    """Set y to the exponentials of x less a number, in some places; return their sum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_, y_, x0_, length_, largest_ = arguments
        at, emit = Emitter(context, builder, x), Functions(builder, x.dtype.bitwidth // 8)
        begin, end, limit = at.pointer(x, x_, x0_), at.pointer(y, y_, x0_), emit.spread(largest_)

        def powers(j: Any, mask: Any) -> Any:
            result = emit.exp(emit.subtract(emit.read(begin, j, mask), limit))
            emit.write(result, end, j, mask)
            return result

        return _joined(emit, length_, powers, emit.add, emit.constant(0.0))

    return x.dtype(x, y, types.intp, types.intp, x.dtype), generate


@compiled
def _forward(x, target, ignored, p, begin, end):
    """Set p to the softmax of x; return the summed loss and the number of rows, -1 if a label is out of range."""
    rows, loss, block, classes = 0, 0.0, 0.0, x.shape[1]
    for n in range(begin, end):
        label = target[n]
        if label != ignored and (label < 0 or label >= classes):
            return 0.0, -1
        largest, mass, row = _largest(x, n * classes, classes), x.dtype.type(0), p[n]
        for first in range(0, classes, BLOCK):
            at = n * classes + first
            mass += _exponentials(x, p, at, min(BLOCK, classes - first), largest)
        for c in range(classes):
            row[c] /= mass
        if label != ignored:
            block += math.log(mass) - (x[n, label] - largest)
            rows += 1
        if n % _ROWS == _ROWS - 1:
            loss, block = loss + block, 0.0
    return loss + block, rows


@compiled
def _backward(p, target, ignored, factor, dx, begin, end):
    """Set dx to `factor * (p - one-hot label)`."""
    for n in range(begin, end):
        row, gradient, label = p[n], dx[n], target[n]
        if label == ignored:
            for c in range(row.size):
                gradient[c] = row[c] * 0  # NaN propagates
            continue
        for c in range(row.size):
            gradient[c] = row[c] * factor
        gradient[label] = (row[label] - row.dtype.type(1)) * factor


@kernel(np)
def cross_entropy(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    by_labels: bool,
) -> Any:
    """Compute the cross entropy of rows of logits with class indices."""
    if not by_labels or weight is not None or smoothing or reduction == "none" or x.ndim != 2:
        return NotImplemented
    if not supports(x) or target.dtype == np.uint64:
        return NotImplemented
    p = np.empty(x.shape, x.dtype)
    target = np.array(target, np.int64)  # a copy: the caller may change the labels before backward
    x, pieces = np.ascontiguousarray(x), parts(len(x), x.size / _NUMBERS_PER_MICROSECOND)
    if pieces == 1:
        total, rows = _forward(x, target, ignore_index, p, 0, len(x))
        wrong = rows < 0
    else:
        results = [(0.0, 0)] * pieces

        def some(part: int) -> None:
            begin, end = len(x) * part // pieces, len(x) * (part + 1) // pieces
            results[part] = _forward(x, target, ignore_index, p, begin, end)

        parallel(some, pieces)
        total, rows = map(sum, zip(*results, strict=True))
        wrong = any(rows < 0 for _, rows in results)
    if wrong:
        return NotImplemented
    count = rows if reduction == "mean" else 1
    loss = total / count if count else math.nan

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return None, None, None
        dx = np.empty(p.shape, p.dtype)
        factor = p.dtype.type(float(dy) / (count or 1))
        share(_backward, 2 * p.size, p, target, ignore_index, factor, dx)
        return dx, None, None

    return x.dtype.type(loss), backward

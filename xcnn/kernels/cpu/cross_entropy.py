"""Cross entropy of rows of logits with class indices, in one call each way.

Forward keeps the softmax and the labels, so that backward needs no exponentials. Weights, smoothing, other shapes and
all errors are left to the portable code.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import supports

__all__ = ["cross_entropy"]

_MOST = 1 << 14
"""The largest size of x; above it, NumPy's vectorised exponentials are faster."""

_BLOCK = 128
"""Terms per block of a sum: the square root of the largest number of terms."""


@compiled
def _forward(x, target, ignored, p):
    """Set p to the softmax of x; return the summed loss and the number of rows, -1 if a label is out of range."""
    rows, loss, block = 0, 0.0, 0.0
    for n in range(x.shape[0]):
        scores, row, label = x[n], p[n], target[n]
        if label != ignored and (label < 0 or label >= scores.size):
            return 0.0, -1
        largest = scores[0]
        for c in range(scores.size):
            largest = scores[c] if scores[c] > largest or scores[c] != scores[c] else largest
        mass = x.dtype.type(0)
        for first in range(0, scores.size, _BLOCK):
            part = x.dtype.type(0)
            for c in range(first, min(first + _BLOCK, scores.size)):
                row[c] = math.exp(scores[c] - largest)
                part += row[c]
            mass += part
        for c in range(scores.size):
            row[c] /= mass
        if label != ignored:
            block += math.log(mass) - (scores[label] - largest)
            rows += 1
        if n % _BLOCK == _BLOCK - 1:
            loss, block = loss + block, 0.0
    return loss + block, rows


@compiled
def _backward(p, target, ignored, factor, dx):
    """Set dx to `factor * (p - one-hot label)`."""
    for n in range(p.shape[0]):
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
    if not supports(x) or x.size > _MOST or target.dtype == np.uint64:
        return NotImplemented
    p = np.empty(x.shape, x.dtype)
    target = np.array(target, np.int64)  # a copy: the caller may change the labels before backward
    total, rows = _forward(np.ascontiguousarray(x), target, ignore_index, p)
    if rows < 0:
        return NotImplemented
    count = rows if reduction == "mean" else 1
    loss = total / count if count else math.nan

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return None, None, None
        dx = np.empty(p.shape, p.dtype)
        _backward(p, target, ignore_index, p.dtype.type(float(dy) / (count or 1)), dx)
        return dx, None, None

    return x.dtype.type(loss), backward

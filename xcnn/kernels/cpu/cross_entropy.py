"""Cross entropy of rows of logits with class indices, in one call each way.

Forward keeps the softmax and the labels, so that backward needs no exponentials. Weights, smoothing, other shapes and
all errors are left to the portable code.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import share, supports
from xcnn.kernels.cpu._vectors import DOUBLE, INT, LANE, counted
from xcnn.kernels.cpu.softmax import Axis, soften
from xcnn.threads import parallel, parts

__all__ = ["cross_entropy"]

_NUMBERS_PER_MICROSECOND, _UINT64 = 1500, np.dtype(np.uint64)

_ROWS = 128
"""Losses per block of their sum."""


@native("n:xxidnnnnn")
def _forward(emit, p, x, labels, losses, classes, ignored, part, begin, end):
    """Set p to the softmax of x; store the summed loss, return the number of rows, -1 if a label is out of range."""
    builder, one = emit.builder, INT(1)

    def row(i: Any, carried: Any) -> list[Any]:
        total, block, rows, wrong = carried
        ps, xs = (builder.gep(pointer, [builder.mul(i, classes)]) for pointer in (p, x))
        (largest,), (mass,) = soften(Axis(emit, classes, one), ps, xs, None)
        label = builder.load(builder.gep(labels, [i]))
        counts = builder.icmp_signed("!=", label, ignored)
        within = builder.icmp_unsigned("<", label, classes)  # negative ones are enormous
        place = builder.select(builder.and_(counts, within), label, INT(0))
        below = builder.fsub(builder.load(builder.gep(xs, [place])), builder.extract_element(largest, LANE(0)))
        lost = builder.fsub(builder.extract_element(emit.log(mass), LANE(0)), below)
        lost = lost if lost.type == DOUBLE else builder.fpext(lost, DOUBLE)
        block = builder.fadd(block, builder.select(counts, lost, DOUBLE(0.0)))
        full = builder.icmp_signed("==", builder.urem(i, INT(_ROWS)), INT(_ROWS - 1))
        return [
            builder.select(full, builder.fadd(total, block), total),
            builder.select(full, DOUBLE(0.0), block),
            builder.add(rows, builder.zext(counts, INT)),
            builder.or_(wrong, builder.and_(counts, builder.not_(within))),
        ]

    start = [DOUBLE(0.0), DOUBLE(0.0), INT(0), ir.IntType(1)(0)]
    total, block, rows, wrong = counted(builder, begin, end, one, start, row)
    builder.store(builder.fadd(total, block), builder.gep(losses, [part]))
    builder.ret(builder.select(wrong, INT(-1), rows))


@native("xxifnnnn")
def _backward(emit, dx, p, labels, factor, classes, ignored, begin, end):
    """Set dx to `factor * (p - one-hot label)`, or `0 * p` in ignored rows: NaN propagates."""
    builder, number = emit.builder, emit.number(factor)

    def row(i: Any, _: Any) -> list[Any]:
        dxs, ps = (builder.gep(pointer, [builder.mul(i, classes)]) for pointer in (dx, p))
        label = builder.load(builder.gep(labels, [i]))
        counts = builder.icmp_signed("!=", label, ignored)
        by = emit.spread(builder.select(counts, number, number.type(0.0)))
        axis = Axis(emit, classes, INT(1))
        axis.set(dxs, lambda _, index, mask: emit.multiply(emit.read(ps, index, mask), by))
        with builder.if_then(counts):
            less = builder.fsub(builder.load(builder.gep(ps, [label])), number.type(1.0))
            builder.store(builder.fmul(less, number), builder.gep(dxs, [label]))
        return []

    counted(builder, begin, end, INT(1), [], row)


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
    if not supports(x) or target.dtype == _UINT64:
        return NotImplemented
    (n, classes), dtype = x.shape, x.dtype
    p, x = np.empty((n, classes), dtype), np.ascontiguousarray(x)
    target = np.array(target, np.int64)  # a copy: the caller may change the labels before backward
    pieces = parts(n, x.size / _NUMBERS_PER_MICROSECOND)
    losses, call, arrays = np.empty(pieces), _forward(x.itemsize), (p, x, target)
    if pieces == 1:
        rows = call(*arrays, losses, classes, ignore_index, 0, 0, n)
        total, wrong = float(losses[0]), rows < 0
    else:
        counts = [0] * pieces

        def some(part: int) -> None:
            ends = n * part // pieces, n * (part + 1) // pieces
            counts[part] = call(*arrays, losses, classes, ignore_index, part, *ends)

        parallel(some, pieces)
        total, rows, wrong = sum(losses.tolist()), sum(counts), min(counts) < 0
    if wrong:
        return NotImplemented
    count = rows if reduction == "mean" else 1
    loss = total / count if count else math.nan

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        if not needs[0]:
            return None, None, None
        dx, factor = np.empty((n, classes), dtype), float(dy) / (count or 1)
        share(_backward(p.itemsize), 2 * p.size, dx, p, target, factor, classes, ignore_index, n=n)
        return dx, None, None

    return dtype.type(loss), backward

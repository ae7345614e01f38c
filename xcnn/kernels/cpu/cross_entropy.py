"""Cross entropy of logits with class indices, in one call each way.

Forward keeps the softmax and the labels, so that backward needs no exponentials. Weights, smoothing and all errors are
left to the portable code. With x as (examples, classes, pixels), the passes are those of softmax.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from xcnn.kernels.cpu._native import native
from xcnn.kernels.cpu._share import share, supports, whole
from xcnn.kernels.cpu._vectors import DOUBLE, INT, counted
from xcnn.kernels.cpu.softmax import Axis, examples, shared, soften
from xcnn.threads import parallel, parts

__all__ = ["cross_entropy"]

_NUMBERS_PER_MICROSECOND, _UINT64 = 1500, np.dtype(np.uint64)

_ROWS = 128
"""Losses per block of their sum."""


def _lanes(axis: Axis, end: Any, values: Sequence[Any], body: Callable[..., Sequence[Any]]) -> Sequence[Any]:
    """Write a loop over the pixels of each vector: `body(k, lane, pixel, values)`."""
    builder, lanes = axis.emit.builder, INT(axis.emit.lanes)
    for k, place in enumerate(axis.places or [INT(0)]):
        left = builder.sub(end, place)
        count = builder.select(builder.icmp_signed("<", left, lanes), left, lanes)

        def one(lane: Any, values: Sequence[Any], k: int = k, place: Any = place) -> Sequence[Any]:
            return body(k, lane, builder.add(place, lane), values)

        values = counted(builder, INT(0), count, INT(1), values, one)
    return values


@functools.cache
def _forward(itemsize: int, rows: bool) -> Any:
    """Compile: set p to the softmax of x; store the summed loss, return the count of rows, -1 for a wrong label."""

    def write(emit: Any, p: Any, x: Any, labels: Any, losses: Any, ignored: Any, part: Any, *sizes: Any) -> None:
        builder, (classes, pixels, *_, end) = emit.builder, sizes

        def group(axis: Axis, start: Any, place: Any, values: Sequence[Any]) -> Sequence[Any]:
            ps, xs = (builder.gep(pointer, [place]) for pointer in (p, x))
            largest, masses = soften(axis, ps, xs, None)
            logarithms = [emit.log(mass) for mass in masses]

            def pixel(k: int, lane: Any, pixel: Any, carried: Sequence[Any]) -> Sequence[Any]:
                (total, block, count, wrong), row = carried, builder.add(start, pixel)
                label = builder.load(builder.gep(labels, [row]))
                counts = builder.icmp_signed("!=", label, ignored)
                within = builder.icmp_unsigned("<", label, classes)  # negative ones are enormous
                known = builder.select(builder.and_(counts, within), label, INT(0))
                at = builder.add(builder.mul(known, pixels), pixel)
                below = builder.fsub(builder.load(builder.gep(xs, [at])), builder.extract_element(largest[k], lane))
                lost = builder.fsub(builder.extract_element(logarithms[k], lane), below)
                lost = lost if lost.type == DOUBLE else builder.fpext(lost, DOUBLE)
                block = builder.fadd(block, builder.select(counts, lost, DOUBLE(0.0)))
                full = builder.icmp_signed("==", builder.urem(row, INT(_ROWS)), INT(_ROWS - 1))
                return [
                    builder.select(full, builder.fadd(total, block), total),
                    builder.select(full, DOUBLE(0.0), block),
                    builder.add(count, builder.zext(counts, INT)),
                    builder.or_(wrong, builder.and_(counts, builder.not_(within))),
                ]

            return _lanes(axis, end, values, pixel)

        values = [DOUBLE(0.0), DOUBLE(0.0), INT(0), ir.IntType(1)(0)]
        total, block, count, wrong = examples(emit, rows, sizes, values, group)
        builder.store(builder.fadd(total, block), builder.gep(losses, [part]))
        builder.ret(builder.select(wrong, INT(-1), count))

    return native("n:xxidnnnnnnnn")(write)(itemsize)


@functools.cache
def _backward(itemsize: int, rows: bool) -> Any:
    """Compile: set dx to `factor * (p - one-hot label)`, or `0 * p` in ignored rows: NaN propagates."""

    def write(emit: Any, dx: Any, p: Any, labels: Any, factor: Any, ignored: Any, *sizes: Any) -> None:
        builder, number, (_, pixels, *_, end) = emit.builder, emit.number(factor), sizes

        def group(axis: Axis, start: Any, place: Any, _: Any) -> Sequence[Any]:
            dxs, ps = (builder.gep(pointer, [place]) for pointer in (dx, p))
            of = builder.gep(labels, [start])
            found = [emit.read(of, one, axis.mask) for one in axis.places] or [emit.spread(builder.load(of))]
            counts = [builder.icmp_signed("!=", one, emit.spread(ignored)) for one in found]
            by = [emit.where(one, emit.spread(number), emit.constant(0.0)) for one in counts]
            axis.set(dxs, lambda k, index, mask: emit.multiply(emit.read(ps, index, mask), by[k]))

            def pixel(_k: int, _lane: Any, pixel: Any, _: Any) -> Sequence[Any]:
                label = builder.load(builder.gep(of, [pixel]))
                with builder.if_then(builder.icmp_signed("!=", label, ignored)):
                    at = builder.add(builder.mul(label, pixels), pixel)
                    less = builder.fsub(builder.load(builder.gep(ps, [at])), number.type(1.0))
                    builder.store(builder.fmul(less, number), builder.gep(dxs, [at]))
                return []

            return _lanes(axis, end, [], pixel)

        examples(emit, rows, sizes, [], group)

    return native("xxifnnnnnnn")(write)(itemsize)


@whole()
def cross_entropy(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    by_labels: bool,
) -> Any:
    """Compute the cross entropy of logits with class indices."""
    if not by_labels or weight is not None or smoothing or reduction == "none":
        return NotImplemented
    if not supports(x) or target.dtype == _UINT64:
        return NotImplemented
    axis, dtype, shape, size = min(1, x.ndim - 1), x.dtype, x.shape, x.size
    sizes = classes, pixels = shape[axis], math.prod(shape[axis + 1 :])
    n, ends = shared(size // (classes * pixels), pixels, x.itemsize)
    pieces, mean = parts(n, size / _NUMBERS_PER_MICROSECOND), reduction == "mean"
    call, back = (way(x.itemsize, pixels == 1) for way in (_forward, _backward))

    def run(x: np.ndarray, target: np.ndarray, *_: Any) -> Any:
        p, x = np.empty(shape, dtype), np.ascontiguousarray(x)
        target = np.array(target, np.int64, order="C")  # a copy: the caller may change the labels before backward
        losses, counts = np.empty(pieces), [0] * pieces

        def some(part: int) -> None:
            begin, end = n * part // pieces, n * (part + 1) // pieces
            counts[part] = call(p, x, target, losses, ignore_index, part, *sizes, *ends(begin, end))

        parallel(some, pieces)
        if min(counts) < 0:
            return NotImplemented
        count = sum(counts) if mean else 1
        loss = sum(losses.tolist()) / count if count else math.nan

        def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
            if not needs[0]:
                return None, None, None
            dx, factor = np.empty(shape, dtype), float(dy) / (count or 1)
            share(lambda *some: back(dx, p, target, factor, ignore_index, *sizes, *ends(*some)), 2 * size, n=n)
            return dx, None, None

        return dtype.type(loss), backward

    return run

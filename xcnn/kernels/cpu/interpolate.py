"""Interpolation map by map: along one axis after the other, while a map is in the cache."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xcnn._dispatch import kernel
from xcnn._taps import tables
from xcnn.kernels.cpu._compile import compiled
from xcnn.kernels.cpu._share import contiguous, share, supports

__all__ = ["interpolate"]

_OUTER, _SIZE, _INNER, _OUTS, _TERMS, _TABLE, _ROW, _EQUAL, _PAIRS = range(9)
"""The columns of `passes`: x (outer, size, inner) becomes sums (outer, outs, inner) of up to so many terms; where its
part of the tables begins, and that of the numbers of terms; whether each sum has all its terms, and whether each pixel
becomes a pair, or each pair a pixel."""


@compiled
def _mix(x, y, a, indices, weights, counts):
    """Add the terms along one axis of a map."""
    size, inner, outs, terms = a[_SIZE], a[_INNER], a[_OUTS], a[_TERMS]
    for i in range(a[_OUTER]):
        if inner == 1:
            source, target = x[i * size : (i + 1) * size], y[i * outs : (i + 1) * outs]
            # Forward, each pixel has as many terms, of which there are one or two.
            if a[_PAIRS] and terms == 1:
                for k in range(size):
                    target[2 * k] = source[k]
                    target[2 * k + 1] = source[k]
            elif a[_PAIRS]:
                for o in range(outs):
                    target[o] = source[2 * o] + source[2 * o + 1]
            elif a[_EQUAL] and terms == 1:
                for o in range(outs):
                    target[o] = source[np.uintp(indices[o])] * weights[o]
            elif a[_EQUAL] and terms == 2:
                for o in range(outs):
                    value = source[np.uintp(indices[2 * o])] * weights[2 * o]
                    target[o] = value + source[np.uintp(indices[2 * o + 1])] * weights[2 * o + 1]
            else:
                for o in range(outs):
                    value = y.dtype.type(0)
                    for t in range(o * terms, o * terms + counts[o]):
                        value += source[np.uintp(indices[t])] * weights[t]
                    target[o] = value
        else:
            for o in range(outs):
                target = y[(i * outs + o) * inner : (i * outs + o + 1) * inner]
                if counts[o] == 0:
                    for k in range(inner):
                        target[k] = 0
                for t in range(o * terms, o * terms + counts[o]):
                    at, weight = (i * size + indices[t]) * inner, weights[t]
                    source = x[at : at + inner]
                    if t == o * terms:
                        for k in range(inner):
                            target[k] = source[k] * weight
                    else:
                        for k in range(inner):
                            target[k] += source[k] * weight


@compiled
def _resize(x, y, passes, room, indices, weights, counts, begin, end):
    """Resize maps of x (maps, pixels), with `room` for the pixels between two passes."""
    one, other = np.empty(room, x.dtype), np.empty(room, x.dtype)
    last = passes.shape[0] - 1
    for p in range(begin, end):
        source = x[p]
        for s in range(last + 1):
            target = y[p] if s == last else one
            a = passes[s]
            _mix(source, target, a, indices[a[_TABLE] :], weights[a[_TABLE] :], counts[a[_ROW] :])
            source, one, other = target, other, one


@functools.lru_cache(maxsize=64)
def _passes(plan: tuple[Any, ...], sizes: tuple[int, ...], back: bool, dtype: Any) -> Any:
    """Return the tables of all passes over maps of these sizes, and the sizes of the results."""
    parts: list[tuple[np.ndarray, ...]] = []
    passes, current, room = [], list(sizes), 0
    for dim, arguments in plan if back else reversed(plan):
        indices, weights = tables(*arguments)[back]
        terms, outs = indices.shape
        counts = (weights != 0).sum(axis=0) if back else np.full(outs, terms)
        outer, inner = math.prod(current[:dim]), math.prod(current[dim:][1:])
        at, row = (sum(part[kind].size for part in parts) for kind in (0, 2))
        equal = (counts == terms).all()
        pair = np.arange(2 * min(current[dim], outs)) // (2 if outs > current[dim] else 1)
        pairs = (
            equal and np.all(weights == 1.0) and np.array_equal(indices.T.ravel(), pair) and terms * outs == pair.size
        )
        passes.append((outer, current[dim], inner, outs, terms, at, row, equal, pairs))
        parts.append((indices.T.ravel(), weights.T.ravel(), counts))
        current[dim] = outs
        room = max(room, math.prod(current))
    indices, weights, counts = (np.concatenate(kind) for kind in zip(*parts, strict=True))
    both = np.array(passes, np.int64), room, indices.astype(np.int64), weights.astype(dtype), counts.astype(np.int64)
    return both, tuple(current)


@kernel(np)
def interpolate(x: np.ndarray, plan: tuple[Any, ...]) -> Any:
    """Resize axes by the taps of `tables(*arguments)`."""
    if not supports(x):
        return NotImplemented

    def resize(x: np.ndarray, back: bool) -> np.ndarray:
        lead, sizes = x.shape[:2], x.shape[2:]
        passes, outs = _passes(plan, sizes, back, x.dtype)
        y = np.empty((*lead, *outs), x.dtype)
        maps = math.prod(lead)
        share(_resize, 4 * (x.size + y.size), contiguous(x).reshape(maps, -1), y.reshape(maps, -1), *passes)
        return y

    def backward(dy: np.ndarray, needs: Sequence[bool]) -> tuple[Any, ...]:
        return (resize(dy, True) if needs[0] else None,)

    return resize(x, False), backward

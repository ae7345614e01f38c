"""Runs compiled loops over arrays of different shapes that broadcast with each other, and over sums of their results.

The axes of all arrays are merged as far as possible, to at most three: rows, counted by two axes, of adjacent numbers.
In a row an array has adjacent numbers too, or a single one. The gradient of an array that was broadcast is a sum over
rows, over the numbers of each row, or both, which is made in the same pass.

Work is cut into parts, and sums into blocks, by shapes alone.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xcnn.kernels.cpu._loops import COLUMN, EACH, ROW, Loop, address, traced
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.threads import parallel, parts

__all__ = ["Space", "kinds", "prepared", "run", "space"]

_NUMBERS_PER_MICROSECOND = 4000
"""Speed of a thread that mostly reads and writes."""

Space = tuple[tuple[int, int, int], tuple[tuple[int, int, int], ...]]
"""The sizes of the three axes, and for each array, how many elements it moves along each."""


@functools.lru_cache(1024)
def space(shape: tuple[int, ...], *shapes: tuple[int, ...]) -> Space | None:
    """Return the axes of contiguous arrays whose shapes broadcast to `shape`, or None if there are more than three."""
    steps = []
    for one in shapes:
        padded, step, moves = (1,) * (len(shape) - len(one)) + one, 1, []
        for size in reversed(padded):
            moves.append(0 if size == 1 else step)
            step *= size
        steps.append(moves[::-1])
    axes: list[tuple[int, list[int]]] = []
    for size, moves in zip(shape, map(list, zip(*steps, strict=True)), strict=True):
        if size == 1:
            continue
        if axes and all(a == b * size for a, b in zip(axes[-1][1], moves, strict=True)):
            axes[-1] = axes[-1][0] * size, moves
        else:
            axes.append((size, moves))
    if len(axes) > 3:
        return None
    axes = [(1, [0] * len(shapes))] * (3 - len(axes)) + axes
    a, b, c = (size for size, _ in axes)
    return (a, b, c), tuple((p, q, r) for p, q, r in zip(*(moves for _, moves in axes), strict=True))


def kinds(axes: Space) -> tuple[tuple[str, ...], tuple[bool, ...]] | None:
    """Return what is done with each array as a result, and whether it has many numbers in a row.

    Sums of columns are made group by group; None if the place of one depends on the row.
    """
    (outer, middle, inner), steps = axes
    whats, many = [], []
    for a, b, c in steps:
        full = (a or outer == 1) and (b or middle == 1)
        many.append(c == 1 or inner == 1)
        whats.append(ROW if not many[-1] else EACH if full else COLUMN)
        if whats[-1] == COLUMN and b:
            return None
    return tuple(whats), tuple(many)


@functools.lru_cache(1024)
def prepared(
    function: Callable[..., Any],
    key: Any,
    choices: tuple[Any, ...],
    itemsize: int,
    shape: tuple[int, ...],
    outs: tuple[tuple[int, ...], ...],
    arrays: tuple[tuple[int, ...], ...],
) -> tuple[Loop, Space, tuple[str, ...]] | None:
    """Return a loop for arrays of these shapes, their axes, and what is done with results; None if there is none.

    Parameters
    ----------
    function, key, choices, itemsize : as for `traced`.
    shape, outs, arrays : the shapes of the computation, of its results, which are sums if they are smaller, and of the
        arrays.
    """
    axes = space(shape, *outs, *arrays)
    found = None if axes is None else kinds(axes)
    if axes is None or found is None:
        return None
    (outer, middle, n), _ = axes
    whats, many = found[0][: len(outs)], found[1][len(outs) :]
    if ROW in whats and COLUMN in whats:
        return None
    vectors = -(-n * itemsize // BYTES)
    at_once = 4 if vectors >= 16 else max(k for k in (1, 2, 4) if vectors % k == 0)  # so that few are left
    loop = traced(function, key, whats, many, choices, itemsize, outer * middle > 1, at_once)
    return None if loop is None else (loop, axes, whats)


def run(
    loop: Loop,
    axes: Space,
    whats: Sequence[str],
    results: Sequence[np.ndarray],
    arrays: Sequence[np.ndarray],
    numbers: Sequence[float],
) -> None:
    """Run a loop, in several threads if that is faster.

    Parameters
    ----------
    axes : those of the results and the arrays, in this order.
    whats : what the loop does with each result; not both sums of rows and of columns.
    results, arrays : C-contiguous arrays of one dtype.
    numbers : the parameters of the loop.
    """
    (outer, middle, n), steps = axes
    rows, column = outer * middle, COLUMN in whats
    # The parts of a sum must not depend on what else is computed in the same pass.
    moved = rows * n * (8 if column or ROW in whats else len(steps) + loop.cost // (2 * loop.lanes))
    count = parts(n if rows == 1 else middle if column else rows, moved / _NUMBERS_PER_MICROSECOND)
    if count == 1 and rows == 1 and ROW not in whats:  # the most frequent case, and the fastest
        loop.call(*[address(array) for array in (*results, *arrays)], n, *numbers)
        return
    if column:  # each part has sums of its own
        most = max(result.size for result, what in zip(results, whats, strict=True) if what == COLUMN)
        count = max(1, min(count, rows * n // (4 * most)))
    sums: list[Any] = [
        None if what == EACH else np.zeros((count, rows if what == ROW else result.size))
        for result, what in zip(results, whats, strict=True)
    ]
    starts = [address(array) for array in (*results, *arrays)]
    size = results[0].itemsize
    moves = [move for a, b, _ in steps for move in (a, b)]
    for k, what in enumerate(whats):
        if what == ROW:
            moves[2 * k : 2 * k + 2] = middle, 1

    def piece(number: int) -> None:
        """Compute a piece of the only row."""
        first, end = n * number // count, n * (number + 1) // count
        places = [start + first * size * step for start, (_, _, step) in zip(starts, steps, strict=True)]
        loop.call(*_with_sums(places, sums, number), end - first, *numbers)

    def share(number: int) -> None:
        """Compute some rows."""
        begin, end = rows * number // count, rows * (number + 1) // count
        loop.call(*_with_sums(starts, sums, number), middle, begin, end, *moves, n, *numbers)

    def columns(number: int) -> None:
        """Compute some rows of each group, in blocks that have sums of their own."""
        begin, end = middle * number // count, middle * (number + 1) // count
        block = middle if size == 4 else max(64, math.isqrt(middle))  # float64 sums of float32 are exact enough
        for group in range(outer):
            for first in range(begin, end, block):
                part: list[Any] = [total if total is None else np.zeros((1, total.shape[1])) for total in sums]
                places = [
                    start + group * a * (size if k >= len(part) or part[k] is None else 8)
                    for k, (start, (a, _, _)) in enumerate(zip(_with_sums(starts, part, 0), steps, strict=True))
                ]
                loop.call(*places, middle, first, min(first + block, end), *moves, n, *numbers)
                for total, one in zip(sums, part, strict=True):
                    if total is not None:
                        total[number] += one[0]

    task = piece if rows == 1 else columns if column else share
    if count == 1:
        task(0)
    else:
        parallel(task, count)
    for result, what, total, (a, b, _) in zip(results, whats, sums, steps, strict=False):
        if total is not None:
            whole = total.sum(axis=0)
            if what == ROW:
                whole = whole.reshape(outer, middle)[None].sum(axis=(0, *(1,) * (a == 0), *(2,) * (b == 0)))
            result[...] = whole.reshape(result.shape)


def _with_sums(starts: Sequence[int], sums: Sequence[Any], number: int) -> list[int]:
    """Return addresses, those of a part's sums in the place of the results that are sums."""
    of_sums = [start if total is None else address(total[number]) for start, total in zip(starts, sums, strict=False)]
    return [*of_sums, *starts[len(sums) :]]

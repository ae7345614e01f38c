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

from xcnn.kernels.cpu._loops import COLUMN, EACH, ROW, Loop, traced
from xcnn.kernels.cpu._native import address
from xcnn.kernels.cpu._share import NUMBERS_PER_MICROSECOND
from xcnn.kernels.cpu._vectors import BYTES
from xcnn.threads import parallel, parts

__all__ = ["Pass", "Space", "kinds", "prepared", "space"]

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


class Pass:
    """A loop over arrays of some shapes: a function of the results, the arrays, and the loop's numbers.

    The arrays are C-contiguous and of one dtype. It runs in several threads if that is faster.
    """

    def __init__(
        self, loop: Loop, axes: Space, whats: Sequence[str], outs: Sequence[tuple[int, ...]], size: int
    ) -> None:
        (outer, middle, n), steps = self.axes = axes
        self.loop, self.whats, self.size = loop, whats, size
        rows, column = outer * middle, COLUMN in whats
        # The parts of a sum must not depend on what else is computed in the same pass.
        moved = rows * n * (8 if column or ROW in whats else len(steps) + loop.cost)
        count = parts(n if rows == 1 else middle if column else rows, moved / NUMBERS_PER_MICROSECOND)
        sizes = [math.prod(out) for out in outs]
        if column:  # each part has sums of its own
            most = max(size for size, what in zip(sizes, whats, strict=True) if what == COLUMN)
            count = max(1, min(count, rows * n // (4 * most)))
        self.count = count
        self.sums = [
            None if what == EACH else (count, rows if what == ROW else size)
            for size, what in zip(sizes, whats, strict=True)
        ]
        moves = [move for a, b, _ in steps for move in (a, b)]
        for k, what in enumerate(whats):
            if what == ROW:
                moves[2 * k : 2 * k + 2] = middle, 1
        self.ends = (*moves, n)
        self.whole = (n,) if rows == 1 else (middle, 0, rows, *moves, n)
        self.plain = count == 1 and not any(self.sums)
        self.run = self._piece if rows == 1 else self._columns if column else self._rows

    def __call__(self, results: Sequence[np.ndarray], arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> None:
        if self.plain:  # the most frequent case
            self.loop.call(*results, *arrays, *self.whole, *numbers)
            return
        starts = [address(array) for array in (*results, *arrays)]
        sums = [None if shape is None else np.zeros(shape) for shape in self.sums]
        parallel(functools.partial(self.run, starts, sums, numbers), self.count)
        (outer, middle, _), steps = self.axes
        for result, what, total, (a, b, _) in zip(results, self.whats, sums, steps, strict=False):
            if total is not None:
                whole = total[0] if self.count == 1 else total.sum(axis=0)
                if what == ROW and (a == 0 or b == 0):
                    whole = whole.reshape(outer, middle).sum(axis=(*(0,) * (a == 0), *(1,) * (b == 0)))
                result[...] = whole.reshape(result.shape)

    def _piece(self, starts: Sequence[int], sums: list[Any], numbers: Sequence[float], number: int) -> None:
        """Compute a piece of the only row."""
        n = self.axes[0][2]
        first, end = n * number // self.count, n * (number + 1) // self.count
        places = [start + first * self.size * step for start, (_, _, step) in zip(starts, self.axes[1], strict=True)]
        self.loop.call(*_with_sums(places, sums, number), end - first, *numbers)

    def _rows(self, starts: Sequence[int], sums: list[Any], numbers: Sequence[float], number: int) -> None:
        """Compute some rows."""
        outer, middle, _ = self.axes[0]
        begin, end = (outer * middle * k // self.count for k in (number, number + 1))
        self.loop.call(*_with_sums(starts, sums, number), middle, begin, end, *self.ends, *numbers)

    def _columns(self, starts: Sequence[int], sums: list[Any], numbers: Sequence[float], number: int) -> None:
        """Compute some rows of each group, in blocks that have sums of their own."""
        (outer, middle, _), steps = self.axes
        begin, end = middle * number // self.count, middle * (number + 1) // self.count
        # float64 sums of float32 are exact enough
        block = middle if self.size == 4 else max(64, math.isqrt(middle))
        for group in range(outer):
            for first in range(begin, end, block):
                part: list[Any] = [total if total is None else np.zeros((1, total.shape[1])) for total in sums]
                places = [
                    start + group * a * (self.size if k >= len(part) or part[k] is None else 8)
                    for k, (start, (a, _, _)) in enumerate(zip(_with_sums(starts, part, 0), steps, strict=True))
                ]
                self.loop.call(*places, middle, first, min(first + block, end), *self.ends, *numbers)
                for total, one in zip(sums, part, strict=True):
                    if total is not None:
                        total[number] += one[0]


def _with_sums(starts: Sequence[int], sums: Sequence[Any], number: int) -> list[int]:
    """Return addresses, those of a part's sums in the place of the results that are sums."""
    of_sums = [start if total is None else address(total[number]) for start, total in zip(starts, sums, strict=False)]
    return [*of_sums, *starts[len(sums) :]]


@functools.lru_cache(1024)
def prepared(
    function: Callable[..., Any],
    key: Any,
    choices: tuple[Any, ...],
    itemsize: int,
    shape: tuple[int, ...],
    outs: tuple[tuple[int, ...], ...],
    arrays: tuple[tuple[int, ...], ...],
) -> Pass | None:
    """Return a pass over arrays of these shapes, or None if there is none.

    Parameters
    ----------
    function, key, choices, itemsize : as for `traced`.
    shape, outs, arrays : the shapes of the computation, of its results, which are sums if they are smaller, and of the
        arrays. Sums are either of rows or of columns.
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
    return None if loop is None else Pass(loop, axes, whats, outs, itemsize)

"""Inference of a graph: a program for each shape (`_program.py`), on pieces of the batch.

If a layer gets another option or parameter, or is watched, the programs are made again.

A batch is cut into pieces of a few images, if all ops compute images apart, so that what one layer writes is still in
the cache when the next one reads it. Threads take piece after piece. The cuts depend on shapes alone.

A program that has run often is recorded by kernels that can do that: one call repeats all that it computes.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from xcnn._array import is_array, namespace_of
from xcnn._dispatch import body
from xcnn.devices import on_host
from xcnn.errors import XcnnError
from xcnn.nn._plan import LITTLE, OFTEN, Joined, Plan, like, recorded
from xcnn.nn._program import Changed, Cost, Program, prepared
from xcnn.threads import get_num_threads

__all__ = ["each", "infer"]


def infer(plan: Plan, x: Any) -> Any:
    """Return the output of a graph for x in inference mode, or NotImplemented if its layers must be called.

    That is so if x is not what the graph takes, and if a layer refuses its input; the layers then say so.
    """
    several = not isinstance(plan.inputs, str)
    arrays = x if several else (x,)
    if several and not (type(x) is tuple and len(x) == len(plan.inputs)):
        return NotImplemented
    if not all(is_array(one) and 0 not in one.shape for one in arrays):
        return NotImplemented
    joined, held = plan.current(sure=False)
    key = like(x), get_num_threads()
    found = joined.programs.get(key)
    if type(found) is Program and (y := _repeated(found, x, held, joined)) is not NotImplemented:
        return y
    if joined.reshaped():
        joined, held = plan.current()
        found = joined.programs.get(key)
    try:
        if found is not None:
            return found(x, held)
        program, y = (None if several else _pieces(joined, x, held)) or prepared(joined, x, held)
        joined.keep(key, program)
    except Changed:
        joined.keep(key, lambda x, held: NotImplemented)
        return NotImplemented
    except XcnnError:  # also of a module that refuses some numbers
        return NotImplemented
    return y


def _repeated(program: Program, x: Any, held: list[Any], joined: Joined) -> Any:
    """Return what a program would if it is recorded, which it is after many runs; else NotImplemented."""
    program.runs += 1
    if program.runs == OFTEN and program.recordable and program.nbytes <= LITTLE:
        program.record = recorded(namespace_of(x), program, x, held, 1.0)
        if program.record is not None:
            joined.keep_record(program)
    record = program.record  # which another thread may drop
    return NotImplemented if record is None else record(x, held)


def _pieces(joined: Joined, x: Any, held: list[Any]) -> tuple[Any, Any] | None:
    """Return what runs a batch in pieces, and the output; None if it cannot be cut or need not be."""
    n = x.shape[0] if x.shape else 0
    if n < 2 or not joined.apart or not on_host(x):
        return None
    key = "image", x.shape[1:], x.dtype
    image = joined.programs.get(key)
    if image is None:
        try:
            image = prepared(joined, x[:1, ...], held)[0]
            joined.keep(key, image)
        except XcnnError:  # such as a norm over the pixels of one image
            return None
    count = _count(n, image.costs) if image.apart else 1
    if count == 1:
        return None
    program = _Cut(joined, n, count)
    return program, program(x, held)


@body
def each(xp: ModuleType, task: Callable[[int], object], count: int) -> None:
    """Call `task(i)` for i from 0 to count - 1, in any order."""
    for i in range(count):
        task(i)


class _Cut:
    """Runs a batch in pieces, in several threads."""

    def __init__(self, joined: Joined, n: int, count: int) -> None:
        self.joined, self.bounds = joined, [n * i // count for i in range(count + 1)]
        self.programs: dict[int, Program] = {}
        self.results: list[tuple[Any, Any]] = []  # shapes and dtypes, once they are known

    def __call__(self, x: Any, held: list[Any]) -> Any:
        bounds, programs, todo = self.bounds, self.programs, list(range(len(self.bounds) - 1))
        several = not isinstance(self.joined.result, str)
        results = [np.empty(shape, dtype) for shape, dtype in self.results]

        def keep(i: int, y: Any) -> None:
            for whole, part in zip(results, y if several else (y,), strict=True):
                whole[bounds[i] : bounds[i + 1]] = part

        def run(i: int) -> None:
            keep(i, programs[bounds[i + 1] - bounds[i]](x[bounds[i] : bounds[i + 1], ...], held))

        def prepare(_: int) -> None:
            """Run one piece of each size, which makes their programs."""
            for i in todo[:]:
                size = bounds[i + 1] - bounds[i]
                if size not in programs:
                    programs[size], y = prepared(self.joined, x[bounds[i] : bounds[i + 1], ...], held)
                    if not self.results:
                        made = y if several else (y,)
                        self.results = [((bounds[-1], *a.shape[1:]), a.dtype) for a in made]
                        results.extend(np.empty(shape, dtype) for shape, dtype in self.results)
                    keep(i, y)
                    todo.remove(i)

        if not programs:
            each(np, prepare, 1)
        each(np, lambda i: run(todo[i]), len(todo))
        return tuple(results) if several else results[0]


_CALL, _FORK = 3e-6, 3e-5
"""Seconds of Python per call of a kernel, and those that it takes to share work out to threads."""

_CACHES = ((600_000, 1e-11, 1e-11), (8_000_000, 1.5e-11, 4e-11), (math.inf, 4e-11, 8e-11))
"""Bytes of a level of the cache that one thread may count on, and seconds per byte of activations and of weights."""

_FLOP, _ROW = 5e-12, 40
"""Seconds per flop, and how many pixels the work on the ends of rows and on loading weights is worth."""

_THREADS = 4
"""The number of threads for which batches are cut."""

_LARGE = 1 << 26
"""Bytes of activations from which a batch is cut also if that is slightly slower, as it takes less memory."""


def _count(n: int, costs: Sequence[Cost]) -> int:
    """Return the number of pieces of a batch of n images, 1 for the whole, that a model of the cost prefers."""

    def speed(nbytes: float) -> tuple[float, float]:
        return next((image, weight) for most, image, weight in _CACHES if nbytes <= most)

    load = speed(sum(cost.weights for cost in costs))[1]

    def seconds(b: float) -> list[float]:
        """The seconds of each step for b images, on one thread."""
        return [
            b * cost.nbytes * speed(b * cost.nbytes)[0]
            + b * cost.flops * _FLOP * (1 + _ROW / (b * cost.pixels))
            + cost.weights * load
            for cost in costs
        ]

    def shared(one: float) -> float:
        """The seconds of a step whose kernel shares it out itself."""
        return one if one < 4 * _FORK else one / min(_THREADS, n, one / _FORK) + _FORK

    whole = sum(map(shared, seconds(n))) + _CALL * len(costs)
    large = n * max((cost.nbytes for cost in costs), default=0) > _LARGE
    best, count = whole * (1.05 if large else 0.95), 1
    # Two threads need as long for three pieces as for four.
    sizes = (b for k in range(n.bit_length()) for b in (2**k, 3 * 2**k // 2))
    for pieces in sorted({min(n, -(-n // b // 2) * 2) for b in sizes}):
        # Threads share the interpreter lock, so that the Python of all pieces takes its time one after the other.
        cut = sum(seconds(n / pieces)) * -(-pieces // _THREADS) + _CALL * len(costs) * pieces + _FORK
        if cut < best:
            best, count = cut, pieces
    return count

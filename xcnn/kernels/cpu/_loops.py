"""Loops over arrays that do a list of steps to each number, compiled when they are first used."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from xcnn.kernels.cpu._functions import COSTS, Functions
from xcnn.kernels.cpu._native import machine_code
from xcnn.kernels.cpu._sums import BLOCK
from xcnn.kernels.cpu._trace import Namespace
from xcnn.kernels.cpu._vectors import BYTES, DOUBLE, INT, blocks, counted

__all__ = ["COLUMN", "EACH", "ROW", "Loop", "traced"]

_log = logging.getLogger("xcnn")

EACH, ROW, COLUMN = "each", "row", "column"
"""What a loop does with a result: store each number, or add those of a row, or those of a column to what is there."""


@dataclass(frozen=True)
class Loop:
    """A compiled loop.

    Attributes
    ----------
    call : a function `(*results, *arrays, n, *parameters)`; n is the number of elements of a row. Arrays may be
        addresses.
        If there are rows, `middle, begin, end, *steps` precede n: row r, from begin to end, is row `r % middle` of
        group `r // middle`, and two steps per address say how many elements it moves with a group and with a row. If
        there are sums of columns, all rows must be in the first group.
    cost : about the time of its arithmetic for a number, in that of one which is only read.
    """

    call: Callable[..., Any]
    cost: int


@functools.cache
def traced(
    function: Callable[..., Sequence[Any]],
    key: Any,
    whats: tuple[str, ...],
    arrays: tuple[bool, ...],
    choices: tuple[Any, ...],
    itemsize: int,
    rows: bool = False,
    many: int = 4,
) -> Loop | None:
    """Compile the loop of `function(xp, key, *arrays, *parameters)`, a list of results; None if it cannot be.

    Parameters
    ----------
    function, key : the key is hashable, and all that the function may depend on.
    whats : what is done with each result: `EACH`, `ROW` or `COLUMN`. Sums are float64.
    arrays : for each of them, whether a row has many numbers, or the same one everywhere.
    choices : for each parameter, None if it is a number that the loop takes, else its value.
    itemsize : bytes of a number, 4 or 8.
    rows : whether there are several rows.
    many : the most vectors that are computed at once.
    """
    xp, numbers = Namespace(), choices.count(None)
    given = map(xp.parameter, range(numbers))
    parameters = [next(given) if choice is None else choice for choice in choices]
    try:
        symbols = function(xp, key, *map(xp.array, range(len(arrays))), *parameters)
        results = [(xp.vector(symbol).number, what) for symbol, what in zip(symbols, whats, strict=True)]
        needed = _needed(xp.steps, [number for number, _ in results])
        cost = sum(COSTS.get(xp.steps[i][0], 1) for i in needed if xp.kinds[i] != "scalar")
        at_once = min(many, 4) if cost < 10 else 1
        count = len(results) + len(arrays)
        call = machine_code(
            lambda module: _Writer(module, xp, results, arrays, numbers, itemsize, rows).write(needed, at_once),
            "p" * count + "n" * (1 + rows * (3 + 2 * count)) + "f" * numbers,
        )
    except Exception as error:
        _log.debug("%s is not compiled: %r", key, error)
        return None
    return Loop(call, cost * itemsize // (2 * BYTES))


def _needed(steps: Sequence[tuple[Any, ...]], results: Sequence[int]) -> list[int]:
    """Return the numbers of the steps that some steps need, in order."""
    found, waiting = {*results}, [*results]
    while waiting:
        name, *arguments = steps[waiting.pop()]
        if name not in ("array", "parameter", "constant"):
            waiting += {*arguments} - found
            found |= {*arguments}
    return sorted(found)


class _Writer:
    """Writes the function `loop` into a module."""

    def __init__(
        self,
        module: Any,
        xp: Namespace,
        results: Sequence[tuple[int, str]],
        arrays: Sequence[bool],
        parameters: int,
        itemsize: int,
        rows: bool,
    ) -> None:
        self.xp, self.results, self.arrays, self.rows = xp, results, arrays, rows
        number = ir.FloatType() if itemsize == 4 else DOUBLE
        sums = DOUBLE.as_pointer()
        pointers = [number.as_pointer() if what == EACH else sums for _, what in results]
        pointers += [number.as_pointer()] * len(arrays)
        integers = [INT] * (1 + rows * (3 + 2 * len(pointers)))
        kind = ir.FunctionType(ir.VoidType(), [*pointers, *integers, *[DOUBLE] * parameters])
        function = ir.Function(module, kind, "loop")
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.pointers = function.args[: len(pointers)]
        self.integers = function.args[len(pointers) : len(pointers) + len(integers)]
        self.parameters = function.args[len(pointers) + len(integers) :]
        self.emit = Functions(self.builder, itemsize)

    def write(self, needed: Sequence[int], many: int) -> None:
        """Write all; `many` vectors are computed at once.

        Processors execute the instructions of several iterations at once; cheap ones spend less on the loop if `many`
        is larger.
        """
        self.needed, self.many = needed, many
        self.fixed = _scalars(self.emit, self.xp.steps, self.xp.kinds, needed, self.parameters)
        if not self.rows:
            self._row(self.pointers, self.integers[0])
        else:
            middle, begin, end, *steps, n = self.integers

            if any(what == COLUMN for _, what in self.results):
                self._columns(begin, end, steps[1::2], n)
            else:
                self._rows(middle, begin, end, steps, n)
        self.builder.ret_void()

    def _rows(self, middle: Any, begin: Any, end: Any, steps: Sequence[Any], n: Any) -> None:
        """Write the loop over rows."""
        builder, one = self.builder, INT(1)

        def row(_: Any, place: list[Any]) -> list[Any]:
            outer, inner = place
            moved = []
            for pointer, a, b in zip(self.pointers, steps[::2], steps[1::2], strict=True):
                moved.append(builder.gep(pointer, [builder.add(builder.mul(outer, a), builder.mul(inner, b))]))
            self._row(moved, n)
            last = builder.icmp_signed("==", builder.add(inner, one), middle)
            return [
                builder.select(last, builder.add(outer, one), outer),
                builder.select(last, INT(0), builder.add(inner, one)),
            ]

        counted(builder, begin, end, one, [builder.udiv(begin, middle), builder.urem(begin, middle)], row)

    def _columns(self, begin: Any, end: Any, steps: Sequence[Any], n: Any) -> None:
        """Write the loop over strips of columns, and in each of them over the rows of a group, whose sums it makes."""
        builder, emit = self.builder, self.emit
        count = sum(what == COLUMN for _, what in self.results)
        sums = [pointer for (_, what), pointer in zip(self.results, self.pointers, strict=False) if what == COLUMN]

        def strip(places: Sequence[Any], mask: Any, _: Any) -> list[Any]:
            def row(r: Any, totals: list[Any]) -> list[Any]:
                moved = [
                    builder.gep(pointer, [builder.mul(r, step)])
                    for pointer, step in zip(self.pointers, steps, strict=True)
                ]
                return self._some(places, mask, moved, self._reader(moved), totals)

            totals = iter(counted(builder, begin, end, INT(1), [emit.zeros()] * (count * len(places)), row))
            for index in places:
                for pointer in sums:
                    emit.write(builder.fadd(emit.read(pointer, index, mask), next(totals)), pointer, index, mask)
            return []

        emit.span(INT(0), n, [], strip, self.many)

    def _some(
        self,
        places: Sequence[Any],
        mask: Any,
        pointers: Sequence[Any],
        vectors: Callable[..., list[Any]],
        old: Sequence[Any],
    ) -> list[Any]:
        """Write what is done at some places of a row; return the new sums, of the row or of columns."""
        sums, added = [*old], 0
        computed = [self._values(loaded) for loaded in [vectors(index, mask) for index in places]]
        for index, values in zip(places, computed, strict=True):
            for (_, what), value, pointer in zip(self.results, values, pointers, strict=False):
                if what == EACH:
                    self.emit.write(value, pointer, index, mask)
                else:
                    k = added % len(sums)
                    sums[k], added = self.builder.fadd(sums[k], self.emit.widened(value, mask)), added + 1
        return sums

    def _reader(self, pointers: Sequence[Any]) -> Callable[..., list[Any]]:
        """Return a function `(index, mask)` that loads vectors of the arrays, which follow the results."""
        pointers = pointers[len(self.results) :]
        alike = {
            k: self.emit.spread(self.builder.load(pointer))
            for k, (many, pointer) in enumerate(zip(self.arrays, pointers, strict=True))
            if not many
        }

        def vectors(index: Any, mask: Any = None) -> list[Any]:
            return [alike[k] if k in alike else self.emit.read(a, index, mask) for k, a in enumerate(pointers)]

        return vectors

    def _row(self, pointers: Sequence[Any], n: Any) -> None:
        """Write the loop over the numbers of a row."""
        builder, emit = self.builder, self.emit
        vectors = self._reader(pointers)

        def some(places: Sequence[Any], mask: Any, sums: Sequence[Any]) -> list[Any]:
            return self._some(places, mask, pointers, vectors, sums)

        totals = [pointer for (_, what), pointer in zip(self.results, pointers, strict=False) if what == ROW]
        if not totals:
            emit.span(INT(0), n, [], some, self.many)
            return

        def block(begin: Any, end: Any, sums: Sequence[Any]) -> list[Any]:
            new = emit.span(begin, end, [emit.zeros()] * len(totals), some, self.many)
            return [builder.fadd(old, emit.total(one)) for old, one in zip(sums, new, strict=True)]

        found = blocks(builder, INT(0), n, INT(BLOCK), [DOUBLE(0.0)] * len(totals), block)
        for pointer, total in zip(totals, found, strict=True):
            builder.store(total, pointer)

    def _values(self, loaded: Sequence[Any]) -> list[Any]:
        """Write the steps for vectors of the arrays; return the results."""
        found = dict(self.fixed)
        for i in self.needed:
            if i not in found:
                name, *arguments = self.xp.steps[i]
                arrays = name == "array"
                found[i] = loaded[arguments[0]] if arrays else self.emit.step(name, [found[a] for a in arguments])
        return [found[number] for number, _ in self.results]


def _scalars(
    emit: Functions, steps: Sequence[tuple[Any, ...]], kinds: Sequence[str], needed: Sequence[int], given: Sequence[Any]
) -> dict[int, Any]:
    """Return vectors of all scalars, which are computed once, in float64."""
    numbers, vectors = {}, {}
    for i in needed:
        if kinds[i] != "scalar":
            continue
        name, *arguments = steps[i]
        if name == "constant":
            numbers[i] = DOUBLE(float(arguments[0]))
            vectors[i] = emit.constant(float(arguments[0]))
            continue
        numbers[i] = given[arguments[0]] if name == "parameter" else emit.step(name, [numbers[a] for a in arguments])
        vectors[i] = emit.spread(emit.number(numbers[i]))
    return vectors

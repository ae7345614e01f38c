"""The compiled calls of a small network, recorded once and repeated by one call, as by the graphs of CUDA.

What is computed for one small image may take less time than the Python between the kernels. The compiled code that a
network calls gets the same numbers and addresses each time, but for those in x, in y and in the arrays of parameters,
which are put in their places. All other addresses are in memory that belongs to the record.

Kernels may do more than that, such as copies by NumPy. So the network runs twice, with other numbers in x and in all
parameters: what is not at the same address in both runs must have been written by compiled code. To be sure, it is
filled with a NaN that no arithmetic makes, and the record must then write the same bits as the first run.
"""

import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._matrices import _ROOMS
from xcnn.kernels.cpu._native import PLACES, PLAIN, RECORDER, address, native
from xcnn.kernels.cpu._scratch import apart
from xcnn.kernels.cpu._vectors import INT
from xcnn.threads import shared

__all__ = ["recorded"]

_log = logging.getLogger("xcnn")

_MOST = 16 << 20
"""The most bytes of parameters, and of results between the kernels."""

_AXES, _HEAD = 8, 10
"""The most axes of a parameter, and the columns of `heads`."""

_NUMBERS = 1021
"""How many random numbers are repeated."""

_LOCK = threading.Lock()
"""Held while calls are recorded."""

_RECORD = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class _Call(NamedTuple):
    """A call: the address of the function, or 0, its result, and its arguments as numbers; and the arguments."""

    numbers: list[int]
    arguments: list[Any]


class _Refused(Exception):
    """Why calls cannot be repeated."""


@native("n:iinininixx")
def _repeat(emit, calls, starts, count, moves, moved, heads, held, first, x, y):
    """Make calls in order; return 1 if an array is no longer as it was, or a call returns something else than 0.

    Parameters
    ----------
    calls : of each the function, 0, and the arguments.
    starts : where each of them begins, `count` in all.
    moves : where an address is among them, in which array, and by how many bytes; `moved` in all.
    heads : of each of the arrays of parameters, `held` in all: itself, and how many axes of which sizes it has.
    first : is set to the addresses of the arrays: x, y, and those of parameters.
    """
    builder, zero, calls = emit.builder, Integer(emit.builder, 0), Integers(emit.builder, calls)
    starts, moves, heads, first = (Integers(builder, array) for array in (starts, moves, heads, first))
    short, kind = ir.IntType(32).as_pointer(), ir.FunctionType(INT, [INT.as_pointer()]).as_pointer()

    def word(place: Integer, kind: Any = None) -> Integer:
        """Return the number at an address."""
        number = builder.load(builder.inttoptr(place.value, kind or INT.as_pointer()))
        return Integer(builder, builder.zext(number, INT) if kind else number)

    def only_if(one: Integer, sign: str, other: Any) -> None:
        with builder.if_then(builder.not_(one.holds(sign, other)), likely=False):
            builder.ret(INT(1))

    for i, array in enumerate((x, y)):
        builder.store(builder.ptrtoint(array, INT), Integer(builder, i).of(first.pointer))
    with zero.up_to(held) as i:
        array, axes = heads.some(i * _HEAD, 2)
        numbers, rank, sizes, flags = (array + place for place in PLACES)
        builder.store(word(numbers).value, (i + 2).of(first.pointer))
        only_if(Integer(builder, builder.and_(word(flags, short).value, INT(PLAIN))), "!=", 0)
        only_if(word(rank, short), "==", axes)
        with zero.up_to(axes) as axis:
            only_if(word(word(sizes) + axis * 8), "==", heads[i * _HEAD + axis + 2])
    with zero.up_to(moved) as i:
        place, which, offset = moves.some(i * 3, 3)
        builder.store((first[which] + offset).value, place.of(calls.pointer))
    with zero.up_to(count) as i:
        start = starts[i]
        result = builder.call(builder.inttoptr(calls[start].value, kind), [(start + 2).of(calls.pointer)])
        only_if(Integer(builder, result), "==", 0)
    builder.ret(INT(0))


class _Bytes:
    """Where the numbers of an array lie."""

    def __init__(self, array: np.ndarray) -> None:
        self.start = address(array)
        self.end = self.start + array.nbytes

    def meet(self, other: "_Bytes") -> bool:
        return self.start < other.end and other.start < self.end


class _Run:
    """A run of a network, and the calls by this thread.

    Attributes
    ----------
    arrays : x, y and those of parameters.
    calls : they keep the memory of all results.
    """

    def __init__(self, run: Callable[..., Any], x: np.ndarray, held: Sequence[np.ndarray]) -> None:
        self.calls, own = list[_Call](), threading.get_ident()

        def record(numbers: int, arguments: int, count: int, raw: int) -> None:
            if threading.get_ident() == own:
                values = (ctypes.c_int64 * (count + 2)).from_address(numbers)[:]
                values[0] *= not raw  # an address that was given as a number may be of memory which is gone
                places = range(arguments, arguments + 8 * count, 8)
                self.calls.append(_Call(values, [ctypes.py_object.from_address(place).value for place in places]))

        function = _RECORD(record)
        RECORDER[0] = ctypes.cast(function, ctypes.c_void_p).value or 0
        try:
            y = run(x, held)
        finally:
            RECORDER[0] = 0
        self.arrays = x, y, *held
        if not _fits(y) or y.dtype.kind != "f":
            raise _Refused("the result is no array in C order")
        self.bytes = [*map(_Bytes, self.arrays)]


def _fits(array: Any) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous and array.size > 0 and array.ndim <= _AXES


def _other(array: np.ndarray, seed: int) -> np.ndarray:
    """Return an array of other numbers of about the same size."""
    if array.dtype.kind != "f":
        return array.copy()
    noise = np.resize(np.random.default_rng(seed).random(_NUMBERS, np.float32), array.shape)
    found: np.ndarray = (array * (noise + 0.5) + noise * 0.01).astype(array.dtype, copy=False)
    return found


@kernel(np)
def recorded(run: Callable[..., Any], x: np.ndarray, held: Sequence[Any]) -> Any:
    """Return a function `(x, held)` that does what `run` does with arrays of the same shapes and dtypes, or None.

    It returns NotImplemented if it cannot do that. What `run` does, it does with kernels, and on shapes alone depends
    how.
    """
    if not all(map(_fits, (x, *held))) or sum([array.nbytes for array in held]) > _MOST:
        return None
    if not _LOCK.acquire(blocking=False):
        return None
    rooms = _ROOMS.rooms
    try:
        with apart() as memory, np.errstate(all="ignore"):
            _ROOMS.rooms = {}
            arrays = [[_other(array, seed) for array in (x, *held)] for seed in (1, 2)]
            if shared(lambda: run(arrays[0][0], arrays[0][1:])):
                raise _Refused("there is work for several threads")
            first, second = (_Run(run, x, held) for x, *held in arrays)
            return _Record(first, second, [memory, _ROOMS.rooms])
    except _Refused as error:
        _log.debug("calls are not recorded: %s", error)
        return None
    finally:
        _ROOMS.rooms = rooms
        _LOCK.release()


class _Record:
    """The calls of the second run, of which the first one shows what changes."""

    def __init__(self, first: _Run, second: _Run, memory: Any) -> None:
        calls, starts = list[int](), list[int]()
        places: list[tuple[int, int, int]] = []  # of addresses, in which array, and how many bytes from its first
        y, result = first.arrays[1], second.arrays[1]
        self.results = {id(result): (y, result)}
        self.kept: list[Any] = [memory]
        for call, twin in zip(first.calls, second.calls, strict=True):
            if call.numbers[:2] != twin.numbers[:2] or not call.numbers[0] or call.numbers[1]:
                raise _Refused("a function is another one, returns a number or takes addresses")
            starts.append(len(calls))
            each = zip(call.numbers[2:], twin.numbers[2:], call.arguments, twin.arguments, strict=True)
            for place, (a, b, array, now) in enumerate(each, len(calls) + 2):
                if type(now) is not np.ndarray:
                    if a != b:
                        raise _Refused("a number is another one")
                    continue
                lie = _Bytes(now)
                which = next((k for k, one in enumerate(second.bytes) if one.meet(lie)), None)
                if which is not None:
                    inside = second.bytes[which].start <= lie.start and lie.end <= second.bytes[which].end
                    if not inside or a - first.bytes[which].start != b - second.bytes[which].start:
                        raise _Refused("an array is at another place in x, y or a parameter")
                    places.append((place, which, b - second.bytes[which].start))
                elif a == b:
                    self.kept.append(now)
                elif now.dtype.kind == "f" and now.flags.writeable:
                    self.results[id(now)] = array, now
                else:
                    raise _Refused("an array of integers is at another place")
            calls += twin.numbers
        if sum([now.nbytes for _, now in self.results.values()]) > _MOST:
            raise _Refused("the results take too much memory")
        self.lock, self.held, held = threading.Lock(), list[Any](), first.arrays[2:]
        self.heads = np.array([[0, a.ndim, *a.shape, *(0,) * (_AXES - a.ndim)] for a in held], np.int64)
        self.shape, self.dtype, self.repeat = y.shape, y.dtype, _repeat(y.itemsize)
        tables = [np.array(one, np.int64) for one in (calls, starts, places)]
        bases = np.zeros(len(held) + 2, np.int64)
        self.given = *tables[:2], len(starts), tables[2], len(places), self.heads, len(held), bases
        self._check(first)

    def _check(self, run: _Run) -> None:
        """Refuse what does not write the same bits as a run."""
        for _, now in self.results.values():
            now.reshape(-1).view(np.uint8)[:] = 255
        x, y, *held = run.arrays
        found = self(x, held)
        if found is NotImplemented or found.tobytes() != y.tobytes():
            raise _Refused("the result is another one")
        for one, now in [*self.results.values()][1:]:
            if one.tobytes() != now.tobytes():
                raise _Refused(f"results of shape {now.shape} are others")

    def __call__(self, x: np.ndarray, held: list[Any]) -> Any:
        if not self.lock.acquire(blocking=False):  # another thread uses this memory
            return NotImplemented
        try:
            if held is not self.held:
                self.held = held  # which keeps the arrays alive, from whose heads compiled code reads
                self.heads[:, 0] = [*map(id, held)]
            y = np.empty(self.shape, self.dtype)
            return y if self.repeat(*self.given, x, y) == 0 else NotImplemented
        finally:
            self.lock.release()

"""The compiled calls of a small network, recorded once and repeated by one call, as by the graphs of CUDA.

What is computed for one small image may take less time than the Python between the kernels. The compiled code that a
network calls gets the same numbers and addresses each time, but for those in x, in results and in the arrays of
parameters, which are put in their places. All other addresses are in memory that belongs to the record.

Kernels may do more than that, such as copies by NumPy. So the network runs twice, with other numbers in x and in all
parameters: what is not at the same address in both runs must have been written by compiled code. To be sure, it is
filled with a NaN that no arithmetic makes, and the record must then write the same bits as the first run.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from xcnn._dispatch import kernel
from xcnn.kernels.cpu._integers import Integer, Integers
from xcnn.kernels.cpu._matrices import _ROOMS
from xcnn.kernels.cpu._native import HERE, LOCK, PLACES, PLAIN, RECORDER, address, native
from xcnn.kernels.cpu._scratch import apart
from xcnn.kernels.cpu._vectors import INT
from xcnn.threads import longer, serially

__all__ = ["recorded"]

_log = logging.getLogger("xcnn")

_MOST = 16 << 20
"""The most bytes of parameters, and of the memory that a record keeps."""

_AXES, _HEAD = 8, 10
"""The most axes of a parameter, and the columns of `heads`."""

_RUNS = 7
"""The runs whose time is taken."""

_NUMBERS = 1021
"""How many random numbers are repeated."""


@native("n:iinininixx")
def _repeat(emit, calls, starts, count, moves, moved, heads, held, first, x, y):
    """Make calls in order; return 1 if an array is no longer as it was, or a call returns something else than 0.

    Parameters
    ----------
    calls : of each the function, 0, and the arguments.
    starts : where each of them begins, `count` in all.
    moves : where an address is among them, in which array, and by how many bytes; `moved` in all.
    heads : of each of the arrays of parameters and of further results, `held` in all: itself, and how many axes of
        which sizes it has.
    first : is set to the addresses of the arrays: x, y, and those of `heads`.
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


class _Call(NamedTuple):
    """A call: the address of the function, or 0, its result, and its arguments as numbers; and the arguments."""

    numbers: list[int]
    arguments: list[Any]


class _Here(threading.local):
    """The calls of this thread, unless none are noted, and what has interrupted a note."""

    calls: list[_Call] | None = None
    error: BaseException | None = None


_here = _Here()


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
def _note(numbers: int, arguments: int, count: int, raw: int) -> None:
    """Note a call if it is one of this thread."""
    if _here.calls is None:
        return
    try:
        values = (ctypes.c_int64 * (count + 2)).from_address(numbers)[:]
        values[0] *= not raw  # an address that was given as a number may be of memory which is gone
        places = range(arguments, arguments + 8 * count, 8)
        _here.calls.append(_Call(values, [ctypes.py_object.from_address(place).value for place in places]))
    except BaseException as error:  # which ctypes would drop, such as KeyboardInterrupt
        _here.error = error


def _ran(run: Callable[..., Any], x: np.ndarray, *held: np.ndarray) -> tuple[list[_Call], list[np.ndarray], bool]:
    """Run a network; return the calls, which keep all memory, its arrays, and whether it returned a tuple.

    The arrays are x, the first result, the parameters, and the other results.
    """
    _here.calls, RECORDER[0] = [], ctypes.cast(_note, ctypes.c_void_p).value or 0
    try:
        calls, result = _here.calls, run(x, held)
        several = isinstance(result, tuple)
        y, *more = result if several else (result,)
        if _here.error is not None:
            raise _here.error
        return calls, [x, y, *held, *more], several
    finally:
        _here.calls, _here.error, RECORDER[0] = None, None, 0


def _fits(array: Any) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous and array.size > 0 and array.ndim <= _AXES


def _other(array: np.ndarray, seed: int) -> np.ndarray:
    """Return an array of other numbers of about the same size."""
    noise = np.resize(np.random.default_rng(seed).random(_NUMBERS, np.float32), array.shape)
    found: np.ndarray = array * (noise + 0.5) + noise * 0.01 if array.dtype.kind == "f" else array
    return found.astype(array.dtype)


@kernel(np)
def recorded(run: Callable[..., Any], x: np.ndarray, held: Sequence[Any], share: float = 1.0) -> Any:
    """Return a function `(x, held)` that does what `run` does with arrays of the same shapes and dtypes, or None.

    It takes less than a share of the time, and returns NotImplemented if it cannot do that. What `run` does depends on
    shapes alone, and is done by kernels of this package: if they change arrays in place, they do it by compiled code,
    or set `HERE.in_python`. It returns new arrays, one or a tuple.
    """
    if not all(map(_fits, (x, *held))) or sum([array.nbytes for array in held]) > _MOST:
        return None
    rooms = _ROOMS.rooms
    try:
        with LOCK, apart() as memory, np.errstate(all="ignore"):
            _ROOMS.rooms = {}
            first, second = ([_other(array, seed) for array in (x, *held)] for seed in (1, 2))
            HERE.in_python = False
            alone = not longer(lambda: run(first[0], first[1:]))
            _only_if(not HERE.in_python, "arrays are changed in Python")
            with serially():
                record = _Record(_ran(run, *first), _ran(run, *second), len(held), [memory, _ROOMS.rooms])
        faster = (alone and share == 1.0) or _seconds(record, x, held) < share * _seconds(run, x, held)
        _only_if(faster, "it takes too much time, or several threads take less")
        return record
    except Exception as error:
        _log.debug("calls are not recorded: %s", error)
        return None
    finally:
        _ROOMS.rooms = rooms


def _seconds(run: Callable[..., Any], x: np.ndarray, held: Sequence[Any]) -> float:
    """Return about how long the fastest of some runs takes on several threads, of which none needs to be free now."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        times.append(-longer(lambda: run(x, held)) - start + time.perf_counter())
    return min(times)


def _only_if(holds: Any, what: str) -> None:
    if not holds:
        raise ValueError(what)


class _Record:
    """The calls of a second run, of which a first one shows what changes."""

    def __init__(self, first: Any, second: Any, count: int, memory: Any) -> None:
        (calls, before, self.several), (again, arrays, _) = first, second
        made = [(before[i], arrays[i]) for i in (1, *range(2 + count, len(arrays)))]
        usual = all(_fits(y) and y.dtype.kind == "f" and not np.shares_memory(y, now) for y, now in made)
        _only_if(usual, "a result is no new array in C order")
        starts_before, begins = ([*map(address, some)] for some in (before, arrays))
        ends = np.array([begin + array.nbytes for begin, array in zip(begins, arrays, strict=True)])
        starts, numbers, moves, kept = [], list[int](), [], [memory]
        results = {id(now): (y, now) for y, now in made}
        for call, twin in zip(calls, again, strict=True):
            same = call.numbers[:2] == twin.numbers[:2] and call.numbers[0] and not call.numbers[1]
            _only_if(same, "a function is another one, returns a number or takes addresses")
            starts.append(len(numbers))
            each = zip(call.numbers[2:], twin.numbers[2:], call.arguments, twin.arguments, strict=True)
            for place, (a, b, array, now) in enumerate(each, len(numbers) + 2):
                if not isinstance(now, np.ndarray):
                    _only_if(a == b, "a number is another one")
                    continue
                inside = np.flatnonzero((np.array(begins) < b + now.nbytes) & (b < ends)).tolist()
                if inside:
                    (k,), offset = inside, b - begins[inside[0]]
                    within = offset >= 0 and b + now.nbytes <= ends[k] and a - starts_before[k] == offset
                    _only_if(within, "an array is at another place in x, y or a parameter")
                    moves.append((place, k, offset))
                elif a == b:
                    kept.append(now)
                else:
                    # Bytes are masks, or places in windows; larger integers may be places in memory.
                    _only_if(now.dtype.kind == "f" or now.itemsize == 1, "an array of integers is at another place")
                    results[id(now)] = array, now
            numbers += twin.numbers
        nbytes = sum([now.nbytes for now in (*memory[0].values(), *(now for _, now in results.values()))])
        _only_if(nbytes <= _MOST, "the results take too much memory")
        self.held: list[Any] | None = None
        self.lock, self.kept = threading.Lock(), [*kept, *(now for _, now in results.values())]
        self.heads = np.zeros((len(arrays) - 2, _HEAD), np.int64)
        for head, array in zip(self.heads, arrays[2:], strict=True):
            head[1 : 2 + array.ndim] = array.ndim, *array.shape
        self.shapes, self.repeat = [(y.shape, y.dtype) for y, _ in made], _repeat(arrays[1].itemsize)
        tables = [np.array(one, np.int64) for one in (numbers, starts, moves, begins)]
        self.given = *tables[:2], len(starts), tables[2], len(moves), self.heads, len(self.heads), tables[3]
        for _, now in results.values():
            now.reshape(-1).view(np.uint8)[:] = 255
        done = self._into([now for _, now in made], before[0], before[2 : 2 + count])
        _only_if(done == 0, "a function returns a number")
        wrong = [now.shape for one, now in results.values() if one.tobytes() != now.tobytes()]
        _only_if(not wrong, f"results of shapes {wrong} are others")

    def __call__(self, x: np.ndarray, held: list[Any]) -> Any:
        if not self.lock.acquire(blocking=False):  # another thread uses this memory
            return NotImplemented
        try:
            results = [np.empty(*one) for one in self.shapes]
            if self._into(results, x, held) != 0:
                return NotImplemented
            return tuple(results) if self.several else results[0]
        finally:
            self.lock.release()

    def _into(self, results: list[Any], x: np.ndarray, held: list[Any]) -> Any:
        """Set the results; return 0, or 1 or NotImplemented if that is not possible."""
        y, *more = results
        if self.several or held is not self.held:
            # Compiled code reads from the heads of arrays that this keeps alive: both change, or, interrupted, none.
            # Those of several results are new each time, so that it need not read any again.
            self.heads[:, 0], self.held = [*map(id, (*held, *more))], None if self.several else held
        return self.repeat(*self.given, x, y)

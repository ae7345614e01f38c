"""Loops over arrays that do a list of steps to each number, compiled when they are first used.

LLVM makes the code from instructions in 10 to 30 ms, so it is not kept on disk. Numba would take ten times as long and
has nothing to add.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config
from numba.core import cgutils

from xcnn._dispatch import COMPILATION
from xcnn.kernels.cpu._functions import COSTS, Vectors

__all__ = ["Loop", "address", "compiled_loop"]

_INT = ir.IntType(64)
_LOCK = threading.Lock()
_ENGINES: list[Any] = []
"""They own the machine code."""


@dataclass(frozen=True)
class Loop:
    """A compiled loop.

    Attributes
    ----------
    call : a function `(*results, *arrays, n, *parameters)` of addresses, the number of elements, and numbers.
    cost : about how many instructions it takes for a vector of results.
    lanes : numbers in a vector.
    """

    call: Callable[..., None]
    cost: int
    lanes: int


def _address(array: np.ndarray) -> int:
    return ctypes.c_void_p.from_address(id(array) + object.__basicsize__).value or 0


_ONE = np.empty(1)
address: Callable[[np.ndarray], int] = (
    _address if _address(_ONE) == _ONE.ctypes.data else lambda array: array.ctypes.data
)
"""Return where an array begins. `array.ctypes` takes seven times as long as reading NumPy's own pointer, its first."""


def compiled_loop(
    steps: Sequence[tuple[Any, ...]], kinds: Sequence[str], result: int, arrays: int, parameters: int, itemsize: int
) -> Loop:
    """Compile the loop that sets `y[i]` to the result of the steps from `x[i]` of one or more arrays.

    Parameters
    ----------
    steps, kinds : as of a `Namespace`; those that the result needs are done.
    result : the number of the step whose value is stored.
    arrays, parameters : how many there are.
    itemsize : bytes of a number, 4 or 8.
    """
    needed = _needed(steps, result)
    cost = sum(COSTS.get(steps[i][0], 1) for i in needed if kinds[i] != "scalar")
    COMPILATION.begin()
    try:
        module = ir.Module()
        lanes = _generate(module, steps, kinds, needed, result, arrays, parameters, itemsize, cost)
        address = _machine_code(module)
    finally:
        COMPILATION.end()
    kinds_of = [ctypes.c_void_p] * (1 + arrays) + [ctypes.c_int64] + [ctypes.c_double] * parameters
    return Loop(ctypes.CFUNCTYPE(None, *kinds_of)(address), cost, lanes)


def _needed(steps: Sequence[tuple[Any, ...]], result: int) -> list[int]:
    """Return the numbers of the steps that a step needs, in order."""
    found, waiting = {result}, [result]
    while waiting:
        name, *arguments = steps[waiting.pop()]
        if name not in ("array", "parameter", "constant"):
            waiting += {*arguments} - found
            found |= {*arguments}
    return sorted(found)


def _generate(
    module: Any,
    steps: Sequence[tuple[Any, ...]],
    kinds: Sequence[str],
    needed: Sequence[int],
    result: int,
    arrays: int,
    parameters: int,
    itemsize: int,
    cost: int,
) -> int:
    """Write the function `loop` into a module; return the number of lanes."""
    number = ir.FloatType() if itemsize == 4 else ir.DoubleType()
    pointer = number.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer] * (1 + arrays) + [_INT] + [ir.DoubleType()] * parameters)
    function = ir.Function(module, kind, "loop")
    builder = ir.IRBuilder(function.append_basic_block())
    y, xs, n = function.args[0], function.args[1 : 1 + arrays], function.args[1 + arrays]
    emit = Vectors(builder, itemsize)
    fixed = _scalars(emit, steps, kinds, needed, function.args[2 + arrays :])
    spread = emit.vector.as_pointer()

    def values(loaded: Callable[[int], Any]) -> Any:
        found = dict(fixed)
        for i in needed:
            if i not in found:
                name, *arguments = steps[i]
                found[i] = loaded(arguments[0]) if name == "array" else emit.step(name, [found[a] for a in arguments])
        return found[result]

    def place(array: Any, index: Any) -> Any:
        return builder.bitcast(builder.gep(array, [index]), spread)

    # Processors execute the instructions of several iterations at once; cheap ones spend less on the loop this way.
    many = 4 if cost < 10 else 2 if cost < 40 else 1
    step = _INT(many * emit.lanes)
    wide = builder.mul(builder.udiv(n, step), step)
    with cgutils.for_range_slice(builder, _INT(0), wide, step) as (start, _):
        places = [builder.add(start, _INT(k * emit.lanes)) for k in range(many)]
        loaded = [[builder.load(place(x, index), align=itemsize) for x in xs] for index in places]
        stored = [values(row.__getitem__) for row in loaded]
        for value, index in zip(stored, places, strict=True):
            builder.store(value, place(y, index), align=itemsize)
    with cgutils.for_range_slice(builder, wide, n, _INT(emit.lanes)) as (index, _):
        mask = emit.first(builder.sub(n, index))
        builder_row = [emit.load(place(x, index), mask) for x in xs]
        emit.store(values(builder_row.__getitem__), place(y, index), mask)
    builder.ret_void()
    return emit.lanes


def _scalars(
    emit: Vectors, steps: Sequence[tuple[Any, ...]], kinds: Sequence[str], needed: Sequence[int], given: Sequence[Any]
) -> dict[int, Any]:
    """Return vectors of all scalars, which are computed once, in float64."""
    numbers, vectors = {}, {}
    for i in needed:
        if kinds[i] != "scalar":
            continue
        name, *arguments = steps[i]
        if name == "constant":
            numbers[i] = ir.DoubleType()(float(arguments[0]))
            vectors[i] = emit.constant(float(arguments[0]))
            continue
        numbers[i] = given[arguments[0]] if name == "parameter" else emit.step(name, [numbers[a] for a in arguments])
        vectors[i] = emit.broadcast(numbers[i])
    return vectors


def _machine_code(module: Any) -> int:
    """Compile a module; return the address of its function `loop`."""
    with _LOCK:
        if not _ENGINES:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
        name = config.CPU_NAME or llvm.get_host_cpu_name()
        features = llvm.get_host_cpu_features().flatten() if config.CPU_NAME is None else config.CPU_FEATURES or ""
        target = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2, jit=True)
        parsed = llvm.parse_assembly(str(module), llvm.create_context())
        engine = llvm.create_mcjit_compiler(parsed, target)
        engine.finalize_object()
        _ENGINES.append(engine)
        return int(engine.get_function_address("loop"))

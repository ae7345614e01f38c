"""Compile and launch the CUDA kernels, whose sources are the `*.cu` files in this folder.

They form one module, compiled for each type of numbers and indices on first use, which takes seconds; CuPy
caches the result on disk. The parameters of a kernel, read from its source, determine how arguments are converted: CuPy
itself passes arguments unchecked.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xcnn._dispatch import COMPILATION
from xcnn.kernels.cuda._library import RawModule, ascontiguousarray

__all__ = ["BLOCK", "LIMIT", "OPTIONS", "PARAMETERS", "TYPES", "launch", "launch_blocks", "source", "supports"]

_SOURCES = (
    "common.cuh",
    "columns.cu",
    "passes.cu",
    "sums.cu",
    "pool.cu",
    "norm.cu",
    "dropout.cu",
    "entropy.cu",
    "optim.cu",
    "tree.cu",
)

BLOCK = 256
"""Threads per block."""

LIMIT = (1 << 30) - (1 << 16)
"""The largest array or launch for which 32-bit indices are used: the sum of two indices must fit."""

_MOST_BLOCKS = 1 << 20
"""Enough to fill any device; if there are more items, each thread processes several."""

OPTIONS = ("-std=c++17", "--fmad=false")
"""Compiler options. Products are rounded before they are added, as in the portable code; memory limits the speed."""

TYPES = {"float32": "float", "float64": "double"}
"""What `real` stands for, by dtype."""

_FIXED = {"byte*": np.dtype(np.uint8), "double*": np.dtype(np.float64), "long long*": np.dtype(np.int64)}
"""The dtypes of arrays whose kind does not depend on `real`."""

_SCALARS: dict[str, Any] = {
    "int": np.int32,
    "unsigned": np.uint32,
    "long long": np.int64,
    "float": np.float32,
    "double": np.float64,
}

_NULL = np.uint64(0)


class _Parameter(NamedTuple):
    """One parameter of a kernel: its type without `const`.

    Attributes
    ----------
    constant : whether the kernel only reads it.
    strided : whether images may be any distance apart.
    """

    kind: str
    name: str
    constant: bool
    strided: bool


def source(real: str, wide: bool) -> str:
    """Return the whole source for a type of numbers, float or double, and wide or narrow indices."""
    types = f"typedef {real} real;\ntypedef {'long long' if wide else 'int'} index;\n"
    return types + "\n".join(Path(__file__).with_name(name).read_text("utf-8") for name in _SOURCES)


def _parameters(code: str) -> dict[str, tuple[_Parameter, ...]]:
    """Read the parameters of every kernel."""
    found = {}
    for kernel, inside in re.findall(r"^KERNEL (\w+)\((.*?)\) {", code, re.MULTILINE | re.DOTALL):
        parts = [" ".join(one.split()) for one in inside.split(",")]
        kinds = {name: kind for kind, _, name in (part.rpartition(" ") for part in parts)}
        found[kernel] = tuple(
            _Parameter(kind.removeprefix("const "), name, kind.startswith("const "), f"{name}_image" in kinds)
            for name, kind in kinds.items()
        )
    return found


PARAMETERS = _parameters(source("float", False))
"""The parameters of every kernel by its name."""

_ARRAYS = {
    name: [(i, p, _FIXED.get(p.kind)) for i, p in enumerate(parameters) if p.kind.endswith("*")]
    for name, parameters in PARAMETERS.items()
}
"""The parameters of every kernel that are arrays: where they stand, and their dtype unless it is that of numbers."""


def supports(*arrays: Any) -> bool:
    """Return whether arrays are not empty and have a dtype that kernels are compiled for."""
    return all(array.size and array.dtype.name in TYPES for array in arrays)


def launch(name: str, count: int, *arguments: Any, dtype: Any = None) -> None:
    """Run a kernel over `count` items, which are distributed over its threads.

    Parameters
    ----------
    name : name of the kernel.
    count : number of items.
    *arguments : one for each parameter; None for an array that is left out. An array that is only read may have any
        strides: it is copied if the kernel cannot read it.
    dtype : dtype of the numbers, if no argument is an array of them.
    """
    _start(name, min(-(-count // BLOCK), _MOST_BLOCKS), count, arguments, dtype)


def launch_blocks(name: str, blocks: int, *arguments: Any) -> None:
    """Run a kernel in which each block processes one item."""
    _start(name, blocks, blocks, arguments, None)


def _start(name: str, blocks: int, count: int, arguments: Sequence[Any], dtype: Any) -> None:
    if not blocks:
        return
    for place, parameter, fixed in _ARRAYS[name]:
        array = arguments[place]
        if array is None:
            continue
        if array.flags.c_contiguous:
            size = array.size
        elif parameter.strided:
            size = _span(array)
        elif parameter.constant:
            array = ascontiguousarray(array)
            arguments, size = (*arguments[:place], array, *arguments[place + 1 :]), array.size
        else:
            raise TypeError(f"kernel {name}: {parameter.name} takes a C-contiguous array, got strides {array.strides}")
        count = max(count, size)
        if fixed is None and dtype is None:
            dtype = array.dtype
        elif array.dtype != (fixed or dtype):
            raise TypeError(f"kernel {name}: {parameter.name} takes {fixed or dtype}, got {array.dtype}")
    try:
        function, kinds = _READY[name, dtype.char, count > LIMIT]
    except KeyError:
        function, kinds = _ready(name, dtype, count > LIMIT)
    passed = tuple([kind(argument) for kind, argument in zip(kinds, arguments, strict=True)])
    function((blocks,), (BLOCK,), passed)


def _span(array: Any) -> int:
    """Count the numbers from an array's first in memory to its last."""
    reach = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    return 1 + int(reach // array.itemsize)


def _pointer(array: Any) -> Any:
    return _NULL if array is None else array


def _struct(argument: Any) -> Any:
    return argument


_MODULES: dict[tuple[str, bool], Any] = {}
_READY: dict[tuple[str, str, bool], tuple[Any, tuple[Any, ...]]] = {}
"""By kernel, type of numbers and width of indices: what to call, and what each argument becomes."""


def _ready(name: str, dtype: np.dtype[Any], wide: bool) -> tuple[Any, tuple[Any, ...]]:
    if (dtype.name, wide) in _MODULES:
        function = _MODULES[dtype.name, wide].get_function(name)
    else:
        COMPILATION.begin()
        try:
            module = _MODULES[dtype.name, wide] = RawModule(code=source(TYPES[dtype.name], wide), options=OPTIONS)
            function = module.get_function(name)
        finally:
            COMPILATION.end()
    scalars = {**_SCALARS, "index": np.int64 if wide else np.int32, "real": dtype.type}
    kinds = tuple(
        _pointer if parameter.kind.endswith("*") else scalars.get(parameter.kind, _struct)
        for parameter in PARAMETERS[name]
    )
    _READY[name, dtype.char, wide] = function, kinds
    return function, kinds

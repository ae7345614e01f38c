"""CUDA kernels on the CPU: their sources, compiled by a C++ compiler, run thread by thread.

`RawModule` and the other functions do on NumPy arrays what CuPy's functions of these names do. The threads of a block
run one after another up to each `__syncthreads()`, which all of them must reach, forwards or `backwards`: this exposes
results that depend on the order. `empty` returns memory filled with NaN between guards, which every launch checks.

This tests the arithmetic of a kernel, its indices and its handling of arguments. It does not test what only a GPU has:
threads that run at the same time, its memory, its mathematical functions.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xcnn import _dispatch

__all__ = ["BACKWARDS", "LAUNCHES", "check_guards", "compiler", "empty", "emulated", "room"]

BACKWARDS = [False]
"""Whether threads and blocks run in reverse order."""

BLOCKS: list[range | None] = [None]
"""The blocks to run, if not all."""

LAUNCHES: list[str] = []
"""The kernels that were launched."""

_HOST = """
#include <math.h>
#include <ucontext.h>
#include <functional>

struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, gridDim;
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(count)
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

enum { THREADS = 256, STACK = 1 << 16 };
static char stacks[THREADS][STACK];
static ucontext_t scheduler, threads[THREADS];
static std::function<void()> work;
static bool waits[THREADS];

static void __syncthreads() {
    const unsigned me = threadIdx.x;
    waits[me] = true;
    swapcontext(&threads[me], &scheduler);
}

static void thread() { work(); }

// Run blocks of a grid; return whether every barrier was reached by all threads of its block.
static bool run(std::function<void()> body, bool together, unsigned grid, unsigned first, unsigned end,
                bool backwards) {
    work = body;
    gridDim = {grid, 1, 1};
    for (unsigned b = first; b < end; b++) {
        blockIdx = {backwards ? end - 1 - (b - first) : b, 0, 0};
        if (!together) {
            for (unsigned t = 0; t < THREADS; t++) {
                threadIdx = {backwards ? THREADS - 1 - t : t, 0, 0};
                body();
            }
            continue;
        }
        for (unsigned t = 0; t < THREADS; t++) {
            getcontext(&threads[t]);
            threads[t].uc_stack = {stacks[t], 0, STACK};
            threads[t].uc_link = &scheduler;
            makecontext(&threads[t], thread, 0);
        }
        for (unsigned waiting = THREADS; waiting;) {
            waiting = 0;
            for (unsigned t = 0; t < THREADS; t++) {
                const unsigned me = backwards ? THREADS - 1 - t : t;
                threadIdx = {me, 0, 0};
                waits[me] = false;
                swapcontext(&scheduler, &threads[me]);
                waiting += waits[me];
            }
            if (waiting && waiting < THREADS) return false;
        }
    }
    return true;
}

namespace xcnn {
"""

_ENTRY = """
extern "C" int sizes_{name}[] = {{ {sizes} }}, pointers_{name}[] = {{ {pointers} }};
extern "C" bool run_{name}(void** a, unsigned grid, unsigned first, unsigned end, bool backwards) {{
    return run([=] {{ {name}({arguments}); }}, {together}, grid, first, end, backwards);
}}
"""


def compiler() -> list[str]:
    """Return the command of a C++ compiler. Without one, skip the test, or fail with `--require-backend numpy-cuda`."""
    for command in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if command and shutil.which(command):
            return [command]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++"]
    reason = "no C++ compiler here, so that no CUDA kernel runs on the CPU; `pip install ziglang` brings one"
    return pytest.fail(reason) if os.environ.get("XCNN_REQUIRE_COMPILER") else pytest.skip(reason)


def _with_entries(code: str) -> str:
    """Add a function to each kernel that takes the addresses of its arguments, as a launch does."""
    entries = []
    for found in re.finditer(r"^KERNEL (\w+)\((.*?)\) {(.*?)^}", code, re.MULTILINE | re.DOTALL):
        name, parameters, text = found.groups()
        kinds = [" ".join(one.split()[:-1]) for one in parameters.split(",")]
        arguments = ", ".join(f"*({kind}*)a[{i}]" for i, kind in enumerate(kinds))
        together = str("block_" in text or "__syncthreads" in text).lower()
        sizes = ", ".join(f"sizeof({kind})" for kind in kinds)
        pointers = ", ".join(str(int(kind.endswith("*"))) for kind in kinds)
        entry = _ENTRY.format(name=name, sizes=sizes, pointers=pointers, arguments=arguments, together=together)
        entries.append(entry)
    return _HOST + code + "\n".join(entries) + "\n}\n"


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="xcnn-emulator-")


@functools.cache
def _library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    text = _with_entries(code)
    stem = Path(_folder().name) / hashlib.sha256(text.encode()).hexdigest()[:16]
    stem.with_suffix(".cpp").write_text(text)
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w", *options]
    command = [*compiler(), *flags, str(stem.with_suffix(".cpp")), "-o", str(stem.with_suffix(".so"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(stem.with_suffix(".so")))


class RawModule:
    """Replaces `cupy.RawModule`."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self.library = _library(code, tuple(os.environ.get("XCNN_EMULATOR_FLAGS", "").split()))

    def get_function(self, name: str) -> Any:
        function, count = getattr(self.library, f"run_{name}"), len(LOADED[f"{ROOM}._launch"].PARAMETERS[name])
        function.restype = ctypes.c_bool
        sizes, pointers = (
            list((ctypes.c_int * count).in_dll(self.library, f"{what}_{name}")) for what in ("sizes", "pointers")
        )

        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert block == (256,)
            LAUNCHES.append(name)
            # NumPy returns scalars instead of arrays without axes; CuPy returns arrays.
            arguments = tuple(
                np.asarray(a) if p and isinstance(a, np.floating) else a
                for a, p in zip(arguments, pointers, strict=True)
            )
            held = [_held(argument) for argument in arguments]
            assert [value.nbytes for value in held] == sizes, f"{name}: an argument has the wrong size"
            addresses = (ctypes.c_void_p * count)(*(value.ctypes.data for value in held))
            blocks = BLOCKS[0] or range(grid[0])
            fine = function(addresses, grid[0], blocks.start, blocks.stop, BACKWARDS[0])
            assert fine, f"{name}: some threads of a block do not reach a barrier"
            for argument in arguments:
                check_guards(name, argument)

        return launch


def _held(argument: Any) -> np.ndarray:
    """Return what is passed by value: the address of an array, a struct or a scalar."""
    if isinstance(argument, np.ndarray) and argument.dtype.names is None:
        return np.asarray(argument.ctypes.data, np.uint64)
    assert isinstance(argument, np.ndarray | np.generic), f"{argument!r} has no type"
    return np.asarray(argument)


_GUARD = 64
"""Bytes of 0xff before and after an array, which are NaN in floating point."""


class _Guarded(np.ndarray):
    """The memory of an array with its guards."""


def empty(shape: Any, dtype: Any = float) -> np.ndarray:
    """Replace `cupy.empty`: the memory is filled with NaN and guarded."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = _Guarded(size + 2 * _GUARD, np.uint8)  # its own memory, not a view: it is the base of all its views
    memory[:] = 255
    return np.ndarray(shape, dtype, memory, _GUARD)


def check_guards(name: str, argument: Any) -> None:
    """Check that nothing was written outside an array from `empty`, or outside the array that it is a view of."""
    while isinstance(argument, np.ndarray) and not isinstance(argument, _Guarded):
        argument = argument.base
    if isinstance(argument, _Guarded):
        memory = np.asarray(argument)
        assert (memory[:_GUARD] == 255).all(), f"{name}: written before an array"
        assert (memory[-_GUARD:] == 255).all(), f"{name}: written behind an array"


ROOM = "xcnn.kernels.cuda"


@functools.cache
def room() -> dict[str, Any]:
    """Load the room of CUDA kernels on NumPy arrays and return its kernels by name."""
    compiler()
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(ROOM)}
    library = types.ModuleType(f"{ROOM}._library")
    space: Any = types.ModuleType("emulated")
    # Only names that CuPy has: see tests/test_cuda_compile.py.
    vars(space).update(maximum=np.maximum, sqrt=np.sqrt, zeros=np.zeros, zeros_like=np.zeros_like)
    names = {"RawModule": RawModule, "ascontiguousarray": np.ascontiguousarray, "empty": empty, "matmul": np.matmul}
    vars(library).update(names, namespace=space, address=lambda array: array.ctypes.data)
    library.__dict__["__all__"] = [*names, "address", "namespace"]
    sys.modules[library.__name__] = library
    try:
        importlib.import_module(ROOM)
        return dict(_dispatch._REGISTERED[space])
    finally:
        for name in [name for name in sys.modules if name.startswith(ROOM)]:
            LOADED[name] = sys.modules.pop(name)
        sys.modules.update(before)


LOADED: dict[str, types.ModuleType] = {}
"""The modules that `room` has loaded."""


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Use the CUDA kernels for NumPy arrays inside a `with` block."""
    kernels = room()
    with _dispatch.portable(np):
        _dispatch._KERNELS[np].update(kernels)
        try:
            yield
        finally:
            _dispatch._KERNELS[np].clear()

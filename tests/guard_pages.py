"""Memory between pages that may not be accessed, for the arguments, results and temporary memory of kernels."""

import contextlib
import ctypes
import math
import mmap
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["guarded", "guards"]

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_EMPTY = np.empty


def guarded(shape: Any, dtype: Any, side: str, fill: Any = None) -> np.ndarray:
    """Return an array that ends, or begins, at a page that may not be accessed; filled, it is read-only memory."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    nbytes = math.prod(shape) * dtype.itemsize
    if not dtype.itemsize:
        return _EMPTY(shape, dtype)
    pages = -(-nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = mmap.PAGESIZE if side == "before" else (pages + 1) * mmap.PAGESIZE - nbytes
    array = np.frombuffer(memory, np.uint8, nbytes, first).view(dtype).reshape(shape)
    if fill is not None:
        array[...] = fill
        _LIBC.mprotect(start + mmap.PAGESIZE, pages * mmap.PAGESIZE, mmap.PROT_READ)
    elif dtype.kind == "f":
        array.fill(np.nan)
    _LIBC.mprotect(start, mmap.PAGESIZE, 0)
    _LIBC.mprotect(start + (pages + 1) * mmap.PAGESIZE, mmap.PAGESIZE, 0)
    return array


@contextlib.contextmanager
def guards(side: str) -> Iterator[None]:
    """Take all results and temporary memory of kernels between guard pages; at first it is NaN unless it must be 0."""

    def scratch(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
        array = guarded(size, dtype, side)
        if owner not in (-1, 0):
            array.fill(0)
        return array

    def zeros(shape: Any, dtype: Any = float, *_: Any, **__: Any) -> np.ndarray:
        array = guarded(shape, dtype, side)
        array.fill(0)
        return array

    class Rooms(threading.local):
        def get(self, itemsize: int) -> np.ndarray:
            self.rooms = sys.modules["xcnn.kernels.cpu._matrices"]._Rooms()
            index: np.ndarray = self.rooms.get(itemsize)
            return index

    changed: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for name, module in list(sys.modules.items()):
        if name.startswith("xcnn.kernels.cpu.") and module is not None and not name.endswith("_scratch"):
            if hasattr(module, "scratch"):
                put(module, "scratch", scratch)
            if hasattr(module, "cleared"):
                put(module, "cleared", lambda owner, name, size, dtype: zeros(size, dtype))
            if hasattr(module, "_ROOMS"):
                put(module, "_ROOMS", Rooms())
    put(np, "empty", lambda shape, dtype=float, *_, **__: guarded(shape, dtype, side))
    put(np, "zeros", zeros)
    try:
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)

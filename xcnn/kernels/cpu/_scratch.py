"""Memory of each thread for temporary arrays, so that only the first call waits for fresh memory."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["apart", "cleared", "new_owner", "scratch"]

_ALIGNED = 64
_MOST = 256
_MOST_BYTES = 256 << 20
"""Limits on the arrays that a thread keeps; only calls with ever-changing shapes exceed them."""


class _Memory(threading.local):
    """The arrays of a thread by owner, name and dtype, and who had those last that owners share, if they do."""

    shared = True

    def __init__(self) -> None:
        self.arrays: dict[Any, np.ndarray] = {}
        self.owners: dict[Any, int] = {}


_local, _owners = _Memory(), itertools.count()


@contextlib.contextmanager
def apart() -> Iterator[dict[Any, np.ndarray]]:
    """Give this thread other memory inside a `with`, which owners do not share; return it."""
    before, _local.arrays, _local.shared = _local.arrays, {}, False
    try:
        yield _local.arrays
    finally:
        _local.arrays, _local.shared = before, True


def new_owner() -> int:
    """Return a number for a new owner of memory from `cleared`."""
    return next(_owners)


def scratch(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
    """Return this thread's array for an owner and a name, as the last call left it; zeros at first.

    So elements that an owner never writes are always 0.
    """
    arrays = _local.arrays
    key = owner, name, dtype
    array = arrays.get(key)
    if array is None or array.size < size:
        room = np.zeros(size * dtype.itemsize + _ALIGNED, np.uint8)
        if len(arrays) >= _MOST or sum(a.nbytes for a in arrays.values()) + room.nbytes > _MOST_BYTES:
            arrays.clear()
        start = -room.ctypes.data % _ALIGNED
        array = arrays[key] = room[start : start + size * dtype.itemsize].view(dtype)
    return array if array.size == size else array[:size]


def cleared(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
    """Return this thread's array for a name, as the owner's last call left it; zeros if another owner had it since.

    The owners share one array, so that padding which stays 0 takes little memory.
    """
    if not _local.shared:
        return scratch(owner, name, size, dtype)
    array = scratch(-2, name, size, dtype)
    if _local.owners.get((name, dtype)) != owner:
        array.fill(0)
        _local.owners[name, dtype] = owner
    return array

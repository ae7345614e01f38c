"""Memory of each thread for temporary arrays, so that only the first call waits for fresh memory."""

import itertools
import threading
from typing import Any

import numpy as np

__all__ = ["cleared", "new_owner", "scratch"]

_ALIGNED = 64
_MOST = 256
_MOST_BYTES = 256 << 20
"""Limits on the arrays that a thread keeps; only calls with ever-changing shapes exceed them."""

_local = threading.local()

_owners = itertools.count()


def new_owner() -> int:
    """Return a number for a new owner of memory from `cleared`."""
    return next(_owners)


def scratch(owner: int, name: str, size: int, dtype: Any) -> np.ndarray:
    """Return this thread's array for an owner and a name, as the last call left it; zeros at first.

    So elements that an owner never writes are always 0.
    """
    try:
        arrays: dict[Any, np.ndarray] = _local.arrays
    except AttributeError:
        arrays = _local.arrays = {}
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
    try:
        owners: dict[Any, int] = _local.owners
    except AttributeError:
        owners = _local.owners = {}
    array = scratch(-2, name, size, dtype)
    if owners.get((name, dtype)) != owner:
        array.fill(0)
        owners[name, dtype] = owner
    return array
